"""The base dataset: loading it by name, from the Hub or from disk, and recognising it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import yaml
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import metadata_load, try_to_load_from_cache

from hf_dr.errors import DataError
from hf_dr.store.named_files import check_own_files

# Rows by whose files a base dataset is recognised; every image is hashed besides, when it is decoded.
_SAMPLED_ROWS = 64


def load_base(
    name: str,
    config: str | None = None,
    *,
    split: str = "train",
    revision: str | None = None,
    files_from: Sequence[str] = (),
) -> tuple[datasets.Dataset, dict[str, Any]]:
    """Loads one split of a base dataset.

    Args:
        name: Hub id, a Parquet file, a folder of Parquet files or images (imagefolder), or one that
            `Dataset.save_to_disk` wrote.
        config: Its configuration, where it has several.
        split: The split; slices such as `train[:1000]` work.
        revision: Branch, tag or commit on the Hub.
        files_from: Folders whose files its cells may name, besides its own: see `hf_dr.store.named_files`.

    Returns:
        The dataset, and what names it in the provenance (`id`, `config`; a local path is cut down to its last part), with its
        `license` if its card tells one.

    Raises:
        DataError: It cannot be found or read, has no such split, or names a file that is not its own.
    """
    path = Path(name).expanduser()
    described: dict[str, Any] = {"id": path.name if path.exists() else name, "config": config}
    if revision is not None:
        described["revision"] = revision
    try:
        if path.is_file():
            loaded = datasets.load_dataset("parquet", data_files={"train": str(path)}, split=split)
        elif (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(str(path) if path.exists() else name, config, split=split, revision=revision)
        license = card_license(name, revision)
    except DatasetNotFoundError as error:
        raise DataError(
            f"the dataset {name!r} must be on the Hub and open to you, or a local folder; {error}. Check the name; for a gated "
            "one accept its terms on its page and log in with `hf auth login`."
        ) from error
    # A card is anybody's text, and its YAML fails in many ways.
    except (
        ValueError, OSError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, yaml.YAMLError,
        datasets.exceptions.DatasetsError,
    ) as error:  # fmt: skip
        raise DataError(
            f"could not load split `{split}` of {name!r} ({type(error).__name__}: {str(error)[:300]}). Check the name, "
            "`dataset_config` and `split`."
        ) from error
    if not isinstance(loaded, datasets.Dataset):
        raise DataError(f"{name!r} must give one split, found {type(loaded).__name__}. Save or name a single split.")
    # A single Parquet file has no files of its own: what lies beside it may be anything.
    folder = path if path.is_dir() else None
    check_own_files(loaded, name, folder=folder, repo_id=None if path.exists() else name, files_from=files_from)
    return loaded, described if license is None else {**described, "license": license}


def card_license(name: str, revision: str | None = None) -> str | None:
    """Returns the licence that the card of a dataset tells: one in a folder, or one that was loaded from the Hub."""
    path = Path(name).expanduser()
    if path.exists():
        card = path / "README.md"
    else:  # on the Hub: loading it has fetched the card
        card = Path(str(try_to_load_from_cache(name, "README.md", revision=revision, repo_type="dataset")))
    license = (metadata_load(card) or {}).get("license") if card.is_file() else None
    return license if isinstance(license, str) else None


def sampled_rows(count: int) -> np.ndarray:
    """Returns up to 64 rows spread over `count`, int64, in order."""
    return np.unique(np.linspace(0, count - 1, min(_SAMPLED_ROWS, count)).astype(int))


def undecoded_images(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    """Returns the dataset's image column alone, as bytes and paths, in the Python format."""
    return dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format(None)


def content_hash(images: datasets.Dataset) -> str:
    """Returns a hash of the number of rows and of the image files of 64 rows spread over them, as SHA-256."""
    digest = hashlib.sha256(str(len(images)).encode())
    (column,) = images.column_names
    for row in sampled_rows(len(images)):
        value = images[int(row)][column] or {}
        data = value.get("bytes")
        if data is None and value.get("path") and Path(value["path"]).is_file():
            data = Path(value["path"]).read_bytes()
        digest.update(hashlib.sha256(data or b"").digest())
    return digest.hexdigest()

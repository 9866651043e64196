"""The base dataset: loading it by name, from the Hub or from disk, and recognising it."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import datasets
import numpy as np
from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.utils.info_utils import is_small_dataset
from huggingface_hub import metadata_load, try_to_load_from_cache

from hf_dr.errors import ConfigError, DataError, did_you_mean
from hf_dr.files import YAML_ERRORS, absolute, expanded, no_folder, placeless
from hf_dr.store.image_folders import check_all_read, refuse_other_kinds
from hf_dr.store.named_files import check_own_files
from hf_dr.store.schema import LICENSES
from hf_dr.text import is_hub_id, progress_bar
from hf_dr.views.images import read_file

logger = logging.getLogger(__name__)

# Rows by whose files a base dataset is recognised; in addition, every image is hashed when it is decoded.
_SAMPLED_ROWS = 64
_WHERE = "the name, `dataset_config` and `split`"  # the settings that most commands have for a base dataset
_SAVED_SPLITS = "dataset_dict.json"  # in the folder of a saved DatasetDict


def load_base(
    name: str,
    config: str | None = None,
    *,
    split: str = "train",
    revision: str | None = None,
    files_from: Sequence[str] = (),
    where: str = _WHERE,
) -> tuple[datasets.Dataset, dict[str, Any]]:
    """Loads one split of a base dataset.

    Args:
        name: Hub id, a Parquet file, a folder of Parquet files or images (imagefolder), or one that `save_to_disk` of a
            Dataset or a DatasetDict wrote.
        config: Its configuration, where it has several.
        split: The split; slices such as `train[:1000]` work.
        revision: Branch, tag or commit on the Hub.
        files_from: Folders whose files its cells may name, in addition to its own: see `hf_dr.store.named_files`.
        where: The settings that said so, for messages.

    Returns:
        The dataset, and what names it in the provenance (`id`, `config`; a local path is cut down to its last part), with its
        `license` if its card names one.

    Raises:
        ConfigError: A local dataset is asked for by a revision, or a file or saved dataset by a configuration.
        DataError: It cannot be found or read, has no such split, or names a file that is not its own.
    """
    path = absolute(name)  # `datasets` finds no name in `.`
    _check_named(path, config, revision)
    described: dict[str, Any] = {"id": placeless(name), "config": config}
    with _loading(name, split, where):
        if path.is_file():
            _check_parquet(path)
            loaded = load_parquet([path], "train", part=split)
        elif _is_saved(path):
            loaded = _part_of(_open_saved(path), split)
        else:
            builder = _builder(path, _unpatterned(path, name), config, revision)
            builder.download_and_prepare()
            loaded = builder.as_dataset(split, in_memory=is_small_dataset(builder.info.dataset_size))
        license = card_license(name, revision)
    if not isinstance(loaded, datasets.Dataset):
        raise DataError(f"{name!r} must give one split, found {type(loaded).__name__}. Save or name a single split.")
    if revision is not None:  # a branch moves: the commit at which it was loaded is noted, where it is known
        described["revision"] = describe_base(loaded)["revision"] or revision
    # A single Parquet file has no files of its own: what lies next to it may be anything.
    folder = path if path.is_dir() else None
    check_own_files(loaded, name, folder=folder, repo_id=None if path.exists() else name, files_from=files_from)
    return loaded, described if license is None else {**described, "license": license}


def _builder(path: Path, place: str, config: str | None, revision: str | None) -> datasets.DatasetBuilder:
    """Returns what loads a dataset, as `datasets.load_dataset` makes it; finding the files of a large folder takes minutes.

    What it would leave out of a folder is refused, or told.
    """
    looked_at = path.is_dir() and config is None
    try:
        builder = datasets.load_dataset_builder(place, config, revision=revision)
    except DataFilesNotFoundError:
        if looked_at:
            refuse_other_kinds(path)
        raise
    if looked_at:
        check_all_read(path, builder)
    return builder


def _check_named(path: Path, config: str | None, revision: str | None) -> None:
    """Refuses a revision of what is on this machine, and a configuration of what is one dataset."""
    for setting, value, allowed in (("revision", revision, not path.exists()), ("config", config, not _is_one(path))):
        if value is not None and not allowed:
            raise ConfigError(
                f"the {setting} of a dataset must be left out for what has none, got {value!r} with {path.name}, which is on "
                "this machine. Leave it out."
            )


def _check_parquet(path: Path) -> None:
    """Refuses a file of another format: CSV, JSON, an image, or an archive."""
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            raise DataError(
                f"a dataset in one file must be Parquet, but {path.name} is not. Name a folder of images, into which "
                "an archive was unpacked, or open the file with `datasets.load_dataset` and name what `save_to_disk` writes."
            )


def _open_saved(path: Path) -> Any:
    """Opens the folder of a saved dataset."""
    try:
        return datasets.load_from_disk(str(path))
    except IndexError:  # `datasets` raises it where a dataset without rows was saved
        raise DataError("the base must have at least one row, got none. Save it with its rows.") from None


def base_files(name: str, config: str | None = None, *, split: str, revision: str | None = None) -> list[str]:
    """Returns path or `hf://` address of the Parquet files that one whole split of a base dataset consists of, in order.

    There are none where it does not consist of such files. The arguments are those of `load_base`.

    Raises:
        ConfigError: See `load_base`.
        DataError: It cannot be found, or has no such split.
    """
    path = absolute(name)
    _check_named(path, config, revision)
    if _is_one(path):
        return [str(path)] if path.is_file() else []
    with _loading(name, split):
        builder = datasets.load_dataset_builder(_unpatterned(path, name), config, revision=revision)
        if not isinstance(builder, Parquet):
            return []
        files = (builder.config.data_files or {}).get(split)
        if files is None:
            splits = ", ".join(map(str, builder.config.data_files or ()))
            raise DataError(f"{name!r} must have the split `{split}`, found {splits}. Check name and `dataset_config`.")
    return [str(file) for file in files]


def _is_one(path: Path) -> bool:
    """Whether a path is a file, or the folder of saved splits: neither has configurations."""
    return path.is_file() or _is_saved(path)


def _is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote a folder: of one split, or of several."""
    return (path / "state.json").is_file() or (path / _SAVED_SPLITS).is_file()


def _unpatterned(path: Path, name: str) -> str:
    """Returns what `datasets` takes for a folder, or for the name of a dataset where there is none."""
    if not path.exists() and not is_hub_id(name if "/" in name else f"any/{name}"):
        raise DataError(f"expected a folder, a file or a Hub id, found none at {name!r}. Check the path.")
    if path.exists() and glob.escape(str(path)) != str(path):
        raise DataError(
            f"the path of a folder must be without *, ? and [, which `datasets` takes for patterns, got {path}. Rename it."
        )
    return str(path) if path.exists() else name


@contextlib.contextmanager
def _loading(name: str, split: str, where: str = _WHERE) -> Iterator[None]:
    """Turns what `datasets` raises where it cannot load a base into an error for people."""
    absent = no_folder(name)
    try:
        yield
    except DatasetNotFoundError as error:
        raise DataError(
            f"the dataset {name!r} must be on the Hub and open to you, or a local folder; {str(error).rstrip('.')}.{absent} "
            "Check the name; for a gated one accept its terms on its page and log in with `hf auth login`."
        ) from error
    except DataError:
        raise
    # A card is anybody's text, and its YAML fails in many ways.
    except (OSError, BadZipFile, *YAML_ERRORS, datasets.exceptions.DatasetsError) as error:
        check_cache()
        raise DataError(
            f"could not load split `{split}` of {name!r} ({_reason(error)}).{absent} Check {where}."
        ) from error


def split_names(name: str, config: str | None = None, *, revision: str | None = None) -> list[str]:
    """Returns the splits of a dataset, named as for `load_base`; none for a file, one saved split, and what cannot be found.

    Raises:
        DataError: The Hub does not answer: that there is no such split would be a guess.
    """
    path = absolute(name)
    if _is_one(path):
        return list(_open_saved(path)) if (path / _SAVED_SPLITS).is_file() else []
    place = _unpatterned(path, name)
    try:
        return datasets.get_dataset_split_names(place, config, revision=revision)
    except (ConnectionError, TimeoutError) as error:
        reason = str(error)[:200].rstrip(".")
        raise DataError(
            f"the splits of {name} must be known, but the Hub does not answer: {reason}.{no_folder(name)} Try again, or name "
            "the split."
        ) from error
    except (OSError, BadZipFile, ValueError, datasets.exceptions.DatasetsError) as error:
        logger.debug("no splits known of %s: %s", name, error)
        return []


def load_parquet(
    files: Sequence[Path], split: str, *, part: str | None = None, version: str = "default"
) -> datasets.Dataset:
    """Opens Parquet files as one split; their names are taken as they are, not as patterns.

    Args:
        files: The files, in the order of their rows.
        split: Name of the split that they are.
        part: What of it is returned: all, or a slice such as `train[:1000]`.
        version: Distinguishes contents that the files had at different times: `datasets` keeps what it has converted by the
            files' names and times, and a file that is written again within a second has the same.
    """
    escaped = {split: [glob.escape(str(file)) for file in files]}
    return datasets.load_dataset("parquet", version, data_files=escaped, split=split if part is None else part)


def _part_of(saved: Any, split: str) -> Any:
    """Returns the rows of a saved dataset, or of several splits, that `split` means: all, or a slice such as `train[:1000]`.

    They have its name: those of a DatasetDict may have none, or both parts of one split the name of that.

    Raises:
        ValueError: There is no such split.
    """
    splits = {str(saved.split or "train"): saved} if isinstance(saved, datasets.Dataset) else dict(saved)
    sizes = {name: len(rows) for name, rows in splits.items()}
    parts = []
    for part in datasets.ReadInstruction.from_spec(split).to_absolute(sizes):
        rows = splits[part.splitname]
        chosen = range(*slice(part.from_, part.to).indices(len(rows)))
        parts.append(rows if len(chosen) == len(rows) else rows.select(chosen))
    return datasets.concatenate_datasets(parts, split=datasets.NamedSplit("".join(split.split())))


def check_cache() -> None:
    """Refuses a cache that cannot be written to, where that is why a dataset cannot be loaded."""
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        raise DataError(
            f"the cache of `datasets` must be a folder that can be written to, but {cache}: {error.strerror}. Set "
            "HF_HOME to one that can."
        ) from error


def _reason(error: BaseException) -> str:
    """Says why a dataset cannot be read: `datasets` wraps the reason, sometimes more than once."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}"


def card_license(name: str, revision: str | None = None) -> str | None:
    """Returns the licence that the card of a dataset names: one in a folder, or one that was loaded from the Hub.

    Several are joined by `LICENSES`; None where there is none.
    """
    path = expanded(name)
    card = path / "README.md"
    if not path.exists():  # on the Hub: loading it has fetched the card
        card = Path(str(try_to_load_from_cache(name, "README.md", revision=revision, repo_type="dataset")))
    license = (metadata_load(card) or {}).get("license") if card.is_file() else None
    if isinstance(license, list) and all(isinstance(name, str) for name in license):
        license = LICENSES.join(license) or None
    return license if isinstance(license, str) else None


def sampled_rows(count: int, most: int | None = None) -> np.ndarray:
    """Returns up to `most` rows (default: 64) spread over `count`, int64, in order."""
    return np.unique(np.linspace(0, count - 1, min(most or _SAMPLED_ROWS, count)).astype(int))


def undecoded_images(dataset: datasets.Dataset, column: str) -> datasets.Dataset:
    """Returns the dataset's image column alone, as bytes and paths, in the Python format."""
    return dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False)).with_format(None)


def content_hash(images: datasets.Dataset) -> str:
    """Returns a hash of the number of rows and of the image files of 64 rows spread over them, as SHA-256."""
    digest = hashlib.sha256(str(len(images)).encode())
    (column,) = images.column_names
    for row in sampled_rows(len(images)):
        digest.update(_file_hash(images[int(row)][column]))
    return digest.hexdigest()


def whole_hash(
    dataset: datasets.Dataset, image_column: str, label_column: str, hashes: Sequence[bytes] | None = None
) -> str:
    """Returns a hash of all that a classifier learns from: every image file, label and class name, as SHA-256.

    `hashes` are the `file_hashes` of the images, where they are known.
    """
    names = class_names_of(dataset, label_column)
    digest = hashlib.sha256(str([names, whole_column(dataset, label_column).to_pylist()]).encode())
    digest.update(b"".join(file_hashes(dataset, image_column) if hashes is None else hashes))
    return digest.hexdigest()


def file_hashes(dataset: datasets.Dataset, image_column: str) -> list[bytes]:
    """Returns the SHA-256 of the file of each row's image, which is read but not decoded."""
    images = undecoded_images(dataset, image_column)
    rows = progress_bar(images, desc="reading the images", unit="image", leave=False)
    return [_file_hash(row[image_column]) for row in rows]


def shared_files(images: datasets.Dataset, others: datasets.Dataset) -> int:
    """Returns how many rows of undecoded images have a file that is also among others."""
    (column,), (other_column,) = images.column_names, others.column_names
    known = {_file_hash(row[other_column]) for row in others}
    return sum(_file_hash(row[column]) in known for row in images)


def _file_hash(cell: dict[str, Any] | None) -> bytes:
    """Returns the SHA-256 of the file of an undecoded image; of no bytes where there is none that can be read."""
    value = cell or {}
    data = value.get("bytes")
    if data is None and value.get("path"):
        # An address fails in as many ways as there are kinds of them. What cannot be read is reported where it is decoded.
        with contextlib.suppress(Exception):
            data = read_file(value["path"])
    return hashlib.sha256(data or b"").digest()


def require_columns(names: Sequence[str], known: Sequence[str], kind: str = "column") -> None:
    """Checks that columns are among the `known` ones of a dataset; a DataError names the first that is not."""
    for name in names:
        if name not in known:
            raise DataError(f"the dataset must have the {kind} `{name}`.{did_you_mean(name, known)}")


def whole_column(dataset: datasets.Dataset, name: str) -> Any:
    """Returns one column as Arrow. Without the selection, a shuffled dataset would copy all its columns, images too."""
    return dataset.select_columns([name]).with_format("arrow")[:][name]


def class_names_of(dataset: datasets.Dataset, column: str | None) -> list[str] | None:
    """Returns the names of the classes of a column of labels; None where they have none, or there is no such column."""
    return getattr(dataset.features.get(column), "names", None)


def describe_base(dataset: datasets.Dataset) -> dict[str, Any]:
    """Returns what a dataset knows of its origin: Hub id, config and revision."""
    config = dataset.info.config_name
    # What `datasets` calls the configuration of a dataset without any; it is found without a name.
    described: dict[str, Any] = {"id": None, "config": None if config == "default" else config, "revision": None}
    for file in dataset.cache_files:
        # CACHE/owner___name/config/version/commit/name-train.arrow, if it was loaded from the Hub.
        match = re.search(r"([^/\\]+)___([^/\\]+)[/\\][^/\\]+[/\\][^/\\]+[/\\]([0-9a-f]{40})[/\\]", file["filename"])
        if match:
            return {**described, "id": f"{match[1]}/{match[2]}", "revision": match[3]}
    return described


def checked_origin(dataset: datasets.Dataset, files_from: Sequence[str]) -> dict[str, Any]:
    """Returns what a dataset knows of its origin, once one from the Hub is known to name no files of this machine.

    Raises:
        ConfigError: One of `files_from` is no folder.
        DataError: The dataset is from the Hub, and names a file that is not of its repository.
    """
    described = describe_base(dataset)
    if described["id"] is not None:
        check_own_files(dataset, described["id"], repo_id=described["id"], files_from=files_from)
    return described

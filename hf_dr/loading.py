"""Opening a "+" dataset, from a folder or from the Hub."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
from huggingface_hub import hf_hub_download, list_repo_files
from huggingface_hub.errors import EntryNotFoundError

from hf_dr.errors import ConfigError, FormatError
from hf_dr.replay import ReinforcedDataset
from hf_dr.schema import PROVENANCE_FILE, Provenance, choose_config, find_config
from hf_dr.shards import read_marker


def load_reinforced(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    split: str | None = None,
    base: datasets.Dataset | None = None,
    revision: str | None = None,
    num_views: int | None = None,
    seed: int = 0,
    check_images: bool = True,
) -> ReinforcedDataset:
    """Opens a "+" dataset for training.

    Args:
        path: Folder of the "+" dataset, or its Hub id.
        name: Its configuration; may be left out where there is only one.
        split: Its split; default: the one that was reinforced.
        base: For an overlay (no images of its own): the base dataset with its images, in its original order.
        revision: Branch, tag or commit on the Hub.
        num_views: Use only the first so many of the V stored views.
        seed: Of the order in which views are replayed.
        check_images: Refuse an image whose pixels are not those that were reinforced. Each image is checked the first
            time a process decodes it.

    Raises:
        FormatError: The dataset is incomplete or does not follow the format.
        ConfigError: `name`, `split` or `num_views` does not exist there.
        DataError: The base is missing or is not the one that was reinforced.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        provenance, plus = _load_folder(folder, name, split)
    elif isinstance(path, str) and path.count("/") == 1 and not path.startswith((".", "~", "/")):
        provenance, plus = _load_hub(path, name, split, revision)
    else:
        raise ConfigError(
            f'expected the folder of a "+" dataset or a Hub id, found neither at {str(path)!r}. Check the path.'
        )
    return ReinforcedDataset(plus, provenance, base=base, num_views=num_views, seed=seed, check_images=check_images)


def _load_folder(folder: Path, name: str | None, split: str | None) -> tuple[Provenance, datasets.Dataset]:
    config = find_config(folder, name)
    provenance = Provenance.read(config)
    _check_split(split, provenance)
    shards = [config / shard for shard in provenance.shard_names]
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise FormatError(
            f"{config} must have {len(shards)} shards, but {len(missing)} are missing, e.g. {missing[0]}. "
            "Run the same reinforce command again; it makes only what is missing."
        )
    for path in shards:
        if read_marker(path).fingerprint != provenance.fingerprint:
            raise FormatError(
                f"{path} must carry the fingerprint of its {PROVENANCE_FILE}, found another. Make it again."
            )
    files = {provenance.split: [str(path) for path in shards]}
    return provenance, datasets.load_dataset("parquet", data_files=files, split=provenance.split)


def _load_hub(
    repo_id: str, name: str | None, split: str | None, revision: str | None
) -> tuple[Provenance, datasets.Dataset]:
    if name is None:
        files = list_repo_files(repo_id, repo_type="dataset", revision=revision)
        name = choose_config(None, sorted(f.split("/")[0] for f in files if f.endswith(f"/{PROVENANCE_FILE}")), repo_id)
    try:
        file = hf_hub_download(repo_id, f"{name}/{PROVENANCE_FILE}", repo_type="dataset", revision=revision)
    except EntryNotFoundError as error:
        raise FormatError(
            f'{repo_id} must hold {name}/{PROVENANCE_FILE}, found none: no configuration `{name}`, or no "+" dataset.'
        ) from error
    provenance = Provenance.read(Path(file).parent)
    _check_split(split, provenance)
    # The commit that the provenance came from: data pushed in between cannot be mixed with it.
    commit = Path(file).parents[1].name
    return provenance, datasets.load_dataset(repo_id, name, split=provenance.split, revision=commit)


def _check_split(split: str | None, provenance: Provenance) -> None:
    if split not in (None, provenance.split):
        raise ConfigError(f"the split `{provenance.split}` was reinforced, not `{split}`. Leave `split` out.")

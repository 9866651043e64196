"""Fetching a "+" dataset from the Hub, file by file at one commit."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, hf_hub_download, list_repo_files, resolve_revision, try_to_load_from_cache
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from tqdm.auto import tqdm

from hf_dr.errors import ConfigError, FormatError
from hf_dr.files import expanded, spelled_alike
from hf_dr.hub.retry import ask, is_unreachable, with_retries
from hf_dr.processes import thread_pool
from hf_dr.store.configs import choose_config, config_names, find_config, read_config_names
from hf_dr.store.json_files import check_size
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import PROVENANCE_FILE, is_safe_name
from hf_dr.text import is_hub_id, progress_bar

logger = logging.getLogger(__name__)

_DOWNLOADS = 8  # files fetched at a time


class _NoBar(tqdm):
    """Hides the bars of single files: one bar counts them all."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "disable": True})


def fetch_config(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    split: str | None = None,
    revision: str | None = None,
    shards: bool = True,
) -> tuple[Path, Provenance]:
    """Returns a configuration's folder and provenance; a "+" dataset at the Hub is brought into the Hub's cache first.

    Nothing but the provenance and the shards that it names is fetched, all of one commit. What is in the cache already is
    not fetched again, and is enough where the Hub cannot be reached.

    Args:
        path, name, split, revision: See `load_reinforced`.
        shards: Whether the shards are wanted, or the provenance only.

    Raises:
        FormatError: There is no "+" dataset, or it is incomplete.
        ConfigError: `name`, `split` or `revision` does not fit it.
        HubError: See `load_reinforced`.
    """
    path, revision = split_revision(path, revision)
    folder = expanded(path)
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"`revision` must come with a Hub id, got it with the folder {folder}. Leave it out.")
        config = find_config(folder, name)
        return config, _read(config, split)
    if not isinstance(path, str) or not is_hub_id(path):
        raise ConfigError(
            f'expected the folder of a "+" dataset or a Hub id, found neither at {str(path)!r}.{spelled_alike(folder)} '
            "Check the path."
        )
    what = f"fetch {path} from the Hub"
    asked = f"fetch {path}, which is no folder here, from the Hub"
    commit = ask(lambda: resolve_revision(path, repo_type="dataset", revision=revision), asked).resolved
    if name is None:
        name = choose_config(None, ask(lambda: _config_names(path, commit), what), path)
    if not is_safe_name(name):
        raise ConfigError(f"`name` must be a configuration of {path}, got {name!r:.80}. Check it.")

    def fetch(file: str) -> Path:
        settings: dict[str, Any] = {"repo_type": "dataset", "revision": commit, "tqdm_class": _NoBar}
        try:
            return Path(with_retries(partial(hf_hub_download, path, f"{name}/{file}", **settings), what))
        except RemoteEntryNotFoundError as error:
            raise FormatError(
                f'{path} must hold {name}/{file} at {commit[:12]}, found none: no configuration `{name}`, no "+" dataset, or '
                "half of one. Check the name, or push it again."
            ) from error

    _check_size(path, f"{name}/{PROVENANCE_FILE}", commit, what)
    config = fetch(PROVENANCE_FILE).parent
    provenance = _read(config, split)
    if shards:
        with thread_pool(_DOWNLOADS, "fetch") as pool:
            files = pool.map(fetch, provenance.shard_names)
            for _ in progress_bar(files, f"fetching {path}", total=provenance.num_shards, unit="shard"):
                pass
    return config, provenance


def _read(config: Path, split: str | None) -> Provenance:
    """Returns the provenance in a folder; refuses another split than the one that was reinforced."""
    provenance = Provenance.read(config)
    if split not in (None, provenance.split):
        raise ConfigError(f"the split `{provenance.split}` was reinforced, not `{split}`. Leave `split` out.")
    return provenance


def _check_size(repo_id: str, file: str, commit: str, what: str) -> None:
    """Refuses a file that is too large before it is fetched, unless it is in the cache already."""
    if isinstance(try_to_load_from_cache(repo_id, file, None, commit, "dataset"), str):
        return
    for listed in ask(lambda: HfApi().get_paths_info(repo_id, [file], repo_type="dataset", revision=commit), what):
        check_size(getattr(listed, "size", 0), f"{file} of {repo_id}", 'Is it a "+" dataset?')


def split_revision(
    path: str | os.PathLike[str], revision: str | None = None
) -> tuple[str | os.PathLike[str], str | None]:
    """Returns path and revision of `org/name@revision`; a folder whose name holds an `@` stays one."""
    name, at, pinned = path.rpartition("@") if isinstance(path, str) else ("", "", "")
    if not at or not is_hub_id(name) or not pinned or expanded(os.fspath(path)).exists():
        return path, revision
    if revision not in (None, pinned):
        raise ConfigError(f"expected one revision, got {pinned!r} in {path!r} and {revision!r}. Leave one of them out.")
    return name, pinned


def _config_names(repo_id: str, commit: str) -> list[str]:
    """The configurations at a commit; where the Hub cannot be reached, those in the cache."""
    try:
        files = list_repo_files(repo_id, repo_type="dataset", revision=commit)
    except Exception as error:
        cache = Path(
            constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type="dataset"), "snapshots", commit
        )
        names = config_names(cache)
        if not names or not is_unreachable(error):
            raise
        logger.warning("The Hub cannot be reached; of %s only what is in the cache is seen.", repo_id)
        return names
    names = read_config_names(files, repo_id)
    unsafe = [name for name in names if not is_safe_name(name)]
    if unsafe:
        raise FormatError(f"the configurations of {repo_id} must have plain names, found {unsafe[0]!r:.80}.")
    return names

"""Pushing a "+" dataset: its finished configurations and its card, in one commit."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from accelerate.utils import gather_object

from hf_dr.errors import ConfigError, FormatError, HfDrError
from hf_dr.files import expanded
from hf_dr.hub.repository import Push, Remote, Repository, publish, warn_of_unsent
from hf_dr.processes import process_state
from hf_dr.settings import check_kind, check_names
from hf_dr.store.card import (
    CARD_FILE,
    GENERATED_KEYS,
    CardConfig,
    card_config,
    has_config_elsewhere,
    keep_configs,
    names_configs,
    read_card,
    update_card,
)
from hf_dr.store.configs import choose_config, config_names, configs_among
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import PROVENANCE_FILE, PUBLISHED_FILES
from hf_dr.store.shards import check_digests

# What `datasets` reads without being told; a repository with such files and no `configs:` in its card is one dataset.
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
_DATA = (".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".jsonl.gz", ".tar", ".zip", *_PICTURES)
# What it passes over, as `datasets` does: descriptions.
_NO_DATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "croissant.json")


def push_to_hub(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    configs: Sequence[str] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: Sequence[str] = (),
    overwrite: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> Push:
    """Pushes finished configurations of a "+" dataset to a dataset repository, in one commit.

    Other configurations that are there, and text that people wrote into the card, stay. Called in every process that
    accelerate launched, each sends its share of the shards and rank 0 commits. Run it again after whatever stopped it.

    Args:
        folder: The folder of the "+" dataset.
        repo_id: `owner/name`; it is created if it does not exist.
        configs: Which configurations. Default: all in the folder, which must all be finished.
        private: Whether a new repository is private. Default: what the owner's settings say. True is refused for one that
            is public.
        revision: Branch to push to; it is created if it does not exist. Default: `main`.
        create_pr: Push to a pull request (a draft) instead. Run again, the same one is used.
        tags: Tags to set on the commit. They must be new, or be on that commit already.
        overwrite: Replace a configuration that is there and was made with other settings (its fingerprint differs), with what
            was found out about it.
        commit_message: The default names the configurations and their fingerprints.
        token: Default: the one that `hf auth login` stored.
        dry_run: Send nothing; the answer says what a push would do. With HF_HUB_OFFLINE set, one to a new repository.

    Raises:
        ConfigError: A setting is impossible, or a configuration is there in another version and `overwrite` is not set, or the
            repository has data that could not be loaded any more.
        FormatError: A configuration is unfinished or damaged.
        HubError: The Hub refuses, or does not answer after all retries. Nothing was published, or all of it.
    """
    expected = 'the folder of a "+" dataset'
    check_kind("folder", folder, (str, os.PathLike), expected, "Give the `output_dir` of `reinforce`.")
    folder = expanded(folder)
    found = {name: card_config(folder / name) for name in _names(folder, configs)}
    provenances = {name: config.provenance for name, config in found.items()}
    _check_shards(folder, provenances)
    files = {f"{name}/{path.name}": path for name in found for path in config_files(folder / name, provenances[name])}

    repository = Repository(repo_id, "dataset", revision, token)
    pushed = _Configs(folder, repository, found, overwrite)
    fingerprints = ", ".join(f"{name} {provenance.fingerprint[:8]}" for name, provenance in provenances.items())
    return publish(
        repository,
        files,
        functools.cache(pushed.card),  # parsing YAML takes its time, and each attempt asks again
        stale=pushed.is_stale,
        check=pushed.check,
        private=private,
        create_pr=create_pr,
        tags=tags,
        message=commit_message or f"Push {fingerprints}",
        dry_run=dry_run,
    )


@dataclass
class _Configs:
    """The configurations that are pushed, next to what stands there; see `push_to_hub`.

    Attributes:
        replaced: Those that stand there in another version, once `check` has looked.
    """

    folder: Path
    repository: Repository
    configs: Mapping[str, CardConfig]
    overwrite: bool
    replaced: set[str] = field(default_factory=set)

    def card(self, remote: str | None) -> str:
        """Returns the text of the new card, made from the one that is there, or else from the folder's."""
        local = read_card(self.folder / CARD_FILE)
        if local is not None:
            local = keep_configs(local, self.configs)  # the card names no configuration before its data is there
        if remote is not None and local is not None:
            warn_of_unsent(local, remote, GENERATED_KEYS, self.repository.id)
        existing = local if remote is None else remote
        repository = self.repository
        return update_card(existing, self.configs, name=repository.id, revision=repository.named_revision)

    def check(self, remote: Remote) -> None:
        """Refuses a repository in which something would be lost."""
        repository = self.repository
        _check_implicit(repository, remote)
        ours = configs_among(remote.files)
        for name, config in self.configs.items():
            file = repository.fetch(f"{name}/{PROVENANCE_FILE}", remote) if name in ours else None
            if file is None:
                _check_free(repository, remote, name)
                continue
            try:
                there = Provenance.read(file.parent)
            except FormatError:
                if not self.overwrite:
                    raise
                self.replaced.add(name)
                continue
            if there.fingerprint == config.provenance.fingerprint:
                continue
            if not self.overwrite:
                differences = "; ".join(there.differences(config.provenance)[:5])
                raise ConfigError(
                    f"configuration `{name}` of {repository.id} must be the one that is pushed, found another ({differences}). "
                    "Pass `overwrite` to replace it, or reinforce under another `config_name`."
                )
            self.replaced.add(name)

    def is_stale(self, path: str) -> bool:
        """Tells whether a file that stands there goes: other shards, and what was found out about a replaced configuration."""
        name, _, file = path.rpartition("/")
        return name in self.configs and (
            file.endswith(".parquet") or (name in self.replaced and file in PUBLISHED_FILES)
        )


def _data_among(remote: Remote) -> list[str]:
    """Returns the paths of the files that `datasets` would read as data."""
    return [path for path in remote.files if path.lower().endswith(_DATA) and path.rpartition("/")[2] not in _NO_DATA]


def _check_free(repository: Repository, remote: Remote, name: str) -> None:
    """Refuses the name of a configuration under which other data stands: its files would go, or its place in the card."""
    there = [path for path in _data_among(remote) if path.startswith(f"{name}/")]
    there = [path for path in there if path.rpartition("/")[2] not in PUBLISHED_FILES]
    if there or has_config_elsewhere(repository.card(remote), name):
        found = there[0] if there else "another in its card"
        raise ConfigError(
            f"configuration `{name}` of {repository.id} must be one that was pushed by hf_dr, or none, found {found}. "
            "Reinforce under another `config_name`, or push elsewhere."
        )


def _check_implicit(repository: Repository, remote: Remote) -> None:
    """Refuses a repository whose data is read without its card naming it: named data alone would be read from then on."""
    ours = configs_among(remote.files)
    data = [path for path in _data_among(remote) if path.rpartition("/")[0] not in ours]
    card = (repository.card(remote) or "") if data else ""
    data = [path for path in data if not (path.lower().endswith(_PICTURES) and path in card)]
    if not data or names_configs(card):
        return
    more = f" and {len(data) - 1} more" if len(data) > 1 else ""
    raise ConfigError(
        f"the card of {repository.id} must name its data under `configs:`, found nothing of {data[0]}{more}: once it names "
        "what is pushed, nobody could load that any more. Add it to the card, or push elsewhere."
    )


def _names(folder: Path, configs: Sequence[str] | None) -> list[str]:
    """Returns the configurations to push, each once: those that are named, or all."""
    if not folder.is_dir():
        raise FormatError(f'expected the folder of a "+" dataset, found none at {folder}. Check the path.')
    if configs is not None:
        check_names("configs", configs)
    there = config_names(folder)
    if not there and (folder / PROVENANCE_FILE).is_file():
        config = folder.resolve()
        raise ConfigError(
            f'expected the folder of a whole "+" dataset, found that of its configuration `{config.name}`. Name the folder '
            f"above it, {config.parent}; `configs` chooses among several."
        )
    named: Sequence[str | None] = configs or there or [None]  # None is refused by `choose_config`
    return list(dict.fromkeys(choose_config(name, there, str(folder)) for name in named))


def _check_shards(folder: Path, provenances: Mapping[str, Provenance]) -> None:
    """Reads this process's share of the shards. What is damaged is not published; every rank raises the first error."""
    state = process_state()
    shards = [folder / name / shard for name, provenance in provenances.items() for shard in provenance.shard_names]
    damaged: list[tuple[int, HfDrError]] = []
    for number in range(state.process_index, len(shards), state.num_processes):
        try:
            check_digests(shards[number])
        except HfDrError as error:  # also of a disk that does not give it
            damaged = [(number, error)]
            break
    if state.num_processes > 1:
        damaged = gather_object(damaged)
    if damaged:
        raise min(damaged, key=lambda found: found[0])[1]


def config_files(config: Path, provenance: Provenance) -> list[Path]:
    """Returns the files of one configuration that are published: shards, then what describes them."""
    described = [config / name for name in PUBLISHED_FILES]
    return [*(config / name for name in provenance.shard_names), *(path for path in described if path.is_file())]

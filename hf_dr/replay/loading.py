"""Opening a "+" dataset, from a folder or from the Hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import datasets
import numpy as np
import pyarrow as pa

from hf_dr.errors import ConfigError, DataError, FormatError
from hf_dr.files import expanded, placeless
from hf_dr.hub.fetch import fetch_config, split_revision
from hf_dr.replay.combined import CombinedReinforcedDataset
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.reinforced_data import ReinforcedData
from hf_dr.replay.streamed_base import StreamedBase
from hf_dr.replay.streamed_shards import StreamedShards
from hf_dr.replay.streaming import StreamedReinforcedDataset
from hf_dr.settings import Switch
from hf_dr.store.base_dataset import base_files, check_cache, load_base, load_parquet
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import IMAGE_HASH, PROVENANCE_FILE, SOURCE_INDEX
from hf_dr.store.shards import check_all_digests, check_row_numbers, check_shards, content_version

logger = logging.getLogger(__name__)


_Path = str | os.PathLike[str]
_Paths = list[_Path] | tuple[_Path, ...] | list[str] | list[Path]
_Names = list[str] | list[str | None] | tuple[str | None, ...]


class _Settings(TypedDict, total=False):
    """Types of the settings on which the type of the result does not depend."""

    split: str | None
    base: datasets.Dataset | str | os.PathLike[str] | None
    base_config: str | None
    base_revision: str | None
    files_from: Sequence[str]
    unreinforced: bool
    columns: Sequence[str]
    revision: str | None
    num_views: int | None
    seed: int
    check_images: bool
    shuffled_shards: int


@overload
def load_reinforced(
    path: _Path, name: str | None = None, *, streaming: Literal[False] = False, **settings: Unpack[_Settings]
) -> ReinforcedDataset: ...
@overload
def load_reinforced(
    path: _Paths, name: str | _Names | None = None, *, streaming: Literal[False] = False, **settings: Unpack[_Settings]
) -> CombinedReinforcedDataset: ...
@overload
def load_reinforced(
    path: _Path, name: _Names, *, streaming: Literal[False] = False, **settings: Unpack[_Settings]
) -> CombinedReinforcedDataset: ...
@overload
def load_reinforced(
    path: _Path | _Paths, name: str | _Names | None = None, *, streaming: Literal[True], **settings: Unpack[_Settings]
) -> StreamedReinforcedDataset: ...
@overload
def load_reinforced(
    path: _Path | _Paths, name: str | _Names | None = None, *, streaming: bool, **settings: Unpack[_Settings]
) -> ReinforcedDataset | CombinedReinforcedDataset | StreamedReinforcedDataset: ...
def load_reinforced(
    path: _Path | _Paths,
    name: str | _Names | None = None,
    *,
    streaming: bool = False,
    split: str | None = None,
    base: datasets.Dataset | str | os.PathLike[str] | None = None,
    base_config: str | None = None,
    base_revision: str | None = None,
    files_from: Sequence[str] = (),
    unreinforced: bool = False,
    columns: Sequence[str] = (),
    revision: str | None = None,
    num_views: int | None = None,
    seed: int = 0,
    check_images: bool = True,
    shuffled_shards: int = 1,
) -> ReinforcedDataset | CombinedReinforcedDataset | StreamedReinforcedDataset:
    """Opens a "+" dataset for training, or several of one base at once.

    Examples:
        ```python
        from hf_dr import load_reinforced

        plus = load_reinforced("photos-plus")  # a folder; of the Hub: "org/photos-plus"
        item = plus[7, 0]  # the stored view 0 of the row 7: its pixels, the teacher's answer and the label
        ```

    Args:
        path: Folder of the "+" dataset, or its Hub id (`org/name@revision` pins one). A list combines several: their views
            add up.
        name: Its configuration; may be left out where there is only one. A list combines several of one path, or names one
            for each path.
        streaming: Read shard by shard instead of fetching all first (`StreamedReinforcedDataset`). Several then take turns: an
            epoch shows views of one of them.
        split: Its split; default: the one that was reinforced.
        base: The base dataset of an overlay (which has no images of its own), or its Hub id or path. Its images are found by
            their pixels where they are in another order or other files: that decodes each once, and is kept for later runs.
            With `streaming`, a name means that its Parquet files are read where their rows are needed, which must be in order
            and hold the images themselves.
        base_config: Configuration of a base that is given by name. Default: the one that was reinforced, if it is that base.
        base_revision: Branch, tag or commit of a base that is given by name. Default: likewise.
        files_from: Folders, next to its own, whose files the cells of a base that is given by name may name.
        unreinforced: Also include the rows without stored views (those of an overlay's base beyond `max_examples`, those that
            could not be decoded then but can now), after the others, as newly drawn views with their label.
        columns: Columns of the "+" dataset, the base's own ones, to give in each item as well.
        revision: Branch, tag or commit on the Hub.
        num_views: Use only the first `num_views` of the V stored views.
        seed: Seed of the order in which views are replayed.
        check_images: Refuse an image whose pixels are not those that were reinforced. Each image is checked the first
            time a process decodes it; and before a training the pixels of some rows' views.
        shuffled_shards: The number of shards that `streaming` reads and shuffles together.

    Raises:
        FormatError: The dataset is incomplete or does not follow the format.
        ConfigError: `name`, `split`, `num_views` or one of `columns` does not exist there; or it cannot be streamed, or
            combined.
        DataError: The base is missing or is not the one that was reinforced.
        HubError: The Hub refuses, or cannot be reached and the dataset is not in its cache.
    """
    switches = {"streaming": streaming, "unreinforced": unreinforced, "check_images": check_images}
    _check_arguments(path, shuffled_shards, switches)
    base_of = partial(load_base_of, base=base, config=base_config, revision=base_revision, files_from=files_from)
    settings: dict[str, Any] = {
        "unreinforced": unreinforced,
        "columns": columns,
        "num_views": num_views,
        "seed": seed,
        "check_images": check_images,
    }
    if streaming:
        found = [_shards_of(*one, split, revision) for one in each_dataset(path, name)]
        return StreamedReinforcedDataset(_streams(found, base_of, settings), shuffled_shards=shuffled_shards)
    parts = _parts(
        [open_plus(*one, split=split, revision=revision) for one in each_dataset(path, name)], base_of, settings
    )
    several = isinstance(path, (list, tuple)) or isinstance(name, (list, tuple))
    return CombinedReinforcedDataset(parts) if several else parts[0]


def _streams(
    found: Sequence[tuple[Provenance, list[str]]], base_of: Callable[..., Any], settings: dict[str, Any]
) -> list[StreamedShards]:
    """Returns "+" datasets whose shards are read one by one."""
    bases = _bases([provenance for provenance, _ in found], partial(base_of, streaming=True))
    return [
        StreamedShards(files, provenance, base=own, **settings)
        for (provenance, files), own in zip(found, bases, strict=True)
    ]


def _parts(
    found: Sequence[tuple[Provenance, datasets.Dataset, list[Path]]],
    base_of: Callable[..., Any],
    settings: dict[str, Any],
) -> list[ReinforcedDataset]:
    """Returns "+" datasets that are there as a whole."""
    # An overlay without a base takes its images from a part that has its own.
    images = next((plus for provenance, plus, _ in found if not provenance.overlay), None)
    bases = _bases([provenance for provenance, *_ in found], base_of, images)
    return [
        ReinforcedDataset(plus, provenance, base=own, shards=shards, **settings)
        for (provenance, plus, shards), own in zip(found, bases, strict=True)
    ]


def _check_arguments(path: object, shuffled_shards: int, switches: dict[str, bool]) -> None:
    """Refuses a dataset in the place of its name, and settings that do not belong together."""
    for name, value in switches.items():
        Switch().check(name, value)
    if shuffled_shards != 1 and not switches["streaming"]:
        raise ConfigError(
            f"`shuffled_shards` must come with `streaming=True`, got {shuffled_shards} without. Leave it out."
        )
    paths = path if isinstance(path, (list, tuple)) else [path]
    wrong = [type(each).__name__ for each in paths if not isinstance(each, (str, os.PathLike))]
    if wrong:
        raise ConfigError(
            f'expected the folder of a "+" dataset or its Hub id, got an object ({wrong[0]}). `reinforce` makes a "+" '
            "dataset of a base and returns it opened; name the folder of rows that are loaded already; the images of "
            "an overlay are `base`."
        )


def each_dataset(path: _Path | _Paths, name: str | _Names | None = None) -> list[tuple[_Path, str | None]]:
    """Returns path and name of each "+" dataset that `load_reinforced` opens for such arguments."""
    count = len(name) if isinstance(name, (list, tuple)) else 1
    paths = list(path) if isinstance(path, (list, tuple)) else [path] * count
    names = list(name) if isinstance(name, (list, tuple)) else [name] * len(paths)
    if len(paths) != len(names):
        raise ConfigError(
            f"expected as many names as paths, got {len(paths)} paths and {len(names)} names. Name one for each."
        )
    return list(zip(paths, names, strict=True))


def _bases(
    provenances: Sequence[Provenance], base_of: Callable[[Provenance], Any], images: datasets.Dataset | None = None
) -> Iterator[Any]:
    """Yields the base for each of several "+" datasets, some of which may be overlays of one; without one, it is `images`."""
    overlays = [provenance for provenance in provenances if provenance.overlay]
    base = base_of((overlays or provenances)[0]) if provenances else None
    for provenance in provenances:
        if provenance.overlay:
            yield images if base is None else base
        else:
            yield None if overlays else base  # without overlays it could be for none, and is refused


def _shards_of(path: _Path, name: str | None, split: str | None, revision: str | None) -> tuple[Provenance, list[str]]:
    """The provenance, and where each shard can be read: on the disk if it is there, else at the Hub."""
    path, revision = split_revision(path, revision)
    config, provenance = fetch_config(path, name, split=split, revision=revision, shards=False)
    shards = [config / shard for shard in provenance.shard_names]
    if expanded(path).is_dir():
        return provenance, [str(shard) for shard in shards]
    # The folder is that of a commit in the Hub's cache.
    address = f"hf://datasets/{path}@{config.parent.name}/{config.name}/"
    return provenance, [str(shard) if shard.is_file() else address + shard.name for shard in shards]


def open_plus(
    path: str | os.PathLike[str], name: str | None = None, *, split: str | None = None, revision: str | None = None
) -> tuple[Provenance, datasets.Dataset, list[Path]]:
    """Opens a "+" dataset and returns its provenance, its rows, and the files of its shards; see `load_reinforced`."""
    config, provenance = fetch_config(path, name, split=split, revision=revision)
    shards = check_shards(config, provenance)
    try:
        plus = load_parquet(shards, provenance.split, version=content_version(shards))
    # What Arrow raises on a damaged file, and the system on a full disk, datasets may wrap or not.
    except (datasets.exceptions.DatasetsError, pa.ArrowException, ValueError, TypeError, OSError, LookupError) as error:
        check_cache()
        for of_system in (error, error.__cause__):
            if isinstance(of_system, OSError) and of_system.errno is not None:
                raise DataError(
                    f"could not open the shards in {config}: {of_system.strerror}. Free space in the cache of `datasets`, "
                    f"{datasets.config.HF_DATASETS_CACHE}, or set HF_HOME, then run the same command again."
                ) from error
        check_all_digests(shards)  # which of them is it?
        raise FormatError(
            f"the shards in {config} must be readable, but: {type(error.__cause__ or error).__name__}: "
            f"{error.__cause__ or error!s:.300}. Fetch or make them again."
        ) from error
    try:
        _check_rows(plus, provenance, config)
    except FormatError:
        check_all_digests(shards)
        raise
    return provenance, plus, shards


def _check_rows(plus: datasets.Dataset, provenance: Provenance, config: Path) -> None:
    rows = plus.select_columns([SOURCE_INDEX, IMAGE_HASH]).with_format("arrow")[:]
    check_row_numbers(rows[SOURCE_INDEX], range(provenance.num_rows), str(config))
    skipped = np.flatnonzero(rows[IMAGE_HASH].is_null())
    if not np.array_equal(skipped, provenance.skipped_rows):
        raise FormatError(
            f"the rows without reinforcement in {config} must be {provenance.skipped_rows!s:.80}, as its {PROVENANCE_FILE} "
            f"says, found {skipped.tolist()!s:.80}. Fetch or make them again."
        )


def load_base_of(
    provenance: Provenance,
    base: datasets.Dataset | str | os.PathLike[str] | None,
    config: str | None = None,
    revision: str | None = None,
    files_from: Sequence[str] = (),
    *,
    streaming: bool = False,
) -> Any:
    """Loads the base of a "+" dataset where it is given by name; see `load_reinforced`.

    With `streaming` a base of Parquet files is a `StreamedBase` of them.
    """
    if isinstance(base, (str, os.PathLike)):
        split = provenance.split
        if placeless(os.fspath(base)) == provenance.base.get("id"):
            split = provenance.base_split
            config = config or provenance.base.get("config")
            revision = revision or provenance.base.get("revision")
        if streaming and provenance.overlay:
            one = "+" not in split
            files = base_files(os.fspath(base), config, split=provenance.split, revision=revision) if one else []
            if files:
                return StreamedBase(files, provenance)
            logger.info(
                "The base is not %s; it is loaded before it is read.", "of Parquet files" if one else "one split"
            )
        loaded, _ = load_base(os.fspath(base), config, split=split, revision=revision, files_from=files_from)
        return loaded
    for setting, value in (("base_config", config), ("base_revision", revision), ("files_from", files_from or None)):
        if value is not None:
            raise ConfigError(f"`{setting}` must come with the name of a base, got {value!r} without. Leave it out.")
    return base


def opened(
    plus: ReinforcedDataset | str | os.PathLike[str],
    name: str | None,
    base: datasets.Dataset | str | os.PathLike[str] | None,
) -> ReinforcedDataset:
    """Returns one "+" dataset whose rows can be chosen: as it is given, or opened where a path is."""
    found: object = plus
    if not isinstance(plus, ReinforcedData):
        found = load_reinforced(plus, name, base=base)
    elif name is not None or base is not None:
        raise ConfigError("`name` and `base` must come with a path, got an opened dataset. Leave them out.")
    if not isinstance(found, ReinforcedDataset):
        raise ConfigError(
            f'`plus` must be one "+" dataset whose rows can be chosen, got {type(found).__name__}. Open it alone, without '
            "`streaming`."
        )
    return found

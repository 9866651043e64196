"""Files that the cells of a dataset name, which of them may be read, and rows with their files embedded.

A cell of an image, audio, video or document column holds the bytes of a file or only its path. Whoever made the dataset
chose the path, and a "+" dataset, which people publish, gets the bytes: so a dataset that is loaded by its name may name its
own files only. People whose own Parquet files name files elsewhere say so with `files_from`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.utils.file_utils import hash_url_to_filename
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from hf_dr.errors import ConfigError, DataError, HfDrError
from hf_dr.files import expanded
from hf_dr.settings import check_names

logger = logging.getLogger(__name__)

_EMBEDDED_AT_ONCE = 16  # rows whose files are read into one Arrow array


@dataclass(frozen=True)
class NamedFiles:
    """The files that a column names without holding them, one for each such cell.

    Attributes:
        column: Name of the column, with dots where it is nested.
        rows: int64 (N,), the rows of the cells.
        paths: The N paths or addresses, as the cells have them.
    """

    column: str
    rows: np.ndarray
    paths: pa.Array

    def at(self, position: np.ndarray) -> NamedFiles:
        """Returns the cells whose row has a position that is not negative, with it as their row."""
        kept = position[self.rows] >= 0
        return NamedFiles(self.column, position[self.rows[kept]], self.paths.filter(pa.array(kept)))


def stored_columns(features: datasets.Features, image_column: str, *, overlay: bool) -> list[str]:
    """Returns the columns of a base that its "+" dataset has: all, or for an overlay those that hold no files of any kind.

    What an overlay leaves out beside its images is logged: people who may not copy images may not copy their thumbnails.
    """
    if not overlay:
        return list(features)
    others = [name for name, feature in features.items() if name != image_column and holds_files(feature)]
    if others:
        logger.info("Left out of the overlay, because they hold files too: %s.", ", ".join(others))
    return [name for name in features if name not in (image_column, *others)]


def holds_files(feature: Any) -> bool:
    """Tells whether a column, or one that is nested in it, holds images, sound, video or documents."""
    if isinstance(feature, dict):
        return any(map(holds_files, feature.values()))
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        return holds_files(feature.feature)
    return _decodes_files(feature)


def _decodes_files(feature: Any) -> bool:
    """How `datasets` itself recognises columns of files, but for JSON, which it decodes too (from version 4.7 on)."""
    return hasattr(feature, "decode_example") and not isinstance(feature, getattr(datasets, "Json", ()))


def named_files(dataset: datasets.Dataset) -> list[NamedFiles]:
    """Returns what each column names, columns that name nothing left out; no file is read."""
    position = None
    if dataset._indices is not None:  # rows were selected or shuffled: `data` holds more rows, in another order
        chosen = dataset._indices.column(0).to_numpy()
        position = np.full(len(dataset.data), -1)
        position[chosen] = np.arange(len(chosen))
    found = []
    for name, feature in dataset.features.items():
        start = 0
        for chunk in dataset.data.column(name).chunks:
            rows = np.arange(start, start + len(chunk))
            start += len(chunk)
            for files in _named(chunk, feature, name, rows):
                chosen_files = files if position is None else files.at(position)
                if len(chosen_files.rows):
                    found.append(chosen_files)
    return found


def _named(array: pa.Array, feature: Any, column: str, rows: np.ndarray) -> Iterator[NamedFiles]:
    """Walks the nested features of one chunk; `rows` are the rows of the array's values."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if _decodes_files(feature):
        if pa.types.is_struct(array.type):
            path = pc.struct_field(array, "path")
            is_named = pc.and_(pc.struct_field(array, "bytes").is_null(), path.is_valid())
        elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            path = array
            is_named = array.is_valid()
        else:
            return
        yield NamedFiles(column, rows[is_named.to_numpy(zero_copy_only=False)], path.filter(is_named))
    elif isinstance(feature, dict):
        for name, inner in feature.items():
            yield from _named(pc.struct_field(array, name), inner, f"{column}.{name}", rows)
    elif isinstance(feature, (datasets.List, datasets.LargeList)):
        rows = rows[array.is_valid().to_numpy(zero_copy_only=False)]
        array = array.drop_null()
        parents = pc.list_parent_indices(array).to_numpy()
        yield from _named(pc.list_flatten(array), feature.feature, column, rows[parents])


def check_own_files(
    dataset: datasets.Dataset,
    name: str,
    *,
    folder: Path | None = None,
    repo_id: str | None = None,
    files_from: Sequence[str] = (),
) -> None:
    """Refuses a dataset with a cell that names a file which does not belong to it.

    Args:
        dataset: The dataset as `load_dataset` returned it.
        name: How the user calls it, for the message.
        folder: The folder that it was loaded from.
        repo_id: The Hub repository that it was loaded from.
        files_from: Folders whose files it may name as well.

    Raises:
        ConfigError: One of `files_from` is no folder.
        DataError: There is such a cell; the message names its row and column.
    """
    owned = []
    check_names("files_from", files_from)
    for allowed in files_from:
        path = expanded(allowed)
        if not os.fspath(allowed) or not path.is_dir():  # no name would be the present folder
            raise ConfigError(f"`files_from` must name folders, but {allowed!r} is none. Correct it, or leave it out.")
        owned.append(path)
    if folder is not None:
        owned.append(folder)
    if repo_id is not None:
        owned.append(Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type="dataset")))
    belongs = _Belongs(owned, repo_id)
    for files in named_files(dataset):
        for row, path in zip(files.rows.tolist(), files.paths.to_pylist(), strict=True):
            if not belongs(path):
                advice = (
                    "Do not use a dataset of somebody else that reads your files. If it is your own and means this file, pass "
                    "its folder as `files_from`."
                )
                if path.startswith(("http://", "https://")):
                    advice = "Nothing is fetched from there: download the files, and make a dataset of these."
                raise DataError(
                    f"the cells of {name!r} must hold their files or name files of the dataset itself, but row {row} of column "
                    f"`{files.column}` names {path!r:.200}{_link(path)}. {advice}"
                )


def _link(path: str) -> str:
    """Says where a link leads, whose folder would have to be allowed."""
    linked = "://" not in path and os.path.islink(path)  # noqa: PTH114 (Path's raises for a long text)
    return f", a link to {os.path.realpath(path)!r:.200}" if linked else ""


class _Belongs:
    """Whether a path or address lies in one of some folders, or in a repository; links are followed."""

    def __init__(self, folders: Sequence[Path], repo_id: str | None) -> None:
        self._given = folders
        self._folders = [Path(os.path.realpath(folder)) for folder in folders]
        self._repository = None if repo_id is None else f"hf://datasets/{repo_id}"
        self._extracted_root = os.path.realpath(datasets.config.EXTRACTED_DATASETS_PATH)
        self._extracted: set[str] | None = None
        # A dataset has many files in few folders.
        self._is_inside = lru_cache(maxsize=4096)(self._is_inside_uncached)

    def __call__(self, path: str) -> bool:
        container = path
        if "::" in path:  # a file inside an archive, as `datasets` writes it
            inner, _, container = path.partition("::")
            if not inner.startswith("zip://") or "::" in container:
                return False
        if "://" in container:
            repository = self._repository
            return (
                repository is not None
                and ".." not in re.split("[/@]", container)
                and container.startswith((f"{repository}@", f"{repository}/"))
            )
        directory, name = os.path.split(container)
        if name in ("", ".", "..") or os.path.islink(container):  # noqa: PTH114 (Path's raises for a long text)
            return self._is_inside_uncached(container)
        return self._is_inside(directory)

    def _is_inside_uncached(self, path: str) -> bool:
        resolved = Path(os.path.realpath(path))
        return any(resolved.is_relative_to(folder) for folder in self._folders) or self._was_extracted(resolved)

    def _was_extracted(self, resolved: Path) -> bool:
        """Whether `datasets` unpacked it from an archive in one of the folders; it names the place by the archive's path."""
        if not resolved.is_relative_to(self._extracted_root):
            return False
        if self._extracted is None:
            archives = (file for folder in self._given for file in folder.absolute().rglob("*") if file.is_file())
            self._extracted = {hash_url_to_filename(str(archive)) for archive in archives}
        parts = resolved.relative_to(self._extracted_root).parts
        return bool(parts) and parts[0] in self._extracted


def describe_named_files(dataset: datasets.Dataset) -> str | None:
    """Returns how many files a dataset names, in which folder; None where it names none."""
    found = named_files(dataset)
    if not found:
        return None
    count = sum(len(files.rows) for files in found)
    columns = list(dict.fromkeys(files.column for files in found))
    paths = [path for files in found for path in files.paths.to_pylist()]
    folders = {path if "://" in path else str(Path(path).absolute().parent) for path in paths}
    where = os.path.commonpath(folders) if all(map(os.path.isabs, folders)) else min(folders)
    return f"{count:,} files that `{'`, `'.join(columns)}` name{'s' if len(columns) == 1 else ''} in {where}"


def as_table(
    dataset: datasets.Dataset,
    start: int,
    stop: int,
    *,
    image_column: str | None = None,
    readable: np.ndarray | None = None,
) -> pa.Table:
    """Returns rows `start` to `stop` - 1 as an Arrow table, selections and shuffles applied, named files embedded.

    Args:
        image_column: Column of the images, if the dataset has it here.
        readable: bool (stop - start,); False for rows whose image could not be decoded. Their image becomes null: what is no
            image may be any file, and is not to be copied.

    Returns:
        A table in chunks of a few rows, because one Arrow array takes less than 2 GiB of images.

    Raises:
        DataError: A file that is named cannot be read.
    """
    rows = dataset.with_format("arrow")
    parts = []
    for first in range(start, stop, _EMBEDDED_AT_ONCE):
        last = min(first + _EMBEDDED_AT_ONCE, stop)
        table = rows[first:last]
        bad = np.zeros(last - first, bool) if readable is None else ~readable[first - start : last - start]
        if bad.any() and image_column in table.column_names:
            place = table.column_names.index(image_column)
            kept = pa.array(np.arange(last - first), mask=bad)
            table = table.set_column(place, table.schema.field(place), table.column(place).take(kept))
        try:
            parts.append(datasets.table.embed_table_storage(table))
        except OSError as error:
            raise _unreadable(table, first, error) from error
    return pa.concat_tables(parts)


def _unreadable(table: pa.Table, first: int, error: OSError) -> HfDrError:
    """Returns the error that names the first file of a table that cannot be read; `first` is the table's first row."""
    for row in range(table.num_rows):
        for name in table.column_names:
            try:
                datasets.table.embed_table_storage(table.slice(row, 1).select([name]))
            except OSError as found:
                return DataError(
                    f"the files that the dataset names must be readable, to be copied, but that of `{name}` in row "
                    f"{first + row}: {str(found).rstrip('. ')}. Restore it, or leave the column or the row out."
                )
    return DataError(
        f"the files that the dataset names must be readable, to be copied, but: {str(error).rstrip('. ')}. Run the same "
        "command again."
    )

"""Parquet files, in a folder or at the Hub, read without a copy on the disk, and the base of an overlay in such files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.utils.file_utils import xopen

from hf_dr.errors import DataError, FormatError
from hf_dr.hub.retry import with_retries
from hf_dr.processes import thread_pool
from hf_dr.store.provenance import Provenance
from hf_dr.store.shards import reading

_READERS = 16  # footers that are read at a time
_IMAGES = datasets.Image().pa_type
_Read = TypeVar("_Read")


def with_parquet(file: str, read: Callable[[pq.ParquetFile], _Read]) -> _Read:
    """Opens a Parquet file and returns what `read` takes from it; where the Hub does not answer, it is asked again.

    Args:
        file: Path or `hf://` address.
        read: May be called several times.

    Raises:
        FormatError: The file is missing, or damaged.
        HubError: The Hub refuses, or cannot be reached.
    """

    def attempt() -> _Read:
        with (
            xopen(file, "rb") as stream,
            pq.ParquetFile(stream, pre_buffer=True, page_checksum_verification=True) as parquet,
        ):
            return read(parquet)

    if "://" not in file and Path(file).exists() and not Path(file).is_file():  # a pipe would be waited for
        raise FormatError(f"{file} must be a file, found a folder or a device. Fetch or make it again.")
    with reading(file):
        try:
            return with_retries(attempt, f"read {file}")
        except FileNotFoundError as error:
            raise FormatError(f"{file} must be there, but it is missing. Fetch or make it again.") from error


class StreamedBase:
    """Finds the images of a base's rows in its Parquet files by the number of the row, so the rows must be in their order.

    Opening it reads the files' footers. Of the files themselves it reads the row groups that hold wanted rows, and of these
    the images only. Another image than the one that was reinforced is refused when it is decoded.

    Args:
        files: Path or `hf://` address of every file, in the order of their rows.

    Raises:
        DataError: They have no images of the name that the overlay knows, or fewer rows than were reinforced.
        FormatError: A file is missing, or damaged.
    """

    def __init__(self, files: Sequence[str], provenance: Provenance) -> None:
        self._files = list(files)
        self._column = provenance.image_column
        with thread_pool(_READERS, "footers") as pool:
            counts = list(pool.map(self._group_sizes, self._files))
        # One after the other, of all files: the row groups, and the first row of each.
        self._file = np.repeat(np.arange(len(counts)), [len(sizes) for sizes in counts])
        self._group = np.concatenate([np.arange(len(sizes)) for sizes in counts])
        self._starts = np.cumsum([0, *np.concatenate(counts)])
        if self._starts[-1] < provenance.num_rows:
            raise DataError(
                f"`base` must have the {provenance.num_rows} rows that were reinforced, found {self._starts[-1]} in "
                f"{len(self._files)} files. Give {provenance.named_base}, with all its rows."
            )

    def images(self, rows: np.ndarray) -> pa.ChunkedArray:
        """Returns the images of some rows, int64, rising; each is a struct of `bytes` and `path`."""
        place = np.searchsorted(self._starts, rows, side="right") - 1  # of each row's group among those of all files
        wanted = {int(n): rows[place == n] - self._starts[n] for n in np.unique(place)}
        chunks: list[pa.Array] = []
        for number in np.unique(self._file[list(wanted)]).tolist():
            of_file = {int(self._group[n]): own for n, own in wanted.items() if self._file[n] == number}
            chunks += self._read(self._files[number], of_file)
        return pa.chunked_array(chunks, _IMAGES)

    def _read(self, file: str, wanted: Mapping[int, np.ndarray]) -> list[pa.Array]:
        """Returns the images of some rows of row groups, which are read one by one: pyarrow reads less than 2 GiB at once."""

        def taken(parquet: pq.ParquetFile) -> list[pa.Array]:
            chunks = []
            for group, rows in wanted.items():
                column = parquet.read_row_group(group, [self._column], use_threads=False).column(self._column)
                try:
                    chunks.append(column.cast(_IMAGES).combine_chunks().take(pa.array(rows)))
                except pa.ArrowException as error:
                    raise DataError(
                        f"the column `{self._column}` of {file} must hold images, found {column.type}. Load the base and pass "
                        "it as `base`."
                    ) from error
            return chunks

        return with_parquet(file, taken)

    def _group_sizes(self, file: str) -> np.ndarray:
        """Returns the number of rows of each row group of a file, int64."""

        def sizes(parquet: pq.ParquetFile) -> np.ndarray:
            if self._column not in parquet.schema_arrow.names:
                raise DataError(
                    f"`base` must have the image column `{self._column}`, found {parquet.schema_arrow.names} in {file}. Load "
                    "the base, rename its column and pass it as `base`."
                )
            groups = range(parquet.num_row_groups)
            return np.array([parquet.metadata.row_group(group).num_rows for group in groups], np.int64)

        return with_parquet(file, sizes)

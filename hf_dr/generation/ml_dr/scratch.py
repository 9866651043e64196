"""A file on disk that rows are written to at their places, whatever order they come in."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import xxhash

from hf_dr.errors import ConfigError, FormatError
from hf_dr.generation.ml_dr.files import Columns
from hf_dr.text import format_bytes


class Scratch:
    """The rows of all runs at their places, in a file as large as the columns; what is there is kept for a restart.

    A row of a run is there if the hash of its bytes is stored next to it, so no crash can leave a damaged one unnoticed.

    Args:
        folder: Holds the two files; made if need be.
        features: The columns, each a list over the views of all runs.
        num_rows: Rows of the base.
        runs: The views of each run.
    """

    def __init__(self, folder: Path, features: datasets.Features, num_rows: int, runs: Sequence[range]) -> None:
        self.folder = folder
        self._runs = runs
        fields = []
        for name, feature in features.items():
            inner = feature.feature  # a value for each view, or a list of values
            tail = () if isinstance(inner, datasets.Value) else (inner.length,)
            fields.append((name, getattr(inner, "feature", inner).dtype, (feature.length, *tail)))
        self._names = list(features)
        folder.mkdir(exist_ok=True)
        self._rows = self._map("rows", np.dtype(fields), (num_rows,))
        self._hashes = self._map("hashes", np.dtype(np.uint64), (len(runs), num_rows))

    def _map(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
        path = self.folder / name
        size = dtype.itemsize * math.prod(shape)
        if not path.exists() or path.stat().st_size != size:
            try:
                with path.open("wb") as file:
                    # So a full disk shows now: later, writing to the mapped file would end the process.
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, size)
                    file.truncate(size)
            except OSError as error:
                path.unlink(missing_ok=True)
                raise ConfigError(
                    f"`output_dir` needs {format_bytes(size)} for a scratch file next to the shards, but: {error.strerror}. "
                    "Free space, or choose another."
                ) from error
        return np.memmap(path, dtype, "r+", shape=shape)

    def rows_of(self, run: int) -> np.ndarray:
        """Returns which rows of a run are there, bool (rows,)."""
        return np.asarray(self._hashes[run] != 0)

    def put(self, run: int, row: int, columns: Columns) -> None:
        """Writes the columns of a run's views of one row, (V,) or (V, n), and then its hash."""
        views = self._runs[run]
        for name in self._names:
            self._rows[name][row, views.start : views.stop] = columns[name]
        self._hashes[run, row] = self._hash(run, row)

    def take(self, first: int, last: int) -> tuple[Columns, np.ndarray]:
        """Returns the columns of some rows, (rows, V) or (rows, V, n), and which rows are there in every run.

        Raises:
            FormatError: A row is not what was written.
        """
        for run in range(len(self._runs)):
            for row in range(first, last):
                if self._hashes[run, row] not in (0, self._hash(run, row)):
                    raise FormatError(f"{self.folder} must hold what was written, but row {row} is damaged. Delete it.")
        columns = {name: np.array(self._rows[name][first:last]) for name in self._names}
        return columns, (self._hashes[:, first:last] != 0).all(axis=0)

    def _hash(self, run: int, row: int) -> int:
        views = self._runs[run]
        hasher = xxhash.xxh3_64()
        for name in self._names:
            hasher.update(self._rows[name][row, views.start : views.stop].tobytes())
        return hasher.intdigest() | 1  # 0 is a row that is not there

    def remove(self) -> None:
        """Deletes the files."""
        del self._rows, self._hashes
        shutil.rmtree(self.folder)

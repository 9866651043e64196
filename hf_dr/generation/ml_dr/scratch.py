"""A file on disk that rows are written to at their places, whatever order they come in."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import datasets
import numpy as np
import xxhash

from hf_dr.errors import ConfigError, FormatError
from hf_dr.generation.ml_dr.files import Columns
from hf_dr.text import format_bytes


class Scratch:
    """The rows of all runs at their places, in a file as large as the columns; what is there is kept for a restart.

    A row of a run is there if the hash of its bytes stands beside it, so no crash can leave a damaged one unnoticed.
    """

    def __init__(self, folder: Path, features: datasets.Features, num_rows: int, runs: Sequence[range]) -> None:
        self.folder, self._runs = folder, runs
        fields = []
        for name, feature in features.items():
            inner = feature.feature
            tail = () if isinstance(inner, datasets.Value) else (inner.length,)
            fields.append((name, getattr(inner, "feature", inner).dtype, (feature.length, *tail)))
        folder.mkdir(exist_ok=True)
        self._rows = self._map("rows", np.dtype(fields), (num_rows,))
        self._hashes = self._map("hashes", np.dtype(np.uint64), (len(runs), num_rows))

    def _map(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
        path, size = self.folder / name, dtype.itemsize * math.prod(shape)
        if not path.exists() or path.stat().st_size != size:
            try:
                with path.open("wb") as file:
                    if hasattr(
                        os, "posix_fallocate"
                    ):  # a full disk shows now; a write to a mapped file would end the process
                        os.posix_fallocate(file.fileno(), 0, size)
                    file.truncate(size)
            except OSError as error:
                path.unlink(missing_ok=True)
                raise ConfigError(
                    f"`output_dir` needs {format_bytes(size)} for a scratch file beside the shards, but: {error.strerror}. "
                    "Free space, or choose another."
                ) from error
        return np.memmap(path, dtype, "r+", shape=shape)

    def has(self, run: int, row: int) -> bool:
        return bool(self._hashes[run, row])

    def put(self, run: int, row: int, columns: Columns) -> None:
        views = self._runs[run]
        for name in cast(tuple[str, ...], self._rows.dtype.names):
            self._rows[name][row, views.start : views.stop] = columns[name]
        self._hashes[run, row] = self._hash(run, row)

    def take(self, first: int, last: int) -> tuple[Columns, np.ndarray]:
        """Returns the columns of some rows, (rows, V) or (rows, V, n), and which rows are there in every run."""
        for run in range(len(self._runs)):
            for row in range(first, last):
                if self.has(run, row) and self._hashes[run, row] != self._hash(run, row):
                    raise FormatError(f"{self.folder} must hold what was written, but row {row} is damaged. Delete it.")
        names = cast(tuple[str, ...], self._rows.dtype.names)
        return {name: np.array(self._rows[name][first:last]) for name in names}, (self._hashes[:, first:last] != 0).all(
            axis=0
        )

    def _hash(self, run: int, row: int) -> int:
        views, hasher = self._runs[run], xxhash.xxh3_64()
        for name in cast(tuple[str, ...], self._rows.dtype.names):
            hasher.update(self._rows[name][row, views.start : views.stop].tobytes())
        return hasher.intdigest() | 1

    def remove(self) -> None:
        del self._rows, self._hashes
        shutil.rmtree(self.folder)

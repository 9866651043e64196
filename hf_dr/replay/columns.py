"""Single cells of the fixed-size list columns, straight from the memory-mapped Arrow table."""

from __future__ import annotations

import math
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from hf_dr.store.shards import check_full


class Columns:
    """Single cells of the fixed-size list columns, straight from the memory-mapped Arrow table.

    Touches only what is read: a view costs the same whatever V is. NumPy views of a record batch are made when the
    batch is first read.
    """

    def __init__(self, dataset: datasets.Dataset, num_views: int) -> None:
        self._dataset, self._num_views = dataset, num_views
        self._prepare()

    def _prepare(self) -> None:
        table = self._dataset.data.table
        self._indices = self._dataset._indices
        self._batches = table.to_batches()
        self._starts = np.cumsum([0, *(len(batch) for batch in self._batches)])
        self._arrays: list[dict[str, Any]] = [{} for _ in self._batches]

    def __getstate__(self) -> dict[str, Any]:
        return {"_dataset": self._dataset, "_num_views": self._num_views}  # memory maps are opened anew by the worker

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    def _find(self, column: str, row: int) -> tuple[Any, int]:
        if self._indices is not None:
            row = self._indices.column(0)[row].as_py()
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        arrays = self._arrays[number]
        if column not in arrays:
            batch = self._batches[number]
            check_full(batch, column)
            arrays[column] = _as_array(batch.column(column))
        return arrays[column], row - int(self._starts[number])

    def view(self, column: str, row: int, view: int) -> Any:
        """Returns one view's cell: a NumPy scalar, or a read-only array (n,)."""
        array, at = self._find(column, row)
        if isinstance(array, _Bits):
            return array[at * self._num_views + view]
        return array[at, view]

    def cell(self, column: str, row: int) -> Any:
        """Returns a row's whole cell: a NumPy scalar, or a read-only array (n,) or, of a list of views, (V, n)."""
        array, at = self._find(column, row)
        return array[at]


class _Bits:
    """Arrow's packed booleans; a NumPy copy of a column would take eight times the memory."""

    def __init__(self, array: pa.BooleanArray, offset: int) -> None:
        self._bits = np.frombuffer(array.buffers()[1], np.uint8)
        self._offset = array.offset + offset

    def __getitem__(self, index: int) -> np.bool_:
        at = self._offset + index
        return np.bool_((self._bits[at >> 3] >> (at & 7)) & 1)


def _as_array(column: pa.Array) -> Any:
    """Zero-copy NumPy view of a record batch's column: (rows,), (rows, V) or (rows, V, n)."""
    shape: list[int] = [len(column)]
    start, array = 0, column
    while pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        shape.append(size)
        start = (start + array.offset) * size  # `values` ignores the slice; `flatten` would drop null rows
        array = array.values
    if len(shape) == 1:
        return array.fill_null(0).to_numpy(zero_copy_only=False)
    if pa.types.is_boolean(array.type):
        return _Bits(array, start)
    # From the buffer: the values below a row without reinforcement are null, which `to_numpy` would have to copy.
    values = np.frombuffer(array.buffers()[1], array.type.to_pandas_dtype())
    return values[array.offset + start :][: math.prod(shape)].reshape(shape)


def whole_column(dataset: datasets.Dataset, name: str) -> Any:
    """One column as Arrow. Without the selection, a shuffled dataset would copy all its columns, images too."""
    return dataset.select_columns([name]).with_format("arrow")[:][name]

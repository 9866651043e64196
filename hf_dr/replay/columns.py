"""What is stored of each view, read cell by cell from the memory-mapped Arrow table, and checked where it is read."""

from __future__ import annotations

import math
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from hf_dr.errors import FormatError
from hf_dr.store import schema
from hf_dr.store.provenance import Provenance
from hf_dr.store.shards import MAX_MASS, check_full
from hf_dr.teacher.topk import cross_entropy, entropy
from hf_dr.views.augmentation import PARTNER, Augmentation
from hf_dr.views.ops.base import Params

MAX_LOGPROB = 1e-2  # of a stored answer: 0, and rounding


class StoredViews:
    """The views of each row as they are stored: parameters and the teacher's answers.

    An answer is checked when it is read. Parameters are not: the ops refuse those that do not fit the image.
    """

    def __init__(self, plus: datasets.Dataset, provenance: Provenance, augmentation: Augmentation) -> None:
        self._columns = Columns(plus, provenance.num_views)
        self._label_column = provenance.label_column
        self._num_classes = provenance.num_classes
        self._params = tuple(augmentation.params)
        self._partner_params = tuple(augmentation.partner_params)

    def params(self, row: int, view: int) -> Params:
        """Returns the parameters of one view."""
        return {name: self._param(name, row, view) for name in self._params}

    def partner_params(self, row: int, view: int) -> Params:
        """Returns the parameters of the partner, where they are stored with the view."""
        return {name: self._param(f"{PARTNER}_{name}", row, view) for name in self._partner_params}

    def _param(self, name: str, row: int, view: int) -> Any:
        value = self._columns.view(schema.AUG_PREFIX + name, row, view)
        return tuple(value.tolist()) if isinstance(value, np.ndarray) else value.item()

    def answer(self, row: int, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids (K,) and log-probabilities (K,) float16 of one view; a FormatError if they are damaged."""
        ids = self._columns.view(schema.TEACHER_IDS, row, view)
        logprobs = self._columns.view(schema.TEACHER_LOGPROBS, row, view)
        self._check_answer(ids, logprobs, row, f"view {view}")
        return ids, logprobs

    def tail(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the same of the mean answer to a row's views, (T,)."""
        ids = self._columns.cell(schema.TAIL_IDS, row)
        logprobs = self._columns.cell(schema.TAIL_LOGPROBS, row)
        self._check_answer(ids, logprobs, row, "its tail")
        return ids, logprobs

    def difficulties(self, row: int, num_views: int, top_k: int | None, label: int | None) -> np.ndarray:
        """Returns the entropy of the answers to a row's views in nats, float32 (V,); with a label, the cross-entropy to it.

        Of the stored views the first `num_views` are looked at, and of the K classes of each the first `top_k`, or all.
        """
        logprobs = self._columns.cell(schema.TEACHER_LOGPROBS, row)[:num_views, :top_k]
        intact = ((logprobs <= MAX_LOGPROB) & (logprobs > -np.inf)).all(axis=1)
        if not intact.all():
            self.answer(row, int(np.argmin(intact)))  # raises, and says what is wrong with the first damaged one
        if label is None:
            return entropy(logprobs, self._num_classes)
        ids = self._columns.cell(schema.TEACHER_IDS, row)[:num_views, :top_k]
        return cross_entropy(ids, logprobs, self._num_classes, label)

    def label(self, row: int) -> int:
        """Returns the label of a row."""
        assert self._label_column is not None
        return int(self._columns.cell(self._label_column, row))

    def image_hash(self, row: int) -> int:
        """Returns the pixel hash of a row's image."""
        return int(self._columns.cell(schema.IMAGE_HASH, row))

    def views_hash(self, row: int) -> int | None:
        """Returns the hash over the pixels of all views of a row; None where it is unknown."""
        return int(self._columns.cell(schema.VIEWS_HASH, row)) or None  # null is read as 0

    def _check_answer(self, ids: np.ndarray, logprobs: np.ndarray, row: int, part: str) -> None:
        # One comparison catches NaN as well: every comparison with it is false.
        if not (logprobs[0] <= MAX_LOGPROB and logprobs[-1] > -np.inf and (logprobs[1:] <= logprobs[:-1]).all()):
            what, wrong = "the log-probabilities of ", f"be finite and fall from at most 0, found {logprobs}"
        elif np.exp(logprobs, dtype=np.float32).sum() > MAX_MASS:
            what, wrong = "the probabilities of ", f"have a sum of at most 1, found logarithms {logprobs}"
        elif ids.max() >= self._num_classes or len(set(ids.tolist())) < len(ids):
            what, wrong = "", f"name classes below {self._num_classes}, found {ids.max()} in {ids}, each once"
        else:
            return
        source = self._columns.cell(schema.SOURCE_INDEX, row)
        raise FormatError(
            f"{what}row {source}, {part} must {wrong}. The file is damaged: fetch it again, or run `hf-dr verify`."
        )


class Columns:
    """Single cells of the fixed-size list columns, straight from the memory-mapped Arrow table.

    Touches only what is read: a view costs the same whatever V is. NumPy views of a record batch are made when the
    batch is first read.
    """

    def __init__(self, dataset: datasets.Dataset, num_views: int) -> None:
        self._dataset = dataset
        self._num_views = num_views
        self._indices = dataset._indices
        self._batches = dataset.data.table.to_batches()
        self._starts = np.cumsum([0, *(len(batch) for batch in self._batches)])
        self._arrays: list[dict[str, Any]] = [{} for _ in self._batches]

    def __reduce__(self) -> tuple[Any, ...]:
        return Columns, (self._dataset, self._num_views)  # the worker opens its own memory maps

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
        return array[at * self._num_views + view] if isinstance(array, _Bits) else array[at, view]

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
        return np.bool_((self._bits[at >> 3] >> (at & 7)) & 1)  # the lowest bit of a byte comes first


def _as_array(column: pa.Array) -> Any:
    """Zero-copy NumPy view of a record batch's column: (rows,), (rows, V) or (rows, V, n)."""
    shape: list[int] = [len(column)]
    array = column
    start = 0
    while pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        shape.append(size)
        start = (start + array.offset) * size  # `values` ignores the slice; `flatten` would drop null rows
        array = array.values
    if len(shape) == 1:
        return array.fill_null(0).to_numpy(zero_copy_only=False)
    if pa.types.is_boolean(array.type):
        return _Bits(array, start)
    # The buffer is read, because the values below a row without reinforcement are null, and `to_numpy` would copy such.
    values = np.frombuffer(array.buffers()[1], array.type.to_pandas_dtype())
    return values[array.offset + start :][: math.prod(shape)].reshape(shape)

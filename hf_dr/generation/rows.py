"""From a stream of views to complete rows: the best candidates, a row's hash and tail.

Shape suffixes: R rows, V views of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from hf_dr.generation.labelling import ViewColumns
from hf_dr.store.features import combine_hashes
from hf_dr.store.schema import IMAGE_HASH, SOURCE_INDEX, TAIL_IDS, TAIL_LOGPROBS, VIEWS_HASH
from hf_dr.teacher.signals import ImageTails


@dataclass(frozen=True)
class Rows:
    """Complete rows that follow each other.

    Attributes:
        columns: The reinforcement's columns as `ShardWriter` takes them: (R,), (R, V) or (R, V, n).
        valid: bool (R,), False for rows whose image could not be decoded.
        view_hashes: uint64 (R, V), of the pixels of each view.
    """

    columns: dict[str, np.ndarray]
    valid: np.ndarray
    view_hashes: np.ndarray


RowCheck = Callable[[Rows], None]
"""What a run checks of rows before it writes them; it raises an error if they must not be written."""


class _Buffer:
    """Views in flat order that wait until their rows are complete."""

    def __init__(self, num_views: int) -> None:
        self._num_views = num_views
        self._waiting: list[ViewColumns] = []

    def add(self, views: ViewColumns) -> None:
        self._waiting.append(views)

    @property
    def num_rows(self) -> int:
        """Complete rows."""
        return sum(map(len, self._waiting)) // self._num_views

    def take(self, rows: int) -> ViewColumns:
        """Returns the columns of the first rows, (R, V) or (R, V, n), and keeps the views beyond them."""
        views = ViewColumns.join(self._waiting)
        count = rows * self._num_views
        self._waiting = [views.map(lambda values: values[count:])]
        return views.map(lambda values: values[:count].reshape(rows, self._num_views, *values.shape[1:]))


def best_candidates(views: Iterable[ViewColumns], num_candidates: int, num_views: int) -> Iterator[ViewColumns]:
    """Yields the V candidates of each example with the lowest scores, in the order of their numbers.

    Of equally good ones those with the lowest numbers are kept. `views` are all candidates, in flat order, with scores.
    """
    buffer = _Buffer(num_candidates)
    for part in views:
        buffer.add(part)
        rows = buffer.num_rows
        if not rows:
            continue
        complete = buffer.take(rows)
        assert complete.scores is not None
        best_RV = np.argsort(complete.scores, axis=1, kind="stable")[:, :num_views]
        yield _pick(complete, np.sort(best_RV, axis=1))


def _pick(rows: ViewColumns, views_RV: np.ndarray) -> ViewColumns:
    """Returns some views of each row, in flat order again."""
    rows_R1 = np.arange(len(rows))[:, None]
    return rows.map(lambda values: values[rows_R1, views_RV].reshape(-1, *values.shape[2:]))


class RowStream:
    """Rows out of a stream of views, whatever batches these come in.

    Args:
        views: In flat order.
        num_views: V.
        with_tails: Whether rows have a tail; the views must then carry whole answers.
    """

    def __init__(self, views: Iterator[ViewColumns], num_views: int, *, with_tails: bool) -> None:
        self._views = views
        self._buffer = _Buffer(num_views)
        self._tails = ImageTails(num_views) if with_tails else None

    def take(self, first: int, last: int) -> Rows:
        """Returns rows `first` to `last`, which must be the next ones of the stream."""
        count = last - first
        while self._buffer.num_rows < count:
            views = next(self._views)
            if self._tails is not None:
                # Added up at once: whole answers of a row's V views would not fit in memory.
                assert views.answers is not None
                self._tails.add(views.answers)
            self._buffer.add(replace(views, answers=None))
        views = self._buffer.take(count)
        columns = views.columns
        view_hashes_RV = columns[VIEWS_HASH]
        columns[SOURCE_INDEX] = np.arange(first, last, dtype=np.int64)
        columns[IMAGE_HASH] = columns[IMAGE_HASH][:, 0]
        columns[VIEWS_HASH] = np.array([combine_hashes(hashes_V) for hashes_V in view_hashes_RV], np.uint64)
        if self._tails is not None:
            columns[TAIL_IDS], columns[TAIL_LOGPROBS] = self._tails.take(count)
        return Rows(columns, views.valid[:, 0], view_hashes_RV)

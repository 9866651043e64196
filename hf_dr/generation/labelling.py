"""From made views to complete rows: the teacher is asked, what the signal stores of its answers is kept, and of candidates the
best; a row has a hash and perhaps a tail.

Shape suffixes: N views of a batch (B where they go to the teacher), K kept classes, C classes; R rows, V views of each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from hf_dr.errors import DataError
from hf_dr.store import schema
from hf_dr.store.features import combine_hashes
from hf_dr.store.provenance import Provenance
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.signals import IMAGE_TAIL, SAMPLED, ImageTails, sample, sampling_uniform
from hf_dr.teacher.topk import later_top_k
from hf_dr.views.device.overlap import LaterOnHost
from hf_dr.views.maker import Span, ViewBatch

logger = logging.getLogger(__name__)

# A CPU's matrix kernels round differently for different batch sizes. There, the teacher always sees batches of this many
# views, cut at the same places, so that the columns do not depend on `batch_size`, workers or processes.
CPU_BATCH = 16
# Of such a batch a teacher of a fold is asked about some views only.
_CPU_BATCH_OF_FOLD = 4


@dataclass
class ViewColumns:
    """The columns of N views that follow each other in the flat order (example, view).

    Attributes:
        columns: Name -> (N,) or (N, n), in the stored types. `views_hash` is the hash of each view alone, and `image_hash` is
            there once for each view: both become one number when a row is complete.
        valid: bool (N,), False where the image could not be decoded.
        scores: Scores of the candidates, float32 (N,): those with the lowest are kept. None where all views are kept.
        answers: The teacher's whole answers, natural log-probabilities (N, C), where they are needed for the rows' tails.
    """

    columns: dict[str, np.ndarray]
    valid: np.ndarray
    scores: np.ndarray | None = None
    answers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.valid)

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> ViewColumns:
        """Returns the result of the same change of all arrays, whose first axis is the views."""
        return ViewColumns(
            {name: change(values) for name, values in self.columns.items()},
            change(self.valid),
            None if self.scores is None else change(self.scores),
            None if self.answers is None else change(self.answers),
        )

    @staticmethod
    def join(parts: Sequence[ViewColumns]) -> ViewColumns:
        """Returns the views of several parts, one after the other."""
        scores = [part.scores for part in parts if part.scores is not None]
        answers = [part.answers for part in parts if part.answers is not None]
        return ViewColumns(
            {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
            np.concatenate([part.valid for part in parts]),
            np.concatenate(scores) if scores else None,
            np.concatenate(answers) if answers else None,
        )


ShortAnswers = Callable[[], tuple[np.ndarray, np.ndarray]]
"""Waits for what is stored of answers and returns it: ids and log-probabilities, (N, K)."""


@dataclass(frozen=True)
class Reply:
    """What is stored of the answers to a batch, while the teacher's device may still work on them.

    Attributes:
        short: Waits for the short answers.
        scores, answers: See `ViewColumns`.
    """

    short: ShortAnswers
    scores: LaterOnHost | None
    answers: LaterOnHost | None


class Labeller:
    """Labels batches of views: `label` is `begin`, which asks the teacher, then `complete`, which reads what it answered.

    Between the two an accelerator works on its own, so whoever begins several batches before the first is completed keeps it
    busy. It has no state that changes, so several threads may share it.

    The provenance says what is stored of an answer, and what becomes of undecodable images. `labels`, the class of each row,
    int64 (rows,), are needed where candidates are chosen by it. `advice` is what can be done about an undecodable image but
    correcting it.
    """

    def __init__(
        self, teacher: Teacher, provenance: Provenance, labels: np.ndarray | None = None, advice: str = ""
    ) -> None:
        self.teacher = teacher
        self.provenance = provenance
        self._labels = labels
        self._advice = advice

    def label(self, batch: ViewBatch) -> ViewColumns:
        """Returns the columns of a batch; its pixels may lie on any device.

        Raises:
            DataError: An image could not be decoded, and the run does not skip such images.
            TeacherError: An answer is not finite.
        """
        return self.complete(batch, self.begin(batch, batch.pixels))

    def begin(
        self, batch: ViewBatch, views_BHWC: torch.Tensor, ask: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> Reply:
        """Asks the teacher and starts to copy what is needed of its answers; on a GPU nothing is waited for.

        Args:
            batch: The views; its pixels are not looked at.
            views_BHWC: Those of them that the teacher is asked for, uint8, on any device.
            ask: `ask`, or what does the same, for a teacher without folds.
        """
        span = batch.span
        if ask is None or self.teacher.num_folds > 1:
            answers_BC = self.ask(views_BHWC, batch.image_hashes[self.is_asked(span)])
        else:
            answers_BC = ask(views_BHWC)
        return Reply(
            self.short_answers(span, answers_BC),
            None if self.provenance.candidates is None else LaterOnHost(self._scores(answers_BC, span)),
            LaterOnHost(answers_BC) if self.provenance.signal == IMAGE_TAIL else None,
        )

    def complete(self, batch: ViewBatch, reply: Reply) -> ViewColumns:
        """Waits for what `begin` has started and returns the batch's columns; the same errors as `label`."""
        if batch.error is not None:
            if self.provenance.on_bad_image == "error":
                raise DataError(f"{batch.error} {self._advice}".rstrip())
            logger.warning("Skipped: %s", batch.error)
        ids_NK, logprobs_NK = reply.short()
        return ViewColumns(
            {
                schema.IMAGE_HASH: batch.image_hashes,
                schema.VIEWS_HASH: batch.view_hashes,
                schema.TEACHER_IDS: ids_NK,
                schema.TEACHER_LOGPROBS: logprobs_NK,
                **{schema.AUG_PREFIX + name: values for name, values in batch.params.items()},
            },
            batch.valid,
            None if reply.scores is None else reply.scores.get()[0].numpy(),
            None if reply.answers is None else reply.answers.get()[0].numpy(),
        )

    def ask(self, views_BHWC: torch.Tensor, image_hashes_B: np.ndarray | None = None) -> torch.Tensor:
        """Returns the teacher's log-probabilities (B, C), on its device; `image_hashes_B` tells folds apart, if it has any."""
        views_BCHW = views_BHWC.permute(0, 3, 1, 2)
        if self.teacher.num_folds == 1:
            return _in_whole_batches(self.teacher, views_BCHW)
        assert image_hashes_B is not None
        return self.teacher.answer(views_BCHW, image_hashes_B, partial(_in_whole_batches, size=_CPU_BATCH_OF_FOLD))

    def is_asked(self, span: Span) -> np.ndarray:
        """Returns which views of a span the teacher is asked about, bool (N,)."""
        return np.ones(span.stop - span.start, bool)

    def short_answers(self, span: Span, answers_BC: torch.Tensor) -> ShortAnswers:
        """Returns a function that waits for the answers to all views of a span, and returns what is stored of them.

        The teacher was asked for all of them; an extension puts the stored answers to the others next to `answers_BC`.
        """
        return self.shorten(answers_BC, np.arange(span.start, span.stop))

    def shorten(self, answers_BC: torch.Tensor, places_B: np.ndarray) -> ShortAnswers:
        """Returns a function that waits for the answers, and returns what the signal stores: ids and log-probabilities (B, K).

        `places_B` are the places of the views in the flat order: classes are drawn with a number of the view.
        """
        provenance = self.provenance
        if provenance.signal != SAMPLED:
            return later_top_k(answers_BC, provenance.top_k)
        views = [divmod(place, provenance.num_candidates) for place in places_B.tolist()]
        uniforms_B = np.array([sampling_uniform(provenance.seed, example, view) for example, view in views])
        later = LaterOnHost(answers_BC)
        return lambda: sample(later.get()[0], provenance.top_k, uniforms_B)

    def _scores(self, answers_BC: torch.Tensor, span: Span) -> torch.Tensor:
        """What the criterion says of each candidate, (N,); the lowest are kept."""
        assert self.provenance.candidates is not None
        order, _, criterion = self.provenance.candidates["keep"].partition("_")
        if criterion == "entropy":
            values_B = torch.special.entr(answers_BC.exp()).sum(-1)
        else:
            assert self._labels is not None
            examples_B = np.arange(span.start, span.stop) // self.provenance.num_candidates
            labels_B = torch.from_numpy(self._labels[examples_B]).to(answers_BC.device)
            values_B = -answers_BC.gather(-1, labels_B[:, None])[:, 0]
        return values_B if order == "low" else -values_B


def _in_whole_batches(teacher: Teacher, views_BCHW: torch.Tensor, size: int = CPU_BATCH) -> torch.Tensor:
    """Asks a teacher; on a CPU about `size` views at once, never fewer or more."""
    if teacher.device.type != "cpu":
        return teacher(views_BCHW)
    return torch.cat([teacher(padded(part, size))[: len(part)] for part in views_BCHW.split(size)])


def padded(part: torch.Tensor, size: int) -> torch.Tensor:
    """Returns a batch of `size` views, the last of them black where there are fewer."""
    if len(part) == size:
        return part
    return torch.cat([part, part.new_zeros(size - len(part), *part.shape[1:])])


@dataclass(frozen=True)
class CompleteRows:
    """Complete rows that follow each other.

    Attributes:
        columns: The reinforcement's columns as `ShardWriter` takes them: (R,), (R, V) or (R, V, n).
        valid: bool (R,), False for rows whose image could not be decoded.
        view_hashes: uint64 (R, V), of the pixels of each view.
    """

    columns: dict[str, np.ndarray]
    valid: np.ndarray
    view_hashes: np.ndarray


RowCheck = Callable[[CompleteRows], None]
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
    """Rows out of a stream of views in flat order, whatever batches these come in.

    For rows `with_tails` the views must carry whole answers.
    """

    def __init__(self, views: Iterator[ViewColumns], num_views: int, *, with_tails: bool) -> None:
        self._views = views
        self._buffer = _Buffer(num_views)
        self._tails = ImageTails(num_views) if with_tails else None

    def take(self, rows: range) -> CompleteRows:
        """Returns rows, which must be the next ones of the stream."""
        count = len(rows)
        while self._buffer.num_rows < count:
            views = next(self._views)
            if self._tails is not None:
                # Added up at once: whole answers of a row's V views would not fit in memory.
                assert views.answers is not None
                self._tails.add(views.answers)
            self._buffer.add(replace(views, answers=None))
        views = self._buffer.take(count)
        columns = views.columns
        view_hashes_RV = columns[schema.VIEWS_HASH]
        columns[schema.SOURCE_INDEX] = np.array(rows, np.int64)
        columns[schema.IMAGE_HASH] = columns[schema.IMAGE_HASH][:, 0]
        columns[schema.VIEWS_HASH] = np.array([combine_hashes(hashes_V) for hashes_V in view_hashes_RV], np.uint64)
        if self._tails is not None:
            columns[schema.TAIL_IDS], columns[schema.TAIL_LOGPROBS] = self._tails.take(count)
        return CompleteRows(columns, views.valid[:, 0], view_hashes_RV)

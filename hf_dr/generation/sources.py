"""Where a run's answers come from: the seam between what is stored and how views are made and labelled.

`AnswerSource` is what a run asks for. Two implementations make the views on the host: `ThreadSource` for a teacher on the CPU,
`LoaderSource` for one on an accelerator. `DeviceSource` makes them next to the teacher.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from hf_dr.generation.labelling import CPU_BATCH, Labeller, Reply, ViewColumns
from hf_dr.processes import ahead, default_workers, quiet_loader, thread_pool
from hf_dr.store.provenance import Provenance
from hf_dr.text import format_bytes
from hf_dr.views.device.augment import is_fast_on
from hf_dr.views.device.graphs import Graphed
from hf_dr.views.device.maker import DeviceViewMaker, MadeViews
from hf_dr.views.device.plan import NotOnDeviceError, unsupported
from hf_dr.views.maker import Span, ViewBatch, ViewMaker

logger = logging.getLogger(__name__)

_CHECKED_VIEWS = 64  # are made by Pillow as well, in a fraction of a second, before a device makes millions


@dataclass(frozen=True)
class Timing:
    """What some spans took, for the estimate of a whole run.

    Attributes:
        columns: The columns of the spans that were timed.
        seconds_augment: Time to make one view, on one core; where an accelerator makes it, to decode and draw it only.
        seconds_teacher: Time of one answer, on one core or accelerator, with all else that the accelerator does for it.
    """

    columns: list[ViewColumns]
    seconds_augment: float
    seconds_teacher: float


class AnswerSource(ABC):
    """Gives the columns of views: makes them, asks the teacher, and keeps what is stored of its answers.

    A run cuts its views into spans (`cut_spans`) and takes their columns one span after the other. How the work is done is up
    to the source: in threads, in worker processes, on an accelerator that decodes each image once. Whatever it does, the
    columns must be those that any other source gives, bit for bit but for the last bits of a teacher's answer on another kind
    of device. `choose_source` is the place to choose another.

    Args:
        maker: Says what a view is, and whether an example has an image at all.
        labeller: Says what is stored of an answer.
        batch_size: How many views of a span the teacher is asked for; the last span of a shard may have fewer.
        workers: How many threads or processes make views for this one, or decode for the device that makes them.

    Attributes:
        device: The teacher's device.
        on_device: Whether the views are made there.
        labeller, workers, batch_size: The arguments of these names.
        first_new: The teacher is asked for the views of each example from this number on; answers to those before are stored
            already. 0 but for an extension by more views.
    """

    on_device = False

    def __init__(self, maker: ViewMaker, labeller: Labeller, batch_size: int, workers: int) -> None:
        self.device = labeller.teacher.device
        self.workers = workers
        self.batch_size = batch_size
        self.first_new = maker.first_new
        self._maker = maker
        self.labeller = labeller

    @abstractmethod
    def answers(self, spans: Sequence[Span]) -> Generator[ViewColumns]:
        """Yields the columns of each span, all its views, in the order of the spans; closing the generator ends the work.

        Raises:
            DataError: An image cannot be decoded, and the run does not skip such images (`Labeller.label` decides).
            TeacherError: An answer is not finite.
        """

    def measure(self, spans: Sequence[Span]) -> Timing:
        """Prepares a few spans, then labels all but the first, which also pays for warming up, on the clock."""
        began = time.perf_counter()
        batches = self._prepared(spans)
        augmenting = time.perf_counter() - began
        self.labeller.label(next(batches))
        began = time.perf_counter()
        columns = [self.labeller.label(batch) for batch in batches]
        teaching = time.perf_counter() - began
        made = sum(span.stop - span.start for span in spans)
        asked = sum(int(self.labeller.is_asked(span).sum()) for span in spans[1:])
        return Timing(columns, augmenting / made, teaching / max(1, asked))

    def _prepared(self, spans: Sequence[Span]) -> Iterator[ViewBatch]:
        """Does all that needs no accelerator on one core, and returns what does the rest, span by span."""
        return iter([self._maker[span] for span in spans])


def choose_source(
    maker: ViewMaker, labeller: Labeller, batch_size: int, num_workers: int | None, augment_on: str = "auto"
) -> AnswerSource:
    """Returns the source for the device of the labeller's teacher; the settings are those of `ReinforceConfig`.

    Raises:
        NotOnDeviceError: The views must be made on the device, which cannot make them.
    """
    device = labeller.teacher.device
    on_cpu = device.type == "cpu"
    workers = default_workers(device) if num_workers is None else num_workers
    if augment_on == "device" or (augment_on == "auto" and is_fast_on(device)):
        reasons = "; ".join(unsupported(maker.augmentation))
        if not reasons and augment_on == "auto":
            reasons = _too_large(maker, device, batch_size, workers)
        if not reasons:
            return DeviceSource(maker, labeller, CPU_BATCH if on_cpu else batch_size, workers)
        if augment_on == "device":
            raise NotOnDeviceError(f"`augment_on` must be `cpu` or `auto` here, got `device`: {reasons}. Leave it out.")
        logger.warning("Views are made on the CPU, which takes longer: %s.", reasons)
    if on_cpu:
        return ThreadSource(maker, labeller, CPU_BATCH, workers)
    return LoaderSource(maker, labeller, batch_size, workers)


def _too_large(maker: ViewMaker, device: torch.device, batch_size: int, workers: int) -> str:
    """Says why the images of a batch should not go to a device; empty where they may."""
    on_device = DeviceViewMaker(maker, device)
    needed, allowed = on_device.needed_bytes(batch_size, workers), on_device.allowed_bytes
    if needed <= allowed:
        return ""
    return (
        f"the images that are needed at a time take {format_bytes(needed)} of {device}, which has {format_bytes(allowed)} for "
        "them (`augment_on device` takes it nevertheless)"
    )


def cut_spans(provenance: Provenance, shards: Iterable[int], batch_size: int, first_new: int = 0) -> list[Span]:
    """Cuts the views of these shards, in their order, where a batch of the teacher is full; no span reaches into two shards.

    Only views from number `first_new` on count, because the teacher is asked for no others. Those before them belong to the
    span of their row's first new view.
    """
    num_views = provenance.num_candidates
    num_new = num_views - first_new

    def start_of(asked: int) -> int:
        """The place in the flat order at which the span of the asked-th new view starts."""
        row, new = divmod(asked, num_new)
        return row * num_views + (first_new + new if new else 0)

    spans = []
    for shard in shards:
        rows = provenance.shard_range(shard)
        starts = [start_of(asked) for asked in range(rows.start * num_new, rows.stop * num_new, batch_size)]
        stops = [*starts[1:], rows.stop * num_views]
        spans += [Span(shard, start, stop) for start, stop in zip(starts, stops, strict=True)]
    return spans


class ThreadSource(AnswerSource):
    """Makes and labels whole batches on a CPU, each thread on one core: cores wait less than inside a convolution."""

    def answers(self, spans: Sequence[Span]) -> Generator[ViewColumns]:
        """Yields the columns of each span; as many batches are under way as keep all threads busy."""
        with _kept_threads():
            if self.workers <= 1:  # in the calling thread: what `keep_freed_memory` sets may not work in others
                torch.set_num_threads(1)
                yield from map(self._label, spans)
                return
            one_each = {"initializer": torch.set_num_threads, "initargs": (1,)}
            with thread_pool(self.workers, "reinforce", **one_each) as pool:
                # Two batches for each thread: one is worked on, the next is there when it is done.
                yield from ahead(
                    spans,
                    lambda span: pool.submit(self._label, span),
                    lambda _, labelled: labelled.result(),
                    depth=2 * self.workers,
                )

    def _label(self, span: Span) -> ViewColumns:
        return self.labeller.label(self._maker[span])

    def measure(self, spans: Sequence[Span]) -> Timing:
        """Measures on one core, as each of the run's threads has."""
        with _kept_threads():
            torch.set_num_threads(1)
            return super().measure(spans)


class LoaderSource(AnswerSource):
    """Worker processes make the views; this process labels them on its accelerator."""

    def answers(self, spans: Sequence[Span]) -> Generator[ViewColumns]:
        """Yields the columns of each span; workers are ahead by as much as a DataLoader fetches in advance."""
        loader = quiet_loader(
            self._maker,
            batch_size=None,
            sampler=spans,
            num_workers=min(self.workers, len(spans)),
            pin_memory=self.device.type == "cuda",
        )
        for batch in loader:
            yield self.labeller.label(batch)


class DeviceSource(AnswerSource):
    """Worker processes decode images; the teacher's device makes their views, hashes them and answers, several batches ahead.

    The ops must have device versions (`unsupported`).
    """

    on_device = True

    def answers(self, spans: Sequence[Span]) -> Generator[ViewColumns]:
        """Yields the columns of each span; the device has a few batches of work before it.

        Raises:
            NotOnDeviceError: It does not give the pixels that Pillow gives; the first views are made by both.
        """
        for span in spans[:1]:
            self._check_device(Span(span.shard, span.start, min(span.stop, span.start + _CHECKED_VIEWS)))
        labeller = self.labeller
        ask = Graphed(labeller.ask)

        def begin(made: MadeViews) -> Reply:
            return labeller.begin(made.batch, made.pixels, ask)

        def complete(made: MadeViews, reply: Reply) -> ViewColumns:
            return labeller.complete(made.finish(), reply)

        yield from ahead(DeviceViewMaker(self._maker, self.device).batches(spans, self.workers), begin, complete)

    def _check_device(self, span: Span) -> None:
        (found,) = self._prepared([span])
        expected = self._maker[span].view_hashes
        others = int(np.count_nonzero(found.view_hashes != expected))
        if others:
            raise NotOnDeviceError(
                f"{self.device} must make views of the pixels that Pillow makes, but {others} of the first {len(expected)} "
                "views are others. Set `augment_on` to cpu, and report the device with the versions of its driver and of torch."
            )

    def _prepared(self, spans: Sequence[Span]) -> Iterator[ViewBatch]:
        # Images of partners are decoded for each span: those that stay on the device are so only for the first ones.
        on_device = DeviceViewMaker(self._maker, self.device, cache_bytes=0)
        prepared = list(on_device.prepared(spans, 0))
        return (made.finish() for made in on_device.make(prepared))


@contextmanager
def _kept_threads() -> Iterator[None]:
    """Restores torch's number of threads: one that a pool sets is also what later threads of the process begin with."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)

"""Where a run's answers come from: the seam between what is stored and how views are made and labelled.

`AnswerSource` is what a run asks for. Two implementations make the views on the host: `ThreadSource` for a teacher on the CPU,
`LoaderSource` for one on an accelerator. `hf_dr.generation.device_source.DeviceSource` makes them next to the teacher.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

import torch

from hf_dr.generation.device_source import DeviceSource
from hf_dr.generation.labelling import CPU_BATCH, Labeller, ViewColumns
from hf_dr.generation.timing import Timing
from hf_dr.processes import default_workers, quiet_worker
from hf_dr.store.provenance import Provenance
from hf_dr.views.device.augment import is_fast_on
from hf_dr.views.device.plan import NotOnDeviceError, unsupported
from hf_dr.views.maker import Span, ViewMaker

logger = logging.getLogger(__name__)


class AnswerSource(Protocol):
    """Gives the columns of views: makes them, asks the teacher, and keeps what is stored of its answers.

    A run cuts its views into spans (`cut_spans`) and takes their columns one span after the other. How the work is done is up
    to the source: in threads, in worker processes, on an accelerator that decodes each image once. Whatever it does, the
    columns must be those that any other source gives, bit for bit but for the last bits of a teacher's answer on another kind
    of device. A source is built from a `ViewMaker`, which says what a view is (and whether an example has an image at all), and
    a `Labeller`, which says what is stored of an answer; `choose_source` is the place to choose another.

    Attributes:
        device: Where the teacher is.
        workers: How many threads or processes make views for this one.
        batch_size: How many views of a span the teacher is asked for; the last span of a shard may have fewer.
        first_new: The teacher is asked for the views of each example from this number on; answers to those before are stored
            already. 0 but for an extension by more views.
    """

    device: torch.device
    workers: int
    batch_size: int
    first_new: int

    def answers(self, spans: Sequence[Span]) -> Generator[ViewColumns]:
        """Yields the columns of each span, all its views, in the order of the spans; closing the generator ends the work.

        Raises:
            DataError: An image cannot be decoded, and the run does not skip such images (`Labeller.label` decides).
            TeacherError: An answer is not finite.
        """
        ...

    def measure(self, spans: Sequence[Span]) -> Timing:
        """Makes and labels a few spans, the first of them to warm up, and returns what the others took."""
        ...


def choose_source(
    maker: ViewMaker, labeller: Labeller, batch_size: int, num_workers: int | None, augment_on: str = "auto"
) -> AnswerSource:
    """Returns the source for the device of the labeller's teacher.

    Args:
        maker: Makes the views.
        labeller: Labels them.
        batch_size: Views in a batch of the teacher on an accelerator; a CPU always has `CPU_BATCH`.
        num_workers: See `ReinforceConfig`. Default: by the cores.
        augment_on: See `ReinforceConfig`.

    Raises:
        NotOnDeviceError: The views must be made on the device, which cannot make them.
    """
    device = labeller.teacher.device
    on_cpu = device.type == "cpu"
    workers = default_workers(device) if num_workers is None else num_workers
    if augment_on == "device" or (augment_on == "auto" and is_fast_on(device)):
        reasons = "; ".join(unsupported(maker.augmentation))
        if not reasons:
            return DeviceSource(maker, labeller, CPU_BATCH if on_cpu else batch_size, workers)
        if augment_on == "device":
            raise NotOnDeviceError(
                f"`augment_on` must be `cpu` or `auto` for these views, got `device`: {reasons}. Leave it out."
            )
        logger.warning("Views are made on the CPU, which takes longer: %s.", reasons)
    if on_cpu:
        return ThreadSource(maker, labeller, CPU_BATCH, workers)
    return LoaderSource(maker, labeller, batch_size, workers)


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


class _HostSource:
    """Views are made on the host, a whole batch at a time.

    Args:
        maker: Makes the views.
        labeller: Labels them.
        batch_size: Views in a batch of the teacher.
        workers: Threads or processes that make views.
    """

    def __init__(self, maker: ViewMaker, labeller: Labeller, batch_size: int, workers: int) -> None:
        self.device = labeller.teacher.device
        self.workers = workers
        self.batch_size = batch_size
        self.first_new = maker.first_kept
        self._maker = maker
        self._labeller = labeller

    def measure(self, spans: Sequence[Span]) -> Timing:
        """Makes all spans, then labels all but the first, which also pays for warming up, on the clock."""
        began = time.perf_counter()
        batches = [self._maker[span] for span in spans]
        augmenting = time.perf_counter() - began
        self._labeller.label(batches[0])
        began = time.perf_counter()
        columns = [self._labeller.label(batch) for batch in batches[1:]]
        teaching = time.perf_counter() - began
        made = sum(span.stop - span.start for span in spans)
        asked = sum(len(batch.pixels) for batch in batches[1:])
        return Timing(columns, augmenting / made, teaching / max(1, asked))


class ThreadSource(_HostSource):
    """On a CPU, each thread makes and labels whole batches on one core: cores wait less than inside a convolution."""

    def answers(self, spans: Sequence[Span]) -> Generator[ViewColumns]:
        """Yields the columns of each span; as many batches are under way as keep all threads busy."""
        threads = max(1, self.workers)
        with _kept_threads():
            pool = ThreadPoolExecutor(threads, "reinforce", initializer=torch.set_num_threads, initargs=(1,))
            waiting: deque[Future[ViewColumns]] = deque()
            try:
                for span in spans:
                    waiting.append(pool.submit(self._make_and_label, span))
                    # Two batches for each thread: one is worked on, the next is there when it is done.
                    if len(waiting) > 2 * threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _make_and_label(self, span: Span) -> ViewColumns:
        return self._labeller.label(self._maker[span])

    def measure(self, spans: Sequence[Span]) -> Timing:
        """Measures on one core, as each of the run's threads has."""
        with _kept_threads():
            torch.set_num_threads(1)
            return super().measure(spans)


class LoaderSource(_HostSource):
    """Worker processes make the views; this process labels them on its accelerator."""

    def answers(self, spans: Sequence[Span]) -> Generator[ViewColumns]:
        """Yields the columns of each span; workers are ahead by as much as a DataLoader fetches in advance."""
        loader = torch.utils.data.DataLoader(
            self._maker,
            batch_size=None,
            sampler=spans,
            num_workers=min(self.workers, len(spans)),
            pin_memory=self.device.type == "cuda",
            worker_init_fn=quiet_worker,
        )
        for batch in loader:
            yield self._labeller.label(batch)


@contextmanager
def _kept_threads() -> Iterator[None]:
    """Restores torch's number of threads: one that a pool sets is also what later threads of the process begin with."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)

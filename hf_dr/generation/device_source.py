"""The source of a run whose views are made on the teacher's device: each image is decoded once and sent there once."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence

from hf_dr.generation.labelling import Labeller, Reply, ViewColumns
from hf_dr.generation.timing import Timing
from hf_dr.views.device.graphs import Graphed
from hf_dr.views.device.maker import DeviceViewMaker, MadeViews
from hf_dr.views.device.overlap import ahead
from hf_dr.views.maker import Span, ViewMaker


class DeviceSource:
    """Worker processes decode images; the teacher's device makes their views, hashes them and answers, several batches ahead.

    An `AnswerSource` (`hf_dr.generation.sources`).

    Args:
        maker: Says which views there are.
        labeller: Labels them.
        batch_size: Views in a batch of the teacher.
        workers: Processes that decode.

    Raises:
        NotOnDeviceError: An op or setting has no device version.
    """

    def __init__(self, maker: ViewMaker, labeller: Labeller, batch_size: int, workers: int) -> None:
        self.device = labeller.teacher.device
        self.workers = workers
        self.batch_size = batch_size
        self.first_new = maker.first_kept
        self._maker = maker
        self._labeller = labeller
        self._on_device = DeviceViewMaker(maker, self.device)

    def answers(self, spans: Sequence[Span]) -> Generator[ViewColumns]:
        """Yields the columns of each span; the device has a few batches of work before it."""
        labeller = self._labeller
        ask = Graphed(labeller.ask)

        def begin(made: MadeViews) -> Reply:
            return labeller.begin(made.batch, made.pixels, ask)

        def complete(made: MadeViews, reply: Reply) -> ViewColumns:
            return labeller.complete(made.finish(), reply)

        yield from ahead(self._on_device.batches(spans, self.workers), begin, complete)

    def measure(self, spans: Sequence[Span]) -> Timing:
        """Prepares all spans on one core, then makes and labels all but the first, which also pays for warming up."""
        # Images of partners are decoded for each span: those that stay on the device are so only for the first ones.
        on_device = DeviceViewMaker(self._maker, self.device, cache_bytes=0)
        began = time.perf_counter()
        prepared = list(on_device.prepared(spans, 0))
        preparing = time.perf_counter() - began
        made = on_device.make(prepared)
        self._labeller.label(next(made).finish())
        began = time.perf_counter()
        columns = [self._labeller.label(views.finish()) for views in made]
        teaching = time.perf_counter() - began
        asked = sum(
            place % self._maker.num_views >= self.first_new
            for span in spans[1:]
            for place in range(span.start, span.stop)
        )
        views = sum(span.stop - span.start for span in spans)
        return Timing(columns, preparing / views, teaching / max(1, asked))

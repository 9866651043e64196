"""The seam of a run: spans, the sources of answers, and rows out of views; any source that keeps the contract will do."""

import itertools
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ALL_OPS
from test_reinforce import OnAnotherDevice, files_of

from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import Job, reinforce_job
from hf_dr.generation.labelling import CPU_BATCH, Labeller, RowStream, ViewColumns, best_candidates
from hf_dr.generation.plan import Plan, plan_run
from hf_dr.generation.sources import AnswerSource, LoaderSource, ThreadSource, Timing, choose_source, cut_spans
from hf_dr.store.features import combine_hashes
from hf_dr.store.schema import IMAGE_HASH, SOURCE_INDEX, TEACHER_IDS, VIEWS_HASH
from hf_dr.teacher.ensemble import Teacher
from hf_dr.views.maker import Span


@pytest.fixture
def plan(tmp_path, tiny_dataset, tiny_teacher) -> Plan:
    config = ReinforceConfig(str(tmp_path / "plus"), "a", num_views=6, top_k=3, shard_size=5)
    return plan_run(tiny_dataset, tiny_teacher, ALL_OPS, config)


def assert_equal(one: ViewColumns, other: ViewColumns) -> None:
    assert one.columns.keys() == other.columns.keys()
    for name, values in one.columns.items():
        np.testing.assert_array_equal(values, other.columns[name], err_msg=name)
    np.testing.assert_array_equal(one.valid, other.valid)


# ----------------------------------------------------------------------------------------------------------------- spans


@pytest.mark.parametrize("first_new", [0, 1, 4, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 1000])
def test_spans_cover_each_shard_in_order_and_are_full(plan, batch_size, first_new):
    """12 rows of 6 views in shards of 5, 5 and 2 rows."""
    spans = cut_spans(plan.provenance, [0, 2], batch_size, first_new)
    for shard, ends in ((0, (0, 30)), (2, (60, 72))):
        mine = [span for span in spans if span.shard == shard]
        assert [span.start for span in mine] == [ends[0], *(span.stop for span in mine[:-1])]
        assert mine[-1].stop == ends[1]
        asked = [sum(place % 6 >= first_new for place in range(span.start, span.stop)) for span in mine]
        assert asked[:-1] == [batch_size] * (len(mine) - 1)
        assert 1 <= asked[-1] <= batch_size
    assert [span.shard for span in spans] == sorted(span.shard for span in spans)


def test_stored_views_come_with_the_first_new_one_of_their_row(plan):
    starts = [span.start for span in cut_spans(plan.provenance, [0], 4, first_new=4)]
    assert starts == [0, 12, 24], "two new views a row, so each batch of four begins a row, with its stored views"


# --------------------------------------------------------------------------------------------------------------- sources


@pytest.fixture
def labeller(plan, tiny_teacher) -> Labeller:
    return Labeller(tiny_teacher, plan.provenance)


def test_the_device_decides_on_the_source(plan, labeller, tiny_teacher):
    chosen = choose_source(plan.view_maker(), labeller, 5, 3)
    assert isinstance(chosen, ThreadSource)
    assert (chosen.batch_size, chosen.workers, chosen.first_new) == (CPU_BATCH, 3, 0)
    elsewhere = Labeller(OnAnotherDevice(tiny_teacher), plan.provenance)
    chosen = choose_source(plan.view_maker(), elsewhere, 5, None)
    assert isinstance(chosen, LoaderSource)
    assert chosen.batch_size == 5
    assert chosen.workers >= 1


@pytest.mark.parametrize("kind", [ThreadSource, LoaderSource])
def test_each_span_has_its_columns_in_order(plan, labeller, kind):
    maker = plan.view_maker()
    spans = cut_spans(plan.provenance, [1, 2], CPU_BATCH)
    found = list(kind(maker, labeller, CPU_BATCH, 2).answers(spans))
    assert [len(views) for views in found] == [span.stop - span.start for span in spans]
    for views, span in zip(found, spans, strict=True):
        assert_equal(views, labeller.label(maker[span]))


def test_a_closed_stream_ends_its_threads_and_restores_their_number(plan, labeller):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        answers = ThreadSource(plan.view_maker(), labeller, 1, 2).answers(cut_spans(plan.provenance, [0, 1, 2], 1))
        next(answers)
        assert any(thread.name.startswith("reinforce") for thread in threading.enumerate())
        answers.close()
        assert not any(thread.name.startswith("reinforce") for thread in threading.enumerate())
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", [ThreadSource, LoaderSource])
def test_measuring_returns_the_columns_of_all_spans_but_the_first(plan, labeller, kind):
    maker = plan.view_maker()
    spans = cut_spans(plan.provenance, [0], CPU_BATCH)
    before = torch.get_num_threads()
    timing = kind(maker, labeller, CPU_BATCH, 0).measure(spans)
    assert torch.get_num_threads() == before
    assert timing.seconds_augment > 0
    assert timing.seconds_teacher > 0
    assert_equal(ViewColumns.join(timing.columns), ViewColumns.join([labeller.label(maker[s]) for s in spans[1:]]))


class RowByRow(AnswerSource):
    """A source of another kind: it knows nothing of batches, and labels all views of a row at once."""

    def answers(self, spans: Sequence[Span]) -> Generator[ViewColumns]:
        for span in spans:
            yield self.labeller.label(self._maker[span])

    def measure(self, spans: Sequence[Span]) -> Timing:
        return Timing(list(self.answers(spans[1:])), 1.0, 2.0)


def test_a_run_takes_any_source(plan, labeller, tmp_path, tiny_dataset, tiny_teacher):
    """Also the spans that it is given are of its own batch size."""
    source = RowByRow(plan.view_maker(), labeller, 16, 1)
    job = Job(plan, source)
    job.run()
    config = ReinforceConfig(str(tmp_path / "as_ever"), "a", num_views=6, top_k=3, shard_size=5)
    reinforce_job(tiny_dataset, tiny_teacher, ALL_OPS, config).run()
    assert files_of(job.folder) == files_of(tmp_path / "as_ever")
    assert len(job.result()) == 12


def test_the_estimate_is_what_the_source_measures(plan, labeller):
    estimate = Job(plan, RowByRow(plan.view_maker(), labeller, 8, 1)).estimate(2)
    assert (estimate.seconds_augment, estimate.seconds_teacher) == (1.0, 2.0)
    assert (estimate.num_views, estimate.num_made, estimate.num_asked) == (72, 72, 72)
    report = estimate.report(1, 0, torch.device("cpu"))
    for name in ("  teacher  ", "  decoding and augmenting  ", "  core-hours of augmenting  "):
        assert name in report


def test_rows_are_checked_before_they_are_written(plan, labeller):
    checked = []

    def check(rows) -> None:
        checked.extend(rows.columns[SOURCE_INDEX].tolist())
        if 5 in checked:
            raise KeyError("row 5 must not be written")

    with pytest.raises(KeyError, match="row 5 must not be written"):
        Job(plan, RowByRow(plan.view_maker(), labeller, 16, 1), check_rows=check).run()
    assert checked == list(range(10))
    assert len(files_of(plan.folder)) == 1, "the first shard was in order"


# ------------------------------------------------------------------------------------------------------------------ rows


def views_of(plan: Plan, teacher: Teacher, sizes: Sequence[int], **more: np.ndarray) -> Iterator[ViewColumns]:
    """The views of the first rows in batches of some sizes."""
    whole = Labeller(teacher, plan.provenance).label(plan.view_maker()[Span(0, 0, sum(sizes))])
    ends = np.cumsum([0, *sizes]).tolist()
    for start, stop in itertools.pairwise(ends):
        part = whole.map(lambda values, start=start, stop=stop: values[start:stop])
        yield replace(part, **{name: values[start:stop] for name, values in more.items()})


@pytest.mark.parametrize("sizes", [[18], [1] * 18, [5, 13], [6, 6, 6]])
def test_rows_do_not_depend_on_batches(plan, tiny_teacher, sizes):
    (whole,) = views_of(plan, tiny_teacher, [18])
    stream = RowStream(views_of(plan, tiny_teacher, sizes), 6, with_tails=False)
    rows = [stream.take(range(1)), stream.take(range(1, 3))]
    assert [len(part.valid) for part in rows] == [1, 2]
    columns = {name: np.concatenate([part.columns[name] for part in rows]) for name in rows[0].columns}
    np.testing.assert_array_equal(columns[SOURCE_INDEX], [0, 1, 2])
    np.testing.assert_array_equal(columns[IMAGE_HASH], whole.columns[IMAGE_HASH][::6])
    np.testing.assert_array_equal(columns[TEACHER_IDS].reshape(18, 3), whole.columns[TEACHER_IDS])
    hashes = np.concatenate([part.view_hashes for part in rows])
    np.testing.assert_array_equal(hashes.ravel(), whole.columns[VIEWS_HASH])
    assert columns[VIEWS_HASH].tolist() == [combine_hashes(row) for row in hashes]


@pytest.mark.parametrize("sizes", [[18], [5, 13], [1] * 18])
def test_the_lowest_scores_are_kept_in_the_order_of_their_numbers(plan, tiny_teacher, sizes):
    scores = np.array([3, 1, 2, 1, 5, 0, 0, 0, 0, 0, 0, 0, 6, 5, 4, 3, 2, 1], np.float32)
    (whole,) = views_of(plan, tiny_teacher, [18])
    found = ViewColumns.join(list(best_candidates(views_of(plan, tiny_teacher, sizes, scores=scores), 6, 3)))
    kept = [1, 3, 5, 6, 7, 8, 15, 16, 17]  # of equal ones those that come first
    np.testing.assert_array_equal(found.columns[VIEWS_HASH], whole.columns[VIEWS_HASH][kept])

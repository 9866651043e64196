"""An epoch that is stopped and goes on, however often and by whomever, shows each row once; the same ones go on alike."""

from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from hf_dr.errors import FormatError
from hf_dr.replay.shares import Progress, Shares

divisions = st.builds(
    Shares,
    world_size=st.integers(1, 5),
    num_workers=st.integers(1, 5),
    batch_size=st.integers(1, 7),
    even=st.booleans(),
)
begun = Progress(0, {}, [])


def batches_of(progress: Progress, rows: int, shares: Shares, rank: int) -> list[tuple[int, ...]]:
    """The batches that a process's loader gives: those of its workers in turn, as long as they have some."""
    queues = []
    for worker in range(shares.num_workers):
        places = progress.left(rows, rank, worker, shares).tolist()
        queues.append([tuple(places[at : at + shares.batch_size]) for at in range(0, len(places), shares.batch_size)])
    given = []
    while any(queues):
        given += [queue.pop(0) for queue in queues if queue]
    return given


def of_all(progress: Progress, rows: int, shares: Shares) -> list[list[tuple[int, ...]]]:
    return [batches_of(progress, rows, shares, rank) for rank in range(shares.world_size)]


class Places(torch.utils.data.IterableDataset):
    """What a worker is to give, as numbers."""

    def __init__(self, progress: Progress, rows: int, shares: Shares) -> None:
        self.given = (progress, rows, shares)

    def __iter__(self) -> Any:
        progress, rows, shares = self.given
        return iter(progress.left(rows, 0, torch.utils.data.get_worker_info().id, shares).tolist())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize(("rows", "workers", "stop"), [(23, 3, 4), (9, 4, 0), (5, 4, 1)])
def test_torch_takes_the_batches_of_its_workers_in_turn(rows, workers, stop):
    shares = Shares(num_workers=workers, batch_size=2)
    progress = begun.after(shares, stop)
    loader = torch.utils.data.DataLoader(Places(progress, rows, shares), batch_size=2, num_workers=workers)
    assert [tuple(batch.tolist()) for batch in loader] == batches_of(progress, rows, shares, 0)


@given(st.integers(0, 80), divisions, st.integers(0, 90))
def test_the_same_ones_go_on_with_the_same_batches(rows, shares, stop):
    whole = of_all(begun, rows, shares)
    left = of_all(begun.after(shares, stop), rows, shares)
    assert left == [batches[stop:] for batches in whole]
    assert all(len(batch) == shares.batch_size for batches in whole for batch in batches[:-1])
    # In two steps as in one.
    assert begun.after(shares, stop // 2).after(shares, stop - stop // 2) == begun.after(shares, stop)


@given(st.integers(0, 80), st.lists(st.tuples(divisions, st.integers(0, 6)), max_size=4), divisions)
def test_others_go_on_with_each_row_that_nobody_has_seen(rows, stops, last):
    assume(
        all(one != other for one, other in pairwise([*(shares for shares, _ in stops), last]))
    )  # the same go on: see above
    progress, seen = begun, []
    for shares, stop in stops:
        parts = of_all(progress, rows, shares)
        if shares.even:
            sizes = {sum(map(len, batches)) for batches in parts}
            assert len(sizes) == 1, "all processes have equally many rows"
        # A row that two processes have, so that all have equally many, is one that was seen.
        seen.append(set(chain.from_iterable(batch for batches in parts for batch in batches[:stop])))
        progress = progress.after(shares, stop)
        assert set(progress.unseen(rows).tolist()) == set(range(rows)) - set().union(*seen)
    seen.append(set(chain.from_iterable(chain.from_iterable(of_all(progress, rows, last)))))
    assert sum(map(len, seen)) == rows, "no row comes again"
    assert set().union(*seen) == set(range(rows)), "no row is lost"


@given(st.integers(1, 80), divisions, divisions, st.integers(0, 6))
def test_another_number_of_workers_changes_no_number_of_steps(rows, shares, other, stop):
    """So that a trainer's steps and learning rates are those of the uninterrupted run."""
    other = Shares(shares.world_size, other.num_workers, shares.batch_size, even=True)
    shares = Shares(shares.world_size, shares.num_workers, shares.batch_size, even=True)
    whole = of_all(begun, rows, shares)
    left = of_all(begun.after(shares, stop), rows, other)
    assert [len(batches) for batches in left] == [max(0, len(batches) - stop) for batches in whole]


@given(
    st.data(),
    st.integers(1, 80),
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1),
)
def test_another_number_of_processes_changes_no_number_of_steps_of_as_many_rows(data, rows, each, stops):
    """Whatever processes and accumulated batches a step's rows are divided among, each time the epoch goes on."""
    of_a_step = 12 * each
    steps = -(-rows // of_a_step)
    progress, seen, done = begun, set(), 0
    for workers, stop in [*stops, (1, steps)]:
        divided = data.draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (3, 1), (2, 2), (4, 3), (6, 1), (12, 1)]))
        world_size, accumulated = divided
        more = min(stop, steps - done)
        shares = Shares(world_size, workers, of_a_step // (world_size * accumulated), even=True)
        batches = of_all(progress, rows, shares)
        assert {-(-len(own) // accumulated) for own in batches} == {steps - done}
        seen |= set(chain.from_iterable(batch for own in batches for batch in own[: more * accumulated]))
        progress, done = progress.after(shares, more * accumulated), done + more
        assert set(progress.unseen(rows).tolist()) == set(range(rows)) - seen
        assert len(seen) == min(rows, of_a_step * done), "no row of a step was seen before"


@given(st.integers(0, 9), st.lists(st.tuples(divisions, st.integers(0, 6)), max_size=3))
def test_progress_is_json(epoch, stops):
    progress = Progress(epoch, {"seed": 3}, [])
    for shares, stop in stops:
        progress = progress.after(shares, stop)
    assert Progress.from_dict(progress.to_dict()) == progress


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "the progress of a stream must hold a JSON object, found list. Give what its `progress` returned."),
        ({"epoch": 0, "order": {}}, "`stretches` in the progress of a stream must be a valid list, found None"),
        ({"epoch": -1, "order": {}, "stretches": []}, "`epoch` in .* must be greater than or equal to 0, found -1"),
        ({"epoch": 0, "order": {}, "stretches": [3]}, "the progress of a stream must hold a JSON object, found int"),
        ({"epoch": 0, "order": {}, "stretches": [{"batch_size": 0}]}, "`batch_size` in .* or equal to 1, found 0"),
    ],
)
def test_what_is_no_progress(content, message):
    with pytest.raises(FormatError, match=message):
        Progress.from_dict(content)

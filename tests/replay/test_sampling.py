"""Which row and view comes when: every row in every epoch, every view once in V epochs, pairs side by side."""

from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import quick

from hf_dr.errors import ConfigError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.names import DIFFICULTIES
from hf_dr.replay.reinforced_data import MappedReinforcedData
from hf_dr.replay.sampling import ReinforcedSampler
from hf_dr.replay.view_requests import fresh_view, ranked_view
from hf_dr.views.augmentation import NO_PARTNER, Augmentation
from hf_dr.views.ops.geometry import RandomHorizontalFlip, RandomResizedCrop
from hf_dr.views.ops.mixing import MixUp

ROWS, VIEWS = 12, 4
FROZEN = {
    ("plain", "all"):
        [(1, -1), (5, 3), (8, -1), (9, -1), (7, 0), (4, -1), (11, 1), (6, -1), (3, -1), (0, -1), (2, -1), (10, 3)],
    ("mixing", "all"):
        [(8, -1), (5, 2), (2, -1), (10, 2), (3, -1), (7, 2), (4, -1), (1, -1), (9, -1), (11, 2), (6, -1), (0, -1)],
    ("plain", "random"):
        [(4, 2), (7, 3), (10, 0), (11, 0), (5, 3), (8, 0), (9, 3), (6, 3), (0, -1), (1, 2), (2, -1), (3, -1)],
    ("mixing", "random"):
        [(1, -1), (6, 3), (4, 3), (0, -1), (10, 3), (2, -1), (3, -1), (11, 3), (5, -1), (7, -1), (9, 3), (8, -1)],
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_dataset, tiny_teacher) -> ReinforcedDataset:
    """A "+" dataset that does not mix."""
    folder = tmp_path_factory.mktemp("plain")
    augmentation = Augmentation([RandomResizedCrop(8), RandomHorizontalFlip()])
    reinforce(tiny_dataset, tiny_teacher, augmentation, ReinforceConfig(str(folder), num_views=VIEWS, top_k=3))
    return load_reinforced(folder)


@pytest.fixture(params=["plain", "mixing"])
def either(request: pytest.FixtureRequest, plain: ReinforcedDataset, tiny_plus: ReinforcedDataset) -> ReinforcedDataset:
    return plain if request.param == "plain" else tiny_plus


def epoch(sampler: ReinforcedSampler, number: int) -> list[tuple[int, int]]:
    sampler.set_epoch(number)
    return list(sampler)


def partner_of(dataset: ReinforcedDataset, row: int, view: int) -> int:
    """Row of the partner, by the stored column."""
    return dataset.params(row, view)["partner"]


def test_epochs_count_from_0(tiny_plus):
    for chosen in (tiny_plus, ReinforcedSampler(tiny_plus)):
        with pytest.raises(ConfigError, match="`epoch` must be a whole number of at least 0, got -1"):
            chosen.set_epoch(-1)
        assert chosen.epoch == 0
        for wrong in (1.9, 1.0, "3", True, np.bool_(True), None, np.float32(2)):
            with pytest.raises(ConfigError, match="`epoch` must be a whole number of at least 0, got"):
                chosen.set_epoch(wrong)
        assert chosen.epoch == 0
        for number in (3, np.int64(3), torch.tensor(3)):
            chosen.set_epoch(number)
            assert (chosen.epoch, type(chosen.epoch)) == (3, int)
        chosen.set_epoch(0)


@pytest.mark.parametrize("view_order", ["all", "random"])
def test_each_row_once_an_epoch(either, view_order):
    sampler = ReinforcedSampler(either, view_order=view_order)
    assert len(sampler) == ROWS
    orders = []
    for number in range(5):
        rows, views = zip(*epoch(sampler, number), strict=True)
        assert sorted(rows) == list(range(ROWS))
        assert set(views) <= set(range(VIEWS))
        orders.append(rows)
    assert len(set(orders)) == 5, "each epoch has its own order"


def test_each_view_of_each_row_once_in_as_many_epochs_as_views(either):
    sampler = ReinforcedSampler(either)
    everything = sorted((row, view) for row in range(ROWS) for view in range(VIEWS))
    for cycle in range(3):
        seen = [pair for number in range(VIEWS) for pair in epoch(sampler, cycle * VIEWS + number)]
        assert sorted(seen) == everything


def test_fewer_views_than_stored(tiny_folder):
    dataset = load_reinforced(tiny_folder, num_views=3)
    seen = [pair for number in range(3) for pair in epoch(ReinforcedSampler(dataset), number)]
    assert sorted(seen) == [(row, view) for row in range(ROWS) for view in range(3)]


def test_rows_show_different_views_in_one_epoch_unless_they_are_mixed(plain, tiny_plus):
    assert len({view for _, view in epoch(ReinforcedSampler(plain), 0)}) > 1
    for view_order in ("all", "random"):
        sampler = ReinforcedSampler(tiny_plus, view_order=view_order)
        for number in range(6):
            assert len({view for _, view in epoch(sampler, number)}) == 1


@pytest.mark.parametrize("view_order", ["all", "random"])
def test_pairs_follow_each_other_from_even_places(tiny_plus, view_order):
    sampler = ReinforcedSampler(tiny_plus, view_order=view_order)
    mixed = 0
    for number in range(8):
        order = epoch(sampler, number)
        for (first, view), (second, _) in zip(order[::2], order[1::2], strict=True):
            partners = partner_of(tiny_plus, first, view), partner_of(tiny_plus, second, view)
            # Each of a pair draws for itself whether it mixes; who does not has no partner.
            assert partners[0] in (second, NO_PARTNER)
            assert partners[1] in (first, NO_PARTNER)
            mixed += sum(partner != NO_PARTNER for partner in partners)
    assert mixed > 8


@pytest.mark.parametrize("batch", [2, 4])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_see_together_what_one_sees(either, processes, batch):
    samplers = [ReinforcedSampler(either, num_replicas=processes, rank=rank) for rank in range(processes)]
    for number in range(3):
        alone = epoch(ReinforcedSampler(either), number)
        parts = [epoch(sampler, number) for sampler in samplers]
        assert {len(part) for part in parts} == {len(samplers[0])}
        order = [
            index
            for at in range(0, len(parts[0]), batch)
            for two in range(at, min(at + batch, len(parts[0])), 2)
            for part in parts
            for index in part[two : two + 2]
        ]
        assert order[:ROWS] == alone
        assert order[ROWS:] == alone[: len(order) - ROWS], "the first ones come again"
        assert len(order) - ROWS < 2 * processes


def test_processes_of_which_some_have_no_rows_of_their_own(plain):
    """They see what others see."""
    few = plain.select([0, 1, 2])
    parts = [epoch(ReinforcedSampler(few, num_replicas=7, rank=rank), 0) for rank in range(7)]
    assert [len(part) for part in parts] == [2] * 7
    assert {row for part in parts for row, _ in part} == {0, 1, 2}


@pytest.mark.parametrize(
    ("rank", "processes", "message"),
    [(2, 2, "must be from 0 to `num_replicas` - 1, got rank 2 of 2. Give"),
     (-1, 2, "`rank` must be a whole number of at least 0, got -1"),
     (0, 0, "`num_replicas` must be a whole number of at least 1, got 0")],
)  # fmt: skip
def test_a_rank_is_one_of_the_processes(plain, rank, processes, message):
    with pytest.raises(ConfigError, match=message):
        ReinforcedSampler(plain, num_replicas=processes, rank=rank)


def test_the_odd_row_out_comes_last(tmp_path, tiny_dataset, tiny_teacher):
    augmentation = Augmentation([RandomResizedCrop(8), MixUp(p=1.0)])
    config = ReinforceConfig(str(tmp_path), num_views=2, top_k=2, shard_size=4)
    reinforce(tiny_dataset.select(range(11)), tiny_teacher, augmentation, config)
    dataset = load_reinforced(tmp_path)
    for number in range(4):
        order = epoch(ReinforcedSampler(dataset), number)
        assert sorted(row for row, _ in order) == list(range(11))
        assert partner_of(dataset, *order[-1]) == NO_PARTNER
        for (first, view), (second, _) in zip(order[:-1:2], order[1:-1:2], strict=True):
            assert partner_of(dataset, first, view) == second
            assert partner_of(dataset, second, view) == first


def test_pairs_of_shards(tmp_path, tiny_dataset, tiny_teacher):
    augmentation = Augmentation([RandomResizedCrop(8), MixUp(p=1.0)])
    config = ReinforceConfig(str(tmp_path), num_views=3, top_k=2, shard_size=5, mixing_scope="shard")
    reinforce(tiny_dataset, tiny_teacher, augmentation, config)
    dataset = load_reinforced(tmp_path)
    for number in range(3):
        order = epoch(ReinforcedSampler(dataset), number)
        assert sorted(row for row, _ in order) == list(range(ROWS))
        assert sum(partner_of(dataset, *index) == NO_PARTNER for index in order) == 2  # shards of 5, 5 and 2 rows
        for (first, view), (second, _) in zip(order[::2], order[1::2], strict=True):
            assert partner_of(dataset, first, view) in (second, NO_PARTNER)


@pytest.mark.parametrize("probability", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("view_order", ["all", "random"])
def test_rows_without_stored_views(tmp_path, tiny_dataset, tiny_teacher, view_order, probability):
    """They are newly drawn in every epoch, among the others, and part no pair."""
    augmentation = Augmentation([RandomResizedCrop(8), MixUp(p=1.0)])
    config = ReinforceConfig(str(tmp_path), num_views=3, top_k=2, overlay=True, max_examples=6)
    reinforce(tiny_dataset, tiny_teacher, augmentation, config)
    dataset = load_reinforced(tmp_path, base=tiny_dataset, unreinforced=True)
    sampler = ReinforcedSampler(dataset, view_order=view_order, reinforced_probability=probability)
    first_places = set()
    for number in range(8):
        order = epoch(sampler, number)
        assert sorted(row for row, _ in order) == list(range(ROWS))
        views = dict(order)
        assert all(views[row] == fresh_view(number) for row in range(6, ROWS))
        drawn = [row for row in range(6) if views[row] == fresh_view(number)]
        assert not drawn if probability == 1 else len(drawn) == 6 if probability == 0 else True
        for view in {views[row] for row in range(6) if row not in drawn}:
            for (first, _), (second, _) in zip(order[::2], order[1::2], strict=True):
                assert first > 5 or partner_of(dataset, first, view) == second
                assert second > 5 or partner_of(dataset, second, view) == first
        first_places.add(next(place for place, (row, _) in enumerate(order) if row > 5))
    assert len(first_places) > 1


@pytest.mark.parametrize("view_order", ["all", "random"])
def test_the_order_is_keyed(either, view_order):
    def orders(seed: int) -> list[list[tuple[int, int]]]:
        sampler = ReinforcedSampler(either, seed=seed, view_order=view_order, reinforced_probability=0.5)
        return [epoch(sampler, number) for number in (0, 1, 2)]

    torch.manual_seed(1)
    first = orders(0)
    torch.manual_seed(2)
    assert first == orders(0), "the global generators have no say"
    assert first != orders(1)
    sampler = ReinforcedSampler(either, view_order=view_order, reinforced_probability=0.5)
    assert epoch(sampler, 2) == first[2], "an epoch does not depend on those before it"


@pytest.mark.parametrize("view_order", ["all", "random"])
def test_the_order_is_for_ever(plain, tiny_plus, view_order):
    """Else a training that is resumed would go on with other rows; -1 stands for new views."""
    for name, dataset in (("plain", plain), ("mixing", tiny_plus)):
        sampler = ReinforcedSampler(dataset, seed=5, view_order=view_order, reinforced_probability=0.7)
        order = [(row, -1 if view == fresh_view(3) else view) for row, view in epoch(sampler, 3)]
        assert order == FROZEN[name, view_order]


def test_random_views_repeat(plain):
    sampler = ReinforcedSampler(plain, view_order="random")
    seen = [pair for number in range(VIEWS) for pair in epoch(sampler, number)]
    assert len(set(seen)) < len(seen)
    views = np.array([view for number in range(50) for _, view in epoch(sampler, number)])
    counts = np.bincount(views, minlength=VIEWS)
    assert abs(counts / counts.sum() - 1 / VIEWS).max() < 0.06  # 600 draws: three standard errors


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_share_of_unreinforced_samples(either, probability):
    sampler = ReinforcedSampler(either, reinforced_probability=probability)
    fresh = []
    for number in range(100):
        for row, view in epoch(sampler, number):
            assert view in (fresh_view(number), *range(VIEWS))
            fresh.append((row, view == fresh_view(number)))
    share = np.mean([is_fresh for _, is_fresh in fresh])
    if probability == 0.5:
        assert abs(share - 0.5) < 0.05  # 1,200 draws: more than three standard errors
        each = [np.mean([is_fresh for row, is_fresh in fresh if row == wanted]) for wanted in range(ROWS)]
        assert min(each) > 0.3, "every row takes part"
    else:
        assert share == 1 - probability


def test_unreinforced_samples_change_neither_order_nor_pairs(tiny_plus):
    some, none = (ReinforcedSampler(tiny_plus, reinforced_probability=p) for p in (0.5, 1.0))
    for number in range(4):
        for (row, view), (same_row, same_view) in zip(epoch(some, number), epoch(none, number), strict=True):
            assert row == same_row
            assert view in (same_view, fresh_view(number))


def test_filtered_rows(tiny_plus, plain):
    keep = [0, 2, 3, 5, 8, 11]
    fewer = ReinforcedDataset(plain.plus.select(keep), plain.provenance)
    seen = [pair for number in range(VIEWS) for pair in epoch(ReinforcedSampler(fewer), number)]
    assert sorted(seen) == [(row, view) for row in range(len(keep)) for view in range(VIEWS)]

    fewer = ReinforcedDataset(tiny_plus.plus.select(keep), tiny_plus.provenance)
    for number in range(VIEWS):
        order = epoch(ReinforcedSampler(fewer), number)
        assert sorted(row for row, _ in order) == list(range(len(keep)))
        partners = {row: partner_of(fewer, row, view) for row, view in order}
        whole = [row for row, partner in partners.items() if partner in keep]
        places = {row: place for place, (row, _) in enumerate(order)}
        for row in whole:
            assert places[keep.index(partners[row])] == places[row] ^ 1


def test_rows_without_reinforcement_are_never_drawn(tmp_path, tiny_dataset, tiny_teacher):
    images = tiny_dataset.cast_column("image", datasets.Image(decode=False))["image"][:]
    images[4] = {"bytes": b"no image", "path": None}
    damaged = datasets.Dataset.from_dict(
        {"image": images, "label": tiny_dataset["label"][:]}, features=tiny_dataset.features, split="train"
    )
    augmentation = Augmentation([RandomResizedCrop(8), MixUp(p=1.0)])
    config = ReinforceConfig(str(tmp_path), num_views=2, top_k=2, on_bad_image="skip")
    reinforce(damaged, tiny_teacher, augmentation, config)
    dataset = load_reinforced(tmp_path)
    assert len(dataset) == ROWS - 1
    for number in range(4):
        order = epoch(ReinforcedSampler(dataset), number)
        assert sorted(row for row, _ in order) == list(range(ROWS - 1))
        assert {dataset.source_rows[row] for row, _ in order} == set(range(ROWS)) - {4}
        dataset.__getitems__(order)
        for (first, view), (second, _) in zip(order[:-1:2], order[1:-1:2], strict=True):
            assert partner_of(dataset, first, view) == dataset.source_rows[second]


def test_refusals(tiny_plus, tmp_path: Path, tiny_dataset, tiny_teacher):
    with pytest.raises(
        ConfigError, match=r"returns without `streaming=True`, got PosixPath\. Open the .*`load_reinforced"
    ):
        ReinforcedSampler(tmp_path)
    with pytest.raises(
        ConfigError, match="`view_order` must be one of all, random, easy_first, hard_first, got 'shuffled'"
    ):
        ReinforcedSampler(tiny_plus, view_order="shuffled")
    for impossible in (-0.1, 1.5, float("nan"), "0.5", None):
        with pytest.raises(ConfigError, match=f"`reinforced_probability` must be between 0 and 1, got {impossible!r}"):
            ReinforcedSampler(tiny_plus, reinforced_probability=impossible)
    augmentation = Augmentation([RandomResizedCrop(8)])
    config = ReinforceConfig(str(tmp_path), num_views=2, top_k=2, label_column="none")
    reinforce(tiny_dataset, tiny_teacher, augmentation, config)
    unlabeled = load_reinforced(tmp_path)
    assert len(list(ReinforcedSampler(unlabeled))) == ROWS
    with pytest.raises(ConfigError, match=r"must be 1 for a dataset without labels, got 0\.99\. Set it to 1, in `Rein"):
        ReinforcedSampler(unlabeled, reinforced_probability=0.99)


# ------------------------------------------------------------------------------------------------------------ difficulty


def ranks(views: int, epoch: int, epochs: int, seed: int = 0, rows: int = 60) -> np.ndarray:
    """The ranks that rows show in an epoch of a training, by `scheduled_ranks`."""
    data = SimpleNamespace(num_views=views, seed=seed, source_rows=np.arange(rows))
    return MappedReinforcedData.scheduled_ranks(data, np.arange(rows), epoch, epochs)


@quick
@given(views=st.integers(1, 30), epochs=st.integers(1, 40), seed=st.integers(0, 2**62))
def test_ranks_rise_over_the_training(views, epochs, seed):
    shown = np.stack([ranks(views, epoch, epochs, seed, rows=7) for epoch in range(epochs)])
    for epoch, row in enumerate(shown):
        assert (row >= epoch * views // epochs).all()
        assert (row <= max(epoch * views // epochs, -(-(epoch + 1) * views // epochs) - 1)).all()
    steps = np.diff(shown, axis=0)
    assert (steps >= (1 if epochs <= views else 0)).all()
    assert len(np.unique(shown)) == views if epochs >= views else True


@pytest.mark.parametrize("times", [1, 2, 5])
def test_each_rank_equally_often_where_views_go_into_epochs(times):
    for epoch in range(7 * times):
        assert set(ranks(7, epoch, 7 * times)) == {epoch // times}


def test_rows_and_seeds_draw_their_own_rank_of_a_window():
    first = ranks(50, 0, 5, rows=4000)
    assert abs(np.bincount(first, minlength=10) - 400).max() < 90  # of ten ranks; more than four standard errors
    assert (first != ranks(50, 0, 5, seed=1, rows=4000)).mean() == pytest.approx(0.9, abs=0.03)
    assert (first + 10 != ranks(50, 1, 5, rows=4000)).mean() == pytest.approx(0.9, abs=0.03)
    np.testing.assert_array_equal(first[:10], ranks(50, 0, 5, rows=10))


@pytest.mark.parametrize("by", DIFFICULTIES)
@pytest.mark.parametrize("view_order", ["easy_first", "hard_first"])
def test_views_come_by_their_difficulty(plain, view_order, by):
    sampler = ReinforcedSampler(plain, view_order=view_order, view_difficulty=by, num_epochs=VIEWS)
    orders, shown = set(), np.zeros((ROWS, VIEWS))
    for number in range(VIEWS):
        order = epoch(sampler, number)
        orders.add(tuple(row for row, _ in order))
        assert sorted(row for row, _ in order) == list(range(ROWS))
        for row, view in order:
            shown[row, number] = plain.difficulties(row, by)[plain.resolved(row, view)]
    everything = np.sort(np.stack([plain.difficulties(row, by) for row in range(ROWS)]), axis=1)
    np.testing.assert_array_equal(shown if view_order == "easy_first" else shown[:, ::-1], everything)
    assert len(orders) == VIEWS, "each epoch has its own order"


def test_new_views_among_those_by_difficulty(tmp_path, tiny_dataset, tiny_teacher):
    config = ReinforceConfig(str(tmp_path), num_views=3, top_k=2, overlay=True, max_examples=6)
    reinforce(tiny_dataset, tiny_teacher, Augmentation([RandomResizedCrop(8)]), config)
    dataset = load_reinforced(tmp_path, base=tiny_dataset, unreinforced=True)
    sampler = ReinforcedSampler(dataset, view_order="easy_first", num_epochs=3, reinforced_probability=0.5)
    drawn = 0
    for number in range(3):
        views = dict(epoch(sampler, number))
        for row, view in views.items():
            assert view in ({fresh_view(number), ranked_view(number, "entropy")} if row < 6 else {fresh_view(number)})
            drawn += row < 6 and view == fresh_view(number)
            assert dataset[row, view]["reinforced"] == (view != fresh_view(number))
    assert 0 < drawn < 18
    with pytest.raises(IndexError, match="rank 0 of 0 views"):
        dataset[7, ranked_view(0, "entropy")]


def test_an_order_by_difficulty_that_cannot_be(plain, tiny_plus, tmp_path, tiny_dataset, tiny_teacher):
    message = r"`num_epochs` must be the epochs of the whole training for `view_order` easy_first, got None\. Give it"
    with pytest.raises(ConfigError, match=message):
        ReinforcedSampler(plain, view_order="easy_first")
    for wrong in (0, "4", 4.5, True):
        for view_order in ("easy_first", "all"):
            with pytest.raises(ConfigError, match=rf"`num_epochs` must be a whole number.*, got {wrong!r}"):
                ReinforcedSampler(plain, view_order=view_order, num_epochs=wrong)
    with pytest.raises(ConfigError, match=r"must be all or random for a dataset that mixes, got hard_first: two rows"):
        ReinforcedSampler(tiny_plus, view_order="hard_first", num_epochs=4)
    with pytest.raises(ConfigError, match="`view_difficulty` must be one of entropy, cross_entropy, got 'loss'"):
        ReinforcedSampler(plain, view_order="easy_first", num_epochs=4, view_difficulty="loss")
    sampler = ReinforcedSampler(plain, view_order="easy_first", num_epochs=4)
    with pytest.raises(
        ConfigError, match=r"`epoch` must be below `num_epochs`, 4, over which views are spread, got 4\."
    ):
        epoch(sampler, 4)
    made = {}
    for name, settings in (("drawn", {"signal": "sampled"}), ("unlabelled", {"label_column": "none"})):
        config = ReinforceConfig(str(tmp_path / name), num_views=2, top_k=2, **settings)
        reinforce(tiny_dataset, tiny_teacher, Augmentation([RandomResizedCrop(8)]), config)
        made[name] = load_reinforced(tmp_path / name)
    with pytest.raises(
        ConfigError, match="must be all or random for the signal `sampled`, got easy_first: drawn classes"
    ):
        ReinforcedSampler(made["drawn"], view_order="easy_first", num_epochs=4)
    with pytest.raises(
        ConfigError, match=r"`view_difficulty` must be entropy for a dataset without labels, got cross_ent"
    ):
        ReinforcedSampler(made["unlabelled"], view_order="easy_first", num_epochs=4, view_difficulty="cross_entropy")
    assert len(epoch(ReinforcedSampler(made["unlabelled"], view_order="easy_first", num_epochs=4), 0)) == ROWS

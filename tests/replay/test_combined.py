"""Several "+" datasets of one base: each view as its own part replays it, over rows that all have, pairs kept together."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import CLASSES, as_cell, colour_image

from hf_dr.errors import ConfigError, DataError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.replay.combined import CombinedReinforcedDataset
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.names import DIFFICULTIES
from hf_dr.replay.sampling import ReinforcedSampler
from hf_dr.replay.view_requests import fresh_view, ranked_view
from hf_dr.views.augmentation import NO_PARTNER, Augmentation
from hf_dr.views.ops.geometry import RandomHorizontalFlip, RandomResizedCrop, Resize
from hf_dr.views.ops.mixing import MixUp

ROWS = 12
CROP = Augmentation([RandomResizedCrop(8)])
FLIP = Augmentation([Resize((8, 8)), RandomHorizontalFlip()])
MIX = Augmentation([RandomResizedCrop(8), MixUp(p=1.0)])
VIEWS = {"crop": 2, "flip": 3, "mix": 4}
K = {"crop": 3, "flip": 2, "mix": 5}
PARTS = [("crop", "flip"), ("crop", "mix"), ("mix", "flip", "crop"), ("mix", "mix"), ("flip",)]

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory, tiny_dataset, tiny_teacher) -> Make:
    """Returns `make(name, ...)`: the folder of a "+" dataset, made once."""
    made: dict[str, Path] = {}

    def make(
        name: str, augmentation: Augmentation | None = None, base: datasets.Dataset = tiny_dataset, **settings
    ) -> Path:
        key = f"{name} {settings} {base._fingerprint}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp(name)
            augmentation = augmentation or {"crop": CROP, "flip": FLIP, "mix": MIX}[name]
            config = {"config_name": name, "num_views": VIEWS.get(name, 2), "top_k": K.get(name, 3), "shard_size": 5}
            reinforce(base, tiny_teacher, augmentation, ReinforceConfig(str(made[key]), **{**config, **settings}))
        return made[key]

    return make


@pytest.fixture(params=PARTS, ids="+".join)
def parts(request, make) -> list[ReinforcedDataset]:
    return [load_reinforced(make(name)) for name in request.param]


@pytest.fixture
def combined(parts) -> CombinedReinforcedDataset:
    return CombinedReinforcedDataset(parts)


def same(item: dict, other: dict, k: int) -> bool:
    """Whether an item is another one's, with its best K."""
    return item.keys() == other.keys() and all(
        torch.equal(item[key], value[:k] if key.startswith("teacher") else value)
        if isinstance(value, torch.Tensor)
        else item[key] == value
        for key, value in other.items()
    )


# ---------------------------------------------------------------------------------------------------------------- views


def test_views_are_counted_through_and_are_those_of_the_parts(parts, combined):
    k = min(part.provenance.top_k for part in parts)
    assert combined.num_views == sum(part.num_views for part in parts)
    assert combined.top_k == k
    own = [(part, view) for part in parts for view in range(part.num_views)]
    for view, (part, number) in enumerate(own):
        assert (parts[combined.part_of(view)[0]], combined.part_of(view)[1]) == (part, number)
        for row in range(ROWS):
            assert same(combined[row, view], part[row, number], k)
    indices = [(row, view) for view in range(combined.num_views) for row in (3, 0, -1)]
    items = combined.__getitems__(indices)
    for index, item in zip(indices, items, strict=True):
        assert same(item, combined[index], k)


def test_the_best_answers_are_kept_exactly(parts, combined):
    for view in range(combined.num_views):
        number, own = combined.part_of(view)
        ids, logprobs = parts[number].teacher_answer(5, own)
        item = combined[5, view]
        assert item["teacher_ids"].tolist() == ids[: combined.top_k].tolist()
        assert item["teacher_logprobs"].tolist() == logprobs[: combined.top_k].tolist()


def test_each_view_of_each_part_once_in_as_many_epochs(combined):
    everything = sorted((row, view) for row in range(ROWS) for view in range(combined.num_views))
    for view_order in ("all", "random"):
        sampler = ReinforcedSampler(combined, view_order=view_order)
        seen = []
        for epoch in range(combined.num_views):
            sampler.set_epoch(epoch)
            indices = list(sampler)
            assert sorted(row for row, _ in indices) == list(range(ROWS))
            seen += indices
            if combined.paired:
                assert len({view for _, view in indices}) == 1, "pairs are matched by view"
        if view_order == "all":
            assert sorted(seen) == everything


@pytest.mark.parametrize("by", DIFFICULTIES)
def test_views_of_all_parts_come_by_their_difficulty(make, by):
    """All seen by the K classes of the part that has the fewest."""
    parts = [load_reinforced(make(name)) for name in ("crop", "flip")]
    both = CombinedReinforcedDataset(parts)
    fewer = [make("crop", top_k=2), make("flip")]
    for row in range(ROWS):
        expected = np.concatenate([load_reinforced(folder).difficulties(row, by) for folder in fewer])
        np.testing.assert_array_equal(both.difficulties(row, by), expected)
        for rank, view in enumerate(np.argsort(expected, kind="stable").tolist()):
            assert same(both[row, ranked_view(rank, by)], both[row, view], both.top_k)
    sampler = ReinforcedSampler(both, view_order="hard_first", view_difficulty=by, num_epochs=5)
    for epoch in range(5):
        sampler.set_epoch(epoch)
        assert sorted(sampler) == [(row, ranked_view(4 - epoch, by)) for row in range(ROWS)]


def test_an_index_without_a_view_means_the_epochs(combined):
    for epoch in range(combined.num_views):
        combined.set_epoch(epoch)
        view = int(combined.scheduled_views(4, epoch))
        assert torch.equal(combined[4]["pixel_values"], combined[4, view]["pixel_values"])


def test_pairs_stay_together_in_views_that_mix(combined):
    sampler, mixed = ReinforcedSampler(combined), 0
    for epoch in range(combined.num_views):
        sampler.set_epoch(epoch)
        indices = list(sampler)
        for (first, view), (second, _) in zip(indices[::2], indices[1::2], strict=True):
            number, own = combined.part_of(view)
            if combined.parts[number].mixes:
                partner = combined.parts[number].params(first, own)["partner"]
                assert partner == second != NO_PARTNER
                mixed += 1
    assert mixed == sum(part.num_views for part in combined.parts if part.mixes) * ROWS // 2


def test_a_pair_is_decoded_once(make, decoded):
    combined = load_reinforced([make("mix"), make("crop")])
    combined.__getitems__([(row, 1) for row in range(ROWS)])
    assert len(decoded) == ROWS


def test_fresh_views_are_drawn_by_the_part_whose_turn_it_is(combined):
    drawn = set()
    for epoch in range(combined.num_views):
        for row in range(ROWS):
            number = combined.part_of(int(combined.scheduled_views(row, epoch)))[0]
            item = combined[row, fresh_view(epoch)]
            assert same(item, combined.parts[number][row, fresh_view(epoch)], combined.top_k)
            assert not item["reinforced"]
            drawn.add(number)
    assert drawn == set(range(len(combined.parts)))


def test_what_training_asks(parts, combined, tiny_dataset):
    assert combined.labels.tolist() == list(tiny_dataset["label"])
    assert (combined.class_names, combined.size, combined.num_classes) == (list(CLASSES), (8, 8), len(CLASSES))
    assert combined.fingerprint.split() == [part.provenance.fingerprint for part in parts]
    assert combined.all_reinforced


def test_workers_of_a_loader(make):
    combined = load_reinforced([make("mix"), make("flip")])
    sampler = ReinforcedSampler(combined)
    loaders = [torch.utils.data.DataLoader(combined, batch_size=4, sampler=sampler, num_workers=n) for n in (0, 2)]
    for one, other in zip(*loaders, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


# ----------------------------------------------------------------------------------------------------------------- rows


def test_rows_that_a_part_lacks_are_left_out(make, caplog):
    crop, mix = (load_reinforced(make(name)) for name in ("crop", "mix"))
    keep = {id(crop): [11, 0, 2, 3, 5, 8], id(mix): [0, 1, 2, 3, 9, 8, 11]}
    fewer = [ReinforcedDataset(part.plus.select(keep[id(part)]), part.provenance) for part in (crop, mix)]
    combined = CombinedReinforcedDataset(fewer)
    assert "3 rows are not reinforced in every part and are left out" in caplog.text
    common = [0, 2, 3, 8, 11]
    assert combined.source_rows.tolist() == common
    assert combined.labels.tolist() == crop.labels[common].tolist()
    for place, row in enumerate(common):
        assert torch.equal(combined[place, 1]["pixel_values"], crop[row, 1]["pixel_values"])
    for view in range(VIEWS["mix"]):
        couples, singles = combined.pairs(VIEWS["crop"] + view)
        assert sorted([*couples.ravel(), *singles]) == list(range(5))
        for first, second in couples.tolist():
            assert mix.params(common[first], view)["partner"] == common[second]
        partners = [mix.params(common[row], view)["partner"] for row in singles]
        assert not set(partners) & set(common)


def test_no_rows_in_common(make):
    crop, flip = (load_reinforced(make(name)) for name in ("crop", "flip"))
    halves = [
        ReinforcedDataset(p.plus.select(rows), p.provenance) for p, rows in ((crop, range(6)), (flip, range(6, 12)))
    ]
    with pytest.raises(DataError, match=r"must have reinforced rows in common, found none\. Reinforce the same rows\."):
        CombinedReinforcedDataset(halves)


# -------------------------------------------------------------------------------------------------------------- opening


def test_paths_or_names_or_both(make, tmp_path, tiny_dataset, tiny_teacher):
    for name in ("crop", "mix"):
        config = ReinforceConfig(str(tmp_path), name, num_views=VIEWS[name], top_k=K[name])
        reinforce(tiny_dataset, tiny_teacher, {"crop": CROP, "mix": MIX}[name], config)
    for path, name in (
        (tmp_path, ["crop", "mix"]),
        ([tmp_path, str(tmp_path)], ["crop", "mix"]),
        ([make("crop"), tmp_path], [None, "mix"]),
        ([tmp_path / "crop", make("mix")], None),
    ):
        combined = load_reinforced(path, name, num_views=2, seed=5)
        assert isinstance(combined, CombinedReinforcedDataset)
        assert [provenance.config_name for provenance in combined.provenances] == ["crop", "mix"]
        assert (combined.num_views, combined.seed) == (4, 5)
    assert isinstance(load_reinforced(tmp_path, "crop"), ReinforcedDataset)
    with pytest.raises(ConfigError, match=r"as many names as paths, got 2 paths and 1 names\. Name one for each"):
        load_reinforced([tmp_path, tmp_path], ["crop"])
    with pytest.raises(ConfigError, match='expected at least one "\\+" dataset, got none'):
        load_reinforced([])


def test_an_overlay_takes_its_images_from_another_part(make):
    whole = load_reinforced([make("crop"), make("mix")])
    for paths in ([make("crop"), make("mix", overlay=True)], [make("crop", overlay=True), make("mix")]):
        combined = load_reinforced(paths)
        for view in range(combined.num_views):
            assert torch.equal(combined[7, view]["pixel_values"], whole[7, view]["pixel_values"])
    with pytest.raises(DataError, match="is an overlay without images"):
        load_reinforced([make("crop", overlay=True), make("mix", overlay=True)])


def test_overlays_of_one_base(make, tiny_dataset):
    combined = load_reinforced([make("crop", overlay=True), make("mix")], base=tiny_dataset)
    only = load_reinforced([make("crop", overlay=True), make("mix", overlay=True)], base=tiny_dataset)
    assert torch.equal(combined[7, 3]["pixel_values"], only[7, 3]["pixel_values"])


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"name": "large", "augmentation": Augmentation([Resize((9, 8))])},
            r"the same size of the views, .* \(8, 8\) in part 0",
        ),
        ({"name": "flip", "label_column": "none"}, "the same supervision, but it is labels in part 0"),
    ],
    ids=["size", "labels"],
)
def test_parts_that_differ(make, other, message):
    with pytest.raises(ConfigError, match=message):
        load_reinforced([make("crop"), make(**other)])


def test_parts_of_other_classes(make):
    part = load_reinforced(make("crop"))
    changed = dataclasses.replace(part.provenance, num_classes=9)
    other = ReinforcedDataset(part.plus, changed)
    with pytest.raises(
        ConfigError, match=r"the same number of classes, but it is 8 in part 0 \(crop\) and 9 in part 1"
    ):
        CombinedReinforcedDataset([part, other])
    fewer = ReinforcedDataset(part.plus, dataclasses.replace(part.provenance, num_rows=13))
    with pytest.raises(ConfigError, match="the same number of rows of the base, but it is 12 in part 0"):
        CombinedReinforcedDataset([part, part, fewer])
    names = datasets.ClassLabel(names=list(CLASSES[::-1]))
    renamed = ReinforcedDataset(part.plus.cast_column("label", names), part.provenance)
    with pytest.raises(ConfigError, match=r"the same names of the classes, but it is \['black', .* in part 1 \(crop\)"):
        CombinedReinforcedDataset([part, renamed])


def test_another_base_is_refused_with_its_row(make, tiny_dataset, edit):
    image = as_cell(colour_image(np.random.default_rng(1), 3))
    cells = [image if row in (3, 8) else as_cell(tiny_dataset[row]["image"]) for row in range(ROWS)]
    other = tiny_dataset.remove_columns("image").add_column("image", cells, feature=datasets.Image())
    with pytest.raises(
        DataError, match=r"the image \(pixel hash\) of 2 rows differs, first of row 3: \d+ in part 0 \(crop\)"
    ):
        load_reinforced([make("crop"), make("flip", base=other)])
    part = load_reinforced(make("crop"))
    relabelled = edit(part, "label", lambda labels: labels + (np.arange(ROWS) == 2))
    with pytest.raises(DataError, match=r"the label of 1 rows differs, first of row 2: 2 in part 0 .*, 3 in part 1"):
        CombinedReinforcedDataset([part, relabelled])


def test_unreinforced_rows_have_no_part(make, tiny_dataset):
    base = datasets.concatenate_datasets([tiny_dataset, tiny_dataset.select([0])])
    parts = [
        load_reinforced(make(name, overlay=True, base=base, max_examples=ROWS), base=base, unreinforced=True)
        for name in ("crop", "flip")
    ]
    with pytest.raises(ConfigError, match="must be opened without `unreinforced`"):
        CombinedReinforcedDataset(parts)

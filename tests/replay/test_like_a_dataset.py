"""Reinforced data reads like a `datasets.Dataset`: its columns, slices and selections, and refusals where it cannot."""

import dataclasses
import math
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import CLASSES

from hf_dr.errors import ConfigError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.replay.augmented import AugmentedDataset
from hf_dr.replay.combined import CombinedReinforcedDataset
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.reinforced_data import MappedReinforcedData, checked_views
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomResizedCrop

CROP = Augmentation([RandomResizedCrop(8)])
ROWS = 12


@pytest.fixture(scope="module")
def unmixed(tmp_path_factory, tiny_dataset, tiny_teacher) -> ReinforcedDataset:
    config = ReinforceConfig(str(tmp_path_factory.mktemp("unmixed")), num_views=3, top_k=2, num_workers=0)
    numbered = tiny_dataset.add_column("number", list(range(100, 112)))
    reinforce(numbered, tiny_teacher, CROP, config)
    return load_reinforced(config.output_dir, columns=["number"])


@pytest.fixture(params=["one", "several", "labels"])
def data(request, unmixed, tiny_dataset) -> MappedReinforcedData:
    if request.param == "labels":
        return AugmentedDataset(tiny_dataset, CROP, image_column="image", label_column="label")
    return unmixed if request.param == "one" else CombinedReinforcedDataset([unmixed, unmixed])


def same(item: dict, other: dict) -> bool:
    pairs = [(item[name], other[name]) for name in item]
    return item.keys() == other.keys() and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs
    )


def test_it_says_what_it_holds(data):
    assert data.num_rows == len(data) == ROWS
    assert set(data[0]) == set(data.column_names)
    features = data.features
    assert features["labels"] == datasets.ClassLabel(names=list(CLASSES))
    for name in ("pixel_values", "teacher_ids", "teacher_logprobs"):
        encoded = features[name].dtype if name == "pixel_values" else features[name].feature.dtype
        assert str(data[0][name].dtype) == f"torch.{encoded}"
    assert features["pixel_values"].shape == tuple(data[0]["pixel_values"].shape)
    assert features["teacher_ids"].length == len(data[0]["teacher_ids"])


def test_it_prints_what_it_holds(unmixed, tiny_dataset):
    assert repr(unmixed) == (
        "ReinforcedDataset(\n    num_rows: 12\n    views: 3 of 8x8 pixels\n    answers: 2 of 8 classes by colours\n"
        "    columns: pixel_values, teacher_ids, teacher_logprobs, reinforced, labels, number\n)"
    )
    plain = AugmentedDataset(tiny_dataset, CROP, image_column="image", label_column="label")
    assert "answers: none, labels only" in repr(plain)
    assert repr(CombinedReinforcedDataset([unmixed, unmixed])).splitlines()[2:4] == [
        "    views: 6 of 8x8 pixels",
        "    answers: 2 of 8 classes by colours + colours",
    ]


def test_a_stream_says_what_it_holds(unmixed):
    folder = unmixed.shards[0].parent
    one, several = (load_reinforced(path, columns=["number"], streaming=True) for path in (folder, [folder, folder]))
    assert repr(one) == repr(unmixed).replace("ReinforcedDataset", "StreamedReinforcedDataset")
    assert repr(several).splitlines()[2:4] == [
        "    views: 6 of 8x8 pixels",
        "    answers: 2 of 8 classes by colours + colours",
    ]
    for stream in (one, several):
        assert stream.features == unmixed.features
        assert set(stream.column_names) == set(next(iter(stream)))
        assert (stream.num_rows, stream.split_by_node(0, 5, even=True).num_rows) == (ROWS, 3)


@pytest.mark.parametrize("index", [0, (0, 1), slice(0, 2), "labels"], ids=str)
def test_a_stream_has_no_rows_to_choose(unmixed, index):
    stream = load_reinforced(unmixed.shards[0].parent, streaming=True)
    with pytest.raises(
        ConfigError,
        match=rf"no rows or columns to choose, got the index {re.escape(repr(index))}\. Iterate over it, or",
    ):
        stream[index]


def test_a_teachers_name_stays_in_its_line(unmixed):
    members = [{**unmixed.provenance.teacher["members"][0], "id": "a\n\x1b[31mb"}]
    teacher = {**unmixed.provenance.teacher, "members": members}
    renamed = ReinforcedDataset(unmixed.plus, dataclasses.replace(unmixed.provenance, teacher=teacher))
    assert len(repr(renamed).splitlines()) == len(repr(unmixed).splitlines())


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (slice(0, 4), [0, 1, 2, 3]),
        (slice(None, None, -5), [11, 6, 1]),
        (slice(20, 30), []),
        ([0, 3], [0, 3]),
        (range(2, 5), [2, 3, 4]),
        (np.array([3, -1]), [3, 11]),
        (torch.tensor([5]), [5]),
    ],
    ids=str,
)
def test_slices_and_lists_are_items(data, index, rows):
    found = data[index]
    assert len(found) == len(rows)
    assert all(same(item, data[row]) for item, row in zip(found, rows, strict=True))


def test_a_list_may_name_views(unmixed):
    first, second = unmixed[[(0, 2), 3]]
    assert same(first, unmixed[0, 2])
    assert same(second, unmixed[3])
    assert same(unmixed[np.int64(3), np.int64(1)], unmixed[3, 1])
    assert same(unmixed[torch.tensor(3)], unmixed[3])


def test_columns_of_rows(data, unmixed, tiny_dataset):
    assert data["labels"].tolist() == tiny_dataset["label"][:]
    assert unmixed["number"] == list(range(100, 112))
    with pytest.raises(KeyError, match=r"`teacher_ids` differs from view to view.*Read it from items: `data\[i\]"):
        data["teacher_ids"]
    with pytest.raises(KeyError, match=r"there is no column `label`\. Did you mean `labels`\?"):
        data["label"]


@pytest.mark.parametrize(
    "index", [1.0, None, True, (0, 1, 2), (0, 1.5), (0, True), [0, "labels"], [True, False], {}], ids=str
)
def test_what_is_no_index(data, index):
    with pytest.raises(
        TypeError, match="expected a row, a pair of row and view, a slice, a list of these or a column's name"
    ):
        data[index]


def test_numbers_that_are_impossible(unmixed):
    for seed in (-1, 1 << 64):
        with pytest.raises(ConfigError, match=rf"`seed` must be a whole number from 0 to 2\*\*64 - 1, got {seed}"):
            unmixed.train_test_split(0.2, seed=seed)
    assert len(unmixed.train_test_split(np.int64(5))["test"]) == 5
    with pytest.raises(ConfigError, match=r"`test_size` must leave rows on both sides of \d+, got True"):
        unmixed.train_test_split(True)
    for num_views in ("2", True):
        with pytest.raises(ConfigError, match=rf"`num_views` must be between 1 and .*, got {num_views!r}"):
            checked_views(num_views, 3)


def test_rows_that_are_not_there(data):
    for index in (12, -13, [0, 12], (12, 0), (0, 99)):
        with pytest.raises(IndexError, match=r"row -?1[23] of a dataset of 12 rows|view 99 of"):
            data[index]


def test_a_selection_of_any_data(data):
    chosen = data.select([7, 2, -1])
    assert all(same(item, data[row]) for item, row in zip(chosen[:], (7, 2, 11), strict=True))
    assert chosen["labels"].tolist() == data["labels"][[7, 2, 11]].tolist()
    assert same(chosen.select([2])[0], data[11])
    assert len(data) == ROWS


def test_selected_rows(unmixed, tiny_plus):
    chosen = unmixed.select([7, 2, -1])
    assert chosen.source_rows.tolist() == [7, 2, 11]
    assert chosen["number"] == [107, 102, 111]
    assert chosen["labels"].tolist() == unmixed["labels"][[7, 2, 11]].tolist()
    assert all(same(chosen[n, v], unmixed[row, v]) for n, row in enumerate((7, 2, 11)) for v in range(3))
    assert chosen.select([2]).source_rows.tolist() == [11]
    assert len(unmixed) == ROWS
    # Partners of mixed views are found, selected or not.
    row, view = next((r, v) for r in range(ROWS) for v in range(4) if tiny_plus.params(r, v)["partner"] >= 0)
    assert same(tiny_plus.select([row])[0, view], tiny_plus[row, view])
    couples, others = tiny_plus.select([row]).pairs(view)
    assert (len(couples), others.tolist()) == (0, [0])


def test_selected_rows_without_stored_views_come_last(tmp_path, tiny_dataset, tiny_teacher):
    config = ReinforceConfig(str(tmp_path), num_views=1, top_k=1, num_workers=0, overlay=True, max_examples=5)
    reinforce(tiny_dataset, tiny_teacher, CROP, config)
    whole = load_reinforced(tmp_path, base=tiny_dataset, unreinforced=True)
    chosen = whole.select([9, 1, 6, 0])
    assert chosen.source_rows.tolist() == [1, 0, -1, -1]
    assert chosen.num_reinforced == 2
    assert not chosen.all_reinforced
    assert chosen["labels"].tolist() == [item["labels"] for item in chosen[:]] == whole["labels"][[1, 0, 9, 6]].tolist()


def test_rows_may_come_from_an_iterator(unmixed):
    assert unmixed.select(row for row in (3, 1)).source_rows.tolist() == unmixed.select([3, 1]).source_rows.tolist()


def test_methods_of_datasets_that_it_does_not_have_say_what_to_do(unmixed):
    for name, advice in (
        ("filter", r"np\.flatnonzero\(train\.labels == 3\)"),
        ("map", "change the base before it is reinforced"),
        ("save_to_disk", "its folder is the dataset"),
        ("push_to_hub", r"`hf_dr\.push_to_hub\(folder, repo_id\)`"),
    ):
        assert not hasattr(unmixed, name)
        with pytest.raises(AttributeError, match=f"`ReinforcedDataset` has no `{name}`: .*{advice}"):
            getattr(unmixed, name)
    with pytest.raises(AttributeError, match=r"`ReinforcedDataset` has no `nonsense`\.$"):
        _ = unmixed.nonsense


def test_a_selection_can_be_impossible(unmixed):
    for rows in ([], [0.5], ["a"], [[0]], 3):
        with pytest.raises(ConfigError, match="`rows` must be whole numbers, at least one, got "):
            unmixed.select(rows)
    for mask in (np.arange(12) % 2 == 0, [True, False]):
        with pytest.raises(
            ConfigError, match=r"must be numbers of rows, got True and False. .* `np.flatnonzero\(rows\)`"
        ):
            unmixed.select(mask)
    with pytest.raises(ConfigError, match=r"each row must be selected once, got row 11 twice\. Leave one out"):
        unmixed.select([11, -1])
    with pytest.raises(IndexError, match="row 12 of a dataset of 12 rows"):
        unmixed.select([0, 12])


def test_shuffling_is_the_samplers(data):
    with pytest.raises(
        ConfigError, match=r"the sampler draws another order of the rows.*got a call of `shuffle`\. Leave it out"
    ):
        data.shuffle(seed=1)


def test_a_split_of_rows(unmixed, tiny_plus):
    parts = unmixed.train_test_split(0.25, seed=3)
    train, test = parts["train"].source_rows.tolist(), parts["test"].source_rows.tolist()
    assert (len(train), len(test)) == (9, 3)
    assert sorted(train + test) == list(range(ROWS))
    assert (train, test) == (sorted(train), sorted(test))
    assert unmixed.train_test_split(3, seed=3)["test"].source_rows.tolist() == test
    assert any(unmixed.train_test_split(3, seed=seed)["test"].source_rows.tolist() != test for seed in range(3))
    for size in (0, 12, 0.01, 1.0, -1, 2.5, math.nan, math.inf, "a", None):
        with pytest.raises(ConfigError, match=f"`test_size` must leave rows on both sides of 12, got {size!r}. Give"):
            unmixed.train_test_split(size)
    with pytest.raises(ConfigError, match=r"whose views are mixed cannot be split.*Split the base"):
        tiny_plus.train_test_split()


def test_a_column_of_the_base_comes_of_several_too(unmixed):
    both = CombinedReinforcedDataset([unmixed, unmixed]).select([3, 1])
    assert list(both["number"]) == [103, 101]


def test_tails_of_images_are_among_the_columns():
    plus = load_reinforced(Path(__file__).parents[1] / "golden" / "v3", "topk_image_tail")
    item = plus[0]
    assert set(item) == set(plus.column_names)
    assert plus.features["tail_ids"].length == plus.features["tail_logprobs"].length == len(item["tail_ids"])

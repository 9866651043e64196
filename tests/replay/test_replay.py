"""Replay gives the teacher's pixels bit for bit, whatever way a view is asked for, and refuses what is not intact."""

import copy
import dataclasses
import errno
import gc
import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ALL_OPS, CLASSES, as_cell, colour_image
from samples import rewritten

import hf_dr.replay.loading
from hf_dr.errors import ConfigError, DataError, FormatError, ReplayError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.device import UndoneViews
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.names import DIFFICULTIES
from hf_dr.replay.sampling import ReinforcedSampler
from hf_dr.replay.view_requests import fresh_view, ranked_view
from hf_dr.store.base_dataset import undecoded_images
from hf_dr.store.configs import find_config
from hf_dr.store.features import combine_hashes
from hf_dr.store.schema import PROVENANCE_FILE
from hf_dr.teacher.topk import cross_entropy, entropy
from hf_dr.views.augmentation import NAMED, Augmentation
from hf_dr.views.maker import Span, ViewMaker, hash_view
from hf_dr.views.ops.geometry import RandomHorizontalFlip, RandomResizedCrop, Resize
from hf_dr.views.ops.mixing import CutMix, MixUp

VIEWS = 4


def generated(plus: ReinforcedDataset, base: datasets.Dataset) -> np.ndarray:
    """The pixels of all views as the run drew them, uint8 (rows, V, H, W, 3): no stored parameter is read."""
    p = plus.provenance
    maker = ViewMaker(undecoded_images(base, "image"), plus.augmentation, p.num_views, p.seed, matching_size=None)
    pixels = maker[Span(0, 0, len(base) * p.num_views)].pixels.numpy()
    return pixels.reshape(len(base), p.num_views, *pixels.shape[1:])


def replayed(plus: ReinforcedDataset) -> np.ndarray:
    """The pixels of all views as replayed, same shape."""
    views = range(plus.num_views)
    return np.stack([[np.asarray(plus.image(row, view)) for view in views] for row in range(len(plus))])


@pytest.fixture(scope="session")
def plus_of(tmp_path_factory, tiny_dataset, tiny_teacher) -> Callable[..., Path]:
    """Returns `plus_of(augmentation, **settings)`: the folder of a "+" dataset, made once."""
    made: dict[str, Path] = {}

    def plus_of(augmentation: Augmentation | str, **settings) -> Path:
        key = f"{augmentation} {settings}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("plus")
            if isinstance(augmentation, str):
                augmentation = Augmentation.named(augmentation, 16)
            config = {"num_views": VIEWS, "top_k": 3, "shard_size": 5, **settings}
            reinforce(tiny_dataset, tiny_teacher, augmentation, ReinforceConfig(str(made[key]), **config))
        return made[key]

    return plus_of


@pytest.fixture
def damaged_copy(tmp_path, tiny_folder) -> Path:
    """A copy of `tiny_folder` to spoil; the folder of its one config."""
    shutil.copytree(tiny_folder, tmp_path / "copy")
    return tmp_path / "copy" / "all_ops"


# -------------------------------------------------------------------------------------------------------- bit by bit


@pytest.mark.parametrize("name", NAMED)
def test_replay_equals_generation(plus_of, tiny_dataset, name):
    plus = load_reinforced(plus_of(name))
    expected = generated(plus, tiny_dataset)
    np.testing.assert_array_equal(replayed(plus), expected)
    for row in range(len(plus)):
        assert combine_hashes(np.array([hash_view(pixels) for pixels in expected[row]], np.uint64)) == plus.views_hash(
            row
        )
    if "mixing" in name:
        assert any(plus.params(row, view)["partner"] >= 0 for row in range(len(plus)) for view in range(VIEWS))


class _AllViews(torch.utils.data.Dataset):
    """All views of several datasets, one after the other."""

    def __init__(self, sets: list[ReinforcedDataset]) -> None:
        self.sets = sets
        self.indices = [
            (s, row, view) for s, plus in enumerate(sets) for row in range(len(plus)) for view in range(VIEWS)
        ]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> torch.Tensor:
        plus, row, view = self.indices[index]
        return self.sets[plus][row, view]["pixel_values"]


def test_another_process_replays_the_same_pixels(plus_of, tiny_dataset):
    """The worker is no fork of this process, so it shares nothing with this process and gets the datasets pickled."""
    sets = [load_reinforced(plus_of(name)) for name in NAMED]
    for plus in sets:
        plus[0, 0]  # opens the columns: what was read must not hinder pickling
    loader = torch.utils.data.DataLoader(
        _AllViews(sets),
        batch_size=None,
        num_workers=1,
        multiprocessing_context=multiprocessing.get_context("forkserver"),
    )
    expected = np.concatenate([generated(plus, tiny_dataset).reshape(-1, 16, 16, 3) for plus in sets])
    np.testing.assert_array_equal(np.stack([pixels.permute(1, 2, 0).numpy() for pixels in loader]), expected)


def test_an_item_holds_what_is_stored(tiny_plus, tiny_dataset):
    table = tiny_plus.plus.with_format(None)
    for row in range(12):
        for view in range(VIEWS):
            item = tiny_plus[row, view]
            assert item["pixel_values"].dtype == torch.uint8
            assert item["pixel_values"].shape == (3, 24, 24)
            assert (item["teacher_ids"].dtype, item["teacher_logprobs"].dtype) == (torch.int64, torch.float32)
            assert item["teacher_ids"].tolist() == table[row]["teacher_ids"][view]
            assert item["teacher_logprobs"].tolist() == table[row]["teacher_logprobs"][view]
            assert item["labels"] == tiny_dataset[row]["label"]
            assert item["reinforced"] is True
            for name, value in tiny_plus.params(row, view).items():
                stored = table[row][f"aug_{name}"][view]
                assert value == (tuple(stored) if isinstance(stored, list) else stored)
                assert type(value) in (bool, int, float, tuple), "Python's own, as users write them to JSON"


def test_items_collate_and_may_be_changed(tiny_plus):
    item = tiny_plus[0, 0]
    before = item["pixel_values"].clone()
    item["pixel_values"].zero_()
    item["teacher_ids"].zero_()
    assert torch.equal(tiny_plus[0, 0]["pixel_values"], before)
    batch = next(iter(torch.utils.data.DataLoader(tiny_plus, batch_size=5)))
    assert batch["pixel_values"].shape == (5, 3, 24, 24)
    assert batch["teacher_logprobs"].shape == (5, 3)


def test_the_original_is_at_hand(tiny_plus, tiny_dataset):
    for row in (0, 5):
        np.testing.assert_array_equal(np.asarray(tiny_plus.example_image(row)), np.asarray(tiny_dataset[row]["image"]))


def test_labels_names_and_source_rows(tiny_plus, tiny_dataset):
    assert tiny_plus.labels.tolist() == list(tiny_dataset["label"])
    assert tiny_plus.class_names == list(CLASSES)
    assert tiny_plus.source_rows.tolist() == list(range(12))
    assert tiny_plus.has_labels


def test_without_labels_items_have_none(tmp_path, tiny_dataset, tiny_teacher):
    config = ReinforceConfig(str(tmp_path), num_views=1, top_k=1)
    reinforce(tiny_dataset.remove_columns("label"), tiny_teacher, Augmentation([Resize((8, 8))]), config)
    plus = load_reinforced(tmp_path)
    assert "labels" not in plus[0]
    assert plus.labels is plus.class_names is None
    assert not plus.has_labels


# ------------------------------------------------------------------------------------------------------------ opening


def test_one_configuration_needs_no_name(tiny_folder):
    for path, name in ((tiny_folder, None), (str(tiny_folder), "all_ops"), (tiny_folder / "all_ops", None)):
        plus = load_reinforced(path, name)
        assert (len(plus), plus.num_views, plus.provenance.config_name) == (12, VIEWS, "all_ops")


def test_of_several_configurations_one_must_be_named(tmp_path, tiny_dataset, tiny_teacher):
    for name, size in (("small", 8), ("large", 12)):
        config = ReinforceConfig(str(tmp_path), name, num_views=1, top_k=1)
        reinforce(tiny_dataset, tiny_teacher, Augmentation([Resize((size, size))]), config)
    assert load_reinforced(tmp_path, "small")[0]["pixel_values"].shape == (3, 8, 8)
    assert load_reinforced(tmp_path, "large")[0]["pixel_values"].shape == (3, 12, 12)
    with pytest.raises(ConfigError, match="has several configurations; name one of large, small"):
        load_reinforced(tmp_path)
    with pytest.raises(ConfigError, match=r"has no configuration `smal`. Did you mean `small`\?"):
        load_reinforced(tmp_path, "smal")
    with pytest.raises(ConfigError, match=r"has no configuration `x`. Known: large, small"):
        find_config(tmp_path, "x")


def test_a_path_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r'expected the folder of a "[+]" dataset or a Hub id, found neither at'):
        load_reinforced(tmp_path / "nowhere")
    with pytest.raises(FormatError, match=f"no folder in it has a {PROVENANCE_FILE}"):
        load_reinforced(tmp_path)


def test_another_split_is_refused(tiny_folder):
    assert len(load_reinforced(tiny_folder, split="train")) == 12
    with pytest.raises(ConfigError, match="the split `train` was reinforced, not `test`"):
        load_reinforced(tiny_folder, split="test")


def test_a_missing_shard_is_named(damaged_copy):
    (damaged_copy / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(FormatError, match=r"must have 3 shards, found 2 of them, e.g. no train-00001-of-00003.parquet"):
        load_reinforced(damaged_copy)


def test_a_shard_of_another_run_is_refused(damaged_copy, plus_of):
    other = plus_of(ALL_OPS, seed=1, config_name="all_ops") / "all_ops"
    name = "train-00001-of-00003.parquet"
    shutil.copy(other / name, damaged_copy / name)
    with pytest.raises(
        FormatError, match=rf"{name} must carry the fingerprint of its {PROVENANCE_FILE}, found another"
    ):
        load_reinforced(damaged_copy)


def test_a_shard_with_fewer_rows_is_refused(damaged_copy):
    name = "train-00001-of-00003.parquet"
    rewritten(damaged_copy / name, lambda table: table.slice(1))
    with pytest.raises(FormatError, match=rf"{name} must have 5 rows, found 4\. Fetch or make it again"):
        load_reinforced(damaged_copy)


def test_a_shard_with_other_columns_is_refused(damaged_copy):
    name = "train-00001-of-00003.parquet"

    def changed(table: pa.Table) -> pa.Table:
        return table.drop_columns(["label"]).append_column("note", pa.array(["?"] * len(table)))

    rewritten(damaged_copy / name, lambda table: changed(table).replace_schema_metadata(None))
    with pytest.raises(
        FormatError, match=f"{name} must have the columns of the first shard, but differs in .*label, note"
    ):
        load_reinforced(damaged_copy)


def test_an_edited_provenance_is_refused(damaged_copy):
    path = damaged_copy / PROVENANCE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 7}))
    with pytest.raises(FormatError, match="does not match its own fingerprint"):
        load_reinforced(damaged_copy)


def test_shards_in_another_order_are_refused(damaged_copy):
    first, second = (damaged_copy / f"train-0000{n}-of-00003.parquet" for n in (0, 1))
    swapped = first.read_bytes(), second.read_bytes()
    second.write_bytes(swapped[0])
    first.write_bytes(swapped[1])
    with pytest.raises(FormatError, match=rf"{damaged_copy} must hold rows 0 to 11 in order .*, found others"):
        load_reinforced(damaged_copy)


def test_a_shard_whose_rows_were_changed_is_named(damaged_copy):
    path = damaged_copy / "train-00001-of-00003.parquet"
    rewritten(path, lambda table: table.take([1, 0, 2, 3, 4]))
    with pytest.raises(FormatError, match=rf"{path} must hold what was written, but .*source_index"):
        load_reinforced(damaged_copy)


def test_a_shard_that_cannot_be_read_is_named(damaged_copy):
    path = damaged_copy / "train-00001-of-00003.parquet"
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    content[start : start + 16] = 16 * b"\xff"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=f"{path} must be"):
        load_reinforced(damaged_copy)


def test_what_keeps_intact_shards_from_being_opened_is_told(tiny_folder, monkeypatch):
    def opened(error):
        monkeypatch.setattr(hf_dr.replay.loading, "load_parquet", Mock(side_effect=error))
        return load_reinforced(tiny_folder)

    with pytest.raises(
        FormatError, match=r"the shards in .*all_ops must be readable, but: ArrowInvalid: odd\. Fetch or"
    ):
        opened(pa.ArrowInvalid("odd"))
    full = datasets.exceptions.DatasetGenerationError("wrapped")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    for error in (full, full.__cause__):
        with pytest.raises(
            DataError, match=r"could not open the shards in .*: No space left on device\. Free space in"
        ):
            opened(error)


def test_skipped_rows_must_be_those_without_reinforcement(damaged_copy):
    path = damaged_copy / PROVENANCE_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "skipped_rows": [3, 8]}))
    with pytest.raises(
        FormatError, match=rf"{damaged_copy} must be \[3, 8\], as its {PROVENANCE_FILE} says, found \[\]"
    ):
        load_reinforced(damaged_copy)


def test_shards_are_shuffled_in_a_stream_only(tiny_folder):
    with pytest.raises(ConfigError, match=r"`shuffled_shards` must come with `streaming=True`, got 2 without. Leave"):
        load_reinforced(tiny_folder, shuffled_shards=2)


@pytest.mark.parametrize("num_views", [0, -1, VIEWS + 1])
def test_the_number_of_views_has_bounds(tiny_folder, num_views):
    with pytest.raises(
        ConfigError, match=f"`num_views` must be between 1 and the 4 stored views, got {num_views}. Leave it out"
    ):
        load_reinforced(tiny_folder, num_views=num_views)


def test_numbers_of_numpy_are_numbers_of_views_and_seeds(tiny_folder):
    expected = load_reinforced(tiny_folder, num_views=2, seed=3)
    given = load_reinforced(tiny_folder, num_views=np.int64(2), seed=np.int64(3))
    assert [type(number) for number in (given.num_views, given.seed)] == [int, int]
    assert list(ReinforcedSampler(given)) == list(ReinforcedSampler(expected))
    for row in range(len(given)):
        assert torch.equal(given[row]["pixel_values"], expected[row]["pixel_values"])


def test_fewer_views_are_the_first_ones(tiny_folder, tiny_plus):
    few = load_reinforced(tiny_folder, num_views=2)
    np.testing.assert_array_equal(replayed(few), replayed(tiny_plus)[:, :2])
    assert {int(few.scheduled_views(row, epoch)) for row in range(12) for epoch in range(9)} == {0, 1}
    with pytest.raises(IndexError, match="view 2 of 2"):
        few[0, 2]


def test_a_missing_or_mistyped_column_is_named(tiny_plus):
    with pytest.raises(FormatError, match="must have the column `aug_flip`, found"):
        ReinforcedDataset(tiny_plus.plus.remove_columns("aug_flip"), tiny_plus.provenance)
    wrong = tiny_plus.plus.cast_column("aug_flip", datasets.List(datasets.Value("int8"), length=VIEWS))
    with pytest.raises(FormatError, match="column `aug_flip` must be List"):
        ReinforcedDataset(wrong, tiny_plus.provenance)
    with pytest.raises(FormatError, match=r"column `image` must be there and hold images, found None. Fetch it again"):
        ReinforcedDataset(tiny_plus.plus.remove_columns("image"), tiny_plus.provenance)


# ------------------------------------------------------------------------------------------------------------ overlay


@pytest.fixture
def overlay(plus_of) -> Path:
    return plus_of(ALL_OPS, overlay=True, config_name="overlay")


def test_an_overlay_replays_from_its_base(overlay, tiny_plus, tiny_dataset):
    plus = load_reinforced(overlay, base=tiny_dataset)
    assert "image" not in plus.plus.column_names
    np.testing.assert_array_equal(replayed(plus), replayed(tiny_plus))


def test_a_base_in_any_format_will_do(overlay, tiny_plus, tiny_dataset):
    plus = load_reinforced(overlay, base=tiny_dataset.with_format("torch"))
    assert torch.equal(plus[7, 1]["pixel_values"], tiny_plus[7, 1]["pixel_values"])


def test_a_shuffled_overlay_finds_its_images(overlay, tiny_plus, tiny_dataset):
    whole = load_reinforced(overlay, base=tiny_dataset)
    shuffled = ReinforcedDataset(whole.plus.shuffle(seed=1), whole.provenance, base=tiny_dataset)
    np.testing.assert_array_equal(replayed(shuffled), replayed(tiny_plus)[shuffled.source_rows])


def test_an_overlay_needs_its_base(overlay, tiny_dataset):
    with pytest.raises(
        DataError, match=r"is an overlay without images. Pass `base`: split `train` of the base dataset"
    ):
        load_reinforced(overlay)
    with pytest.raises(DataError, match=r"`base` must have the image column `image`, found \['label'\]"):
        load_reinforced(overlay, base=tiny_dataset.remove_columns("image"))
    with pytest.raises(
        DataError, match="must hold the images of all 12 reinforced rows, but those of 7 are not among its 5"
    ):
        load_reinforced(overlay, base=tiny_dataset.select(range(5)))


def test_a_dataset_with_images_takes_no_base(tiny_folder, tiny_dataset):
    with pytest.raises(ConfigError, match=r"`base` is for an overlay, but .* has its images\. Leave `base` out"):
        load_reinforced(tiny_folder, base=tiny_dataset)


# ------------------------------------------------------------------------------------------------------------- images


def test_another_image_is_refused_unless_allowed(tiny_plus, edit):
    image = as_cell(colour_image(np.random.default_rng(1), 3))
    damaged = edit(tiny_plus, "image", lambda cells: [image if row == 3 else cell for row, cell in enumerate(cells)])
    for _ in range(2):  # refused again and again
        with pytest.raises(ReplayError, match="row 3 must hold the image that was reinforced"):
            damaged[3, 0]
    damaged.check_images = False
    assert not np.array_equal(np.asarray(damaged.image(3, 0)), np.asarray(tiny_plus.image(3, 0)))


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_share_what_they_have_checked(method, tiny_plus, monkeypatch):
    """Each epoch has new workers, which need not check an image that others did."""
    plus = ReinforcedDataset(tiny_plus.plus, tiny_plus.provenance)
    loader = torch.utils.data.DataLoader(
        plus, batch_size=4, num_workers=1, multiprocessing_context=multiprocessing.get_context(method)
    )
    first = [batch["pixel_values"] for batch in loader]
    monkeypatch.setattr("hf_dr.replay.dataset.pixel_hash", lambda image: pytest.fail("hashed again"))
    again = [plus[row]["pixel_values"] for row in range(len(plus))]
    assert torch.equal(torch.cat(first), torch.stack(again))


def test_the_same_pixels_in_another_file_are_the_same_image(tiny_plus, tiny_dataset, edit):
    def as_bmp(cells):
        return [as_cell(tiny_dataset[row]["image"], "BMP") for row in range(len(cells))]

    np.testing.assert_array_equal(replayed(edit(tiny_plus, "image", as_bmp)), replayed(tiny_plus))


def test_an_unreadable_image_is_named(tiny_plus, edit):
    broken = {"bytes": b"broken", "path": None}
    damaged = edit(tiny_plus, "image", lambda cells: [broken if row == 3 else cell for row, cell in enumerate(cells)])
    with pytest.raises(ReplayError, match="the image of row 3 must be readable, but: expected an image as JPEG, PNG"):
        damaged[3, 0]


def test_rows_without_reinforcement_are_left_out(tmp_path, tiny_dataset, tiny_teacher, caplog):
    """Their columns are null; the rows after them must not slip."""
    cells = undecoded_images(tiny_dataset, "image")["image"]
    cells = [{"bytes": b"broken", "path": None} if row in (0, 6, 7) else cell for row, cell in enumerate(cells)]
    broken = tiny_dataset.remove_columns("image").add_column("image", cells, feature=datasets.Image())
    config = ReinforceConfig(str(tmp_path), num_views=VIEWS, top_k=3, on_bad_image="skip", shard_size=5)
    reinforce(broken, tiny_teacher, ALL_OPS, config)
    plus = load_reinforced(tmp_path)
    assert "3 rows have no reinforcement and are left out" in caplog.text
    usable = [1, 2, 3, 4, 5, 8, 9, 10, 11]
    assert plus.source_rows.tolist() == usable
    assert plus.labels.tolist() == [tiny_dataset[row]["label"] for row in usable]
    assert [plus[n]["labels"] for n in range(9)] == plus.labels.tolist()
    np.testing.assert_array_equal(replayed(plus), generated(plus, broken)[usable])
    with pytest.raises(IndexError):
        plus[9]


# ----------------------------------------------------------------------------------------------------------- indexing


def test_an_index_may_name_the_view(tiny_plus):
    for epoch in range(VIEWS):
        tiny_plus.set_epoch(epoch)
        view = int(tiny_plus.scheduled_views(3, epoch))
        assert torch.equal(tiny_plus[3]["pixel_values"], tiny_plus[3, view]["pixel_values"])
        assert torch.equal(
            tiny_plus[np.int64(3)]["pixel_values"], tiny_plus[np.int64(3), np.int64(view)]["pixel_values"]
        )


def test_negative_indices_count_from_the_end(tiny_plus):
    assert torch.equal(tiny_plus[-1, 2]["pixel_values"], tiny_plus[11, 2]["pixel_values"])
    assert torch.equal(tiny_plus[-12]["pixel_values"], tiny_plus[0]["pixel_values"])


def test_iterating_ends(tiny_plus):
    assert len(list(tiny_plus)) == 12


def test_a_fresh_view_has_no_teacher(tiny_plus):
    fresh = [tiny_plus[3, fresh_view(epoch)] for epoch in (0, 1, 0)]
    assert [item["reinforced"] for item in fresh] == [False] * 3
    assert not fresh[0]["teacher_ids"].any()
    assert not fresh[0]["teacher_logprobs"].any()
    assert fresh[0].keys() == tiny_plus[3].keys()
    assert fresh[0]["labels"] == tiny_plus[3]["labels"]
    assert torch.equal(fresh[0]["pixel_values"], fresh[2]["pixel_values"])
    assert not torch.equal(fresh[0]["pixel_values"], fresh[1]["pixel_values"])
    assert fresh[0]["pixel_values"].shape == (3, 24, 24)
    with pytest.raises(IndexError, match=r"a stored view must be from 0 to 3, got ViewRequest"):
        tiny_plus.teacher_answer(3, fresh_view(0))


# ----------------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize("mixing", [False, True])
def test_over_all_epochs_each_view_is_replayed_once(plus_of, mixing):
    plus = load_reinforced(plus_of("mixing" if mixing else "rrc"))
    for cycle in range(3):
        views = np.stack([plus.scheduled_views(np.arange(12), cycle * VIEWS + step) for step in range(VIEWS)])
        assert (np.sort(views, axis=0) == np.arange(VIEWS)[:, None]).all(), "each row shows each view once"
        distinct = [len(set(epoch.tolist())) for epoch in views]
        assert (max(distinct) == 1) if mixing else (min(distinct) > 1), (
            "pairs of mixing need the same view; others do not"
        )


def test_the_schedule_is_keyed(plus_of):
    folder = plus_of("rrc")

    def schedule(seed):
        plus = load_reinforced(folder, seed=seed)
        return np.stack([plus.scheduled_views(np.arange(12), epoch) for epoch in range(12)])

    assert np.array_equal(schedule(0), schedule(0))
    assert not np.array_equal(schedule(0), schedule(1))
    plus = load_reinforced(folder)
    one_by_one = [[int(plus.scheduled_views(row, epoch)) for row in range(12)] for epoch in range(12)]
    assert np.array_equal(one_by_one, schedule(0))


# ------------------------------------------------------------------------------------------------------------- mixing


def test_a_pair_is_decoded_once(tmp_path, tiny_dataset, tiny_teacher, decoded):
    """A batch that holds both of each pair decodes each image once, and one alone decodes two."""
    always = Augmentation([RandomResizedCrop(16), MixUp(p=1), CutMix(p=1)])
    reinforce(tiny_dataset, tiny_teacher, always, ReinforceConfig(str(tmp_path), num_views=2, top_k=3))
    plus = load_reinforced(tmp_path)
    partners = [plus.params(row, 1)["partner"] for row in range(12)]
    assert all(partners[partners[row]] == row for row in range(12))
    together = plus.__getitems__([(row, 1) for row in range(12)])
    assert len(decoded) == 12
    decoded.clear()
    alone = [plus[row, 1] for row in range(12)]
    assert len(decoded) == 24
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])


def test_an_unmixed_view_decodes_no_partner(tiny_plus, decoded):
    views = [(row, view) for row in range(12) for view in range(VIEWS) if tiny_plus.params(row, view)["partner"] < 0]
    assert len(views) > 5
    for view in views:
        tiny_plus[view]
    assert len(decoded) == len(views)


# -------------------------------------------------------------------------------------- parts and orders of a dataset

ORDERS = {
    "shuffle": lambda plus: plus.shuffle(seed=3),
    "reverse": lambda plus: plus.select(range(11, -1, -1)),
    "sort": lambda plus: plus.sort("label"),
    "concatenated halves": lambda plus: datasets.concatenate_datasets(
        [plus.select(range(6, 12)), plus.select(range(6))]
    ),
    "flattened shuffle": lambda plus: plus.shuffle(seed=3).flatten_indices(),
}


@pytest.mark.parametrize("order", ORDERS)
def test_any_order_replays_the_right_rows(tiny_plus, tiny_dataset, order):
    moved = ReinforcedDataset(ORDERS[order](tiny_plus.plus), tiny_plus.provenance)
    rows = moved.source_rows
    assert sorted(rows.tolist()) == list(range(12))
    assert rows.tolist() != list(range(12))
    np.testing.assert_array_equal(replayed(moved), replayed(tiny_plus)[rows])
    assert (
        [moved[n]["labels"] for n in range(12)]
        == moved.labels.tolist()
        == [tiny_dataset[int(r)]["label"] for r in rows]
    )
    for n, row in enumerate(rows.tolist()):
        assert moved[n, 1]["teacher_ids"].tolist() == tiny_plus[row, 1]["teacher_ids"].tolist()


@pytest.mark.parametrize("rows", [range(4, 9), [2, 9, 4, 11], [7]])
def test_a_part_replays_the_right_rows(plus_of, rows):
    whole = load_reinforced(plus_of("randaug"))
    part = ReinforcedDataset(whole.plus.select(rows), whole.provenance)
    assert part.source_rows.tolist() == list(rows)
    np.testing.assert_array_equal(replayed(part), replayed(whole)[list(rows)])


def test_a_partner_that_was_filtered_out_is_named(tiny_plus):
    row, view, partner = next(
        (row, view, partner)
        for row in range(12)
        for view in range(VIEWS)
        if (partner := tiny_plus.params(row, view)["partner"]) >= 0
    )
    kept = [r for r in range(12) if r != partner]
    part = ReinforcedDataset(tiny_plus.plus.select(kept), tiny_plus.provenance)
    with pytest.raises(
        ReplayError, match=f"expected the partner, row {partner} of the base, in the dataset; it was filtered"
    ):
        part[kept.index(row), view]
    for n, r in enumerate(kept):
        for v in range(VIEWS):
            if tiny_plus.params(r, v)["partner"] != partner:
                assert torch.equal(part[n, v]["pixel_values"], tiny_plus[r, v]["pixel_values"])


def test_a_reordered_dataset_reads_no_image_to_open(tiny_plus, monkeypatch):
    """`with_format("arrow")[:]` of a shuffled dataset copies the columns it has; the images must not be among them."""
    asked = []
    whole = datasets.Dataset.__getitem__

    def watched(self, key):
        if isinstance(key, slice):
            asked.append(self.column_names)
        return whole(self, key)

    monkeypatch.setattr(datasets.Dataset, "__getitem__", watched)
    shuffled = ReinforcedDataset(tiny_plus.plus.shuffle(seed=3), tiny_plus.provenance)
    assert shuffled.labels is not None
    assert not any("image" in columns for columns in asked)


# ------------------------------------------------------------------------------------------------------------- damage


def _set(value, place):
    def change(values):
        values[2, 1][place] = value
        return values

    return change


@pytest.mark.parametrize(
    ("value", "place"),
    [(np.nan, 0), (np.nan, 1), (np.nan, 2), (-np.inf, 2), (0.5, 0), (-0.0, 2)],
    ids=["nan first", "nan amid", "nan last", "infinite", "above 0", "rising"],
)
def test_damaged_logprobs_are_refused(tiny_plus, edit, value, place):
    damaged = edit(tiny_plus, "teacher_logprobs", _set(value, place))
    damaged[2, 0]
    damaged[3, 1]
    for read in (lambda: damaged[2, 1], lambda: damaged.teacher_answer(2, 1)):
        with pytest.raises(
            FormatError, match="the log-probabilities of row 2, view 1 must be finite and fall from at most 0"
        ):
            read()


def test_probabilities_beyond_1_are_refused(tiny_plus, edit):
    damaged = edit(tiny_plus, "teacher_logprobs", _set(-0.1, slice(None)))
    damaged[2, 0]
    with pytest.raises(FormatError, match=r"the probabilities of row 2, view 1 must have a sum of at most 1, found"):
        damaged[2, 1]


def test_ids_out_of_range_are_refused(tiny_plus, edit):
    damaged = edit(tiny_plus, "teacher_ids", _set(8, 2))
    damaged[2, 0]
    with pytest.raises(FormatError, match="row 2, view 1 must name classes below 8, found 8"):
        damaged[2, 1]


def test_parameters_that_do_not_fit_are_refused_with_row_and_view(tiny_plus, edit):
    damaged = edit(tiny_plus, "aug_crop_box", _set([0, 0, 999, 3], slice(None)))
    with pytest.raises(ReplayError, match=r"row 2, view 1: RandomResizedCrop needs a box"):
        damaged[2, 1]


def test_a_partner_that_does_not_exist_is_refused(tiny_plus, edit):
    row = next(r for r in range(12) if tiny_plus.params(r, 1)["partner"] >= 0)

    def with_partner(partner):
        def change(values):
            values[row, 1] = partner
            return values

        return edit(tiny_plus, "aug_partner", change)

    with pytest.raises(ReplayError, match="expected the partner, row 1000 of the base"):
        with_partner(1000)[row, 1]
    with pytest.raises(ReplayError, match=f"row {row}, view 1 must be mixed with another row, found itself"):
        with_partner(row)[row, 1]


def test_nothing_reinforced_is_refused(tiny_plus):
    table = tiny_plus.plus.data.table
    place, field = table.column_names.index("image_hash"), table.schema.field("image_hash")
    empty = table.set_column(place, field, datasets.table.pa.nulls(len(table), field.type))
    with pytest.raises(FormatError, match="expected at least one reinforced row"):
        ReinforcedDataset(datasets.Dataset(empty, info=tiny_plus.plus.info), tiny_plus.provenance)


# -------------------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize("num_views", [1, 7, 9])
def test_packed_booleans_at_any_offset(tmp_path, tiny_dataset, tiny_teacher, num_views):
    """V that is no multiple of 8 puts rows, batches and slices at odd bits."""
    config = ReinforceConfig(str(tmp_path), num_views=num_views, top_k=1, shard_size=5)
    reinforce(tiny_dataset, tiny_teacher, Augmentation([RandomHorizontalFlip(), Resize((6, 6))]), config)
    plus = load_reinforced(tmp_path)
    flips = [example["aug_flip"] for example in plus.plus]
    assert [[plus.params(row, view)["flip"] for view in range(num_views)] for row in range(12)] == flips
    part = ReinforcedDataset(plus.plus.select(range(3, 11)), plus.provenance)
    assert [[part.params(row, view)["flip"] for view in range(num_views)] for row in range(8)] == flips[3:11]


def test_row_groups_are_crossed(damaged_copy, tiny_plus):
    """A shard of a large run has several row groups; here, each row is one."""
    for path in damaged_copy.glob("*.parquet"):
        table, metadata = pq.read_table(path), pq.read_metadata(path).metadata
        pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=1)
    np.testing.assert_array_equal(replayed(load_reinforced(damaged_copy)), replayed(tiny_plus))


def test_a_copy_has_an_epoch_of_its_own(tiny_plus):
    other = copy.copy(tiny_plus)
    other.set_epoch(3)
    assert tiny_plus.epoch == 0


def test_the_epoch_can_be_assigned(tiny_plus):
    tiny_plus.epoch = 2
    view = int(tiny_plus.scheduled_views(3, 2))
    assert torch.equal(tiny_plus[3]["pixel_values"], tiny_plus[3, view]["pixel_values"])


def test_the_format_of_the_dataset_does_not_matter(tiny_plus):
    formatted = ReinforcedDataset(tiny_plus.plus.with_format("torch"), tiny_plus.provenance)
    np.testing.assert_array_equal(replayed(formatted), replayed(tiny_plus))


def test_the_provenance_decides_the_augmentation(tiny_plus):
    reversed_ops = dataclasses.replace(tiny_plus.provenance, augmentation=[{"RandomResizedCrop": {"size": 8}}])
    assert ReinforcedDataset(tiny_plus.plus, reversed_ops)[0, 0]["pixel_values"].shape == (3, 8, 8)


# ------------------------------------------------------------------------------------------------------------ difficulty


@pytest.mark.parametrize("by", DIFFICULTIES)
def test_a_rank_asks_for_the_view_of_that_difficulty(tiny_plus, by):
    for row in range(len(tiny_plus)):
        found = tiny_plus.difficulties(row, by)
        for view in range(VIEWS):
            ids, logprobs = (part[None] for part in tiny_plus.teacher_answer(row, view))
            label = int(tiny_plus.labels[row])
            expected = entropy(logprobs, 8) if by == "entropy" else cross_entropy(ids, logprobs, 8, label)
            assert found[view] == expected[0]
        by_hand = sorted(range(VIEWS), key=lambda view, found=found: (found[view], view))
        assert [tiny_plus.resolved(row, ranked_view(rank, by)) for rank in range(VIEWS)] == by_hand
        one, other = tiny_plus[row, ranked_view(1, by)], tiny_plus[row, by_hand[1]]
        assert all(torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one)


def test_equally_difficult_views_come_by_their_number(tiny_plus, edit):
    alike = edit(tiny_plus, "teacher_logprobs", lambda values: np.broadcast_to(values[:1, :1], values.shape))
    assert [alike.resolved(2, ranked_view(rank, "entropy")) for rank in range(VIEWS)] == list(range(VIEWS))


def test_ranks_are_among_the_views_in_use(tiny_folder, tiny_plus):
    fewer = load_reinforced(tiny_folder, num_views=2)
    np.testing.assert_array_equal(fewer.difficulties(3, "entropy"), tiny_plus.difficulties(3, "entropy")[:2])
    assert {fewer.resolved(3, ranked_view(rank, "entropy")) for rank in (0, 1)} == {0, 1}
    with pytest.raises(IndexError, match="rank 2 of 2 views"):
        fewer[3, ranked_view(2, "entropy")]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.5, 6e4])
def test_a_damaged_answer_is_not_ranked(tiny_plus, edit, value):
    def spoil(values: np.ndarray) -> np.ndarray:
        values[5, 2, 1] = value
        return values

    spoilt = edit(tiny_plus, "teacher_logprobs", spoil)
    with pytest.raises(
        FormatError, match=r"the log-probabilities of row 5, view 2 must be finite and fall from at most 0"
    ):
        spoilt[5, ranked_view(0, "entropy")]
    spoilt[4, ranked_view(0, "cross_entropy")]


@pytest.mark.parametrize("make", [lambda data: data, UndoneViews], ids=["made", "undone"])
def test_a_batch_leaves_no_images_to_the_garbage_collector(tiny_plus, make):
    """Which runs seldom, while each batch holds its decoded images and its dataset."""
    data = make(tiny_plus)
    indices = [(0, 0), (1, 1)]
    data.__getitems__(indices)
    gc.collect()
    gc.disable()
    try:
        data.__getitems__(indices)
        assert gc.collect() == 0
    finally:
        gc.enable()

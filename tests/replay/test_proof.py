"""Before a training, some rows are replayed: their views must have the pixels that the teacher saw."""

import importlib
from pathlib import Path

import numpy as np
import PIL.ImageOps
import pytest
import torch

import hf_dr.replay.proof
from hf_dr import ReinforceConfig, ReinforcedLoader, ReinforcedTrainer, ReinforcedTrainingArguments, build_student
from hf_dr.errors import ReplayError
from hf_dr.generation.job import reinforce
from hf_dr.generation.verify import verify
from hf_dr.replay.combined import CombinedReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.proof import check_replay
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.device.augment import DeviceAugmentation
from hf_dr.views.device.packing import DoneBatch
from hf_dr.views.ops.geometry import RandomHorizontalFlip, RandomResizedCrop

OTHERS = "must replay to the pixels that its teacher saw, found others"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_dataset, tiny_teacher) -> Path:
    """Two configurations of flipped crops, 30 views of each row."""
    folder = tmp_path_factory.mktemp("proof")
    augmentation = Augmentation([RandomResizedCrop(24), RandomHorizontalFlip()])
    for seed in (0, 1):
        config = ReinforceConfig(str(folder), f"of_seed_{seed}", num_views=30, top_k=3, seed=seed)
        reinforce(tiny_dataset, tiny_teacher, augmentation, config)
    return folder


@pytest.fixture
def turned(monkeypatch):
    """The code of an op is another than that with which the views were made."""
    monkeypatch.setattr(
        RandomHorizontalFlip, "apply", lambda self, image, params, partner=None: PIL.ImageOps.flip(image)
    )


def on_cpu(data):
    return DeviceAugmentation(data.augmentation), torch.device("cpu")


def test_all_is_well(folder, tiny_plus, caplog):
    caplog.set_level("DEBUG", "hf_dr.replay.proof")
    for data in (tiny_plus, load_reinforced(folder, "of_seed_0"), load_reinforced(folder, "of_seed_0", num_views=2)):
        check_replay(data)
        check_replay(data, on_cpu(data))
    assert [record.message.split(" rows")[0] for record in caplog.records] == ["12"] * 2 + ["3"] * 4


def test_the_code_of_an_op_has_changed(folder, turned):
    data = load_reinforced(folder, "of_seed_0", num_views=2)
    with pytest.raises(ReplayError, match=rf"row 0 of `of_seed_0` {OTHERS}: the code of an op, .* Run `hf-dr verify`"):
        check_replay(data)
    with pytest.raises(ReplayError, match=rf"row 7 of `of_seed_0` {OTHERS}"):
        check_replay(data.select([7]))
    assert (
        verify(data.select([7]), ask_teacher=False).problems[0].startswith("row 7: the replayed pixels are not those")
    )
    with pytest.raises(ReplayError, match=OTHERS):
        ReinforcedLoader(data, 4, device="cpu")
    student = build_student("timm:test_resnet", data.class_names, data.num_classes)
    args = ReinforcedTrainingArguments(str(folder.parent / "student"), use_cpu=True)
    with pytest.raises(ReplayError, match=OTHERS):
        ReinforcedTrainer(student, args, train_dataset=data)


def test_it_is_told_how_to_train_all_the_same(folder, turned):
    check_replay(load_reinforced(folder, "of_seed_0", check_images=False))


def test_each_of_several_datasets_is_checked(folder, edit):
    whole, damaged = (load_reinforced(folder, f"of_seed_{seed}") for seed in (0, 1))
    damaged = edit(damaged, "views_hash", lambda hashes: hashes ^ np.uint64(1))
    check_replay(CombinedReinforcedDataset([whole, whole]))
    with pytest.raises(ReplayError, match=f"row 0 of `of_seed_1` {OTHERS}"):
        check_replay(CombinedReinforcedDataset([whole, damaged]))


def test_a_device_that_makes_other_pixels_is_found_out(folder, monkeypatch):
    data = load_reinforced(folder, "of_seed_0")
    made = DoneBatch.pixels
    monkeypatch.setattr(DoneBatch, "pixels", lambda self, **settings: made(self, **settings) ^ 1)
    with pytest.raises(
        ReplayError, match=f"{OTHERS} on cpu: .*Set `augment_on` to cpu, and run `hf-dr verify --device`"
    ):
        check_replay(data, on_cpu(data))
    with pytest.raises(ReplayError, match=f"{OTHERS} on cpu"):
        ReinforcedLoader(data, 4, device="cpu", augment_on="device")
    ReinforcedLoader(data, 4, device="cpu")  # Pillow makes them as before


def test_rows_are_spread_over_the_dataset(folder, edit):
    damaged = edit(load_reinforced(folder, "of_seed_0"), "views_hash", lambda hashes: hashes ^ (np.arange(12) == 11))
    with pytest.raises(ReplayError, match=f"row 11 of `of_seed_0` {OTHERS}"):
        check_replay(damaged)
    check_replay(damaged.select(range(11)))


def test_what_is_not_known_or_takes_long_is_left_out(folder, turned, edit, monkeypatch):
    data = load_reinforced(folder, "of_seed_0")
    check_replay(edit(data, "views_hash", lambda hashes: hashes * 0))  # null is read as 0
    monkeypatch.setattr(hf_dr.replay.proof, "_MOST_VIEWS", 29)
    check_replay(data)
    check_replay(None)


def test_a_stream_checks_the_first_rows_that_it_reads(folder, turned):
    with pytest.raises(
        ReplayError, match=f"row 2 of `of_seed_0` {OTHERS}"
    ):  # the first of the shard that is read first
        next(iter(load_reinforced(folder, "of_seed_0", streaming=True)))
    assert next(iter(load_reinforced(folder, "of_seed_0", streaming=True, check_images=False)))["reinforced"]


def test_the_made_up_datasets_of_the_benchmarks_claim_no_pixels(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    synthetic = importlib.import_module("synthetic")
    base = synthetic.with_numbers(tiny_dataset)
    folder = synthetic.write(base, Augmentation([RandomResizedCrop(8)]), 2, tmp_path / "made-up")
    for streaming in (False, True):
        batch = next(iter(ReinforcedLoader(load_reinforced(folder, streaming=streaming), 2)))
        assert batch["reinforced"].all()

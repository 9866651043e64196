"""Views that the device makes: the pixels, the order and so the weights of a training whose views Pillow makes."""

import copy
import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ALL_OPS
from transformers import default_data_collator

from hf_dr.errors import ConfigError, ReplayError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.replay.augmented import AugmentedDataset
from hf_dr.replay.combined import CombinedReinforcedDataset
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import STORED_PARTNERS
from hf_dr.training.device_views import augmentation_of_trainer
from hf_dr.training.distillation import OnlineDistillationTrainer
from hf_dr.training.trainer import ReinforcedTrainer
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.device.augment import DeviceAugmentation
from hf_dr.views.device.plan import NotOnDeviceError
from hf_dr.views.ops.colour import ColorJitter, RandAugment
from hf_dr.views.ops.geometry import RandomHorizontalFlip, RandomResizedCrop
from tests.training.helpers import KillAt, KilledError, Watched, pooled, same, settings_in, timm_student, weights

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("v*/*/reinforcement.json"))
PLAIN = Augmentation([RandomResizedCrop(24), RandomHorizontalFlip(), RandAugment()])


def trained(tmp_path, data, kind=Watched, model=pooled, resume=None, callbacks=None, **settings):
    """Trains and returns the trainer."""
    given = {"num_train_epochs": 2, "reinforced_probability": 0.7, **settings}
    trainer = kind(model(), settings_in(tmp_path, **given), train_dataset=data, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def assert_alike(one, other):
    assert len(one.seen) == len(other.seen) > 0
    assert all(same(a, b) for a, b in zip(one.seen, other.seen, strict=True))
    assert same(weights(one.model), weights(other.model))


@pytest.mark.parametrize(
    ("name", "workers"),
    [
        ("mixing", 0), ("a stream", 0), ("mixing", 2), ("image tails", 2), ("a stream", 2), ("more columns", 2),
        ("shard by shard", 2), ("several", 2), ("several streams", 2),
    ],
)  # fmt: skip
def test_a_training_is_the_same(tmp_path, tiny_dataset, tiny_teacher, name, workers):
    settings = {"signal": "topk_image_tail"} if name == "image tails" else {}
    streaming = name in ("a stream", "several streams")
    settings |= {"mixing_scope": "shard"} if streaming or name == "shard by shard" else {}
    base = tiny_dataset.add_column("note", list(range(12))) if name == "more columns" else tiny_dataset
    names = ["a", "b"] if name.startswith("several") else ["a"]
    for seed, own in enumerate(names):
        config = ReinforceConfig(str(tmp_path / "plus"), own, num_views=4, top_k=3, shard_size=5, seed=seed, **settings)
        reinforce(base, tiny_teacher, ALL_OPS, config)
    more = {"columns": ["note"]} if name == "more columns" else {}
    trainers = []
    for where in ("cpu", "device"):
        data = load_reinforced(tmp_path / "plus", names if len(names) > 1 else "a", streaming=streaming, **more)
        options = {"augment_on": where, "dataloader_num_workers": workers, "remove_unused_columns": False}
        trainers.append(trained(tmp_path / where, data, **options))
    assert_alike(*trainers)
    assert isinstance(trainers[1].train_dataset, type(trainers[0].train_dataset))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_the_same_on_a_gpu(tmp_path, tiny_plus, monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    one, other = (
        trained(tmp_path / where, copy.copy(tiny_plus), augment_on=where, use_cpu=False, dataloader_num_workers=2)
        for where in ("cpu", "auto")
    )
    assert other._augmenter is not None
    assert len(one.seen) == len(other.seen) > 0
    assert all(batch["pixel_values"].device.type == "cuda" for batch in other.seen)
    assert all(same(a, b) for a, b in zip(one.seen, other.seen, strict=True))


def test_partners_that_are_stored_with_the_view(tmp_path):
    golden = [path.parent for path in GOLDEN if Provenance.read(path.parent).mixing_scope == STORED_PARTNERS]
    assert golden
    for folder in golden:
        data = load_reinforced(folder.parent, folder.name)
        model = partial(pooled, classes=data.num_classes)
        assert_alike(
            trained(tmp_path / folder.name / "a", data, model=model, augment_on="cpu"),
            trained(tmp_path / folder.name / "b", data, model=model, augment_on="device"),
        )


@pytest.mark.parametrize("objective", ["erm", "kd"])
def test_newly_drawn_views_are_the_same(tmp_path, tiny_dataset, tiny_teacher, objective):
    """Comparisons stay fair: every objective may use the device."""
    kinds = {"erm": ReinforcedTrainer, "kd": OnlineDistillationTrainer}
    found = []
    for where in ("cpu", "device"):
        data = AugmentedDataset(tiny_dataset, PLAIN, image_column="image", label_column="label", seed=3)
        args = settings_in(
            tmp_path / where, num_train_epochs=2, reinforced_probability=0.0, augment_on=where, mixup_alpha=0.5
        )
        more = {"teacher": tiny_teacher} if objective == "kd" else {}
        trainer = kinds[objective](pooled(), args, train_dataset=data, **more)
        trainer.train()
        assert (trainer._augmenter is None) == (where == "cpu")
        found.append(weights(trainer.model))
    assert same(*found)


def test_killed_in_the_middle_of_an_epoch_and_resumed(tmp_path, tiny_plus):
    expected = trained(tmp_path / "a", tiny_plus, augment_on="cpu")
    saving = {"save_strategy": "steps", "save_steps": 2, "augment_on": "device"}
    with pytest.raises(KilledError):
        trained(tmp_path / "b", copy.copy(tiny_plus), callbacks=[KillAt(5)], **saving)
    resumed = trained(tmp_path / "b", copy.copy(tiny_plus), resume=True, **saving)
    assert same(weights(resumed.model), weights(expected.model))
    assert len(resumed.seen) == 2


def test_images_that_the_device_cannot_turn_are_made_by_pillow(tmp_path, tiny_plus, monkeypatch, caplog):
    expected = trained(tmp_path / "a", tiny_plus, augment_on="cpu")

    def refuses(self, *settings):
        raise NotOnDeviceError("images of 2x9000 pixels")

    monkeypatch.setattr(DeviceAugmentation, "program", refuses)
    assert_alike(trained(tmp_path / "b", copy.copy(tiny_plus), augment_on="device"), expected)
    assert "Some views are made on the CPU, which takes longer: images of 2x9000 pixels" in caplog.text


def test_batches_of_the_trainers_loader_in_the_hands_of_others(tmp_path, tiny_plus):
    """A step takes them as they are; who would compute with them is told how."""
    trainers = [
        ReinforcedTrainer(pooled(), settings_in(tmp_path / where, augment_on=where), train_dataset=copy.copy(tiny_plus))
        for where in ("cpu", "device")
    ]
    expected, found = [next(iter(trainer.get_train_dataloader())) for trainer in trainers]
    assert torch.equal(found["pixel_values"].pixels(), expected["pixel_values"])
    for trainer in trainers:
        trainer.current_gradient_accumulation_steps = 1  # Trainer sets it in `train`
    losses = [
        trainer.training_step(trainer.model, batch) for trainer, batch in zip(trainers, (expected, found), strict=True)
    ]
    assert torch.equal(*losses)
    with pytest.raises(ReplayError, match=r"before `conv2d`: .*pixels\(\)`; or make them on the CPU"):
        torch.nn.functional.conv2d(found["pixel_values"], torch.zeros(1, 3, 1, 1))


# ------------------------------------------------------------------------------------------------------------ the choice


def _augmenter(args, train, data_collator=default_data_collator):
    return augmentation_of_trainer(args, train, data_collator)


def test_a_gpu_makes_the_views(tmp_path, tiny_plus, monkeypatch, caplog):
    args = settings_in(tmp_path)
    assert _augmenter(args, tiny_plus) is None, "a CPU does not by itself"
    monkeypatch.setattr("hf_dr.training.device_views.is_fast_on", lambda device: True)
    assert _augmenter(args, tiny_plus) is not None
    assert _augmenter(settings_in(tmp_path, augment_on="cpu"), tiny_plus) is None
    assert not caplog.records
    other = copy.copy(tiny_plus)
    both = CombinedReinforcedDataset([tiny_plus, other])
    assert _augmenter(args, both) is not None
    other.augmentation = PLAIN
    both = CombinedReinforcedDataset([tiny_plus, other])
    with caplog.at_level(logging.WARNING):
        assert _augmenter(args, both) is None
        assert _augmenter(args, tiny_plus, list) is None
    reason = '"+" datasets of different augmentations at once have no device version'
    assert f"Views are made on the CPU, which may take longer: {reason}" in caplog.text
    assert "a `data_collator` of your own is given views that are made" in caplog.text


class Own(ReinforcedDataset):
    pass


def test_what_the_device_cannot_make_is_refused_if_asked_for(tmp_path, tiny_dataset, tiny_plus):
    hue = Augmentation([RandomResizedCrop(24), ColorJitter(hue=0.1)])
    data = AugmentedDataset(tiny_dataset, hue, image_column="image", label_column="label")
    args = settings_in(tmp_path, augment_on="device", reinforced_probability=0.0)
    with pytest.raises(
        ConfigError, match="`augment_on` must be `cpu` or `auto` for this training, got `device`: ColorJit"
    ):
        ReinforcedTrainer(pooled(), args, train_dataset=data)
    args = settings_in(tmp_path, augment_on="device", accelerator_config={"dispatch_batches": True})
    with pytest.raises(
        ConfigError, match=r"got `device`: Own has no device version; `dispatch_batches` sends tensors only"
    ):
        augmentation_of_trainer(args, Own(tiny_plus.plus, tiny_plus.provenance), default_data_collator)
    with pytest.raises(ConfigError, match="`augment_on` must be one of auto, cpu, device, got 'gpu'"):
        settings_in(tmp_path, augment_on="gpu")


def test_convolutions_in_channels_last(tmp_path, tiny_plus):
    """Also what is saved is as ever, and a run can be resumed from it."""

    def model():
        return timm_student("test_resnet")

    saving = {"channels_last": True, "save_strategy": "steps", "save_steps": 4, "ema_decay": 0.9}
    trainer = trained(tmp_path / "a", tiny_plus, model=model, augment_on="device", **saving)
    convolutions = [p for p in trainer.model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert convolutions
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in convolutions)
    assert all(b["pixel_values"].is_contiguous(memory_format=torch.channels_last) for b in trainer.seen)
    resumed = trained(
        tmp_path / "a",
        copy.copy(tiny_plus),
        model=model,
        augment_on="device",
        resume=str(tmp_path / "a" / "checkpoint-4"),
        **saving,
    )
    assert same(weights(resumed.model), weights(trainer.model))
    assert not trained(tmp_path / "b", copy.copy(tiny_plus), model=model)._channels_last, "not on a CPU by itself"

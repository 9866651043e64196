"""MixUp and CutMix of batches in a training, and a teacher in memory."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import nn

from hf_dr.errors import ConfigError, TeacherError
from hf_dr.teacher.ensemble import Teacher
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.distillation import OnlineDistillationTrainer
from hf_dr.training.trainer import ReinforcedTrainer
from training.helpers import (
    BATCH,
    ROWS,
    STEPS,
    Watched,
    logits_of,
    losses_of,
    normalized,
    pooled,
    same,
    timm_student,
    weights,
)


class Mixed(ReinforcedTrainer):
    """Keeps what the loss is computed from."""

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **settings: Any) -> Any:
        if model.training:
            self.__dict__.setdefault("batches", []).append(inputs)
        return super().compute_loss(model, inputs, *rest, **settings)


class MixedDistillation(Mixed, OnlineDistillationTrainer):
    pass


ON_LABELS = {"reinforced_probability": 0.0, "mixup_alpha": 0.8, "cutmix_alpha": 1.0}


def loss_of_soft_labels(model: nn.Module, inputs: dict[str, Any], smoothing: float) -> torch.Tensor:
    """As timm has it."""
    target = mixup_target(inputs["labels"], 8, inputs.get("lam", 1.0), smoothing)
    return SoftTargetCrossEntropy()(model(pixel_values=inputs["pixel_values"])["logits"], target)


@pytest.mark.parametrize("changes", [{"mixup_alpha": 0.0}, {"cutmix_alpha": 0.0}, {"mixup_switch_prob": 0.3}], ids=str)
def test_mixed_images_learn_from_labels_in_the_same_proportion(plain, settings, changes):
    # At a rate of 0 the model stays what it is, so that each loss can be computed afterwards.
    args = settings(**{**ON_LABELS, **changes}, num_train_epochs=2, learning_rate=0.0, unreinforced_label_smoothing=0.1)
    student = timm_student()
    trainer = Mixed(student, args, train_dataset=plain, eval_dataset=plain)
    trainer.train()
    with torch.no_grad():
        expected = [loss_of_soft_labels(student, inputs, 0.1).item() for inputs in trainer.batches]
    assert losses_of(trainer) == pytest.approx(expected, rel=1e-5)
    assert len({inputs["lam"] for inputs in trainer.batches}) > STEPS, "each batch has its own mix"
    assert (
        trainer.evaluate()["eval_loss"] == ReinforcedTrainer(student, args, eval_dataset=plain).evaluate()["eval_loss"]
    )


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator")
def test_an_online_teacher_may_be_on_another_device(plain, tiny_teacher, settings):
    args = settings(**ON_LABELS, use_cpu=True)
    losses = []
    for device in ("cpu", torch.accelerator.current_accelerator()):
        teacher = Teacher(copy.deepcopy(tiny_teacher.members), device=device)
        trainer = OnlineDistillationTrainer(pooled(), args, train_dataset=plain, teacher=teacher)
        trainer.train()
        losses.append(losses_of(trainer))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_an_online_teacher_answers_for_the_mix(plain, tiny_teacher, settings):
    student = pooled()
    before = copy.deepcopy(student)
    args = settings(**ON_LABELS, per_device_train_batch_size=ROWS, temperature=2.0)
    trainer = MixedDistillation(student, args, train_dataset=plain, teacher=tiny_teacher)
    found = trainer.train().training_loss
    (inputs,) = trainer.batches
    assert inputs["lam"] < 1
    assert torch.equal(normalized(inputs["views"]), inputs["pixel_values"])
    with torch.no_grad():
        target = (tiny_teacher(inputs["views"]) / 2).log_softmax(-1)
        student_logprobs = (logits_of(before, inputs["views"]) / 2).log_softmax(-1)
        loss = 4 * F.kl_div(student_logprobs, target, reduction="batchmean", log_target=True)
    assert found == pytest.approx(loss.item(), rel=1e-5)


def test_accumulated_batches_are_mixed_each_for_itself(plain, settings):
    args = settings(**ON_LABELS, per_device_train_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.0)
    student = pooled()
    trainer = Mixed(student, args, train_dataset=plain)
    trainer.train()
    assert len({inputs["lam"] for inputs in trainer.batches}) == 2 * STEPS
    with torch.no_grad():
        each = [loss_of_soft_labels(student, inputs, 0.0).item() for inputs in trainer.batches]
    assert losses_of(trainer) == pytest.approx([np.mean(each[n : n + 2]) for n in range(0, 2 * STEPS, 2)], rel=1e-5)


def test_what_mixes_nothing_is_plain_training(plain, settings):
    """Alphas of 0; a probability of 0; batches of one image, which has no other to be mixed with."""
    found = {}
    for name, changes in {
        "plain": {"mixup_alpha": 0.0, "cutmix_alpha": 0.0},
        "never": {"mixup_prob": 0.0},
        "alone": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": BATCH},
        "mixed": {},
    }.items():
        student = pooled()
        ReinforcedTrainer(student, settings(**{**ON_LABELS, **changes}), train_dataset=plain).train()
        found[name] = weights(student)
    assert same(found["plain"], found["never"])
    for name, value in found["plain"].items():
        torch.testing.assert_close(found["alone"][name], value, rtol=1e-4, atol=1e-6)
    assert not same(found["plain"], found["mixed"])


def test_each_process_draws_its_own_mixes(plain, settings, monkeypatch):
    lams = []
    monkeypatch.setattr(ReinforcedTrainingArguments, "world_size", 2)
    for rank in (0, 1):
        monkeypatch.setattr(ReinforcedTrainingArguments, "process_index", rank)
        args = settings(**ON_LABELS, per_device_train_batch_size=2, gradient_accumulation_steps=2)
        trainer = Mixed(pooled(), args, train_dataset=plain)
        trainer.train()
        lams += [inputs["lam"] for inputs in trainer.batches]
    assert len(set(lams)) == len(lams) == 4 * STEPS


def test_mixing_is_of_labels_and_new_views(plain, settings, pictures):
    for probability in (1.0, 0.99):
        args = settings(**{**ON_LABELS, "reinforced_probability": probability})
        with pytest.raises(
            ConfigError, match=r"must be 0 where stored views are replayed, .*got 0.8 and 1.0\. Set them"
        ):
            ReinforcedTrainer(pooled(), args, train_dataset=plain)
    with pytest.raises(ConfigError, match=r"need a dataset of this package .*got LabelledImages"):
        ReinforcedTrainer(pooled(), settings(**ON_LABELS), train_dataset=pictures)
    ReinforcedTrainer(pooled(), settings(**ON_LABELS, save_strategy="epoch"), train_dataset=plain).train()
    other = settings(**{**ON_LABELS, "cutmix_alpha": 0.0})
    with pytest.raises(ConfigError, match=r"differs in cutmix_alpha: 1.0 there, 0.0 here"):
        ReinforcedTrainer(pooled(), other, train_dataset=plain).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("bf16", [False, True])
def test_online_distillation_is_the_kl_to_the_whole_answer(plain, settings, make_teacher, temperature, bf16):
    class WatchedDistillation(Watched, OnlineDistillationTrainer):
        pass

    teacher, student = make_teacher(2.0), pooled()
    before = copy.deepcopy(student)
    args = settings(reinforced_probability=0.0, per_device_train_batch_size=ROWS, temperature=temperature, bf16=bf16)
    trainer = WatchedDistillation(student, args, train_dataset=plain, teacher=teacher)
    loss = trainer.train().training_loss
    (batch,) = trainer.seen
    assert not batch["reinforced"].any()
    pixels = batch["pixel_values"]
    with torch.no_grad():
        raw = teacher.members[0].model(teacher.members[0].preprocessing(pixels))
        target = (raw / temperature).softmax(-1)
        answer = (logits_of(before, pixels) / temperature).log_softmax(-1)
    expected = F.kl_div(answer, target, reduction="batchmean").item() * temperature**2
    assert loss == pytest.approx(expected, rel=2e-2 if bf16 else 1e-4)
    assert not same(weights(before), weights(student))


@pytest.mark.parametrize("mixes", [{}, {"mixup_alpha": 0.8}], ids=["plain", "mixed"])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_labels_have_their_weight_in_online_distillation(plain, settings, make_teacher, weight, mixes):
    given = {"reinforced_probability": 0.0, "learning_rate": 0.0, "unreinforced_label_smoothing": 0.1, **mixes}
    losses = []
    for label_weight in (0.0, weight):
        args = settings(**given, label_weight=label_weight)
        trainer = MixedDistillation(timm_student(), args, train_dataset=plain, teacher=make_teacher(2.0))
        trainer.train()
        losses.append(losses_of(trainer))
    with torch.no_grad():
        of_labels = [loss_of_soft_labels(trainer.model, inputs, 0.0).item() for inputs in trainer.batches]
    expected = [(1 - weight) * kl + weight * label for kl, label in zip(losses[0], of_labels, strict=True)]
    assert losses[1] == pytest.approx(expected, rel=1e-5)


def test_an_online_teacher_of_other_classes_is_refused(plain, settings, make_teacher):
    teacher = make_teacher()
    teacher = type(teacher)(teacher.members, classes=[0, 1, 2])
    alone = settings(reinforced_probability=0.0)
    with pytest.raises(TeacherError, match="the teacher must answer over the dataset's 8 classes, but it has 3"):
        OnlineDistillationTrainer(pooled(), alone, train_dataset=plain, teacher=teacher)
    teacher = make_teacher()
    reversed_names = replace(teacher.members[0], labels=tuple((name,) for name in plain.class_names[::-1]))
    with pytest.raises(
        TeacherError, match="the teacher's classes must be in the dataset's order, but class 0 is 'black'"
    ):
        OnlineDistillationTrainer(pooled(), alone, train_dataset=plain, teacher=type(teacher)([reversed_names]))
    with pytest.raises(ConfigError, match="`teacher` must be a Teacher, got str"):
        OnlineDistillationTrainer(pooled(), alone, train_dataset=plain, teacher="me/teacher")
    with pytest.raises(ConfigError, match=r"`reinforced_probability` must be 0 with a teacher in memory.* got 0\.99"):
        OnlineDistillationTrainer(pooled(), settings(), train_dataset=plain, teacher=teacher)

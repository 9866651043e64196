"""The loss of a training: what is stored, labels, mixes, accumulation, precision."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_dr.errors import ConfigError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.teacher.signals import SIGNALS
from hf_dr.training.losses import reinforced_kl
from hf_dr.training.trainer import ReinforcedTrainer
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomResizedCrop
from training.helpers import (
    BATCH,
    MODELS,
    ROWS,
    STEPS,
    VIEWS,
    Pooled,
    Watched,
    every_view,
    logits_of,
    losses_of,
    pooled,
    same,
    timm_student,
    weights,
)


@pytest.mark.parametrize("model", MODELS)
def test_the_loss_is_the_kl_to_what_is_stored_and_goes_down(plain, settings, model):
    student = MODELS[model]()
    before = copy.deepcopy(student).train()
    sure = {"reinforced_probability": 1.0, "optim": "adamw_torch", "learning_rate": 0.01}
    trainer = Watched(student, settings(num_train_epochs=8, **sure), train_dataset=plain)
    trainer.train()
    losses, batch = losses_of(trainer), trainer.seen[0]
    assert batch["teacher_ids"].shape == (BATCH, 3)
    with torch.no_grad():
        logits = logits_of(before, batch["pixel_values"])
        expected = reinforced_kl(logits, batch["teacher_ids"], batch["teacher_logprobs"]).mean().item()
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert np.mean(losses[-2 * STEPS :]) < 0.9 * np.mean(losses[: 2 * STEPS])
    assert not same(weights(before), weights(student))


def test_the_stored_answers_belong_to_the_pixels(tiny_plus, settings):
    trainer = Watched(pooled(), settings(num_train_epochs=VIEWS, reinforced_probability=1.0), train_dataset=tiny_plus)
    trainer.train()
    known = every_view(tiny_plus)
    for batch in trainer.seen:
        for place, pixels in enumerate(batch["pixel_values"]):
            item = tiny_plus[known[pixels.numpy().tobytes()]]
            for name in ("teacher_ids", "teacher_logprobs"):
                assert torch.equal(batch[name][place], item[name])
            assert batch["labels"][place] == item["labels"]


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 3.0},
        {"tail": "bucket"},
        {"tail": "zero", "temperature": 0.5},
        {"label_weight": 0.3},
        {"label_weight": 1.0, "unreinforced_label_smoothing": 0.5},
        {"reinforced_probability": 0.5},
        {"reinforced_probability": 0.5, "unreinforced_label_smoothing": 0.2, "label_weight": 0.4},
        {"reinforced_probability": 0.0, "temperature": 7.0},
        {"reinforced_probability": 0.0, "unreinforced_label_smoothing": 0.2},
    ],
    ids=str,
)
def test_each_setting_reaches_the_loss(plain, settings, changes):
    args = settings(**{"reinforced_probability": 1.0, "per_device_train_batch_size": ROWS, **changes})
    student = pooled()
    before = copy.deepcopy(student)
    trainer = Watched(student, args, train_dataset=plain)
    found = trainer.train().training_loss
    (batch,) = trainer.seen
    losses = []
    with torch.no_grad():
        for place in range(ROWS):
            logits, label = logits_of(before, batch["pixel_values"][[place]]), batch["labels"][[place]]
            if batch["reinforced"][place]:
                ids, logprobs = batch["teacher_ids"][[place]], batch["teacher_logprobs"][[place]]
                kl = reinforced_kl(
                    logits, ids, logprobs, tail=args.tail or "uniform", temperature=args.temperature
                ).item()
                weight = args.label_weight
                losses.append((1 - weight) * kl + weight * F.cross_entropy(logits, label).item())
            else:
                smoothing = args.unreinforced_label_smoothing
                losses.append(F.cross_entropy(logits, label, label_smoothing=smoothing).item())
    assert found == pytest.approx(np.mean(losses), rel=1e-5)
    if args.reinforced_probability == 0.5:
        assert 0 < batch["reinforced"].sum() < ROWS


@pytest.fixture(scope="module")
def of_signal(tmp_path_factory: pytest.TempPathFactory, tiny_dataset, make_teacher) -> dict[str, ReinforcedDataset]:
    """A dataset of each signal: 3 views, top 2."""
    opened = {}
    for signal in SIGNALS:
        folder = tmp_path_factory.mktemp(signal)
        config = ReinforceConfig(str(folder), num_views=3, top_k=2, signal=signal)
        reinforce(tiny_dataset, make_teacher(2.0), Augmentation([RandomResizedCrop(16)]), config)
        opened[signal] = load_reinforced(folder)
    return opened


@pytest.mark.parametrize(
    ("signal", "tail", "rule"),
    [
        ("topk", None, "uniform"),
        ("topk_image_tail", None, "image"),
        ("topk_image_tail", "uniform", "uniform"),
        ("sampled", None, "renormalize"),
        ("sampled", "zero", "zero"),
    ],
)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_each_signal_is_learnt_by_its_rule(of_signal, settings, signal, tail, rule, share):
    args = settings(tail=tail, reinforced_probability=share, per_device_train_batch_size=ROWS, temperature=2.0)
    student = pooled()
    before = copy.deepcopy(student)
    trainer = Watched(student, args, train_dataset=of_signal[signal])
    found = trainer.train().training_loss
    (batch,) = trainer.seen
    assert ("tail_ids" in batch) == (signal == "topk_image_tail")
    stored = batch["reinforced"]
    more = {}
    if rule == "image":
        more = {"tail_ids_BT": batch["tail_ids"][stored], "tail_logprobs_BT": batch["tail_logprobs"][stored]}
    with torch.no_grad():
        logits = logits_of(before, batch["pixel_values"])
        answers = batch["teacher_ids"][stored], batch["teacher_logprobs"][stored]
        expected = F.cross_entropy(logits, batch["labels"], reduction="none")
        expected[stored] = reinforced_kl(logits[stored], *answers, tail=rule, temperature=2.0, **more)
        assert found == pytest.approx(expected.mean().item(), rel=1e-5)
    assert trainer.run_settings()["tail"] == rule


@pytest.mark.parametrize(
    ("signal", "tail", "message"),
    [
        (
            "topk",
            "image",
            "`tail` must be one of uniform, bucket, renormalize, zero for the signal `topk`, got 'image': no",
        ),
        (
            "sampled",
            "uniform",
            "`tail` must be one of renormalize, zero for the signal `sampled`, got 'uniform': what was",
        ),
        ("sampled", "bucket", "`tail` must be one of renormalize, zero for the signal `sampled`, got 'bucket'"),
    ],
)
def test_a_tail_rule_that_does_not_fit_the_signal(of_signal, settings, signal, tail, message):
    with pytest.raises(ConfigError, match=message):
        ReinforcedTrainer(pooled(), settings(tail=tail), train_dataset=of_signal[signal])


def test_each_signal_is_evaluated_by_its_own_rule(of_signal, settings):
    """Whatever is learnt from; a rule that was given must fit both."""
    own = {
        signal: ReinforcedTrainer(pooled(), settings(), train_dataset=of_signal[signal], eval_dataset=of_signal[signal])
        for signal in SIGNALS
    }
    for learnt in SIGNALS:
        trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=of_signal[learnt], eval_dataset=of_signal)
        rule = trainer.run_settings()["tail"]
        found = trainer.evaluate()
        for signal, other in own.items():
            assert found[f"eval_{signal}_loss"] == other.evaluate()["eval_loss"], (learnt, signal)
        assert trainer.run_settings()["tail"] == rule
    with pytest.raises(ConfigError, match=r"must be one of uniform, .* for the signal `topk`, got 'image'"):
        ReinforcedTrainer(
            pooled(),
            settings(tail="image"),
            train_dataset=of_signal["topk_image_tail"],
            eval_dataset={"other": of_signal["topk"]},
        )


def test_rows_without_stored_views_learn_from_their_label(tmp_path, tiny_dataset, tiny_teacher, settings):
    """Whatever share of the others is replayed; also where such rows are only evaluated."""
    config = ReinforceConfig(str(tmp_path), num_views=1, top_k=3, overlay=True, max_examples=8)
    reinforce(tiny_dataset, tiny_teacher, Augmentation([RandomResizedCrop(16)]), config)
    dataset = load_reinforced(tmp_path, base=tiny_dataset, unreinforced=True)
    args = settings(reinforced_probability=1.0, per_device_train_batch_size=ROWS, unreinforced_label_smoothing=0.2)
    student = pooled()
    before = copy.deepcopy(student)
    trainer = Watched(student, args, train_dataset=dataset)
    found = trainer.train().training_loss
    (batch,) = trainer.seen
    assert batch["reinforced"].sum() == 8
    with torch.no_grad():
        logits = logits_of(before, batch["pixel_values"])
        stored = batch["reinforced"]
        expected = F.cross_entropy(logits, batch["labels"], reduction="none", label_smoothing=0.2)
        answers = batch["teacher_ids"][stored], batch["teacher_logprobs"][stored]
        expected[stored] = reinforced_kl(logits[stored], *answers)
        assert found == pytest.approx(expected.mean().item(), rel=1e-5)
        only = ReinforcedDataset(dataset.plus, dataset.provenance, base=tiny_dataset)
        evaluated = ReinforcedTrainer(before, args, train_dataset=only, eval_dataset=dataset).evaluate()["eval_loss"]
        one = [{k: torch.as_tensor(v)[None] for k, v in dataset[row].items()} for row in range(ROWS)]
        losses = [
            reinforced_kl(logits_of(before, i["pixel_values"]), i["teacher_ids"], i["teacher_logprobs"]).item()
            if i["reinforced"]
            else F.cross_entropy(logits_of(before, i["pixel_values"]), i["labels"], label_smoothing=0.2).item()
            for i in one
        ]
    assert evaluated == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("kind", ["timm test_vit", "transformers ViT"])
def test_four_small_batches_are_one_large_one(plain, settings, kind):
    found = []
    for size, steps in ((4, 1), (1, 4)):
        student = MODELS[kind]()
        args = settings(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            reinforced_probability=0.5,
            momentum=0.5,
            max_grad_norm=0,  # it would hide gradients that are several times too large, or too small
        )
        trainer = Watched(student, args, train_dataset=plain)
        trainer.train()
        assert len(trainer.seen) == STEPS * steps
        found.append((weights(student), losses_of(trainer)))
    (large, large_losses), (small, small_losses) = found
    assert large_losses == pytest.approx(small_losses, rel=1e-4)
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=1e-4, atol=1e-6)


def test_autocast_to_bfloat16(plain, settings):
    found = {}
    for bf16 in (False, True):
        student = timm_student()
        dtypes = set()
        student.timm_model.head.register_forward_hook(lambda _, __, out, dtypes=dtypes: dtypes.add(out.dtype))
        trainer = ReinforcedTrainer(student, settings(bf16=bf16), train_dataset=plain)
        dtypes.clear()  # of the image that it is shown first
        trainer.train()
        assert dtypes == {torch.bfloat16 if bf16 else torch.float32}
        assert {value.dtype for value in student.parameters()} == {torch.float32}
        found[bf16] = losses_of(trainer)
    assert found[True] == pytest.approx(found[False], rel=0.05)
    assert found[True] != found[False]


@pytest.mark.filterwarnings(
    "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"
)  # torch's, of this version only
def test_torch_compile_changes_nothing(plain, settings):
    found = []
    # The eager backend traces the model without calling a C++ compiler.
    for changes in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        student = timm_student()
        trainer = ReinforcedTrainer(student, settings(max_steps=2, ema_decay=0.5, **changes), train_dataset=plain)
        trainer.train()
        found.append((losses_of(trainer), weights(student)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    assert found[0][1].keys() == found[1][1].keys()


def test_without_labels_the_student_still_learns(unlabelled, settings):
    trainer = ReinforcedTrainer(
        pooled(), settings(num_train_epochs=6, reinforced_probability=1.0), train_dataset=unlabelled
    )
    trainer.train()
    losses = losses_of(trainer)
    assert np.mean(losses[-STEPS:]) < 0.8 * np.mean(losses[:STEPS])


def test_other_datasets_are_trainers_own_business(pictures, settings):
    student = pooled()
    before = copy.deepcopy(student)
    trainer = Watched(student, settings(per_device_train_batch_size=ROWS), train_dataset=pictures)
    loss = trainer.train().training_loss
    (batch,) = trainer.seen
    with torch.no_grad():
        expected = F.cross_entropy(logits_of(before, batch["pixel_values"]), batch["labels"])
    assert loss == pytest.approx(expected.item(), rel=1e-5)


class NoLabels(Pooled):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(pixel_values)["logits"]


def test_a_model_that_takes_no_labels_and_returns_bare_logits(plain, settings):
    torch.manual_seed(0)
    trainer = Watched(NoLabels(), settings(reinforced_probability=1.0), train_dataset=plain)
    trainer.train()
    expected = Watched(pooled(), settings(reinforced_probability=1.0), train_dataset=plain)
    expected.train()
    assert same(weights(trainer.model), weights(expected.model))
    for changes in ({}, {"label_weight": 0.5, "reinforced_probability": 1.0}):  # the loss takes labels, not the model
        found = ReinforcedTrainer(NoLabels(), settings(**changes), train_dataset=plain)
        assert found.train().training_loss > 0
        assert "eval_loss" in found.evaluate(plain)

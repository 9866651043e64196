"""Training on a "+" dataset: the loss, what the student sees, restarts, averages, evaluation, refusals."""

import copy
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.data_loader import BatchSamplerShard
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from samples import TWO_PROCESSES
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageClassification as AutoClassifier
from transformers import (
    CLIPImageProcessor,
    ConvNextImageProcessor,
    EarlyStoppingCallback,
    ResNetConfig,
    TrainerCallback,
    ViTConfig,
    ViTImageProcessor,
)

from hf_dr.errors import ConfigError, DataError, FormatError, ReplayError
from hf_dr.evaluation.metrics import classification_metrics, compute_metrics
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.teacher.signals import SIGNALS
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.distillation import OnlineDistillationTrainer
from hf_dr.training.losses import reinforced_kl
from hf_dr.training.students import LabelledImages, build_student, evaluation_augmentation, load_processor, normalize
from hf_dr.training.trainer import ReinforcedTrainer
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import CenterCrop, RandomHorizontalFlip, RandomResizedCrop
from hf_dr.views.ops.mixing import MixUp

SIZE, ROWS, VIEWS, BATCH = 24, 12, 4, 4
STEPS = ROWS // BATCH  # of an epoch
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pooled(nn.Module):
    """A linear layer on 4x4 pooled pixels: the smallest model that Trainer takes."""

    def __init__(self, classes: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(48, classes)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.linear(self.dropout(F.adaptive_avg_pool2d(pixel_values, 4).flatten(1)))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Watched(ReinforcedTrainer):
    """Keeps the batches that the student is trained on."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []
        super().__init__(*args, **settings)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        self.seen.append({name: value.clone() for name, value in inputs.items()})
        return super().training_step(model, inputs, *rest)


class KilledError(Exception):
    """What the process would not live to raise."""


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KilledError


def pooled(**settings: Any) -> Pooled:
    torch.manual_seed(0)
    return Pooled(**settings)


def timm_student(architecture: str = "test_vit", **model_args: Any) -> nn.Module:
    torch.manual_seed(0)
    if architecture == "test_vit":
        model_args = {"img_size": SIZE, "patch_size": 8, **model_args}
    return build_student(f"timm:{architecture}", None, 8, model_args=model_args, size=SIZE)


def transformers_student(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "vit":
        tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        return AutoClassifier.from_config(ViTConfig(image_size=SIZE, patch_size=8, num_labels=8, **tiny))
    return AutoClassifier.from_config(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=8)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm test_vit": timm_student,
    "timm test_resnet": lambda: timm_student("test_resnet"),
    "transformers ViT": lambda: transformers_student("vit"),
    "transformers ResNet": lambda: transformers_student("resnet"),
    "a module of one's own": pooled,
}


@pytest.fixture(autouse=True, scope="module")
def impatient() -> Iterator[None]:
    """Torch gives persistent workers of a loader in a reference cycle, as any Trainer's is, 5 s before it ends them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
        yield
        gc.collect()


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., ReinforcedTrainingArguments]:
    def build(**changes: Any) -> ReinforcedTrainingArguments:
        given = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "per_device_train_batch_size": BATCH,
            "per_device_eval_batch_size": 5,
            "num_train_epochs": 1,
            "optim": "sgd",
            "learning_rate": 0.05,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            **changes,
        }
        return ReinforcedTrainingArguments(**given)

    return build


@pytest.fixture(scope="module")
def _plain(tmp_path_factory: pytest.TempPathFactory, tiny_dataset, tiny_teacher) -> ReinforcedDataset:
    folder = tmp_path_factory.mktemp("plain")
    augmentation = Augmentation([RandomResizedCrop(SIZE), RandomHorizontalFlip()])
    reinforce(tiny_dataset, tiny_teacher, augmentation, ReinforceConfig(str(folder), num_views=VIEWS, top_k=3))
    return load_reinforced(folder)


@pytest.fixture
def plain(_plain: ReinforcedDataset) -> ReinforcedDataset:
    """A "+" dataset that does not mix."""
    return copy.copy(_plain)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory, tiny_dataset, tiny_teacher) -> ReinforcedDataset:
    folder = tmp_path_factory.mktemp("unlabelled")
    config = ReinforceConfig(str(folder), num_views=VIEWS, top_k=3, label_column="none")
    reinforce(tiny_dataset, tiny_teacher, Augmentation([RandomResizedCrop(SIZE)]), config)
    return load_reinforced(folder)


@pytest.fixture(scope="module")
def pictures(tiny_dataset) -> LabelledImages:
    return LabelledImages(tiny_dataset, evaluation_augmentation(SIZE))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two models, or two batches, are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def by_hand(pixels: torch.Tensor) -> torch.Tensor:
    """The student's input, by the definition."""
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return (pixels / 255 - mean) / std


def logits_of(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixel_values=by_hand(pixels))["logits"]


def losses_of(trainer: ReinforcedTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def every_view(dataset: ReinforcedDataset) -> dict[bytes, tuple[int, int]]:
    """Pixels -> (row, view) of all that is stored."""
    known = {
        dataset[row, view]["pixel_values"].numpy().tobytes(): (row, view)
        for row in range(len(dataset))
        for view in range(dataset.num_views)
    }
    assert len(known) == len(dataset) * dataset.num_views, "views must differ for this test"
    return known


def shown(trainer: Watched) -> Iterator[torch.Tensor]:
    return (pixels for batch in trainer.seen for pixels in batch["pixel_values"])


# ------------------------------------------------------------------------------------------------------------- the loss


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
    more = {"tail_ids_BT": batch["tail_ids"], "tail_logprobs_BT": batch["tail_logprobs"]} if rule == "image" else {}
    with torch.no_grad():
        logits = logits_of(before, batch["pixel_values"])
        answers = batch["teacher_ids"], batch["teacher_logprobs"]
        kl = reinforced_kl(logits, *answers, tail=rule, temperature=2.0, **more)
        label = F.cross_entropy(logits, batch["labels"], reduction="none")
        assert found == pytest.approx(torch.where(batch["reinforced"], kl, label).mean().item(), rel=1e-5)
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


def test_another_signal_is_evaluated_if_the_rule_fits_it_too(of_signal, settings):
    """There is one rule: that of what is learnt from."""
    topk = of_signal["topk"]
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=of_signal["sampled"], eval_dataset=topk)
    assert trainer.evaluate()["eval_loss"] > 0
    with pytest.raises(ConfigError, match=r"must be one of uniform, .* for the signal `topk`, got 'image'"):
        ReinforcedTrainer(
            pooled(), settings(), train_dataset=of_signal["topk_image_tail"], eval_dataset=topk
        ).evaluate()


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
        kl = reinforced_kl(logits, batch["teacher_ids"], batch["teacher_logprobs"])
        label = F.cross_entropy(logits, batch["labels"], reduction="none", label_smoothing=0.2)
        assert found == pytest.approx(torch.where(batch["reinforced"], kl, label).mean().item(), rel=1e-5)
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


def test_four_small_batches_are_one_large_one(plain, settings):
    found = []
    for size, steps in ((4, 1), (1, 4)):
        student = timm_student()
        args = settings(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            reinforced_probability=0.5,
            momentum=0.5,
        )
        trainer = Watched(student, args, train_dataset=plain)
        trainer.train()
        assert len(trainer.seen) == STEPS * steps
        found.append((weights(student), losses_of(trainer)))
    (large, large_losses), (small, small_losses) = found
    assert large_losses == pytest.approx(small_losses, rel=1e-4)
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=1e-4, atol=1e-6)


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
    target = mixup_target(inputs["labels"], 8, inputs["lam"], smoothing)
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


def test_an_online_teacher_answers_for_the_mix(plain, tiny_teacher, settings):
    student = pooled()
    before = copy.deepcopy(student)
    args = settings(**ON_LABELS, per_device_train_batch_size=ROWS, temperature=2.0)
    trainer = MixedDistillation(student, args, train_dataset=plain, teacher=tiny_teacher)
    found = trainer.train().training_loss
    (inputs,) = trainer.batches
    assert inputs["lam"] < 1
    assert torch.equal(normalize(inputs["views"], MEAN, STD), inputs["pixel_values"])
    with torch.no_grad():
        target = (tiny_teacher(inputs["views"]) / 2).log_softmax(-1)
        student_logprobs = (logits_of(before, inputs["views"]) / 2).log_softmax(-1)
    assert found == pytest.approx(4 * F.kl_div(student_logprobs, target, reduction="batchmean", log_target=True).item())


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


def test_autocast_to_bfloat16(plain, settings):
    found = {}
    for bf16 in (False, True):
        student = timm_student()
        dtypes = set()
        student.timm_model.head.register_forward_hook(lambda _, __, out, dtypes=dtypes: dtypes.add(out.dtype))
        trainer = ReinforcedTrainer(student, settings(bf16=bf16), train_dataset=plain)
        trainer.train()
        assert dtypes == {torch.bfloat16 if bf16 else torch.float32}
        assert {value.dtype for value in student.parameters()} == {torch.float32}
        found[bf16] = losses_of(trainer)
    assert found[True] == pytest.approx(found[False], rel=0.05)
    assert found[True] != found[False]


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


# ------------------------------------------------------------------------------------------------- what the student sees


@pytest.mark.parametrize("mixing", [False, True])
def test_in_as_many_epochs_as_views_each_view_is_shown_once(plain, tiny_plus, settings, mixing):
    dataset = tiny_plus if mixing else plain
    trainer = Watched(pooled(), settings(num_train_epochs=VIEWS, reinforced_probability=1.0), train_dataset=dataset)
    trainer.train()
    known = every_view(dataset)
    order = [known[pixels.numpy().tobytes()] for pixels in shown(trainer)]
    assert sorted(order) == sorted(known.values())
    for epoch in range(VIEWS):
        assert sorted(row for row, _ in order[epoch * ROWS : (epoch + 1) * ROWS]) == list(range(ROWS))


def test_random_views_repeat(plain, settings):
    args = settings(num_train_epochs=VIEWS, reinforced_probability=1.0, view_order="random")
    trainer = Watched(pooled(), args, train_dataset=plain)
    trainer.train()
    known = every_view(plain)
    order = [known[pixels.numpy().tobytes()] for pixels in shown(trainer)]
    assert len(set(order)) < len(order)
    assert sorted(row for row, _ in order) == sorted(list(range(ROWS)) * VIEWS)


@pytest.mark.parametrize("workers", [{}, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}], ids=str)
@pytest.mark.parametrize("order", ["easy_first", "hard_first"])
def test_views_come_by_their_difficulty_over_the_whole_training(plain, settings, order, workers):
    args = settings(num_train_epochs=VIEWS, reinforced_probability=1.0, view_order=order, **workers)
    trainer = Watched(pooled(), args, train_dataset=plain)
    trainer.train()
    known = every_view(plain)
    shown_by: dict[int, list[float]] = {row: [] for row in range(ROWS)}
    for row, view in (known[pixels.numpy().tobytes()] for pixels in shown(trainer)):
        shown_by[row].append(plain.difficulties(row, "entropy")[view])
    for row, values in shown_by.items():
        assert (values if order == "easy_first" else values[::-1]) == sorted(plain.difficulties(row, "entropy"))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_train_epochs": 3}, {"num_train_epochs": 1.5}, {"max_steps": 1}, {"max_steps": STEPS}, {"max_steps": 7},
        {"max_steps": 5, "gradient_accumulation_steps": 2},
        {"max_steps": 5, "per_device_train_batch_size": 5}, {"max_steps": 2, "gradient_accumulation_steps": 64},
        {"max_steps": 5, "per_device_train_batch_size": 5, "dataloader_drop_last": True},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("streaming", [False, True])
def test_the_epochs_of_the_training_are_known_before(in_shards, settings, changes, streaming):
    args = settings(view_order="easy_first", **changes)
    train = load_reinforced(in_shards["plain"], streaming=streaming)
    trainer = ReinforcedTrainer(pooled(), args, train_dataset=train)
    epochs = trainer._num_epochs
    trainer.train()
    assert epochs == trainer.state.num_train_epochs == -(-trainer.state.epoch // 1)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("processes", [2, 3, 5])
def test_several_processes_know_the_epochs_of_the_training(in_shards, settings, monkeypatch, processes, drop_last):
    """By the lengths of accelerate's batch sampler and of the shares of a stream."""
    for batch_size in (1, 2, 5):
        args = settings(
            view_order="easy_first", max_steps=7, per_device_train_batch_size=batch_size, dataloader_drop_last=drop_last
        )
        mapped, stream = (load_reinforced(in_shards["plain"], streaming=streaming) for streaming in (False, True))
        trainers = [ReinforcedTrainer(pooled(), args, train_dataset=train) for train in (mapped, stream)]
        batches = torch.utils.data.BatchSampler(range(ROWS), batch_size, drop_last)
        share = stream.split_by_node(0, processes, batch_size=batch_size, even=True)
        steps = (
            len(BatchSamplerShard(batches, processes)),
            len(torch.utils.data.DataLoader(share, batch_size, drop_last=drop_last)),
        )
        with monkeypatch.context() as patch:
            patch.setattr(type(args), "world_size", property(lambda _: processes))
            assert [trainer._num_epochs for trainer in trainers] == [-(-7 // max(1, n)) for n in steps]


def test_a_dataset_that_mixes_has_no_difficult_views(tiny_plus, settings):
    with pytest.raises(
        ConfigError, match="`view_order` must be all or random for a dataset that mixes, got hard_first"
    ):
        ReinforcedTrainer(pooled(), settings(view_order="hard_first"), train_dataset=tiny_plus)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_the_share_of_replayed_views(plain, settings, probability):
    trainer = Watched(pooled(), settings(num_train_epochs=8, reinforced_probability=probability), train_dataset=plain)
    trainer.train()
    stored, reinforced = every_view(plain), torch.cat([batch["reinforced"] for batch in trainer.seen])
    assert [pixels.numpy().tobytes() in stored for pixels in shown(trainer)] == reinforced.tolist()
    # 96 draws: three standard errors are 0.15.
    assert reinforced.float().mean().item() == pytest.approx(probability, abs=0.15 if probability == 0.5 else 0)


def test_the_seed_of_the_data_decides_the_order(plain, settings):
    orders = []
    for seeds in ({"seed": 1}, {"seed": 2, "data_seed": 1}, {"seed": 2}):
        trainer = Watched(pooled(), settings(**seeds), train_dataset=plain)
        trainer.train()
        orders.append([pixels.numpy().tobytes() for pixels in shown(trainer)])
    assert orders[0] == orders[1] != orders[2]


def test_training_twice_starts_from_the_first_epoch(plain, settings):
    trainer = Watched(pooled(), settings(num_train_epochs=2), train_dataset=plain)
    trainer.train()
    first, trainer.seen = trainer.seen, []
    trainer.train()
    assert all(same(a, b) for a, b in zip(first, trainer.seen, strict=True))


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("workers", [{"dataloader_num_workers": 1}, {"dataloader_persistent_workers": True}], ids=str)
def test_workers_change_neither_batches_nor_weights(plain, tiny_plus, settings, mixing, workers):
    found = []
    for changes in ({}, {"dataloader_num_workers": 1, **workers}):
        args = settings(num_train_epochs=2, reinforced_probability=0.5, **changes)
        trainer = Watched(pooled(dropout=0.5), args, train_dataset=tiny_plus if mixing else plain)
        trainer.train()
        found.append((trainer.seen, weights(trainer.model)))
    assert all(same(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))
    assert same(found[0][1], found[1][1])


def in_two_processes(function: Callable[..., None], folder: Path, *arguments: Any) -> None:
    """Calls a function of this module, with its arguments as text, in two processes together."""
    here = Path(__file__).parent
    script = folder / "script.py"
    script.write_text(
        f"import sys\nsys.path[:0] = {[str(here), str(here.parent)]}\n"
        f"from hf_dr.processes import process_state\nfrom test_trainer import {function.__name__}\n"
        f"process_state()\n{function.__name__}(*sys.argv[1:])\n"
    )
    command = [sys.executable, *TWO_PROCESSES, str(script), *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def train_and_save(plus: str, out: str, batch_size: str, **changes: Any) -> None:
    """Two epochs, and again from within the second; what was seen and learned, in one file for each process."""
    args = ReinforcedTrainingArguments(
        out, per_device_train_batch_size=int(batch_size), num_train_epochs=2, optim="sgd", learning_rate=0.05,
        save_steps=1, disable_tqdm=True, reinforced_probability=0.5, ddp_find_unused_parameters=False,
        **{"ema_decay": 0.5, **changes},
    )  # fmt: skip
    if args.fsdp:  # Accelerate shards on accelerators alone, though torch does anywhere.
        args.distributed_state._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trainer, resumed = (Watched(pooled(), args, train_dataset=load_reinforced(plus)) for _ in range(2))
    trainer.train()
    resumed.train(resume_from_checkpoint=f"{out}/checkpoint-{STEPS + 1}")
    assert all(same(a, b) for a, b in zip(trainer.seen[STEPS + 1 :], resumed.seen, strict=True))

    def learned(trainer: Watched) -> dict[str, torch.Tensor]:
        state = trainer.model.state_dict()
        assert all(isinstance(value, DTensor) == bool(args.fsdp) for value in state.values())
        return {name: value.full_tensor() if args.fsdp else value for name, value in state.items()}

    kept = {"model": learned(trainer)}
    assert same(kept["model"], learned(resumed))
    kept["batches"] = {f"{n}/{name}": value for n, batch in enumerate(trainer.seen) for name, value in batch.items()}
    if trainer.ema is not None:
        kept["ema"] = trainer.ema.module.state_dict()
    trainer.save_model(f"{out}/final")
    for name, tensors in kept.items():
        save_file(tensors, Path(out) / f"{name}_{args.process_index}.safetensors")


def train_sharded(plus: str, out: str, batch_size: str) -> None:
    train_and_save(plus, out, batch_size, ema_decay=None, fsdp=True, fsdp_config={"auto_wrap_policy": "NO_WRAP"})


@pytest.mark.parametrize(("train", "kinds"), [(train_and_save, ("model", "ema")), (train_sharded, ("model",))])
def test_two_processes_see_together_what_one_does(tmp_path, tiny_folder, train, kinds):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    train_and_save(str(tiny_folder), str(tmp_path / "one"), str(BATCH))
    in_two_processes(train, tmp_path, tiny_folder, tmp_path / "two", BATCH // 2)

    def saved(folder: str, kind: str, rank: int) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / folder / f"{kind}_{rank}.safetensors")

    one, *two = saved("one", "batches", 0), saved("two", "batches", 0), saved("two", "batches", 1)
    assert len({name.split("/")[0] for name in one}) == 2 * STEPS
    assert same(one, {name: torch.cat([part[name] for part in two]) for name in one})
    for kind in kinds:
        assert same(saved("two", kind, 0), saved("two", kind, 1))
        for name, value in saved("one", kind, 0).items():
            torch.testing.assert_close(saved("two", kind, 0)[name], value, rtol=1e-4, atol=1e-6)
    assert same(load_file(tmp_path / "two" / "final" / "model.safetensors"), saved("two", "model", 0))


# ------------------------------------------------------------------------------- streams, and several datasets at once


@pytest.fixture(scope="module")
def in_shards(tmp_path_factory: pytest.TempPathFactory, tiny_dataset, tiny_teacher) -> dict[str, Path]:
    """Folders of "+" datasets of 3 shards: one that mixes within them, one that does not."""
    folders = {}
    for seed, name, augmentation in (
        (0, "plain", Augmentation([RandomResizedCrop(SIZE), RandomHorizontalFlip()])),
        (1, "mixing", Augmentation([RandomResizedCrop(SIZE), MixUp(p=1.0)])),
    ):
        folders[name] = tmp_path_factory.mktemp(name)
        config = {"num_views": VIEWS, "top_k": 3, "shard_size": 5, "mixing_scope": "shard", "seed": seed}
        reinforce(tiny_dataset, tiny_teacher, augmentation, ReinforceConfig(str(folders[name]), name, **config))
    return folders


@pytest.mark.parametrize("workers", [{}, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}], ids=str)
@pytest.mark.parametrize("kind", ["plain", "mixing"])
def test_a_stream_shows_what_the_map_style_dataset_does(in_shards, settings, kind, workers):
    args = settings(num_train_epochs=2, reinforced_probability=1.0, **workers)
    trainer = Watched(pooled(), args, train_dataset=load_reinforced(in_shards[kind], streaming=True))
    trainer.train()
    dataset = load_reinforced(in_shards[kind])
    known = every_view(dataset)
    assert (trainer.state.global_step, trainer.state.epoch) == (2 * STEPS, 2.0)
    assert trainer.num_examples(trainer.get_train_dataloader()) == ROWS
    for epoch in range(2):
        batches = trainer.seen[epoch * STEPS : (epoch + 1) * STEPS]
        indices = [known[pixels.numpy().tobytes()] for batch in batches for pixels in batch["pixel_values"]]
        assert sorted(indices) == list(enumerate(dataset.scheduled_views(np.arange(ROWS), epoch).tolist()))


@pytest.mark.parametrize(("killed_at", "workers"), [(2, 0), (3, 2), (4, 2)])
def test_a_stream_goes_on_where_it_was(in_shards, settings, tmp_path, killed_at, workers):
    def start(name: str, *callbacks: TrainerCallback) -> Watched:
        args = settings(
            output_dir=str(tmp_path / name), num_train_epochs=3, save_strategy="steps", save_steps=1,
            reinforced_probability=0.5, view_order="random", dataloader_num_workers=workers,
        )  # fmt: skip
        stream = load_reinforced(in_shards["mixing"], streaming=True)
        return Watched(pooled(dropout=0.5), args, train_dataset=stream, callbacks=list(callbacks))

    whole = start("whole")
    whole.train()
    with pytest.raises(KilledError):
        start("killed", KillAt(killed_at)).train()
    resumed = start("killed")
    resumed.train(resume_from_checkpoint=True)
    assert len(resumed.seen) == 3 * STEPS - killed_at
    assert all(same(a, b) for a, b in zip(whole.seen[killed_at:], resumed.seen, strict=True))
    assert same(weights(resumed.model), weights(whole.model))


def test_a_stream_goes_on_with_as_many_workers_only(in_shards, settings):
    def start(**changes: Any) -> ReinforcedTrainer:
        stream = load_reinforced(in_shards["plain"], streaming=True)
        return ReinforcedTrainer(pooled(), settings(save_strategy="epoch", **changes), train_dataset=stream)

    start().train()
    with pytest.raises(ConfigError, match=r"differs in streamed_by: \[1, 0\] there, \[1, 1\] here"):
        start(num_train_epochs=2, dataloader_num_workers=1).train(resume_from_checkpoint=True)


def test_a_share_of_a_stream_is_refused(in_shards, unlabelled, settings):
    share = load_reinforced(in_shards["plain"], streaming=True).split_by_node(0, 2)
    with pytest.raises(ConfigError, match=r"must be split once, but this is one process's share"):
        ReinforcedTrainer(pooled(), settings(), train_dataset=share)


def stream_and_save(plus: str, out: str, batch_size: str) -> None:
    """Three epochs, and again from within the second; what was seen, in one file for each process."""
    args = ReinforcedTrainingArguments(
        out, per_device_train_batch_size=int(batch_size), num_train_epochs=3, optim="sgd", learning_rate=0.05,
        save_steps=1, eval_strategy="epoch", disable_tqdm=True, reinforced_probability=1.0, dataloader_num_workers=1,
        ddp_find_unused_parameters=False,
    )  # fmt: skip
    held_out = load_reinforced(plus)
    trainer, resumed = (
        Watched(pooled(), args, train_dataset=load_reinforced(plus, streaming=True), eval_dataset=held_out)
        for _ in range(2)
    )
    trainer.train()
    steps = trainer.state.global_step // 3
    resumed.train(resume_from_checkpoint=f"{out}/checkpoint-{steps + 1}")
    assert all(same(a, b) for a, b in zip(trainer.seen[steps + 1 :], resumed.seen, strict=True))
    seen = {f"{n // steps}/{n}": batch["pixel_values"] for n, batch in enumerate(trainer.seen)}
    save_file(seen, Path(out) / f"seen_{args.process_index}.safetensors")
    save_file(trainer.model.state_dict(), Path(out) / f"model_{args.process_index}.safetensors")


def test_two_processes_share_a_stream(tmp_path, in_shards):
    """12 rows in 3 shards: each process sees 6 of them, in batches of 4 and 2."""
    in_two_processes(stream_and_save, tmp_path, in_shards["mixing"], tmp_path, BATCH)
    dataset = load_reinforced(in_shards["mixing"])
    known = every_view(dataset)
    shares = [load_file(tmp_path / f"seen_{rank}.safetensors") for rank in (0, 1)]
    for epoch in range(3):
        batches = [b for share in shares for name, b in share.items() if name.startswith(f"{epoch}/")]
        assert sorted(map(len, batches)) == [2, 2, BATCH, BATCH]
        indices = [known[pixels.numpy().tobytes()] for batch in batches for pixels in batch]
        assert sorted(indices) == list(enumerate(dataset.scheduled_views(np.arange(ROWS), epoch).tolist()))
    assert same(*(load_file(tmp_path / f"model_{rank}.safetensors") for rank in (0, 1)))


def test_several_datasets_at_once(in_shards, settings, tmp_path):
    """Their views add up; the card names both, and a checkpoint is of both."""
    both = load_reinforced([in_shards["plain"], in_shards["mixing"]])
    args = settings(num_train_epochs=2 * VIEWS, reinforced_probability=1.0, save_strategy="epoch")
    trainer = Watched(pooled(), args, train_dataset=both)
    trainer.train()
    known = every_view(both)
    seen = sorted(known[pixels.numpy().tobytes()] for pixels in shown(trainer))
    assert seen == [(row, view) for row in range(ROWS) for view in range(2 * VIEWS)]
    for batch in trainer.seen:
        assert len({known[pixels.numpy().tobytes()][1] for pixels in batch["pixel_values"]}) == 1

    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    for part in both.parts:
        assert part.provenance.fingerprint in card
    assert "plain + mixing" in card
    assert "12 examples, whose 4 + 4 views each were labelled by colours." in card

    one = ReinforcedTrainer(pooled(), args, train_dataset=both.parts[0])
    with pytest.raises(ConfigError, match=r"differs in dataset_fingerprint: .*; num_views: 8 there, 4 here"):
        one.train(resume_from_checkpoint=True)


# --------------------------------------------------------------------------------------------------------------- restarts


@pytest.mark.parametrize(
    ("killed_at", "mixing", "changes"),
    [
        (2, False, {}),  # within an epoch
        (3, True, {}),  # at an epoch's end
        (5, True, {}),
        (8, False, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
        (4, False, {"dataloader_num_workers": 1}),
        (3, True, {"dataloader_num_workers": 1}),
        (5, True, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}),
        (3, False, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}),
        (5, False, {"view_order": "hard_first", "view_difficulty": "cross_entropy"}),
        (5, False, {"reinforced_probability": 0.0, "mixup_alpha": 0.2, "cutmix_alpha": 1.0}),
        (
            4,
            False,
            {
                "reinforced_probability": 0.0, "mixup_alpha": 0.8, "mixup_prob": 0.7,
                "gradient_accumulation_steps": 2, "per_device_train_batch_size": 3,
            },
        ),
    ],
)  # fmt: skip
def test_killed_and_resumed_equals_uninterrupted(
    plain, tiny_plus, pictures, settings, tmp_path, killed_at, mixing, changes
):
    def start(name: str, *callbacks: TrainerCallback) -> Watched:
        args = settings(
            output_dir=str(tmp_path / name), num_train_epochs=4, save_strategy="steps", save_steps=1, ema_decay=0.7,
            optim="adamw_torch", learning_rate=0.01, lr_scheduler_type="cosine", eval_strategy="epoch",
            **{"reinforced_probability": 0.5, **changes},
        )  # fmt: skip
        dataset = copy.copy(tiny_plus if mixing else plain)
        student = pooled(dropout=0.5)
        return Watched(student, args, train_dataset=dataset, eval_dataset=pictures, callbacks=list(callbacks))

    whole = start("whole")
    whole.train()
    killed = start("killed", KillAt(killed_at))
    with pytest.raises(KilledError):
        killed.train()
    assert (tmp_path / "killed" / f"checkpoint-{killed_at}" / "ema.safetensors").is_file()
    resumed = start("killed")
    resumed.train(resume_from_checkpoint=True)

    done = killed_at * resumed.args.gradient_accumulation_steps
    assert len(resumed.seen) == len(whole.seen) - done > 0
    assert all(same(a, b) for a, b in zip(whole.seen[done:], resumed.seen, strict=True))
    assert same(weights(resumed.model), weights(whole.model))
    assert same(weights(resumed.ema), weights(whole.ema))
    last = whole.state.global_step
    for file in ("model.safetensors", "ema.safetensors"):
        one, other = (tmp_path / name / f"checkpoint-{last}" / file for name in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes()


def test_resuming_from_another_average_or_none(plain, settings):
    trainer = ReinforcedTrainer(pooled(), settings(save_strategy="epoch"), train_dataset=plain)
    trainer.train()
    later = ReinforcedTrainer(pooled(), settings(num_train_epochs=2, ema_decay=0.5), train_dataset=plain)
    with pytest.raises(
        ConfigError, match=r"averaged weights, but .*-3 has no ema\.safetensors\. Leave `ema_decay` out"
    ):
        later.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 2.0}, "temperature: 1.0 there, 2.0 here"),
        ({"reinforced_probability": 0.5}, "reinforced_probability: 0.99 there, 0.5 here"),
        ({"view_order": "random"}, "view_order: all there, random here"),
        ({"tail": "zero"}, "tail: uniform there, zero here"),
        ({"label_weight": 0.5}, "label_weight: 0.0 there, 0.5 here"),
        ({"unreinforced_label_smoothing": 0.1}, "unreinforced_label_smoothing: 0.0 there, 0.1 here"),
        ({"data_seed": 7}, "order_seed: 42 there, 7 here"),
        ({"dataset": "tiny_plus"}, "dataset_fingerprint: "),
        ({"num_views": 2}, "num_views: 4 there, 2 here"),
        ({"view_seed": 3}, "view_seed: 0 there, 3 here"),
        ({"rows": range(8)}, "num_rows: 12 there, 8 here"),
        ({"student": "other"}, "model: Pooled of 392 parameters there, test_vit of "),
    ],
    ids=str,
)
def test_a_checkpoint_of_other_settings_is_refused(plain, tiny_plus, settings, changes, message):
    trainer = ReinforcedTrainer(pooled(), settings(save_strategy="epoch"), train_dataset=plain)
    trainer.train()
    dataset = tiny_plus if changes.pop("dataset", None) else plain
    rows = dataset.plus.select(changes.pop("rows", range(ROWS)))
    views, seed = changes.pop("num_views", None), changes.pop("view_seed", 0)
    dataset = ReinforcedDataset(rows, dataset.provenance, num_views=views, seed=seed)
    student = timm_student() if changes.pop("student", None) else pooled()
    before = weights(student)
    later = ReinforcedTrainer(student, settings(num_train_epochs=2, **changes), train_dataset=dataset)
    with pytest.raises(ConfigError, match=r"must be resumed with its own settings, but .*-3 differs in ") as error:
        later.train(resume_from_checkpoint=True)
    assert message in str(error.value)
    assert "Restore them, or start a new run in another `output_dir`" in str(error.value)
    assert same(weights(student), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train_epochs": 3}, "num_epochs: 2 there, 3 here"),
        ({"max_steps": 2 * STEPS + 1}, "num_epochs: 2 there, 3 here"),
        ({"view_difficulty": "cross_entropy"}, "view_difficulty: entropy there, cross_entropy here"),
        ({"view_order": "hard_first"}, "view_order: easy_first there, hard_first here"),
        ({"view_order": "all"}, "num_epochs: 2 there, None here"),
    ],
    ids=str,
)
def test_the_difficulty_of_views_is_kept_and_so_are_the_epochs(plain, settings, changes, message):
    given = {"save_strategy": "epoch", "view_order": "easy_first", "num_train_epochs": 2}
    ReinforcedTrainer(pooled(), settings(**given), train_dataset=plain).train()
    other = ReinforcedTrainer(pooled(), settings(**{**given, **changes}), train_dataset=plain)
    with pytest.raises(ConfigError, match=r"must be resumed with its own settings, but .*-6 differs in ") as error:
        other.train(resume_from_checkpoint=True)
    assert message in str(error.value)
    same_epochs = ReinforcedTrainer(pooled(), settings(**{**given, "max_steps": 2 * STEPS}), train_dataset=plain)
    same_epochs.train(resume_from_checkpoint=True)


def test_more_epochs_are_no_other_run(plain, settings):
    ReinforcedTrainer(pooled(), settings(save_strategy="epoch"), train_dataset=plain).train()
    longer = Watched(pooled(), settings(num_train_epochs=2), train_dataset=plain)
    longer.train(resume_from_checkpoint=True)
    assert len(longer.seen) == STEPS


# ------------------------------------------------------------------------------------- evaluation, callbacks and averages


def test_evaluation_on_images(plain, pictures, settings):
    student = pooled()
    trainer = ReinforcedTrainer(
        student, settings(), train_dataset=plain, eval_dataset=pictures, compute_metrics=compute_metrics
    )
    metrics = trainer.evaluate()
    images, labels = (torch.stack([torch.as_tensor(pictures[n][k]) for n in range(ROWS)]) for k in pictures[0])
    with torch.no_grad():
        logits = logits_of(student, images)
    expected = classification_metrics(logits.numpy(), labels.numpy())
    assert metrics["eval_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(trainer.predict(pictures).predictions, logits.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("labels", [True, False])
def test_evaluation_on_stored_views(plain, unlabelled, settings, labels):
    dataset = plain if labels else unlabelled
    args = settings(reinforced_probability=1.0)
    trainer = ReinforcedTrainer(pooled(), args, train_dataset=dataset, eval_dataset=dataset)
    metrics = trainer.evaluate()
    items = [dataset[row] for row in range(ROWS)]
    with torch.no_grad():
        pixels, ids, logprobs = (torch.stack([item[k] for item in items]) for k in list(items[0])[:3])
        expected = reinforced_kl(logits_of(trainer.model, pixels), ids, logprobs)
    assert metrics["eval_loss"] == pytest.approx(expected.mean().item(), rel=1e-5)


def test_without_labels_the_student_still_learns(unlabelled, settings):
    trainer = ReinforcedTrainer(
        pooled(), settings(num_train_epochs=6, reinforced_probability=1.0), train_dataset=unlabelled
    )
    trainer.train()
    losses = losses_of(trainer)
    assert np.mean(losses[-STEPS:]) < 0.8 * np.mean(losses[:STEPS])


def test_early_stopping_and_the_best_model(plain, pictures, settings, tmp_path):
    class Worsen(TrainerCallback):
        """From the third epoch on, training makes the student worse."""

        def on_epoch_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
            if state.epoch >= 2:
                with torch.no_grad():
                    model.linear.weight.add_(10.0 * torch.randn_like(model.linear.weight))

    args = settings(
        num_train_epochs=9, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, ema_decay=0.9,
        metric_for_best_model="eval_nll", greater_is_better=False,
    )  # fmt: skip
    trainer = Watched(
        pooled(), args, train_dataset=plain, eval_dataset=pictures, compute_metrics=compute_metrics,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2), Worsen()],
    )  # fmt: skip
    trainer.train()
    assert len(trainer.seen) == 4 * STEPS
    best = tmp_path / "out" / f"checkpoint-{2 * STEPS}"
    assert Path(trainer.state.best_model_checkpoint) == best
    assert same(weights(trainer.model), load_file(best / "model.safetensors"))
    assert same(weights(trainer.ema.module), load_file(best / "ema.safetensors"))


def test_the_average_is_timms(plain, pictures, settings):
    steps: list[dict[str, torch.Tensor]] = []

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
            steps.append(weights(model))

    decay = 0.8
    args = settings(num_train_epochs=2, ema_decay=decay, learning_rate=0.5)
    trainer = ReinforcedTrainer(
        pooled(), args, train_dataset=plain, eval_dataset=pictures, compute_metrics=compute_metrics, callbacks=[Keep()]
    )
    trainer.train()
    average = steps[0]  # as in timm's own training script, the average begins at the first step's weights
    for step in steps[1:]:
        average = {name: decay * average[name] + (1 - decay) * step[name] for name in step}
    for name, value in trainer.ema.module.state_dict().items():
        torch.testing.assert_close(value, average[name])

    metrics = trainer.evaluate()
    assert same(weights(trainer.model), steps[-1]), "evaluating the average leaves the model as it was"
    other = pooled()
    other.load_state_dict(average)
    alone = ReinforcedTrainer(
        other, settings(), train_dataset=plain, eval_dataset=pictures, compute_metrics=compute_metrics
    )
    for name, value in alone.evaluate().items():
        if not name.endswith(("epoch", "runtime", "per_second", "preparation_time")):
            assert metrics[name.replace("eval_", "eval_ema_")] == pytest.approx(value, rel=1e-4)
    assert metrics["eval_ema_loss"] != metrics["eval_loss"]


def test_batch_normalisation_is_averaged_too(plain, settings):
    trainer = ReinforcedTrainer(timm_student("test_resnet"), settings(ema_decay=0.5), train_dataset=plain)
    trainer.train()
    mine, averaged = trainer.model.state_dict(), trainer.ema.module.state_dict()
    moved = [name for name in mine if name.endswith("running_mean") and not torch.equal(mine[name], averaged[name])]
    assert moved
    assert not any(module.training for module in trainer.ema.module.modules())


def test_a_model_init_gets_an_average_of_its_own(plain, settings):
    def fresh() -> Pooled:
        return pooled()

    trainer = ReinforcedTrainer(model_init=fresh, args=settings(ema_decay=0.5), train_dataset=plain)
    trainer.train()
    first = weights(trainer.ema.module)
    trainer.train()
    assert same(first, weights(trainer.ema.module))


def test_a_saved_student_answers_alike(plain, settings, tmp_path):
    student = timm_student()
    trainer = ReinforcedTrainer(student, settings(), train_dataset=plain)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoClassifier.from_pretrained(tmp_path / "saved")
    pixels = torch.stack([plain[row]["pixel_values"] for row in range(3)])
    with torch.no_grad():
        assert torch.equal(logits_of(student.eval(), pixels), logits_of(loaded.eval(), pixels))


def test_other_datasets_are_trainers_own_business(pictures, settings):
    student = pooled()
    before = copy.deepcopy(student)
    trainer = Watched(student, settings(per_device_train_batch_size=ROWS), train_dataset=pictures)
    loss = trainer.train().training_loss
    (batch,) = trainer.seen
    with torch.no_grad():
        expected = F.cross_entropy(logits_of(before, batch["pixel_values"]), batch["labels"])
    assert loss == pytest.approx(expected.item(), rel=1e-5)


# -------------------------------------------------------------------------------------------------- the optimizer, pixels


def test_what_decays(plain, settings):
    trainer = ReinforcedTrainer(timm_student(), settings(weight_decay=0.1), train_dataset=plain)
    decaying = set(trainer.get_decay_parameter_names(trainer.model))
    parameters = dict(trainer.model.named_parameters())
    assert "timm_model.pos_embed" in parameters
    assert "timm_model.pos_embed" not in decaying, "timm's models name what must not decay"
    assert "timm_model.patch_embed.proj.weight" in decaying
    assert {name for name in parameters if name.endswith(".bias") or "norm" in name}.isdisjoint(decaying)
    groups = trainer.create_optimizer().param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [len(group["params"]) for group in groups] == [len(decaying), len(parameters) - len(decaying)]

    resnet = ReinforcedTrainer(timm_student("test_resnet"), settings(), train_dataset=plain)
    decaying = resnet.get_decay_parameter_names(resnet.model)
    assert all(dict(resnet.model.named_parameters())[name].ndim > 1 for name in decaying)


@pytest.mark.parametrize(
    ("changes", "momentum", "nesterov"),
    [({}, 0.9, True), ({"momentum": 0.5, "nesterov": False}, 0.5, False), ({"momentum": 0.0}, 0.0, False)],
)
def test_sgd_has_momentum(plain, settings, changes, momentum, nesterov):
    optimizer = ReinforcedTrainer(pooled(), settings(**changes), train_dataset=plain).create_optimizer()
    assert isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"]) == (momentum, nesterov)


def test_other_optimizers_are_trainers(plain, settings):
    optimizer = ReinforcedTrainer(pooled(), settings(optim="adamw_torch"), train_dataset=plain).create_optimizer()
    assert isinstance(optimizer, torch.optim.AdamW)


def test_normalization():
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normalize(pixels, MEAN, STD), by_hand(pixels))


def test_the_students_own_normalization_is_used(plain, settings):
    own, given = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    student = build_student("timm:test_resnet", None, 8, normalization=own)
    pixels = plain[0]["pixel_values"][None]
    trainer = ReinforcedTrainer(student, settings(), train_dataset=plain)
    torch.testing.assert_close(
        trainer._student_inputs({"pixel_values": pixels})["pixel_values"], normalize(pixels, *own)
    )
    trainer = ReinforcedTrainer(student, settings(), train_dataset=plain, normalization=given)
    torch.testing.assert_close(trainer._student_inputs({"pixel_values": pixels})["pixel_values"], pixels / 255)
    ready = torch.randn(2, 3, 4, 4)
    assert trainer._student_inputs({"pixel_values": ready})["pixel_values"] is ready, "floats are normalised already"


# --------------------------------------------------------------------------------------------------- online distillation


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


def test_an_online_teacher_of_other_classes_is_refused(plain, settings, make_teacher):
    teacher = make_teacher()
    teacher = type(teacher)(teacher.members, classes=[0, 1, 2])
    with pytest.raises(ConfigError, match="the teacher must answer over the dataset's 8 classes, got 3"):
        OnlineDistillationTrainer(pooled(), settings(), train_dataset=plain, teacher=teacher)


def test_another_online_teacher_is_another_run(plain, settings, make_teacher):
    args = settings(save_strategy="epoch", reinforced_probability=0.0)
    OnlineDistillationTrainer(pooled(), args, train_dataset=plain, teacher=make_teacher(8.0)).train()
    other = OnlineDistillationTrainer(pooled(), args, train_dataset=plain, teacher=make_teacher(2.0))
    labels = ReinforcedTrainer(pooled(), args, train_dataset=plain)
    for trainer in (other, labels):
        with pytest.raises(ConfigError, match=r"differs in online_teacher: "):
            trainer.train(resume_from_checkpoint=True)


# --------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reinforced_probability": 1.5}, "`reinforced_probability` must be between 0 and 1, got 1.5"),
        ({"reinforced_probability": float("nan")}, "`reinforced_probability` must be between 0 and 1, got nan"),
        ({"label_weight": -0.1}, "`label_weight` must be between 0 and 1, got -0.1"),
        ({"unreinforced_label_smoothing": 2}, "`unreinforced_label_smoothing` must be between 0 and 1, got 2"),
        ({"momentum": -1}, "`momentum` must be at least 0 and below 1, got -1"),
        ({"momentum": 1}, "`momentum` must be at least 0 and below 1, got 1"),
        ({"temperature": 0}, "`temperature` must be a number above 0, got 0"),
        ({"temperature": float("inf")}, "`temperature` must be a number above 0, got inf"),
        ({"tail": "short"}, "`tail` must be one of uniform, bucket, renormalize, zero, image, got 'short'"),
        ({"view_difficulty": "loss"}, "`view_difficulty` must be one of entropy, cross_entropy, got 'loss'"),
        ({"view_order": "shuffled"}, "`view_order` must be one of all, random, easy_first, hard_first, got 'shuffled'"),
        ({"ema_decay": 1.0}, "`ema_decay` must be between 0 and 1, got 1.0"),
    ],
)
def test_impossible_settings(settings, changes, message):
    with pytest.raises(ConfigError) as error:
        settings(**changes)
    assert message in str(error.value)


def test_arguments_of_trainer_are_not_enough(plain):
    from transformers import TrainingArguments

    with pytest.raises(ConfigError, match="`args` must be ReinforcedTrainingArguments, got TrainingArguments"):
        ReinforcedTrainer(pooled(), TrainingArguments("out", use_cpu=True), train_dataset=plain)


def test_a_plain_plus_dataset_is_refused(tiny_folder, settings):
    plus = datasets.load_dataset(str(tiny_folder), "all_ops", split="train")
    with pytest.raises(
        ConfigError, match=r"must be what `load_reinforced` returns, got the plain datasets\.Dataset of a"
    ):
        ReinforcedTrainer(pooled(), settings(), train_dataset=plus)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: torch.utils.data.Subset(d, range(4)),
        lambda d: torch.utils.data.Subset(torch.utils.data.Subset(d, range(8)), range(4)),
        lambda d: torch.utils.data.ConcatDataset([d, d]),
    ],
    ids=["Subset", "Subset of a Subset", "ConcatDataset"],
)
def test_a_wrapped_dataset_is_refused(plain, settings, wrap):
    wrapped = wrap(plain)
    with pytest.raises(
        ConfigError, match=f"got it wrapped in {type(wrapped).__name__}, where each row would show one view"
    ):
        ReinforcedTrainer(pooled(), settings(), train_dataset=wrapped)
    selected = ReinforcedDataset(plain.plus.select(range(4)), plain.provenance)  # what the message advises
    ReinforcedTrainer(pooled(), settings(), train_dataset=selected).train()


def test_a_folder_without_reinforcements_is_refused(tmp_path, tiny_dataset):
    tiny_dataset.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(FormatError, match=r'must hold a "\+" dataset, but no folder in it has a reinforcement\.json'):
        load_reinforced(tmp_path)


def test_a_model_of_other_classes_is_refused(plain, settings):
    student = build_student("timm:test_resnet", None, 10)
    with pytest.raises(
        ConfigError, match=r'must answer over the 8 classes of the "\+" dataset, got 10\. Build it with num'
    ):
        ReinforcedTrainer(student, settings(), train_dataset=plain)
    for classes in (6, 10):  # a module without a config tells by its first answer
        trainer = ReinforcedTrainer(Pooled(classes), settings(), train_dataset=plain)
        with pytest.raises(ConfigError, match=rf"must answer over the 8 classes .* got {classes}"):
            trainer.train()


def test_a_model_with_the_classes_in_another_order_is_refused(plain, settings):
    names = plain.class_names
    turned = [*names[1:], names[0]]
    with pytest.raises(ConfigError, match=r"class 0 is 'blue' for the model and 'black' in the dataset\. Build"):
        ReinforcedTrainer(build_student("timm:test_resnet", turned, 8), settings(), train_dataset=plain)
    for fine in (names, None, [f"{name}s" for name in names]):
        ReinforcedTrainer(build_student("timm:test_resnet", fine, 8), settings(), train_dataset=plain)


def test_a_model_that_takes_no_pixel_values_is_refused(plain, settings):
    import timm

    with pytest.raises(ConfigError, match=r"forward of the model must take `pixel_values`, but that of ResNet takes x"):
        ReinforcedTrainer(timm.create_model("test_resnet", num_classes=8), settings(), train_dataset=plain)


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
    for changes in ({}, {"label_weight": 0.5, "reinforced_probability": 1.0}):
        trainer = ReinforcedTrainer(NoLabels(), settings(**changes), train_dataset=plain)
        with pytest.raises(ConfigError, match=r"the loss needs `labels`, but the batch has none\. Set `label_names="):
            trainer.train()
        again = ReinforcedTrainer(NoLabels(), settings(label_names=["labels"], **changes), train_dataset=plain)
        again.train()  # what the message advises


def test_settings_that_need_labels_are_refused_without(unlabelled, settings):
    with pytest.raises(
        ConfigError, match=r"`reinforced_probability` must be 1 for a dataset without labels, got 0\.99"
    ):
        ReinforcedTrainer(pooled(), settings(), train_dataset=unlabelled)
    with pytest.raises(
        ConfigError, match=r"`label_weight` must be 0 for a dataset without labels, got 0\.5\. Set it to 0"
    ):
        ReinforcedTrainer(pooled(), settings(reinforced_probability=1, label_weight=0.5), train_dataset=unlabelled)


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        (
            {"label_smoothing_factor": 0.1},
            {},
            "`label_smoothing_factor` has no part in the loss of a reinforced dataset",
        ),
        ({}, {"compute_loss_func": F.mse_loss}, "`compute_loss_func` has no part in the loss of a reinforced dataset"),
        ({"train_sampling_strategy": "sequential"}, {}, "`train_sampling_strategy` must be `random`, got 'sequential'"),
    ],
)
def test_settings_of_trainer_without_a_part_are_refused(plain, settings, changes, more, message):
    with pytest.raises(ConfigError) as error:
        ReinforcedTrainer(timm_student("test_resnet"), settings(**changes), train_dataset=plain, **more)
    assert message in str(error.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_answers_are_never_trained_on(plain, settings, edit, workers):
    def damage(logprobs: np.ndarray) -> np.ndarray:
        logprobs[7, :, 1] = np.nan
        return logprobs

    student = pooled()
    args = settings(reinforced_probability=1.0, dataloader_num_workers=workers, per_device_train_batch_size=ROWS)
    trainer = ReinforcedTrainer(student, args, train_dataset=edit(plain, "teacher_logprobs", damage))
    before = weights(student)
    with pytest.raises(FormatError, match=r"the log-probabilities of row 7, view \d must be finite"):
        trainer.train()
    assert same(before, weights(student))


def test_another_image_is_never_trained_on(plain, settings, edit):
    changed = edit(plain, "image", lambda cells: [*cells[:3], cells[4], *cells[4:]])
    trainer = ReinforcedTrainer(pooled(), settings(per_device_train_batch_size=ROWS), train_dataset=changed)
    with pytest.raises(ReplayError, match="row 3 must hold the image that was reinforced"):
        trainer.train()


def test_odd_batches_of_a_mixing_dataset_are_warned_of(tiny_plus, settings, caplog):
    ReinforcedTrainer(pooled(), settings(per_device_train_batch_size=3), train_dataset=tiny_plus)
    assert "An odd batch size splits mixed pairs" in caplog.text
    caplog.clear()
    ReinforcedTrainer(pooled(), settings(), train_dataset=tiny_plus)
    assert not caplog.text


def test_images_for_evaluation(tiny_dataset):
    with pytest.raises(DataError, match=r"must have the column `lable`\. Did you mean `label`\?"):
        LabelledImages(tiny_dataset, evaluation_augmentation(SIZE), label_column="lable")
    with pytest.raises(ConfigError, match="an evaluation must not be random, got the parameters flip"):
        LabelledImages(tiny_dataset, Augmentation([CenterCrop(SIZE), RandomHorizontalFlip()]))
    image = LabelledImages(tiny_dataset, evaluation_augmentation(SIZE))[5]
    assert image["pixel_values"].shape == (3, SIZE, SIZE)
    assert image["labels"] == tiny_dataset[5]["label"]


def test_students(tmp_path):
    with pytest.raises(ConfigError, match=r"timm has no architecture `test_vitt`\. Did you mean `test_vit"):
        build_student("timm:test_vitt", None, 8)
    with pytest.raises(ConfigError, match=r"timm cannot build test_resnet with {'depht': 3}.*Check `model_args`"):
        build_student("timm:test_resnet", None, 8, model_args={"depht": 3})
    with pytest.raises(
        ConfigError, match=r"the student '\./nowhere' must be a folder, but there is none\. Train it first"
    ):
        build_student("./nowhere", None, 8)
    with pytest.raises(
        ConfigError, match=r"could not load the student .*Name a Hub id, a folder, or `timm:ARCHITECTURE`"
    ):
        build_student(str(tmp_path), None, 8)
    student = build_student("timm:test_resnet", ["a", "b"], 2, size=SIZE)
    assert student.config.id2label == {0: "a", 1: "b"}
    assert json.loads(json.dumps(student.config.to_dict()))["pretrained_cfg"]["input_size"] == [3, SIZE, SIZE]


def test_a_saved_student_may_be_trained_further(tmp_path, plain, settings):
    build_student("timm:test_resnet", ["a", "b"], 2).save_pretrained(tmp_path / "saved")
    student = build_student(str(tmp_path / "saved"), plain.class_names, 8)
    assert student.config.num_labels == 8
    body = load_file(tmp_path / "saved" / "model.safetensors")
    assert any(torch.equal(value, body[name]) for name, value in student.state_dict().items() if "conv" in name)
    ReinforcedTrainer(student, settings(max_steps=1), train_dataset=plain).train()


def test_a_student_is_saved_with_the_size_that_it_was_fine_tuned_at(tmp_path):
    normalization = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    pretrained = build_student("timm:test_resnet", ["a", "b"], 2, size=64, normalization=normalization)
    pretrained.save_pretrained(tmp_path / "timm")
    build_student(str(tmp_path / "timm"), ["a", "b"], 2, size=SIZE, crop=0.9).save_pretrained(tmp_path / "tuned")
    for name, size, crop in (("timm", 64, 1.0), ("tuned", SIZE, 0.9)):
        cfg = json.loads((tmp_path / name / "config.json").read_text())["pretrained_cfg"]
        assert (cfg["input_size"], cfg["crop_pct"]) == ([3, size, size], crop)
        assert (tuple(cfg["mean"]), tuple(cfg["std"])) == normalization


@pytest.mark.parametrize(
    ("processor", "sizes"),
    [
        (ViTImageProcessor(), {"size": {"height": 56, "width": 56}}),
        (ConvNextImageProcessor(), {"size": {"shortest_edge": 56}, "crop_pct": 0.875}),
        (
            CLIPImageProcessor(size={"shortest_edge": 256}),
            {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_processor_of_transformers_makes_images_of_the_size_that_was_fine_tuned_at(tmp_path, processor, sizes):
    processor.save_pretrained(tmp_path)
    load_processor(str(tmp_path), 56).save_pretrained(tmp_path / "tuned")
    saved = json.loads((tmp_path / "tuned" / "preprocessor_config.json").read_text())
    assert sizes.items() <= saved.items()
    image = np.zeros((100, 80, 3), np.uint8)
    assert load_processor(str(tmp_path / "tuned"))(image)["pixel_values"][0].shape == (3, 56, 56)

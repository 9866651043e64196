"""What a training does that would else end well and be wrong: the worst model kept, rows left out, weights of NaN."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import datasets
import numpy as np
import pytest
import timm
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForImageClassification, Trainer, ViTConfig, ViTForImageClassification

from hf_dr.errors import ConfigError, HfDrError
from hf_dr.replay.loading import load_reinforced
from hf_dr.teacher.metrics import compute_metrics
from hf_dr.training.arguments import ReinforcedTrainingArguments, as_reinforced
from hf_dr.training.callbacks import check_weights
from hf_dr.training.checks import check_batches, check_input, learns_from_one
from hf_dr.training.resumable import _writing
from hf_dr.training.trainer import ReinforcedTrainer
from training.helpers import (
    ROWS,
    SIZE,
    STEPS,
    KillAt,
    KilledError,
    Pooled,
    Watched,
    by_hand,
    pooled,
    same,
    timm_student,
    transformers_student,
    weights,
)

BEST = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}


@pytest.mark.parametrize("metric", ["nll", "eval_ece", "brier", "ema_nll", "loss", "top1"])
def test_the_best_model_is_the_best(trainer_of, settings, metric):
    # A rate at which the metrics go up and down.
    args = settings(
        num_train_epochs=4,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        ema_decay=0.5,
        metric_for_best_model=metric,
        **BEST,
    )
    trainer = trainer_of(pooled(), args)
    trainer.train()
    key = f"eval_{metric.removeprefix('eval_')}"
    seen = [entry[key] for entry in trainer.state.log_history if key in entry]
    assert len(seen) == 4
    assert trainer.state.best_metric == (max(seen) if metric == "top1" else min(seen))


def test_greater_is_better_can_still_be_said(settings):
    assert settings(metric_for_best_model="nll").greater_is_better is False
    assert settings(metric_for_best_model="nll", greater_is_better=True).greater_is_better is True
    assert settings(metric_for_best_model="top1").greater_is_better is True


@pytest.mark.parametrize(
    ("metric", "several", "known"),
    [("accuracy", False, "brier, ece, loss, nll, top1, top5"), ("top1", True, "a_brier, .*, b_top1, b_top5"),
     ("ema_top1", False, "brier, ")],
)  # fmt: skip
def test_a_metric_that_does_not_exist_is_refused_before_training(plain, pictures, settings, metric, several, known):
    given = {"a": pictures, "b": pictures} if several else pictures
    args = settings(metric_for_best_model=metric, **BEST)
    student = pooled()
    trainer = ReinforcedTrainer(student, args, train_dataset=plain, eval_dataset=given, compute_metrics=compute_metrics)
    before = weights(student)
    with pytest.raises(ConfigError, match=rf"`metric_for_best_model` must be one of {known}.* got '{metric}'"):
        trainer.train()
    assert same(before, weights(student))


def test_metrics_of_ones_own_are_known_where_they_can_be(trainer_of, settings):
    def picky(prediction):
        if len(prediction.label_ids) != ROWS:
            raise RuntimeError("not my data")
        return {"mine": 1.0}

    args = settings(metric_for_best_model="mine", **BEST)
    trainer = trainer_of(pooled(), args, compute_metrics=picky)
    assert trainer.metric_names() is None
    trainer.train()
    assert trainer.state.best_metric == 1.0


@pytest.mark.parametrize("metric", ["top1", "eval_ema_nll"])
def test_a_metric_that_evaluations_of_the_loss_alone_leave_out_is_refused(trainer_of, settings, metric):
    args = settings(metric_for_best_model=metric, prediction_loss_only=True, ema_decay=0.5, **BEST)
    with pytest.raises(
        ConfigError,
        match=f"must be loss with `prediction_loss_only`, got '{metric}': .* Leave `prediction_loss_only` out",
    ):
        trainer_of(pooled(), args)


@pytest.mark.parametrize(
    "changes", [{}, {"metric_for_best_model": "eval_ema_loss", **BEST}, {"metric_for_best_model": "top1"}], ids=str
)
def test_the_loss_alone_can_be_measured(trainer_of, settings, changes):
    args = settings(prediction_loss_only=True, eval_do_concat_batches=False, ema_decay=0.5, **changes)
    trainer = trainer_of(pooled(), args)
    trainer.train()
    assert {"loss", "ema_loss"} <= {name.removeprefix("eval_") for name in trainer.evaluate()}


def test_batches_that_are_not_joined_are_refused_where_metrics_are_of_all_rows(trainer_of, settings):
    with pytest.raises(
        ConfigError, match=r"`eval_do_concat_batches` must be True for a `compute_metrics` .* Leave it out"
    ):
        trainer_of(pooled(), settings(eval_do_concat_batches=False))


def test_metrics_of_batches_get_batches(trainer_of, pictures, settings):
    def by_batch(prediction):
        sizes = [len(logits) for logits in prediction.predictions]
        assert sizes == [len(labels) for labels in prediction.label_ids]
        return {"batches": len(sizes), "rows": sum(sizes)}

    def of_these(prediction):
        rows = np.concatenate(prediction.predictions)
        assert rows.shape == (len(pictures), 8)
        return {"rows": len(rows)}

    for compute, expected in ((by_batch, {"batches": 3, "rows": ROWS}), (of_these, {"rows": ROWS})):
        trainer = trainer_of(pooled(), settings(eval_do_concat_batches=False), compute_metrics=compute)
        metrics = trainer.evaluate()
        assert {name: metrics[f"eval_{name}"] for name in expected} == expected


def test_a_metric_of_ones_own_that_is_not_measured_is_an_error(trainer_of, settings):
    args = settings(metric_for_best_model="mine", include_for_metrics=["loss"], **BEST)
    trainer = trainer_of(pooled(), args, compute_metrics=lambda prediction: {"other": 1.0})
    assert trainer.metric_names() is None
    with pytest.raises(ConfigError, match=r"must be one of .*, other, .*, which evaluations measure, got 'mine'"):
        trainer.train()


def test_metrics_of_weights_that_have_changed_are_forgotten(plain, pictures, settings):
    """Whoever takes the steps."""

    class OwnSteps(ReinforcedTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = self.compute_loss(model, self._prepare_inputs(self._student_inputs(inputs)))
            self.accelerator.backward(loss)
            return loss.detach()

    trainer = OwnSteps(pooled(), settings(max_steps=1), train_dataset=plain, eval_dataset=pictures)
    trainer.evaluate()
    before = trainer._measured["loss"]
    trainer.train()
    assert "loss" not in trainer._measured
    trainer.evaluate()
    assert trainer._measured["loss"] != before


class Scored(ReinforcedTrainer):
    """Adds a metric of its own."""

    def evaluate(self, *args: Any, **settings: Any) -> dict[str, float]:
        return {**super().evaluate(*args, **settings), "eval_mine": float(self.state.global_step)}

    def metric_names(self) -> None:
        return None


@pytest.mark.parametrize("changes", [{}, {"lr_scheduler_type": "reduce_lr_on_plateau"}], ids=str)
def test_a_metric_that_a_subclass_adds_chooses_the_best(plain, pictures, settings, changes):
    args = settings(metric_for_best_model="mine", greater_is_better=True, num_train_epochs=2, **BEST, **changes)
    trainer = Scored(pooled(), args, train_dataset=plain, eval_dataset=pictures)
    trainer.train()
    assert trainer.state.best_metric == 2 * STEPS
    args = settings(metric_for_best_model="other", **BEST, **changes)
    missing = Scored if not changes else type("Silent", (ReinforcedTrainer,), {"metric_names": lambda self: None})
    with pytest.raises(ConfigError, match=r"must be one of .*, which evaluations measure, got 'other'"):
        missing(pooled(), args, train_dataset=plain, eval_dataset=pictures).train()


class Rows(torch.utils.data.Dataset):
    """An image of each class."""

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def __len__(self) -> int:
        return self._classes

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": torch.full((3, SIZE, SIZE), index, dtype=torch.uint8), "labels": index}


def recalls(prediction: Any) -> dict[str, float]:
    hits = prediction.predictions.argmax(-1) == prediction.label_ids
    return {f"recall_{c}": float(hits[prediction.label_ids == c].mean()) for c in np.unique(prediction.label_ids)}


def test_a_metric_of_one_of_many_classes_chooses_the_best(settings):
    rows = Rows(20)
    for metric, found in (("recall_3", True), ("recall_10", True), ("recall_19", True), ("recall_20", False)):
        tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        student = ViTForImageClassification(ViTConfig(image_size=SIZE, patch_size=8, num_labels=20, **tiny))
        trainer = ReinforcedTrainer(
            student, settings(metric_for_best_model=metric, per_device_train_batch_size=20, **BEST),
            train_dataset=rows, eval_dataset=rows, compute_metrics=recalls,
        )  # fmt: skip
        if found:
            trainer.train()
            assert trainer.state.best_metric in (0.0, 1.0)
        else:
            with pytest.raises(ConfigError, match=r"must be one of .*, which evaluations measure, got 'recall_20'"):
                trainer.train()


@pytest.mark.parametrize("changes", [{}, {"logging_steps": 500, "save_strategy": "steps", "save_steps": 4}], ids=str)
def test_a_diverged_training_is_an_error_and_saves_nothing(plain, settings, tmp_path, changes):
    args = settings(
        learning_rate=1e38, lr_scheduler_type="constant", max_grad_norm=0, num_train_epochs=3, momentum=0.0, **changes
    )
    trainer = ReinforcedTrainer(pooled(), args, train_dataset=plain)
    with pytest.raises(
        ConfigError, match=r"the loss must be a finite number, but it was none in step 2: .* Lower `learni"
    ):
        trainer.train()
    assert trainer.state.global_step == (2 if not changes else STEPS)
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    with torch.no_grad():
        trainer.model.linear.bias[0] = math.nan
    with pytest.raises(ConfigError, match=r"weights must be finite numbers to be saved, but those of linear\."):
        trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / "model.safetensors").exists()


@pytest.mark.parametrize("batch", [5, 64])
def test_an_evaluation_is_of_all_rows(trainer_of, plain, pictures, settings, batch):
    counts = []
    trainer = trainer_of(
        pooled(),
        settings(dataloader_drop_last=True, per_device_eval_batch_size=batch),
        compute_metrics=lambda e: counts.append(len(e.label_ids)) or {},
    )
    trainer.evaluate()
    trainer.evaluate(plain)
    assert len(trainer.predict(pictures).predictions) == len(pictures)
    assert counts == [len(pictures), ROWS, len(pictures)]
    assert trainer.args.dataloader_drop_last


@pytest.mark.parametrize("streaming", [False, True])
def test_fewer_rows_than_a_batch_are_refused_where_it_would_be_dropped(plain, in_shards, settings, streaming):
    dataset = load_reinforced(in_shards["plain"], streaming=True) if streaming else plain
    args = settings(dataloader_drop_last=True, per_device_train_batch_size=64)
    with pytest.raises(
        ConfigError, match=r"the 12 rows for 1 processes fill no batch of 64\. Lower `per_device_train_b"
    ):
        ReinforcedTrainer(pooled(), args, train_dataset=dataset).train()
    kept = Watched(pooled(), settings(per_device_train_batch_size=64), train_dataset=plain)
    kept.train()
    assert [len(batch["pixel_values"]) for batch in kept.seen] == [ROWS]


ALONE = {"per_device_train_batch_size": ROWS - 1}


class Normalised(nn.Module):
    """A batch normalisation over one pixel of each image, or over several; frozen, it learns nothing."""

    def __init__(self, pixels: int = 1, *, frozen: bool = False) -> None:
        super().__init__()
        self.norm, self.inner = nn.BatchNorm2d(3), Pooled()
        self._pixels, self._frozen = pixels, frozen

    def train(self, mode: bool = True) -> "Normalised":
        super().train(mode)
        self.norm.train(mode and not self._frozen)
        return self

    def forward(self, pixel_values, labels=None):
        pooled = nn.functional.adaptive_avg_pool2d(pixel_values, self._pixels)
        return self.inner(self.norm(input=pooled).expand(-1, -1, 4, 4), labels)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("changes", "found"),
    [(ALONE, "but 12 images make one of 1 in batches of 11. Set `dataloader_drop_last`, or another batch size"),
     ({**ALONE, "max_steps": 2}, "but 12 images make one of 1"),
     ({"per_device_train_batch_size": 1}, "but all have one. Set a larger batch size"),
     ({"per_device_train_batch_size": 1, "dataloader_drop_last": True}, "but all have one")],
)  # fmt: skip
def test_a_batch_of_one_image_is_refused_before_training(plain, in_shards, settings, changes, found, streaming):
    dataset = load_reinforced(in_shards["plain"], streaming=True) if streaming else plain
    trainer = ReinforcedTrainer(Normalised(), settings(**changes), train_dataset=dataset)
    with pytest.raises(ConfigError, match=f"each batch must have more than one image, because .*, {found}"):
        trainer.train()


class Greedy(Normalised):
    """Has no memory for more than so many images."""

    def __init__(self, most: int, pixels: int = 1) -> None:
        super().__init__(pixels)
        self._most = most

    def forward(self, pixel_values, labels=None):
        if self.training and len(pixel_values) > self._most:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return super().forward(pixel_values, labels)


def test_batches_of_the_size_that_was_found_are_checked(plain, settings):
    args = settings(per_device_train_batch_size=13, auto_find_batch_size=True)
    trainer = ReinforcedTrainer(Greedy(11), args, train_dataset=plain)
    with pytest.raises(ConfigError, match="but 12 images make one of 1 in batches of 11"):
        trainer.train()


def test_each_process_has_its_part_of_a_split_batch(plain, settings):
    args = settings(per_device_train_batch_size=2, accelerator_config={"split_batches": True})
    trainer = ReinforcedTrainer(Normalised(), args, train_dataset=plain)
    vars(args).update(distributed_state=SimpleNamespace(num_processes=2))
    with pytest.raises(ConfigError, match=r"but all have one\. Set a larger batch size"):
        trainer.get_train_dataloader()


def test_a_training_goes_on_with_the_batch_size_that_was_found(plain, settings, tmp_path):
    def trainer(folder: str, **more: Any) -> ReinforcedTrainer:
        torch.manual_seed(0)
        args = settings(
            output_dir=str(tmp_path / folder), per_device_train_batch_size=8, auto_find_batch_size=True, max_steps=7,
            view_order="easy_first", save_strategy="steps", save_steps=2,
        )  # fmt: skip
        return ReinforcedTrainer(Greedy(5, pixels=4), args, train_dataset=plain, **more)

    whole = trainer("whole")
    whole.train()
    with pytest.raises(KilledError):
        trainer("killed", callbacks=[KillAt(5)]).train()
    resumed = trainer("killed")
    assert resumed.train(resume_from_checkpoint=True).global_step == 7
    assert resumed.run_settings() == whole.run_settings()
    assert same(weights(resumed.model), weights(whole.model))


def test_a_batch_of_one_image_is_evaluated(plain, pictures, settings):
    args = settings(per_device_train_batch_size=1, per_device_eval_batch_size=1)
    trainer = ReinforcedTrainer(Normalised(), args, train_dataset=plain, eval_dataset=pictures)
    assert trainer.evaluate()["eval_loss"] > 0


def test_synchronised_normalisations_learn_from_the_images_of_all_processes(plain):
    student = Normalised()
    student.norm = nn.SyncBatchNorm(3)
    assert not learns_from_one(student, plain, world_size=1)
    assert learns_from_one(student, plain, world_size=2)


@pytest.mark.parametrize(
    ("student", "changes"),
    [(Normalised(4), ALONE), (Normalised(frozen=True), ALONE), (Pooled(), ALONE), (Normalised(), {**ALONE, "max_steps": 1}),
     (Normalised(), {**ALONE, "dataloader_drop_last": True})],
)  # fmt: skip
def test_a_batch_of_one_image_is_taken_where_it_is_learned_or_never_comes(plain, settings, student, changes):
    before = weights(student)
    trainer = ReinforcedTrainer(student, settings(**changes), train_dataset=plain)
    assert same(before, weights(student))
    assert not any(module._forward_pre_hooks for module in student.modules())
    trainer.train()


def test_the_last_batches_of_several_processes_are_full_but_for_those_of_a_stream(in_shards, settings):
    args = settings(per_device_train_batch_size=5)
    vars(args).update(distributed_state=SimpleNamespace(num_processes=2))
    check_batches(11, args, lambda: False)
    with pytest.raises(ConfigError, match="but 6 images make one of 1 in batches of 5"):
        check_batches(11, args, lambda: False, streamed=True)
    args.accelerator_config.even_batches = False
    with pytest.raises(ConfigError, match="but 11 images make one of 1 in batches of 5"):
        check_batches(11, args, lambda: False)


class Anything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Pooled()

    def forward(self, **inputs):
        return self.inner(inputs["pixel_values"], inputs.get("labels"))


@pytest.mark.parametrize("wrap", ["none", "keywords", "compile", "data parallel"])
def test_a_model_that_takes_anything_gets_its_pixels(trainer_of, plain, pictures, settings, tmp_path, wrap, caplog):
    student = timm_student("test_resnet")
    expected = ReinforcedTrainer(timm_student("test_resnet"), settings(), train_dataset=plain, eval_dataset=pictures)
    given = {
        "none": lambda: student,
        "keywords": Anything,
        "compile": lambda: torch.compile(student, backend="eager"),
        "data parallel": lambda: nn.DataParallel(student),
    }[wrap]()
    trainer = trainer_of(given, settings())
    assert ("is taken out of its" in caplog.text) == (wrap in ("compile", "data parallel"))
    trainer.train()
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_top1"] <= 1
    trainer.save_model(str(tmp_path / "saved"))
    if wrap == "keywords":
        return
    expected.train()
    assert metrics["eval_loss"] == expected.evaluate()["eval_loss"]
    saved = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    pixels = by_hand(plain[0]["pixel_values"][None])
    with torch.inference_mode():
        np.testing.assert_allclose(saved(pixels).logits, expected.model.eval()(pixels).logits, rtol=1e-5, atol=1e-6)
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["architecture"] == "test_resnet"


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (lambda: vit(problem_type="multi_label_classification"), "has the problem_type multi_label_classification"),
        (lambda: vit(problem_type="regression"), "has the problem_type regression"),
        (
            lambda: vit(image_size=2 * SIZE),
            f"must take RGB images of {SIZE}x{SIZE} pixels, the size of the views, but: ValueError.*whose views have",
        ),
        (lambda: vit(num_channels=1), "must take RGB images of .* Expected 1 but got 3"),
        (lambda: timm.create_model("test_resnet", num_classes=8), "`pixel_values`, but that of ResNet takes x"),
        (lambda: pooled().requires_grad_(False), "weights that are trained, but all of Pooled are frozen"),
        (lambda: pooled().half(), "must be float32, found torch.float16: .* Load the model with dtype=torch.float32"),
        (lambda: pooled().bfloat16(), "must be float32, found torch.bfloat16: "),
    ],
)
def test_a_student_that_cannot_learn_is_refused_before(student, message, plain, settings):
    with pytest.raises(ConfigError, match=message):
        ReinforcedTrainer(student(), settings(), train_dataset=plain)


def vit(**config):
    tiny = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "patch_size": 8,
    }
    return ViTForImageClassification(ViTConfig(**{"image_size": SIZE, "num_labels": 8} | tiny | config))


def test_a_student_is_shown_an_image_without_a_trace(plain, settings):
    student = transformers_student("resnet")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    state = torch.get_rng_state()
    check_input(student.train(), plain)
    assert student.training
    assert torch.get_rng_state().equal(state)
    assert all(value.equal(before[name]) for name, value in student.state_dict().items())


def test_a_model_without_a_loss_is_evaluated(plain, pictures, settings):
    class Silent(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, pixel_values):
            return {"logits": self.inner(pixel_values)["logits"]}

    student = pooled()
    expected, found = (
        ReinforcedTrainer(model, settings(), train_dataset=plain, eval_dataset=pictures).evaluate()
        for model in (student, Silent(student))
    )
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)


def test_names_of_labels_that_leave_no_metrics_are_refused(plain, settings):
    with pytest.raises(ConfigError, match=r"`label_names` must hold `labels`, .* got label"):
        ReinforcedTrainer(pooled(), settings(label_names=["label"]), train_dataset=plain)


@pytest.mark.parametrize("name", [str, Path])
def test_a_path_is_no_dataset(plain, pictures, settings, name):
    path = name("photos-plus")
    message = "`{}` must be a dataset, such as `{}` returns, got the name 'photos-plus'. Open it: `{}\\("
    of_training = message.format("train_dataset", "load_reinforced", "load_reinforced")
    of_evaluation = message.format("eval_dataset", "datasets.load_dataset", "datasets.load_dataset")
    for student in (pooled(), "timm:test_resnet"):
        with pytest.raises(ConfigError, match=of_training):
            ReinforcedTrainer(student, settings(), train_dataset=path)
    for given in (path, {"a": pictures, "b": path}):
        with pytest.raises(ConfigError, match=of_evaluation):
            ReinforcedTrainer(pooled(), settings(), train_dataset=plain, eval_dataset=given)
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain, eval_dataset=pictures)
    with pytest.raises(ConfigError, match=of_evaluation):
        trainer.evaluate(path)
    with pytest.raises(ConfigError, match=of_evaluation.replace("eval_dataset", "test_dataset")):
        trainer.predict(path)


def test_one_of_several_evaluations_is_asked_for_by_its_name(plain, pictures, settings):
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain, eval_dataset={"a": pictures, "b": pictures})
    assert trainer.evaluate("a")["eval_loss"] > 0
    with pytest.raises(ConfigError, match="or the name of one of the trainer's, a, b; got 'c'"):
        trainer.evaluate("c")


def test_undecoded_images_that_nothing_decodes_are_refused(tiny_dataset, plain, settings):
    for evaluated in (torch.utils.data.Subset(tiny_dataset, [0]), tiny_dataset.to_iterable_dataset()):
        with pytest.raises(
            ConfigError, match=f"`eval_dataset` must be .*, got {type(evaluated).__name__} of undecoded"
        ):
            ReinforcedTrainer(pooled(), settings(), train_dataset=plain, eval_dataset=evaluated)
    with pytest.raises(ConfigError, match=r"`train_dataset` must be .*, got a datasets.Dataset of images"):
        ReinforcedTrainer(pooled(), settings(), train_dataset=tiny_dataset)


def test_where_a_student_goes_is_tried_before(plain, settings, tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(ConfigError, match="`output_dir` must be where files can be written"):
        ReinforcedTrainer(pooled(), settings(output_dir=str(tmp_path / "taken")), train_dataset=plain)


def test_an_optimizer_that_is_not_installed_is_an_error(plain, settings, monkeypatch):
    def missing(*_):
        raise ImportError("Install it.")

    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(missing))
    with pytest.raises(
        ConfigError, match=r"`optim` sgd and `lr_scheduler_type` linear must take their settings, but: Install it[.]"
    ):
        ReinforcedTrainer(pooled(), settings(optim="sgd"), train_dataset=plain).train()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"accelerator_config": "missing.json"},
            "the settings must be such as transformers takes, but: .*No such file",
        ),
        ({"accelerator_config": {"even": True}}, "the settings must be such as transformers takes, but: .*'even'"),
        (
            {"fp16": True},
            r"float16 \(`fp16`, or accelerate's `mixed_precision`\) needs an accelerator, found the CPU, .*false",
        ),
        ({"fp16": True, "bf16": True}, "the settings must be such as transformers takes, but: At most one of fp16 and"),
        ({"dataloader_persistent_workers": True}, "`dataloader_persistent_workers` needs workers"),
        pytest.param(
            {"dataloader_multiprocessing_context": "spawn"},
            "`dataloader_multiprocessing_context` needs workers",
            marks=pytest.mark.skipif(
                not hasattr(ReinforcedTrainingArguments, "dataloader_multiprocessing_context"), reason="younger"
            ),
        ),
        ({"dataloader_prefetch_factor": 0}, "`dataloader_prefetch_factor` must be a whole number of at least 1, got 0"),
    ],
)
def test_settings_that_transformers_refuses(settings, given, message):
    with pytest.raises(ConfigError, match=message):
        settings(**given)


def test_settings_that_transformers_trainer_refuses(plain, settings):
    for name, message in (("wandb", "requires wandb to be installed"), ("nowhere", "nowhere is not supported")):
        with pytest.raises(ConfigError, match=f"such as transformers' Trainer takes, but: .*{message}.* Correct them"):
            ReinforcedTrainer(pooled(), settings(report_to=[name]), train_dataset=plain)


@pytest.mark.parametrize("place", ["student_trainer.student_preprocessing", "resumable.Trainer._move_model_to_device"])
def test_other_faults_keep_their_traceback(place, plain, settings, monkeypatch):
    def broken(*_):
        raise RuntimeError("a fault")

    monkeypatch.setattr(f"hf_dr.training.{place}", broken)
    with pytest.raises(RuntimeError, match="a fault"):
        ReinforcedTrainer(pooled(), settings(), train_dataset=plain)


def test_a_stream_that_does_not_know_its_columns_is_trainers_own_matter(settings):
    def rows():
        yield {"pixel_values": np.zeros((3, 24, 24), np.float32), "labels": 0}

    stream = datasets.IterableDataset.from_generator(rows)
    assert stream.column_names is None
    ReinforcedTrainer(pooled(), settings(max_steps=1), train_dataset=stream).train()


def test_split_batches_are_refused_for_streams(in_shards, settings):
    stream = load_reinforced(in_shards["plain"], streaming=True)
    with pytest.raises(ConfigError, match=r"`split_batches` has no part in a stream, .* set `batch_size`"):
        ReinforcedTrainer(pooled(), settings(accelerator_config={"split_batches": True}), train_dataset=stream)


@pytest.mark.parametrize(
    "error",
    [SafetensorError("I/O error"), RuntimeError("[enforce fail at inline_container.cc:603] file write failed")],
    ids=str,
)
def test_weights_that_cannot_be_written_are_an_error_of_the_disk(error, tmp_path):
    with pytest.raises(HfDrError, match=f"could not write {tmp_path}.*{re.escape(str(error))}"), _writing(tmp_path):
        raise error
    with pytest.raises(RuntimeError, match="another"), _writing(tmp_path):
        raise RuntimeError("another")


def test_a_trainer_without_reinforced_data_writes_the_card_of_transformers(pictures, settings, tmp_path):
    trainer = ReinforcedTrainer(transformers_student("resnet"), settings(), eval_dataset=pictures)
    assert trainer.run_settings() is None
    trainer.create_model_card(model_name="mine", dataset_revision="v1")
    assert "# mine" in (tmp_path / "out" / "README.md").read_text()


def test_settings_that_nobody_gave_are_the_defaults():
    args = as_reinforced(None)
    assert args.output_dir == "trainer_output"
    assert args.view_order == ReinforcedTrainingArguments("x").view_order


def test_an_index_error_of_the_model_is_left_as_it_is(pictures, settings, monkeypatch):
    trainer = ReinforcedTrainer(transformers_student("resnet"), settings(), eval_dataset=pictures)
    monkeypatch.setattr(trainer.model, "forward", Mock(side_effect=IndexError("mine")))
    with pytest.raises(IndexError, match="mine"):
        trainer.evaluate()


def test_the_weights_of_a_sharded_model_are_those_that_are_saved():
    broken = pooled()
    broken.linear.weight.data[0, 0] = torch.inf
    with pytest.raises(ConfigError, match=r"those of linear\.weight are not: the training has diverged"):
        check_weights(broken, None)
    check_weights(broken, {})  # of a process that saves nothing
    check_weights(broken, pooled().state_dict())
    with pytest.raises(ConfigError, match=r"those of linear\.weight are not"):
        check_weights(pooled(), broken.state_dict())

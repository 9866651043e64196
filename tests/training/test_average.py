"""Evaluation within a training, the best model, and averaged weights."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, EarlyStoppingCallback, PreTrainedConfig, PreTrainedModel, TrainerCallback
from transformers import AutoModelForImageClassification as AutoClassifier

from hf_dr.errors import ConfigError
from hf_dr.teacher.metrics import classification_metrics, compute_metrics
from hf_dr.training.losses import reinforced_kl
from hf_dr.training.student_hub import export_student
from hf_dr.training.students import EMA_FILE
from hf_dr.training.trainer import ReinforcedTrainer, _weight_average
from training.helpers import (
    ROWS,
    STEPS,
    KillAt,
    KilledError,
    Pooled,
    Watched,
    logits_of,
    pooled,
    same,
    timm_student,
    weights,
)


def test_evaluation_on_images(trainer_of, pictures, settings):
    student = pooled()
    trainer = trainer_of(student, settings())
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


def test_the_bar_of_an_evaluation_counts_both_passes(plain, pictures, settings, monkeypatch, capsys):
    for name in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)
    args = settings(ema_decay=0.9, disable_tqdm=False)
    trainer = ReinforcedTrainer(pooled(), args, train_dataset=plain, eval_dataset=pictures)
    trainer.evaluate()
    batches = 2 * len(trainer.get_eval_dataloader())
    last = [line for line in capsys.readouterr().err.splitlines() if line.startswith("evaluating")][-1]
    assert last.startswith(f"evaluating: 100 %, {batches} of {batches}, ")


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


def test_the_average_is_timms(trainer_of, settings):
    steps: list[dict[str, torch.Tensor]] = []

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
            steps.append(weights(model))

    decay = 0.8
    args = settings(num_train_epochs=2, ema_decay=decay, learning_rate=0.5)
    trainer = trainer_of(pooled(), args, callbacks=[Keep()])
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
    alone = trainer_of(other, settings())
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


def test_weights_can_be_read_by_whoever_can_read_the_rest(plain, settings, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1, "ema_decay": 0.5}
    trainer = ReinforcedTrainer(timm_student(), settings(**saving), train_dataset=plain)
    trainer.train()
    trainer.save_model(str(tmp_path))
    other = tmp_path / "another file"
    other.touch()
    for folder in (tmp_path, Path(trainer.args.output_dir) / "checkpoint-1"):
        for name in ("model.safetensors", EMA_FILE):
            assert (folder / name).stat().st_mode == other.stat().st_mode


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


def test_sharded_weights_have_no_average():
    sharded = SimpleNamespace(args=SimpleNamespace(ema_decay=0.9), is_fsdp_enabled=True)
    with pytest.raises(ConfigError, match=r"`ema_decay` needs all weights .* \(FSDP, DeepSpeed\)\. Leave it out"):
        _weight_average(sharded)


class TiedConfig(PreTrainedConfig):
    model_type = "tied_for_tests"


class Tied(PreTrainedModel):
    """Two layers with one weight, of which a file of transformers has one."""

    config_class = TiedConfig
    base_model_prefix = ""
    _tied_weights_keys: ClassVar = {"second.weight": "first.weight"}

    def __init__(self, config: TiedConfig) -> None:
        super().__init__(config)
        self.first, self.second = nn.Linear(48, 48, bias=False), nn.Linear(48, 48, bias=False)
        self.head = nn.Linear(48, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        pooled = F.adaptive_avg_pool2d(pixel_values, 4).flatten(1)
        return {"logits": self.head(self.second(self.first(pooled).relu()))}


def test_tied_weights_are_averaged_once_and_published(plain, pictures, settings, tmp_path):
    AutoConfig.register(TiedConfig.model_type, TiedConfig, exist_ok=True)
    AutoClassifier.register(TiedConfig, Tied, exist_ok=True)

    def trainer(folder: str, **more: Any) -> ReinforcedTrainer:
        torch.manual_seed(0)
        args = settings(
            output_dir=str(tmp_path / folder),
            ema_decay=0.8,
            num_train_epochs=2,
            save_strategy="epoch",
            learning_rate=0.1,
        )
        return ReinforcedTrainer(
            Tied(TiedConfig(num_labels=8, tie_word_embeddings=True)), args, train_dataset=plain, **more
        )

    steps: list[torch.Tensor] = []

    class Keep(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
            steps.append(model.first.weight.detach().clone())

    whole = trainer("whole", callbacks=[Keep()])
    whole.train()
    average = steps[0]
    for step in steps[1:]:
        average = 0.8 * average + 0.2 * step
    assert not torch.allclose(average, steps[-1])
    torch.testing.assert_close(whole.ema.module.first.weight.detach(), average)
    assert whole.evaluate(pictures)["eval_ema_loss"] != whole.evaluate(pictures)["eval_loss"]

    with pytest.raises(KilledError):
        trainer("killed", callbacks=[KillAt(STEPS)]).train()
    resumed = trainer("killed")
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed.ema.module), weights(whole.ema.module))

    whole.save_model()
    export_student(tmp_path / "whole", tmp_path / "out", ema=True)
    published = AutoClassifier.from_pretrained(tmp_path / "out")
    assert published.first.weight is published.second.weight
    assert same(weights(published), weights(whole.ema.module))

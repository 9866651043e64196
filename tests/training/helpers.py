"""Tiny students and trainers that are watched, for the tests of training."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForImageClassification as AutoClassifier
from transformers import ResNetConfig, TrainerCallback, ViTConfig

from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.teacher.preprocessing import Preprocessing
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.student_inputs import normalize
from hf_dr.training.students import build_student
from hf_dr.training.trainer import ReinforcedTrainer

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


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two models, or two batches, are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def by_hand(pixels: torch.Tensor) -> torch.Tensor:
    """The student's input, by the definition."""
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return (pixels / 255 - mean) / std


def normalized(pixels: torch.Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> torch.Tensor:
    """The student's input, as this package makes it."""
    return normalize(pixels, Preprocessing((SIZE, SIZE), tuple(mean), tuple(std), "bilinear"))


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


def settings_in(folder: Path, **changes: Any) -> ReinforcedTrainingArguments:
    """Settings of one epoch on the CPU by SGD, which saves nothing."""
    given = {
        "output_dir": str(folder),
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

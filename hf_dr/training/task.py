"""Reinforced data in timm's own training script: a training task of timm's that learns from stored answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from timm.data import resolve_model_data_config
from timm.task import ClassificationTask
from transformers import BatchFeature

from hf_dr.errors import ConfigError
from hf_dr.training.losses import reinforced_loss
from hf_dr.training.reinforced_settings import TailRule
from hf_dr.training.students import normalize


class ReinforcedTask(ClassificationTask):
    """timm's classification task with `reinforced_loss`: DDP, compilation, averaged weights and checkpoints are timm's.

    `task(pixels_BCHW, batch)` returns timm's dict of `loss`, a scalar, and `output`, the logits (B, C). The two arguments are
    what a loader with `collate_fn=ReinforcedTask.collate` yields. The pixels are levels from 0 to 255, uint8 or converted to
    floating point as timm does; they are normalised on their device, by the model's own mean and standard deviation.

    Args:
        model: A model of timm, over the classes of the dataset.
        tail: See `reinforced_loss`, as the next three.
        temperature: Of the distillation.
        label_weight: Of the label's cross-entropy for replayed views.
        label_smoothing: For views that are not replayed.
        **settings: `device`, `dtype` and `verbose`, of timm's tasks.

    Raises:
        ConfigError: The model is not one of timm's.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        tail: TailRule = "uniform",
        temperature: float = 1.0,
        label_weight: float = 0.0,
        label_smoothing: float = 0.0,
        **settings: Any,
    ) -> None:
        if not hasattr(model, "pretrained_cfg"):
            raise ConfigError(
                f"`model` must be a model of timm, which says how its input is normalised, got {type(model).__name__}. Give "
                "`timm.create_model(...)`, or `student.timm_model` of a student that `build_student` made."
            )
        loss = partial(
            reinforced_loss,
            tail=tail,
            temperature=temperature,
            label_weight=label_weight,
            label_smoothing=label_smoothing,
        )
        super().__init__(model, loss, **settings)
        seen = resolve_model_data_config(model)
        self._mean: Sequence[float] = seen["mean"]
        self._std: Sequence[float] = seen["std"]

    def forward(self, input: torch.Tensor, target: Any) -> dict[str, torch.Tensor]:
        """See the class."""
        return super().forward(normalize(input, self._mean, self._std).to(self.dtype), target)

    @staticmethod
    def collate(items: Sequence[Mapping[str, Any]]) -> tuple[torch.Tensor, BatchFeature]:
        """Returns the pixels, uint8 (B, 3, H, W), and the rest of a batch, which has the method `to` that timm calls."""
        batch = torch.utils.data.default_collate(list(items))
        return batch.pop("pixel_values"), BatchFeature(batch)

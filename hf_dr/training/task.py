"""Reinforced data in timm's own training script: a training task of timm's that learns from stored answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.task import ClassificationTask
from transformers import BatchFeature

from hf_dr.errors import ConfigError
from hf_dr.replay.messages import collate_rows
from hf_dr.training.losses import ReinforcedLoss
from hf_dr.training.student_inputs import normalize, student_preprocessing


class ReinforcedTask(ClassificationTask):
    """timm's classification task on reinforced data: DDP, compilation, averaged weights and checkpoints are timm's.

    `task(pixels_BCHW, batch)` returns timm's dictionary of `loss`, a scalar, and `output`, the logits (B, C). The pixels are
    levels from 0 to 255, uint8 or converted to floating point as timm does; they are normalised on their device, by the model's
    own mean and standard deviation. `batch` is that of a `ReinforcedLoader` without a student, or what `collate` returns.

    Args:
        model: A model of timm, over the classes of the dataset.
        criterion: What is minimised.
        **settings: `device`, `dtype` and `verbose`, of timm's tasks.

    Raises:
        ConfigError: The model is not one of timm's.
    """

    def __init__(self, model: torch.nn.Module, criterion: ReinforcedLoss, **settings: Any) -> None:
        if not hasattr(model, "pretrained_cfg"):
            raise ConfigError(
                f"`model` must be a model of timm, which says how its input is normalised, got {type(model).__name__}. Give "
                "`timm.create_model(...)`, or `student.timm_model` of a student that `build_student` made."
            )
        super().__init__(model, criterion, **settings)
        self._seen = student_preprocessing(model)

    def forward(self, input: torch.Tensor, target: Any) -> dict[str, torch.Tensor]:
        """See the class."""
        return super().forward(normalize(input, self._seen).to(self.dtype), target)

    @staticmethod
    def collate(items: Sequence[Mapping[str, Any]]) -> tuple[torch.Tensor, BatchFeature]:
        """Makes a batch of a `DataLoader` for timm's `train.py`, which moves both parts to the device by their method `to`.

        Returns:
            The pixels, uint8 (B, 3, H, W), and the rest of the batch.
        """
        batch = collate_rows(items)
        return batch.pop("pixel_values"), BatchFeature(batch)

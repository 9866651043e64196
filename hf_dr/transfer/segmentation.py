"""Semantic segmentation on a student's backbone: DeepLabV3, images with masks, mean intersection over union.

Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation (arXiv:1706.05587), of torchvision's parts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import convert_sync_batchnorm
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.models.segmentation.fcn import FCNHead

from hf_dr.errors import ConfigError
from hf_dr.training.checks import check_batches
from hf_dr.transfer.backbone import Backbone, StudentIdentity, build_backbone, describe_backbone
from hf_dr.transfer.segmentation_data import (
    IGNORED,
    Classes,
    ConfusionMeter,
    ScaleCropFlip,
    SegmentationData,
    SegmentationImages,
)
from hf_dr.transfer.settings import BackboneArguments, SegmentationArguments
from hf_dr.transfer.trainer import TransferArguments, TransferTrainer, load_trained, open_data

logger = logging.getLogger(__name__)

TASK = "image-segmentation"


# --------------------------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class SegmenterConfig:
    """What builds a segmenter on a backbone.

    Attributes:
        class_names: Names of the labels 0, 1, ...
        head_channels: Channels of the head.
        dropout: Dropout in the head.
        aux_weight: Weight of the loss of a second, plain head on the stage before the last; 0 for none.
    """

    class_names: list[str]
    head_channels: int = 512
    dropout: float = 0.1
    aux_weight: float = 0.4

    @property
    def out_indices(self) -> tuple[int, ...]:
        """Which of timm's features the heads take."""
        return (-2, -1) if self.aux_weight else (-1,)


def atrous_rates(stride: int) -> tuple[int, int, int]:
    """Returns the rates of the head's dilated convolutions on features of a stride: the paper's, 6, 12, 18 at 16, scaled.

    So the head sees as far whatever the stride is: 12, 24, 36 at 8 and 3, 6, 9 at 32.
    """
    first, second, third = (max(1, round(96 * n / stride)) for n in (1, 2, 3))
    return first, second, third


class Segmenter(nn.Module):
    """DeepLabV3: pyramid pooling by dilated convolutions over a student's last features, those of `config.out_indices`."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, body: Backbone, config: SegmenterConfig) -> None:
        super().__init__()
        self.body = body
        self.settings = config  # Trainer reads `config` as one of transformers'
        channels = config.head_channels
        classes = len(config.class_names)
        pooling = ASPP(body.channels[-1], atrous_rates(body.reductions[-1]), channels)
        pooling.project[-1].p = config.dropout
        # As torchvision's DeepLabHead, whose channels are always 256.
        self.head = nn.Sequential(
            pooling,
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, classes, 1),
        )
        self.aux_head = FCNHead(body.channels[0], classes) if config.aux_weight else None
        for name in ("mean", "std"):
            values = torch.tensor(getattr(body.spec, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, pixel_values: list[torch.Tensor], labels: list[torch.Tensor] | None = None) -> Any:
        """Returns `loss` in training, else the most probable class of each pixel, (H, W) int64 for each image.

        Args:
            pixel_values: uint8, (3, H, W) each; of one size in training.
            labels: Integers, (H, W) each; `IGNORED` counts for nothing.
        """
        if not self.training:  # one by one: each at its own size, whatever else is in the batch
            return [self._logits(pixels[None])[0].argmax(dim=1)[0] for pixels in pixel_values]
        assert labels is not None
        labels_BHW = torch.stack(labels).long()
        logits = self._logits(torch.stack(pixel_values))
        loss = _cross_entropy(logits[0], labels_BHW)
        if self.aux_head is not None:
            loss = loss + self.settings.aux_weight * _cross_entropy(logits[1], labels_BHW)
        return {"loss": loss}

    def _logits(self, pixels_B3HW: torch.Tensor) -> list[torch.Tensor]:
        """Logits (B, C, H, W) of the head, and in training of the auxiliary one."""
        height, width = pixels_B3HW.shape[-2:]
        inputs = (pixels_B3HW.float() / 255 - self.mean) / self.std
        multiple = self.body.reductions[-1]
        inputs = F.pad(inputs, (0, -width % multiple, 0, -height % multiple))
        features = self.body(inputs)
        logits = [self.head(features[-1])]
        if self.training and self.aux_head is not None:
            logits.append(self.aux_head(features[0]))
        size = inputs.shape[-2:]
        return [
            F.interpolate(each.float(), size, mode="bilinear", align_corners=False)[..., :height, :width]
            for each in logits
        ]


def _cross_entropy(logits_BCHW: torch.Tensor, labels_BHW: torch.Tensor) -> torch.Tensor:
    """The mean over the pixels that count; 0 where none does, whose mean would be NaN."""
    total = F.cross_entropy(logits_BCHW, labels_BHW, ignore_index=IGNORED, reduction="sum")
    return total / (labels_BHW != IGNORED).sum().clamp(min=1)


def load_segmenter(folder: str | Path) -> Segmenter:
    """Loads a segmenter that `hf-dr segment` trained, for evaluation.

    Args:
        folder: The `output_dir` of the training.

    Returns:
        A `torch.nn.Module` in evaluation mode. It takes a list of images, uint8 (3, H, W), RGB, of any size, and returns for
        each the most probable class of each pixel, int64 (H, W), as numbers of `settings.class_names`.

    Raises:
        HfDrError: The folder holds none.
    """
    return load_trained(
        folder, TASK, lambda body, described: Segmenter(body, SegmenterConfig(**described["segmenter"]))
    )


# ------------------------------------------------------------------------------------------------------------- trainer


def segmentation_trainer(
    chosen: SegmentationArguments, student: BackboneArguments, args: TransferArguments
) -> TransferTrainer:
    """Opens the data, puts a segmenter on the student, and makes its trainer.

    Raises:
        HfDrError: The data or the student cannot be used.
    """
    classes = Classes(chosen.class_names, chosen.ignore_index, chosen.reduce_labels)
    config = SegmenterConfig(classes.names, chosen.head_channels, chosen.dropout, chosen.aux_weight)
    train, evaluated, dataset = open_data(
        chosen,
        partial(SegmentationData.from_folders, classes=classes),
        partial(
            SegmentationData.from_dataset,
            classes=classes,
            image_column=chosen.image_column,
            mask_column=chosen.mask_column,
        ),
    )
    synchronised = args.world_size > 1 and args.device.type == "cuda"  # a process has few images
    # The head pools each image to one pixel, from which a batch normalisation cannot learn.
    check_batches(len(train.images), args, lambda: synchronised)
    body, identity = _build(student, config.out_indices, chosen.output_stride)
    red, green, blue = (round(255 * value) for value in body.spec.mean)
    augmentation = ScaleCropFlip(
        chosen.crop_size,
        tuple(chosen.short_side),  # type: ignore[arg-type]
        chosen.long_side,
        chosen.max_class_share,
        chosen.flip,
        chosen.interpolation,
        (red, green, blue),
    )
    model: nn.Module = Segmenter(body, config)
    if synchronised:
        model = convert_sync_batchnorm(model)
    return TransferTrainer(
        model,
        args,
        description={
            "task": TASK,
            "student": identity,
            "dataset": dataset,
            **describe_backbone(body),
            "segmenter": asdict(config),
            "masks": {"ignore_index": classes.ignore_index, "reduce_labels": classes.reduce_labels},
            "augmentation": asdict(augmentation),
        },
        meter=partial(ConfusionMeter, classes.names),
        train_dataset=SegmentationImages(train, augmentation, args.seed),
        eval_dataset=None if evaluated is None else SegmentationImages(evaluated),
        data_collator=collate,
    )


def _build(student: BackboneArguments, out_indices: tuple[int, ...], stride: int) -> tuple[Backbone, StudentIdentity]:
    """The student's features, dilated to a stride where timm can."""
    try:
        body, identity = build_backbone(student, out_indices=out_indices, output_stride=stride)
    except ConfigError:
        body, identity = build_backbone(student, out_indices=out_indices)  # raises if something else is wrong
    if body.reductions[-1] != stride:
        logger.warning(
            "%s cannot be dilated to `output_stride` %d: its features keep the stride %d.",
            body.spec.architecture,
            stride,
            body.reductions[-1],
        )
    return body, identity


def collate(examples: Sequence[dict[str, torch.Tensor]]) -> dict[str, list[torch.Tensor]]:
    """Makes a batch of lists, for whole images differ in size."""
    return {name: [each[name] for each in examples] for name in ("pixel_values", "labels")}

"""Object detection on a student's backbone: Mask R-CNN with a feature pyramid, data with boxes and masks, COCO's metrics.

He et al., Mask R-CNN (arXiv:1703.06870) and Lin et al., Feature Pyramid Networks (arXiv:1612.03144), as torchvision has them.
"""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from hf_dr.errors import ConfigError, DataError
from hf_dr.transfer.backbone import Backbone, build_backbone, describe_backbone
from hf_dr.transfer.coco_masks import coco_library
from hf_dr.transfer.coco_metrics import CocoMeter
from hf_dr.transfer.detection_data import DetectionData, DetectionImages, collate
from hf_dr.transfer.settings import BackboneArguments, DetectionArguments
from hf_dr.transfer.trainer import TransferArguments, TransferTrainer, load_trained, open_data

logger = logging.getLogger(__name__)

TASK = "object-detection"


# --------------------------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class DetectorConfig:
    """What builds a detector on a backbone.

    Attributes:
        class_names: Names of the labels 1, 2, ...; 0 is the background.
        category_ids: The data's own id of each class.
        masks: Whether it is a Mask R-CNN, else a Faster R-CNN.
        short_side: Pixels; each training image is resized to one of them, an evaluated one to the last.
        long_side: Pixels, at most.
        fpn_channels: Channels of the feature pyramid and of the mask head.
        rois_per_image: Proposals from which the heads learn.
    """

    class_names: list[str]
    category_ids: list[int]
    masks: bool
    short_side: list[int]
    long_side: int
    fpn_channels: int
    rois_per_image: int


class _Pyramid(nn.Module):
    """A backbone with a feature pyramid over it, as torchvision's detectors take it."""

    def __init__(self, body: Backbone, channels: int) -> None:
        super().__init__()
        self.body = body
        self.out_channels = channels  # torchvision reads it
        self.fpn = FeaturePyramidNetwork(body.channels, channels, extra_blocks=LastLevelMaxPool())

    def forward(self, pixels_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.fpn(OrderedDict((str(n), feature) for n, feature in enumerate(self.body(pixels_BCHW))))


class Detector(nn.Module):
    """Mask R-CNN, or Faster R-CNN, with a feature pyramid over a student's features, which must be of several scales."""

    def __init__(self, body: Backbone, config: DetectorConfig) -> None:
        super().__init__()
        strides = body.reductions
        if len(strides) < 2 or any(high <= low for low, high in itertools.pairwise(strides)):
            raise ConfigError(
                f"a detector needs features of several scales, but {body.spec.architecture} has the strides "
                f"{', '.join(map(str, strides))}. Choose a convolutional network or a hierarchical transformer such as Swin."
            )
        self.settings = config  # Trainer reads `config` as one of transformers'
        channels = config.fpn_channels
        levels = [str(n) for n in range(len(strides))]
        # Anchors of 32 pixels at stride 4, 64 at 8, ..., as in the feature pyramid's paper; one level more than features.
        sizes = tuple((8 * stride,) for stride in [*strides, 2 * strides[-1]])
        settings: dict[str, Any] = {
            "num_classes": len(config.class_names) + 1,
            "min_size": tuple(config.short_side),
            "max_size": config.long_side,
            "image_mean": list(body.spec.mean),
            "image_std": list(body.spec.std),
            "rpn_anchor_generator": AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
            "box_roi_pool": MultiScaleRoIAlign(levels, 7, 2),
            "box_batch_size_per_image": config.rois_per_image,
        }
        pyramid = _Pyramid(body, channels)
        if config.masks:
            head = MaskRCNNHeads(channels, (channels,) * 4, 1)
            pool = MultiScaleRoIAlign(levels, 14, 2)
            self.rcnn: FasterRCNN = MaskRCNN(pyramid, **settings, mask_roi_pool=pool, mask_head=head)
            # torchvision's own is made for heads of 256 channels.
            self.rcnn.roi_heads.mask_predictor = MaskRCNNPredictor(channels, channels, settings["num_classes"])
        else:
            self.rcnn = FasterRCNN(pyramid, **settings)

    def forward(self, images: list[torch.Tensor], targets: list[dict[str, torch.Tensor]] | None = None) -> Any:
        """Returns the losses and their sum as `loss` in training, else `boxes`, `labels`, `scores` (`masks`) of each image.

        Args:
            images: uint8, (3, H, W) each.
            targets: See `DetectionImages`; only training needs them.
        """
        pixels = [image.float() / 255 for image in images]
        if not self.training:  # one by one: without the padding to the largest of a batch, which changes what is found
            return [self.rcnn([each])[0] for each in pixels]
        losses = self.rcnn(pixels, targets)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}


def load_detector(folder: str | Path) -> Detector:
    """Loads a detector that `hf-dr detect` trained, for evaluation.

    Args:
        folder: The `output_dir` of the training.

    Returns:
        A `torch.nn.Module` in evaluation mode. It takes a list of images, uint8 (3, H, W), RGB, of any size, and returns for
        each a dict of `boxes` (N, 4), left, top, right and bottom in pixels, `labels` (N,), where l stands for
        `settings.class_names[l - 1]`, `scores` (N,), and, if masks were learned, `masks` (N, 1, H, W), probabilities.

    Raises:
        HfDrError: The folder holds none.
    """
    return load_trained(folder, TASK, lambda body, described: Detector(body, DetectorConfig(**described["detector"])))


# ------------------------------------------------------------------------------------------------------------- trainer


def check_same_categories(train: DetectionData, evaluated: DetectionData) -> None:
    """Raises a DataError if two sets differ in their categories, by id or name."""
    if train.categories != evaluated.categories:
        here, there = (list(data.categories.items()) for data in (train, evaluated))
        # Slices, because one of them may end first.
        n = next(n for n in range(max(len(here), len(there))) if here[n : n + 1] != there[n : n + 1])
        raise DataError(
            f"{evaluated.described['id']} must have the categories of {train.described['id']}, but number {n} is "
            f"{there[n : n + 1]} there and {here[n : n + 1]} here. Evaluate on another."
        )


def detection_trainer(
    chosen: DetectionArguments, student: BackboneArguments, args: TransferArguments
) -> TransferTrainer:
    """Opens the data, puts a detector on the student, and makes its trainer.

    Raises:
        HfDrError: The data or the student cannot be used.
    """
    coco_library()  # missing ones are noticed now, not after hours
    train, evaluated, dataset = open_data(
        chosen,
        DetectionData.from_coco,
        partial(
            DetectionData.from_dataset,
            bbox_format=chosen.bbox_format,
            image_column=chosen.image_column,
            objects_column=chosen.objects_column,
        ),
    )
    if evaluated is not None:
        check_same_categories(train, evaluated)
    masks = _choose_masks(chosen.masks, [data for data in (train, evaluated) if data is not None])
    examples = DetectionImages(train, train=True, masks=masks, flip=chosen.flip, seed=args.seed)
    logger.info(
        "%s on %d images with %d categories; images with nothing to learn from, which are left out: %d.",
        "Mask R-CNN" if masks else "Faster R-CNN, without masks,",
        len(examples),
        len(train.categories),
        len(train.objects) - len(examples),
    )
    body, identity = build_backbone(student)
    config = DetectorConfig(
        list(train.categories.values()),
        list(train.categories),
        masks,
        chosen.short_side,
        chosen.long_side,
        chosen.fpn_channels,
        chosen.rois_per_image,
    )
    trainer = TransferTrainer(
        Detector(body, config),
        args,
        description={
            "task": TASK,
            "student": identity,
            "dataset": dataset,
            **describe_backbone(body),
            "detector": asdict(config),
            "flip": chosen.flip,
        },
        meter=partial(CocoMeter, evaluated or train, masks),
        train_dataset=examples,
        eval_dataset=None if evaluated is None else DetectionImages(evaluated, train=False),
        data_collator=collate,
    )
    # Asked of accelerate, whose own configuration may say so, too.
    if trainer.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise ConfigError(
            "`torch_compile` is not for detectors: they find another number of boxes in each image, and torch did not compile "
            "even a tiny one within ten minutes. Leave it out, in accelerate's configuration (dynamo) as well."
        )
    return trainer


def _choose_masks(wanted: bool | None, sets: Sequence[DetectionData]) -> bool:
    """Whether masks are learned: as wanted, else where all sets have them."""
    if wanted is False:
        return False
    masks = True
    for data in sets:
        missing = sum(each.segmentations.count(None) for each in data.objects)
        usable = sum(int(each.segmented.sum()) for each in data.objects)  # of some area
        count = sum(len(each.labels) for each in data.objects)
        named = f"of the {count} objects of {data.described['id']}"
        if wanted and (missing or not usable):
            raise DataError(
                f"`masks` needs segmentations of all objects, but {count - usable} {named} have none. Leave it out for Faster "
                "R-CNN."
            )
        if missing and usable:
            logger.warning(
                "No masks are learned, which needs segmentations of all objects: %d %s have none.", missing, named
            )
        elif count > usable > 0:
            logger.warning(
                "%d %s have only polygons of fewer than three points, and are not learned. Pass --masks false to learn their "
                "boxes.",
                count - usable,
                named,
            )
        masks = masks and not missing and usable > 0
    if masks:
        for data in sets:
            data.check_masks()
    return masks

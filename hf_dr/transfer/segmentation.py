"""Semantic segmentation on a student's backbone: DeepLabV3, images with masks, mean intersection over union.

Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation (arXiv:1706.05587), of torchvision's parts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from timm.layers import convert_sync_batchnorm
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.models.segmentation.fcn import FCNHead

from hf_dr.errors import ConfigError, DataError, did_you_mean
from hf_dr.store.base_dataset import load_base, undecoded_images
from hf_dr.store.named_files import FILES_FROM_HELP
from hf_dr.transfer.trainer import (
    Backbone,
    BackboneArguments,
    TransferArguments,
    TransferTrainer,
    describe_backbone,
    load_trained,
)
from hf_dr.views.images import decode_image
from hf_dr.views.rng import view_rng

logger = logging.getLogger(__name__)

TASK = "image-segmentation"
IGNORED = -1
"""The label of a pixel that does not count, whatever number a mask has there."""

_FILTERS = {name.lower(): PIL.Image.Resampling[name] for name in ("NEAREST", "BILINEAR", "BICUBIC")}
_STRIDES = (8, 16, 32)
_IMAGE_FILES, _MASK_FILES = (".jpg", ".jpeg", ".png", ".webp"), (".png", ".tif", ".tiff", ".bmp")
# How often a crop of too much of one class is drawn anew.
_TRIES = 10


# -------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Classes:
    """What the numbers in masks mean.

    Attributes:
        names: Of the labels 0, 1, ...
        ignore_index: The number of pixels that do not count.
        reduce_labels: Whether 0 does not count either, and label l is stored as l + 1, as in ADE20K's scene parsing.

    Raises:
        ConfigError: There are no names, or two are the same.
    """

    names: list[str]
    ignore_index: int = 255
    reduce_labels: bool = False

    def __post_init__(self) -> None:
        twice = [name for n, name in enumerate(self.names) if name in self.names[:n]]
        if not self.names or twice:
            raise ConfigError(
                f"the names of classes must differ, found {f'{twice[0]!r} twice' if twice else 'none'}. Set `class_names`."
            )

    def labels(self, stored: np.ndarray) -> np.ndarray:
        """Returns the labels (H, W), int32, from 0 on or `IGNORED`, of a mask's numbers.

        Raises:
            DataError: A number is none of a class.
        """
        labels = stored.astype(np.int32) - self.reduce_labels
        labels[(stored == self.ignore_index) | (labels < 0)] = IGNORED
        if labels.max(initial=IGNORED) >= len(self.names):
            first = int(self.reduce_labels)
            raise DataError(
                f"expected numbers from {first} to {first + len(self.names) - 1} or {self.ignore_index}, found "
                f"{labels.max() + first}. Name all classes, or set `ignore_index` or `reduce_labels`"
            )
        return labels


def decode_mask(value: Any) -> np.ndarray:
    """Decodes one cell of a column of masks to integers (H, W): grey levels, or indices of the palette.

    Args:
        value: What `datasets` stores for an image, `{"bytes": ..., "path": ...}`.

    Raises:
        DataError: It is no image of one channel of integers.
    """
    try:
        data = value.get("bytes")
        with PIL.Image.open(value["path"] if data is None else BytesIO(data)) as image:
            mode, stored = image.mode, np.asarray(image)
    # As for images: Pillow's readers raise a dozen types on broken files.
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        raise DataError(f"{type(error).__name__}: {error}") from error
    if stored.ndim != 2 or stored.dtype.kind not in "biu":
        raise DataError(f"expected one channel of whole numbers, found mode {mode}. Convert it to a grey PNG")
    return stored


@dataclass(frozen=True)
class SegmentationData:
    """Images with masks.

    Attributes:
        described: What names it, for results.
        classes: What the masks' numbers mean.
        images: Of each row, for `decode_image`.
        masks: Of each row, for `decode_mask`.
    """

    described: dict[str, Any]
    classes: Classes
    images: Sequence[Any]
    masks: Sequence[Any]

    @classmethod
    def from_folders(cls, images: str | Path, masks: str | Path, classes: Classes) -> SegmentationData:
        """Reads two folders, as ADE20K's scene parsing comes: a mask has its image's name but for the ending.

        Raises:
            DataError: A folder is not there or empty, or an image has no mask.
        """
        found = []
        for name, folder, endings in (("images", images, _IMAGE_FILES), ("masks", masks, _MASK_FILES)):
            place = Path(folder).expanduser()
            files = {path.stem: path for path in sorted(place.glob("*")) if path.suffix.lower() in endings}
            if not files:
                raise DataError(
                    f"`{name}` must be a folder with files {', '.join(endings)}, found none in {place}. Check it."
                )
            found.append(files)
        without = [path.name for stem, path in found[0].items() if stem not in found[1]]
        if without:
            raise DataError(
                f"each image must have a mask of its name, but {without[0]} and {len(without) - 1} others of {images} have "
                f"none in {masks}. Add them, or check both folders."
            )
        place = Path(images).expanduser().resolve()
        return cls(
            {"id": "/".join(place.parts[-2:])},
            classes,
            [{"path": str(path)} for path in found[0].values()],
            [{"path": str(found[1][stem])} for stem in found[0]],
        )

    @classmethod
    def from_dataset(
        cls,
        dataset: datasets.Dataset,
        described: dict[str, Any],
        classes: Classes,
        *,
        image_column: str = "image",
        mask_column: str | None = None,
    ) -> SegmentationData:
        """Reads a dataset with a column of images and one of masks.

        Args:
            dataset: What is read.
            described: What names it.
            classes: What the masks' numbers mean.
            image_column: Column of the images.
            mask_column: Column of the masks. Default: the only other one that holds images.

        Raises:
            DataError: There is no such column.
        """
        columns = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
        others = [name for name in columns if name != image_column]
        if mask_column is None and len(others) != 1:
            raise DataError(
                f"one other column than `{image_column}` must hold images, the masks, found {', '.join(others) or 'none'}. "
                "Name `mask_column`."
            )
        mask_column = mask_column or others[0]
        for name in (image_column, mask_column):
            if name not in columns:
                raise DataError(f"the dataset must have the column of images `{name}`.{did_you_mean(name, columns)}")
        cells: Any = [
            undecoded_images(dataset, name)[name] for name in (image_column, mask_column)
        ]  # read when asked for
        return cls(described, classes, *cells)

    def __getitem__(self, row: int) -> tuple[PIL.Image.Image, np.ndarray]:
        """Returns the image, RGB, and its labels (H, W), int32.

        Raises:
            DataError: One cannot be read, or they are not of one size.
        """
        kind = "image"
        try:
            image = decode_image(self.images[row])
            kind = "mask"
            labels = self.classes.labels(decode_mask(self.masks[row]))
        except DataError as error:
            raise DataError(f"the {kind} of row {row} cannot be used: {error}.") from error
        if (image.height, image.width) != labels.shape:
            raise DataError(
                f"the mask of row {row} must be {image.width}x{image.height}, as its image, found "
                f"{labels.shape[1]}x{labels.shape[0]}. If the image's EXIF orientation turns it, save it without."
            )
        return image, labels


@dataclass(frozen=True)
class CropParams:
    """What was drawn for one image.

    Attributes:
        scaled: Height and width that the image is resized to.
        corner: Top and left of the crop in it.
        flip: Whether the crop is mirrored.
    """

    scaled: tuple[int, int]
    corner: tuple[int, int]
    flip: bool


@dataclass(frozen=True)
class ScaleCropFlip:
    """A random scale, a square crop that not one class fills, and mirroring, for an image and its labels together.

    Attributes:
        size: Side of the crop, in pixels; what the image does not fill is padded, to the right and below.
        short_side: Least and greatest length of the scaled image's shorter side.
        long_side: Length of its longer side, at most.
        max_class_share: Of a crop's pixels that count; a crop of more of one class is drawn anew, up to ten times.
        flip: Probability.
        interpolation: Filter of the image: nearest, bilinear or bicubic. Labels take the nearest.
        fill: Colour of the padding, 0 to 255; its labels are `IGNORED`.

    Raises:
        ConfigError: A value is impossible.
    """

    size: int = 512
    short_side: tuple[int, int] = (256, 768)
    long_side: int = 1024
    max_class_share: float = 0.75
    flip: float = 0.5
    interpolation: str = "bicubic"
    fill: tuple[int, int, int] = (124, 116, 104)

    def __post_init__(self) -> None:
        for name in ("size", "long_side"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if len(self.short_side) != 2 or not 1 <= self.short_side[0] <= self.short_side[1]:
            raise ConfigError(f"`short_side` must be two numbers from 1 on, ascending, got {self.short_side}.")
        if not 0 < self.max_class_share <= 1:
            raise ConfigError(f"`max_class_share` must be above 0 and at most 1, got {self.max_class_share}.")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"`flip` must be between 0 and 1, got {self.flip}.")
        if self.interpolation not in _FILTERS:
            raise ConfigError(f"`interpolation` must be one of {', '.join(_FILTERS)}, got {self.interpolation!r}.")

    def sample(self, rng: np.random.Generator, labels: np.ndarray) -> CropParams:
        """Draws the parameters for an image with these labels."""
        size = np.array(labels.shape)
        scale = min(rng.integers(*self.short_side, endpoint=True) / size.min(), self.long_side / size.max())
        scaled = np.maximum(1, np.rint(size * scale)).astype(int)
        room = np.maximum(scaled - self.size, 0)
        for _ in range(_TRIES):
            corner = rng.integers(0, room, endpoint=True)
            # In the labels as they are: scaling them for each try would take longer than all the rest.
            start, stop = np.floor(corner / scale).astype(int), np.ceil((corner + self.size) / scale).astype(int)
            inside = labels[start[0] : stop[0], start[1] : stop[1]]
            counts = np.bincount(inside[inside != IGNORED])
            if 0 < counts.max(initial=0) <= self.max_class_share * counts.sum():
                break
        (height, width), (top, left) = scaled.tolist(), corner.tolist()
        return CropParams((height, width), (top, left), bool(rng.random() < self.flip))

    def apply(
        self, image: PIL.Image.Image, labels: np.ndarray, params: CropParams
    ) -> tuple[PIL.Image.Image, np.ndarray]:
        """Returns the crop of an image, `size` x `size`, and of its labels."""
        (height, width), (top, left) = params.scaled, params.corner
        resized = image.resize((width, height), _FILTERS[self.interpolation])
        nearest = np.asarray(PIL.Image.fromarray(labels).resize((width, height), PIL.Image.Resampling.NEAREST))
        bottom, right = min(top + self.size, height), min(left + self.size, width)
        crop = PIL.Image.new("RGB", (self.size, self.size), self.fill)
        crop.paste(resized.crop((left, top, right, bottom)))
        cropped = np.full((self.size, self.size), IGNORED, np.int32)
        cropped[: bottom - top, : right - left] = nearest[top:bottom, left:right]
        if params.flip:
            return crop.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT), cropped[:, ::-1]
        return crop, cropped


class SegmentationImages(torch.utils.data.Dataset):
    """Examples for `Segmenter`: uint8 `pixel_values` (3, H, W) and int32 `labels` (H, W), whole or cropped.

    Args:
        data: Images with masks.
        augmentation: Draws a crop, as (seed, row, epoch) tells; None for whole images.
        seed: Of the crops.
    """

    def __init__(self, data: SegmentationData, augmentation: ScaleCropFlip | None = None, seed: int = 0) -> None:
        self._data, self._augmentation, self._seed = data, augmentation, seed

    def __len__(self) -> int:
        return len(self._data.images)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        row, epoch = index if isinstance(index, tuple) else (index, 0)
        image, labels = self._data[row]
        if self._augmentation is not None:
            params = self._augmentation.sample(view_rng(self._seed, row, epoch), labels)
            image, labels = self._augmentation.apply(image, labels, params)
        pixels = torch.from_numpy(np.array(image).transpose(2, 0, 1))
        return {"pixel_values": pixels, "labels": torch.from_numpy(np.ascontiguousarray(labels))}


def collate(examples: Sequence[dict[str, torch.Tensor]]) -> dict[str, list[torch.Tensor]]:
    """Makes a batch of lists, for whole images differ in size."""
    return {name: [each[name] for each in examples] for name in ("pixel_values", "labels")}


# -------------------------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class SegmenterConfig:
    """What builds a segmenter on a backbone.

    Attributes:
        class_names: Of the labels 0, 1, ...
        head_channels: Of the head.
        dropout: In the head.
        aux_weight: Of the loss of a second, plain head on the stage before the last; 0 for none.

    Raises:
        ConfigError: A value is impossible.
    """

    class_names: list[str]
    head_channels: int = 512
    dropout: float = 0.1
    aux_weight: float = 0.4

    def __post_init__(self) -> None:
        if self.head_channels < 1:
            raise ConfigError(f"`head_channels` must be at least 1, got {self.head_channels}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"`dropout` must be at least 0 and below 1, got {self.dropout}.")
        if self.aux_weight < 0:
            raise ConfigError(f"`aux_weight` must be at least 0, got {self.aux_weight}.")

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
    """DeepLabV3: pyramid pooling by dilated convolutions over a student's last features.

    Args:
        body: The backbone, with the features of `config.out_indices`.
        config: The rest.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, body: Backbone, config: SegmenterConfig) -> None:
        super().__init__()
        self.body, self.settings = body, config  # Trainer has its own thoughts on `config`
        channels, classes = config.head_channels, len(config.class_names)
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
        if not self.training:  # one by one: each at its own size, whatever is in the batch beside it
            return [self._logits(pixels[None])[0].argmax(dim=1)[0] for pixels in pixel_values]
        assert labels is not None
        labels_BHW = torch.stack(labels).long()
        logits = self._logits(torch.stack(pixel_values))
        losses = [_cross_entropy(each, labels_BHW) for each in logits]
        return {"loss": losses[0] + self.settings.aux_weight * losses[1] if len(losses) > 1 else losses[0]}

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
    """The mean over the pixels that count; 0 where none does, of which a mean would be no number."""
    total = F.cross_entropy(logits_BCHW, labels_BHW, ignore_index=IGNORED, reduction="sum")
    return total / (labels_BHW != IGNORED).sum().clamp(min=1)


def load_segmenter(folder: str | Path) -> Segmenter:
    """Loads a segmenter that `hf-dr segment` trained, for evaluation.

    Raises:
        HfDrError: The folder holds none.
    """
    return load_trained(folder, TASK, lambda body, told: Segmenter(body, SegmenterConfig(**told["segmenter"])))


# ------------------------------------------------------------------------------------------------------------- metrics


def confusion(labels: torch.Tensor, predicted: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Counts pixels: (C, C) int64, row: the label, column: what was predicted; `IGNORED` pixels are left out."""
    counted = labels != IGNORED
    pairs = labels[counted].long() * num_classes + predicted[counted].long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def segmentation_metrics(matrix: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Returns metrics of 0 to 1 from a confusion matrix: `mean_iou`, `pixel_accuracy`, and `iou_<class>` of each class.

    The intersection over union of a class is of all pixels of all images together; classes that are neither there nor
    predicted have none and are left out.

    Raises:
        DataError: No pixel was counted.
    """
    if not matrix.sum():
        raise DataError("masks must have pixels that count, found none. Check `ignore_index` and `reduce_labels`.")
    hits = matrix.diagonal()
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hits
    ious = {f"iou_{class_names[c]}": float(hits[c] / union[c]) for c in np.flatnonzero(union).tolist()}
    accuracy = float(hits.sum() / matrix.sum())
    return {"mean_iou": float(np.mean(list(ious.values()))), "pixel_accuracy": accuracy, **ious}


class ConfusionMeter:
    """Mean intersection over union, over the images of all processes.

    Args:
        class_names: Of the labels.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._class_names = class_names
        self._matrix = np.zeros((len(class_names), len(class_names)), np.int64)

    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        """Counts the pixels of a batch."""
        for labels, predicted in zip(batch["labels"], model(**batch), strict=True):
            self._matrix += confusion(labels, predicted, len(self._class_names)).cpu().numpy()

    def compute(self) -> dict[str, float]:
        """Returns `segmentation_metrics` over all processes."""
        return segmentation_metrics(np.sum(gather_object([self._matrix]), axis=0), self._class_names)


# ------------------------------------------------------------------------------------------------------------ settings


@dataclass
class SegmentationArguments:
    """On which data, and how large.

    Raises:
        ConfigError: The data are named in two ways or none, or a value is impossible.
    """

    images: str | None = field(default=None, metadata={"help": "Folder of the training images."})
    masks: str | None = field(
        default=None,
        metadata={
            "help": "Folder of their masks: PNG of the same names, whose grey levels or palette indices are labels."
        },
    )
    eval_images: str | None = field(default=None, metadata={"help": "Folder of the images to evaluate on."})
    eval_masks: str | None = field(default=None, metadata={"help": "Folder of their masks."})
    dataset: str | None = field(
        default=None,
        metadata={"help": "In place of --images: Hub id, Parquet file or folder of a dataset with images and masks."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration, where it has several."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the dataset on the Hub."})
    files_from: list[str] = field(default_factory=list, metadata={"help": FILES_FROM_HELP})
    split: str = field(default="train", metadata={"help": "Its split to train on."})
    eval_split: str | None = field(default=None, metadata={"help": "Its split to evaluate on. Default: none."})
    image_column: str = field(default="image", metadata={"help": "Its column of images."})
    mask_column: str | None = field(
        default=None, metadata={"help": "Its column of masks. Default: the only other one that holds images."}
    )
    class_names: list[str] = field(
        default_factory=list, metadata={"help": "Names of the labels in their order, which give their number."}
    )
    ignore_index: int = field(default=255, metadata={"help": "The number in masks of pixels that do not count."})
    reduce_labels: bool = field(
        default=False,
        metadata={"help": "In masks 0 does not count either, and label l is stored as l + 1, as in ADE20K's."},
    )
    crop_size: int = field(default=512, metadata={"help": "Side in pixels of the training crops."})
    short_side: list[int] = field(
        default_factory=lambda: [256, 768],
        metadata={
            "help": "Least and greatest length in pixels to which the shorter side of a training image is scaled. Evaluated "
            "are whole images at their own size. Default: 256 768."
        },
    )
    long_side: int = field(default=1024, metadata={"help": "Pixels of its longer side, at most."})
    max_class_share: float = field(
        default=0.75, metadata={"help": "A crop of which one class fills more is drawn anew, up to ten times."}
    )
    flip: float = field(default=0.5, metadata={"help": "Probability that a crop is mirrored."})
    interpolation: str = field(
        default="bicubic", metadata={"help": "Filter of the scaled images.", "choices": list(_FILTERS)}
    )
    output_stride: int = field(
        default=8,
        metadata={
            "help": "Pixels to one of the last features, sideways, by dilation; architectures that cannot be dilated keep "
            "their own, and the log says so.",
            "choices": list(_STRIDES),
        },
    )
    head_channels: int = field(default=512, metadata={"help": "Channels of the head."})
    dropout: float = field(default=0.1, metadata={"help": "In the head."})
    aux_weight: float = field(
        default=0.4, metadata={"help": "Of the loss of a plain head on the stage before the last; 0 for none."}
    )

    def __post_init__(self) -> None:
        if (self.dataset is None) == (self.images is None):
            raise ConfigError(f"one of `images` and `dataset` must be given, got {self.images} and {self.dataset}.")
        for name, other in (("eval_images", "dataset"), ("eval_split", "images")):
            if getattr(self, name) is not None and getattr(self, other) is not None:
                right = {"eval_images": "eval_split", "eval_split": "eval_images"}[name]
                raise ConfigError(f"`{name}` must not come with `{other}`, got both. Use `{right}`.")
        for name in ("", "eval_"):
            if (getattr(self, f"{name}images") is None) != (getattr(self, f"{name}masks") is None):
                raise ConfigError(f"`{name}images` and `{name}masks` must come together, got one of them.")
        if self.output_stride not in _STRIDES:
            raise ConfigError(
                f"`output_stride` must be one of {', '.join(map(str, _STRIDES))}, got {self.output_stride}."
            )


def segmentation_trainer(
    chosen: SegmentationArguments, student: BackboneArguments, args: TransferArguments
) -> TransferTrainer:
    """Opens the data, puts a segmenter on the student, and makes its trainer.

    Raises:
        HfDrError: The data or the student cannot be used.
    """
    classes = Classes(chosen.class_names, chosen.ignore_index, chosen.reduce_labels)
    config = SegmenterConfig(classes.names, chosen.head_channels, chosen.dropout, chosen.aux_weight)
    with args.main_process_first(local=True):
        train, evaluated = _open_data(chosen, classes)
    _check_batches(len(train.images), args)
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
    if args.world_size > 1 and args.device.type == "cuda":
        model = convert_sync_batchnorm(model)  # a process has few images
    return TransferTrainer(
        model,
        args,
        description={
            "task": TASK,
            "student": identity,
            "dataset": train.described
            if evaluated is None
            else {**train.described, "evaluated_on": evaluated.described},
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


def _build(student: BackboneArguments, out_indices: tuple[int, ...], stride: int) -> tuple[Backbone, dict[str, Any]]:
    """The student's features, dilated to a stride where timm can."""
    try:
        body, identity = student.build(out_indices=out_indices, output_stride=stride)
    except ConfigError:
        body, identity = student.build(out_indices=out_indices)  # raises what is wrong besides
    if body.reductions[-1] != stride:
        logger.warning(
            "%s cannot be dilated to `output_stride` %d: its features keep the stride %d.",
            body.spec.architecture,
            stride,
            body.reductions[-1],
        )
    return body, identity


def _check_batches(rows: int, args: TransferArguments) -> None:
    """Refuses batches of one image: the head pools each image to one pixel, which a batch normalisation cannot learn from."""
    batch = args.train_batch_size
    if batch < 2:
        raise ConfigError(f"`per_device_train_batch_size` must be at least 2, got {batch}.")
    if args.world_size == 1 and not args.dataloader_drop_last and rows % batch == 1:
        raise ConfigError(
            f"the last batch of an epoch must have more than one image, but {rows} images make one of 1 in batches of {batch}. "
            "Set `dataloader_drop_last`, or another batch size."
        )


def _open_data(chosen: SegmentationArguments, classes: Classes) -> tuple[SegmentationData, SegmentationData | None]:
    if chosen.images is not None and chosen.masks is not None:
        train = SegmentationData.from_folders(chosen.images, chosen.masks, classes)
        if chosen.eval_images is None or chosen.eval_masks is None:
            return train, None
        return train, SegmentationData.from_folders(chosen.eval_images, chosen.eval_masks, classes)
    assert chosen.dataset is not None
    opened: list[SegmentationData] = []
    for split in (chosen.split, chosen.eval_split):
        if split is None:
            return opened[0], None
        rows, described = load_base(
            chosen.dataset,
            chosen.dataset_config,
            split=split,
            revision=chosen.revision,
            files_from=chosen.files_from,
        )
        columns: dict[str, Any] = {"image_column": chosen.image_column, "mask_column": chosen.mask_column}
        opened.append(SegmentationData.from_dataset(rows, {**described, "split": split}, classes, **columns))
    return opened[0], opened[1]

"""Images with a class for each pixel: reading them, augmenting them, and measuring the intersection over union."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from accelerate.utils import gather_object
from torch import nn
from torchvision.transforms.v2 import functional as F

from hf_dr.errors import ConfigError, DataError
from hf_dr.files import expanded
from hf_dr.processes import process_state
from hf_dr.store.base_dataset import content_hash, require_columns, undecoded_images
from hf_dr.store.labels import image_columns
from hf_dr.transfer.files import digest_of
from hf_dr.transfer.settings import FILTERS
from hf_dr.views.images import as_tensor, decode_row, decode_with, stored_size, with_file
from hf_dr.views.rng import view_rng

logger = logging.getLogger(__name__)

IGNORED = -1
"""The label of a pixel that does not count, whatever number a mask has there."""

_RESAMPLING = {name: PIL.Image.Resampling[name.upper()] for name in FILTERS}

_IMAGE_FILES = (".jpg", ".jpeg", ".png", ".webp")
_MASK_FILES = (".png", ".tif", ".tiff", ".bmp")

# How often a crop of too much of one class is drawn, at most.
_TRIES = 10


# ---------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Classes:
    """What the numbers in masks mean. The names must differ.

    Attributes:
        names: Names of the labels 0, 1, ...
        ignore_index: The number of pixels that do not count.
        reduce_labels: Whether 0 does not count either, and label l is stored as l + 1, as in ADE20K's scene parsing.
    """

    names: list[str]
    ignore_index: int = 255
    reduce_labels: bool = False

    def __post_init__(self) -> None:
        twice = [name for n, name in enumerate(self.names) if name in self.names[:n]]
        if not self.names or twice:
            raise ConfigError(
                "`class_names` must be the names of all classes, each once, found "
                f"{f'{twice[0]!r} twice' if twice else 'none'}. Correct it."
            )

    def labels(self, stored: np.ndarray) -> np.ndarray:
        """Returns the labels (H, W), int32, from 0 on or `IGNORED`, of a mask's numbers; a DataError if one is no class."""
        labels = stored.astype(np.int32) - self.reduce_labels
        labels[(stored == self.ignore_index) | (labels < 0)] = IGNORED
        if labels.max(initial=IGNORED) >= len(self.names):
            first = int(self.reduce_labels)
            raise DataError(
                f"expected numbers from {first} to {first + len(self.names) - 1} or {self.ignore_index}, found "
                f"{labels.max() + first}. Name all classes, or set `ignore_index` or `reduce_labels`"
            )
        return labels


@dataclass(frozen=True)
class SegmentationData:
    """Images with masks.

    Attributes:
        described: What names it, for results.
        classes: What the masks' numbers mean.
        images: The image cell of each row, for `decode_row`.
        masks: The mask cell of each row, for `decode_mask`.
    """

    described: dict[str, Any]
    classes: Classes
    images: Sequence[Any]
    masks: Sequence[Any]

    @classmethod
    def from_folders(cls, images: str | Path, masks: str | Path, classes: Classes) -> SegmentationData:
        """Reads two folders, as ADE20K's scene parsing comes: each image has a mask of its name but for the ending."""
        image_files = _files_by_name("images", images, _IMAGE_FILES)
        mask_files = _files_by_name("masks", masks, _MASK_FILES)
        without = [path.name for name, path in image_files.items() if name not in mask_files]
        if without:
            raise DataError(
                f"each image must have a mask of its name, but {len(without)} of the {len(image_files)} in {images} have none "
                f"in {masks}, such as {without[0]}. Add the masks, or check both folders."
            )
        for name, path in image_files.items():
            if path == mask_files[name]:
                raise DataError(f"an image and its mask must be two files, found {path} as both. Check both folders.")
        place = expanded(images).resolve()
        # ADE20K's are images/training; the names of other parents are people's own.
        parts = 2 if place.parent.name == "images" else 1
        return cls(
            {
                "id": "/".join(place.parts[-parts:]),
                "digest": digest_of([*image_files.values(), *(mask_files[name] for name in image_files)]),
            },
            classes,
            [{"path": str(path)} for path in image_files.values()],
            [{"path": str(mask_files[name])} for name in image_files],
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
        """Reads a dataset with a column of images and one of masks, by default the only other one that holds images.

        `described` is what names it. A DataError if there is no such column.
        """
        known = image_columns(dataset.features)
        others = [name for name in known if name != image_column]
        require_columns([image_column], known, "column of images")
        if mask_column is None and len(others) != 1:
            raise DataError(
                f"one other column than `{image_column}` must hold images, the masks, found {', '.join(others) or 'none'}. "
                "Name `mask_column`."
            )
        mask_column = mask_column or others[0]
        require_columns([mask_column], known, "column of images")
        images, masks = undecoded_images(dataset, image_column), undecoded_images(dataset, mask_column)
        digest = hashlib.sha256(f"{content_hash(images)} {content_hash(masks)}".encode()).hexdigest()
        # The cells are read when they are asked for.
        return cls({**described, "digest": digest}, classes, images[image_column], masks[mask_column])

    def __getitem__(self, row: int) -> tuple[PIL.Image.Image, np.ndarray]:
        """Returns the image, RGB, and its labels (H, W), int32.

        Raises:
            DataError: One cannot be read, or they are not of one size.
        """
        image = decode_row(self.images[row], f"row {row}")
        labels = self.labels(row)
        if (image.height, image.width) != labels.shape:
            raise DataError(
                f"the mask of row {row} must be {image.width}x{image.height}, as its image, found "
                f"{labels.shape[1]}x{labels.shape[0]}. If the image's EXIF orientation turns it, save it without."
            )
        return image, labels

    def labels(self, row: int) -> np.ndarray:
        """Returns the labels (H, W), int32, of a mask; a DataError if it cannot be read, or names a class that is none."""
        mask = self.masks[row]
        try:
            return self.classes.labels(decode_mask(mask))
        except DataError as error:
            raise DataError(f"the mask of {with_file(f'row {row}', mask)} cannot be used: {error}.") from error


def _files_by_name(setting: str, folder: str | Path, endings: tuple[str, ...]) -> dict[str, Path]:
    place = expanded(folder).resolve()
    files: dict[str, Path] = {}
    for path in sorted(place.glob("*")):
        if path.suffix.lower() in endings:
            if path.stem in files:
                raise DataError(
                    f"`{setting}` must have one file of each name, found {files[path.stem].name} and {path.name} in {place}. "
                    "Put images and masks into folders of their own."
                )
            files[path.stem] = path
    if not files:
        raise DataError(
            f"`{setting}` must be a folder with files {', '.join(endings)}, found none in {place}. Check it."
        )
    return files


# ------------------------------------------------------------------------------------------------------------ examples


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
    """A random scale, a square crop that no single class fills, and mirroring, for an image and its labels together.

    Attributes:
        size: Side of the crop, in pixels; what the image does not fill is padded, to the right and below.
        short_side: Smallest and largest length of the scaled image's shorter side.
        long_side: Largest length of its longer side.
        max_class_share: Largest share of one class in a crop's pixels that count; other crops are drawn again, up to ten times.
        flip: Probability.
        interpolation: Filter of the image: nearest, bilinear or bicubic. Labels take the nearest.
        fill: Colour of the padding, 0 to 255; its labels are `IGNORED`.
    """

    size: int = 512
    short_side: tuple[int, int] = (256, 768)
    long_side: int = 1024
    max_class_share: float = 0.75
    flip: float = 0.5
    interpolation: str = "bicubic"
    fill: tuple[int, int, int] = (124, 116, 104)

    def sample(self, rng: np.random.Generator, labels: np.ndarray) -> CropParams:
        """Draws the parameters for an image with these labels."""
        size = np.array(labels.shape)
        scale = min(rng.integers(*self.short_side, endpoint=True) / size.min(), self.long_side / size.max())
        scaled = np.maximum(1, np.rint(size * scale)).astype(int)
        room = np.maximum(scaled - self.size, 0)
        for _ in range(_TRIES):
            corner = rng.integers(0, room, endpoint=True)
            # In the labels as they are: scaling them for each try would take longer than all the rest.
            first = np.floor(corner / scale).astype(int)
            last = np.ceil((corner + self.size) / scale).astype(int)
            inside = labels[first[0] : last[0], first[1] : last[1]]
            counts = np.bincount(inside[inside != IGNORED])
            if 0 < counts.max(initial=0) <= self.max_class_share * counts.sum():
                break
        (height, width), (top, left) = scaled.tolist(), corner.tolist()
        return CropParams((height, width), (top, left), bool(rng.random() < self.flip))

    def apply(
        self, image: PIL.Image.Image, labels: np.ndarray, params: CropParams
    ) -> tuple[PIL.Image.Image, np.ndarray]:
        """Returns the crop of an image, `size` x `size`, and of its labels."""
        height, width = params.scaled
        missing = [0, 0, max(self.size - width, 0), max(self.size - height, 0)]  # left, top, right, bottom
        results = []
        for shown, interpolation, fill in (
            (image, _RESAMPLING[self.interpolation], self.fill),
            (PIL.Image.fromarray(labels), PIL.Image.Resampling.NEAREST, IGNORED),
        ):
            scaled = shown.resize((width, height), interpolation)
            crop = F.crop(F.pad(scaled, missing, fill), *params.corner, self.size, self.size)
            results.append(F.horizontal_flip(crop) if params.flip else crop)
        return results[0], np.array(results[1])


class SegmentationImages(torch.utils.data.Dataset):
    """Examples for `Segmenter`: uint8 `pixel_values` (3, H, W) and int32 `labels` (H, W), whole or cropped.

    Args:
        data: Images with masks.
        augmentation: Draws a crop that follows from (seed, row, epoch); None for whole images.
        seed: Seed of the crops.
    """

    def __init__(self, data: SegmentationData, augmentation: ScaleCropFlip | None = None, seed: int = 0) -> None:
        self._data = data
        self._augmentation = augmentation
        self._seed = seed

    def __len__(self) -> int:
        return len(self._data.images)

    def is_doubtful(self, row: int) -> bool:
        """Whether the beginning of an image's file tells no image of its mask's size; decoding it tells more.

        The mask is read whole, in about 2 ms: a DataError if it cannot be used.
        """
        return stored_size(self._data.images[row]) != self._data.labels(row).shape

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, torch.Tensor]:
        row, epoch = index if isinstance(index, tuple) else (index, 0)
        image, labels = self._data[row]
        if self._augmentation is not None:
            params = self._augmentation.sample(view_rng(self._seed, row, epoch), labels)
            image, labels = self._augmentation.apply(image, labels, params)
        return {"pixel_values": as_tensor(image), "labels": torch.from_numpy(labels)}


# ------------------------------------------------------------------------------------------------- masks and metrics


def confusion(labels: torch.Tensor, predicted: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Counts pixels: (C, C) int64, row: the label, column: what was predicted; `IGNORED` pixels are left out."""
    counted = labels != IGNORED
    pairs = labels[counted].long() * num_classes + predicted[counted].long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def segmentation_metrics(matrix: np.ndarray, class_names: Sequence[str]) -> dict[str, float]:
    """Returns metrics of 0 to 1 from a confusion matrix: `mean_iou`, `pixel_accuracy`, and `iou_<class>` of each class.

    The intersection over union of a class is of all pixels of all images together; classes that are neither there nor
    predicted have none and are left out. A DataError if no pixel was counted.
    """
    if not matrix.sum():
        raise DataError("masks must have pixels that count, found none. Check `ignore_index` and `reduce_labels`.")
    hits = matrix.diagonal()
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hits
    ious = {f"iou_{class_names[c]}": float(hits[c] / union[c]) for c in np.flatnonzero(union).tolist()}
    accuracy = float(hits.sum() / matrix.sum())
    return {"mean_iou": float(np.mean(list(ious.values()))), "pixel_accuracy": accuracy, **ious}


class ConfusionMeter:
    """Mean intersection over union, over the images of all processes."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._class_names = class_names
        self._matrix = np.zeros((len(class_names), len(class_names)), np.int64)

    @property
    def names(self) -> list[str]:
        """What can be measured: a class that is neither in the masks nor predicted has no `iou_<class>`."""
        return ["mean_iou", "pixel_accuracy", *(f"iou_{name}" for name in self._class_names)]

    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        """Counts the pixels of a batch."""
        for labels, predicted in zip(batch["labels"], model(**batch), strict=True):
            self._matrix += confusion(labels, predicted, len(self._class_names)).cpu().numpy()

    def compute(self) -> dict[str, float]:
        """Returns `segmentation_metrics` over all processes."""
        matrix = np.sum(gather_object([self._matrix]), axis=0)
        absent = [self._class_names[c] for c in np.flatnonzero(matrix.sum(axis=1) == 0).tolist()]
        if absent and process_state().is_main_process:
            _tell_absent(tuple(absent))
        return segmentation_metrics(matrix, self._class_names)


@lru_cache
def _tell_absent(names: tuple[str, ...]) -> None:
    """Says once which classes nothing is measured of: their number may be the one that is ignored."""
    more = f" and {len(names) - 5} others" if len(names) > 5 else ""
    logger.warning(
        "No pixel of the masks is of the class %s%s: nothing is measured of it. Check `class_names` and `ignore_index`.",
        ", ".join(names[:5]),
        more,
    )


def decode_mask(value: Any) -> np.ndarray:
    """Decodes one cell of a column of masks to integers (H, W), grey levels or indices of the palette; else a DataError."""
    mode, stored = decode_with(value, lambda image: (image.mode, np.asarray(image)))
    if stored.ndim != 2 or stored.dtype.kind not in "biu":
        raise DataError(f"expected one channel of whole numbers, found mode {mode}. Convert it to a grey PNG")
    return stored

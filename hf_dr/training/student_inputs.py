"""What a student is shown: normalised pixels, as it or its image processor says, and images with labels to evaluate it on."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pyarrow as pa
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    BitImageProcessor,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperImageProcessor,
)
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file

from hf_dr.errors import ConfigError
from hf_dr.store.base_dataset import require_columns, whole_column
from hf_dr.store.labels import read_labels
from hf_dr.teacher.preprocessing import (
    EVAL_CROP,
    Preprocessing,
    before_crop,
    checked_normalization,
    evaluation_augmentation,
    own_processor,
    read_image_processor,
    read_pretrained_cfg,
)
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.images import as_tensor, channel_values, decode_row
from hf_dr.views.ops.base import Size

logger = logging.getLogger(__name__)

Normalization = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of a model's input, each three numbers on the scale 0 to 1."""


def is_timm(model: Any) -> bool:
    """Whether a model is transformers' wrapper around one of timm's."""
    return isinstance(model, TimmWrapperForImageClassification)


def student_preprocessing(
    model: torch.nn.Module, processor: Any = None, normalization: Normalization | None = None
) -> Preprocessing:
    """Returns how a student normalises the colours of its images; the size and the filter in it have no meaning.

    Args:
        model: Its `pretrained_cfg` counts where it is alone; else ImageNet's mean and standard deviation do.
        processor: The image processor that is saved with the student, and shows it images from then on.
        normalization: What was asked for, and must not contradict the processor.

    Raises:
        TeacherError: The processor or the `pretrained_cfg` does something that is not understood.
        ConfigError: What is saved with the student could not say what it was trained with.
    """
    normalization = checked_normalization(normalization)
    processor = own_processor(processor)
    if processor is None:
        cfg = getattr(getattr(model, "config", model), "pretrained_cfg", None) or {"mean": IMAGENET_DEFAULT_MEAN}
        read, _ = read_pretrained_cfg(cfg, type(model).__name__)
        if normalization is None:
            return read
        given: dict[str, Any] = dict(zip(("mean", "std"), normalization, strict=True))
        return replace(read, **given)
    read, _ = read_image_processor(processor, type(model).__name__)
    own = (read.mean, read.std)
    if normalization is not None and own != normalization:
        raise ConfigError(
            f"`normalization` must be that of `processing_class`, which is saved with the student: {own}, got {normalization}. "
            "Leave it out, or change the processor."
        )
    if is_timm(model) and read.bgr:
        raise ConfigError(
            "`processing_class` must leave the channels in the order RGB for a model of timm, whose configuration has no "
            "other, but it reverses them (`do_flip_channel_order`). Set it to false."
        )
    return read


def normalize(pixels_BCHW: torch.Tensor, seen: Preprocessing) -> torch.Tensor:
    """Turns uint8 RGB pixels into the model's float32 input: (pixels / 255 - mean) / std for each channel of its order."""
    if seen.bgr:
        pixels_BCHW = pixels_BCHW.flip(1)
    offset_C11 = channel_values(seen.mean, pixels_BCHW.device, torch.float32) * 255
    scale_C11 = channel_values(seen.std, pixels_BCHW.device, torch.float32) * 255
    return (pixels_BCHW - offset_C11) / scale_C11


def outputs_of(model: torch.nn.Module, pixels_BCHW: torch.Tensor) -> Any:
    """Returns a classifier's outputs by name, its `logits` (B, C) first; it may return a tuple or a tensor."""
    outputs = model(pixel_values=pixels_BCHW)
    if isinstance(outputs, dict):
        # Trainer takes the first output for the predictions.
        return outputs if next(iter(outputs), None) == "logits" else {"logits": outputs["logits"], **outputs}
    return {"logits": outputs if isinstance(outputs, torch.Tensor) else outputs[0]}


def evaluation_of(model: Any, processor: Any, size: Size) -> Augmentation:
    """Returns the view by which a student is evaluated: that of whoever loads it later, `hf-dr evaluate` for one.

    A model of timm says it in its `pretrained_cfg`, and another's image processor. Without one the usual view is taken.
    """
    processor = own_processor(processor)
    cfg = getattr(getattr(model, "config", None), "pretrained_cfg", None)
    name = type(model).__name__
    if processor is not None:
        read, crop = read_image_processor(processor, name)
    elif cfg:
        read, crop = read_pretrained_cfg(cfg, name)
    else:
        return evaluation_augmentation(size)
    return evaluation_augmentation(size, crop, read.interpolation)


def check_processor(name: str, processor: object) -> None:
    """Refuses the name of an image processor in the place of the argument `name`."""
    if isinstance(processor, (str, Path)):
        raise ConfigError(
            f"`{name}` must be an image processor, got the name {str(processor)!r}. Load it: "
            "`AutoImageProcessor.from_pretrained(name)`."
        )


def load_processor(name: str, size: int) -> Any:
    """Returns the image processor of a model that is fine-tuned, None where it has none: its mean and std are the student's.

    Args:
        name: The student's name.
        size: Side of the images in pixels that it is fine-tuned on: the processor, which is saved with it, makes such. What
            it resizes to before it crops changes in the same proportion.

    Raises:
        ConfigError: There is one, but transformers cannot load it.
    """
    if name.startswith("timm:"):
        return None
    try:
        wrapped = isinstance(AutoConfig.from_pretrained(name), TimmWrapperConfig)
        # Asked for one of timm's, AutoImageProcessor warns of a backend that it has for no one.
        processor = (TimmWrapperImageProcessor if wrapped else AutoImageProcessor).from_pretrained(name)
    except (OSError, ValueError) as error:
        quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        if cached_file(name, IMAGE_PROCESSOR_NAME, **quiet) is None:
            return None
        raise ConfigError(
            f"the image processor of {name!r} must be one that transformers loads, but: {str(error).rstrip('. '):.300}. Save "
            f"it again, or remove its {IMAGE_PROCESSOR_NAME}."
        ) from error
    return resized_processor(processor, size)


def resized_processor(given: Any, size: int) -> Any:
    """Returns a copy of an image processor that makes images whose longer side is the given number of pixels.

    What it resizes to before it crops changes in the same proportion. One that tells no size is left as it is.
    """
    sides_of = {key: getattr(given, key, None) for key in ("size", "crop_size")}
    crops = getattr(given, "do_center_crop", False)  # EfficientNet's has a crop size that it does not use
    made = (crops and sides_of["crop_size"]) or sides_of["size"]
    old = max(dict(made).values()) if made else size
    if old == size:
        return given
    logger.info(
        "The image processor is saved for images of %d pixels, the size of the views; it was for %d.", size, old
    )
    processor = copy.deepcopy(given)
    for key, sides in sides_of.items():
        if sides:
            scaled = {side: round(size / old * pixels) for side, pixels in dict(sides).items()}
            setattr(processor, key, type(sides)(**scaled))
    return processor


def processor_of(model: Any, size: Size, normalization: Normalization | None = None) -> Any:
    """Returns an image processor to save with a model that was given without one; None for models that have none.

    That of the checkpoint that the model was loaded from; else one that makes the usual view of an evaluation.

    Args:
        model: One of timm's says all that in its config, and one of no library is loaded by none.
        size: Height and width of the views in pixels.
        normalization: Mean and std that the model learns with, on the scale 0 to 1. Default: the checkpoint's, else ImageNet's.
    """
    if hasattr(model, "get_base_model"):  # adapters of PEFT around it
        model = model.get_base_model()
    if is_timm(model) or not isinstance(model, PreTrainedModel):
        return None
    name = str(model.name_or_path)
    known = load_processor(name, max(size)) if name and normalization is None else None
    if known is not None:
        logger.info("The image processor of %s is taken, and saved with the student.", name)
        return known
    mean, std = normalization or (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    told = logger.warning if name and normalization is None else logger.info
    told(
        "%s comes without an image processor. One is saved with it that normalises by mean %s and std %s. If it has learned "
        "with others, give its own as `processing_class`.",
        type(model).__name__,
        [round(value, 4) for value in mean],
        [round(value, 4) for value in std],
    )
    height, width = size
    resized = before_crop(height, EVAL_CROP)
    wider = before_crop(width, height / resized)  # one share for both sides
    return BitImageProcessor(
        size={"shortest_edge": resized} if height == width else {"height": resized, "width": wider},
        crop_size={"height": height, "width": width},
        resample=PIL.Image.Resampling.BILINEAR,
        image_mean=list(mean),
        image_std=list(std),
    )


class LabelledImages(torch.utils.data.Dataset):
    """Images of a datasets.Dataset, one fixed view each, as uint8 `pixel_values` (3, H, W) and `labels`.

    Args:
        dataset: A dataset with an image column and a label column.
        augmentation: An augmentation without randomness (`evaluation_augmentation`).
        image_column: Column of the images.
        label_column: Column of the labels; None without any: then rows have no `labels`.

    Attributes:
        has_labels: Whether there are labels.
        class_names: The names of the classes, where the labels have names.

    Raises:
        DataError: A column is missing, or a row has no label.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        augmentation: Augmentation,
        *,
        image_column: str = "image",
        label_column: str | None = "label",
    ) -> None:
        columns = [image_column] if label_column is None else [image_column, label_column]
        require_columns(columns, dataset.column_names)
        if augmentation.params:
            drawn = ", ".join(augmentation.params)
            raise ConfigError(f"an evaluation must not be random, got the parameters {drawn}. Leave their ops out.")
        self.class_names: list[str] | None = None
        self._of_split = f" of `{dataset.split}`" if dataset.split else ""
        if label_column is not None:
            name = f"the labels `{label_column}`{self._of_split}"
            _, self.class_names = read_labels(dataset, label_column, name, "Take a split with labels.")
        images = dataset.select_columns(columns)
        self._dataset = images.cast_column(image_column, datasets.Image(decode=False)).with_format(None)
        self.has_labels = label_column is not None
        self._image, self._label, self._augmentation = image_column, label_column, augmentation

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def files(self) -> datasets.Dataset:
        """The images alone, undecoded."""
        return self._dataset.select_columns([self._image])

    @property
    def labels(self) -> pa.ChunkedArray:
        """The labels of all rows, as they are stored; there must be some."""
        assert self._label is not None
        return whole_column(self._dataset, self._label)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._dataset[index]
        view = self._augmentation.apply(decode_row(row[self._image], f"row {index}{self._of_split}"), {})
        pixels = {"pixel_values": as_tensor(view)}
        return {**pixels, "labels": int(row[self._label])} if self.has_labels else pixels

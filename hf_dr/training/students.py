"""Students: image classifiers to train, by name, and images with labels to evaluate them on."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import timm
import torch
from accelerate.utils import extract_model_from_parallel
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, resolve_data_config, resolve_model_data_config
from timm.layers import PatchEmbed
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BitImageProcessor,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperImageProcessor,
)
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file

import hf_dr.teacher.architectures  # noqa: F401 (what it registers, timm builds)
from hf_dr.errors import ConfigError, DataError, did_you_mean
from hf_dr.files import expanded, no_folder, spelled_alike
from hf_dr.settings import Place, Real, as_plain, check_count, check_kind, check_names
from hf_dr.store.base_dataset import whole_column
from hf_dr.store.labels import read_labels
from hf_dr.teacher.folds import CONFIG_KEY
from hf_dr.teacher.members import ONE_CLASS, read_config
from hf_dr.teacher.preprocessing import (
    EVAL_CROP,
    Preprocessing,
    before_crop,
    evaluation_augmentation,
    is_of_scale,
    read_image_processor,
    timm_crop,
    timm_preprocessing,
)
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.images import as_tensor, channel_values, decode_row
from hf_dr.views.ops.base import Size

logger = logging.getLogger(__name__)

EMA_FILE = "ema.safetensors"
"""The averaged weights, next to the model's."""

Normalization = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of a model's input, each three numbers on the scale 0 to 1."""


def build_student(
    name: str | os.PathLike[str],
    class_names: Sequence[str] | None,
    num_classes: int,
    *,
    model_args: dict[str, Any] | None = None,
    normalization: Normalization | None = None,
    size: int | Size | None = None,
    crop: float = 1.0,
) -> torch.nn.Module:
    """Builds an image classifier.

    Args:
        name: `timm:ARCHITECTURE` for fresh weights, without a download; `timm:ARCHITECTURE@FILE.safetensors`, or a Hub id or
            folder, for weights that are fine-tuned (the classifier is new where the number of classes differs).
        class_names: Of the dataset; None where they have none.
        num_classes: C.
        model_args: For `timm:`: keyword arguments of `timm.create_model`, e.g. `{"drop_path_rate": 0.1}`.
        normalization: For `timm:`: mean and std of the input on the scale 0 to 1, kept in the model's config. Default:
            ImageNet's for fresh weights, and for those of a file what timm says of the architecture, as for a teacher.
        size: For models of timm: side of the images in pixels, or height and width, kept in the model's config. With fresh
            weights an architecture that takes one size alone, such as a ViT, is built for this one (`img_size`). Without it
            they are saved for the size of the architecture, and a crop of 0.875; `ReinforcedTrainer` corrects the size.
        crop: For models of timm with a `size`: share of the resized side that evaluation keeps, kept in the model's config.

    Raises:
        ConfigError: There is no such model, or the classes do not go together.
    """
    Place().check("name", name)
    check_count("num_classes", num_classes)
    num_classes = int(num_classes)
    if class_names is not None:
        check_names("class_names", class_names)
        if len(class_names) != num_classes:
            raise ConfigError(
                f"`class_names` must have a name for each of the {num_classes} classes, got {len(class_names)}. Give "
                "`train.class_names` and `train.num_classes`."
            )
    if model_args is not None:
        check_kind("model_args", model_args, Mapping, "names and values", 'Give e.g. `{"img_size": 32}`.')
        model_args = dict(model_args)
    _check_normalization(normalization)
    name = os.fspath(name)
    labels = list(class_names) if class_names is not None else [f"LABEL_{c}" for c in range(num_classes)]
    classes: dict[str, Any] = {
        "num_labels": num_classes,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: c for c, label in enumerate(labels)},
    }
    crop = as_plain(crop)
    Real(0, 1, above=True).check("crop", crop)
    seen = {} if size is None else evaluation_cfg(_checked_size(size), crop)
    if not name.startswith("timm:"):
        if model_args:
            raise ConfigError(f"`model_args` must come with `timm:ARCHITECTURE`, got {name!r}. Leave it out.")
        return _pretrained(name, classes, seen)
    architecture, _, file = name.removeprefix("timm:").partition("@")
    check_architecture(architecture)
    if seen and not file:
        model_args = _sized(architecture, model_args, seen["input_size"])
    model = _of_timm(architecture, model_args, {**classes, "pretrained_cfg": seen})
    if seen:
        _check_patches(architecture, model.timm_model, seen["input_size"][1:])
    own = model.timm_model.pretrained_cfg
    if file:
        _load_weights(model, expanded(file))
        if normalization is None:  # what the weights were trained with, as a teacher of this name has it
            normalization = own["mean"], own["std"]
    if size is None:
        model.config.pretrained_cfg.update(evaluation_cfg(tuple(own["input_size"][1:]), EVAL_CROP))
    complete_config(model, normalization)  # else nothing could read what `save_pretrained` writes
    return model


def _checked_size(size: Any) -> Size:
    """Returns height and width; a ConfigError if `size` is neither a side nor the two."""
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if len(sides) != 2:
        raise ConfigError(f"`size` must be a side, or height and width, got {size!r:.80}. Give one or the two.")
    for side in sides:
        check_count("size", side)
    return int(sides[0]), int(sides[1])


def _of_timm(architecture: str, model_args: dict[str, Any] | None, settings: dict[str, Any]) -> Any:
    """Builds a model of timm's with fresh weights, and a config of these settings."""
    config = TimmWrapperConfig(architecture=architecture, model_args=model_args, **settings)
    try:
        return AutoModelForImageClassification.from_config(config)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"timm cannot build {architecture} with {model_args}: {error}. Check `model_args`."
        ) from error


def _sized(architecture: str, model_args: dict[str, Any] | None, input_size: list[int]) -> dict[str, Any] | None:
    """Returns the arguments with the size of the images, where the architecture takes one alone and it is not its own.

    Those of timm take it as `img_size` (`timm.models.build_model_with_cfg` gives it to them, too).
    """
    cfg = timm.get_pretrained_cfg(architecture)
    if (
        cfg is None
        or not cfg.fixed_input_size
        or list(cfg.input_size) == input_size
        or "img_size" in (model_args or {})
    ):
        return model_args
    return {**(model_args or {}), "img_size": input_size[1:]}


def _check_patches(architecture: str, model: torch.nn.Module, size: list[int]) -> None:
    """Warns where a ViT leaves out the edge of its images, because their size is no multiple of its patches'."""
    embed = getattr(model, "patch_embed", None)
    if not isinstance(embed, PatchEmbed) or embed.dynamic_img_pad:
        return
    seen = [side // patch * patch for side, patch in zip(size, embed.patch_size, strict=True)]
    if seen != size:
        logger.warning(
            "%s sees %d x %d pixels of images of %d x %d, whole patches of %d x %d. Give another `patch_size` by `model_args`.",
            architecture, *seen, *size, *embed.patch_size,
        )  # fmt: skip


def check_architecture(architecture: str) -> None:
    """Checks that timm has an architecture of this name; a ConfigError if not."""
    if not timm.is_model(architecture):
        raise ConfigError(f"timm has no architecture `{architecture}`.{did_you_mean(architecture, timm.list_models())}")


def _pretrained(name: str, classes: dict[str, Any], seen: dict[str, Any]) -> Any:
    """Loads a model to be fine-tuned, from a folder or the Hub.

    Its config gets what `classes` says of them and, if it is timm's, its `pretrained_cfg` what `seen` says of the images.
    """
    if name.startswith((".", "/", "~")) and not expanded(name).is_dir():
        raise ConfigError(
            f"the student {name!r} must be a folder, but there is none.{spelled_alike(expanded(name))} Train it "
            "first, or name another."
        )
    if timm.is_model(name) and not Path(name).is_dir():
        raise ConfigError(f"the student {name!r} is an architecture of timm. Did you mean `timm:{name}`?")
    try:
        model = AutoModelForImageClassification.from_pretrained(
            name,
            config=read_config(name, **classes),
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            dtype=torch.float32,  # whatever its file has: `bf16` and `fp16` decide the precision of the training
        )
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"could not load the model {name!r} ({str(error)[:300].rstrip('. ')}).{no_folder(name)} Name a Hub id, a folder, "
            "or `timm:ARCHITECTURE`, or `timm:ARCHITECTURE@FILE.safetensors`."
        ) from error
    if hasattr(model.config, CONFIG_KEY):  # the mark of a teacher that was trained without a fold
        delattr(model.config, CONFIG_KEY)
    if model.config.problem_type not in (None, ONE_CLASS):  # another kind of problem, for which it was trained before
        model.config.problem_type = None
    if is_timm(model) and seen:
        complete_config(model)
        model.config.pretrained_cfg.update(seen)
    return model


def evaluation_cfg(size: Size, crop: float) -> dict[str, Any]:
    """Returns what a `pretrained_cfg` says of `evaluation_augmentation`, so that other programs evaluate a model alike."""
    return {"input_size": [3, *size], "crop_pct": crop, "crop_mode": "center", "interpolation": "bilinear"}


def _load_weights(model: Any, file: Path) -> None:
    """Loads the weights of a file into a model of timm; a classifier of another number of classes stays new."""
    try:
        weights = native_names(load_file(file))
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"`timm:ARCHITECTURE@FILE` must name a .safetensors file, but {file} cannot be read: {error!s:.200}. Name another."
        ) from error
    own = model.timm_model.state_dict()
    head = model.timm_model.pretrained_cfg.get("classifier")
    heads = tuple(f"{part}." for part in ([head] if isinstance(head, str) else head or ()))
    fresh = {
        key for key in own if key.startswith(heads) and (key not in weights or weights[key].shape != own[key].shape)
    }
    kept = {key: value for key, value in weights.items() if key not in fresh}
    missing = sorted(own.keys() - fresh - kept.keys())
    wrong = missing + sorted(key for key, value in kept.items() if key not in own or value.shape != own[key].shape)
    if wrong:
        raise ConfigError(
            f"the weights of {file.name} must be those of timm's {model.config.architecture}, but {len(wrong)} of them do not "
            f"fit, the first {wrong[0]}. Name their own architecture, with its `model_args`."
        )
    model.timm_model.load_state_dict(kept, strict=False)


def read_model_args(value: Any) -> dict[str, Any]:
    """Reads `model_args`, JSON or, from YAML, a mapping; anything else is a ConfigError."""
    try:
        content = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ConfigError(f"`model_args` must be JSON, e.g. '{{\"img_size\": 32}}', but: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"`model_args` must hold names and values, e.g. '{{\"img_size\": 32}}', got {value!r:.80}.")
    return content


def is_timm(model: Any) -> bool:
    """Whether a model is transformers' wrapper around one of timm's."""
    return isinstance(model, TimmWrapperForImageClassification)


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """Returns the model that is inside of torch.compile's or a distributed wrapper; Trainer wraps it itself."""
    inner = extract_model_from_parallel(model, keep_torch_compile=False)
    if inner is not model:
        logger.warning(
            "The model is taken out of its %s, so that its weights are saved by their names. For compiled code set "
            "`torch_compile`; several processes are found without a wrapper.",
            type(model).__name__,
        )
    return inner


def complete_config(model: Any, normalization: Normalization | None = None) -> None:
    """Completes the config of a model of timm, in place, so that timm reads what transformers saves.

    timm wants `model_args` to be no null and `pretrained_cfg` to be whole; and the names of former classes, which
    transformers keeps through fine-tuning, are not those of the model.

    Args:
        model: For which `is_timm` holds.
        normalization: Mean and std of the input on the scale 0 to 1. Default: those that the config has.
    """
    config, native = model.config, model.timm_model
    config.model_args = config.model_args or {}
    structure = {key: native.pretrained_cfg.get(key) for key in ("fixed_input_size", "first_conv", "classifier")}
    own = getattr(config, "pretrained_cfg", None) or {}
    data = resolve_data_config(pretrained_cfg=own) if own else resolve_model_data_config(native)
    data = {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}
    config.pretrained_cfg = {**data, **structure, **own}
    if normalization is not None:
        config.pretrained_cfg.update(mean=list(normalization[0]), std=list(normalization[1]))
    names = [config.id2label[c] for c in range(config.num_labels)]
    if getattr(config, "label_names", names) != names:
        config.label_descriptions = None
    config.label_names = names


def native_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns weights of transformers' timm wrapper by timm's names, which the wrapper understands as well."""
    return {name.removeprefix("timm_model."): tensor for name, tensor in weights.items()}


def normalize(pixels_BCHW: torch.Tensor, seen: Preprocessing) -> torch.Tensor:
    """Turns uint8 RGB pixels into the model's float32 input: (pixels / 255 - mean) / std for each channel of its order."""
    if seen.bgr:
        pixels_BCHW = pixels_BCHW.flip(1)
    offset_C11 = channel_values(seen.mean, pixels_BCHW.device, torch.float32) * 255
    scale_C11 = channel_values(seen.std, pixels_BCHW.device, torch.float32) * 255
    return (pixels_BCHW - offset_C11) / scale_C11


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
    _check_normalization(normalization)
    processor = _own_processor(processor)
    if processor is None:
        cfg = getattr(getattr(model, "config", model), "pretrained_cfg", None) or {"mean": IMAGENET_DEFAULT_MEAN}
        read = timm_preprocessing(resolve_data_config(pretrained_cfg=cfg, verbose=False), type(model).__name__)
        if normalization is None:
            return read
        given: dict[str, Any] = dict(zip(("mean", "std"), map(tuple, normalization), strict=True))
        return replace(read, **given)
    read, _ = read_image_processor(processor, type(model).__name__)
    own = (read.mean, read.std)
    if normalization is not None and own != tuple(map(tuple, normalization)):
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


def _check_normalization(given: Any) -> None:
    if given is None:
        return
    try:
        values = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (2, 3) or not np.isfinite(values).all():
        raise ConfigError(f"`normalization` must be mean and std, each three numbers, got {given!r:.80}. Leave it out.")
    if not is_of_scale(np.abs(values).max()):
        raise ConfigError(
            f"`normalization` must be mean and std on the scale 0 to 1, got {given!r:.80}, which are on that of 0 to 255. "
            "Divide them by 255."
        )
    if values[1].min() <= 0:
        raise ConfigError(f"`normalization` must have a std above 0, got {given!r:.80}. Correct it, or leave it out.")


def check_processor(name: str, processor: object) -> None:
    """Refuses the name of an image processor in the place of the argument `name`."""
    if isinstance(processor, (str, Path)):
        raise ConfigError(
            f"`{name}` must be an image processor, got the name {str(processor)!r}. Load it: "
            "`AutoImageProcessor.from_pretrained(name)`."
        )


def _own_processor(given: Any) -> Any:
    """Returns the image processor in a processor; None for that of timm's models, which only repeats `pretrained_cfg`."""
    processor = getattr(given, "image_processor", given)
    return None if hasattr(processor, "data_config") else processor


def outputs_of(model: torch.nn.Module, pixels_BCHW: torch.Tensor) -> Any:
    """Returns a classifier's outputs by name, its `logits` (B, C) first; it may return a tuple or a tensor."""
    outputs = model(pixel_values=pixels_BCHW)
    if isinstance(outputs, dict):
        # Trainer takes the first output for the predictions.
        return outputs if next(iter(outputs), None) == "logits" else {"logits": outputs["logits"], **outputs}
    return {"logits": outputs if isinstance(outputs, torch.Tensor) else outputs[0]}


def evaluation_of(model: Any, processor: Any, size: Size) -> Augmentation:
    """Returns the view by which a student is evaluated: that of whoever loads it later, `hf-dr evaluate` for one.

    Args:
        model: A model of timm says it in its `pretrained_cfg`.
        processor: The image processor that is saved with another model. Without one the usual view is taken.
        size: Height and width of the view in pixels.
    """
    processor = _own_processor(processor)
    cfg = getattr(getattr(model, "config", None), "pretrained_cfg", None)
    name = type(model).__name__
    if processor is not None:
        read, crop = read_image_processor(processor, name)
    elif cfg:
        data = resolve_data_config(pretrained_cfg=cfg, verbose=False)
        read, crop = timm_preprocessing(data, name), timm_crop(data)
    else:
        return evaluation_augmentation(size)
    return evaluation_augmentation(size, crop, read.interpolation)


def load_processor(name: str, size: int) -> Any:
    """Returns the image processor of a model that is fine-tuned, None where it has none: its mean and std are the student's.

    Args:
        name: Of the student.
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
    """Returns a copy of an image processor that makes images whose longer side has so many pixels.

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
        dataset: With an image column and a label column.
        augmentation: Without randomness (`evaluation_augmentation`).
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
        for name in columns:
            if name not in dataset.column_names:
                raise DataError(f"the dataset must have the column `{name}`.{did_you_mean(name, dataset.column_names)}")
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

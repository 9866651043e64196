"""Students: image classifiers to train, by name."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate.utils import extract_model_from_parallel
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import resolve_data_config, resolve_model_data_config
from timm.layers import PatchEmbed
from transformers import AutoModelForImageClassification, TimmWrapperConfig

import hf_dr.teacher.architectures  # noqa: F401 (what it registers, timm builds)
from hf_dr.errors import ConfigError, did_you_mean
from hf_dr.files import expanded, no_folder, spelled_alike
from hf_dr.settings import Place, Real, as_plain, check_count, check_kind, check_names
from hf_dr.teacher.folds import CONFIG_KEY
from hf_dr.teacher.members import ONE_CLASS, read_config
from hf_dr.teacher.preprocessing import EVAL_CROP, checked_normalization
from hf_dr.training.student_inputs import Normalization, is_timm
from hf_dr.views.ops.base import Size

logger = logging.getLogger(__name__)

EMA_FILE = "ema.safetensors"
"""The averaged weights, next to the model's."""


def build_student(
    name: str | os.PathLike[str],
    class_names: Sequence[str] | None,
    num_classes: int,
    *,
    model_args: dict[str, Any] | None = None,
    normalization: Normalization | None = None,
    size: int | Size | None = None,
    crop: float = EVAL_CROP,
) -> torch.nn.Module:
    """Builds an image classifier.

    Args:
        name: `timm:ARCHITECTURE` for fresh weights, without a download; `timm:ARCHITECTURE@FILE.safetensors`, or a Hub id or
            folder, for weights that are fine-tuned (the classifier is new where the number of classes differs).
        class_names: Names of the dataset's classes; None where they have none.
        num_classes: C.
        model_args: Keyword arguments of `timm.create_model`, for `timm:` only, e.g. `{"drop_path_rate": 0.1}`.
        normalization: Mean and std of the input on the scale 0 to 1, for `timm:` only, kept in the model's config. Default:
            ImageNet's for fresh weights, and for those of a file what timm says of the architecture, as for a teacher.
        size: Side of the images in pixels, or height and width, for models of timm; kept in the model's config. With fresh
            weights an architecture that takes one size alone, such as a ViT, is built for this one (`img_size`). Without it
            they are saved for the size of the architecture; `ReinforcedTrainer` corrects it.
        crop: Share of the resized side that evaluation keeps, for `timm:` or with a `size`; kept in the model's config.

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
    normalization = checked_normalization(normalization)
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
        model.config.pretrained_cfg.update(evaluation_cfg(tuple(own["input_size"][1:]), crop))
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
    except (OSError, ValueError, TypeError, SafetensorError) as error:
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
        model: A model for which `is_timm` holds.
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

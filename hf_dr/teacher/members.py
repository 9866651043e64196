"""One classifier of an ensemble: loading it by name, its preprocessing, and what is known of it."""

from __future__ import annotations

import copy
import hashlib
import importlib.resources
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
import transformers  # what is taken from it is loaded when it is used: with its models' modules, that takes a second
from huggingface_hub import ModelCard, constants, resolve_revision
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from hf_dr.errors import ConfigError, TeacherError
from hf_dr.files import YAML_ERRORS, expanded, no_folder
from hf_dr.settings import Place, as_plain, check_kind, check_names
from hf_dr.teacher.folds import Fold, fold_in_config
from hf_dr.teacher.foreign import check_config, check_index
from hf_dr.teacher.preprocessing import (
    Preprocessing,
    checked_normalization,
    own_processor,
    read_image_processor,
    read_pretrained_cfg,
)

logger = logging.getLogger(__name__)

HOW_TO_NAME = "a Hub id (timm or transformers), a transformers folder, or `timm:ARCHITECTURE@FILE.safetensors`"
ONE_CLASS = "single_label_classification"
"""What transformers calls the answer of a classifier whose logits are for a softmax."""
# The share of the resized side that a centre crop may keep.
_CROPS = (0.05, 2)
_Names = tuple[tuple[str, ...], ...]
"""The names by which each class is known."""


@dataclass(frozen=True)
class Member:
    """One classifier of the ensemble and what is known about it.

    `labels[c]` holds the names by which class c is known, the first being the one shown; None where the model has none.
    `crop` says how it is evaluated: the share of the resized shorter side that the centre crop keeps; None squashes the
    whole image. (As a teacher it sees whole views.) `left_out` are images that it was trained without, where that is known.
    """

    model: nn.Module
    id: str
    revision: str | None
    license: str | None
    num_classes: int
    labels: _Names | None
    preprocessing: Preprocessing
    weights_hash: str
    crop: float | None = None
    left_out: Fold | None = None

    def provenance(self) -> dict[str, Any]:
        """Returns what it is in JSON types."""
        fields = ("id", "revision", "license", "num_classes", "weights_hash")
        told = {name: getattr(self, name) for name in fields} | {"preprocessing": self.preprocessing.to_dict()}
        return told if self.left_out is None else {"left_out": asdict(self.left_out), **told}


def imagenet_synsets(classes: str) -> list[str]:
    """Returns the WordNet ids of `imagenet`, `imagenet-a` or `imagenet-r`, in the order of their class numbers.

    timm has the lists as package data; the numbers of the 200 classes of the latter two go by the sorted ids, as everywhere.
    """
    if classes == "imagenet":
        return ImageNetInfo().label_names()
    file = importlib.resources.files("timm.data") / "_info" / f"{classes.replace('-', '_')}_synsets.txt"
    return file.read_text(encoding="utf-8").split()


def weights_hash(model: nn.Module) -> str:
    """Returns the SHA-256 of shapes, types and values of all weights, in order; names are left out, so that one
    checkpoint hashes alike whether timm or transformers has loaded it.

    Raises:
        TeacherError: There is something else than tensors and what JSON can hold (`get_extra_state`).
    """
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            continue
        try:
            digest.update(json.dumps(value, sort_keys=True).encode())
        except (TypeError, ValueError):
            raise TeacherError(
                f"the state of a model must be tensors, or what JSON can hold, found {type(value).__name__} for {name!r}. "
                "Change its `get_extra_state`."
            ) from None
    return digest.hexdigest()


def load_member(name: str, *, card: bool = True, fallback: Preprocessing | None = None, strict: bool = False) -> Member:
    """Loads one classifier by name, as `Teacher.from_pretrained` does.

    Args:
        name: What `Teacher.from_pretrained` takes.
        card: Whether to look up its licence in its card, and to warn where it is unknown.
        fallback: Preprocessing of a model that does not tell its own.
        strict: Whether weights in the checkpoint that the model does not have are refused.

    Raises:
        TeacherError: It cannot be loaded.
    """
    member = _load(name, card, fallback, strict)
    if fallback is None:  # else the caller still changes its preprocessing
        check_member(member)
    return member


def _load(name: str, card: bool, fallback: Preprocessing | None, strict: bool) -> Member:
    if name.startswith("timm:"):
        return _load_timm(name)
    folder = expanded(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise TeacherError(f"the model's folder {name} must hold a config.json, found none. Name {HOW_TO_NAME}.")
        return _load_transformers(name, str(folder), None, card, fallback, strict)
    if "@" in name and expanded(name.partition("@")[0]).is_dir():
        raise TeacherError(f"a revision must come with a Hub id, got {name!r}, which is a folder. Leave it out.")
    repo_id, _, revision = name.partition("@")
    if folder.is_file() or name.startswith((".", "/", "~")) or repo_id.count("/") > 1:
        raise TeacherError(f"a model must be {HOW_TO_NAME}; {name!r} is none of these.{no_folder(name)}")
    return _load_transformers(repo_id, repo_id, revision or None, card, fallback, strict)


def check_member(member: Member) -> None:
    """Shows a classifier one image as it will see them all, so that what cannot answer is found before any work.

    Raises:
        TeacherError: It takes no such images, or does not answer with a number for each of at least two classes.
    """
    if member.num_classes < 2:
        raise TeacherError(
            f"the model {member.id!r} must have at least 2 classes, found {member.num_classes}: the one would have the "
            "probability 1 for every image. Name a classifier that was trained with cross-entropy."
        )
    found = _shape_of_answer(member.model, member.preprocessing, member.id)
    if found != (1, member.num_classes):
        raise _wrong_shape(member.id, member.num_classes, found)


def _wrong_shape(name: str, num_classes: int | str, found: tuple[int, ...]) -> TeacherError:
    return TeacherError(
        f"the model {name!r} must answer with one number for each of its classes, shape (1, {num_classes}), but its answer to "
        f"one image has the shape {found}. Name {HOW_TO_NAME}."
    )


def _shape_of_answer(model: nn.Module, preprocessing: Preprocessing, name: str) -> tuple[int, ...]:
    """Returns the shape of the logits for one black image; a TeacherError if they are probabilities."""
    height, width = preprocessing.size
    try:
        with torch.inference_mode():
            black = preprocessing(torch.zeros(1, 3, height, width, dtype=torch.uint8))
            logits = logits_of(model.eval()(black)).float()
    # What a model refuses, it refuses in its own way.
    except Exception as error:
        _check_dtypes(model, name)
        raise TeacherError(
            f"the model {name!r} must take RGB images of {height}x{width} pixels, as its preprocessing says, but: "
            f"{type(error).__name__}: {str(error).rstrip('. '):.300}. Correct its configuration."
        ) from error
    # The softmax of logits that are probabilities is nearly even, while the most probable class stays the same.
    if (
        logits.ndim == 2
        and logits.shape[1] > 1
        and bool((logits >= 0).all())
        and bool(((logits.sum(-1) - 1).abs() < 1e-3).all())
    ):
        raise TeacherError(
            f"the model {name!r} must answer with logits, found numbers from 0 to 1 with the sum 1, which are probabilities. "
            "Leave its softmax out, or answer with the logarithm of the probabilities."
        )
    return tuple(logits.shape)


def _check_dtypes(model: nn.Module, name: str) -> None:
    """Refuses weights of another precision than the pixels."""
    found = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()} - {torch.float32}
    if found:
        raise TeacherError(
            f"the weights of the model {name!r} must be float32, as the pixels are, found "
            f"{', '.join(sorted(str(dtype).removeprefix('torch.') for dtype in found))}. Give `model.float()`; with "
            "`precision='fp16'` or 'bf16' the teacher computes in that."
        )


def member_of(
    model: nn.Module,
    name: str,
    preprocessing: Preprocessing,
    crop: float | None,
    class_names: Sequence[str] | None,
    license: str | None,
) -> Member:
    """Returns a copy of a classifier in memory as a member, see `Teacher.from_model`."""
    try:
        with torch.no_grad():  # else the weights of a copied module of TorchScript are results with a gradient
            copied = copy.deepcopy(model).cpu()
    except (RuntimeError, TypeError) as error:
        raise TeacherError(
            f"the model {name!r} must be one that can be copied, because the teacher has a copy of it, but: "
            f"{type(error).__name__}: {str(error).rstrip('. '):.300}. Build it again, load its weights, and give it before "
            "it is called: what it keeps of a call may hold gradients."
        ) from error
    shape = _shape_of_answer(copied, preprocessing, name)
    if not shape:  # one number for all
        raise _wrong_shape(name, "classes", shape)
    labels: _Names | None = None
    if class_names is not None:
        check_names("class_names", class_names)
        labels = tuple((str(own),) for own in class_names)
    elif getattr(getattr(model, "config", None), "id2label", None):
        labels = _own_labels(name, model.config)
    if labels is not None and len(labels) != shape[-1]:
        raise TeacherError(
            f"`class_names` must name the {shape[-1]} classes of {name!r}, got {len(labels)} names. Correct them."
        )
    member = Member(copied, name, None, license, shape[-1], labels, preprocessing, weights_hash(copied), crop)
    check_member(member)
    return member


def preprocessing_of(
    model: nn.Module, name: str, size: Any, normalization: Any, processor: Any
) -> tuple[Preprocessing, float | None]:
    """Returns how a classifier in memory takes images: as is given, and for the rest as it tells itself, if it is timm's.

    The second value is the evaluation's crop, see `Member`.
    """
    check_kind("model", model, nn.Module, "a classifier in memory", "`Teacher.from_pretrained` takes names.")
    check_kind("name", name, str, "what provenance and card call the model", "Give a text.")
    Place().check("name", name)
    normalization = checked_normalization(normalization)
    processor = own_processor(processor)
    told: dict[str, Any] = {"interpolation": "bilinear"}
    crop = None
    # transformers' wrapper of a timm model, as a student is one, has it in its configuration.
    of_timm = getattr(model, "pretrained_cfg", None) or getattr(getattr(model, "config", None), "pretrained_cfg", None)
    if processor is not None:
        own, crop = read_image_processor(processor, name)
        told |= vars(own)
    elif of_timm:
        own, crop = read_pretrained_cfg(of_timm, name)
        told |= vars(own)
    if size is not None:
        told["size"] = tuple(map(as_plain, size)) if isinstance(size, (list, tuple)) else (as_plain(size),) * 2
    if normalization is not None:
        told |= zip(("mean", "std"), normalization, strict=True)
    for setting, key in (("size", "size"), ("normalization", "mean")):
        if key not in told:
            raise ConfigError(
                f"`{setting}` must be given for a {type(model).__name__}, which does not say how it takes images, got none. "
                "Give `size` and `normalization=(mean, std)`, or the `processor` of a model of transformers."
            )
    return Preprocessing(**told), crop


def logits_of(outputs: Any) -> torch.Tensor:
    """Returns the logits in what a classifier returns: a tensor, or several values, the first of them or the one named so."""
    logits = getattr(outputs, "logits", outputs)
    return logits if isinstance(logits, torch.Tensor) else logits[0]


def _load_timm(name: str) -> Member:
    """Loads `timm:ARCHITECTURE@FILE.safetensors`; the architecture's own pretrained_cfg has the preprocessing."""
    architecture, _, file = name.removeprefix("timm:").partition("@")
    path = expanded(file)
    if not timm.is_model(architecture):
        raise TeacherError(f"timm has no architecture {architecture!r} (in {name!r}). See timm.list_models().")
    if path.suffix != ".safetensors" or not path.is_file():
        raise TeacherError(
            f"`timm:ARCHITECTURE@FILE` needs an existing .safetensors file, got {file!r}. Without a file, name the Hub id "
            f"(timm/{architecture})."
        )
    try:
        weights = load_file(path)
        # Built by its name, because timm lists no cfg of its older names, such as tv_resnet50.
        model = timm.create_model(architecture, pretrained=False)
        cfg: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
        classifier = cfg.get("classifier")
        if not classifier:
            raise TeacherError(
                f"the pretrained_cfg of timm's {architecture} must name its last layer (`classifier`), found none. Add it, or "
                "make a teacher of the model: `Teacher.from_model`."
            )
        classifier = classifier if isinstance(classifier, str) else classifier[0]
        num_classes = next(len(w) for key, w in weights.items() if key.startswith(f"{classifier}.") and w.ndim)
        if num_classes != model.num_classes:
            model = timm.create_model(architecture, pretrained=False, num_classes=num_classes)
        model.load_state_dict(weights)
    except (SafetensorError, StopIteration, RuntimeError) as error:
        raise TeacherError(
            f"the weights of {path.name} do not fit timm's {architecture}: {str(error).rstrip('. ')[:300] or 'no classifier'}. "
            "Check the architecture."
        ) from error
    preprocessing, crop = read_pretrained_cfg(cfg, name)
    return Member(
        model=model,
        id=f"timm:{architecture}@{path.name}",
        revision=None,
        license=None,  # timm's is that of its own weights
        num_classes=num_classes,
        labels=_imagenet_labels(num_classes),
        preprocessing=preprocessing,
        weights_hash=weights_hash(model),
        crop=crop,
    )


def _load_transformers(
    name: str, source: str, revision: str | None, card: bool, fallback: Preprocessing | None, strict: bool
) -> Member:
    """Loads a transformers folder or a Hub id, timm's included (through transformers' timm wrapper)."""
    model, revision = _load_model(name, source, revision, strict)
    config = model.config
    kind = getattr(config, "problem_type", None)
    if kind not in (None, ONE_CLASS):
        instead = "numbers, not classes" if kind == "regression" else "independent of each other"
        raise TeacherError(
            f"the model {name!r} must answer with one class for each image, but its config.json says that its answers are "
            f"{instead} (problem_type {kind!s:.40}). Name a classifier that was trained with cross-entropy."
        )
    labels = _own_labels(name, config)
    pretrained_cfg = getattr(config, "pretrained_cfg", None)  # timm's
    if pretrained_cfg is None:
        preprocessing, crop = _transformers_preprocessing(name, source, revision, fallback)
    else:
        preprocessing, crop = read_pretrained_cfg(pretrained_cfg, name)
        synsets = _imagenet_labels(config.num_labels)
        if labels and synsets:
            labels = tuple(own + more for own, more in zip(labels, synsets, strict=True))
        labels = labels or synsets
    if crop is not None and not _CROPS[0] <= crop <= _CROPS[1]:
        raise TeacherError(
            f"the crop of {name!r} must keep a share from {_CROPS[0]} to {_CROPS[1]} of the resized side, found {crop}. Fix "
            "its configuration."
        )
    local = expanded(name).is_dir()
    # A folder's `pretrained_cfg` may be that of the checkpoint from which its weights were fine-tuned.
    license = None if local else (pretrained_cfg or {}).get("license")
    return Member(
        model=model,
        id=_folder_name(name) if local else name,
        revision=revision,
        license=_card_license(source, revision) if card and not license else license,
        num_classes=config.num_labels,
        labels=labels,
        preprocessing=preprocessing,
        weights_hash=weights_hash(model),
        crop=crop,
        left_out=fold_in_config(name, config),
    )


def _load_model(name: str, source: str, revision: str | None, strict: bool) -> tuple[Any, str | None]:
    """Returns a classifier with all its weights, and the commit of the Hub that it is from."""
    try:
        if not Path(source).is_dir():
            revision = resolve_revision(source, revision=revision).resolved  # all files of one commit, which is noted
        settings: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": False}
        check_config(name, transformers.PretrainedConfig.get_config_dict(source, **settings)[0])
        check_index(name, source, settings["revision"])
        model, report = transformers.AutoModelForImageClassification.from_pretrained(
            source,
            config=read_config(source, **settings),
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            **settings,
        )
    except TeacherError:
        raise
    # The configuration decides which of hundreds of classes is built, and each fails in its own way on what it cannot use.
    except Exception as error:
        raise TeacherError(
            f"could not load {name!r} as an image classifier ({type(error).__name__}: {str(error)[:400].rstrip('. ')})."
            f"{no_folder(source)} Name {HOW_TO_NAME}; weights must be safetensors."
        ) from error
    if report["missing_keys"]:
        raise TeacherError(
            f"the checkpoint of {name!r} has no {min(report['missing_keys'])}: part of the model would be random. "
            "Name a checkpoint of an image classifier."
        )
    if strict and report["unexpected_keys"]:
        raise TeacherError(
            f"the checkpoint of {name!r} must hold only its model's weights, but it also holds "
            f"{min(report['unexpected_keys'])}. Save it again."
        )
    return model, revision


def read_config(source: str, **settings: Any) -> Any:
    """Returns what `AutoConfig.from_pretrained` does, as transformers can build a model of it."""
    config = transformers.AutoConfig.from_pretrained(source, **settings)
    # timm's own export repeats the number of classes there, which transformers' wrapper passes by itself.
    if isinstance(getattr(config, "model_args", None), dict):
        config.model_args.pop("num_classes", None)
    return config


def _own_labels(name: str, config: Any) -> _Names | None:
    """Returns the names of the classes in a configuration; None where they are transformers' placeholders."""
    names = [config.id2label.get(c) for c in range(config.num_labels)]
    if not all(isinstance(own, str) for own in names):
        raise TeacherError(
            f"the config.json of {name!r} must name all its {config.num_labels} classes, found {names!s:.80}. Fix its "
            "`id2label`."
        )
    if all(own == f"LABEL_{c}" for c, own in enumerate(names)):
        return None
    return tuple((own,) for own in names)


def _transformers_preprocessing(
    name: str, source: str, revision: str | None, fallback: Preprocessing | None
) -> tuple[Preprocessing, float | None]:
    """Returns the preprocessing and the evaluation's crop (see `Member`) that the image processor has."""
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            source, revision=revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        if fallback is not None:
            return fallback, 1.0
        raise TeacherError(
            f"the model {name!r} must have a preprocessor_config.json, which gives its size, mean and std; reading it "
            f"failed: {str(error).rstrip('. '):.300}. Save the model's image processor next to it."
        ) from error
    return read_image_processor(processor, name)


@cache  # timm reads long lists
def _imagenet_labels(num_classes: int) -> _Names | None:
    """Returns lemma and WordNet id of each class where timm takes that many classes for one of ImageNet's sets."""
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    synsets = info.label_names()
    descriptions = info.label_descriptions(as_dict=True)
    return tuple((descriptions[synset], synset) for synset in synsets) if len(synsets) == num_classes else None


def _folder_name(name: str) -> str:
    """Returns the name of a folder, as it was given; that of `.` and `..` is the one that they stand for."""
    folder = expanded(name)
    return (folder.resolve() if folder.name in ("", "..") else folder).name


def _card_license(source: str, revision: str | None) -> str | None:
    """Reads the licence from the model's card; None, with a warning, where there is no card to read."""
    license = None
    readme = expanded(source) / "README.md"
    try:
        if readme.is_file():
            license = ModelCard.load(readme).data.get("license")
        elif not readme.parent.is_dir() and not constants.is_offline_mode():
            license = ModelCard.load(source).data.get("license")
    # A card is anybody's text: its YAML fails in many ways.
    except (OSError, *YAML_ERRORS) as error:
        logger.debug("no card for %s at %s: %s", source, revision, error)
    if not all(isinstance(text, str) for text in (license if isinstance(license, list) else [license])):
        license = None  # YAML reads `no` as false
    if license is None:
        logger.warning("The licence of the teacher %s is unknown; add it to the card before you publish.", source)
    return license

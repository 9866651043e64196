"""The teacher: one or several pretrained classifiers whose probabilities are averaged.

Every member gets the same uint8 views and does its own resizing and normalisation, taken from its own configuration,
on its device. Nothing that is downloaded is executed: weights are safetensors, and remote code is never trusted.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.resources
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import ModelCard, constants, resolve_revision
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from torch import nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from transformers import AutoImageProcessor, AutoModelForImageClassification, PretrainedConfig

import hf_dr.teacher.architectures  # noqa: F401 (what it registers, timm builds)
from hf_dr.errors import TeacherError
from hf_dr.views.ops.base import MAX_SIDE, MAX_VIEW_PIXELS

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_TENSOR_FILTERS = ("nearest", "bilinear", "bicubic")
# A configuration from elsewhere could ask for any number, and a dict of names is made before weights are looked at.
MAX_CLASSES = 1 << 20

_HOW_TO_NAME = "a Hub id (timm or transformers), a transformers folder, or `timm:ARCHITECTURE@FILE.safetensors`"


@dataclass(frozen=True)
class Preprocessing:
    """What one member does to the uint8 views: resize to (height, width), scale to [0, 1], normalise."""

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str

    def __post_init__(self) -> None:
        height, width = self.size if isinstance(self.size, tuple) and len(self.size) == 2 else (0, 0)
        sides = all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in (height, width))
        for name, ok, expected in (
            (
                "size",
                sides and height * width <= MAX_VIEW_PIXELS,
                f"(height, width) of at most {MAX_VIEW_PIXELS:,} pixels",
            ),
            ("mean", _is_colour(self.mean), "three numbers"),
            ("std", _is_colour(self.std) and min(self.std) > 0, "three numbers above 0"),
            ("interpolation", self.interpolation in _TENSOR_FILTERS, f"one of {', '.join(_TENSOR_FILTERS)}"),
        ):
            if not ok:
                raise TeacherError(
                    f"`{name}` of a model's preprocessing must be {expected}, found {getattr(self, name)!r:.80}. Mend its "
                    "configuration."
                )

    def __call__(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        """Returns the model's float32 input of shape (B, 3, *size) for uint8 views of any size."""
        pixels = views_BCHW.float()
        if pixels.shape[-2:] != self.size:
            pixels = F.resize(pixels, list(self.size), InterpolationMode(self.interpolation), antialias=True)
        return F.normalize(pixels, [255 * m for m in self.mean], [255 * s for s in self.std])


def _is_colour(values: Any) -> bool:
    numbers = isinstance(values, tuple) and len(values) == 3
    return numbers and all(isinstance(v, (int, float)) and math.isfinite(v) for v in values)


@dataclass(frozen=True)
class Member:
    """One classifier of the ensemble and what is known about it.

    `labels[c]` holds the names by which class c is known, the first being the one shown; None where the model has none.
    `crop` tells how it is evaluated: the share of the resized shorter side that the centre crop keeps; None squashes the
    whole image. (As a teacher it sees whole views.)
    """

    model: nn.Module
    id: str
    revision: str | None
    license: str | None
    num_classes: int
    labels: tuple[tuple[str, ...], ...] | None
    preprocessing: Preprocessing
    weights_hash: str
    crop: float | None = None

    def provenance(self) -> dict[str, Any]:
        """Returns all but the model, in JSON types."""
        return {
            "id": self.id,
            "revision": self.revision,
            "license": self.license,
            "num_classes": self.num_classes,
            "weights_hash": self.weights_hash,
            "preprocessing": asdict(self.preprocessing),
        }


class Teacher:
    """An ensemble of classifiers over the same classes; probabilities are averaged in float32.

    Args:
        members: At least one; no two with the same weights, all with the same classes.
        device: Where the members live.
        precision: `fp32`, or `bf16` / `fp16` under autocast.
        channels_last: Memory format of weights and views; convolutions are often faster with it.
        compile: Whether to `torch.compile` the members.
        classes: For a dataset that has only a subset of the teacher's classes: for each class of the dataset, its index
            among the teacher's, or its name. Members that have exactly that many classes already are left as they are.

    Raises:
        TeacherError: The members do not belong together, or `classes` does not fit them.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        channels_last: bool = True,
        compile: bool = False,
        classes: Sequence[int] | Sequence[str] | None = None,
    ) -> None:
        if not members:
            raise TeacherError(f"a teacher must have at least one member, got none. Name {_HOW_TO_NAME}.")
        if precision not in PRECISIONS:
            raise TeacherError(f"`precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
        _refuse_twins(members)
        self.members = tuple(members)
        self.precision = precision
        self.device = torch.device(device)
        self.channels_last = channels_last
        self._class_ids = [_resolve_classes(member, classes) for member in members]
        self.num_classes, self.labels = self._common_classes()
        self._models = []
        for member in members:
            model = member.model.eval().requires_grad_(False).to(self.device)
            if channels_last:
                model = model.to(memory_format=torch.channels_last)
            self._models.append(torch.compile(model) if compile else model)
        self._largest_batch: int | None = None  # learnt when memory runs out

    @classmethod
    def from_pretrained(cls, ids: str | Sequence[str], **settings: Any) -> Teacher:
        """Loads the members by name; `settings` are those of `Teacher`.

        Args:
            ids: One or several of: a Hub id of a timm or transformers classifier (`timm/resnet50.a1_in1k`, with
                `@revision` to pin it), a local transformers folder, or a timm architecture with a local checkpoint in
                timm's key names (`timm:tf_efficientnet_lite0@weights.safetensors`).

        Raises:
            TeacherError: A member cannot be loaded; or see `Teacher`.
        """
        return cls([load_member(name) for name in ([ids] if isinstance(ids, str) else ids)], **settings)

    def __call__(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        """Labels views.

        Args:
            views_BCHW: uint8 RGB, any device.

        Returns:
            Natural log-probabilities (B, C) of the averaged ensemble, float32, on the teacher's device.
        """
        batch = len(views_BCHW)
        if self._largest_batch is not None and batch > self._largest_batch:
            return torch.cat([self(part) for part in views_BCHW.split(self._largest_batch)])
        try:
            return self._answer(views_BCHW)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
        # Outside the except block: the exception would keep the failed batch's tensors alive.
        self._largest_batch = (batch + 1) // 2
        logger.warning("A batch of %d views did not fit in memory; going on with %d.", batch, self._largest_batch)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return self(views_BCHW)

    @torch.inference_mode()
    def _answer(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        views_BCHW = views_BCHW.to(self.device, non_blocking=True)
        answers = []
        for member, model, class_ids in zip(self.members, self._models, self._class_ids, strict=True):
            pixels = member.preprocessing(views_BCHW)
            if self.channels_last:
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            dtype = PRECISIONS[self.precision]
            with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
                out = model(pixels)
            logits_BC = (out if isinstance(out, torch.Tensor) else out.logits).float()
            if class_ids is not None:
                logits_BC = logits_BC[:, class_ids]
            answers.append(logits_BC.log_softmax(dim=-1))
        if len(answers) == 1:
            return answers[0]
        # log(mean of probabilities), without leaving log space: the tail keeps its precision.
        return torch.stack(answers).logsumexp(dim=0) - math.log(len(answers))

    def select(self, places: Sequence[int]) -> Teacher:
        """Returns the ensemble of the members at these places, in this order; it shares their models."""
        chosen = copy.copy(self)
        chosen.members = tuple(self.members[n] for n in places)
        chosen._models = [self._models[n] for n in places]
        chosen._class_ids = [self._class_ids[n] for n in places]
        return chosen

    def _common_classes(self) -> tuple[int, tuple[tuple[str, ...], ...] | None]:
        """Checks that all members answer over the same classes and returns their number and names."""
        counts, names = [], []
        for member, class_ids in zip(self.members, self._class_ids, strict=True):
            counts.append(member.num_classes if class_ids is None else len(class_ids))
            labels = member.labels
            if labels is not None and class_ids is not None:
                labels = tuple(labels[c] for c in class_ids)
            names.append(labels)
        if len(set(counts)) > 1:
            found = ", ".join(f"{m.id}: {c}" for m, c in zip(self.members, counts, strict=True))
            raise TeacherError(
                f"the members of a teacher must have the same classes, got {found}. Leave one out, or pass `classes`."
            )
        named = [(m, n) for m, n in zip(self.members, names, strict=True) if n is not None]
        for member, labels in named[1:]:
            first, expected = named[0]
            for c, (a, b) in enumerate(zip(expected, labels, strict=True)):
                if not {_canonical(x) for x in a} & {_canonical(x) for x in b}:
                    raise TeacherError(
                        f"the members of a teacher must have the same classes in the same order, but class {c} is "
                        f"{a[0]!r} for {first.id} and {b[0]!r} for {member.id}. Leave one out, or pass `classes` by name."
                    )
        return counts[0], named[0][1] if named else None

    def check_classes(self, names: Sequence[str]) -> None:
        """Checks that a dataset's classes are the teacher's: as many, and in the same order where both are named alike.

        Raises:
            TeacherError: They are not.
        """
        if len(names) != self.num_classes:
            raise TeacherError(
                f"the teacher must answer over the dataset's {len(names)} classes, but it has {self.num_classes}. Name another "
                "teacher, or pass `classes` (--teacher_classes) if the dataset has a subset of its classes."
            )
        own = [{_canonical(name) for name in labels} for labels in self.labels or ()]
        known = set().union(*own)
        theirs = [_canonical(name) for name in names]
        if set(theirs) <= known:  # the same vocabulary: then the order must agree, too
            for c, (mine, name) in enumerate(zip(own, theirs, strict=True)):
                if name not in mine:
                    raise TeacherError(
                        f"the teacher's classes must be in the dataset's order, but class {c} is {names[c]!r} in the dataset "
                        f"and {(self.labels or ())[c][0]!r} for the teacher. Pass `classes` (--teacher_classes by_name)."
                    )

    def provenance(self) -> dict[str, Any]:
        """Returns what determines the answers, and the members' ids and licences, in JSON types."""
        members = []
        for member, class_ids in zip(self.members, self._class_ids, strict=True):
            members.append({**member.provenance(), "classes": class_ids})
        return {
            "members": members,
            "num_classes": self.num_classes,
            "precision": self.precision,
            "device_type": self.device.type,
        }


def _refuse_twins(members: Sequence[Member]) -> None:
    seen: dict[str, str] = {}
    for member in members:
        if member.weights_hash in seen:
            raise TeacherError(
                f"the members of a teacher must differ, but {seen[member.weights_hash]} and {member.id} have the same "
                "weights (timm sends some old names to one checkpoint). Name another model or leave one out."
            )
        seen[member.weights_hash] = member.id


def imagenet_synsets(classes: str) -> list[str]:
    """Returns the WordNet ids of `imagenet`, `imagenet-a` or `imagenet-r`, in the order of their class numbers.

    timm has the lists as package data; the numbers of the 200 classes of the latter two go by the sorted ids, as everywhere.
    """
    if classes == "imagenet":
        return ImageNetInfo().label_names()
    file = importlib.resources.files("timm.data") / "_info" / f"{classes.replace('-', '_')}_synsets.txt"
    return file.read_text(encoding="utf-8").split()


def _canonical(name: str) -> str:
    """`Great_White_Shark, Carcharodon` and `great white shark` are one class."""
    return name.split(",", maxsplit=1)[0].replace("_", " ").replace("-", " ").strip().casefold()


def _resolve_classes(member: Member, classes: Sequence[int] | Sequence[str] | None) -> list[int] | None:
    """Returns the member's class ids for the dataset's classes; None where they are the same."""
    if classes is None or (len(classes) == member.num_classes and not isinstance(classes[0], str)):
        return None
    if len(classes) == 0:
        raise TeacherError("`classes` must name at least one class, got an empty list.")
    ids: list[int] = []
    known: dict[str, int] = {}
    for c, names in enumerate(member.labels or ()):
        for name in names:
            known.setdefault(_canonical(name), c)
    for entry in classes:
        if isinstance(entry, str):
            if not known:
                raise TeacherError(f"`classes` has names, but {member.id} knows none. Give the indices of its classes.")
            if _canonical(entry) not in known:
                raise TeacherError(
                    f"`classes` must name classes of {member.id}, which has no {entry!r} (it has e.g. "
                    f"{', '.join(repr(n[0]) for n in (member.labels or ())[:3])}). Give the indices of its classes."
                )
            ids.append(known[_canonical(entry)])
        elif 0 <= entry < member.num_classes:
            ids.append(int(entry))
        else:
            raise TeacherError(
                f"`classes` must hold ids below {member.num_classes}, the classes of {member.id}; got {entry}."
            )
    if len(set(ids)) < len(ids):
        twice = next(c for c in ids if ids.count(c) > 1)
        raise TeacherError(f"`classes` must not repeat a class, but class {twice} of {member.id} stands there twice.")
    return None if ids == list(range(member.num_classes)) else ids


def weights_hash(model: nn.Module) -> str:
    """Returns the SHA-256 of shapes, types and values of all weights, in order; names are left out, so that one
    checkpoint hashes alike whether timm or transformers has loaded it."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
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
    if name.startswith("timm:"):
        return _load_timm(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise TeacherError(f"the model's folder {name} must hold a config.json, found none. Name {_HOW_TO_NAME}.")
        return _load_transformers(name, str(folder), None, card, fallback, strict)
    if folder.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise TeacherError(f"a model must be {_HOW_TO_NAME}; {name!r} is none of these (no such folder).")
    repo_id, _, revision = name.partition("@")
    return _load_transformers(repo_id, repo_id, revision or None, card, fallback, strict)


def _load_timm(name: str) -> Member:
    """Loads `timm:ARCHITECTURE@FILE.safetensors`; the architecture's own pretrained_cfg tells the preprocessing."""
    architecture, _, file = name.removeprefix("timm:").partition("@")
    path = Path(file).expanduser()
    if not timm.is_model(architecture):
        raise TeacherError(f"timm has no architecture {architecture!r} (in {name!r}). See timm.list_models().")
    if path.suffix != ".safetensors" or not path.is_file():
        raise TeacherError(
            f"`timm:ARCHITECTURE@FILE` needs an existing .safetensors file, got {file!r}. Without a file, name the Hub id "
            f"(timm/{architecture})."
        )
    try:
        weights = load_file(path)
        model = timm.create_model(architecture, pretrained=False)
        cfg: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
        classifier = cfg["classifier"] if isinstance(cfg["classifier"], str) else cfg["classifier"][0]
        num_classes = next(len(w) for key, w in weights.items() if key.startswith(f"{classifier}."))
        if num_classes != model.num_classes:
            model = timm.create_model(architecture, pretrained=False, num_classes=num_classes)
        model.load_state_dict(weights)
    except (SafetensorError, StopIteration, RuntimeError) as error:
        raise TeacherError(
            f"the weights of {path.name} do not fit timm's {architecture}: {str(error)[:300] or 'no classifier'}. "
            "Check the architecture."
        ) from error
    data = resolve_data_config(pretrained_cfg=cfg, verbose=False)
    return Member(
        model=model,
        id=f"timm:{architecture}@{path.name}",
        revision=None,
        license=cfg.get("license"),
        num_classes=num_classes,
        labels=_imagenet_labels(num_classes),
        preprocessing=_timm_preprocessing(data, name),
        weights_hash=weights_hash(model),
        crop=_timm_crop(data),
    )


def _load_transformers(
    name: str, source: str, revision: str | None, card: bool, fallback: Preprocessing | None, strict: bool
) -> Member:
    """Loads a transformers folder or a Hub id, timm's included (through transformers' timm wrapper)."""
    try:
        if not Path(source).is_dir():
            revision = resolve_revision(source, revision=revision).resolved  # all files of one commit, which is noted
        settings: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": False}
        _check_config(name, PretrainedConfig.get_config_dict(source, **settings)[0])
        model, report = AutoModelForImageClassification.from_pretrained(
            source, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **settings
        )
    except TeacherError:
        raise
    # The configuration decides which of hundreds of classes is built, and each fails in its own way on what it cannot use.
    except Exception as error:
        raise TeacherError(
            f"could not load {name!r} as an image classifier ({type(error).__name__}: {str(error)[:400]}). "
            f"Name {_HOW_TO_NAME}; weights must be safetensors."
        ) from error
    if report["missing_keys"]:
        raise TeacherError(
            f"the checkpoint of {name!r} has no {sorted(report['missing_keys'])[0]}: part of the model would be random. "
            "Name a checkpoint of an image classifier."
        )
    if strict and report["unexpected_keys"]:
        besides = sorted(report["unexpected_keys"])[0]
        raise TeacherError(
            f"the checkpoint of {name!r} must hold its model's weights alone, found {besides} besides. Save it again."
        )
    config = model.config
    pretrained_cfg = getattr(config, "pretrained_cfg", None)
    names = [config.id2label.get(c) for c in range(config.num_labels)]
    if not all(isinstance(own, str) for own in names):
        raise TeacherError(
            f"the config.json of {name!r} must name all its {config.num_labels} classes. Mend its `id2label`."
        )
    labels: tuple[tuple[str, ...], ...] | None = tuple((own,) for own in names)
    if all(own == f"LABEL_{c}" for c, own in enumerate(names)):
        labels = None
    if pretrained_cfg is not None:
        try:
            data = resolve_data_config(pretrained_cfg=pretrained_cfg, verbose=False)
            preprocessing, crop = _timm_preprocessing(data, name), _timm_crop(data)
        except (TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
            if isinstance(error, TeacherError):
                raise
            raise TeacherError(
                f"the `pretrained_cfg` of {name!r} must tell input_size, mean, std and crop as timm does, but: {error!r:.200}. "
                "Mend its config.json."
            ) from error
        synsets = _imagenet_labels(config.num_labels)
        if labels and synsets:
            labels = tuple(own + more for own, more in zip(labels, synsets, strict=True))
        labels = labels or synsets
    else:
        preprocessing, crop = _transformers_preprocessing(name, source, revision, fallback)
    if crop is not None and not 0.05 <= crop <= 2:
        raise TeacherError(
            f"the crop of {name!r} must keep a share from 0.05 to 2 of the resized side, found {crop}. Mend its configuration."
        )
    license = (pretrained_cfg or {}).get("license")
    return Member(
        model=model,
        id=Path(name).name if Path(name).expanduser().is_dir() else name,
        revision=revision,
        license=_card_license(source, revision) if card and not license else license,
        num_classes=config.num_labels,
        labels=labels,
        preprocessing=preprocessing,
        weights_hash=weights_hash(model),
        crop=crop,
    )


def _check_config(name: str, config: dict[str, Any]) -> None:
    """Refuses what would take all memory, or read other files, before anything is built of it."""
    for key in ("num_labels", "num_classes"):
        count = config.get(key)
        if count is not None and not (type(count) is int and 0 < count <= MAX_CLASSES):
            raise TeacherError(
                f"`{key}` in the config.json of {name!r} must be from 1 to {MAX_CLASSES}, found {count!r:.40}. Name another."
            )
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict) or not _TIMM_FILES.isdisjoint(arguments):
        raise TeacherError(
            f"`model_args` in the config.json of {name!r} must be settings of its architecture, found {arguments!r:.80}: they "
            "may name no files or weights. Name another model."
        )
    if ":" in str(config.get("architecture", "")):
        raise TeacherError(
            f"`architecture` in the config.json of {name!r} must be one of timm's own, found {config['architecture']!r:.80}. "
            "Name another model."
        )


# Arguments of timm.create_model that bring in other files.
_TIMM_FILES = frozenset({"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"})
# Pillow's numbers of its filters, as transformers' image processors store them.
_PILLOW_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


def _tensor_filter(interpolation: str, name: str) -> str:
    """Returns the filter by its name, or bicubic, with a warning, for those that exist for PIL images only."""
    if interpolation in _TENSOR_FILTERS:
        return interpolation
    logger.warning("%s was trained with %s resizing, which tensors do not have; using bicubic.", name, interpolation)
    return "bicubic"


def _timm_preprocessing(data: dict[str, Any], name: str) -> Preprocessing:
    return Preprocessing(
        size=tuple(data["input_size"][1:]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=_tensor_filter(data["interpolation"], name),
    )


def _timm_crop(data: dict[str, Any]) -> float | None:
    return None if data["crop_mode"] == "squash" else float(data["crop_pct"])


def _transformers_preprocessing(
    name: str, source: str, revision: str | None, fallback: Preprocessing | None
) -> tuple[Preprocessing, float | None]:
    """Returns the preprocessing and the evaluation's crop (see `Member`) that the image processor tells."""
    try:
        processor: Any = AutoImageProcessor.from_pretrained(
            source, revision=revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        if fallback is not None:
            return fallback, 1.0
        raise TeacherError(
            f"the model {name!r} must have a preprocessor_config.json, which tells its size, mean and std; reading it "
            f"failed: {str(error)[:300]}. Save the model's image processor beside it."
        ) from error
    try:
        return _told_by(processor, name)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        if isinstance(error, TeacherError):
            raise
        raise TeacherError(
            f"the preprocessor_config.json of {name!r} must tell size, mean, std and resampling, but: {error!r:.200}. Mend it."
        ) from error


def _told_by(processor: Any, name: str) -> tuple[Preprocessing, float | None]:
    size = getattr(processor, "crop_size", None) or processor.size
    side = size.get("shortest_edge")
    height, width = (side, side) if side else (size.get("height"), size.get("width"))
    if not height or not width:
        raise TeacherError(f"the image processor of {name!r} must give a height and width, found {size}.")
    resized = processor.size.get("shortest_edge")
    crop = getattr(processor, "crop_pct", None) or (height / resized if resized else None)
    normalise = processor.do_normalize
    preprocessing = Preprocessing(
        size=(height, width),
        mean=tuple(processor.image_mean) if normalise else (0.0, 0.0, 0.0),
        std=tuple(processor.image_std) if normalise else (1.0, 1.0, 1.0),
        interpolation=_tensor_filter(_PILLOW_FILTERS[int(processor.resample)], name),
    )
    return preprocessing, crop


def _imagenet_labels(num_classes: int) -> tuple[tuple[str, ...], ...] | None:
    """Returns lemma and WordNet id of each class where timm takes that many classes for one of ImageNet's sets."""
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    synsets = info.label_names()
    descriptions = info.label_descriptions(as_dict=True)
    return tuple((descriptions[synset], synset) for synset in synsets) if len(synsets) == num_classes else None


def _card_license(source: str, revision: str | None) -> str | None:
    """Reads the licence from the model's card; None, with a warning, where there is no card to read."""
    try:
        readme = Path(source).expanduser() / "README.md"
        if readme.parent.is_dir():
            card = ModelCard.load(readme) if readme.is_file() else None
        elif constants.is_offline_mode():
            card = None
        else:
            card = ModelCard.load(source)
    # A card is anybody's text: its YAML fails in many ways.
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        yaml.YAMLError,
    ) as error:
        logger.debug("no card for %s at %s: %s", source, revision, error)
        card = None
    license = card.data.get("license") if card is not None else None
    if license is None:
        logger.warning("The licence of the teacher %s is unknown; add it to the card before you publish.", source)
    return license

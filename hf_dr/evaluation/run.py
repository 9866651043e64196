"""Evaluation: several checkpoints on several sets of labelled images, in one table.

First everything is checked: names, columns, labels, classes. Then each set is read once for all checkpoints: an image is
decoded (and corrupted) once, seen by each through its own resize and crop, and the whole set's logits give the metrics.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import DataLoader
from tqdm import tqdm

from hf_dr.errors import ConfigError, TeacherError, did_you_mean
from hf_dr.evaluation.config import EvaluateConfig
from hf_dr.evaluation.corruptions import corrupt, corruption_rng
from hf_dr.evaluation.images import Images, open_set
from hf_dr.evaluation.metrics import Reliability, classification_metrics, reliability
from hf_dr.evaluation.plots import reliability_picture
from hf_dr.evaluation.sets import EvaluationSet, parse_set
from hf_dr.processes import warm_up_kernels
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.members import Member, imagenet_synsets, load_member
from hf_dr.teacher.preprocessing import Preprocessing
from hf_dr.text import markdown_table
from hf_dr.version import __version__
from hf_dr.views.images import decode_row
from hf_dr.views.ops.geometry import CenterCrop, Resize

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """How a model sees an image: resized so that the centre crop of `size` keeps the share `crop`; None squashes it."""

    size: tuple[int, int]
    crop: float | None
    interpolation: str

    def __call__(self, image: PIL.Image.Image, whole: bool = False) -> torch.Tensor:
        """Returns uint8 pixels (3, *size); `whole` leaves nothing out of a square image."""
        height, width = self.size
        if self.crop is None:
            resize = Resize(self.size, self.interpolation)
        else:
            crop = 1.0 if whole else self.crop
            scaled = (int(height / crop), int(width / crop))
            resize = Resize(scaled[0] if height == width else scaled, self.interpolation)
        view = CenterCrop(self.size).apply(resize.apply(image, {}), {})
        return torch.from_numpy(np.array(view).transpose(2, 0, 1))


class Model(NamedTuple):
    """A checkpoint under the name that the table shows."""

    name: str
    member: Member
    view: View


@dataclass(frozen=True)
class Result:
    """The metrics of one model on one set; on corrupted images their means over corruptions and severities.

    Attributes:
        diagram: Of the clean images.
        by_corruption: Corruption -> severity -> metrics.
    """

    model: str
    set: str
    examples: int
    metrics: dict[str, float]
    diagram: Reliability | None = None
    by_corruption: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)

    def errors(self) -> dict[str, float]:
        """Returns each corruption's mean top-1 error over its severities, in percent."""
        return {
            name: 100 * (1 - float(np.mean([metrics["top1"] for metrics in severities.values()])))
            for name, severities in self.by_corruption.items()
        }

    @property
    def mce(self) -> float | None:
        """Mean corruption error in percent, not normalised by AlexNet's errors; None for clean images."""
        return float(np.mean(list(self.errors().values()))) if self.by_corruption else None


_ABOUT_CORRUPTED = (
    "Metrics on corrupted images are means over corruptions and severities; mCE is the mean top-1 error over severities, then "
    "over corruptions, not normalised by AlexNet's errors. Corruptions made here compare the models of this table; comparable "
    "with published ImageNet-C numbers are those of imagenet-c only."
)


@dataclass(frozen=True)
class Report:
    """The results, and how they came about, in JSON types."""

    results: list[Result]
    settings: dict[str, Any]
    models: dict[str, dict[str, Any]]
    sets: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything in JSON types; metrics as fractions, `mce` and `errors` in percent."""
        rows = [
            {
                "model": r.model,
                "set": r.set,
                "corrupted": bool(r.by_corruption),
                "examples": r.examples,
                **r.metrics,
                **({"mce": r.mce, "errors": r.errors(), "by_corruption": r.by_corruption} if r.by_corruption else {}),
            }
            for r in self.results
        ]
        return {
            "hf_dr": __version__,
            "settings": self.settings,
            "models": self.models,
            "sets": self.sets,
            "results": rows,
        }

    def to_markdown(self) -> str:
        """Returns the table of all results, and for each corrupted set one of the errors by corruption."""
        head = ("model", "set", "examples", "top-1 %", "top-5 %", "NLL", "Brier", "ECE %", "mCE %")
        rows = []
        for r in self.results:
            m, name = r.metrics, f"{r.set}{', corrupted' if r.by_corruption else ''}"
            shares = (f"{100 * m['top1']:.2f}", f"{100 * m['top5']:.2f}", f"{m['nll']:.4f}", f"{m['brier']:.4f}")
            mce = "" if r.mce is None else f"{r.mce:.2f}"
            rows.append((r.model, name, f"{r.examples:,}", *shares, f"{100 * m['ece']:.2f}", mce))
        lines = [markdown_table(head, rows)]
        for name in dict.fromkeys(r.set for r in self.results if r.by_corruption):
            corrupted = [r for r in self.results if r.set == name and r.by_corruption]
            errors = [r.errors() for r in corrupted]
            cells = [(c, *(f"{e[c]:.2f}" for e in errors)) for c in errors[0]]
            table = markdown_table(("corruption", *(r.model for r in corrupted)), cells)
            lines += ["", f"Top-1 error on {name} in percent, mean over severities:", "", table]
        if any(r.by_corruption for r in self.results):
            lines += ["", _ABOUT_CORRUPTED]
        return "\n".join(lines) + "\n"

    def save(self, folder: str | Path) -> None:
        """Writes evaluation.md, evaluation.json and, if a set was clean, reliability.png."""
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation.md").write_text(self.to_markdown(), encoding="utf-8")
        (folder / "evaluation.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        clean = sorted(
            (r for r in self.results if r.diagram is not None), key=lambda r: list(self.models).index(r.model)
        )
        diagrams = {f"{r.model} on {r.set}": r.diagram for r in clean if r.diagram is not None}
        if diagrams:  # a row for each model, but all in one for one set
            columns = len(clean) // len({r.model for r in clean})
            reliability_picture(diagrams, str(folder / "reliability.png"), columns if columns > 1 else None)


def run_evaluation(config: EvaluateConfig) -> Report:
    """Evaluates every model on every set; writes nothing.

    Raises:
        ConfigError: A name is unknown or stands twice, or a model's classes are not the set's.
        DataError: A set cannot be loaded, or lacks a column or labels.
        TeacherError: A model cannot be loaded.
    """
    warm_up_kernels()
    specs = [parse_set(text) for text in config.sets]
    _refuse_twice("set", [spec.name for spec in specs])
    for name in config.corrupt:
        known = [spec.name for spec in specs if not spec.published_corrupted]
        if name not in known:
            raise ConfigError(f"`corrupt` must name sets with clean images, got `{name}`.{did_you_mean(name, known)}")
    published = [spec.name for spec in specs if spec.published_corrupted]
    if (config.corruptions or config.severities) and not (config.corrupt or published):
        raise ConfigError("`corruptions` and `severities` need a set to corrupt, got none. Name it with `corrupt`.")
    keys = config.corruption_keys()
    opened = [open_set(spec.part(*keys[0]) if spec.published_corrupted else spec, config) for spec in specs]
    models = _load_models(config)
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    teachers = [
        [_answering(model, images, device=device, precision=config.precision) for model in models] for images in opened
    ]
    results = []
    for spec, images, answering in zip(specs, opened, teachers, strict=True):
        if not spec.published_corrupted:
            clean = _Pass(images, models, config)
            for model, logits_BC in zip(models, clean.logits(answering), strict=True):
                metrics = classification_metrics(logits_BC, images.labels)
                diagram = reliability(logits_BC, images.labels)
                results.append(Result(model.name, spec.name, len(images.rows), metrics, diagram))
        if spec.published_corrupted or spec.name in config.corrupt:
            results += _corrupted(spec, images, answering, models, config)
    return Report(
        results,
        settings=dataclasses.asdict(config),
        models={m.name: {**m.member.provenance(), "evaluation": dataclasses.asdict(m.view)} for m in models},
        sets={spec.name: dataclasses.asdict(spec) for spec in specs},
    )


def _corrupted(
    spec: EvaluationSet, images: Images, teachers: list[Teacher], models: list[Model], config: EvaluateConfig
) -> Iterator[Result]:
    """Yields each model's result on corrupted images, published or made here."""
    found: list[dict[str, dict[int, dict[str, float]]]] = [{} for _ in models]
    for name, severity in config.corruption_keys():
        if spec.published_corrupted:
            part = open_set(spec.part(name, severity), config)
            work = _Pass(part, models, config, label=f"{spec.name} {name} {severity}", whole=True)
        else:
            part = images
            work = _Pass(part, models, config, label=f"{spec.name} {name} {severity}", corruption=(name, severity))
        for grid, logits_BC in zip(found, work.logits(teachers), strict=True):
            grid.setdefault(name, {})[severity] = classification_metrics(logits_BC, part.labels)
    for model, grid in zip(models, found, strict=True):
        cells = [metrics for severities in grid.values() for metrics in severities.values()]
        means = {key: float(np.mean([metrics[key] for metrics in cells])) for key in cells[0]}
        yield Result(model.name, spec.name, len(images.rows), means, by_corruption=grid)


# What ImageNet-C was made from; smaller images are corrupted as they are.
_CORRUPTED_FROM, _CORRUPTED_SIDE = 256, 224


class _Pass(torch.utils.data.Dataset):
    """One pass over a set for all models: item i holds, for each distinct view, the uint8 pixels of row `rows[i]`."""

    def __init__(
        self,
        images: Images,
        models: Sequence[Model],
        config: EvaluateConfig,
        *,
        label: str | None = None,
        corruption: tuple[str, int] | None = None,
        whole: bool = False,
    ) -> None:
        column = images.spec.image or ""
        self._cells = images.dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self._rows, self._column, self._config = images.rows, column, config
        self._corruption, self._whole, self._label = corruption, whole, label or images.spec.name
        self._views = list(dict.fromkeys(model.view for model in models))
        self._view_of = [self._views.index(model.view) for model in models]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        row = int(self._rows[index])
        image = decode_row(self._cells[row][self._column], f"row {row} of `{self._label}`")
        whole = self._whole
        if self._corruption is not None:
            if min(image.size) >= _CORRUPTED_FROM:
                image = CenterCrop(_CORRUPTED_SIDE).apply(Resize(_CORRUPTED_FROM).apply(image, {}), {})
                whole = True
            image = corrupt(image, *self._corruption, corruption_rng(self._config.seed, row, *self._corruption))
        return [view(image, whole) for view in self._views]

    def logits(self, teachers: Sequence[Teacher]) -> list[np.ndarray]:
        """Returns the answers (B, C) of each model to all rows, float32, in their order."""
        answers: list[list[np.ndarray]] = [[] for _ in teachers]
        loader = DataLoader(self, self._config.batch_size, num_workers=self._config.num_workers)
        for views in tqdm(loader, desc=self._label, unit="batch", leave=False):
            for teacher, place, parts in zip(teachers, self._view_of, answers, strict=True):
                parts.append(teacher(views[place]).cpu().numpy())
        return [np.concatenate(parts) for parts in answers]


def _load_models(config: EvaluateConfig) -> list[Model]:
    named = []
    for text in config.models:
        match = re.match(r"([\w.-]+)=(.+)", text)
        place = match[2] if match else text
        named.append((match[1] if match else Path(place).name, place))
    _refuse_twice("model", [name for name, _ in named])
    mean, std = tuple(config.mean) or IMAGENET_DEFAULT_MEAN, tuple(config.std) or IMAGENET_DEFAULT_STD
    fallback = None
    if config.size is not None:
        fallback = Preprocessing((config.size, config.size), mean, std, "bilinear")  # type: ignore[arg-type]
    models = []
    for name, place in named:
        member = load_member(place, card=False, fallback=fallback)
        own = member.preprocessing
        size = own.size if config.size is None else (config.size, config.size)
        own = Preprocessing(size, mean if config.mean else own.mean, std if config.std else own.std, own.interpolation)  # type: ignore[arg-type]
        crop = member.crop if config.crop is None else config.crop
        models.append(Model(name, dataclasses.replace(member, preprocessing=own), View(size, crop, own.interpolation)))
    return models


def _answering(model: Model, images: Images, **settings: Any) -> Teacher:
    """Returns the model as a teacher that answers over the set's classes.

    Raises:
        ConfigError: It does not have them.
    """
    spec, member, names = images.spec, model.member, images.class_names
    if spec.classes is not None:
        synsets = imagenet_synsets(spec.classes)
        if member.num_classes not in (1000, len(synsets)):
            subset = f" or the {len(synsets)} of {spec.classes}" if len(synsets) < 1000 else ""
            raise ConfigError(
                f"`{model.name}` must have the 1000 classes of ImageNet{subset} for `{spec.name}`, found {member.num_classes}. "
                "Leave one of the two out."
            )
        thousand = {synset: c for c, synset in enumerate(imagenet_synsets("imagenet"))}
        return Teacher([member], classes=[thousand[synset] for synset in synsets], **settings)
    if names is None and images.labels.max() < member.num_classes:
        return Teacher([member], **settings)
    for classes in (None, names) if names is not None else ():  # as they are; else by name: another order, or a subset
        try:
            teacher = Teacher([member], classes=classes, **settings)
            teacher.check_classes(names or ())
            return teacher
        except TeacherError as error:
            logger.debug("%s on %s: %s", model.name, spec.name, error)
    found = f"{len(names)} names" if names is not None else f"labels up to {images.labels.max()}"
    raise ConfigError(
        f"`{model.name}` must answer over the classes of `{spec.name}` ({found}), found {member.num_classes} classes. Leave "
        "one of the two out; for a subset of ImageNet, name it: ,classes=imagenet-a."
    )


def _refuse_twice(kind: str, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"each {kind} must have its own name, but `{twice}` stands there twice. Write NAME=... for it."
        )

"""Evaluation: several checkpoints on several sets of labelled images, in one table.

First everything is checked: names, columns, labels, classes. Then each set is read once for all models: an image is decoded
(and corrupted) once, resized and cropped for each model as it takes it, and the whole set's logits give the metrics.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hf_dr.allocator import keep_freed_memory
from hf_dr.errors import ConfigError, TeacherError, did_you_mean
from hf_dr.evaluation.config import EvaluateConfig, named_model
from hf_dr.evaluation.corruptions import corrupt, corruption_rng
from hf_dr.evaluation.images import Images, open_set
from hf_dr.evaluation.report import Report, Result
from hf_dr.evaluation.sets import EvaluationSet, parse_set
from hf_dr.evaluation.unfinished import Unfinished
from hf_dr.files import digest_of_weights, expanded
from hf_dr.processes import find_device, quiet_loader, warm_up_kernels
from hf_dr.store.base_dataset import content_hash
from hf_dr.store.provenance import hash_of
from hf_dr.teacher.calibration import MEASURED_TEMPERATURES, calibrated_ece, fit_temperature
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.members import Member, check_member, imagenet_synsets, load_member
from hf_dr.teacher.metrics import CALIBRATED_ECE, ECE_BY_CHANCE, classification_metrics, reliability
from hf_dr.teacher.preprocessing import Preprocessing, evaluation_augmentation
from hf_dr.text import progress_bar
from hf_dr.version import __version__
from hf_dr.views.images import as_tensor, decode_row
from hf_dr.views.ops.geometry import CenterCrop, Resize

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelInput:
    """How a model takes an image: resized so that the centre crop of `size` keeps the share `crop`; None squashes it."""

    size: tuple[int, int]
    crop: float | None
    interpolation: str

    def __call__(self, image: PIL.Image.Image, whole: bool = False) -> torch.Tensor:
        """Returns uint8 pixels (3, *size); `whole` leaves nothing out of a square image."""
        crop = 1.0 if whole and self.crop is not None else self.crop
        return as_tensor(evaluation_augmentation(self.size, crop, self.interpolation).apply(image, {}))


class Model(NamedTuple):
    """A checkpoint under the name that the table shows."""

    name: str
    member: Member
    input: ModelInput
    weights: str | None  # of the files in its folder, if it has one: `digest_of_weights`

    def told(self) -> dict[str, Any]:
        """Returns what it is in JSON types."""
        evaluation = dataclasses.asdict(self.input)
        return {**self.member.provenance(), "weights_of_files": self.weights, "evaluation": evaluation}


def run_evaluation(
    config: EvaluateConfig,
    unfinished: Unfinished | None = None,
    *,
    sets: Sequence[EvaluationSet] | None = None,
    loaded: Mapping[str, Member] | None = None,
) -> Report:
    """Evaluates every model on every set; writes nothing but what is unfinished.

    Args:
        config: What is evaluated.
        unfinished: Keeps the metrics on corrupted images, which take most of the time, should the rest be stopped.
        sets: Evaluates on these sets instead of those that `config` names.
        loaded: Models that need not be loaded, by name.

    Raises:
        ConfigError: A name is unknown or stands twice, or a model's classes are not the set's.
        DataError: A set cannot be loaded, or lacks a column or labels.
        TeacherError: A model cannot be loaded.
    """
    warm_up_kernels()
    if find_device(config.device).type == "cpu":
        keep_freed_memory()
    specs = checked_sets(config, sets)
    first_corruption = config.corruption_keys()[0]
    opened = [open_set(spec.part(*first_corruption) if spec.published_corrupted else spec, config) for spec in specs]
    models = _load_models(config, loaded or {})
    logger.info("The models compute on %s.", find_device(config.device))
    # All classes are compared before the first image is read.
    classifiers = [[_classifier(model, images, config) for model in models] for images in opened]
    results: list[Result] = []
    for spec, images, answering in zip(specs, opened, classifiers, strict=True):
        if not spec.published_corrupted:
            results += _clean(images, answering, models, config)
        if spec.published_corrupted or spec.name in config.corrupt:
            results += _corrupted(spec, images, answering, models, config, unfinished or Unfinished())
    return Report(
        results,
        settings=dataclasses.asdict(config),
        models={model.name: model.told() for model in models},
        sets={
            spec.name: dataclasses.replace(spec, label=images.spec.label).to_dict()
            for spec, images in zip(specs, opened, strict=True)
        },
    )


def checked_sets(config: EvaluateConfig, given: Sequence[EvaluationSet] | None = None) -> list[EvaluationSet]:
    """Returns the sets that are named, or those given, without opening any.

    Raises:
        ConfigError: One is misnamed, or none can be corrupted.
    """
    specs = [parse_set(text) for text in config.sets] if given is None else list(given)
    _refuse_twice("set", [spec.name for spec in specs])
    clean = [spec.name for spec in specs if not spec.published_corrupted]
    for name in config.corrupt:
        if name not in clean:
            raise ConfigError(f"`corrupt` must name sets with clean images, got `{name}`.{did_you_mean(name, clean)}")
    nothing_corrupted = not config.corrupt and len(clean) == len(specs)
    if (config.corruptions or config.severities) and nothing_corrupted:
        raise ConfigError("`corruptions` and `severities` need a set to corrupt, got none. Name it with `corrupt`.")
    return specs


def _clean(images: Images, classifiers: list[Teacher], models: list[Model], config: EvaluateConfig) -> Iterator[Result]:
    """Yields each model's result on the images as they are."""
    name, labels = images.spec.name, images.labels
    answers = _Pass(images, models, config, name).logits(classifiers)
    for model, logits_BC in zip(models, answers, strict=True):
        metrics = classification_metrics(logits_BC, labels)
        if len(labels) > 1:  # one half is calibrated by the other
            metrics[CALIBRATED_ECE] = calibrated_ece(logits_BC, labels)
            metrics["temperature"] = fit_temperature(logits_BC, labels, MEASURED_TEMPERATURES)
        diagram = reliability(logits_BC, labels)
        metrics[ECE_BY_CHANCE] = diagram.ece_by_chance
        hits = logits_BC.argmax(axis=-1) == labels
        yield Result(model.name, name, len(images.rows), metrics, diagram, hits=hits)


def _corrupted(
    spec: EvaluationSet,
    images: Images,
    classifiers: list[Teacher],
    models: list[Model],
    config: EvaluateConfig,
    unfinished: Unfinished,
) -> Iterator[Result]:
    """Yields each model's result on corrupted images, published or made here."""
    grids: list[dict[str, dict[int, dict[str, float]]]] = [{} for _ in models]
    published = spec.published_corrupted
    clean = None if published else hash_of_set(images)
    for name, severity in config.corruption_keys():
        part = open_set(spec.part(name, severity), config) if published else images
        set_hash = clean or hash_of_set(part)
        corruption = None if published else (name, severity)
        keys = [_key(model, set_hash, corruption, config) for model in models]
        missing = [n for n, key in enumerate(keys) if key not in unfinished.metrics]
        if missing:
            label = f"{spec.name} {name} {severity}"
            passed = _Pass(part, [models[n] for n in missing], config, label, corruption=corruption, whole=published)
            answers = passed.logits([classifiers[n] for n in missing])
            measured = [classification_metrics(logits_BC, part.labels) for logits_BC in answers]
            unfinished.keep(dict(zip([keys[n] for n in missing], measured, strict=True)))
        for grid, key in zip(grids, keys, strict=True):
            grid.setdefault(name, {})[severity] = unfinished.take(key)
    for model, grid in zip(models, grids, strict=True):
        cells = [metrics for severities in grid.values() for metrics in severities.values()]
        means = {key: float(np.mean([metrics[key] for metrics in cells])) for key in cells[0]}
        yield Result(model.name, spec.name, len(images.rows), means, by_corruption=grid)


def hash_of_set(images: Images) -> str:
    """Returns the hash of what tells a set from others."""
    return hash_of(
        {
            "images": content_hash(images.undecoded),
            "rows": images.rows.tolist(),
            "labels": images.labels.tolist(),
            "classes": images.class_names or images.spec.classes,
        }
    )


def _key(model: Model, set_hash: str, corruption: tuple[str, int] | None, config: EvaluateConfig) -> str:
    """Returns the hash of what determines the metrics of a model on a set, corrupted here unless `corruption` is None."""
    determining = {
        "model": model.member.provenance(),
        "names": model.member.labels,
        "input": dataclasses.asdict(model.input),
        "set": set_hash,
        "corruption": None if corruption is None else [*corruption, config.seed],
        "device": find_device(config.device).type,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "hf_dr": __version__,
    }
    return hash_of(determining)


# ImageNet-C was made from images whose shorter side was resized to 256 pixels, of which the centre of 224 was kept; smaller
# images are corrupted as they are.
_CORRUPTED_FROM = 256
_CORRUPTED_SIDE = 224


class _Pass(torch.utils.data.Dataset):
    """One pass over a set for all models: item i holds, for each distinct model input, the uint8 pixels of row `rows[i]`.

    Args:
        images: The set.
        models: All that are evaluated.
        config: Batches, workers and the seed of the corruptions.
        label: What the progress bar and errors call the pass.
        corruption: The corruption to apply to the images; None leaves them as they are.
        whole: Whether the images were cropped already, so that the models' own crops leave nothing out.
    """

    def __init__(
        self,
        images: Images,
        models: Sequence[Model],
        config: EvaluateConfig,
        label: str,
        *,
        corruption: tuple[str, int] | None = None,
        whole: bool = False,
    ) -> None:
        self._undecoded = images.undecoded
        self._rows = images.rows
        self._config = config
        self._label = label
        self._corruption = corruption
        self._whole = whole
        # Models that take images alike share the pixels.
        self._inputs = list(dict.fromkeys(model.input for model in models))
        self._input_of = [self._inputs.index(model.input) for model in models]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        row = int(self._rows[index])
        (cell,) = self._undecoded[row].values()
        image = decode_row(cell, f"row {row} of `{self._label}`")
        whole = self._whole
        if self._corruption is not None:
            if min(image.size) >= _CORRUPTED_FROM:
                image = CenterCrop(_CORRUPTED_SIDE).apply(Resize(_CORRUPTED_FROM).apply(image, {}), {})
                whole = True
            image = corrupt(image, *self._corruption, corruption_rng(self._config.seed, row, *self._corruption))
        return [model_input(image, whole) for model_input in self._inputs]

    def logits(self, classifiers: Sequence[Teacher]) -> list[np.ndarray]:
        """Returns the answers (B, C) of each model to all rows, float32, in their order."""
        batches: list[list[np.ndarray]] = [[] for _ in classifiers]
        config = self._config
        loader = quiet_loader(self, batch_size=config.batch_size, num_workers=config.num_workers)
        for inputs in progress_bar(loader, desc=self._label, unit="batch", leave=False):
            for classifier, number, own in zip(classifiers, self._input_of, batches, strict=True):
                own.append(classifier(inputs[number]).cpu().numpy())
        answers = [np.concatenate(own) for own in batches]
        for classifier, logits_BC in zip(classifiers, answers, strict=True):
            if not np.isfinite(logits_BC).all():
                raise TeacherError(
                    f"the answers of {classifier.members[0].id} to `{self._label}` must be finite, found NaN or infinity: its "
                    "training diverged, or its numbers are too large for fp16. Try --precision fp32, or leave it out."
                )
        return answers


def _load_models(config: EvaluateConfig, loaded: Mapping[str, Member]) -> list[Model]:
    named = [named_model(text) for text in config.models]
    _refuse_twice("model", [name for name, _ in named])
    chosen: dict[str, Any] = {name: tuple(getattr(config, name)) for name in ("mean", "std") if getattr(config, name)}
    fallback = None
    if config.size is not None:
        chosen["size"] = (config.size, config.size)
        usual = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "interpolation": "bilinear"}
        fallback = Preprocessing(**(usual | chosen))
    models = []
    for name, place in named:
        weights = None if name in loaded else digest_of_weights(expanded(place))
        member = loaded[name] if name in loaded else load_member(place, card=False, fallback=fallback)
        own = dataclasses.replace(member.preprocessing, **chosen)
        member = dataclasses.replace(member, preprocessing=own)
        check_member(member)
        crop = member.crop if config.crop is None else config.crop
        models.append(Model(name, member, ModelInput(own.size, crop, own.interpolation), weights))
    return models


def _classifier(model: Model, images: Images, config: EvaluateConfig) -> Teacher:
    """Returns the model, answering over the set's classes as a teacher does over a dataset's; a ConfigError if it cannot."""
    spec = images.spec
    classes = model.member.num_classes
    over = partial(Teacher, [model.member], device=config.device, precision=config.precision)
    if spec.classes is not None:
        return over(classes=_imagenet_classes(model, spec, imagenet_synsets(spec.classes)))
    if images.class_names is not None:
        classifier = _over_names(images.class_names, model, spec, over)
        found = f"{len(images.class_names)} names"
    else:
        last = images.labels.max()
        classifier = over() if last < classes else None
        found = f"labels up to {last}"
    if classifier is None:
        raise ConfigError(
            f"`{model.name}` must answer over the classes of `{spec.name}` ({found}), found {classes} classes. Leave one of "
            "the two out; for a subset of ImageNet, name it: ,classes=imagenet-a."
        )
    return classifier


def _imagenet_classes(model: Model, spec: EvaluationSet, synsets: Sequence[str]) -> list[int] | None:
    """Returns which of ImageNet's classes a set's are, or None for a model that has these only."""
    classes = model.member.num_classes
    if classes not in (1000, len(synsets)):
        subset = f" or the {len(synsets)} of {spec.classes}" if len(synsets) < 1000 else ""
        raise ConfigError(
            f"`{model.name}` must have the 1000 classes of ImageNet{subset} for `{spec.name}`, found {classes}. Leave one of "
            "the two out."
        )
    if classes == len(synsets):
        return None
    thousand = {synset: c for c, synset in enumerate(imagenet_synsets("imagenet"))}
    return [thousand[synset] for synset in synsets]


def _over_names(
    names: Sequence[str], model: Model, spec: EvaluationSet, over: Callable[..., Teacher]
) -> Teacher | None:
    """Returns a model over its classes as they are, or else by name: in another order, or a subset; None if it lacks them."""
    for classes in (None, names):
        try:
            classifier = over(classes=classes)
            classifier.check_classes(names, "name the set's classes as the model does")
        except TeacherError as error:
            logger.debug("%s on %s: %s", model.name, spec.name, error)
            continue
        if len(names) < model.member.num_classes:
            logger.warning(
                "`%s` names %d of the %d classes of `%s`: the others are left out of its answers, so that it cannot take an "
                "image for one of them. Its numbers are better than over all classes.",
                spec.name,
                len(names),
                model.member.num_classes,
                model.name,
            )
        return classifier
    return None


def _refuse_twice(kind: str, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"each {kind} must have its own name, but `{twice}` stands there twice. Write NAME=... for it."
        )

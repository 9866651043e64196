"""Sets of labelled images to evaluate on: by name, with presets for ImageNet's relatives."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np

from hf_dr.errors import ConfigError, DataError, did_you_mean
from hf_dr.evaluation.run import EvaluateConfig
from hf_dr.store.base_dataset import load_base
from hf_dr.teacher.members import imagenet_synsets


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled images: where they are and how they are read.

    `{corruption}` and `{severity}` in `dataset`, `config` or `split` stand for the parts of a set that was published
    corrupted, like ImageNet-C: centre crops of 224 pixels, which are not cropped again.

    Attributes:
        name: What the table calls it.
        dataset: Hub id, Parquet file, folder of Parquet files or images, or saved Dataset.
        split: Its split.
        config: Its configuration, where it has several.
        image: Column of the images; None for the only one that there is.
        label: Column of the labels: class numbers, or WordNet ids where `classes` is given.
        classes: `imagenet`, `imagenet-a` or `imagenet-r`: its classes, a subset of ImageNet's for the latter two.
    """

    name: str
    dataset: str
    split: str = "test"
    config: str | None = None
    image: str | None = None
    label: str = "label"
    classes: str | None = None

    @property
    def published_corrupted(self) -> bool:
        return any("{corruption}" in (part or "") for part in (self.dataset, self.config, self.split))

    def part(self, corruption: str, severity: int) -> EvaluationSet:
        """Returns the images of one corruption and severity."""

        def fill(text: str) -> str:
            return text.replace("{corruption}", corruption).replace("{severity}", str(severity))

        config = None if self.config is None else fill(self.config)
        return dataclasses.replace(self, dataset=fill(self.dataset), split=fill(self.split), config=config)


PRESETS = {
    preset.name: preset
    for preset in (
        EvaluationSet("imagenet", "ILSVRC/imagenet-1k", "validation", classes="imagenet"),
        EvaluationSet("imagenet-v2", "clip-benchmark/wds_imagenetv2", label="cls", classes="imagenet"),
        EvaluationSet("imagenet-r", "axiong/imagenet-r", label="wnid", classes="imagenet-r"),
        EvaluationSet("imagenet-a", "barkermrl/imagenet-a", "train", classes="imagenet-a"),
        EvaluationSet("imagenet-sketch", "clip-benchmark/wds_imagenet_sketch", label="cls", classes="imagenet"),
        EvaluationSet("imagenet-c", "WNJXYK/TTA-ImageNet-C", "severity_{severity}", "{corruption}", classes="imagenet"),
    )
}
"""Sets that can be named without saying where they are. ImageNet-V2 is its matched-frequency part."""


_CLASS_LISTS = ("imagenet", "imagenet-a", "imagenet-r")


_OPTIONS = ("config", "image", "label", "classes")


def parse_set(text: str) -> EvaluationSet:
    """Reads `NAME=DATASET[:SPLIT][,OPTION=VALUE]...`, or the name of a preset.

    What is not given is taken from the preset of that name, if there is one: `imagenet-a=FOLDER:test` is a copy of it.

    Raises:
        ConfigError: It is neither.
    """
    head, *options = text.split(",")
    name, equals, place = head.partition("=")
    if not equals and name not in PRESETS:
        raise ConfigError(
            f"a set must be NAME=DATASET[:SPLIT][,OPTION=VALUE] or a preset, got {text!r}.{did_you_mean(name, PRESETS)}"
        )
    if not re.fullmatch(r"[\w.-]+", name) or (equals and not place):
        raise ConfigError(
            f"a set must have a name of letters, digits, `.`, `_` or `-` and a dataset, got {text!r}. "
            "Write NAME=DATASET[:SPLIT]."
        )
    given: dict[str, Any] = {}
    if equals:
        given["dataset"], colon, split = place.partition(":")
        given.update({"split": split} if colon else {})
        given.update({"config": None} if "{corruption}" in given["dataset"] else {})
    for option in options:
        key, equals, value = option.partition("=")
        if key not in _OPTIONS or not value:
            raise ConfigError(f"set `{name}` has the unknown option {option!r}.{did_you_mean(key, _OPTIONS)}")
        given[key] = value
    if given.get("classes", "imagenet") not in _CLASS_LISTS:
        raise ConfigError(
            f"`classes` of set `{name}` must be one of {', '.join(_CLASS_LISTS)}, got {given['classes']!r}."
            f"{did_you_mean(given['classes'], _CLASS_LISTS)}"
        )
    preset = PRESETS.get(name)
    return dataclasses.replace(preset, **given) if preset else EvaluationSet(name, **given)


class Images(NamedTuple):
    """A set, opened: `rows` of it are evaluated; `labels` are class numbers of the set, for these rows."""

    spec: EvaluationSet
    dataset: datasets.Dataset
    rows: np.ndarray
    labels: np.ndarray
    class_names: list[str] | None


def _open(spec: EvaluationSet, config: EvaluateConfig) -> Images:
    """Loads a set and checks its columns and labels."""
    dataset, _ = load_base(spec.dataset, spec.config, split=spec.split, files_from=config.files_from)
    pictures = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
    if spec.image is None and len(pictures) != 1:
        raise DataError(
            f"set `{spec.name}` must have one image column, found {', '.join(pictures) or 'none'} among "
            f"{', '.join(dataset.column_names)}. Name it: ,image=COLUMN."
        )
    spec = dataclasses.replace(spec, image=spec.image or pictures[0])
    for option, name in (("image", spec.image), ("label", spec.label)):
        if name not in dataset.column_names:
            raise DataError(
                f"set `{spec.name}` must have the {option} column `{name}`.{did_you_mean(str(name), dataset.column_names)} "
                f"Name it: ,{option}=COLUMN."
            )
    if not len(dataset):
        raise DataError(f"set `{spec.name}` must have examples, found none.")
    labels, class_names = _read_labels(dataset, spec)
    count = min(len(dataset), config.max_examples or len(dataset))
    rows = np.arange(count) * len(dataset) // count  # a sorted set keeps its mix of classes
    return Images(spec, dataset.with_format(None), rows, labels[rows], class_names)


def _read_labels(dataset: datasets.Dataset, spec: EvaluationSet) -> tuple[np.ndarray, list[str] | None]:
    """Returns all labels as class numbers of the set, int64, and its class names where they have to be compared."""
    values = dataset.select_columns([spec.label]).with_format("arrow")[:].column(spec.label).to_numpy()
    names: list[str] | None = getattr(dataset.features[spec.label], "names", None)
    is_number = np.issubdtype(values.dtype, np.integer)
    if is_number and values.min() < 0:
        raise DataError(
            f"set `{spec.name}` must have labels, found {values.min()} in `{spec.label}`: this split has none."
        )
    if spec.classes is None:
        if not is_number:
            raise DataError(
                f"column `{spec.label}` of set `{spec.name}` must hold class numbers, found {values.dtype} such as "
                f"{values[0]!r:.60}. Name another column: ,label=COLUMN."
            )
        return values.astype(np.int64), names
    synsets = imagenet_synsets(spec.classes)
    if is_number and names is not None and all(re.fullmatch(r"n\d{8}", name) for name in names):
        values, is_number = np.array(names, object)[values], False
    if is_number:
        count = len(names) if names is not None else int(values.max()) + 1
        if count == len(synsets) or (names is None and count < len(synsets)):
            return values.astype(np.int64), None
        if count > 1000 or (names is not None and count < 1000):
            raise DataError(
                f"set `{spec.name}` must have the {len(synsets)} classes of {spec.classes}, found {count}. Check `classes`."
            )
        values = np.array(imagenet_synsets("imagenet"), object)[values]
    number = {synset: c for c, synset in enumerate(synsets)}
    strange = [value for value in np.unique(values) if value not in number]
    if strange:
        raise DataError(
            f"labels of set `{spec.name}` must be the {len(synsets)} classes of {spec.classes}, by number or WordNet id, found "
            f"{strange[0]!r}. Check `label` and `classes`."
        )
    return np.array([number[value] for value in values], np.int64), None

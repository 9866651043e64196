"""The images and labels of an evaluation set, opened and checked."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from timm.data import ImageNetInfo

from hf_dr.errors import DataError, did_you_mean
from hf_dr.evaluation.config import EvaluateConfig
from hf_dr.evaluation.sets import EvaluationSet
from hf_dr.store.base_dataset import load_base, undecoded_images, whole_column
from hf_dr.store.labels import image_columns, label_advice, label_columns, read_labels, refuse_transform
from hf_dr.teacher.members import imagenet_synsets

logger = logging.getLogger(__name__)


class Images(NamedTuple):
    """A set, opened: `rows` of its undecoded images are evaluated; `labels` are class numbers of the set, for these rows.

    `spec` names the column of the labels.
    """

    spec: EvaluationSet
    undecoded: datasets.Dataset
    rows: np.ndarray
    labels: np.ndarray
    class_names: list[str] | None


def open_set(spec: EvaluationSet, config: EvaluateConfig) -> Images:
    """Loads a set and checks its columns and labels."""
    dataset = spec.loaded
    if dataset is not None:
        refuse_transform(dataset)
    else:
        dataset, _ = load_base(
            spec.dataset, spec.config, split=spec.split, revision=spec.revision, files_from=config.files_from
        )
    if spec.note:
        logger.warning("%s (%s): %s.", spec.name, spec.dataset, spec.note)
    pictures = image_columns(dataset.features)
    if spec.image is None and len(pictures) != 1:
        raise DataError(
            f"set `{spec.name}` must have one image column, found {', '.join(pictures) or 'none'} among "
            f"{', '.join(dataset.column_names)}. {spec.how_to_name('image')}"
        )
    image = spec.image or pictures[0]
    known = label_columns(dataset.features)
    label = spec.label or (known[0] if len(known) == 1 else "label")  # as `reinforce` and `teach` choose it
    for option, name in (("image", image), ("label", label)):
        if name not in dataset.column_names:
            advice = f"{did_you_mean(name, dataset.column_names).strip()} {spec.how_to_name(option)}"
            if option == "label" and image in pictures:
                advice = label_advice(dataset, image, advice)
            raise DataError(f"set `{spec.name}` must have the {option} column `{name}`. {advice}")
    if not len(dataset):
        raise DataError(f"set `{spec.name}` must have examples, found none. Take another split.")
    try:
        undecoded = undecoded_images(dataset, image)
    except (pa.ArrowException, TypeError) as error:
        raise DataError(
            f"column `{image}` of set `{spec.name}` must hold images, found {dataset.features[image]}. "
            f"{spec.how_to_name('image')}"
        ) from error
    labels, class_names = _read_labels(dataset, label, spec)
    if class_names is not None and len(class_names) < 2:
        raise DataError(
            f"set `{spec.name}` must have at least 2 classes, found only {class_names}: every answer would be right. Give all "
            "classes of the dataset their names, also those without images here."
        )
    count = min(len(dataset), config.max_examples or len(dataset))
    rows = np.arange(count) * len(dataset) // count  # a sorted set keeps its mix of classes
    return Images(replace(spec, label=label), undecoded, rows, labels[rows], class_names)


def _read_labels(dataset: datasets.Dataset, label: str, spec: EvaluationSet) -> tuple[np.ndarray, list[str] | None]:
    """Returns all labels as class numbers of the set, int64, and its class names where they have to be compared."""
    is_number = pa.types.is_integer(dataset.features.arrow_schema.field(label).type)
    if is_number:
        # How many classes there are without names is compared with each model: see `run_evaluation`.
        name = f"the labels `{label}` of set `{spec.name}`"
        values, names = read_labels(dataset, label, name, "Take a split that has labels.")
    else:
        values, names = whole_column(dataset, label).to_numpy(), None
    if spec.classes is not None:
        return _imagenet_numbers(values, names, spec), None
    if not is_number:
        raise DataError(
            f"column `{label}` of set `{spec.name}` must hold class numbers, found {values.dtype} such as "
            f"{values[0]!r:.60}. {spec.how_to_name('label')}"
        )
    return values, names


def _check_order(names: list[str], synsets: list[str], spec: EvaluationSet) -> None:
    """Refuses classes of ImageNet that are named in words, in another order than that of their numbers."""
    info = ImageNetInfo()
    words = [{part.strip().lower() for part in str(info.label_name_to_description(s)).split(",")} for s in synsets]
    known = set().union(*words)
    said = [{part.strip().lower().replace("_", " ") for part in name.split(",")} for name in names]
    recognised = [c for c, own in enumerate(said) if own & known]
    elsewhere = [c for c in recognised if not said[c] & words[c]]
    # Lists of names differ in a few; another order moves nearly all of them.
    if len(elsewhere) > 0.1 * len(recognised):
        c = elsewhere[0]
        raise DataError(
            f"the classes of set `{spec.name}` must be in the order of {spec.classes}, but class {c} is {names[c]!r} there, "
            f"and {min(words[c])!r} in {spec.classes}. Name them by their WordNet ids, or leave `classes` out."
        )


def _imagenet_numbers(values: np.ndarray, names: list[str] | None, spec: EvaluationSet) -> np.ndarray:
    """Returns labels as numbers of the classes of `spec`, int64 (rows,).

    They may be numbers, of the set's own classes or of ImageNet's 1,000, or WordNet ids.
    """
    synsets = imagenet_synsets(str(spec.classes))
    is_number = np.issubdtype(values.dtype, np.integer)
    if is_number and names is not None and all(re.fullmatch(r"n\d{8}", name) for name in names):
        values = np.array(names, object)[values]
    elif is_number:
        count = len(names) if names is not None else int(values.max()) + 1
        if count == len(synsets) or (names is None and count < len(synsets)):
            if names is not None:
                _check_order(names, synsets, spec)
            return values  # the set's own classes
        if count > 1000 or (names is not None and count < 1000):
            raise DataError(
                f"set `{spec.name}` must have the {len(synsets)} classes of {spec.classes}, found {count}. Check `classes`."
            )
        values = np.array(imagenet_synsets("imagenet"), object)[values]
    number = {synset: c for c, synset in enumerate(synsets)}
    strange = [value for value in values.tolist() if not isinstance(value, str) or value not in number]
    if strange:
        raise DataError(
            f"labels of set `{spec.name}` must be the {len(synsets)} classes of {spec.classes}, by number or WordNet id, found "
            f"{strange[0]!r}. Check `label` and `classes`."
        )
    return np.array([number[value] for value in values], np.int64)

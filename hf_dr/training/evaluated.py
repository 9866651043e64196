"""What a student is evaluated on: images with labels of the classes that it learns, looked at before the training."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from hf_dr.errors import ConfigError, DataError
from hf_dr.replay.reinforced_data import ReinforcedData
from hf_dr.store.base_dataset import check_dataset, label_numbers
from hf_dr.training.students import LabelledImages, evaluation_of
from hf_dr.views.augmentation import Augmentation


def evaluation_images(dataset: datasets.Dataset, train: ReinforcedData, shown: Augmentation) -> LabelledImages:
    """Returns the images and labels of a dataset, checked against the classes of a training set.

    Args:
        dataset: With an image column and a label column: those of the training set where it has them, else its only ones.
        train: What the student learns from.
        shown: The view of each image; see `evaluation_of`.

    Raises:
        DataError: A column is missing, or a label is none of the classes.
        ConfigError: The classes have other names, or another order.
    """
    columns = (train.origin.image_column, train.origin.label_column)
    own = [name if name in dataset.column_names else None for name in columns]
    image_column, label_column = check_dataset(dataset, own[0], own[1])
    if label_column is None:
        raise DataError(
            f"`eval_dataset` must have a column of labels, found {', '.join(dataset.column_names)}. Name it `label`."
        )
    images = LabelledImages(dataset, shown, image_column=image_column, label_column=label_column)
    check_evaluation(images, train)
    return images


def check_evaluation(images: LabelledImages, train: ReinforcedData) -> None:
    """Checks the labels that a student is evaluated by.

    Raises:
        DataError: A label is none of the classes.
        ConfigError: The classes have other names, or another order.
    """
    for c, (theirs, ours) in enumerate(zip_longest(images.class_names or (), train.class_names or ())):
        # A dataset without names is not compared; where one has more classes, the other has None.
        if images.class_names and train.class_names and theirs != ours:
            raise ConfigError(
                f'`eval_dataset` must have the classes of the "+" dataset in their order, but class {c} is {theirs!r} there '
                f'and {ours!r} in the "+" dataset. Give another.'
            )
    try:
        values, bad = label_numbers(images.labels, train.num_classes)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"the labels of `eval_dataset` must be whole numbers, the places of their classes, but: {error!s:.100}. Convert "
            "them."
        ) from error
    if len(bad):
        found = ", ".join(map(str, np.unique(values[bad])[:5].tolist()))
        raise DataError(
            f"the labels of `eval_dataset` must be from 0 to {train.num_classes - 1}, but {len(bad)} of {len(values)} rows "
            f"have others ({found}; -1 is no label), the first is row {bad[0]}. Give a split with labels."
        )


def as_evaluation(given: Any, train: Any, model: Any, processor: Any) -> Any:
    """Returns what Trainer evaluates on, with each plain dataset of images made into `LabelledImages`.

    Args:
        given: `eval_dataset` as Trainer takes it: a dataset, or several by name.
        train: What the student learns from; only of `ReinforcedData` classes and size are known.
        model: The student.
        processor: The image processor that is saved with it; None where there is none.

    Raises:
        DataError: A label is none of the classes; or see `evaluation_images`.
        ConfigError: The classes have other names, or another order.
    """
    if not isinstance(train, ReinforcedData):
        return given
    if isinstance(given, dict):
        return {name: as_evaluation(one, train, model, processor) for name, one in given.items()}
    if isinstance(given, LabelledImages):
        check_evaluation(given, train)
    elif isinstance(given, datasets.Dataset) and is_undecoded(given):
        return evaluation_images(given, train, evaluation_of(model, processor, max(train.size)))
    elif is_undecoded(getattr(given, "dataset", given)):
        raise ConfigError(
            f"`eval_dataset` must be a datasets.Dataset, or make its `pixel_values` itself, got {type(given).__name__} of "
            "undecoded images. Use `Dataset.select` for a part of a dataset, and no `streaming`."
        )
    return given


def is_undecoded(dataset: Any) -> bool:
    """Whether a dataset has images, and neither makes `pixel_values` of them nor has a transform of one's own that may."""
    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        return False
    features = dataset.features or {}  # a stream may not know its own
    transformed = isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom"
    images = any(isinstance(feature, datasets.Image) for feature in features.values())
    return images and "pixel_values" not in features and not transformed

"""The columns of a base dataset that hold images and labels, and the classes of the labels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from hf_dr.errors import ConfigError, DataError, HfDrError, did_you_mean
from hf_dr.store.base_dataset import class_names_of, undecoded_images, whole_column
from hf_dr.store.schema import TEACHER_LOGPROBS, is_reserved

logger = logging.getLogger(__name__)


def image_columns(features: datasets.Features) -> list[str]:
    """Returns the columns that hold images."""
    return [name for name, feature in features.items() if isinstance(feature, datasets.Image)]


def label_columns(features: datasets.Features) -> list[str]:
    """Returns the columns that may be the labels where none is named: `label`, else those of a ClassLabel."""
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    return ["label"] if "label" in features else classes


def refuse_transform(dataset: datasets.Dataset) -> None:
    """Refuses a dataset whose images somebody wants to be changed as they are read; a DataError."""
    if dataset.format["type"] == "custom":
        raise DataError(
            "the dataset must be without a transform, which would not be applied to the images that are read. Apply it with "
            "`dataset.map`, or leave it out: `dataset.with_format(None)`."
        )


def check_dataset(
    dataset: datasets.Dataset, image_column: str | None = None, label_column: str | None = None
) -> tuple[str, str | None]:
    """Checks the columns of the base and returns the names of the image and label columns; no image is decoded.

    Args:
        dataset: The base.
        image_column: The column of the images. Default: the only Image column.
        label_column: The column of the labels, or `none`. Default: `label`, else the only ClassLabel column.

    Raises:
        DataError: The dataset is empty, or a column is missing, ambiguous, of the wrong type or has a reserved name.
    """
    if not isinstance(dataset, datasets.Dataset):
        shown = f" ({', '.join(dataset)})" if isinstance(dataset, dict) else ""
        raise DataError(
            f"the base must be a datasets.Dataset of one split, got {type(dataset).__name__}{shown}. Load it with "
            "`datasets.load_dataset(NAME, split=SPLIT)`."
        )
    if len(dataset) == 0:
        raise DataError("the dataset must have at least one row, got none. Check its split.")
    refuse_transform(dataset)
    if TEACHER_LOGPROBS in dataset.column_names:
        raise DataError(
            f'the base must be a dataset that was not reinforced yet, but it has the column `{TEACHER_LOGPROBS}` of a "+" '
            "dataset. Give the base of that dataset, or add views or teachers to it with `hf-dr extend`."
        )
    for name in filter(is_reserved, dataset.column_names):
        raise DataError(f"the base must not have a column `{name}`: the name belongs to the reinforcement. Rename it.")
    features = dataset.features
    images = image_columns(features)
    only = images[0] if len(images) == 1 else ""
    chosen = only if image_column is None else image_column
    if chosen not in images:
        raise DataError(
            f"`image_column` must name an Image column, got {image_column!r}; Image columns: "
            f"{', '.join(images) or 'none'}. Name one, or cast it with `dataset.cast_column(name, datasets.Image())`; a "
            "command reads what `save_to_disk` then writes."
        )
    if label_column == "none":
        return chosen, None
    if label_column is None:
        known = label_columns(features)
        if not known:
            return chosen, None
        if len(known) > 1:
            raise DataError(
                f"`label_column` must name one of the columns of classes, {', '.join(known)}, got None. Name one, or pass "
                "`none`."
            )
        (label_column,) = known
    if label_column not in dataset.column_names:
        advice = did_you_mean(label_column, features).strip()
        raise DataError(
            f"`label_column` must name a column, got {label_column!r}. {label_advice(dataset, chosen, advice)}"
        )
    kind = features.arrow_schema.field(label_column).type
    if not pa.types.is_integer(kind):
        convert = f"Number names of classes with `dataset.class_encode_column({label_column!r})`"
        # As numbers in a CSV become where some are left out; taken for names, 10.0 would come before 2.0.
        if pa.types.is_floating(kind):
            convert = f"Make them whole numbers with `dataset.cast_column({label_column!r}, datasets.Value('int64'))`"
        raise DataError(
            f"`{label_column}` must hold class numbers, got {features[label_column]}. {convert}; a command reads what "
            "`save_to_disk` then writes. Or name another `label_column`, or `none`."
        )
    return chosen, label_column


def labelled_columns(
    dataset: datasets.Dataset, needs: str, name: str, image_column: str | None = None, label_column: str | None = None
) -> tuple[str, str]:
    """Same as `check_dataset`, for a dataset that must have labels; what `needs` them, and its `name`, are for the message."""
    image, label = check_dataset(dataset, image_column, label_column)
    if label is None:
        found = f"found none in {name}" if label_column is None else "got `label_column` none"
        raise ConfigError(f"{needs} labels, {found}. {label_advice(dataset, image)}")
    return image, label


def label_advice(dataset: datasets.Dataset, image_column: str, advice: str = "Name `label_column`.") -> str:
    """Returns what to do about a dataset without labels: for a folder of images, what kept `datasets` from making them.

    Args:
        dataset: The dataset as `load_dataset` returned it.
        image_column: The column of the images.
        advice: What the user of another dataset should do.
    """
    if dataset.info.builder_name != "imagefolder" or "label" in dataset.column_names:
        return advice
    if dataset.column_names != [image_column]:  # those of a metadata file
        return (
            f"{advice} `datasets` takes no folders for classes next to a metadata file: for these move the file away."
        )
    cells = undecoded_images(dataset, image_column)[image_column]
    paths = [Path(cell["path"]) for cell in cells if cell and cell["path"] and cell["bytes"] is None]
    if not paths or len(paths) < len(cells):  # images that were changed since
        return advice
    depths = Counter(len(path.parts) for path in paths)
    depth, count = depths.most_common(1)[0]
    inside = next(path for path in paths if len(path.parts) == depth)
    if count < len(paths):
        stray = next(path for path in paths if len(path.parts) != depth)
        found = f"{stray} ({len(paths) - count} such images) does not lie as deep as {inside}. Move it"
    elif len({path.parent.name for path in paths}) == 1:
        found = f"all lie in one, {inside.parent.name}. Make a folder for each class"
    else:
        found = "an image of another split does not, or there is a metadata file. Move the image, or remove that file"
    return f"`datasets` takes folders for classes only if there are two or more and all images lie equally deep, but {found}."


def read_labels(dataset: datasets.Dataset, column: str, name: str, advice: str) -> tuple[np.ndarray, list[str] | None]:
    """Returns a dataset's labels as class numbers, int64 (rows,), and the names of the classes: see `class_numbers`."""
    names = class_names_of(dataset, column)
    return class_numbers(whole_column(dataset, column), len(names) if names else None, name, advice), names


def label_numbers(labels: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Returns a column of labels, whole numbers of any width, as int64 (rows,); -1 where a row has none."""
    return labels.cast(pa.int64(), safe=False).fill_null(-1).to_numpy(zero_copy_only=False)


def class_numbers(
    labels: pa.ChunkedArray | pa.Array,
    num_classes: int | None,
    name: str,
    advice: str,
    *,
    error: type[HfDrError] = DataError,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Returns a column of labels as class numbers, int64 (rows,); each row must have one of the classes.

    Args:
        labels: The labels as they are stored.
        num_classes: How many classes there are; None where nobody knows.
        name: What the labels are called in messages.
        advice: What to do about rows without one of the classes.
        error: What is raised if there are such rows.
        rows: The number of each row; by default they are counted from 0.

    Raises:
        HfDrError: Labels are no whole numbers, or a row has none, or one that is none of the classes.
    """
    if not pa.types.is_integer(labels.type):
        raise error(f"{name} must be whole numbers, the places of their classes, found {labels.type}. Convert them.")
    values = label_numbers(labels)
    is_bad = values < 0
    if num_classes is not None:
        is_bad |= values >= num_classes
    bad = np.flatnonzero(is_bad)
    if len(bad):
        found = labels[int(bad[0])].as_py()
        shown = {None: "none", -1: "-1, which is no label,"}.get(found, found)
        expected = "from 0 upwards" if num_classes is None else f"from 0 to {num_classes - 1}"
        row = bad[0] if rows is None else rows[bad[0]]
        raise error(
            f"{name} must be {expected} in every row, found {shown} in row {row} ({len(bad)} such rows). {advice}"
        )
    return values


def check_class_names(
    theirs: Sequence[str] | None, ours: Sequence[str] | None, setting: str, error: type[HfDrError]
) -> None:
    """Raises an `error` where the dataset that `setting` names has other classes than the "+" dataset, and both have names."""
    pairs = zip_longest(theirs, ours) if theirs and ours else ()
    for c, (there, here) in enumerate(pairs):  # where one has more classes, the other has None
        if there != here:
            raise error(
                f'`{setting}` must have the classes of the "+" dataset in their order, but class {c} is {there!r} there and '
                f'{here!r} in the "+" dataset. Give another.'
            )

"""Which row of the base is image i of ml-dr, and whether what ml-dr stored fits it: boxes inside its images, partners among
them, answers that agree with its labels."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, cast

import datasets
import numpy as np
import PIL.ExifTags
import PIL.Image

from hf_dr.errors import ConfigError, DataError
from hf_dr.files import expanded
from hf_dr.generation.ml_dr.files import Columns, expect
from hf_dr.processes import num_cores
from hf_dr.store.json_files import shown
from hf_dr.store.schema import AUG_PREFIX, TEACHER_IDS
from hf_dr.text import progress_bar
from hf_dr.views.augmentation import NO_PARTNER, PARTNER, Augmentation
from hf_dr.views.images import decode_with
from hf_dr.views.ops.geometry import RandomCrop, RandomErasing, RandomResizedCrop, Resize
from hf_dr.views.ops.mixing import CutMix

logger = logging.getLogger(__name__)

# Agreement with the labels that is asked for: a quarter of the way from chance to perfect. Wrong orders stay at chance.
_MIN_AGREEMENT = 0.25
LABELLED_ROWS = 2048  # after this many rows the labels are looked at for the first time
_SIZES_AT_ONCE = 1024  # images


def find_rows(order: str, images: datasets.Dataset) -> np.ndarray:
    """Returns the row of the base for each image number of ml-dr, int64 (rows,); see `ImportConfig.order`.

    Raises:
        ConfigError: The file cannot be read or is no such list.
        DataError: The base's images have no paths, or not those of the file.
    """
    count = len(images)
    if order == "position":
        return np.arange(count)
    if order == "imagefolder":
        names = [_imagefolder_name(path) for path in _paths(images)]
        if None in names or len(set(names)) < count:
            found = f"none in row {names.index(None)}" if None in names else "two images of one name"
            raise DataError(
                f"`order=imagefolder` needs the class folder and the file name of each image, found {found}. Pass `order` as a "
                "file with the row or file name of each image."
            )
        return np.array(sorted(range(count), key=lambda row: cast(tuple[str, str], names[row])))
    entries = _read_order(expanded(order))
    if len(entries) != count:
        raise DataError(f"{order} must name {count} images, as many as the base has, found {len(entries)}.")
    if all(isinstance(entry, int) for entry in entries):
        rows = np.array(entries)
        if not np.array_equal(np.sort(rows), np.arange(count)):
            raise DataError(f"{order} must name each row from 0 to {count - 1} once, found others or some twice.")
        return rows
    # Names may have fewer folders than the base's paths: as many parts are compared as the first name has.
    row_of: dict[str, int] = {}
    depth = len(PurePosixPath(str(entries[0])).parts)
    for row, path in enumerate(_paths(images)):
        row_of["/".join(PurePosixPath(path or "").parts[-depth:])] = row
    try:
        rows = np.array([row_of["/".join(PurePosixPath(str(entry)).parts)] for entry in entries])
    except KeyError as error:
        raise DataError(
            f"{order} names {error}, which no image of the base is called, e.g. {next(iter(row_of))!r:.80}. Write the names "
            "as the base has them, or row numbers."
        ) from None
    if len(set(rows.tolist())) < count:
        raise DataError(f"{order} must name each image of the base once, found some twice. Write row numbers.")
    return rows


def _paths(images: datasets.Dataset) -> Iterator[str | None]:
    (column,) = images.column_names
    for batch in images.with_format("arrow").iter(1024):
        for chunk in batch[column].chunks:  # the bytes next to the paths stay on disk
            yield from chunk.field("path").to_pylist()


def _imagefolder_name(path: str | None) -> tuple[str, str] | None:
    """(class folder, file name). ILSVRC/imagenet-1k has no folders: there n01440764_10026_n01440764.JPEG was
    n01440764/n01440764_10026.JPEG."""
    place = PurePosixPath(path or "")
    if place.parent.name:
        return place.parent.name, place.name
    moved = re.fullmatch(r"(.+)_(n\d{8})(\.\w+)", place.name)
    return (moved[2], moved[1] + moved[3]) if moved else None


def _read_order(path: Path) -> list[int | str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"`order` must be position, imagefolder or a text file, but {str(path)!r}: {error}. Check the path."
        ) from error
    entries: Any
    if text.lstrip().startswith("["):
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} must be a JSON list or plain lines, but: {error}. Fix it.") from error
    else:
        entries = [line.strip() for line in text.split("\n") if line.strip()]
        if all(line.isascii() and line.isdigit() for line in entries):
            entries = [int(line) for line in entries]
    if not entries or {type(entry) for entry in entries} not in ({int}, {str}):
        raise ConfigError(f"{path} must hold row numbers or file names, one for each image, found {shown(entries)}.")
    return entries


def image_sizes(images: datasets.Dataset, known: np.ndarray | None = None) -> np.ndarray:
    """Returns (height, width) of each undecoded image, int64 (rows, 2); zeros where the image cannot be used.

    Given what an earlier call returned, it reads only the images that could not be used then: they may have been repaired.
    """
    (column,) = images.column_names

    def size_of(row: int) -> tuple[int, int]:
        with contextlib.suppress(DataError):
            return decode_with(images[row][column], _size)
        return 0, 0

    sizes = np.zeros((len(images), 2), np.int64) if known is None else known.copy()
    unread = np.flatnonzero(sizes[:, 0] == 0)
    there = len(images) - len(unread)
    with (
        ThreadPoolExecutor(num_cores()) as pool,
        progress_bar(total=len(images), initial=there, desc="reading the base's images", unit="image") as bar,
    ):
        for start in range(0, len(unread), _SIZES_AT_ONCE):
            rows = unread[start : start + _SIZES_AT_ONCE]
            sizes[rows] = list(pool.map(size_of, rows.tolist()))
            bar.update(len(rows))
    unusable = int((sizes[:, 0] == 0).sum())
    if unusable == len(sizes):
        raise DataError("the base must have images that can be decoded, found none. Check `image_column`.")
    if unusable:
        logger.warning(
            "%d images of the base are undecodable or turned by EXIF, and stay without reinforcement.", unusable
        )
    return sizes


def _size(image: PIL.Image.Image) -> tuple[int, int]:
    """Returns (height, width) of an image that can be decoded to its end; zeros where EXIF turns it."""
    image.load()
    orientation = image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
    return (0, 0) if orientation in range(2, 9) else (image.height, image.width)


def fit_to_base(
    columns: Columns, row: int, where: str, augmentation: Augmentation, row_of: np.ndarray, sizes: np.ndarray
) -> Columns:
    """Checks the columns of a row's file against the base, and turns the partners' numbers into rows.

    Views that mix in an image that cannot be used are replaced by others of the row. `row_of` and `sizes` are what `find_rows`
    and `image_sizes` return; `where` names the file in messages.

    Raises:
        DataError: A box lies outside its image, or a partner is none of the base's images.
        FormatError: Every view mixes in an image that cannot be used.
    """
    own_sizes = np.broadcast_to(sizes[row], (len(columns[TEACHER_IDS]), 2))
    _check_boxes(augmentation, columns, "", own_sizes, where)
    if not augmentation.mixes:
        return columns
    numbers = columns[AUG_PREFIX + PARTNER]
    if numbers.max() >= len(row_of):
        raise DataError(
            f"{where} mixes in image {numbers.max()}, but the base has {len(row_of)}. Is it another dataset or split?"
        )
    mixed = np.flatnonzero(numbers >= 0)
    partners = np.full(len(numbers), NO_PARTNER)
    partners[mixed] = row_of[numbers[mixed]]
    columns[AUG_PREFIX + PARTNER] = partners
    usable = np.ones(len(numbers), bool)
    usable[mixed] = sizes[partners[mixed], 0] > 0
    fitting = mixed[usable[mixed]]
    part = {name: values[fitting] for name, values in columns.items()}
    _check_boxes(augmentation, part, f"{PARTNER}_", sizes[partners[fitting]], f"{where}, a partner")
    if usable.all():
        return columns
    good = np.flatnonzero(usable)
    expect(len(good) > 0, where, "have a view whose partner can be decoded", "none", "Fix the base's images.")
    take = np.arange(len(numbers))
    take[~usable] = np.resize(good, int((~usable).sum()))
    return {name: values[take] for name, values in columns.items()}


def _check_boxes(augmentation: Augmentation, columns: Columns, prefix: str, sizes_V2: np.ndarray, where: str) -> None:
    """Follows the size through the ops; a box outside the image betrays a wrong order, or a base of another size."""
    size: Any = sizes_V2
    for op in augmentation.ops:
        name = f"{AUG_PREFIX}{prefix}{op.name}_"
        fixed = op.output_size(None)
        if isinstance(op, (RandomResizedCrop, RandomErasing)):
            _check_box(columns[f"{name}box"], size, where, empty=isinstance(op, RandomErasing))
        elif isinstance(op, CutMix) and not prefix:
            _check_box(columns[f"{name}box"], size, where)
        elif isinstance(op, RandomCrop):
            view = np.broadcast_to(np.array(fixed), size.shape)
            _check_box(np.hstack([columns[f"{name}offset"], view]), size + 2 * op.padding, where)
        if fixed is not None:
            size = np.broadcast_to(np.array(fixed), sizes_V2.shape)
        elif isinstance(op, Resize):
            size = np.array([op.output_size((int(h), int(w))) for h, w in size]).reshape(sizes_V2.shape)


def _check_box(boxes: np.ndarray, sizes: np.ndarray, where: str, *, empty: bool = True) -> None:
    """Refuses boxes (top, left, height, width) that are not inside their image, or empty where that is not allowed."""
    bad = (boxes[:, :2] + boxes[:, 2:] > sizes).any(axis=1)
    if not empty:
        bad |= (boxes[:, 2:] == 0).any(axis=1)
    if bad.any():
        at = int(bad.argmax())
        raise DataError(
            f"{where} must have boxes inside its image of {sizes[at][0]}x{sizes[at][1]} pixels, found "
            f"{tuple(boxes[at].tolist())} (top, left, height, width). The base has another order or its images other "
            "sizes: set `order`, or name the dataset as it was reinforced."
        )


class OrderCheck:
    """Counts how often the teacher's most probable class is the label, over the views in which nothing is mixed.

    Args:
        labels: Class of each row, int64 (rows,); None where the base has none: then nothing is checked.
        num_classes: C.
        tolerated: Whether answers that do not fit the labels are a warning only.
    """

    def __init__(self, labels: np.ndarray | None, num_classes: int, *, tolerated: bool) -> None:
        self._labels = labels
        self._tolerated = tolerated
        self._hits = 0
        self._rows = 0
        self._favourites = np.zeros(num_classes, np.int64)

    def add(self, columns: Columns, row: int) -> None:
        """Adds a row's views, and looks at the first rows as soon as there are enough."""
        if self._labels is None or not 0 <= self._labels[row] < len(self._favourites):
            return
        favourites = columns[TEACHER_IDS][:, 0]
        if AUG_PREFIX + PARTNER in columns:
            favourites = favourites[columns[AUG_PREFIX + PARTNER] < 0]
        self._hits += int((favourites == self._labels[row]).sum())
        self._favourites += np.bincount(favourites, minlength=len(self._favourites))
        self._rows += 1
        if self._rows == LABELLED_ROWS:
            self.check()

    def check(self) -> None:
        """Refuses answers that fit the labels no better than chance: the sign of a wrong order."""
        count = int(self._favourites.sum())
        if self._labels is None or not count:
            return
        agreement = self._hits / count
        # Chance: how often the favourites of all rows would meet the labels of the whole base in any order.
        labels = np.bincount(np.maximum(self._labels, 0), minlength=len(self._favourites))[: len(self._favourites)]
        chance = float(labels / len(self._labels) @ self._favourites / count)
        if agreement >= chance + _MIN_AGREEMENT * (1 - chance):
            return
        text = (
            f"the teacher's most probable class must be the label far more often than by chance ({100 * chance:.1f} %), found "
            f"{100 * agreement:.1f} % of {count:,} views. The base is in another order than ml-dr's: set `order`. Where the "
            "labels are known to differ, pass `allow_disagreement`."
        )
        if not self._tolerated:
            raise DataError(text)
        logger.warning("%s", text)

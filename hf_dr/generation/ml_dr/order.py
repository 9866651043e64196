"""Which row of the base is image i of ml-dr."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, cast

import datasets
import numpy as np

from hf_dr.errors import ConfigError, DataError
from hf_dr.generation.ml_dr.files import shown

_ORDERS = ("position", "imagefolder")


def find_rows(order: str, images: datasets.Dataset) -> np.ndarray:
    """Returns the row of the base for each image number of ml-dr, int64 (rows,); see `ImportConfig.order`.

    Args:
        order: `position`, `imagefolder`, or a file.
        images: The base's image column, undecoded.

    Raises:
        ConfigError: The file cannot be read or is no such list.
        DataError: The base's images have no paths, or not those of the file.
    """
    count = len(images)
    if order == "position":
        return np.arange(count)
    if order == "imagefolder":
        names = [_imagefolder_name(path) for path in _paths(images)]
        if not all(names) or len(set(names)) < count:
            bad = next((row for row, name in enumerate(names) if not name), None)
            raise DataError(
                "`order=imagefolder` needs the class folder and the file name of each image, found "
                + (f"none in row {bad}" if bad is not None else "two images of one name")
                + ". Pass `order` as a file with the row or file name of each image."
            )
        return np.array(sorted(range(count), key=lambda row: cast(tuple[str, str], names[row])))
    entries = _read_order(Path(order).expanduser())
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
            f"`order` must be {', '.join(_ORDERS)} or a text file, but {str(path)!r}: {error}. Check the path."
        ) from error
    entries: Any = text.split("\n")
    if text.lstrip().startswith("["):
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} must be a JSON list or plain lines, but: {error}. Fix it.") from error
    else:
        entries = [line.strip() for line in entries if line.strip()]
        if all(line.isascii() and line.isdigit() for line in entries):
            entries = [int(line) for line in entries]
    if not entries or {type(entry) for entry in entries} not in ({int}, {str}):
        raise ConfigError(
            f"{path} must hold row numbers or file names, one for each image, found {shown.repr(entries)}."
        )
    return entries

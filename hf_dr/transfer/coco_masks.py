"""Segmentations as COCO's files have them, polygons or run lengths, checked before pycocotools reads them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hf_dr.errors import ConfigError, DataError
from hf_dr.views.ops.base import Size

# Of the longer side of an image: how far outside of it a polygon may reach.
_REACH = 10


def coco_library() -> Any:
    """Imports pycocotools, with its modules `coco`, `cocoeval` and `mask`; a ConfigError if it is not installed."""
    try:
        import pycocotools.coco
        import pycocotools.cocoeval
        import pycocotools.mask
    except ImportError as error:
        raise ConfigError(
            "detection needs the package pycocotools, which is not installed: pip install pycocotools."
        ) from error
    return pycocotools


def check_segmentation(segmentation: Any, size: Size, where: str = "") -> None:
    """Refuses what is no segmentation of an image.

    pycocotools does not: the memory that it takes for a polygon grows with its coordinates, without an end where one is no
    number, and where run lengths do not fill the image, the rest of the mask is what its memory held before.

    `where` says which image it is, for the message.

    Raises:
        DataError: It is none.
    """
    try:
        if isinstance(segmentation, dict):
            ok = list(segmentation["size"]) == list(size) and _fill(segmentation["counts"], math.prod(size))
        else:
            limit = _REACH * max(size)
            ok = isinstance(segmentation, list) and all(
                isinstance(part, list)
                and len(part) >= 6
                # Any NaN makes the sum one, and of what is no number there is none.
                and math.isfinite(sum(part))
                and -limit <= min(part)
                and max(part) <= limit
                for part in segmentation
            )
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        ok = False
    if not ok:
        raise _refusal(segmentation, size, where)


def _refusal(segmentation: Any, size: Size, where: str = "") -> DataError:
    height, width = size
    return DataError(
        f"a segmentation must be polygons in its image or run lengths that fill it, as COCO has them, found "
        f"{segmentation!r:.80} for one of {width}x{height} pixels{where}. Fix the file, or set `masks` to false."
    )


def _fill(counts: Any, pixels: int) -> bool:
    """Whether run lengths, compressed or not, are whole numbers, together of this many pixels."""
    runs = counts if isinstance(counts, list) else _uncompressed(counts.encode() if isinstance(counts, str) else counts)
    return all(run >= 0 and run == int(run) for run in runs) and sum(runs) == pixels


def _uncompressed(text: bytes) -> list[int]:
    """Returns the run lengths of COCO's text: five bits to a character, lowest first; from the fourth on differences."""
    runs: list[int] = []
    value = bits = 0
    for character in text:
        part = character - 48
        value |= (part & 31) << bits
        bits += 5
        if part & 32:  # more follow
            continue
        if part & 16:  # below 0
            value -= 1 << bits
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = bits = 0
    return runs


def decode_mask(segmentation: Any, size: Size) -> np.ndarray:
    """Turns a segmentation into a mask (H, W) of 0 and 1, uint8.

    Raises:
        DataError: It is none; see `check_segmentation`.
    """
    check_segmentation(segmentation, size)
    library = coco_library().mask
    try:
        # Polygons, or run lengths that are not compressed; several polygons are one object.
        raw = isinstance(segmentation, list) or isinstance(segmentation["counts"], list)
        runs = library.frPyObjects(segmentation, *size) if raw else segmentation
        return library.decode(library.merge(runs) if isinstance(runs, list) else runs)
    except Exception as error:  # pycocotools raises just that
        raise _refusal(segmentation, size) from error

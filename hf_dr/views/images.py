"""From the bytes of an image file to RGB pixels, by one rule for teacher and student, and the hash of those pixels.

The rule: the first frame; EXIF orientation applied; then RGB, 8 bits. 16-bit grey keeps its 8 high bits (Pillow would
clip instead); everything else is Pillow's `convert("RGB")`: palettes are looked up, transparency is dropped, CMYK is
converted by Pillow's formula.
"""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
import xxhash

from hf_dr.errors import DataError, ReplayError

DECODING_RULE = 1
"""Raised with every change of the rule above: kept hashes of pixels are then made again."""

_ORIENTATION = 0x0112  # the EXIF tag


def decode_image(value: Any) -> PIL.Image.Image:
    """Decodes one cell of an image column to RGB.

    Args:
        value: What `datasets` stores for an image, `{"bytes": ..., "path": ...}`, or a PIL image.

    Raises:
        DataError: The cell is empty or holds no readable image. The caller knows the row and adds it.
    """
    try:
        if isinstance(value, PIL.Image.Image):
            return to_rgb(value)
        cell = value if isinstance(value, dict) else {}
        if cell.get("bytes") is not None:
            source: BytesIO | Path = BytesIO(cell["bytes"])
        elif cell.get("path") is not None:
            source = Path(cell["path"])
        else:
            raise DataError(f"expected an image as bytes or a path, got {value!r:.80}")
        with PIL.Image.open(source) as image:
            return to_rgb(image)
    # Pillow's readers raise a dozen types on broken files (OSError, SyntaxError, struct.error, DecompressionBombError).
    except Exception as error:
        if isinstance(error, (DataError, MemoryError)):
            raise
        raise DataError(f"{type(error).__name__}: {error}") from error


def decode_row(
    value: Any, where: str, advice: str = "Fix it.", error: type[DataError | ReplayError] = DataError
) -> PIL.Image.Image:
    """Decodes the image of one row to RGB.

    Args:
        value: As for `decode_image`.
        where: Names the row in the message: `row 7`.
        advice: What the user can do about an image that cannot be read.
        error: Which error it then is.

    Raises:
        DataError: The image cannot be read; or `error`.
    """
    try:
        return decode_image(value)
    except DataError as problem:
        raise error(f"the image of {where} must be readable, but: {problem}. {advice}") from problem


def as_tensor(image: PIL.Image.Image) -> torch.Tensor:
    """Returns the pixels of an RGB image, uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image).transpose(2, 0, 1))


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Returns the image upright and as 8-bit RGB (the rule is in the module's docstring)."""
    image.load()
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = PIL.ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min(initial=0) < 0 or levels.max(initial=0) > 0xFFFF:
            raise DataError(
                f"expected grey levels of 16 bits, got {levels.min()} to {levels.max()}. Convert the image."
            )
        return PIL.Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DataError("expected an image of 8 or 16 bits, got floating-point pixels (mode F). Convert the image.")
    if image.mode == "P" and "transparency" in image.info:
        # It is dropped anyway; without it Pillow does not warn at each such image.
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def pixel_hash(image: PIL.Image.Image) -> int:
    """Returns the 64-bit XXH3 hash of an RGB image's size and pixels; equal pixels in any file format hash equally."""
    hasher = xxhash.xxh3_64(struct.pack("<II", *image.size))
    hasher.update(image.tobytes())
    return hasher.intdigest()

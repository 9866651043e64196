"""From the bytes of an image file to RGB pixels, by one rule for teacher and student, and the hash of those pixels.

The rule: the first frame; EXIF orientation applied; then RGB, 8 bits. 16-bit grey keeps its 8 high bits (Pillow would
clip instead); everything else is Pillow's `convert("RGB")`: palettes are looked up, transparency is dropped, CMYK is
converted by Pillow's formula.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import torch
import xxhash
from datasets.utils.file_utils import xopen

from hf_dr.errors import ConfigError, DataError, ReplayError

logger = logging.getLogger(__name__)

Decoded = TypeVar("Decoded")

DECODING_RULE = 1
"""Raised with every change of the rule above: kept hashes of pixels are then made again."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA", "QOI", "AVIF", "HEIF")
"""Pillow's formats that are read. Others start programs (EPS calls Ghostscript), or are not made for photos."""
_MAX_PIXELS = "HF_DR_MAX_IMAGE_PIXELS"

# Of 16 bits an image should use more than the lowest 12: else the 8 highest, which are kept, leave 16 levels or one.
_FEW_LEVELS = 1 << 12


def max_image_pixels() -> int:
    """Returns how many pixels an image may have: larger ones are refused before they are decoded.

    It is set in the environment, because loaders' workers are processes. Pillow, which has a bound of its own, then takes as
    large ones. Where it is not set, the lower of Pillow's bound and 67,108,864 holds.

    Raises:
        ConfigError: What is set is no such number.
    """
    of_pillow = PIL.Image.MAX_IMAGE_PIXELS
    given = os.environ.get(_MAX_PIXELS)
    if given is None:
        return min(1 << 26, of_pillow or 1 << 26)
    limit = int(given) if given.isdecimal() else 0
    if limit < 1:
        raise ConfigError(
            f"`{_MAX_PIXELS}` in the environment must be a whole number of at least 1, got {given!r:.80}. Write it in digits, "
            "such as 67108864, or unset it."
        )
    if of_pillow is not None and of_pillow < limit:
        PIL.Image.MAX_IMAGE_PIXELS = limit
    return limit


def decode_image(value: Any) -> PIL.Image.Image:
    """Decodes one cell of an image column to RGB: what `datasets` stores, `{"bytes": ..., "path": ...}`, or a PIL image.

    A DataError if it is empty or holds no readable image. The caller knows the row and adds it.
    """
    return decode_with(value, to_rgb)


def decode_with(value: Any, convert: Callable[[PIL.Image.Image], Decoded]) -> Decoded:
    """Same as `decode_image`, but returns what `convert` makes of the opened image."""
    data = None
    limit = max_image_pixels()
    try:
        if isinstance(value, PIL.Image.Image):
            return convert(value)
        cell = value if isinstance(value, dict) else {}
        data = cell.get("bytes")
        if data is None and cell.get("path") is not None:
            data = read_file(cell["path"])
        if not isinstance(data, bytes):
            raise DataError(f"expected an image as bytes or a path, got {value!r:.80}")
        with PIL.Image.open(BytesIO(data), formats=_known_formats()) as image:
            if image.width * image.height > limit:
                raise _too_large(limit, f"{image.height}x{image.width}")
            return convert(image)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:  # by Pillow's own bound
        raise _too_large(limit, f"more ({str(error).rstrip('.')})") from error
    except PIL.UnidentifiedImageError as error:
        found = _what_it_is(data or b"")
        raise DataError(f"expected an image as {', '.join(_known_formats())}, got {found}") from error
    except (DataError, MemoryError):
        raise
    # Pillow's readers raise a dozen types on broken files (OSError, SyntaxError, struct.error).
    except Exception as error:
        raise DataError(f"{type(error).__name__}: {error}") from error


def _too_large(limit: int, found: str) -> DataError:
    return DataError(f"expected at most {limit:,} pixels, got {found}. Shrink the image, or set {_MAX_PIXELS}")


def stored_size(value: Any) -> tuple[int, int] | None:
    """Returns (height, width) by the beginning of an image's file, as it is stored; None if it is no image.

    Nothing is decoded, which takes a fiftieth of the time; so a file that is cut short later on is not noticed.
    """
    try:
        return decode_with(value, lambda image: (image.height, image.width))
    except DataError:
        return None


@cache
def _warn_of_few_bits(bits: int) -> None:
    """Once for each number of bits in a process: a dataset has many such images."""
    logger.warning(
        "An image of 16-bit grey uses %d bits only, and becomes black or nearly so. Scale the levels of such images to 8 or 16 "
        "bits.",
        bits,
    )


@cache
def _known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow reads."""
    PIL.Image.init()
    return tuple(name for name in FORMATS if name in PIL.Image.OPEN)


def read_file(path: str) -> bytes:
    """Reads a file: of this machine, inside a zip archive (`zip://a.png::b.zip`), or at an address that `datasets` reads.

    Raises:
        DataError: There is none on this machine. Of an archive or an address many other errors may come.
    """
    if "://" in path:
        with xopen(path, "rb") as file:
            data: bytes = file.read()
            return data
    # A folder, a device, a pipe that would be waited for; or a text that is too long for a path, for which Path's raises.
    if not os.path.isfile(path):  # noqa: PTH113
        raise DataError(f"expected a file, found none at {path:.200}")
    return Path(path).read_bytes()


def _what_it_is(data: bytes) -> str:
    """Says what bytes are that are no image."""
    if not data:
        return "an empty file"
    start = data[:64].lstrip().lower()
    for beginning, kind in _NO_IMAGES.items():
        if start.startswith(beginning):
            return kind
    return f"{len(data):,} bytes that begin with {data[:12]!r}"


_NO_IMAGES = {
    b"\x89png": "a PNG file that is cut short",
    b"\xff\xd8\xff": "a JPEG file that is cut short",
    b"gif8": "a GIF file that is cut short",
    b"version https://git-lfs": "a pointer of Git LFS: the file itself was not fetched (`git lfs pull`)",
    b"<!doctype html": "an HTML page",
    b"<html": "an HTML page",
    b"<?xml": "an XML file",
    b"<svg": "an SVG drawing, which has no pixels",
    b"%!ps": "a PostScript file, which is a program",
    b"%pdf": "a PDF file",
    b"\xff\x0a": "a JPEG XL image",
    b"\x00\x00\x00\x0cjxl": "a JPEG XL image",
    b"pk\x03\x04": "a zip archive",
}
"""How files begin that are often taken for images, in lower case."""


def decode_row(
    value: Any, where: str, advice: str = "Fix it.", error: type[DataError | ReplayError] = DataError
) -> PIL.Image.Image:
    """Decodes the image of one row to RGB.

    Args:
        value: See `decode_image`.
        where: Names the row in the message: `row 7`; its file's name is added (`with_file`).
        advice: What the user can do about an image that cannot be read.
        error: Which error it then is.

    Raises:
        DataError: The image cannot be read; or `error`.
    """
    try:
        return decode_image(value)
    except DataError as problem:
        place = with_file(where, value)
        raise error(f"the image of {place} must be readable, but: {str(problem).rstrip('.')}. {advice}") from problem


def with_file(where: str, value: Any) -> str:
    """Returns the name of a row with that of its image's file, where it has one: `row 7 (cats/1.jpg)`."""
    path = value.get("path") if isinstance(value, dict) else None
    return f"{where} ({path:.100})" if path else where


def as_tensor(image: PIL.Image.Image) -> torch.Tensor:
    """Returns the pixels of an RGB image, uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image).transpose(2, 0, 1))


@lru_cache(maxsize=64)
def channel_values(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Returns numbers of the channels, (C, 1, 1), on a device, where they stay: to send them makes the host wait each time."""
    with torch.inference_mode(False):  # a tensor that is first made there could not be used for training
        return torch.tensor(values, device=device, dtype=dtype).view(-1, 1, 1)


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Returns the image upright and as 8-bit RGB (the rule is in the module's docstring)."""
    image.load()
    if image.getexif().get(PIL.ExifTags.Base.Orientation, 1) != 1:
        image = PIL.ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min(initial=0) < 0 or levels.max(initial=0) > 0xFFFF:
            raise DataError(
                f"expected grey levels of 16 bits, got {levels.min()} to {levels.max()}. Convert the image."
            )
        if 0 < levels.max() < _FEW_LEVELS:
            _warn_of_few_bits(int(levels.max()).bit_length())
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

"""Decoders of JPEG next to Pillow: whether their pixels are Pillow's, and what an image costs.

A faster decoder may stand in for Pillow only where its pixels are equal, bit for bit: `image_hash` is of them. Tried are
torchvision's, and torchcodec's and simplejpeg's (libjpeg-turbo) where they are installed. Photographs, and files that are
odd: every subsampling of the colours, grey, CMYK, progressive, turned by EXIF, cut short, with sides of 1 to 17 pixels.

    pip install torchcodec simplejpeg
    python benchmarks/decoding.py --data DATA --json benchmarks/results/decoding.json
"""

from __future__ import annotations

import importlib
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

import common
import datasets
import numpy as np
import PIL.Image
import torch

from hf_dr.views.images import decode_image

Decoder = Callable[[bytes], np.ndarray]
"""The bytes of a file -> uint8 (H, W, 3)."""


def pillow(data: bytes) -> np.ndarray:
    """By the rule of this package."""
    return np.asarray(decode_image({"bytes": data, "path": None}))


def torchvision(data: bytes) -> np.ndarray:
    io = importlib.import_module("torchvision.io")
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    pixels: np.ndarray = io.decode_jpeg(encoded, mode=io.ImageReadMode.RGB, apply_exif_orientation=True).numpy()
    return pixels.transpose(1, 2, 0)


def torchcodec(data: bytes) -> np.ndarray:
    pixels: np.ndarray = importlib.import_module("torchcodec.decoders").decode_image(data).numpy()
    return pixels.transpose(1, 2, 0)


def simplejpeg(data: bytes) -> np.ndarray:
    pixels: np.ndarray = importlib.import_module("simplejpeg").decode_jpeg(data, fastdct=False, fastupsample=False)
    return pixels


def odd_files() -> dict[str, bytes]:
    """Returns small JPEG files of unusual kinds, by name."""
    rng = np.random.default_rng(0)
    files = {}
    for side in (1, 7, 8, 9, 15, 16, 17, 100):
        picture = PIL.Image.fromarray(rng.integers(256, size=(side, 2 * side, 3), dtype=np.uint8))
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            files[f"{side} pixels, {subsampling}"] = _saved(picture, subsampling=subsampling)
        files[f"{side} pixels, progressive"] = _saved(picture, progressive=True)
        files[f"{side} pixels, grey"] = _saved(picture.convert("L"))
        files[f"{side} pixels, CMYK"] = _saved(picture.convert("CMYK"))
        turned = PIL.Image.Exif()
        turned[0x0112] = 6
        files[f"{side} pixels, turned"] = _saved(picture, exif=turned)
    files["cut short"] = files["100 pixels, 4:2:0"][:-400]
    return files


def _saved(picture: PIL.Image.Image, **settings: Any) -> bytes:
    file = BytesIO()
    picture.save(file, "JPEG", quality=85, **settings)
    return file.getvalue()


def differing(decode: Decoder, data: bytes) -> bool:
    """Whether a decoder gives other pixels than Pillow, or refuses a file that Pillow takes, or the other way round."""
    results: list[np.ndarray | None] = []
    for decoder in (pillow, decode):
        try:
            results.append(decoder(data))
        except Exception:  # each library raises its own
            results.append(None)
    ours, theirs = results
    if ours is None or theirs is None:
        return (ours is None) != (theirs is None)
    return not np.array_equal(ours, theirs)


def speed(decode: Decoder, files: list[bytes]) -> float:
    """Returns Pillow's CPU time divided by the decoder's: the median over the files, each of which both decode in turn."""
    pairs = ((partial(pillow, data), partial(decode, data)) for data in files)
    return statistics.median(common.cpu_seconds(ours) / common.cpu_seconds(theirs) for ours, theirs in pairs)


def main() -> None:
    flags = common.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "The image decoding and encoding capabilities of TorchVision", DeprecationWarning)
    rows, source = common.photos(flags.data, 32 if flags.quick else 400)
    cells = rows.cast_column("image", datasets.Image(decode=False))["image"]
    files = [cell["bytes"] for cell in cells if cell["bytes"][:2] == b"\xff\xd8"]
    odd = odd_files()
    result: dict[str, Any] = {"source": source, "photos": len(files), "odd_files": len(odd)}
    for decode in (torchvision, torchcodec, simplejpeg):
        name = decode.__name__
        try:
            decode(files[0])
        except ImportError:
            print(f"{name}: not installed")
            continue
        result[f"{name}_speed"] = speed(decode, files)
        result[f"{name}_differing_photos"] = sum(differing(decode, data) for data in files)
        found = [kind for kind, data in odd.items() if differing(decode, data)]
        result[f"{name}_differing_odd"] = len(found)
        print(f"{name} differs on: {', '.join(found) or 'nothing'}")
    common.finish(result, flags)


if __name__ == "__main__":
    main()

"""Fifteen common corruptions at five severities, in the manner of ImageNet-C (Hendrycks and Dietterich, arXiv:1903.12261).

For images of any size: with a shorter side of at least `LARGE_SIDE` pixels the constants are those of ImageNet-C (made for
224 pixels), below it those of CIFAR-10-C (made for 32); they are pixels, but for `elastic_transform`, which goes with
the side. The frost photographs cannot be shipped, so a generated texture stands in; glass blur moves all pixels at once; and
blurs and resampling are NumPy's, Pillow's and torch's. Numbers on these images compare models with each other, not with
published ImageNet-C numbers: those come from the published images.

To add a corruption: one function from RGB pixels (H, W, 3), float32 from 0 to 1, to such pixels (clipped for it), with
`@register`. A generator passed in is the only source of randomness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.nn import functional as F

from hf_dr.views.rng import DOMAIN_CORRUPTION, keyed_rng

LARGE_SIDE = 64
"""Shorter side in pixels from which on ImageNet-C's constants are used."""

_BILINEAR = PIL.Image.Resampling.BILINEAR
_BOX = PIL.Image.Resampling.BOX


@dataclass(frozen=True)
class Corruption:
    """A corruption `apply(pixels, rng, *constants)`, and its constants for each severity on large and on small images."""

    apply: Callable[..., np.ndarray]
    large: tuple[tuple[Any, ...], ...]
    small: tuple[tuple[Any, ...], ...]


CORRUPTIONS: dict[str, Corruption] = {}
"""The corruptions by name, in the paper's order."""


def corrupt(image: PIL.Image.Image, name: str, severity: int, rng: np.random.Generator) -> PIL.Image.Image:
    """Returns an RGB image, of any size, corrupted in one of the ways of `CORRUPTIONS`, at a severity from 1 to 5.

    `rng`, a `corruption_rng`, is the only source of randomness.
    """
    corruption = CORRUPTIONS[name]
    table = corruption.large if min(image.size) >= LARGE_SIDE else corruption.small
    pixels = np.asarray(image, np.float32) / 255
    return _to_image(corruption.apply(pixels, rng, *table[severity - 1]))


def corruption_rng(seed: int, example: int, name: str, severity: int) -> np.random.Generator:
    """Returns the generator of one corruption of one example: results depend on neither batches nor order."""
    minor = 8 * list(CORRUPTIONS).index(name) + severity
    return keyed_rng(seed, domain=DOMAIN_CORRUPTION, major=example, minor=minor)


_Apply = Callable[..., np.ndarray]


def register(large: Sequence[Any], small: Sequence[Any]) -> Callable[[_Apply], _Apply]:
    """Decorator that makes a corruption known by its function's name; constants are numbers or tuples of numbers."""

    def add(apply: _Apply) -> _Apply:
        tables = [tuple(c if isinstance(c, tuple) else (c,) for c in table) for table in (large, small)]
        CORRUPTIONS[apply.__name__] = Corruption(apply, *tables)
        return apply

    return add


def _to_image(pixels: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.rint(pixels.clip(0, 1) * 255).astype(np.uint8))


@lru_cache(maxsize=64)
def _blur_matrix(size: int, sigma: float) -> np.ndarray:
    """The matrix (size, size) of a Gaussian blur along one axis, cut off at 3 sigma, mirrored at both ends."""
    reach = max(1, round(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-6)) ** 2)
    weights /= weights.sum()
    source = (np.arange(size)[:, None] + np.arange(-reach, reach + 1)) % (2 * size)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], np.minimum(source, 2 * size - 1 - source)), weights)
    return matrix.astype(np.float32)


def _gaussian_blur(x_HWC: np.ndarray, sigma: float) -> np.ndarray:
    rows, columns = _blur_matrix(x_HWC.shape[0], sigma), _blur_matrix(x_HWC.shape[1], sigma)
    return (rows @ x_HWC.transpose(2, 0, 1) @ columns.T).transpose(1, 2, 0)


def _streak(x_HWC: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Smears along `angle` (radians) with one half of a Gaussian, as ImageMagick's motion blur does."""
    height, width = x_HWC.shape[:2]
    steps, reach = np.arange(2 * radius + 1), 2 * radius
    weights = np.exp(-0.5 * (steps / sigma) ** 2).astype(np.float32)
    tops, lefts = (np.rint(steps * f(angle)).astype(int) + reach for f in (math.sin, math.cos))
    padded = np.pad(x_HWC, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    out = np.zeros_like(x_HWC)
    for weight, top, left in zip(weights / weights.sum(), tops, lefts, strict=True):
        out += weight * padded[top : top + height, left : left + width]
    return out


def _zoom(image: PIL.Image.Image, factor: float) -> PIL.Image.Image:
    """The centre, enlarged to the image's size."""
    width, height = image.size
    left, top = (1 - 1 / factor) * width / 2, (1 - 1 / factor) * height / 2
    return image.resize(image.size, _BILINEAR, box=(left, top, width - left, height - top))


def _plasma(shape: tuple[int, ...], decay: float, rng: np.random.Generator) -> np.ndarray:
    """Cloudy noise (H, W) from 0 to 1: the diamond-square algorithm, whose noise falls by `decay` squared each octave."""
    height, width, *_ = shape
    field, amplitude = np.zeros((1, 1)), 1.0
    while len(field) < max(2, height, width):
        noise = rng.uniform(-amplitude, amplitude, (3, *field.shape))
        right, below = np.roll(field, -1, axis=1), np.roll(field, -1, axis=0)
        middle = (field + right + below + np.roll(below, -1, axis=1)) / 4 + noise[0]
        fine = np.empty((2 * len(field), 2 * len(field)))
        fine[::2, ::2], fine[1::2, 1::2] = field, middle
        fine[::2, 1::2] = (field + right + middle + np.roll(middle, 1, axis=0)) / 4 + noise[1]
        fine[1::2, ::2] = (field + below + middle + np.roll(middle, 1, axis=1)) / 4 + noise[2]
        field, amplitude = fine, amplitude / decay**2
    field -= field.min()
    return (field / field.max())[:height, :width].astype(np.float32)


@register(large=[0.08, 0.12, 0.18, 0.26, 0.38], small=[0.04, 0.06, 0.08, 0.09, 0.10])
def gaussian_noise(x: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    """Adds normal noise."""
    return x + scale * rng.standard_normal(x.shape, np.float32)


@register(large=[60, 25, 12, 5, 3], small=[500, 250, 100, 75, 50])
def shot_noise(x: np.ndarray, rng: np.random.Generator, photons: int) -> np.ndarray:
    """Counts photons: `photons` of them make white."""
    return rng.poisson(x * photons).astype(np.float32) / photons


@register(large=[0.03, 0.06, 0.09, 0.17, 0.27], small=[0.01, 0.02, 0.03, 0.05, 0.07])
def impulse_noise(x: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Salt and pepper on a share `amount` of the values."""
    draw = rng.random(x.shape, np.float32)
    return np.where(draw < amount / 2, 0, np.where(draw > 1 - amount / 2, 1, x))


@register(
    large=[(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    small=[(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
)
def defocus_blur(x: np.ndarray, rng: np.random.Generator, radius: float, softness: float) -> np.ndarray:
    """Spreads each pixel over a disk of `radius`, its edge softened by a Gaussian."""
    reach = math.ceil(radius) + 2
    axis = np.arange(-reach, reach + 1)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(np.float32)
    kernel = _gaussian_blur(disk[..., None] / disk.sum(), softness)[..., 0]
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="reflect").transpose(2, 0, 1)
    out_C1HW = F.conv2d(torch.from_numpy(padded.copy())[:, None], torch.from_numpy(kernel.copy())[None, None])
    return out_C1HW[:, 0].numpy().transpose(1, 2, 0)


@register(
    large=[(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    small=[(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
)
def glass_blur(x: np.ndarray, rng: np.random.Generator, sigma: float, reach: int, times: int) -> np.ndarray:
    """Blurs, replaces each pixel by a near one, some `times`, and blurs again."""
    height, width = x.shape[:2]
    x = _gaussian_blur(x, sigma)
    for _ in range(times):
        down, right = rng.integers(-reach, reach, (2, height, width))
        rows, columns = np.arange(height)[:, None] + down, np.arange(width) + right
        x = x[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return _gaussian_blur(x, sigma)


@register(large=[(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)], small=[(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)])
def motion_blur(x: np.ndarray, rng: np.random.Generator, radius: int, sigma: float) -> np.ndarray:
    """Smears along a direction within 45 degrees of the horizontal."""
    return _streak(x, radius, sigma, rng.uniform(-math.pi / 4, math.pi / 4))


@register(
    large=[(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
    small=[(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)],
)
def zoom_blur(x: np.ndarray, rng: np.random.Generator, stop: float, step: float) -> np.ndarray:
    """Averages the image and its enlargements by 1, 1 + step, ... below `stop`."""
    factors, image, out = np.arange(1, stop, step), _to_image(x), x.copy()
    for factor in factors:
        out += np.asarray(_zoom(image, factor), np.float32) / 255
    return out / (len(factors) + 1)


@register(
    large=[
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ],
    small=[
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ],
)
def snow(
    x: np.ndarray,
    rng: np.random.Generator,
    mean: float,
    scale: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    keep: float,
) -> np.ndarray:
    """Whitens the image and lets flakes fall: enlarged noise above a threshold, smeared downwards."""
    noise = PIL.Image.fromarray(mean + scale * rng.standard_normal(x.shape[:2], np.float32))
    flakes = np.asarray(_zoom(noise, zoom)).clip(0, 1)
    flakes = _streak(
        np.where(flakes < threshold, 0, flakes)[..., None], radius, sigma, rng.uniform(-0.75, -0.25) * math.pi
    )
    grey = x @ np.array([[0.299], [0.587], [0.114]], np.float32)
    return keep * x + (1 - keep) * np.maximum(x, 1.5 * grey + 0.5) + flakes + flakes[::-1, ::-1]


@register(
    large=[(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    small=[(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
)
def frost(x: np.ndarray, rng: np.random.Generator, keep: float, amount: float) -> np.ndarray:
    """Adds a bluish texture of bright veins: where two clouds are equally dense."""
    first, second = (_plasma(x.shape, 1.5, rng) for _ in range(2))
    veins = (1 - np.abs(first - second)) ** 3
    return keep * x + amount * veins[..., None] * np.array([0.8, 0.9, 1.0], np.float32)


@register(
    large=[(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    small=[(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
)
def fog(x: np.ndarray, rng: np.random.Generator, amount: float, decay: float) -> np.ndarray:
    """Adds a cloud, and darkens to the brightness that was."""
    brightest = x.max()
    return (x + amount * _plasma(x.shape, decay, rng)[..., None]) * brightest / (brightest + amount)


@register(large=[0.1, 0.2, 0.3, 0.4, 0.5], small=[0.05, 0.1, 0.15, 0.2, 0.3])
def brightness(x: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Raises the value of HSV; hue and saturation stay."""
    value = x.max(axis=-1, keepdims=True)
    raised = np.minimum(value + amount, 1)
    return np.where(value > 0, x * raised / np.maximum(value, 1e-6), raised)


@register(large=[0.4, 0.3, 0.2, 0.1, 0.05], small=[0.75, 0.5, 0.4, 0.3, 0.15])
def contrast(x: np.ndarray, rng: np.random.Generator, keep: float) -> np.ndarray:
    """Draws every pixel towards the mean colour."""
    mean = x.mean(axis=(0, 1))
    return keep * (x - mean) + mean


# Multiples of the side; ImageNet-C's are of 244 pixels for images of 224.
@register(
    large=[
        tuple(244 / 224 * c for c in row)
        for row in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
    ],
    small=[(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
)
def elastic_transform(x: np.ndarray, rng: np.random.Generator, alpha: float, sigma: float, shift: float) -> np.ndarray:
    """Moves three corners of a square, and with them the plane, by up to `shift`; then each pixel by smooth noise."""
    size, side = np.array(x.shape[:2]), min(x.shape[:2])
    corners = (size - 1) / 2 + side / 3 * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + rng.uniform(-shift * side, shift * side, (3, 2))
    affine = np.linalg.solve(np.hstack([moved, np.ones((3, 1))]), corners)
    wobble = alpha * side * _gaussian_blur(rng.uniform(-1, 1, (*size, 2)).astype(np.float32), sigma * side)
    target = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1) + wobble
    source = target @ affine[:2] + affine[2]
    grid = torch.from_numpy((2 * source / np.maximum(size - 1, 1) - 1)[..., ::-1].astype(np.float32))
    pixels = torch.from_numpy(x.transpose(2, 0, 1).copy())
    out_1CHW = F.grid_sample(pixels[None], grid[None], padding_mode="reflection", align_corners=True)
    return out_1CHW[0].numpy().transpose(1, 2, 0)


@register(large=[0.6, 0.5, 0.4, 0.3, 0.25], small=[0.95, 0.9, 0.85, 0.75, 0.65])
def pixelate(x: np.ndarray, rng: np.random.Generator, scale: float) -> np.ndarray:
    """Shrinks and enlarges again, without smoothing."""
    image = _to_image(x)
    width, height = (max(1, int(side * scale)) for side in image.size)
    return np.asarray(image.resize((width, height), _BOX).resize(image.size, _BOX), np.float32) / 255


@register(large=[25, 18, 15, 10, 7], small=[80, 65, 58, 50, 40])
def jpeg_compression(x: np.ndarray, rng: np.random.Generator, quality: int) -> np.ndarray:
    """Writes and reads a JPEG file of this quality."""
    file = BytesIO()
    _to_image(x).save(file, "JPEG", quality=quality)
    with PIL.Image.open(file) as image:
        return np.asarray(image, np.float32) / 255

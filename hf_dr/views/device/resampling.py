"""The tables of a resize as Pillow computes them (`precompute_coeffs` of src/libImaging/Resample.c).

An axis is resampled by sums of products of pixels and integer weights of 22 bits. Weights are computed in double
precision, in Pillow's order of operations, for many axes at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

PRECISION_BITS = 22


@dataclass(frozen=True)
class Weights:
    """How A axes are resampled to at most X pixels each, with at most K weights a pixel.

    Attributes:
        first: int32 (A, X), the first source pixel of each output pixel.
        weights: int32 (A, X, K), those of the source pixels from there on; 0 beyond the window.
    """

    first: np.ndarray
    weights: np.ndarray


def support(interpolation: str) -> float:
    """Returns half the width of a filter, in pixels of the larger of source and output."""
    return _FILTERS[interpolation][1]


def windows(in_sizes: np.ndarray, out_sizes: np.ndarray, interpolation: str) -> np.ndarray:
    """Returns the most source pixels that one output pixel of each axis can need, int64, in the shape of the sizes."""
    if interpolation == "nearest":
        return np.ones(in_sizes.shape, np.int64)
    scale = np.maximum(in_sizes.astype(np.float64) / out_sizes, 1.0)
    return np.ceil(support(interpolation) * scale).astype(np.int64) * 2 + 1


def axis_weights(in_sizes: np.ndarray, out_sizes: np.ndarray, interpolation: str) -> Weights:
    """Computes the weights of A axes for sizes in pixels, int64 (A,), by one of Pillow's filters by torchvision's name."""
    if interpolation == "nearest":
        return _nearest(in_sizes, out_sizes)
    filter_function, half_width = _FILTERS[interpolation]
    in_A1, out_A1 = in_sizes.astype(np.float64)[:, None], out_sizes.astype(np.float64)[:, None]
    scale_A1 = in_A1 / out_A1
    filterscale_A1 = np.maximum(scale_A1, 1.0)
    support_A1 = half_width * filterscale_A1
    centre_AX = (np.arange(int(out_sizes.max(initial=0))) + 0.5) * scale_A1
    first_AX = np.maximum((centre_AX - support_A1 + 0.5).astype(np.int64), 0)
    stop_AX = np.minimum((centre_AX + support_A1 + 0.5).astype(np.int64), in_sizes[:, None])
    step_A1 = 1.0 / filterscale_A1
    columns, total_AX = [], np.zeros_like(centre_AX)
    for k in range(int(windows(in_sizes, out_sizes, interpolation).max(initial=0))):
        weight_AX = filter_function((k + first_AX - centre_AX + 0.5) * step_A1)
        weight_AX = np.where(first_AX + k < stop_AX, weight_AX, 0.0)
        columns.append(weight_AX)
        total_AX += weight_AX  # one after the other: the sum's rounding is part of the result
    weights_AXK = np.stack(columns, axis=-1)
    divisor_AX = np.where(total_AX != 0.0, total_AX, 1.0)
    scaled_AXK = weights_AXK / divisor_AX[..., None] * (1 << PRECISION_BITS)
    rounded_AXK = np.trunc(np.where(scaled_AXK < 0, scaled_AXK - 0.5, scaled_AXK + 0.5))
    beyond_AX = np.arange(centre_AX.shape[1]) >= out_sizes[:, None]
    first_AX[beyond_AX] = 0
    return Weights(first_AX.astype(np.int32), rounded_AXK.astype(np.int32))


def _nearest(in_sizes: np.ndarray, out_sizes: np.ndarray) -> Weights:
    """One pixel each; Pillow finds its place by adding up the scale (`ImagingScaleAffine` of Geometry.c)."""
    scale_A1 = in_sizes.astype(np.float64)[:, None] / out_sizes[:, None]
    steps_AX = np.repeat(scale_A1, int(out_sizes.max(initial=0)), axis=1)
    steps_AX[:, 0] = scale_A1[:, 0] * 0.5
    first_AX = np.minimum(np.add.accumulate(steps_AX, axis=1).astype(np.int64), in_sizes[:, None] - 1)
    weights_AXK = np.full((*first_AX.shape, 1), 1 << PRECISION_BITS, np.int32)
    return Weights(first_AX.astype(np.int32), weights_AXK)


def _box(x: np.ndarray) -> np.ndarray:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


def _bilinear(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    return np.where(x < 1.0, 1.0 - x, 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


# The C library's functions, as Pillow calls them: NumPy's own may differ in the last bit.
_SIN: Callable[[np.ndarray], np.ndarray] = np.vectorize(math.sin, otypes=[np.float64])
_COS: Callable[[np.ndarray], np.ndarray] = np.vectorize(math.cos, otypes=[np.float64])


def _sinc(x: np.ndarray) -> np.ndarray:
    x = x * math.pi
    return np.where(x == 0.0, 1.0, _SIN(x) / np.where(x == 0.0, 1.0, x))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3.0) & (x < 3.0), _sinc(x) * _sinc(x / 3), 0.0)


def _hamming(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    turn = np.where(x == 0.0, 1.0, x * math.pi)
    inside = _SIN(turn) / turn * (float(np.float32(0.54)) + float(np.float32(0.46)) * _COS(turn))
    return np.where(x == 0.0, 1.0, np.where(x >= 1.0, 0.0, inside))


_FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    "box": (_box, 0.5),
    "bilinear": (_bilinear, 1.0),
    "hamming": (_hamming, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}

"""A program in torch operations, image by image: the plain statement of the arithmetic, on any device.

All of it is in integers, or in floating point with every product and sum rounded by itself, so it gives the same bytes on
a CPU and on a GPU. The sources of Pillow that it follows are named where they matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hf_dr.views.device import plan
from hf_dr.views.device.images import OFFSET_BITS
from hf_dr.views.device.program import RESULT, SOURCES, Changes, Mixes, Program, Resizes
from hf_dr.views.device.resampling import PRECISION_BITS, axis_weights

_Buffers = Sequence[torch.Tensor]


def starts(sources: Sequence[torch.Tensor]) -> np.ndarray:
    """Returns what is added to an offset into a buffer: the buffer's number."""
    return np.arange(len(sources), dtype=np.int64) << OFFSET_BITS


def run(program: Program, sources: Sequence[torch.Tensor]) -> torch.Tensor:
    """Performs a program; uint8 (N, H, W, 3)."""
    held: list[_Buffers] = [
        [torch.empty(size, dtype=torch.uint8, device=sources[0].device)] for size in program.buffers
    ]
    held[SOURCES] = sources
    height, width = program.size
    views_MHWC = held[RESULT][0].view(program.num_images, height, width, 3)
    mixed_NHWC: torch.Tensor | None = None
    for launch in program.launches:
        if isinstance(launch, Resizes):
            _resample(program, launch, held)
        elif isinstance(launch, Changes):
            _change(program, launch, held)
        else:
            mixed_NHWC = views_MHWC[: program.num_views].clone() if mixed_NHWC is None else mixed_NHWC
            _mix(program, launch, mixed_NHWC, views_MHWC)
    return views_MHWC[: program.num_views] if mixed_NHWC is None else mixed_NHWC


def _image(buffers: _Buffers, place: int, height: int, width: int, stride: int) -> torch.Tensor:
    """A window of a buffer, uint8 (H, W, 3)."""
    number, offset = divmod(place, 1 << OFFSET_BITS)
    buffer = buffers[number]
    return buffer.as_strided((height, width, 3), (3 * stride, 3, 1), buffer.storage_offset() + offset)


def _resample(program: Program, launch: Resizes, held: list[_Buffers]) -> None:
    """Resizes each image in two passes, with an image of 8 bits between them (Resample.c)."""
    passes = (launch.reads, launch.between, launch.rows), (launch.between, launch.writes, launch.second)
    for reads, writes, start in passes:
        for row in program.rows(launch, start).tolist():
            place, stride, out, height, width, axis, _, last, _, mirrored = row
            size = (last + 1, width) if axis == 0 else (height, last + 1)
            made_HWC = _pass(
                _image(held[reads], place, *size, stride), axis, (height, width)[axis], launch.interpolation
            )
            _image(held[writes], out, height, width, width).copy_(made_HWC.flip(1) if mirrored else made_HWC)


def _pass(pixels_HWC: torch.Tensor, axis: int, size: int, interpolation: str) -> torch.Tensor:
    """Resamples one axis: sums of products in int32, rounded to 8 bits."""
    length = pixels_HWC.shape[axis]
    weights = axis_weights(np.array([length]), np.array([size]), interpolation)
    first_X = torch.from_numpy(weights.first[0]).to(pixels_HWC.device)
    weights_XK = torch.from_numpy(weights.weights[0]).to(pixels_HWC.device)
    shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
    total: torch.Tensor | int = 1 << (PRECISION_BITS - 1)
    for k in range(weights_XK.shape[1]):
        places_X = (first_X + k).clamp(max=length - 1)  # beyond the end the weight is 0
        total = pixels_HWC.index_select(axis, places_X).int() * weights_XK[:, k].view(shape) + total
    assert isinstance(total, torch.Tensor)
    return (total >> PRECISION_BITS).clamp(0, 255).to(torch.uint8)


def _change(program: Program, launch: Changes, held: list[_Buffers]) -> None:
    """Changes each image in its own way."""
    device = held[RESULT][0].device
    fill_C, colour_C = (torch.tensor(c, dtype=torch.uint8, device=device) for c in (launch.fill, launch.colour))
    rows = program.rows(launch)
    factors = rows[:, launch.columns.index("factor")].astype(np.int32).view(np.float32)
    for row, factor in zip(rows.tolist(), factors.tolist(), strict=True):
        place, height, width, stride, out, out_height, out_width, kind, *matrix, _, top, left, down, across = row
        pixels_HWC = _image(held[launch.reads], place, height, width, stride)
        out_HWC = _image(held[launch.writes], out, out_height, out_width, out_width)
        if kind == plan.COPY:
            out_HWC.copy_(pixels_HWC)
        elif kind == plan.GATHER:
            out_HWC.copy_(_gather(pixels_HWC, matrix, out_HWC.shape, fill_C))
        elif kind == plan.COLOUR:
            out_HWC.copy_(_blend(_grey(pixels_HWC)[..., None], pixels_HWC.int(), factor))
        elif kind == plan.SHARPNESS:
            out_HWC.copy_(_blend(_smooth(pixels_HWC), pixels_HWC.int(), factor))
        else:
            table_C256 = _table(pixels_HWC, kind, factor)
            for c in range(3):
                out_HWC[..., c] = table_C256[c][pixels_HWC[..., c].long()]
        out_HWC[top : top + down, left : left + across] = colour_C


def _gather(pixels_HWC: torch.Tensor, matrix: list[int], shape: torch.Size, fill_C: torch.Tensor) -> torch.Tensor:
    """The nearest source pixel in 16.16 fixed point (`affine_fixed` of Geometry.c)."""
    height, width = pixels_HWC.shape[:2]
    a, b, c, d, e, f = matrix
    y_H1 = torch.arange(shape[0], device=pixels_HWC.device)[:, None]
    x_1W = torch.arange(shape[1], device=pixels_HWC.device)[None]
    source_x_HW = (a * x_1W + b * y_H1 + c) >> 16
    source_y_HW = (d * x_1W + e * y_H1 + f) >> 16
    inside_HW = (source_x_HW >= 0) & (source_x_HW < width) & (source_y_HW >= 0) & (source_y_HW < height)
    taken_HWC = pixels_HWC[source_y_HW.clamp(0, height - 1), source_x_HW.clamp(0, width - 1)]
    return torch.where(inside_HW[..., None], taken_HWC, fill_C)


def _blend(base: torch.Tensor, pixels: torch.Tensor, factor: float) -> torch.Tensor:
    """base + factor (pixels - base) in float32, the product rounded before the sum (Blend.c); int32 -> uint8."""
    product = (pixels - base).float() * factor
    return (base.float() + product).clamp(0, 255).to(torch.uint8)


def _grey(pixels_HWC: torch.Tensor) -> torch.Tensor:
    """Luma, int32 (H, W) (`L24` of Convert.c)."""
    levels = pixels_HWC.int()
    return (19595 * levels[..., 0] + 38470 * levels[..., 1] + 7471 * levels[..., 2] + 32768) >> 16


def _smooth(pixels_HWC: torch.Tensor) -> torch.Tensor:
    """Pillow's SMOOTH filter, int32: 3x3 weights of 1, 5 in the middle, over 13, rounded; borders are copied.

    Pillow sums in float32 (Filter.c). The exact sum plus one half is never nearer to a whole number than 1/26, and the
    error of nine additions far below that, so integers give the same.
    """
    levels = pixels_HWC.int()
    smooth = levels.clone()
    height, width = levels.shape[:2]
    if height > 2 and width > 2:
        rows = levels[:-2] + levels[1:-1] + levels[2:]
        total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * levels[1:-1, 1:-1]
        smooth[1:-1, 1:-1] = (2 * total + 13) // 26
    return smooth


def _table(pixels_HWC: torch.Tensor, kind: int, factor: float) -> torch.Tensor:
    """The new level of each old one, uint8 (3, 256)."""
    device = pixels_HWC.device
    levels_256 = torch.arange(256, dtype=torch.int32, device=device)
    if kind == plan.BRIGHTNESS:
        table_256 = _blend(torch.zeros_like(levels_256), levels_256, factor)
    elif kind == plan.POSTERIZE:
        table_256 = levels_256 & ~(2 ** (8 - int(factor)) - 1)
    elif kind == plan.SOLARIZE:
        table_256 = torch.where(levels_256 < factor, levels_256, 255 - levels_256)
    elif kind == plan.CONTRAST:
        count = pixels_HWC.shape[0] * pixels_HWC.shape[1]
        # int(sum / count + 0.5) of Pillow: far from where doubles would round it otherwise.
        mean = (2 * _grey(pixels_HWC).sum() + count) // (2 * count)
        table_256 = _blend(mean.int(), levels_256, factor)
    else:
        equalizes = kind == plan.EQUALIZE
        tables = []
        for c in range(3):
            counts_256 = torch.bincount(pixels_HWC[..., c].reshape(-1), minlength=256)
            tables.append(_equalized(counts_256) if equalizes else _stretched(counts_256))
        return torch.stack(tables)
    return table_256.to(torch.uint8).expand(3, 256)


def _equalized(counts_256: torch.Tensor) -> torch.Tensor:
    """`PIL.ImageOps.equalize` of one channel; counts int64."""
    levels_256 = torch.arange(256, device=counts_256.device)
    last = levels_256[counts_256 > 0].max()
    step = (counts_256.sum() - counts_256[last]) // 255
    if int((counts_256 > 0).sum()) <= 1 or int(step) == 0:
        return levels_256.to(torch.uint8)
    before_256 = counts_256.cumsum(0) - counts_256
    return ((step // 2 + before_256) // step).clamp(max=255).to(torch.uint8)


def _stretched(counts_256: torch.Tensor) -> torch.Tensor:
    """`PIL.ImageOps.autocontrast` of one channel: in double, the product rounded before the sum."""
    device = counts_256.device
    counts_256 = counts_256.cpu()  # Apple's MPS has no doubles
    levels_256 = torch.arange(256)
    used = levels_256[counts_256 > 0]
    low, high = used.min(), used.max()
    if int(high) <= int(low):
        return levels_256.to(device, torch.uint8)
    # Not `255.0 / span`: torch would multiply by the rounded reciprocal.
    scale = torch.full((), 255.0, dtype=torch.float64).div((high - low).double())
    offset = -low.double() * scale
    product_256 = levels_256.double() * scale
    return (product_256 + offset).clamp(0, 255).to(torch.uint8).to(device)


def _mix(program: Program, launch: Mixes, views_NHWC: torch.Tensor, pool_MHWC: torch.Tensor) -> None:
    """Mixes views in place with views of the pool, which are not mixed."""
    for n, partner, weight, top, left, height, width in program.rows(launch).tolist():
        own_HWC, other_HWC = views_NHWC[n], pool_MHWC[partner]
        mixed_HWC = (own_HWC.int() * weight + other_HWC.int() * (256 - weight) + 128) >> 8
        own_HWC.copy_(mixed_HWC)
        box = (slice(top, top + height), slice(left, left + width))
        own_HWC[box] = other_HWC[box]

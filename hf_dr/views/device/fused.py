"""A program through the Triton kernels of `hf_dr.views.device.kernels`: a few launches for a whole batch.

What a launch leaves is freed when the next one has read it, so at most two buffers are held next to sources and views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton

from hf_dr.views.device import kernels
from hf_dr.views.device.plan import CHANGED_AT_ONCE
from hf_dr.views.device.program import RESULT, SOURCES, Changes, Mixes, Program, Resizes
from hf_dr.views.device.resampling import support

# A fused multiply-add rounds once where Pillow rounds twice.
_EXACT: dict[str, Any] = {"enable_fp_fusion": False}
_FILTERS = {"box": kernels.BOX.value, "bilinear": kernels.BILINEAR.value, "bicubic": kernels.BICUBIC.value}
# Sizes of tiles: the fastest of a dozen on an H100.
_TILE_ROWS, _TILE_COLUMNS = 8, 256
_MOST_UNROLLED = 7
_COUNTED = 1024  # of one program of the kernel that counts


def starts(sources: Sequence[torch.Tensor]) -> np.ndarray:
    """Returns what the kernels add to an offset to reach a buffer: how far it lies from the first, in bytes."""
    addresses = np.array([source.data_ptr() for source in sources], np.int64)
    return addresses - addresses[0]


def run(program: Program, sources: Sequence[torch.Tensor]) -> torch.Tensor:
    """Performs a program; uint8 (N, H, W, 3). Nothing is waited for."""
    device = sources[0].device
    table = program.table
    if device.type == "cuda":
        table = table.pin_memory()  # returns itself where it is pinned
    table = table.to(device, non_blocking=True)
    height, width = program.size
    made = torch.empty(program.buffers[RESULT], dtype=torch.uint8, device=device)
    held = {SOURCES: sources[0], RESULT: made}
    views_MHWC = made.view(program.num_images, height, width, 3)
    mixed_NHWC: torch.Tensor | None = None
    for launch in program.launches:
        if isinstance(launch, Mixes):
            mixed_NHWC = views_MHWC[: program.num_views].clone() if mixed_NHWC is None else mixed_NHWC
            _mix(launch, table, mixed_NHWC, views_MHWC)
            continue
        if launch.writes != RESULT:
            held[launch.writes] = torch.empty(program.buffers[launch.writes], dtype=torch.uint8, device=device)
        out = held[launch.writes]
        if isinstance(launch, Resizes):
            between = torch.empty(program.buffers[launch.between], dtype=torch.uint8, device=device)
            _resize(launch, table, held[launch.reads], between, out)
        else:
            _change(launch, table, held[launch.reads], out)
        if launch.reads != SOURCES:
            del held[launch.reads]
    return views_MHWC[: program.num_views] if mixed_NHWC is None else mixed_NHWC


def _resize(
    launch: Resizes, table: torch.Tensor, source: torch.Tensor, between: torch.Tensor, out: torch.Tensor
) -> None:
    """Two passes, each image along its own axes."""
    axes, num_outputs, num_weights = 2 * launch.count, launch.num_outputs, launch.num_weights
    length = axes * num_outputs
    if launch.weights is None:
        weights = torch.empty(length * (1 + num_weights), dtype=torch.int32, device=table.device)
        block = 128
        kernels.weights_kernel[(axes, triton.cdiv(num_outputs, block))](
            table[launch.axes :], weights, weights[length:], num_outputs, num_weights,
            HALF_WIDTH=support(launch.interpolation), FILTER=_FILTERS[launch.interpolation], BLOCK=block, **_EXACT,
        )  # fmt: skip
    else:
        weights = table[launch.weights :].view(torch.int32)
    passes = ((source, between, launch.rows), (between, out, launch.second))
    for (read, written, rows), (height, width) in zip(passes, launch.most, strict=True):
        grid = (launch.count, triton.cdiv(3 * width, _TILE_COLUMNS), triton.cdiv(height, _TILE_ROWS))
        kernels.pass_kernel[grid](
            read, written, table[rows:], weights, weights[length:], num_outputs, num_weights,
            UNROLLED=num_weights if num_weights <= _MOST_UNROLLED else 0, COLUMNS=_TILE_COLUMNS, ROWS=_TILE_ROWS, **_EXACT,
        )  # fmt: skip


def _change(launch: Changes, table: torch.Tensor, source: torch.Tensor, out: torch.Tensor) -> None:
    """Changes each image in its own way."""
    count, device = launch.count, table.device
    rows, tables = table[launch.rows :], out  # not read where no image is changed level by level
    if launch.looks_up:
        tables = torch.empty((count, 3, 256), dtype=torch.uint8, device=device)
        counts = torch.zeros((count, 3, 256), dtype=torch.int32, device=device)
        if launch.most_counted:
            grid = (count, triton.cdiv(launch.most_counted, _COUNTED))
            kernels.count_kernel[grid](source, rows, counts, BLOCK=_COUNTED, **_EXACT)
        kernels.table_kernel[(count,)](rows, counts, tables, **_EXACT)
    fill, colour = (red + 256 * green + 65536 * blue for red, green, blue in (launch.fill, launch.colour))
    kernels.change_kernel[(count, triton.cdiv(launch.most, CHANGED_AT_ONCE))](
        source, out, rows, tables, fill, colour, BLOCK=CHANGED_AT_ONCE, **_EXACT
    )


def _mix(launch: Mixes, table: torch.Tensor, views_NHWC: torch.Tensor, pool_MHWC: torch.Tensor) -> None:
    """Mixes views in place with views of the pool, which are not mixed."""
    row_bytes = 3 * views_NHWC.shape[2]
    view_bytes = views_NHWC.shape[1] * row_bytes
    block = 2048
    kernels.mix_kernel[(launch.count, triton.cdiv(view_bytes, block))](
        views_NHWC, pool_MHWC, table[launch.rows :], row_bytes, view_bytes, BLOCK=block, **_EXACT
    )

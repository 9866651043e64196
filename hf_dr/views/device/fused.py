"""The steps through the Triton kernels of `hf_dr.views.device.kernels`: a few launches for a whole batch.

All launches are prepared first, so that the numbers of all of them reach the device in one copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton

from hf_dr.views.device import kernels
from hf_dr.views.device.images import Images
from hf_dr.views.device.plan import BRIGHTNESS, CONTRAST, GATHER, ONE, Change, Crop, Mix, Resample, Step
from hf_dr.views.device.resampling import axis_weights, support, windows
from hf_dr.views.resizing import vertical_first

# A fused multiply-add rounds once where Pillow rounds twice.
_EXACT: dict[str, Any] = {"enable_fp_fusion": False}
# Filters that the device computes itself; sines of the others, and sums of "nearest", come from the host.
_FILTERS = {"box": kernels.BOX.value, "bilinear": kernels.BILINEAR.value, "bicubic": kernels.BICUBIC.value}
# Sizes of tiles: the fastest of a dozen on an H100.
_TILE_ROWS, _TILE_COLUMNS = 8, 256
_MOST_UNROLLED = 7
_PIXELS, _COUNTED = 512, 1024  # of one program of the kernels that change and that count


@dataclass
class _Launches:
    """Launches that wait for their tables.

    Attributes:
        device: Where they run.
        tables: Integers (R, C) each.
        calls: Take the uploaded tables, int64, in the order of `tables`.
    """

    device: torch.device
    tables: list[np.ndarray] = field(default_factory=list)
    calls: list[Callable[[list[torch.Tensor]], None]] = field(default_factory=list)

    def table(self, *columns: np.ndarray | int) -> int:
        """Takes the columns of a table and returns its place."""
        self.tables.append(np.stack(np.broadcast_arrays(*columns), axis=1).astype(np.int64, copy=False))
        return len(self.tables) - 1

    def run(self) -> None:
        """Uploads the tables and launches everything."""
        if not self.calls:
            return
        flat = upload(np.concatenate([table.reshape(-1) for table in self.tables]), self.device)
        uploaded = list(flat.split([table.size for table in self.tables]))
        for call in self.calls:
            call(uploaded)


def run(images: Images, steps: list[Step]) -> Images:
    """Performs the steps on N images; the images themselves are not changed."""
    launches = _Launches(images.data.device)
    waiting = list(steps)
    while waiting:
        step = waiting.pop(0)
        if isinstance(step, Crop):
            images = images.crop(step.boxes)
        elif isinstance(step, Resample):
            mirrored = _mirrors(waiting[0]) if waiting else None
            if mirrored is not None:
                waiting.pop(0)
            images = _resample(images, step, mirrored, launches)
        else:
            images = _change(images, step, launches)
    launches.run()
    return images


def upload(table: np.ndarray, device: torch.device) -> torch.Tensor:
    """Copies a table to the device without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(table))
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _mirrors(step: Step) -> np.ndarray | None:
    """Which images a change mirrors, bool (N,), if that is all it does; a resize can do it on the way."""
    if not isinstance(step, Change) or step.widths is not None or step.fills_boxes.any():
        return None
    mirrored = step.kinds == GATHER
    a, b, _, d, e, _ = step.matrices[mirrored].T
    plain = (a == -ONE) & (b == 0) & (d == 0) & (e == ONE)
    if (step.kinds[~mirrored] != 0).any() or not plain.all():
        return None
    return mirrored


def _resample(images: Images, step: Resample, mirrored: np.ndarray | None, launches: _Launches) -> Images:
    """Resizes each image in two passes; each begins with the axis that is its own to begin with."""
    device, count = images.data.device, len(images)
    in_N2 = np.stack([images.heights, images.widths], axis=1)
    out_N2 = np.stack([step.heights, step.widths], axis=1)
    begins_vertical = vertical_first((images.heights, images.widths), (step.heights, step.widths), step.passes)
    between = Images.empty(
        np.where(begins_vertical, step.heights, images.heights),
        np.where(begins_vertical, images.widths, step.widths),
        device,
    )
    made = Images.empty(step.heights, step.widths, device)
    first_axis = np.where(begins_vertical, 0, 1)
    weights = _weights(in_N2.reshape(-1), out_N2.reshape(-1), step.interpolation, launches)
    windows_N2 = windows(in_N2, out_N2, step.interpolation)
    which = np.arange(count)
    never = np.zeros(count, np.int64)
    for source, out, axis, mirror in (
        (images, between, first_axis, never),
        (between, made, 1 - first_axis, never if mirrored is None else mirrored),
    ):
        # Rows 2n and 2n + 1 of the weights are those of the height and of the width of view n.
        table = launches.table(
            source.offsets, source.strides, out.offsets, out.heights, out.widths, axis, 2 * which + axis,
            in_N2[which, axis] - 1, windows_N2[which, axis], mirror,
        )  # fmt: skip
        grid = (
            count,
            triton.cdiv(3 * int(out.widths.max(initial=1)), _TILE_COLUMNS),
            triton.cdiv(int(out.heights.max(initial=1)), _TILE_ROWS),
        )

        def call(
            uploaded: list[torch.Tensor],
            source: Images = source,
            out: Images = out,
            table: int = table,
            grid: Any = grid,
        ) -> None:
            first_AX, weights_AKX = weights()
            num_weights = weights_AKX.shape[1]
            kernels.pass_kernel[grid](
                source.data, out.data, uploaded[table], first_AX, weights_AKX, first_AX.shape[1], num_weights,
                UNROLLED=num_weights if num_weights <= _MOST_UNROLLED else 0, COLUMNS=_TILE_COLUMNS, ROWS=_TILE_ROWS, **_EXACT,
            )  # fmt: skip

        launches.calls.append(call)
    return made


def _weights(
    in_sizes: np.ndarray, out_sizes: np.ndarray, interpolation: str, launches: _Launches
) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """Returns what gives first source pixels, int32 (A, X), and weights, int32 (A, K, X), once they have been launched."""
    device = launches.device
    if interpolation not in _FILTERS:
        host = axis_weights(in_sizes, out_sizes, interpolation)
        ready = upload(host.first, device), upload(host.weights.transpose(0, 2, 1), device)
        return lambda: ready
    count, num_outputs = len(in_sizes), int(out_sizes.max(initial=1))
    num_weights = int(windows(in_sizes, out_sizes, interpolation).max(initial=1))
    first_AX = torch.empty((count, num_outputs), dtype=torch.int32, device=device)
    weights_AKX = torch.empty((count, num_weights, num_outputs), dtype=torch.int32, device=device)
    table, block = launches.table(in_sizes, out_sizes), 128

    def call(uploaded: list[torch.Tensor]) -> None:
        kernels.weights_kernel[(count, triton.cdiv(num_outputs, block))](
            uploaded[table], first_AX, weights_AKX, num_outputs, num_weights,
            HALF_WIDTH=support(interpolation), FILTER=_FILTERS[interpolation], BLOCK=block, **_EXACT,
        )  # fmt: skip

    launches.calls.append(call)
    return lambda: (first_AX, weights_AKX)


def _change(images: Images, step: Change, launches: _Launches) -> Images:
    """Changes each image in its own way."""
    device, count = images.data.device, len(images)
    made = Images.empty(
        images.heights if step.heights is None else step.heights,
        images.widths if step.widths is None else step.widths,
        device,
    )
    factors = step.factors.view(np.int32).astype(np.int64)  # the bits of the float
    table = launches.table(
        images.offsets, images.heights, images.widths, images.strides, made.offsets, made.heights, made.widths,
        step.kinds, *step.matrices.T, factors, *(step.boxes * step.fills_boxes[:, None]).T,
    )  # fmt: skip
    counted, looked_up = step.kinds >= CONTRAST, bool((step.kinds >= BRIGHTNESS).any())
    most_counted = int((images.heights * images.widths)[counted].max(initial=0))
    most = int((made.heights * made.widths).max(initial=1))
    fill, colour = (red + 256 * green + 65536 * blue for red, green, blue in (step.fill, step.colour))

    def call(uploaded: list[torch.Tensor]) -> None:
        tables = made.data  # not read where no image is changed level by level
        if looked_up:
            tables = torch.empty((count, 3, 256), dtype=torch.uint8, device=device)
            counts = torch.zeros((count, 3, 256), dtype=torch.int32, device=device)
            if most_counted:
                kernels.count_kernel[(count, triton.cdiv(most_counted, _COUNTED))](
                    images.data, uploaded[table], counts, BLOCK=_COUNTED, **_EXACT
                )
            kernels.table_kernel[(count,)](uploaded[table], counts, tables, **_EXACT)
        kernels.change_kernel[(count, triton.cdiv(most, _PIXELS))](
            images.data, made.data, uploaded[table], tables, fill, colour, BLOCK=_PIXELS, **_EXACT
        )

    launches.calls.append(call)
    return made


def mix(views_NHWC: torch.Tensor, pool_MHWC: torch.Tensor, partners: np.ndarray, step: Mix) -> None:
    """Mixes views in place with their partners in the pool, which holds unmixed views; -1 is no partner."""
    mixed = np.flatnonzero(step.active & (partners >= 0))
    if not len(mixed):
        return
    columns = (mixed, partners[mixed], step.weights[mixed], *step.boxes[mixed].T)
    table = upload(np.stack(columns, axis=1).astype(np.int64), views_NHWC.device)
    row_bytes = 3 * views_NHWC.shape[2]
    view_bytes = views_NHWC.shape[1] * row_bytes
    block = 2048
    kernels.mix_kernel[(len(mixed), triton.cdiv(view_bytes, block))](
        views_NHWC, pool_MHWC, table, row_bytes, view_bytes, BLOCK=block, **_EXACT
    )

"""What a device does to a batch: a few launches, and one table with the numbers of every view.

A program is made where parameters are drawn or read, in a loader's worker say, without pixels and without a device. It is
performed where the pixels are: by `hf_dr.views.device.fused` on a GPU, elsewhere by `hf_dr.views.device.eager`, which
says what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from hf_dr.views.device.images import Windows
from hf_dr.views.device.plan import BRIGHTNESS, CONTRAST, COPY, GATHER, ONE, Change, Crop, Mix, Resample, Step, sides_of
from hf_dr.views.device.resampling import axis_weights, windows
from hf_dr.views.resizing import vertical_first

CHANGE_COLUMNS = (
    "source", "source_height", "source_width", "source_stride", "out", "out_height", "out_width",
    "kind", "a", "b", "c", "d", "e", "f", "factor", "top", "left", "height", "width",
)  # fmt: skip
PASS_COLUMNS = (
    "source", "source_stride", "out", "out_height", "out_width", "axis", "weights", "last", "window", "mirrored",
)  # fmt: skip
MIX_COLUMNS = ("view", "partner", "weight", "top", "left", "height", "width")

SOURCES, RESULT = 0, 1  # buffers of a program; the others hold what lies between two launches
# Views are made in parts, so that what lies between the launches takes at most about this number of bytes.
WORKING_BYTES = 512 << 20
# Filters whose weights the device computes itself; sines of the others, and sums of "nearest", come from the host.
ON_DEVICE = ("box", "bilinear", "bicubic")

_OfImages = TypeVar("_OfImages", bound=Windows | Step)


@dataclass(frozen=True)
class Launch:
    """Something that is done to `count` images, those from number `first` on.

    Attributes:
        reads: Number of the buffer that is read.
        writes: Number of the buffer that is written.
        first: The first image.
        count: N, the number of images.
        rows: Index in the program's table at which its rows begin.
    """

    columns: ClassVar[tuple[str, ...]]
    """What the numbers of a row are."""

    reads: int
    writes: int
    first: int
    count: int
    rows: int


@dataclass(frozen=True)
class Resizes(Launch):
    """Resizes images in two passes, each of which begins with the axis that is its own to begin with; (N, 10).

    Attributes:
        between: Number of the buffer between the passes.
        second: Index in the table at which the rows of the second pass begin.
        most: Largest (height, width) that each pass makes.
        interpolation: One of Pillow's filters by torchvision's name.
        axes: Index in the table at which the sizes (source, output) of 2 N axes begin, height and width of each image in turn.
        weights: Index in the table at which the axes' first source pixels, int32 (2 N, X), begin, and after them the weights,
            int32 (2 N, K, X); None where the device computes them.
        num_outputs: X.
        num_weights: K.
    """

    columns: ClassVar[tuple[str, ...]] = PASS_COLUMNS
    between: int
    second: int
    most: tuple[tuple[int, int], tuple[int, int]]
    interpolation: str
    axes: int
    weights: int | None
    num_outputs: int
    num_weights: int


@dataclass(frozen=True)
class Changes(Launch):
    """Changes each image in its own way, (N, 19).

    Attributes:
        fill: What `GATHER` puts outside of the source.
        colour: Colour of the boxes.
        most: Pixels of the largest output.
        most_counted: Pixels of the largest source whose levels are counted; 0: there is none.
        looks_up: Whether any image is changed level by level.
    """

    columns: ClassVar[tuple[str, ...]] = CHANGE_COLUMNS
    fill: tuple[int, int, int]
    colour: tuple[int, int, int]
    most: int
    most_counted: int
    looks_up: bool


@dataclass(frozen=True)
class Mixes(Launch):
    """Mixes some of the views with others that were made, (N, 7)."""

    columns: ClassVar[tuple[str, ...]] = MIX_COLUMNS


@dataclass(frozen=True)
class Program:
    """All that is done to a batch.

    Attributes:
        table: int64 (numbers,), on the CPU.
        launches: The launches, in their order.
        buffers: Bytes of each buffer; those of `SOURCES` are not the program's.
        num_views: N, the number of views; the other M - N images are only mixed into them.
        size: (height, width) of the views.
    """

    table: torch.Tensor
    launches: tuple[Resizes | Changes | Mixes, ...]
    buffers: tuple[int, ...]
    num_views: int
    size: tuple[int, int]

    def __getstate__(self) -> dict[str, Any]:
        """The table crosses between processes within the message: see `hf_dr.replay.messages`."""
        return {**self.__dict__, "table": self.table.numpy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "table": torch.from_numpy(state["table"])})

    @property
    def num_images(self) -> int:
        """M."""
        return self.buffers[RESULT] // (3 * self.size[0] * self.size[1])

    def rows(self, launch: Launch, start: int | None = None) -> np.ndarray:
        """Returns the rows of a launch, int64 (N, columns), to be read or changed; those of a second pass begin at `start`."""
        start = launch.rows if start is None else start
        stop = start + launch.count * len(launch.columns)
        return self.table.numpy()[start:stop].reshape(launch.count, len(launch.columns))

    def moved(self, places: np.ndarray) -> Program:
        """Returns the program for source images that lie elsewhere: `places`, int64 (M,), are added to theirs."""
        program = replace(self, table=self.table.clone())
        for launch in self.launches:
            if launch.reads == SOURCES:
                program.rows(launch)[:, launch.columns.index("source")] += places[
                    launch.first : launch.first + launch.count
                ]
        return program

    def pin_memory(self) -> Program:
        """Returns the program with its table in pinned memory."""
        return replace(self, table=self.table.pin_memory())


def program(
    images: Windows,
    steps: Sequence[Step],
    mixes: Sequence[Mix],
    partners: np.ndarray,
    size: tuple[int, int],
    working_bytes: int = WORKING_BYTES,
) -> Program:
    """Returns what makes views of M images.

    Args:
        images: The sources.
        steps: The steps of all M.
        mixes: How the first N are mixed.
        partners: int64 (N,), what each is mixed with, one of the M; -1 for nothing.
        size: (height, width) of the views.
        working_bytes: See `WORKING_BYTES`.
    """
    writer = _Writer()
    views = Windows.dense(*sides_of(size, len(images)))
    writer.buffers[RESULT] = views.num_bytes
    for rows in _parts(images, steps, working_bytes):
        writer.make(_part(images, rows), [_part(step, rows) for step in steps], _part(views, rows), rows.start)
    for step in mixes:
        mixed = np.flatnonzero(step.active & (partners >= 0))
        if len(mixed):
            rows_of = writer.table(mixed, partners[mixed], step.weights[mixed], *step.boxes[mixed].T)
            writer.launches.append(Mixes(RESULT, RESULT, 0, len(mixed), rows_of))
    table = np.concatenate([np.zeros(0, np.int64), *writer.tables])
    return Program(torch.from_numpy(table), tuple(writer.launches), tuple(writer.buffers), len(partners), size)


def _parts(images: Windows, steps: Sequence[Step], working_bytes: int) -> list[slice]:
    """Cuts images into runs, so that what lies between the steps of a run takes at most about the given number of bytes."""
    heights, widths = images.heights, images.widths
    held, most = np.zeros(len(images), np.int64), np.zeros(len(images), np.int64)
    for step in steps:
        if isinstance(step, Resample):
            between_heights, between_widths, _ = _between(heights, widths, step)
            between = 3 * between_heights * between_widths
            most, held = np.maximum(most, held + between), between
        heights, widths = step.heights, step.widths
        if not isinstance(step, Crop):
            made = 3 * heights * widths
            most, held = np.maximum(most, held + made), made
    part_of = (np.cumsum(most) - 1) // working_bytes
    cuts = [0, *(np.flatnonzero(np.diff(part_of)) + 1).tolist(), len(images)]
    return [slice(start, stop) for start, stop in pairwise(cuts) if stop > start]


def _part(whole: _OfImages, rows: slice) -> _OfImages:
    """Returns a step, or windows, of some of the images."""
    arrays: dict[str, Any] = {name: value for name, value in vars(whole).items() if isinstance(value, np.ndarray)}
    return replace(whole, **{name: array[rows] for name, array in arrays.items()})


def _between(heights: np.ndarray, widths: np.ndarray, step: Resample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heights and widths between the passes of a resize, and whether the vertical pass comes first, each (N,)."""
    vertical = vertical_first((heights, widths), (step.heights, step.widths), step.passes)
    return np.where(vertical, step.heights, heights), np.where(vertical, widths, step.widths), vertical


def _mirrors(step: Step | None) -> np.ndarray | None:
    """Which images a change mirrors, bool (N,), if that is all it does; a resize can do it on the way."""
    if not isinstance(step, Change) or step.fills_boxes.any():
        return None
    mirrored = step.kinds == GATHER
    a, b, _, d, e, _ = step.matrices[mirrored].T
    flips = (a == -ONE) & (b == 0) & (d == 0) & (e == ONE)  # no other op has such a matrix
    return mirrored if flips.all() and (step.kinds[~mirrored] == COPY).all() else None


@dataclass
class _Writer:
    """Writes a program."""

    tables: list[np.ndarray] = field(default_factory=list)
    launches: list[Resizes | Changes | Mixes] = field(default_factory=list)
    buffers: list[int] = field(default_factory=lambda: [0, 0])
    length: int = 0

    def table(self, *columns: np.ndarray | int) -> int:
        """Takes the columns of a table and returns where it begins."""
        return self.numbers(np.stack(np.broadcast_arrays(*columns), axis=1).astype(np.int64, copy=False))

    def numbers(self, table: np.ndarray) -> int:
        """Takes numbers and returns where they begin: at 16 bytes, for which Triton compiles a kernel once."""
        begin = self.length
        self.tables += [table.reshape(-1), np.zeros(table.size % 2, np.int64)]
        self.length += table.size + table.size % 2
        return begin

    def make(self, images: Windows, steps: Sequence[Step], views: Windows, first: int) -> None:
        """Makes views of images; those from number `first` on."""
        waiting, reads = list(steps), SOURCES
        if not waiting or isinstance(waiting[-1], Crop):
            waiting.append(Change.none(views.heights, views.widths))  # copies: views lie one after the other
        while waiting:
            step = waiting.pop(0)
            if isinstance(step, Crop):
                images = images.crop(step.boxes)
                continue
            mirrored = _mirrors(waiting[0]) if waiting and isinstance(step, Resample) else None
            if mirrored is not None:
                waiting.pop(0)
            made, writes = views, RESULT
            if waiting:
                made, writes = Windows.dense(step.heights, step.widths), len(self.buffers)
                self.buffers.append(made.num_bytes)
            if isinstance(step, Resample):
                self.resize(images, made, step, mirrored, (reads, writes, first, len(images)))
            else:
                self.change(images, made, step, (reads, writes, first, len(images)))
            images, reads = made, writes

    def resize(
        self,
        images: Windows,
        made: Windows,
        step: Resample,
        mirrored: np.ndarray | None,
        which: tuple[int, int, int, int],
    ) -> None:
        in_N2, out_N2 = (np.stack([w.heights, w.widths], axis=1) for w in (images, made))
        heights, widths, vertical = _between(images.heights, images.widths, step)
        between, first_axis = Windows.dense(heights, widths), np.where(vertical, 0, 1)
        number = len(self.buffers)
        self.buffers.append(between.num_bytes)
        windows_N2, numbers = windows(in_N2, out_N2, step.interpolation), np.arange(len(images))
        axes, weights = self.table(in_N2.reshape(-1), out_N2.reshape(-1)), None
        if step.interpolation not in ON_DEVICE:
            host = axis_weights(in_N2.reshape(-1), out_N2.reshape(-1), step.interpolation)
            flat = np.concatenate([host.first.reshape(-1), host.weights.transpose(0, 2, 1).reshape(-1)])
            weights = self.numbers(np.append(flat, np.zeros(len(flat) % 2, np.int32)).view(np.int64))
        rows = [
            self.table(
                source.places, source.strides, out.places, out.heights, out.widths, axis, 2 * numbers + axis,
                in_N2[numbers, axis] - 1, windows_N2[numbers, axis], mirror,
            )
            for source, out, axis, mirror in (
                (images, between, first_axis, 0),
                (between, made, 1 - first_axis, 0 if mirrored is None else mirrored.astype(np.int64)),
            )
        ]  # fmt: skip
        most = [(int(w.heights.max(initial=1)), int(w.widths.max(initial=1))) for w in (between, made)]
        launch = Resizes(
            *which, rows[0], number, rows[1], (most[0], most[1]), step.interpolation, axes, weights,
            int(out_N2.max(initial=1)), int(windows_N2.max(initial=1)),
        )  # fmt: skip
        self.launches.append(launch)

    def change(self, images: Windows, made: Windows, step: Change, which: tuple[int, int, int, int]) -> None:
        factors = step.factors.view(np.int32).astype(np.int64)  # the bits of the float
        rows = self.table(
            images.places, images.heights, images.widths, images.strides, made.places, made.heights, made.widths,
            step.kinds, *step.matrices.T, factors, *(step.boxes * step.fills_boxes[:, None]).T,
        )  # fmt: skip
        most_counted = int((images.heights * images.widths)[step.kinds >= CONTRAST].max(initial=0))
        most = int((made.heights * made.widths).max(initial=1))
        looks_up = bool((step.kinds >= BRIGHTNESS).any())
        self.launches.append(Changes(*which, rows, step.fill, step.colour, most, most_counted, looks_up))

"""From an augmentation and the parameters of many views to steps of plain numbers, which an engine performs.

All that depends on the sizes of the images and on the parameters is computed here, on the host, in the same Python and
NumPy arithmetic as torchvision and Pillow use. What a step does to pixels is said in `hf_dr.views.device.eager`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import PIL.Image

from hf_dr.errors import HfDrError
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops import (
    AutoAugment,
    CenterCrop,
    ColorJitter,
    CutMix,
    MixUp,
    Op,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    TrivialAugmentWide,
)
from hf_dr.views.ops.base import Params, Size, size_of
from hf_dr.views.ops.colour import OPERATIONS, UNSIGNED
from hf_dr.views.ops.geometry import check_first_pass

Columns = Mapping[str, np.ndarray]
"""Parameter name -> (N,) or (N, n)."""

# What a `Change` does to one view. Those from BRIGHTNESS on look each level up in a table, those from CONTRAST on need the
# histogram of the image for it.
COPY, GATHER, COLOUR, SHARPNESS = range(4)
BRIGHTNESS, POSTERIZE, SOLARIZE, CONTRAST, AUTOCONTRAST, EQUALIZE = range(4, 10)

# Beyond this side Pillow may leave its fixed-point arithmetic in a rotation or a shear.
MAX_AFFINE_SIDE = 8192
# Pixels that one program of the kernels changes, and of an image at most: the second axis of a grid has 65,535 programs.
CHANGED_AT_ONCE = 512
MAX_CHANGED_PIXELS = 65_535 * CHANGED_AT_ONCE
ONE = 1 << 16
_IDENTITY = (ONE, 0, ONE // 2, 0, ONE, ONE // 2)


class NotOnDeviceError(HfDrError):
    """Views that must be made by Pillow; the message says why."""


@dataclass(frozen=True)
class Crop:
    """Takes a box of each image, int64 (N, 4), (top, left, height, width); no pixel is touched."""

    boxes: np.ndarray

    @property
    def heights(self) -> np.ndarray:
        return self.boxes[:, 2]

    @property
    def widths(self) -> np.ndarray:
        return self.boxes[:, 3]


@dataclass(frozen=True)
class Resample:
    """Resizes each image in two passes.

    Attributes:
        heights: int64 (N,), of the outputs.
        widths: int64 (N,), of the outputs.
        interpolation: One of Pillow's filters by torchvision's name.
        passes: One of `hf_dr.views.resizing.PASSES`.
    """

    heights: np.ndarray
    widths: np.ndarray
    interpolation: str
    passes: str


@dataclass(frozen=True)
class Change:
    """Changes each image in its own way.

    Attributes:
        heights: int64 (N,), of the outputs.
        widths: int64 (N,), of the outputs.
        kinds: int64 (N,), `COPY` to `EQUALIZE`.
        matrices: int64 (N, 6), for `GATHER`: the source of (x, y) is ((a x + b y + c) >> 16, (d x + e y + f) >> 16).
        factors: float32 (N,): the weight of the image in a blend; the bits that `POSTERIZE` leaves; the level from which on
            `SOLARIZE` inverts.
        boxes: int64 (N, 4), filled with `colour` afterwards, whatever the kind; of height or width 0: none.
        fill: What `GATHER` puts outside of the source.
        colour: Colour of the boxes.
    """

    heights: np.ndarray
    widths: np.ndarray
    kinds: np.ndarray
    matrices: np.ndarray
    factors: np.ndarray
    boxes: np.ndarray
    fill: tuple[int, int, int] = (0, 0, 0)
    colour: tuple[int, int, int] = (0, 0, 0)

    @property
    def fills_boxes(self) -> np.ndarray:
        """Which images get a box, bool (N,)."""
        return np.asarray((self.boxes[:, 2:] > 0).all(axis=1))

    @classmethod
    def none(cls, heights: np.ndarray, widths: np.ndarray, **settings: Any) -> Change:
        """Returns a change that copies all images; the arrays are there to be filled in."""
        count = len(heights)
        return cls(
            heights,
            widths,
            np.zeros(count, np.int64),
            np.tile(np.array(_IDENTITY, np.int64), (count, 1)),
            np.ones(count, np.float32),
            np.zeros((count, 4), np.int64),
            **settings,
        )


@dataclass(frozen=True)
class Mix:
    """Mixes views of one size with other views.

    Attributes:
        weights: int64 (N,): the view counts `weights` / 256, its partner the rest.
        boxes: int64 (N, 4): what of the partner is pasted afterwards.
    """

    weights: np.ndarray
    boxes: np.ndarray

    @property
    def active(self) -> np.ndarray:
        """Which views are mixed at all, bool (N,)."""
        return np.asarray((self.weights != 256) | (self.boxes[:, 2:] > 0).all(axis=1))


Step = Crop | Resample | Change


@dataclass
class Sizes:
    """The sizes of N images, int64 (N,) each, on their way through the steps."""

    heights: np.ndarray
    widths: np.ndarray
    steps: list[Step] = field(default_factory=list)

    def add(self, step: Step) -> None:
        """Appends a step and goes on with the sizes that it leaves."""
        if isinstance(step, Change):
            if not step.kinds.any() and not step.fills_boxes.any():
                return
            self._check_pixels(step)
            last = self.steps[-1] if self.steps else None
            if isinstance(last, Change) and not step.kinds.any() and not last.fills_boxes.any():
                self.steps[-1] = replace(last, boxes=step.boxes, colour=step.colour)  # boxes come last in any case
                return
        self.steps.append(step)
        self.heights, self.widths = step.heights, step.widths

    def _check_pixels(self, step: Change) -> None:
        """Refuses images that are too large before or after a change."""
        before, after = self.heights * self.widths, step.heights * step.widths
        if max(before.max(), after.max()) > MAX_CHANGED_PIXELS:
            raise NotOnDeviceError(f"images of more than {MAX_CHANGED_PIXELS:,} pixels are changed by Pillow")

    def refuse(self, bad: np.ndarray, op: Op, params: Columns) -> None:
        """Raises what the op itself raises for the first view whose parameters are bad."""
        if not bad.any():
            return
        n = int(bad.argmax())
        one = row_of(params, n)
        image = PIL.Image.new("RGB", (int(self.widths[n]), int(self.heights[n])))
        op.apply(image, one, image)
        raise AssertionError(f"{op} accepts what was refused: {one}")


def sides_of(size: Size, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns heights and widths, int64 (N,) each, of `count` images of one size."""
    height, width = size
    return np.full(count, height, np.int64), np.full(count, width, np.int64)


def row_of(params: Columns, number: int) -> Params:
    """Returns the parameters of one view as an op takes them."""
    cells = {name: values[number] for name, values in params.items()}
    return {name: tuple(cell.tolist()) if isinstance(cell, np.ndarray) else cell.item() for name, cell in cells.items()}


_Planner = Callable[[Any, Columns, Sizes], None]
_PLANNERS: dict[type[Op], _Planner] = {}
_P = TypeVar("_P", bound=_Planner)


def _plans(*ops: type[Op]) -> Callable[[_P], _P]:
    """Registers a function as that which turns ops of these classes into steps."""

    def register(planner: _P) -> _P:
        _PLANNERS.update(dict.fromkeys(ops, planner))
        return planner

    return register


def unsupported(augmentation: Augmentation) -> list[str]:
    """Says which ops and settings have no device version, one line each; empty where all views can be made on a device."""
    reasons = []
    for op in augmentation.ops:
        name = type(op).__name__
        if type(op) not in _PLANNERS and type(op) not in (MixUp, CutMix):  # a subclass may do something else
            reasons.append(f"{name} has no device version")
        elif isinstance(op, AutoAugment | RandAugment | TrivialAugmentWide) and op.interpolation != "nearest":
            reasons.append(f"{name} with `interpolation` {op.interpolation} has no device version (nearest has)")
        elif isinstance(op, ColorJitter) and op.hue:
            reasons.append(f"{name} with `hue` has no device version (brightness, contrast and saturation have)")
    return reasons


def plan(augmentation: Augmentation, params: Columns, heights: np.ndarray, widths: np.ndarray) -> list[Step]:
    """Returns the steps of the ops that need one image only.

    Args:
        augmentation: Its `unsupported` must be empty.
        params: Stored parameters of N views by their names in the augmentation.
        heights: int64 (N,), of the images.
        widths: int64 (N,).

    Raises:
        ReplayError: Parameters do not fit their image; the same error as the op's own.
        NotOnDeviceError: An image is too large.
    """
    sizes = Sizes(heights, widths)
    for op, keys in augmentation.single:
        _PLANNERS[type(op)](op, {name: params[key] for name, key in keys.items()}, sizes)
    return sizes.steps


def plan_mixing(augmentation: Augmentation, params: Columns) -> list[Mix]:
    """Returns the mixing steps of N views; a ReplayError, the op's own, if a parameter is damaged."""
    mixes = []
    for op, keys in augmentation.mixing:
        local = {name: params[key] for name, key in keys.items()}
        count = len(next(iter(local.values())))
        sizes = Sizes(*sides_of(augmentation.size, count))
        weights = np.full(count, 256, np.int64)
        boxes = np.zeros((count, 4), np.int64)
        if type(op) is MixUp:
            scaled = local["lam"].astype(np.float64) * 256
            sizes.refuse(~((scaled >= 0) & (scaled <= 256) & (scaled == np.floor(scaled))), op, local)
            weights = scaled.astype(np.int64)
        else:
            boxes = _boxes(op, local, sizes)
        mixes.append(Mix(weights, boxes))
    return mixes


# ---------------------------------------------------------------------------------------------------------- geometry


def _boxes(op: Op, params: Columns, sizes: Sizes) -> np.ndarray:
    """Returns boxes (N, 4), int64, all inside their images."""
    boxes = params["box"].astype(np.int64)
    beyond = (boxes[:, 0] + boxes[:, 2] > sizes.heights) | (boxes[:, 1] + boxes[:, 3] > sizes.widths)
    sizes.refuse((boxes < 0).any(axis=1) | beyond, op, params)
    return boxes


def _different(sizes: Sizes) -> tuple[list[Size], np.ndarray]:
    """Returns each size once, and the place there of each image's."""
    pairs, places = np.unique(np.stack([sizes.heights, sizes.widths], axis=1), axis=0, return_inverse=True)
    return [(int(height), int(width)) for height, width in pairs], places.reshape(-1)


@_plans(RandomResizedCrop)
def _resized_crop(op: RandomResizedCrop, params: Columns, sizes: Sizes) -> None:
    boxes = _boxes(op, params, sizes)
    sizes.refuse((boxes[:, 2:] == 0).any(axis=1), op, params)
    for size in _different(sizes)[0]:
        check_first_pass(op, size, size_of(op))
    sizes.add(Crop(boxes))
    sizes.add(Resample(*sides_of(size_of(op), len(boxes)), op.interpolation, op.passes))


@_plans(Resize)
def _resize(op: Resize, params: Columns, sizes: Sizes) -> None:
    different, places = _different(sizes)
    for size in different:
        op.check_size(size)
    outputs = np.array([op.output_size(size) for size in different], np.int64)[places]
    sizes.add(Resample(outputs[:, 0], outputs[:, 1], op.interpolation, op.passes))


@_plans(CenterCrop)
def _center_crop(op: CenterCrop, params: Columns, sizes: Sizes) -> None:
    corners = []
    for side, inside in zip(size_of(op), (sizes.heights, sizes.widths), strict=True):
        padded = -((side - inside) // 2)
        cropped = np.rint((inside - side) / 2.0).astype(np.int64)  # halves to even, as Python's `round`
        corners.append(np.where(inside < side, padded, cropped))
    _take_window(corners[0], corners[1], size_of(op), (0, 0, 0), sizes)


@_plans(RandomCrop)
def _random_crop(op: RandomCrop, params: Columns, sizes: Sizes) -> None:
    offsets, (height, width) = params["offset"].astype(np.int64), size_of(op)
    padded = sizes.heights + 2 * op.padding, sizes.widths + 2 * op.padding
    beyond = (offsets[:, 0] + height > padded[0]) | (offsets[:, 1] + width > padded[1])
    sizes.refuse((offsets < 0).any(axis=1) | beyond, op, params)
    _take_window(offsets[:, 0] - op.padding, offsets[:, 1] - op.padding, (height, width), op.fill, sizes)


def _take_window(tops: np.ndarray, lefts: np.ndarray, size: Size, fill: tuple[int, int, int], sizes: Sizes) -> None:
    """Takes windows of one size, which may reach beyond the images: there they show `fill`."""
    heights, widths = sides_of(size, len(tops))
    inside = (tops >= 0) & (lefts >= 0) & (tops + heights <= sizes.heights) & (lefts + widths <= sizes.widths)
    if inside.all():
        sizes.add(Crop(np.stack([tops, lefts, heights, widths], axis=1)))
        return
    change = Change.none(heights, widths, fill=fill)
    change.kinds[:] = GATHER
    change.matrices[:, 2] += lefts * ONE
    change.matrices[:, 5] += tops * ONE
    sizes.add(change)


@_plans(RandomHorizontalFlip)
def _flip(op: RandomHorizontalFlip, params: Columns, sizes: Sizes) -> None:
    flipped = params[""].astype(bool)
    change = Change.none(sizes.heights, sizes.widths)
    change.kinds[flipped] = GATHER
    change.matrices[flipped, 0] = -ONE
    change.matrices[flipped, 2] += (sizes.widths[flipped] - 1) * ONE
    sizes.add(change)


@_plans(RandomErasing)
def _erase(op: RandomErasing, params: Columns, sizes: Sizes) -> None:
    boxes = _boxes(op, params, sizes)
    change = Change.none(sizes.heights, sizes.widths, colour=op.value)
    change.boxes[:] = boxes
    sizes.add(change)


# ------------------------------------------------------------------------------------------------------------ colour


@_plans(ColorJitter)
def _color_jitter(op: ColorJitter, params: Columns, sizes: Sizes) -> None:
    orders, factors = params["order"].astype(np.int64), params["factors"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        bad = (orders < 0) | (orders >= len(op.ORDERS)) | ~np.isfinite(factors).all(axis=1)
        bad |= (factors[:, :3] < 0).any(axis=1) | (np.abs(factors[:, 3]) > 0.5)
    sizes.refuse(bad, op, params)
    kinds = np.array([BRIGHTNESS, CONTRAST, COLOUR, COPY])
    kinds[:3] *= np.array([op.brightness, op.contrast, op.saturation]) != 0  # a setting of 0 is off: COPY
    for which in np.array(op.ORDERS)[orders].T:
        change = Change.none(sizes.heights, sizes.widths)
        change.kinds[:] = kinds[which]
        change.factors[:] = np.take_along_axis(factors, which[:, None], axis=1)[:, 0]
        sizes.add(change)


@_plans(AutoAugment, RandAugment, TrivialAugmentWide)
def _policy(op: AutoAugment | RandAugment | TrivialAugmentWide, params: Columns, sizes: Sizes) -> None:
    ops, levels = params["op"].astype(np.int64), params["level"].astype(np.int64)
    known = (ops >= 0) & (ops < len(op._operations)) & (np.abs(levels) < op.num_magnitude_bins)
    unsigned = ~_SIGNED[np.where(known, ops, 0)]
    sizes.refuse((~known | ((levels < 0) & unsigned)).any(axis=1), op, params)
    for at in range(ops.shape[1]):
        # One number for each distinct (operation, level, height, width).
        keys = ((ops[:, at] * 256 + levels[:, at] + 128 << 16) + sizes.heights << 16) + sizes.widths
        _, first, places = np.unique(keys, return_index=True, return_inverse=True)
        rows = [
            _policy_change(op, int(ops[n, at]), int(levels[n, at]), int(sizes.heights[n]), int(sizes.widths[n]))
            for n in first.tolist()
        ]
        kinds, matrices, factors = zip(*rows, strict=True)
        change = Change(
            sizes.heights,
            sizes.widths,
            np.array(kinds, np.int64)[places],
            np.array(matrices, np.int64)[places],
            np.array(factors, np.float64).astype(np.float32)[places],
            np.zeros((len(places), 4), np.int64),
            fill=op.fill or (0, 0, 0),
        )
        sizes.add(change)


_SIGNED = np.array([name not in UNSIGNED for name in OPERATIONS])
_KIND_OF = {
    "Brightness": BRIGHTNESS, "Color": COLOUR, "Contrast": CONTRAST, "Sharpness": SHARPNESS,
    "AutoContrast": AUTOCONTRAST, "Equalize": EQUALIZE,
}  # fmt: skip
"""The kind of each operation that blends with a factor of 1 + its magnitude, or that needs no factor."""


@lru_cache(maxsize=1 << 14)
def _policy_change(
    op: AutoAugment | RandAugment | TrivialAugmentWide, number: int, level: int, height: int, width: int
) -> tuple[int, tuple[int, ...], float]:
    """Kind, matrix and factor of one operation of a policy on one image (`hf_dr.views.ops.colour`)."""
    name = OPERATIONS[number]
    magnitude = op._policy.magnitude(name, level, op.num_magnitude_bins, (height, width))
    match name:
        case "Identity":
            return COPY, _IDENTITY, 1.0
        case "ShearX" | "ShearY":
            slope = math.degrees(math.atan(magnitude))
            shear = (slope, 0.0) if name == "ShearX" else (0.0, slope)
            return GATHER, _fixed_point(_inverse_affine((0.0, 0.0), (0, 0), shear), height, width), 1.0
        case "TranslateX" | "TranslateY":
            shift = (int(magnitude), 0) if name == "TranslateX" else (0, int(magnitude))
            middle = (width * 0.5, height * 0.5)
            return GATHER, _fixed_point(_inverse_affine(middle, shift, (0.0, 0.0)), height, width), 1.0
        case "Rotate":
            return _rotation(magnitude, height, width)
        case "Posterize":
            return POSTERIZE, _IDENTITY, float(int(magnitude))
        case "Solarize":  # a whole level is below it or not, as below the threshold
            return SOLARIZE, _IDENTITY, float(math.ceil(255.0 * magnitude))
        case "Invert":  # no level is below it
            return SOLARIZE, _IDENTITY, 0.0
    return _KIND_OF[name], _IDENTITY, 1 + magnitude


def _inverse_affine(
    centre: tuple[float, float], shift: tuple[int, int], shear: tuple[float, float]
) -> tuple[float, ...]:
    """The matrix from output to source, as torchvision's `_get_inverse_affine_matrix` computes it without a rotation."""
    shear_x, shear_y = map(math.radians, shear)
    a = math.cos(-shear_y) / math.cos(shear_y)
    b = -a * math.tan(shear_x)
    c = math.sin(-shear_y) / math.cos(shear_y)
    d = 1.0 - c * math.tan(shear_x)
    moved_x, moved_y = centre[0] + shift[0], centre[1] + shift[1]
    return d, -b, centre[0] - d * moved_x + b * moved_y, -c, a, centre[1] + c * moved_x - a * moved_y


def _rotation(angle: float, height: int, width: int) -> tuple[int, tuple[int, ...], float]:
    """A rotation as `PIL.Image.rotate` does it, with its exact cases."""
    angle %= 360.0
    last_x, last_y = (width - 1) * ONE + ONE // 2, (height - 1) * ONE + ONE // 2
    if angle == 0:
        return COPY, _IDENTITY, 1.0
    if angle == 180:
        return GATHER, (-ONE, 0, last_x, 0, -ONE, last_y), 1.0
    if angle == 90 and width == height:
        return GATHER, (0, -ONE, last_x, ONE, 0, ONE // 2), 1.0
    if angle == 270 and width == height:
        return GATHER, (0, ONE, ONE // 2, -ONE, 0, last_y), 1.0
    centre_x, centre_y, turn = width / 2, height / 2, -math.radians(angle)
    cos, sin, minus_sin = round(math.cos(turn), 15), round(math.sin(turn), 15), round(-math.sin(turn), 15)
    c = cos * -centre_x + sin * -centre_y + 0.0
    f = minus_sin * -centre_x + cos * -centre_y + 0.0
    matrix = (cos, sin, c + centre_x, minus_sin, cos, f + centre_y)
    return GATHER, _fixed_point(matrix, height, width), 1.0


def _fixed_point(matrix: tuple[float, ...], height: int, width: int) -> tuple[int, ...]:
    """The matrix in Pillow's 16.16 fixed point, moved to the middle of a pixel (`affine_fixed` of Geometry.c)."""
    a, b, c, d, e, f = matrix
    moves_only = b == 0 and d == 0  # Pillow scales in floating point then: for a shift by whole pixels it is the same
    if not moves_only and max(height, width) > MAX_AFFINE_SIDE:
        raise NotOnDeviceError(
            f"images with a side of more than {MAX_AFFINE_SIDE:,} pixels are rotated and sheared by Pillow"
        )
    values = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    return tuple(math.floor(value * 65536.0 + 0.5) for value in values)

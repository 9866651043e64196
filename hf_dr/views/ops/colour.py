"""Ops that change colours, and the policies that choose among operations on colour and geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

import numpy as np
import PIL.Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from hf_dr.errors import ReplayError
from hf_dr.views.ops.base import (
    AFFINE_INTERPOLATIONS,
    INTERPOLATIONS,
    Op,
    Param,
    Params,
    Size,
    check_interpolation,
    check_probability,
    check_rgb,
    check_setting,
    height_width,
    is_count,
    is_number,
    register,
)


@register
@dataclass(frozen=True)
class ColorJitter(Op):
    """Changes brightness, contrast, saturation and hue by random factors in random order (torchvision's rule).

    Args:
        brightness: Half-width b of the factor's range [max(0, 1 - b), 1 + b].
        contrast: The same for contrast.
        saturation: The same for saturation.
        hue: Half-width of the shift, in turns of the colour circle, 0 to 0.5.
    """

    name: ClassVar[str] = "color_jitter"
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    # Every order of (brightness, contrast, saturation, hue); the column holds the place in this list.
    ORDERS: ClassVar[list[tuple[int, ...]]] = list(permutations(range(4)))

    def __post_init__(self) -> None:
        for field in ("brightness", "contrast", "saturation"):
            value = getattr(self, field)
            check_setting(self, field, is_number(value) and 0 <= value <= 1000, "a number from 0 to 1000")
        check_setting(self, "hue", is_number(self.hue) and 0 <= self.hue <= 0.5, "a number from 0 to 0.5")

    @property
    def params(self) -> dict[str, Param]:
        return {"order": Param("uint8"), "factors": Param("float16", 4)}

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        factors = [rng.uniform(max(0.0, 1 - w), 1 + w) for w in (self.brightness, self.contrast, self.saturation)]
        factors.append(rng.uniform(-self.hue, self.hue))
        return {"order": int(rng.integers(len(self.ORDERS))), "factors": tuple(float(np.float16(f)) for f in factors)}

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        factors = [float(f) for f in params["factors"]]
        fits = 0 <= params["order"] < len(self.ORDERS) and all(math.isfinite(f) for f in factors)
        if not fits or min(factors[:3]) < 0 or abs(factors[3]) > 0.5:
            raise ReplayError(
                f"ColorJitter needs an order below {len(self.ORDERS)}, factors >= 0 and a hue in ±0.5, found order "
                f"{params['order']} and factors {factors}. The row is damaged; run `hf-dr verify`."
            )
        widths = (self.brightness, self.contrast, self.saturation, self.hue)
        kernels = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
        for which in self.ORDERS[params["order"]]:
            # A setting of 0 is off, as in torchvision; a factor of 1 is not always exact (hue goes through HSV).
            if widths[which]:
                image = kernels[which](image, factors[which])
        return image


@dataclass(frozen=True)
class _Policy:
    """The 14 operations of a policy space: for each, its largest magnitude and whether its sign is random."""

    shear: float
    translate: int | None  # pixels; None: 150/331 of the side, AutoAugment's rule
    rotate: float
    colour: float
    posterize: int  # bits taken away at most

    def table(self, op: str, level: int, num_levels: int, size: Size) -> float:
        """torchvision's table: the magnitude of an operation at a signed level, -num_levels < level < num_levels.

        Translations are in pixels and not whole; Solarize's threshold is a share of the brightest.
        """
        share = level / (num_levels - 1)
        match op:
            case "ShearX" | "ShearY":
                return self.shear * share
            case "TranslateX" | "TranslateY":
                side = size[1] if op == "TranslateX" else size[0]
                return (150 / 331 * side if self.translate is None else self.translate) * share
            case "Rotate":
                return self.rotate * share
            case "Posterize":
                return round(8 - self.posterize * share)
            case "Solarize":
                return 1 - share
            case "Brightness" | "Color" | "Contrast" | "Sharpness":
                return self.colour * share
        return 0.0

    def magnitude(self, op: str, level: int, num_levels: int, size: Size) -> float:
        """The value handed to an operation at a signed level: that of the table, translations in whole pixels."""
        if op not in ("TranslateX", "TranslateY"):
            return self.table(op, level, num_levels, size)
        # In whole numbers: rounding errors would make it a pixel less where the exact result is whole, as they do
        # in torchvision's float32 tables on some machines.
        side = size[1] if op == "TranslateX" else size[0]
        if self.translate is None:
            pixels = 150 * side * abs(level) // (331 * (num_levels - 1))
        else:
            pixels = self.translate * abs(level) // (num_levels - 1)
        return pixels if level > 0 else -pixels


@dataclass(frozen=True)
class _Increasing(_Policy):
    """The space of timm's `inc` set: translations in parts of pixels, other rules of what loses bits and is inverted."""

    def magnitude(self, op: str, level: int, num_levels: int, size: Size) -> float:
        last = num_levels - 1
        match op:
            case "TranslateX" | "TranslateY":
                return 0.45 * (size[1] if op == "TranslateX" else size[0]) * (level / last)
            case "Posterize":  # at the last level timm keeps no bit, which Pillow 13 refuses
                return max(1, 4 - 4 * level // last)
            case "Solarize":  # between two levels, where 255 times it is rounded to no other
                return (256 - 256 * level // last - 0.5) / 255
            case "SolarizeAdd":
                return 110 * level // last
        return super().magnitude(op, level, num_levels, size)


# Order and tables of torchvision's RandAugment and TrivialAugmentWide; a stored op is a place in this tuple.
POLICY_OPS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip


OPERATIONS = (*POLICY_OPS, "Invert", "SolarizeAdd")
"""All operations that are stored by their place, those of AutoAugment and RandAugmentIncreasing included."""
LEVELLESS = frozenset({"Identity", "AutoContrast", "Equalize", "Invert"})
"""Operations without a magnitude; their level is 0."""
UNSIGNED = LEVELLESS | {"Posterize", "Solarize", "SolarizeAdd"}
"""Operations whose level is never negative."""

_RAND_AUGMENT = _Policy(shear=0.3, translate=None, rotate=30, colour=0.9, posterize=4)


def rand_augment_magnitude(op: str, level: int, num_levels: int, size: Size) -> float:
    """Returns what torchvision's table for RandAugment has for one of `POLICY_OPS` at a signed level; see `_Policy.table`."""
    return _RAND_AUGMENT.table(op, level, num_levels, size)


_TRIVIAL_AUGMENT = _Policy(shear=0.99, translate=32, rotate=135, colour=0.99, posterize=6)


def _apply_policy_op(
    image: PIL.Image.Image, op: str, magnitude: float, interpolation: InterpolationMode, fill: list[int] | None
) -> PIL.Image.Image:
    """One operation of AutoAugment's space, with torchvision's kernels and conventions."""

    def affine(translate: list[float], shear: list[float], center: list[int] | None) -> PIL.Image.Image:
        return F.affine(image, 0.0, translate, 1.0, shear, interpolation, fill, center)

    match op:
        case "Identity":
            return image
        case "ShearX":
            return affine([0, 0], [math.degrees(math.atan(magnitude)), 0.0], [0, 0])
        case "ShearY":
            return affine([0, 0], [0.0, math.degrees(math.atan(magnitude))], [0, 0])
        case "TranslateX":
            return affine([magnitude, 0], [0.0, 0.0], None)
        case "TranslateY":
            return affine([0, magnitude], [0.0, 0.0], None)
        case "Rotate":
            return F.rotate(image, magnitude, interpolation, fill=fill)
        case "Brightness":
            return F.adjust_brightness(image, 1 + magnitude)
        case "Color":
            return F.adjust_saturation(image, 1 + magnitude)
        case "Contrast":
            return F.adjust_contrast(image, 1 + magnitude)
        case "Sharpness":
            return F.adjust_sharpness(image, 1 + magnitude)
        case "Posterize":
            return F.posterize(image, int(magnitude))
        case "Solarize":
            return F.solarize(image, 255.0 * magnitude)
        case "AutoContrast":
            return F.autocontrast(image)
        case "Equalize":
            return F.equalize(image)
        case "Invert":
            return F.invert(image)
        case "SolarizeAdd":
            return image.point([min(255, v + int(magnitude)) if v < 128 else v for v in range(256)] * 3)
    raise AssertionError(op)


class _PolicyOp(Op):
    """What RandAugment and its relatives share: a list of (operation, signed level) pairs for each view."""

    _policy: ClassVar[_Policy]
    _operations: ClassVar[tuple[str, ...]] = POLICY_OPS
    num_ops: int = 1
    num_magnitude_bins: int
    interpolation: str
    fill: tuple[int, int, int] | None

    def __post_init__(self) -> None:
        bins = self.num_magnitude_bins
        check_setting(self, "num_magnitude_bins", is_count(bins, 2, 128), "a count from 2 to 128")
        check_interpolation(self, AFFINE_INTERPOLATIONS)
        if self.fill is not None:
            check_rgb(self, "fill")

    @property
    def params(self) -> dict[str, Param]:
        return {"op": Param("uint8", self.num_ops), "level": Param("int8", self.num_ops)}

    def _draw(self, rng: np.random.Generator, level: int) -> tuple[int, int]:
        op = int(rng.integers(len(POLICY_OPS)))
        return op, self._signed(rng, op, level)

    def _signed(self, rng: np.random.Generator, op: int, level: int) -> int:
        negative = rng.random() < 0.5
        name = OPERATIONS[op]
        if name in LEVELLESS:
            return 0
        return -level if negative and name not in UNSIGNED else level

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        for op, level in zip(map(int, params["op"]), map(int, params["level"]), strict=True):
            known = 0 <= op < len(self._operations) and abs(level) < self.num_magnitude_bins
            if not known or (level < 0 and OPERATIONS[op] in UNSIGNED):
                raise ReplayError(
                    f"{type(self).__name__} needs operations below {len(self._operations)} at levels within "
                    f"±{self.num_magnitude_bins - 1} (not negative where unsigned), found operation {op} at level "
                    f"{level}. The row is damaged; run `hf-dr verify`."
                )
            name = OPERATIONS[op]
            magnitude = self._policy.magnitude(name, level, self.num_magnitude_bins, height_width(image))
            fill = None if self.fill is None else list(self.fill)
            image = _apply_policy_op(image, name, magnitude, INTERPOLATIONS[self.interpolation], fill)
        return image


def _check_settings(op: RandAugment | RandAugmentIncreasing) -> None:
    check_setting(op, "num_ops", is_count(op.num_ops, 1, 16), "a count from 1 to 16")
    last = op.num_magnitude_bins - 1
    check_setting(op, "magnitude", is_count(op.magnitude, 0, last), f"a level from 0 to {last}")
    check_probability(op)


@register
@dataclass(frozen=True)
class RandAugment(_PolicyOp):
    """Applies `num_ops` random operations at one fixed magnitude (Cubuk et al., arXiv:1909.13719; torchvision's space).

    Args:
        num_ops: Operations in a row.
        magnitude: Level of every operation, below `num_magnitude_bins`.
        p: Probability that the view is augmented at all; a skipped view stores `num_ops` times Identity.
        num_magnitude_bins: Number of levels.
        interpolation: Filter of the geometric operations.
        fill: Colour of what they uncover; black when None.
    """

    name: ClassVar[str] = "rand_augment"
    _policy: ClassVar[_Policy] = _RAND_AUGMENT
    num_ops: int = 2
    magnitude: int = 9
    p: float = 1.0
    num_magnitude_bins: int = 31
    interpolation: str = "nearest"
    fill: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_settings(self)

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        if rng.random() >= self.p:
            return {"op": (0,) * self.num_ops, "level": (0,) * self.num_ops}
        ops, levels = zip(*(self._draw(rng, self.magnitude) for _ in range(self.num_ops)), strict=True)
        return {"op": ops, "level": levels}


@register
@dataclass(frozen=True)
class TrivialAugmentWide(_PolicyOp):
    """Applies one random operation at a random magnitude (Müller and Hutter, arXiv:2103.10158; torchvision's space).

    Args:
        num_magnitude_bins: Number of levels.
        interpolation: Filter of the geometric operations.
        fill: Colour of what they uncover; black when None.
    """

    name: ClassVar[str] = "trivial_augment"
    _policy: ClassVar[_Policy] = _TRIVIAL_AUGMENT
    num_magnitude_bins: int = 31
    interpolation: str = "nearest"
    fill: tuple[int, int, int] | None = None

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        op, level = self._draw(rng, int(rng.integers(self.num_magnitude_bins)))
        return {"op": (op,), "level": (level,)}


@register
@dataclass(frozen=True)
class RandAugmentIncreasing(_PolicyOp):
    """Applies random operations at magnitudes with noise: timm's `rand-m9-mstd0.5-inc1`, as DeiT and Swin are trained.

    timm's magnitude m of 10 is the level 10 m of 100. Its noise is rounded to whole levels, a fifth of its standard deviation.

    Args:
        num_ops: Operations in a row, any but Identity.
        magnitude: Mean of the levels.
        magnitude_std: Standard deviation of the levels, before they are rounded and limited to the range.
        p: Probability of each operation; Identity is stored for one that is left out.
        num_magnitude_bins: Number of levels.
        interpolation: Filter of the geometric operations.
        fill: Colour of what they uncover; black when None. timm's is the mean colour.
    """

    name: ClassVar[str] = "rand_augment_increasing"
    _policy: ClassVar[_Policy] = _Increasing(shear=0.3, translate=None, rotate=30, colour=0.9, posterize=4)
    _operations: ClassVar[tuple[str, ...]] = OPERATIONS
    num_ops: int = 2
    magnitude: int = 90
    magnitude_std: float = 5.0
    p: float = 0.5
    num_magnitude_bins: int = 101
    interpolation: str = "bicubic"
    fill: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_settings(self)
        spread = self.magnitude_std
        check_setting(self, "magnitude_std", is_number(spread) and 0 <= spread <= 1000, "a number from 0 to 1000")

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        pairs = [self._noisy(rng) if rng.random() < self.p else (0, 0) for _ in range(self.num_ops)]
        ops, levels = zip(*pairs, strict=True)
        return {"op": ops, "level": levels}

    def _noisy(self, rng: np.random.Generator) -> tuple[int, int]:
        op = 1 + int(rng.integers(len(OPERATIONS) - 1))
        level = round(min(max(rng.normal(self.magnitude, self.magnitude_std), 0), self.num_magnitude_bins - 1))
        return op, self._signed(rng, op, level)


# The pairs of operations that were found for ImageNet (arXiv:1805.09501, table 9), with probabilities and levels of 0 to 9.
_IMAGENET_PAIRS = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)), (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)), (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)), (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)), (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)), (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)), (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)), (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)), (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)), (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)), (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)), (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)), (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)  # fmt: skip


@register
@dataclass(frozen=True)
class AutoAugment(_PolicyOp):
    """Applies one of 25 pairs of operations that were found for ImageNet (Cubuk et al., arXiv:1805.09501; torchvision's).

    Args:
        interpolation: Filter of the geometric operations.
        fill: Colour of what they uncover; black when None.
    """

    name: ClassVar[str] = "auto_augment"
    _policy: ClassVar[_Policy] = _RAND_AUGMENT
    _operations: ClassVar[tuple[str, ...]] = OPERATIONS[: OPERATIONS.index("Invert") + 1]
    num_ops: ClassVar[int] = 2  # type: ignore[misc]
    num_magnitude_bins: ClassVar[int] = 10  # type: ignore[misc]
    interpolation: str = "nearest"
    fill: tuple[int, int, int] | None = None

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        drawn = []
        for name, p, level in _IMAGENET_PAIRS[int(rng.integers(len(_IMAGENET_PAIRS)))]:
            op = OPERATIONS.index(name)
            drawn.append((op, self._signed(rng, op, level)) if rng.random() < p else (0, 0))
        ops, levels = zip(*drawn, strict=True)
        return {"op": ops, "level": levels}

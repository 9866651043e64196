"""The replayable transforms.

An op is a frozen dataclass with two pure methods: `sample` draws the parameters of one view, `apply` performs them.
Nothing else is random and nothing is kept on the op, so `apply` with stored parameters gives the same pixels again.
Skipping is a parameter too. `sample` returns values that the stored dtype holds exactly.

To add an op, write its class with `@register` and name its columns in `params`: the property tests find it by
themselves. Pixels come from torchvision's v2 functional kernels on PIL images, so equal parameters give torchvision's
pixels. Sizes are (height, width), boxes (top, left, height, width), both in pixels.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import PIL.Image
import PIL.ImageOps
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from hf_dr.errors import ConfigError, ReplayError, did_you_mean

Size = tuple[int, int]
"""(height, width) in pixels."""
Params = dict[str, Any]
"""Parameter name -> bool, int, float, or a tuple of those."""

# The mean of ImageNet in 8-bit levels: what 0 is after the usual normalisation, hence torchvision's default erasing.
IMAGENET_MEAN_RGB = (124, 116, 104)
# Boxes are stored as uint16, more than Pillow's own limit on pixels allows for all but absurdly long images.
MAX_SIDE = 0xFFFF
# Of a view (4096 x 4096), and of what is made on the way to one. Settings from elsewhere could ask for all memory.
MAX_VIEW_PIXELS, MAX_PIXELS = 1 << 24, 1 << 26
# Mixing weights are multiples of 1/256: exact in float16, and as fine as the levels of a pixel.
_MIX_LEVELS = 256


@dataclass(frozen=True)
class Param:
    """How one parameter of one view is stored: a NumPy dtype and, for tuples, a length."""

    dtype: str
    length: int | None = None


_OpClass = TypeVar("_OpClass", bound="type[Op]")

OPS: dict[str, type[Op]] = {}
"""Every registered op by its class name, which is its name in YAML."""


def register(cls: _OpClass) -> _OpClass:
    """Class decorator that makes an op known by its class name."""
    if cls.__name__ in OPS or any(op.name == cls.name for op in OPS.values()):
        raise AssertionError(f"op {cls.__name__} or its column name {cls.name!r} is registered twice")
    OPS[cls.__name__] = cls
    return cls


class Op(ABC):
    """One replayable transform. Subclasses are frozen dataclasses whose fields are the op's settings."""

    name: ClassVar[str]
    """Column prefix: parameter `box` of op `crop` is stored in `aug_crop_box`; parameter `""` in `aug_crop`."""
    mixes: ClassVar[bool] = False
    """Whether `apply` needs the partner's image."""

    @property
    def params(self) -> dict[str, Param]:
        """Parameter name -> how it is stored; empty for an op without randomness."""
        return {}

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        """Draws the parameters of one view of an image of `size`; `rng` is the only source of randomness."""
        return {}

    @abstractmethod
    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        """Performs the transform on an RGB image; pure.

        Raises:
            ReplayError: The parameters do not fit the image.
        """

    def output_size(self, size: Size | None) -> Size | None:
        """Returns the size after the op for an input of `size`; None where it differs from image to image."""
        return size

    def skipped(self, params: Params) -> bool:
        """Whether these parameters leave every image as it is; mixing ops answer, to spare the partner's decoding."""
        return False

    def neutral(self) -> Params:
        """Returns the parameters of a skipped mixing op."""
        raise AssertionError(f"{type(self).__name__} is no mixing op")

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Returns `{class name: settings}`, defaults included, in JSON types."""
        settings = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if "float" in str(field.type) and value is not None:  # p=1 and p=1.0 are one setting: one fingerprint
                value = tuple(map(float, value)) if isinstance(value, tuple) else float(value)
            settings[field.name] = list(value) if isinstance(value, tuple) else value
        return {type(self).__name__: settings}

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Self:
        """Builds the op from settings as YAML or JSON gives them.

        Raises:
            ConfigError: A setting is unknown, missing, or has an impossible value.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for key in settings:
            if key not in fields:
                raise ConfigError(f"{cls.__name__} has no setting `{key}`.{did_you_mean(str(key), fields)}")
        for field in fields.values():
            if field.default is dataclasses.MISSING and field.name not in settings:
                raise ConfigError(f"{cls.__name__} needs `{field.name}`, which has no default. Add it.")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})


def _check(op: Op, field: str, ok: bool, expected: str) -> None:
    if not ok:
        raise ConfigError(
            f"`{field}` of {type(op).__name__} must be {expected}, got {getattr(op, field)!r}. Change `{field}`."
        )


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any, low: int, high: int = MAX_SIDE) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _check_probability(op: Op, p: Any) -> None:
    _check(op, "p", _is_number(p) and 0 <= p <= 1, "a probability between 0 and 1")


def _check_range(op: Op, field: str, low: float, high: float) -> None:
    value = getattr(op, field)
    ok = isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))
    _check(op, field, ok and low <= value[0] <= value[1] <= high, f"two rising numbers in [{low:g}, {high:g}]")


def _check_rgb(op: Op, field: str) -> None:
    value = getattr(op, field)
    ok = isinstance(value, tuple) and len(value) == 3 and all(_is_count(v, 0, 255) for v in value)
    _check(op, field, ok, "three levels (red, green, blue) from 0 to 255")


def _size_of(op: Op) -> Size:
    """Normalises the `size` setting: an int means a square."""
    size = op.size  # type: ignore[attr-defined]
    ok = _is_count(size, 1) or (isinstance(size, tuple) and len(size) == 2 and all(_is_count(s, 1) for s in size))
    _check(op, "size", ok, f"a side or (height, width) from 1 to {MAX_SIDE} pixels")
    height, width = (size, size) if isinstance(size, int) else size
    _check(op, "size", height * width <= MAX_VIEW_PIXELS, f"{MAX_VIEW_PIXELS:,} pixels at most")
    return height, width


def _check_pixels(op: Op, size: Size) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ReplayError(
            f"{type(op).__name__} must make images of at most {MAX_PIXELS:,} pixels, but would make one of {size[0]}x{size[1]}"
            ". Lower its settings, or leave this image out."
        )


_INTERPOLATIONS = {mode.value: mode for mode in InterpolationMode if mode.value != "nearest-exact"}
# Pillow's other filters shrink and enlarge only.
_AFFINE_INTERPOLATIONS = ("bicubic", "bilinear", "nearest")


def _check_interpolation(op: Op, known: Collection[str] = _INTERPOLATIONS) -> None:
    value = op.interpolation  # type: ignore[attr-defined]
    _check(op, "interpolation", isinstance(value, str) and value in known, f"one of {', '.join(sorted(known))}")


def _height_width(image: PIL.Image.Image) -> Size:
    return image.height, image.width


def _check_box(op: Op, box: Iterable[int], size: Size) -> tuple[int, int, int, int]:
    """Returns the stored box; refuses one that leaves the image: damaged data, or those of another image."""
    top, left, height, width = map(int, box)  # NumPy's small integers would wrap around in the sums
    if min(top, left, height, width) < 0 or top + height > size[0] or left + width > size[1]:
        raise ReplayError(
            f"{type(op).__name__} needs a box (top, left, height, width) inside an image of {size[0]}x{size[1]} "
            f"pixels, found {(top, left, height, width)}. The row is damaged or belongs to another image; "
            "run `hf-dr verify`."
        )
    return top, left, height, width


def _sample_box(
    rng: np.random.Generator, size: Size, scale: tuple[float, float], ratio: tuple[float, float], *, erasing: bool
) -> tuple[int, int, int, int] | None:
    """Draws a box of random area and aspect by torchvision's rejection rule, 10 tries; None when none fits.

    For crops the ratio is width / height and the whole image is allowed; for erasing it is height / width and the box
    must be smaller than the image (`RandomResizedCrop` and `RandomErasing` of torchvision).
    """
    rows, columns = size
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = rows * columns * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        if erasing:
            aspect = 1 / aspect
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        fits = height < rows and width < columns if erasing else 0 < height <= rows and 0 < width <= columns
        if fits:
            top = int(rng.integers(0, rows - height + 1))
            left = int(rng.integers(0, columns - width + 1))
            return top, left, height, width
    return None


# ---------------------------------------------------------------------------------------------------------- geometry


@register
@dataclass(frozen=True)
class RandomResizedCrop(Op):
    """Crops a box of random area and aspect ratio and resizes it (Szegedy et al., CVPR 2015; torchvision's rule).

    Args:
        size: Output side, or (height, width), in pixels.
        scale: Range of the crop's area, as a share of the image's.
        ratio: Range of the crop's width / height.
        interpolation: One of Pillow's filters by torchvision's name.
    """

    name: ClassVar[str] = "crop"
    size: int | Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        _size_of(self)
        _check_range(self, "scale", 0, 1)
        _check_range(self, "ratio", 1e-3, 1e3)
        _check_interpolation(self)

    @property
    def params(self) -> dict[str, Param]:
        return {"box": Param("uint16", 4)}

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        box = _sample_box(rng, size, self.scale, self.ratio, erasing=False)
        return {"box": box or self._central(size)}

    def _central(self, size: Size) -> tuple[int, int, int, int]:
        """The largest central crop within the aspect range: torchvision's answer when no box was found."""
        height, width = size
        if width / height < self.ratio[0]:
            height = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            width = max(1, round(height * self.ratio[1]))
        return (size[0] - height) // 2, (size[1] - width) // 2, height, width

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        box = _check_box(self, params["box"], _height_width(image))
        if 0 in box[2:]:
            raise ReplayError(
                f"RandomResizedCrop needs a box of at least one pixel, found {box}. The row is damaged; run "
                "`hf-dr verify`."
            )
        return F.resized_crop(image, *box, list(_size_of(self)), _INTERPOLATIONS[self.interpolation])

    def output_size(self, size: Size | None) -> Size | None:
        return _size_of(self)


@register
@dataclass(frozen=True)
class Resize(Op):
    """Resizes the image; no randomness.

    Args:
        size: An int scales the shorter side to that many pixels and keeps the aspect; (height, width) sets both.
        interpolation: One of Pillow's filters by torchvision's name.
    """

    name: ClassVar[str] = "resize"
    size: int | Size
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        _size_of(self)
        _check_interpolation(self)

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        size = [self.size] if isinstance(self.size, int) else list(self.size)
        _check_pixels(self, self.output_size(_height_width(image)) or (0, 0))
        return F.resize(image, size, _INTERPOLATIONS[self.interpolation])

    def output_size(self, size: Size | None) -> Size | None:
        if not isinstance(self.size, int):
            return self.size
        if size is None:
            return None
        height, width = size
        if height <= width:
            return self.size, int(self.size * width / height)
        return int(self.size * height / width), self.size


@register
@dataclass(frozen=True)
class CenterCrop(Op):
    """Crops the centre; smaller images are padded with black, as torchvision does; no randomness.

    Args:
        size: Output side, or (height, width), in pixels.
    """

    name: ClassVar[str] = "center_crop"
    size: int | Size

    def __post_init__(self) -> None:
        _size_of(self)

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        return F.center_crop(image, list(_size_of(self)))

    def output_size(self, size: Size | None) -> Size | None:
        return _size_of(self)


@register
@dataclass(frozen=True)
class RandomCrop(Op):
    """Pads every side, then crops a random box of fixed size, as the CIFAR recipes do.

    Args:
        size: Output side, or (height, width), in pixels.
        padding: Pixels added on each side.
        fill: Colour of the padding.
    """

    name: ClassVar[str] = "random_crop"
    size: int | Size
    padding: int = 0
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        _size_of(self)
        _check(self, "padding", _is_count(self.padding, 0), f"a number of pixels from 0 to {MAX_SIDE}")
        _check_rgb(self, "fill")

    @property
    def params(self) -> dict[str, Param]:
        return {"offset": Param("uint16", 2)}

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        height, width = _size_of(self)
        room = size[0] + 2 * self.padding - height, size[1] + 2 * self.padding - width
        if min(room) < 0:
            raise ConfigError(
                f"RandomCrop needs images of at least {height}x{width} pixels with their padding of {self.padding}, "
                f"got {size[0]}x{size[1]}. Put `Resize` before it, or raise `padding`."
            )
        if max(room) > MAX_SIDE:
            raise ConfigError(
                f"RandomCrop stores offsets up to {MAX_SIDE} pixels, but images of {size[0]}x{size[1]} pixels with "
                f"their padding of {self.padding} leave {max(room)}. Put `Resize` before it, or lower `padding`."
            )
        return {"offset": (int(rng.integers(0, room[0] + 1)), int(rng.integers(0, room[1] + 1)))}

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        padded = image.height + 2 * self.padding, image.width + 2 * self.padding
        box = _check_box(self, (*params["offset"], *_size_of(self)), padded)
        _check_pixels(self, padded)
        if self.padding:
            image = PIL.ImageOps.expand(image, self.padding, self.fill)
        return F.crop(image, *box)

    def output_size(self, size: Size | None) -> Size | None:
        return _size_of(self)


@register
@dataclass(frozen=True)
class RandomHorizontalFlip(Op):
    """Mirrors the image left to right with probability `p`."""

    name: ClassVar[str] = "flip"
    p: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self, self.p)

    @property
    def params(self) -> dict[str, Param]:
        return {"": Param("bool")}

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        return {"": bool(rng.random() < self.p)}

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        return F.horizontal_flip(image) if params[""] else image


# ------------------------------------------------------------------------------------------------------------ colour


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
            _check(self, field, _is_number(value) and 0 <= value <= 1000, "a number from 0 to 1000")
        _check(self, "hue", _is_number(self.hue) and 0 <= self.hue <= 0.5, "a number from 0 to 0.5")

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
        for which in self.ORDERS[params["order"]]:
            # A setting of 0 is off, as in torchvision; a factor of 1 is not always exact (hue goes through HSV).
            if which == 0 and self.brightness:
                image = F.adjust_brightness(image, factors[0])
            elif which == 1 and self.contrast:
                image = F.adjust_contrast(image, factors[1])
            elif which == 2 and self.saturation:
                image = F.adjust_saturation(image, factors[2])
            elif which == 3 and self.hue:
                image = F.adjust_hue(image, factors[3])
        return image


@dataclass(frozen=True)
class _Policy:
    """The 14 operations of a policy space: for each, its largest magnitude and whether its sign is random."""

    shear: float
    translate: int | None  # pixels; None: 150/331 of the side, AutoAugment's rule
    rotate: float
    colour: float
    posterize: int  # bits taken away at most

    def magnitude(self, op: str, level: int, num_levels: int, size: Size) -> float:
        """The value handed to an operation at a signed level, -num_levels < level < num_levels."""
        share = level / (num_levels - 1)
        if op in ("ShearX", "ShearY"):
            return self.shear * share
        if op in ("TranslateX", "TranslateY"):
            # In whole numbers: rounding errors would make it a pixel less where the exact result is whole, as they do
            # in torchvision's float32 tables on some machines.
            side = size[1] if op == "TranslateX" else size[0]
            most, parts = (150 * side, 331) if self.translate is None else (self.translate, 1)
            pixels = most * abs(level) // (parts * (num_levels - 1))
            return pixels if level > 0 else -pixels
        if op == "Rotate":
            return self.rotate * share
        if op == "Posterize":
            return round(8 - self.posterize * share)
        if op == "Solarize":
            return 1 - share
        return self.colour * share


# Order and tables of torchvision's RandAugment and TrivialAugmentWide; a stored op is a place in this tuple.
POLICY_OPS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
_UNSIGNED = frozenset({"Identity", "Posterize", "Solarize", "AutoContrast", "Equalize"})
_LEVELLESS = frozenset({"Identity", "AutoContrast", "Equalize"})
_RAND_AUGMENT = _Policy(shear=0.3, translate=None, rotate=30, colour=0.9, posterize=4)
_TRIVIAL_AUGMENT = _Policy(shear=0.99, translate=32, rotate=135, colour=0.99, posterize=6)


def _apply_policy_op(
    image: PIL.Image.Image, op: str, magnitude: float, interpolation: InterpolationMode, fill: list[int] | None
) -> PIL.Image.Image:
    """One operation of AutoAugment's space, with torchvision's kernels and conventions."""

    def affine(translate: list[int], shear: list[float], center: list[int] | None) -> PIL.Image.Image:
        return F.affine(image, 0.0, translate, 1.0, shear, interpolation, fill, center)

    match op:
        case "Identity":
            return image
        case "ShearX":
            return affine([0, 0], [math.degrees(math.atan(magnitude)), 0.0], [0, 0])
        case "ShearY":
            return affine([0, 0], [0.0, math.degrees(math.atan(magnitude))], [0, 0])
        case "TranslateX":
            return affine([int(magnitude), 0], [0.0, 0.0], None)
        case "TranslateY":
            return affine([0, int(magnitude)], [0.0, 0.0], None)
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
    raise AssertionError(op)


class _PolicyOp(Op):
    """What RandAugment and TrivialAugmentWide share: a list of (operation, signed level) pairs for each view."""

    _policy: ClassVar[_Policy]
    num_magnitude_bins: int
    interpolation: str
    fill: tuple[int, int, int] | None

    def _check_policy(self) -> None:
        bins = self.num_magnitude_bins
        _check(self, "num_magnitude_bins", _is_count(bins, 2, 128), "a count from 2 to 128")
        _check_interpolation(self, _AFFINE_INTERPOLATIONS)
        if self.fill is not None:
            _check_rgb(self, "fill")

    def _num_ops(self) -> int:
        return 1

    @property
    def params(self) -> dict[str, Param]:
        return {"op": Param("uint8", self._num_ops()), "level": Param("int8", self._num_ops())}

    def _draw(self, rng: np.random.Generator, level: int) -> tuple[int, int]:
        op = int(rng.integers(len(POLICY_OPS)))
        negative = rng.random() < 0.5
        name = POLICY_OPS[op]
        if name in _LEVELLESS:
            return op, 0
        return op, -level if negative and name not in _UNSIGNED else level

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        for op, level in zip(map(int, params["op"]), map(int, params["level"]), strict=True):
            known = 0 <= op < len(POLICY_OPS) and abs(level) < self.num_magnitude_bins
            if not known or (level < 0 and POLICY_OPS[op] in _UNSIGNED):
                raise ReplayError(
                    f"{type(self).__name__} needs operations below {len(POLICY_OPS)} at levels within "
                    f"±{self.num_magnitude_bins - 1} (not negative where unsigned), found operation {op} at level "
                    f"{level}. The row is damaged; run `hf-dr verify`."
                )
            name = POLICY_OPS[op]
            magnitude = self._policy.magnitude(name, level, self.num_magnitude_bins, _height_width(image))
            fill = None if self.fill is None else list(self.fill)
            image = _apply_policy_op(image, name, magnitude, _INTERPOLATIONS[self.interpolation], fill)
        return image


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
        self._check_policy()
        _check(self, "num_ops", _is_count(self.num_ops, 1, 16), "a count from 1 to 16")
        bins = self.num_magnitude_bins
        _check(self, "magnitude", _is_count(self.magnitude, 0, bins - 1), f"a level from 0 to {bins - 1}")
        _check_probability(self, self.p)

    def _num_ops(self) -> int:
        return self.num_ops

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

    def __post_init__(self) -> None:
        self._check_policy()

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        op, level = self._draw(rng, int(rng.integers(self.num_magnitude_bins)))
        return {"op": (op,), "level": (level,)}


@register
@dataclass(frozen=True)
class RandomErasing(Op):
    """Fills a random box with one colour (Zhong et al., AAAI 2020; torchvision's rule). A box of height 0 is no box.

    Args:
        p: Probability of erasing.
        scale: Range of the box's area, as a share of the image's.
        ratio: Range of the box's height / width.
        value: Colour, 8-bit RGB; the default is ImageNet's mean, which normalisation turns into 0.
    """

    name: ClassVar[str] = "erasing"
    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: tuple[int, int, int] = IMAGENET_MEAN_RGB

    def __post_init__(self) -> None:
        _check_probability(self, self.p)
        _check_range(self, "scale", 0, 1)
        _check_range(self, "ratio", 1e-3, 1e3)
        _check_rgb(self, "value")

    @property
    def params(self) -> dict[str, Param]:
        return {"box": Param("uint16", 4)}

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        box = _sample_box(rng, size, self.scale, self.ratio, erasing=True) if rng.random() < self.p else None
        return {"box": box or (0, 0, 0, 0)}

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        top, left, height, width = _check_box(self, params["box"], _height_width(image))
        if height == 0 or width == 0:
            return image
        image = image.copy()
        image.paste(self.value, (left, top, left + width, top + height))
        return image


# ------------------------------------------------------------------------------------------------------------ mixing


def _partner_of(op: Op, image: PIL.Image.Image, partner: PIL.Image.Image | None) -> PIL.Image.Image:
    if partner is None or partner.size != image.size:
        found = "none" if partner is None else f"{partner.height}x{partner.width}"
        raise ReplayError(
            f"{type(op).__name__} needs a partner image of {image.height}x{image.width} pixels, found {found}. "
            "Put an op of fixed output size before it."
        )
    return partner


@register
@dataclass(frozen=True)
class MixUp(Op):
    """Averages the image with its partner's: lam * image + (1 - lam) * partner (Zhang et al., ICLR 2018).

    lam is a multiple of 1/256, so the mix is exact integer arithmetic, rounded to the nearest level, on any machine.

    Args:
        alpha: lam is drawn from Beta(alpha, alpha).
        p: Probability of mixing; a skipped view stores lam = 1.
    """

    name: ClassVar[str] = "mixup"
    mixes: ClassVar[bool] = True
    alpha: float = 1.0
    p: float = 0.5

    def __post_init__(self) -> None:
        _check(self, "alpha", _is_number(self.alpha) and 0 < self.alpha <= 1000, "a number above 0, up to 1000")
        _check_probability(self, self.p)

    @property
    def params(self) -> dict[str, Param]:
        return {"lam": Param("float16")}

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        if rng.random() >= self.p:
            return self.neutral()
        return {"lam": round(rng.beta(self.alpha, self.alpha) * _MIX_LEVELS) / _MIX_LEVELS}

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        weight = float(params["lam"]) * _MIX_LEVELS
        if not (0 <= weight <= _MIX_LEVELS and weight == int(weight)):
            raise ReplayError(
                f"MixUp needs a lam that is a multiple of 1/256 from 0 to 1, found {params['lam']}. "
                "The row is damaged; run `hf-dr verify`."
            )
        if self.skipped(params):
            return image
        other = np.asarray(_partner_of(self, image, partner)).astype(np.uint16)
        mixed = np.asarray(image).astype(np.uint16)
        mixed *= np.uint16(weight)
        other *= np.uint16(_MIX_LEVELS - weight)
        mixed += other  # at most 255 * 256 + 128: no overflow
        mixed += np.uint16(_MIX_LEVELS // 2)
        mixed >>= np.uint16(8)
        return PIL.Image.fromarray(mixed.astype(np.uint8))

    def skipped(self, params: Params) -> bool:
        return bool(params["lam"] == 1)

    def neutral(self) -> Params:
        return {"lam": 1.0}


@register
@dataclass(frozen=True)
class CutMix(Op):
    """Pastes a box of the partner's image at the same place (Yun et al., ICCV 2019). A box of height 0 is no box.

    The image's weight lam is one minus the box's share of the area.

    Args:
        alpha: The box takes 1 - Beta(alpha, alpha) of the area before clipping at the border.
        p: Probability of mixing.
    """

    name: ClassVar[str] = "cutmix"
    mixes: ClassVar[bool] = True
    alpha: float = 1.0
    p: float = 0.5

    def __post_init__(self) -> None:
        _check(self, "alpha", _is_number(self.alpha) and 0 < self.alpha <= 1000, "a number above 0, up to 1000")
        _check_probability(self, self.p)

    @property
    def params(self) -> dict[str, Param]:
        return {"box": Param("uint16", 4)}

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        if rng.random() >= self.p:
            return self.neutral()
        # torchvision's rule: a uniform centre, half-sides of sqrt(1 - lam) / 2, clipped at the border.
        half = 0.5 * math.sqrt(1 - rng.beta(self.alpha, self.alpha))
        centre = int(rng.integers(size[0])), int(rng.integers(size[1]))
        edges = []
        for middle, side in zip(centre, size, strict=True):
            reach = int(half * side)
            edges.append((max(middle - reach, 0), min(middle + reach, side)))
        (top, bottom), (left, right) = edges
        if bottom == top or right == left:
            return self.neutral()
        return {"box": (top, left, bottom - top, right - left)}

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        top, left, height, width = _check_box(self, params["box"], _height_width(image))
        if self.skipped(params):
            return image
        corners = (left, top, left + width, top + height)
        mixed = image.copy()
        mixed.paste(_partner_of(self, image, partner).crop(corners), corners)
        return mixed

    def skipped(self, params: Params) -> bool:
        return 0 in params["box"][2:]

    def neutral(self) -> Params:
        return {"box": (0, 0, 0, 0)}

"""What an op is, the registry of all ops, and the checks that they share.

An op is a frozen dataclass with two pure methods: `sample` draws the parameters of one view, `apply` performs them.
Nothing else is random and nothing is kept on the op, so `apply` with stored parameters gives the same pixels again.
Skipping is a parameter too. `sample` returns values that the stored dtype holds exactly.

To add an op, write its class with `@register` and name its columns in `params`; `hf_dr.views.ops` says where. Pixels
come from torchvision's v2 functional kernels on PIL images, so equal parameters give torchvision's pixels. Sizes are
(height, width), boxes (top, left, height, width), both in pixels.
"""

from __future__ import annotations

import dataclasses
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import PIL.Image
from torchvision.transforms.v2 import InterpolationMode

from hf_dr.errors import ConfigError, ReplayError, did_you_mean
from hf_dr.views.resizing import PILLOW_13

Size = tuple[int, int]
"""(height, width) in pixels."""
Params = dict[str, Any]
"""Parameter name -> bool, int, float, or a tuple of those."""

# Boxes are stored as uint16, more than Pillow's own limit on pixels allows for all but absurdly long images.
MAX_SIDE = 0xFFFF
# Bounds for settings from elsewhere, which could ask for all memory.
MAX_VIEW_PIXELS = 1 << 24  # of a view: 4096 x 4096
MAX_PIXELS = 1 << 26  # of what is made on the way to one


@dataclass(frozen=True)
class Param:
    """How one parameter of one view is stored: a NumPy dtype and, for tuples, a length."""

    dtype: str
    length: int | None = None


_OpClass = TypeVar("_OpClass", bound="type[Op]")

OPS: dict[str, type[Op]] = {}
"""Every registered op by its class name, which is its name in YAML."""


def register(cls: _OpClass) -> _OpClass:
    """Class decorator that makes an op known by its class name; one that a notebook's cell defines again takes its place."""
    if not isinstance(getattr(cls, "name", None), str):
        raise ConfigError(
            f'the op {cls.__name__} must have a name for its columns, found none. Write in it `name: ClassVar[str] = "..."`.'
        )
    for op in OPS.values():
        is_same = (op.__module__, op.__qualname__) == (cls.__module__, cls.__qualname__)
        if not is_same and (cls.__name__ == op.__name__ or cls.name == op.name):
            raise ConfigError(
                f"the op {cls.__name__} must have a class name and a `name` of its own, found {cls.name!r}, and {op.__name__} "
                f"of {op.__module__} with {op.name!r}. Rename it."
            )
    OPS[cls.__name__] = cls
    return cls


def _check_dataclass(cls: type[Op]) -> None:
    if not dataclasses.is_dataclass(cls):
        raise ConfigError(
            f"the op {cls.__name__} must be a dataclass, whose fields are its settings, found none. Write `@ops.register` and "
            "below it `@dataclass(frozen=True)` above the class."
        )


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

    def check_size(self, size: Size) -> None:  # noqa: B027 (most ops take any size)
        """Checks that images of `size` can be augmented, whatever is drawn.

        Raises:
            ConfigError: They are too small for the op's settings.
            ReplayError: They would become too large.
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
        """Returns `{class name: settings}`, defaults included, in JSON types.

        Raises:
            ConfigError: A setting is of no such type.
        """
        _check_dataclass(type(self))
        settings = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            # p=1 and p=1.0 are one setting: one fingerprint.
            value = _plain(getattr(self, field.name), as_float="float" in str(field.type))
            check_setting(self, field.name, _is_json(value), "a text, a number, true or false, or a list of these")
            # Datasets of format 1 to 3 do not have the setting, and keep their fingerprints.
            if (field.name, value) != ("passes", PILLOW_13):
                settings[field.name] = value
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
            needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if needed and field.name not in settings:
                raise ConfigError(f"{cls.__name__} needs `{field.name}`, which has no default. Add it.")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})


def _plain(value: Any, *, as_float: bool) -> Any:
    """Returns a setting with tuples as lists and NumPy's numbers as Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (tuple, list)):
        return [_plain(each, as_float=as_float) for each in value]
    return float(value) if as_float and isinstance(value, (int, float)) else value


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def check_setting(op: Op, field: str, ok: bool, expected: str) -> None:
    if not ok:
        raise ConfigError(
            f"`{field}` of {type(op).__name__} must be {expected}, got {getattr(op, field)!r}. Change `{field}`."
        )


def is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def is_count(value: Any, low: int, high: int = MAX_SIDE) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def check_probability(op: Op) -> None:
    p = op.p  # type: ignore[attr-defined]
    check_setting(op, "p", is_number(p) and 0 <= p <= 1, "a probability between 0 and 1")


def check_range(op: Op, field: str, low: float, high: float) -> None:
    value = getattr(op, field)
    ok = isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value))
    check_setting(op, field, ok and low <= value[0] <= value[1] <= high, f"two rising numbers in [{low:g}, {high:g}]")


def check_rgb(op: Op, field: str) -> None:
    value = getattr(op, field)
    ok = isinstance(value, tuple) and len(value) == 3 and all(is_count(v, 0, 255) for v in value)
    check_setting(op, field, ok, "three levels (red, green, blue) from 0 to 255")


def size_of(op: Op) -> Size:
    """Normalises the `size` setting: an int means a square."""
    size = op.size  # type: ignore[attr-defined]
    ok = is_count(size, 1) or (isinstance(size, tuple) and len(size) == 2 and all(is_count(s, 1) for s in size))
    check_setting(op, "size", ok, f"a side or (height, width) from 1 to {MAX_SIDE} pixels")
    height, width = (size, size) if isinstance(size, int) else size
    check_setting(op, "size", height * width <= MAX_VIEW_PIXELS, f"{MAX_VIEW_PIXELS:,} pixels at most")
    return height, width


def check_pixels(op: Op, size: Size) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ReplayError(
            f"{type(op).__name__} must make images of at most {MAX_PIXELS:,} pixels, but would make one of {size[0]}x{size[1]}"
            ". Lower its settings, or leave this image out."
        )


def check_boxes(op: Op, size: Size) -> None:
    """Refuses images in which a box could not be stored."""
    if max(size) > MAX_SIDE:
        raise ReplayError(
            f"{type(op).__name__} stores boxes of images with sides of at most {MAX_SIDE} pixels, but is given one of "
            f"{size[0]}x{size[1]}. Put `Resize` with (height, width) before it, or leave this image out."
        )


INTERPOLATIONS = {mode.value: mode for mode in InterpolationMode if mode.value != "nearest-exact"}
# Pillow's other filters shrink and enlarge only.
AFFINE_INTERPOLATIONS = ("bicubic", "bilinear", "nearest")


def check_interpolation(op: Op, known: Collection[str] = INTERPOLATIONS) -> None:
    value = op.interpolation  # type: ignore[attr-defined]
    check_setting(op, "interpolation", isinstance(value, str) and value in known, f"one of {', '.join(sorted(known))}")


def height_width(image: PIL.Image.Image) -> Size:
    return image.height, image.width


def check_box(op: Op, box: Iterable[int], size: Size) -> tuple[int, int, int, int]:
    """Returns the stored box; refuses one that leaves the image: damaged data, or those of another image."""
    top, left, height, width = map(int, box)  # NumPy's small integers would wrap around in the sums
    if min(top, left, height, width) < 0 or top + height > size[0] or left + width > size[1]:
        raise ReplayError(
            f"{type(op).__name__} needs a box (top, left, height, width) inside an image of {size[0]}x{size[1]} "
            f"pixels, found {(top, left, height, width)}. The row is damaged or belongs to another image; "
            "run `hf-dr verify`."
        )
    return top, left, height, width

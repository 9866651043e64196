"""Ops that choose what of the image is seen, and where: crops, resizing, mirroring, erasing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import PIL.Image
from torchvision.transforms.v2 import functional as F

from hf_dr.errors import ConfigError, ReplayError
from hf_dr.views.ops.base import (
    MAX_SIDE,
    Op,
    Param,
    Params,
    Size,
    check_box,
    check_boxes,
    check_interpolation,
    check_pixels,
    check_probability,
    check_range,
    check_rgb,
    check_setting,
    height_width,
    is_count,
    register,
    size_of,
)
from hf_dr.views.resizing import HORIZONTAL, PASSES, first_pass_size, resize


def check_passes(op: Op) -> None:
    check_setting(op, "passes", op.passes in PASSES, f"one of {', '.join(PASSES)}")  # type: ignore[attr-defined]


def check_first_pass(op: Op, size: Size, new_size: Size) -> None:
    """Refuses a resize that makes too much of an image between its two passes, however small it becomes by the second."""
    between = first_pass_size(size, new_size, op.passes)  # type: ignore[attr-defined]
    if between[0] * between[1] > size[0] * size[1]:  # else it is no more than what is in memory already
        check_pixels(op, between)


def take_window(image: PIL.Image.Image, top: int, left: int, size: Size, fill: tuple[int, int, int]) -> PIL.Image.Image:
    """Takes a window, which may reach beyond the image: there it shows `fill`. A padded image is not made for that."""
    height, width = size
    window = PIL.Image.new("RGB", (width, height), fill)
    window.paste(image, (-left, -top))
    return window


def resampling_of(op: Op) -> PIL.Image.Resampling:
    """Returns Pillow's filter of the `interpolation` setting."""
    return PIL.Image.Resampling[op.interpolation.upper()]  # type: ignore[attr-defined]


# The mean of ImageNet in 8-bit levels: what 0 is after the usual normalisation, hence torchvision's default erasing.
IMAGENET_MEAN_RGB = (124, 116, 104)


def _sample_box(
    rng: np.random.Generator, size: Size, scale: tuple[float, float], ratio: tuple[float, float], *, erasing: bool
) -> tuple[int, int, int, int] | None:
    """Draws a box of random area and aspect by torchvision's rejection rule, 10 tries; None when none fits.

    For crops the ratio is width / height and the whole image is allowed; for erasing it is height / width and the box
    must be smaller than the image (`RandomResizedCrop` and `RandomErasing` of torchvision).
    """
    rows, columns = size
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        area = rows * columns * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        if erasing:
            aspect = 1 / aspect
        width = round(math.sqrt(area * aspect))
        height = round(math.sqrt(area / aspect))
        fits = height < rows and width < columns if erasing else 0 < height <= rows and 0 < width <= columns
        if fits:
            top = int(rng.integers(0, rows - height + 1))
            left = int(rng.integers(0, columns - width + 1))
            return top, left, height, width
    return None


@register
@dataclass(frozen=True)
class RandomResizedCrop(Op):
    """Crops a box of random area and aspect ratio and resizes it (Szegedy et al., CVPR 2015; torchvision's rule).

    Args:
        size: Output side, or (height, width), in pixels.
        scale: Range of the crop's area, as a share of the image's.
        ratio: Range of the crop's width / height.
        interpolation: One of Pillow's filters by torchvision's name.
        passes: Which pass of the resize comes first; see `hf_dr.views.resizing`.
    """

    name: ClassVar[str] = "crop"
    size: int | Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    passes: str = HORIZONTAL

    def __post_init__(self) -> None:
        size_of(self)
        check_range(self, "scale", 0, 1)
        check_range(self, "ratio", 1e-3, 1e3)
        check_interpolation(self)
        check_passes(self)

    @property
    def params(self) -> dict[str, Param]:
        return {"box": Param("uint16", 4)}

    def check_size(self, size: Size) -> None:
        check_boxes(self, size)
        check_first_pass(self, size, size_of(self))

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
        box = check_box(self, params["box"], height_width(image))
        if 0 in box[2:]:
            raise ReplayError(
                f"RandomResizedCrop needs a box of at least one pixel, found {box}. The row is damaged; run "
                "`hf-dr verify`."
            )
        check_first_pass(self, height_width(image), size_of(self))
        top, left, height, width = box
        cropped = image.crop((left, top, left + width, top + height))
        return resize(cropped, size_of(self), resampling_of(self), self.passes)

    def output_size(self, size: Size | None) -> Size | None:
        return size_of(self)


@register
@dataclass(frozen=True)
class Resize(Op):
    """Resizes the image; no randomness.

    Args:
        size: An int scales the shorter side to that many pixels and keeps the aspect; (height, width) sets both.
        interpolation: One of Pillow's filters by torchvision's name.
        passes: Which pass of the resize comes first; see `hf_dr.views.resizing`.
    """

    name: ClassVar[str] = "resize"
    size: int | Size
    interpolation: str = "bilinear"
    passes: str = HORIZONTAL

    def __post_init__(self) -> None:
        size_of(self)
        check_interpolation(self)
        check_passes(self)

    def check_size(self, size: Size) -> None:
        new_size = self.output_size(size)
        assert new_size is not None
        check_pixels(self, new_size)
        check_first_pass(self, size, new_size)

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        self.check_size(height_width(image))
        size = self.output_size(height_width(image))
        assert size is not None
        return resize(image, size, resampling_of(self), self.passes)

    def output_size(self, size: Size | None) -> Size | None:
        if not isinstance(self.size, int):
            return self.size
        if size is None:
            return None
        height, width = size
        if height <= width:
            return self.size, int(self.size * width / height)
        return int(self.size * height / width), self.size


def _centred(inside: int, side: int) -> int:
    """Returns where a side begins in the middle of an image's, by torchvision's rule; below 0 where the image's is shorter."""
    return -((side - inside) // 2) if inside < side else round((inside - side) / 2)


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
        size_of(self)

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        height, width = size_of(self)
        top = _centred(image.height, height)
        left = _centred(image.width, width)
        return take_window(image, top, left, (height, width), (0, 0, 0))

    def output_size(self, size: Size | None) -> Size | None:
        return size_of(self)


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
        size_of(self)
        check_setting(self, "padding", is_count(self.padding, 0), f"a number of pixels from 0 to {MAX_SIDE}")
        check_rgb(self, "fill")

    @property
    def params(self) -> dict[str, Param]:
        return {"offset": Param("uint16", 2)}

    def check_size(self, size: Size) -> None:
        height, width = size_of(self)
        room = self._room(size)
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

    def _room(self, size: Size) -> tuple[int, int]:
        """How far the box can be moved down and to the right, in pixels; negative where it does not fit."""
        height, width = size_of(self)
        return size[0] + 2 * self.padding - height, size[1] + 2 * self.padding - width

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        self.check_size(size)
        room = self._room(size)
        return {"offset": (int(rng.integers(0, room[0] + 1)), int(rng.integers(0, room[1] + 1)))}

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        padded = (image.height + 2 * self.padding, image.width + 2 * self.padding)
        top, left, _, _ = check_box(self, (*params["offset"], *size_of(self)), padded)
        return take_window(image, top - self.padding, left - self.padding, size_of(self), self.fill)

    def output_size(self, size: Size | None) -> Size | None:
        return size_of(self)


@register
@dataclass(frozen=True)
class RandomHorizontalFlip(Op):
    """Mirrors the image left to right with probability `p`."""

    name: ClassVar[str] = "flip"
    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self)

    @property
    def params(self) -> dict[str, Param]:
        return {"": Param("bool")}

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        return {"": bool(rng.random() < self.p)}

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        return F.horizontal_flip(image) if params[""] else image


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
        check_probability(self)
        check_range(self, "scale", 0, 1)
        check_range(self, "ratio", 1e-3, 1e3)
        check_rgb(self, "value")

    @property
    def params(self) -> dict[str, Param]:
        return {"box": Param("uint16", 4)}

    def check_size(self, size: Size) -> None:
        check_boxes(self, size)

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        box = _sample_box(rng, size, self.scale, self.ratio, erasing=True) if rng.random() < self.p else None
        return {"box": box or (0, 0, 0, 0)}

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        top, left, height, width = check_box(self, params["box"], height_width(image))
        if height == 0 or width == 0:
            return image
        image = image.copy()
        image.paste(self.value, (left, top, left + width, top + height))
        return image

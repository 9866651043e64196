"""Ops that mix an image with a partner's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import PIL.Image

from hf_dr.errors import ReplayError
from hf_dr.views.ops.base import (
    Op,
    Param,
    Params,
    Size,
    check_box,
    check_probability,
    check_setting,
    height_width,
    is_number,
    register,
)

# Mixing weights are multiples of 1/256: exact in float16, and as fine as the levels of a pixel.
_MIX_LEVELS = 256


def _check_settings(op: MixUp | CutMix) -> None:
    check_setting(op, "alpha", is_number(op.alpha) and 0 < op.alpha <= 1000, "a number above 0, up to 1000")
    check_probability(op)


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
        _check_settings(self)

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
        _check_settings(self)

    @property
    def params(self) -> dict[str, Param]:
        return {"box": Param("uint16", 4)}

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        if rng.random() >= self.p:
            return self.neutral()
        # torchvision's rule: a uniform centre, half-sides of sqrt(1 - lam) / 2, clipped at the border.
        half = 0.5 * math.sqrt(1 - rng.beta(self.alpha, self.alpha))
        centre = (int(rng.integers(size[0])), int(rng.integers(size[1])))
        edges = []
        for middle, side in zip(centre, size, strict=True):
            reach = int(half * side)
            edges.append((max(middle - reach, 0), min(middle + reach, side)))
        (top, bottom), (left, right) = edges
        if bottom == top or right == left:
            return self.neutral()
        return {"box": (top, left, bottom - top, right - left)}

    def apply(self, image: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None = None) -> PIL.Image.Image:
        top, left, height, width = check_box(self, params["box"], height_width(image))
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

"""A trial of ops that are not the package's own: one that breaks the rules of `Op` would make views that nothing can replay."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import PIL.Image

from hf_dr.errors import ConfigError, DataError, HfDrError
from hf_dr.views.maker import ViewMaker
from hf_dr.views.ops.base import Op, Param, Params, height_width
from hf_dr.views.rng import view_rng

# Rows, and views of each: enough for what is skipped half of the time. With slow ops, as many as fit in the seconds.
_ROWS = 16
_VIEWS = 4
_SECONDS = 3.0


def check_own_ops(maker: ViewMaker) -> None:
    """Draws and performs some views, and checks that ops of the user's own give the same from what is stored.

    Raises:
        ConfigError: An op fails, or breaks a rule: `sample` draws from its generator alone, and returns what the columns hold;
            `apply` returns an RGB image of the announced size, the same each time, and leaves its images as they are.
    """
    if all(type(op).__module__.startswith("hf_dr.") for op in maker.augmentation.ops):
        return
    end = time.monotonic() + _SECONDS
    for example in range(min(_ROWS, len(maker.images))):
        try:
            image = maker.image(example)
        except DataError:  # its own row reports it
            continue
        for view in range(min(_VIEWS, maker.num_views)):
            _try_view(maker, example, view, image)
            if time.monotonic() > end:
                return


def _try_view(maker: ViewMaker, example: int, view: int, image: PIL.Image.Image) -> None:
    rngs = [view_rng(maker.seed, example, view) for _ in range(2)]
    for op in maker.augmentation.ops:  # those that mix come last, as `Augmentation.sample` draws them
        partner = image.transpose(PIL.Image.Transpose.ROTATE_180) if op.mixes else None
        size = height_width(image)
        try:
            drawn, again = (op.sample(rng, size) for rng in rngs)
            image = _performed(op, drawn, _checked(op, drawn, again), image, partner)
        except HfDrError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{type(op).__name__} must draw and perform the views of an image of {size[0]}x{size[1]} pixels, but: "
                f"{type(error).__name__}: {str(error).rstrip('. '):.300}. Correct it."
            ) from error


def _checked(op: Op, drawn: Params, again: Params) -> Params:
    """Returns the parameters of a view as they are read back; `again` was drawn from the same generator."""
    name = type(op).__name__
    if set(drawn) != set(op.params):
        raise ConfigError(
            f"`sample` of {name} must return the parameters that its `params` names, {sorted(op.params)}, got {sorted(drawn)}. "
            "Return each of them, also where the op is skipped."
        )
    stored = {key: _stored(param, drawn[key]) for key, param in op.params.items()}
    for key, param in op.params.items():
        if not np.array_equal(drawn[key], again[key]):
            raise ConfigError(
                f"`sample` of {name} must draw from its `rng` alone, but the same generator gave other values for the "
                f"parameter {key!r}. Use no other source of randomness, and keep nothing between the calls."
            )
        if not np.array_equal(drawn[key], stored[key]):
            kind = param.dtype if param.length is None else f"{param.length} times {param.dtype}"
            kept = "nothing" if stored[key] is None else stored[key]
            raise ConfigError(
                f"`sample` of {name} must return values that {kind} holds exactly, got {drawn[key]!s:.80} for the parameter "
                f"{key!r}, but it keeps {kept}. Round it there (`np.{param.dtype}(x).item()`), or declare another `Param`."
            )
    return stored


def _stored(param: Param, value: Any) -> Any:
    """Returns what is read back from the column; what it cannot hold becomes None."""
    cell = np.zeros(() if param.length is None else param.length, param.dtype)
    try:
        with np.errstate(all="ignore"):
            cell[...] = value
    except (TypeError, ValueError, OverflowError):
        return None
    return cell.item() if param.length is None else tuple(cell.tolist())


def _performed(
    op: Op, drawn: Params, stored: Params, image: PIL.Image.Image, partner: PIL.Image.Image | None
) -> PIL.Image.Image:
    """Returns an op's image for what was drawn, which is that for what is stored."""
    name = type(op).__name__
    given = [each for each in (image, partner) if each is not None]
    before = [each.tobytes() for each in given]
    more = () if partner is None else (partner,)  # as `Augmentation.apply` calls it
    shown = op.apply(image, drawn, *more)
    if before != [each.tobytes() for each in given]:
        raise ConfigError(
            f"`apply` of {name} must leave the image that it is given as it is, found it changed: the next view would be made "
            "of the changed one. Work on `image.copy()`."
        )
    size = tuple(op.output_size(height_width(image)) or height_width(shown))
    if shown.mode != "RGB" or height_width(shown) != size:
        raise ConfigError(
            f"`apply` of {name} must return an RGB image of {size[0]}x{size[1]} pixels (height x width), which its "
            f"`output_size` says, got one of mode {shown.mode} and {shown.height}x{shown.width}. Convert it by "
            "`image.convert('RGB')`, or correct `output_size`."
        )
    if op.apply(image, stored, *more).tobytes() != shown.tobytes():
        raise ConfigError(
            f"`apply` of {name} must make the same image of the same parameters, found another the second time. Draw in "
            "`sample` alone, and let it return all that was drawn, in Python's own numbers."
        )
    return shown

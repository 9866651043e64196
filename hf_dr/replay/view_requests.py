"""Which view of a row is asked for: a stored one, by its number or by its rank, or one that is drawn now."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from hf_dr.errors import ConfigError, DataError, ReplayError
from hf_dr.replay.names import DIFFICULTIES
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.base import Params, Size, height_width
from hf_dr.views.rng import view_rng

NEW = "new"


class ViewRequest(NamedTuple):
    """A request for a view that is not named by its stored number; see `fresh_view` and `ranked_view`.

    Samplers send one with each row to the workers of a loader, so it is a tuple: as quick to make and to pickle as can be.

    Attributes:
        kind: `new` for a view that is drawn now, or one of `DIFFICULTIES` for the stored view of a rank.
        number: The epoch of a new view; the rank of a stored one, 0 for the easiest.
    """

    kind: str
    number: int


View = int | ViewRequest
"""The number of a stored view, or a request for another. In arrays, which hold numbers only, -1 - epoch stands for
`fresh_view(epoch)`; such a number is understood for rows without stored views."""


ViewIndex = int | tuple[int, View]
"""A row, whose view of this epoch is meant, or (row, view)."""


def fresh_view(epoch: int) -> ViewRequest:
    """Returns the request for a newly drawn view without a teacher's answer, another one in each epoch."""
    return ViewRequest(NEW, epoch)


def ranked_view(rank: int, by: str) -> ViewRequest:
    """Returns the request for the view of this rank among all views of its row, 0 being the easiest by one of `DIFFICULTIES`.

    Whoever orders the rows need not know the difficulty of any view: it is looked up where the row is read.
    """
    check_difficulty(by)
    return ViewRequest(by, rank)


def check_difficulty(by: str, *, has_labels: bool = True) -> None:
    """Refuses what views are not ranked by."""
    if by not in DIFFICULTIES:
        raise ConfigError(f"views are ranked by one of {', '.join(DIFFICULTIES)}, got {by!r}. Name one of them.")
    if by == "cross_entropy" and not has_labels:
        raise ConfigError("views of a dataset without labels are ranked by entropy, got cross_entropy. Name entropy.")


def row_and_view(index: Any) -> tuple[int, View | None]:
    """Takes an index apart; a row alone has no view. Raises a TypeError if it is neither."""
    row, view = index if isinstance(index, tuple) and len(index) == 2 else (index, None)
    try:
        if isinstance(row, (bool, np.bool_)) or isinstance(view, (bool, np.bool_)):
            raise TypeError
        return operator.index(row), view if view is None or isinstance(view, ViewRequest) else operator.index(view)
    except TypeError:
        raise TypeError(
            f"expected a row, a pair of row and view, a slice, a list of these or a column's name, got {index!r:.80} "
            f"({type(index).__name__})."
        ) from None


def draw_fresh_view(
    image: PIL.Image.Image, augmentation: Augmentation, *, seed: int, row: int, epoch: int
) -> PIL.Image.Image:
    """Draws the view that `fresh_view(epoch)` asks for: without mixing, a function of (seed, row of the base, epoch) alone."""
    params = draw_fresh_params(augmentation, height_width(image), seed=seed, row=row, epoch=epoch)
    return augmentation.apply(image, params)


def draw_fresh_params(augmentation: Augmentation, size: Size, *, seed: int, row: int, epoch: int) -> Params:
    """Draws the parameters of what `draw_fresh_view` shows of an image of this (height, width).

    Raises:
        DataError: The ops do not take images of this size; it names the row.
    """
    # Stored views have keys from 0 upwards. These count down from the largest key: no run has used any of them.
    rng = view_rng(seed, row, (1 << 64) - 1 - int(epoch))
    try:
        augmentation.check_size(size)
        return augmentation.sample(rng, size)
    except (ConfigError, ReplayError) as error:
        raise DataError(f"the image of row {row} must be of a size that can be augmented, but: {error}") from error

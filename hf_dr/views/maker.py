"""Making views: from rows of the base to augmented pixels and the parameters that made them.

The same code serves generation (parameters drawn) and replay (parameters read), so both give the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import datasets
import numpy as np
import PIL.Image
import torch
import xxhash

from hf_dr.errors import ConfigError, DataError, ReplayError
from hf_dr.views.augmentation import NO_PARTNER, PARTNER, Augmentation
from hf_dr.views.images import decode_row, pixel_hash, with_file
from hf_dr.views.ops.base import MAX_SIDE, Params, Size, height_width
from hf_dr.views.rng import Matching, view_rng


@dataclass(frozen=True)
class Span:
    """Views `start` to `stop` of the flat order (example, view) of one shard: what a teacher sees in one batch."""

    shard: int
    start: int
    stop: int


@dataclass
class ViewBatch:
    """The views of a span, N in number.

    Attributes:
        span: Which views.
        pixels: uint8 (N, H, W, 3), or those of the maker's `first_new` view and later ones only.
        params: Parameter name -> (N,) or (N, n), in the stored dtype.
        image_hashes: uint64 (N,), of the decoded image of each view's example.
        view_hashes: uint64 (N,), of each view's pixels.
        valid: bool (N,), False where the image could not be decoded.
        error: Why the first bad image could not be decoded; None if all could.
    """

    span: Span
    pixels: torch.Tensor
    params: dict[str, np.ndarray]
    image_hashes: np.ndarray
    view_hashes: np.ndarray
    valid: np.ndarray
    error: str | None = None


class ViewMaker(torch.utils.data.Dataset):
    """Draws and performs the augmentation of any span; picklable, without state, so any worker may do any span.

    Args:
        images: Dataset whose only column holds the images, undecoded (`Image(decode=False)`).
        augmentation: The ops.
        num_views: V.
        seed: Seed of the run.
        matching_size: Partners come from the same block of `matching_size` examples; None: from the whole dataset.
        first_new: Views before it have stored answers: they are drawn, performed and hashed, but their pixels are not in the
            batch.
    """

    def __init__(
        self,
        images: datasets.Dataset,
        augmentation: Augmentation,
        num_views: int,
        seed: int,
        matching_size: int | None,
        *,
        first_new: int = 0,
    ) -> None:
        self.images = images
        self.column = images.column_names[0]
        self.augmentation = augmentation
        self.num_views = num_views
        self.seed = seed
        self.matching_size = matching_size
        self.first_new = first_new

    def image(self, example: int) -> PIL.Image.Image:
        """Decodes the image of one example; a DataError names row and file of one that cannot be."""
        value = self.images[example][self.column]
        image = decode_row(value, f"row {example}")
        where = with_file(f"row {example}", value)
        if max(image.size) > MAX_SIDE:
            raise DataError(
                f"the image of {where} must have sides of at most {MAX_SIDE} pixels, got {image.height}x{image.width}. Shrink "
                "it."
            )
        try:
            self.augmentation.check_size(height_width(image))
        except (ConfigError, ReplayError) as error:
            raise DataError(f"the image of {where} must be of a size that can be augmented, but: {error}") from error
        return image

    def matching(self, example: int, view: int) -> Matching:
        """Returns who is mixed with whom in this view, in the block of examples that holds this one."""
        size = self.matching_size or len(self.images)
        start = example // size * size
        return _matching(start, min(start + size, len(self.images)), self.seed, view)

    def draw(self, example: int, view: int, size: Size) -> Params:
        """Draws the parameters of one view of an image of this (height, width); who the partner is is not drawn."""
        return self.augmentation.sample(view_rng(self.seed, example, view), size)

    def view(self, example: int, view: int, image: PIL.Image.Image) -> tuple[PIL.Image.Image, Params]:
        """Draws the parameters of one view of an example, whose decoded image is given, and performs them, mixing included."""
        augmentation = self.augmentation
        params = self.draw(example, view, height_width(image))
        pixels = augmentation.apply(image, params)
        if not augmentation.mixes:
            return pixels, params
        params[PARTNER] = NO_PARTNER
        if augmentation.needs_partner(params):
            partner = self.matching(example, view).partner(example)
            other = self._partner_view(partner, view) if partner != example else None
            if other is None:  # an odd one out, or an undecodable partner
                return pixels, {**augmentation.without_mixing(params), PARTNER: NO_PARTNER}
            params[PARTNER] = partner
            pixels = augmentation.mix(pixels, params, other)
        return pixels, params

    def _partner_view(self, partner: int, view: int) -> PIL.Image.Image | None:
        try:
            image = self.image(partner)
        except DataError:
            return None  # its own row reports it; without `skip` the run ends there
        return self.augmentation.apply(image, self.draw(partner, view, height_width(image)))

    def __getitem__(self, span: Span) -> ViewBatch:
        count = span.stop - span.start
        height, width = self.augmentation.size
        kept = np.arange(span.start, span.stop) % self.num_views >= self.first_new
        place = np.cumsum(kept) - 1  # of each view among those whose pixels are kept
        pixels = np.zeros((int(kept.sum()), height, width, 3), np.uint8)
        params = zero_columns(self.augmentation, count)
        batch = ViewBatch(
            span,
            torch.from_numpy(pixels),
            params,
            np.zeros(count, np.uint64),
            np.zeros(count, np.uint64),
            np.ones(count, bool),
        )
        # The views of an example follow each other, so each image is decoded once.
        for example, numbers in groupby(range(count), lambda n: (span.start + n) // self.num_views):
            own = list(numbers)
            try:
                image = self.image(example)
            except DataError as error:
                batch.error = batch.error or str(error)
                batch.valid[own] = False
                continue
            batch.image_hashes[own] = pixel_hash(image)
            for n in own:
                shown, drawn = self.view(example, (span.start + n) % self.num_views, image)
                array = np.asarray(shown)
                if kept[n]:
                    pixels[place[n]] = array
                batch.view_hashes[n] = hash_view(array)
                for name, value in drawn.items():
                    params[name][n] = value
        return batch


def zero_columns(augmentation: Augmentation, count: int) -> dict[str, np.ndarray]:
    """Returns columns for the parameters of `count` views, (count,) or (count, n), in the stored dtypes, to be filled in."""
    return {
        name: np.zeros(count if param.length is None else (count, param.length), param.dtype)
        for name, param in augmentation.params.items()
    }


def hash_view(pixels_HWC: np.ndarray) -> int:
    """Returns the 64-bit XXH3 hash of a view's pixels."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(pixels_HWC).data)


_matching = lru_cache(maxsize=1024)(Matching)

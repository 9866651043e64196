"""Training data whose views are still to be made on a device: workers decode and crop, the device does the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import PIL.Image
import torch

from hf_dr.replay.augmented import AugmentedDataset
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.reinforced_data import View, ViewIndex, ViewRequest, draw_fresh_params
from hf_dr.store.schema import STORED_PARTNERS
from hf_dr.views.augmentation import NO_PARTNER, PARTNER, Augmentation
from hf_dr.views.device.augment import DeviceAugmentation
from hf_dr.views.device.packing import Source, UndoneBatch, UndoneView, trim
from hf_dr.views.ops.base import Params, height_width

_Sources = dict[tuple[int, int], tuple[Source, Params]]
"""(slot, view) -> what both rows of a pair need, and the view's parameters."""


class UndoneViews(torch.utils.data.Dataset):
    """The rows of a dataset; `pixel_values` of an item is an `UndoneView`, all else is as the dataset gives it."""

    def __init__(self, data: ReinforcedDataset | AugmentedDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: Sequence[ViewIndex]) -> list[dict[str, Any]]:
        return undone_items(self.data, indices)


def undone_items(data: ReinforcedDataset | AugmentedDataset, indices: Sequence[ViewIndex]) -> list[dict[str, Any]]:
    """Returns items whose views are still to be made; what both of a mixed pair need is decoded once."""
    if isinstance(data, AugmentedDataset):
        return [data.item_with(lambda row, epoch: _fresh(data, row, row, epoch), index) for index in indices]
    sources: _Sources = {}

    def view_of(slot: int, view: View) -> UndoneView:
        if isinstance(view, ViewRequest):
            return _fresh(data, slot, data.rows.base_row(slot), view.number)
        return _stored(data, slot, view, sources)

    return data.items_with(view_of, indices)


def _fresh(data: ReinforcedDataset | AugmentedDataset, slot: int, row: int, epoch: int) -> UndoneView:
    """A newly drawn view, which is not mixed."""
    (augmentation,) = data.augmentations
    image = data.decode(slot)
    params = draw_fresh_params(augmentation, height_width(image), seed=data.seed, row=row, epoch=epoch)
    own = _source(("new", row, slot, epoch), augmentation, image, params)
    return UndoneView(own, None, augmentation.without_mixing(params))


def _stored(data: ReinforcedDataset, slot: int, view: int, sources: _Sources) -> UndoneView:
    """A stored view."""
    own, params = _source_of(data, slot, view, sources)
    augmentation = data.augmentation
    if not augmentation.mixes or params[PARTNER] == NO_PARTNER:
        return UndoneView(own, None, params)
    other = data.partner_slot(slot, view, params[PARTNER])
    if data.provenance.mixing_scope == STORED_PARTNERS:
        theirs = data.stored.partner_params(slot, view)
        partner = _source(("partner", data.rows.base_row(slot), slot, view), augmentation, data.decode(other), theirs)
    else:
        partner, _ = _source_of(data, other, view, sources)
    return UndoneView(own, partner, params)


def _source_of(data: ReinforcedDataset, slot: int, view: int, sources: _Sources) -> tuple[Source, Params]:
    if (slot, view) not in sources:
        params = data.stored.params(slot, view)
        # A batch of a stream may hold rows of two shards, which count their slots from 0.
        key = (data.rows.base_row(slot), slot, view)
        sources[slot, view] = _source(key, data.augmentation, data.decode(slot), params), params
    return sources[slot, view]


def _source(key: Any, augmentation: Augmentation, image: PIL.Image.Image, params: Params) -> Source:
    return Source(key, *trim(augmentation, image, params))


class UndoneCollator:
    """Packs views that are still to be made, as `augmenter` plans it, into an `UndoneBatch`; `collate` does all else."""

    def __init__(self, augmenter: DeviceAugmentation, collate: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.augmenter = augmenter
        self.collate = collate

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        views = [item["pixel_values"] for item in items]
        others = [{name: value for name, value in item.items() if name != "pixel_values"} for item in items]
        return {**self.collate(others), "pixel_values": UndoneBatch.pack(self.augmenter, views)}

"""Training data whose views are still to be made on a device: workers decode and crop, the device does the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hf_dr.replay.augmented import AugmentedDataset
from hf_dr.replay.combined import CombinedReinforcedDataset
from hf_dr.replay.dataset import ReinforcedDataset, StoredPairs
from hf_dr.replay.view_requests import View, ViewIndex, ViewRequest, draw_fresh_params
from hf_dr.views.device.augment import DeviceAugmentation
from hf_dr.views.device.packing import Source, UndoneBatch, UndoneView, trim
from hf_dr.views.ops.base import Params, height_width

Mapped = ReinforcedDataset | AugmentedDataset | CombinedReinforcedDataset
"""Data whose views a device can make; those of several "+" datasets have one augmentation."""


class UndoneViews(torch.utils.data.Dataset):
    """The rows of a dataset; `pixel_values` of an item is an `UndoneView`, all else is as the dataset gives it."""

    def __init__(self, data: Mapped) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: Sequence[ViewIndex]) -> list[dict[str, Any]]:
        return undone_items(self.data, indices)


def undone_items(data: Mapped, indices: Sequence[ViewIndex]) -> list[dict[str, Any]]:
    """Returns items whose views are still to be made; what both of a mixed pair need is decoded once."""
    if isinstance(data, CombinedReinforcedDataset):
        return data.items_with(undone_items, indices)
    if isinstance(data, AugmentedDataset):
        return [data.item_with(lambda row, epoch: _fresh(data, row, row, epoch), index) for index in indices]

    def source(slot: int, params: Params, what: tuple[str, int, int]) -> Source:
        # A batch may hold rows of several "+" datasets.
        return Source((data.fingerprint, *what), *trim(data.augmentation, data.decode(slot), params))

    pairs = StoredPairs(data, source)

    def view_of(slot: int, view: View) -> UndoneView:
        if isinstance(view, ViewRequest):
            return _fresh(data, slot, data.rows.base_row(slot), view.number)
        return UndoneView(*pairs.of(slot, view))

    return data.items_with(view_of, indices)


def _fresh(data: ReinforcedDataset | AugmentedDataset, slot: int, row: int, epoch: int) -> UndoneView:
    """A newly drawn view, which is not mixed."""
    (augmentation,) = data.augmentations
    image = data.decode(slot)
    params = draw_fresh_params(augmentation, height_width(image), seed=data.seed, row=row, epoch=epoch)
    own = Source(("new", slot, row, epoch), *trim(augmentation, image, params))
    return UndoneView(own, None, augmentation.without_mixing(params))


class UndoneCollator:
    """Packs views that are still to be made, as `augmenter` plans it, into an `UndoneBatch`; `collate` does all else."""

    def __init__(self, augmenter: DeviceAugmentation, collate: Callable[[list[Any]], dict[str, Any]]) -> None:
        self.augmenter = augmenter
        self.collate = collate

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        views = [item["pixel_values"] for item in items]
        others = [{name: value for name, value in item.items() if name != "pixel_values"} for item in items]
        return {**self.collate(others), "pixel_values": UndoneBatch.pack(self.augmenter, views)}

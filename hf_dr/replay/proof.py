"""Whether views replay to the pixels that their teacher saw: the hash of all views of a row, which is stored with it, tells."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from hf_dr.errors import ReplayError
from hf_dr.replay.combined import CombinedReinforcedDataset
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.device import undone_items
from hf_dr.store.features import combine_hashes
from hf_dr.views.device.augment import DeviceAugmentation
from hf_dr.views.device.packing import UndoneBatch
from hf_dr.views.maker import hash_view

logger = logging.getLogger(__name__)

OnDevice = tuple[DeviceAugmentation, torch.device]
"""What makes views in place of Pillow, and where."""

_AT_ONCE = 64  # views of a row on the device; some thousand may be stored
# A training checks rows that have the first number of views together, which takes less than a second, and no row with more
# views than the second number, which would take longer.
_CHECKED_VIEWS = 64
_MOST_VIEWS = 512


def with_all_views(plus: ReinforcedDataset) -> ReinforcedDataset:
    """Returns a dataset with all its stored views, whatever training uses, that checks each image."""
    whole = copy.copy(plus)
    whole.num_views = plus.provenance.num_views
    whole.check_images = True
    return whole


def replayed(plus: ReinforcedDataset, row: int, maker: OnDevice | None = None) -> Iterator[np.ndarray]:
    """Yields the pixels of all views of a row, uint8 (H, W, 3), made by Pillow or on a device."""
    if maker is None:
        for view in range(plus.num_views):
            yield np.asarray(plus.image(row, view))
        return
    augmenter, device = maker
    for start in range(0, plus.num_views, _AT_ONCE):
        stop = min(start + _AT_ONCE, plus.num_views)
        items = undone_items(plus, [(row, view) for view in range(start, stop)])
        batch = UndoneBatch.pack(augmenter, [item["pixel_values"] for item in items])
        yield from batch.to(device).pixels(channels_last=True).permute(0, 2, 3, 1).cpu().numpy()


def check_replay(data: Any, maker: OnDevice | None = None) -> None:
    """Replays the views of some rows as a training is going to, and compares their hashes, before it starts.

    Data that is opened without `check_images` is not checked; nor is what does not tell what its teacher saw, or has more
    than 512 views of a row. A stream has no rows yet: it checks the first that it reads.

    Raises:
        ReplayError: A view has other pixels: that of an op of the user's own that has changed, for example.
    """
    for part in data.parts if isinstance(data, CombinedReinforcedDataset) else (data,):
        if isinstance(part, ReinforcedDataset) and part.check_images and part.provenance.num_views <= _MOST_VIEWS:
            _check_part(with_all_views(part), maker)


def _check_part(whole: ReinforcedDataset, maker: OnDevice | None) -> None:
    count = min(whole.num_reinforced, -(-_CHECKED_VIEWS // whole.num_views))
    for row in np.linspace(0, whole.num_reinforced - 1, count, dtype=int).tolist():
        stored = whole.views_hash(row)
        if stored is None:  # an import
            return
        found = combine_hashes(np.array([hash_view(pixels) for pixels in replayed(whole, row, maker)], np.uint64))
        if found == stored:
            continue
        where = ""
        advice = "Run `hf-dr verify` (`hf_dr.verify` with an op of your own): it says how many rows differ, and which versions."
        if maker is not None:
            where, advice = f" on {maker[1]}", "Set `augment_on` to cpu, and run `hf-dr verify --device`."
        raise ReplayError(
            f"row {whole.source_rows[row]} of `{whole.provenance.config_name}` must replay to the pixels that its teacher saw, "
            f"found others{where}: the code of an op, or a library that makes pixels, is not the one with which they were "
            f"made. {advice} `check_images=False` of `load_reinforced` trains on them all the same."
        )
    logger.debug("%d rows of `%s` replay bit for bit.", count, whole.provenance.config_name)

"""Reading a "+" dataset back: one stored view per access, bit for bit what the teacher saw."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import datasets
import numpy as np
import PIL.Image
import torch

from hf_dr.errors import ConfigError, FormatError, ReplayError, did_you_mean
from hf_dr.replay.columns import StoredViews
from hf_dr.replay.join import JoinedBase, join_base
from hf_dr.replay.reinforced_data import MappedReinforcedData, Origin, checked_rows, checked_views
from hf_dr.replay.rows import check_labels, find_rows
from hf_dr.replay.view_requests import View, ViewIndex, ViewRequest, check_difficulty, draw_fresh_view, row_and_view
from hf_dr.settings import check_kind, check_names
from hf_dr.store.base_dataset import class_names_of, undecoded_images, whole_column
from hf_dr.store.named_files import named_files
from hf_dr.store.provenance import Provenance, check_columns
from hf_dr.store.schema import IMAGE_HASH, STORED_PARTNERS, is_reserved
from hf_dr.teacher.signals import IMAGE_TAIL, tail_size
from hf_dr.views.augmentation import NO_PARTNER, PARTNER
from hf_dr.views.images import as_tensor, decode_row, pixel_hash
from hf_dr.views.ops.base import Params
from hf_dr.views.rng import check_seed

# Keys of an item, next to those that are columns of the reinforcement.
_OWN_KEYS = ("pixel_values", "labels", "reinforced")

_Made = TypeVar("_Made")


class ReinforcedDataset(MappedReinforcedData):
    """A map-style dataset that replays one stored view per access.

    `dataset[i]` replays the view of this epoch (see `set_epoch`), `dataset[i, v]` view v, `dataset[i, ranked_view(r, by)]` the
    view that is the r-th easiest of the row. An item is a dict:

    * `pixel_values`: uint8 tensor (3, H, W), what the teacher saw; the student normalises it.
    * `labels`: int, where the base has labels.
    * `teacher_ids`: int64 tensor (K,), classes, most probable first.
    * `teacher_logprobs`: float32 tensor (K,), natural log-probabilities; the rest of the mass is 1 - sum(exp).
    * `tail_ids`, `tail_logprobs`: int64 and float32 tensors (T,), the same of the mean over the row's views, where the dataset
      has the signal `topk_image_tail`.
    * `reinforced`: bool; False for `dataset[i, fresh_view(epoch)]`, a newly drawn view (without mixing) that no teacher
      saw: its `teacher_*` are zeros, and its label is all there is to learn from.
    * The base's columns that `columns` names, as the base has them.

    Rows without reinforcement (their image was undecodable) are left out, or, with `unreinforced`, come last, together with
    the rows of an overlay's base beyond those that were reinforced: they have newly drawn views only.

    Args:
        plus: The "+" dataset's rows.
        provenance: Its `reinforcement.json`.
        base: The base dataset of an overlay; this and what follows are as for `load_reinforced`.
        shards: The files that the rows were read from, for `verify`.

    Attributes:
        stored: What is stored of the views, by slot.
        rows: Which row has which slot.

    Raises:
        ConfigError: A setting is impossible.
        DataError: The base does not hold what was reinforced.
        FormatError: The rows do not follow the format.
    """

    def __init__(
        self,
        plus: datasets.Dataset,
        provenance: Provenance,
        *,
        base: datasets.Dataset | JoinedBase | None = None,
        unreinforced: bool = False,
        columns: Sequence[str] = (),
        num_views: int | None = None,
        seed: int = 0,
        check_images: bool = True,
        shards: Sequence[Path] = (),
    ) -> None:
        advice = "`load_reinforced(folder)` opens both."
        check_kind("plus", plus, datasets.Dataset, 'the rows of a "+" dataset', advice)
        check_kind("provenance", provenance, Provenance, "what `Provenance.read` returns", advice)
        check_seed(seed)
        self.plus = plus
        self.provenance = provenance
        self.shards = tuple(shards)
        self.origin = Origin.of([provenance])
        self.augmentation = check_columns(plus.features, provenance, 'a "+" dataset')
        self.augmentations = (self.augmentation,)
        self.num_views = checked_views(num_views, provenance.num_views)
        self.top_k = provenance.top_k
        self.seed = int(seed)
        self.check_images = check_images
        self.stored = StoredViews(plus, provenance, self.augmentation)
        self._labels = provenance.label_column if provenance.label_column in plus.column_names else None
        if self._labels is not None:
            check_labels(plus, provenance)
        joined = join_base(base, provenance)
        _check_embedded(plus, None if provenance.overlay else provenance.image_column)
        self._images = joined.images if joined is not None else undecoded_images(plus, provenance.image_column)
        self.rows = find_rows(plus, provenance, self._images, joined, unreinforced=unreinforced)
        # A loader's workers share this memory: each epoch starts new ones, which would check every image again.
        self._checked = torch.zeros(len(plus), dtype=torch.bool).share_memory_()
        self._chosen = _chosen_columns(plus, columns)
        # Rows without reinforcement may be of the base, which has columns of its own.
        others = joined.dataset if unreinforced and joined is not None else plus
        self._chosen_of_others = _chosen_columns(others, columns)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> np.ndarray | None:
        if self._labels is None:
            return None
        own = np.asarray(whole_column(self.plus, self._labels))[self.rows.reinforced]
        return np.concatenate([own.astype(np.int64), self.rows.labels_of_others])

    @property
    def has_labels(self) -> bool:
        return self._labels is not None

    @property
    def num_reinforced(self) -> int:
        """How many rows have stored views: the first ones."""
        return self.rows.num_reinforced

    @property
    def all_reinforced(self) -> bool:
        return self.num_reinforced == len(self)

    @property
    def source_rows(self) -> np.ndarray:
        return self.rows.source_rows

    @property
    def image_hashes(self) -> np.ndarray:
        """The pixel hash of each reinforced row's image, uint64 (rows,)."""
        return whole_column(self.plus, IMAGE_HASH).fill_null(0).to_numpy()[self.rows.reinforced]

    @property
    def class_names(self) -> list[str] | None:
        return class_names_of(self.plus, self._labels)

    @property
    def undecoded_images(self) -> datasets.Dataset:
        """The image of each row of `plus`, as bytes and paths; of a row without reinforcement it may be another."""
        places = np.minimum(self.rows.places[: len(self.plus)], len(self._images) - 1)
        return self._images.select(places)

    def pairs(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        couples = self.rows.matched(self.provenance, view) if self.paired else np.empty((0, 2), np.int64)
        return couples, np.setdiff1d(np.arange(len(self)), couples)

    def __getitems__(self, indices: Sequence[ViewIndex]) -> list[dict[str, Any]]:
        """Replays several views; a pair that was mixed is decoded and augmented once if both are asked for."""
        return self.items_with(_Batch(self).pixels, indices)

    def items_with(self, pixels: Callable[[int, View], Any], indices: Sequence[ViewIndex]) -> list[dict[str, Any]]:
        """Returns items with `pixel_values` as they are made from a row's slot (`hf_dr.replay.rows.Rows`) and its view."""
        items = []
        for index in indices:
            row, view = self._locate(index)
            slot = int(self.rows.usable[row])
            items.append(self._item(slot, view, pixels(slot, view)))
        return items

    @property
    def own_features(self) -> datasets.Features:
        return self._chosen.features

    def _column(self, name: str) -> Any:
        if name not in self._chosen.column_names:
            return super()._column(name)
        return [self._chosen_values(slot)[name] for slot in self.rows.usable.tolist()]

    def select(self, rows: Sequence[int] | np.ndarray) -> ReinforcedDataset:
        """See `MappedReinforcedData.select`. `plus` keeps all rows, so that views that mix find their partners."""
        chosen = copy.copy(self)
        chosen.rows = self.rows.select(checked_rows(rows, len(self)))
        return chosen

    def image(self, index: int, view: int) -> PIL.Image.Image:
        """Returns one replayed view as an RGB image.

        Raises:
            ReplayError: The image is not the one that was reinforced, or the stored parameters do not fit it.
        """
        return _Batch(self).replay(*self._locate_stored(index, view))

    def example_image(self, index: int) -> PIL.Image.Image:
        """Returns the decoded RGB image of a row, before augmentation."""
        return self.decode(self._slot(index))

    def params(self, index: int, view: int) -> Params:
        """Returns the stored parameters of one view."""
        return self.stored.params(*self._locate_stored(index, view))

    def views_hash(self, index: int) -> int | None:
        """Returns the stored hash of all views of a row (`hf_dr.store.features.combine_hashes`); None where it is unknown."""
        slot, _ = self._locate_stored(index, 0)
        return self.stored.views_hash(slot)

    def difficulties(self, index: int, by: str, top_k: int | None = None) -> np.ndarray:
        """Returns how difficult each view of a row is, in nats, float32 (V,): `hf_dr.teacher.topk.entropy` or `cross_entropy`.

        Args:
            index: The row; where it has no stored views the result is empty.
            by: `entropy` or `cross_entropy`; the latter needs labels.
            top_k: Look at the first `top_k` of the K classes only.

        Raises:
            ConfigError: Views are not ranked by that.
            FormatError: A stored answer is damaged.
        """
        check_difficulty(by, has_labels=self.has_labels)
        slot = self._slot(index)
        if not self.rows.has_stored_views(slot):
            return np.empty(0, np.float32)
        label = None if by == "entropy" else self._label(slot)
        return self.stored.difficulties(slot, self.num_views, top_k, label)

    def teacher_answer(self, index: int, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the stored ids (K,) and log-probabilities (K,) float16 of one view.

        Raises:
            FormatError: They are damaged: not finite, rising, above 0, or of a class that does not exist.
        """
        return self.stored.answer(*self._locate_stored(index, view))

    def image_tail(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the stored ids (T,) and log-probabilities (T,) float16 of the mean answer to a row's views.

        Raises:
            ConfigError: The signal is another than `topk_image_tail`: no tails are stored.
            FormatError: They are damaged, as in `teacher_answer`.
        """
        if self.signal != IMAGE_TAIL:
            raise ConfigError(
                f"tails are stored with the signal `{IMAGE_TAIL}`, but that of the dataset is `{self.signal}`. Ask for "
                "`teacher_answer`, or reinforce with that signal."
            )
        slot, _ = self._locate_stored(index, 0)
        return self.stored.tail(slot)

    def _slot(self, index: int) -> int:
        """Returns the slot of a row (`hf_dr.replay.rows.Rows`)."""
        return int(self.rows.usable[self._row(row_and_view((index, 0))[0])])

    def _locate_stored(self, index: int, view: int) -> tuple[int, int]:
        """Returns the slot of a row and the number of a stored view."""
        row, found = self._locate((index, view))
        if isinstance(found, ViewRequest):
            raise IndexError(f"a stored view must be from 0 to {self.num_views - 1}, got {view}")
        return int(self.rows.usable[row]), found

    def _item(self, slot: int, view: View, pixels: Any) -> dict[str, Any]:
        answers: dict[str, Any] = {}
        if isinstance(view, ViewRequest):  # for a new view: zeros, so that all items of a batch are alike
            answers["teacher"] = np.zeros((2, self.top_k))
            if self.signal == IMAGE_TAIL:
                answers["tail"] = np.zeros((2, tail_size(self.num_classes)))
        else:
            answers["teacher"] = self.stored.answer(slot, view)
            if self.signal == IMAGE_TAIL:
                answers["tail"] = self.stored.tail(slot)
        item: dict[str, Any] = {"pixel_values": pixels}
        for name, (ids, logprobs) in answers.items():
            item[f"{name}_ids"] = torch.from_numpy(ids.astype(np.int64))
            item[f"{name}_logprobs"] = torch.from_numpy(logprobs.astype(np.float32))
        item["reinforced"] = not isinstance(view, ViewRequest)
        if self._labels is not None:
            item["labels"] = self._label(slot)
        if self._chosen.column_names:
            item.update(self._chosen_values(slot))
        return item

    def _chosen_values(self, slot: int) -> dict[str, Any]:
        """Returns the base's own columns of a slot that were asked for."""
        own = self.rows.has_stored_views(slot)
        return self._chosen[slot] if own else self._chosen_of_others[int(self.rows.places[slot])]

    def _label(self, slot: int) -> int:
        return self.stored.label(slot) if self.rows.has_stored_views(slot) else self.rows.other_label(slot)

    def partner_slot(self, slot: int, view: int, source: int) -> int:
        """Returns the slot of the row of the base that is mixed into a view."""
        partner = self.rows.slot_of(source)
        if partner == slot and self.provenance.mixing_scope != STORED_PARTNERS:
            raise ReplayError(
                f"row {source}, view {view} must be mixed with another row, found itself as its partner. The file is damaged: "
                "fetch it again, or run `hf-dr verify`."
            )
        return partner

    def decode(self, slot: int) -> PIL.Image.Image:
        """Decodes the image of a slot, and checks once that it is the one that was reinforced."""
        (value,) = self._images[int(self.rows.places[slot])].values()
        image = decode_row(value, self.rows.name(slot), "Fetch the dataset again.", ReplayError)
        if self.check_images and self.rows.has_stored_views(slot) and not self._checked[slot]:
            expected, found = self.stored.image_hash(slot), pixel_hash(image)
            if expected != found:
                raise ReplayError(
                    f"{self.rows.name(slot)} must hold the image that was reinforced (pixel hash {expected:016x}), found "
                    f"another ({found:016x}). Give {self.provenance.named_base}, unchanged; a base that is streamed must have "
                    "its order, too: where a slice of it was reinforced, leave `streaming` out."
                )
            self._checked[slot] = True
        return image


class StoredPairs(Generic[_Made]):
    """What the stored views of a batch are mixed of; what the two rows of a pair share is made once.

    Args:
        data: The dataset that stores them.
        make: Makes the image of a view from its slot, its parameters, and what it is: (`row` or `the partner of row`, row of
            the base, view).
    """

    def __init__(self, data: ReinforcedDataset, make: Callable[[int, Params, tuple[str, int, int]], _Made]) -> None:
        self._data = data
        self._make = make
        self._own: dict[tuple[int, int], tuple[_Made, Params]] = {}

    def of(self, slot: int, view: int) -> tuple[_Made, _Made | None, Params]:
        """Returns what is made of a view's own image, of the one that is mixed in (None without), and the view's parameters."""
        data = self._data
        own, params = self._own_of(slot, view)
        if not data.augmentation.mixes or params[PARTNER] == NO_PARTNER:
            return own, None, params
        partner = data.partner_slot(slot, view, params[PARTNER])
        if data.provenance.mixing_scope != STORED_PARTNERS:
            return own, self._own_of(partner, view)[0], params
        drawn = data.stored.partner_params(slot, view)  # for this view alone
        return own, self._make(partner, drawn, ("the partner of row", data.rows.base_row(slot), view)), params

    def _own_of(self, slot: int, view: int) -> tuple[_Made, Params]:
        if (slot, view) not in self._own:
            params = self._data.stored.params(slot, view)
            self._own[slot, view] = self._make(slot, params, ("row", self._data.rows.base_row(slot), view)), params
        return self._own[slot, view]


class _Batch:
    """Makes the pixels of one batch."""

    def __init__(self, data: ReinforcedDataset) -> None:
        self._data = data
        self._pairs = StoredPairs(data, partial(_augmented, data))  # without the batch, which it would keep alive

    def pixels(self, slot: int, view: View) -> torch.Tensor:
        """Returns a view, stored or new, uint8 (3, H, W)."""
        if not isinstance(view, ViewRequest):
            return as_tensor(self.replay(slot, view))
        data, row, epoch = self._data, self._data.rows.base_row(slot), view.number
        return as_tensor(draw_fresh_view(data.decode(slot), data.augmentation, seed=data.seed, row=row, epoch=epoch))

    def replay(self, slot: int, view: int) -> PIL.Image.Image:
        """Replays a stored view, mixing included."""
        own, partner, params = self._pairs.of(slot, view)
        try:
            return self._data.augmentation.mix(own, params, partner)
        except ReplayError as error:
            raise ReplayError(f"row {self._data.rows.base_row(slot)}, view {view}: {error}") from None


def _augmented(data: ReinforcedDataset, slot: int, params: Params, what: tuple[str, int, int]) -> PIL.Image.Image:
    """Returns the augmented image of a row before mixing."""
    try:
        return data.augmentation.apply(data.decode(slot), params)
    except ReplayError as error:
        raise ReplayError("{} {}, view {}: {}".format(*what, error)) from None


def _chosen_columns(rows: datasets.Dataset, columns: Sequence[str]) -> datasets.Dataset:
    own = [name for name in rows.column_names if not is_reserved(name) and name not in _OWN_KEYS]
    check_names("columns", columns)
    for name in columns:
        if name in _OWN_KEYS or is_reserved(name):
            raise ConfigError(f"`columns` must be the base's own, but an item has its own `{name}`. Leave it out.")
        if name not in own:
            raise ConfigError(
                f"`columns` must name columns of the dataset, but it has no `{name}`.{did_you_mean(name, own)}"
            )
    return rows.select_columns(list(columns)).with_format(None)


def _check_embedded(plus: datasets.Dataset, column: str | None) -> None:
    """Refuses files that are only named, in any column: a dataset from elsewhere could name any file of this machine."""
    if column is not None and not isinstance(plus.features.get(column), datasets.Image):
        raise FormatError(
            f"the image column `{column}` must be there and hold images, found {plus.features.get(column)}. Fetch it again."
        )
    for files in named_files(plus):
        raise FormatError(
            f"column `{files.column}` must hold the files themselves, found one in row {files.rows[0]} that is only named by "
            "its path. Fetch or make it again."
        )

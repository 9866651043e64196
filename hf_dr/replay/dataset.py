"""Reading a "+" dataset back: one stored view per access, bit for bit what the teacher saw."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import torch

from hf_dr.errors import ConfigError, DataError, FormatError, ReplayError, did_you_mean
from hf_dr.replay.columns import Columns, whole_column
from hf_dr.replay.join import JoinedBase, readable
from hf_dr.replay.reinforced_data import MappedReinforcedData, ViewIndex, checked_views
from hf_dr.store.base_dataset import undecoded_images
from hf_dr.store.named_files import named_files
from hf_dr.store.provenance import Provenance, check_columns
from hf_dr.store.schema import (
    AUG_PREFIX,
    IMAGE_HASH,
    SOURCE_INDEX,
    STORED_PARTNERS,
    TAIL_IDS,
    TAIL_LOGPROBS,
    TEACHER_IDS,
    TEACHER_LOGPROBS,
    VIEWS_HASH,
    is_reserved,
)
from hf_dr.store.shards import MAX_MASS
from hf_dr.teacher.signals import IMAGE_TAIL, tail_size
from hf_dr.teacher.topk import cross_entropy, entropy
from hf_dr.views.augmentation import NO_PARTNER, PARTNER
from hf_dr.views.images import as_tensor, decode_row, pixel_hash
from hf_dr.views.ops.base import Params
from hf_dr.views.rng import Matching, view_rng

logger = logging.getLogger(__name__)

MAX_LOGPROB = 1e-2  # of a stored answer: 0, and rounding
_OWN_KEYS = ("pixel_values", "labels", "reinforced")  # of an item, beside those that are columns of the reinforcement


class ReinforcedDataset(MappedReinforcedData):
    """A map-style dataset that replays one stored view per access.

    `dataset[i]` replays the view of this epoch (see `set_epoch`), `dataset[i, v]` view v, `dataset[i, ranked_view(r, by)]` the
    view that is the r-th easiest of the row. An item is a dict:

    * `pixel_values`: uint8 tensor (3, H, W), what the teacher saw; normalisation is the student's affair.
    * `labels`: int, where the base has labels.
    * `teacher_ids`: int64 tensor (K,), classes, most probable first.
    * `teacher_logprobs`: float32 tensor (K,), natural log-probabilities; the rest of the mass is 1 - sum(exp).
    * `tail_ids`, `tail_logprobs`: int64 and float32 tensors (T,), the same of the mean over the row's views, where the dataset
      has the signal `topk_image_tail`.
    * `reinforced`: bool; False for `dataset[i, fresh_view(epoch)]`, a newly drawn view (without mixing) that no teacher
      saw: its `teacher_*` are zeros and its label is all there is to learn from.
    * The base's columns that `columns` names, as the base has them.

    Rows without reinforcement (their image was undecodable) are left out, or, with `unreinforced`, come last, together with
    the rows of an overlay's base beyond those that were reinforced: they have newly drawn views only.

    Args:
        plus: The "+" dataset's rows.
        provenance: Its `reinforcement.json`.
        base: The base dataset of an overlay; see `hf_dr.replay.loading.load_reinforced`.
        unreinforced: See `hf_dr.replay.loading.load_reinforced`.
        columns: See `hf_dr.replay.loading.load_reinforced`.
        num_views: See `hf_dr.replay.loading.load_reinforced`.
        seed: See `hf_dr.replay.loading.load_reinforced`.
        check_images: See `hf_dr.replay.loading.load_reinforced`.

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
    ) -> None:
        self.provenance = provenance
        self.augmentation = check_columns(plus.features, provenance, 'a "+" dataset')
        self.provenances, self.augmentations = (provenance,), (self.augmentation,)
        self.num_views = checked_views(num_views, provenance.num_views)
        self.seed, self.epoch, self.check_images = seed, 0, check_images
        self.plus = plus
        self._columns = Columns(plus, provenance.num_views)
        source = plus.data.column(SOURCE_INDEX).to_numpy() if plus._indices is None else np.asarray(plus[SOURCE_INDEX])
        self._source = source
        hashes = whole_column(plus, IMAGE_HASH)
        usable = np.flatnonzero(~np.asarray(hashes.is_null()))
        if len(plus) and not len(usable):
            raise FormatError('expected at least one reinforced row in the "+" dataset, found none. Reinforce again.')
        # Where in `plus` a row of the base is; None where both count alike, as in every untouched "+" dataset.
        self._rank = None if np.array_equal(source, np.arange(len(source))) else np.argsort(source, kind="stable")
        # In memory that a loader's workers share: they start anew in each epoch, and would check each image again.
        self._checked = torch.zeros(len(plus), dtype=torch.bool).share_memory_()
        self._labels = provenance.label_column if provenance.label_column in plus.column_names else None
        if self._labels is not None:
            self._check_labels(whole_column(plus, self._labels), usable)
        base = self._check_base(base)
        _check_embedded(plus, None if provenance.overlay else provenance.image_column)
        owner = base.dataset if base is not None else plus  # who has the rows without reinforcement
        self._images = base.images if base is not None else undecoded_images(plus, provenance.image_column)
        # Where in `_images` a row is: those of `plus`, then those without reinforcement.
        places, others = np.arange(len(plus)), np.empty(0, np.int64)
        if base is not None:
            there = source[usable], hashes.fill_null(0).to_numpy()[usable]
            places[usable] = base.places(*there)
        if unreinforced:
            others = base.others(*there) if base is not None else np.setdiff1d(places, usable)
            others = self._check_others(owner, others)
        elif len(usable) < len(plus):
            logger.warning("%d rows have no reinforcement and are left out.", len(plus) - len(usable))
        self._places = np.concatenate([places, others])
        self._usable = np.concatenate([usable, len(plus) + np.arange(len(others))])
        self._source_rows = np.concatenate([source[usable], np.full(len(others), -1)])
        self._other_labels = self._labels_of(owner, others) if len(others) else others
        extra = _chosen_columns(plus, columns), _chosen_columns(owner if unreinforced else plus, columns)
        self._extra = extra if columns else None

    def _check_base(self, base: datasets.Dataset | JoinedBase | None) -> JoinedBase | None:
        if not self.provenance.overlay:
            if base is not None:
                raise ConfigError('`base` is for an overlay, but this "+" dataset has its images. Leave `base` out.')
            return None
        if base is None:
            raise DataError(
                f'this "+" dataset is an overlay without images. Pass `base`: split `{self.provenance.split}` of '
                f"{self.provenance.base.get('id') or 'the base dataset'}, by name or loaded with datasets."
            )
        return base if isinstance(base, JoinedBase) else JoinedBase(base, self.provenance)

    def _check_labels(self, labels: pa.ChunkedArray, rows: np.ndarray) -> None:
        if not pa.types.is_integer(labels.type):
            raise FormatError(
                f"the labels `{self._labels}` must be whole numbers, found {labels.type}. Fetch it again."
            )
        values = labels.cast(pa.int64(), safe=False).fill_null(-1).to_numpy()[rows]
        bad = np.flatnonzero((values < 0) | (values >= self.provenance.num_classes))
        if len(bad):
            raise FormatError(
                f"the labels `{self._labels}` must be from 0 to {self.provenance.num_classes - 1}, but row {rows[bad[0]]} has "
                f"none or another ({len(bad)} such rows). Fetch or make it again."
            )

    def _check_others(self, owner: datasets.Dataset, others: np.ndarray) -> np.ndarray:
        """Returns those rows without reinforcement that can be used."""
        label = self.provenance.label_column
        if self._labels is None or label not in owner.column_names:
            raise ConfigError(
                f"`unreinforced` needs the labels of the base, found {owner.column_names} and the label column {label!r}. "
                "Leave it out."
            )
        names, own = getattr(owner.features[label], "names", None), self.class_names
        if names and own and names != own:
            c = next(c for c, name in enumerate([*names, None]) if [*own, None][c] != name)
            raise DataError(
                f'`base` must have the classes of the "+" dataset in their order, but class {c} is {[*names, None][c]!r} there '
                f'and {[*own, None][c]!r} in the "+" dataset. Give another.'
            )
        usable = readable(self._images, others)
        if len(usable) < len(others):
            logger.warning("%d rows cannot be decoded and are left out.", len(others) - len(usable))
        return usable

    def _labels_of(self, owner: datasets.Dataset, rows: np.ndarray) -> np.ndarray:
        assert self._labels is not None
        labels = whole_column(owner, self._labels).fill_null(-1).to_numpy()[rows]
        bad = np.flatnonzero((labels < 0) | (labels >= self.provenance.num_classes))
        if len(bad):
            raise DataError(
                f"labels must be from 0 to {self.provenance.num_classes - 1}, but row {rows[bad[0]]} of the base has none or "
                f"another ({len(bad)} such rows). Leave `unreinforced` out, or these rows."
            )
        return labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self._usable)

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of all rows, int64 (rows,), or None where the base has none."""
        if self._labels is None:
            return None
        own = np.asarray(whole_column(self.plus, self._labels))[self._usable[: self.num_reinforced]]
        return np.concatenate([own.astype(np.int64), self._other_labels])

    @property
    def has_labels(self) -> bool:
        """Whether items have `labels`."""
        return self._labels is not None

    @property
    def num_reinforced(self) -> int:
        """How many rows have stored views: the first ones."""
        return len(self._usable) - len(self._other_labels)

    @property
    def all_reinforced(self) -> bool:
        """Whether every row has stored views."""
        return not len(self._other_labels)

    @property
    def source_rows(self) -> np.ndarray:
        """The row of the base for each row of this dataset, int64 (rows,); -1 where it has no stored views."""
        return self._source_rows

    @property
    def image_hashes(self) -> np.ndarray:
        """The pixel hash of each reinforced row's image, uint64 (rows,)."""
        hashes = whole_column(self.plus, IMAGE_HASH).fill_null(0).to_numpy()
        return hashes[self._usable[: self.num_reinforced]]

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, where the base's labels have names."""
        return getattr(self.plus.features[self._labels], "names", None) if self._labels else None

    @property
    def undecoded_images(self) -> datasets.Dataset:
        """The image of each row of `plus`, as bytes and paths; of a row without reinforcement it may be another."""
        places = np.minimum(self._places[: len(self.plus)], len(self._images) - 1)
        return self._images.select(places)

    def set_epoch(self, epoch: int) -> None:
        """Chooses which view `dataset[i]` replays: over V epochs, each of the V views once, in an order keyed by `seed`."""
        self.epoch = epoch

    def pairs(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows that a view mixes with each other, int64 (pairs, 2), and all other rows, int64 (rows,)."""
        rows, provenance = np.arange(len(self)), self.provenance
        if not self.paired:
            return np.empty((0, 2), np.int64), rows
        size = provenance.num_rows if provenance.mixing_scope == "dataset" else provenance.shard_size
        row_of = np.full(provenance.num_rows, -1)
        source = self.source_rows[: self.num_reinforced]
        row_of[source] = rows[: self.num_reinforced]
        couples = [np.empty((0, 2), np.int64)]
        for start in np.unique(source // size).tolist():
            stop = min((start + 1) * size, provenance.num_rows)
            matched = row_of[Matching(start * size, stop, provenance.seed, view).pairs()]
            couples.append(matched[: len(matched) // 2 * 2].reshape(-1, 2))
        paired = np.concatenate(couples)
        paired = paired[(paired >= 0).all(axis=1)]
        return paired, np.setdiff1d(rows, paired)

    def __getitem__(self, index: ViewIndex) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[ViewIndex]) -> list[dict[str, Any]]:
        """Replays several views; a pair that was mixed is decoded and augmented once if both are asked for."""
        shared: dict[tuple[int, int], tuple[PIL.Image.Image, Params]] = {}
        return [self._item(*self._locate(index), shared) for index in indices]

    def image(self, index: int, view: int) -> PIL.Image.Image:
        """Returns one replayed view as an RGB image.

        Raises:
            ReplayError: The image is not the one that was reinforced, or the stored parameters do not fit it.
        """
        return self._replay(*self._locate((index, view)), {})

    def example_image(self, index: int) -> PIL.Image.Image:
        """Returns the decoded RGB image of a row, before augmentation."""
        return self._decode(self._row(index))

    def params(self, index: int, view: int) -> Params:
        """Returns the stored parameters of one view."""
        return self._params(*self._locate((index, view)))

    def views_hash(self, index: int) -> int | None:
        """Returns the stored hash over all V views of a row (`hf_dr.store.schema.combine_hashes`); None where it is unknown."""
        return int(self._columns.cell(VIEWS_HASH, self._locate((index, 0))[0])) or None  # null is read as 0

    def difficulties(self, index: int, by: str, top_k: int | None = None) -> np.ndarray:
        """Returns how difficult each view of a row is, in nats, float32 (V,): `hf_dr.teacher.topk.entropy` or `cross_entropy`.

        Args:
            index: The row; where it has no stored views the result is empty.
            by: `entropy` or `cross_entropy`; the latter needs labels.
            top_k: Look at so many of the K classes only.

        Raises:
            FormatError: A stored answer is damaged.
        """
        row, kept = self._row(index), (slice(self.num_views), slice(top_k))
        if row >= len(self.plus):
            return np.empty(0, np.float32)
        logprobs = self._columns.cell(TEACHER_LOGPROBS, row)[kept]
        bad = np.flatnonzero(~((logprobs <= MAX_LOGPROB) & (logprobs > -np.inf)).all(axis=1))
        if len(bad):
            self._answer(row, int(bad[0]))  # tells what is wrong with it
        if by == "entropy":
            return entropy(logprobs, self.num_classes)
        return cross_entropy(self._columns.cell(TEACHER_IDS, row)[kept], logprobs, self.num_classes, self._label(row))

    def teacher_answer(self, index: int, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the stored ids (K,) and log-probabilities (K,) float16 of one view.

        Raises:
            FormatError: They are damaged: not finite, rising, above 0, or of a class that does not exist.
        """
        return self._answer(*self._locate((index, view)))

    def image_tail(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the stored ids (T,) and log-probabilities (T,) float16 of the mean answer to a row's views.

        Raises:
            FormatError: They are damaged, as in `teacher_answer`.
        """
        assert self.signal == IMAGE_TAIL
        return self._tail(self._locate((index, 0))[0])

    def _locate(self, index: ViewIndex) -> tuple[int, int]:
        """Row of `plus` and view of an index."""
        number, view = index if isinstance(index, tuple) else (index, None)
        row = self._row(number)
        view = int(self.scheduled_views(int(number), self.epoch)) if view is None else self.resolved(int(number), view)
        if view >= (stored := self.num_views if row < len(self.plus) else 0):
            raise IndexError(f"view {view} of {stored}")
        return row, int(view)

    def _row(self, index: int) -> int:
        """Row of `plus`, or, from its length on, of those without reinforcement."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a dataset of {len(self)} rows")
        return int(self._usable[index])

    def _item(self, row: int, view: int, shared: dict[tuple[int, int], Any]) -> dict[str, Any]:
        if view >= 0:
            answers: dict[str, Any] = {"teacher": self._answer(row, view)}
            image = self._replay(row, view, shared)
        else:
            answers = {"teacher": np.zeros((2, self.provenance.top_k))}
            image = self._fresh(row, view)
        if self.signal == IMAGE_TAIL:
            answers["tail"] = self._tail(row) if view >= 0 else np.zeros((2, tail_size(self.num_classes)))
        item: dict[str, Any] = {"pixel_values": as_tensor(image)}
        for name, (ids, logprobs) in answers.items():
            item[f"{name}_ids"] = torch.from_numpy(ids.astype(np.int64))
            item[f"{name}_logprobs"] = torch.from_numpy(logprobs.astype(np.float32))
        item["reinforced"] = view >= 0
        if self._labels is not None:
            item["labels"] = self._label(row)
        if self._extra is not None:
            own, others = self._extra
            item.update(own[row] if row < len(self.plus) else others[int(self._places[row])])
        return item

    def _label(self, row: int) -> int:
        assert self._labels is not None
        other = row - len(self.plus)
        return int(self._columns.cell(self._labels, row) if other < 0 else self._other_labels[other])

    def _fresh(self, row: int, view: int) -> PIL.Image.Image:
        """A newly drawn view. Stored views are keyed by numbers from 0, so its key is one that no run has used."""
        image = self._decode(row)
        key = self._source[row] if row < len(self.plus) else self._places[row]
        rng = view_rng(self.seed, int(key), (1 << 64) + view)
        params = self.augmentation.sample(rng, (image.height, image.width))
        return self.augmentation.apply(image, params)

    def _answer(self, row: int, view: int) -> tuple[np.ndarray, np.ndarray]:
        ids, logprobs = self._columns.view(TEACHER_IDS, row, view), self._columns.view(TEACHER_LOGPROBS, row, view)
        self._check_answer(ids, logprobs, f"row {row}, view {view}")
        return ids, logprobs

    def _tail(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        ids, logprobs = self._columns.cell(TAIL_IDS, row), self._columns.cell(TAIL_LOGPROBS, row)
        self._check_answer(ids, logprobs, f"row {row}, its tail")
        return ids, logprobs

    def _check_answer(self, ids: np.ndarray, logprobs: np.ndarray, where: str) -> None:
        # One comparison catches NaN as well: every comparison with it is false.
        if not (logprobs[0] <= MAX_LOGPROB and logprobs[-1] > -np.inf and (logprobs[1:] <= logprobs[:-1]).all()):
            raise FormatError(
                f"the log-probabilities of {where} must be finite and fall from at most 0, found {logprobs}. "
                "The file is damaged: fetch it again, or run `hf-dr verify`."
            )
        if np.exp(logprobs, dtype=np.float32).sum() > MAX_MASS:
            raise FormatError(
                f"the probabilities of {where} must have a sum of at most 1, found logarithms {logprobs}. The "
                "file is damaged: fetch it again, or run `hf-dr verify`."
            )
        if ids.max() >= self.provenance.num_classes or len(set(ids.tolist())) < len(ids):
            raise FormatError(
                f"{where} must name classes below {self.provenance.num_classes}, found {ids.max()} in {ids}, "
                "each once. The file is damaged: fetch it again, or run `hf-dr verify`."
            )

    def _params(self, row: int, view: int) -> Params:
        return {name: self._param(name, row, view) for name in self.augmentation.params}

    def _param(self, name: str, row: int, view: int) -> Any:
        value = self._columns.view(AUG_PREFIX + name, row, view)
        return tuple(value.tolist()) if isinstance(value, np.ndarray) else value.item()

    def _replay(self, row: int, view: int, shared: dict[tuple[int, int], Any]) -> PIL.Image.Image:
        own, params = self._augmented(row, view, shared)
        if not self.augmentation.mixes:
            return own
        other = None if params[PARTNER] == NO_PARTNER else self._partner(row, view, params[PARTNER], shared)
        try:
            return self.augmentation.mix(own, params, other)
        except ReplayError as error:
            raise ReplayError(f"row {row}, view {view}: {error}") from None

    def _partner(self, row: int, view: int, source: int, shared: dict[tuple[int, int], Any]) -> PIL.Image.Image:
        partner = self._row_of(source)
        if self.provenance.mixing_scope == STORED_PARTNERS:
            stored = {name: self._param(f"{PARTNER}_{name}", row, view) for name in self.augmentation.partner_params}
            return self._applied(partner, stored, f"the partner of row {row}, view {view}")
        if partner == row:
            raise ReplayError(
                f"row {row}, view {view} must be mixed with another row, found itself as its partner. The file is damaged: "
                "fetch it again, or run `hf-dr verify`."
            )
        return self._augmented(partner, view, shared)[0]

    def _augmented(
        self, row: int, view: int, shared: dict[tuple[int, int], tuple[PIL.Image.Image, Params]]
    ) -> tuple[PIL.Image.Image, Params]:
        if (row, view) not in shared:
            params = self._params(row, view)
            shared[row, view] = self._applied(row, params, f"row {row}, view {view}"), params
        return shared[row, view]

    def _applied(self, row: int, params: Params, where: str) -> PIL.Image.Image:
        try:
            return self.augmentation.apply(self._decode(row), params)
        except ReplayError as error:
            raise ReplayError(f"{where}: {error}") from None

    def _row_of(self, source: int) -> int:
        """Row of `plus` that holds a row of the base."""
        row = source
        if self._rank is not None:
            at = int(np.searchsorted(self._source, source, sorter=self._rank))
            row = int(self._rank[at]) if at < len(self._rank) else -1
        if not 0 <= row < len(self._source) or self._source[row] != source:
            raise ReplayError(
                f"expected the partner, row {source} of the base, in the dataset; it was filtered out. Keep all rows, or "
                "reinforce without mixing."
            )
        return row

    def _decode(self, row: int) -> PIL.Image.Image:
        place = int(self._places[row])
        (value,) = self._images[place].values()
        image = decode_row(value, self._name(row), "Fetch the dataset again.", ReplayError)
        if self.check_images and row < len(self.plus) and not self._checked[row]:
            expected, found = int(self._columns.cell(IMAGE_HASH, row)), pixel_hash(image)
            if expected != found:
                raise ReplayError(
                    f"{self._name(row)} must hold the image that was reinforced (pixel hash {expected:016x}), found another "
                    f"({found:016x}). Load the base dataset at revision {self.provenance.base.get('revision')}, unchanged."
                )
            self._checked[row] = True
        return image

    def _name(self, row: int) -> str:
        """A row in messages: by its number in the base that was reinforced, and in the one that is here."""
        place = int(self._places[row])
        if row >= len(self.plus):
            return f"row {place} of the base"
        if not self.provenance.overlay or self._source[row] == place:
            return f"row {place}"
        return f"row {self._source[row]} (row {place} of `base`)"


def _chosen_columns(rows: datasets.Dataset, columns: Sequence[str]) -> datasets.Dataset:
    own = [name for name in rows.column_names if not is_reserved(name) and name not in _OWN_KEYS]
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

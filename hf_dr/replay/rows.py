"""Which row of the "+" dataset, of its base and of the images each row of a `ReinforcedDataset` is."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import datasets
import numpy as np

from hf_dr.errors import ConfigError, DataError, FormatError, ReplayError
from hf_dr.replay.join import JoinedBase, readable
from hf_dr.store.base_dataset import class_names_of, whole_column
from hf_dr.store.labels import check_class_names, class_numbers
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import IMAGE_HASH, SOURCE_INDEX
from hf_dr.views.rng import Matching

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """The bookkeeping of rows.

    A dataset has rows that are reinforced and then, where they are asked for, others. Each has a *slot*: its row of `plus`, or
    len(plus) + n for the n-th of the others. Rows of `plus` without reinforcement have a slot that no row uses.

    Attributes:
        usable: The slot of each row of the dataset, int64 (rows,).
        source_rows: The row of the base for each row of the dataset, int64 (rows,); -1 for the others.
        source: The row of the base for each row of `plus`, int64 (plus,).
        by_source: The rows of `plus` by rising row of the base, int64 (plus,); None where both count alike, as in every
            untouched "+" dataset.
        places: The place of each slot's image among the images, int64 (plus + others,).
        labels: The labels of the others, int64 (others,).
        overlay: Whether the images are those of a base.
    """

    usable: np.ndarray
    source_rows: np.ndarray
    source: np.ndarray
    by_source: np.ndarray | None
    places: np.ndarray
    labels: np.ndarray
    overlay: bool

    def __len__(self) -> int:
        return len(self.usable)

    @property
    def num_reinforced(self) -> int:
        """How many rows have stored views: the first ones."""
        return int(np.count_nonzero(self.source_rows >= 0))

    @property
    def reinforced(self) -> np.ndarray:
        """The rows of `plus` that are reinforced, int64 (rows,)."""
        return self.usable[: self.num_reinforced]

    @property
    def labels_of_others(self) -> np.ndarray:
        """The labels of the rows of the dataset that are not reinforced, int64."""
        return self.labels[self.usable[self.num_reinforced :] - len(self.source)]

    def select(self, rows: np.ndarray) -> Rows:
        """Returns some of the rows, int64, each once; those that are not reinforced come last, as always."""
        others = self.source_rows[rows] < 0
        rows = np.concatenate([rows[~others], rows[others]])
        return replace(self, usable=self.usable[rows], source_rows=self.source_rows[rows])

    def has_stored_views(self, slot: int) -> bool:
        """Whether a slot is a row of `plus`."""
        return slot < len(self.source)

    def base_row(self, slot: int) -> int:
        """Returns the row of the base: of the one that was reinforced, or, of an other, of the one that is here."""
        return int(self.source[slot] if self.has_stored_views(slot) else self.places[slot])

    def other_label(self, slot: int) -> int:
        """Returns the label of one of the others."""
        return int(self.labels[slot - len(self.source)])

    def slot_of(self, source: int) -> int:
        """Returns the slot that holds a row of the base that was reinforced; a ReplayError if it is not among the rows."""
        slot = source
        if self.by_source is not None:
            at = int(np.searchsorted(self.source, source, sorter=self.by_source))
            slot = int(self.by_source[at]) if at < len(self.by_source) else -1
        if not 0 <= slot < len(self.source) or self.source[slot] != source:
            raise ReplayError(
                f"expected the partner, row {source} of the base, in the dataset; it was filtered out. Keep all rows, or "
                "reinforce without mixing."
            )
        return slot

    def name(self, slot: int) -> str:
        """Names a row in messages: by its number in the base that was reinforced, and in the one that is here."""
        place = int(self.places[slot])
        if not self.has_stored_views(slot):
            return f"row {place} of the base"
        source = int(self.source[slot])
        return f"row {source} (row {place} of `base`)" if self.overlay and source != place else f"row {source}"

    def matched(self, provenance: Provenance, view: int) -> np.ndarray:
        """Returns the rows that are each other's partner in a view, int64 (pairs, 2)."""
        size = provenance.num_rows if provenance.mixing_scope == "dataset" else provenance.shard_size
        source = self.source[self.reinforced]
        row_of = np.full(provenance.num_rows, -1)
        row_of[source] = np.arange(len(source))
        couples = [np.empty((0, 2), np.int64)]
        # Each block of examples has its own matching, in which an odd one out comes last.
        for start in np.unique(source // size).tolist():
            stop = min((start + 1) * size, provenance.num_rows)
            matched = row_of[Matching(start * size, stop, provenance.seed, view).pairs()]
            couples.append(matched[: len(matched) // 2 * 2].reshape(-1, 2))
        paired = np.concatenate(couples)
        return paired[(paired >= 0).all(axis=1)]  # both are rows of this dataset


def find_rows(
    plus: datasets.Dataset,
    provenance: Provenance,
    images: datasets.Dataset,
    base: JoinedBase | None,
    *,
    unreinforced: bool,
) -> Rows:
    """Finds the rows of a "+" dataset, their images, and, if asked for, the rows without reinforcement.

    `images` are undecoded, those of an overlay's `base` or of `plus`. Of rows without reinforcement they are decoded to know
    which can be used.

    Raises:
        ConfigError: Rows without reinforcement are wanted, but have no labels.
        DataError: The base does not hold the images, or has other classes or labels.
        FormatError: No row is reinforced.
    """
    # A dataset that was not selected from is read from its memory map.
    source = plus.data.column(SOURCE_INDEX).to_numpy() if plus._indices is None else np.asarray(plus[SOURCE_INDEX])
    hashes = whole_column(plus, IMAGE_HASH)
    reinforced = np.flatnonzero(~np.asarray(hashes.is_null()))
    if len(plus) and not len(reinforced):
        raise FormatError('expected at least one reinforced row in the "+" dataset, found none. Reinforce again.')
    wanted = (source[reinforced], hashes.fill_null(0).to_numpy()[reinforced])
    places = np.arange(len(plus))
    if base is not None:
        places[reinforced] = base.places(*wanted)
    others = labels = np.empty(0, np.int64)
    if unreinforced:
        others = base.others(*wanted) if base is not None else np.setdiff1d(places, reinforced)
        others, labels = _usable_others(plus, provenance, images, base.dataset if base is not None else plus, others)
    elif len(reinforced) < len(plus):
        logger.warning("%d rows have no reinforcement and are left out.", len(plus) - len(reinforced))
    return Rows(
        usable=np.concatenate([reinforced, len(plus) + np.arange(len(others))]),
        source_rows=np.concatenate([source[reinforced], np.full(len(others), -1)]),
        source=source,
        by_source=None if np.array_equal(source, np.arange(len(source))) else np.argsort(source, kind="stable"),
        places=np.concatenate([places, others]),
        labels=labels,
        overlay=base is not None,
    )


def check_labels(plus: datasets.Dataset, provenance: Provenance) -> None:
    """Checks that each reinforced row of a "+" dataset with labels has one of the classes; a FormatError if not."""
    name = provenance.label_column
    assert name is not None
    used = whole_column(plus, IMAGE_HASH).is_valid()
    class_numbers(
        whole_column(plus, name).filter(used),
        provenance.num_classes,
        f"the labels `{name}`",
        "Fetch or make it again.",
        error=FormatError,
        rows=whole_column(plus, SOURCE_INDEX).filter(used).to_numpy(),  # a stream has one shard of the rows
    )


def _usable_others(
    plus: datasets.Dataset,
    provenance: Provenance,
    images: datasets.Dataset,
    owner: datasets.Dataset,
    others: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns those rows of their owner, the base or `plus`, that can be decoded, and their labels, both int64 (others,)."""
    label_column = provenance.label_column
    if label_column is None or any(label_column not in rows.column_names for rows in (plus, owner)):
        raise ConfigError(
            f"`unreinforced` needs the labels of the base, found {owner.column_names} and the label column {label_column!r}. "
            "Leave it out."
        )
    there, own = (class_names_of(rows, label_column) for rows in (owner, plus))
    check_class_names(there, own, "base", DataError)
    usable = readable(images, others)
    if len(usable) < len(others):
        logger.warning("%d rows cannot be decoded and are left out.", len(others) - len(usable))
    labels = whole_column(owner, label_column).take(usable)
    advice = "Leave `unreinforced` out, or these rows."
    return usable, class_numbers(labels, provenance.num_classes, "labels of the base", advice, rows=usable)

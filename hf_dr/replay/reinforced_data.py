"""What training asks of reinforced data, however it is read: mapped, streamed, or several "+" datasets at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch

from hf_dr.errors import ConfigError
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import STORED_PARTNERS
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.rng import DOMAIN_SCHEDULE, KeyedPermutation, keyed_words

ViewIndex = int | tuple[int, int]
"""A row, whose view of this epoch is meant, or (row, view). A view may be `fresh_view(epoch)` or `ranked_view(rank, by)`."""

DIFFICULTIES = ("entropy", "cross_entropy")
"""By what views are ranked: the entropy of the stored answer, or its cross-entropy to the label."""
# Numbers of views from here on are ranks. No dataset has as many views.
_RANKS = 1 << 32


def fresh_view(epoch: int) -> int:
    """Returns the view number that asks for a newly drawn view without teacher, another one in each epoch."""
    return -1 - epoch


def ranked_view(rank: Any, by: str) -> Any:
    """Returns the view number that asks for the view of this rank among all of its row, the easiest being 0.

    So who orders the rows need not know the difficulty of any view: it is looked up where the row is read.

    Args:
        rank: int, or an array of them.
        by: One of `DIFFICULTIES`.
    """
    return rank + _RANKS * (1 + DIFFICULTIES.index(by))


def checked_views(num_views: int | None, stored: int) -> int:
    """Returns how many of the stored views are used, all where `num_views` is None.

    Raises:
        ConfigError: There are not that many.
    """
    if num_views is not None and not 1 <= num_views <= stored:
        raise ConfigError(f"`num_views` must be between 1 and the {stored} stored views, got {num_views}.")
    return num_views or stored


class ReinforcedData(ABC):
    """Reinforced data that a student learns from.

    Attributes:
        provenances: The `reinforcement.json` of each "+" dataset in it.
        augmentations: Of each of them.
        num_views: The views of each row.
        seed: Of the order in which views are replayed.
    """

    provenances: tuple[Provenance, ...]
    augmentations: tuple[Augmentation, ...]
    num_views: int
    seed: int

    @abstractmethod
    def __len__(self) -> int:
        """Rows of an epoch."""

    @abstractmethod
    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, and so the view of each row."""

    @property
    @abstractmethod
    def has_labels(self) -> bool:
        """Whether items have `labels`."""

    @property
    @abstractmethod
    def class_names(self) -> list[str] | None:
        """The names of the classes, where the base's labels have names."""

    @property
    def mixes(self) -> bool:
        """Whether a view can need the image of another row."""
        return any(augmentation.mixes for augmentation in self.augmentations)

    @property
    def paired(self) -> bool:
        """Whether rows are matched in pairs by view, both mixing the same two images, so that a batch should hold both."""
        return self.mixes and any(p.mixing_scope != STORED_PARTNERS for p in self.provenances)

    @property
    def all_reinforced(self) -> bool:
        """Whether every row has stored views; else items without come along, newly drawn, in every epoch."""
        return True

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the views."""
        size = self.augmentations[0].size
        assert size is not None, "an augmentation fixes the size"
        return size

    @property
    def num_classes(self) -> int:
        """C, the classes over which the teachers answer."""
        return self.provenances[0].num_classes

    @property
    def signal(self) -> str:
        """What is stored of each answer (`hf_dr.teacher.signals`)."""
        return self.provenances[0].signal

    @property
    def fingerprint(self) -> str:
        """The fingerprints of all "+" datasets in it."""
        return " ".join(provenance.fingerprint for provenance in self.provenances)


class MappedReinforcedData(ReinforcedData, torch.utils.data.Dataset):
    """Reinforced data with rows to choose from: what `ReinforcedSampler` draws from."""

    @property
    @abstractmethod
    def source_rows(self) -> np.ndarray:
        """The row of the base for each row of this dataset, int64 (rows,); -1 where it has no stored views."""

    @abstractmethod
    def pairs(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows that a view mixes with each other, int64 (pairs, 2), and all other rows, int64 (rows,)."""

    @abstractmethod
    def difficulties(self, index: int, by: str) -> np.ndarray:
        """Returns how difficult each view of a row is, in nats, float32 (V,); see `hf_dr.teacher.topk.entropy`."""

    def resolved(self, index: int, view: int) -> int:
        """Returns the number of the view that `ranked_view` asks for; of equally difficult ones the lower number comes first.

        Raises:
            IndexError: The row has no view of this rank.
        """
        if view < _RANKS:
            return view
        kind, rank = divmod(view, _RANKS)
        order = np.argsort(self.difficulties(index, DIFFICULTIES[kind - 1]), kind="stable")
        if rank >= len(order):
            raise IndexError(f"rank {rank} of {len(order)} views")
        return int(order[rank])

    def scheduled_ranks(self, indices: np.ndarray | int, epoch: int, num_epochs: int) -> np.ndarray:
        """Returns the rank of the view that each row shows in an epoch when views come by their difficulty, int64.

        In epoch e of E in all it is one of the ranks from floor(e V / E) up to, but not including, floor((e + 1) V / E): with
        E = V each rank once, with E = c V each c times in a row. With E < V the window holds several, of which each row draws
        one, a function of (seed, epoch, row of the base) alone; with E > V it may hold none, and its lower end is shown.
        """
        first = epoch * self.num_views // num_epochs
        width = max(1, (epoch + 1) * self.num_views // num_epochs - first)
        rows = self.source_rows[np.asarray(indices)]
        return first + keyed_words(rows, int(keyed_words(np.asarray(epoch), self.seed))) % width

    def scheduled_views(self, indices: np.ndarray | int, epoch: int) -> np.ndarray:
        """Returns the view of each row in an epoch, int64: a function of (seed, epoch, row of the base) alone.

        Over V epochs each row shows each of its V views once: one keyed permutation of the views serves all rows, each
        row entering it at a place of its own. Where rows are `paired` all enter at the same place, because pairs are matched
        by view. Where there are no stored views it is `fresh_view(epoch)`.
        """
        cycle, step = divmod(epoch, self.num_views)
        order = KeyedPermutation(self.num_views, self.seed, domain=DOMAIN_SCHEDULE, minor=cycle)
        rows = self.source_rows[np.asarray(indices)]
        entry = np.zeros_like(rows) if self.paired else keyed_words(rows, self.seed) % self.num_views
        return np.where(rows < 0, fresh_view(epoch), order((entry + step) % self.num_views))

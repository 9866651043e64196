"""What training asks of reinforced data, however it is read: mapped, streamed, or several "+" datasets at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch

from hf_dr.errors import ConfigError
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import STORED_PARTNERS
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.base import Params, Size
from hf_dr.views.rng import DOMAIN_SCHEDULE, KeyedPermutation, keyed_words, view_rng

DIFFICULTIES = ("entropy", "cross_entropy")
"""By what views are ranked: the entropy of the stored answer, or its cross-entropy to the label."""
_NEW = "new"


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
`fresh_view(epoch)`; such a number is understood wherever a view is asked for."""

ViewIndex = int | tuple[int, View]
"""A row, whose view of this epoch is meant, or (row, view)."""


def fresh_view(epoch: int) -> ViewRequest:
    """Returns the request for a newly drawn view without a teacher's answer, another one in each epoch."""
    return ViewRequest(_NEW, epoch)


def ranked_view(rank: int, by: str) -> ViewRequest:
    """Returns the request for the view of this rank among all views of its row, the easiest being 0.

    Whoever orders the rows need not know the difficulty of any view: it is looked up where the row is read.

    Args:
        rank: From 0 to V - 1.
        by: One of `DIFFICULTIES`.

    Raises:
        ConfigError: Views are not ranked by that.
    """
    if by not in DIFFICULTIES:
        raise ConfigError(f"views are ranked by one of {', '.join(DIFFICULTIES)}, got {by!r}. Name one of them.")
    return ViewRequest(by, rank)


def draw_fresh_view(
    image: PIL.Image.Image, augmentation: Augmentation, *, seed: int, row: int, epoch: int
) -> PIL.Image.Image:
    """Draws the view that `fresh_view(epoch)` asks for: without mixing, a function of (seed, row, epoch) alone.

    Args:
        image: The decoded image.
        augmentation: Draws and performs the ops.
        seed: Of the dataset that is read.
        row: Row of the base.
        epoch: Number of the epoch.
    """
    params = draw_fresh_params(augmentation, (image.height, image.width), seed=seed, row=row, epoch=epoch)
    return augmentation.apply(image, params)


def draw_fresh_params(augmentation: Augmentation, size: Size, *, seed: int, row: int, epoch: int) -> Params:
    """Draws the parameters of what `draw_fresh_view` shows of an image of this (height, width)."""
    # Stored views have keys from 0 upwards. These count down from the largest key: no run has used any of them.
    return augmentation.sample(view_rng(seed, row, (1 << 64) - 1 - epoch), size)


def checked_views(num_views: int | None, stored: int) -> int:
    """Returns how many of the stored views are used, all where `num_views` is None.

    Raises:
        ConfigError: There are not that many.
    """
    if num_views is not None and not 1 <= num_views <= stored:
        raise ConfigError(f"`num_views` must be between 1 and the {stored} stored views, got {num_views}.")
    return num_views or stored


@dataclass(frozen=True)
class Origin:
    """Where training data comes from, as far as training and its model card need to know.

    Attributes:
        fingerprint: Of all that determines the data; those of several "+" datasets one after the other.
        base: What names the base dataset: `id`, `config`, `revision`, where they are known.
        num_examples: Rows of the base.
        image_column: Column of the base that holds the images.
        label_column: Column of the base that holds the labels, or None.
        num_classes: C, the classes of labels and answers.
        signal: What is stored of each answer (`hf_dr.teacher.signals`).
        configs: The configuration of each "+" dataset; none for a base dataset.
        num_views: V of each "+" dataset.
        teacher_members: The members of all teachers, as their provenance describes them.
        matches_partners: Whether partners of mixed views are matched in pairs.
    """

    fingerprint: str
    base: dict[str, Any]
    num_examples: int
    image_column: str
    label_column: str | None
    num_classes: int
    signal: str
    configs: tuple[str, ...] = ()
    num_views: tuple[int, ...] = ()
    teacher_members: tuple[dict[str, Any], ...] = ()
    matches_partners: bool = False

    @classmethod
    def of(cls, provenances: Sequence[Provenance]) -> Origin:
        """Returns the origin of one or several "+" datasets over one base."""
        first = provenances[0]
        return cls(
            fingerprint=" ".join(provenance.fingerprint for provenance in provenances),
            base=first.base,
            num_examples=first.num_rows,
            image_column=first.image_column,
            label_column=first.label_column,
            num_classes=first.num_classes,
            signal=first.signal,
            configs=tuple(provenance.config_name for provenance in provenances),
            num_views=tuple(provenance.num_views for provenance in provenances),
            teacher_members=tuple(member for provenance in provenances for member in provenance.teacher["members"]),
            matches_partners=any(provenance.mixing_scope != STORED_PARTNERS for provenance in provenances),
        )


class ReinforcedData(ABC):
    """Data that a student learns from.

    Attributes:
        origin: Where it comes from.
        augmentations: Of each "+" dataset in it.
        num_views: The views of each row.
        seed: Of the order in which views are replayed.
    """

    origin: Origin
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
        return self.mixes and self.origin.matches_partners

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
        return self.origin.num_classes

    @property
    def signal(self) -> str:
        """What is stored of each answer (`hf_dr.teacher.signals`)."""
        return self.origin.signal

    @property
    def fingerprint(self) -> str:
        """The fingerprints of all "+" datasets in it."""
        return self.origin.fingerprint


class MappedReinforcedData(ReinforcedData, torch.utils.data.Dataset):
    """Reinforced data with rows to choose from: what `ReinforcedSampler` draws from.

    Attributes:
        epoch: Decides the view of an index that names none.
    """

    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses which view `dataset[i]` replays: over V epochs, each of the V views once, in an order keyed by `seed`."""
        self.epoch = epoch

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

    def resolved(self, index: int, view: View) -> View:
        """Returns the number of the stored view that is asked for, or the request itself if it is for a new view.

        Of equally difficult views the one with the lower number comes first.

        Raises:
            IndexError: The row has no view of this rank.
        """
        if not isinstance(view, ViewRequest):
            number = int(view)
            return number if number >= 0 else fresh_view(-1 - number)
        if view.kind == _NEW:
            return view
        order = np.argsort(self.difficulties(index, view.kind), kind="stable")
        if not 0 <= view.number < len(order):
            raise IndexError(f"rank {view.number} of {len(order)} views")
        return int(order[view.number])

    def _locate(self, index: ViewIndex) -> tuple[int, View]:
        """Returns the row, counted from 0, and the view, as `resolved` gives it, that an index means.

        Raises:
            IndexError: There is no such row, or it has no such view.
        """
        number, view = index if isinstance(index, tuple) else (index, None)
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of a dataset of {len(self)} rows")
        row = int(number) % len(self)
        found = self.resolved(row, int(self.scheduled_views(row, self.epoch)) if view is None else view)
        stored = self.num_views if self.source_rows[row] >= 0 else 0
        if isinstance(found, int) and found >= stored:
            raise IndexError(f"view {found} of {stored}")
        return row, found

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
        by view. Where there are no stored views it is -1 - epoch, which stands for `fresh_view(epoch)`.
        """
        cycle, step = divmod(epoch, self.num_views)
        order = KeyedPermutation(self.num_views, self.seed, domain=DOMAIN_SCHEDULE, minor=cycle)
        rows = self.source_rows[np.asarray(indices)]
        entry = np.zeros_like(rows) if self.paired else keyed_words(rows, self.seed) % self.num_views
        return np.where(rows < 0, -1 - epoch, order((entry + step) % self.num_views))

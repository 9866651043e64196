"""What training asks of reinforced data, however it is read: mapped, streamed, or several "+" datasets at once."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Self, overload

import datasets
import numpy as np
import torch

from hf_dr.errors import ConfigError, did_you_mean
from hf_dr.replay.epoch import SharedEpoch
from hf_dr.replay.view_requests import NEW, View, ViewIndex, ViewRequest, fresh_view, row_and_view
from hf_dr.settings import as_plain, check_kind
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import STORED_PARTNERS
from hf_dr.teacher.signals import IMAGE_TAIL, tail_size
from hf_dr.text import inline
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.rng import DOMAIN_SCHEDULE, DOMAIN_SPLIT, KeyedPermutation, keyed_rng, keyed_words


def checked_views(num_views: int | None, stored: int) -> int:
    """Returns how many of the stored views are used, all where it is None; a ConfigError if there are not that many."""
    if num_views is None:
        return stored
    is_count = isinstance(num_views, (int, np.integer)) and not isinstance(num_views, bool)
    if not is_count or not 1 <= num_views <= stored:
        raise ConfigError(
            f"`num_views` must be between 1 and the {stored} stored views, got {num_views!r}. Leave it out to use all."
        )
    return int(num_views)


def checked_rows(rows: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """Returns the rows of a selection, int64 (rows,), counted from 0; see `MappedReinforcedData.select`."""
    wanted = np.asarray(list(rows) if isinstance(rows, Iterator) else rows)
    if wanted.dtype == bool:
        raise ConfigError("`rows` must be numbers of rows, got True and False. Name the rows: `np.flatnonzero(rows)`.")
    if wanted.ndim != 1 or not len(wanted) or not np.issubdtype(wanted.dtype, np.integer):
        raise ConfigError(f"`rows` must be whole numbers, at least one, got {rows!r:.80}. Name the rows to keep.")
    outside = wanted[(wanted < -count) | (wanted >= count)]
    if len(outside):
        raise IndexError(f"row {outside[0]} of a dataset of {count} rows")
    wanted = wanted.astype(np.int64) % count
    numbers, times = np.unique(wanted, return_counts=True)
    if len(numbers) < len(wanted):
        raise ConfigError(f"each row must be selected once, got row {numbers[times > 1][0]} twice. Leave one out.")
    return wanted


@dataclass(frozen=True)
class Origin:
    """Where training data comes from, as far as training and its model card need to know.

    Attributes:
        fingerprint: Hash of all that determines the data; of several "+" datasets, their fingerprints one after the other.
        base: What names the base dataset: `id`, `config`, `revision`, where they are known.
        split: Its rows as `datasets` names them: a split, or several.
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
    split: str
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
            split=first.base_split,
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


_BEFORE = "change the base before it is reinforced"
_ROWS = "select rows of a loaded dataset by their numbers, e.g. `train.select(range(100))`"
# Methods of a datasets.Dataset that people look for here, and what does their work.
_INSTEAD = {
    **dict.fromkeys(
        ("map", "rename_column", "remove_columns", "cast_column", "class_encode_column", "add_column"), _BEFORE
    ),
    **dict.fromkeys(
        ("with_transform", "set_transform"),
        "views are transformed already; what is done to batches belongs in a collator",
    ),
    **dict.fromkeys(
        ("with_format", "set_format"), "`pixel_values` are tensors; the columns are in `train.plus`, a datasets.Dataset"
    ),
    **dict.fromkeys(("to_pandas", "unique", "sort"), "ask `train.plus`, a datasets.Dataset"),
    **dict.fromkeys(("shard", "take", "skip"), _ROWS),
    "filter": "select rows of a loaded dataset by their numbers, e.g. `train.select(np.flatnonzero(train.labels == 3))`",
    "save_to_disk": "its folder is the dataset; copy that",
    "push_to_hub": "`hf_dr.push_to_hub(folder, repo_id)` pushes its folder",
    "to_iterable_dataset": "open it by `load_reinforced(folder, streaming=True)`",
}


class ReinforcedData(ABC):
    """Data that a student learns from.

    Attributes:
        origin: The dataset, teachers and settings that it comes from.
        augmentations: The augmentation of each "+" dataset in it.
        num_views: The views of each row.
        top_k: K, the classes that are kept of each answer.
        seed: Seed of the order in which views are replayed.
    """

    origin: Origin
    augmentations: tuple[Augmentation, ...]
    num_views: int
    top_k: int = 1
    seed: int

    @abstractmethod
    def __len__(self) -> int:
        """Rows of an epoch."""

    @abstractmethod
    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, and so the view of each row."""

    if not TYPE_CHECKING:  # for which any attribute would be there

        def __getattr__(self, name: str) -> NoReturn:
            instead = f": {_INSTEAD[name]}" if name in _INSTEAD else ""
            raise AttributeError(f"`{type(self).__name__}` has no `{name}`{instead}.")

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
        return self.augmentations[0].size

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

    @property
    def num_rows(self) -> int:
        """The rows: `len` of the dataset."""
        return len(self)

    @property
    def own_features(self) -> datasets.Features:
        """The columns of the base that items have as well."""
        return datasets.Features()

    @property
    def features(self) -> datasets.Features:
        """The columns of an item, and their types."""
        features = datasets.Features({"pixel_values": datasets.Array3D((3, *self.size), "uint8")})
        answers = {"teacher": self.top_k}
        if self.signal == IMAGE_TAIL:
            answers["tail"] = tail_size(self.num_classes)
        for name, length in answers.items():
            features[f"{name}_ids"] = datasets.List(datasets.Value("int64"), length)
            features[f"{name}_logprobs"] = datasets.List(datasets.Value("float32"), length)
        features["reinforced"] = datasets.Value("bool")
        if self.has_labels:
            names = self.class_names
            features["labels"] = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
        return datasets.Features({**features, **self.own_features})

    @property
    def column_names(self) -> list[str]:
        """The names of an item's columns."""
        return list(self.features)

    def __repr__(self) -> str:
        height, width = self.size
        teachers = " + ".join(inline(member.get("id", "?")) for member in self.origin.teacher_members)
        answers = f"{self.top_k} of {self.num_classes} classes by {teachers}" if teachers else "none, labels only"
        lines = [
            f"num_rows: {len(self):,}",
            f"views: {self.num_views} of {height}x{width} pixels",
            f"answers: {answers}",
            f"columns: {', '.join(self.column_names)}",
        ]
        return "\n    ".join([f"{type(self).__name__}(", *lines]) + "\n)"


def check_loaded(dataset: object, kind: type = ReinforcedData, how: str = "") -> None:
    """Refuses, in the place of the argument `dataset`, what is no open "+" dataset, of the class `kind`: a path, for one.

    `how` is for the message: how that is opened.
    """
    advice = 'Open the "+" dataset: `load_reinforced(...)`.'
    check_kind("dataset", dataset, kind, f"what `load_reinforced` returns{how}", advice)


def digest_of_rows(rows: np.ndarray, labels: np.ndarray | None) -> str:
    """Returns a hash of rows and their labels, whatever the integer types."""
    numbers = rows if labels is None else np.concatenate([rows, labels])
    return hashlib.sha256(np.asarray(numbers, "<i8").tobytes()).hexdigest()[:16]


class MappedReinforcedData(ReinforcedData, torch.utils.data.Dataset):
    """Reinforced data with rows to choose from: what `ReinforcedSampler` draws from. It reads like a `datasets.Dataset`.

    `data[i]` is a row's item in this epoch, `data[i, v]` its view v; `data[0:4]` and `data[[0, 3]]` are lists of items, and
    `data["labels"]` is a column.
    """

    _epoch: SharedEpoch

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        made = super().__new__(cls)
        made._epoch = SharedEpoch()
        return made

    def __copy__(self) -> Self:
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__, _epoch=SharedEpoch(self.epoch))
        return made

    @property
    def epoch(self) -> int:
        """Decides the view of an index that names none."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Chooses which view `dataset[i]` replays: over V epochs, each of the V views once, in an order keyed by `seed`.

        The persistent workers of a DataLoader follow.
        """
        self._epoch.set(epoch)

    @property
    @abstractmethod
    def labels(self) -> np.ndarray | None:
        """The labels of all rows, int64 (rows,), or None where the base has none."""

    @property
    @abstractmethod
    def source_rows(self) -> np.ndarray:
        """The row of the base for each row of this dataset, int64 (rows,); -1 where it has no stored views."""

    @property
    def rows_digest(self) -> str:
        """A hash of which rows of the base these are, in their order, and of their labels."""
        return digest_of_rows(self.source_rows, self.labels)

    @abstractmethod
    def pairs(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows that a view mixes with each other, int64 (pairs, 2), and all other rows, int64 (rows,)."""

    @abstractmethod
    def difficulties(self, index: int, by: str) -> np.ndarray:
        """Returns how difficult each view of a row is, in nats, float32 (V,); see `hf_dr.teacher.topk.entropy`."""

    @overload
    def __getitem__(self, index: ViewIndex) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice | list[Any] | range | np.ndarray) -> list[dict[str, Any]]: ...
    @overload
    def __getitem__(self, index: str) -> Any: ...
    def __getitem__(self, index: Any) -> Any:
        """Returns an item, a list of items or a column; see the class.

        Raises:
            IndexError: There is no such row or view.
            KeyError: There is no such column.
            TypeError: The index is none of these.
        """
        if isinstance(index, str):
            return self._column(index)
        if isinstance(index, slice):
            return self.__getitems__(range(len(self))[index])
        if isinstance(index, (list, range)) or (isinstance(index, (np.ndarray, torch.Tensor)) and index.ndim):
            return self.__getitems__(list(index))
        return self.__getitems__([index])[0]

    @abstractmethod
    def __getitems__(self, indices: Sequence[ViewIndex]) -> list[dict[str, Any]]:
        """Returns the items of several indices, in their order."""

    def _column(self, name: str) -> Any:
        """Returns what all rows have in a column that is the same for all views."""
        if name == "labels" and self.has_labels:
            return self.labels
        if name in self.column_names:
            raise KeyError(
                f"`{name}` differs from view to view, so that it is no column of the rows. Read it from items: "
                f"`data[i][{name!r}]`."
            )
        raise KeyError(f"there is no column `{name}`.{did_you_mean(name, self.column_names)}")

    @abstractmethod
    def select(self, rows: Sequence[int] | np.ndarray) -> Self:
        """Returns these rows, in this order; those without stored views come last, as always.

        Args:
            rows: Each at most once.

        Raises:
            ConfigError: There are none, or one is there twice.
            IndexError: There is no such row.
        """

    def train_test_split(self, test_size: float | int = 0.25, *, seed: int = 0) -> dict[str, Self]:
        """Splits the rows at random into `train` and `test`, both in their order here.

        Args:
            test_size: The share of the rows in `test`, or their number.
            seed: The same seed, the same rows.

        Raises:
            ConfigError: `test_size` leaves a part empty; or views are mixed, and training would show images of the test.
        """
        if self.mixes:
            raise ConfigError(
                "a dataset whose views are mixed cannot be split: a view for training may hold half of an image of the test. "
                "Split the base, and reinforce its training part."
            )
        size = as_plain(test_size)
        count = 0
        if isinstance(size, float) and 0 < size < 1:
            count = round(size * len(self))
        elif isinstance(size, int) and not isinstance(size, bool):
            count = size
        if not 0 < count < len(self):
            raise ConfigError(
                f"`test_size` must leave rows on both sides of {len(self)}, got {test_size!r}. Give a share or a number."
            )
        order = keyed_rng(seed, domain=DOMAIN_SPLIT).permutation(len(self))
        return {"train": self.select(np.sort(order[count:])), "test": self.select(np.sort(order[:count]))}

    def shuffle(self, *_: Any, **__: Any) -> NoReturn:
        """Refuses, with a ConfigError: the order of an epoch is the sampler's."""
        raise ConfigError(
            "the sampler draws another order of the rows for each epoch (`ReinforcedTrainer` and `ReinforcedSampler` take its "
            "`seed`), got a call of `shuffle`. Leave it out; `select(rows)` takes rows in any order."
        )

    def resolved(self, index: int, view: View) -> View:
        """Returns the number of the stored view that is asked for, or the request itself if it is for a new view.

        Of equally difficult views the one with the lower number comes first.

        Raises:
            IndexError: The row has no view of this rank, or stored views and the number is negative.
        """
        if not isinstance(view, ViewRequest):
            number = int(view)
            if number >= 0:
                return number
            if self.source_rows[index] >= 0:
                raise IndexError(
                    f"stored views are counted from 0, got {number}; `fresh_view(epoch)` asks for a new one"
                )
            return fresh_view(-1 - number)
        if view.kind == NEW:
            return view
        order = np.argsort(self.difficulties(index, view.kind), kind="stable")
        if not 0 <= view.number < len(order):
            raise IndexError(f"rank {view.number} of {len(order)} views")
        return int(order[view.number])

    def _row(self, number: int) -> int:
        """Returns a row, counted from 0; an IndexError if there is none."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of a dataset of {len(self)} rows")
        return number % len(self)

    def _locate(self, index: ViewIndex) -> tuple[int, View]:
        """Returns the row, counted from 0, and the view, as `resolved` gives it, of an index; an IndexError without one."""
        number, view = row_and_view(index)
        row = self._row(number)
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

"""Several "+" datasets over one base at once: their views add up, each replayed by its own augmentation."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np

from hf_dr.errors import ConfigError, DataError
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.reinforced_data import MappedReinforcedData, Origin, checked_rows
from hf_dr.replay.view_requests import View, ViewIndex, ViewRequest
from hf_dr.store.provenance import Provenance
from hf_dr.teacher.signals import SAMPLED

logger = logging.getLogger(__name__)

# What all parts must share, because a student and a batch can have only one.
_COMMON: dict[str, Callable[[ReinforcedDataset], Any]] = {
    "size of the views": lambda part: part.size,
    "number of classes": lambda part: part.num_classes,
    "supervision": lambda part: "labels" if part.has_labels else "no labels",
    "names of the classes": lambda part: part.class_names,
    "number of rows of the base": lambda part: part.provenance.num_rows,
    "signal": lambda part: part.signal,
    # Sampled classes stand for the whole answer together: none can be left out.
    "number of sampled classes": lambda part: part.provenance.top_k if part.signal == SAMPLED else None,
}

_SAME_ROWS: dict[str, Callable[[Provenance], Any]] = {
    "hash of the images": lambda provenance: provenance.base.get("content_hash"),
    "list of rows without reinforcement": lambda provenance: provenance.skipped_rows,
}


def check_alike(parts: Sequence[ReinforcedDataset]) -> None:
    """Checks that there is a part, and that one student and one batch can have views of all; a ConfigError if not."""
    if not parts:
        raise ConfigError('expected at least one "+" dataset, got none. Name one.')
    difference = _difference(_COMMON, parts, [part.provenance for part in parts])
    if difference is not None:
        raise ConfigError(f"all parts must have the same {difference}. Reinforce them alike.")


def check_same_rows(provenances: Sequence[Provenance]) -> None:
    """Checks, before a row is read, that parts reinforced the same rows of the same base; a DataError if not."""
    difference = _difference(_SAME_ROWS, provenances, provenances)
    if difference is not None:
        raise DataError(
            f"parts that are streamed must be of the same rows of one base, with the same {difference}. Combine what was made "
            "of the same base, or load them without `streaming=True`."
        )


def _difference(
    kinds: dict[str, Callable[[Any], Any]], parts: Sequence[Any], provenances: Sequence[Provenance]
) -> str | None:
    """Returns in what the parts differ first, and how, or None."""
    names = _names_of(provenances)
    for what, value_of in kinds.items():
        values = [value_of(part) for part in parts]
        other = next((n for n, value in enumerate(values) if value != values[0]), 0)
        if other:
            there, here = (f"{values[n]!s:.80} in part {names[n]}" for n in (0, other))
            return f"{what}, but it is {there} and {here}"
    return None


def cut_answers(item: dict[str, Any], top_k: int) -> dict[str, Any]:
    """Returns an item with the best `top_k` of its stored classes."""
    return {**item, **{name: item[name][:top_k] for name in ("teacher_ids", "teacher_logprobs")}}


def place_in_parts(starts: np.ndarray, view: int) -> tuple[int, int]:
    """Returns the part to which a view belongs and its number there; views are counted through, and `starts` has their sums."""
    part = int(np.searchsorted(starts, view, side="right")) - 1
    return part, view - int(starts[part])


def _names_of(provenances: Sequence[Provenance]) -> list[str]:
    return [f"{n} ({provenance.config_name})" for n, provenance in enumerate(provenances)]


class CombinedReinforcedDataset(MappedReinforcedData):
    """The views of several "+" datasets (parts) of one base, as of one dataset.

    Views are counted through: those of the first part, then those of the second, and so on, so that over as many epochs
    each row shows each view of each part once. Where a part mixes, all rows show views of one part in an epoch, because
    its pairs are matched by view. The rows are those that all parts reinforced, in the order of the base. Of the answers
    the smallest K is kept: they are sorted, so the others' best K are exact.

    `dataset[i]`, `dataset[i, v]` and the items are as for `ReinforcedDataset`.

    Args:
        parts: Opened with the same seed.

    Raises:
        ConfigError: The parts differ in the size of their views, in their classes or in what is stored of the answers.
        DataError: Their rows are not those of one base, or they have none in common.
    """

    def __init__(self, parts: Sequence[ReinforcedDataset]) -> None:
        check_alike(parts)
        self.parts = tuple(parts)
        self.seed = parts[0].seed
        self.provenances = tuple(part.provenance for part in parts)
        self.origin = Origin.of(self.provenances)
        self.augmentations = tuple(part.augmentation for part in parts)
        self._names = _names_of(self.provenances)
        if not all(part.all_reinforced for part in parts):
            raise ConfigError(
                "the parts must be opened without `unreinforced`: only rows that all reinforced are shown."
            )
        self._starts = np.cumsum([0, *(part.num_views for part in parts)])
        self.num_views = int(self._starts[-1])
        self.top_k = min(provenance.top_k for provenance in self.provenances)
        self._source_rows = functools.reduce(np.intersect1d, [part.source_rows for part in parts])
        if not len(self._source_rows):
            raise DataError("the parts must have reinforced rows in common, found none. Reinforce the same rows.")
        left_out = len(functools.reduce(np.union1d, [part.source_rows for part in parts])) - len(self)
        if left_out:
            logger.warning("%d rows are not reinforced in every part and are left out.", left_out)
        # Row of each part for each row of this dataset.
        self._rows = []
        for part in parts:
            order = np.argsort(part.source_rows, kind="stable")
            self._rows.append(order[np.searchsorted(part.source_rows, self._source_rows, sorter=order)])
        self._check_same("image (pixel hash)", [part.image_hashes for part in parts])
        if self.has_labels:
            self._check_same("label", [part.labels for part in parts])

    def _check_same(self, what: str, columns: Sequence[Any]) -> None:
        first = columns[0][self._rows[0]]
        for name, column, rows in zip(self._names, columns, self._rows, strict=True):
            differing = np.flatnonzero(column[rows] != first)
            if len(differing):
                at = differing[0]
                raise DataError(
                    f"the parts must be of one base, but the {what} of {len(differing)} rows differs, first of row "
                    f"{self._source_rows[at]}: {first[at]} in part {self._names[0]}, {column[rows][at]} in part {name}. "
                    'Combine only "+" datasets that were made of the same base.'
                )

    def __len__(self) -> int:
        return len(self._source_rows)

    @property
    def source_rows(self) -> np.ndarray:
        return self._source_rows

    @property
    def has_labels(self) -> bool:
        return self.parts[0].has_labels

    @property
    def labels(self) -> np.ndarray | None:
        labels = self.parts[0].labels
        return None if labels is None else labels[self._rows[0]]

    @property
    def class_names(self) -> list[str] | None:
        return self.parts[0].class_names

    def select(self, rows: Sequence[int] | np.ndarray) -> CombinedReinforcedDataset:
        wanted = checked_rows(rows, len(self))
        chosen = copy.copy(self)
        chosen._source_rows = self._source_rows[wanted]
        chosen._rows = [rows_of_part[wanted] for rows_of_part in self._rows]
        return chosen

    def part_of(self, view: int) -> tuple[int, int]:
        """Returns the number of the part to which a view belongs, and its number there."""
        return place_in_parts(self._starts, view)

    def pairs(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        part, own = self.part_of(view)
        rows = np.arange(len(self))
        # The part's own rows -> rows of this dataset; -1 for those that are left out here.
        row_of = np.full(len(self.parts[part]), -1)
        row_of[self._rows[part]] = rows
        couples = row_of[self.parts[part].pairs(own)[0]]
        couples = couples[(couples >= 0).all(axis=1)]
        return couples, np.setdiff1d(rows, couples)

    def difficulties(self, index: int, by: str) -> np.ndarray:
        parts = zip(self.parts, self._rows, strict=True)
        # All parts are compared by equally many classes.
        return np.concatenate([part.difficulties(int(rows[index]), by, self.top_k) for part, rows in parts])

    @property
    def own_features(self) -> datasets.Features:
        return self.parts[0].own_features

    def _column(self, name: str) -> Any:
        if name not in self.own_features:
            return super()._column(name)
        values = self.parts[0][name]
        return [values[row] for row in self._rows[0]]

    def __getitems__(self, indices: Sequence[ViewIndex]) -> list[dict[str, Any]]:
        return self.items_with(ReinforcedDataset.__getitems__, indices)

    def items_with(
        self,
        items_of: Callable[[ReinforcedDataset, Sequence[ViewIndex]], list[dict[str, Any]]],
        indices: Sequence[ViewIndex],
    ) -> list[dict[str, Any]]:
        """Returns the items that `items_of` makes of each part and the views that are asked of it."""
        # What each part is asked for, by the place of the item in the batch.
        asked: list[dict[int, ViewIndex]] = [{} for _ in self.parts]
        for place, index in enumerate(indices):
            number, own = self._part_and_index(index)
            asked[number][place] = own
        items: dict[int, dict[str, Any]] = {}
        for part, wanted in zip(self.parts, asked, strict=True):
            items.update(zip(wanted, items_of(part, list(wanted.values())), strict=True))
        return [cut_answers(items[place], self.top_k) for place in range(len(indices))]

    def _part_and_index(self, index: ViewIndex) -> tuple[int, tuple[int, View]]:
        """Returns the number of the part that has a view, and the index of the view there."""
        row, view = self._locate(index)
        if isinstance(view, ViewRequest):
            # A new view is drawn by the augmentation whose turn it would be in that epoch.
            part, _ = self.part_of(int(self.scheduled_views(row, view.number)))
            own: View = view
        else:
            part, own = self.part_of(view)
        return part, (int(self._rows[part][row]), own)

"""Opening the data of a task: two places on disk, or a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import datasets

from hf_dr.processes import process_state
from hf_dr.store.base_dataset import load_base
from hf_dr.transfer.settings import DataArguments


class Described(Protocol):
    """Data of a task, with what names them in results."""

    @property
    def described(self) -> dict[str, Any]:
        """What names them."""


Data = TypeVar("Data", bound=Described)


def open_data(
    chosen: DataArguments,
    from_places: Callable[[str, str], Data],
    from_dataset: Callable[[datasets.Dataset, dict[str, Any]], Data],
) -> tuple[Data, Data | None, dict[str, Any]]:
    """Opens the data to train on and those to evaluate on, None where there are none; returns also what names them.

    Args:
        chosen: Where they are.
        from_places: Reads the two places.
        from_dataset: Reads a split of a dataset; its second argument names the split, for results.
    """
    with process_state().local_main_process_first():
        opened = list(_each(chosen, from_places, from_dataset))
    if len(opened) == 1:
        return opened[0], None, dict(opened[0].described)
    train, evaluated = opened
    return train, evaluated, {**train.described, "evaluated_on": evaluated.described}


def _each(chosen: DataArguments, from_places: Callable[..., Data], from_dataset: Callable[..., Data]) -> Iterator[Data]:
    """Opens one after the other."""
    if chosen.dataset is None:
        for prefix in ("", "eval_"):
            places = [getattr(chosen, prefix + name) for name in chosen.PLACES]
            if None not in places:
                yield from_places(*places)
        return
    for split in filter(None, (chosen.split, chosen.eval_split)):
        rows, described = load_base(
            chosen.dataset, chosen.dataset_config, split=split, revision=chosen.revision, files_from=chosen.files_from
        )
        yield from_dataset(rows, {**described, "split": split})

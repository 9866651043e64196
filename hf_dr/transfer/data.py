"""Opening the data of a task: two places on disk, or a dataset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import datasets

from hf_dr.store.base_dataset import load_base
from hf_dr.transfer.settings import DataArguments

Data = TypeVar("Data")


def open_data(
    chosen: DataArguments,
    from_places: Callable[[str, str], Data],
    from_dataset: Callable[[datasets.Dataset, dict[str, Any]], Data],
) -> tuple[Data, Data | None]:
    """Opens the data to train on and those to evaluate on, None where there are none.

    Args:
        chosen: Where they are.
        from_places: Reads the two places.
        from_dataset: Reads a split of a dataset; its second argument names the split, for results.
    """
    opened: list[Data] = []
    if chosen.dataset is None:
        for prefix in ("", "eval_"):
            places = [getattr(chosen, prefix + name) for name in chosen.PLACES]
            if None not in places:
                opened.append(from_places(*places))
    else:
        for split in filter(None, (chosen.split, chosen.eval_split)):
            rows, described = load_base(
                chosen.dataset,
                chosen.dataset_config,
                split=split,
                revision=chosen.revision,
                files_from=chosen.files_from,
            )
            opened.append(from_dataset(rows, {**described, "split": split}))
    return opened[0], opened[1] if len(opened) > 1 else None

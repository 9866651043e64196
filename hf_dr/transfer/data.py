"""What the data of both tasks share: flags that name files or a dataset, and opening what they name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import datasets

from hf_dr.errors import ConfigError
from hf_dr.store.base_dataset import load_base
from hf_dr.store.named_files import FILES_FROM_HELP

Data = TypeVar("Data")


@dataclass
class DataArguments:
    """Where the data of a task are: in two places on disk, which a task names, or in a dataset.

    Raises:
        ConfigError: The data are named in two ways, or not at all.
    """

    PLACES: ClassVar[tuple[str, str]]
    """Names of the two settings for the places; those for evaluation begin with `eval_`."""

    dataset: str | None = None  # a task's own field says what it must hold
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of --dataset, where it has several."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of --dataset on the Hub."})
    files_from: list[str] = field(default_factory=list, metadata={"help": FILES_FROM_HELP})
    split: str = field(default="train", metadata={"help": "Split of --dataset to train on."})
    eval_split: str | None = field(
        default=None, metadata={"help": "Split of --dataset to evaluate on. Default: no evaluation."}
    )
    image_column: str = field(default="image", metadata={"help": "Column of --dataset that holds the images."})

    def __post_init__(self) -> None:
        first, second = self.PLACES
        if (self.dataset is None) == (getattr(self, first) is None):
            raise ConfigError(
                f"exactly one of `{first}` and `dataset` must be given, got {getattr(self, first)} and {self.dataset}."
            )
        for name, other, instead in (
            (f"eval_{first}", "dataset", "eval_split"),
            ("eval_split", first, f"eval_{first}"),
        ):
            if getattr(self, name) is not None and getattr(self, other) is not None:
                raise ConfigError(f"`{name}` must not come with `{other}`, got both. Use `{instead}`.")
        for prefix in ("", "eval_"):
            if (getattr(self, prefix + first) is None) != (getattr(self, prefix + second) is None):
                raise ConfigError(
                    f"`{prefix}{first}` and `{prefix}{second}` must come together, got one of them. Give both."
                )

    def open(
        self,
        from_places: Callable[[str, str], Data],
        from_dataset: Callable[[datasets.Dataset, dict[str, Any]], Data],
    ) -> tuple[Data, Data | None]:
        """Opens the data to train on and those to evaluate on, None where there are none.

        Args:
            from_places: Reads the two places.
            from_dataset: Reads a split of a dataset; its second argument names the split, for results.
        """
        opened: list[Data] = []
        if self.dataset is None:
            for prefix in ("", "eval_"):
                places = [getattr(self, prefix + name) for name in self.PLACES]
                if None not in places:
                    opened.append(from_places(*places))
        else:
            for split in filter(None, (self.split, self.eval_split)):
                rows, described = load_base(
                    self.dataset,
                    self.dataset_config,
                    split=split,
                    revision=self.revision,
                    files_from=self.files_from,
                )
                opened.append(from_dataset(rows, {**described, "split": split}))
        return opened[0], opened[1] if len(opened) > 1 else None

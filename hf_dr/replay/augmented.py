"""A base dataset as training data: newly drawn views and labels, without a teacher's stored answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch

from hf_dr.errors import ConfigError
from hf_dr.replay.reinforced_data import MappedReinforcedData, Origin, checked_rows, digest_of_rows
from hf_dr.replay.view_requests import ViewIndex, ViewRequest, draw_fresh_view
from hf_dr.store.base_dataset import content_hash, undecoded_images
from hf_dr.store.labels import read_labels
from hf_dr.store.provenance import hash_of
from hf_dr.teacher.signals import TOPK
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.images import as_tensor, decode_row
from hf_dr.views.rng import check_seed


class AugmentedDataset(MappedReinforcedData):
    """A base dataset on the data path of reinforced ones, for training on labels and for a teacher in memory.

    Items are those of `ReinforcedDataset` for rows without reinforcement: `pixel_values`, `labels`, `reinforced` False, and
    `teacher_*` that are zeros. `dataset[i]` is the view of this epoch (see `set_epoch`), a function of (seed, epoch, row).

    Args:
        base: A dataset with an image column and a label column.
        augmentation: Draws the views. It does not mix: a view has one label. The trainer can (`mixup_alpha`, `cutmix_alpha`).
        image_column: Column of the images.
        label_column: Column of the labels: a ClassLabel, or numbers from 0.
        described: What names the dataset: `id`, `config`, `revision`, as `load_base` returns it.
        split: The split that it is.
        seed: Seed of the views.

    Attributes:
        images: The image column of the base, undecoded.

    Raises:
        ConfigError: The augmentation mixes, or `seed` is no whole number from 0 to 2**64 - 1.
        DataError: A row has no label.
    """

    num_views = 1  # of each row in an epoch
    has_labels = True
    all_reinforced = False

    def __init__(
        self,
        base: datasets.Dataset,
        augmentation: Augmentation,
        *,
        image_column: str,
        label_column: str,
        described: dict[str, Any] | None = None,
        split: str = "train",
        seed: int = 0,
    ) -> None:
        if augmentation.mixes:
            raise ConfigError(
                "`augmentation` must not mix images where no teacher answered for stored views, got MixUp or CutMix. Leave "
                "them out, and have the trainer mix images and labels: `mixup_alpha`, `cutmix_alpha`."
            )
        check_seed(seed)
        advice = "Take a split with labels."
        self._labels, self._names = read_labels(base, label_column, f"`{label_column}`", advice)
        num_classes = len(self._names) if self._names else int(self._labels.max()) + 1
        self.images = undecoded_images(base, image_column)
        self._split = split
        self._base_rows = np.arange(len(base))
        self.augmentations = (augmentation,)
        self.seed = int(seed)
        base_hash = {"content_hash": content_hash(self.images)}
        determining = {
            "split": split,
            "augmentation": augmentation.to_list(),
            "num_classes": num_classes,
            "shard_size": len(base),
            "num_rows": len(base),
            "image_column": image_column,
            "label_column": label_column,
            "base": base_hash,
        }
        self._fingerprint = hash_of({**determining, "seed": self.seed})
        self.origin = Origin(
            fingerprint=hash_of(determining),  # of runs that differ in the seed
            base={**(described or {}), **base_hash},
            split=split,
            num_examples=len(base),
            image_column=image_column,
            label_column=label_column,
            num_classes=num_classes,
            signal=TOPK,
        )

    def __len__(self) -> int:
        return len(self._base_rows)

    @property
    def fingerprint(self) -> str:
        """Hash of all that determines the views, the seed included."""
        return self._fingerprint

    @property
    def class_names(self) -> list[str] | None:
        return self._names

    @property
    def source_rows(self) -> np.ndarray:
        return np.broadcast_to(np.int64(-1), len(self))  # asked for with each item: no array of all rows is filled

    @property
    def rows_digest(self) -> str:
        return digest_of_rows(self._base_rows, self.labels)

    def select(self, rows: Sequence[int] | np.ndarray) -> AugmentedDataset:
        chosen = copy.copy(self)
        chosen._base_rows = self._base_rows[checked_rows(rows, len(self))]
        return chosen

    def pairs(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        return np.empty((0, 2), np.int64), np.arange(len(self))

    def difficulties(self, index: int, by: str) -> np.ndarray:
        return np.empty(0, np.float32)

    @property
    def labels(self) -> np.ndarray:
        return self._labels[self._base_rows]

    def __getitems__(self, indices: Sequence[ViewIndex]) -> list[dict[str, Any]]:
        (augmentation,) = self.augmentations

        def pixels(row: int, epoch: int) -> torch.Tensor:
            # The rows of a `ReinforcedDataset` over the same base show the same new views.
            return as_tensor(draw_fresh_view(self.decode(row), augmentation, seed=self.seed, row=row, epoch=epoch))

        return [self.item_with(pixels, index) for index in indices]

    def decode(self, row: int) -> PIL.Image.Image:
        """Decodes the image of a row of the base."""
        (value,) = self.images[row].values()
        return decode_row(value, f"row {row} of `{self._split}`")

    def item_with(self, pixels: Callable[[int, int], Any], index: ViewIndex) -> dict[str, Any]:
        """Returns an item with `pixel_values` as they are made from its row of the base and its epoch."""
        number, view = self._locate(index)
        row = int(self._base_rows[number])
        assert isinstance(view, ViewRequest), "no view is stored"
        return {
            "pixel_values": pixels(row, view.number),
            "teacher_ids": torch.zeros(1, dtype=torch.int64),
            "teacher_logprobs": torch.zeros(1),
            "reinforced": False,
            "labels": int(self._labels[row]),
        }

"""A base dataset as training data: newly drawn views and labels, without a teacher's stored answers."""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import torch

from hf_dr.errors import ConfigError, DataError
from hf_dr.replay.reinforced_data import MappedReinforcedData, ViewIndex, fresh_view
from hf_dr.store.base_dataset import content_hash, undecoded_images
from hf_dr.store.provenance import Provenance
from hf_dr.version import __version__
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.images import as_tensor, decode_row
from hf_dr.views.rng import view_rng


class PlainDataset(MappedReinforcedData):
    """A base dataset on the data path of reinforced ones, for plain training and for a teacher in memory.

    Items are those of `ReinforcedDataset` for rows without reinforcement: `pixel_values`, `labels`, `reinforced` False, and
    `teacher_*` that are zeros. `dataset[i]` is the view of this epoch (see `set_epoch`), a function of (seed, epoch, row).

    Args:
        base: With an image column and a label column.
        augmentation: Draws the views. It does not mix: a view has one label. The trainer can (`mixup_alpha`, `cutmix_alpha`).
        image_column: Column of the images.
        label_column: Column of the labels: a ClassLabel, or numbers from 0.
        described: What names the dataset: `id`, `config`, `revision`, as `load_base` tells.
        split: The split that it is.
        seed: Of the views.

    Raises:
        ConfigError: The augmentation mixes.
        DataError: A row has no label.
    """

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
        labels = base.select_columns([label_column]).with_format("arrow")[:][label_column]
        self._labels = labels.fill_null(-1).to_numpy().astype(np.int64)
        self._names = getattr(base.features[label_column], "names", None)
        classes = len(self._names) if self._names else int(self._labels.max()) + 1
        bad = np.flatnonzero((self._labels < 0) | (self._labels >= classes))
        if len(bad):
            raise DataError(
                f"`{label_column}` must be a class from 0 to {classes - 1} in every row, but row {bad[0]} has none "
                f"({len(bad)} such rows). Take a split with labels."
            )
        self._images = undecoded_images(base, image_column)
        self.augmentations = (augmentation,)
        self.seed, self.epoch, self.num_views = seed, 0, 1
        provenance = Provenance(
            config_name="",
            split=split,
            augmentation=augmentation.to_list(),
            num_views=0,
            top_k=0,
            num_classes=classes,
            seed=seed,
            shard_size=len(base),
            num_rows=len(base),
            overlay=False,
            image_column=image_column,
            label_column=label_column,
            mixing_scope="dataset",
            on_bad_image="error",
            base={**(described or {}), "content_hash": content_hash(self._images)},
            teacher={"members": []},
            library_versions={},
            created_with=__version__,
        )
        self.provenances = (provenance,)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def has_labels(self) -> bool:
        """Whether items have `labels`: always."""
        return True

    @property
    def all_reinforced(self) -> bool:
        """Whether every row has stored views: none has."""
        return False

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, where the labels have names."""
        return self._names

    @property
    def source_rows(self) -> np.ndarray:
        """The row whose stored views a row has, int64 (rows,): -1, there are none."""
        return np.full(len(self), -1)

    def set_epoch(self, epoch: int) -> None:
        """Chooses which view `dataset[i]` draws."""
        self.epoch = epoch

    def pairs(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns no pairs, int64 (0, 2), and all rows, int64 (rows,)."""
        return np.empty((0, 2), np.int64), np.arange(len(self))

    def difficulties(self, index: int, by: str) -> np.ndarray:
        """Returns float32 (0,): there are no stored views."""
        return np.empty(0, np.float32)

    def __getitem__(self, index: ViewIndex) -> dict[str, Any]:
        row, view = index if isinstance(index, tuple) else (index, fresh_view(self.epoch))
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of a dataset of {len(self)} rows")
        if view >= 0:
            raise IndexError(f"view {view} of 0")
        row = row % len(self)
        (value,) = self._images[row].values()
        image = decode_row(value, f"row {row}")
        (augmentation,) = self.augmentations
        # The key of a `ReinforcedDataset`'s newly drawn views: the same rows show the same ones.
        params = augmentation.sample(view_rng(self.seed, row, (1 << 64) + view), (image.height, image.width))
        return {
            "pixel_values": as_tensor(augmentation.apply(image, params)),
            "teacher_ids": torch.zeros(1, dtype=torch.int64),
            "teacher_logprobs": torch.zeros(1),
            "reinforced": False,
            "labels": int(self._labels[row]),
        }

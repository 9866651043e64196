"""What a batch must hold, where its rows come from a dataset, a transform or a `data_collator` of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import default_data_collator

from hf_dr.errors import DataError
from hf_dr.training.losses import check_classes


def pixels_of(batch: Mapping[str, Any]) -> Any:
    """Returns the pixels of a batch, without which a student sees nothing."""
    pixels = batch.get("pixel_values")
    if pixels is None:
        raise DataError(
            f"the rows of a batch must hold `pixel_values`, found {', '.join(map(str, batch)) or 'nothing'}. Let the dataset, "
            "its transform or the `data_collator` keep them."
        )
    return pixels


@dataclass(frozen=True)
class CheckedBatches:
    """Collates as another function does, and refuses rows by which a student cannot be evaluated.

    It runs where batches are made, on the CPU and perhaps in a worker of the loader, so no device is waited for.
    """

    collate: Callable[[list[Any]], Any]
    classes: int

    def __call__(self, rows: list[Any]) -> Any:
        try:
            batch = self.collate(rows)
        except (TypeError, ValueError, RuntimeError, LookupError) as error:
            if self.collate is not default_data_collator:  # the user's own, whose error is passed on as it is
                raise
            raise DataError(
                "the rows of a batch must be dictionaries with the same names, tensors of the same shapes and numbers, but: "
                f"{type(error).__name__}: {error!s:.200}. Check the dataset, or its transform."
            ) from error
        if isinstance(batch, Mapping):
            self._check_labels(batch, rows[0])
        return batch

    def _check_labels(self, batch: Mapping[str, Any], row: Any) -> None:
        labels = batch.get("labels")
        found = row.get("labels") if isinstance(row, Mapping) else None
        if isinstance(labels, torch.Tensor) and labels.ndim == 1:
            if labels.dtype != torch.bool and not labels.is_floating_point():
                check_classes(labels, self.classes)
                return
            found = labels[0].item()
        elif labels is not None or not isinstance(found, str):  # transformers' collator drops labels that are text
            return
        raise DataError(
            f"`labels` must be whole numbers from 0 to {self.classes - 1}, found {found!r}. Convert them to int."
        )

"""How a loader's worker makes a batch of rows and sends it: in one message, with only large tensors apart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import default_collate

from hf_dr.errors import DataError

_MOST_BYTES = 1 << 18  # of a tensor within a message: a pipe takes these in a few pieces


_DTYPES = frozenset(
    (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64,
    )
)  # fmt: skip
"""Those that NumPy has as well."""


class _Message(dict[str, Any]):
    """A batch; small tensors are written into the message when it is sent, and it arrives as a plain dictionary."""

    def __reduce__(self) -> Any:
        within = {name: value.numpy() for name, value in self.items() if _is_plain(value)}
        return _opened, ({**self, **within}, tuple(within))


def _opened(content: dict[str, Any], within: Collection[str]) -> dict[str, Any]:
    return {name: torch.from_numpy(value) if name in within else value for name, value in content.items()}


def _is_plain(value: Any) -> bool:
    """Whether a value is a small tensor that NumPy can hold; others are sent as torch does."""
    return (
        type(value) is torch.Tensor
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and value.dtype in _DTYPES
        and not value.requires_grad
        and value.nbytes <= _MOST_BYTES
    )


def collate_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Makes a batch of rows, as PyTorch's `default_collate` does.

    Raises:
        DataError: A column has cells that cannot be made into a batch.
    """
    try:
        batch: dict[str, Any] = default_collate(list(rows))
        return batch
    except (TypeError, RuntimeError, KeyError) as error:
        for name in rows[0]:
            try:
                default_collate([row[name] for row in rows])
            except (TypeError, RuntimeError, KeyError):
                kinds = " and ".join(sorted({type(row[name]).__name__ for row in rows}))
                raise DataError(
                    f"the cells of column `{name}` must go together in a batch, found {kinds} in one: {error}. Leave it out of "
                    "`columns`, fill the cells that are empty, or make batches with a `collate_fn` of your own."
                ) from error
        raise


@dataclass(frozen=True)
class InOneMessage:
    """Collates as another function does, for a loader with workers.

    For each tensor apart the receiver connects to the worker that made it, and waits until that has a moment between two
    images.

    Attributes:
        collate: Makes a batch of items. What is no plain dictionary is sent as torch does.
    """

    collate: Callable[[list[Any]], Any]

    def __call__(self, items: list[Any]) -> Any:
        batch = self.collate(items)
        return _Message(batch) if type(batch) is dict else batch

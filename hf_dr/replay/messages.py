"""How a loader's worker sends a batch: in one message, with only large tensors apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_MOST_BYTES = 1 << 18  # of a tensor within a message: a pipe takes these in a few pieces


class _Message(dict[str, Any]):
    """A batch; small tensors are written into the message when it is sent, and it arrives as a plain dictionary."""

    def __reduce__(self) -> Any:
        content = {
            name: value.numpy() if isinstance(value, torch.Tensor) and value.nbytes <= _MOST_BYTES else value
            for name, value in self.items()
        }
        return _opened, (content,)


def _opened(content: dict[str, Any]) -> dict[str, Any]:
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in content.items()
    }


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

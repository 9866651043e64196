"""The epoch of a dataset, which persistent workers see change."""

from __future__ import annotations

import mmap
import operator
from typing import Any, Self

import numpy as np
import torch

from hf_dr.errors import ConfigError


def checked_epoch(epoch: int) -> int:
    """Returns the number of an epoch; a ConfigError if it is no whole number, or below 0."""
    try:
        number = -1 if isinstance(epoch, (bool, np.bool_)) else operator.index(epoch)
    except TypeError:
        number = -1
    if number < 0:
        raise ConfigError(
            f"`epoch` must be a whole number of at least 0, got {epoch!r:.80}. Give the number of the epoch."
        )
    return number


class SharedEpoch:
    """A number in shared memory: the copies of a dataset that a DataLoader's workers have see it change.

    A copy by `copy` or pickle is a number of its own, in shared memory too. Sent to a process by torch it stays the same one.
    """

    def __init__(self, value: int = 0) -> None:
        # Anonymous memory is shared with forked workers and holds no file descriptor: there may be a dataset for each class.
        self._number = torch.frombuffer(mmap.mmap(-1, 8), dtype=torch.int64).fill_(value)
        # What is sent to spawned ones, torch moves to memory that has a name; forked ones would not see it there.
        self._sent = self._number.clone()

    def __int__(self) -> int:
        return int(self._number)

    def set(self, value: int) -> None:
        """Changes it, in the workers as well; a ConfigError if it is no whole number, or below 0."""
        epoch = checked_epoch(value)
        for number in (self._number, self._sent):
            number.fill_(epoch)

    def __copy__(self) -> Self:
        return type(self)(int(self))

    def __deepcopy__(self, memo: Any) -> Self:
        return type(self)(int(self))

    def __getstate__(self) -> dict[str, Any]:
        return {"sent": self._sent}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._number = self._sent = state["sent"]
        if not self._sent.is_shared():  # of a file, not of another process
            self.__init__(int(self))  # type: ignore[misc]

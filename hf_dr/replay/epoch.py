"""The epoch of a dataset, which persistent workers see change."""

from __future__ import annotations

from typing import Any, Self

import torch

from hf_dr.settings import Whole


def checked_epoch(epoch: int) -> int:
    """Returns the number of an epoch.

    Raises:
        ConfigError: It is below 0.
    """
    Whole(0).check("epoch", int(epoch))
    return int(epoch)


class SharedEpoch:
    """A number in shared memory: the copies of a dataset that a DataLoader's workers have see it change.

    A copy by `copy` or pickle is a number of its own, in shared memory too. Sent to a process by torch it stays the same one.
    """

    def __init__(self, value: int = 0) -> None:
        self._number = torch.full((), value, dtype=torch.int64).share_memory_()

    def __int__(self) -> int:
        return int(self._number)

    def set(self, value: int) -> None:
        """Changes it, in the workers as well.

        Raises:
            ConfigError: It is below 0.
        """
        self._number.fill_(checked_epoch(value))

    def __copy__(self) -> Self:
        return type(self)(int(self))

    def __deepcopy__(self, memo: Any) -> Self:
        return type(self)(int(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not self._number.is_shared():  # of a file, not of another process
            self._number.share_memory_()

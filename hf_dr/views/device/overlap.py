"""Keeping a device busy: streams of their own for what runs beside the main work, and results that are read later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

_STREAMS: dict[tuple[torch.device, str], torch.cuda.Stream] = {}


def side_stream(device: torch.device, purpose: str) -> torch.cuda.Stream:
    """Returns the process's stream of a device for a purpose, e.g. `views` or `hashes`."""
    key = (device, purpose)
    if key not in _STREAMS:
        _STREAMS[key] = torch.cuda.Stream(device)
    return _STREAMS[key]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns a tensor on a device; only a copy to a GPU of CUDA is not waited for.

    Apple's MPS would read a tensor of the host later, when its memory may hold others already (pytorch/pytorch issues 139550
    and 189690), and the host one of a device before it has arrived.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


class LaterOnHost:
    """Tensors of one device that are copied to the host without waiting, and read later."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        self._copies = list(tensors)
        if tensors[0].device.type != "cuda":
            self._copies = [tensor.cpu() for tensor in tensors]
            return
        for n, tensor in enumerate(tensors):
            self._copies[n] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copies[n].copy_(tensor, non_blocking=True)
        self._done = torch.cuda.Event()
        self._done.record(torch.cuda.current_stream(tensors[0].device))

    def get(self) -> list[torch.Tensor]:
        """Waits for the copies and returns them."""
        if self._done is not None:
            self._done.synchronize()
        return self._copies


class Background:
    """Does one thing after the other in a thread: for work that leaves Python's lock alone, such as encoding a file.

    After an error nothing more is done: what comes next may build upon what has failed. `submit` waits where `depth` things
    are still to be done.
    """

    def __init__(self, depth: int) -> None:
        self._pool = ThreadPoolExecutor(1, "background")
        self._waiting: deque[Future[Any]] = deque()
        self._depth = depth
        self._failed = False

    def submit(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Does `work(*arguments)` later; raises what earlier work raised."""
        while len(self._waiting) >= self._depth:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._do, work, *arguments))

    def _do(self, work: Callable[..., Any], *arguments: Any) -> None:
        if self._failed:
            return
        try:
            work(*arguments)
        except BaseException:
            self._failed = True
            raise

    def wait(self) -> None:
        """Waits until all is done; raises what it raised."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Does what is still to be done, unless something has failed, and ends the thread."""
        self._pool.shutdown()
        self._waiting.clear()

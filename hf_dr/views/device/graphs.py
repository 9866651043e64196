"""A function of one batch as a recorded CUDA graph: the same kernels without the host's work to launch each of them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

logger = logging.getLogger(__name__)


class Graphed:
    """Calls a function; from the second batch of a shape on by replaying its kernels.

    A light teacher takes the host as long to launch as the GPU to run, and the host has other things to do. The first replay
    is compared with the function's own answer: where a single bit differs, or the function cannot be recorded (it looks at
    values in between, say), it is called as it is from then on.

    Args:
        function: Takes a batch on a GPU and returns answers there, always the same for equal batches.
    """

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._function = function
        self._seen: set[tuple[int, ...]] = set()
        self._recorded: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor] | None] = {}

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Returns `function(batch)`."""
        with torch.cuda.device_of(batch):  # a graph is recorded on the current device
            return self._call(batch)

    def _call(self, batch: torch.Tensor) -> torch.Tensor:
        shape = tuple(batch.shape)
        if batch.device.type != "cuda" or shape not in self._seen:
            self._seen.add(shape)
            return self._function(batch)
        if shape not in self._recorded:
            self._recorded[shape] = self._record(batch)
        recorded = self._recorded[shape]
        if recorded is None:
            return self._function(batch)
        graph, given, answers = recorded
        given.copy_(batch)
        graph.replay()
        return answers.clone()

    def _record(self, batch: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor] | None:
        given, graph = batch.clone(), torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            # A recording that fails spoils the device's random numbers, so what would make it fail is looked for before.
            with _no_waiting():
                expected = self._function(batch)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                answers = self._function(given)
            graph.replay()
            if torch.equal(answers, expected):
                return graph, given, answers
            reason = "its answers differ"
        except RuntimeError as error:
            reason = f"{type(error).__name__}: {str(error)[:200]}"
        finally:
            torch.cuda.set_stream(stream)  # a recording that cannot be ended leaves its own as the current one
        logger.info("The teacher is not replayed as a CUDA graph: %s.", reason)
        return None


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raises where the host would wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype feature", UserWarning)
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)

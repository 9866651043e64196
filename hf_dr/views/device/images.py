"""Where images lie: windows into flat buffers of pixels, which cross to a device in a single copy each."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import get_worker_info

# A place is the number of a buffer and an offset into it; this is the number of bits of the offset.
OFFSET_BITS = 40
_COPIERS, _COPIED_AT_ONCE = 4, 1 << 22  # threads, and bytes of a part


@dataclass(frozen=True)
class Windows:
    """N RGB images, each a window into a buffer of uint8; several may show the same pixels.

    Attributes:
        places: int64 (N,), where the first pixel of each begins: the number of its buffer, then (lower `OFFSET_BITS`) bytes.
        heights: int64 (N,), in pixels.
        widths: int64 (N,), in pixels; a row is a run of 3 * width bytes.
        strides: int64 (N,), from one row to the next, in pixels.
    """

    places: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    strides: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    @classmethod
    def dense(cls, heights: np.ndarray, widths: np.ndarray) -> Windows:
        """Returns windows that lie one after the other in the first buffer."""
        sizes = 3 * heights * widths
        return cls(np.cumsum(sizes) - sizes, heights, widths, widths)

    @property
    def num_bytes(self) -> int:
        """Bytes of all pixels, those of several windows counted several times."""
        return int((3 * self.heights * self.widths).sum())

    def crop(self, boxes: np.ndarray) -> Windows:
        """Returns the boxes (N, 4), (top, left, height, width), which lie inside the windows."""
        tops, lefts, heights, widths = boxes.astype(np.int64).T
        return Windows(self.places + 3 * (tops * self.strides + lefts), heights, widths, self.strides)


def pack(arrays_HWC: Sequence[np.ndarray]) -> tuple[torch.Tensor, Windows]:
    """Copies images, uint8 (H, W, 3), into one buffer on the CPU, uint8 (bytes,), and says where they lie."""
    heights, widths = (np.array([array.shape[axis] for array in arrays_HWC], np.int64) for axis in (0, 1))
    windows = Windows.dense(heights, widths)
    # A loader's worker writes where the main process will read, as torch's own collate does: one copy less.
    in_worker = get_worker_info() is not None
    storage = (torch.UntypedStorage._new_shared if in_worker else torch.UntypedStorage)(windows.num_bytes)
    buffer = torch.empty(0, dtype=torch.uint8).set_(storage)
    flat = buffer.numpy()
    for array, offset in zip(arrays_HWC, windows.places.tolist(), strict=True):
        flat[offset : offset + array.size] = array.reshape(-1)
    return buffer, windows


def pinned(buffer: torch.Tensor) -> torch.Tensor:
    """Returns a copy of a buffer, uint8 (bytes,), in pinned memory."""
    copy = torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=True)
    copy_in_parts(copy, buffer)
    return copy


def copy_in_parts(to: torch.Tensor, source: torch.Tensor) -> None:
    """Copies one flat buffer on the CPU into another, in parts side by side.

    What a worker has sent is mapped page by page as it is read, which a loader's single thread would do one after the other.
    """
    parts = zip(to.split(_COPIED_AT_ONCE), source.split(_COPIED_AT_ONCE), strict=True)
    list(_copiers().map(_copy, parts))


@lru_cache(maxsize=1)
def _copiers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_COPIERS, "pinning")


def _copy(part: tuple[torch.Tensor, torch.Tensor]) -> None:
    to, source = part
    np.copyto(to.numpy(), source.numpy())  # without Python's lock, and without torch's own threads

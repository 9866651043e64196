"""Images of differing sizes in one flat buffer, which crosses to a device in a single copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch


@dataclass(frozen=True)
class Images:
    """N RGB images, each a window into one buffer; several may lie in the same pixels.

    Attributes:
        data: uint8 (bytes,), on any device; rows of a window are runs of 3 * width bytes.
        offsets: int64 (N,), where the first pixel of each begins, in bytes.
        heights: int64 (N,), in pixels.
        widths: int64 (N,), in pixels.
        strides: int64 (N,), from one row to the next, in pixels.
    """

    data: torch.Tensor
    offsets: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    strides: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets)

    @classmethod
    def pack(cls, arrays_HWC: Sequence[np.ndarray]) -> Images:
        """Copies arrays into one buffer on the CPU."""
        heights = np.array([array.shape[0] for array in arrays_HWC], np.int64)
        widths = np.array([array.shape[1] for array in arrays_HWC], np.int64)
        images = cls.empty(heights, widths, torch.device("cpu"))
        flat = images.data.numpy()
        for array, offset in zip(arrays_HWC, images.offsets.tolist(), strict=True):
            flat[offset : offset + array.size] = array.reshape(-1)
        return images

    @classmethod
    def empty(cls, heights: np.ndarray, widths: np.ndarray, device: torch.device) -> Images:
        """Returns images one after the other whose pixels are still to be written."""
        ends = np.cumsum(3 * heights * widths)
        total = int(ends[-1]) if len(ends) else 0
        data = torch.empty(total, dtype=torch.uint8, device=device)
        return cls(data, ends - 3 * heights * widths, heights, widths, widths)

    def to(self, device: torch.device) -> Images:
        """Returns the images on a device; the copy is asynchronous where the buffer is pinned."""
        return replace(self, data=self.data.to(device, non_blocking=True))

    def pin_memory(self) -> Images:
        """Returns the images in pinned memory."""
        return replace(self, data=self.data.pin_memory())

    @classmethod
    def join(cls, parts: Sequence[Images]) -> Images:
        """Returns the images of several buffers in one, in order."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(len(part.data) for part in parts[:-1])])
        return cls(
            torch.cat([part.data for part in parts]),
            np.concatenate([part.offsets + start for part, start in zip(parts, starts, strict=True)]),
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("heights", "widths", "strides")),
        )

    def select(self, places: np.ndarray) -> Images:
        """Returns the images at these places, (M,), of the same buffer; a place may come several times."""
        return Images(self.data, self.offsets[places], self.heights[places], self.widths[places], self.strides[places])

    def crop(self, boxes: np.ndarray) -> Images:
        """Returns the boxes (N, 4), (top, left, height, width), of the same buffer; they lie inside the images."""
        tops, lefts, heights, widths = boxes.astype(np.int64).T
        return Images(self.data, self.offsets + 3 * (tops * self.strides + lefts), heights, widths, self.strides)

    def image(self, number: int) -> torch.Tensor:
        """Returns one image as a view of the buffer, uint8 (H, W, 3)."""
        height, width, stride = (int(a[number]) for a in (self.heights, self.widths, self.strides))
        return self.data.as_strided((height, width, 3), (3 * stride, 3, 1), int(self.offsets[number]))

    def batch(self) -> torch.Tensor:
        """Returns all images, uint8 (N, H, W, 3): a view of the buffer where they fill it one after the other."""
        count, height, width = len(self), int(self.heights[0]), int(self.widths[0])
        assert (self.heights == height).all()
        assert (self.widths == width).all()
        size = 3 * height * width
        dense = (self.strides == width).all() and (np.diff(self.offsets) == size).all()
        if dense:
            first = int(self.offsets[0])
            return self.data[first : first + count * size].view(count, height, width, 3)
        return torch.stack([self.image(number) for number in range(count)])

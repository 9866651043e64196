"""Making views on a device for a teacher: an image is decoded once, crosses to the device once, and stays while it is needed.

Workers decode, draw the parameters of the views and plan how the device makes them; the main process only copies and
launches, in the order of the spans that the teacher sees. Columns are those that `hf_dr.views.maker.ViewMaker` makes, to
the byte.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from hf_dr.errors import DataError
from hf_dr.processes import quiet_loader
from hf_dr.views.augmentation import NO_PARTNER, PARTNER, Augmentation
from hf_dr.views.device.augment import DeviceAugmentation, ViewMemoryError, perform
from hf_dr.views.device.hashing import later_hashes
from hf_dr.views.device.images import Windows, pack, pinned
from hf_dr.views.device.overlap import to_device
from hf_dr.views.device.packing import columns, tell
from hf_dr.views.device.plan import NotOnDeviceError
from hf_dr.views.device.program import Program
from hf_dr.views.images import pixel_hash
from hf_dr.views.maker import Span, ViewBatch, ViewMaker, zero_columns
from hf_dr.views.ops.base import height_width

_UNMATCHED = -2  # a view that is mixed, until it is known with whom
_DECODED_AT_ONCE = 8  # images, or fewer where they take more than the next many bytes
_PART_BYTES = 1 << 26
_DECODED_AHEAD = 128  # images for each span; about what 15 cores decode while a light teacher answers


@dataclass(frozen=True)
class Decoded:
    """Some images, E in number.

    Attributes:
        examples: int64 (E,).
        pixels: uint8 (bytes,), of all of them; of an undecodable one a single pixel.
        offsets: int64 (E,), where each begins.
        hashes: uint64 (E,), 0 where the image is undecodable.
        errors: Why an image could not be decoded, by its example.
    """

    examples: np.ndarray
    pixels: torch.Tensor
    offsets: np.ndarray
    hashes: np.ndarray
    errors: dict[int, str]

    def pin_memory(self) -> Decoded:
        """Returns the images in pinned memory, for a loader's thread."""
        return replace(self, pixels=pinned(self.pixels))


@dataclass(frozen=True)
class Drawn:
    """The N views of a span, drawn and planned.

    Attributes:
        span: Which views.
        params: Columns (N, ...) in the stored dtypes; 0 where the image is undecodable.
        valid: bool (N,), False where the image is undecodable.
        examples: int64 (M,), whose images the program takes: those of the valid views, then their partners.
        program: Makes the valid views; None where there are none.
        made: What Pillow made, where there is no device version of a view, and why.
    """

    span: Span
    params: dict[str, np.ndarray]
    valid: np.ndarray
    examples: np.ndarray
    program: Program | None
    made: tuple[ViewBatch, str] | None = None


class Preparer(torch.utils.data.Dataset):
    """Does all that needs no device, in a loader's worker: decodes images, draws and plans spans.

    Args:
        maker: Says which views there are.
        sizes: Shared memory, int32 (examples, 2): whoever has decoded an image enters its size there (-1 where it is
            undecodable), for whoever draws views of it.
    """

    def __init__(self, maker: ViewMaker, sizes: torch.Tensor) -> None:
        self.maker = maker
        self.augmenter = DeviceAugmentation(maker.augmentation)
        self.sizes = sizes

    def __getitem__(self, item: np.ndarray | Span) -> Decoded | Drawn:
        return self._draw(item) if isinstance(item, Span) else self._decode(item)

    def _decode(self, examples: np.ndarray) -> Decoded:
        pixels: list[np.ndarray] = []
        errors: dict[int, str] = {}
        hashes = np.zeros(len(examples), np.uint64)
        sizes = np.full((len(examples), 2), -1, np.int32)
        for row, example in enumerate(examples.tolist()):
            try:
                image = self.maker.image(example)
            except DataError as error:
                errors[example] = str(error)
                pixels.append(np.zeros((1, 1, 3), np.uint8))
                continue
            hashes[row], sizes[row] = pixel_hash(image), height_width(image)
            pixels.append(np.asarray(image))
        self.sizes[torch.from_numpy(examples)] = torch.from_numpy(sizes)
        buffer, windows = pack(pixels)
        return Decoded(examples, buffer, windows.places, hashes, errors)

    def _draw(self, span: Span) -> Drawn:
        maker, flat = self.maker, np.arange(span.start, span.stop)
        own = flat // maker.num_views
        sizes = self._sizes_of(own)
        valid = sizes[:, 0] > 0
        good = np.flatnonzero(valid)
        params = self._sample(flat, sizes)
        mixed, examples = good[:0], own[good]
        if maker.augmentation.mixes:
            mixed = good[params[PARTNER][good] != NO_PARTNER]
            examples = np.concatenate([examples, params[PARTNER][mixed].astype(np.int64)])
        partners = np.full(len(flat), -1, np.int64)
        partners[mixed] = len(good) + np.arange(len(mixed))  # their images come last
        if not len(good):
            return Drawn(span, params, valid, examples, None)
        heights, widths = self._sizes_of(examples).astype(np.int64).T
        images = Windows(np.zeros(len(examples), np.int64), heights, widths, widths)
        mixing = {name: values[good] for name, values in params.items()}
        single = mixing
        if len(mixed):
            drawn = [
                maker.draw(int(examples[n]), view, (int(heights[n]), int(widths[n])))
                for n, view in enumerate((flat[mixed] % maker.num_views).tolist(), len(good))
            ]
            others = columns(maker.augmentation.single, drawn)
            single = {name: np.concatenate([mixing[name], values]) for name, values in others.items()}
        try:
            program = self.augmenter.program(images, single, mixing, partners[good])
        except NotOnDeviceError as error:
            return Drawn(span, params, valid, examples, None, (maker[span], str(error)))
        return Drawn(span, params, valid, examples, program)

    def _sample(self, flat: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """The parameters of views, with partners entered, for images of these sizes (N, 2).

        A view is not mixed where it has no partner but itself, or one that is undecodable: its own row reports that.
        """
        maker, augmentation = self.maker, self.maker.augmentation
        params = zero_columns(augmentation, len(flat))
        for n in np.flatnonzero(sizes[:, 0] > 0).tolist():
            example, view = divmod(int(flat[n]), maker.num_views)
            height, width = sizes[n].tolist()
            drawn = maker.draw(example, view, (height, width))
            if augmentation.mixes:
                drawn[PARTNER] = _UNMATCHED if augmentation.needs_partner(drawn) else NO_PARTNER
            for name, value in drawn.items():
                params[name][n] = value
        if augmentation.mixes:
            unmatched = np.flatnonzero(params[PARTNER] == _UNMATCHED)
            partners = partners_of(maker, flat[unmatched])
            params[PARTNER][unmatched] = partners
            usable = (partners != flat[unmatched] // maker.num_views) & (self._sizes_of(partners)[:, 0] > 0)
            _neutralise(augmentation, params, unmatched[~usable])
        return params

    def _sizes_of(self, examples: np.ndarray) -> np.ndarray:
        """The sizes of examples, int32 (N, 2), once all of them are known: other workers are still decoding some."""
        known, parent = self.sizes.numpy(), os.getppid()
        while not (sizes := known[examples]).all():
            time.sleep(1e-3)
            if os.getppid() != parent:
                raise RuntimeError("the process that made this worker has ended")
        return sizes


def partners_of(maker: ViewMaker, flat: np.ndarray) -> np.ndarray:
    """Returns with which example each view would be mixed, int64 (N,)."""
    examples, views = np.divmod(flat, maker.num_views)
    blocks = examples // (maker.matching_size or len(maker.images))
    partners = examples.copy()
    for block, view in np.unique(np.stack([blocks, views], axis=1), axis=0).tolist():
        here = np.flatnonzero((blocks == block) & (views == view))
        partners[here] = maker.matching(int(examples[here[0]]), view).partners(examples[here])
    return partners


def _neutralise(augmentation: Augmentation, params: dict[str, np.ndarray], where: np.ndarray) -> None:
    """Skips the mixing ops of the views of these numbers, in place (`Augmentation.without_mixing`)."""
    for name, value in augmentation.without_mixing({}).items():
        params[name][where] = value
    params[PARTNER][where] = NO_PARTNER


@dataclass(frozen=True)
class MadeViews:
    """The views of a span, being made on a device.

    Attributes:
        pixels: uint8 (kept views, H, W, 3), on the device.
        hashes: Waits for those of all views with a decodable image; None where the batch has them already.
        batch: All else; its pixels, and its hashes where they are still to come, are empty.
    """

    pixels: torch.Tensor
    hashes: Callable[[], np.ndarray] | None
    batch: ViewBatch

    def finish(self) -> ViewBatch:
        """Waits for the hashes and returns the span as `ViewMaker` would, with its pixels on the device."""
        if self.hashes is None:
            return replace(self.batch, pixels=self.pixels)
        view_hashes = np.zeros(len(self.batch.valid), np.uint64)
        view_hashes[self.batch.valid] = self.hashes()
        return replace(self.batch, pixels=self.pixels, view_hashes=view_hashes)


Arrived = tuple[Decoded | Drawn, Sequence[int]]
"""What has been prepared, and which of the decoded parts before it are not needed any more afterwards, by their numbers."""
_Item = tuple[np.ndarray | Span, Sequence[int]]


class DeviceViewMaker:
    """Makes the views of spans on a device.

    Args:
        maker: Says which views there are.
        device: The device that makes them.
        cache_bytes: Bytes of decoded images that may stay on the device where images are mixed; others are decoded again when
            a view needs them. Default: 16 GB, or a quarter of what is free.
    """

    def __init__(self, maker: ViewMaker, device: torch.device, *, cache_bytes: int | None = None) -> None:
        self.maker = maker
        self.device = device
        self._cache_bytes = cache_bytes

    def batches(self, spans: Sequence[Span], num_workers: int) -> Iterator[MadeViews]:
        """Yields the views of each of the rising spans, in order; all that is given to the device is asynchronous."""
        return self.make(self.prepared(spans, num_workers))

    def prepared(self, spans: Sequence[Span], num_workers: int) -> Iterator[Arrived]:
        """Yields all that the views of spans need, in the order that `make` takes it."""
        sizes = torch.zeros((len(self.maker.images), 2), dtype=torch.int32).share_memory_()
        num_workers = min(num_workers, len(spans))
        items, known = itertools.tee(self._items(spans, num_workers))
        chosen: Any = (item for item, _ in items)  # any iterable will do
        loader: Iterable[Decoded | Drawn] = quiet_loader(
            Preparer(self.maker, sizes),
            batch_size=None,
            sampler=chosen,
            num_workers=num_workers,
            pin_memory=self.device.type == "cuda",
        )
        for (_, gone), arrived in zip(known, loader, strict=True):
            yield arrived, gone

    def make(self, prepared: Iterable[Arrived]) -> Iterator[MadeViews]:
        """Yields the views of each span; all that is given to the device is asynchronous."""
        store = _Store(len(self.maker.images), self.device)
        for arrived, gone in prepared:
            if isinstance(arrived, Decoded):
                store.add(arrived)
            else:
                yield self._views(arrived, store)
                store.drop(gone)

    # ------------------------------------------------------------------------------------------- what is decoded when

    @cached_property
    def allowed_bytes(self) -> int:
        """How much of the device's memory images may take."""
        if self._cache_bytes is not None:
            return self._cache_bytes
        most = 16 << 30
        return min(most, torch.cuda.mem_get_info(self.device)[0] // 4) if self.device.type == "cuda" else most

    @cached_property
    def image_bytes(self) -> float:
        """How many bytes an image takes, by the size of some of them."""
        sampled = np.unique(np.linspace(0, len(self.maker.images) - 1, 16).astype(int))
        sizes = [1]
        for example in sampled.tolist():
            with suppress(DataError):
                image = self.maker.image(example)
                sizes.append(3 * image.height * image.width)
        return float(np.mean(sizes))

    @cached_property
    def capacity(self) -> int:
        """How many images may stay on the device."""
        return int(self.allowed_bytes / self.image_bytes)

    def needed_bytes(self, batch_size: int, num_workers: int) -> int:
        """How much the images take that are there at a time, of a span of `batch_size` views, the next one and all workers."""
        images = batch_size // (self.maker.num_views - self.maker.first_new) + 2  # of which all views are made
        if self.maker.augmentation.mixes:
            images += images * self.maker.num_views
        images = min(images, len(self.maker.images))
        return int((images + max(images, num_workers * self._decoded_at_once)) * self.image_bytes)

    @property
    def _decoded_at_once(self) -> int:
        return int(np.clip(_PART_BYTES / self.image_bytes, 1, _DECODED_AT_ONCE))

    def keeps_images(self) -> bool:
        """Whether the images of all that can be mixed with each other stay on the device."""
        return (self.maker.matching_size or len(self.maker.images)) <= self.capacity

    def _items(self, spans: Sequence[Span], num_workers: int) -> Iterator[_Item]:
        """Yields what workers prepare, in order: the images that a span needs and that are not there, and later the span.

        A span comes late enough that no worker waits for another that still decodes, and after the images of the next one, so
        that an image stays until its last view. Where images are mixed, those that are needed first are decoded first: views
        are made long before all images are there. Some of the others come with each span, so that soon none is missing and
        nobody needs to know in advance who is mixed with whom.
        """
        maker, mixes = self.maker, self.maker.augmentation.mixes
        size = maker.matching_size or len(maker.images)
        keeps = mixes and self.keeps_images()
        there = _There(len(maker.images), 0 if keeps or not mixes else self.capacity, self._decoded_at_once)
        rows = [(span.start // maker.num_views, (span.stop - 1) // maker.num_views + 1) for span in spans]
        last_of_block: dict[int, int] = {}  # the last span of its examples
        for number, (start, stop) in enumerate(rows):
            last_of_block |= dict.fromkeys(range(start // size, (stop - 1) // size + 1), number)
        waiting: deque[tuple[int, int]] = deque()  # a span, and how many items must come before it
        count = 0
        for number, (span, (start, stop)) in enumerate(zip(spans, rows, strict=True)):
            needed, last_block = np.arange(start, stop), (stop - 1) // size
            block = slice(start // size * size, (last_block + 1) * size)
            incomplete = mixes and not (keeps and there.missing(block).size == 0)
            if incomplete:
                needed = np.union1d(needed, partners_of(maker, np.arange(span.start, span.stop)))
            needed_until = last_of_block[last_block] if keeps else number
            for examples in there.add(needed, needed_until):
                yield examples, ()
                count += 1
            waiting.append((number, count + num_workers))
            while len(waiting) > 1 and count >= waiting[0][1]:
                ready, _ = waiting.popleft()
                yield spans[ready], there.drop(ready)
                count += 1
            if keeps and incomplete and len(waiting) <= number:  # the first span does not wait for them
                for examples in there.add(there.missing(block)[:_DECODED_AHEAD], needed_until):
                    yield examples, ()
                    count += 1
        for ready, _ in waiting:
            yield spans[ready], there.drop(ready)

    # -------------------------------------------------------------------------------------------------- on the device

    def _views(self, drawn: Drawn, store: _Store) -> MadeViews:
        span, maker = drawn.span, self.maker
        if drawn.made is not None:
            batch, reason = drawn.made
            tell(reason)
            return MadeViews(batch.pixels.to(self.device), None, batch)
        flat = np.arange(span.start, span.stop)
        height, width = maker.augmentation.size
        pixels_NHWC = torch.empty((0, height, width, 3), dtype=torch.uint8, device=self.device)
        if drawn.program is not None:
            pixels_NHWC = perform(drawn.program, *store.sources(drawn.examples))
        hashes = later_hashes(pixels_NHWC)
        if len(pixels_NHWC) < len(flat):
            shown_NHWC = pixels_NHWC
            pixels_NHWC = pixels_NHWC.new_zeros((len(flat), height, width, 3))
            pixels_NHWC[torch.from_numpy(np.flatnonzero(drawn.valid)).to(self.device)] = shown_NHWC
        kept = flat % maker.num_views >= maker.first_new
        if not kept.all():
            pixels_NHWC = pixels_NHWC[torch.from_numpy(kept).to(self.device)]
        examples = flat // maker.num_views
        error = None if drawn.valid.all() else store.errors[int(examples[~drawn.valid][0])]
        hashes_N, no_hashes = store.hashes[examples], np.zeros(0, np.uint64)
        batch = ViewBatch(span, torch.empty(0), drawn.params, hashes_N, no_hashes, drawn.valid, error)
        return MadeViews(pixels_NHWC, hashes, batch)


class _There:
    """Which images are on the device, by the parts in which they were decoded.

    Args:
        count: Number of all images.
        capacity: Number of images that may stay although no known span needs them.
        at_once: Images of a part.
    """

    def __init__(self, count: int, capacity: int, at_once: int) -> None:
        self._part_of = np.full(count, -1, np.int64)
        # Of each part its images, and the last span that needs it.
        self._parts: OrderedDict[int, tuple[np.ndarray, int]] = OrderedDict()
        self._capacity = capacity
        self._at_once = at_once
        self._next = self._held = 0

    def missing(self, examples: slice) -> np.ndarray:
        """Returns those of these that are not there, rising."""
        return examples.start + np.flatnonzero(self._part_of[examples] < 0)

    def add(self, examples: np.ndarray, span: int) -> list[np.ndarray]:
        """Notes that a span needs these examples, and returns those that are missing, in parts."""
        missing = examples[self._part_of[examples] < 0]
        parts = [missing[n : n + self._at_once] for n in range(0, len(missing), self._at_once)]
        for part in parts:
            self._part_of[part] = self._next
            self._parts[self._next] = part, span
            self._next += 1
        self._held += len(missing)
        for number in np.unique(self._part_of[examples]).tolist():
            self._parts[number] = self._parts[number][0], span
            self._parts.move_to_end(number)
        return parts

    def drop(self, span: int) -> list[int]:
        """Returns the parts that are not kept after a span, by their numbers."""
        gone = []
        while self._parts and self._held > self._capacity:
            number, (examples, last) = next(iter(self._parts.items()))
            if last > span:
                break
            del self._parts[number]
            self._part_of[examples] = -1
            self._held -= len(examples)
            gone.append(number)
        return gone


class _Store:
    """Decoded images on the device; `count` is the number of all images, decoded or not."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.hashes = np.zeros(count, np.uint64)
        self.errors: dict[int, str] = {}
        self._device = device
        self._parts: dict[int, torch.Tensor] = {}
        self._part_of, self._offsets = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._next = 0

    def add(self, decoded: Decoded) -> None:
        """Takes a part; parts are numbered as they come."""
        try:
            self._parts[self._next] = to_device(decoded.pixels, self._device)
        except torch.OutOfMemoryError as error:
            raise ViewMemoryError(
                f"the images of the views that come next must fit into the memory of {self._device}: {error} Lower the batch "
                "size or `num_workers`, or make the views on the CPU (`augment_on cpu`)."
            ) from error
        self._part_of[decoded.examples], self._offsets[decoded.examples] = self._next, decoded.offsets
        self.hashes[decoded.examples] = decoded.hashes
        self.errors |= decoded.errors
        self._next += 1

    def drop(self, parts: Sequence[int]) -> None:
        """Frees parts."""
        for number in parts:
            del self._parts[number]

    def sources(self, examples: np.ndarray) -> tuple[list[torch.Tensor], tuple[np.ndarray, np.ndarray]]:
        """Returns the buffers of some images, and for each image its buffer and where it begins there."""
        numbers, buffers = np.unique(self._part_of[examples], return_inverse=True)
        return [self._parts[number] for number in numbers.tolist()], (buffers, self._offsets[examples])

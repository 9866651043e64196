"""Making views on a device for a teacher: each image is decoded once and crosses to the device once.

Workers decode, and draw the parameters of all V views of an image; the main process assembles the spans that the teacher
sees, in today's order. Columns are those that `hf_dr.views.maker.ViewMaker` makes, to the byte.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch

from hf_dr.errors import DataError
from hf_dr.processes import quiet_worker
from hf_dr.views.augmentation import NO_PARTNER, PARTNER, Augmentation
from hf_dr.views.device.augment import DeviceAugmentation
from hf_dr.views.device.hashing import ViewHashes
from hf_dr.views.device.images import Images
from hf_dr.views.device.packing import columns, trim
from hf_dr.views.device.plan import NotOnDeviceError
from hf_dr.views.images import pixel_hash
from hf_dr.views.maker import Span, ViewBatch, ViewMaker
from hf_dr.views.ops.base import Params
from hf_dr.views.rng import view_rng

logger = logging.getLogger(__name__)

_UNMATCHED = -2  # a view that is mixed, until it is known with whom


@dataclass(frozen=True)
class Flight:
    """The images of E consecutive examples and the parameters of all their views.

    Attributes:
        first: The first example.
        images: E images; of an undecodable one a single pixel.
        params: Columns (E, V, ...) in the stored dtypes; 0 where the image is undecodable.
        image_hashes: uint64 (E,).
        errors: Why an image could not be decoded, or None; E of them.
        partners: P images of partners, perhaps trimmed, where they travel with the examples; else none.
        partner_params: Columns (P, ...), of the ops that need one image only.
        partner_places: int64 (E, V), place among the P; -1 where none.
    """

    first: int
    images: Images
    params: dict[str, np.ndarray]
    image_hashes: np.ndarray
    errors: list[str | None]
    partners: Images | None = None
    partner_params: dict[str, np.ndarray] | None = None
    partner_places: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.errors)

    @property
    def valid(self) -> np.ndarray:
        """Which images could be decoded, bool (E,)."""
        return np.array([error is None for error in self.errors])

    @property
    def num_bytes(self) -> int:
        """Bytes of pixels."""
        return len(self.images.data) + (0 if self.partners is None else len(self.partners.data))

    def pin_memory(self) -> Flight:
        """Returns the flight with its pixels in pinned memory, for a loader's thread."""
        partners = self.partners if self.partners is None else self.partners.pin_memory()
        return replace(self, images=self.images.pin_memory(), partners=partners)

    def to(self, device: torch.device) -> Flight:
        """Returns the flight with its pixels on a device."""
        partners = self.partners if self.partners is None else self.partners.to(device)
        return replace(self, images=self.images.to(device), partners=partners)

    @classmethod
    def join(cls, flights: Sequence[Flight]) -> Flight:
        """Returns flights that follow each other as one."""
        first = flights[0]
        if len(flights) == 1:
            return first
        joined = replace(
            first,
            images=Images.join([flight.images for flight in flights]),
            params=_stacked([flight.params for flight in flights]),
            image_hashes=np.concatenate([flight.image_hashes for flight in flights]),
            errors=[error for flight in flights for error in flight.errors],
        )
        if first.partners is None:
            return joined
        starts = np.cumsum([0, *(len(flight.partners or ()) for flight in flights[:-1])])
        places = [
            np.where(flight.partner_places >= 0, flight.partner_places + start, -1)
            for flight, start in zip(flights, starts, strict=True)
            if flight.partner_places is not None
        ]
        return replace(
            joined,
            partners=Images.join([flight.partners for flight in flights if flight.partners is not None]),
            partner_params=_stacked([flight.partner_params or {} for flight in flights]),
            partner_places=np.concatenate(places),
        )


def _stacked(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Drawn:
    """The parameters of the N views of a span, and of the partners' views that P of them are mixed with.

    Attributes:
        params: Columns (N, ...) in the stored dtypes; 0 where the image is undecodable.
        partner_params: Columns (P, ...), of the ops that need one image only.
        mixed: int64 (P,), which of the N are mixed, rising; the partners' examples are in `params`.
    """

    params: dict[str, np.ndarray]
    partner_params: dict[str, np.ndarray]
    mixed: np.ndarray


class FlightMaker(torch.utils.data.Dataset):
    """Decodes examples and draws the parameters of views; picklable, for a loader's workers.

    Args:
        maker: Says which views there are.
        sizes: Shared memory, int32 (examples, 2), where the images of all examples stay on the device: a range of examples
            is only decoded then, and its sizes are entered there (-1 for an undecodable image), for whoever draws a span.
            None: the parameters come with the images, and so do the images of partners.
    """

    def __init__(self, maker: ViewMaker, sizes: torch.Tensor | None = None) -> None:
        self.maker = maker
        self.sizes = sizes

    @overload
    def __getitem__(self, item: range) -> Flight: ...

    @overload
    def __getitem__(self, item: Span) -> Drawn: ...

    def __getitem__(self, item: range | Span) -> Flight | Drawn:
        return self._draw(item) if isinstance(item, Span) else self._decode(item)

    def _decode(self, examples: range) -> Flight:
        pixels: list[np.ndarray] = []
        errors: list[str | None] = []
        hashes = np.zeros(len(examples), np.uint64)
        sizes = np.full((len(examples), 2), -1, np.int32)
        for row, example in enumerate(examples):
            try:
                image = self.maker.image(example)
            except DataError as error:
                errors.append(str(error))
                pixels.append(np.zeros((1, 1, 3), np.uint8))
                continue
            errors.append(None)
            hashes[row], sizes[row] = pixel_hash(image), (image.height, image.width)
            pixels.append(np.asarray(image))
        flight = Flight(examples.start, Images.pack(pixels), {}, hashes, errors)
        if self.sizes is not None:
            self.sizes[examples.start : examples.stop] = torch.from_numpy(sizes)
            return flight
        views = self.maker.num_views
        flat = np.arange(examples.start * views, examples.stop * views)
        params = self._sample(flat, np.repeat(sizes, views, axis=0))
        if self.maker.augmentation.mixes:
            flight = self._carrying(flight, flat, params)
        shaped = {name: values.reshape(len(examples), views, *values.shape[1:]) for name, values in params.items()}
        return replace(flight, params=shaped)

    def _sample(self, flat: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """The parameters of views, with partners entered, for images of these sizes (N, 2)."""
        maker, augmentation = self.maker, self.maker.augmentation
        params = {
            name: np.zeros(len(flat) if p.length is None else (len(flat), p.length), p.dtype)
            for name, p in augmentation.params.items()
        }
        for n in np.flatnonzero(sizes[:, 0] > 0).tolist():
            example, view = divmod(int(flat[n]), maker.num_views)
            height, width = sizes[n].tolist()
            drawn = augmentation.sample(view_rng(maker.seed, example, view), (height, width))
            if augmentation.mixes:
                drawn[PARTNER] = _UNMATCHED if augmentation.needs_partner(drawn) else NO_PARTNER
            for name, value in drawn.items():
                params[name][n] = value
        if augmentation.mixes:
            self._match(flat, params)
        return params

    def _match(self, flat: np.ndarray, params: dict[str, np.ndarray]) -> None:
        """Enters the partners of views, in place; those without one do not mix."""
        maker, partners = self.maker, params[PARTNER]
        examples, views = np.divmod(flat, maker.num_views)
        size = maker.matching_size or len(maker.images)
        unmatched = partners == _UNMATCHED
        groups = np.where(unmatched, examples // size * maker.num_views + views, -1)
        for group in np.unique(groups[unmatched]).tolist():
            block, view = divmod(group, maker.num_views)
            here = np.flatnonzero(groups == group)
            partners[here] = maker.matching(block * size, view).partners(examples[here])
        _neutralise(maker.augmentation, params, unmatched & (partners == examples))

    def _carrying(self, flight: Flight, flat: np.ndarray, params: dict[str, np.ndarray]) -> Flight:
        """Adds the images of partners, each cut to what its view needs."""
        maker, augmentation = self.maker, self.maker.augmentation
        valid = np.repeat(flight.valid, maker.num_views)
        places = np.full(len(flat), -1, np.int64)
        pixels: list[np.ndarray] = []
        drawn: list[Params] = []
        undecodable = np.zeros(len(flat), bool)
        for n in np.flatnonzero((params[PARTNER] != NO_PARTNER) & valid).tolist():
            partner, view = int(params[PARTNER][n]), int(flat[n]) % maker.num_views
            try:
                image = maker.image(partner)
            except DataError:
                undecodable[n] = True  # its own row reports it
                continue
            own = augmentation.sample(view_rng(maker.seed, partner, view), (image.height, image.width))
            trimmed, own = trim(augmentation, image, own)
            places[n] = len(pixels)
            pixels.append(trimmed)
            drawn.append(own)
        _neutralise(augmentation, params, undecodable)
        return replace(
            flight,
            partners=Images.pack(pixels),
            partner_params=columns(augmentation, drawn, mixing=False),
            partner_places=places.reshape(len(flight), maker.num_views),
        )

    def _draw(self, span: Span) -> Drawn:
        maker, augmentation = self.maker, self.maker.augmentation
        flat = np.arange(span.start, span.stop)
        sizes = self._sizes_of(flat // maker.num_views)
        params = self._sample(flat, sizes)
        mixed = np.flatnonzero((params[PARTNER] != NO_PARTNER) & (sizes[:, 0] > 0))
        partners = params[PARTNER][mixed].astype(np.int64)
        their_sizes = self._sizes_of(partners)
        lost = np.zeros(len(flat), bool)
        lost[mixed[their_sizes[:, 0] < 0]] = True
        _neutralise(augmentation, params, lost)
        usable = their_sizes[:, 0] > 0
        mixed, partners, their_sizes = mixed[usable], partners[usable], their_sizes[usable]
        drawn = [
            augmentation.sample(view_rng(maker.seed, partner, view), (size[0], size[1]))
            for partner, view, size in zip(
                partners.tolist(), (flat[mixed] % maker.num_views).tolist(), their_sizes.tolist(), strict=True
            )
        ]
        return Drawn(params, columns(augmentation, drawn, mixing=False), mixed)

    def _sizes_of(self, examples: np.ndarray) -> np.ndarray:
        """The sizes of examples, int32 (N, 2), once all of them are known: other workers are still decoding some."""
        assert self.sizes is not None
        known = self.sizes.numpy()
        while not (sizes := known[examples]).all():
            time.sleep(1e-3)
        return sizes


def _neutralise(augmentation: Augmentation, params: dict[str, np.ndarray], where: np.ndarray) -> None:
    """Skips the mixing ops of some views, in place (`Augmentation.without_mixing`)."""
    if not where.any():
        return
    for name, value in augmentation.without_mixing({}).items():
        params[name][where] = value
    params[PARTNER][where] = NO_PARTNER


@dataclass(frozen=True)
class MadeViews:
    """The views of a span, being made on a device.

    Attributes:
        pixels: uint8 (kept views, H, W, 3), on the device.
        hashes: Of all views with a decodable image; None where the batch has them already.
        batch: All else; its pixels, and its hashes where they are still to come, are empty.
    """

    pixels: torch.Tensor
    hashes: ViewHashes | None
    batch: ViewBatch

    def finish(self) -> ViewBatch:
        """Waits for the hashes and returns the span as `ViewMaker` would, with its pixels on the device."""
        if self.hashes is None:
            return replace(self.batch, pixels=self.pixels)
        view_hashes = np.zeros(len(self.batch.valid), np.uint64)
        view_hashes[self.batch.valid] = self.hashes.get()
        return replace(self.batch, pixels=self.pixels, view_hashes=view_hashes)


class DeviceViewMaker:
    """Makes the views of spans on a device.

    Args:
        maker: Says which views there are.
        device: Where they are made.
        cache_bytes: Images of partners stay on the device while all that can be mixed with each other fit into so many
            bytes; otherwise each is decoded for every view that needs it.
    """

    def __init__(
        self,
        maker: ViewMaker,
        device: torch.device,
        *,
        cache_bytes: int = 16 << 30,
    ) -> None:
        self.maker = maker
        self.device = device
        self.augmenter = DeviceAugmentation(maker.augmentation)
        self.cache_bytes = cache_bytes
        self._told = False

    def keeps_images(self) -> bool:
        """Whether the images of all possible partners stay on the device, by the size of some of them."""
        count = self.maker.matching_size or len(self.maker.images)
        sampled = np.unique(np.linspace(0, len(self.maker.images) - 1, 16).astype(int))
        sizes = []
        for example in sampled.tolist():
            try:
                image = self.maker.image(example)
            except DataError:
                continue
            sizes.append(3 * image.height * image.width)
        return 2 * count * float(np.mean(sizes or [0])) < self.cache_bytes  # twice: joined from the parts that arrive

    def batches(self, spans: Sequence[Span], num_workers: int, *, batch_views: int = 256) -> Iterator[MadeViews]:
        """Yields the views of each span, in order; all that is given to the device is asynchronous.

        Args:
            spans: In rising order.
            num_workers: Processes that decode and draw.
            batch_views: About so many views a worker prepares at a time.
        """
        keeps = self.maker.augmentation.mixes and self.keeps_images()
        sizes = torch.zeros((len(self.maker.images), 2), dtype=torch.int32).share_memory_() if keeps else None
        step = max(1, batch_views // self.maker.num_views)
        blocks = list(self._blocks(spans, keeps=keeps))
        items: list[range | Span] = []
        covered = 0
        for block, of_block in blocks:
            start = max(block.start, covered)
            items += [range(n, min(n + step, block.stop)) for n in range(start, block.stop, step)]
            items += of_block if keeps else []
            covered = block.stop
        loader = torch.utils.data.DataLoader(
            FlightMaker(self.maker, sizes),
            batch_size=None,
            sampler=items,
            num_workers=min(num_workers, len(items)),
            pin_memory=self.device.type == "cuda",
            worker_init_fn=quiet_worker,
        )
        arriving = iter(loader)
        there: list[Flight] = []
        joined: Flight | None = None
        for block, of_block in blocks:
            kept = [flight for flight in there if flight.first + len(flight) > block.start]
            joined = joined if len(kept) == len(there) else None
            there = kept
            while not there or there[-1].first + len(there[-1]) < block.stop:
                there.append(next(arriving).to(self.device))
                joined = None
            joined = Flight.join(there) if joined is None else joined
            there = [joined] if keeps else there  # the parts are in it
            for span in of_block:
                yield self.make(span, joined, next(arriving) if keeps else None)

    def _blocks(self, spans: Sequence[Span], *, keeps: bool) -> Iterator[tuple[range, list[Span]]]:
        """The examples that must be there for a few spans, and those spans."""
        views, size = self.maker.num_views, self.maker.matching_size or len(self.maker.images)
        groups: list[tuple[range, list[Span]]] = []
        for span in spans:
            first, last = span.start // views, (span.stop - 1) // views
            if keeps:
                first, last = first // size * size, (last // size + 1) * size - 1
            block = range(first, min(last + 1, len(self.maker.images)))
            if groups and groups[-1][0] == block:
                groups[-1][1].append(span)
            else:
                groups.append((block, [span]))
        return iter(groups)

    def flight(self, span: Span) -> Flight:
        """Decodes and draws, in this process, all that the views of a span need; it is still to be sent to the device."""
        views = self.maker.num_views
        return FlightMaker(self.maker)[range(span.start // views, (span.stop - 1) // views + 1)]

    def make(self, span: Span, flight: Flight, drawn: Drawn | None = None) -> MadeViews:
        """Makes the views of a span; all that is given to the device is asynchronous.

        Args:
            span: Which views.
            flight: Holds their images, on the device.
            drawn: Their parameters, where they do not come with the flight.
        """
        try:
            return self._make_here(span, flight, drawn)
        except NotOnDeviceError as error:
            if not self._told:
                logger.warning("Some views are made on the CPU, which takes longer: %s.", error)
                self._told = True
            batch = self.maker[span]
            return MadeViews(batch.pixels.to(self.device), None, batch)

    def _make_here(self, span: Span, flight: Flight, drawn: Drawn | None) -> MadeViews:
        maker, flat = self.maker, np.arange(span.start, span.stop)
        rows, views = flat // maker.num_views - flight.first, flat % maker.num_views
        valid = flight.valid[rows]
        params = (
            {name: values[rows, views] for name, values in flight.params.items()} if drawn is None else drawn.params
        )
        good = np.flatnonzero(valid)
        pixels_NHWC = self._perform(flight, good, rows[good], params, self._others(flight, drawn, rows, views))
        hashes = ViewHashes(pixels_NHWC)
        if len(good) < len(flat):
            shown_NHWC = pixels_NHWC
            pixels_NHWC = pixels_NHWC.new_zeros((len(flat), *pixels_NHWC.shape[1:]))
            pixels_NHWC[torch.from_numpy(good).to(self.device)] = shown_NHWC
        kept = views >= maker.first_kept
        if not kept.all():
            pixels_NHWC = pixels_NHWC[torch.from_numpy(kept).to(self.device)]
        bad = [flight.errors[row] for row in rows[~valid].tolist()]
        batch = ViewBatch(
            span,
            torch.empty(0),
            params,
            flight.image_hashes[rows],
            np.zeros(0, np.uint64),
            valid,
            bad[0] if bad else None,
        )
        return MadeViews(pixels_NHWC, hashes, batch)

    def _others(
        self, flight: Flight, drawn: Drawn | None, rows: np.ndarray, views: np.ndarray
    ) -> tuple[np.ndarray, Images, dict[str, np.ndarray]] | None:
        """Which views of a span are mixed, the images of their partners, and the parameters of the partners' views."""
        if not self.maker.augmentation.mixes:
            return None
        if drawn is not None:
            partners = drawn.params[PARTNER][drawn.mixed].astype(np.int64) - flight.first
            return drawn.mixed, flight.images.select(partners), drawn.partner_params
        assert flight.partners is not None
        assert flight.partner_params is not None
        assert flight.partner_places is not None
        places = flight.partner_places[rows, views]
        mixed = np.flatnonzero(places >= 0)
        theirs = {name: values[places[mixed]] for name, values in flight.partner_params.items()}
        return mixed, flight.partners.select(places[mixed]), theirs

    def _perform(
        self,
        flight: Flight,
        good: np.ndarray,
        rows: np.ndarray,
        params: dict[str, np.ndarray],
        others: tuple[np.ndarray, Images, dict[str, np.ndarray]] | None,
    ) -> torch.Tensor:
        """Makes the views of a span whose images are good, uint8 (good, H, W, 3)."""
        height, width = self.maker.augmentation.size or (0, 0)
        if not len(good):
            return torch.empty((0, height, width, 3), dtype=torch.uint8, device=self.device)
        own = {name: values[good] for name, values in self.augmenter.single_params(params).items()}
        images = flight.images.select(rows)
        if others is None:
            return self.augmenter.apply(images, own)
        mixed, their_images, theirs = others
        partners = np.full(len(good), -1, np.int64)
        partners[np.searchsorted(good, mixed)] = len(good) + np.arange(len(mixed))
        pool_MHWC = self._pool(images, own, their_images, theirs)
        return self.augmenter.mix(pool_MHWC, {name: values[good] for name, values in params.items()}, partners)

    def _pool(
        self, images: Images, own: dict[str, np.ndarray], others: Images, theirs: dict[str, np.ndarray]
    ) -> torch.Tensor:
        """The unmixed views of a span and of its partners, one after the other."""
        if not len(others):
            return self.augmenter.apply(images, own)
        if images.data.data_ptr() == others.data.data_ptr():
            windows = (
                np.concatenate([getattr(images, name), getattr(others, name)])
                for name in ("offsets", "heights", "widths", "strides")
            )
            both = Images(images.data, *windows)
            return self.augmenter.apply(both, _stacked([own, theirs]))
        return torch.cat([self.augmenter.apply(images, own), self.augmenter.apply(others, theirs)])

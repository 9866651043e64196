"""What a worker hands over when a device makes the views: source pixels, and the program that makes views of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import PIL.Image
import torch

from hf_dr.errors import ConfigError, ReplayError
from hf_dr.text import format_bytes
from hf_dr.views.augmentation import Augmentation, KeyedOp, stored_params
from hf_dr.views.device.augment import DeviceAugmentation, perform
from hf_dr.views.device.images import pack, pinned
from hf_dr.views.device.overlap import side_stream, to_device
from hf_dr.views.device.plan import NotOnDeviceError
from hf_dr.views.device.program import Program
from hf_dr.views.ops.base import Params
from hf_dr.views.ops.geometry import RandomResizedCrop

logger = logging.getLogger(__name__)

# Of the images of a batch. Loaders hold several batches for each worker, so photos of dozens of megapixels must not travel.
MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Source:
    """One image and the parameters of one view of it, mixing left out.

    Attributes:
        key: What tells the sources of a whole dataset apart, a tuple that ends with row and view, for messages; equal keys are
            augmented once in a batch.
        pixels: uint8 (H, W, 3), perhaps only the box that the first op crops.
        params: Parameters of the ops that need one image only.
    """

    key: Any
    pixels: np.ndarray
    params: Params


@dataclass(frozen=True)
class UndoneView:
    """One view that a device has to make.

    Attributes:
        own: The view's image.
        partner: What it is mixed with; None where nothing is mixed.
        params: Parameters of all ops; those of mixing are read.
    """

    own: Source
    partner: Source | None
    params: Params

    # Looks like a sequence, so that `torch.tensor`, in the collator of a loader of one's own, asks for its length. Else it
    # would say no more than that it does not know the type.
    def __getitem__(self, _: int) -> int:
        return len(self)

    def __len__(self) -> int:
        raise ConfigError(
            "a loader of your own must read views that are made, got one that the device is still to make, as the trainer's "
            "own loader reads them. Read the trainer's `train_dataset`, or set `augment_on` to `cpu`."
        )


def trim(augmentation: Augmentation, image: PIL.Image.Image, params: Params) -> tuple[np.ndarray, Params]:
    """Cuts an image to the box that the first op crops, so that only that has to travel.

    Returns:
        Pixels, uint8 (H, W, 3), and the parameters that make the same view of them. A box that leaves the image is left to
        be refused.
    """
    op, keys = augmentation.single[0]
    if not isinstance(op, RandomResizedCrop):
        return np.asarray(image), params
    name = keys["box"]
    top, left, height, width = map(int, params[name])
    inside = min(top, left) >= 0 and top + height <= image.height and left + width <= image.width
    if not inside or min(height, width) < 1:
        return np.asarray(image), params
    cropped = image.crop((left, top, left + width, top + height))
    return np.asarray(cropped), {**params, name: (0, 0, height, width)}


def columns(ops: Sequence[KeyedOp], rows: Sequence[Params]) -> dict[str, np.ndarray]:
    """Gathers what some of the ops need of single views into columns in the stored dtypes: (N,) or (N, n)."""
    return {name: np.array([row[name] for row in rows], param.dtype) for name, param in stored_params(ops).items()}


@dataclass(frozen=True)
class UndoneBatch:
    """N views that a device has to make: `to` starts the work there, `DoneBatch.pixels` waits for it.

    All that depends on sizes and parameters is in the program, so whoever calls `to` only copies two tensors and launches.

    Attributes:
        pixels: uint8 (bytes,), of all images; without a program the views themselves, (N, H, W, 3).
        program: Makes the views.
        refused: Why Pillow made the views, where there is no program.
    """

    pixels: torch.Tensor
    program: Program | None
    refused: str | None = None

    @classmethod
    def pack(
        cls, augmenter: DeviceAugmentation, views: Sequence[UndoneView], *, most_bytes: int = MOST_BYTES
    ) -> UndoneBatch:
        """Puts the images of views into one buffer, each only once, and plans by an `augmenter` what is done to them.

        Pillow makes the views of images that take more than `most_bytes`. A ReplayError names row and view of parameters that
        do not fit their image.
        """
        sources = [view.own for view in views]
        place = {source.key: n for n, source in enumerate(sources)}
        partners = []
        for view in views:
            if view.partner is not None and view.partner.key not in place:
                place[view.partner.key] = len(sources)
                sources.append(view.partner)
            partners.append(-1 if view.partner is None else place[view.partner.key])
        augmentation = augmenter.augmentation
        try:
            num_bytes = sum(source.pixels.size for source in sources)
            if num_bytes > most_bytes:
                raise NotOnDeviceError(f"the images of a batch take more than {format_bytes(most_bytes)}")
            pixels, images = pack([source.pixels for source in sources])
            single = columns(augmentation.single, [source.params for source in sources])
            mixing = columns(augmentation.mixing, [view.params for view in views])
            return cls(pixels, augmenter.program(images, single, mixing, np.array(partners, np.int64)))
        except NotOnDeviceError as error:
            return cls(_made_by_pillow(augmentation, views, sources, partners), None, str(error))
        except ReplayError:
            _made_by_pillow(augmentation, views, sources, partners)  # refuses the same view, and names it
            raise

    def pin_memory(self) -> UndoneBatch:
        """Returns the batch in pinned memory, for a loader's thread."""
        program = None if self.program is None else self.program.pin_memory()
        return replace(self, pixels=pinned(self.pixels), program=program)

    def to(self, device: torch.device | str, **_: Any) -> DoneBatch:
        """Starts to make the views on a device, on a stream of its own next to what runs there."""
        device = torch.device(device)
        if self.refused is not None:
            tell(self.refused)
        if device.type != "cuda":
            return DoneBatch(self._make(device), None)
        stream = side_stream(device, "views")
        with torch.cuda.stream(stream):
            views_NHWC = self._make(device)
            done = torch.cuda.Event()
            done.record(stream)
        return DoneBatch(views_NHWC, done)

    def _make(self, device: torch.device) -> torch.Tensor:
        pixels = to_device(self.pixels, device)
        return pixels if self.program is None else perform(self.program, [pixels])


@lru_cache(maxsize=64)
def tell(reason: str) -> None:
    """Says once why views are not made on the device."""
    logger.warning("Some views are made on the CPU, which takes longer: %s.", reason)


def _made_by_pillow(
    augmentation: Augmentation, views: Sequence[UndoneView], sources: Sequence[Source], partners: Sequence[int]
) -> torch.Tensor:
    """Makes views of all sources, and mixes those of `views` with their partners; uint8 (N, H, W, 3)."""
    single, made = [], []
    for source in sources:
        with _named(source):
            single.append(augmentation.apply(PIL.Image.fromarray(source.pixels), source.params))
    for n, (view, partner) in enumerate(zip(views, partners, strict=True)):
        with _named(view.own):
            made.append(augmentation.mix(single[n], view.params, None if partner < 0 else single[partner]))
    return torch.from_numpy(np.stack([np.asarray(view) for view in made]))


@contextmanager
def _named(source: Source) -> Iterator[None]:
    """Says in a refusal of parameters which view they are of."""
    try:
        yield
    except ReplayError as error:
        raise ReplayError("row {}, view {}: {}".format(*source.key[-2:], error)) from None


@dataclass(frozen=True)
class DoneBatch:
    """Views that are being made on a device."""

    _views: torch.Tensor
    _done: torch.cuda.Event | None

    def pixels(self, *, channels_last: bool = False) -> torch.Tensor:
        """Returns the views, uint8 (N, 3, H, W), for use on the current stream.

        With `channels_last` they keep the order of memory in which they were made; else they get that of a loader's batch.
        """
        if self._done is not None:
            stream = torch.cuda.current_stream(self._views.device)
            stream.wait_event(self._done)
            self._views.record_stream(stream)
        views_NCHW = self._views.permute(0, 3, 1, 2)
        return views_NCHW if channels_last else views_NCHW.contiguous()

    @classmethod
    def __torch_function__(cls, func: Any, *_: Any, **__: Any) -> Any:
        raise ReplayError(
            f"views that are being made on a device must be taken as a tensor before `{func.__name__}`: "
            '`batch["pixel_values"].pixels()`; or make them on the CPU (`augment_on="cpu"`).'
        )

    def numel(self) -> int:
        """Returns the number of levels, as a tensor of pixels would."""
        return self._views.numel()

    def to(self, *_: Any, **__: Any) -> DoneBatch:
        """Returns itself: it is where it belongs."""
        return self

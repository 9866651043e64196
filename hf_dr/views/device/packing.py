"""What a worker hands over when it only decodes: source pixels and parameters, still to be augmented on a device."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
import torch

from hf_dr.errors import ReplayError
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.device.augment import DeviceAugmentation
from hf_dr.views.device.images import Images
from hf_dr.views.device.overlap import side_stream
from hf_dr.views.device.plan import NotOnDeviceError, row_of
from hf_dr.views.ops.base import Params
from hf_dr.views.ops.geometry import RandomResizedCrop

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One image and the parameters of one view of it, mixing left out.

    Attributes:
        key: What tells sources apart, a tuple that ends with row and view; equal keys are augmented once in a batch.
        pixels: uint8 (H, W, 3), perhaps only the box that the first op crops.
        params: Of the ops that need one image only.
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
        params: Of all ops; those of mixing are read.
    """

    own: Source
    partner: Source | None
    params: Params


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


def columns(augmentation: Augmentation, rows: Sequence[Params], *, mixing: bool) -> dict[str, np.ndarray]:
    """Gathers parameters of single views into columns in the stored dtypes: (N,) or (N, n)."""
    ops = augmentation.mixing if mixing else augmentation.single
    stored = {keys[local]: param for op, keys in ops for local, param in op.params.items()}
    return {name: np.array([row[name] for row in rows], param.dtype) for name, param in stored.items()}


@dataclass(frozen=True)
class UndoneBatch:
    """N views that a device has to make: `to` starts the work there, `DoneBatch.pixels` waits for it.

    Attributes:
        augmenter: Makes the views.
        images: M >= N images.
        params: Columns (M, ...), of the ops that need one image only.
        mixing: Columns (N, ...), of the mixing ops.
        partners: int64 (N,), places among the M; -1 where nothing is mixed.
        names: What messages call each of the M.
    """

    augmenter: DeviceAugmentation
    images: Images
    params: dict[str, np.ndarray]
    mixing: dict[str, np.ndarray]
    partners: np.ndarray
    names: tuple[str, ...]

    @classmethod
    def pack(cls, augmenter: DeviceAugmentation, views: Sequence[UndoneView]) -> UndoneBatch:
        """Puts the images of views into one buffer, each only once."""
        sources = [view.own for view in views]
        place = {source.key: n for n, source in enumerate(sources)}
        partners = []
        for view in views:
            if view.partner is not None and view.partner.key not in place:
                place[view.partner.key] = len(sources)
                sources.append(view.partner)
            partners.append(-1 if view.partner is None else place[view.partner.key])
        augmentation = augmenter.augmentation
        return cls(
            augmenter,
            Images.pack([source.pixels for source in sources]),
            columns(augmentation, [source.params for source in sources], mixing=False),
            columns(augmentation, [view.params for view in views], mixing=True),
            np.array(partners, np.int64),
            tuple("row {}, view {}".format(*source.key[-2:]) for source in sources),
        )

    def __len__(self) -> int:
        return len(self.partners)

    def pin_memory(self) -> UndoneBatch:
        """Returns the batch with its pixels in pinned memory, for a loader's thread."""
        return replace(self, images=self.images.pin_memory())

    def to(self, device: torch.device | str, **_: Any) -> DoneBatch:
        """Starts to make the views on a device, on a stream of its own next to what runs there."""
        device = torch.device(device)
        if device.type != "cuda":
            return DoneBatch(self._make(device), None)
        stream = side_stream(device, "views")
        with torch.cuda.stream(stream):
            views_NHWC = self._make(device)
            done = torch.cuda.Event()
            done.record(stream)
        return DoneBatch(views_NHWC, done)

    def _make(self, device: torch.device) -> torch.Tensor:
        try:
            pool_MHWC = self.augmenter.apply(self.images.to(device), self.params)
        except NotOnDeviceError as error:
            logger.warning("Some views are made on the CPU, which takes longer: %s.", error)
            return self._made_by_pillow().to(device)
        except ReplayError:
            self._made_by_pillow()  # refuses the same view, and names it
            raise
        try:
            return self.augmenter.mix(pool_MHWC, self.mixing, self.partners)
        except ReplayError:
            self._made_by_pillow()
            raise

    def _made_by_pillow(self) -> torch.Tensor:
        augmentation = self.augmenter.augmentation
        images = (PIL.Image.fromarray(self.images.image(n).cpu().numpy()) for n in range(len(self.images)))
        single = []
        for n, image in enumerate(images):
            with _named(self.names[n]):
                single.append(augmentation.apply(image, row_of(self.params, n)))
        views = []
        for n, partner in enumerate(self.partners.tolist()):
            other = None if partner < 0 else single[partner]
            with _named(self.names[n]):
                views.append(augmentation.mix(single[n], row_of(self.mixing, n), other))
        return torch.from_numpy(np.stack([np.asarray(view) for view in views]))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Says in a refusal of parameters which view they are of."""
    try:
        yield
    except ReplayError as error:
        raise ReplayError(f"{name}: {error}") from None


@dataclass(frozen=True)
class DoneBatch:
    """Views that are being made on a device."""

    _views: torch.Tensor
    _done: torch.cuda.Event | None

    def pixels(self, *, channels_last: bool = False) -> torch.Tensor:
        """Returns the views, uint8 (N, 3, H, W), for use on the current stream.

        Args:
            channels_last: Leave them in the order of memory in which they were made, else as a loader stacks them.
        """
        if self._done is not None:
            stream = torch.cuda.current_stream(self._views.device)
            stream.wait_event(self._done)
            self._views.record_stream(stream)
        views_NCHW = self._views.permute(0, 3, 1, 2)
        return views_NCHW if channels_last else views_NCHW.contiguous()

    def numel(self) -> int:
        """Returns the number of levels, as a tensor of pixels would."""
        return self._views.numel()

    def to(self, *_: Any, **__: Any) -> DoneBatch:
        """Returns itself: it is where it belongs."""
        return self

"""Augmented views of whole batches on a device."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import torch

from hf_dr.errors import ReplayError
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.device import eager
from hf_dr.views.device.images import Images
from hf_dr.views.device.plan import Columns, NotOnDeviceError, Step, plan, plan_mixing, unsupported


class DeviceAugmentation:
    """Performs an augmentation on batches of images that lie on a device, with the pixels that Pillow gives.

    Args:
        augmentation: The ops; `unsupported` says nothing against them.

    Raises:
        NotOnDeviceError: An op or setting has no device version.
    """

    def __init__(self, augmentation: Augmentation) -> None:
        reasons = unsupported(augmentation)
        if reasons:
            raise NotOnDeviceError("; ".join(reasons))
        self.augmentation = augmentation

    def apply(self, images: Images, params: Columns) -> torch.Tensor:
        """Performs the ops that need one image only.

        Args:
            images: N images; those of several views may be the same.
            params: The parameters of N views by their names in the augmentation.

        Returns:
            uint8 (N, H, W, 3), contiguous, on the device of the images.

        Raises:
            ReplayError: Parameters do not fit their image; the same error as the op's own.
            NotOnDeviceError: An image is too large for the device version of an op.
        """
        steps = plan(self.augmentation, params, images.heights, images.widths)
        run, _ = _engine(images.data.device)
        return run(images, steps).batch().contiguous()

    def mix(self, pool_MHWC: torch.Tensor, params: Columns, partners: np.ndarray) -> torch.Tensor:
        """Performs the mixing ops.

        Args:
            pool_MHWC: Views as `apply` returns them; the first N are mixed, with any of all M. Not changed.
            params: The parameters of the first N.
            partners: int64 (N,), the place of each view's partner in the pool; -1 where nothing is mixed.

        Returns:
            uint8 (N, H, W, 3).

        Raises:
            ReplayError: A view mixes and has no partner, or a parameter is damaged.
        """
        views_NHWC = pool_MHWC[: len(partners)]
        if not self.augmentation.mixes:
            return views_NHWC
        mixes = plan_mixing(self.augmentation, params)
        for step in mixes:
            alone = np.flatnonzero(step.active & (partners < 0))
            if len(alone):
                raise ReplayError(f"view {alone[0]} of the batch needs a partner image, found none.")
        _, mix = _engine(pool_MHWC.device)
        views_NHWC = views_NHWC.clone()
        for step in mixes:
            mix(views_NHWC, pool_MHWC, partners, step)
        return views_NHWC

    def single_params(self, params: Columns) -> dict[str, np.ndarray]:
        """Returns those parameters that `apply` reads."""
        return {key: params[key] for _, keys in self.augmentation.single for key in keys.values()}


def is_fast_on(device: torch.device) -> bool:
    """Whether a device makes the views of a whole batch at once; on others they are made one by one."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


_Run = Callable[[Images, list[Step]], Images]
_Mix = Callable[..., None]


def _engine(device: torch.device) -> tuple[_Run, _Mix]:
    """The functions that perform steps: Triton's on a GPU, else torch's."""
    if is_fast_on(device):
        from hf_dr.views.device import fused

        return fused.run, fused.mix
    return eager.run, eager.mix_in_place

"""Augmented views of whole batches on a device."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch

from hf_dr.errors import HfDrError, ReplayError
from hf_dr.text import format_bytes
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.device import eager
from hf_dr.views.device.images import Windows
from hf_dr.views.device.plan import Columns, NotOnDeviceError, plan, plan_mixing, unsupported
from hf_dr.views.device.program import Program, program
from hf_dr.views.device.triton_ready import has_triton


class ViewMemoryError(HfDrError, RuntimeError):
    """The device's memory does not suffice for the views; accelerate's search for a batch size knows it as what it is."""


class DeviceAugmentation:
    """An augmentation of batches of images that lie on a device, with the pixels that Pillow gives.

    A NotOnDeviceError if `unsupported` says something against its ops.
    """

    def __init__(self, augmentation: Augmentation) -> None:
        reasons = unsupported(augmentation)
        if reasons:
            raise NotOnDeviceError("; ".join(reasons))
        self.augmentation = augmentation

    def program(self, images: Windows, params: Columns, mixing: Columns, partners: np.ndarray) -> Program:
        """Returns what makes a batch, for `perform`; no pixel is needed.

        Args:
            images: M images; those of several views may be the same.
            params: Columns (M, ...) of the ops that need one image only, by their names in the augmentation; others may be
                there too.
            mixing: Columns (N, ...) of the mixing ops, for the first N views.
            partners: int64 (N,), which of the M views each is mixed with; -1 for nothing.

        Raises:
            ReplayError: Parameters do not fit their image, or a partner is missing; the same error as the op's own.
            NotOnDeviceError: An image is too large for the device version of an op.
        """
        steps = plan(self.augmentation, params, images.heights, images.widths)
        mixes = plan_mixing(self.augmentation, mixing)
        for step in mixes:
            alone = np.flatnonzero(step.active & (partners < 0))
            if len(alone):
                raise ReplayError(f"view {alone[0]} of the batch needs a partner image, found none.")
        return program(images, steps, mixes, partners, self.augmentation.size)


def perform(
    program: Program, sources: Sequence[torch.Tensor], where: tuple[np.ndarray, np.ndarray] | None = None
) -> torch.Tensor:
    """Makes the views of a program.

    Args:
        program: What `DeviceAugmentation.program` returned.
        sources: Buffers of pixels, uint8, on one device.
        where: Which buffer holds each image of the program, and at which byte, int64 (M,) each. None: they lie where the
            program says, all in the first buffer.

    Returns:
        uint8 (N, H, W, 3), contiguous, on the device of the buffers. On a GPU nothing is waited for.

    Raises:
        ViewMemoryError: The device's memory does not suffice.
    """
    device = sources[0].device
    engine = _engine(device)
    if where is not None:
        buffers, offsets = where
        program = program.moved(engine.starts(sources)[buffers] + offsets)
    try:
        with torch.cuda.device_of(sources[0]):  # a kernel runs on the current device
            views_NHWC: torch.Tensor = engine.run(program, sources)
    except torch.OutOfMemoryError as error:
        # Smaller parts would not help: what lies between the launches is bounded already (`program.WORKING_BYTES`).
        needed = format_bytes(sum(program.buffers))
        raise ViewMemoryError(
            f"the views of a batch must fit into the memory of {device}, but {program.num_images} of {program.size[0]}x"
            f"{program.size[1]} pixels take up to {needed} next to what is there: {error} Lower the batch size, or make the "
            "views on the CPU (`augment_on cpu`)."
        ) from error
    return views_NHWC


def is_fast_on(device: torch.device) -> bool:
    """Whether a device makes the views of a whole batch at once; on others they are made one by one."""
    return has_triton(device)


def _engine(device: torch.device) -> ModuleType:
    """The module that performs programs: in Triton on a GPU, else in torch."""
    if is_fast_on(device):
        from hf_dr.views.device import fused

        return fused
    return eager

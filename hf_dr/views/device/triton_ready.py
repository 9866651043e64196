"""Whether the kernels of `hf_dr.views.device.kernels` run on a device."""

from __future__ import annotations

import importlib.util
import logging
from functools import lru_cache

import torch

logger = logging.getLogger(__name__)


def has_triton(device: torch.device) -> bool:
    """Whether Triton compiles for a device; where it is installed and does not, the reason is said once.

    Triton needs a C compiler and Python's headers when it runs, and may know a GPU no longer or not yet.
    """
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None and _compiles(device)


@lru_cache
def _compiles(device: torch.device) -> bool:
    try:
        _try_out(device)
    except Exception as error:  # of any kind: Triton's, a compiler's, CUDA's
        logger.warning(
            "Triton cannot be used on %s, so views are made more slowly: %s: %s. It needs a C compiler and Python's headers.",
            device,
            type(error).__name__,
            str(error)[:200],
        )
        return False
    return True


def _try_out(device: torch.device) -> None:
    from hf_dr.views.device import kernels

    out = torch.zeros(1, dtype=torch.int32, device=device)
    with torch.cuda.device_of(out):
        kernels.probe_kernel[(1,)](out)
    if out.item() != 1:
        raise RuntimeError("a kernel wrote nothing")

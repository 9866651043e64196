"""The C library's allocator, set for work on a CPU; nothing here imports torch."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

ALLOCATOR = "HF_DR_ALLOCATOR"
"""The environment variable that, set to `default`, leaves the C library's allocator as it is."""

# Parameters of glibc's mallopt (malloc.h), and their values here: large blocks are not mapped one by one, up to 1 GB of freed
# memory is kept, and all threads share one arena.
_MALLOPT = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 1 << 30), "M_ARENA_MAX": (-8, 1)}


@cache
def keep_freed_memory() -> bool:
    """Has glibc keep freed memory for the process; returns whether it does. Call it before anything else, for work on a CPU.

    By itself glibc gives each large tensor back to the system when it is freed, and the next one is page-faulted in again:
    a convolutional teacher then spends a third of its time in the kernel. No result changes, nor the peak of memory.

    Threads that begin later share the arena of the first one, unless others are there already: importing torch and datasets
    leaves some, so most is gained where this is called before (`hf_dr.cli.launch` does).
    """
    if sys.platform != "linux" or os.environ.get(ALLOCATOR) == "default":
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 (another C library has none)
        results = [libc.mallopt(*setting) for setting in _MALLOPT.values()]
        return all(result == 1 for result in results)
    except (AttributeError, OSError):
        return False


def has_gpu() -> bool:
    """Whether a process may work on a GPU of NVIDIA's or AMD's, as far as can be told without torch."""
    if (
        os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
        or os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    ):
        return False
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))

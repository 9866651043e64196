"""The stored hash of each view, XXH3 of 64 bits, computed where the pixels lie.

A view of 224x224 pixels is 147 blocks of 1,024 bytes. Within a block the eight lanes of the hash are sums, and only the
blocks depend on each other, so one warp a view hashes a batch while the teacher works, and eight words a view are all
that is copied back. The algorithm is that of xxHash (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md) for more
than 240 bytes, with the default secret and seed 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from hf_dr.views.device.overlap import LaterOnHost, side_stream
from hf_dr.views.device.triton_ready import has_triton
from hf_dr.views.maker import hash_view

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
_PRIME64_1 = 0x9E3779B185EBCA87
_MASK = (1 << 64) - 1
_SHORT = 240  # up to this number of bytes the algorithm is another


def later_hashes(views_NHWC: torch.Tensor) -> Callable[[], np.ndarray]:
    """Starts to hash a batch of views that is still being worked on; short ones are copied to the CPU and hashed there.

    The views are uint8, contiguous, on any device. What is returned waits for the hashes and returns them, uint64 (N,).
    """
    length = views_NHWC.shape[1:].numel()
    if not len(views_NHWC) or length <= _SHORT or not has_triton(views_NHWC.device):
        return lambda: np.array([hash_view(view) for view in views_NHWC.cpu().numpy()], np.uint64)
    stream = side_stream(views_NHWC.device, "hashes")
    stream.wait_stream(torch.cuda.current_stream(views_NHWC.device))
    with torch.cuda.stream(stream):
        lanes = LaterOnHost(hash_lanes(views_NHWC))
    views_NHWC.record_stream(stream)
    return lambda: merge(lanes.get()[0].numpy().view(np.uint64), length)


def hash_lanes(views_NHWC: torch.Tensor) -> torch.Tensor:
    """Returns the lanes of each view's XXH3 hash, int64 (N, 8), for `merge`; on a GPU, or in Triton's interpreter."""
    from hf_dr.views.device import kernels

    flat = views_NHWC.reshape(len(views_NHWC), -1)
    length = flat.shape[1]
    tails = flat[:, -64:].contiguous()
    if length % 8:
        flat = torch.nn.functional.pad(flat, (0, -length % 8))
    lanes = _first_lanes(flat.device).repeat(len(flat), 1)
    kernels.hash_kernel[(len(flat),)](
        flat.view(torch.int64), tails.view(torch.int64), secret_words(flat.device), lanes, length, flat.shape[1] // 8,
        num_warps=1,
    )  # fmt: skip
    return lanes


@lru_cache(maxsize=8)
def _first_lanes(device: torch.device) -> torch.Tensor:
    """What the lanes of a hash begin with, int64 (8,)."""
    lanes = np.array(
        [
            0xC2B2AE3D, 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,
            0x85EBCA77C2B2AE63, 0x85EBCA77, 0x27D4EB2F165667C5, 0x9E3779B1,
        ],
        np.uint64,
    )  # fmt: skip
    return torch.from_numpy(lanes.view(np.int64)).to(device)


@lru_cache(maxsize=8)
def secret_words(device: torch.device) -> torch.Tensor:
    """The secret as the kernel reads it: its 24 words, and the eight that the last stripe uses, int64 (32,)."""
    words = np.concatenate([np.frombuffer(SECRET, "<i8"), np.frombuffer(SECRET[121:185], "<i8")])
    return torch.from_numpy(words.astype(np.int64)).to(device)


def merge(lanes_N8: np.ndarray, length: int) -> np.ndarray:
    """Returns the hashes of inputs of `length` bytes from their lanes, uint64 (N, 8) -> (N,)."""
    keys = np.frombuffer(SECRET[11:75], "<u8")
    mixed_N8 = lanes_N8 ^ keys
    with np.errstate(over="ignore"):
        total_N = np.full(len(lanes_N8), (length * _PRIME64_1) & _MASK, np.uint64)
        for lane in range(0, 8, 2):
            total_N += _folded_product(mixed_N8[:, lane], mixed_N8[:, lane + 1])
        total_N ^= total_N >> np.uint64(37)
        total_N *= np.uint64(0x165667919E3779F9)
    return total_N ^ (total_N >> np.uint64(32))


def _folded_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The two halves of the 128-bit products, one xor the other."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a_low, a_high, b_low, b_high = a & low, a >> half, b & low, b >> half
    low_low, high_low, low_high, high_high = a_low * b_low, a_high * b_low, a_low * b_high, a_high * b_high
    middle = (low_low >> half) + (high_low & low) + low_high
    upper = (high_low >> half) + (middle >> half) + high_high
    lower = (middle << half) | (low_low & low)
    return upper ^ lower

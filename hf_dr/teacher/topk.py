"""The teacher's answer in short: the K most probable classes and their log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from hf_dr.errors import TeacherError
from hf_dr.views.device.overlap import LaterOnHost

# Rounding to float16 leaves 1 - sum(exp) uncertain; the share of the classes left out is taken to be no less than this.
MIN_REST = 1e-6


def id_dtype(num_classes: int) -> np.dtype:
    """Returns the stored type of a class id: uint16 up to 65,535 classes, else uint32."""
    return np.dtype(np.uint16 if num_classes <= 0xFFFF else np.uint32)


def top_k(logprobs_BC: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Keeps the `k` most probable classes of each row.

    Args:
        logprobs_BC: Natural log-probabilities, float32.
        k: Classes to keep, 1 <= k <= C.

    Returns:
        Ids (B, k), uint16 or uint32, and log-probabilities (B, k), float16, most probable first, equal ones by rising
        id. They are not renormalised: 1 - sum(exp) is the mass of the classes left out.

    Raises:
        TeacherError: An answer is not finite.
    """
    values_BK, ids_BK = logprobs_BC.topk(k, dim=-1)
    # Which of several equal classes topk keeps is up to the device; where some were left out, take the lowest ids.
    tied_B = (logprobs_BC >= values_BK[:, -1:]).sum(dim=-1) > k
    if tied_B.any():
        ids_BK[tied_B] = logprobs_BC[tied_B].argsort(dim=-1, descending=True, stable=True)[:, :k]
        values_BK = logprobs_BC.gather(-1, ids_BK)
    return as_stored(ids_BK.cpu().numpy(), values_BK.to(torch.float16).cpu().numpy(), logprobs_BC.shape[-1])


def later_top_k(logprobs_BC: torch.Tensor, k: int) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """Starts `top_k` of answers that a device is still working on; what is returned waits for it, and raises what it raises."""
    if logprobs_BC.device.type != "cuda" or logprobs_BC.dtype != torch.float32:
        return partial(top_k, logprobs_BC, k)
    num_classes = logprobs_BC.shape[-1]
    ids_BK, values_BK = unambiguous_top_k(logprobs_BC, k)
    kept = LaterOnHost(ids_BK, values_BK.to(torch.float16))  # and not all the answers

    def wait() -> tuple[np.ndarray, np.ndarray]:
        ids_BK, values_BK = kept.get()
        return as_stored(ids_BK.numpy(), values_BK.numpy(), num_classes)

    return wait


def unambiguous_top_k(logprobs_BC: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the classes that `top_k` keeps of float32 answers, and their log-probabilities, (B, k), on their device.

    The order is that of one integer for each class: the level of its log-probability, then the lower id. So which of several
    equal classes are kept needs no look at the answers in between, for which the host would have to wait.
    """
    num_classes = logprobs_BC.shape[-1]
    bits_BC = (logprobs_BC + 0.0).view(torch.int32)  # the sum makes +0.0 of -0.0
    rising_BC = torch.where(bits_BC < 0, bits_BC ^ 0x7FFFFFFF, bits_BC)
    rising_BC = torch.where(logprobs_BC.isnan(), 0x7FFFFFFF, rising_BC).long()  # kept, and so found out
    reverse_C = torch.arange(num_classes - 1, -1, -1, device=logprobs_BC.device)
    keys_BK = (rising_BC * (1 << 32) + reverse_C).topk(k, dim=-1).values
    ids_BK = num_classes - 1 - (keys_BK & 0xFFFFFFFF)
    return ids_BK, logprobs_BC.gather(-1, ids_BK)


def as_stored(ids_BK: np.ndarray, logprobs_BK: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and float16 log-probabilities in the stored types and order: falling, equal ones by rising id.

    Raises:
        TeacherError: A log-probability is not finite in float16.
    """
    if not np.isfinite(logprobs_BK).all():
        raise not_finite(logprobs_BK)
    # Ordered as float16, by id where equal, so that the stored order never depends on the device either.
    order = np.lexsort((ids_BK, -logprobs_BK.astype(np.float32)), axis=-1)
    ids_BK = np.take_along_axis(ids_BK, order, axis=-1).astype(id_dtype(num_classes))
    return ids_BK, np.take_along_axis(logprobs_BK, order, axis=-1)


def not_finite(logprobs: np.ndarray) -> TeacherError:
    """Returns the error for log-probabilities some of which are not finite."""
    return TeacherError(
        f"the teacher's log-probabilities must be finite, got {logprobs[~np.isfinite(logprobs)][0]} for a view. "
        "Try --precision fp32, and check the checkpoint. Where the model masks classes, leave these out by `classes` "
        "(--teacher_classes)."
    )


def add_members(
    ids_BK: np.ndarray, logprobs_BK: np.ndarray, new_BC: torch.Tensor, num_stored: int, num_new: int
) -> torch.Tensor:
    """Averages the answers of new members of an ensemble into stored ones.

    A stored answer stands for its members as a student reads it: the K classes as they are, the rest of the mass, t, spread
    evenly over the others. With n members stored and m new ones the average is

        (n stored + m new) / (n + m).

    It differs from that of all n + m in full by at most 2 t n / (n + m) in the sum of absolute differences, because nothing
    but t is spread in another way, and by what rounding to float16 lost. Where K = C it is exact up to that rounding.

    Args:
        ids_BK: Stored classes.
        logprobs_BK: Their natural log-probabilities, float16, averaged over n members.
        new_BC: Natural log-probabilities averaged over m members, float32.
        num_stored: n, at least 1.
        num_new: m, at least 1.

    Returns:
        Natural log-probabilities (B, C), float32, on the device of `new_BC`.
    """
    device = new_BC.device
    others = new_BC.shape[1] - ids_BK.shape[1]
    kept_BK = torch.from_numpy(logprobs_BK.astype(np.float32)).to(device)
    rest_B = (1 - kept_BK.exp().sum(dim=1)).clamp(min=0) / max(1, others)
    stored_BC = rest_B.log()[:, None].repeat(1, new_BC.shape[1])
    stored_BC.scatter_(1, torch.from_numpy(ids_BK.astype(np.int64)).to(device), kept_BK)
    total = num_stored + num_new
    return torch.logaddexp(stored_BC + math.log(num_stored / total), new_BC + math.log(num_new / total))


def entropy(logprobs_BK: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the entropy of short answers in nats, float32 (B,): the rest of the mass is spread over the other classes."""
    logprobs_BK = logprobs_BK.astype(np.float64)
    probs_BK = np.exp(logprobs_BK)
    kept_B = (probs_BK * logprobs_BK).sum(axis=-1)
    others = num_classes - logprobs_BK.shape[-1]
    rest_B = np.maximum(1 - probs_BK.sum(axis=-1), MIN_REST) if others else np.zeros(len(kept_B))
    return -(kept_B + rest_B * np.log(np.maximum(rest_B, MIN_REST) / max(1, others))).astype(np.float32)


def cross_entropy(ids_BK: np.ndarray, logprobs_BK: np.ndarray, num_classes: int, label: int) -> np.ndarray:
    """Returns -log p(label) of short answers in nats, float32 (B,); a class that was not kept has its share of the rest."""
    logprobs_BK = logprobs_BK.astype(np.float64)
    is_label_BK = ids_BK == label
    rest_B = np.maximum(1 - np.exp(logprobs_BK).sum(axis=-1), MIN_REST)
    share_B = rest_B / max(1, num_classes - logprobs_BK.shape[-1])
    kept_B = (logprobs_BK * is_label_BK).sum(axis=-1)
    return -np.where(is_label_BK.any(axis=-1), kept_B, np.log(share_B)).astype(np.float32)

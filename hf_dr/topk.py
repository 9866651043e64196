"""The teacher's answer in short: the K most probable classes and their log-probabilities."""

from __future__ import annotations

import numpy as np
import torch

from hf_dr.errors import TeacherError


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
    # Order equal float16 values by id, so that the stored order never depends on the device either.
    values, ids = values_BK.to(torch.float16).cpu().numpy(), ids_BK.cpu().numpy()
    if not np.isfinite(values).all():
        raise TeacherError(
            f"the teacher's log-probabilities must be finite, got {values[~np.isfinite(values)][0]} for a view. "
            "Try --precision fp32, and check the checkpoint."
        )
    order = np.lexsort((ids, -values.astype(np.float32)), axis=-1)
    ids = np.take_along_axis(ids, order, axis=-1).astype(id_dtype(logprobs_BC.shape[-1]))
    return ids, np.take_along_axis(values, order, axis=-1)

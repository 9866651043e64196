"""What is stored of the teacher's answers next to or instead of each view's most probable classes.

* `topk`: the K most probable classes of each view; what lies outside is known as a sum only.
* `topk_image_tail`: the same, and once for each row the most probable classes of the mean over its views, which gives the
  mass outside a view's K classes its shape.
* `sampled`: K classes drawn so that the stored answer is the teacher's whole answer on average.

Shape suffixes: B batch, K kept classes, T classes of the tail, C classes.
"""

from __future__ import annotations

import numpy as np
import torch

from hf_dr.teacher.names import IMAGE_TAIL, SAMPLED, SIGNALS, TOPK  # noqa: F401 (part of what this module is about)
from hf_dr.teacher.topk import as_stored, not_finite, top_k
from hf_dr.views.rng import DOMAIN_SIGNAL, keyed_rng

MAX_TAIL = 100
"""Classes of a row's tail; fewer where there are not that many."""


def described(signal: str, k: int, classes: int) -> str:
    """Returns what is stored of each answer, for people: `top 10 of 1,000 classes`."""
    if signal == SAMPLED:
        return f"{k:,} of {classes:,} classes, drawn"
    return f"top {k:,} of {classes:,} classes" + (" and a tail for each image" if signal == IMAGE_TAIL else "")


# ----------------------------------------------------------------------------------------------------- a row's own tail


def tail_size(num_classes: int) -> int:
    """Returns T, the classes of a row's tail."""
    return min(MAX_TAIL, num_classes)


class ImageTails:
    """The means of rows' answers, added up view by view as they come in order.

    In float64 and always in the same order, so they do not depend on how the views came in batches; of views, one sum is held
    in memory, whatever V, `num_views`, is.
    """

    def __init__(self, num_views: int) -> None:
        self._num_views = num_views
        self._sum_C: np.ndarray = np.zeros(1)
        self._added = 0  # views of the first incomplete row
        self._complete: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, logprobs_BC: np.ndarray) -> None:
        """Adds the whole answers to the next views, natural log-probabilities.

        Raises:
            TeacherError: An answer is not finite.
        """
        for probs_C in np.exp(logprobs_BC, dtype=np.float64):
            self._sum_C = self._sum_C + probs_C
            self._added += 1
            if self._added == self._num_views:
                self._complete.append(self._tail(self._sum_C / self._num_views))
                self._sum_C = np.zeros(1)
                self._added = 0

    def take(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids (rows, T) and log-probabilities (rows, T) float16 of the next rows, as `top_k` returns them."""
        assert len(self._complete) >= rows
        taken, self._complete = self._complete[:rows], self._complete[rows:]
        ids, logprobs = (np.concatenate(part) for part in zip(*taken, strict=True))
        return ids, logprobs

    @staticmethod
    def _tail(mean_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # What float64 cannot hold still has a place in the order of classes and a finite logarithm.
        logs_1C = np.log(np.maximum(mean_C, np.finfo(np.float64).tiny))[None]
        return top_k(torch.from_numpy(logs_1C), tail_size(len(mean_C)))


# --------------------------------------------------------------------------------------------------- classes by the draw


def sampling_uniform(seed: int, example: int, view: int) -> float:
    """Returns the number, 0 <= u < 1, by which the classes of one view of one example are drawn."""
    return float(keyed_rng(seed, domain=DOMAIN_SIGNAL, major=example, minor=view).random())


def sample(logprobs_BC: torch.Tensor, k: int, uniforms_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws `k` distinct classes of each answer, so that the stored answer is unbiased for every class.

    Sampling of a fixed size with probability proportional to size (Chao, Biometrika 1982; as VarOpt, Cohen et al.,
    arXiv:0803.0473): with the threshold tau that solves sum_i min(1, p_i / tau) = K, class i is kept with probability
    min(1, p_i / tau) and stored as max(p_i, tau). Its mean is p_i; classes with p_i >= tau are always kept, as they are; the K
    stored probabilities have the sum 1. One uniform number draws all classes (systematic sampling by rising id). Why
    students like such targets: Sparse Logit Sampling, Anshumann et al., arXiv:2503.16870.

    Args:
        logprobs_BC: Natural log-probabilities.
        k: Classes to keep, 1 <= k <= C. If k = C, or no more than k classes have a probability, the answer is kept whole.
        uniforms_B: 0 <= u < 1, one for each answer.

    Returns:
        Ids (B, k) and log-probabilities (B, k), as `top_k` returns them.

    Raises:
        TeacherError: An answer is not finite.
    """
    drawn = [_draw(*row, k) for row in zip(*_normalized(logprobs_BC, k), uniforms_B, strict=True)]
    ids_BK, logprobs_BK = (np.stack(part) for part in zip(*drawn, strict=True))
    return as_stored(ids_BK, logprobs_BK.astype(np.float16), logprobs_BC.shape[-1])


def stored_if_kept(logprobs_BC: torch.Tensor, k: int) -> np.ndarray:
    """Returns what `sample` stores for each class if it keeps it: log max(p, tau), float64 (B, C)."""
    normalized_BC, _, thresholds_B = _normalized(logprobs_BC, k)
    with np.errstate(divide="ignore"):
        return np.maximum(normalized_BC, np.log(thresholds_B)[:, None])


def _normalized(logprobs_BC: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logarithms and probabilities of the sum 1, float64 on the CPU whatever the teacher's device, and tau, (B,)."""
    logprobs = logprobs_BC.cpu().double().numpy()
    best_B = logprobs.max(axis=1)  # -inf below it is a class without a probability
    if not np.isfinite(best_B).all():
        raise not_finite(best_B)
    probs = np.exp(logprobs)
    totals_B1 = probs.sum(axis=1, keepdims=True)
    probs = probs / totals_B1
    logprobs = logprobs - np.log(totals_B1)
    # They are added up from the small ones, so that what remains below the largest is exact.
    rising_BC = np.sort(probs, axis=1)
    below_BC = rising_BC.cumsum(axis=1)
    largest_BK, masses_BK = rising_BC[:, ::-1][:, :k], below_BC[:, ::-1][:, :k]
    # If the t largest are kept for sure, the K - t others share the mass below them. t is the first that leaves none above
    # its share; the last one always does.
    shares_BK = masses_BK / np.arange(k, 0, -1)
    sure_B = (largest_BK <= shares_BK).argmax(axis=1)
    return logprobs, probs, np.take_along_axis(shares_BK, sure_B[:, None], axis=1)[:, 0]


def _draw(
    logprobs_C: np.ndarray, probs_C: np.ndarray, threshold: float, uniform: float, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ids (K,) of one answer, in no order, and their log-probabilities, float64."""
    if threshold == 0:  # no more than K classes have a probability
        ids_K = np.argsort(-logprobs_C, kind="stable")[:k]
        return ids_K, logprobs_C[ids_K]
    sure = np.flatnonzero(probs_C > threshold)
    others = np.flatnonzero(probs_C <= threshold)
    ends = probs_C[others].cumsum()
    count = k - len(sure)
    # The others lie end to end; the points are as far apart as the longest can be, so each meets another class...
    steps = np.arange(count)
    places = np.searchsorted(ends, (steps + uniform) * (ends[-1] / count), side="right")
    # ...and rounding, which could let two meet at a border, or the last run over the end, must not change that.
    places = np.minimum(np.maximum.accumulate(places - steps), len(others) - count) + steps
    ids_K = np.concatenate([sure, others[places]])
    return ids_K, np.maximum(logprobs_C[ids_K], np.log(threshold))

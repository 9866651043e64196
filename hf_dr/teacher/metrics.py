"""Accuracy and calibration of a classifier, from its logits. Shape suffixes: B examples, C classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_dr.errors import DataError

NUM_BINS = 15
"""Bins of equal width, as in the papers of Guo et al. and of Dataset Reinforcement."""
METRICS = ("top1", "top5", "nll", "brier", "ece")
"""What `classification_metrics` measures."""
CALIBRATED_ECE = "calibrated_ece"
"""What `calibrated_ece` measures, of clean images."""
ECE_BY_CHANCE = "ece_by_chance"
"""What `Reliability.ece_by_chance` is, of clean images."""
SHARES = "shares"
"""Unit of the metrics in JSON files, but nll (nats) and brier."""


def bins_of(confidence: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Returns the bin of each confidence: bin k holds those in (k / num_bins, (k + 1) / num_bins], and bin 0 holds 0 as well.

    The edges are the float64 numbers nearest to k / num_bins, and a confidence is compared with them as it is: multiplying it
    by `num_bins` instead would move some that lie on an edge, or next to one, into the neighbouring bin.

    Args:
        confidence: Probabilities of the predicted classes, any shape. One that rounding took beyond 1 belongs to the last bin.
        num_bins: Number of bins of equal width.

    Returns:
        Bins from 0 to num_bins - 1, int64, of the same shape.
    """
    inner_edges = np.arange(1, num_bins) / num_bins
    # The number of edges below a confidence; an edge that equals it is not below.
    return np.searchsorted(inner_edges, np.asarray(confidence, np.float64), side="left").astype(np.int64)


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram's numbers, one for each of equally wide bins of confidence, the probability of the predicted class.

    Attributes:
        counts: Examples in the bin, int64.
        confidence_sums: Sum of their confidences.
        hits: How many of their predicted classes are right.
    """

    counts: np.ndarray
    confidence_sums: np.ndarray
    hits: np.ndarray

    @classmethod
    def of(cls, confidence: np.ndarray, hits: np.ndarray) -> Reliability:
        """Sorts examples into bins: the probabilities of the predicted classes, and whether these are right, bool."""
        bins = bins_of(confidence)
        counts = np.bincount(bins, minlength=NUM_BINS)
        return cls(counts, np.bincount(bins, confidence, NUM_BINS), np.bincount(bins, hits, NUM_BINS))

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1 (Guo et al., ICML 2017, arXiv:1706.04599, equation 3); 0 without an example.

        It is the mean over all examples of |accuracy - mean confidence| of their bin. A bin of n examples weighs n, so it adds
        |hits - sum of confidences|, and nothing has to be divided by an empty bin's zero.
        """
        return float(np.abs(self.hits - self.confidence_sums).sum() / max(1, self.counts.sum()))

    @property
    def ece_by_chance(self) -> float:
        """The ECE that a perfectly calibrated model of these confidences shows on average, because examples are few, 0 to 1.

        Its hits in a bin of n examples are binomial with the bin's mean confidence p. Their mean absolute deviation from np is
        2 v C(n, v) p^v (1 - p)^(n - v + 1) with v = floor(np) + 1 (de Moivre, 1730).
        """
        deviations = 0.0
        for n, confidence_sum in zip(self.counts.tolist(), self.confidence_sums.tolist(), strict=True):
            v = math.floor(confidence_sum) + 1
            if not 0 < confidence_sum < n or v > n:
                continue
            p = confidence_sum / n
            ways = math.lgamma(n + 1) - math.lgamma(v + 1) - math.lgamma(n - v + 1)
            deviations += 2 * v * math.exp(ways + v * math.log(p) + (n - v + 1) * math.log1p(-p))
        return float(deviations / max(1, self.counts.sum()))


def log_softmax(logits_BC: np.ndarray) -> np.ndarray:
    """Returns log-probabilities in float64."""
    shifted = logits_BC.astype(np.float64) - logits_BC.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def reliability(logits_BC: np.ndarray, labels_B: np.ndarray) -> Reliability:
    """Sorts examples into bins by confidence."""
    shifted_BC = logits_BC.astype(np.float64) - logits_BC.max(axis=-1, keepdims=True)
    # The predicted class has exp(0) = 1 in the numerator. Written so, five equal logits give 0.2 and not its neighbour above,
    # which would lie in the next bin.
    confidence_B = 1 / np.exp(shifted_BC).sum(axis=-1)
    hit_B = logits_BC.argmax(axis=-1) == labels_B
    return Reliability.of(confidence_B, hit_B)


def classification_metrics(logits_BC: np.ndarray, labels_B: np.ndarray) -> dict[str, float]:
    """Returns top1 and top5 accuracy, nll (nats), brier (0 to 2) and ece (0 to 1) over the examples.

    Args:
        logits_BC: Floating point.
        labels_B: Integers from 0 to C - 1.

    Raises:
        DataError: The shapes do not fit, a label is no class, or a logit is not finite.
    """
    _check_examples(logits_BC, labels_B)
    classes = logits_BC.shape[1]
    logprobs_BC = log_softmax(logits_BC)
    own_B = np.take_along_axis(logprobs_BC, labels_B[:, None], axis=-1)[:, 0]
    # The label's rank counts classes that are strictly more probable, and of equal ones those that come first.
    before_BC = (logprobs_BC > own_B[:, None]) | (
        (logprobs_BC == own_B[:, None]) & (np.arange(classes) < labels_B[:, None])
    )
    rank_B = before_BC.sum(axis=-1)
    probabilities_BC = np.exp(logprobs_BC)
    brier_B = (probabilities_BC**2).sum(axis=-1) - 2 * np.exp(own_B) + 1
    return {
        "top1": float((rank_B < 1).mean()),
        "top5": float((rank_B < 5).mean()),
        "nll": float(-own_B.mean()),
        "brier": float(brier_B.mean()),
        "ece": reliability(logits_BC, labels_B).ece,
    }


def _check_examples(logits_BC: np.ndarray, labels_B: np.ndarray) -> None:
    """Refuses what no metrics can be computed of."""
    if logits_BC.ndim != 2 or labels_B.shape != logits_BC.shape[:1] or not len(labels_B):
        raise DataError(
            f"logits must be (B, C) and labels (B,) with B > 0, got {logits_BC.shape} and {labels_B.shape}. Give the logits of "
            "each example, and its label."
        )
    classes = logits_BC.shape[1]
    if not np.issubdtype(labels_B.dtype, np.integer):
        raise DataError(
            f"labels must be whole numbers from 0 to {classes - 1}, got {labels_B.dtype}. Convert them to int."
        )
    bad = np.flatnonzero((labels_B < 0) | (labels_B >= classes))
    if len(bad):
        raise DataError(
            f"labels must be from 0 to {classes - 1}, got {labels_B[bad[0]]} in row {bad[0]} ({len(bad)} such rows). Leave "
            "these rows out, or give a split with labels."
        )
    if not np.isfinite(logits_BC).all():
        raise DataError("logits must be finite, got NaN or infinity: the training diverged. Lower the learning rate.")


def compute_metrics(prediction: Any) -> dict[str, float]:
    """`classification_metrics` in the form that `Trainer(compute_metrics=...)` takes."""
    logits = prediction.predictions
    if isinstance(logits, tuple):  # a model that returns more than its logits
        logits = logits[0]
    return classification_metrics(np.asarray(logits), np.asarray(prediction.label_ids))

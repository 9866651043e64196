"""The expected calibration error (Guo et al., ICML 2017, arXiv:1706.04599, equation 3): one rule for all who report it."""

from __future__ import annotations

import numpy as np

TEMPERATURES = (0.25, 4.0)
"""The least and the greatest temperature that is fitted: a few images may all be right, which asks for one of 0."""

NUM_BINS = 15
"""Bins of equal width, as in the papers of Guo et al. and of Dataset Reinforcement."""


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


def calibration_error(counts: np.ndarray, confidence_sums: np.ndarray, hits: np.ndarray) -> float:
    """Returns the expected calibration error: the mean over all examples of |accuracy - mean confidence| of their bin.

    A bin of n examples weighs n, so it adds |hits - sum of confidences|, and nothing has to be divided by an empty bin's zero.

    Args:
        counts: Examples in each bin.
        confidence_sums: Sum of their confidences.
        hits: How many of their predicted classes are right.

    Returns:
        From 0 to 1; 0 if there is no example.
    """
    return float(np.abs(hits - confidence_sums).sum() / max(1, counts.sum()))


def fit_temperature(logits_BC: np.ndarray, labels_B: np.ndarray) -> float:
    """Returns the temperature T for which softmax(logits / T) has the least negative log-likelihood (Guo et al., section 4.2).

    The likelihood is convex in 1 / T. Newton's steps find where its slope is 0; one that would leave the interval in which the
    slope changes its sign is replaced by halving it.

    Args:
        logits_BC: Of images that the model was not trained on, floating point.
        labels_B: Their classes, 0 to C - 1.

    Returns:
        Within `TEMPERATURES`. Above 1 the model was too sure of itself.
    """
    shifted_BC = logits_BC.astype(np.float64) - logits_BC.max(axis=-1, keepdims=True)
    own_B = np.take_along_axis(shifted_BC, labels_B[:, None], axis=-1)[:, 0]
    low, high = (1 / temperature for temperature in reversed(TEMPERATURES))
    inverse = 1.0
    for _ in range(60):  # so many halvings are as exact as float64; Newton's steps are about six
        weights_BC = np.exp(inverse * shifted_BC)
        weights_BC /= weights_BC.sum(axis=-1, keepdims=True)
        mean_B = (weights_BC * shifted_BC).sum(axis=-1)
        slope = float((mean_B - own_B).mean())
        curvature = float(((weights_BC * shifted_BC**2).sum(axis=-1) - mean_B**2).mean())
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        newton = inverse - slope / curvature if curvature > 0 else high
        last, inverse = inverse, newton if low < newton < high else (low + high) / 2
        if abs(inverse - last) < 1e-12:
            break
    return 1 / inverse

"""The temperature at which a classifier's probabilities fit held-out labels (Guo et al., ICML 2017, arXiv:1706.04599)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hf_dr.teacher.metrics import classification_metrics, reliability
from hf_dr.text import two_columns

TEMPERATURES = (0.25, 4.0)
"""The least and the greatest temperature that is fitted: a few images may all be right, which asks for one of 0."""
MEASURED_TEMPERATURES = (0.01, 100.0)
"""Those of evaluations, which change no weights: what is left of a calibration error is to be that of the best temperature."""


def fit_temperature(logits_BC: np.ndarray, labels_B: np.ndarray, bounds: tuple[float, float] | None = None) -> float:
    """Returns the temperature T for which softmax(logits / T) has the least negative log-likelihood (Guo et al., section 4.2).

    The likelihood is convex in 1 / T. Newton's steps find where its slope is 0; one that would leave the interval in which the
    slope changes its sign is replaced by halving it.

    Args:
        logits_BC: Logits of images that the model was not trained on, floating point.
        labels_B: Their classes, 0 to C - 1.
        bounds: The least and the greatest temperature that may be returned, below and above 1. Default: `TEMPERATURES`.

    Returns:
        Within `bounds`. Above 1 the model was too sure of itself.
    """
    shifted_BC = logits_BC.astype(np.float64) - logits_BC.max(axis=-1, keepdims=True)
    own_B = np.take_along_axis(shifted_BC, labels_B[:, None], axis=-1)[:, 0]
    low, high = (1 / temperature for temperature in reversed(bounds or TEMPERATURES))
    inverse = 1.0
    for _ in range(60):  # this many halvings are as exact as float64; Newton's steps are about six
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


def is_within(temperature: float) -> bool:
    """Whether a fitted temperature lies within `TEMPERATURES`, not at one of its ends."""
    least, greatest = TEMPERATURES
    return 1.001 * least < temperature < 0.999 * greatest


def calibrated_ece(logits_BC: np.ndarray, labels_B: np.ndarray) -> float:
    """Returns the expected calibration error that is left at a model's best temperature, 0 to 1.

    Each half of the examples, every other one, is scored at the temperature that fits the other half, so that none is scored at
    a temperature that was fitted to it (test-time cross-validation of Ashukha et al., ICLR 2020, arXiv:2002.06470); both are
    within `MEASURED_TEMPERATURES`. Compare models by this where each may be calibrated on held-out images, and by `ece` where
    they are used as they are.

    Args:
        logits_BC: Floating point, finite.
        labels_B: Integers from 0 to C - 1, at least two.
    """
    scaled_BC = logits_BC.astype(np.float64)
    for own, other in ((0, 1), (1, 0)):
        scaled_BC[own::2] /= fit_temperature(logits_BC[other::2], labels_B[other::2], MEASURED_TEMPERATURES)
    return reliability(scaled_BC, labels_B).ece


@dataclass(frozen=True)
class TemperatureFit:
    """A temperature that was fitted to held-out images, and what it changes. `print` shows it.

    Attributes:
        temperature: What the logits are divided by, within `TEMPERATURES`; above 1 the classifier was too sure of itself.
        num_held_out: Number of the images.
        num_classes: Number of the classifier's classes.
        trained: `classification_metrics` of the classifier as it was.
        calibrated: Those with the temperature; accuracies are the same.
    """

    temperature: float
    num_held_out: int
    num_classes: int
    trained: Mapping[str, float]
    calibrated: Mapping[str, float]

    @classmethod
    def of(cls, logits_BC: np.ndarray, labels_B: np.ndarray, temperature: float | None = None) -> TemperatureFit:
        """Measures what a temperature changes; default: the one that fits best."""
        if temperature is None:
            temperature = fit_temperature(logits_BC, labels_B)
        return cls(
            temperature=temperature,
            num_held_out=logits_BC.shape[0],
            num_classes=logits_BC.shape[1],
            trained=classification_metrics(logits_BC, labels_B),
            calibrated=classification_metrics(logits_BC / temperature, labels_B),
        )

    def table(self, note: str = "", images: str = "") -> str:
        """Returns it for people; the note stands behind the temperature, `images` says what the images are."""
        before = self.trained
        after = self.calibrated
        errors = f"{100 * before['ece']:.2f} % before, {100 * after['ece']:.2f} % with it (ECE on these images)"
        lines = [
            ("held-out top-1", f"{100 * before['top1']:.2f} % of {self.num_held_out:,} images{images}"),
            ("temperature", f"{self.temperature:.3f}{note}"),
            ("calibration error", errors),
            ("NLL of the label", f"{before['nll']:.4f} nats before, {after['nll']:.4f} with it"),
        ]
        if not is_within(self.temperature):
            least, greatest = TEMPERATURES
            note = f"none outside of {least:g} to {greatest:g} is tried: too few images, or others than it knows?"
            lines.append(("note", note))
        return two_columns(lines)

    def __str__(self) -> str:
        return self.table()

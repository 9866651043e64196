"""What commands find out and print of a teacher's calibration."""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_dr.evaluation.metrics import classification_metrics
from hf_dr.teacher.calibration import fit_temperature


def calibration_of(logits_BC: np.ndarray, labels_B: np.ndarray) -> dict[str, Any]:
    """Returns the temperature that fits held-out images best, and metrics before and after (`trained`, `calibrated`)."""
    temperature = fit_temperature(logits_BC, labels_B)
    return {
        "temperature": temperature,
        "num_held_out": len(labels_B),
        "num_classes": logits_BC.shape[1],
        "trained": classification_metrics(logits_BC, labels_B),
        "calibrated": classification_metrics(logits_BC / temperature, labels_B),
    }


def calibration_table(found: dict[str, Any], note: str = "") -> str:
    """Returns what `calibration_of` has found, for people; the note stands behind the temperature."""
    before = found["trained"]
    after = found["calibrated"]
    return (
        f"held-out accuracy    {before['top1']:.2%} of {found['num_held_out']} images\n"
        f"temperature          {found['temperature']:.3f}{note}\n"
        f"calibration error    {before['ece']:.2%} before, {after['ece']:.2%} with it\n"
        f"log-likelihood       {-before['nll']:.4f} nats before, {-after['nll']:.4f} with it"
    )

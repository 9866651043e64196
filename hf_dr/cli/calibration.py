"""What commands find out and print of the calibration of a teacher or a student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hf_dr.evaluation.metrics import classification_metrics
from hf_dr.teacher.calibration import TEMPERATURES
from hf_dr.text import percent, two_columns

if TYPE_CHECKING:
    from hf_dr.training.trainer import ReinforcedTrainer


def calibration_of(logits_BC: np.ndarray, labels_B: np.ndarray, temperature: float) -> dict[str, Any]:
    """Returns what commands tell of a temperature that was fitted: metrics before and with it (`trained`, `calibrated`)."""
    return {
        "temperature": temperature,
        "num_held_out": len(labels_B),
        "num_classes": logits_BC.shape[1],
        "trained": classification_metrics(logits_BC, labels_B),
        "calibrated": classification_metrics(logits_BC / temperature, labels_B),
    }


def calibrate(trainer: ReinforcedTrainer, images: Any, card: dict[str, Any], *, fold: bool = True) -> dict[str, Any]:
    """Calibrates a trained classifier; returns what `calibration_of` does, and whether the weights took it in (`folded`).

    They are then saved, with a `card` that tells it.
    """
    found = trainer.calibrate(images, fold=fold)
    if found.folded:
        trainer.save_model(_internal_call=True)
        trainer.create_model_card(**card)
    return {**calibration_of(found.logits, found.labels, found.temperature), "folded": found.folded}


def calibration_table(found: dict[str, Any], note: str = "", images: str = "") -> str:
    """Returns what `calibration_of` has found by which images, for people; the note stands behind the temperature."""
    before = found["trained"]
    after = found["calibrated"]
    lines = [
        ("held-out top-1", f"{percent(before['top1'])} of {found['num_held_out']:,} images{images}"),
        ("temperature", f"{found['temperature']:.3f}{note}"),
        (
            "calibration error",
            f"{100 * before['ece']:.2f} % before, {100 * after['ece']:.2f} % with it (ECE on these images)",
        ),
        ("NLL of the label", f"{before['nll']:.4f} nats before, {after['nll']:.4f} with it"),
    ]
    least, greatest = TEMPERATURES
    if not 1.001 * least < found["temperature"] < 0.999 * greatest:
        lines.append(
            ("note", f"none outside of {least:g} to {greatest:g} is tried: too few images, or others than it knows?")
        )
    return two_columns(lines)

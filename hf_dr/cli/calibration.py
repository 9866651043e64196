"""What commands do and find out to calibrate a classifier that they have trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_dr.teacher.calibration import TemperatureFit

if TYPE_CHECKING:
    from hf_dr.training.trainer import ReinforcedTrainer


@dataclass(frozen=True)
class CalibratedStudent(TemperatureFit):
    """What `calibrate` has found, and whether the weights took it in (`folded`)."""

    folded: bool

    def told(self, split: str | None, otherwise: str) -> str:
        """Returns it for people: of which split the images are, and where the temperature is; `otherwise` is what to do."""
        kept = "in the weights" if self.folded else f"not in the weights: {otherwise}"
        return f"\n{self.table(f', {kept}', f' of `{split}`')}"


def calibrate(trainer: ReinforcedTrainer, images: Any, card: dict[str, Any], *, fold: bool = True) -> CalibratedStudent:
    """Calibrates a trained classifier; weights that took the temperature in are saved, with a `card` that tells it."""
    found = trainer.calibrate(images, fold=fold)
    if found.folded:
        trainer.save_model(_internal_call=True)
        trainer.create_model_card(**card)
    fit = TemperatureFit.of(found.logits, found.labels, found.temperature)
    return CalibratedStudent(**vars(fit), folded=found.folded)

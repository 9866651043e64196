"""What a training took from its beginning, however often it was stopped and resumed: its seconds and its mean loss."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from hf_dr.files import write_json
from hf_dr.training.checkpoints import read_settings

logger = logging.getLogger(__name__)

TOTALS_FILE = "training_totals.json"
"""In each checkpoint: the `seconds` of its training, evaluations included, and the sum of the `losses` of its steps."""


class Totals(TrainerCallback):
    """Has the metrics of a resumed training cover all of it; Trainer's own cover what came after the checkpoint."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._before: dict[str, Any] | None = None  # the totals in the checkpoint that it resumes; None: not known
        self._all: dict[str, Any] | None = None  # the totals once the training has ended
        self._began = 0.0

    def resume_from(self, checkpoint: str | None) -> None:
        """Reads what the training took up to a checkpoint; None begins a new one. Versions before this one wrote nothing."""
        self._all = None
        nothing = {"seconds": 0.0, "losses": 0.0}
        self._before = nothing if checkpoint is None else read_settings(Path(checkpoint, TOTALS_FILE)) or None
        if self._before is None and self._trainer.is_world_process_zero():
            logger.warning("%s does not tell its seconds and losses: those of this training begin there.", checkpoint)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = time.time()

    def save(self, checkpoint: Path) -> None:
        """Writes what the training took up to now."""
        if self._before is None:
            return
        total = self._all  # not `time.time()`: evaluations after the training do not count
        if total is None:
            trainer = self._trainer
            losses = trainer._total_loss_scalar + trainer._tr_loss.item()  # up to the last log, and since then
            seconds = time.time() - self._began
            total = {"seconds": self._before["seconds"] + seconds, "losses": self._before["losses"] + losses}
        write_json(checkpoint / TOTALS_FILE, total)

    def complete(self, metrics: dict[str, Any]) -> None:
        """Has the metrics with which a training ends cover all its steps, also those before it was resumed.

        Before they are logged, and in place, because Trainer returns the same ones.
        """
        before = self._before
        if before is None:
            return
        trainer = self._trainer
        runtime = before["seconds"] + metrics["train_runtime"]
        losses = before["losses"] + trainer._total_loss_scalar  # Trainer has added the last ones
        self._all = {"seconds": runtime, "losses": losses}
        if not before["seconds"]:
            return
        steps = trainer.state.global_step
        if trainer.args.max_steps > 0:  # as Trainer counts them
            images = steps * trainer.get_total_train_batch_size(trainer.args)
        else:
            images = trainer.state.epoch * trainer.num_examples(trainer.callback_handler.train_dataloader)
        metrics["train_runtime"] = round(runtime, 4)
        metrics["train_samples_per_second"] = round(images / runtime, 3)
        metrics["train_steps_per_second"] = round(steps / runtime, 3)
        metrics["train_loss"] = losses / steps

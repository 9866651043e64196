"""What a training took from its beginning, however often it was stopped and resumed: its seconds and its mean loss."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from hf_dr.files import write_json
from hf_dr.store.json_files import validated
from hf_dr.training.checkpoints import read_settings

TOTALS_FILE = "training_totals.json"
"""File in each checkpoint: what its training took, `Taken`."""


@dataclass(frozen=True)
class Taken:
    """The seconds of a training, evaluations included, and the sum of the losses of its steps."""

    seconds: float
    losses: float


class Totals(TrainerCallback):
    """Has the metrics of a resumed training cover all of it; Trainer's own cover what came after the checkpoint."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._before = Taken(0.0, 0.0)  # the totals in the checkpoint that it resumes
        self._all: Taken | None = None  # the totals once the training has ended
        self._began = 0.0

    def resume_from(self, checkpoint: str | None) -> None:
        """Reads what the training took up to a checkpoint, a FormatError if it does not tell; None begins a new one."""
        self._all = None
        self._before = Taken(0.0, 0.0)
        if checkpoint is not None:
            path = Path(checkpoint, TOTALS_FILE)
            self._before = validated(Taken, read_settings(path), str(path), "Resume from another checkpoint.")

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = time.time()

    def save(self, checkpoint: Path) -> None:
        """Writes what the training took up to now."""
        total = self._all  # not `time.time()`: evaluations after the training do not count
        if total is None:
            trainer = self._trainer
            losses = trainer._total_loss_scalar + trainer._tr_loss.item()  # up to the last log, and since then
            total = Taken(self._before.seconds + time.time() - self._began, self._before.losses + losses)
        write_json(checkpoint / TOTALS_FILE, asdict(total))

    def complete(self, metrics: dict[str, Any]) -> None:
        """Has the metrics with which a training ends cover all its steps, also those before it was resumed.

        Before they are logged, and in place, because Trainer returns the same ones.
        """
        trainer = self._trainer
        runtime = self._before.seconds + metrics["train_runtime"]
        losses = self._before.losses + trainer._total_loss_scalar  # Trainer has added the last ones
        self._all = Taken(runtime, losses)
        if not self._before.seconds:
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

"""A training whose loss or weights are no longer numbers ends with an error, before anything of it is saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from hf_dr.errors import ConfigError

_WHAT_TO_DO = (
    "Lower `learning_rate`, warm up longer (`warmup_steps`, `warmup_epochs`) or clip gradients (`max_grad_norm`); a checkpoint "
    "from before can be resumed only with the settings it was made with."
)


class Divergence(TrainerCallback):
    """Remembers the first step whose loss was not finite, on the device, and says so where Trainer stops to look anyway.

    To wait for every step's loss would cost time on an accelerator; a training that has diverged goes on at most until the
    next log, evaluation, checkpoint or epoch's end.
    """

    def __init__(self) -> None:
        self._first: torch.Tensor | None = None

    def watch(self, loss: torch.Tensor, step: int) -> None:
        """Takes in the loss of a batch."""
        if self._first is None:
            self._first = torch.full((), -1, dtype=torch.int64, device=loss.device)
        diverged = ~loss.detach().isfinite().all()
        self._first = torch.where(diverged & (self._first < 0), step, self._first)

    def check(self) -> None:
        """Raises where a loss was not finite.

        Raises:
            ConfigError: It was not.
        """
        step = -1 if self._first is None else int(self._first)
        if step >= 0:
            raise ConfigError(
                f"the loss must be a finite number, but it was none in step {step + 1}: the training has diverged. "
                f"{_WHAT_TO_DO}"
            )

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._first = None

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if control.should_log or control.should_save or control.should_evaluate or control.should_training_stop:
            self.check()

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.check()


def check_weights(model: nn.Module) -> None:
    """Checks that all weights are numbers, before they are saved.

    Raises:
        ConfigError: One is not.
    """
    named = dict(model.named_parameters())
    if named and not torch.stack([weight.detach().isfinite().all().cpu() for weight in named.values()]).all():
        name = next(name for name, weight in named.items() if not weight.detach().isfinite().all())
        raise ConfigError(
            f"weights must be finite numbers to be saved, but those of {name} are not: the training has diverged. {_WHAT_TO_DO}"
        )

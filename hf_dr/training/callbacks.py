"""What watches a training, by callbacks of transformers' Trainer: an average of the weights, and whether it diverges.

A training whose loss or weights are no longer numbers ends with an error, before anything of it is saved.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState

from hf_dr.errors import ConfigError
from hf_dr.training.student_inputs import is_timm
from hf_dr.training.students import EMA_FILE, native_names

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
        """Raises a ConfigError if a loss was not finite."""
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


def check_weights(model: nn.Module, state_dict: Mapping[str, torch.Tensor] | None) -> None:
    """Raises a ConfigError if a weight is no finite number, before it is saved.

    Those of a sharded model (FSDP) are in `state_dict`: looking at its own needs all processes, and perhaps one is asked.
    """
    named = dict(model.named_parameters()) if state_dict is None else state_dict
    if named and not torch.stack([weight.detach().isfinite().all().cpu() for weight in named.values()]).all():
        name = next(name for name, weight in named.items() if not weight.detach().isfinite().all())
        raise ConfigError(
            f"weights must be finite numbers to be saved, but those of {name} are not: the training has diverged. {_WHAT_TO_DO}"
        )


class _Average(ModelEmaV3):
    """Same as timm's, but weights with several names, which a model ties, are averaged once in a step."""

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        ours, theirs = self.module.state_dict(keep_vars=True), model.state_dict()
        names = list({id(value): name for name, value in ours.items()}.values())
        averaged = [name for name in names if ours[name].is_floating_point()]
        present = [theirs[name].to(ours[name].device) for name in averaged]
        torch._foreach_lerp_([ours[name] for name in averaged], present, weight=1.0 - decay)
        for name in set(names) - set(averaged):
            ours[name].copy_(theirs[name])


class WeightAverage(TrainerCallback):
    """Averages the weights of a model after each step of its training, and follows it to checkpoints and back.

    As in timm's own training script, the average begins at the weights of the first step. It keeps `decay` of itself, between 0
    and 1, in each. `ema.module` is the averaged model.
    """

    def __init__(self, model: nn.Module, decay: float, device: torch.device) -> None:
        self._decay = decay
        self._device = device
        self._checkpoint: Path | None = None  # the file that the next training continues
        self._start(model)

    def _start(self, model: nn.Module) -> None:
        self._model = model
        self.ema: ModelEmaV3 = _Average(model, decay=self._decay, device=self._device)

    def resume_from(self, checkpoint: str | None) -> None:
        """Has the next training go on with a checkpoint's average, a ConfigError without one; None has it begin a new one."""
        self._checkpoint = None if checkpoint is None else _average_in(Path(checkpoint))

    def save(self, folder: Path) -> None:
        """Writes the average next to the model's weights, by the same names."""
        state = self.ema.module.state_dict()
        # Copies, because safetensors takes no weights that share their memory.
        kept = {"copy": True, "memory_format": torch.contiguous_format}
        average = {name: value.to("cpu", **kept) for name, value in state.items()}
        save_file(native_names(average) if is_timm(self._model) else average, folder / EMA_FILE, {"format": "pt"})

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """Lets a model have the averaged weights for a while."""
        current = copy.deepcopy(model.state_dict())
        model.load_state_dict(self.ema.module.state_dict())
        try:
            yield
        finally:
            model.load_state_dict(current)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        if given["model"] is not self._model:  # `model_init` has made another
            self._start(given["model"])
        if self._checkpoint is not None:
            self.ema.module.load_state_dict(load_file(self._checkpoint))
            self._checkpoint = None

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        self.ema.update(given["model"], state.global_step)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # Trainer has just loaded the best model.
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.ema.module.load_state_dict(load_file(_average_in(Path(state.best_model_checkpoint))))


def _average_in(checkpoint: Path) -> Path:
    path = checkpoint / EMA_FILE
    if not path.is_file():
        raise ConfigError(
            f"`ema_decay` needs a checkpoint with averaged weights, but {checkpoint} has no {EMA_FILE}. Leave `ema_decay` out, "
            "or choose a checkpoint that was trained with it."
        )
    return path

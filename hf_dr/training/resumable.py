"""What this package's trainers add to transformers' Trainer: a run that is stopped and resumed is the same run."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from hf_dr.processes import warm_up_kernels


class ResumableTrainer(Trainer):
    """transformers' Trainer; its arguments have `momentum` and `nesterov`, for `--optim sgd`.

    Args:
        *args: All that Trainer takes.
        **settings: All that Trainer takes.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        warm_up_kernels()
        self._sampler: Any = None  # of the training set, where it has a `set_epoch` to be told by
        self._measured: dict[str, float] = {}  # of the present weights
        super().__init__(*args, **settings)
        self.add_callback(_Epochs(self))

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, Any]:  # type: ignore[override]
        """As Trainer's; `--optim sgd` gets momentum as well."""
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if kind is torch.optim.SGD:
            settings = {**settings, "momentum": args.momentum, "nesterov": args.nesterov and args.momentum > 0}
        return kind, settings

    def _run_epoch(self, *args: Any, **settings: Any) -> None:
        # Trainer looks for the end after a step only: a run that had ended within an epoch would take one more.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **settings)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As Trainer's."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if eval_dataset is None and metric_key_prefix == "eval":
            own = {key.removeprefix("eval_"): value for key, value in metrics.items() if key.startswith("eval_")}
            self._measured = {key: value for key, value in own.items() if not key.endswith(("time", "_per_second"))}
        return metrics


class _Epochs(TrainerCallback):
    """Tells the sampler its epoch by reference, before each epoch's first batch: accelerate's own `set_epoch` does not
    reach it through the wrappers that skip batches after a restart. Forgets what was measured of former weights."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer, self._next = trainer, 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # A fraction after a restart within an epoch; a step is more than the 1e-6 that rounding takes.
        self._next = int((state.epoch or 0) + 1e-6)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._trainer._sampler is not None:
            self._trainer._sampler.set_epoch(self._next)
        self._next += 1

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer._measured = {}

"""The settings that all trainers of this package share, checked before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments

from hf_dr.errors import NO_GROUP, ConfigError, HfDrError
from hf_dr.processes import leave_group_at_exit
from hf_dr.settings import Real, Whole, check_settings, flag
from hf_dr.training.checkpoints import plain

LOWER_IS_BETTER = ("loss", "nll", "brier", "ece", "mce")
"""Metrics whose lowest value is the best for `metric_for_best_model`, after any prefix and an underscore."""

BOUNDS: dict[str, Whole | Real] = {
    "per_device_train_batch_size": Whole(1), "per_device_eval_batch_size": Whole(1), "gradient_accumulation_steps": Whole(1),
    "learning_rate": Real(0), "weight_decay": Real(0), "max_grad_norm": Real(0), "warmup_steps": Real(0),
    "adam_beta1": Real(0, 1, below=True), "adam_beta2": Real(0, 1, below=True), "adam_epsilon": Real(0),
    "label_smoothing_factor": Real(0, 1), "max_steps": Whole(-1), "save_steps": Real(0), "logging_steps": Real(0),
    "eval_steps": Real(0), "eval_delay": Real(0), "save_total_limit": Whole(1), "dataloader_num_workers": Whole(0),
    "dataloader_prefetch_factor": Whole(1),
    "seed": Whole(0, 2**32 - 1), "data_seed": Whole(0, 2**63 - 1), "ddp_timeout": Whole(1),
}  # fmt: skip
"""The numbers that transformers' own settings take; it checks few of them itself."""


@dataclass
class ResumableArguments(TrainingArguments):
    """`TrainingArguments` with the settings that all trainers of this package share; impossible values are ConfigErrors."""

    # Of the last, checkpoints are saved within a step, whose random numbers are drawn, and have a file that is deleted again.
    without_part: ClassVar[dict[str, Any]] = {
        "neftune_noise_alpha": None, "use_liger_kernel": False, "enable_jit_checkpoint": False,
    }  # fmt: skip
    """Transformers' settings that no trainer of this package heeds, with their defaults: others are refused."""
    hub_strategies: ClassVar[tuple[str, ...]] = ("end",)
    """The values of `hub_strategy` that are allowed: those that publish no checkpoints."""

    batch_size: int | None = flag(
        "Images in a step of the optimizer, over all processes and accumulated batches: sets "
        "`per_device_train_batch_size`. Where memory is short, raise `gradient_accumulation_steps`.",
        default=None,
        type=Whole(1),
    )
    momentum: float = flag("Momentum of the optimizer `--optim sgd`.", default=0.9, type=Real(0, 1, below=True))
    nesterov: bool = flag("Use Nesterov momentum with `--optim sgd`.", default=False)

    def __post_init__(self) -> None:
        self.check()
        strategy = plain(self.hub_strategy)
        if self.push_to_hub and strategy not in self.hub_strategies:
            raise ConfigError(
                f"`hub_strategy` must be {' or '.join(self.hub_strategies)}, got {strategy}: the model is published then, "
                "and never the state of the training, whose files are pickles. Choose another."
            )
        if self.greater_is_better is None and lower_is_better(self.metric_for_best_model):
            self.greater_is_better = False  # Trainer knows this of losses only
        # Without an accelerator several processes form a group only if the CPU is asked for, and no memory can be pinned. And
        # where accelerate is told to leave the accelerator alone, transformers would still put the model there.
        told = parse_flag_from_env("ACCELERATE_USE_CPU")
        self.use_cpu = self.use_cpu or told or not torch.accelerator.is_available()
        # Files of settings, and devices that are not there.
        with as_config_errors("the settings must be such as transformers takes", OSError, RuntimeError):
            leave_group_at_exit()
            if self.use_cpu:  # Trainer opens the same group, but on a CPU without the timeout
                PartialState(cpu=True, backend=self.ddp_backend, timeout=self.ddp_timeout_delta)
            super().__post_init__()
        if self.mixed_precision == "fp16" and self.device.type == "cpu":
            raise ConfigError(
                "float16 (`fp16`, or accelerate's `mixed_precision`) needs an accelerator, found the CPU, on which accelerate "
                "would compute in float32. Set `bf16` instead, or leave it out: `--fp16 false` takes back what a recipe sets, "
                "also for `--smoke`."
            )
        if self.batch_size is not None:
            self._divide(self.batch_size)

    def check(self) -> None:
        """Checks values one by one, and those that have no part; a ConfigError names the first that is impossible."""
        check_settings(self)
        for name, limits in BOUNDS.items():
            if getattr(self, name) is not None:
                limits.check(name, getattr(self, name))
        for name, default in self.without_part.items():
            if getattr(self, name, default) not in (None, default):
                raise ConfigError(f"`{name}` has no part in this training, got {getattr(self, name)!r}. Leave it out.")
        for name in ("dataloader_persistent_workers", "dataloader_multiprocessing_context"):
            # The second is younger than the lowest transformers that is accepted.
            if getattr(self, name, None) and not self.dataloader_num_workers:
                raise ConfigError(f"`{name}` needs workers, got `dataloader_num_workers` 0. Raise it, or leave it out.")
        # What the optimizer has from its own settings whatever `optim_args` says.
        without_effect = ("weight_decay", "momentum", "nesterov") if plain(self.optim) == "sgd" else ("weight_decay",)
        for name in without_effect:
            if name in str(self.optim_args):
                raise ConfigError(
                    f"`{name}` of {plain(self.optim)} must be a setting of its own, got it in `optim_args` "
                    f"{self.optim_args!r:.80}. Take it out there, and set `{name}`."
                )
        if self.auto_find_batch_size and self.batch_size is not None:
            raise ConfigError(
                "`auto_find_batch_size` must be left out with `batch_size`, which it would lower without a word: raise "
                "`gradient_accumulation_steps` where memory is short."
            )
        if self.max_steps <= 0:
            Real(0, above=True).check("num_train_epochs", self.num_train_epochs)

    def _divide(self, batch_size: int) -> None:
        """Sets what each device takes at a time, so that a step sees `batch_size` images on any number of devices."""
        settings: Any = self.accelerator_config
        if (settings.gradient_accumulation_kwargs or {}).get("num_steps"):
            raise ConfigError(
                "`batch_size` needs `gradient_accumulation_steps`, got `num_steps` of `gradient_accumulation_kwargs`. Set that."
            )
        devices = self.world_size * max(1, self.n_gpu)
        parts = devices * self.gradient_accumulation_steps
        each, rest = divmod(batch_size, parts)
        if rest:
            raise ConfigError(
                f"`batch_size` must divide among {devices} devices and {self.gradient_accumulation_steps} accumulated batches, "
                f"got {batch_size}. Choose a multiple of {parts}."
            )
        if settings.split_batches:  # a batch is that of all processes
            each *= self.world_size
        if self.per_device_train_batch_size not in (each, TrainingArguments.per_device_train_batch_size):
            raise ConfigError(
                f"only one of `batch_size` and `per_device_train_batch_size` must be given, got {batch_size} and "
                f"{self.per_device_train_batch_size}. Keep `batch_size`, and where memory is short raise "
                "`gradient_accumulation_steps`."
            )
        self.per_device_train_batch_size = each


def lower_is_better(metric: str | None) -> bool:
    """Whether the lowest value of a metric is the best: `val_nll` is one, `neg_nll`, of scikit-learn's names, is none."""
    *others, last = (metric or "").split("_")
    return last in LOWER_IS_BETTER and "neg" not in others


@contextmanager
def as_config_errors(expected: str, *more: type[Exception]) -> Iterator[None]:
    """Turns what transformers raises about settings into an error for people. Only its own code is to be run within.

    Args:
        expected: What it must do, for the message.
        *more: Errors that are about settings here, besides those of settings that contradict each other, of packages that
            are missing, and of optimizers and schedules that do not understand their arguments.
    """
    try:
        yield
    except HfDrError:
        raise
    except Exception as error:
        of_settings = isinstance(
            error, (ArithmeticError, ImportError, NotImplementedError, TypeError, ValueError, *more)
        )
        # What `report_to` names is not installed: a RuntimeError, as are the faults of a device.
        if re.match(NO_GROUP, str(error), re.DOTALL) or (not of_settings and "Callback requires" not in str(error)):
            raise
        raise ConfigError(f"{expected}, but: {str(error).rstrip('. ')}. Correct them.") from error

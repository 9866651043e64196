"""What all trainers of this package add to transformers' Trainer: a run that is stopped and resumed is the same run."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import filelock
import torch
import transformers.trainer
from accelerate import skip_first_batches
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy, TrainOutput, has_length

from hf_dr.errors import ConfigError
from hf_dr.files import check_writable, file_lock, nearest, take, write_json, writing
from hf_dr.hub.retry import ask
from hf_dr.processes import end_workers, quiet_worker, refuse_unguarded, shield_workers, warm_up_kernels
from hf_dr.settings import check_kind
from hf_dr.text import progress_bar
from hf_dr.training.callbacks import Divergence, check_weights
from hf_dr.training.checkpoints import (
    SETTINGS_FILE,
    arguments_of_steps,
    check_processes_alike,
    check_saved_whole,
    compare_settings,
    find_damage,
    found_batch_size,
    keep_checkpoints,
    kept_settings,
    load_renamed,
    plain,
    read_settings,
    steers_the_rate,
    whole_checkpoint,
    write_checksums,
)
from hf_dr.training.evaluated import check_measured, without_prefix
from hf_dr.training.resumable_arguments import as_config_errors
from hf_dr.training.totals import Totals

LOCK_FILE = ".training.lock"
"""Lock file in `output_dir`, held by the training that writes to it."""


class _Searching(Trainer):
    """transformers' Trainer, whose searches leave nothing behind in its arguments."""

    def hyperparameter_search(self, hp_space: Any = None, *args: Any, **settings: Any) -> Any:
        """Same as Trainer's; after the search the trainer's own `args`, which each trial changes, are as they were."""
        # All but what `train` sets for the time of a trial, and takes back itself.
        own = {name: value for name, value in vars(self.args).items() if name != "save_total_limit"}

        def space(trial: Any) -> Any:
            if trial is not None:  # else a backend asks before the first trial, once it has set what it needs
                vars(self.args).update(own)  # Trainer leaves there what the trial before has set
            return hp_space(trial)

        try:
            return super().hyperparameter_search(hp_space and space, *args, **settings)
        finally:
            vars(self.args).update(own)


class ResumableTrainer(_Searching):
    """transformers' Trainer for `ResumableArguments`: a run that is stopped and resumed equals one that was not stopped.

    A subclass says in `run_settings` what decides its batches and their loss. They are saved with the weights, and a
    checkpoint is resumed only under the same settings, the arguments that shape the weights included (`kept_settings`).
    Checkpoints carry checksums, and one that is not whole is never resumed. All arguments are Trainer's.
    """

    # Trainer's own types of these would have to be narrowed wherever they are read.
    model: Any
    train_dataset: Any
    eval_dataset: Any
    hub_model_id: Any
    push_in_progress: Any
    settings_file: ClassVar[str] = "run_settings.json"
    """The file, next to the weights, that holds `run_settings`."""

    def __init__(self, model: Any, args: Any, **settings: Any) -> None:
        check_writable(Path(args.output_dir), "output_dir")
        if args.eval_on_start and settings.get("eval_dataset") is None:
            raise ConfigError("`eval_on_start` needs an `eval_dataset`, got none. Give one, or leave it out.")
        warm_up_kernels()
        self._sampler: Any = None  # of the training set, if the loader is ours: it must know the epoch
        self._measured: dict[str, float] = {}  # the metrics of the present weights
        self._calibration: Any = None  # theirs, if they have taken a temperature in
        self._loaders: list[Any] = []  # those that may have workers
        self._companions: list[Any] = []  # they `save` with the weights, and `resume_from` a checkpoint
        self._took_the_steps: dict[str, Any] = {}  # settings, of a training that is finished and evaluated again
        self._divergence = Divergence()
        self._totals = Totals(self)
        self._lock: filelock.BaseFileLock | None = None
        with as_config_errors("the settings must be such as transformers' Trainer takes"):
            super().__init__(model, args, **settings)
        for callback in list(self.callback_handler.callbacks):
            if type(callback) is ProgressCallback:  # what a user has made of it, and a notebook's, stay
                self.remove_callback(callback)
                self.add_callback(_Bars)
        self.add_callback(_Forgetting(self))
        self.add_callback(self._divergence)
        self.add_callback(self._totals)

    @property
    def _args_of_steps(self) -> Any:
        """The arguments, but of the processes that took the steps, where these others evaluate a finished training."""
        return arguments_of_steps(self.args, self._took_the_steps)

    def run_settings(self) -> dict[str, Any] | None:
        """Returns what must not change when a run is resumed, for JSON; None if there is nothing to compare."""
        return None

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """Same as Trainer's.

        Raises:
            ConfigError: The checkpoint is of other settings, or not whole; or another training is writing to `output_dir`.
        """
        evaluated = self.args.metric_for_best_model is not None and self.args.eval_strategy != IntervalStrategy.NO
        if evaluated and (names := self.metric_names()) is not None:
            check_measured(self.args, names)
        self._most_checkpoints = self.args.save_total_limit
        # Trainer itself keeps that of a trial, or of when it was made.
        self._train_batch_size = self.args.train_batch_size
        self._sampler = None
        # Of one checkpoint that is kept Trainer would delete the last, which tells that the training is finished.
        with self.alone(), changed(self.args, save_total_limit=None):
            checkpoint = whole_checkpoint(resume_from_checkpoint, str(self.args.output_dir))
            if self.args.world_size > 1:
                check_processes_alike(self.args, checkpoint, self.run_settings())
            self.prepare_resume(checkpoint)
            try:
                self._totals.resume_from(checkpoint)
                output = super().train(checkpoint, trial, ignore_keys_for_eval)
                return output._replace(training_loss=output.metrics["train_loss"])
            finally:
                for loader in self._loaders:  # at the process's exit torch would wait 5 seconds for each worker
                    end_workers(loader)
                self._loaders.clear()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the lock of `output_dir`, in the main process; it can be held again within. A ConfigError if it is taken."""
        if not self.is_world_process_zero():
            yield
            return
        folder = Path(self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        if self._lock is None:
            self._lock = file_lock(folder / LOCK_FILE)
        try:
            take(self._lock)
        except filelock.Timeout:
            refuse_unguarded()
            raise ConfigError(
                f"`output_dir` must not be in use, but another training is writing to {folder}. Wait for it, or choose another "
                "`output_dir`."
            ) from None
        try:
            yield
        finally:
            self._lock.release()

    def create_accelerator_and_postprocess(self) -> None:
        """Same as Trainer's, which divides losses by the number of accumulated batches; older versions divide again."""
        super().create_accelerator_and_postprocess()
        check_saved_whole(self.accelerator)
        self.accelerator.gradient_accumulation_steps = 1

    def prepare_resume(self, checkpoint: str | None) -> None:
        """Checks that a checkpoint is one of this run, before anything is loaded from it; None starts a new training.

        Raises:
            ConfigError: It was made with other `run_settings`, or other arguments that shape the weights.
        """
        self._took_the_steps = {}
        if checkpoint is not None:
            self._train_batch_size = found_batch_size(Path(checkpoint), self.args) or self._train_batch_size
            there, here = read_settings(Path(checkpoint, self.settings_file)), self.run_settings() or {}
            loud = self.is_world_process_zero()
            self._took_the_steps = compare_settings(Path(checkpoint), there, here, self.args, loud=loud)
        for companion in self._companions:
            companion.resume_from(checkpoint)

    def save_with_model(self, folder: Path) -> None:
        """Writes what belongs to the weights that were just written to a folder; one process does."""
        if (settings := self.run_settings()) is not None:
            write_json(folder / self.settings_file, settings)
        for companion in self._companions:
            companion.save(folder)

    # Private, because all ways of `save_model` meet here, and a callback's `on_save` comes after a checkpoint is called whole.
    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        check_has_model(self.model)
        check_weights(self.model, state_dict)
        folder = Path(output_dir or self.args.output_dir or ".")
        with _writing(folder):
            super()._save(output_dir, state_dict)
            if self.args.should_save:  # every process is asked, but one writes
                self.save_with_model(folder)
                _make_readable(folder)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Same as Trainer's; older versions of transformers take no `private` and read it in the arguments."""
        if private is not None:
            self.args.hub_private_repo = private
        make = partial(super().init_hf_repo, token=token)
        ask(make, "make the repository of the model (`hub_model_id`)")

    # Private, because Trainer deletes earlier checkpoints within it, before a callback could complete the new one.
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial))  # of a trial, in a search
        checkpoint = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with changed(self.args, save_total_limit=None), _writing(checkpoint):
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # all have written their part
        if self.args.should_save:
            write_json(checkpoint / SETTINGS_FILE, kept_settings(self.args))
            self._totals.save(checkpoint)
            write_checksums(checkpoint, resumable=not self.args.save_only_model)
            keep_checkpoints(folder, self._most_checkpoints, self.state.global_step, self.state.best_model_checkpoint)

    # Private, because with `save_strategy` best Trainer lets this alone decide, whatever callbacks have asked to save.
    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        check_measured(self.args, without_prefix(metrics))
        return super()._determine_best_metric(metrics, trial) or self.control.should_save

    # Private, because Trainer tells nobody before it loads the weights, and only warns where there are none.
    def _load_best_model(self) -> None:
        checkpoint = Path(str(self.state.best_model_checkpoint))
        if reason := find_damage(checkpoint, to_go_on=False):
            raise ConfigError(
                f"the best checkpoint must be whole to be loaded at the end, but {checkpoint} {reason}. Leave "
                "`load_best_model_at_end` out and run again for the last weights, or train again."
            )
        if not load_renamed(self, checkpoint):
            super()._load_best_model()
        self._measured = {}

    # Private, because no public method is asked for the weights of a checkpoint.
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not load_renamed(self, Path(resume_from_checkpoint)):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    # Private, because no callback can keep an epoch from being started: Trainer looks for the end only after a step, and a run
    # that had ended within an epoch would take one step more when it is resumed.
    def _run_epoch(self, *args: Any, **settings: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            if self._sampler is not None:
                # Here, because accelerate's own `set_epoch` does not reach it through the wrappers that skip batches.
                self._sampler.set_epoch(settings["epoch"])
            # Trainer has no other place at which the loader of the rest of an epoch could be changed.
            with changed(transformers.trainer, skip_first_batches=self._rest_of_epoch):
                super()._run_epoch(*args, **settings)

    def _rest_of_epoch(self, loader: Any, batches: int) -> Any:
        """Returns a loader of the rest of an epoch, after the batches that were seen."""
        rest = skip_first_batches(loader, batches)
        shield_workers(rest)
        return rest

    # ------------------------------------------------------------------------------------------- loaders and optimizer

    @property
    def _order_seed(self) -> int:
        """The seed of the order of the training set."""
        return self.args.data_seed if self.args.data_seed is not None else self.args.seed

    @property
    def _loader_seed(self) -> int | None:
        """The seed of the loaders' own generator; None leaves them the global one, as Trainer does."""
        return self.args.seed

    def _with_own_generator(self, loader: torch.utils.data.DataLoader) -> torch.utils.data.DataLoader:
        """Returns a loader with a generator of its own and quiet workers, and remembers it."""
        self._loaders.append(_prepared(loader, self._loader_seed))
        return loader

    def _for_training(self, loader: torch.utils.data.DataLoader) -> torch.utils.data.DataLoader:
        """Returns a loader with its own generator; a ConfigError if it has no batch, because an incomplete one is dropped."""
        args = self.args
        if args.dataloader_drop_last and has_length(loader) and len(loader) == 0:
            raise ConfigError(
                f"with `dataloader_drop_last` a batch must have at most as many rows as there are, but the "
                f"{len(self.train_dataset)} rows for {args.world_size} processes fill no batch of {self._train_batch_size}. "
                "Lower `per_device_train_batch_size`, or leave `dataloader_drop_last` out."
            )
        return self._with_own_generator(loader)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Same as Trainer's."""
        return self._for_training(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """Same as Trainer's, but loads all rows, whatever `dataloader_drop_last` says, and always those that are given."""
        # With persistent workers Trainer keeps the first loader, and gives it for any other dataset as well.
        with changed(self.args, dataloader_drop_last=False, dataloader_persistent_workers=False):
            return self._with_own_generator(super().get_eval_dataloader(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader:
        """Same as Trainer's, but loads all rows, whatever `dataloader_drop_last` says."""
        with changed(self.args, dataloader_drop_last=False):
            return self._with_own_generator(super().get_test_dataloader(test_dataset))

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        """Same as Trainer's; `--optim sgd` gets momentum as well."""
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if kind is torch.optim.SGD:
            settings = {**settings, "momentum": args.momentum, "nesterov": args.nesterov and args.momentum > 0}
        return kind, settings

    def create_optimizer(self, *args: Any, **settings: Any) -> torch.optim.Optimizer:
        """Same as Trainer's."""
        with _taking_optimizer(self.args):
            return super().create_optimizer(*args, **settings)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Same as Trainer's; a rate that follows a metric follows it upwards where `greater_is_better`."""
        args = self.args
        settings: Any = args.lr_scheduler_kwargs
        if steers_the_rate(args):
            settings = {"mode": "max" if args.greater_is_better else "min", **(settings or {})}
        with _taking_optimizer(args), changed(args, lr_scheduler_kwargs=settings):
            return super().create_scheduler(num_training_steps, optimizer)

    # ------------------------------------------------------------------------------------------------------- training

    def training_step(self, *args: Any, **settings: Any) -> torch.Tensor:
        """Same as Trainer's."""
        loss = super().training_step(*args, **settings)
        self._divergence.watch(loss, self.state.global_step)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **settings: Any) -> None:
        """Same as Trainer's, but what is logged at the end covers all steps, also those before the training was resumed."""
        if "train_runtime" in logs:
            self._totals.complete(logs)
        super().log(logs, *args, **settings)

    def metric_names(self) -> set[str] | None:
        """Returns the names of what `evaluate` will measure, without `eval_`; None where that is not known before."""
        return None

    # ------------------------------------------------------------------------------------------------------ evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Same as Trainer's."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if eval_dataset is None and metric_key_prefix == "eval":
            own = without_prefix(metrics)
            self._measured = {key: value for key, value in own.items() if not key.endswith(("time", "_per_second"))}
            # Trainer asks for the rate's metric before it chooses; an `evaluate` that was overridden may still add it.
            if self.is_in_train and steers_the_rate(self.args) and type(self).evaluate is ResumableTrainer.evaluate:
                check_measured(self.args, own)
        return metrics


@contextmanager
def changed(owner: Any, **values: Any) -> Iterator[None]:
    """Gives attributes other values for a while: settings that Trainer reads, or a function that it calls."""
    given = {name: getattr(owner, name) for name in values}
    vars(owner).update(values)
    try:
        yield
    finally:
        vars(owner).update(given)


def check_has_model(model: Any) -> None:
    """Raises a ConfigError where a trainer has no model: a search drops that of its last trial."""
    advice = (
        "A search keeps none of its trials': set the best settings in `args` and train, or open a trial's checkpoint."
    )
    check_kind("model", model, torch.nn.Module, "a model", advice)


_FULL = 1 << 20
"""Bytes below which a disk is full: torch does not say why it could not write."""


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Same as `writing`, also for what torch and safetensors raise where a file cannot be written."""
    with writing(path):
        try:
            yield
        except SafetensorError as error:
            raise OSError(str(error)) from error
        except RuntimeError as error:
            if not any(word in str(error) for word in ("inline_container", "iostream", "PytorchStreamWriter")):
                raise
            if shutil.disk_usage(nearest(path)).free < _FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise OSError(str(error)) from error


def _make_readable(folder: Path) -> None:
    """Gives the weights that were written to a folder the permissions of its other files.

    safetensors 0.8 lets only their owner read them, but a student is often used by others than the one who trained it.
    """
    for weights in folder.glob("*.safetensors"):
        shutil.copymode(folder / TRAINING_ARGS_NAME, weights)


def _prepared(loader: Any, seed: int | None) -> Any:
    """Gives a loader a generator of its own, from which it draws the seed of its workers when it starts to iterate.

    A loader with persistent workers draws it only once. From the global generator, what the model draws after a restart
    (dropout) would not be what it would have been without. The workers leave Ctrl-C to their parent.

    Returns:
        The loader that iterates, inside of accelerate's wrapper.
    """
    inner = getattr(loader, "base_dataloader", loader)
    if seed is not None:
        inner.generator = torch.Generator().manual_seed(seed)
    if getattr(inner.worker_init_fn, "func", None) is not quiet_worker:  # Trainer keeps loaders for evaluation
        inner.worker_init_fn = partial(quiet_worker, then=inner.worker_init_fn)
        shield_workers(inner)
    return inner


def _taking_optimizer(args: TrainingArguments) -> AbstractContextManager[None]:
    return as_config_errors(
        f"`optim` {plain(args.optim)} and `lr_scheduler_type` {plain(args.lr_scheduler_type)} must take their settings"
    )


class _Bars(ProgressCallback):
    """Same as transformers', with this package's bars: lines now and then where no terminal shows them."""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.current_step = state.global_step
        self.training_bar = self._bar(state, state.max_steps, "training", unit="step", initial=state.global_step)

    def on_prediction_step(
        self, args: Any, state: TrainerState, control: TrainerControl, eval_dataloader: Any = None, **settings: Any
    ) -> None:
        bar: Any = self.prediction_bar
        if bar is None and has_length(eval_dataloader):
            leave = self.training_bar is None
            self.prediction_bar = self._bar(state, len(eval_dataloader), "evaluating", unit="batch", leave=leave)
        elif bar is not None and bar.n == bar.total:
            bar.total += len(eval_dataloader)  # the averaged weights are evaluated, too
        super().on_prediction_step(args, state, control, eval_dataloader, **settings)

    def _bar(self, state: TrainerState, total: int, name: str, **settings: Any) -> Any:
        return progress_bar(total=total, desc=name, show=state.is_world_process_zero, dynamic_ncols=True, **settings)


class _Forgetting(TrainerCallback):
    """Forgets metrics and temperature of weights that change. A callback, because not every `training_step` calls Trainer's."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer._calibration = None

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer._measured = {}

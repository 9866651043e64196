"""Ctrl-C or SIGTERM during a training or in its evaluation, which loses no step of it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_dr.cli.launch import Terminated
from hf_dr.replay.streaming import StreamedReinforcedDataset
from hf_dr.training.checkpoints import last_checkpoint

logger = logging.getLogger(__name__)


class _StopsAfterStep(TrainerCallback):
    """Ends a training after a step, with a checkpoint, once it is told to."""

    def __init__(self) -> None:
        self.told: type[KeyboardInterrupt] | None = None  # what it is stopped by

    def tell(self, number: int, *_: Any) -> None:
        """Handles the signal; Ctrl-C then ends the program at once. SIGTERM may come from a launcher and the system, too."""
        if self.told is None:
            self.told = Terminated if number == signal.SIGTERM else KeyboardInterrupt
            signal.signal(signal.SIGINT, signal.default_int_handler)
            logger.warning("Stopping: a checkpoint is saved after this step. Ctrl-C again stops at once, without it.")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.told:
            control.should_training_stop = True
            control.should_save |= not _is_due(state)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.told and control.should_training_stop:
            control.should_evaluate &= _is_due(state)
            control.should_save = _is_due(state)  # with the metrics of that evaluation

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.told:  # perhaps only now
            control.should_training_stop = True
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.told and control.should_training_stop:
            raise self.told  # before Trainer loads the best weights, and deletes all but them


def _is_due(state: TrainerState) -> bool:
    """Whether the training would have ended its epoch, or all, by itself: what is due at that end is done."""
    return state.global_step >= state.max_steps or float(state.epoch or 0).is_integer()


@contextmanager
def checkpoint_on_interrupt(trainer: Trainer) -> Iterator[None]:
    """While it is open, Ctrl-C ends a training after its step, with a checkpoint, and only then raises KeyboardInterrupt.

    SIGTERM does the same and raises Terminated.
    """
    stops = _StopsAfterStep()
    trainer.add_callback(stops)
    try:
        with _handled(trainer, {signal.SIGINT: stops.tell, signal.SIGTERM: stops.tell}):
            yield
        if stops.told:
            raise stops.told
    except KeyboardInterrupt:
        if trainer.is_world_process_zero():
            kept = last_checkpoint(str(trainer.args.output_dir))
            goes_on = "no checkpoint was saved" if kept is None else f"the same command goes on from {Path(kept).name}"
            logger.warning("Stopped at step %d of %d: %s.", trainer.state.global_step, trainer.state.max_steps, goes_on)
        raise
    finally:
        trainer.remove_callback(stops)


@contextmanager
def training_kept_on_interrupt(trainer: Trainer) -> Iterator[None]:
    """While it is open, Ctrl-C or SIGTERM after a training, in its evaluation, saves the last step if no checkpoint has it.

    None has where `save_strategy` is no. It is not saved where the best weights were loaded in place of the last step's,
    where no training can go on from it, and by several processes.
    """
    with _handled(trainer, {signal.SIGTERM: _terminate}):
        try:
            yield
        except KeyboardInterrupt:
            args = trainer.args
            last = f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
            kept = last_checkpoint(str(args.output_dir))
            left = args.load_best_model_at_end or args.save_only_model or _is_within_stream(trainer)
            if (kept is None or Path(kept).name != last) and not (left or args.world_size > 1):
                assert trainer.model is not None
                trainer._save_checkpoint(trainer.model, None)  # private, but Trainer has no other that saves its state
                kept = last_checkpoint(str(args.output_dir))
            if trainer.is_world_process_zero() and kept is not None:
                logger.warning("Stopped after the training: the same command goes on from %s.", Path(kept).name)
            raise


_USUAL: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@contextmanager
def _handled(trainer: Trainer, handlers: Mapping[signal.Signals, Callable[..., Any]]) -> Iterator[None]:
    """Handles signals in other ways than the usual one.

    Several processes are each stopped at once, because they may be at different steps. A handler that is not Python's own is
    left in its place: a job in the background has none for Ctrl-C, so that it is not for it.
    """
    alone = trainer.args.world_size == 1 and threading.current_thread() is threading.main_thread()
    numbers = [number for number in handlers if alone and signal.getsignal(number) == _USUAL[number]]
    for number in numbers:
        signal.signal(number, handlers[number])
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, _USUAL[number])


def _terminate(*_: Any) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what it leads to must not be stopped
    raise Terminated


def _is_within_stream(trainer: Trainer) -> bool:
    """Whether a training ended within the epoch of a stream, whose progress is known while it is read only."""
    streamed = isinstance(trainer.train_dataset, StreamedReinforcedDataset)
    return streamed and not float(trainer.state.epoch or 0).is_integer()

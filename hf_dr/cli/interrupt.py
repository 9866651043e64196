"""Ctrl-C during a training or in its evaluation, which loses no step of it."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_dr.replay.streaming import StreamedReinforcedDataset
from hf_dr.training.checkpoints import last_checkpoint

logger = logging.getLogger(__name__)


class _StopsAfterStep(TrainerCallback):
    """Ends a training after a step, with a checkpoint, once it is told to."""

    def __init__(self) -> None:
        self.told = False

    def tell(self, *_: Any) -> None:
        """Handles the signal; the next one ends the program at once."""
        self.told = True
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
            raise KeyboardInterrupt  # before Trainer loads the best weights, and deletes all but them


def _is_due(state: TrainerState) -> bool:
    """Whether the training would have ended its epoch, or all, by itself: what is due at that end is done."""
    return state.global_step >= state.max_steps or float(state.epoch or 0).is_integer()


@contextmanager
def checkpoint_on_interrupt(trainer: Trainer) -> Iterator[None]:
    """While it is open, Ctrl-C ends a training after its step, with a checkpoint, and only then raises KeyboardInterrupt.

    Of several processes each is stopped at once, because they may be at different steps. A handler that is not Python's own
    is left in its place: a job in the background has none, so that Ctrl-C is not for it.
    """
    stops = _StopsAfterStep()
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    listens = usual and trainer.args.world_size == 1 and threading.current_thread() is threading.main_thread()
    if listens:
        trainer.add_callback(stops)
        signal.signal(signal.SIGINT, stops.tell)
    try:
        yield
        if stops.told:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        if trainer.is_world_process_zero():
            kept = last_checkpoint(str(trainer.args.output_dir))
            goes_on = "no checkpoint was saved" if kept is None else f"the same command goes on from {Path(kept).name}"
            logger.warning("Stopped at step %d of %d: %s.", trainer.state.global_step, trainer.state.max_steps, goes_on)
        raise
    finally:
        if listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            trainer.remove_callback(stops)


@contextmanager
def training_kept_on_interrupt(trainer: Trainer) -> Iterator[None]:
    """While it is open, Ctrl-C after a training, in its evaluation, saves a checkpoint of the last step if there is none.

    There is none where `save_strategy` is no. It is not saved where the best weights were loaded in place of the last step's,
    where no training can go on from it, and by several processes.
    """
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


def _is_within_stream(trainer: Trainer) -> bool:
    """Whether a training ended within the epoch of a stream, whose progress is known while it is read only."""
    streamed = isinstance(trainer.train_dataset, StreamedReinforcedDataset)
    return streamed and not float(trainer.state.epoch or 0).is_integer()

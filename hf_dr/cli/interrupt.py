"""Ctrl-C or SIGTERM during a training or in its evaluation, which loses no step of it."""

from __future__ import annotations

import itertools
import logging
import math
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_dr.cli.launch import Terminated
from hf_dr.processes import in_process_group
from hf_dr.replay.streaming import StreamedReinforcedDataset
from hf_dr.training.calibrating import as_trained
from hf_dr.training.checkpoints import last_checkpoint

logger = logging.getLogger(__name__)

NOTICE = 2.0
"""Seconds from the signal to the last step of several processes, in which all of them see that one was told to stop."""
NOTICE_STEPS = 4
"""The least steps for the same: a process may be some ahead of another, because it does not wait for the GPUs."""


class _Agreement:
    """Agrees on the step after which several processes stop, although perhaps only one of them was told to.

    The first to be told writes a step that no process has reached yet into the store of their group, where all look after each
    step. A collective would not do: it must come at the same place in each process, and so at every step.
    """

    _numbers = itertools.count()  # numbers the trainings of this process; every process has equally many

    def __init__(self, store: torch.distributed.Store) -> None:
        self._store = torch.distributed.PrefixStore(f"hf_dr/stop/{next(self._numbers)}", store)
        self._before: float | None = None  # the time at which the previous step ended
        self._seconds: deque[float] = deque([math.inf], maxlen=32)  # durations of the last steps
        self._last: tuple[int, int] | None = None  # the signal, and the last step to take

    @classmethod
    def of_group(cls) -> _Agreement | None:
        """Returns the agreement of the process group; None without a group of torch that has a store."""
        if not in_process_group():
            return None
        store = torch.distributed.distributed_c10d._get_default_store()  # private, but a second one would need a port
        return None if store is None else cls(store)

    def look(self, told: int | None, step: int) -> int | None:
        """Looks after a step whether any process was told to stop; returns the signal that the first of them got."""
        now = time.monotonic()
        if self._before is not None:
            self._seconds.append(now - self._before)
        self._before = now
        if self._last is None:
            try:
                if told is not None:
                    last = step + max(NOTICE_STEPS, math.ceil(NOTICE / statistics.median_low(self._seconds)))
                    self._store.compare_set("last", "", f"{told:d} {last}")  # the first who says it decides
                if self._store.check(["last"]):
                    number, last = map(int, self._store.get("last").split())
                    self._last = number, last
                    logger.info("Stopping: all processes save a checkpoint after step %d.", last)
            except torch.distributed.DistError:  # process 0 has ended, and with it the store, and soon the training
                return None
        return None if self._last is None else self._last[0]

    def is_reached(self, step: int) -> bool:
        """Whether this is the step, or a later one."""
        return self._last is not None and step >= self._last[1]


class _StopsAfterStep(TrainerCallback):
    """Ends a training after a step, with a checkpoint, once it is told to."""

    def __init__(self, agreement: _Agreement | None) -> None:
        self.told: int | None = None  # the signal by which it is stopped
        self._agreement = agreement  # with the other processes, if there are any

    def tell(self, number: int, *_: Any) -> None:
        """Handles the signal; Ctrl-C then ends the program at once. SIGTERM may come from a launcher and the system, too."""
        if self.told is None:
            self.told = number
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self._agreement is None:
                logger.warning(
                    "Stopping: a checkpoint is saved after this step. Ctrl-C again stops at once, without it."
                )

    def stopped(self) -> KeyboardInterrupt:
        """What to raise then."""
        return Terminated() if self.told == signal.SIGTERM else KeyboardInterrupt()

    def _stops(self, state: TrainerState) -> bool:
        """Whether the present step is the last."""
        return self.told is not None if self._agreement is None else self._agreement.is_reached(state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        agreed = None if self._agreement is None else self._agreement.look(self.told, state.global_step)
        if agreed is not None:  # otherwise keep what `tell` may have set meanwhile
            self.told = agreed
        if self._stops(state):
            control.should_training_stop = True
            control.should_save |= not _is_due(state)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._stops(state) and control.should_training_stop:
            control.should_evaluate &= _is_due(state)
            control.should_save = _is_due(state)  # after the evaluation, so that the checkpoint has its metrics

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._stops(state):  # a single process may have got the signal during the evaluation
            control.should_training_stop = True
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._stops(state) and control.should_training_stop:
            PartialState().wait_for_everyone()  # a launcher ends the others when the first has ended
            raise self.stopped()  # before Trainer loads the best weights and deletes the other checkpoints


def _is_due(state: TrainerState) -> bool:
    """Whether the training would have ended its epoch, or all, by itself: what is due at that end is done."""
    return state.global_step >= state.max_steps or float(state.epoch or 0).is_integer()


@contextmanager
def checkpoint_on_interrupt(trainer: Trainer) -> Iterator[None]:
    """While it is open, Ctrl-C ends a training after its step, with a checkpoint, and only then raises KeyboardInterrupt.

    SIGTERM does the same and raises Terminated. Several processes stop together some steps later, whichever of them gets the
    signal.
    """
    several = trainer.args.world_size > 1
    agreement = _Agreement.of_group() if several else None
    stops = _StopsAfterStep(agreement)
    handlers = {signal.SIGINT: stops.tell, signal.SIGTERM: stops.tell}
    trainer.add_callback(stops)
    try:
        with _handled({} if several and agreement is None else handlers):
            yield
            if agreement is not None:  # a signal after the last step, when no step was left to agree on
                stops.told = next((told for told in gather_object([stops.told]) if told is not None), None)
            if stops.told is not None:
                _save_last_step(trainer)
                raise stops.stopped()
    except KeyboardInterrupt:
        if trainer.is_world_process_zero():
            kept = last_checkpoint(str(trainer.args.output_dir))
            goes_on = "no checkpoint was saved" if kept is None else f"the same command goes on from {Path(kept).name}"
            logger.warning("Stopped at step %d of %d: %s.", trainer.state.global_step, trainer.state.max_steps, goes_on)
        _finish_push(trainer)
        raise
    finally:
        trainer.remove_callback(stops)


@contextmanager
def training_kept_on_interrupt(trainer: Trainer) -> Iterator[None]:
    """While it is open, Ctrl-C or SIGTERM after a training, in its evaluation, saves the last step if no checkpoint has it.

    Several processes are stopped at once, because one may have measured what another has not.
    """
    several = trainer.args.world_size > 1
    with _handled({} if several else {signal.SIGTERM: _terminate}):
        try:
            yield
        except KeyboardInterrupt:
            if not several:
                _save_last_step(trainer)
            kept = last_checkpoint(str(trainer.args.output_dir))
            if trainer.is_world_process_zero() and kept is not None:
                logger.warning("Stopped after the training: the same command goes on from %s.", Path(kept).name)
            _finish_push(trainer)
            raise


def _finish_push(trainer: Trainer) -> None:
    """Waits for the push that a checkpoint began in a thread: it loads the student, which fails once Python ends."""
    trainer._finish_current_push()  # private, but Trainer itself offers no other


def _save_last_step(trainer: Trainer) -> None:
    """Saves a checkpoint of a training that has ended, if it has none of its last step.

    None has where `save_strategy` is no. It is not saved where the best weights were loaded in place of the last step's, and
    where no training can go on from it.
    """
    args = trainer.args
    kept = last_checkpoint(str(args.output_dir))
    saved = kept is not None and Path(kept).name == f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    if not (saved or args.load_best_model_at_end or args.save_only_model or _is_within_stream(trainer)):
        assert trainer.model is not None
        with as_trained(trainer):
            trainer._save_checkpoint(trainer.model, None)  # private, but Trainer has no other that saves its state


_USUAL: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@contextmanager
def _handled(handlers: Mapping[signal.Signals, Callable[..., Any]]) -> Iterator[None]:
    """Handles signals in other ways than the usual one.

    A handler that is not Python's own is left in its place: a job in the background has none for Ctrl-C, so that it is not for
    it.
    """
    main = threading.current_thread() is threading.main_thread()
    numbers = [number for number in handlers if main and signal.getsignal(number) == _USUAL[number]]
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

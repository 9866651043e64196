"""Workers of loaders end with the training, and only then."""

import copy
import gc
import multiprocessing
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from hf_dr import ReinforcedLoader
from hf_dr.evaluation.run import _Pass
from hf_dr.generation.sources import LoaderSource
from hf_dr.processes import quiet_worker, shield_workers
from tests.training.helpers import BATCH, ROWS, SIZE, STEPS, Watched, pooled, settings_in


def test_workers_end_with_the_training(tmp_path, tiny_plus):
    before = set(multiprocessing.active_children())
    persistent = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "num_train_epochs": 2}
    evaluated = {"eval_strategy": "epoch", "per_device_eval_batch_size": 4}
    args = settings_in(tmp_path, **persistent, **evaluated)
    trainer = Watched(pooled(), args, train_dataset=tiny_plus, eval_dataset=tiny_plus)
    trainer.train()
    deadline = time.monotonic() + 10
    while set(multiprocessing.active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(multiprocessing.active_children()) - before
    assert trainer.evaluate()["eval_loss"] > 0, "a loader that is used again has new workers"


def send_from_outside(number, pid):
    """Sends a signal from another process than the parent, as a terminal or a scheduler does. (Not everybody has `kill`.)"""
    subprocess.run([sys.executable, "-ISc", f"import os; os.kill({pid}, {number:d})"], check=True)


class SignalWorkers(TrainerCallback):
    """Sends a signal to each process that the training has started."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_step_end(self, args, state, control, **_):
        for child in multiprocessing.active_children():
            send_from_outside(self.number, child.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_is_the_parents(tmp_path, tiny_plus, number):
    args = settings_in(tmp_path, dataloader_num_workers=1, num_train_epochs=2, eval_strategy="epoch")
    watched = Watched(
        pooled(), args, train_dataset=tiny_plus, eval_dataset=tiny_plus, callbacks=[SignalWorkers(number)]
    )
    watched.train()
    assert watched.state.epoch == 2


def test_a_loop_that_was_interrupted_can_be_started_again(tiny_plus):
    """As in a notebook, whose interrupt goes to all processes of the kernel; the loader keeps its workers."""
    before = set(multiprocessing.active_children())
    loader = ReinforcedLoader(tiny_plus, 4, device="cpu", num_workers=2)
    assert len(list(zip(loader, range(2), strict=False))) == 2  # one of each worker: both are ready
    for child in set(multiprocessing.active_children()) - before:
        send_from_outside(signal.SIGINT, child.pid)
    assert len(list(loader)) == len(loader)


def test_workers_of_a_loader_in_a_cycle_end_by_themselves(tiny_plus, monkeypatch):
    before = set(multiprocessing.active_children())
    cycle: list = [ReinforcedLoader(tiny_plus, 4, device="cpu", num_workers=2)]
    assert len(list(cycle[0])) == len(cycle[0])
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    terminated = []
    monkeypatch.setattr("multiprocessing.process.BaseProcess.terminate", lambda worker: terminated.append(worker.pid))
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert not terminated
    assert not workers & set(multiprocessing.active_children())


def test_workers_serve_a_shallow_copy_of_their_loader(tiny_plus):
    loader = ReinforcedLoader(tiny_plus, 4, device="cpu", num_workers=1)
    batches = iter(copy.copy(loader))
    next(batches)
    expected = len(loader) - 1
    del loader
    gc.collect()
    assert len(list(batches)) == expected


def test_a_worker_ends_when_its_parent_says_so():
    loader = torch.utils.data.DataLoader(Masks(), num_workers=1, worker_init_fn=quiet_worker)
    iterator = iter(loader)
    next(iterator)
    (worker,) = iterator._workers
    worker.terminate()  # as multiprocessing does at the end of a program, which waits for it then
    worker.join(30)
    assert worker.exitcode == 0


def _left_alone(writing):
    worker = multiprocessing.get_context("fork").Process(target=_stuck_worker, args=(writing,))
    worker.start()
    worker.join()


def _stuck_worker(writing):
    quiet_worker(0)
    writing.send("ready")
    time.sleep(600)  # as one does that has sent more than its parent has read


def test_a_worker_does_not_outlive_its_parent():
    """It leaves SIGTERM to the parent, so nothing but SIGKILL would end it."""
    fork = multiprocessing.get_context("fork")
    reading, writing = fork.Pipe(duplex=False)
    parent = fork.Process(target=_left_alone, args=(writing,))
    parent.start()
    writing.close()
    assert reading.poll(30)
    assert reading.recv() == "ready"
    parent.kill()
    assert reading.poll(30), "the worker still has the pipe open"
    with pytest.raises(EOFError):
        reading.recv()
    parent.join()


class Masks(torch.utils.data.Dataset):
    """Whether Ctrl-C is blocked in the process that reads it."""

    def __len__(self):
        return 2

    def __getitem__(self, row):
        return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())


# A server of processes has what its own parent had when it was started, perhaps by another test.
@pytest.mark.parametrize(("method", "persistent"), [("fork", False), ("fork", True), ("spawn", True)])
def test_workers_are_born_deaf_to_ctrl_c(method, persistent):
    loader = torch.utils.data.DataLoader(
        Masks(), num_workers=1, persistent_workers=persistent, multiprocessing_context=method
    )
    shield_workers(loader)
    for _ in range(2):
        assert all(torch.cat(list(loader)))
    assert not Masks()[0]


def test_workers_start_where_signals_cannot_be_blocked(monkeypatch):
    """Windows has no such calls."""
    for name in ("pthread_sigmask", "sigtimedwait"):
        monkeypatch.delattr(signal, name)
    loader = torch.utils.data.DataLoader(
        range(4), num_workers=2, worker_init_fn=quiet_worker, multiprocessing_context="fork"
    )
    shield_workers(loader)
    assert [int(row) for row in loader] == [0, 1, 2, 3]


class DeafRows(torch.utils.data.Dataset):
    """Rows whose label is 1 where Ctrl-C is blocked."""

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        return {"pixel_values": torch.zeros(3, SIZE, SIZE), "labels": int(Masks()[row])}


@pytest.fixture
def forked():
    """Lets loaders fork: the server of processes, Python 3.14's default, may have been started by another test."""
    method = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("fork", force=True)
    yield
    multiprocessing.set_start_method(method, force=True)


def test_workers_of_the_rest_of_an_epoch_are_born_so_too(tmp_path, forked):
    args = settings_in(tmp_path, dataloader_num_workers=1, save_strategy="steps", save_steps=1)
    first, resumed = (Watched(pooled(), args, train_dataset=DeafRows()) for _ in range(2))
    first.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for trainer, steps in ((first, STEPS), (resumed, STEPS - 1)):
        assert torch.cat([batch["labels"] for batch in trainer.seen]).tolist() == [1] * BATCH * steps


class DeafPass(_Pass):
    """An evaluation whose answers are 1 where Ctrl-C is blocked."""

    _config = SimpleNamespace(batch_size=2, num_workers=1)
    _label = "masks"
    _input_of = (0,)

    def __init__(self):
        self._rows = range(2)

    def __getitem__(self, row):
        return [torch.tensor([float(Masks()[row])])]


def test_workers_of_an_evaluation_and_of_a_run_are_born_so_too(forked):
    assert DeafPass().logits([lambda pixels: pixels])[0].tolist() == [[1.0], [1.0]]
    labeller = SimpleNamespace(teacher=SimpleNamespace(device=torch.device("cpu")), label=lambda views: views)
    maker = Masks()
    maker.first_new = 0
    assert list(LoaderSource(maker, labeller, 1, 1).answers([0, 1])) == [True, True]


def test_shielded_workers_end_with_their_loader():
    """At once, not when Python next looks for cycles: in a notebook each loader that is made again would leave some."""
    loader = torch.utils.data.DataLoader(Masks(), num_workers=1, persistent_workers=True)
    shield_workers(loader)
    list(loader)
    (worker,) = loader._iterator._workers
    gc.disable()
    try:
        del loader
        assert not worker.is_alive()
    finally:
        gc.enable()

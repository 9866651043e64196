"""Several processes that are stopped save one checkpoint together, whichever of them gets the signal."""

import itertools
import json
import signal
from collections.abc import Callable
from pathlib import Path

import children
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from samples import RESUMED_TOGETHER

from hf_dr.cli import interrupt
from hf_dr.cli.main import main
from hf_dr.processes import process_state
from hf_dr.training.trainer import ReinforcedTrainer

EPOCHS, STEPS = 4, 3  # of two processes with batches of two


def words(plus: Path, out: Path) -> list[str]:
    flags = {
        "--dataset": plus, "--student": "timm:test_resnet", "--output_dir": out, "--per_device_train_batch_size": 2,
        "--num_train_epochs": EPOCHS, "--save_strategy": "no", "--optim": "sgd", "--learning_rate": 0.05,
        "--ddp_find_unused_parameters": "false",
    }  # fmt: skip
    return ["train", *(str(part) for flag in flags.items() for part in flag)]


def train_told(arguments: list[str], told: dict[int, int], number: int, notice: float) -> int:
    """Trains; each process of `told` gets the signal as it begins its step of that number."""
    interrupt.NOTICE = notice
    training_step = ReinforcedTrainer.training_step
    steps = itertools.count(1)

    def step(*given, **settings):
        if next(steps) == told.get(process_state().process_index):
            signal.raise_signal(number)
        return training_step(*given, **settings)

    ReinforcedTrainer.training_step = step
    return main(arguments)


def stopped(plus: Path, out: Path, told: dict[int, int], number: int, notice: float = 0.0) -> tuple[list[int], str]:
    """Returns the exit statuses of both, and what they printed."""
    log = out.with_suffix(".log")
    both = children.start_two(train_told, words(plus, out), told, number, notice, log=log)
    return [child.wait() for child in both], both[0].text


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_folder) -> dict[str, torch.Tensor]:
    """The weights of a training that was not stopped."""
    out = tmp_path_factory.mktemp("together") / "whole"
    children.run(main, words(tiny_folder, out), two=True, log=out.with_suffix(".log"))
    return load_file(out / "model.safetensors")


@RESUMED_TOGETHER
@pytest.mark.parametrize(
    ("told", "number", "status"),
    [({0: 2, 1: 2}, signal.SIGINT, 130), ({0: 2, 1: 3}, signal.SIGTERM, 143), ({1: 2}, signal.SIGTERM, 143)],
    ids=["both", "one after the other", "one alone"],
)
def test_all_stop_after_the_same_step(tmp_path, tiny_folder, whole, told, number, status):
    out = tmp_path / "out"
    statuses, text = stopped(tiny_folder, out, told, number)
    assert statuses == [status, status], text[-3000:]
    at = 2 + interrupt.NOTICE_STEPS
    assert f"Stopping: all processes save a checkpoint after step {at}." in text
    assert f"Stopped at step {at} of {EPOCHS * STEPS}: the same command goes on from checkpoint-{at}." in text
    assert [path.name for path in out.glob("checkpoint-*")] == [f"checkpoint-{at}"]
    log = tmp_path / "again.log"
    text = children.run(main, words(tiny_folder, out), two=True, log=log)
    assert f"Resuming from {out / f'checkpoint-{at}'}" in text
    resumed = load_file(out / "model.safetensors")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@RESUMED_TOGETHER
def test_who_is_told_too_late_to_agree_keeps_the_last_step(tmp_path, tiny_folder, whole):
    out = tmp_path / "out"
    statuses, text = stopped(tiny_folder, out, {1: EPOCHS * STEPS - 1}, signal.SIGTERM, notice=60)
    assert statuses == [143, 143], text[-3000:]
    last = EPOCHS * STEPS
    assert f"Stopped at step {last} of {last}: the same command goes on from checkpoint-{last}." in text
    kept = load_file(out / f"checkpoint-{last}" / "model.safetensors")
    assert all(torch.equal(kept[name], whole[name]) for name in whole)
    assert json.loads((out / f"checkpoint-{last}" / "trainer_state.json").read_text())["global_step"] == last


@pytest.fixture
def agreements(monkeypatch) -> Callable[[int], list[interrupt._Agreement]]:
    """Those of several processes, which share a store."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(interrupt._Agreement, "_numbers", itertools.repeat(0))
    return lambda count: [interrupt._Agreement(store) for _ in range(count)]


@pytest.mark.parametrize(("seconds", "ahead"), [(5.0, 4), (0.5, 4), (0.25, 8), (0.03, 67)])
def test_the_last_step_is_so_far_ahead_that_all_learn_of_it(agreements, monkeypatch, seconds, ahead):
    took = [seconds] * 9
    took[5] += 60  # an evaluation
    ends = itertools.accumulate([100.0, *took])
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: next(ends))
    (alone,) = agreements(1)
    assert [alone.look(None, step) for step in range(1, 10)] == [None] * 9
    assert alone.look(signal.SIGTERM, 10) == signal.SIGTERM
    assert [alone.is_reached(10 + ahead + more) for more in (-1, 0, 1)] == [False, True, True]


@given(st.lists(st.none() | st.integers(1, 20), min_size=2, max_size=4).filter(any), st.randoms(use_true_random=False))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whoever_is_told_all_stop_after_one_step(agreements, monkeypatch, told, order):
    """Processes look in any order after each step."""
    monkeypatch.setattr(interrupt, "NOTICE", 0.0)
    every = agreements(len(told))
    every[0]._store.delete_key("last")
    heard = {}
    for step in range(1, 30):
        for rank in order.sample(range(len(told)), len(told)):
            mine = told[rank]
            number = every[rank].look(signal.SIGINT + rank if mine is not None and mine <= step else None, step)
            if every[rank].is_reached(step):
                heard.setdefault(rank, (step, number))
    assert len(heard) == len(told)
    assert len(set(heard.values())) == 1
    assert next(iter(heard.values()))[0] == min(filter(None, told)) + interrupt.NOTICE_STEPS


def test_a_store_that_is_gone_is_no_error_of_its_own(agreements):
    """Whoever goes on without the process that held it fails at the next gradients, and says why."""

    class Gone:
        def check(self, keys):
            raise torch.distributed.DistNetworkError("connection reset")

    (alone,) = agreements(1)
    alone._store = Gone()
    assert alone.look(None, 1) is None
    assert not alone.is_reached(100)

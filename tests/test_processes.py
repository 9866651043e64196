"""What a process does once, before it computes: every kernel is called, and before another thread can call it."""

import importlib
import os
import platform
import subprocess
import sys
import threading
from unittest.mock import Mock

import pytest
import torch
from conftest import ALL_OPS
from torch import nn
from torch.overrides import TorchFunctionMode

from hf_dr.allocator import has_gpu, keep_freed_memory
from hf_dr.cli import launch
from hf_dr.errors import ConfigError
from hf_dr.evaluation.config import EvaluateConfig
from hf_dr.evaluation.run import run_evaluation
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce_job
from hf_dr.generation.verify import verify
from hf_dr.processes import KERNELS, OVER_ROWS, Alone, find_device, has_amx, on_main, process_state, warm_up_kernels
from hf_dr.training.resumable import ResumableTrainer
from hf_dr.training.resumable_arguments import ResumableArguments

CALLERS = ("hf_dr.generation.job", "hf_dr.training.resumable", "hf_dr.evaluation.run", "hf_dr.generation.verify")
# What teachers, losses and optimizers surely call; the others of the list are there because models may.
NEEDED = {"cos", "erf", "exp", "expm1", "log", "log1p", "log2", "rsqrt", "sigmoid", "sin", "sqrt", "tan", "tanh"}


class Calls(TorchFunctionMode):
    """Notes the name of each of torch's functions that is called on a tensor, and the tensor's dtype and device."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[tuple[str, torch.dtype, str]] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if args and isinstance(args[0], torch.Tensor):
            self.made.add((func.__name__, args[0].dtype, args[0].device.type))
        return func(*args, **(kwargs or {}))


def test_each_kernel_is_called_in_both_precisions_on_the_cpu():
    with Calls() as calls:
        warm_up_kernels()
    wanted = {(name, dtype, "cpu") for name in (*KERNELS, *OVER_ROWS) for dtype in (torch.float32, torch.float64)}
    assert calls.made >= wanted
    assert set(KERNELS) >= NEEDED
    assert set(OVER_ROWS) == {"log_softmax", "logsumexp", "softmax"}


@pytest.mark.parametrize(("local_rank", "meets"), [("0", True), ("-1", False), (None, False)])
def test_what_accelerate_takes_for_one_process_meets_nobody(monkeypatch, local_rank, meets):
    launch = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "LOCAL_RANK": local_rank}
    for name, value in launch.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    opened = Mock()
    opened.return_value = iter([(torch.distributed.HashStore(), 0, 1)])
    monkeypatch.setattr(importlib.import_module("torch.distributed.rendezvous"), "rendezvous", opened)
    state = Mock(_shared_state={})
    monkeypatch.setattr("hf_dr.processes.PartialState", state)
    process_state()
    assert opened.called == ("store" in state.call_args.kwargs) == meets


def test_another_default_device_is_left_alone():
    with torch.device("meta"), Calls() as calls:
        warm_up_kernels()
    assert {device for _, _, device in calls.made} == {"cpu"}


@pytest.fixture
def events(monkeypatch):
    """What happens in order: `warm` for the function's call, else the name of a thread that starts."""
    noted: list[str] = []
    start = threading.Thread.start

    def noting(thread: threading.Thread) -> None:
        noted.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noting)
    for name in CALLERS:
        monkeypatch.setattr(importlib.import_module(name), "warm_up_kernels", lambda: noted.append("warm"))
    return noted


def test_the_main_process_works_and_its_error_is_raised():
    def fail() -> None:
        raise ConfigError("the folder must be new. Choose another.")

    assert on_main(Alone(), lambda: 7) == 7
    with pytest.raises(ConfigError, match="the folder must be new"):
        on_main(Alone(), fail)
    assert on_main(Alone(1, 1, is_main_process=False), fail) is None, "another process does not do the work"


def test_a_run_calls_them_before_its_first_thread(events, tmp_path, tiny_dataset, tiny_teacher):
    config = ReinforceConfig(str(tmp_path), num_views=2, top_k=3, num_workers=2)
    reinforce_job(tiny_dataset, tiny_teacher, ALL_OPS, config).run()
    assert events[0] == "warm"
    assert any(name.startswith("reinforce") for name in events)


def test_an_estimate_calls_them(events, tmp_path, tiny_dataset, tiny_teacher):
    config = ReinforceConfig(str(tmp_path), num_views=2, top_k=3)
    reinforce_job(tiny_dataset, tiny_teacher, ALL_OPS, config).estimate()
    assert events[0] == "warm"


def test_a_trainer_calls_them_when_it_is_made(events, tmp_path):
    ResumableTrainer(nn.Linear(2, 2), ResumableArguments(str(tmp_path)))
    assert events[0] == "warm"


def test_an_evaluation_calls_them_first(events):
    config = EvaluateConfig(["a"], ["imagenet"], "unused", corrupt=["unknown"])
    with pytest.raises(ConfigError, match="`corrupt` must name sets with clean images"):
        run_evaluation(config)
    assert events == ["warm"]


def test_a_verification_calls_them_first(events, tiny_plus, tiny_teacher):
    assert verify(tiny_plus, tiny_teacher, num_rows=1).ok
    assert events[0] == "warm"


def test_the_device_is_the_accelerator_of_the_local_rank(monkeypatch):
    there = [torch.device("cuda")]
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: there[0])
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert find_device() == torch.device("cpu")  # the tests' environment asks for it
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    assert find_device() == torch.device("cuda:2")
    monkeypatch.delenv("LOCAL_RANK")
    assert find_device() == torch.device("cuda:0")
    there[0] = None
    assert find_device() == torch.device("cpu")


# -------------------------------------------------------------------------------------------------------- the allocator


SAME_BYTES = """
import sys
import torch
from hf_dr.allocator import keep_freed_memory
print(keep_freed_memory(), keep_freed_memory())
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 3)).eval()
with torch.inference_mode():
    for n in range(3):
        answer = model(torch.rand(8, 3, 64, 64))
print(answer.double().sum().item().hex())
"""


def in_a_process(**environment):
    done = subprocess.run(
        [sys.executable, "-c", SAME_BYTES],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    return done.stdout.split("\n")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an allocator of another C library")
def test_freed_memory_is_kept_unless_it_is_not_wanted():
    kept, answer, _ = in_a_process()
    assert kept == "True True"
    assert in_a_process(HF_DR_ALLOCATOR="default") == ["False False", answer, ""]


def test_the_allocator_is_set_once_and_for_a_cpu_only(monkeypatch, tmp_path, tiny_dataset, tiny_teacher):
    calls = []

    class Library:
        gnu_get_libc_version = None

        def mallopt(self, *setting):
            calls.append(setting)
            return 1

    monkeypatch.setattr("ctypes.CDLL", lambda name: Library())
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("HF_DR_ALLOCATOR", raising=False)
    keep_freed_memory.cache_clear()
    config = ReinforceConfig(str(tmp_path), num_views=2, top_k=3)
    job = reinforce_job(tiny_dataset, tiny_teacher, ALL_OPS, config)
    monkeypatch.setattr(job.source, "device", torch.device("meta"))
    job.estimate()
    assert not calls
    monkeypatch.setattr(job.source, "device", torch.device("cpu"))
    job.run()
    job.run()
    assert calls == [(-4, 0), (-1, 1 << 30), (-8, 1)]
    keep_freed_memory.cache_clear()
    monkeypatch.setattr(Library, "mallopt", lambda self, *setting: 0)
    assert not keep_freed_memory()
    keep_freed_memory.cache_clear()
    del Library.gnu_get_libc_version  # another C library
    assert not keep_freed_memory()
    keep_freed_memory.cache_clear()


@pytest.mark.parametrize(
    ("command", "gpu", "expected"), [("reinforce", False, 1), ("reinforce", True, 0), ("push", False, 0)]
)
def test_a_command_that_teaches_keeps_memory_before_torch_is_imported(monkeypatch, command, gpu, expected):
    calls = []
    monkeypatch.setattr(launch, "has_gpu", lambda: gpu)
    monkeypatch.setattr(launch, "keep_freed_memory", lambda: calls.append("kept"))
    module = launch.COMMANDS[command].module
    monkeypatch.setattr(f"hf_dr.cli.{module}.{command}_command", lambda argv, prog: len(calls))
    assert launch.launch(command, [], "hf-dr") == expected


def test_a_worker_that_imports_a_script_is_known(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        "import multiprocessing\n"
        "print(getattr(multiprocessing.current_process(), '_inheriting', False), flush=True)\n"
        "if __name__ == '__main__':\n"
        "    for method in ('fork', 'spawn', 'forkserver'):\n"
        "        worker = multiprocessing.get_context(method).Process(target=int)\n"
        "        worker.start()\n"
        "        worker.join()\n"
    )
    said = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == "False"
    assert set(said[1:]) == {"True"}


def test_a_gpu_that_is_hidden_is_none(monkeypatch):
    monkeypatch.setattr("pathlib.Path.exists", lambda path: str(path) == "/dev/nvidiactl")
    for name in ("ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    assert has_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not has_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert not has_gpu()


def test_a_cpu_with_units_for_bfloat16_is_known_by_its_flags(monkeypatch):
    monkeypatch.setattr("pathlib.Path.read_text", lambda path, encoding: "flags : avx2 amx_tile amx_bf16 amx_int8")
    assert has_amx()
    monkeypatch.setattr("pathlib.Path.read_text", lambda path, encoding: "flags : avx2")
    assert not has_amx()

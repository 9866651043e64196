"""What a process does once, before a job, so that it computes as every other does; pools, and work that runs ahead."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import platform
import signal
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

from hf_dr.errors import ConfigError, HfDrError

# Those that torch's CPU library hands over to MKL's vector mathematics, by their names in torch, and what is built on them.
KERNELS = (
    "acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "erf", "erfc", "erfinv", "exp", "exp2", "expm1",
    "lgamma", "log", "log10", "log1p", "log2", "reciprocal", "rsqrt", "sigmoid", "sin", "sinh", "sqrt", "tan", "tanh",
)  # fmt: skip
"""Functions of one argument."""
OVER_ROWS = ("log_softmax", "logsumexp", "softmax")
"""Functions of one argument and a dimension."""

MEETING = timedelta(minutes=10)
"""How long the processes of a launch wait for each other at its start: with a wrong address they would never meet."""
_WAITING = timedelta(days=7)

_Batch = TypeVar("_Batch")
_Asked = TypeVar("_Asked")
_Result = TypeVar("_Result")


def warm_up_kernels() -> None:
    """Calls each of torch's functions that MKL computes once on the CPU, in float32 and float64.

    Call it in the main thread before any other thread computes. MKL looks its kernels up at the first call of each function
    and precision. While one thread is doing so, another may find the entry half written and take the kernel of low accuracy
    instead, which is off by up to 1.5e-4 (pytorch/pytorch issue 188792; pull request 188791 proposes the same cure; oneMKL
    2025 has no such race). So a stored answer could differ from run to run, about once in a hundred processes.
    """
    for dtype in (torch.float32, torch.float64):
        # 0.5 is in the domain of all but acosh, whose NaN does no harm. The device is named: another may be the default.
        values = torch.full((1,), 0.5, dtype=dtype, device="cpu")
        for name in KERNELS:
            getattr(torch, name)(values)
        for name in OVER_ROWS:
            getattr(torch, name)(values, dim=0)


def has_amx() -> bool:
    """Whether the CPU multiplies matrices of bfloat16 in units of their own (Intel's AMX)."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return False


def process_state() -> PartialState:
    """Returns accelerate's state; a rank that has finished waits for the others for up to a week, not ten minutes.

    Without an accelerator in the machine several processes form a group only if they ask for the CPU, so this does. They
    must meet within ten minutes: the group alone has one timeout for both.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    leave_group_at_exit()
    named = os.environ.keys() >= {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    of_launch = named and os.environ.get("LOCAL_RANK", "-1") != "-1"  # what accelerate takes for none
    by_deepspeed = parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")  # which meets by itself
    met: dict[str, Any] = {}
    if of_launch and not (by_deepspeed or PartialState._shared_state or in_process_group()):
        from torch.distributed.rendezvous import rendezvous  # here, because torch may be built without it

        store, rank, world_size = next(rendezvous("env://", timeout=MEETING))
        store.set_timeout(_WAITING)
        met = {"store": torch.distributed.PrefixStore("group", store), "rank": rank, "world_size": world_size}
    return PartialState(cpu=cpu, timeout=_WAITING, **met)


def refuse_several(what: str) -> None:
    """Refuses that several processes, which accelerate launched, do what one does.

    Args:
        what: Named in the message: a command or setting.

    Raises:
        ConfigError: There are several.
    """
    count = process_state().num_processes
    if count > 1:
        raise ConfigError(f"`{what}` takes one process, got {count}. Leave accelerate out.")


def find_device(name: str | torch.device | None = None) -> torch.device:
    """Returns what this process computes on: the accelerator of its local rank, or the CPU where there is none or it is chosen.

    Unlike `process_state` it opens no process group, so that libraries that are set up later are not bound by it.

    Args:
        name: What was asked for, if anything.

    Raises:
        ConfigError: This machine has no such device.
    """
    if name is not None:
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
            raise ConfigError(
                f"`device` must be one of this machine, got {str(name)!r} ({str(error).splitlines()[0].rstrip('. '):.200}). "
                "Leave it out."
            ) from error
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.device("cpu")
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device(accelerator.type, rank % torch.accelerator.device_count())


def describe_processor(device: torch.device) -> str:
    """Returns the kind of processor on which a device computes: what may change the last bits of an answer."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"{platform.machine()} CPU with {torch.backends.cpu.get_cpu_capability()}"


def refuse_unguarded() -> None:
    """Refuses to be called at the top level of a script that a worker process imports, as it does before it works.

    Only a process that was forked does not: on Linux the usual kind before Python 3.14.

    Raises:
        ConfigError: This process is such a worker.
    """
    # Python's own check of this, when a worker starts one of its own, looks at the same.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ConfigError(
            'a script that starts worker processes must do its work below `if __name__ == "__main__":`, but a worker, which '
            "imports the script first, has begun to do all of it again. Indent it below such a line."
        )


def in_process_group() -> bool:
    """Whether this process belongs to a group of `torch.distributed`."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def leave_group_at_exit() -> None:
    """Has this process leave its group before the interpreter goes down."""
    atexit.unregister(_leave_group)  # last in, first out
    atexit.register(_leave_group)


def _leave_group() -> None:
    """Leaves the group before the interpreter goes down: a thread of gloo's may abort a process whose work is done.

    The thread that ends a collective gives up what belongs to Python, for which it must hold the interpreter's lock. Where
    it finds the interpreter going down instead, Python before 3.14 ends the thread there, which C++ takes for a crash.
    """
    if in_process_group():
        torch.distributed.destroy_process_group()
        # The lock is free meanwhile. The threads cannot be joined: DDP keeps their group for good.
        time.sleep(0.2)


def num_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(device: torch.device) -> int:
    """Returns how many workers serve one teacher: the machine's cores, shared among its ranks; on a GPU, one core less."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = max(1, num_cores() // ranks)
    return cores if device.type == "cpu" else min(16, max(1, cores - 1))


@contextlib.contextmanager
def thread_pool(threads: int, name: str, **settings: Any) -> Iterator[ThreadPoolExecutor]:
    """Gives a pool of threads; what none has begun when the block ends, after an error or Ctrl-C, is given up."""
    pool = ThreadPoolExecutor(threads, name, **settings)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(
    batches: Iterable[_Batch],
    ask: Callable[[_Batch], _Asked],
    finish: Callable[[_Batch, _Asked], _Result],
    depth: int = 3,
) -> Generator[_Result]:
    """Yields `finish(batch, ask(batch))` for each batch, in order, with `ask` running ahead by at most `depth` batches.

    `ask` gives work to a device or a pool and does not wait for it; `finish` reads what has come of it meanwhile. Both run in
    the caller's thread: threads that give work to a device would take Python's lock from each other at every operation.
    """
    waiting: deque[tuple[_Batch, _Asked]] = deque()
    for batch in batches:
        waiting.append((batch, ask(batch)))
        if len(waiting) > depth:
            yield finish(*waiting.popleft())
    while waiting:
        yield finish(*waiting.popleft())


def quiet_worker(worker: int, then: Callable[[int], object] | None = None) -> None:
    """Prepares a DataLoader's worker: one thread of torch, and Ctrl-C left to the parent, which ends its workers.

    So is SIGTERM that is not the parent's: a job that is ended gets it in all of its processes, and the parent may have a
    step to finish. A worker that was not forked may have threads from before, which do not block it, and end by it.

    Args:
        worker: Its number.
        then: What else prepares it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    if then is not None:
        then(worker)


def _end_with_parent() -> None:
    """Ends this process at the parent's SIGTERM, not at that of others, and soon after the parent has ended.

    A worker cannot end by itself then while it sends what nobody reads any more.
    """
    parent = multiprocessing.parent_process()
    started_by = os.getppid()  # the parent, or its server of processes, which ends with it
    while os.getppid() == started_by:
        received = signal.sigtimedwait({signal.SIGTERM}, 5)
        if received is not None and parent is not None and received.si_pid == parent.pid:
            break
    os._exit(0)  # as torch's own handler does


def shield_workers(loader: Any) -> None:
    """Has a DataLoader start its workers with Ctrl-C blocked, so that they leave it to their parent from the first moment.

    Where workers are not forked, which is usual since Python 3.14, they import for seconds before `quiet_worker` is called.
    """
    loader = getattr(loader, "base_dataloader", loader)  # the one that iterates, inside of accelerate's wrapper
    if loader.num_workers == 0 or not hasattr(signal, "pthread_sigmask"):  # not on Windows
        return
    start = weakref.WeakMethod(loader._get_iterator)  # private, but torch has no other that only starts them

    def started() -> Any:
        own = start()  # weak: a loader that nobody needs must go at once, and its workers with it
        assert own is not None
        context = own.__self__.multiprocessing_context or multiprocessing
        if context.get_start_method() != "fork":
            resource_tracker.ensure_running()  # else it starts with the workers, and opens Ctrl-C (until Python 3.14)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the parent's comes when it is open again
        try:
            return own()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    loader._get_iterator = started


def quiet_loader(dataset: Any, **settings: Any) -> torch.utils.data.DataLoader[Any]:
    """Returns a DataLoader whose workers leave Ctrl-C to their parent from the first moment; see `quiet_worker`."""
    loader = torch.utils.data.DataLoader(dataset, worker_init_fn=quiet_worker, **settings)
    shield_workers(loader)
    return loader


def end_workers(loader: Any) -> None:
    """Ends the persistent workers of a DataLoader, if it has any; used again, it starts others."""
    loader = getattr(loader, "base_dataloader", loader)  # the one that iterates, inside of accelerate's wrapper
    iterator = loader._iterator
    if iterator is not None:
        iterator._shutdown_workers()
        loader._iterator = None


@dataclass(frozen=True)
class Alone:
    """The state of a process that waits for no other."""

    process_index: int = 0
    num_processes: int = 1
    is_main_process: bool = True


def on_main(state: PartialState | Alone, work: Callable[[], _Result]) -> _Result:
    """Returns what rank 0 finds, on every rank; its error is every rank's error."""
    outcome: list[Any] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = work()
        except HfDrError as error:
            outcome[1] = error
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]

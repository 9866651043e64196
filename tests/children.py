"""Programs in processes of their own, each forked from a server that has imported what they need.

Python's start with all libraries takes five seconds of a core, a fork a tenth of one. A test whose subject is the start itself,
or an environment that libraries read when they are imported, starts Python instead.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["timm", "transformers.trainer", "hf_dr.cli.make", "hf_dr.cli.push", "hf_dr.cli.train", "hf_dr.training.loader"]
)


@dataclass
class Child:
    """A process that runs, in a session of its own; `log` gets what it prints."""

    process: BaseProcess
    log: Path

    @property
    def text(self) -> str:
        """What it has printed, errors too."""
        return self.log.read_text(encoding="utf-8")

    def send(self, number: int) -> None:
        """Sends a signal to it and to its children, unless it has ended."""
        assert self.process.pid
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def wait(self, seconds: float = 120) -> int:
        """Returns the exit status; below 0, the signal that ended it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.send(signal.SIGKILL)
            raise AssertionError(f"it ran for more than {seconds} seconds and printed: {self.text[-3000:]}")
        return self.process.exitcode


def start(
    program: Callable[..., int | None], *arguments: Any, log: Path, cwd: Path | None = None, **environment: str
) -> Child:
    """Starts `program(*arguments)`, a function at the top of a module; what it returns is the exit status."""
    process = _FORKS.Process(target=_run, args=(program, arguments, log, cwd, environment))
    process.start()
    return Child(process, log)


def start_two(
    program: Callable[..., int | None], *arguments: Any, log: Path, cwd: Path | None = None, **environment: str
) -> list[Child]:
    """Starts a program in two processes of one group, as `accelerate launch` does on a CPU; they share a log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [
        start(program, *arguments, log=log, cwd=cwd, RANK=rank, LOCAL_RANK=rank, **group, **environment)
        for rank in "01"
    ]


def run(program: Callable[..., int | None], *arguments: Any, two: bool = False, **options: Any) -> str:
    """Runs a program to its good end, in one process or in two, and returns what it printed."""
    children = start_two(program, *arguments, **options) if two else [start(program, *arguments, **options)]
    for child in children:
        assert child.wait(300) == 0, child.text[-3000:]
    return children[0].text


def run_script(path: Path, arguments: Sequence[str] = ()) -> None:
    """Runs a file as `python path arguments` does."""
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def _run(
    program: Callable[..., int | None],
    arguments: Sequence[Any],
    log: Path,
    cwd: Path | None,
    environment: dict[str, str],
) -> None:
    """What a child does."""
    os.setsid()
    # A shell's background job ignores the signal, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment, OMP_NUM_THREADS="1")
    if cwd is not None:
        os.chdir(cwd)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(written, standard)
    torch.set_num_threads(1)
    try:
        sys.exit(program(*arguments))
    finally:
        atexit._run_exitfuncs()  # multiprocessing's children leave them out

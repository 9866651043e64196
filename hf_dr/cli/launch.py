"""Finding and running one command by its name; a command's module is imported when it is run, and torch by the command."""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import re
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from hf_dr.allocator import has_gpu, keep_freed_memory
from hf_dr.errors import NO_GROUP, ConfigError, HfDrError
from hf_dr.text import without_secrets

STOPPED = 130
"""Exit status of a command that Ctrl-C has ended, as shells give it."""
TERMINATED = 143
"""Exit status of a training that SIGTERM has ended, likewise."""

# What the system says of a user's path or disk, wherever in a command it is met.
_OF_THE_PATH = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP}
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE}
# What torch says where another process has ended: one that reads data for this, or one of the launch (gloo, NCCL); where
# those of a launch do not find each other; and of memory that runs out, a device's or the machine's (NumPy and Arrow say it,
# too), also while a model is compiled; then in which of its modules the other errors of torch.compile are. And what to do.
_ADVICE = {
    r"DataLoader worker \(pid\(?s?\)? .*(is killed by signal|exited unexpectedly)": (
        "A worker that is killed has often used too much memory: take fewer workers or a smaller batch, and run the same "
        "command again; what is finished is kept."
    ),
    r"(Connection (closed|reset) by peer|remote process exited)": (
        "Another process of this launch has ended: look for its error. What is finished is kept."
    ),
    NO_GROUP: (
        "The processes of this launch cannot connect: let it take another port (`--main_process_port` of accelerate, "
        "`--master_port` of torchrun, MASTER_PORT), and on several nodes name the first one's address (`--main_process_ip`, "
        "`--master_addr`, MASTER_ADDR), and the network that all share (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)."
    ),
    r"(out of memory|can't allocate memory|not enough memory|Unable to allocate|MemoryError: )": (
        "Take smaller batches, in a training by a larger `gradient_accumulation_steps`, and run the same command again; what "
        "is finished is kept."
    ),
    r"^torch\._(dynamo|inductor)\.": (
        "torch could not compile the model, for which it needs a compiler (g++ on a CPU; on a GPU gcc, and Triton): install "
        "one, or leave `torch_compile` (of a teacher `compile`) out."
    ),
    "Unrecognized mode=": "Choose another `torch_compile_mode`.",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM, with which Slurm and Kubernetes end a job, stops a training as Ctrl-C does; only the exit status is another."""


class Command(NamedTuple):
    """Where a command stands and what the list of commands says of it.

    Attributes:
        module: The module of `hf_dr.cli` that holds it, as `<name>_command`: takes the arguments and the program's name, reads
            them without torch, calls `start_logging` when they are right, and returns the exit status.
        summary: One line of help.
        teaches: Whether a teacher or a student answers many images, which on a CPU is faster with memory that is kept.
        shared: Whether the processes of a launch share its work; another takes one.
    """

    module: str
    summary: str
    teaches: bool = False
    shared: bool = False


COMMANDS = {
    "quickstart": Command(
        "quickstart", 'Makes a teacher, a "+" dataset, a student and a report from a folder of photos.', teaches=True
    ),
    "teach": Command("teach", "Fine-tunes a classifier on a dataset, to be its teacher.", shared=True),
    "reinforce": Command("make", "Reinforces a dataset.", teaches=True, shared=True),
    "extend": Command(
        "make",
        'Adds views, or members of the teacher, to a "+" dataset without asking again for what is stored.',
        teaches=True,
        shared=True,
    ),
    "calibrate": Command(
        "make", "Finds the temperature at which a teacher's probabilities fit held-out labels.", teaches=True
    ),
    "train": Command("teach", 'Trains a student on a "+" dataset.', shared=True),
    "detect": Command("transfer", "Trains and evaluates an object detector on a student's backbone.", shared=True),
    "segment": Command("transfer", "Trains and evaluates a semantic segmenter on a student's backbone.", shared=True),
    "compare": Command(
        "evaluate", "Trains one student by several objectives and seeds, and compares the results.", shared=True
    ),
    "verify": Command("make", 'Replays sampled rows of a "+" dataset and compares them with what is stored.'),
    "inspect": Command(
        "make", 'Prints provenance, sizes and teacher statistics of a "+" dataset, and draws its contact sheet.'
    ),
    "push": Command("push", 'Pushes a "+" dataset or a trained student to the Hub.', shared=True),
    "evaluate": Command("evaluate", "Evaluates checkpoints: accuracy, calibration, robustness.", teaches=True),
    "report": Command("evaluate", "Gathers many runs and evaluations into tables and plots."),
    "recipes": Command("recipes", "Lists, shows or copies the recipes in the package."),
    "export": Command("make", 'Writes a "+" dataset as WebDataset shards.'),
    "import-ml-dr": Command("make", 'Turns reinforcements that apple/ml-dr published into a "+" dataset.'),
}


def launch(command: str, argv: Sequence[str], prog: str) -> int:
    """Runs one command under the name by which the user called it; returns the exit status, as `main` does."""
    _uncover_evaluate()
    if COMMANDS[command].teaches and not has_gpu():
        keep_freed_memory()  # before torch is imported, whose threads would already have memory of their own

    def run() -> int:
        _check_paths(argv)
        if not COMMANDS[command].shared and _num_processes() > 1:
            from hf_dr.processes import refuse_several

            refuse_several(command)
        module = importlib.import_module(f"hf_dr.cli.{COMMANDS[command].module}")
        status: int = getattr(module, f"{command.replace('-', '_')}_command")(argv, prog)
        return status

    return guarded(run)


def guarded(run: Callable[[], int]) -> int:
    """Runs what prints something; returns its exit status, or that of what ended it, for which there is one sentence."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has all characters of names
    try:
        try:
            return run()
        finally:
            if sys.stdout is not None:  # a daemon may have none
                sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 141  # as a program that the signal of a broken pipe ends
    except HfDrError as error:
        _tell(_without_traceback(str(error)))
        return 2
    except (RuntimeError, MemoryError) as error:
        found = _without_traceback(str(error)) or "no memory is left"
        whole = f"{type(error).__module__}.{type(error).__name__}: {found}"
        advice = next((words for said, words in _ADVICE.items() if re.search(said, whole)), None)
        if advice is None:
            raise
        # What torch adds below is for its developers.
        said = " ".join(found.partition("\n\n")[0].split())
        _tell(f"{said.rstrip('.'):.300}. {advice}")
        return 2
    except OSError as error:
        if error.errno not in _OF_THE_DISK and (error.errno not in _OF_THE_PATH or error.filename is None):
            raise
        where = error.filename or "the disk"
        _tell(
            f"could not use {where}: {os.strerror(error.errno)}. Correct the path, its permissions or the disk, then run the "
            "same command again; what is finished is kept."
        )
        return 2
    except KeyboardInterrupt as stop:
        print("stopped", file=sys.stderr)
        return TERMINATED if isinstance(stop, Terminated) else STOPPED


def _check_paths(words: Sequence[str]) -> None:
    """Refuses paths that Arrow could not open: it takes UTF-8 alone, and Python reads them as the locale says."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and not all(word.isascii() for word in (*words, str(Path.cwd()))):
        raise ConfigError(
            f"paths with other characters than ASCII need UTF-8, but this locale has {encoding}. Set PYTHONUTF8=1, or use a "
            "locale of UTF-8."
        )


def _tell(message: str) -> None:
    """Prints an error; one of several processes with its rank, because each has its own."""
    rank = f"[rank {os.environ.get('RANK')}] " if _num_processes() > 1 else ""
    print(f"{rank}error: {message}", file=sys.stderr)


def _num_processes() -> int:
    """Returns how many processes a launcher such as accelerate says that it has started."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def _nobody_reads() -> bool:
    """Whether the output goes to a program that has ended, such as `| head`; what is left of it is then thrown away."""
    if not hasattr(select, "poll"):  # on Windows: a pipe cannot be asked there
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not poll.poll(0):
        return False
    # The interpreter flushes once more at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _uncover_evaluate() -> None:
    """Lets `import evaluate` find the library: the folder of a started script comes first, and recipes/ has an evaluate.py."""
    folder = Path(sys.argv[0]).resolve().parent
    if sys.path and Path(sys.path[0]).resolve() == folder and (folder / "evaluate.py").is_file():
        del sys.path[0]


def start_logging() -> None:
    """Sends log messages to stderr: the progress of rank 0, and warnings of every rank. Imports torch, to know the rank.

    Where no terminal shows them, the progress bars of other libraries are hidden: each step of theirs would stay.
    """
    from hf_dr.processes import process_state

    if not sys.stderr.isatty():
        import datasets
        import transformers

        datasets.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()

    state = process_state()
    rank = "" if state.num_processes == 1 else f"[rank {state.process_index}] "
    logging.basicConfig(format=f"{rank}%(message)s", level=logging.WARNING)
    for handler in (*logging.getLogger().handlers, *logging.getLogger("huggingface_hub").handlers):
        handler.addFilter(_without_secrets)
    # It has a handler of its own: each line would be there twice.
    logging.getLogger("huggingface_hub").propagate = False
    logging.getLogger("hf_dr").setLevel(logging.INFO if state.is_main_process else logging.WARNING)


def _without_secrets(record: logging.LogRecord) -> bool:
    """Hides tokens in a message: the Hub's client logs addresses with all that is in them."""
    record.msg = without_secrets(record.getMessage())
    record.args = None
    return True


def _without_traceback(text: str) -> str:
    """Returns what an error says, without the traceback that torch puts into one of a loader's worker."""
    match = re.match(r"Caught (\w+) in .*Original Traceback.*\n(?:[\w.]+\.)?\1: (.*)", text, re.DOTALL)
    return match[2].rstrip() if match else text

"""Finding and running one command by its name; a command's module, and with it torch, is imported when it is run."""

from __future__ import annotations

import importlib
import logging
import os
import select
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_dr.allocator import has_gpu, keep_freed_memory
from hf_dr.errors import HfDrError
from hf_dr.text import without_secrets


@dataclass(frozen=True)
class Command:
    """Where a command stands and what the list of commands says of it.

    Attributes:
        module: The module of `hf_dr.cli` that holds it.
        function: Its name there; it takes the arguments and the program's name, and returns the exit status.
        summary: One line of help.
        teaches: Whether a teacher or a student answers many images, which on a CPU is faster with memory that is kept.
        light: Whether the command reads its arguments without torch, and calls `start_logging` itself once they are right.
    """

    module: str
    function: str
    summary: str
    light: bool = False
    teaches: bool = False

    def __call__(self, argv: Sequence[str], prog: str) -> int:
        run = getattr(importlib.import_module(f"hf_dr.cli.{self.module}"), self.function)
        status: int = run(argv, prog)
        return status


COMMANDS = {
    "quickstart": Command(
        "quickstart",
        "quickstart_command",
        'Makes a teacher, a "+" dataset, a student and a report from a folder of photos.',
        light=True,
        teaches=True,
    ),
    "teach": Command("teach", "teach_command", "Fine-tunes a classifier on a dataset, to be its teacher.", light=True),
    "reinforce": Command("make", "reinforce_command", "Reinforces a dataset.", light=True, teaches=True),
    "extend": Command(
        "make",
        "extend_command",
        'Adds views, or members of the teacher, to a "+" dataset without asking again for what is stored.',
        light=True,
        teaches=True,
    ),
    "calibrate": Command(
        "make",
        "calibrate_command",
        "Finds the temperature at which a teacher's probabilities fit held-out labels.",
        light=True,
        teaches=True,
    ),
    "train": Command("teach", "train_command", 'Trains a student on a "+" dataset.', light=True),
    "detect": Command(
        "transfer", "detect_command", "Trains and evaluates an object detector on a student's backbone.", light=True
    ),
    "segment": Command(
        "transfer", "segment_command", "Trains and evaluates a semantic segmenter on a student's backbone.", light=True
    ),
    "compare": Command(
        "evaluate",
        "compare_command",
        "Trains one student by several objectives and seeds, and compares the results.",
        light=True,
    ),
    "verify": Command(
        "make",
        "verify_command",
        'Replays sampled rows of a "+" dataset and compares them with what is stored.',
        light=True,
    ),
    "inspect": Command(
        "make",
        "inspect_command",
        'Prints provenance, sizes and teacher statistics of a "+" dataset, and draws its contact sheet.',
        light=True,
    ),
    "push": Command("push", "push_command", 'Pushes a "+" dataset or a trained student to the Hub.', light=True),
    "evaluate": Command(
        "evaluate",
        "evaluate_command",
        "Evaluates checkpoints: accuracy, calibration, robustness.",
        light=True,
        teaches=True,
    ),
    "report": Command(
        "evaluate", "report_command", "Gathers many runs and evaluations into tables and plots.", light=True
    ),
    "recipes": Command("recipes", "recipes_command", "Lists, shows or copies the recipes in the package.", light=True),
    "export": Command("make", "export_command", 'Writes a "+" dataset as WebDataset shards.', light=True),
    "import-ml-dr": Command(
        "make",
        "import_command",
        'Turns reinforcements that apple/ml-dr published into a "+" dataset.',
        light=True,
    ),
}


def launch(command: str, argv: Sequence[str], prog: str) -> int:
    """Runs one command under the name by which the user called it; returns the exit status, as `main` does."""
    _uncover_evaluate()
    if COMMANDS[command].teaches and not has_gpu():
        keep_freed_memory()  # before torch is imported, whose threads would already have memory of their own
    try:
        if not COMMANDS[command].light:
            start_logging()
        try:
            return COMMANDS[command](argv, prog)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 141  # as a program that the signal of a broken pipe ends
    except HfDrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def run_step(command: str, argv: Sequence[str]) -> int:
    """Prints a command as a user would type it, and runs it; returns the exit status."""
    print(f"\n$ {shlex.join(['hf-dr', command, *argv])}\n", flush=True)
    return launch(command, argv, f"hf-dr {command}")


def _nobody_reads() -> bool:
    """Whether the output goes to a program that has ended, such as `| head`; what is left of it is then thrown away."""
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
    logging.getLogger("hf_dr").setLevel(logging.INFO if state.is_main_process else logging.WARNING)


def _without_secrets(record: logging.LogRecord) -> bool:
    """Hides tokens in a message: the Hub's client logs addresses with all that is in them."""
    record.msg = without_secrets(record.getMessage())
    record.args = None
    return True

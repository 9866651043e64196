"""The command line: `hf-dr COMMAND`, which recipes/*.py and `accelerate launch -m hf_dr COMMAND` call as well."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence

from hf_dr.cli.evaluate import compare_command, evaluate_command, report_command
from hf_dr.cli.make import extend_command, import_command, inspect_command, reinforce_command, verify_command
from hf_dr.cli.push import push_command
from hf_dr.cli.train import detect_command, segment_command, train_command
from hf_dr.errors import HfDrError
from hf_dr.processes import process_state
from hf_dr.version import __version__

logger = logging.getLogger("hf_dr")


COMMANDS: dict[str, Callable[[Sequence[str], str], int]] = {
    "reinforce": reinforce_command,
    "extend": extend_command,
    "train": train_command,
    "detect": detect_command,
    "segment": segment_command,
    "compare": compare_command,
    "verify": verify_command,
    "inspect": inspect_command,
    "push": push_command,
    "evaluate": evaluate_command,
    "report": report_command,
    "import-ml-dr": import_command,
}


def main(argv: Sequence[str] | None = None, prog: str = "hf-dr") -> int:
    """Runs a command; returns the exit status: 0 done, 1 verification failed, 2 bad input, 130 stopped by Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] not in COMMANDS:
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {command.__doc__}" for name, command in COMMANDS.items()]
        usage = "\n".join([f"usage: {prog} COMMAND [--help] ...", "", "commands:", *lines, "", f"hf_dr {__version__}"])
        if argv and argv[0] in ("-h", "--help"):
            print(usage)
            return 0
        print(f"{prog}: expected a command, got {argv[0] if argv else 'none'}\n\n{usage}", file=sys.stderr)
        return 2
    return launch(argv[0], argv[1:], f"{prog} {argv[0]}")


def launch(command: str, argv: Sequence[str], prog: str) -> int:
    """Runs one command under the name by which the user called it; returns the exit status, as `main` does."""
    _log_to_stderr()
    try:
        return COMMANDS[command](argv, prog)
    except HfDrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _log_to_stderr() -> None:
    state = process_state()
    rank = "" if state.num_processes == 1 else f"[rank {state.process_index}] "
    logging.basicConfig(format=f"{rank}%(message)s", level=logging.WARNING)
    # Rank 0 tells what happens, the others only what is wrong.
    logger.setLevel(logging.INFO if state.is_main_process else logging.WARNING)

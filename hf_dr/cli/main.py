"""The command line: `hf-dr COMMAND`, which recipes/*.py and `accelerate launch -m hf_dr COMMAND` call as well.

The list of commands and the version are printed without importing torch, in a tenth of a second.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from hf_dr.cli.launch import COMMANDS, guarded, launch
from hf_dr.errors import did_you_mean
from hf_dr.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    It is 0 done, 1 verification failed, 2 bad input, 130 stopped by Ctrl-C, 143 a training that SIGTERM has stopped.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    word = argv[0] if argv else ""
    if word in COMMANDS:
        return launch(word, argv[1:], f"hf-dr {word}")
    if word in ("-h", "--help"):
        return guarded(partial(_show, _usage()))
    if word == "--version":
        return guarded(partial(_show, f"hf_dr {__version__}"))
    close = did_you_mean(word, [*COMMANDS, "--help", "--version"])
    found = f"{word}.{close}" if argv else f"none\n\n{_usage()}"
    print(f"hf-dr: expected a command, got {found}", file=sys.stderr)
    return 2


def _show(text: str) -> int:
    print(text)
    return 0


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: hf-dr COMMAND [--help] ...", "", "commands:", *lines, "", f"hf_dr {__version__}"])

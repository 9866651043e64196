"""Runs commands of hf-dr, listed in a JSON file, in two processes of a group that are forked once all is imported."""

import json
import sys
from pathlib import Path

from accelerate import PartialState, debug_launcher

import hf_dr.cli.train  # noqa: F401 (once, not in each process)
from hf_dr.cli.main import main


def run_all() -> None:
    assert PartialState(cpu=True).num_processes == 2
    for command in json.loads(Path(sys.argv[1]).read_text()):
        status = main(command)
        if status:
            sys.exit(status)


if __name__ == "__main__":
    debug_launcher(run_all, num_processes=2)

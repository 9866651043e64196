"""The command that pushes a "+" dataset or a student."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hf_dr.errors import ConfigError
from hf_dr.hub.push import push_to_hub
from hf_dr.processes import process_state
from hf_dr.training.student_hub import is_student, push_student


def push_command(argv: Sequence[str], prog: str) -> int:
    """Pushes a "+" dataset or a trained student to the Hub."""
    parser = argparse.ArgumentParser(
        prog=prog,
        allow_abbrev=False,
        description='Pushes finished configurations of a "+" dataset, or a trained student, to the Hub in one commit. Run it '
        "again after whatever stopped it: only what is missing is sent. Launched with accelerate, each process sends its share "
        "of a dataset.",
    )
    parser.add_argument("folder", help='Folder of the "+" dataset, or `output_dir` of a training.')
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="Repository at the Hub; made if it is not there.")
    parser.add_argument("--configs", nargs="+", help="Which configurations. Default: all in the folder.")
    parser.add_argument("--private", action="store_true", default=None, help="Make a new repository private.")
    parser.add_argument("--revision", help="Branch to push to; made if it is not there. Default: main.")
    parser.add_argument("--create_pr", action="store_true", help="Push to a pull request; run again, to the same one.")
    parser.add_argument("--tags", nargs="+", default=[], help="To set on the commit.")
    parser.add_argument(
        "--overwrite", action="store_true", help="Replace a configuration that is there and was made in another way."
    )
    parser.add_argument(
        "--ema", action="store_true", help="For a student: publish the averaged weights, with their metrics."
    )
    parser.add_argument("--commit_message", help="Default: it names what is pushed.")
    parser.add_argument("--dry_run", action="store_true", help="Print files, bytes and the card; send nothing.")
    settings = vars(parser.parse_args(argv))
    student, first = is_student(settings["folder"]), process_state().is_main_process
    for name in ("configs", "overwrite") if student else ("ema",):
        if settings.pop(name):
            here, other = ("a student", 'a "+" dataset') if student else ('a "+" dataset', "a student")
            raise ConfigError(
                f"`{name}` must come with {other}, got it with {here}, {settings['folder']}. Leave it out."
            )
    if student and not first:
        return 0
    push = push_student(**settings) if student else push_to_hub(**settings)
    if first:
        print(push.report() if settings["dry_run"] else f"{push.url} at {push.commit}")
    return 0

"""The command that pushes a "+" dataset or a student."""

from __future__ import annotations

from collections.abc import Sequence

from hf_dr.cli.flag_parser import Parser
from hf_dr.cli.launch import start_logging
from hf_dr.errors import ConfigError


def push_command(argv: Sequence[str], prog: str) -> int:
    """Pushes a "+" dataset or a trained student to the Hub."""
    parser = Parser(
        prog=prog,
        description='Pushes finished configurations of a "+" dataset, or a trained student, to the Hub in one commit. Run it '
        "again after whatever stopped it: only what is missing is sent. Launched with accelerate, each process sends its share "
        "of a dataset.",
        examples="hf-dr push photos-plus me/photos-plus --private --dry_run",
    )
    parser.add_argument(
        "folder", help='Folder of the "+" dataset, or `output_dir` of a training, or a checkpoint of it.'
    )
    parser.add_argument(
        "repo_id", metavar="OWNER/NAME", help="Repository on the Hub. It is created if it does not exist."
    )
    parser.add_argument("--configs", nargs="+", help="Configurations to push. Default: all in the folder.")
    parser.add_argument("--private", action="store_true", default=None, help="Make a new repository private.")
    parser.add_argument("--revision", help="Branch to push to. It is created if it does not exist. Default: main.")
    parser.add_argument(
        "--create_pr", action="store_true", help="Push to a pull request. A repeated push uses the same one."
    )
    parser.add_argument("--tags", nargs="+", default=[], help="Tags to set on the commit.")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="Replace a configuration that is there and was made with other settings.",
    )
    parser.add_argument(
        "--ema", action="store_true", help="For a student: publish the averaged weights, with their metrics."
    )
    parser.add_argument("--commit_message", help="Default: a message that names what is pushed.")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="Print the files, their bytes and the card, and send nothing; with HF_HUB_OFFLINE=1, as to a new repository.",
    )
    settings = vars(parser.parse_args(argv))
    start_logging()
    from hf_dr.hub.push import push_to_hub
    from hf_dr.processes import process_state
    from hf_dr.training.student_hub import is_student, push_student

    student = is_student(settings["folder"])
    is_main = process_state().is_main_process
    # Flags of the other kind are refused, and none of them is passed on.
    for name in ("configs", "overwrite") if student else ("ema",):
        if settings.pop(name):
            here, other = ("a student", 'a "+" dataset') if student else ('a "+" dataset', "a student")
            raise ConfigError(
                f"`{name}` must come with {other}, got it with {here}, {settings['folder']}. Leave it out."
            )
    if student and not is_main:
        return 0
    push = push_student(**settings) if student else push_to_hub(**settings)
    if is_main:
        print(push.report() if settings["dry_run"] else f"{push.url} at {push.commit}")
    return 0

"""Commands that compare, evaluate and report; each reads its arguments before it imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hf_dr.cli.config import parse
from hf_dr.cli.flag_parser import Parser, words_as_flag
from hf_dr.cli.flags import SmokeArguments
from hf_dr.cli.launch import STOPPED, TERMINATED, Terminated, launch, start_logging
from hf_dr.evaluation.config import CompareConfig, EvaluateConfig, as_arguments
from hf_dr.files import check_writable, expanded


def compare_command(argv: Sequence[str], prog: str) -> int:
    """Trains one student by several objectives and seeds, and compares them."""
    argv = words_as_flag(argv, "--config")
    config, smoke = parse(
        [CompareConfig, SmokeArguments],
        argv,
        prog=prog,
        description="Trains one student by several objectives and seeds, evaluates them side by side, and writes the table and "
        "the report. Finished runs are kept: the same command goes on where it was stopped.",
        examples="hf-dr compare recipes/fashion_mnist/compare.yaml",
    )
    start_logging()
    from hf_dr.cli.smoke import rehearse
    from hf_dr.cli.teach import read_training_arguments
    from hf_dr.evaluation.comparing import run_comparison, training_flags

    if smoke.smoke:
        return rehearse("compare", argv, prog, vars(config))
    check_writable(expanded(config.output_dir), "output_dir")
    # Otherwise an impossible setting would only be found after the objectives before it were trained.
    for objective in config.objectives:
        read_training_arguments(as_arguments(training_flags(config, objective, config.seeds[0])), "hf-dr train")
    run_comparison(config, _train)
    return 0


def _train(arguments: list[str]) -> int:
    """Runs `hf-dr train`; returns its exit status. Ctrl-C or SIGTERM, which ended it, ends the comparison, too."""
    status = launch("train", arguments, "hf-dr train")
    if status in (STOPPED, TERMINATED):
        raise KeyboardInterrupt if status == STOPPED else Terminated
    return status


def evaluate_command(argv: Sequence[str], prog: str) -> int:
    """Evaluates checkpoints: accuracy, calibration, robustness."""
    argv = words_as_flag(argv, "--models")
    config, smoke = parse(
        [EvaluateConfig, SmokeArguments],
        argv,
        prog=prog,
        description="Evaluates several checkpoints on several sets of labelled images and writes one table (Markdown, JSON) "
        "and the reliability diagrams (PNG). Each model's own preprocessing is used: resize, centre crop, mean and std. The "
        "same command goes on where it was stopped among corruptions.",
        examples="hf-dr evaluate student --sets test=uoft-cs/cifar100:test,label=fine_label --output_dir evaluation",
    )
    start_logging()
    from hf_dr.cli.smoke import rehearse
    from hf_dr.evaluation.evaluate import evaluated

    if smoke.smoke:
        return rehearse("evaluate", argv, prog, vars(config))
    print(evaluated(config))
    return 0


def report_command(argv: Sequence[str], prog: str) -> int:
    """Gathers many runs and evaluations into tables and plots."""
    parser = Parser(
        prog=prog,
        examples="hf-dr report photos-quickstart/comparison runs --output_dir report --title Photos",
        description="Gathers what train, compare, evaluate, detect and segment left in folders and below them: accuracy by "
        "model and epochs, robustness, calibration, training time and transfer of erm, kd and reinforced (Markdown, JSON), "
        "with plots (one HTML file). What cannot be compared is listed with the reason.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, help="Folders of runs, transfers, comparisons, evaluations, or of such."
    )
    parser.add_argument("--output_dir", type=Path, default=Path("report"), help="Folder to write to. Default: report.")
    parser.add_argument("--title", default="Results", help="Title of the page. Default: Results.")
    arguments = parser.parse_args(argv)
    start_logging()
    from hf_dr.evaluation.pages import save, to_markdown
    from hf_dr.evaluation.results import gather

    folder = expanded(arguments.output_dir)
    check_writable(folder, "output_dir")
    results = gather(arguments.runs)
    page = save(results, folder, arguments.title)
    print(f"{to_markdown(results, arguments.title)}\nreport: {page}")
    return 0

"""The commands that train a detector or a segmenter on a student's backbone."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from hf_dr.cli.config import parse
from hf_dr.cli.early import Lazy
from hf_dr.cli.flags import SmokeArguments
from hf_dr.cli.launch import start_logging
from hf_dr.files import check_apart
from hf_dr.transfer.settings import (
    BackboneArguments,
    DataArguments,
    DetectionArguments,
    SegmentationArguments,
    TransferSettings,
)

_TRAINING = Lazy("hf_dr.transfer.trainer", "TransferArguments", TransferSettings)


def detect_command(argv: Sequence[str], prog: str) -> int:
    """Trains and evaluates an object detector on a student's backbone."""
    about = (
        "Trains Mask R-CNN with a feature pyramid on a student's backbone and measures COCO's mean average precision."
    )
    return _transfer("detect", "detection", argv, prog, DetectionArguments, about, "coco")


def segment_command(argv: Sequence[str], prog: str) -> int:
    """Trains and evaluates a semantic segmenter on a student's backbone."""
    about = "Trains DeepLabV3 on a student's backbone and measures the mean intersection over union, of whole images."
    return _transfer("segment", "segmentation", argv, prog, SegmentationArguments, about, "ade20k")


def _transfer(
    command: str, task: str, argv: Sequence[str], prog: str, data: type[DataArguments], about: str, recipes: str
) -> int:
    """Trains and evaluates on a backbone; leaves model, metrics and results.

    `hf_dr.transfer.TASK` has `TASK_trainer`, and the folder `recipes` a recipe of the command, for the help.
    """
    chosen, student, smoke, args = parse(
        [data, BackboneArguments, SmokeArguments, _TRAINING],
        argv,
        prog=prog,
        description=f"{about} All settings of transformers' TrainingArguments are flags, too; the same command again "
        "resumes.",
        examples=f"hf-dr {command} --config recipes/{recipes}/{command}.yaml --student runs/resnet50-plus "
        f"--output_dir runs/{recipes}",
    )
    start_logging()
    from transformers import set_seed

    from hf_dr.cli.smoke import rehearse
    from hf_dr.cli.train import run_training

    if smoke.smoke:
        return rehearse(command, argv, prog, vars(chosen))
    places = [getattr(chosen, prefix + name) for prefix in ("", "eval_") for name in chosen.PLACES]
    check_apart(args.output_dir, [chosen.dataset, *places], [student.student])
    set_seed(args.seed)
    trainer = getattr(importlib.import_module(f"hf_dr.transfer.{task}"), f"{task}_trainer")(chosen, student, args)
    with trainer.alone():
        run_training(trainer)
        trainer.write_results()
        if args.push_to_hub:
            trainer.push_to_hub()
    return 0

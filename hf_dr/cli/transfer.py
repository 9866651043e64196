"""The commands that train a detector or a segmenter on a student's backbone."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

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
    return _transfer(argv, prog, "detection", DetectionArguments, about, "coco/detect.yaml", "runs/coco")


def segment_command(argv: Sequence[str], prog: str) -> int:
    """Trains and evaluates a semantic segmenter on a student's backbone."""
    about = "Trains DeepLabV3 on a student's backbone and measures the mean intersection over union, of whole images."
    return _transfer(argv, prog, "segmentation", SegmentationArguments, about, "ade20k/segment.yaml", "runs/ade")


def _transfer(
    argv: Sequence[str], prog: str, task: str, data: type[DataArguments], about: str, recipe: str, example: str
) -> int:
    """Trains and evaluates on a backbone; leaves model, metrics and results.

    Args:
        argv: Of the command.
        prog: Its name.
        task: `hf_dr.transfer.TASK` has its `TASK_trainer`.
        data: The settings of its data.
        about: What it does, for the help.
        recipe: Settings of it, for the help.
        example: An `output_dir`, for the help.
    """
    chosen, student, smoke, args = parse(
        [data, BackboneArguments, SmokeArguments, _TRAINING],
        argv,
        prog=prog,
        description=f"{about} All settings of transformers' TrainingArguments are flags, too; the same command again "
        "resumes.",
        examples=f"hf-dr {Path(recipe).stem} --config recipes/{recipe} --student runs/resnet50-plus --output_dir {example}",
    )
    start_logging()
    from transformers import set_seed

    from hf_dr.cli.arguments import rehearse
    from hf_dr.cli.train import run_training
    from hf_dr.evaluation.config import as_arguments

    if smoke.smoke:
        with rehearse(argv) as stand_in:
            changed = as_arguments(getattr(stand_in, task)())
            return _transfer([*argv, *changed], prog, task, data, about, recipe, example)
    places = [getattr(chosen, prefix + name) for prefix in ("", "eval_") for name in chosen.PLACES]
    check_apart(args.output_dir, [chosen.dataset, *places], [student.student])
    set_seed(args.seed)
    trainer = getattr(importlib.import_module(f"hf_dr.transfer.{task}"), f"{task}_trainer")(chosen, student, args)
    with trainer.alone():
        status = run_training(trainer, args)
        trainer.write_results()
        if args.push_to_hub:
            trainer.push_to_hub()
    return status

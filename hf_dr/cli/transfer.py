"""The commands that train a detector or a segmenter on a student's backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hf_dr.cli.config import as_config_error, parse
from hf_dr.cli.early import Lazy
from hf_dr.cli.flags import SmokeArguments
from hf_dr.cli.launch import start_logging
from hf_dr.transfer.settings import BackboneArguments, DetectionArguments, SegmentationArguments, TransferSettings

if TYPE_CHECKING:
    from hf_dr.transfer.trainer import TransferArguments, TransferTrainer

_TRAINING = Lazy("hf_dr.transfer.trainer", "TransferArguments", TransferSettings)


def detect_command(argv: Sequence[str], prog: str) -> int:
    """Trains and evaluates an object detector on a student's backbone."""
    with as_config_error():
        chosen, student, smoke, args = parse(
            [DetectionArguments, BackboneArguments, SmokeArguments, _TRAINING],
            argv,
            prog=prog,
            description="Trains Mask R-CNN with a feature pyramid on a student's backbone and measures COCO's mean average "
            "precision. All settings of transformers' TrainingArguments are flags, too; the same command again resumes.",
            examples="hf-dr detect --config recipes/coco/detect.yaml --student runs/resnet50-plus --output_dir runs/coco",
        )
    start_logging()
    from hf_dr.cli.arguments import rehearse
    from hf_dr.evaluation.config import as_arguments
    from hf_dr.transfer.detection import detection_trainer

    if smoke.smoke:
        with rehearse(argv) as stand_in:
            return detect_command([*argv, *as_arguments(stand_in.detect())], prog)
    return _transfer(lambda: detection_trainer(chosen, student, args), args)


def segment_command(argv: Sequence[str], prog: str) -> int:
    """Trains and evaluates a semantic segmenter on a student's backbone."""
    with as_config_error():
        chosen, student, smoke, args = parse(
            [SegmentationArguments, BackboneArguments, SmokeArguments, _TRAINING],
            argv,
            prog=prog,
            description="Trains DeepLabV3 on a student's backbone and measures the mean intersection over union, of whole "
            "images. All settings of transformers' TrainingArguments are flags, too; the same command again resumes.",
            examples="hf-dr segment --config recipes/ade20k/segment.yaml --student runs/resnet50-plus --output_dir runs/ade",
        )
    start_logging()
    from hf_dr.cli.arguments import rehearse
    from hf_dr.evaluation.config import as_arguments
    from hf_dr.transfer.segmentation import segmentation_trainer

    if smoke.smoke:
        with rehearse(argv) as stand_in:
            return segment_command([*argv, *as_arguments(stand_in.segment())], prog)
    return _transfer(lambda: segmentation_trainer(chosen, student, args), args)


def _transfer(make: Callable[[], TransferTrainer], args: TransferArguments) -> int:
    """Trains and evaluates on a backbone; leaves model, metrics and results."""
    from transformers import set_seed

    from hf_dr.cli.train import run_training

    set_seed(args.seed)
    with as_config_error():
        trainer = make()
    with trainer.alone():
        status = run_training(trainer, args)
        trainer.write_results()
        if args.push_to_hub:
            trainer.push_to_hub()
    return status

"""What the commands that train do: load, build, train, calibrate, evaluate and describe."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn
from transformers import TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from hf_dr.cli.arguments import build_augmentation, check_rows, read_classes
from hf_dr.cli.flags import StudentArguments
from hf_dr.cli.interrupt import checkpoint_on_interrupt, training_kept_on_interrupt
from hf_dr.errors import ConfigError, FormatError
from hf_dr.evaluation.gathering import is_training
from hf_dr.files import check_apart, check_no_data, expanded, write_json, writing
from hf_dr.hub.fetch import fetch_config
from hf_dr.processes import process_state
from hf_dr.replay.augmented import AugmentedDataset
from hf_dr.replay.join import index_images
from hf_dr.replay.loading import each_dataset, load_reinforced
from hf_dr.replay.reinforced_data import ReinforcedData
from hf_dr.store.base_dataset import load_base
from hf_dr.store.labels import labelled_columns
from hf_dr.teacher.calibration import TemperatureFit
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.folds import CONFIG_KEY, Fold, folds_of
from hf_dr.teacher.metrics import compute_metrics
from hf_dr.teacher.preprocessing import EVAL_CROP
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.calibrating import check_foldable, check_not_learned, check_other_images, check_sample, check_whole
from hf_dr.training.checkpoints import last_checkpoint, whole_checkpoint
from hf_dr.training.checks import check_labels, evaluation_images
from hf_dr.training.distillation import OnlineDistillationTrainer
from hf_dr.training.reinforced_settings import settings_without_effect
from hf_dr.training.student_card import Student
from hf_dr.training.student_inputs import LabelledImages, evaluation_of, load_processor
from hf_dr.training.students import build_student, read_model_args
from hf_dr.training.teaching import MARKER
from hf_dr.training.trainer import ReinforcedTrainer
from hf_dr.transfer.trainer import TransferTrainer
from hf_dr.views.augmentation import Augmentation

logger = logging.getLogger(__name__)

_Found = TypeVar("_Found")


def draw_only_fresh_views(args: ReinforcedTrainingArguments, objective: str) -> None:
    """Sets that no stored view is replayed, as an objective needs it; refuses settings that would have no effect."""
    source = "newly drawn views" if objective == "kd" else "the labels of newly drawn views"
    for name in settings_without_effect(objective):
        given = getattr(args, name)
        allowed = {getattr(type(args), name), 0.0} if name == "reinforced_probability" else {getattr(type(args), name)}
        if given not in allowed:
            raise ConfigError(
                f"`{name}` must be left out with `objective` {objective}, which learns from {source} alone, got {given}: it "
                "would have no effect. Leave it out."
            )
    args.reinforced_probability = 0.0


def prepare_training(
    student: StudentArguments, args: ReinforcedTrainingArguments, argv: Sequence[str], leave_out: Fold | None = None
) -> tuple[ReinforcedTrainer, dict[str, Any], LabelledImages | None]:
    """Loads data and model.

    Returns:
        The trainer; what its card says that only the command line knows; and the images to calibrate by, if there are any.

    The images of a fold are left out if one is given, which the model's configuration then tells.
    """
    if student.objective != "reinforced":
        draw_only_fresh_views(args, student.objective)
    model_args = read_model_args(student.model_args)  # before anything is loaded
    read = [*student.dataset, student.base, student.eval_dataset]
    check_apart(str(args.output_dir), read, [student.student, *student.teacher])
    folder = expanded(str(args.output_dir))
    if not (is_training(folder) or (folder / MARKER).is_file()):  # or a dataset that was divided for one
        check_no_data(folder)
    set_seed(args.seed)
    data = load_images(student, args.seed) if student.plain else _load_plus(student, args.seed)
    _check_loaded(student, data)
    if isinstance(data, AugmentedDataset):
        check_rows(argv, student.dataset[0], student.split or "train", len(data))
        if leave_out is not None:
            data = data.select(np.flatnonzero(folds_of(index_images(data.images), leave_out.of) != leave_out.number))
    else:  # which may have been made of the first rows only (`max_examples`)
        base = f"{data.origin.base.get('id') or 'the base'}, reinforced in {student.dataset[0]},"
        check_rows(argv, base, data.origin.split, data.origin.num_examples, at_most=True)
    model = build_student(
        student.student,
        data.class_names,
        data.num_classes,
        model_args=model_args,
        size=data.size,
        crop=student.eval_crop or EVAL_CROP,
    )
    if leave_out is not None:
        setattr(model.config, CONFIG_KEY, dataclasses.asdict(leave_out))
    processor = load_processor(student.student, max(data.size))
    open_split = partial(_evaluation_split, student, argv, data, evaluation_of(model, processor, data.size))
    evaluation, evaluated_on = open_split("eval_split") if student.eval_dataset else (None, None)
    held_out, calibrated_on = open_split("calibrate_split") if student.calibrate_split else (None, None)
    trainer = _build_trainer(student, args, model, processor, data, evaluation)
    if evaluation is not None and held_out is not None:
        check_whole(trainer, "calibrate_split")
        check_foldable(model, data.size)
        check_labels(held_out, data, "calibrate_split")
        check_sample(np.asarray(held_out.labels), np.asarray(evaluation.labels))
        check_other_images(held_out.files, evaluation.files, f"`eval_split` {student.eval_split}")
        check_not_learned(held_out.files, data)
    card = {**_card_settings(student), "evaluated_on": evaluated_on, "calibrated_on": calibrated_on}
    return trainer, card, held_out


def _evaluation_split(
    student: StudentArguments, argv: Sequence[str], data: ReinforcedData, shown: Augmentation, setting: str
) -> tuple[LabelledImages, dict[str, Any]]:
    """Loads the split of the dataset to evaluate on that a setting names; returns its images, and what they are.

    Each image is shown by one view.
    """
    assert student.eval_dataset is not None
    split = getattr(student, setting)
    named = "`eval_dataset`, `eval_config`" if student.eval_config else "`eval_dataset`"
    loaded, described = load_base(
        student.eval_dataset,
        student.eval_config,
        split=split,
        revision=student.eval_revision,
        files_from=student.files_from,
        where=f"{named} and `{setting}`",
    )
    images = evaluation_images(loaded, data, shown, name=setting.replace("eval_split", "eval_dataset"))
    check_rows(argv, student.eval_dataset, split, len(images))
    return images, {**described, "split": split}


@dataclasses.dataclass(frozen=True)
class CalibratedStudent(TemperatureFit):
    """What `calibrate` has found, and whether the weights took it in (`folded`)."""

    folded: bool

    def told(self, split: str | None, otherwise: str) -> str:
        """Returns it for people, with the split of the images and the place of the temperature; `otherwise` is what to do."""
        kept = "in the weights" if self.folded else f"not in the weights: {otherwise}"
        return f"\n{self.table(f', {kept}', f' of `{split}`')}"


def calibrate(trainer: ReinforcedTrainer, images: Any, card: dict[str, Any], *, fold: bool = True) -> CalibratedStudent:
    """Calibrates a trained classifier; weights that took the temperature in are saved, with a `card` that tells it."""
    found = trainer.calibrate(images, fold=fold)
    if found.folded:
        trainer.save_model(_internal_call=True)
        trainer.create_model_card(**card)
    fit = TemperatureFit.of(found.logits, found.labels, found.temperature)
    return CalibratedStudent(**vars(fit), folded=found.folded)


def was_calibrated(folder: Path) -> bool:
    """Whether a folder holds a calibrated student."""
    try:
        known = Student.read(folder)
    except FormatError:  # it is written again
        return False
    return known is not None and known.calibration is not None


def finish_training(trainer: ReinforcedTrainer, card: dict[str, Any]) -> None:
    """Writes the card, and pushes if that is asked for."""
    finish: Callable[..., Any] = trainer.push_to_hub if trainer.args.push_to_hub else trainer.create_model_card
    finish(**card)


def load_images(student: StudentArguments, seed: int) -> AugmentedDataset:
    """Loads a base dataset, whose views are drawn as they come."""
    (name,) = student.dataset
    config = student.name[0] if student.name else None
    split = student.split or "train"
    augmentation = build_augmentation(student.augmentation, student.size)
    with process_state().local_main_process_first():
        base, described = load_base(name, config, split=split, revision=student.revision, files_from=student.files_from)
    image_column, label_column = labelled_columns(
        base, f"`objective` {student.objective} needs", name, student.image_column, student.label_column
    )
    return AugmentedDataset(
        base,
        augmentation,
        image_column=image_column,
        label_column=label_column,
        described=described,
        split=split,
        seed=seed,
    )


def _one_or_all(words: list[str]) -> Any:
    """What `load_reinforced` takes: None, one word, or several."""
    return words if len(words) > 1 else next(iter(words), None)


def _load_plus(student: StudentArguments, seed: int) -> Any:
    """Opens the "+" datasets. Where one is none, the error says how `erm` and `kd` train on a base dataset."""
    names = ("streaming", "base", "base_config", "base_revision", "unreinforced", "revision", "num_views")
    settings: dict[str, Any] = {name: getattr(student, name) for name in names}
    if student.base is not None or student.eval_dataset is None:  # else they are for the images to evaluate on
        settings["files_from"] = student.files_from
    try:
        return load_reinforced(_one_or_all(student.dataset), _one_or_all(student.name), seed=seed, **settings)
    except FormatError as error:
        if student.objective == "reinforced":
            raise
        raise FormatError(
            f"{error} To train by {student.objective} on a base dataset, which is not reinforced, pass --augmentation."
        ) from error


def _check_loaded(student: StudentArguments, data: ReinforcedData) -> None:
    """Checks what only the data can tell: whether it has labels, and the size of its views."""
    if student.objective != "reinforced" and not data.has_labels:
        raise ConfigError(f"`objective` must be reinforced for a dataset without labels, got {student.objective}.")
    height, width = data.size
    if not student.plain and student.size is not None and (height, width) != (student.size, student.size):
        raise ConfigError(
            f"`size` must be that of the stored views, {height}x{width}, got {student.size}. Reinforce the dataset with "
            f"`size` {student.size}, or leave it out."
        )


def _build_trainer(
    student: StudentArguments,
    args: ReinforcedTrainingArguments,
    model: nn.Module,
    processor: Any,
    data: ReinforcedData,
    evaluation: LabelledImages | None,
) -> ReinforcedTrainer:
    """Builds the trainer of the objective; a student that is fine-tuned keeps its image processor."""
    settings: dict[str, Any] = {
        "model": model,
        "args": args,
        "train_dataset": data,
        "eval_dataset": evaluation,
        "compute_metrics": compute_metrics,
        "processing_class": processor,
    }
    if student.objective != "kd":
        return ReinforcedTrainer(**settings)
    chosen = read_classes(student.teacher_classes, data.class_names)
    teacher = Teacher.from_pretrained(student.teacher, device=args.device, classes=chosen)
    return OnlineDistillationTrainer(**settings, teacher=teacher)


def _card_settings(student: StudentArguments) -> dict[str, Any]:
    """Returns what the command line knows about a student's card: folders are called by their names, without their paths."""
    paths = student.dataset
    folders = {path: expanded(path).resolve().name for path in paths if expanded(path).exists()}
    if folders:
        revision = None
    elif student.plain:
        revision = student.revision
    else:  # the commits at which the "+" datasets were fetched from the Hub
        named = each_dataset(_one_or_all(paths), _one_or_all(student.name))
        found = [fetch_config(*each, revision=student.revision, shards=False) for each in named]
        revision = " + ".join(dict.fromkeys(config.parent.name for config, _ in found))
    return {
        "dataset": " + ".join(folders.get(path, path) for path in paths),
        "dataset_tags": [path for path in paths if path not in folders] or None,
        "dataset_revision": revision,
        "finetuned_from": None if student.student.startswith("timm:") else student.student,
    }


def _metrics_in(results: Path) -> dict[str, Any]:
    """Returns the metrics that a file holds; none where it is not there, or a machine that went down left it in pieces."""
    try:
        found = json.loads(results.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def run_training(
    trainer: ReinforcedTrainer | TransferTrainer, before_evaluation: Callable[[], _Found | None] = lambda: None
) -> _Found | None:
    """Trains, resuming from the last checkpoint of the folder; saves the model and its metrics. Ctrl-C saves a checkpoint.

    `before_evaluation` may change the model that was saved, and save it again; its checkpoints stay as they are. What it
    returns is returned.
    """
    steps_before = 0
    folder = str(trainer.args.output_dir)
    checkpoint = whole_checkpoint(trainer.args.resume_from_checkpoint, folder) or last_checkpoint(folder)
    if checkpoint is not None:
        logger.info("Resuming from %s.", checkpoint)
        steps_before = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME))).global_step
    with checkpoint_on_interrupt(trainer):
        result = trainer.train(resume_from_checkpoint=checkpoint)
    trained = result.global_step > steps_before
    if not trained:
        logger.info("All %d steps were trained before: the model is only saved and evaluated again.", steps_before)
    with training_kept_on_interrupt(trainer):
        _save_trained(trainer, result, trained=trained)
        found = before_evaluation()
        _evaluate(trainer)
    return found


def _save_trained(trainer: ReinforcedTrainer | TransferTrainer, result: TrainOutput, *, trained: bool) -> None:
    """Saves the model and what its training took; one that was finished before, so that no step was `trained`, keeps that."""
    before = _metrics_in(Path(str(trainer.args.output_dir), "train_results.json"))
    kept = not trained and before.get("epoch") == result.metrics["epoch"]
    _save_metrics(trainer, "train", before if kept else result.metrics)
    trainer.save_model(_internal_call=True)  # pushed when there is a card


def _evaluate(trainer: ReinforcedTrainer | TransferTrainer) -> None:
    """Saves the metrics of the model, and the state of the training."""
    if trainer.eval_dataset is not None:
        _save_metrics(trainer, "eval", trainer.evaluate())
    with writing(Path(str(trainer.args.output_dir))):
        trainer.save_state()


def _save_metrics(trainer: ReinforcedTrainer | TransferTrainer, split: str, metrics: dict[str, float]) -> None:
    """Logs metrics and saves them, each file whole: first all metrics, because those of a `split` tell that it is done."""
    if not trainer.is_world_process_zero():
        return
    trainer.log_metrics(split, metrics)
    path = Path(str(trainer.args.output_dir), "all_results.json")
    write_json(path, dict(sorted({**_metrics_in(path), **metrics}.items())))
    write_json(path.with_name(f"{split}_results.json"), dict(sorted(metrics.items())))

"""The commands that train a classifier: a student, and a teacher for one's own images; the latter from Python, too."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_dr.cli.config import parse
from hf_dr.cli.flag_parser import one_dataset, split_words, words_as_flag
from hf_dr.cli.flags import TRAINING, SmokeArguments, StudentArguments
from hf_dr.cli.launch import start_logging
from hf_dr.cli.yaml_files import own_recipes
from hf_dr.errors import ConfigError
from hf_dr.evaluation.config import as_arguments
from hf_dr.files import check_apart, check_writable, expanded, write_json
from hf_dr.settings import (
    FILES_FROM_HELP,
    IMAGE_COLUMN_HELP,
    LABEL_COLUMN_HELP,
    MODEL_ARGS_HELP,
    JsonOrMapping,
    OpsOrName,
    Real,
    Whole,
    check_kind,
    check_settings,
    flag,
)
from hf_dr.training.reinforced_settings import settings_without_effect

if TYPE_CHECKING:
    from hf_dr.cli.train import CalibratedStudent
    from hf_dr.teacher.ensemble import Teacher
    from hf_dr.teacher.folds import Fold
    from hf_dr.training.arguments import ReinforcedTrainingArguments
    from hf_dr.views.augmentation import Augmentation

logger = logging.getLogger(__name__)

TEACHER_FILE = "teacher.json"
"""File in the teacher's folder: its temperature, what it was measured on, and where the images are. Written last."""

# Without what has no effect on a teacher, which learns from labels.
_LEARNING = replace(TRAINING, title="How the teacher learns", left_out=settings_without_effect("erm"))
_LEARNS_FROM = "a teacher learns from"
_ALSO_OF_REINFORCE = ("revision", "files_from", "image_column", "label_column")
_HELD_OUT_SPLITS = ("test", "validation", "val")


@dataclass
class TeachArguments:
    """Which classifier learns which images."""

    model: str = flag(
        "Pretrained classifier to fine-tune: a Hub id of timm or transformers, a folder, or "
        "timm:ARCHITECTURE@FILE.safetensors. It should be larger than the students.",
        default="timm/resnet50d.ra2_in1k",
    )
    dataset_config: str | None = flag("Configuration of the dataset, where it has several.", default=None)
    split: str = flag("Split that is learned.", default="train")
    revision: str | None = flag("Branch, tag or commit of the dataset on the Hub.", default=None)
    files_from: list[str] = flag(FILES_FROM_HELP, default=[], metavar="DIR")
    image_column: str | None = flag(IMAGE_COLUMN_HELP, default=None)
    label_column: str | None = flag(LABEL_COLUMN_HELP, default=None)
    eval_split: str | None = flag(
        "Split of held-out images. Default: test, validation or val, the first that there is; else --held_out of each "
        "class, and both parts are written to a folder in --output_dir.",
        default=None,
    )
    held_out: float = flag(
        "Share of each class that is held out, where the dataset has no split for it.",
        default=0.2,
        type=Real(0, 1, above=True, below=True),
    )
    calibrate: bool = flag(
        "Divide the logits by the temperature that fits the held-out images best. The last layer's weights take "
        "it in, so that everything that loads the teacher uses it.",
        default=True,
    )
    folds: int | None = flag(
        "Train this number of teachers, k, each without one of k parts of the images (cross-fitting). Given the "
        "folder, reinforce has each image answered by the teacher that has not seen it. For a few thousand images or less, "
        "which a teacher learns by heart; takes k times as long.",
        default=None,
        type=Whole(2),
    )
    augmentation: OpsOrName = flag("What draws the training views, as for reinforce.", default="randaug")
    size: int | None = flag(
        "Side in pixels of the views of a named augmentation. Default: 224.", default=None, type=Whole(1)
    )
    model_args: JsonOrMapping = flag(MODEL_ARGS_HELP, default="{}")

    def __post_init__(self) -> None:
        check_settings(self)


def train_command(argv: Sequence[str], prog: str) -> int:
    """Trains a student on a "+" dataset."""
    argv = words_as_flag(argv)
    student, smoke, args = read_training_arguments(argv, prog)
    start_logging()
    from hf_dr.cli.smoke import rehearse
    from hf_dr.cli.train import calibrate, finish_training, prepare_training, run_training, was_calibrated

    if smoke.smoke:
        return rehearse("train", argv, prog, vars(student))
    trainer, card, held_out = prepare_training(student, args, argv)
    if held_out is None and was_calibrated(Path(str(args.output_dir))) and trainer.is_world_process_zero():
        logger.warning(
            "The student in %s was calibrated. Without `calibrate_split` it will be as it was trained.", args.output_dir
        )
    with trainer.alone():
        fit = run_training(trainer, lambda: None if held_out is None else calibrate(trainer, held_out, card))
        finish_training(trainer, card)
    if fit is not None and trainer.is_world_process_zero():
        print(fit.told(student.calibrate_split, "divide the logits by it"), flush=True)
    return 0


def read_training_arguments(
    argv: Sequence[str], prog: str
) -> tuple[StudentArguments, SmokeArguments, ReinforcedTrainingArguments]:
    """Reads the arguments of `hf-dr train`, and refuses those that contradict each other whatever the data are."""
    student, smoke, args = parse(
        [StudentArguments, SmokeArguments, TRAINING],
        argv,
        prog=prog,
        description='Trains an image classifier on a "+" dataset, or, for comparison, by plain training (erm) or online '
        "distillation (kd) on the same images. All settings of transformers' TrainingArguments are flags, too. The same "
        "command again resumes.",
        examples="hf-dr train photos-plus --student timm:resnet18 --output_dir student --epochs 20 --lr 0.001\n"
        "hf-dr train --config recipes/cifar100/erm.yaml --student timm:resnet50d",
    )
    if student.objective == "reinforced":
        from hf_dr.training.checks import check_mixing

        check_mixing(args)
    return student, smoke, args


@dataclass(frozen=True)
class Taught:
    """What `teach` has made, and the images to reinforce.

    Attributes:
        teacher: The teacher, calibrated; with `folds` all of them.
        dataset: Hub id or folder of the images: where some had to be held out, the folder in `output_dir` that has both parts.
        split: The images that were learned, which are to be reinforced.
        eval_split: Those that were held out.
        dataset_config: The configuration of the dataset; None where none was named, or in that folder.
    """

    teacher: Teacher
    dataset: str
    split: str
    eval_split: str
    dataset_config: str | None = None


def teach(
    dataset: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    augmentation: Augmentation | str | os.PathLike[str] | Sequence[Any] | None = None,
    **settings: Any,
) -> Taught:
    """Fine-tunes a classifier on a dataset to be its teacher, measures it on held-out images and calibrates it.

    The same call again resumes. What it returns says which images to reinforce: where some had to be held out, those of the
    split `train` in the folder that it wrote.

    Args:
        dataset: Hub id, folder of images with a folder for each class, or folder of Parquet files.
        output_dir: Folder of the teacher.
        augmentation: What draws the training views: an `Augmentation`, a name or a YAML file of one, or a list of ops. By
            default `randaug`, or what a file of `config` says.
        **settings: The flags of `hf-dr teach`: `model`, `held_out`, `folds`, `epochs`, `learning_rate`, ...; None is as if it
            were left out.

    Returns:
        The `teacher`, calibrated; the `dataset`, its `dataset_config` and the `split` that it learned; and the `eval_split`
        that was held out.

    Raises:
        HfDrError: A setting is unknown or impossible, or the images cannot be used.
    """
    for name, given in (("dataset", dataset), ("output_dir", output_dir)):
        check_kind(name, given, (str, os.PathLike), "a name or a path", "Save a dataset in memory: `save_to_disk`.")
    for name in sorted({"help", "help_all", "print_config"} & settings.keys()):
        raise ConfigError(f"`{name}` is for the command line, got {settings[name]!r}. See `hf-dr teach --help`.")
    named = {"augmentation": augmentation} if isinstance(augmentation, (str, os.PathLike)) else {}
    chosen = {name: value for name, value in settings.items() if value is not None}
    flags = as_arguments({"output_dir": os.fspath(output_dir), **named, **chosen})
    teaching, args = _parsed(flags, "hf-dr teach")
    from hf_dr.generation.plan import augmentation_of
    from hf_dr.processes import process_state
    from hf_dr.teacher.ensemble import Teacher

    if augmentation is not None and not named:
        teaching = replace(teaching, augmentation=augmentation_of(augmentation).to_list())  # type: ignore[arg-type]  # a list, as in YAML

    student, fit = _taught(os.fspath(dataset), teaching, args, flags)
    process_state().wait_for_everyone()  # process 0 writes
    temperature = 1.0 if fit is None or fit.folded else fit.temperature
    teacher = Teacher.from_pretrained(str(args.output_dir), temperature=temperature)
    return Taught(teacher, student.dataset[0], str(student.split), str(student.eval_split), student.eval_config)


def teach_command(argv: Sequence[str], prog: str) -> int:
    """Fine-tunes a classifier on a dataset to be its teacher."""
    words, flags = split_words(argv)
    teaching, args = _parsed(flags, prog)
    dataset = one_dataset(words)
    start_logging()
    from hf_dr.processes import process_state

    student, fit = _taught(dataset, teaching, args, flags)
    if process_state().is_main_process:
        # The views of `reinforce` are those that the teacher has learned. A list of ops is no flag: its file must be named.
        ops = teaching.augmentation if isinstance(teaching.augmentation, str) else "OPS.yaml"
        views = as_arguments({} if ops == "randaug" else {"augmentation": ops})
        views += as_arguments({} if teaching.size is None else {"size": teaching.size})
        more = [] if fit is None else temperature_flag(asdict(fit))
        # Of a dataset that was divided, only the columns are as before.
        read = {"dataset_config": student.eval_config, **{name: getattr(student, name) for name in _ALSO_OF_REINFORCE}}
        place = [student.dataset[0], *as_arguments({name: value for name, value in read.items() if value})]
        words = [*place, "--split", str(student.split), "--teacher", str(args.output_dir), *views, *more]
        print(f"\nnext: {shlex.join(['hf-dr', 'reinforce', *words, '--output_dir', 'PLUS'])}", flush=True)
    return 0


def _parsed(flags: Sequence[str], prog: str) -> tuple[TeachArguments, ReinforcedTrainingArguments]:
    teaching, args = parse(
        [TeachArguments, _LEARNING],
        ["--config", str(own_recipes() / "teach.yaml"), *flags],
        prog=f"{prog} DATASET",
        description="Fine-tunes a pretrained classifier on a dataset (Hub id, folder of images with a folder for each "
        "class, folder of Parquet files), measures it on held-out images and calibrates it: a teacher for `hf-dr "
        "reinforce --teacher OUTPUT_DIR`. It is `hf-dr train --objective erm` with the settings of the recipe "
        "teach.yaml; all settings of transformers' TrainingArguments are flags, too. The same command again resumes.",
        examples="hf-dr teach photos/ --output_dir runs/teacher\n"
        "hf-dr teach uoft-cs/cifar100 --label_column fine_label --output_dir runs/teacher --epochs 10",
    )
    return teaching, args


def _taught(
    dataset: str, teaching: TeachArguments, args: ReinforcedTrainingArguments, flags: Sequence[str]
) -> tuple[StudentArguments, CalibratedStudent | None]:
    """Trains what the flags ask for; returns the training that it was, and what calibrated it, or None with `folds`."""
    from hf_dr.cli.arguments import build_augmentation
    from hf_dr.cli.train import draw_only_fresh_views

    build_augmentation(teaching.augmentation, teaching.size)  # a wrong one is found before anything is written
    output_dir = Path(str(args.output_dir))
    check_apart(output_dir, [dataset])
    check_writable(expanded(output_dir), "output_dir")
    draw_only_fresh_views(args, "erm")
    for setting in ("push_to_hub", "resume_from_checkpoint") if teaching.folds else ():
        if getattr(args, setting):
            raise ConfigError(
                f"`{setting}` must be left out with `folds`, got {getattr(args, setting)}: it would be the same for all "
                "teachers. They resume by themselves; push each folder with `hf-dr push`."
            )
    student = _as_training(dataset, teaching, output_dir, args.seed)
    if teaching.folds is None:
        return student, _teach(teaching, student, args, flags)
    for fold, folder in _folds(student, output_dir, teaching.folds, args.seed):
        logger.info("Training the teacher without fold %d of %d folds, in %s.", fold.number, fold.of, folder)
        # The arguments once more, because transformers' cannot be changed once they are made.
        _, own = _parsed([*flags, "--output_dir", str(folder)], "hf-dr teach")
        _teach(teaching, student, own, flags, fold)
    return student, None


def _teach(
    teaching: TeachArguments, student: StudentArguments, args: Any, argv: Sequence[str], fold: Fold | None = None
) -> CalibratedStudent:
    """Trains, calibrates and saves one teacher; returns what calibrated it."""
    from hf_dr.cli.train import calibrate, finish_training, prepare_training, run_training
    from hf_dr.training.calibrating import check_whole
    from hf_dr.training.teaching import warn_of_learned, warn_of_unlearned

    trainer, card, _ = prepare_training(student, args, argv, leave_out=fold)
    if trainer.is_world_process_zero():
        held_out: Any = trainer.eval_dataset
        learned: Any = trainer.train_dataset
        warn_of_learned(held_out.files, learned.images)
        warn_of_unlearned(held_out.labels.to_numpy(), learned.labels, held_out.class_names)
    if teaching.calibrate:
        check_whole(trainer, "calibrate")
    card["calibrated_on"] = card["evaluated_on"]
    with trainer.alone():
        fit = run_training(trainer, lambda: calibrate(trainer, trainer.eval_dataset, card, fold=teaching.calibrate))
        finish_training(trainer, card)
        assert fit is not None
        if trainer.is_world_process_zero():
            place = {
                "dataset": student.dataset[0],
                "dataset_config": student.eval_config,
                "split": student.split,
                "eval_split": student.eval_split,
            }
            write_json(Path(args.output_dir) / TEACHER_FILE, {**asdict(fit), **place})
            print(fit.told(student.eval_split, "pass it to reinforce as --teacher_temperature"), flush=True)
    return fit


def temperature_flag(found: dict[str, Any]) -> list[str]:
    """Returns the flag that tells `reinforce` the temperature of a teacher whose weights have not taken it in."""
    return [] if found["folded"] else ["--teacher_temperature", f"{found['temperature']:.4g}"]


def _folds(student: StudentArguments, output_dir: Path, num_folds: int, seed: int) -> list[tuple[Fold, Path]]:
    """Divides the images that are learned; returns the folds, and the folders of the teachers without them."""
    from hf_dr.cli.train import load_images
    from hf_dr.processes import on_main, process_state
    from hf_dr.replay.join import index_images, pixels_digest
    from hf_dr.teacher.folds import Fold, fold_folders, folds_of
    from hf_dr.training.teaching import begin_folds, check_folds

    data = load_images(student, seed)
    check_folds(data.labels, data.class_names)
    images = pixels_digest(data.images)
    check_folds(data.labels, data.class_names, folds_of(index_images(data.images), num_folds))
    on_main(process_state(), lambda: begin_folds(output_dir, num_folds, images))
    folders = fold_folders(output_dir, num_folds)
    return [(Fold(number, num_folds, images), folder) for number, folder in enumerate(folders)]


def _as_training(name: str, teaching: TeachArguments, output_dir: Path, seed: int) -> StudentArguments:
    """Returns the training that teaching is; where images have to be held out, writes the two parts of the dataset."""
    from hf_dr.processes import on_main, process_state

    where: dict[str, Any] = {"split": teaching.split, "revision": teaching.revision, "files_from": teaching.files_from}
    config = teaching.dataset_config
    eval_split = teaching.eval_split or _held_out_split(name, config, teaching.revision)
    if eval_split is None:
        folder = output_dir / expanded(name).resolve().name
        on_main(process_state(), lambda: _divide(name, teaching, folder, seed))
        name = str(folder)
        config = None
        where = {"split": "train", "revision": None, "files_from": []}
        eval_split = "test"
    return StudentArguments(
        dataset=[name],
        name=[] if config is None else [config],
        student=teaching.model,
        objective="erm",
        model_args=teaching.model_args,
        augmentation=teaching.augmentation,
        size=teaching.size,
        image_column=teaching.image_column,
        label_column=teaching.label_column,
        eval_dataset=name,
        eval_config=config,
        eval_split=eval_split,
        eval_revision=where["revision"],
        **where,
    )


def _divide(name: str, teaching: TeachArguments, folder: Path, seed: int) -> None:
    """Writes what is learned and what is held out of a split to a folder."""
    from hf_dr.store.base_dataset import load_base
    from hf_dr.store.labels import labelled_columns
    from hf_dr.training.teaching import divide

    dataset, _ = load_base(
        name, teaching.dataset_config, split=teaching.split, revision=teaching.revision, files_from=teaching.files_from
    )
    columns = labelled_columns(dataset, _LEARNS_FROM, name, teaching.image_column, teaching.label_column)
    divide(dataset, *columns, folder, share=teaching.held_out, seed=seed, folds=teaching.folds is not None)


def _held_out_split(name: str, config: str | None = None, revision: str | None = None) -> str | None:
    """Returns the split of a dataset that is not learned, if it has one."""
    from hf_dr.store.base_dataset import split_names

    known = split_names(name, config, revision=revision)
    return next((split for split in _HELD_OUT_SPLITS if split in known), None)


def hashes_of(name: str, config: str | None = None, files_from: Sequence[str] = ()) -> list[str]:
    """Returns a hash of the images and labels of each split by which a teacher is made and measured, unless told otherwise."""
    from hf_dr.store.base_dataset import load_base, whole_hash
    from hf_dr.store.labels import labelled_columns

    hashes = []
    for split in filter(None, (TeachArguments.split, _held_out_split(name, config))):
        dataset, _ = load_base(name, config, split=split, files_from=files_from)
        hashes.append(whole_hash(dataset, *labelled_columns(dataset, _LEARNS_FROM, name)))
    return hashes

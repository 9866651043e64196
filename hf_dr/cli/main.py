"""The command line: `hf-dr COMMAND`, which recipes/*.py and `accelerate launch -m hf_dr COMMAND` call as well."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import sort_checkpoints

from hf_dr.cli.config import parse, read_yaml
from hf_dr.cli.smoke import Rehearsal, SmokeArguments, rehearsal
from hf_dr.errors import ConfigError, HfDrError
from hf_dr.evaluation.comparison import CompareConfig, as_arguments, run_comparison
from hf_dr.evaluation.metrics import compute_metrics
from hf_dr.evaluation.results import gather
from hf_dr.evaluation.run import EvaluateConfig, run_evaluation
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.contact_sheet import contact_sheet
from hf_dr.generation.extend import ExtendConfig, ExtendJob, check_extension
from hf_dr.generation.folder import Part
from hf_dr.generation.inspection import inspect_dataset
from hf_dr.generation.job import Job
from hf_dr.generation.ml_dr.importer import ImportConfig, ImportJob
from hf_dr.generation.verify import teacher_from_provenance, verify
from hf_dr.hub.fetch import fetch_config
from hf_dr.hub.push import push_to_hub
from hf_dr.processes import process_state
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import each_dataset, load_reinforced
from hf_dr.replay.plain import PlainDataset
from hf_dr.store.base_dataset import check_dataset, load_base
from hf_dr.store.card import write_card
from hf_dr.store.findings import save_finding
from hf_dr.store.named_files import FILES_FROM_HELP
from hf_dr.store.provenance import find_config
from hf_dr.store.schema import CONTACT_SHEET_FILE
from hf_dr.teacher.ensemble import PRECISIONS, Teacher
from hf_dr.teacher.members import imagenet_synsets
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.distillation import OnlineDistillationTrainer
from hf_dr.training.student_hub import is_student, push_student
from hf_dr.training.students import (
    LabelledImages,
    build_student,
    evaluation_augmentation,
    load_processor,
    read_model_args,
)
from hf_dr.training.trainer import ReinforcedTrainer
from hf_dr.transfer.backbone import BackboneArguments
from hf_dr.transfer.detection import DetectionArguments, detection_trainer
from hf_dr.transfer.segmentation import SegmentationArguments, segmentation_trainer
from hf_dr.transfer.trainer import TransferArguments, TransferTrainer
from hf_dr.version import __version__
from hf_dr.views.augmentation import NAMED, Augmentation

logger = logging.getLogger("hf_dr")


@dataclass
class BaseArguments:
    """Which dataset is reinforced."""

    dataset: str = field(
        metadata={"help": "Hub id, Parquet file, folder of Parquet files or images, or saved Dataset."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration, where it has several."})
    split: str = field(default="train", metadata={"help": "Its split."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the dataset on the Hub."})


@dataclass
class TeacherArguments:
    """Which teacher labels which views."""

    teacher: list[str] = field(
        metadata={
            "help": "One or several of: Hub id of a timm or transformers classifier (pin it with @revision), transformers "
            "folder, timm:ARCHITECTURE@FILE.safetensors. Probabilities of several are averaged."
        }
    )
    teacher_classes: str | None = field(
        default=None,
        metadata={
            "help": "Where the dataset has a subset of the teacher's classes: `by_name`, a timm list such as imagenet-a or "
            "imagenet-r, or a JSON file with the teacher's index (or name) for each class of the dataset."
        },
    )
    precision: str = field(default="fp32", metadata={"help": "Of the teacher.", "choices": list(PRECISIONS)})
    compile: bool = field(default=False, metadata={"help": "Compile the teacher with torch.compile."})
    augmentation: str = field(
        default="randaug",
        metadata={"help": f"One of {', '.join(NAMED)}; or a YAML file with an `augmentation` list of ops."},
    )
    size: int = field(default=224, metadata={"help": "Side in pixels of the views of a named augmentation."})


@dataclass
class RunArguments:
    """How the run behaves."""

    dry_run: bool = field(
        default=False, metadata={"help": "Check everything, time a few batches, print hours and bytes; write nothing."}
    )
    part: str = field(
        default="0/1",
        metadata={
            "help": "I/N: make only every N-th shard from number I on, for N launches that share the folder and know nothing "
            "of each other, like the nodes of a cluster. What a killed one left, it makes when run again, or a run of all."
        },
    )


def build_augmentation(value: Any, size: int) -> Augmentation:
    """Builds the augmentation from a name, a YAML file, or a list of ops.

    Raises:
        ConfigError: It is none of these, or an op is wrong.
    """
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        content = read_yaml(value)
        if "augmentation" not in content:
            raise ConfigError(
                f"{value} must have the key `augmentation`, found {', '.join(map(str, content)) or 'nothing'}."
            )
        value = content["augmentation"]
    return Augmentation.named(value, size) if isinstance(value, str) else Augmentation.from_list(value)


def read_classes(value: str | None, names: Sequence[str] | None) -> list[Any] | None:
    """Turns `--teacher_classes` into the classes that `Teacher` takes; `names` are those of the dataset.

    Raises:
        ConfigError: It is no known word and no JSON list.
    """
    if value is None:
        return None
    if value == "by_name":
        if names is None:
            raise ConfigError(
                "`teacher_classes=by_name` needs a ClassLabel column with names, found none. Give a JSON file."
            )
        return list(names)
    if value in ("imagenet-a", "imagenet-r"):
        return imagenet_synsets(value)
    try:
        content = json.loads(Path(value).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(
            f"`teacher_classes` must be `by_name`, imagenet-a, imagenet-r or a JSON file, but {value!r}: {error}."
        ) from error
    if not isinstance(content, list) or not content or len({type(c) for c in content} | {int, str}) > 2:
        raise ConfigError(f"{value} must hold a JSON list of class indices or names, found {str(content)[:60]}.")
    return content


def _rehearsal(argv: Sequence[str]) -> contextlib.AbstractContextManager[Rehearsal]:
    if process_state().num_processes > 1:
        raise ConfigError(f"`smoke` takes one process, got {process_state().num_processes}. Leave accelerate out.")
    return rehearsal(argv, lambda arguments: launch("reinforce", arguments, "hf-dr reinforce"))


def reinforce_command(argv: Sequence[str], prog: str) -> int:
    """Reinforces a dataset."""
    base, teaching, run, smoke, config = parse(
        [BaseArguments, TeacherArguments, RunArguments, SmokeArguments, ReinforceConfig],
        argv,
        prog=prog,
        description='Adds the augmentation parameters and a teacher\'s answers for V views of each image to a dataset: the "+" '
        "dataset. Launch it with accelerate over any number of processes; running the same command again resumes.",
    )
    if smoke.smoke:
        with _rehearsal(argv) as stand_in:
            sizes = len(teaching.teacher), config.num_views, config.num_candidates
            return reinforce_command([*argv, *as_arguments(stand_in.reinforce(*sizes))], prog)
    # What can be checked without the teacher comes first: it may take minutes to load.
    augmentation, part = build_augmentation(teaching.augmentation, teaching.size), Part.parse(run.part)
    state = process_state()
    with state.local_main_process_first():
        dataset, described = load_base(
            base.dataset,
            base.dataset_config,
            split=base.split,
            revision=base.revision,
            files_from=config.files_from,
        )
    _, label_column = check_dataset(dataset, config)
    names = getattr(dataset.features[label_column], "names", None) if label_column else None
    teacher = Teacher.from_pretrained(
        teaching.teacher,
        device=state.device,
        precision=teaching.precision,
        compile=teaching.compile,
        classes=read_classes(teaching.teacher_classes, names),
    )
    return _run(Job(dataset, teacher, augmentation, config, base=described), run, part)


def _run(job: Job, run: RunArguments, part: Part) -> int:
    state = process_state()
    if run.dry_run:
        if state.is_main_process:
            estimate = job.estimate()
            print(f"{job.folder}: nothing written, this is what the run would take\n")
            print(estimate.report(part.count * state.num_processes, job.workers, state.device))
        return 0
    try:
        job.run(part)
    except KeyboardInterrupt:
        logger.warning("Stopped. Finished shards are kept; run the same command again to go on.")
        return 130
    return 0


@dataclass
class ExtendArguments:
    """Which dataset is extended, and who is asked."""

    name: str | None = field(default=None, metadata={"help": "Its configuration, where it has several."})
    base: str | None = field(default=None, metadata={"help": "For an overlay: the base dataset with the images."})
    base_config: str | None = field(default=None, metadata={"help": "Configuration of the base."})
    base_revision: str | None = field(
        default=None, metadata={"help": "Its branch, tag or commit. Default: the one that was reinforced."}
    )
    files_from: list[str] = field(default_factory=list, metadata={"help": FILES_FROM_HELP})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the dataset on the Hub."})
    teacher: list[str] = field(
        default_factory=list,
        metadata={"help": "For more views: the teacher of the stored ones. Default: those that the provenance names."},
    )
    add_teacher: list[str] = field(
        default_factory=list,
        metadata={
            "help": "New members of the teacher, named as for reinforce, to be averaged into the stored answers."
        },
    )
    teacher_classes: str | None = field(default=None, metadata={"help": "As for reinforce."})
    precision: str | None = field(
        default=None, metadata={"help": "Of the teacher. Default: as stored.", "choices": list(PRECISIONS)}
    )
    compile: bool = field(default=False, metadata={"help": "Compile the teacher with torch.compile."})


def extend_command(argv: Sequence[str], prog: str) -> int:
    """Adds views or members of the teacher to a "+" dataset, without asking again what is stored."""
    count = next((n for n, word in enumerate(argv) if word.startswith("-")), len(argv))
    arguments, run, config = parse(
        [ExtendArguments, RunArguments, ExtendConfig],
        argv[count:],
        prog=f"{prog} PLUS",
        description='Makes a "+" dataset with more views (--num_views) or more members of the teacher (--add_teacher) out of '
        "one that is there, a folder or Hub id. Stored views are drawn again and compared, not asked again. Launch it like "
        "reinforce; running the same command again resumes.",
    )
    if count != 1:
        raise ConfigError(
            f'expected one "+" dataset before the flags, got {" ".join(argv[:count]) or "none"}. Name one.'
        )
    part, state = Part.parse(run.part), process_state()
    with state.local_main_process_first():
        plus = _open(argparse.Namespace(path=argv[0], **vars(arguments)))
    check_extension(plus, config, teacher=bool(arguments.teacher), add_teacher=bool(arguments.add_teacher))
    settings = {
        "device": state.device,
        "precision": arguments.precision or plus.provenance.teacher.get("precision", "fp32"),
        "compile": arguments.compile,
    }
    names = arguments.add_teacher or arguments.teacher
    if names:
        classes = read_classes(arguments.teacher_classes, plus.class_names)
        teacher = Teacher.from_pretrained(names, classes=classes, **settings)
    else:
        teacher = teacher_from_provenance(plus.provenance, **settings)
    return _run(ExtendJob(plus, teacher, config), run, part)


@dataclass
class StudentArguments:
    """Who learns what, from which data."""

    dataset: list[str] = field(
        metadata={
            "help": 'Folder or Hub id of the "+" dataset. Of several, all of one base, the views add up. With --augmentation, '
            "a base dataset, as for reinforce."
        }
    )
    student: str = field(
        metadata={"help": "timm:ARCHITECTURE for fresh weights; else a Hub id or folder to fine-tune."}
    )
    name: list[str] = field(
        default_factory=list,
        metadata={
            "help": 'Configuration of the "+" dataset, where it has several. Several of one dataset add up, too; with several '
            "datasets one for all, or one each."
        },
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read shard by shard instead of fetching and converting all first."}
    )
    base: str | None = field(default=None, metadata={"help": "For an overlay: the base dataset with the images."})
    base_config: str | None = field(default=None, metadata={"help": "Configuration of the base."})
    base_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the base. Default: the one that was reinforced."}
    )
    files_from: list[str] = field(default_factory=list, metadata={"help": FILES_FROM_HELP})
    revision: str | None = field(
        default=None, metadata={"help": 'Branch, tag or commit of the "+" dataset on the Hub.'}
    )
    unreinforced: bool = field(
        default=False, metadata={"help": "Train on the base's rows without stored views, too, by their labels."}
    )
    objective: str = field(
        default="reinforced",
        metadata={
            "help": "`reinforced`: stored views and answers; `erm`: newly drawn views and labels; `kd`: newly drawn views "
            "and a teacher in memory. Data path, model, optimizer and steps are the same.",
            "choices": ["reinforced", "erm", "kd"],
        },
    )
    teacher: list[str] = field(default_factory=list, metadata={"help": "For --objective kd: as for reinforce."})
    teacher_classes: str | None = field(default=None, metadata={"help": "For --objective kd: as for reinforce."})
    model_args: str = field(default="{}", metadata={"help": "For timm: JSON with arguments of timm.create_model."})
    eval_dataset: str | None = field(default=None, metadata={"help": "Dataset with images and labels to evaluate on."})
    eval_split: str = field(default="test", metadata={"help": "Its split."})
    eval_crop: float = field(default=0.875, metadata={"help": "Share of the resized side that the centre crop keeps."})
    num_views: int | None = field(default=None, metadata={"help": "Use only the first so many stored views."})
    augmentation: str | None = field(
        default=None,
        metadata={
            "help": "For erm and kd on a base dataset that need not be reinforced: what draws its views, as for reinforce. "
            'Without it they are drawn as those of the "+" dataset were.'
        },
    )
    size: int | None = field(
        default=None,
        metadata={"help": 'Side in pixels of the views: 224, or that of the "+" dataset, which must agree.'},
    )
    split: str | None = field(default=None, metadata={"help": "With --augmentation: the split. Default: train."})
    image_column: str | None = field(default=None, metadata={"help": "With --augmentation: as for reinforce."})
    label_column: str | None = field(default=None, metadata={"help": "With --augmentation: as for reinforce."})

    def __post_init__(self) -> None:
        self.dataset = [self.dataset] if isinstance(self.dataset, str) else self.dataset
        self.name = [self.name] if isinstance(self.name, str) else self.name
        plain = self.augmentation is not None
        if plain and self.objective == "reinforced":
            raise ConfigError(
                "`augmentation` must come with `objective` erm or kd, got reinforced: stored views have their own. Leave "
                "it out."
            )
        if plain and len(self.dataset) + len(self.name) > 2:
            raise ConfigError(
                f"`dataset` must be one base dataset with `augmentation`, got {', '.join(self.dataset + self.name)}."
            )
        kinds = (
            (
                ('a "+" dataset', "without"),
                ("streaming", "base", "base_config", "base_revision", "unreinforced", "num_views"),
            ),
            (("a base dataset", "with"), ("split", "image_column", "label_column")),
        )
        (what, how), names = kinds[0] if plain else kinds[1]
        for name in names:
            if getattr(self, name):
                raise ConfigError(
                    f"`{name}` is for {what}, which is read {how} `augmentation`, got {getattr(self, name)!r}. Leave it out."
                )


def _load_plain(student: StudentArguments, seed: int) -> PlainDataset:
    (name,), config = student.dataset, student.name[0] if student.name else None
    augmentation, split = build_augmentation(student.augmentation, student.size or 224), student.split or "train"
    with process_state().local_main_process_first():
        base, described = load_base(name, config, split=split, revision=student.revision, files_from=student.files_from)
    columns = ReinforceConfig("", image_column=student.image_column, label_column=student.label_column)
    image_column, label_column = check_dataset(base, columns)
    if label_column is None:
        raise ConfigError(f"`objective` {student.objective} needs labels, found none in {name}. Name `label_column`.")
    return PlainDataset(
        base,
        augmentation,
        image_column=image_column,
        label_column=label_column,
        described=described,
        split=split,
        seed=seed,
    )


def train_command(argv: Sequence[str], prog: str) -> int:
    """Trains a student on a "+" dataset."""
    with _as_config_error():
        student, smoke, args = parse(
            [StudentArguments, SmokeArguments, ReinforcedTrainingArguments],
            argv,
            prog=prog,
            description='Trains an image classifier on a "+" dataset, or, for comparison, by plain training (erm) or online '
            "distillation (kd) on the same images. All settings of transformers' TrainingArguments are flags, too.",
        )
    if smoke.smoke:
        with _rehearsal(argv) as stand_in:
            return train_command([*argv, *as_arguments(stand_in.train(vars(student)))], prog)
    if (student.objective == "kd") != bool(student.teacher):
        raise ConfigError(
            f"`teacher` must be given for `objective` kd and only then, got "
            f"{student.teacher or 'none'} with {student.objective}."
        )
    if student.teacher_classes and student.objective != "kd":
        raise ConfigError(
            f"`teacher_classes` must be left out without a teacher, got {student.teacher_classes!r} with the objective "
            f"{student.objective}. Leave it out."
        )
    if student.objective != "reinforced":
        args.reinforced_probability = 0.0
    model_args = read_model_args(student.model_args)
    set_seed(args.seed)
    paths, names = student.dataset, student.name
    path: Any = paths if len(paths) > 1 else paths[0]
    name: Any = names if len(names) > 1 else (names or [None])[0]
    plain = student.augmentation is not None
    plus: Any = (
        _load_plain(student, args.seed)
        if plain
        else load_reinforced(
            path,
            name,
            streaming=student.streaming,
            base=student.base,
            base_config=student.base_config,
            base_revision=student.base_revision,
            files_from=student.files_from,
            unreinforced=student.unreinforced,
            revision=student.revision,
            num_views=student.num_views,
            seed=args.seed,
        )
    )
    if student.objective != "reinforced" and not plus.has_labels:
        raise ConfigError(f"`objective` must be reinforced for a dataset without labels, got {student.objective}.")
    height, width = plus.size
    if not plain and student.size is not None and (height, width) != (student.size, student.size):
        raise ConfigError(
            f"`size` must be that of the stored views, {height}x{width}, got {student.size}. Reinforce the dataset with "
            f"`size` {student.size}, or choose another student."
        )
    model = build_student(
        student.student,
        plus.class_names,
        plus.num_classes,
        model_args=model_args,
        size=max(height, width),
        crop=student.eval_crop,
    )
    evaluation, evaluated_on = None, None
    if student.eval_dataset:
        images, described = load_base(student.eval_dataset, split=student.eval_split, files_from=student.files_from)
        evaluated_on = {**described, "split": student.eval_split}
        provenance = plus.provenances[0]
        columns = {"image_column": provenance.image_column, "label_column": provenance.label_column or "label"}
        classes = getattr(images.features.get(columns["label_column"]), "names", None)
        if classes and plus.class_names and classes != plus.class_names:
            c = next(c for c, name in enumerate([*classes, None]) if [*plus.class_names, None][c] != name)
            raise ConfigError(
                f'`eval_dataset` must have the classes of the "+" dataset in their order, but class {c} is '
                f'{[*classes, None][c]!r} there and {[*plus.class_names, None][c]!r} in the "+" dataset. Give another.'
            )
        evaluation = LabelledImages(images, evaluation_augmentation(max(height, width), student.eval_crop), **columns)
    settings: dict[str, Any] = {
        "model": model,
        "args": args,
        "train_dataset": plus,
        "eval_dataset": evaluation,
        "compute_metrics": compute_metrics,
    }
    processor = load_processor(student.student, max(height, width))
    if processor is not None:
        settings["processing_class"] = processor
        if getattr(processor, "image_mean", None) and getattr(processor, "image_std", None):
            settings["normalization"] = (processor.image_mean, processor.image_std)
    if student.objective == "kd":
        chosen = read_classes(student.teacher_classes, plus.class_names)
        teacher = Teacher.from_pretrained(student.teacher, device=args.device, classes=chosen)
        if plus.class_names is not None:
            teacher.check_classes(plus.class_names)
        settings["teacher"] = teacher
    with _as_config_error():
        trainer = (OnlineDistillationTrainer if student.objective == "kd" else ReinforcedTrainer)(**settings)
    status = run_training(trainer, args)
    folders = {path: Path(path).expanduser().resolve().name for path in paths if Path(path).expanduser().exists()}
    finish: Callable[..., Any] = trainer.push_to_hub if args.push_to_hub else trainer.create_model_card
    finish(
        dataset=" + ".join(folders.get(path, path) for path in paths),
        dataset_tags=[path for path in paths if path not in folders] or None,
        dataset_revision=None if folders else student.revision if plain else _commit_of(path, name, student.revision),
        finetuned_from=None if student.student.startswith("timm:") else student.student,
        evaluated_on=evaluated_on,
    )
    return status


def _commit_of(path: Any, name: Any, revision: str | None) -> str:
    """The commits at which "+" datasets were fetched from the Hub."""
    configs = [fetch_config(*each, revision=revision, shards=False) for each in each_dataset(path, name)]
    return " + ".join(dict.fromkeys(config.parent.name for config in configs))


@contextlib.contextmanager
def _as_config_error() -> Iterator[None]:
    """Lets the user see what transformers has to say against the settings, without its traceback."""
    try:
        yield
    except HfDrError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _last_checkpoint(folder: str) -> str | None:
    """Returns the last whole checkpoint: the state is written last, so one that was being written at a kill has none."""
    for checkpoint in reversed(sort_checkpoints(folder)):
        try:
            TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        except (OSError, ValueError):
            logger.warning("Leaving out %s, which was not written to its end.", checkpoint)
        else:
            return checkpoint
    return None


def run_training(trainer: ReinforcedTrainer | TransferTrainer, args: TrainingArguments) -> int:
    """Trains, resuming from the last checkpoint of the folder; saves the model and its metrics."""
    steps_before = 0
    checkpoint = args.resume_from_checkpoint or _last_checkpoint(str(args.output_dir))
    if checkpoint is not None:
        state = Path(checkpoint) / TRAINER_STATE_NAME
        if not state.is_file():
            raise ConfigError(
                f"`resume_from_checkpoint` must name a checkpoint with a {TRAINER_STATE_NAME}, found none in {checkpoint}. "
                "Leave it out: the last checkpoint of `output_dir` is found without it."
            )
        logger.info("Going on from %s.", checkpoint)
        steps_before = TrainerState.load_from_json(str(state)).global_step
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(_internal_call=True)  # pushed when there is a card
    if result.global_step > steps_before:  # else it was finished, and its metrics are written
        trainer.log_metrics("train", result.metrics)
        trainer.save_metrics("train", result.metrics)
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    trainer.save_state()
    return 0


def detect_command(argv: Sequence[str], prog: str) -> int:
    """Trains and evaluates an object detector on a student's backbone."""
    with _as_config_error():
        chosen, student, smoke, args = parse(
            [DetectionArguments, BackboneArguments, SmokeArguments, TransferArguments],
            argv,
            prog=prog,
            description="Trains Mask R-CNN with a feature pyramid on a student's backbone and measures COCO's mean average "
            "precision. All settings of transformers' TrainingArguments are flags, too; the same command again resumes.",
        )
    if smoke.smoke:
        with _rehearsal(argv) as stand_in:
            return detect_command([*argv, *as_arguments(stand_in.detect())], prog)
    return _transfer(lambda: detection_trainer(chosen, student, args), args)


def segment_command(argv: Sequence[str], prog: str) -> int:
    """Trains and evaluates a semantic segmenter on a student's backbone."""
    with _as_config_error():
        chosen, student, smoke, args = parse(
            [SegmentationArguments, BackboneArguments, SmokeArguments, TransferArguments],
            argv,
            prog=prog,
            description="Trains DeepLabV3 on a student's backbone and measures the mean intersection over union, of whole "
            "images. All settings of transformers' TrainingArguments are flags, too; the same command again resumes.",
        )
    if smoke.smoke:
        with _rehearsal(argv) as stand_in:
            return segment_command([*argv, *as_arguments(stand_in.segment())], prog)
    return _transfer(lambda: segmentation_trainer(chosen, student, args), args)


def _transfer(make: Callable[[], TransferTrainer], args: TransferArguments) -> int:
    """Trains and evaluates on a backbone; leaves model, metrics and results."""
    set_seed(args.seed)
    with _as_config_error():
        trainer = make()
    status = run_training(trainer, args)
    trainer.write_results()
    if args.push_to_hub:
        trainer.push_to_hub()
    return status


def compare_command(argv: Sequence[str], prog: str) -> int:
    """Trains one student by several objectives and seeds, and compares them."""
    config, smoke = parse(
        [CompareConfig, SmokeArguments],
        argv,
        prog=prog,
        description="Trains one student by several objectives and seeds, evaluates them side by side, and writes the table and "
        "the report. Finished runs are kept: the same command goes on where it was stopped.",
    )
    if smoke.smoke:
        with _rehearsal(argv) as stand_in:
            return compare_command([*argv, *stand_in.compare(vars(config))], prog)
    run_comparison(config, lambda arguments: launch("train", arguments, "hf-dr train"))
    return 0


def verify_command(argv: Sequence[str], prog: str) -> int:
    """Replays sampled rows of a "+" dataset and compares them with what is stored."""
    parser = argparse.ArgumentParser(prog=prog, description=verify_command.__doc__, allow_abbrev=False)
    _add_dataset(parser)
    parser.add_argument(
        "--teacher", nargs="+", help="The teacher, as for reinforce. Default: those named in the provenance."
    )
    parser.add_argument("--teacher_classes", help="As for reinforce.")
    parser.add_argument("--no_teacher", action="store_true", help="Compare pixels only.")
    parser.add_argument("--num_rows", type=int, default=32, help="Rows to replay, all views of each. Default: 32.")
    parser.add_argument(
        "--save", action="store_true", help="Keep the report beside the shards and show it in the card."
    )
    arguments = parser.parse_args(argv)
    folder = _local_config(arguments) if arguments.save else None
    plus = _open(arguments)
    settings = {"device": process_state().device, "precision": plus.provenance.teacher.get("precision", "fp32")}
    teacher = None
    if arguments.teacher:
        classes = read_classes(arguments.teacher_classes, plus.class_names)
        teacher = Teacher.from_pretrained(arguments.teacher, classes=classes, **settings)
    elif not arguments.no_teacher:
        teacher = teacher_from_provenance(plus.provenance, **settings)
    report = verify(plus, teacher, num_rows=arguments.num_rows)
    print(report.report())
    if folder is not None:
        save_finding(folder, plus.provenance.fingerprint, report.verification)
        write_card(folder.parent)
    return 0 if report.ok else 1


def inspect_command(argv: Sequence[str], prog: str) -> int:
    """Prints provenance, sizes and teacher statistics of a "+" dataset, and draws its contact sheet."""
    parser = argparse.ArgumentParser(prog=prog, description=inspect_command.__doc__, allow_abbrev=False)
    _add_dataset(parser)
    parser.add_argument(
        "--contact_sheet", metavar="PNG", help="Where to draw images, views and answers. Default: nowhere."
    )
    parser.add_argument("--json", metavar="FILE", help="Write everything as JSON, too.")
    parser.add_argument(
        "--save",
        action="store_true",
        help="Keep the statistics and a contact sheet beside the shards and show them in the card. An overlay gets no sheet: "
        "its images are not to be copied.",
    )
    arguments = parser.parse_args(argv)
    folder = _local_config(arguments) if arguments.save else None
    inspection = inspect_dataset(fetch_config(arguments.path, arguments.name, revision=arguments.revision))
    print(inspection.report())
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(inspection.to_dict(), indent=2) + "\n", encoding="utf-8")
    if arguments.contact_sheet:
        print(f"\ncontact sheet: {contact_sheet(_open(arguments), Path(arguments.contact_sheet))}")
    if folder is not None:
        save_finding(folder, inspection.provenance.fingerprint, inspection.statistics)
        if not inspection.provenance.overlay:
            contact_sheet(_open(arguments), folder / CONTACT_SHEET_FILE)
        write_card(folder.parent)
    return 0


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


@dataclass
class ImportArguments:
    """Which dataset was reinforced, and how the import behaves."""

    base: str = field(metadata={"help": "The dataset that was reinforced, as for reinforce."})
    base_config: str | None = field(default=None, metadata={"help": "Its configuration, where it has several."})
    base_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of it on the Hub."})
    split: str = field(default="train", metadata={"help": "Its split."})
    dry_run: bool = field(default=False, metadata={"help": "Check settings and the first files; write nothing."})


def import_command(argv: Sequence[str], prog: str) -> int:
    """Turns reinforcements that apple/ml-dr published into a "+" dataset."""
    count = next((n for n, word in enumerate(argv) if word.startswith("-")), len(argv))
    sources = argv[:count]
    arguments, config = parse(
        [ImportArguments, ImportConfig],
        argv[count:],
        prog=f"{prog} FOLDER_OR_TAR [FOLDER_OR_TAR ...]",
        description="Turns reinforcements that apple/ml-dr published, folders or archives of pickles, into a "
        '"+" dataset. Several are runs whose views add up. The pickles are read as data, never executed; running the '
        "same command again resumes.",
    )
    base, described = load_base(
        arguments.base,
        arguments.base_config,
        split=arguments.split,
        revision=arguments.base_revision,
        files_from=config.files_from,
    )
    job = ImportJob(sources, base, config, described=described)
    if arguments.dry_run:
        print(f"{job.folder}: nothing written, this is what the import would make\n\n{job.plan()}")
        return 0
    job.run()
    return 0


def evaluate_command(argv: Sequence[str], prog: str) -> int:
    """Evaluates checkpoints: accuracy, calibration, robustness."""
    config, smoke = parse(
        [EvaluateConfig, SmokeArguments],
        argv,
        prog=prog,
        description="Evaluates several checkpoints on several sets of labelled images and writes one table (Markdown, JSON) "
        "and the reliability diagrams (PNG). Each model's own preprocessing is used: resize, centre crop, mean and std.",
    )
    if smoke.smoke:
        with _rehearsal(argv) as stand_in:
            return evaluate_command([*argv, *as_arguments(stand_in.evaluate(vars(config)))], prog)
    report = run_evaluation(config)
    report.save(config.output_dir)
    print(report.to_markdown())
    return 0


def report_command(argv: Sequence[str], prog: str) -> int:
    """Gathers many runs and evaluations into tables and plots."""
    parser = argparse.ArgumentParser(
        prog=prog,
        allow_abbrev=False,
        description="Gathers what train, compare, evaluate, detect and segment left in folders and below them: accuracy by "
        "model and epochs, robustness, calibration, training time and transfer of erm, kd and reinforced (Markdown, JSON), "
        "with plots (one HTML file). What cannot be compared is listed with the reason.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, help="Folders of runs, transfers, comparisons, evaluations, or of such."
    )
    parser.add_argument("--output_dir", type=Path, default=Path("report"), help="Default: report.")
    parser.add_argument("--title", default="Results", help="Of the page. Default: Results.")
    arguments = parser.parse_args(argv)
    results = gather(arguments.runs)
    page = results.save(arguments.output_dir.expanduser(), arguments.title)
    print(f"{results.to_markdown(arguments.title)}\nreport: {page}")
    return 0


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help='Folder or Hub id of the "+" dataset.')
    parser.add_argument("--name", help="Its configuration, where it has several.")
    parser.add_argument("--base", help="For an overlay: the base dataset with the images, as for reinforce.")
    parser.add_argument("--base_config", help="Configuration of the base.")
    parser.add_argument("--base_revision", help="Its branch, tag or commit. Default: the one that was reinforced.")
    parser.add_argument("--files_from", nargs="+", default=[], metavar="DIR", help=FILES_FROM_HELP)
    parser.add_argument("--revision", help='Branch, tag or commit of the "+" dataset on the Hub.')


def _open(arguments: argparse.Namespace) -> ReinforcedDataset:
    names = ("base", "base_config", "base_revision", "files_from", "revision")
    return load_reinforced(arguments.path, arguments.name, **{name: getattr(arguments, name) for name in names})


def _local_config(arguments: argparse.Namespace) -> Path:
    """Returns the folder of the configuration that is meant, to save findings in."""
    folder = Path(arguments.path).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"`save` needs the dataset's folder, got {arguments.path}. Give a folder, or leave `save` out."
        )
    return find_config(folder, arguments.name).resolve()


COMMANDS: dict[str, Callable[[Sequence[str], str], int]] = {
    "reinforce": reinforce_command,
    "extend": extend_command,
    "train": train_command,
    "detect": detect_command,
    "segment": segment_command,
    "compare": compare_command,
    "verify": verify_command,
    "inspect": inspect_command,
    "push": push_command,
    "evaluate": evaluate_command,
    "report": report_command,
    "import-ml-dr": import_command,
}


def main(argv: Sequence[str] | None = None, prog: str = "hf-dr") -> int:
    """Runs a command; returns the exit status: 0 done, 1 verification failed, 2 bad input, 130 stopped by Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] not in COMMANDS:
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {command.__doc__}" for name, command in COMMANDS.items()]
        usage = "\n".join([f"usage: {prog} COMMAND [--help] ...", "", "commands:", *lines, "", f"hf_dr {__version__}"])
        if argv and argv[0] in ("-h", "--help"):
            print(usage)
            return 0
        print(f"{prog}: expected a command, got {argv[0] if argv else 'none'}\n\n{usage}", file=sys.stderr)
        return 2
    return launch(argv[0], argv[1:], f"{prog} {argv[0]}")


def launch(command: str, argv: Sequence[str], prog: str) -> int:
    """Runs one command under the name by which the user called it; returns the exit status, as `main` does."""
    _log_to_stderr()
    try:
        return COMMANDS[command](argv, prog)
    except HfDrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _log_to_stderr() -> None:
    state = process_state()
    rank = "" if state.num_processes == 1 else f"[rank {state.process_index}] "
    logging.basicConfig(format=f"{rank}%(message)s", level=logging.WARNING)
    # Rank 0 tells what happens, the others only what is wrong.
    logger.setLevel(logging.INFO if state.is_main_process else logging.WARNING)

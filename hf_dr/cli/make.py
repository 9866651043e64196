"""Commands that make, extend, import, export, verify and inspect a "+" dataset.

Each reads its arguments first, and imports torch and what does the work when they are right.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_dr.cli.config import parse
from hf_dr.cli.flag_parser import Parser, add_fields, one_dataset, split_words, words_as_flag
from hf_dr.cli.flags import BaseArguments, PlusArguments, RunArguments, SmokeArguments, TeacherArguments, check_classes
from hf_dr.cli.launch import STOPPED, start_logging
from hf_dr.errors import ConfigError
from hf_dr.files import check_apart, check_writable, expanded, write_json
from hf_dr.generation.config import ExportConfig, ExtendConfig, ImportConfig, ReinforceConfig
from hf_dr.settings import FILES_FROM_HELP, IMAGE_COLUMN_HELP, LABEL_COLUMN_HELP, TEACHER_CLASSES_HELP, Whole, flag
from hf_dr.teacher.names import PRECISIONS

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_dr.generation.folder import Part
    from hf_dr.generation.job import Job
    from hf_dr.teacher.ensemble import Teacher

logger = logging.getLogger(__name__)


def reinforce_command(argv: Sequence[str], prog: str) -> int:
    """Reinforces a dataset."""
    argv = words_as_flag(argv)
    base, teaching, run, smoke, config = parse(
        [BaseArguments, TeacherArguments, RunArguments, SmokeArguments, ReinforceConfig],
        argv,
        prog=prog,
        description='Adds the augmentation parameters and a teacher\'s answers for V views of each image to a dataset: the "+" '
        "dataset. Launch it with accelerate over any number of processes; running the same command again resumes.",
        examples="hf-dr reinforce runs/teacher/photos --teacher runs/teacher --output_dir photos-plus\n"
        "accelerate launch -m hf_dr reinforce --config recipes/cifar100/reinforce.yaml --dry_run",
    )
    start_logging()
    from hf_dr.cli.arguments import build_augmentation
    from hf_dr.cli.smoke import rehearse
    from hf_dr.generation.folder import Part
    from hf_dr.generation.job import reinforce_job

    if smoke.smoke:
        return rehearse("reinforce", argv, prog, {**vars(teaching), **vars(config)})
    # What can be checked without the teacher comes first: it may take minutes to load.
    check_apart(config.output_dir, [base.dataset], teaching.teacher)
    check_writable(expanded(config.output_dir), "output_dir")
    augmentation = build_augmentation(teaching.augmentation, teaching.size)
    part = Part.parse(run.part)
    dataset, described, teacher = _loaded(argv, base, teaching, config)
    return _run(reinforce_job(dataset, teacher, augmentation, config, base=described), run, part)


def _loaded(
    argv: Sequence[str],
    base: BaseArguments,
    teaching: TeacherArguments,
    columns: ReinforceConfig | CalibrateArguments,
) -> tuple[Dataset, dict[str, Any], Teacher]:
    """Loads a base dataset, with labels where they are needed, and a teacher of its classes; also returns its description."""
    from hf_dr.cli.arguments import check_rows, read_classes
    from hf_dr.processes import process_state
    from hf_dr.store.base_dataset import class_names_of, load_base
    from hf_dr.store.labels import check_dataset, labelled_columns
    from hf_dr.teacher.ensemble import Teacher

    state = process_state()
    with state.local_main_process_first():
        dataset, described = load_base(
            base.dataset, base.dataset_config, split=base.split, revision=base.revision, files_from=columns.files_from
        )
    check_rows(argv, base.dataset, base.split, len(dataset))
    chosen = columns.image_column, columns.label_column
    label_column: str | None
    if isinstance(columns, CalibrateArguments):
        _, label_column = labelled_columns(dataset, "a teacher is calibrated by", base.dataset, *chosen)
    else:
        _, label_column = check_dataset(dataset, *chosen)
    names = class_names_of(dataset, label_column)
    teacher = Teacher.from_pretrained(
        teaching.teacher,
        device=state.device,
        precision=teaching.precision,
        compile=teaching.compile,
        classes=read_classes(teaching.teacher_classes, names),
        temperature=teaching.teacher_temperature,
    )
    return dataset, described, teacher


@dataclass
class CalibrateArguments(BaseArguments):
    """Images by which a teacher is calibrated."""

    split: str = flag(
        "Split of images that the teacher has not learned; for teachers of folds also the one they learned.",
        default="test",
    )
    files_from: list[str] = flag(FILES_FROM_HELP, default=[])
    image_column: str | None = flag(IMAGE_COLUMN_HELP, default=None)
    label_column: str | None = flag(LABEL_COLUMN_HELP, default=None)


def calibrate_command(argv: Sequence[str], prog: str) -> int:
    """Finds the temperature at which a teacher's probabilities fit held-out labels."""
    argv = words_as_flag(argv)
    images, teaching = parse(
        [CalibrateArguments, TeacherArguments],
        argv,
        prog=prog,
        description="Finds the temperature at which the probabilities of a teacher fit the labels of held-out images best (Guo "
        "et al., 2017), on one view of each image, drawn as those of reinforce. Nothing is written: pass the number on to "
        "`hf-dr reinforce`. A teacher of `hf-dr teach` is calibrated already, on images as they are.",
        examples="hf-dr calibrate photos/ --split test --teacher me/photos-resnet50",
    )
    start_logging()
    from hf_dr.cli.arguments import build_augmentation
    from hf_dr.generation.calibration import calibrate
    from hf_dr.processes import process_state

    augmentation = build_augmentation(teaching.augmentation, teaching.size)
    dataset, _, teacher = _loaded(argv, images, teaching, images)
    columns = {"image_column": images.image_column, "label_column": images.label_column}
    found = calibrate(dataset, teacher, augmentation, **columns)
    if process_state().is_main_process:
        temperature = f"--teacher_temperature {found.teacher.temperature:.4g}"
        print(
            f"{found}\n\nnext: hf-dr reinforce, with the same dataset, teacher and views, and {temperature}", flush=True
        )
    return 0


def _run(job: Job, run: RunArguments, part: Part) -> int:
    """Runs a job, or says what it would take; returns the exit status."""
    from hf_dr.processes import has_amx, process_state

    state = process_state()
    if run.dry_run:
        if state.is_main_process:
            estimate = job.estimate()
            print(f"{job.folder}: nothing written, this is what the run would take\n")
            print(estimate.report(part.count * state.num_processes, job.source.workers, state.device))
            if state.device.type == "cpu" and job.provenance.teacher.get("precision") == "fp32" and has_amx():
                print(
                    "\nThis CPU has units for bfloat16 (AMX): with `--precision bf16` the teacher would be about 2 to 3 "
                    "times as fast. Its answers, and so the fingerprint, would be others."
                )
            job.check_agreement(estimate.agreement)
        return 0
    return _until_stopped(lambda: job.run(part))


def _until_stopped(run: Callable[[], object]) -> int:
    """Does what goes on where it was stopped; returns the exit status."""
    try:
        run()
    except KeyboardInterrupt:
        logger.warning("Stopped. Finished shards are kept; run the same command again to go on.")
        return STOPPED
    return 0


@dataclass
class ExtendArguments(PlusArguments):
    """Which dataset is extended, and who is asked."""

    teacher: list[str] = flag(
        "For more views: the teacher of the stored views. Default: the one that the provenance names.", default=[]
    )
    add_teacher: list[str] = flag(
        "New members of the teacher, named as for reinforce. They are averaged into the stored answers.", default=[]
    )
    teacher_classes: str | None = flag(TEACHER_CLASSES_HELP, default=None)
    precision: str | None = flag(
        "Floating-point type in which the teacher computes. Default: that of the stored answers.",
        default=None,
        choices=list(PRECISIONS),
    )
    compile: bool = flag("Compile the teacher with torch.compile.", default=False)


def extend_command(argv: Sequence[str], prog: str) -> int:
    """Adds views, or members of the teacher, to a "+" dataset without asking again for what is stored."""
    paths, flags = split_words(argv)
    arguments, run, config = parse(
        [ExtendArguments, RunArguments, ExtendConfig],
        flags,
        prog=f"{prog} PLUS",
        description='Makes a "+" dataset with more views (--num_views) or more members of the teacher (--add_teacher) out of '
        "an existing one, a folder or Hub id. Stored views are drawn again and compared; the teacher is not asked about them "
        "again. Launch it like reinforce; running the same command again resumes.",
        examples="hf-dr extend photos-plus --num_views 16 --teacher runs/teacher --output_dir photos-plus-16",
    )
    path = one_dataset(paths, '"+" dataset')
    check_classes(arguments.teacher_classes, arguments.add_teacher or arguments.teacher)
    # Another configuration of the same repository is a folder of its own.
    check_apart(config.output_dir, [arguments.base], [*arguments.teacher, *arguments.add_teacher])
    start_logging()
    from hf_dr.cli.arguments import open_reinforced, read_classes
    from hf_dr.generation.extend import asked_teacher, check_extension, extend_job
    from hf_dr.generation.folder import Part
    from hf_dr.processes import process_state

    part = Part.parse(run.part)
    with process_state().local_main_process_first():
        plus = open_reinforced(path, arguments)
    check_extension(plus, config, teacher=bool(arguments.teacher), add_teacher=bool(arguments.add_teacher))
    chosen = {"precision": arguments.precision, "classes": read_classes(arguments.teacher_classes, plus.class_names)}
    settings = {name: value for name, value in chosen.items() if value is not None}  # the others are in the provenance
    names = (arguments.teacher or None, arguments.add_teacher or None)
    teacher = asked_teacher(plus, *names, compile=arguments.compile, **settings)
    return _run(extend_job(plus, teacher, config), run, part)


def _plus_parser(prog: str, description: str | None, examples: str) -> Parser:
    """Returns a parser of the flags by which a "+" dataset is opened, and of its path."""
    parser = Parser(prog=prog, description=description, examples=examples)
    parser.add_argument("path", help='Folder or Hub id of the "+" dataset.')
    add_fields(parser, PlusArguments)
    return parser


def verify_command(argv: Sequence[str], prog: str) -> int:
    """Replays sampled rows of a "+" dataset and compares them with what is stored."""
    parser = _plus_parser(
        prog,
        verify_command.__doc__,
        "hf-dr verify photos-plus --teacher runs/teacher\nhf-dr verify me/photos-plus --no_teacher --num_rows 100",
    )
    parser.add_argument(
        "--teacher", nargs="+", help="The teacher, named as for reinforce. Default: the one that the provenance names."
    )
    parser.add_argument("--teacher_classes", help=TEACHER_CLASSES_HELP)
    parser.add_argument("--no_teacher", action="store_true", help="Compare pixels only.")
    parser.add_argument("--num_rows", type=int, default=32, help="Rows to replay, all views of each. Default: 32.")
    parser.add_argument(
        "--device",
        action="store_true",
        help="Make the views on the accelerator, as a training does there, instead of by Pillow: their pixels must be equal.",
    )
    parser.add_argument(
        "--save", action="store_true", help="Keep the report next to the shards and show it in the card."
    )
    arguments = parser.parse_args(argv)
    Whole(1).check("num_rows", arguments.num_rows)  # before a dataset is fetched and a teacher loaded
    check_classes(arguments.teacher_classes, arguments.teacher)
    asked = not arguments.no_teacher
    if arguments.teacher and not asked:
        raise ConfigError("`teacher` must be left out with `no_teacher`, got both. Leave one out.")
    start_logging()
    from hf_dr.cli.arguments import local_config, open_reinforced, read_classes
    from hf_dr.generation.teachers import same_teacher
    from hf_dr.generation.verify import verify
    from hf_dr.processes import process_state
    from hf_dr.store.card import keep_finding

    folder = local_config(arguments.path, arguments.name) if arguments.save else None
    plus = open_reinforced(arguments.path, arguments)
    classes = read_classes(arguments.teacher_classes, plus.class_names)
    settings: dict[str, Any] = {} if classes is None else {"classes": classes}
    teacher = same_teacher(arguments.teacher, plus.provenance, **settings) if arguments.teacher else None
    device = process_state().device if arguments.device else None
    report = verify(plus, teacher, ask_teacher=asked, num_rows=arguments.num_rows, device=device)
    print(report)
    if folder is not None:
        keep_finding(folder, plus.provenance.fingerprint, report.verification)
    return 0 if report.ok else 1


def inspect_command(argv: Sequence[str], prog: str) -> int:
    """Prints provenance, sizes and teacher statistics of a "+" dataset, and draws its contact sheet."""
    parser = _plus_parser(prog, inspect_command.__doc__, "hf-dr inspect photos-plus --contact_sheet sheet.png")
    parser.add_argument(
        "--contact_sheet",
        metavar="PNG",
        help="File for a picture of images, views and answers. Default: none is drawn.",
    )
    parser.add_argument("--json", metavar="FILE", help="Also write everything as JSON to this file.")
    parser.add_argument(
        "--save",
        action="store_true",
        help="Keep the statistics and a contact sheet next to the shards and show them in the card. An overlay gets no sheet, "
        "because its images must not be copied.",
    )
    arguments = parser.parse_args(argv)
    start_logging()
    from hf_dr.cli.arguments import local_config, open_reinforced
    from hf_dr.generation.contact_sheet import check_sheet, contact_sheet
    from hf_dr.generation.inspection import inspect
    from hf_dr.store.card import write_card
    from hf_dr.store.findings import save_finding
    from hf_dr.store.schema import CONTACT_SHEET_FILE

    if arguments.contact_sheet:
        check_sheet(Path(arguments.contact_sheet))
    for setting in ("json", "contact_sheet"):
        if getattr(arguments, setting):
            check_writable(expanded(getattr(arguments, setting)).parent, setting)
    folder = local_config(arguments.path, arguments.name) if arguments.save else None
    inspection = inspect(arguments.path, arguments.name, revision=arguments.revision)
    print(inspection)
    if arguments.json:
        file = expanded(arguments.json)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, inspection.to_dict())
    if arguments.contact_sheet:
        sheet = contact_sheet(open_reinforced(arguments.path, arguments), Path(arguments.contact_sheet))
        print(f"\ncontact sheet: {sheet}")
    if folder is not None:
        # This is saved before the picture is drawn, which can fail; the card shows both.
        save_finding(folder, inspection.provenance.fingerprint, inspection.statistics)
        if not inspection.provenance.overlay:
            contact_sheet(open_reinforced(arguments.path, arguments), folder / CONTACT_SHEET_FILE)
        write_card(folder.parent)
    return 0


@dataclass
class ImportArguments:
    """Which dataset was reinforced, and how the import behaves."""

    base: str = flag("The dataset that was reinforced, named as for reinforce.")
    base_config: str | None = flag("Configuration of the base dataset, where it has several.", default=None)
    base_revision: str | None = flag("Branch, tag or commit of the base dataset on the Hub.", default=None)
    split: str = flag("Split of the base dataset.", default="train")
    dry_run: bool = flag("Check the settings and the first files, and write nothing.", default=False)


def import_ml_dr_command(argv: Sequence[str], prog: str) -> int:
    """Turns reinforcements that apple/ml-dr published into a "+" dataset."""
    sources, flags = split_words(argv)
    arguments, config = parse(
        [ImportArguments, ImportConfig],
        flags,
        prog=f"{prog} FOLDER_OR_TAR [FOLDER_OR_TAR ...]",
        description="Turns reinforcements that apple/ml-dr published, folders or archives of pickles, into a "
        '"+" dataset. Several are runs whose views add up. The pickles are read as data, never executed; running the '
        "same command again resumes.",
        examples="hf-dr import-ml-dr data.tar.gz --base ILSVRC/imagenet-1k --order imagefolder --output_dir imagenet-plus",
    )
    if not sources:
        raise ConfigError("expected folders or archives of ml-dr before the flags, got none. Name one.")
    check_apart(config.output_dir, [*sources, arguments.base])
    start_logging()
    from hf_dr.generation.ml_dr.importer import ImportJob
    from hf_dr.store.base_dataset import load_base

    base, described = load_base(
        arguments.base,
        arguments.base_config,
        split=arguments.split,
        revision=arguments.base_revision,
        files_from=config.files_from,
    )
    job = ImportJob(sources, base, config, described=described)
    if arguments.dry_run:
        print(f"{job.folder}: nothing written, this is what the import would make\n\n{job.estimate()}")
        return 0
    return _until_stopped(job.run)


@dataclass
class ExportArguments(PlusArguments):
    """Which dataset is exported."""

    dry_run: bool = flag("Check everything, print examples, bytes and hours, and write nothing.", default=False)


def export_command(argv: Sequence[str], prog: str) -> int:
    """Writes a "+" dataset as WebDataset shards."""
    paths, flags = split_words(argv)
    arguments, config = parse(
        [ExportArguments, ExportConfig],
        flags,
        prog=f"{prog} PLUS",
        description='Writes a "+" dataset, a folder or Hub id, as tar files that WebDataset and open_clip read: images as they '
        "are stored, labels, parameters of all views, and the teacher's answers. Running the same command again resumes.",
        examples="hf-dr export photos-plus --format webdataset --output_dir photos-wds --dry_run\n"
        "hf-dr export me/photos-plus --base me/photos --output_dir photos-wds",
    )
    path = one_dataset(paths, '"+" dataset')
    check_apart(config.output_dir, [path, arguments.base])
    start_logging()
    from hf_dr.cli.arguments import open_reinforced
    from hf_dr.generation.export import WebDatasetExport

    export = WebDatasetExport(open_reinforced(path, arguments), config)
    if arguments.dry_run:
        print(f"{export.folder}: nothing written, this is what the export would take\n\n{export.estimate()}")
        return 0
    return _until_stopped(export.run)

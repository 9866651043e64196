"""Commands that make, extend, import, verify and inspect a "+" dataset."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_dr.cli.arguments import (
    BaseArguments,
    TeacherArguments,
    add_dataset,
    build_augmentation,
    local_config,
    open_reinforced,
    read_classes,
    rehearse,
)
from hf_dr.cli.config import parse
from hf_dr.cli.smoke import SmokeArguments
from hf_dr.errors import ConfigError
from hf_dr.evaluation.comparison import as_arguments
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.contact_sheet import contact_sheet
from hf_dr.generation.extend import ExtendConfig, check_extension, extend_job
from hf_dr.generation.folder import Part
from hf_dr.generation.inspection import inspect_dataset
from hf_dr.generation.job import Job, reinforce_job
from hf_dr.generation.ml_dr.importer import ImportConfig, ImportJob
from hf_dr.generation.teachers import teacher_from_provenance
from hf_dr.generation.verify import verify
from hf_dr.hub.fetch import fetch_config
from hf_dr.processes import process_state
from hf_dr.store.base_dataset import check_dataset, load_base
from hf_dr.store.card import write_card
from hf_dr.store.findings import save_finding
from hf_dr.store.named_files import FILES_FROM_HELP
from hf_dr.store.schema import CONTACT_SHEET_FILE
from hf_dr.teacher.ensemble import PRECISIONS, Teacher

logger = logging.getLogger(__name__)


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
        with rehearse(argv) as stand_in:
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
    _, label_column = check_dataset(dataset, config.image_column, config.label_column)
    names = getattr(dataset.features[label_column], "names", None) if label_column else None
    teacher = Teacher.from_pretrained(
        teaching.teacher,
        device=state.device,
        precision=teaching.precision,
        compile=teaching.compile,
        classes=read_classes(teaching.teacher_classes, names),
    )
    return _run(reinforce_job(dataset, teacher, augmentation, config, base=described), run, part)


def _run(job: Job, run: RunArguments, part: Part) -> int:
    state = process_state()
    if run.dry_run:
        if state.is_main_process:
            estimate = job.estimate()
            print(f"{job.folder}: nothing written, this is what the run would take\n")
            print(estimate.report(part.count * state.num_processes, job.source.workers, state.device))
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
        plus = open_reinforced(argparse.Namespace(path=argv[0], **vars(arguments)))
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
    return _run(extend_job(plus, teacher, config), run, part)


def verify_command(argv: Sequence[str], prog: str) -> int:
    """Replays sampled rows of a "+" dataset and compares them with what is stored."""
    parser = argparse.ArgumentParser(prog=prog, description=verify_command.__doc__, allow_abbrev=False)
    add_dataset(parser)
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
    folder = local_config(arguments) if arguments.save else None
    plus = open_reinforced(arguments)
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
    add_dataset(parser)
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
    folder = local_config(arguments) if arguments.save else None
    inspection = inspect_dataset(fetch_config(arguments.path, arguments.name, revision=arguments.revision))
    print(inspection.report())
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(inspection.to_dict(), indent=2) + "\n", encoding="utf-8")
    if arguments.contact_sheet:
        print(f"\ncontact sheet: {contact_sheet(open_reinforced(arguments), Path(arguments.contact_sheet))}")
    if folder is not None:
        save_finding(folder, inspection.provenance.fingerprint, inspection.statistics)
        if not inspection.provenance.overlay:
            contact_sheet(open_reinforced(arguments), folder / CONTACT_SHEET_FILE)
        write_card(folder.parent)
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

"""Comparing ways to train one student: the same data path, model, optimizer and steps, by several objectives and seeds.

A comparison's folder holds one folder for each run, `<objective>-<seed>`, as `hf-dr train` writes it. This module trains what
is missing, reads the runs back and evaluates their models side by side; `hf_dr.evaluation.comparison` says what was gained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hf_dr.errors import ConfigError, DataError
from hf_dr.evaluation.comparison import Comparison
from hf_dr.evaluation.config import CompareConfig, as_arguments
from hf_dr.evaluation.gathering import RUN_NOTE, read_run, read_training, run_name
from hf_dr.evaluation.images import Images, open_set
from hf_dr.evaluation.report import Report
from hf_dr.evaluation.run import checked_sets, run_evaluation
from hf_dr.evaluation.unfinished import Unfinished
from hf_dr.files import expanded, placeless, write_json
from hf_dr.hub.fetch import fetch_config
from hf_dr.processes import on_main, process_state
from hf_dr.replay.loading import each_dataset
from hf_dr.settings import by_name, unlike_names
from hf_dr.store.base_dataset import load_base, undecoded_images
from hf_dr.store.card import keep_finding
from hf_dr.store.configs import find_config
from hf_dr.store.json_files import read_object
from hf_dr.store.labels import image_columns
from hf_dr.store.provenance import Provenance
from hf_dr.teacher.signals import described
from hf_dr.text import counted
from hf_dr.training.calibrating import check_other_images
from hf_dr.training.losses import check_label_weight
from hf_dr.training.reinforced_settings import ReinforcedSettings, settings_without_effect
from hf_dr.training.student_card import STUDENT_FILE
from hf_dr.training.student_hub import holds_model, weight_files
from hf_dr.views.augmentation import Augmentation

logger = logging.getLogger(__name__)


def compare(config: CompareConfig, unfinished: Unfinished | None = None) -> Comparison:
    """Reads the runs of a comparison and evaluates their models side by side; a DataError if a run is missing."""
    folder = expanded(config.output_dir)
    runs = [read_run(folder, objective, seed) for seed in config.seeds for objective in config.objectives]
    report = run_evaluation(config.evaluation([f"{run.name}={run.folder}" for run in runs]), unfinished)
    label_weight = float(config.train.get("label_weight") or 0)
    return Comparison(config.title, runs, report, list(_facts(config, runs[0].steps, report)), label_weight)


def run_comparison(config: CompareConfig, train: Callable[[list[str]], int]) -> Comparison | None:
    """Trains what is missing, then compares; of several processes all train, and the first one compares.

    Args:
        config: What is compared.
        train: The command of `hf-dr train`: takes its arguments, returns its exit status.

    Returns:
        The comparison; None in all processes but the first.

    Raises:
        ConfigError: A training was refused, or a setting is wrong.
        DataError: The set to evaluate on cannot be loaded, lacks a column or labels, or has one image only.
    """
    folder = expanded(config.output_dir)
    pictures = [expanded(picture) for picture in config.pictures]
    absent = next((picture for picture in pictures if not _is_png(picture)), None)
    if absent is not None:
        raise ConfigError(f"`pictures` must be PNG files, found none at {absent}. Correct it, or leave it out.")
    learned_from = each_dataset(config.train["dataset"], config.train.get("name"))
    plus = expanded(learned_from[0][0])
    if config.save and (len(learned_from) > 1 or not plus.is_dir()):
        found = f"{len(learned_from)} datasets" if len(learned_from) > 1 else plus
        raise ConfigError(f"`save` needs one dataset in a folder, got {found}. Give a folder, or leave `save` out.")
    evaluation = config.evaluation([])
    # What is wrong with the set would only be found when all students are trained.
    (opened,) = (open_set(spec, evaluation) for spec in checked_sets(evaluation))
    if len(opened.rows) < 2:
        raise DataError(
            f"the set `{opened.spec.name}` must have at least 2 images to compare on, found 1. Take another split, or raise "
            "`max_examples`."
        )
    _check_calibration(config.train, opened)
    _check_labels(config)
    # Objectives take turns, so that a disturbance of the machine hits all of them.
    for seed, objective in product(config.seeds, config.objectives):
        _train_missing(config, objective, seed, train)
    if not process_state().is_main_process:
        return None
    unfinished = Unfinished(folder)
    comparison = compare(config, unfinished)
    page = comparison.save(folder, pictures)
    unfinished.done()
    if config.save:
        place = find_config(plus, learned_from[0][1]).resolve()
        keep_finding(place, Provenance.read(place).fingerprint, comparison.students)
    print(f"\n{comparison.to_markdown()}\nreport: {page}", flush=True)
    return comparison


def _is_png(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8) == b"\x89PNG\r\n\x1a\n"


def _train_missing(config: CompareConfig, objective: str, seed: int, train: Callable[[list[str]], int]) -> None:
    """Trains one run of a comparison unless it is finished."""
    state = process_state()
    flags = training_flags(config, objective, seed)
    path = flags["output_dir"]
    if on_main(state, partial(is_finished, path, flags)):  # it notes what the run is made of
        return
    logger.info("%s: training %s.", config.title, path.name)
    status = train(as_arguments(flags))
    if status:
        raise ConfigError(f"the training in {path} must succeed, but it ended with status {status}. See above.")
    state.wait_for_everyone()
    run = read_run(path.parent, objective, seed)
    if run.accuracy and state.is_main_process:
        logger.info("%s: top-1 %.2f %% after %.0f s.", path.name, 100 * run.accuracy[-1][1], run.seconds)


def _learned_from(train: dict[str, Any]) -> Iterator[Provenance]:
    """Yields the provenance of each "+" dataset that a training's settings name."""
    for each in each_dataset(train["dataset"], train.get("name")):
        _, provenance = fetch_config(*each, revision=train.get("revision"), shards=False)
        yield provenance


def _check_calibration(train: dict[str, Any], tested: Images) -> None:
    """Refuses to calibrate students by images on which they are compared."""
    name, split = (train.get(key) for key in ("eval_dataset", "calibrate_split"))
    if name and split:
        revision, files_from = train.get("eval_revision"), train.get("files_from") or []
        dataset, _ = load_base(name, train.get("eval_config"), split=split, revision=revision, files_from=files_from)
        for column in image_columns(dataset.features):  # the trainings know which of several it is
            images = undecoded_images(dataset, column)
            check_other_images(images, tested.undecoded.select(tested.rows), f"the set `{tested.spec.name}`")


def _check_labels(config: CompareConfig) -> None:
    """Refuses a weight of the labels that `reinforced` would refuse when the others are trained."""
    weight = config.train.get("label_weight")
    for provenance in _learned_from(config.train) if weight else ():
        mixes = Augmentation.from_list(provenance.augmentation).mixes
        check_label_weight(weight, mixes and "reinforced" in config.objectives)


def training_flags(config: CompareConfig, objective: str, seed: int) -> dict[str, Any]:
    """Returns the settings of `hf-dr train` for one run of a comparison.

    A teacher is for kd alone, wherever it is named, and what has no effect on an objective is left out.
    """
    path = expanded(config.output_dir) / run_name(objective, seed)
    teacher = {"teacher": config.teacher, "teacher_classes": config.teacher_classes}
    flags = {name: value for name, value in config.train.items() if objective == "kd" or name not in teacher}
    if objective == "kd":
        flags |= {name: value for name, value in teacher.items() if value}
    for name in settings_without_effect(objective):
        flags.pop(name, None)
    if flags.get("hub_model_id"):  # a repository for each run: the next would replace it
        flags["hub_model_id"] = f"{flags['hub_model_id']}-{path.name}"
    return {**flags, "objective": objective, "seed": seed, "output_dir": path}


# Settings of `hf-dr train` that shape a student, and so are shown. Others may be paths of this machine, or a token.
_SHAPING = ("batch_size", "learning_rate", "optim", "weight_decay", "calibrate_split")


def _facts(config: CompareConfig, steps: int, report: Report) -> Iterator[list[str]]:
    """Yields what the page says of data, teacher, student, the training of `steps` steps, and the evaluation."""
    for p in _learned_from(config.train):
        answers = f"{counted(p.num_views, 'view')} of each, {described(p.signal, p.top_k, p.num_classes)}"
        yield [
            "data",
            f"{counted(p.num_rows, 'image')} of {p.base.get('id') or 'a base dataset'}, {p.base_split}; {answers}",
        ]
        yield ["teacher", " + ".join(str(member.get("id")) for member in p.teacher["members"])]
    if "kd" in config.objectives:
        named = training_flags(config, "kd", 0)["teacher"]
        yield ["teacher of kd", " + ".join(map(_model_told, named if isinstance(named, list) else [named]))]
    student = [_model_told(config.train["student"])] if "student" in config.train else []
    student += [str(config.train["model_args"])] if "model_args" in config.train else []
    yield ["student", " ".join(student)]
    epochs = f"{config.train['num_train_epochs']} epochs, " if "num_train_epochs" in config.train else ""
    yield ["training", f"{epochs}{steps:,} steps, seeds {', '.join(map(str, config.seeds))}"]
    told = {*_SHAPING, *(field.name for field in fields(ReinforcedSettings))}
    if settings := "; ".join(f"{name} {value}" for name, value in config.train.items() if name in told):
        yield ["settings", settings]
    clean = report.results[0]
    yield ["evaluated on", f"{clean.set}, {counted(clean.examples, 'image')}"]
    corrupted = next((result.by_corruption for result in report.results if result.by_corruption), None)
    if corrupted:
        severities = ", ".join(map(str, sorted(next(iter(corrupted.values())))))
        yield ["corrupted error", f"mean of {len(corrupted)} corruptions at severity {severities}"]


def _model_told(model: str | Path) -> str:
    """Returns what a page calls a model: the folder or file alone where it is of this machine."""
    architecture, at, file = str(model).partition("@")
    if architecture.startswith("timm:"):
        return f"{architecture}{at}{Path(file).name}"
    return placeless(str(model))


def is_finished(run: Path, flags: dict[str, Any]) -> bool:
    """Tells whether a run is done; notes what it is made of, so that no later comparison takes it for another.

    Raises:
        ConfigError: The folder holds a run of other settings or of another "+" dataset.
    """
    fingerprint = " ".join(provenance.fingerprint for provenance in _learned_from(flags))
    # A token is nobody else's, and the run stays the same with the next one.
    told = {key: str(value) for key, value in by_name(flags).items() if key != "hub_token"}
    made_of = {**told, "fingerprint": fingerprint}
    note = run / RUN_NOTE
    if not note.exists():
        run.mkdir(parents=True, exist_ok=True)
        write_json(note, made_of)
    there = by_name(read_object(note, "Remove the folder, or choose another `output_dir`."))
    but = ["output_dir"]  # the folder may be written otherwise, or have moved
    # So may that of the "+" dataset. Another one that is still there can have other labels, which no fingerprint tells.
    before = expanded(str(there.get("dataset")))
    if before.resolve() == expanded(str(flags["dataset"])).resolve() or (before.is_absolute() and not before.exists()):
        but.append("dataset")
    differing = unlike_names(made_of, there, but=but)
    if differing:
        raise ConfigError(
            f"{run} must be a run of the same settings, but it differs in {', '.join(differing)}. Remove it, or choose "
            "another `output_dir`."
        )
    try:
        # Metrics of the training are written before the last evaluation, and its state after it.
        read_training(run, str(flags.get("objective")), int(flags["seed"]))
        for weights in weight_files(run):
            with safe_open(weights, "pt"):
                pass
    except (DataError, SafetensorError):  # or they were left in pieces, or deleted: the last checkpoint has them
        return False
    return holds_model(run) and (run / STUDENT_FILE).is_file()

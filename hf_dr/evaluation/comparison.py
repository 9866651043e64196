"""Comparing ways to train one student: the same data path, model, optimizer and steps, by several objectives and seeds.

A comparison's folder holds one folder for each run, `<objective>-<seed>`, as `hf-dr train` writes it. This module reads
them back, evaluates their models side by side and says what was gained over `erm`, with the spread over seeds.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd

from hf_dr.errors import ConfigError, DataError
from hf_dr.evaluation.config import CompareConfig, as_arguments
from hf_dr.evaluation.gathering import BASELINE, RUN_NOTE, Run, read_run, read_training, run_name
from hf_dr.evaluation.images import Images, open_set
from hf_dr.evaluation.plots import accuracy_figure, as_png, reliability_figure
from hf_dr.evaluation.report import ABOUT_CALIBRATED, Report
from hf_dr.evaluation.run import checked_sets, run_evaluation
from hf_dr.evaluation.tables import html_page, html_picture, html_table, numbers, spread
from hf_dr.evaluation.unfinished import Unfinished
from hf_dr.files import expanded, placeless, write_json, write_whole
from hf_dr.hub.fetch import fetch_config
from hf_dr.processes import on_main, process_state
from hf_dr.replay.loading import each_dataset
from hf_dr.settings import by_name, unlike_names
from hf_dr.store.base_dataset import load_base, undecoded_images
from hf_dr.store.card import keep_finding
from hf_dr.store.findings import Students
from hf_dr.store.json_files import read_object
from hf_dr.store.provenance import Provenance, find_config
from hf_dr.teacher.metrics import CALIBRATED_ECE, ECE_BY_CHANCE, SHARES
from hf_dr.teacher.signals import described
from hf_dr.text import counted, inline, markdown_table
from hf_dr.training.calibrating import check_other_images
from hf_dr.training.losses import check_label_weight
from hf_dr.training.reinforced_settings import ReinforcedSettings, settings_without_effect
from hf_dr.training.student_card import STUDENT_FILE
from hf_dr.training.student_hub import holds_model
from hf_dr.views.augmentation import Augmentation

logger = logging.getLogger(__name__)


class Column(NamedTuple):
    """One column of the table.

    Attributes:
        key: Of `Comparison.values`.
        title: What the table calls it.
        scale: What the value is multiplied by.
        digits: Behind the point.
        better: +1 if more is better, else -1; a gain is a change for the better.
    """

    key: str
    title: str
    scale: float
    digits: int
    better: int


COLUMNS = (
    Column("top1", "top-1 %", 100, 2, 1),
    Column("nll", "NLL", 1, 4, -1),
    Column("ece", "ECE %", 100, 2, -1),
    Column(CALIBRATED_ECE, "calibrated ECE %", 100, 2, -1),
    Column("mce", "corrupted error %", 100, 2, -1),
    Column("seconds", "training s", 1, 1, -1),
)


# Images on which the models differ. With fewer, even if all speak for the same one, chance does as much in more than one of
# twenty cases: the exact test of McNemar, 2 / 2**5 = 0.0625.
_FEWEST_DISCORDANT = 6


@dataclass(frozen=True)
class Comparison:
    """The runs, and what their models answer on the same images.

    Attributes:
        title: What is compared.
        runs: For each objective the same seeds.
        report: Of all models on one set, clean and corrupted.
        facts: What was trained on what and how it was measured: names and values for the page.
        label_weight: That of the labels where a teacher's answers are learned.
    """

    title: str
    runs: list[Run]
    report: Report
    facts: list[list[str]] = field(default_factory=list)
    label_weight: float = 0.0

    @property
    def objectives(self) -> list[str]:
        """The objectives in order."""
        return list(dict.fromkeys(run.objective for run in self.runs))

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One line for each run, by objective and seed, and the columns of `COLUMNS`: shares, nats and seconds."""
        clean = {result.model: result.metrics for result in self.report.results if not result.by_corruption}
        corrupted = {result.model: result.mce for result in self.report.results if result.by_corruption}
        lines = [{**clean[run.name], "mce": corrupted.get(run.name), "seconds": run.seconds} for run in self.runs]
        names = [(run.objective, run.seed) for run in self.runs]
        frame = pd.DataFrame(lines, index=pd.MultiIndex.from_tuples(names, names=["objective", "seed"]))
        return frame if corrupted else frame.drop(columns="mce")

    @property
    def _columns(self) -> list[Column]:
        """Those of which there are values."""
        return [column for column in COLUMNS if column.key in self.frame]

    def values(self, objective: str, key: str) -> pd.Series:
        """Returns a column's values of an objective, by seed."""
        return self.frame.loc[objective, key]

    def gains(self, objective: str, key: str) -> pd.Series:
        """Returns what each seed gains over plain training with the same seed; above 0 is better."""
        better = next(column.better for column in COLUMNS if column.key == key)
        return better * (self.values(objective, key) - self.values(BASELINE, key))

    @property
    def _compared(self) -> list[str]:
        """The objectives that plain training is compared with, if it is there."""
        return [name for name in self.objectives if name != BASELINE] if BASELINE in self.objectives else []

    @property
    def _num_seeds(self) -> int:
        return len(self.runs) // len(self.objectives)

    @property
    def _seeds(self) -> str:
        return counted(self._num_seeds, "seed")

    def _gains_by_image(self, objective: str) -> np.ndarray:
        """Returns (S, B): 1 where only the objective's model is right on an image, -1 where only plain training's, else 0."""
        hits = {result.model: result.hits for result in self.report.results if result.hits is not None}
        seeds = [run.seed for run in self.runs if run.objective == objective]
        own, others = ([hits[run_name(name, seed)] for seed in seeds] for name in (objective, BASELINE))
        return np.array(own, float) - np.array(others, float)

    def top1_interval(self, objective: str) -> tuple[float, float]:
        """Returns the 95 % interval of the gain in top-1 over plain training, -1 to 1.

        Its variance is that of a mean over the images, which both models saw, plus that of a mean over the seeds, and it is of
        Student's t distribution, whose degrees of freedom are Welch's and Satterthwaite's: two or three seeds hardly tell how
        much seeds differ, which makes it wide. A single seed tells nothing of that: its interval is too narrow.
        """
        gains_SB = self._gains_by_image(objective)
        variances = [
            (means.var(ddof=1) / len(means), len(means) - 1)
            for means in (gains_SB.mean(axis=0), gains_SB.mean(axis=1))
            if len(means) > 1
        ]
        variance = sum(part for part, _ in variances)
        half = 0.0
        if variance > 0:
            freedom = variance**2 / sum(part**2 / own for part, own in variances)
            half = t_quantile(freedom) * variance**0.5
        gain = gains_SB.mean()
        return float(max(gain - half, -1)), float(min(gain + half, 1))

    @property
    def verdicts(self) -> list[str]:
        """For each objective but plain training a sentence: whether these images and seeds show that it is more accurate."""
        images = next(result.examples for result in self.report.results if result.hits is not None)
        told = []
        for name in self._compared:
            gain = self.gains(name, "top1").mean()
            gain, low, high = (round(100 * share, 1) + 0.0 for share in (gain, *self.top1_interval(name)))
            found = "no difference is shown. More held-out images or seeds may show one."
            discordant = np.count_nonzero(self._gains_by_image(name).sum(axis=0))
            if discordant >= _FEWEST_DISCORDANT and (low > 0 or high < 0):
                found = f"{'more' if low > 0 else 'less'} accurate."
            told.append(
                f"{name} gains {gain:+.1f} points of top-1 over {BASELINE}, 95 % interval {low:+.1f} to {high:+.1f} by "
                f"{counted(images, 'image')} and {self._seeds}: {found}"
            )
        return told

    @property
    def students(self) -> Students:
        """The table: mean and standard deviation over seeds."""
        columns = self._columns
        rows = [
            [name, *(spread(self.values(name, c.key), c.digits, c.scale) for c in columns)] for name in self.objectives
        ]
        for name in self._compared:
            gains = (spread(self.gains(name, c.key), c.digits, c.scale, sign=True) for c in columns)
            rows.append([f"{name}: gain over {BASELINE}", *gains])
        return Students([f"{self.title}, {self._seeds}", *(c.title for c in columns)], rows)

    def to_markdown(self) -> str:
        """Returns the table, mean and standard deviation over seeds, and what it shows."""
        rows = ([*map(inline, row)] for row in self.students.rows)
        table = markdown_table([*map(inline, self.students.head)], rows)
        return "\n\n".join([table, *self.verdicts]) + "\n"

    def to_dict(self, prefix: str) -> dict[str, float | int]:
        """Returns flat numbers: `<prefix>_<objective>_<key>` and the gains over plain training.

        These are `<prefix>_<key>_gain` of `reinforced`, and `<prefix>_<objective>_<key>_gain` of any other objective.

        Metrics are shares, but nll (nats); `_std` next to each is the standard deviation over seeds, where there are several.
        """
        keys = [c.key for c in self._columns] + [key for key in (ECE_BY_CHANCE,) if key in self.frame]
        found = {f"{name}_{key}": self.values(name, key) for name in self.objectives for key in keys}
        for name in self._compared:
            whose = "" if name == "reinforced" else f"{name}_"
            found |= {f"{whose}{c.key}_gain": self.gains(name, c.key) for c in self._columns}
        flat: dict[str, float | int] = {f"{prefix}_seeds": self._num_seeds}
        for key, values in found.items():
            over_seeds = numbers(values)
            flat[f"{prefix}_{key}"] = over_seeds["mean"]
            if "std" in over_seeds:
                flat[f"{prefix}_{key}_std"] = over_seeds["std"]
        return flat

    def save(self, folder: Path, pictures: Sequence[Path] = ()) -> Path:
        """Writes comparison.md, comparison.json and report.html, and returns the last; `pictures` are PNGs to show in it."""
        write_whole(folder / "comparison.md", self.to_markdown())
        intervals = {name: self.top1_interval(name) for name in self._compared}
        content = {
            "units": SHARES,
            **self.to_dict("comparison"),
            "top1_gain_95_percent_intervals": intervals,
            "evaluation": self.report.to_dict(),
        }
        write_json(folder / "comparison.json", content)
        found = {result.model: result.diagram for result in self.report.results if result.diagram is not None}
        diagrams = {name: [found[r.name] for r in self.runs if r.objective == name] for name in self.objectives}
        figures = [accuracy_figure(None, self.runs)] if any(run.accuracy for run in self.runs) else []
        figures.append(reliability_figure(diagrams))
        shown = [*map(as_png, figures), *(path.read_bytes() for path in pictures)]
        facts = html_table(["what", "which"], self.facts)
        table = html_table(["objective", *self.students.head[1:]], self.students.rows)
        verdicts = [f"<p><b>{html.escape(verdict)}</b></p>" for verdict in self.verdicts]
        page = folder / "report.html"
        write_whole(page, html_page(self.title, [facts, _about(self), table, *verdicts, *map(html_picture, shown)]))
        return page


def t_quantile(freedom: float) -> float:
    """Returns the bound within which Student's t distribution has 95 % of its mass, on both sides; `freedom` is at least 1."""
    # With t = sqrt(freedom) * tan(angle) the density is a power of the cosine, which a sum over a grid integrates.
    angles = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angles) ** (freedom - 1)
    mass = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return float(freedom**0.5 * np.tan(np.interp(0.95 * mass[-1], mass, angles)))


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
        raise ConfigError(f"`save` needs one dataset in a folder, got {plus}. Give a folder, or leave `save` out.")
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
        columns = [column for column, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
        for column in columns:  # the trainings know which of several it is
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
    return {**flags, "objective": objective, "seed": seed, "output_dir": path}


# Settings of `hf-dr train` that shape a student, and so are told. Others may be paths of this machine, or a token.
_SHAPING = ("batch_size", "learning_rate", "optim", "weight_decay", "calibrate_split")


def _facts(config: CompareConfig, steps: int, report: Report) -> Iterator[list[str]]:
    """Yields what the page says of data, teacher, student, training of so many steps, and evaluation."""
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
    # The folder may be written otherwise, or have moved. Older notes have settings without effect.
    but = ["output_dir", "hub_token", *settings_without_effect(str(flags.get("objective", "reinforced")))]
    differing = unlike_names(made_of, there, but=but)
    if differing:
        raise ConfigError(
            f"{run} must be a run of the same settings, but it differs in {', '.join(differing)}. Remove it, or choose "
            "another `output_dir`."
        )
    try:
        # Metrics of the training are written before the last evaluation, and its state after it.
        read_training(run, str(flags.get("objective")), int(flags["seed"]))
    except DataError:  # or they were left in pieces, or somebody deleted them: the last checkpoint has them
        return False
    return holds_model(run) and (run / STUDENT_FILE).is_file()


def _about(comparison: Comparison) -> str:
    labels = f" and, at weight {comparison.label_weight:.4g}, the labels" if comparison.label_weight else ""
    return (
        "<p>The same student, data path, optimizer and steps, by its objective: erm learns from the labels alone, reinforced "
        f"from stored answers of the teacher{labels}, kd from a teacher in memory{labels}. Mean ± standard deviation over "
        f"seeds; a gain is a change for the better. {ABOUT_CALIBRATED} {html.escape(comparison.report.chance)}</p>"
    )

"""Results pages: what many trainings and evaluations left, gathered into the paper's tables and plots.

A folder is searched downwards for what `hf-dr train`, `compare`, `evaluate`, `detect` and `segment` write. Runs that differ in
nothing but the seed are one cell: mean ± standard deviation. What cannot be compared is listed with the reason, never left out
in silence.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from matplotlib.figure import Figure

from hf_dr.errors import DataError, HfDrError
from hf_dr.evaluation.plots import as_png, draw_accuracy, html_page, html_picture, html_table
from hf_dr.evaluation.runs import BASELINE, RUN_NOTE, Run, read_training
from hf_dr.text import markdown_table
from hf_dr.training.student_card import STUDENT_FILE, Student
from hf_dr.transfer.trainer import HEADLINES, RESULTS_FILE, TRANSFER_FILE, read_description
from hf_dr.version import __version__

OBJECTIVES = ("erm", "kd", "reinforced")
WHILE_TRAINING = "while training"
"""What the tables call the evaluation that a training itself ended with."""

_RESULTS, _STATE = "all_results.json", "trainer_state.json"
_TRAINING_FILES = (_RESULTS, _STATE, STUDENT_FILE, RUN_NOTE)
_TRANSFER_FILES = (RESULTS_FILE, TRANSFER_FILE)
_METRICS = ("top1", "top5", "nll", "brier", "ece")
# What may differ between the runs of one cell: the seed, and how fast the machine was.
_NOT_SETTINGS = ("seed", "view_seed", "order_seed", "train_samples_per_second")
_CLEAN = ("max_examples", "size", "crop", "mean", "std")
_CORRUPTED = ("corruptions", "severities", "seed")


class Setting(NamedTuple):
    """What runs must share to stand in one row.

    Attributes:
        evaluated_on: The data of the evaluation; for a detector or segmenter the task and its epochs as well.
        reinforced: Whether the data is a "+" dataset, not the base of one.
    """

    model: str
    data: str
    fingerprint: str
    epochs: float
    evaluated_on: str
    num_rows: int
    reinforced: bool

    def serves(self, other: Setting) -> bool:
        """Whether its runs, on a base dataset, are what those on a "+" dataset of as many examples compare with."""
        return (
            other.reinforced
            and not self.reinforced
            and bool(self.evaluated_on)
            and (self.model, *self[3:6]) == (other.model, *other[3:6])
        )


Evaluations = dict[str, dict[str, Any]]
"""Set, or `<set>, corrupted` -> metrics as fractions; `mce` and `errors` by corruption in percent. Of two sets of one name the
second is `<set> (<dataset>)`."""


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        run: What it took, and its accuracy on the way.
        setting: Its row.
        settings: All of its settings.
        evaluations: Its own last one as `WHILE_TRAINING`, and those by `hf-dr evaluate`.
    """

    run: Run
    setting: Setting
    settings: dict[str, Any]
    evaluations: Evaluations

    @property
    def objective(self) -> str:
        return self.run.objective

    @property
    def seed(self) -> int:
        return self.run.seed


@dataclass(frozen=True)
class Transferred:
    """A finished training of a detector or segmenter on a student.

    Attributes:
        folder: Where it is.
        setting: Its row: of the student, and of what it was transferred to.
        objective: Of the student.
        seed: The student's, and that of the transfer.
        student: All settings of the student's training.
        settings: All of the transfer.
        metrics: Fractions.
    """

    folder: Path
    setting: Setting
    objective: str
    seed: tuple[int, int]
    student: dict[str, Any]
    settings: dict[str, Any]
    metrics: dict[str, float]


class _Run(Protocol):
    """What stands in a cell: `Trained` and `Transferred`."""

    @property
    def setting(self) -> Setting: ...

    @property
    def objective(self) -> str: ...

    @property
    def seed(self) -> Any: ...


_R = TypeVar("_R", bound=_Run)


def read_trained(folder: Path) -> Trained:
    """Reads a finished training with all that is known about its student.

    Raises:
        DataError: It is not finished, or another program wrote it.
        FormatError: `student.json` is malformed.
    """
    read_training(folder, "", 0)
    student = Student.read(folder)
    if student is None:
        raise DataError(
            f"{folder} must hold the {STUDENT_FILE} of `hf-dr train`, found none: it was not finished, or another program "
            "trained it. Train it."
        )
    settings = student.settings
    try:
        on, data = student.evaluated_on or {}, student.dataset
        setting = Setting(
            student.model.rsplit(", over ", 1)[0],
            _data(data),
            str(data.get("fingerprint")),
            round(float(json.loads((folder / _RESULTS).read_text(encoding="utf-8"))["epoch"]), 2),
            ":".join(str(on[key]) for key in ("id", "config", "split") if on.get(key)),
            int(settings["num_rows"]),
            bool(data.get("reinforced", True)),
        )
        run = read_training(folder, student.objective_name, int(settings["seed"]))
        metrics = {key: float(student.metrics[key]) for key in _METRICS if key in student.metrics}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder} must tell objective, seed and epochs in {STUDENT_FILE} and {_RESULTS}, but: {type(error).__name__}: "
            f"{error}. Train it anew."
        ) from error
    return Trained(run, setting, settings, {WHILE_TRAINING: metrics} if metrics else {})


def read_transferred(folder: Path) -> Transferred:
    """Reads a finished training of a detector or segmenter.

    Raises:
        DataError: It is not finished, was not evaluated, or its student's training is not known.
        FormatError: `transfer.json` is missing or malformed.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise DataError(f"{folder} must hold a finished training with its {RESULTS_FILE}, found none. Run it again.")
    described = read_description(folder)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        student, training, dataset = content["student"], content["training"], content["dataset"]
        metrics = {key: float(value) for key, value in content["metrics"].items()}
        if student["objective"] is None:
            raise DataError(
                f"{folder} must be of a student that `hf-dr train` trained, but {student['id']} tells no objective. Name the "
                "folder or repository of a training as `student`."
            )
        if not metrics.keys() & HEADLINES.keys():
            raise DataError(
                f"{folder} must have been evaluated, found none of {', '.join(HEADLINES)}. Name data to evaluate on, and run "
                "it again."
            )
        trained, of = student["settings"], student["dataset"]
        on = dataset.get("evaluated_on") or dataset
        place = ":".join(str(on[key]) for key in ("id", "config", "split") if on.get(key))
        setting = Setting(
            student["architecture"],
            _data(of),
            str(of.get("fingerprint")),
            _epochs(trained),
            f"{content['task']} on {place}, {float(training['epochs']):g} epochs",
            int(trained["num_rows"]),
            bool(of.get("reinforced", True)),
        )
        seed = int(trained["seed"]), int(training["seed"])
        settings = {**{key: value for key, value in described.items() if key != "student"}, **training}
        return Transferred(folder, setting, student["objective"], seed, trained, settings, metrics)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, RecursionError) as error:
        if isinstance(error, HfDrError):
            raise
        raise DataError(
            f"{path} must be what `hf-dr detect` or `segment` writes, of a student with its settings, but: "
            f"{type(error).__name__}: {error}. Train it anew."
        ) from error


def _data(dataset: dict[str, Any]) -> str:
    return "/".join(str(dataset[key]) for key in ("id", "config") if dataset.get(key))


def _epochs(settings: dict[str, Any]) -> float:
    """How long a student's training was to be."""
    if "training_steps" not in settings:
        return round(float(settings["num_epochs"]), 2)
    # `num_epochs` may be there, too: those over which `view_order` spreads the views, rounded up.
    batch = int(settings.get("total_train_batch_size", settings["train_batch_size"]))
    return round(int(settings["training_steps"]) * batch / int(settings["num_rows"]), 2)


def _differing(old: dict[str, Any], new: dict[str, Any], but: Sequence[str] = ()) -> list[str]:
    return sorted(key for key in (old.keys() | new.keys()) - set(but) if old.get(key) != new.get(key))


def find_results(folder: Path) -> Iterator[Path]:
    """Yields the folders with results from here downwards, and those at the end of the search that have none.

    Raises:
        DataError: There is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"a report must be of folders with runs, found none at {folder}. Check the path.")
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    trained = _is_training(folder)
    if trained or not inner or any((folder / name).is_file() for name in ("evaluation.json", "comparison.json")):
        yield folder
    if not trained:
        for path in inner:
            yield from find_results(path)


def _is_training(folder: Path) -> bool:
    # A training that was stopped early has checkpoints only.
    files = (*_TRAINING_FILES, *_TRANSFER_FILES)
    return any((folder / name).is_file() for name in files) or any(folder.glob("checkpoint-*/"))


def _is_transfer(folder: Path) -> bool:
    files = (folder / name for name in _TRANSFER_FILES)
    return any(file.is_file() for file in files) or any(folder.glob(f"checkpoint-*/{TRANSFER_FILE}"))


def read_evaluation(path: Path) -> dict[str, Any]:
    """Reads what `hf-dr evaluate` or `hf-dr compare` wrote.

    Raises:
        DataError: It is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content = content.get("evaluation", content)
        for result in content["results"]:
            names = (*_METRICS, *(("mce",) if result["corrupted"] else ()))
            numbers = [result[name] for name in names] + list(result.get("errors", {}).values())
            if not all(isinstance(number, (int, float)) for number in numbers):
                raise TypeError(f"the metrics of {result['model']} are no numbers")
            content["sets"][result["set"]].items()
        places = [str(text).partition("=") for text in content["settings"]["models"]]
        content["places"] = {name if equals else Path(name).name: place or name for name, equals, place in places}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} must be what `hf-dr evaluate` writes, but: {type(error).__name__}: {error}. Evaluate anew."
        ) from error
    return content


@dataclass
class Table:
    """A table of the report."""

    title: str
    about: str
    head: list[str]
    rows: list[list[str]]


@dataclass
class Results:
    """All that was found.

    Attributes:
        runs: In the order in which they were found.
        transfers: Detectors and segmenters, in the same order.
        others: Evaluated checkpoints that are none of the runs: `NAME = CHECKPOINT`, or the name alone.
        left_out: Folder or file -> why it is in no table.
    """

    runs: list[Trained] = field(default_factory=list)
    transfers: list[Transferred] = field(default_factory=list)
    others: dict[str, Evaluations] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    # ---------------------------------------------------------------------------------------------------- gathering

    def add_training(self, folder: Path) -> None:
        """Adds a run, if it may stand beside those that are there."""
        try:
            new = read_trained(folder)
        except HfDrError as error:
            self.left_out[str(folder)] = str(error).removeprefix(f"{folder} ")
            return
        for old in self.runs:
            if (old.setting, old.run.objective) != (new.setting, new.run.objective):
                continue
            differing = _differing(old.settings, new.settings, _NOT_SETTINGS)
            if differing or old.run.seed == new.run.seed:
                self._leave_out(folder, differing, f"seed {new.run.seed}", old.run.folder)
                return
        self.runs.append(new)

    def _leave_out(self, folder: Path, differing: Sequence[str], repeated: str, before: Path) -> None:
        what = f"differs in {', '.join(differing)} from" if differing else f"repeats {repeated} of"
        self.left_out[str(folder)] = f"it {what} {before}, found before it. Report one of them at a time."

    def add_transfer(self, folder: Path) -> None:
        """Adds a detector or segmenter, if it may stand beside those that are there."""
        try:
            new = read_transferred(folder)
        except HfDrError as error:
            self.left_out[str(folder)] = str(error).removeprefix(f"{folder} ")
            return
        for old in self.transfers:
            same = old.setting == new.setting
            if not (same or old.setting.serves(new.setting) or new.setting.serves(old.setting)):
                continue
            differing = _differing(old.settings, new.settings, ("seed",))
            if same and old.objective == new.objective:
                differing += [f"the student's {key}" for key in _differing(old.student, new.student, _NOT_SETTINGS)]
                if not differing and old.seed != new.seed:
                    continue
            elif not differing:
                continue
            seeds = f"seed {new.seed[1]} on the student of seed {new.seed[0]}"
            self._leave_out(folder, differing, seeds, old.folder)
            return
        self.transfers.append(new)

    def add_evaluation(self, path: Path, known: dict[str, dict[str, Any]]) -> None:
        """Adds an evaluation; `known` holds how each set was evaluated so far."""
        try:
            content = read_evaluation(path)
        except HfDrError as error:
            self.left_out[str(path)] = str(error).removeprefix(f"{path} ")
            return
        for result in content["results"]:
            end = ", corrupted" if result["corrupted"] else ""
            keys = (*_CLEAN, *(_CORRUPTED if result["corrupted"] else ()))
            spec = content["sets"][result["set"]]
            how = {"set": spec, **{key: content["settings"].get(key) for key in keys}}
            names = (result["set"] + end, f"{result['set']} ({Path(str(spec.get('dataset'))).name}){end}")
            name = next((name for name in names if known.setdefault(name, how) == how), None)
            where = f"{path}: {result['model']} on {names[0]}"
            if name is None:
                self.left_out[where] = (
                    f"`{names[1]}` was evaluated in another way before. Report one of them at a time."
                )
                continue
            measured = {key: value for key, value in result.items() if key in (*_METRICS, "mce", "errors")}
            evaluations = self._evaluations(path.parent, result["model"], content["places"].get(result["model"]))
            if evaluations.setdefault(name, measured) != measured:
                self.left_out[where] = "it was evaluated before, with other results. Report one of the evaluations."

    def _evaluations(self, folder: Path, name: str, place: str | None) -> Evaluations:
        """Where to note what a checkpoint answered: at the run in its folder, as it was named or beside the evaluation."""
        folders = {Path(place).expanduser().resolve()} if place else set()
        for trained in self.runs:
            if trained.run.folder.resolve() in folders | {(folder / name).resolve()}:
                return trained.evaluations
        return self.others.setdefault(name if place in (None, name) else f"{name} = {place}", {})

    # ------------------------------------------------------------------------------------------------------- tables

    @property
    def settings(self) -> list[Setting]:
        """The rows, sorted; runs on a base dataset stand in those of its "+" datasets, where these have none of their own."""
        return _settings(self.runs)

    def of(self, setting: Setting, objective: str) -> list[Trained]:
        """Returns the runs of a cell, which differ in the seed."""
        return _of(self.runs, setting, objective)

    @property
    def objectives(self) -> list[str]:
        """Those of the runs, in the tables' order."""
        return _objectives(self.runs)

    def gains(self, setting: Setting, objective: str) -> list[float]:
        """Returns what an objective gains in top-1 over plain training, as a fraction: by seed, or of the means.

        Where no seed has both, one number: the difference of their means. Empty where one of them is not there.
        """
        return _gains(*(_top1_by_seed(self.of(setting, name)) for name in (objective, BASELINE)))

    def tables(self) -> list[Table]:
        """Returns all tables that have rows."""
        tables = [self._accuracy(), self._robustness(), *self._corruptions(), self._calibration(), self._time()]
        tables.append(self._transfer())
        return [table for table in tables if table.rows]

    def _accuracy(self) -> Table:
        others = [name for name in self.objectives if name != BASELINE and BASELINE in self.objectives]
        rows = [
            [
                *_names(setting),
                setting.evaluated_on,
                *(_cell([*_top1_by_seed(self.of(setting, name)).values()], 100, 2) for name in self.objectives),
                *(_cell(self.gains(setting, name), 100, 2, "+") for name in others),
            ]
            for setting in self.settings
            if any(_top1_by_seed(self.of(setting, name)) for name in self.objectives)
        ]
        head = ["student", "data", "epochs", "evaluated on", *self.objectives, *(f"gain of {name}" for name in others)]
        about = "Top-1 in percent when training ended; gains over erm in points, seed by seed where both have the seed."
        return Table("Accuracy by model and epochs", about, head, rows)

    def _cells(self) -> list[tuple[list[str], list[Evaluations]]]:
        """The rows of the tables of evaluations: what a row is called, and its runs' evaluations."""
        rows = [
            ([*_names(setting), objective], [trained.evaluations for trained in self.of(setting, objective)])
            for setting in self.settings
            for objective in self.objectives
        ]
        return [row for row in rows if row[1]] + [([name, "", "", ""], [e]) for name, e in self.others.items()]

    def _sets(self, corrupted: bool) -> list[str]:
        names = dict.fromkeys(name for _, runs in self._cells() for evaluations in runs for name in evaluations)
        return [name for name in names if name.endswith(", corrupted") == corrupted and name != WHILE_TRAINING]

    def _evaluated(
        self, title: str, about: str, columns: Sequence[tuple[str, Callable[[Evaluations], Any], int]]
    ) -> Table:
        rows = [
            [*names, *(_cell([v for v in map(get, runs) if v is not None], 1, digits) for _, get, digits in columns)]
            for names, runs in self._cells()
        ]
        head = ["student", "data", "epochs", "objective", *(column for column, _, _ in columns)]
        return Table(title, about, head, [row for row in rows if any(row[4:])])

    def _robustness(self) -> Table:
        columns = [(f"{name}: top-1 %", _metric(name, "top1", 100), 2) for name in self._sets(False)]
        columns += [(f"{name}: error %", _metric(name, "mce", 1), 2) for name in self._sets(True)]
        about = (
            "Top-1 on each set; under corruptions the mean error, not normalised by AlexNet's errors (less is better)."
        )
        return self._evaluated("Robustness", about, columns)

    def _corruptions(self) -> list[Table]:
        tables = []
        for name in self._sets(True):
            found = [e[name].get("errors", {}) for _, runs in self._cells() for e in runs if name in e]
            kinds = dict.fromkeys(kind for errors in found for kind in errors)
            columns = [(kind, _error(name, kind), 2) for kind in kinds]
            tables.append(
                self._evaluated(f"Errors on {name}", "Top-1 error in percent, mean over severities.", columns)
            )
        return tables

    def _calibration(self) -> Table:
        columns = []
        for name in (WHILE_TRAINING, *self._sets(False)):
            columns += [(f"{name}: ECE %", _metric(name, "ece", 100), 2), (f"{name}: NLL", _metric(name, "nll", 1), 4)]
        about = "Expected calibration error, 15 bins, and negative log-likelihood in nats (less is better)."
        return self._evaluated("Calibration", about, columns)

    def _time(self) -> Table:
        rows = []
        for setting in self.settings:
            seconds = {name: [t.run.seconds for t in self.of(setting, name)] for name in self.objectives}
            plain = seconds.get(BASELINE)
            ratios = [
                f"{np.mean(values) / np.mean(plain):.2f}" if values and plain else ""
                for name, values in seconds.items()
                if name != BASELINE and BASELINE in seconds
            ]
            rows.append([*_names(setting), *(_cell(values, 1, 1) for values in seconds.values()), *ratios])
        over = [f"{name} over erm" for name in self.objectives if name != BASELINE and BASELINE in self.objectives]
        about = "Seconds of training; a run that was resumed counts from where it went on."
        return Table("Training time", about, ["student", "data", "epochs", *self.objectives, *over], rows)

    def transferred(self) -> list[tuple[Setting, str, dict[str, list[float]], dict[str, list[float]]]]:
        """Returns for each row and metric the values of the objectives, by seed, and the gains over plain training."""
        found = []
        for setting, key in itertools.product(_settings(self.transfers), HEADLINES):
            values = {
                name: {t.seed: t.metrics[key] for t in _of(self.transfers, setting, name) if key in t.metrics}
                for name in _objectives(self.transfers)
            }
            if any(values.values()):
                plain = values.get(BASELINE, {})
                gains = {name: _gains(own, plain) for name, own in values.items() if name != BASELINE}
                found.append((setting, key, {name: [*own.values()] for name, own in values.items()}, gains))
        return found

    def _transfer(self) -> Table:
        objectives = _objectives(self.transfers)
        others = [name for name in objectives if name != BASELINE and BASELINE in objectives]
        rows = [
            [
                *_names(setting),
                setting.evaluated_on,
                HEADLINES[key],
                *(_cell(values[name], 100, 2) for name in objectives),
                *(_cell(gains[name], 100, 2, "+") for name in others),
            ]
            for setting, key, values, gains in self.transferred()
        ]
        gained = [f"gain of {name}" for name in others]
        head = ["student", "data", "epochs", "transferred to", "metric", *objectives, *gained]
        about = (
            "A detector or segmenter on the student as backbone, in percent; gains over erm in points, seed by seed where both "
            "have the seeds of student and transfer."
        )
        return Table("Transfer", about, head, rows)

    # ------------------------------------------------------------------------------------------------------ writing

    def to_markdown(self, title: str) -> str:
        """Returns all tables, and what is in none of them."""
        parts = [f"# {title}"]
        for table in self.tables():
            parts += [f"## {table.title}", table.about, markdown_table(table.head, table.rows)]
        if self.left_out:
            listed = "\n".join(f"- {place}: {' '.join(reason.split())}" for place, reason in self.left_out.items())
            parts += ["## In no table", listed]
        return "\n\n".join([*parts, _ABOUT]) + "\n"

    def to_dict(self, title: str) -> dict[str, Any]:
        """Returns all in JSON types: each run, each cell of the tables of accuracies and transfer; fractions."""
        runs = [
            {
                "folder": str(t.run.folder),
                **t.setting._asdict(),
                "objective": t.run.objective,
                "seed": t.run.seed,
                "steps": t.run.steps,
                "seconds": t.run.seconds,
                "accuracy": [[share * t.run.seconds, top1] for share, top1 in t.run.accuracy],
                "evaluations": t.evaluations,
            }
            for t in self.runs
        ]
        accuracy = [
            {
                **setting._asdict(),
                **{name: _numbers([*_top1_by_seed(self.of(setting, name)).values()]) for name in self.objectives},
                "gains": {name: _numbers(self.gains(setting, name)) for name in self.objectives if name != BASELINE},
            }
            for setting in self.settings
        ]
        transfers = [
            {
                "folder": str(t.folder),
                **t.setting._asdict(),
                "objective": t.objective,
                "seeds": {"student": t.seed[0], "transfer": t.seed[1]},
                "metrics": t.metrics,
            }
            for t in self.transfers
        ]
        transfer = [
            {
                **setting._asdict(),
                "metric": key,
                **{name: _numbers(each) for name, each in values.items()},
                "gains": {name: _numbers(each) for name, each in gains.items()},
            }
            for setting, key, values, gains in self.transferred()
        ]
        left_out = [{"place": place, "reason": reason} for place, reason in self.left_out.items()]
        content = {"title": title, "hf_dr": __version__, "accuracy": accuracy, "runs": runs}
        return {**content, "transfer": transfer, "transfers": transfers, "others": self.others, "left_out": left_out}

    def to_html(self, title: str) -> str:
        """Returns a page with the tables and plots that needs no other file."""
        parts = [html_picture(as_png(figure)) for figure in self.figures()]
        for table in self.tables():
            parts += [f"<h2>{table.title}</h2>\n<p>{table.about}</p>", html_table(table.head, table.rows)]
        if self.left_out:
            parts += ["<h2>In no table</h2>", html_table(["where", "why"], [*map(list, self.left_out.items())])]
        return html_page(title, [*parts, f"<p>{_ABOUT}</p>"])

    def figures(self) -> list[Figure]:
        """Returns for each student on its data: accuracy against training time and against epochs, by objective."""
        figures = []
        for key in dict.fromkeys((s.model, s.data, s.fingerprint, s.evaluated_on) for s in self.settings):
            rows = [s for s in self.settings if (s.model, s.data, s.fingerprint, s.evaluated_on) == key]
            here = [t for s in rows for name in self.objectives for t in self.of(s, name) if t.run.accuracy]
            if not here:
                continue
            figure = Figure(figsize=(9.5, 3.8), layout="constrained")
            by_time, by_epochs = figure.subplots(1, 2, sharey=True)
            draw_accuracy(by_time, [t.run for t in here], [t.run.seconds for t in here])
            draw_accuracy(by_epochs, [t.run for t in here], [t.setting.epochs for t in here])
            by_time.set(xlabel="seconds of training")
            by_epochs.set(xlabel="epochs", ylabel="")
            by_epochs.legend(loc="lower right", frameon=False)
            figure.suptitle(f"{key[0]} on {key[1]}", fontsize=10)
            figures.append(figure)
        return figures

    def save(self, folder: Path, title: str) -> Path:
        """Writes results.md, results.json and results.html, and returns the last."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.md").write_text(self.to_markdown(title), encoding="utf-8")
        (folder / "results.json").write_text(json.dumps(self.to_dict(title), indent=2) + "\n", encoding="utf-8")
        page = folder / "results.html"
        page.write_text(self.to_html(title), encoding="utf-8")
        return page


def gather(folders: Sequence[Path]) -> Results:
    """Gathers the results in and below folders.

    Args:
        folders: Of trainings, transfers, comparisons and evaluations, or folders of such.

    Raises:
        DataError: A folder is not there, or none has results.
    """
    found = list(dict.fromkeys(path for folder in folders for path in find_results(folder.expanduser())))
    results, known = Results(), dict[str, dict[str, Any]]()
    for path in filter(_is_training, found):
        (results.add_transfer if _is_transfer(path) else results.add_training)(path)
    for path in found:  # after all trainings, which they may speak of
        evaluations = [path / name for name in ("evaluation.json", "comparison.json") if (path / name).is_file()]
        for evaluation in evaluations:
            results.add_evaluation(evaluation, known)
        if not evaluations and not _is_training(path):
            results.left_out[str(path)] = "it holds no training and no evaluation."
    if not (results.runs or results.transfers or results.others):
        reasons = "\n".join(f"  {place}: {reason}" for place, reason in results.left_out.items())
        raise DataError(
            f"a report must be of at least one finished run or evaluation, found none. Train first:\n{reasons}"
        )
    return results


_ABOUT = "A cell is the mean ± standard deviation over seeds (how many), or the value of the only one."


def _settings(runs: Sequence[_Run]) -> list[Setting]:
    every = {run.setting for run in runs}
    own = {(run.setting, run.objective) for run in runs}
    lent = {
        (plain, objective)
        for plain, objective in own
        if any(plain.serves(other) and (other, objective) not in own for other in every)
    }
    return sorted(setting for setting in every if any(cell[0] == setting for cell in own - lent))


def _of(runs: Sequence[_R], setting: Setting, objective: str) -> list[_R]:
    """The runs of a cell, by seed; those on the base where the "+" dataset of the row has none of its own."""
    runs = [run for run in runs if run.objective == objective]
    own = [run for run in runs if run.setting == setting]
    return sorted(own or [run for run in runs if run.setting.serves(setting)], key=lambda run: run.seed)


def _objectives(runs: Sequence[_Run]) -> list[str]:
    return [objective for objective in OBJECTIVES if any(run.objective == objective for run in runs)]


def _gains(own: dict[Any, float], plain: dict[Any, float]) -> list[float]:
    """By seed, or, where none has both, of the means; empty where one of them is."""
    both = [own[seed] - plain[seed] for seed in own if seed in plain]
    return both or ([float(np.mean([*own.values()]) - np.mean([*plain.values()]))] if own and plain else [])


def _names(setting: Setting) -> list[str]:
    return [setting.model, setting.data, f"{setting.epochs:g}"]


def _top1_by_seed(runs: Sequence[Trained]) -> dict[int, float]:
    return {
        t.run.seed: t.evaluations[WHILE_TRAINING]["top1"]
        for t in runs
        if "top1" in t.evaluations.get(WHILE_TRAINING, {})
    }


def _metric(name: str, key: str, scale: float) -> Callable[[Evaluations], float | None]:
    return lambda evaluations: scale * evaluations[name][key] if key in evaluations.get(name, {}) else None


def _error(name: str, kind: str) -> Callable[[Evaluations], float | None]:
    return lambda evaluations: evaluations.get(name, {}).get("errors", {}).get(kind)


def _numbers(values: Sequence[float]) -> dict[str, float | int] | None:
    if not values:
        return None
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": deviation, "seeds": len(values)}


def _cell(values: Sequence[float], scale: float, digits: int, sign: str = "") -> str:
    numbers = _numbers(values)
    if numbers is None:
        return ""
    mean = f"{scale * numbers['mean']:{sign}.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {scale * numbers['std']:.{digits}f} ({len(values)})"

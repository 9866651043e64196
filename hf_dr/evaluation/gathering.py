"""Finding and reading what `hf-dr train`, `compare`, `evaluate`, `detect` and `segment` left in folders."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_dr.errors import DataError, HfDrError
from hf_dr.evaluation.config import HOW, HOW_CORRUPTED, REPORT_FILE, named_model
from hf_dr.settings import unlike_names
from hf_dr.teacher.metrics import METRICS
from hf_dr.training.student_card import STUDENT_FILE, Student, fold_left_out
from hf_dr.transfer.trainer import HEADLINES, TRANSFER_FILE, read_description
from hf_dr.transfer.trainer import RESULTS_FILE as TRANSFER_RESULTS_FILE

BASELINE = "erm"
"""The objective over which others gain."""

RUN_NOTE = "comparison_run.json"
"""What a comparison notes in a run's folder: what it is made of."""

RESULTS_FILE = "all_results.json"
STATE_FILE = "trainer_state.json"
WHILE_TRAINING = "while training"
"""What the tables call the evaluation that a training itself ended with."""
TRANSFERRED = "after transfer"
"""Where the metrics of a detector or segmenter stand among its evaluations."""

EVALUATION_FILES = (REPORT_FILE, "comparison.json")
_TRANSFER_FILES = (TRANSFER_RESULTS_FILE, TRANSFER_FILE)
_TRAINING_FILES = (RESULTS_FILE, STATE_FILE, STUDENT_FILE, RUN_NOTE, *_TRANSFER_FILES)
# What may differ between the runs of one cell: the seed, and how fast the machine was.
# The fingerprint of the data stands in `Setting`, without the seed.
_NOT_SETTINGS = ("seed", "view_seed", "order_seed", "train_samples_per_second", "dataset_fingerprint")

Evaluations = dict[str, dict[str, Any]]
"""Set, or `<set>, corrupted` -> metrics: shares, but nll and brier; `errors` by corruption. Of two sets of one name the second
is `<set> (<dataset>:<split>)`."""


@dataclass(frozen=True)
class Run:
    """One training: what it took, and its accuracy on the way.

    Attributes:
        seconds: Duration of the training, without the evaluations on the way.
        steps: Number of steps of the optimizer.
        accuracy: (share of the steps, top-1) of each evaluation.
        epochs: Number of epochs, as the results state it.
    """

    objective: str
    seed: int
    folder: Path
    seconds: float
    steps: int
    accuracy: list[tuple[float, float]]
    epochs: Any = None

    @property
    def name(self) -> str:
        """Names the run in tables and folders."""
        return run_name(self.objective, self.seed)


@contextmanager
def _reading(place: Path, what: str, advice: str) -> Iterator[None]:
    """Turns what reading something else than `what` raises into a DataError."""
    try:
        yield
    except HfDrError:
        raise
    except (OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DataError(f"{place} must hold {what}, but: {type(error).__name__}: {error}. {advice}") from error


def run_name(objective: str, seed: int) -> str:
    """Returns the folder of a run within the comparison's."""
    return f"{objective}-{seed}"


def read_run(folder: Path, objective: str, seed: int) -> Run:
    """Reads a run of a comparison; see `read_training`."""
    return read_training(folder / run_name(objective, seed), objective, seed)


def read_training(path: Path, objective: str, seed: int) -> Run:
    """Reads what `hf-dr train` left in a folder; a DataError if the run is not there or not finished."""
    try:
        written = [(path / name).read_bytes() for name in (RESULTS_FILE, STATE_FILE)]
    except OSError as error:
        raise DataError(
            f"{path} must hold a finished training, but {error.strerror}: {error.filename}. Train it."
        ) from error
    with _reading(path, "what `hf-dr train` writes", "Train it again."):
        results, state = map(json.loads, written)
        steps = state["global_step"]
        history = state["log_history"]
        # By step: after training the last model is evaluated once more.
        accuracy = {entry["step"]: entry["eval_top1"] for entry in history if "eval_top1" in entry}
        curve = [(step / steps, float(top1)) for step, top1 in accuracy.items()]
        seconds = _training_seconds(results, history)
        return Run(objective, seed, path, seconds, steps, curve, results.get("epoch"))


def _training_seconds(results: dict[str, Any], history: list[dict[str, Any]]) -> float:
    """Returns the Trainer's `train_runtime` less the evaluations that it includes."""
    evaluations = 0.0
    ends = [n for n, entry in enumerate(history) if "train_runtime" in entry]  # several of a run that was made longer
    for entry in history[: ends[-1] if ends else None]:  # the evaluation after training is not in it
        # `eval_runtime`, or `eval_NAME_runtime` of one of several sets.
        evaluations += sum(float(value) for key, value in entry.items() if re.fullmatch("eval_(.*_)?runtime", key))
    return round(float(results["train_runtime"]) - evaluations, 4)  # as the Trainer rounds


@dataclass(frozen=True, order=True)
class Setting:
    """What runs must share to stand in one row.

    Attributes:
        evaluated_on: The data of the evaluation; for a detector or segmenter the task and its epochs as well.
        reinforced: Whether the data is a "+" dataset, not the base of one.
        images: Hash of the images of the base, and the fold that was left out. The fingerprint covers them.
    """

    model: str
    data: str
    fingerprint: str
    epochs: float
    evaluated_on: str
    num_rows: int
    reinforced: bool
    images: str = field(compare=False)

    def serves(self, other: Setting) -> bool:
        """Whether its runs, on a base dataset, are what those on a "+" dataset of as many examples compare with."""
        shared = ("model", "epochs", "evaluated_on", "num_rows", "images")
        return (
            other.reinforced
            and not self.reinforced
            and bool(self.evaluated_on)
            and all(getattr(self, name) == getattr(other, name) for name in shared)
        )


@dataclass(frozen=True)
class Finished:
    """A finished training of a student, or of a detector or segmenter on one.

    Attributes:
        folder: The folder of the run.
        setting: Its row: of the student, and of what it was transferred to.
        objective: The student's objective.
        seeds: The student's, and that of the detector or segmenter.
        student: All settings of the student's training.
        evaluations: A student's own last one as `WHILE_TRAINING`, and those by `hf-dr evaluate`; else one, `TRANSFERRED`.
        training: What a student's took, and its accuracy on the way; None for a detector or segmenter.
        transfer: All settings of a detector or segmenter.
    """

    folder: Path
    setting: Setting
    objective: str
    seeds: tuple[int, ...]
    student: dict[str, Any]
    evaluations: Evaluations
    training: Run | None = None
    transfer: dict[str, Any] = field(default_factory=dict)

    def conflict(self, other: Finished, *, same_cell: bool = False) -> str:
        """Tells why it cannot stand in the tables with another, as "it ... the other", or nothing if it can.

        Runs of one cell differ in the seed only. Detectors and segmenters of a row have the same settings of their own, for
        otherwise a difference between objectives would not be a gain. With `same_cell` both, on a base, would stand in one
        cell of the row of its "+" dataset.
        """
        one, two = self.setting, other.setting
        same_cell = same_cell or (one == two and self.objective == other.objective)
        if not (same_cell or one == two or one.serves(two) or two.serves(one)):
            return ""
        differing = unlike_names(self.transfer, other.transfer, but=("seed",))
        if same_cell:
            whose = "the student's " if self.transfer else ""
            differing += [whose + key for key in unlike_names(self.student, other.student, but=_NOT_SETTINGS)]
            if one.fingerprint != two.fingerprint:
                differing.append("augmentation")
        if differing:
            return f"differs in {', '.join(differing)} from"
        if same_cell and self.seeds == other.seeds:
            student, *own = self.seeds
            return f"repeats seed {own[0]} on the student of seed {student} of" if own else f"repeats seed {student} of"
        return ""


def read_trained(folder: Path) -> Finished:
    """Reads a finished training with all that is known about its student.

    Raises:
        DataError: It is not finished, or another program wrote it.
        FormatError: `student.json` is malformed.
    """
    run = read_training(folder, "", 0)
    student = Student.read(folder)
    if student is None:
        raise DataError(
            f"{folder} must hold the {STUDENT_FILE} of `hf-dr train`, found none: it was not finished, or another program "
            "trained it. Train it."
        )
    with _reading(folder, f"objective, seed and epochs in {STUDENT_FILE} and {RESULTS_FILE}", "Train it again."):
        seed = int(student.settings["seed"])
        place = _joined(student.evaluated_on or {}, ":", "id", "config", "split")
        model = student.model.rsplit(", over ", 1)[0]
        if student.calibration:
            images = _joined(student.calibration["of"] or {}, ":", "id", "config", "split")
            model += f", calibrated by {images or 'other images'}"
        setting = _setting(model, student.dataset, student.settings, round(float(run.epochs), 2), place)
        metrics = {key: float(student.metrics[key]) for key in METRICS if key in student.metrics}
    objective = student.objective_name
    evaluations = {WHILE_TRAINING: metrics} if metrics else {}
    training = dataclasses.replace(run, objective=objective, seed=seed)
    return Finished(folder, setting, objective, (seed,), student.settings, evaluations, training)


def read_transferred(folder: Path) -> Finished:
    """Reads a finished training of a detector or segmenter.

    A DataError if it is not finished, was not evaluated, or its student's training is not known.
    """
    path = folder / TRANSFER_RESULTS_FILE
    if not path.is_file():
        raise DataError(f"{folder} must hold a finished training with its {path.name}, found none. Run it again.")
    described = read_description(folder)
    with _reading(path, "what `hf-dr detect` or `segment` writes, of a student with its settings", "Train it again."):
        content = json.loads(path.read_text(encoding="utf-8"))
        student = content["student"]
        training = content["training"]
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
        trained = student["settings"]
        place = _joined(content["dataset"]["evaluated_on"], ":", "id", "config", "split")
        task = f"{content['task']} on {place}, {float(training['epochs']):g} epochs"
        setting = _setting(student["architecture"], student["dataset"], trained, _planned_epochs(trained), task)
        return Finished(
            folder,
            setting,
            student["objective"],
            seeds=(int(trained["seed"]), int(training["seed"])),
            student=trained,
            evaluations={TRANSFERRED: metrics},
            transfer={**{key: value for key, value in described.items() if key != "student"}, **training},
        )


def _setting(
    model: str, dataset: dict[str, Any], settings: dict[str, Any], epochs: float, evaluated_on: str
) -> Setting:
    fold = fold_left_out(dataset)
    return Setting(
        model,
        data=", ".join(filter(None, (_joined(dataset, "/", "id", "config"), fold))),
        fingerprint=str(dataset.get("fingerprint")),
        epochs=epochs,
        evaluated_on=evaluated_on,
        num_rows=int(settings["num_rows"]),
        reinforced=bool(dataset.get("reinforced", True)),
        images=" ".join(filter(None, (dataset["images"], fold))),
    )


def _joined(described: dict[str, Any], separator: str, *keys: str) -> str:
    return separator.join(str(described[key]) for key in keys if described.get(key))


def _planned_epochs(settings: dict[str, Any]) -> float:
    """How long a student's training was to be."""
    if "training_steps" not in settings:
        return round(float(settings["num_epochs"]), 2)
    # `num_epochs` may be there, too: those over which `view_order` spreads the views, rounded up.
    batch = int(settings.get("total_train_batch_size", settings["train_batch_size"]))
    return round(int(settings["training_steps"]) * batch / int(settings["num_rows"]), 2)


@dataclass(frozen=True)
class Evaluation:
    """What `hf-dr evaluate` or `compare` wrote.

    Attributes:
        results: The metrics of each model on each set.
        sets: What each set is.
        how: The settings with which the sets were evaluated.
        places: The checkpoint of each model.
        weights: The `digest_of_weights` of that; None where it was none of a folder.
    """

    results: list[dict[str, Any]]
    sets: dict[str, dict[str, Any]]
    how: dict[str, Any]
    places: dict[str, str]
    weights: dict[str, str | None]


def read_evaluation(path: Path) -> Evaluation:
    """Reads an evaluation; a DataError for anything else."""
    with _reading(path, "what `hf-dr evaluate` writes", "Evaluate again."):
        content = json.loads(path.read_text(encoding="utf-8"))
        content = content.get("evaluation", content)
        results, sets, settings = content["results"], content["sets"], content["settings"]
        for result in results:
            if not isinstance(result["model"], str):
                raise TypeError(f"the model {result['model']} is no name")
            names = (*METRICS, *(("mce",) if result["corrupted"] else ()))
            numbers = [result[name] for name in names] + list(result.get("errors", {}).values())
            if not all(isinstance(number, (int, float)) for number in numbers):
                raise TypeError(f"the metrics of {result['model']} are no numbers")
            sets[result["set"]].items()
        return Evaluation(
            results,
            sets,
            how={name: settings[name] for name in (*HOW, *HOW_CORRUPTED)},
            places=dict(named_model(str(text)) for text in settings["models"]),
            weights={result["model"]: content["models"][result["model"]]["weights_of_files"] for result in results},
        )


def find_results(folder: Path, _above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yields the folders with results from here downwards, and those at the end of the search that have none."""
    if not folder.is_dir():
        raise DataError(f"a report must be of folders with runs, found none at {folder}. Check the path.")
    above = _above | {folder.resolve()}  # a link may lead back
    inner = sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.resolve() not in above
    )
    trained = is_training(folder)
    if trained or not inner or any((folder / name).is_file() for name in EVALUATION_FILES):
        yield folder
    if not trained:
        for path in inner:
            yield from find_results(path, above)


def is_training(folder: Path) -> bool:
    """Whether a training was at work in a folder: one that was stopped early has checkpoints only."""
    return any((folder / name).is_file() for name in _TRAINING_FILES) or any(folder.glob("checkpoint-*/"))


def is_transfer(folder: Path) -> bool:
    """Whether it was that of a detector or segmenter."""
    files = (folder / name for name in _TRANSFER_FILES)
    return any(file.is_file() for file in files) or any(folder.glob(f"checkpoint-*/{TRANSFER_FILE}"))

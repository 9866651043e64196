"""What many trainings and evaluations left, gathered: what may stand together, and one frame of all numbers.

A folder is searched downwards for what `hf-dr train`, `compare`, `evaluate`, `detect` and `segment` write. Runs that differ in
nothing but the seed are one cell. What cannot be compared is listed with the reason, never left out in silence.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from hf_dr.errors import DataError, HfDrError
from hf_dr.evaluation.config import HOW, HOW_CORRUPTED
from hf_dr.evaluation.gathering import (
    EVALUATION_FILES,
    WHILE_TRAINING,
    Evaluation,
    Evaluations,
    Finished,
    Setting,
    find_results,
    is_training,
    is_transfer,
    read_evaluation,
    read_trained,
    read_transferred,
)
from hf_dr.files import digest_of_weights, expanded
from hf_dr.settings import are_alike
from hf_dr.teacher.metrics import CALIBRATED_ECE, METRICS
from hf_dr.text import shown_text

OBJECTIVES = ("erm", "kd", "reinforced")
STUDENT = ["student", "data", "epochs"]
EVALUATED_ON = "evaluated on"


@dataclass
class Results:
    """All that was found.

    Attributes:
        finished: Students, detectors and segmenters, in the order in which they were found.
        others: Evaluated checkpoints that are none of the runs: `NAME = CHECKPOINT`, or the name alone.
        left_out: Folder or file -> why it is in no table.
    """

    finished: list[Finished] = field(default_factory=list)
    others: dict[str, Evaluations] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    # Set -> how it was evaluated so far.
    _evaluated: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    def add_training(self, folder: Path) -> None:
        """Adds a run."""
        try:
            new = read_transferred(folder) if is_transfer(folder) else read_trained(folder)
        except HfDrError as error:
            self.left_out[str(folder)] = str(error).removeprefix(f"{folder} ")
            return
        for old in self.finished:
            conflict = new.conflict(old)
            if conflict:
                reason = f"it {conflict} {old.folder}, found before it. Report one of them at a time."
                self.left_out[str(folder)] = reason
                return
        self.finished.append(new)

    def settle(self) -> None:
        """Leaves out runs on a base that would stand with others, of other settings, in the row of its "+" dataset."""
        rows = {run.setting for run in self.finished if run.setting.reinforced}
        for row, objective in itertools.product(sorted(rows), OBJECTIVES):
            kept: list[Finished] = []
            lent = [run for run in self.of(row, objective) if not run.setting.reinforced]
            for run in sorted(lent, key=self.finished.index):
                conflicts = ((run.conflict(other, same_cell=True), other.folder) for other in kept)
                reason = next((f"{conflict} {folder}" for conflict, folder in conflicts if conflict), None)
                if reason is not None:
                    self.left_out[str(run.folder)] = (
                        f'it {reason}, which stands in the row of the "+" dataset of its images. Report one of them at a time.'
                    )
                    self.finished.remove(run)
                else:
                    kept.append(run)

    def add_evaluation(self, path: Path) -> None:
        """Adds the results in an evaluation's file; the trainings that it names must be there already."""
        try:
            evaluation = read_evaluation(path)
        except HfDrError as error:
            self.left_out[str(path)] = str(error).removeprefix(f"{path} ")
            return
        # Once for each model: its weights are read.
        evaluations_of = functools.cache(lambda model: self._evaluations(path.parent, model, evaluation))
        for result in evaluation.results:
            spec = evaluation.sets[result["set"]]
            how: dict[str, Any] = {"": {"set": spec, **{key: evaluation.how[key] for key in HOW}}}
            end = ""
            if result["corrupted"]:
                end = ", corrupted"
                how[end] = how[""] | {key: evaluation.how[key] for key in HOW_CORRUPTED}
            # A second set of the same name is distinguished by its dataset and split, with and without corruptions.
            place = ":".join(filter(None, (Path(str(spec.get("dataset"))).name, spec.get("split"))))
            names = (result["set"], f"{result['set']} ({place})")
            where = f"{path}: {result['model']} on {names[0]}{end}"
            for name in names:
                if all(are_alike(self._evaluated.setdefault(name + key, own), own) for key, own in how.items()):
                    break
            else:
                reason = f"`{names[1]}{end}` was evaluated in another way before. Report one of them at a time."
                self.left_out[where] = reason
                continue
            kept = (*METRICS, CALIBRATED_ECE, "mce", "errors")
            measured = {key: value for key, value in result.items() if key in kept}
            evaluations = evaluations_of(result["model"])
            if evaluations is None:
                self.left_out[where] = (
                    "the weights in its folder are not those that were evaluated: it was trained or calibrated again since, or "
                    "is another. Evaluate it again."
                )
                continue
            known = evaluations.setdefault(name + end, measured)
            if known != measured:
                self.left_out[where] = "it was evaluated before, with other results. Report one of the evaluations."

    def _evaluations(self, folder: Path, name: str, evaluation: Evaluation) -> Evaluations | None:
        """Returns where to note a checkpoint's metrics: at the run in its folder, if its weights are there; None if others are.

        A relative path was relative to the evaluation's folder or one above it, so it is looked for in all of these, and next
        to the evaluation in case the folder has moved.
        """
        place = evaluation.places.get(name)
        weights = evaluation.weights[name]
        named = expanded(place or name)
        # All one where it is absolute.
        tried = [*(above / named for above in (folder, *folder.resolve().parents)), named]
        # Another name is no sign that a folder of it is the checkpoint.
        if named.name == name and not any(path.exists() for path in tried):
            tried.append(folder / name)
        runs = {run.folder.resolve(): run for run in self.runs}
        found = [runs[path] for path in (path.resolve() for path in tried) if path in runs]
        for run in found:
            if weights is None or digest_of_weights(run.folder) in (None, weights):
                return run.evaluations
        return None if found else self.others.setdefault(name if place in (None, name) else f"{name} = {place}", {})

    @property
    def runs(self) -> list[Finished]:
        """Trainings of students."""
        return [run for run in self.finished if run.training is not None]

    @property
    def transfers(self) -> list[Finished]:
        """Trainings of detectors and segmenters."""
        return [run for run in self.finished if run.training is None]

    @functools.cached_property
    def settings(self) -> list[Setting]:
        """The rows, sorted; runs on a base dataset stand in those of its "+" datasets, where these have none of their own."""
        own = {(run.setting, run.objective) for run in self.finished}
        rows = {setting for setting, _ in own}
        lent = {
            (plain, objective)
            for plain, objective in own
            if any(plain.serves(other) and (other, objective) not in own for other in rows)
        }
        return sorted({setting for setting, _ in own - lent})

    def of(self, setting: Setting, objective: str) -> list[Finished]:
        """Returns the runs of a cell, which differ in the seed; those on the base where the row has none of its own."""
        runs = [run for run in self.finished if run.objective == objective]
        own = [run for run in runs if run.setting == setting]
        return sorted(own or [run for run in runs if run.setting.serves(setting)], key=lambda run: run.seeds)

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """One line for each number: which row of the tables it is of, by what name, on which set, which metric.

        Rows are those of `settings`, then of `others`; only runs have an objective and a seed.
        """
        lines: list[tuple[Any, ...]] = []
        for row, s in enumerate(self.settings):
            names = (row, shown_text(s.model), shown_text(s.data), f"{s.epochs:g}", shown_text(s.evaluated_on))
            for objective in OBJECTIVES:
                for run in self.of(s, objective):
                    lines += [(*names, objective, str(run.seeds), *number) for number in _flat(run.evaluations)]
                    if run.training is not None:
                        seconds = (WHILE_TRAINING, "seconds", run.training.seconds)
                        lines.append((*names, objective, str(run.seeds), *seconds))
        for row, (name, evaluations) in enumerate(self.others.items(), len(self.settings)):
            lines += [(row, shown_text(name), "", "", "", "", "", *number) for number in _flat(evaluations)]
        return pd.DataFrame(
            lines, columns=["row", *STUDENT, EVALUATED_ON, "objective", "seed", "on", "metric", "value"]
        )

    def values(self, on: str, metric: str) -> pd.DataFrame:
        """Returns the lines of one metric on one set."""
        return self.frame[(self.frame.on == on) & (self.frame.metric == metric)]


def gather(folders: Sequence[Path]) -> Results:
    """Gathers what is in and below folders of trainings, transfers, comparisons and evaluations; a DataError without any."""
    found = list(dict.fromkeys(path for folder in folders for path in find_results(expanded(folder))))
    results = Results()
    for path in filter(is_training, found):
        results.add_training(path)
    results.settle()
    for path in found:  # after all trainings, which they may speak of
        evaluations = [path / name for name in EVALUATION_FILES if (path / name).is_file()]
        for evaluation in evaluations:
            results.add_evaluation(evaluation)
        if not evaluations and not is_training(path):
            results.left_out[str(path)] = "it holds no training and no evaluation."
    if not (results.finished or results.others):
        reasons = "\n".join(f"  {place}: {reason}" for place, reason in results.left_out.items())
        raise DataError(
            f"a report must be of at least one finished run or evaluation, found none. Train first:\n{reasons}"
        )
    return results


def _flat(evaluations: Evaluations) -> Iterator[tuple[str, str, float]]:
    """Yields set, metric and value; the errors by corruption are metrics of their names."""
    for on, metrics in evaluations.items():
        for metric, value in {**metrics, **metrics.get("errors", {})}.items():
            if metric != "errors":
                yield shown_text(on), shown_text(metric), value

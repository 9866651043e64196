"""The results page: the paper's tables and plots of what was gathered, as Markdown, JSON and HTML."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from hf_dr.evaluation.gathering import TRANSFERRED, WHILE_TRAINING, Finished, Setting
from hf_dr.evaluation.metrics import METRICS
from hf_dr.evaluation.plots import accuracy_figure, as_png
from hf_dr.evaluation.report import SHARES
from hf_dr.evaluation.results import OBJECTIVES, Results
from hf_dr.evaluation.runs import BASELINE
from hf_dr.evaluation.tables import Numbers, Table, cell, gains, html_page, html_picture, html_table, numbers
from hf_dr.transfer.trainer import HEADLINES
from hf_dr.version import __version__

_STUDENT = ["student", "data", "epochs"]
_ABOUT = "A cell is the mean ± standard deviation over seeds (how many), or the value of the only one."

_Column = tuple[str, str, str, int, float]
"""Title, set, metric, digits behind the point, and what the values are multiplied by."""
_Columns = dict[str, dict[Any, str]]
"""Title -> row -> cell."""


def all_tables(results: Results) -> list[Table]:
    """Returns all tables that have rows."""
    settings = dict(enumerate(results.settings))
    names = {row: _names(setting) for row, setting in settings.items()}
    evaluated = {row: [*_names(setting), setting.evaluated_on] for row, setting in settings.items()}
    transferred = {(row, key): [*evaluated[row], title] for row in settings for key, title in HEADLINES.items()}
    transfers = results.frame[(results.frame.on == TRANSFERRED) & results.frame.metric.isin(HEADLINES)]
    transfers = transfers.assign(row=list(zip(transfers.row, transfers.metric, strict=True)))
    tables = [
        Table.of(
            "Accuracy by model and epochs",
            "Top-1 in percent when training ended; gains over erm in points, seed by seed where both have the seed.",
            [*_STUDENT, "evaluated on"],
            evaluated,
            _by_objective(results.values(WHILE_TRAINING, "top1"), 2, 100, _gain_of),
        ),
        *_evaluated_tables(results),
        Table.of(
            "Training time",
            "Seconds of training, without the evaluations on the way; a run that was resumed counts from where it went on.",
            _STUDENT,
            names,
            _by_objective(results.values(WHILE_TRAINING, "seconds"), 1, 1, _times_over),
        ),
        Table.of(
            "Transfer",
            "A detector or segmenter on the student as backbone, in percent; gains over erm in points, seed by seed where both "
            "have the seeds of student and transfer.",
            [*_STUDENT, "transferred to", "metric"],
            transferred,
            _by_objective(transfers, 2, 100, _gain_of),
        ),
    ]
    return [table for table in tables if table.rows]


def _evaluated_tables(results: Results) -> list[Table]:
    """Returns the tables of what was evaluated: a row for each objective, and for each other checkpoint."""
    sets = [name for name in results.frame.on.unique() if name not in (WHILE_TRAINING, TRANSFERRED)]
    clean = [name for name in sets if not name.endswith(", corrupted")]
    corrupted = [name for name in sets if name not in clean]
    robustness: list[_Column] = [(f"{name}: top-1 %", name, "top1", 2, 100) for name in clean]
    robustness += [(f"{name}: error %", name, "mce", 2, 100) for name in corrupted]
    about = "Top-1 on each set; under corruptions the mean error, not normalised by AlexNet's errors (less is better)."
    tables = [_evaluated(results, "Robustness", about, robustness)]
    for name in corrupted:
        kinds = results.frame.metric[results.frame.on == name].unique()
        errors: list[_Column] = [(kind, name, kind, 2, 100) for kind in kinds if kind not in (*METRICS, "mce")]
        tables.append(_evaluated(results, f"Errors on {name}", "Top-1 error in percent, mean over severities.", errors))
    calibration: list[_Column] = []
    for name in (WHILE_TRAINING, *clean):
        calibration += [(f"{name}: ECE %", name, "ece", 2, 100), (f"{name}: NLL", name, "nll", 4, 1)]
    about = "Expected calibration error, 15 bins, and negative log-likelihood in nats (less is better)."
    return [*tables, _evaluated(results, "Calibration", about, calibration)]


def _evaluated(results: Results, title: str, about: str, columns: Sequence[_Column]) -> Table:
    names: dict[Any, list[str]] = {}
    first = [_names(setting) for setting in results.settings] + [[other, "", ""] for other in results.others]
    for row, objective in results.frame[["row", "objective"]].drop_duplicates().itertuples(index=False):
        names[row, objective] = [*first[row], objective]
    cells = {
        column: _cells(results.values(on, metric), ["row", "objective"], digits, scale)
        for column, on, metric, digits, scale in columns
    }
    return Table.of(title, about, [*_STUDENT, "objective"], names, cells)


def _names(setting: Setting) -> list[str]:
    return [setting.model, setting.data, f"{setting.epochs:g}"]


def _cells(values: pd.DataFrame, by: str | list[str], digits: int, scale: float) -> dict[Any, str]:
    return {row: cell(own.value, digits, scale) for row, own in values.groupby(by)}


def _by_objective(
    values: pd.DataFrame, digits: int, scale: float, compare: Callable[[pd.DataFrame, str], tuple[str, str]]
) -> _Columns:
    """Makes a column of each objective, and one of each but plain training compared with it."""
    there = [name for name in OBJECTIVES if name in set(values.objective)]
    columns = {name: _cells(values[values.objective == name], "row", digits, scale) for name in there}
    for name in there if BASELINE in there else []:
        for row, own in values.groupby("row") if name != BASELINE else ():
            title, text = compare(own, name)
            columns.setdefault(title, {})[row] = text
    return columns


def _gain_of(values: pd.DataFrame, objective: str) -> tuple[str, str]:
    return f"gain of {objective}", cell(gains(values, objective), 2, 100, sign=True)


def _times_over(values: pd.DataFrame, objective: str) -> tuple[str, str]:
    means = values.groupby("objective").value.mean()
    both = objective in means and BASELINE in means
    return f"{objective} over {BASELINE}", f"{means[objective] / means[BASELINE]:.2f}" if both else ""


def to_markdown(results: Results, title: str) -> str:
    """Returns all tables, and what is in none of them."""
    parts = [f"# {title}", *(table.to_markdown() for table in all_tables(results))]
    if results.left_out:
        listed = (f"- {place}: {' '.join(reason.split())}" for place, reason in results.left_out.items())
        parts += ["## In no table", "\n".join(listed)]
    return "\n\n".join([*parts, _ABOUT]) + "\n"


def to_html(results: Results, title: str) -> str:
    """Returns a page with the tables and plots that needs no other file."""
    parts = [html_picture(as_png(figure)) for figure in figures(results)]
    parts += [table.to_html() for table in all_tables(results)]
    if results.left_out:
        parts += ["<h2>In no table</h2>", html_table(["where", "why"], [*map(list, results.left_out.items())])]
    return html_page(title, [*parts, f"<p>{_ABOUT}</p>"])


def figures(results: Results) -> list[Figure]:
    """Returns for each student on its data: accuracy against training time and against epochs, by objective."""
    groups: dict[tuple[str, ...], list[Finished]] = {}
    for s in results.settings:  # rows that differ in their epochs are one figure
        runs = [run for name in OBJECTIVES for run in results.of(s, name)]
        here = [run for run in runs if run.training is not None and run.training.accuracy]
        if here:
            groups.setdefault((f"{s.model} on {s.data}", s.fingerprint, s.evaluated_on), []).extend(here)
    return [
        accuracy_figure(
            title, [run.training for run in here if run.training], epochs=[run.setting.epochs for run in here]
        )
        for (title, *_), here in groups.items()
    ]


def to_dict(results: Results, title: str) -> dict[str, Any]:
    """Returns all in JSON types: each run, each cell of the tables of accuracies and transfer; all metrics are shares."""
    accuracy = []
    transfer = []
    for row, setting in enumerate(results.settings):
        own = results.frame[results.frame.row == row]
        if (own.on == TRANSFERRED).any():
            for metric in HEADLINES:
                values = own[own.metric == metric]
                if len(values):
                    transfer.append({**setting._asdict(), "metric": metric, **_summary(values, results.transfers)})
        else:
            values = own[(own.on == WHILE_TRAINING) & (own.metric == "top1")]
            accuracy.append({**setting._asdict(), **_summary(values, results.runs)})
    return {
        "title": title,
        "hf_dr": __version__,
        "units": SHARES,
        "accuracy": accuracy,
        "runs": [_described(run) for run in results.runs],
        "transfer": transfer,
        "transfers": [_described(run) for run in results.transfers],
        "others": results.others,
        "left_out": [{"place": place, "reason": reason} for place, reason in results.left_out.items()],
    }


def _summary(values: pd.DataFrame, runs: Sequence[Finished]) -> dict[str, Any]:
    """The numbers of a row for each objective of all runs, and its gains over plain training."""
    objectives = [name for name in OBJECTIVES if any(run.objective == name for run in runs)]
    return {
        **{name: _numbers(values.value[values.objective == name]) for name in objectives},
        "gains": {name: _numbers(gains(values, name)) for name in objectives if name != BASELINE},
    }


def _numbers(values: pd.Series) -> Numbers | None:
    return None if values.empty else numbers(values)


def _described(run: Finished) -> dict[str, Any]:
    described = {"folder": str(run.folder), **run.setting._asdict(), "objective": run.objective}
    if run.training is None:
        seeds = dict(zip(("student", "transfer"), run.seeds, strict=True))
        return {**described, "seeds": seeds, "metrics": run.evaluations[TRANSFERRED]}
    return {
        **described,
        "seed": run.training.seed,
        "steps": run.training.steps,
        "seconds": run.training.seconds,
        "accuracy": [[share * run.training.seconds, top1] for share, top1 in run.training.accuracy],
        "evaluations": run.evaluations,
    }


def save(results: Results, folder: Path, title: str) -> Path:
    """Writes results.md, results.json and results.html, and returns the last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(to_markdown(results, title), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(to_dict(results, title), indent=2) + "\n", encoding="utf-8")
    page = folder / "results.html"
    page.write_text(to_html(results, title), encoding="utf-8")
    return page

"""The results page: the paper's tables and plots of what was gathered, as Markdown, JSON and HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from hf_dr.evaluation.gathering import BASELINE, TRANSFERRED, WHILE_TRAINING, Finished
from hf_dr.evaluation.plots import accuracy_figure, as_png
from hf_dr.evaluation.report import ABOUT_CALIBRATED
from hf_dr.evaluation.results import EVALUATED_ON, OBJECTIVES, STUDENT, Results
from hf_dr.evaluation.tables import Table, cell, gains, html_page, html_picture, html_table, numbers
from hf_dr.files import write_json, write_whole
from hf_dr.teacher.metrics import CALIBRATED_ECE, METRICS, SHARES
from hf_dr.text import inline
from hf_dr.transfer.trainer import HEADLINES
from hf_dr.version import __version__

_ABOUT = "A cell is the mean ± standard deviation over seeds (how many), or the value of the only one."
# Digits behind the point, and what values are multiplied by; other metrics are shares, shown in percent.
_SHOWN = {"nll": (4, 1), "seconds": (1, 1), "ratio": (2, 1)}


def all_tables(results: Results) -> list[Table]:
    """Returns all tables that have rows."""
    frame = results.frame
    transfers = frame[(frame.on == TRANSFERRED) & frame.metric.isin(HEADLINES)]
    transfers = transfers.assign(metric=transfers.metric.map(HEADLINES)).rename(
        columns={EVALUATED_ON: "transferred to"}
    )
    tables = [
        _table(
            "Accuracy by model and epochs",
            "Top-1 in percent when training ended; gains over erm in points, seed by seed where both have the seed.",
            [*STUDENT, EVALUATED_ON],
            _by_objective(results.values(WHILE_TRAINING, "top1"), "gain of {}", _gained),
        ),
        *_evaluated(results),
        _table(
            "Training time",
            "Seconds of training, without the evaluations on the way.",
            STUDENT,
            _by_objective(results.values(WHILE_TRAINING, "seconds"), "{} over erm", _times),
        ),
        _table(
            "Transfer",
            "A detector or segmenter on the student as backbone, in percent; gains over erm in points, seed by seed where both "
            "have the seeds of student and transfer.",
            [*STUDENT, "transferred to", "metric"],
            _by_objective(transfers, "gain of {}", _gained),
        ),
    ]
    return [table for table in tables if table.rows]


def _evaluated(results: Results) -> Iterator[Table]:
    """Yields the tables of what was evaluated: a row for each objective, and for each other checkpoint."""
    index = [*STUDENT, "objective"]
    sets = [name for name in results.frame.on.unique() if name not in (WHILE_TRAINING, TRANSFERRED)]
    clean = [name for name in sets if not name.endswith(", corrupted")]
    corrupted = [name for name in sets if name not in clean]
    robustness = {f"{name}: top-1 %": results.values(name, "top1") for name in clean}
    robustness |= {f"{name}: error %": results.values(name, "mce") for name in corrupted}
    about = "Top-1 on each set; under corruptions the mean error, not normalised by AlexNet's errors (less is better)."
    yield _table("Robustness", about, index, robustness)
    for name in corrupted:
        kinds = results.frame.metric[results.frame.on == name].unique()
        errors = {kind: results.values(name, kind) for kind in kinds if kind not in (*METRICS, "mce")}
        yield _table(f"Errors on {name}", "Top-1 error in percent, mean over severities.", index, errors)
    calibration = {}
    again = _measurements(results.frame[results.frame.on.isin(clean)])
    for name in (WHILE_TRAINING, *clean):
        for metric, title in (("ece", "ECE %"), (CALIBRATED_ECE, "calibrated ECE %"), ("nll", "NLL")):
            values = results.values(name, metric)
            if name == WHILE_TRAINING:  # images that were evaluated again after the training are shown once
                values = values[~_measurements(values).isin(again)]
            calibration[f"{name}: {title}"] = values
    about = (
        f"Expected calibration error, 15 bins, and negative log-likelihood in nats (less is better). {ABOUT_CALIBRATED}"
    )
    yield _table("Calibration", about, index, calibration)


def _measurements(lines: pd.DataFrame) -> pd.MultiIndex:
    """Returns what tells one number of one model from another, wherever it was measured."""
    return pd.MultiIndex.from_frame(
        lines[["row", "objective", "seed", "metric", "value"]].assign(value=lines.value.round(4))
    )


def _table(title: str, about: str, index: list[str], columns: dict[str, pd.DataFrame]) -> Table:
    """Makes a table of a column for each part of the frame, whose lines `index` sorts into rows; empty ones are left out."""
    columns = {column: lines for column, lines in columns.items() if len(lines)}
    if not columns:
        return Table(title, about, index, [])
    in_order = pd.concat(columns.values()).sort_index()  # the order in which the lines stand in the results
    cells: dict[Any, dict[str, str]] = {key: {} for key, _ in in_order.groupby(["row", *index], sort=False)}
    for column, lines in columns.items():
        for key, own in lines.groupby(["row", *index]):
            digits, scale = _SHOWN.get(own.metric.iloc[0], (2, 100))
            cells[key][column] = cell(own.value, digits, scale, sign=column.startswith("gain of "))
    rows = [[*key[1:], *(own.get(column, "") for column in columns)] for key, own in cells.items()]
    return Table(title, about, [*index, *columns], rows)


def _by_objective(
    lines: pd.DataFrame, title: str, compare: Callable[[pd.DataFrame, str], pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """Returns the lines of each objective, and as `title` those of what comes out where it is compared with plain training."""
    columns = {name: lines[lines.objective == name] for name in OBJECTIVES}
    for name in OBJECTIVES:
        rows = [own for _, own in lines.groupby(["row", "metric"]) if {name, BASELINE} <= set(own.objective)]
        if rows and name != BASELINE:
            columns[title.format(name)] = pd.concat([compare(own, name) for own in rows])
    return columns


def _gained(lines: pd.DataFrame, objective: str) -> pd.DataFrame:
    values = gains(lines, objective).to_numpy()
    return lines.iloc[[0] * len(values)].assign(value=values)


def _times(lines: pd.DataFrame, objective: str) -> pd.DataFrame:
    means = lines.groupby("objective").value.mean()
    return lines.iloc[[0]].assign(value=means[objective] / means[BASELINE], metric="ratio")


def to_markdown(results: Results, title: str) -> str:
    """Returns all tables, and what is in none of them."""
    parts = [f"# {inline(title)}", *(table.to_markdown() for table in all_tables(results))]
    if results.left_out:
        listed = (f"- {inline(place)}: {inline(reason)}" for place, reason in results.left_out.items())
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
    frame = results.frame
    accuracy = []
    transfer = []
    for row, setting in enumerate(results.settings):
        own = frame[frame.row == row]
        if not (own.on == TRANSFERRED).any():
            top1 = own[(own.on == WHILE_TRAINING) & (own.metric == "top1")]
            accuracy.append({**asdict(setting), **_summary(top1, results.runs)})
        for metric in HEADLINES:
            values = own[own.metric == metric]
            if len(values):
                transfer.append({**asdict(setting), "metric": metric, **_summary(values, results.transfers)})
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
    """The numbers of a row for each objective of all runs, and its gains over plain training; None where there are none."""
    found = {run.objective for run in runs}
    names = [name for name in OBJECTIVES if name in found]
    cells = {name: values.value[values.objective == name] for name in names}
    gained = {name: gains(values, name) for name in names if name != BASELINE}
    return {
        **{name: numbers(cell) if len(cell) else None for name, cell in cells.items()},
        "gains": {name: numbers(cell) if len(cell) else None for name, cell in gained.items()},
    }


def _described(run: Finished) -> dict[str, Any]:
    described = {"folder": str(run.folder), **asdict(run.setting), "objective": run.objective}
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
    write_whole(folder / "results.md", to_markdown(results, title))
    write_json(folder / "results.json", to_dict(results, title))
    page = folder / "results.html"
    write_whole(page, to_html(results, title))
    return page

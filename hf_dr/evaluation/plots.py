"""Plots and the one HTML page that holds them."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hf_dr.evaluation.metrics import Reliability
from hf_dr.evaluation.runs import Run


def draw_reliability(axes: Any, diagram: Reliability, title: str) -> None:
    """Draws a reliability diagram: accuracy by confidence, the diagonal being perfect calibration."""
    edges = np.linspace(0, 1, len(diagram.count) + 1)
    width = edges[1] - edges[0]
    filled = diagram.count > 0
    axes.bar(
        edges[:-1][filled],
        diagram.accuracy[filled],
        width,
        align="edge",
        color="#3b6ea5",
        edgecolor="white",
        linewidth=0.5,
    )
    axes.bar(
        edges[:-1][filled],
        (diagram.confidence - diagram.accuracy)[filled],
        width,
        diagram.accuracy[filled],
        align="edge",
        color="#d95f4b",
        alpha=0.35,
        edgecolor="white",
        linewidth=0.5,
    )
    axes.plot([0, 1], [0, 1], color="0.4", linewidth=0.8, linestyle="--")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
    axes.set_title(f"{title}\nECE {100 * diagram.ece:.2f} %", fontsize=9)


def reliability_figure(diagrams: dict[str, Reliability], columns: int | None = None) -> Figure:
    """Draws several reliability diagrams: side by side, or in rows of `columns`."""
    columns = columns or len(diagrams)
    rows = math.ceil(len(diagrams) / columns)
    figure = Figure(figsize=(3 * columns, 3.4 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flat
    for title, diagram in diagrams.items():
        draw_reliability(next(places), diagram, title)
    for axes in places:
        axes.set_axis_off()
    return figure


def reliability_picture(diagrams: dict[str, Reliability], path: str, columns: int | None = None) -> None:
    """Writes `reliability_figure` to a PNG file."""
    reliability_figure(diagrams, columns).savefig(path, dpi=150)


_COLOURS = {"erm": "#7a7a7a", "reinforced": "#3b6ea5", "kd": "#d98b2b"}


def draw_accuracy(axes: Any, runs: Sequence[Run], lengths: Sequence[float]) -> None:
    """Draws top-1 on the way: a thin line for each run and, for those of an objective evaluated at the same steps, their mean.

    Args:
        axes: Of matplotlib.
        runs: Those never evaluated are left out.
        lengths: Of each run, in the unit of the x axis: seconds, say, or epochs.
    """
    for objective in dict.fromkeys(run.objective for run in runs):
        colour = _COLOURS.get(objective, "#4c8c4a")
        curves = [
            (length, np.array(run.accuracy), run.steps)
            for run, length in zip(runs, lengths, strict=True)
            if run.objective == objective and run.accuracy
        ]
        for length, curve, _ in curves:
            axes.plot(length * curve[:, 0], 100 * curve[:, 1], color=colour, alpha=0.25, linewidth=0.8)
        places = [(steps, tuple(curve[:, 0])) for _, curve, steps in curves]
        for number, place in enumerate(dict.fromkeys(places)):
            alike = [
                (length, curve[:, 1]) for (length, curve, _), at in zip(curves, places, strict=True) if at == place
            ]
            length, accuracy = (np.mean(values, axis=0) for values in zip(*alike, strict=True))
            label = None if number else objective
            marker = "o" if len(accuracy) == 1 else None  # a line of one point would not be seen
            axes.plot(
                length * np.array(place[1]), 100 * accuracy, color=colour, linewidth=2, marker=marker, label=label
            )
    axes.set(ylabel="top-1 accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)


def as_png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def html_picture(png: bytes) -> str:
    """Returns a picture that needs no file beside the page."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; its cells are text."""
    lines = ("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in (head, *rows))
    return "\n".join(["<table>", *lines, "</table>"])


def html_page(title: str, parts: Sequence[str]) -> str:
    """Returns a page of its own; `title` is text, `parts` are HTML."""
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
td {{ border-bottom: 1px solid #ddd; padding: .3rem .8rem; text-align: right; white-space: nowrap }}
td:first-child {{ text-align: left }} tr:first-child {{ font-weight: 600 }} img {{ max-width: 100%; margin: 1rem 0 }}
</style>
<h1>{title}</h1>
{body}
</html>
"""

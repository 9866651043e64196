"""Plots: reliability diagrams, and accuracy over the course of trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from hf_dr.teacher.metrics import Reliability
from hf_dr.text import fonts_for, shown_text

if TYPE_CHECKING:
    from hf_dr.evaluation.gathering import Run

_BLUE = "#3b6ea5"
_RED = "#d95f4b"
_COLOURS = {"erm": "#7a7a7a", "reinforced": _BLUE, "kd": "#d98b2b"}


def _draw_reliability(axes: Any, below: Any, diagrams: Sequence[Reliability], title: str) -> None:
    """Draws accuracy by confidence, the diagonal being perfect calibration, and below how many examples are in each bin.

    Of several diagrams, one for each seed, the examples are counted together, and the ECE is their mean.
    """
    counts, confidence_sums, hits = np.sum([(d.counts, d.confidence_sums, d.hits) for d in diagrams], axis=0)
    edges = np.linspace(0, 1, len(counts) + 1)
    filled = counts > 0
    left = edges[:-1][filled]
    accuracy = (hits / np.maximum(counts, 1))[filled]
    gap = (confidence_sums / np.maximum(counts, 1))[filled] - accuracy
    bars = {"width": edges[1], "align": "edge", "edgecolor": "white", "linewidth": 0.5}
    axes.bar(left, accuracy, color=_BLUE, label="accuracy", **bars)
    axes.bar(left, gap, bottom=accuracy, color=_RED, alpha=0.35, label="gap to confidence", **bars)
    axes.plot([0, 1], [0, 1], color="0.4", linewidth=0.8, linestyle="--", label="perfect calibration")
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    axes.tick_params(labelbottom=False)
    seeds = f", {len(diagrams)} seeds" if len(diagrams) > 1 else ""
    ece = f"ECE {100 * np.mean([d.ece for d in diagrams]):.2f} %{', mean' if seeds else ''}"
    axes.set_title(f"{shown_text(title, 100)}{seeds}\n{ece}", fontsize=9, parse_math=False)
    # A bin of few examples may look like a disaster and mean nothing.
    below.bar(edges[:-1], counts, color="0.6", **bars)
    for place, count in zip(left, counts[filled].astype(int).tolist(), strict=True):
        text = {"ha": "center", "va": "bottom", "rotation": 90, "fontsize": 6}
        below.annotate(f"{count:,}", (place + edges[1] / 2, count), (0, 2), textcoords="offset points", **text)
    below.set(xlim=(0, 1), ylim=(0, 1.6 * counts.max()), xlabel="confidence", ylabel="examples", yticks=[])
    below.spines[["top", "right"]].set_visible(False)


def reliability_figure(diagrams: Mapping[str, Sequence[Reliability]], columns: int | None = None) -> Figure:
    """Draws the reliability diagrams of several models, each of one or more seeds: in one row, or in rows of `columns`."""
    columns = columns or len(diagrams)
    rows = math.ceil(len(diagrams) / columns)
    figure = Figure(figsize=(3.2 * columns, 4.4 * rows), layout="constrained")
    places = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 1] * rows)
    for number, (title, seeds) in enumerate(diagrams.items()):
        row, column = divmod(number, columns)
        _draw_reliability(places[2 * row, column], places[2 * row + 1, column], seeds, title)
    for number in range(len(diagrams), rows * columns):
        for axes in places[2 * (number // columns) :, number % columns]:
            axes.set_axis_off()
    names = dict(zip(*reversed(places[0, 0].get_legend_handles_labels()), strict=True))
    figure.legend(names.values(), names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=7)
    return figure


def accuracy_figure(title: str | None, runs: Sequence[Run], epochs: Sequence[float] | None = None) -> Figure:
    """Draws top-1 on the way of each run against seconds of training and, where they are given, against its epochs.

    Runs that were never evaluated are left out. The title is None where what is around the figure has one.
    """
    figure = Figure(figsize=(9.5 if epochs else 6.5, 3.8), layout="constrained")
    places = figure.subplots(1, 2 if epochs else 1, sharey=True, squeeze=False)[0]
    _draw_accuracy(places[0], runs, [run.seconds for run in runs])
    places[0].set(xlabel="seconds of training", ylabel="top-1 accuracy, %")
    if epochs:
        _draw_accuracy(places[1], runs, epochs)
        places[1].set(xlabel="epochs")
    places[-1].legend(loc="lower right", frameon=False)
    if title is not None:
        figure.suptitle(shown_text(title, 200), fontsize=10, parse_math=False)
    return figure


def _draw_accuracy(axes: Any, runs: Sequence[Run], lengths: Sequence[float]) -> None:
    """Draws a thin line for each run and, for those of an objective evaluated at the same steps, a thick one, their mean.

    `lengths` are those of the runs in the unit of the x axis.
    """
    alike: dict[tuple[Any, ...], list[tuple[float, np.ndarray]]] = {}
    for run, length in zip(runs, lengths, strict=True):
        if run.accuracy:
            shares, top1 = np.array(run.accuracy).T
            colour = _COLOURS[run.objective]
            axes.plot(length * shares, 100 * top1, color=colour, alpha=0.25, linewidth=0.8)
            alike.setdefault((run.objective, run.steps, *shares), []).append((length, top1))
    labelled = set()
    for (objective, _, *shares), curves in alike.items():
        mean_length = np.mean([length for length, _ in curves])
        mean_top1 = np.mean([top1 for _, top1 in curves], axis=0)
        label = objective if objective not in labelled else None
        labelled.add(objective)
        marker = "o" if len(shares) == 1 else None  # a line of one point would not be seen
        style = {"color": _COLOURS[objective], "linewidth": 2, "marker": marker, "label": label}
        axes.plot(mean_length * np.array(shares), 100 * mean_top1, **style)
    axes.spines[["top", "right"]].set_visible(False)


def as_png(figure: Figure, dpi: int = 130) -> bytes:
    """Returns a figure as a PNG file."""
    file = BytesIO()
    texts: list[Any] = figure.findobj(Text)
    with fonts_for(text.get_text() for text in texts) as families:
        for text in texts if families else ():
            text.set_family([*text.get_family(), *families])
        figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()

"""What an evaluation found: the metrics of each model on each set, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_dr.evaluation.config import REPORT_FILE
from hf_dr.evaluation.plots import as_png, reliability_figure
from hf_dr.files import expanded, write_json, write_whole
from hf_dr.teacher.metrics import CALIBRATED_ECE, ECE_BY_CHANCE, SHARES, Reliability
from hf_dr.text import inline, markdown_table
from hf_dr.version import __version__


@dataclass(frozen=True)
class Result:
    """The metrics of one model on one set; on corrupted images their means over corruptions and severities.

    Attributes:
        diagram: The reliability diagram of the clean images.
        by_corruption: Corruption -> severity -> metrics.
        hits: Whether the most probable class is the label, for each clean image; bool (examples,).
    """

    model: str
    set: str
    examples: int
    metrics: dict[str, float]
    diagram: Reliability | None = None
    by_corruption: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    hits: np.ndarray | None = None

    def errors(self) -> dict[str, float]:
        """Returns each corruption's mean top-1 error over its severities, 0 to 1."""
        return {
            name: 1 - float(np.mean([metrics["top1"] for metrics in severities.values()]))
            for name, severities in self.by_corruption.items()
        }

    @property
    def mce(self) -> float | None:
        """Mean corruption error, 0 to 1, not normalised by AlexNet's errors; None for clean images."""
        return float(np.mean(list(self.errors().values()))) if self.by_corruption else None


ABOUT_CALIBRATED = (
    "Calibrated ECE is what is left of the ECE when the logits are divided by a temperature: for each half of the images by "
    "the one that fits the other half best."
)
_ABOUT_CORRUPTED = (
    "Metrics on corrupted images are means over corruptions and severities; mCE is the mean top-1 error over severities, then "
    "over corruptions, not normalised by AlexNet's errors. Corruptions made here compare the models of this table; comparable "
    "with published ImageNet-C numbers are those of imagenet-c only."
)


@dataclass(frozen=True)
class Report:
    """What `hf_dr.evaluate` has measured; `print` shows the tables.

    Attributes:
        results: The metrics of each model on each set.
        settings: Those of the evaluation, in JSON types, as the next two.
        models: What is known of each model, and how it takes images, by the model's name.
        sets: Where each set is from, by the set's name.
    """

    results: list[Result]
    settings: dict[str, Any]
    models: dict[str, dict[str, Any]]
    sets: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Returns everything in JSON types; all metrics are shares, from 0 to 1, but nll (nats) and brier (0 to 2)."""
        rows = []
        for r in self.results:
            place = {"model": r.model, "set": r.set, "corrupted": bool(r.by_corruption), "examples": r.examples}
            row = {**place, **r.metrics}
            if r.by_corruption:
                row |= {"mce": r.mce, "errors": r.errors(), "by_corruption": r.by_corruption}
            rows.append(row)
        return {
            "hf_dr": __version__,
            "units": SHARES,
            "settings": self.settings,
            "models": self.models,
            "sets": self.sets,
            "results": rows,
        }

    def __str__(self) -> str:
        return self.to_markdown()

    def _repr_markdown_(self) -> str:
        """Shows the tables in a notebook."""
        return self.to_markdown()

    def to_markdown(self) -> str:
        """Returns the table of all results, and for each corrupted set one of the errors by corruption."""
        any_corrupted = any(r.by_corruption for r in self.results)
        head = ("model", "set", "examples", "top-1 %", "top-5 %", "NLL", "Brier", "ECE %", "calibrated ECE %", "mCE %")
        columns = len(head) if any_corrupted else len(head) - 1
        rows = [_row(r)[:columns] for r in self.results]
        parts = [markdown_table(head[:columns], rows), *self._corruption_tables()]
        if any(CALIBRATED_ECE in r.metrics for r in self.results):
            parts.append(f"{ABOUT_CALIBRATED} {inline(self.chance)}".rstrip())
        if any_corrupted:
            parts.append(_ABOUT_CORRUPTED)
        return "\n\n".join(parts) + "\n"

    @property
    def chance(self) -> str:
        """Says for each clean set what ECE its number of images alone brings."""
        found = {
            name: [r.metrics[ECE_BY_CHANCE] for r in self.results if r.set == name and ECE_BY_CHANCE in r.metrics]
            for name in dict.fromkeys(r.set for r in self.results)
        }
        return " ".join(
            f"A perfectly calibrated model would show an ECE of about {_range(values)} % on {name}, by chance."
            for name, values in found.items()
            if values
        )

    def _corruption_tables(self) -> Iterator[str]:
        for name in dict.fromkeys(r.set for r in self.results if r.by_corruption):
            corrupted = [r for r in self.results if r.set == name and r.by_corruption]
            errors = [r.errors() for r in corrupted]
            cells = [(inline(kind), *(f"{100 * by_kind[kind]:.2f}" for by_kind in errors)) for kind in errors[0]]
            yield f"Top-1 error on {inline(name)} in percent, mean over severities:"
            yield markdown_table(("corruption", *(inline(r.model) for r in corrupted)), cells)

    def save(self, folder: str | Path) -> None:
        """Writes evaluation.md, evaluation.json and, if a set was clean, reliability.png."""
        folder = expanded(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "evaluation.md", self.to_markdown())
        write_json(folder / REPORT_FILE, self.to_dict())
        order = list(self.models)
        clean = sorted((r for r in self.results if r.diagram is not None), key=lambda r: order.index(r.model))
        diagrams = {f"{r.model} on {r.set}": [r.diagram] for r in clean if r.diagram is not None}
        if diagrams:  # a row for each model, but all in one for one set
            columns = len(clean) // len({r.model for r in clean})
            figure = reliability_figure(diagrams, columns if columns > 1 else None)
            write_whole(folder / "reliability.png", as_png(figure, dpi=150))


def _range(shares: Sequence[float]) -> str:
    """Shows shares of several models in percent: one number, or from which to which."""
    low, high = f"{100 * min(shares):.1f}", f"{100 * max(shares):.1f}"
    return low if low == high else f"{low} to {high}"


def _row(result: Result) -> tuple[str, ...]:
    metrics = result.metrics
    return (
        inline(result.model),
        inline(f"{result.set}, corrupted" if result.by_corruption else result.set),
        f"{result.examples:,}",
        f"{100 * metrics['top1']:.2f}",
        f"{100 * metrics['top5']:.2f}",
        f"{metrics['nll']:.4f}",
        f"{metrics['brier']:.4f}",
        f"{100 * metrics['ece']:.2f}",
        f"{100 * metrics[CALIBRATED_ECE]:.2f}" if CALIBRATED_ECE in metrics else "",
        "" if result.mce is None else f"{100 * result.mce:.2f}",
    )

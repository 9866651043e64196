"""What was gained over `erm` by other ways to train the same student, with the spread over seeds, and whether it is shown."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from hf_dr.evaluation.gathering import BASELINE, Run, run_name
from hf_dr.evaluation.plots import accuracy_figure, as_png, reliability_figure
from hf_dr.evaluation.report import ABOUT_CALIBRATED, Report
from hf_dr.evaluation.tables import html_page, html_picture, html_table, numbers, spread
from hf_dr.files import write_json, write_whole
from hf_dr.store.findings import Students
from hf_dr.teacher.metrics import CALIBRATED_ECE, ECE_BY_CHANCE, SHARES
from hf_dr.text import counted, inline, markdown_table


class Column(NamedTuple):
    """One column of the table.

    Attributes:
        key: The name by which `Comparison.values` finds it.
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
        runs: The runs of each objective, all with the same seeds.
        report: The results of all models on one set, clean and corrupted.
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
        """The columns that have values."""
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
        """A sentence about each objective but plain training: whether these images and seeds show that it is more accurate."""
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


def _about(comparison: Comparison) -> str:
    labels = f" and, at weight {comparison.label_weight:.4g}, the labels" if comparison.label_weight else ""
    return (
        "<p>The same student, data path, optimizer and steps, by its objective: erm learns from the labels alone, reinforced "
        f"from stored answers of the teacher{labels}, kd from a teacher in memory{labels}. Mean ± standard deviation over "
        f"seeds; a gain is a change for the better. {ABOUT_CALIBRATED} {html.escape(comparison.report.chance)}</p>"
    )

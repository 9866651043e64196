"""A contact sheet: images, their replayed views, and what the teacher answered, on one PNG."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import matplotlib as mpl
import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_dr.augmentation import PARTNER
from hf_dr.errors import ConfigError
from hf_dr.replay import ReinforcedDataset
from hf_dr.schema import IMAGE_HASH, SOURCE_INDEX

TOP = 3  # classes shown of each answer
DPI = 150
# Inches. A cell is a caption, a square picture, and one bar a class.
_SIDE, _CAPTION, _BAR, _GAP, _MARGIN, _TITLE = 1.55, 0.2, 0.17, 0.14, 0.2, 0.5
_CELL = _CAPTION + _SIDE + 0.06 + TOP * _BAR
_TEXT = 7.0  # points
_INK, _FAINT, _LABEL, _OTHER, _TRACK = "#1a1a1a", "#6b6b6b", "#9ecae8", "#d4d4d4", "#f3f3f3"


def contact_sheet(
    plus: ReinforcedDataset,
    path: str | os.PathLike[str],
    *,
    rows: Sequence[int] | None = None,
    num_rows: int = 6,
    num_views: int = 6,
) -> Path:
    """Draws images beside their replayed views, each with the teacher's most probable classes; returns the file.

    Args:
        plus: The "+" dataset.
        path: The PNG to write, whole or not at all; its folder is made if need be.
        rows: Which rows of `plus` to show. Default: `num_rows` spread evenly over it.
        num_rows: How many, if `rows` is not given; no more than there are.
        num_views: Views of each, the first so many; no more than there are.

    Raises:
        ConfigError: The path does not end in .png, a number is not positive, or a row does not exist.
        ReplayError: A view cannot be replayed.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() != ".png":
        raise ConfigError(f"a contact sheet must be a .png file, got {str(path)!r}. Rename it.")
    for setting, value in (("num_rows", num_rows), ("num_views", num_views)):
        if value < 1:
            raise ConfigError(f"`{setting}` must be at least 1, got {value}. Raise it.")
    if rows is None:
        rows = np.unique(np.linspace(0, len(plus) - 1, min(num_rows, len(plus))).round().astype(int)).tolist()
    if not len(rows) or not all(0 <= row < len(plus) for row in rows):
        raise ConfigError(f"`rows` must name rows from 0 to {len(plus) - 1}, got {list(rows)}. Choose others.")
    figure = _Sheet(plus, list(rows), min(num_views, plus.num_views)).figure
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=DPI, facecolor="white")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


class _Sheet:
    """Draws the figure; all places are in inches from its top left corner."""

    def __init__(self, plus: ReinforcedDataset, rows: list[int], num_views: int) -> None:
        self.plus = plus
        self._labels = _Labels(plus)
        self._width = 2 * _MARGIN + (1 + num_views) * (_SIDE + _GAP)  # with a second gap after the originals
        self._height = _TITLE + len(rows) * (_CELL + _GAP) - _GAP + _MARGIN
        # Settings of the user's own matplotlib do not change the sheet.
        with mpl.rc_context(mpl.rcParamsDefault):
            self.figure = Figure(figsize=(self._width, self._height))
            FigureCanvasAgg(self.figure)
            self._draw_title()
            for line, row in enumerate(rows):
                top = _TITLE + line * (_CELL + _GAP)
                self._draw_original(row, _MARGIN, top)
                for view in range(num_views):
                    self._draw_view(row, view, _MARGIN + _GAP + (1 + view) * (_SIDE + _GAP), top)

    def _draw_title(self) -> None:
        p = self.plus.provenance
        ops = ", ".join(name for item in p.augmentation for name in item)
        space = self._axes(_MARGIN, 0.1, self._width - 2 * _MARGIN, _TITLE - 0.1)
        base = p.base.get("id") or "base dataset"
        self._write(space, f"{base} · {p.config_name}", 0.07, size=9.5, weight="bold")
        detail = (
            f"{p.num_views} views of each of {p.num_rows:,} images · top {p.top_k} of {p.num_classes:,} classes · {ops}"
        )
        self._write(space, detail, 0.23, colour=_FAINT)

    def _draw_original(self, row: int, left: float, top: float) -> None:
        source, label = self._labels.source[row], self._labels.of_row(row)
        self._caption(left, top, f"row {source:,}", "original")
        self._picture(left, top + _CAPTION, self.plus.example_image(row))
        if label is not None:
            space = self._axes(left, top + _CAPTION + _SIDE + 0.06, _SIDE, TOP * _BAR)
            self._write(space, self._labels.name(label), _BAR / 2, size=_TEXT + 1, weight="bold")

    def _draw_view(self, row: int, view: int, left: float, top: float) -> None:
        partner = self.plus.params(row, view).get(PARTNER, -1)
        mixed = None
        if partner >= 0:
            label = self._labels.of_source(partner)
            mixed = f"+ row {partner:,}" + ("" if label is None else f", {self._labels.name(label)}")
        self._caption(left, top, f"view {view}", mixed)
        self._picture(left, top + _CAPTION, self.plus.image(row, view))
        ids, logprobs = self.plus.teacher_answer(row, view)
        label = self._labels.of_row(row)
        for n in range(min(TOP, len(ids))):
            place = top + _CAPTION + _SIDE + 0.06 + n * _BAR
            self._bar(left, place, int(ids[n]), float(np.exp(np.float64(logprobs[n]))), int(ids[n]) == label)

    def _bar(self, left: float, top: float, label: int, probability: float, is_label: bool) -> None:
        space = self._axes(left, top, _SIDE, _BAR - 0.025)
        space.set_xlim(0, 1)
        space.set_ylim(0, 1)
        space.barh(0.5, 1, height=1, color=_TRACK)
        space.barh(0.5, min(probability, 1), height=1, color=_LABEL if is_label else _OTHER)
        number = self._text(space, f"{100 * probability:.0f} %" if probability >= 0.005 else "< 1 %", 1, 0.47, "right")
        self._text(space, self._labels.name(label), 0, 0.47, "left", room=_SIDE - self._inches(number) - 0.12)

    def _caption(self, left: float, top: float, title: str, note: str | None) -> None:
        space = self._axes(left, top, _SIDE, _CAPTION)
        head = self._text(space, title, 0, 0.5, "left", inset=0)
        if note:
            room = _SIDE - self._inches(head) - 0.08
            self._text(space, note, 1, 0.5, "right", colour=_FAINT, room=room, inset=0)

    def _picture(self, left: float, top: float, image: PIL.Image.Image) -> None:
        space = self._axes(left, top, _SIDE, _SIDE)
        # Small pictures keep their pixels; large ones are scaled down as smoothly as Pillow can.
        side = round(_SIDE * DPI)
        if max(image.size) > side:
            image = image.copy()
            image.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
        space.imshow(np.asarray(image), interpolation="nearest")
        space.set_anchor("NW")

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self._height - top - height
        axes = self.figure.add_axes(
            (left / self._width, bottom / self._height, width / self._width, height / self._height)
        )
        axes.set_axis_off()
        return axes

    def _write(self, space: Axes, text: str, down: float, **style: Any) -> None:
        """Writes a line whose middle is `down` inches below the top of the space."""
        height = space.get_position().height * self._height
        self._text(
            space, text, 0, 1 - down / height, "left", room=space.get_position().width * self._width, inset=0, **style
        )

    def _text(
        self,
        space: Axes,
        text: str,
        x: float,
        y: float,
        align: str,
        *,
        room: float | None = None,
        inset: float = 0.04,
        size: float = _TEXT,
        weight: str = "normal",
        colour: str = _INK,
    ) -> Any:
        """Writes one line, shortened to `room` inches, and returns it."""
        x += (1 - 2 * x) * inset / (space.get_position().width * self._width)
        line = space.text(
            x, y, text, ha=align, va="center", size=size, weight=weight, color=colour, transform=space.transAxes,
            parse_math=False,
        )  # fmt: skip
        kept = text
        while room is not None and len(kept) > 1 and self._inches(line) > room:
            kept = kept[:-1].rstrip()
            line.set_text(kept + "…")
        return line

    def _inches(self, line: Any) -> float:
        return line.get_window_extent(self.figure.canvas.get_renderer()).width / self.figure.dpi  # type: ignore[attr-defined]


class _Labels:
    """Rows of the base and labels of a dataset's rows."""

    def __init__(self, plus: ReinforcedDataset) -> None:
        column = plus.provenance.label_column
        named = column is not None and column in plus.plus.column_names
        wanted = [SOURCE_INDEX, IMAGE_HASH, *([column] if named else [])]
        table = plus.plus.select_columns(wanted).with_format("arrow")[:]
        usable = table.column(IMAGE_HASH).is_valid().to_numpy()
        self.source = table.column(SOURCE_INDEX).to_numpy()[usable]
        self._label = table.column(column).fill_null(-1).to_numpy()[usable] if named else None
        self._feature = plus.plus.features[column] if named else None
        self._place = {int(source): place for place, source in enumerate(self.source)}

    def of_row(self, row: int) -> int | None:
        """Label of a row of the dataset; None where there is none."""
        if self._label is None or self._label[row] < 0:
            return None
        return int(self._label[row])

    def of_source(self, source: int) -> int | None:
        """Label of a row of the base."""
        return self.of_row(self._place[source]) if source in self._place else None

    def name(self, label: int) -> str:
        """Name of a class, the first of its synonyms, or its number."""
        if isinstance(self._feature, datasets.ClassLabel) and label < self._feature.num_classes:
            return str(self._feature.int2str(label)).split(",")[0].replace("_", " ")
        return f"class {label}"

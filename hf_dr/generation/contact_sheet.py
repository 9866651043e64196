"""A contact sheet: images, their replayed views, and what the teacher answered, on one PNG."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import datasets
import matplotlib as mpl
import numpy as np
import PIL.Image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hf_dr.errors import ConfigError
from hf_dr.files import expanded, written_whole
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import opened
from hf_dr.settings import Place, check_count
from hf_dr.store.findings import FINGERPRINT_KEY
from hf_dr.teacher.signals import described
from hf_dr.text import counted, fonts_for, shown_text
from hf_dr.views.augmentation import NO_PARTNER, PARTNER, Augmentation
from hf_dr.views.ops.base import Params
from hf_dr.views.ops.colour import OPERATIONS

TOP = 3  # classes shown of each answer
DPI = 150
# Inches. A cell is a caption, a square picture, and one bar for each class.
_CAPTION = 0.34  # two lines: which view, and what was applied
_LINE = 0.2
_SIDE = 1.55
_BELOW = 0.06  # between a picture and what is under it
_BAR = 0.17
_INSET = 0.04  # of text in a bar
_CELL = _CAPTION + _SIDE + _BELOW + TOP * _BAR
_GAP = 0.14  # between cells
_MARGIN = 0.2  # around the sheet
_TITLE = 0.5  # down to the first cells
_KEY = 0.1  # side of a colour in the legend
_TEXT = 7.0  # points
_LETTERS = 300  # of a line; more have no room on any sheet
_INK = "#1a1a1a"
_FAINT = "#6b6b6b"
_TRACK = "#f3f3f3"  # behind a bar
_LABEL = "#9ecae8"  # bar of the label
_PARTNER = "#f6c28b"  # bar of the partner's label
_OTHER = "#d4d4d4"  # bar of any other class


def contact_sheet(
    plus: ReinforcedDataset | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    rows: Sequence[int] | None = None,
    num_rows: int = 6,
    num_views: int = 6,
    base: datasets.Dataset | str | os.PathLike[str] | None = None,
    name: str | None = None,
) -> Path:
    """Draws images next to their replayed views, each with the teacher's most probable classes; returns the file.

    Args:
        plus: The "+" dataset, or its folder or Hub id.
        path: The PNG to write, whole or not at all; its folder is made if need be.
        rows: Which rows of `plus` to show. Default: `num_rows` spread evenly over it.
        num_rows: How many, if `rows` is not given; no more than there are.
        num_views: How many views of each, from the first on; no more than there are.
        base: The base dataset, if `plus` is the path of an overlay; see `load_reinforced`.
        name: The configuration, if `plus` is a path.

    Raises:
        ConfigError: `plus` is not one dataset whose rows can be chosen, `path` does not end in .png, a number is not positive,
            a row does not exist, or an argument comes without the one that it belongs to.
        FormatError: See `load_reinforced`.
        ReplayError: A view cannot be replayed.
    """
    Place().check("path", path)
    path = expanded(path)
    check_sheet(path)
    check_count("num_rows", num_rows)
    check_count("num_views", num_views)
    plus = opened(plus, name, base)
    count = plus.num_reinforced
    if rows is None:
        rows = np.unique(np.linspace(0, count - 1, min(num_rows, count)).round().astype(int)).tolist()
    wanted = np.asarray(list(rows) if isinstance(rows, Collection) else rows)
    if (
        wanted.ndim != 1
        or wanted.dtype.kind not in "iu"
        or not len(wanted)
        or not (0 <= min(wanted) <= max(wanted) < count)
    ):
        raise ConfigError(f"`rows` must name rows from 0 to {count - 1}, got {rows!r:.80}. Choose others.")
    metadata = {FINGERPRINT_KEY: plus.provenance.fingerprint}
    with fonts_for([_title(plus), *(plus.class_names or ())]) as families:
        figure = _Sheet(plus, list(rows), min(num_views, plus.num_views), families).figure
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, facecolor="white", metadata=metadata)
    return path


def check_sheet(path: Path) -> None:
    """Refuses a file that a contact sheet cannot be: one that is no .png."""
    if path.suffix.lower() != ".png":
        raise ConfigError(f"a contact sheet must be a .png file, got {str(path)!r}. Rename it.")


def _title(plus: ReinforcedDataset) -> str:
    return f"{plus.provenance.base.get('id') or 'base dataset'} · {plus.provenance.config_name}"


class _Sheet:
    """Draws the figure; all places are in inches from its top left corner. `families` are further fonts, for rare letters."""

    def __init__(self, plus: ReinforcedDataset, rows: list[int], num_views: int, families: Sequence[str]) -> None:
        self.plus = plus
        self._families = ["sans-serif", *families]
        self._source_rows = plus.source_rows
        self._places = {source: place for place, source in enumerate(self._source_rows.tolist())}
        self._labels = plus.labels
        self._names = plus.class_names
        self._width = 2 * _MARGIN + (1 + num_views) * (_SIDE + _GAP)  # with a second gap after the originals
        self._height = _TITLE + len(rows) * (_CELL + _GAP) - _GAP + _MARGIN
        # Settings of the user's own matplotlib do not change the sheet.
        with mpl.rc_context(mpl.rcParamsDefault):
            self.figure = Figure(figsize=(self._width, self._height))
            self._renderer = FigureCanvasAgg(self.figure).get_renderer()
            self._draw_title()
            for line, row in enumerate(rows):
                top = _TITLE + line * (_CELL + _GAP)
                self._draw_original(row, _MARGIN, top)
                for view in range(num_views):
                    self._draw_view(row, view, _MARGIN + _GAP + (1 + view) * (_SIDE + _GAP), top)

    def _draw_title(self) -> None:
        p = self.plus.provenance
        room = self._draw_legend()
        self._text(_title(self.plus), _MARGIN, 0.17, room=room, size=9.5, weight="bold")
        kept = described(p.signal, p.top_k, p.num_classes)
        ops = ", ".join(name for item in p.augmentation for name in item)
        detail = f"{counted(p.num_views, 'view')} of each of {counted(p.num_rows, 'image')} · {kept} · {ops}"
        self._text(detail, _MARGIN, 0.33, room=self._width - 2 * _MARGIN, colour=_FAINT)

    def _draw_legend(self) -> float:
        """Draws what the bars' colours mean at the right end of the title's line; returns the inches that are left of it."""
        right = self._width - _MARGIN
        keys = []
        if self.plus.has_labels:
            partner = [("partner's label", _PARTNER)] if self.plus.augmentation.mixes else []
            keys = [("other class", _OTHER), *partner, ("label", _LABEL)]
        for text, colour in keys:  # from the right
            right -= self._text(text, right, 0.17, align="right", colour=_FAINT) + 0.04
            right -= _KEY
            self._fill(right, 0.125, _KEY, 0.09, colour)
            right -= 0.12
        return right - _MARGIN

    def _draw_original(self, row: int, left: float, top: float) -> None:
        label = self._label(row)
        self._caption(left, top, f"row {self._source_rows[row]:,}", "original")
        image = self.plus.example_image(row)
        self._picture(left, top + _CAPTION, image)
        if label is not None:
            # Right under the picture, which may be lower than its square.
            below = top + _CAPTION + _SIDE * min(1, image.height / image.width) + _BELOW
            self._text(self._class_name(label), left, below + _BAR / 2, room=_SIDE, size=_TEXT + 1, weight="bold")

    def _draw_view(self, row: int, view: int, left: float, top: float) -> None:
        params = self.plus.params(row, view)
        partner = params.get(PARTNER, NO_PARTNER)
        colours = {}  # of classes' bars
        note = None
        if partner != NO_PARTNER:
            note = f"+ row {partner:,}"
            label = self._label(self._places.get(partner))
            if label is not None:
                note += f", {self._class_name(label)}"
                colours[label] = _PARTNER
        label = self._label(row)
        if label is not None:
            colours[label] = _LABEL
        self._caption(left, top, f"view {view}", note)
        applied = _applied(self.plus.augmentation, params)
        self._text(applied, left, top + _LINE + 0.04, room=_SIDE, size=_TEXT - 1, colour=_FAINT)
        self._picture(left, top + _CAPTION, self.plus.image(row, view))
        ids, logprobs = self.plus.teacher_answer(row, view)
        for n, (class_id, logprob) in enumerate(zip(ids[:TOP].tolist(), logprobs[:TOP].tolist(), strict=True)):
            below = top + _CAPTION + _SIDE + _BELOW + n * _BAR
            self._bar(left, below, self._class_name(class_id), math.exp(logprob), colours.get(class_id, _OTHER))

    def _bar(self, left: float, top: float, name: str, probability: float, colour: str) -> None:
        height = _BAR - 0.025
        middle = top + 0.53 * height
        self._fill(left, top, _SIDE, height, _TRACK)
        self._fill(left, top, _SIDE * min(probability, 1), height, colour)
        text = f"{100 * probability:.0f} %" if probability >= 0.005 else "< 1 %"
        number = self._text(text, left + _SIDE - _INSET, middle, align="right")
        self._text(name, left + _INSET, middle, room=_SIDE - number - 0.14)

    def _caption(self, left: float, top: float, title: str, note: str | None) -> None:
        middle = top + _LINE / 2
        head = self._text(title, left, middle)
        if note:
            self._text(note, left + _SIDE, middle, align="right", colour=_FAINT, room=_SIDE - head - 0.08)

    def _picture(self, left: float, top: float, image: PIL.Image.Image) -> None:
        bottom = self._height - top - _SIDE
        place = (left / self._width, bottom / self._height, _SIDE / self._width, _SIDE / self._height)
        axes = self.figure.add_axes(place, anchor="NW")
        axes.set_axis_off()
        # Small pictures keep their pixels; large ones are scaled down as smoothly as Pillow can.
        side = round(_SIDE * DPI)
        if max(image.size) > side:
            image = image.copy()
            image.thumbnail((side, side), PIL.Image.Resampling.LANCZOS)
        axes.imshow(np.asarray(image), interpolation="nearest")

    def _fill(self, left: float, top: float, width: float, height: float, colour: str) -> None:
        corner = (left, self._height - top - height)
        inches = self.figure.dpi_scale_trans
        self.figure.add_artist(Rectangle(corner, width, height, transform=inches, color=colour, linewidth=0))

    def _text(
        self,
        text: str,
        x: float,
        middle: float,
        *,
        align: str = "left",
        room: float | None = None,
        size: float = _TEXT,
        weight: str = "normal",
        colour: str = _INK,
    ) -> float:
        """Writes one line that begins at `x`, or ends there, shortened to `room` inches; returns the inches that it takes."""
        kept = shown_text(text, _LETTERS)
        line = self.figure.text(
            x, self._height - middle, kept, ha=align, va="center", size=size, weight=weight, color=colour,
            transform=self.figure.dpi_scale_trans, parse_math=False, family=self._families,
        )  # fmt: skip

        def width() -> float:
            return line.get_window_extent(self._renderer).width / self.figure.dpi

        # Letter by letter, because only the drawn line knows its width.
        while room is not None and len(kept) > 1 and width() > room:
            kept = kept[:-1].rstrip()
            line.set_text(kept + "…")
        return width()

    def _label(self, row: int | None) -> int | None:
        """Returns the label of a row of the dataset; None where there is no such row, or no label."""
        return None if row is None or self._labels is None else int(self._labels[row])

    def _class_name(self, label: int) -> str:
        """Returns the name of a class, the first of its synonyms, or its number."""
        if self._names is None or not 0 <= label < len(self._names):
            return f"class {label}"
        return self._names[label].split(",")[0].replace("_", " ")


def _applied(augmentation: Augmentation, params: Params) -> str:
    """Returns what was done to one view, in words; what was skipped is left out."""
    words = []
    for op, keys in augmentation.single:
        own = {local: params[key] for local, key in keys.items()}
        if "level" in own:  # a policy's operations, each with its level
            levels = zip(own["op"], own["level"], strict=True)
            words += [f"{OPERATIONS[n]} {level:+d}" if level else OPERATIONS[n] for n, level in levels if n]
            continue
        size = own.get("box", ())[2:]  # of what is cropped or erased; nothing where both are 0
        is_empty = len(size) > 0 and not any(size)
        if own.get("", True) and not is_empty:  # the parameter without a name says whether a flip was drawn
            words.append(op.name)
    return ", ".join(words)

"""Means, spreads and gains over seeds, and tables of them as Markdown and HTML."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import pandas as pd

from hf_dr.evaluation.gathering import BASELINE
from hf_dr.text import inline, markdown_table, shown_text


class Numbers(TypedDict):
    """A cell in JSON: mean, standard deviation (of a sample; not there for a single seed) and how many seeds."""

    mean: float
    std: NotRequired[float]
    seeds: int


def numbers(values: pd.Series) -> Numbers:
    """Returns the numbers of a cell that has at least one value."""
    found: Numbers = {"mean": float(values.mean()), "seeds": len(values)}
    if len(values) > 1:
        found["std"] = float(values.std(ddof=1))
    return found


def spread(values: pd.Series, digits: int, scale: float = 1, sign: bool = False) -> str:
    """Returns `mean ± standard deviation` over seeds, or the value of the only one.

    `digits` is the number of decimal places; `scale` multiplies the values, 100 for percent; `sign` gives a positive mean a +.
    """
    found = numbers(values)
    deviation = f" ± {scale * found['std']:.{digits}f}" if "std" in found else ""
    return f"{scale * found['mean']:{'+' if sign else ''}.{digits}f}{deviation}"


def cell(values: pd.Series, digits: int, scale: float = 1, sign: bool = False) -> str:
    """Returns `mean ± standard deviation (how many)`, or the only value alone; see `spread`."""
    text = spread(values, digits, scale, sign)
    return f"{text} ({len(values)})" if len(values) > 1 else text


def gains(values: pd.DataFrame, objective: str) -> pd.Series:
    """Returns what an objective gains over plain training: by seed, or of the means.

    Where no seed has both, one number: the difference of their means. Empty where one of them is not there.

    Args:
        values: One metric of one row of a table: columns `objective`, `seed`, `value`.
        objective: Another than plain training.
    """
    by_seed = values.pivot(index="seed", columns="objective", values="value")
    if not {objective, BASELINE} <= set(by_seed):
        return pd.Series(dtype=float)
    paired = (by_seed[objective] - by_seed[BASELINE]).dropna()
    means = by_seed.mean()
    return paired if len(paired) else pd.Series([means[objective] - means[BASELINE]])


@dataclass
class Table:
    """A table of text, with what it shows."""

    title: str
    about: str
    head: list[str]
    rows: list[list[str]]

    def to_markdown(self) -> str:
        """Returns the table under its title."""
        rows = [list(map(inline, row)) for row in self.rows]
        return (
            f"## {inline(self.title)}\n\n{inline(self.about)}\n\n{markdown_table(list(map(inline, self.head)), rows)}"
        )

    def to_html(self) -> str:
        """Returns the same as HTML."""
        title, about = (html.escape(shown_text(text), quote=False) for text in (self.title, self.about))
        return f"<h2>{title}</h2>\n<p>{about}</p>\n{html_table(self.head, self.rows)}"


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table; its cells are text."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(shown_text(text))}</{tag}>" for text in cells) + "</tr>"

    lines = (line(head, "th"), *(line(row, "td") for row in rows))
    return "\n".join(['<div class="wide"><table>', *lines, "</table></div>"])


def html_picture(png: bytes) -> str:
    """Returns a picture that needs no file next to the page."""
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def html_page(title: str, parts: Sequence[str]) -> str:
    """Returns a page of its own; `title` is text, `parts` are HTML."""
    return _PAGE.format(title=html.escape(shown_text(title)), body="\n".join(parts))


# A table that is wider than the screen is scrolled within its own box, so that the page is not.
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }}
.wide {{ overflow-x: auto; margin: 1rem 0 }}
table {{ border-collapse: collapse; font-size: 14px }}
th, td {{ border-bottom: 1px solid #8886; padding: .3rem .6rem; text-align: right; vertical-align: bottom }}
td {{ white-space: nowrap }} td:nth-child(2):last-child {{ white-space: normal }}
th:nth-child(2):last-child, td:nth-child(2):last-child, th:first-child, td:first-child {{ text-align: left }}
img {{ max-width: 100%; margin: 1rem 0; background: #fff }}
</style>
<h1>{title}</h1>
{body}
</html>
"""

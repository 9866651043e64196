"""Numbers and words as people read them: tables, bytes, shares, and text from data inside Markdown."""

from __future__ import annotations

import contextlib
import functools
import html
import io
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# Words of letters, digits, "_", "-" and ".", which neither begin nor end with the last two; 96 characters for each.
_HUB_WORD = r"(?![.-])[A-Za-z0-9_.-]{1,96}(?<![.-])"
_HUB_ID = re.compile(f"{_HUB_WORD}/{_HUB_WORD}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = r"[^\s\"',;]"
# What must not be seen, and what stands there instead: who logs in within an address; what follows the name of a way to log
# in, unless it is a plain word; signatures in addresses; what has the form of the Hub's tokens (digits or capitals keep `hf_dr`
# and its like as they are).
_SECRETS = (
    (re.compile(r"(?<=://)[^/?#@\s]+@"), ""),
    (re.compile(rf"\b(?i:(bearer|basic))[ +]+(?={_PART}+[A-Z0-9]|[0-9]|{_PART}{{16}}){_PART}+"), r"\1 ***"),
    (re.compile(r"(?i)([?&][^=&\s]*(?:signature|token|credential|policy|key)[^=&\s]*=)[^&\s\"']+"), r"\1***"),
    (re.compile(r"\b(hf|api_org)_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,}"), r"\1_***"),
)
# An underscore between letters or digits is no markup.
_MARKUP = re.compile(r"[\\`*\[\]|$~]|_(?<![^\W_]_)|_(?![^\W_])")
_told_secrets: set[str] = set()
_SHOWN_LETTERS = 20

logger = logging.getLogger(__name__)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table, without a line break at its end."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def format_bytes(count: float) -> str:
    """Returns `1.2 GB` for 1.2e9."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:  # what is more is rounded to 1,000
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB" if count < 999.5 else f"{count:,.0f} TB"


def counted(number: int, noun: str) -> str:
    """Returns `1 view` or `2,000 views`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """Returns `99.99 %` for 0.99996: rounded down, so that only 1 reads as 100.00 %."""
    return f"{math.floor(share * 1e4 + 1e-9) / 100:.2f} %"


def is_hub_id(value: object) -> bool:
    """Whether a value is an id of the Hub with its owner, `owner/name`, by the Hub's own rules."""
    if not isinstance(value, str) or _HUB_ID.fullmatch(value) is None:
        return False
    return "--" not in value and ".." not in value and not value.endswith(".git")


def is_commit(revision: object) -> bool:
    """Whether a revision is a commit on the Hub, which stays what it is."""
    return isinstance(revision, str) and _COMMIT.fullmatch(revision) is not None


def keep_secret(token: str) -> None:
    """Makes `without_secrets` hide this token, whatever its form."""
    if len(token) >= 8:  # a shorter one is no token, and would be found in many words
        _told_secrets.add(token)


def without_secrets(text: str) -> str:
    """Returns a text, an address for example, without tokens, signatures and the name and password of who logs in."""
    for token in _told_secrets:
        text = text.replace(token, "***")
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


SECONDS_BETWEEN_LINES = 30.0
"""Time between lines about progress that no terminal shows."""
SECONDS_BEFORE_BAR = 2.0
"""Time after which a step that is mostly short shows a bar."""
MAX_TEXT = 2000
"""Characters of a text of others that are shown; a longer one is cut."""
_JOINERS = "\u200c\u200d"  # not printable by Python's rules, but parts of words and of pictograms


def shown_text(value: object, limit: int = MAX_TEXT) -> str:
    """Returns a text of others as it may be shown anywhere: on one line, of bounded length, printable.

    What is not printable (half of a surrogate pair, a control character, the start of a terminal's escape sequence, a change
    of the direction of writing) is written as its number: `\\x1b`.
    """
    text = " ".join(str(value)[: 4 * limit].split())
    text = "".join(c if c.isprintable() or c in _JOINERS else ascii(c)[1:-1] for c in text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def inline(value: object) -> str:
    """Text from data, made harmless in Markdown: it stays in its line and its cell; no HTML, link, picture, formula or
    emphasis. Underscores within a word are none, and stay readable."""
    return _MARKUP.sub(r"\\\g<0>", html.escape(shown_text(value), quote=False))


def code(value: object) -> str:
    """Text from data as code, in its line and its cell."""
    return f"`{shown_text(value).replace('`', chr(39))}`".replace("|", r"\|")


def two_columns(lines: Sequence[tuple[str, str]]) -> str:
    """Aligns names and values, which may be texts of others."""
    lines = [(shown_text(name), shown_text(value)) for name, value in lines]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in lines)


@contextlib.contextmanager
def fonts_for(texts: Iterable[str]) -> Iterator[list[str]]:
    """Gives fonts of this machine with the letters that matplotlib's own lacks, for texts that are drawn in the block.

    Letters that no font has are logged; matplotlib draws boxes for them, without its warnings.
    """
    from matplotlib.font_manager import findfont, fontManager  # here, because most of what shows texts draws none
    from matplotlib.ft2font import FT2Font

    own = FT2Font(findfont("DejaVu Sans"))
    missing = {c for c in "".join(texts) if c.isprintable() and not own.get_char_index(ord(c))}
    families = []
    for font in sorted(fontManager.ttflist, key=lambda font: font.name) if missing else ():
        if font.name.startswith("Last Resort"):  # boxes
            continue
        try:
            there = FT2Font(font.fname)
        except (OSError, RuntimeError):  # matplotlib keeps its list of fonts, and one may be gone
            continue
        found = {c for c in missing if there.get_char_index(ord(c))}
        families += [font.name] if found else []
        missing -= found
    if missing:
        letters = "".join(sorted(missing)[:_SHOWN_LETTERS])
        logger.warning(
            "No font of this machine has %s: boxes are drawn. Install one that has them, as Noto is.", letters
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield families


@functools.cache  # tqdm starts a thread for each class of bars
def _bars(kind: Any) -> tuple[Any, Any]:
    """Returns tqdm's bar with whole numbers, for a terminal, and one that says them in lines of their own."""

    class Bar(kind):
        @property
        def format_dict(self) -> dict[str, Any]:
            known: dict[str, Any] = super().format_dict
            n, total = known["n"], known["total"]
            percent = int(100 * n / total) if total else 100 * (total == 0)
            return {**known, "percent": percent, "all": "?" if total is None else f"{total:,}"}

    class Lines(Bar):
        _told: float | None = None

        def display(self, *_: Any, **__: Any) -> bool:
            # The last line stands when the bar ends, with what is said last; then it is disabled already.
            if self.n != self._told and (self.disable or self.n != self.total):
                self._told = self.n
                print(self, file=sys.stderr, flush=True)
            return True

    return Bar, Lines


def progress_bar(*arguments: Any, show: bool = True, **settings: Any) -> Any:
    """Returns tqdm's bar, or a line now and then where no terminal shows it.

    Args:
        *arguments: Arguments of `tqdm`.
        show: Whether this process shows it. TQDM_DISABLE and HF_DATASETS_DISABLE_PROGRESS_BARS hide it in any case.
        **settings: Arguments of `tqdm`. A bar that does not stay (`leave=False`) is of a step that is mostly short: it shows
            only if that takes long.
    """
    from tqdm.auto import tqdm  # here, because whoever asks for help waits for no bar

    hidden = any(
        os.environ.get(name, "").lower() not in ("", "0", "false", "no", "off")
        for name in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS")
    )
    bar, lines = _bars(tqdm)
    settings["disable"] = hidden or not show
    settings["unit_scale"] = True  # for the rate: 12.3k instead of 12345.6
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    on_terminal = in_notebook or sys.stderr.isatty()
    if not settings.get("leave", True):
        settings["delay"] = SECONDS_BEFORE_BAR if on_terminal else SECONDS_BETWEEN_LINES
    if on_terminal:
        settings["bar_format"] = "{desc}: {percent:3}%|{bar}| {n:,}/{all} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        return bar(*arguments, **settings)
    settings["leave"] = True  # a bar that has written a line also writes the last one
    settings |= {"mininterval": SECONDS_BETWEEN_LINES, "maxinterval": 2 * SECONDS_BETWEEN_LINES}
    settings["bar_format"] = "{desc}: {percent} %, {n:,} of {all}, {remaining} left, {rate_fmt}{postfix}"
    # What tqdm itself writes, to clear a bar for a text (`tqdm.write`), is for a terminal.
    return lines(*arguments, file=io.StringIO(), **settings)


def text_table(header: list[str], rows: list[list[str]], text_columns: Sequence[int] = (0,)) -> str:
    """Aligns text to the left, numbers to the right; cells may be texts of others."""
    rows = [[shown_text(cell, 200) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(header, *rows, strict=True)]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        padded = []
        for n, (cell, width) in enumerate(zip(row, widths, strict=True)):
            padded.append(cell.ljust(width) if n in text_columns else cell.rjust(width))
        lines.append(("  " + "  ".join(padded)).rstrip())
    return "\n".join(lines)

"""The errors that hf_dr raises for its users. Each message says what was expected, what was found and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

NO_GROUP = (
    r".*(server socket has failed|client socket has (failed|timed out)|waiting for clients|connectFullMesh failed|"
    r"Ping failed)"
)
"""What torch says where the processes of a launch cannot connect, which is no fault of their settings."""


class HfDrError(ValueError):
    """Base of every error that hf_dr raises for bad input."""


class ConfigError(HfDrError):
    """A setting, an op or a flag that cannot be used."""


class DataError(HfDrError):
    """The base dataset does not hold what is needed: a column, a label, an image."""


class TeacherError(HfDrError):
    """A teacher that cannot be loaded, or an ensemble whose members do not belong together."""


class FingerprintMismatchError(HfDrError):
    """The output folder was begun with other settings."""


class FormatError(HfDrError):
    """A "+" dataset that does not follow the documented format."""


class ReplayError(HfDrError):
    """A stored view cannot be replayed: another image, or parameters that do not fit it."""


class HubError(HfDrError):
    """The Hub refuses, or cannot be reached."""


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Returns `` Did you mean `x`?`` for the closest known word, or one that begins so, else the list of what is known."""
    known = sorted(known)
    word = str(word)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6) or [k for k in known if word and k.startswith(word)]
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return f" Did you mean `{close[0]}`?" if close else f" Known: {', '.join(known[:_SHOWN]) or 'none'}{more}."


_SHOWN = 20
"""Names that an error lists at most: timm has more than a thousand."""

"""What is found out about a finished configuration, kept beside its shards for the card: each tells of which run it speaks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import PIL.Image

from hf_dr.errors import FormatError
from hf_dr.files import write_whole
from hf_dr.store.schema import CONTACT_SHEET_FILE, STATISTICS_FILE, STUDENTS_FILE, VERIFICATION_FILE

FINGERPRINT_KEY = "fingerprint"
"""Where a finding has its run's fingerprint: a JSON field, or the PNG text of that name."""


@dataclass(frozen=True)
class Statistics:
    """What `hf-dr inspect` found; see `hf_dr.generation.inspection` for the meaning of the numbers.

    Attributes:
        columns: Compressed bytes by column.
        entropy: Mean entropy of the answers, nats.
        kept_mass: Mean probability of the K kept classes together.
        unmixed_views: Views compared with the labels. Where there are none, the rest is None:
        agreement: Share of them whose top-1 is the label.
        ece: Calibration error of the top-1 probability against the label.
        nll: Mean negative log-probability of the label, nats.
    """

    columns: dict[str, int]
    entropy: float
    kept_mass: float
    unmixed_views: int = 0
    agreement: float | None = None
    ece: float | None = None
    nll: float | None = None


@dataclass(frozen=True)
class Verification:
    """What `hf-dr verify` found; see `hf_dr.generation.verify.VerifyReport`."""

    ok: bool
    num_rows: int
    num_views: int
    bit_equal: float | None
    kl_mean: float | None = None
    kl_max: float | None = None
    top1_agreement: float | None = None
    tail_kl_mean: float | None = None


@dataclass(frozen=True)
class Students:
    """How students did that learnt from the dataset: a table as it shall be shown."""

    head: list[str]
    rows: list[list[str]]


_FILES: dict[type, str] = {Statistics: STATISTICS_FILE, Verification: VERIFICATION_FILE, Students: STUDENTS_FILE}
_Finding = TypeVar("_Finding", Statistics, Verification, Students)
_COMMANDS = {
    STATISTICS_FILE: "hf-dr inspect --save",
    CONTACT_SHEET_FILE: "hf-dr inspect --save",
    VERIFICATION_FILE: "hf-dr verify --save",
    STUDENTS_FILE: "hf-dr compare --save",
}


def save_finding(config: Path, fingerprint: str, finding: Statistics | Verification | Students) -> Path:
    """Writes a finding into a configuration's folder, whole or not at all, and returns its path."""
    path = config / _FILES[type(finding)]
    content = {FINGERPRINT_KEY: fingerprint, **asdict(finding)}
    write_whole(path, json.dumps(content, indent=2) + "\n")
    return path


def read_finding(config: Path, fingerprint: str, kind: type[_Finding]) -> _Finding | None:
    """Reads a finding from a configuration's folder; None where there is none.

    Raises:
        FormatError: It is malformed, or speaks of another run than that of `fingerprint`.
    """
    path = config / _FILES[kind]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} must be JSON, but reading it failed: {error}. {_again(path)}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} must hold a JSON object, found {type(content).__name__}. {_again(path)}")
    _check_fingerprint(path, content.pop(FINGERPRINT_KEY, None), fingerprint)
    known = {field.name: field for field in fields(kind)}
    for name in content.keys() - known.keys():
        raise FormatError(f"{path} must hold {', '.join(known)}, found `{name}`. {_again(path)}")
    for name, field in known.items():
        value = content.get(name, None if field.default is MISSING else field.default)
        if not _TYPES[str(field.type)](value):
            raise FormatError(f"`{name}` in {path} must be {field.type}, found {value!r:.80}. {_again(path)}")
    return kind(**content)


def has_contact_sheet(config: Path, fingerprint: str) -> bool:
    """Whether a configuration's folder holds its picture.

    Raises:
        FormatError: It is no PNG, or shows another run than that of `fingerprint`.
    """
    path = config / CONTACT_SHEET_FILE
    try:
        with PIL.Image.open(path, formats=["PNG"]) as image:
            found = image.info.get(FINGERPRINT_KEY)
    except FileNotFoundError:
        return False
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise FormatError(f"{path} must be a PNG, but reading it failed: {error}. {_again(path)}") from error
    _check_fingerprint(path, found, fingerprint)
    return True


def _check_fingerprint(path: Path, found: object, fingerprint: str) -> None:
    if found != fingerprint:
        raise FormatError(
            f"{path} must be of the run {fingerprint[:12]} beside it, found one of {str(found)[:12]!r}. {_again(path)}"
        )


def _again(path: Path) -> str:
    return f"Write it anew (`{_COMMANDS[path.name]}`), or delete it."


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_float(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": _is_int,
    "float": _is_float,
    "float | None": lambda value: value is None or _is_float(value),
    "str": lambda value: isinstance(value, str),
    "dict[str, int]": lambda value: isinstance(value, dict) and all(map(_is_int, value.values())),
    "list[str]": _is_texts,
    "list[list[str]]": lambda value: isinstance(value, list) and all(map(_is_texts, value)),
}

"""What is found out about a finished configuration, kept next to its shards for the card; each names the run it is about."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import PIL.Image

from hf_dr.errors import FormatError
from hf_dr.files import write_json
from hf_dr.store.json_files import Count, FiniteFloat, read_object, validated
from hf_dr.store.schema import CONTACT_SHEET_FILE, STATISTICS_FILE, STUDENTS_FILE, VERIFICATION_FILE
from hf_dr.teacher.metrics import NUM_BINS
from hf_dr.teacher.names import IMAGE_TAIL, SAMPLED, TOPK

FINGERPRINT_KEY = "fingerprint"
"""Where a finding has its run's fingerprint: a JSON field, or the PNG text of that name."""


@dataclass(frozen=True)
class Statistics:
    """What `hf-dr inspect` found; see `hf_dr.generation.inspection.Inspection` and its `labels`.

    `unmixed_views` are those that are compared with the labels. Where there are none, what follows is None.
    """

    columns: dict[str, Count]
    entropy: FiniteFloat
    kept_mass: FiniteFloat
    unmixed_views: Count = 0
    agreement: FiniteFloat | None = None
    ece: FiniteFloat | None = None
    nll: FiniteFloat | None = None

    def lines(self, num_classes: int, signal: str) -> list[tuple[str, str]]:
        """Returns names and values of what the teacher's answers are like, for the card and for `print`."""
        most = math.log(num_classes)
        lines = [
            ("entropy", f"{self.entropy:.3f} nats of at most {most:.3f} ({_REST[signal]})"),
            ("kept mass", f"{self.kept_mass:.4f}"),
        ]
        if self.agreement is not None and self.ece is not None:
            lines.append(
                ("top-1 is the label", f"{100 * self.agreement:.2f} % of {self.unmixed_views:,} unmixed views")
            )
            lines.append(("calibration error", f"{self.ece:.4f} (ECE, {NUM_BINS} bins)"))
            lines.append(("NLL of the label", "not known" if self.nll is None else f"{self.nll:.4f} nats"))
        return lines


_REST = {
    TOPK: "the rest of the mass spread evenly",
    IMAGE_TAIL: "the rest of the mass as in the image's tail",
    SAMPLED: "of the drawn classes",
}


@dataclass(frozen=True)
class Verification:
    """What `hf-dr verify` found; see `hf_dr.generation.verify.VerifyReport`."""

    ok: bool
    num_rows: Count
    num_views: Count
    bit_equal: FiniteFloat | None
    kl_mean: FiniteFloat | None = None
    kl_max: FiniteFloat | None = None
    top1_agreement: FiniteFloat | None = None
    tail_kl_mean: FiniteFloat | None = None


@dataclass(frozen=True)
class Students:
    """How students that learned from the dataset did: a table, as it is shown."""

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
    write_json(path, {FINGERPRINT_KEY: fingerprint, **asdict(finding)})
    return path


def read_finding(config: Path, fingerprint: str, kind: type[_Finding]) -> _Finding | None:
    """Reads a finding of the run of `fingerprint` from a configuration's folder; None where there is none."""
    path = config / _FILES[kind]
    try:
        content = read_object(path, _again(path))
    except FileNotFoundError:
        return None
    _check_fingerprint(path, content.pop(FINGERPRINT_KEY, None), fingerprint)
    return validated(kind, content, str(path), _again(path))


def has_contact_sheet(config: Path, fingerprint: str) -> bool:
    """Whether a configuration's folder holds the picture of the run of `fingerprint`; another one is refused."""
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
            f"{path} must be of the run {fingerprint[:12]} next to it, found one of {str(found)[:12]!r}. {_again(path)}"
        )


def _again(path: Path) -> str:
    return f"Write it again (`{_COMMANDS[path.name]}`), or delete it."

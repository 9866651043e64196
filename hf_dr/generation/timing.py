"""What a source of answers measures of itself."""

from __future__ import annotations

from dataclasses import dataclass

from hf_dr.generation.labelling import ViewColumns


@dataclass(frozen=True)
class Timing:
    """What some spans took, for the estimate of a whole run.

    Attributes:
        columns: Of the timed spans.
        seconds_augment: For making one view, on one core; where an accelerator makes it, for decoding and drawing alone.
        seconds_teacher: For one answer, on one core or accelerator, with all else that the accelerator does for it.
    """

    columns: list[ViewColumns]
    seconds_augment: float
    seconds_teacher: float

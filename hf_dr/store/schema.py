"""What a "+" dataset is on disk: names of columns and files, versions, bounds. Settings need them without torch.

Layout of a folder or Hub repository (the format's contract; see README.md):

    README.md                                card; its YAML names the configs
    <config>/reinforcement.json              provenance
    <config>/<split>-00000-of-00012.parquet  shards
    <config>/statistics.json, ...            findings for the card, where there are any
"""

from __future__ import annotations

import re

SCHEMA_VERSION = 4
"""Raised whenever a reader of the former version would misread a dataset; golden datasets keep all readable.

New datasets are of version 4: the horizontal pass of a resize comes first whatever Pillow is installed, rows without
reinforcement hold lists of nothing in place of null ones, float16 columns are encoded so that every reader of Parquet opens
them, and each shard carries digests of its columns. Versions 1 to 3 are still read: 2 has stored partners, 3 candidates or
another signal than topk."""
EXTENDED_FROM = "extended_from"
"""Key of the provenance's `teacher` where members were added to a dataset: what it was before, with `num_members`, N: the
stored top-K answers stand for the first N of `members`, and the others were asked and averaged in."""
STORED_PARTNERS = "stored"
"""The `mixing_scope` of a dataset whose views bring their partner's parameters along (version 2, see `mixing_scope`)."""
MIXING_SCOPES = ("dataset", "shard", STORED_PARTNERS)
KEEP = {
    "low_entropy": "the lowest entropy of the teacher's answer",
    "high_entropy": "the highest entropy of the teacher's answer",
    "low_cross_entropy": "the lowest cross-entropy of the teacher's answer to the label",
    "high_cross_entropy": "the highest cross-entropy of the teacher's answer to the label",
}
"""Which of an example's candidate views are stored: those with ..."""

SOURCE_INDEX = "source_index"
IMAGE_HASH = "image_hash"
VIEWS_HASH = "views_hash"
TEACHER_IDS = "teacher_ids"
TEACHER_LOGPROBS = "teacher_logprobs"
TAIL_IDS = "tail_ids"
TAIL_LOGPROBS = "tail_logprobs"
AUG_PREFIX = "aug_"

PROVENANCE_FILE = "reinforcement.json"
# What was found out about a finished configuration, for its card; all but the picture are JSON with its fingerprint.
STATISTICS_FILE = "statistics.json"
VERIFICATION_FILE = "verification.json"
STUDENTS_FILE = "students.json"
CONTACT_SHEET_FILE = "contact_sheet.png"
LICENSES = ", "
"""Stands between several licences of one base."""
PUBLISHED_FILES = (PROVENANCE_FILE, STATISTICS_FILE, VERIFICATION_FILE, STUDENTS_FILE, CONTACT_SHEET_FILE)
"""What a configuration's folder may hold next to its shards, for readers; only the provenance must be there."""
EXPORT_FILES = ("export.json", "sizes.json")
"""What only an export for WebDataset has next to its provenance: the SHA-256 of each shard, so that it can be continued and
checked, and the number of examples in each, as open_clip reads it."""
METADATA_KEY = b"hf_dr"
"""Key of a shard's Parquet metadata under which its fingerprint and skipped rows stand, as JSON."""


def is_reserved(column: str) -> bool:
    """Whether a column name belongs to the reinforcement."""
    own = (SOURCE_INDEX, IMAGE_HASH, VIEWS_HASH, TEACHER_IDS, TEACHER_LOGPROBS, TAIL_IDS, TAIL_LOGPROBS)
    return column in own or column.startswith(AUG_PREFIX)


MAX_SHARDS = 99_999
"""Files of a configuration: what the five digits in their names count."""


def shard_name(split: str, index: int, count: int) -> str:
    """Returns the file name of a shard: `train-00000-of-00012.parquet`."""
    return f"{split}-{index:05d}-of-{count:05d}.parquet"


_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")


def is_safe_name(name: object) -> bool:
    """Whether a config or split name is usable as a folder and file name, and on the Hub."""
    return isinstance(name, str) and _SAFE_NAME.fullmatch(name) is not None and ".." not in name

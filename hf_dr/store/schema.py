"""What a "+" dataset is on disk: column names and types, file names, provenance and fingerprint.

Layout of a folder or Hub repository (the format's contract; see README.md):

    README.md                                card; its YAML names the configs
    <config>/reinforcement.json              provenance
    <config>/<split>-00000-of-00012.parquet  shards
    <config>/statistics.json, ...            findings for the card, where there are any
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
from datasets import Features, List, Value

from hf_dr.teacher.signals import IMAGE_TAIL, TOPK, tail_size
from hf_dr.teacher.topk import id_dtype
from hf_dr.views.augmentation import PARTNER, Augmentation
from hf_dr.views.ops.base import Param

SCHEMA_VERSION = 3
"""Raised whenever a reader of the former version would misread a dataset; golden datasets keep all readable.

A dataset is written in the first version that can say it: 3 where its views were chosen among candidates or have another
`signal` than `topk`, 2 where the partners' parameters are stored, else 1. No version has what both 2 and 3 are for."""
EXTENDED_FROM = "extended_from"
"""Key of the provenance's `teacher` where members were added to a dataset: what it was before, with `num_members`, the first
so many of `members`. Their stored top-K answers stand for them; the others were asked and averaged in."""
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
PUBLISHED_FILES = (PROVENANCE_FILE, STATISTICS_FILE, VERIFICATION_FILE, STUDENTS_FILE, CONTACT_SHEET_FILE)
"""What a configuration's folder may hold beside its shards, for readers; only the provenance must be there."""
METADATA_KEY = b"hf_dr"
"""Key of a shard's Parquet metadata under which its fingerprint and skipped rows stand, as JSON."""


def is_reserved(column: str) -> bool:
    """Whether a column name belongs to the reinforcement."""
    own = (SOURCE_INDEX, IMAGE_HASH, VIEWS_HASH, TEACHER_IDS, TEACHER_LOGPROBS, TAIL_IDS, TAIL_LOGPROBS)
    return column in own or column.startswith(AUG_PREFIX)


def reinforcement_features(
    augmentation: Augmentation,
    num_views: int,
    top_k: int,
    num_classes: int,
    *,
    stored_partners: bool = False,
    signal: str = TOPK,
) -> Features:
    """Returns the columns that a reinforcement adds to the base's, in their order.

    Args:
        augmentation: Its parameters become the `aug_*` columns.
        num_views: V, the length of every list column.
        top_k: K, the classes kept for each view.
        num_classes: C; decides whether ids are uint16 or uint32.
        stored_partners: Whether the partners' own parameters are stored as well, in `aug_partner_*` columns.
        signal: What is stored of each answer (`hf_dr.teacher.signals`); `topk_image_tail` adds a `tail_*` cell to each row.
    """
    params = dict(augmentation.params)
    if stored_partners:
        params |= {f"{PARTNER}_{name}": param for name, param in augmentation.partner_params.items()}

    def views_of(value: Any) -> List:
        return List(value, length=num_views)

    def stored(param: Param) -> List:
        value = Value(param.dtype)
        return views_of(value if param.length is None else List(value, length=param.length))

    id_value, tails = Value(id_dtype(num_classes).name), {}
    if signal == IMAGE_TAIL:
        size = tail_size(num_classes)
        tails = {TAIL_IDS: List(id_value, length=size), TAIL_LOGPROBS: List(Value("float16"), length=size)}
    return Features(
        {
            SOURCE_INDEX: Value("int64"),
            IMAGE_HASH: Value("uint64"),
            VIEWS_HASH: Value("uint64"),
            TEACHER_IDS: views_of(List(id_value, length=top_k)),
            TEACHER_LOGPROBS: views_of(List(Value("float16"), length=top_k)),
            **tails,
            **{AUG_PREFIX + name: stored(param) for name, param in params.items()},
        }
    )


MAX_SHARDS = 99_999
"""Files of a configuration: what the five digits in their names count."""


def shard_name(split: str, index: int, count: int) -> str:
    """Returns the file name of a shard: `train-00000-of-00012.parquet`."""
    return f"{split}-{index:05d}-of-{count:05d}.parquet"


_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")


def is_safe_name(name: str) -> bool:
    """Whether a config or split name is usable as a folder and file name, and on the Hub."""
    return _SAFE_NAME.fullmatch(name) is not None and ".." not in name


def combine_hashes(view_hashes: np.ndarray) -> int:
    """Returns the row's `views_hash` for the pixel hashes of its V views (uint64), in view order."""
    return int.from_bytes(hashlib.blake2b(view_hashes.astype("<u8").tobytes(), digest_size=8).digest(), "little")

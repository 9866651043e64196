"""The columns that a reinforcement adds to a dataset, with their types, and the hash over the views of a row."""

from __future__ import annotations

import hashlib

import numpy as np
from datasets import Features, List, Value

from hf_dr.store import schema
from hf_dr.teacher.names import IMAGE_TAIL, TOPK
from hf_dr.teacher.signals import tail_size
from hf_dr.teacher.topk import id_dtype
from hf_dr.views.augmentation import PARTNER, Augmentation


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

    id_value, logprob = Value(id_dtype(num_classes).name), Value("float16")
    columns = {
        schema.SOURCE_INDEX: Value("int64"),
        schema.IMAGE_HASH: Value("uint64"),
        schema.VIEWS_HASH: Value("uint64"),
        schema.TEACHER_IDS: List(List(id_value, length=top_k), length=num_views),
        schema.TEACHER_LOGPROBS: List(List(logprob, length=top_k), length=num_views),
    }
    if signal == IMAGE_TAIL:
        size = tail_size(num_classes)
        columns |= {schema.TAIL_IDS: List(id_value, length=size), schema.TAIL_LOGPROBS: List(logprob, length=size)}
    for name, param in params.items():
        value = Value(param.dtype)
        stored = value if param.length is None else List(value, length=param.length)
        columns[schema.AUG_PREFIX + name] = List(stored, length=num_views)
    return Features(columns)


def combine_hashes(view_hashes: np.ndarray) -> int:
    """Returns the row's `views_hash` for the pixel hashes of its V views (uint64), in view order."""
    return int.from_bytes(hashlib.blake2b(view_hashes.astype("<u8").tobytes(), digest_size=8).digest(), "little")

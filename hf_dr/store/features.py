"""The columns that a reinforcement adds to a dataset, with their types, and the hash over the views of a row."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from datasets import Features, List, Value

from hf_dr.store.schema import (
    AUG_PREFIX,
    IMAGE_HASH,
    SOURCE_INDEX,
    TAIL_IDS,
    TAIL_LOGPROBS,
    TEACHER_IDS,
    TEACHER_LOGPROBS,
    VIEWS_HASH,
)
from hf_dr.teacher.names import IMAGE_TAIL, TOPK
from hf_dr.teacher.signals import tail_size
from hf_dr.teacher.topk import id_dtype
from hf_dr.views.augmentation import PARTNER, Augmentation
from hf_dr.views.ops.base import Param


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

    id_value = Value(id_dtype(num_classes).name)
    tails = {}
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


def combine_hashes(view_hashes: np.ndarray) -> int:
    """Returns the row's `views_hash` for the pixel hashes of its V views (uint64), in view order."""
    return int.from_bytes(hashlib.blake2b(view_hashes.astype("<u8").tobytes(), digest_size=8).digest(), "little")

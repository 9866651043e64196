"""Refuses what the configuration of a classifier from elsewhere may not ask for: all memory, other files, somebody's code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

from hf_dr.errors import TeacherError

# A configuration from elsewhere could ask for any number, and a dict of names is made before weights are looked at.
MAX_CLASSES = 1 << 20
# Arguments of timm.create_model that bring in other files.
_TIMM_FILES = frozenset({"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"})
# No classifier has more; a number from elsewhere would be built before anybody looks at the weights.
_MAX_LAYERS = 1000
_LAYER_KEYS = ("layers", "depth", "blocks", "stages")


def check_config(name: str, config: dict[str, Any]) -> None:
    """Refuses what would take all memory, or read other files, before anything is built of it."""
    for key in ("num_labels", "num_classes"):
        count = config.get(key)
        fits = count is None or (type(count) is int and 0 < count <= MAX_CLASSES)
        _expect(fits, name, key, f"be from 1 to {MAX_CLASSES}", repr(count))
    arguments = config.get("model_args") or {}
    harmless = isinstance(arguments, dict) and _TIMM_FILES.isdisjoint(arguments)
    expected = "be settings of its architecture, which may name no files or weights"
    _expect(harmless, name, "model_args", expected, repr(arguments))
    _check_sizes(name, config)
    implementation = config.get("attn_implementation", config.get("_attn_implementation"))
    # Another one is code of somebody else at the Hub.
    expected = "be one of transformers' own"
    _expect("/" not in str(implementation), name, "attn_implementation", expected, repr(implementation))
    architecture = config.get("architecture", "")
    _expect(":" not in str(architecture), name, "architecture", "be one of timm's own", repr(architecture))


def _check_sizes(name: str, config: dict[str, Any]) -> None:
    """Refuses a number of layers, or a width, that would take hours or all memory to build."""
    buildable = "have a size that can be built"

    def walk(key: str, value: Any, most: int) -> None:
        if isinstance(value, dict):
            for inner, deeper in value.items():
                most_here = _MAX_LAYERS if any(word in str(inner).lower() for word in _LAYER_KEYS) else MAX_CLASSES
                # `id2label` and its like have a place for each class.
                if inner not in ("id2label", "label2id", "label_names"):
                    walk(str(inner), deeper, most_here)
        elif isinstance(value, (list, tuple)):
            _expect(len(value) <= MAX_CLASSES, name, key, buildable, f"{len(value):,} values")
            for deeper in value:
                walk(key, deeper, most)
        elif isinstance(value, int) and not isinstance(value, bool):
            _expect(abs(value) <= most, name, key, buildable, f"{value:,}")

    walk("", config, MAX_CLASSES)


def _expect(holds: bool, name: str, key: str, expected: str, found: str) -> None:
    if not holds:
        raise TeacherError(
            f"`{key}` in the config.json of {name!r} must {expected}, found {found:.80}. Correct it, or name another model."
        )


def check_index(name: str, source: str, revision: str) -> None:
    """Refuses weights in parts some of which are pickles, or lie elsewhere."""
    path = cached_file(
        source,
        SAFE_WEIGHTS_INDEX_NAME,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return
    try:
        files = set(json.loads(Path(path).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise TeacherError(
            f"the {SAFE_WEIGHTS_INDEX_NAME} of {name!r} must tell the file of each weight, but: {error!r:.200}. Save it again."
        ) from error
    for file in files:
        if not (isinstance(file, str) and re.fullmatch(r"[\w.-]+\.safetensors", file, re.ASCII)):
            raise TeacherError(
                f"the weights of {name!r} must all be safetensors files of its own, but its index names {file!r:.80}. Name "
                "another model."
            )

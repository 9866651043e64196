"""How a "+" dataset was made: `reinforcement.json`, its fingerprint, and the check of the columns against it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Features

from hf_dr.errors import ConfigError, FormatError, did_you_mean
from hf_dr.files import write_whole
from hf_dr.store.schema import (
    EXTENDED_FROM,
    KEEP,
    MAX_SHARDS,
    MIXING_SCOPES,
    PROVENANCE_FILE,
    SCHEMA_VERSION,
    STORED_PARTNERS,
    is_safe_name,
    reinforcement_features,
    shard_name,
)
from hf_dr.teacher.signals import SIGNALS, TOPK
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.resizing import HORIZONTAL, PILLOW_13


def check_columns(features: Features, provenance: Provenance, where: str) -> Augmentation:
    """Checks that a dataset has the reinforcement's columns, each of its type; returns the augmentation they belong to.

    Raises:
        FormatError: They do not follow the format; `where` names them in the message.
        ConfigError: The provenance has an op that does not exist.
    """
    augmentation = provenance.build_augmentation()
    if provenance.candidates is not None and augmentation.mixes:
        raise FormatError(
            f"{where} must have no `candidates` where views mix, found {provenance.candidates}: partners are matched by view "
            "number. Fetch or make it again."
        )
    expected = reinforcement_features(
        augmentation,
        provenance.num_views,
        provenance.top_k,
        provenance.num_classes,
        stored_partners=provenance.mixing_scope == STORED_PARTNERS,
        signal=provenance.signal,
    )
    for name, feature in expected.items():
        if name not in features:
            raise FormatError(f"{where} must have the column `{name}`, found {list(features)}. Is it one?")
        if features[name] != feature:
            raise FormatError(
                f"column `{name}` must be {feature}, found {features[name]} in {where}. The file or its card's features are "
                "damaged."
            )
    return augmentation


# What describes a run but does not determine its bytes: the same weights, or the same rows, under another name.
_DESCRIPTIVE = frozenset({"id", "revision", "license", "config", "skipped_rows", "fingerprint", "created_with"})


@dataclass(frozen=True)
class Provenance:
    """How a "+" dataset was made: `reinforcement.json`.

    Attributes:
        config_name: Folder of the shards and name under which `load_dataset` finds them.
        split: Split of the base dataset that was reinforced.
        augmentation: The ordered ops with all their settings.
        num_views: V.
        top_k: K.
        num_classes: C, the classes over which the teacher answers.
        seed: Seed of the parameters and matchings.
        shard_size: Examples in a shard (the last has the rest).
        num_rows: Rows of the dataset.
        overlay: Whether the images are left out.
        image_column: Column of the base that holds the images.
        label_column: Column of the base that holds the labels, or None.
        mixing_scope: Where partners come from and what they show: matched over the whole `dataset` or within a `shard`, in
            both cases the partner's own view of the same number; `stored`: any row, with parameters drawn for this view
            alone and stored beside it (`aug_partner_*`).
        on_bad_image: `error` or `skip`.
        base: Identity of the base dataset: `id`, `config`, `revision`, `content_hash`.
        teacher: `Teacher.provenance()`.
        library_versions: Of the libraries that decide pixels and answers.
        skipped_rows: Rows whose image could not be decoded.
        created_with: Version of hf_dr.
        candidates: `num` views were drawn of each example, and the best `num_views` by the criterion `keep` (one of `KEEP`)
            are stored in the order in which they were drawn; None where all were stored.
        signal: What is stored of each answer (`hf_dr.teacher.signals`).
    """

    config_name: str
    split: str
    augmentation: list[dict[str, dict[str, Any]]]
    num_views: int
    top_k: int
    num_classes: int
    seed: int
    shard_size: int
    num_rows: int
    overlay: bool
    image_column: str
    label_column: str | None
    mixing_scope: str
    on_bad_image: str
    base: dict[str, Any]
    teacher: dict[str, Any]
    library_versions: dict[str, str]
    created_with: str
    skipped_rows: list[int] = field(default_factory=list)
    schema_version: int = 1
    candidates: dict[str, Any] | None = None
    signal: str = TOPK

    def build_augmentation(self) -> Augmentation:
        """Returns the ops that made the views, with the arithmetic of their time.

        Raises:
            ConfigError: There is no such op, or a setting is impossible.
        """
        # Up to format 3 Pillow chose which pass of a resize comes first, and those datasets were made with Pillow 13.
        return Augmentation.from_list(self.augmentation, passes=PILLOW_13 if self.schema_version <= 3 else HORIZONTAL)

    @property
    def num_candidates(self) -> int:
        """Views drawn of each example, of which `num_views` are stored."""
        return self.num_views if self.candidates is None else int(self.candidates["num"])

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_rows // self.shard_size)

    @property
    def shard_names(self) -> list[str]:
        """File names of all shards, in order."""
        return [shard_name(self.split, i, self.num_shards) for i in range(self.num_shards)]

    def shard_range(self, index: int) -> range:
        """Returns the rows of a shard."""
        return range(index * self.shard_size, min((index + 1) * self.shard_size, self.num_rows))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that determines the bytes of the columns."""
        text = json.dumps(_determining(self.to_dict()), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def differences(self, other: Provenance) -> list[str]:
        """Returns a line for each determining field in which two runs differ: `num_views: 4 there, 8 here`."""
        there, here = _flatten(_determining(self.to_dict())), _flatten(_determining(other.to_dict()))
        lines = []
        for key in sorted(there.keys() | here.keys()):
            a, b = there.get(key, "absent"), here.get(key, "absent")
            if json.dumps(a, sort_keys=True) != json.dumps(
                b, sort_keys=True
            ):  # as the fingerprint compares: 1 is not 1.0
                lines.append(f"{key}: {a} there, {b} here")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields in JSON types; an optional one only where it says something."""
        return {key: value for key, value in self.__dict__.items() if key not in _OPTIONAL or value != _OPTIONAL[key]}

    def write(self, folder: Path) -> None:
        """Writes `reinforcement.json` into the config's folder, whole or not at all."""
        text = json.dumps({**self.to_dict(), "fingerprint": self.fingerprint}, indent=2) + "\n"
        write_whole(folder / PROVENANCE_FILE, text)

    @classmethod
    def read(cls, folder: Path) -> Provenance:
        """Reads and checks `reinforcement.json` of a config's folder.

        Raises:
            FormatError: It is missing, malformed, of a later version, or does not match its own fingerprint.
        """
        path = folder / PROVENANCE_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FormatError(
                f'a "+" dataset must hold {PROVENANCE_FILE}, found none in {folder}. Name the folder of one '
                "configuration."
            ) from None
        except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, too long a number, too deep
            raise FormatError(
                f"{path} must be JSON, but reading it failed: {error}. Fetch or write it again."
            ) from error
        return cls.from_dict(content, str(path))

    @classmethod
    def from_dict(cls, content: Any, where: str) -> Provenance:
        """Checks the parsed content of `reinforcement.json`; `where` names it in messages.

        Raises:
            FormatError: See `read`.
        """
        if not isinstance(content, dict):
            raise FormatError(f"{where} must hold a JSON object, found {type(content).__name__}.")
        version = content.get("schema_version")
        if version not in range(1, SCHEMA_VERSION + 1):
            raise FormatError(
                f"{where} must be of schema version 1 to {SCHEMA_VERSION}, found {version!r}. "
                "A later version needs a later hf_dr: pip install -U hf-dr."
            )
        for key, expected in _TYPES.items():
            if key not in content:
                raise FormatError(f"{where} must have the field `{key}`, found none. Fetch or write it again.")
            value = content[key]
            if not isinstance(value, expected) or (isinstance(value, bool) and expected is int):
                raise FormatError(f"`{key}` in {where} must be of type {_type_name(expected)}, found {value!r:.80}.")
        for key, low, high in (
            ("num_views", 1, 1 << 20), ("num_classes", 1, 1 << 32), ("top_k", 1, content["num_classes"]),
            ("num_rows", 1, 1 << 40), ("shard_size", max(1, -(-content["num_rows"] // MAX_SHARDS)), 1 << 40),
            ("seed", 0, (1 << 63) - 1),
        ):  # fmt: skip
            if not low <= content[key] <= high:
                raise FormatError(f"`{key}` in {where} must be from {low} to {high}, found {content[key]}.")
        scopes = MIXING_SCOPES[2:] if version == 2 else MIXING_SCOPES[:2]
        if content["mixing_scope"] not in scopes:
            raise FormatError(
                f"`mixing_scope` in {where}, of schema version {version}, must be {' or '.join(scopes)}, found "
                f"{content['mixing_scope']!r:.80}. Fetch or write it again."
            )
        optional = {key: content[key] for key in _OPTIONAL if key in content}
        if bool(optional) != (version == 3):
            raise FormatError(
                f"{where} must be of schema version 3 if it has the field {' or '.join(map(repr, _OPTIONAL))}, and only then, "
                f"found version {version} with {', '.join(optional) or 'none'}. Fetch or write it again."
            )
        if "candidates" in optional and not _is_selection(optional["candidates"], content["num_views"]):
            raise FormatError(
                f"`candidates` in {where} must have a `num` above {content['num_views']} and a `keep` of {', '.join(KEEP)}, "
                f"found {optional['candidates']!r:.80}. Fetch or write it again."
            )
        if optional.get("signal", SIGNALS[1]) not in SIGNALS[1:]:
            raise FormatError(
                f"`signal` in {where} must be {' or '.join(SIGNALS[1:])}, or left out, found {optional['signal']!r:.80}. Fetch "
                "or write it again."
            )
        for key in ("config_name", "split"):
            if not is_safe_name(content[key]):
                raise FormatError(f"`{key}` in {where} must be a plain name, found {content[key]!r:.80}.")
        skipped = content["skipped_rows"]
        if not all(type(row) is int and 0 <= row < content["num_rows"] for row in skipped) or skipped != sorted(
            set(skipped)
        ):
            raise FormatError(
                f"`skipped_rows` in {where} must be rows below {content['num_rows']}, found {skipped!r:.80}. List each "
                "once, in order; fetch or write it again."
            )
        for key, ok, expected in (
            ("augmentation", all(_is_op(item) for item in content["augmentation"]), "ops, each with its settings"),
            ("library_versions", all(isinstance(v, str) for v in content["library_versions"].values()), "texts"),
            ("teacher.members", _is_members(content["teacher"].get("members", [])), "a list of members"),
            ("teacher.extended_from", _is_extended(content["teacher"]), "an ensemble with fewer members each time"),
        ):
            if not ok:
                raise FormatError(f"`{key}` in {where} must be {expected}, found others. Fetch or write it again.")
        provenance = cls(**{key: content[key] for key in _TYPES}, **optional)
        try:
            fingerprint = provenance.fingerprint
        except RecursionError as error:
            raise FormatError(f"{where} must not be nested that deeply. Restore it.") from error
        if content.get("fingerprint") != fingerprint:
            raise FormatError(f"{where} does not match its own fingerprint: it was edited or damaged. Restore it.")
        return provenance


_NONE = type(None)


_TYPES: dict[str, Any] = {
    "schema_version": int, "config_name": str, "split": str, "augmentation": list, "num_views": int, "top_k": int,
    "num_classes": int, "seed": int, "shard_size": int, "num_rows": int, "overlay": bool, "image_column": str,
    "label_column": (str, _NONE), "mixing_scope": str, "on_bad_image": str, "base": dict, "teacher": dict,
    "library_versions": dict, "created_with": str, "skipped_rows": list,
}  # fmt: skip


# Of version 3, and what they are where the file does not have them.
_OPTIONAL: dict[str, Any] = {"candidates": None, "signal": TOPK}


def _is_selection(value: Any, num_views: int) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"num", "keep"}
        and type(value["num"]) is int
        and value["num"] > num_views
        and isinstance(value["keep"], str)
        and value["keep"] in KEEP
    )


def _is_op(item: Any) -> bool:
    return isinstance(item, dict) and len(item) == 1 and all(isinstance(settings, dict) for settings in item.values())


def _is_members(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(member, dict) for member in value)


def _is_extended(teacher: dict[str, Any]) -> bool:
    """Whether what an ensemble was extended from, if anything, had fewer of its members, and so on."""
    members = teacher.get("members")
    count = len(members) if isinstance(members, list) else 0
    while (teacher := teacher.get(EXTENDED_FROM)) is not None:  # type: ignore[assignment]
        earlier = teacher.get("num_members") if isinstance(teacher, dict) else None
        if type(earlier) is not int or not 0 < earlier < count:
            return False
        count = earlier
    return True


def _type_name(expected: Any) -> str:
    return " or ".join(t.__name__ for t in (expected if isinstance(expected, tuple) else (expected,)))


def _determining(value: Any) -> Any:
    """Drops what only describes, at every depth below the augmentation's settings too (no op has such a setting)."""
    if isinstance(value, dict):
        return {key: _determining(v) for key, v in value.items() if key not in _DESCRIPTIVE}
    if isinstance(value, list):
        return [_determining(v) for v in value]
    return value


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    items: Any
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        items = enumerate(value)
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, v in items:
        flat.update(_flatten(v, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def find_config(folder: Path, name: str | None = None) -> Path:
    """Returns the folder of one configuration of a local "+" dataset.

    Raises:
        FormatError: The folder holds no "+" dataset.
        ConfigError: The configuration does not exist, or none is named and there are several.
    """
    if name is None and (folder / PROVENANCE_FILE).is_file():
        return folder  # the configuration's own folder was named
    return folder / choose_config(name, sorted(p.parent.name for p in folder.glob(f"*/{PROVENANCE_FILE}")), str(folder))


def choose_config(name: str | None, names: Sequence[str], where: str) -> str:
    """Returns `name`, or the only one of `names`; `where` they were found stands in messages.

    Raises:
        FormatError: There is none at all.
        ConfigError: `name` is not among them, or none is named and there are several.
    """
    if not names:
        raise FormatError(
            f'{where} must hold a "+" dataset, but no folder in it has a {PROVENANCE_FILE}. Check the path.'
        )
    if name is None and len(names) > 1:
        raise ConfigError(f"{where} has several configurations; name one of {', '.join(names)}.")
    if name is not None and name not in names:
        raise ConfigError(f"{where} has no configuration `{name}`.{did_you_mean(name, names)}")
    return name or names[0]

"""How a "+" dataset was made: `reinforcement.json`, its fingerprint, and the check of the columns against it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from datasets import Features
from pydantic import AfterValidator, Field

from hf_dr.errors import ConfigError, FormatError
from hf_dr.files import write_json
from hf_dr.store import schema
from hf_dr.store.features import reinforcement_features
from hf_dr.store.json_files import as_object, expect, read_object, shown, validated
from hf_dr.teacher.folds import Fold
from hf_dr.teacher.names import PRECISIONS, SIGNALS, TOPK
from hf_dr.text import MAX_TEXT
from hf_dr.version import INSTALL
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
    for name, feature in added_features(provenance, augmentation).items():
        if name not in features:
            raise FormatError(f"{where} must have the column `{name}`, found {list(features)}. Is it one?")
        if features[name] != feature:
            raise FormatError(
                f"column `{name}` must be {feature}, found {features[name]} in {where}. The file or its card's features are "
                "damaged."
            )
    return augmentation


def added_features(provenance: Provenance, augmentation: Augmentation) -> Features:
    """Returns the columns that a reinforcement adds to the base's; `augmentation` is what the provenance describes."""
    return reinforcement_features(
        augmentation,
        provenance.num_views,
        provenance.top_k,
        provenance.num_classes,
        stored_partners=provenance.mixing_scope == schema.STORED_PARTNERS,
        signal=provenance.signal,
    )


# What describes a run but does not determine its bytes: the same weights, or the same rows, under another name.
_DESCRIPTIVE = frozenset({"id", "revision", "license", "config", "skipped_rows", "fingerprint", "created_with"})


def _plain_name(name: str) -> str:
    expect(schema.is_safe_name(name), "a plain name")
    return name


def _ensemble(teacher: dict[str, Any]) -> dict[str, Any]:
    """Checks the members of a teacher, and that what it was extended from, if anything, had fewer of them, and so on."""
    members: Any = teacher.get("members")
    listed = isinstance(members, list) and all(isinstance(member, dict) for member in members)
    expect(listed, "a teacher with a list of members")
    known = teacher.get("precision", "fp32") in tuple(PRECISIONS)
    expect(known, f"a teacher whose `precision` is {' or '.join(PRECISIONS)}")
    count = len(members)
    earlier = teacher.get(schema.EXTENDED_FROM)
    while earlier is not None:
        fewer: Any = earlier.get("num_members") if isinstance(earlier, dict) else None
        is_less = type(fewer) is int and 0 < fewer < count
        expect(is_less, f"a teacher whose `{schema.EXTENDED_FROM}` has fewer members each time")
        count = fewer
        earlier = earlier.get(schema.EXTENDED_FROM)
    temperature = teacher.get("temperature", 1.0)
    expect(type(temperature) in (int, float) and 0 < temperature < math.inf, "a teacher with a `temperature` above 0")
    # What cards and messages say of each; the rest is compared as it is.
    for member in members:
        if "left_out" in member:
            try:
                Fold.read(member["left_out"])
            except ValueError:
                expect(False, "a teacher whose members leave out a fold each, or nothing")
        name, license, revision = (member.get(key) for key in ("id", "license", "revision"))
        named = isinstance(name, str) and 0 < len(name) <= MAX_TEXT
        expect(named, f"a teacher whose members have an `id` of 1 to {MAX_TEXT} characters")
        told = [*(license if isinstance(license, list) else [license]), revision]
        texts = all(text is None or isinstance(text, str) for text in told)
        expect(texts, "a teacher whose members have texts as `license` and `revision`, where they have any")
    return teacher


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
            alone and stored next to it (`aug_partner_*`).
        on_bad_image: `error` or `skip`.
        base: Identity of the base dataset: `id`, `config`, `revision`, `content_hash`.
        teacher: `Teacher.provenance()`.
        library_versions: Versions of the libraries that decide pixels and answers.
        skipped_rows: Rows whose image could not be decoded.
        created_with: Version of hf_dr.
        candidates: `num` views were drawn of each example, and the best `num_views` by the criterion `keep` (one of `KEEP`)
            are stored in the order in which they were drawn; None where all were stored.
        signal: What is stored of each answer (`hf_dr.teacher.signals`).
    """

    config_name: Annotated[str, AfterValidator(_plain_name)]
    split: Annotated[str, AfterValidator(_plain_name)]
    augmentation: list[Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=1)]]
    num_views: Annotated[int, Field(ge=1, le=1 << 20)]
    top_k: Annotated[int, Field(ge=1)]
    num_classes: Annotated[int, Field(ge=1, le=1 << 32)]
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    shard_size: Annotated[int, Field(ge=1, le=1 << 40)]
    num_rows: Annotated[int, Field(ge=1, le=1 << 40)]
    overlay: bool
    image_column: str
    label_column: str | None
    mixing_scope: str
    on_bad_image: str
    base: dict[str, Any]
    teacher: Annotated[dict[str, Any], AfterValidator(_ensemble)]
    library_versions: dict[str, str]
    created_with: str
    skipped_rows: list[Annotated[int, Field(ge=0)]]
    schema_version: Annotated[int, Field(ge=1, le=schema.SCHEMA_VERSION)]
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
    def base_split(self) -> str:
        """The rows of the base as `datasets` names them: its split, or the sum of several or of their parts: `train+test`."""
        named = self.base.get("split")
        return named if isinstance(named, str) else self.split

    @property
    def named_base(self) -> str:
        """What was reinforced, for a message: which split of which dataset, at which commit where it has one."""
        revision = self.base.get("revision")
        named = f"split `{self.base_split}` of {self.base.get('id') or 'the base dataset'}"
        return named if revision is None else f"{named} at revision {revision}"

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_rows // self.shard_size)

    @property
    def shard_names(self) -> list[str]:
        """File names of all shards, in order."""
        return [schema.shard_name(self.split, i, self.num_shards) for i in range(self.num_shards)]

    def shard_range(self, index: int) -> range:
        """Returns the rows of a shard."""
        return range(index * self.shard_size, min((index + 1) * self.shard_size, self.num_rows))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that determines the bytes of the columns."""
        return hash_of(self.determining())

    def differences(self, other: Provenance) -> list[str]:
        """Returns a line for each determining field in which two runs differ: `num_views: 4 there, 8 here`."""
        there, here = _flatten(self.determining()), _flatten(other.determining())
        lines = []
        for key in sorted(there.keys() | here.keys()):
            a, b = there.get(key, "absent"), here.get(key, "absent")
            # Compared as the fingerprint does, as text: 1 is not 1.0.
            if json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True):
                lines.append(f"{key}: {a} there, {b} here")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields in JSON types; before version 4 an optional one only where it says something."""
        if self.schema_version >= 4:
            return dict(self.__dict__)
        return {key: value for key, value in self.__dict__.items() if key not in _OPTIONAL or value != _OPTIONAL[key]}

    def determining(self) -> dict[str, Any]:
        """Returns the fields, in JSON types, that decide the bytes of the columns."""
        # An op of somebody's own may have a setting of such a name.
        content: dict[str, Any] = {**_determining(self.to_dict()), "augmentation": self.augmentation}
        if self.schema_version >= 4:
            # Finished shards of a run that stops at bad images hold none, so it can go on as one that skips them.
            del content["on_bad_image"]
        return content

    def check(self) -> None:
        """Checks that what `write` writes could be read; a ConfigError if not, since it came from somebody's settings."""
        try:
            self.from_dict(json.loads(json.dumps(self._content())), "`reinforcement.json`")
        except FormatError as error:
            reason = str(error).removesuffix(_AGAIN).rstrip()
            raise ConfigError(f"the run could not be read again: {reason} Give another.") from error

    def write(self, folder: Path) -> None:
        """Writes `reinforcement.json` into the config's folder, whole or not at all."""
        write_json(folder / schema.PROVENANCE_FILE, self._content())

    def _content(self) -> dict[str, Any]:
        return {**self.to_dict(), "fingerprint": self.fingerprint}

    @classmethod
    def read(cls, folder: Path) -> Provenance:
        """Reads and checks `reinforcement.json` of a config's folder.

        Raises:
            FormatError: It is missing, malformed, of a later version, or does not match its own fingerprint.
        """
        path = folder / schema.PROVENANCE_FILE
        try:
            content = read_object(path, _AGAIN)
        except FileNotFoundError:
            raise FormatError(
                f'a "+" dataset must hold {schema.PROVENANCE_FILE}, found none in {folder}. Name the folder of one '
                "configuration."
            ) from None
        return cls.from_dict(content, str(path))

    @classmethod
    def from_dict(cls, content: Any, where: str) -> Provenance:
        """Checks the parsed content of `reinforcement.json` as `read` does; `where` names it in messages."""
        content = as_object(content, where, _AGAIN)
        version = content.get("schema_version")
        if version not in range(1, schema.SCHEMA_VERSION + 1):
            raise FormatError(
                f"{where} must be of schema version 1 to {schema.SCHEMA_VERSION}, found {shown(version)}. "
                f"A later version needs a later hf_dr: {INSTALL}."
            )
        provenance = validated(cls, content, where, _AGAIN, more=True)
        provenance._check_together(where, {name: content[name] for name in _OPTIONAL if name in content})
        try:
            fingerprint = provenance.fingerprint
        except RecursionError as error:
            raise FormatError(f"{where} must not be nested that deeply. Restore it.") from error
        if content.get("fingerprint") != fingerprint:
            raise FormatError(f"{where} does not match its own fingerprint: it was edited or damaged. Restore it.")
        return provenance

    def _check_together(self, where: str, optional: dict[str, Any]) -> None:
        """Checks what the fields say of one another; `optional` are those of version 3 that the file has."""
        version = self.schema_version
        if version >= 4:
            missing = [name for name in _OPTIONAL if name not in optional]
            if missing:
                raise FormatError(f"{where} must have the field `{missing[0]}`, found none. {_AGAIN}")
        elif bool(optional) != (version == 3):
            raise FormatError(
                f"{where} must be of schema version 3 if it has the field {' or '.join(map(repr, _OPTIONAL))}, and only then, "
                f"found version {version} with {', '.join(optional) or 'none'}. {_AGAIN}"
            )
        scopes = {2: schema.MIXING_SCOPES[2:], 4: schema.MIXING_SCOPES}.get(version, schema.MIXING_SCOPES[:2])
        signals = SIGNALS if version >= 4 else SIGNALS[1:]
        chosen = optional.get("candidates") is not None or (version == 3 and "candidates" in optional)
        least_size = -(-self.num_rows // schema.MAX_SHARDS)
        for name, holds, expected in (
            ("top_k", self.top_k <= self.num_classes, f"at most the {self.num_classes} classes"),
            ("shard_size", self.shard_size >= least_size, f"at least {least_size} for {self.num_rows} rows"),
            ("mixing_scope", self.mixing_scope in scopes, f"{' or '.join(scopes)} in schema version {version}"),
            ("candidates", not chosen or _is_selection(self.candidates, self.num_views),
             f"a `num` above {self.num_views} and a `keep` of {', '.join(schema.KEEP)}"),
            ("signal", "signal" not in optional or self.signal in signals, f"{' or '.join(signals)}"),
            ("skipped_rows", self.skipped_rows == sorted(set(self.skipped_rows)), "rows, each once and in order"),
            ("skipped_rows", max(self.skipped_rows, default=0) < self.num_rows, f"rows below {self.num_rows}"),
        ):  # fmt: skip
            if not holds:
                raise FormatError(
                    f"`{name}` in {where} must be {expected}, found {shown(getattr(self, name))}. {_AGAIN}"
                )


_AGAIN = "Fetch or write it again."

# In version 3, and what they are where the file does not have them; version 4 has them always.
_OPTIONAL: dict[str, Any] = {"candidates": None, "signal": TOPK}


def hash_of(determining: dict[str, Any]) -> str:
    """Returns the SHA-256 of what determines data, in JSON types, whatever the order of its keys."""
    text = json.dumps(determining, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _is_selection(value: Any, num_views: int) -> bool:
    """Whether the views were chosen among more candidates, by a known criterion."""
    return (
        isinstance(value, dict)
        and value.keys() == {"num", "keep"}
        and type(value["num"]) is int
        and value["num"] > num_views
        and value["keep"] in list(schema.KEEP)
    )


def _determining(value: Any) -> Any:
    """Drops what only describes, at every depth."""
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

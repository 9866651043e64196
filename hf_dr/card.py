"""The card of a "+" dataset: README.md, generated from provenance, data and findings, beside what people write into it.

A card has YAML, of which only generated keys are touched, and a body. In the body, generated parts stand between markers
on lines of their own; what stands outside of them belongs to people:

    <!-- hf_dr: head -->            what it is; the columns
    <!-- hf_dr: config randaug -->  one for each configuration, by itself all that is known of it
    <!-- hf_dr: foot -->            limits, citation
    <!-- hf_dr: end -->             ends each of them

A configuration's part follows from that configuration alone, so several people can push theirs into one card in any order.
"""

from __future__ import annotations

import html
import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import PIL.Image
import pyarrow.parquet as pq
import yaml
from datasets import DatasetInfo, Features
from datasets.splits import SplitDict, SplitInfo
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import yaml_dump

from hf_dr.errors import ConfigError, FormatError
from hf_dr.ops import OPS
from hf_dr.schema import (
    AUG_PREFIX,
    CONTACT_SHEET_FILE,
    IMAGE_HASH,
    PROVENANCE_FILE,
    SOURCE_INDEX,
    STATISTICS_FILE,
    STUDENTS_FILE,
    TEACHER_IDS,
    TEACHER_LOGPROBS,
    VERIFICATION_FILE,
    VIEWS_HASH,
    Provenance,
    is_reserved,
)
from hf_dr.shards import read_marker

CARD_FILE = "README.md"
MAX_CARD = 4 << 20
"""Characters; the longest lists of class names take some hundred thousand."""
TAGS = ("dataset-reinforcement", "arxiv:2303.08983")
FINGERPRINT_KEY = "fingerprint"
"""Under which a finding tells of which run it speaks; the contact sheet as PNG text."""


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table, without a line break at its end."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def format_bytes(count: float) -> str:
    """Returns `1.2 GB` for 1.2e9."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


# ------------------------------------------------------------------------------------------------------------ findings


@dataclass(frozen=True)
class Statistics:
    """What `hf-dr inspect --save` found: `statistics.json`; see `hf_dr.inspection` for the meaning of the numbers.

    Attributes:
        columns: Compressed bytes by column.
        num_reinforced: Rows that have a reinforcement.
        entropy: Mean entropy of the answers, nats.
        kept_mass: Mean probability of the K kept classes together.
        unmixed_views: Views compared with the labels; 0 where there are none to compare, and then these are None:
        agreement: Share of them whose top-1 is the label.
        ece: Calibration error of the top-1 probability against the label.
        nll: Mean negative log-probability of the label, nats.
    """

    columns: dict[str, int]
    num_reinforced: int
    entropy: float
    kept_mass: float
    unmixed_views: int = 0
    agreement: float | None = None
    ece: float | None = None
    nll: float | None = None


@dataclass(frozen=True)
class Verification:
    """What `hf-dr verify --save` found: `verification.json`; see `hf_dr.verify.VerifyReport`."""

    ok: bool
    num_rows: int
    num_views: int
    bit_equal: float
    kl_mean: float | None = None
    kl_max: float | None = None
    top1_agreement: float | None = None


@dataclass(frozen=True)
class Students:
    """How students that learnt from the dataset did: `students.json`; a table as it shall be shown."""

    title: str
    head: list[str]
    rows: list[list[str]]


def save_finding(config: Path, file: str, fingerprint: str, finding: Statistics | Verification | Students) -> Path:
    """Writes a finding into a configuration's folder, whole or not at all, and returns its path."""
    path = config / file
    temporary = config / f".{file}.tmp"
    content = {FINGERPRINT_KEY: fingerprint, **asdict(finding)}
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


_Finding = TypeVar("_Finding", Statistics, Verification, Students)

_HOW_TO_FIND = {
    STATISTICS_FILE: "hf-dr inspect --save",
    CONTACT_SHEET_FILE: "hf-dr inspect --save",
    VERIFICATION_FILE: "hf-dr verify --save",
    STUDENTS_FILE: "hf-dr compare with `save`",
}


def read_finding(config: Path, file: str, fingerprint: str, kind: type[_Finding]) -> _Finding | None:
    """Reads a finding; None where there is none.

    Raises:
        FormatError: It is malformed, or speaks of another run.
    """
    path = config / file
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} must be JSON, but reading it failed: {error}. {_again(file)}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} must hold a JSON object, found {type(content).__name__}. {_again(file)}")
    _check_fingerprint(path, content.pop(FINGERPRINT_KEY, None), fingerprint)
    for field in fields(kind):
        value, check, default = content.get(field.name), _CHECKS[str(field.type)], field.default
        if not (check(value) or (value is None and default is None)):
            raise FormatError(f"`{field.name}` in {path} must be {field.type}, found {value!r:.80}. {_again(file)}")
    unknown = content.keys() - {field.name for field in fields(kind)}
    if unknown:
        raise FormatError(f"{path} must hold known fields only, found `{min(unknown)}`. {_again(file)}")
    return kind(**content)


def _check_fingerprint(path: Path, found: object, fingerprint: str) -> None:
    if found != fingerprint:
        raise FormatError(
            f"{path} must be of this run (fingerprint {fingerprint[:12]}), found {str(found)[:12]!r}. {_again(path.name)}"
        )


def _again(file: str) -> str:
    return f"Write it anew with `{_HOW_TO_FIND[file]}`, or delete it."


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_float(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": _is_int,
    "float": _is_float,
    "float | None": _is_float,
    "str": lambda value: isinstance(value, str),
    "dict[str, int]": lambda value: isinstance(value, dict) and all(map(_is_int, value.values())),
    "list[str]": _is_texts,
    "list[list[str]]": lambda value: isinstance(value, list) and all(map(_is_texts, value)),
}


def _has_contact_sheet(config: Path, fingerprint: str) -> bool:
    path = config / CONTACT_SHEET_FILE
    try:
        with PIL.Image.open(path, formats=["PNG"]) as image:
            found = image.info.get(FINGERPRINT_KEY)
    except FileNotFoundError:
        return False
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise FormatError(f"{path} must be a PNG, but reading it failed: {error}. {_again(path.name)}") from error
    _check_fingerprint(path, found, fingerprint)
    return True


# ------------------------------------------------------------------------------------------------------ configurations


@dataclass(frozen=True)
class CardConfig:
    """What the card tells of a finished configuration.

    Attributes:
        provenance: How it was made.
        features: Columns, exactly those of the files.
        num_bytes: Size of its columns in memory, as Arrow.
        file_bytes: Size of all shards.
        statistics: None where it was not inspected.
        verification: None where it was not verified.
        students: None where none were trained.
        has_contact_sheet: Whether there is a picture of it.
    """

    provenance: Provenance
    features: Features
    num_bytes: int
    file_bytes: int
    statistics: Statistics | None = None
    verification: Verification | None = None
    students: Students | None = None
    has_contact_sheet: bool = False


@dataclass(frozen=True)
class PlannedConfig:
    """What is known of a configuration before its run; the fields are those of `Provenance`."""

    config_name: str
    split: str
    augmentation: list[dict[str, dict[str, Any]]]
    num_views: int
    top_k: int
    seed: int
    overlay: bool
    mixing_scope: str
    base: dict[str, Any]
    teacher: dict[str, Any]
    num_classes: int | None = None


def card_configs(folder: Path, names: Sequence[str] | None = None) -> dict[str, CardConfig]:
    """Reads the finished configurations of a local "+" dataset, with what was found out about them.

    Args:
        folder: The dataset's folder.
        names: The configurations; default: every finished one.

    Raises:
        FormatError: A configuration does not follow the format, one that is named is not finished, or a finding is
            malformed or of another run.
    """
    found = sorted(path.parent for path in folder.glob(f"*/{PROVENANCE_FILE}"))
    configs = {}
    for config in found if names is None else [folder / name for name in names]:
        provenance = Provenance.read(config)
        shards = [config / shard for shard in provenance.shard_names]
        missing = [path.name for path in shards if not path.is_file()]
        if missing and names is None:
            continue
        if missing:
            raise FormatError(
                f"{config} must have {len(shards)} shards, but {len(missing)} are missing, e.g. {missing[0]}. Run the same "
                "reinforce command again; it makes only what is missing."
            )
        if provenance.config_name != config.name:
            raise FormatError(
                f"{config} must hold the configuration of its name, found `{provenance.config_name}`. Rename the folder."
            )
        markers = [read_marker(path) for path in shards]
        for path, marker in zip(shards, markers, strict=True):
            if marker.fingerprint != provenance.fingerprint:
                raise FormatError(
                    f"{path} must carry the fingerprint of its {PROVENANCE_FILE}, found another. Make it again."
                )
        configs[config.name] = CardConfig(
            provenance=provenance,
            features=Features.from_arrow_schema(pq.read_schema(shards[0])),
            num_bytes=sum(marker.num_bytes for marker in markers),
            file_bytes=sum(marker.file_bytes for marker in markers),
            statistics=read_finding(config, STATISTICS_FILE, provenance.fingerprint, Statistics),
            verification=read_finding(config, VERIFICATION_FILE, provenance.fingerprint, Verification),
            students=read_finding(config, STUDENTS_FILE, provenance.fingerprint, Students),
            has_contact_sheet=_has_contact_sheet(config, provenance.fingerprint),
        )
    return configs


def write_card(folder: Path) -> None:
    """Writes the card of a local "+" dataset for its finished configs; what people wrote, and other metadata, stays.

    Raises:
        FormatError: See `card_configs` and `update_card`.
    """
    path = folder / CARD_FILE
    try:
        existing = path.read_bytes().decode() if path.exists() else None  # bytes: line ends stay as they are
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} must be UTF-8, but: {error}. Mend it, or move it away.") from error
    text = update_card(existing, card_configs(folder), name=folder.resolve().name)
    temporary = path.with_name(f".{CARD_FILE}.tmp")
    temporary.write_bytes(text.encode())
    temporary.replace(path)


def update_card(existing: str | None, configs: Mapping[str, CardConfig | PlannedConfig], *, name: str) -> str:
    """Returns the card's whole text with these configurations; all that is not generated stays as it is.

    Doing it twice changes nothing, and configurations may come one by one in any order. The head and the foot are put only
    into a card that has no generated part yet: who deletes them, with their markers, has no need of them.

    Args:
        existing: The card as it is; None where there is none.
        configs: By name. A planned one gives a section without what only a run can tell, and no metadata of files.
        name: Hub id of the dataset or its folder's name, as it stands in the code to copy.

    Raises:
        FormatError: The existing card's YAML cannot be edited, or a marker of a generated part is damaged.
        ConfigError: `name` cannot stand in a card.
    """
    if not name.isprintable() or "`" in name or "<!--" in name:
        raise ConfigError(f"a dataset's name must be printable, without ` or <!--, got {name!r}. Rename it.")
    existing = (existing or "").removeprefix("\ufeff")
    if len(existing) > MAX_CARD:
        raise FormatError(f"a card must have at most {MAX_CARD:,} characters, found {len(existing):,}. Shorten it.")
    newline = "\r\n" if "\r\n" in existing else "\n"
    match = REGEX_YAML_BLOCK.search(existing)
    opening, yaml_text, closing = match.group(1, 2, 3) if match else (f"---{newline}", "", f"{newline}---{newline}")
    body = existing[match.end() :] if match else existing and newline + existing
    if not body.strip():
        body = f"{body or newline}# {_inline(name.rpartition('/')[2])}{newline}"
    parts = {CONFIG + key: _section(config, name) for key, config in configs.items()}
    body = _merge_body(body, {key: text.replace("\n", newline) for key, text in parts.items()}, newline)
    return opening + _merge_yaml(yaml_text, configs, newline) + closing + body


# ---------------------------------------------------------------------------------------------------------------- body

HEAD, FOOT, CONFIG, _END = "head", "foot", "config ", "end"
# Whatever looks like a marker must be one: alone on its line, spelt as we spell it.
_LOOSE_MARKER = re.compile(r"<!--[ \t]*hf_dr\b[^\n]*")
_MARKER = re.compile(r"<!-- hf_dr: (head|foot|config [^\s]+|end) -->\r?")


def _merge_body(body: str, parts: Mapping[str, str], newline: str) -> str:
    """Replaces or inserts generated parts, by name."""
    pieces = _split_body(body)
    if all(key is None for key, _ in pieces):
        parts = {HEAD: _HEAD.replace("\n", newline), **parts, FOOT: _FOOT.replace("\n", newline)}
    texts = {key: newline.join([_marker(key), text, _marker(_END)]) for key, text in parts.items()}
    known = [key for key, _ in pieces if key is not None]
    for place, (key, _) in enumerate(pieces):
        if key in texts:
            pieces[place] = (key, texts.pop(key))
    # Sections stand in the order of their names; text between them stays where it is.
    for key in sorted(texts, key=_rank):
        after = [other for other in known if _rank(other) > _rank(key)]
        before = [other for other in known if _rank(other) < _rank(key)]
        places = {other: place for place, (other, _) in enumerate(pieces) if other is not None}
        if before:
            place = places[max(before, key=lambda other: places[other])] + 1
            new = [(None, 2 * newline), (key, texts[key])]
        elif after:
            place = places[min(after, key=lambda other: places[other])]
            new = [(key, texts[key]), (None, 2 * newline)]
        else:
            place, end = len(pieces), pieces[-1][1]
            gap = "" if end.endswith(2 * newline) else newline if end.endswith("\n") else 2 * newline
            new = [(None, gap), (key, texts[key]), (None, newline)]
        pieces[place:place] = new
        known.append(key)
    return "".join(text for _, text in pieces)


def _rank(key: str) -> tuple[int, str]:
    return ((HEAD, CONFIG, FOOT).index(CONFIG if key.startswith(CONFIG) else key), key)


def _marker(key: str) -> str:
    return f"<!-- hf_dr: {key} -->"


def _split_body(body: str) -> list[tuple[str | None, str]]:
    """Cuts a body into generated parts, named, and what stands between them, not named.

    Raises:
        FormatError: A marker is damaged, or has no counterpart, or a part is there twice.
    """
    pieces: list[tuple[str | None, str]] = []
    begun: dict[str, int] = {}
    position, key = 0, None
    for found in _LOOSE_MARKER.finditer(body):
        match = _MARKER.fullmatch(found.group())
        word = match.group(1) if match else None
        expected = None
        if word is None or (found.start() and body[found.start() - 1] != "\n"):
            expected = f"a marker must stand alone on its line, as `{_marker(CONFIG + 'NAME')}`"
        elif key is not None and word != _END:
            expected = f"`{_marker(key)}` must be followed by `{_marker(_END)}`"
        elif key is None and word == _END:
            expected = f"`{_marker(_END)}` must end a part"
        elif word in begun:
            expected = f"the part `{word}` must be there once"
        if expected is not None:
            line, shown = body.count("\n", 0, found.start()) + 1, found.group().strip()
            raise FormatError(f"{expected}, found {shown!r:.80} in line {line} of the card's text. {_MEND}")
        assert word is not None
        if key is None:
            pieces.append((None, body[position : found.start()]))
            key, begun[word] = word, found.start()
        else:
            position = found.start() + len(_marker(_END))  # a carriage return belongs to what follows
            pieces.append((key, body[begun[key] : position]))
            key = None
    if key is not None:
        raise FormatError(f"`{_marker(key)}` must be followed by `{_marker(_END)}`, found the end of the card. {_MEND}")
    return [*pieces, (None, body[position:])]


_MEND = "Mend the marker, or delete the part with its markers: it is generated anew."


# ---------------------------------------------------------------------------------------------------------------- YAML

# Generated keys, in the order in which they come into a card that has none of them.
_LICENSE, _TASKS, _SIZES, _SOURCES, _TAGS = "license", "task_categories", "size_categories", "source_datasets", "tags"
_INFO, _CONFIGS = "dataset_info", "configs"
_KEYS = (_LICENSE, _TASKS, _SIZES, _SOURCES, _TAGS, _INFO, _CONFIGS)
# The Hub's list, as in huggingface_hub's DatasetCardData.
_SIZE_CATEGORIES = (
    "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B", "10B<n<100B",
    "100B<n<1T", "n>1T",
)  # fmt: skip

_Data = dict[Any, Any]


def size_category(num_rows: int) -> str:
    """Returns the Hub's size category of a dataset."""
    return _SIZE_CATEGORIES[min(max(len(str(num_rows)) - 3, 0), len(_SIZE_CATEGORIES) - 1)]


def _merge_yaml(text: str, configs: Mapping[str, CardConfig | PlannedConfig], newline: str) -> str:
    """Edits the generated keys where their value changes; every other line stays as it is, comments too.

    Raises:
        FormatError: The YAML cannot be read, or not be edited key by key.
    """
    chunks, data = _read_yaml(text)
    wanted = _wanted(data, configs)
    for key in _KEYS:
        if key not in wanted or (key in data and repr(data[key]) == repr(wanted[key])):
            continue
        block = yaml_dump({key: wanted[key]}, sort_keys=False).replace("\n", newline)
        places = {found: place for place, (found, _) in enumerate(chunks)}
        if key in places:
            chunks[places[key]] = (key, block + _comments_below(chunks[places[key]][1]))
        else:
            later = [places[other] for other in _KEYS[_KEYS.index(key) :] if other in places]
            chunks.insert(min(later, default=len(chunks)), (key, block))
    edited = "".join(chunk for _, chunk in chunks)
    after, expected = _read_yaml(edited)[1], {**data, **wanted}
    if {key: repr(value) for key, value in after.items()} != {key: repr(value) for key, value in expected.items()}:
        raise FormatError(f"the card's YAML {_PLAIN}, found another form. Write it so.")
    return edited.removesuffix(newline)


_PLAIN = "must be plain `key: value` lines, each key once, without aliases"


def _comments_below(chunk: str) -> str:
    """Returns what stands between an entry and the next one, and so belongs to neither."""
    lines = chunk.splitlines(keepends=True)
    end = len(lines)
    while end and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
        end -= 1
    return "".join(lines[end:])


class _PlainLoader(yaml.SafeLoader):
    """Refuses what a small text can blow up with, and what one reader reads so and another otherwise."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> _Data:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key `{key.value}` twice", key.start_mark)
            seen.add((key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def _read_yaml(text: str) -> tuple[list[tuple[Any, str]], _Data]:
    """Cuts a card's YAML into its top-level entries, in order, and parses it; what stands above the first is named None."""
    text += "" if not text or text.endswith("\n") else "\n"
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        data = {} if node is None else loader.construct_document(node)
        if data is None:
            return [(None, text)], {}
    # Explicit tags let PyYAML's constructors fail in many ways: `!!int ''` is an IndexError.
    except (
        yaml.YAMLError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        found = " ".join(str(error).split())[:300]
        raise FormatError(f"the card's YAML {_PLAIN}, but: {found or type(error).__name__}. Mend it.") from error
    if not isinstance(data, dict):
        raise FormatError(
            f"the card's YAML must be a mapping (`key: value` lines), found {type(data).__name__}. Mend it."
        )
    if node is None:
        return [(None, text)], {}
    starts = [key.start_mark for key, _ in node.value]
    if any(mark.column for mark in starts):
        raise FormatError(f"the card's YAML {_PLAIN}, found another form. Write it so.")
    cuts = [0, *(mark.index for mark in starts), len(text)]
    keys = [None, *data]
    return [(key, text[start:end]) for key, start, end in zip(keys, cuts, cuts[1:], strict=False)], data


def _wanted(data: _Data, configs: Mapping[str, CardConfig | PlannedConfig]) -> _Data:
    """Returns the generated keys with what they shall hold, merged with what the card has."""
    about = [config.provenance if isinstance(config, CardConfig) else config for config in configs.values()]
    finished = {name: config for name, config in configs.items() if isinstance(config, CardConfig)}
    tags, sources = _texts(data, _TAGS), _texts(data, _SOURCES)
    wanted: _Data = {_TAGS: [*tags, *(tag for tag in TAGS if tag not in tags)]}
    if data.get(_TASKS) is None:
        wanted[_TASKS] = ["image-classification"]
    licenses = {str(one.base["license"]) for one in about if one.base.get("license")}
    if data.get(_LICENSE) is None and len(licenses) == 1:
        wanted[_LICENSE] = licenses.pop()
    bases = {str(one.base.get("id")) for one in about if _is_hub_id(one.base.get("id"))}
    if bases - set(sources):
        wanted[_SOURCES] = sorted({*sources, *bases})
    if finished:
        infos = {**_entries(data, _INFO), **{name: _info(config) for name, config in finished.items()}}
        files = _entries(data, _CONFIGS)
        for name, config in finished.items():
            split = config.provenance.split
            files[name] = {**files.get(name, {}), "data_files": [{"split": split, "path": f"{name}/{split}-*"}]}
        listed = [{"config_name": name, **info} for name, info in sorted(infos.items())]
        if len(listed) == 1:  # as `datasets` writes it
            listed[0].pop("config_name") if listed[0]["config_name"] == "default" else None
        wanted[_INFO] = listed[0] if len(listed) == 1 else listed
        wanted[_CONFIGS] = [{"config_name": name, **entry} for name, entry in sorted(files.items())]
        wanted[_SIZES] = [size_category(max(map(_num_rows, infos.values())))]
    return wanted


def _texts(data: _Data, key: str) -> list[str]:
    value = data.get(key)
    value = [] if value is None else [value] if isinstance(value, str) else value
    if not _is_texts(value):
        raise FormatError(f"`{key}` in the card's YAML must be a list of texts, found {value!r:.80}. Mend it.")
    return list(value)


def _entries(data: _Data, key: str) -> dict[str, _Data]:
    """Returns the list of configurations under a key, by name and without it."""
    value = data.get(key)
    value = [] if value is None else [value] if isinstance(value, dict) and key == _INFO else value
    found: dict[str, _Data] = {}
    unnamed = "default" if key == _INFO else None
    for entry in value if isinstance(value, list) else [value]:
        name = entry.get("config_name", unnamed) if isinstance(entry, dict) and isinstance(value, list) else None
        if not isinstance(name, str) or name in found:
            raise FormatError(
                f"`{key}` in the card's YAML must be a list of configurations, each with another `config_name`, found "
                f"{entry!r:.80}. Mend it."
            )
        found[name] = {field: content for field, content in entry.items() if field != "config_name"}
    return found


def _info(config: CardConfig) -> _Data:
    provenance = config.provenance
    split = SplitInfo(provenance.split, config.num_bytes, provenance.num_rows)
    info = DatasetInfo(
        features=config.features,
        splits=SplitDict({provenance.split: split}),
        download_size=config.file_bytes,
        dataset_size=config.num_bytes,
    )
    return yaml.safe_load(yaml_dump(info._to_yaml_dict(), sort_keys=False))  # plain types, as a card gives them back


def _num_rows(info: _Data) -> int:
    splits = info.get("splits")
    rows = (
        [split.get("num_examples") for split in splits if isinstance(split, dict)] if isinstance(splits, list) else []
    )
    return sum(count for count in rows if isinstance(count, int))


# ---------------------------------------------------------------------------------------------------------------- text

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def _is_hub_id(value: object) -> bool:
    return isinstance(value, str) and _HUB_ID.fullmatch(value) is not None


def _inline(value: object) -> str:
    """Text from data, made harmless: it stays in its line and its cell, and is neither HTML nor Markdown."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(" ".join(str(value).split()), quote=False))


def _code(value: object) -> str:
    return f"`{' '.join(str(value).replace('`', chr(39)).split())}`".replace("|", r"\|").replace("<!--", "<! --")


def _linked(value: object, kind: str = "") -> str:
    return f"[{value}](https://huggingface.co/{kind}{value})" if _is_hub_id(value) else _inline(value)


def _section(config: CardConfig | PlannedConfig, name: str) -> str:
    """Returns all that the card tells of one configuration."""
    about = _about(config)
    parts = [f"## {about.config_name}", _what_it_is(config), _how_to_use(config, name), _settings(config)]
    parts += ["### Teachers", *_teachers(config)]
    if isinstance(config, CardConfig):
        if config.statistics is not None:
            parts += ["### Statistics", *_statistics(config, config.statistics)]
        if config.verification is not None:
            parts += ["### Verification", _verification(config.verification)]
        if config.students is not None:
            rows = [[*map(_inline, row)] for row in config.students.rows]
            table = markdown_table([*map(_inline, config.students.head)], rows)
            parts += ["### Students", _inline(config.students.title), table]
        if config.has_contact_sheet:
            parts += ["### Views", f"![Images, views and answers]({about.config_name}/{CONTACT_SHEET_FILE})"]
        parts += ["### How it was made", _how_made(config.provenance)]
    return "\n\n".join(parts)


def _about(config: CardConfig | PlannedConfig) -> Provenance | PlannedConfig:
    return config.provenance if isinstance(config, CardConfig) else config


def _what_it_is(config: CardConfig | PlannedConfig) -> str:
    about = _about(config)
    base = _linked(about.base.get("id") or "a dataset without a name", "datasets/")
    details = [f"{key} {_inline(about.base[key])}" for key in ("config", "revision") if about.base.get(key)]
    base += f" ({', '.join(details)})" if details else ""
    rows = f"each of the {about.num_rows:,} examples" if isinstance(about, Provenance) else "each example"
    classes = f" of {about.num_classes:,}" if about.num_classes else ""
    text = (
        f"{about.num_views:,} views of {rows} of {base}, split `{about.split}`, each with the teacher's {about.top_k} most "
        f"probable{classes} classes."
    )
    if not isinstance(about, Provenance):
        text = f"**Planned; not made yet.** {text}"
    if about.overlay:
        text += (
            "\n\n**Overlay: the images are left out.** It is joined to your own copy of the base dataset, whose licence and "
            "terms hold; an image that is not the one that was reinforced is refused."
        )
    return text


def _how_to_use(config: CardConfig | PlannedConfig, name: str) -> str:
    about = _about(config)
    quoted, place = json.dumps(name, ensure_ascii=False), shlex.quote(name)
    join, flags = "", ""
    if about.overlay:
        base = str(about.base["id"]) if _is_hub_id(about.base.get("id")) else "path/to/base"
        names = [base, *([str(about.base["config"])] if about.base.get("config") else [])]
        words = ", ".join(json.dumps(word, ensure_ascii=False) for word in names)
        join = f', base=load_dataset({words}, split="{about.split}")'
        flags = "".join(f" {f} {shlex.quote(w)}" for f, w in zip(("--base", "--base_config"), names, strict=False))
    pinned = all(_is_hub_id(m.get("id")) and _COMMIT.fullmatch(str(m.get("revision"))) for m in _members(about))
    teacher = "" if pinned or isinstance(about, PlannedConfig) else " --no_teacher"
    return f"""```python
from datasets import load_dataset
from hf_dr import load_reinforced

plus = load_dataset({quoted}, "{about.config_name}", split="{about.split}")  # plain columns, without hf_dr
train = load_reinforced({quoted}, "{about.config_name}"{join})  # train[i, v]: a view as the teacher saw it
```

```
accelerate launch -m hf_dr train --dataset {place} --name {about.config_name}{flags} \\
    --student timm:mobilenetv3_small_100 --output_dir student
hf-dr verify {place} --name {about.config_name}{flags}{teacher}
```"""


def _settings(config: CardConfig | PlannedConfig) -> str:
    about = _about(config)
    ops = [(op, settings) for item in about.augmentation for op, settings in item.items()]
    shown = [_code(f"{op}({', '.join(f'{k}={v}' for k, v in settings.items())})") for op, settings in ops]
    classes = f" of {about.num_classes:,}" if about.num_classes else ""
    rows = [
        ("Augmentation", "<br>".join(shown)),
        ("Views of each example, V", f"{about.num_views:,}"),
        ("Classes kept of each answer, K", f"{about.top_k:,}{classes}"),
        ("Seed", about.seed),
    ]
    if any(op in OPS and OPS[op].mixes for op, _ in ops):
        rows.append(("Partners in mixing", f"of the same {about.mixing_scope}"))
    if about.base.get("license"):
        rows.append(("Licence of the base dataset", _inline(about.base["license"])))
    if isinstance(config, CardConfig):
        skipped = len(config.provenance.skipped_rows)
        without = f" ({skipped:,} of them could not be decoded and have no views)" if skipped else ""
        rows.append(("Rows", f"{config.provenance.num_rows:,}{without}"))
        rows.append(("Files", f"{config.provenance.num_shards:,}, {format_bytes(config.file_bytes)}"))
    return markdown_table(["", ""], rows)


def _members(about: Provenance | PlannedConfig) -> list[dict[str, Any]]:
    members = about.teacher.get("members")
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
        raise FormatError(f"`teacher.members` of the provenance must be a list of members, found {members!r:.80}.")
    return members


def _teachers(config: CardConfig | PlannedConfig) -> list[str]:
    members = _members(_about(config))
    rows, commercial, unknown = [], [], []
    for member in members:
        name = _linked(member.get("id"))
        at = f" at {_code(str(member['revision'])[:12])}" if member.get("revision") else ""
        license = member.get("license")
        words = re.split(r"[^a-z0-9]+", str(license).lower())
        if not license:
            unknown.append(name)
        elif "nc" in words or "noncommercial" in "".join(words):
            commercial.append(f"{name} ({_inline(license)})")
        rows.append([name + at, _inline(license or "unknown"), *_preprocessing(member.get("preprocessing"))])
    parts = [markdown_table(["teacher", "licence", "input", "mean", "std", "filter"], rows)]
    if len(members) > 1:
        parts[0] += "\n\nTheir probabilities are averaged."
    if commercial:
        parts.append(
            f"> **Not for commercial use without further thought.** The weights of {', '.join(commercial)} are licensed for "
            "non-commercial use only. The answers stored here were made with them: whether that licence reaches them, and "
            "students that learn from them, is for you to settle before any commercial use."
        )
    if unknown and isinstance(config, CardConfig):
        parts.append(
            f"> **Unknown licence.** The licence of {', '.join(unknown)} is not known. Find it out before you publish or use "
            "what is made with its answers."
        )
    return parts


def _preprocessing(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return ["its own"] + 3 * [""]
    size = value.get("size")
    shown = " x ".join(map(str, size)) if isinstance(size, (list, tuple)) else size
    return [_inline(shown), *(_inline(_rounded(value.get(key))) for key in ("mean", "std", "interpolation"))]


def _rounded(value: Any) -> str:
    values = value if isinstance(value, (list, tuple)) else [value]
    return ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


_GROUPS = {
    "classes": (TEACHER_IDS,),
    "log-probabilities": (TEACHER_LOGPROBS,),
    "row and hashes": (SOURCE_INDEX, IMAGE_HASH, VIEWS_HASH),
}


def _statistics(config: CardConfig, found: Statistics) -> list[str]:
    views = config.provenance.num_rows * config.provenance.num_views
    counts = {group: sum(found.columns.get(name, 0) for name in names) for group, names in _GROUPS.items()}
    counts["augmentation's parameters"] = sum(n for name, n in found.columns.items() if name.startswith(AUG_PREFIX))
    counts["the base's own columns"] = sum(n for name, n in found.columns.items() if not is_reserved(name))
    counts["structure of the files"] = config.file_bytes - sum(counts.values())
    sizes = [(group, f"{count:,}", f"{count / views:.2f}") for group, count in counts.items()]
    most = math.log(config.provenance.num_classes)
    lines = [
        ("Mean entropy", f"{found.entropy:.3f} nats of at most {most:.3f}"),
        ("Mean probability of the kept classes together", f"{found.kept_mass:.4f}"),
    ]
    if found.agreement is not None and found.ece is not None and found.nll is not None:
        lines += [
            (
                "Most probable class is the label",
                f"{100 * found.agreement:.2f} % of {found.unmixed_views:,} unmixed views",
            ),
            ("Calibration error against the labels (ECE)", f"{found.ece:.4f}"),
            ("Negative log-probability of the label", f"{found.nll:.4f} nats"),
        ]
    return [markdown_table(["teacher's answers", ""], lines), markdown_table(["part", "bytes", "bytes a view"], sizes)]


def _verification(found: Verification) -> str:
    # Rounded down: 99.996 % must not read as 100.00 %.
    equal = f"{math.floor(found.bit_equal * 1e4 + 1e-9) / 100:.2f} %"
    rows = [("Rows replayed", f"{found.num_rows:,} with {found.num_views:,} views each"), ("Equal bit for bit", equal)]
    if found.kl_mean is None or found.kl_max is None or found.top1_agreement is None:
        rows.append(("Teacher's answers", "not compared"))
    else:
        rows.append(
            ("KL of the answers to the teacher's anew", f"mean {found.kl_mean:.2e}, max {found.kl_max:.2e} nats")
        )
        rows.append(("Same most probable class", f"{math.floor(found.top1_agreement * 1e4 + 1e-9) / 100:.2f} %"))
    return markdown_table(["`hf-dr verify`", "ok" if found.ok else "**not ok**"], rows)


def _how_made(provenance: Provenance) -> str:
    versions = ", ".join(f"{_inline(key)} {_inline(value)}" for key, value in provenance.library_versions.items())
    teacher = provenance.teacher
    return (
        f"By {_inline(provenance.created_with)} with {versions}; the teacher ran in {_inline(teacher.get('precision'))} on "
        f"{_inline(teacher.get('device_type'))}. {_code(f'{provenance.config_name}/{PROVENANCE_FILE}')} has every setting.\n\n"
        f"Fingerprint: `{provenance.fingerprint}`"
    )


_HEAD = """
Each example carries, for V random views of its image, the augmentation's parameters and the K most probable classes of a
teacher ensemble with their log-probabilities ([Dataset Reinforcement](https://arxiv.org/abs/2303.08983), Faghri et al., ICCV
2023). A student replays stored views bit for bit and learns the stored answers: no teacher in memory, no extra time. The
columns are plain Parquet, which `load_dataset` opens; replaying them needs `pip install hf-dr`.

| column | meaning |
|---|---|
| the base dataset's own | |
| `source_index` | row of the base split |
| `image_hash` | XXH3 of the decoded image's size and RGB pixels |
| `views_hash` | hash of the pixels of all V views, as the teacher saw them |
| `teacher_ids` | \\[V\\]\\[K\\] classes, most probable first |
| `teacher_logprobs` | \\[V\\]\\[K\\] natural log-probabilities of the averaged ensemble, not renormalised |
| `aug_<op>_<parameter>` | \\[V\\] what was drawn |""".strip()

_FOOT = """## Limits and bias

- It is made for training image classifiers over the base dataset's classes: not for evaluating them, and not for recognising
  people or deciding about them.
- The answers are a teacher's, not the truth. A student inherits the teacher's errors, blind spots and biases, and those of the
  data that the teacher learnt from; measure a student where it will be used.
- Of each answer only K classes are kept. How the rest of the probability is spread over the others is not known.
- Images and labels are the base dataset's, with its errors; its licence and terms hold for them. The teachers' licences are
  named with each configuration.

## Citation

```bibtex
@inproceedings{faghri2023reinforce,
  title={Reinforce Data, Multiply Impact: Improved Model Accuracy and Robustness with Dataset Reinforcement},
  author={Faghri, Fartash and Pouransari, Hadi and Mehta, Sachin and Farajtabar, Mehrdad and Farhadi, Ali
    and Rastegari, Mohammad and Tuzel, Oncel},
  booktitle={IEEE/CVF International Conference on Computer Vision (ICCV)},
  year={2023}
}
```

Cite the base dataset and the teachers as well."""

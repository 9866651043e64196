"""Editing a README.md that people edit, too: its YAML key by key, and generated parts of its body.

Generated parts stand between markers on lines of their own. All that is not asked to change stays byte for byte. A damaged
marker, and YAML that cannot be edited so, are a FormatError.

    <!-- hf_dr: config randaug -->
    ...
    <!-- hf_dr: end -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from hf_dr.errors import FormatError
from hf_dr.files import YAML_ERRORS

MAX_LENGTH = 4 << 20
"""Characters of a README; the longest lists of class names take some hundred thousand."""

Data = dict[Any, Any]
"""A parsed YAML mapping."""


def newline_of(text: str) -> str:
    """Returns the line end that a text uses first."""
    found = re.search(r"\r?\n", text)
    return found.group() if found else "\n"


def split_readme(text: str) -> tuple[str, str, str, str]:
    """Cuts a README into opening line, YAML, closing line and body, as the Hub does; without YAML they are put in front."""
    if len(text) > MAX_LENGTH:
        raise FormatError(f"a card must have at most {MAX_LENGTH:,} characters, found {len(text):,}. Shorten it.")
    text = text.removeprefix("\ufeff")
    match = REGEX_YAML_BLOCK.search(text)
    if match is None:
        newline = newline_of(text)
        return f"---{newline}", "", f"{newline}---{newline}", text and newline + text
    return match.group(1), match.group(2), match.group(3), text[match.end() :]


# ---------------------------------------------------------------------------------------------------------------- YAML


def edit_yaml(text: str, change: Callable[[Data], Data], order: Sequence[str], newline: str = "\n") -> str:
    """Edits top-level keys where their value changes; every other line stays as it is, comments too.

    Args:
        text: The YAML, without the lines of dashes.
        change: Takes the parsed YAML and returns the keys to set.
        order: The keys that `change` may set, in the order in which new ones come in.
        newline: Line end of what is written.
    """
    text += "" if not text or text.endswith("\n") else newline  # the last line's end is that of the closing line
    chunks, data = read_entries(text)
    wanted = change(data)
    for key in order:
        if key not in wanted or (key in data and repr(data[key]) == repr(wanted[key])):
            continue
        block = dump_yaml({key: wanted[key]}).replace("\n", newline)
        places = {found: place for place, (found, _) in enumerate(chunks)}
        if key in places:
            chunks[places[key]] = (key, block + _comments_below(chunks[places[key]][1]))
        else:
            later = [places[other] for other in order[order.index(key) :] if other in places]
            chunks.insert(min(later, default=len(chunks)), (key, block))
    edited = "".join(chunk for _, chunk in chunks)
    # A card with many classes takes a moment to parse: one that is not changed is not parsed again.
    after, expected = data if edited == text else read_entries(edited)[1], {**data, **wanted}
    if {key: repr(value) for key, value in after.items()} != {key: repr(value) for key, value in expected.items()}:
        raise FormatError(f"the card's YAML {_PLAIN}, found another form. Write it so.")
    return edited.removesuffix("\n").removesuffix("\r")


def dump_yaml(data: Data) -> str:
    """Returns YAML that reads back as the same data."""
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    # PyYAML loses these unless it escapes them, and then it escapes all that is not ASCII.
    return yaml.safe_dump(data, sort_keys=False) if re.search("[\x85\u2028\u2029\ufeff]", text) else text


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

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Data:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key `{key.value}` twice", key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


@lru_cache(maxsize=2)
def _composed(text: str) -> yaml.Node | None:
    """Parses YAML; kept, because a card with many classes takes a moment, and is read again before it is changed."""
    return _PlainLoader(text).get_single_node()


def read_entries(text: str) -> tuple[list[tuple[Any, str]], Data]:
    """Cuts YAML into its top-level entries, by key and in order, and parses it; what stands above the first has key None."""
    text += "" if not text or text.endswith("\n") else "\n"
    try:
        node = _composed(text)
        data = {} if node is None else _PlainLoader("").construct_document(node)
    except YAML_ERRORS as error:
        found = " ".join(str(error).split())[:300]
        raise FormatError(f"the card's YAML {_PLAIN}, but: {found or type(error).__name__}. Fix it.") from error
    if node is None:  # nothing but comments
        return [(None, text)], {}
    if not isinstance(data, dict):
        raise FormatError(f"the card's YAML must be `key: value` lines, found {type(data).__name__}. Fix it.")
    starts = [key.start_mark for key, _ in node.value]
    if node.flow_style or len(starts) != len(data) or any(mark.column for mark in starts):
        raise FormatError(f"the card's YAML {_PLAIN}, found another form. Write it so.")
    cuts = [0, *(mark.index for mark in starts), len(text)]
    return [(key, text[start:end]) for key, start, end in zip([None, *data], cuts[:-1], cuts[1:], strict=True)], data


# ---------------------------------------------------------------------------------------------------------------- body

_END = "end"
# Whatever looks like a marker must be one: alone on its line, spelt as we spell it.
_LOOSE_MARKER = re.compile(r"<!--[ \t]*hf_dr\b[^\n]*")
_MARKER = re.compile(r"<!-- hf_dr: (\S+(?: \S+)?) -->\r?")
_FIX = "Fix the marker, or delete the part with its markers: it is generated again."


def merge_parts(body: str, parts: Mapping[str, str], rank: Callable[[str], Any], newline: str = "\n") -> str:
    """Replaces generated parts by name, and puts in new ones.

    Args:
        body: The text of a README after its YAML.
        parts: Name (one or two words) -> text, in which `<!--` is escaped: no comment from data can end the part.
        rank: Sorts names; a new part comes after the last one of lower rank, else before the first one.
        newline: Line end of what is written.
    """
    pieces = _split_body(body)
    texts = {}
    for key, text in parts.items():
        shown = text.replace("<!--", "&lt;!--").replace("\n", newline)
        texts[key] = newline.join([_marker(key), shown, _marker(_END)])
    pieces = [(key, texts.pop(key, text) if key is not None else text) for key, text in pieces]
    for key in sorted(texts, key=rank):
        places = {other: place for place, (other, _) in enumerate(pieces) if other is not None}
        before = [place for other, place in places.items() if rank(other) < rank(key)]
        new: list[tuple[str | None, str]]
        if before:
            at, new = max(before) + 1, [(None, 2 * newline), (key, texts[key])]
        elif places:
            at, new = min(places.values()), [(key, texts[key]), (None, 2 * newline)]
        else:
            end = pieces[-1][1]
            gap = "" if not end or end.endswith(2 * newline) else newline if end.endswith("\n") else 2 * newline
            at, new = len(pieces), [(None, gap), (key, texts[key]), (None, newline)]
        pieces[at:at] = new
    return "".join(text for _, text in pieces)


def drop_parts(body: str, names: Collection[str]) -> str:
    """Takes generated parts out, with the empty lines below them."""
    kept = []
    dropped = False
    for key, text in _split_body(body):
        if key is None or key not in names:
            kept.append(text.lstrip("\r\n") if dropped else text)
        dropped = key in names
    return "".join(kept)


def part_names(body: str) -> list[str]:
    """Returns the names of the generated parts of a body, in order."""
    return [key for key, _ in _split_body(body) if key is not None]


def revision_argument(revision: str | None) -> str:
    """Returns `, revision="v2"`, the end of a call's arguments in code to copy; nothing for None."""
    return f", revision={json.dumps(revision)}" if revision else ""


def own_lines(text: str, generated: Collection[str]) -> set[str]:
    """Returns the lines that people wrote: of the body but its title, and of the YAML but the keys that are `generated`."""
    _, metadata, _, body = split_readme(text)
    entries, _ = read_entries(metadata)
    own = [entry for key, entry in entries if key not in generated]
    own += [piece for key, piece in _split_body(body) if key is None]
    lines = {line.strip() for piece in own for line in piece.splitlines()}
    return {line for line in lines if line and not line.startswith("# ")}


def _marker(key: str) -> str:
    return f"<!-- hf_dr: {key} -->"


def _split_body(body: str) -> list[tuple[str | None, str]]:
    """Cuts a body into generated parts, by name, and what stands between them, under None."""
    pieces: list[tuple[str | None, str]] = []
    begun: dict[str, int] = {}
    position = 0
    key = None
    for found in _LOOSE_MARKER.finditer(body):
        match = _MARKER.fullmatch(found.group())
        word = match.group(1) if match else None
        expected = None
        if word is None or (found.start() and body[found.start() - 1] != "\n"):
            expected = f"a marker must stand alone on its line, as `{_marker('NAME')}`"
        elif key is not None and word != _END:
            expected = f"`{_marker(key)}` must be followed by `{_marker(_END)}`"
        elif key is None and word == _END:
            expected = f"`{_marker(_END)}` must end a part"
        elif word in begun:
            expected = f"the part `{word}` must be there once"
        if expected is not None:
            line, shown = body.count("\n", 0, found.start()) + 1, found.group().strip()
            raise FormatError(f"{expected}, found {shown!r:.80} in line {line} of the card's text. {_FIX}")
        assert word is not None
        if key is None:
            pieces.append((None, body[position : found.start()]))
            key, begun[word] = word, found.start()
        else:
            position = found.start() + len(_marker(_END))  # a carriage return belongs to what follows
            pieces.append((key, body[begun[key] : position]))
            key = None
    if key is not None:
        raise FormatError(f"`{_marker(key)}` must be followed by `{_marker(_END)}`, found the end of the card. {_FIX}")
    return [*pieces, (None, body[position:])]

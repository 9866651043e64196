"""The frozen public surface, as texts in which a change is a line or two: names and signatures, flags, settings of recipes.

What others decide is left out: transformers' own training arguments differ between its versions, and argparse words a usage
line in another way in each version of Python. So the flags are told here, not in the words of `--help`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from transformers import TrainingArguments

import hf_dr
from hf_dr.cli.launch import COMMANDS
from hf_dr.cli.main import main
from hf_dr.version import __version__

ROOT = Path(__file__).parents[2]
FOREIGN = {field.name for field in dataclasses.fields(TrainingArguments)}
"""transformers' training arguments."""


# ---------------------------------------------------------------------------------------------------- names, signatures


def api() -> str:
    """Returns all public names; signatures of functions and methods; fields and bases of classes."""
    lines = []
    for name in sorted(hf_dr.__all__):
        lines += _described(name, getattr(hf_dr, name))
    for name, op in sorted(hf_dr.ops.OPS.items()):
        lines += _described(f"ops.{name}", op)
    return "\n".join(lines) + "\n"


def _described(name: str, value: Any) -> list[str]:
    if inspect.isclass(value):
        return _class(name, value)
    if inspect.isfunction(value):
        return [f"{name}{inspect.signature(value)}"]
    return [f"{name}: {type(value).__name__}"]


def _class(name: str, cls: type) -> list[str]:
    bases = ", ".join(base.__name__ for base in cls.__bases__ if base is not object)
    lines = [f"class {name}({bases})"]
    fields = {field.name: field for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    for field_name, field in fields.items():
        if field_name not in FOREIGN or not issubclass(cls, TrainingArguments):
            # As written: HfArgumentParser writes other types into the fields when it is asked for flags.
            kind = next(
                vars(c)["__annotations__"][field_name]
                for c in cls.__mro__
                if field_name in vars(c).get("__annotations__", ())
            )
            lines.append(f"    {name}.{field_name}: {kind}{_default(field)}")
    for member, raw in sorted(_own_members(cls).items()):
        function = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else raw
        if isinstance(raw, property) or hasattr(raw, "func"):
            getter = raw.fget if isinstance(raw, property) else raw.func
            lines.append(f"    {name}.{member} -> {inspect.signature(getter).return_annotation}")
        elif inspect.isfunction(function) and not (member == "__init__" and fields):
            lines.append(f"    {name}.{member}{inspect.signature(function)}")
    return lines


def _own_members(cls: type) -> dict[str, Any]:
    """The public members that this package defines, and how an object is made; those of base classes included."""
    found: dict[str, Any] = {}
    for owner in reversed(cls.__mro__):
        if owner.__module__.partition(".")[0] == "hf_dr":
            found |= {key: value for key, value in vars(owner).items() if not key.startswith("_") or key in _SPECIAL}
    return found


_SPECIAL = ("__init__", "__call__", "__len__", "__getitem__", "__getitems__", "__iter__")


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f" = {field.default!r}"
    return "" if field.default_factory is dataclasses.MISSING else f" = {field.default_factory()!r}"


# ---------------------------------------------------------------------------------------------------------- command line


@contextlib.contextmanager
def _from_the_root() -> Iterator[None]:
    """Paths in recipes start there, and the width of the terminal is given."""
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        with mock.patch.dict(os.environ, {"COLUMNS": "120"}):
            yield
    finally:
        os.chdir(before)


def _printed(argv: list[str]) -> str:
    """What a command prints that then stops."""
    out = io.StringIO()
    with _from_the_root(), contextlib.redirect_stdout(out):
        try:
            status = main(argv)
        except SystemExit as stop:
            status = stop.code
    assert not status, (argv, status)
    return out.getvalue()


def _parser(command: str) -> argparse.ArgumentParser:
    """The parser that answers to `--help`."""
    asked = []
    with mock.patch.object(argparse.ArgumentParser, "print_help", lambda parser, file=None: asked.append(parser)):
        _printed([command, "--help_all" if command in ("teach", "train", "detect", "segment") else "--help"])
    (parser,) = asked
    return parser


def flags() -> str:
    """Returns the words of `hf-dr --help`, and for each command its description and a line for each of its arguments."""
    lines = [_printed(["--help"]).replace(f"hf_dr {__version__}", "hf_dr VERSION").rstrip()]
    for command in COMMANDS:
        parser = _parser(command)
        lines += ["", f"== {parser.prog}", parser.description or ""]
        lines += [_flag(parser, action) for action in _own(parser) if action.dest != "help"]
    return "\n".join(lines) + "\n"


def _own(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments that this package defines. `seed` is transformers' where all of transformers' are there, and ours else."""
    foreign = FOREIGN if {action.dest for action in parser._actions} >= FOREIGN else set()
    return [action for action in parser._actions if action.dest not in foreign]


def _flag(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """One argument: how it is written, what it takes, what it is without, and its help."""
    about = []
    if action.required and action.option_strings:
        about.append("required")
    if action.nargs is not None:
        about.append(f"nargs {action.nargs}")
    if action.choices is not None:
        about.append(f"one of {', '.join(map(str, action.choices))}")
    elif action.type is not None:
        about.append(getattr(action.type, "__name__", str(action.type)))
    if action.default not in (None, argparse.SUPPRESS):
        about.append(f"default {str(action.default) if isinstance(action.default, Path) else action.default!r}")
    if action.metavar is not None:
        about.append(f"shown as {action.metavar}")
    name = ", ".join(action.option_strings) or action.dest
    words = parser._get_formatter()._expand_help(action) if action.help else ""
    return f"{name} [{'; '.join(about)}] {words}"


# --------------------------------------------------------------------------------------------------------------- recipes

_TRAINED = ("teacher", "erm", "erm_small", "erm_transformers", "kd", "plus", "finetune", "finetune_plus")


def entry_points() -> list[tuple[str, list[str]]]:
    """Returns the command and the files of each recipe that can be run as it is, paths from the root."""
    found = []
    for path in sorted(ROOT.glob("recipes/*/*.yaml")):
        name = path.relative_to(ROOT).as_posix()
        command = {"detect": "detect", "segment": "segment", "compare": "compare"}.get(path.stem)
        if path.stem.startswith("reinforce"):
            command = "reinforce"
        elif path.stem in _TRAINED:
            command = "train"
        if path.parent.name == "students":
            found.append(("train", [name, "recipes/imagenet/plus.yaml"]))
        elif command is not None:
            student = [] if "student" in _written(path) else ["recipes/students/resnet50.yaml"]
            found.append((command, [*student, name] if command == "train" else [name]))
    return found


def _written(path: Path) -> set[str]:
    """The settings in a file and in the one that it extends."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    base = content.pop("extends", None)
    return set(content) | (_written(path.parent / base) if base is not None else set())


def recipes() -> str:
    """Returns what `--print_config` prints of each recipe: what it chooses. The rest are defaults, which `flags` has."""
    parts = []
    defaults: dict[str, dict[str, Any]] = {}
    for command, files in entry_points():
        printed = _printed([command, "--config", *files, "--print_config"])
        chosen, _, rest = printed.partition("# Defaults:\n")
        parts.append(f"\n== hf-dr {command} --config {' '.join(files)}")
        written = set().union(*(_written(ROOT / file) for file in files))
        for name, value in yaml.safe_load(chosen).items():
            if name in written:  # transformers calls a default or two of its own chosen
                parts.append(f"{name}: {json.dumps(value)}")
        known = defaults.setdefault(command, {})
        for name, value in (yaml.safe_load(rest) or {}).items():
            if known.setdefault(name, value) != value:
                parts.append(f"# another default than elsewhere: {name}: {value!r}")
    return "\n".join(parts).lstrip() + "\n"


SURFACE = {"api.txt": api, "flags.txt": flags, "recipes.txt": recipes}

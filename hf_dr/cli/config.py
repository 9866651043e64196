"""From the command line and YAML files to dataclasses: `--config` sets defaults, flags win, unknown keys are errors."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import sys
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from hf_dr.cli.early import Lazy, check_early, short_help
from hf_dr.cli.flag_parser import Parser, add_fields, add_files
from hf_dr.cli.yaml_files import read_configs
from hf_dr.errors import ConfigError, did_you_mean

_Settings = TypeVar("_Settings")


def parse(types: Sequence[Any], argv: Sequence[str], *, prog: str, description: str, examples: str = "") -> list[Any]:
    """Builds one instance of each dataclass from arguments.

    Args:
        types: Dataclasses, or `Lazy` ones; each field is a flag, its `help` metadata the help text. They share no field names.
        argv: The arguments, without the program's name.
        prog: What the user typed, for the usage line.
        description: First paragraph of `--help`.
        examples: Command lines, one a line, for the end of the short help.

    Raises:
        ConfigError: A flag or key is unknown, or the YAML file cannot be read.
    """
    lazy = any(isinstance(kind, Lazy) for kind in types)
    files = read_configs(argv)
    if lazy and not {"-h", "--help"}.isdisjoint(argv):
        print(short_help(types, prog, description, examples, files), end="")
        raise SystemExit(0)
    if lazy and "--help_all" not in argv:
        check_early(types, argv, prog, files.keys())
    argv = ["--help" if lazy and word == "--help_all" else word for word in argv]
    types = [kind.load() if isinstance(kind, Lazy) else kind for kind in types]
    parser = _parser_of(types, prog=prog, description=description, examples=examples)
    known = {action.dest: action for action in parser._actions if action.dest != "help"}
    if lazy:
        known["output_dir"].required = True  # transformers' default is one folder for all trainings
    own = {name: _default(parser, action) for name, action in known.items()}
    hints = {name: hint for kind in types for name, hint in get_type_hints(kind, include_extras=True).items()}
    add_files(parser)
    _take_files(parser, known, hints, files)
    given = vars(parser.parse_args(argv))
    if lazy and not given["output_dir"]:
        raise ConfigError("`output_dir` must be given, got an empty text. Name a folder.")
    if given["print_config"]:
        sys.stdout.write(_as_yaml({name: given[name] for name in known}, own))
        raise SystemExit(0)
    return [built(kind, given) for kind in types]


def _default(parser: Parser, action: argparse.Action) -> Any:
    """Returns a flag's default as argparse reads it: a text as what it would be on the command line."""
    default = parser.get_default(action.dest)
    return parser._get_value(action, default) if isinstance(default, str) else default


def _take_files(
    parser: Parser, known: Mapping[str, argparse.Action], hints: Mapping[str, Any], files: Mapping[str, tuple[Any, str]]
) -> None:
    """Makes the settings from files the parser's defaults."""
    for key, (value, file) in files.items():
        if key not in known:
            raise ConfigError(f"{file} has the unknown key `{key}`.{did_you_mean(str(key), known)}")
        action = known[key]
        unset = value is None and parser.get_default(key) is None and not action.required
        typed = None if unset else _as_typed(key, value, hints[key], file)
        for each in typed if isinstance(typed, list) else [typed]:
            if each is not None and action.choices is not None and each not in action.choices:
                known_words = ", ".join(map(str, action.choices))
                raise ConfigError(f"`{key}` in {file} must be one of {known_words}, got {each!r}.")
        if isinstance(typed, str) and callable(action.type):  # argparse would read it later, and not know the file
            try:
                action.type(typed)
            except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
                raise ConfigError(
                    f"`{key}` in {file} must be {_described(hints[key])}, got {typed!r:.80}. Change it."
                ) from error
        action.required = False
        parser.set_defaults(**{key: typed})


def built(kind: type[_Settings], given: Mapping[str, Any]) -> _Settings:
    """Returns a dataclass with the values of its fields that were parsed; `--name ""` takes back what a file sets."""
    missing = dataclasses.MISSING
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if not field.init:
            continue
        value = given[field.name]
        if value in ("", [""]):
            if field.default is missing and field.default_factory is missing:
                raise ConfigError(f"`{field.name}` must be given, got an empty text. Name one.")
            value = field.default if field.default_factory is missing else field.default_factory()
        values[field.name] = value
    return kind(**values)


def _as_yaml(settings: dict[str, Any], defaults: dict[str, Any]) -> str:
    plain = {k: v.value if isinstance(v, enum.Enum) else v for k, v in settings.items()}
    chosen = {key: value for key, value in plain.items() if settings[key] != defaults[key]}
    rest = {key: value for key, value in plain.items() if key not in chosen}
    written = (yaml.safe_dump(p, sort_keys=False, allow_unicode=True, width=1000) if p else "" for p in (chosen, rest))
    return "# Defaults:\n".join(written)


def _as_typed(key: str, value: Any, hint: Any, file: str) -> Any:
    """Returns what a file says of a setting, checked; one item for a list as a list of it."""
    if get_origin(hint) is list and not isinstance(value, (list, dict, NoneType)):
        value = [value]
    if not _fits(value, hint):
        expected = _described(hint)
        advice = "Leave the key out" if value is None else "Put it in quotes" if expected == "text" else "Change it"
        raise ConfigError(f"`{key}` in {file} must be {expected}, got {value!s:.80}. {advice}.")
    return value


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Returns the types that a value may have; a type that is annotated for YAML alone counts as well."""
    if get_origin(hint) is Annotated:
        return (hint.__origin__, *hint.__metadata__)
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for each in get_args(hint) for kind in _alternatives(each))
    return (hint,)


def _fits(value: Any, hint: Any, *, in_list: bool = False) -> bool:
    """Whether a value of a YAML file is of a type, or a word that argparse reads as it reads a flag's."""

    def fits(kind: Any) -> bool:
        plain = get_origin(kind) or kind
        if plain is list:
            items = get_args(kind) or (Any,)
            return isinstance(value, list) and all(_fits(item, items[0], in_list=True) for item in value)
        if plain not in _WORDS:  # None, anything, or choices, which are looked at apart
            return plain is Any or (value is None) == (plain is NoneType)
        if isinstance(value, bool):
            return plain is bool
        number = plain is float and isinstance(value, int)
        return isinstance(value, plain) or number or (isinstance(value, str) and not in_list)

    return any(map(fits, _alternatives(hint)))


_WORDS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "a mapping",
    list: "a list",
}


def _described(hint: Any) -> str:
    """Returns what the types of a setting are called."""
    kinds = [(get_origin(kind) or kind, get_args(kind)) for kind in _alternatives(hint)]
    names = [
        f"a list, each item {_described(items[0])}" if plain is list and items else _WORDS[plain]
        for plain, items in kinds
        if plain in _WORDS
    ]
    return " or ".join(dict.fromkeys(names)) or "set"


def _parser_of(types: Sequence[Any], **settings: Any) -> Parser:
    """Returns a parser with the flags of dataclasses; transformers' own settings are read by transformers' own parser."""
    if any(base.__module__.startswith("transformers.") for kind in types for base in kind.__mro__):
        from transformers import HfArgumentParser

        class ForeignParser(Parser, HfArgumentParser):
            pass

        parser: Parser = ForeignParser(list(types), **settings)
    else:
        parser = Parser(**settings)
        for kind in types:
            add_fields(parser, kind)
    for action in parser._actions:
        if isinstance(action, argparse._StoreFalseAction):  # HfArgumentParser gives it the help of its opposite
            action.help = f"The opposite of --{action.dest}."
    return parser

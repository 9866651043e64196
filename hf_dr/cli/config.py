"""From the command line and YAML files to dataclasses: `--config` sets defaults, flags win, unknown keys are errors.

Of several files later ones win. A file may extend one other, `extends: FILE` (a path relative to its own), one level deep.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from hf_dr.errors import ConfigError, did_you_mean
from hf_dr.files import YAML_ERRORS
from hf_dr.text import shown_text

EXTENDS = "extends"
_WORDS = ("help", "choices", "metavar")  # what argparse is told of a field's metadata
_Settings = TypeVar("_Settings")


def parse(types: Sequence[Any], argv: Sequence[str], *, prog: str, description: str) -> list[Any]:
    """Builds one instance of each dataclass from arguments.

    Args:
        types: Dataclasses; each field is a flag, its `help` metadata the help text. They share no field names.
        argv: The arguments, without the program's name.
        prog: What the user typed, for the usage line.
        description: First paragraph of `--help`.

    Raises:
        ConfigError: A flag or key is unknown, or the YAML file cannot be read.
    """
    parser = _parser_of(types, prog=prog, description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
    known = {action.dest: action for action in parser._actions if action.dest != "help"}
    own = {name: parser.get_default(name) for name in known}
    parser.add_argument(
        "--config",
        metavar="FILE",
        nargs="+",
        action="extend",
        help="YAML files with defaults for these settings; later files win over earlier ones, flags over all. "
        "`extends: OTHER` in a file takes over the settings of another.",
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="Print all settings as YAML that --config reads, those that differ from their defaults first, and stop.",
    )
    unparsed = {}
    for key, (value, file) in read_configs(argv).items():
        if key not in known:
            raise ConfigError(f"{file} has the unknown key `{key}`.{did_you_mean(str(key), known)}")
        if value is not None or own[key] is not None:
            _check_choice(known[key], value, file)
        known[key].required = False
        if isinstance(value, (dict, list)) and known[key].nargs is None:
            unparsed[key] = value  # an augmentation written out as a list of ops
        else:
            parser.set_defaults(**{key: value})
    namespace, rest = parser.parse_known_args(argv)
    for word in rest:
        flag = word.split("=")[0]
        flags = [f for action in parser._actions for f in action.option_strings]
        raise ConfigError(f"unknown argument `{flag}`.{did_you_mean(flag, flags)}")
    given = vars(namespace)
    # A list written in YAML stands unless the flag was given.
    given.update({key: value for key, value in unparsed.items() if given[key] == parser.get_default(key)})
    if given["print_config"]:
        sys.stdout.write(_as_yaml({name: given[name] for name in known}, own))
        raise SystemExit(0)
    return [built(kind, given) for kind in types]


def built(kind: type[_Settings], given: Mapping[str, Any]) -> _Settings:
    """Returns a dataclass with the values of its fields that were parsed."""
    return kind(**{field.name: given[field.name] for field in dataclasses.fields(kind) if field.init})  # type: ignore[arg-type]


def add_fields(parser: argparse.ArgumentParser, kind: type) -> None:
    """Adds a flag for each field of a dataclass, as transformers' HfArgumentParser does, but without importing it.

    A flag with an underscore is spelt with a hyphen, too. A list takes one or several values. A bool takes none, or `true`
    or `false`; one that is True by default has an opposite, `--no_...`.

    Args:
        parser: Gets the flags.
        kind: A dataclass whose fields are of a simple type, or of a list of one, or None. Their metadata may have `help`,
            `choices` and `metavar`.
    """
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        options: dict[str, Any] = {key: field.metadata[key] for key in _WORDS if key in field.metadata}
        if field.default is not dataclasses.MISSING:
            options["default"] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            options["default"] = field.default_factory()
        else:
            options["required"] = True
        value_type = hints[field.name]
        if get_origin(value_type) in (Union, UnionType):  # X | None
            value_type = get_args(value_type)[0]
        if value_type is bool:
            options |= {"type": string_to_bool, "nargs": "?", "const": True}
        elif get_origin(value_type) is list:
            options |= {"type": get_args(value_type)[0], "nargs": "+"}
        else:
            options["type"] = _in_yaml_only if value_type is Any else value_type
        parser.add_argument(*_spellings(field.name), **options)
        if value_type is bool and field.default is True:
            parser.add_argument(*_spellings(f"no_{field.name}"), action="store_false", dest=field.name, default=False)


def _in_yaml_only(text: str) -> NoReturn:
    """Refuses a mapping of settings on the command line."""
    raise argparse.ArgumentTypeError(
        f"it is a mapping of settings, which stands in the YAML file of --config, got {text!r}"
    )


def string_to_bool(text: str) -> bool:
    """Returns what `--flag true` or `--flag no` means.

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    for words, value in ((("yes", "true", "t", "y", "1"), True), (("no", "false", "f", "n", "0"), False)):
        if text.lower() in words:
            return value
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


def config_files(argv: Sequence[str]) -> list[str]:
    """Returns the files that `--config` names, in order."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", nargs="+", action="extend", default=[])
    return list(finder.parse_known_args(list(argv))[0].config)


def read_configs(argv: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Reads the files that `--config` names, and those that they extend: key -> (value, the file that sets it).

    Raises:
        ConfigError: A file cannot be read, or extends one that extends another.
    """
    values: dict[str, tuple[Any, str]] = {}
    for file in config_files(argv):
        own = read_yaml(file)
        if EXTENDS in own:
            name = own.pop(EXTENDS)
            if not isinstance(name, str):
                raise ConfigError(f"`{EXTENDS}` in {file} must be the path of one file, found {name!r}.")
            base = str(Path(file).parent / name)
            inherited = read_yaml(base)
            if EXTENDS in inherited:
                raise ConfigError(
                    f"{base}, which {file} extends, must not extend another, found `{EXTENDS}: {inherited[EXTENDS]}`. Extend "
                    "that one, and state what differs from it."
                )
            values.update({key: (value, base) for key, value in inherited.items()})
        values.update({key: (value, file) for key, value in own.items()})
    return values


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        ConfigError: The file does not exist, is not YAML, or holds no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"`--config` must name a readable file, but {path}: {error.strerror}.") from error
    except YAML_ERRORS as error:
        found = shown_text(error, 300) or type(error).__name__
        raise ConfigError(f"{path} must be YAML, but: {found}. Correct it.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping (`key: value` lines), found {type(content).__name__}.")
    return content


def _as_yaml(settings: dict[str, Any], defaults: dict[str, Any]) -> str:
    plain = {k: v.value if isinstance(v, enum.Enum) else v for k, v in settings.items()}
    chosen = {key: value for key, value in plain.items() if settings[key] != defaults[key]}
    rest = {key: value for key, value in plain.items() if key not in chosen}
    parts = (chosen, "# Defaults:\n", rest)
    return "".join(
        part if isinstance(part, str) else yaml.safe_dump(part, sort_keys=False, allow_unicode=True, width=1000)
        for part in parts
        if part
    )


def _check_choice(action: argparse.Action, value: Any, file: str | None) -> None:
    if action.choices is not None and value not in action.choices:
        raise ConfigError(
            f"`{action.dest}` in {file} must be one of {', '.join(map(str, action.choices))}, got {value!r}."
        )


def _parser_of(types: Sequence[Any], **settings: Any) -> _Parser:
    """Returns a parser with the flags of dataclasses; transformers' own settings are read by transformers' own parser."""
    if any(base.__module__.startswith("transformers.") for kind in types for base in kind.__mro__):
        from transformers import HfArgumentParser

        class ForeignParser(_Parser, HfArgumentParser):
            pass

        parser: _Parser = ForeignParser(list(types), **settings)
    else:
        parser = _Parser(**settings)
        for kind in types:
            add_fields(parser, kind)
    for action in parser._actions:
        if isinstance(action, argparse._StoreFalseAction):  # HfArgumentParser gives it the help of its opposite
            action.help = f"The opposite of --{action.dest}."
    return parser


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


class _Parser(argparse.ArgumentParser):
    """Ends with what is wrong, not with the usage: a training has more than a hundred settings."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}. See `{self.prog} --help`.\n")


class _HelpFormatter(argparse.HelpFormatter):
    """Shows a flag's default where it says something."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        silent = action.default is None or action.default is False or action.default in (argparse.SUPPRESS, [])
        if silent or action.required or "efault:" in text:
            return text
        return f"{text} Default: %(default)s."

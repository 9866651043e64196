"""From the command line and YAML files to dataclasses: `--config` sets defaults, flags win, unknown keys are errors.

Of several files later ones win. A file may extend one other, `extends: FILE` (a path relative to its own), one level deep.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from hf_dr.errors import ConfigError, did_you_mean

EXTENDS = "extends"


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
    parser = _Parser(
        list(types), prog=prog, description=description, formatter_class=_HelpFormatter, allow_abbrev=False
    )
    for action in parser._actions:
        if isinstance(action, argparse._StoreFalseAction):  # HfArgumentParser gives it the help of its opposite
            action.help = f"The opposite of --{action.dest}."
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
        help="Print all settings as YAML that --config reads, those that are no defaults first, and stop.",
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
    return [kind(**{f.name: given[f.name] for f in dataclasses.fields(kind) if f.init}) for kind in types]


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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} must be YAML, but: {error}.") from error
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


class _Parser(HfArgumentParser):
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

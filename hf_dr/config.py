"""From the command line and YAML files to dataclasses: `--config` sets defaults, flags win, unknown keys are errors."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from hf_dr.errors import ConfigError, did_you_mean


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
    parser = HfArgumentParser(
        list(types), prog=prog, description=description, formatter_class=_HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with defaults for these settings; flags win.")
    known = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    file = _config_file(argv)
    values = read_yaml(file) if file is not None else {}
    unparsed = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{file} has the unknown key `{key}`.{did_you_mean(str(key), known)}")
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
    instances = []
    for kind in types:
        fields = {f.name for f in dataclasses.fields(kind)}
        settings = {name: given[name] for name in fields}
        # A list written in YAML stands unless the flag was given.
        settings.update({k: v for k, v in unparsed.items() if k in fields and given[k] == parser.get_default(k)})
        instances.append(kind(**settings))
    return instances


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


def _config_file(argv: Sequence[str]) -> str | None:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    return finder.parse_known_args(list(argv))[0].config


def _check_choice(action: argparse.Action, value: Any, file: str | None) -> None:
    if action.choices is not None and value not in action.choices:
        raise ConfigError(
            f"`{action.dest}` in {file} must be one of {', '.join(map(str, action.choices))}, got {value!r}."
        )


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

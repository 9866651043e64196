"""Settings in YAML files: `--config` sets defaults, and of several files later ones win.

A file may extend one other, `extends: FILE` (a path relative to its own), one level deep.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import yaml

from hf_dr.errors import ConfigError
from hf_dr.files import YAML_ERRORS, expanded
from hf_dr.text import shown_text

EXTENDS = "extends"

RECIPES = Path(__file__).parents[1] / "recipes"
"""The recipes that the package brings."""


class _Loader(yaml.SafeLoader):
    """Refuses what YAML would take for something else without a word: of a key that stands twice in a mapping the last, and
    numbers with a leading zero or with colons as octal ones and as those of base 60."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for n, key in enumerate(keys) if key in keys[:n]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key `{twice}` stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _plain_number(loader: _Loader, node: yaml.ScalarNode) -> Any:
    if ":" in node.value or re.fullmatch(r"[-+]?0[0-7_]+", node.value):
        raise yaml.constructor.ConstructorError(
            None, None, f"{node.value} must be written in decimal digits, or in quotes", node.start_mark
        )
    is_int = node.tag.endswith(":int")
    return loader.construct_yaml_int(node) if is_int else loader.construct_yaml_float(node)


for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _Loader.add_constructor(_tag, _plain_number)


def config_files(argv: Sequence[str]) -> list[str]:
    """Returns the files that `--config` names, in order."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # Without a value it is none here: the command's own parser, which knows its name, refuses that.
    finder.add_argument("--config", nargs="*", action="extend", default=[])
    return list(finder.parse_known_args(list(argv))[0].config)


def read_configs(argv: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Reads the files that `--config` names, and those that they extend: key -> (value, the file that sets it)."""
    values: dict[str, tuple[Any, str]] = {}
    for file in config_files(argv):
        own = read_yaml(file)
        if EXTENDS in own:
            name = own.pop(EXTENDS)
            if not isinstance(name, str):
                raise ConfigError(f"`{EXTENDS}` in {file} must be the path of one file, found {name!r}.")
            base = str(Path(file).parent / expanded(name))
            inherited = read_yaml(base)
            if EXTENDS in inherited:
                raise ConfigError(
                    f"{base}, which {file} extends, must not extend another, found `{EXTENDS}: {inherited[EXTENDS]}`. Extend "
                    "that one, and state what differs from it."
                )
            values.update({key: (value, base) for key, value in inherited.items()})
        values.update({key: (value, file) for key, value in own.items()})
    return values


def own_recipes() -> Path:
    """Returns the folder of the recipes that the package brings."""
    folder = RECIPES.resolve()
    if not folder.is_dir():
        raise ConfigError(
            f"the package must have its recipes in {RECIPES}, but they are not there: a zip archive of the repository has only "
            "a link to them. Install a wheel, or from the repository with git."
        )
    return folder


def read_yaml(path: str | Path, setting: str = "--config") -> dict[str, Any]:
    """Reads a YAML mapping from the file that a setting names."""
    try:
        content = yaml.load(expanded(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        _, found, recipe = Path(path).as_posix().rpartition(f"{RECIPES.name}/")
        hint = (
            f" `hf-dr recipes copy {recipe.split('/')[0]}` puts it there."
            if found and (RECIPES / recipe).is_file()
            else ""
        )
        raise ConfigError(f"`{setting}` must name a readable file, but {path}: {error.strerror}.{hint}") from error
    except YAML_ERRORS as error:
        found = shown_text(error, 300) or type(error).__name__
        raise ConfigError(f"{path} must be YAML, but: {found}. Correct it.") from error
    if not isinstance(content, dict):
        kinds = {NoneType: "nothing", str: "text", list: "a list"}
        found = kinds.get(type(content), type(content).__name__)
        raise ConfigError(f"{path} must hold a mapping (`key: value` lines), found {found}. Write such lines.")
    return content

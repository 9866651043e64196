"""Settings in YAML files: `--config` sets defaults, and of several files later ones win.

A file may extend one other, `extends: FILE` (a path relative to its own), one level deep.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_dr.errors import ConfigError
from hf_dr.files import YAML_ERRORS
from hf_dr.text import shown_text

EXTENDS = "extends"

RECIPES = Path(__file__).parents[1] / "recipes"
"""The recipes that the package brings."""


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML would take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for n, key in enumerate(keys) if key in keys[:n]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key `{twice}` stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def config_files(argv: Sequence[str]) -> list[str]:
    """Returns the files that `--config` names, in order."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", nargs="+", action="extend", default=[])
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
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)
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
        raise ConfigError(f"{path} must hold a mapping (`key: value` lines), found {type(content).__name__}.")
    return content

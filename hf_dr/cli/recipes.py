"""The command that shows and copies the recipes of an installed package: the folder `recipes` of the repository."""

from __future__ import annotations

import ast
import itertools
import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from hf_dr.cli.flag_parser import Parser
from hf_dr.cli.yaml_files import EXTENDS, RECIPES, own_recipes, read_yaml
from hf_dr.errors import ConfigError, did_you_mean
from hf_dr.files import check_writable, expanded, write_whole

_SUFFIXES = (".yaml", ".py", ".sbatch")


def recipes_command(argv: Sequence[str], prog: str) -> int:
    """Lists, shows or copies recipes."""
    parser = Parser(
        prog=prog,
        description="Lists, shows or copies the recipes that the package brings: settings of the paper's experiments for "
        "--config, and the scripts that accelerate launches.",
        examples="hf-dr recipes list\nhf-dr recipes show cifar100/reinforce\nhf-dr recipes copy flowers102",
    )
    parser.add_argument("action", choices=["list", "show", "copy"], help="What is done.")
    parser.add_argument("name", nargs="?", help="A recipe, such as cifar100/reinforce; to copy, also a folder of them.")
    parser.add_argument("to", nargs="?", default="recipes", help="Folder to copy to. Default: recipes.")
    chosen = parser.parse_args(argv)
    known = _recipes()
    if chosen.action == "list":
        if chosen.name is not None:
            raise ConfigError(f"`recipes list` lists all recipes and takes no name, got {chosen.name}. Leave it out.")
        width = max(map(len, known))
        print("\n".join(f"{name:<{width}}  {_summary(path)}" for name, path in known.items()))
        return 0
    if chosen.name is None:
        raise ConfigError(
            f"`recipes {chosen.action}` needs the name of a recipe, got none. `hf-dr recipes list` has them."
        )
    name = chosen.name.rstrip("/").removesuffix(".yaml")
    if chosen.action == "show":
        if name not in known:
            raise ConfigError(f"no recipe is called `{chosen.name}`.{did_you_mean(name, known)}")
        print(known[name].read_text(encoding="utf-8"), end="")
        return 0
    paths = [path for other, path in known.items() if other == name or other.startswith(f"{name}/")]
    if not paths:
        folders = {other.rpartition("/")[0] for other in known} - {""}
        raise ConfigError(
            f"no recipe or folder of recipes is called `{chosen.name}`.{did_you_mean(name, {*known, *folders})}"
        )
    folder = expanded(chosen.to)
    check_writable(folder, "to")
    _copy(paths, folder)
    return 0


def _recipes() -> dict[str, Path]:
    """Returns the recipes by their names: paths below the folder, those of YAML files without the suffix."""
    root = own_recipes()
    paths = sorted(path for path in root.rglob("*") if path.suffix in _SUFFIXES)
    return {path.relative_to(root).as_posix().removesuffix(".yaml"): path for path in paths}


def _summary(path: Path) -> str:
    """Returns the first sentence that a recipe says of itself, without what stands in brackets, in one line."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        told = ast.get_docstring(ast.parse(text)) or ""
    else:
        lines = (line for line in text.splitlines() if not line.startswith("#!"))
        comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
        told = "\n".join(line.lstrip("# ") for line in comment)
    paragraph = " ".join(told.partition("\n\n")[0].split())
    sentence = re.sub(r" \([^()]*\)", "", paragraph).split(". ")[0].rstrip(".:")
    return textwrap.shorten(sentence, 110, placeholder=" ...")


def _copy(paths: Sequence[Path], folder: Path) -> None:
    """Copies recipes, and what they extend, to the same places below a folder; other files there are not replaced."""
    root = own_recipes()
    wanted = dict.fromkeys(paths)
    for path in paths:
        if path.suffix == ".yaml" and EXTENDS in (content := read_yaml(path)):
            wanted[(path.parent / content[EXTENDS]).resolve()] = None
    for path in wanted:
        # The embedded images and teachers are where the package is; YAML files have these paths in single quotes.
        assets = (RECIPES.parent / "assets").as_posix()
        if path.suffix == ".yaml":
            assets = assets.replace("'", "''")
        text = path.read_text(encoding="utf-8").replace("hf_dr/assets/", f"{assets}/")
        target = folder / path.relative_to(root)
        if target.exists() and target.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"{target} must not be there, or be the same, but it differs. Move it, or copy to another folder."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, text)
        shutil.copymode(path, target)
        print(target)

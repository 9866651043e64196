"""The rooms stand in their order, without cycles, and in sizes that can be read; nothing unpickles or draws globally."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT / "hf_dr").with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "hf_dr").rglob("*.py")
}
SOURCES = sorted([*MODULES.values(), *(ROOT / "recipes").rglob("*.py")])

# A module imports from its own room and from rooms of lower levels.
LEVELS = {
    **dict.fromkeys(("errors", "version"), 0),
    **dict.fromkeys(("allocator", "text", "processes", "files", "settings"), 1),
    "views": 2,
    "teacher": 3,
    "store": 4,
    "hub": 5,
    "replay": 6,
    **dict.fromkeys(("generation", "training"), 7),
    "transfer": 8,
    "evaluation": 9,
    "cli": 10,
    **dict.fromkeys(("__init__", "__main__"), 11),  # the public names; `python -m hf_dr`
}
# These need the files of a dataset, not who made them.
WITHOUT_GENERATION = ("training", "transfer", "evaluation")
# What opens a dataset needs these of a teacher, and no classifier, with which come timm and transformers.
READERS = ("store", "hub", "replay")
OF_A_TEACHER = {"teacher.folds", "teacher.metrics", "teacher.names", "teacher.signals", "teacher.topk"}
MAX_LINES = {"module": 600, "class": 300, "function": 80}
# What is longer, and why. The list may only shrink.
LONGER = {}

# What would run code from a file, or hide randomness in global state.
FORBIDDEN = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.load", "torch.hub", "random",
    "numpy.random.seed", "numpy.random.rand", "numpy.random.randn", "numpy.random.randint", "numpy.random.random",
    "numpy.random.choice", "numpy.random.shuffle", "numpy.random.permutation", "numpy.random.RandomState",
}  # fmt: skip


def package_imports(source: str) -> set[str]:
    """Returns the modules of hf_dr that a source imports, anywhere in it, by their dotted names; "" is the package itself."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not looked into"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, place = name.partition(".")
            if package == "hf_dr":
                while place and place not in MODULES:
                    place = place.rpartition(".")[0]
                found.add(place)
    return found


def room_of(module: str) -> str:
    return module.split(".", maxsplit=1)[0] or "__init__"


def cycle_of(imports: dict[str, set[str]]) -> list[str]:
    """Returns modules of which each imports the next and the last the first, or nothing."""
    finished: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in finished:
            return []
        for other in sorted(imports.get(module, ())):
            found = walk(other, [*path, module])
            if found:
                return found
        finished.add(module)
        return []

    for module in sorted(imports):
        found = walk(module, [])
        if found:
            return found
    return []


def lengths(module: str) -> Iterator[tuple[str, str, int]]:
    """Yields what is defined, its dotted name and its lines, of a module and of each class and function in it."""
    source = MODULES[module].read_text("utf-8")
    yield "module", module, len(source.splitlines())

    def walk(parent: ast.AST, name: str) -> Iterator[tuple[str, str, int]]:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                assert node.end_lineno is not None
                yield kind, f"{name}.{node.name}", node.end_lineno - node.lineno + 1
                yield from walk(node, f"{name}.{node.name}")

    yield from walk(ast.parse(source), module)


def used_names(source: str) -> Iterator[str]:
    """Yields the dotted names of all that a source imports or reaches through an imported name."""
    tree, meaning = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                meaning[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                meaning[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        parts, inner = [], node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name) and inner.id in meaning:
            yield ".".join([meaning[inner.id], *reversed(parts)])


def forbidden(source: str) -> list[str]:
    """Returns the forbidden names that a source uses, also by a longer path (`torch.hub.load`)."""
    return sorted(
        name for name in set(used_names(source)) if any(name == bad or name.startswith(f"{bad}.") for bad in FORBIDDEN)
    )


def test_every_module_stands_in_a_room() -> None:
    assert {room_of(name) for name in MODULES} <= set(LEVELS), "a new room must be put into LEVELS"
    assert len(list((ROOT / "hf_dr").glob("*.py"))) <= 9


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down(name: str) -> None:
    """To lower levels, or within the room; imports inside functions count as well."""
    room = room_of(name)
    others = {room_of(other) for other in package_imports(MODULES[name].read_text("utf-8"))} - {room}
    upwards = {other for other in others if LEVELS[other] >= LEVELS[room]}
    assert not upwards, f"{name} (level {LEVELS[room]}) imports from its own level or above: {sorted(upwards)}"
    assert room not in WITHOUT_GENERATION or "generation" not in others


@pytest.mark.parametrize("name", sorted(name for name in MODULES if room_of(name) in READERS) + sorted(OF_A_TEACHER))
def test_a_dataset_is_opened_without_a_classifier(name: str) -> None:
    """Each of timm and transformers takes half a second to import."""
    source = MODULES[name].read_text("utf-8")
    assert {other for other in package_imports(source) if room_of(other) == "teacher"} <= OF_A_TEACHER
    assert {used.partition(".")[0] for used in used_names(source)}.isdisjoint({"timm", "transformers"})


def test_no_cycles() -> None:
    imports = {name: package_imports(path.read_text("utf-8")) - {name} for name, path in MODULES.items()}
    assert cycle_of(imports) == []
    assert cycle_of({"a": {"b"}, "b": {"c", "d"}, "d": {"b"}}) == ["b", "d"]


def test_rooms_say_what_they_are_for() -> None:
    for room in {path.parent for path in MODULES.values()} - {ROOT / "hf_dr", ROOT / "hf_dr" / "views" / "ops"}:
        (docstring,) = ast.parse((room / "__init__.py").read_text("utf-8")).body
        assert isinstance(docstring, ast.Expr), f"{room.name} must have a docstring and nothing else"


def test_nothing_is_too_long_to_read() -> None:
    longer = {name: (kind, count) for m in MODULES for kind, name, count in lengths(m) if count > MAX_LINES[kind]}
    new = {name: found for name, found in longer.items() if name not in LONGER}
    assert not new, f"longer than {MAX_LINES}: {new}. Divide it."
    assert set(LONGER) <= set(longer), f"no longer too long, so take them out: {set(LONGER) - set(longer)}"


@pytest.mark.parametrize(
    "words",
    [
        ["-c", "import hf_dr"],
        ["-m", "hf_dr", "--help"],
        ["-m", "hf_dr", "--version"],
        ["-m", "hf_dr", "trian"],
        *(["-m", "hf_dr", command, "--help"] for command in ("train", "teach", "detect", "segment", "verify")),
    ],
)
def test_the_door_opens_without_torch(words: list[str]) -> None:
    """What `-X importtime` lists is what was imported."""
    result = subprocess.run([sys.executable, "-X", "importtime", *words], capture_output=True, text=True, check=False)
    assert result.returncode == (2 if words[-1] == "trian" else 0), result.stderr[-2000:]
    imported = {
        line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")
    }
    assert "hf_dr" in imported
    assert imported.isdisjoint({"torch", "transformers", "datasets", "numpy", "accelerate"})


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_or_draws_from_global_state(path: Path) -> None:
    assert forbidden(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import hf_dr", {""}),
        ("import hf_dr.views.ops.base as o", {"views.ops.base"}),
        ("from hf_dr.views import ops, maker", {"views.ops", "views.maker"}),
        ("from hf_dr import Augmentation", {""}),
        ("from hf_dr.store.schema import AUG_PREFIX", {"store.schema"}),
        ("def f():\n    from hf_dr.cli.main import main", {"cli.main"}),
        ("import datasets\nfrom pathlib import Path", set()),
    ],
)
def test_the_search_for_imports_finds_them(source: str, modules: set[str]) -> None:
    assert package_imports(source) == modules


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import pickle", ["pickle"]),
        ("from pickle import loads", ["pickle.loads"]),
        ("import torch\ntorch.load('x')", ["torch.load"]),
        ("import torch as t\nt.hub.load('x')", ["torch.hub", "torch.hub.load"]),
        ("from torch import load", ["torch.load"]),
        ("def f():\n    import random\n    random.random()", ["random", "random.random"]),
        ("import numpy as np\nnp.random.seed(0)", ["numpy.random.seed"]),
        ("from numpy.random import seed", ["numpy.random.seed"]),
        ("import numpy as np\nnp.random.Generator(np.random.Philox(0)).random()", []),
        ("import torch\ntorch.utils.data.DataLoader\nmodel.load()\nrng.random()", []),
    ],
)
def test_the_search_for_forbidden_names_finds_them(source: str, names: list[str]) -> None:
    assert forbidden(source) == names


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda script: script.stem)
def test_what_a_benchmark_imports_is_there(script):
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".", maxsplit=1)[0] == "hf_dr":
            module = importlib.import_module(node.module)
            places = {alias.name: f"{node.module}.{alias.name}".removeprefix("hf_dr.") for alias in node.names}
            missing = [name for name, place in places.items() if place not in MODULES and not hasattr(module, name)]
            assert not missing, f"{node.module} has no {', '.join(missing)}"

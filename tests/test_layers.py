"""The library's modules stand in levels, without cycles; nothing unpickles or draws from a global generator."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {path.relative_to(ROOT / "hf_dr").with_suffix("").as_posix(): path for path in (ROOT / "hf_dr").rglob("*.py")}
SOURCES = sorted([*MODULES.values(), *(ROOT / "recipes").rglob("*.py")])

# A module imports only from levels below its own. Put a new module into this table as low as its imports let it.
LEVELS = (
    {"errors", "version", "architectures", "processes", "text"},
    {"named_files"},
    {"rng", "images", "ops", "topk", "losses", "metrics", "base", "config", "retry", "readme", "plain_pickle"},
    {"augmentation", "teacher", "signals", "corruptions", "evaluate_modules", "mixing", "resumable"},
    {"schema", "students"},
    {"shards", "views", "findings", "interface", "join", "ml_dr_format"},
    {"replay", "plain", "sampling", "card"},
    {"streaming", "combined"},
    {"loading"},
    {"reinforce", "contact_sheet", "inspection", "verify", "evaluation", "student_card"},
    {"hub", "comparison", "ml_dr", "extension"},
    {"student_hub", "transfer"},
    {"results", "smoke"},
    {"trainer", "detection", "segmentation"},
    {"__init__", "distillation"},  # the public names; the baseline
    {"cli"},
    {"__main__"},
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

# What would run code from a file, or hide randomness in global state.
FORBIDDEN = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch.load", "torch.hub", "random",
    "numpy.random.seed", "numpy.random.rand", "numpy.random.randn", "numpy.random.randint", "numpy.random.random",
    "numpy.random.choice", "numpy.random.shuffle", "numpy.random.permutation", "numpy.random.RandomState",
}  # fmt: skip


def package_imports(source: str) -> set[str]:
    """Returns the modules of hf_dr that a source imports, anywhere in it; `__init__` for the package itself."""
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
            package, *rest = name.split(".")
            if package == "hf_dr":
                found.add(rest[0] if rest and rest[0] in MODULES else "__init__")
    return found


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


def test_every_module_has_exactly_one_level() -> None:
    """A new module fails here: add it to LEVELS."""
    assert sum(map(len, LEVELS)) == len(LEVEL), "a module is listed twice"
    assert set(MODULES) - set(LEVEL) == set(), "not in LEVELS"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down(name: str) -> None:
    """Strictly, so there can be no cycle; imports inside functions count as well."""
    upwards = {i for i in package_imports(MODULES[name].read_text("utf-8")) if LEVEL[i] >= LEVEL[name]}
    assert not upwards, f"{name} (level {LEVEL[name]}) imports from its own level or above: {sorted(upwards)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_or_draws_from_global_state(path: Path) -> None:
    assert forbidden(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import hf_dr", {"__init__"}),
        ("import hf_dr.views.ops.base as o", {"ops"}),
        ("from hf_dr import ops, reinforce", {"ops", "reinforce"}),
        ("from hf_dr import Augmentation", {"__init__"}),
        ("from hf_dr.store.schema import Provenance", {"schema"}),
        ("def f():\n    from hf_dr.cli.main import main", {"cli"}),
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

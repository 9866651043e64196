"""What users and their files rely on stays as it is: names, flags, recipes, and the bytes of "+" datasets.

What is compared lies in `frozen`. A change on purpose is written there by `tests/frozen/make.py`, and reviewed as a difference.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import hf_dr
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import KEEP, MIXING_SCOPES, SCHEMA_VERSION
from hf_dr.teacher.signals import SIGNALS
from hf_dr.views.ops.base import OPS
from tests.frozen.plus import build, freeze, versions, without_sizes
from tests.frozen.surface import SURFACE

FROZEN = Path(__file__).parent / "frozen"
RENEW = "If that is meant, run `python tests/frozen/make.py {}` and commit what it writes."


def test_the_package_lists_its_public_names():
    assert dir(hf_dr) == sorted(hf_dr.__all__)


@pytest.mark.parametrize("name", SURFACE)
def test_the_surface_is_as_it_was(name):
    expected, found = (FROZEN / name).read_text(encoding="utf-8"), SURFACE[name]()
    lines = difflib.unified_diff(expected.splitlines(), found.splitlines(), "as frozen", "as it is", n=0, lineterm="")
    if expected != found:  # pytest would show more of the texts than helps
        pytest.fail(f"{name} differs. {RENEW.format('surface')}\n" + "\n".join(lines), pytrace=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The frozen datasets, made again."""
    folder = tmp_path_factory.mktemp("frozen")
    with versions():
        build(folder)
    return folder


@pytest.fixture(scope="module")
def found(made) -> dict[str, Any]:
    return freeze(made)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((FROZEN / "plus.json").read_text(encoding="utf-8"))


def differences(expected: dict[str, Any], found: dict[str, Any], path: str = "") -> list[str]:
    """Returns the places at which two nested dictionaries differ."""
    lines = []
    for key in [*expected, *(key for key in found if key not in expected)]:
        place, one, other = f"{path}/{key}", expected.get(key), found.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            lines += differences(one, other, place)
        elif one != other:
            lines.append(f"{place}: {one} as frozen, {other} as it is")
    return lines


def check_same(expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Fails with the places at which they differ."""
    lines = differences(expected, found)
    if lines:
        pytest.fail(f"The datasets differ. {RENEW.format('plus')}\n" + "\n".join(lines), pytrace=False)


def names(frozen: dict[str, Any]) -> list[str]:
    return sorted(frozen["datasets"])


def test_the_same_datasets_are_made(expected, found):
    assert names(expected) == names(found)
    assert expected["cards"].keys() == found["cards"].keys()


def without(frozen: dict[str, Any], part: str) -> dict[str, Any]:
    """The datasets without one part of what is frozen of each."""
    return {name: {key: value for key, value in one.items() if key != part} for name, one in frozen["datasets"].items()}


def test_provenance_types_metadata_and_values_are_as_they_were(expected, found):
    one, other = without(expected, "files"), without(found, "files")
    check_same(one, other)


def test_files_are_the_same_bytes(expected, found):
    if pa.__version__ != expected["pyarrow"]:
        pytest.skip(f"another pyarrow than {expected['pyarrow']} may write the same columns as other bytes")
    one, other = ({name: each["files"] for name, each in frozen["datasets"].items()} for frozen in (expected, found))
    check_same(one, other)


def test_cards_are_as_they_were(expected, found):
    same = pa.__version__ == expected["pyarrow"]  # else files have other sizes, of which the card tells
    keys = ("file", "without_sizes") if same else ("without_sizes",)
    one, other = (
        {name: {key: each[key] for key in keys} for name, each in frozen["cards"].items()}
        for frozen in (expected, found)
    )
    check_same(one, other)


def test_a_card_without_sizes_has_none(made):
    card = (made / "candidates" / "README.md").read_text(encoding="utf-8")
    shown = without_sizes(card)
    assert "download_size: -" in shown
    assert " kB" in card
    assert " kB" not in shown


def test_answers_that_are_some_bits_off_give_the_same_datasets(tmp_path, found):
    """So other processors, whose softmax rounds otherwise, give them too; each unit is one of float32's last place."""
    with versions():
        build(tmp_path, 8)
    check_same(found, freeze(tmp_path))


def test_answers_that_are_far_off_give_others(tmp_path, found):
    with versions():
        build(tmp_path, 1 << 13)
    lines = [line for line in differences(found, freeze(tmp_path)) if "/teacher_logprobs:" in line]
    asked = {name.split("/")[0] for name in names(found)} - {"imported"}
    assert {line.split("/")[2] for line in lines} == asked


def test_everything_is_among_them(made):
    provenances = [Provenance.read(path.parent) for path in made.glob("*/*/reinforcement.json")]
    assert {name for one in provenances for op in one.augmentation for name in op} == set(OPS)
    assert {one.signal for one in provenances} == set(SIGNALS)
    assert {one.candidates["keep"] for one in provenances if one.candidates} == set(KEEP)
    assert {one.mixing_scope for one in provenances if any("CutMix" in op for op in one.augmentation)} == set(
        MIXING_SCOPES
    )
    assert {one.schema_version for one in provenances} == {SCHEMA_VERSION}
    assert {one.overlay for one in provenances} == {False, True}
    assert {one.label_column for one in provenances} == {"label", None}
    assert any(one.skipped_rows for one in provenances)
    assert any("extended_from" in one.teacher for one in provenances)

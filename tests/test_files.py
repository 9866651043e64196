"""Paths: what a `~` at their beginning stands for."""

from pathlib import Path

import pytest

import hf_dr
from hf_dr.cli.main import main
from hf_dr.errors import ConfigError
from hf_dr.files import expanded

NOBODY = "~nosuchuser/x"
REFUSED = (
    r"`~` at the beginning of a path must stand for the home folder of a user, but that of '~nosuchuser/x' is not known"
)


def test_a_path_is_expanded_as_by_a_shell(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for given, expected in (
        ("~/a", "/home/me/a"),
        ("a/~/b", "a/~/b"),
        ("/~x/a", "/~x/a"),
        ("~", "/home/me"),
    ):
        assert expanded(given) == expanded(Path(given)) == Path(expected)


def test_a_home_folder_that_is_not_known_is_said():
    for given in (NOBODY, Path(NOBODY)):
        with pytest.raises(ConfigError, match=rf"{REFUSED}\. Correct the name, or write the path without `~`"):
            expanded(given)


def test_only_one_place_looks_for_home_folders():
    """Python's own error does not say of which path it is."""
    package = Path(hf_dr.__file__).parent
    found = {path.relative_to(package) for path in package.rglob("*.py") if "expanduser" in path.read_text("utf-8")}
    assert found == {Path("files.py")}


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", NOBODY],
        ["verify", NOBODY],
        ["push", NOBODY, "me/plus"],
        ["train", "--dataset", NOBODY, "--output_dir", "out", "--student", "timm:test_resnet"],
        ["train", "--dataset", "x", "--output_dir", NOBODY, "--student", "timm:test_resnet"],
        ["reinforce", "--dataset", NOBODY, "--teacher", "timm/x", "--output_dir", "out"],
        ["reinforce", "--dataset", "x", "--teacher", NOBODY, "--output_dir", "out"],
        ["reinforce", "--dataset", "x", "--teacher", "timm/x", "--output_dir", NOBODY],
        ["evaluate", "--models", "x", "--sets", "y", "--output_dir", NOBODY],
    ],
)
def test_commands_say_so_too(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert "home folder of a user" in capsys.readouterr().err

"""`hf-dr recipes`, and what the package brings: the repository's own folder."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from hf_dr.cli import recipes, yaml_files
from hf_dr.cli.main import main
from hf_dr.cli.yaml_files import RECIPES, read_yaml

FOLDER = Path(__file__).parents[2] / "recipes"


def test_the_package_has_the_folder_of_the_repository(capsys):
    assert RECIPES.resolve() == FOLDER
    assert main(["recipes", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = [path for path in FOLDER.rglob("*") if path.suffix in (".yaml", ".py", ".sbatch")]
    assert len(lines) == len(files)
    assert next(line for line in lines if line.startswith("reinforce.py ")).split(None, 1)[1].startswith("Reinforces a")
    assert all(len(line.split(None, 1)) == 2 for line in lines), "each says what it is"


def test_show(capsys):
    for name in ("cifar100/reinforce", "cifar100/reinforce.yaml"):
        assert main(["recipes", "show", name]) == 0
        assert capsys.readouterr().out == (FOLDER / "cifar100" / "reinforce.yaml").read_text()


def test_a_copy_is_complete_and_can_be_used(tmp_path, capsys):
    assert main(["recipes", "copy", "fashion_mnist/erm", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.rglob("*.yaml")} == {"erm.yaml", "train.yaml"}
    config = ["--config", str(tmp_path / "fashion_mnist" / "erm.yaml"), "--print_config"]
    with pytest.raises(SystemExit, match="0"):
        main(["train", *config])
    dataset = re.search(r"^dataset:\n- (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert (Path(dataset[1]) / "train-00000-of-00001.parquet").is_file()

    assert main(["recipes", "copy", "fashion_mnist", str(tmp_path)]) == 0, "what is there already is the same"
    assert len(list((tmp_path / "fashion_mnist").iterdir())) == len([*(FOLDER / "fashion_mnist").glob("*.*")])
    (tmp_path / "fashion_mnist" / "erm.yaml").write_text("mine: 1")
    assert main(["recipes", "copy", "fashion_mnist", str(tmp_path)]) == 2
    assert "erm.yaml must not be there, or be the same, but it differs" in capsys.readouterr().err
    assert (tmp_path / "fashion_mnist" / "erm.yaml").read_text() == "mine: 1"


def test_a_copied_recipe_finds_the_package_wherever_it_is(tmp_path, monkeypatch):
    package = tmp_path / "it's, a #1 place"
    shutil.copytree(FOLDER / "fashion_mnist", package / "recipes" / "fashion_mnist")
    for module in (recipes, yaml_files):
        monkeypatch.setattr(module, "RECIPES", package / "recipes")
    assert main(["recipes", "copy", "fashion_mnist", str(tmp_path / "copy")]) == 0
    folder = tmp_path / "copy" / "fashion_mnist"
    assert read_yaml(folder / "kd.yaml")["teacher"] == [
        (package / "assets" / "teachers" / f"fashion_mnist_{member}").as_posix() for member in "ab"
    ]
    assert read_yaml(folder / "compare.yaml")["evaluate"]["sets"] == [
        f"test={package.as_posix()}/assets/fashion_mnist:test"
    ]


def test_a_package_without_recipes_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(yaml_files, "RECIPES", tmp_path / "recipes")
    for words in (["recipes", "list"], ["teach", "--dataset", "x", "--teacher", "timm:resnet18", "--output_dir", "y"]):
        assert main(words) == 2
        assert (
            "but they are not there: a zip archive of the repository has only a link to them" in capsys.readouterr().err
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show"], "`recipes show` needs the name of a recipe, got none"),
        (["show", "cifar100/reinforc"], "no recipe is called `cifar100/reinforc`. Did you mean `cifar100/reinforce`?"),
        (["copy", "cifar100", f"{__file__}/x"], "`to` must be where files can be written, but "),
        (["list", "cifar100"], "`recipes list` lists all recipes and takes no name, got cifar100. Leave it out."),
        (["copy", "cifar10"], "no recipe or folder of recipes is called `cifar10`. Did you mean `cifar100`?"),
    ],
)
def test_refusals(words, message, capsys):
    assert main(["recipes", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_copy_goes_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["recipes", "copy", "cifar100", "~/own"]) == 0
    assert (tmp_path / "home" / "own" / "cifar100" / "reinforce.yaml").is_file()
    assert not list((tmp_path / "here").iterdir())


def test_a_script_says_what_it_needs():
    """So that `uv run` and `hf jobs uv run` start it without a clone (PEP 723, with its own regular expression)."""
    text = (FOLDER / "reinforce.py").read_text()
    found = re.search(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$", text)
    assert found["type"] == "script"
    content = tomllib.loads("".join(line[2:] + "\n" for line in found["content"].splitlines()))
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    assert content["requires-python"] == project["requires-python"]
    (needed,) = content["dependencies"]
    assert needed in (FOLDER.parent / "README.md").read_text()
    # The package brings all that it needs itself; the script imports nothing else.
    assert Requirement(needed.replace("URL", "https://host/hf-dr")).name == project["name"]
    assert set(re.findall(r"(?m)^(?:from|import) (\w+)", text)) == {"sys", "hf_dr"}

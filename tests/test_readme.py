"""README and docs: their code runs as it stands, their numbers are those that were measured, their links lead somewhere."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest

import hf_dr

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
RESULTS = ROOT / "benchmarks" / "results"
ROWS = {
    "Fashion-MNIST, ResNet": "fashion_mnist_resnet",
    "Fashion-MNIST, ViT": "fashion_mnist_vit",
    "CIFAR-10, ResNet": "cifar10_resnet",
    "CIFAR-10, ViT": "cifar10_vit",
    "Tiny-ImageNet, ResNet": "tiny_imagenet_resnet",
    "Tiny-ImageNet, ViT": "tiny_imagenet_vit",
    "grocery, ResNet": "grocery_resnet",
    "grocery, ViT": "grocery_vit",
    "grocery, fine-tuned, EfficientNet-Lite0": "grocery_finetune_lite0",
}


def measured(name: str) -> dict[str, float]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def test_the_code_runs_as_it_stands(tmp_path):
    """Offline, each block in a new process and all in one folder, as somebody would paste them."""
    assert len(BLOCKS) == 3
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    printed = []
    for block in BLOCKS:
        done = subprocess.run(
            [sys.executable, "-W", "error::DeprecationWarning:hf_dr", "-c", block],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        printed.append(done.stdout)
    assert "answers: 10 of 10 classes by fashion_mnist_a + fashion_mnist_b" in printed[0]
    assert (tmp_path / "student" / "model.safetensors").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/evaluate.md"])
def test_the_table_of_gains_is_what_was_measured(page):
    found = measured("accuracy")
    table = [line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    rows = [row for row in rows if row[0] in ROWS]
    assert len(rows) == (5 if page == "README.md" else len(ROWS))
    for name, *cells in rows:

        def of(key: str, name: str = name) -> float:
            return found[f"{ROWS[name]}_{key}"]

        expected = [f"{100 * of('erm_top1'):.2f}", f"{100 * of('reinforced_top1'):.2f}"]
        for metric, scale, digits in (("top1", 100, 2), ("nll", 1, 3), ("ece", 100, 2), ("mce", 100, 2)):
            gain, spread = (scale * of(f"{metric}_gain{end}") for end in ("", "_std"))
            expected.append(f"{gain:+.{digits}f} ± {spread:.{digits}f}")
        assert cells == expected[: len(cells)], name


def test_the_numbers_in_the_text_are_what_was_measured():
    found = measured("accuracy")
    gains = {metric: [found[f"{key}_{metric}_gain"] for key in ROWS.values()] for metric in ("top1", "ece")}
    assert [sum(gain > 0 for gain in gains["top1"]), len(ROWS)] == [7, 9]
    assert sum(gain < 0 for gain in gains["ece"]) == 4
    assert "seven\nof nine students became more accurate" in README
    assert "Two of the nine rows lose accuracy" in README
    assert "four lose calibration" in README
    step = measured("step")
    assert f"takes {step['reinforced']:.3f} times one on labels" in README
    assert f"{step['kd']:.2f} times with the teacher in memory" in README
    assert f"A view takes {measured('storage')['randaug']:.1f} bytes" in README


def test_it_is_short_and_has_its_picture():
    assert len(README.splitlines()) <= 150
    picture = ROOT / "docs" / "contact_sheet.png"
    assert picture.stat().st_size < 150_000
    with PIL.Image.open(picture) as sheet:
        assert min(sheet.size) > 1000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_uses_public_names(page):
    """And nothing says that a registry has this package."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"pip install (-U )?['\"]?hf-dr(?!['\"\[\]\w]* @)", text)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("hf_dr"):
                assert node.module == "hf_dr"
                assert {alias.name for alias in node.names} <= set(hf_dr.__all__)

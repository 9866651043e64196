"""What the package carries: the data and the teachers of the demo, usable offline, and fitting each other."""

import importlib.resources
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_dr.cli.arguments import build_augmentation
from hf_dr.cli.yaml_files import read_yaml
from hf_dr.store.base_dataset import load_base
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.preprocessing import evaluation_augmentation
from hf_dr.training.student_inputs import LabelledImages

ASSETS = Path(str(importlib.resources.files("hf_dr"))) / "assets"
TEACHERS = [ASSETS / "teachers" / f"fashion_mnist_{member}" for member in "ab"]


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher.from_pretrained([str(folder) for folder in TEACHERS])


@pytest.mark.parametrize(("split", "rows"), [("train", 10_000), ("test", 2_000)])
def test_the_images(split, rows):
    images, _ = load_base(str(ASSETS / "fashion_mnist"), split=split)
    assert len(images) == rows
    assert images[0]["image"].size == (28, 28)
    assert np.bincount(images["label"]).tolist() == [rows // 10] * 10
    assert "MIT" in (ASSETS / "fashion_mnist" / "LICENSE").read_text(encoding="utf-8")


def test_the_teachers_answer_over_the_classes_of_the_images(teacher):
    images, _ = load_base(str(ASSETS / "fashion_mnist"), split="test")
    teacher.check_classes(images.features["label"].names)
    assert len({member.preprocessing for member in teacher.members}) == 2
    assert sum((folder / "model.safetensors").stat().st_size for folder in TEACHERS) < 2_000_000
    shown = LabelledImages(images.select(range(0, 2000, 8)), evaluation_augmentation((28, 28), 1.0))
    rows = [shown[i] for i in range(len(shown))]
    answers = teacher(torch.stack([row["pixel_values"] for row in rows])).argmax(-1)
    accuracy = np.mean([int(a) == row["labels"] for a, row in zip(answers, rows, strict=True)])
    measured = json.loads((ASSETS / "teachers" / "results.json").read_text(encoding="utf-8"))["ensemble"]["accuracy"]
    assert abs(accuracy - measured) < 0.05  # 250 of the 10,000 images on which it was measured


def test_their_recipe_makes_models_that_see_images_as_they_do():
    recipe = runpy.run_path(str(ASSETS.parents[1] / "recipes" / "fashion_mnist" / "train_teacher.py"))
    for folder, member in zip(TEACHERS, recipe["MEMBERS"].values(), strict=True):
        made = recipe["build_model"](member).config.pretrained_cfg
        kept = json.loads((folder / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
        keys = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
        assert json.loads(json.dumps([made[key] for key in keys])) == [kept[key] for key in keys]


def test_the_cards_say_what_was_measured():
    results = json.loads((ASSETS / "teachers" / "results.json").read_text(encoding="utf-8"))
    for folder in TEACHERS:
        card = (folder / "README.md").read_text(encoding="utf-8")
        member = results["members"][folder.name]
        assert f"| {folder.name} | {member['accuracy']:.2%} | {member['nll']:.4f} |" in card
        assert json.loads((folder / "training.json").read_text(encoding="utf-8"))["command"] in card


@pytest.mark.parametrize(
    "path", sorted(Path(__file__).parents[1].glob("recipes/*/reinforce.yaml")), ids=lambda path: path.parent.name
)
def test_the_recipes_are_augmentations(path):
    settings = read_yaml(path)
    assert build_augmentation(settings["augmentation"], settings.get("size")).size is not None

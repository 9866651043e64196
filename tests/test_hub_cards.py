"""The cards of planned datasets are what the generator says of the recipes, and hold nothing that only a run can tell."""

import importlib.util
import re
from pathlib import Path

import pytest
import timm
import yaml
from huggingface_hub import DatasetCard

from hf_dr.views.augmentation import NAMED, Augmentation

ROOT = Path(__file__).parents[1]
RECIPES = sorted(ROOT.glob("recipes/*/reinforce.yaml"))
CARDS = sorted(ROOT.glob("hub_cards/*/README.md"))


@pytest.fixture(scope="module")
def render():
    spec = importlib.util.spec_from_file_location("render", ROOT / "hub_cards" / "render.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cards_are_the_generators(render):
    rendered = render.render_all()
    assert sorted(rendered) == CARDS
    for path, text in rendered.items():
        assert path.read_text(encoding="utf-8") == text, f"run `python hub_cards/render.py` for {path}"


def test_every_recipe_is_planned_and_its_flags_are_known(render):
    plans = yaml.safe_load((ROOT / "hub_cards" / "plans.yaml").read_text(encoding="utf-8"))
    assert sorted(plan["recipe"] for plan in plans.values()) == [path.parent.name for path in RECIPES]
    every = {f"{path.parent.name}/{path.stem}" for path in ROOT.glob("recipes/*/reinforce*.yaml")}
    assert every == {f"{plan['recipe']}/{recipe}" for plan in plans.values() for recipe in plan["configs"].values()}
    for path in RECIPES:  # an unknown flag or op would be an error
        config = render.planned(path, "x")
        assert Augmentation.from_list(config.augmentation).size is not None


def test_imagenet_plus(render):
    assert set(NAMED) == set(_sections("imagenet-plus")) - {"mini", "small", "free", "randaug_384", "image_tail"}
    for name in NAMED:
        recipe = "reinforce" if name == "randaug" else f"reinforce_{name}"
        config = render.planned(ROOT / f"recipes/imagenet/{recipe}.yaml", name)
        assert config.augmentation == Augmentation.named(name, 224).to_list()
        assert (config.num_views, config.top_k, config.overlay) == (400, 10, True)
        assert len(config.teacher["members"]) == 4
        for member in config.teacher["members"]:
            model = member["id"].removeprefix("timm/")
            assert timm.is_model(model)  # a teacher that timm can build
            assert member["license"] == timm.get_pretrained_cfg(model).license == "cc-by-nc-4.0"
    card = (ROOT / "hub_cards/imagenet-plus/README.md").read_text(encoding="utf-8")
    assert card.count("licensed for non-commercial use only") == card.count("**Overlay") - 1 == 8
    assert "non-commercial" not in _sections("imagenet-plus")["free"]


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_no_planned_card_holds_what_only_a_run_can_tell(path):
    card = DatasetCard.load(path)
    assert not {"dataset_info", "configs", "size_categories"} & card.data.to_dict().keys()
    assert card.data.task_categories == ["image-classification"]
    sections = _sections(path.parent.name)
    for section in sections.values():
        assert "**Planned; not made yet.**" in section
        assert "### Statistics" not in section
        assert "ingerprint" not in section
        assert not re.search(r"\b(Rows|Files|Verification|Students|bytes)\b", section)
    assert sections


def _sections(name):
    text = (ROOT / "hub_cards" / name / "README.md").read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- hf_dr: config (\S+) -->\n(.*?)<!-- hf_dr: end -->", text, re.DOTALL))

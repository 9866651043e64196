"""One calibration error: the edges of the bins, and the same number from all who report it."""

import json
import runpy
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import as_cell
from torch import nn

from hf_dr.evaluation import run as evaluation
from hf_dr.evaluation.comparing import compare
from hf_dr.evaluation.config import CompareConfig, EvaluateConfig
from hf_dr.evaluation.run import run_evaluation
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.inspection import inspect
from hf_dr.generation.job import reinforce
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.members import Member, Preprocessing
from hf_dr.teacher.metrics import classification_metrics, reliability
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import Resize

ROOT = Path(__file__).parents[2]
CLASSES = 4


@pytest.mark.parametrize(("equal", "bin"), [(1, 14), (3, 4), (5, 2), (15, 0)])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below_it(equal, bin):
    """1 / 3 is 5 / 15, the upper edge of the bin of number 4, and so on: n equal logits give 1 / n exactly."""
    logits = np.full((1, 15), -1e9)
    logits[0, :equal] = 0.25
    assert reliability(logits, np.array([0])).counts.nonzero()[0].tolist() == [bin]


def test_an_edge_does_not_mix_with_the_bin_above_it():
    """Confidence 1 / 3 (an upper edge) without a hit and 0.335 (the next bin) with one: two bins of one example."""
    logits = np.log([[1 / 3, 1 / 3, 1 / 3], [0.335, 0.3325, 0.3325]])
    logits[0] = 0
    found = classification_metrics(logits, np.array([1, 0]))["ece"]
    assert found == pytest.approx((1 / 3 + (1 - 0.335)) / 2)  # in one bin it would be |0.5 - 0.334|


class Confident(nn.Module):
    """Reads from the colour which class it predicts (red) and how sure it is (green, in 255ths)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, pixels):
        levels = (pixels[:, :, 0, 0] * 255).round()
        confidence = (levels[:, 1:2].double() / 255).clamp(0.27, 0.999)  # also of corrupted images
        is_predicted = nn.functional.one_hot(levels[:, 0].long() % CLASSES, CLASSES)
        probabilities = torch.where(is_predicted == 1, confidence, (1 - confidence) / (CLASSES - 1))
        return self.scale * probabilities.log().float()


def test_evaluate_inspect_compare_and_the_teachers_recipe_give_the_same_number(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    predicted = rng.integers(CLASSES, size=80)
    levels = rng.choice(
        [75, 100, 132, 180, 201, 240, 254], size=80
    )  # within their bins, for answers are stored in float16
    labels = np.where(rng.random(80) < 0.6, predicted, rng.integers(CLASSES, size=80))
    confidence = levels / 255
    expected = 0.0
    for edge in range(15):
        inside = (confidence > edge / 15) & (confidence <= (edge + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs((predicted == labels)[inside].mean() - confidence[inside].mean())
    assert expected > 0.1

    pictures = [PIL.Image.new("RGB", (8, 8), (p, level, 0)) for p, level in zip(predicted, levels, strict=True)]
    names = datasets.ClassLabel(names=[f"class {c}" for c in range(CLASSES)])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    columns = {"image": [as_cell(picture) for picture in pictures], "label": labels}
    base = datasets.Dataset.from_dict(columns, features=features, split="train")
    base.to_parquet(tmp_path / "base.parquet")
    preprocessing = Preprocessing((8, 8), (0.0,) * 3, (1.0,) * 3, "bilinear")
    member = Member(Confident(), "confident", None, None, CLASSES, None, preprocessing, "hash")
    monkeypatch.setattr(evaluation, "load_member", lambda *_, **__: member)
    found = {}

    sets = [f"test={tmp_path / 'base.parquet'}:train"]
    (result,) = run_evaluation(EvaluateConfig(["m"], sets, "")).results
    found["evaluate"] = result.metrics["ece"]

    reinforce(
        base,
        Teacher([member]),
        Augmentation([Resize((8, 8))]),
        ReinforceConfig(str(tmp_path / "plus"), num_views=1, top_k=4),
    )
    found["inspect"] = inspect(tmp_path / "plus").labels.ece

    (tmp_path / "erm-0").mkdir()
    (tmp_path / "erm-0" / "all_results.json").write_text(json.dumps({"train_runtime": 1.0}))
    (tmp_path / "erm-0" / "trainer_state.json").write_text(json.dumps({"global_step": 1, "log_history": []}))
    settings = {"sets": sets, "corrupt": ["test"], "corruptions": ["fog"], "severities": [1]}
    plus = {"dataset": str(tmp_path / "plus")}
    comparison = compare(CompareConfig("tiny", str(tmp_path), plus, settings, objectives=["erm"], seeds=[0]))
    found["compare"] = comparison.to_dict("comparison")["comparison_erm_ece"]

    recipe = runpy.run_path(str(ROOT / "recipes" / "fashion_mnist" / "train_teacher.py"))
    logprobs = Teacher([member])(torch.stack([torch.from_numpy(np.array(p).transpose(2, 0, 1)) for p in pictures]))
    found["recipe"] = recipe["measure"](logprobs, torch.from_numpy(labels))["ece"]

    assert found == {
        "evaluate": pytest.approx(expected, abs=1e-6),
        "inspect": pytest.approx(expected, abs=1e-3),  # of float16
        "compare": pytest.approx(expected, abs=1e-6),
        "recipe": pytest.approx(expected, abs=1e-4),  # of four digits
    }

"""A teacher is calibrated on views as a run makes them, from Python as from the command line."""

import dataclasses
import re
from unittest.mock import Mock

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import hf_dr
from hf_dr import ConfigError, DataError, ReinforceConfig, Teacher, TeacherError, load_reinforced, ops, reinforce
from hf_dr.cli.main import main
from hf_dr.generation.calibration import held_out_answers
from hf_dr.teacher.calibration import TEMPERATURES, TemperatureFit
from hf_dr.teacher.metrics import classification_metrics
from hf_dr.views.augmentation import Augmentation

VIEWS = [ops.RandomResizedCrop(8), ops.RandomHorizontalFlip(), ops.MixUp(0.5)]


@pytest.fixture(scope="module")
def doubtful(tiny_dataset):
    """Images of which a third have another label than the teacher gives."""
    return tiny_dataset.map(lambda row, n: {"label": 7 if n < 4 else row["label"]}, with_indices=True)


def test_the_calibrated_teacher_answers_at_the_temperature_that_fits_best(doubtful, tiny_teacher):
    found = hf_dr.calibrate(doubtful, tiny_teacher, VIEWS)
    answers, labels = held_out_answers(doubtful, tiny_teacher, Augmentation(VIEWS))
    assert found.trained == classification_metrics(answers, labels)
    assert found.calibrated == classification_metrics(answers / found.temperature, labels)
    assert (found.num_held_out, found.num_classes) == (12, 8)
    assert found.teacher.temperature == found.temperature != 1 == tiny_teacher.temperature
    again, _ = held_out_answers(doubtful, found.teacher, Augmentation(VIEWS))
    assert classification_metrics(again, labels) == pytest.approx(found.calibrated, rel=1e-5)
    losses = [
        TemperatureFit.of(answers, labels, factor * found.temperature).calibrated["nll"] for factor in (0.95, 1, 1.05)
    ]
    assert min(losses) == losses[1] < found.trained["nll"]


def test_of_a_teacher_with_a_temperature_both_are_multiplied(doubtful, tiny_teacher):
    sure = Teacher(tiny_teacher.members, temperature=0.8)
    found, plain = hf_dr.calibrate(doubtful, sure, VIEWS), hf_dr.calibrate(doubtful, tiny_teacher, VIEWS)
    assert found.temperature == pytest.approx(plain.temperature / 0.8, rel=1e-3)
    assert found.teacher.temperature == pytest.approx(plain.teacher.temperature, rel=1e-3)
    assert sure.temperature == 0.8, "the given teacher is as it was"


def test_the_result_is_a_teacher_for_reinforce_and_is_shown_by_print(doubtful, tiny_teacher, tmp_path):
    found = hf_dr.calibrate(doubtful, tiny_teacher, "rrc")
    plus = reinforce(doubtful, found.teacher, VIEWS[:2], ReinforceConfig(str(tmp_path / "plus"), num_views=1, top_k=8))
    assert load_reinforced(tmp_path / "plus").provenance.teacher["temperature"] == found.temperature
    assert hf_dr.verify(plus, found.teacher).ok
    shown = str(dataclasses.replace(found, trained={**found.trained, "top1": 8 / 12}))
    assert re.search(r"held-out top-1 +66\.67 % of 12 images", shown), "rounded to nearest, as the report of a training"
    assert re.search(rf"temperature +{found.temperature:.3f}", shown)
    assert f"{found.trained['nll']:.4f} nats before, {found.calibrated['nll']:.4f} with it" in shown
    assert "tiny" not in repr(found), "the teacher is not part of what is shown"


def test_the_command_prints_what_the_function_finds(tmp_path, capsys, monkeypatch, tiny_teacher):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)) for _ in range(16)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=8)})
    data = datasets.Dataset.from_dict({"image": images, "label": [n % 8 for n in range(16)]}, features=features)
    data.to_parquet(str(tmp_path / "test.parquet"))
    monkeypatch.setattr(Teacher, "from_pretrained", lambda *names, **settings: tiny_teacher)
    argv = ["calibrate", str(tmp_path), "--teacher", "any", "--augmentation", "rrc", "--size", "8"]
    assert main(argv) == 0
    found = hf_dr.calibrate(data, "any", [ops.RandomResizedCrop(8), ops.RandomHorizontalFlip()])
    shown = capsys.readouterr().out
    assert shown.startswith(f"{found}\n\nnext: hf-dr reinforce, with the same dataset, teacher and views, and ")
    assert shown.endswith(f"--teacher_temperature {found.teacher.temperature:.4g}\n")


def test_the_command_loads_no_teacher_for_images_without_labels(tmp_path, capsys, monkeypatch, tiny_dataset):
    tiny_dataset.remove_columns("label").to_parquet(str(tmp_path / "test.parquet"))
    monkeypatch.setattr(Teacher, "from_pretrained", Mock(side_effect=AssertionError("it was loaded")))
    assert main(["calibrate", str(tmp_path), "--teacher", "any", "--augmentation", "rrc", "--size", "8"]) == 2
    assert f"a teacher is calibrated by labels, found none in {tmp_path}" in capsys.readouterr().err


def test_what_cannot_be_calibrated_is_refused(tiny_dataset, tiny_teacher):
    with pytest.raises(ConfigError, match="a teacher is calibrated by labels, found none"):
        hf_dr.calibrate(tiny_dataset.remove_columns("label"), tiny_teacher, VIEWS)
    with pytest.raises(
        ConfigError, match="`augmentation` must be an Augmentation, a name or a list of ops, got RandomR"
    ):
        hf_dr.calibrate(tiny_dataset, tiny_teacher, VIEWS[0])
    with pytest.raises(DataError, match="must have"):
        hf_dr.calibrate(tiny_dataset.select([]), tiny_teacher, VIEWS)
    with pytest.raises(TeacherError, match="the teacher must answer over the dataset's 8 classes, but it has 5"):
        hf_dr.calibrate(tiny_dataset, Teacher(tiny_teacher.members, classes=range(5)), VIEWS)


class Masked(torch.nn.Module):
    """Never answers with the last class."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = self.model(pixels)
        return torch.cat([logits[:, :-1], torch.full_like(logits[:, -1:], -torch.inf)], dim=1)


def test_answers_that_are_not_finite_are_told_before_the_fit(tiny_dataset, tiny_teacher):
    """Numbers would be computed of them, with warnings; the advice leads to answers that are finite."""
    (member,) = tiny_teacher.members
    masked = dataclasses.replace(member, model=Masked(member.model))
    message = r"log-probabilities must be finite, got -inf for a view\..* the model masks classes, leave these out by `classes`"
    with pytest.raises(TeacherError, match=message):
        hf_dr.calibrate(tiny_dataset, Teacher([masked]), VIEWS)
    assert Teacher([masked], classes=range(7))(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).isfinite().all()


def test_a_temperature_on_a_bound_is_told():
    logits = np.eye(3) * 2
    shown = TemperatureFit.of(logits, np.arange(3)).table(", a note", " of a split")
    assert f"temperature        {TEMPERATURES[0]:.3f}, a note" in shown
    assert "100.00 % of 3 images of a split" in shown
    assert "none outside of 0.25 to 4 is tried: too few images, or others than it knows?" in shown

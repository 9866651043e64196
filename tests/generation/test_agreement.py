"""A teacher that does not know the labels: refused before anything is written, and never a teacher that does."""

import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from scipy import stats

import hf_dr.processes
from hf_dr.cli.main import main
from hf_dr.errors import TeacherError
from hf_dr.generation.agreement import LEAST_ROWS, SAMPLED_ROWS, Agreement
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.extend import ExtendConfig, extend
from hf_dr.generation.inspection import inspect
from hf_dr.generation.job import reinforce, reinforce_job
from hf_dr.store.base_dataset import load_base
from hf_dr.store.provenance import Provenance
from hf_dr.teacher.ensemble import Teacher
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomHorizontalFlip, Resize
from hf_dr.views.ops.mixing import MixUp

ASSETS = Path(__file__).parents[2] / "hf_dr" / "assets"
EMBEDDED = [str(ASSETS / "teachers" / f"fashion_mnist_{member}") for member in "ab"]
PLAIN = Augmentation([Resize((28, 28)), RandomHorizontalFlip()])


def answers(classes: int, knows: float, count: int, rng: np.random.Generator) -> Agreement:
    """A teacher that knows the label of each row with a probability, and otherwise guesses."""
    labels = rng.integers(classes, size=count)
    guesses = rng.integers(classes, size=count)
    return Agreement.of(np.where(rng.random(count) < knows, labels, guesses), labels)


@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
@pytest.mark.parametrize("count", [LEAST_ROWS, SAMPLED_ROWS])
def test_the_rule_is_sound_for_few_and_many_classes(classes, count):
    rng = np.random.default_rng(0)
    refused = {
        knows: np.mean([answers(classes, knows, count, rng).is_near_chance for _ in range(200)])
        for knows in (0.0, 0.6, 0.9)
    }
    assert refused[0.0] >= 0.94
    assert refused[0.6] <= 0.01
    assert refused[0.9] == 0


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_another_order_and_one_class_for_all_are_near_chance(classes):
    rng = np.random.default_rng(1)
    labels = rng.integers(classes, size=SAMPLED_ROWS)
    assert Agreement.of((labels + 1) % classes, labels).is_near_chance
    assert Agreement.of(np.zeros_like(labels), labels).is_near_chance
    assert not Agreement.of(labels, labels).is_near_chance


@pytest.mark.parametrize("count", [LEAST_ROWS, SAMPLED_ROWS])
@pytest.mark.parametrize("chance", [0.0, 0.001, 0.1, 0.5, 0.9, 1.0])
def test_the_rule_is_that_of_two_binomial_tests(count, chance):
    """Against scipy's, for each number of hits: who knows a little is told from who knows nothing."""
    for hits in range(count + 1):
        no_more_than_chance = stats.binom.sf(hits - 1, count, chance) > 0.01
        less_than_half = stats.binom.cdf(hits, count, (1 + chance) / 2) < 0.01
        assert Agreement(count, hits, chance).is_near_chance == (no_more_than_chance and less_than_half)


def test_what_is_no_evidence_is_not_refused():
    rng = np.random.default_rng(2)
    assert not answers(10, 0.0, LEAST_ROWS - 1, rng).is_near_chance
    alike = np.zeros(SAMPLED_ROWS, np.int64)
    assert not Agreement.of(alike, alike).is_near_chance
    assert not Agreement.of(np.where(np.arange(SAMPLED_ROWS) % 10, 0, 1), alike).is_near_chance


def test_chance_is_that_of_independent_answers():
    favourites = np.array([0, 0, 0, 1])
    labels = np.array([0, 1, 1, 1])
    assert Agreement.of(favourites, labels) == Agreement(4, 2, 3 / 4 * 1 / 4 + 1 / 4 * 3 / 4)


@pytest.fixture(scope="module")
def images() -> datasets.Dataset:
    loaded, _ = load_base(str(ASSETS / "fashion_mnist"), split="train")
    return loaded.select(range(100))


@pytest.fixture(scope="module")
def shifted() -> Teacher:
    """A good teacher whose classes are in another order, without names that would tell."""
    teacher = Teacher.from_pretrained(EMBEDDED[0], classes=[*range(1, 10), 0])
    teacher.labels = None
    return teacher


def config(folder: Path, **settings) -> ReinforceConfig:
    return ReinforceConfig(str(folder), "a", num_views=1, top_k=3, num_workers=0, **settings)


@pytest.mark.parametrize("augmentation", [PLAIN, Augmentation([*PLAIN.ops, MixUp(p=1)])], ids=["plain", "mixed"])
def test_another_order_of_classes_is_refused_before_anything_is_written(tmp_path, images, shifted, augmentation):
    message = (
        r"most probable class must be the label clearly more often than by chance \(\d+\.\d %\), found it in \d+\.\d\d % of "
        r"100 unmixed views\. It was trained on other classes, on the same in another order, or too little: name "
        r"another teacher, pass `classes` \(--teacher_classes\), or train it longer\. Where the labels themselves are wrong, "
        r"pass `allow_disagreement`\."
    )
    with pytest.raises(TeacherError, match=message):
        reinforce(images, shifted, augmentation, config(tmp_path / "plus"))
    assert not (tmp_path / "plus").exists()
    # Fewer rows are no evidence.
    reinforce(images.select(range(LEAST_ROWS - 1)), shifted, augmentation, config(tmp_path / "few"))


def test_a_teacher_without_numbers_is_not_taken_for_one_of_other_classes(tmp_path, images):
    teacher = Teacher.from_pretrained(EMBEDDED[0])
    with torch.no_grad():
        next(teacher.members[0].model.parameters()).fill_(float("nan"))
    with pytest.raises(TeacherError, match=r"log-probabilities must be finite, got nan for a view"):
        reinforce(images, teacher, PLAIN, config(tmp_path / "plus"))
    assert not (tmp_path / "plus").exists()


def test_who_allows_it_gets_the_bytes_of_before(tmp_path, images, shifted, monkeypatch):
    reinforce(images, shifted, PLAIN, config(tmp_path / "allowed", allow_disagreement=True))
    monkeypatch.setattr(Agreement, "is_near_chance", False)
    reinforce(images, shifted, PLAIN, config(tmp_path / "sampled"))
    allowed, sampled = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "a").glob("*.parquet")}
        for name in ("allowed", "sampled")
    )
    assert allowed
    assert allowed == sampled


def test_a_run_that_goes_on_does_not_ask_again(tmp_path, images, monkeypatch):
    teacher = Teacher.from_pretrained(EMBEDDED[0])
    reinforce(images, teacher, PLAIN, config(tmp_path))
    folder = tmp_path / "a"
    (folder / Provenance.read(folder).shard_names[0]).unlink()
    job = reinforce_job(images, teacher, PLAIN, config(tmp_path))
    monkeypatch.setattr(job, "_sample", lambda: pytest.fail("asked again"))
    job.run()


def test_the_end_of_a_run_tells_the_share_that_inspect_finds(tmp_path, images, caplog):
    caplog.set_level(logging.INFO, "hf_dr")
    mixing = Augmentation([*PLAIN.ops, MixUp(p=0.5)])
    reinforce(images, Teacher.from_pretrained(EMBEDDED[0]), mixing, config(tmp_path))
    found = inspect(tmp_path).labels
    assert found is not None
    assert found.agreement > 0.6
    share = f"{100 * found.agreement:.2f} % of {found.num_views:,} unmixed views."
    assert f"The most probable class is the label in {share}" in [record.getMessage() for record in caplog.records]


def test_new_members_are_compared_too(tmp_path, images, shifted):
    reinforce(images, Teacher.from_pretrained(EMBEDDED[1]), PLAIN, config(tmp_path / "plus"))
    with pytest.raises(TeacherError, match="more often than by chance"):
        extend(tmp_path / "plus", ExtendConfig(str(tmp_path / "more")), add_teacher=shifted)
    assert not (tmp_path / "more").exists()
    extend(tmp_path / "plus", ExtendConfig(str(tmp_path / "more"), allow_disagreement=True), add_teacher=shifted)


def test_a_sample_without_an_image_that_can_be_read_tells_nothing(tmp_path, images):
    rows = {"image": [{"bytes": b"no image", "path": None}] * len(images), "label": images["label"][:]}
    broken = datasets.Dataset.from_dict(rows, images.features)
    job = reinforce_job(broken, Teacher.from_pretrained(EMBEDDED[0]), PLAIN, config(tmp_path, on_bad_image="skip"))
    assert job._sample() is None


def test_a_dry_run_tells_it(tmp_path, images, capsys, monkeypatch):
    (tmp_path / "base").mkdir()
    images.to_parquet(tmp_path / "base" / "train.parquet")
    words = ["reinforce", "--dataset", str(tmp_path / "base"), "--teacher", EMBEDDED[0], "--output_dir"]
    words += [str(tmp_path / "out"), "--size", "28", "--top_k", "3", "--dry_run"]
    monkeypatch.setattr(hf_dr.processes, "has_amx", lambda: True)
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "This CPU has units for bfloat16 (AMX): with `--precision bf16` the teacher would be about" in shown
    assert " % of 100 unmixed views" in shown
    assert "less than 0.01" in shown
    assert " 0.00" not in shown
    monkeypatch.setattr(hf_dr.processes, "has_amx", lambda: False)
    assert main([*words, "--label_column", "none"]) == 0
    shown = capsys.readouterr().out
    assert "not compared: there are no labels" in shown
    assert "AMX" not in shown

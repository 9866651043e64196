"""Cross-fitted teachers and temperatures: who answers for which image, and that a run stays the same however it is run."""

import dataclasses
import json
import re

import datasets
import numpy as np
import pytest
import torch
from conftest import CLASSES, colour_teacher
from hypothesis import given
from hypothesis import strategies as st
from test_extension import assert_same, make, more
from test_reinforce import MIXING, files_of

from hf_dr.errors import ConfigError, FormatError, TeacherError
from hf_dr.generation.calibration import held_out_answers
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.extend import ExtendConfig, extend
from hf_dr.generation.folder import Part
from hf_dr.generation.job import reinforce_job
from hf_dr.generation.labelling import Labeller
from hf_dr.generation.sources import DeviceSource
from hf_dr.generation.verify import verify
from hf_dr.replay.join import index_images, pixels_digest
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.base_dataset import undecoded_images
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import PROVENANCE_FILE
from hf_dr.teacher.calibration import fit_temperature
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.folds import FOLDS_FILE, Fold, fold_in_config, folds_of, with_members
from hf_dr.training.distillation import OnlineDistillationTrainer
from hf_dr.training.teaching import begin_folds
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomResizedCrop

VIEWS = Augmentation([RandomResizedCrop(24)])
NUM_FOLDS = 3
NO_DATASET = "0" * 64


def cross_fitted(dataset: datasets.Dataset | None, *more: Teacher, **settings) -> Teacher:
    """A teacher for each fold, of sharpness 3, 4 and 5, and the members of more teachers."""
    images = NO_DATASET if dataset is None else pixels_digest(undecoded_images(dataset, "image"))
    members = [
        dataclasses.replace(colour_teacher(3.0 + n).members[0], id=f"fold-{n}", left_out=Fold(n, NUM_FOLDS, images))
        for n in range(NUM_FOLDS)
    ]
    return Teacher([*members, *(member for teacher in more for member in teacher.members)], **settings)


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=24), st.booleans())
def test_a_view_is_answered_by_the_members_that_have_not_seen_its_image(hashes, with_another):
    others = [colour_teacher(9.0)] if with_another else []
    teacher = cross_fitted(None, *others)
    views = torch.randint(0, 256, (len(hashes), 3, 8, 8), dtype=torch.uint8)
    answers = teacher.answer(views, np.array(hashes, np.uint64))
    for n, number in enumerate(hashes):
        blind = Teacher([teacher.members[number % NUM_FOLDS], *(member for t in others for member in t.members)])
        torch.testing.assert_close(answers[n], blind(views[n : n + 1])[0])


@given(st.integers(0, (1 << 64) - 1), st.integers(2, 1000))
def test_the_fold_is_the_remainder(number, num_folds):
    assert folds_of(np.array([number], np.uint64), num_folds).tolist() == [number % num_folds]


def test_stored_answers_are_those_of_the_folds_in_any_order_and_process(tmp_path, tiny_dataset):
    teacher = cross_fitted(tiny_dataset)
    whole = make(tmp_path / "whole", tiny_dataset, teacher, 3)
    plus = load_reinforced(whole)
    for row, fold in enumerate(folds_of(plus.image_hashes, NUM_FOLDS)):
        item = plus[row, 2]
        fresh = Teacher([teacher.members[fold]])(item["pixel_values"][None])[0][item["teacher_ids"]]
        assert torch.allclose(fresh, item["teacher_logprobs"].float(), atol=2e-3)
    assert verify(plus, cross_fitted(tiny_dataset)).ok
    wrong = cross_fitted(tiny_dataset)
    turned = [
        dataclasses.replace(m, left_out=Fold(2 - n, NUM_FOLDS, m.left_out.images)) for n, m in enumerate(wrong.members)
    ]
    assert not verify(plus, Teacher(turned)).ok

    make(tmp_path / "workers", tiny_dataset, teacher, 3, num_workers=2, batch_size=5)
    assert files_of(tmp_path / "workers") == files_of(whole)
    config = ReinforceConfig(str(tmp_path / "parts"), "a", num_views=3, top_k=3, shard_size=5, num_workers=0)
    for part in (Part(1, 2), Part(0, 2)):  # as two launches, of which the second resumes
        reinforce_job(tiny_dataset, teacher, MIXING, config).run(part)
    assert files_of(tmp_path / "parts") == files_of(whole)


def test_a_device_asks_the_same_members(tmp_path, tiny_dataset):
    config = ReinforceConfig(str(tmp_path), "a", num_views=3, top_k=3, shard_size=5, num_workers=0)
    plan = reinforce_job(tiny_dataset, cross_fitted(tiny_dataset), VIEWS, config).plan
    job = reinforce_job(tiny_dataset, cross_fitted(tiny_dataset), VIEWS, config)
    labeller = Labeller(cross_fitted(tiny_dataset), plan.provenance)
    job.source = DeviceSource(plan.view_maker(), labeller, 16, 0)
    job.run()
    assert files_of(tmp_path) == files_of(
        make(tmp_path / "host", tiny_dataset, cross_fitted(tiny_dataset), 3, augmentation=VIEWS)
    )


@pytest.mark.parametrize("augmentation", [VIEWS, MIXING], ids=["single", "mixing"])
def test_more_views_are_what_one_run_writes_and_more_members_are_refused(tmp_path, tiny_dataset, augmentation):
    teacher = cross_fitted(tiny_dataset, temperature=1.5)
    source = make(tmp_path / "source", tiny_dataset, teacher, 3, augmentation=augmentation)
    whole = make(tmp_path / "whole", tiny_dataset, teacher, 7, augmentation=augmentation)
    assert_same(more(source, tmp_path / "extended", 7, teacher), whole)
    with pytest.raises(TeacherError, match="new members cannot be averaged in where teachers answer for the folds"):
        extend(source, ExtendConfig(str(tmp_path / "x")), add_teacher=colour_teacher(9.0))
    with pytest.raises(TeacherError, match="more views must be answered by the teacher of the stored ones"):
        more(source, tmp_path / "x", 7, cross_fitted(tiny_dataset))  # at the temperature 1


def test_folds_of_other_images_are_refused(tmp_path, tiny_dataset):
    with pytest.raises(TeacherError, match="the folds of fold-0 must be those of the dataset, but other images were"):
        make(tmp_path, tiny_dataset.select(range(11)), cross_fitted(tiny_dataset), 1)
    with pytest.raises(TeacherError, match="the folds of fold-0 must be those"):
        make(tmp_path, tiny_dataset.shuffle(seed=0), cross_fitted(tiny_dataset), 1)
    with pytest.raises(TeacherError, match=re.escape("a member for each of its 3 folds, found none for [1]")):
        make(tmp_path, tiny_dataset, cross_fitted(tiny_dataset).select([0, 2]), 1)
    other = dataclasses.replace(colour_teacher(9.0).members[0], left_out=Fold(0, 2, NO_DATASET))
    with pytest.raises(TeacherError, match="must have the same number of folds, got 2 and 3"):
        Teacher([*cross_fitted(tiny_dataset).members, other])
    assert not list(tmp_path.iterdir())


def test_copies_of_an_image_are_in_one_fold(tiny_dataset):
    twice = undecoded_images(datasets.concatenate_datasets([tiny_dataset, tiny_dataset]), "image")
    folds = folds_of(index_images(twice), NUM_FOLDS)
    assert np.array_equal(folds[:12], folds[12:])


def test_a_teacher_in_memory_has_no_folds(tiny_plus, tmp_path):
    from training.helpers import pooled

    from hf_dr.training.arguments import ReinforcedTrainingArguments

    with pytest.raises(
        ConfigError, match="a teacher in memory must be one that answers for all images, got one for each"
    ):
        OnlineDistillationTrainer(
            pooled(), ReinforcedTrainingArguments(str(tmp_path)), train_dataset=tiny_plus, teacher=cross_fitted(None)
        )


@pytest.mark.parametrize(
    "content", [{"number": 2, "of": 2, "images": NO_DATASET}, {"number": 0, "of": 1, "images": NO_DATASET}, [0, 2], "0/2",
                {"number": True, "of": 2, "images": NO_DATASET}, {"number": 0, "of": 2, "images": "x"}, {"number": 0}]
)  # fmt: skip
def test_a_fold_from_elsewhere_is_checked(content, tmp_path, tiny_dataset):
    class Config:
        hf_dr_left_out = content

    with pytest.raises(
        TeacherError, match=r"`hf_dr_left_out` in the config.json of 'x' must name one of at least 2 folds"
    ):
        fold_in_config("x", Config())
    folder = make(tmp_path, tiny_dataset, cross_fitted(tiny_dataset), 1) / "a"
    stored = json.loads((folder / PROVENANCE_FILE).read_text())
    stored["teacher"]["members"][0]["left_out"] = content
    with pytest.raises(FormatError, match="a teacher whose members leave out a fold each, or nothing"):
        Provenance.from_dict(stored, "it")


@pytest.mark.parametrize(
    "text", ["{", "[]", "[" * 9999, '{"num_folds": 1}', '{"num_folds": "3"}', '{"num_folds": 1000000000}']
)
def test_a_folder_of_folds_from_elsewhere_is_checked(tmp_path, text):
    (tmp_path / FOLDS_FILE).write_text(text)
    with pytest.raises(TeacherError, match=r"folds.json must say how many folds there are \(`num_folds`\), but: "):
        with_members([str(tmp_path)])


def test_a_folder_is_of_one_division(tmp_path):
    begin_folds(tmp_path, 2, NO_DATASET)
    begin_folds(tmp_path, 2, NO_DATASET)
    assert with_members(["a", str(tmp_path)]) == ["a", str(tmp_path / "fold-0"), str(tmp_path / "fold-1")]
    with pytest.raises(
        ConfigError, match=r"same folds of the same images, but it differs in num_folds, images\. Choose"
    ):
        begin_folds(tmp_path, 3, "1" * 64)


# --------------------------------------------------------------------------------------------------------- temperatures


@given(st.floats(0.25, 4.0), st.integers(1, 3))
def test_a_temperature_divides_the_logarithms_of_the_average(temperature, members):
    teacher = Teacher([colour_teacher(3.0 + n).members[0] for n in range(members)])
    views = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    softened = teacher.select(range(members), temperature=temperature)(views)
    torch.testing.assert_close(softened, (teacher(views) / temperature).log_softmax(-1))


def test_the_temperature_1_changes_no_byte(tmp_path, tiny_dataset, tiny_teacher):
    one = make(tmp_path / "plain-plus", tiny_dataset, tiny_teacher, 2)
    other = make(tmp_path / "other-plus", tiny_dataset, Teacher(tiny_teacher.members, temperature=1.0), 2)
    assert_same(one, other)
    assert "temperature" not in (one / "a" / PROVENANCE_FILE).read_text()
    softer = make(tmp_path / "softer", tiny_dataset, Teacher(tiny_teacher.members, temperature=2.0), 2)
    assert files_of(softer) != files_of(one)
    assert json.loads((softer / "a" / PROVENANCE_FILE).read_text())["teacher"]["temperature"] == 2.0


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_no_temperature(temperature, tiny_teacher):
    with pytest.raises(ConfigError, match="`temperature` must be a number above 0, got"):
        Teacher(tiny_teacher.members, temperature=temperature)


def test_verify_asks_at_the_stored_temperatures_also_of_an_extension(tmp_path, tiny_dataset, tiny_teacher):
    first = Teacher(tiny_teacher.members, temperature=2.0)
    source = make(tmp_path / "source", tiny_dataset, first, 2, top_k=len(CLASSES))
    assert verify(source, tiny_teacher).ok
    extend(
        source,
        ExtendConfig(str(tmp_path / "more"), num_workers=0),
        add_teacher=Teacher(colour_teacher(5.0).members, temperature=0.5),
    )
    both = Teacher([*tiny_teacher.members, *colour_teacher(5.0).members])
    assert verify(tmp_path / "more", both).ok
    stored = load_reinforced(tmp_path / "more")
    item = stored[0, 0]
    parts = [teacher(item["pixel_values"][None])[0].exp() for teacher in (first, both.select([1], temperature=0.5))]
    averaged = (sum(parts) / 2).log()[item["teacher_ids"]]
    assert torch.allclose(averaged, item["teacher_logprobs"].float(), atol=2e-3)


def test_the_fitted_temperature_undoes_another(tiny_dataset, tiny_teacher):
    wrong = tiny_dataset.map(lambda row, n: {"label": 7 if n < 4 else row["label"]}, with_indices=True)
    found = []
    for temperature in (1.0, 1.5):
        teacher = Teacher(tiny_teacher.members, temperature=temperature)
        answers, labels = held_out_answers(wrong, teacher, MIXING)
        assert (answers.shape, labels.tolist()) == ((12, 8), wrong["label"])
        assert np.allclose(np.exp(answers).sum(-1), 1, atol=1e-5)
        found.append(temperature * fit_temperature(answers, labels))
    assert 0.4 < found[0] < 3.9
    assert found[1] == pytest.approx(found[0], rel=1e-3)

"""`verify` accepts what is intact and finds every kind of damage; its KL is the one that its docstring states."""

import logging
import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from conftest import ALL_OPS, CLASSES, as_cell, colour_image
from safetensors.torch import save_file
from samples import shift_labels

from hf_dr.cli.main import main
from hf_dr.errors import ConfigError, FormatError, TeacherError
from hf_dr.generation.config import ExtendConfig, ReinforceConfig
from hf_dr.generation.extend import extend
from hf_dr.generation.job import reinforce
from hf_dr.generation.teachers import teacher_from_provenance
from hf_dr.generation.verify import MAX_KL_MEAN, VerifyReport, answer_kl, drawn_kl, verify
from hf_dr.hub.push import push_to_hub
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.signals import stored_if_kept
from hf_dr.teacher.topk import top_k
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomResizedCrop


def test_an_intact_dataset_is_ok(tiny_plus, tiny_teacher):
    report = verify(tiny_plus, tiny_teacher)
    assert report.ok
    assert (report.num_rows, report.num_views, report.bit_equal, report.top1_agreement) == (12, 4, 1.0, 1.0)
    assert 0 <= report.kl_mean <= report.kl_max < 1e-6, "the same teacher on the same device: only float16 differs"
    assert report.problems == report.version_changes == ()
    assert any(tiny_plus.params(row, view)["partner"] >= 0 for row in range(12) for view in range(4)), (
        "mixing was verified"
    )


def test_pixels_alone_need_no_teacher(tiny_folder):
    report = verify(tiny_folder, num_rows=5, name="all_ops", ask_teacher=False)
    assert report.ok
    assert report.num_rows == 5
    assert report.kl_mean is report.kl_max is report.top1_agreement is None
    assert "not compared" in str(report)


def test_an_overlay_is_verified_with_its_base(tmp_path, tiny_dataset, tiny_teacher):
    reinforce(tiny_dataset, tiny_teacher, ALL_OPS, ReinforceConfig(str(tmp_path), num_views=2, top_k=3, overlay=True))
    assert verify(tmp_path, tiny_teacher, base=tiny_dataset).ok


def test_all_stored_views_are_replayed_whatever_training_uses(tiny_folder):
    plus = load_reinforced(tiny_folder, num_views=1)
    report = verify(plus, ask_teacher=False)
    assert report.ok
    assert report.num_views == 4
    assert plus.num_views == 1, "the caller's dataset stays as it was"


def test_the_batch_size_does_not_matter(tiny_plus, tiny_teacher):
    one, many = (verify(tiny_plus, tiny_teacher, batch_size=size) for size in (1, 1000))
    assert one.ok
    assert many.ok
    assert one.kl_mean == pytest.approx(many.kl_mean, abs=1e-6)


def test_the_sample_is_keyed_by_the_seed(tiny_plus, edit):
    """A damaged row is found in a sample of one by some seeds and not by others, by each always alike."""
    damaged = edit(tiny_plus, "views_hash", lambda hashes: np.where(np.arange(12) < 6, hashes, hashes ^ 1))
    verdicts = [verify(damaged, num_rows=1, seed=seed, ask_teacher=False).ok for seed in range(8)]
    assert set(verdicts) == {True, False}
    assert verdicts == [verify(damaged, num_rows=1, seed=seed, ask_teacher=False).ok for seed in range(8)]


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("column", ["aug_crop_box", "aug_rand_augment_op", "aug_mixup_lam", "aug_flip"])
def test_one_changed_parameter_is_found(tiny_plus, edit, column, device):
    mixed = next(r for r in range(12) if tiny_plus.params(r, 2)["mixup_lam"] not in (0.0, 0.5, 1.0))

    def change(values):
        if column == "aug_crop_box":
            values[7, 2] = (3, 3, 9, 9)
        elif column == "aug_rand_augment_op":
            values[7, 2] = (11, 13)
        elif column == "aug_mixup_lam":
            values[mixed, 2] = 0.5
        else:
            values[7, 2] ^= True
        return values

    report = verify(edit(tiny_plus, column, change), ask_teacher=False, device=device)
    row = mixed if column == "aug_mixup_lam" else 7
    assert not report.ok
    assert report.bit_equal < 1
    assert any(problem.startswith(f"row {row}: the replayed pixels") for problem in report.problems)
    assert len(report.problems) <= 2, "that row, and its partner in that view"
    assert "NOT OK" in str(report)


def test_an_impossible_parameter_is_found(tiny_plus, edit):
    def change(values):
        values[7, 2] = (0, 0, 999, 9)
        return values

    report = verify(edit(tiny_plus, "aug_crop_box", change), ask_teacher=False)
    assert not report.ok
    assert any("needs a box" in problem for problem in report.problems)


def test_another_image_is_found(tiny_plus, edit):
    image = colour_image(np.random.default_rng(1), 3)
    report = verify(
        edit(tiny_plus, "image", lambda cells: [as_cell(image) if r == 3 else c for r, c in enumerate(cells)]),
        ask_teacher=False,
    )
    assert not report.ok
    own = [problem for problem in report.problems if problem.startswith("row 3: ")]
    assert len(own) == 1
    assert "row 3 must hold the image that was reinforced" in own[0]


def test_images_are_checked_even_where_training_does_not(tiny_plus, edit):
    image = colour_image(np.random.default_rng(1), 3)
    damaged = edit(tiny_plus, "image", lambda cells: [as_cell(image) if r == 3 else c for r, c in enumerate(cells)])
    damaged.check_images = False
    assert any("must hold the image" in problem for problem in verify(damaged, ask_teacher=False).problems)
    assert damaged.check_images is False


def test_another_teacher_is_refused_by_name(tiny_plus, make_teacher):
    with pytest.raises(TeacherError, match=r"colours \(SHA-256 [0-9a-f]{12}\), found colours \(SHA-256 [0-9a-f]{12}\)"):
        verify(tiny_plus, make_teacher(4.0))


def test_a_teacher_of_other_classes_is_refused(tiny_plus, tiny_teacher):
    fewer = Teacher(tiny_teacher.members, classes=[0, 1, 2])
    with pytest.raises(TeacherError, match=r"must answer over the stored 8 classes, found 3. Pass the same `classes`"):
        verify(tiny_plus, fewer)


def test_perturbed_answers_are_found(tiny_plus, tiny_teacher, edit):
    def flatten(logprobs):
        return np.sort((logprobs.astype(np.float32) * 0.5 - 0.6).astype(np.float16), axis=-1)[..., ::-1]

    report = verify(edit(tiny_plus, "teacher_logprobs", flatten), tiny_teacher)
    assert report.bit_equal == 1
    assert report.kl_mean > MAX_KL_MEAN
    assert not report.ok


def test_answers_of_other_classes_are_found(tiny_plus, tiny_teacher, edit):
    report = verify(edit(tiny_plus, "teacher_ids", lambda ids: (ids + 1) % 8), tiny_teacher)
    assert report.bit_equal == 1
    assert report.top1_agreement < 0.2
    assert report.kl_max >= report.kl_mean > 0.1
    assert not report.ok


def test_damaged_answers_are_found_without_a_teacher(tiny_plus, edit):
    def change(values):
        values[2, 1, 0] = np.nan
        return values

    report = verify(edit(tiny_plus, "teacher_logprobs", change), ask_teacher=False)
    assert not report.ok
    assert ["row 2, view 1 must be finite" in problem for problem in report.problems] == [True]


def test_another_library_version_is_named_where_something_is_wrong(tiny_plus, edit):
    damaged = edit(tiny_plus, "views_hash", lambda hashes: hashes ^ 1)
    damaged.provenance.library_versions["pillow"], installed = "1.2.3", damaged.provenance.library_versions["pillow"]
    try:
        report = verify(damaged, ask_teacher=False)
    finally:
        damaged.provenance.library_versions["pillow"] = installed
    assert report.bit_equal == 0
    assert report.version_changes == (f"pillow 1.2.3 there, {installed} here",)
    assert "made with another version: pillow 1.2.3" in str(report)
    assert "and 2 more rows" in str(report)


@pytest.mark.parametrize(
    ("report", "ok"),
    [
        (VerifyReport(8, 4, 1.0), True),
        (VerifyReport(8, 4, 1.0, 1e-3, 0.1, 0.98), True),
        (VerifyReport(8, 4, 1.0, 1e-3, 0.11, 0.98), False),
        (VerifyReport(8, 4, 1.0, 1e-3, 1.0, 0.98, precision="bf16"), True),
        (VerifyReport(8, 4, 1.0, 1e-3, 0.1, 0.98, precision="fp16"), True),
        (VerifyReport(8, 4, 0.999), False),
        (VerifyReport(8, 4, 1.0, 1.1e-3, 0.1, 1.0), False),
        (VerifyReport(8, 4, 1.0, 0.0, 0.0, 0.97), False),
        (VerifyReport(8, 4, 1.0, math.nan, 0.0, 1.0), False),
        (VerifyReport(8, 4, 1.0, problems=("row 1: x",)), False),
    ],
)
def test_what_is_ok(report, ok):
    assert report.ok is ok


def test_almost_all_rows_do_not_read_as_all():
    assert "99.99 %" in str(VerifyReport(100_000, 1, 0.99999))


@pytest.mark.parametrize("setting", ["num_rows", "batch_size"])
def test_impossible_settings(tiny_plus, setting):
    with pytest.raises(ConfigError, match=f"`{setting}` must be a whole number of at least 1, got 0"):
        verify(tiny_plus, **{setting: 0}, ask_teacher=False)


def test_name_and_base_belong_to_a_path(tiny_plus, tiny_dataset):
    for more in ({"name": "all_ops"}, {"base": tiny_dataset}):
        with pytest.raises(ConfigError, match="`name` and `base` must come with a path, got an opened dataset"):
            verify(tiny_plus, **more, ask_teacher=False)


# ----------------------------------------------------------------------------------------------------------------- KL


def plain_kl(ids, logprobs, fresh):
    """The docstring's formula without the allowance for rounding, one number after the other."""
    kept = [math.exp(float(value)) for value in logprobs]
    rest = max(0.0, 1 - sum(kept))
    others = sum(math.exp(v) for c, v in enumerate(fresh.tolist()) if c not in ids.tolist())
    terms = [p * math.log(p / math.exp(float(fresh[c]))) for p, c in zip(kept, ids.tolist(), strict=True)]
    return sum(terms) + (rest * math.log(rest / others) if rest else 0.0)


def test_kl_is_the_stated_formula():
    torch.manual_seed(0)
    stored, fresh = (torch.randn(50, 20).mul(2).log_softmax(dim=1) for _ in range(2))
    ids, logprobs = top_k(stored, 5)
    expected = [plain_kl(*answer) for answer in zip(ids, logprobs, fresh, strict=True)]
    np.testing.assert_allclose(answer_kl(ids, logprobs, fresh.numpy()), expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [0.1, 3, 30, 300])
@pytest.mark.parametrize("k", [1, 7, 19, 20])
def test_kl_of_the_same_answer_is_nothing_but_rounding(scale, k):
    torch.manual_seed(0)
    fresh = (scale * torch.randn(200, 20)).log_softmax(dim=1)
    kl = answer_kl(*top_k(fresh, k), fresh.numpy())
    assert np.isfinite(kl).all()
    assert kl.min() > -1e-9
    assert kl.max() < 1e-6


def test_kl_sees_mass_that_has_left_the_kept_classes():
    stored = torch.tensor([[0.6, 0.3, 0.05, 0.05]]).log()
    fresh = torch.tensor([[0.4, 0.2, 0.2, 0.2]]).log()
    expected = 0.6 * math.log(0.6 / 0.4) + 0.3 * math.log(0.3 / 0.2) + 0.1 * math.log(0.1 / 0.4)
    assert answer_kl(*top_k(stored, 2), fresh.numpy())[0] == pytest.approx(expected, abs=1e-3)


# ---------------------------------------------------------------------------------------- the teacher of a provenance


def with_members(plus: ReinforcedDataset, tiny_teacher: Teacher, **changes) -> ReinforcedDataset:
    """The dataset as if a Hub checkpoint had reinforced it."""
    member = {**tiny_teacher.provenance()["members"][0], "id": "org/net", "revision": "0" * 40, **changes}
    teacher = {**tiny_teacher.provenance(), "precision": "bf16", "members": [member]}
    return type(plus.provenance)(**{**plus.provenance.to_dict(), "teacher": teacher})


def test_hub_members_are_loaded_at_their_revision(tiny_plus, tiny_teacher, monkeypatch):
    asked = []

    def from_pretrained(ids, **settings):
        asked.append((ids, settings))
        return Teacher(tiny_teacher.members, **settings)

    monkeypatch.setattr(Teacher, "from_pretrained", from_pretrained)
    provenance = with_members(tiny_plus, tiny_teacher)
    assert teacher_from_provenance(provenance).precision == "bf16", "the run's precision"
    assert teacher_from_provenance(provenance, precision="fp32").precision == "fp32"
    assert asked[0] == ([f"org/net@{'0' * 40}"], {"precision": "bf16", "temperature": 1.0, "classes": None})
    subset = with_members(tiny_plus, tiny_teacher, classes=[2, 1])
    assert teacher_from_provenance(subset).num_classes == 2
    reordered = with_members(tiny_plus, tiny_teacher, classes=list(range(len(CLASSES)))[::-1])
    (member,) = teacher_from_provenance(reordered).provenance()["members"]
    assert member["classes"] == list(range(len(CLASSES)))[::-1]


@pytest.mark.parametrize(
    "changes",
    [
        {"revision": None},
        {"id": "timm:resnet18@weights.safetensors"},
        {"id": "../folder"},
        {"id": "folder"},
        {"revision": "main"},
    ],
)
def test_only_commits_on_the_hub_are_loaded(tiny_plus, tiny_teacher, changes):
    provenance = with_members(tiny_plus, tiny_teacher, **changes)
    with pytest.raises(TeacherError, match=r"unless it is a commit on the Hub, .* that answered as `teacher` "):
        teacher_from_provenance(provenance)


def test_classes_that_were_chosen_one_by_one_are_not_loaded(tiny_plus, tiny_teacher, make_teacher, monkeypatch):
    both = [*tiny_teacher.members, *make_teacher(2.0).members]
    monkeypatch.setattr(Teacher, "from_pretrained", lambda ids, **settings: Teacher(both, **settings))
    provenance = with_members(tiny_plus, tiny_teacher, classes=[2, 1])
    provenance.teacher["members"].append({**provenance.teacher["members"][0], "classes": [1, 2]})
    with pytest.raises(
        TeacherError, match=r"the same classes as in the run, .* chosen one by one. Pass the teacher, made"
    ):
        teacher_from_provenance(provenance)


@pytest.mark.parametrize("members", [[{"id": "a"}], [{"id": "a", "weights_hash": 1}]])
def test_a_malformed_provenance_is_refused(tiny_plus, tiny_teacher, members):
    provenance = type(tiny_plus.provenance)(**{**tiny_plus.provenance.to_dict(), "teacher": {"members": members}})
    plus = ReinforcedDataset(tiny_plus.plus, provenance)
    match = (
        r"`teacher.members` of the provenance must name id and weights_hash, found .* `verify` checks the pixels alone"
    )
    with pytest.raises(FormatError, match=match):
        verify(plus, num_rows=1)
    with pytest.raises(FormatError, match=match):
        verify(plus, tiny_teacher, num_rows=1)
    assert verify(plus, ask_teacher=False, num_rows=1).ok


def test_rows_without_stored_views_are_no_part(tmp_path, tiny_dataset, tiny_teacher):
    config = ReinforceConfig(str(tmp_path), num_views=1, top_k=1, overlay=True, max_examples=4)
    reinforce(tiny_dataset, tiny_teacher, ALL_OPS, config)
    report = verify(load_reinforced(tmp_path, base=tiny_dataset, unreinforced=True), num_rows=12, ask_teacher=False)
    assert (report.num_rows, report.ok) == (4, True)


def test_one_dataset_at_a_time(tiny_folder):
    with pytest.raises(
        ConfigError, match=r'`plus` must be one "\+" dataset .* got CombinedReinforcedDataset\. Open it alone'
    ):
        verify(load_reinforced([tiny_folder]), ask_teacher=False)


# ------------------------------------------------------------------------------------------------------- other signals


@pytest.fixture(scope="module")
def of_signal(tmp_path_factory, tiny_dataset, make_teacher):
    """Each other signal's dataset: 5 views, top 2, and the teacher."""
    teacher, opened = make_teacher(2.0), {}
    for signal in ("topk_image_tail", "sampled"):
        folder = tmp_path_factory.mktemp(signal)
        config = ReinforceConfig(str(folder), num_views=5, top_k=2, signal=signal)
        reinforce(tiny_dataset, teacher, Augmentation([RandomResizedCrop(16)]), config)
        opened[signal] = load_reinforced(folder)
    return opened, teacher


@pytest.mark.parametrize("batch_size", [7, 64])
@pytest.mark.parametrize("signal", ["topk_image_tail", "sampled"])
def test_every_signal_is_verified(of_signal, signal, batch_size):
    opened, teacher = of_signal
    report = verify(opened[signal], teacher, batch_size=batch_size)
    assert report.ok
    assert 0 <= report.kl_max < 1e-6
    assert report.top1_agreement == 1
    assert (report.tail_kl_mean is None) == (signal == "sampled")
    if signal == "topk_image_tail":
        assert 0 <= report.tail_kl_mean < 1e-6
        assert "KL of the tails, mean" in str(report)
        assert report.verification.tail_kl_mean == report.tail_kl_mean
    assert verify(opened[signal], ask_teacher=False).tail_kl_mean is None


def test_a_changed_tail_is_found(of_signal, edit):
    opened, teacher = of_signal
    plus = opened["topk_image_tail"]
    report = verify(edit(plus, "tail_ids", lambda ids: ids[:, ::-1]), teacher)
    assert report.kl_mean < 1e-6
    assert report.tail_kl_mean > MAX_KL_MEAN
    assert not report.ok
    damaged = verify(edit(plus, "tail_logprobs", lambda logs: np.full_like(logs, np.nan)), ask_teacher=False)
    assert len(damaged.problems) == 12
    assert "its tail must be finite" in str(damaged)


def test_a_row_that_breaks_has_no_tail_to_compare(of_signal, edit):
    opened, teacher = of_signal

    def spoil(boxes):
        boxes[3, 2] = 60_000
        return boxes

    report = verify(edit(opened["topk_image_tail"], "aug_crop_box", spoil), teacher)
    assert len(report.problems) == 1
    assert report.tail_kl_mean < 1e-6


def test_drawn_classes_of_another_answer_are_found(tmp_path, tiny_dataset, tiny_teacher, edit):
    config = ReinforceConfig(str(tmp_path), num_views=3, top_k=3, signal="sampled")
    reinforce(tiny_dataset, tiny_teacher, Augmentation([RandomResizedCrop(16)]), config)
    plus = load_reinforced(tmp_path)
    assert verify(plus, tiny_teacher).ok
    report = verify(edit(plus, "teacher_ids", lambda ids: (ids + 1) % 8), tiny_teacher)
    assert report.kl_mean > MAX_KL_MEAN
    assert report.top1_agreement < 1
    assert not report.ok


def test_the_kl_of_drawn_classes_is_the_stated_formula():
    answer = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04]], dtype=torch.float64).log()
    would_be = stored_if_kept(answer, 3)  # the two largest are kept, the others stand for the 0.2 below them
    np.testing.assert_allclose(np.exp(would_be), [[0.5, 0.3, 0.2, 0.2, 0.2]])
    for others in ([0, 1, 2], [0, 1, 3], [0, 1, 4]):
        stored = would_be[:, others].astype(np.float16)
        assert 0 <= drawn_kl(np.array([others]), stored, would_be)[0] < 1e-6
    stored = np.log([[0.4, 0.4, 0.2]]).astype(np.float16)
    expected = 0.4 * math.log(0.4 / 0.5) + 0.4 * math.log(0.4 / 0.3)
    assert drawn_kl(np.array([[0, 1, 2]]), stored, would_be)[0] == pytest.approx(expected, abs=1e-3)
    lacking = drawn_kl(np.array([[0, 2, 3]]), np.log([[0.5, 0.3, 0.2]]).astype(np.float16), would_be)
    assert lacking[0] == pytest.approx(0.3 * math.log(0.3 / 0.2), abs=1e-3)  # the class of 0.3 must be there


def test_a_file_that_is_not_what_was_written_is_found_and_not_published(tmp_path, tiny_folder):
    """Also where only rows that were not sampled are wrong: labels that were shifted by a row, say."""
    folder = tmp_path / "plus"
    shutil.copytree(tiny_folder, folder)
    intact = verify(load_reinforced(folder), num_rows=1, ask_teacher=False)
    assert intact.ok
    assert "shards as written" in str(intact)
    shard = sorted(folder.rglob("*.parquet"))[2]
    shift_labels(shard)
    report = verify(load_reinforced(folder), num_rows=1, ask_teacher=False)
    assert not report.ok
    (problem,) = report.problems
    assert f"{shard.name} must hold what was written, but its columns label have other digests" in problem
    with pytest.raises(FormatError, match=f"{shard.name} must hold what was written"):
        push_to_hub(folder, "me/damaged")


def test_rows_without_proof_are_counted(tiny_plus, edit):
    def forget(hashes):
        hashes[:5] = 0  # read as null
        return hashes

    report = verify(edit(tiny_plus, "views_hash", forget), ask_teacher=False)
    assert (report.num_unproved, report.bit_equal) == (5, 1)
    assert "rows without proof" in str(report)


@pytest.fixture(scope="module")
def by_name(tmp_path_factory, tiny_dataset) -> tuple[str, Path]:
    """A teacher's name, and a folder of a "+" dataset that it labelled."""
    folder = tmp_path_factory.mktemp("by_name")
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=8).state_dict(), folder / "t.safetensors")
    name = f"timm:test_resnet@{folder / 't.safetensors'}"
    config = ReinforceConfig(str(folder / "plus"), num_views=1, top_k=3)
    reinforce(tiny_dataset, name, [RandomResizedCrop(24)], config)
    return name, folder / "plus"


def test_a_teacher_is_given_by_its_name_as_to_reinforce(by_name, tmp_path):
    name, plus = by_name
    assert verify(plus, name).kl_mean == pytest.approx(0, abs=1e-5)
    assert verify(plus, [name]).top1_agreement == 1
    extended = extend(plus, ExtendConfig(str(tmp_path / "more"), num_views=2), teacher=name)
    assert extended.num_views == 2
    assert verify(extended, name).ok


def test_the_teacher_of_the_provenance_is_asked_unless_it_is_declined(by_name, capsys):
    name, plus = by_name
    with pytest.raises(
        TeacherError, match=r"that answered as `teacher` \(--teacher\).*with `ask_teacher=False` \(--no_teacher\)"
    ):
        verify(plus)
    assert verify(plus, ask_teacher=False).kl_mean is None
    with pytest.raises(ConfigError, match="`teacher` must be left out with `ask_teacher=False`, got both"):
        verify(plus, name, ask_teacher=False)
    # The same on the command line.
    assert main(["verify", str(plus)]) == 2
    assert "that answered as `teacher` (--teacher)" in capsys.readouterr().err
    assert main(["verify", str(plus), "--no_teacher"]) == 0
    assert main(["verify", str(plus), "--no_teacher", "--teacher", name]) == 2


def values(shard):
    """Damages values of a shard that opens as ever."""
    shift_labels(shard)


def bytes_of_a_page(shard):
    content = bytearray(shard.read_bytes())
    content[pq.read_metadata(shard).row_group(0).column(0).data_page_offset + 60] ^= 1
    shard.write_bytes(content)


def footer(shard):
    os.truncate(shard, shard.stat().st_size - 1)


@pytest.mark.parametrize("later", [values, bytes_of_a_page, footer])
@pytest.mark.parametrize("earlier", [values, bytes_of_a_page, footer])
def test_of_two_damaged_shards_the_first_is_named(
    tmp_path, tiny_folder, tiny_dataset, tiny_teacher, caplog, earlier, later
):
    """Also where the second one is what cannot be opened."""
    folder = shutil.copytree(tiny_folder, tmp_path / "plus")
    _, first, second = sorted(folder.rglob("*.parquet"))
    earlier(first)
    later(second)
    try:
        said = verify(folder, ask_teacher=False, num_rows=1).problems[0]
    except FormatError as error:
        said = str(error)
    assert re.match(rf"\S+/{first.name} must ", said)
    with pytest.raises(FormatError, match=rf"^\S+/{first.name} must "):
        push_to_hub(folder, "me/damaged")
    settings = ReinforceConfig(str(folder), "all_ops", num_views=4, top_k=3, shard_size=5)
    with caplog.at_level(logging.WARNING, "hf_dr"):
        reinforce(tiny_dataset, tiny_teacher, ALL_OPS, settings)
    again = [record.getMessage() for record in caplog.records if "made again" in record.getMessage()]
    assert [re.search(r"train-\S+\.parquet", message)[0] for message in again] == [first.name, second.name]
    assert verify(folder, ask_teacher=False).ok

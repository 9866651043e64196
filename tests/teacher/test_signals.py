"""What is stored instead of, or next to, the most probable classes: unbiased draws, and the mean of an image's answers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import WithoutDoubles, quick

from hf_dr.errors import ConfigError, DataError, FingerprintMismatchError, FormatError, TeacherError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce, reinforce_job
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.view_requests import fresh_view
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import IMAGE_HASH
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.signals import (
    IMAGE_TAIL,
    SAMPLED,
    SIGNALS,
    TOPK,
    ImageTails,
    described,
    sample,
    sampling_uniform,
    stored_if_kept,
    tail_size,
)
from hf_dr.teacher.topk import top_k
from hf_dr.training.losses import tail_rule
from hf_dr.training.reinforced_settings import TAIL_RULES
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomHorizontalFlip, RandomResizedCrop

PLAIN = Augmentation([RandomResizedCrop(16), RandomHorizontalFlip()])
GRID = 4096

probabilities = st.lists(st.floats(1e-9, 1), min_size=2, max_size=12).flatmap(
    lambda weights: st.tuples(st.just(weights), st.integers(1, len(weights)))
)


def logs(weights: list[float] | np.ndarray) -> torch.Tensor:
    """The answer (1, C) of these proportions."""
    values = np.asarray(weights, np.float64)
    return torch.from_numpy(np.log(values / values.sum()))[None]


def drawn(logprobs: torch.Tensor, k: int, uniforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids (N, K) and exact stored values (N, K), float64, of one answer under each uniform number."""
    ids, _ = sample(logprobs.expand(len(uniforms), -1), k, uniforms)
    return ids, np.exp(stored_if_kept(logprobs, k)[0])[ids]


# --------------------------------------------------------------------------------------------------------- draws


@quick
@given(probabilities)
def test_the_mean_over_all_draws_is_the_answer(case: tuple[list[float], int]) -> None:
    """The numbers that draw a class are an interval of the circle: a grid meets it as often as its length says, but one."""
    weights, k = case
    answer = logs(weights)
    ids, values = drawn(answer, k, (np.arange(GRID) + 0.5) / GRID)
    probs = answer.exp()[0].numpy()
    mean = np.bincount(ids.ravel(), values.ravel(), len(weights)) / GRID
    assert (np.abs(mean - probs) <= values.max() / GRID + 1e-12).all()
    threshold = values.min()  # no class is stored with less
    assert (np.abs(mean - probs)[probs <= threshold] <= threshold / GRID + 1e-12).all()
    np.testing.assert_allclose(mean[probs > threshold], probs[probs > threshold], rtol=1e-12)  # for sure, as they are


@quick
@given(probabilities, st.floats(0, 1, exclude_max=True))
def test_a_draw_has_k_classes_and_the_sum_one(case: tuple[list[float], int], uniform: float) -> None:
    weights, k = case
    ids, values = drawn(logs(weights), k, np.array([uniform]))
    assert len(set(ids[0].tolist())) == k
    np.testing.assert_allclose(values.sum(), 1, rtol=1e-12)


def test_rational_answers_are_met_exactly() -> None:
    """For K = 3 the threshold is 7/24: 5/12 is kept, and of the others each in its share of a grid of 28 numbers."""
    probs = np.array([5, 3, 1, 1, 1, 1]) / 12
    ids, values = drawn(logs(probs), 3, (np.arange(28) + 0.5) / 28)
    np.testing.assert_allclose(np.sort(values, axis=1)[:, ::-1], np.tile([5 / 12, 7 / 24, 7 / 24], (28, 1)), rtol=1e-12)
    assert np.bincount(ids.ravel()).tolist() == [28, 24, 8, 8, 8, 8]


@pytest.mark.parametrize("uniform", [0.0, 0.5, np.nextafter(1, 0)])
@pytest.mark.parametrize(("classes", "k"), [(1, 1), (2, 1), (7, 3), (100, 99), (1000, 10), (1000, 999)])
def test_equal_classes_are_drawn_once_each(classes: int, k: int, uniform: float) -> None:
    """Every length equals the distance of the points: the case in which rounding could meet one twice, or none."""
    ids, values = drawn(logs(np.ones(classes)), k, np.full(3, uniform))
    assert all(len(set(row)) == k for row in ids.tolist())
    np.testing.assert_allclose(values, 1 / k, rtol=1e-12)


def test_a_device_without_doubles_gives_the_same() -> None:
    answers, uniforms = logs([4, 3, 2, 1]).float(), np.array([0.3])
    there = answers.as_subclass(WithoutDoubles)
    for found, expected in zip(sample(there, 2, uniforms), sample(answers, 2, uniforms), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_some_equal_classes_above_a_tail() -> None:
    probs = np.array([0.2, 0.2, 0.2, 0.2, *[0.02] * 10])
    for uniform in np.linspace(0, 1, 200, endpoint=False):
        ids, values = drawn(logs(probs), 6, np.array([uniform]))
        assert set(range(4)) < set(ids[0].tolist())
        np.testing.assert_allclose(np.sort(values[0])[::-1], [0.2] * 4 + [0.1] * 2)


@pytest.mark.parametrize("uniform", [0.0, 0.7])
def test_all_classes_kept_are_the_answer_itself(uniform: float) -> None:
    answer = (3 * torch.randn(5, 20, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    ids, logprobs = sample(answer, 20, np.full(5, uniform))
    expected_ids, expected = top_k(answer, 20)
    np.testing.assert_array_equal(np.sort(ids), np.sort(expected_ids))
    np.testing.assert_allclose(logprobs.astype(float), expected.astype(float), rtol=1e-3)


def test_no_more_classes_with_a_probability_than_are_kept() -> None:
    """What float64 gives no probability follows in the order of its logarithm."""
    answer = torch.tensor([[-900.0, np.log(0.25), -800.0, np.log(0.75), -1000.0]], dtype=torch.float64)
    ids, logprobs = sample(answer, 3, np.array([0.9]))
    assert ids.tolist() == [[3, 1, 2]]
    np.testing.assert_allclose(logprobs.astype(float), [[np.log(0.75), np.log(0.25), -800]], rtol=1e-3)
    assert (stored_if_kept(answer, 3) == answer.numpy()).all()


def test_a_sure_answer_keeps_the_small_classes_apart() -> None:
    """The mass below the first class, 1e-12, is added up from below, so that it is not lost to rounding."""
    probs = np.array([1.0, 6e-13, 3e-13, 1e-13])
    _, values = drawn(logs(probs), 2, np.array([0.1]))
    np.testing.assert_allclose(np.sort(values[0]), [1e-12, 1], rtol=1e-9)


def test_stored_in_the_types_and_order_of_every_answer() -> None:
    answer = (2 * torch.randn(30, 50, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    ids, logprobs = sample(answer, 10, np.random.default_rng(0).random(30))
    assert (ids.shape, ids.dtype, logprobs.dtype) == ((30, 10), np.uint16, np.float16)
    falling = np.diff(logprobs.astype(float)) <= 0
    rising_ids = np.diff(ids.astype(int)) > 0
    assert falling.all()
    assert rising_ids[np.diff(logprobs.astype(float)) == 0].all()
    np.testing.assert_allclose(np.exp(logprobs.astype(float)).sum(-1), 1, atol=2e-3)


def test_a_common_factor_of_the_probabilities_changes_nothing() -> None:
    """Those of an answer in float32 have a sum next to 1; what is stored of it has the sum 1."""
    answer = (2 * torch.randn(1, 30, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).log_softmax(-1)
    uniforms = (np.arange(16) + 0.5) / 16
    expected_ids, expected = drawn(answer, 5, uniforms)
    ids, values = drawn(answer + 0.1, 5, uniforms)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_the_highest_id_is_drawn_whole() -> None:
    answer = torch.full((1, 65_537), -20.0)
    answer[0, [0, -1]] = torch.tensor([0.4, 0.6]).log()
    ids, _ = sample(answer, 2, np.zeros(1))
    assert ids.dtype == np.uint32
    assert ids.tolist() == [[65_536, 0]]


def test_a_draw_is_keyed_by_seed_example_and_view_and_not_by_its_batch() -> None:
    uniforms = [sampling_uniform(*key) for key in ((0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3))]
    assert len(set(uniforms)) == 4
    assert all(0 <= u < 1 for u in uniforms)
    assert sampling_uniform(0, 1, 2) == uniforms[0]
    answer = torch.randn(4, 30, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    whole = sample(answer, 5, np.array(uniforms))
    parts = [sample(answer[n : n + 1], 5, np.array(uniforms[n : n + 1])) for n in range(4)]
    for n in range(2):
        np.testing.assert_array_equal(whole[n], np.concatenate([part[n] for part in parts]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_answers_that_are_not_finite_are_refused(bad: float) -> None:
    answer = torch.zeros(2, 4).log_softmax(-1)
    answer[1, 2] = bad
    with pytest.raises(TeacherError, match=r"must be finite, got (nan|inf) for a view\. Try --precision fp32"):
        sample(answer, 2, np.zeros(2))
    with pytest.raises(TeacherError, match=r"must be finite, got -inf for a view"):
        sample(torch.tensor([[0.0, -torch.inf, -torch.inf]]), 2, np.zeros(1))


# -------------------------------------------------------------------------------------------------- an image's tail


def test_the_tail_is_the_mean_whatever_the_batches_are() -> None:
    answers = (3 * torch.randn(23, 300, generator=torch.Generator().manual_seed(3))).log_softmax(-1).numpy()
    mean = np.exp(answers.astype(np.float64)).mean(axis=0)
    expected = np.argsort(-mean, kind="stable")[:100]
    found = []
    for cuts in ([], [1], [16], [5, 6, 20], list(range(1, 23))):
        tails = ImageTails(23)
        for part in np.split(answers, cuts):
            tails.add(part)
        found.append([part[0] for part in tails.take(1)])
    ids, logprobs = found[0]
    assert set(ids.tolist()) == set(expected.tolist())
    np.testing.assert_allclose(np.exp(logprobs.astype(float)), mean[ids], rtol=5e-3)
    assert (ids.dtype, logprobs.dtype) == (np.uint16, np.float16)
    for other in found[1:]:
        np.testing.assert_array_equal(ids, other[0])
        np.testing.assert_array_equal(logprobs, other[1])


def test_a_row_does_not_remember_the_one_before() -> None:
    answers = torch.randn(9, 8, generator=torch.Generator().manual_seed(4)).log_softmax(-1).numpy()
    tails = ImageTails(3)
    tails.add(answers[:7])
    first = tails.take(1)
    tails.add(answers[7:])
    found = [np.concatenate(parts) for parts in zip(first, tails.take(2), strict=True)]
    for row in range(3):
        alone = ImageTails(3)
        alone.add(answers[3 * row : 3 * row + 3])
        for one, other in zip(found, alone.take(1), strict=True):
            np.testing.assert_array_equal(one[row], other[0])


def test_classes_without_a_probability_are_stored_as_finite_numbers() -> None:
    tails = ImageTails(1)
    tails.add(np.array([[0.0, -2000.0, -3000.0]], np.float32))
    ids, logprobs = tails.take(1)
    assert ids.tolist() == [[0, 1, 2]]
    assert np.isfinite(logprobs).all()
    assert logprobs[0, 1] < -700
    with pytest.raises(TeacherError, match=r"must be finite, got nan for a view"):
        tails.add(np.array([[0.0, np.nan, -1.0]], np.float32))


@pytest.mark.parametrize(("classes", "size"), [(1, 1), (99, 99), (100, 100), (101, 100), (21_841, 100)])
def test_a_tail_has_at_most_100_classes(classes: int, size: int) -> None:
    assert tail_size(classes) == size


# --------------------------------------------------------------------------------------------------------- tail rules


def test_each_signal_has_its_rule_and_the_rules_that_fit() -> None:
    assert [tail_rule(None, signal) for signal in SIGNALS] == ["uniform", "image", "renormalize"]
    fitting = {TOPK: {*TAIL_RULES} - {"image"}, IMAGE_TAIL: {*TAIL_RULES}, SAMPLED: {"renormalize", "zero"}}
    for signal, rules in fitting.items():
        for rule in TAIL_RULES:
            if rule in rules:
                assert tail_rule(rule, signal) == rule
                continue
            drawn = ": what was drawn stands for the whole answer" if signal == SAMPLED else ""
            why = ": no tails of its images are stored" if rule == "image" else drawn
            with pytest.raises(
                ConfigError, match=rf"for the signal `{signal}`, got '{rule}'{why}\. Leave `tail` out, or"
            ):
                tail_rule(rule, signal)


def test_signals_in_words() -> None:
    assert described(TOPK, 10, 1000) == "top 10 of 1,000 classes"
    assert described(IMAGE_TAIL, 5, 1000) == "top 5 of 1,000 classes and a tail for each image"
    assert described(SAMPLED, 5, 1000) == "5 of 1,000 classes, drawn"


# ------------------------------------------------------------------------------------------------------------ the run


def run(folder: Path, dataset: datasets.Dataset, teacher: Teacher, signal: str, **settings) -> list[str]:
    settings = {"num_views": 5, "top_k": 2, "shard_size": 5, "num_workers": 0, **settings}
    reinforce(dataset, teacher, PLAIN, ReinforceConfig(str(folder), "a", signal=signal, **settings))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.parquet"))]


@pytest.fixture(scope="module", params=SIGNALS[1:])
def made(request, tmp_path_factory, tiny_dataset, make_teacher) -> tuple[str, Path, list[str]]:
    """A signal, the folder of a "+" dataset with it, 5 views and top 2 in shards of 5 rows, and the hashes of its files."""
    folder = tmp_path_factory.mktemp("signal")
    return request.param, folder, run(folder, tiny_dataset, make_teacher(2.0), request.param)


class Recording(Teacher):
    """Keeps its whole answers."""

    answers: list[np.ndarray]

    def __call__(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        answer = super().__call__(views_BCHW)
        self.answers.append(answer.numpy())
        return answer


def test_every_row_and_view_has_what_its_answers_say(tmp_path, tiny_dataset, make_teacher) -> None:
    """Against the definition on the teacher's whole answers, which come in batches of 16 that rows of 5 views straddle."""
    for signal in SIGNALS[1:]:
        teacher = Recording(make_teacher(2.0).members)
        teacher.answers = []
        run(tmp_path / signal, tiny_dataset, teacher, signal, num_workers=1, shard_size=12)
        answers = np.concatenate(teacher.answers)[: 12 * 5]
        plus = load_reinforced(tmp_path / signal)
        for row in range(12):
            own = answers[5 * row : 5 * row + 5]
            if signal == IMAGE_TAIL:
                ids, logprobs = plus.image_tail(row)
                mean = np.exp(own.astype(np.float64)).mean(axis=0)
                np.testing.assert_array_equal(logprobs, np.log(mean[ids]).astype(np.float16))
            for view in range(5):
                answer = torch.from_numpy(own[view : view + 1])
                uniform = np.array([sampling_uniform(0, row, view)])
                expected = sample(answer, 2, uniform) if signal == SAMPLED else top_k(answer, 2)
                for one, other in zip(plus.teacher_answer(row, view), expected, strict=True):
                    np.testing.assert_array_equal(one, other[0])


@pytest.mark.parametrize("settings", [{"batch_size": 7, "num_workers": 2}, {"num_workers": 1}])
def test_columns_do_not_depend_on_batches_or_workers(made, tmp_path, tiny_dataset, make_teacher, settings) -> None:
    signal, _, expected = made
    assert run(tmp_path, tiny_dataset, make_teacher(2.0), signal, **settings) == expected


def test_row_groups_of_few_rows_give_the_same_columns(made, tmp_path, tiny_dataset, make_teacher, monkeypatch) -> None:
    signal, folder, _ = made
    monkeypatch.setattr("hf_dr.store.shards.ROW_GROUP_VIEWS", 10)
    run(tmp_path, tiny_dataset, make_teacher(2.0), signal)
    first, second = (load_reinforced(f).plus.with_format("arrow")[:] for f in (folder, tmp_path))
    assert first.equals(second)


def test_stopped_and_resumed_equals_uninterrupted(made, tmp_path, tiny_dataset, make_teacher) -> None:
    signal, _, expected = made
    config = ReinforceConfig(str(tmp_path), "a", num_views=5, top_k=2, shard_size=5, num_workers=0, signal=signal)
    job = reinforce_job(tiny_dataset, make_teacher(2.0), PLAIN, config)
    answers = job.source.answers
    job.source.answers = lambda spans: stop_after(answers(spans), 3)
    with pytest.raises(KeyboardInterrupt):
        job.run()
    assert len(list(tmp_path.rglob("*.parquet"))) == 1
    assert run(tmp_path, tiny_dataset, make_teacher(2.0), signal) == expected


def stop_after(answers, count: int):
    for number, answer in enumerate(answers):
        if number == count:
            raise KeyboardInterrupt
        yield answer


def test_a_resumed_run_keeps_its_signal(made, tiny_dataset, make_teacher) -> None:
    signal, folder, _ = made
    with pytest.raises(FingerprintMismatchError, match=rf"signal: {signal} there, topk here"):
        run(folder, tiny_dataset, make_teacher(2.0), TOPK)


def test_every_signal_stands_in_the_provenance(made, tmp_path, tiny_dataset, make_teacher) -> None:
    signal, folder, _ = made
    provenance = Provenance.read(folder / "a")
    assert (provenance.schema_version, provenance.signal) == (4, signal)
    config = ReinforceConfig(str(tmp_path), "a", num_views=5, top_k=2)
    plain = reinforce_job(tiny_dataset, make_teacher(2.0), PLAIN, config).provenance
    assert (plain.schema_version, plain.signal) == (4, TOPK)
    assert plain.to_dict()["signal"] == TOPK


def test_rows_without_an_image_have_no_tail(tmp_path, tiny_dataset, make_teacher) -> None:
    rows = tiny_dataset.cast_column("image", datasets.Image(decode=False)).to_list()
    rows[3]["image"] = {"bytes": b"none", "path": None}
    broken = datasets.Dataset.from_list(rows, features=tiny_dataset.features, split="train")
    with pytest.raises(DataError, match="row 3"):
        run(tmp_path / "a", broken, make_teacher(2.0), IMAGE_TAIL)
    run(tmp_path / "b", broken, make_teacher(2.0), IMAGE_TAIL, on_bad_image="skip")
    run(tmp_path / "c", tiny_dataset, make_teacher(2.0), IMAGE_TAIL)
    plus, whole = (load_reinforced(tmp_path / name) for name in "bc")
    tails = plus.plus.with_format("numpy")["tail_logprobs"]
    assert [row for row in range(12) if np.isnan(tails[row]).any()] == [3]
    for row in range(11):  # the row after the broken one is not shifted
        for one, other in zip(plus.image_tail(row), whole.image_tail(row + (row > 2)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_estimate_counts_the_tail(tmp_path, tiny_dataset, make_teacher) -> None:
    sizes = []
    for signal in (TOPK, IMAGE_TAIL):
        config = ReinforceConfig(str(tmp_path), "a", num_views=5, top_k=2, signal=signal)
        job = reinforce_job(tiny_dataset, make_teacher(2.0), PLAIN, config)
        job.estimate(2)  # warms up
        sizes.append(job.estimate(2).bytes_reinforcement)
        assert not job.folder.exists()
    assert sizes[0] < sizes[1]


def test_load_dataset_opens_it_without_this_package(made) -> None:
    signal, folder, _ = made
    plain = datasets.load_dataset(str(folder), "a", split="train")
    assert ("tail_ids" in plain.column_names) == (signal == IMAGE_TAIL)
    if signal == IMAGE_TAIL:
        assert plain.features["tail_ids"] == datasets.List(datasets.Value("uint16"), length=8)
        assert plain.features["tail_logprobs"] == datasets.List(datasets.Value("float16"), length=8)


def test_an_unknown_signal() -> None:
    with pytest.raises(ConfigError, match="`signal` must be one of topk, topk_image_tail, sampled, got 'top'"):
        ReinforceConfig("out", signal="top")


# ----------------------------------------------------------------------------------------------------------- reading


def test_items_bring_the_tail(made) -> None:
    signal, folder, _ = made
    plus = load_reinforced(folder)
    assert plus.signal == signal
    stored, fresh = plus[2, 3], plus[2, fresh_view(0)]
    assert ("tail_ids" in stored) == ("tail_ids" in fresh) == (signal == IMAGE_TAIL)
    if signal == IMAGE_TAIL:
        ids, logprobs = plus.image_tail(2)
        assert (stored["tail_ids"].dtype, stored["tail_logprobs"].dtype) == (torch.int64, torch.float32)
        assert stored["tail_ids"].tolist() == ids.tolist()
        assert stored["tail_logprobs"].tolist() == logprobs.astype(np.float32).tolist()
        assert fresh["tail_ids"].shape == fresh["tail_logprobs"].shape == (8,)
        assert not fresh["tail_ids"].any()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("tail_logprobs", np.nan, "log-probabilities of row 1, its tail must be finite and fall"),
        ("tail_logprobs", -np.inf, "log-probabilities of row 1, its tail must be finite and fall"),
        ("tail_logprobs", 0.5, "log-probabilities of row 1, its tail must be finite and fall from at most 0"),
        ("tail_ids", 8, "row 1, its tail must name classes below 8, found 8"),
        ("tail_ids", 0, "row 1, its tail must name classes below 8, found .* each once"),
    ],
)
def test_a_damaged_tail_is_refused(tmp_path, tiny_dataset, make_teacher, edit, column, value, message) -> None:
    run(tmp_path, tiny_dataset, make_teacher(2.0), IMAGE_TAIL)

    def damage(cells: np.ndarray) -> np.ndarray:
        cells[1, :] = value if value == 0 else cells[1, :]
        cells[1, -1] = value
        return cells

    damaged: ReinforcedDataset = edit(load_reinforced(tmp_path), column, damage)
    assert damaged[0, 0]["tail_ids"].shape == (8,)
    with pytest.raises(FormatError, match=message):
        damaged[1, 0]


def test_a_stream_shows_the_same(made, tmp_path) -> None:
    signal, folder, _ = made
    mapped = load_reinforced(folder)
    streamed = list(load_reinforced(folder, streaming=True))
    assert len(streamed) == 12
    for item in streamed:
        assert ("tail_ids" in item) == (signal == IMAGE_TAIL)
    if signal == IMAGE_TAIL:
        known = {tuple(mapped.image_tail(row)[1].tolist()) for row in range(12)}
        assert {tuple(item["tail_logprobs"].tolist()) for item in streamed} == known


def test_several_at_once_have_one_signal(made, tmp_path, tiny_dataset, make_teacher) -> None:
    signal, folder, _ = made
    run(tmp_path / "same", tiny_dataset, make_teacher(2.0), signal, seed=1, top_k=3)
    run(tmp_path / "topk", tiny_dataset, make_teacher(2.0), TOPK)
    with pytest.raises(
        ConfigError, match=rf"must have the same signal, but it is {signal} in part 0 \(a\) and topk in part 1"
    ):
        load_reinforced([folder, tmp_path / "topk"])
    if signal == SAMPLED:
        with pytest.raises(
            ConfigError, match=r"the same number of sampled classes, but it is 2 in part 0 \(a\) and 3 in"
        ):
            load_reinforced([folder, tmp_path / "same"])
        run(tmp_path / "alike", tiny_dataset, make_teacher(2.0), signal, seed=1)
        assert load_reinforced([folder, tmp_path / "alike"])[0, 9]["teacher_ids"].shape == (2,)
        return
    both = load_reinforced([folder, tmp_path / "same"])
    for view, part in ((0, folder), (5, tmp_path / "same")):
        item, alone = both[4, view], load_reinforced(part)[4, 0]
        assert torch.equal(item["tail_logprobs"], alone["tail_logprobs"])
        assert item["teacher_ids"].shape == (2,)


def test_null_rows_of_the_columns(made) -> None:
    _, folder, _ = made
    table = load_reinforced(folder).plus.with_format("arrow")[:]
    assert all(table[name].null_count == table[IMAGE_HASH].null_count for name in table.column_names)


def test_candidates_of_every_signal_are_a_part_of_all_of_them(made, tmp_path, tiny_dataset, make_teacher) -> None:
    """The tail is that of the kept views; a draw belongs to the candidate's number."""
    signal, _, _ = made
    run(tmp_path / "all", tiny_dataset, make_teacher(2.0), signal, num_views=9)
    run(tmp_path / "best", tiny_dataset, make_teacher(2.0), signal, num_candidates=9, keep="high_entropy")
    whole, best = load_reinforced(tmp_path / "all"), load_reinforced(tmp_path / "best")
    assert (best.provenance.schema_version, best.num_views) == (4, 5)
    for row in range(12):
        answers = [tuple(np.concatenate(whole.teacher_answer(row, view)).tolist()) for view in range(9)]
        kept = [tuple(np.concatenate(best.teacher_answer(row, view)).tolist()) for view in range(5)]
        places = iter(answers)
        assert all(answer in places for answer in kept)  # a subsequence
    if signal == IMAGE_TAIL:
        tails = [[plus.image_tail(row)[1].tolist() for row in range(12)] for plus in (whole, best)]
        assert tails[0] != tails[1]

"""The kept classes are exactly the most probable ones, in one order on every device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import quick

from hf_dr.errors import TeacherError
from hf_dr.teacher.topk import (
    MIN_REST,
    as_stored,
    cross_entropy,
    entropy,
    id_dtype,
    later_top_k,
    top_k,
    unambiguous_top_k,
)


def reference(logprobs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorts in float64: chooses by the exact value, lower ids first; then orders what is kept by its float16."""
    ids, values = [], []
    for row in logprobs.astype(np.float64):
        kept = sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]
        kept.sort(key=lambda c: (-float(np.float16(row[c])), c))
        ids.append(kept)
        values.append(np.float16(row[kept]))
    return np.array(ids), np.array(values)


def log_softmax(rows: int, classes: int, seed: int = 0) -> torch.Tensor:
    return (4 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


@pytest.mark.parametrize(("classes", "k"), [(1000, 10), (100, 1), (7, 7), (1, 1), (2, 2), (21_843, 32)])
def test_the_most_probable_classes_are_kept(classes: int, k: int) -> None:
    logprobs = log_softmax(20, classes)
    ids, values = top_k(logprobs, k)
    expected_ids, expected_values = reference(logprobs.numpy(), k)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(values, expected_values)
    assert (ids.shape, ids.dtype, values.dtype) == ((20, k), np.uint16, np.float16)
    assert (np.diff(values.astype(float)) <= 0).all()


@quick
@given(
    levels=st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=5), k=st.integers(1, 6)
)
def test_equal_classes_come_by_rising_id(levels: list[list[int]], k: int) -> None:
    """Also where only some of several equal ones are kept: those of the lowest ids."""
    logprobs = -1 - torch.tensor(levels, dtype=torch.float32)
    ids, values = top_k(logprobs, k)
    expected_ids, expected_values = reference(logprobs.numpy(), k)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(values, expected_values)


def test_a_uniform_answer_keeps_the_first_classes() -> None:
    """The case in which a device's topk may return any of the classes."""
    ids, _ = top_k(torch.full((3, 5000), -np.log(5000), dtype=torch.float32), 10)
    np.testing.assert_array_equal(ids, np.tile(np.arange(10), (3, 1)))


def test_classes_that_float16_cannot_tell_apart_come_by_rising_id() -> None:
    """They are still chosen by their float32 values."""
    logprobs = torch.tensor([[-1.00001, -1.0, -1.00002, -5.0]])
    assert np.unique(logprobs[0, :3].numpy().astype(np.float16)).size == 1
    assert top_k(logprobs, 2)[0].tolist() == [[0, 1]]
    assert top_k(logprobs, 3)[0].tolist() == [[0, 1, 2]]


def test_a_tie_in_one_row_leaves_the_others_alone() -> None:
    logprobs = log_softmax(6, 50)
    tied = logprobs.clone()
    tied[3] = -4.0
    ids, values = top_k(tied, 5)
    expected_ids, expected_values = top_k(logprobs, 5)
    others = [0, 1, 2, 4, 5]
    np.testing.assert_array_equal(ids[others], expected_ids[others])
    np.testing.assert_array_equal(values[others], expected_values[others])
    np.testing.assert_array_equal(ids[3], np.arange(5))


def test_keeping_every_class_keeps_all_the_mass() -> None:
    logprobs = log_softmax(4, 30)
    ids, values = top_k(logprobs, 30)
    np.testing.assert_array_equal(np.sort(ids), np.tile(np.arange(30), (4, 1)))
    np.testing.assert_allclose(np.exp(values.astype(float)).sum(-1), 1, atol=2e-3)


def test_log_probabilities_are_not_renormalised() -> None:
    """The mass of the classes that are left out stays known."""
    logprobs = log_softmax(10, 100)
    _, values = top_k(logprobs, 3)
    kept = logprobs.exp().sort(descending=True).values[:, :3].sum(-1).numpy()
    assert (kept < 0.999).any()
    np.testing.assert_allclose(np.exp(values.astype(float)).sum(-1), kept, rtol=5e-3)


def test_the_input_is_not_changed() -> None:
    logprobs = log_softmax(4, 30)
    before = logprobs.clone()
    top_k(logprobs, 5)
    assert torch.equal(logprobs, before)


@pytest.mark.parametrize(
    ("classes", "dtype"), [(1, "uint16"), (65_535, "uint16"), (65_536, "uint32"), (65_537, "uint32"), (2**32, "uint32")]
)
def test_ids_take_two_bytes_up_to_65535_classes(classes: int, dtype: str) -> None:
    assert id_dtype(classes) == np.dtype(dtype)


@pytest.mark.parametrize("classes", [65_535, 65_536, 65_537])
def test_the_highest_id_is_kept_whole(classes: int) -> None:
    logprobs = torch.full((1, classes), -20.0)
    logprobs[0, -1] = -0.1
    ids, _ = top_k(logprobs, 2)
    assert ids.dtype == id_dtype(classes)
    assert ids.tolist() == [[classes - 1, 0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_answers_that_are_not_finite_are_refused(bad: float) -> None:
    logprobs = log_softmax(3, 4)
    logprobs[1, 2] = bad
    with pytest.raises(
        TeacherError, match=r"must be finite, got (nan|-?inf) for a view\. Try --precision fp32, and check"
    ):
        top_k(logprobs, 4)


def test_answers_beyond_the_range_of_float16_are_refused() -> None:
    """Stored as -inf they would make every loss infinite."""
    with pytest.raises(TeacherError, match=r"must be finite, got -inf for a view"):
        top_k(torch.tensor([[-0.1, -70_000.0]]), 2)
    top_k(torch.tensor([[-0.1, -70_000.0]]), 1)


@quick
@given(classes=st.integers(1, 40), k=st.integers(1, 40), scale=st.floats(0, 8), seed=st.integers(0, 99))
def test_the_difficulty_is_that_of_the_dense_answer(classes: int, k: int, scale: float, seed: int) -> None:
    """With the tail spread evenly, as the loss has it."""
    k = min(k, classes)
    answers = (scale * torch.randn(5, classes, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)
    ids, logprobs = top_k(answers, k)
    found, label = entropy(logprobs, classes), seed % classes
    to_label = cross_entropy(ids, logprobs, classes, label)
    assert (found.dtype, found.shape, to_label.dtype, to_label.shape) == (np.float32, (5,), np.float32, (5,))
    for row in range(5):
        kept = np.exp(logprobs[row].astype(np.float64))
        dense = np.full(classes, max(MIN_REST, 1 - kept.sum()) / max(1, classes - k))
        dense[ids[row]] = kept
        assert found[row] == pytest.approx(-(dense * np.log(np.maximum(dense, 1e-300))).sum(), rel=1e-6, abs=1e-6)
        assert to_label[row] == pytest.approx(-np.log(np.maximum(dense[label], 1e-300)), rel=1e-6, abs=1e-6)


def test_difficulties_of_a_sure_answer_and_of_none() -> None:
    ids, logprobs = np.array([[3, 0], [3, 0]]), np.array([[0, -16], [-np.log(4), -np.log(4)]], np.float16)
    np.testing.assert_allclose(entropy(logprobs, 4), [0, np.log(4)], atol=3e-5)
    np.testing.assert_allclose(cross_entropy(ids, logprobs, 4, 3), [0, np.log(4)], atol=1e-3)
    np.testing.assert_allclose(cross_entropy(ids, logprobs, 4, 1), [-np.log(MIN_REST / 2), np.log(4)], rtol=1e-3)


@pytest.mark.parametrize("k", [1, 3, 10, 40])
@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_the_order_by_one_integer_is_the_same(levels: int, k: int) -> None:
    """With many equal classes, with -0.0, and with classes that have no probability."""
    generator = torch.Generator().manual_seed(levels)
    logprobs = -torch.randint(levels, (50, 40), generator=generator).float() / 7
    logprobs[:, 5] = -0.0
    expected = top_k(logprobs, k)
    ids, values = unambiguous_top_k(logprobs, k)
    found = as_stored(ids.numpy(), values.to(torch.float16).numpy(), 40)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    later = later_top_k(logprobs.cuda() if torch.cuda.is_available() else logprobs, k)()
    for one, other in zip(later, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000])
def test_no_number_is_kept_and_so_found_out(bits: int) -> None:
    """NaN of either sign."""
    logprobs = log_softmax(2, 9)
    logprobs[1, 4] = torch.from_numpy(np.array([bits], np.uint32).view(np.float32))[0]
    _, values = unambiguous_top_k(logprobs, 2)
    assert values.isnan().any(dim=1).tolist() == [False, True]
    later = later_top_k(logprobs, 2)
    with pytest.raises(TeacherError, match="must be finite"):
        later()

"""The rule of the calibration error: which bin a confidence belongs to, and what the bins add up to."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from hf_dr.teacher.calibration import MEASURED_TEMPERATURES, TEMPERATURES, calibrated_ece, fit_temperature
from hf_dr.teacher.metrics import NUM_BINS, Reliability, bins_of, classification_metrics


@pytest.mark.parametrize("num_bins", [1, 2, 10, 15, 49, 100])
def test_an_edge_belongs_to_the_bin_below_it_and_its_neighbours_to_their_own(num_bins: int) -> None:
    edges = np.arange(1, num_bins + 1) / num_bins
    assert bins_of(edges, num_bins).tolist() == list(range(num_bins))
    assert bins_of(np.nextafter(edges, 0), num_bins).tolist() == list(range(num_bins))
    above = np.nextafter(edges[:-1], 1)
    assert bins_of(above, num_bins).tolist() == list(range(1, num_bins))


def test_fifteen_bins_as_in_the_paper() -> None:
    assert NUM_BINS == 15
    # 0.2 = 3 / 15, 0.4 = 6 / 15 and 0.6 = 9 / 15 are upper edges; so is 0.8 = 12 / 15.
    confidence = [0.0, 1e-300, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert bins_of(np.array(confidence)).tolist() == [0, 0, 2, 5, 8, 11, 14]


def test_the_ends_belong_to_the_first_and_the_last_bin() -> None:
    assert bins_of(np.array([0.0, np.nextafter(0, 1)])).tolist() == [0, 0]
    assert bins_of(np.array([1.0, 1.0004])).tolist() == [14, 14], "float16 rounds a sum beyond 1"


@pytest.mark.parametrize("num_bins", [7, 15, 29])
def test_bins_follow_the_definition_in_exact_arithmetic(num_bins: int) -> None:
    values = np.random.Generator(np.random.Philox(0)).random(2000)
    edges = [k / num_bins for k in range(num_bins + 1)]
    for value, found in zip(values.tolist(), bins_of(values, num_bins).tolist(), strict=True):
        assert Fraction(edges[found]) < Fraction(value) <= Fraction(edges[found + 1])


def test_float32_is_compared_as_the_number_that_it_is() -> None:
    """0.2, 0.6, 0.8 and 1 / 3 are rounded up in float32, so they lie above the edges 3/15, 9/15, 12/15 and 5/15."""
    confidence = np.array([0.2, 0.6, 0.8, 1 / 3, 0.7], np.float32)
    assert bins_of(confidence).tolist() == bins_of(confidence.astype(np.float64)).tolist() == [3, 9, 12, 5, 10]


def test_any_shape_and_none() -> None:
    assert bins_of(np.array([[0.1, 0.9], [0.5, 1.0]])).tolist() == [[1, 13], [7, 14]]
    assert bins_of(np.array(0.5)).shape == ()
    assert bins_of(np.empty(0)).shape == (0,)
    assert bins_of(np.empty(0)).dtype == np.int64


def test_calibration_error_by_hand() -> None:
    # 4 examples of confidence 0.9 with 3 hits: |0.75 - 0.9|; 1 of confidence 0.3 with none: 0.3. Over 5: (4 x 0.15 + 0.3) / 5.
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.3])
    hit = np.array([True, True, True, False, False])
    diagram = Reliability.of(confidence, hit)
    assert (diagram.counts.sum(), diagram.hits.sum()) == (5, 3)
    assert diagram.ece == pytest.approx(0.18)


def test_calibration_error_of_nothing_is_zero() -> None:
    assert Reliability.of(np.empty(0), np.empty(0, bool)).ece == 0


def test_one_bin_is_the_difference_of_the_means() -> None:
    assert Reliability(np.array([4]), np.array([2.0]), np.array([3])).ece == 0.25
    assert Reliability(np.array([1]), np.array([0.25]), np.array([1])).ece == 0.75


def sampled(temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (B, C) that are too sure by this factor, and labels drawn from the true probabilities."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((4000, 5))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_found_again_and_is_the_best(temperature: float) -> None:
    logits, labels = sampled(temperature)
    fitted = fit_temperature(logits.astype(np.float32), labels)
    assert fitted == pytest.approx(temperature, rel=0.05)
    losses = [classification_metrics(logits / (fitted * factor), labels)["nll"] for factor in (0.97, 1, 1.03)]
    assert losses[1] == min(losses)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_what_is_measured_is_left_at_any_temperature(temperature: float) -> None:
    logits, labels = sampled(temperature)
    assert fit_temperature(logits, labels, MEASURED_TEMPERATURES) == pytest.approx(temperature, rel=0.05)
    assert calibrated_ece(logits, labels) == pytest.approx(calibrated_ece(*sampled(1.0)), abs=1e-6)
    assert calibrated_ece(logits, labels) < 0.03


def test_a_few_images_that_are_all_right_do_not_make_it_sure() -> None:
    logits = np.eye(3) * 2
    assert fit_temperature(logits, np.arange(3)) == pytest.approx(TEMPERATURES[0])
    assert fit_temperature(logits, (np.arange(3) + 1) % 3) == pytest.approx(TEMPERATURES[1])

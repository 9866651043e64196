"""Metrics equal their definitions, computed the slow way."""

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hf_dr.errors import DataError
from hf_dr.evaluation.plots import reliability_figure
from hf_dr.teacher.calibration import MEASURED_TEMPERATURES, calibrated_ece, fit_temperature
from hf_dr.teacher.metrics import classification_metrics, compute_metrics, log_softmax, reliability


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 12))
def test_equal_to_the_definitions(seed, count, classes):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, classes)).astype(np.float32)
    labels = rng.integers(0, classes, count)
    found = classification_metrics(logits, labels)
    probabilities = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(1, keepdims=True)
    top5 = np.mean([label in np.argsort(-p)[:5] for p, label in zip(probabilities, labels, strict=True)])
    one_hot = np.eye(classes)[labels]
    assert found["top1"] == pytest.approx((probabilities.argmax(1) == labels).mean())
    assert found["top5"] == pytest.approx(top5)
    assert found["nll"] == pytest.approx(-np.log(probabilities[np.arange(count), labels]).mean())
    assert found["brier"] == pytest.approx(((probabilities - one_hot) ** 2).sum(1).mean())
    ece = 0.0
    confidence = probabilities.max(1)
    for low, high in zip(np.linspace(0, 1, 16)[:-1], np.linspace(0, 1, 16)[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            hits = probabilities.argmax(1)[inside] == labels[inside]
            ece += inside.mean() * abs(hits.mean() - confidence[inside].mean())
    assert found["ece"] == pytest.approx(ece, abs=1e-9)


def test_a_perfectly_calibrated_coin_has_no_calibration_error():
    logits, labels = np.zeros((10, 2)), np.arange(10) % 2
    assert classification_metrics(logits, labels)["ece"] == pytest.approx(0)
    assert reliability(logits, labels).counts.sum() == 10


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 300), st.integers(2, 12), st.floats(0.5, 2))
def test_the_calibrated_error_is_that_of_each_half_at_the_temperature_of_the_other(seed, count, classes, scale):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)  # drawn from the probabilities
    halves = np.arange(count) % 2
    temperatures = np.array(
        [fit_temperature(logits[halves != half], labels[halves != half], MEASURED_TEMPERATURES) for half in (0, 1)]
    )
    found = calibrated_ece(logits, labels)
    assert found == pytest.approx(classification_metrics(logits / temperatures[halves, None], labels)["ece"])
    inside = (MEASURED_TEMPERATURES[0] * 2.01 < temperatures) & (temperatures < MEASURED_TEMPERATURES[1] / 2.01)
    if inside.all():  # how sure the model is makes no difference
        assert calibrated_ece(logits * scale, labels) == pytest.approx(found, abs=1e-6)


def test_a_model_that_is_only_too_sure_has_no_calibrated_error_to_speak_of():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (20_000, 5))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)
    assert classification_metrics(3 * logits, labels)["ece"] > 0.25
    assert calibrated_ece(3 * logits, labels) < 0.015


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 400), st.integers(2, 12))
def test_the_error_by_chance_is_the_mean_over_many_draws(seed, count, classes):
    """Against scipy's binomial, value by value."""
    rng = np.random.default_rng(seed)
    diagram = reliability(rng.normal(0, 3, (count, classes)), rng.integers(classes, size=count))
    expected = 0.0
    for n, confidence_sum in zip(diagram.counts, diagram.confidence_sums, strict=True):
        if n:
            hits = np.arange(n + 1)
            expected += (stats.binom.pmf(hits, n, confidence_sum / n) * abs(hits - confidence_sum)).sum()
    assert diagram.ece_by_chance == pytest.approx(expected / count, abs=1e-9)


def test_the_error_of_a_calibrated_model_is_that_by_chance():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(100):
        logits = rng.normal(0, 1, (500, 5))
        labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)
        found.append(reliability(logits, labels))
    shown, by_chance = (np.mean([getattr(each, name) for each in found]) for name in ("ece", "ece_by_chance"))
    assert 0.02 < shown == pytest.approx(by_chance, rel=0.05)
    for logits in (np.zeros((0, 2)), np.array([[1e3, 0.0]])):  # nothing, and one that is sure
        assert reliability(logits, np.zeros(len(logits), int)).ece_by_chance == 0


def test_large_logits_do_not_overflow():
    assert np.isfinite(log_softmax(np.array([[1e4, -1e4]]))).all()


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3)), np.array([0]), r"got \(2, 3\) and \(1,\)"),
        (np.zeros((0, 3)), np.zeros(0, int), "B > 0"),
        (np.zeros((1, 3)), np.array([3]), "labels must be from 0 to 2, got 3"),
        (
            np.zeros((3, 3)),
            np.array([0, 1, -1]),
            r"labels must be from 0 to 2, got -1 in row 2 \(1 such rows\)\. Leave",
        ),
        (np.zeros((1, 3)), np.array([1.0]), r"labels must be whole numbers from 0 to 2, got float64\. Convert"),
        (np.zeros((1, 3)), np.array([None]), "labels must be whole numbers from 0 to 2, got object"),
        (np.array([[np.nan, 0]]), np.array([0]), "must be finite"),
    ],
)
def test_refusals(logits, labels, message):
    with pytest.raises(DataError, match=message):
        classification_metrics(logits, labels)


def test_in_the_form_of_trainer_and_as_a_picture(tmp_path):
    logits, labels = np.eye(4) * 3, np.arange(4)
    prediction = type("EvalPrediction", (), {"predictions": (logits, None), "label_ids": labels})
    assert compute_metrics(prediction) == classification_metrics(logits, labels)
    diagrams = {"a": [reliability(logits, labels)], "b": 2 * [reliability(-logits, labels)]}
    reliability_figure(diagrams).savefig(tmp_path / "r.png")
    with PIL.Image.open(tmp_path / "r.png") as picture:
        assert picture.width > 500
    figure = reliability_figure({**diagrams, "c": diagrams["a"]}, columns=2)
    assert [axes.axison for axes in figure.axes] == [True] * 5 + [False, True, False], "the fourth place is empty"

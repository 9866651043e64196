"""The modules of the `evaluate` library give the numbers of hf_dr.teacher.metrics, offline."""

import evaluate
import numpy as np
import pytest

from hf_dr.evaluation.modules import ECE, NLL, Brier, Classification, Top1, Top5
from hf_dr.teacher.metrics import classification_metrics

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(0, 2, (40, 7)).astype(np.float32), RNG.integers(0, 7, 40)


def test_combined_and_in_batches():
    metric = evaluate.combine([Top1(), Top5(), NLL(), Brier(), ECE()])
    for rows in (slice(0, 15), slice(15, 40)):
        metric.add_batch(predictions=LOGITS[rows], references=LABELS[rows])
    assert metric.compute() == classification_metrics(LOGITS, LABELS)


@pytest.mark.parametrize("kind", [Top1, Top5, NLL, Brier, ECE])
def test_alone(kind):
    metric = kind()
    (key,) = kind.keys
    expected = {key: classification_metrics(LOGITS, LABELS)[key]}
    assert metric.compute(predictions=LOGITS, references=LABELS) == expected
    assert metric.compute(predictions=LOGITS.tolist(), references=LABELS.tolist()) == expected  # the library's own way
    assert metric.name == key
    assert metric.description


def test_whole_arrays_are_measured_without_a_file(monkeypatch):
    metric = Classification()
    monkeypatch.setattr(metric, "add_batch", None)
    assert metric.compute(predictions=LOGITS, references=LABELS) == classification_metrics(LOGITS, LABELS)


def test_what_was_added_before_is_not_forgotten():
    metric = Classification()
    metric.add_batch(predictions=LOGITS[:15], references=LABELS[:15])
    assert metric.compute(predictions=LOGITS[15:], references=LABELS[15:]) == classification_metrics(LOGITS, LABELS)

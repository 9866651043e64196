"""The modules of the `evaluate` library give the numbers of hf_dr.evaluation.metrics, offline."""

import evaluate
import numpy as np
import pytest

from hf_dr.evaluation.metrics import classification_metrics
from hf_dr.evaluation.modules import ECE, NLL, Brier, Top1, Top5

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
    assert metric.compute(predictions=LOGITS, references=LABELS) == {
        kind.key: classification_metrics(LOGITS, LABELS)[kind.key]
    }
    assert metric.name == kind.key
    assert metric.description

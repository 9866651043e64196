"""The metrics as modules of the `evaluate` library: they work offline, alone or in `evaluate.combine`.

>>> metric = evaluate.combine([Top1(), ECE()])
>>> metric.add_batch(predictions=logits_BC, references=labels_B)
>>> metric.compute()
{'top1': 0.75, 'ece': 0.031}
"""

from __future__ import annotations

from typing import Any, ClassVar

import datasets
import numpy as np
from evaluate.info import MetricInfo
from evaluate.module import Metric

from hf_dr.evaluation.metrics import classification_metrics


class _LogitsMetric(Metric):
    """One number of `classification_metrics`; predictions are logits (B, C), references labels (B,)."""

    key: ClassVar[str]

    def _info(self) -> MetricInfo:
        features = {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
        return MetricInfo(
            description=str(self.__doc__),
            citation="",
            inputs_description="predictions: logits, one list for each example; references: class numbers.",
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {self.key: classification_metrics(np.asarray(predictions), np.asarray(references))[self.key]}


class Top1(_LogitsMetric):
    """Share of the examples whose label is the most probable class."""

    key = "top1"


class Top5(_LogitsMetric):
    """Share of the examples whose label is among the five most probable classes."""

    key = "top5"


class NLL(_LogitsMetric):
    """Mean negative log-likelihood of the label, in nats."""

    key = "nll"


class Brier(_LogitsMetric):
    """Mean squared distance of the probabilities from the label's indicator, 0 to 2."""

    key = "brier"


class ECE(_LogitsMetric):
    """Expected calibration error over 15 bins of equal width, 0 to 1."""

    key = "ece"

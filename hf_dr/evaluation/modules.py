"""The metrics as modules of the `evaluate` library: they work offline, alone or in `evaluate.combine`.

Their numbers are those of `hf-dr evaluate` and `hf-dr compare`.

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

from hf_dr.teacher.metrics import METRICS, classification_metrics


class _LogitsMetric(Metric):
    """Numbers of `classification_metrics`; predictions are logits (B, C), references labels (B,)."""

    keys: ClassVar[tuple[str, ...]]

    def _info(self) -> MetricInfo:
        features = {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}
        return MetricInfo(
            description=str(self.__doc__),
            citation="",
            inputs_description="predictions: logits, one list for each example; references: class numbers.",
            features=datasets.Features(features),
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **settings: Any) -> Any:
        """Returns the metric of what was added, or of what is given: as `evaluate.Metric.compute`.

        Whole arrays are measured as they are. The library's own way, through an Arrow file, would take ten times as long.
        """
        whole = isinstance(predictions, np.ndarray) and isinstance(references, np.ndarray)
        if whole and not settings and self.writer is None:  # nothing was added
            return self._compute(predictions, references)
        return super().compute(predictions=predictions, references=references, **settings)

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        found = classification_metrics(np.asarray(predictions), np.asarray(references))
        return {key: found[key] for key in self.keys}


class Classification(_LogitsMetric):
    """All of them at once: top1, top5, nll, brier and ece."""

    keys = METRICS


class Top1(_LogitsMetric):
    """Share of the examples whose label is the most probable class."""

    keys = ("top1",)


class Top5(_LogitsMetric):
    """Share of the examples whose label is among the five most probable classes."""

    keys = ("top5",)


class NLL(_LogitsMetric):
    """Mean negative log-likelihood of the label, in nats."""

    keys = ("nll",)


class Brier(_LogitsMetric):
    """Mean squared distance of the probabilities from the label's indicator, 0 to 2."""

    keys = ("brier",)


class ECE(_LogitsMetric):
    """Expected calibration error over 15 bins of equal width, 0 to 1."""

    keys = ("ece",)

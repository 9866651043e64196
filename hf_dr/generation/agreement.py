"""A teacher's answers against labels: whether it knows those of a dataset, before a run takes hours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from hf_dr.errors import TeacherError
from hf_dr.generation.labelling import Labeller, padded
from hf_dr.generation.plan import Plan
from hf_dr.store.base_dataset import sampled_rows
from hf_dr.teacher.topk import not_finite
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.maker import Span, ViewMaker

SAMPLED_ROWS = 128
LEAST_ROWS = 64
"""Fewer rows are no evidence, and nothing is refused."""
_RISK = 0.01


@dataclass(frozen=True)
class Agreement:
    """How often a teacher's most probable class is the label, over views of different rows in which nothing is mixed.

    Attributes:
        num_views: N, the views that were compared.
        hits: The number of these views whose most probable class is the label.
        chance: Share of hits that a teacher which answers each class as often, but independently of the labels, would have:
            the sum over the classes of (share of the answers) x (share of the labels).
    """

    num_views: int
    hits: int
    chance: float

    @classmethod
    def of(cls, favourites_N: np.ndarray, labels_N: np.ndarray) -> Agreement:
        """Compares the most probable class of each view with the label of its row."""
        count = len(labels_N)
        classes = 1 + max(favourites_N.max(initial=0), labels_N.max(initial=0))
        answers_C = np.bincount(favourites_N, minlength=classes) / max(1, count)
        labels_C = np.bincount(labels_N, minlength=classes) / max(1, count)
        return cls(count, int((favourites_N == labels_N).sum()), float(answers_C @ labels_C))

    @property
    def is_near_chance(self) -> bool:
        """Whether the teacher cannot be told from one that does not know the labels, although one that does could be.

        With N >= `LEAST_ROWS`, k hits, the rate c of `chance` and X binomial, both must hold:

            P(X >= k | N, c) > 0.01            the hits are not significantly more than by chance (one-sided), and
            P(X <= k | N, (1 + c) / 2) < 0.01  a teacher that knows the labels of half of the rows would have had more.

        c follows from the answers and labels themselves, so the rule is the same for 2 classes (c is about 0.5), for 1,000
        (about 0.001), and for a teacher that always gives the same class. Where all labels are alike, c is the share of hits,
        and only a teacher that is mostly wrong is refused. A teacher independent of the labels passes about once in a
        hundred datasets.
        """
        if self.num_views < LEAST_ROWS:
            return False
        by_chance = _binomial(self.num_views, self.chance)[self.hits :].sum()
        of_half = _binomial(self.num_views, (1 + self.chance) / 2)[: self.hits + 1].sum()
        return bool(by_chance > _RISK and of_half < _RISK)

    def __str__(self) -> str:
        return f"{100 * self.hits / self.num_views:.2f} % of {self.num_views:,} unmixed views"

    def check(self) -> None:
        """Refuses a teacher whose answers agree with the labels no better than by chance."""
        if self.is_near_chance:
            raise TeacherError(
                "the teacher's most probable class must be the label clearly more often than by chance "
                f"({100 * self.chance:.1f} %), found it in {self}. It was trained on other classes, on the same in another "
                "order, or too little: name another teacher, pass `classes` (--teacher_classes), or train it longer. Where the "
                "labels themselves are wrong, pass `allow_disagreement`."
            )


def _binomial(count: int, p: float) -> np.ndarray:
    """Returns the probability of 0 to `count` hits, float64."""
    p = min(max(p, 0.0), 1.0)
    return np.array([math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(count + 1)])


def sample_agreement(plan: Plan, labeller: Labeller, batch_size: int) -> Agreement | None:
    """Asks the teacher about one view of up to `SAMPLED_ROWS` rows, spread over the dataset; stores nothing.

    The views are augmented as those of the run, but not mixed.

    Returns:
        How often it agrees with the labels; None without labels, or without an image that can be used.
    """
    if plan.labels is None:
        return None
    augmentation = Augmentation([op for op, _ in plan.augmentation.single])
    maker = ViewMaker(plan.images, augmentation, 1, plan.provenance.seed, None)
    batches = ((row, maker[Span(0, row, row + 1)]) for row in sampled_rows(len(plan.images), SAMPLED_ROWS).tolist())
    views = {row: batch for row, batch in batches if batch.valid.all()}
    if not views:
        return None
    pixels_NHWC = torch.cat([batch.pixels for batch in views.values()])
    hashes_N = np.concatenate([batch.image_hashes for batch in views.values()])
    favourites = []
    for start, part in zip(range(0, len(hashes_N), batch_size), pixels_NHWC.split(batch_size), strict=True):
        # A whole batch, as most of the run's are: a compiled teacher is not compiled once more for another size.
        hashes_B = np.resize(hashes_N[start : start + len(part)], batch_size)
        answers_BC = labeller.ask(padded(part, batch_size), hashes_B)[: len(part)]
        if answers_BC.isnan().any():
            raise not_finite(answers_BC.cpu().numpy())
        favourites.append(answers_BC.argmax(dim=1).cpu())
    return Agreement.of(torch.cat(favourites).numpy(), plan.labels[[*views]])

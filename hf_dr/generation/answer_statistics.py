"""What the stored answers of a "+" dataset say, of labels among others; summed up batch by batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_dr.errors import FormatError
from hf_dr.store import schema
from hf_dr.store.labels import label_numbers
from hf_dr.store.provenance import Provenance
from hf_dr.store.shards import MAX_MASS, check_full
from hf_dr.teacher.metrics import NUM_BINS, Reliability
from hf_dr.teacher.signals import IMAGE_TAIL, SAMPLED, tail_size
from hf_dr.teacher.topk import MIN_REST
from hf_dr.views.augmentation import PARTNER

NUM_SUSPECTS = 20
_TINY = 1e-300  # a class of the tail may have less than float64 can hold


@dataclass(frozen=True)
class Suspect:
    """A row of the base (`source_index`) whose label the teacher does not believe, and the class to which it gives most.

    Probabilities are means over the row's unmixed views. Where classes have no names, their numbers serve. `file` is the name
    of the image's file, where that is stored.
    """

    row: int
    label: int
    label_name: str
    label_probability: float
    favourite: int
    favourite_name: str
    favourite_probability: float
    file: str | None = None


@dataclass(frozen=True)
class LabelStatistics:
    """The teacher's answers against the labels, over the views in which no other example is mixed.

    Attributes:
        num_views: Views compared.
        agreement: Share whose top-1 is the label.
        ece: Expected calibration error of the top-1 probability against the label, 15 bins of equal width.
        nll: Mean negative log-probability of the label, nats. A label that is not among the kept classes has an equal
            share of the rest, or that of the row's tail where there is one; None where classes were drawn, for then its
            probability is not known.
        suspects: The labels of lowest mean probability, lowest first; only where the teacher prefers another class.
    """

    num_views: int
    agreement: float
    ece: float
    nll: float | None
    suspects: tuple[Suspect, ...]


def _flat(lists: pa.Array) -> np.ndarray:
    return lists.flatten(recursive=True).to_numpy(zero_copy_only=False)


class _StoredAnswers:
    """Stored answers of some rows of the base, and the entropy of each, nats. R rows, V views, K kept classes, C classes."""

    def __init__(self, batch: pa.RecordBatch, provenance: Provenance) -> None:
        for name in batch.schema.names:
            check_full(batch, name)
        self.rows_R = batch.column(schema.SOURCE_INDEX).to_numpy()
        classes = provenance.num_classes
        shape_RVK = (len(batch), provenance.num_views, provenance.top_k)
        names = (schema.TEACHER_IDS, schema.TEACHER_LOGPROBS)
        self.ids_RVK, self.logprobs_RVK = _checked_answers(batch, names, shape_RVK, classes)
        self.probs_RVK = np.exp(self.logprobs_RVK)
        self.kept_RV = self.probs_RVK.sum(axis=2)
        self.unmixed_RV = np.ones(shape_RVK[:2], bool)  # whether no other example is mixed into the view
        if schema.AUG_PREFIX + PARTNER in batch.schema.names:
            self.unmixed_RV = _flat(batch.column(schema.AUG_PREFIX + PARTNER)).reshape(shape_RVK[:2]) < 0
        # What a class that was left out has is `weights`, or 1 where there are none, times `scale`.
        self._weights_RC = self._tail_weights(batch, classes) if provenance.signal == IMAGE_TAIL else None
        self._scale_RV = np.zeros_like(self.kept_RV)
        self.entropy_RV = -(self.probs_RVK * self.logprobs_RVK).sum(axis=2)
        if provenance.signal != SAMPLED:  # drawn classes stand for all: there is no rest
            self._spread_rest(classes - provenance.top_k)

    @staticmethod
    def _tail_weights(batch: pa.RecordBatch, classes: int) -> np.ndarray:
        """Returns each class's share in the row's mean answer: that of the tail, or an equal part of what lies beyond it."""
        shape_RT = (len(batch), tail_size(classes))
        ids_RT, logprobs_RT = _checked_answers(batch, (schema.TAIL_IDS, schema.TAIL_LOGPROBS), shape_RT, classes)
        tail_RT = np.exp(logprobs_RT)
        beyond_R1 = np.maximum(1 - tail_RT.sum(axis=1, keepdims=True), MIN_REST) / max(1, classes - shape_RT[1])
        weights_RC = np.repeat(beyond_R1, classes, axis=1)
        np.put_along_axis(weights_RC, ids_RT.astype(np.int64), np.maximum(tail_RT, _TINY), axis=1)
        return weights_RC

    def _spread_rest(self, left_out: int) -> None:
        """Shares the rest of each answer out among the classes left out, by their weights, and adds their entropy.

        With the rest r, the weights w_c and their sum W over the classes left out, each has p_c = w_c r / W, and

            -sum p_c ln p_c = -r ln(r / W) - r / W sum w_c ln w_c.
        """
        rest_RV = np.maximum(1 - self.kept_RV, MIN_REST)
        weight_RV: np.ndarray | int = max(1, left_out)
        spread_RV: np.ndarray | int = 0  # the sum of w ln w
        if self._weights_RC is not None:
            # Sums over all classes less those over the kept ones.
            kept_RVK = self._weights_RC[np.arange(len(self.rows_R))[:, None, None], self.ids_RVK]
            weight_RV = np.maximum(self._weights_RC.sum(axis=1)[:, None] - kept_RVK.sum(axis=2), _TINY)
            spread_RC = self._weights_RC * np.log(self._weights_RC)
            spread_RV = spread_RC.sum(axis=1)[:, None] - (kept_RVK * np.log(kept_RVK)).sum(axis=2)
        self._scale_RV = rest_RV / weight_RV
        if left_out:
            self.entropy_RV -= rest_RV * np.log(self._scale_RV) + self._scale_RV * spread_RV

    def of_labels(self, labels_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (R, V, K) which kept class is the row's label, and its log-probability, (R, V); -inf: it was not drawn."""
        is_label_RVK = self.ids_RVK == labels_R[:, None, None]
        # Not by way of the probability: float16 holds logarithms of some that float64 does not.
        kept_RV = (self.logprobs_RVK * is_label_RVK).sum(axis=2)
        left_out_RV = self._scale_RV
        if self._weights_RC is not None:
            known_R1 = np.clip(labels_R, 0, self._weights_RC.shape[1] - 1)[:, None]
            left_out_RV = left_out_RV * np.take_along_axis(self._weights_RC, known_R1, axis=1)
        with np.errstate(divide="ignore"):
            return is_label_RVK, np.where(is_label_RVK.any(axis=2), kept_RV, np.log(left_out_RV))


def _checked_answers(
    batch: pa.RecordBatch, names: tuple[str, str], shape: tuple[int, ...], classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and log-probabilities (float64) of two columns in a shape, checked to be answers over `classes` classes."""
    ids = _flat(batch.column(names[0])).reshape(shape)
    logprobs = _flat(batch.column(names[1])).astype(np.float64).reshape(shape)
    rows = f"rows {batch.column(schema.SOURCE_INDEX)[0]} to {batch.column(schema.SOURCE_INDEX)[-1]}"
    is_twice = np.diff(np.sort(ids, axis=-1)) == 0
    if ids.max() >= classes or is_twice.any() or not np.isfinite(logprobs).all():
        raise FormatError(
            f"the teacher's answers must be finite and of classes below {classes}, each once, found others in {rows}. The file "
            "is damaged: fetch or make it again."
        )
    with np.errstate(over="ignore"):
        mass = np.exp(logprobs).sum(axis=-1)
    if not (mass <= MAX_MASS).all() or (np.diff(logprobs) > 0).any():
        raise FormatError(
            "the teacher's log-probabilities must fall, and their probabilities have a sum of at most 1, found others in "
            f"{rows}. The file is damaged: fetch or make it again."
        )
    return ids, logprobs


@dataclass
class Totals:
    """Sums over all views, batch by batch."""

    provenance: Provenance
    label_feature: Any
    num_rows: int = 0
    num_views: int = 0
    entropy: float = 0.0
    kept_mass: float = 0.0
    nll: float = 0.0
    bins: np.ndarray = field(default_factory=lambda: np.zeros((3, NUM_BINS)))  # of `Reliability`
    suspects: list[Suspect] = field(default_factory=list)

    def add(self, batch: pa.RecordBatch) -> None:
        """Adds some rows, all with reinforcement."""
        if not len(batch):
            return
        answers = _StoredAnswers(batch, self.provenance)
        self.num_rows += len(batch)
        self.num_views += answers.kept_RV.size
        self.kept_mass += float(answers.kept_RV.sum())
        self.entropy += float(answers.entropy_RV.sum())
        if self.label_feature is not None:
            self._add_labels(batch, answers)

    def _add_labels(self, batch: pa.RecordBatch, answers: _StoredAnswers) -> None:
        labels = batch.column(self.provenance.label_column)
        if not pa.types.is_integer(labels.type):
            raise FormatError(
                f"the labels `{self.provenance.label_column}` must be whole numbers, found {labels.type}. Fetch it again."
            )
        labels_R = label_numbers(labels)
        used_RV = answers.unmixed_RV & (labels_R >= 0)[:, None]  # -1: the base has no label there
        is_label_RVK, label_logprobs_RV = answers.of_labels(labels_R)
        hits = is_label_RVK[:, :, 0][used_RV]
        confidence = np.minimum(answers.probs_RVK[:, :, 0][used_RV], 1)  # float16 may round beyond 1
        if self.provenance.signal != SAMPLED:
            self.nll -= float(label_logprobs_RV[used_RV].sum())
        diagram = Reliability.of(confidence, hits)
        self.bins += diagram.counts, diagram.confidence_sums, diagram.hits
        images = self.provenance.image_column
        files = pc.struct_field(batch.column(images), "path") if images in batch.schema.names else pa.nulls(len(batch))
        self._add_suspects(answers, labels_R, np.exp(label_logprobs_RV), used_RV, files)

    def _add_suspects(
        self,
        answers: _StoredAnswers,
        labels_R: np.ndarray,
        label_probs_RV: np.ndarray,
        used_RV: np.ndarray,
        files: pa.Array,
    ) -> None:
        views_R = used_RV.sum(axis=1)
        means_R = (label_probs_RV * used_RV).sum(axis=1) / np.maximum(views_R, 1)
        means_R[views_R == 0] = np.inf
        # A label of more than one half is the favourite; and only what is below the last of a full list can enter it.
        limit = self.suspects[-1].label_probability if len(self.suspects) == NUM_SUSPECTS else 0.5
        candidates = np.flatnonzero(means_R <= limit)
        found: list[Suspect] = []
        for row in candidates[np.argsort(means_R[candidates], kind="stable")].tolist():
            used_V = used_RV[row]
            sums = np.bincount(answers.ids_RVK[row, used_V].ravel(), answers.probs_RVK[row, used_V].ravel())
            favourite = int(sums.argmax())
            label = int(labels_R[row])
            if favourite == label:
                continue
            found.append(
                Suspect(
                    row=int(answers.rows_R[row]),
                    label=label,
                    label_name=self._name(label),
                    label_probability=float(means_R[row]),
                    favourite=favourite,
                    favourite_name=self._name(favourite),
                    favourite_probability=float(sums[favourite] / views_R[row]),
                    file=files[row].as_py(),
                )
            )
            if len(found) == NUM_SUSPECTS:
                break
        self.suspects = sorted(self.suspects + found, key=lambda s: (s.label_probability, s.row))[:NUM_SUSPECTS]

    def _name(self, label: int) -> str:
        feature = self.label_feature
        if isinstance(feature, datasets.ClassLabel) and label < feature.num_classes:
            return str(feature.int2str(label))
        return str(label)

    def label_statistics(self) -> LabelStatistics | None:
        """Returns what the answers say of the labels; None where no view was compared."""
        diagram = Reliability(*self.bins)
        count = int(diagram.counts.sum())
        if not count:
            return None
        return LabelStatistics(
            num_views=count,
            agreement=float(diagram.hits.sum() / count),
            ece=diagram.ece,
            nll=None if self.provenance.signal == SAMPLED else self.nll / count,
            suspects=tuple(self.suspects),
        )

"""What is in a "+" dataset: provenance, bytes by column, what the teacher thinks of the labels. Decodes no image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_dr.errors import ConfigError, FormatError
from hf_dr.hub.fetch import fetch_config
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.reinforced_data import ReinforcedData
from hf_dr.settings import check_kind
from hf_dr.store import schema
from hf_dr.store.findings import Statistics
from hf_dr.store.labels import label_numbers
from hf_dr.store.provenance import Provenance
from hf_dr.store.shards import MAX_MASS, check_full, check_shards, read_features, reading
from hf_dr.teacher.metrics import NUM_BINS, bins_of, calibration_error
from hf_dr.teacher.signals import IMAGE_TAIL, SAMPLED, described, tail_size
from hf_dr.teacher.topk import MIN_REST
from hf_dr.text import text_table, two_columns
from hf_dr.views.augmentation import PARTNER

NUM_SUSPECTS = 20
_TINY = 1e-300  # a class of the tail may have less than float64 can hold
# Numbers of the answers held at once; float64, so a batch takes some tens of MB whatever V, K and C are.
_BATCH_VALUES = 1 << 20


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


@dataclass(frozen=True)
class Inspection:
    """What `hf_dr.inspect` has found; `print` shows it.

    Attributes:
        provenance: How the dataset was made.
        columns: Compressed bytes by column, in file order.
        file_bytes: Size of all shards.
        num_reinforced: Rows that have a reinforcement.
        entropy: Mean entropy of the answers in nats, the rest of the mass spread evenly over the classes left out, or as in the
            row's tail where there is one; of drawn classes, that of the draws.
        kept_mass: Mean probability of the K kept classes together.
        labels: None where the dataset has no labels, or every view is mixed.
    """

    provenance: Provenance
    columns: dict[str, int]
    file_bytes: int
    num_reinforced: int
    entropy: float
    kept_mass: float
    labels: LabelStatistics | None

    @property
    def num_views(self) -> int:
        """Stored views of all rows together."""
        return self.provenance.num_rows * self.provenance.num_views

    @property
    def statistics(self) -> Statistics:
        """What the card shows."""
        known = {name: getattr(self.labels, name, None) for name in ("agreement", "ece", "nll")}
        return Statistics(self.columns, self.entropy, self.kept_mass, getattr(self.labels, "num_views", 0), **known)

    def to_dict(self) -> dict[str, Any]:
        """Returns the findings in JSON types."""
        return {
            **self.__dict__,
            "provenance": self.provenance.to_dict(),
            "columns": [{"name": name, "num_bytes": count} for name, count in self.columns.items()],
            "labels": None if self.labels is None else asdict(self.labels),
        }

    def __str__(self) -> str:
        """Returns the findings as text for people."""
        parts = [
            ("Provenance", two_columns(self._provenance_lines())),
            ("Bytes", self._bytes_table()),
            ("Teacher", two_columns(self._teacher_lines())),
        ]
        if self.labels is not None:
            parts.append(("Most suspicious labels", self._suspects_table()))
        return "\n\n".join(f"{title}\n{text}" for title, text in parts)

    def _provenance_lines(self) -> list[tuple[str, str]]:
        p = self.provenance
        base = " ".join(str(p.base[key]) for key in ("id", "config", "split") if p.base.get(key)) or "unknown"
        revision = p.base.get("revision")
        skipped = p.num_rows - self.num_reinforced
        reinforced = f"{skipped:,} of them without reinforcement (undecodable)" if skipped else "all reinforced"
        lines = [
            ("configuration", f"{p.config_name}, split {p.split}" + (", overlay (no images)" if p.overlay else "")),
            ("base dataset", base + (f" at {str(revision)[:12]}" if revision else "")),
            ("rows", f"{p.num_rows:,}, {reinforced}"),
            ("views of each", f"{p.num_views:,}, {described(p.signal, p.top_k, p.num_classes)}, seed {p.seed}"),
        ]
        if p.candidates is not None:
            lines.append(("", f"of {p.candidates['num']:,} drawn, those with {schema.KEEP[p.candidates['keep']]}"))
        ops = [op for item in p.augmentation for op in item.items()]
        for n, (name, settings) in enumerate(ops):
            text = f"{name}({', '.join(f'{key}={value}' for key, value in settings.items())})"
            lines.append(("augmentation" if n == 0 else "", text))
        for n, member in enumerate(p.teacher["members"]):
            at = f" at {str(member['revision'])[:12]}" if member.get("revision") else ""
            left_out = member.get("left_out")
            text = f"{member.get('id')}{at}, licence {member.get('license') or 'unknown'}"
            text += "" if left_out is None else f", has not seen fold {left_out['number']} of {left_out['of']}"
            lines.append(("teacher" if n == 0 else "", text))
        if "temperature" in p.teacher:
            lines.append(("", f"at the temperature {p.teacher['temperature']:g}"))
        if schema.EXTENDED_FROM in p.teacher:
            count = p.teacher[schema.EXTENDED_FROM]["num_members"]
            lines.append(("", f"the first {count} by their stored top {p.top_k} answers"))
        lines.append(("", f"in {p.teacher.get('precision')} on {p.teacher.get('device_type')}, by {p.created_with}"))
        return lines

    def _bytes_table(self) -> str:
        rows = []
        for title, reserved in (("= reinforcement", True), ("= base columns", False)):
            counts = {name: count for name, count in self.columns.items() if schema.is_reserved(name) == reserved}
            rows += [[name, *self._amounts(count)] for name, count in counts.items()]
            if counts:
                rows.append([title, *self._amounts(sum(counts.values()))])
        rows.append(["file structure", *self._amounts(self.file_bytes - sum(self.columns.values()))])
        rows.append(["= files", *self._amounts(self.file_bytes)])
        return text_table(["column", "bytes", "a view", "share"], rows)

    def _amounts(self, count: int) -> list[str]:
        return [f"{count:,}", f"{count / self.num_views:.2f}", f"{count / self.file_bytes:.1%}".replace("%", " %")]

    def _teacher_lines(self) -> list[tuple[str, str]]:
        lines = self.statistics.lines(self.provenance.num_classes, self.provenance.signal)
        if self.labels is None:
            reason = "every view is mixed" if self.provenance.label_column else "the dataset has no labels"
            lines.append(("against the labels", f"left out: {reason}"))
        return lines

    def _suspects_table(self) -> str:
        assert self.labels is not None
        if not self.labels.suspects:
            return "  none: the teacher agrees with every label"
        rows = [
            [
                f"{s.row:,}",
                s.label_name,
                f"{s.label_probability:.4f}",
                s.favourite_name,
                f"{s.favourite_probability:.4f}",
                s.file or "",
            ]
            for s in self.labels.suspects
        ]
        head = ["row", "label", "probability", "teacher's favourite", "probability", "file"]
        shown = len(head) if any(s.file for s in self.labels.suspects) else len(head) - 1
        return text_table(head[:shown], [row[:shown] for row in rows], text_columns=(1, 3, 5))


def inspect(
    plus: ReinforcedDataset | str | os.PathLike[str], name: str | None = None, *, revision: str | None = None
) -> Inspection:
    """Describes what is stored, as `hf-dr inspect` does: provenance, bytes, and what the teacher thinks of the labels.

    Decodes no image, needs no base, and takes seconds, in bounded memory. `print` shows it.

    Args:
        plus: The "+" dataset, or its folder or Hub id. Of one that was opened, all rows are read, also if some were selected.
        name: With a path: the configuration; may be left out where there is only one.
        revision: With a Hub id: see `load_reinforced`.

    Raises:
        FormatError: The dataset is incomplete or does not follow the format.
        ConfigError: The configuration does not exist, or none is named and there are several; or an argument comes without the
            one that it belongs to.
        HubError: See `load_reinforced`.
    """
    config, provenance = fetch_config(_place(plus, name, revision), name, revision=revision)
    shards = check_shards(config, provenance)
    features = read_features(shards[0])
    has_labels = provenance.label_column in features
    totals = _Totals(provenance, features[provenance.label_column] if has_labels else None)
    columns = [str(provenance.label_column)] if has_labels else []
    if has_labels and isinstance(features.get(provenance.image_column), datasets.Image):
        columns.append(f"{provenance.image_column}.path")
    for batch in _record_batches(shards, provenance, columns):
        totals.add(batch)
    return Inspection(
        provenance=provenance,
        columns=_column_bytes(shards, list(features)),
        file_bytes=sum(path.stat().st_size for path in shards),
        num_reinforced=totals.num_rows,
        entropy=totals.entropy / max(1, totals.num_views),
        kept_mass=totals.kept_mass / max(1, totals.num_views),
        labels=totals.label_statistics(),
    )


def _place(
    plus: ReinforcedDataset | str | os.PathLike[str], name: str | None, revision: str | None
) -> str | os.PathLike[str]:
    """Returns where a "+" dataset is; of one that was opened, the folder of its configuration."""
    if not isinstance(plus, ReinforcedData):
        check_kind("plus", plus, (str, os.PathLike), 'a "+" dataset, or its folder or Hub id', "Name it.")
        return plus
    if not isinstance(plus, ReinforcedDataset) or not plus.shards:
        raise ConfigError(
            f'`plus` must be one "+" dataset with files, got {type(plus).__name__} without. Give its folder or Hub id.'
        )
    if name is not None or revision is not None:
        raise ConfigError("`name` and `revision` must come with a path, got an opened dataset. Leave them out.")
    return plus.shards[0].parent


def _column_bytes(shards: Sequence[Path], names: Sequence[str]) -> dict[str, int]:
    counts = dict.fromkeys(names, 0)
    for path in shards:
        with reading(path):
            metadata = pq.read_metadata(path)
        # A column's leaves are `name` or `name.…`; names may hold dots themselves, so the longest that fits is meant.
        owners = []
        for n in range(metadata.num_columns):
            leaf = metadata.schema.column(n).path
            owners.append(max((name for name in names if f"{leaf}.".startswith(f"{name}.")), key=len))
        for group in range(metadata.num_row_groups):
            for n, owner in enumerate(owners):
                counts[owner] += metadata.row_group(group).column(n).total_compressed_size
    return counts


def _record_batches(shards: Sequence[Path], provenance: Provenance, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yields what is stored of rows that have a reinforcement, with some columns of the base."""
    values = provenance.num_views * provenance.top_k
    wanted = [schema.SOURCE_INDEX, schema.IMAGE_HASH, schema.TEACHER_IDS, schema.TEACHER_LOGPROBS, *columns]
    if provenance.signal == IMAGE_TAIL:
        values = max(values, provenance.num_classes)
        wanted += [schema.TAIL_IDS, schema.TAIL_LOGPROBS]
    rows = max(1, _BATCH_VALUES // values)
    start = 0
    for path in shards:
        with reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            mixing = [name for name in file.schema_arrow.names if name == schema.AUG_PREFIX + PARTNER]
            for batch in file.iter_batches(batch_size=rows, columns=wanted + mixing):
                if batch.column(schema.SOURCE_INDEX).to_pylist() != list(range(start, start + len(batch))):
                    raise FormatError(
                        f"{path} must go on with row {start}, row by row (`{schema.SOURCE_INDEX}`), found others. Fetch it "
                        "again."
                    )
                start += len(batch)
                yield batch.filter(batch.column(schema.IMAGE_HASH).is_valid())  # rows without reinforcement are null


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
    """Returns ids and log-probabilities (float64) of two columns in a shape, checked to be answers over so many classes."""
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
class _Totals:
    """Sums over all views, batch by batch."""

    provenance: Provenance
    label_feature: Any
    num_rows: int = 0
    num_views: int = 0
    entropy: float = 0.0
    kept_mass: float = 0.0
    nll: float = 0.0
    bins: np.ndarray = field(default_factory=lambda: np.zeros((NUM_BINS, 3)))  # views, sum of confidence, hits
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
        bins = bins_of(confidence)
        for column, weights in enumerate((None, confidence, hits)):
            self.bins[:, column] += np.bincount(bins, weights, NUM_BINS)
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
        counts, confidence_sums, hits = self.bins.T
        count = int(counts.sum())
        if not count:
            return None
        return LabelStatistics(
            num_views=count,
            agreement=float(hits.sum() / count),
            ece=calibration_error(counts, confidence_sums, hits),
            nll=None if self.provenance.signal == SAMPLED else self.nll / count,
            suspects=tuple(self.suspects),
        )

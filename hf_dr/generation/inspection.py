"""What is in a "+" dataset: provenance, bytes by column, what the teacher thinks of the labels. Decodes no image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from hf_dr.errors import ConfigError
from hf_dr.generation.answer_statistics import LabelStatistics, Totals
from hf_dr.hub.fetch import fetch_config
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.reinforced_data import ReinforcedData
from hf_dr.settings import check_kind
from hf_dr.store import schema
from hf_dr.store.findings import Statistics
from hf_dr.store.provenance import Provenance
from hf_dr.store.shards import check_row_numbers, check_shards, read_features, reading
from hf_dr.teacher.signals import IMAGE_TAIL, described
from hf_dr.text import text_table, two_columns
from hf_dr.views.augmentation import PARTNER

# Numbers of the answers held at once; float64, so a batch takes some tens of MB whatever V, K and C are.
_BATCH_VALUES = 1 << 20


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
        labels: How answers and labels agree; None where the dataset has no labels, or every view is mixed.
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
        name: The configuration, if `plus` is a path; may be left out where there is only one.
        revision: Branch, tag or commit, if `plus` is a Hub id; see `load_reinforced`.

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
    totals = Totals(provenance, features[provenance.label_column] if has_labels else None)
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
                check_row_numbers(batch.column(schema.SOURCE_INDEX), range(start, start + len(batch)), str(path))
                start += len(batch)
                yield batch.filter(batch.column(schema.IMAGE_HASH).is_valid())  # rows without reinforcement are null

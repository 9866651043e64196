"""What a run would take, from a few of its batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hf_dr.errors import DataError
from hf_dr.generation.agreement import Agreement
from hf_dr.generation.labelling import ViewColumns
from hf_dr.generation.plan import Plan
from hf_dr.generation.sources import AnswerSource, cut_spans
from hf_dr.store.base_dataset import sampled_rows
from hf_dr.store.named_files import as_table
from hf_dr.store.schema import IMAGE_HASH, TAIL_IDS, TAIL_LOGPROBS, VIEWS_HASH
from hf_dr.store.shards import ZSTD_LEVEL, column_encoding, list_array
from hf_dr.teacher.signals import ImageTails
from hf_dr.text import format_bytes, two_columns


@dataclass(frozen=True)
class Estimate:
    """What a run would take: it makes `num_made` views, asks the teacher about `num_asked`, and stores `num_views`.

    Seconds are per view, of one core for augmenting, of one core or GPU for the teacher; where the teacher's device augments
    (`on_device`), the core only decodes. `agreement` is that of the teacher with the labels of a few rows; None where there
    are none.
    """

    num_views: int
    num_made: int
    num_asked: int
    num_shards: int
    seconds_augment: float
    seconds_teacher: float
    on_device: bool
    bytes_reinforcement: float
    bytes_base: float
    agreement: Agreement | None

    def report(self, num_processes: int, num_workers: int, device: torch.device) -> str:
        """Returns the estimate as a table for people; `num_processes` counts those of all parts."""
        on_cpu = device.type == "cpu"
        teacher = self.num_asked * self.seconds_teacher / 3600
        augment = self.num_made * self.seconds_augment / 3600
        workers = max(1, num_workers)
        most = math.ceil(self.num_shards / num_processes)  # of one process; the others wait for it
        # A CPU's threads do one after the other; workers of a GPU augment while it answers.
        wall = (teacher + augment) / workers if on_cpu else max(teacher, augment / workers)
        wall *= most / self.num_shards
        of_core, longest, of_teacher = "decoding and augmenting", "augmenting", "teacher"
        if self.on_device:
            of_core, longest, of_teacher = "decoding", "decoding", "augmenting and teacher"
        among = "" if self.num_made == self.num_views else f", kept of {self.num_made:,}"
        rows = [
            ("views", f"{self.num_views:,}{among}"),
            ("asked of the teacher", f"{self.num_asked:,}"),
            ("shards", f"{self.num_shards:,}, at most {most:,} a process"),
            (of_teacher, f"{1e3 * self.seconds_teacher:.2f} ms a view on one {'core' if on_cpu else 'GPU'}"),
            (of_core, f"{1e3 * self.seconds_augment:.2f} ms a view on one core"),
            (f"hours with {num_processes} process(es)", shown_hours(wall)),
            (f"{'device' if on_cpu else 'GPU'}-hours", shown_hours(wall * num_processes)),
            (f"core-hours of {longest}", shown_hours(augment)),
            ("bytes, reinforcement", format_bytes(self.bytes_reinforcement)),
            ("bytes, base columns", format_bytes(self.bytes_base)),
            ("top-1 is the label", str(self.agreement or "not compared: there are no labels")),
        ]
        return two_columns(rows)


def shown_hours(hours: float) -> str:
    """Returns hours for people."""
    return f"{hours:.2f}" if hours >= 0.01 else "less than 0.01"


def estimate(plan: Plan, source: AnswerSource, num_batches: int, agreement: Agreement | None) -> Estimate:
    """Measures a few batches spread over the run and returns what all of it would take; writes nothing."""
    provenance = plan.provenance
    spans = []
    for n in range(num_batches + 1):  # the first warms up
        shard = n * provenance.num_shards // (num_batches + 1)
        of_shard = cut_spans(provenance, [shard], source.batch_size, source.first_new)
        spans.append(of_shard[n * len(of_shard) // (num_batches + 1)])
    timing = source.measure(spans)
    num_views = provenance.num_rows * provenance.num_views
    return Estimate(
        num_views=num_views,
        num_made=provenance.num_rows * provenance.num_candidates,
        num_asked=provenance.num_rows * (provenance.num_candidates - source.first_new),
        num_shards=provenance.num_shards,
        seconds_augment=timing.seconds_augment,
        seconds_teacher=timing.seconds_teacher,
        on_device=source.on_device,
        bytes_reinforcement=num_views * _bytes_per_view(plan, timing.columns),
        bytes_base=_base_bytes(plan),
        agreement=agreement,
    )


def _bytes_per_view(plan: Plan, batches: Sequence[ViewColumns]) -> float:
    """Compresses the views as a shard would be; few views compress worse than many, so this errs upwards."""
    features = plan.features
    columns = {
        name: values[:, None]  # as if each view were a row
        for name, values in ViewColumns.join(batches).columns.items()
        if name not in (IMAGE_HASH, VIEWS_HASH)
    }
    one_view = {name: datasets.List(features[name].feature, length=1) for name in columns}
    size = _written_size(columns, one_view) / sum(map(len, batches))
    if TAIL_IDS not in features:
        return size
    answers = [batch.answers for batch in batches if batch.answers is not None]
    count = min(map(len, answers))
    tails = ImageTails(count)  # as if each batch were a row
    for answers_NC in answers:
        tails.add(answers_NC[:count])
    rows = dict(zip((TAIL_IDS, TAIL_LOGPROBS), tails.take(len(answers)), strict=True))
    written = _written_size(rows, {name: features[name] for name in rows})
    return size + written / (len(answers) * plan.provenance.num_views)


def _written_size(columns: dict[str, np.ndarray], features: dict[str, Any]) -> int:
    """Bytes of a file of these columns, compressed as in a shard."""
    sink = pa.BufferOutputStream()
    written = datasets.Features(features)
    arrays = {
        name: list_array(values, np.ones(len(values), bool), written.arrow_schema.field(name).type)
        for name, values in columns.items()
    }
    pq.write_table(
        pa.table(arrays),
        sink,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        use_dictionary=False,
        column_encoding=column_encoding(written),
    )
    return sink.tell()


def _base_bytes(plan: Plan) -> float:
    """Bytes of the base's stored columns, from some of its rows."""
    base = plan.base
    if not base.column_names:
        return 0.0
    rows = sampled_rows(len(base)).tolist()
    return float(np.mean([_row_bytes(plan, row) for row in rows])) * len(base)


def _row_bytes(plan: Plan, row: int) -> int:
    """Bytes of a row of the base's stored columns; an image that the run will skip has none."""
    try:
        table = as_table(plan.base, row, row + 1)
    except DataError:
        if plan.provenance.on_bad_image == "error":
            raise
        image_column = plan.provenance.image_column
        table = as_table(plan.base, row, row + 1, image_column=image_column, readable=np.zeros(1, bool))
    return table.combine_chunks().get_total_buffer_size()

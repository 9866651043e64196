"""What a run would take, and how far it is."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from hf_dr.generation.folder import Part
from hf_dr.store.provenance import Provenance
from hf_dr.store.shards import ZSTD_LEVEL, column_encoding, list_array
from hf_dr.text import format_bytes


@dataclass(frozen=True)
class Estimate:
    """What a run would take: `num_made` views, of which the teacher is asked for `num_asked` and `num_views` are stored.

    Seconds are per view, of one core for augmenting, of one core or GPU for the teacher.
    """

    num_views: int
    num_made: int
    num_asked: int
    num_shards: int
    seconds_augment: float
    seconds_teacher: float
    bytes_reinforcement: float
    bytes_base: float

    def report(self, num_processes: int, num_workers: int, device: torch.device) -> str:
        """Returns the estimate as a table for people; `num_processes` counts those of all parts."""
        teacher = self.num_asked * self.seconds_teacher / 3600
        augment = self.num_made * self.seconds_augment / 3600
        workers = max(1, num_workers)
        most = math.ceil(self.num_shards / num_processes)  # of one process; the others wait for it
        wall = (teacher + augment) / workers if device.type == "cpu" else max(teacher, augment / workers)
        wall *= most / self.num_shards
        among = "" if self.num_made == self.num_views else f", kept of {self.num_made:,}"
        rows = [
            ("views", f"{self.num_views:,}{among}"),
            ("asked of the teacher", f"{self.num_asked:,}"),
            ("shards", f"{self.num_shards:,}, at most {most:,} a process"),
            (
                "teacher",
                f"{1e3 * self.seconds_teacher:.2f} ms a view on one {'core' if device.type == 'cpu' else 'GPU'}",
            ),
            ("decoding and augmenting", f"{1e3 * self.seconds_augment:.2f} ms a view on one core"),
            (f"hours with {num_processes} process(es)", f"{wall:.2f}"),
            (f"{'GPU' if device.type != 'cpu' else 'device'}-hours", f"{wall * num_processes:.2f}"),
            ("core-hours of augmenting", f"{augment:.2f}"),
            ("bytes, reinforcement", format_bytes(self.bytes_reinforcement)),
            ("bytes, base columns", format_bytes(self.bytes_base)),
        ]
        return "\n".join(f"  {name:<28}{value}" for name, value in rows)


def written_size(columns: dict[str, np.ndarray], features: dict[str, Any]) -> int:
    """Bytes of a file of these columns, compressed as in a shard."""
    sink, written = pa.BufferOutputStream(), datasets.Features(features)
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


class Progress:
    """Rank 0's progress bar over the views of all ranks, with throughput, time left, shards and bytes.

    Other ranks are followed by the shards that they finish, so the bar runs late by at most one shard each.
    """

    LOOK_EVERY = 5.0  # seconds between looks at the folder

    def __init__(
        self,
        folder: Path,
        provenance: Provenance,
        part: Part,
        missing: list[int],
        mine: list[int],
        state: PartialState,
    ) -> None:
        self._folder = folder
        self._names = {i: provenance.shard_names[i] for i in set(missing) - set(mine)}
        views = {i: len(provenance.shard_range(i)) * provenance.num_views for i in part.of(provenance.num_shards)}
        self._views = {i: views[i] for i in missing}
        self._others_done = 0
        self._shards, self._bytes, self._made = 0, 0, 0
        self._looked = self._began = time.monotonic()
        self._bar = tqdm(
            total=sum(views.values()),
            initial=sum(views.values()) - sum(self._views.values()),
            unit="view",
            unit_scale=True,
            desc=f"reinforcing {provenance.config_name}",
            disable=not state.is_main_process or not missing,
        )

    def update(self, views: int) -> None:
        """Counts views that this rank has made."""
        self._made += views
        self._bar.update(views)
        if not self._bar.disable and self._names and time.monotonic() - self._looked > self.LOOK_EVERY:
            self._look()

    def wrote(self, file_bytes: int) -> None:
        """Counts a shard that this rank has finished."""
        self._shards += 1
        self._bytes += file_bytes
        self._show()

    def _look(self) -> None:
        for index, name in list(self._names.items()):
            if (self._folder / name).exists():
                del self._names[index]
                self._bar.update(self._views[index])
                self.wrote((self._folder / name).stat().st_size)
        self._looked = time.monotonic()

    def _show(self) -> None:
        self._bar.set_postfix_str(f"{self._shards} shards, {format_bytes(self._bytes)}")

    def summary(self) -> str:
        """Returns this rank's throughput, for the closing log line."""
        seconds = time.monotonic() - self._began
        return f" ({self._made / seconds:,.0f} views/s on rank 0)" if self._made else ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._names and not self._bar.disable:
            self._look()
        self._bar.close()

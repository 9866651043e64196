"""How far a run is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from accelerate import PartialState

from hf_dr.generation.folder import Part
from hf_dr.generation.labelling import ViewColumns
from hf_dr.store.provenance import Provenance
from hf_dr.text import format_bytes, progress_bar


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
        names = provenance.shard_names
        self._of_others = {shard: names[shard] for shard in set(missing) - set(mine)}  # until they are there
        views = {
            shard: len(provenance.shard_range(shard)) * provenance.num_views for shard in part.of(provenance.num_shards)
        }
        self._views = {shard: views[shard] for shard in missing}
        self._shards = 0
        self._bytes = 0
        self._made = 0
        self._began = time.monotonic()
        self._looked = self._began
        self._bar = progress_bar(
            total=sum(views.values()),
            initial=sum(views.values()) - sum(self._views.values()),
            unit="view",
            unit_scale=True,
            desc=f"reinforcing {provenance.config_name}",
            show=state.is_main_process and bool(missing),
        )

    def counted(self, views: Iterator[ViewColumns]) -> Iterator[ViewColumns]:
        """Yields views that this rank has made, and counts them."""
        for part in views:
            self._made += len(part)
            self._bar.update(len(part))
            if not self._bar.disable and self._of_others and time.monotonic() - self._looked > self.LOOK_EVERY:
                self._look()
            yield part

    def wrote(self, file_bytes: int) -> None:
        """Counts a shard that this rank has finished."""
        self._shards += 1
        self._bytes += file_bytes
        self._bar.set_postfix_str(f"{self._shards} shards, {format_bytes(self._bytes)}", refresh=False)

    def _look(self) -> None:
        """Counts the shards that other ranks have finished since the last look."""
        for shard, name in list(self._of_others.items()):
            path = self._folder / name
            if path.exists():
                del self._of_others[shard]
                self._bar.update(self._views[shard])
                self.wrote(path.stat().st_size)
        self._looked = time.monotonic()

    def summary(self) -> str:
        """Returns this rank's throughput, for the closing log line."""
        seconds = time.monotonic() - self._began
        return f" ({self._made / seconds:,.0f} views/s on rank 0)" if self._made else ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._of_others and not self._bar.disable:
            self._look()
        self._bar.close()

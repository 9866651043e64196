"""Writing shards while the next rows are made."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from hf_dr.store.shards import ShardMarker, ShardWriter
from hf_dr.views.device.overlap import Background


class BackgroundWriter:
    """Encodes and writes shards, one after the other, in a thread.

    Leaving the block, by an error or Ctrl-C too, first writes what it was given, then deletes a shard that is not finished.
    An error of the thread is raised by a later call, `wait` at the latest.
    """

    def __init__(self) -> None:
        self._background = Background(depth=4)
        self._open: list[ShardWriter] = []

    def begin(self, writer: ShardWriter) -> None:
        """Goes on with a new shard."""
        self._open.append(writer)

    def write(self, base: Callable[[], pa.Table], *row_group: Any) -> None:
        """Writes a row group of the shard; see `ShardWriter.write`. `base` is called in the thread: images are copied there."""
        shard = self._open[-1]
        self._background.submit(lambda: shard.write(base(), *row_group))

    def finish(self, then: Callable[[ShardMarker], None]) -> None:
        """Finishes the shard and calls `then`, in the thread."""
        self._background.submit(self._finish, self._open[-1], then)

    def _finish(self, writer: ShardWriter, then: Callable[[ShardMarker], None]) -> None:
        marker = writer.finish()
        self._open.remove(writer)
        then(marker)

    def wait(self) -> None:
        """Waits until all is written."""
        self._background.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._background.close()
        for writer in self._open:
            writer.__exit__(kind, error, trace)

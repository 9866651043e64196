"""The sources of an import: runs of ml-dr over the same images, whose views add up."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from hf_dr.errors import ConfigError, FormatError
from hf_dr.generation.ml_dr.archives import CONFIG_FILE, archive_files, image_number, read_file
from hf_dr.generation.ml_dr.files import Columns, RunFormat


class RowFile(NamedTuple):
    """The file of one image.

    Attributes:
        row: Of the base.
        data: Content.
        number: The image's number in ml-dr's order.
        where: Names the file in messages.
    """

    row: int
    data: bytes
    number: int
    where: str


@dataclass(frozen=True)
class Run:
    """One source: its configuration, and the views that its files add."""

    path: Path
    format: RunFormat
    views: range

    def read(
        self, files: Iterator[RowFile], top_k: int, num_classes: int, workers: int
    ) -> Iterator[tuple[RowFile, Columns]]:
        """Yields each file with its columns, in order; a view takes a core some 50 us, so several processes share them.

        Args:
            files: Some of the source's.
            top_k: K.
            num_classes: C.
            workers: Processes; below 2, this one reads them itself.

        Raises:
            FormatError: A file is damaged, or does not hold what it should.
        """
        shape = len(self.views), top_k, num_classes
        if workers < 2:
            for file in files:
                yield file, self.format.read(*file[1:], *shape)
            return
        waiting: deque[tuple[RowFile, Future[Columns]]] = deque()
        # Ctrl-C reaches every process of the terminal; the parent alone answers it.
        pool = ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
        try:
            for file in files:
                waiting.append((file, pool.submit(self.format.read, *file[1:], *shape)))
                if len(waiting) > 4 * workers:  # so memory stays bounded, and no worker waits
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def open_runs(sources: list[Path]) -> tuple[list[Run], int]:
    """Reads the configuration and one file of each source; returns the runs and K.

    Raises:
        ConfigError: There is none, one does not exist, or they are runs of different things.
        FormatError: One is damaged, or not ml-dr's.
    """
    if not sources:
        raise ConfigError("an import must have at least one folder or archive, got none. Name one.")
    runs: list[Run] = []
    top_ks: list[int] = []
    for source in sources:
        if not source.exists():
            raise ConfigError(f"{source} must be a folder or archive of ml-dr, found nothing there. Check the path.")
        format, number, content = _peek(source)
        where = f"{source}: {number}.pth.tar"
        start = runs[-1].views.stop if runs else 0
        runs.append(Run(source, format, range(start, start + format.num_samples(content, number, where))))
        top_ks.append(format.top_k(content, where))
        first = runs[0].format
        for what, one, other in (
            ("augmentation", first.augmentation.to_list(), format.augmentation.to_list()),
            ("teacher", first.teachers, format.teachers),
            ("number of classes", first.num_classes, format.num_classes),
            ("top-K", top_ks[0], top_ks[-1]),
        ):
            if one != other:
                raise ConfigError(
                    f"several sources must be runs of one {what}, found {one} in {sources[0]} and {other} in {source}. "
                    "Import them as configurations of their own."
                )
    return runs, top_ks[0]


def _peek(source: Path) -> tuple[RunFormat, int, Any]:
    """Reads a source as far as the configuration and one image's file; returns both, and the image's number."""
    format = None
    first = None
    for name, read in archive_files(source):
        where = f"{source}: {name}"
        number = image_number(name, source)
        if number is None:
            format = RunFormat(read_file(read(), where), where)
        elif first is None:
            first = number, read_file(read(), where)
        if format is not None and first is not None:
            return format, *first
    raise FormatError(
        f"{source} must hold {CONFIG_FILE} and a file like 0.pth.tar for each image, found no "
        f"{CONFIG_FILE if format is None else 'image'}. Fetch it again, or check the path."
    )

"""The sources of an import: runs of ml-dr over the same images, whose views add up.

Each is a file for each image, in a folder or a tar, compressed or not.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

from hf_dr.errors import ConfigError, FormatError
from hf_dr.generation.ml_dr.files import MAX_FILE_BYTES, Columns, RunFormat, read_file
from hf_dr.processes import ahead

Read = Callable[[], bytes]

CONFIG_FILE = "config.pth.tar"
_ROW_FILE = re.compile(r"(0|[1-9]\d{0,9})\.(?:pth\.tar|jb)")


class _Member(tarfile.TarInfo):
    """A header that is checked before anything behind it is read."""

    _KINDS = (
        tarfile.REGTYPE,
        tarfile.AREGTYPE,
        tarfile.DIRTYPE,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        *tarfile.GNU_TYPES[:2],
    )

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        # tarfile calls this for every header, also for those in front of a member's own, before it reads what is behind it.
        # Newer versions of Python no longer call `frombuf` of a subclass.
        if self.type not in self._KINDS or not 0 <= self.size <= MAX_FILE_BYTES:
            raise FormatError(
                f"the archive must hold files of at most {MAX_FILE_BYTES:,} bytes and folders only, found "
                f"{self.name!r:.80} of type {self.type!r} with {self.size:,} bytes. Do not trust it."
            )
        return cast(Any, super())._proc_member(archive)

    def _proc_gnusparse_10(self, member: tarfile.TarInfo, *_: Any) -> None:
        # tarfile would read as many numbers as the archive says there are: gigabytes from a megabyte.
        raise FormatError(f"the archive must hold plain files, found the sparse {member.name!r:.80}. Do not trust it.")


def archive_files(path: Path) -> Iterator[tuple[str, Read]]:
    """Yields name and content (by a call, before the next) of each file of a folder `reinforced_data` or an archive of one.

    Raises:
        FormatError: It is neither, is damaged, or holds what it should not: links, several folders, or paths that lead out.
    """
    files = _folder_files(path) if path.is_dir() else _tar_files(path)
    folders = set()
    for name, read in files:
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise FormatError(f"{path} must hold plain relative names, found {name!r:.80}. Do not trust this archive.")
        folders.add(place.parent)
        if len(folders) > 1:
            raise FormatError(
                f"{path} must hold one folder of files, found {' and '.join(sorted(map(str, folders)))}. Pass each as a source "
                "of its own."
            )
        yield place.name, read


def _folder_files(path: Path) -> Iterator[tuple[str, Read]]:
    if (path / "reinforced_data").is_dir():
        path /= "reinforced_data"
    # In one order everywhere, the configuration first: a run is known by it and by the first image's file.
    names = os.listdir(path)  # noqa: PTH208 - a million names: paths are large
    for name in sorted(names, key=lambda name: (name != CONFIG_FILE, name)):
        file = path / name
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{path} must hold plain files only, found {name!r:.80}. Remove it.")
        if status.st_size > MAX_FILE_BYTES:
            raise FormatError(
                f"{file} must have at most {MAX_FILE_BYTES:,} bytes, found {status.st_size:,} bytes. Remove it."
            )
        yield name, file.read_bytes


def _tar_files(path: Path) -> Iterator[tuple[str, Read]]:
    with _reading(path), tarfile.open(path, "r|*", tarinfo=_Member) as archive:
        while (member := archive.next()) is not None:
            cast(Any, archive).members.clear()  # tarfile would remember more than a million headers
            if member.isdir():
                continue
            file = archive.extractfile(member)
            if file is None or member.size > MAX_FILE_BYTES or member.issparse():
                raise FormatError(f"{path} must hold plain files only, found {member.name!r:.80}. Do not trust it.")
            yield member.name, _reading(path)(file.read)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FormatError:
        raise
    # tarfile raises its own errors, those of the decompressors, and several for headers that contradict themselves.
    except (tarfile.TarError, zlib.error, LZMAError, EOFError, OSError, ValueError, RecursionError) as error:
        raise FormatError(
            f"{path} must be a folder or a tar archive (.tar, .tar.gz) of one, but reading it failed "
            f"({type(error).__name__}: {error}). Fetch it again."
        ) from error


def image_number(name: str, path: Path) -> int | None:
    """Returns the image number that a file's name says; None for the configuration. Other names are refused."""
    if name == CONFIG_FILE:
        return None
    row = _ROW_FILE.fullmatch(name)
    if row is None:
        raise FormatError(
            f"{path} must hold {CONFIG_FILE} and a file like 0.pth.tar for each image, found {name!r:.80}. "
            "Remove it, or check the path."
        )
    return int(row[1])


class RowFile(NamedTuple):
    """The file of one image: its row of the base, content, number in ml-dr's order, and name for messages."""

    row: int
    data: bytes
    number: int
    where: str


@dataclass(frozen=True)
class Run:
    """One source: its configuration, the views that its files add, K, and what tells it from others."""

    path: Path
    format: RunFormat
    views: range
    top_k: int
    digest: str

    def read(self, files: Iterator[RowFile], num_classes: int, workers: int) -> Iterator[tuple[RowFile, Columns]]:
        """Yields each file with its columns, in order; a view takes a core some 50 us, so several processes share them.

        With fewer than two `workers` this process reads them itself.
        """
        shape = len(self.views), self.top_k, num_classes
        if workers < 2:
            for file in files:
                yield file, self.format.read(*file[1:], *shape)
            return
        # Ctrl-C reaches every process of the terminal; the parent alone answers it.
        pool = ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
        try:
            yield from ahead(
                files,
                lambda file: pool.submit(self.format.read, *file[1:], *shape),
                lambda file, columns: (file, columns.result()),
                depth=4 * workers,  # so memory stays bounded, and no worker waits
            )
        finally:
            pool.shutdown(cancel_futures=True)


def open_runs(sources: list[Path]) -> list[Run]:
    """Reads the configuration and one file of each source.

    Raises:
        ConfigError: There is none, one does not exist, or they are runs of different things.
        FormatError: One is damaged, or not ml-dr's.
    """
    if not sources:
        raise ConfigError("an import must have at least one folder or archive, got none. Name one.")
    runs: list[Run] = []
    for source in sources:
        if not source.exists():
            raise ConfigError(f"{source} must be a folder or archive of ml-dr, found nothing there. Check the path.")
        run = _open_run(source, runs[-1].views.stop if runs else 0)
        for earlier in runs:
            if earlier.digest == run.digest:
                raise ConfigError(
                    f"several sources must be different runs, found the same in {earlier.path} and {source}. Name each once."
                )
        runs.append(run)
        first = runs[0]
        for what, one, other in (
            ("augmentation", first.format.augmentation.to_list(), run.format.augmentation.to_list()),
            ("teacher", first.format.teachers, run.format.teachers),
            ("number of classes", first.format.num_classes, run.format.num_classes),
            ("top-K", first.top_k, run.top_k),
        ):
            if one != other:
                raise ConfigError(
                    f"several sources must be runs of one {what}, found {one} in {first.path} and {other} in {source}. "
                    "Import them as configurations of their own."
                )
    return runs


def _open_run(path: Path, start: int) -> Run:
    """Reads a source as far as the configuration and one image's file; its views are counted from `start`."""
    config: tuple[bytes, str] | None = None
    image: tuple[int, bytes, str] | None = None
    for name, read in archive_files(path):
        number = image_number(name, path)
        if number is None:
            config = read(), f"{path}: {name}"
        elif image is None:
            image = number, read(), f"{path}: {name}"
        if config is not None and image is not None:
            break
    else:
        raise FormatError(
            f"{path} must hold {CONFIG_FILE} and a file like 0.pth.tar for each image, found no "
            f"{CONFIG_FILE if config is None else 'image'}. Fetch it again, or check the path."
        )
    settings, settings_file = config
    number, data, where = image
    format = RunFormat(read_file(settings, settings_file), settings_file)
    content = read_file(data, where)
    views = range(start, start + format.num_samples(content, number, where))
    digests = [hashlib.sha256(part).hexdigest() for part in (settings, data)]
    digest = hashlib.sha256(f"{digests[0]} {number} {digests[1]}".encode()).hexdigest()
    return Run(path, format, views, format.top_k(content, where), digest)

"""The files of ml-dr's archives: one for each image, in folders or tars, compressed or not."""

from __future__ import annotations

import io
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Any, cast

from hf_dr.errors import FormatError
from hf_dr.generation.ml_dr.plain_pickle import read_plain_pickle

Read = Callable[[], bytes]

CONFIG_FILE = "config.pth.tar"
# A file holds some 300 bytes a view; a larger one is none of ml-dr's.
MAX_FILE_BYTES = 1 << 25
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
        raise FormatError(
            f"the archive must hold plain files only, found {member.name!r:.80}, a sparse one. Do not trust it."
        )


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
    with os.scandir(path) as entries:
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                raise FormatError(f"{path} must hold plain files only, found {entry.name!r:.80}. Remove it.")
            if entry.stat().st_size > MAX_FILE_BYTES:
                raise FormatError(
                    f"{entry.path} must have at most {MAX_FILE_BYTES:,} bytes, found {entry.stat().st_size:,} bytes."
                )
            yield entry.name, Path(entry.path).read_bytes


def _tar_files(path: Path) -> Iterator[tuple[str, Read]]:
    with _reading(path), tarfile.open(path, "r|*", tarinfo=_Member) as archive:
        while (member := archive.next()) is not None:
            cast(Any, archive).members.clear()  # tarfile would remember more than a million headers
            if member.isdir():
                continue
            file = archive.extractfile(member)
            if file is None or member.size > MAX_FILE_BYTES or member.issparse():
                raise FormatError(f"{path} must hold plain files only, found {member.name!r:.80}. Do not trust it.")
            yield member.name, _reader(path, file.read)


def _reader(path: Path, read: Read) -> Read:
    """Returns the same with errors that name the archive."""

    def checked() -> bytes:
        with _reading(path):
            return read()

    return checked


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


def read_file(data: bytes, where: str) -> Any:
    """Returns what a file of ml-dr holds: a container of torch.save, or a compressed pickle of joblib.

    Raises:
        FormatError: It is neither, is damaged or too large, or holds anything but plain values.
    """
    try:
        if data[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(io.BytesIO(data)) as container:
                (name,) = (name for name in container.namelist() if name.endswith("/data.pkl"))
                with container.open(name) as file:
                    pickled = file.read(MAX_FILE_BYTES + 1)
        elif data[:1] == b"\x78":
            inflate = zlib.decompressobj()
            pickled = inflate.decompress(data, MAX_FILE_BYTES + 1)
            if len(pickled) <= MAX_FILE_BYTES and not inflate.eof:
                raise EOFError("it breaks off")
        else:
            raise ValueError(f"it begins with {data[:4]!r}")
    except Exception as error:  # zipfile raises half a dozen types on hostile containers
        if isinstance(error, MemoryError):
            raise
        raise FormatError(
            f"{where} must be written by torch.save or joblib, but: {type(error).__name__}: {error!s:.200}. Fetch it again."
        ) from error
    if len(pickled) > MAX_FILE_BYTES:
        raise FormatError(f"{where} must hold at most {MAX_FILE_BYTES:,} bytes, found more. Do not trust this file.")
    return read_plain_pickle(pickled, where)


def image_number(name: str, path: Path) -> int | None:
    """Returns the image number that a file's name says; None for the configuration.

    Raises:
        FormatError: It is neither's name.
    """
    if name == CONFIG_FILE:
        return None
    row = _ROW_FILE.fullmatch(name)
    if row is None:
        raise FormatError(
            f"{path} must hold {CONFIG_FILE} and a file like 0.pth.tar for each image, found {name!r:.80}. "
            "Remove it, or check the path."
        )
    return int(row[1])

"""Writing a file whole or not at all: under a temporary name of its own, which is renamed when all is written.

Also what reading a broken YAML file raises, the hash of a file, and locks: one process holds each at a time.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import hashlib
import inspect
import json
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock
from yaml import YAMLError

from hf_dr.errors import ConfigError, HfDrError

logger = logging.getLogger(__name__)

YAML_ERRORS = (YAMLError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError, RecursionError)
"""What PyYAML raises for text that is no YAML: explicit tags let its constructors fail, `!!int ''` with an IndexError."""

TEMPORARY = ".tmp"
"""What temporary names end with."""


def expanded(path: str | os.PathLike[str]) -> Path:
    """Returns a path with the home folder that a `~` at its beginning stands for.

    Raises:
        ConfigError: There is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"`~` at the beginning of a path must stand for the home folder of a user, but that of {os.fspath(path)!r:.200} is "
            "not known. Correct the name, or write the path without `~`."
        ) from error


def absolute(path: str | os.PathLike[str]) -> Path:
    """Returns a path from the root on, with the home folder; unlike `Path.resolve` it keeps the name of a link."""
    return Path(os.path.abspath(expanded(path)))  # noqa: PTH100 (it takes `..` away, which `Path.absolute` does not)


def placeless(name: str) -> str:
    """Returns what others are told of a dataset or model: of a local path the last part, a Hub id as it is."""
    path = absolute(name)
    return path.name if path.exists() else name


def temporary_name(path: Path) -> Path:
    """Returns a hidden name next to a file, with host, process and a random word: no two writers ever share one."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")


def spelled_alike(path: Path) -> str:
    """Returns `` Did you mean `x`?`` for what lies beside a path that is not there and is spelled like it, else nothing."""
    if path.exists() or not path.parent.is_dir():
        return ""
    beside = [entry.name for entry in path.parent.iterdir() if entry.name != path.name]  # a link to nothing is there
    close = difflib.get_close_matches(path.name, beside, n=1)
    return f" Did you mean `{path.parent / close[0]}`?" if close else ""


def no_folder(name: str) -> str:
    """Says that there is no such folder here, and which one is spelled like it; returns nothing where there is one.

    For errors about what was looked up at the Hub, and was perhaps meant for a folder.
    """
    path = expanded(name)
    return "" if path.exists() else f" There is no folder `{name}` here.{spelled_alike(path)}"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system raises where a file cannot be written, as on a full disk, into an error for people.

    Raises:
        HfDrError: It cannot.
    """
    try:
        yield
    except OSError as error:
        raise HfDrError(
            f"could not write {path}: {error.strerror or error}. Free space or fix the folder, then run the same command "
            "again; what is finished is kept."
        ) from error


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives the temporary name to write to, and renames it to `path` at the end of the block; after an error it is deleted.

    Raises:
        HfDrError: It cannot be written.
    """
    temporary = temporary_name(path)
    try:
        with writing(path):
            yield temporary
            flush_to_disk(temporary)
            temporary.replace(path)
    finally:
        remove_temporary(temporary)


def flush_to_disk(path: Path) -> None:
    """Waits until what was written to a file is on the disk: after a power cut a file that is renamed may be empty else."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def remove_temporary(path: Path) -> None:
    """Deletes what was not finished; where it cannot, as on a disk that became read-only, an error came before."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def remove_temporaries(folder: Path, names: Iterable[str] = ("",)) -> None:
    """Deletes what killed processes left behind of files of these names, or of all; call it only while nobody writes them."""
    beginnings = tuple(f".{name}" for name in names)
    for path in folder.glob(f".*{TEMPORARY}"):
        if path.name.startswith(beginnings):
            path.unlink(missing_ok=True)


def unreadable(path: Path | str, error: OSError) -> HfDrError:
    """Returns an error for people from what the system raises where a file cannot be read."""
    return HfDrError(f"could not read {path}: {error.strerror or error}. Fix the file or the disk, and try again.")


def nearest(folder: Path) -> Path:
    """Returns the folder, or, where it is still to be made, the nearest one above it that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def check_writable(folder: Path, setting: str) -> None:
    """Tries whether a folder can be made and written to, before the work begins whose results it will hold. Leaves nothing.

    Raises:
        ConfigError: They cannot; `setting` is what names the folder, or a file in it.
    """
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)):
            pass
    except OSError as error:
        raise ConfigError(
            f"`{setting}` must be where files can be written, but {folder}: {error.strerror}. Choose another place."
        ) from error


def check_apart(output_dir: str | Path, datasets: Iterable[str | None], models: Iterable[str | None] = ()) -> None:
    """Checks that a command does not write into a folder that it reads: what it reads next time would be something else.

    Names of other kinds than folders are passed over.

    Args:
        output_dir: The folder that the command writes to.
        datasets: What it reads with all folders in it.
        models: What it reads without the folders in it.

    Raises:
        ConfigError: It does.
    """
    folder = expanded(output_dir).resolve()
    read = [(source, True) for source in filter(None, datasets)] + [(source, False) for source in filter(None, models)]
    for source, whole in read:
        place = expanded(source)
        if not place.is_dir():
            continue
        place = place.resolve()
        if folder == place or (whole and folder.is_relative_to(place)):
            raise ConfigError(
                f"`output_dir` must not lie in a folder that is read, got {output_dir} with {source}. Choose another place."
            )


_DATA = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".parquet", ".arrow"}


def check_no_data(output_dir: str | Path) -> None:
    """Checks that a command does not write among the images of a dataset, which could not be loaded with its files.

    Raises:
        ConfigError: There are images or tables there.
    """
    folder = expanded(output_dir)
    found = (path for pattern in ("*", "*/*") for path in folder.glob(pattern))
    data = next((path for path in found if path.suffix.lower() in _DATA and path.is_file()), None)
    if data is not None:
        raise ConfigError(
            f"`output_dir` must be new, or the folder of this command from before, got {output_dir} with the file "
            f"{data.relative_to(folder)} of a dataset. Choose another place."
        )


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a text, in UTF-8, or bytes; whoever reads the file sees the old content or the new one."""
    with written_whole(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """Writes what JSON can hold, with indents for people; see `write_whole`."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_weights(folder: Path) -> str | None:
    """Returns the SHA-256 of names and contents of a folder's safetensors files; None where it has none."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    told = "".join(f"{path.name} {sha256_of(path)} " for path in files)
    return hashlib.sha256(told.encode()).hexdigest() if told else None


_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_PATIENCE = 10.0  # seconds until it is said what is waited for
# filelock's own replacement for locks that a file system lacks would outlive a killed process, and at another machine nobody
# could tell that it has. Older versions have none.
_OF_THE_SYSTEM: dict[str, Any] = (
    {"fallback_to_soft": False}
    if "fallback_to_soft" in inspect.signature(filelock.FileLock.__init__).parameters
    else {}
)


def file_lock(path: str | os.PathLike[str]) -> filelock.BaseFileLock:
    """Returns the lock of a file, which is still to be taken. It is the system's, and ends with the process that holds it."""
    return filelock.FileLock(path, timeout=0, **_OF_THE_SYSTEM)


def take(lock: filelock.BaseFileLock, waiting_for: str | None = None) -> None:
    """Takes a lock; the process that holds it can take it again.

    Where the file system has no locks, a warning says that nothing keeps others away.

    Args:
        lock: What `file_lock` returned.
        waiting_for: Wait for whoever holds it; after 10 seconds a warning says for what. Default: do not wait.

    Raises:
        filelock.Timeout: Another process holds it, and is not waited for.
        OSError: The file cannot be written.
    """
    while True:
        try:
            lock.acquire(timeout=0 if waiting_for is None else _PATIENCE)
            return
        except filelock.Timeout:
            if waiting_for is None:
                raise
            logger.warning("Waiting for %s, which holds %s.", waiting_for, lock.lock_file)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            _warn_unguarded(Path(lock.lock_file).parent)
            return


@contextlib.contextmanager
def held(path: str | os.PathLike[str], waiting_for: str) -> Iterator[None]:
    """Holds the lock of a file, for which it waits; see `take`."""
    lock = file_lock(path)
    take(lock, waiting_for)
    try:
        yield
    finally:
        lock.release()


@functools.cache
def _warn_unguarded(folder: Path) -> None:
    logger.warning(
        "The file system of %s has no locks: see to it that no other run writes there at the same time.", folder
    )

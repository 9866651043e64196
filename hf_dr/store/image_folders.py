"""Folders of images, a folder for each class: which of their files `datasets` reads, and which it leaves out."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from zipfile import ZipFile

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.text.text import Text
from huggingface_hub import metadata_load

from hf_dr.errors import DataError
from hf_dr.text import counted

logger = logging.getLogger(__name__)

# Alone, these folders are splits; in a longer name, as in `train_steam`, `datasets` takes the word for one, too.
_SPLITS = frozenset({"train", "training", "test", "testing", "eval", "evaluation", "val", "valid", "validation", "dev"})
_WORD = re.compile(rf"(?:^|[-._ 0-9])(?:{'|'.join(sorted(_SPLITS))})(?:[-._ 0-9]|$)")
# Of cameras, phones and the web; `datasets` reads none of them in a folder, though Pillow may.
_UNREADABLE = frozenset({".avif", ".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw"})
_IMAGES = frozenset(ImageFolder.EXTENSIONS)
# Names of folders that `datasets` passes over begin so; macOS packs some.
_HIDDEN = (".", "__")
# Next to images `datasets` reads those called `metadata` alone.
_TABLES = frozenset({".csv", ".jsonl", ".parquet"})


def check_all_read(folder: Path, builder: datasets.DatasetBuilder) -> None:
    """Tells of images, and tables beside them, that `datasets` leaves out of a folder, before it is loaded.

    Other kinds of folders are not looked at. `builder` is the one that will load it.

    Raises:
        DataError: They are left out because the folder of a class, or other images, have the word for a split in their names,
            because the text files beside them are read instead; or a name is not UTF-8, or has a line break; or archives
            hold folders of classes.
    """
    folder = folder.resolve()  # as `datasets` does, whose names of files are compared
    card = folder / "README.md"
    if card.is_file() and (metadata_load(card) or {}).get("configs"):
        return  # it says which files are read
    if not isinstance(builder, ImageFolder | Text):
        return
    given = (file for files in (builder.config.data_files or {}).values() for file in files)
    read = sorted({os.path.normpath(file) for file in given})
    _check_encoding(read)
    others = sorted(set(_files(folder)).difference(read))
    images = [file for file in others if _kind(file) in _IMAGES and os.path.isfile(file)]  # noqa: PTH113
    _check_line_breaks(folder, images)
    if images and isinstance(builder, Text):
        raise DataError(
            f"the images of {folder} must be read, but `datasets` reads its {len(read):,} text files, such as {read[0]}, "
            f"since there are as many of them, and leaves out {len(images):,} images. Move the text files out of the folder."
        )
    if images:
        _check_splits(folder, read, images)
    _warn_of_unreadable(folder, others)
    if isinstance(builder, ImageFolder):
        _check_archives(folder, read)
        _warn_of_tables(folder, others)


def refuse_other_kinds(folder: Path) -> None:
    """Refuses a folder in which `datasets` finds nothing, if it has images of kinds that `datasets` does not read."""
    unread = sorted(file for file in _files(folder) if _kind(file) in _UNREADABLE)
    if unread:
        raise DataError(
            f"a folder of images must have some that `datasets` reads, but the {len(unread):,} images of {folder} are of other "
            f"kinds, such as {unread[0]}. Convert them to JPEG or PNG."
        ) from None


def _check_encoding(read: list[str]) -> None:
    """Refuses names that are no UTF-8, as Arrow's texts are: `datasets` would fail without naming the file."""
    bad = [file for file in read if file.encode(errors="replace") != file.encode(errors="surrogatepass")]
    if bad:
        raise DataError(
            f"the names of files and folders must be UTF-8, but that of {bad[0]!a} is not ({len(bad)} such files). "
            "Rename them, for example by `convmv`."
        )


def _check_line_breaks(folder: Path, left: list[str]) -> None:
    """Refuses images that are left out for the line break in their name."""
    broken = [file for file in left if "\n" in file.removeprefix(str(folder))]
    if broken:
        raise DataError(
            "the names of files and folders must be without line breaks, for `datasets` leaves out those with one, found "
            f"{broken[0]!a} ({len(broken)} such images). Rename them."
        )


def _check_splits(folder: Path, read: list[str], left: list[str]) -> None:
    """Refuses names that `datasets` takes for splits, for which it leaves other images out; warns of those beside splits."""
    tops = {Path(file).relative_to(folder).parts[0] for file in read if Path(file).is_relative_to(folder)}
    words = sorted(top for top in tops if (folder / top).is_dir() and top not in _SPLITS and _WORD.search(top))
    if not words and not tops & _SPLITS:
        words = [Path(file).name for file in read if _WORD.search(Path(file).stem)][:1]
    told = f"{len(left):,} images of {folder} are in no split and would be left out, such as {left[0]}"
    if words:
        raise DataError(
            f"all folders of classes must be read, but {told}: `datasets` takes the word for a split in the name of "
            f"{', '.join(words)} for a split. Rename it, or put all folders of classes into one called `train`."
        )
    _warn(f"{told}: beside folders called train or test no others are read, nor folders that are links.")


def _check_archives(folder: Path, read: list[str]) -> None:
    """Refuses archives that hold folders of classes, for which `datasets` has no labels; warns of others."""
    archives = [file for file in read if _kind(file) == ".zip"]
    if not archives:
        return
    found = f"{counted(len(archives), 'archive')} in {folder}, such as {archives[0]}"
    advice = "Move an archive away if its images are in the folder, too, else unpack it."
    packed: list[Path] = []
    for archive in archives:
        with ZipFile(archive) as opened:
            packed += map(Path, opened.namelist())
    seen = [path for path in packed if not any(part.startswith(_HIDDEN) for part in path.parts)]
    classes = {path.parent for path in seen if path.suffix.lower() in _IMAGES}
    described = any(path.stem == "metadata" for path in (*seen, *map(Path, read)))  # which has the labels
    if len(classes) > 1 and not described:
        raise DataError(
            f"folders of classes must not be packed, because `datasets` finds no labels in archives, found {found}. {advice}"
        )
    _warn(f"Images will also be read from {found}. {advice}")


def _warn_of_unreadable(folder: Path, left: list[str]) -> None:
    """Warns of images of other kinds, and of broken links."""
    unreadable = [file for file in left if _kind(file) in _UNREADABLE or not os.path.isfile(file)]  # noqa: PTH113
    if unreadable:
        _warn(
            f"{counted(len(unreadable), 'file')} in {folder} cannot be read as images and will be left out, such as "
            f"{unreadable[0]}: convert them to JPEG or PNG."
        )


def _warn_of_tables(folder: Path, left: list[str]) -> None:
    """Warns of tables that may have the labels."""
    tables = [file for file in left if _kind(file) in _TABLES]
    if tables:
        _warn(
            f"{counted(len(tables), 'table')} in {folder} next to the images will not be read, such as {tables[0]}. If it has "
            "the labels, call it metadata.csv (or .jsonl, .parquet), and its column with the paths of the images `file_name`."
        )


def _kind(file: str) -> str:
    """Returns how a file's name ends, in lower case."""
    return Path(file).suffix.lower()


def _files(folder: Path) -> Iterator[str]:
    """Yields the files below a folder, those of linked folders too; hidden ones are left out, as `datasets` does."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(_HIDDEN)]
        if real not in seen:
            yield from (os.path.join(place, name) for name in names if not name.startswith("."))  # noqa: PTH118
        seen.add(real)


@lru_cache
def _warn(message: str) -> None:
    """Warns once, however many splits are loaded."""
    logger.warning(message)

"""What a teacher learns from: all images but those that are held out, or all but a fold."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq

from hf_dr.errors import ConfigError, DataError
from hf_dr.files import remove_temporaries, write_json, written_whole
from hf_dr.replay.join import check_readable
from hf_dr.store.base_dataset import file_hashes, shared_files, undecoded_images, whole_hash
from hf_dr.store.json_files import read_object
from hf_dr.store.labels import read_labels
from hf_dr.store.named_files import as_table
from hf_dr.teacher.folds import FOLDS_FILE
from hf_dr.views.rng import DOMAIN_SPLIT, keyed_rng

logger = logging.getLogger(__name__)

MARKER = "held_out.json"
"""Next to a dataset that was divided, how it was."""
_ROWS = 100  # of photos, which are in memory together
_MOST_COMPARED = 100_000


def held_out_rows(labels: np.ndarray, share: float, seed: int, images: Sequence[Hashable] | None = None) -> np.ndarray:
    """Returns rows to hold out, drawn from each class apart; int64, in order.

    Args:
        labels: Class of each row, int64 (rows,).
        share: Share of each class's images that is held out, rounded; at least one of two or more, and never all of them.
        seed: The same seed, the same rows.
        images: What tells the image of each row, such as a hash: rows of one image are held out or learned together, as those
            of the class of the first. Default: each row has an image of its own.
    """
    firsts: dict[Hashable, int] = {}
    first_row = np.array([firsts.setdefault(image, n) for n, image in enumerate(images or range(len(labels)))])
    distinct = np.unique(first_row)
    chosen = []
    for label in np.unique(labels[distinct]):
        rows = distinct[labels[distinct] == label]
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        chosen.append(keyed_rng(seed, domain=DOMAIN_SPLIT, major=int(label)).permutation(rows)[:count])
    return np.flatnonzero(np.isin(first_row, np.concatenate(chosen)))


def check_folds(labels: np.ndarray, names: Sequence[str] | None, folds: np.ndarray | None = None) -> None:
    """Checks that a teacher that is trained without one fold sees each class; a DataError if all images of one are in a fold.

    `labels` and `folds` are the class and the fold of each image (rows,); `names` are those of the classes, if they have any.
    Before the images are read there are no folds, but a class of a single image will be in one.
    """
    classes, counts = np.unique(labels, return_counts=True)
    for label, count in zip(classes.tolist(), counts.tolist(), strict=True):
        if count == 1 or (folds is not None and len(np.unique(folds[labels == label])) == 1):
            shown = label if names is None else names[label]
            instead = "leave the class out" if count == 1 else "choose another number of `folds`"
            raise DataError(
                f"each class must have images in at least 2 folds to learn from, but {shown} has all its images "
                f"({count}) in one: its teacher would not know them. Add images, or {instead}."
            )


def begin_folds(folder: Path, num_folds: int, images: str) -> None:
    """Notes in a folder of teachers how the images were divided: their `pixels_digest`, and into how many folds.

    A ConfigError if others were divided there, or in another way.
    """
    made_of = {"num_folds": num_folds, "images": images}
    _is_there(folder / FOLDS_FILE, made_of, f"{folder} must hold teachers of the same folds of the same images")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FOLDS_FILE, made_of)


def _is_there(file: Path, made_of: dict[str, Any], expected: str) -> bool:
    """Whether a folder was begun, as a file in it notes; a ConfigError if it was made of something else."""
    if not file.is_file():
        return False
    there = read_object(file, "Choose another `output_dir`.")
    differing = [name for name in made_of if there.get(name) != made_of[name]]
    if differing:
        raise ConfigError(f"{expected}, but it differs in {', '.join(differing)}. Choose another `output_dir`.")
    return True


def warn_of_learned(held_out: datasets.Dataset, learned: datasets.Dataset) -> None:
    """Warns of held-out images whose very files are learned, too; both undecoded, one column each.

    Of more than `_MOST_COMPARED` images this would take about as long as an epoch, and nobody is warned.
    """
    if len(learned) > _MOST_COMPARED:
        return
    shared = shared_files(held_out, learned)
    if shared:
        logger.warning(
            "%d of the %d held-out images are learned as well: what is measured by them is too good. Remove the copies.",
            shared,
            len(held_out),
        )


def warn_of_unlearned(held_out: np.ndarray, learned: np.ndarray, names: Sequence[str] | None) -> None:
    """Warns of classes that are measured and never learned; both are labels, and `names` are those of the classes."""
    missing = np.setdiff1d(held_out, learned).tolist()
    if missing:
        shown = ", ".join(str(c if names is None else names[c]) for c in missing[:5])
        logger.warning(
            "%d classes have held-out images and none to learn from (%s%s): all of these will be answered wrongly. Add images "
            "to the split that is learned.",
            len(missing),
            shown,
            ", ..." if len(missing) > 5 else "",
        )


def divide(
    dataset: datasets.Dataset,
    image_column: str,
    label_column: str,
    folder: Path,
    *,
    share: float,
    seed: int,
    folds: bool = False,
) -> None:
    """Writes a dataset as a folder of Parquet files with two splits, `train` and `test`, images included.

    Copies of an image, which are files of the same bytes, are in one split: nothing is measured by what was learned.

    A folder that was written before, from the same images with the same labels, is left as it is. `share` and `seed` are
    those of `held_out_rows`; `folds` is whether what is written will be divided into folds.

    Raises:
        ConfigError: The folder was written from other images or labels, or with another share or seed.
        DataError: A row has no label or no readable image, or a class has too few images to hold some out, or to divide the
            others into folds.
    """
    labels, names = read_labels(dataset, label_column, f"`{label_column}`", "Leave these rows out.")

    def parts(images: Sequence[bytes] | None = None) -> dict[str, np.ndarray]:
        test = held_out_rows(labels, share, seed, images)
        if not len(test):
            raise DataError(
                f"a class must have at least 2 different images for one to be held out, but none of {len(np.unique(labels))} "
                "has. Add images, or name a split of others with `eval_split`."
            )
        train = np.setdiff1d(np.arange(len(dataset)), test)
        if folds:
            check_folds(labels[train], names)
        return {"train": train, "test": test}

    parts()  # which needs no image
    hashes = file_hashes(dataset, image_column)
    made_of = {"images": whole_hash(dataset, image_column, label_column, hashes), "share": share, "seed": seed}
    marker = folder.parent / MARKER
    if _is_there(marker, made_of, f"{folder} must be made of the same images and labels in the same way"):
        return
    check_readable(undecoded_images(dataset, image_column))  # now, where the files still have their own names
    rows_of = parts(hashes)
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)  # all images may be in one
    for split, rows in rows_of.items():
        part = dataset.select(rows)
        schema = part.features.arrow_schema
        with written_whole(folder / f"{split}-00000-of-00001.parquet") as path, pq.ParquetWriter(path, schema) as file:
            for start in range(0, len(part), _ROWS):
                file.write_table(as_table(part, start, min(start + _ROWS, len(part))))
    write_json(marker, made_of)

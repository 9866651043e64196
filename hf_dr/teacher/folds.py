"""Cross-fitting: k teachers, each trained without the images of one fold, so that every image has one that has not seen it.

The fold of an image is its pixel hash modulo k. So it is known wherever an image, or its row of a "+" dataset, is at hand, and
copies of an image are in one fold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter

from hf_dr.errors import TeacherError
from hf_dr.files import expanded

CONFIG_KEY = "hf_dr_left_out"
"""Key of a model's config.json under which a `Fold` stands, in JSON types."""
FOLDS_FILE = "folds.json"
"""File in a folder of teachers: `num_folds`, k, and `images`. The teachers are in its folders `fold-0` to `fold-(k - 1)`."""


@dataclass(frozen=True)
class Fold:
    """The images that were left out of a training: those of one fold of a dataset.

    Attributes:
        number: Number of the fold, from 0 to `of` - 1.
        of: k, the folds.
        images: Digest of the dataset's images (`hf_dr.replay.join.pixels_digest`).
    """

    number: Annotated[int, Field(strict=True, ge=0)]
    of: Annotated[int, Field(strict=True, ge=2)]
    images: Annotated[str, Field(strict=True, pattern="^[0-9a-f]{64}$")]

    @classmethod
    def read(cls, content: Any) -> Fold:
        """Returns a fold in JSON types, checked; raises a ValueError where it is none."""
        fold = _FOLD.validate_python(content)
        if fold.number >= fold.of:
            raise ValueError(f"`number` must be below {fold.of}")
        return fold


_FOLD = TypeAdapter(Fold)
_COUNT: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(strict=True, ge=2, le=1000)])


def folds_of(image_hashes: np.ndarray, num_folds: int) -> np.ndarray:
    """Returns the fold of each image, int64, by its pixel hash, uint64, as `image_hash` of a "+" dataset."""
    return (image_hashes % np.uint64(num_folds)).astype(np.int64)


def fold_folders(folder: Path, num_folds: int) -> list[Path]:
    """Returns where the teachers of a folder are, one for each fold."""
    return [folder / f"fold-{number}" for number in range(num_folds)]


def fold_in_config(name: str, config: Any) -> Fold | None:
    """Returns which images a model was trained without, if its configuration tells it, which must then be a fold."""
    content = getattr(config, CONFIG_KEY, None)
    try:
        return None if content is None else Fold.read(content)
    except ValueError as error:
        raise TeacherError(
            f"`{CONFIG_KEY}` in the config.json of {name!r} must name one of at least 2 folds, found {content!s:.80}. Restore "
            "the file, or remove the key from a model that has seen all images."
        ) from error


def with_members(names: Sequence[str]) -> list[str]:
    """Returns names of teachers with the members of each folder of folds in the place of its name."""
    found = []
    for name in names:
        file = expanded(name) / FOLDS_FILE
        if not file.is_file():
            found.append(name)
            continue
        try:
            count = _COUNT.validate_python(json.loads(file.read_text(encoding="utf-8"))["num_folds"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise TeacherError(
                f"{file} must say how many folds there are (`num_folds`), but: {error!s:.200}. Run `hf-dr teach` again."
            ) from error
        found += [str(folder) for folder in fold_folders(file.parent, count)]
    return found

"""Which image of the base belongs to which row of an overlay: by place where nothing was moved, else by the pixels."""

from __future__ import annotations

import hashlib
import json
import logging
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import PIL
import PIL.features
import xxhash

from hf_dr.errors import ConfigError, DataError
from hf_dr.files import held, written_whole
from hf_dr.processes import num_cores, thread_pool
from hf_dr.store.base_dataset import content_hash, sampled_rows, undecoded_images
from hf_dr.store.provenance import Provenance
from hf_dr.text import progress_bar
from hf_dr.views.images import DECODING_RULE, decode_image, decode_row, pixel_hash

logger = logging.getLogger(__name__)

_CHUNK = 64  # images that a thread decodes at a time
_OF_A_PART = 8  # images of each further part of a stream that are decoded, to see whether they are in their places
UNREADABLE = 0  # stands for the hash of an image that cannot be decoded


class JoinedBase:
    """A base dataset in which an overlay finds its images.

    They are where they were if the image files of 64 rows spread over the base, or else the pixels of 64 rows of the
    overlay (of a stream, of its first part, and of 8 of each other one), are those that were reinforced. Otherwise all images
    are decoded once (`index_images`), and those of equal pixels belong together: in any order, in any file format.

    Attributes:
        images: The image column of the base, undecoded.

    Raises:
        DataError: It is no single split, or has no image column of the name that the overlay knows.
    """

    def __init__(self, dataset: datasets.Dataset, provenance: Provenance) -> None:
        if not isinstance(dataset, datasets.Dataset):
            raise DataError(
                f"`base` must be one split, a datasets.Dataset, got {type(dataset).__name__}. Load split "
                f"`{provenance.base_split}`, without `streaming=True`."
            )
        column = provenance.image_column
        if column not in dataset.column_names:
            raise DataError(
                f"`base` must have the image column `{column}`, found {dataset.column_names}. Rename its column."
            )
        self.dataset = dataset
        self.images = undecoded_images(dataset, column)
        self._provenance = provenance
        self._moved: bool | None = None  # as far as rows were looked for

    def places(self, source: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Returns the row of the base that holds each image, int64 (rows,).

        Args:
            source: Row of the reinforced base for each row of the overlay, int64 (rows,).
            hashes: Pixel hash of each row's image, uint64 (rows,).

        Raises:
            DataError: Images are missing.
        """
        if self._are_in_place(source, hashes):
            return source
        index, order = self._sorted_index
        missing = np.flatnonzero(~np.isin(hashes, index))
        if len(missing):
            first = missing[0]
            raise DataError(
                f"`base` must hold the images of all {len(source)} reinforced rows, but those of {len(missing)} are not among "
                f"its {len(index)}: first row {source[first]} (pixel hash {int(hashes[first]):016x}). Give "
                f"{self._provenance.named_base}, with unchanged pixels."
            )
        return order[np.searchsorted(index, hashes)]

    def others(self, source: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Returns the rows of the base, int64, whose images are not among those of `places`; some may be unreadable."""
        if self._are_in_place(source, hashes):
            return np.setdiff1d(np.arange(len(self.images)), source)
        index, order = self._sorted_index
        return np.sort(order[~np.isin(index, hashes)])

    @cached_property
    def _sorted_index(self) -> tuple[np.ndarray, np.ndarray]:
        """The pixel hashes of all images, rising, and the rows of the base that have them."""
        logger.info("The base is not in the order that was reinforced; its images are recognised by their pixels.")
        index = index_images(self.images)
        order = np.argsort(index, kind="stable")
        return index[order], order

    def _are_in_place(self, source: np.ndarray, hashes: np.ndarray) -> bool:
        """Whether images are where they were. Those of a stream come in parts, and one that is not speaks for the rest."""
        if not len(source):
            return True
        (column,) = self.images.column_names
        # An image more or less moves all that follow it, and the last row of a part is among those that are looked at.
        sample = sampled_rows(len(source), None if self._moved is None else _OF_A_PART)
        self._moved = self._moved or not (
            0 <= source.min() <= source.max() < len(self.images)
            and (self._has_the_files or all(_hash_of(self.images[int(source[n])][column]) == hashes[n] for n in sample))
        )
        return not self._moved

    @cached_property
    def _has_the_files(self) -> bool:
        """Whether the base begins with the image files that were reinforced."""
        rows = self._provenance.num_rows
        if len(self.images) < rows:
            return False
        return content_hash(self.images.select(range(rows))) == self._provenance.base.get("content_hash")


def join_base(base: datasets.Dataset | JoinedBase | None, provenance: Provenance) -> JoinedBase | None:
    """Returns the base in which an overlay finds its images; None for a "+" dataset that has its own, and is given no base."""
    if not provenance.overlay:
        if base is not None:
            raise ConfigError('`base` is for an overlay, but this "+" dataset has its images. Leave `base` out.')
        return None
    if base is None:
        raise DataError(
            f'this "+" dataset is an overlay without images. Pass `base`: {provenance.named_base}, by name or loaded with '
            "datasets."
        )
    return base if isinstance(base, JoinedBase) else JoinedBase(base, provenance)


def readable(images: datasets.Dataset, rows: np.ndarray) -> np.ndarray:
    """Returns those of the rows, int64, whose images can be decoded."""
    return rows[index_images(images.select(rows)) != UNREADABLE] if len(rows) else rows


def check_readable(images: datasets.Dataset) -> None:
    """Checks that all images can be decoded; a DataError names row and file of the first that cannot."""
    (column,) = images.column_names
    for row in np.flatnonzero(index_images(images) == UNREADABLE).tolist():
        decode_row(images[row][column], f"row {row}")


def index_images(images: datasets.Dataset) -> np.ndarray:
    """Returns the pixel hash of each image, uint64 (rows,), `UNREADABLE` where there is none.

    Decodes every image once, on all cores, with a progress bar; the result is kept under HF_DATASETS_CACHE/hf_dr, where
    later calls and other processes find it.
    """
    # What the hashes depend on: the images, their order, and who decodes them.
    libraries = [PIL.__version__, PIL.features.version("jpg"), PIL.features.version("webp")]
    text = json.dumps([images._fingerprint, images.column_names, len(images), DECODING_RULE, libraries])
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    path = Path(datasets.config.HF_DATASETS_CACHE) / "hf_dr" / f"{key}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(f"{path}.lock", "another process that decodes the same images"):  # which then finds what this would
        index = _read(path, len(images))
        if index is None:
            index = _decode_all(images)
            with written_whole(path) as temporary, temporary.open("wb") as file:
                np.save(file, np.append(index, _checksum(index)), allow_pickle=False)
    return index


def pixels_digest(images: datasets.Dataset) -> str:
    """Returns a hash of the number of images and of the pixels of 64 of them, spread over all, as SHA-256."""
    hashes = _decode_all(images.select(sampled_rows(len(images)))).tolist()
    return hashlib.sha256(f"{len(images)} {hashes}".encode()).hexdigest()


def _hash_of(cell: object) -> int:
    try:
        return pixel_hash(decode_image(cell))
    except DataError:
        return UNREADABLE


def _decode_all(images: datasets.Dataset) -> np.ndarray:
    (column,) = images.column_names
    index = np.empty(len(images), np.uint64)

    def fill(start: int) -> int:
        cells = images[start : start + _CHUNK][column]
        index[start : start + len(cells)] = [_hash_of(cell) for cell in cells]
        return len(cells)

    with (
        thread_pool(num_cores(), "join") as pool,
        progress_bar(total=len(images), desc="recognising images", unit="image") as bar,
    ):
        for count in pool.map(fill, range(0, len(images), _CHUNK)):
            bar.update(count)
    return index


def _read(path: Path, count: int) -> np.ndarray | None:
    """The index in a file, or None where there is none or it is not what was written."""
    try:
        content = np.load(path, allow_pickle=False)
        if content.dtype == np.uint64 and content.shape == (count + 1,) and content[-1] == _checksum(content[:-1]):
            return content[:-1]
        reason = "its content does not fit its checksum"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:  # what NumPy's reader raises on a damaged file
        reason = str(error)
    logger.warning("The index of the base's images in %s is damaged (%s); it is made again.", path, reason)
    return None


def _checksum(index: np.ndarray) -> np.uint64:
    return np.uint64(xxhash.xxh3_64_intdigest(np.ascontiguousarray(index).data))

"""Importing reinforcements that apple/ml-dr published: one pickle for each image, in a folder or a tar archive.

The pickles are read as data (`plain_pickle`), the archive as a stream; nothing is extracted or executed. As the members
may come in any order, their rows go to a scratch file in the output folder first, at their places; then the shards are
written in order.

What the teacher saw is not known to the bit: it was augmented as tensors, a replay works on PIL images, so that 48 % of the
views with RandAugment differ, by a mean of 0.05/255. Therefore `views_hash` is null.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import logging
import math
import os
import re
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import datasets
import filelock
import numpy as np
import PIL.Image
import pyarrow as pa
import torch
from tqdm.auto import tqdm

from hf_dr.errors import ConfigError, DataError, FormatError
from hf_dr.generation.config import ImportConfig
from hf_dr.generation.folder import check_same_run, open_run
from hf_dr.generation.ml_dr.archives import CONFIG_FILE, archive_files, image_number, read_file
from hf_dr.generation.ml_dr.files import Columns, RunFormat, expect
from hf_dr.generation.ml_dr.order import find_rows
from hf_dr.generation.ml_dr.scratch import Scratch
from hf_dr.processes import default_workers
from hf_dr.store.base_dataset import as_table, check_dataset, checked_origin, content_hash, undecoded_images
from hf_dr.store.card import write_card
from hf_dr.store.features import reinforcement_features
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import AUG_PREFIX, IMAGE_HASH, SOURCE_INDEX, STORED_PARTNERS, TEACHER_IDS, VIEWS_HASH
from hf_dr.store.shards import ROW_GROUP_VIEWS, ShardWriter, read_marker
from hf_dr.text import format_bytes
from hf_dr.version import __version__
from hf_dr.views.augmentation import NO_PARTNER, PARTNER
from hf_dr.views.images import decode_image, decode_row, pixel_hash
from hf_dr.views.ops.geometry import RandomCrop, RandomErasing, RandomResizedCrop, Resize
from hf_dr.views.ops.mixing import CutMix

logger = logging.getLogger(__name__)

# Agreement with the labels that is asked for: a quarter of the way from chance to perfect. Wrong orders stay at chance.
_MIN_AGREEMENT = 0.25
_LABELLED_ROWS = 2048  # after so many rows the labels are looked at for the first time
_FILES_A_WORKER = 2048  # a process takes seconds to start
_VERSIONED = ("numpy", "pillow", "torchvision")


def import_ml_dr(
    sources: Sequence[str | os.PathLike[str]],
    base: datasets.Dataset,
    config: ImportConfig,
    *,
    described: dict[str, Any] | None = None,
) -> Path:
    """Turns reinforcements of apple/ml-dr into a "+" dataset; an import that was stopped goes on where it was.

    Rows whose image cannot be decoded, or is turned by its EXIF orientation (which ml-dr did not look at), stay without
    reinforcement; views that mix such an image in are replaced by others of their row.

    Args:
        sources: Folders `reinforced_data` or tar archives of one, compressed or not; several are runs over the same images,
            whose views add up.
        base: The dataset that was reinforced.
        config: See `ImportConfig`.
        described: How to name the base in the provenance: `id`, `config`, `revision`.

    Returns:
        The folder of the configuration.

    Raises:
        FormatError: A file is damaged, incomplete or not of that format.
        DataError: The base is not the one that was reinforced, or is in another order.
        ConfigError: A setting is impossible, or the folder cannot be used.
        FingerprintMismatchError: The folder was begun with another import.
    """
    job = ImportJob(sources, base, config, described=described)
    job.run()
    return job.folder


# --------------------------------------------------------------------------------------------------------------- order


# ----------------------------------------------------------------------------------------------------------- scratch


# ----------------------------------------------------------------------------------------------------------------- job


_File = tuple[int, tuple[bytes, int, str]]
"""Row of the base; content, number and name of a file."""


@dataclass(frozen=True)
class _Run:
    """One source: its configuration, and the views that its files add."""

    path: Path
    format: RunFormat
    views: range


class ImportJob:
    """One import: checked when built, then `run` or `plan`.

    Attributes:
        provenance: How the "+" dataset was made, as far as ml-dr says.
        folder: Where the shards go.
    """

    def __init__(
        self,
        sources: Sequence[str | os.PathLike[str]],
        base: datasets.Dataset,
        config: ImportConfig,
        *,
        described: dict[str, Any] | None = None,
    ) -> None:
        self.config = config
        image_column, label_column = check_dataset(base, config.image_column, config.label_column)
        known = checked_origin(base, config.files_from)
        self._images = undecoded_images(base, image_column)
        self._row_of = find_rows(config.order, self._images)
        self._labels = None
        if label_column is not None:
            self._labels = np.asarray(
                base.select_columns([label_column]).with_format("arrow")[:][label_column].cast(pa.int64()).fill_null(-1)
            )
        names = getattr(base.features[label_column], "names", None) if label_column else None
        self._runs, top_k = self._open([Path(source).expanduser() for source in sources])
        format = self._runs[0].format
        self.num_classes = self._num_classes(format.num_classes, names)
        self._augmentation = format.augmentation
        columns = [name for name in base.column_names if not (config.overlay and name == image_column)]
        self._dataset = base.select_columns(columns)
        num_views = self._runs[-1].views.stop
        added = reinforcement_features(
            self._augmentation, num_views, top_k, self.num_classes, stored_partners=self._augmentation.mixes
        )
        self._features = datasets.Features({**{name: base.features[name] for name in columns}, **added})
        self._stored = datasets.Features(
            {name: feature for name, feature in added.items() if isinstance(feature, datasets.List)}
        )
        split = re.sub(r"[^A-Za-z0-9_.-]+.*", "", str(base.split or "train")) or "train"
        order = hashlib.sha256(self._row_of.astype("<i8").tobytes()).hexdigest()
        self.provenance = Provenance(
            config_name=config.config_name,
            split=split,
            augmentation=self._augmentation.to_list(),
            num_views=num_views,
            top_k=top_k,
            num_classes=self.num_classes,
            seed=0,
            shard_size=config.shard_size or min(1024, math.ceil(len(base) / 8)),
            num_rows=len(base),
            overlay=config.overlay,
            image_column=image_column,
            label_column=label_column,
            mixing_scope=STORED_PARTNERS if self._augmentation.mixes else "dataset",
            on_bad_image="skip",
            base={
                **known, **(described or {}), "content_hash": content_hash(self._images), "order": order,
            },
            teacher={
                "members": [_member(name, self.num_classes) for name in format.teachers],
                "num_classes": self.num_classes,
                "precision": "fp32",
                "device_type": "cuda",
                "runs": [len(run.views) for run in self._runs],
            },
            library_versions={name: importlib.metadata.version(name) for name in _VERSIONED},
            created_with=f"hf_dr {__version__}, import-ml-dr",
            schema_version=2 if self._augmentation.mixes else 1,
        )  # fmt: skip
        self.folder = Path(config.output_dir).expanduser() / config.config_name
        workers = min(default_workers(torch.device("cpu")), len(base) // _FILES_A_WORKER)
        self._workers = workers if config.num_workers is None else config.num_workers
        self._hits, self._looked, self._favourites = 0, 0, np.zeros(self.num_classes, np.int64)

    def _open(self, sources: list[Path]) -> tuple[list[_Run], int]:
        """Reads the configuration and one file of each source."""
        if not sources:
            raise ConfigError("an import must have at least one folder or archive, got none. Name one.")
        runs: list[_Run] = []
        top_ks = []
        for source in sources:
            if not source.exists():
                raise ConfigError(
                    f"{source} must be a folder or archive of ml-dr, found nothing there. Check the path."
                )
            format, number, content = _peek(source)
            start = runs[-1].views.stop if runs else 0
            where = f"{source}: {number}.pth.tar"
            runs.append(_Run(source, format, range(start, start + format.num_samples(content, number, where))))
            top_ks.append(format.top_k(content, where))
            for what, a, b in (
                ("augmentation", runs[0].format.augmentation.to_list(), format.augmentation.to_list()),
                ("teacher", runs[0].format.teachers, format.teachers),
                ("number of classes", runs[0].format.num_classes, format.num_classes),
                ("top-K", top_ks[0], top_ks[-1]),
            ):
                if a != b:
                    raise ConfigError(
                        f"several sources must be runs of one {what}, found {a} in {sources[0]} and {b} in {source}. "
                        "Import them as configurations of their own."
                    )
        return runs, top_ks[0]

    def _num_classes(self, configured: int | None, names: list[str] | None) -> int:
        if configured is None and names is None:
            raise DataError(
                "the base must have a ClassLabel column, as ml-dr's configuration does not count the classes."
            )
        if configured is not None and names is not None and configured != len(names):
            raise DataError(
                f"the base must have the {configured} classes of ml-dr's configuration, found {len(names)}. "
                "Is it another dataset?"
            )
        return configured if configured is not None else len(cast(list[str], names))

    def plan(self) -> str:
        """Checks what can be checked without reading everything and tells what would be written; writes nothing."""
        check_same_run(self.folder, self.provenance)
        p, bytes_row = self.provenance, self._row_bytes
        rows = [
            ("images x views", f"{p.num_rows:,} x {p.num_views:,}, of {len(self._runs)} run(s)"),
            ("answers", f"top {p.top_k} of {p.num_classes:,} classes"),
            ("teachers", ", ".join(member["id"] for member in p.teacher["members"])),
            ("ops", ", ".join(name for item in p.augmentation for name in item)),
            ("scratch space", format_bytes(p.num_rows * bytes_row)),
            ("shards", f"{p.num_shards:,}, at most {format_bytes(p.num_rows * bytes_row)} and the base's columns"),
        ]
        return "\n".join(f"  {name:<16}{value}" for name, value in rows)

    @property
    def _row_bytes(self) -> int:
        schema = self._stored.arrow_schema
        return sum(pa.nulls(1, schema.field(name).type).nbytes for name in schema.names)

    def run(self) -> None:
        """Reads the sources, then writes the shards that are missing, and the card."""
        lock = filelock.FileLock(self.folder / ".lock", timeout=0)
        missing = open_run(self.folder, self.provenance, lock, self.provenance.num_views * self.provenance.top_k * 2)
        try:
            if missing:
                scratch = Scratch(
                    self.folder / f".import-{self.provenance.fingerprint[:16]}",
                    self._stored,
                    self.provenance.num_rows,
                    [run.views for run in self._runs],
                )
                sizes = self._sizes()
                wanted = np.zeros(self.provenance.num_rows, bool)
                for shard in missing:
                    wanted[self.provenance.shard_range(shard)] = True
                for run in range(len(self._runs)):
                    self._read(run, scratch, sizes, wanted)
                self._write(missing, scratch)
                scratch.remove()
            markers = [read_marker(self.folder / name) for name in self.provenance.shard_names]
            self.provenance.skipped_rows[:] = [row for marker in markers for row in marker.skipped_rows]
            self.provenance.write(self.folder)
            write_card(self.folder.parent)
            logger.info(
                "%s: %d rows x %d views, %s in %d shards; %d rows without reinforcement.",
                self.folder,
                self.provenance.num_rows,
                self.provenance.num_views,
                format_bytes(sum(marker.file_bytes for marker in markers)),
                len(markers),
                len(self.provenance.skipped_rows),
            )
        finally:
            lock.release()

    def _sizes(self) -> np.ndarray:
        """(height, width) of each image, int64 (rows, 2); zeros where the image cannot be used."""
        (column,) = self._images.column_names
        sizes = np.zeros((len(self._images), 2), np.int64)
        for row in tqdm(range(len(self._images)), desc="reading the base's sizes", unit="image", unit_scale=True):
            value = self._images[row][column] or {}
            with contextlib.suppress(Exception), PIL.Image.open(_file(value)) as image:  # whatever Pillow raises
                if image.getexif().get(0x0112, 1) == 1:
                    sizes[row] = image.height, image.width
        unusable = int((sizes[:, 0] == 0).sum())
        if unusable == len(sizes):
            raise DataError("the base must have images that can be decoded, found none. Check `image_column`.")
        if unusable:
            logger.warning(
                "%d images of the base are undecodable or turned by EXIF, and stay without reinforcement.", unusable
            )
        return sizes

    # ------------------------------------------------------------------------------------------------------- reading

    def _read(self, run: int, scratch: Scratch, sizes: np.ndarray, wanted: np.ndarray) -> None:
        """Reads one source into the scratch file."""
        source = self._runs[run]
        with tqdm(
            total=self.provenance.num_rows, desc=f"reading {source.path.name}", unit="image", unit_scale=True
        ) as bar:
            for row, where, columns in self._mapped(source, self._files(run, scratch, sizes, wanted, bar)):
                scratch.put(run, row, self._fitted(columns, row, sizes, where))
                bar.update()
        self._check_labels()

    def _files(
        self, run: int, scratch: Scratch, sizes: np.ndarray, wanted: np.ndarray, bar: tqdm[Any]
    ) -> Iterator[_File]:
        """The files of a source that are not in the scratch file; checks that there is one for each image."""
        source, num_rows = self._runs[run], self.provenance.num_rows
        seen = np.zeros(num_rows, bool)
        for name, read in archive_files(source.path):
            number = image_number(name, source.path)
            if number is None:
                continue
            where = f"{source.path}: {name}"
            if number >= num_rows:
                raise DataError(
                    f"{where} must be about one of the base's {num_rows} images, found number {number}. "
                    "Is it another dataset or split?"
                )
            expect(not seen[number], where, "be there once", f"image {number} twice")
            seen[number] = True
            row = int(self._row_of[number])
            if wanted[row] and sizes[row, 0] and not scratch.has(run, row):
                yield row, (read(), number, where)
            else:
                bar.update()
        absent = np.flatnonzero(~seen)
        if len(absent):
            raise FormatError(
                f"{source.path} must have a file for each of the base's {num_rows} images, but {len(absent)} are missing, e.g. "
                f"{absent[0]}.pth.tar. Fetch it again, or name the dataset and split that was reinforced."
            )

    def _mapped(self, run: _Run, files: Iterator[_File]) -> Iterator[tuple[int, str, Columns]]:
        """Row, name and columns of each file, in order; a view takes a core some 50 us, so several processes share them."""
        shape = len(run.views), self.provenance.top_k, self.num_classes
        if self._workers < 2:
            for row, file in files:
                yield row, file[-1], run.format.read(*file, *shape)
            return
        waiting: deque[tuple[int, str, Future[Columns]]] = deque()
        # Ctrl-C reaches every process of the terminal; the parent alone answers it.
        pool = ProcessPoolExecutor(self._workers, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
        try:
            for row, file in files:
                waiting.append((row, file[-1], pool.submit(run.format.read, *file, *shape)))
                if len(waiting) > 4 * self._workers:
                    first, where, future = waiting.popleft()
                    yield first, where, future.result()
            for first, where, future in waiting:
                yield first, where, future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _fitted(self, columns: Columns, row: int, sizes: np.ndarray, where: str) -> Columns:
        """Checks the columns of a file against the base, and turns the partners' numbers into rows."""
        self._check_boxes(columns, "", np.broadcast_to(sizes[row], (len(columns[TEACHER_IDS]), 2)), where)
        self._count_labels(columns, row)
        if not self._augmentation.mixes:
            return columns
        numbers = columns[AUG_PREFIX + PARTNER]
        mixed = np.flatnonzero(numbers >= 0)
        if numbers.max() >= len(self._row_of):
            raise DataError(
                f"{where} mixes in image {numbers.max()}, but the base has {len(self._row_of)}. Is it another dataset or split?"
            )
        partners = np.full(len(numbers), NO_PARTNER)
        partners[mixed] = self._row_of[numbers[mixed]]
        columns[AUG_PREFIX + PARTNER] = partners
        usable = np.ones(len(numbers), bool)
        usable[mixed] = sizes[partners[mixed], 0] > 0
        fitting = mixed[usable[mixed]]
        part = {name: values[fitting] for name, values in columns.items()}
        self._check_boxes(part, f"{PARTNER}_", sizes[partners[fitting]], f"{where}, a partner")
        if not usable.all():
            good = np.flatnonzero(usable)
            expect(len(good) > 0, where, "have a view whose partner can be decoded", "none", "Mend the base's images.")
            take = np.arange(len(numbers))
            take[~usable] = np.resize(good, int((~usable).sum()))
            columns = {name: values[take] for name, values in columns.items()}
        return columns

    def _check_boxes(self, columns: Columns, prefix: str, sizes_V2: np.ndarray, where: str) -> None:
        """Follows the size through the ops; a box outside the image betrays a wrong order, or a base of another size."""
        size: Any = sizes_V2
        for op in self._augmentation.ops:
            name = f"{AUG_PREFIX}{prefix}{op.name}_"
            if isinstance(op, (RandomResizedCrop, RandomErasing)):
                self._check_box(columns[f"{name}box"], size, where, empty=isinstance(op, RandomErasing))
            elif isinstance(op, CutMix) and not prefix:
                self._check_box(columns[f"{name}box"], size, where)
            elif isinstance(op, RandomCrop):
                view = np.broadcast_to(np.array(op.output_size(None)), size.shape)
                self._check_box(np.hstack([columns[f"{name}offset"], view]), size + 2 * op.padding, where)
            fixed = op.output_size(None)
            if fixed is not None:
                size = np.broadcast_to(np.array(fixed), sizes_V2.shape)
            elif isinstance(op, Resize):
                size = np.array([op.output_size((int(h), int(w))) for h, w in size]).reshape(sizes_V2.shape)

    def _check_box(self, boxes: np.ndarray, sizes: np.ndarray, where: str, empty: bool = True) -> None:
        bad = (boxes[:, :2] + boxes[:, 2:] > sizes).any(axis=1) | (not empty and (boxes[:, 2:] == 0).any(axis=1))
        if bad.any():
            at = int(bad.argmax())
            raise DataError(
                f"{where} must have boxes inside its image of {sizes[at][0]}x{sizes[at][1]} pixels, found "
                f"{tuple(boxes[at].tolist())} (top, left, height, width). The base has another order or its images other "
                "sizes: set `order`, or name the dataset as it was reinforced."
            )

    def _count_labels(self, columns: Columns, row: int) -> None:
        if self._labels is None or not 0 <= self._labels[row] < self.num_classes:
            return
        favourites = columns[TEACHER_IDS][:, 0]
        if self._augmentation.mixes:
            favourites = favourites[columns[AUG_PREFIX + PARTNER] < 0]
        self._hits += int((favourites == self._labels[row]).sum())
        self._favourites += np.bincount(favourites, minlength=self.num_classes)
        self._looked += 1
        if self._looked == _LABELLED_ROWS:
            self._check_labels()

    def _check_labels(self) -> None:
        """Refuses answers that fit the labels no better than chance: the sign of a wrong order."""
        count = int(self._favourites.sum())
        if self._labels is None or not count:
            return
        agreement = self._hits / count
        shares = np.bincount(np.maximum(self._labels, 0), minlength=self.num_classes)[: self.num_classes] / len(
            self._labels
        )
        chance = float(shares @ self._favourites / count)
        if agreement >= chance + _MIN_AGREEMENT * (1 - chance):
            return
        text = (
            f"the teacher's most probable class must be the label far more often than by chance ({100 * chance:.1f} %), found "
            f"{100 * agreement:.1f} % of {count:,} views. The base is in another order than ml-dr's: set `order`. Where the "
            "labels are known to differ, pass `allow_disagreement`."
        )
        if not self.config.allow_disagreement:
            raise DataError(text)
        logger.warning("%s", text)

    # ------------------------------------------------------------------------------------------------------- writing

    def _write(self, missing: list[int], scratch: Scratch) -> None:
        rows = sum(len(self.provenance.shard_range(shard)) for shard in missing)
        group = max(1, ROW_GROUP_VIEWS // self.provenance.num_views)
        with (
            ThreadPoolExecutor(os.cpu_count() or 1) as pool,
            tqdm(total=rows, desc=f"writing {self.provenance.config_name}", unit="image", unit_scale=True) as bar,
        ):
            for shard in missing:
                span = self.provenance.shard_range(shard)
                path = self.folder / self.provenance.shard_names[shard]
                with ShardWriter(path, self._features, self.provenance.fingerprint) as writer:
                    for first in range(span.start, span.stop, group):
                        last = min(first + group, span.stop)
                        columns, valid = scratch.take(first, last)
                        hashes = pool.map(self._hash, range(first, last), valid.tolist())
                        columns[SOURCE_INDEX] = np.arange(first, last, dtype=np.int64)
                        columns[IMAGE_HASH] = np.fromiter(hashes, np.uint64, last - first)
                        # What the teacher saw is unknown.
                        base = as_table(
                            self._dataset,
                            first,
                            last,
                            image_column=self.provenance.image_column,
                            readable=self._readable(first, valid),
                        )
                        base = base.append_column(VIEWS_HASH, pa.nulls(last - first, pa.uint64()))
                        writer.write(base, columns, valid)
                        bar.update(last - first)
                    writer.finish()

    def _readable(self, first: int, valid: np.ndarray) -> np.ndarray:
        """Which images of the rows from `first` on can be decoded, (rows,); those of valid rows have been."""
        (column,) = self._images.column_names
        checked = valid.copy()
        for place in np.flatnonzero(~valid):
            with contextlib.suppress(DataError):
                decode_image(self._images[int(first + place)][column])
                checked[place] = True
        return checked

    def _hash(self, row: int, valid: bool) -> int:
        if not valid:
            return 0
        (column,) = self._images.column_names
        return pixel_hash(decode_row(self._images[row][column], f"row {row}"))


def _file(value: dict[str, Any]) -> Any:
    return io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]


def _member(name: str, num_classes: int) -> dict[str, Any]:
    """What is known of a teacher: its name. Old names of timm may mean other weights today, so no revision is invented."""
    return {
        "id": name,
        "revision": None,
        "license": "cc-by-nc-4.0" if name.startswith("ig_resnext") else None,
        "num_classes": num_classes,
        "weights_hash": None,
        "preprocessing": None,
        "classes": None,
    }


def _peek(source: Path) -> tuple[RunFormat, int, Any]:
    """Reads a source as far as the configuration and one image's file."""
    format, first = None, None
    for name, read in archive_files(source):
        number = image_number(name, source)
        if number is None:
            format = RunFormat(read_file(read(), f"{source}: {name}"), f"{source}: {name}")
        elif first is None:
            first = number, read_file(read(), f"{source}: {name}")
        if format is not None and first is not None:
            return format, *first
    raise FormatError(
        f"{source} must hold {CONFIG_FILE} and a file like 0.pth.tar for each image, found no "
        f"{CONFIG_FILE if format is None else 'image'}. Fetch it again, or check the path."
    )

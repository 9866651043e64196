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
import logging
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa
import torch
import xxhash

from hf_dr.errors import ConfigError, DataError, FormatError
from hf_dr.files import expanded, write_whole
from hf_dr.generation.config import ImportConfig
from hf_dr.generation.folder import WHOLE, RunFolder
from hf_dr.generation.ml_dr.files import Columns, expect
from hf_dr.generation.ml_dr.fitting import LABELLED_ROWS, OrderCheck, find_rows, fit_to_base, image_sizes
from hf_dr.generation.ml_dr.runs import RowFile, Run, archive_files, image_number, open_runs
from hf_dr.generation.plan import library_versions, make_plan
from hf_dr.processes import default_workers
from hf_dr.store.base_dataset import checked_origin, class_names_of, content_hash, undecoded_images, whole_column
from hf_dr.store.labels import check_dataset, class_numbers
from hf_dr.store.named_files import as_table
from hf_dr.store.provenance import added_features
from hf_dr.store.schema import IMAGE_HASH, PROVENANCE_FILE, SOURCE_INDEX, STORED_PARTNERS, VIEWS_HASH
from hf_dr.store.shards import ShardWriter, row_groups
from hf_dr.text import format_bytes, progress_bar, two_columns
from hf_dr.version import __version__
from hf_dr.views.images import decode_image, decode_row, pixel_hash

logger = logging.getLogger(__name__)

_FILES_A_WORKER = 2048  # a process takes seconds to start
_VERSIONED = ("numpy", "pillow", "torchvision")


class ImportJob:
    """Turns reinforcements of apple/ml-dr into a "+" dataset: checked when built, then `run`; `estimate` says what it would do.

    Rows whose image cannot be decoded, or is turned by its EXIF orientation (which ml-dr did not look at), stay without
    reinforcement; views that mix such an image in are replaced by others of their row.

    Args:
        sources: Folders `reinforced_data` or tar archives of one, compressed or not; several are runs over the same images,
            whose views add up.
        base: The dataset that was reinforced.
        config: See `ImportConfig`.
        described: How to name the base in the provenance: `id`, `config`, `revision`.

    Raises:
        FormatError: A file is damaged, incomplete or not of that format.
        DataError: The base is not the one that was reinforced, or is in another order.
        ConfigError: A setting is impossible, or the folder cannot be used.
        FingerprintMismatchError: The folder was begun with another import.
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
        images = undecoded_images(base, image_column)
        self._row_of = find_rows(config.order, images)
        self._runs = open_runs([expanded(source) for source in sources])
        format = self._runs[0].format
        num_classes = _num_classes(format.num_classes, class_names_of(base, label_column))
        labels = None
        if label_column is not None:
            advice = "Set `label_column` to none, or leave these rows out."
            labels = class_numbers(whole_column(base, label_column), num_classes, "labels of the base", advice)
        order = hashlib.sha256(self._row_of.astype("<i8").tobytes()).hexdigest()
        self.plan = make_plan(
            base,
            format.augmentation,
            config,
            (image_column, label_column),
            labels,
            num_views=self._runs[-1].views.stop,
            top_k=self._runs[0].top_k,
            num_classes=num_classes,
            seed=0,
            mixing_scope=STORED_PARTNERS if format.augmentation.mixes else "dataset",
            on_bad_image="skip",
            base={**known, **(described or {}), "content_hash": content_hash(images), "order": order},
            teacher={
                "members": [_member(name, num_classes) for name in format.teachers],
                "num_classes": num_classes,
                "precision": "fp32",
                "device_type": "cuda",
                "runs": [len(run.views) for run in self._runs],
                "run_digests": [run.digest for run in self._runs],  # of the sources, whose order is that of the views
            },
            library_versions=library_versions(_VERSIONED),
            created_with=f"hf_dr {__version__}, import-ml-dr",
        )
        self.provenance = self.plan.provenance
        self.folder = self.plan.folder
        self._output = RunFolder(self.folder, self.provenance)
        # What a file holds: the columns with a value for each view.
        added = added_features(self.provenance, format.augmentation)
        self._of_views = datasets.Features({name: of for name, of in added.items() if isinstance(of, datasets.List)})

    def estimate(self) -> str:
        """Checks what can be checked without reading everything and tells what would be written; writes nothing."""
        self._output.check()
        p = self.provenance
        schema = self._of_views.arrow_schema
        row_bytes = sum(pa.nulls(1, schema.field(name).type).nbytes for name in schema.names)
        total = format_bytes(p.num_rows * row_bytes)
        rows = [
            ("images x views", f"{p.num_rows:,} x {p.num_views:,}, of {len(self._runs)} run(s)"),
            ("answers", f"top {p.top_k} of {p.num_classes:,} classes"),
            ("teachers", ", ".join(member["id"] for member in p.teacher["members"])),
            ("ops", ", ".join(name for item in p.augmentation for name in item)),
            ("scratch space", total),
            ("shards", f"{p.num_shards:,}, at most {total} and the base's columns"),
        ]
        return two_columns(rows)

    def run(self) -> None:
        """Reads the sources, then writes the shards that are missing, and the card; goes on where it was stopped."""
        lock = WHOLE.lock(self.folder)
        try:
            missing = self._output.open(self.plan.base, lock)
            if missing:
                self._make(missing)
            self._output.complete()
        finally:
            lock.release()

    def _make(self, missing: list[int]) -> None:
        """Makes the missing shards, by way of a scratch file that is kept where this is stopped."""
        provenance = self.provenance
        folder = self.folder / f".import-{provenance.fingerprint[:16]}"
        scratch = _Scratch(folder, self._of_views, provenance.num_rows, [run.views for run in self._runs])
        try:
            self._read(missing, scratch)
        except DataError:
            # The order or the base is wrong, so that nothing of this helps another import.
            if len(missing) == provenance.num_shards:
                scratch.remove()
                (self.folder / PROVENANCE_FILE).unlink()
            raise
        self._write(missing, scratch)
        scratch.remove()

    def _read(self, missing: list[int], scratch: _Scratch) -> None:
        """Reads the rows of the missing shards from all sources into the scratch file."""
        provenance = self.provenance
        sizes = scratch.sizes(self.plan.images)
        wanted = np.zeros(provenance.num_rows, bool)
        for shard in missing:
            wanted[provenance.shard_range(shard)] = True
        wanted &= sizes[:, 0] > 0
        agreement = OrderCheck(self.plan.labels, provenance.num_classes, tolerated=self.config.allow_disagreement)
        workers = self.config.num_workers
        if workers is None:
            workers = min(default_workers(torch.device("cpu")), provenance.num_rows // _FILES_A_WORKER)
        for number, run in enumerate(self._runs):
            for row in np.flatnonzero(wanted & scratch.rows_of(number)).tolist()[:LABELLED_ROWS]:
                agreement.add(scratch.row(number, row), row)
            name = f"reading {run.path.name}"
            with progress_bar(total=provenance.num_rows, desc=name, unit="image") as bar:
                unread = wanted & ~scratch.rows_of(number)
                files = self._files(run, unread, bar)
                for file, columns in run.read(files, provenance.num_classes, workers):
                    agreement.add(columns, file.row)
                    fitted = fit_to_base(columns, file.row, file.where, self.plan.augmentation, self._row_of, sizes)
                    scratch.put(number, file.row, fitted)
                    bar.update()
            agreement.check()

    def _files(self, run: Run, unread: np.ndarray, bar: Any) -> Iterator[RowFile]:
        """The files of a source that are still to be read; checks that there is one for each image."""
        num_rows = self.provenance.num_rows
        seen = np.zeros(num_rows, bool)
        for name, read in archive_files(run.path):
            number = image_number(name, run.path)
            if number is None:
                continue
            where = f"{run.path}: {name}"
            if number >= num_rows:
                raise DataError(
                    f"{where} must be about one of the base's {num_rows} images, found number {number}. "
                    "Is it another dataset or split?"
                )
            expect(not seen[number], where, "be there once", f"image {number} twice")
            seen[number] = True
            row = int(self._row_of[number])
            if unread[row]:
                yield RowFile(row, read(), number, where)
            else:
                bar.update()
        absent = np.flatnonzero(~seen)
        if len(absent):
            raise FormatError(
                f"{run.path} must have a file for each of the base's {num_rows} images, but {len(absent)} are missing, e.g. "
                f"{absent[0]}.pth.tar. Fetch it again, or name the dataset and split that was reinforced."
            )

    def _write(self, missing: list[int], scratch: _Scratch) -> None:
        """Writes the missing shards out of the scratch file."""
        provenance = self.provenance
        total = sum(len(provenance.shard_range(shard)) for shard in missing)
        features = self.plan.features
        name = f"writing {provenance.config_name}"
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool, progress_bar(total=total, desc=name, unit="image") as bar:
            for shard in missing:
                with ShardWriter(self._output.shards[shard], features, provenance.fingerprint) as writer:
                    for rows in row_groups(provenance, shard):
                        columns, valid = scratch.take(rows)
                        hashes = pool.map(self._hash, rows, valid.tolist())
                        columns[SOURCE_INDEX] = np.array(rows, np.int64)
                        columns[IMAGE_HASH] = np.fromiter(hashes, np.uint64, len(rows))
                        writer.write(self._base_table(rows, valid), columns, valid)
                        bar.update(len(rows))
                    writer.finish()

    def _base_table(self, rows: range, valid: np.ndarray) -> pa.Table:
        """The base's columns of some rows, and no hashes of their views: what the teacher saw is not known."""
        column = self.provenance.image_column
        readable = valid.copy()  # images of valid rows have been decoded
        for place in np.flatnonzero(~valid):
            with contextlib.suppress(DataError):
                decode_image(self.plan.images[rows[place]][column])
                readable[place] = True
        table = as_table(self.plan.base, rows.start, rows.stop, image_column=column, readable=readable)
        return table.append_column(VIEWS_HASH, pa.nulls(len(rows), pa.uint64()))

    def _hash(self, row: int, valid: bool) -> int:
        return pixel_hash(decode_row(self.plan.images[row][self.provenance.image_column], f"row {row}")) if valid else 0


def _num_classes(configured: int | None, names: list[str] | None) -> int:
    """Returns C, from ml-dr's configuration or the base's classes, which must agree."""
    known = {configured, None if names is None else len(names)} - {None}
    if not known:
        raise DataError("the base must have a ClassLabel column, as ml-dr's configuration does not count the classes.")
    if len(known) > 1:
        raise DataError(
            f"the base must have the {configured} classes of ml-dr's configuration, found {len(names or ())}. "
            "Is it another dataset?"
        )
    return cast(int, known.pop())


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


class _Scratch:
    """The rows of all runs at their places, in a file as large as the columns; what is there is kept for a restart.

    A row of a run is there if the hash of its bytes is stored next to it, so no crash can leave a damaged one unnoticed. Each
    column is a list over the views of all runs; `runs` has the views of each.
    """

    def __init__(self, folder: Path, features: datasets.Features, num_rows: int, runs: Sequence[range]) -> None:
        self.folder = folder
        self._runs = runs
        fields = []
        for name, feature in features.items():
            inner = feature.feature  # a value for each view, or a list of values
            tail = () if isinstance(inner, datasets.Value) else (inner.length,)
            fields.append((name, getattr(inner, "feature", inner).dtype, (feature.length, *tail)))
        self._names = list(features)
        folder.mkdir(exist_ok=True)
        self._rows = self._map("rows", np.dtype(fields), (num_rows,))
        self._hashes = self._map("hashes", np.dtype(np.uint64), (len(runs), num_rows))

    def _map(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
        path = self.folder / name
        size = dtype.itemsize * math.prod(shape)
        if not path.exists() or path.stat().st_size != size:
            try:
                with path.open("wb") as file:
                    # So a full disk shows now: later, writing to the mapped file would end the process.
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, size)
                    file.truncate(size)
            except OSError as error:
                path.unlink(missing_ok=True)
                raise ConfigError(
                    f"`output_dir` needs {format_bytes(size)} for a scratch file next to the shards, but: {error.strerror}. "
                    "Free space, or choose another."
                ) from error
        return np.memmap(path, dtype, "r+", shape=shape)

    def sizes(self, images: datasets.Dataset) -> np.ndarray:
        """Returns `image_sizes` of the base, which decodes every image; a restart reads those again that could not be used."""
        path = self.folder / "sizes"
        kept = path.read_bytes() if path.exists() else b""
        if len(kept) == 8 + 16 * len(images) and kept[:8] == xxhash.xxh3_64_digest(kept[8:]):
            return image_sizes(images, np.frombuffer(kept[8:], np.int64).reshape(-1, 2))
        sizes = image_sizes(images)
        write_whole(path, xxhash.xxh3_64_digest(sizes.tobytes()) + sizes.tobytes())
        return sizes

    def rows_of(self, run: int) -> np.ndarray:
        """Returns which rows of a run are there, bool (rows,)."""
        return np.asarray(self._hashes[run] != 0)

    def put(self, run: int, row: int, columns: Columns) -> None:
        """Writes the columns of a run's views of one row, (V,) or (V, n), and then its hash."""
        views = self._runs[run]
        for name in self._names:
            self._rows[name][row, views.start : views.stop] = columns[name]
        self._hashes[run, row] = self._hash(run, row)

    def row(self, run: int, row: int) -> Columns:
        """Returns the columns of a run's views of one row that is there, as `put` takes them."""
        views = self._runs[run]
        return {name: np.array(self._rows[name][row, views.start : views.stop]) for name in self._names}

    def take(self, rows: range) -> tuple[Columns, np.ndarray]:
        """Returns the columns of some rows, (rows, V) or (rows, V, n), and which rows are there in every run."""
        for run in range(len(self._runs)):
            for row in rows:
                if self._hashes[run, row] not in (0, self._hash(run, row)):
                    raise FormatError(f"{self.folder} must hold what was written, but row {row} is damaged. Delete it.")
        columns = {name: np.array(self._rows[name][rows.start : rows.stop]) for name in self._names}
        return columns, (self._hashes[:, rows.start : rows.stop] != 0).all(axis=0)

    def _hash(self, run: int, row: int) -> int:
        views = self._runs[run]
        hasher = xxhash.xxh3_64()
        for name in self._names:
            hasher.update(self._rows[name][row, views.start : views.stop].tobytes())
        return hasher.intdigest() | 1  # 0 is a row that is not there

    def remove(self) -> None:
        """Deletes the files."""
        del self._rows, self._hashes
        shutil.rmtree(self.folder)

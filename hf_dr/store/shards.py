"""Writing and recognising shards: Parquet files that appear whole or not at all and carry their run's fingerprint."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from datasets import Features, Image

from hf_dr.errors import FormatError, HfDrError
from hf_dr.files import flush_to_disk, remove_temporary, temporary_name, unreadable, writing
from hf_dr.store.digests import ColumnDigests
from hf_dr.store.json_files import Count, as_object, validated
from hf_dr.store.provenance import Provenance, check_columns
from hf_dr.store.schema import IMAGE_HASH, METADATA_KEY, PROVENANCE_FILE, SOURCE_INDEX, is_reserved

# Views in a row group: bounds the writer's memory whatever V is, and is enough for zstd to find what there is to find.
ROW_GROUP_VIEWS = 1 << 16
# Bytes of the base's columns in a row group, give or take a few rows: bounds a reader's memory, and Arrow reads less than 2 GiB
# of images at once.
ROW_GROUP_BYTES = 1 << 28
_ROWS_AT_ONCE = 16  # that are not divided
_FOOTER_BYTES = 1 << 16  # of statistics, sizes and places of columns: other content has another
ZSTD_LEVEL = 19  # written once, read for ever; encoding is still thousands of views a second
MAX_MASS = 1.01
"""Bound on the sum of an answer's K probabilities; rounding to float16 moves it by less than 2**-11 of the entropy."""


@dataclass(frozen=True)
class ShardMarker:
    """What a finished shard says of itself: the JSON in its Parquet metadata, and what is known of the file."""

    fingerprint: str
    num_bytes: Count
    """Size of its columns in memory, as Arrow."""
    skipped_rows: list[int]
    num_rows: int
    file_bytes: int
    digests: dict[str, str] | None = None
    """Digest of each column (`hf_dr.store.digests`); None in formats 1 to 3, which have none."""


@contextlib.contextmanager
def reading(
    path: Path | str, expected: str = "a readable shard", advice: str = "Fetch or make it again."
) -> Iterator[None]:
    """Turns what Arrow raises where a shard is damaged into an error for people; what was `expected`, and what to do."""
    try:
        yield
    except (HfDrError, FileNotFoundError, UnicodeEncodeError):  # the last of the path; the file may be whole
        raise
    # Arrow raises OSError without a number for what it cannot parse; with one, the system could not read the file.
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable(path, error) from error
        reason = f"{type(error).__name__}: {str(error).rstrip('. '):.300}"
        raise FormatError(f"{path} must be {expected}, but: {reason}. {advice}") from error


def read_marker(path: Path) -> ShardMarker:
    """Reads the marker of a finished shard.

    Raises:
        FormatError: The file is no Parquet file, or was not written by hf_dr.
    """
    where, advice = f"the marker of {path}", "Delete the file and run the same command again."
    with reading(path, "a shard written by hf_dr", advice):
        metadata = pq.read_metadata(path)
        content = as_object(json.loads((metadata.metadata or {})[METADATA_KEY]), where, advice)
        of_file = {"num_rows": metadata.num_rows, "file_bytes": path.stat().st_size}
        return validated(ShardMarker, {**content, **of_file}, where, advice, more=True)


def read_features(path: Path) -> Features:
    """Returns the columns of a shard. A file tells them twice, in Arrow's schema and next to it: damage to one is found.

    Raises:
        FormatError: The file is damaged, or see `shard_features`.
    """
    with reading(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        stored = file.metadata.metadata or {}
        if b"ARROW:schema" in stored:
            told = schema.remove_metadata(), stored.get(b"huggingface")
            if told != _told_by_arrow(stored[b"ARROW:schema"]):
                raise FormatError(
                    f"{path} must tell the features of its columns once, found two. Fetch or make it again."
                )
    return shard_features(schema, str(path))


@lru_cache(maxsize=8)  # all shards of a run have the same
def _told_by_arrow(stored: bytes) -> tuple[pa.Schema, bytes | None]:
    """Returns the columns of Arrow's schema in a file, as Parquet reads them, and what it tells of their features."""
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored)))
    # Parquet has not all of Arrow's types, seconds for one: it is asked how it reads these columns.
    return _empty_file(schema).schema_arrow.remove_metadata(), (schema.metadata or {}).get(b"huggingface")


def shard_features(schema: pa.Schema, where: str) -> Features:
    """Returns the columns of a shard; `where` names it in messages.

    Raises:
        FormatError: Two columns have one name, or what the file says about its columns cannot be read.
    """
    if len(set(schema.names)) < len(schema.names):
        raise FormatError(f"{where} must have each column once, found {schema.names}. Fetch or make it again.")
    try:
        return Features.from_arrow_schema(schema)
    # `datasets` builds objects from JSON in the file, which fail in as many ways as there are feature types.
    except Exception as error:
        raise FormatError(
            f"{where} must tell the features of its columns, but: {type(error).__name__}: {error!s:.300}. Fetch or make it "
            "again."
        ) from error


def check_shards(config: Path, provenance: Provenance) -> list[Path]:
    """Returns the shards of a local configuration, in order, if they are all there, of its run and of its columns."""
    shards = [config / name for name in provenance.shard_names]
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise FormatError(
            f"{config} must have {len(shards)} shards, found {len(shards) - len(missing)} of them, e.g. no {missing[0]}. "
            "Run the same reinforce command again, without `part` if all parts have ended; it makes only what is missing."
        )
    first: Features | None = None
    for number, path in enumerate(shards):
        try:
            features = _check_shard(path, provenance, len(provenance.shard_range(number)), first)
        except FormatError:
            # The first that is damaged is named, not the first that cannot be opened.
            check_all_digests(shards[:number])
            raise
        first = first or features
    return shards


def _check_shard(path: Path, provenance: Provenance, rows: int, first: Features | None) -> Features:
    """Returns the columns of a shard, if it is of the run and has the columns of the first; `first` is None for that one."""
    marker = read_marker(path)
    check_of_run(path, provenance, rows, marker.fingerprint, marker.num_rows)
    features = read_features(path)
    if first is None:
        check_columns(features, provenance, str(path))
    elif features != first:
        others = sorted(name for name in features | first if features.get(name) != first.get(name))
        raise FormatError(
            f"{path} must have the columns of the first shard, but differs in {', '.join(others)}. Fetch or make it again."
        )
    return features


def check_of_run(path: Path | str, provenance: Provenance, rows: int, fingerprint: object, num_rows: int) -> None:
    """Refuses a shard of another run, or with another number of rows; the last two are what its file says."""
    if fingerprint != provenance.fingerprint:
        raise FormatError(
            f"{path} must carry the fingerprint of its {PROVENANCE_FILE}, found another. Fetch or make it again."
        )
    if num_rows != rows:
        raise FormatError(f"{path} must have {rows} rows, found {num_rows}. Fetch or make it again.")


def check_row_numbers(numbers: Any, rows: range, where: str) -> None:
    """Refuses a column `source_index`, of Arrow, that does not count these rows in order; `where` names its shards."""
    # The length first: a provenance that lies may speak of more rows than fit in memory.
    alike = len(numbers) == len(rows) and not numbers.null_count
    if not alike or not np.array_equal(numbers.to_numpy(), np.arange(rows.start, rows.stop)):
        raise FormatError(
            f"{where} must hold rows {rows.start} to {rows.stop - 1} in order (`{SOURCE_INDEX}`), found others. Fetch or make "
            "it again."
        )


def row_groups(provenance: Provenance, shard: int) -> Iterator[range]:
    """Yields the rows of a shard in parts of `ROW_GROUP_VIEWS` views, but of one row at least."""
    rows = provenance.shard_range(shard)
    size = max(1, ROW_GROUP_VIEWS // provenance.num_views)
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def content_version(shards: Sequence[Path]) -> str:
    """Returns a name for what shards hold now, from their footers: it changes when a shard is written again."""
    hasher = xxhash.xxh3_64()
    for path in shards:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _FOOTER_BYTES))
            hasher.update(file.read())
    return f"content-{hasher.hexdigest()}"


def check_full(batch: pa.RecordBatch, name: str) -> None:
    """Refuses empty places in the lists of reinforced rows: what memory holds below them would be read as their value."""
    array = batch.column(name)
    if not pa.types.is_fixed_size_list(array.type):
        return
    empty = array.null_count > batch.column(IMAGE_HASH).null_count
    array = array.drop_null() if array.null_count else array
    while pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
        empty = empty or array.null_count > 0
    if empty:
        raise FormatError(
            f"column `{name}` must have a value at each place of a reinforced row, found empty ones. The file is damaged: "
            "fetch or make it again."
        )


def check_digests(path: Path) -> None:
    """Reads a whole shard and compares what its columns hold with what was written; formats 1 to 3 have nothing to compare.

    Raises:
        FormatError: The file is damaged, or is not what was written.
    """
    marker = read_marker(path)
    if marker.digests is None:
        return
    read_features(path)
    found, skipped = ColumnDigests(), []
    with reading(path):
        # Pages are compared with their checksums first: that names damage on the disk or on the way.
        file = pq.ParquetFile(path, page_checksum_verification=True)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            found.update(table)
            skipped += table[SOURCE_INDEX].filter(table[IMAGE_HASH].is_null()).to_pylist()
            _check_statistics(path, file.metadata.row_group(group), table)
    changed = sorted(name for name, digest in found.result().items() if marker.digests.get(name) != digest)
    changed += sorted(marker.digests.keys() - found.result().keys())
    if changed:
        raise FormatError(
            f"{path} must hold what was written, but its columns {', '.join(changed)} have other digests: values were changed, "
            "or rows swapped. Fetch or make it again."
        )
    if marker.skipped_rows != skipped:
        raise FormatError(
            f"{path} must tell its rows without reinforcement, {skipped}, but tells {marker.skipped_rows}. Fetch or make it "
            "again."
        )


def _check_statistics(path: Path, group: Any, table: pa.Table) -> None:
    """Compares the statistics of a row group, by which readers leave out what they do not look for, with its values."""
    (told,) = (c.statistics for c in map(group.column, range(group.num_columns)) if c.path_in_schema == SOURCE_INDEX)
    found = pc.min_max(table[SOURCE_INDEX]).as_py()
    if told is None or found != {"min": told.min, "max": told.max}:
        raise FormatError(
            f"{path} must have the statistics of `{SOURCE_INDEX}`, {found['min']} to {found['max']}, found others. Fetch or "
            "make it again."
        )


def check_all_digests(shards: Iterable[Path]) -> None:
    """Reads whole shards, in order; see `check_digests`."""
    for path in shards:
        check_digests(path)


def column_compression(features: Features) -> dict[str, str]:
    """Returns the codec of each Parquet leaf column; images are compressed already."""
    return {path: "NONE" if isinstance(features[name], Image) else "ZSTD" for name, path, _ in _leaves(features)}


def column_encoding(features: Features) -> dict[str, str]:
    """Returns the encoding of each of the reinforcement's Parquet leaf columns.

    Splitting the bytes of numbers into streams puts what is alike side by side (high bytes of ids, boxes, halves),
    which zstd then squeezes better than dictionaries (benchmarks/storage.py).
    """
    # Parquet allows float16, which it stores as two bytes, to be split, but DuckDB 2.0 cannot read it. Whole, the answers take
    # about a tenth more.
    whole = ("BOOLEAN", "FIXED_LEN_BYTE_ARRAY")
    own = [(path, kind) for name, path, kind in _leaves(features) if is_reserved(name)]
    return {path: "PLAIN" if kind in whole else "BYTE_STREAM_SPLIT" for path, kind in own}


def _leaves(features: Features) -> list[tuple[str, str, str]]:
    """Returns the feature, the path and the physical type of each of Parquet's leaf columns."""
    schema = features.arrow_schema
    # Numbers in place of the names, which may have dots, as the paths of leaves do.
    numbered = pa.schema([field.with_name(str(number)) for number, field in enumerate(schema)])
    file = _empty_file(numbered).schema
    leaves = []
    for leaf in map(file.column, range(len(file))):
        number, dot, below = leaf.path.partition(".")
        name = schema.names[int(number)]
        leaves.append((name, f"{name}{dot}{below}", leaf.physical_type))
    return leaves


def _empty_file(schema: pa.Schema) -> pq.ParquetFile:
    """Returns a file without rows: Parquet's own view of a schema."""
    empty = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), empty)
    return pq.ParquetFile(pa.BufferReader(empty.getvalue()))


def list_array(values: np.ndarray, valid: np.ndarray, dtype: pa.DataType) -> pa.Array:
    """Turns (rows, V) or (rows, V, n) numbers into nested fixed-size lists.

    Rows that are not valid hold zeros, and NaN where there are floating-point numbers, so that nobody takes them for answers.
    (Null lists of a fixed size, as formats 1 to 3 have them, cannot be read by pyarrow before version 23.)
    """
    if not valid.all():
        values = values.copy()
        values[~valid] = np.nan if np.issubdtype(values.dtype, np.floating) else 0
    array = pa.array(values.reshape(-1), from_pandas=False)
    for size in values.shape[:0:-1]:
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array.cast(dtype)


class ShardWriter:
    """Writes one shard, row group by row group, under a temporary name; `finish` gives it its own.

    Leaving the `with` block without `finish` deletes what was written. `features` are all columns, the base's and the
    reinforcement's.

    Raises:
        HfDrError: The disk is full or the folder cannot be written to.
    """

    def __init__(self, path: Path, features: Features, fingerprint: str) -> None:
        self.path = path
        self.features = features
        self._fingerprint = fingerprint
        self._temporary = temporary_name(path)
        self._schema = features.arrow_schema
        self._num_bytes = 0
        self._skipped: list[int] = []
        self._digests = ColumnDigests()
        try:
            with writing(path):
                codecs = column_compression(features)
                encodings = column_encoding(features)  # of the reinforcement's own columns
                self._writer = pq.ParquetWriter(
                    self._temporary,
                    self._schema,
                    compression=codecs,
                    compression_level={leaf: ZSTD_LEVEL for leaf, codec in codecs.items() if codec == "ZSTD"},
                    use_dictionary=[
                        leaf for leaf, codec in codecs.items() if leaf not in encodings and codec != "NONE"
                    ],
                    column_encoding=encodings,
                    write_statistics=[name for name in self._schema.names if name == SOURCE_INDEX],
                    data_page_size=1 << 22,
                    write_page_checksum=True,
                )
        except BaseException:  # Ctrl-C too: without a writer there is no `with` block that would clean up
            remove_temporary(self._temporary)
            raise

    def write(self, base: pa.Table, columns: dict[str, np.ndarray], valid: np.ndarray) -> None:
        """Writes rows as one row group, or as several where the base's columns are large.

        Args:
            base: The base's own columns of these rows.
            columns: The reinforcement's columns; shape (rows,), (rows, V) or (rows, V, n).
            valid: (rows,) bool; False for rows without reinforcement: their hashes are null, their lists hold nothing of use.
        """
        for rows in _parts_of(base, len(valid)):
            own = {name: values[rows] for name, values in columns.items()}
            self._write_group(base.slice(rows.start, rows.stop - rows.start), own, valid[rows])

    def _write_group(self, base: pa.Table, columns: dict[str, np.ndarray], valid: np.ndarray) -> None:
        arrays = []
        for field in self._schema:
            if field.name not in columns:
                arrays.append(base.column(field.name).combine_chunks().cast(field.type))
                continue
            values = columns[field.name]
            if values.ndim == 1:
                mask = None if field.name == SOURCE_INDEX or valid.all() else ~valid
                arrays.append(pa.array(values, field.type, mask=mask))
            else:
                arrays.append(list_array(values, valid, field.type))
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        self._num_bytes += table.nbytes
        self._digests.update(table)
        self._skipped += columns[SOURCE_INDEX][~valid].tolist()
        with writing(self.path):
            self._writer.write_table(table, row_group_size=len(table))

    def finish(self) -> ShardMarker:
        """Closes the file, forces it to disk and gives it its final name."""
        marker = {
            "fingerprint": self._fingerprint,
            "num_bytes": self._num_bytes,
            "skipped_rows": self._skipped,
            "digests": self._digests.result(),
        }
        with writing(self.path):
            self._writer.add_key_value_metadata({METADATA_KEY.decode(): json.dumps(marker)})
            self._writer.close()
            flush_to_disk(self._temporary)
            self._temporary.replace(self.path)
        return read_marker(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # After an error the writer may fail to close as well (a full disk, say); the first error is the one to see.
        try:
            with contextlib.suppress(OSError, pa.ArrowException):
                self._writer.close()
        finally:
            remove_temporary(self._temporary)


def _parts_of(base: pa.Table, num_rows: int) -> Iterator[slice]:
    """Divides rows so that each part has at most about `ROW_GROUP_BYTES` of the base's columns."""
    start = 0
    size = 0
    for first in range(0, num_rows, _ROWS_AT_ONCE):
        more = base.slice(first, _ROWS_AT_ONCE).nbytes
        if first > start and size + more > ROW_GROUP_BYTES:
            yield slice(start, first)
            start = first
            size = 0
        size += more
    yield slice(start, num_rows)

"""Shards appear whole or not at all, hold exactly what was written, and say whose they are."""

from __future__ import annotations

import errno
import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Features, Image, List, Value
from samples import rewritten

from hf_dr.errors import FormatError, HfDrError
from hf_dr.files import remove_temporaries
from hf_dr.store.digests import ColumnDigests
from hf_dr.store.features import reinforcement_features
from hf_dr.store.schema import METADATA_KEY
from hf_dr.store.shards import (
    ShardMarker,
    ShardWriter,
    check_digests,
    column_compression,
    column_encoding,
    list_array,
    read_features,
    read_marker,
    reading,
)
from hf_dr.views.augmentation import Augmentation

V, K, ROWS = 3, 2, 5
AUGMENTATION = Augmentation.named("randaug_mixing", 8)
BASE = Features(
    {"image": Image(), "label": ClassLabel(names=["cat", "dog"]), "note": Value("string"), "tags": List(Value("int16"))}
)
FEATURES = Features({**BASE, **reinforcement_features(AUGMENTATION, V, K, 100)})
VALID = np.array([True, True, False, True, True])


def base_table(rows: int = ROWS) -> pa.Table:
    """The base's own columns."""
    return pa.table(
        {
            "image": [{"bytes": bytes([i] * 50), "path": f"{i}.png"} for i in range(rows)],
            "label": [i % 2 for i in range(rows)],
            "note": [None if i == 1 else f"note {i}" for i in range(rows)],
            "tags": [list(range(i)) for i in range(rows)],
        },
        schema=BASE.arrow_schema,
    )


def columns(rows: int = ROWS, first: int = 0) -> dict[str, np.ndarray]:
    """The reinforcement's columns: extreme and random values of every stored type."""
    rng = np.random.default_rng(first)
    made: dict[str, np.ndarray] = {}
    for name, feature in FEATURES.items():
        if name in BASE:
            continue
        shape, value = [rows], feature
        while isinstance(value, List):
            shape.append(value.length)
            value = value.feature
        dtype = np.dtype(value.dtype)
        if dtype.kind == "b":
            made[name] = rng.random(shape) < 0.5
        elif dtype.kind == "f":
            made[name] = -rng.exponential(5, shape).astype(dtype)
        else:
            info = np.iinfo(dtype)
            made[name] = rng.integers(info.min, info.max, shape, dtype, endpoint=True)
            made[name].flat[:2] = info.min, info.max
    made["source_index"] = np.arange(first, first + rows, dtype=np.int64)
    return made


def write(path: Path, valid: np.ndarray = VALID, fingerprint: str = "f1") -> tuple[dict[str, np.ndarray], ShardMarker]:
    with ShardWriter(path, FEATURES, fingerprint) as writer:
        written = columns()
        writer.write(base_table(), written, valid)
        return written, writer.finish()


def as_numpy(column: pa.ChunkedArray, shape: tuple[int, ...]) -> np.ndarray:
    """Flattens valid rows of nested fixed-size lists."""
    array = column.combine_chunks().drop_null()
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    while pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False).reshape(shape)


# ---------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("reader", ["pyarrow", "datasets"])
@pytest.mark.parametrize("valid", [VALID, np.ones(ROWS, bool)], ids=["with-nulls", "complete"])
def test_what_was_written_is_read(reader: str, valid: np.ndarray, tmp_path: Path) -> None:
    """Values, types and nulls, by pyarrow and by `load_dataset` without this package."""
    path = tmp_path / "train-00000-of-00001.parquet"
    written, _ = write(path, valid)
    if reader == "pyarrow":
        table = pq.read_table(path)
    else:
        dataset = datasets.load_dataset(
            "parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
        )
        assert dataset.features == FEATURES
        table = dataset.data.table
    assert table.schema.equals(FEATURES.arrow_schema)
    assert table.select(list(BASE)).to_pylist() == base_table().to_pylist()
    for name, values in written.items():
        kept = np.ones(ROWS, bool) if name == "source_index" else valid
        nulls = np.asarray(table[name].is_null())
        if values.ndim == 1:
            np.testing.assert_array_equal(nulls, ~kept, err_msg=name)
            read = as_numpy(table[name], (-1,))
        else:  # older readers cannot open null lists of a fixed size
            assert not nulls.any()
            whole = as_numpy(table[name], values.shape)
            read = whole[kept]
            nothing = whole[~kept]
            assert np.isnan(nothing).all() if np.issubdtype(nothing.dtype, np.floating) else not nothing.any()
        assert read.dtype == values.dtype
        np.testing.assert_array_equal(read, values[kept], err_msg=name)


def test_small_types_are_kept_as_they_are_in_memory(tmp_path: Path) -> None:
    """float16 and uint16 in nested fixed-size lists: the layout that O(1) reading rests on."""
    path = tmp_path / "a.parquet"
    write(path)
    schema = pq.read_table(path).schema
    assert schema.field("teacher_logprobs").type == pa.list_(pa.list_(pa.float16(), K), V)
    assert schema.field("teacher_ids").type == pa.list_(pa.list_(pa.uint16(), K), V)
    assert schema.field("aug_crop_box").type == pa.list_(pa.list_(pa.uint16(), 4), V)
    assert schema.field("aug_flip").type == pa.list_(pa.bool_(), V)


def test_row_groups_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with ShardWriter(path, FEATURES, "f1") as writer:
        for first in (0, ROWS):
            writer.write(base_table(), columns(first=first), VALID)
        marker = writer.finish()
    assert pq.read_metadata(path).num_row_groups == 2
    assert pq.read_table(path)["source_index"].to_pylist() == list(range(2 * ROWS))
    assert marker.num_rows == 2 * ROWS
    assert marker.skipped_rows == [2, ROWS + 2]


def test_a_base_of_several_chunks_and_other_types_is_taken(tmp_path: Path) -> None:
    """A slice of a dataset may have chunks; an older one may hold large strings."""
    base = pa.concat_tables([base_table(3), base_table(5).slice(3)])
    base = base.set_column(2, "note", base["note"].cast(pa.large_string()))
    assert base["note"].num_chunks == 2
    path = tmp_path / "a.parquet"
    with ShardWriter(path, FEATURES, "f1") as writer:
        writer.write(base, columns(), VALID)
        writer.finish()
    assert pq.read_table(path).select(list(BASE)).equals(base_table())


def test_the_same_rows_make_the_same_bytes(tmp_path: Path) -> None:
    """Neither the time, the machine nor the temporary name is in the file."""
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    write(tmp_path / "c.parquet", fingerprint="f2")
    assert (tmp_path / "c.parquet").read_bytes() != (tmp_path / "a.parquet").read_bytes()


def test_columns_are_encoded_for_their_kind(tmp_path: Path) -> None:
    """Split byte streams and zstd for numbers, no second compression for images, as the size measurements assume."""
    write(tmp_path / "a.parquet")
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    found = {c.path_in_schema: c for c in map(group.column, range(group.num_columns))}
    assert set(column_compression(FEATURES)) == set(found)
    for leaf, column in found.items():
        assert column.compression == ("UNCOMPRESSED" if leaf.startswith("image.") else "ZSTD"), leaf
    for leaf, encoding in column_encoding(FEATURES).items():
        assert encoding in found[leaf].encodings, leaf
        assert not found[leaf].has_dictionary_page, leaf
    assert column_encoding(FEATURES)["teacher_logprobs.list.element.list.element"] == "PLAIN"
    assert column_encoding(FEATURES)["teacher_ids.list.element.list.element"] == "BYTE_STREAM_SPLIT"
    assert column_encoding(FEATURES)["aug_flip.list.element"] == "PLAIN"
    dotted = {
        name: datasets.Value("string") for name in ("image.width", "source_index.x", "teacher_ids.list.element.x")
    }
    features = datasets.Features({**FEATURES, **dotted})
    assert {column_compression(features)[name] for name in dotted} == {"ZSTD"}
    assert column_encoding(features) == column_encoding(FEATURES), "they are the base's own"
    array = datasets.Features({"depth": datasets.Array2D((2, 3), "float32")})
    assert column_compression(array) == {"depth.list.element.list.element": "ZSTD"}


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2)])
def test_list_arrays_nest_from_the_inside(shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    dtype = pa.uint16()
    for size in shape[:0:-1]:
        dtype = pa.list_(dtype, size)
    assert list_array(values, np.ones(4, bool), dtype).to_pylist() == values.tolist()
    valid = np.array([True, False, True, False])
    expected = [row if ok else np.zeros_like(row).tolist() for row, ok in zip(values, valid, strict=True)]
    array = list_array(values, valid, dtype)
    assert [np.asarray(row).tolist() for row in array.to_pylist()] == [np.asarray(row).tolist() for row in expected]
    assert array.type == dtype


# ----------------------------------------------------------------------------------------------------------- atomicity


def test_the_final_name_appears_with_the_finished_file_only(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with ShardWriter(path, FEATURES, "f1") as writer:
        writer.write(base_table(), columns(), VALID)
        (temporary,) = tmp_path.iterdir()
        assert temporary.name.startswith(".a.parquet.")
        assert temporary.suffix == ".tmp"
        writer.finish()
        assert list(tmp_path.iterdir()) == [path]
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_inside_the_block_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> None:
        with ShardWriter(tmp_path / "a.parquet", FEATURES, "f1") as writer:
            writer.write(base_table(), columns(), VALID)
            raise RuntimeError("the teacher failed")

    with pytest.raises(RuntimeError, match="the teacher failed"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_leaving_the_block_unfinished_leaves_no_file(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.parquet", FEATURES, "f1") as writer:
        writer.write(base_table(), columns(), VALID)
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_rewrite_keeps_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path)
    before = path.read_bytes()
    with ShardWriter(path, FEATURES, "f2") as writer:
        writer.write(base_table(), columns(), VALID)
    assert path.read_bytes() == before


def test_two_writers_of_one_shard_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with ShardWriter(path, FEATURES, "f1") as one, ShardWriter(path, FEATURES, "f1") as other:
        for writer in (one, other):
            writer.write(base_table(), columns(), VALID)
        assert len(list(tmp_path.iterdir())) == 2
        assert one.finish() == other.finish()
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    writer = ShardWriter(tmp_path / "b.parquet", FEATURES, "f1")  # never left: as if the process had been killed
    (tmp_path / "notes.tmp").touch()
    (tmp_path / ".hidden").touch()
    assert len(list(tmp_path.iterdir())) == 4
    remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.parquet", "notes.tmp", ".hidden"}
    writer.__exit__(None, None, None)
    assert not (tmp_path / "b.parquet").exists()


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("method", ["__init__", "write_table", "close"])
def test_a_full_disk_is_told_with_what_to_do(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it happens; and nothing half-written stays."""

    def fail(*_: Any, **__: Any) -> None:
        raise FULL

    monkeypatch.setattr(pq.ParquetWriter, method, fail)
    message = r"could not write .*a\.parquet: No space left on device\. Free space or fix the folder, then run the same"
    with pytest.raises(HfDrError, match=message):
        write(tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["__init__", "write_table", "close"])
def test_ctrl_c_leaves_no_file_wherever_it_strikes(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = getattr(pq.ParquetWriter, method)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(pq.ParquetWriter, method, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_disk_is_noticed_when_the_file_is_forced_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        HfDrError, match=r"could not write .*a\.parquet: Input/output error\. .*what is finished is kept"
    ):
        write(tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(HfDrError, match=r"could not write .*nowhere/a\.parquet: .*Free space or fix the folder"):
        write(tmp_path / "nowhere" / "a.parquet")


# -------------------------------------------------------------------------------------------------------------- marker


def test_a_finished_shard_says_whose_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    _, marker = write(path, fingerprint="abc")
    assert read_marker(path) == marker
    assert (marker.fingerprint, marker.num_rows, marker.skipped_rows) == ("abc", ROWS, [2])
    assert marker.file_bytes == path.stat().st_size
    assert marker.num_bytes == pytest.approx(pq.read_table(path).nbytes, rel=0.2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("shard") / "a.parquet"
    write(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda raw: b"", "Parquet file size is 0 bytes"),
        (lambda raw: b"<html>404</html>", "magic bytes not found"),
        (lambda raw: raw[:-1], "magic bytes not found"),
        (lambda raw: raw[: len(raw) // 2], "magic bytes not found"),
        (lambda raw: raw[-8:], "Parquet file size is 8 bytes|smaller than"),
        (
            lambda raw: b"PAR1" + b"\xff" * 100 + (80).to_bytes(4, "little") + b"PAR1",
            "OSError: Couldn't deserialize thrift",
        ),
    ],
    ids=["empty", "web-page", "a-byte-short", "half", "footer-only", "noise"],
)
def test_damaged_files_are_refused(damage: Any, reason: str, finished: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(damage(finished))
    message = rf"must be a shard written by hf_dr, but: .*({reason})(.|\n)*Delete the file and run"
    with pytest.raises(FormatError, match=message):
        read_marker(path)


@pytest.mark.parametrize(
    "marker",
    [
        None,
        b"",
        b"[]",
        b"1",
        b"{}",
        b"[" * 100_000,
        b'{"fingerprint": "f", "num_bytes": 1}',
        b'{"fingerprint": "f", "num_bytes": "x", "skipped_rows": []}',
        b'{"fingerprint": "f", "num_bytes": Infinity, "skipped_rows": []}',
        b'{"fingerprint": "f", "num_bytes": 1, "skipped_rows": [null]}',
        b'{"fingerprint": "f", "num_bytes": true, "skipped_rows": []}',
        b'{"fingerprint": 1, "num_bytes": 1, "skipped_rows": []}',
        b'{"fingerprint": "f", "num_bytes": -1, "skipped_rows": []}',
        b"\xff",
    ],
    ids=lambda marker: repr(marker[:60] if marker else marker),
)
def test_files_of_others_are_refused(marker: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"a": [1]}).replace_schema_metadata(None if marker is None else {METADATA_KEY: marker}), path
    )
    message = r"(must be a shard written by hf_dr, but: |the marker of .*a\.parquet must ).*\. Delete the file and run"
    with pytest.raises(FormatError, match=message):
        read_marker(path)


def test_a_missing_file_is_not_called_damaged(tmp_path: Path) -> None:
    """`Delete the file` would be no help."""
    with pytest.raises(FileNotFoundError):
        read_marker(tmp_path / "a.parquet")


def test_the_marker_stands_in_the_documented_place(tmp_path: Path) -> None:
    """Other programs may read it: JSON under one key of the Parquet metadata."""
    write(tmp_path / "a.parquet")
    stored = json.loads(pq.read_metadata(tmp_path / "a.parquet").metadata[b"hf_dr"])
    digests = stored.pop("digests")
    assert stored == {"fingerprint": "f1", "num_bytes": stored["num_bytes"], "skipped_rows": [2]}
    assert list(digests) == list(FEATURES)
    assert all(re.fullmatch("[0-9a-f]{32}", digest) for digest in digests.values())


# -------------------------------------------------------------------------------------------------------------- damage


def test_what_was_written_has_its_digests_however_it_is_encoded(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    check_digests(tmp_path / "a.parquet")
    rewritten(tmp_path / "a.parquet", lambda table: table)
    check_digests(tmp_path / "a.parquet")


def test_a_dictionary_of_values_has_the_digest_of_the_values() -> None:
    notes = pa.array(["a", None, "b", "a"])
    found = []
    for column in (notes, notes.dictionary_encode()):
        digests = ColumnDigests()
        digests.update(pa.table({"note": column}))
        found.append(digests.result())
    assert found[0] == found[1]


def test_an_error_of_the_system_is_no_damage() -> None:
    with (
        pytest.raises(HfDrError, match=r"could not read a.parquet: Permission denied. Fix") as told,
        reading("a.parquet"),
    ):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert not isinstance(told.value, FormatError)


@pytest.mark.parametrize("name", [name for name in FEATURES if name != "source_index"])
def test_swapped_rows_of_a_column_are_found(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path)
    order = [1, 0, *range(2, ROWS)]

    def swap(table: pa.Table) -> pa.Table:
        place = table.column_names.index(name)
        return table.set_column(place, table.schema.field(place), table.column(place).take(order))

    same = pq.read_table(path).column(name).take(order).equals(pq.read_table(path).column(name))
    rewritten(path, swap)
    if same:
        check_digests(path)
    else:
        with pytest.raises(
            FormatError, match=rf"must hold what was written, but its columns {name} have other digests"
        ):
            check_digests(path)


def test_every_flip_that_changes_a_value_is_found(tmp_path: Path) -> None:
    """Of one bit anywhere in the file; what changes nothing that is read, such as a statistic, may pass."""
    path = tmp_path / "a.parquet"
    write(path, np.ones(ROWS, bool))  # NaN would not equal itself
    whole = path.read_bytes()
    expected = pq.read_table(path)
    rng = np.random.default_rng(0)
    found = 0
    for place in rng.integers(len(whole), size=300).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            check_digests(path)
        except FormatError:
            found += 1
            continue
        assert pq.read_table(path).equals(expected), place
    assert found > 100


def test_a_column_without_a_digest_or_without_values_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path)
    rewritten(path, lambda table: table.drop_columns(["aug_flip"]))
    with pytest.raises(FormatError, match="its columns aug_flip have other digests"):
        check_digests(path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            b'"skipped_rows": [2]',
            b'"skipped_rows": [6]',
            r"must tell its rows without reinforcement, \[2\], but tells \[6\]",
        ),
        (b"\x18\x05bytes", b"\x18\x05cytes", "must tell the features of its columns once, found two"),
        (
            b"\x18\x08" + struct.pack("<q", 0),
            b"\x18\x08" + struct.pack("<q", 1),
            "must have the statistics of `source_index`",
        ),
    ],
    ids=["marker", "name of an inner field", "statistics"],
)
def test_damage_to_what_a_footer_tells_once_is_found(old: bytes, new: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path)
    check_digests(path)
    whole = path.read_bytes()
    place = whole.rindex(old)
    path.write_bytes(whole[:place] + new + whole[place + len(old) :])
    with pytest.raises(FormatError, match=reason):
        check_digests(path)


# -------------------------------------------------------------------------------------------------- readers of others


def test_duckdb_polars_and_pandas_read_every_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path)
    expected = pq.read_table(path)
    names = [name for name in FEATURES if name != "image"]
    by_duckdb = duckdb.sql(f"SELECT {', '.join(names)} FROM '{path}'").fetchall()
    by_polars = polars.read_parquet(path)
    by_pandas = pd.read_parquet(path)
    for name, column in zip(names, zip(*by_duckdb, strict=True), strict=True):
        rows = expected.column(name).to_pylist()
        for row, value in enumerate(rows):
            np.testing.assert_array_equal(np.asarray(column[row]), np.asarray(value), err_msg=name)
            np.testing.assert_array_equal(np.asarray(by_polars[name].to_list()[row]), np.asarray(value), err_msg=name)
            found = by_pandas[name][row]
            nested = np.stack(found) if isinstance(found, np.ndarray) and found.dtype == object else np.asarray(found)
            if value is not None:
                np.testing.assert_array_equal(nested, np.asarray(value), err_msg=name)


@pytest.mark.parametrize("dtype", ["timestamp[s]", "time32[s]", "date64"])
def test_a_type_that_parquet_stores_as_another_is_no_damage(dtype: str, tmp_path: Path) -> None:
    features = Features({"taken": Value(dtype)})
    pq.write_table(features.arrow_schema.empty_table(), tmp_path / "a.parquet")
    assert list(read_features(tmp_path / "a.parquet")) == ["taken"]

"""The digests of columns: those that are in users' files, the same however Arrow holds the values, others for other values."""

from __future__ import annotations

import datetime
import decimal
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.features.features import Array2DExtensionType
from hypothesis import given
from hypothesis import strategies as st

from hf_dr.store.digests import ColumnDigests


def digest(*parts: pa.Array | pa.ChunkedArray) -> str:
    """The digest of a column that comes in parts, each a table, or a batch where it is one array."""
    digests = ColumnDigests()
    for part in parts:
        whole = pa.table if isinstance(part, pa.ChunkedArray) else pa.record_batch
        digests.update(whole({"column": part}))
    return digests.result()["column"]


def squares(values: list[Any]) -> pa.Array:
    """A column as `Array2D` of datasets has it."""
    kind = Array2DExtensionType((2, 2), "uint8")
    return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))


COLUMNS = {
    "bool": pa.array([True, None, False, True]),
    "uint8": pa.array([0, 255, None], pa.uint8()),
    "int64": pa.array([-1, 2**62, None], pa.int64()),
    "float16": pa.array(np.array([0.5, -2.25, 6e4], np.float16)),
    "float64": pa.array([0.1, None, -1e300]),
    "string": pa.array(["a", None, "", "bc"]),
    "large_string": pa.array(["a", None, "", "bc"], pa.large_string()),
    "binary": pa.array([b"\x00\xff", b"", None]),
    "large_binary": pa.array([b"\x00\xff", b"", None], pa.large_binary()),
    "list": pa.array([[1, 2], None, [], [3, None]], pa.list_(pa.int16())),
    "large_list": pa.array([[1, 2], None, [], [3, None]], pa.large_list(pa.int16())),
    "fixed": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.uint16(), 2)),
    "fixed of fixed": pa.array([[[1, 2], [3, 4]], None], pa.list_(pa.list_(pa.float32(), 2), 2)),
    "struct": pa.array([{"bytes": b"x", "path": None}, None], pa.struct({"bytes": pa.binary(), "path": pa.string()})),
    "dictionary": pa.array(["a", None, "a"]).dictionary_encode(),
    "Array2D": squares([[[1, 2], [3, 4]], None]),
    "date": pa.array([datetime.date(2026, 1, 31), None]),
    "decimal": pa.array([decimal.Decimal("1.50"), None]),
    "null": pa.nulls(3),
}
IN_FILES = {
    "bool": "2638808d7cc4eae5f942a382ab58c93d",
    "uint8": "2bbdb83dc0996fdeccd139a4ee9a832d",
    "int64": "a8f6bb20e6fb0ab24a0535155beffd73",
    "float16": "568feaa53ff62d14ba380ea9e7f78c64",
    "float64": "d2e81e7ea01af41e22efb66eba7a5c3e",
    "string": "a44ccafa6503a4fcc63c67e0d8ab8376",
    "large_string": "a44ccafa6503a4fcc63c67e0d8ab8376",
    "binary": "f267927f4bee7146e010615ee9f62a27",
    "large_binary": "f267927f4bee7146e010615ee9f62a27",
    "list": "f0335945c5c578cbff255254c99c8ffc",
    "large_list": "f0335945c5c578cbff255254c99c8ffc",
    "fixed": "100398518679bfdedc6c505f797d6994",
    "fixed of fixed": "951bef0b4d2dadcb83be8a4ceda2624f",
    "struct": "084e8c4da583d7979c2fb8c455ffae40",
    "dictionary": "b7a4cc5615ee139c8fc8030ae6979b53",
    "Array2D": "174601a3b7eaf0e01a6bcb473bf76857",
    "date": "6e99fe564a3770529ab2b35ec2abc523",
    "decimal": "f6dd51222566b4cf386cd720a8f02ed0",
    "null": "181689318664e8e839640587655d4986",
}


@pytest.mark.parametrize("name", COLUMNS)
def test_the_rule_is_that_of_users_files(name: str) -> None:
    """By another rule each "+" dataset that was written before would be taken for a damaged one."""
    assert digest(COLUMNS[name]) == IN_FILES[name]


@pytest.mark.parametrize("name", COLUMNS)
def test_it_does_not_depend_on_how_arrow_holds_the_values(name: str) -> None:
    """As a slice of a larger array, in chunks, and with something in memory below an empty place."""
    column = COLUMNS[name]
    longer = pa.concat_arrays([column, column, column])
    assert digest(longer[len(column) : 2 * len(column)]) == digest(column)
    assert digest(pa.chunked_array([column[:1], column[1:]])) == digest(column)


@pytest.mark.parametrize("kind", ["int32", "float32"])
def test_what_lies_below_an_empty_place_belongs_to_nobody(kind: str) -> None:
    one, other = (pa.array(np.array([1, below, 3], kind), mask=np.array([False, True, False])) for below in (2, 9))
    assert one.buffers()[1] != other.buffers()[1]
    assert digest(one) == digest(other)


@pytest.mark.parametrize("name", COLUMNS)
def test_order_empty_places_and_parts_count(name: str) -> None:
    column = COLUMNS[name]
    if name != "null":
        order = pa.array([len(column) - 1, *range(len(column) - 1)])
        assert digest(column.take(order)) != digest(column)
    assert digest(column, column) != digest(pa.concat_arrays([column, column])), "a part is a row group of the file"
    assert digest(pa.concat_arrays([column, pa.nulls(1, column.type)])) != digest(column)


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_without_a_value_have_digests(name: str) -> None:
    """Of no rows, and of empty places only, for which Arrow may hold no memory at all."""
    kind = COLUMNS[name].type
    none = pa.array([], kind)
    assert digest(none) == digest(COLUMNS[name][:0])
    assert len({digest(none), digest(pa.nulls(1, kind)), digest(pa.nulls(2, kind))}) == 3


def test_empty_texts_are_not_empty_places() -> None:
    assert digest(pa.array(["", ""])) == digest(pa.array(["a", "", ""])[1:]) != digest(pa.nulls(2, pa.string()))


def test_arrow_may_hold_no_ends_where_there_are_no_texts() -> None:
    none = pa.Array.from_buffers(pa.string(), 0, [None, None, pa.py_buffer(b"")])
    assert digest(none) == digest(pa.array([], pa.string()))


def test_values_that_run_together_are_told_apart() -> None:
    for one, other in (
        (pa.array(["ab", "c"]), pa.array(["a", "bc"])),
        (pa.array([[1, 2], [3]]), pa.array([[1], [2, 3]])),
        (pa.array([[], [1]], pa.list_(pa.int64())), pa.array([None, [1]], pa.list_(pa.int64()))),
        (pa.array([True]), pa.array([True, False])),
    ):
        assert digest(one) != digest(other)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "+02:00"])
def test_the_digest_of_times_with_a_zone_is_that_of_their_numbers(zone: str) -> None:
    """Arrow names a zone by objects whose text differs between its versions."""
    times = pa.array([0, None, 1_700_000_000_123_456], pa.timestamp("us", tz=zone))
    assert digest(times) == digest(times.view(pa.int64()))


NESTED = {
    "alone": lambda times: times,
    "in a struct": lambda times: pa.StructArray.from_arrays([times], ["time"]),
    "in a list": lambda times: pa.ListArray.from_arrays(pa.array([*range(len(times)), len(times)], pa.int32()), times),
}


@given(
    nested=st.sampled_from(list(NESTED)),
    kind=st.builds(
        pa.timestamp, st.sampled_from(["s", "ms", "us", "ns"]), st.sampled_from([None, "UTC", "Europe/Berlin"])
    ),
    values=st.lists(st.none() | st.integers(-(10**9), 2 * 10**9), max_size=4),
)
def test_times_have_the_same_digest_when_they_are_read_back(
    nested: str, kind: pa.DataType, values: list[int | None]
) -> None:
    """Parquet knows no seconds: they come back as milliseconds."""
    column = NESTED[nested](pa.array(values, kind))
    file = io.BytesIO()
    pq.write_table(pa.table({"column": column}), file)
    assert digest(column) == digest(pq.read_table(file)["column"])

"""Digests of what the columns of a shard hold, whatever encoding, compression and version of Arrow wrote them.

A digest covers values, their order, and which are null. Damage to the file changes it, and so do rows or
columns that something has swapped, shifted or replaced. It is no signature: who rewrites a file on purpose
can write a new digest.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash


class ColumnDigests:
    """The digest of each column of a table that comes in parts; the parts are the row groups of the file."""

    def __init__(self) -> None:
        self._hashers: dict[str, Any] = {}

    def update(self, table: pa.Table | pa.RecordBatch) -> None:
        """Adds the next row group."""
        for name in table.column_names:
            column = table.column(name)
            if isinstance(column, pa.ChunkedArray):
                column = column.combine_chunks()
            # What cannot be one array (over 2 GiB of bytes) stays in chunks.
            assert isinstance(column, pa.Array), f"a row group's column {name} must fit into one Arrow array"
            _update(self._hashers.setdefault(name, xxhash.xxh3_128()), column)

    def result(self) -> dict[str, str]:
        """Returns column name -> digest, 32 hexadecimal digits."""
        return {name: hasher.hexdigest() for name, hasher in self._hashers.items()}


def _update(hasher: Any, array: pa.Array) -> None:
    """Adds an array: its length, which values are there, and the values, by one rule for each kind of type."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    is_valid = array.is_valid().to_numpy(zero_copy_only=False)
    hasher.update(struct.pack("<q", len(array)))
    hasher.update(np.packbits(is_valid).tobytes())
    kind = array.type
    if pa.types.is_struct(kind):
        for field in kind:
            _update(hasher, pc.struct_field(array, field.name))
        return
    if not is_valid.all():
        array = array.drop_null()  # what memory holds under a null is nobody's
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        hasher.update(pc.list_value_length(array).to_numpy().astype("<i8").tobytes())
        _update(hasher, array.flatten())
    elif pa.types.is_fixed_size_list(kind):
        _update(hasher, array.flatten())
    elif isinstance(array, (pa.StringArray, pa.BinaryArray, pa.LargeStringArray, pa.LargeBinaryArray)):
        hasher.update(pc.binary_length(array).to_numpy().astype("<i8").tobytes())
        hasher.update(_bytes_of(array))
    elif pa.types.is_boolean(kind):
        hasher.update(np.packbits(array.to_numpy(zero_copy_only=False)).tobytes())
    elif pa.types.is_timestamp(kind) and kind.tz is not None:
        # Versions of Arrow name the zone by objects of other classes; the values are those of UTC. Parquet has no seconds.
        if kind.unit == "s":
            array = array.cast(pa.timestamp("ms", kind.tz))
        hasher.update(np.ascontiguousarray(array.view(pa.int64()).to_numpy(), "<i8").data)
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = array.to_numpy(zero_copy_only=False)
        hasher.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)
    else:  # dates, decimals, null: rare in a dataset of images, and small
        hasher.update(repr(array.to_pylist()).encode())


def _bytes_of(array: pa.Array) -> memoryview | bytes:
    """Returns the bytes of all values of a binary array without nulls, one after the other."""
    _, offsets, data = array.buffers()
    if data is None or not len(array):
        return b""
    width = "<i8" if isinstance(array, (pa.LargeStringArray, pa.LargeBinaryArray)) else "<i4"
    ends = np.frombuffer(offsets, width)[array.offset : array.offset + len(array) + 1]
    return memoryview(data)[int(ends[0]) : int(ends[-1])]

"""Reading pickles of plain values: equal to pickle for what is accepted, and nothing ever runs."""

# ruff: noqa: TID251 (the tests write pickles, which the library never does)

import contextlib
import datetime
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import quick

from hf_dr.errors import FormatError
from hf_dr.generation.ml_dr import plain_pickle
from hf_dr.generation.ml_dr.plain_pickle import MAX_DEPTH, read_plain_pickle

_LEAVES = (
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary()
)
VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
PROTOCOLS = st.integers(2, 5)
# Of the size and shape that is read in earnest: floats, ints, a shared key, NumPy's integers.
SAMPLE = (3, [{"params": [(0, 1, 2, 300), True, None, [0.5, *np.arange(4)]], "prob": ([0.5], [70_000])}] * 2)


def same(a: object, b: object) -> bool:
    """Whether two values are equal, types included, but for NumPy's integers."""
    if isinstance(a, (list, tuple)) and type(a) is type(b) and len(a) == len(b):
        return all(map(same, a, b))
    if isinstance(a, dict) and type(a) is type(b):
        return list(a) == list(b) and all(map(same, a.values(), b.values()))
    return a == b and (type(a) is type(b) or (type(a), type(b)) == (int, np.int64))


@quick
@given(VALUES, PROTOCOLS)
def test_plain_values_read_as_pickle_reads_them(value, protocol):
    data = pickle.dumps(value, protocol)
    if protocol == 2 and (b"_codecs" in data or b"__builtin__" in data):  # how protocol 2 writes bytes: by a call
        with pytest.raises(FormatError, match=r"found the name (_codecs\.encode|__builtin__\.bytes)"):
            read_plain_pickle(data, "x")
    else:
        assert same(read_plain_pickle(data, "x"), value)


@pytest.mark.parametrize("protocol", [4, 5])
def test_numpy_integers_become_ints(protocol):
    assert same(read_plain_pickle(pickle.dumps(SAMPLE, protocol), "x"), SAMPLE)


def test_the_name_of_an_older_numpy_is_known():
    data = pickle.dumps([np.int64(-5)], 4)
    old = data.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    assert old != data
    assert read_plain_pickle(old, "x") == [-5]


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_payload_is_named_and_does_not_run(protocol, tmp_path):
    data = pickle.dumps((0, [Bomb(tmp_path / "ran")]), protocol)
    with pytest.raises(FormatError, match=r"3\.pth\.tar must hold plain values only .* It was not executed"):
        read_plain_pickle(data, "3.pth.tar")
    assert not (tmp_path / "ran").exists()
    pickle.loads(data)
    assert (tmp_path / "ran").exists(), "the payload is none"


def _shared(levels: int) -> list:
    """A list that is small in memory and 2**levels large when it is written out."""
    value: list = []
    for _ in range(levels):
        value = [value, value]
    return value


def _endless() -> list:
    value: list = []
    value.append(value)
    return value


def _deep(levels: int) -> list:
    value: list = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (os.system, r"the name \w+\.system"),
        (datetime.date(2020, 1, 1), r"the name datetime\.date"),
        (np.float64(0.5), "a call of numpy.dtype with other arguments"),
        (np.array([1, 2]), r"the name numpy\._core"),
        ([np.dtype("int64")], r"the name numpy\.int64"),
        (np.dtype, r"the name numpy\.dtype"),
        ({1, 2}, "the instruction EMPTY_SET"),
        (1 + 2j, "the name builtins.complex"),
        (bytearray(b"x"), r"the (name builtins\.bytearray|instruction BYTEARRAY8)"),
        (2**63, "an integer of 9 bytes"),
        ("x" * 5000, "a string of 5,000 bytes"),
        (b"x" * 300, "the instruction BINBYTES"),
        (_shared(40), r"nested more than 32 deep"),
        (_shared(30), r"more than 2,097,152 values"),
        (_endless(), "nested more than 32 deep"),
        (_deep(MAX_DEPTH + 1), "nested more than 32 deep"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",  # some are too large to be written out
)
def test_anything_else_is_refused_by_name(value, message):
    with pytest.raises(FormatError, match=message):
        read_plain_pickle(pickle.dumps(value, 4), "x")


def test_an_object_with_a_state_is_refused():
    with pytest.raises(FormatError, match="an object with a state of its own"):
        read_plain_pickle(b"\x80\x02}}b.", "x")  # two dictionaries, of which one is to be the other's state


def test_the_allowed_depth_is_allowed():
    assert read_plain_pickle(pickle.dumps(_deep(MAX_DEPTH), 4), "x") == _deep(MAX_DEPTH)


def test_endless_instructions_are_refused(monkeypatch):
    monkeypatch.setattr(plain_pickle, "MAX_INSTRUCTIONS", 1000)
    with pytest.raises(FormatError, match="more than 1,000 instructions"):
        read_plain_pickle(b"\x80\x04" + b"]" * 2000 + b".", "x")


@pytest.mark.parametrize(
    "data",
    [
        b"", b".", b"\x80\x04", b"\x80\x04]].", b"\x80\x04(.", b"\x80\x04e.", b"\x80\x04K\x01K\x02a.",
        b"\x80\x04K\x01(K\x02e.", b"\x80\x04h\x07.", b"\x80\x04\x87.", b"\x80\x04R.", b"\x80\x04\x8c\x02\xff\xff.",
        b"\x80\x04}(K\x01K\x02u.", b"\x80\x04}(\x8c\x01au.", b"\x80\x04}N]s.", b"\x80\x04cos.", b"\x80\x04]]\x93.",
        b"\x80\x04G\x00.", b"\x80\x04X\xff\x00\x00\x00a.",
    ],
)  # fmt: skip
def test_damaged_streams_are_refused(data):
    with pytest.raises(FormatError, match=r"x must be a pickle, but it breaks off or is damaged"):
        read_plain_pickle(data, "x")


@quick
@given(st.binary(max_size=300), st.booleans())
def test_no_stream_does_harm(noise, framed):
    with contextlib.suppress(FormatError):
        read_plain_pickle((b"\x80\x04" if framed else b"") + noise, "x")


@quick
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 400))
def test_no_damage_to_a_real_stream_does_harm(changes, cut):
    data = bytearray(pickle.dumps(SAMPLE, 4))
    for at, value in changes:
        data[at % len(data)] = value
    with contextlib.suppress(FormatError):
        read_plain_pickle(bytes(data[: len(data) - cut % len(data)] if cut < 200 else data), "x")


_CODES = st.sampled_from([bytes([c]) for c in b"(.N\x88\x89]})te\x85\x86\x87aus\x94R\x93b"])
_PIECES = _CODES | st.sampled_from(
    [
        b"h\x00",
        b"h\x01",
        b"K\x01",
        b"C\x08" + b"\x01" * 8,
        b"q\x00",
        b"\x8c\x05numpy",
        b"\x8c\x05dtype",
        b"\x8c\x02i8",
        b"cnumpy\ndtype\n",
        b"cnumpy.core.multiarray\nscalar\n",
        b"G" + struct.pack(">d", 0.5),
    ]
)


@quick
@given(st.lists(_PIECES, max_size=60))
def test_no_program_does_harm(pieces):
    with contextlib.suppress(FormatError):
        read_plain_pickle(b"\x80\x04" + b"".join(pieces) + b".", "x")

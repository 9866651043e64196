"""Reading pickles of plain values, without executing them.

A pickle is a program for a stack machine. The machine here has no instruction that calls, imports or unpickles anything: it
builds tuples, lists, dicts, strings, bytes and numbers, and knows one class by name, NumPy's 64-bit integer, which it reads
as an int. A stream that asks for more is refused.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from enum import Enum
from typing import Any

from hf_dr.errors import FormatError

# A few hundred bytes of memory for each instruction at most, whatever the stream says.
MAX_INSTRUCTIONS = 1 << 21
MAX_TEXT = 1 << 12
MAX_DEPTH = 32


class _Name(Enum):
    """What a stream may name, and what becomes of it."""

    DTYPE = "numpy.dtype"
    SCALAR = "numpy.core.multiarray.scalar"
    INT64 = "numpy.int64"  # the dtype, once made


_NAMES = {
    ("numpy", "dtype"): _Name.DTYPE,
    ("numpy.core.multiarray", "scalar"): _Name.SCALAR,
    ("numpy._core.multiarray", "scalar"): _Name.SCALAR,
}
_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})
_CONTAINERS = frozenset({tuple, list, dict})
_FLOAT = struct.Struct(">d")


def read_plain_pickle(data: bytes, where: str) -> Any:
    """Returns the value that a pickle of protocol 2 to 5 describes.

    It may be nested `MAX_DEPTH` deep, take `MAX_INSTRUCTIONS`, and share parts as long as it has no more parts than that
    when they are counted each time. Messages call it `where`.

    Raises:
        FormatError: The stream is damaged, too large, or asks for anything but tuples, lists, dicts with strings as keys,
            strings, bytes, bools, None, floats and 64-bit integers.
    """
    try:
        value = _Machine(data).run()
        _count_parts(value)
    except _RefusedError as refusal:
        raise FormatError(
            f"{where} must hold plain values only (numbers, strings, lists, tuples, dicts), found {refusal}. It was not "
            "executed. Fetch the file again from a source that you trust."
        ) from None
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise FormatError(
            f"{where} must be a pickle, but it breaks off or is damaged ({type(error).__name__}). Fetch the file again."
        ) from error
    return value


class _RefusedError(Exception):
    """What was found, for the message."""


class _Machine:
    """The stack machine that a pickle is a program for; what it builds may still hold names, and be endless or vast."""

    __slots__ = ("at", "data", "memo", "outer", "stack")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0  # the place of the next instruction, or of the argument of this one
        self.stack: list[Any] = []  # the values since the last mark
        self.outer: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}  # values that the program comes back to, by their numbers

    def run(self) -> Any:
        """Returns the value that is on the stack in the end; a damaged program raises what Python's lists and dicts do."""
        for _ in range(MAX_INSTRUCTIONS):
            code = self.data[self.at]
            self.at += 1
            if code in _VALUES:
                value = _VALUES[code](self)
                self.stack.append(value)  # after the call, which may go back to the stack below a mark
            elif code in _CHANGES:
                _CHANGES[code](self)
            elif code == _STOP:
                if len(self.stack) != 1 or self.outer:
                    raise IndexError
                return self.stack[0]
            else:
                name = next((op.name for op in pickletools.opcodes if op.code == chr(code)), hex(code))
                raise _RefusedError(f"the instruction {name}")
        raise _RefusedError(f"more than {MAX_INSTRUCTIONS:,} instructions")

    # What instructions read after themselves.

    def byte(self) -> int:
        byte = self.data[self.at]
        self.at += 1
        return byte

    def decimal(self) -> float:
        value: float = _FLOAT.unpack_from(self.data, self.at)[0]
        self.at += _FLOAT.size
        return value

    def number(self, size: int) -> int:
        return int.from_bytes(self.read(size), "little")

    def read(self, size: int) -> bytes:
        if size > MAX_TEXT:
            raise _RefusedError(f"a string of {size:,} bytes")
        text = self.data[self.at : self.at + size]
        self.at += size
        return text

    def line(self) -> str:
        end = self.data.index(b"\n", self.at, self.at + MAX_TEXT)
        line = self.data[self.at : end].decode()
        self.at = end + 1
        return line

    # What they take off the stack.

    def top(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def since_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.outer.pop()
        return items


def _text(machine: _Machine, size: int) -> str:
    return machine.read(size).decode("utf-8", "surrogatepass")


def _long(machine: _Machine) -> int:
    size = machine.byte()
    if size > 8:
        raise _RefusedError(f"an integer of {size} bytes")
    return int.from_bytes(machine.read(size), "little", signed=True)


def _name(module: str, name: str) -> _Name:
    if (module, name) not in _NAMES:
        raise _RefusedError(f"the name {module:.80}.{name:.80}")
    return _NAMES[module, name]


def _name_on_stack(machine: _Machine) -> _Name:
    module, name = machine.top(2)
    return _name(_of_type(module, str), _of_type(name, str))


def _reduce(machine: _Machine) -> Any:
    """NumPy's `dtype("i8", False, True)` and `scalar(dtype, eight bytes)`; nothing else is called by its name."""
    function, arguments = machine.top(2)
    match function, arguments:
        case _Name.DTYPE, ("i8", False | 0, True | 1):
            return _Name.INT64
        case _Name.SCALAR, (_Name.INT64, bytes(raw)) if len(raw) == 8:
            return int.from_bytes(raw, "little", signed=True)
    what = function.value if isinstance(function, _Name) else f"an object of type {type(function).__name__}"
    raise _RefusedError(f"a call of {what} with other arguments than a 64-bit integer's")


def _mark(machine: _Machine) -> None:
    machine.outer.append(machine.stack)
    machine.stack = []


def _append(machine: _Machine, items: list[Any]) -> None:
    _of_type(machine.stack[-1], list).extend(items)


def _set_items(machine: _Machine, items: list[Any]) -> None:
    target = _of_type(machine.stack[-1], dict)
    if len(items) % 2:
        raise IndexError
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_of_type(key, str)] = value


def _memoize(machine: _Machine, number: int) -> None:
    machine.memo[number] = machine.stack[-1]


def _check_protocol(machine: _Machine) -> None:
    protocol = machine.byte()
    if not 2 <= protocol <= 5:
        raise _RefusedError(f"pickle protocol {protocol}")


def _skip_frame(machine: _Machine) -> None:
    machine.at += 8  # a hint for reading ahead


def _build(machine: _Machine) -> None:
    """The dtype's byte order, which is the only state that an object is given."""
    (state,) = machine.top(1)
    if machine.stack[-1] is not _Name.INT64 or type(state) is not tuple or state[:3] != (3, "<", None):
        raise _RefusedError("an object with a state of its own")


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


# The instructions, by the names of the module pickletools. What is not here does not exist, and nothing here calls or imports
# what a stream holds.

_CODES = {op.name: ord(op.code) for op in pickletools.opcodes}
_STOP = _CODES["STOP"]
_VALUES: dict[int, Callable[[_Machine], Any]] = {
    _CODES[name]: value
    for name, value in {
        "NONE": lambda _: None,
        "NEWTRUE": lambda _: True,
        "NEWFALSE": lambda _: False,
        "BININT1": _Machine.byte,
        "BININT2": lambda machine: machine.number(2),
        "BININT": lambda machine: int.from_bytes(machine.read(4), "little", signed=True),
        "LONG1": _long,
        "BINFLOAT": _Machine.decimal,
        "SHORT_BINUNICODE": lambda machine: _text(machine, machine.byte()),
        "BINUNICODE": lambda machine: _text(machine, machine.number(4)),
        "SHORT_BINBYTES": lambda machine: machine.read(machine.byte()),
        "EMPTY_TUPLE": lambda _: (),
        "EMPTY_LIST": lambda _: [],
        "EMPTY_DICT": lambda _: {},
        "TUPLE1": lambda machine: tuple(machine.top(1)),
        "TUPLE2": lambda machine: tuple(machine.top(2)),
        "TUPLE3": lambda machine: tuple(machine.top(3)),
        "TUPLE": lambda machine: tuple(machine.since_mark()),
        "BINGET": lambda machine: machine.memo[machine.byte()],
        "LONG_BINGET": lambda machine: machine.memo[machine.number(4)],
        "GLOBAL": lambda machine: _name(machine.line(), machine.line()),
        "STACK_GLOBAL": _name_on_stack,
        "REDUCE": _reduce,
    }.items()
}
"""Instructions that put a value on the stack, and which."""
_CHANGES: dict[int, Callable[[_Machine], None]] = {
    _CODES[name]: change
    for name, change in {
        "MARK": _mark,
        "APPEND": lambda machine: _append(machine, machine.top(1)),
        "APPENDS": lambda machine: _append(machine, machine.since_mark()),
        "SETITEM": lambda machine: _set_items(machine, machine.top(2)),
        "SETITEMS": lambda machine: _set_items(machine, machine.since_mark()),
        "MEMOIZE": lambda machine: _memoize(machine, len(machine.memo)),
        "BINPUT": lambda machine: _memoize(machine, machine.byte()),
        "LONG_BINPUT": lambda machine: _memoize(machine, machine.number(4)),
        "PROTO": _check_protocol,
        "FRAME": _skip_frame,
        "BUILD": _build,
    }.items()
}
"""All others, and what they do."""


def _count_parts(value: Any, depth: int = 1, count: int = 0) -> int:
    """Adds a container's parts to the count, shared ones each time; refuses what is no tree of plain values of bounded size."""
    if type(value) not in _CONTAINERS:
        value = (value,)
    if depth > MAX_DEPTH:
        raise _RefusedError(f"values nested more than {MAX_DEPTH} deep")
    count += len(value)
    if count > MAX_INSTRUCTIONS:
        raise _RefusedError(f"more than {MAX_INSTRUCTIONS:,} values")
    for part in value.values() if type(value) is dict else value:
        kind = type(part)
        if kind in _CONTAINERS:
            count = _count_parts(part, depth + 1, count)
        elif kind not in _PLAIN:
            raise _RefusedError(f"the name {part.value}")
    return count

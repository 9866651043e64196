"""Reading pickles of plain values, without executing them.

A pickle is a program for a stack machine. The machine here has no instruction that calls, imports or unpickles anything: it
builds tuples, lists, dicts, strings, bytes and numbers, and knows one class by name, NumPy's 64-bit integer, which it reads
as an int. A stream that asks for more is refused.
"""

from __future__ import annotations

import pickletools
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
    "numpy dtype": _Name.DTYPE,
    "numpy.core.multiarray scalar": _Name.SCALAR,
    "numpy._core.multiarray scalar": _Name.SCALAR,
}
_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})
_CONTAINERS = frozenset({tuple, list, dict})


def read_plain_pickle(data: bytes, where: str) -> Any:
    """Returns the value that a pickle of protocol 2 to 5 describes.

    It may be nested `MAX_DEPTH` deep, take `MAX_INSTRUCTIONS`, and share parts as long as it has no more parts than that
    when they are counted each time. Messages call it `where`.

    Raises:
        FormatError: The stream is damaged, too large, or asks for anything but tuples, lists, dicts with strings as keys,
            strings, bytes, bools, None, floats and 64-bit integers.
    """
    try:
        value = _Machine().run(data)
        _count_parts(value)
    except _RefusedError as refusal:
        raise FormatError(
            f"{where} must hold plain values only (numbers, strings, lists, tuples, dicts), found {refusal}. It was not "
            "executed. Fetch the file again from a source that you trust."
        ) from None
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{where} must be a pickle, but it breaks off or is damaged ({type(error).__name__}). Fetch the file again."
        ) from error
    return value


class _RefusedError(Exception):
    """What was found, for the message."""


class _Machine:
    """The stack machine that a pickle is a program for; what it builds may still hold names, and be endless or vast."""

    __slots__ = ("memo", "outer", "stack")

    def __init__(self) -> None:
        self.stack: list[Any] = []  # the values since the last mark
        self.outer: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}  # values that the program comes back to, by their numbers

    def run(self, data: bytes) -> Any:
        """Returns the value that is on the stack in the end; a damaged program raises what Python's lists and dicts do."""
        for count, (op, argument, _) in enumerate(pickletools.genops(data)):
            name = op.name
            if count == MAX_INSTRUCTIONS:
                raise _RefusedError(f"more than {MAX_INSTRUCTIONS:,} instructions")
            if name in _ARGUMENTS:
                self.stack.append(argument)
            elif name in _VALUES:
                value = _VALUES[name](self, argument)
                self.stack.append(value)  # after the call, which may go back to the stack below a mark
            elif name in _CHANGES:
                _CHANGES[name](self, argument)
            elif name != "STOP":
                raise _RefusedError(f"the instruction {name}")
        if len(self.stack) != 1 or self.outer:
            raise IndexError
        return self.stack[0]

    def top(self, count: int) -> list[Any]:
        """Takes values off the stack."""
        if len(self.stack) < count:
            raise IndexError
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def since_mark(self) -> list[Any]:
        """Takes all values since the last mark off the stack."""
        items = self.stack
        self.stack = self.outer.pop()
        return items


def _text(_: _Machine, text: str) -> str:
    if len(text) > MAX_TEXT:
        raise _RefusedError(f"a string of {len(text):,} characters")
    return text


def _long(_: _Machine, number: int) -> int:
    if not -(1 << 63) <= number < 1 << 63:
        raise _RefusedError(f"an integer of {number.bit_length() // 8 + 1} bytes")
    return number


def _name(name: str) -> _Name:
    if name not in _NAMES:
        raise _RefusedError(f"the name {name.replace(' ', '.'):.160}")
    return _NAMES[name]


def _name_on_stack(machine: _Machine, _: Any) -> _Name:
    module, name = machine.top(2)
    return _name(f"{_of_type(module, str)} {_of_type(name, str)}")


def _reduce(machine: _Machine, _: Any) -> Any:
    """NumPy's `dtype("i8", False, True)` and `scalar(dtype, eight bytes)`; nothing else is called by its name."""
    function, arguments = machine.top(2)
    match function, arguments:
        case _Name.DTYPE, ("i8", False | 0, True | 1):
            return _Name.INT64
        case _Name.SCALAR, (_Name.INT64, bytes(raw)) if len(raw) == 8:
            return int.from_bytes(raw, "little", signed=True)
    what = function.value if isinstance(function, _Name) else f"an object of type {type(function).__name__}"
    raise _RefusedError(f"a call of {what} with other arguments than a 64-bit integer's")


def _mark(machine: _Machine, _: Any) -> None:
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


def _memoize(machine: _Machine, number: int | None) -> None:
    machine.memo[len(machine.memo) if number is None else number] = machine.stack[-1]


def _check_protocol(_: _Machine, protocol: int) -> None:
    if not 2 <= protocol <= 5:
        raise _RefusedError(f"pickle protocol {protocol}")


def _build(machine: _Machine, _: Any) -> None:
    """The dtype's byte order, which is the only state that an object is given."""
    (state,) = machine.top(1)
    if machine.stack[-1] is not _Name.INT64 or type(state) is not tuple or state[:3] != (3, "<", None):
        raise _RefusedError("an object with a state of its own")


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


# The instructions, by the names of the module pickletools, which reads their arguments. What is not here does not exist, and
# nothing here calls or imports what a stream holds.

_ARGUMENTS = frozenset(("BININT1", "BININT2", "BININT", "BINFLOAT", "SHORT_BINUNICODE", "SHORT_BINBYTES"))
"""Instructions that put their argument on the stack, which takes 255 bytes at most."""
_VALUES: dict[str, Callable[[_Machine, Any], Any]] = {
    "LONG1": _long,
    "BINUNICODE": _text,
    "NONE": lambda *_: None,
    "NEWTRUE": lambda *_: True,
    "NEWFALSE": lambda *_: False,
    "EMPTY_TUPLE": lambda *_: (),
    "EMPTY_LIST": lambda *_: [],
    "EMPTY_DICT": lambda *_: {},
    "TUPLE1": lambda machine, _: tuple(machine.top(1)),
    "TUPLE2": lambda machine, _: tuple(machine.top(2)),
    "TUPLE3": lambda machine, _: tuple(machine.top(3)),
    "TUPLE": lambda machine, _: tuple(machine.since_mark()),
    "BINGET": lambda machine, number: machine.memo[number],
    "LONG_BINGET": lambda machine, number: machine.memo[number],
    "GLOBAL": lambda _, name: _name(name),
    "STACK_GLOBAL": _name_on_stack,
    "REDUCE": _reduce,
}
"""Instructions that put another value on the stack, and which."""
_CHANGES: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _mark,
    "APPEND": lambda machine, _: _append(machine, machine.top(1)),
    "APPENDS": lambda machine, _: _append(machine, machine.since_mark()),
    "SETITEM": lambda machine, _: _set_items(machine, machine.top(2)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.since_mark()),
    "MEMOIZE": _memoize,
    "BINPUT": _memoize,
    "LONG_BINPUT": _memoize,
    "PROTO": _check_protocol,
    "FRAME": lambda *_: None,  # a hint for reading ahead
    "BUILD": _build,
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

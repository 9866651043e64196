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
from typing import Any, TypeVar

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
_INT32 = struct.Struct("<i")
_UINT16 = struct.Struct("<H")


def read_plain_pickle(data: bytes, where: str) -> Any:
    """Returns the value that a pickle of protocol 2 to 5 describes.

    It may be nested `MAX_DEPTH` deep, take `MAX_INSTRUCTIONS`, and share parts as long as it has no more parts than that
    when they are counted each time.

    Args:
        data: The stream.
        where: Names it in messages.

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
    """The stack machine that a pickle is a program for; what it builds may still hold names, and be endless or vast.

    Attributes:
        data: The program.
        at: The place of the next instruction, or of the argument of this one.
        stack: The values since the last mark.
        outer: The stacks below the marks.
        memo: Values that the program comes back to, by their numbers.
    """

    __slots__ = ("at", "data", "memo", "outer", "stack")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Returns the value that is on the stack in the end.

        Raises:
            _RefusedError: The program has an instruction that is not in the table, or more than are allowed.
            IndexError, KeyError, TypeError, ValueError, struct.error: It is damaged.
        """
        for _ in range(MAX_INSTRUCTIONS):
            code = self.data[self.at]
            self.at += 1
            if code == _STOP:
                if len(self.stack) != 1 or self.outer:
                    raise IndexError
                return self.stack[0]
            perform = _INSTRUCTIONS.get(code)
            if perform is None:
                name = next((op.name for op in pickletools.opcodes if op.code == chr(code)), hex(code))
                raise _RefusedError(f"the instruction {name}")
            perform(self)
        raise _RefusedError(f"more than {MAX_INSTRUCTIONS:,} instructions")

    def number(self, size: int) -> int:
        """Reads an unsigned number of some bytes, lowest first."""
        number = int.from_bytes(self.data[self.at : self.at + size], "little")
        self.at += size
        return number

    def byte(self) -> int:
        """Reads one byte."""
        byte = self.data[self.at]
        self.at += 1
        return byte

    def text(self, size: int) -> bytes:
        """Reads a string of some bytes."""
        if size > MAX_TEXT:
            raise _RefusedError(f"a string of {size:,} bytes")
        text = self.data[self.at : self.at + size]
        self.at += size
        return text

    def unpack(self, form: struct.Struct) -> Any:
        """Reads one number of a form."""
        (value,) = form.unpack_from(self.data, self.at)
        self.at += form.size
        return value

    def since_mark(self) -> list[Any]:
        """Takes the values since the last mark off the stack."""
        items = self.stack
        self.stack = self.outer.pop()
        return items


_STOP = 0x2E
_INSTRUCTIONS: dict[int, Callable[[_Machine], None]] = {}
"""What each instruction does, by its code. What is not here does not exist; nothing here calls or imports what it is given."""
_CODES = {op.name: ord(op.code) for op in pickletools.opcodes}
_Perform = TypeVar("_Perform", bound=Callable[[_Machine], None])


def _instruction(name: str) -> Callable[[_Perform], _Perform]:
    """Puts a function into the table under an instruction's name."""

    def put(perform: _Perform) -> _Perform:
        _INSTRUCTIONS[_CODES[name]] = perform
        return perform

    return put


# ------------------------------------------------------------------------------------------------- constants and numbers


@_instruction("NONE")
def _none(machine: _Machine) -> None:
    machine.stack.append(None)


@_instruction("NEWTRUE")
def _true(machine: _Machine) -> None:
    machine.stack.append(True)


@_instruction("NEWFALSE")
def _false(machine: _Machine) -> None:
    machine.stack.append(False)


@_instruction("BININT1")
def _int8(machine: _Machine) -> None:
    machine.stack.append(machine.data[machine.at])
    machine.at += 1


@_instruction("BININT2")
def _int16(machine: _Machine) -> None:
    machine.stack.append(machine.unpack(_UINT16))


@_instruction("BININT")
def _int32(machine: _Machine) -> None:
    machine.stack.append(machine.unpack(_INT32))


@_instruction("LONG1")
def _long(machine: _Machine) -> None:
    size = machine.byte()
    if size > 8:
        raise _RefusedError(f"an integer of {size} bytes")
    machine.stack.append(int.from_bytes(machine.data[machine.at : machine.at + size], "little", signed=True))
    machine.at += size


@_instruction("BINFLOAT")
def _float(machine: _Machine) -> None:
    machine.stack.append(_FLOAT.unpack_from(machine.data, machine.at)[0])
    machine.at += 8


# --------------------------------------------------------------------------------------------------------------- strings


@_instruction("SHORT_BINUNICODE")
def _short_string(machine: _Machine) -> None:
    machine.stack.append(machine.text(machine.byte()).decode("utf-8", "surrogatepass"))


@_instruction("BINUNICODE")
def _string(machine: _Machine) -> None:
    machine.stack.append(machine.text(machine.number(4)).decode("utf-8", "surrogatepass"))


@_instruction("SHORT_BINBYTES")
def _bytes(machine: _Machine) -> None:
    machine.stack.append(machine.text(machine.byte()))


# ------------------------------------------------------------------------------------------------------------ containers


@_instruction("MARK")
def _mark(machine: _Machine) -> None:
    machine.outer.append(machine.stack)
    machine.stack = []


@_instruction("EMPTY_LIST")
def _empty_list(machine: _Machine) -> None:
    machine.stack.append([])


@_instruction("APPEND")
def _append(machine: _Machine) -> None:
    item = machine.stack.pop()
    _of_type(machine.stack[-1], list).append(item)


@_instruction("APPENDS")
def _appends(machine: _Machine) -> None:
    items = machine.since_mark()
    _of_type(machine.stack[-1], list).extend(items)


@_instruction("EMPTY_DICT")
def _empty_dict(machine: _Machine) -> None:
    machine.stack.append({})


@_instruction("SETITEM")
def _set_item(machine: _Machine) -> None:
    items = machine.stack[-2:]
    del machine.stack[-2:]
    _set_items(machine.stack[-1], items)


@_instruction("SETITEMS")
def _set_several(machine: _Machine) -> None:
    items = machine.since_mark()
    _set_items(machine.stack[-1], items)


@_instruction("EMPTY_TUPLE")
def _empty_tuple(machine: _Machine) -> None:
    machine.stack.append(())


@_instruction("TUPLE")
def _tuple(machine: _Machine) -> None:
    items = machine.since_mark()
    machine.stack.append(tuple(items))


@_instruction("TUPLE1")
def _tuple_of_1(machine: _Machine) -> None:
    _tuple_of(machine, 1)


@_instruction("TUPLE2")
def _tuple_of_2(machine: _Machine) -> None:
    _tuple_of(machine, 2)


@_instruction("TUPLE3")
def _tuple_of_3(machine: _Machine) -> None:
    _tuple_of(machine, 3)


def _tuple_of(machine: _Machine, size: int) -> None:
    if len(machine.stack) < size:
        raise IndexError
    items = machine.stack[-size:]
    del machine.stack[-size:]
    machine.stack.append(tuple(items))


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


def _set_items(target: Any, items: list[Any]) -> None:
    _of_type(target, dict)
    if len(items) % 2:
        raise IndexError
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_of_type(key, str)] = value


# ----------------------------------------------------------------------------------------------------------------- memo


@_instruction("MEMOIZE")
def _memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


@_instruction("BINPUT")
def _put(machine: _Machine) -> None:
    machine.memo[machine.byte()] = machine.stack[-1]


@_instruction("LONG_BINPUT")
def _long_put(machine: _Machine) -> None:
    machine.memo[machine.number(4)] = machine.stack[-1]


@_instruction("BINGET")
def _get(machine: _Machine) -> None:
    machine.stack.append(machine.memo[machine.byte()])


@_instruction("LONG_BINGET")
def _long_get(machine: _Machine) -> None:
    machine.stack.append(machine.memo[machine.number(4)])


# --------------------------------------------------------------------------------------------------------------- framing


@_instruction("PROTO")
def _protocol(machine: _Machine) -> None:
    protocol = machine.byte()
    if not 2 <= protocol <= 5:
        raise _RefusedError(f"pickle protocol {protocol}")


@_instruction("FRAME")
def _frame(machine: _Machine) -> None:
    machine.at += 8  # a hint for reading ahead


# ------------------------------------------------------------------------------------------- NumPy's integers, by name


@_instruction("GLOBAL")
def _name(machine: _Machine) -> None:
    lines = machine.data[machine.at : machine.at + MAX_TEXT].split(b"\n", 2)
    module, name = lines[0].decode(), lines[1].decode()
    machine.at += len(lines[0]) + len(lines[1]) + 2
    _push_name(machine, module, name)


@_instruction("STACK_GLOBAL")
def _name_on_stack(machine: _Machine) -> None:
    name = _of_type(machine.stack.pop(), str)
    module = _of_type(machine.stack.pop(), str)
    _push_name(machine, module, name)


def _push_name(machine: _Machine, module: str, name: str) -> None:
    if (module, name) not in _NAMES:
        raise _RefusedError(f"the name {module:.80}.{name:.80}")
    machine.stack.append(_NAMES[module, name])


@_instruction("REDUCE")
def _reduce(machine: _Machine) -> None:
    """NumPy's `dtype("i8", False, True)` and `scalar(dtype, eight bytes)`; nothing else is called by its name."""
    arguments = machine.stack.pop()
    function = machine.stack.pop()
    match function, arguments:
        case _Name.DTYPE, ("i8", False | 0, True | 1):
            machine.stack.append(_Name.INT64)
        case _Name.SCALAR, (_Name.INT64, bytes(raw)) if len(raw) == 8:
            machine.stack.append(int.from_bytes(raw, "little", signed=True))
        case _:
            what = function.value if isinstance(function, _Name) else f"an object of type {type(function).__name__}"
            raise _RefusedError(f"a call of {what} with other arguments than a 64-bit integer's")


@_instruction("BUILD")
def _build(machine: _Machine) -> None:
    """The dtype's byte order."""
    state = machine.stack.pop()
    if machine.stack[-1] is not _Name.INT64 or type(state) is not tuple or state[:3] != (3, "<", None):
        raise _RefusedError("an object with a state of its own")


# ------------------------------------------------------------------------------------------------------- what was built


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

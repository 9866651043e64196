"""Reading pickles of plain values, without executing them.

A pickle is a program for a stack machine. The machine here has no instruction that calls, imports or unpickles anything: it
builds tuples, lists, dicts, strings, bytes and numbers, and knows one class by name, NumPy's 64-bit integer, which it reads
as an int. A stream that asks for more is refused.
"""

from __future__ import annotations

import pickletools
import struct
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
_FLOAT, _INT32 = struct.Struct(">d"), struct.Struct("<i")


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
        value = _run(data)
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


def _run(data: bytes) -> Any:
    """Runs the machine; the value may still hold names, and be endless or vast by sharing parts."""
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stacks below the marks
    memo: dict[int, Any] = {}
    at = 0
    for _ in range(MAX_INSTRUCTIONS):
        code = data[at]
        at += 1
        match code:  # the most frequent first
            case 0x94:  # MEMOIZE
                memo[len(memo)] = stack[-1]
            case 0x47:  # BINFLOAT
                stack.append(_FLOAT.unpack_from(data, at)[0])
                at += 8
            case 0x4B:  # BININT1
                stack.append(data[at])
                at += 1
            case 0x4D:  # BININT2
                stack.append(data[at] | data[at + 1] << 8)
                at += 2
            case 0x68 | 0x6A:  # BINGET, LONG_BINGET
                size = 1 if code == 0x68 else 4
                stack.append(memo[int.from_bytes(data[at : at + size], "little")])
                at += size
            case 0x28:  # MARK
                outer.append(stack)
                stack = []
            case 0x5D:  # EMPTY_LIST
                stack.append([])
            case 0x65:  # APPENDS
                items, stack = stack, outer.pop()
                _of_type(stack[-1], list).extend(items)
            case 0x61:  # APPEND
                item = stack.pop()
                _of_type(stack[-1], list).append(item)
            case 0x7D:  # EMPTY_DICT
                stack.append({})
            case 0x75:  # SETITEMS
                items, stack = stack, outer.pop()
                _set_items(stack[-1], items)
            case 0x73:  # SETITEM
                items = stack[-2:]
                del stack[-2:]
                _set_items(stack[-1], items)
            case 0x29:  # EMPTY_TUPLE
                stack.append(())
            case 0x74:  # TUPLE
                items, stack = stack, outer.pop()
                stack.append(tuple(items))
            case 0x85 | 0x86 | 0x87:  # TUPLE1, TUPLE2, TUPLE3
                size = code - 0x84
                if len(stack) < size:
                    raise IndexError
                items = stack[-size:]
                del stack[-size:]
                stack.append(tuple(items))
            case 0x88 | 0x89:  # NEWTRUE, NEWFALSE
                stack.append(code == 0x88)
            case 0x4E:  # NONE
                stack.append(None)
            case 0x4A:  # BININT
                stack.append(_INT32.unpack_from(data, at)[0])
                at += 4
            case 0x8A:  # LONG1
                size = data[at]
                if size > 8:
                    raise _RefusedError(f"an integer of {size} bytes")
                stack.append(int.from_bytes(data[at + 1 : at + 1 + size], "little", signed=True))
                at += 1 + size
            case 0x8C | 0x43 | 0x58:  # SHORT_BINUNICODE, SHORT_BINBYTES, BINUNICODE
                size = data[at] if code != 0x58 else int.from_bytes(data[at : at + 4], "little")
                at += 1 if code != 0x58 else 4
                if size > MAX_TEXT:
                    raise _RefusedError(f"a string of {size:,} bytes")
                text = data[at : at + size]
                stack.append(text if code == 0x43 else text.decode("utf-8", "surrogatepass"))
                at += size
            case 0x71:  # BINPUT
                memo[data[at]] = stack[-1]
                at += 1
            case 0x72:  # LONG_BINPUT
                memo[int.from_bytes(data[at : at + 4], "little")] = stack[-1]
                at += 4
            case 0x80:  # PROTO
                if not 2 <= data[at] <= 5:
                    raise _RefusedError(f"pickle protocol {data[at]}")
                at += 1
            case 0x95:  # FRAME: a hint for reading ahead
                at += 8
            case 0x63 | 0x93:  # GLOBAL, STACK_GLOBAL
                if code == 0x93:
                    name, module = _of_type(stack.pop(), str), _of_type(stack.pop(), str)
                else:
                    lines = data[at : at + MAX_TEXT].split(b"\n", 2)
                    module, name = lines[0].decode(), lines[1].decode()
                    at += len(lines[0]) + len(lines[1]) + 2
                if (module, name) not in _NAMES:
                    raise _RefusedError(f"the name {module:.80}.{name:.80}")
                stack.append(_NAMES[module, name])
            case 0x52:  # REDUCE, of the two names that are known
                arguments, function = stack.pop(), stack.pop()
                stack.append(_reduce(function, arguments))
            case 0x62:  # BUILD: the dtype's byte order
                state = stack.pop()
                if stack[-1] is not _Name.INT64 or type(state) is not tuple or state[:3] != (3, "<", None):
                    raise _RefusedError("an object with a state of its own")
            case 0x2E:  # STOP
                if len(stack) != 1 or outer:
                    raise IndexError
                return stack[0]
            case _:
                name = next((op.name for op in pickletools.opcodes if op.code == chr(code)), hex(code))
                raise _RefusedError(f"the instruction {name}")
    raise _RefusedError(f"more than {MAX_INSTRUCTIONS:,} instructions")


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


def _reduce(function: Any, arguments: Any) -> Any:
    """NumPy's `dtype("i8", False, True)` and `scalar(dtype, eight bytes)`; nothing else is called by its name."""
    match function, arguments:
        case _Name.DTYPE, ("i8", False | 0, True | 1):
            return _Name.INT64
        case _Name.SCALAR, (_Name.INT64, bytes(raw)) if len(raw) == 8:
            return int.from_bytes(raw, "little", signed=True)
    what = function.value if isinstance(function, _Name) else f"an object of type {type(function).__name__}"
    raise _RefusedError(f"a call of {what} with other arguments than a 64-bit integer's")


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

"""Reading JSON files from anywhere: their content is checked against the annotations of a dataclass, strictly.

`Annotated[int, Field(ge=1)]` in a field says its bounds. Nothing is converted: True is not 1, "3" is not 3, 1.0 is not 1.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic_core import PydanticCustomError

from hf_dr.errors import FormatError
from hf_dr.text import format_bytes

MAX_BYTES = 16 << 20
"""Largest size of a JSON file. Ten million skipped rows fit in; each byte takes up to twenty in memory."""

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
_Kind = TypeVar("_Kind")

_short = reprlib.Repr()
_short.maxlevel = 2
_short.maxstring = 80
_short.maxother = 80


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """Reads a JSON file that holds an object; `advice` is what to do where it is damaged, a sentence.

    Raises:
        FormatError: It holds something else, is too long, or is no file.
        FileNotFoundError: There is no such file.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise FormatError(f"{path} must be a file, found a folder or a device. {advice}")
    check_size(path.stat().st_size, str(path), advice)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number too long, nested too deeply
        raise FormatError(f"{path} must be JSON, but reading it failed: {error}. {advice}") from error
    return as_object(content, str(path), advice)


def check_size(num_bytes: int, where: str, advice: str = "") -> None:
    """Refuses a file that is too long to be read whole."""
    if num_bytes > MAX_BYTES:
        raise FormatError(
            f"{where} must have at most {format_bytes(MAX_BYTES)}, found {format_bytes(num_bytes)}. {advice}"
        )


def as_object(content: Any, where: str, advice: str = "") -> dict[str, Any]:
    """Returns the parsed content of a JSON file if it is an object."""
    if not isinstance(content, dict):
        raise FormatError(f"{where} must hold a JSON object, found {type(content).__name__}. {advice}")
    return content


def validated(
    kind: type[_Kind], content: Mapping[str, Any], where: str, advice: str = "", *, more: bool = False
) -> _Kind:
    """Builds a dataclass from the parsed content of a JSON file.

    Args:
        kind: The dataclass; its annotations say what each field must be.
        content: The object that the file holds.
        where: Names the file in messages.
        advice: What to do where the content is wrong, a sentence.
        more: Whether other fields than those of the dataclass are ignored; else they are refused.

    Raises:
        FormatError: A field is missing, of another type, or out of its bounds; the first one is named.
    """
    try:
        model = _model(kind, more).model_validate(content)  # type: ignore[arg-type]
    except ValidationError as error:
        raise FormatError(_message(error, where, advice)) from None  # pydantic's text would show the input as it is
    return kind(**{name: getattr(model, name) for name in model.model_fields_set})


@cache
def _model(kind: type, more: bool) -> type[BaseModel]:
    """Returns pydantic's model of a dataclass, strict in every field. (In a strict dataclass it takes no dict.)"""
    hints = get_type_hints(kind, include_extras=True)
    settings: dict[str, Any] = {}
    for field in fields(kind):
        is_required = field.default is MISSING and field.default_factory is MISSING
        # None only says that the field may be missing: the value is then the dataclass's own default.
        settings[field.name] = (hints[field.name], ... if is_required else None)
    config = ConfigDict(strict=True, extra="ignore" if more else "forbid")
    return create_model(kind.__name__, __config__=config, **settings)


def shown(value: object) -> str:
    """Returns a value from a file for a message: a few parts of it, because it may be as long and as deep as the file."""
    return _short.repr(value)


def _message(error: ValidationError, where: str, advice: str) -> str:
    """Says in our words what pydantic found first: what was expected, what was found, what to do."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = f"{'.'.join(map(str, first['loc'])):.80}"
    if first["type"] == "missing":
        return f"{where} must have the field `{name}`, found none. {advice}"
    if first["type"] == "extra_forbidden":
        return f"{where} must not have the field `{name}`, found {shown(first['input'])}. {advice}"
    expected = first["msg"].removeprefix("Input should be ")
    return f"`{name}` in {where} must be {expected}, found {shown(first['input'])}. {advice}"


def expect(holds: bool, expected: str) -> None:
    """Ends a check of pydantic's, an `AfterValidator`, with what the value must be unless it holds."""
    if not holds:
        raise PydanticCustomError("expected", "{expected}", {"expected": expected})


def _finite_float(value: Any) -> Any:
    expect(type(value) is float and math.isfinite(value), "a finite decimal number")
    return value


FiniteFloat = Annotated[float, BeforeValidator(_finite_float)]
"""A JSON number with a decimal point or an exponent; pydantic would take a whole number for one, too."""

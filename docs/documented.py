"""What the reference of Python shows of settings. An extension of Griffe, by which mkdocstrings reads the code."""

import ast
from typing import Any

import griffe


class Documented(griffe.Extension):
    """Shows classes of settings as Python does: with the help of their fields, and with plain default values."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Takes the docstring that the decorator `documented` has extended, which the source does not have."""
        if any("documented" in str(decorator.value) for decorator in cls.decorators):
            cls.docstring = griffe.Docstring(griffe.dynamic_import(cls.path).__doc__ or "", parent=cls)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Takes what `flag` is given as `default` for the value of a field, before signatures are made of fields."""
        value = str(attr.value or "")
        if value.startswith("flag("):
            call = ast.parse(value, mode="eval").body
            assert isinstance(call, ast.Call)
            defaults = [keyword.value for keyword in call.keywords if keyword.arg == "default"]
            attr.value = ast.unparse(defaults[0]) if defaults else None

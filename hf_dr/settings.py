"""What values the fields of a dataclass of settings take: written in the field's metadata, checked by one function.

    num_views: int = flag("Views of each example, V.", default=8, type=Whole(1))
    temperature: float = flag("...", default=1.0, type=Real(0, above=True))
    precision: str = flag("...", default="fp32", choices=["fp32", "bf16"])

The key is `type` because transformers' HfArgumentParser, by which people may read these classes too, hands all metadata to
argparse but puts the field's own type in the place of this one.
"""

from __future__ import annotations

import inspect
import math
import numbers
import os
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, TypeVar

from hf_dr.errors import ConfigError

ALIASES = {"lr": "learning_rate", "epochs": "num_train_epochs"}
"""What people type, and the setting that it means."""

# Help texts of flags that several commands have.
IMAGE_COLUMN_HELP = "Column of the images. Default: the only Image column."
LABEL_COLUMN_HELP = "Column of the labels. Default: `label`, else the only ClassLabel column."
MODEL_ARGS_HELP = "JSON with arguments of timm.create_model, for an architecture of timm."
TEACHER_HELP = (
    "One or several of: Hub id of a timm or transformers classifier (pin it with @revision), transformers folder, "
    "timm:ARCHITECTURE@FILE.safetensors, or a folder of `teach --folds`. Probabilities of several are averaged."
)
TEACHER_CLASSES_HELP = (
    "Where the dataset has a subset of the teacher's classes: `by_name`, a timm list such as imagenet-a or imagenet-r, or a "
    "JSON file with the teacher's index (or name) for each class of the dataset."
)
FILES_FROM_HELP = (
    "Folders outside the dataset whose files its cells may name. Only for a dataset of your own: what it names is read, and "
    'copied into a "+" dataset that is made of it. Default: only files that belong to the dataset itself are read.'
)


OpsOrName = Annotated[str, list]
"""An augmentation: its name, a file, or in a YAML file the list of its ops."""
JsonOrMapping = Annotated[str, dict]
"""Names and values in JSON, or in a YAML file a mapping."""


def flag(help: str, *, default: Any = MISSING, **metadata: Any) -> Any:
    """Returns a field of a dataclass of settings, which is a flag of a command.

    Args:
        help: The flag's help text.
        default: Its value if it is not given; a list is copied for each object. By default it must be given.
        **metadata: Its `type`, `choices` and `metavar`, where it has such.
    """
    metadata["help"] = help
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`; True and 1.0 are none.

    Attributes:
        low: The least.
        high: The greatest; None for no bound.
    """

    low: int
    high: int | None = None

    def check(self, name: str, value: object) -> None:
        """Raises a ConfigError that names the setting if `value` is not such a number."""
        if not isinstance(value, int) or isinstance(value, bool) or value < self.low:
            advice = "Raise" if isinstance(value, int) else "Change"
            raise ConfigError(
                f"`{name}` must be a whole number of at least {self.low}, got {value!r}. {advice} `{name}`."
            )
        if self.high is not None and value > self.high:
            raise ConfigError(f"`{name}` must be at most {self.high}, got {value}. Lower `{name}`.")


@dataclass(frozen=True)
class Real:
    """A finite number from `low` to `high`.

    Attributes:
        low: The least.
        high: The greatest; infinity for no bound.
        above: Whether `low` itself is left out.
        below: Whether `high` itself is left out.
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def check(self, name: str, value: object) -> None:
        """Raises a ConfigError that names the setting if `value` is not such a number."""
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if (
            not number
            or not self.low <= value <= self.high  # type: ignore[operator]
            or value == math.inf
            or (self.above and value == self.low)
            or (self.below and value == self.high)
        ):
            raise ConfigError(f"`{name}` must be {self}, got {value!r}. Change `{name}`.")

    def __str__(self) -> str:
        if not (self.above or self.below) and self.high < math.inf:
            return f"between {self.low} and {self.high}"
        low = f"above {self.low}" if self.above else f"at least {self.low}"
        if self.high == math.inf:
            return f"a number {low}" if self.above else f"a number of {low}"
        return f"{low} and {'below' if self.below else 'at most'} {self.high}"


@dataclass(frozen=True)
class Switch:
    """True or False; a text is neither, though Python takes it for one."""

    def check(self, name: str, value: object) -> None:
        """Raises a ConfigError that names the setting if `value` is neither."""
        if not isinstance(value, bool):
            raise ConfigError(f"`{name}` must be True or False, got {value!r:.80}. Change `{name}`.")


@dataclass(frozen=True)
class Place:
    """A name or a path, which is not empty."""

    def check(self, name: str, value: object) -> None:
        """Raises a ConfigError that names the setting if `value` is no such text or path."""
        if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
            raise ConfigError(f"`{name}` must be a name or a path, got {value!r:.80}. Give one.")


def check_kind(name: str, value: object, kind: type | tuple[type, ...], expected: str, advice: str) -> None:
    """Refuses an object of another class as an argument, before it fails somewhere within.

    Args:
        name: The argument's name.
        value: What was given.
        kind: The classes that it may be of.
        expected: What that is, in words.
        advice: What to do.

    Raises:
        ConfigError: It is of another class.
    """
    if not isinstance(value, kind):
        raise ConfigError(f"`{name}` must be {expected}, got {type(value).__name__}. {advice}")


def check_names(name: str, value: object) -> None:
    """Refuses what is no list of texts or paths as an argument: a single text would be read letter by letter.

    Raises:
        ConfigError: It is none.
    """
    if isinstance(value, (str, os.PathLike)):
        raise ConfigError(f"`{name}` must be a list of names, got {value!r:.80}. Put it into a list.")
    is_number = getattr(value, "ndim", 1) == 0  # an array without dimensions, which cannot be iterated
    if is_number or not isinstance(value, Collection) or not all(isinstance(v, (str, os.PathLike)) for v in value):
        raise ConfigError(f"`{name}` must be a list of names, got {value!r:.80}. Give texts.")


def check_count(name: str, value: object, least: int = 1) -> None:
    """Refuses what is no whole number of at least `least` as an argument; one of NumPy's is, too.

    Raises:
        ConfigError: It is none.
    """
    Whole(least).check(name, as_plain(value))


def as_plain(value: Any) -> Any:
    """Returns a scalar of NumPy as Python's own, which JSON takes, and anything else, arrays among it, as it is."""
    return value.item() if type(value).__module__ == "numpy" and not hasattr(value, "__len__") else value


def by_name(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings by their names, for which aliases and, as on a command line, hyphens may stand.

    Raises:
        ConfigError: A setting is there by two spellings.
    """
    spelled: dict[str, str] = {}
    for key in map(str, given):
        name = key.replace("-", "_")
        name = ALIASES.get(name, name)
        if name in spelled:
            raise ConfigError(f"`{name}` must be set once, got `{spelled[name]}` and `{key}`. Leave one out.")
        spelled[name] = key
    return dict(zip(spelled, given.values(), strict=True))


def check_settings(settings: Any) -> None:
    """Checks each field of a dataclass against the `type` and `choices` in its metadata, and lists, and what is True or False.

    None passes where it is the field's default. Of a list, each item is checked; a tuple becomes one. Scalars of NumPy become
    Python's.

    Raises:
        ConfigError: A value is out of range, or none of the choices; the first one is named.
    """
    theirs = _names_of_transformers(type(settings))  # which checks them itself
    for own in fields(settings):
        given = getattr(settings, own.name)
        ours = own.name not in theirs
        is_list = isinstance(given, list) or (isinstance(given, tuple) and ours)
        value = [as_plain(item) for item in given] if is_list else as_plain(given)
        if value is not given:
            setattr(settings, own.name, value)
        if value is None and own.default is None:
            continue
        if ours and own.type == "list[str]":
            check_names(own.name, value)
        if ours and str(own.type).startswith("list") and not isinstance(value, list):
            raise ConfigError(f"`{own.name}` must be a list, got {value!r:.80}. Put it into a list.")
        limits = own.metadata.get("type")
        if ours and isinstance(own.default, bool):
            limits = Switch()
        choices = own.metadata.get("choices")
        for item in value if isinstance(value, list) and not isinstance(limits, Place) else [value]:
            if limits is not None:
                limits.check(own.name, item)
            if choices is not None and item not in choices:
                known = list(map(str, choices))
                expected = " or ".join(known) if len(known) < 3 else f"one of {', '.join(known)}"
                raise ConfigError(f"`{own.name}` must be {expected}, got {item!r}.")


def _names_of_transformers(kind: type) -> set[str]:
    """Returns the fields that a dataclass has from one of transformers."""
    bases = [base for base in kind.__mro__ if is_dataclass(base) and base.__module__.startswith("transformers.")]
    return {own.name for base in bases for own in fields(base)}


_Class = TypeVar("_Class", bound=type)


def documented(cls: _Class) -> _Class:
    """Class decorator of a dataclass of settings: its docstring gets the help of its fields, which `help` shows in Python."""
    about, raises, errors = inspect.cleandoc(cls.__doc__ or "").partition("Raises:")
    theirs = _names_of_transformers(cls)
    lines = []
    for own in fields(cls):
        if "help" in own.metadata and own.name not in theirs:
            told = f"{own.name}: {own.metadata['help'].replace('%%', '%')}"
            lines.append(textwrap.fill(told, 100, initial_indent=" " * 4, subsequent_indent=" " * 8))
    cls.__doc__ = "\n".join([about.rstrip(), "", "Args:", *lines, "", raises + errors]).rstrip()
    return cls


def are_alike(one: Any, two: Any, but: Collection[str] = ()) -> bool:
    """Whether two settings of runs are equal; a name that a mapping lacks is one that is None.

    Args:
        one: A value in JSON types.
        two: Another one.
        but: Names of mappings, at any depth, that do not count. A digest of data counts where both tell one: what
            `Report.save` writes of data in memory tells none.
    """
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return not unlike_names(one, two, but)
    return bool(one == two)


def unlike_names(one: Mapping[str, Any], two: Mapping[str, Any], but: Collection[str] = ()) -> list[str]:
    """Returns the names, sorted, under which two mappings differ; see `are_alike`."""
    names = (one.keys() | two.keys()) - set(but) - ({"digest"} - (one.keys() & two.keys()))
    return sorted(name for name in names if not are_alike(one.get(name), two.get(name), but))

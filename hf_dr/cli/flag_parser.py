"""Flags from the fields of dataclasses, and how help and mistakes are shown."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Sequence
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from hf_dr.errors import ConfigError, did_you_mean
from hf_dr.settings import ALIASES

_WORDS = ("help", "choices", "metavar")  # what argparse is told of a field's metadata
_EXAMPLES = "examples:"


def add_fields(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, kind: type, but: Collection[str] = ()
) -> None:
    """Adds a flag for each field of a dataclass, as transformers' HfArgumentParser does, but without importing it.

    A list takes one or several values. A bool takes none, or `true` or `false`; one that is True by default has an opposite,
    `--no_...`.

    Args:
        parser: Gets the flags.
        kind: A dataclass whose fields are of a simple type, or of a list of one, or None. Their metadata may have `help`,
            `choices` and `metavar`.
        but: Fields that get none.
    """
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if not field.init or field.name in but:
            continue
        options: dict[str, Any] = {key: field.metadata[key] for key in _WORDS if key in field.metadata}
        if field.default is not dataclasses.MISSING:
            options["default"] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            options["default"] = field.default_factory()
        else:
            options["required"] = True
        value_type = hints[field.name]
        if get_origin(value_type) in (Union, UnionType):  # X | None
            value_type = get_args(value_type)[0]
        if get_origin(value_type) is Literal:
            options |= {"type": str, "choices": list(get_args(value_type))}
        elif value_type is bool:
            options |= {"type": string_to_bool, "nargs": "?", "const": True}
        elif get_origin(value_type) is list:
            options |= {"type": get_args(value_type)[0], "nargs": "+"}
        else:
            options["type"] = _in_yaml_only if value_type is Any else value_type
        parser.add_argument(f"--{field.name}", **options)
        if value_type is bool and field.default is True:
            parser.add_argument(f"--no_{field.name}", action="store_false", dest=field.name, default=False)


def add_files(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds the flags that read and show files of settings."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        nargs="+",
        action="extend",
        help="YAML files with defaults for these settings; later files win over earlier ones, flags over all. "
        "`extends: OTHER` in a file takes over the settings of another.",
    )
    parser.add_argument(
        "--print_config",
        action="store_true",
        help="Print all settings as YAML that --config reads, those that differ from their defaults first, and stop.",
    )


def _in_yaml_only(text: str) -> NoReturn:
    """Refuses a mapping of settings on the command line."""
    raise argparse.ArgumentTypeError(
        f"it is a mapping of settings, which stands in the YAML file of --config, got {text!r}"
    )


def string_to_bool(text: str) -> bool:
    """Returns what `--flag true` or `--flag no` means."""
    for words, value in ((("yes", "true", "t", "y", "1"), True), (("no", "false", "f", "n", "0"), False)):
        if text.lower() in words:
            return value
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


class Parser(argparse.ArgumentParser):
    """Ends with what is wrong, not with the usage: a training has more than a hundred settings.

    A flag with an underscore is spelt with a hyphen, too, and some have a short name.

    Args:
        *types: Dataclasses, for a subclass that takes them.
        examples: Command lines, one a line, for the end of the help.
        **settings: Arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, *types: Any, examples: str = "", **settings: Any) -> None:
        epilog = "\n  ".join([_EXAMPLES, *examples.splitlines()]) if examples else None
        settings |= {"epilog": epilog, "formatter_class": HelpFormatter, "allow_abbrev": False}
        super().__init__(*types, **settings)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        spelled = [s for name in names for s in (name, name.replace("_", "-") if name.startswith("--") else name)]
        spelled += [f"--{alias}" for alias, setting in ALIASES.items() if f"--{setting}" in names]
        return super().add_argument(*dict.fromkeys(spelled), **options)

    def parse_args(self, args: Any = (), namespace: Any = None) -> Any:
        """Refuses unknown words before what is missing, since a mistyped flag is both."""
        unknown = self.unknown_words(args) if {"-h", "--help"}.isdisjoint(args) else []
        if unknown:
            raise ConfigError(f"unknown argument `{unknown[0]}`.{self._advice(unknown[0], args)}")
        return super().parse_args(args, namespace)

    def _advice(self, word: str, args: Sequence[str]) -> str:
        """Says what to do about a word that no flag takes."""
        if word.startswith("-"):
            flags = [flag for action in self._actions for flag in action.option_strings if "-" not in flag.lstrip("-")]
            return did_you_mean(word, flags)
        place = next(n for n, given in enumerate(args) if given.split("=")[0] == word)
        before = args[max(0, place - 1)]
        action = self._option_string_actions.get(before)
        if action is not None and action.nargs == 0:
            return f" `{before}` takes no value: leave it out."
        return " Leave it out, write its flag before it, or, if it is the dataset, write it before all flags."

    def unknown_words(self, args: Sequence[str]) -> list[str]:
        """Returns the words that no flag takes, whatever is missing."""
        required = [action for action in self._actions if action.required]
        for action in required:
            action.required = False
        try:
            return [word.split("=")[0] for word in self.parse_known_args(args)[1]]
        finally:
            for action in required:
                action.required = True

    def error(self, message: str) -> NoReturn:
        """Raises a ConfigError: a call from Python must not end the process."""
        raise ConfigError(f"{message}. See `{self.prog} --help`.")


class HelpFormatter(argparse.HelpFormatter):
    """Shows each flag in one spelling, and its default where it says something; examples keep their lines."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        names = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        takes = action.nargs not in (0, "?")  # a bool takes true or false, but nobody needs to write it
        value = self._format_args(action, self._get_default_metavar_for_optional(action)) if takes else ""
        return f"{', '.join(names)} {value}".rstrip()

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(_EXAMPLES) else super()._fill_text(text, width, indent)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        silent = action.default is None or action.default is False or action.default in (argparse.SUPPRESS, [], {})
        if silent or action.required or "efault:" in text:
            return text
        if isinstance(action.default, list):  # as it is written after the flag
            return f"{text} Default: {' '.join(map(str, action.default)).replace('%', '%%')}."
        return f"{text} Default: %(default)s."


def one_dataset(words: Sequence[str], what: str = "dataset") -> str:
    """Returns the one dataset that a command takes before its flags; `what` is its kind in the message."""
    if len(words) != 1:
        raise ConfigError(f"expected one {what} before the flags, got {' '.join(words) or 'none'}. Name one.")
    return words[0]


def words_as_flag(argv: Sequence[str], flag: str = "--dataset") -> list[str]:
    """Returns arguments with the words before all flags as the values of `flag`, which must not be there as well."""
    words, flags = split_words(argv)
    if words and any(word.split("=")[0] == flag for word in flags):
        raise ConfigError(f"expected the {flag[2:]} once, got {' '.join(words)} and `{flag}`. Leave one out.")
    return [flag, *words, *flags] if words else list(flags)


def split_words(argv: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Returns the words before the first flag, and the rest."""
    count = next((n for n, word in enumerate(argv) if word.startswith("-")), len(argv))
    return argv[:count], argv[count:]

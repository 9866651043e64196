"""What can be said of a training's settings before transformers is imported: the short help, and that a flag is unknown."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_dr.cli.flag_parser import Parser, add_fields, add_files
from hf_dr.errors import ConfigError, did_you_mean
from hf_dr.settings import ALIASES


@dataclass(frozen=True)
class Lazy:
    """Settings that extend transformers' own, which are imported when arguments are read, not when they are explained.

    Attributes:
        module: The module that has them.
        name: The name of the dataclass in that module.
        own: The dataclass of its settings that are not transformers'; needs no torch.
        title: The title above these settings in the help. Default: the first line of their docstring.
        left_out: Those of them that the help leaves out.
    """

    module: str
    name: str
    own: type
    title: str | None = None
    left_out: Collection[str] = ()

    def load(self) -> type:
        """Imports the dataclass."""
        return getattr(importlib.import_module(self.module), self.name)


COMMON = {
    "output_dir": ("Folder of the model and its checkpoints.", None),
    "num_train_epochs": ("Passes over the images. Also --epochs.", "3"),
    "learning_rate": ("Peak of the learning rate. Also --lr.", "5e-5, which is for fine-tuning"),
    "batch_size": ("Images in a step of the optimizer, over all processes and accumulated batches.", "8 a process"),
    "gradient_accumulation_steps": ("Batches in a step of the optimizer: raise it where memory is short.", "1"),
    "optim": ("Optimizer, such as adamw_torch or sgd.", None),
    "weight_decay": ("Weight decay.", "0"),
    "lr_scheduler_type": ("Course of the learning rate, such as cosine.", "linear"),
    "warmup_steps": ("Steps, or share of all steps, in which the rate rises.", "0"),
    "eval_strategy": ("When to evaluate: no, epoch or steps.", "no, and once at the end"),
    "save_strategy": ("When to write a checkpoint: no, epoch or steps.", "steps"),
    "max_steps": ("Steps of the optimizer, instead of epochs.", None),
    "bf16": ("Compute in bfloat16.", None),
    "dataloader_num_workers": ("Processes that load and augment images.", "0"),
    "seed": ("Seed of weights, order and augmentation.", "42"),
    "push_to_hub": ("Publish the model at the end.", None),
}
"""Those of transformers' settings that most trainings choose, for the short help: what they are, and their default."""


def short_help(
    types: Sequence[Any], prog: str, description: str, examples: str, files: Mapping[str, tuple[Any, str]]
) -> str:
    """Returns help in groups, without transformers' own settings but the most common ones.

    `files` are settings from files, and the file of each: where it has one, the help tells it in place of the default.
    """
    parser = Parser(prog=prog, description=description, examples=examples, usage=f"{prog} [settings]")
    for kind in types:
        lazy = kind if isinstance(kind, Lazy) else Lazy("", "", kind)
        title = lazy.title or (lazy.own.__doc__ or lazy.own.__name__).split("\n")[0].rstrip(".?")
        add_fields(parser.add_argument_group(title), lazy.own, but=lazy.left_out)
        if isinstance(kind, Lazy):
            group = parser.add_argument_group("Training (transformers' Trainer; --help_all shows all of its settings)")
            for name, (text, default) in COMMON.items():
                value, file = files.get(name, (default, None))
                told = "" if value is None else f" Default: {value}{f', by {Path(file).name}' if file else ''}."
                group.add_argument(f"--{name}", help=text + told)
    add_files(parser.add_argument_group("Settings from files"))
    return parser.format_help()


def check_early(types: Sequence[Any], argv: Sequence[str], prog: str, files: Collection[str]) -> None:
    """Finds mistakes in the arguments before transformers is imported, which takes seconds; `files` are settings from files.

    Raises:
        ConfigError: A flag is unknown or missing.
    """
    parser = Parser(prog=prog)
    add_files(parser)
    parser.add_argument("--output_dir", required=True)
    for kind in types:
        add_fields(parser, kind.own if isinstance(kind, Lazy) else kind)
    for action in parser._actions:
        action.required = action.required and action.dest not in files
    words = [word for word in parser.unknown_words(argv) if word.startswith("--")]
    foreign = _names_of_transformers() if words else set()
    known = {*foreign, *ALIASES}
    for word in words if foreign else ():
        if word.removeprefix("--").removeprefix("no_").replace("-", "_") not in known:
            ours = (flag for action in parser._actions for flag in action.option_strings)
            close = did_you_mean(word, [*ours, *(f"--{name}" for name in known)])
            raise ConfigError(f"unknown argument `{word}`.{close if 'mean' in close else ' --help_all shows all.'}")
    parser.parse_known_args(argv)


@functools.cache
def _names_of_transformers() -> set[str]:
    """Returns the settings that transformers' TrainingArguments and our extensions of them have, read from their source.

    Empty where there is no source.
    """
    spec = importlib.util.find_spec("transformers")
    theirs = Path(str(spec and spec.origin)).with_name("training_args.py")
    if not theirs.is_file():
        return set()
    names: set[str] = set()
    for file in (theirs, *Path(__file__).parents[1].glob("training/*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("Arguments"):
                fields = (line.target for line in node.body if isinstance(line, ast.AnnAssign))
                names |= {target.id for target in fields if isinstance(target, ast.Name)}
    return names

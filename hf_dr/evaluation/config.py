"""What is evaluated on what, and the names of corruptions: settings need them, not torch."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from hf_dr.errors import ConfigError, did_you_mean
from hf_dr.evaluation.sets import NAME_PATTERN, OPTIONS, PRESETS, parse_set
from hf_dr.files import expanded
from hf_dr.settings import (
    FILES_FROM_HELP,
    TEACHER_CLASSES_HELP,
    TEACHER_HELP,
    Real,
    Whole,
    by_name,
    check_settings,
    flag,
)
from hf_dr.teacher.names import PRECISIONS

CORRUPTION_NAMES = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost",
    "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""Those of ImageNet-C, in the order of the paper (Hendrycks and Dietterich, ICLR 2019, arXiv:1903.12261)."""
SEVERITIES = (1, 2, 3, 4, 5)

HOW = ("max_examples", "size", "crop", "mean", "std")
"""Settings that decide the numbers of a set: evaluations that differ in one of them are not of the same numbers."""
HOW_CORRUPTED = ("corruptions", "severities", "seed")
"""Those that decide the numbers of corrupted images as well."""

REPORT_FILE = "evaluation.json"
"""What an evaluation leaves in its folder for other programs."""


@dataclass
class EvaluateConfig:
    """What is evaluated on what."""

    models: list[str] = flag(
        "Checkpoints: transformers folders (as `train` writes them), Hub ids, timm:ARCHITECTURE@FILE.safetensors; "
        "NAME=CHECKPOINT gives the name that the table shows. They may stand first, without the flag."
    )
    sets: list[str] = flag(
        "NAME=DATASET[:SPLIT][,OPTION=VALUE]..., e.g. test=uoft-cs/cifar100:test,label=fine_label; the dataset is "
        f"a Hub id, a folder or a Parquet file; options are {', '.join(OPTIONS)} (image and label are columns; classes is "
        f"imagenet, imagenet-a or imagenet-r). Or a preset: {', '.join(PRESETS)}; NAME=DATASET reads it from elsewhere. "
        "{corruption} and {severity} may stand in a DATASET that is published corrupted."
    )
    output_dir: str = flag("Where evaluation.md, evaluation.json and reliability.png are written.")
    files_from: list[str] = flag(FILES_FROM_HELP, default=[])
    corrupt: list[str] = flag(
        "Names of sets to evaluate also under the corruption suite. It is made for comparisons within a table: "
        "published numbers are those of imagenet-c.",
        default=[],
    )
    corruptions: list[str] = flag(f"Which corruptions: {', '.join(CORRUPTION_NAMES)}. Default: all.", default=[])
    severities: list[int] = flag(
        "Which severities, 1 to 5. Default: all.", default=[], type=Whole(SEVERITIES[0], SEVERITIES[-1])
    )
    max_examples: int | None = flag(
        "Use only this number of examples, evenly spread over each set. Default: all.", default=None, type=Whole(1)
    )
    batch_size: int = flag("Images in a batch.", default=64, type=Whole(1))
    num_workers: int = flag(
        "Processes that decode and corrupt images; 0 does it in the main process.", default=0, type=Whole(0)
    )
    device: str | None = flag(
        "Device of the models. Default: the accelerator if there is one, else the CPU.", default=None
    )
    precision: str = flag("Floating-point type in which the models compute.", default="fp32", choices=list(PRECISIONS))
    seed: int = flag("Seed of the corruptions.", default=0, type=Whole(0))
    size: int | None = flag(
        "Side in pixels of the models' input. Default: each model's own, as the next three.",
        default=None,
        type=Whole(1),
    )
    crop: float | None = flag(
        "Share of the resized side that the centre crop keeps.", default=None, type=Real(0, 1, above=True)
    )
    mean: list[float] = flag("Mean of the input, three numbers from 0 to 1.", default=[], type=Real(0, 1))
    std: list[float] = flag(
        "Standard deviation of the input, three numbers from 0 to 1.", default=[], type=Real(0, 1, above=True)
    )

    def __post_init__(self) -> None:
        check_settings(self)
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, 3):
                raise ConfigError(
                    f"`{name}` must be three numbers, got {len(getattr(self, name))}. Give one for each channel."
                )
        for name in self.corruptions:
            if name not in CORRUPTION_NAMES:
                raise ConfigError(f"no corruption is called `{name}`.{did_you_mean(name, CORRUPTION_NAMES)}")

    def corruption_keys(self) -> list[tuple[str, int]]:
        """Returns the corruptions with each of their severities."""
        return list(product(self.corruptions or CORRUPTION_NAMES, self.severities or SEVERITIES))


@dataclass
class CompareConfig:
    """What is compared."""

    title: str = flag("Title of the table and the report.")
    output_dir: str = flag("Folder of the runs, the table and the report.")
    train: Any = flag(
        "Settings of `hf-dr train`, all but objective, seed and output_dir. `hub_model_id` gets the name of each run at its "
        "end, as in `me/photos-erm-0`. In YAML only."
    )
    evaluate: Any = flag("Settings of `hf-dr evaluate`, all but models and output_dir. In YAML only.")
    objectives: list[str] = flag(
        "Objectives that are compared.", default=["erm", "reinforced"], choices=["erm", "reinforced", "kd"]
    )
    seeds: list[int] = flag("Seeds; each objective is trained with every one.", default=[0, 1, 2], type=Whole(0))
    teacher: list[str] = flag(f"Only for kd. {TEACHER_HELP}", default=[])
    teacher_classes: str | None = flag(f"Only for kd. {TEACHER_CLASSES_HELP}", default=None)
    pictures: list[str] = flag("PNG files to show in the report.", default=[])
    save: bool = flag('Keep the table next to the "+" dataset\'s shards and show it in its card.', default=False)

    def __post_init__(self) -> None:
        check_settings(self)
        for name, needed in (("train", "dataset"), ("evaluate", "sets")):
            content = getattr(self, name)
            if not isinstance(content, dict) or needed not in content:
                raise ConfigError(f"`{name}` must be a mapping with `{needed}`, got {content!s:.80}. Add it.")
        self.train = by_name(self.train)
        for name, instead in (("objective", "objectives"), ("seed", "seeds"), ("output_dir", "output_dir")):
            if name in self.train:
                raise ConfigError(
                    f"`train` must leave `{name}` to the comparison, got {self.train[name]!r}. Set `{instead}` next to it."
                )
        # What would only be found when students are trained already.
        for name in ("objectives", "seeds"):
            check_each_once(name, getattr(self, name))
        if "kd" in self.objectives and not (self.teacher or self.train.get("teacher")):
            raise ConfigError("`teacher` must be given for `objective` kd and only then, got none with kd. Name one.")
        datasets = self.train["dataset"] if isinstance(self.train["dataset"], list) else [self.train["dataset"]]
        if not datasets or not all(isinstance(path, (str, os.PathLike)) for path in datasets):
            raise ConfigError(
                f"`dataset` in `train` must be a text or several, got {self.train['dataset']!s:.80}. Name it."
            )
        self._check_evaluation()

    def _check_evaluation(self) -> None:
        known = {field.name for field in fields(EvaluateConfig)} - {"models", "output_dir"}
        for key in self.evaluate.keys() - known:
            raise ConfigError(f"`evaluate` has the unknown key `{key}`.{did_you_mean(str(key), known)}")
        sets = self.evaluate["sets"]
        if not isinstance(sets, list) or len(sets) != 1 or parse_set(str(sets[0])).published_corrupted:
            raise ConfigError(
                f"`sets` in `evaluate` must be a list of one set of clean images, got {sets!s:.80}. Name one."
            )
        self.evaluation([])

    def evaluation(self, models: list[str]) -> EvaluateConfig:
        """Returns the settings by which models are evaluated."""
        return EvaluateConfig(models=models, output_dir=str(expanded(self.output_dir)), **self.evaluate)


def check_each_once(name: str, given: list[Any]) -> None:
    """Refuses a setting that names nothing, or one thing twice; a ConfigError."""
    if not given:
        raise ConfigError(f"`{name}` must be at least one, got none. Leave it out for the default.")
    if len(set(given)) < len(given):
        raise ConfigError(f"`{name}` must not name one twice, got {given}. Leave one out.")


def named_model(text: str) -> tuple[str, str]:
    """Returns the name that tables show and the place of a model of `EvaluateConfig.models`, `NAME=PLACE` or a place alone."""
    match = re.match(rf"({NAME_PATTERN})=(.+)", text)
    if match:
        return match[1], match[2]
    name = Path(text).name
    return (Path(os.path.abspath(text)).name if name in ("", "..") else name), text  # noqa: PTH100 (links keep their names)


def as_arguments(flags: dict[str, Any]) -> list[str]:
    """Writes settings as a command line; None and an empty list are written as an empty value."""
    words = []
    for key, value in flags.items():
        values = value or [None] if isinstance(value, list) else [value]
        given = (json.dumps(each) if isinstance(each, dict) else each for each in values)
        words += [f"--{key}", *("" if each is None else str(each) for each in given)]
    return words

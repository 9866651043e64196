"""Sets of labelled images to evaluate on: by name, with presets for ImageNet's relatives."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

from hf_dr.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled images: where they are and how they are read.

    `{corruption}` and `{severity}` in `dataset`, `config` or `split` stand for the parts of a set that was published
    corrupted, like ImageNet-C: centre crops of 224 pixels, which are not cropped again.

    Attributes:
        name: What the table calls it.
        dataset: Hub id, Parquet file, folder of Parquet files or images, or saved Dataset.
        split: Its split.
        config: Its configuration, where it has several.
        image: Column of the images; None for the only one that there is.
        label: Column of the labels: class numbers, or WordNet ids where `classes` is given; None for `label`, or else the only
            ClassLabel column.
        classes: `imagenet`, `imagenet-a` or `imagenet-r`: its classes, a subset of ImageNet's for the latter two.
        revision: Branch, tag or commit on the Hub.
        note: What one must know of this copy before one compares numbers; it is said when the set is loaded.
        loaded: The dataset itself, where it was loaded already.
        digest: A hash of the images and labels of a dataset that was given loaded, and so has no name to tell it from others.
    """

    name: str
    dataset: str
    split: str = "test"
    config: str | None = None
    image: str | None = None
    label: str | None = None
    classes: str | None = None
    revision: str | None = None
    note: str | None = None
    loaded: datasets.Dataset | None = dataclasses.field(default=None, repr=False, compare=False)
    digest: str | None = dataclasses.field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns where the images are and how they are read, in JSON types."""
        told = {name: value for name, value in vars(self).items() if name not in ("loaded", "digest")}
        return told if self.digest is None else {**told, "digest": self.digest}

    def how_to_name(self, column: str) -> str:
        """Says how the column of the images or labels is named."""
        return f"Name it: ,{column}=COLUMN." if self.loaded is None else f"Name it: `{column}_column`."

    @property
    def published_corrupted(self) -> bool:
        return any("{corruption}" in (part or "") for part in (self.dataset, self.config, self.split))

    def part(self, corruption: str, severity: int) -> EvaluationSet:
        """Returns the images of one corruption and severity."""

        def fill(text: str) -> str:
            return text.replace("{corruption}", corruption).replace("{severity}", str(severity))

        config = None if self.config is None else fill(self.config)
        return dataclasses.replace(self, dataset=fill(self.dataset), split=fill(self.split), config=config)


PRESETS = {
    preset.name: preset
    for preset in (
        EvaluationSet("imagenet", "ILSVRC/imagenet-1k", "validation", classes="imagenet"),
        EvaluationSet(
            "imagenet-v2",
            "clip-benchmark/wds_imagenetv2",
            label="cls",
            classes="imagenet",
            note="its images were encoded again, as WebP; whether without a loss is not known. Accuracies may differ a little "
            "from those on the JPEG files that were published",
        ),
        EvaluationSet("imagenet-r", "axiong/imagenet-r", label="wnid", classes="imagenet-r"),
        EvaluationSet("imagenet-a", "barkermrl/imagenet-a", "train", classes="imagenet-a"),
        EvaluationSet("imagenet-sketch", "clip-benchmark/wds_imagenet_sketch", label="cls", classes="imagenet"),
        EvaluationSet(
            "imagenet-c",
            "WNJXYK/TTA-ImageNet-C",
            "severity_{severity}",
            "{corruption}",
            classes="imagenet",
            revision="bb0fa9db6d8f94ef279a1f6bbb8024736d542fd7",
        ),
    )
}
"""Sets that can be named without saying where they are. ImageNet-V2 is its matched-frequency part."""


_CLASS_LISTS = ("imagenet", "imagenet-a", "imagenet-r")


OPTIONS = ("config", "image", "label", "classes", "revision")


NAME_PATTERN = r"[\w.-]+"
"""What a set or a model may be called in a table, as a regular expression."""
_SPLIT = r"[\w.{}-]+(?:\[[^\]]*\])?"


def parse_set(text: str) -> EvaluationSet:
    """Reads `NAME=DATASET[:SPLIT][,OPTION=VALUE]...`, or the name of a preset; a ConfigError if it is neither.

    What is not given is taken from the preset of that name, if there is one: `imagenet-a=FOLDER:test` is a copy of it. A path
    may hold commas and colons: only a comma before a word and `=` ends it, and the colon before what can be a split's name.
    """
    head, *options = re.split(r",\s*(?=\w+=)", text)
    name, equals, place = head.partition("=")
    if not equals and name not in PRESETS:
        raise ConfigError(
            f"a set must be NAME=DATASET[:SPLIT][,OPTION=VALUE] or a preset, got {text!r}.{did_you_mean(name, PRESETS)}"
        )
    if not re.fullmatch(NAME_PATTERN, name) or (equals and not place):
        raise ConfigError(
            f"a set must have a name of letters, digits, `.`, `_` or `-` and a dataset, got {text!r}. "
            "Write NAME=DATASET[:SPLIT]."
        )
    given: dict[str, Any] = {}
    if equals:
        match = re.fullmatch(rf"(.+?):({_SPLIT}(?:\+{_SPLIT})*)", place)
        given["dataset"] = match[1] if match else place
        given |= {"revision": None, "note": None}  # the preset's are about its own dataset
        if match:
            given["split"] = match[2]
        if "{corruption}" in given["dataset"]:
            given["config"] = None
    chosen: dict[str, str] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in OPTIONS:
            raise ConfigError(f"set `{name}` has the unknown option {option!r}.{did_you_mean(key, OPTIONS)}")
        if not value:
            raise ConfigError(
                f"the option `{key}` of set `{name}` must have a value, got none. Write {key}=VALUE, or leave it out."
            )
        if key in chosen:
            raise ConfigError(f"set `{name}` must have the option `{key}` once, got {text!r}. Leave one out.")
        chosen[key] = value
    given |= chosen
    if given.get("classes", "imagenet") not in _CLASS_LISTS:
        raise ConfigError(
            f"`classes` of set `{name}` must be one of {', '.join(_CLASS_LISTS)}, got {given['classes']!r}."
            f"{did_you_mean(given['classes'], _CLASS_LISTS)}"
        )
    preset = PRESETS.get(name)
    return dataclasses.replace(preset, **given) if preset else EvaluationSet(name, **given)

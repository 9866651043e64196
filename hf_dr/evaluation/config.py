"""What is evaluated on what."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

from hf_dr.errors import ConfigError
from hf_dr.evaluation.corruptions import CORRUPTIONS, SEVERITIES, check_corruption
from hf_dr.evaluation.sets import OPTIONS, PRESETS
from hf_dr.store.named_files import FILES_FROM_HELP
from hf_dr.teacher.ensemble import PRECISIONS


@dataclass
class EvaluateConfig:
    """What is evaluated on what.

    Raises:
        ConfigError: A value is out of range or a name is unknown.
    """

    models: list[str] = field(
        metadata={
            "help": "Checkpoints: transformers folders (as `train` writes them), Hub ids, timm:ARCHITECTURE@FILE.safetensors; "
            "NAME=CHECKPOINT gives the name that the table shows."
        }
    )
    sets: list[str] = field(
        metadata={
            "help": "NAME=DATASET[:SPLIT][,OPTION=VALUE]..., e.g. test=uoft-cs/cifar100:test,label=fine_label; the dataset is "
            f"a Hub id, a folder or a Parquet file; options are {', '.join(OPTIONS)} (column names; classes is imagenet, "
            f"imagenet-a or imagenet-r). Or a preset: {', '.join(PRESETS)}; NAME=DATASET reads it from elsewhere. "
            "{corruption} and {severity} may stand in a DATASET that is published corrupted."
        }
    )
    output_dir: str = field(metadata={"help": "Where evaluation.md, evaluation.json and reliability.png are written."})
    files_from: list[str] = field(default_factory=list, metadata={"help": FILES_FROM_HELP})
    corrupt: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Names of sets to evaluate also under the corruption suite. It is made for comparisons within a table: "
            "published numbers are those of imagenet-c."
        },
    )
    corruptions: list[str] = field(
        default_factory=list, metadata={"help": f"Which corruptions: {', '.join(CORRUPTIONS)}. Default: all."}
    )
    severities: list[int] = field(default_factory=list, metadata={"help": "Which severities, 1 to 5. Default: all."})
    max_examples: int | None = field(
        default=None, metadata={"help": "Take this many examples, evenly spread over each set. Default: all."}
    )
    batch_size: int = field(default=64, metadata={"help": "Images at a time."})
    num_workers: int = field(
        default=0, metadata={"help": "Processes that decode and corrupt; 0: the main process does it."}
    )
    device: str | None = field(default=None, metadata={"help": "Default: cuda if there is one, else cpu."})
    precision: str = field(default="fp32", metadata={"help": "Of the models.", "choices": list(PRECISIONS)})
    seed: int = field(default=0, metadata={"help": "Seed of the corruptions."})
    size: int | None = field(
        default=None,
        metadata={"help": "Side in pixels of the models' input. Default: each model's own, as the next three."},
    )
    crop: float | None = field(default=None, metadata={"help": "Share of the resized side that the centre crop keeps."})
    mean: list[float] = field(default_factory=list, metadata={"help": "Of the input, three numbers from 0 to 1."})
    std: list[float] = field(default_factory=list, metadata={"help": "Of the input, three numbers from 0 to 1."})

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_examples", "size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"`{name}` must be a whole number of at least 1, got {value}.")
        if self.crop is not None and not 0 < self.crop <= 1:
            raise ConfigError(f"`crop` must be above 0 and at most 1, got {self.crop}.")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, 3):
                raise ConfigError(f"`{name}` must be three numbers, got {len(getattr(self, name))}.")
        for key in self.corruption_keys():
            check_corruption(*key)

    def corruption_keys(self) -> list[tuple[str, int]]:
        """Returns the corruptions with each of their severities."""
        return list(product(self.corruptions or CORRUPTIONS, self.severities or SEVERITIES))

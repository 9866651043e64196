"""The flags that several commands share, as dataclasses; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_dr.settings import FILES_FROM_HELP, OpsOrName, Real, check_settings
from hf_dr.teacher.names import PRECISIONS
from hf_dr.views.names import NAMED

FEATURES_FILE = "features.yaml"
"""The file next to a recipe that describes the recipe's dataset, for rehearsals."""


@dataclass
class BaseArguments:
    """Which dataset is reinforced."""

    dataset: str = field(
        metadata={"help": "Hub id, Parquet file, folder of Parquet files or images, or saved Dataset."}
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of the dataset, where it has several."}
    )
    split: str = field(default="train", metadata={"help": "Split of the dataset."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the dataset on the Hub."})


@dataclass
class PlusArguments:
    """Which configuration of a "+" dataset is meant, and where an overlay finds its images."""

    name: str | None = field(default=None, metadata={"help": 'Configuration of the "+" dataset, where it has several.'})
    base: str | None = field(
        default=None, metadata={"help": "For an overlay: the base dataset with the images, as for reinforce."}
    )
    base_config: str | None = field(
        default=None, metadata={"help": "Configuration of the base dataset, where it has several."}
    )
    base_revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit of the base dataset. Default: the one that was reinforced."},
    )
    files_from: list[str] = field(default_factory=list, metadata={"help": FILES_FROM_HELP, "metavar": "DIR"})
    revision: str | None = field(
        default=None, metadata={"help": 'Branch, tag or commit of the "+" dataset on the Hub.'}
    )


@dataclass
class TeacherArguments:
    """Which teacher labels which views."""

    teacher: list[str] = field(
        metadata={
            "help": "One or several of: Hub id of a timm or transformers classifier (pin it with @revision), transformers "
            "folder, timm:ARCHITECTURE@FILE.safetensors, or a folder of `teach --folds`. Probabilities of several are averaged."
        }
    )
    teacher_classes: str | None = field(
        default=None,
        metadata={
            "help": "Where the dataset has a subset of the teacher's classes: `by_name`, a timm list such as imagenet-a or "
            "imagenet-r, or a JSON file with the teacher's index (or name) for each class of the dataset."
        },
    )
    precision: str = field(
        default="fp32",
        metadata={"help": "Floating-point type in which the teacher computes.", "choices": list(PRECISIONS)},
    )
    teacher_temperature: float = field(
        default=1.0,
        metadata={
            "help": "Divide the logarithm of the teacher's probabilities by this number, as `hf-dr calibrate` finds it. 1 "
            "changes nothing.",
            "type": Real(0, above=True),
        },
    )
    compile: bool = field(default=False, metadata={"help": "Compile the teacher with torch.compile."})
    augmentation: OpsOrName = field(
        default="randaug",
        metadata={"help": f"One of {', '.join(NAMED)}; or a YAML file with an `augmentation` list of ops."},
    )
    size: int = field(default=224, metadata={"help": "Side in pixels of the views of a named augmentation."})

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass
class RunArguments:
    """How the run behaves."""

    dry_run: bool = field(
        default=False,
        metadata={"help": "Check everything, time a few batches, print hours and bytes, and write nothing."},
    )
    part: str = field(
        default="0/1",
        metadata={
            "help": "I/N: make only every N-th shard, starting with shard I. For N launches that share the folder but do not "
            "communicate, such as the nodes of a cluster. A shard that a stopped launch left unfinished is made when that "
            "part, or the whole, is run again."
        },
    )


@dataclass
class SmokeArguments:
    """Whether it is only a rehearsal."""

    smoke: bool = field(
        default=False,
        metadata={
            "help": "Rehearse: a few steps on tiny generated data and networks in place of the real ones, in seconds. "
            f"Needs a --config whose folder has a {FEATURES_FILE}. What the rehearsal makes is removed."
        },
    )

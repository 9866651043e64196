"""The flags that several commands share, as dataclasses; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from hf_dr.settings import FILES_FROM_HELP, OpsOrName, Real, check_settings, flag
from hf_dr.teacher.names import PRECISIONS
from hf_dr.views.names import NAMED

FEATURES_FILE = "features.yaml"
"""The file next to a recipe that describes the recipe's dataset, for rehearsals."""


@dataclass
class BaseArguments:
    """Which dataset is reinforced."""

    dataset: str = flag(
        "Hub id, Parquet file, folder of Parquet files or images, or saved Dataset. It may stand first, without a "
        "flag: hf-dr reinforce photos/ ..."
    )
    dataset_config: str | None = flag("Configuration of the dataset, where it has several.", default=None)
    split: str = flag("Split of the dataset.", default="train")
    revision: str | None = flag("Branch, tag or commit of the dataset on the Hub.", default=None)


@dataclass
class PlusArguments:
    """Which configuration of a "+" dataset is meant, and where an overlay finds its images."""

    name: str | None = flag('Configuration of the "+" dataset, where it has several.', default=None)
    base: str | None = flag("For an overlay: the base dataset with the images, as for reinforce.", default=None)
    base_config: str | None = flag("Configuration of the base dataset, where it has several.", default=None)
    base_revision: str | None = flag(
        "Branch, tag or commit of the base dataset. Default: the one that was reinforced.", default=None
    )
    files_from: list[str] = flag(FILES_FROM_HELP, default=[], metavar="DIR")
    revision: str | None = flag('Branch, tag or commit of the "+" dataset on the Hub.', default=None)


@dataclass
class TeacherArguments:
    """Which teacher labels which views."""

    teacher: list[str] = flag(
        "One or several of: Hub id of a timm or transformers classifier (pin it with @revision), transformers "
        "folder, timm:ARCHITECTURE@FILE.safetensors, or a folder of `teach --folds`. Probabilities of several are averaged."
    )
    teacher_classes: str | None = flag(
        "Where the dataset has a subset of the teacher's classes: `by_name`, a timm list such as imagenet-a or "
        "imagenet-r, or a JSON file with the teacher's index (or name) for each class of the dataset.",
        default=None,
    )
    precision: str = flag(
        "Floating-point type in which the teacher computes.", default="fp32", choices=list(PRECISIONS)
    )
    teacher_temperature: float = flag(
        "Divide the logarithm of the teacher's probabilities by this number, as `hf-dr calibrate` finds it. 1 "
        "changes nothing.",
        default=1.0,
        type=Real(0, above=True),
    )
    compile: bool = flag("Compile the teacher with torch.compile.", default=False)
    augmentation: OpsOrName = flag(
        f"One of {', '.join(NAMED)}; or a YAML file with an `augmentation` list of ops.", default="randaug"
    )
    size: int = flag("Side in pixels of the views of a named augmentation.", default=224)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass
class RunArguments:
    """How the run behaves."""

    dry_run: bool = flag(
        "Check everything, time a few batches, print hours and bytes, and write nothing.", default=False
    )
    part: str = flag(
        "I/N: make only every N-th shard, starting with shard I. For N launches that share the folder but do not "
        "communicate, such as the nodes of a cluster. A shard that a stopped launch left unfinished is made when that "
        "part, or the whole, is run again.",
        default="0/1",
    )


@dataclass
class SmokeArguments:
    """Whether it is only a rehearsal."""

    smoke: bool = flag(
        "Rehearse: a few steps on tiny generated data and networks in place of the real ones, in seconds. "
        f"Needs a --config whose folder has a {FEATURES_FILE}. What the rehearsal makes is removed.",
        default=False,
    )

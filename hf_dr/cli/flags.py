"""The flags that several commands share, and those of a training, as dataclasses; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hf_dr.cli.early import Lazy
from hf_dr.errors import ConfigError
from hf_dr.settings import (
    FILES_FROM_HELP,
    IMAGE_COLUMN_HELP,
    LABEL_COLUMN_HELP,
    MODEL_ARGS_HELP,
    TEACHER_CLASSES_HELP,
    TEACHER_HELP,
    JsonOrMapping,
    OpsOrName,
    Real,
    Whole,
    check_settings,
    flag,
)
from hf_dr.teacher.names import PRECISIONS
from hf_dr.training.reinforced_settings import ReinforcedSettings
from hf_dr.views.names import NAMED

FEATURES_FILE = "features.yaml"
"""The file next to a recipe that describes the recipe's dataset, for rehearsals."""


@dataclass
class BaseArguments:
    """Which dataset is reinforced."""

    dataset: str = flag(
        "Hub id, Parquet file, folder of Parquet files or images, or saved Dataset. It may stand first, without the flag."
    )
    dataset_config: str | None = flag("Configuration of the dataset, where it has several.", default=None)
    split: str = flag("Split of the dataset.", default="train")
    revision: str | None = flag("Branch, tag or commit of the dataset on the Hub.", default=None)


@dataclass
class PlusArguments:
    """Which configuration of a "+" dataset is meant, and where an overlay finds its images."""

    name: str | None = flag('Configuration of the "+" dataset, where it has several.', default=None)
    base: str | None = flag("The base dataset with the images, for an overlay; named as for reinforce.", default=None)
    base_config: str | None = flag("Configuration of the base dataset, where it has several.", default=None)
    base_revision: str | None = flag(
        "Branch, tag or commit of the base dataset. Default: the one that was reinforced.", default=None
    )
    files_from: list[str] = flag(FILES_FROM_HELP, default=[], metavar="DIR")
    revision: str | None = flag('Branch, tag or commit of the "+" dataset on the Hub.', default=None)


@dataclass
class TeacherArguments:
    """Which teacher labels which views."""

    teacher: list[str] = flag(TEACHER_HELP)
    teacher_classes: str | None = flag(TEACHER_CLASSES_HELP, default=None)
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
    size: int | None = flag("Side in pixels of the views of a named augmentation. Default: 224.", default=None)

    def __post_init__(self) -> None:
        check_settings(self)


def check_classes(classes: str | None, teacher: Sequence[str] | None) -> None:
    """Refuses classes of a teacher that is not named; where a provenance names one, it has them as well."""
    if classes and not teacher:
        raise ConfigError(
            f"`teacher_classes` must come with a teacher, got {classes!r} without. Name it, or leave it out."
        )


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


TRAINING = Lazy("hf_dr.training.arguments", "ReinforcedTrainingArguments", ReinforcedSettings)
"""The settings of training: transformers' own and those of `ReinforcedSettings`."""


@dataclass
class StudentArguments:
    """Who learns what, from which data."""

    dataset: list[str] = flag(
        'Folder or Hub id of the "+" dataset. The views of several datasets, all of one base, are added up. With '
        "--augmentation, a base dataset, named as for reinforce. It may stand first, without the flag."
    )
    student: str = flag("timm:ARCHITECTURE for fresh weights; else a Hub id or folder to fine-tune.")
    name: list[str] = flag(
        'Configuration of the "+" dataset, where it has several. The views of several configurations are added '
        "up as well; of several datasets, name one configuration for all, or one for each.",
        default=[],
    )
    streaming: bool = flag("Read shard by shard instead of fetching and converting all first.", default=False)
    base: str | None = flag("The base dataset with the images, for an overlay.", default=None)
    base_config: str | None = flag("Configuration of the base.", default=None)
    base_revision: str | None = flag(
        "Branch, tag or commit of the base. Default: the one that was reinforced.", default=None
    )
    files_from: list[str] = flag(FILES_FROM_HELP, default=[])
    revision: str | None = flag('Branch, tag or commit of the "+" dataset on the Hub.', default=None)
    unreinforced: bool = flag(
        "Also train on those rows of the base that have no stored views, by their labels.", default=False
    )
    objective: str = flag(
        "`reinforced`: stored views and answers; `erm`: newly drawn views and labels; `kd`: newly drawn views "
        "and a teacher in memory. Data path, model, optimizer and steps are the same.",
        default="reinforced",
        choices=["reinforced", "erm", "kd"],
    )
    teacher: list[str] = flag(f"Only for --objective kd. {TEACHER_HELP}", default=[])
    teacher_classes: str | None = flag(f"Only for --objective kd. {TEACHER_CLASSES_HELP}", default=None)
    model_args: JsonOrMapping = flag(MODEL_ARGS_HELP, default="{}")
    eval_dataset: str | None = flag("Dataset with images and labels to evaluate on.", default=None)
    eval_config: str | None = flag("Its configuration, where it has several.", default=None)
    eval_split: str = flag("Its split.", default="test")
    eval_revision: str | None = flag("Its branch, tag or commit on the Hub.", default=None)
    calibrate_split: str | None = flag(
        "After the training, divide the logits by the temperature that fits the images of this split of --eval_dataset best. "
        "The last layer's weights take it in. Neither the training nor --eval_split should have these images: of a set that "
        "has no split to spare, calibrate by test[:1000] and evaluate on test[1000:].",
        default=None,
    )
    eval_crop: float | None = flag(
        "Share of the resized side that the centre crop of an evaluation keeps. Default: 0.875, or what the image "
        "processor of a student that is fine-tuned does, which is saved with it and wins over this flag.",
        default=None,
        type=Real(0, 1, above=True),
    )
    num_views: int | None = flag("Use only the first N stored views of each row.", default=None)
    augmentation: OpsOrName | None = flag(
        "For erm and kd on a base dataset that need not be reinforced: what draws its views, as for reinforce. "
        'Without it they are drawn as those of the "+" dataset were.',
        default=None,
    )
    size: int | None = flag(
        'Side in pixels of the views: 224, or that of the "+" dataset, which must agree.', default=None, type=Whole(1)
    )
    split: str | None = flag("Only with --augmentation. Split of the dataset. Default: train.", default=None)
    image_column: str | None = flag(f"Only with --augmentation. {IMAGE_COLUMN_HELP}", default=None)
    label_column: str | None = flag(f"Only with --augmentation. {LABEL_COLUMN_HELP}", default=None)

    def __post_init__(self) -> None:
        check_settings(self)
        self._check_objective()
        self._check_data()

    @property
    def plain(self) -> bool:
        """Whether the data is a base dataset, whose views are drawn as they come."""
        return self.augmentation is not None

    def _check_objective(self) -> None:
        if self.plain and self.objective == "reinforced":
            raise ConfigError(
                "`augmentation` must come with `objective` erm or kd, got reinforced: stored views have their own. Leave "
                "it out."
            )
        if (self.objective == "kd") != bool(self.teacher):
            raise ConfigError(
                f"`teacher` must be given for `objective` kd and only then, got {self.teacher or 'none'} with "
                f"{self.objective}. {'Leave it out' if self.teacher else 'Name one'}."
            )
        check_classes(self.teacher_classes, self.teacher)

    def _check_data(self) -> None:
        parts = {"calibrate_split": "split", "eval_config": "configuration", "eval_revision": "revision"}
        for name, part in parts.items():
            if getattr(self, name) is not None and self.eval_dataset is None:
                raise ConfigError(
                    f"`{name}` must come with the `eval_dataset` of which it is a {part}, got {getattr(self, name)!r} alone. "
                    "Name both, or leave it out."
                )
        if self.plain and len(self.dataset) + len(self.name) > 2:
            raise ConfigError(
                f"`dataset` must be one base dataset with `augmentation`, got {', '.join(self.dataset + self.name)}."
            )
        misplaced: tuple[str, ...] = ("split", "image_column", "label_column")
        what, how = "a base dataset", "with"
        if self.plain:
            misplaced = ("streaming", "base", "base_config", "base_revision", "unreinforced", "num_views")
            what, how = 'a "+" dataset', "without"
        for name in misplaced:
            if getattr(self, name):
                raise ConfigError(
                    f"`{name}` is for {what}, which is read {how} `augmentation`, got {getattr(self, name)!r}. Leave it out."
                )

"""The settings of a student's training, which are read and explained without torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_dr.cli.early import Lazy
from hf_dr.errors import ConfigError
from hf_dr.settings import FILES_FROM_HELP, JsonOrMapping, OpsOrName, Real, Whole, check_settings
from hf_dr.training.reinforced_settings import ReinforcedSettings

TRAINING = Lazy("hf_dr.training.arguments", "ReinforcedTrainingArguments", ReinforcedSettings)
"""The settings of training: transformers' own and those of `ReinforcedSettings`."""


@dataclass
class StudentArguments:
    """Who learns what, from which data."""

    dataset: list[str] = field(
        metadata={
            "help": 'Folder or Hub id of the "+" dataset. The views of several datasets, all of one base, are added up. With '
            "--augmentation, a base dataset, as for reinforce."
        }
    )
    student: str = field(
        metadata={"help": "timm:ARCHITECTURE for fresh weights; else a Hub id or folder to fine-tune."}
    )
    name: list[str] = field(
        default_factory=list,
        metadata={
            "help": 'Configuration of the "+" dataset, where it has several. The views of several configurations are added '
            "up as well; of several datasets, name one configuration for all, or one for each."
        },
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read shard by shard instead of fetching and converting all first."}
    )
    base: str | None = field(default=None, metadata={"help": "For an overlay: the base dataset with the images."})
    base_config: str | None = field(default=None, metadata={"help": "Configuration of the base."})
    base_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the base. Default: the one that was reinforced."}
    )
    files_from: list[str] = field(default_factory=list, metadata={"help": FILES_FROM_HELP})
    revision: str | None = field(
        default=None, metadata={"help": 'Branch, tag or commit of the "+" dataset on the Hub.'}
    )
    unreinforced: bool = field(
        default=False,
        metadata={"help": "Also train on those rows of the base that have no stored views, by their labels."},
    )
    objective: str = field(
        default="reinforced",
        metadata={
            "help": "`reinforced`: stored views and answers; `erm`: newly drawn views and labels; `kd`: newly drawn views "
            "and a teacher in memory. Data path, model, optimizer and steps are the same.",
            "choices": ["reinforced", "erm", "kd"],
        },
    )
    teacher: list[str] = field(default_factory=list, metadata={"help": "For --objective kd: as for reinforce."})
    teacher_classes: str | None = field(default=None, metadata={"help": "For --objective kd: as for reinforce."})
    model_args: JsonOrMapping = field(
        default="{}", metadata={"help": "For timm: JSON with arguments of timm.create_model."}
    )
    eval_dataset: str | None = field(default=None, metadata={"help": "Dataset with images and labels to evaluate on."})
    eval_split: str = field(default="test", metadata={"help": "Its split."})
    eval_revision: str | None = field(default=None, metadata={"help": "Its branch, tag or commit on the Hub."})
    eval_crop: float | None = field(
        default=None,
        metadata={
            "help": "Share of the resized side that the centre crop of an evaluation keeps. Default: 0.875, or what the image "
            "processor of a student that is fine-tuned does, which is saved with it and wins over this flag.",
            "type": Real(0, 1, above=True),
        },
    )
    num_views: int | None = field(
        default=None, metadata={"help": "Use only the first N stored views of each row.", "type": Whole(1)}
    )
    augmentation: OpsOrName | None = field(
        default=None,
        metadata={
            "help": "For erm and kd on a base dataset that need not be reinforced: what draws its views, as for reinforce. "
            'Without it they are drawn as those of the "+" dataset were.'
        },
    )
    size: int | None = field(
        default=None,
        metadata={"help": 'Side in pixels of the views: 224, or that of the "+" dataset, which must agree.'},
    )
    split: str | None = field(default=None, metadata={"help": "With --augmentation: the split. Default: train."})
    image_column: str | None = field(default=None, metadata={"help": "With --augmentation: as for reinforce."})
    label_column: str | None = field(default=None, metadata={"help": "With --augmentation: as for reinforce."})

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
                f"{self.objective}."
            )
        if self.teacher_classes and self.objective != "kd":
            raise ConfigError(
                f"`teacher_classes` must be left out without a teacher, got {self.teacher_classes!r} with the objective "
                f"{self.objective}. Leave it out."
            )

    def _check_data(self) -> None:
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

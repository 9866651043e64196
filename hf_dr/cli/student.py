"""The settings of a student's training, which are read and explained without torch."""

from __future__ import annotations

from dataclasses import dataclass

from hf_dr.cli.early import Lazy
from hf_dr.errors import ConfigError
from hf_dr.settings import FILES_FROM_HELP, JsonOrMapping, OpsOrName, Real, check_settings, flag
from hf_dr.training.reinforced_settings import ReinforcedSettings

TRAINING = Lazy("hf_dr.training.arguments", "ReinforcedTrainingArguments", ReinforcedSettings)
"""The settings of training: transformers' own and those of `ReinforcedSettings`."""


@dataclass
class StudentArguments:
    """Who learns what, from which data."""

    dataset: list[str] = flag(
        'Folder or Hub id of the "+" dataset. The views of several datasets, all of one base, are added up. With '
        "--augmentation, a base dataset, as for reinforce. It may stand first, without a flag: hf-dr train photos-plus ..."
    )
    student: str = flag("timm:ARCHITECTURE for fresh weights; else a Hub id or folder to fine-tune.")
    name: list[str] = flag(
        'Configuration of the "+" dataset, where it has several. The views of several configurations are added '
        "up as well; of several datasets, name one configuration for all, or one for each.",
        default=[],
    )
    streaming: bool = flag("Read shard by shard instead of fetching and converting all first.", default=False)
    base: str | None = flag("For an overlay: the base dataset with the images.", default=None)
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
    teacher: list[str] = flag("For --objective kd: as for reinforce.", default=[])
    teacher_classes: str | None = flag("For --objective kd: as for reinforce.", default=None)
    model_args: JsonOrMapping = flag("For timm: JSON with arguments of timm.create_model.", default="{}")
    eval_dataset: str | None = flag("Dataset with images and labels to evaluate on.", default=None)
    eval_split: str = flag("Its split.", default="test")
    eval_revision: str | None = flag("Its branch, tag or commit on the Hub.", default=None)
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
        'Side in pixels of the views: 224, or that of the "+" dataset, which must agree.', default=None
    )
    split: str | None = flag("With --augmentation: the split. Default: train.", default=None)
    image_column: str | None = flag("With --augmentation: as for reinforce.", default=None)
    label_column: str | None = flag("With --augmentation: as for reinforce.", default=None)

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

"""What a run makes and where."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from hf_dr.errors import ConfigError, did_you_mean
from hf_dr.settings import (
    FILES_FROM_HELP,
    IMAGE_COLUMN_HELP,
    Place,
    Whole,
    check_kind,
    check_settings,
    documented,
    flag,
)
from hf_dr.store.schema import KEEP, is_safe_name
from hf_dr.teacher.names import SIGNALS, TOPK
from hf_dr.views.names import AUGMENT_ON


@documented
@dataclass
class ReinforceConfig:
    """What a run makes and where. The command line and YAML files have the same names.

    Raises:
        ConfigError: A value is impossible.
    """

    output_dir: str = flag('Folder of the "+" dataset. Running again resumes; other configurations stay.', type=Place())
    config_name: str | None = flag(
        "Name under which load_dataset finds it. Default: the augmentation's name, or default.", default=None
    )
    num_views: int = flag("Views per example, V.", default=8, type=Whole(1))
    num_candidates: int | None = flag(
        "Draw this number of views of each example, ask the teacher about all of them, and store the `num_views` views that "
        "`keep` selects. Default: `num_views`, so all are stored.",
        default=None,
    )
    keep: str | None = flag(
        "Which candidates are stored, where there are more than `num_views`: those with the lowest or highest entropy of the "
        "teacher's answer over all its classes, or those with the lowest or highest cross-entropy to the label.",
        default=None,
        choices=list(KEEP),
    )
    top_k: int | None = flag(
        "Classes kept of each answer, K; at most the number of the teacher's classes. Default: 10, or all of fewer.",
        default=None,
        type=Whole(1),
    )
    signal: str = flag(
        "What is stored of each answer: the `topk` classes; these and a tail for each image (`topk_image_tail`); or K "
        "classes `sampled` so that the answer is right on average.",
        default=TOPK,
        choices=list(SIGNALS),
    )
    seed: int = flag(
        "Seed of the augmentation parameters, mixing partners and samples.", default=0, type=Whole(0, (1 << 63) - 1)
    )
    overlay: bool = flag(
        "Leave the images and other files out, where a licence forbids copying them. Default: copy them.", default=False
    )
    image_column: str | None = flag(IMAGE_COLUMN_HELP, default=None)
    label_column: str | None = flag(
        "Column of the labels, or `none`. Default: `label`, else the only ClassLabel column.", default=None
    )
    max_examples: int | None = flag(
        "Reinforce only this number of examples, from the first one on.", default=None, type=Whole(1)
    )
    on_bad_image: str = flag(
        "`error` stops at an image that cannot be decoded; `skip` leaves its row without a reinforcement.",
        default="error",
        choices=["error", "skip"],
    )
    mixing_scope: str = flag(
        "Where mixing partners come from: the whole `dataset`, or the same `shard` (needed for streaming).",
        default="dataset",
        choices=["dataset", "shard"],
    )
    files_from: list[str] = flag(FILES_FROM_HELP, default=[])
    shard_size: int | None = flag(
        "Examples in each file. A run that is stopped loses the files that it was writing. Default: 1024, or an "
        "eighth of a smaller dataset.",
        default=None,
        type=Whole(1),
    )
    batch_size: int = flag(
        "Views in a batch of the teacher on a GPU. On a CPU it is always 16, so that results never depend on it.",
        default=64,
        type=Whole(1),
    )
    num_workers: int | None = flag(
        "Workers of each launched process: on a GPU, processes that decode and augment; on a CPU, threads that also run "
        "the teacher. Default: by the number of cores.",
        default=None,
        type=Whole(0),
    )
    augment_on: str = flag(
        "Where views are made: on the `cpu` by Pillow, or on the teacher's `device`, with the same pixels. `auto` takes a "
        "GPU where it can make them all, and says so where it cannot.",
        default="auto",
        choices=list(AUGMENT_ON),
    )
    allow_disagreement: bool = flag(
        "Go on where the teacher's most probable class is the label no more often than by chance. Default: a sample of "
        "rows is labelled first, and such a teacher is refused.",
        default=False,
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.num_candidates is not None:
            Whole(self.num_views).check("num_candidates", self.num_candidates)
        if self.keep is None and self.selects:
            raise ConfigError(
                f"`keep` must say which {self.num_views} of {self.num_candidates} candidates are stored, got none. Give one "
                f"of {', '.join(KEEP)}."
            )
        if self.keep is not None and self.num_candidates is None:
            raise ConfigError(f"`keep` must come with `num_candidates`, got {self.keep} without. Give both or neither.")
        if self.config_name is not None:
            _check_name(self.config_name)

    @property
    def selects(self) -> bool:
        """Whether the stored views are chosen among more candidates."""
        return self.num_candidates not in (None, self.num_views)


def check_config(config: Any, kind: type) -> None:
    """Refuses a folder or anything else in the place of settings, and settings that were changed since; a ConfigError."""
    advice = f"Make one: `{kind.__name__}(output_dir=...)`."
    check_kind("config", config, kind, f"of the class {kind.__name__}", advice)
    config.__post_init__()
    known = {own.name for own in fields(config)}
    for name in vars(config).keys() - known:
        raise ConfigError(f"{kind.__name__} has no setting `{name}`.{did_you_mean(name, known)}")


def _check_name(config_name: str) -> None:
    if not is_safe_name(config_name) or config_name == "data":
        raise ConfigError(
            f"`config_name` must be a plain name (letters, digits, '_', '-', '.'; not 'data'), got {config_name!r}."
        )


_METADATA = {setting.name: setting.metadata for setting in fields(ReinforceConfig)}


@documented
@dataclass
class ExtendConfig:
    """What is added and where the result goes; all else is as the provenance says.

    Raises:
        ConfigError: A value is impossible.
    """

    output_dir: str = flag(
        'Folder of the new "+" dataset, another than that of the old one. Running again resumes.', type=Place()
    )
    num_views: int | None = flag(
        "Views per example of the new dataset, V: the stored ones and more.", default=None, type=Whole(1)
    )
    batch_size: int = field(default=64, metadata=_METADATA["batch_size"])
    num_workers: int | None = field(default=None, metadata=_METADATA["num_workers"])
    augment_on: str = field(default="auto", metadata=_METADATA["augment_on"])
    allow_disagreement: bool = field(default=False, metadata=_METADATA["allow_disagreement"])

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass
class ImportConfig:
    """What an import writes and how it finds the rows; see each field's help."""

    output_dir: str = field(metadata=_METADATA["output_dir"])
    config_name: str = flag("Name under which load_dataset finds it.", default="default")
    overlay: bool = flag("Leave the images and other files out, where a licence forbids copying them.", default=False)
    image_column: str | None = field(default=None, metadata=_METADATA["image_column"])
    label_column: str | None = field(default=None, metadata=_METADATA["label_column"])
    order: str = flag(
        "Which row of the base is image i. `position`: row i. `imagefolder`: the i-th by class folder and file "
        "name, as torchvision's ImageFolder sorts them. Or a file, a JSON list or lines: for each i the row or file name.",
        default="position",
    )
    files_from: list[str] = flag(FILES_FROM_HELP, default=[])
    shard_size: int | None = field(default=None, metadata=_METADATA["shard_size"])
    num_workers: int | None = flag(
        "Processes that read files. Default: one for each core, if there are many files.", default=None, type=Whole(0)
    )
    allow_disagreement: bool = flag("Continue where the teacher's answers do not fit the labels.", default=False)

    def __post_init__(self) -> None:
        check_settings(self)
        _check_name(self.config_name)


@dataclass
class ExportConfig:
    """What an export writes and where; see each field's help."""

    output_dir: str = flag("Folder of the shards. Running again resumes.", type=Place())
    format: str = flag(
        "`webdataset`: tar files, as WebDataset and open_clip read them.", default="webdataset", choices=["webdataset"]
    )
    shard_size: int | None = flag(
        'Examples in each tar file. Default: those of the "+" dataset.', default=None, type=Whole(1)
    )

    def __post_init__(self) -> None:
        check_settings(self)

"""What a run makes and where."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from hf_dr.errors import ConfigError
from hf_dr.settings import FILES_FROM_HELP, Whole, check_settings
from hf_dr.store.schema import KEEP, is_safe_name
from hf_dr.teacher.names import SIGNALS, TOPK


def _help(text: str, **more: Any) -> dict[str, Any]:
    return {"help": text, **more}


@dataclass
class ReinforceConfig:
    """What a run makes and where. See each field's help; the command line and YAML files have the same names.

    Raises:
        ConfigError: A value is impossible.
    """

    output_dir: str = field(metadata=_help('Folder of the "+" dataset. Running again resumes; other configs stay.'))
    config_name: str | None = field(
        default=None,
        metadata=_help("Name under which load_dataset finds it. Default: the augmentation's name, or default."),
    )
    num_views: int = field(default=8, metadata=_help("Views per example, V.", type=Whole(1)))
    num_candidates: int | None = field(
        default=None,
        metadata=_help(
            "Draw this number of views of each example, ask the teacher about all of them, and store the num_views views that "
            "--keep selects. Default: num_views, so all are stored."
        ),
    )
    keep: str | None = field(
        default=None,
        metadata=_help(
            "Which candidates are stored, where there are more than num_views: those with the lowest or highest entropy of the "
            "teacher's answer over all its classes, or those with the lowest or highest cross-entropy to the label.",
            choices=list(KEEP),
        ),
    )
    top_k: int = field(
        default=10,
        metadata=_help("Classes kept of each answer, K; at most the number of the teacher's classes.", type=Whole(1)),
    )
    signal: str = field(
        default=TOPK,
        metadata=_help(
            "What is stored of each answer: the `topk` classes; these and a tail for each image (`topk_image_tail`); or K "
            "classes `sampled` so that the answer is right on average.",
            choices=list(SIGNALS),
        ),
    )
    seed: int = field(
        default=0,
        metadata=_help(
            "Seed of the augmentation parameters, mixing partners and samples.", type=Whole(0, (1 << 63) - 1)
        ),
    )
    overlay: bool = field(
        default=False, metadata=_help("Leave the images out, where a licence forbids copying them. Default: copy them.")
    )
    image_column: str | None = field(
        default=None, metadata=_help("Column of the images. Default: the only Image column.")
    )
    label_column: str | None = field(
        default=None,
        metadata=_help("Column of the labels, or `none`. Default: `label`, else the only ClassLabel column."),
    )
    max_examples: int | None = field(
        default=None, metadata=_help("Reinforce only this number of examples, from the first one on.", type=Whole(1))
    )
    on_bad_image: str = field(
        default="error",
        metadata=_help(
            "`error` stops at an image that cannot be decoded; `skip` leaves its row without a reinforcement.",
            choices=["error", "skip"],
        ),
    )
    mixing_scope: str = field(
        default="dataset",
        metadata=_help(
            "Where mixing partners come from: the whole `dataset`, or the same `shard` (needed for streaming).",
            choices=["dataset", "shard"],
        ),
    )
    files_from: list[str] = field(default_factory=list, metadata=_help(FILES_FROM_HELP))
    shard_size: int | None = field(
        default=None,
        metadata=_help(
            "Examples in each file. A run that is stopped loses the files that it was writing. Default: 1024, or an "
            "eighth of a smaller dataset.",
            type=Whole(1),
        ),
    )
    batch_size: int = field(
        default=64,
        metadata=_help(
            "Views in a batch of the teacher on a GPU. On a CPU it is always 16, so that results never depend on it.",
            type=Whole(1),
        ),
    )
    num_workers: int | None = field(
        default=None,
        metadata=_help(
            "Workers of each launched process: on a GPU, processes that decode and augment; on a CPU, threads that also run "
            "the teacher. Default: by the number of cores.",
            type=Whole(0),
        ),
    )
    augment_on: str = field(
        default="auto",
        metadata=_help(
            "Where views are made: on the `cpu` by Pillow, or on the teacher's `device`, with the same pixels. `auto` takes a "
            "GPU where it can make them all, and says so where it cannot.",
            choices=["auto", "cpu", "device"],
        ),
    )
    allow_disagreement: bool = field(
        default=False,
        metadata=_help(
            "Go on where the teacher's most probable class is the label no more often than by chance. Default: a sample of "
            "rows is labelled first, and such a teacher is refused."
        ),
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
        if self.config_name is not None and (not is_safe_name(self.config_name) or self.config_name == "data"):
            raise ConfigError(
                f"`config_name` must be a plain name (letters, digits, '_', '-', '.'; not 'data'), got {self.config_name!r}."
            )

    @property
    def selects(self) -> bool:
        """Whether the stored views are chosen among more candidates."""
        return self.num_candidates not in (None, self.num_views)


_METADATA = {setting.name: setting.metadata for setting in fields(ReinforceConfig)}


@dataclass
class ExtendConfig:
    """What is added and where the result goes; all else is as the provenance says.

    Raises:
        ConfigError: A value is impossible.
    """

    output_dir: str = field(
        metadata={"help": 'Folder of the new "+" dataset, another than that of the old one. Running again resumes.'}
    )
    num_views: int | None = field(
        default=None,
        metadata={"help": "Views per example of the new dataset, V: the stored ones and more.", "type": Whole(1)},
    )
    batch_size: int = field(default=64, metadata=_METADATA["batch_size"])
    num_workers: int | None = field(default=None, metadata=_METADATA["num_workers"])
    augment_on: str = field(default="auto", metadata=_METADATA["augment_on"])
    allow_disagreement: bool = field(default=False, metadata=_METADATA["allow_disagreement"])

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass
class ImportConfig:
    """What an import writes and how it finds the rows; see each field's help.

    Raises:
        ConfigError: A value is impossible.
    """

    output_dir: str = field(metadata={"help": 'Folder of the "+" dataset. Running again resumes; other configs stay.'})
    config_name: str = field(default="default", metadata={"help": "Name under which load_dataset finds it."})
    overlay: bool = field(
        default=False, metadata={"help": "Leave the images out, where a licence forbids copying them."}
    )
    image_column: str | None = field(default=None, metadata={"help": "As for reinforce."})
    label_column: str | None = field(default=None, metadata={"help": "As for reinforce."})
    order: str = field(
        default="position",
        metadata={
            "help": "Which row of the base is image i. `position`: row i. `imagefolder`: the i-th by class folder and file "
            "name, as torchvision's ImageFolder sorts them. Or a file, a JSON list or lines: for each i the row or file name."
        },
    )
    files_from: list[str] = field(default_factory=list, metadata={"help": FILES_FROM_HELP})
    shard_size: int | None = field(default=None, metadata={"help": "Examples per file, as for reinforce."})
    num_workers: int | None = field(
        default=None,
        metadata={"help": "Processes that read files. Default: one for each core, if there are many files."},
    )
    allow_disagreement: bool = field(
        default=False, metadata={"help": "Continue where the teacher's answers do not fit the labels."}
    )

    def __post_init__(self) -> None:
        self.run_config()  # checks what both have

    def run_config(self) -> ReinforceConfig:
        """Returns the settings that a run of `reinforce` shares."""
        return ReinforceConfig(
            self.output_dir,
            config_name=self.config_name,
            overlay=self.overlay,
            image_column=self.image_column,
            label_column=self.label_column,
            shard_size=self.shard_size,
            num_workers=self.num_workers,
        )


@dataclass
class ExportConfig:
    """What an export writes and where; see each field's help.

    Raises:
        ConfigError: A value is impossible.
    """

    output_dir: str = field(metadata=_help("Folder of the shards. Running again resumes."))
    format: str = field(
        default="webdataset",
        metadata=_help("`webdataset`: tar files, as WebDataset and open_clip read them.", choices=["webdataset"]),
    )
    shard_size: int | None = field(
        default=None, metadata=_help('Examples in each tar file. Default: those of the "+" dataset.', type=Whole(1))
    )

    def __post_init__(self) -> None:
        check_settings(self)

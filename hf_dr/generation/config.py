"""What a run makes and where."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from hf_dr.errors import ConfigError
from hf_dr.settings import FILES_FROM_HELP, Whole, check_settings
from hf_dr.store.schema import KEEP, is_safe_name
from hf_dr.teacher.names import SIGNALS, TOPK


def _setting(default: Any, text: str, **limits: Any) -> Any:
    """Returns a field with its help, and the limits that `check_settings` knows."""
    return field(default=default, metadata={"help": text, **limits})


@dataclass
class ReinforceConfig:
    """What a run makes and where. See each field's help; the command line and YAML files have the same names.

    Raises:
        ConfigError: A value is impossible.
    """

    output_dir: str = field(metadata={"help": 'Folder of the "+" dataset. Running again resumes; other configs stay.'})
    config_name: str | None = _setting(
        None, "Name under which load_dataset finds it. Default: the augmentation's name, or default."
    )
    num_views: int = _setting(8, "Views per example, V.", type=Whole(1))
    num_candidates: int | None = _setting(
        None,
        "Draw this number of views of each example, ask the teacher about all of them, and store the num_views views that "
        "--keep selects. Default: num_views, so all are stored.",
    )
    keep: str | None = _setting(
        None,
        "Which candidates are stored, where there are more than num_views: those with the lowest or highest entropy of the "
        "teacher's answer over all its classes, or those with the lowest or highest cross-entropy to the label.",
        choices=list(KEEP),
    )
    top_k: int = _setting(
        10, "Classes kept of each answer, K; at most the number of the teacher's classes.", type=Whole(1)
    )
    signal: str = _setting(
        TOPK,
        "What is stored of each answer: the `topk` classes; these and a tail for each image (`topk_image_tail`); or K "
        "classes `sampled` so that the answer is right on average.",
        choices=list(SIGNALS),
    )
    seed: int = _setting(
        0, "Seed of the augmentation parameters, mixing partners and samples.", type=Whole(0, (1 << 63) - 1)
    )
    overlay: bool = _setting(False, "Leave the images out, where a licence forbids copying them. Default: copy them.")
    image_column: str | None = _setting(None, "Column of the images. Default: the only Image column.")
    label_column: str | None = _setting(
        None, "Column of the labels, or `none`. Default: `label`, else the only ClassLabel column."
    )
    max_examples: int | None = _setting(
        None, "Reinforce only this number of examples, from the first one on.", type=Whole(1)
    )
    on_bad_image: str = _setting(
        "error",
        "`error` stops at an image that cannot be decoded; `skip` leaves its row without a reinforcement.",
        choices=["error", "skip"],
    )
    mixing_scope: str = _setting(
        "dataset",
        "Where mixing partners come from: the whole `dataset`, or the same `shard` (needed for streaming).",
        choices=["dataset", "shard"],
    )
    files_from: list[str] = field(default_factory=list, metadata={"help": FILES_FROM_HELP})
    shard_size: int | None = _setting(
        None,
        "Examples in each file. A run that is stopped loses the files that it was writing. Default: 1024, or an "
        "eighth of a smaller dataset.",
        type=Whole(1),
    )
    batch_size: int = _setting(
        64,
        "Views in a batch of the teacher on a GPU. On a CPU it is always 16, so that results never depend on it.",
        type=Whole(1),
    )
    num_workers: int | None = _setting(
        None,
        "Workers of each launched process: on a GPU, processes that decode and augment; on a CPU, threads that also run "
        "the teacher. Default: by the number of cores.",
        type=Whole(0),
    )
    augment_on: str = _setting(
        "auto",
        "Where views are made: on the `cpu` by Pillow, or on the teacher's `device`, with the same pixels. `auto` takes a "
        "GPU where it can make them all, and says so where it cannot.",
        choices=["auto", "cpu", "device"],
    )
    allow_disagreement: bool = _setting(
        False,
        "Go on where the teacher's most probable class is the label no more often than by chance. Default: a sample of "
        "rows is labelled first, and such a teacher is refused.",
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


def _check_name(config_name: str) -> None:
    if not is_safe_name(config_name) or config_name == "data":
        raise ConfigError(
            f"`config_name` must be a plain name (letters, digits, '_', '-', '.'; not 'data'), got {config_name!r}."
        )


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
    num_views: int | None = _setting(
        None, "Views per example of the new dataset, V: the stored ones and more.", type=Whole(1)
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

    output_dir: str = field(metadata=_METADATA["output_dir"])
    config_name: str = _setting("default", "Name under which load_dataset finds it.")
    overlay: bool = _setting(False, "Leave the images out, where a licence forbids copying them.")
    image_column: str | None = _setting(None, "As for reinforce.")
    label_column: str | None = _setting(None, "As for reinforce.")
    order: str = _setting(
        "position",
        "Which row of the base is image i. `position`: row i. `imagefolder`: the i-th by class folder and file "
        "name, as torchvision's ImageFolder sorts them. Or a file, a JSON list or lines: for each i the row or file name.",
    )
    files_from: list[str] = field(default_factory=list, metadata={"help": FILES_FROM_HELP})
    shard_size: int | None = _setting(None, "Examples per file, as for reinforce.", type=Whole(1))
    num_workers: int | None = _setting(
        None, "Processes that read files. Default: one for each core, if there are many files.", type=Whole(0)
    )
    allow_disagreement: bool = _setting(False, "Continue where the teacher's answers do not fit the labels.")

    def __post_init__(self) -> None:
        check_settings(self)
        _check_name(self.config_name)


@dataclass
class ExportConfig:
    """What an export writes and where; see each field's help.

    Raises:
        ConfigError: A value is impossible.
    """

    output_dir: str = field(metadata={"help": "Folder of the shards. Running again resumes."})
    format: str = _setting(
        "webdataset", "`webdataset`: tar files, as WebDataset and open_clip read them.", choices=["webdataset"]
    )
    shard_size: int | None = _setting(
        None, 'Examples in each tar file. Default: those of the "+" dataset.', type=Whole(1)
    )

    def __post_init__(self) -> None:
        check_settings(self)

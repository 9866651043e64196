"""What a run makes and where."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_dr.errors import ConfigError
from hf_dr.store.named_files import FILES_FROM_HELP
from hf_dr.store.schema import KEEP, is_safe_name
from hf_dr.teacher.signals import SIGNALS, TOPK


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
    num_views: int = field(default=8, metadata=_help("Views per example, V."))
    num_candidates: int | None = field(
        default=None,
        metadata=_help(
            "Draw this many views of each example, ask the teacher for all, and store the num_views of them that --keep names. "
            "Default: as many as are stored."
        ),
    )
    keep: str | None = field(
        default=None,
        metadata=_help(
            "Of more candidates than views, store those with the lowest or highest entropy of the teacher's answer, over all "
            "its classes, or cross-entropy of it to the label.",
            choices=list(KEEP),
        ),
    )
    top_k: int = field(default=10, metadata=_help("Classes kept of each answer, K; at most the teacher's."))
    signal: str = field(
        default=TOPK,
        metadata=_help(
            "What is stored of each answer: the `topk` classes; these and a tail for each image (`topk_image_tail`); or K "
            "classes `sampled` so that the answer is right on average.",
            choices=list(SIGNALS),
        ),
    )
    seed: int = field(default=0, metadata=_help("Seed of the augmentation parameters, mixing partners and samples."))
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
    max_examples: int | None = field(default=None, metadata=_help("Reinforce only the first N examples."))
    on_bad_image: str = field(
        default="error",
        metadata=_help(
            "`error` stops at an undecodable image; `skip` leaves its row unreinforced.", choices=["error", "skip"]
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
        metadata=_help("Examples per file: what a kill can lose. Default: 1024, or an eighth of a smaller dataset."),
    )
    batch_size: int = field(
        default=64,
        metadata=_help("Views per teacher batch on a GPU; a CPU always takes 16, so results never depend on it."),
    )
    num_workers: int | None = field(
        default=None,
        metadata=_help(
            "Per launched process: on a GPU, processes that decode and augment; on a CPU, threads that do that and run the "
            "teacher. Default: by the cores."
        ),
    )

    def __post_init__(self) -> None:
        for name, low in (("num_views", 1), ("top_k", 1), ("seed", 0), ("batch_size", 1)):
            check_at_least(name, getattr(self, name), low)
        for name, low in (("max_examples", 1), ("shard_size", 1), ("num_workers", 0)):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), low)
        for name, known in (
            ("on_bad_image", ("error", "skip")),
            ("mixing_scope", ("dataset", "shard")),
            ("signal", SIGNALS),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(f"`{name}` must be {' or '.join(known)}, got {getattr(self, name)!r}.")
        if self.num_candidates is not None:
            check_at_least("num_candidates", self.num_candidates, self.num_views)
        if self.keep not in (None, *KEEP):
            raise ConfigError(f"`keep` must be one of {', '.join(KEEP)}, got {self.keep!r}.")
        if self.keep is None and self.selects:
            raise ConfigError(
                f"`keep` must say which {self.num_views} of {self.num_candidates} candidates are stored, got none. Give one "
                f"of {', '.join(KEEP)}."
            )
        if self.keep is not None and self.num_candidates is None:
            raise ConfigError(f"`keep` must come with `num_candidates`, got {self.keep} without. Give both or neither.")
        if self.seed >= 1 << 63:
            raise ConfigError(f"`seed` must be below 2**63, got {self.seed}.")
        if self.config_name is not None and (not is_safe_name(self.config_name) or self.config_name == "data"):
            raise ConfigError(
                f"`config_name` must be a plain name (letters, digits, '_', '-', '.'; not 'data'), got {self.config_name!r}."
            )

    @property
    def selects(self) -> bool:
        """Whether the stored views are chosen among more candidates."""
        return self.num_candidates not in (None, self.num_views)


def check_at_least(name: str, value: Any, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"`{name}` must be a whole number of at least {low}, got {value!r}. Raise `{name}`.")

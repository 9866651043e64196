"""The settings that reinforced training adds to transformers' own; the command line explains them without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from hf_dr.errors import ConfigError
from hf_dr.replay.names import DIFFICULTIES, VIEW_ORDERS

TailRule = Literal["uniform", "bucket", "renormalize", "zero", "image"]
TAIL_RULES: tuple[str, ...] = get_args(TailRule)

AUGMENT_ON = ("auto", "cpu", "device")
"""Where views are made."""


@dataclass
class ReinforcedSettings:
    """Reinforced training; defaults are the paper's (arXiv:2303.08983).

    Raises:
        ConfigError: A value is impossible.
    """

    reinforced_probability: float = field(
        default=0.99,
        metadata={
            "help": "Share of samples that replay a stored view; the rest learn from their label. 0 and 1 are allowed."
        },
    )
    view_order: str = field(
        default="all",
        metadata={
            "help": "`all`: every view once before any repeats; `random`: any view at any time; `easy_first`, `hard_first`: by "
            "difficulty, over the whole training.",
            "choices": VIEW_ORDERS,
        },
    )
    view_difficulty: str = field(
        default="entropy",
        metadata={
            "help": "For --view_order easy_first and hard_first: the entropy of the stored answer, or its cross-entropy to the "
            "label.",
            "choices": DIFFICULTIES,
        },
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Softens teacher and student; the loss is multiplied by T^2."}
    )
    tail: TailRule | None = field(
        default=None,
        metadata={
            "help": "What happens to the teacher's mass outside the stored classes: uniform, bucket, renormalize, zero, or "
            "image. Default: the rule of the dataset's signal: uniform (topk), image (topk_image_tail), renormalize (sampled)."
        },
    )
    label_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the label's cross-entropy for replayed views; KL has the rest of the weight."},
    )
    unreinforced_label_smoothing: float = field(
        default=0.0, metadata={"help": "Label smoothing for the samples that are not replayed."}
    )
    mixup_alpha: float = field(
        default=0.0,
        metadata={
            "help": "For erm and kd: MixUp of each batch and its labels, with a weight from Beta(alpha, alpha); the teacher of "
            "kd sees the mixed images. 0 turns MixUp off. Stored views are mixed as they were stored."
        },
    )
    cutmix_alpha: float = field(
        default=0.0, metadata={"help": "For erm and kd: CutMix of each batch, as --mixup_alpha. 0 turns CutMix off."}
    )
    mixup_prob: float = field(
        default=1.0, metadata={"help": "Share of the batches that are mixed, with MixUp or CutMix on."}
    )
    mixup_switch_prob: float = field(
        default=0.5, metadata={"help": "Share of CutMix among the mixed batches, with both MixUp and CutMix on."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Keep an average of the weights with this decay, and evaluate it next to the model."},
    )
    augment_on: str = field(
        default="auto",
        metadata={
            "help": "Where views are made: on the `cpu` by Pillow, or on the `device`, with the same pixels, while workers "
            "only decode. `auto` takes a GPU where it can make them all, and says so where it cannot.",
            "choices": AUGMENT_ON,
        },
    )
    channels_last: bool | None = field(
        default=None,
        metadata={
            "help": "Keep images and convolutions in the order of memory that GPUs are fastest with. Default: on a GPU, for "
            "models with convolutions."
        },
    )

    def __post_init__(self) -> None:
        for name, high in (
            ("reinforced_probability", 1),
            ("label_weight", 1),
            ("unreinforced_label_smoothing", 1),
            ("mixup_alpha", 1000),
            ("cutmix_alpha", 1000),
            ("mixup_prob", 1),
            ("mixup_switch_prob", 1),
        ):
            value = getattr(self, name)
            if not 0 <= value <= high:
                raise ConfigError(f"`{name}` must be between 0 and {high}, got {value!r}.")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"`temperature` must be a number above 0, got {self.temperature!r}.")
        for name, known in (
            ("tail", (*TAIL_RULES, None)),
            ("view_order", VIEW_ORDERS),
            ("view_difficulty", DIFFICULTIES),
            ("augment_on", AUGMENT_ON),
        ):
            if getattr(self, name) not in known:
                words = ", ".join(word for word in known if word is not None)
                raise ConfigError(f"`{name}` must be one of {words}, got {getattr(self, name)!r}.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"`ema_decay` must be between 0 and 1, got {self.ema_decay!r}.")

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed."""
        return bool(self.mixup_alpha or self.cutmix_alpha)

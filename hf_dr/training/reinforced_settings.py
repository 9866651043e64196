"""The settings that reinforced training adds to transformers' own; the command line explains them without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from hf_dr.replay.names import DIFFICULTIES, VIEW_ORDERS
from hf_dr.settings import Real

TailRule = Literal["uniform", "bucket", "renormalize", "zero", "image"]
TAIL_RULES: tuple[str, ...] = get_args(TailRule)

AUGMENT_ON = ("auto", "cpu", "device")
"""Where views are made."""


@dataclass
class ReinforcedSettings:
    """Reinforced training; defaults are the paper's (arXiv:2303.08983)."""

    reinforced_probability: float = field(
        default=0.99,
        metadata={
            "help": "Share of samples that replay a stored view; the rest learn from their label. 0 and 1 are allowed.",
            "type": Real(0, 1),
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
        default=1.0,
        metadata={"help": "Softens teacher and student; the loss is multiplied by T^2.", "type": Real(0, above=True)},
    )
    tail: TailRule | None = field(
        default=None,
        metadata={
            "help": "What happens to the teacher's mass outside the stored classes: uniform, bucket, renormalize, zero, or "
            "image. Default: the rule of the dataset's signal: uniform (topk), image (topk_image_tail), renormalize (sampled).",
            "choices": TAIL_RULES,
        },
    )
    label_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the label's cross-entropy for replayed views; KL has the rest of the weight.",
            "type": Real(0, 1),
        },
    )
    unreinforced_label_smoothing: float = field(
        default=0.0,
        metadata={"help": "Label smoothing for the samples that are not replayed.", "type": Real(0, 1)},
    )
    mixup_alpha: float = field(
        default=0.0,
        metadata={
            "help": "For erm and kd: MixUp of each batch and its labels, with a weight from Beta(alpha, alpha); the teacher of "
            "kd sees the mixed images. 0 turns MixUp off. Stored views are mixed as they were stored.",
            "type": Real(0, 1000),
        },
    )
    cutmix_alpha: float = field(
        default=0.0,
        metadata={
            "help": "For erm and kd: CutMix of each batch, as --mixup_alpha. 0 turns CutMix off.",
            "type": Real(0, 1000),
        },
    )
    mixup_prob: float = field(
        default=1.0,
        metadata={"help": "Share of the batches that are mixed, with MixUp or CutMix on.", "type": Real(0, 1)},
    )
    mixup_switch_prob: float = field(
        default=0.5,
        metadata={
            "help": "Share of CutMix among the mixed batches, with both MixUp and CutMix on.",
            "type": Real(0, 1),
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Keep an average of the weights with this decay, and evaluate it next to the model.",
            "type": Real(0, 1, above=True, below=True),
        },
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

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed."""
        return bool(self.mixup_alpha or self.cutmix_alpha)

"""The settings of a training on reinforced data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from hf_dr.errors import ConfigError
from hf_dr.replay.reinforced_data import DIFFICULTIES
from hf_dr.replay.sampling import VIEW_ORDERS
from hf_dr.training.losses import TAIL_RULES, TailRule

_HUB_STRATEGIES = ("end", "every_save")


@dataclass
class ReinforcedTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the settings of reinforced training; defaults are the paper's (arXiv:2303.08983).

    Raises:
        ConfigError: A value is impossible.
    """

    reinforced_probability: float = field(
        default=0.99,
        metadata={"help": "Share of samples that replay a stored view; the rest learn from their label. 0 and 1 work."},
    )
    view_order: str = field(
        default="all",
        metadata={
            "help": "`all`: every view once before any repeats; `random`: any at any time; `easy_first`, `hard_first`: by "
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
            "help": "Where the teacher's mass outside the stored classes goes: uniform, bucket, renormalize, zero, or image. "
            "Default: what the dataset's signal asks for: uniform (topk), image (topk_image_tail), renormalize (sampled)."
        },
    )
    label_weight: float = field(
        default=0.0, metadata={"help": "Weight of the label's cross-entropy for replayed views; KL has one minus it."}
    )
    unreinforced_label_smoothing: float = field(
        default=0.0, metadata={"help": "Label smoothing of the samples that are not replayed."}
    )
    mixup_alpha: float = field(
        default=0.0,
        metadata={
            "help": "For erm and kd: MixUp of each batch and its labels, with a weight from Beta(alpha, alpha); kd's teacher "
            "sees the mix. 0: none. Stored views are mixed as they were stored."
        },
    )
    cutmix_alpha: float = field(default=0.0, metadata={"help": "The same for CutMix."})
    mixup_prob: float = field(default=1.0, metadata={"help": "Share of the batches that are mixed, where any are."})
    mixup_switch_prob: float = field(
        default=0.5, metadata={"help": "Share of CutMix among the mixed batches, with both MixUp and CutMix."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Keep an average of the weights with this decay and evaluate it beside the model."},
    )
    momentum: float = field(default=0.9, metadata={"help": "Of --optim sgd."})
    nesterov: bool = field(default=True, metadata={"help": "Nesterov momentum for --optim sgd."})

    def __post_init__(self) -> None:
        for name, high in (
            ("reinforced_probability", 1),
            ("label_weight", 1),
            ("unreinforced_label_smoothing", 1),
            ("mixup_alpha", 1000),
            ("cutmix_alpha", 1000),
            ("mixup_prob", 1),
            ("mixup_switch_prob", 1),
            ("momentum", 1),
        ):
            value = getattr(self, name)
            if not 0 <= value <= high:
                raise ConfigError(f"`{name}` must be between 0 and {high}, got {value!r}.")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"`temperature` must be a number above 0, got {self.temperature!r}.")
        for name, known in (
            ("tail", TAIL_RULES),
            ("view_order", VIEW_ORDERS),
            ("view_difficulty", DIFFICULTIES),
        ):
            if getattr(self, name) not in known and (name != "tail" or self.tail is not None):
                raise ConfigError(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"`ema_decay` must be between 0 and 1, got {self.ema_decay!r}.")
        if self.push_to_hub and self.hub_strategy not in _HUB_STRATEGIES:
            raise ConfigError(
                f"`hub_strategy` must be one of {', '.join(_HUB_STRATEGIES)}, got {str(self.hub_strategy)!r}: the states in "
                "checkpoints are pickles, which are not published. Set another."
            )
        # Without an accelerator several processes form a group only if the CPU is asked for, and no memory can be pinned.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed."""
        return bool(self.mixup_alpha or self.cutmix_alpha)

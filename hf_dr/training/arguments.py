"""The settings of a training on reinforced data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hf_dr.errors import ConfigError
from hf_dr.replay.reinforced_data import DIFFICULTIES
from hf_dr.replay.sampling import VIEW_ORDERS
from hf_dr.training.losses import TAIL_RULES, TailRule
from hf_dr.training.resumable import ResumableArguments

AUGMENT_ON = ("auto", "cpu", "device")
"""Where views are made."""


@dataclass
class ReinforcedTrainingArguments(ResumableArguments):
    """`TrainingArguments` with the settings of reinforced training; defaults are the paper's (arXiv:2303.08983).

    Raises:
        ConfigError: A value is impossible.
    """

    hub_strategies = ("end", "every_save")

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
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Leave losses that are not finite out of the logged mean. The device is then waited for at every step."
        },
    )
    nesterov: bool = field(default=True, metadata={"help": "Use Nesterov momentum with `--optim sgd`."})
    warmup_epochs: float = field(
        default=0.0,
        metadata={
            "help": "Epochs, or a fraction of one, over which the learning rate rises, however long the training is. 0: what "
            "--warmup_steps says, a number of steps or a share of the training."
        },
    )
    decay_biases_and_norms: bool = field(
        default=False,
        metadata={
            "help": "Weight decay also of biases and normalisations, the parameters of one dimension. What the architecture "
            "itself excludes, such as position embeddings, never decays."
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
        if not (math.isfinite(self.warmup_epochs) and self.warmup_epochs >= 0):
            raise ConfigError(f"`warmup_epochs` must be a number from 0, got {self.warmup_epochs!r}.")
        if self.warmup_epochs and self.warmup_steps:
            raise ConfigError(
                "only one of `warmup_epochs` and `warmup_steps` must say how long the learning rate rises, got "
                f"{self.warmup_epochs} and {self.warmup_steps}. Set the other to 0."
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"`ema_decay` must be between 0 and 1, got {self.ema_decay!r}.")
        super().__post_init__()

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed."""
        return bool(self.mixup_alpha or self.cutmix_alpha)

"""The settings that reinforced training adds to transformers' own; the command line explains them without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from hf_dr.replay.names import DIFFICULTIES, VIEW_ORDERS
from hf_dr.settings import Real, flag
from hf_dr.views.names import AUGMENT_ON

TailRule = Literal["uniform", "bucket", "renormalize", "zero", "image"]
TAIL_RULES: tuple[str, ...] = get_args(TailRule)
# Settings that have a part only where stored views are replayed, and where a teacher answers: stored views, and kd.
_OF_STORED_VIEWS = ("reinforced_probability", "view_order", "view_difficulty", "tail")
_OF_ANSWERS = ("temperature", "label_weight")


def settings_without_effect(objective: str) -> tuple[str, ...]:
    """Returns the settings that have no part in a training by `reinforced`, `kd` or `erm`."""
    return {"reinforced": (), "kd": _OF_STORED_VIEWS}.get(objective, (*_OF_STORED_VIEWS, *_OF_ANSWERS))


@dataclass
class ReinforcedSettings:
    """Reinforced training; defaults are the paper's (arXiv:2303.08983)."""

    reinforced_probability: float = flag(
        "Share of samples that replay a stored view; the rest learn from their label. 0 and 1 are allowed.",
        default=0.99,
        type=Real(0, 1),
    )
    view_order: str = flag(
        "For replayed views. `all`: every view once before any repeats; `random`: any view at any time; `easy_first`, "
        "`hard_first`: by difficulty, over the whole training.",
        default="all",
        choices=VIEW_ORDERS,
    )
    view_difficulty: str = flag(
        "For `view_order` easy_first and hard_first: the entropy of the stored answer, or its cross-entropy to the "
        "label.",
        default="entropy",
        choices=DIFFICULTIES,
    )
    temperature: float = flag(
        "Softens a teacher's answers and the student's; the loss is multiplied by T^2.",
        default=1.0,
        type=Real(0, above=True),
    )
    tail: TailRule | None = flag(
        "What happens to the teacher's probability outside the K stored classes. `uniform`: spread evenly over the other "
        "classes (default for the signal topk); `image`: spread like the image's mean answer (default for topk_image_tail); "
        "`renormalize`: given to the K classes in proportion (default for sampled); `bucket`: one event, none of the K; "
        "`zero`: dropped.",
        default=None,
        choices=TAIL_RULES,
    )
    label_weight: float = flag(
        "Weight of the label's cross-entropy for replayed views, and for all of kd; KL has the rest of the weight.",
        default=0.0,
        type=Real(0, 1),
    )
    unreinforced_label_smoothing: float = flag(
        "Label smoothing for the samples that are not replayed.", default=0.0, type=Real(0, 1)
    )
    mixup_alpha: float = flag(
        "For erm and kd: MixUp of each batch and its labels, with a weight from Beta(alpha, alpha); the teacher of "
        "kd sees the mixed images. 0 turns MixUp off. Stored views are mixed as they were stored.",
        default=0.0,
        type=Real(0, 1000),
    )
    cutmix_alpha: float = flag(
        "For erm and kd: CutMix of each batch, as --mixup_alpha. 0 turns CutMix off.", default=0.0, type=Real(0, 1000)
    )
    mixup_prob: float = flag(
        "Share of the batches that are mixed, with MixUp or CutMix on.", default=1.0, type=Real(0, 1)
    )
    mixup_switch_prob: float = flag(
        "Share of CutMix among the mixed batches, with both MixUp and CutMix on.", default=0.5, type=Real(0, 1)
    )
    ema_decay: float | None = flag(
        "Keep an average of the weights with this decay, and evaluate it next to the model.",
        default=None,
        type=Real(0, 1, above=True, below=True),
    )
    augment_on: str = flag(
        "Where views are made: on the `cpu` by Pillow, or on the `device`, with the same pixels, while workers "
        "only decode. `auto` takes a GPU where it can make them all, and says so where it cannot.",
        default="auto",
        choices=AUGMENT_ON,
    )
    channels_last: bool | None = flag(
        "Keep images and convolutions in the order of memory that GPUs are fastest with. Default: on a GPU, for "
        "models with convolutions.",
        default=None,
    )

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed."""
        return bool(self.mixup_alpha or self.cutmix_alpha)

"""The distillation loss on the stored top-K: never a dense target, any tail rule, any temperature.

Shape suffixes: B batch, K kept classes, T classes of an image's tail, L = K or K + T listed classes, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_dr.errors import ConfigError, DataError
from hf_dr.replay.reinforced_data import ReinforcedData, check_loaded
from hf_dr.settings import Real, check_kind
from hf_dr.teacher.signals import IMAGE_TAIL, SAMPLED, TOPK
from hf_dr.training.reinforced_settings import TAIL_RULES, TailRule
from hf_dr.training.sparse_kl import Answers, sparse_kl


def reinforced_kl(
    logits_BC: torch.Tensor,
    teacher_ids_BK: torch.Tensor,
    teacher_logprobs_BK: torch.Tensor,
    *,
    tail: TailRule = "uniform",
    temperature: float = 1.0,
    tail_ids_BT: torch.Tensor | None = None,
    tail_logprobs_BT: torch.Tensor | None = None,
) -> torch.Tensor:
    """KL divergence from the stored teacher to the student, one value for each view (eq. 1 of arXiv:2303.08983).

    What the teacher gave to the C - K classes that were not kept, m = 1 - sum(exp(teacher_logprobs)), follows `tail`:

    * `uniform`: spread evenly over those classes, as in the paper;
    * `bucket`: one event "none of the kept"; the student is free to share it out as it likes;
    * `renormalize`: given to the kept classes in proportion;
    * `zero`: dropped, so the target sums to 1 - m;
    * `image`: spread over those classes in proportion to the image's mean answer r. Its T most probable classes are given:
      r_c = exp(tail_logprob) for them, and (1 - sum of these) / (C - T) for each other class.

    Equal to torch's `kl_div` on the dense target (to the bucketed target for `bucket`), in time and memory that hardly
    depend on C beyond the logits themselves. Computed in float32 at least. It can be differentiated once, not twice.

    Args:
        logits_BC: The student's logits, floating point.
        teacher_ids_BK: Kept classes, int64, distinct within a row, below C.
        teacher_logprobs_BK: Their natural log-probabilities at temperature 1.
        tail: See above.
        temperature: Both distributions are softened by it (Hinton et al., arXiv:1503.02531), and the result is
            multiplied by its square, so that gradients keep their size. A tail as one event is softened as if it were uniform.
            What is softened of m, and with `image` at 1, too, is no more than the least kept class has, for each class that was
            not kept: rounding of sure answers would be raised to a large part of the target.
        tail_ids_BT: The classes of each image's tail, for `image` only: int64, distinct within a row, below C; they may be
            kept ones.
        tail_logprobs_BT: Their natural log-probabilities in the image's mean answer.

    Returns:
        Nats, (B,); 0 where the student answers as the teacher.

    Raises:
        ConfigError: What is given is no tensor of the shape and kind above, or of a class that the logits do not have; the rule
            is unknown or needs another kind of dataset; the temperature is not above 0; or a row holds no answer, as the rows
            of a batch that are not `reinforced`: `reinforced_loss` takes those. (Looking at the values waits for the device.)
    """
    answers = Answers(teacher_ids_BK, teacher_logprobs_BK, tail, temperature, tail_ids_BT, tail_logprobs_BT)
    _check_tensors(logits_BC, answers)
    # Rows whose probabilities sum to more than 1 by far: float16 lifts a sum by less than a hundredth.
    unanswered_B = teacher_logprobs_BK.float().exp().sum(-1) > 1.1
    if unanswered_B.any():
        rows = unanswered_B.nonzero().flatten().tolist()
        raise ConfigError(
            f"each row must hold a teacher's log-probabilities, but those of row {rows[0]} sum to more than 1, as where no "
            f"stored view was replayed ({len(rows)} such rows). Take `reinforced_loss`, or only the rows that are "
            "`reinforced`."
        )
    _check_ids(logits_BC, answers)
    return sparse_kl(logits_BC, answers)


def _check_ids(logits_BC: torch.Tensor, answers: Answers) -> None:
    """Checks the values of the ids that a loss reads, which waits for their device."""
    ids_BL, read = answers.ids, "`teacher_ids`"
    if answers.tail == "image":
        assert answers.tail_ids is not None
        ids_BL, read = torch.cat([ids_BL, answers.tail_ids], -1), "`teacher_ids` and `tail_ids`"
    classes = logits_BC.shape[-1]
    wrong_B = ((ids_BL < 0) | (ids_BL >= classes)).any(-1)
    if wrong_B.any():
        row = int(wrong_B.nonzero()[0])
        raise ConfigError(
            f"{read} must be of the {classes} classes of `logits`, got {ids_BL[row].tolist()} in row {row}. A student needs "
            "the teacher's classes."
        )


def _check_tensors(logits_BC: Any, answers: Answers) -> None:
    """Checks what `reinforced_kl` is given, without a look at the values."""
    if answers.tail not in TAIL_RULES:
        raise ConfigError(f"`tail` must be one of {', '.join(TAIL_RULES)}, got {answers.tail!r}.")
    Real(0, above=True).check("temperature", answers.temperature)
    advice = "Models of transformers have them in their answer's `logits`."
    check_kind("logits", logits_BC, torch.Tensor, "a tensor", advice)
    if logits_BC.ndim != 2 or not logits_BC.is_floating_point():
        raise ConfigError(f"`logits` must be of floating point, (B, C), got {_found(logits_BC)}. {advice}")
    pairs: list[tuple[str, str, Any, Any]] = [("teacher", "K", answers.ids, answers.logprobs)]
    if answers.tail == "image":
        if answers.tail_ids is None or answers.tail_logprobs is None:
            raise ConfigError(
                "`tail` can be `image` for answers with a tail of their image only, found none. Take another rule, or a "
                "dataset that was reinforced with `--signal topk_image_tail`."
            )
        pairs.append(("tail", "T", answers.tail_ids, answers.tail_logprobs))
    for name, size, ids, logprobs in pairs:
        if (
            not isinstance(ids, torch.Tensor)
            or not isinstance(logprobs, torch.Tensor)
            or ids.dtype not in (torch.int64, torch.int32)
            or not logprobs.is_floating_point()
            or ids.ndim != 2
            or ids.shape != logprobs.shape
            or len(ids) != len(logits_BC)
            or not 1 <= ids.shape[-1] <= logits_BC.shape[-1]
        ):
            raise ConfigError(
                f"`{name}_ids` must be int64 and `{name}_logprobs` of floating point, both (B, {size}) with 1 <= {size} <= C, "
                f"got {_found(ids)} and {_found(logprobs)} next to logits {tuple(logits_BC.shape)}. Give what a loader of "
                "reinforced data yields, and a student over the teacher's classes."
            )


def _found(value: object) -> str:
    """Shows what was found in the place of a tensor: its kind and shape."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


def reinforced_loss(
    logits_BC: torch.Tensor,
    batch: Mapping[str, Any],
    *,
    tail: TailRule = "uniform",
    temperature: float = 1.0,
    label_weight: float = 0.0,
    label_smoothing: float = 0.0,
    new_views: bool = True,
) -> torch.Tensor:
    """The loss of a batch of reinforced data: `reinforced_kl` for replayed views, cross-entropy to the label for the others.

    Args:
        logits_BC: The student's logits, floating point.
        batch: What a loader of reinforced data yields, without its pixels: `teacher_ids`, `teacher_logprobs` and `reinforced`;
            `labels`, `tail_ids` and `tail_logprobs` where the dataset has them; `lam` where the batch was mixed: the weight of
            its own labels, `labels.flip(0)` having the rest.
        tail: See `reinforced_kl`.
        temperature: See `reinforced_kl`.
        label_weight: Weight of the label's cross-entropy for replayed views, 0 to 1; KL has the rest.
        label_smoothing: Label smoothing for the views that are not replayed, 0 to 1.
        new_views: Whether the batch can have views that are not replayed. False spares their loss.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        ConfigError: The batch lacks something, labels that a gradient needs among others (without one, the KL of replayed
            views alone is measured where there are none); a weight is impossible; or see `reinforced_kl`, but the classes, as
            values, are looked at on the CPU only, and not in compiled code: another device would be waited for, and the graph
            would break.
        DataError: A label is none of the classes; only there, too.
    """
    check_batch(batch)
    Real(0, 1).check("label_weight", label_weight)
    Real(0, 1).check("label_smoothing", label_smoothing)
    ids_BK, logprobs_BK = batch["teacher_ids"], batch["teacher_logprobs"]
    answers = Answers(ids_BK, logprobs_BK, tail, temperature, batch.get("tail_ids"), batch.get("tail_logprobs"))
    _check_tensors(logits_BC, answers)
    _check_rows("reinforced", batch["reinforced"], torch.bool, logits_BC)
    if _can_look_at(logits_BC):
        _check_ids(logits_BC, answers)
    kl_B = sparse_kl(logits_BC, answers)
    if batch.get("labels") is None and not (logits_BC.requires_grad and (label_weight or new_views)):
        # Without gradients the loss is only measured, on what there is.
        replayed_B = batch["reinforced"]
        return torch.where(replayed_B, kl_B, 0).sum() / replayed_B.sum().clamp(min=1)
    loss_B = kl_B
    if label_weight:
        label_B = F.cross_entropy(logits_BC.float(), _labels_of(batch, logits_BC), reduction="none")
        loss_B = (1 - label_weight) * kl_B + label_weight * label_B
    if new_views:
        fresh_B = label_cross_entropy(logits_BC, batch, label_smoothing)
        loss_B = torch.where(batch["reinforced"], loss_B, fresh_B)
    return loss_B.mean()


def label_cross_entropy(
    logits_BC: torch.Tensor, batch: Mapping[str, Any], label_smoothing: float = 0.0
) -> torch.Tensor:
    """Returns the cross-entropy (B,) to the labels of a batch, as it was mixed; see `reinforced_loss`."""
    labels_B, lam = _labels_of(batch, logits_BC), _own_weight(batch)
    to = partial(F.cross_entropy, logits_BC.float(), reduction="none", label_smoothing=label_smoothing)
    loss_B: torch.Tensor = to(labels_B)
    if lam < 1:  # cross-entropy is linear in its target: that of the mixed labels
        loss_B = lam * loss_B + (1 - lam) * to(labels_B.flip(0))
    return loss_B


def _own_weight(batch: Mapping[str, Any]) -> float:
    """Returns the weight of a batch's own labels."""
    lam = batch.get("lam", 1.0)
    if isinstance(lam, torch.Tensor):
        if lam.numel() != 1:
            raise ConfigError(
                f"`lam` must be one number, the weight of all own labels of the batch, got {_found(lam)}. Mix all images of a "
                "batch in one proportion."
            )
        lam = lam.item()
    Real(0, 1).check("lam", lam)
    return float(lam)


def _can_look_at(values: torch.Tensor) -> bool:
    """Whether it costs nothing to look at values: not on another device, nor in compiled code, whose graph would break."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _labels_of(batch: Mapping[str, Any], logits_BC: torch.Tensor) -> torch.Tensor:
    """Returns the labels of a batch, which the loss needs."""
    labels_B: torch.Tensor | None = batch.get("labels")
    if labels_B is None:
        raise ConfigError(
            "the loss needs `labels`, but the batch has none. Give a batch with labels (in Trainer, which drops what the "
            "model's forward does not take, set `label_names=['labels']`), or set `label_weight` to 0 and `new_views` to False."
        )
    _check_rows("labels", labels_B, torch.int64, logits_BC)
    if _can_look_at(labels_B):
        check_classes(labels_B, logits_BC.shape[-1])
    return labels_B


def check_classes(labels_B: torch.Tensor, classes: int) -> None:
    """Checks the values of the labels of a batch, of any whole type; -100, by which torch leaves a row out of a loss, passes.

    Raises:
        DataError: One is none of the classes.
    """
    labels_B = labels_B.long()  # in uint8, 156 would equal -100
    wrong_B = ((labels_B < 0) | (labels_B >= classes)) & (labels_B != -100)
    if wrong_B.any():
        row = int(wrong_B.nonzero()[0])
        raise DataError(
            f"`labels` must be from 0 to {classes - 1}, the classes of the model, found {int(labels_B[row])} in row {row} of "
            f"the batch ({int(wrong_B.sum())} such rows). Leave these rows out, or give a split with labels."
        )


def check_batch(batch: Any) -> None:
    """Checks that a batch of reinforced data has the answers to each of its rows."""
    check_kind("batch", batch, Mapping, "what a loader of reinforced data yields", "Give it whole, not its images.")
    missing = [name for name in ("teacher_ids", "teacher_logprobs", "reinforced") if name not in batch]
    if missing:
        raise ConfigError(
            f"a batch of reinforced data must hold its stored answers, but {', '.join(missing)} are not among "
            f"{', '.join(map(str, batch))}. Leave `data_collator` out, or let it return every key of the rows."
        )


def check_num_classes(count: int, dataset_classes: int) -> None:
    """Checks the number of classes that a model answers over."""
    if count != dataset_classes:
        raise ConfigError(
            f'the model must answer over the {dataset_classes} classes of the "+" dataset, got {count}. Build it with '
            f"num_labels={dataset_classes}."
        )


def _check_rows(name: str, values: object, kind: torch.dtype, logits_BC: torch.Tensor) -> None:
    """Checks a tensor that must hold one value for each row of a batch."""
    if not isinstance(values, torch.Tensor) or values.dtype != kind or values.shape != logits_BC.shape[:1]:
        raise ConfigError(
            f"`{name}` must be {kind} (B,), got {_found(values)} next to logits {tuple(logits_BC.shape)}. Give what a loader "
            "of reinforced data yields."
        )


class ReinforcedLoss(nn.Module):
    """`reinforced_loss` as a module, with the tail rule that fits a dataset.

    Args:
        dataset: What `load_reinforced` returns.
        tail: See `reinforced_kl`. Default: the rule of the dataset's signal, `uniform` for ordinary datasets.
        temperature: See `reinforced_kl`.
        label_weight: See `reinforced_loss`.
        label_smoothing: See `reinforced_loss`.

    Raises:
        ConfigError: The tail rule does not fit the dataset, or a number is impossible.
    """

    def __init__(
        self,
        dataset: ReinforcedData,
        *,
        tail: TailRule | None = None,
        temperature: float = 1.0,
        label_weight: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        check_loaded(dataset)
        Real(0, above=True).check("temperature", temperature)
        Real(0, 1).check("label_weight", label_weight)
        Real(0, 1).check("label_smoothing", label_smoothing)
        check_label_weight(label_weight, dataset.mixes, dataset.has_labels)
        self.num_classes = dataset.num_classes
        self.tail = tail_rule(tail, dataset.signal)
        self.temperature = temperature
        self.label_weight = label_weight
        self.label_smoothing = label_smoothing

    def forward(self, logits_BC: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
        """Returns the mean loss of a batch, a scalar; see `reinforced_loss`."""
        check_batch(batch)
        if isinstance(logits_BC, torch.Tensor) and logits_BC.ndim:
            check_num_classes(logits_BC.shape[-1], self.num_classes)
        # Without labels all views must be stored ones.
        new_views = "labels" in batch or (_can_look_at(logits_BC) and not bool(batch["reinforced"].all()))
        return reinforced_loss(logits_BC, batch, **self._settings(), new_views=new_views)

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("tail", "temperature", "label_weight", "label_smoothing")}

    def extra_repr(self) -> str:
        """Returns the settings, for `print`."""
        return ", ".join(f"{name}={value!r}" for name, value in self._settings().items())


def check_label_weight(label_weight: float, mixes: bool, has_labels: bool = True) -> None:
    """Refuses labels that a dataset does not have, and the label of one image for stored views of two."""
    if label_weight and not has_labels:
        raise ConfigError(f"`label_weight` must be 0 for a dataset without labels, got {label_weight}. Set it to 0.")
    if label_weight and mixes:
        raise ConfigError(
            f"`label_weight` must be 0 where stored views are mixed, got {label_weight}: such a view shows two images, but its "
            "row has the label of one. Set it to 0, or reinforce without MixUp and CutMix."
        )


# The rules for the mass that is not stored, the signal's own first. What was drawn stands for all of the answer already.
_RULES: dict[str, tuple[TailRule, ...]] = {
    TOPK: ("uniform", "bucket", "renormalize", "zero"),
    IMAGE_TAIL: ("image", "uniform", "bucket", "renormalize", "zero"),
    SAMPLED: ("renormalize", "zero"),
}


def tail_rule(tail: TailRule | None, signal: str) -> TailRule:
    """Returns the tail rule of `hf_dr.training.losses` for a signal: `tail`, or what the signal asks for where it is None.

    Raises:
        ConfigError: The rule does not fit the signal.
    """
    rules = _RULES[signal]
    if tail is None or tail in rules:
        return tail or rules[0]
    if tail == "image":
        why = ": no tails of its images are stored"
    else:
        why = ": what was drawn stands for the whole answer" if signal == SAMPLED else ""
    raise ConfigError(
        f"`tail` must be one of {', '.join(rules)} for the signal `{signal}`, got {tail!r}{why}. Leave `tail` out, or take a "
        "dataset with another `signal`."
    )

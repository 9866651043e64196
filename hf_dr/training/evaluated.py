"""What evaluations of a student need: the same buffers in all processes, weights in full precision, names of metrics."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from hf_dr.errors import ConfigError


def weights_are_sharded(trainer: Trainer) -> bool:
    """Whether no process has all weights: with FSDP or DeepSpeed."""
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled


def share_buffers(trainer: Trainer, average: torch.nn.Module | None = None) -> None:
    """Copies the running statistics of process 0, the ones that are saved, to all processes; those of `average`, too."""
    if trainer.args.world_size == 1 or weights_are_sharded(trainer):
        return
    assert isinstance(trainer.model, torch.nn.Module)
    for model in (trainer.accelerator.unwrap_model(trainer.model), average):
        for buffer in () if model is None else model.buffers():
            if any(step == 0 and count > 1 for step, count in zip(buffer.stride(), buffer.shape, strict=True)):
                continue  # an expanded tensor cannot be written to, and is no running statistic
            # Buffers may have any strides; and a model to be evaluated in half precision is not on its device yet.
            whole = buffer.detach().to(trainer.args.device, copy=True).contiguous()
            torch.distributed.broadcast(whole, 0)
            with torch.no_grad():
                buffer.copy_(whole)


def few_answers(classes: int, *, last: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits and labels of a few examples, one of each of the first (last) classes, to try a function for metrics on.

    As many examples as classes would take gigabytes where there are tens of thousands.
    """
    few = min(classes, 8)
    first = classes - few if last else 0
    return np.eye(few, classes, first, dtype=np.float32), np.arange(first, first + few)


def names_of_metrics(trainer: Any) -> set[str] | None:
    """Returns the names of what a `StudentTrainer` will measure; see its `metric_names`."""
    args = trainer.args
    classes = getattr(getattr(trainer.model, "config", None), "num_labels", None)
    classes = getattr(trainer.train_dataset, "num_classes", classes)
    names = {"loss"}
    if trainer.compute_metrics is not None:
        if classes is None or args.include_for_metrics or args.batch_eval_metrics:
            return None
        tried = [few_answers(classes), few_answers(classes, last=True)]
        try:
            found, others = (trainer.compute_metrics(EvalPrediction(*answers)).keys() for answers in tried)
        except Exception:  # a function of the user's, which may need more than this
            return None
        if found != others:  # it names classes that there are
            return None
        names |= found
    names = {name.removeprefix("eval_") for name in names}
    if args.ema_decay is not None:
        names |= {f"ema_{name}" for name in names}
    if isinstance(trainer.eval_dataset, dict):
        names = {f"{dataset}_{name}" for dataset in trainer.eval_dataset for name in names}
    return names


def without_prefix(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns an evaluation's metrics by their own names; Trainer calls them `eval_NAME`."""
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}


def check_measured(args: TrainingArguments, names: Collection[str]) -> None:
    """Raises a ConfigError if what chooses the best weights is none of an evaluation's metrics; Trainer raises a KeyError."""
    wanted = args.metric_for_best_model
    if wanted is not None and wanted.removeprefix("eval_") not in names:
        raise ConfigError(
            f"`metric_for_best_model` must be one of {', '.join(sorted(names))}, which evaluations measure, got {wanted!r}. "
            "Name one of them."
        )


@contextmanager
def precision_kept(trainer: Trainer) -> Iterator[None]:
    """Restores weights and buffers at the end to what they were, on the device where they are then.

    With `bf16_full_eval` or `fp16_full_eval` Trainer casts the model for an evaluation after the training, and leaves it so.
    """
    halved = (trainer.args.bf16_full_eval or trainer.args.fp16_full_eval) and not trainer.is_in_train
    if not halved or weights_are_sharded(trainer):
        yield
        return
    assert isinstance(trainer.model, torch.nn.Module)
    weights = {weight: weight.data for weight in trainer.model.parameters()}
    buffers = {
        (module, name): buffer
        for module in trainer.model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    }
    try:
        yield
    finally:
        for weight, numbers in weights.items():
            weight.data = numbers.to(weight.device)
        for (module, name), numbers in buffers.items():
            setattr(module, name, numbers.to(module.get_buffer(name).device))

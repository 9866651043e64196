"""Whether a student, a dataset and the settings of a training fit together: found out before the first step."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import datasets
import torch
from torch import nn
from transformers import Trainer
from transformers.integrations import is_deepspeed_zero3_enabled

from hf_dr.errors import ConfigError
from hf_dr.replay.reinforced_data import ReinforcedData
from hf_dr.teacher.members import ONE_CLASS
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.evaluated import is_undecoded
from hf_dr.training.losses import tail_rule


def check_student(model: nn.Module, dataset: ReinforcedData) -> None:
    """Checks that a model takes pixels, is trained, and answers over the teacher's classes, in the same order.

    Raises:
        ConfigError: It does not.
    """
    taken = inspect.signature(model.forward).parameters
    if "pixel_values" not in taken and all(p.kind is not p.VAR_KEYWORD for p in taken.values()):
        raise ConfigError(
            f"forward of the model must take `pixel_values`, but that of {type(model).__name__} takes {', '.join(taken)}. "
            "Give a classifier of transformers; for timm's, `build_student` or TimmWrapperForImageClassification."
        )
    config = getattr(model, "config", None)
    kind = getattr(config, "problem_type", None)
    if kind not in (None, ONE_CLASS):
        raise ConfigError(
            f"the model must answer with one class for each image, but its configuration has the problem_type {kind!s:.40}. "
            "Set `model.config.problem_type` to None."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"the model must have weights that are trained, but all of {type(model).__name__} are frozen."
        )
    check_input(model, dataset)
    count = getattr(config, "num_labels", None)
    if count is not None:
        check_num_classes(count, dataset)
    names = dataset.class_names
    labels = getattr(config, "id2label", None)
    if names is None or not labels:
        return
    own = [str(labels.get(c)) for c in range(dataset.num_classes)]
    # Other words for the same classes are no contradiction; the same words in another order are.
    if own != names and set(own) == set(names):
        c = next(c for c, name in enumerate(names) if own[c] != name)
        raise ConfigError(
            f"the model's classes must be in the dataset's order, but class {c} is {own[c]!r} for the model and "
            f"{names[c]!r} in the dataset. Build it with the dataset's id2label."
        )


def check_input(model: nn.Module, dataset: ReinforcedData) -> None:
    """Shows a model one black image of a dataset's size, before anything is trained.

    Raises:
        ConfigError: It refuses it.
    """
    if is_deepspeed_zero3_enabled():  # no process has all weights
        return
    weight = next(model.parameters())
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(pixel_values=torch.zeros(1, 3, *dataset.size, device=weight.device, dtype=weight.dtype))
    # What a model refuses, it refuses in its own way.
    except Exception as error:
        height, width = dataset.size
        raise ConfigError(
            f"the model must take RGB images of {height}x{width} pixels, the size of the views, but: {type(error).__name__}: "
            f"{str(error).rstrip('. '):.300}. Build it for this size, or reinforce the dataset with another."
        ) from error
    finally:
        model.train(was_training)


def check_num_classes(count: int, dataset: ReinforcedData) -> None:
    """Checks the number of classes that a model answers over.

    Raises:
        ConfigError: It is not the dataset's.
    """
    expected = dataset.num_classes
    if count != expected:
        raise ConfigError(
            f'the model must answer over the {expected} classes of the "+" dataset, got {count}. Build it with '
            f"num_labels={expected}."
        )


def check_answers(batch: Mapping[str, Any], dataset: Any) -> None:
    """Checks that a batch has the answers that its dataset gives to each row.

    Args:
        batch: As the model is about to see it.
        dataset: What it is a part of.

    Raises:
        ConfigError: It has lost them.
    """
    missing = [name for name in ("teacher_ids", "teacher_logprobs", "reinforced") if name not in batch]
    if missing and isinstance(dataset, ReinforcedData):
        raise ConfigError(
            f"a batch of reinforced data must hold its stored answers, but {', '.join(missing)} are not among "
            f"{', '.join(batch)}. Leave `data_collator` out, or let it return every key of the rows."
        )


def check_settings(args: ReinforcedTrainingArguments, train: ReinforcedData, trainer: Trainer) -> None:
    """Checks that the settings of a training fit reinforced data.

    Raises:
        ConfigError: They do not.
    """
    tail_rule(args.tail, train.signal)
    if args.label_names is not None and "labels" not in args.label_names:
        raise ConfigError(
            f"`label_names` must hold `labels`, as the rows of this package call them, got {', '.join(args.label_names)}: "
            "evaluations would have no metrics. Leave it out."
        )
    for name, given, instead in (
        ("compute_loss_func", trainer.compute_loss_func, "Subclass and override `compute_loss`"),
        ("label_smoothing_factor", args.label_smoothing_factor, "Set `unreinforced_label_smoothing`"),
    ):
        if given:
            raise ConfigError(f"`{name}` has no part in the loss of a reinforced dataset, got one. {instead}.")
    if args.train_sampling_strategy != "random":
        raise ConfigError(
            f"`train_sampling_strategy` must be `random`, got {args.train_sampling_strategy!r}: a reinforced dataset has its "
            "own order. Leave it out."
        )
    if args.mixes and args.reinforced_probability:
        raise ConfigError(
            "`mixup_alpha` and `cutmix_alpha` must be 0 where stored views are replayed, which are mixed as they were "
            f"stored, got {args.mixup_alpha} and {args.cutmix_alpha}. Set them to 0, or train with `objective` erm or kd "
            "(`reinforced_probability` 0)."
        )
    if args.label_weight and not train.has_labels:
        raise ConfigError(
            f"`label_weight` must be 0 for a dataset without labels, got {args.label_weight}. Set it to 0."
        )


def check_other_dataset(args: ReinforcedTrainingArguments, train: Any) -> None:
    """Checks a training set that is not reinforced data: it must not hide any, nor need what only reinforced data has.

    Raises:
        ConfigError: Its stored views would not be replayed, or its batches not be mixed.
    """
    if _wraps_reinforced(train):
        raise ConfigError(
            f"`train_dataset` must be what `load_reinforced` returns, got it wrapped in {type(train).__name__}, where "
            "each row would show one view for ever. Select rows before: "
            "`train.select(rows)`."
        )
    if hasattr(train, "column_names") and "teacher_ids" in train.column_names:
        raise ConfigError(
            '`train_dataset` must be what `load_reinforced` returns, got the plain datasets.Dataset of a "+" dataset. '
            "Its views would not be replayed: open it with `load_reinforced`."
        )
    if isinstance(train, datasets.Dataset) and is_undecoded(train):
        raise ConfigError(
            "`train_dataset` must be what `load_reinforced` returns, an `AugmentedDataset`, or make its `pixel_values` by a "
            "transform, got a datasets.Dataset of images. Reinforce it first, or set a transform."
        )
    if args.mixes and train is not None:
        raise ConfigError(
            "`mixup_alpha` and `cutmix_alpha` need a dataset of this package (`load_reinforced`, `AugmentedDataset`), got "
            f"{type(train).__name__}. Set them to 0."
        )


def _wraps_reinforced(dataset: Any) -> bool:
    """Whether a reinforced dataset is inside a Subset, a ConcatDataset or the like."""
    inner = [getattr(dataset, "dataset", None), *getattr(dataset, "datasets", ())]
    return any(isinstance(d, ReinforcedData) or _wraps_reinforced(d) for d in inner if d is not None)

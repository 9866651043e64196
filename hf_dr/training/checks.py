"""Whether a student, its data and the settings of a training fit together: found out before the first step.

What does not fit is a ConfigError, and labels that are none of the classes a DataError.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import IntervalStrategy

from hf_dr.errors import ConfigError, DataError
from hf_dr.replay.reinforced_data import ReinforcedData
from hf_dr.replay.streaming import StreamedReinforcedDataset
from hf_dr.store.base_dataset import whole_column
from hf_dr.store.labels import check_class_names, check_dataset, class_numbers, image_columns, label_advice
from hf_dr.teacher.members import ONE_CLASS
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.evaluated import few_answers
from hf_dr.training.losses import check_label_weight, check_num_classes, tail_rule
from hf_dr.training.student_inputs import LabelledImages, evaluation_of
from hf_dr.views.augmentation import Augmentation


def check_student(model: nn.Module, dataset: ReinforcedData) -> None:
    """Checks that a model takes pixels, is trained, and answers over the teacher's classes, in the same order."""
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
            f"the model must have weights that are trained, but all of {type(model).__name__} are frozen. Unfreeze some."
        )
    trained = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    half = [str(dtype) for dtype in (torch.float16, torch.bfloat16) if dtype in trained]
    if half:
        raise ConfigError(
            f"the weights that are trained must be float32, found {' and '.join(half)}: in less, small steps are rounded away. "
            "Load the model with dtype=torch.float32, and set `bf16` or `fp16` to compute in less."
        )
    check_input(model, dataset)
    count = getattr(config, "num_labels", None)
    if count is not None:
        check_num_classes(count, dataset.num_classes)
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
    """Shows a model one black image of a dataset's size, before anything is trained."""
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
            f"{str(error).rstrip('. '):.300}. Take a dataset whose views have the size of the model, or a model for this size, "
            "which `build_student` with `size` makes of timm's architectures."
        ) from error
    finally:
        model.train(was_training)


def check_batches(
    rows: int,
    args: TrainingArguments,
    learns_from_one: Callable[[], bool],
    *,
    streamed: bool = False,
    batch_size: int | None = None,
) -> None:
    """Refuses a training with batches of one image where its model cannot learn from one: an epoch would end in an error.

    Args:
        rows: All that is learned from.
        args: Settings of the training.
        learns_from_one: Whether the model can; asked only where there is such a batch.
        streamed: Whether each process has a share of the rows. Else the last batches of several processes are filled up,
            unless accelerate is told not to.
        batch_size: What each process takes at a time, where it is not what the settings say.
    """
    batch = args.train_batch_size if batch_size is None else batch_size
    own = -(-rows // args.world_size) if streamed else rows
    filled = args.world_size > 1 and not streamed and args.accelerator_config.even_batches  # type: ignore[union-attr]
    rest = own % batch == 1 and not args.dataloader_drop_last and not filled
    steps = -(-own // (batch * args.gradient_accumulation_steps))
    planned = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps)
    if (batch > 1 and not (rest and planned >= steps)) or learns_from_one():
        return
    found = f"{own} images make one of 1 in batches of {batch}. Set `dataloader_drop_last`, or another batch size."
    raise ConfigError(
        "each batch must have more than one image, because the model has batch normalisations that see one value of each "
        f"channel in an image, but {found if batch > 1 else 'all have one. Set a larger batch size.'}"
    )


def learns_from_one(model: nn.Module, dataset: ReinforcedData, world_size: int) -> bool:
    """Whether each batch normalisation that is trained has more than one value of each channel in a single image.

    Those that are synchronised see the images of all processes.
    """
    if is_deepspeed_zero3_enabled():
        return True
    shared = nn.SyncBatchNorm if world_size > 1 else ()
    alone: list[bool] = []

    def look(_: nn.Module, seen: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        (values,) = (*seen, *named.values())
        alone.append(values.numel() == values.shape[1])

    was_training = model.training
    hooks = [
        layer.register_forward_pre_hook(look, with_kwargs=True)
        for layer in model.train().modules()
        if isinstance(layer, _BatchNorm) and layer.training and not isinstance(layer, shared)
    ]
    model.train(was_training)
    try:
        check_input(model, dataset)
    finally:
        for hook in hooks:
            hook.remove()
    return not any(alone)


def check_training(args: ReinforcedTrainingArguments, train: ReinforcedData, trainer: Trainer) -> None:
    """Checks that the settings of a training fit reinforced data."""
    tail_rule(args.tail, train.signal)
    if args.label_names is not None and "labels" not in args.label_names:
        raise ConfigError(
            f"`label_names` must hold `labels`, as the rows of this package call them, got {', '.join(args.label_names)}: "
            "evaluations would have no metrics. Leave it out."
        )
    check_loss(args, trainer.compute_loss_func)
    if args.train_sampling_strategy != "random":
        raise ConfigError(
            f"`train_sampling_strategy` must be `random`, got {args.train_sampling_strategy!r}: a reinforced dataset has its "
            "own order. Leave it out."
        )
    if trainer.accelerator.split_batches and isinstance(train, StreamedReinforcedDataset):
        raise ConfigError(
            "`split_batches` has no part in a stream, whose rows the processes share already. Leave it out, and set "
            "`batch_size`."
        )
    check_mixing(args)
    check_label_weight(args.label_weight, train.mixes and args.reinforced_probability > 0, train.has_labels)
    if trainer.compute_metrics is not None:
        _check_evaluations(args, train, trainer.compute_metrics)


def check_no_sampler(trainer: Trainer) -> None:
    """Refuses a subclass whose own sampler the loader of reinforced data would not ask."""
    whose = type(trainer)
    if whose._get_train_sampler is not Trainer._get_train_sampler:
        raise ConfigError(
            f"`_get_train_sampler` of {whose.__name__} would not be called: a reinforced dataset has its own order. "
            "Override `get_train_dataloader`; what that returns shows another view of each row in each epoch."
        )


def check_loss(args: ReinforcedTrainingArguments, compute_loss_func: object) -> None:
    """Refuses another loss than that of reinforced data."""
    for name, given, instead in (
        ("compute_loss_func", compute_loss_func, "Subclass and override `compute_loss`"),
        ("label_smoothing_factor", args.label_smoothing_factor, "Set `unreinforced_label_smoothing`"),
    ):
        if given:
            raise ConfigError(f"`{name}` has no part in the loss of a reinforced dataset, got one. {instead}.")


def check_optimizer(optimizer: torch.optim.Optimizer | None, model: nn.Module) -> None:
    """Refuses an optimizer that was made of another model; one of DeepSpeed does not tell what it has."""
    groups = getattr(optimizer, "param_groups", ())
    own = {id(parameter) for parameter in model.parameters()}
    if groups and not any(id(parameter) in own for group in groups for parameter in group["params"]):
        raise ConfigError(
            "the optimizer must have weights of the model, but has others, so that nothing would be learned. Make it from "
            "`model.parameters()` of the model that the trainer gets."
        )


def check_model_settings(args: ReinforcedTrainingArguments, model: nn.Module) -> None:
    """Refuses settings for which transformers asks a model what not every model knows."""
    # The lowest transformers that is accepted has the old name. All its models have the method, if only to refuse: what counts
    # is one of the model's own class, or that it says of itself that it supports it.
    old, new = "gradient_checkpointing", "activation_checkpointing"
    name = new if hasattr(args, new) else old
    own, theirs = (
        {getattr(kind, f"{one}_enable", None) for one in (old, new)} for kind in (type(model), PreTrainedModel)
    )
    if getattr(args, name) and not (own - theirs - {None} or getattr(model, "supports_gradient_checkpointing", False)):
        raise ConfigError(
            f"`{name}` needs a model that supports it, by a method `{name}_enable`, got {type(model).__name__}. Leave it out, "
            "or take another model."
        )
    if args.label_smoothing_factor and not hasattr(model, "config"):
        raise ConfigError(
            "`label_smoothing_factor` needs a model that has a `config`, as those of transformers, got "
            f"{type(model).__name__}. Leave it out, or smooth labels in the model's own loss."
        )


def check_mixing(args: ReinforcedTrainingArguments) -> None:
    """Refuses batches that are mixed where stored views are replayed."""
    if args.mixes and args.reinforced_probability:
        raise ConfigError(
            "`mixup_alpha` and `cutmix_alpha` must be 0 where stored views are replayed, which are mixed as they were "
            f"stored, got {args.mixup_alpha} and {args.cutmix_alpha}. Set them to 0, or train with `objective` erm or kd "
            "(`reinforced_probability` 0)."
        )


def _check_evaluations(args: ReinforcedTrainingArguments, train: ReinforcedData, compute: Callable[..., Any]) -> None:
    """Checks that evaluations give `compute_metrics` what it takes, and measure what is asked for."""
    if args.prediction_loss_only:  # `compute_metrics` is not called
        wanted = args.metric_for_best_model
        if args.eval_strategy != IntervalStrategy.NO and wanted is not None and wanted.rpartition("_")[2] != "loss":
            raise ConfigError(
                f"`metric_for_best_model` must be loss with `prediction_loss_only`, got {wanted!r}: evaluations would not call "
                "`compute_metrics`. Leave `prediction_loss_only` out, or choose by the loss."
            )
        return
    if args.eval_do_concat_batches or args.batch_eval_metrics:
        return
    logits, labels = few_answers(train.num_classes)
    # Refuse only where leaving the setting out helps: the function may be made for lists of batches, or fail on both.
    if _computes(compute, logits, labels) and not _computes(compute, [logits, logits[:1]], [labels, labels[:1]]):
        raise ConfigError(
            "`eval_do_concat_batches` must be True for a `compute_metrics` that takes one array of all predictions, got False: "
            "it would get lists of batches, the last of which may be smaller. Leave it out."
        )


def _computes(compute: Callable[..., Any], logits: Any, labels: Any) -> bool:
    """Whether a function computes metrics of these predictions."""
    try:
        compute(EvalPrediction(logits, labels))
    except Exception:  # the user's function may raise anything
        return False
    return True


def check_no_path(name: str, given: object) -> None:
    """Refuses the path or the name of a dataset in the place of the argument `name`, a dataset or several by name."""
    for one in given.values() if isinstance(given, dict) else [given]:
        if isinstance(one, (str, os.PathLike)):
            advice = "load_reinforced" if name == "train_dataset" else "datasets.load_dataset"
            raise ConfigError(
                f"`{name}` must be a dataset, such as `{advice}` returns, got the name {os.fspath(one)!r}. Open it: "
                f"`{advice}(...)`."
            )


def check_one(name: str, given: object) -> None:
    """Refuses several datasets by name, as `datasets` returns them, in the place of the argument `name`."""
    if isinstance(given, dict):
        raise ConfigError(f"`{name}` must be one dataset, got several by name ({', '.join(given)}). Give one of them.")


def check_other_dataset(args: ReinforcedTrainingArguments, train: Any) -> None:
    """Checks a training set that is not reinforced data: it must not hide any, nor need what only reinforced data has."""
    listed = isinstance(train, Sequence) and train and isinstance(train[0], dict) and "teacher_ids" in train[0]
    if listed or _wraps_reinforced(train):
        raise ConfigError(
            f"`train_dataset` must be what `load_reinforced` returns, got a {type(train).__name__} of its rows, each of which "
            "would show one view in all epochs. Select rows by `train.select(rows)`, add up the views of one base by "
            "`load_reinforced([A, B])`, and join several bases before they are reinforced."
        )
    check_one("train_dataset", train)
    if "teacher_ids" in (getattr(train, "column_names", None) or ()):  # a stream may not know its own
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
    """Whether a reinforced dataset is inside a Subset, a ConcatDataset, a list or the like."""
    listed = dataset if isinstance(dataset, (list, tuple)) else ()
    # A list may also be of rows, which may be lists themselves: those are not looked into.
    within = [one for one in listed if isinstance(one, torch.utils.data.Dataset)]
    inner = [getattr(dataset, "dataset", None), *getattr(dataset, "datasets", ()), *within]
    return any(isinstance(d, ReinforcedData) or _wraps_reinforced(d) for d in inner if d is not None)


def evaluation_images(
    dataset: datasets.Dataset,
    train: ReinforcedData,
    shown: Augmentation,
    *,
    to_predict: bool = False,
    name: str = "eval_dataset",
) -> LabelledImages:
    """Returns the images and labels of a dataset; the trainer that evaluates by them checks their classes.

    Args:
        dataset: Has an image column and a label column: those of the training set where it has them, else its only ones.
        train: What the student learns from.
        shown: The view of each image; see `evaluation_of`.
        to_predict: Labels may be missing, the column or all of them (-1, as in test sets of the Hub).
        name: What messages call the dataset.
    """
    columns = (train.origin.image_column, train.origin.label_column)
    own = [name if name in dataset.column_names else None for name in columns]
    image_column, label_column = check_dataset(dataset, own[0], own[1])
    if to_predict and label_column is not None:
        labels = whole_column(dataset, label_column).drop_null()
        if pa.types.is_signed_integer(labels.type):
            labels = labels.filter(pc.not_equal(labels, -1))
        label_column = label_column if len(labels) else None
    if label_column is None and not to_predict:
        raise DataError(
            f"`{name}` must have a column of labels, found {', '.join(dataset.column_names)}. "
            f"{label_advice(dataset, image_column, 'Name it `label`.')}"
        )
    return LabelledImages(dataset, shown, image_column=image_column, label_column=label_column)


def as_evaluation(trainer: Any, given: Any, *, to_predict: bool = False, name: str = "eval_dataset") -> Any:
    """Returns what Trainer evaluates on, of what it is given: a dataset, or several by name.

    Plain images become `LabelledImages` where the trainer learns from `ReinforcedData`, which tells their classes and size;
    see `evaluation_images`.
    """
    train = trainer.train_dataset
    if isinstance(given, dict):
        made = {key: as_evaluation(trainer, one, to_predict=to_predict) for key, one in given.items()}
        return made if isinstance(train, ReinforcedData) else given
    if isinstance(given, ReinforcedData):
        tail_rule(trainer.args.tail, given.signal)  # which may be another signal than that of the training set
    if not isinstance(train, ReinforcedData):
        return given
    if isinstance(given, datasets.Dataset) and is_undecoded(given):
        shown = evaluation_of(trainer.model, trainer.processing_class, train.size)
        given = evaluation_images(given, train, shown, to_predict=to_predict, name=name)
    if isinstance(given, ReinforcedData):
        check_class_names(given.class_names, train.class_names, name, ConfigError)
        if given.num_classes != train.num_classes:
            raise ConfigError(
                f"`{name}` must have the {train.num_classes} classes of the training set, got {given.num_classes}. Give others."
            )
    elif isinstance(given, LabelledImages):
        check_labels(given, train, name, needed=not to_predict)
    elif is_undecoded(getattr(given, "dataset", given)):
        raise ConfigError(
            f"`{name}` must be a datasets.Dataset, or make its `pixel_values` itself, got {type(given).__name__} of "
            "undecoded images. Use `Dataset.select` for a part of a dataset, and no `streaming`."
        )
    return given


def check_labels(images: LabelledImages, train: ReinforcedData, name: str, *, needed: bool = True) -> None:
    """Checks that the labels of images, which messages call `name`, are the classes of the training set."""
    if images.has_labels:
        check_class_names(images.class_names, train.class_names, name, ConfigError)
        class_numbers(images.labels, train.num_classes, f"the labels of `{name}`", "Give a split with labels.")
    elif needed:
        raise DataError(f"`{name}` must have labels, got LabelledImages without. Name its `label_column`.")


def is_undecoded(dataset: Any) -> bool:
    """Whether a dataset has images, and neither makes `pixel_values` of them nor has a transform of one's own that may."""
    if not isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        return False
    features = dataset.features or {}  # a stream may not know its own
    transformed = isinstance(dataset, datasets.Dataset) and dataset.format["type"] == "custom"
    return bool(image_columns(features)) and "pixel_values" not in features and not transformed

"""`ReinforcedTrainer`: transformers' Trainer on a "+" dataset."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.utils import ModelEmaV3
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_dr.errors import ConfigError
from hf_dr.losses import TAIL_RULES, TailRule, reinforced_kl
from hf_dr.replay import ReinforcedDataset
from hf_dr.sampling import VIEW_ORDERS, ReinforcedSampler

logger = logging.getLogger(__name__)

_EMA_FILE = "ema.safetensors"


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
        default="cycle",
        metadata={
            "help": "`cycle`: every view once before any repeats; `random`: any at any time.",
            "choices": VIEW_ORDERS,
        },
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Softens teacher and student; the loss is multiplied by T^2."}
    )
    tail: TailRule = field(
        default="uniform", metadata={"help": "Where the teacher's mass outside the stored top-K goes."}
    )
    label_weight: float = field(
        default=0.0, metadata={"help": "Weight of the label's cross-entropy for replayed views; KL has one minus it."}
    )
    unreinforced_label_smoothing: float = field(
        default=0.0, metadata={"help": "Label smoothing of the samples that are not replayed."}
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
            ("momentum", 1),
        ):
            value = getattr(self, name)
            if not 0 <= value <= high:
                raise ConfigError(f"`{name}` must be between 0 and {high}, got {value!r}.")
        if not self.temperature > 0:
            raise ConfigError(f"`temperature` must be above 0, got {self.temperature!r}.")
        for name, known in (("tail", TAIL_RULES), ("view_order", VIEW_ORDERS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"`ema_decay` must be between 0 and 1, got {self.ema_decay!r}.")
        super().__post_init__()


class ReinforcedTrainer(Trainer):
    """Trains an image classifier on stored views and stored teacher answers: no teacher in memory, no extra time.

    A drop-in for `transformers.Trainer`. With a `ReinforcedDataset` as `train_dataset` the loss is the KL divergence to
    the stored answers; with any other dataset it is Trainer's own. `eval_dataset` is as for Trainer. Where
    `pixel_values` are uint8, as those of this package are, they are normalised on the device.

    Args:
        model: An image classifier of transformers, timm's through `TimmWrapperForImageClassification` included.
        args: Settings.
        normalization: (mean, std) of the student's input, each three numbers of the scale 0 to 1. Default: those of the
            model's own `pretrained_cfg`, else ImageNet's.
        **settings: All that Trainer takes.

    Raises:
        ConfigError: The model's classes are not the dataset's, or a setting does not fit the dataset.
    """

    # Ours is a mean over the batch: Trainer divides it by the number of accumulated batches.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module | None = None,
        args: ReinforcedTrainingArguments | None = None,
        *,
        normalization: tuple[Sequence[float], Sequence[float]] | None = None,
        **settings: Any,
    ) -> None:
        args = args or ReinforcedTrainingArguments("trainer_output")
        if not isinstance(args, ReinforcedTrainingArguments):
            raise ConfigError(f"`args` must be ReinforcedTrainingArguments, got {type(args).__name__}.")
        super().__init__(model=model, args=args, **settings)
        self.args: ReinforcedTrainingArguments
        assert isinstance(self.model, nn.Module)
        train: Any = self.train_dataset
        if isinstance(train, ReinforcedDataset):
            check_student(self.model, train)
            if train.augmentation.mixes and args.train_batch_size % 2:
                logger.warning("An odd batch size splits mixed pairs over batches: their images are decoded twice.")
        elif hasattr(train, "column_names") and "teacher_ids" in train.column_names:
            raise ConfigError(
                '`train_dataset` must be what `load_reinforced` returns, got the plain datasets.Dataset of a "+" dataset. '
                "Its views would not be replayed: open it with `load_reinforced`."
            )
        self._sampler: ReinforcedSampler | None = None
        self._normalization = normalization or _own_normalization(self.model)
        self.ema: ModelEmaV3 | None = None
        if args.ema_decay is not None:
            self.ema = ModelEmaV3(self.model, decay=args.ema_decay, device=args.device)
        self.add_callback(_Epochs(self))

    # ------------------------------------------------------------------------------------------------- data and loss

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        if not isinstance(dataset, ReinforcedDataset):
            return super()._get_train_sampler(train_dataset)
        args = self.args
        self._sampler = ReinforcedSampler(
            dataset,
            seed=args.data_seed if args.data_seed is not None else args.seed,
            view_order=args.view_order,
            reinforced_probability=args.reinforced_probability,
        )
        return self._sampler

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        assert self._signature_columns is not None
        for name in ("teacher_ids", "teacher_logprobs", "reinforced"):
            if name not in self._signature_columns:
                self._signature_columns.append(name)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        pixels = inputs.get("pixel_values")
        if isinstance(pixels, torch.Tensor) and pixels.dtype == torch.uint8:
            inputs = {**inputs, "pixel_values": normalize(pixels, *self._normalization)}
        return inputs

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Returns the mean over the batch of KL to the stored teacher, and of the label's cross-entropy where it counts."""
        if "teacher_ids" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = self._reinforced_loss(outputs["logits"] if isinstance(outputs, dict) else outputs[0], inputs)
        return (loss, outputs) if return_outputs else loss

    def _reinforced_loss(self, logits_BC: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        args, labels_B = self.args, inputs.get("labels")
        kl_B = reinforced_kl(
            logits_BC, inputs["teacher_ids"], inputs["teacher_logprobs"], tail=args.tail, temperature=args.temperature
        )
        if labels_B is None:
            return kl_B.mean()
        loss_B = kl_B
        if args.label_weight:
            label_B = F.cross_entropy(logits_BC.float(), labels_B, reduction="none")
            loss_B = (1 - args.label_weight) * kl_B + args.label_weight * label_B
        if args.reinforced_probability < 1:
            fresh_B = F.cross_entropy(
                logits_BC.float(), labels_B, reduction="none", label_smoothing=args.unreinforced_label_smoothing
            )
            loss_B = torch.where(inputs["reinforced"], loss_B, fresh_B)
        return loss_B.mean()

    # ------------------------------------------------------------------------------------------ optimizer and average

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Returns the names of the parameters that decay: not biases, normalisations, or what the model itself excludes."""
        unwrapped = getattr(model, "timm_model", model)
        excluded: Any = getattr(unwrapped, "no_weight_decay", set)
        own = excluded()
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim > 1 and name.removeprefix("timm_model.") not in own
        ]

    def get_optimizer_cls_and_kwargs(self, args: Any, model: Any = None) -> tuple[Any, Any]:  # type: ignore[override]
        """As Trainer's; `--optim sgd` gets momentum as well."""
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if kind is torch.optim.SGD:
            settings = {**settings, "momentum": args.momentum, "nesterov": args.nesterov and args.momentum > 0}
        return kind, settings

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As Trainer's; with `ema_decay`, the averaged weights are evaluated too, under `<prefix>_ema_*`."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.ema is not None:
            model = self.accelerator.unwrap_model(self.model)
            current = copy.deepcopy(model.state_dict())
            model.load_state_dict(self.ema.module.state_dict())
            try:
                metrics.update(super().evaluate(eval_dataset, ignore_keys, f"{metric_key_prefix}_ema"))
            finally:
                model.load_state_dict(current)
        return metrics

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        if self.ema is not None and self.args.should_save:
            folder = Path(self._get_output_dir(trial=None)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            save_file({k: v.contiguous() for k, v in self.ema.module.state_dict().items()}, folder / _EMA_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.ema is not None:
            path = Path(resume_from_checkpoint) / _EMA_FILE
            if not path.is_file():
                raise ConfigError(
                    f"`ema_decay` is set, but the checkpoint {resume_from_checkpoint} has no {_EMA_FILE}. Resume "
                    "without it, or from a checkpoint that was trained with it."
                )
            self.ema.module.load_state_dict(load_file(path))


class _Epochs(TrainerCallback):
    """Tells the sampler its epoch by reference, before each epoch's first batch: accelerate's own `set_epoch` does not
    reach it through the wrappers that skip batches after a restart. Updates the averaged weights after each step."""

    def __init__(self, trainer: ReinforcedTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._trainer._sampler is not None:
            # state.epoch is a fraction after a restart within an epoch; a step is more than the 1e-6 that rounding takes.
            self._trainer._sampler.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._trainer.ema is not None:
            self._trainer.ema.update(self._trainer.accelerator.unwrap_model(self._trainer.model), state.global_step)


def normalize(pixels_BCHW: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Turns uint8 pixels into the model's float32 input: (pixels / 255 - mean) / std for each channel."""
    shape = (1, -1, 1, 1)
    offset = torch.tensor(mean, device=pixels_BCHW.device).view(shape) * 255
    scale = torch.tensor(std, device=pixels_BCHW.device).view(shape) * 255
    return (pixels_BCHW - offset) / scale


def _own_normalization(model: nn.Module) -> tuple[Sequence[float], Sequence[float]]:
    cfg = getattr(getattr(model, "config", None), "pretrained_cfg", None) or {}
    return cfg.get("mean", IMAGENET_DEFAULT_MEAN), cfg.get("std", IMAGENET_DEFAULT_STD)


def check_student(model: nn.Module, dataset: ReinforcedDataset) -> None:
    """Checks that a model answers over the classes that the teacher did, in the same order.

    Raises:
        ConfigError: It does not.
    """
    config = getattr(model, "config", None)
    count, expected = getattr(config, "num_labels", None), dataset.provenance.num_classes
    if count is not None and count != expected:
        raise ConfigError(
            f'the model must answer over the {expected} classes of the "+" dataset, got {count}. Build it with '
            f"num_labels={expected}."
        )
    names, own = dataset.class_names, getattr(config, "id2label", None)
    if names is None or not own or all(str(own.get(c)) == f"LABEL_{c}" for c in range(expected)):
        return
    mine = [str(own.get(c)) for c in range(expected)]
    # Other words for the same classes are no contradiction; the same words in another order are.
    if set(mine) == set(names) and mine != names:
        c = next(c for c in range(expected) if mine[c] != names[c])
        raise ConfigError(
            f"the model's classes must be in the dataset's order, but class {c} is {mine[c]!r} for the model and "
            f"{names[c]!r} in the dataset. Build it with the dataset's id2label."
        )

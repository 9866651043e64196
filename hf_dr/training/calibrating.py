"""Calibration of a trained classifier: one temperature, fitted to images that it has not learned from (Guo et al., 2017)."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn

from hf_dr.errors import ConfigError, DataError
from hf_dr.store.base_dataset import shared_files
from hf_dr.teacher.calibration import fit_temperature
from hf_dr.training.callbacks import WeightAverage
from hf_dr.training.checks import check_no_path
from hf_dr.training.resumable import ResumableTrainer, changed
from hf_dr.training.students import outputs_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """What `StudentTrainer.calibrate` has found.

    Attributes:
        temperature: What the logits are divided by; above 1 the model was too sure of itself.
        ema_temperature: That of the averaged weights; None without any.
        folded: Whether the weights have taken it in.
        logits: Of the images before, float32 (B, C).
        labels: Their classes, int64 (B,).
    """

    temperature: float
    ema_temperature: float | None
    folded: bool
    logits: np.ndarray
    labels: np.ndarray


def calibrate(trainer: ResumableTrainer, images: Any, average: WeightAverage | None, *, fold: bool) -> Calibration:
    """Fits the temperature of a trainer's model, and of its averaged weights if there are any; see `StudentTrainer.calibrate`.

    Args:
        trainer: After its training.
        images: Rows with `pixel_values` and `labels`.
        average: Of the weights, if there is one.
        fold: Whether the weights take it in, if they can.
    """
    check_no_path("images", images)
    if isinstance(images, dict):
        raise ConfigError(f"`images` must be one dataset, got {len(images)} by name ({', '.join(images)}). Give one.")
    if fold:
        check_whole(trainer, "calibrate")
    model = trainer.accelerator.unwrap_model(trainer.model)
    logits_BC, labels_B = _answers(trainer, images)
    temperature = fit_temperature(logits_BC, labels_B)
    found = {model: temperature}
    if average is not None:
        with average.in_place_of(model):
            found[average.ema.module] = fit_temperature(*_answers(trainer, images))
    size = torch.as_tensor(next(iter(images))["pixel_values"]).shape[-2:]
    # Both or neither: they are of one architecture.
    folded = fold and all(fold_temperature(each, own, _pixels(each, size)) for each, own in found.items())
    if fold and not folded:
        logger.warning(
            "The last layer of the model cannot take the temperature in: divide its logits by %.4g.", temperature
        )
    ema_temperature = None if average is None else found[average.ema.module]
    return Calibration(temperature, ema_temperature, folded, logits_BC, labels_B)


def _answers(trainer: ResumableTrainer, images: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits (B, C) and labels (B,) of all images, whatever the settings of evaluations say."""
    whole = {"prediction_loss_only": False, "batch_eval_metrics": False, "eval_do_concat_batches": True}
    with changed(trainer.args, **whole), changed(trainer, compute_metrics=None):
        predicted = trainer.predict(images)
    logits_BC = np.asarray(predicted.predictions, np.float32)
    labels_B = np.full(len(logits_BC), -1) if predicted.label_ids is None else np.asarray(predicted.label_ids)
    unknown = np.flatnonzero((labels_B < 0) | (labels_B >= logits_BC.shape[1]))
    if len(unknown):
        raise DataError(
            f"images to calibrate by must have labels from 0 to {logits_BC.shape[1] - 1}, found "
            f"{'none' if predicted.label_ids is None else labels_B[unknown[0]]} in row {unknown[0]}. Give others."
        )
    return logits_BC, labels_B


def check_whole(trainer: Any, setting: str) -> None:
    """Refuses to calibrate a model of which no process has all weights."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError(
            f"`{setting}` needs all weights in each process, but they are sharded (FSDP, DeepSpeed). Leave it out."
        )


def check_classes(labels: np.ndarray, tested: np.ndarray) -> None:
    """Refuses to calibrate by a slice of a split that is sorted by class, which would fit few classes and be tested on others.

    Args:
        labels: Classes of the images to calibrate by, (n,).
        tested: Of those that are tested, (m,).
    """
    found, known = len(np.unique(labels)), len(np.unique(tested))
    by_chance = known * (1 - (1 - 1 / known) ** len(labels))  # the mean of n draws from as many classes
    if found < by_chance / 2:
        raise ConfigError(
            f"`calibrate_split` must have images of all classes, but its {len(labels):,} are of {found:,} classes and those of "
            f"`eval_split` of {known:,}. A slice of a split that is sorted by class is no sample: shuffle it, or name another."
        )


def check_other_images(images: datasets.Dataset, tested: datasets.Dataset, where: str) -> None:
    """Refuses to calibrate by images of which more than 1 in 100 are also tested; fewer may be twins that a dataset has.

    Args:
        images: Undecoded, one column.
        tested: As these.
        where: What they are, for the message.
    """
    shared = shared_files(images, tested)
    if shared > len(images) / 100:
        raise ConfigError(
            f"`calibrate_split` must have other images than {where}, but {shared:,} of its {len(images):,} are the same: the "
            "calibration error would be measured by what it was fitted to. Take slices, as `test[:1000]` and `test[1000:]`."
        )


def check_foldable(model: nn.Module, size: tuple[int, int], setting: str) -> None:
    """Refuses a model whose weights cannot take a temperature in, before it is trained on images of a size."""
    tried = copy.deepcopy(model)
    if not fold_temperature(tried, 2.0, _pixels(tried, size)):
        raise ConfigError(
            f"`{setting}` needs a model whose logits are linear in the weights of its last layer, but those of "
            f"{type(model).__name__} are not. Leave it out, and divide by the `temperature` that `hf-dr evaluate` finds."
        )


def _pixels(model: nn.Module, size: Any) -> torch.Tensor:
    """Returns some input of a model."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, *size, generator=generator).to(next(model.parameters()).device)


@torch.no_grad()
def fold_temperature(model: nn.Module, temperature: float, pixels_BCHW: torch.Tensor) -> bool:
    """Divides a classifier's logits by a temperature, in its last layer: whoever loads its weights gets calibrated answers.

    That is the last layer with an output for each class, or the last two, as in DeiT, whose heads are averaged. Layers within
    the model may have as many outputs by chance, so what was done is checked, with one layer more each time.

    Args:
        model: A classifier as `ReinforcedTrainer` takes it.
        temperature: What the logits are divided by.
        pixels_BCHW: Some input of the model, by which the result is checked.

    Returns:
        Whether it worked; a model whose logits are not linear in the weights of its last layer stays as it was.
    """
    model.eval()
    expected_BC = outputs_of(model, pixels_BCHW)["logits"] / temperature
    classes = expected_BC.shape[-1]
    heads = [
        layer
        for layer in model.modules()
        if (isinstance(layer, nn.Linear) and layer.out_features == classes)
        or (isinstance(layer, nn.Conv2d) and layer.out_channels == classes)
    ]
    for first in reversed(range(len(heads))):
        weights = [weight for layer in heads[first:] for weight in layer.parameters()]
        kept = [weight.clone() for weight in weights]
        for weight in weights:
            weight.div_(temperature)
        if torch.allclose(outputs_of(model, pixels_BCHW)["logits"], expected_BC, rtol=1e-3, atol=1e-4):
            return True
        for weight, old in zip(weights, kept, strict=True):
            weight.copy_(old)
    return False

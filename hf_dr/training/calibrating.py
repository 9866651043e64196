"""Calibration of a trained classifier: one temperature, fitted to images that it has not learned from (Guo et al., 2017)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn

from hf_dr.errors import ConfigError, DataError
from hf_dr.replay.combined import CombinedReinforcedDataset
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.join import index_images
from hf_dr.replay.reinforced_data import ReinforcedData
from hf_dr.store.base_dataset import shared_files
from hf_dr.teacher.calibration import fit_temperature, is_within
from hf_dr.training.callbacks import WeightAverage
from hf_dr.training.checks import check_no_path, check_one
from hf_dr.training.evaluated import weights_are_sharded
from hf_dr.training.resumable import ResumableTrainer, changed
from hf_dr.training.student_inputs import LabelledImages, outputs_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """What `StudentTrainer.calibrate` has found.

    Attributes:
        temperature: What the logits are divided by; above 1 the model was too sure of itself.
        ema_temperature: That of the averaged weights; None without any.
        logits: Logits of the images before the calibration, float32 (B, C).
        labels: Their classes, int64 (B,).
        trained: The weights that have taken the temperature in, those of the average as well, with what they were before.
    """

    temperature: float
    ema_temperature: float | None
    logits: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    trained: Mapping[nn.Parameter, torch.Tensor] = field(repr=False)

    @property
    def folded(self) -> bool:
        """Whether the weights have taken the temperature in."""
        return bool(self.trained)


def calibrate(trainer: ResumableTrainer, images: Any, average: WeightAverage | None, *, fold: bool) -> Calibration:
    """Fits the temperature of a trainer's model, and of its averaged weights if there are any; see `StudentTrainer.calibrate`.

    With `fold` weights that have taken a temperature in before are first what they were when they were trained.
    """
    _check_given(images)
    if isinstance(images, LabelledImages):
        check_not_learned(images.files, trainer.train_dataset, "images")
    model = trainer.accelerator.unwrap_model(trainer.model)
    if fold:
        check_whole(trainer, "calibrate")
        _undo(trainer)
    logits_BC, labels_B = _answers(trainer, images)
    temperatures = {model: fit_temperature(logits_BC, labels_B)}
    if not is_within(temperatures[model]):
        logger.warning(
            "The temperature that fits %d images is %.2f, and none beyond is tried: they are too few to calibrate by, or "
            "others than the student knows.",
            len(labels_B),
            temperatures[model],
        )
    if average is not None:
        with average.in_place_of(model):
            temperatures[average.ema.module] = fit_temperature(*_answers(trainer, images))
    trained = _fold(temperatures, _pixels(trainer, images)) if fold else {}
    if fold and not trained:
        logger.warning(
            "The last layer of the model cannot take the temperature in: divide its logits by %.4g.",
            temperatures[model],
        )
    return Calibration(
        temperatures[model],
        None if average is None else temperatures[average.ema.module],
        logits_BC,
        labels_B,
        trained,
    )


def _fold(temperatures: Mapping[nn.Module, float], pixels_BCHW: torch.Tensor) -> dict[nn.Parameter, torch.Tensor]:
    """Divides the last layer of each model by its temperature; returns what it was, nothing if one of them cannot take it."""
    layers = {model: last_layer(model, pixels_BCHW) for model in temperatures}
    if not all(layers.values()):
        return {}
    trained = {weight: weight.detach().clone() for layer in layers.values() for weight in layer}
    _put({weight: trained[weight] / temperatures[model] for model, layer in layers.items() for weight in layer})
    return trained


def _undo(trainer: ResumableTrainer) -> None:
    """Restores the weights to what they were before an earlier calibration, and forgets the metrics."""
    if trainer._calibration is not None:
        _put(trainer._calibration.trained)
        trainer._calibration, trainer._measured = None, {}


@contextmanager
def as_trained(trainer: Any) -> Iterator[None]:
    """Restores the weights for a while to what they were before a calibration: checkpoints hold these."""
    trained = {} if trainer._calibration is None else trainer._calibration.trained
    calibrated = {weight: weight.detach().clone() for weight in trained}
    _put(trained)
    try:
        yield
    finally:
        _put(calibrated)


@torch.no_grad()
def _put(numbers: Mapping[nn.Parameter, torch.Tensor]) -> None:
    for weight, value in numbers.items():
        weight.copy_(value)


def _check_given(images: Any) -> None:
    """Refuses what is no dataset, or has no images."""
    check_no_path("images", images)
    if isinstance(images, ReinforcedData):
        raise ConfigError(
            f"`images` must be held out from the training, got a {type(images).__name__}, which is learned. Give others."
        )
    check_one("images", images)
    if images is None or (isinstance(images, Sized) and not len(images)):
        raise ConfigError("`images` must be a dataset with images, got none. Give some that were held out.")


def _answers(trainer: ResumableTrainer, images: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits (B, C) and labels (B,) of all images, whatever the settings of evaluations say."""
    whole = {"prediction_loss_only": False, "batch_eval_metrics": False, "eval_do_concat_batches": True}
    with changed(trainer.args, **whole), changed(trainer, compute_metrics=None, preprocess_logits_for_metrics=None):
        predicted = trainer.predict(images)
    # Of a model that returns more than logits these are the first of several.
    first = predicted.predictions[0] if isinstance(predicted.predictions, tuple) else predicted.predictions
    logits_BC = np.asarray(first, np.float32)
    labels_B = np.full(len(logits_BC), -1) if predicted.label_ids is None else np.asarray(predicted.label_ids)
    unknown = np.flatnonzero((labels_B < 0) | (labels_B >= logits_BC.shape[1]))
    if len(unknown):
        raise DataError(
            f"images to calibrate by must have labels from 0 to {logits_BC.shape[1] - 1}, found "
            f"{'none' if predicted.label_ids is None else labels_B[unknown[0]]} in row {unknown[0]}. Give others."
        )
    return logits_BC, labels_B


def check_whole(trainer: Any, setting: str) -> None:
    """Refuses a setting for a model whose weights no process has whole."""
    if weights_are_sharded(trainer):
        raise ConfigError(
            f"`{setting}` needs all weights in each process, but they are sharded (FSDP, DeepSpeed). Leave it out."
        )


def check_sample(labels: np.ndarray, tested: np.ndarray) -> None:
    """Refuses to calibrate by a slice of a split that is sorted by class, which would fit few classes and be tested on others.

    `labels` are the classes of the images to calibrate by, (n,), and `tested` those of the tested images, (m,).
    """
    _, counts = np.unique(np.concatenate([labels, tested]), return_counts=True)
    # The chance of each class to be among as many images, were they drawn from all.
    drawn = 1 - (1 - len(labels) / counts.sum()) ** counts
    found = len(np.unique(labels))
    if found < drawn.sum() - 4 * np.sqrt((drawn * (1 - drawn)).sum()) - 0.5:
        raise ConfigError(
            f"`calibrate_split` must have images of all classes, but its {len(labels):,} are of {found:,} classes and those of "
            f"`eval_split` of {len(np.unique(tested)):,}. A slice of a split that is sorted by class is no sample: name "
            "a split of its own, such as a folder `validation` next to `test`."
        )


def check_other_images(images: datasets.Dataset, tested: datasets.Dataset, where: str) -> None:
    """Refuses to calibrate by images if more than 1 in 100 of them are also tested; fewer may be twins in the dataset.

    Both datasets are undecoded, of one column; `where` says what the tested images are, for the message.
    """
    shared = shared_files(images, tested)
    if shared > len(images) / 100:
        raise ConfigError(
            f"`calibrate_split` must have other images than {where}, but {shared:,} of its {len(images):,} are the same: the "
            "calibration error would be measured by what it was fitted to. Take slices, as `test[:1000]` and `test[1000:]`."
        )


def check_not_learned(images: datasets.Dataset, train: object, setting: str = "calibrate_split") -> None:
    """Refuses to calibrate by images that are learned from, by the hashes in a "+" dataset; streams are not checked."""
    parts = train.parts if isinstance(train, CombinedReinforcedDataset) else [train]
    known = [part.image_hashes for part in parts if isinstance(part, ReinforcedDataset)]
    if not known:
        return
    learned = int(np.isin(index_images(images), np.concatenate(known)).sum())
    if learned > len(images) / 100:
        raise ConfigError(
            f"`{setting}` must have images that are not learned, but {learned:,} of its {len(images):,} are: the student "
            "is too sure of them. Name a split of others."
        )


def check_foldable(model: nn.Module, size: tuple[int, int]) -> None:
    """Refuses a model whose weights cannot take a temperature in, before it is trained on images of a size."""
    tried = copy.deepcopy(model)
    if not last_layer(tried, _noise(tried, size)):
        raise ConfigError(
            "`calibrate_split` needs a model whose logits are linear in the weights of its last layer, but those of "
            f"{type(model).__name__} are not. Leave it out, and divide by the `temperature` that `hf-dr evaluate` finds."
        )


def _pixels(trainer: Any, images: Any) -> torch.Tensor:
    """Returns some input of a trainer's model."""
    train = trainer.train_dataset
    if isinstance(train, ReinforcedData):
        return _noise(trainer.model, train.size)
    batch = next(iter(trainer.get_test_dataloader(images)))
    pixels_BCHW: torch.Tensor = trainer._student_inputs(batch)["pixel_values"]
    return pixels_BCHW


def _noise(model: nn.Module, size: tuple[int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, *size, generator=generator).to(next(model.parameters()).device)


@torch.no_grad()
def last_layer(model: nn.Module, pixels_BCHW: torch.Tensor) -> list[nn.Parameter]:
    """Returns the weights that divide a classifier's logits if they are divided; none where no layer's do.

    They are those of the last layer with an output for each class, or of the last two, as in DeiT, whose heads are averaged.
    Layers within the model may have as many outputs by chance, so it is tried out, with one layer more each time.

    Args:
        model: A classifier as `ReinforcedTrainer` takes it. It is in evaluation mode afterwards.
        pixels_BCHW: Some input of the model.
    """
    model.eval()
    halves_BC = outputs_of(model, pixels_BCHW)["logits"] / 2  # which is exact in any precision
    classes = halves_BC.shape[-1]
    heads = [
        layer
        for layer in model.modules()
        if (isinstance(layer, nn.Linear) and layer.out_features == classes)
        or (isinstance(layer, nn.Conv2d) and layer.out_channels == classes)
    ]
    for first in reversed(range(len(heads))):
        weights = [weight for layer in heads[first:] for weight in layer.parameters()]
        kept = {weight: weight.clone() for weight in weights}
        _put({weight: value / 2 for weight, value in kept.items()})
        found_BC = outputs_of(model, pixels_BCHW)["logits"]
        _put(kept)
        if torch.allclose(found_BC, halves_BC, rtol=1e-3, atol=1e-4):
            return weights
    return []

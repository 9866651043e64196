"""Making the views of a training on its device: whether it can, and the loader's part in it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import default_data_collator

from hf_dr.errors import ConfigError
from hf_dr.replay.augmented import AugmentedDataset
from hf_dr.replay.combined import CombinedReinforcedDataset
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.device import UndoneCollator, UndoneViews
from hf_dr.replay.reinforced_data import ReinforcedData
from hf_dr.replay.streaming import StreamedReinforcedDataset
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.views.device.augment import DeviceAugmentation, is_fast_on
from hf_dr.views.device.packing import DoneBatch
from hf_dr.views.device.plan import unsupported
from hf_dr.views.names import AUGMENT_ON

logger = logging.getLogger(__name__)

_COVERED = (ReinforcedDataset, CombinedReinforcedDataset, AugmentedDataset, StreamedReinforcedDataset)


def device_augmentation(
    augment_on: str, device: torch.device, train: ReinforcedData, obstacles: Sequence[str] = ()
) -> DeviceAugmentation | None:
    """Returns what makes the views on the device of a training; None where the loader's workers make them.

    `auto` takes a GPU where it can make them. `obstacles` are reasons of the caller's for which the device cannot.

    Raises:
        ConfigError: `augment_on` asks for the device, which cannot make them, or for something else.
    """
    if augment_on not in AUGMENT_ON:
        raise ConfigError(f"`augment_on` must be one of {', '.join(AUGMENT_ON)}, got {augment_on!r}. Leave it out.")
    if augment_on == "cpu" or (augment_on == "auto" and not is_fast_on(device)):
        return None
    reasons = []
    if any(other != train.augmentations[0] for other in train.augmentations):
        reasons.append('"+" datasets of different augmentations at once have no device version')
    elif type(train) not in _COVERED:
        reasons.append(f"{type(train).__name__} has no device version")
    else:
        reasons += unsupported(train.augmentations[0])
    reasons += obstacles
    if not reasons:
        return DeviceAugmentation(train.augmentations[0])
    if augment_on == "device":
        raise ConfigError(
            f"`augment_on` must be `cpu` or `auto` for this training, got `device`: {'; '.join(reasons)}. Leave it out."
        )
    logger.warning("Views are made on the CPU, which may take longer: %s.", "; ".join(reasons))
    return None


def augmentation_of_trainer(
    args: ReinforcedTrainingArguments, train: Any, data_collator: Any
) -> DeviceAugmentation | None:
    """Returns what makes the views on a trainer's device, see `device_augmentation`; None where it learns from other data."""
    if not isinstance(train, ReinforcedData):
        return None
    obstacles = []
    if data_collator is not default_data_collator:
        obstacles.append("a `data_collator` of your own is given views that are made")
    if getattr(args.accelerator_config, "dispatch_batches", None):
        obstacles.append("`dispatch_batches` sends tensors only")
    return device_augmentation(args.augment_on, args.device, train, obstacles)


def undone(dataset: Any, augmenter: DeviceAugmentation, collate: Any) -> tuple[Any, UndoneCollator]:
    """Returns what a loader reads and how it collates where the device makes the views."""
    streamed = isinstance(dataset, StreamedReinforcedDataset)
    return dataset.undone() if streamed else UndoneViews(dataset), UndoneCollator(augmenter, collate)


def with_made_views(batch: dict[str, Any], *, channels_last: bool) -> dict[str, Any]:
    """Returns a batch with its views as a tensor, once the device has them."""
    pixels = batch.get("pixel_values")
    if not isinstance(pixels, DoneBatch):
        return batch
    return {**batch, "pixel_values": pixels.pixels(channels_last=channels_last)}

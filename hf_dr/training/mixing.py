"""MixUp and CutMix of a whole batch on its device, for training on labels or with a teacher in memory.

Stored views are mixed as it is stored with them (`hf_dr.views.ops.mixing`). Here each batch draws a mix of its own, by the same
ops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState

from hf_dr.errors import ConfigError
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.batches import pixels_of
from hf_dr.training.reinforced_settings import ReinforcedSettings
from hf_dr.views.ops.mixing import CutMix, MixUp
from hf_dr.views.rng import DOMAIN_MIXING, keyed_rng


def mix_batch(
    pixels_BCHW: torch.Tensor, rng: np.random.Generator, settings: ReinforcedSettings
) -> tuple[torch.Tensor, float]:
    """Mixes each image with the one at the same place counted from the batch's end, all in one proportion: timm's `batch` mode.

    MixUp and CutMix make the pixels that `ops.MixUp` and `ops.CutMix` make. Of an odd batch the middle image is its own
    partner and stays as it is.

    Args:
        pixels_BCHW: uint8, on any device; not changed.
        rng: The only source of randomness.
        settings: Its `mixup_alpha`, `cutmix_alpha`, `mixup_prob` and `mixup_switch_prob` count.

    Returns:
        The pixels, and lam from 0 to 1, the weight of the images' own labels; those of `pixels_BCHW.flip(0)` have the rest. It
        is MixUp's weight, or exactly the share of the pixels that CutMix left alone.

    Raises:
        ConfigError: The pixels are not uint8.
    """
    if pixels_BCHW.dtype != torch.uint8:
        raise ConfigError(
            f"images must be uint8 to be mixed, before they are normalised, got {pixels_BCHW.dtype}. Leave normalisation to "
            "the trainer, or set `mixup_alpha` and `cutmix_alpha` to 0."
        )
    mixed = rng.random() < settings.mixup_prob
    switched = rng.random() < settings.mixup_switch_prob
    if not mixed or not settings.mixes:
        return pixels_BCHW, 1.0
    height, width = pixels_BCHW.shape[-2:]
    partners_BCHW = pixels_BCHW.flip(0)
    if settings.cutmix_alpha and (switched or not settings.mixup_alpha):
        top, left, rows, columns = CutMix(settings.cutmix_alpha, p=1.0).sample(rng, (height, width))["box"]
        box = (..., slice(top, top + rows), slice(left, left + columns))
        pixels_BCHW = pixels_BCHW.clone()
        pixels_BCHW[box] = partners_BCHW[box]
        return pixels_BCHW, 1 - rows * columns / (height * width)
    lam = float(MixUp(settings.mixup_alpha, p=1.0).sample(rng, (height, width))["lam"])
    # A multiple of 1/256, so that float32 holds the sum exactly.
    mixed_BCHW = lam * pixels_BCHW.float() + (1 - lam) * partners_BCHW.float() + 0.5
    return mixed_BCHW.to(torch.uint8), lam


class BatchMixer(TrainerCallback):
    """Mixes the batches of a training, each by a draw that follows from its place in the run.

    So a run that is resumed draws what it would have drawn, and each process has draws of its own. As a callback of the trainer
    it counts the batches of a step from the step's begin. `seed` returns that of the draws, which a search for hyperparameters
    may change.
    """

    def __init__(self, args: ReinforcedTrainingArguments, seed: Callable[[], int]) -> None:
        self._args = args
        self._seed = seed
        self._in_step = 0

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._in_step = 0

    def mix(self, inputs: dict[str, Any], step: int) -> dict[str, Any]:
        """Returns the next batch of a step with its `pixel_values` mixed, and their weight as `lam`."""
        args = self._args
        place = self._in_step * args.world_size + args.process_index
        self._in_step += 1
        rng = keyed_rng(self._seed(), domain=DOMAIN_MIXING, major=step, minor=place)
        pixels_BCHW, lam = mix_batch(pixels_of(inputs), rng, args)
        return {**inputs, "pixel_values": pixels_BCHW, "lam": lam}

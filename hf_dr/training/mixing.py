"""MixUp and CutMix of a whole batch on its device, for training on labels or with a teacher in memory.

What stored views are mixed with is stored with them (`hf_dr.views.ops.base`); this draws anew for each batch, by the same ops.
"""

from __future__ import annotations

import numpy as np
import torch

from hf_dr.errors import ConfigError
from hf_dr.views.ops.mixing import CutMix, MixUp


def mix_batch(
    pixels_BCHW: torch.Tensor,
    rng: np.random.Generator,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    prob: float = 1.0,
    switch_prob: float = 0.5,
) -> tuple[torch.Tensor, float]:
    """Mixes each image with the one at its place counted from the batch's end, all alike: timm's `batch` mode.

    MixUp and CutMix make the pixels that `ops.MixUp` and `ops.CutMix` make. Of an odd batch the middle image is its own
    partner and stays as it is.

    Args:
        pixels_BCHW: uint8, on any device; not changed.
        rng: Decides all.
        mixup_alpha: MixUp's weight is drawn from Beta(mixup_alpha, mixup_alpha); 0: no MixUp.
        cutmix_alpha: The same for the area that CutMix keeps; 0: no CutMix.
        prob: Probability that the batch is mixed.
        switch_prob: Probability of CutMix where both are on.

    Returns:
        The pixels, and lam from 0 to 1: what the images count for in their labels, `pixels_BCHW.flip(0)` counting for the
        rest. MixUp's weight, or exactly the share of the pixels that CutMix left alone.

    Raises:
        ConfigError: The pixels are no uint8.
    """
    if pixels_BCHW.dtype != torch.uint8:
        raise ConfigError(
            f"images are mixed as uint8 pixels, before they are normalised, got {pixels_BCHW.dtype}. Leave normalisation to "
            "the trainer, or set `mixup_alpha` and `cutmix_alpha` to 0."
        )
    mixed, switched = rng.random() < prob, rng.random() < switch_prob
    if not mixed or not (mixup_alpha or cutmix_alpha):
        return pixels_BCHW, 1.0
    height, width = pixels_BCHW.shape[-2:]
    partners_BCHW = pixels_BCHW.flip(0)
    if cutmix_alpha and (switched or not mixup_alpha):
        top, left, rows, columns = CutMix(cutmix_alpha, p=1.0).sample(rng, (height, width))["box"]
        box = (..., slice(top, top + rows), slice(left, left + columns))
        pixels_BCHW = pixels_BCHW.clone()
        pixels_BCHW[box] = partners_BCHW[box]
        return pixels_BCHW, 1 - rows * columns / (height * width)
    lam = float(MixUp(mixup_alpha, p=1.0).sample(rng, (height, width))["lam"])
    # A multiple of 1/256, so that float32 holds the sum exactly.
    mixed_BCHW = lam * pixels_BCHW.float() + (1 - lam) * partners_BCHW.float() + 0.5
    return mixed_BCHW.to(torch.uint8), lam

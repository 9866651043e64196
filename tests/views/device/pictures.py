"""Pictures that are hard to process, and parameters of views as the device takes them."""

import numpy as np

from hf_dr.views.device.augment import DeviceAugmentation, perform
from hf_dr.views.device.images import pack


def picture(rng, height, width):
    """Noise, one colour, a smooth picture, or black and white: what histograms and filters find hard."""
    kind = rng.integers(4)
    if kind == 0:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == 1:
        return np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
    if kind == 2:
        return (np.cumsum(rng.integers(-3, 4, (height, width, 3)), axis=1) + 128).clip(0, 255).astype(np.uint8)
    return (255 * rng.integers(0, 2, (height, width, 3))).astype(np.uint8)


def any_size(rng):
    """From 1 pixel up, with extreme aspects."""
    sides = [int(rng.integers(1, 90)), int(rng.integers(1, 90))]
    if rng.random() < 0.4:
        sides[rng.integers(2)] = int(rng.integers(1, 5))
    return tuple(sides)


def as_columns(augmentation, rows, names=None):
    params = augmentation.params
    return {n: np.array([row[n] for row in rows], p.dtype) for n, p in params.items() if n in (names or rows[0])}


def made_on(device, augmentation, pictures, columns):
    """Views of pictures that do not mix, made on a device, as an array (N, H, W, 3)."""
    pixels, images = pack(pictures)
    unmixed = np.full(len(pictures), -1, np.int64)
    program = DeviceAugmentation(augmentation).program(images, columns, columns, unmixed)
    return perform(program, [pixels.to(device)]).cpu().numpy()

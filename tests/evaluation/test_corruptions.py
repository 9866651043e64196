"""Every corruption, found by enumeration: sizes, keys, severities; and the ones that can be computed by hand."""

from io import BytesIO

import numpy as np
import PIL.Image
import pytest

from hf_dr.errors import ConfigError
from hf_dr.evaluation.config import CORRUPTION_NAMES, SEVERITIES, EvaluateConfig
from hf_dr.evaluation.corruptions import CORRUPTIONS, LARGE_SIDE, corrupt, corruption_rng

PAPER = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
WITHOUT_RANDOMNESS = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
# The published constants raise one of several strengths at a time here, so a mean distance of pixels need not grow.
NOT_MONOTONE = {"glass_blur", "snow", "frost", "fog", "elastic_transform", "pixelate"}


def picture(width: int, height: int, seed: int = 0) -> PIL.Image.Image:
    """Smooth colours, edges and a little noise."""
    rng = np.random.default_rng(seed)
    blobs = PIL.Image.fromarray(rng.integers(30, 200, (5, 5, 3), np.uint8))
    pixels = np.asarray(blobs.resize((width, height), PIL.Image.Resampling.BICUBIC), float)
    pixels[: height // 2, : width // 3] += 50
    return PIL.Image.fromarray((pixels + rng.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8))


def run(image: PIL.Image.Image, name: str, severity: int, example: int = 0, seed: int = 0) -> np.ndarray:
    return np.asarray(corrupt(image, name, severity, corruption_rng(seed, example, name, severity)))


def distance(a: np.ndarray, b: PIL.Image.Image) -> float:
    return float(np.abs(a.astype(float) - np.asarray(b, float)).mean())


def test_the_fifteen_of_the_paper_in_its_order():
    assert tuple(CORRUPTIONS) == PAPER


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", PAPER)
def test_every_corruption_is_keyed_and_keeps_the_size(name, severity):
    for size in ((28, 28), (80, 67)):
        image = picture(*size)
        before = image.tobytes()
        first = run(image, name, severity)
        assert first.dtype == np.uint8
        assert first.shape == (size[1], size[0], 3)
        assert image.tobytes() == before
        np.testing.assert_array_equal(first, run(image, name, severity))
        assert distance(first, image) > 0
        others = [run(image, name, severity, example=1), run(image, name, severity, seed=1)]
        assert all(np.array_equal(first, other) == (name in WITHOUT_RANDOMNESS) for other in others)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 5), (3, 2), (7, 9), (65, 64), (90, 31)])
@pytest.mark.parametrize("name", PAPER)
def test_tiny_and_odd_sizes(name, size):
    for image in (picture(*size), PIL.Image.new("RGB", size), PIL.Image.new("RGB", size, "white")):
        for severity in (1, 5):
            assert corrupt(image, name, severity, corruption_rng(0, 0, name, severity)).size == size


@pytest.mark.parametrize("size", [(32, 32), (96, 96)])
@pytest.mark.parametrize("name", [name for name in PAPER if name not in NOT_MONOTONE])
def test_the_distance_grows_with_severity(name, size):
    images = [picture(*size, seed) for seed in range(8)]
    means = [np.mean([distance(run(x, name, s, n), x) for n, x in enumerate(images)]) for s in SEVERITIES]
    assert all(np.diff(means) > -0.02 * means[-1]), means
    assert means[-1] > 1.2 * means[0]


@pytest.mark.parametrize("name", sorted(NOT_MONOTONE - {"elastic_transform", "glass_blur"}))
def test_the_worst_is_worse_than_the_mildest(name):
    images = [picture(32, 32, seed) for seed in range(24)]
    mild, worst = (np.mean([distance(run(x, name, s, n), x) for n, x in enumerate(images)]) for s in (1, 5))
    assert worst > mild


def test_the_tables_change_at_the_limit():
    """Contrast tells its constant: the spread of the pixels that it keeps."""
    for side, kept in ((LARGE_SIDE, (0.4, 0.3, 0.2, 0.1, 0.05)), (LARGE_SIDE - 1, (0.75, 0.5, 0.4, 0.3, 0.15))):
        image = picture(side + 10, side)
        for severity, keep in zip(SEVERITIES, kept, strict=True):
            ratio = run(image, "contrast", severity).std(axis=(0, 1)) / np.asarray(image).std(axis=(0, 1))
            np.testing.assert_allclose(ratio, keep, atol=0.01)


def test_noise_has_the_stated_strength():
    grey = PIL.Image.new("RGB", (128, 128), (128, 128, 128))
    for severity, scale in zip(SEVERITIES[:3], (0.08, 0.12, 0.18), strict=True):
        assert run(grey, "gaussian_noise", severity).std() / 255 == pytest.approx(scale, rel=0.03)
    for severity, photons in zip(SEVERITIES[:2], (60, 25), strict=True):
        assert run(grey, "shot_noise", severity).std() / 255 == pytest.approx((128 / 255 / photons) ** 0.5, rel=0.04)
    for severity, amount in zip(SEVERITIES, (0.03, 0.06, 0.09, 0.17, 0.27), strict=True):
        pixels = run(grey, "impulse_noise", severity)
        assert (pixels == 0).mean() == pytest.approx(amount / 2, rel=0.1)
        assert (pixels == 255).mean() == pytest.approx(amount / 2, rel=0.1)


@pytest.mark.parametrize(
    "name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate"]
)
@pytest.mark.parametrize("size", [(40, 30), (80, 90)])
def test_what_only_moves_light_leaves_a_plain_image(name, size):
    """The kernels sum to one, up to the border, and resampling does not darken."""
    plain = PIL.Image.new("RGB", size, (10, 100, 200))
    for severity in SEVERITIES:
        assert distance(run(plain, name, severity), plain) < 0.51


def test_blurs_by_hand():
    dot = PIL.Image.new("RGB", (101, 101))
    dot.putpixel((50, 50), (255, 255, 255))
    disk = run(dot, "defocus_blur", 1)[..., 0] / 255 * 29  # a disk of radius 3 has 29 pixels
    assert disk[50, 50] == pytest.approx(1, abs=0.1)
    assert (disk > 0.5).sum() == 29
    streak = np.argwhere(run(dot, "motion_blur", 1)[..., 0] > 2) - 50
    assert 5 < np.abs(streak).max() <= 20
    assert (np.abs(streak[:, 0]) <= np.abs(streak[:, 1]) + 1).all()  # within 45 degrees of the horizontal


def test_brightness_keeps_hue_and_saturation():
    image = PIL.Image.new("RGB", (64, 64), (100, 50, 25))
    np.testing.assert_array_equal(run(image, "brightness", 1)[0, 0], np.rint(np.array([1, 0.5, 0.25]) * (100 + 25.5)))
    np.testing.assert_array_equal(run(PIL.Image.new("RGB", (64, 64)), "brightness", 5)[0, 0], [128] * 3)


def test_files_and_pixels_equal_pillow():
    image, file = picture(64, 70), BytesIO()
    image.save(file, "JPEG", quality=25)
    np.testing.assert_array_equal(run(image, "jpeg_compression", 1), np.asarray(PIL.Image.open(file)))
    box = PIL.Image.Resampling.BOX
    expected = image.resize((38, 42), box).resize((64, 70), box)
    np.testing.assert_array_equal(run(image, "pixelate", 1), np.asarray(expected))


def test_each_key_has_its_own_stream():
    keys = [(s, e, n, v) for s in (0, 1) for e in (0, 1) for n in PAPER for v in SEVERITIES]
    assert len({corruption_rng(*key).integers(1 << 60) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"corruptions": ["gausian_noise"]},
            r"no corruption is called `gausian_noise`. Did you mean `gaussian_noise`\?",
        ),
        ({"severities": [0]}, "`severities` must be a whole number of at least 1, got 0"),
        ({"severities": [1, 6]}, "`severities` must be at most 5, got 6"),
        ({"severities": [1.5]}, "`severities` must be a whole number of at least 1, got 1.5"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig([], [], "", **settings)


def test_the_names_are_those_of_the_corruptions() -> None:
    """Settings have the names only, so that `--help` does not import torch."""
    assert tuple(CORRUPTIONS) == CORRUPTION_NAMES

"""Which pass of a resize comes first is what is asked for, under every version of Pillow."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import quick

from hf_dr.views.resizing import HORIZONTAL, PILLOW_13, resize, vertical_first

FILTERS = list(PIL.Image.Resampling)
sides = st.integers(1, 90)


def noise(height: int, width: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(
        np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), np.uint8)
    )


def along(image: PIL.Image.Image, size: int, axis: int, resampling: PIL.Image.Resampling) -> PIL.Image.Image:
    """One pass, as Pillow does it where nothing else is asked."""
    new = [image.width, image.height]
    new[1 - axis] = size
    return image.resize((new[0], new[1]), resampling)


@quick
@given(sides, sides, sides, sides, st.sampled_from(FILTERS))
def test_the_horizontal_pass_comes_first(height, width, new_height, new_width, resampling):
    image = noise(height, width)
    expected = along(along(image, new_width, 1, resampling), new_height, 0, resampling)
    np.testing.assert_array_equal(np.asarray(resize(image, (new_height, new_width), resampling)), np.asarray(expected))


@quick
@given(sides, sides, sides, sides, st.sampled_from(FILTERS))
def test_datasets_before_format_4_are_resized_as_pillow_13_did(height, width, new_height, new_width, resampling):
    image = noise(height, width)
    found = resize(image, (new_height, new_width), resampling, PILLOW_13)
    if vertical_first((height, width), (new_height, new_width), PILLOW_13):
        expected = along(along(image, new_height, 0, resampling), new_width, 1, resampling)
    else:
        expected = along(along(image, new_width, 1, resampling), new_height, 0, resampling)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    if int(PIL.__version__.split(".", maxsplit=1)[0]) == 13:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(image.resize((new_width, new_height), resampling)))


@pytest.mark.parametrize(
    ("size", "new_size", "first"),
    [
        ((100, 50), (10, 40), True),  # 90 rows fewer, 10 columns fewer
        ((100, 100), (40, 70), False),  # 60 and 30: not more than twice as many
        ((100, 100), (39, 70), True),
        ((10, 100), (20, 10), False),  # the height grows
        ((10, 10), (9, 20), True),  # the width grows
    ],
)
def test_pillow_13_chose_by_the_sizes(size, new_size, first):
    assert vertical_first(size, new_size, PILLOW_13) is first
    assert vertical_first(size, new_size, HORIZONTAL) is False


def test_the_order_decides_pixels():
    """Else the tests above could not fail."""
    image = noise(90, 30)
    filters = PIL.Image.Resampling.BILINEAR
    assert np.any(
        np.asarray(resize(image, (20, 25), filters)) != np.asarray(resize(image, (20, 25), filters, PILLOW_13))
    )

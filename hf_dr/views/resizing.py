"""Resizing by arithmetic that no version of Pillow changes: which of the two passes comes first is said here.

A resize is two passes, along the rows and along the columns, with an image of 8 bits in between, so their order can change a
pixel by a level. Pillow took the horizontal pass first up to version 12; version 13 chooses by the sizes
(python-pillow/Pillow pull request 9549). A pass alone is the same in all of them. docs/format.md has the arithmetic of a pass.
"""

from __future__ import annotations

from typing import Any

import PIL.Image

HORIZONTAL = "horizontal"
PILLOW_13 = "pillow13"
PASSES = (HORIZONTAL, PILLOW_13)
"""Which pass comes first: always the horizontal one, or the one that Pillow 13 chooses by the sizes."""


def vertical_first(size: tuple[Any, Any], new_size: tuple[Any, Any], passes: str) -> Any:
    """Returns whether the vertical pass comes first; sizes are (height, width), numbers or arrays (N,) of integers."""
    fewer_rows = size[0] - new_size[0]
    fewer_columns = size[1] - new_size[1]
    return (passes == PILLOW_13) & (fewer_rows > 0) & (fewer_rows > 2 * fewer_columns)


def first_pass_size(size: tuple[int, int], new_size: tuple[int, int], passes: str) -> tuple[int, int]:
    """Returns the (height, width) between the two passes."""
    return (new_size[0], size[1]) if vertical_first(size, new_size, passes) else (size[0], new_size[1])


def resize(
    image: PIL.Image.Image, size: tuple[int, int], resampling: PIL.Image.Resampling, passes: str = HORIZONTAL
) -> PIL.Image.Image:
    """Resizes an RGB image to a new (height, width) by one of Pillow's filters, one pass after the other: see `PASSES`."""
    height, width = size
    rows, columns = first_pass_size((image.height, image.width), size, passes)
    return image.resize((columns, rows), resampling).resize((width, height), resampling)

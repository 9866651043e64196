"""Writes the `--order` file with which `hf-dr import-ml-dr` reads the authors' Flowers-102+.

    python recipes/flowers102/order.py setid.mat order.txt

They number the images as torchvision's Flowers102 does: in the order of the training split (`trnid`) in the original's
setid.mat, https://www.robots.ox.ac.uk/~vgg/data/flowers/102/setid.mat. A copy on the Hub may have them in another one. The file
has a line for each image: its file name, or, with --rows for a copy without file names, its row in the order of file names.
It needs `pip install scipy`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

SPLITS = {"train": "trnid", "validation": "valid", "test": "tstid"}


def image_numbers(setid: Path, split: str) -> list[int]:
    """Returns the numbers of a split's images, from 1, in the order of setid.mat."""
    from scipy.io import loadmat

    ids = loadmat(str(setid))
    if SPLITS[split] not in ids:
        raise SystemExit(f"error: {setid} must hold `{SPLITS[split]}`, found {', '.join(sorted(ids))}.")
    return [int(number) for number in ids[SPLITS[split]].ravel()]


def order(numbers: Sequence[int], *, rows: bool) -> list[str]:
    """Returns the lines of the file."""
    if rows:
        row_of = {number: row for row, number in enumerate(sorted(numbers))}
        return [str(row_of[number]) for number in numbers]
    return [f"image_{number:05d}.jpg" for number in numbers]


def main(argv: Sequence[str] | None = None) -> None:
    """Reads setid.mat and writes the file."""
    parser = argparse.ArgumentParser(description="Writes the order of the images in the authors' Flowers-102+.")
    parser.add_argument("setid", type=Path, help="The original's setid.mat.")
    parser.add_argument("output", type=Path, help="The file to write, for `hf-dr import-ml-dr --order`.")
    parser.add_argument("--split", choices=SPLITS, default="train", help="Theirs has train only.")
    parser.add_argument("--rows", action="store_true", help="Write row numbers instead of file names.")
    arguments = parser.parse_args(argv)
    lines = order(image_numbers(arguments.setid, arguments.split), rows=arguments.rows)
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{arguments.output}: {len(lines):,} images")


if __name__ == "__main__":
    main()

"""Counts the stored views that are replayed otherwise: `python -m tests.golden.count`, as `make test-pixels` does."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL.features

from hf_dr.replay.loading import load_reinforced
from hf_dr.store.features import combine_hashes
from hf_dr.views.maker import hash_view

VERSIONED = ("pillow", "numpy", "torchvision", "torch")


def main() -> None:
    """Prints versions and counts; a row's hash is over all its views, so they differ or not together."""
    views = 0
    differing = 0
    for path in sorted(Path(__file__).parent.glob("v*/*/reinforcement.json")):
        plus = load_reinforced(path.parent.parent, path.parent.name)
        for row in range(len(plus)):
            hashes = [hash_view(np.asarray(plus.image(row, view))) for view in range(plus.num_views)]
            views += plus.num_views
            if combine_hashes(np.array(hashes, np.uint64)) != plus.views_hash(row):
                differing += plus.num_views
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONED)
    print(f"{versions}, libjpeg {PIL.features.version('jpg')}: {differing} of {views} views differ")


if __name__ == "__main__":
    main()

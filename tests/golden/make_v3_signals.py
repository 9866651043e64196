"""Wrote the golden datasets of other signals: `PYTHONPATH=tests:. python tests/golden/make_v3_signals.py FOLDER`.

Never run it over an old version's folder: the files stand for what users have on disk.
"""

import sys

import datasets
import numpy as np
import torch
from conftest import as_cell, colour_image

from hf_dr.augmentation import Augmentation
from hf_dr.ops import CutMix, RandomHorizontalFlip, RandomResizedCrop
from hf_dr.reinforce import ReinforceConfig, reinforce
from hf_dr.teacher import Member, Preprocessing, Teacher, weights_hash

ROWS, CLASSES = 7, 120  # more classes than a tail has


def main(folder: str) -> None:
    """Reinforces seven generated images with a random linear teacher, once for each signal."""
    rng = np.random.default_rng(3)
    rows = {"image": [as_cell(colour_image(rng, n, (24, 20))) for n in range(ROWS)], "label": list(range(ROWS))}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=CLASSES)})
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, CLASSES))
    preprocessing = Preprocessing((16, 16), (0.5,) * 3, (0.1,) * 3, "bilinear")
    teacher = Teacher([Member(model, "random", None, "cc0-1.0", CLASSES, None, preprocessing, weights_hash(model))])
    augmentation = Augmentation([RandomResizedCrop(16), RandomHorizontalFlip(), CutMix(p=0.5)])
    for signal in ("topk_image_tail", "sampled"):
        config = ReinforceConfig(
            folder, config_name=signal, num_views=16, top_k=3, shard_size=4, num_workers=0, signal=signal
        )
        reinforce(datasets.Dataset.from_dict(rows, features), teacher, augmentation, config)


if __name__ == "__main__":
    main(sys.argv[1])

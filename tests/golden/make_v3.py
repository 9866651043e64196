"""Wrote the golden dataset of views chosen among candidates: `PYTHONPATH=tests:. python tests/golden/make_v3.py FOLDER`.

Never run it over an old version's folder: the files stand for what users have on disk.
"""

import sys

import datasets
import numpy as np
import torch
from conftest import as_cell, colour_image

from hf_dr.augmentation import Augmentation
from hf_dr.ops import RandAugment, RandomErasing, RandomHorizontalFlip, RandomResizedCrop
from hf_dr.reinforce import ReinforceConfig, reinforce
from hf_dr.teacher import Member, Preprocessing, Teacher, weights_hash


def main(folder: str) -> None:
    """Reinforces seven generated images with a random linear teacher, and keeps 8 of 24 views."""
    rng = np.random.default_rng(3)
    rows = {"image": [as_cell(colour_image(rng, n, (24, 20))) for n in range(7)], "label": list(range(7))}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=7)})
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 7))
    preprocessing = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, "bilinear")
    teacher = Teacher([Member(model, "random", None, "cc0-1.0", 7, None, preprocessing, weights_hash(model))])
    augmentation = Augmentation([RandomResizedCrop(16), RandomHorizontalFlip(), RandAugment(), RandomErasing()])
    config = ReinforceConfig(
        folder, "candidates", num_views=8, num_candidates=24, keep="high_entropy", top_k=3, shard_size=4, num_workers=0
    )
    reinforce(datasets.Dataset.from_dict(rows, features), teacher, augmentation, config)


if __name__ == "__main__":
    main(sys.argv[1])

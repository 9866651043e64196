"""Wrote the golden datasets of schema version 1: `PYTHONPATH=tests python tests/golden/make.py FOLDER`.

Never run it over an old version's folder: the files stand for what users have on disk.
"""

import sys

import datasets
import numpy as np
import torch
from conftest import as_cell, colour_image

from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.members import Member, weights_hash
from hf_dr.teacher.preprocessing import Preprocessing
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.colour import ColorJitter, RandAugment, TrivialAugmentWide
from hf_dr.views.ops.geometry import (
    CenterCrop,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
)
from hf_dr.views.ops.mixing import CutMix, MixUp

AUGMENTATIONS = {
    "randaug_mixing": [
        RandomResizedCrop(16),
        RandomHorizontalFlip(),
        RandAugment(),
        RandomErasing(),
        MixUp(),
        CutMix(),
    ],
    "others": [
        Resize(20),
        CenterCrop(18),
        RandomCrop(16, padding=2),
        ColorJitter(0.4, 0.4, 0.4, 0.1),
        TrivialAugmentWide(),
        RandomHorizontalFlip(),
    ],
}


def main(folder: str) -> None:
    """Reinforces seven generated images with a random linear teacher."""
    rng = np.random.default_rng(1)
    rows = {"image": [as_cell(colour_image(rng, n, (24, 20))) for n in range(7)], "label": list(range(7))}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=7)})
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 7))
    preprocessing = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, "bilinear")
    teacher = Teacher([Member(model, "random", None, "cc0-1.0", 7, None, preprocessing, weights_hash(model))])
    for name, ops in AUGMENTATIONS.items():
        config = ReinforceConfig(folder, config_name=name, num_views=16, top_k=3, shard_size=4, num_workers=0)
        reinforce(datasets.Dataset.from_dict(rows, features), teacher, Augmentation(ops), config)


if __name__ == "__main__":
    main(sys.argv[1])

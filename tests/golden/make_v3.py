"""Wrote the golden datasets of schema version 3: `PYTHONPATH=tests:. python tests/golden/make_v3.py FOLDER`.

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
from hf_dr.views.ops.colour import RandAugment
from hf_dr.views.ops.geometry import RandomErasing, RandomHorizontalFlip, RandomResizedCrop
from hf_dr.views.ops.mixing import CutMix

ROWS = 7
MANY = 120  # more classes than a tail has


def make(classes: int, std: float, ops: list, config: ReinforceConfig) -> None:
    """Reinforces seven generated images with a random linear teacher."""
    rng = np.random.default_rng(3)
    rows = {"image": [as_cell(colour_image(rng, n, (24, 20))) for n in range(ROWS)], "label": list(range(ROWS))}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=classes)})
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, classes))
    preprocessing = Preprocessing((16, 16), (0.5,) * 3, (std,) * 3, "bilinear")
    teacher = Teacher([Member(model, "random", None, "cc0-1.0", classes, None, preprocessing, weights_hash(model))])
    reinforce(datasets.Dataset.from_dict(rows, features), teacher, Augmentation(ops), config)


def main(folder: str) -> None:
    """Keeps 8 of 24 candidate views, and stores each other signal."""
    shared = {"top_k": 3, "shard_size": 4, "num_workers": 0}
    chosen = ReinforceConfig(folder, "candidates", num_views=8, num_candidates=24, keep="high_entropy", **shared)
    make(ROWS, 0.5, [RandomResizedCrop(16), RandomHorizontalFlip(), RandAugment(), RandomErasing()], chosen)
    for signal in ("topk_image_tail", "sampled"):
        config = ReinforceConfig(folder, signal, num_views=16, signal=signal, **shared)
        make(MANY, 0.1, [RandomResizedCrop(16), RandomHorizontalFlip(), CutMix(p=0.5)], config)


if __name__ == "__main__":
    main(sys.argv[1])

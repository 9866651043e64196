"""Wrote the golden datasets of schema version 4: `PYTHONPATH=tests:. python tests/golden/make_v4.py FOLDER`.

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
from hf_dr.views.ops.colour import AutoAugment, ColorJitter, RandAugment, RandAugmentIncreasing, TrivialAugmentWide
from hf_dr.views.ops.geometry import (
    CenterCrop,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
)
from hf_dr.views.ops.mixing import CutMix, MixUp

ROWS = 7
CLASSES = 8
BAD = 5  # a row whose image cannot be decoded
# Tall ones too: there the order of a resize's passes shows.
SIZES = [(24, 20), (20, 90), (30, 64), (64, 30), (20, 20), (24, 24), (18, 80)]


def make(ops: list, config: ReinforceConfig) -> None:
    """Reinforces six generated images, and one that is none, with a random linear teacher."""
    rng = np.random.default_rng(4)
    cells = [as_cell(colour_image(rng, n, size)) for n, size in enumerate(SIZES)]
    cells[BAD] = {"bytes": b"no image", "path": None}
    rows = {"image": cells, "label": list(range(ROWS))}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=CLASSES)})
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, CLASSES))
    preprocessing = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, "bilinear")
    teacher = Teacher([Member(model, "random", None, "cc0-1.0", CLASSES, None, preprocessing, weights_hash(model))])
    reinforce(datasets.Dataset.from_dict(rows, features), teacher, Augmentation(ops), config)


def main(folder: str) -> None:
    """Uses every op, with each filter of a resize, in two configurations."""
    shared = {"top_k": 3, "shard_size": 4, "num_workers": 0, "num_views": 12, "on_bad_image": "skip"}
    crops = [RandomResizedCrop(16), RandomHorizontalFlip(), RandAugment(), RandomErasing(), MixUp(p=0.4), CutMix(p=0.4)]
    make(crops, ReinforceConfig(folder, "randaug_mixing", **shared))
    resizes = [
        Resize(21, "lanczos"), CenterCrop(20), RandomCrop(18, padding=2), TrivialAugmentWide(),
        ColorJitter(0.3, 0.3, 0.3, 0.1), Resize((16, 16), "bicubic"),
    ]  # fmt: skip
    make(resizes, ReinforceConfig(folder, "others", signal="sampled", **shared))
    make_policies(folder)


def make_policies(folder: str) -> None:
    """Uses the ops that came later, in a configuration of their own; all that was run when they came."""
    policies = [RandomResizedCrop(16), AutoAugment(), RandAugmentIncreasing()]
    shared = {"top_k": 3, "shard_size": 4, "num_workers": 0, "num_views": 12, "on_bad_image": "skip"}
    make(policies, ReinforceConfig(folder, "policies", **shared))


if __name__ == "__main__":
    main(sys.argv[1])

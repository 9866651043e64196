"""A base dataset on the data path of reinforced ones: the same newly drawn views, labels, no teacher."""

import datasets
import numpy as np
import pytest
import torch

from hf_dr.errors import ConfigError, DataError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.plain import PlainDataset
from hf_dr.replay.reinforced_data import fresh_view
from hf_dr.replay.sampling import ReinforcedSampler
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomHorizontalFlip, RandomResizedCrop
from hf_dr.views.ops.mixing import MixUp

AUGMENTATION = Augmentation([RandomResizedCrop(24), RandomHorizontalFlip()])
COLUMNS = {"image_column": "image", "label_column": "label"}


@pytest.fixture
def plain(tiny_dataset):
    return PlainDataset(tiny_dataset, AUGMENTATION, seed=3, **COLUMNS)


def test_its_views_are_those_that_a_reinforced_dataset_draws_anew(plain, tiny_dataset, tiny_teacher, tmp_path):
    config = ReinforceConfig(str(tmp_path), "x", num_views=1, top_k=1, seed=3)
    reinforce(tiny_dataset, tiny_teacher, AUGMENTATION, config)
    plus = load_reinforced(tmp_path, seed=3)
    assert plus.class_names == plain.class_names
    for epoch in range(3):
        for row in range(len(plain)):
            mine, theirs = plain[row, fresh_view(epoch)], plus[row, fresh_view(epoch)]
            assert mine.keys() == theirs.keys()
            for key, value in mine.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[key])), key


def test_each_epoch_has_its_views_and_the_sampler_asks_for_them(plain):
    seen = []
    for epoch in range(2):
        plain.set_epoch(epoch)
        sampler = ReinforcedSampler(plain, seed=3, reinforced_probability=1.0)
        sampler.set_epoch(epoch)
        items = dict(sampler)
        assert items == dict.fromkeys(range(len(plain)), fresh_view(epoch))
        seen.append([plain[row]["pixel_values"] for row in range(len(plain))])
        for row, view in items.items():
            assert torch.equal(plain[row, view]["pixel_values"], seen[epoch][row])
    assert sum(torch.equal(a, b) for a, b in zip(*seen, strict=True)) < len(plain) / 2
    assert torch.equal(plain[-1]["pixel_values"], seen[1][-1])
    for index in (len(plain), (0, 0)):
        with pytest.raises(IndexError):
            plain[index]


def test_another_dataset_or_augmentation_has_another_fingerprint(plain, tiny_dataset):
    again = PlainDataset(tiny_dataset, AUGMENTATION, seed=3, **COLUMNS)
    others = [
        PlainDataset(tiny_dataset, Augmentation([RandomResizedCrop(24)]), seed=3, **COLUMNS),
        PlainDataset(tiny_dataset.select(range(6, 12)), AUGMENTATION, seed=3, **COLUMNS),
    ]
    assert plain.fingerprint == again.fingerprint
    assert len({each.fingerprint for each in (plain, *others)}) == 3


def test_refusals(tiny_dataset):
    with pytest.raises(ConfigError, match=r"must not mix images .*got MixUp or CutMix"):
        PlainDataset(tiny_dataset, Augmentation([RandomResizedCrop(24), MixUp()]), **COLUMNS)
    labels = np.array(tiny_dataset["label"])
    labels[5] = -1
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = tiny_dataset.cast_column("image", datasets.Image(decode=False))["image"]
    unlabelled = datasets.Dataset.from_dict({"image": list(images), "label": labels}, features=features)
    with pytest.raises(DataError, match=r"from 0 to 7 in every row, but row 5 has none \(1 such rows\)"):
        PlainDataset(unlabelled, AUGMENTATION, **COLUMNS)
    broken = [{"bytes": b"no image", "path": None}] * 2
    with pytest.raises(DataError, match="the image of row 1 must be readable"):
        PlainDataset(datasets.Dataset.from_dict({"image": broken, "label": [0, 1]}, features), AUGMENTATION, **COLUMNS)[
            1
        ]

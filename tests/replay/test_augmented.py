"""A base dataset on the data path of reinforced ones: the same newly drawn views, labels, no teacher."""

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from hf_dr.errors import ConfigError, DataError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.replay.augmented import AugmentedDataset
from hf_dr.replay.device import UndoneViews
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.sampling import ReinforcedSampler
from hf_dr.replay.view_requests import fresh_view, ranked_view
from hf_dr.store.base_dataset import content_hash, undecoded_images
from hf_dr.store.provenance import Provenance
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import CenterCrop, RandomCrop, RandomHorizontalFlip, RandomResizedCrop, Resize
from hf_dr.views.ops.mixing import MixUp

AUGMENTATION = Augmentation([RandomResizedCrop(24), RandomHorizontalFlip()])
COLUMNS = {"image_column": "image", "label_column": "label"}


@pytest.fixture
def augmented(tiny_dataset):
    return AugmentedDataset(tiny_dataset, AUGMENTATION, seed=3, **COLUMNS)


def test_its_views_are_the_new_views_of_a_reinforced_dataset(augmented, tiny_dataset, tiny_teacher, tmp_path):
    config = ReinforceConfig(str(tmp_path), "x", num_views=1, top_k=1, seed=3)
    reinforce(tiny_dataset, tiny_teacher, AUGMENTATION, config)
    plus = load_reinforced(tmp_path, seed=3)
    assert plus.class_names == augmented.class_names
    for epoch in range(3):
        for row in range(len(augmented)):
            mine, theirs = augmented[row, fresh_view(epoch)], plus[row, fresh_view(epoch)]
            assert mine.keys() == theirs.keys()
            for key, value in mine.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(theirs[key])), key


def test_no_array_of_all_rows_is_filled_for_an_item(augmented):
    for rows in (augmented, augmented.select([5, 2])):
        assert rows.source_rows.tolist() == [-1] * len(rows)
        assert rows.source_rows.strides == (0,), "all rows share one number"


def test_a_seed_of_numpy_is_the_same_seed(augmented, tiny_dataset):
    again = AugmentedDataset(tiny_dataset, AUGMENTATION, seed=np.uint64(3), **COLUMNS)
    assert again.fingerprint == augmented.fingerprint
    assert torch.equal(again[4]["pixel_values"], augmented[4]["pixel_values"])
    with pytest.raises(ConfigError, match=r"`seed` must be a whole number from 0 to 2\*\*64 - 1, got 0\.5"):
        AugmentedDataset(tiny_dataset, AUGMENTATION, seed=0.5, **COLUMNS)


def test_its_views_have_no_rank(augmented):
    with pytest.raises(IndexError, match="rank 0 of 0 views"):
        augmented[0, ranked_view(0, "entropy")]


def test_each_epoch_has_its_views_and_the_sampler_asks_for_them(augmented):
    seen = []
    for epoch in range(2):
        augmented.set_epoch(epoch)
        sampler = ReinforcedSampler(augmented, seed=3, reinforced_probability=1.0)
        sampler.set_epoch(epoch)
        items = dict(sampler)
        assert items == dict.fromkeys(range(len(augmented)), fresh_view(epoch))
        seen.append([augmented[row]["pixel_values"] for row in range(len(augmented))])
        for row, view in items.items():
            assert torch.equal(augmented[row, view]["pixel_values"], seen[epoch][row])
    assert sum(torch.equal(a, b) for a, b in zip(*seen, strict=True)) < len(augmented) / 2
    assert torch.equal(augmented[-1]["pixel_values"], seen[1][-1])
    for index in (len(augmented), (0, 0)):
        with pytest.raises(IndexError):
            augmented[index]


def test_another_dataset_or_augmentation_has_another_fingerprint(augmented, tiny_dataset):
    again = AugmentedDataset(tiny_dataset, AUGMENTATION, seed=3, **COLUMNS)
    others = [
        AugmentedDataset(tiny_dataset, Augmentation([RandomResizedCrop(24)]), seed=3, **COLUMNS),
        AugmentedDataset(tiny_dataset.select(range(6, 12)), AUGMENTATION, seed=3, **COLUMNS),
    ]
    assert augmented.fingerprint == again.fingerprint
    assert len({each.fingerprint for each in (augmented, *others)}) == 3


def test_its_origin_is_a_base_and_no_reinforcement(augmented, tiny_dataset):
    """A provenance is of a "+" dataset, and its reader refuses one of zero views."""
    origin = AugmentedDataset(tiny_dataset, AUGMENTATION, described={"id": "org/base"}, **COLUMNS).origin
    assert (origin.base["id"], origin.num_examples, origin.num_classes) == ("org/base", 12, 8)
    assert origin.base["content_hash"] == content_hash(undecoded_images(tiny_dataset, "image"))
    seeds = [AugmentedDataset(tiny_dataset, AUGMENTATION, seed=seed, **COLUMNS) for seed in (0, 1)]
    assert seeds[0].fingerprint != seeds[1].fingerprint
    assert seeds[0].origin.fingerprint == seeds[1].origin.fingerprint, "runs that differ in the seed are one setting"
    assert (origin.configs, origin.num_views, origin.teacher_members) == ((), (), ())
    assert not any(isinstance(value, Provenance) for value in vars(augmented).values())
    assert not hasattr(augmented, "provenance")
    assert not hasattr(augmented, "provenances")


def test_refusals(tiny_dataset):
    with pytest.raises(ConfigError, match=r"must not mix images .*got MixUp or CutMix"):
        AugmentedDataset(tiny_dataset, Augmentation([RandomResizedCrop(24), MixUp()]), **COLUMNS)
    labels = np.array(tiny_dataset["label"])
    labels[5] = -1
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = tiny_dataset.cast_column("image", datasets.Image(decode=False))["image"]
    unlabelled = datasets.Dataset.from_dict({"image": list(images), "label": labels}, features=features)
    with pytest.raises(
        DataError, match=r"from 0 upwards in every row, found -1, which is no label, in row 5 \(1 such rows\)"
    ):
        AugmentedDataset(unlabelled, AUGMENTATION, **COLUMNS)
    for values, kind in (([0.5] * 12, "float64"), ([None] * 12, "int64"), (["a"] * 12, "string")):
        kinds = datasets.Features({**features, "label": datasets.Value(kind)})
        odd = datasets.Dataset.from_dict({"image": list(images), "label": values}, features=kinds)
        with pytest.raises(
            DataError, match=r"`label` must be (whole numbers, .* Convert|.* found none in row 0 \(12 such)"
        ):
            AugmentedDataset(odd, AUGMENTATION, **COLUMNS)
    broken = [{"bytes": b"no image", "path": None}] * 2
    with pytest.raises(DataError, match="the image of row 1 of `train` must be readable"):
        AugmentedDataset(
            datasets.Dataset.from_dict({"image": broken, "label": [0, 1]}, features), AUGMENTATION, **COLUMNS
        )[1]


@pytest.mark.parametrize("items_of", [lambda data: data, UndoneViews], ids=["Pillow", "device"])
@pytest.mark.parametrize(
    ("ops", "reason"),
    [([RandomCrop(8)], "RandomCrop needs"), ([Resize(256), CenterCrop(8)], "Resize must make images of at most")],
    ids=["too small", "too large on the way"],
)
def test_an_image_of_a_size_that_an_op_does_not_take_is_named(ops, reason, items_of):
    images = [PIL.Image.new("RGB", (8, 8))] * 3 + [PIL.Image.new("RGB", (20_000, 1))]
    rows = datasets.Dataset.from_dict({"image": images, "label": [0] * 4}).cast_column("image", datasets.Image())
    data = items_of(AugmentedDataset(rows, Augmentation(ops), **COLUMNS))
    message = rf"the image of row 3 must be of a size that can be augmented, but: .*{reason}"
    with pytest.raises(DataError, match=message):
        data.__getitems__([3])

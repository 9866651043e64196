"""How batches cross between processes."""

from collections import UserDict
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from hf_dr.errors import DataError
from hf_dr.replay.device import UndoneCollator, UndoneViews
from hf_dr.replay.messages import InOneMessage, collate_rows
from hf_dr.views.device.augment import DeviceAugmentation

ITEMS = [
    {"labels": n, "reinforced": n % 2 == 0, "weights": torch.full((3,), n / 7), "large": torch.full((1 << 17,), n)}
    for n in range(2)
]


def sent(batch):
    """The message, and the batch as it arrives."""
    message = bytes(ForkingPickler.dumps(batch))
    return message, ForkingPickler.loads(message)


def test_only_large_tensors_are_apart():
    expected = default_collate(ITEMS)
    message, arrived = sent(InOneMessage(default_collate)(ITEMS))
    assert message.count(b"rebuild_storage") == 1
    assert type(arrived) is dict
    assert list(arrived) == list(expected)
    for name, value in expected.items():
        assert arrived[name].dtype == value.dtype
        assert torch.equal(arrived[name], value)
    arrived["weights"] += 1  # what arrives may be written to
    assert len(arrived["labels"]) == 2


def test_a_column_of_which_no_batch_can_be_made_is_named():
    for cells, kinds in (([None, None], "NoneType"), ([1, None], "NoneType and int"), ([[1], [1, 2]], "list")):
        rows = [{"labels": n, "note": cell} for n, cell in enumerate(cells)]
        with pytest.raises(
            DataError, match=f"cells of column `note` must go together in a batch, found {kinds} in one: "
        ):
            collate_rows(rows)
    assert torch.equal(collate_rows([{"labels": 3}, {"labels": 4}])["labels"], torch.tensor([3, 4]))


def test_what_numpy_does_not_have_is_sent_as_torch_does():
    batch = {
        "half": torch.ones(3, dtype=torch.bfloat16),
        "trained": torch.ones(3, requires_grad=True),
        "array": np.arange(3),
        "words": np.array(["a", "b"]),
        "numbers": torch.arange(3),
    }
    _, arrived = sent(InOneMessage(lambda _: batch)([]))
    for name, value in batch.items():
        assert type(arrived[name]) is type(value)
        if isinstance(value, np.ndarray):
            assert (arrived[name] == value).all()
        else:
            assert torch.equal(arrived[name], value)


def test_what_is_no_plain_dictionary_is_sent_as_it_is():
    batch = InOneMessage(lambda items: UserDict(default_collate(items)))(ITEMS)
    assert type(batch) is UserDict


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_that_is_not_made_yet_brings_its_images_apart(tiny_plus, num_workers):
    augmenter = DeviceAugmentation(tiny_plus.augmentation)
    collate = InOneMessage(UndoneCollator(augmenter, default_collate))
    indices = [(row, 0) for row in range(4)]
    batch = collate(UndoneViews(tiny_plus).__getitems__(indices))
    loader = torch.utils.data.DataLoader(
        UndoneViews(tiny_plus), collate_fn=collate, num_workers=num_workers, batch_sampler=[indices]
    )
    (arrived,) = loader
    message, _ = sent(batch)
    assert message.count(b"rebuild_storage") == 1
    assert torch.equal(arrived["pixel_values"].program.table, batch["pixel_values"].program.table)
    assert torch.equal(arrived["pixel_values"].pixels, batch["pixel_values"].pixels)
    assert torch.equal(arrived["teacher_ids"], batch["teacher_ids"])

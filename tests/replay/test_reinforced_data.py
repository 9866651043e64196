"""What all data for training has in common: requests for views, the key of new views, and where the data comes from."""

import copy
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from hf_dr.errors import ConfigError
from hf_dr.replay.augmented import AugmentedDataset
from hf_dr.replay.combined import CombinedReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.names import DIFFICULTIES
from hf_dr.replay.reinforced_data import MappedReinforcedData
from hf_dr.replay.view_requests import ViewRequest, draw_fresh_view, fresh_view, ranked_view
from hf_dr.store.provenance import Provenance
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomResizedCrop

CROP = Augmentation([RandomResizedCrop(8)])
COLUMNS = {"image_column": "image", "label_column": "label"}


def test_a_request_is_a_frozen_value_that_travels_to_workers():
    requests = [fresh_view(0), fresh_view(1), *(ranked_view(rank, by) for by in DIFFICULTIES for rank in (0, 1))]
    assert len(set(requests)) == len(requests)
    sent = ForkingPickler.loads(ForkingPickler.dumps(requests))
    assert sent == requests == copy.deepcopy(requests)
    assert {type(request) for request in sent} == {ViewRequest}
    assert len(ForkingPickler.dumps([(row, requests[0]) for row in range(1000)])) < 12_000, "one request, sent once"
    with pytest.raises(AttributeError, match="can't set attribute"):
        requests[0].number = 3


def test_views_are_ranked_by_what_is_known():
    with pytest.raises(ConfigError, match=r"views are ranked by one of entropy, cross_entropy, got 'loss'\. Name one"):
        ranked_view(0, "loss")


def test_a_number_below_0_is_no_stored_view(tiny_plus):
    """It is not counted from the last view, and a new view is asked for by its name."""
    for number in (-1, np.int64(-3)):
        with pytest.raises(
            IndexError, match=r"stored views are counted from 0, got -\d; `fresh_view\(epoch\)` asks for"
        ):
            tiny_plus[5, number]
    item = tiny_plus[5, fresh_view(0)]
    assert not item["reinforced"]


@pytest.mark.parametrize("ask", ["image", "params", "teacher_answer"])
def test_what_is_stored_cannot_be_had_of_a_new_view(tiny_plus, ask):
    with pytest.raises(IndexError, match="stored views are counted from 0, got -1; `fresh_view"):
        getattr(tiny_plus, ask)(0, -1)


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_that_no_view_has(tiny_plus, rank):
    with pytest.raises(IndexError, match=f"rank {rank} of 4 views"):
        tiny_plus[0, ranked_view(rank, "entropy")]


def test_the_key_of_a_new_view_is_for_ever():
    """Else a training that is resumed would see others. The largest keys are theirs; stored views count from 0 upwards."""
    asked = []

    class Watched:
        def check_size(self, size):
            pass

        def sample(self, rng, size):
            asked.append((rng.bit_generator.state["state"], size))
            return {}

        def apply(self, image, params):
            return image

    image = PIL.Image.new("RGB", (9, 8))
    draw_fresh_view(image, Watched(), seed=7, row=3, epoch=5)
    ((state, size),) = asked
    assert state["key"].tolist() == [7, 0]
    assert state["counter"].tolist() == [0, 0, 2**64 - 6, 3]
    assert size == (8, 9)


def test_which_view_an_epoch_shows_is_for_ever():
    """Else a training that is resumed would see other views. Rows without stored views have the number of a new one."""
    data = SimpleNamespace(num_views=5, seed=3, source_rows=np.array([0, 1, 2, 9, -1]))
    for paired, expected in (
        (False, {0: [1, 3, 2, 1, -1], 1: [4, 2, 1, 4, -2], 7: [4, 3, 1, 4, -8]}),
        (True, {0: [0, 0, 0, 0, -1], 1: [3, 3, 3, 3, -2], 7: [2, 2, 2, 2, -8]}),
    ):
        data.paired = paired
        for epoch, views in expected.items():
            assert MappedReinforcedData.scheduled_views(data, np.arange(5), epoch).tolist() == views
            assert [int(MappedReinforcedData.scheduled_views(data, row, epoch)) for row in range(5)] == views
    data.num_views = 50
    for epoch, ranks in {0: [9, 2, 8, 3], 4: [42, 43, 40, 49]}.items():
        assert MappedReinforcedData.scheduled_ranks(data, np.arange(4), epoch, 5).tolist() == ranks


def test_every_provenance_is_one_that_its_reader_accepts(tiny_folder, tiny_dataset, tmp_path):
    found = []
    for data in (
        load_reinforced(tiny_folder),
        load_reinforced([tiny_folder, tiny_folder]),
        AugmentedDataset(tiny_dataset, CROP, **COLUMNS),
    ):
        values = [value for each in (data, *getattr(data, "parts", ())) for value in vars(each).values()]
        values += [one for value in values if isinstance(value, tuple) for one in value]
        found += [value for value in values if isinstance(value, Provenance)]
    assert len(found) == 5
    for provenance in found:
        provenance.write(tmp_path)
        assert Provenance.read(tmp_path) == provenance


def test_the_origin_of_several_datasets_names_all(tiny_plus):
    provenance = tiny_plus.provenance
    both = CombinedReinforcedDataset([tiny_plus, tiny_plus]).origin
    assert both.fingerprint == f"{provenance.fingerprint} {provenance.fingerprint}"
    assert (both.configs, both.num_views) == (("all_ops", "all_ops"), (4, 4))
    assert list(both.teacher_members) == 2 * provenance.teacher["members"]
    assert (both.num_examples, both.num_classes, both.signal) == (12, 8, "topk")

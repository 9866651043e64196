"""Datasets of every past version stay replayable, pixel for pixel."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_dr.errors import ReplayError
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.features import combine_hashes
from hf_dr.store.schema import SCHEMA_VERSION
from hf_dr.views.maker import hash_view
from hf_dr.views.ops.base import OPS

GOLDEN = Path(__file__).parent / "golden"
DIGESTS = {
    "topk_image_tail": "36d50082767b27ec046fefd93430fdf73118ea6f69334a2eeb9875d95d0dda99",
    "sampled": "70e281d15d079436f22c62d6e6a5234d96b9f89d667be6d1cf345602dfb1ecc3",
}
CONFIGS = sorted(path.parent for path in GOLDEN.glob("v*/*/reinforcement.json"))


@pytest.mark.parametrize("folder", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_every_view_is_what_the_teacher_saw(folder):
    plus = load_reinforced(folder.parent, folder.name)
    for row in range(len(plus)):
        hashes = [hash_view(np.asarray(plus.image(row, view))) for view in range(plus.num_views)]
        assert combine_hashes(np.array(hashes, np.uint64)) == plus.views_hash(row)


def test_the_golden_datasets_cover_every_version_and_op():
    assert {path.parent.name for path in CONFIGS} == {f"v{n}" for n in range(1, SCHEMA_VERSION + 1)}
    used = {
        name
        for path in CONFIGS
        for op in load_reinforced(path.parent, path.name).provenance.augmentation
        for name in op
    }
    assert used == set(OPS)


@pytest.mark.parametrize("folder", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_every_op_was_at_work(folder):
    plus = load_reinforced(folder.parent, folder.name)
    drawn = [plus.params(row, view) for row in range(len(plus)) for view in range(plus.num_views)]
    for name in plus.augmentation.params:
        assert len({str(params[name]) for params in drawn}) > 1, name


def test_stored_partners_are_replayed_with_their_own_parameters(edit):
    plus = load_reinforced(GOLDEN / "v2", "stored_partners")
    mixed = [
        (row, view)
        for row in range(len(plus))
        for view in range(plus.num_views)
        if plus.params(row, view)["partner"] >= 0
    ]
    turned = edit(plus, "aug_partner_flip", lambda flips: ~flips)
    for row in range(len(plus)):
        for view in range(plus.num_views):
            same = np.array_equal(np.asarray(plus.image(row, view)), np.asarray(turned.image(row, view)))
            assert same == ((row, view) not in mixed)
    row, view = mixed[0]
    outside = edit(plus, "aug_partner_crop_box", lambda boxes: boxes + 99)
    with pytest.raises(ReplayError, match=rf"the partner of row {row}, view {view}: .* needs a box"):
        outside.image(row, view)


@pytest.mark.parametrize("signal", ["topk_image_tail", "sampled"])
def test_answers_of_every_signal_are_read_as_they_were_written(signal):
    plus = load_reinforced(GOLDEN / "v3", signal)
    assert plus.signal == signal
    items = [plus[row, view] for row in range(len(plus)) for view in range(plus.num_views)]
    masses = torch.stack([item["teacher_logprobs"] for item in items]).exp().sum(-1)
    if signal == "sampled":
        torch.testing.assert_close(masses, torch.ones(len(items)), atol=1e-3, rtol=0)
    digest = hashlib.sha256()
    for item in items:
        for name in ("teacher_ids", "teacher_logprobs", "tail_ids", "tail_logprobs"):
            digest.update(item[name].numpy().tobytes() if name in item else b"")
    assert digest.hexdigest() == DIGESTS[signal]

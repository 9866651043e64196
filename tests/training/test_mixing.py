"""MixUp and CutMix of a batch: the pixels of our ops, labels in proportion to the pixels, settings as timm's."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import quick

import hf_dr.training.mixing
from hf_dr.errors import ConfigError
from hf_dr.training.mixing import BatchMixer, mix_batch
from hf_dr.training.reinforced_settings import ReinforcedSettings
from hf_dr.views.ops.mixing import CutMix, MixUp
from hf_dr.views.rng import keyed_rng

SIZES = st.tuples(st.integers(1, 6), st.just(3), st.integers(1, 20), st.integers(1, 20))


def rng_of(seed):
    return keyed_rng(seed, domain=0)


def batch(seed, shape):
    return torch.from_numpy(rng_of(seed).integers(256, size=shape, dtype=np.uint8))


def as_image(pixels_CHW):
    return PIL.Image.fromarray(pixels_CHW.permute(1, 2, 0).contiguous().numpy())


@pytest.mark.parametrize("op", [MixUp, CutMix])
@quick
@given(seed=st.integers(0, 2**32), shape=SIZES, alpha=st.sampled_from([0.2, 0.8, 1.0, 5.0]))
def test_pixels_are_those_of_the_op(op, seed, shape, alpha):
    pixels, rng = batch(seed, shape), rng_of(seed)
    alphas = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, f"{op.name}_alpha": alpha}
    before = pixels.clone()
    mixed, lam = mix_batch(pixels, rng_of(seed), ReinforcedSettings(**alphas))
    assert torch.equal(pixels, before)
    rng.random(2)  # whether it mixes, and which
    params = op(alpha, p=1.0).sample(rng, shape[2:])
    for own, partner, found in zip(pixels, pixels.flip(0), mixed, strict=True):
        expected = op(alpha).apply(as_image(own), params, as_image(partner))
        assert np.array_equal(np.asarray(expected), found.permute(1, 2, 0).numpy())
    assert lam == (params["lam"] if op is MixUp else 1 - np.prod(params["box"][2:]) / (shape[2] * shape[3]))


@quick
@given(seed=st.integers(0, 2**32), size=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_labels_weigh_as_much_as_their_pixels(seed, size):
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, *size)
    for alphas in ({"mixup_alpha": 0.8, "cutmix_alpha": 0.0}, {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}):
        mixed, lam = mix_batch(black_and_white, rng_of(seed), ReinforcedSettings(**alphas))
        share = mixed.double().mean(dim=(1, 2, 3)) / 255
        # MixUp's levels are whole; of CutMix's the share is exact, whatever the border cuts off.
        assert share.tolist() == pytest.approx([1 - lam, lam], abs=0.5 / 255 if alphas["mixup_alpha"] else 1e-12)


@quick
@given(seed=st.integers(0, 2**32), count=st.sampled_from([1, 3, 5]))
def test_the_middle_of_an_odd_batch_stays(seed, count):
    pixels = batch(seed, (count, 3, 9, 7))
    mixed, _ = mix_batch(pixels, rng_of(seed), ReinforcedSettings(mixup_alpha=0.8, cutmix_alpha=1.0))
    assert torch.equal(mixed[count // 2], pixels[count // 2])


def test_how_often_and_which():
    def kinds(**settings):
        found = {"none": 0, "mixup": 0, "cutmix": 0}
        for seed in range(400):
            mixed, lam = mix_batch(
                black_and_white,
                rng_of(seed),
                ReinforcedSettings(**{"mixup_alpha": 1.0, "cutmix_alpha": 1.0, **settings}),
            )
            grey = bool(((mixed > 0) & (mixed < 255)).any())
            found["mixup" if grey else "cutmix" if 0 < lam < 1 else "none"] += 1
        return {kind: count / 400 for kind, count in found.items()}

    black_and_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    # Three standard errors are 0.075; a lam that rounds to 0 or 1 is rare.
    assert kinds() == pytest.approx({"none": 0.0, "mixup": 0.5, "cutmix": 0.5}, abs=0.09)
    assert kinds(mixup_prob=0.4, mixup_switch_prob=0.25) == pytest.approx(
        {"none": 0.6, "mixup": 0.3, "cutmix": 0.1}, abs=0.09
    )
    assert kinds(mixup_switch_prob=0.0)["cutmix"] == 0
    assert kinds(mixup_switch_prob=1.0)["mixup"] == 0
    assert kinds(mixup_alpha=0.0, mixup_switch_prob=0.0)["cutmix"] > 0.9
    assert kinds(cutmix_alpha=0.0, mixup_switch_prob=1.0)["mixup"] > 0.9
    assert (
        kinds(mixup_prob=0.0) == kinds(mixup_alpha=0.0, cutmix_alpha=0.0) == {"none": 1.0, "mixup": 0.0, "cutmix": 0.0}
    )


def test_the_key_of_a_mix_is_for_ever(monkeypatch):
    """Else a training that is resumed would go on with other mixes: each process and each batch of a step has its own."""
    keys = []

    def watched(pixels_BCHW, rng, settings):
        state = rng.bit_generator.state["state"]
        keys.append((*state["key"].tolist(), *state["counter"].tolist()))
        return pixels_BCHW, 1.0

    monkeypatch.setattr(hf_dr.training.mixing, "mix_batch", watched)
    mixer = BatchMixer(SimpleNamespace(world_size=3, process_index=2), lambda: 7)
    for step, batches in ((0, 1), (5, 2)):
        mixer.on_step_begin(None, None, None)
        for _ in range(batches):
            mixer.mix({"pixel_values": batch(0, (2, 3, 4, 4))}, step)
    assert keys == [(7, 6, 0, 0, place, step) for step, place in ((0, 2), (5, 2), (5, 5))]


def test_normalised_pixels_are_refused():
    with pytest.raises(ConfigError, match=r"must be uint8 to be mixed, before they are normalised, got torch.float32"):
        mix_batch(torch.zeros(2, 3, 8, 8), rng_of(0), ReinforcedSettings(mixup_alpha=1.0))

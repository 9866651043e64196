"""Ops of the user's own are tried before a run: what nothing could replay is refused, with the name of the op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageEnhance
import PIL.ImageOps
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import every_op, op_id, quick

import hf_dr
from hf_dr.errors import ConfigError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.own_ops import check_own_ops
from hf_dr.generation.verify import verify
from hf_dr.teacher.ensemble import Teacher
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.maker import ViewMaker
from hf_dr.views.ops.base import OPS, Op, Param, Params, Size, register
from hf_dr.views.ops.geometry import RandomResizedCrop, Resize

Sample = Callable[[np.random.Generator, Size], Params]
Apply = Callable[[PIL.Image.Image, Params], PIL.Image.Image]
HIDDEN = np.random.default_rng(0)


def own(sample: Sample, apply: Apply = lambda image, params: image, stored: Param = Param("float16")) -> Op:  # noqa: B008
    """An op with one parameter, `f`."""

    @dataclass(frozen=True)
    class Own(Op):
        name: ClassVar[str] = "own"

        @property
        def params(self) -> dict[str, Param]:
            return {"f": stored}

        def sample(self, rng: np.random.Generator, size: Size) -> Params:
            return sample(rng, size)

        def apply(self, image: PIL.Image.Image, params: Params, partner: Any = None) -> PIL.Image.Image:
            return apply(image, params)

    return Own()


def rounded(rng: np.random.Generator, size: Size = (0, 0)) -> Params:
    return {"f": float(np.float16(rng.uniform(0.5, 1.5)))}


def brighter(image: PIL.Image.Image, params: Params) -> PIL.Image.Image:
    return PIL.ImageEnhance.Brightness(image).enhance(params["f"])


def lined(image: PIL.Image.Image, params: Params) -> PIL.Image.Image:
    PIL.ImageDraw.Draw(image).line((0, 0, 9, 9), fill=(255, 0, 0))
    return image


def stepped(image: PIL.Image.Image, params: Params) -> PIL.Image.Image:
    """Computes in the type in which the number comes."""
    return image.point(lambda level: np.asarray(params["f"]).itemsize)


def maker(dataset: datasets.Dataset, *ops: Op) -> ViewMaker:
    images = dataset.select_columns("image").cast_column("image", datasets.Image(decode=False))
    return ViewMaker(images, Augmentation(ops), num_views=3, seed=0, matching_size=None)


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (
            own(lambda rng, size: {"f": rng.uniform(0.5, 1.5)}, brighter),
            r"`sample` of Own must return values that float16 holds exactly, got [01]\.\d+ for the parameter 'f', .* Round it",
        ),
        (
            own(lambda rng, size: {"f": rng.uniform(0.5, 1.5)}, brighter, Param("float32")),
            r"values that float32 holds exactly, .*Round it there \(`np\.float32\(x\)\.item\(\)`\), or",
        ),
        (own(lambda rng, size: {"f": 983}, stored=Param("uint8")), "uint8 holds exactly, got 983 for .* keeps nothing"),
        (
            own(lambda rng, size: {"f": np.int64(983)}, stored=Param("uint8")),
            "uint8 holds exactly, got 983 .* keeps 215",
        ),
        (own(lambda rng, size: {"f": (1, 2, 3)}, stored=Param("uint8", 2)), "that 2 times uint8 holds exactly, got"),
        (
            own(lambda rng, size: {"g": 1.0}),
            r"the parameters that its `params` names, \['f'\], got \['g'\]\. Return each",
        ),
        (
            own(lambda rng, size: None),
            "Own must draw and perform the views of an image of 8x8 pixels, but: TypeError: ",
        ),
        (own(lambda rng, size: rounded(HIDDEN)), "`sample` of Own must draw from its `rng` alone, but the same"),
        (own(rounded, lined), r"`apply` of Own must leave the image .* Work on `image\.copy\(\)`"),
        (
            own(rounded, lambda image, params: brighter(image, rounded(HIDDEN))),
            "`apply` of Own must make the same image of the same parameters, found another the second time. Draw in `sample`",
        ),
        (
            own(lambda rng, size: {"f": np.float16(rng.uniform())}, stepped),
            "the same image of the same parameters, .* in Python's own numbers",
        ),
        (
            own(rounded, lambda image, params: PIL.ImageOps.grayscale(image)),
            r"`apply` of Own must return an RGB image of 8x8 pixels .* got one of mode L and 8x8\. Convert it by",
        ),
        (
            own(rounded, lambda image, params: image.resize((4, 2))),
            "an RGB image of 8x8 pixels .* got one of mode RGB and 2x4",
        ),
        (own(rounded, lambda image, params: image.nothing), "8x8 pixels, but: AttributeError: .*nothing.*Correct it"),
        (own(rounded, lambda image, params: np.asarray(image)), "but: AttributeError: "),
    ],
)
def test_an_op_that_nothing_could_replay_is_refused(tiny_dataset: datasets.Dataset, op: Op, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_own_ops(maker(tiny_dataset, Resize((8, 8)), op))


@pytest.mark.parametrize("op", every_op(), ids=op_id)
def test_what_keeps_the_rules_is_accepted(tiny_dataset: datasets.Dataset, op: Op) -> None:
    good = own(rounded, brighter)
    ops = (Resize((8, 8)), good, op) if op.mixes else (good, op, Resize((8, 8)))
    check_own_ops(maker(tiny_dataset, *ops))


@quick
@given(
    kind=st.sampled_from(["bool", "uint8", "int16", "float16", "float32"]),
    seed=st.integers(0, 2**32),
    length=st.none() | st.just(3),
)
def test_values_of_the_stored_type_are_accepted(
    tiny_dataset: datasets.Dataset, kind: str, seed: int, length: int | None
) -> None:
    values = np.asarray(np.random.default_rng(seed).uniform(0, 100, length)).astype(kind)
    value = tuple(values.tolist()) if length else values.item()
    op = own(lambda rng, size: {"f": value}, stored=Param(kind, length))
    check_own_ops(maker(tiny_dataset.select([0]), Resize((8, 8)), op))


def test_the_ops_of_the_package_need_no_trial(tiny_dataset: datasets.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ViewMaker, "image", None)
    check_own_ops(maker(tiny_dataset, Resize((8, 8))))


def test_images_that_cannot_be_read_are_left_to_the_run(tiny_dataset: datasets.Dataset) -> None:
    broken = [
        {"bytes": b"broken", "path": None},
        *tiny_dataset.cast_column("image", datasets.Image(decode=False))["image"],
    ]
    dataset = datasets.Dataset.from_dict({"image": broken}, features=datasets.Features({"image": datasets.Image()}))
    with pytest.raises(ConfigError, match="must leave the image"):
        check_own_ops(maker(dataset, own(rounded, lined), Resize((8, 8))))


def test_a_run_tries_them_before_anything_is_written(
    tmp_path: Path, tiny_dataset: datasets.Dataset, tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_dr.views.ops.base.OPS", known := dict(OPS))
    monkeypatch.setattr("hf_dr.views.augmentation.OPS", known)
    bad, good = own(rounded, lined), own(rounded, brighter)
    crop, config = RandomResizedCrop(8), ReinforceConfig(str(tmp_path / "plus"), num_views=2, num_workers=1)
    register(type(bad))
    with pytest.raises(ConfigError, match="`apply` of Own must leave the image"):
        hf_dr.reinforce(tiny_dataset, tiny_teacher, [bad, crop], config)
    with pytest.raises(ConfigError, match="`apply` of Own must leave the image"):
        hf_dr.calibrate(tiny_dataset, tiny_teacher, [bad, crop])
    assert not (tmp_path / "plus").exists()
    register(type(good))
    assert verify(hf_dr.reinforce(tiny_dataset, tiny_teacher, [good, crop], config), tiny_teacher).ok


@dataclass(frozen=True)
class WithoutPartner(Op):
    """As many write an op that mixes nothing, and a size as it comes from YAML."""

    name: ClassVar[str] = "without_partner"
    size: Any = (32, 32)

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        return {}

    def output_size(self, size: Size) -> Any:
        return self.size

    def apply(self, image: PIL.Image.Image, params: Params) -> PIL.Image.Image:  # type: ignore[override]
        return image.resize((32, 32))


@pytest.mark.parametrize("size", [(32, 32), [32, 32]])
def test_an_op_that_mixes_nothing_needs_no_partner(tiny_dataset: datasets.Dataset, size: Any) -> None:
    check_own_ops(maker(tiny_dataset, WithoutPartner(size)))


def test_slow_ops_are_tried_as_long_as_there_is_time(
    tiny_dataset: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    op = own(rounded, lambda image, params: tried.append(1) or image)
    check_own_ops(maker(tiny_dataset, op, Resize((16, 16))))
    assert len(tried) == 2 * 12 * 3, "twice each of three views of all rows"
    monkeypatch.setattr("hf_dr.generation.own_ops._SECONDS", -1.0)
    check_own_ops(maker(tiny_dataset, op, Resize((16, 16))))
    assert len(tried) == 2 * 12 * 3 + 2

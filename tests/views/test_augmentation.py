"""An augmentation keeps its ops in order, knows its columns and its size, and refuses lists that cannot work."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import PIL.Image
import pytest
import yaml
from samples import every_op, op_id, photo, same_pixels

from hf_dr.errors import ConfigError, ReplayError
from hf_dr.views.augmentation import NAMED, NO_PARTNER, PARTNER, Augmentation
from hf_dr.views.ops.base import Param
from hf_dr.views.ops.colour import ColorJitter, RandAugment
from hf_dr.views.ops.geometry import (
    CenterCrop,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
)
from hf_dr.views.ops.mixing import CutMix, MixUp
from hf_dr.views.resizing import HORIZONTAL, PILLOW_13
from hf_dr.views.rng import view_rng

SIZE = (20, 30)
MIXING = Augmentation([RandomResizedCrop(8), MixUp(p=0.5), CutMix(p=0.5)])


# --------------------------------------------------------------------------------------------------------------- order


def test_ops_are_applied_first_to_last() -> None:
    """Flip then crop is not crop then flip."""
    image, box = photo(*SIZE), (2, 3, 10, 9)
    crop, flip = RandomResizedCrop(8), RandomHorizontalFlip()
    params = {"crop_box": box, "flip": True}
    expected = flip.apply(crop.apply(image, {"box": box}), {"": True})
    assert same_pixels(Augmentation([crop, flip]).apply(image, params), expected)
    other = crop.apply(flip.apply(image, {"": True}), {"box": box})
    assert same_pixels(Augmentation([flip, crop]).apply(image, params), other)
    assert not same_pixels(expected, other)


def test_each_op_draws_for_the_size_that_the_former_left() -> None:
    """An erasing box after the crop fits the crop's output, not the image."""
    augmentation = Augmentation([RandomResizedCrop((6, 4)), RandomErasing(p=1)])
    for view in range(100):
        top, left, height, width = augmentation.sample(view_rng(0, 0, view), (500, 700))["erasing_box"]
        assert top + height <= 6
        assert left + width <= 4


def test_parameters_and_columns_come_in_the_order_of_the_ops() -> None:
    augmentation = Augmentation.named("randaug_mixing")
    expected = {
        "crop_box": Param("uint16", 4),
        "flip": Param("bool"),
        "rand_augment_op": Param("uint8", 2),
        "rand_augment_level": Param("int8", 2),
        "erasing_box": Param("uint16", 4),
        "mixup_lam": Param("float16"),
        "cutmix_box": Param("uint16", 4),
        "partner": Param("int32"),
    }
    assert list(augmentation.params.items()) == list(expected.items())
    assert list(augmentation.sample(view_rng(0, 0, 0), SIZE)) == list(expected)[:-1]


def test_there_is_no_partner_column_without_mixing() -> None:
    assert PARTNER not in Augmentation.named("randaug").params
    assert not Augmentation.named("randaug").mixes
    assert MIXING.mixes


def test_a_repeated_op_has_columns_of_its_own() -> None:
    augmentation = Augmentation(
        [RandomHorizontalFlip(), CenterCrop(16), RandomErasing(p=1), RandomHorizontalFlip(), RandomErasing(p=1),
         RandomErasing(p=1)]
    )  # fmt: skip
    assert list(augmentation.params) == ["flip", "erasing_box", "flip_2", "erasing_2_box", "erasing_3_box"]
    none = (0, 0, 0, 0)
    params = {"flip": True, "erasing_box": none, "flip_2": True, "erasing_2_box": none, "erasing_3_box": none}
    plain = CenterCrop(16).apply(photo(*SIZE), {})
    assert same_pixels(augmentation.apply(photo(*SIZE), params), plain)  # flipped there and back
    erased = augmentation.apply(photo(*SIZE), {**params, "erasing_3_box": (0, 0, 1, 1)})
    assert np.flatnonzero((np.asarray(erased) != np.asarray(plain)).any(-1)).tolist() == [0]


def test_drawing_is_repeatable_and_differs_between_views() -> None:
    augmentation = Augmentation.named("randaug_mixing", 16)
    first = [augmentation.sample(view_rng(1, 2, view), SIZE) for view in range(5)]
    assert [augmentation.sample(view_rng(1, 2, view), SIZE) for view in range(5)] == first
    assert len({repr(params) for params in first}) == 5


# --------------------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize("ops", [[MixUp(), RandomResizedCrop(8)], [RandomResizedCrop(8), CutMix(), RandomErasing()]])
def test_mixing_ops_come_last(ops: list[Any]) -> None:
    """Partners are mixed after their own ops, so both of a pair can share the decoded views."""
    with pytest.raises(ConfigError, match=r"mixing ops must come last, got .*\. Move MixUp and CutMix to the end\."):
        Augmentation(ops)


@pytest.mark.parametrize("ops", [[RandomHorizontalFlip()], [Resize(8)], [ColorJitter(0.1), MixUp()]])
def test_some_op_fixes_the_size(ops: list[Any]) -> None:
    """A teacher sees the views in batches. `Resize(8)` alone leaves a side open."""
    with pytest.raises(
        ConfigError, match=r"the views must all have one size, but no op of .* fixes it\. Add RandomRes"
    ):
        Augmentation(ops)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"must hold at least one op, got an empty list\. Add e\.g\. RandomResizedCrop"
    ):
        Augmentation([])


@pytest.mark.parametrize(
    ("ops", "size"),
    [
        ([RandomResizedCrop(8)], (8, 8)),
        ([RandomResizedCrop((8, 6)), RandomErasing()], (8, 6)),
        ([Resize(12), CenterCrop(8)], (8, 8)),
        ([Resize((9, 7))], (9, 7)),
        ([RandomCrop(10, padding=4), Resize(4)], (4, 4)),
        ([RandomResizedCrop((8, 4)), Resize(2)], (4, 2)),
    ],
)
def test_the_size_of_the_views_is_known_beforehand(ops: list[Any], size: tuple[int, int]) -> None:
    augmentation = Augmentation(ops)
    assert augmentation.size == size
    for image_size in [(20, 30), (30, 20), (12, 12)]:
        view = augmentation.apply(photo(*image_size), augmentation.sample(view_rng(0, 0, 0), image_size))
        assert (view.height, view.width) == size


# -------------------------------------------------------------------------------------------------------------- mixing


def test_mixing_happens_in_the_order_of_the_ops_with_the_partners_view() -> None:
    image, partner = photo(8, 8), photo(8, 8, seed=1)
    params = {"crop_box": (0, 0, 8, 8), "mixup_lam": 0.25, "cutmix_box": (0, 0, 3, 3)}
    mixed = MIXING.mix(MIXING.apply(image, params), params, partner)
    expected = CutMix().apply(MixUp().apply(image, {"lam": 0.25}, partner), {"box": (0, 0, 3, 3)}, partner)
    assert same_pixels(mixed, expected)
    assert same_pixels(MIXING.apply(image, params), image)  # `apply` leaves mixing to `mix`


@pytest.mark.parametrize(
    ("lam", "box", "needs"),
    [(1.0, (0, 0, 0, 0), False), (0.5, (0, 0, 0, 0), True), (1.0, (0, 0, 2, 2), True), (0.0, (1, 1, 1, 1), True)],
)
def test_a_partner_is_needed_exactly_where_something_is_mixed(lam: float, box: tuple[int, ...], needs: bool) -> None:
    params = {"crop_box": (0, 0, 8, 8), "mixup_lam": lam, "cutmix_box": box}
    assert MIXING.needs_partner(params) is needs
    if needs:
        with pytest.raises(ReplayError, match="needs a partner image of 8x8 pixels, found none"):
            MIXING.mix(photo(8, 8), params, None)
    else:
        assert same_pixels(MIXING.mix(photo(8, 8), params, None), photo(8, 8))


def test_an_augmentation_without_mixing_needs_no_partner() -> None:
    augmentation = Augmentation.named("rrc", 8)
    params = augmentation.sample(view_rng(0, 0, 0), SIZE)
    assert not augmentation.needs_partner(params)
    assert same_pixels(augmentation.mix(photo(8, 8), params, None), photo(8, 8))


def test_without_mixing_skips_every_mixing_op_and_keeps_the_rest() -> None:
    params = {"crop_box": (1, 2, 3, 4), "mixup_lam": 0.25, "cutmix_box": (0, 0, 2, 2), PARTNER: 7}
    kept = dict(params)
    alone = MIXING.without_mixing(params)
    assert params == kept
    assert alone == {"crop_box": (1, 2, 3, 4), "mixup_lam": 1.0, "cutmix_box": (0, 0, 0, 0), PARTNER: 7}
    assert not MIXING.needs_partner(alone)
    assert NO_PARTNER == -1


def test_a_missing_parameter_is_named() -> None:
    message = r"expected the parameter 'mixup_lam', found \['crop_box'\]\. Use the augmentation it came with"
    with pytest.raises(ReplayError, match=message):
        MIXING.needs_partner({"crop_box": (0, 0, 1, 1)})


# ------------------------------------------------------------------------------------------------------ lists and names


@pytest.mark.parametrize("op", every_op(), ids=op_id)
def test_lists_survive_json_and_yaml(op: Any) -> None:
    augmentation = Augmentation([CenterCrop(16), op] if op.mixes else [op, CenterCrop(16)])
    for read in (
        json.loads(json.dumps(augmentation.to_list())),
        yaml.safe_load(yaml.safe_dump(augmentation.to_list())),
    ):
        assert Augmentation.from_list(read) == augmentation
        assert Augmentation.from_list(read).to_list() == augmentation.to_list()


def test_every_setting_is_written_so_that_changed_defaults_do_no_harm() -> None:
    (written,) = Augmentation([RandomResizedCrop(8)]).to_list()
    settings = {"size": 8, "scale": [0.08, 1.0], "ratio": [3 / 4, 4 / 3], "interpolation": "bilinear"}
    assert written == {"RandomResizedCrop": {**settings, "passes": "horizontal"}}


def test_datasets_before_format_4_keep_their_arithmetic_and_their_settings() -> None:
    items = [{"Resize": {"size": 9, "interpolation": "box"}}, {"CenterCrop": {"size": 8}}]
    old = Augmentation.from_list(items, passes=PILLOW_13)
    assert old.ops == (Resize(9, "box", PILLOW_13), CenterCrop(8))
    assert old.to_list() == items
    assert Augmentation.from_list(items).ops[0] == Resize(9, "box", HORIZONTAL)
    with pytest.raises(ConfigError, match="`passes` of Resize must be one of horizontal, pillow13, got 'vertical'"):
        Resize(9, passes="vertical")


def test_yaml_may_leave_settings_out() -> None:
    written = yaml.safe_load(
        "[{RandomResizedCrop: {size: [8, 6]}}, RandomHorizontalFlip, {RandAugment: }, MixUp: {alpha: 1}]"
    )
    expected = [RandomResizedCrop((8, 6)), RandomHorizontalFlip(), RandAugment(), MixUp(1.0)]
    assert Augmentation.from_list(written) == Augmentation(expected)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("RandomCrop", r"must be a list of ops, got str\. Write `- OpName: {}`\."),
        (None, "must be a list of ops, got NoneType"),
        ({"RandomCrop": {}}, "must be a list of ops, got dict"),
        ([], "must hold at least one op"),
        (
            [["RandomCrop"]],
            r"an op must be written as `- OpName: {setting: value}`, or be one of `hf_dr.ops`, got \['RandomCrop'\]\. Others",
        ),
        ([{"RandomCrop": {"size": 8}, "MixUp": {}}], "an op must be written as"),
        ([{}], "an op must be written as `- OpName: {setting: value}`, or be one of `hf_dr.ops`, got {}"),
        ([3], "an op must be written as .*, got 3"),
        (["RandomResizeCrop"], r"no op is called `RandomResizeCrop`\. Did you mean `RandomResizedCrop`\?"),
        (["randaugment"], r"no op is called `randaugment`\. Did you mean `RandAugment`\?"),
        (
            ["Zoom"],
            r"no op is called `Zoom`\. Known: AutoAugment, CenterCrop, ColorJitter, CutMix, MixUp, RandAugment, ",
        ),
        ([{None: {}}], "no op is called `None`"),
        ([{3: {}}], "no op is called `3`"),
        ([{"RandomCrop": 8}], "the settings of RandomCrop must be a mapping, got 8"),
        ([{"RandomCrop": [8]}], r"the settings of RandomCrop must be a mapping, got \[8\]"),
        ([{"RandomCrop": {"sise": 8}}], r"RandomCrop has no setting `sise`\. Did you mean `size`\?"),
        ([{"RandomCrop": {}}], r"RandomCrop needs `size`, which has no default\. Add it\."),
        ([{"RandomCrop": {"size": "8"}}], "`size` of RandomCrop must be a side or .*, got '8'. Change `size`"),
        ([{"MixUp": {}}, {"RandomCrop": {"size": 8}}], "mixing ops must come last, got MixUp, RandomCrop"),
    ],
)
def test_lists_that_cannot_be_read_say_why(items: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Augmentation.from_list(items)


@pytest.mark.parametrize("size", [224, 32, (160, 96)])
def test_the_four_of_the_paper(size: Any) -> None:
    """Section 3 of arXiv:2303.08983: crop and flip; + MixUp and CutMix; + RandAugment and erasing; + both."""
    base = [RandomResizedCrop(size), RandomHorizontalFlip(0.5)]
    strong = [RandAugment(num_ops=2, magnitude=9), RandomErasing(p=0.25)]
    mixing = [MixUp(1.0, p=0.5), CutMix(1.0, p=0.5)]
    expected = {
        "rrc": base, "mixing": base + mixing, "randaug": base + strong, "randaug_mixing": base + strong + mixing
    }  # fmt: skip
    assert set(expected) == set(NAMED)
    for name, ops in expected.items():
        augmentation = Augmentation.named(name, size)
        assert augmentation == Augmentation(ops)
        assert augmentation.size == ((size, size) if isinstance(size, int) else size)
    assert Augmentation.named("rrc").size == (224, 224)


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(
        ConfigError, match=r"no augmentation is called `randag`\. Did you mean `randaug`\? Or give a list"
    ):
        Augmentation.named("randag")


@pytest.mark.parametrize(
    ("name", "parameter", "message"),
    [
        ("crop_2", "box", "RandomResizedCrop and Own both store 'crop_2_box'"),
        ("partner", "", "mixing and Own both store 'partner'"),
    ],
)
def test_two_parameters_of_one_column_are_refused(name: str, parameter: str, message: str) -> None:
    """`_2` is put behind the name of an op that stands there twice; `aug_partner` is the column of the partners."""
    params = property(lambda op: {parameter: Param("bool")})
    own = type("Own", (RandomHorizontalFlip,), {"name": name, "params": params})()
    crop = RandomResizedCrop(8)
    with pytest.raises(
        ConfigError, match=rf"must have a column of its own, but {message}\. Give one of your own ops another"
    ):
        Augmentation([crop, crop, own])


def test_equality_is_that_of_the_ops_in_their_order() -> None:
    a, b = RandomHorizontalFlip(), RandomResizedCrop(8)
    assert Augmentation([a, b]) == Augmentation([a, b])
    assert hash(Augmentation([a, b])) == hash(Augmentation([a, b]))
    assert Augmentation([a, b]) != Augmentation([b, a])
    assert Augmentation([a, b]) != [a, b]
    assert repr(Augmentation([b])) == f"Augmentation([{b!r}])"


def test_replay_does_not_change_the_image() -> None:
    augmentation = Augmentation.named("randaug_mixing", 16)
    image, partner = photo(*SIZE), PIL.Image.new("RGB", (16, 16), (9, 9, 9))
    before = image.tobytes(), partner.tobytes()
    for view in range(20):
        params = augmentation.sample(view_rng(0, 0, view), SIZE)
        augmentation.mix(augmentation.apply(image, params), params, partner)
    assert (image.tobytes(), partner.tobytes()) == before

"""Every registered op keeps the rules of replay; an op that is added to `hf_dr.views.ops` is tested here by itself."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle  # noqa: TID251 - only to see that data loaders can
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from samples import SIDE, every_op, make_op, op_id, photo, plain, quick, same_pixels, through_numpy, through_parquet

from hf_dr.errors import ConfigError, ReplayError
from hf_dr.views.augmentation import NAMED, Augmentation
from hf_dr.views.ops import base
from hf_dr.views.ops.base import MAX_SIDE, OPS, Op, Params, register
from hf_dr.views.ops.colour import (
    POLICY_OPS,
    AutoAugment,
    ColorJitter,
    RandAugment,
    RandAugmentIncreasing,
    TrivialAugmentWide,
)
from hf_dr.views.ops.geometry import (
    CenterCrop,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
)
from hf_dr.views.ops.mixing import CutMix, MixUp
from hf_dr.views.rng import view_rng

each_op = pytest.mark.parametrize("op", every_op(), ids=op_id)
each_class = pytest.mark.parametrize("cls", OPS.values(), ids=list(OPS))
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
seeds = st.integers(0, 2**64 - 1)


def views(op: Op, seed: int, size: tuple[int, int], count: int) -> list[Params]:
    return [op.sample(view_rng(seed, 3, view), size) for view in range(count)]


def test_the_enumeration_finds_the_ops_of_the_paper() -> None:
    assert {"RandomResizedCrop", "RandomHorizontalFlip", "RandAugment", "RandomErasing", "MixUp", "CutMix"} <= set(OPS)
    assert {type(op).__name__ for op in every_op()} == set(OPS)


# ------------------------------------------------------------------------------------------------- sample and replay


@each_op
@quick
@given(seed=seeds, size=sizes)
def test_replay_of_stored_parameters_is_bit_exact(
    op: Op, seed: int, size: tuple[int, int], tmp_path_factory: Any
) -> None:
    """Parameters that went through NumPy's or Parquet's columns give the pixels of the sampled ones."""
    image, partner = photo(*size), photo(*size, seed=1)
    sampled = views(op, seed, size, 4)
    read = through_parquet(op, sampled, tmp_path_factory.mktemp("shard"))
    for drawn, from_parquet in zip(sampled, read, strict=True):
        shown = op.apply(image, drawn, partner)
        assert shown.mode == "RGB"
        assert same_pixels(op.apply(image, through_numpy(op, drawn), partner), shown)
        assert same_pixels(op.apply(image, from_parquet, partner), shown)


@each_op
@quick
@given(seed=seeds, size=sizes)
def test_sampled_values_are_held_exactly_by_their_stored_types(op: Op, seed: int, size: tuple[int, int]) -> None:
    for drawn in views(op, seed, size, 8):
        assert plain(through_numpy(op, drawn)) == drawn


@each_op
@quick
@given(seed=seeds, size=sizes)
def test_sampled_parameters_are_the_declared_ones(op: Op, seed: int, size: tuple[int, int]) -> None:
    """The same names in the same order, tuples of the declared length, Python's own types."""
    for drawn in views(op, seed, size, 2):
        assert list(drawn) == list(op.params)
        for name, param in op.params.items():
            values = (drawn[name],) if param.length is None else drawn[name]
            assert isinstance(values, tuple)
            assert len(values) == (param.length or 1)
            kinds = {"b": bool, "u": int, "i": int, "f": float}
            assert {type(value) for value in values} == {kinds[np.dtype(param.dtype).kind]}


@each_op
@quick
@given(seed=seeds, size=sizes)
def test_apply_is_pure(op: Op, seed: int, size: tuple[int, int]) -> None:
    """Twice the same pixels; the image, the partner, the parameters and the op stay as they were."""
    image, partner = photo(*size), photo(*size, seed=1)
    before = image.tobytes(), partner.tobytes(), repr(op)
    for drawn in views(op, seed, size, 2):
        kept = dict(drawn)
        first = op.apply(image, drawn, partner)
        assert same_pixels(op.apply(image, drawn, partner), first)
        assert drawn == kept
    assert (image.tobytes(), partner.tobytes(), repr(op)) == before


@each_op
@quick
@given(seed=seeds, size=sizes)
def test_output_size_is_what_apply_returns(op: Op, seed: int, size: tuple[int, int]) -> None:
    image, partner = photo(*size), photo(*size, seed=1)
    shown = op.apply(image, op.sample(view_rng(seed, 0, 0), size), partner)
    assert (shown.height, shown.width) == op.output_size(size)
    assert op.output_size(None) in (None, op.output_size(size))


@each_op
@quick
@given(seed=seeds, example_index=st.integers(0, 2**64 - 1), size=sizes)
def test_the_same_key_draws_the_same_parameters(op: Op, seed: int, example_index: int, size: tuple[int, int]) -> None:
    """Also from another instance of the op, and after other draws."""
    first = op.sample(view_rng(seed, example_index, 7), size)
    op.sample(view_rng(seed, example_index, 8), size)
    assert op.sample(view_rng(seed, example_index, 7), size) == first
    assert dataclasses.replace(op).sample(view_rng(seed, example_index, 7), size) == first  # type: ignore[type-var]


@each_op
def test_a_lively_op_draws_different_parameters_for_different_views(op: Op) -> None:
    drawn = {repr(params) for params in views(op, 0, (33, 40), 40)}
    if op.params and not (isinstance(op, RandomHorizontalFlip) and op.p == 1):
        assert len(drawn) > 1
    else:
        assert len(drawn) == 1


@each_op
def test_images_of_one_pixel_are_replayed(op: Op) -> None:
    for drawn in views(op, 1, (1, 1), 20):
        shown = op.apply(photo(1, 1), drawn, photo(1, 1, seed=1))
        assert (shown.height, shown.width) == op.output_size((1, 1))


@pytest.mark.parametrize("cls", [c for c in OPS.values() if "p" in {f.name for f in dataclasses.fields(c)}])  # type: ignore[arg-type]
def test_a_probability_of_zero_leaves_every_image_alone(cls: type[Op]) -> None:
    """A skipped op is stored as parameters that do nothing, and needs no partner."""
    op, image = make_op(cls, p=0), photo(20, 30)
    for drawn in views(op, 0, (20, 30), 30):
        assert same_pixels(op.apply(image, drawn), image)
        assert op.skipped(drawn) is op.mixes


@pytest.mark.parametrize("op", [op for op in every_op() if op.mixes], ids=op_id)
def test_a_mixing_op_says_truly_whether_it_needs_its_partner(op: Op) -> None:
    image, partner = photo(20, 30), photo(20, 30, seed=1)
    assert op.skipped(op.neutral())
    assert same_pixels(op.apply(image, op.neutral()), image)
    for drawn in views(op, 0, (20, 30), 50):
        assert op.skipped(drawn) == same_pixels(op.apply(image, drawn, partner), image)
        if not op.skipped(drawn):
            with pytest.raises(ReplayError, match="needs a partner image of 20x30 pixels, found none"):
                op.apply(image, drawn)
            with pytest.raises(ReplayError, match=r"found 30x20\. Put an op of fixed output size before it"):
                op.apply(image, drawn, photo(30, 20))


def test_mixup_with_lam_zero_is_the_partner() -> None:
    image, partner = photo(9, 7), photo(9, 7, seed=1)
    assert same_pixels(MixUp().apply(image, {"lam": 0.0}, partner), partner)


def test_both_of_a_pair_are_mixed_from_the_same_two_images() -> None:
    """MixUp of (a, b) with lam and of (b, a) with 1 - lam are one image, to the last bit."""
    a, b = photo(16, 16), photo(16, 16, seed=1)
    for weight in (1, 77, 128, 255):
        ab = MixUp().apply(a, {"lam": weight / 256}, b)
        ba = MixUp().apply(b, {"lam": 1 - weight / 256}, a)
        assert same_pixels(ab, ba)


@pytest.mark.parametrize("op", [op for op in every_op() if not op.mixes], ids=op_id)
def test_only_mixing_ops_have_neutral_parameters(op: Op) -> None:
    with pytest.raises(AssertionError, match="is no mixing op"):
        op.neutral()


# ---------------------------------------------------------------------------------------------------------- settings


@each_op
def test_settings_survive_json_and_yaml(op: Op) -> None:
    (written,) = [op.to_dict()]
    assert list(written) == [type(op).__name__]
    for read in (json.loads(json.dumps(written)), yaml.safe_load(yaml.safe_dump(written))):
        assert type(op).from_settings(read[type(op).__name__]) == op


def test_the_benchmark_of_fidelity_knows_every_op() -> None:
    text = (Path(__file__).parents[2] / "benchmarks" / "fidelity.py").read_text(encoding="utf-8")
    named = {type(op).__name__ for name in NAMED for op in Augmentation.named(name, SIDE).ops}
    assert {name for name in OPS if f'"{name}"' not in text} <= named


@each_op
def test_ops_travel_to_workers(op: Op) -> None:
    """Data loaders that spawn their workers send the op to them."""
    assert pickle.loads(pickle.dumps(op)) == op


@each_op
def test_ops_cannot_be_changed(op: Op) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        op.name = "other"  # type: ignore[misc]
    assert hash(op) == hash(dataclasses.replace(op))  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (RandomHorizontalFlip(p=1), RandomHorizontalFlip(p=1.0)),
        (RandomErasing(scale=(0, 1)), RandomErasing(scale=(0.0, 1.0))),
        (MixUp(alpha=1, p=0), MixUp(alpha=1.0, p=0.0)),
        (ColorJitter(hue=0), ColorJitter(hue=0.0)),
    ],
)
def test_whole_numbers_are_written_like_floats(written: Op, meant: Op) -> None:
    """`p: 1` and `p: 1.0` in a YAML file are one setting and must give one fingerprint."""
    assert json.dumps(written.to_dict()) == json.dumps(meant.to_dict())


@each_class
def test_every_setting_refuses_absurd_values(cls: type[Op]) -> None:
    good = make_op(cls).to_dict()[cls.__name__]
    for field in good:
        absurd = [
            "absurd",
            [],
            {},
            -1,
            math.nan,
            math.inf,
            True,
            [[1, 2], 3],
            ["a", "b"],
            {"a": 1},
            10**400,
            [2, 1, 1, 1],
        ]
        for value in absurd if field == "fill" else [*absurd, None]:
            with pytest.raises(
                ConfigError, match=rf"`{field}` of {cls.__name__} must be .*, got .*\. Change `{field}`\."
            ):
                cls.from_settings({**good, field: value})


@each_class
def test_unknown_settings_are_refused(cls: type[Op]) -> None:
    good = make_op(cls).to_dict()[cls.__name__]
    first = next(iter(good))
    with pytest.raises(ConfigError, match=rf"{cls.__name__} has no setting `{first}x`\. Did you mean `{first}`\?"):
        cls.from_settings({**good, f"{first}x": 1})
    with pytest.raises(ConfigError, match=rf"{cls.__name__} has no setting `1`\. Known: .*{first}"):
        cls.from_settings({**good, 1: 1})  # type: ignore[dict-item]  # YAML's keys need not be strings


@each_class
def test_missing_settings_are_named(cls: type[Op]) -> None:
    required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]  # type: ignore[arg-type]
    if not required:
        assert cls.from_settings({}) == cls()
        return
    with pytest.raises(ConfigError, match=rf"{cls.__name__} needs `{required[0]}`, which has no default\. Add it\."):
        cls.from_settings({})


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (
            RandomResizedCrop,
            {"size": 0},
            "`size` of RandomResizedCrop must be a side or .* from 1 to 65535 pixels, got 0",
        ),
        (RandomResizedCrop, {"size": [8]}, r"`size` of RandomResizedCrop must be a side or .*, got \(8,\)"),
        (RandomResizedCrop, {"size": 8.0}, "`size` of RandomResizedCrop must be a side or .*, got 8.0"),
        (RandomResizedCrop, {"size": MAX_SIDE + 1}, "from 1 to 65535 pixels, got 65536"),
        (
            RandomResizedCrop,
            {"size": 8, "scale": [1, 0.5]},
            r"`scale` .* two rising numbers in \[0, 1\], got \(1, 0.5\)",
        ),
        (RandomResizedCrop, {"size": 8, "scale": [0.5, 1.5]}, r"`scale` .* two rising numbers in \[0, 1\], got"),
        (
            RandomResizedCrop,
            {"size": 8, "ratio": [0, 1]},
            r"`ratio` .* two rising numbers in \[0.001, 1000\], got \(0, 1\)",
        ),
        (RandomResizedCrop, {"size": 8, "interpolation": "cubic"}, "must be one of bicubic, bilinear, .*, got 'cubic'"),
        (RandAugment, {"interpolation": "lanczos"}, "must be one of bicubic, bilinear, nearest, got 'lanczos'"),
        (TrivialAugmentWide, {"interpolation": "box"}, "must be one of bicubic, bilinear, nearest, got 'box'"),
        (RandAugment, {"magnitude": 31}, "`magnitude` of RandAugment must be a level from 0 to 30, got 31"),
        (RandAugment, {"magnitude": 5, "num_magnitude_bins": 5}, "must be a level from 0 to 4, got 5"),
        (
            RandAugmentIncreasing,
            {"magnitude": 101},
            "`magnitude` of RandAugmentIncreasing must be a level from 0 to 100",
        ),
        (
            RandAugmentIncreasing,
            {"magnitude_std": -1.0},
            "`magnitude_std` of .* must be a number from 0 to 1000, got -1.0",
        ),
        (
            RandAugmentIncreasing,
            {"num_ops": 0},
            "`num_ops` of RandAugmentIncreasing must be a count from 1 to 16, got 0",
        ),
        (AutoAugment, {"interpolation": "box"}, "must be one of bicubic, bilinear, nearest, got 'box'"),
        (RandAugment, {"num_ops": 17}, "`num_ops` of RandAugment must be a count from 1 to 16, got 17"),
        (RandAugment, {"num_magnitude_bins": 1}, "must be a count from 2 to 128, got 1"),
        (TrivialAugmentWide, {"num_magnitude_bins": 129}, "must be a count from 2 to 128, got 129"),
        (RandAugment, {"fill": [0, 0, 256]}, r"three levels \(red, green, blue\) from 0 to 255, got \(0, 0, 256\)"),
        (RandomErasing, {"value": [0, 0]}, r"`value` of RandomErasing must be three levels .*, got \(0, 0\)"),
        (RandomHorizontalFlip, {"p": 1.01}, "`p` of .* must be a probability between 0 and 1, got 1.01"),
        (ColorJitter, {"hue": 0.51}, "`hue` of ColorJitter must be a number from 0 to 0.5, got 0.51"),
        (ColorJitter, {"contrast": -0.1}, "`contrast` of ColorJitter must be a number from 0 to 1000, got -0.1"),
        (MixUp, {"alpha": 0}, "`alpha` of MixUp must be a number above 0, up to 1000, got 0"),
        (CutMix, {"alpha": 1001}, "`alpha` of CutMix must be a number above 0, up to 1000, got 1001"),
        (RandomCrop, {"size": 8, "padding": -1}, "`padding` of RandomCrop must be a number of pixels from 0 to 65535"),
    ],
)
def test_impossible_settings_say_what_is_possible(cls: type[Op], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls.from_settings(settings)


def test_random_crop_refuses_images_that_are_too_small() -> None:
    with pytest.raises(ConfigError, match=r"at least 32x32 pixels with their padding of 1, got 40x29\. Put `Resize`"):
        RandomCrop(32, padding=1).sample(view_rng(0, 0, 0), (40, 29))


def test_random_crop_refuses_offsets_that_its_column_cannot_hold() -> None:
    with pytest.raises(
        ConfigError, match=r"offsets up to 65535 pixels, .* padding of 40000 leave 80009\. Put `Resize`"
    ):
        RandomCrop(1, padding=40000).sample(view_rng(0, 0, 0), (3, 10))


@pytest.mark.parametrize("op", [op for op in every_op() if not op.mixes], ids=op_id)
@quick
@given(seed=seeds, size=sizes)
def test_what_a_size_allows_is_drawn_stored_and_performed(op: Op, seed: int, size: tuple[int, int]) -> None:
    """A size that is accepted is one for all draws. (Those that mix are given views, whose size the settings bound.)"""
    with pytest.MonkeyPatch.context() as lowered:
        lowered.setattr(base, "MAX_PIXELS", 300)
        lowered.setattr(base, "MAX_SIDE", 30)
        try:
            op.check_size(size)
        except (ConfigError, ReplayError):
            return
        for drawn in views(op, seed, size, 4):
            op.apply(photo(*size), drawn)
            assert all(max(value) <= 30 for name, value in drawn.items() if name == "box")


def test_a_setting_with_a_factory_has_a_default() -> None:
    @dataclasses.dataclass(frozen=True)
    class Shades(Op):
        levels: tuple[int, ...]
        more: tuple[int, ...] = dataclasses.field(default_factory=lambda: (1, 2))

        def apply(self, image: PIL.Image.Image, params: Params, partner: Any = None) -> PIL.Image.Image:
            return image

    assert Shades.from_settings({"levels": [3]}).more == (1, 2)
    with pytest.raises(ConfigError, match="Shades needs `levels`, which has no default"):
        Shades.from_settings({})


def test_two_ops_cannot_share_a_name() -> None:
    """Names are columns."""
    flip = type("Mirror", (RandomHorizontalFlip,), {})
    message = "the op Mirror must have a class name and a `name` of its own, found 'flip', and RandomHorizontalFlip of .* with"
    with pytest.raises(ConfigError, match=message):
        register(flip)
    assert "Mirror" not in OPS


def test_an_op_has_a_name_for_its_columns() -> None:
    with pytest.raises(
        ConfigError, match=r"the op Nameless must have a name for its columns, found none\. Write in it `name: "
    ):
        register(type("Nameless", (Op,), {}))
    assert "Nameless" not in OPS


def test_an_op_is_a_dataclass() -> None:
    class Plain(Op):
        name = "plain"

        def apply(self, image: PIL.Image.Image, params: Params, partner: Any = None) -> PIL.Image.Image:
            return image

    message = r"the op Plain must be a dataclass, whose fields are its settings, found none\. Write `@ops\.register` and below"
    with pytest.raises(ConfigError, match=message):
        Augmentation([Plain(), CenterCrop(SIDE)]).to_list()


@dataclasses.dataclass(frozen=True)
class Settings(Op):
    """An op whose one setting may be anything."""

    name = "settings"
    given: Any = None
    level: float | str = 1

    def apply(self, image: PIL.Image.Image, params: Params, partner: Any = None) -> PIL.Image.Image:
        return image


numbers = st.booleans() | st.integers(-(2**31), 2**31) | st.floats(allow_nan=False) | st.text(max_size=3) | st.none()


@given(value=st.recursive(numbers, lambda values: st.lists(values, max_size=3), max_leaves=5))
def test_settings_are_written_in_json_types(value: Any) -> None:
    """Numbers of NumPy and tuples are the same settings as Python's numbers and lists."""

    def other(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(map(other, value))
        return value if value is None or isinstance(value, str) else np.asarray(value)[()]

    (written,) = Settings(other(value)).to_dict().values()
    assert json.loads(json.dumps(written)) == {"given": value, "level": 1.0}
    assert written == next(iter(Settings(value).to_dict().values()))


@pytest.mark.parametrize(("level", "written"), [("auto", "auto"), (1, 1.0), (np.float32(0.5), 0.5), (np.int64(2), 2.0)])
def test_a_setting_may_be_a_number_or_a_text(level: Any, written: Any) -> None:
    found = Settings(level=level).to_dict()["Settings"]["level"]
    assert (found, type(found)) == (written, type(written))


@pytest.mark.parametrize("value", [{1, 2}, np.zeros(2), object(), (1, {3})])
def test_a_setting_that_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"`given` of Settings must be a text, a number, true or false, or a list of these, got"
    ):
        Settings(value).to_dict()


def test_an_op_that_is_defined_again_takes_its_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a cell of a notebook runs twice."""
    monkeypatch.setattr("hf_dr.views.ops.base.OPS", known := dict(OPS))
    first, second = (type("Mirror", (RandomHorizontalFlip,), {"name": "mirror"}) for _ in range(2))
    assert register(register(first)) is known["Mirror"]
    assert register(second) is known["Mirror"]
    elsewhere = type("Mirror", (RandomHorizontalFlip,), {"name": "mirror", "__module__": "elsewhere"})
    with pytest.raises(
        ConfigError, match=r"a `name` of its own, found 'mirror', and Mirror of .* with 'mirror'\. Rename it"
    ):
        register(elsewhere)
    assert known["Mirror"] is second


# ----------------------------------------------------------------------------------------------------- damaged columns

FAR = 0xFFFF


@pytest.mark.parametrize(
    ("op", "params", "message"),
    [
        (RandomResizedCrop(8), {"box": (0, 0, 21, 30)}, r"inside an image of 20x30 pixels, found \(0, 0, 21, 30\)"),
        (
            RandomResizedCrop(8),
            {"box": (1, 0, 20, 30)},
            "The row is damaged or belongs to another image; run `hf-dr verify`",
        ),
        (RandomResizedCrop(8), {"box": (0, 1, 20, 30)}, r"found \(0, 1, 20, 30\)"),
        (RandomResizedCrop(8), {"box": (0, FAR, 1, 1)}, r"found \(0, 65535, 1, 1\)"),
        (RandomResizedCrop(8), {"box": (FAR, 0, 10, 5)}, r"found \(65535, 0, 10, 5\)"),  # uint16 wraps to row 9
        (RandomResizedCrop(8), {"box": (0, 0, 0, 5)}, r"a box of at least one pixel, found \(0, 0, 0, 5\)"),
        (RandomResizedCrop(8), {"box": (0, 0, 5, 0)}, r"a box of at least one pixel, found \(0, 0, 5, 0\)"),
        (RandomCrop(8), {"offset": (13, 0)}, r"RandomCrop needs a box .* of 20x30 pixels, found \(13, 0, 8, 8\)"),
        (RandomCrop(8, padding=2), {"offset": (FAR, 0)}, r"inside an image of 24x34 pixels, found \(65535, 0, 8, 8\)"),
        (RandomErasing(), {"box": (FAR, 0, 10, 5)}, r"RandomErasing needs a box .*, found \(65535, 0, 10, 5\)"),
        (CutMix(), {"box": (0, 20, 5, 11)}, r"CutMix needs a box .*, found \(0, 20, 5, 11\)"),
        (CutMix(), {"box": (0, 65530, 5, 10)}, r"CutMix needs a box .*, found \(0, 65530, 5, 10\)"),
        (MixUp(), {"lam": math.nan}, "MixUp needs a lam that is a multiple of 1/256 from 0 to 1, found nan"),
        (MixUp(), {"lam": math.inf}, "multiple of 1/256 from 0 to 1, found inf"),
        (MixUp(), {"lam": 65504.0}, "multiple of 1/256 from 0 to 1, found 65504"),
        (MixUp(), {"lam": -1 / 256}, "multiple of 1/256 from 0 to 1, found -0.0039"),
        (MixUp(), {"lam": 257 / 256}, "multiple of 1/256 from 0 to 1, found 1.0039"),
        (MixUp(), {"lam": 1 / 512}, "multiple of 1/256 from 0 to 1, found 0.00195"),
        (RandAugment(num_ops=1), {"op": (14,), "level": (9,)}, "operations below 14 .*, found operation 14 at level 9"),
        (RandAugment(num_ops=1), {"op": (1,), "level": (31,)}, "within ±30 .*, found operation 1 at level 31"),
        (RandAugment(num_ops=1), {"op": (1,), "level": (-31,)}, "found operation 1 at level -31"),
        (RandAugment(num_ops=1), {"op": (1,), "level": (-128,)}, "found operation 1 at level -128"),
        (RandAugment(num_ops=1), {"op": (10,), "level": (-9,)}, "not negative where unsigned.*, found operation 10"),
        (AutoAugment(), {"op": (15, 0), "level": (0, 0)}, "AutoAugment needs operations below 15 at levels within ±9 "),
        (RandAugmentIncreasing(1), {"op": (15,), "level": (-1,)}, "below 16 .*found operation 15 at level -1"),
        (TrivialAugmentWide(), {"op": (255,), "level": (0,)}, "TrivialAugmentWide needs .*, found operation 255"),
        (ColorJitter(0.1), {"order": 24, "factors": (1, 1, 1, 0)}, "needs an order below 24, .*, found order 24"),
        (ColorJitter(0.1), {"order": 0, "factors": (math.nan, 1, 1, 0)}, r"found order 0 and factors \[nan, 1.0"),
        (ColorJitter(0.1), {"order": 0, "factors": (1, -0.5, 1, 0)}, r"factors >= 0 .*, found .*\[1.0, -0.5, 1.0"),
        (ColorJitter(0.1), {"order": 0, "factors": (1, 1, math.inf, 0)}, r"found .*\[1.0, 1.0, inf, 0.0\]"),
        (ColorJitter(0.1), {"order": 0, "factors": (1, 1, 1, 0.75)}, "a hue in ±0.5, .*0.75"),
    ],
)
@pytest.mark.parametrize("kind", ["python", "numpy"])
def test_damaged_parameters_are_refused(op: Op, params: Params, message: str, kind: str) -> None:
    """Also as NumPy's own numbers, which wrap around where Python's do not."""
    held = through_numpy(op, params) if kind == "numpy" else params
    with pytest.raises(ReplayError, match=message):
        op.apply(photo(20, 30), held, photo(20, 30, seed=1))


@each_op
@quick
@given(data=st.data(), size=sizes)
@example(data=None, size=(20, 30))
def test_whatever_the_columns_hold_is_replayed_or_refused(op: Op, data: Any, size: tuple[int, int]) -> None:
    """No bit pattern of the stored types crashes `apply`, or makes a view of another size."""
    held: Params = {}
    for name, param in op.params.items():
        dtype = np.dtype(param.dtype)
        count = param.length or 1
        if data is None:
            raw = b"\xff" * (count * dtype.itemsize)
        else:
            raw = data.draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize), name)
        if dtype.kind == "b":
            raw = bytes(byte & 1 for byte in raw)
        values = np.frombuffer(raw, dtype)
        held[name] = values[0] if param.length is None else values
    image = photo(*size)
    for params in (held, plain(held)):
        try:
            shown = op.apply(image, params, photo(*size, seed=1))
        except ReplayError as error:
            assert re.search(r"needs .*, found ", str(error))  # noqa: PT017 - either outcome is right
        else:
            assert (shown.height, shown.width) == op.output_size(size)


# ------------------------------------------------------------------------------------------------ details of single ops


def test_a_crop_of_the_whole_image_at_its_own_size_is_the_image() -> None:
    image = photo(20, 30)
    assert same_pixels(RandomResizedCrop((20, 30)).apply(image, {"box": (0, 0, 20, 30)}), image)
    assert same_pixels(Resize((20, 30)).apply(image, {}), image)
    assert same_pixels(CenterCrop((20, 30)).apply(image, {}), image)


def test_sizes_are_height_then_width() -> None:
    for op in (RandomResizedCrop((3, 5)), Resize((3, 5)), CenterCrop((3, 5)), RandomCrop((3, 5))):
        shown = op.apply(photo(20, 30), op.sample(view_rng(0, 0, 0), (20, 30)))
        assert (shown.height, shown.width) == (3, 5)


def test_boxes_are_top_left_height_width() -> None:
    erased = np.asarray(RandomErasing(value=(1, 2, 3)).apply(PIL.Image.new("RGB", (30, 20)), {"box": (2, 5, 4, 7)}))
    expected = np.zeros((20, 30, 3), np.uint8)
    expected[2:6, 5:12] = (1, 2, 3)
    np.testing.assert_array_equal(erased, expected)


def test_erasing_spares_what_is_outside_the_box_and_a_skipped_one_everything() -> None:
    image = photo(20, 30)
    assert same_pixels(RandomErasing().apply(image, {"box": (0, 0, 0, 0)}), image)


def test_levelless_operations_store_level_zero() -> None:
    """One stored form for one effect: Identity, AutoContrast and Equalize have no magnitude."""
    levelless = {POLICY_OPS.index(name) for name in ("Identity", "AutoContrast", "Equalize")}
    for drawn in views(RandAugment(num_ops=16), 0, (20, 30), 20):
        for op, level in zip(drawn["op"], drawn["level"], strict=True):
            assert abs(level) == (0 if op in levelless else 9)


def test_a_setting_of_zero_is_off_in_color_jitter() -> None:
    """The stored factor of an adjustment that is off is not looked at: even hue 0 would round through HSV."""
    image = photo(20, 30)
    assert same_pixels(ColorJitter().apply(image, {"order": 0, "factors": (0.5, 0.5, 0.5, 0.5)}), image)


def test_jitter_factors_stay_in_range_after_rounding() -> None:
    op = ColorJitter(brightness=1.0, contrast=0.5, saturation=0.2, hue=0.5)
    factors = np.array([drawn["factors"] for drawn in views(op, 0, (4, 4), 300)])
    assert (factors[:, :3] >= [0, 0.5, np.float16(0.8)]).all()
    assert (factors[:, :3] <= [2, 1.5, np.float16(1.2)]).all()
    assert (abs(factors[:, 3]) <= 0.5).all()

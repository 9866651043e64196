"""The ops are torchvision's: the same pixels for the same parameters, and the same distribution of the parameters."""

from __future__ import annotations

import itertools
import random  # noqa: TID251 - timm draws from it
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from samples import photo, same_pixels
from scipy import stats
from timm.data import auto_augment
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from hf_dr.views.ops.base import Op, Params
from hf_dr.views.ops.colour import (
    LEVELLESS,
    OPERATIONS,
    POLICY_OPS,
    UNSIGNED,
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
from hf_dr.views.resizing import HORIZONTAL, PILLOW_13
from hf_dr.views.rng import view_rng

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
# torchvision leaves the order of the passes to the Pillow that is installed.
PASSES = PILLOW_13 if int(PIL.__version__.split(".", maxsplit=1)[0]) >= 13 else HORIZONTAL
SIZES = [(20, 30), (30, 20), (17, 17), (1, 9), (5, 64)]
POLICIES = [(RandAugment, v2.RandAugment), (TrivialAugmentWide, v2.TrivialAugmentWide)]
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")


@pytest.fixture(autouse=True)
def _torchvision_draws_from_a_fixed_seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def tensor(image: PIL.Image.Image) -> torch.Tensor:
    """(3, H, W), uint8."""
    return v2.functional.pil_to_tensor(image)


# ------------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("box", [(0, 0, 20, 30), (3, 5, 10, 7), (19, 29, 1, 1), (2, 0, 1, 30)])
@pytest.mark.parametrize("size", [16, (9, 40)])
def test_pixels_of_random_resized_crop(interpolation: str, box: tuple[int, ...], size: Any) -> None:
    theirs = v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode(interpolation))
    given = dict(zip(("top", "left", "height", "width"), box, strict=True))
    ours = RandomResizedCrop(size, interpolation=interpolation, passes=PASSES).apply(photo(20, 30), {"box": box})
    assert same_pixels(ours, theirs.transform(photo(20, 30), given))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("image_size", SIZES)
@pytest.mark.parametrize("size", [16, 7, (9, 40)])
def test_pixels_of_resize(interpolation: str, image_size: tuple[int, int], size: Any) -> None:
    """Also the side that follows from the aspect ratio is rounded as torchvision rounds it."""
    ours, image = Resize(size, interpolation, PASSES), photo(*image_size)
    shown = ours.apply(image, {})
    assert same_pixels(shown, v2.Resize(size, v2.InterpolationMode(interpolation))(image))
    assert (shown.height, shown.width) == ours.output_size(image_size)


@pytest.mark.parametrize("image_size", SIZES)
@pytest.mark.parametrize("size", [1, 8, 16, (9, 41), (40, 3)])
def test_pixels_of_center_crop(image_size: tuple[int, int], size: Any) -> None:
    """Smaller images are padded, with the odd pixel on the same side."""
    assert same_pixels(CenterCrop(size).apply(photo(*image_size), {}), v2.CenterCrop(size)(photo(*image_size)))


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("offset", [(0, 0), (3, 7), (4, 10)])
def test_pixels_of_random_crop(padding: int, offset: tuple[int, int]) -> None:
    fill = (10, 20, 30)
    theirs = v2.RandomCrop((16, 20), padding=padding or None, fill=fill)
    given = {
        "needs_pad": bool(padding), "padding": [padding] * 4, "needs_crop": True,
        "top": offset[0], "left": offset[1], "height": 16, "width": 20,
    }  # fmt: skip
    ours = RandomCrop((16, 20), padding=padding, fill=fill).apply(photo(20, 30), {"offset": offset})
    assert same_pixels(ours, theirs.transform(photo(20, 30), given))


def test_pixels_of_random_horizontal_flip() -> None:
    flipped = RandomHorizontalFlip().apply(photo(20, 31), {"": True})
    assert same_pixels(flipped, v2.RandomHorizontalFlip(p=1)(photo(20, 31)))
    assert not same_pixels(flipped, photo(20, 31))


@pytest.mark.parametrize("order", range(24))
def test_pixels_of_color_jitter(order: int) -> None:
    rng = np.random.default_rng(order)
    factors = (*rng.uniform(0.2, 1.8, 3).tolist(), rng.uniform(-0.5, 0.5))
    given: dict[str, Any] = {"fn_idx": torch.tensor(list(itertools.permutations(range(4)))[order])}
    for name, factor in zip(("brightness", "contrast", "saturation", "hue"), factors, strict=True):
        given[f"{name}_factor"] = factor
    ours = ColorJitter(1, 1, 1, 0.5).apply(photo(20, 30), {"order": order, "factors": factors})
    assert same_pixels(ours, v2.ColorJitter(1, 1, 1, 0.5).transform(photo(20, 30), given))


@pytest.mark.parametrize("name", POLICY_OPS)
@pytest.mark.parametrize(("ours", "theirs"), POLICIES)
@pytest.mark.parametrize(("interpolation", "fill"), [("nearest", None), ("bilinear", (1, 2, 3))])
def test_pixels_of_the_policy_ops(ours: Any, theirs: Any, name: str, interpolation: str, fill: Any) -> None:
    """Every operation at every level and sign; `test_magnitudes_are_torchvisions` compares the magnitudes."""
    height, width = 29, 37
    image = photo(height, width)
    transform = theirs(interpolation=v2.InterpolationMode(interpolation), fill=fill)
    op = (
        ours(interpolation=interpolation, fill=fill)
        if ours is TrivialAugmentWide
        else ours(1, 9, 1.0, 31, interpolation, fill)
    )
    for level in range(-30 if name in SIGNED else 0, 31):
        magnitude = ours._policy.magnitude(name, level, 31, (height, width))
        expected = transform._apply_image_or_video_transform(
            image, name, magnitude, interpolation=transform.interpolation, fill=transform._fill
        )
        shown = op.apply(image, {"op": (POLICY_OPS.index(name),), "level": (level,)})
        assert same_pixels(shown, expected), f"{name} at level {level}"


def test_pixels_of_auto_augment() -> None:
    """Its operations are RandAugment's with ten levels, and Invert."""
    image = photo(29, 37)
    transform = v2.AutoAugment(interpolation=v2.InterpolationMode.BILINEAR, fill=(1, 2, 3))
    for name, (table, signed) in transform._AUGMENTATION_SPACE.items():
        magnitudes = table(10, 29, 37)
        for level in range(10) if magnitudes is not None else (0,):
            for sign in (1, -1) if signed and level else (1,):
                magnitude = 0.0 if magnitudes is None else float(magnitudes[level])
                if name.startswith("Translate"):
                    magnitude = _exact_pixels(magnitude)
                elif magnitudes is not None and name not in ("Posterize", "Solarize"):
                    magnitude = AutoAugment._policy.table(name, level, 10, (29, 37))  # without float32's error
                expected = transform._apply_image_or_video_transform(
                    image, name, sign * magnitude, interpolation=transform.interpolation, fill=transform._fill
                )
                params = {"op": (OPERATIONS.index(name), 0), "level": (sign * level, 0)}
                shown = AutoAugment("bilinear", (1, 2, 3)).apply(image, params)
                assert same_pixels(shown, expected), f"{name} at level {level}"


@pytest.mark.parametrize("name", OPERATIONS[1:])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_pixels_of_timms_increasing_operations(name: str, interpolation: str) -> None:
    """At each level, of either sign where timm tosses a coin for it."""
    called = {"Translate": "Rel", "Shear": "", "Rotate": ""}
    plain = name in LEVELLESS or name == "SolarizeAdd"
    theirs = name + ("" if plain else next((e for n, e in called.items() if name.startswith(n)), "Increasing"))
    image, fill = photo(29, 37), (124, 116, 104)
    op = RandAugmentIncreasing(1, interpolation=interpolation, fill=fill)
    settings = {"resample": getattr(PIL.Image.Resampling, interpolation.upper()), "fillcolor": fill}
    # timm moves and shears towards the other side, which its coin makes the same.
    turned = name.startswith("Translate")
    for level in [0] if name in LEVELLESS else range(0 if name in UNSIGNED else -100, 101):
        arguments: Any = ()
        if name == "Posterize" and level == 100:
            arguments = (1,)  # timm asks for 0 bits, which Pillow 13 refuses
        elif name not in LEVELLESS:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(auto_augment, "_randomly_negate", lambda v, sign=(level < 0) != turned: -v if sign else v)
                arguments = auto_augment.LEVEL_TO_ARG[theirs](abs(level) / 10, {})
        expected = auto_augment.NAME_TO_OP[theirs](image, *arguments, **settings)
        shown = op.apply(image, {"op": (OPERATIONS.index(name),), "level": (level,)})
        # torchvision's matrices of shears and shifts differ from timm's in the last place, which turns a rounding of a filter.
        moved = name.startswith(("Shear", "Translate")) and interpolation != "nearest"
        difference = np.abs(np.asarray(shown, int) - np.asarray(expected, int))
        assert difference.max() <= moved, f"{name} at level {level}"
        assert (difference > 0).mean() < 0.01


def _exact_pixels(magnitude: float) -> int:
    """torchvision's pixels, had its table no rounding errors: at 15.999999 (TrivialAugment, level 15) it moves by 15.

    The error is that of float32; the nearest true value below a whole number is 1/9930 away from it.
    """
    return int(magnitude + np.copysign(5e-5, magnitude))


def test_pixels_of_a_chain_of_policy_ops() -> None:
    image = photo(29, 37)
    expected = v2.functional.rotate(v2.functional.posterize(image, 7), 9.0)
    shown = RandAugment().apply(
        image, {"op": (POLICY_OPS.index("Posterize"), POLICY_OPS.index("Rotate")), "level": (9, 9)}
    )
    assert same_pixels(shown, expected)


@pytest.mark.parametrize("box", [(0, 0, 5, 7), (3, 4, 10, 20), (19, 29, 1, 1)])
def test_pixels_of_random_erasing(box: tuple[int, ...]) -> None:
    value = (124, 116, 104)
    erased = F.erase(tensor(photo(20, 30)), *box, v=torch.tensor(value)[:, None, None])
    assert torch.equal(tensor(RandomErasing(value=value).apply(photo(20, 30), {"box": box})), erased)


@pytest.mark.parametrize("box", [(0, 0, 5, 7), (3, 4, 10, 20), (0, 0, 20, 30)])
def test_pixels_of_cutmix(box: tuple[int, ...]) -> None:
    """torchvision pairs neighbours of a batch; in a batch of two each is the other's partner."""
    a, b = photo(20, 30), photo(20, 30, seed=1)
    batch, labels = torch.stack([tensor(a), tensor(b)]), torch.tensor([0, 1])
    top, left, height, width = box
    given = {"labels": labels, "batch_size": 2, "box": (left, top, left + width, top + height)}
    mixed = v2.CutMix(num_classes=2).transform(batch, given)
    assert torch.equal(tensor(CutMix().apply(a, {"box": box}, b)), mixed[0])
    assert torch.equal(tensor(CutMix().apply(b, {"box": box}, a)), mixed[1])


@pytest.mark.parametrize("weight", [0, 1, 63, 100, 128, 129, 255, 256])
def test_pixels_of_mixup(weight: int) -> None:
    """The exact mix, ties upwards. torchvision mixes floats; rounded, they differ by a level and at ties only."""
    levels = np.arange(256, dtype=np.uint8)
    first, second = np.repeat(levels, 256).reshape(256, 256), np.tile(levels, 256).reshape(256, 256)  # every pair
    a, b = (PIL.Image.fromarray(np.stack([x, x.T, x], -1)) for x in (first, second))
    lam = weight / 256
    mixed = np.asarray(MixUp().apply(a, {"lam": lam}, b)).astype(int)
    batch = torch.stack([tensor(a), tensor(b)]).double()
    floats = v2.MixUp(num_classes=2).transform(batch, {"labels": torch.tensor([0, 1]), "batch_size": 2, "lam": lam})
    exact = floats[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(exact, lam * np.asarray(a, float) + (1 - lam) * np.asarray(b, float))
    np.testing.assert_array_equal(mixed, np.floor(exact + 0.5))
    ties = exact % 1 == 0.5
    np.testing.assert_array_equal(mixed[~ties], np.rint(exact)[~ties])


# ---------------------------------------------------------------------------------------------------------- magnitudes


@pytest.mark.parametrize(("ours", "theirs"), POLICIES)
@pytest.mark.parametrize("num_levels", [2, 10, 11, 31, 128])
@pytest.mark.parametrize("size", [(32, 32), (224, 224), (331, 662), (1, 500), (384, 97)])
def test_magnitudes_are_torchvisions(ours: Any, theirs: Any, num_levels: int, size: tuple[int, int]) -> None:
    """At every level, to float32's precision; whole numbers (pixels, bits) exactly."""
    for name in POLICY_OPS:
        table = theirs._AUGMENTATION_SPACE[name][0](num_levels, *size)
        for level in range(num_levels) if table is not None else []:
            mine, their = ours._policy.magnitude(name, level, num_levels, size), float(table[level])
            assert ours._policy.table(name, level, num_levels, size) == pytest.approx(their, rel=1e-6, abs=1e-7)
            if name.startswith("Translate"):
                assert mine == _exact_pixels(their)
            elif name == "Posterize":
                assert mine == their
            else:
                assert mine == pytest.approx(their, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize(("ours", "theirs"), POLICIES)
def test_operations_and_their_signs_are_torchvisions(ours: Any, theirs: Any) -> None:
    space = theirs._AUGMENTATION_SPACE
    assert tuple(space) == POLICY_OPS
    assert tuple(name for name, (_, signed) in space.items() if signed) == SIGNED
    for name in SIGNED:
        assert ours._policy.magnitude(name, -7, 31, (100, 200)) == -ours._policy.magnitude(name, 7, 31, (100, 200))


def test_translations_are_exact_where_floats_are_not() -> None:
    """150/331 of 331 pixels at level 11 of 30 is 55; floating-point arithmetic truncates 54.999..."""
    assert RandAugment._policy.magnitude("TranslateX", 11, 31, (1, 331)) == 55
    assert RandAugment._policy.magnitude("TranslateY", -11, 31, (331, 1)) == -55
    assert TrivialAugmentWide._policy.magnitude("TranslateX", 15, 31, (9, 9)) == 16


# ------------------------------------------------------------------------------------------------------- distributions

DRAWS = 2000
THRESHOLD = 1e-4
"""Least p-value. With the fixed seeds a run never differs from the last; it is fair for another seed, too."""


def draw(op: Op, size: tuple[int, int], count: int = DRAWS) -> list[Params]:
    return [op.sample(view_rng(2024, example, 0), size) for example in range(count)]


def assert_same_numbers(ours: Sequence[float], theirs: Sequence[float]) -> None:
    assert stats.ks_2samp(ours, theirs).pvalue > THRESHOLD


def assert_same_counts(ours: Sequence[Any], theirs: Sequence[Any]) -> None:
    a, b = Counter(ours), Counter(theirs)
    outcomes = sorted(a.keys() | b.keys())
    assert len(outcomes) > 1, "one outcome cannot be compared"
    assert stats.chi2_contingency([[a[o] for o in outcomes], [b[o] for o in outcomes]]).pvalue > THRESHOLD


def assert_same_boxes(ours: np.ndarray, theirs: np.ndarray, size: tuple[int, int]) -> None:
    """Compares boxes (top, left, height, width): area, aspect, and place in the room that the box leaves."""
    for measure in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: np.log(box[:, 3] / box[:, 2]),
        lambda box: box[:, 0] / np.maximum(size[0] - box[:, 2], 1),
        lambda box: box[:, 1] / np.maximum(size[1] - box[:, 3], 1),
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        assert_same_numbers(measure(ours), measure(theirs))


def image_of(size: tuple[int, int]) -> PIL.Image.Image:
    return PIL.Image.new("RGB", size[::-1])


def crops(transform: v2.RandomResizedCrop, size: tuple[int, int]) -> np.ndarray:
    drawn = [transform.make_params([image_of(size)]) for _ in range(DRAWS)]
    return np.array([[d["top"], d["left"], d["height"], d["width"]] for d in drawn])


@pytest.mark.parametrize("size", [(300, 400), (97, 211)])
@pytest.mark.parametrize("settings", [{}, {"scale": (0.5, 0.9), "ratio": (0.4, 1.5)}])
def test_distribution_of_random_resized_crop(size: tuple[int, int], settings: dict[str, Any]) -> None:
    ours = np.array([params["box"] for params in draw(RandomResizedCrop(8, **settings), size)])
    assert_same_boxes(ours, crops(v2.RandomResizedCrop(8, **settings), size), size)


@pytest.mark.parametrize("size", [(10, 400), (400, 10), (20, 30), (1, 1), (1, 100)])
def test_fallback_of_random_resized_crop(size: tuple[int, int]) -> None:
    """Where no box of the asked area fits, the central one is taken: no chance is left."""
    settings: dict[str, Any] = {"scale": (1, 1), "ratio": (3 / 4, 4 / 3)}
    ours = {params["box"] for params in draw(RandomResizedCrop(8, **settings), size, 20)}
    theirs = v2.RandomResizedCrop(8, **settings)
    if size in ((20, 30), (1, 1)):  # here a box may fit
        assert (0, 0, *size) in ours or ours <= {(0, (30 - w) // 2, 20, w) for w in range(20, 31)}
    else:
        assert ours == {tuple(theirs.make_params([image_of(size)])[k] for k in ("top", "left", "height", "width"))}


@pytest.mark.parametrize("size", [(300, 400), (211, 97)])
def test_distribution_of_random_erasing(size: tuple[int, int]) -> None:
    ours = np.array([params["box"] for params in draw(RandomErasing(p=1), size)])
    drawn = [v2.RandomErasing(p=1).make_params([torch.zeros(3, *size)]) for _ in range(DRAWS)]
    found = np.array([[d["i"], d["j"], d["h"], d["w"]] for d in drawn if d["v"] is not None])
    assert len(found) > 0.99 * DRAWS
    ours = ours[ours[:, 2] > 0]
    assert len(ours) > 0.99 * DRAWS
    assert_same_boxes(ours, found, size)


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_rate_of_random_erasing(p: float) -> None:
    white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    transform = v2.RandomErasing(p=p)
    ours = [params["box"][2] > 0 for params in draw(RandomErasing(p=p), (32, 32))]
    assert_same_counts(ours, [bool((transform(white) != 255).any()) for _ in range(DRAWS)])


def test_random_erasing_erases_nothing_where_no_box_fits() -> None:
    settings: dict[str, Any] = {"scale": (1, 1), "ratio": (1, 1)}
    assert {params["box"] for params in draw(RandomErasing(p=1, **settings), (20, 30), 20)} == {(0, 0, 0, 0)}
    assert v2.RandomErasing(p=1, **settings).make_params([torch.zeros(3, 20, 30)])["v"] is None


@pytest.mark.parametrize(("alpha", "size"), [(1.0, (224, 224)), (0.3, (100, 160))])
def test_distribution_of_cutmix(alpha: float, size: tuple[int, int]) -> None:
    ours = np.array([params["box"] for params in draw(CutMix(alpha, p=1), size)])
    transform = v2.CutMix(alpha=alpha, num_classes=2)
    corners = np.array([transform.make_params([torch.zeros(1, 3, *size)])["box"] for _ in range(DRAWS)])
    theirs = corners[:, [1, 0, 3, 2]] - np.pad(corners[:, [1, 0]], ((0, 0), (2, 0)))
    mixed = [box[(box[:, 2] > 0) & (box[:, 3] > 0)] for box in (ours, theirs)]
    assert_same_numbers(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])  # 0 where nothing is mixed
    assert_same_boxes(mixed[0], mixed[1], size)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_distribution_of_mixup(alpha: float) -> None:
    """lam follows torchvision's Beta(alpha, alpha), rounded to what is stored."""
    ours = [params["lam"] for params in draw(MixUp(alpha, p=1), (8, 8))]
    transform = v2.MixUp(alpha=alpha, num_classes=2)
    theirs = [round(transform.make_params([])["lam"] * 256) / 256 for _ in range(DRAWS)]
    assert_same_numbers(ours, theirs)
    assert stats.kstest(theirs, stats.beta(alpha, alpha).cdf).statistic < 0.2  # scipy means the same Beta


@pytest.mark.parametrize("op", [MixUp, CutMix])
def test_rate_of_mixing(op: Any) -> None:
    """torchvision has no `p` here; `RandomApply` is its idiom."""
    ours = [not op(p=0.3).skipped(params) for params in draw(op(p=0.3), (224, 224))]
    theirs = (torch.rand(DRAWS) < 0.3).tolist()
    assert_same_counts(ours, theirs)


def recorded(cls: Any, **settings: Any) -> list[tuple[str, float]]:
    """Runs torchvision's policy and returns the operations and magnitudes that it chose."""
    chosen = []

    class Recorder(cls):  # type: ignore[misc]
        def _apply_image_or_video_transform(self, image: Any, name: str, magnitude: float, **_: Any) -> Any:
            chosen.append((name, magnitude))
            return image

    transform, image = Recorder(**settings), image_of((40, 50))
    for _ in range(DRAWS):
        transform(image)
    return chosen


def test_distribution_of_rand_augment() -> None:
    drawn = draw(RandAugment(), (40, 50))
    ours = [(POLICY_OPS[op], level) for d in drawn for op, level in zip(d["op"], d["level"], strict=True)]
    theirs = recorded(v2.RandAugment)
    assert_same_counts([name for name, _ in ours], [name for name, _ in theirs])
    assert_same_counts([v < 0 for name, v in ours if name in SIGNED], [v < 0 for name, v in theirs if name in SIGNED])
    assert {abs(level) for name, level in ours if name in SIGNED} == {9}
    pairs = [tuple(POLICY_OPS[op] in SIGNED for op in d["op"]) for d in drawn]  # the two are drawn independently
    their_pairs = [(theirs[i][0] in SIGNED, theirs[i + 1][0] in SIGNED) for i in range(0, len(theirs), 2)]
    assert_same_counts(pairs, their_pairs)


def test_rate_of_rand_augment() -> None:
    """With `p` = 0.3 a view is left alone in 7 of 10 cases, and when both operations happen to be Identity."""
    ours = [any(params["op"]) for params in draw(RandAugment(p=0.3), (40, 50))]
    theirs = (torch.rand(DRAWS) < 0.3 * (1 - 1 / 14**2)).tolist()
    assert_same_counts(ours, theirs)


def test_distribution_of_auto_augment() -> None:
    op = AutoAugment()
    drawn = [(OPERATIONS[o], v) for d in draw(op, (40, 50)) for o, v in zip(d["op"], d["level"], strict=True) if o]
    theirs = recorded(v2.AutoAugment)
    assert_same_counts([name for name, _ in drawn], [name for name, _ in theirs])
    assert_same_counts([v < 0 for name, v in drawn if name in SIGNED], [v < 0 for name, v in theirs if name in SIGNED])
    table = {name: entry[0](10, 40, 50) for name, entry in v2.AutoAugment._AUGMENTATION_SPACE.items()}
    for name in ("Color", "Rotate", "Posterize", "Solarize"):
        values = [round(float(table[name][abs(v)]), 4) for n, v in drawn if n == name]
        assert_same_counts(values, [round(abs(v), 4) for n, v in theirs if n == name])


def test_distribution_of_timms_increasing_operations() -> None:
    """Operations, their number and their magnitudes; rounding to levels moves no magnitude by more than half a level."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002, TID251 - timm's choice of operations
    theirs, numbers = [], []
    config = "rand-m9-mstd0.5-inc1"
    transform = auto_augment.rand_augment_transform(config)
    for each in transform.ops:
        each.aug_fn = lambda image, *values, op=each, **_: theirs.append((op.name, values)) or image
    for _ in range(DRAWS):
        before = len(theirs)
        transform(photo(4, 4))
        numbers.append(len(theirs) - before)
    drawn = draw(RandAugmentIncreasing(), (40, 50))
    ours = [(OPERATIONS[o], v) for d in drawn for o, v in zip(d["op"], d["level"], strict=True) if o]
    assert_same_counts([sum(op > 0 for op in d["op"]) for d in drawn], numbers)
    assert_same_counts(
        [name for name, _ in ours], [name.replace("Increasing", "").replace("Rel", "") for name, _ in theirs]
    )
    # In tenths of timm's 10, so that both are rounded alike; above 10 both are cut off.
    turns = [round(abs(values[0]) / 30 * 100) for name, values in theirs if name == "Rotate"]
    turned = [abs(v) for name, v in ours if name not in UNSIGNED]
    assert_same_counts([v // 4 for v in turned], [v // 4 for v in turns])
    assert max(turned) == 100
    assert {abs(v) for n, v in ours if n in LEVELLESS} == {0}


def test_distribution_of_trivial_augment() -> None:
    ours = [(POLICY_OPS[d["op"][0]], d["level"][0]) for d in draw(TrivialAugmentWide(), (40, 50))]
    theirs = recorded(v2.TrivialAugmentWide)
    assert_same_counts([name for name, _ in ours], [name for name, _ in theirs])
    colour = ("Brightness", "Color", "Contrast", "Sharpness")
    their_levels = [round(value / 0.99 * 30) for name, value in theirs if name in colour]
    assert_same_counts([abs(v) for name, v in ours if name in colour], [abs(v) for v in their_levels])
    assert_same_counts([v < 0 for name, v in ours if name in colour], [v < 0 for v in their_levels])
    solarize = [round((1 - value) * 30) for name, value in theirs if name == "Solarize"]
    assert_same_numbers([level for name, level in ours if name == "Solarize"], solarize)


def test_distribution_of_color_jitter() -> None:
    settings = {"brightness": 0.4, "contrast": 1.5, "saturation": 0.2, "hue": 0.1}
    ours = draw(ColorJitter(**settings), (8, 8))
    drawn = [v2.ColorJitter(**settings).make_params([]) for _ in range(DRAWS)]
    for which, name in enumerate(settings):
        assert_same_numbers([d["factors"][which] for d in ours], [d[f"{name}_factor"] for d in drawn])
    assert_same_counts([ColorJitter.ORDERS[d["order"]] for d in ours], [tuple(d["fn_idx"].tolist()) for d in drawn])


def test_distribution_of_random_crop() -> None:
    ours = draw(RandomCrop((28, 32), padding=4), (32, 32))
    transform, image = v2.RandomCrop((28, 32), padding=4), image_of((32, 32))
    theirs = [transform.make_params([image]) for _ in range(DRAWS)]
    assert_same_counts([d["offset"][0] for d in ours], [d["top"] for d in theirs])
    assert_same_counts([d["offset"][1] for d in ours], [d["left"] for d in theirs])
    assert {d["offset"][0] for d in ours} == set(range(13))
    assert {d["offset"][1] for d in ours} == set(range(9))


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_rate_of_random_horizontal_flip(p: float) -> None:
    image = PIL.Image.fromarray(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8))
    transform = v2.RandomHorizontalFlip(p)
    ours = [params[""] for params in draw(RandomHorizontalFlip(p), (1, 2))]
    assert_same_counts(ours, [transform(image).getpixel((0, 0)) != (0, 0, 0) for _ in range(DRAWS)])


def test_a_wrong_distribution_is_noticed() -> None:
    """The comparisons above can fail: another aspect, area, place, rate or Beta."""
    size = (300, 400)
    theirs = crops(v2.RandomResizedCrop(8), size)
    for wrong in ({"ratio": (0.6, 4 / 3)}, {"scale": (0.08, 0.7)}, {"scale": (0.2, 1.0)}):
        ours = np.array([params["box"] for params in draw(RandomResizedCrop(8, **wrong), size)])
        with pytest.raises(AssertionError, match="pvalue"):
            assert_same_boxes(ours, theirs, size)
    shifted = theirs.copy()
    shifted[:, 1] = theirs[:, 1] * 0.8
    with pytest.raises(AssertionError, match="pvalue"):
        assert_same_boxes(shifted, theirs, size)
    with pytest.raises(AssertionError, match="pvalue"):
        assert_same_counts([d[""] for d in draw(RandomHorizontalFlip(0.58), size)], (torch.rand(DRAWS) < 0.5).tolist())
    with pytest.raises(AssertionError, match="pvalue"):
        assert_same_numbers(
            [d["lam"] for d in draw(MixUp(2.0, p=1), size)], [d["lam"] for d in draw(MixUp(1.0, p=1), size)]
        )

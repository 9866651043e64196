"""The device's version of every op gives Pillow's pixels, for every size, parameter and fill."""

import functools
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.utils.memory import should_reduce_batch_size
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_dr import ops
from hf_dr.errors import HfDrError, ReplayError
from hf_dr.generation.verify import verify
from hf_dr.replay.loading import load_reinforced
from hf_dr.views.augmentation import NO_PARTNER, PARTNER, Augmentation
from hf_dr.views.device import plan
from hf_dr.views.device.augment import DeviceAugmentation
from hf_dr.views.device.images import pack
from hf_dr.views.device.packing import Source, UndoneBatch, UndoneView, trim
from hf_dr.views.device.plan import MAX_AFFINE_SIDE, NotOnDeviceError, unsupported
from hf_dr.views.device.program import program
from hf_dr.views.device.resampling import axis_weights
from hf_dr.views.ops.colour import LEVELLESS, UNSIGNED
from tests.views.device.pictures import any_size, as_columns, made_on, picture

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FILTERS = ("bilinear", "bicubic", "lanczos", "box", "hamming", "nearest")
GOLDEN = sorted(path.parent for path in (Path(__file__).parents[2] / "golden").glob("v*/*/reinforcement.json"))


def check(augmentation, pictures, rows, device):
    """Compares a whole batch, image by image."""
    columns = as_columns(augmentation, rows)
    made = made_on(device, augmentation, pictures, columns)
    for n, (picture_HWC, row) in enumerate(zip(pictures, rows, strict=True)):
        expected = np.asarray(augmentation.apply(PIL.Image.fromarray(picture_HWC), row))
        np.testing.assert_array_equal(made[n], expected, err_msg=f"{picture_HWC.shape} {row}")


FIXED = ops.Resize((19, 26))
AUGMENTATIONS = {
    **{f"crop {f}": [ops.RandomResizedCrop((23, 17), scale=(0.01, 1), interpolation=f)] for f in FILTERS},
    **{f"resize {f}": [ops.Resize((14, 31), interpolation=f)] for f in FILTERS},
    "shorter side, then centre": [ops.Resize(20), ops.CenterCrop((31, 10))],
    "centre": [ops.CenterCrop((24, 40))],
    "padded crop": [ops.RandomCrop((12, 20), padding=22, fill=(1, 200, 3))],
    "crop of a resized image": [FIXED, ops.RandomCrop((7, 26))],
    "flip, sizes differ": [ops.RandomHorizontalFlip(), FIXED],
    "flip": [FIXED, ops.RandomHorizontalFlip()],
    "erasing": [FIXED, ops.RandomErasing(1.0, value=(9, 8, 7))],
    "erasing twice": [FIXED, ops.RandomErasing(1.0), ops.RandomErasing(0.7, value=(0, 255, 1))],
    "rand augment, sizes differ": [ops.RandAugment(2, 9), FIXED],
    "rand augment": [FIXED, ops.RandAugment(3, 30, fill=(9, 8, 7)), ops.RandomErasing(0.5)],
    "trivial augment, sizes differ": [ops.TrivialAugmentWide(fill=(3, 4, 255)), FIXED],
    "auto augment": [FIXED, ops.AutoAugment(fill=(7, 8, 9)), ops.AutoAugment()],
    "trivial augment, square": [ops.Resize((21, 21)), ops.TrivialAugmentWide()],
    "jitter": [FIXED, ops.ColorJitter(0.4, 0.9, 3.0)],
    "jitter of contrast": [FIXED, ops.ColorJitter(contrast=0.9)],
    "all": [ops.RandomResizedCrop(18), ops.RandomHorizontalFlip(), ops.RandAugment(), ops.RandomErasing(0.5)],
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_batch_has_the_pixels_that_pillow_gives(name, device):
    augmentation = Augmentation(AUGMENTATIONS[name])
    rng = np.random.default_rng(list(AUGMENTATIONS).index(name))
    pictures = [picture(rng, *any_size(rng)) for _ in range(40)]
    rows = [augmentation.sample(rng, picture_HWC.shape[:2]) for picture_HWC in pictures]
    check(augmentation, pictures, rows, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (13, 13), (16, 11)])
@pytest.mark.parametrize(
    "policy", [ops.RandAugment(1, 9), ops.TrivialAugmentWide(fill=(200, 1, 30)), ops.AutoAugment()]
)
def test_every_operation_at_every_level(policy, size, device):
    augmentation = Augmentation([ops.Resize(size), policy])
    rng = np.random.default_rng(0)
    name = next(iter(augmentation.params)).removesuffix("_op")
    last = policy.num_magnitude_bins - 1
    rows = [
        {f"{name}_op": (n,) * policy.num_ops, f"{name}_level": (level,) * policy.num_ops}
        for n, op in enumerate(policy._operations)
        for level in ([0] if op in LEVELLESS else range(0 if op in UNSIGNED else -last, last + 1))
    ]
    check(augmentation, [picture(rng, *size) for _ in rows], rows, device)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_box_of_any_image(data):
    """Scale after scale: from one pixel, to one pixel, by whole and by odd factors."""
    height, width = data.draw(st.tuples(st.integers(1, 120), st.integers(1, 120)))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    box = (top, left, data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left)))
    out = data.draw(st.tuples(st.integers(1, 60), st.integers(1, 60)))
    interpolation = data.draw(st.sampled_from(FILTERS))
    augmentation = Augmentation([ops.RandomResizedCrop(out, interpolation=interpolation)])
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    check(augmentation, [picture(rng, height, width)], [{"crop_box": box}], "cpu")


@pytest.mark.parametrize("device", DEVICES)
def test_the_horizontal_pass_comes_first_if_told_so(device):
    def with_passes(passes):
        op = ops.Resize((20, 30))
        object.__setattr__(op, "passes", passes)
        return Augmentation([op])

    rng = np.random.default_rng(1)
    pictures = [picture(rng, int(rng.integers(21, 90)), int(rng.integers(5, 40))) for _ in range(30)]
    by_rule = made_on(device, with_passes("pillow13"), pictures, {})
    horizontal = made_on(device, with_passes("horizontal"), pictures, {})
    differing = 0
    for n, picture_HWC in enumerate(pictures):
        image = PIL.Image.fromarray(picture_HWC)
        once = image.resize((30, image.height), PIL.Image.Resampling.BILINEAR)
        twice = once.resize((30, 20), PIL.Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(horizontal[n], np.asarray(twice))
        differing += (horizontal[n] != by_rule[n]).any()
    assert differing


@pytest.mark.parametrize("interpolation", FILTERS)
def test_weights_of_several_axes_are_those_of_each(interpolation):
    in_sizes, out_sizes = np.array([1, 7, 50, 3, 90]), np.array([5, 7, 11, 40, 1])
    together = axis_weights(in_sizes, out_sizes, interpolation)
    for n, (in_size, out_size) in enumerate(zip(in_sizes, out_sizes, strict=True)):
        alone = axis_weights(np.array([in_size]), np.array([out_size]), interpolation)
        count = alone.weights.shape[-1]
        np.testing.assert_array_equal(together.first[n, :out_size], alone.first[0])
        np.testing.assert_array_equal(together.weights[n, :out_size, :count], alone.weights[0])
        assert not together.weights[n, :out_size, count:].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mixing", [[ops.MixUp(p=0.7)], [ops.CutMix(p=0.7)], [ops.CutMix(), ops.MixUp()]])
def test_mixing(mixing, device):
    rng = np.random.default_rng(2)
    augmentation = Augmentation([ops.RandomResizedCrop(16), *mixing])
    augmenter = DeviceAugmentation(augmentation)
    images = [PIL.Image.fromarray(picture(rng, 20, 30)) for _ in range(24)]
    rows = [augmentation.sample(rng, (20, 30)) for _ in images]
    partners = [(n + 7) % 24 if augmentation.needs_partner(row) else NO_PARTNER for n, row in enumerate(rows)]
    views = []
    for n, row in enumerate(rows):
        own, other = (Source((m, 0), *trim(augmentation, images[m], rows[m])) for m in (n, max(partners[n], 0)))
        views.append(UndoneView(own, None if partners[n] < 0 else other, row))
    made = UndoneBatch.pack(augmenter, views).to(device).pixels().cpu().numpy()
    single = [augmentation.apply(image, row) for image, row in zip(images, rows, strict=True)]
    for n, row in enumerate(rows):
        expected = augmentation.mix(single[n], row, None if partners[n] < 0 else single[partners[n]])
        np.testing.assert_array_equal(made[n].transpose(1, 2, 0), np.asarray(expected))
    bad = {name: values[:1] for name, values in as_columns(augmentation, [{**row, PARTNER: 0} for row in rows]).items()}
    for op, keys in augmentation.mixing:
        bad |= {keys[name]: np.array([v]) for name, v in {"lam": 0.5, "box": (0, 0, 4, 4)}.items() if name in op.params}
    _, sources = pack([np.zeros((20, 30, 3), np.uint8)])
    with pytest.raises(ReplayError, match="needs a partner image, found none"):
        augmenter.program(sources, bad, bad, np.array([-1]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_golden_datasets_replay(folder, device):
    plus = load_reinforced(folder.parent, folder.name)
    augmentation = plus.augmentation
    if reasons := unsupported(augmentation):
        assert all("hue" in reason or reason.startswith("RandAugmentIncreasing ") for reason in reasons)
        pytest.skip("; ".join(reasons))
    report = verify(plus, ask_teacher=False, num_rows=plus.num_reinforced, device=device)
    assert report.ok
    assert report.num_rows == plus.num_reinforced
    assert report.bit_equal in (1, None), "imports hold no hash of what the teacher saw"


def test_what_has_no_device_version_is_named():
    augmentation = Augmentation(
        [
            ops.RandomResizedCrop(8),
            ops.RandAugment(interpolation="bilinear"),
            ops.TrivialAugmentWide(interpolation="bicubic"),
            ops.AutoAugment(interpolation="bilinear"),
            ops.RandAugmentIncreasing(interpolation="nearest"),
            ops.ColorJitter(0.1, hue=0.2),
        ]
    )
    reasons = unsupported(augmentation)
    assert [reason.split()[0] for reason in reasons] == [
        "RandAugment", "TrivialAugmentWide", "AutoAugment", "RandAugmentIncreasing", "ColorJitter",
    ]  # fmt: skip
    with pytest.raises(NotOnDeviceError, match="RandAugment with `interpolation` bilinear has no device version"):
        DeviceAugmentation(augmentation)
    for name in ("rrc", "mixing", "randaug", "randaug_mixing"):
        assert unsupported(Augmentation.named(name)) == []


@pytest.mark.parametrize(
    ("op", "params", "message"),
    [
        (ops.RandomResizedCrop(4), {"crop_box": (3, 0, 8, 2)}, r"needs a box .* inside an image of 10x12"),
        (ops.RandomResizedCrop(4), {"crop_box": (3, 0, 0, 2)}, "needs a box of at least one pixel"),
        (ops.RandomCrop(4, padding=1), {"random_crop_offset": (9, 0)}, "needs a box"),
        (ops.RandomErasing(), {"erasing_box": (0, 9, 4, 4)}, "needs a box"),
        (ops.RandAugment(1), {"rand_augment_op": (14,), "rand_augment_level": (0,)}, "needs operations below 14"),
        (ops.RandAugment(1), {"rand_augment_op": (10,), "rand_augment_level": (-3,)}, "not negative where unsigned"),
        (ops.ColorJitter(1.0), {"color_jitter_order": 24, "color_jitter_factors": (1, 1, 1, 0)}, "an order below 24"),
        (
            ops.ColorJitter(1.0),
            {"color_jitter_order": 3, "color_jitter_factors": (float("nan"), 1, 1, 0)},
            "ColorJitter needs",
        ),
    ],
)
def test_damaged_parameters_are_refused_with_the_words_of_the_op(op, params, message):
    augmentation = Augmentation([op, ops.Resize((4, 4))])
    columns = as_columns(augmentation, [params])
    image = np.zeros((10, 12, 3), np.uint8)
    with pytest.raises(ReplayError, match=message):
        made_on("cpu", augmentation, [image], columns)
    with pytest.raises(ReplayError, match=message):
        augmentation.apply(PIL.Image.fromarray(image), params)


def test_a_refusal_names_row_and_view():
    augmentation = Augmentation([ops.RandomResizedCrop(4), ops.MixUp()])
    augmenter = DeviceAugmentation(augmentation)
    image = np.zeros((10, 12, 3), np.uint8)

    def view(row: int, height: int, lam: float) -> UndoneView:
        params = {"crop_box": (0, 0, height, 5), "mixup_lam": lam}
        own = Source((row, 3), image, params)
        return UndoneView(own, own, params)

    batches = [view(7, 5, 0.5), view(8, 11, 0.5)], [view(7, 5, 0.5), view(9, 5, 2.0)]
    for views, message in zip(batches, ("row 8, view 3: .*box", "row 9, view 3: .*lam"), strict=True):
        with pytest.raises(ReplayError, match=message):
            UndoneBatch.pack(augmenter, views)


def test_very_long_images_are_left_to_pillow():
    augmentation = Augmentation([ops.RandAugment(1), ops.Resize((4, 4))])
    columns = as_columns(augmentation, [{"rand_augment_op": (5,), "rand_augment_level": (9,)}])
    image = np.zeros((2, MAX_AFFINE_SIDE + 1, 3), np.uint8)
    with pytest.raises(NotOnDeviceError, match="rotated and sheared by Pillow"):
        made_on("cpu", augmentation, [image], columns)


def test_images_beyond_the_grid_of_the_kernels_are_left_to_pillow(monkeypatch):
    monkeypatch.setattr(plan, "MAX_CHANGED_PIXELS", 100)
    for ops_of, sizes, refused in (
        ([ops.RandomHorizontalFlip(1.0), ops.Resize((4, 4))], (10, 11), True),
        ([ops.RandomHorizontalFlip(1.0), ops.Resize((4, 4))], (10, 10), False),
        ([ops.RandomResizedCrop((4, 4)), ops.RandomHorizontalFlip(1.0)], (50, 50), False),
        ([ops.Resize((4, 4)), ops.RandomCrop((11, 10), padding=9)], (4, 4), True),
    ):
        augmentation = Augmentation(ops_of)
        columns = as_columns(augmentation, [augmentation.sample(np.random.default_rng(0), sizes)])
        image = np.zeros((*sizes, 3), np.uint8)
        if not refused:
            made_on("cpu", augmentation, [image], columns)
            continue
        with pytest.raises(NotOnDeviceError, match="images of more than 100 pixels are changed by Pillow"):
            made_on("cpu", augmentation, [image], columns)


@pytest.mark.parametrize("parent", [ops.MixUp, ops.CutMix, ops.RandomHorizontalFlip])
def test_a_subclass_has_no_device_version(parent):
    class Mine(parent):
        pass

    assert unsupported(Augmentation([ops.Resize((4, 4)), Mine(p=0.5)])) == ["Mine has no device version"]


# -------------------------------------------------------------------------------------------------------------- memory


def undone(augmentation, count, rng):
    """Views of pictures of differing sizes, of which every other one is mixed with the next."""
    views = []
    for n in range(count):
        own, other = (picture(rng, *any_size(rng)) for _ in range(2))
        rows = [augmentation.sample(rng, pixels.shape[:2]) for pixels in (own, other)]
        partner = Source((n, 1), other, rows[1]) if augmentation.needs_partner(rows[0]) else None
        views.append(UndoneView(Source((n, 0), own, rows[0]), partner, rows[0]))
    return views


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["rrc", "randaug_mixing"])
def test_a_large_batch_is_made_in_parts(name, device, monkeypatch):
    augmentation = Augmentation.named(name, 20)
    views = undone(augmentation, 30, np.random.default_rng(3))
    whole = UndoneBatch.pack(DeviceAugmentation(augmentation), views)
    working = functools.partial(program, working_bytes=9_000)
    monkeypatch.setattr("hf_dr.views.device.augment.program", working)
    divided = UndoneBatch.pack(DeviceAugmentation(augmentation), views)
    assert len(divided.program.launches) > 2 * len(whole.program.launches)
    largest = 3 * 90 * 90  # of a source, and so of what one view alone takes
    assert all(a + b <= 9_000 + 2 * largest for a, b in pairwise(divided.program.buffers[2:]))
    assert torch.equal(divided.to(device).pixels(), whole.to(device).pixels())


def test_images_of_too_many_bytes_do_not_travel(caplog):
    augmentation = Augmentation.named("randaug_mixing", 20)
    augmenter, views = DeviceAugmentation(augmentation), undone(augmentation, 6, np.random.default_rng(4))
    expected = UndoneBatch.pack(augmenter, views).to("cpu").pixels()
    assert not caplog.records
    for _ in range(2):
        batch = UndoneBatch.pack(augmenter, views, most_bytes=5000)
        assert batch.pixels.numel() == 6 * 20 * 20 * 3
        assert torch.equal(batch.to("cpu").pixels(), expected)
    assert [record.message for record in caplog.records] == [
        "Some views are made on the CPU, which takes longer: the images of a batch take more than 5 kB."
    ]


def test_a_device_without_enough_memory_is_an_error_that_says_what_to_do(monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr("hf_dr.views.device.eager.run", fails)
    batch = UndoneBatch.pack(
        DeviceAugmentation(Augmentation.named("rrc", 20)),
        undone(Augmentation.named("rrc", 20), 3, np.random.default_rng(5)),
    )
    message = r"must fit into the memory of cpu, but 3 of 20x20 pixels take .* CUDA out of .* Lower the batch size, or"
    with pytest.raises(HfDrError, match=message) as raised:
        batch.to("cpu")
    assert should_reduce_batch_size(raised.value), "`auto_find_batch_size` tries a smaller one"

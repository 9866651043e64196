"""Segmentation: what is read, cropped and measured, and the model, on coloured rectangles."""

import shutil
from importlib.metadata import version

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import as_cell
from hypothesis import given
from hypothesis import strategies as st
from samples import photo, quick
from timm.layers import convert_sync_batchnorm
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from toys import CLASSES, read_masks, segmentation_flags, write_masks

from hf_dr.cli.main import main
from hf_dr.errors import ConfigError, DataError
from hf_dr.transfer.backbone import backbone
from hf_dr.transfer.segmentation import SegmentationArguments, Segmenter, SegmenterConfig, atrous_rates, collate
from hf_dr.transfer.segmentation_data import (
    IGNORED,
    Classes,
    ConfusionMeter,
    CropParams,
    ScaleCropFlip,
    SegmentationData,
    SegmentationImages,
    confusion,
    decode_mask,
    segmentation_metrics,
)
from hf_dr.transfer.trainer import open_data

NAMES = CLASSES.names


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Folders of images of two sizes and of masks."""
    folder = tmp_path_factory.mktemp("toy")
    write_masks(folder)
    return folder


# -------------------------------------------------------------------------------------------------------- what is read


@quick
@given(st.lists(st.integers(0, 255), min_size=1, max_size=40), st.integers(0, 255), st.booleans())
def test_numbers_become_labels(numbers, ignore_index, reduce_labels):
    classes = Classes([str(n) for n in range(256)], ignore_index, reduce_labels)
    labels = classes.labels(np.array([numbers], np.uint8))
    expected = [IGNORED if n == ignore_index or n < reduce_labels else n - reduce_labels for n in numbers]
    assert labels.dtype == np.int32
    assert labels[0].tolist() == expected


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1"])
def test_masks_are_read_as_they_are_stored(mode, tmp_path):
    numbers = np.random.default_rng(0).integers(2 if mode == "1" else 200, size=(5, 7))
    if mode == "P":
        image = PIL.Image.fromarray(numbers.astype(np.uint8), "L").convert("P")
        image.putpalette(bytes(range(255, -1, -1)) * 3)  # colours that tell nothing
    elif mode == "1":
        image = PIL.Image.fromarray(numbers.astype(bool))
    else:
        image = PIL.Image.fromarray(numbers.astype(np.uint16 if mode == "I;16" else np.uint8))
    assert image.mode == mode
    image.save(tmp_path / "m.png")
    for cell in (as_cell(image), {"bytes": None, "path": str(tmp_path / "m.png")}):
        assert np.array_equal(decode_mask(cell), numbers)


def rows(**columns):
    """A dataset with two rows of images in each column."""
    features = datasets.Features({name: datasets.Image() for name in columns})
    cells = {name: [as_cell(PIL.Image.fromarray(each)) for each in images] for name, images in columns.items()}
    return datasets.Dataset.from_dict(cells, features)


IMAGES = np.random.default_rng(0).integers(256, size=(2, 6, 8, 3), dtype=np.uint8)
MASKS = np.random.default_rng(1).integers(4, size=(2, 6, 8), dtype=np.uint8)


@pytest.mark.parametrize("name", ["annotation", "label", "mask"])
def test_a_dataset_of_the_hub(name):
    data = SegmentationData.from_dataset(rows(image=IMAGES, **{name: MASKS}), {"id": "x"}, CLASSES)
    for row in range(2):
        image, labels = data[row]
        assert np.array_equal(np.asarray(image), IMAGES[row])
        assert np.array_equal(labels, MASKS[row].astype(int) - 1)  # 0 becomes IGNORED
    example = SegmentationImages(data)[1]
    assert np.array_equal(example["pixel_values"].permute(1, 2, 0), IMAGES[1])
    assert example["labels"].dtype == torch.int32


def test_datasets_are_known_by_what_they_hold():
    digests = [
        SegmentationData.from_dataset(rows(image=images, mask=masks), {"id": "x"}, CLASSES).described["digest"]
        for images, masks in ((IMAGES, MASKS), (IMAGES, MASKS[::-1]), (IMAGES[::-1], MASKS), (IMAGES, MASKS))
    ]
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]


def test_folders_pair_images_and_masks_by_name(toy, tmp_path):
    data = read_masks(toy)
    assert data.described["id"] == "images", "the folder that it lies in is nobody's business"
    shutil.copytree(toy, tmp_path / "other")
    shutil.copy(toy / "masks" / "3.png", tmp_path / "other" / "masks" / "1.png")
    assert read_masks(tmp_path / "other").described["id"] == "images"
    assert read_masks(tmp_path / "other").described["digest"] != data.described["digest"]
    image, labels = data[1]
    assert image.size == (64, 48)
    assert {name: tuple(np.asarray(image)[labels == n].mean(0).round(-1)) for n, name in enumerate(NAMES)} == {
        "grey": (130, 130, 130), "red": (240, 40, 40), "blue": (40, 70, 240),
    }  # fmt: skip
    (tmp_path / "masks").mkdir()
    with pytest.raises(DataError, match=r"`masks` must be a folder with files .png, .tif, .tiff, .bmp, found none in"):
        SegmentationData.from_folders(toy / "images", tmp_path / "masks", CLASSES)
    shutil.copy(toy / "masks" / "3.png", tmp_path / "masks")
    with pytest.raises(
        DataError, match=r"a mask of its name, but 5 of the 6 in .*images have none in .*masks, such as 0.png. Add"
    ):
        SegmentationData.from_folders(toy / "images", tmp_path / "masks", CLASSES)


def test_images_and_masks_of_one_folder_are_not_mixed_up(tmp_path):
    PIL.Image.fromarray(IMAGES[0]).save(tmp_path / "x.jpg")
    PIL.Image.fromarray(MASKS[0]).save(tmp_path / "x.png")
    with pytest.raises(
        DataError, match=r"`images` must have one file of each name, found x.jpg and x.png in .*of their own"
    ):
        SegmentationData.from_folders(tmp_path, tmp_path, CLASSES)
    (tmp_path / "x.jpg").unlink()
    link = tmp_path / "masks"
    link.symlink_to(tmp_path)
    for masks in (tmp_path, link):
        with pytest.raises(DataError, match=r"an image and its mask must be two files, found .*x.png as both"):
            SegmentationData.from_folders(tmp_path, masks, CLASSES)


def test_without_data_to_evaluate_on_there_is_none(toy):
    chosen = SegmentationArguments(images=str(toy / "images"), masks=str(toy / "masks"), class_names=NAMES)
    train, evaluated, described = open_data(chosen, lambda *places: read_masks(toy), None)
    assert (len(train.images), evaluated, described) == (6, None, train.described)


def test_a_link_that_leads_nowhere_is_named(toy, tmp_path):
    shutil.copytree(toy, tmp_path / "other")
    (tmp_path / "other" / "masks" / "3.png").unlink()
    (tmp_path / "other" / "masks" / "3.png").symlink_to("nowhere")
    with pytest.raises(
        DataError, match=r"masks/3\.png must be a file that can be read, but: No such file .* Check the"
    ):
        read_masks(tmp_path / "other")


def test_a_class_that_is_nowhere_is_told(caplog):
    meter = ConfusionMeter(["background", "thing"])
    meter._matrix += np.array([[9, 0], [0, 0]])
    for _ in range(2):
        assert meter.compute()["mean_iou"] == 1
    assert [
        text for text in caplog.messages if "No pixel of the masks is of the class thing" in text
    ] == caplog.messages[:1]


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [({"image": IMAGES}, {}, "one other column than `image` must hold images, the masks, found none. Name `mask_col"),
     ({"image": IMAGES, "a": MASKS, "b": MASKS}, {}, "found a, b. Name `mask_column`"),
     ({"image": IMAGES, "mask": MASKS}, {"mask_column": "masks"}, "column of images `masks`. Did you mean `mask`"),
     ({"photo": IMAGES, "mask": MASKS}, {"mask_column": "mask"}, "column of images `image`. Known: mask, photo")],
)  # fmt: skip
def test_datasets_without_the_columns(columns, settings, message):
    with pytest.raises(DataError, match=message):
        SegmentationData.from_dataset(rows(**columns), {"id": "x"}, CLASSES, **settings)


@pytest.mark.parametrize(
    ("mask", "message"),
    [(MASKS + 4, r"the mask of row 0 cannot be used: expected numbers from 1 to 3 or 255, found 7. Name all classes, or"),
     (IMAGES, "the mask of row 0 cannot be used: expected one channel of whole numbers, found mode RGB. Convert it"),
     (MASKS.astype(np.float32), None),
     (MASKS[:, :5], r"the mask of row 0 must be 8x6, as its image, found 8x5. .*EXIF")],
)  # fmt: skip
def test_masks_that_cannot_be_used(mask, message):
    if message is None:
        cell = as_cell(PIL.Image.fromarray(mask[0]), "TIFF")
        with pytest.raises(DataError, match="expected one channel of whole numbers, found mode F"):
            decode_mask(cell)
        return
    data = SegmentationData.from_dataset(rows(image=IMAGES, mask=mask), {"id": "x"}, CLASSES)
    with pytest.raises(DataError, match=message):
        data[0]


def test_before_a_training_every_evaluated_mask_is_read_whole(toy):
    data = read_masks(toy)
    images = SegmentationImages(data)
    assert not images.is_doubtful(1)
    data.images[1] = {"path": str(toy / "none.png")}
    assert images.is_doubtful(1)
    stored = decode_mask(data.masks[2]).copy()
    stored[-1, -1] = 9
    data.masks[2] = as_cell(PIL.Image.fromarray(stored), "PNG")
    with pytest.raises(DataError, match=r"the mask of row 2 cannot be used: expected numbers .* found 9"):
        images.is_doubtful(2)


def test_files_that_cannot_be_read(toy):
    data = read_masks(toy)
    problems = (
        (data.masks, r"the mask of row 2 \(.*\) cannot be used:"),
        (data.images, r"the image of row 2 \(.*\) must be readable, but:"),
    )
    for broken, problem in problems:
        broken[2] = {"path": str(toy / "none.png")}
        with pytest.raises(DataError, match=f"{problem} expected a file, found none at"):
            data[2]


# ------------------------------------------------------------------------------------------------------ what is cropped


@quick
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 60), st.integers(1, 90)
)  # fmt: skip
def test_an_image_that_is_its_own_mask_stays_so(height, width, seed, size, short, long):
    rng = np.random.default_rng(seed)
    labels = rng.integers(200, size=(height, width)).astype(np.int32)
    labels[rng.random((height, width)) < 0.1] = IGNORED
    shown = np.where(labels == IGNORED, 255, labels).astype(np.uint8)
    crop = ScaleCropFlip(size, (short, short + 20), long, interpolation="nearest", fill=(255, 255, 255))
    params = crop.sample(rng, labels)
    image, cropped = crop.apply(PIL.Image.fromarray(shown).convert("RGB"), labels, params)
    assert image.size == (size, size) == cropped.shape
    assert np.array_equal(np.asarray(image)[..., 0], np.where(cropped == IGNORED, 255, cropped))
    (tall, wide), (top, left) = params.scaled, params.corner
    assert max(tall, wide) <= max(long, 1)
    assert 0 <= top <= max(tall - size, 0)
    assert 0 <= left <= max(wide - size, 0)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_at_its_own_scale_a_crop_is_a_part(interpolation):
    image, labels = photo(40, 50), np.arange(2000, dtype=np.int32).reshape(40, 50)
    crop = ScaleCropFlip(24, interpolation=interpolation)
    for flip in (False, True):
        part, numbers = crop.apply(image, labels, CropParams((40, 50), (10, 20), flip))
        step = -1 if flip else 1
        assert np.array_equal(np.asarray(part), np.asarray(image)[10:34, 20:44][:, ::step])
        assert np.array_equal(numbers, labels[10:34, 20:44][:, ::step])
    part, numbers = ScaleCropFlip(64, fill=(1, 2, 3)).apply(image, labels, CropParams((40, 50), (0, 0), True))
    assert np.array_equal(np.asarray(part)[:40, 14:], np.asarray(image)[:, ::-1])
    assert (np.asarray(part)[40:] == (1, 2, 3)).all()
    assert (numbers[:, :14] == IGNORED).all()


def test_scales_crops_and_flips_are_as_asked():
    labels = np.zeros((100, 150), np.int32)
    crop = ScaleCropFlip(32, (50, 80), 110, flip=0.3)
    drawn = [crop.sample(np.random.default_rng(seed), labels) for seed in range(400)]
    assert {min(each.scaled) for each in drawn} == set(range(50, 74))  # 73 x 110 at most
    assert max(max(each.scaled) for each in drawn) == 110
    assert 0.2 < np.mean([each.flip for each in drawn]) < 0.4
    assert {each.corner[1] for each in drawn} >= {0, 20, 40}


def test_crops_of_one_class_are_drawn_again():
    labels = np.zeros((100, 100), np.int32)
    labels[40:60, 40:60] = 1

    def seen(share):
        crop = ScaleCropFlip(20, (100, 100), 100, share)
        corners = [crop.sample(np.random.default_rng(seed), labels).corner for seed in range(200)]
        return np.mean([len(np.unique(labels[top : top + 20, left : left + 20])) > 1 for top, left in corners])

    assert seen(1.0) < 0.4
    assert seen(0.99) > 0.7
    labels[:, :50] = IGNORED
    labels[:, 50:] = 0
    corners = [
        ScaleCropFlip(20, (100, 100), 100, 1.0).sample(np.random.default_rng(s), labels).corner for s in range(200)
    ]
    assert min(left for _, left in corners) > 30  # never of nothing that counts


def test_what_is_drawn_follows_from_seed_row_and_epoch(toy):
    def drawn(seed, *index):
        images = SegmentationImages(read_masks(toy), ScaleCropFlip(24, (32, 64), 80), seed)
        return images[index]["pixel_values"].double().sum().item()

    keys = [(0, 1, 0), (0, 1, 1), (1, 1, 0), (0, 2, 0)]
    assert [drawn(*key) for key in keys] == [drawn(*key) for key in keys]
    assert len({drawn(*key) for key in keys}) == 4


# ---------------------------------------------------------------------------------------------------- what is measured


@quick
@given(st.integers(1, 5), st.integers(1, 12), st.integers(0, 2**32))
def test_intersection_over_union_pixel_by_pixel(num_classes, side, seed):
    rng = np.random.default_rng(seed)
    pairs = [
        (rng.integers(-1, num_classes, (side, n + 1)), rng.integers(num_classes, size=(side, n + 1))) for n in range(3)
    ]
    pairs[0][0][0, 0] = 0  # one counts
    intersection, union, hits, counted = [0] * num_classes, [0] * num_classes, 0, 0
    for labels, predicted in pairs:
        for label, found in zip(labels.ravel().tolist(), predicted.ravel().tolist(), strict=True):
            if label == IGNORED:
                continue
            counted += 1
            hits += label == found
            for c in range(num_classes):
                intersection[c] += label == c and found == c
                union[c] += c in (label, found)
    names = [f"class {c}" for c in range(num_classes)]
    matrix = sum(confusion(torch.from_numpy(a), torch.from_numpy(b), num_classes) for a, b in pairs).numpy()
    ious = {f"iou_{names[c]}": intersection[c] / union[c] for c in range(num_classes) if union[c]}
    assert segmentation_metrics(matrix, names) == pytest.approx(
        {"mean_iou": sum(ious.values()) / len(ious), "pixel_accuracy": hits / counted, **ious}
    )


def test_images_of_several_batches_count_together(toy):
    class Oracle(torch.nn.Module):
        def forward(self, pixel_values, labels):
            return [torch.where(each == IGNORED, 2, each) for each in labels]

    images, meter = SegmentationImages(read_masks(toy)), ConfusionMeter(NAMES)
    for start in (0, 2, 4):
        meter.update(Oracle(), collate([images[start], images[start + 1]]))
    assert meter.compute() == {"mean_iou": 1, "pixel_accuracy": 1, "iou_grey": 1, "iou_red": 1, "iou_blue": 1}
    assert meter._matrix.sum() == sum((images[n]["labels"] != IGNORED).sum() for n in range(6))
    with pytest.raises(DataError, match=r"must have pixels that count, found none. Check `ignore_index` and `reduce_l"):
        ConfusionMeter(NAMES).compute()
    assert list(meter.compute()) == meter.names


# ------------------------------------------------------------------------------------------------------------ the model


def segmenter(architecture, stride=None, **settings):
    torch.manual_seed(0)
    config = SegmenterConfig(NAMES, **{"head_channels": 8, **settings})
    body, _ = backbone(f"timm:{architecture}", out_indices=config.out_indices, output_stride=stride)
    return Segmenter(body, config)


@pytest.mark.parametrize(
    ("architecture", "stride"),
    [("test_resnet", 8), ("test_resnet", 16), ("mobilenetv2_035", 8), ("mobilevit_xxs", 8), ("test_convnext", 8),
     ("test_vit", None), ("test_resnet", None)],
)  # fmt: skip
def test_whole_images_are_seen_at_their_own_size_and_alone(architecture, stride):
    model = segmenter(architecture, stride).eval()
    rng = np.random.default_rng(0)
    sizes = [(37, 61), (64, 64), (61, 37)]
    pixels = [torch.from_numpy(rng.integers(256, size=(3, *size), dtype=np.uint8)) for size in sizes]
    with torch.no_grad():
        together = model(pixels)
        assert [tuple(each.shape) for each in together] == sizes
        assert all(torch.equal(model([one])[0], each) for one, each in zip(pixels, together, strict=True))
    model.train()
    crops = [each[:, :32, :32] for each in (pixels[0], pixels[2])]
    loss = model(crops, [torch.zeros(32, 32, dtype=torch.int32)] * 2)["loss"]
    loss.backward()
    assert loss > 0
    unused = [name for name, p in model.named_parameters() if p.grad is None]
    assert not unused or version("timm") < "1.0.31", "an older timm keeps a normalisation that no feature passes"


def test_the_head_is_torchvisions_and_sees_as_far_at_any_stride():
    assert [atrous_rates(stride) for stride in (8, 16, 32)] == [(12, 24, 36), (6, 12, 18), (3, 6, 9)]
    model = segmenter("test_resnet", 8, head_channels=256, dropout=0.5)
    theirs = DeepLabHead(model.body.channels[-1], len(NAMES))
    assert str(model.head) == str(theirs).replace("DeepLabHead", "Sequential")
    theirs.load_state_dict(model.head.state_dict())
    features = torch.randn(1, model.body.channels[-1], 5, 6)
    assert torch.equal(model.eval().head(features), theirs.eval()(features))


def test_pixels_that_do_not_count_teach_nothing():
    model = segmenter("test_resnet", 8, aux_weight=0.0, dropout=0.0)
    assert model.aux_head is None
    pixels = [torch.from_numpy(np.array(photo(32, 32, seed)).transpose(2, 0, 1)) for seed in (0, 1)]
    labels = torch.randint(3, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    labels[:, 16:] = IGNORED
    with torch.no_grad():
        logits = model._logits(torch.stack(pixels))[0][:, :, :16]
    expected = torch.nn.functional.cross_entropy(logits, labels[:, :16])
    assert model(pixels, list(labels))["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    nothing = model(pixels, [torch.full((32, 32), IGNORED)] * 2)["loss"]
    nothing.backward()
    assert nothing == 0
    assert all((p.grad == 0).all() for p in model.parameters())


def test_shared_normalisations_keep_names_and_activations():
    model = segmenter("mobilenetv2_035", 8)
    before, answers = model.state_dict(), model.eval()(pixels := [torch.full((3, 32, 32), 99, dtype=torch.uint8)])
    shared = convert_sync_batchnorm(model)
    assert sum(isinstance(m, torch.nn.SyncBatchNorm) for m in shared.modules()) > 20
    assert shared.state_dict().keys() == before.keys()
    assert not shared.training
    assert torch.equal(shared(pixels)[0], answers[0])


# ----------------------------------------------------------------------------------------- what cannot be asked for


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"per_device_train_batch_size": 1}, "each batch must have more than one image, .*, but all have one. Set a larger"),
     ({"per_device_train_batch_size": 5, "max_steps": 2}, "but 6 images make one of 1 in batches of 5. Set `dat"),
     ({"class_names": ["a", "b", "a"]}, "`class_names` must be the names of all classes, each once, found 'a' twice. Cor"),
     ({"class_names": ["a"]}, "expected numbers from 1 to 1 or 255, found 3"),
     ({"short_side": 32}, "`short_side` must be two numbers, the smaller one first, got 32"),
     ({"student": "timm:test_resnettt"}, "timm has no architecture `test_resnettt`")],
)  # fmt: skip
def test_what_cannot_be_trained(toy, tmp_path, capsys, settings, message):
    settings = {"max_steps": 1, "save_strategy": "no", **settings}
    assert main(["segment", *segmentation_flags(toy, tmp_path / "out", **settings)]) == 2
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "exactly one of `images` and `dataset` must be given, got None and None"),
     ({"images": "a", "masks": "b", "dataset": "c"}, "one of `images` and `dataset`"),
     ({"dataset": "a", "eval_images": "b"}, "`eval_images` must not come with `dataset`, got both. Use `eval_split`"),
     ({"images": "a", "masks": "b", "eval_split": "c"}, "`eval_split` must not come with `images`.* `eval_images`"),
     ({"images": "a"}, "`images` and `masks` must come together"),
     ({"images": "a", "masks": "b", "mask_column": "c"}, "`mask_column` is for `dataset`, got it with `images`. Leave it out"),
     ({"images": "a", "masks": "b", "image_column": "c"}, "`image_column` is for `dataset`"),
     ({"dataset": "a", "output_stride": 4}, "`output_stride` must be one of 8, 16, 32, got 4"),
     ({"dataset": "a", "crop_size": 0}, "`crop_size` must be a whole number of at least 1, got 0"),
     ({"dataset": "a", "long_side": 0}, "`long_side` must be a whole number of at least 1, got 0"),
     ({"dataset": "a", "short_side": [9, 8]}, "`short_side` must be two numbers, the smaller one first, got 9, 8"),
     ({"dataset": "a", "short_side": [8]}, "`short_side` must be two numbers, the smaller one first, got 8"),
     ({"dataset": "a", "max_class_share": 0.0}, "`max_class_share` must be above 0 and at most 1, got 0.0"),
     ({"dataset": "a", "flip": 1.5}, "`flip` must be between 0 and 1, got 1.5"),
     ({"dataset": "a", "interpolation": "cubic"}, "`interpolation` must be one of nearest, bilinear, bicubic, got 'cubic'"),
     ({"dataset": "a", "head_channels": 0}, "`head_channels` must be a whole number of at least 1, got 0"),
     ({"dataset": "a", "dropout": 1.0}, "`dropout` must be at least 0 and below 1, got 1.0"),
     ({"dataset": "a", "aux_weight": -0.1}, "`aux_weight` must be a number of at least 0, got -0.1")],
)  # fmt: skip
def test_impossible_arguments(settings, message):
    with pytest.raises(ConfigError, match=message):
        SegmentationArguments(**settings)


def test_classes_need_names():
    with pytest.raises(ConfigError, match="`class_names` must be the names of all classes, each once, found none"):
        Classes([])

"""What a model is shown is what its own image processor would show it, for each class of processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

from hf_dr.errors import TeacherError
from hf_dr.teacher.preprocessing import Preprocessing, evaluation_augmentation, read_image_processor

SQUARE = {"height": 32, "width": 32}
SHORTEST = {"size": {"shortest_edge": 36}, "crop_size": SQUARE}
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
PROCESSORS: dict[str, tuple[str, dict[str, Any], float | None]] = {
    "ViT": ("ViTImageProcessor", {"size": SQUARE}, None),
    "ViT, ImageNet's colours": (
        "ViTImageProcessor",
        {"size": SQUARE, "image_mean": IMAGENET[0], "image_std": IMAGENET[1]},
        None,
    ),
    "ViT, as it is": ("ViTImageProcessor", {"size": SQUARE, "do_rescale": False, "do_normalize": False}, None),
    "ViT, only scaled": ("ViTImageProcessor", {"size": SQUARE, "do_normalize": False}, None),
    "ViT, not scaled": ("ViTImageProcessor", {"size": SQUARE, "do_rescale": False, "image_mean": [99.0] * 3}, None),
    "ViT, from -1 to 1": (
        "ViTImageProcessor",
        {"size": SQUARE, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
        None,
    ),
    "DeiT": ("DeiTImageProcessor", {"size": {"height": 36, "width": 36}, "crop_size": SQUARE}, 32 / 36),
    "LeViT": (
        "LevitImageProcessor",
        {"size": {"shortest_edge": 224}},
        224 / 256,
    ),  # its class resizes to 256 / 224 of it
    "PoolFormer": ("PoolFormerImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.95}, 0.95),
    "Perceiver, no crop": ("PerceiverImageProcessor", {"size": SQUARE, "do_center_crop": False}, None),
    "CLIP": ("CLIPImageProcessor", {"size": {"shortest_edge": 32}, "crop_size": SQUARE}, 1.0),
    "SigLIP, not square": ("SiglipImageProcessor", {"size": {"height": 32, "width": 48}}, None),
    "Swin": ("ViTImageProcessor", {"size": SQUARE, "resample": 3}, None),  # its checkpoints come with ViT's
    "ConvNeXt": ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}}, 0.875),
    "ConvNeXt, large, no crop": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}, "crop_pct": 1.0}, None),
    "CLIP, twice as wide": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 64}},
        1.0,
    ),
    "ConvNeXt, large": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}, None),
    "MobileViT": ("MobileViTImageProcessor", SHORTEST, 32 / 36),
    "MobileNetV2": ("MobileNetV2ImageProcessor", SHORTEST, 32 / 36),
    "BiT": ("BitImageProcessor", SHORTEST, 32 / 36),
    "BiT, without a crop": ("BitImageProcessor", {**SHORTEST, "size": SQUARE, "do_center_crop": False}, None),
    "EfficientNet": ("EfficientNetImageProcessor", {"size": SQUARE, "crop_size": SQUARE}, None),
    "EfficientNet, offset": (
        "EfficientNetImageProcessor",
        {
            "size": SQUARE,
            "crop_size": SQUARE,
            "rescale_offset": True,
            "rescale_factor": 1 / 127.5,
            "include_top": False,
        },
        None,
    ),
}


def made(name: str) -> tuple[Any, float | None]:
    kind, settings, crop = PROCESSORS[name]
    return getattr(transformers, kind)(**settings), crop


def noise(height: int, width: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_processor(name: str) -> None:
    processor, crop = made(name)
    preprocessing, found = read_image_processor(processor, name)
    assert found == crop
    image = noise(*preprocessing.size)
    ours = preprocessing(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None])
    # In the model's size already: what resizing does to pixels differs between libraries by rounding.
    as_it_is = {step: False for step in ("do_resize", "do_center_crop") if hasattr(processor, step)}
    theirs = processor(image, **as_it_is, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)


# DeiT squashes before it crops; a crop wider than what it is taken of is padded, here the view is resized to it.
@pytest.mark.parametrize("name", [name for name in PROCESSORS if name not in ("DeiT", "CLIP, twice as wide")])
def test_the_view_of_an_evaluation_is_that_of_the_processor(name: str) -> None:
    """Resized by other code, so up to rounding; a smooth image, of which each place tells where it comes from."""
    processor, _ = made(name)
    preprocessing, crop = read_image_processor(processor, name)
    down, right = np.mgrid[0:300, 0:400]
    image = PIL.Image.fromarray(np.stack([down * 0.8, right * 0.6, (down + right) * 0.3], -1).astype(np.uint8))
    view = evaluation_augmentation(preprocessing.size, crop, preprocessing.interpolation).apply(image, {})
    ours = preprocessing(torch.from_numpy(np.array(view)).permute(2, 0, 1)[None])
    theirs = processor(image, return_tensors="pt")["pixel_values"]
    level = 1 / 255 / min(preprocessing.std)
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=3 * level)


@pytest.mark.parametrize("side", [74, 75, 76, 113, 223, 224, 226, 299, 300, 385, 449])
def test_a_crop_is_read_to_the_pixel_though_levels_are_whole_numbers(side: int) -> None:
    resized = int(side / 0.875)
    of_bit = transformers.BitImageProcessor(
        size={"shortest_edge": resized}, crop_size={"height": side, "width": side}, resample=2
    )
    _, crop = read_image_processor(of_bit, "BiT")
    assert crop == side / resized
    of_convnext = transformers.ConvNextImageProcessor(size={"shortest_edge": side}, crop_pct=0.875)
    assert read_image_processor(of_convnext, "ConvNeXt")[1] == (None if side >= 384 else 0.875)


def test_padding_is_told(caplog):
    processor = transformers.DonutImageProcessor(size={"height": 64, "width": 64})
    assert read_image_processor(processor, "donut")[1] is None
    assert "Images that are not square are padded by the image processor of 'donut'" in caplog.text


def test_what_was_read_before_is_read_as_before() -> None:
    """The provenance of a teacher without reversed channels has the same fields and numbers."""
    preprocessing, _ = read_image_processor(made("ViT, ImageNet's colours")[0], "vit")
    assert preprocessing.to_dict() == {
        "size": (32, 32), "mean": tuple(IMAGENET[0]), "std": tuple(IMAGENET[1]), "interpolation": "bilinear"
    }  # fmt: skip
    assert Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear", bgr=True).to_dict()["bgr"] is True


def test_a_processor_that_does_more_than_its_configuration_says_is_refused() -> None:
    class Brightened(transformers.ViTImageProcessor):
        def preprocess(self, *arguments: Any, **settings: Any) -> Any:
            batch = super().preprocess(*arguments, **settings)
            batch["pixel_values"] = batch["pixel_values"] + 1
            return batch

    with pytest.raises(
        TeacherError, match=r"\(Brightened\) must rescale, normalise and order the channels as its configuration"
    ):
        read_image_processor(Brightened(size=SQUARE), "model")


def test_a_processor_that_makes_one_colour_of_an_image_is_refused() -> None:
    class Averaging(transformers.ViTImageProcessor):
        def preprocess(self, *arguments: Any, **settings: Any) -> Any:
            batch = super().preprocess(*arguments, **settings)
            batch["pixel_values"] = torch.as_tensor(batch["pixel_values"])
            batch["pixel_values"] = batch["pixel_values"].mean((2, 3), keepdim=True).expand(-1, -1, 32, 32)
            return batch

    with pytest.raises(
        TeacherError, match=r"\(Averaging\) must resize images, but what it makes of a ramp is none\. Save"
    ):
        read_image_processor(Averaging(size=SQUARE), "model")


def test_a_setting_that_the_processor_does_not_follow_is_refused() -> None:
    """MobileViT's class has the settings of a normalisation and does none."""
    processor = transformers.MobileViTImageProcessor(
        **SHORTEST, do_normalize=True, image_mean=IMAGENET[0], image_std=IMAGENET[1]
    )
    with pytest.raises(
        TeacherError, match=r"but the colour 31, 87, 190 becomes \[0.7451, 0.3412, 0.1216\], by its configuration"
    ):
        read_image_processor(processor, "mobilevit")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "PerceiverImageProcessor",
            "must prepare images of 256 x 256 pixels, as its configuration says, but makes 224 x 224",
        ),
        (
            "DetrImageProcessor",
            "must prepare images of 800 x 800 pixels, as its configuration says, but makes 6.. x 13..",
        ),
        (
            "VideoMAEImageProcessor",
            "must prepare one RGB image as one of shape .*, but of 4 images it makes .*. Save an image",
        ),
        (
            "FuyuImageProcessor",
            "must prepare RGB images, but: 'pixel_values'. Save an image processor of image classifiers",
        ),
    ],
)
def test_a_processor_of_another_task_is_refused(kind: str, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        read_image_processor(getattr(transformers, kind)(), "model")


def test_a_processor_that_crops_nothing_is_told_how() -> None:
    processor = transformers.BitImageProcessor(size={"shortest_edge": 32}, do_center_crop=False)
    with pytest.raises(
        TeacherError, match=r"makes 32 x 64 .*\. Set its `do_center_crop` to true, and its `crop_size`\."
    ):
        read_image_processor(processor, "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"longest_edge": 9}}, r"must give a height and width, found .*\. Set them in its `size`"),
        (
            {"do_resize": False},
            r"must tell the size that the model takes, but it does not resize .*Set `do_resize` to true",
        ),
        (
            {"image_std": [0.0, 1.0, 1.0]},
            "`std` of a model's preprocessing must be three numbers above 0 on the scale 0 to 1, not 0 to 255, found",
        ),
        ({"image_mean": [0.5]}, "must tell size, mean, std and resampling, but: IndexError"),
        ({"rescale_factor": 0}, "must tell size, mean, std and resampling, but: ZeroDivisionError"),
        ({"resample": 99}, "must tell size, mean, std and resampling, but: "),
    ],
)
def test_what_cannot_be_read_is_refused(changes: dict[str, Any], message: str) -> None:
    processor = transformers.ViTImageProcessor(size=SQUARE)
    for name, value in changes.items():
        setattr(processor, name, value)
    with pytest.raises(TeacherError, match=message):
        read_image_processor(processor, "model")

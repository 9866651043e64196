"""What a classifier does to the uint8 pixels that it is shown, read from timm's and transformers' own configurations.

Teacher, trainer, evaluation and student all read an image processor by `read_image_processor`, so that a checkpoint gives
the same answers everywhere.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from timm.data import resolve_data_config
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from hf_dr.errors import ConfigError, TeacherError
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.images import channel_values
from hf_dr.views.ops.base import MAX_SIDE, MAX_VIEW_PIXELS, Size
from hf_dr.views.ops.geometry import CenterCrop, Resize

logger = logging.getLogger(__name__)

_TENSOR_FILTERS = ("nearest", "bilinear", "bicubic")


@dataclass(frozen=True)
class Preprocessing:
    """What a model does to uint8 pixels: resize to (height, width), scale to [0, 1], normalise.

    Attributes:
        size: Height and width of the model's input, in pixels.
        mean: Subtracted from each channel, in the model's order, after scaling to [0, 1].
        std: What each channel is divided by then.
        interpolation: Filter of the resize, by torchvision's name.
        bgr: Whether the model takes blue, green, red, as MobileViT does.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    bgr: bool = False

    def __post_init__(self) -> None:
        height, width = self.size if isinstance(self.size, tuple) and len(self.size) == 2 else (0, 0)
        sides = all(isinstance(side, int) and 0 < side <= MAX_SIDE for side in (height, width))
        is_size = sides and height * width <= MAX_VIEW_PIXELS
        for name, ok, expected in (
            ("size", is_size, f"(height, width) of at most {MAX_VIEW_PIXELS:,} pixels"),
            ("mean", _is_colour(self.mean), "three numbers on the scale 0 to 1, not 0 to 255"),
            (
                "std",
                _is_colour(self.std) and min(self.std) > 0,
                "three numbers above 0 on the scale 0 to 1, not 0 to 255",
            ),
            ("interpolation", self.interpolation in _TENSOR_FILTERS, f"one of {', '.join(_TENSOR_FILTERS)}"),
            ("bgr", isinstance(self.bgr, bool), "true or false"),
        ):
            if not ok:
                raise TeacherError(
                    f"`{name}` of a model's preprocessing must be {expected}, found {getattr(self, name)!r:.80}. Correct its "
                    "configuration."
                )

    def __call__(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        """Returns the model's float32 input of shape (B, 3, *size) for uint8 views of any size."""
        pixels = views_BCHW.float()
        if pixels.shape[-2:] != self.size:
            pixels = F.resize(pixels, list(self.size), InterpolationMode(self.interpolation), antialias=True)
        return self.normalize(pixels)

    def normalize(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Returns RGB pixels from 0 to 255, in floating point, as the model takes them; the size stays."""
        if self.bgr:
            pixels_BCHW = pixels_BCHW.flip(-3)
        device, dtype = pixels_BCHW.device, pixels_BCHW.dtype
        mean_C11 = channel_values(tuple(255 * m for m in self.mean), device, dtype)
        std_C11 = channel_values(tuple(255 * s for s in self.std), device, dtype)
        return pixels_BCHW.sub(mean_C11).div_(std_C11)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields in JSON types; `bgr` only where it holds, so that other models keep what they had."""
        fields = asdict(self)
        if not self.bgr:
            del fields["bgr"]
        return fields


def _is_colour(values: Any) -> bool:
    numbers = isinstance(values, tuple) and len(values) == 3
    return numbers and all(isinstance(v, (int, float)) and is_of_scale(v) for v in values)


def is_of_scale(value: float) -> bool:
    """Whether a mean or standard deviation may be one of pixels from 0 to 1: those of pixels from 0 to 255 are larger."""
    return abs(value) < 10


def checked_normalization(given: Any) -> tuple[Any, Any] | None:
    """Returns `normalization` in Python's own numbers, whatever arrays it was given in; a ConfigError if it is none."""
    if given is None:
        return None
    try:
        values = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (2, 3) or not np.isfinite(values).all():
        raise ConfigError(f"`normalization` must be mean and std, each three numbers, got {given!r:.80}. Correct it.")
    if not is_of_scale(np.abs(values).max()):
        raise ConfigError(
            f"`normalization` must be mean and std on the scale 0 to 1, got {given!r:.80}, which are on that of 0 to 255. "
            "Divide them by 255."
        )
    if values[1].min() <= 0:
        raise ConfigError(f"`normalization` must have a std above 0, got {given!r:.80}. Correct it, or leave it out.")
    mean, std = (tuple(value.item() if hasattr(value, "item") else value for value in one) for one in given)
    return mean, std


def _tensor_filter(interpolation: str, name: str) -> str:
    """Returns the filter by its name, or bicubic, with a warning, for those that exist for PIL images only."""
    if interpolation in _TENSOR_FILTERS:
        return interpolation
    logger.warning("%s was trained with %s resizing, which tensors do not have; using bicubic.", name, interpolation)
    return "bicubic"


EVAL_CROP = 0.875
"""Share of the resized side that the centre crop of an evaluation keeps, where nothing else is said."""


def evaluation_augmentation(
    size: Size, crop: float | None = EVAL_CROP, interpolation: str = "bilinear"
) -> Augmentation:
    """Returns the view by which a model is evaluated, while it is trained and afterwards.

    Args:
        size: Height and width of the model's input, in pixels.
        crop: Share of the resized shorter side that the centre crop of `size` keeps; None squashes the whole image.
        interpolation: Filter of the resize, by torchvision's name.
    """
    if crop is None:
        return Augmentation([Resize(size, interpolation)])
    height, width = (before_crop(side, crop) for side in size)
    return Augmentation([Resize(height if height == width else (height, width), interpolation), CenterCrop(size)])


def before_crop(side: int, crop: float) -> int:
    """Returns the side to resize to, so that a centre crop that keeps the share `crop` has `side` pixels."""
    # Rounded downwards, as timm and transformers do; a share that came from whole pixels may miss them by float64's rounding.
    return int(side / crop + 1e-6)


def read_pretrained_cfg(pretrained_cfg: Any, name: str) -> tuple[Preprocessing, float | None]:
    """Reads what timm's `pretrained_cfg` of a model tells, and returns what `read_image_processor` does.

    Raises:
        TeacherError: It is none.
    """
    try:
        data = resolve_data_config(pretrained_cfg=pretrained_cfg, verbose=False)
        preprocessing = Preprocessing(
            size=tuple(data["input_size"][1:]),
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            interpolation=_tensor_filter(data["interpolation"], name),
        )
        return preprocessing, None if data["crop_mode"] == "squash" else float(data["crop_pct"])
    except TeacherError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        raise TeacherError(
            f"the `pretrained_cfg` of {name!r} must tell input_size, mean, std and crop as timm does, but: {error!r:.200}. "
            "Correct it."
        ) from error


def own_processor(given: Any) -> Any:
    """Returns the image processor in a processor; None for that of timm's models, which only repeats `pretrained_cfg`."""
    processor = getattr(given, "image_processor", given)
    return None if hasattr(processor, "data_config") else processor


def read_image_processor(processor: Any, name: str) -> tuple[Preprocessing, float | None]:
    """Reads what an image processor of transformers does: the one place where its configuration is understood.

    The steps are those of its class: rescale by a factor, shift (EfficientNet's `rescale_offset`), normalise, divide once
    more (its `include_top`), reverse the channels. What comes out is compared with what the processor itself does to pixels;
    its resize and crop are measured, since classes differ in them. One that squashes before it crops (DeiT's) is read as one
    that keeps the aspect ratio, as its authors evaluated.

    Returns:
        The preprocessing, and how the model is evaluated: the share of the resized shorter side that the centre crop keeps;
        None squashes the whole image.

    Raises:
        TeacherError: It does something that is not understood.
    """
    if not hasattr(processor, "size"):
        raise TeacherError(
            f"the image processor of {name!r} must be one of transformers, found {type(processor).__name__}. Give such a "
            "one, or in its place the `normalization`, of a teacher with the `size`."
        )
    if getattr(processor, "do_resize", True) is False:
        raise TeacherError(
            f"the image processor of {name!r} must tell the size that the model takes, but it does not resize (`do_resize` is "
            "false), so that its `size` says nothing. Set `do_resize` to true, and `size`."
        )
    try:
        size = processor.size
        if getattr(processor, "do_center_crop", False) and getattr(processor, "crop_size", None):
            size = processor.crop_size
        side = size.get("shortest_edge")
        height = side or size.get("height")
        width = side or size.get("width")
        if not height or not width:
            raise TeacherError(
                f"the image processor of {name!r} must give a height and width, found {size}. Set them in its `size`."
            )
        mean, std, bgr = _colours(processor)
        preprocessing = Preprocessing(
            size=(height, width),
            mean=mean,
            std=std,
            interpolation=_tensor_filter(PIL.Image.Resampling(int(processor.resample)).name.lower(), name),
            bgr=bgr,
        )
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        if isinstance(error, TeacherError):
            raise
        raise TeacherError(
            f"the preprocessor_config.json of {name!r} must tell size, mean, std and resampling, but: {error!r:.200}. "
            "Correct it."
        ) from error
    _check_colours(processor, preprocessing, name)
    return preprocessing, _crop_of(processor, preprocessing, name)


_Colour = tuple[float, float, float]


def _colours(processor: Any) -> tuple[_Colour, _Colour, bool]:
    """Returns mean and std after scaling to [0, 1] that do what the processor does to colours, and whether it reverses them."""
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    offset = 1.0 if processor.do_rescale and getattr(processor, "rescale_offset", False) else 0.0
    bgr = bool(getattr(processor, "do_flip_channel_order", False))
    normalizes = getattr(processor, "do_normalize", False)  # MobileViT's never does
    if not normalizes and not offset and factor == 1 / 255:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), bgr
    means, stds = [], []
    for channel in range(3):
        mean = _channel(processor.image_mean, channel) if normalizes else 0.0
        total = _channel(processor.image_std, channel) if normalizes else 1.0
        if getattr(processor, "include_top", False):
            total *= _channel(processor.image_std, channel)
        # (pixel factor - offset - mean) / total, as (pixel / 255 - mean') / std'.
        means.append((offset + mean) / (255 * factor) if offset or factor != 1 / 255 else mean)
        stds.append(total / (255 * factor) if factor != 1 / 255 else total)
    if bgr:  # the channels are reversed at the end, and with them what was done to each
        means.reverse()
        stds.reverse()
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2]), bgr


def _channel(values: Any, channel: int) -> float:
    return float(values if isinstance(values, (int, float)) else values[channel])


def _check_colours(processor: Any, preprocessing: Preprocessing, name: str) -> None:
    """Compares colours with those of the processor: another class may do something that the configuration does not tell."""
    height, width = preprocessing.size
    levels = torch.tensor([[0, 255, 31, 200], [0, 255, 87, 3], [0, 255, 190, 120]], dtype=torch.uint8)
    images = levels[:, :, None, None].expand(3, 4, height, width).transpose(0, 1)  # four images of one colour each
    ours = preprocessing.normalize(images.float())
    theirs = _prepared(processor, images, name, as_they_are=True)
    scale = max(1.0, float(theirs.abs().max()))
    if theirs.shape != ours.shape or float((theirs - ours).abs().max()) > 1e-3 * scale:
        raise TeacherError(
            f"{_of(processor, name)} must rescale, normalise and order the channels as "
            f"its configuration says, but the colour 31, 87, 190 becomes {_first(theirs)}, by its configuration "
            f"{_first(ours)}. {_SAVE_ANOTHER}"
        )


_SAVE_ANOTHER = "Save an image processor of image classifiers with the model."
_RAMP = 256
"""Side of the images by which a resize is measured, in pixels: one for each level."""


def _crop_of(processor: Any, preprocessing: Preprocessing, name: str) -> float | None:
    """Measures how the processor resizes and crops: classes differ in what they make of one and the same configuration.

    One image gets lighter downwards, another one to the right; how fast they do so in the output tells the size to which they
    were resized before the crop.
    """
    height, width = preprocessing.size
    aspect = 3 if width == 2 * height else 2  # another one than the model's
    down = torch.arange(_RAMP, dtype=torch.uint8)[:, None].expand(_RAMP, aspect * _RAMP)
    right = (
        torch.arange(aspect * _RAMP).div(aspect, rounding_mode="floor").to(torch.uint8).expand(_RAMP, aspect * _RAMP)
    )
    images = torch.stack([down, right])[:, None].expand(2, 3, _RAMP, aspect * _RAMP)
    prepared = _prepared(processor, images, name)
    if prepared.shape[-2:] != (height, width):
        is_cropped = getattr(processor, "do_center_crop", None) is not False
        advice = _SAVE_ANOTHER if is_cropped else "Set its `do_center_crop` to true, and its `crop_size`."
        raise TeacherError(
            f"{_of(processor, name)} must prepare images of {height} x {width} pixels, as its configuration says, but makes "
            f"{prepared.shape[-2]} x {prepared.shape[-1]} of one with {_RAMP} x {aspect * _RAMP}. {advice}"
        )
    black, white = preprocessing.normalize(torch.tensor([0.0, 255.0]).reshape(2, 1, 1, 1).expand(2, 3, 1, 1))
    levels = (prepared - black) / (white - black) * 255
    steps = _step(levels[0].mean((0, 2))), _step(levels[1].mean((0, 1)))
    if not 0 < min(steps) <= max(steps) <= _RAMP:
        raise TeacherError(
            f"{_of(processor, name)} must resize images, but what it makes of a ramp is none. {_SAVE_ANOTHER}"
        )
    resized_height, resized_width = (_RAMP / step for step in steps)
    said = processor.size.get("shortest_edge") or processor.size.get("height")
    kept = height / (said if said and _is_about(said, resized_height) else round(resized_height))
    is_squashed = abs(resized_width * height - resized_height * width) < 0.02 * resized_height * width
    if is_squashed and kept == 1:
        return None
    share = getattr(processor, "crop_pct", None)
    if share and _is_about(int(height / share), resized_height):
        return float(share)  # ConvNeXt's and PoolFormer's: exact at other sizes, too
    if kept > 1 and not getattr(processor, "do_center_crop", False):
        logger.warning("Images that are not square are padded by %s; here they are squashed.", _of(processor, name))
        return None
    return kept


def _is_about(side: int, measured: float) -> bool:
    """Whether a side in pixels can be the measured one: levels are whole numbers, so that a large side is measured by 1 %."""
    return abs(side - measured) < 0.5 + 0.01 * measured


def _step(levels: torch.Tensor) -> float:
    """Returns the mean step between neighbours in the middle half, which edges do not touch, by least squares."""
    middle = levels[len(levels) // 4 : -(len(levels) // 4) or None].double()
    places = torch.arange(len(middle), dtype=torch.float64)
    places -= places.mean()
    return float((places * middle).sum() / places.square().sum())


def _prepared(processor: Any, images_BCHW: torch.Tensor, name: str, *, as_they_are: bool = False) -> torch.Tensor:
    """Returns what the processor makes of uint8 RGB images, in float32; `as_they_are` leaves their size alone."""
    steps = {step: False for step in ("do_resize", "do_center_crop") if as_they_are and getattr(processor, step, None)}
    try:
        prepared = processor(
            [image.permute(1, 2, 0).contiguous().numpy() for image in images_BCHW],
            **steps,
            return_tensors="pt",
            input_data_format="channels_last",
        )["pixel_values"]
    except (TypeError, ValueError, LookupError, AttributeError, NameError, RuntimeError, ImportError) as error:
        raise TeacherError(
            f"{_of(processor, name)} must prepare RGB images, but: {error!s:.200}. {_SAVE_ANOTHER}"
        ) from error
    if not isinstance(prepared, torch.Tensor) or prepared.shape[:-2] != images_BCHW.shape[:-2]:
        found = tuple(prepared.shape) if isinstance(prepared, torch.Tensor) else type(prepared).__name__
        raise TeacherError(
            f"{_of(processor, name)} must prepare one RGB image as one of shape (3, height, width), but of "
            f"{len(images_BCHW)} images it makes {found}. {_SAVE_ANOTHER}"
        )
    return prepared.float()


def _of(processor: Any, name: str) -> str:
    return f"the image processor of {name!r} ({type(processor).__name__})"


def _first(pixels_BCHW: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in pixels_BCHW[2, :, 0, 0].tolist()]

"""The settings of detection and segmentation, which are read and explained without torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

from hf_dr.errors import ConfigError
from hf_dr.settings import FILES_FROM_HELP, MODEL_ARGS_HELP, JsonOrMapping, Real, Whole, check_settings, flag

BBOX_FORMATS = ("coco", "voc")
FILTERS = ("nearest", "bilinear", "bicubic")
STRIDES = (8, 16, 32)


@dataclass
class BackboneArguments:
    """Which student, and how it becomes a backbone."""

    student: str = flag(
        "Folder of a training, or Hub id of a classifier, of one of timm's architectures; timm:ARCHITECTURE for "
        "fresh weights."
    )
    model_args: JsonOrMapping = flag(MODEL_ARGS_HELP, default="{}")
    freeze_norm: bool = flag(
        "Keep the statistics, scale and offset of the student's batch normalisations as they are.", default=True
    )


@dataclass
class TransferSettings:
    """Learning rate in steps."""

    lr_milestones: list[float] = flag(
        "Shares of all steps, ascending. After a linear warm-up the rate is constant, and it is multiplied by "
        "--lr_decay at each of them, instead of following --lr_scheduler_type.",
        default=[],
    )
    lr_decay: float = flag(
        "Factor by which the rate changes at each of --lr_milestones.", default=0.1, type=Real(0, 1, above=True)
    )

    def __post_init__(self) -> None:
        if not self.lr_milestones and self.lr_decay != TransferSettings.lr_decay:
            raise ConfigError(
                f"`lr_decay` needs `lr_milestones`, at which the rate changes, got {self.lr_decay} alone. Give both, or none."
            )
        steps = [0.0, *self.lr_milestones, 1.0]
        if not all(low < high for low, high in itertools.pairwise(steps)):
            raise ConfigError(
                f"`lr_milestones` must be ascending shares between 0 and 1, got {', '.join(map(str, self.lr_milestones))}. "
                "Change them."
            )


@dataclass
class DataArguments:
    """Where the data of a task are: in two places on disk, which a task names, or in a dataset.

    Raises:
        ConfigError: The data are named in two ways, or not at all, or a setting is for data that are named otherwise.
    """

    PLACES: ClassVar[tuple[str, str]]
    """Names of the two settings for the places; those for evaluation begin with `eval_`."""
    OF_DATASET: ClassVar[tuple[str, ...]] = ("dataset_config", "revision", "files_from", "split", "image_column")
    """Names of the settings that only `dataset` heeds."""

    dataset: str | None = None  # a task's own field says what it must hold
    dataset_config: str | None = flag("Configuration of --dataset, where it has several.", default=None)
    revision: str | None = flag("Branch, tag or commit of --dataset on the Hub.", default=None)
    files_from: list[str] = flag(FILES_FROM_HELP, default=[])
    split: str = flag("Split of --dataset to train on.", default="train")
    eval_split: str | None = flag("Split of --dataset to evaluate on. Default: no evaluation.", default=None)
    image_column: str = flag("Column of --dataset that holds the images.", default="image")

    def __post_init__(self) -> None:
        check_settings(self)
        first, second = self.PLACES
        if (self.dataset is None) == (getattr(self, first) is None):
            raise ConfigError(
                f"exactly one of `{first}` and `dataset` must be given, got {getattr(self, first)} and {self.dataset}. Give "
                "one."
            )
        for name, other, instead in (
            (f"eval_{first}", "dataset", "eval_split"),
            ("eval_split", first, f"eval_{first}"),
        ):
            if getattr(self, name) is not None and getattr(self, other) is not None:
                raise ConfigError(f"`{name}` must not come with `{other}`, got both. Use `{instead}`.")
        for name in self.OF_DATASET if self.dataset is None else ():
            if getattr(self, name) not in (getattr(type(self), name, []), []):
                raise ConfigError(f"`{name}` is for `dataset`, got it with `{first}`. Leave it out.")
        for prefix in ("", "eval_"):
            if (getattr(self, prefix + first) is None) != (getattr(self, prefix + second) is None):
                raise ConfigError(
                    f"`{prefix}{first}` and `{prefix}{second}` must come together, got one of them. Give both."
                )


@dataclass
class DetectionArguments(DataArguments):
    """Which data a detector learns from, and how large its images are."""

    PLACES = ("annotations", "images")
    OF_DATASET = (*DataArguments.OF_DATASET, "objects_column", "bbox_format")

    annotations: str | None = flag("COCO's JSON of the training images, e.g. instances_train2017.json.", default=None)
    images: str | None = flag("Folder of the images of --annotations.", default=None)
    eval_annotations: str | None = flag("COCO's JSON of the images to evaluate on.", default=None)
    eval_images: str | None = flag("Folder of the images of --eval_annotations.", default=None)
    dataset: str | None = flag(
        "Instead of --annotations: Hub id, Parquet file or folder of a dataset with images and objects, each with "
        "bbox and category.",
        default=None,
    )
    objects_column: str = flag("Column of --dataset that holds the objects.", default="objects")
    bbox_format: str = flag(
        "How --dataset writes boxes, in pixels: `coco`: left, top, width, height; `voc`: left, top, right, bottom.",
        default="coco",
        choices=list(BBOX_FORMATS),
    )
    masks: bool | None = flag(
        "Whether to learn masks as well (Mask R-CNN) or boxes only (Faster R-CNN). Default: masks if the data "
        "have them.",
        default=None,
    )
    short_side: list[int] = flag(
        "Pixels of the shorter side of the resized images. Of several numbers each training image gets one at "
        "random, and evaluation takes the last. Default: 800.",
        default=[800],
        type=Whole(1),
    )
    long_side: int = flag(
        "Largest number of pixels of the longer side of the resized images.", default=1333, type=Whole(1)
    )
    flip: float = flag("Probability that a training image is mirrored.", default=0.5, type=Real(0, 1))
    fpn_channels: int = flag("Channels of the feature pyramid.", default=256, type=Whole(1))
    rois_per_image: int = flag(
        "Number of proposals of each image from which the heads learn.", default=512, type=Whole(1)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.short_side:
            raise ConfigError("`short_side` must be one or several numbers of pixels, got none. Leave it out.")


@dataclass
class SegmentationArguments(DataArguments):
    """Which data a segmenter learns from, and how large its images are."""

    PLACES = ("images", "masks")
    OF_DATASET = (*DataArguments.OF_DATASET, "mask_column")

    images: str | None = flag("Folder of the training images.", default=None)
    masks: str | None = flag(
        "Folder of their masks: PNG of the same names, whose grey levels or palette indices are labels.", default=None
    )
    eval_images: str | None = flag("Folder of the images to evaluate on.", default=None)
    eval_masks: str | None = flag("Folder of their masks.", default=None)
    dataset: str | None = flag(
        "Instead of --images: Hub id, Parquet file or folder of a dataset with images and masks.", default=None
    )
    mask_column: str | None = flag(
        "Column of --dataset that holds the masks. Default: the only other one that holds images.", default=None
    )
    class_names: list[str] = flag(
        "Names of the labels in their order. Their number is the number of classes.", default=[]
    )
    ignore_index: int = flag("Number that masks have where a pixel does not count.", default=255)
    reduce_labels: bool = flag(
        "Whether 0 in masks does not count either and label l is stored as l + 1, as in ADE20K.", default=False
    )
    crop_size: int = flag("Side in pixels of the training crops.", default=512, type=Whole(1))
    short_side: list[int] = flag(
        "Smallest and largest length in pixels to which the shorter side of a training image is scaled. Evaluation "
        "sees whole images at their own size. Default: 256 768.",
        default=[256, 768],
        type=Whole(1),
    )
    long_side: int = flag(
        "Largest length in pixels of the longer side of a scaled training image.", default=1024, type=Whole(1)
    )
    max_class_share: float = flag(
        "A crop in which one class fills more is drawn again, up to ten times.",
        default=0.75,
        type=Real(0, 1, above=True),
    )
    flip: float = flag("Probability that a crop is mirrored.", default=0.5, type=Real(0, 1))
    interpolation: str = flag("Filter of the scaled images.", default="bicubic", choices=list(FILTERS))
    output_stride: int = flag(
        "Side in pixels of what one of the last features stands for, by dilation. Architectures that cannot be "
        "dilated keep their own, and the log says so.",
        default=8,
        choices=list(STRIDES),
    )
    head_channels: int = flag("Channels of the head.", default=512, type=Whole(1))
    dropout: float = flag("Probability of dropout in the head.", default=0.1, type=Real(0, 1, below=True))
    aux_weight: float = flag(
        "Weight of the loss of a plain head on the stage before the last; 0 for none.", default=0.4, type=Real(0)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.short_side) != 2 or self.short_side[0] > self.short_side[1]:
            found = ", ".join(map(str, self.short_side)) or "none"
            raise ConfigError(f"`short_side` must be two numbers, the smaller one first, got {found}. Give both.")

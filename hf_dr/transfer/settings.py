"""The settings of detection and segmentation, which are read and explained without torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import ClassVar

from hf_dr.errors import ConfigError
from hf_dr.settings import FILES_FROM_HELP, JsonOrMapping, Real, Whole, check_settings

BBOX_FORMATS = ("coco", "voc")
FILTERS = ("nearest", "bilinear", "bicubic")
STRIDES = (8, 16, 32)


@dataclass
class BackboneArguments:
    """Which student, and how it becomes a backbone."""

    student: str = field(
        metadata={
            "help": "Folder of a training, or Hub id of a classifier, of one of timm's architectures; timm:ARCHITECTURE for "
            "fresh weights."
        }
    )
    model_args: JsonOrMapping = field(
        default="{}", metadata={"help": "For timm: JSON with arguments of timm.create_model."}
    )
    freeze_norm: bool = field(
        default=True,
        metadata={"help": "Keep the statistics, scale and offset of the student's batch normalisations as they are."},
    )


@dataclass
class TransferSettings:
    """Learning rate in steps."""

    lr_milestones: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Shares of all steps, ascending. After a linear warm-up the rate is constant, and it is multiplied by "
            "--lr_decay at each of them, instead of following --lr_scheduler_type."
        },
    )
    lr_decay: float = field(
        default=0.1,
        metadata={
            "help": "Factor by which the rate changes at each of --lr_milestones.",
            "type": Real(0, 1, above=True),
        },
    )

    def __post_init__(self) -> None:
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
        ConfigError: The data are named in two ways, or not at all.
    """

    PLACES: ClassVar[tuple[str, str]]
    """Names of the two settings for the places; those for evaluation begin with `eval_`."""

    dataset: str | None = None  # a task's own field says what it must hold
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of --dataset, where it has several."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of --dataset on the Hub."})
    files_from: list[str] = field(default_factory=list, metadata={"help": FILES_FROM_HELP})
    split: str = field(default="train", metadata={"help": "Split of --dataset to train on."})
    eval_split: str | None = field(
        default=None, metadata={"help": "Split of --dataset to evaluate on. Default: no evaluation."}
    )
    image_column: str = field(default="image", metadata={"help": "Column of --dataset that holds the images."})

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
        for prefix in ("", "eval_"):
            if (getattr(self, prefix + first) is None) != (getattr(self, prefix + second) is None):
                raise ConfigError(
                    f"`{prefix}{first}` and `{prefix}{second}` must come together, got one of them. Give both."
                )


@dataclass
class DetectionArguments(DataArguments):
    """On which data, and how large."""

    PLACES = ("annotations", "images")

    annotations: str | None = field(
        default=None, metadata={"help": "COCO's JSON of the training images, e.g. instances_train2017.json."}
    )
    images: str | None = field(default=None, metadata={"help": "Folder of the images of --annotations."})
    eval_annotations: str | None = field(default=None, metadata={"help": "COCO's JSON of the images to evaluate on."})
    eval_images: str | None = field(default=None, metadata={"help": "Folder of the images of --eval_annotations."})
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Instead of --annotations: Hub id, Parquet file or folder of a dataset with images and objects, each with "
            "bbox and category."
        },
    )
    objects_column: str = field(default="objects", metadata={"help": "Column of --dataset that holds the objects."})
    bbox_format: str = field(
        default="coco",
        metadata={
            "help": "How --dataset writes boxes, in pixels: `coco`: left, top, width, height; `voc`: left, top, right, bottom.",
            "choices": list(BBOX_FORMATS),
        },
    )
    masks: bool | None = field(
        default=None,
        metadata={
            "help": "Whether to learn masks as well (Mask R-CNN) or boxes only (Faster R-CNN). Default: masks if the data "
            "have them."
        },
    )
    short_side: list[int] = field(
        default_factory=lambda: [800],
        metadata={
            "help": "Pixels of the shorter side of the resized images. Of several numbers each training image gets one at "
            "random, and evaluation takes the last. Default: 800.",
            "type": Whole(1),
        },
    )
    long_side: int = field(
        default=1333,
        metadata={"help": "Largest number of pixels of the longer side of the resized images.", "type": Whole(1)},
    )
    flip: float = field(
        default=0.5, metadata={"help": "Probability that a training image is mirrored.", "type": Real(0, 1)}
    )
    fpn_channels: int = field(default=256, metadata={"help": "Channels of the feature pyramid.", "type": Whole(1)})
    rois_per_image: int = field(
        default=512,
        metadata={"help": "Number of proposals of each image from which the heads learn.", "type": Whole(1)},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.short_side:
            raise ConfigError("`short_side` must be one or several numbers of pixels, got none. Leave it out.")


@dataclass
class SegmentationArguments(DataArguments):
    """On which data, and how large."""

    PLACES = ("images", "masks")

    images: str | None = field(default=None, metadata={"help": "Folder of the training images."})
    masks: str | None = field(
        default=None,
        metadata={
            "help": "Folder of their masks: PNG of the same names, whose grey levels or palette indices are labels."
        },
    )
    eval_images: str | None = field(default=None, metadata={"help": "Folder of the images to evaluate on."})
    eval_masks: str | None = field(default=None, metadata={"help": "Folder of their masks."})
    dataset: str | None = field(
        default=None,
        metadata={"help": "Instead of --images: Hub id, Parquet file or folder of a dataset with images and masks."},
    )
    mask_column: str | None = field(
        default=None,
        metadata={"help": "Column of --dataset that holds the masks. Default: the only other one that holds images."},
    )
    class_names: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of the labels in their order. Their number is the number of classes."},
    )
    ignore_index: int = field(default=255, metadata={"help": "Number that masks have where a pixel does not count."})
    reduce_labels: bool = field(
        default=False,
        metadata={"help": "Whether 0 in masks does not count either and label l is stored as l + 1, as in ADE20K."},
    )
    crop_size: int = field(default=512, metadata={"help": "Side in pixels of the training crops.", "type": Whole(1)})
    short_side: list[int] = field(
        default_factory=lambda: [256, 768],
        metadata={
            "help": "Smallest and largest length in pixels to which the shorter side of a training image is scaled. Evaluation "
            "sees whole images at their own size. Default: 256 768.",
            "type": Whole(1),
        },
    )
    long_side: int = field(
        default=1024,
        metadata={"help": "Largest length in pixels of the longer side of a scaled training image.", "type": Whole(1)},
    )
    max_class_share: float = field(
        default=0.75,
        metadata={
            "help": "A crop of which one class fills more is drawn again, up to ten times.",
            "type": Real(0, 1, above=True),
        },
    )
    flip: float = field(default=0.5, metadata={"help": "Probability that a crop is mirrored.", "type": Real(0, 1)})
    interpolation: str = field(
        default="bicubic", metadata={"help": "Filter of the scaled images.", "choices": list(FILTERS)}
    )
    output_stride: int = field(
        default=8,
        metadata={
            "help": "Side in pixels of what one of the last features stands for, by dilation. Architectures that cannot be "
            "dilated keep their own, and the log says so.",
            "choices": list(STRIDES),
        },
    )
    head_channels: int = field(default=512, metadata={"help": "Channels of the head.", "type": Whole(1)})
    dropout: float = field(
        default=0.1, metadata={"help": "Probability of dropout in the head.", "type": Real(0, 1, below=True)}
    )
    aux_weight: float = field(
        default=0.4,
        metadata={
            "help": "Weight of the loss of a plain head on the stage before the last; 0 for none.",
            "type": Real(0),
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.short_side) != 2 or self.short_side[0] > self.short_side[1]:
            found = ", ".join(map(str, self.short_side)) or "none"
            raise ConfigError(f"`short_side` must be two numbers, the smaller one first, got {found}. Give both.")

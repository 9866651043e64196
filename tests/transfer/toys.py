"""Coloured rectangles, which tiny networks learn in seconds: images with objects in COCO's format, and images with masks."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
from conftest import as_cell

from hf_dr.evaluation.config import as_arguments
from hf_dr.transfer.detection_data import DetectionData
from hf_dr.transfer.segmentation_data import Classes, SegmentationData

SIDE = 64
CATEGORY_COLOURS = {3: (230, 30, 30), 7: (30, 60, 240)}  # by the id of a category
CATEGORY_NAMES = {3: "red", 7: "blue"}

CLASS_COLOURS = {1: (120, 120, 120), 2: (230, 30, 30), 3: (30, 60, 230)}  # by the number in a mask; 0 is no class
CLASSES = Classes(["grey", "red", "blue"], reduce_labels=True)


def write_coco(folder: Path, count: int = 6) -> dict[str, Any]:
    """Writes images with a red rectangle on the left and a blue one on the right, and their annotations."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for n in range(count):
        pixels = 110 + rng.integers(0, 30, (SIDE, SIDE, 3), dtype=np.uint8)
        for half, (category, colour) in enumerate(CATEGORY_COLOURS.items()):
            width, height = (int(side) for side in rng.integers(14, 28, 2))
            left = half * SIDE // 2 + int(rng.integers(SIDE // 2 - width))
            top = int(rng.integers(SIDE - height))
            right, bottom = left + width, top + height
            pixels[top:bottom, left:right] = colour
            annotations.append(
                {"id": len(annotations) + 1, "image_id": 10 + n, "category_id": category, "iscrowd": 0,
                 "bbox": [left, top, width, height], "area": width * height,
                 "segmentation": [[left, top, right, top, right, bottom, left, bottom]]}
            )  # fmt: skip
        PIL.Image.fromarray(pixels).save(folder / "images" / f"{n}.png")
        images.append({"id": 10 + n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE})
    categories = [{"id": category, "name": CATEGORY_NAMES[category]} for category in (7, 3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))
    return content


def read_coco(folder: Path) -> DetectionData:
    return DetectionData.from_coco(folder / "a.json", folder / "images")


def objects_dataset(boxes: list[Any], categories: list[Any], nested: bool = False, **columns: Any) -> datasets.Dataset:
    """A dataset of the Hub's form: lists of each field, or a list of objects."""
    rng = np.random.default_rng(0)
    images = [as_cell(PIL.Image.fromarray(rng.integers(256, size=(30, 40, 3), dtype=np.uint8))) for _ in boxes]
    box, category = datasets.List(datasets.Value("float32"), length=4), datasets.ClassLabel(names=["a", "b"])
    if nested:
        kind = datasets.List({"bbox": box, "category": category})
        cells = [
            [{"bbox": b, "category": c} for b, c in zip(*row, strict=True)]
            for row in zip(boxes, categories, strict=True)
        ]
    else:
        kind = {"bbox": datasets.List(box), "category": datasets.List(category)}
        cells = [{"bbox": b, "category": c} for b, c in zip(boxes, categories, strict=True)]
    features = {"image": datasets.Image(), "objects": kind, **{name: datasets.Value("int32") for name in columns}}
    return datasets.Dataset.from_dict({"image": images, "objects": cells, **columns}, datasets.Features(features))


def rectangles(rng: np.random.Generator, size: tuple[int, int]) -> tuple[PIL.Image.Image, PIL.Image.Image]:
    """A grey image with a red and a blue rectangle in a frame that is no class, and its mask."""
    mask = np.ones(size, np.uint8)
    for number in (2, 3):
        height, width = rng.integers(12, 30, 2)
        top = rng.integers(size[0] - height)
        left = rng.integers(size[1] - width)
        mask[top : top + height, left : left + width] = number
    colours = np.zeros((4, 3), np.uint8)
    colours[1:] = list(CLASS_COLOURS.values())
    pixels = colours[mask] + rng.integers(0, 20, (*size, 3), dtype=np.uint8)
    mask[0] = 0
    mask[:, 0] = 0
    return PIL.Image.fromarray(pixels), PIL.Image.fromarray(mask)


def write_masks(folder: Path) -> None:
    """Writes six images of two sizes, and their masks."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for n in range(6):
        image, mask = rectangles(rng, (48, 64) if n % 2 else (53, 41))
        image.save(folder / "images" / f"{n}.png")
        mask.save(folder / "masks" / f"{n}.png")


def read_masks(folder: Path) -> SegmentationData:
    return SegmentationData.from_folders(folder / "images", folder / "masks", CLASSES)


_TRAINING = {
    "student": "timm:test_resnet", "freeze_norm": False, "optim": "adamw_torch", "learning_rate": 3e-3, "warmup_steps": 5,
    "report_to": "none", "disable_tqdm": True, "per_device_eval_batch_size": 4,
}  # fmt: skip


def detection_flags(folder: Path, out: Path, **more: Any) -> list[str]:
    """Flags of `hf-dr detect` on what `write_coco` wrote; those of the data are left out where `more` names a dataset."""
    files = {
        "annotations": folder / "a.json", "images": folder / "images",
        "eval_annotations": folder / "a.json", "eval_images": folder / "images",
    }  # fmt: skip
    settings = {
        "output_dir": out, "short_side": SIDE, "long_side": SIDE, "fpn_channels": 32, "rois_per_image": 32, "max_steps": 40,
        "save_steps": 20, "per_device_train_batch_size": 4, **_TRAINING, **more,
    }  # fmt: skip
    return as_arguments(settings if "dataset" in more else {**files, **settings})


def segmentation_flags(folder: Path, out: Path, **more: Any) -> list[str]:
    """Flags of `hf-dr segment` on what `write_masks` wrote; those of the data are left out where `more` names a dataset."""
    files = {name: folder / name.removeprefix("eval_") for name in ("images", "masks", "eval_images", "eval_masks")}
    settings = {
        "output_dir": out, "reduce_labels": True, "class_names": CLASSES.names, "crop_size": 32, "short_side": [32, 64],
        "long_side": 80, "head_channels": 16, "dropout": 0.1, "max_steps": 100, "save_steps": 50,
        "per_device_train_batch_size": 3, **_TRAINING, **more,
    }  # fmt: skip
    return as_arguments(settings if "dataset" in more else {**files, **settings})

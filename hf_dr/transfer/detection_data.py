"""Images with objects: reading COCO's files and datasets of the Hub, augmenting them, and measuring COCO's metrics."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from accelerate.utils import gather_object
from torch import nn

from hf_dr.errors import ConfigError, DataError, did_you_mean
from hf_dr.store.base_dataset import undecoded_images
from hf_dr.views.images import as_tensor, decode_row
from hf_dr.views.rng import view_rng

# Pixels: a box that is thinner inside its image is nothing to learn from.
_THINNEST = 0.5


# The metrics of COCO's evaluation, in its order.
_STATS = (
    "map", "map_50", "map_75", "map_small", "map_medium", "map_large",
    "mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large",
)  # fmt: skip


@dataclass(frozen=True)
class Objects:
    """What is in one image.

    Attributes:
        boxes: (N, 4) float64: left, top, right, bottom in pixels, as annotated; they may reach out of the image.
        labels: (N,) int64, numbers of categories counted from 0, in the order of their ids.
        crowd: (N,) bool, whether it is many that were not told apart: not learnt, and no false alarm to find.
        areas: (N,) float64, square pixels.
        segmentations: COCO's, polygons or run lengths of each; None where there are none.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    segmentations: list[Any] | None = None


@dataclass(frozen=True)
class DetectionData:
    """Images with objects.

    Attributes:
        described: What names it, for results.
        categories: Id -> name, by ascending id; labels are their places.
        objects: Of each image.
        cells: Of each image, for `decode_image`.
        sizes: (rows, 2), height and width of the images; None where that is not told.
    """

    described: dict[str, Any]
    categories: dict[int, str]
    objects: list[Objects]
    cells: Sequence[Any]
    sizes: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not any(len(each.labels) for each in self.objects):
            raise DataError(f"{self.described['id']} must have objects, found none in {len(self.objects)} images.")

    @property
    def has_masks(self) -> bool:
        """Whether every object has a segmentation."""
        return all(each.segmentations is not None and all(each.segmentations) for each in self.objects)

    @classmethod
    def from_coco(cls, annotations: str | Path, images: str | Path) -> DetectionData:
        """Reads annotations in COCO's format.

        Args:
            annotations: JSON with `images`, `annotations` and `categories`.
            images: Folder of the images.

        Raises:
            DataError: A file is missing or malformed.
        """
        path, folder = Path(annotations).expanduser(), Path(images).expanduser()
        if not folder.is_dir():
            raise DataError(f"`images` must be a folder, found none at {folder}. Check the path.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path} must be annotations in COCO's JSON, but: {error}. Check the file.") from error
        try:
            categories = {int(each["id"]): str(each["name"]) for each in content["categories"]}
            categories = dict(sorted(categories.items()))
            number = {category: label for label, category in enumerate(categories)}
            images_by_id = {each["id"]: each for each in content["images"]}
            cells = [{"path": str(folder / each["file_name"])} for each in images_by_id.values()]
            sizes = np.array([(each["height"], each["width"]) for each in images_by_id.values()], np.int64)
            of_image: dict[Any, list[dict[str, Any]]] = {image: [] for image in images_by_id}
            for each in content["annotations"]:
                of_image[each["image_id"]].append(each)
            objects = [_coco_objects(each, number) for each in of_image.values()]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} must have `images`, `annotations` and `categories` that fit each other, but: "
                f"{type(error).__name__}: {error}. Mend it."
            ) from error
        return cls({"id": path.name}, categories, objects, cells, sizes)

    @classmethod
    def from_dataset(
        cls,
        dataset: datasets.Dataset,
        described: dict[str, Any],
        *,
        bbox_format: str = "coco",
        image_column: str = "image",
        objects_column: str = "objects",
    ) -> DetectionData:
        """Reads a dataset with a column of images and one of objects: `bbox` and `category` of each, and `area` if it is told.

        Args:
            dataset: What is read.
            described: What names it.
            bbox_format: `coco`: left, top, width, height; `voc`: left, top, right, bottom; both in pixels.
            image_column: Column of the images.
            objects_column: Column of the objects.

        Raises:
            DataError: A column is missing or malformed, or the boxes are of another format.
        """
        for name in (image_column, objects_column):
            if name not in dataset.column_names:
                raise DataError(f"the dataset must have the column `{name}`.{did_you_mean(name, dataset.column_names)}")
        kind = dataset.features[objects_column]
        fields = kind if isinstance(kind, dict) else getattr(kind, "feature", None)
        if not isinstance(fields, dict) or not {"bbox", "category"} <= fields.keys():
            raise DataError(f"`{objects_column}` must hold `bbox` and `category` of each object, found {kind!s:.200}.")
        category = getattr(fields["category"], "feature", fields["category"])
        if not isinstance(category, datasets.ClassLabel):
            raise DataError(
                f"`category` in `{objects_column}` must be a ClassLabel with names, found {category!s:.80}. Cast it."
            )
        lists = dataset.select_columns([objects_column]).with_format(None)[:][objects_column]
        if not isinstance(kind, dict):
            lists = [{key: [each[key] for each in cell] for key in fields} for cell in lists]
        objects = [_hub_objects(cell, row, bbox_format, category.num_classes) for row, cell in enumerate(lists)]
        sizes = None
        if {"width", "height"} <= set(dataset.column_names):
            told = dataset.select_columns(["height", "width"]).with_format(None)[:]
            sizes = np.stack([told["height"], told["width"]], axis=1)
            _check_inside(objects, sizes, bbox_format)
        cells: Any = undecoded_images(dataset, image_column)[image_column]  # read when asked for
        return cls(described, dict(enumerate(category.names)), objects, cells, sizes)


def _coco_objects(annotations: Sequence[dict[str, Any]], number: dict[int, int]) -> Objects:
    boxes = np.array([each["bbox"] for each in annotations], np.float64).reshape(-1, 4)
    if not np.isfinite(boxes).all():
        raise ValueError(f"a box of image {annotations[0]['image_id']} is not finite")
    boxes[:, 2:] += boxes[:, :2]
    return Objects(
        boxes,
        np.array([number[each["category_id"]] for each in annotations], np.int64),
        np.array([bool(each.get("iscrowd", 0)) for each in annotations], bool),
        np.array([each.get("area", each["bbox"][2] * each["bbox"][3]) for each in annotations], np.float64),
        [each.get("segmentation") for each in annotations],
    )


def _hub_objects(cell: dict[str, list[Any]], row: int, bbox_format: str, num_classes: int) -> Objects:
    try:
        boxes = np.array(cell["bbox"], np.float64).reshape(len(cell["category"]), 4)
        labels = np.array(cell["category"], np.int64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise DataError(f"each object of row {row} must have a box of four numbers and a category: {error}.") from error
    if not np.isfinite(boxes).all() or ((labels < 0) | (labels >= num_classes)).any():
        raise DataError(
            f"the objects of row {row} must have finite boxes and categories below {num_classes}, found {boxes.tolist()!s:.80} "
            f"and {labels.tolist()!s:.80}."
        )
    if bbox_format == "voc" and (boxes[:, 2:] < boxes[:, :2]).any():
        raise DataError(
            f"a box must be left, top, right, bottom with `bbox_format` voc, but row {row} has one that ends before it begins. "
            "Set it to coco."
        )
    if bbox_format == "coco":
        boxes[:, 2:] += boxes[:, :2]
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return Objects(boxes, labels, np.zeros(len(labels), bool), np.array(cell.get("area", areas), np.float64))


def _check_inside(objects: Sequence[Objects], sizes: np.ndarray, bbox_format: str) -> None:
    """Refuses boxes of which most reach out of their images: they are of another format."""
    ends = np.concatenate([each.boxes[:, 2:] for each in objects])
    limits = np.repeat(sizes[:, ::-1], [len(each.labels) for each in objects], axis=0)
    outside = (ends > limits + 1).any(axis=1)
    if outside.size and outside.mean() > 0.5:
        raise DataError(
            f"boxes must lie in their images, but with `bbox_format` {bbox_format} {outside.mean():.0%} reach out of them. Set "
            f"it to {next(other for other in BBOX_FORMATS if other != bbox_format)}."
        )


class DetectionImages(torch.utils.data.Dataset):
    """Examples for `Detector`: uint8 `image` (3, H, W) and `target`.

    A target has `image_id`, the row, and for training `boxes` (N, 4) float32 in the image, `labels` (N,) from 1 on, and `masks`
    (N, H, W) uint8 where they are asked for.

    Args:
        data: Images with objects.
        train: Whether to learn from it: images without objects that can be learnt are left out, and each is mirrored with
            probability `flip`, as (seed, row, epoch) tells.
        masks: Whether targets have masks.
        flip: Probability.
        seed: Of the flips.
    """

    def __init__(
        self, data: DetectionData, *, train: bool, masks: bool = False, flip: float = 0.0, seed: int = 0
    ) -> None:
        self.data, self.train, self._masks, self._flip, self._seed = data, train, masks, flip, seed
        self.rows = list(range(len(data.objects)))
        if train:
            self.rows = [row for row in self.rows if _learnable(data.objects[row], _size(data, row)).any()]
            if not self.rows:
                raise DataError(
                    f"{data.described['id']} must have objects that are no crowd, with a width and a height."
                )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        place, epoch = index if isinstance(index, tuple) else (index, 0)
        row = self.rows[place]
        image = decode_row(self.data.cells[row], f"row {row}", "Mend it, or check where the images are.")
        size, told = (image.height, image.width), _size(self.data, row)
        if told is not None and size != told:
            raise DataError(
                f"the image of row {row} must be {told[1]}x{told[0]}, as its annotations say, found {size[1]}x{size[0]}. If "
                "its EXIF orientation turns it, save it without."
            )
        target: dict[str, torch.Tensor] = {"image_id": torch.tensor(row)}
        if self.train:
            flipped = view_rng(self._seed, row, epoch).random() < self._flip
            target.update(self._target(self.data.objects[row], size, flipped))
            if flipped:
                image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        return {"image": as_tensor(image), "target": target}

    def _target(self, objects: Objects, size: tuple[int, int], flipped: bool) -> dict[str, torch.Tensor]:
        kept = _learnable(objects, size)
        boxes = _clip(objects.boxes[kept], size)
        if flipped:
            boxes[:, [0, 2]] = size[1] - boxes[:, [2, 0]]
        target = {
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            "labels": torch.from_numpy(objects.labels[kept] + 1),
        }
        if self._masks:
            assert objects.segmentations is not None
            masks = np.zeros((len(boxes), *size), np.uint8)
            for mask, index in zip(masks, np.flatnonzero(kept), strict=True):
                mask[:] = decode_mask(objects.segmentations[index], size)
            target["masks"] = torch.from_numpy(masks[..., ::-1].copy() if flipped else masks)
        return target


def _size(data: DetectionData, row: int) -> tuple[int, int] | None:
    return None if data.sizes is None else (int(data.sizes[row, 0]), int(data.sizes[row, 1]))


def _clip(boxes: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    limits = (np.inf, np.inf) if size is None else size
    return np.clip(boxes, 0, [limits[1], limits[0]] * 2)


def _learnable(objects: Objects, size: tuple[int, int] | None) -> np.ndarray:
    boxes = _clip(objects.boxes, size)
    return ~objects.crowd & ((boxes[:, 2:] - boxes[:, :2]) >= _THINNEST).all(axis=1)


def decode_mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Turns a segmentation of COCO, polygons or run lengths, into a mask (H, W) of 0 and 1, uint8.

    Raises:
        DataError: It is neither.
    """
    mask = coco_library("mask")
    try:
        runs = mask.frPyObjects(segmentation, *size) if _is_raw(segmentation) else segmentation
        return mask.decode(mask.merge(runs) if isinstance(runs, list) else runs)
    except Exception as error:  # pycocotools raises just that
        raise DataError(
            f"a segmentation must be polygons or run lengths, as COCO has them, found {segmentation!r:.80}."
        ) from error


def _is_raw(segmentation: Any) -> bool:
    """Whether it is polygons, or run lengths that are not compressed."""
    return isinstance(segmentation, list) or isinstance(segmentation.get("counts"), list)


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Makes a batch: `images` and `targets` are lists, for images differ in size."""
    return {"images": [each["image"] for each in examples], "targets": [each["target"] for each in examples]}


def coco_library(module: str) -> Any:
    """Imports a module of pycocotools.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import pycocotools.coco
        import pycocotools.cocoeval
        import pycocotools.mask
    except ImportError as error:
        raise ConfigError(
            "detection needs the package pycocotools, which is not installed: pip install 'hf-dr[transfer]'."
        ) from error
    return {"coco": pycocotools.coco, "cocoeval": pycocotools.cocoeval, "mask": pycocotools.mask}[module]


class CocoMeter:
    """COCO's mean average precision of boxes and masks, by pycocotools, over the images of all processes.

    Args:
        data: What is evaluated on.
        masks: Whether masks are measured, too.
    """

    def __init__(self, data: DetectionData, masks: bool) -> None:
        self._data, self._masks, self._found = data, masks, dict[int, list[dict[str, Any]]]()

    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        """Keeps what a model finds in a batch."""
        for answer, target in zip(model(**batch), batch["targets"], strict=True):
            row = int(target["image_id"])
            self._found[row] = as_coco(answer, row, list(self._data.categories), self._masks)

    def compute(self) -> dict[str, float]:
        """Returns `box_map`, `box_map_50`, ..., and `mask_map`, ..., of 0 to 1; sizes that no object has are left out."""
        found: dict[int, list[dict[str, Any]]] = {}
        for part in gather_object([self._found]):
            found.update(part)
        return evaluate_coco(self._data, found, self._masks)


def as_coco(
    answer: dict[str, torch.Tensor], row: int, category_ids: Sequence[int], masks: bool
) -> list[dict[str, Any]]:
    """Writes a detector's answer to one image as COCO's results; `category_ids[label - 1]` is an object's category."""
    boxes = answer["boxes"].double().cpu().numpy()
    results = [
        {
            "image_id": row,
            "category_id": category_ids[int(label) - 1],
            "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
            "score": float(score),
        }
        for box, label, score in zip(boxes, answer["labels"], answer["scores"], strict=True)
    ]
    if masks:
        encode = coco_library("mask").encode
        for result, mask_1HW in zip(results, answer["masks"], strict=True):
            result["segmentation"] = encode(np.asfortranarray((mask_1HW[0] > 0.5).cpu().numpy().astype(np.uint8)))
    return results


def evaluate_coco(data: DetectionData, found: dict[int, list[dict[str, Any]]], masks: bool) -> dict[str, float]:
    """Compares what was found in each evaluated image (row -> COCO's results) with what is there."""
    rows, number, annotations = sorted(found), 0, []
    ids = list(data.categories)
    for row in rows:
        objects = data.objects[row]
        for n, label in enumerate(objects.labels):
            number += 1  # COCO's evaluation takes 0 for none
            left, top, right, bottom = objects.boxes[n].tolist()
            annotations.append(
                {
                    "id": number,
                    "image_id": row,
                    "category_id": ids[label],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": float(objects.areas[n]),
                    "iscrowd": int(objects.crowd[n]),
                    **({"segmentation": objects.segmentations[n]} if masks and objects.segmentations else {}),
                }
            )
    sizes = {row: _size(data, row) or (0, 0) for row in rows}
    truth = {
        "images": [{"id": row, "height": height, "width": width} for row, (height, width) in sizes.items()],
        "annotations": annotations,
        "categories": [{"id": category, "name": name} for category, name in data.categories.items()],
    }
    results = [result for row in rows for result in found[row]]
    return {
        f"{prefix}_{name}": value
        for prefix, kind in (("box", "bbox"), ("mask", "segm"))[: 2 if masks else 1]
        for name, value in _summary(truth, results, kind).items()
    }


def _summary(truth: dict[str, Any], results: Sequence[dict[str, Any]], kind: str) -> dict[str, float]:
    coco = coco_library("coco").COCO()
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        coco.dataset = truth
        coco.createIndex()
        if not results:
            return {"map": 0.0, "map_50": 0.0, "map_75": 0.0}
        other = {"bbox": "segmentation", "segm": "bbox"}[kind]  # a result that has both counts as a box
        kept = [{key: value for key, value in each.items() if key != other} for each in results]
        evaluation = coco_library("cocoeval").COCOeval(coco, coco.loadRes(kept), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(_STATS, evaluation.stats, strict=True) if value >= 0}


BBOX_FORMATS = ("coco", "voc")

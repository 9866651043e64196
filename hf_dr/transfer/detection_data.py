"""Images with objects: reading COCO's files and datasets of the Hub, and mirroring them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from hf_dr.errors import DataError
from hf_dr.files import expanded
from hf_dr.store.base_dataset import content_hash, require_columns, undecoded_images
from hf_dr.transfer.coco_masks import check_segmentation, decode_mask
from hf_dr.transfer.files import digest_of
from hf_dr.transfer.settings import BBOX_FORMATS
from hf_dr.views.images import as_tensor, decode_row, stored_size
from hf_dr.views.rng import view_rng

# Pixels: a box with a shorter side inside its image shows too little to learn from.
_MIN_BOX_SIDE = 0.5

_SHOWN_IDS = 20  # in an error


# ---------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Objects:
    """What is in one image.

    Attributes:
        boxes: (N, 4) float64: left, top, right, bottom in pixels, as annotated; they may reach out of the image.
        labels: (N,) int64, numbers of categories counted from 0, in the order of their ids.
        crowd: (N,) bool, whether it stands for a whole crowd: it is not learned, and what is found in it is not wrong.
        areas: (N,) float64, square pixels.
        segmentations: COCO's, polygons or run lengths of each: None for an object without, an empty list for one with nothing
            but polygons of fewer than three points.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    segmentations: list[Any]

    @property
    def segmented(self) -> np.ndarray:
        """(N,) bool, whether it has a segmentation of some area."""
        return np.array(list(map(bool, self.segmentations)), bool)


@dataclass(frozen=True)
class DetectionData:
    """Images with objects.

    Attributes:
        described: What names it, for results.
        categories: Id -> name, by ascending id; labels are their places.
        objects: The objects of each image.
        cells: The cell of each image, for `decode_row`.
        sizes: (rows, 2), height and width of the images; None where the data do not have them.
    """

    described: dict[str, Any]
    categories: dict[int, str]
    objects: list[Objects]
    cells: Sequence[Any]
    sizes: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not any(len(each.labels) for each in self.objects):
            raise DataError(
                f"{self.described['id']} must have objects, found none in {len(self.objects)} images. Choose other data."
            )

    def check_masks(self) -> None:
        """Checks the segmentations of all objects, before masks are learned or measured.

        Raises:
            DataError: One is none, or for an image of another size.
        """
        for row, each in enumerate(self.objects):
            size = self.size(row)
            for segmentation in filter(None, each.segmentations):
                assert size is not None, "COCO's files have sizes and segmentations"
                check_segmentation(
                    segmentation, size, f", image {row} (of {len(self.objects)}) in {self.described['id']}"
                )

    def size(self, row: int) -> tuple[int, int] | None:
        """Returns height and width of an image, None where the data do not have them."""
        return None if self.sizes is None else (int(self.sizes[row, 0]), int(self.sizes[row, 1]))

    @classmethod
    def from_coco(cls, annotations: str | Path, images: str | Path) -> DetectionData:
        """Reads COCO's JSON, with `images`, `annotations` and `categories`, and finds the images in a folder.

        A DataError if a file is missing or malformed.
        """
        path = expanded(annotations)
        folder = expanded(images)
        if not folder.is_dir():
            raise DataError(f"`images` must be a folder, found none at {folder}. Check the path.")
        try:
            data = path.read_bytes()
            content = json.loads(data)
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path} must be annotations in COCO's JSON, but: {error}. Check the file.") from error
        try:
            for kind in ("categories", "images"):
                _check_ids(content[kind], kind)
            categories = dict(sorted((int(each["id"]), str(each["name"])) for each in content["categories"]))
            label_of = {category: label for label, category in enumerate(categories)}
            images_by_id = {each["id"]: each for each in content["images"]}
            annotations_of: dict[Any, list[dict[str, Any]]] = {image: [] for image in images_by_id}
            for each in content["annotations"]:
                annotations_of[_known(each, "image_id", images_by_id)].append(each)
            objects = [_coco_objects(each, label_of, images_by_id[image]) for image, each in annotations_of.items()]
            files = [folder / _inside(each["file_name"]) for each in images_by_id.values()]
            sizes = np.array([(each["height"], each["width"]) for each in images_by_id.values()], np.int64)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else error
            raise DataError(
                f"{path} must have `images`, `annotations` and `categories` that fit each other, but: {problem}. Fix the file."
            ) from error
        missing = _missing(files)
        if missing:
            raise DataError(
                f"`images` must be the folder of all {len(files)} images of {path.name}, but {len(missing)} are not there, "
                f"such as {missing[0]}. Check the folder, or fetch what is missing."
            )
        _check_boxes(objects, sizes, "COCO's JSON has left, top, width and height: correct `bbox`")
        digest = hashlib.sha256(data + digest_of(files).encode()).hexdigest()
        described = {"id": path.name, "digest": digest}
        return cls(described, categories, objects, [{"path": str(file)} for file in files], sizes)

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
        """Reads a dataset with a column of images and one of objects: `bbox` and `category` of each, and `area` if it is there.

        `described` is what names it. Boxes are left, top, width, height (`coco`) or left, top, right, bottom (`voc`) in pixels.
        """
        require_columns([image_column, objects_column], dataset.column_names)
        kind = dataset.features[objects_column]
        fields = kind if isinstance(kind, dict) else getattr(kind, "feature", None)
        if not isinstance(fields, dict) or not {"bbox", "category"} <= fields.keys():
            raise DataError(
                f"`{objects_column}` must hold `bbox` and `category` of each object, found {kind!s:.200}. Name another "
                "`objects_column`, or rename its fields."
            )
        category = getattr(fields["category"], "feature", fields["category"])
        if not isinstance(category, datasets.ClassLabel):
            raise DataError(
                f"`category` in `{objects_column}` must be a ClassLabel with names, found {category!s:.80}. Cast it to "
                "`datasets.ClassLabel(names=[...])` and save the dataset as Parquet."
            )
        lists = dataset.select_columns([objects_column]).with_format(None)[:][objects_column]
        if not isinstance(kind, dict):  # lists of objects become lists of each field
            lists = [{key: [each[key] for each in cell or ()] for key in fields} for cell in lists]
        objects = [_hub_objects(cell, row, bbox_format, category.num_classes) for row, cell in enumerate(lists)]
        sizes = None
        if {"width", "height"} <= set(dataset.column_names):
            columns = dataset.select_columns(["height", "width"]).with_format(None)[:]
            try:
                sizes = np.array([columns["height"], columns["width"]], np.int64).T
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"`height` and `width` must be whole numbers in every row, but: {error}. Fix them."
                ) from error
        other = next(name for name in BBOX_FORMATS if name != bbox_format)
        _check_boxes(objects, sizes, f"`bbox_format` is {bbox_format}: set it to {other}")
        images = undecoded_images(dataset, image_column)
        cells: Any = images[image_column]  # read when asked for
        told = json.dumps(lists, default=str) + content_hash(images)
        digest = hashlib.sha256(told.encode()).hexdigest()
        described = {**described, "digest": digest}
        return cls(described, dict(enumerate(category.names)), objects, cells, sizes)


def _check_ids(entries: Sequence[dict[str, Any]], kind: str) -> None:
    ids = [each["id"] for each in entries]
    if len(set(ids)) < len(ids):
        raise ValueError(f"two {kind} have the id {next(each for each, count in Counter(ids).items() if count > 1)}")


def _known(annotation: dict[str, Any], key: str, known: Collection[Any]) -> Any:
    """Returns the id of an annotation's image or category, once there is such an entry; a ValueError if there is none."""
    value = annotation.get(key)
    if value in known:
        return value
    ids = ", ".join(map(str, islice(known, _SHOWN_IDS))) + (", ..." if len(known) > _SHOWN_IDS else "")
    raise ValueError(
        f"the `{key}` of annotation {annotation.get('id')} is {value!r:.80}, but known are {ids or 'none'}"
    )


def _inside(name: str) -> Path:
    """Returns the path of an image in its folder: the annotations may be somebody else's."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} is no file in the folder of the images")
    return path


def _missing(files: Sequence[Path]) -> list[Path]:
    """Returns the files that are not there. Each folder is listed once: a network answers many questions slowly."""
    there: set[Path] = set()
    for folder in {file.parent for file in files}:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            there.update(folder / entry.name for entry in entries if entry.is_file())
    # A name may be written otherwise than in the list, where capitals do not count.
    return [file for file in files if file not in there and not file.is_file()]


def _coco_objects(annotations: Sequence[dict[str, Any]], label_of: dict[int, int], image: dict[str, Any]) -> Objects:
    for each in annotations:
        where = f"annotation {each.get('id')} of image {image['id']}"
        box = np.array(each.get("bbox"), np.float64)
        if box.shape != (4,) or not np.isfinite(box).all() or (box[2:] < 0).any():
            raise ValueError(f"the `bbox` of {where} is not left, top, width, height, but {each.get('bbox')!s:.80}")
    boxes = np.array([each["bbox"] for each in annotations], np.float64).reshape(-1, 4)
    sides = boxes[:, 2:].copy()
    boxes[:, 2:] += boxes[:, :2]
    return Objects(
        boxes,
        np.array([label_of[_known(each, "category_id", label_of)] for each in annotations], np.int64),
        np.array([bool(int(each.get("iscrowd") or 0)) for each in annotations], bool),
        _areas([each.get("area") for each in annotations], sides.prod(axis=1)),
        [_usable(each.get("segmentation")) for each in annotations],
    )


def _areas(given: Sequence[float | None], boxes: np.ndarray) -> np.ndarray:
    """Returns the areas of objects, those of their boxes where none is given; float64 (N,).

    A ValueError if one is impossible.
    """
    areas = np.array([box if area is None else area for area, box in zip(given, boxes, strict=True)], np.float64)
    if not (np.isfinite(areas) & (areas >= 0)).all():
        raise ValueError(f"areas must be finite and not below 0, found {areas.tolist()!s:.80}")
    return areas


def _usable(segmentation: Any) -> Any:
    """Returns a segmentation without polygons of fewer than three points, as tools export them; None where none is given."""
    if segmentation and isinstance(segmentation, list):
        return [part for part in segmentation if not isinstance(part, list) or (len(part) >= 6 and len(part) % 2 == 0)]
    return segmentation or None


def _hub_objects(cell: Any, row: int, bbox_format: str, num_classes: int) -> Objects:
    known = {name: values for name, values in (cell or {}).items() if values is not None}
    cell = {"bbox": [], "category": [], **known}
    try:
        boxes = np.array(cell["bbox"], np.float64).reshape(len(cell["category"]), 4)
        labels = np.array(cell["category"], np.int64).reshape(-1)
        areas = list(cell.get("area") or [None] * len(labels))
        crowd = cell.get("iscrowd", cell.get("is_crowd", [0] * len(labels)))
        crowds = np.array([int(each or 0) for each in crowd], bool)
        if not len(areas) == len(crowds) == len(labels):
            raise ValueError(f"{len(labels)} categories, {len(areas)} areas and {len(crowds)} crowds")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"each object of row {row} must have a box of four numbers and a category, an area and `iscrowd` where there are "
            f"any, but: {error}. Fix the row."
        ) from error
    if not np.isfinite(boxes).all() or ((labels < 0) | (labels >= num_classes)).any():
        raise DataError(
            f"the objects of row {row} must have finite boxes and categories below {num_classes}, found {boxes.tolist()!s:.80} "
            f"and {labels.tolist()!s:.80}. Fix the row."
        )
    sides = boxes[:, 2:] if bbox_format == "coco" else boxes[:, 2:] - boxes[:, :2]
    if (sides < 0).any():
        raise DataError(
            f"a box of row {row} must not have a side below 0, but with `bbox_format` {bbox_format} the sides are "
            f"{sides.tolist()!s:.80}. Fix the row, or set the other format."
        )
    if bbox_format == "coco":
        boxes[:, 2:] += boxes[:, :2]
    of_boxes = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    try:
        return Objects(boxes, labels, crowds, _areas(areas, of_boxes), [None] * len(labels))
    except ValueError as error:
        raise DataError(f"the objects of row {row} must have areas in pixels: {error}. Fix the row.") from error


def _check_boxes(objects: Sequence[Objects], sizes: np.ndarray | None, advice: str) -> None:
    """Refuses boxes that are shares of their images' sides, or of another format: most of them reach out of their images."""
    ends = np.concatenate([each.boxes[:, 2:] for each in objects])
    if ends.size and (ends <= 1).all():
        raise DataError(
            "boxes must be in pixels, but none of them reaches beyond 1: they seem to be shares of the image's sides. Multiply "
            "them by its width and height."
        )
    if sizes is None:
        return
    limits = np.repeat(sizes[:, ::-1], [len(each.labels) for each in objects], axis=0)
    outside = (ends > limits + 1).any(axis=1)
    if outside.size and outside.mean() > 0.5:
        raise DataError(
            f"boxes must lie in their images, but {100 * outside.mean():.0f} % reach out of them. {advice}."
        )


# ------------------------------------------------------------------------------------------------------------ examples


class DetectionImages(torch.utils.data.Dataset):
    """Examples for `Detector`: uint8 `image` (3, H, W) and `target`.

    A target has `image_id`, the row, and for training `boxes` (N, 4) float32 in the image, `labels` (N,) from 1 on, and `masks`
    (N, H, W) uint8 where they are asked for.

    Args:
        data: Images with objects.
        train: Whether to learn from it: images without objects that can be learned are left out, and each is mirrored with
            probability `flip`, a draw that follows from (seed, row, epoch).
        masks: Whether targets have masks.
        flip: Probability.
        seed: Seed of the flips.
    """

    def __init__(
        self, data: DetectionData, *, train: bool, masks: bool = False, flip: float = 0.0, seed: int = 0
    ) -> None:
        self.data = data
        self.train = train
        self._masks = masks
        self._flip = flip
        self._seed = seed
        self.rows = list(range(len(data.objects)))
        if train:
            self.rows = [row for row in self.rows if _learnable(data.objects[row], data.size(row), masks).any()]
            if not self.rows:
                raise DataError(
                    f"{data.described['id']} must have objects that are no crowd, with a width and a height. Choose other data."
                )

    def __len__(self) -> int:
        return len(self.rows)

    def is_doubtful(self, place: int) -> bool:
        """Whether the beginning of an image's file tells no image of the size that is annotated; decoding it tells more."""
        row = self.rows[place]
        size = stored_size(self.data.cells[row])
        return size is None or self.data.size(row) not in (None, size)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        place, epoch = index if isinstance(index, tuple) else (index, 0)
        row = self.rows[place]
        image = decode_row(self.data.cells[row], f"row {row}", "Fix it, or check where the images are.")
        size = (image.height, image.width)
        annotated = self.data.size(row)
        if annotated not in (None, size):
            raise DataError(
                f"the image of row {row} must be {annotated[1]}x{annotated[0]}, as its annotations say, found "
                f"{size[1]}x{size[0]}. If its EXIF orientation turns it, save it without."
            )
        target: dict[str, torch.Tensor] = {"image_id": torch.tensor(row)}
        if self.train:
            flipped = view_rng(self._seed, row, epoch).random() < self._flip
            target |= self._learned(self.data.objects[row], size, flipped)
            if flipped:
                image = F.horizontal_flip(image)
        return {"image": as_tensor(image), "target": target}

    def _learned(self, objects: Objects, size: tuple[int, int], flipped: bool) -> dict[str, torch.Tensor]:
        """What is learned from an image."""
        kept = np.flatnonzero(_learnable(objects, size, self._masks))
        # In float64 to the end, so that a flip rounds once.
        regions: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(_clip(objects.boxes[kept], size), format="XYXY", canvas_size=size)
        }
        if self._masks:
            masks = [decode_mask(objects.segmentations[n], size) for n in kept]
            regions["masks"] = torch.from_numpy(np.stack(masks))
        if flipped:
            regions = {name: F.horizontal_flip(region) for name, region in regions.items()}
        return {**regions, "boxes": regions["boxes"].float(), "labels": torch.from_numpy(objects.labels[kept] + 1)}


def _clip(boxes: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    height, width = size or (np.inf, np.inf)
    return np.clip(boxes, 0, [width, height, width, height])


def _learnable(objects: Objects, size: tuple[int, int] | None, masks: bool) -> np.ndarray:
    """Which objects are no crowd, large enough inside their image and, where masks are learned, have one: (N,) bool."""
    boxes = _clip(objects.boxes, size)
    learnable = ~objects.crowd & ((boxes[:, 2:] - boxes[:, :2]) >= _MIN_BOX_SIDE).all(axis=1)
    if masks:
        learnable &= objects.segmented
    return learnable


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Makes a batch: `images` and `targets` are lists, for images differ in size."""
    return {"images": [each["image"] for each in examples], "targets": [each["target"] for each in examples]}

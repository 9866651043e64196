"""COCO's metrics of detected boxes and masks."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import nn

from hf_dr.transfer.coco_masks import coco_library
from hf_dr.transfer.detection_data import DetectionData

# The metrics of COCO's evaluation, in its order.
_METRICS = (
    "map", "map_50", "map_75", "map_small", "map_medium", "map_large",
    "mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large",
)  # fmt: skip


class CocoMeter:
    """COCO's mean average precision of boxes and, with `masks`, of masks, by pycocotools, over the images of all processes."""

    def __init__(self, data: DetectionData, masks: bool) -> None:
        self._data = data
        self._masks = masks
        self._found: dict[int, dict[str, list[dict[str, Any]]]] = {}

    @property
    def names(self) -> list[str]:
        """What is measured, by the sizes of the objects that are there; of masks, of the objects that have one."""
        objects = self._data.objects
        shown = {"box": [each.areas[~each.crowd] for each in objects]}
        if self._masks:
            shown["mask"] = [each.areas[~each.crowd & each.segmented] for each in objects]
        coco = coco_library().cocoeval.Params(iouType="bbox")
        names = []
        for kind, of_images in shown.items():
            areas = np.concatenate(of_images)
            sizes = zip(coco.areaRngLbl, coco.areaRng, strict=True)
            absent = {size for size, (low, high) in sizes if not ((low <= areas) & (areas <= high)).any()}
            names += [f"{kind}_{metric}" for metric in _METRICS if metric.rpartition("_")[2] not in absent]
        return names

    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        """Keeps what a model finds in a batch."""
        for answer, target in zip(model(**batch), batch["targets"], strict=True):
            row = int(target["image_id"])
            self._found[row] = coco_results(answer, row, list(self._data.categories), self._masks)

    def compute(self) -> dict[str, float]:
        """Returns `box_map`, `box_map_50`, ..., and `mask_map`, ..., of 0 to 1; sizes that no object has are left out."""
        found: dict[int, dict[str, list[dict[str, Any]]]] = {}
        for part in gather_object([self._found]):
            found.update(part)
        rows = sorted(found)  # equal scores have one order, whichever process found them
        kinds = {"box": "bbox"}
        if self._masks:
            kinds["mask"] = "segm"
        metrics: dict[str, float] = {}
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            for name, kind in kinds.items():
                truth = coco_truth(self._data, rows, kind == "segm")
                results = [dict(result) for row in rows for result in found[row][kind]]  # pycocotools adds to them
                evaluation = coco_library().cocoeval.COCOeval(truth, _coco_found(truth, results), kind)
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                named = zip(_METRICS, evaluation.stats.tolist(), strict=True)
                metrics |= {f"{name}_{metric}": value for metric, value in named if value >= 0}  # -1: no such objects
        return metrics


def coco_results(
    answer: dict[str, torch.Tensor], row: int, category_ids: Sequence[int], masks: bool
) -> dict[str, list[dict[str, Any]]]:
    """Writes a detector's answer to one image as COCO's results.

    Args:
        answer: `boxes` (N, 4), `labels` (N,) from 1 on, `scores` (N,), and `masks` (N, 1, H, W) from 0 to 1.
        row: The image's row.
        category_ids: The data's own ids of the labels 1, 2, ...
        masks: Whether masks are measured.

    Returns:
        Results by kind of evaluation, `bbox` and with masks `segm`. They are apart, because one with both counts as a box.
    """
    labels = answer["labels"].tolist()
    common = [
        {"image_id": row, "category_id": category_ids[label - 1], "score": score}
        for label, score in zip(labels, answer["scores"].tolist(), strict=True)
    ]
    boxes = answer["boxes"].cpu().double().numpy()  # Apple's MPS has no doubles
    results = {"bbox": [{**each, "bbox": _coco_box(box)} for each, box in zip(common, boxes, strict=True)]}
    if masks:
        encode = coco_library().mask.encode
        filled = (answer["masks"][:, 0] > 0.5).byte().cpu().numpy()
        runs = [encode(np.asfortranarray(mask_HW)) for mask_HW in filled]
        results["segm"] = [{**each, "segmentation": run} for each, run in zip(common, runs, strict=True)]
    return results


def coco_truth(data: DetectionData, rows: Sequence[int], masks: bool) -> Any:
    """Returns a `pycocotools.coco.COCO` of what is in these rows; for masks, of the objects that have one."""
    ids = list(data.categories)
    annotations: list[dict[str, Any]] = []
    for row in rows:
        objects = data.objects[row]
        for n, label in enumerate(objects.labels):
            segmentation = objects.segmentations[n]
            if masks and not segmentation:
                continue
            annotation = {
                "id": len(annotations) + 1,  # COCO's evaluation takes 0 for none
                "image_id": row,
                "category_id": ids[label],
                "bbox": _coco_box(objects.boxes[n]),
                "area": float(objects.areas[n]),
                "iscrowd": int(objects.crowd[n]),
            }
            annotations.append(annotation | ({"segmentation": segmentation} if masks else {}))
    sizes = {row: data.size(row) or (0, 0) for row in rows}  # only masks need them, and their data have them
    truth = coco_library().coco.COCO()
    truth.dataset = {
        "images": [{"id": row, "height": height, "width": width} for row, (height, width) in sizes.items()],
        "annotations": annotations,
        "categories": [{"id": category, "name": name} for category, name in data.categories.items()],
    }
    truth.createIndex()
    return truth


def _coco_found(truth: Any, results: list[dict[str, Any]]) -> Any:
    """Returns a `pycocotools.coco.COCO` of what was found; pycocotools itself cannot load nothing."""
    if results:
        return truth.loadRes(results)
    found = coco_library().coco.COCO()
    found.dataset = {**truth.dataset, "annotations": []}
    found.createIndex()
    return found


def _coco_box(box: np.ndarray) -> list[float]:
    left, top, right, bottom = box.tolist()
    return [left, top, right - left, bottom - top]

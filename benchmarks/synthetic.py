"""A "+" dataset without the work of a teacher: the package's own writer, drawn parameters, made-up answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import common
import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import torch

from hf_dr.generation import labelling
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.folder import Part, RunFolder, RunProgress
from hf_dr.generation.job import Job
from hf_dr.generation.labelling import ViewColumns
from hf_dr.generation.plan import Plan, plan_run
from hf_dr.generation.sources import AnswerSource, Timing
from hf_dr.processes import process_state
from hf_dr.store.schema import AUG_PREFIX, IMAGE_HASH, TEACHER_IDS, TEACHER_LOGPROBS, VIEWS_HASH
from hf_dr.views.augmentation import NO_PARTNER, PARTNER, Augmentation
from hf_dr.views.images import pixel_hash
from hf_dr.views.maker import Span
from hf_dr.views.ops.base import Params

TOP_K = 10


class SyntheticSource(AnswerSource):
    """A source of answers that renders no view and asks no teacher; images and their hashes are real."""

    workers = 1
    batch_size = 64
    first_new = 0

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self.device = device
        self._plan = plan
        self._maker = plan.view_maker()

    def answers(self, spans: Sequence[Span]) -> Generator[ViewColumns]:
        hashes: dict[int, int] = {}
        sizes: dict[int, tuple[int, int]] = {}
        provenance = self._plan.provenance
        for span in spans:
            flat = [divmod(n, provenance.num_views) for n in range(span.start, span.stop)]
            for example in {example for example, _ in flat} - hashes.keys():
                image = self._maker.image(example)
                hashes[example] = pixel_hash(image)
                sizes[example] = (image.height, image.width)
            drawn = [self._draw(example, view, sizes[example]) for example, view in flat]
            ids, logprobs = answers(len(flat), provenance.top_k, provenance.num_classes, span.start)
            columns = {
                IMAGE_HASH: np.array([hashes[example] for example, _ in flat], np.uint64),
                VIEWS_HASH: np.zeros(len(flat), np.uint64),  # see `SyntheticJob`
                TEACHER_IDS: ids,
                TEACHER_LOGPROBS: logprobs,
            }
            for name, param in self._plan.augmentation.params.items():
                columns[AUG_PREFIX + name] = np.array([params[name] for params in drawn], param.dtype)
            yield ViewColumns(columns, np.ones(len(flat), bool))

    def measure(self, spans: Sequence[Span]) -> Timing:
        raise NotImplementedError("there is nothing to measure")

    def _draw(self, example: int, view: int, size: tuple[int, int]) -> Params:
        augmentation = self._plan.augmentation
        params = self._maker.draw(example, view, size)
        if not augmentation.mixes:
            return params
        partner = self._maker.matching(example, view).partner(example)
        if not augmentation.needs_partner(params) or partner == example:
            return {**augmentation.without_mixing(params), PARTNER: NO_PARTNER}
        return {**params, PARTNER: partner}


def answers(count: int, top_k: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns valid ids and log-probabilities, both (count, top_k): distinct classes, most probable first."""
    rng = np.random.Generator(np.random.Philox(seed))
    p = rng.gamma(0.3, size=(count, top_k)) + 1e-4  # a few large, many small
    p = np.sort(p / p.sum(axis=1, keepdims=True) * rng.uniform(0.5, 0.99, (count, 1)), axis=1)[:, ::-1]
    # A stride keeps the classes of a view apart without a permutation for each.
    ids = (rng.integers(num_classes, size=(count, 1)) + np.arange(top_k) * (num_classes // top_k)) % num_classes
    return ids.astype(np.uint16), np.log(p).astype(np.float16)


def write(base: datasets.Dataset, augmentation: Augmentation, num_views: int, folder: Path, **settings: Any) -> Path:
    """Reinforces `base` (columns `image` and `label`) with made-up answers over 1,000 classes; returns the folder."""
    teacher, _ = common.lite0(None)
    config = ReinforceConfig(str(folder), num_views=num_views, top_k=TOP_K, label_column="label", **settings)
    plan = plan_run(base, teacher, augmentation, config)
    _job(plan, teacher.device).run()
    return plan.folder


class SyntheticJob(Job):
    """A run whose `views_hash` is 0, which is read as unknown: a training has nothing to compare its views with.

    Made-up answers agree with no label, so none are sampled.
    """

    def _sample(self) -> None:
        return None

    def _make_shards(self, *arguments: Any) -> None:
        with patch.object(labelling, "combine_hashes", lambda _: 0):
            super()._make_shards(*arguments)


def _job(plan: Plan, device: torch.device) -> Job:
    return SyntheticJob(plan, SyntheticSource(plan, device))


def write_repeated(
    base: datasets.Dataset, augmentation: Augmentation, num_views: int, folder: Path, rows: int, limit: float
) -> Path:
    """Reinforces `base` into one shard, and gives that file the names of all shards of a much larger overlay.

    Args:
        base: A shard's rows, with the columns `image` and `label`.
        augmentation: Drawn for each view.
        num_views: V.
        folder: Folder that the dataset is written to.
        rows: Number of rows of the overlay.
        limit: Bytes that its columns may take as Arrow; if they would take more, it has fewer rows.
    """
    teacher, _ = common.lite0(None)
    config = ReinforceConfig(
        output_dir=str(folder), num_views=num_views, top_k=TOP_K, label_column="label", overlay=True,
        shard_size=len(base),
    )  # fmt: skip
    plan = plan_run(base, teacher, augmentation, config)
    row = sum(_width(field.type) for field in plan.features.arrow_schema)
    shards = max(1, int(min(rows, limit / row)) // len(base))
    # The fingerprint in the shard is that of the larger dataset.
    larger = dataclasses.replace(plan.provenance, num_rows=shards * len(base))
    plan = dataclasses.replace(plan, provenance=larger)
    job = _job(plan, teacher.device)
    job.folder.mkdir(parents=True)
    job._make_shards([0], RunProgress(RunFolder(job.folder, larger), Part(), [0], [0], process_state()))
    first, *others = job.provenance.shard_names
    for name in others:
        (job.folder / name).hardlink_to(job.folder / first)
    job.provenance.write(job.folder)
    return job.folder


def _width(dtype: pa.DataType) -> float:
    """Bytes of one cell."""
    if pa.types.is_fixed_size_list(dtype):
        return dtype.list_size * _width(dtype.value_type)
    return dtype.bit_width / 8


def with_numbers(base: datasets.Dataset) -> datasets.Dataset:
    """Keeps image and label; the labels become numbers, because their names are not those of the 1,000 classes."""
    return base.select_columns(["image", "label"]).cast_column("label", datasets.Value("int64"))


def jpegs(base: datasets.Dataset, size: tuple[int, int], folder: Path) -> datasets.Dataset:
    """Returns the images at one size (width, height), as JPEG of quality 90, with their labels, memory-mapped."""
    rows = []
    for row in with_numbers(base):
        file = BytesIO()
        image: PIL.Image.Image = row["image"].convert("RGB")
        image.resize(size, PIL.Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": row["label"]})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    path = str(folder / "base.parquet")
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    return datasets.load_dataset("parquet", data_files=path, split="train")

"""What making views on a GPU gives: exactness against Pillow, the speed of a run beside its teacher, that of training.

    python benchmarks/device.py --data DATA --weights WEIGHTS

`differing_pixels` over `views`: every op, on photos and small images, made on the device and by Pillow.

`generation_*`: views a second of a run (decoding, augmenting, hashing, labelling, writing) over those of the bare teacher on
views that lie on the GPU, V = 32, bfloat16, batches of 256; `*_before`: the same with views made by Pillow in workers.

`training_*`: images a second of `ReinforcedTrainer` over those of the same step on one batch that stays on the GPU
(channels_last, bfloat16, batch 256); `*_before`: the same with views replayed by Pillow in workers.

Without a GPU only exactness is measured, with torch on the CPU, and what would travel and be launched is counted.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import common
import datasets
import numpy as np
import synthetic
import timm
import torch
from transformers import TrainerCallback, default_data_collator

from hf_dr import ops
from hf_dr.views.augmentation import NO_PARTNER, PARTNER, Augmentation
from hf_dr.base import undecoded_images
from hf_dr.views.device.augment import DeviceAugmentation
from hf_dr.views.device.maker import DeviceViewMaker, MadeViews
from hf_dr.views.device.graphs import Graphed
from hf_dr.views.device.overlap import Background, LaterOnHost, ahead
from hf_dr.views.device.packing import DoneBatch, Source, UndoneBatch, UndoneView, trim
from hf_dr.views.device.plan import Change, Resample, plan
from hf_dr.views.device.resampling import PASS_ORDERS
from hf_dr.loading import load_reinforced
from hf_dr.reinforce import ROW_GROUP_VIEWS, Job, ReinforceConfig, _Pending
from hf_dr.replay import ReinforcedDataset
from hf_dr.schema import STORED_PARTNERS, TEACHER_IDS, TEACHER_LOGPROBS
from hf_dr.shards import ShardWriter
from hf_dr.students import build_student
from hf_dr.teacher import Member, Preprocessing, Teacher, weights_hash
from hf_dr.topk import as_stored
from hf_dr.trainer import ReinforcedTrainer, ReinforcedTrainingArguments
from hf_dr.views.maker import Span, ViewBatch, ViewMaker, as_table

TOP_K, NUM_VIEWS, BATCH, SIDE = 10, 32, 256, 224
TARGETS = {
    "differing_pixels": 0, "generation_lite0": 0.85, "generation_resnet50": 0.85, "generation_lite0_mixing": 0.85,
    "training_resnet50": 0.9, "training_mobilenetv3_gain": 3.0,
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- exactness


def exact_augmentations(side: int) -> dict[str, Augmentation]:
    """Augmentations in which every op and filter comes, for views of one side."""
    resized = ops.RandomResizedCrop(side)
    every: dict[str, Augmentation] = {
        name: Augmentation.named(name, side) for name in ("rrc", "mixing", "randaug", "randaug_mixing")
    }
    every["trivial"] = Augmentation([resized, ops.TrivialAugmentWide(fill=(10, 200, 90)), ops.RandomErasing(1.0)])
    every["strong"] = Augmentation([resized, ops.RandAugment(4, 30)])
    every["jitter"] = Augmentation([resized, ops.ColorJitter(0.4, 0.4, 0.9)])
    every["padded"] = Augmentation([ops.Resize((side, side)), ops.RandomCrop(side, padding=side // 8, fill=(1, 2, 3))])
    every["centre"] = Augmentation([ops.Resize(side + side // 7, "bicubic"), ops.CenterCrop(side)])
    every["early"] = Augmentation([ops.RandomHorizontalFlip(), ops.TrivialAugmentWide(), ops.RandomResizedCrop(side)])
    for interpolation in ("nearest", "bicubic", "lanczos", "box", "hamming"):
        every[interpolation] = Augmentation([ops.RandomResizedCrop(side, interpolation=interpolation)])
    return every


def measure_exactness(sets: dict[str, datasets.Dataset], device: torch.device, num_views: int) -> dict[str, Any]:
    """Makes views of each set by Pillow in workers and on the device, and counts pixels and hashes that differ."""
    total, differing, hashes, rows = 0, 0, 0, []
    for set_name, images in sets.items():
        side = SIDE if set_name == "photos" else 32
        for name, augmentation in exact_augmentations(side).items():
            maker = ViewMaker(images, augmentation, num_views, 0, None)
            count = len(images) * num_views
            spans = [Span(0, start, min(start + 64, count)) for start in range(0, count, 64)]
            expected = torch.utils.data.DataLoader(
                maker, batch_size=None, sampler=spans, num_workers=min(workers(), len(spans))
            )
            made = DeviceViewMaker(maker, device).batches(spans, workers())
            wrong = 0
            for pillow, batch in zip(expected, made, strict=True):
                finished = batch.finish()
                wrong += int((finished.pixels.cpu() != pillow.pixels).any(-1).sum())
                hashes += int((finished.view_hashes != pillow.view_hashes).sum())
            total, differing = total + count, differing + wrong
            rows.append([f"{set_name}, {name}", count, wrong])
    common.table(rows, ["exactness", "views", "differing pixels"])
    return {"views": total, "differing_pixels": differing, "differing_hashes": hashes}


def measure_traffic(images: datasets.Dataset) -> dict[str, float]:
    """Counts, for `randaug`, kernels launched and bytes moved for a view, at V = 32 in batches of 256."""
    augmentation = Augmentation.named("randaug", SIDE)
    maker = ViewMaker(images, augmentation, NUM_VIEWS, 0, None)
    launches, up, views = 0, 0, 0
    for batch in DeviceViewMaker(maker, torch.device("cpu")).batches([Span(0, 0, BATCH)], 0):
        views += BATCH
        launches += 4  # the hash, and what pads and gathers for it
        up += sum(3 * image.size[0] * image.size[1] for image in (maker.image(n) for n in range(BATCH // NUM_VIEWS)))
        size = np.full(BATCH, 348, np.int64)
        for step in plan(augmentation, batch.batch.params, size, size):
            launches += 3 if isinstance(step, Resample) else 4 if isinstance(step, Change) else 0
    return {
        "launches_per_batch": launches,
        "bytes_up_per_view": up / views,
        "bytes_down_per_view": 8 * 8 + TOP_K * 12,
    }


def workers() -> int:
    """One process for each core but one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


# ---------------------------------------------------------------------------------------------------------- generation


class DeviceJob(Job):
    """The real job with views made on the teacher's device, and all its parts at once."""

    def _answers(self, spans: list[Span]) -> Generator[dict[str, np.ndarray]]:
        made = DeviceViewMaker(self._maker, self.teacher.device).batches(spans, self.workers)
        teacher = Graphed(self._ask)
        yield from ahead(made, lambda batch: PendingTopK(teacher(batch.pixels), self.config.top_k), self._finished)

    def _make_shards(self, shards: list[int], progress: Any) -> None:
        self._background = Background(8)
        super()._make_shards(shards, progress)
        self._background.wait()
        self._background.close()

    def _make_shard(self, index: int, answers: Iterator[dict[str, np.ndarray]], progress: Any) -> None:
        rows, num_views = self.provenance.shard_range(index), self.config.num_views
        group = max(1, ROW_GROUP_VIEWS // num_views)
        writer = ShardWriter(
            self.folder / self.provenance.shard_names[index], self._features, self.provenance.fingerprint
        )
        pending = _Pending(num_views)
        for first in range(rows.start, rows.stop, group):
            last = min(first + group, rows.stop)
            while pending.num_views < (last - first) * num_views:
                views = next(answers)
                progress.update(len(views[TEACHER_IDS]))
                pending.append(views)
            columns, valid = pending.take(first, last)
            self._complete_rows(columns, valid)
            self._background.submit(writer.write, as_table(self._base, first, last), columns, valid)
        self._background.submit(lambda: progress.wrote(writer.finish().file_bytes))

    def _finished(self, made: MadeViews, answers: PendingTopK) -> dict[str, np.ndarray]:
        batch = made.finish()
        batch.pixels = answers  # type: ignore[assignment]  # for `_answer`
        return self._label(batch)

    def _answer(self, batch: ViewBatch) -> dict[str, np.ndarray]:
        ids, logprobs = batch.pixels.get()  # type: ignore[attr-defined]
        return {TEACHER_IDS: ids, TEACHER_LOGPROBS: logprobs}


class PendingTopK:
    """`hf_dr.topk.top_k` of answers that are still to come: read with `get`.

    The order is that of one integer for each class: the level of its log-probability, then the lower id. So which of several
    equal classes are kept needs no look at the answers in between.
    """

    def __init__(self, logprobs_BC: torch.Tensor, k: int) -> None:
        self._num_classes = logprobs_BC.shape[-1]
        bits_BC = (logprobs_BC + 0.0).view(torch.int32)  # no -0.0
        rising_BC = torch.where(bits_BC < 0, bits_BC ^ 0x7FFFFFFF, bits_BC).long()
        reverse_C = torch.arange(self._num_classes - 1, -1, -1, device=logprobs_BC.device)
        keys_BK = (rising_BC * (1 << 32) + reverse_C).topk(k, dim=-1).values
        ids_BK = self._num_classes - 1 - (keys_BK & 0xFFFFFFFF)
        self._later = LaterOnHost(logprobs_BC.gather(-1, ids_BK).to(torch.float16), ids_BK)

    def get(self) -> tuple[np.ndarray, np.ndarray]:
        """Waits for the answers and returns ids and log-probabilities."""
        values_BK, ids_BK = self._later.get()
        return as_stored(ids_BK.numpy(), values_BK.numpy(), self._num_classes)


def quick_preprocessing(self: Preprocessing, views_BCHW: torch.Tensor) -> torch.Tensor:
    """`Preprocessing.__call__` with the same arithmetic; its constants do not make the host wait for the device."""
    assert views_BCHW.shape[-2:] == self.size
    mean, std = (_constants(v, views_BCHW.device) for v in (self.mean, self.std))
    return views_BCHW.float().sub(mean).div_(std)


_CONSTANTS: dict[Any, torch.Tensor] = {}


def _constants(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    if (values, device) not in _CONSTANTS:
        _CONSTANTS[values, device] = torch.tensor([255 * v for v in values], device=device).view(-1, 1, 1)
    return _CONSTANTS[values, device]


def teachers(weights: Path | None, device: torch.device) -> dict[str, Teacher]:
    """EfficientNet-Lite0, and ResNet-50 with fresh weights, in bfloat16."""
    settings: dict[str, Any] = {"device": device, "precision": "bf16"}
    lite0, _ = common.lite0(weights)
    torch.manual_seed(0)
    model = timm.create_model("resnet50").eval()
    config = model.pretrained_cfg
    preprocessing = Preprocessing((SIDE, SIDE), tuple(config["mean"]), tuple(config["std"]), "bicubic")
    resnet50 = Member(model, "resnet50", None, None, 1000, None, preprocessing, weights_hash(model))
    return {"lite0": Teacher(list(lite0.members), **settings), "resnet50": Teacher([resnet50], **settings)}


def bare_speed(teacher: Teacher, count: int) -> float:
    """Views a second of the teacher alone, on views that lie on the GPU."""
    generator = torch.Generator(teacher.device).manual_seed(0)
    views_BHWC = torch.randint(
        0, 256, (8, BATCH, SIDE, SIDE, 3), dtype=torch.uint8, device=teacher.device, generator=generator
    )
    for n in range(8):
        teacher(views_BHWC[n % 8].permute(0, 3, 1, 2))
    torch.cuda.synchronize()
    began = time.perf_counter()
    for n in range(count):
        teacher(views_BHWC[n % 8].permute(0, 3, 1, 2))
    torch.cuda.synchronize()
    return count * BATCH / (time.perf_counter() - began)


def run_speed(kind: type[Job], images: datasets.Dataset, teacher: Teacher, augmentation: str, folder: Path) -> float:
    """Views a second of a whole run."""
    config = ReinforceConfig(
        output_dir=tempfile.mkdtemp(dir=folder), num_views=NUM_VIEWS, top_k=TOP_K, label_column="none", batch_size=BATCH
    )
    made = kind(images, teacher, Augmentation.named(augmentation, SIDE), config)
    taken = common.seconds(made.run)
    return len(images) * NUM_VIEWS / taken


def measure_generation(data: Path | None, weights: Path | None, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """The ratios of runs to their bare teachers, after and before."""
    result: dict[str, Any] = {}
    rows = []
    plans = [("lite0", "randaug", ""), ("resnet50", "randaug", ""), ("lite0", "randaug_mixing", "_mixing")]
    scale = 4 if quick else 1
    asked = teachers(weights, device)
    with common.working_folder() as folder:
        for who, augmentation, suffix in plans:
            teacher, name = asked[who], f"generation_{who}{suffix}"
            before_images, _ = common.photos(data, (512 if suffix else 1024) // scale)
            images, _ = common.photos(data, (4096 if who == "resnet50" else 8192) // scale)
            few, _ = common.photos(data, 128)
            run_speed(DeviceJob, few, teacher, augmentation, folder)  # compiles and warms up
            bare = bare_speed(teacher, 200 // scale)
            before = run_speed(Job, before_images, teacher, augmentation, folder)
            after = run_speed(DeviceJob, images, teacher, augmentation, folder)
            bare = (bare + bare_speed(teacher, 200 // scale)) / 2
            result |= {
                name: after / bare, f"{name}_before": before / bare, f"{name}_bare_views_per_s": bare,
                f"{name}_views_per_s": after,
            }  # fmt: skip
            rows.append([name, bare, before, after, before / bare, after / bare])
            print(rows[-1], file=sys.stderr)
    common.table(rows, ["generation", "bare/s", "before/s", "after/s", "before", "after"])
    return result


def measure_parts(data: Path | None, weights: Path | None, device: torch.device) -> dict[str, Any]:
    """Where the time goes: device milliseconds of a batch of 256 views, and CPU milliseconds that the host takes for it."""
    result: dict[str, float] = {}
    images, _ = common.photos(data, 64)
    for augmentation in ("randaug", "randaug_mixing"):
        maker = ViewMaker(undecoded_images(images, "image"), Augmentation.named(augmentation, SIDE), NUM_VIEWS, 0, None)
        spans = [Span(0, start, start + BATCH) for start in range(0, 64 * NUM_VIEWS, BATCH)]
        host = DeviceViewMaker(maker, device)
        flights = _flights(host, spans)
        for _ in range(2):  # the first round compiles
            torch.cuda.synchronize()
            began, cpu = time.perf_counter(), time.thread_time()
            made = [host._make(span, flight) for span, flight in zip(spans, flights, strict=True)]
            launched = time.thread_time() - cpu
            torch.cuda.synchronize()
            taken = time.perf_counter() - began
            for batch in made:
                batch.finish()
        result[f"ms_{augmentation}"] = 1e3 * taken / len(spans)
        result[f"host_ms_{augmentation}"] = 1e3 * launched / len(spans)
        _profile(lambda host=host, spans=spans, flights=flights: host._make(spans[0], flights[0]), augmentation)
    for who, teacher in teachers(weights, device).items():
        views = torch.zeros((BATCH, SIDE, SIDE, 3), dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
        for _ in range(10):
            torch.cuda.synchronize()
            began = time.perf_counter()
            PendingTopK(teacher(views), TOP_K)
            launched = time.perf_counter() - began
            torch.cuda.synchronize()
            taken = time.perf_counter() - began
        result |= {f"host_ms_teacher_{who}": 1e3 * launched, f"ms_teacher_{who}": 1e3 * taken}
    began = time.perf_counter()
    decoded = [maker.image(n) for n in range(64)]
    result["cpu_ms_decode_image"] = 1e3 * (time.perf_counter() - began) / len(decoded)
    common.table([[name, value] for name, value in result.items()], ["parts", "ms"])
    return result


def _flights(host: DeviceViewMaker, spans: list[Span]) -> list[Any]:
    from hf_dr.views.device.maker import FlightMaker

    maker = FlightMaker(host.maker)
    step = BATCH // NUM_VIEWS
    return [maker[range(n * step, (n + 1) * step)].pin_memory().to(host.device) for n in range(len(spans))]


def _profile(work: Callable[[], Any], name: str) -> None:
    """Prints the kernels of one batch."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        for _ in range(4):
            work()
        torch.cuda.synchronize()
    events = [e for e in profiler.key_averages() if e.self_device_time_total > 0]
    events.sort(key=lambda e: -e.self_device_time_total)
    rows = [[e.key[:60], e.count / 4, e.self_device_time_total / 4] for e in events[:16]]
    common.table(rows, [f"kernels of a batch, {name}", "launches", "us"])


# ------------------------------------------------------------------------------------------------------------ training


def quick_synthetic(base: datasets.Dataset, augmentation: Augmentation, folder: Path) -> Path:
    """`synthetic.write` of one view an example, for images that come again and again: each is decoded once."""
    teacher, _ = common.lite0(None)
    config = ReinforceConfig(str(folder), num_views=1, top_k=synthetic.TOP_K, label_column="label", shard_size=8192)
    job = synthetic.SyntheticJob(base, teacher, augmentation, config)
    decode, known = job._maker.image, {}

    def image(example: int) -> Any:
        data = base.with_format(None)._data["image"][example].as_py()["bytes"]
        if data not in known:
            known[data] = decode(example)
        return known[data]

    job._maker.image = image  # type: ignore[method-assign]
    job.run()
    return job.folder


class UndoneDataset(ReinforcedDataset):
    """Stored views of which a worker only decodes and crops the images."""

    augmenter: DeviceAugmentation

    def _item(self, row: int, view: int, shared: dict[tuple[int, int], Any]) -> dict[str, Any]:
        ids, logprobs = self._answer(row, view)
        item: dict[str, Any] = {
            "pixel_values": self._undone(row, view, shared),
            "teacher_ids": torch.from_numpy(ids.astype(np.int64)),
            "teacher_logprobs": torch.from_numpy(logprobs.astype(np.float32)),
            "reinforced": True,
        }
        if self._labels is not None:
            item["labels"] = self._label(row)
        return item

    def _undone(self, row: int, view: int, shared: dict[tuple[int, int], Any]) -> UndoneView:
        params = self._params(row, view)
        partner = None
        if self.augmentation.mixes and params[PARTNER] != NO_PARTNER:
            assert self.provenance.mixing_scope != STORED_PARTNERS
            partner = self._source_of(self._row_of(params[PARTNER]), view, shared)
        return UndoneView(self._source_of(row, view, shared), partner, params)

    def _source_of(self, row: int, view: int, shared: dict[tuple[int, int], Any]) -> Source:
        if (row, view) not in shared:
            pixels_HWC, params = trim(self.augmentation, self._decode(row), self._params(row, view))
            shared[row, view] = Source((row, view), pixels_HWC, params)
        return shared[row, view]


class UndoneCollator:
    """Packs undone views; all else goes the usual way."""

    def __init__(self, augmenter: DeviceAugmentation) -> None:
        self.augmenter = augmenter

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        views = [item.pop("pixel_values") for item in items]
        return {**default_data_collator(items), "pixel_values": UndoneBatch.pack(self.augmenter, views)}


class DeviceTrainer(ReinforcedTrainer):
    """Waits for the views that the device makes."""

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        pixels = inputs["pixel_values"]
        if isinstance(pixels, DoneBatch):
            pixels_BCHW = pixels.pixels(channels_last=True)
            mean, std = (_constants(tuple(v), pixels_BCHW.device) for v in self._normalization)
            inputs = {**inputs, "pixel_values": (pixels_BCHW - mean) / std}
        return inputs


class Clock(TrainerCallback):
    """Notes the time at two steps."""

    def __init__(self, first: int) -> None:
        self.first, self.began, self.steps, self.ended = first, 0.0, 0, 0.0

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == self.first:
            torch.cuda.synchronize()
            self.began = time.perf_counter()
        if state.global_step == state.max_steps:
            torch.cuda.synchronize()
            self.ended, self.steps = time.perf_counter(), state.max_steps - self.first


def trainer_of(kind: type[ReinforcedTrainer], student: str, train: Any, folder: Path, steps: int) -> ReinforcedTrainer:
    """A trainer in bfloat16 whose model is in channels_last."""
    torch.manual_seed(0)
    model = build_student(f"timm:{student}", None, 1000, size=SIDE).to(memory_format=torch.channels_last)
    arguments = ReinforcedTrainingArguments(
        str(folder / "run"), bf16=True, per_device_train_batch_size=BATCH, dataloader_num_workers=workers(),
        max_steps=steps, save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
        dataloader_drop_last=True, logging_nan_inf_filter=False,
    )  # fmt: skip
    settings: dict[str, Any] = {}
    if isinstance(train, UndoneDataset):
        settings["data_collator"] = UndoneCollator(train.augmenter)
    return kind(model=model, args=arguments, train_dataset=train, **settings)


def training_speed(
    kind: type[ReinforcedTrainer], student: str, train: Any, folder: Path, first: int, steps: int
) -> float:
    """Images a second of a training, without its first steps."""
    trainer = trainer_of(kind, student, train, folder, first + steps)
    clock = Clock(first)
    trainer.add_callback(clock)
    trainer.train()
    return clock.steps * BATCH / (clock.ended - clock.began)


def step_speed(student: str, train: Any, folder: Path, steps: int, device: torch.device) -> float:
    """Images a second of the same step on one batch that stays on the GPU."""
    trainer = trainer_of(ReinforcedTrainer, student, train, folder, 1)
    model = trainer.model.to(device).train()  # type: ignore[union-attr]
    loaded = default_data_collator(train.__getitems__([(row, 0) for row in range(BATCH)]))
    inputs = trainer._prepare_inputs(loaded)
    inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            loss = trainer.compute_loss(model, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # as Trainer does
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(10):
        step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    return steps * BATCH / (time.perf_counter() - began)


def measure_training(data: Path | None, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """The ratios of training to its bare step, after and before."""
    result: dict[str, Any] = {}
    rows = []
    images, _ = common.photos(data, (40 if quick else 112) * BATCH)  # one epoch: workers start only once
    with common.working_folder() as folder:
        augmentation = Augmentation.named("randaug", SIDE)
        plus = load_reinforced(quick_synthetic(synthetic.with_numbers(images), augmentation, folder))
        undone = UndoneDataset(plus.plus, plus.provenance)
        undone.augmenter = DeviceAugmentation(augmentation)
        for student, name in (("resnet50", "resnet50"), ("mobilenetv3_large_100", "mobilenetv3")):
            limit = step_speed(student, plus, folder, 20 if quick else 60, device)
            before = training_speed(ReinforcedTrainer, student, plus, folder, 15, 15 if quick else 45)
            after = training_speed(DeviceTrainer, student, undone, folder, 10, 28 if quick else 100)
            result |= {
                f"training_{name}": after / limit, f"training_{name}_before": before / limit,
                f"training_{name}_gain": after / before, f"training_{name}_limit_images_per_s": limit,
                f"training_{name}_images_per_s": after,
            }  # fmt: skip
            rows.append([student, limit, before, after, before / limit, after / limit])
            print(rows[-1], file=sys.stderr)
            gc.collect()
            torch.cuda.empty_cache()
    common.table(rows, ["training", "limit/s", "before/s", "after/s", "before", "after"])
    return result


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--only", nargs="*", choices=["exact", "parts", "generation", "training"], help="Only these.")
    flags: argparse.Namespace = parser.parse_args()
    chosen = flags.only or ["exact", "parts", "generation", "training"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(0) if device.type == "cuda" else "CPU"
    result: dict[str, Any] = {"device": name, "num_views": NUM_VIEWS, "batch": BATCH, "orders": list(PASS_ORDERS)}
    Preprocessing.__call__ = quick_preprocessing  # type: ignore[method-assign]
    gpu = device.type == "cuda"
    if "exact" in chosen:
        few = (24 if flags.quick else 64) if gpu else 8
        sets = {
            "photos": undecoded_images(common.photos(flags.data, few)[0], "image"),
            "small": undecoded_images(common.small_images(flags.data, few)[0], "image"),
        }
        result |= measure_exactness(sets, device, 8 if gpu else 4)
        result |= measure_traffic(sets["photos"])
    if gpu and "parts" in chosen:
        result |= measure_parts(flags.data, flags.weights, device)
    if gpu and "generation" in chosen:
        result |= measure_generation(flags.data, flags.weights, device, quick=flags.quick)
    if gpu and "training" in chosen:
        result |= measure_training(flags.data, device, quick=flags.quick)
    rows = [[key, result.get(key, "-"), target] for key, target in TARGETS.items()]
    common.table(rows, ["", "measured", "aim"])
    common.finish(result, flags)


if __name__ == "__main__":
    main()

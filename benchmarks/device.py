"""What making views on a GPU gives: exactness against Pillow, the speed of a run next to its teacher, that of training.

    python benchmarks/device.py --data DATA --weights WEIGHTS

`differing_pixels` over `views`: every op, on photos and small images, made on the device and by Pillow.

`generation_*`: views a second of a run (decoding, augmenting, hashing, labelling, writing; from its start to its end) over
those of the bare teacher on views that lie on the GPU, V = 32, bfloat16, batches of 256; `*_steady`: from its first answers to
its last; `*_before`: the whole run with `augment_on` cpu, where Pillow makes the views in worker processes; `*_encode_ms`: CPU
milliseconds of the thread that encodes and writes 256 views, next to all else.

`training_*`: images a second of `ReinforcedTrainer` over those of the same step on one batch that stays on the GPU
(channels_last, bfloat16, batch 256); `*_before`: the same with `augment_on` cpu. Batches that workers had fetched before the
clock starts are a third of what is counted, or less.

`main_ms_*`: CPU milliseconds that a training's main process takes for a batch before a kernel runs, next to those of the
worker that has packed it (`worker_ms_*`), with launches, bytes and tensors counted; `order_ms_a_span_*`: those that the main
process of a run takes to decide which images are decoded before a batch; `copy_*`: milliseconds in which it copies a batch
that a worker has sent.

With `--only precisions` instead: `step_*`, images a second of that bare step in fp32, with TF32 for matrix products as well
(`--tf32` of Trainer; convolutions have it anyway), in bfloat16 (`--bf16`), and compiled (`--torch_compile`).

Without a GPU exactness is measured with torch on the CPU, and what is counted.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import common
import datasets
import numpy as np
import synthetic
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, default_data_collator

from hf_dr import ops
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import Job, reinforce_job
from hf_dr.generation.labelling import CompleteRows, ViewColumns
from hf_dr.processes import num_cores
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.device import UndoneCollator, UndoneViews
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.messages import InOneMessage
from hf_dr.store.base_dataset import undecoded_images
from hf_dr.store.shards import ShardWriter
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.topk import later_top_k
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.students import build_student
from hf_dr.training.trainer import ReinforcedTrainer
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.device.augment import DeviceAugmentation
from hf_dr.views.device.graphs import Graphed
from hf_dr.views.device.images import copy_in_parts, pack
from hf_dr.views.device.maker import DeviceViewMaker
from hf_dr.views.device.packing import UndoneBatch
from hf_dr.views.maker import Span, ViewMaker

TOP_K, NUM_VIEWS, BATCH, SIDE = 10, 32, 256, 224
PARTS = ["exact", "counts", "parts", "generation", "training"]
PRECISIONS = ["fp32", "tf32", "bf16", "bf16_compiled"]
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
    """Makes views of each set by Pillow in threads and on the device, and counts pixels and hashes that differ."""
    total, differing, hashes, rows = 0, 0, 0, []
    with ThreadPoolExecutor(workers() + 1) as threads:
        for set_name, images in sets.items():
            side = SIDE if set_name == "photos" else 32
            for name, augmentation in exact_augmentations(side).items():
                maker = ViewMaker(images, augmentation, num_views, 0, None)
                count = len(images) * num_views
                spans = [Span(0, start, min(start + 32, count)) for start in range(0, count, 32)]
                expected = threads.map(maker.__getitem__, spans)
                wrong = 0
                for pillow, batch in zip(expected, DeviceViewMaker(maker, device).batches(spans, 0), strict=True):
                    finished = batch.finish()
                    wrong += int((finished.pixels.cpu() != pillow.pixels).any(-1).sum())
                    hashes += int((finished.view_hashes != pillow.view_hashes).sum())
                total, differing = total + count, differing + wrong
                rows.append([f"{set_name}, {name}", count, wrong])
    common.table(rows, ["exactness", "views", "differing pixels"])
    return {"views": total, "differing_pixels": differing, "differing_hashes": hashes}


def workers() -> int:
    """One process for each core but one."""
    return max(1, num_cores() - 1)


# ---------------------------------------------------------------------------------------------------------- generation


def teachers(weights: Path | None, device: torch.device) -> dict[str, Teacher]:
    """EfficientNet-Lite0, and ResNet-50 with fresh weights, in bfloat16."""
    settings: dict[str, Any] = {"device": device, "precision": "bf16"}
    lite0, _ = common.lite0(weights)
    resnet50 = common.untrained("resnet50")
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


class Watch:
    """Notes when the first and the last answers of a run arrive, and what the thread takes that encodes and writes them."""

    def __init__(self, made: Job) -> None:
        self.began = self.first = self.last = self.encoding = 0.0
        self.views = 0
        self._answers, self._write = made.source.answers, made._write
        made.source.answers = self.answers  # type: ignore[method-assign]
        made._write = self.write  # type: ignore[method-assign]

    def write(self, writer: ShardWriter, rows: CompleteRows) -> None:
        began = time.thread_time()
        self._write(writer, rows)
        self.encoding += time.thread_time() - began

    def answers(self, spans: Sequence[Span]) -> Generator[ViewColumns]:
        self.began = time.perf_counter()
        for columns in self._answers(spans):
            self.last = time.perf_counter()
            self.first = self.first or self.last
            self.views += len(columns)
            yield columns


def run_speed(
    images: datasets.Dataset, teacher: Teacher, augmentation: str, folder: Path, augment_on: str
) -> dict[str, float]:
    """Views a second of a whole run and between its first and last answers, and the seconds before and after these."""
    config = ReinforceConfig(
        output_dir=tempfile.mkdtemp(dir=folder), num_views=NUM_VIEWS, top_k=TOP_K, label_column="none", batch_size=BATCH,
        augment_on=augment_on,
    )  # fmt: skip
    made = reinforce_job(images, teacher, Augmentation.named(augmentation, SIDE), config)
    watch = Watch(made)
    began = time.perf_counter()
    made.run()
    ended = time.perf_counter()
    return {
        "views_per_s": watch.views / (ended - began),
        "steady_views_per_s": (watch.views - BATCH) / (watch.last - watch.first),
        "start_s": watch.first - began,
        "end_s": ended - watch.last,
        "encode_ms": 1e3 * watch.encoding * BATCH / watch.views,
    }


def measure_generation(data: Path | None, weights: Path | None, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """The ratios of runs to their bare teachers, after and before."""
    result: dict[str, Any] = {}
    rows = []
    plans = [("lite0", "randaug", ""), ("resnet50", "randaug", ""), ("lite0", "randaug_mixing", "_mixing")]
    scale = 8 if quick else 1
    asked = teachers(weights, device)
    with common.working_folder() as folder:
        for who, augmentation, suffix in plans:
            teacher, name = asked[who], f"generation_{who}{suffix}"
            before_images, _ = common.photos(data, (512 if suffix else 1024) // scale)
            images, _ = common.photos(data, (6144 if who == "resnet50" else 10240) // scale)
            few, _ = common.photos(data, 64)
            run_speed(few, teacher, augmentation, folder, "device")  # compiles and warms up
            bare = bare_speed(teacher, 120 // scale)
            before = run_speed(before_images, teacher, augmentation, folder, "cpu")
            after = run_speed(images, teacher, augmentation, folder, "device")
            bare = (bare + bare_speed(teacher, 120 // scale)) / 2
            result |= {
                name: after["views_per_s"] / bare,
                f"{name}_steady": after["steady_views_per_s"] / bare,
                f"{name}_before": before["views_per_s"] / bare,
                f"{name}_bare_views_per_s": bare,
                f"{name}_photos": len(images),
            }
            result |= {f"{name}_{key}": value for key, value in after.items()}
            rows.append([name, bare, *(each["views_per_s"] / bare for each in (before, after)), result[f"{name}_steady"],
                         after["start_s"], after["end_s"], after["encode_ms"]])  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    common.table(rows, ["generation", "bare/s", "before", "after", "steady", "start s", "end s", "encode ms"])
    return result


def measure_parts(data: Path | None, weights: Path | None, device: torch.device) -> dict[str, Any]:
    """Where the time goes: device milliseconds of a batch of 256 views, and CPU milliseconds that the host takes for it."""
    result: dict[str, float] = {}
    images, _ = common.photos(data, 64)
    for augmentation in ("randaug", "randaug_mixing"):
        maker = ViewMaker(undecoded_images(images, "image"), Augmentation.named(augmentation, SIDE), NUM_VIEWS, 0, None)
        spans = [Span(0, start, start + BATCH) for start in range(0, 64 * NUM_VIEWS, BATCH)]
        host = DeviceViewMaker(maker, device)
        prepared = list(host.prepared(spans, 0))
        for _ in range(2):  # the first round compiles
            torch.cuda.synchronize()
            began, cpu = time.perf_counter(), time.thread_time()
            made = list(host.make(prepared))
            launched = time.thread_time() - cpu
            torch.cuda.synchronize()
            taken = time.perf_counter() - began
            for batch in made:
                batch.finish()
        result[f"ms_{augmentation}"] = 1e3 * taken / len(spans)
        result[f"host_ms_{augmentation}"] = 1e3 * launched / len(spans)
        _profile(partial(list, host.make(prepared)), augmentation, len(spans))
    for who, teacher in teachers(weights, device).items():
        views = torch.zeros((BATCH, SIDE, SIDE, 3), dtype=torch.uint8, device=device)
        for kind, ask in (("", _asker(teacher)), ("_graph", Graphed(_asker(teacher)))):
            for _ in range(10):
                torch.cuda.synchronize()
                began = time.perf_counter()
                later = later_top_k(ask(views), TOP_K)
                launched = time.perf_counter() - began
                torch.cuda.synchronize()
                taken = time.perf_counter() - began
            later()
            result |= {f"host_ms_teacher_{who}{kind}": 1e3 * launched, f"ms_teacher_{who}{kind}": 1e3 * taken}
    began = time.perf_counter()
    decoded = [maker.image(n) for n in range(64)]
    result["cpu_ms_decode_image"] = 1e3 * (time.perf_counter() - began) / len(decoded)
    common.table([[name, value] for name, value in result.items()], ["parts", "ms"])
    return result


def _asker(teacher: Teacher) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda views_BHWC: teacher(views_BHWC.permute(0, 3, 1, 2))


def _profile(work: Callable[[], Any], name: str, batches: int) -> None:
    """Prints the kernels of one batch."""
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        work()
        torch.cuda.synchronize()
    events = [e for e in profiler.key_averages() if e.self_device_time_total > 0]
    events.sort(key=lambda e: -e.self_device_time_total)
    rows = [[e.key[:60], e.count / batches, e.self_device_time_total / batches] for e in events[:16]]
    common.table(rows, [f"kernels of a batch, {name}", "launches", "us"])


# -------------------------------------------------------------------------------------------------------------- counts


class Launches:
    """Stands in for the kernels, and counts how often they are launched."""

    def __init__(self) -> None:
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return self

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self._launch

    def _launch(self, *_: Any, **__: Any) -> None:
        self.count += 1


def measure_counts(data: Path | None) -> dict[str, Any]:
    """What a training batch of 256 views costs before a kernel runs: launches, bytes, and CPU time of each process."""
    from hf_dr.views.device import fused

    result: dict[str, Any] = {}
    with common.working_folder() as folder:
        for name in ("randaug", "randaug_mixing"):
            train = training_set(data, BATCH, folder / name, name)
            items = UndoneViews(train).__getitems__([(row, 0) for row in range(BATCH)])
            augmenter = DeviceAugmentation(train.augmentations[0])
            views = [item["pixel_values"] for item in items]
            batch = UndoneBatch.pack(augmenter, views)
            collated = InOneMessage(UndoneCollator(augmenter, default_data_collator))(items)
            program = batch.program
            assert program is not None
            kernels, fused.kernels = fused.kernels, Launches()  # type: ignore[assignment]
            try:
                nowhere = [batch.pixels.to("meta")]
                fused.run(program, nowhere)
                launches = fused.kernels.count  # type: ignore[attr-defined]
                performing = _least_cpu(partial(fused.run, program, nowhere))
            finally:
                fused.kernels = kernels
            packing = _least_cpu(partial(UndoneBatch.pack, augmenter, views))
            message = bytes(ForkingPickler.dumps(collated))
            maker = ViewMaker(
                undecoded_images(common.photos(data, 2048)[0], "image"),
                Augmentation.named(name, SIDE),
                NUM_VIEWS,
                0,
                None,
            )
            ordering = _least_cpu(partial(_order, maker))
            result |= {
                f"order_ms_a_span_{name}": 1e3 * ordering / (2048 * NUM_VIEWS / BATCH),
                f"launches_{name}": launches,
                f"bytes_to_device_per_view_{name}": (batch.pixels.nbytes + program.table.nbytes) / BATCH,
                f"table_bytes_per_view_{name}": program.table.nbytes / BATCH,
                f"bytes_written_per_view_{name}": sum(program.buffers) / BATCH,
                f"tensors_between_processes_{name}": message.count(b"rebuild_storage"),
                f"pickled_bytes_{name}": len(message),
                f"worker_ms_{name}": 1e3 * packing,
                f"main_ms_{name}": 1e3 * performing,
            }
    result |= measure_copies(int(BATCH * result["bytes_to_device_per_view_randaug"]))
    common.table([[name, value] for name, value in result.items()], ["counts, batch of 256 views", ""])
    return result


class Sent(torch.utils.data.Dataset):
    """Batches as workers send them: buffers of bytes."""

    def __init__(self, num_bytes: int) -> None:
        self.image = np.ones((num_bytes // 3, 1, 3), np.uint8)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, _: int) -> torch.Tensor:
        return pack([self.image])[0]


def measure_copies(num_bytes: int) -> dict[str, float]:
    """Milliseconds in which the main process copies a batch that a worker has sent: the least of some."""
    result = {}
    for name, copy in (("one_thread_ms", torch.Tensor.copy_), ("ms", copy_in_parts)):
        rounds = []
        for sent in torch.utils.data.DataLoader(Sent(num_bytes), batch_size=None, num_workers=1):
            to = torch.ones(sent.shape, dtype=torch.uint8)  # as memory that is pinned is there already
            torch.set_num_threads(1)  # as in a loader's thread
            rounds.append(common.seconds(partial(copy, to, sent)))
        result[f"copy_{name}"] = 1e3 * min(rounds)
    return result


def _order(maker: ViewMaker) -> None:
    """What the main process of a run does to decide when each image is decoded."""
    spans = [Span(0, start, start + BATCH) for start in range(0, len(maker.images) * NUM_VIEWS, BATCH)]
    for _ in DeviceViewMaker(maker, torch.device("cpu"))._items(spans, workers()):
        pass


def _least_cpu(work: Callable[[], Any]) -> float:
    """CPU seconds of this thread, the least of some rounds."""
    rounds = []
    for _ in range(10):
        began = time.thread_time()
        work()
        rounds.append(time.thread_time() - began)
    return min(rounds)


# ------------------------------------------------------------------------------------------------------------ training


def training_set(data: Path | None, rows: int, folder: Path, augmentation: str = "randaug") -> ReinforcedDataset:
    """A set of made-up answers whose rows come again until there are enough for a single epoch: workers start only once."""
    images, _ = common.photos(data, min(rows, 2048))
    written = synthetic.write(synthetic.with_numbers(images), Augmentation.named(augmentation, SIDE), 4, folder)
    plus = load_reinforced(written)
    repeated = plus.plus.select([n % len(plus) for n in range(rows)])
    # As in all epochs but the first, images were compared with what was reinforced.
    return ReinforcedDataset(repeated, plus.provenance, check_images=False)


class Clock(TrainerCallback):
    """Notes the time at two steps."""

    def __init__(self, first: int) -> None:
        self.first, self.began, self.steps, self.ended = first, 0.0, 0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.first:
            torch.cuda.synchronize()
            self.began = time.perf_counter()
        if state.global_step == state.max_steps:
            torch.cuda.synchronize()
            self.ended, self.steps = time.perf_counter(), state.max_steps - self.first


def trainer_of(student: str, train: ReinforcedDataset, folder: Path, steps: int, augment_on: str) -> ReinforcedTrainer:
    """A trainer in bfloat16; on a GPU its model is in channels_last."""
    torch.manual_seed(0)
    model = build_student(f"timm:{student}", None, 1000, size=SIDE)
    arguments = ReinforcedTrainingArguments(
        str(folder / "run"), bf16=True, per_device_train_batch_size=BATCH, dataloader_num_workers=workers(),
        max_steps=steps, save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
        dataloader_drop_last=True, augment_on=augment_on,
    )  # fmt: skip
    return ReinforcedTrainer(model=model, args=arguments, train_dataset=train)


def training_speed(
    student: str, train: ReinforcedDataset, folder: Path, augment_on: str, first: int, steps: int
) -> float:
    """Images a second of a training, without its first steps."""
    trainer = trainer_of(student, train, folder, first + steps, augment_on)
    clock = Clock(first)
    trainer.add_callback(clock)
    trainer.train()
    return clock.steps * BATCH / (clock.ended - clock.began)


def step_speed(
    student: str, train: ReinforcedDataset, folder: Path, steps: int, device: torch.device, precision: str = "bf16"
) -> float:
    """Images a second of the same step on one batch that stays on the GPU; `precision` is one of `PRECISIONS`."""
    trainer = trainer_of(student, train, folder, 1, "cpu")
    model: torch.nn.Module = trainer.model.to(device).train()
    loaded = default_data_collator(train.__getitems__([(row, 0) for row in range(BATCH)]))
    inputs = trainer._prepare_inputs(trainer._student_inputs(loaded))
    inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    called: Any = torch.compile(model) if precision == "bf16_compiled" else model

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision.startswith("bf16")):
            loss = trainer.compute_loss(called, inputs)
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


def measure_precisions(data: Path | None, device: torch.device, *, quick: bool) -> dict[str, float]:
    """The bare step of a convolutional network and of a transformer in each precision."""
    result: dict[str, float] = {}
    with common.working_folder() as folder:
        train = training_set(data, BATCH, folder)
        for student, name in (("resnet50", "resnet50"), ("vit_small_patch16_224", "vit_s")):
            for precision in PRECISIONS:
                torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
                speed = step_speed(student, train, folder, 20 if quick else 60, device, precision)
                result[f"step_{name}_{precision}_images_per_s"] = speed
        torch.set_float32_matmul_precision("highest")
    common.table([[name, value] for name, value in result.items()], ["bare step, batch of 256", "images/s"])
    return result


def measure_training(data: Path | None, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """The ratios of training to its bare step, after and before."""
    result: dict[str, Any] = {}
    rows = []
    fetched = 2 * workers()  # batches that may be ready when the clock starts
    counted = fetched if quick else 3 * fetched
    first = fetched + 5
    with common.working_folder() as folder:
        train = training_set(data, (first + counted + 1) * BATCH, folder)
        for student, name in (("resnet50", "resnet50"), ("mobilenetv3_large_100", "mobilenetv3")):
            limit = step_speed(student, train, folder, 20 if quick else 60, device)
            after = training_speed(student, train, folder, "device", first, counted)
            before = training_speed(student, train, folder, "cpu", first, counted)
            result |= {
                f"training_{name}": after / limit, f"training_{name}_before": before / limit,
                f"training_{name}_gain": after / before, f"training_{name}_limit_images_per_s": limit,
                f"training_{name}_images_per_s": after, f"training_{name}_before_images_per_s": before,
            }  # fmt: skip
            rows.append([student, limit, before, after, before / limit, after / limit])
            print(rows[-1], file=sys.stderr, flush=True)
            gc.collect()
            torch.cuda.empty_cache()
    common.table(rows, ["training", "limit/s", "before/s", "after/s", "before", "after"])
    return result | {"training_steps_counted": counted}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--only", nargs="*", choices=[*PARTS, "precisions"], help="Only these. Default: all but precisions."
    )
    flags: argparse.Namespace = parser.parse_args()
    chosen = flags.only or PARTS
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(0) if gpu else "CPU", "date": datetime.now(UTC).date().isoformat(),
        "cores": workers() + 1, "num_views": NUM_VIEWS, "batch": BATCH,
    }  # fmt: skip

    def exactness() -> dict[str, Any]:
        few = (12 if flags.quick else 48) if gpu else 8
        sets = {
            "photos": undecoded_images(common.photos(flags.data, few)[0], "image"),
            "small": undecoded_images(common.small_images(flags.data, few)[0], "image"),
        }
        return measure_exactness(sets, device, 8 if gpu else 4)

    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "exact": exactness,
        "counts": lambda: measure_counts(flags.data),
        "parts": lambda: measure_parts(flags.data, flags.weights, device),
        "generation": lambda: measure_generation(flags.data, flags.weights, device, quick=flags.quick),
        "training": lambda: measure_training(flags.data, device, quick=flags.quick),
        "precisions": lambda: measure_precisions(flags.data, device, quick=flags.quick),
    }
    try:
        for name, measure in parts.items():
            if name in chosen and (gpu or name in ("exact", "counts")):
                began = time.perf_counter()
                result |= measure()
                print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    finally:  # what is known, should the rest fail
        rows = [[key, result.get(key, "-"), target] for key, target in TARGETS.items()]
        common.table(rows, ["", "measured", "aim"])
        common.finish(result, flags)


if __name__ == "__main__":
    main()

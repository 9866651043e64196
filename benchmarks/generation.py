"""How fast the whole job is beside its teacher alone, on how many processes, and in how much memory.

    python benchmarks/generation.py --data DATA --weights WEIGHTS                      # ratio, two_processes, peak_mb
    python benchmarks/generation.py --data DATA --weights WEIGHTS --workers 1 2        # ratio for numbers of workers
    python benchmarks/generation.py --data DATA --weights WEIGHTS --late --only ratio  # ratio in a program, as told below

`ratio`: views a second of `Job.run` (decoding, augmenting, the teacher, top-K, encoding, writing) over those of the
teacher alone on the same views, ready in memory, in batches of 16 or 64, whichever is faster, in a process of its own with the
C library's allocator as it is. The job's process has it set before torch is imported, as `hf-dr reinforce` does; with
`--late` only when the run begins, as in a program that imports torch and calls `hf_dr.reinforce`.
`two_processes`: views a second of two processes that accelerate launches over those of one, one torch thread in each.
`peak_mb`: largest resident memory of a run, beside runs on twice the rows (`peak_mb_long`) and with four times the views
(`peak_mb_views`). EfficientNet-Lite0 at 224x224, randaug, CPU.

What is compared is timed in turns, round after round, and medians are taken, so that a disturbance of the machine hits
both sides. The parts of a view's cost are CPU time, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hf_dr.allocator import keep_freed_memory

if not {"--alone", "--late"} & set(sys.argv):
    keep_freed_memory()  # before torch is imported below

import common
import datasets
import numpy as np
import PIL.Image
import torch

from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import Job, reinforce_job
from hf_dr.generation.labelling import Labeller
from hf_dr.generation.sources import cut_spans
from hf_dr.processes import num_cores, process_state
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.topk import top_k
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.images import pixel_hash
from hf_dr.views.maker import ViewBatch, hash_view
from hf_dr.views.ops.base import Params
from hf_dr.views.rng import view_rng

TOP_K, NUM_VIEWS = 10, 8
BARE_BATCHES = (16, 64)  # the teacher alone is timed at its better one
TARGETS = {"ratio": 0.85, "two_processes": 1.7}


def job(images: datasets.Dataset, teacher: Teacher, folder: Path, num_views: int, workers: int | None = None) -> Job:
    """The run that is timed, into a new folder."""
    config = ReinforceConfig(
        output_dir=tempfile.mkdtemp(dir=folder),
        num_views=num_views,
        top_k=TOP_K,
        label_column="none",
        num_workers=workers,
    )
    return reinforce_job(images, teacher, Augmentation.named("randaug"), config)


def batches(made: Job) -> list[ViewBatch]:
    """All views of a job, in its own batches."""
    maker = made.plan.view_maker()
    spans = cut_spans(made.provenance, range(made.provenance.num_shards), made.source.batch_size)
    return [maker[span] for span in spans]


def forward(teacher: Teacher, views_BHWC: Sequence[torch.Tensor]) -> None:
    """The teacher alone."""
    for batch in views_BHWC:
        teacher(batch.permute(0, 3, 1, 2))


# -------------------------------------------------------------------------------------------------------------- ratio


class TeacherAlone:
    """The teacher in a process of its own, as it would be without this package; it is timed when it is told to."""

    def __init__(self, flags: argparse.Namespace, rows: int) -> None:
        command = [sys.executable, __file__, "--alone", str(rows), *common.inputs(flags)]
        environment = {**os.environ, "HF_DR_ALLOCATOR": "default"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def seconds(self) -> float:
        """Times all views once in batches of each size and returns the least."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("time\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def end(self) -> None:
        """Ends the process."""
        self._process.communicate()


def time_alone(flags: argparse.Namespace) -> None:
    """The process of `TeacherAlone`."""
    images, _ = common.photos(flags.data, flags.alone)
    teacher, _ = common.lite0(flags.weights)
    with common.working_folder() as folder:
        ready = torch.cat([batch.pixels for batch in batches(job(images, teacher, folder, NUM_VIEWS))])
    sizes = {size: ready.split(size) for size in BARE_BATCHES}
    forward(teacher, sizes[16][:2])
    for _ in sys.stdin:
        taken = min(common.seconds(partial(forward, teacher, views)) for views in sizes.values())
        print(taken, flush=True)


def measure_ratio(
    images: datasets.Dataset,
    teacher: Teacher,
    folder: Path,
    rounds: int,
    workers: list[int],
    flags: argparse.Namespace,
) -> tuple[dict[str, Any], list[list[Any]]]:
    """Times the teacher alone and the job, in turns; the job is the one reported; those with `workers` are shown next to it."""

    def run(count: int | None = None) -> float:
        return common.seconds(job(images, teacher, folder, NUM_VIEWS, count).run)

    alone = TeacherAlone(flags, len(images))
    works = {"teacher alone": alone.seconds, "job": run}
    works |= {f"job, {count} workers": partial(run, count) for count in workers}
    times = common.in_turns(works, rounds, "ratio", warm_up=0)
    alone.end()
    views = len(images) * NUM_VIEWS
    speeds = {name: views / statistics.median(taken) for name, taken in times.items()}
    ratios = {name: common.median_ratio(times["teacher alone"], taken) for name, taken in times.items()}
    result: dict[str, Any] = {
        "ratio": ratios["job"], "views": views, "rounds": rounds, "bare_views_per_s": speeds["teacher alone"],
        "views_per_s": speeds["job"],
    }  # fmt: skip
    result |= {f"ratio_workers_{count}": ratios[f"job, {count} workers"] for count in workers}
    return result, [[name, speeds[name], ratios[name]] for name in times]


def measure_parts(images: datasets.Dataset, teacher: Teacher, folder: Path) -> list[list[Any]]:
    """CPU milliseconds per view of each step, on one thread."""
    made = job(images, teacher, folder, NUM_VIEWS)
    maker = made.plan.view_maker()
    augmentation = made.plan.augmentation
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spent: dict[str, float] = {}

    def draw(row: int, view: int, size: tuple[int, int]) -> Params:
        return augmentation.sample(view_rng(0, row, view), size)

    def copied_hash(shown: PIL.Image.Image) -> int:
        return hash_view(np.array(shown))

    def ask(batch: ViewBatch) -> torch.Tensor:
        return teacher(batch.pixels.permute(0, 3, 1, 2))

    def timed(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        began = time.process_time()
        result = work(*arguments)
        spent[name] = spent.get(name, 0.0) + time.process_time() - began
        return result

    for row in range(len(images)):
        image = timed("decode", maker.image, row)
        timed("hash the image", pixel_hash, image)
        size = (image.height, image.width)
        for view in range(NUM_VIEWS):
            params = timed("draw parameters", draw, row, view, size)
            shown = timed("augment", augmentation.apply, image, params)
            timed("copy and hash the view", copied_hash, shown)
    ready = batches(made)
    answers: list[torch.Tensor] = []
    for batch in ready:
        answers.append(timed("teacher", ask, batch))
        timed("top-K", top_k, answers[-1], TOP_K)
    # The run with all this handed to it: what remains is collecting, encoding and writing.
    replies = _Replies(teacher, iter(answers))
    labeller = Labeller(replies, made.provenance)  # type: ignore[arg-type]
    made.source.answers = lambda spans: (labeller.label(batch) for batch in ready)  # type: ignore[method-assign]
    timed("collect, encode, write", made.run)
    torch.set_num_threads(threads)
    views = len(images) * NUM_VIEWS
    return [[name, 1e3 * seconds / views] for name, seconds in spent.items()]


class _Replies:
    """Answers from memory in the teacher's place."""

    def __init__(self, teacher: Teacher, answers: Any) -> None:
        self.device, self.num_classes, self.num_folds = teacher.device, teacher.num_classes, 1
        self._answers = answers

    def __call__(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        return next(self._answers)


# -------------------------------------------------------------------------------------------------- processes, memory


def launched(processes: int, rows: int, num_views: int, flags: argparse.Namespace) -> dict[str, float]:
    """Runs the job in a fresh launch of accelerate, one torch thread in each process: seconds and peak memory."""
    kind = "--multi_gpu" if processes > 1 else "--cpu"  # accelerate's name for several processes of any kind
    with common.working_folder() as folder:
        command = [
            sys.executable, "-m", "accelerate.commands.launch", kind, "--num_processes", str(processes),
            "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
            "--num_cpu_threads_per_process", "1", "--main_process_port", "0",
            __file__, "--child", str(folder), str(rows), str(num_views), *common.inputs(flags),
        ]  # fmt: skip
        common.output_of(command, {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"})
        return json.loads((folder / "measured.json").read_text(encoding="utf-8"))


def child(flags: argparse.Namespace) -> None:
    """One launched process: the job from barrier to barrier, loading left out."""
    folder, rows, num_views = Path(flags.child[0]), int(flags.child[1]), int(flags.child[2])
    state = process_state()
    torch.set_num_threads(1)
    images, _ = common.photos(flags.data, rows)
    teacher, _ = common.lite0(flags.weights)
    config = ReinforceConfig(
        output_dir=str(folder / "plus"), num_views=num_views, top_k=TOP_K, label_column="none", num_workers=1
    )
    made = reinforce_job(images, teacher, Augmentation.named("randaug"), config)
    teacher(torch.zeros(16, 3, 224, 224, dtype=torch.uint8))
    state.wait_for_everyone()
    taken = common.seconds(made.run)
    if state.is_main_process:
        kilobytes = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        measured = {"seconds": taken, "peak_mb": kilobytes / 1024 / (1024 if sys.platform == "darwin" else 1)}
        (folder / "measured.json").write_text(json.dumps(measured), encoding="utf-8")
    state.wait_for_everyone()


def measure_processes(flags: argparse.Namespace, rows: int, rounds: int) -> dict[str, Any]:
    """`two_processes` and the peaks of memory."""
    cores = num_cores()
    one, two = [], []
    for number in range(rounds):
        one.append(launched(1, rows, NUM_VIEWS, flags))
        if cores > 1:
            two.append(launched(2, rows, NUM_VIEWS, flags))
        print(f"launch {number + 1} of {rounds}", file=sys.stderr)
    result: dict[str, Any] = {"two_processes": None, "two_processes_reason": "fewer than 2 cores"}
    if two:
        seconds = ([run["seconds"] for run in runs] for runs in (one, two))
        result = {"two_processes": common.median_ratio(*seconds)}
    return result | {
        "peak_mb": statistics.median(run["peak_mb"] for run in one),
        "peak_mb_long": launched(1, 2 * rows, NUM_VIEWS, flags)["peak_mb"],
        "peak_mb_views": launched(1, rows, 4 * NUM_VIEWS, flags)["peak_mb"],
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[], help="Also time the job with these numbers of workers."
    )
    parser.add_argument("--rounds", type=int, help="Rounds of each comparison. Default: 7, or 3 with --quick.")
    parser.add_argument("--late", action="store_true", help="Set the allocator when the run begins.")
    parser.add_argument("--only", choices=["ratio", "parts", "processes"], help="Measure only this.")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        child(flags)
        return
    if flags.alone:
        time_alone(flags)
        return
    rows, rounds = (24, flags.rounds or 3) if flags.quick else (64, flags.rounds or 7)
    images, data = common.photos(flags.data, rows)
    teacher, who = common.lite0(flags.weights)
    print(f"data: {data}, {rows} rows x {NUM_VIEWS} views; teacher: {who}\n")
    result: dict[str, Any] = {
        "data": data,
        "teacher": who,
        "examples": rows,
        "num_views": NUM_VIEWS,
        "late": flags.late,
    }
    with common.working_folder() as folder:
        if flags.only in (None, "ratio"):
            measured, speeds = measure_ratio(images, teacher, folder, rounds, flags.workers, flags)
            result |= measured
            common.table(speeds, ["", "views/s", "ratio"])
        if flags.only in (None, "parts"):
            parts = measure_parts(images, teacher, folder)
            result |= {f"cpu_ms_{name.replace(',', '').replace(' ', '_').lower()}": ms for name, ms in parts}
            common.table(parts, ["step", "CPU ms a view"])
    if flags.only in (None, "processes"):
        measured = measure_processes(flags, rows if flags.quick else 2 * rows, 1 if flags.quick else (rounds + 1) // 2)
        result |= measured
        common.table([[key, "-" if value is None else value] for key, value in measured.items()], ["", "measured"])
    common.table(
        [[name, result.get(name) or "-", target] for name, target in TARGETS.items()], ["", "measured", "at least"]
    )
    common.finish(result, flags)


if __name__ == "__main__":
    main()

"""What students gain from a "+" dataset at real length, and how the gain changes with the number of epochs.

    python benchmarks/length.py --data DATA --weights WEIGHTS --work WORK --json length.json                # on a GPU
    python benchmarks/length.py --scale cpu --jobs 2 --data DATA --weights WEIGHTS --work WORK --json length_cpu.json

The whole of CIFAR-10: 50,000 images to learn from, 10,000 for testing. With `--scale gpu` a ResNet-18 and a small ViT from
fresh weights see them at 64x64; the teachers are ImageNet's EfficientNet-Lite0 and Lite1, fine-tuned at 128x128 on the same
images; V = 16. With `--scale cpu`, which two cores do in some hours, a ResNet of 0.3 million weights, one of 2.7 million
(resnet14) and a ViT of 0.7 million see them at 32x32; the teacher is Lite0 at 64x64; V = 32. Teachers answer in bfloat16.

Students learn from labels (erm), from stored answers (reinforced), from the teachers in memory (kd), or half from stored
answers and half from labels (both), with the same model, views, optimizer and steps. Keys: `<student>_<epochs>_<objective>_`
with `top1`, `nll` (nats), `ece` and `corrupted` (share of errors; each test image has one of the fifteen corruptions, at
severity 3), each a mean over seeds, with `_std`; `seeds`; `temperature`, which fits the test images best (above 1: the
student is too sure), and `calibrated_ece`, of each half of them at the temperature that fits the other half; and `seconds`,
which says little about speed because several trainings share the machine; and `<student>_<epochs>_<objective>_gain_` with
the differences from erm of the same seed, above 0 where it is better.

Trainings run side by side, `--jobs` at a time. Finished ones in --work are kept: the same command goes on where it was
stopped, within a training at its last whole epoch (its `seconds` are then those since). With `--minutes` none starts that
would not end in time.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import accuracy
import common
import datasets
import numpy as np
import torch

from hf_dr.allocator import has_gpu, keep_freed_memory
from hf_dr.evaluation.corruptions import CORRUPTIONS, corrupt, corruption_rng
from hf_dr.files import write_whole, written_whole
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.processes import num_cores
from hf_dr.replay.augmented import AugmentedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.base_dataset import load_base
from hf_dr.teacher.calibration import calibrated_ece, fit_temperature
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.metrics import compute_metrics
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.checkpoints import last_checkpoint
from hf_dr.training.distillation import OnlineDistillationTrainer
from hf_dr.training.students import build_student
from hf_dr.training.trainer import ReinforcedTrainer
from hf_dr.views.augmentation import Augmentation

SET, TEACHER_BATCH = "cifar10", 128
OBJECTIVES = ("erm", "reinforced", "kd", "both")
METRICS = ("top1", "nll", "ece")
SEVERITY = 3


@dataclass(frozen=True)
class Scale:
    """How much is computed."""

    side: int  # of the students' images in pixels
    num_views: int
    batch: int
    teacher_side: int
    teacher_epochs: int
    teachers: tuple[str, ...]
    students: dict[str, dict[str, Any]]


_SGD = {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4}
_ADAMW = {"optim": "adamw_torch_fused", "learning_rate": 1e-3, "weight_decay": 0.05}
_VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 8, "num_heads": 3}
_SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 3}
_SMALL_RESNET = {"stem_width": 16, "channels": [32, 48, 64, 96], "layers": [1, 1, 1, 1]}
_RESNET14 = {"stem_width": 16, "channels": [32, 64, 128, 256], "layers": [1, 1, 2, 2]}
SCALES = {
    "gpu": Scale(
        side=64, num_views=16, batch=256, teacher_side=128, teacher_epochs=6, teachers=(common.LITE0, common.LITE1),
        students={
            "resnet18": {"name": "timm:resnet18", **_SGD},
            "vit": {"name": "timm:vit_tiny_patch16_224", "model_args": _VIT, **_ADAMW},
        },
    ),
    "cpu": Scale(
        side=32, num_views=32, batch=128, teacher_side=64, teacher_epochs=3, teachers=(common.LITE0,),
        students={
            "resnet": {"name": "timm:resnet10t", "model_args": _SMALL_RESNET, "channels_last": True, **_SGD},
            "resnet14": {"name": "timm:resnet10t", "model_args": _RESNET14, "channels_last": True, **_SGD},
            "vit": {"name": "timm:vit_tiny_patch16_224", "model_args": _SMALL_VIT, **_ADAMW},
        },
    ),
}  # fmt: skip


def augmentation(side: int) -> Augmentation:
    """The views, for a student or a teacher."""
    return Augmentation.from_list(
        [
            {"RandomResizedCrop": {"size": side, "scale": [0.35, 1.0]}},
            {"RandomHorizontalFlip": {"p": 0.5}},
            {"RandAugment": {"num_ops": 1, "magnitude": 9}},
            {"RandomErasing": {"p": 0.25}},
        ]
    )


@dataclass(frozen=True)
class Work:
    """What a process must know: the folders and sizes."""

    data: Path
    weights: Path
    folder: Path
    jobs: int
    scale: Scale
    rows: int | None  # of the training images; None: all
    test_rows: int | None

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def workers(self) -> int:
        return num_cores() // self.jobs if self.gpu else 0  # a CPU has nothing to do meanwhile

    @property
    def plus(self) -> Path:
        return self.folder / "plus"

    @property
    def corrupted(self) -> Path:
        return self.folder / "corrupted.parquet"

    def teacher(self, architecture: str) -> Path:
        return self.folder / f"teacher_{architecture}"

    def images(self, split: str) -> datasets.Dataset:
        rows = self.rows if split == "train" else self.test_rows
        dataset, _ = load_base(str(self.data / SET), split=split)
        return dataset if rows is None else dataset.select(range(rows))

    def drawn(self, side: int) -> AugmentedDataset:
        """The training images with views that are drawn as they come."""
        return AugmentedDataset(self.images("train"), augmentation(side), image_column="image", label_column="label")

    def arguments(self, folder: Path, **more: Any) -> ReinforcedTrainingArguments:
        return ReinforcedTrainingArguments(
            str(folder), bf16=self.gpu, lr_scheduler_type="cosine", warmup_steps=0.05,
            per_device_eval_batch_size=500, dataloader_num_workers=self.workers, dataloader_drop_last=True,
            dataloader_persistent_workers=self.workers > 0, save_strategy="epoch", save_total_limit=1, logging_steps=200,
            report_to="none", disable_tqdm=True, **more,
        )  # fmt: skip


def prepare_corrupted(work: Work) -> None:
    """Writes the test images, each with another corruption than the one before it."""
    names = list(CORRUPTIONS)

    def spoil(row: dict[str, Any], n: int) -> dict[str, Any]:
        name = names[n % len(names)]
        image = row["image"].convert("RGB")
        return {"image": corrupt(image, name, SEVERITY, corruption_rng(0, n, name, SEVERITY))}

    images = work.images("test")
    spoilt = images.map(spoil, with_indices=True, features=images.features)
    with written_whole(work.corrupted) as path:
        spoilt.to_parquet(str(path))


def prepare_teacher(work: Work, architecture: str) -> None:
    """Fine-tunes all of a classifier that knows ImageNet, at a size that is larger than the students'."""
    torch.manual_seed(1)
    data = work.drawn(work.scale.teacher_side)
    model = accuracy.pretrained(architecture, work.weights, work.scale.teacher_side, data.class_names, data.num_classes)
    arguments = work.arguments(
        work.teacher(architecture), num_train_epochs=work.scale.teacher_epochs, per_device_train_batch_size=TEACHER_BATCH,
        learning_rate=1e-3, optim="adamw_torch_fused", weight_decay=0.01, reinforced_probability=0.0, seed=1,
    )  # fmt: skip
    trainer = ReinforcedTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=work.images("test"),
        compute_metrics=compute_metrics,
    )
    trainer.train(last_checkpoint(str(arguments.output_dir)))
    found = trainer.evaluate()
    trainer.save_model()
    _write_result(work, f"teacher_{architecture}", {key: found[f"eval_{key}"] for key in METRICS})


def prepare_plus(work: Work) -> None:
    """Makes the "+" dataset."""
    teacher = _teacher(work)
    config = ReinforceConfig(
        output_dir=str(work.folder / "plus.unfinished"), num_views=work.scale.num_views, top_k=10, batch_size=512,
        num_workers=work.workers, image_column="image", label_column="label", allow_disagreement=work.rows is not None,
    )  # fmt: skip
    began = time.perf_counter()
    reinforce(work.images("train"), teacher, augmentation(work.scale.side), config)
    Path(config.output_dir).rename(work.plus)
    _write_result(work, "plus", {"seconds": time.perf_counter() - began})


def _teacher(work: Work) -> Teacher:
    folders = [str(work.teacher(architecture)) for architecture in work.scale.teachers]
    return Teacher.from_pretrained(folders, device=work.device, precision="bf16")


def train(work: Work, student: str, epochs: int, objective: str, seed: int) -> None:
    """Trains a student, and writes what it reaches."""
    stored = objective in ("reinforced", "both")
    data: Any = load_reinforced(work.plus, seed=seed) if stored else work.drawn(work.scale.side)
    data.seed = seed
    settings = dict(work.scale.students[student])
    name, model_args = settings.pop("name"), settings.pop("model_args", None)
    arguments = work.arguments(
        work.folder / "runs" / _name(student, epochs, objective, seed), num_train_epochs=epochs,
        per_device_train_batch_size=work.scale.batch, seed=seed,
        reinforced_probability=1.0 if stored else 0.0, label_weight=0.5 if objective == "both" else 0.0, **settings,
    )  # fmt: skip
    torch.manual_seed(seed)
    shared: dict[str, Any] = {
        "model": build_student(
            name, data.class_names, data.num_classes, model_args=model_args, size=work.scale.side, crop=1.0
        ),
        "args": arguments,
        "train_dataset": data,
        "eval_dataset": {"test": work.images("test"), "corrupted": load_base(str(work.corrupted), split="train")[0]},
        "compute_metrics": compute_metrics,
    }
    began = time.perf_counter()
    made = (
        OnlineDistillationTrainer(**shared, teacher=_teacher(work))
        if objective == "kd"
        else ReinforcedTrainer(**shared)
    )
    made.train(last_checkpoint(str(arguments.output_dir)))
    seconds = time.perf_counter() - began
    found = made.evaluate()
    result = {key: found[f"eval_test_{key}"] for key in METRICS}
    result |= {"corrupted": 1 - found["eval_corrupted_top1"], "seconds": seconds}
    predicted = made.predict(work.images("test"))
    logits_BC, labels_B = np.asarray(predicted.predictions), np.asarray(predicted.label_ids)
    result |= {
        "temperature": fit_temperature(logits_BC, labels_B),
        "calibrated_ece": calibrated_ece(logits_BC, labels_B),
    }
    _write_result(work, _name(student, epochs, objective, seed), result)
    shutil.rmtree(str(arguments.output_dir))


def _name(student: str, epochs: int, objective: str, seed: int) -> str:
    return f"{student}_{epochs}_{objective}_{seed}"


def _write_result(work: Work, name: str, result: dict[str, float]) -> None:
    file = work.folder / "results" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(result))


# ------------------------------------------------------------------------------------------------------------- schedule


@dataclass(frozen=True)
class Task:
    """Something to be done: what it makes, and what must be there before."""

    do: Any
    arguments: tuple[Any, ...]
    makes: Path
    needs: tuple[Path, ...] = ()
    epochs: int = 0  # of a student


def tasks_of(work: Work, flags: Any) -> list[Task]:
    """All that is to be done, the most wanted first."""
    results = work.folder / "results"
    made = [results / f"teacher_{architecture}.json" for architecture in work.scale.teachers]
    tasks = [
        Task(prepare_teacher, (architecture,), file)
        for architecture, file in zip(work.scale.teachers, made, strict=True)
    ]
    tasks.append(Task(prepare_corrupted, (), work.corrupted))
    tasks.append(Task(prepare_plus, (), results / "plus.json", tuple(made)))
    plus = (results / "plus.json",)
    needs = {"erm": (), "reinforced": plus, "kd": tuple(made), "both": plus}
    for student in flags.students:
        for epochs in flags.epochs:
            for seed in flags.seeds:
                for objective in flags.objectives:
                    file = results / f"{_name(student, epochs, objective, seed)}.json"
                    needed = (work.corrupted, *needs[objective])
                    tasks.append(Task(train, (student, epochs, objective, seed), file, needed, epochs))
    return tasks


def run_tasks(work: Work, tasks: list[Task], jobs: int, ends: float | None) -> None:
    """Runs what is not done yet, `jobs` at a time, each as soon as what it needs is there and if it will end in time."""
    left = [task for task in tasks if not task.makes.exists()]
    running: dict[Future[None], tuple[Task, float]] = {}
    per_epoch = 0.0  # seconds; the slowest so far
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin_process) as pool:
        while left or running:
            for task in list(left):
                in_time = ends is None or time.time() + 1.2 * per_epoch * task.epochs + 5 < ends
                if len(running) < jobs and in_time and all(file.exists() for file in task.needs):
                    left.remove(task)
                    running[pool.submit(task.do, work, *task.arguments)] = (task, time.time())
            if not running:
                break
            done, _ = wait(running, None if ends is None else max(0.0, ends - time.time()), FIRST_COMPLETED)
            if not done:  # out of time: what is running is lost, what has ended is written
                for process in list(pool._processes.values()):
                    process.terminate()
                break
            for future in done:
                task, began = running.pop(future)
                future.result()
                taken = time.time() - began
                if task.epochs:
                    per_epoch = max(per_epoch, taken / task.epochs)
                print(f"{taken:6.1f} s: {task.makes.stem}", file=sys.stderr, flush=True)
    for task in left:
        print(f"no time for {task.makes.stem}", file=sys.stderr)


def _begin_process() -> None:
    if not has_gpu():
        keep_freed_memory()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()


# --------------------------------------------------------------------------------------------------------------- report


def summary(work: Work) -> dict[str, Any]:
    """Means and standard deviations over the seeds of what is done, and the gains over erm."""
    results = work.folder / "results"
    result: dict[str, Any] = {
        key: getattr(work.scale, key) for key in ("side", "num_views", "batch", "teacher_side", "teacher_epochs")
    }
    for architecture in work.scale.teachers:
        file = results / f"teacher_{architecture}.json"
        if file.exists():
            result |= {f"{file.stem}_{key}": value for key, value in json.loads(file.read_text()).items()}
    found: dict[tuple[str, int, str], dict[int, dict[str, float]]] = {}
    for file in results.glob("*_*_*_*.json"):
        student, length, objective, seed = file.stem.rsplit("_", 3)
        if student in work.scale.students:
            found.setdefault((student, int(length), objective), {})[int(seed)] = json.loads(file.read_text())
    for (student, epochs, objective), of_seed in sorted(found.items()):
        prefix = f"{student}_{epochs}_{objective}"
        result[f"{prefix}_seeds"] = len(of_seed)
        for key in (*METRICS, "corrupted", "temperature", "calibrated_ece", "seconds"):
            _spread(result, f"{prefix}_{key}", [each[key] for each in of_seed.values()])
        plain = found.get((student, epochs, "erm"), {})
        shared = sorted(plain.keys() & of_seed.keys())
        if objective != "erm" and shared:
            for key, sign in {"top1": 1, "nll": -1, "ece": -1, "corrupted": -1, "calibrated_ece": -1}.items():
                _spread(result, f"{prefix}_gain_{key}", [sign * (of_seed[n][key] - plain[n][key]) for n in shared])
    return result


def _spread(result: dict[str, Any], key: str, values: list[float]) -> None:
    result[key] = float(np.mean(values))
    if len(values) > 1:
        result[f"{key}_std"] = float(np.std(values, ddof=1))


def main() -> None:
    parser = common.training_parser(__doc__)
    parser.add_argument("--scale", choices=list(SCALES), default="gpu", help="How much is computed. Default: gpu.")
    for setting in ("teacher_side", "teacher_epochs", "num_views"):
        parser.add_argument(f"--{setting}", type=int, help="Default: the scale's. A --work folder is of one.")
    parser.add_argument(
        "--students", nargs="+", help="resnet18 or vit; resnet, resnet14 or vit on a CPU. Default: the first."
    )
    parser.add_argument(
        "--objectives", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES[:3]), help="Default: all but both."
    )
    parser.add_argument("--epochs", nargs="+", type=int, default=[10, 30], help="Default: 10 30.")
    parser.add_argument("--jobs", type=int, default=4, help="Trainings side by side. Default: 4.")
    parser.add_argument("--minutes", type=float, help="Stop then. Default: when all is done.")
    flags = parser.parse_args()
    if flags.data is None or flags.weights is None:
        sys.exit("--data and --weights must be given, found none. Give both.")
    if flags.quick:  # whatever is asked for, since most machines have no GPU
        vars(flags).update(scale="cpu", students=None, epochs=[1], seeds=[0], jobs=2, teacher_epochs=1, num_views=2)
    scale = SCALES[flags.scale]
    flags.students = flags.students or list(scale.students)[:1]
    if set(flags.students) - set(scale.students):
        sys.exit(f"--students must be of {', '.join(scale.students)}, found {' '.join(flags.students)}.")
    chosen = {name: getattr(flags, name) for name in ("teacher_side", "teacher_epochs", "num_views")}
    scale = replace(scale, **{name: value for name, value in chosen.items() if value is not None})
    with common.working_folder(flags.work) as folder:
        sizes = (256, 128) if flags.quick else (None, None)
        work = Work(flags.data, flags.weights, folder, flags.jobs, scale, *sizes)
        work.folder.mkdir(parents=True, exist_ok=True)
        ends = None if flags.minutes is None else time.time() + 60 * flags.minutes
        try:
            run_tasks(work, tasks_of(work, flags), flags.jobs, ends)
        finally:  # what is known, should the rest fail
            name = torch.cuda.get_device_name(0) if work.gpu else "CPU"
            common.finish(summary(work) | {"device": name}, flags)


if __name__ == "__main__":
    main()

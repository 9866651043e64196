"""What the benchmarks share: flags, data, teachers, facts about the machine, and the report."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch

import hf_dr
from hf_dr.processes import num_cores
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.members import Member, weights_hash
from hf_dr.teacher.preprocessing import Preprocessing
from hf_dr.text import text_table

EMBEDDED = Path(hf_dr.__file__).parent / "assets"
EMBEDDED_TEACHERS = sorted(str(path.parent) for path in (EMBEDDED / "teachers").glob("*/config.json"))
PHOTOS, SMALL = "grocery_fruit_orig", "fashion_mnist_10k"
LITE0, LITE1 = "tf_efficientnet_lite0", "tf_efficientnet_lite1"
_LIBRARIES = ("datasets", "numpy", "pillow", "pyarrow", "timm", "torch", "torchvision")

# What a benchmark loads must not fill the user's cache.
_CACHE = tempfile.TemporaryDirectory(prefix="hf_dr_benchmark_")
datasets.config.HF_DATASETS_CACHE = Path(_CACHE.name)
datasets.disable_progress_bars()


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the flags that every benchmark takes; `doc` is the script's docstring."""
    flags = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument(
        "--data", type=Path, help=f"Folder of Parquet sets: {PHOTOS}/ and {SMALL}/. Default: see the output."
    )
    flags.add_argument("--weights", type=Path, help=f"Folder of {LITE0}.in1k.safetensors. Default: see the output.")
    flags.add_argument("--json", type=Path, help="Write the result there as one flat JSON object.")
    flags.add_argument("--quick", action="store_true", help="Less work, under two minutes: shows that it runs.")
    return flags


def training_parser(doc: str | None) -> argparse.ArgumentParser:
    """Returns `parser`'s with the flags of benchmarks that train."""
    flags = parser(doc)
    flags.add_argument("--work", type=Path, help="Folder of all that is made; kept. Default: a temporary one.")
    flags.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="Default: 0 1 2.")
    return flags


# --------------------------------------------------------------------------------------------------------------- data


def photos(folder: Path | None, rows: int) -> tuple[datasets.Dataset, str]:
    """Returns photographs, or generated pictures like them, and a line that says which."""
    if folder is not None:
        return _spread(parquet(folder / PHOTOS), rows), PHOTOS
    made = [{"image": {"bytes": _picture(n), "path": None}, "label": n % 10} for n in range(rows)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_list(made, features=features), "generated pictures (no --data)"


def small_images(folder: Path | None, rows: int) -> tuple[datasets.Dataset, str]:
    """Returns images of 28x28 pixels, Fashion-MNIST, and a line that says from where."""
    if folder is not None:
        return _spread(parquet(folder / SMALL), rows), SMALL
    return _spread(parquet(EMBEDDED / "fashion_mnist"), rows), "embedded Fashion-MNIST (no --data)"


def parquet(folder: Path, split: str = "train") -> datasets.Dataset:
    """Returns a split that is in a folder of Parquet files."""
    files = sorted(str(path) for path in folder.glob(f"{split}-*.parquet"))
    if not files:
        sys.exit(f"expected {split}-*.parquet in {folder}, found none. Check --data.")
    return datasets.load_dataset("parquet", data_files={split: files}, split=split)


def _spread(dataset: datasets.Dataset, rows: int) -> datasets.Dataset:
    """Returns `rows` rows, evenly spread (sets are often sorted by class), and again from the start where it has fewer."""
    length = len(dataset)
    return dataset.select([n * length // rows if rows < length else n % length for n in range(rows)])


def shrunk(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """Returns a picture with `side` pixels on the shorter side."""
    share = side / min(image.size)
    width, height = (round(share * old) for old in image.size)
    return image.resize((width, height), PIL.Image.Resampling.BICUBIC)


def shrunk_row(row: dict[str, Any], side: int) -> dict[str, Any]:
    """Returns a row's picture in RGB, with `side` pixels on the shorter side (0: as it is), for `Dataset.map`.

    It stands here and not in a script, of which `map` would try to store all that the script has imported.
    """
    image = row["image"].convert("RGB")
    return {"image": shrunk(image, side) if side else image}


def as_array(column: pa.ChunkedArray) -> np.ndarray:
    """Returns a column of numbers, or of lists of fixed sizes in each other, as an array of as many dimensions."""
    array, shape = column.combine_chunks(), [len(column)]
    while pa.types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False).reshape(shape)


def column_bytes(file: Any) -> Counter[str]:
    """Returns the compressed bytes of each column of a Parquet file."""
    metadata = pq.read_metadata(file)
    sizes: Counter[str] = Counter()
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            sizes[column.path_in_schema.split(".")[0]] += column.total_compressed_size
    return sizes


def _picture(number: int) -> bytes:
    """A JPEG with the statistics of a photo: 1/f noise in each channel, and a few flat shapes with sharp borders."""
    rng = np.random.Generator(np.random.Philox(number))
    height, width = [(348, 348), (348, 464), (464, 348)][number % 3]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]) + 1 / max(height, width)
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((3, height, width))) / frequency).real
    pixels = np.clip(128 + 45 * noise / noise.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0).copy()
    for _ in range(int(rng.integers(1, 6))):
        top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
        tall, wide = int(rng.integers(20, height // 2)), int(rng.integers(20, width // 2))
        part = pixels[top : top + tall, left : left + wide]
        part[...] = (part // 3 + rng.integers(0, 170, 3)).astype(np.uint8)
    file = BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


# ----------------------------------------------------------------------------------------------------------- teachers


def lite0(folder: Path | None) -> tuple[Teacher, str]:
    """Returns EfficientNet-Lite0, which takes 224x224, and a line that says whether it is trained."""
    if folder is not None:
        return Teacher.from_pretrained(f"timm:{LITE0}@{folder / LITE0}.in1k.safetensors"), f"{LITE0}.in1k"
    return Teacher([untrained(LITE0)]), f"untrained {LITE0} (no --weights)"


def untrained(architecture: str) -> Member:
    """Returns a classifier of ImageNet's 1,000 classes with fresh weights, which takes 224x224."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, pretrained=False).eval()
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    preprocessing = Preprocessing((224, 224), config["mean"], config["std"], "bicubic")
    return Member(model, architecture, None, None, 1000, None, preprocessing, weights_hash(model))


def lite0_or_embedded(folder: Path | None) -> tuple[Teacher, str]:
    """Returns EfficientNet-Lite0 where its weights are given, else the ensemble that the package carries; and which."""
    if folder is not None:
        return lite0(folder)
    return Teacher.from_pretrained(EMBEDDED_TEACHERS), f"{len(EMBEDDED_TEACHERS)} embedded teachers (no --weights)"


class RecordingTeacher(Teacher):
    """A teacher that keeps its whole answers, float32."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__(teacher.members)
        self._answers: list[np.ndarray] = []

    def __call__(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        logprobs_BC = super().__call__(views_BCHW)
        self._answers.append(logprobs_BC.numpy())
        return logprobs_BC

    def answers(self, count: int) -> np.ndarray:
        """Returns the log-probabilities (count, C) of the first views: on a CPU a last batch is filled up."""
        return np.concatenate(self._answers)[:count]


# ------------------------------------------------------------------------------------------------------------ reports


@contextmanager
def working_folder(kept: Path | None = None) -> Iterator[Path]:
    """A temporary folder that is gone afterwards, or the one that is kept."""
    with tempfile.TemporaryDirectory(prefix="hf_dr_benchmark_") as folder:
        yield kept or Path(folder)


def seconds(work: Callable[[], Any]) -> float:
    """Returns how long `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Returns how long `work` keeps this process's threads busy."""
    began = time.process_time()
    work()
    return time.process_time() - began


def in_turns(
    works: Mapping[str, Callable[[], float]], rounds: int, what: str | None = None, warm_up: int = 1
) -> dict[str, list[float]]:
    """Does all works in each round, so that a disturbance of the machine hits all; returns what each measures, by round.

    Args:
        works: What is measured, by name; every other round does them in the opposite order.
        rounds: Those that count.
        what: Named on stderr after each round. Default: nothing is said.
        warm_up: Rounds before, in which workers start, files are opened and caches filled.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(-warm_up, rounds):
        for name in list(works)[:: 1 if number % 2 else -1]:
            measured = works[name]()
            if number >= 0:
                found[name].append(measured)
        if what is not None:
            print(f"{what}: round {number + 1} of {rounds}", file=sys.stderr)
    return found


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Returns the median over rounds of the ratio of two measurements."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def inputs(flags: argparse.Namespace) -> list[str]:
    """Returns `--data` and `--weights` as they were given, for a process that this one starts."""
    given = {name: getattr(flags, name) for name in ("data", "weights")}
    return [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]


def output_of(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Returns what a command prints; where it fails, this process ends with its errors."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nfailed:\n{done.stderr[-3000:]}")
    return done.stdout


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> None:
    """Prints rows under a head; the first column is text, the others are numbers."""
    cells = [[f"{c:,.4g}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    print(f"{text_table(list(head), cells)}\n")


def earlier(flags: argparse.Namespace) -> dict[str, Any]:
    """Returns what `--json` holds already, of the parts that were measured before."""
    return json.loads(flags.json.read_text(encoding="utf-8")) if flags.json is not None and flags.json.exists() else {}


def finish(result: dict[str, Any], flags: argparse.Namespace) -> None:
    """Adds the facts of the machine, prints the result and writes it to `--json`.

    A file that several commands filled names all of them, and all their processors.
    """
    command = f"python benchmarks/{Path(sys.argv[0]).name} {shlex.join(_portable(sys.argv[1:]))}".strip()
    flat = {key: float(f"{v:.5g}") if isinstance(v, float) else v for key, v in result.items()}
    flat |= {
        "quick": flags.quick,
        "cpu_count": num_cores(),
        "cpu": _added(result.get("cpu"), _cpu()),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "hf_dr": hf_dr.__version__,
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        "command": _added(result.get("command"), command),
    }
    text = json.dumps(flat, indent=2)
    print(text)
    if flags.json is not None:
        flags.json.write_text(text + "\n", encoding="utf-8")


def _added(before: str | None, new: str) -> str:
    """What a list in one line says once it names this, too."""
    return "; ".join(dict.fromkeys([*(before.split("; ") if before else []), new]))


def _portable(arguments: list[str]) -> list[str]:
    """The command line with only the last part of folders: results are published, the paths of a machine are not."""
    return [Path(a).name if "/" in a else a for a in arguments]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())

"""Train the two small Fashion-MNIST teachers that the demo ships, and measure them alone and as an ensemble.

    python recipes/fashion_mnist/train_teacher.py --member a --out hf_dr/assets/teachers/fashion_mnist_a
    python recipes/fashion_mnist/train_teacher.py --member b --out hf_dr/assets/teachers/fashion_mnist_b
    python recipes/fashion_mnist/train_teacher.py --evaluate hf_dr/assets/teachers/fashion_mnist_{a,b}

Each member is a timm network of its own family, input size and normalisation, saved as a transformers folder. A run
takes one CPU thread, so the two members train side by side.
"""

import argparse
import gzip
import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.transforms import v2
from tqdm import trange
from transformers import PreTrainedModel

from hf_dr.store.base_dataset import load_base
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.members import Preprocessing, load_member
from hf_dr.teacher.metrics import NUM_BINS, classification_metrics, reliability
from hf_dr.text import markdown_table
from hf_dr.training.students import build_student

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
SIDE = 28
SCRIPT = "recipes/fashion_mnist/train_teacher.py"
TEACHERS = Path(__file__).resolve().parents[2] / "hf_dr" / "assets" / "teachers"
DISTORT = v2.Compose([v2.RandAugment(num_ops=1, magnitude=9), v2.RandomErasing(p=0.25, value=73)])  # 73: the mean
IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


@dataclass(frozen=True)
class Member:
    """One teacher of the ensemble: a timm network and its preprocessing."""

    architecture: str
    model_args: dict[str, Any]
    input_size: int
    mean: float
    std: float

    @property
    def preprocessing(self) -> Preprocessing:
        """What it does to the images: as when it labels views."""
        return Preprocessing((self.input_size,) * 2, (self.mean,) * 3, (self.std,) * 3, "bilinear")


MEMBERS = {
    # timm's stems divide the side by four, so the images are enlarged: 14 x 14 positions reach the first stage of `a`.
    # The mean and deviation of `a` are Fashion-MNIST's own.
    "a": Member(
        architecture="resnet10t",
        model_args={"stem_width": 16, "channels": [48, 96, 128, 128], "layers": [1, 1, 1, 1]},
        input_size=56,
        mean=0.286,
        std=0.353,
    ),
    "b": Member(
        architecture="densenet121",
        model_args={"growth_rate": 16, "block_config": [3, 4, 4], "stem_type": "deep"},
        input_size=48,
        mean=0.5,
        std=0.5,
    ),
}


@dataclass(frozen=True)
class Schedule:
    """What decides the weights of a run, together with the member."""

    epochs: int
    seed: int
    batch_size: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    pad: int = 2
    ema_decay: float = 0.998


# --- data -----------------------------------------------------------------------------------------------------------


def read_idx(path: Path) -> Tensor:
    """Read a gzipped idx file of unsigned bytes: labels (N,) or images (N, 28, 28)."""
    raw = gzip.decompress(path.read_bytes())
    kind, dims = raw[2], raw[3]
    if raw[:2] != b"\0\0" or kind != 8 or dims not in (1, 3):
        raise ValueError(f"`{path}` must be an idx file of bytes, got the header {raw[:4].hex()}. Download it again.")
    shape = np.frombuffer(raw, ">i4", count=dims, offset=4)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape).copy())


def load_split(data: str, split: str) -> tuple[Tensor, Tensor]:
    """Load grey images (N, 28, 28) uint8 and labels (N,) int64, from a folder of idx files or as a dataset."""
    images_file, labels_file = (Path(data) / name for name in IDX_FILES[split])
    if images_file.is_file():
        return read_idx(images_file), read_idx(labels_file).long()
    if data.startswith("/") and not Path(data).exists():
        raise FileNotFoundError(
            f"`--data` must be a folder of idx files or a dataset, but there is no `{data}`. Install Debian's "
            "`dataset-fashion-mnist`, or pass `--data zalando-datasets/fashion_mnist` to download from the Hub."
        )
    dataset, _ = load_base(data, split=split)
    names = [name.replace(" ", "") for name in dataset.features["label"].names]
    if names != [name.replace(" ", "") for name in CLASS_NAMES]:
        raise ValueError(f"`--data` must have the classes of Fashion-MNIST in their order, got {names}. Pass another.")
    images = np.stack([np.asarray(image.convert("L")) for image in dataset["image"]])
    if images.shape[1:] != (SIDE, SIDE):
        raise ValueError(f"`--data` must hold {SIDE} x {SIDE} images, got {images.shape[1:]}. Pass another dataset.")
    return torch.from_numpy(images), torch.tensor(dataset["label"])


def as_rgb(images_BHW: Tensor) -> Tensor:
    """Grey images as the three equal channels that a teacher sees, (B, 3, H, W)."""
    return images_BHW[:, None].expand(-1, 3, -1, -1)


def augment(images_BHW: Tensor, pad: int, rng: torch.Generator) -> Tensor:
    """Each image shifted by up to `pad` pixels over a black border, flipped half of the time, and distorted; uint8.

    The distortions are those of the views that the teacher will label, and stronger: a teacher that never saw a dark or a
    pale image misjudges them, and its students inherit that. Shapes: (B, 28, 28) to (B, 28, 28).
    """
    batch = len(images_BHW)
    padded = F.pad(images_BHW, [pad] * 4)
    top, left = torch.randint(2 * pad + 1, (2, batch, 1), generator=rng)
    columns = left + torch.arange(SIDE)
    columns = torch.where(torch.rand(batch, 1, generator=rng) < 0.5, columns, columns.flip(1))
    rows = top + torch.arange(SIDE)
    moved = padded[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return torch.cat([DISTORT(image[None]) for image in moved])


# --- model ----------------------------------------------------------------------------------------------------------


def build_model(member: Member) -> PreTrainedModel:
    """A freshly initialised teacher whose config carries its own preprocessing and the class names."""
    model: Any = build_student(
        f"timm:{member.architecture}",
        CLASS_NAMES,
        len(CLASS_NAMES),
        model_args=member.model_args,
        normalization=(member.preprocessing.mean, member.preprocessing.std),
        size=member.input_size,
        crop=1.0,
    )
    model.config.pretrained_cfg.update(architecture=member.architecture, license="apache-2.0")
    return model.to(memory_format=torch.channels_last)


def build_optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum; vectors (biases and norms) are not decayed."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=schedule.lr, momentum=0.9, nesterov=True)


def learning_rate(step: int, steps: int, peak: float, warmup: float = 0.1) -> float:
    """Linear warm-up over a tenth of all steps, then half a cosine to zero."""
    progress = (step + 1) / steps
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def moving_average(decay: float, average: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
    """Exponential moving average that follows fast at first, so that the initial weights are soon forgotten."""
    if not average.is_floating_point():
        return current
    return torch.lerp(average, current, max(1 - decay, 9 / (10 + float(updates))))


def save_model(model: PreTrainedModel, out: Path, training: dict[str, Any]) -> None:
    """Write a transformers folder: weights in half precision, config in float32 so that loading gives float32 again."""
    half = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    half = {name: value.contiguous() for name, value in half.items()}
    model.save_pretrained(out, state_dict=half)
    (out / "training.json").write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")


# --- training ---------------------------------------------------------------------------------------------------------


def train(name: str, schedule: Schedule, data: str, out: Path) -> None:
    """Train one member with plain cross-entropy and save the moving average of its weights to `out`."""
    member = MEMBERS[name]
    images, labels = load_split(data, "train")
    torch.manual_seed(schedule.seed)
    rng = torch.Generator().manual_seed(schedule.seed)
    model = build_model(member)
    average = AveragedModel(model, avg_fn=partial(moving_average, schedule.ema_decay), use_buffers=True)
    optimizer = build_optimizer(model, schedule)
    steps = schedule.epochs * (len(images) // schedule.batch_size)
    started = time.time()
    model.train()
    order = torch.empty(0, dtype=torch.int64)
    for step in (bar := trange(steps, desc=f"member {name}", unit="step", mininterval=1.0)):
        if len(order) < schedule.batch_size:
            order = torch.randperm(len(images), generator=rng)
        chosen, order = order[: schedule.batch_size], order[schedule.batch_size :]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, schedule.lr)
        pixels = member.preprocessing(as_rgb(augment(images[chosen], schedule.pad, rng)))
        with torch.autocast("cpu", torch.bfloat16):
            logits_BC = model(pixels.contiguous(memory_format=torch.channels_last)).logits
        loss = F.cross_entropy(logits_BC.float(), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        average.update_parameters(model)
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    training = {
        "command": command_line(),
        "member": asdict(member),
        "schedule": asdict(schedule),
        "images": len(images),
        "seconds": round(time.time() - started),
        "versions": library_versions(),
    }
    save_model(cast(PreTrainedModel, average.module), out, training)
    print(f"saved {out}", flush=True)


# --- evaluation -------------------------------------------------------------------------------------------------------


def measure(logprobs_NC: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, negative log-likelihood (nats), expected calibration error, mean confidence."""
    found = classification_metrics(logprobs_NC.numpy(), labels.numpy())
    confidence = reliability(logprobs_NC.numpy(), labels.numpy()).confidence_sums.sum() / len(labels)
    shown = {"accuracy": found["top1"], "nll": found["nll"], "ece": found["ece"], "mean_confidence": float(confidence)}
    return {key: round(value, 4) for key, value in shown.items()}


def evaluate(folders: Sequence[Path], data: str, results_file: Path) -> None:
    """Measure saved members and their ensemble on the test split; print a table, write the JSON and the cards."""
    images, labels = load_split(data, "test")

    def answers(teacher: Teacher) -> Tensor:
        return torch.cat([teacher(as_rgb(batch)) for batch in images.split(250)])

    loaded = [load_member(str(folder)) for folder in folders]
    members: dict[str, dict[str, Any]] = {}
    for folder, member in zip(folders, loaded, strict=True):
        teacher = Teacher([member])
        teacher(as_rgb(images[:500]))  # a first call takes longer
        started = time.perf_counter()
        measured = measure(answers(teacher), labels)
        seconds = time.perf_counter() - started
        training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        members[folder.name] = measured | {
            "architecture": training["member"]["architecture"],
            "input_size": [3, *member.preprocessing.size],
            "parameters": sum(weight.numel() for weight in member.model.parameters()),
            "bytes": (folder / "model.safetensors").stat().st_size,
            "ms_per_image_one_thread": round(1000 * seconds / len(images), 3),
            "command": training["command"],
            "training_seconds": training["seconds"],
        }
    ensemble = measure(answers(Teacher(loaded)), labels)
    ensemble["bytes"] = sum(member["bytes"] for member in members.values())
    ensemble["ms_per_image_one_thread"] = round(sum(m["ms_per_image_one_thread"] for m in members.values()), 3)
    results = {
        "test_images": len(images),
        "ece_bins": NUM_BINS,
        "command": command_line(),
        "versions": library_versions(),
        "members": members,
        "ensemble": ensemble,
    }
    results_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for folder in folders:
        (folder / "README.md").write_text(card(folder, results), encoding="utf-8")
    print(table(results))


def table(results: dict[str, Any]) -> str:
    """A Markdown table of `measure`'s numbers."""
    rows = [
        (name, f"{row['accuracy']:.2%}", f"{row['nll']:.4f}", f"{row['ece']:.2%}", f"{row['bytes'] / 1000:.0f}",
         f"{row['ms_per_image_one_thread']:.2f}")
        for name, row in [*results["members"].items(), ("ensemble", results["ensemble"])]
    ]  # fmt: skip
    return markdown_table(("teacher", "accuracy", "NLL", "ECE", "KB", "ms per image"), rows)


def card(folder: Path, results: dict[str, Any]) -> str:
    """The README of one member."""
    member = results["members"][folder.name]
    side = member["input_size"][-1]
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: image-classification
datasets:
- zalando-datasets/fashion_mnist
---
# {folder.name}

A small Fashion-MNIST teacher: timm's `{member["architecture"]}`, narrowed, on {side} x {side} pixels,
{member["parameters"]:,} parameters, stored in half precision and loaded as float32. Trained from scratch on the 60,000
training images with plain cross-entropy on shifted, flipped and distorted images
([training.json](training.json) has every setting):

```bash
{member["command"]}
```

Measured on the {results["test_images"]:,} official test images (time: one CPU thread; ensemble: mean of probabilities):

{table(results)}

```python
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("{folder.name}")  # config.pretrained_cfg: its preprocessing
```
"""


# --- command line -----------------------------------------------------------------------------------------------------


def command_line() -> str:
    """This run's command, as typed from the repository's root."""
    return shlex.join(["python", SCRIPT, *sys.argv[1:]])


def library_versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "timm", "transformers", "safetensors", "datasets")}


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def parse_args() -> argparse.Namespace:
    examples = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=examples[0], epilog=examples[1], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--member", choices=sorted(MEMBERS), help="train this member of the ensemble; needs --out")
    task.add_argument(
        "--evaluate", nargs="+", type=Path, metavar="DIR", help="measure these saved members and their ensemble"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where --member writes the transformers folder")
    parser.add_argument(
        "--results",
        type=Path,
        default=TEACHERS / "results.json",
        metavar="FILE",
        help="where --evaluate writes its numbers (default: hf_dr/assets/teachers/results.json)",
    )
    parser.add_argument(
        "--data",
        default="/usr/share/datasets/fashion-mnist",
        metavar="FOLDER_OR_ID",
        help="folder of the four idx .gz files, as in Debian's package dataset-fashion-mnist, or any dataset that "
        "load_dataset reads, such as zalando-datasets/fashion_mnist (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs", type=positive, default=12, help="passes over the training images (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and crops (default: %(default)s)")
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (default: %(default)s)")
    args = parser.parse_args()
    if args.member and args.out is None:
        parser.error("--member needs a folder to write to: add --out DIR")
    for folder in args.evaluate or []:
        if not (folder / "training.json").is_file():
            parser.error(f"--evaluate takes folders that this script wrote, but `{folder}` has no training.json")
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.evaluate:
        evaluate(args.evaluate, args.data, args.results)
        return
    train(args.member, Schedule(args.epochs, args.seed), args.data, args.out)


if __name__ == "__main__":
    main()

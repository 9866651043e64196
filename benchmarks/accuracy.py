"""What students gain from a "+" dataset: plain training (erm), stored answers (reinforced), a teacher in memory (kd).

    python benchmarks/accuracy.py --data DATA --weights WEIGHTS --work WORK --json accuracy.json
    python benchmarks/accuracy.py --sets fashion_mnist --students resnet --objectives erm reinforced      # a part of it

For every set and student the same model, data path, optimizer and steps, on several seeds. Keys: `<set>_<student>_` with
`top1_gain`, `nll_gain`, `ece_gain`, `mce_gain` (of reinforced over erm, mean over seeds; above 0 is better; top-1 and ECE
as fractions, NLL in nats, corrupted error in percent points), `..._gain_std`, `seeds`, and the means themselves. Sets:

- fashion_mnist: 10,000 images of 28x28, the embedded teachers (trained on all 60,000).
- cifar10: 10,000 images of 32x32; the teacher is EfficientNet-Lite0 with a linear classifier trained on the same images.
- tiny_imagenet: 10,000 images of 64x64, 200 classes; the teacher is EfficientNet-Lite0 restricted to these classes.
- grocery: 1,253 photos, resized to 64x64; a linear classifier on EfficientNet-Lite0 as for cifar10.

Finished runs in --work are kept: the same command goes on where it was stopped, and adds to the --json file.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import common
import datasets
import torch
from safetensors.torch import load_file, save_file

from hf_dr.cli import launch
from hf_dr.comparison import CompareConfig, Comparison, as_arguments, run_comparison
from hf_dr.students import LabelledImages, evaluation_augmentation
from hf_dr.teacher import Teacher

EMBEDDED_TEACHERS = [str(common.EMBEDDED / "teachers" / f"fashion_mnist_{member}") for member in "ab"]
SMALL_VIEWS = [
    {"RandomHorizontalFlip": {"p": 0.5}},
    {"RandAugment": {"num_ops": 1, "magnitude": 5}},
    {"RandomErasing": {"p": 0.25}},
]


@dataclass(frozen=True)
class Case:
    """One set: where it is, who teaches it, and what the views are."""

    folder: str
    size: int
    teacher: str  # embedded, head (a linear classifier trained here on Lite0), or names (Lite0's own classes)
    num_views: int
    patch: int
    epochs: int
    views: list[dict[str, Any]] = field(default_factory=list)


CASES = {
    "fashion_mnist": Case("fashion_mnist_10k", 28, "embedded", 8, 4, 8),
    "cifar10": Case(
        "cifar10_12k", 32, "head", 4, 4, 8, [{"RandomCrop": {"size": 32, "padding": 4}}, *SMALL_VIEWS]
    ),
    "tiny_imagenet": Case(
        "tiny_imagenet_200_12k", 64, "names", 4, 8, 8,
        [{"RandomResizedCrop": {"size": 64, "scale": [0.35, 1.0]}}, *SMALL_VIEWS],
    ),
    "grocery": Case(
        "grocery_fruit_orig", 64, "head", 16, 8, 24, [{"RandomResizedCrop": {"size": 64, "scale": [0.25, 1.0]}}, *SMALL_VIEWS]
    ),
}  # fmt: skip


def students(case: Case) -> dict[str, dict[str, Any]]:
    """The settings of train.py that differ between the two families."""
    vit = {"img_size": case.size, "patch_size": case.patch, "embed_dim": 96, "depth": 6, "num_heads": 3}
    resnet = {"stem_width": 16, "channels": [32, 48, 64, 96], "layers": [1, 1, 1, 1]}
    return {
        "resnet": {
            "student": "timm:resnet10t", "model_args": json.dumps(resnet), "optim": "sgd", "learning_rate": 0.1,
            "weight_decay": 5e-4,
        },
        "vit": {
            "student": "timm:vit_tiny_patch16_224", "model_args": json.dumps(vit), "optim": "adamw_torch",
            "learning_rate": 1e-3, "weight_decay": 0.05,
        },
    }  # fmt: skip


def train_head(checkpoint: Path, images: datasets.Dataset, out: Path) -> None:
    """Fits a linear classifier on Lite0's features of the training images, with cross-entropy and weight decay."""
    teacher = Teacher.from_pretrained(f"timm:{common.LITE0}@{checkpoint}")
    member = teacher.members[0]
    shown = LabelledImages(images, evaluation_augmentation(224))
    member.model.reset_classifier(0)  # type: ignore[operator]
    features, labels = [], []
    with torch.inference_mode():
        for batch in torch.utils.data.DataLoader(shown, batch_size=32):  # type: ignore[var-annotated]
            features.append(member.model(member.preprocessing(batch["pixel_values"])))
            labels.append(batch["labels"])
    x, y = torch.cat(features), torch.cat(labels)
    x, y = x.clone(), y.clone()  # out of inference mode
    head = torch.nn.Linear(x.shape[1], images.features["label"].num_classes)
    torch.nn.init.zeros_(head.weight)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(head(x), y) + 1e-3 * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    weights = load_file(checkpoint)
    weights |= {"classifier.weight": head.weight.detach(), "classifier.bias": head.bias.detach()}
    save_file(weights, out)


def base_of(name: str, flags: Any) -> Path:
    """The folder of a set's images."""
    return common.EMBEDDED / "fashion_mnist" if name == "fashion_mnist" else flags.data / CASES[name].folder


def reinforced(name: str, case: Case, flags: Any) -> tuple[Path, list[str], str | None]:
    """Makes the "+" dataset if it is not there; returns it, the teacher, and --teacher_classes."""
    plus = flags.work / name / "plus"
    base = base_of(name, flags)
    settings: dict[str, Any] = {"dataset": base, "split": "train", "num_views": case.num_views, "output_dir": plus}
    teacher = EMBEDDED_TEACHERS
    if case.teacher != "embedded":
        checkpoint = flags.weights / f"{common.LITE0}.in1k.safetensors"
        if case.teacher == "head":
            head = flags.work / name / "teacher.safetensors"
            if not head.exists():
                head.parent.mkdir(parents=True, exist_ok=True)
                train_head(checkpoint, common._parquet(base), head)
            checkpoint = head
        else:
            synsets = flags.work / name / "classes.json"  # the names are `n01443537 goldfish`
            synsets.parent.mkdir(parents=True, exist_ok=True)
            names = common._parquet(base).features["label"].names
            synsets.write_text(json.dumps([name.split()[0] for name in names]), encoding="utf-8")
            settings["teacher_classes"] = synsets
        teacher = [f"timm:{common.LITE0}@{checkpoint}"]
    recipe = Path(__file__).parents[1] / "recipes" / "fashion_mnist" / "reinforce.yaml"
    if case.views:
        recipe = flags.work / name / "views.yaml"
        recipe.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(json.dumps({"augmentation": case.views}), encoding="utf-8")
        settings |= {"augmentation": recipe, "config_name": "randaug"}
    else:
        settings["config"] = recipe
    status = launch("reinforce", as_arguments({**settings, "teacher": teacher}), "reinforce.py")
    if status:
        sys.exit(status)
    classes = settings.get("teacher_classes")
    return plus, teacher, None if classes is None else str(classes)


def run(name: str, student: str, flags: Any) -> Comparison:
    """Compares one student on one set."""
    case = CASES[name]
    plus, teacher, classes = reinforced(name, case, flags)
    base = base_of(name, flags)
    train = {
        **students(case)[student],
        "dataset": plus, "eval_dataset": base, "eval_crop": 1.0, "eval_strategy": "epoch",
        "num_train_epochs": 1 if flags.quick else case.epochs, "per_device_train_batch_size": 64,
        "per_device_eval_batch_size": 250, "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "save_strategy": "no",
        "logging_steps": 50, "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    config = CompareConfig(
        title=f"{name}, {student}",
        output_dir=str(flags.work / name / student),
        train=train,
        evaluate={
            "sets": [f"test={base}:test"], "corrupt": ["test"], "severities": [3], "batch_size": 250,
            "max_examples": 200 if flags.quick else None,
        },
        objectives=flags.objectives,
        seeds=flags.seeds[:1] if flags.quick else flags.seeds,
        teacher=teacher,
        teacher_classes=classes,
    )  # fmt: skip
    return run_comparison(config, lambda arguments: launch("train", arguments, "train.py"))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--work", type=Path, help="Folder of the runs; kept. Default: a temporary one.")
    parser.add_argument("--sets", nargs="+", choices=list(CASES), help="Default: all with --data, else fashion_mnist.")
    parser.add_argument("--students", nargs="+", choices=["resnet", "vit"], default=["resnet", "vit"], help="Families.")
    parser.add_argument(
        "--objectives", nargs="+", choices=["erm", "reinforced", "kd"], default=["erm", "reinforced"], help="Compared."
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="Default: 0 1 2.")
    flags = parser.parse_args()
    if flags.data is None or flags.weights is None:
        flags.sets = flags.sets or ["fashion_mnist"]
        if flags.sets != ["fashion_mnist"]:
            sys.exit("--data and --weights must be given for sets other than fashion_mnist, found none. Give both.")
    if flags.quick:
        flags.sets, flags.students = flags.sets or ["fashion_mnist"], flags.students[:1]
    result: dict[str, Any] = {}
    if flags.json is not None and flags.json.exists():
        result = json.loads(flags.json.read_text(encoding="utf-8"))  # of the sets measured before
    tables = []
    with common.working_folder() as folder:
        flags.work = flags.work or folder
        for name in flags.sets or list(CASES):
            for student in flags.students:
                comparison = run(name, student, flags)
                result |= comparison.to_dict(f"{name}_{student}")
                result[f"{name}_{student}_objectives"] = " ".join(flags.objectives)
                tables.append(comparison.to_markdown())
                common.finish(result, flags)  # after each: a stopped run keeps what it has
    print("\n".join(tables))


if __name__ == "__main__":
    main()

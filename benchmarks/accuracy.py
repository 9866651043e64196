"""What students gain from a "+" dataset: plain training (erm), stored answers (reinforced), a teacher in memory (kd).

    python benchmarks/accuracy.py --data DATA --weights WEIGHTS --work WORK --json accuracy.json
    python benchmarks/accuracy.py --sets fashion_mnist --students resnet --objectives erm reinforced      # a part of it

For every set and student the same model, data path, optimizer and steps, on several seeds. Keys: `<set>_<student>_` with
`top1_gain`, `nll_gain`, `ece_gain`, `mce_gain` (of reinforced over erm, mean over seeds; above 0 is better; NLL in nats,
the others as shares), `..._gain_std`, `seeds`, the means themselves, and `..._top1_by_seed`. Sets:

- fashion_mnist: 10,000 images of 28x28, the embedded teachers (trained on all 60,000).
- cifar10: 10,000 images of 32x32.
- tiny_imagenet: 10,000 images of 64x64, 200 classes.
- grocery: 1,253 photos of 28 kinds, shrunk once so that decoding takes less than learning; seen at 64x64.
- grocery_finetune: the same, seen at 128x128, to fine-tune a student that knows ImageNet already (lite0).

The teachers of all but the first are ImageNet's EfficientNet-Lite0, for grocery_finetune Lite0 and Lite1, each with a new
linear classifier, fitted to views as the student sees them of the same images; for cifar10 all of it is fine-tuned then.
A teacher that knows little more than the labels is no help: when it was fitted to the undistorted photos of grocery, or
only its classifier to cifar10's views, students learned less from it than from the labels. Where it has seen the
very photos that it labels, as on grocery, it is sure of them; to leave it in doubt by a strong weight decay (1e-2) made a
ResNet's answers less sure in one run, but not more often right.

`--teachers` asks others, and adds them to the keys: `folds`, five classifiers, each fitted without a fifth of the images,
which it labels; `calibrated`, the usual one at the temperature that fits the answers of the folds' (of the embedded ones: their
answers to half of the test images); `folds_calibrated`, both. `--small` is a fraction of the work.

`--epochs` and `--num_views` are in place of the set's own and are added to the keys: how gains change with the length, and with
the number of stored views.

`--signal` and `--top_k` store the answers in another way and add both to the keys; no need to repeat plain training then:
`--objectives reinforced`.

`--calibrate` has each student calibrated by the first half of the test images, and all measured on the other half; in the keys
`calibrated_student`.

Finished runs in --work are kept: the same command goes on where it was stopped, and adds to the --json file.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import common
import datasets
import torch
from safetensors.torch import load_file

from hf_dr.cli.arguments import build_augmentation
from hf_dr.cli.launch import launch
from hf_dr.evaluation.comparing import run_comparison
from hf_dr.evaluation.comparison import Comparison
from hf_dr.evaluation.config import CompareConfig, as_arguments
from hf_dr.generation.calibration import held_out_answers
from hf_dr.replay.join import index_images, pixels_digest
from hf_dr.store.base_dataset import undecoded_images
from hf_dr.teacher.calibration import fit_temperature
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.folds import CONFIG_KEY, Fold, fold_folders, folds_of
from hf_dr.teacher.preprocessing import Preprocessing
from hf_dr.teacher.signals import SIGNALS
from hf_dr.training.students import build_student
from hf_dr.training.teaching import begin_folds
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.maker import Span, ViewMaker

FASHION_MNIST = Path(__file__).parents[1] / "recipes" / "fashion_mnist" / "reinforce.yaml"
FAMILIES = ("resnet", "vit", "lite0")
TEACHERS = ("plain", "calibrated", "folds", "folds_calibrated")
FOLDS = 5
# The defaults, which other benchmarks that make the same datasets leave as they are.
USUAL: dict[str, Any] = {
    "signal": "topk",
    "top_k": None,
    "teachers": "plain",
    "label_weight": None,
    "epochs": None,
    "num_views": None,
    "small": False,
    "calibrate": False,
}
SMALL_VIEWS: list[dict[str, Any]] = [
    {"RandomHorizontalFlip": {"p": 0.5}},
    {"RandAugment": {"num_ops": 1, "magnitude": 5}},
    {"RandomErasing": {"p": 0.25}},
]


@dataclass(frozen=True)
class Case:
    """One set: where it is, who teaches it, and what the views are."""

    folder: str
    size: int
    teachers: tuple[str, ...]  # architectures, with ImageNet's weights; none: the embedded teachers
    teacher_views: int  # of each image, to which their classifiers are fitted
    teacher_size: int  # of their input in pixels; they were trained at 224 and 240
    teacher_decay: float  # of the classifiers' weights: its product with their squares is added to the loss
    teacher_epochs: int  # of fine-tuning all of them
    num_views: int
    patch: int
    epochs: dict[str, int]  # by student; enough that plain training no longer gains much, or what two cores allow
    views: list[dict[str, Any]] = field(default_factory=list)
    shrunk: int = 0  # pixels on the shorter side of photos that are shrunk once
    corruptions: tuple[str, ...] = ()  # under which models are evaluated; none: all fifteen


CASES = {
    "fashion_mnist": Case("fashion_mnist_10k", 28, (), 0, 0, 0, 0, 8, 7, {"resnet": 8, "vit": 8}),
    "cifar10": Case(
        "cifar10_12k", 32, (common.LITE0,), 1, 96, 3e-4, 4, 4, 8, {"resnet": 12, "vit": 12},
        [{"RandomCrop": {"size": 32, "padding": 4}}, *SMALL_VIEWS],
    ),
    "tiny_imagenet": Case(
        "tiny_imagenet_200_12k", 64, (common.LITE0,), 2, 128, 3e-4, 0, 4, 16, {"resnet": 8, "vit": 10},
        [{"RandomResizedCrop": {"size": 64, "scale": [0.35, 1.0]}}, *SMALL_VIEWS],
    ),
    "grocery": Case(
        "grocery_fruit_orig", 64, (common.LITE0,), 8, 128, 3e-4, 0, 32, 8, {"resnet": 80, "vit": 20},
        [{"RandomResizedCrop": {"size": 64, "scale": [0.25, 1.0]}}, *SMALL_VIEWS], 96,
    ),
    "grocery_finetune": Case(
        "grocery_fruit_orig", 128, (common.LITE0, common.LITE1), 8, 160, 1e-2, 0, 16, 16, {"lite0": 3},
        [{"RandomResizedCrop": {"size": 128, "scale": [0.25, 1.0]}}, *SMALL_VIEWS], 192,
        ("gaussian_noise", "defocus_blur", "fog", "jpeg_compression"),  # one of each kind: its model is the slowest
    ),
}  # fmt: skip


# With --small: rows, views and epochs of a ResNet.
SMALL = {
    "fashion_mnist": (10_000, 4, 4),
    "cifar10": (4000, 2, 12),
    "tiny_imagenet": (4000, 2, 10),
    "grocery": (1253, 8, 24),
}


def case_of(name: str, flags: Any) -> Case:
    """A set as the flags want it."""
    case = CASES[name]
    if flags.small:
        _, num_views, epochs = SMALL[name]
        case = replace(
            case, num_views=num_views, epochs={"resnet": epochs}, teacher_views=min(case.teacher_views, 2),
            teacher_epochs=0, corruptions=("jpeg_compression",),
        )  # fmt: skip
    if flags.num_views is not None:
        case = replace(case, num_views=flags.num_views)
    if flags.epochs is not None:
        case = replace(case, epochs=dict.fromkeys(case.epochs, flags.epochs))
    return case


def views_of(case: Case) -> Augmentation:
    """The views of a set, as its "+" dataset has them."""
    return build_augmentation(case.views or str(FASHION_MNIST), case.size)


def students(case: Case, work: Path) -> dict[str, dict[str, Any]]:
    """The settings of train.py that differ between the families."""
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
        "lite0": {"student": work / "lite0", "optim": "adamw_torch", "learning_rate": 5e-4, "weight_decay": 0.05},
    }  # fmt: skip


def pretrained(architecture: str, weights: Path, size: int, names: list[str] | None, classes: int) -> Any:
    """A classifier of ImageNet's weights; its last layer is new where the classes are others."""
    normalization = ((0.5,) * 3, (0.5,) * 3)
    model: Any = build_student(f"timm:{architecture}", names, classes, normalization=normalization, size=size, crop=1.0)
    state = load_file(weights / f"{architecture}.in1k.safetensors")
    new = [name for name in state if state[name].shape != model.timm_model.state_dict()[name].shape]
    missing, unexpected = model.timm_model.load_state_dict(
        {k: v for k, v in state.items() if k not in new}, strict=False
    )
    assert (sorted(missing), unexpected) == (sorted(new), [])
    return model


def train_teacher(
    architecture: str, images: datasets.Dataset, case: Case, weights: Path, folder: Path, num_folds: int = 1
) -> None:
    """Fits a linear classifier to features of random views, with cross-entropy and weight decay; saves a classifier.

    With folds it saves one for each, without the images of that fold.
    """
    labels = images.features["label"]
    model = pretrained(architecture, weights, case.teacher_size, labels.names, labels.num_classes)
    backbone = model.timm_model.eval()
    preprocessing = Preprocessing((case.teacher_size,) * 2, (0.5,) * 3, (0.5,) * 3, "bilinear")
    augmentation, count = Augmentation.from_list(case.views), case.teacher_views
    maker = ViewMaker(
        undecoded_images(images, "image"), augmentation, count, seed=1, matching_size=None
    )  # a run's is 0
    total, features = len(images) * count, []
    with torch.inference_mode():
        for start in range(0, total, 64):
            views = maker[Span(0, start, min(start + 64, total))].pixels.permute(0, 3, 1, 2)
            features.append(backbone.forward_head(backbone.forward_features(preprocessing(views)), pre_logits=True))
    x = torch.cat(features).clone()  # out of inference mode
    y = torch.tensor(images["label"]).repeat_interleave(count)
    if num_folds == 1:
        fit_head(backbone.classifier, x, y, case.teacher_decay)
        if case.teacher_epochs:
            fine_tune(backbone, preprocessing, images, case)
        model.save_pretrained(folder)
        return
    undecoded = undecoded_images(images, "image")
    digest = pixels_digest(undecoded)
    begin_folds(folder, num_folds, digest)
    folds = torch.from_numpy(folds_of(index_images(undecoded), num_folds)).repeat_interleave(count)
    for number, place in enumerate(fold_folders(folder, num_folds)):
        fit_head(backbone.classifier, x[folds != number], y[folds != number], case.teacher_decay)
        setattr(model.config, CONFIG_KEY, asdict(Fold(number, num_folds, digest)))
        model.save_pretrained(place)


def fit_head(head: torch.nn.Linear, x: torch.Tensor, y: torch.Tensor, decay: float) -> None:
    """Fits a linear classifier to features (N, D) and labels (N,)."""
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(head(x), y) + decay * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)


def fine_tune(model: torch.nn.Module, preprocessing: Preprocessing, images: datasets.Dataset, case: Case) -> None:
    """Trains all weights on new views in each epoch, with Adam and a rate that falls to 0."""
    epochs, batches = case.teacher_epochs, len(images) // 64
    augmentation = Augmentation.from_list(case.views)
    maker = ViewMaker(undecoded_images(images, "image"), augmentation, epochs, seed=2, matching_size=None)
    labels = torch.tensor(images["label"])
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=epochs * batches, pct_start=0.1)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(64)[:batches]:
            views = [maker[Span(0, n, n + 1)].pixels for n in (rows * epochs + epoch).tolist()]
            shown = preprocessing(torch.cat(views).permute(0, 3, 1, 2))
            loss = torch.nn.functional.cross_entropy(model(shown), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"fine-tuning the teacher: epoch {epoch + 1} of {epochs}, loss {loss.item():.3f}", flush=True)
    model.eval()


def base_of(name: str, flags: Any) -> Path:
    """The folder of a set's images."""
    if name == "fashion_mnist":
        return common.EMBEDDED / "fashion_mnist"
    case = CASES[name]
    folder = flags.data / case.folder
    if not case.shrunk and not flags.small:
        return folder
    return shrunk(folder, flags.work / name / "base", case.shrunk, SMALL[name][0] if flags.small else None)


def shrunk(folder: Path, to: Path, side: int, rows: int | None = None) -> Path:
    """Makes a copy of both splits with photos of `side` pixels on the shorter side (0: as they are), if it is not there."""
    for split in ("train", "test"):
        path = to / f"{split}-00000-of-00001.parquet"
        if not path.exists():
            to.mkdir(parents=True, exist_ok=True)
            photos = datasets.load_dataset("parquet", data_files={split: f"{folder}/{split}-*.parquet"}, split=split)
            if rows is not None and split == "train":
                photos = photos.select(range(min(rows, len(photos))))
            photos.map(common.shrunk_row, fn_kwargs={"side": side}).to_parquet(path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
    return to


def reinforced(name: str, case: Case, flags: Any) -> tuple[Path, list[str]]:
    """Makes the "+" dataset if it is not there; returns it and the teacher."""
    plus = flags.work / name / f"plus{suffix(flags, of_data=True)}"
    base = base_of(name, flags)
    settings: dict[str, Any] = {"dataset": base, "split": "train", "num_views": case.num_views, "output_dir": plus}
    settings |= {"signal": flags.signal, **({} if flags.top_k is None else {"top_k": flags.top_k})}
    if flags.quick:
        settings["max_examples"] = 1000
    teacher = teacher_of(name, case, flags, folds=flags.teachers.startswith("folds"))
    if flags.teachers.endswith("calibrated"):
        settings["teacher_temperature"] = temperature_of(name, case, flags)
    if case.teachers:
        recipe = flags.work / name / "views.yaml"
        recipe.write_text(json.dumps({"augmentation": case.views}), encoding="utf-8")
        settings |= {"augmentation": recipe, "config_name": "randaug"}
    else:
        settings["config"] = FASHION_MNIST
    status = launch("reinforce", as_arguments({**settings, "teacher": teacher}), "reinforce.py")
    if status:
        sys.exit(status)
    return plus, teacher


def teacher_of(name: str, case: Case, flags: Any, *, folds: bool) -> list[str]:
    """Returns the names of a set's teachers, which are trained if they are not there."""
    if not case.teachers:
        return common.EMBEDDED_TEACHERS
    base = base_of(name, flags)
    folders = []
    for architecture in case.teachers:
        folder = flags.work / name / f"teacher_{architecture}{'_folds' if folds else ''}"
        last = folder / f"fold-{FOLDS - 1}" if folds else folder
        if not (last / "model.safetensors").exists():
            train_teacher(architecture, common.parquet(base), case, flags.weights, folder, FOLDS if folds else 1)
        folders.append(str(folder))
    return folders


def temperature_of(name: str, case: Case, flags: Any) -> float:
    """Returns the temperature that fits what teachers answer to images that they have not learned.

    These are all training images, answered by the teachers of folds; of the embedded teachers half of the test images.
    """
    file = flags.work / name / "temperature.json"
    if not file.exists():
        images = common.parquet(base_of(name, flags), "train" if case.teachers else "test")
        if not case.teachers:
            images = images.select(range(len(images) // 2))
        teacher = Teacher.from_pretrained(teacher_of(name, case, flags, folds=True))
        found = fit_temperature(*held_out_answers(images, teacher, views_of(case)))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(round(found, 3)), encoding="utf-8")
    found = json.loads(file.read_text(encoding="utf-8"))
    print(f"{name}: temperature {found}", flush=True)
    return found


def suffix(flags: Any, *, of_data: bool = False) -> str:
    """Tells teachers, label weights, epochs, V, signals and K apart in names (of data: not the second and third)."""
    of_training = not of_data
    parts = (
        (flags.teachers != "plain", flags.teachers),
        (of_training and flags.label_weight, f"labels{flags.label_weight or 0:g}"),
        (of_training and flags.epochs is not None, f"{flags.epochs}epochs"),
        (flags.num_views is not None, f"{flags.num_views}views"),
        (of_training and flags.calibrate, "calibrated_student"),
        (flags.signal != "topk" or flags.top_k is not None, flags.signal),
        (flags.top_k is not None, f"k{flags.top_k}"),
    )
    return "".join(f"_{part}" for differs, part in parts if differs)


def evaluated(name: str, case: Case, flags: Any, tested: str = "test") -> dict[str, Any]:
    """The settings of evaluate.py."""
    return {
        "sets": [f"test={base_of(name, flags)}:{tested}"], "corrupt": ["test"], "severities": [3],
        "batch_size": 250 if case.size <= 64 else 32,
        "corruptions": list(case.corruptions),
        "max_examples": 200 if flags.quick else None,
    }  # fmt: skip


def run(name: str, student: str, flags: Any, variant: str = "", **more: Any) -> Comparison:
    """Compares one student on one set; a `variant`, named in the runs' folder, has `more` settings of train.py."""
    case = case_of(name, flags)
    plus, teacher = reinforced(name, case, flags)
    base = base_of(name, flags)
    if student == "lite0" and not (flags.work / "lite0" / "model.safetensors").exists():
        start = pretrained(common.LITE0, flags.weights, 224, None, 1000)
        start.save_pretrained(flags.work / "lite0")
    train = {
        **students(case, flags.work)[student],
        "dataset": plus, "eval_dataset": base, "eval_crop": 1.0, "eval_strategy": "epoch",
        "num_train_epochs": 1 if flags.quick else case.epochs[student], "per_device_train_batch_size": 64,
        "per_device_eval_batch_size": 250, "lr_scheduler_type": "cosine", "warmup_steps": 0.05, "save_strategy": "no",
        "logging_steps": 50, "report_to": "none", "disable_tqdm": True,
        **({"label_weight": flags.label_weight} if flags.label_weight else {}), **more,
    }  # fmt: skip
    tested = "test"
    if flags.calibrate:
        tested = "test[50%:]"
        train |= {"eval_split": tested, "calibrate_split": "test[:50%]"}
    folder = flags.work / name / f"{student}{suffix(flags)}{variant}"
    config = CompareConfig(
        title=f"{name}, {student}{(suffix(flags) + variant).replace('_', ' ')}",
        output_dir=str(folder),
        train=train,
        evaluate=evaluated(name, case, flags, tested),
        objectives=flags.objectives,
        seeds=flags.seeds[:1] if flags.quick else flags.seeds,
        teacher=teacher,
    )  # fmt: skip
    found = run_comparison(config, lambda arguments: launch("train", arguments, "train.py"))
    assert found is not None, "this is the first process"
    return found


def main() -> None:
    parser = common.training_parser(__doc__)
    parser.add_argument("--sets", nargs="+", choices=list(CASES), help="Default: all with --data, else fashion_mnist.")
    parser.add_argument(
        "--students", nargs="+", choices=FAMILIES, default=FAMILIES, help="Families. Default: all that a set has."
    )
    parser.add_argument(
        "--objectives", nargs="+", choices=["erm", "reinforced", "kd"], default=["erm", "reinforced"], help="Compared."
    )
    parser.add_argument("--signal", choices=SIGNALS, help="What is stored of an answer. Default: topk.")
    parser.add_argument("--top_k", type=int, help="K. Default: the recipe's, or reinforce's.")
    parser.add_argument("--teachers", choices=TEACHERS, help="See above. Default: plain.")
    parser.add_argument(
        "--label_weight", type=float, help="Weight of the labels in the loss of reinforced. Default: 0."
    )
    parser.add_argument("--epochs", type=int, help="Epochs of each training. Default: the set's, by student.")
    parser.add_argument("--num_views", type=int, help="V. Default: the set's.")
    parser.add_argument("--calibrate", action="store_true", help="Calibrate the students by half of the test images.")
    parser.add_argument("--small", action="store_true", help="Fewer views and epochs, one corruption; a ResNet only.")
    parser.set_defaults(**USUAL)
    flags = parser.parse_args()
    if flags.data is None or flags.weights is None:
        flags.sets = flags.sets or ["fashion_mnist"]
        if flags.sets != ["fashion_mnist"]:
            sys.exit("--data and --weights must be given for sets other than fashion_mnist, found none. Give both.")
    if flags.quick:
        flags.sets = flags.sets or ["fashion_mnist"]
    result = common.earlier(flags)
    tables = []
    with common.working_folder(flags.work) as flags.work:
        for name in flags.sets or list(CASES):
            families = [family for family in flags.students if family in case_of(name, flags).epochs]
            for student in families[:1] if flags.quick else families:
                comparison = run(name, student, flags)
                prefix = f"{name}_{student}{suffix(flags)}"
                result |= comparison.to_dict(prefix)
                result[f"{prefix}_objectives"] = " ".join(flags.objectives)
                # So that other teachers' students are compared seed by seed, too.
                for objective in comparison.objectives:
                    by_seed = comparison.values(objective, "top1").round(5).tolist()
                    result[f"{prefix}_{objective}_top1_by_seed"] = by_seed
                if flags.teachers.endswith("calibrated"):
                    result[f"{name}_temperature"] = temperature_of(name, case_of(name, flags), flags)
                tables.append(comparison.to_markdown())
                common.finish(result, flags)  # after each: a stopped run keeps what it has
    print("\n".join(tables))


if __name__ == "__main__":
    main()

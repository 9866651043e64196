# ruff: noqa: E501
"""Makes docs/results.md and its pictures from benchmarks/results/*.json. Takes no arguments."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hf_dr.text import counted, markdown_table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
STUDENTS = {
    "Fashion-MNIST, ResNet": "fashion_mnist_resnet",
    "Fashion-MNIST, ViT": "fashion_mnist_vit",
    "CIFAR-10, ResNet": "cifar10_resnet",
    "CIFAR-10, ViT": "cifar10_vit",
    "Tiny-ImageNet, ResNet": "tiny_imagenet_resnet",
    "Tiny-ImageNet, ViT": "tiny_imagenet_vit",
    "grocery, ResNet": "grocery_resnet",
    "grocery, ViT": "grocery_vit",
    "grocery, fine-tuned, EfficientNet-Lite0": "grocery_finetune_lite0",
}
# Sets and ways to learn of benchmarks/results/teachers.json, by the parts of their keys.
TEACHERS = {
    "grocery, 1,253 photos": "grocery",
    "CIFAR-10, 4,000 images": "cifar10",
    "Tiny-ImageNet, 4,000 images": "tiny_imagenet",
    "Fashion-MNIST, 10,000 images": "fashion_mnist",
}
WAYS = {
    "labels": "_erm",
    "reinforced": "_reinforced",
    "reinforced, calibrated": "_calibrated_reinforced",
    "reinforced, 5 folds": "_folds_reinforced",
    "reinforced, 5 folds, labels with half the weight": "_folds_labels0.5_reinforced",
    "reinforced, a view for each epoch": "_{views}views_reinforced",
    "reinforced, a view for each epoch, labels with half the weight": "_labels0.5_{views}views_reinforced",
    "reinforced, a view for each epoch, 5 folds": "_folds_{views}views_reinforced",
}
VIEWS = {"grocery": 24, "cifar10": 12}  # as many as epochs; else they are 8 and 2
# By subject: what was measured, its number with the places where it stands (file[key]), benchmark.
COSTS = {
    "What is stored": [
        ("Replayed pixels that differ from what the teacher saw (every op, from another process)", "{fidelity[differing_pixels]} in {fidelity[views]:,} views", "fidelity"),
        ("Bytes a view of `randaug`, K = 10 of 1,000, V = 50", "{storage[randaug]:.1f}", "storage"),
        ("Bytes a view of `randaug_mixing`, likewise", "{storage[randaug_mixing]:.1f}", "storage"),
        ("What storing float16 loses, nats of KL", "{storage[kl]:.1e}", "storage"),
    ],
    "Making": [
        ("Speed of a run over its teacher alone, CPU, 224x224 (cores wait less in a run)", "{generation[ratio]:.2f}", "generation"),
        ("The same on an H100, EfficientNet-Lite0", "{device[generation_lite0]:.2f}", "device"),
        ("The same on an H100, ResNet-50", "{device[generation_resnet50]:.2f}", "device"),
        ("The same on an H100, EfficientNet-Lite0 with mixing", "{device[generation_lite0_mixing]:.2f}", "device"),
        ("Speed of two processes over one, one thread each", "{generation[two_processes]:.2f}", "generation"),
        ("Memory of a run, MB", "{generation[peak_mb]:,.0f}", "generation"),
        ("Memory with twice the rows, MB", "{generation[peak_mb_long]:,.0f}", "generation"),
        ("Memory with four times the views, MB", "{generation[peak_mb_views]:,.0f}", "generation"),
    ],
    "Training": [
        ("Time of a training step of MobileNetV3-small over one on labels (other models differ)", "{step[reinforced]:.3f}", "step"),
        ("The same with EfficientNet-Lite0 in memory as the teacher", "{step[kd]:.2f}", "step"),
        ("Time of the loss over the dense one, at 21,841 classes", "{loss[time_21841]:.2f}", "loss"),
        ("Memory of the loss over the dense one, at 21,841 classes", "{loss[memory_21841]:.2f}", "loss"),
        ("Images a second over those of a plain loader, V = 50", "{loader[randaug_v50]:.2f}; {loader[randaug_v50_workers]:.2f} with 2 workers", "loader"),
        ("The same, V = 400", "{loader[randaug_v400]:.2f}; {loader[randaug_v400_workers]:.2f} with 2 workers", "loader"),
        ("The same, V = 400 with mixing", "{loader[randaug_mixing_v400]:.2f}; {loader[randaug_mixing_v400_workers]:.2f} with 2 workers", "loader"),
        ("Share of checking that images are the right ones, in a loader's first epoch (nothing in later ones)", "{join[check_share]:.1%}", "join"),
        ("Time to find an overlay's images by their pixels, once, over decoding them", "{join[index_over_decoding]:.2f}", "join"),
    ],
    "Publishing": [
        ("Speed of pushing 1 GB in 50 shards from two processes, over the Hub client's own upload (each shard is checked first)", "{push[ratio]:.2f}, at {push[upload_2_mb_per_s]:.0f} MB/s on one machine", "push"),
        ("Share that is sent again after a kill half way", "{push[resent_fraction]:.0%}", "push"),
    ],
}  # fmt: skip


def read(name: str) -> dict[str, Any]:
    """Returns the numbers of one benchmark."""
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def gains(file: str, what: str, students: dict[str, str]) -> str:
    """Returns the table of what students gain, whose names are given with the parts of their keys in a file."""
    found = read(file)
    head = [what, "top-1 %, erm", "reinforced", "gain", "NLL gain", "ECE gain", "corrupted error gain"]
    rows = []
    for title, key in students.items():
        cells = [f"{100 * found[f'{key}_{objective}_top1']:.2f}" for objective in ("erm", "reinforced")]
        for metric, scale, digits in (("top1", 100, 2), ("nll", 1, 3), ("ece", 100, 2), ("mce", 100, 2)):
            cells.append(mean(found, f"{key}_{metric}_gain", scale, f"+.{digits}f"))
        rows.append([title, *cells])
    return markdown_table(head, rows)


def left_of_ece() -> str:
    """Returns the table of what a temperature leaves of the ECE, for the rows of `gains` of which it was measured."""
    found = read("left_of_ece")
    head = ["student", "seeds", "ECE %, erm", "reinforced", "calibrated ECE %, erm", "reinforced"]
    rows = []
    for title, key in STUDENTS.items():
        if f"{key}_erm_calibrated_ece" in found:
            names = [f"{key}_{way}_{metric}" for metric in ("ece", "calibrated_ece") for way in ("erm", "reinforced")]
            rows.append([f"{title}, again", found[f"{key}_seeds"], *(mean(found, name) for name in names)])
    return markdown_table(head, rows)


def curve(file: str, title: str) -> str:
    """Returns the table of how gains change with the number of epochs, and of views where that was chosen."""
    found = read(file)
    rows = {}
    for student, shown in (("resnet", "ResNet"), ("vit", "ViT")):
        pattern = re.compile(rf"(.*_{student}_(\d+)epochs(?:_(\d+)views)?)_top1_gain")
        matches = [match for match in map(pattern.fullmatch, found) if match]
        for match in sorted(matches, key=lambda match: (int(match[2]), int(match[3] or 0))):
            views = f", V = {match[3]}" if match[3] else ""
            rows[f"{shown}, {match[2]} epochs{views}, {found[f'{match[1]}_seeds']} seeds"] = match[1]
    return gains(file, f"10,000 images of {title}, student", rows)


def a_view_for_each_epoch() -> str:
    """Returns the table of a ResNet's ways to learn, among them views for each epoch and half of the weight on the labels."""
    rows = []
    for title, ways in WAYS_OF_VIEWS.items():
        for way, (file, student) in ways.items():
            found = read(file)
            top1, *others = spreads(found, student)
            rows.append([title, way, top1, _gain(found, student, ways), *others, mean(found, f"{student}_mce")])
    head = ["10,000 images", "learned from", "top-1 %", "gain of top-1", "NLL", "ECE %", "corrupted error %"]
    return markdown_table(head, rows)


def _gain(found: dict[str, Any], student: str, ways: dict[str, tuple[str, str]]) -> str:
    """Returns what a student gains over those of the labels; nothing where these are of another machine."""
    _, labels = ways[LABELS]
    if student == labels:
        return ""
    if f"{student}_top1_by_seed" in found and f"{labels}_top1_by_seed" in found:
        return gain_by_seed(found, student, labels)
    gain = f"{student.removesuffix('_reinforced')}_top1_gain"
    return mean(found, gain, 100, "+.2f") if gain in found else ""


def robustness() -> list[tuple[str, str, float, float, float, float]]:
    """Returns for each student its set, what it is, and in percent the teacher's error under corruptions, that of the
    student on labels, what answers gain, and the standard deviation of that over the seeds.
    """
    signs = read("signs")
    rows = []
    for name, title in ROBUSTNESS.items():
        for file, key, student in ROBUST_STUDENTS:
            found = read(file)
            prefix = f"{name}_{key}"
            if f"{prefix}_mce_gain" in found:
                numbers = (signs[f"{name}_held_out_mce"], found[f"{prefix}_erm_mce"], found[f"{prefix}_mce_gain"])
                shown = [100 * number for number in (*numbers, found[f"{prefix}_mce_gain_std"])]
                rows.append((title, student, *shown))
    return rows


def robustness_table() -> str:
    """Returns the table of `robustness`, the students ordered by how far the teacher is better than they are on labels."""
    ordered = sorted(robustness(), key=lambda row: row[2] - row[3])
    rows = [
        [title, student, f"{teacher:.1f}", f"{labels:.1f}", f"{teacher - labels:+.1f}", f"{gain:+.2f} ± {std:.2f}"]
        for title, student, teacher, labels, gain, std in ordered
    ]
    return markdown_table(
        ["set", "student", "corrupted error %, teacher", "student, on labels", "difference", "gain"], rows
    )


def spreads(found: dict[str, Any], prefix: str) -> list[str]:
    """Returns top-1, NLL and ECE, with their standard deviations over seeds; all but NLL in percent."""
    return [
        mean(found, f"{prefix}_{metric}", *((1, ".3f") if metric == "nll" else ())) for metric in ("top1", "nll", "ece")
    ]


def mean(found: dict[str, Any], key: str, scale: float = 100, style: str = ".2f") -> str:
    """Returns a mean, and its standard deviation where there are several seeds."""
    value = f"{scale * found[key]:{style}}"
    return f"{value} ± {scale * found[f'{key}_std']:{style.strip('+')}}" if f"{key}_std" in found else value


def length(file: str, students: dict[str, str]) -> str:
    """Returns the table of trainings on all of CIFAR-10, of students with their titles."""
    found = read(file)
    is_calibrated = any(key.endswith("_calibrated_ece") for key in found)  # older measurements are not
    calibrated = ["calibrated ECE %"] if is_calibrated else []
    head = ["student", "learned from", "top-1 %", "gain of top-1", "NLL", "ECE %", *calibrated, "corrupted error %"]
    rows = []
    for student, title in students.items():
        trained = [key.split("_")[1] for key in found if key.startswith(f"{student}_") and key.endswith("_erm_top1")]
        for epochs in sorted(trained, key=int):
            for objective, way in LEARNED_FROM.items():
                prefix = f"{student}_{epochs}_{objective}"
                if f"{prefix}_top1" not in found:
                    continue
                gain = "" if objective == "erm" else mean(found, f"{prefix}_gain_top1", style="+.2f")
                top1, *others = spreads(found, prefix)
                cells = [
                    f"{title}, {epochs} epochs",
                    f"{way}, {counted(found[f'{prefix}_seeds'], 'seed')}",
                    top1,
                    gain,
                    *others,
                ]
                if is_calibrated:
                    cells.append(mean(found, f"{prefix}_calibrated_ece") if f"{prefix}_calibrated_ece" in found else "")
                rows.append([*cells, mean(found, f"{prefix}_corrupted")])
    return markdown_table(head, rows)


def answers_of_teachers() -> str:
    """Returns the table of what other teachers answer."""
    found = read("teachers")
    rows = []
    for title, name in TEACHERS.items():
        for kind, key in (("as usual", ""), ("calibrated", "_calibrated"), ("5 folds", "_folds")):
            if f"{name}{key}_agreement" in found:
                agreement, ece, entropy = (found[f"{name}{key}_{sign}"] for sign in ("agreement", "ece", "entropy"))
                rows.append([title, kind, f"{100 * agreement:.1f} %", f"{100 * ece:.2f}", f"{entropy:.3f}"])
    return markdown_table(["set", "teacher", "top-1 is the label", "ECE %", "entropy, nats"], rows)


def students_of_teachers() -> str:
    """Returns the table of what students learn from other teachers, and from more views."""
    found = read("teachers")
    rows = []
    for title, name in TEACHERS.items():
        for way, key in WAYS.items():
            student = f"{name}_resnet{key.format(views=VIEWS.get(name))}"
            if f"{student}_top1" in found:
                gain = "" if key == "_erm" else gain_by_seed(found, student, f"{name}_resnet_erm")
                top1, *others = spreads(found, student)
                rows.append([title, way, top1, gain, *others])
    return markdown_table(["set", "learned from", "top-1 %", "gain of top-1", "NLL", "ECE %"], rows)


def gain_by_seed(found: dict[str, Any], student: str, labels: str) -> str:
    """Returns what a student gains in top-1, in points, over the one of the same seed that learned from labels."""
    gains = 100 * (np.array(found[f"{student}_top1_by_seed"]) - found[f"{labels}_top1_by_seed"])
    return f"{gains.mean():+.2f} ± {gains.std(ddof=1):.2f}"


# What `robustness` compares: sets, and in which file which students are.
ROBUSTNESS = {
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "tiny_imagenet": "Tiny-ImageNet",
    "grocery": "grocery",
}
ROBUST_STUDENTS = (
    ("accuracy", "resnet", "ResNet"),
    ("accuracy", "vit", "ViT"),
    ("curve", "resnet_30epochs", "ResNet, 30 epochs"),
    ("curve", "vit_30epochs", "ViT, 30 epochs"),
    ("curve_tiny_imagenet", "resnet_100epochs_16views", "ResNet, 100 epochs"),
)
# What the students of `a_view_for_each_epoch` learned from: the file of their results, and how its keys begin.
LABELS = "labels, a new view in each epoch"
WAYS_OF_VIEWS = {
    "CIFAR-10, 30 epochs": {
        LABELS: ("curve", "cifar10_resnet_30epochs_erm"),
        "4 stored views": ("curve", "cifar10_resnet_30epochs_reinforced"),
        "30 stored views": ("curve", "cifar10_resnet_30epochs_30views_reinforced"),
        "30 stored views, labels with half the weight": (
            "curve",
            "cifar10_resnet_labels0.5_30epochs_30views_reinforced",
        ),
    },
    "Tiny-ImageNet, 30 epochs": {
        LABELS: ("curve_tiny_imagenet", "tiny_imagenet_resnet_30epochs_16views_erm"),
        "16 stored views": ("curve_tiny_imagenet", "tiny_imagenet_resnet_30epochs_16views_reinforced"),
        "16 stored views, labels with half the weight": (
            "half_weight",
            "tiny_imagenet_resnet_labels0.5_30epochs_16views_reinforced",
        ),
    },
    "Fashion-MNIST, 8 epochs": {
        LABELS: ("half_weight", "fashion_mnist_resnet_labels0.5_erm"),
        "8 stored views": ("half_weight", "fashion_mnist_resnet_reinforced"),
        "8 stored views, labels with half the weight": ("half_weight", "fashion_mnist_resnet_labels0.5_reinforced"),
    },
}
# What students of benchmarks/length.py learn from.
LEARNED_FROM = {
    "erm": "labels",
    "reinforced": "stored answers",
    "both": "half stored answers, half labels",
    "kd": "teacher in memory",
}


# What the picture of gains shows: a metric, its scale, the title of the panel.
GAINS = (("top1", 100, "top-1, points"), ("nll", 1, "NLL, nats"), ("ece", 100, "ECE, points"))


def all_gains() -> dict[str, dict[str, list[float]]]:
    """Returns what the picture of gains shows: by panel and student, a mean and its standard deviation over three seeds."""
    small, large = read("accuracy"), read("length")
    shown: dict[str, dict[str, list[float]]] = {}
    for metric, scale, title in GAINS:
        rows = {student: (small, f"{key}_{metric}_gain") for student, key in STUDENTS.items()}
        rows["all of CIFAR-10, ResNet-18"] = (large, f"resnet18_20_reinforced_gain_{metric}")
        shown[title] = {
            student: [scale * found[key], scale * found[f"{key}_std"]] for student, (found, key) in rows.items()
        }
    return shown


def draw_gains(figure: Figure, shown: dict[str, dict[str, list[float]]]) -> None:
    """Draws `all_gains`: a panel for each metric, a line for each student; right of zero is better."""
    panels = figure.subplots(1, len(shown), sharey=True)
    for axis, (title, rows) in zip(panels, shown.items(), strict=True):
        means, deviations = np.array(list(rows.values())).T
        places = np.arange(len(rows))[::-1]
        for better, colour in ((means >= 0, "C0"), (means < 0, "C3")):
            axis.errorbar(
                means[better], places[better], xerr=deviations[better], fmt=f"{colour}o", markersize=5, capsize=3
            )
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(xlabel=f"gain of {title}", yticks=places, yticklabels=list(rows))
        axis.grid(axis="x", alpha=0.3)


# What the picture of curves shows: a file, the part of its keys, the title.
CURVES = (
    ("length", "resnet18", "ResNet-18"),
    ("length_better", "resnet14", "ResNet-14"),
    ("length_cpu", "resnet", "ResNet"),
)


def curves() -> dict[str, dict[str, list[list[float]]]]:
    """Returns what the picture of curves shows: by student and way, rows of epochs, top-1, its std, ECE, its std."""
    shown: dict[str, dict[str, list[list[float]]]] = {}
    for file, student, title in CURVES:
        found = read(file)
        trained = {int(key.split("_")[1]) for key in found if re.fullmatch(rf"{student}_\d+_reinforced_top1", key)}
        for objective, way in (("erm", "labels"), ("reinforced", "stored answers")):
            rows = []
            for epochs in sorted(trained):
                prefix = f"{student}_{epochs}_{objective}"
                rows.append([epochs])
                for metric in ("top1", "ece"):
                    rows[-1] += [100 * found[f"{prefix}_{metric}"], 100 * found.get(f"{prefix}_{metric}_std", 0.0)]
            shown.setdefault(title, {})[way] = rows
    return shown


def draw_curves(figure: Figure, shown: dict[str, dict[str, list[list[float]]]]) -> None:
    """Draws `curves`: accuracy and calibration by the number of epochs."""
    panels = figure.subplots(1, 2)
    for colour, (title, ways) in enumerate(shown.items()):
        for style, (way, rows) in zip(("--", "-"), ways.items(), strict=True):
            epochs, top1, top1_std, ece, ece_std = np.array(rows).T
            beside = epochs * 1.02 ** (2 * colour + (style == "-") - 2.5)  # so that no spread hides another
            for axis, values, spread in ((panels[0], top1, top1_std), (panels[1], ece, ece_std)):
                label = f"{title}, {way}"
                axis.errorbar(beside, values, spread, fmt=f"C{colour}o{style}", markersize=4, capsize=3, label=label)
    for axis, name in zip(panels, ("top-1 %", "ECE %"), strict=True):
        axis.set(
            xscale="log", xlabel="epochs", ylabel=name, xticks=[10, 20, 30, 100], xticklabels=["10", "20", "30", "100"]
        )
        axis.tick_params(which="minor", bottom=False)
        axis.grid(alpha=0.3)
    panels[0].legend(fontsize=8)


# The pictures of the page: what each shows, and what draws it.
PICTURES: dict[str, tuple[Callable[[], Any], Callable[[Figure, Any], None]]] = {
    "gains.png": (all_gains, draw_gains),
    "length.png": (curves, draw_curves),
}


def draw(folder: Path) -> None:
    """Draws all pictures; each carries what it shows as text, so that a test sees when it is older than the numbers."""
    for name, (numbers, drawing) in PICTURES.items():
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        shown = numbers()
        drawing(figure, shown)
        figure.savefig(folder / name, dpi=110, metadata={"Description": json.dumps(shown), "Software": None})


def in_memory() -> str:
    """Returns what distillation with the teacher in memory reaches, next to stored answers and labels."""
    found = read("accuracy")
    reached, times = [], []
    for title, key in (("CIFAR-10", "cifar10"), ("Fashion-MNIST", "fashion_mnist")):
        online, stored, labels = (100 * found[f"{key}_resnet_{way}_top1"] for way in ("kd", "reinforced", "erm"))
        reached.append(f"{online:.2f} % on {title} (stored answers {stored:.2f} %, labels {labels:.2f} %)")
        times.append(f"{found[f'{key}_resnet_kd_seconds'] / found[f'{key}_resnet_erm_seconds']:.1f}")
    return (
        f"With the teacher in memory (`kd`) the ResNet reaches {reached[0]}\nand {reached[1]}, in {' and '.join(times)}\n"
        "times the time of training on labels, on two CPU cores."
    )


def demo() -> str:
    """Returns the table of the demo."""
    found = read("demo")
    metrics = (("top1", 100, ".2f"), ("nll", 1, ".4f"), ("ece", 100, ".2f"), ("mce", 100, ".2f"))
    rows = [
        [title, *(mean(found, key.format(metric), scale, sign + style) for metric, scale, style in metrics)]
        for title, key, sign in (("erm", "erm_{}", ""), ("reinforced", "reinforced_{}", ""), ("gain", "{}_gain", "+"))
    ]
    return markdown_table(["", "top-1 %", "NLL", "ECE %", "corrupted error %"], rows)


def temperatures() -> str:
    """Returns which temperatures the calibrated teachers have."""
    found = read("teachers")
    listed = [f"{title.split(',')[0]} {found[f'{name}_temperature']:g}" for title, name in TEACHERS.items()]
    return ", ".join(listed)


def right(file: str) -> str:
    """Returns how often the teachers of the trainings on all of CIFAR-10 are right."""
    found = read(file)
    return (
        ", ".join(f"{100 * value:.1f}" for key, value in found.items() if re.fullmatch("teacher_.*_top1", key)) + " %"
    )


def page() -> str:
    """Returns the page."""
    files = {path.stem: read(path.stem) for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    costs = []
    for subject, measured in COSTS.items():
        rows = [(what, answer.format_map(files), f"`{by}.py`") for what, answer, by in measured]
        costs += [f"### {subject}", markdown_table(["what", "measured", "benchmark"], rows)]
    parts = [
        "# Results",
        (
            "What students of stored answers gain over students of labels, and what it costs, as measured. What follows from it for a "
            "dataset of\nyours is in [Will it help me?](will_it_help.md). The page is made by `python docs/results.py` from\n"
            "[benchmarks/results](../benchmarks/results), which has every number with its command, versions and machine."
        ),
        (
            "| question | section |\n|---|---|\n"
            "| Does accuracy rise, on small sets? | [What students gain](#what-students-gain) |\n"
            "| Does it last in longer trainings, with more views? | [By the number of epochs](#by-the-number-of-epochs), "
            "[At length](#at-length) |\n"
            "| Is a student as robust? | [Under corruptions](#under-corruptions) |\n"
            "| Does another teacher change it? | [Other teachers, and more views](#other-teachers-and-more-views) |\n"
            "| How much time, disk and memory? | [What it costs](#what-it-costs) |\n"
            "| What can I run myself in minutes? | [The demo](#the-demo) |"
        ),
        (
            "Students of `erm` learn from labels alone, of `reinforced` from stored answers, of `kd` with the teacher in memory, all "
            "with the same data\npath and steps. NLL is the negative log-likelihood of the label, ECE the expected calibration error, "
            "corrupted error that under the\ncorruptions of ImageNet-C, V the number of stored views of an image. **A positive gain is a "
            "change for the better**; gains of ECE and of\ncorrupted error are in percentage points. Numbers are mean ± standard deviation "
            "over the seeds."
        ),
        "## What students gain",
        (
            "By `python benchmarks/accuracy.py`, three seeds, at schedules that two CPU cores can do (3 to 80 epochs). Corrupted is by all "
            "fifteen\ncorruptions, in the last row by four."
        ),
        (
            f"Grocery is the fruit of the [Grocery Store dataset](https://arxiv.org/abs/1901.00711) (Klasson et al., WACV 2019): photos that were taken"
            f"\nin shops with a phone, 1,253 to train on and 1,117 to test, of {read('signs')['grocery_classes']} kinds."
        ),
        (
            "![Gain in top-1, NLL and ECE of nine students of small sets, and of one on all of CIFAR-10](gains.png)\n\n"
            "Each point is a row of the table, with its standard deviation; the last is the ResNet-18 of [At length](#at-length), at "
            "20 epochs."
        ),
        gains("accuracy", "10,000 images (grocery: 1,253 photos), student", STUDENTS),
        in_memory(),
        (
            "Calibrated ECE: each half of the test images is evaluated at the temperature that fits the other half best. It was measured "
            "for the four\nrows that lose ECE, trained again by the same command (`left_of_ece.json`):"
        ),
        left_of_ece(),
        "## By the number of epochs",
        (
            "By `python benchmarks/accuracy.py --sets cifar10 --epochs N`: the students, images, teacher and V = 4 views of the table "
            "above, so that\nviews repeat after 4 epochs."
        ),
        curve("curve", "CIFAR-10"),
        (
            "The ResNet again, with more stored views (`--num_views N --objectives reinforced`), and that with half of the weight on the "
            "labels\n(`--label_weight 0.5`), means over three seeds. A gain is over the student of the same seed that learned from labels; "
            "where none is\ngiven, those are of another machine, which fitted the teacher again:"
        ),
        a_view_for_each_epoch(),
        (
            "The ResNet on Tiny-ImageNet, of 200 classes, with V = 16 views, by the same command with `--sets tiny_imagenet "
            "--num_views 16`:"
        ),
        curve("curve_tiny_imagenet", "Tiny-ImageNet"),
        "## Under corruptions",
        (
            "The error of teachers under the same corruptions, on the same test images (`python benchmarks/signs.py`), next to that of "
            "students that\nlearned from the labels of its images, and what students of its answers gain. A difference below 0: the "
            "teacher is the more robust."
        ),
        robustness_table(),
        "## At length",
        (
            "By `python benchmarks/length.py`, on an H100: all 50,000 images of CIFAR-10, seen at 64x64 by a ResNet-18, its 10,000 "
            f"for testing; teachers\nEfficientNet-Lite0 and Lite1, fine-tuned from ImageNet's weights ({right('length')}), V = "
            f"{read('length')['num_views']}. Of the test images each has one of\nthe fifteen corruptions."
        ),
        length("length", {"resnet18": "ResNet-18"}),
        (
            "By `python benchmarks/length.py --scale cpu`, on two cores: the same images at 32x32, students of 0.3 (ResNet) and 0.7 "
            f"(ViT) million\nweights, teacher EfficientNet-Lite0 at 64x64 ({right('length_cpu')}), V = "
            f"{read('length_cpu')['num_views']}. Calibrated ECE: each half of the test\nimages is evaluated at the "
            "temperature that fits the other half best."
        ),
        length("length_cpu", {"resnet": "ResNet", "vit": "ViT"}),
        (
            f"The same with a better teacher, fine-tuned at {read('length_better')['teacher_side']} pixels "
            f"({right('length_better')}); what the small ResNet learns from labels is as above.\nResNet-14 has 2.7 million weights:"
        ),
        length("length_better", {"resnet": "ResNet", "resnet14": "ResNet-14"}),
        (
            "![Top-1 accuracy and ECE by the number of epochs, of three students on labels and on stored answers](length.png)\n\n"
            "The first table's ResNet-18, the last one's ResNet-14 and the second one's ResNet: means, and standard deviations over "
            "two or three\nseeds (one of ResNet-14 at 100 epochs)."
        ),
        "## Other teachers, and more views",
        (
            "A fraction of the work above, so other numbers than there, over three seeds. By `python benchmarks/accuracy.py --small "
            "--students resnet`,\nand `python benchmarks/signs.py --small` with the same teachers. A gain is over the student of the "
            "same seed that learned from labels.\n\n"
            "- **calibrated** (`--teachers calibrated`): answers at the temperature that fits those to images that the teacher has not "
            f"learned\n  ({temperatures()}).\n"
            "- **5 folds** (`--teachers folds`): five teachers; each answers for the images that it has not seen.\n"
            "- **labels with half the weight**: `--label_weight 0.5`.\n"
            "- **a view for each epoch** (`--num_views`): 24 (grocery) or 12 (CIFAR-10). Otherwise views are 8 (grocery), 2 (CIFAR-10, "
            "Tiny-ImageNet) or\n  4 (Fashion-MNIST)."
        ),
        "What the teachers answer:",
        answers_of_teachers(),
        "What students of their answers reach:",
        students_of_teachers(),
        "## What it costs",
        (
            "Ratios against a baseline in the same run, on two CPU cores unless another device is named. `fidelity.py` is run by "
            "`python\nbenchmarks/fidelity.py`, and so on. What the signals cost is in [Signals](signals.md)."
        ),
        *costs,
        "## The demo",
        (
            "`make demo` trains a small ResNet on 3,000 Fashion-MNIST images for 10 epochs, on labels alone and on the stored answers of "
            "two\nteachers that saw all 60,000 images, distorted ones among them, with three seeds. It tests on 2,000 images, and at severity 3 of "
            "the\ncorruptions. On two CPU cores it takes a few minutes:"
        ),
        demo(),
        (
            "Three seeds are few: the spread of the gain in accuracy is nearly as large as the gain. A CPU of another kind rounds in another "
            "way, and\nother digits come out."
        ),
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    draw(ROOT / "docs")

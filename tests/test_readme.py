"""README and docs: their code runs as it stands, their numbers are those that were measured, their links lead somewhere."""

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import json
import re
import textwrap
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import children
import PIL.Image
import pytest
import yaml

import hf_dr
from hf_dr.cli.launch import COMMANDS
from hf_dr.cli.main import main
from hf_dr.store.provenance import Provenance
from hf_dr.teacher.names import SIGNALS
from hf_dr.training import losses
from hf_dr.training.reinforced_settings import TAIL_RULES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
RESULTS = ROOT / "benchmarks" / "results"


def run_file(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE = run_file(ROOT / "docs" / "results.py")
ROWS = MADE.STUDENTS


def measured(name: str) -> dict[str, float]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def in_one_line(page: str) -> str:
    """Returns a page without its line breaks."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def run_strictly(path: Path) -> None:
    """Runs a script to which an outdated call of ours is an error."""
    warnings.filterwarnings("error", category=DeprecationWarning, module="hf_dr")
    children.run_script(path)


def test_the_code_runs_as_it_stands(tmp_path):
    """Offline, each block in a new process and all in one folder, as somebody would paste them."""
    assert len(BLOCKS) == 3
    printed = []
    for number, block in enumerate(BLOCKS):
        (tmp_path / "block.py").write_text(block, encoding="utf-8")
        printed.append(children.run(run_strictly, tmp_path / "block.py", cwd=tmp_path, log=tmp_path / f"log_{number}"))
    assert "answers: 10 of 10 classes by fashion_mnist_a + fashion_mnist_b" in printed[0]
    assert (tmp_path / "student" / "model.safetensors").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_table_of_gains_is_what_was_measured(page):
    found = measured("accuracy")
    table = [line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    rows = [row for row in rows if row[0] in ROWS]
    assert len(rows) == (5 if page == "README.md" else len(ROWS))
    for name, *cells in rows:

        def of(key: str, name: str = name) -> float:
            return found[f"{ROWS[name]}_{key}"]

        expected = [f"{100 * of('erm_top1'):.2f}", f"{100 * of('reinforced_top1'):.2f}"]
        for metric, scale, digits in (("top1", 100, 2), ("nll", 1, 3), ("ece", 100, 2), ("mce", 100, 2)):
            gain, spread = (scale * of(f"{metric}_gain{end}") for end in ("", "_std"))
            expected.append(f"{gain:+.{digits}f} ± {spread:.{digits}f}")
        assert cells == expected[: len(cells)], name


def test_the_table_of_the_demo_is_what_was_measured():
    found = measured("demo")
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for row, key, sign in (("erm", "erm_{}", ""), ("reinforced", "reinforced_{}", ""), ("gain", "{}_gain", "+")):
        cells = [row]
        for metric, scale, digits in (("top1", 100, 2), ("nll", 1, 4), ("ece", 100, 2), ("mce", 100, 2)):
            mean, std = (scale * found[f"{key.format(metric)}{end}"] for end in ("", "_std"))
            cells.append(f"{mean:{sign}.{digits}f} ± {std:.{digits}f}")
        assert f"| {' | '.join(cells)} |" in text


def test_what_is_said_of_a_longer_training_was_measured():
    found = measured("length")
    shown = []
    for key, scale, digits in (("top1", 100, 2), ("nll", 1, 3), ("ece", 100, 2), ("corrupted", 100, 2)):
        before, after = (scale * found[f"resnet18_20_{objective}_{key}"] for objective in ("erm", "reinforced"))
        shown.append(f"{before:.{digits}f} → {after:.{digits}f}")
    text = in_one_line("README.md")
    assert "top-1 {} %, NLL {}, ECE {} %, error under corruptions {} %.".format(*shown) in text


def test_the_table_of_signals_is_what_was_measured():
    found = measured("signal")
    text = (ROOT / "docs" / "signals.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) == 9
    for signal, k, cells in rows:
        bytes_, kl, noise, softened = (cell.strip() for cell in cells.split("|"))
        key = f"{signal}_k{k}"
        assert (bytes_, noise) == (f"{found[f'{key}_bytes_v400']:.1f}", f"{found[f'{key}_noise']:.3f}")
        assert float(kl) == pytest.approx(found[f"{key}_kl"], rel=0.1)
        assert softened == ("" if signal == "sampled" else f"{4**2 * found[f'{key}_kl_t4']:.3f}")
    assert all(found[f"topk_image_tail_k3_kl_t{t}"] < found[f"topk_k20_kl_t{t}"] for t in (2, 4, 8))
    tail = found["tail_bytes_an_image"]
    assert f"{tail:.0f} bytes an image, {tail / 400:.1f} a view at V = 400,\n  {tail / 50:.1f} at V = 50" in text


def test_the_table_of_streams_is_what_was_measured():
    found = measured("streams")
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert f"MB read, of {found['whole_mb']:.1f} | rows read, of {found['whole_rows']} |" in text
    for share in (10, 90):
        seconds = f"{found[f'resume_{share}_s']:.2f} | {found[f'skip_{share}_s']:.2f}"
        read = f"{found[f'resume_{share}_mb']:.1f} | {found[f'resume_{share}_rows']}"
        decoded = f"{found[f'resume_{share}_decoded']}, {found[f'left_{share}_rows']}"
        assert f"| {share} % | {seconds} | {read} | {decoded} |" in text


def test_the_page_of_results_and_its_pictures_are_what_their_command_makes(tmp_path):
    assert MADE.PAGE.read_text(encoding="utf-8") == MADE.page()
    MADE.draw(tmp_path)
    for name in MADE.PICTURES:
        committed, now = (PIL.Image.open(path) for path in (MADE.ROOT / "docs" / name, tmp_path / name))
        assert committed.text == now.text != {}
        assert committed.size == now.size
    found = measured("signs")
    text = (ROOT / "docs" / "will_it_help.md").read_text(encoding="utf-8")
    table = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    rows = {row[0]: row for row in table}
    gained = MADE.gains("accuracy", "", ROWS).splitlines()
    sets = {
        "Fashion-MNIST": ("fashion_mnist", ["ResNet", "ViT"]),
        "CIFAR-10": ("cifar10", ["ResNet", "ViT"]),
        "Tiny-ImageNet": ("tiny_imagenet", ["ResNet", "ViT"]),
        "grocery": ("grocery", ["ResNet", "ViT"]),
        "grocery, fine-tuned": ("grocery_finetune", ["EfficientNet-Lite0"]),
    }
    for title, (name, students) in sets.items():
        expected = [f"{100 * found[f'{name}_{key}']:.1f} %" for key in ("agreement", "held_out")]
        expected += [f"{100 * found[f'{name}_ece']:.2f}", f"{found[f'{name}_entropy']:.3f}"]
        for student in students:
            cells = gained[2 + list(ROWS).index(f"{title}, {student}")].split(" | ")
            expected.append(cells[3])
        assert rows[title][2 : 2 + len(expected)] == expected


def test_what_is_said_of_a_teacher_in_memory_and_of_what_a_run_needs_was_measured():
    found = measured("accuracy")
    text = in_one_line("docs/results.md")
    times = []
    for title, name in (("CIFAR-10", "cifar10"), ("Fashion-MNIST", "fashion_mnist")):
        online, stored, labels = (100 * found[f"{name}_resnet_{way}_top1"] for way in ("kd", "reinforced", "erm"))
        assert f"{online:.2f} % on {title} (stored answers {stored:.2f} %, labels {labels:.2f} %)" in text
        times.append(found[f"{name}_resnet_kd_seconds"] / found[f"{name}_resnet_erm_seconds"])
    assert "in {:.1f} and {:.1f} times the time of training on labels".format(*times) in text
    run, text = measured("generation"), in_one_line("docs/make.md")
    assert f"and V = 50, {measured('storage')['randaug']:.1f} bytes a view" in text
    assert f"views of 224 pixels {run['peak_mb']:,.0f} MB" in text
    assert (
        f"twice the rows {run['peak_mb_long']:,.0f} MB and with four times the views {run['peak_mb_views']:,.0f} MB"
        in text
    )
    machines = (("", "AMD EPYC"), ("_xeon", "Intel(R) Xeon(R) Processor"))
    assert all(measured(f"generation{which}")["cpu"] == cpu for which, cpu in machines)
    ratios = [measured(f"generation{late}{which}")["ratio"] for which, _ in machines for late in ("", "_late")]
    shown = [f"{ratio:.2f}" for ratio in ratios]
    assert "{} times the speed of its teacher alone, otherwise {}".format(*shown) in text
    assert "or {2} and {3} on an Intel Xeon".format(*shown) in text
    decisions = in_one_line("docs/decisions.md")
    assert "does {} times what its teacher alone does, {} times in a program".format(*shown) in decisions
    assert "on another machine it was {2} and {3}".format(*shown) in decisions


def test_what_is_said_of_a_calibrated_teacher_of_grocery_was_measured():
    found = measured("accuracy")
    text = in_one_line("docs/will_it_help.md")
    lite0 = "grocery_finetune_lite0"

    def shown(way: str) -> list[str]:
        return [f"{100 * found[f'{lite0}_{way}_{key}']:.1f}" for key in ("top1", "top1_std", "ece")]

    calibrated, usual, labels = shown("calibrated_reinforced"), shown("reinforced"), shown("erm")
    assert f"(temperature {found['grocery_finetune_temperature']}" in text
    assert "{} ± {} % instead of {} ± {} %".format(*calibrated[:2], *usual[:2]) in text
    assert f"ECE of {calibrated[2]} instead of {usual[2]} % (labels: {labels[0]} and {labels[2]} %)" in text
    length, small = measured("length"), measured("length_cpu")
    right = [value for each in (length, small) for key, value in each.items() if re.fullmatch("teacher_.*_top1", key)]
    assert "right in {:.0f} to {:.0f} % of the test images".format(*(100 * end(right) for end in (min, max))) in text
    gains = {
        key: value for each in (length, small) for key, value in each.items() if key.endswith("reinforced_gain_top1")
    }
    gained = [value for key, value in gains.items() if "_100_" not in key]
    assert min(gained) > 0
    assert (
        "all students gained, {:.1f} to {:.1f} points, in 10 to 30 epochs".format(
            *(100 * end(gained) for end in (min, max))
        )
        in text
    )


def test_what_is_said_of_length_and_of_a_students_temperature_was_measured():
    small, large = measured("length_cpu"), measured("length")
    text = in_one_line("docs/will_it_help.md")
    page = (ROOT / "docs" / "will_it_help.md").read_text(encoding="utf-8")

    def gain(found: dict[str, Any], prefix: str, objective: str = "reinforced") -> str:
        return MADE.mean(found, f"{prefix}_{objective}_gain_top1", style="+.2f")

    better = measured("length_better")
    cifar10, tiny = measured("curve"), measured("curve_tiny_imagenet")
    assert small["resnet_100_reinforced_seeds"] == 2
    assert (better["resnet14_100_reinforced_seeds"], small["resnet_100_kd_seeds"]) == (1, 1)
    after_100 = [f"{gain(small, 'resnet_100')} (two seeds)"]
    for found, key in ((small, "resnet_100_kd"), (better, "resnet14_100_reinforced")):
        after_100.append(f"{100 * found[f'{key}_gain_top1']:+.2f} (one seed)")
    shown = {
        "ResNet of 0.3 million weights": [gain(small, f"resnet_{epochs}") for epochs in (10, 30)],
        "the same, of a better teacher": [gain(better, f"resnet_{epochs}") for epochs in (10, 30)],
        "the same, with the teacher in memory": [gain(small, f"resnet_{epochs}", "kd") for epochs in (10, 30)],
        "ResNet-14 of 2.7 million weights, of the better teacher": [
            gain(better, f"resnet14_{epochs}") for epochs in (10, 30)
        ],
        "ResNet, 4 views": [MADE.mean(cifar10, f"cifar10_resnet_{n}epochs_top1_gain", style="+.2f") for n in (10, 30)],
        "ViT, 4 views": [MADE.mean(cifar10, f"cifar10_vit_{n}epochs_top1_gain", style="+.2f") for n in (10, 30)],
        "ResNet, 16 views": [
            MADE.mean(tiny, f"tiny_imagenet_resnet_{n}epochs_16views_top1_gain", style="+.2f") for n in (10, 30, 100)
        ],
    }
    for row, last in zip(list(shown)[:4], [after_100[0], "", *after_100[1:]], strict=True):
        shown[row].append(last)
    for row in ("ResNet, 4 views", "ViT, 4 views"):
        shown[row].append("")
    table = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")]
    rows = {row[0]: row for row in table}
    for row, cells in shown.items():
        assert [cell.strip(" |") for cell in (*rows[row][2:], "")][:3] == cells, row
    of_18 = [gain(large, f"resnet18_{epochs}").strip("+") for epochs in (10, 20)]
    assert "A ResNet-18 gained {} in 10 and {} in 20 epochs".format(*of_18) in text
    known = [100 * each["teacher_tf_efficientnet_lite0_top1"] for each in (better, small)]
    assert "a better teacher, right in {:.1f} % instead of {:.1f} %, taught no more".format(*known) in text
    eces = [100 * better[f"resnet14_{epochs}_{way}_ece"] for way in ("erm", "reinforced") for epochs in (10, 100)]
    assert (
        "on labels rose from {:.2f} to {:.2f} %, on stored answers it fell from {:.2f} to {:.2f} %".format(*eces)
        in text
    )
    for epochs in (10, 30):  # "taught no more"
        assert better[f"resnet_{epochs}_reinforced_top1"] < small[f"resnet_{epochs}_reinforced_top1"] + 0.003
    for epochs in (10, 30):  # "stored answers were worth as much"
        plus, online = (small[f"resnet_{epochs}_{objective}_gain_top1"] for objective in ("reinforced", "kd"))
        assert abs(plus - online) < small[f"resnet_{epochs}_reinforced_gain_top1_std"]
    kinds = [f"resnet_{epochs}_{objective}" for objective in ("erm", "reinforced") for epochs in (10, 30)]
    sure = [f"{small[f'{kind}_temperature']:.2f}" for kind in kinds]
    assert "{} after 10 epochs on labels and {} after 30 (overconfident), {} and {} on stored".format(*sure) in text
    assert f"underconfident on labels, too ({small['vit_10_erm_temperature']:.2f} after 10 epochs)" in text
    again = measured("left_of_ece")
    told = {
        "all of CIFAR-10, ResNet, 10 epochs": (small, "resnet_10", "reinforced_gain_calibrated_ece"),
        "all of CIFAR-10, ResNet, 30 epochs": (small, "resnet_30", "reinforced_gain_calibrated_ece"),
        "all of CIFAR-10, ResNet-14, 10 epochs": (better, "resnet14_10", "reinforced_gain_calibrated_ece"),
        "all of CIFAR-10, ResNet-14, 30 epochs": (better, "resnet14_30", "reinforced_gain_calibrated_ece"),
        "all of CIFAR-10, ViT, 10 epochs": (small, "vit_10", "reinforced_gain_calibrated_ece"),
        "grocery, fine-tuned, EfficientNet-Lite0": (again, "grocery_finetune_lite0", "calibrated_ece_gain"),
        "Tiny-ImageNet, ResNet": (again, "tiny_imagenet_resnet", "calibrated_ece_gain"),
        "Tiny-ImageNet, ViT": (again, "tiny_imagenet_vit", "calibrated_ece_gain"),
        "CIFAR-10, 10,000 images, ViT": (again, "cifar10_vit", "calibrated_ece_gain"),
    }
    lost = []
    for row, (found, kind, gained) in told.items():
        names = [f"{kind}_{way}_{ece}" for ece in ("ece", "calibrated_ece") for way in ("erm", "reinforced")]
        assert f"| {row} | {' | '.join(f'{100 * found[name]:.1f}' for name in names)} |" in text
        mean, std = (100 * found[f"{kind}_{gained}{end}"] for end in ("", "_std"))
        lost += [(row, f"by {-mean:.2f} ± {std:.2f} points")] if -mean > std else []
        answers, labels = found[names[3]], found[names[0]]
        assert answers < labels + 0.001, "a tenth of a point"
    ((row, by),) = lost
    assert row == "all of CIFAR-10, ResNet-14, 10 epochs"
    assert (
        f"One row keeps a loss that is larger than its spread over the seeds: ResNet-14 after 10 epochs, {by}" in text
    )
    within = [-100 * better["resnet14_30_reinforced_gain_calibrated_ece"]]
    within.append(100 * better["resnet14_30_reinforced_gain_calibrated_ece_std"])
    assert "after 30 epochs the loss, {:.2f} ± {:.2f}, is within the spread".format(*within) in text
    calibrated = measured("calibrated_student")
    for row, kind, images in (
        ("Tiny-ImageNet, ResNet", "tiny_imagenet_resnet", "1,000"),
        ("Tiny-ImageNet, ViT", "tiny_imagenet_vit", "1,000"),
        ("grocery, fine-tuned, EfficientNet-Lite0", "grocery_finetune_lite0", "559"),
    ):
        found = {
            key: 100 * value for key, value in calibrated.items() if key.endswith(("_ece", "_ece_std", "_by_chance"))
        }
        ways = [f"{kind}_calibrated_student_{way}_ece" for way in ("erm", "reinforced")]
        cells = [f"{found[way]:.2f} ± {found[f'{way}_std']:.2f}" for way in ways]
        cells += [f"{found[f'{way}_by_chance']:.1f}" for way in ways]
        assert f"| {row} | {images} | {' | '.join(cells)} |" in text
        near = [found[way] < found[f"{way}_by_chance"] + found[f"{way}_std"] for way in ways]
        assert near == [kind.startswith("tiny_imagenet")] * 2, "cannot be told from a perfectly calibrated student"
        assert calibrated[f"{kind}_calibrated_student_seeds"] == 3
    costs = calibrated["grocery_finetune_lite0_calibrated_student_ece_gain"]
    assert costs > 0, "the answers cost no calibration there"
    seeds = [again["cifar10_vit_seeds"], small["vit_10_erm_seeds"], again["tiny_imagenet_vit_seeds"]]
    assert ("mean over three seeds (ViTs on CIFAR-10: nine)" in text, seeds) == (True, [9, 9, 3])


def test_what_is_said_of_teachers_and_views_was_measured():
    found = measured("teachers")
    curve = measured("curve")
    text = in_one_line("docs/will_it_help.md")

    def top1(name: str) -> str:
        return f"{100 * found[f'{name}_top1']:.1f}"

    def gain(name: str, way: str) -> str:
        return MADE.gain_by_seed(found, f"{name}_resnet_{way}", f"{name}_resnet_erm")

    seeds = {len(values) for key, values in found.items() if key.endswith("_by_seed")}
    assert seeds == {3}
    assert len(re.findall(r"three seeds each \(\[all numbers\]", text)) == 2
    lines = (ROOT / "docs" / "will_it_help.md").read_text(encoding="utf-8").splitlines()
    half = measured("half_weight")
    by_seed = functools.partial(MADE.gain_by_seed, half, labels="fashion_mnist_resnet_labels0.5_erm")
    labels, few, every, both = (key for _, key in MADE.WAYS_OF_VIEWS["CIFAR-10, 30 epochs"].values())
    of_views = {
        "grocery, 1,253 photos | 24": [
            f"{gain('grocery', 'reinforced')} (V = 8)",
            gain("grocery", "24views_reinforced"),
            gain("grocery", "labels0.5_24views_reinforced"),
        ],
        "4,000 of CIFAR-10 | 12": [
            f"{gain('cifar10', 'reinforced')} (V = 2)",
            gain("cifar10", "12views_reinforced"),
            "",
        ],
        "10,000 of CIFAR-10 | 30": [
            f"{MADE.mean(curve, 'cifar10_resnet_30epochs_top1_gain', style='+.2f')} (V = 4)",
            *(MADE.gain_by_seed(curve, student, labels) for student in (every, both)),
        ],
        "10,000 of Fashion-MNIST | 8": [
            "",
            *(by_seed(student=f"fashion_mnist_resnet_{way}reinforced") for way in ("", "labels0.5_")),
        ],
    }
    for row, cells in of_views.items():
        assert f"| {row} | {' | '.join(cells)} |" in lines
    assert f"are right on {100 * found['cifar10_folds_agreement']:.1f} % of what they have not seen" in text
    sure = [found["cifar10_calibrated_entropy"]]
    sure += [100 * found[f"cifar10_resnet_{way}_top1"] for way in ("calibrated_reinforced", "erm")]
    assert (
        "entropy of {:.2f} nats, and students reached {:.2f} % with them, but {:.2f} % on labels".format(*sure) in text
    )
    sets = ("grocery", "cifar10", "tiny_imagenet", "fashion_mnist")
    for name in sets:
        title = next(title for title, key in MADE.TEACHERS.items() if key == name)
        learned, others = (
            f"{100 * found[key]:.1f}" if key in found else ""
            for key in (f"{name}_agreement", f"{name}_folds_agreement")
        )
        students = [
            top1(f"{name}_resnet_{way}") if f"{name}_resnet_{way}_top1" in found else ""
            for way in ("erm", "reinforced", "folds_reinforced", "calibrated_reinforced")
        ]
        assert f"| {' | '.join([title, learned, others, *students])} |" in lines
    temperatures = [found[f"{name}_temperature"] for name in sets]
    assert (
        "{:.2f} (grocery), {:.2f} (CIFAR-10), {:.2f} (Tiny-ImageNet) and {:.2f} (Fashion".format(*temperatures) in text
    )
    errors = [[100 * found[f"{name}_resnet_{way}reinforced_ece"] for way in ("", "calibrated_")] for name in sets]
    assert "rose from {:.1f} to {:.1f} % on CIFAR-10".format(*errors[1]) in text
    assert "fell from {:.1f} to {:.1f} % on grocery".format(*errors[0]) in text
    assert all(abs(after - before) < 0.5 for before, after in errors[2:])
    folds = MADE.gain_by_seed(found, "tiny_imagenet_resnet_folds_reinforced", "tiny_imagenet_resnet_reinforced")
    assert f"students of the folds' answers are {folds} points above" in text
    ways = [labels, few, every, both]
    best = max(ways, key=lambda student: curve[f"{student}_top1"])
    assert best == min(ways, key=lambda student: curve[f"{student}_nll"]) == both
    rows = MADE.robustness()
    gained_robustness = [gain for *_, teacher, alone, gain, _ in rows if teacher < alone]
    others = [gain for *_, teacher, alone, gain, _ in rows if teacher >= alone]
    clear = [gain for *_, gain, spread in rows if abs(gain) > spread]
    assert (len(rows), len(gained_robustness), len(others)) == (11, 8, 3)
    assert "Of [eleven rows](results.md#under-corruptions), the students of all eight" in text
    assert f"{min(gained_robustness):.1f} to {max(gained_robustness):.1f} points" in text
    lost = MADE.mean(curve, "cifar10_resnet_30epochs_mce_gain")
    assert f"one lost and two show no difference. The one that lost, {lost} points" in text
    assert [gain for gain in others if gain in clear] == [min(gain for *_, gain, _ in rows)]
    assert sum(gain not in clear for gain in gained_robustness) == 1, "in one row less than the spread"
    signs = measured("signs")
    compared = [
        signs["cifar10_held_out_top1"],
        curve[f"{labels}_top1"],
        signs["cifar10_held_out_mce"],
        curve[f"{labels}_mce"],
    ]
    assert (
        "{:.1f} % of the test images, more than the {:.1f} % of students of the labels, but errs on {:.1f} % of the corrupted "
        "ones, and they on {:.1f} %".format(*[100 * number for number in compared])
        in text
    )
    assert f"nothing was lost: {MADE.mean(curve, f'{both}_mce', style='.1f')} %" in text
    tiny = measured("curve_tiny_imagenet")
    both, alone = (
        MADE.mean(found, f"tiny_imagenet_resnet_{way}30epochs_16views_reinforced_top1")
        for found, way in ((half, "labels0.5_"), (tiny, ""))
    )
    assert f"{both} % in 30 epochs with V = 16, and {alone} %" in text
    of_tiny = [f"tiny_imagenet_resnet_{epochs}epochs_16views" for epochs in (10, 30)]
    lost, gained = (MADE.mean(tiny, f"{key}_ece_gain").strip("-") for key in of_tiny)
    longest = [100 * tiny[f"tiny_imagenet_resnet_100epochs_16views_{way}_ece"] for way in ("reinforced", "erm")]
    told = "lost {} points of ECE by the answers in 10 epochs, gained {} in 30, and had {:.2f} % instead of {:.2f} % in 100"
    assert told.format(lost, gained, *longest) in text
    assert tiny["tiny_imagenet_resnet_100epochs_16views_seeds"] == 3
    assert tiny[f"{of_tiny[0]}_ece_gain"] < 0 < tiny[f"{of_tiny[1]}_ece_gain"]
    doubt = [100 * found[f"cifar10_resnet_{way}_top1"] for way in ("calibrated_reinforced", "erm")]
    told = f"entropy of {found['cifar10_calibrated_entropy']:.2f} nats, and students reached"
    assert "{} {:.2f} % with them, but {:.2f} % on labels".format(told, *doubt) in text


def test_what_is_said_of_some_hundred_photos_was_measured():
    found = measured("small_sets")
    text = (ROOT / "docs" / "will_it_help.md").read_text(encoding="utf-8")
    part = text.split("## Some hundred photos")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| ")][1:]
    for (_, *cells), name in zip(rows, ("erm", "views_8", "views_20", "views_20_labels"), strict=True):
        expected = [
            f"{100 * found[f'{name}_top1']:.1f}",
            f"{found[f'{name}_nll']:.3f}",
            f"{100 * found[f'{name}_ece']:.1f}",
        ]
        if name != "erm":
            gain, low, high = (100 * found[f"{name}_{key}"] for key in ("top1_gain", "low", "high"))
            expected.append(f"{gain:+.1f} ({low:+.1f} to {high:+.1f})")
        assert cells == expected
    assert (
        f"on {found['test_photos']} other photos, means over {['', 'one', 'two', 'three'][found['seeds']]} seeds"
        in part
    )
    assert f"right on {100 * found['teacher_held_out_top1']:.0f} % of the photos" in part
    assert f"class is the label of {100 * found['teacher_agreement']:.0f} % of the stored views" in part
    # What the text concludes.
    assert f"over the seeds is {100 * found['erm_top1_std']:.1f} points" in part
    of_answers = ("views_8", "views_20", "views_20_labels")
    assert all(found[f"{name}_low"] < 0 < found[f"{name}_high"] for name in of_answers)
    assert min(("erm", *of_answers), key=lambda name: found[f"{name}_nll"]) == "views_20_labels"
    assert max(of_answers, key=lambda name: found[f"{name}_top1"]) == "views_20_labels"


# Classes that nobody has to import, because public functions return their objects.
RETURNED = [
    "cli.teach.Taught",
    "evaluation.report.Report",
    "generation.calibration.CalibratedTeacher",
    "generation.inspection.Inspection",
    "generation.answer_statistics.LabelStatistics",
    "generation.answer_statistics.Suspect",
    "generation.verify.VerifyReport",
    "replay.streaming.StreamedReinforcedDataset",
    "teacher.calibration.TemperatureFit",
    "training.calibrating.Calibration",
]


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    paths = re.findall(r"^::: hf_dr\.(.+)$", text, re.MULTILINE)
    public = {name: module if name == "ops" else f"{module}.{name}" for name, module in hf_dr._MODULES.items()}
    assert sorted(paths) == sorted([*public.values(), *RETURNED])
    for path in RETURNED:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(f"hf_dr.{module}"), name)


def test_every_key_of_the_provenance_and_every_tail_rule_is_explained():
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8").split("## Provenance")[1].split("## Digests")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    expected = [own.name for own in dataclasses.fields(Provenance)] + ["fingerprint"]
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(expected)
    signals = (ROOT / "docs" / "signals.md").read_text(encoding="utf-8")
    lines = [line for line in signals.split("## The tail rule")[1].splitlines() if line.startswith("| `")]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    rules = {row[0].strip("`"): row[2:] for row in table if row[0] != "`--tail`"}
    assert sorted(rules) == sorted(TAIL_RULES)
    for rule, (default, allowed) in rules.items():
        for signal in SIGNALS:
            fits = allowed == "all" or f"`{signal}`" in allowed
            assert fits == (rule in losses._RULES[signal])
            assert (default == f"`{signal}`") == (losses.tail_rule(None, signal) == rule)


def test_every_page_is_on_the_site():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert set(re.findall(r"[\w-]+\.md", site.split("nav:")[1])) == pages | {"cli.md"}


@pytest.mark.parametrize("notebook", sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_kept_without_outputs(notebook, tmp_path):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    script = tmp_path / "notebook.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in code), encoding="utf-8")
    printed = children.run(children.run_script, script, cwd=tmp_path, log=tmp_path / "log")
    assert "loss" in printed or (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize("form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_a_form_for_issues_has_what_github_asks_for(form):
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert content.keys() == {"name", "description", "labels", "body"}
    for field in content["body"]:
        assert field["type"] == "textarea"
        assert field["attributes"]["label"]
    assert len({field["id"] for field in content["body"]}) == len(content["body"])


def test_the_numbers_in_the_text_are_what_was_measured():
    found = measured("accuracy")
    gains = {metric: [found[f"{key}_{metric}_gain"] for key in ROWS.values()] for metric in ("top1", "ece")}
    assert [sum(gain > 0 for gain in gains["top1"]), len(ROWS)] == [7, 9]
    assert sum(gain < 0 for gain in gains["ece"]) == 4
    readme = in_one_line("README.md")
    assert "seven of nine students became more accurate" in readme
    assert "Two of the nine rows lose accuracy" in README
    assert "four lose calibration" in README
    step = measured("step")
    assert f"with {step['reinforced']:.3f} times the time for a training step" in readme
    assert f"takes {step['reinforced']:.3f} times one on labels" in readme
    assert f"with a teacher in memory it took {step['kd']:.2f} times" in readme
    assert f"costs {step['reinforced']:.3f}\ntimes one on labels" in (ROOT / "docs" / "paper.md").read_text(
        encoding="utf-8"
    )
    assert f"A view takes {measured('storage')['randaug']:.1f} bytes" in README


def test_it_is_short_and_has_its_picture():
    assert len(README.splitlines()) <= 150
    picture = ROOT / "docs" / "contact_sheet.png"
    assert picture.stat().st_size < 150_000
    with PIL.Image.open(picture) as sheet:
        assert min(sheet.size) > 1000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_uses_public_names(page):
    """And nothing says that a registry has this package."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"pip install (-U )?['\"]?hf-dr(?!['\"\[\]\w]* @)", text)
    check_blocks(text)


def test_examples_in_docstrings_use_public_names():
    examples = [doc for name in hf_dr.__all__ if "Examples:" in (doc := inspect.getdoc(getattr(hf_dr, name)) or "")]
    assert len(examples) >= 4
    for doc in examples:
        check_blocks(doc)


def check_blocks(text: str) -> None:
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for node in ast.walk(ast.parse(textwrap.dedent(block))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("hf_dr"):
                assert node.module == "hf_dr"
                assert {alias.name for alias in node.names} <= set(hf_dr.__all__)


def commands_of(text: str) -> list[tuple[str, list[str]]]:
    """Returns the commands of ours in the blocks of a page, each with its flags."""
    found = []
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        for line in re.split(r"\n|&&|;", re.sub(r"\\\n", " ", block)):
            words = line.split(" #")[0]
            named = re.search(r"(?:\bhf-dr|-m hf_dr|recipes/(?=\w+\.py)) ?([a-z-]+)(?:\.py)?\b(.*)", words)
            if named and named[1] in COMMANDS:
                found.append((named[1], re.findall(r"(?<!\S)--\w+", named[2])))
    return found


@functools.cache
def flags_of(command: str) -> set[str]:
    printed = StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit):
        main([command, "--help_all" if command in ("train", "teach", "detect", "segment") else "--help"])
    return set(re.findall(r"--\w+", printed.getvalue())) | {"--help", "--help_all"}


def test_the_commands_of_the_pages_have_the_flags_that_they_are_given():
    commands = [(page.name, *found) for page in PAGES for found in commands_of(page.read_text(encoding="utf-8"))]
    assert len(commands) > 40
    assert {command for _, command, _ in commands} >= {"teach", "reinforce", "train", "evaluate", "push"}
    for page, command, flags in commands:
        assert set(flags) <= flags_of(command), f"{page}: hf-dr {command}"

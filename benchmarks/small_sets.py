"""What a student gains on 300 photos, where the teacher is fitted to them as well: the steps of `hf-dr quickstart`.

    python benchmarks/small_sets.py --data DATA --weights WEIGHTS --work WORK --json small_sets.json

30 photos of each of ten kinds of fruit, shrunk to 112 pixels on the shorter side. A fifth is held out; EfficientNet-Lite1 is
fine-tuned on the rest (`hf-dr teach`) and labels it, EfficientNet-Lite0 is fine-tuned on the labels (erm) or on stored answers,
by the same settings, at 64 pixels. Students are measured on all other photos of these kinds, which are of other shops and
days. Keys: `<student>_` with `top1`, `nll` and `ece`, means over seeds, `top1_std`, the standard deviation over seeds, and for
all but erm the gain over erm in top-1, `_top1_gain`, with the bounds of its 95 % interval, `_low` and `_high`: see
`hf_dr.evaluation.comparison`. Students:

- erm: a new view in each of 20 epochs.
- views_8: 8 stored views.
- views_20: 20 stored views, one for each epoch.
- views_20_labels: the same, with half of the loss from the labels.

Finished steps in --work are kept: the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import common
import numpy as np
import pandas as pd

from hf_dr.cli.launch import launch
from hf_dr.cli.yaml_files import RECIPES, read_yaml
from hf_dr.evaluation.comparison import Comparison
from hf_dr.evaluation.config import EvaluateConfig, as_arguments
from hf_dr.evaluation.gathering import BASELINE, Run
from hf_dr.evaluation.run import run_evaluation
from hf_dr.evaluation.tables import numbers
from hf_dr.generation.inspection import inspect

KINDS, OF_EACH, SIDE = 10, 30, 112
# Views, and what is added to the settings of erm.
STUDENTS: dict[str, tuple[int, dict[str, Any]]] = {
    BASELINE: (8, {"objective": "erm"}),
    "views_8": (8, {}),
    "views_20": (20, {}),
    "views_20_labels": (20, {"label_weight": 0.5}),
}


def photos(data: Path, split: str, count: int | None, to: Path) -> Path:
    """Writes photos as files, a folder for each kind."""
    images = common.parquet(data / common.PHOTOS, split)
    labels = np.array(images["label"])
    for kind in range(KINDS):
        folder = to / images.features["label"].names[kind]
        folder.mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(np.flatnonzero(labels == kind)[:count].tolist()):
            image = images[row]["image"].convert("RGB")
            common.shrunk(image, SIDE).save(folder / f"{number:04d}.jpg", quality=95)
    return to


def step(command: str, words: list[Any], made: Path) -> None:
    """Runs a command unless what it makes last is there."""
    if not made.exists():
        status = launch(command, [str(word) for word in words], command)
        if status:
            sys.exit(status)


def main() -> None:
    flags = common.training_parser(__doc__).parse_args()
    if flags.data is None or flags.weights is None:
        sys.exit("--data and --weights must be given, found none. Give both.")
    with common.working_folder(flags.work) as work:
        common.finish(measured(flags, work, 1 if flags.quick else 20), flags)


def measured(flags: Any, work: Path, epochs: int) -> dict[str, Any]:
    """Trains what is missing, and returns the numbers."""
    if not (work / "more").exists():
        photos(flags.data, "train", OF_EACH, work / "photos")
        photos(flags.data, "test", None, work / "more")
    lite0, lite1 = (f"timm:{name}@{flags.weights / name}.in1k.safetensors" for name in (common.LITE0, common.LITE1))
    settings = {key: value for key, value in read_yaml(RECIPES / "teach.yaml").items() if key != "augmentation"}
    settings |= {"num_train_epochs": epochs, "eval_strategy": "no", "save_strategy": "no"}
    teacher = work / "teacher"
    taught = as_arguments({"model": lite1, "size": 64, **settings, "output_dir": teacher})
    step("teach", [work / "photos", *taught], teacher / "teacher.json")
    runs = []
    for seed in flags.seeds[:1] if flags.quick else flags.seeds:
        for name, (views, more) in STUDENTS.items():
            plus = work / f"plus{views}"
            answers = as_arguments({"teacher": teacher, "size": 64, "num_views": views, "output_dir": plus})
            step("reinforce", [teacher / "photos", *answers], plus / "README.md")
            run = Run(name, seed, work / f"{name}-{seed}", 0.0, 0, [])
            trained = as_arguments({"student": lite0, **settings, **more, "seed": seed, "output_dir": run.folder})
            step("train", [plus, *trained], run.folder / "all_results.json")
            runs.append(run)
    models = [f"{run.name}={run.folder}" for run in runs]
    report = run_evaluation(EvaluateConfig(models=models, sets=[f"more={work / 'more'}:train"], output_dir=str(work)))
    comparison = Comparison("300 photos", runs, report)
    print("\n".join(comparison.verdicts))
    held_out = json.loads((teacher / "teacher.json").read_text(encoding="utf-8"))["calibrated"]
    labels = inspect(work / "plus20").labels
    assert labels is not None
    by_name = {result.model: result.metrics for result in report.results}
    found: dict[str, Any] = {
        "photos": KINDS * OF_EACH,
        "test_photos": report.results[0].examples,
        "seeds": len({run.seed for run in runs}),
    }
    found |= {"teacher_held_out_top1": held_out["top1"], "teacher_agreement": labels.agreement}
    for name in STUDENTS:
        for metric in ("top1", "nll", "ece"):
            over_seeds = numbers(pd.Series([by_name[r.name][metric] for r in runs if r.objective == name]))
            found[f"{name}_{metric}"] = over_seeds["mean"]
            if metric == "top1" and "std" in over_seeds:
                found[f"{name}_top1_std"] = over_seeds["std"]
        if name != BASELINE:
            low, high = comparison.top1_interval(name)
            found |= {f"{name}_top1_gain": (low + high) / 2, f"{name}_low": low, f"{name}_high": high}
    return found


if __name__ == "__main__":
    main()

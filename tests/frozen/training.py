"""Twenty steps of training with each objective and setting that shapes them, to be compared before and after a change.

    python tests/frozen/training.py after.json --against before.json

Convolutions and `exp` round otherwise on other processors, so these numbers hold for one machine and its libraries, and are
compared by this script, not by a test. It calls the command line only, in this process with one thread, on the embedded images.
To run an older version of the package, put its folder first: `PYTHONPATH=OLDER python tests/frozen/training.py before.json`.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

# Before torch and datasets are imported. One thread: sums are taken in one order.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", TQDM_DISABLE="1")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_DATASETS_CACHE=tempfile.mkdtemp(prefix="hf_dr_"))

import torch

import hf_dr

atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
torch.set_num_threads(1)

ASSETS = Path(hf_dr.__file__).parent / "assets"
IMAGES = str(ASSETS / "fashion_mnist")
TEACHER = str(ASSETS / "teachers" / "fashion_mnist_a")
STEPS = 20

CROP = "[{RandomCrop: {size: 28, padding: 2}}, {RandomHorizontalFlip: {p: 0.5}}]"
MIXED = "[{RandomCrop: {size: 28, padding: 2}}, {RandomErasing: {p: 0.5}}, {MixUp: {p: 0.4}}, {CutMix: {p: 0.4}}]"

PLUS: dict[str, tuple[str, list[str]]] = {
    "topk": (CROP, []),
    "topk_image_tail": (CROP, ["--signal", "topk_image_tail"]),
    "sampled": (CROP, ["--signal", "sampled"]),
    "mixed": (MIXED, ["--mixing_scope", "shard"]),
    "overlay": (CROP, ["--overlay"]),
}
"""The "+" datasets: an augmentation, and flags of `hf-dr reinforce`."""

ERM = ["--objective", "erm", "--dataset", IMAGES, "--config", "{crop}"]
KD = ["--objective", "kd", "--dataset", IMAGES, "--teacher", TEACHER, "--config", "{crop}"]

RUNS: dict[str, list[str]] = {
    "erm": ERM,
    "erm, smoothed labels": [*ERM, "--unreinforced_label_smoothing", "0.1"],
    "erm, MixUp": [*ERM, "--mixup_alpha", "0.4"],
    "erm, MixUp and CutMix, accumulated": [
        *ERM, "--mixup_alpha", "0.4", "--cutmix_alpha", "1", "--gradient_accumulation_steps", "2",
    ],
    "erm on a + dataset": ["--objective", "erm", "--dataset", "{topk}"],
    "kd": KD,
    "kd, CutMix, temperature": [*KD, "--cutmix_alpha", "1", "--temperature", "2"],
    "reinforced, topk": ["--dataset", "{topk}"],
    "reinforced, topk_image_tail": ["--dataset", "{topk_image_tail}"],
    "reinforced, sampled": ["--dataset", "{sampled}"],
    "reinforced, mixed views": ["--dataset", "{mixed}"],
    "reinforced, overlay": ["--dataset", "{overlay}", "--base", IMAGES],
    "reinforced, overlay, unreinforced rows": ["--dataset", "{overlay}", "--base", IMAGES, "--unreinforced"],
    "reinforced, two datasets": ["--dataset", "{topk}", "{topk}", "--num_views", "1"],
    "reinforced, bucket": ["--dataset", "{topk}", "--tail", "bucket"],
    "reinforced, renormalize": ["--dataset", "{topk}", "--tail", "renormalize"],
    "reinforced, zero": ["--dataset", "{topk}", "--tail", "zero"],
    "reinforced, temperature": ["--dataset", "{topk}", "--temperature", "2"],
    "reinforced, label weight": ["--dataset", "{topk}", "--label_weight", "0.3"],
    "reinforced, half of the samples": ["--dataset", "{topk}", "--reinforced_probability", "0.5"],
    "reinforced, random views": ["--dataset", "{topk}", "--view_order", "random"],
    "reinforced, easy views first": ["--dataset", "{topk}", "--view_order", "easy_first"],
    "reinforced, hard views first by label": [
        "--dataset", "{topk}", "--view_order", "hard_first", "--view_difficulty", "cross_entropy",
    ],
    "reinforced, averaged weights": ["--dataset", "{topk}", "--ema_decay", "0.9"],
    "reinforced, accumulated": ["--dataset", "{topk}", "--gradient_accumulation_steps", "2"],
    "reinforced, streaming": ["--dataset", "{topk}", "--streaming"],
    "reinforced, streaming mixed views": ["--dataset", "{mixed}", "--streaming"],
    "reinforced, AdamW": ["--dataset", "{topk}", "--optim", "adamw_torch", "--learning_rate", "0.002"],
}  # fmt: skip
"""Flags of `hf-dr train`; words in braces are folders and files that this script makes."""


def hf_dr_command(*argv: str) -> str:
    """Runs `python -m hf_dr ...` in this process, which spares the imports; returns what it printed."""
    before = sys.argv
    out = io.StringIO()
    sys.argv = ["hf_dr", *argv]
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_module("hf_dr", run_name="__main__", alter_sys=False)
    except SystemExit as stop:
        if stop.code:
            sys.exit(f"{' '.join(argv)}: {stop.code}")
    finally:
        sys.argv = before
    return out.getvalue()


def reinforce(folder: Path) -> dict[str, str]:
    """Makes the "+" datasets and the files that flags name; returns their paths by name."""
    places = {}
    for name, augmentation in (("crop", CROP), ("mixing", MIXED)):
        path = folder / f"{name}.yaml"
        path.write_text(f"augmentation: {augmentation}\n", encoding="utf-8")
        places[name] = str(path)
    for name, (augmentation, flags) in PLUS.items():
        config = places["crop" if augmentation == CROP else "mixing"]
        given = ["--dataset", IMAGES, "--teacher", TEACHER, "--config", config, "--output_dir", str(folder / name)]
        sizes = [
            "--max_examples",
            "200",
            "--num_views",
            "3",
            "--top_k",
            "3",
            "--shard_size",
            "64",
            "--num_workers",
            "1",
        ]
        hf_dr_command("reinforce", *given, *sizes, *flags)
        places[name] = str(folder / name)
    return places


def train(flags: list[str], places: dict[str, str], out: Path) -> dict[str, Any]:
    """Trains; returns the loss of each step and the hashes of the weights."""
    student = ["--student", "timm:test_resnet", "--output_dir", str(out), "--seed", "3"]
    steps = ["--max_steps", str(STEPS), "--per_device_train_batch_size", "12", "--logging_steps", "1"]
    rest = ["--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true", "--dataloader_num_workers", "0"]
    optimizer = [] if "--optim" in flags else ["--optim", "sgd", "--learning_rate", "0.05", "--weight_decay", "0.001"]
    hf_dr_command("train", *student, *steps, *rest, *optimizer, *(flag.format(**places) for flag in flags))
    history = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    losses = [{key: step[key] for key in ("loss", "grad_norm", "learning_rate")} for step in history if "loss" in step]
    assert len(losses) == STEPS
    weights = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.safetensors"))}
    return {"weights": weights, **{f"step {n + 1}": step for n, step in enumerate(losses)}}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Returns a line for each run that is not the same: where it first differs."""
    lines = []
    for name in dict.fromkeys([*before, *after]):
        one, other = before.get(name, {}), after.get(name, {})
        at = [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]
        if at:
            first = next((key for key in at if key != "weights"), "weights")
            lines.append(f"{name}: {first}: {one.get(first)} before, {other.get(first)} after ({len(at)} differences)")
    return lines


def main() -> int:
    """Trains all runs, writes what they gave and compares it; returns the exit status, 1 where anything differs."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("json", type=Path, help="Where to write losses and hashes.")
    flags.add_argument("--against", type=Path, metavar="FILE", help="What another run of this script wrote.")
    flags.add_argument("--only", metavar="WORDS", default="", help="Only the runs whose name has these words in it.")
    arguments = flags.parse_args()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "timm", "numpy", "pillow")}
    print(f"{hf_dr.__file__}, {versions}", file=sys.stderr)
    runs: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="hf_dr_training_") as folder:
        places = reinforce(Path(folder))
        for number, (name, given) in enumerate(RUNS.items()):
            if arguments.only in name:
                runs[name] = train(given, places, Path(folder, f"run_{number}"))
                print(f"{name}: {runs[name]['weights']}", file=sys.stderr)
    text = json.dumps({"versions": versions, "runs": runs}, indent=2) + "\n"
    arguments.json.write_text(text, encoding="utf-8")
    if arguments.against is None:
        return 0
    before = json.loads(arguments.against.read_text(encoding="utf-8"))
    if before["versions"] != versions:
        print(f"not comparable: {before['versions']} before, {versions} after", file=sys.stderr)
        return 1
    old = {name: run for name, run in before["runs"].items() if arguments.only in name}
    lines = differences(old, runs)
    print("\n".join(lines) or f"equal: {len(runs)} runs of {STEPS} steps")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())

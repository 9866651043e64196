"""How far what is stored is from the teacher's answer, and in how many bytes, for each `--signal` and K.

    python benchmarks/signals.py --data DATA --weights WEIGHTS --plot signals.png

A target q is what a student learns from: the stored answer with its signal's own tail rule. E q is its mean over all draws, in
closed form; where nothing is drawn it is q. Means over all views, p the whole answer:

    kl       KL(p || E q), nats: the error that stays however long one trains; finite for all signals
    bias     sum_c |E q_c - p_c|: the same as a distance
    noise    sum_c |q_c - p_c|: of a single target
    reverse  KL(q || p), nats: of a single target; finite for all, since q has no class that p has not
    kl_t2    KL(p || q), nats, where both are softened by `--temperature 2`; and so on. Not of `sampled`, whose targets have
             classes without probability
    bytes    of a view's answer in the Parquet file that a run writes, the tail's share included
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import datasets
import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce_job
from hf_dr.store.features import reinforcement_features
from hf_dr.store.schema import SOURCE_INDEX, TAIL_IDS, TAIL_LOGPROBS, TEACHER_IDS, TEACHER_LOGPROBS
from hf_dr.store.shards import ShardWriter
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.signals import (
    IMAGE_TAIL,
    SAMPLED,
    SIGNALS,
    TOPK,
    ImageTails,
    sample,
    sampling_uniform,
    stored_if_kept,
    tail_size,
)
from hf_dr.teacher.topk import top_k
from hf_dr.views.augmentation import Augmentation

KEPT = (1, 3, 5, 10, 20, 50)
MEASURES = ("kl", "bias", "noise", "reverse")
SOFTENED = {f"kl_t{temperature}": temperature for temperature in (2, 4, 8)}
PAPER_VIEWS = 400  # of ImageNet+: the number that share an image's tail


def whole_answers(teacher: Teacher, photos: datasets.Dataset, num_views: int, folder: Path) -> np.ndarray:
    """Returns the log-probabilities (rows, V, C) that a run asks for."""
    recording = common.RecordingTeacher(teacher)
    config = ReinforceConfig(
        output_dir=str(folder), num_views=num_views, top_k=1, label_column="none",
        shard_size=len(photos), num_workers=1,  # the answers are recorded in order
    )  # fmt: skip
    reinforce_job(photos, recording, Augmentation.named("randaug"), config).run()
    return recording.answers(len(photos) * num_views).reshape(len(photos), num_views, -1)


@dataclass(frozen=True)
class Stored:
    """What a file holds of the answers, and its bytes a view and a tail's bytes."""

    columns: dict[str, np.ndarray]
    view_bytes: float
    tail_bytes: float


def store(answers_RVC: np.ndarray, signal: str, k: int, folder: Path) -> Stored:
    """Writes the answers as a run does and reads them back."""
    rows, num_views, classes = answers_RVC.shape
    flat_BC = torch.from_numpy(answers_RVC.reshape(-1, classes))
    if signal == SAMPLED:
        uniforms = [sampling_uniform(0, row, view) for row in range(rows) for view in range(num_views)]
        ids, logprobs = sample(flat_BC, k, np.array(uniforms))
    else:
        ids, logprobs = top_k(flat_BC, k)
    columns = {name: v.reshape(rows, num_views, k) for name, v in ((TEACHER_IDS, ids), (TEACHER_LOGPROBS, logprobs))}
    if signal == IMAGE_TAIL:
        tails = ImageTails(num_views)
        tails.add(flat_BC.numpy())
        columns[TAIL_IDS], columns[TAIL_LOGPROBS] = tails.take(rows)
    features = reinforcement_features(Augmentation.named("randaug"), num_views, k, classes, signal=signal)
    written = datasets.Features({name: features[name] for name in (SOURCE_INDEX, *columns)})
    path = folder / f"{signal}-{k}.parquet"
    with ShardWriter(path, written, "none") as writer:
        valid, numbers = np.ones(rows, bool), np.arange(rows)
        writer.write(pa.table({}), {SOURCE_INDEX: numbers, **columns}, valid)
        writer.finish()
    sizes = common.column_bytes(path)
    table = pq.read_table(path)
    return Stored(
        columns={name: common.as_array(table.column(name)) for name in columns},
        view_bytes=(sizes[TEACHER_IDS] + sizes[TEACHER_LOGPROBS]) / (rows * num_views),
        tail_bytes=(sizes[TAIL_IDS] + sizes[TAIL_LOGPROBS]) / rows,
    )


def target_of(stored: Stored, row: int, signal: str, classes: int) -> np.ndarray:
    """The dense targets (V, C) of a row, by the definition of the signal's own tail rule."""
    ids_VK = stored.columns[TEACHER_IDS][row].astype(np.int64)
    kept_VK = np.exp(stored.columns[TEACHER_LOGPROBS][row].astype(np.float64))
    if signal == SAMPLED:
        shape_VC = np.zeros((len(ids_VK), classes))
        kept_VK = kept_VK / kept_VK.sum(axis=1, keepdims=True)
    elif signal == IMAGE_TAIL:
        tail_T = np.exp(stored.columns[TAIL_LOGPROBS][row].astype(np.float64))
        beyond = max(1 - tail_T.sum(), 0) / max(classes - len(tail_T), 1)
        shape_C = np.full(classes, beyond)
        shape_C[stored.columns[TAIL_IDS][row]] = tail_T
        shape_VC = np.tile(shape_C, (len(ids_VK), 1))
    else:
        shape_VC = np.ones((len(ids_VK), classes))
    np.put_along_axis(shape_VC, ids_VK, 0, axis=1)
    mass_V = np.maximum(1 - kept_VK.sum(axis=1), 0)
    target_VC = shape_VC * (mass_V / np.maximum(shape_VC.sum(axis=1), np.finfo(float).tiny))[:, None]
    np.put_along_axis(target_VC, ids_VK, kept_VK, axis=1)
    return target_VC / target_VC.sum(axis=1, keepdims=True)


def mean_of_draws(logprobs_VC: np.ndarray, k: int) -> np.ndarray:
    """E q of `sampled`: a class is kept with probability p / max(p, tau), and max(p, tau) is stored as float16."""
    stored_VC = stored_if_kept(torch.from_numpy(logprobs_VC), k)
    mean_VC = np.exp(logprobs_VC + (stored_VC.astype(np.float16).astype(np.float64) - stored_VC))
    return mean_VC / mean_VC.sum(axis=1, keepdims=True)


def divergence(p_VC: np.ndarray, q_VC: np.ndarray) -> np.ndarray:
    """KL(p || q) of each view, nats."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p_VC > 0, p_VC * np.log(p_VC / q_VC), 0.0).sum(axis=1)


def softened(p_VC: np.ndarray, temperature: float) -> np.ndarray:
    """Returns what a temperature makes of probabilities."""
    powers_VC = p_VC ** (1 / temperature)
    return powers_VC / powers_VC.sum(axis=1, keepdims=True)


def errors(answers_RVC: np.ndarray, stored: Stored, signal: str, k: int) -> dict[str, float]:
    """The means over all views of what the module's docstring defines."""
    at_temperatures = {} if signal == SAMPLED else SOFTENED
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*MEASURES, *at_temperatures)}
    for row, answers_VC in enumerate(answers_RVC.astype(np.float64)):
        p_VC = np.exp(answers_VC)
        p_VC /= p_VC.sum(axis=1, keepdims=True)
        q_VC = target_of(stored, row, signal, p_VC.shape[1])
        mean_VC = mean_of_draws(answers_VC, k) if signal == SAMPLED else q_VC
        found["kl"].append(divergence(p_VC, mean_VC))
        found["bias"].append(np.abs(mean_VC - p_VC).sum(axis=1))
        found["noise"].append(np.abs(q_VC - p_VC).sum(axis=1))
        found["reverse"].append(divergence(q_VC, p_VC))
        for name, temperature in at_temperatures.items():
            found[name].append(divergence(softened(p_VC, temperature), softened(q_VC, temperature)))
    return {name: max(float(np.mean(values)), 0.0) for name, values in found.items()}  # a KL of 0 may round below


def draw(result: dict[str, Any], kept: list[int], path: Path) -> None:
    """Plots kl, noise and reverse over the bytes of a view."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), constrained_layout=True)
    # What is drawn has no lasting error but rounding's, some 1e-8 nats: that is no point of the first panel.
    panels = (
        ("kl", "KL(p || E q), nats (sampled: 0)"),
        ("noise", "|q - p|, one target"),
        ("reverse", "KL(q || p), nats, one target"),
    )
    for axis, (measure, title) in zip(axes, panels, strict=True):
        for signal, marker in zip(SIGNALS[: 2 if measure == "kl" else 3], "osD", strict=False):
            points = [(result[f"{signal}_k{k}_bytes_v{PAPER_VIEWS}"], result[f"{signal}_k{k}_{measure}"]) for k in kept]
            axis.plot(*zip(*points, strict=True), marker=marker, label=signal)
            for k, point in zip(kept, points, strict=True):
                axis.annotate(f"{k}", point, textcoords="offset points", xytext=(4, 4), fontsize=7)
        axis.set(xscale="log", yscale="log", xlabel=f"bytes a view, V = {PAPER_VIEWS} (numbers: K)", ylabel=title)
        axis.grid(alpha=0.3)
    axes[1].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--plot", type=Path, help="Write a plot of the errors over the bytes there, a PNG.")
    flags = parser.parse_args()
    rows, num_views = (12, 10) if flags.quick else (50, 50)
    photos, data = common.photos(flags.data, rows)
    teacher, who = common.lite0_or_embedded(flags.weights)
    print(f"data: {data}, {rows} rows x {num_views} views; teacher: {who}\n")
    result: dict[str, Any] = {"data": data, "teacher": who, "examples": rows, "num_views": num_views}
    columns = (*MEASURES, *SOFTENED, "bytes", f"bytes_v{PAPER_VIEWS}")
    lines = []
    with common.working_folder() as folder:
        answers = whole_answers(teacher, photos, num_views, folder)
        classes = answers.shape[-1]
        result |= {"num_classes": classes, "tail_classes": tail_size(classes)}
        kept = [k for k in KEPT if k < classes]
        for signal in (TOPK, IMAGE_TAIL, SAMPLED):
            for k in kept:
                stored = store(answers, signal, k, folder)
                measured = errors(answers, stored, signal, k)
                measured["bytes"] = stored.view_bytes + stored.tail_bytes / num_views
                measured[f"bytes_v{PAPER_VIEWS}"] = stored.view_bytes + stored.tail_bytes / PAPER_VIEWS
                result |= {f"{signal}_k{k}_{name}": value for name, value in measured.items()}
                lines.append([f"{signal} K={k}", *(measured.get(name, "") for name in columns)])
                if signal == IMAGE_TAIL:
                    result["tail_bytes_an_image"] = stored.tail_bytes
    common.table(lines, ["signal", *MEASURES, *SOFTENED, f"bytes, V = {num_views}", f"V = {PAPER_VIEWS}"])
    if flags.plot is not None:
        draw(result, kept, flags.plot)
    common.finish(result, flags)


if __name__ == "__main__":
    main()

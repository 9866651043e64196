"""How far the same teacher's answers differ between kinds of processors, in float16 units of what is stored.

    python benchmarks/processors.py --data DATA --weights WEIGHTS --json benchmarks/results/processors.json

Kinds are emulated on one processor: torch, oneDNN and MKL are told, each kind in a process of its own, which instructions they
may use. So what is measured is what other instruction sets do to the answers; other processors' rounding, caches and numbers of
cores, and GPUs, are not in it. A "+" dataset is made once; every kind replays its views and asks the teachers about them, in
fp32 and in bf16. Then for every two kinds the answers of one are what is stored and those of the other are what `verify` gets.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.generation.verify import MAX_KL, MAX_KL_MEAN, MIN_TOP1_AGREEMENT, answer_kl, same_top1
from hf_dr.replay.loading import load_reinforced
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.topk import top_k
from hf_dr.views.augmentation import Augmentation

ATEN, ONEDNN, MKL, CBWR = "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR"
KINDS = {
    "as_it_is": {},
    "avx512_without_bf16": {ATEN: "avx512", ONEDNN: "AVX512_CORE", MKL: "AVX512"},
    "avx2": {ATEN: "avx2", ONEDNN: "AVX2", MKL: "AVX2"},
    "sse4": {ATEN: "default", ONEDNN: "SSE41", MKL: "SSE4_2"},
    "mkl_compatible": {CBWR: "COMPATIBLE"},
}
PRECISIONS = ("fp32", "bf16")
TOP_K, BATCH = 10, 16


def teacher_of(name: str, weights: Path | None, precision: str) -> Teacher:
    if name == "fashion":
        return Teacher.from_pretrained(common.EMBEDDED_TEACHERS, precision=precision, device="cpu")
    return Teacher.from_pretrained(f"timm:{name}@{weights}/{name}.in1k.safetensors", precision=precision, device="cpu")


def answer(kind: str, names: list[str], weights: Path | None, home: Path) -> None:
    """Writes the log-probabilities (views, C) of the teachers to all stored views, in fp32 and in bf16."""
    torch.set_num_threads(1)
    for name in names:
        plus = load_reinforced(home / name)
        places = itertools.product(range(len(plus)), range(plus.num_views))
        views_BCHW = torch.from_numpy(np.stack([np.asarray(plus.image(*place)) for place in places])).permute(
            0, 3, 1, 2
        )
        for precision in PRECISIONS:
            teacher = teacher_of(name, weights, precision)
            found = torch.cat([teacher(part) for part in views_BCHW.split(BATCH)])
            np.save(home / f"{name}-{precision}-{kind}.npy", found.numpy())


def units(one_NK: np.ndarray, other_NK: np.ndarray) -> np.ndarray:
    """How many float16 values apart the numbers are; none of them is above 0."""
    return np.abs(one_NK.astype(np.float16).view(np.int16).astype(int) - other_NK.astype(np.float16).view(np.int16))


def compare(stored_NC: np.ndarray, fresh_NC: np.ndarray) -> dict[str, np.ndarray]:
    """What `verify` would find, and the distances, where the first answers are stored and the others recomputed."""
    ids_NK, logprobs_NK = top_k(torch.from_numpy(stored_NC), min(TOP_K, stored_NC.shape[1]))
    again_NK, _ = top_k(torch.from_numpy(fresh_NC), ids_NK.shape[1])
    return {
        "units": units(logprobs_NK, np.take_along_axis(fresh_NC, ids_NK.astype(np.int64), axis=1)).ravel(),
        "kl": answer_kl(ids_NK, logprobs_NK, fresh_NC),
        "same_top1": same_top1(ids_NK, fresh_NC),
        "other_order": (ids_NK != again_NK).any(axis=1),
    }


def differences(names: list[str], precision: str, home: Path) -> dict[str, Any]:
    """Returns how far the answers of every two kinds are apart, all teachers together."""
    found: dict[str, list[np.ndarray]] = {}
    means, acts = [], set()
    for name in names:
        answers = {kind: np.load(home / f"{name}-{precision}-{kind}.npy") for kind in KINDS}
        acts |= {kind for kind in KINDS if (answers[kind] != answers["as_it_is"]).any()}
        for one, other in itertools.permutations(KINDS, 2):
            compared = compare(answers[one], answers[other])
            means.append(compared["kl"].mean())
            for key, values in compared.items():
                found.setdefault(key, []).append(values)
    joined = {key: np.concatenate(values) for key, values in found.items()}
    kl_max, kl_mean_max, agreement = joined["kl"].max(), np.max(means), joined["same_top1"].mean()
    within_bounds = kl_max <= MAX_KL[precision] and kl_mean_max <= MAX_KL_MEAN and agreement >= MIN_TOP1_AGREEMENT
    return {
        "kinds_that_differ": " ".join(sorted(acts)),
        "units_max": int(joined["units"].max()),
        "units_999": float(np.quantile(joined["units"], 0.999)),
        "kl_max": float(kl_max),
        "kl_mean_max": float(kl_mean_max),
        "top1_agreement": float(agreement),
        "other_order": float(joined["other_order"].mean()),
        "within_bounds": bool(within_bounds),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--examples", type=int, help="Photos, of 4 views each, and 8 times as many images of 28x28. Default: 100."
    )
    flags = parser.parse_args()
    count = flags.examples or (2 if flags.quick else 100)
    names = ["fashion"] if flags.weights is None else ["fashion", common.LITE0, common.LITE1]
    context, rows = multiprocessing.get_context("spawn"), []
    result: dict[str, Any] = {"kinds": " ".join(KINDS), "emulated": True, "teachers": " ".join(names), "photos": count}
    with common.working_folder() as home:
        for name in names:
            if name == "fashion":
                images, size = common.small_images(flags.data, 8 * count)[0], 28
            else:
                images, size = common.photos(flags.data, count)[0], 240 if name == common.LITE1 else 224
            settings = ReinforceConfig(str(home / name), num_views=4, top_k=TOP_K, label_column="none")
            reinforce(
                images, teacher_of(name, flags.weights, "fp32"), Augmentation.named("randaug_mixing", size), settings
            )
        for kind, variables in KINDS.items():
            os.environ.update(variables)
            process = context.Process(target=answer, args=(kind, names, flags.weights, home))
            process.start()
            process.join()
            for variable in variables:
                del os.environ[variable]
        for precision in PRECISIONS:
            summary = differences(names, precision, home)
            rows += [[f"{precision}: {key}", value] for key, value in summary.items()]
            result |= {f"{precision}_{key}": value for key, value in summary.items()}
    common.table(rows, ["largest difference between two kinds", ""])
    common.finish(result, flags)


if __name__ == "__main__":
    main()

"""What the loss costs on the stored top-K, beside the dense way.

    python benchmarks/loss.py

Forward and backward of a batch of 128, K = 10, float32: `hf_dr.training.losses.reinforced_kl` on the stored ids and
log-probabilities, over building the dense targets from them (the same tail rule, `uniform`) and torch's
`log_softmax` and `kl_div`. For C = 1,000 and 21,841 classes:

`time_1000`, `time_21841`: ratio of the times, sparse over dense. `memory_1000`, `memory_21841`: ratio of the peaks of
live bytes that forward and backward allocate beyond their inputs, the gradient of the logits included. `sparse_ms_*`,
`dense_ms_*`, `sparse_mb_*`, `dense_mb_*`: what the ratios are made of.

What is compared is timed in turns, round after round, and ratios are medians over rounds.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import torch
import torch.nn.functional as F

from hf_dr.training.losses import reinforced_kl

BATCH, TOP_K = 128, 10
CLASSES = (1000, 21841)
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def sparse(logits_BC: torch.Tensor, ids_BK: torch.Tensor, logprobs_BK: torch.Tensor) -> torch.Tensor:
    """The package's loss."""
    return reinforced_kl(logits_BC, ids_BK, logprobs_BK).mean()


def dense(logits_BC: torch.Tensor, ids_BK: torch.Tensor, logprobs_BK: torch.Tensor) -> torch.Tensor:
    """The plain way: targets of all classes, then torch's own loss."""
    classes, p_BK = logits_BC.shape[-1], logprobs_BK.exp()
    each_B1 = (1 - p_BK.sum(-1, keepdim=True)).clamp(min=0) / (classes - ids_BK.shape[-1])
    target_BC = each_B1.repeat(1, classes).scatter_(-1, ids_BK, p_BK)
    return F.kl_div(F.log_softmax(logits_BC, -1), target_BC, reduction="batchmean")


def run(loss: Loss, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], steps: int = 1) -> None:
    """Runs forward and backward `steps` times, each into a new gradient."""
    for _ in range(steps):
        inputs[0].grad = None
        loss(*inputs).backward()


def inputs_of(classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A student's logits, and the top-K of a teacher that is about as sure as trained ones are."""
    generator = torch.Generator().manual_seed(0)
    logits_BC = torch.randn(BATCH, classes, generator=generator, requires_grad=True)
    teacher_BC = torch.randn(BATCH, classes, generator=generator).mul(3).log_softmax(-1)
    kept = teacher_BC.topk(TOP_K)
    return logits_BC, kept.indices, kept.values


def peak_bytes(work: Callable[[], None]) -> int:
    """Most bytes that are allocated at one time during `work`, less what was before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    # The allocator's own record of each allocation (+) and release (-); tables per operator hide the order of them.
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def measure(classes: int, rounds: int, steps: int) -> dict[str, float]:
    """All numbers for one number of classes."""
    inputs = inputs_of(classes)
    logits_BC = inputs[0]
    losses: list[float] = []
    grads: list[torch.Tensor] = []
    peaks: list[int] = []
    for loss in (sparse, dense):
        run(loss, inputs)  # the first run also pays for warming up
        inputs[0].grad = None
        peaks.append(peak_bytes(partial(run, loss, inputs)))
        losses.append(loss(*inputs).item())
        assert logits_BC.grad is not None
        grads.append(logits_BC.grad)
    # What is not equal must not be compared.
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-7)
    del grads
    works = {loss.__name__: partial(run, loss, inputs, steps) for loss in (sparse, dense)}
    times = common.in_turns({name: partial(common.seconds, work) for name, work in works.items()}, rounds, warm_up=0)
    print(f"{classes} classes done", file=sys.stderr)
    return {
        f"time_{classes}": common.median_ratio(times["sparse"], times["dense"]),
        f"memory_{classes}": peaks[0] / peaks[1],
        f"sparse_ms_{classes}": 1e3 * statistics.median(times["sparse"]) / steps,
        f"dense_ms_{classes}": 1e3 * statistics.median(times["dense"]) / steps,
        f"sparse_mb_{classes}": peaks[0] / 1e6,
        f"dense_mb_{classes}": peaks[1] / 1e6,
    }


def main() -> None:
    flags = common.parser(__doc__).parse_args()
    rounds = 5 if flags.quick else 31
    result: dict[str, Any] = {"batch": BATCH, "top_k": TOP_K, "rounds": rounds}
    for classes in CLASSES:
        # Rounds of a tenth of a second: longer than the clock's and the scheduler's steps.
        result |= measure(classes, rounds, max(2, 200_000 // classes // (5 if flags.quick else 1)))
    rows = []
    for classes in CLASSES:
        for way in ("sparse", "dense"):
            over = [result[f"{what}_{classes}"] if way == "sparse" else 1.0 for what in ("time", "memory")]
            row = [f"C = {classes:,}, {way}", result[f"{way}_ms_{classes}"], over[0], result[f"{way}_mb_{classes}"]]
            rows.append([*row, over[1]])
    common.table(rows, ["", "ms", "ratio", "MB", "ratio"])
    common.finish(result, flags)


if __name__ == "__main__":
    main()

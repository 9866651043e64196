"""What a process does once, at the start of a job, so that it computes as every other process does."""

from __future__ import annotations

# Those that torch's CPU library hands over to MKL's vector mathematics, by their names in torch, and what is built on them.
KERNELS = (
    "acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "erf", "erfc", "erfinv", "exp", "exp2", "expm1",
    "lgamma", "log", "log10", "log1p", "log2", "reciprocal", "rsqrt", "sigmoid", "sin", "sinh", "sqrt", "tan", "tanh",
)  # fmt: skip
"""Of one argument."""
OVER_ROWS = ("log_softmax", "logsumexp", "softmax")
"""Of one argument and a dimension."""


def warm_up_kernels() -> None:
    """Calls each of torch's functions that MKL computes once on the CPU, in float32 and float64.

    Call it in the main thread before any other thread computes. MKL looks its kernels up at the first call of each function
    and precision. While one thread is doing so, another may find the entry half written and take the kernel of low accuracy
    instead, which is off by up to 1.5e-4 (pytorch/pytorch issue 188792; pull request 188791 proposes the same cure; oneMKL
    2025 has no such race). So a stored answer could differ from run to run, about once in a hundred processes.
    """
    import torch

    for dtype in (torch.float32, torch.float64):
        # 0.5 is in the domain of all but acosh, whose NaN does no harm. The device is named: another may be the default.
        values = torch.full((1,), 0.5, dtype=dtype, device="cpu")
        for name in KERNELS:
            getattr(torch, name)(values)
        for name in OVER_ROWS:
            getattr(torch, name)(values, dim=0)

"""The distillation loss on the stored top-K: never a dense target, any tail rule, any temperature.

Shape suffixes: B batch, K kept classes, C classes.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch

from hf_dr.errors import ConfigError

TailRule = Literal["uniform", "bucket", "renormalize", "zero"]
TAIL_RULES: tuple[str, ...] = get_args(TailRule)


def reinforced_kl(
    logits_BC: torch.Tensor,
    teacher_ids_BK: torch.Tensor,
    teacher_logprobs_BK: torch.Tensor,
    *,
    tail: TailRule = "uniform",
    temperature: float = 1.0,
) -> torch.Tensor:
    """KL divergence from the stored teacher to the student, one value for each view (eq. 1 of arXiv:2303.08983).

    What the teacher gave to the C - K classes that were not kept, m = 1 - sum(exp(teacher_logprobs)), follows `tail`:

    * `uniform`: spread evenly over those classes, as in the paper;
    * `bucket`: one event "none of the kept"; the student is free to share it out as it likes;
    * `renormalize`: given to the kept classes in proportion;
    * `zero`: dropped, so the target sums to 1 - m.

    Equal to torch's `kl_div` on the dense target (to the bucketed target for `bucket`), in time and memory that hardly
    depend on C beyond the logits themselves. Computed in float32 at least.

    Args:
        logits_BC: The student's logits, floating point.
        teacher_ids_BK: Kept classes, int64, distinct within a row, below C.
        teacher_logprobs_BK: Their natural log-probabilities at temperature 1.
        tail: See above.
        temperature: Both distributions are softened by it (Hinton et al., arXiv:1503.02531), and the result is
            multiplied by its square, so that gradients keep their size. The tail is softened as if it were uniform.

    Returns:
        Nats, (B,); 0 where the student answers as the teacher.

    Raises:
        ConfigError: The rule is unknown or the temperature is not above 0.
        ValueError: The shapes do not fit together.
    """
    if tail not in TAIL_RULES:
        raise ConfigError(f"`tail` must be one of {', '.join(TAIL_RULES)}, got {tail!r}.")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ConfigError(f"`temperature` must be a number above 0, got {temperature!r}.")
    classes, kept = logits_BC.shape[-1], teacher_ids_BK.shape[-1]
    if (
        teacher_ids_BK.shape != teacher_logprobs_BK.shape
        or logits_BC.shape[:-1] != teacher_ids_BK.shape[:-1]
        or kept > classes
    ):
        raise ValueError(
            f"expected logits (B, C), ids (B, K) and log-probabilities (B, K) with K <= C, got {tuple(logits_BC.shape)}, "
            f"{tuple(teacher_ids_BK.shape)} and {tuple(teacher_logprobs_BK.shape)}. A student needs the teacher's classes."
        )
    dtype = torch.promote_types(logits_BC.dtype, torch.float32)
    kept_BK, each_B = soften(teacher_logprobs_BK.to(dtype), classes, tail, temperature)
    return _SparseKL.apply(logits_BC.to(dtype), teacher_ids_BK, kept_BK, each_B, tail == "bucket", temperature)


def soften(
    teacher_logprobs_BK: torch.Tensor, classes: int, tail: str, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Applies the tail rule and the temperature to stored log-probabilities.

    Returns:
        The target's probabilities of the kept classes, (B, K), and of every single other class, (B,).
    """
    logprobs_BK = teacher_logprobs_BK
    rest = classes - logprobs_BK.shape[-1]
    # Rounding may lift the kept mass above 1, hence the clamp; the tail's mass is then 0.
    mass_B = (1 - logprobs_BK.exp().sum(-1)).clamp(min=0)
    if tail == "renormalize":
        return (logprobs_BK / temperature).softmax(-1), torch.zeros_like(mass_B)
    if temperature == 1:
        each_B = mass_B / rest if rest and tail != "zero" else torch.zeros_like(mass_B)
        return logprobs_BK.exp(), each_B
    if rest == 0 or tail == "zero":
        kept_BK = (logprobs_BK / temperature).softmax(-1)
        # Softening redistributes what is there; it does not bring dropped mass back.
        return (kept_BK * (1 - mass_B)[:, None] if tail == "zero" else kept_BK), torch.zeros_like(mass_B)
    each_logprob_B = (mass_B / rest).log() / temperature
    total_B = torch.logaddexp((logprobs_BK / temperature).logsumexp(-1), each_logprob_B + math.log(rest))
    return (logprobs_BK / temperature - total_B[:, None]).exp(), (each_logprob_B - total_B).exp()


class _SparseKL(torch.autograd.Function):
    """sum p log(p / q) over a target that is given for K classes and constant on the others.

    Written by hand because autograd would keep two further (B, C) tensors for the gradient, which is closed:
    with q the student's softmax and M the target's mass, dKL/dz = (M q - p) / T, or for a bucket, M q - p on the kept
    classes and M q - m q / q_tail on the others.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_BC: torch.Tensor,
        ids_BK: torch.Tensor,
        kept_BK: torch.Tensor,
        each_B: torch.Tensor,
        bucket: bool,
        temperature: float,
    ) -> torch.Tensor:
        scaled_BC = logits_BC / temperature if temperature != 1 else logits_BC
        lse_B = scaled_BC.logsumexp(-1)
        student_BK = scaled_BC.gather(-1, ids_BK) - lse_B[:, None]
        rest = logits_BC.shape[-1] - ids_BK.shape[-1]
        kl_B = (torch.special.xlogy(kept_BK, kept_BK) - kept_BK * student_BK).sum(-1)
        tail_lse_B = lse_B
        if bucket and rest:
            # The student's log-mass outside the kept classes; 1 - sum(q) would lose it to rounding when q is sure.
            tail_lse_B = scaled_BC.scatter(-1, ids_BK, -torch.inf).logsumexp(-1)
            tail_B = each_B * rest
            kl_B = kl_B + torch.special.xlogy(tail_B, tail_B) - tail_B * (tail_lse_B - lse_B)
        elif rest:
            others_B = scaled_BC.sum(-1) - logits_BC.shape[-1] * lse_B - student_BK.sum(-1)
            kl_B = kl_B + torch.special.xlogy(each_B * rest, each_B) - each_B * others_B
        ctx.save_for_backward(logits_BC, ids_BK, kept_BK, each_B, lse_B, tail_lse_B)
        ctx.bucket, ctx.temperature = bucket and rest > 0, temperature
        return kl_B * temperature**2

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits_BC, ids_BK, kept_BK, each_B, lse_B, tail_lse_B = ctx.saved_tensors
        temperature = ctx.temperature
        rest = logits_BC.shape[-1] - ids_BK.shape[-1]
        mass_B = kept_BK.sum(-1) + each_B * rest
        scaled_BC = logits_BC / temperature if temperature != 1 else logits_BC
        student_BC = (scaled_BC - lse_B[:, None]).exp_()
        if ctx.bucket:
            student_BK = student_BC.gather(-1, ids_BK)
            share_BC = (scaled_BC - tail_lse_B[:, None]).exp_()  # q / q_tail: of the tail's mass, this class's part
            grad_BC = student_BC.mul_(mass_B[:, None]).sub_(share_BC.mul_((each_B * rest)[:, None]))
            grad_BC.scatter_(-1, ids_BK, student_BK * mass_B[:, None] - kept_BK)
        else:
            grad_BC = student_BC.mul_(mass_B[:, None]).sub_(each_B[:, None])
            grad_BC.scatter_add_(-1, ids_BK, each_B[:, None] - kept_BK)
        grad_BC.mul_((grads[0] * temperature)[:, None])  # T**2 of the loss, 1 / T of the softened logits
        return grad_BC, None, None, None, None, None

"""The arithmetic of `hf_dr.training.losses`: KL to a target that lists few of the classes, and its gradient.

Shape suffixes: B batch, K kept classes, T classes of an image's tail, L = K or K + T listed classes, C classes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from hf_dr.errors import ConfigError
from hf_dr.training.reinforced_settings import TailRule


class Answers(NamedTuple):
    """The stored answers of a batch, and how they become a target; see `hf_dr.training.losses.reinforced_kl`."""

    ids: torch.Tensor
    logprobs: torch.Tensor
    tail: TailRule
    temperature: float
    tail_ids: torch.Tensor | None
    tail_logprobs: torch.Tensor | None


def sparse_kl(logits_BC: torch.Tensor, answers: Answers) -> torch.Tensor:
    """Returns `reinforced_kl` (B,) without its checks; the values of rows without an answer have no meaning."""
    classes = logits_BC.shape[-1]
    dtype = torch.promote_types(logits_BC.dtype, torch.float32)
    logits_BC = logits_BC.to(dtype)
    logprobs_BK = answers.logprobs.to(dtype)
    tail, temperature = answers.tail, answers.temperature
    if tail != "image":
        kept_BK, each_B = _soften(logprobs_BK, classes, tail, temperature)
        return _SparseKL.apply(logits_BC, answers.ids, kept_BK, each_B, None, tail == "bucket", temperature)
    assert answers.tail_ids is not None
    assert answers.tail_logprobs is not None
    tail_logprobs_BT = answers.tail_logprobs.to(dtype)
    listed = _with_image_tail(answers.ids, logprobs_BK, answers.tail_ids, tail_logprobs_BT, classes, temperature)
    return _SparseKL.apply(logits_BC, *listed, False, temperature)


def _soften(
    logprobs_BK: torch.Tensor, classes: int, tail: str, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Applies any other tail rule than `image`, and the temperature, to stored log-probabilities.

    Returns:
        The target's probabilities of the kept classes, (B, K), and of every single other class, (B,).
    """
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
    each_logprob_B = (_rest_logprob(mass_B, logprobs_BK, rest) - math.log(rest)) / temperature
    total_B = torch.logaddexp((logprobs_BK / temperature).logsumexp(-1), each_logprob_B + math.log(rest))
    return (logprobs_BK / temperature - total_B[:, None]).exp(), (each_logprob_B - total_B).exp()


def _rest_logprob(mass_B: torch.Tensor, logprobs_BK: torch.Tensor, rest: int) -> torch.Tensor:
    """Returns the log-probability (B,) of all classes together that were not kept; `rest` is their number.

    None of them had more than the least of the kept ones. What rounding, of float16 among others, leaves of 1 minus the sum of
    a sure answer, `mass_B`, is far more, and a temperature would raise it.
    """
    return torch.minimum(mass_B.log(), logprobs_BK.amin(-1) + math.log(max(rest, 1)))


def _with_image_tail(
    ids_BK: torch.Tensor,
    logprobs_BK: torch.Tensor,
    tail_ids_BT: torch.Tensor,
    tail_logprobs_BT: torch.Tensor,
    classes: int,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Applies the rule `image` and the temperature.

    Returns:
        Listed ids (B, K + T), the target's probabilities of them, that of every single class that is not listed, (B,), and
        whether a listed class counts, (B, K + T): one of the tail that is among the kept ones does not.
    """
    counts_BT = (tail_ids_BT[:, :, None] != ids_BK[:, None, :]).all(-1)
    unlisted_B = (classes - ids_BK.shape[-1] - counts_BT.sum(-1)).to(logprobs_BK.dtype)
    tiny = torch.finfo(logprobs_BK.dtype).tiny
    # As logarithms: a class may have less than float32 can hold. A place that does not count has -inf.
    others_BT = tail_logprobs_BT.masked_fill(~counts_BT, -torch.inf)
    beyond_B = (1 - tail_logprobs_BT.exp().sum(-1)).clamp(min=tiny)
    other_B = (beyond_B / max(classes - tail_ids_BT.shape[-1], 1)).log()
    rest_B = other_B + unlisted_B.log()
    shape_B = torch.logaddexp(others_BT.logsumexp(-1), rest_B)
    # All classes may be kept; then there is no tail, nor a shape of it.
    mass_B = (1 - logprobs_BK.exp().sum(-1)).clamp(min=0)
    tail_B = _rest_logprob(mass_B, logprobs_BK, classes - ids_BK.shape[-1])
    scale_B = torch.where(shape_B > -torch.inf, tail_B - shape_B, -torch.inf)
    listed_BL = torch.cat([logprobs_BK, others_BT + scale_B[:, None]], -1) / temperature
    each_B = torch.where(unlisted_B > 0, other_B + scale_B, -torch.inf) / temperature
    if temperature != 1:
        total_B = torch.logaddexp(listed_BL.logsumexp(-1), each_B + unlisted_B.clamp(min=1).log())
        listed_BL = listed_BL - total_B[:, None]
        each_B = each_B - total_B
    counts_BL = torch.cat([torch.ones_like(ids_BK, dtype=torch.bool), counts_BT], -1)
    return torch.cat([ids_BK, tail_ids_BT], -1), listed_BL.exp(), each_B.exp(), counts_BL


class _SparseKL(torch.autograd.Function):
    """sum p log(p / q) over a target that is given for L listed classes and constant on the others.

    Written by hand because autograd would keep two further (B, C) tensors for the gradient, which is closed:
    with q the student's softmax and M the target's mass, dKL/dz = (M q - p) / T, or for a bucket, M q - p on the listed
    classes and M q - m q / q_tail on the others. A listed class that does not count, because it is listed before, has p = 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_BC: torch.Tensor,
        ids_BL: torch.Tensor,
        listed_BL: torch.Tensor,
        each_B: torch.Tensor,
        counts_BL: torch.Tensor | None,
        bucket: bool,
        temperature: float,
    ) -> torch.Tensor:
        scaled_BC = logits_BC / temperature if temperature != 1 else logits_BC
        lse_B = scaled_BC.logsumexp(-1)
        student_BL = scaled_BC.gather(-1, ids_BL) - lse_B[:, None]
        rest: int | torch.Tensor = logits_BC.shape[-1] - ids_BL.shape[-1]
        kl_B = (torch.special.xlogy(listed_BL, listed_BL) - listed_BL * student_BL).sum(-1)
        tail_lse_B = lse_B
        if counts_BL is not None:
            rest = logits_BC.shape[-1] - counts_BL.sum(-1)
            student_BL = student_BL * counts_BL
        if bucket and rest:
            # The student's log-mass outside the listed classes; 1 - sum(q) would lose it to rounding when q is sure.
            tail_lse_B = scaled_BC.scatter(-1, ids_BL, -torch.inf).logsumexp(-1)
            tail_B = each_B * rest
            kl_B = kl_B + torch.special.xlogy(tail_B, tail_B) - tail_B * (tail_lse_B - lse_B)
        elif counts_BL is not None or rest:
            others_B = scaled_BC.sum(-1) - logits_BC.shape[-1] * lse_B - student_BL.sum(-1)
            kl_B = kl_B + torch.special.xlogy(each_B * rest, each_B) - each_B * others_B
        ctx.save_for_backward(logits_BC, ids_BL, listed_BL, each_B, lse_B, tail_lse_B, counts_BL)
        ctx.rest = rest
        ctx.bucket = bucket and bool(rest)
        ctx.temperature = temperature
        return kl_B * temperature**2

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        with torch.no_grad():
            grad_BC = _SparseKL._gradient(ctx, grads[0])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # asked for by `create_graph`
            grad_BC = _Last.apply(grad_BC, ctx.saved_tensors[0])
        return grad_BC, None, None, None, None, None, None

    @staticmethod
    def _gradient(ctx: Any, grad_B: torch.Tensor) -> torch.Tensor:
        logits_BC, ids_BL, listed_BL, each_B, lse_B, tail_lse_B, counts_BL = ctx.saved_tensors
        temperature = ctx.temperature
        rest = ctx.rest
        mass_B = listed_BL.sum(-1) + each_B * rest
        scaled_BC = logits_BC / temperature if temperature != 1 else logits_BC
        student_BC = (scaled_BC - lse_B[:, None]).exp_()
        if ctx.bucket:
            student_BL = student_BC.gather(-1, ids_BL)
            share_BC = (scaled_BC - tail_lse_B[:, None]).exp_()  # q / q_tail: of the tail's mass, this class's part
            grad_BC = student_BC.mul_(mass_B[:, None]).sub_(share_BC.mul_((each_B * rest)[:, None]))
            grad_BC.scatter_(-1, ids_BL, student_BL * mass_B[:, None] - listed_BL)
        else:
            each_BL = each_B[:, None] if counts_BL is None else each_B[:, None] * counts_BL
            grad_BC = student_BC.mul_(mass_B[:, None]).sub_(each_B[:, None])
            grad_BC.scatter_add_(-1, ids_BL, each_BL - listed_BL)
        # T**2 of the loss, 1 / T of the softened logits
        return grad_BC.mul_((grad_B * temperature)[:, None])


class _Last(torch.autograd.Function):
    """A gradient that has none itself: whoever asks for its own gets an error, where torch would leave it out as 0."""

    @staticmethod
    def forward(ctx: Any, grad_BC: torch.Tensor, logits_BC: torch.Tensor) -> torch.Tensor:
        return grad_BC.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        raise ConfigError(
            "the loss of stored answers has a first derivative only, but a second one was asked for, as by a gradient penalty "
            "or `create_graph`. Leave it out, or take `torch.nn.functional.kl_div` on whole targets."
        )

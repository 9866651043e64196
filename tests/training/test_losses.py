"""The loss: equal to torch's KL on the dense target, whatever the tail rule and the temperature."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_dr.errors import ConfigError, DataError
from hf_dr.training.losses import ReinforcedLoss, check_classes, reinforced_kl, reinforced_loss
from hf_dr.training.reinforced_settings import TAIL_RULES

B, C = 5, 12


def stored(
    k: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student logits, and a teacher's top-K with the answer it was cut from."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(B, C, generator=generator, dtype=dtype) * 3
    logprobs, ids = (torch.randn(B, C, generator=generator, dtype=dtype) * 3).log_softmax(-1).topk(k)
    return logits, ids, logprobs


def with_tail(tail, t=5, seed=1):
    """The settings of a rule: for `image` a tail of `t` classes, some of them kept ones, is given as well."""
    if tail != "image":
        return {"tail": tail}
    generator = torch.Generator().manual_seed(seed)
    mean = (torch.randn(B, C, generator=generator, dtype=torch.float64) * 2).log_softmax(-1)
    logprobs, ids = mean.topk(t)
    return {"tail": tail, "tail_ids_BT": ids, "tail_logprobs_BT": logprobs}


def dense_kl(logits, ids, logprobs, temperature, tail, tail_ids_BT=None, tail_logprobs_BT=None):
    """The definition, the slow way: build the whole target at T = 1, soften it, and hand it to torch."""
    kept = logprobs.exp()
    mass = (1 - kept.sum(-1, keepdim=True)).clamp(min=0)
    rest = C - ids.shape[-1]
    fill = mass / rest if rest and tail in ("uniform", "bucket") else torch.zeros_like(mass)
    fill = fill.expand(B, C)
    if tail == "image" and rest:
        given = tail_logprobs_BT.exp()
        beyond = (1 - given.sum(-1, keepdim=True)) / max(C - given.shape[-1], 1)
        shape = beyond.expand(B, C).scatter(-1, tail_ids_BT, given).scatter(-1, ids, 0)
        fill = mass * shape / shape.sum(-1, keepdim=True)
    target = fill.scatter(-1, ids, kept / kept.sum(-1, keepdim=True) if tail == "renormalize" else kept)
    total = target.sum(-1, keepdim=True)
    target = target ** (1 / temperature)
    target = target / target.sum(-1, keepdim=True) * total
    student = (logits / temperature).log_softmax(-1)
    if tail == "bucket" and rest:
        others = torch.ones(B, C, dtype=torch.bool).scatter(-1, ids, False)
        target = torch.cat([target.gather(-1, ids), target.masked_fill(~others, 0).sum(-1, keepdim=True)], -1)
        tail_logprob = student.masked_fill(~others, -torch.inf).logsumexp(-1, keepdim=True)
        student = torch.cat([student.gather(-1, ids), tail_logprob], -1)
    return F.kl_div(student, target, reduction="none").sum(-1) * temperature**2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("k", [1, 3, C - 1, C])
@pytest.mark.parametrize("tail", TAIL_RULES)
def test_equals_torchs_kl_on_the_dense_target(tail, k, temperature):
    case = stored(k)
    torch.testing.assert_close(
        reinforced_kl(*case, **with_tail(tail), temperature=temperature),
        dense_kl(*case, temperature, **with_tail(tail)),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(("k", "t"), [(1, 1), (4, 1), (1, C), (6, C), (7, 7), (C - 1, 4), (C - 1, C - 1)])
def test_the_images_tail_may_overlap_the_kept_classes(k, t, temperature):
    """Also where K + T is more than C, and where the tail knows of no class beyond the kept ones."""
    logits, ids, logprobs = stored(k)
    for seed in range(3):
        settings = with_tail("image", t, seed)
        expected = dense_kl(logits, ids, logprobs, temperature, **settings)
        found = reinforced_kl(logits, ids, logprobs, **settings, temperature=temperature)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        logits.requires_grad_()
        assert torch.autograd.gradcheck(
            lambda z, more=settings: reinforced_kl(z, ids, logprobs, **more, temperature=temperature), logits
        )
        slow = torch.autograd.grad(dense_kl(logits, ids, logprobs, temperature, **settings).sum(), logits)
        fast = torch.autograd.grad(
            reinforced_kl(logits, ids, logprobs, **settings, temperature=temperature).sum(), logits
        )
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)


def test_a_flat_image_tail_is_the_uniform_rule():
    case = stored(3)
    flat = torch.full((B, 4), 1 / C, dtype=torch.float64).log()
    settings = {**with_tail("image", 4), "tail_logprobs_BT": flat}
    torch.testing.assert_close(reinforced_kl(*case, **settings), reinforced_kl(*case))


def test_a_tail_that_is_no_longer_than_the_answer_still_gives_its_mass_away():
    """All of the image's mean lies on the kept classes, by rounding more than 1: the others are alike."""
    logits, ids, logprobs = stored(5)
    tail = {"tail_ids_BT": ids, "tail_logprobs_BT": (logprobs.softmax(-1) * 1.001).log()}
    for temperature in (1.0, 2.0):
        found = reinforced_kl(logits, ids, logprobs, tail="image", temperature=temperature, **tail)
        torch.testing.assert_close(found, reinforced_kl(logits, ids, logprobs, temperature=temperature))


def test_a_tail_of_less_than_float32_can_hold_keeps_its_shape():
    ids, logprobs = torch.tensor([[0]]), torch.tensor([[-0.1]])
    tail = {"tail_ids_BT": torch.tensor([[0, 1, 2]]), "tail_logprobs_BT": torch.tensor([[0.0, -300.0, -301.0]])}
    mass = 1 - math.exp(-0.1)
    first = mass / (1 + math.exp(-1))
    target = torch.tensor([[1 - mass, first, mass - first]])
    logits = torch.tensor([[0.3, -1.0, 2.0]])
    found = reinforced_kl(logits, ids, logprobs, tail="image", **tail)
    torch.testing.assert_close(found, F.kl_div(logits.log_softmax(-1), target, reduction="none").sum(-1))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("k", [3, C])
@pytest.mark.parametrize("tail", TAIL_RULES)
def test_gradients(tail, k, temperature):
    logits, ids, logprobs = stored(k)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: reinforced_kl(z, ids, logprobs, **with_tail(tail), temperature=temperature), logits
    )


def test_a_second_derivative_is_refused():
    """It ended in an error about an inplace operation of ours; torch's `once_differentiable` would leave the penalty out."""
    logits, ids, logprobs = stored(4)
    logits.requires_grad_()
    (alone,) = torch.autograd.grad(reinforced_kl(logits, ids, logprobs).sum(), logits)
    loss = reinforced_kl(logits, ids, logprobs).sum()
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    assert torch.equal(grad, alone)
    with pytest.raises(
        ConfigError, match="has a first derivative only, but a second one was asked for, as by a gradient"
    ):
        (loss + (grad**2).sum()).backward()


@pytest.mark.parametrize("tail", TAIL_RULES)
def test_the_whole_answer_kept_equals_plain_kl_with_its_gradient(tail):
    logits, ids, logprobs = stored(C)
    logits.requires_grad_()
    target = torch.empty_like(logprobs).scatter(-1, ids, logprobs)
    plain = F.kl_div(logits.log_softmax(-1), target, reduction="batchmean", log_target=True)
    sparse = reinforced_kl(logits, ids, logprobs, **with_tail(tail)).mean()
    torch.testing.assert_close(sparse, plain)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (sparse, plain)))


@pytest.mark.parametrize("tail", TAIL_RULES)
def test_zero_when_the_student_is_the_teacher(tail):
    logits, _, _ = stored(C)
    logprobs, ids = logits.log_softmax(-1).topk(C)
    assert reinforced_kl(logits, ids, logprobs, **with_tail(tail)).abs().max() < 1e-14


def test_uniform_tail_is_zero_for_a_student_with_that_very_tail():
    _, ids, logprobs = stored(3)
    tail = (1 - logprobs.exp().sum(-1, keepdim=True)) / (C - 3)
    logits = tail.log().expand(B, C).scatter(-1, ids, logprobs)
    assert reinforced_kl(logits, ids, logprobs).abs().max() < 1e-14


def test_the_bucket_ignores_how_the_student_shares_out_the_tail():
    logits, ids, logprobs = stored(3)
    others = torch.ones(B, C, dtype=torch.bool).scatter(-1, ids, False)
    evened = logits[others].view(B, -1).logsumexp(-1, keepdim=True) - torch.tensor(C - 3.0, dtype=torch.float64).log()
    shared = torch.where(others, evened, logits)
    torch.testing.assert_close(
        reinforced_kl(logits, ids, logprobs, tail="bucket"), reinforced_kl(shared, ids, logprobs, tail="bucket")
    )
    assert not torch.allclose(reinforced_kl(logits, ids, logprobs), reinforced_kl(shared, ids, logprobs))


@pytest.mark.parametrize("tail", TAIL_RULES)
def test_mass_above_one_by_rounding_is_harmless(tail):
    logits, ids, logprobs = stored(C)
    rounded = logprobs.half().double() + 1e-4
    assert rounded.exp().sum(-1).min() > 1
    loss = reinforced_kl(logits, ids, rounded, **with_tail(tail))
    assert loss.isfinite().all()


@pytest.mark.parametrize("tail", ["uniform", "image", "bucket"])
@pytest.mark.parametrize("temperature", [2.0, 4.0])
def test_rounding_of_a_sure_answer_is_not_softened_to_a_tail(tail, temperature):
    """In float16, 0.7, 0.3 and almost nothing sum to 1 - 5e-5, of which a temperature of 4 would make a fifth of the target."""
    answer = torch.tensor([0.7, 0.3, 1e-13] + [1e-14] * 9, dtype=torch.float64).log()
    logprobs = answer[None, :3].half()
    assert 1 - logprobs.double().exp().sum() > 4e-5
    given = {"tail_ids_BT": torch.arange(12)[None], "tail_logprobs_BT": answer[None]} if tail == "image" else {}
    student = torch.zeros(1, 12)
    loss = reinforced_kl(student, torch.arange(3)[None], logprobs, tail=tail, temperature=temperature, **given)
    target = (answer / temperature).softmax(-1)
    if tail == "bucket":
        target, share = torch.cat([target[:3], target[3:].sum()[None]]), torch.tensor([1, 1, 1, 9]) / 12
    else:
        share = torch.full((12,), 1 / 12)
    expected = (target * (target / share).log()).sum() * temperature**2
    torch.testing.assert_close(loss.double(), expected[None], rtol=0.02, atol=0)


@pytest.mark.parametrize("tail", TAIL_RULES)
def test_a_certain_teacher_and_a_certain_student_stay_finite(tail):
    ids = torch.tensor([[0, 1]])
    logprobs = torch.tensor([[0.0, -100.0]])
    logits = torch.tensor([[-200.0, 200.0, 0.0]], requires_grad=True)
    image = {"tail_ids_BT": ids, "tail_logprobs_BT": logprobs} if tail == "image" else {}
    for temperature in (1.0, 2.0):
        loss = reinforced_kl(logits, ids, logprobs, tail=tail, temperature=temperature, **image).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_handled_in_float32(dtype):
    logits, ids, logprobs = stored(3, dtype=torch.float32)
    half = logits.to(dtype).requires_grad_()
    loss = reinforced_kl(half, ids, logprobs)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reinforced_kl(half.detach().float(), ids, logprobs))
    assert torch.autograd.grad(loss.sum(), half)[0].dtype == dtype


def test_refusals():
    logits, ids, logprobs = stored(3)
    with pytest.raises(
        ConfigError, match="`tail` must be one of uniform, bucket, renormalize, zero, image, got 'smooth'"
    ):
        reinforced_kl(logits, ids, logprobs, tail="smooth")
    with pytest.raises(ConfigError, match="`temperature` must be a number above 0, got 0"):
        reinforced_kl(logits, ids, logprobs, temperature=0)
    with pytest.raises(
        ConfigError, match=r"with 1 <= K <= C, got .*int64 \(5, 3\) and .* next to logits \(5, 2\)\. Give what"
    ):
        reinforced_kl(logits[:, :2], ids, logprobs)
    with pytest.raises(ConfigError, match=r"with 1 <= K <= C, got .*int64 \(5, 0\) and "):
        reinforced_kl(logits, ids[:, :0], logprobs[:, :0])
    with pytest.raises(
        ConfigError,
        match=r"`image` for answers with a tail of their image only, found none\. Take another rule, or a dataset",
    ):
        reinforced_kl(logits, ids, logprobs, tail="image")
    settings = with_tail("image")
    settings["tail_ids_BT"] = settings["tail_ids_BT"][:4]
    with pytest.raises(
        ConfigError, match=r"\(B, T\) with 1 <= T <= C, got .*\(4, 5\) and .*\(5, 5\) next to logits \(5, 12\)"
    ):
        reinforced_kl(logits, ids, logprobs, **settings)
    settings = with_tail("image")
    settings["tail_ids_BT"][2, 1] = 12
    with pytest.raises(
        ConfigError, match=r"`teacher_ids` and `tail_ids` must be of the 12 classes .* 12, .* in row 2\."
    ):
        reinforced_kl(logits, ids, logprobs, **settings)


def test_rows_without_an_answer_are_refused_or_left_out():
    logits, ids, logprobs = stored(3)
    batch = {"teacher_ids": ids.clone(), "teacher_logprobs": logprobs.clone(), "reinforced": torch.ones(B).bool()}
    for row in (1, 4):  # as a dataset gives a row whose view was newly drawn
        batch["teacher_ids"][row] = 0
        batch["teacher_logprobs"][row] = 0
        batch["reinforced"][row] = False
    with pytest.raises(
        ConfigError, match=r"those of row 1 sum to more than 1, .* \(2 such rows\)\. Take `reinforced_loss`"
    ):
        reinforced_kl(logits, batch["teacher_ids"], batch["teacher_logprobs"])
    kl = reinforced_kl(logits, ids, logprobs)
    torch.testing.assert_close(reinforced_loss(logits, batch), kl[[0, 2, 3]].mean())
    labels = torch.arange(B)
    expected = torch.where(batch["reinforced"], kl, F.cross_entropy(logits.float(), labels, reduction="none"))
    torch.testing.assert_close(reinforced_loss(logits, {**batch, "labels": labels}), expected.mean())


@pytest.mark.parametrize("replayed", [[], [3], [0, 1, 2, 3, 4]])
def test_what_is_measured_without_labels_is_the_mean_over_the_replayed_rows(replayed):
    logits, ids, logprobs = stored(3)
    batch = {"teacher_ids": ids, "teacher_logprobs": logprobs, "reinforced": torch.zeros(B).bool()}
    batch["reinforced"][replayed] = True
    expected = reinforced_kl(logits, ids, logprobs)[replayed].sum() / max(1, len(replayed))
    torch.testing.assert_close(reinforced_loss(logits, batch), expected)


def batch_of(**changes: Any) -> dict[str, Any]:
    _, ids, logprobs = stored(3)
    replayed = torch.ones(B).bool()
    batch = {"teacher_ids": ids, "teacher_logprobs": logprobs, "reinforced": replayed, "labels": torch.arange(B)}
    return {**batch, **changes}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"labels": torch.tensor([0, 1, -1, 2, -1])},
            DataError,
            r"from 0 to 11, .* found -1 in row 2 of the batch \(2 such rows",
        ),
        (
            {"labels": torch.tensor([0, 1, 2, 12, 0])},
            DataError,
            r"`labels` must be from 0 to 11, .* found 12 in row 3 .*Leave",
        ),
        ({"lam": "0.5"}, ConfigError, "`lam` must be between 0 and 1, got '0.5'"),
        ({"lam": 1.5}, ConfigError, "`lam` must be between 0 and 1, got 1.5"),
        (
            {"lam": torch.full((B,), 0.5)},
            ConfigError,
            r"`lam` must be one number, .* got torch.float32 \(5,\)\. Mix all images",
        ),
        (
            {"teacher_ids": torch.full((B, 3), 12)},
            ConfigError,
            r"of the 12 classes of `logits`, got \[12, 12, 12\] in row 0\.",
        ),
    ],
)
def test_values_of_a_batch_that_cannot_be_are_named_on_the_cpu(changes, error, message):
    logits = stored(3)[0].requires_grad_()
    with pytest.raises(error, match=message):
        reinforced_loss(logits, batch_of(**changes))


def test_a_weight_of_labels_may_be_a_tensor_of_one_number():
    logits = stored(3)[0].requires_grad_()
    fresh = {"reinforced": torch.zeros(B).bool()}
    expected = reinforced_loss(logits, batch_of(**fresh, lam=0.25))
    for lam in (torch.tensor(0.25), torch.tensor([0.25]), np.float32(0.25)):
        torch.testing.assert_close(reinforced_loss(logits, batch_of(**fresh, lam=lam)), expected)


@pytest.mark.filterwarnings("ignore:.*Function.* should not be instantiated")  # so do the lowest versions of torch
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("tail", TAIL_RULES)
def test_it_compiles_in_one_graph(tail, temperature):
    """Also on the CPU, where the values of a batch are looked at unless it is compiled."""
    logits = stored(3, dtype=torch.float32)[0].requires_grad_()
    given = {key.removesuffix("_BT"): value for key, value in with_tail(tail).items() if key != "tail"}
    batch = batch_of(reinforced=torch.arange(B) != 1, **given)

    def loss(logits: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        settings = {"tail": tail, "temperature": temperature, "label_weight": 0.3, "label_smoothing": 0.1}
        return reinforced_loss(logits, batch, **settings)

    torch._dynamo.reset()  # it counts what was compiled for other settings
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    values = [way(logits, batch) for way in (loss, compiled)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in values))
    assert values[0].requires_grad


@pytest.mark.parametrize("name", ["label_weight", "label_smoothing"])
@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_weights_and_smoothing_are_shares(tiny_plus, name, value):
    for refused in (
        lambda: reinforced_loss(stored(3)[0], batch_of(), **{name: value}),
        lambda: ReinforcedLoss(tiny_plus, **{name: value}),
    ):
        with pytest.raises(ConfigError, match=rf"`{name}` must be between 0 and 1, got {value}"):
            refused()
    for share in (0.0, 1.0):
        assert reinforced_loss(stored(3)[0], batch_of(), **{name: share}) > 0


def test_the_loss_of_a_dataset_needs_labels_where_a_view_is_new(tiny_plus):
    loss = ReinforcedLoss(tiny_plus)
    logits = torch.randn(2, 8).requires_grad_()
    ids, logprobs = torch.tensor([[0, 1, 2]] * 2), torch.tensor([[0.5, 0.2, 0.1]] * 2).log()
    batch = {"teacher_ids": ids, "teacher_logprobs": logprobs, "reinforced": torch.tensor([True, True])}
    assert loss(logits, batch) == reinforced_kl(logits, ids, logprobs, tail=loss.tail).mean()
    drawn = {"teacher_ids": ids * 0, "teacher_logprobs": logprobs * 0, "reinforced": torch.tensor([False, True])}
    drawn["teacher_ids"][1], drawn["teacher_logprobs"][1] = ids[1], logprobs[1]
    with pytest.raises(ConfigError, match="the loss needs `labels`, but the batch has none"):
        loss(logits, drawn)


@pytest.mark.parametrize("logits", [None, [[0.0] * 8], torch.tensor(1.0), torch.zeros(8)])
def test_the_loss_of_a_dataset_says_what_logits_must_be(tiny_plus, logits):
    with pytest.raises(ConfigError, match=r"`logits` must be (a tensor|of floating point, \(B, C\)), got"):
        ReinforcedLoss(tiny_plus)(logits, batch_of())


@pytest.mark.parametrize(("total", "is_answer"), [(1.0, True), (1.09, True), (1.11, False), (2.0, False)])
def test_probabilities_of_more_than_one_are_no_answer(total, is_answer):
    """Rounding lifts a sum by less than a hundredth; two places that were never filled make it 2."""
    ids, logprobs = torch.tensor([[0, 1]]), torch.full((1, 2), total / 2).log()
    if is_answer:
        assert reinforced_kl(torch.zeros(1, 3), ids, logprobs).isfinite().all()
    else:
        with pytest.raises(
            ConfigError, match="each row must hold a teacher's log-probabilities, but those of row 0 sum"
        ):
            reinforced_kl(torch.zeros(1, 3), ids, logprobs)


def test_a_label_of_a_small_type_is_no_other():
    check_classes(torch.tensor([0, 2, -100]), 3)
    with pytest.raises(DataError, match="found 156 in row 1"):
        check_classes(torch.tensor([0, 156], dtype=torch.uint8), 3)

"""Checking a "+" dataset: do its views replay bit for bit, and does its teacher still give the stored answers?"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch

from hf_dr.errors import ConfigError, FormatError, ReplayError
from hf_dr.generation.plan import library_versions
from hf_dr.generation.teachers import PIXELS_ALONE, check_members, check_weights, same_teacher
from hf_dr.processes import find_device, warm_up_kernels
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import opened
from hf_dr.replay.proof import OnDevice, replayed, with_all_views
from hf_dr.settings import check_count
from hf_dr.store.features import combine_hashes
from hf_dr.store.findings import Verification
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import EXTENDED_FROM
from hf_dr.store.shards import check_digests
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.names import TeacherNames
from hf_dr.teacher.signals import IMAGE_TAIL, SAMPLED, stored_if_kept
from hf_dr.teacher.topk import add_members, top_k
from hf_dr.text import counted, percent, progress_bar
from hf_dr.views.device.augment import DeviceAugmentation
from hf_dr.views.maker import hash_view
from hf_dr.views.rng import DOMAIN_VERIFY, keyed_rng

# Pixels replay exactly or not at all. Answers are computed again, perhaps on another device, in another precision or
# by another kernel, which changes their last bits: bf16 moves them by some 1e-4 nats, and swaps the first two classes
# where they are equally probable. Other weights, or another way of resizing, move them by far more.
MAX_KL_MEAN = 1e-3
MAX_KL = {"fp32": 0.1, "bf16": 1.0, "fp16": 0.1}
"""Bound on the largest KL, by the precision of the teacher: an answer to another image is off by more.

Instruction sets of CPUs stay far below (benchmarks/processors.py). GPUs need the room: a convolution in fp32 may be one in
TF32 there, which has the 10 bits of fp16.
"""
MIN_TOP1_AGREEMENT = 0.98


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` has found; `print` shows it.

    Attributes:
        num_rows: Rows that were sampled.
        num_views: V, the views of each that were replayed.
        bit_equal: Share of the rows all of whose views replayed to the pixels that were reinforced; None where the dataset
            does not say what the teacher saw (`views_hash` is null).
        kl_mean: Mean KL(stored || recomputed) over the compared views, in nats; None without a teacher.
        kl_max: The largest of them.
        top1_agreement: Share of the compared views whose most probable class is the stored one; None without a teacher.
        tail_kl_mean: Mean KL of the stored tails from those of the recomputed answers, in nats; None without a teacher, or
            without tails.
        problems: What went wrong, at most one line a row.
        version_changes: Libraries whose version is not the one that made the dataset.
        num_shards_read: Shards whose columns were compared with the digests that they carry: all, or none where the files are
            not known, or older than format 4.
        num_unproved: Sampled rows without a `views_hash`: nothing says what the teacher saw.
        precision: The teacher's precision; it decides the bound on the largest KL.
    """

    num_rows: int
    num_views: int
    bit_equal: float | None
    kl_mean: float | None = None
    kl_max: float | None = None
    top1_agreement: float | None = None
    tail_kl_mean: float | None = None
    problems: tuple[str, ...] = ()
    version_changes: tuple[str, ...] = ()
    num_shards_read: int = 0
    num_unproved: int = 0
    precision: str = "fp32"

    @property
    def ok(self) -> bool:
        """Whether every row replayed, exactly as far as is known, and the answers, if compared, agree within the tolerances."""
        if self.bit_equal not in (None, 1) or self.problems:
            return False
        if self.kl_mean is None or self.kl_max is None or self.top1_agreement is None:
            return True
        if self.kl_max > MAX_KL[self.precision]:
            return False
        return max(self.kl_mean, self.tail_kl_mean or 0) <= MAX_KL_MEAN and self.top1_agreement >= MIN_TOP1_AGREEMENT

    @property
    def verification(self) -> Verification:
        """What the card shows."""
        shown = ("num_rows", "num_views", "bit_equal", "kl_mean", "kl_max", "top1_agreement", "tail_kl_mean")
        return Verification(ok=self.ok, **{name: getattr(self, name) for name in shown})

    def __str__(self) -> str:
        """Returns the findings as a table for people."""
        lines = []
        if self.num_shards_read:
            lines.append(("shards as written", f"{self.num_shards_read:,}, all of them read", ""))
        lines.append(("rows replayed", f"{self.num_rows:,} with {counted(self.num_views, 'view')} each", ""))
        if self.bit_equal is None:
            lines.append(("rows equal bit for bit", "unknown", "the dataset holds no hash of what the teacher saw"))
        else:
            lines.append(("rows equal bit for bit", percent(self.bit_equal), "must be 100.00 %"))
            if self.num_unproved:
                lines.append(
                    ("rows without proof", f"{self.num_unproved:,}", "they hold no hash of what the teacher saw")
                )
        if self.kl_mean is None or self.kl_max is None or self.top1_agreement is None:
            lines.append(("teacher's answers", "not compared", ""))
        else:
            lines.append(("KL to the teacher, mean", f"{self.kl_mean:.2e} nats", f"at most {MAX_KL_MEAN:.0e}"))
            lines.append(("KL to the teacher, max", f"{self.kl_max:.2e} nats", f"at most {MAX_KL[self.precision]:g}"))
            lines.append(("same top-1", percent(self.top1_agreement), f"at least {percent(MIN_TOP1_AGREEMENT)}"))
        if self.tail_kl_mean is not None:
            lines.append(("KL of the tails, mean", f"{self.tail_kl_mean:.2e} nats", f"at most {MAX_KL_MEAN:.0e}"))
        lines.append(("verdict", "ok" if self.ok else "NOT OK", ""))
        width = max(len(value) for _, value, _ in lines)
        text = [f"  {name:<26}{value:<{width}}  {bound}".rstrip() for name, value, bound in lines]
        text += [f"  ! {problem}" for problem in self.problems[:10]]
        if len(self.problems) > 10:
            text.append(f"  ! and {len(self.problems) - 10} more rows")
        if not self.ok:
            text += [f"  made with another version: {change}" for change in self.version_changes]
        return "\n".join(text)


def verify(
    plus: ReinforcedDataset | str | os.PathLike[str],
    teacher: Teacher | TeacherNames | None = None,
    *,
    ask_teacher: bool = True,
    num_rows: int = 32,
    base: datasets.Dataset | str | os.PathLike[str] | None = None,
    name: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str | None = None,
) -> VerifyReport:
    """Replays all views of sampled rows, compares their pixels' hash, and asks the teacher again, as `hf-dr verify` does.

    A row that cannot be replayed counts as not equal; the reason stands among the report's problems.

    Args:
        plus: The "+" dataset, or its folder or Hub id.
        teacher: Asked again on the replayed views; it must have the weights that the provenance names. A `Teacher`, or one or
            several names. Default: the teacher that the provenance names, if it is on the Hub.
        ask_teacher: Whether the teacher is asked; False compares pixels only.
        num_rows: Rows to sample; no more than there are.
        base: The base dataset, if `plus` is the path of an overlay; see `load_reinforced`.
        name: The configuration, if `plus` is a path.
        seed: Seed of the sample.
        batch_size: Views in a batch of the teacher.
        device: Make the views there, as a training does with `augment_on="device"`. Default: Pillow makes them.

    Raises:
        NotOnDeviceError: An op or setting has no device version.
        ConfigError: `num_rows` or `batch_size` is not positive, or an argument comes without the one that it belongs to.
        TeacherError: The teacher is not the one that reinforced the dataset; or none is given, and the provenance does not
            name one on the Hub.
        FormatError: See `load_reinforced`.
    """
    warm_up_kernels()
    check_count("num_rows", num_rows)
    check_count("batch_size", batch_size)
    plus = opened(plus, name, base)
    provenance = plus.provenance
    asked = _asked(teacher, ask_teacher, provenance)
    whole = with_all_views(plus)
    drawn = keyed_rng(seed, domain=DOMAIN_VERIFY)
    rows = np.sort(drawn.choice(whole.num_reinforced, min(num_rows, whole.num_reinforced), replace=False))
    damaged = _damaged_shards(plus)
    maker = None if device is None else (DeviceAugmentation(whole.augmentation), find_device(device))
    compared = _Comparison(asked, batch_size, provenance)
    equal, problems = _replay_rows(whole, rows, compared, maker)
    return VerifyReport(
        num_rows=len(rows),
        num_views=whole.num_views,
        bit_equal=sum(equal) / len(equal) if equal else None,
        **compared.measured(),
        problems=(*damaged, *problems),
        version_changes=_version_changes(provenance),
        num_shards_read=len(plus.shards) if provenance.schema_version >= 4 else 0,
        num_unproved=len(rows) - len(equal),
        precision=provenance.teacher.get("precision", "fp32"),
    )


# uint8 views (B, C, H, W), pixel hashes of their images (B,) -> log-probabilities (B, C), as `Teacher.answer`
_Ask = Callable[[torch.Tensor, np.ndarray], torch.Tensor]


def _asked(teacher: Teacher | TeacherNames | None, ask_teacher: bool, provenance: Provenance) -> _Ask | None:
    """Returns a function that asks the teacher again, the given one or that of the provenance; None if none is to be asked."""
    if not ask_teacher:
        if teacher is not None:
            raise ConfigError("`teacher` must be left out with `ask_teacher=False`, got both. Leave one out.")
        return None
    check_members(provenance)
    asked = same_teacher(teacher, provenance, advice=PIXELS_ALONE)
    check_weights(asked, provenance)
    if EXTENDED_FROM in provenance.teacher:  # who was asked first comes first
        places = {member.weights_hash: n for n, member in enumerate(asked.members)}
        asked = asked.select([places[member["weights_hash"]] for member in provenance.teacher["members"]])
    return _as_made(asked, provenance.teacher, provenance.top_k)


def _damaged_shards(plus: ReinforcedDataset) -> list[str]:
    """Reads the files of the dataset and says what is wrong with each that is not what was written."""
    damaged = []
    for shard in plus.shards:
        try:
            check_digests(shard)
        except FormatError as error:
            damaged.append(str(error))
    return damaged


def _replay_rows(
    plus: ReinforcedDataset, rows: np.ndarray, compared: _Comparison, maker: OnDevice | None
) -> tuple[list[bool], list[str]]:
    """Replays rows: whether each replayed to the pixels that its teacher saw, where those are known, and what went wrong."""
    equal: list[bool] = []
    problems: list[str] = []
    with progress_bar(total=len(rows) * plus.num_views, desc="verifying", unit="view") as bar:
        for row, image_hash in zip(rows.tolist(), plus.image_hashes[rows], strict=True):
            stored = plus.views_hash(row)
            try:
                found = _replay_row(plus, row, image_hash, compared, maker)
                if stored not in (None, found):
                    problems.append(
                        f"row {plus.source_rows[row]}: the replayed pixels are not those that the teacher saw"
                    )
            except (ReplayError, FormatError) as error:
                found = None
                problems.append(f"row {plus.source_rows[row]}: {error}")
            if stored is not None:
                equal.append(found == stored)
            bar.update(plus.num_views)
    return equal, problems


def _replay_row(
    plus: ReinforcedDataset, row: int, image_hash: np.uint64, compared: _Comparison, maker: OnDevice | None
) -> int:
    """Replays all views of a row, hands them to the comparison, and returns the hash of their pixels."""
    hashes = np.zeros(plus.num_views, np.uint64)
    tail = _Tail(*plus.image_tail(row), plus.num_views) if plus.signal == IMAGE_TAIL else None
    for view, pixels in enumerate(replayed(plus, row, maker)):
        hashes[view] = hash_view(pixels)
        compared.add(pixels, image_hash, plus.teacher_answer(row, view), tail)
    return combine_hashes(hashes)


def _as_made(teacher: Teacher, made: dict[str, Any], k: int) -> _Ask:
    """Returns a function that answers as the dataset was made: members added later to the top K of the earlier ones.

    `made` is the teacher in a provenance, whose `extended_from` may name further extensions; its members stand in the order of
    the teacher's.
    """
    if EXTENDED_FROM not in made:
        return _at_temperature(teacher, made).answer
    earlier = made[EXTENDED_FROM]
    count = len(teacher.members)
    first = earlier["num_members"]
    old = _as_made(teacher.select(range(first)), earlier, k)
    new = _at_temperature(teacher.select(range(first, count)), made)
    return lambda views, hashes: add_members(*top_k(old(views, hashes), k), new(views), first, count - first)


def _at_temperature(teacher: Teacher, made: dict[str, Any]) -> Teacher:
    return teacher.select(range(len(teacher.members)), temperature=made.get("temperature", 1.0))


@dataclass
class _Tail:
    """A row's stored tail, and the sum of the recomputed answers to its views."""

    ids: np.ndarray
    logprobs: np.ndarray
    num_views: int
    total: Any = 0.0
    added: int = 0

    def add(self, fresh_C: np.ndarray) -> float | None:
        """Adds the answer to the next view; returns KL(stored || recomputed) with the last."""
        self.total = self.total + np.exp(fresh_C, dtype=np.float64)
        self.added += 1
        if self.added < self.num_views:
            return None
        mean_C = np.maximum(self.total / self.num_views, np.finfo(np.float64).tiny)
        return float(answer_kl(self.ids[None], self.logprobs[None], np.log(mean_C)[None])[0])


class _Comparison:
    """Asks the teacher about replayed views, in batches, and compares its answers with the stored ones."""

    def __init__(self, teacher: _Ask | None, batch_size: int, provenance: Provenance) -> None:
        self._teacher = teacher
        self._batch_size = batch_size
        self._provenance = provenance
        self._waiting: list[tuple[np.ndarray, np.uint64, np.ndarray, np.ndarray, _Tail | None]] = []
        self._kl: list[np.ndarray] = []  # KL(stored || recomputed) of the views of each batch, nats
        self._tail_kl: list[float] = []  # the same of each row's tail
        self._same_top1: list[np.ndarray] = []  # whether the most probable class is the stored one, of each batch

    def add(
        self, pixels_HWC: np.ndarray, image_hash: np.uint64, answer: tuple[np.ndarray, np.ndarray], tail: _Tail | None
    ) -> None:
        """Adds a view with its image's hash and its stored answer, and its row's tail if there is one."""
        if self._teacher is None:
            return
        self._waiting.append((pixels_HWC, image_hash, *answer, tail))
        if len(self._waiting) == self._batch_size:
            self._compare()

    def measured(self) -> dict[str, float]:
        """Compares the views that still wait, and returns what a `VerifyReport` says of answers, if any were compared."""
        self._compare()
        if not self._kl:
            return {}
        kl = np.concatenate(self._kl)
        found = {"kl_mean": kl.mean(), "kl_max": kl.max(), "top1_agreement": np.concatenate(self._same_top1).mean()}
        if self._tail_kl:
            found["tail_kl_mean"] = np.mean(self._tail_kl)
        return {name: float(value) for name, value in found.items()}

    def _compare(self) -> None:
        """Compares the views that wait."""
        if self._teacher is None or not self._waiting:
            return
        *stored, tails = zip(*self._waiting, strict=True)
        views_BHWC, hashes_B, ids_BK, logprobs_BK = map(np.stack, stored)
        fresh_BC = self._teacher(torch.from_numpy(views_BHWC).permute(0, 3, 1, 2), hashes_B).cpu().numpy()
        for tail, fresh_C in zip(tails, fresh_BC, strict=True):
            kl = None if tail is None else tail.add(fresh_C)
            if kl is not None:  # it was the row's last view
                self._tail_kl.append(kl)
        self._waiting.clear()
        if self._provenance.signal == SAMPLED:
            fresh_BC = stored_if_kept(torch.from_numpy(fresh_BC), self._provenance.top_k)
            self._kl.append(drawn_kl(ids_BK, logprobs_BK, fresh_BC))
        else:
            self._kl.append(answer_kl(ids_BK, logprobs_BK, fresh_BC))
        self._same_top1.append(same_top1(ids_BK, fresh_BC))


def same_top1(ids_BK: np.ndarray, fresh_BC: np.ndarray) -> np.ndarray:
    """Returns whether the stored most probable class is first again (B,), as it would be stored: equal float16 values are."""
    halves_BC = fresh_BC.astype(np.float16)
    first_B = np.take_along_axis(halves_BC, ids_BK[:, :1].astype(np.int64), axis=1)[:, 0]
    return first_B == halves_BC.max(axis=1)


def answer_kl(ids_BK: np.ndarray, logprobs_BK: np.ndarray, fresh_BC: np.ndarray) -> np.ndarray:
    """Returns KL(stored || fresh) of each answer in nats, float64 (B,), over K + 1 outcomes: kept classes and the rest.

    With p_k = exp(stored log-probability), q_k = the fresh probability of the same class, p_r = 1 - sum_k p_k and
    q_r = the sum of the fresh probabilities of all other classes:

        KL = sum_k p_k ln(p_k / q_k) + p_r ln(p_r / q_r),    0 ln 0 = 0.

    Rounding to float16, and float32's error before it, leave p_r uncertain by u = 1e-5 + sum_k p_k ulp_k / 2; of the
    values within u, the nearest to q_r is taken, so that rounding alone is no difference. Then p and q are scaled to the
    sum 1. If K = C there is no rest.

    Args:
        ids_BK: Stored class ids.
        logprobs_BK: Stored natural log-probabilities, float16.
        fresh_BC: Natural log-probabilities over all classes.
    """
    ids_BK = ids_BK.astype(np.int64)
    logprobs_BK = np.asarray(logprobs_BK)
    fresh_BC = fresh_BC.astype(np.float64)
    fresh_kept_BK = np.take_along_axis(fresh_BC, ids_BK, axis=1)
    others_BC = fresh_BC.copy()
    np.put_along_axis(others_BC, ids_BK, -np.inf, axis=1)
    fresh_rest_B = np.logaddexp.reduce(others_BC, axis=1)  # not log(1 - sum): no cancellation
    kept_BK = logprobs_BK.astype(np.float64)
    unsure_B = 1e-5 + (np.exp(kept_BK) * np.abs(np.spacing(logprobs_BK)).astype(np.float64)).sum(axis=1) / 2
    rest_B = 1 - np.exp(kept_BK).sum(axis=1)
    rest_B = np.maximum(np.clip(np.exp(fresh_rest_B), rest_B - unsure_B, rest_B + unsure_B), 0)
    if ids_BK.shape[1] == fresh_BC.shape[1]:
        rest_B = np.zeros_like(rest_B)
    with np.errstate(divide="ignore", invalid="ignore"):
        logp = np.column_stack([kept_BK, np.log(rest_B)])
        logq = np.column_stack([fresh_kept_BK, fresh_rest_B])
        logp -= np.logaddexp.reduce(logp, axis=1, keepdims=True)
        logq -= np.logaddexp.reduce(logq, axis=1, keepdims=True)
        terms = np.where(logp > -np.inf, np.exp(logp) * (logp - logq), 0.0)
    return terms.sum(axis=1)


def drawn_kl(ids_BK: np.ndarray, logprobs_BK: np.ndarray, would_be_BC: np.ndarray) -> np.ndarray:
    """Returns sum_k s_k ln(s_k / q_k) of each answer of drawn classes, in nats, float64 (B,).

    s are the stored probabilities, scaled to the sum 1, and q_k = max(p_k, tau) is what would be stored of the same classes if
    they were drawn from the answer p. With s from the same answer that is 0. It is never negative: q has a sum of at most 1,
    and a class that must be kept (p_k > tau) and is not lowers it. Which of the others were drawn is chance, and not compared.

    Args:
        ids_BK: Stored class ids.
        logprobs_BK: Stored natural log-probabilities, float16.
        would_be_BC: `hf_dr.teacher.signals.stored_if_kept` of the recomputed answers.
    """
    logs_BK = np.asarray(logprobs_BK, np.float64)
    logs_BK = logs_BK - np.logaddexp.reduce(logs_BK, axis=1, keepdims=True)
    fresh_BK = np.take_along_axis(would_be_BC, ids_BK.astype(np.int64), axis=1)
    return np.maximum((np.exp(logs_BK) * (logs_BK - fresh_BK)).sum(axis=1), 0)


def _version_changes(provenance: Provenance) -> tuple[str, ...]:
    known = library_versions()
    versions = [(name, there, known.get(name, "none")) for name, there in provenance.library_versions.items()]
    return tuple(f"{name} {there} there, {here} here" for name, there, here in versions if here != there)

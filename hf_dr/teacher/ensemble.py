"""The teacher: one or several pretrained classifiers whose probabilities are averaged.

Every member gets the same uint8 views and does its own resizing and normalisation, taken from its own configuration,
on its device. Nothing that is downloaded is executed: weights are safetensors, and remote code is never trusted.
"""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import torch

import hf_dr.teacher.architectures  # noqa: F401 (what it registers, timm builds)
from hf_dr.errors import ConfigError, TeacherError
from hf_dr.processes import find_device
from hf_dr.settings import Real, as_plain, check_kind
from hf_dr.teacher.classes import canonical, common_classes, listed_classes, resolve_classes
from hf_dr.teacher.folds import folds_of, with_members
from hf_dr.teacher.members import HOW_TO_NAME, Member, load_member, logits_of, member_of, preprocessing_of
from hf_dr.teacher.names import PRECISIONS, TeacherNames
from hf_dr.views.device.overlap import to_device

if TYPE_CHECKING:
    from typing_extensions import TypeIs

logger = logging.getLogger(__name__)


class TeacherSettings(TypedDict, total=False):
    """The settings of a `Teacher`, which has their defaults."""

    device: str | torch.device | None
    precision: str
    channels_last: bool
    compile: bool
    classes: Sequence[int] | Sequence[str] | None
    temperature: float


class Teacher:
    """An ensemble of classifiers over the same classes; probabilities are averaged in float32.

    Examples:
        ```python
        from hf_dr import Teacher

        teacher = Teacher.from_pretrained(["runs/teacher", "org/another-teacher"], precision="bf16")
        print(teacher.num_classes)
        ```

    Args:
        members: The classifiers: at least one, no two with the same weights, all with the same classes. Those of another
            teacher are shared with it, and are moved to this one's `device`: on another, the other teacher cannot answer any
            more.
        device: The members' device. Default: the accelerator if there is one, which the log says.
        precision: `fp32`, or `bf16` / `fp16` under autocast.
        channels_last: Memory format of weights and views; convolutions are often faster with it.
        compile: Whether to `torch.compile` the members.
        classes: The dataset's classes, if it has only a subset of the teacher's: for each class of the dataset, its index
            among the teacher's, or its name. Of several members, one that has exactly that many classes already is left as it
            is, unless these are names and it knows some, or they are the numbers of its own classes in another order.
        temperature: T, by which the averaged log-probabilities are divided (and renormalised): the calibration of the
            ensemble (Guo et al., arXiv:1706.04599).

    Attributes:
        num_folds: k, where members were trained without the images of one of k folds each; else 1.

    Raises:
        ConfigError: An argument is of another kind, or `temperature` is not above 0.
        TeacherError: The members do not belong together, or `classes` does not fit them.
    """

    def __init__(
        self,
        members: Sequence[Member],
        *,
        device: str | torch.device | None = None,
        precision: str = "fp32",
        channels_last: bool = True,
        compile: bool = False,
        classes: Sequence[int] | Sequence[str] | None = None,
        temperature: float = 1.0,
    ) -> None:
        advice = "`Teacher.from_pretrained` takes names."
        check_kind("members", members, Sequence, "a list of loaded members", advice)
        for member in members:
            check_kind("members", member, Member, "loaded members", advice)
        if not members:
            raise TeacherError(f"a teacher must have at least one member, got none. Name {HOW_TO_NAME}.")
        wanted = listed_classes(classes)
        if precision not in tuple(PRECISIONS):
            raise TeacherError(f"`precision` must be one of {', '.join(PRECISIONS)}, got {precision!r}. Choose one.")
        Real(0, above=True).check("temperature", temperature)
        _refuse_twins(members)
        self.members = tuple(members)
        self.temperature = as_plain(temperature)
        self.num_folds = _number_of_folds(members)
        self.precision = precision
        self.device = find_device(device)
        self.channels_last = channels_last
        larger = wanted is None or any(member.num_classes > len(wanted) for member in members)
        self._class_ids = [resolve_classes(member, wanted, larger=larger) for member in members]
        self.num_classes, self.labels = common_classes(members, self._class_ids)
        self._models = []
        for member in members:
            model = member.model.eval().to(self.device)
            for parameter in model.parameters():  # a module of TorchScript has no `requires_grad_`
                parameter.requires_grad_(False)
            if channels_last:
                model = model.to(memory_format=torch.channels_last)
            self._models.append(torch.compile(model) if compile else model)
        self._memory = _Memory()

    @classmethod
    def from_pretrained(cls, ids: TeacherNames, **settings: Unpack[TeacherSettings]) -> Teacher:
        """Loads the members by name; `settings` are those of `Teacher`.

        Args:
            ids: One or several of: a Hub id of a timm or transformers classifier (`timm/resnet50.a1_in1k`, with
                `@revision` to pin it), a local transformers folder, or a timm architecture with a local checkpoint in
                timm's key names (`timm:tf_efficientnet_lite0@weights.safetensors`), a folder of `hf-dr teach --folds`.

        Raises:
            ConfigError: `ids` is something else.
            TeacherError: A member cannot be loaded; or see `Teacher`.
        """
        names: Any = ids if isinstance(ids, (list, tuple)) else [ids]
        wrong = [type(name).__name__ for name in names if not isinstance(name, (str, os.PathLike))]
        if wrong:
            found = wrong[0] if names[0] is ids else f"a list with {wrong[0]}"
            raise ConfigError(
                f"a teacher must be a Teacher, or one or several names, got {found}. Name {HOW_TO_NAME}; `Teacher.from_model` "
                "makes one of a model in memory, and `Teacher([*one.members, *other.members])` one of several."
            )
        teacher = cls([load_member(name) for name in with_members([os.fspath(name) for name in names])], **settings)
        logger.info("The teacher (%s) computes on %s.", " + ".join(m.id for m in teacher.members), teacher.device)
        return teacher

    @classmethod
    def from_model(
        cls,
        model: torch.nn.Module,
        name: str,
        *,
        size: int | Sequence[int] | None = None,
        normalization: tuple[Sequence[float], Sequence[float]] | None = None,
        processor: Any = None,
        class_names: Sequence[str] | None = None,
        license: str | None = None,
        **settings: Unpack[TeacherSettings],
    ) -> Teacher:
        """Makes a teacher of a classifier in memory; `settings` are those of `Teacher`.

        Several make an ensemble by `Teacher([*one.members, *other.members])`.

        Args:
            model: Takes normalised RGB images (B, 3, *size), float32, and returns logits (B, C): alone, as `.logits`, or as
                the first of several values. The teacher has a copy of it.
            name: What the provenance and the card call it.
            size: Side, or (height, width), of its input in pixels, to which views are resized (bilinear). Default: what the
                processor or timm tells.
            normalization: (mean, std) of its input, each three numbers on the scale 0 to 1. Default: likewise.
            processor: The image processor of a model of transformers.
            class_names: The names of its classes, in their order. Default: those in the configuration of a model of
                transformers, if it has some.
            license: The licence of the weights, for the card.

        Raises:
            ConfigError: An argument is of another kind, or nothing tells how the model takes images.
            TeacherError: It cannot be copied, does not take such images, or does not answer with a number for each of its
                classes; or see `Teacher`.
        """
        seen = preprocessing_of(model, name, size, normalization, processor)
        return cls([member_of(model, name, *seen, class_names, license)], **settings)

    def __call__(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        """Labels views; all members are asked, whatever they have seen.

        Args:
            views_BCHW: uint8 RGB, any device.

        Returns:
            Natural log-probabilities (B, C) of the averaged ensemble, float32, on the teacher's device.

        Raises:
            ConfigError: `views_BCHW` is something else: normalised pixels, for example, would be answered with nonsense.
        """
        _check_views(views_BCHW)
        batch = len(views_BCHW)
        largest = self._memory.largest_batch
        if largest is not None and batch > largest:
            return torch.cat([self(part) for part in views_BCHW.split(largest)])
        try:
            return self._answer(views_BCHW)
        except RuntimeError as error:  # of CUDA an OutOfMemoryError; of Apple's MPS only the words tell it
            if batch == 1 or "out of memory" not in str(error):
                raise
        # This stands outside of the except block, where the exception would keep the failed batch's tensors alive.
        self._memory.largest_batch = (batch + 1) // 2
        logger.warning("A batch of %d views did not fit in memory; going on with %d.", batch, (batch + 1) // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return self(views_BCHW)

    @torch.inference_mode()
    def _answer(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        views_BCHW = to_device(views_BCHW, self.device)
        answers = []
        for member, model, class_ids in zip(self.members, self._models, self._class_ids, strict=True):
            pixels = member.preprocessing(views_BCHW)
            if self.channels_last:
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            dtype = getattr(torch, PRECISIONS[self.precision])
            with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
                out = model(pixels)
            logits_BC = logits_of(out).float()
            if class_ids is not None:
                logits_BC = logits_BC[:, class_ids]
            answers.append(logits_BC.log_softmax(dim=-1))
        answer_BC = answers[0]
        if len(answers) > 1:
            # log(mean of probabilities), without leaving log space: the tail keeps its precision.
            answer_BC = torch.stack(answers).logsumexp(dim=0) - math.log(len(answers))
        return answer_BC if self.temperature == 1 else (answer_BC / self.temperature).log_softmax(dim=-1)

    def answer(
        self,
        views_BCHW: torch.Tensor,
        image_hashes_B: np.ndarray,
        ask: Callable[[Teacher, torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Labels views, each by the members that have not seen its image; see `__call__`.

        Args:
            views_BCHW: See `__call__`.
            image_hashes_B: Pixel hash of each view's image, uint64. Of a mixed view this is its own image, not the partner's.
            ask: Asks an ensemble about some of the views. Default: calls it.
        """
        ask = ask or Teacher.__call__
        if self.num_folds == 1:
            return ask(self, views_BCHW)
        folds_B = folds_of(image_hashes_B, self.num_folds)
        answers_BC = torch.empty(len(views_BCHW), self.num_classes, device=self.device)
        for fold in np.unique(folds_B).tolist():
            places = torch.from_numpy(np.flatnonzero(folds_B == fold))
            blind = self.select([n for n, member in enumerate(self.members) if _has_not_seen(member, fold)])
            answers_BC[places.to(self.device)] = ask(blind, views_BCHW[places.to(views_BCHW.device)])
        return answers_BC

    def select(self, places: Sequence[int], *, temperature: float | None = None) -> Teacher:
        """Returns the ensemble of the members at these places, in this order; it shares their models and what fits in memory.

        Without a `temperature` it has this one's.
        """
        chosen = copy.copy(self)
        chosen.temperature = self.temperature if temperature is None else as_plain(temperature)
        chosen.members = tuple(self.members[n] for n in places)
        chosen._models = [self._models[n] for n in places]
        chosen._class_ids = [self._class_ids[n] for n in places]
        return chosen

    def __repr__(self) -> str:
        names = " + ".join(member.id for member in self.members)
        return f"{type(self).__name__}({names}: {self.num_classes} classes, {self.precision} on {self.device})"

    def check_classes(self, names: Sequence[str], remedy: str = "pass `classes` (--teacher_classes)") -> None:
        """Checks that a dataset's classes are the teacher's: as many, and in the same order where both are named alike.

        Args:
            names: The dataset's.
            remedy: What to do where no name is known to the teacher, and the order is wrong; for the warning.

        Raises:
            TeacherError: They are not.
        """
        if len(names) != self.num_classes:
            raise TeacherError(
                f"the teacher must answer over the dataset's {len(names)} classes, but it has {self.num_classes}. Name another "
                "teacher, or pass `classes` (--teacher_classes) if the dataset has a subset of its classes."
            )
        own = [{canonical(name) for name in labels} for labels in self.labels or ()]
        known = set().union(*own)
        theirs = [canonical(name) for name in names]
        if known and known.isdisjoint(theirs):
            logger.warning(
                "None of the dataset's class names is the teacher's: they are taken for the teacher's classes in their order, "
                "so 0 is %r here and %r there. Where that is wrong, %s.",
                names[0],
                (self.labels or ())[0][0],
                remedy,
            )
        # A name that the teacher does not know may be another spelling; one that it knows must stand at its place.
        for c, (mine, name) in enumerate(zip(own, theirs, strict=bool(own))):
            if name in known and name not in mine:
                raise TeacherError(
                    f"the teacher's classes must be in the dataset's order, but class {c} is {names[c]!r} in the dataset and "
                    f"{(self.labels or ())[c][0]!r} for the teacher. Pass the dataset's names as `classes` (--teacher_classes "
                    "by_name), or the teacher's number of each class."
                )

    def check_folds(self, images: str) -> None:
        """Checks that there is a member for each fold of a dataset that has not seen it.

        `images` is `hf_dr.replay.join.pixels_digest` of the dataset.

        Raises:
            TeacherError: A fold has none, or the folds are those of another dataset.
        """
        for member in self.members:
            if member.left_out is not None and member.left_out.images != images:
                raise TeacherError(
                    f"the folds of {member.id} must be those of the dataset, but other images were divided, or these were "
                    "decoded by another library: which of them it has seen is not known. Reinforce the dataset and split that "
                    "it was taught, whole and in its order, or teach again."
                )
        answered = [any(_has_not_seen(member, fold) for member in self.members) for fold in range(self.num_folds)]
        lacking = [fold for fold, known in enumerate(answered) if not known]
        if lacking:
            raise TeacherError(
                f"the teacher must have a member for each of its {self.num_folds} folds, found none for {lacking}. Name the "
                "folder of `hf-dr teach --folds`, or all teachers in it."
            )

    def provenance(self) -> dict[str, Any]:
        """Returns what determines the answers, and the members' ids and licences, in JSON types."""
        classes = zip(self.members, self._class_ids, strict=True)
        told = {
            "members": [{**member.provenance(), "classes": class_ids} for member, class_ids in classes],
            "num_classes": self.num_classes,
            "precision": self.precision,
            "device_type": self.device.type,
        }
        return told if self.temperature == 1 else {**told, "temperature": self.temperature}


@dataclass
class _Memory:
    """What is learned when memory runs out. The copies of a teacher share it: with folds, new ones answer each batch."""

    largest_batch: int | None = None


def _check_views(views: Any) -> None:
    if isinstance(views, torch.Tensor) and views.dtype == torch.uint8 and views.ndim == 4 and views.shape[1] == 3:
        return
    found = type(views).__name__
    if isinstance(views, torch.Tensor):
        found = f"{str(views.dtype).removeprefix('torch.')} of shape {tuple(views.shape)}"
    raise ConfigError(
        f"views must be a uint8 tensor of shape (B, 3, height, width), RGB from 0 to 255, got {found}. Give the pixels as they "
        "are: each member resizes and normalises them itself."
    )


def is_teacher(given: object) -> TypeIs[Teacher]:
    """Whether something is a Teacher, or acts as one, and so is no name of one: it has members."""
    return hasattr(given, "members")


def _has_not_seen(member: Member, fold: int) -> bool:
    """Whether a member may answer for the images of a fold; one that is of no fold was trained on other images."""
    return member.left_out is None or member.left_out.number == fold


def _number_of_folds(members: Sequence[Member]) -> int:
    counts = {member.left_out.of for member in members if member.left_out is not None}
    if len(counts) > 1:
        raise TeacherError(
            f"the members of a teacher must have the same number of folds, got {' and '.join(map(str, sorted(counts)))}. Teach "
            "them with the same `folds`."
        )
    return counts.pop() if counts else 1


def _refuse_twins(members: Sequence[Member]) -> None:
    seen: dict[str, str] = {}
    for member in members:
        if member.weights_hash in seen:
            raise TeacherError(
                f"the members of a teacher must differ, but {seen[member.weights_hash]} and {member.id} have the same "
                "weights (timm sends some old names to one checkpoint). Name another model or leave one out."
            )
        seen[member.weights_hash] = member.id

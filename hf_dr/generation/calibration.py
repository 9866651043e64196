"""The temperature of a teacher: at which its probabilities fit held-out labels, on views as a run makes them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np

from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.labelling import Labeller
from hf_dr.generation.plan import augmentation_of, plan_run
from hf_dr.generation.sources import choose_source, cut_spans
from hf_dr.store.labels import labelled_columns
from hf_dr.teacher.calibration import TemperatureFit
from hf_dr.teacher.ensemble import Teacher, is_teacher
from hf_dr.teacher.names import TeacherNames
from hf_dr.teacher.signals import IMAGE_TAIL
from hf_dr.teacher.topk import not_finite
from hf_dr.views.augmentation import Augmentation


@dataclass(frozen=True)
class CalibratedTeacher(TemperatureFit):
    """What `calibrate` has found.

    Attributes:
        teacher: The teacher at the temperature, for `reinforce`. Where the given one had a temperature already, that of this
            one is the product of both.
    """

    teacher: Teacher = field(repr=False)


def calibrate(
    dataset: datasets.Dataset,
    teacher: Teacher | TeacherNames,
    augmentation: Augmentation | str | Sequence[Any],
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> CalibratedTeacher:
    """Finds the temperature at which a teacher's probabilities fit labels best (Guo et al., ICML 2017, arXiv:1706.04599).

    The teacher sees one view of each image, drawn as by `reinforce`, but not mixed; nothing is written. A teacher of folds
    answers each image by the members that have not seen it.

    Args:
        dataset: Images that the teacher has not learned, with labels.
        teacher: See `reinforce`.
        augmentation: See `reinforce`.
        image_column: Column of the images. Default: the only Image column.
        label_column: Column of their labels. Default: `label`.

    Returns:
        The calibrated `teacher`; `temperature`; and the metrics before and with it, `trained` and `calibrated`: shares from 0
        to 1 but `nll` (nats) and `brier` (0 to 2). `print` shows them.

    Raises:
        ConfigError: The dataset has no labels, or the augmentation is none.
        DataError: A column is missing, a label is out of range, an image is undecodable.
        TeacherError: The teacher's classes are not the dataset's, or its answers are not finite.
    """
    augmentation = augmentation_of(augmentation)
    labelled_columns(dataset, "a teacher is calibrated by", "the dataset", image_column, label_column)
    if not is_teacher(teacher):  # loading takes minutes
        teacher = Teacher.from_pretrained(teacher)
    answers_NC, labels_N = held_out_answers(
        dataset, teacher, augmentation, image_column=image_column, label_column=label_column
    )
    fit = TemperatureFit.of(answers_NC, labels_N)
    total = teacher.temperature * fit.temperature
    return CalibratedTeacher(**vars(fit), teacher=teacher.select(range(len(teacher.members)), temperature=total))


def held_out_answers(
    dataset: datasets.Dataset,
    teacher: Teacher,
    augmentation: Augmentation,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Shows a teacher one view of each labelled image, as a run of `reinforce` would, but not mixed; nothing is written.

    The arguments and errors are those of `calibrate`.

    Returns:
        Natural log-probabilities, float32 (N, C), and labels, int64 (N,).
    """
    single = Augmentation([op for op, _ in augmentation.single])
    # Nothing is written to the folder. The signal is the one for which sources give whole answers.
    config = ReinforceConfig(
        ".", num_views=1, top_k=1, signal=IMAGE_TAIL, image_column=image_column, label_column=label_column
    )
    plan = plan_run(dataset, teacher, single, config)
    assert plan.labels is not None
    labeller = Labeller(teacher, plan.provenance)
    source = choose_source(plan.view_maker(), labeller, config.batch_size, config.num_workers, config.augment_on)
    spans = cut_spans(plan.provenance, range(plan.provenance.num_shards), source.batch_size)
    with closing(source.answers(spans)) as answers:
        answers_NC = np.concatenate([columns.answers for columns in answers if columns.answers is not None])
    if not np.isfinite(answers_NC).all():
        raise not_finite(answers_NC)
    return answers_NC, plan.labels

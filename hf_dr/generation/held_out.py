"""What a teacher answers to labelled images that it has not learned, by which it is calibrated."""

from __future__ import annotations

from contextlib import closing

import datasets
import numpy as np

from hf_dr.errors import ConfigError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.labelling import Labeller
from hf_dr.generation.plan import plan_run
from hf_dr.generation.sources import choose_source, cut_spans
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.signals import IMAGE_TAIL
from hf_dr.views.augmentation import Augmentation


def held_out_answers(
    dataset: datasets.Dataset,
    teacher: Teacher,
    augmentation: Augmentation,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Shows a teacher one view of each image, as a run of `reinforce` would, but not mixed; nothing is written.

    Args:
        dataset: Images that the teacher has not learned; a teacher of folds answers each by the members without it.
        teacher: Who is asked.
        augmentation: Draws the views.
        image_column: See `ReinforceConfig`.
        label_column: See `ReinforceConfig`.

    Returns:
        Natural log-probabilities, float32 (N, C), and labels, int64 (N,).

    Raises:
        ConfigError: The dataset has no labels.
        DataError: A column is missing, a label is out of range, an image is undecodable.
        TeacherError: The teacher's classes are not the dataset's, or its answers are not finite.
    """
    single = Augmentation([op for op, _ in augmentation.single])
    # Nothing is written to the folder. The signal is the one for which sources give whole answers.
    config = ReinforceConfig(
        ".", num_views=1, top_k=1, signal=IMAGE_TAIL, image_column=image_column, label_column=label_column
    )
    plan = plan_run(dataset, teacher, single, config)
    if plan.labels is None:
        raise ConfigError("a teacher is calibrated by labels, found none. Name `label_column`.")
    labeller = Labeller(teacher, plan.provenance)
    source = choose_source(plan.view_maker(), labeller, config.batch_size, config.num_workers, config.augment_on)
    spans = cut_spans(plan.provenance, range(plan.provenance.num_shards), source.batch_size)
    with closing(source.answers(spans)) as answers:
        return np.concatenate([columns.answers for columns in answers if columns.answers is not None]), plan.labels

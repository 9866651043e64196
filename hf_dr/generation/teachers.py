"""The teacher that a provenance names: loading it, recognising it by its weights; and whether one fits a dataset's labels."""

from __future__ import annotations

import logging
from typing import Any

import datasets
import numpy as np

from hf_dr.errors import FormatError, TeacherError
from hf_dr.store.base_dataset import whole_column
from hf_dr.store.labels import class_numbers
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import EXTENDED_FROM
from hf_dr.teacher.ensemble import Teacher, is_teacher
from hf_dr.teacher.names import TeacherNames
from hf_dr.text import is_commit, is_hub_id, shown_text

logger = logging.getLogger(__name__)


PIXELS_ALONE = " `verify` checks the pixels alone with `ask_teacher=False` (--no_teacher)."
"""Advice of `verify` where the teacher is not there."""


def teacher_from_provenance(provenance: Provenance, *, advice: str = "", **settings: Any) -> Teacher:
    """Loads the teacher that the provenance names: Hub checkpoints at the revision that was used.

    The settings are those of `Teacher`; by default the run's. `advice` is what can be done without this teacher.

    Raises:
        TeacherError: A member is no Hub checkpoint, or cannot be loaded, or its classes cannot be chosen as in the run.
    """
    members = provenance.teacher["members"]
    for member in members:
        revision = member.get("revision")
        if not (is_commit(revision) and is_hub_id(member["id"])):
            at = "without a revision" if revision is None else f"at revision {revision}"
            raise TeacherError(
                f"the teacher must be named, unless it is a commit on the Hub, found {member['id']!r} {at}. Pass the file or "
                f"folder that answered as `teacher` (--teacher).{advice}"
            )
    teacher = same_teacher([f"{member['id']}@{member['revision']}" for member in members], provenance, **settings)
    chosen = [member.get("classes") for member in members]
    if [member["classes"] for member in teacher.provenance()["members"]] != chosen:
        raise TeacherError(
            "the members must answer over the same classes as in the run, but their classes were chosen one by one. "
            "Pass the teacher, made as in the run."
        )
    return teacher


def same_teacher(
    given: Teacher | TeacherNames | None, provenance: Provenance, *, advice: str = "", **settings: Any
) -> Teacher:
    """Returns the teacher of a "+" dataset: as it is given, or loaded by its names with the settings of the run.

    Those of the run give way to `settings`, which are those of `Teacher`. Where none is given, see `teacher_from_provenance`.

    Raises:
        ConfigError: It is neither.
        TeacherError: A member cannot be loaded, or does not belong to the others.
    """
    if given is None:
        return teacher_from_provenance(provenance, advice=advice, **settings)
    if is_teacher(given):
        return given
    chosen = [member.get("classes") for member in provenance.teacher["members"]]
    settings.setdefault("precision", provenance.teacher.get("precision", "fp32"))
    settings.setdefault("temperature", provenance.teacher.get("temperature", 1.0))
    settings.setdefault("classes", next((classes for classes in chosen if classes is not None), None))
    return Teacher.from_pretrained(given, **settings)


def check_members(provenance: Provenance) -> None:
    """Checks that a provenance tells the weights of the teacher's members, or that they are unknown."""
    members = provenance.teacher["members"]
    if not all(isinstance(member.get("weights_hash", 0), (str, type(None))) for member in members):
        raise FormatError(
            f"`teacher.members` of the provenance must name id and weights_hash, found {members!r:.80}. Fetch or make it again."
            f"{PIXELS_ALONE}"
        )


def check_weights(teacher: Teacher, provenance: Provenance) -> None:
    """Refuses another teacher than the one that a provenance names, by its weights and classes; see `check_members`."""
    stored = {member["weights_hash"]: member["id"] for member in provenance.teacher["members"]}
    given = {member.weights_hash: member.id for member in teacher.members}
    unknown = None in stored and EXTENDED_FROM not in provenance.teacher  # made by another program, which did not say
    if not unknown and stored.keys() != given.keys():
        raise TeacherError(
            f"the teacher must have the weights that reinforced the dataset, {_named(stored)}, found {_named(given)}. "
            f"Pass that teacher.{PIXELS_ALONE}"
        )
    if teacher.num_classes != provenance.num_classes:
        raise TeacherError(
            f"the teacher must answer over the stored {provenance.num_classes} classes, found {teacher.num_classes}. "
            "Pass the same `classes` as in the run."
        )


def _named(members: dict[str, str]) -> str:
    return " + ".join(f"{name} (SHA-256 {digest[:12]})" for digest, name in members.items())


def checked_labels(dataset: datasets.Dataset, label_column: str, teacher: Teacher) -> np.ndarray:
    """Checks that the dataset's classes are the teacher's and every label is one of them; returns the labels, int64 (rows,)."""
    feature = dataset.features[label_column]
    if isinstance(feature, datasets.ClassLabel):
        teacher.check_classes(feature.names)
    values = class_numbers(
        whole_column(dataset, label_column),
        teacher.num_classes,
        f"the labels `{label_column}`, which are the teacher's classes,",
        "Take a split with labels, name another teacher or `label_column`, or pass `label_column=none`.",
    )
    if not isinstance(feature, datasets.ClassLabel) and teacher.labels is not None:
        there = np.unique(values)
        named = ", ".join(f"{number} is '{shown_text(teacher.labels[number][0], 30)}'" for number in there[:3].tolist())
        logger.warning(
            "%d label numbers of `%s`, which have no names, are taken for the teacher's classes: %s%s. To have the names kept, "
            "and compared with those of students and test sets, cast the column to `datasets.ClassLabel(names=...)`.",
            len(there), label_column, named, ", ..." if len(there) > 3 else "",
        )  # fmt: skip
    return values

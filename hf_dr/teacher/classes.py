"""Which of a classifier's classes are a dataset's, by number or by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_dr.errors import ConfigError, TeacherError
from hf_dr.settings import as_plain
from hf_dr.teacher.members import Member


def canonical(name: str) -> str:
    """Returns how a class's name is compared: `Great_White_Shark, Carcharodon` and `great white shark` are one class."""
    words = name.split(",", maxsplit=1)[0].replace("_", " ").replace("-", " ").strip().casefold()
    return {"cra": "crab"}.get(words, words)  # as the Hub's copy of CIFAR-100 spells it


def listed_classes(classes: Any) -> list[Any] | None:
    """Returns `classes` as a list of texts and whole numbers; a ConfigError if they are something else."""
    if classes is None:
        return None
    given = classes.tolist() if hasattr(classes, "tolist") else classes
    # A set has no order, and a mapping would be read by its keys.
    if isinstance(given, (str, bytes, set, frozenset, Mapping)) or not hasattr(given, "__len__"):
        raise ConfigError(f"`classes` must be a list of names or numbers, got {classes!r:.80}. Put it into a list.")
    entries = [as_plain(entry) for entry in given]
    for entry in entries:
        if isinstance(entry, bool) or not isinstance(entry, (str, int)):
            raise ConfigError(
                f"`classes` must hold names or whole numbers, got {entry!r:.80}. Give each class its name or its number."
            )
    return entries


def resolve_classes(member: Member, classes: list[Any] | None, *, larger: bool) -> list[int] | None:
    """Returns the member's class ids for the dataset's classes; None where they are the same.

    Args:
        member: One of the teacher's.
        classes: See `Teacher`, as `listed_classes` returns them.
        larger: Whether a member of the teacher has more classes than the dataset.

    Raises:
        TeacherError: The member has no such classes, or one is meant twice.
    """
    if classes is None:
        return None
    # Classes of a larger member. Names are meant for all that know any; all its own numbers, in another order, for this one.
    if larger and len(classes) == member.num_classes:
        by_name = isinstance(classes[0], str)
        for_this_one = member.labels is not None if by_name else set(classes) == set(range(member.num_classes))
        if not for_this_one:
            return None
    if len(classes) == 0:
        raise TeacherError("`classes` must name at least one class, got an empty list. Leave it out for all classes.")
    ids: list[int] = []
    known: dict[str, set[int]] = {}
    whole: dict[str, set[int]] = {}  # by all of a name: "cardigan" is a jacket, "Cardigan, Cardigan Welsh corgi" a dog
    for c, names in enumerate(member.labels or ()):
        for name in names:
            known.setdefault(canonical(name), set()).add(c)
            whole.setdefault(name.strip().casefold(), set()).add(c)
    for entry in classes:
        if isinstance(entry, str):
            if not known:
                raise TeacherError(f"`classes` has names, but {member.id} knows none. Give the indices of its classes.")
            if canonical(entry) not in known:
                raise TeacherError(
                    f"`classes` must name classes of {member.id}, which has no {entry!r} (it has e.g. "
                    f"{', '.join(repr(n[0]) for n in (member.labels or ())[:3])}). Give the indices of its classes."
                )
            meant = whole.get(entry.strip().casefold()) or known[canonical(entry)]
            if len(meant) > 1:
                several = ", ".join(f"{c} ({', '.join((member.labels or ())[c])})" for c in sorted(meant))
                raise TeacherError(
                    f"`classes` must name one class each, but {entry!r} is several of {member.id}: {several}. Give its WordNet "
                    "id or its number."
                )
            ids.append(next(iter(meant)))
        elif 0 <= entry < member.num_classes:
            ids.append(entry)
        else:
            raise TeacherError(
                f"`classes` must hold numbers from 0 to {member.num_classes - 1}, the classes of {member.id}, got {entry}. "
                "Correct it."
            )
    if len(set(ids)) < len(ids):
        twice = next(c for c in ids if ids.count(c) > 1)
        raise TeacherError(
            f"`classes` must not repeat a class, but class {twice} of {member.id} stands there twice. Leave one out."
        )
    return None if ids == list(range(member.num_classes)) else ids


def common_classes(
    members: Sequence[Member], class_ids_of: Sequence[list[int] | None]
) -> tuple[int, tuple[tuple[str, ...], ...] | None]:
    """Checks that all members answer over the same classes and returns their number and names.

    Args:
        members: The teacher's.
        class_ids_of: What `resolve_classes` returns for each.

    Raises:
        TeacherError: They do not.
    """
    counts, names = [], []
    for member, class_ids in zip(members, class_ids_of, strict=True):
        counts.append(member.num_classes if class_ids is None else len(class_ids))
        labels = member.labels
        if labels is not None and class_ids is not None:
            labels = tuple(labels[c] for c in class_ids)
        names.append(labels)
    if len(set(counts)) > 1:
        found = ", ".join(f"{m.id}: {c}" for m, c in zip(members, counts, strict=True))
        raise TeacherError(
            f"the members of a teacher must have the same classes, got {found}. Leave one out, or pass `classes`."
        )
    named = [(m, n) for m, n in zip(members, names, strict=True) if n is not None]
    for member, labels in named[1:]:
        first, expected = named[0]
        for c, (a, b) in enumerate(zip(expected, labels, strict=True)):
            if not {canonical(x) for x in a} & {canonical(x) for x in b}:
                raise TeacherError(
                    f"the members of a teacher must have the same classes in the same order, but class {c} is "
                    f"{a[0]!r} for {first.id} and {b[0]!r} for {member.id}. Leave one out, or pass `classes` by name."
                )
    return counts[0], named[0][1] if named else None

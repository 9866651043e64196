"""Adding to a "+" dataset: more views of its examples, or more members of its teacher; what is stored is not asked again."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch

from hf_dr.errors import ConfigError, DataError, FingerprintMismatchError, FormatError, ReplayError, TeacherError
from hf_dr.files import expanded
from hf_dr.generation.config import ExtendConfig, check_config
from hf_dr.generation.job import Job
from hf_dr.generation.labelling import CompleteRows, Labeller, ShortAnswers
from hf_dr.generation.plan import Plan, library_versions
from hf_dr.generation.sources import choose_source
from hf_dr.generation.teachers import checked_labels, same_teacher
from hf_dr.processes import process_state
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import opened
from hf_dr.replay.proof import with_all_views
from hf_dr.store import schema
from hf_dr.store.features import combine_hashes
from hf_dr.store.provenance import Provenance
from hf_dr.store.shards import check_digests
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.names import TeacherNames
from hf_dr.teacher.signals import SAMPLED, TOPK
from hf_dr.teacher.topk import add_members, id_dtype
from hf_dr.version import __version__
from hf_dr.views.maker import Span, ViewMaker


def extend(
    plus: ReinforcedDataset | str | os.PathLike[str],
    config: ExtendConfig,
    *,
    teacher: Teacher | TeacherNames | None = None,
    add_teacher: Teacher | TeacherNames | None = None,
    name: str | None = None,
    base: datasets.Dataset | str | os.PathLike[str] | None = None,
) -> ReinforcedDataset:
    """Makes a "+" dataset with more views, or with more members of the teacher, from one that is there; returns it.

    With `config.num_views` the stored views keep their answers, and the teacher is asked for the new ones only: the result is
    what `reinforce` gives for all views at once. With `add_teacher` only the new members are asked, and averaged into the
    stored answers. In both cases all stored views are drawn again, and a row whose pixels are not those that the teacher saw
    ends the run.

    Call it in every process that accelerate launched, as `reinforce`; a run that was stopped goes on where it was.

    Args:
        plus: The "+" dataset, or its folder or Hub id.
        config: See `ExtendConfig`.
        teacher: The teacher that made the stored views, or its names, where more views are made. Default: the one that the
            provenance names.
        add_teacher: The new members, over the same classes, or their names.
        name: The configuration, if `plus` is a path.
        base: The base dataset, if `plus` is the path of an overlay; see `load_reinforced`.

    Raises:
        ConfigError: The dataset cannot be extended, or not in this way.
        TeacherError: The teacher is not the one that made the stored views; or the new members do not belong to it.
        FingerprintMismatchError: More views were asked for with other library versions than those that made the stored ones.
        ReplayError: The pixels of a row are not those that were reinforced.
    """
    check_config(config, ExtendConfig)
    plus = opened(plus, name, base)
    check_extension(plus, config, teacher=teacher is not None, add_teacher=add_teacher is not None)
    job = extend_job(plus, asked_teacher(plus, teacher, add_teacher), config)
    job.run()
    return job.result()


def check_extension(plus: ReinforcedDataset, config: ExtendConfig, *, teacher: bool, add_teacher: bool) -> None:
    """Checks what can be known before a teacher is loaded, as `extend` tells; `teacher`, `add_teacher`: whether it is given."""
    stored = plus.provenance
    if stored.schema_version < schema.SCHEMA_VERSION:
        raise ConfigError(
            f"a dataset to be extended must be of format {schema.SCHEMA_VERSION}, which this version of hf_dr writes, found "
            f"format {stored.schema_version}: the result would be a mixture. Reinforce the base again, or extend it with the "
            f"version that made it ({stored.created_with})."
        )
    if add_teacher == (config.num_views is not None):
        raise ConfigError(
            f"either `num_views` or `add_teacher` must be given, got {'both' if add_teacher else 'neither'}. For both extend "
            "twice, the views first: new members answer all views that are there."
        )
    if teacher and add_teacher:
        raise ConfigError("`teacher` is for more views, got it with `add_teacher`. Leave it out.")
    signals = (TOPK,) if add_teacher else (TOPK, SAMPLED)
    if stored.candidates is not None or stored.signal not in signals:
        found = f"`signal` {stored.signal}" if stored.candidates is None else "views that were chosen among candidates"
        raise ConfigError(
            f"{'new members' if add_teacher else 'more views'} need views not chosen among candidates and the `signal` "
            f"{' or '.join(signals)}, found {found}. Reinforce the base again."
        )
    if stored.mixing_scope == schema.STORED_PARTNERS or plus.views_hash(0) is None:
        raise ConfigError(
            "a dataset to be extended must hold hashes of what its teacher saw (`views_hash`), found none: it was imported. "
            "Reinforce its base again."
        )
    rows = np.setdiff1d(np.arange(stored.num_rows), stored.skipped_rows)
    if not np.array_equal(plus.source_rows[: plus.num_reinforced], rows):
        raise ConfigError(
            f"all {len(rows)} reinforced rows must be there in their order, found {plus.num_reinforced}. Open the dataset "
            "again, without selecting or shuffling rows."
        )
    if config.num_views is not None and config.num_views <= stored.num_views:
        raise ConfigError(
            f"`num_views` must be more than the {stored.num_views} views that are stored, got {config.num_views}. Raise it; to "
            "use fewer, give `num_views` to load_reinforced."
        )
    if config.num_views is not None and schema.EXTENDED_FROM in stored.teacher:
        raise ConfigError(
            "more views need a teacher whose members were all asked at once, but here "
            f"{stored.teacher[schema.EXTENDED_FROM]['num_members']} of them stand in the average with their stored top-K "
            "answers. Add views to the dataset as it was before, then the members again."
        )
    if not stored.teacher["members"]:
        raise FormatError("`teacher.members` of the provenance must name the teacher, found none. Fetch it again.")
    here = library_versions()
    changed = stored.differences(replace(stored, library_versions=here))
    if changed and config.num_views is not None:
        wanted = " ".join(f"{name}=={v}" for name, v in stored.library_versions.items() if here.get(name) != v)
        raise FingerprintMismatchError(
            "more views must be made with the library versions of the stored ones, or the dataset would be a mixture, found "
            f"{', '.join(changed)}. Run `pip install {wanted}`, or reinforce the base again."
        )


def asked_teacher(
    plus: ReinforcedDataset,
    teacher: Teacher | TeacherNames | None,
    add_teacher: Teacher | TeacherNames | None,
    **settings: Any,
) -> Teacher:
    """Returns the teacher that an extension asks: the new members, or that of the stored views; see `same_teacher`."""
    if add_teacher is not None:
        settings = {"temperature": 1.0, "classes": None, **settings}  # those of the others are not theirs
    given = teacher if add_teacher is None else add_teacher
    return same_teacher(given, plus.provenance, device=process_state().device, **settings)


def extend_job(plus: ReinforcedDataset, teacher: Teacher, config: ExtendConfig) -> Job:
    """Returns the run that `extend` makes of a dataset that `check_extension` has passed.

    The teacher is that of the stored views where `config.num_views` is given; else it consists of the new members.

    Raises:
        ConfigError: `output_dir` is the folder of the dataset that is extended.
        DataError: A label is not one of the new members' classes.
        TeacherError: The teacher is not the one that made the stored views; or the new members do not belong to it.
    """
    stored = plus.provenance
    views = EarlierViews(plus)
    base = plus.plus.select_columns([name for name in plus.plus.column_names if not schema.is_reserved(name)])
    if config.num_views is None:
        _check_new_members(stored, teacher)
        changes = _with_members(stored, teacher)
        first_new = 0
    else:
        _check_same_teacher(stored, teacher)
        changes = {"num_views": config.num_views}
        first_new = stored.num_views
    labels = None if stored.label_column is None else checked_labels(base, stored.label_column, teacher)
    provenance = replace(stored, **changes, skipped_rows=[], created_with=f"hf_dr {__version__}")
    provenance.check()
    folder = expanded(config.output_dir) / provenance.config_name
    if (folder / schema.PROVENANCE_FILE).exists() and Provenance.read(folder).fingerprint == stored.fingerprint:
        raise ConfigError(
            f"`output_dir` must be another folder than that of the dataset which is extended, got {config.output_dir}. "
            "Choose another."
        )
    plan = Plan(provenance, plus.augmentation, plus.undecoded_images, base, folder, labels)
    maker = _StoredViewMaker(plan.view_maker(), stored.skipped_rows, first_new)
    labeller = (_MoreMembers if config.num_views is None else _MoreViews)(teacher, provenance, views)
    source = choose_source(maker, labeller, config.batch_size, config.num_workers, config.augment_on)
    # The teacher of the stored views was compared when they were made.
    allowed = config.allow_disagreement or config.num_views is not None
    return Job(plan, source, allow_disagreement=allowed, check_rows=views.check)


def _check_same_teacher(stored: Provenance, teacher: Teacher) -> None:
    here = teacher.provenance()
    changed = stored.differences(replace(stored, teacher=here))
    if changed:
        there, given = (
            " + ".join(str(member.get("id")) for member in each["members"]) for each in (stored.teacher, here)
        )
        raise TeacherError(
            f"more views must be answered by the teacher of the stored ones, {there}, in the same precision, on the same "
            f"kind of device, found {given} with {', '.join(changed)}. Pass that teacher, made as it was then."
        )


def _check_new_members(stored: Provenance, teacher: Teacher) -> None:
    if teacher.num_classes != stored.num_classes:
        raise TeacherError(
            f"new members must answer over the stored {stored.num_classes} classes, found {teacher.num_classes}. Name "
            "others, or pass `classes` (--teacher_classes)."
        )
    if teacher.num_folds > 1 or any("left_out" in member for member in stored.teacher["members"]):
        raise TeacherError(
            "new members cannot be averaged in where teachers answer for the folds that they have not seen: how many stand in "
            "a stored answer is not the same in all rows. Reinforce the base with all members."
        )
    known = {member.get("weights_hash"): member.get("id") for member in stored.teacher["members"]}
    for member in teacher.members:
        if member.weights_hash in known:
            raise TeacherError(
                f"new members must not be in the ensemble yet, but {member.id} has the weights of its "
                f"{known[member.weights_hash]}. Name another."
            )


def _with_members(stored: Provenance, teacher: Teacher) -> dict[str, Any]:
    """What a provenance says of the teacher and the libraries, once new members were averaged into the stored answers."""
    here = teacher.provenance()
    members = stored.teacher["members"]
    before = {
        "dataset": stored.fingerprint,
        "num_members": len(members),
        **{key: value for key, value in stored.teacher.items() if key not in ("members", "num_classes")},
        "library_versions": stored.library_versions,
    }
    ensemble = {**here, "members": [*members, *here["members"]], schema.EXTENDED_FROM: before}
    return {"teacher": ensemble, "library_versions": library_versions()}


class EarlierViews:
    """Stored answers and hashes of the dataset that is extended, by the rows of its base."""

    def __init__(self, plus: ReinforcedDataset) -> None:
        stored = plus.provenance
        self.num_views = stored.num_views
        self._plus = with_all_views(plus)
        self._image_hashes = plus.image_hashes
        self._checked: set[int] = set()  # shards
        # Where each row of the base stands in the dataset; -1 for those without views.
        self._places = np.full(stored.num_rows, -1)
        self._places[plus.source_rows[: plus.num_reinforced]] = np.arange(plus.num_reinforced)

    def answers(self, span: Span, num_views: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids and log-probabilities (N, K) of a span of the new dataset's V views; zeros where none are stored."""
        stored = self._plus.provenance
        count = span.stop - span.start
        ids_NK = np.zeros((count, stored.top_k), id_dtype(stored.num_classes))
        logprobs_NK = np.zeros((count, stored.top_k), np.float16)
        for n in range(count):
            row, view = divmod(span.start + n, num_views)
            place = int(self._places[row])
            if view < self.num_views and place >= 0:
                ids_NK[n], logprobs_NK[n] = self._plus.teacher_answer(place, view)
        return ids_NK, logprobs_NK

    def check(self, rows: CompleteRows) -> None:
        """Refuses rows of a shard whose stored views are not what was drawn again, or a shard that is not what was written."""
        shard = int(rows.columns[schema.SOURCE_INDEX][0]) // self._plus.provenance.shard_size
        # What is taken over gets new digests, which must not make good what was changed. Rows in memory have no shards.
        if self._plus.shards and shard not in self._checked:
            check_digests(self._plus.shards[shard])
            self._checked.add(shard)
        for n, row in enumerate(rows.columns[schema.SOURCE_INDEX].tolist()):
            place = int(self._places[row])
            if place < 0:
                continue
            if not rows.valid[n]:
                raise DataError(f"the image of row {row} must be readable, as it was before. Fetch it again.")
            views_hash = combine_hashes(rows.view_hashes[n, : self.num_views])
            for what, expected, found in (
                ("image", self._image_hashes[place], rows.columns[schema.IMAGE_HASH][n]),
                (f"{self.num_views} views", self._plus.views_hash(place), views_hash),
            ):
                if expected != found:
                    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
                    raise ReplayError(
                        f"the {what} of row {row} must be what was reinforced (hash {int(expected or 0):016x}), found another "
                        f"({int(found):016x}), with {versions}. Run `hf-dr verify`: the dataset is damaged, its base is "
                        "another, or it was made with other versions."
                    )


class _ExtendingLabeller(Labeller):
    """Labels batches some of whose views have stored answers."""

    def __init__(self, teacher: Teacher, provenance: Provenance, stored: EarlierViews) -> None:
        super().__init__(teacher, provenance)
        self._stored = stored


class _MoreViews(_ExtendingLabeller):
    """The teacher is asked for the new views; the stored ones keep their answers."""

    def is_asked(self, span: Span) -> np.ndarray:
        return np.arange(span.start, span.stop) % self.provenance.num_views >= self._stored.num_views

    def short_answers(self, span: Span, answers_BC: torch.Tensor) -> ShortAnswers:
        new_N = self.is_asked(span)
        new_answers = self.shorten(answers_BC, np.arange(span.start, span.stop)[new_N])

        def both() -> tuple[np.ndarray, np.ndarray]:
            ids_NK, logprobs_NK = self._stored.answers(span, self.provenance.num_views)
            ids_NK[new_N], logprobs_NK[new_N] = new_answers()
            return ids_NK, logprobs_NK

        return both


class _MoreMembers(_ExtendingLabeller):
    """New members are asked for all views; their answers are averaged into the stored ones."""

    def short_answers(self, span: Span, answers_BC: torch.Tensor) -> ShortAnswers:
        ids_NK, logprobs_NK = self._stored.answers(span, self.provenance.num_views)
        before = self.provenance.teacher[schema.EXTENDED_FROM]["num_members"]
        averaged_NC = add_members(ids_NK, logprobs_NK, answers_BC, before, len(self.teacher.members))
        return self.shorten(averaged_NC, np.arange(span.start, span.stop))


class _StoredViewMaker(ViewMaker):
    """Draws the views again; a row that had no readable image has none, whatever stands in its place now."""

    def __init__(self, maker: ViewMaker, skipped: list[int], first_new: int) -> None:
        super().__init__(
            maker.images, maker.augmentation, maker.num_views, maker.seed, maker.matching_size, first_new=first_new
        )
        self._skipped = frozenset(skipped)

    def image(self, example: int) -> PIL.Image.Image:
        if example in self._skipped:
            raise DataError(f"row {example} has no stored views")
        return super().image(example)

"""Adding to a "+" dataset: more views of its examples, or more members of its teacher; what is stored is not asked again."""

from __future__ import annotations

import copy
import os
from dataclasses import replace

import datasets
import numpy as np
import PIL.Image

from hf_dr.errors import ConfigError, DataError, FingerprintMismatchError, FormatError, ReplayError, TeacherError
from hf_dr.generation.config import ExtendConfig, ReinforceConfig
from hf_dr.generation.job import Job, library_versions, open_result
from hf_dr.generation.verify import teacher_from_provenance
from hf_dr.processes import process_state
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.base_dataset import check_labels
from hf_dr.store.features import combine_hashes
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import (
    EXTENDED_FROM,
    IMAGE_HASH,
    PROVENANCE_FILE,
    SOURCE_INDEX,
    STORED_PARTNERS,
    TEACHER_IDS,
    TEACHER_LOGPROBS,
    VIEWS_HASH,
    is_reserved,
)
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.signals import SAMPLED, TOPK
from hf_dr.teacher.topk import add_members, id_dtype
from hf_dr.version import __version__
from hf_dr.views.maker import ViewBatch, ViewMaker


def extend(
    plus: ReinforcedDataset | str | os.PathLike[str],
    config: ExtendConfig,
    *,
    teacher: Teacher | None = None,
    add_teacher: Teacher | None = None,
    name: str | None = None,
    base: datasets.Dataset | str | os.PathLike[str] | None = None,
) -> datasets.Dataset:
    """Makes a "+" dataset with more views, or with more members of the teacher, from one that is there; returns it.

    With `config.num_views` the stored views keep their answers, and the teacher is asked for the new ones only: the result is
    what `reinforce` gives for so many views at once. With `add_teacher` only the new members are asked, and averaged into the
    stored answers (`hf_dr.teacher.topk.add_members`). In both cases all stored views are drawn again, and a row whose pixels
    are not
    those that the teacher saw ends the run.

    Call it in every process that accelerate launched, as `reinforce`; a run that was stopped goes on where it was.

    Args:
        plus: The "+" dataset, or its folder or Hub id.
        config: See `ExtendConfig`.
        teacher: For more views: the teacher that made the stored ones. Default: loaded as the provenance names it.
        add_teacher: The new members, over the same classes.
        name: With a path: the configuration.
        base: With a path to an overlay: see `load_reinforced`.

    Raises:
        ConfigError: The dataset cannot be extended, or not in this way.
        TeacherError: The teacher is not the one that made the stored views; or the new members do not belong to it.
        FingerprintMismatchError: For more views: other library versions than those that made the stored ones are installed.
        ReplayError: The pixels of a row are not those that were reinforced.
    """
    if not isinstance(plus, ReinforcedDataset):
        plus = load_reinforced(plus, name, base=base)
    elif name is not None or base is not None:
        raise ConfigError("`name` and `base` must come with a path, got an opened dataset. Leave them out.")
    check_extension(plus, config, teacher=teacher is not None, add_teacher=add_teacher is not None)
    asked = add_teacher or teacher or teacher_from_provenance(plus.provenance, device=process_state().device)
    job = ExtendJob(plus, asked, config)
    job.run()
    return open_result(job)


def check_extension(plus: ReinforcedDataset, config: ExtendConfig, *, teacher: bool, add_teacher: bool) -> None:
    """Checks what can be known without a teacher.

    Args:
        plus: What is to be extended.
        config: How.
        teacher: Whether the teacher of the stored views is given.
        add_teacher: Whether new members are given.

    Raises:
        ConfigError: See `extend`.
        FingerprintMismatchError: See `extend`.
        FormatError: The provenance names no teacher.
    """
    stored = plus.provenance
    if add_teacher == (config.num_views is not None):
        raise ConfigError(
            f"either `num_views` or `add_teacher` must be given, got {'both' if add_teacher else 'neither'}. For both extend "
            "twice, the views first: new members answer all views that are there."
        )
    if teacher and add_teacher:
        raise ConfigError(
            "`teacher` is for more views, got it with `add_teacher`. Leave it out: it is not asked again."
        )
    signals = (TOPK,) if add_teacher else (TOPK, SAMPLED)
    if stored.candidates is not None or stored.signal not in signals:
        found = f"`signal` {stored.signal}" if stored.candidates is None else "views that were chosen among candidates"
        raise ConfigError(
            f"{'new members' if add_teacher else 'more views'} need views not chosen among candidates and the `signal` "
            f"{' or '.join(signals)}, found {found}. Reinforce the base anew."
        )
    if stored.mixing_scope == STORED_PARTNERS or plus.views_hash(0) is None:
        raise ConfigError(
            "a dataset to be extended must hold hashes of what its teacher saw (`views_hash`), found none: it was imported. "
            "Reinforce its base anew."
        )
    rows = np.setdiff1d(np.arange(stored.num_rows), stored.skipped_rows)
    if not np.array_equal(plus.source_rows[: plus.num_reinforced], rows):
        raise ConfigError(
            f"all {len(rows)} reinforced rows must be there in their order, found {plus.num_reinforced}. Open the dataset "
            "anew, without selecting or shuffling rows."
        )
    if config.num_views is not None and config.num_views <= stored.num_views:
        raise ConfigError(
            f"`num_views` must be more than the {stored.num_views} views that are stored, got {config.num_views}. Raise it; to "
            "use fewer, give `num_views` to load_reinforced."
        )
    if config.num_views is not None and EXTENDED_FROM in stored.teacher:
        raise ConfigError(
            "more views need a teacher whose members were all asked at once, but here "
            f"{stored.teacher[EXTENDED_FROM]['num_members']} of them stand in the average with their stored top-K answers. Add "
            "views to the dataset as it was before, then the members again."
        )
    if not stored.teacher.get("members"):
        raise FormatError("`teacher.members` of the provenance must name the teacher, found none. Fetch it again.")
    here = library_versions()
    changed = stored.differences(replace(stored, library_versions=here))
    if changed and config.num_views is not None:
        wanted = " ".join(f"{name}=={v}" for name, v in stored.library_versions.items() if here.get(name) != v)
        raise FingerprintMismatchError(
            "more views must be made with the library versions of the stored ones, or the dataset would be a mixture, found "
            f"{', '.join(changed)}. Run `pip install {wanted}`, or reinforce the base anew."
        )


class ExtendJob(Job):
    """A run that adds to a "+" dataset: to its views where `config.num_views` is given, else to its teacher.

    Args:
        plus: Checked by `check_extension`.
        teacher: Who is asked: the teacher of the stored views, or the new members.
        config: See `ExtendConfig`.
    """

    def __init__(self, plus: ReinforcedDataset, teacher: Teacher, config: ExtendConfig) -> None:
        stored = plus.provenance
        self._plus = copy.copy(plus)
        self._plus.num_views = stored.num_views  # all, whatever training uses
        self._image_hashes = plus.image_hashes
        self._row_in_plus = np.full(stored.num_rows, -1)
        self._row_in_plus[plus.source_rows[: plus.num_reinforced]] = np.arange(plus.num_reinforced)
        base = plus.plus.select_columns([column for column in plus.plus.column_names if not is_reserved(column)])
        self.teacher, self.augmentation = teacher, plus.augmentation
        if config.num_views is None:
            self._check_new_members(base)
            provenance = self._with_members()
        else:
            self._check_same_teacher()
            provenance = replace(stored, num_views=config.num_views)
        provenance = replace(provenance, skipped_rows=[], created_with=f"hf_dr {__version__}")
        self.config = ReinforceConfig(
            config.output_dir,
            num_views=provenance.num_views,
            top_k=stored.top_k,
            on_bad_image=stored.on_bad_image,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
        )
        self._set_up(provenance, plus.undecoded_images, base)
        self._maker = _Maker(self._maker, stored.skipped_rows, 0 if config.num_views is None else stored.num_views)
        place = self.folder / PROVENANCE_FILE
        if place.exists() and Provenance.read(self.folder).fingerprint == stored.fingerprint:
            raise ConfigError(
                f"`output_dir` must be another folder than that of the dataset which is extended, got {config.output_dir}. "
                "Choose another."
            )

    def _check_same_teacher(self) -> None:
        stored, here = self._plus.provenance, self.teacher.provenance()
        changed = stored.differences(replace(stored, teacher=here))
        if changed:
            there, given = (
                " + ".join(str(member.get("id")) for member in each["members"]) for each in (stored.teacher, here)
            )
            raise TeacherError(
                f"more views must be answered by the teacher of the stored ones, {there}, in the same precision, on the same "
                f"kind of device, found {given} with {', '.join(changed)}. Pass that teacher, made as it was then."
            )

    def _check_new_members(self, base: datasets.Dataset) -> None:
        stored = self._plus.provenance
        if self.teacher.num_classes != stored.num_classes:
            raise TeacherError(
                f"new members must answer over the stored {stored.num_classes} classes, found {self.teacher.num_classes}. Name "
                "others, or pass `classes` (--teacher_classes)."
            )
        if stored.label_column is not None:
            check_labels(base, stored.label_column, self.teacher)
        known = {member.get("weights_hash"): member.get("id") for member in stored.teacher["members"]}
        for member in self.teacher.members:
            if member.weights_hash in known:
                raise TeacherError(
                    f"new members must not be in the ensemble yet, but {member.id} has the weights of its "
                    f"{known[member.weights_hash]}. Name another."
                )

    def _with_members(self) -> Provenance:
        stored, here = self._plus.provenance, self.teacher.provenance()
        members = stored.teacher["members"]
        before = {
            "dataset": stored.fingerprint,
            "num_members": len(members),
            **{key: value for key, value in stored.teacher.items() if key not in ("members", "num_classes")},
            "library_versions": stored.library_versions,
        }
        teacher = {**here, "members": [*members, *here["members"]], EXTENDED_FROM: before}
        return replace(stored, teacher=teacher, library_versions=library_versions())

    def _answer(self, batch: ViewBatch) -> dict[str, np.ndarray]:
        """Stored answers and new ones: side by side, or averaged."""
        stored = self._plus.provenance
        flat = np.arange(batch.span.start, batch.span.stop)
        rows, views = np.divmod(flat, self.provenance.num_views)
        ids = np.zeros((len(rows), stored.top_k), id_dtype(stored.num_classes))
        logprobs = np.zeros((len(rows), stored.top_k), np.float16)
        there = (views < stored.num_views) & (self._row_in_plus[rows] >= 0)
        for n in np.flatnonzero(there):
            ids[n], logprobs[n] = self._plus.teacher_answer(int(self._row_in_plus[rows[n]]), int(views[n]))
        new_BC = self._ask(batch.pixels)
        if self._maker.first_kept:
            new = views >= stored.num_views
            ids[new], logprobs[new] = self._keep(new_BC, flat[new])
        else:
            before = self.provenance.teacher[EXTENDED_FROM]["num_members"]
            averaged = add_members(ids, logprobs, new_BC, before, len(self.teacher.members))
            ids, logprobs = self._keep(averaged, flat)
        return {TEACHER_IDS: ids, TEACHER_LOGPROBS: logprobs}

    def _complete_rows(self, columns: dict[str, np.ndarray], valid: np.ndarray) -> None:
        """Refuses rows whose stored views are not what was drawn again."""
        count = self._plus.provenance.num_views
        for n, row in enumerate(columns[SOURCE_INDEX].tolist()):
            place = int(self._row_in_plus[row])
            if place < 0:
                continue
            if not valid[n]:
                raise DataError(
                    f"the image of row {row} must be readable, as it was when its views were stored. Fetch it again."
                )
            for what, expected, found in (
                ("image", self._image_hashes[place], columns[IMAGE_HASH][n]),
                (f"{count} views", self._plus.views_hash(place), combine_hashes(columns[VIEWS_HASH][n, :count])),
            ):
                if expected != found:
                    versions = ", ".join(f"{name} {v}" for name, v in library_versions().items())
                    raise ReplayError(
                        f"the {what} of row {row} must be what was reinforced (hash {int(expected or 0):016x}), found another "
                        f"({int(found):016x}), with {versions}. Run `hf-dr verify`: the dataset is damaged, its base is "
                        "another, or it was made with other versions."
                    )
        super()._complete_rows(columns, valid)


class _Maker(ViewMaker):
    """Draws the views again; a row that had no readable image has none, whatever stands in its place now."""

    def __init__(self, maker: ViewMaker, skipped: list[int], first_kept: int) -> None:
        settings = maker.images, maker.augmentation, maker.num_views, maker.seed, maker.matching_size
        super().__init__(*settings, first_kept=first_kept)
        self._skipped = frozenset(skipped)

    def image(self, example: int) -> PIL.Image.Image:
        """Decodes the image of one example.

        Raises:
            DataError: It cannot be decoded, or could not when the dataset was made.
        """
        if example in self._skipped:
            raise DataError(f"row {example} has no stored views")
        return super().image(example)

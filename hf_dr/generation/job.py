"""The main job: draw views, ask the teacher, write shards. Resumable, and the same bytes however it is run.

`plan` settles what is made, `sources` makes views, `labelling` what is stored of them, `folder` knows what is there already.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import datasets
import filelock
import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from hf_dr.allocator import keep_freed_memory
from hf_dr.files import take
from hf_dr.generation.agreement import LEAST_ROWS, Agreement, sample_agreement
from hf_dr.generation.config import ReinforceConfig, check_config
from hf_dr.generation.estimate import Estimate, estimate
from hf_dr.generation.folder import WHOLE, Part, RunFolder, RunProgress
from hf_dr.generation.labelling import CompleteRows, Labeller, RowCheck, RowStream, ViewColumns, best_candidates
from hf_dr.generation.plan import Plan, augmentation_of, plan_run
from hf_dr.generation.sources import AnswerSource, choose_source, cut_spans
from hf_dr.processes import describe_processor, on_main, process_state, warm_up_kernels
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.join import pixels_digest
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.base_dataset import undecoded_images
from hf_dr.store.labels import check_dataset
from hf_dr.store.named_files import as_table, describe_named_files
from hf_dr.store.schema import AUG_PREFIX, SOURCE_INDEX, TEACHER_IDS
from hf_dr.store.shards import ShardWriter, row_groups
from hf_dr.teacher.ensemble import Teacher, is_teacher
from hf_dr.teacher.names import TeacherNames
from hf_dr.teacher.signals import IMAGE_TAIL
from hf_dr.views.augmentation import NO_PARTNER, PARTNER, Augmentation
from hf_dr.views.device.overlap import Background

logger = logging.getLogger(__name__)


def reinforce(
    dataset: datasets.Dataset,
    teacher: Teacher | TeacherNames,
    augmentation: Augmentation | str | Sequence[Any],
    config: ReinforceConfig,
    *,
    base: dict[str, Any] | None = None,
) -> ReinforcedDataset:
    """Reinforces a dataset and returns the "+" dataset, ready to train on (section 3 of arXiv:2303.08983).

    Call it in every process that accelerate launched; each does its share of the shards. A run that was stopped goes
    on where it was.

    Examples:
        ```python
        from datasets import load_dataset
        from hf_dr import ReinforceConfig, reinforce

        images = load_dataset("uoft-cs/cifar100", split="train")
        config = ReinforceConfig("cifar100-plus", num_views=8, label_column="fine_label")
        plus = reinforce(images, "runs/cifar100-teacher", "randaug", config)
        ```

    Args:
        dataset: A dataset with an image column; the images may have any mode and size.
        teacher: Answers over the dataset's classes: a `Teacher`, or one or several names as `Teacher.from_pretrained` takes
            them, which are loaded onto the accelerator if there is one.
        augmentation: Drawn V times for each example: an `Augmentation`; the name of one, for views of 224 pixels (see
            `Augmentation.named`); or a list of ops, objects or as in YAML.
        config: See `ReinforceConfig`.
        base: How to name the base dataset in the provenance: `id`, `config`, `revision`. Default: what `dataset` knows.

    Raises:
        ConfigError: A setting does not fit the teacher or the dataset.
        DataError: A column is missing, a label is out of range, an image is undecodable.
        FingerprintMismatchError: The folder was begun with other settings.
        TeacherError: The teacher's classes are not the dataset's, or its answers are not finite; or its most probable class is
            the label no more often than by chance (`Agreement.is_near_chance`), and `config.allow_disagreement` is not set.
    """
    check_config(config, ReinforceConfig)
    augmentation = augmentation_of(augmentation)
    if not is_teacher(teacher):
        check_dataset(dataset, config.image_column, config.label_column)  # before minutes of loading
        teacher = Teacher.from_pretrained(teacher)
    job = reinforce_job(dataset, teacher, augmentation, config, base=base)
    job.run()
    return job.result()


def reinforce_job(
    dataset: datasets.Dataset,
    teacher: Teacher,
    augmentation: Augmentation,
    config: ReinforceConfig,
    *,
    base: dict[str, Any] | None = None,
) -> Job:
    """Returns the run that `reinforce` makes, checked; the same arguments and errors."""
    plan = plan_run(dataset, teacher, augmentation, config, base=base)
    if teacher.num_folds > 1:
        teacher.check_folds(pixels_digest(undecoded_images(dataset, plan.provenance.image_column)))
    advice = (
        f"A corrected image makes another dataset: delete {plan.folder} first, or choose another `output_dir`. Or pass "
        "`on_bad_image=skip`: the run goes on, and such images get no reinforcement."
    )
    labeller = Labeller(teacher, plan.provenance, plan.labels, advice)
    source = choose_source(plan.view_maker(), labeller, config.batch_size, config.num_workers, config.augment_on)
    return Job(plan, source, allow_disagreement=config.allow_disagreement)


class Job:
    """One run: `run` it, or `estimate` what it would take.

    Args:
        plan: What is made.
        source: Gives the columns of its views.
        allow_disagreement: Whether the run goes on where the teacher agrees with the labels no better than by chance.
        check_rows: What must hold of rows before they are written.
    """

    def __init__(
        self, plan: Plan, source: AnswerSource, *, allow_disagreement: bool = False, check_rows: RowCheck | None = None
    ) -> None:
        self.plan = plan
        self.source = source
        self.provenance = plan.provenance
        self.folder = plan.folder
        self._output = RunFolder(plan.folder, plan.provenance)
        self._allow_disagreement = allow_disagreement
        self._check_rows = check_rows
        # Unmixed views that this rank has made, and those of them whose most probable class is the label.
        self._compared = np.zeros(2, np.int64)

    def run(self, part: Part = WHOLE) -> None:
        """Makes the missing shards, or a part of them; every process of the launch calls it."""
        self._prepare_process()
        state = process_state()
        on_main(state, self._check_sample)
        lock = part.lock(self.folder, state.process_index)
        try:  # releases the lock in any case: in a notebook the error's traceback would keep it
            missing = on_main(state, lambda: self._open(lock, part))
            take(lock)  # rank 0 has it since `_open`; a lock can be taken twice
            mine = missing[state.process_index :: state.num_processes]
            progress = RunProgress(self._output, part, missing, mine, state)
            if state.is_main_process:
                self._log_plan(missing, state)
            self._make_shards(mine, progress)
            state.wait_for_everyone()
            self._log_agreement(state)
            if state.is_main_process:
                with self._output.gate():  # the last of several parts finds all shards
                    self._complete(progress, part)
            state.wait_for_everyone()
        finally:
            lock.release(force=True)

    def estimate(self, num_batches: int = 4) -> Estimate:
        """Times a few batches and returns what the whole run would take; writes nothing."""
        self._prepare_process()
        self._output.check()
        return estimate(self.plan, self.source, num_batches, self._sample())

    def check_agreement(self, found: Agreement | None) -> None:
        """Refuses a teacher whose answers to a sample agree with the labels no better than by chance, unless allowed."""
        if found is not None and not self._allow_disagreement:
            found.check()

    def result(self) -> ReinforcedDataset:
        """Opens what the run has made; an overlay shows the images of its base."""
        base = self.plan.images if self.provenance.overlay else None
        return load_reinforced(self.folder.parent, self.provenance.config_name, base=base)

    def _prepare_process(self) -> None:
        warm_up_kernels()
        if self.source.device.type == "cpu":
            keep_freed_memory()

    def _check_sample(self) -> None:
        """Checks the teacher's answers to a sample before anything is written; a run that goes on did so at its start."""
        if self._allow_disagreement or self.provenance.num_rows < LEAST_ROWS:  # what `check_agreement` never refuses
            return
        self._output.check()
        if not any(path.exists() for path in self._output.shards):
            self.check_agreement(self._sample())

    def _sample(self) -> Agreement | None:
        return sample_agreement(self.plan, self.source.labeller, self.source.batch_size)

    def _log_agreement(self, state: PartialState) -> None:
        """Says how many of the views that were made have the label as their most probable class."""
        counts = gather_object([self._compared]) if state.num_processes > 1 else [self._compared]
        made, hits = np.sum(counts, axis=0).tolist()
        if made and state.is_main_process:
            logger.info("The most probable class is the label in %s.", Agreement(made, hits, 0))

    def _open(self, lock: filelock.BaseFileLock, part: Part) -> list[int]:
        """Opens or resumes the folder; returns the missing shards."""
        missing = self._output.open(self.plan.base, lock, part)
        if missing:
            self._output.note_processor(describe_processor(self.source.device))
        return missing

    def _log_plan(self, missing: list[int], state: PartialState) -> None:
        if not missing:
            logger.info("All shards to be made are there already; nothing to do.")
            return
        named = describe_named_files(self.plan.base)
        if named is not None:
            logger.warning("Copying %s into the dataset. Leave the column out if they are not to be published.", named)
        logger.info(
            "Making %d of %d shards in %d process(es) with %d worker(s) each, on %s.",
            len(missing),
            self.provenance.num_shards,
            state.num_processes,
            self.source.workers,
            self.source.device.type,
        )

    def _make_shards(self, shards: list[int], progress: RunProgress) -> None:
        provenance = self.provenance
        spans = cut_spans(provenance, shards, self.source.batch_size, self.source.first_new)
        # An error of the thread, or Ctrl-C, ends the run; what the thread was given before is written first.
        with (
            progress,
            _deleting_unfinished() as unfinished,
            closing(Background(depth=4)) as background,
            closing(self.source.answers(spans)) as answers,
        ):
            views: Iterator[ViewColumns] = answers
            if provenance.candidates is not None:
                views = best_candidates(views, provenance.num_candidates, provenance.num_views)
            rows = RowStream(progress.counted(views), provenance.num_views, with_tails=provenance.signal == IMAGE_TAIL)
            features = self.plan.features

            def finish(writer: ShardWriter) -> None:
                marker = writer.finish()
                unfinished.remove(writer)
                progress.wrote(marker.file_bytes)

            for shard in shards:
                writer = ShardWriter(self._output.shards[shard], features, provenance.fingerprint)
                unfinished.append(writer)
                for numbers in row_groups(provenance, shard):
                    group = rows.take(numbers)
                    if self._check_rows is not None:
                        self._check_rows(group)
                    self._compare(group)
                    background.submit(self._write, writer, group)
                background.submit(finish, writer)
            background.wait()

    def _write(self, writer: ShardWriter, rows: CompleteRows) -> None:
        """Writes rows with the base's columns of them, whose images are copied here: in the thread, too."""
        numbers = rows.columns[SOURCE_INDEX]
        first, last = int(numbers[0]), int(numbers[-1]) + 1
        column = self.provenance.image_column
        base = as_table(self.plan.base, first, last, image_column=column, readable=rows.valid)
        writer.write(base, rows.columns, rows.valid)

    def _compare(self, rows: CompleteRows) -> None:
        """Counts the unmixed views of rows, and those whose most probable class is the label."""
        if self.plan.labels is None:
            return
        favourites_RV = rows.columns[TEACHER_IDS][:, :, 0]
        counted_RV = np.repeat(rows.valid[:, None], favourites_RV.shape[1], axis=1)
        if AUG_PREFIX + PARTNER in rows.columns:
            counted_RV &= rows.columns[AUG_PREFIX + PARTNER] == NO_PARTNER
        agrees_RV = favourites_RV == self.plan.labels[rows.columns[SOURCE_INDEX], None]
        self._compared += counted_RV.sum(), (agrees_RV & counted_RV).sum()

    def _complete(self, progress: RunProgress, part: Part) -> None:
        """Writes the final provenance and the card, if all shards are there."""
        provenance = self.provenance
        missing = self._output.missing(range(provenance.num_shards))
        if missing:
            others = sorted({index % part.count for index in missing})
            logger.info(
                "This part is done%s. Still to come: %d of %d shards, from %s of %d. If one of these was killed, run it "
                "again, or run all without `part` when none is running.",
                progress.summary(),
                len(missing),
                provenance.num_shards,
                f"part{'s' if len(others) > 1 else ''} {', '.join(map(str, others))}",
                part.count,
            )
            return
        self._output.complete(progress.summary())


@contextmanager
def _deleting_unfinished() -> Iterator[list[ShardWriter]]:
    """Gives a list for the shards that are being written; those that are in it at the end of the block are deleted.

    Those that are finished leave it: each holds the schema with all class names.
    """
    writers: list[ShardWriter] = []
    try:
        yield writers
    finally:
        for writer in writers:
            writer.__exit__(None, None, None)

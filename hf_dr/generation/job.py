"""The main job: draw views, ask the teacher, write shards. Resumable, and the same bytes however it is run."""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import math
import re
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import filelock
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_dr.errors import ConfigError, DataError, HfDrError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.folder import WHOLE, Part, check_same_run, gate, missing_shards, open_run
from hf_dr.generation.progress import Estimate, Progress, written_size
from hf_dr.processes import default_workers, process_state, quiet_worker, warm_up_kernels
from hf_dr.store.base_dataset import (
    as_table,
    check_dataset,
    check_labels,
    checked_origin,
    content_hash,
    load_parquet,
    sampled_rows,
    undecoded_images,
)
from hf_dr.store.card import write_card
from hf_dr.store.named_files import describe_named_files
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import (
    AUG_PREFIX,
    IMAGE_HASH,
    MAX_SHARDS,
    SOURCE_INDEX,
    TAIL_IDS,
    TAIL_LOGPROBS,
    TEACHER_IDS,
    TEACHER_LOGPROBS,
    VIEWS_HASH,
    combine_hashes,
    is_safe_name,
    reinforcement_features,
)
from hf_dr.store.shards import (
    ROW_GROUP_VIEWS,
    ShardWriter,
    content_version,
    read_marker,
)
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.signals import IMAGE_TAIL, SAMPLED, TOPK, ImageTails, sample, sampling_uniform
from hf_dr.teacher.topk import top_k
from hf_dr.text import format_bytes
from hf_dr.version import __version__
from hf_dr.views.augmentation import NAMED, Augmentation
from hf_dr.views.maker import Span, ViewBatch, ViewMaker

logger = logging.getLogger(__name__)

# A CPU's matrix kernels round differently for different batch sizes. There, the teacher always sees batches of this many
# views, cut at the same places, so that the columns do not depend on `batch_size`, workers or processes.
CPU_BATCH = 16
# These travel with the columns until rows are complete.
_VALID = "valid"
_SCORE = "score"  # of candidates: those with the lowest are kept
_ANSWERS = "answers"  # whole ones, (N, C)
_VERSIONED = ("numpy", "pillow", "timm", "torch", "torchvision", "transformers")


def reinforce(
    dataset: datasets.Dataset,
    teacher: Teacher,
    augmentation: Augmentation,
    config: ReinforceConfig,
    *,
    base: dict[str, Any] | None = None,
) -> datasets.Dataset:
    """Reinforces a dataset and returns the "+" dataset (section 3 of arXiv:2303.08983).

    Call it in every process that accelerate launched; each does its share of the shards. A run that was stopped goes
    on where it was.

    Args:
        dataset: With an image column; any mode and size of image.
        teacher: Answers over the dataset's classes.
        augmentation: Drawn V times for each example.
        config: See `ReinforceConfig`.
        base: How to name the base dataset in the provenance: `id`, `config`, `revision`. Default: what `dataset` knows.

    Raises:
        ConfigError: A setting does not fit the teacher or the dataset.
        DataError: A column is missing, a label is out of range, an image is undecodable.
        FingerprintMismatchError: The folder was begun with another configuration.
        TeacherError: The teacher's classes are not the dataset's, or its answers are not finite.
    """
    job = Job(dataset, teacher, augmentation, config, base=base)
    job.run()
    return open_result(job)


def open_result(job: Job) -> datasets.Dataset:
    """Returns the rows that a run has made."""
    shards = [job.folder / name for name in job.provenance.shard_names]
    return load_parquet(shards, job.provenance.split, version=content_version(shards))


class Job:
    """One run: checked when built, then `run` or `estimate`.

    Attributes:
        provenance: How the "+" dataset is made; complete before anything is written.
        folder: Where the shards go.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        teacher: Teacher,
        augmentation: Augmentation,
        config: ReinforceConfig,
        *,
        base: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.teacher, self.augmentation = config, teacher, augmentation
        image_column, label_column = check_dataset(dataset, config.image_column, config.label_column)
        known = checked_origin(dataset, config.files_from)
        if config.max_examples is not None and config.max_examples < len(dataset):
            dataset = dataset.select(range(config.max_examples))
        if config.top_k > teacher.num_classes:
            raise ConfigError(
                f"`top_k` must be between 1 and the teacher's {teacher.num_classes} classes, got {config.top_k}. Lower `top_k`."
            )
        if config.selects:
            _check_selection(config, augmentation, label_column)
        self._labels = check_labels(dataset, label_column, teacher) if label_column is not None else None
        images, rows = undecoded_images(dataset, image_column), len(dataset)
        stored = [c for c in dataset.column_names if not (config.overlay and c == image_column)]
        shard_size = config.shard_size or min(1024, math.ceil(rows / 8))
        if shard_size * MAX_SHARDS < rows:
            raise ConfigError(
                f"`shard_size` must be at least {-(-rows // MAX_SHARDS)} for {rows} rows in {MAX_SHARDS} files at most, got "
                f"{shard_size}. Raise it."
            )
        split = str(dataset.split or "train")
        if not is_safe_name(split):
            split = re.sub(r"[^A-Za-z0-9_.-]+.*", "", split) or "train"  # `train[:100]` is a part of `train`
        config_name = config.config_name or _name_of(augmentation)
        provenance = Provenance(
            config_name=config_name,
            split=split,
            augmentation=augmentation.to_list(),
            num_views=config.num_views,
            top_k=config.top_k,
            num_classes=teacher.num_classes,
            seed=config.seed,
            shard_size=shard_size,
            num_rows=rows,
            overlay=config.overlay,
            image_column=image_column,
            label_column=label_column,
            mixing_scope=config.mixing_scope if augmentation.mixes else "dataset",
            on_bad_image=config.on_bad_image,
            base={**known, **(base or {}), "content_hash": content_hash(images)},
            teacher=teacher.provenance(),
            library_versions=library_versions(),
            created_with=f"hf_dr {__version__}",
            schema_version=3 if config.selects or config.signal != TOPK else 1,
            candidates={"num": config.num_candidates, "keep": config.keep} if config.selects else None,
            signal=config.signal,
        )
        self._set_up(provenance, images, dataset.select_columns(stored))

    def _set_up(self, provenance: Provenance, images: datasets.Dataset, base: datasets.Dataset) -> None:
        """Makes what a run of this provenance needs of the undecoded images and of the base's columns that are stored."""
        self.provenance, self._images, self._base = provenance, images, base
        self._features = datasets.Features(
            {
                **base.features,
                **reinforcement_features(
                    self.augmentation,
                    provenance.num_views,
                    provenance.top_k,
                    provenance.num_classes,
                    signal=provenance.signal,
                ),
            }
        )
        self.folder = Path(self.config.output_dir).expanduser() / provenance.config_name
        self._maker = ViewMaker(
            images,
            self.augmentation,
            provenance.num_candidates,
            provenance.seed,
            matching_size=provenance.shard_size if provenance.mixing_scope == "shard" else None,
        )

    # ------------------------------------------------------------------------------------------------------- running

    def run(self, part: Part = WHOLE) -> None:
        """Makes the missing shards; every process of the launch calls it.

        Args:
            part: Which of them, where several launches that know nothing of each other share the folder.
        """
        warm_up_kernels()
        state = process_state()
        lock = part.lock(self.folder)
        # Rank 0 prepares; what it finds wrong must stop every rank, so it is sent along with the list of what is missing.
        message: list[Any] = [None, None]
        if state.is_main_process:
            try:
                message[0] = self._prepare(lock, part)
            except HfDrError as error:
                message[1] = error
        if state.num_processes > 1:
            broadcast_object_list(message)
        missing, refusal = message
        if refusal is not None:
            raise refusal
        try:
            mine = missing[state.process_index :: state.num_processes]
            progress = Progress(self.folder, self.provenance, part, missing, mine, state)
            if state.is_main_process:
                self._log_plan(missing, state)
            self._make_shards(mine, progress)
            state.wait_for_everyone()
            if state.is_main_process:
                with gate(self.folder):  # the last of several parts finds all shards
                    self._complete(progress)
            state.wait_for_everyone()
        finally:
            lock.release()

    def _log_plan(self, missing: list[int], state: PartialState) -> None:
        if not missing:
            logger.info("All shards to be made are there already; nothing to do.")
            return
        named = describe_named_files(self._base)
        if named is not None:
            logger.warning("Copying %s into the dataset. Leave the column out if they are not to be published.", named)
        logger.info(
            "Making %d of %d shards in %d process(es) with %d worker(s) each, on %s.",
            len(missing),
            self.provenance.num_shards,
            state.num_processes,
            self.workers,
            self.teacher.device.type,
        )

    def _prepare(self, lock: filelock.BaseFileLock, part: Part) -> list[int]:
        """Opens or resumes the folder; returns the missing shards."""
        # Images come on top, so this is a lower bound.
        return open_run(self.folder, self.provenance, lock, self.config.num_views * self.config.top_k * 2, part)

    def _complete(self, progress: Progress) -> None:
        """Writes the final provenance and the card, if all shards are there."""
        missing = missing_shards(self.folder, self.provenance)
        if missing:
            logger.info(
                "This part is done%s. %d of %d shards are still to come from other parts; a run of any part, or of all, makes "
                "those that a killed one has left.",
                progress.summary(),
                len(missing),
                self.provenance.num_shards,
            )
            return
        markers = [read_marker(self.folder / name) for name in self.provenance.shard_names]
        self.provenance.skipped_rows[:] = [row for marker in markers for row in marker.skipped_rows]
        self.provenance.write(self.folder)
        write_card(self.folder.parent)
        total = sum(marker.file_bytes for marker in markers)
        logger.info(
            "%s: %d rows x %d views, %s in %d shards%s%s",
            self.folder,
            self.provenance.num_rows,
            self.config.num_views,
            format_bytes(total),
            len(markers),
            progress.summary(),
            f"; {len(self.provenance.skipped_rows)} undecodable rows skipped" if self.provenance.skipped_rows else "",
        )

    def _make_shards(self, shards: list[int], progress: Progress) -> None:
        with progress, closing(self._answers(self._spans(shards))) as answers:
            stored = answers if self.provenance.candidates is None else self._best(answers)
            for index in shards:
                self._make_shard(index, stored, progress)

    def _make_shard(self, index: int, answers: Iterator[dict[str, np.ndarray]], progress: Progress) -> None:
        """Takes a shard's answers from the stream, which holds the shards in order, and writes them."""
        rows = self.provenance.shard_range(index)
        group = max(1, ROW_GROUP_VIEWS // self.config.num_views)
        path = self.folder / self.provenance.shard_names[index]
        with ShardWriter(path, self._features, self.provenance.fingerprint) as writer:
            pending, tails = _Pending(self.config.num_views), ImageTails(self.config.num_views)
            for first in range(rows.start, rows.stop, group):
                last = min(first + group, rows.stop)
                while pending.num_views < (last - first) * self.config.num_views:
                    views = next(answers)
                    progress.update(len(views[TEACHER_IDS]))
                    if _ANSWERS in views:
                        tails.add(views.pop(_ANSWERS))
                    pending.append(views)
                columns, valid = pending.take(first, last)
                if self.provenance.signal == IMAGE_TAIL:
                    columns[TAIL_IDS], columns[TAIL_LOGPROBS] = tails.take(last - first)
                self._complete_rows(columns, valid)
                base = as_table(self._base, first, last, image_column=self.provenance.image_column, readable=valid)
                writer.write(base, columns, valid)
            marker = writer.finish()
        progress.wrote(marker.file_bytes)

    def _complete_rows(self, columns: dict[str, np.ndarray], valid: np.ndarray) -> None:
        """Puts the hash of all views of a row in the place of those of each."""
        columns[VIEWS_HASH] = np.array([combine_hashes(row) for row in columns[VIEWS_HASH]], np.uint64)

    def _best(self, answers: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
        """Those candidates of each example that are kept, in the order of their numbers; equally good ones by the lowest."""
        pending = _Pending(self.provenance.num_candidates)
        for views in answers:
            pending.append(views)
            rows = pending.num_views // self.provenance.num_candidates
            if rows:
                columns = pending.pop(rows)
                best = np.argsort(columns.pop(_SCORE), axis=1, kind="stable")[:, : self.config.num_views]
                kept = np.arange(rows)[:, None], np.sort(best, axis=1)
                yield {name: values[kept].reshape(-1, *values.shape[2:]) for name, values in columns.items()}

    # --------------------------------------------------------------------------------------------- batches and answers

    @property
    def _batch_size(self) -> int:
        return CPU_BATCH if self.teacher.device.type == "cpu" else self.config.batch_size

    def _spans(self, shards: Iterable[int]) -> list[Span]:
        """The views of these shards in order, cut where a teacher batch is full; none spans two shards."""
        views, first, spans = self._maker.num_views, self._maker.first_kept, []
        asked = views - first

        def place(number: int) -> int:
            row, view = divmod(number, asked)
            return row * views + (first + view if view else 0)  # the views before the first come with it

        for shard in shards:
            rows = self.provenance.shard_range(shard)
            cuts = range(rows.start * asked, rows.stop * asked, self._batch_size)
            places = [*map(place, cuts), rows.stop * views]
            spans += [Span(shard, *ends) for ends in itertools.pairwise(places)]
        return spans

    @property
    def workers(self) -> int:
        """How many processes (GPU) or threads (CPU) make views in this process's run."""
        workers = self.config.num_workers
        return default_workers(self.teacher.device) if workers is None else workers

    def _answers(self, spans: list[Span]) -> Generator[dict[str, np.ndarray]]:
        """The columns of each span's views, flat: (N,) or (N, n)."""
        if self.teacher.device.type == "cpu":
            yield from self._answers_of_threads(spans)
            return
        loader = torch.utils.data.DataLoader(
            self._maker,
            batch_size=None,
            sampler=spans,
            num_workers=min(self.workers, len(spans)),
            pin_memory=self.teacher.device.type == "cuda",
            worker_init_fn=quiet_worker,
        )
        for batch in loader:
            yield self._label(batch)

    def _answers_of_threads(self, spans: list[Span]) -> Generator[dict[str, np.ndarray]]:
        """On a CPU, each thread makes and labels whole batches on one core: cores wait less than inside a convolution."""
        count, threads = max(1, self.workers), torch.get_num_threads()
        pool = ThreadPoolExecutor(count, "reinforce", initializer=torch.set_num_threads, initargs=(1,))
        waiting: deque[Future[dict[str, np.ndarray]]] = deque()
        try:
            for span in spans:
                waiting.append(pool.submit(self._make_and_label, span))
                if len(waiting) > 2 * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # the pool's setting is also what later threads of the process begin with

    def _make_and_label(self, span: Span) -> dict[str, np.ndarray]:
        return self._label(self._maker[span])

    def _label(self, batch: ViewBatch) -> dict[str, np.ndarray]:
        """The teacher's answers to a batch, beside the parameters and hashes of its views."""
        if batch.error is not None:
            if self.config.on_bad_image == "error":
                raise DataError(batch.error)
            logger.warning("Skipped: %s", batch.error)
        return {
            _VALID: batch.valid,
            IMAGE_HASH: batch.image_hashes,
            VIEWS_HASH: batch.view_hashes,
            **self._answer(batch),
            **{AUG_PREFIX + name: values for name, values in batch.params.items()},
        }

    def _answer(self, batch: ViewBatch) -> dict[str, np.ndarray]:
        """The columns that hold the answers to a batch, and what else is needed until rows are complete."""
        answers_BC, provenance, span = self._ask(batch.pixels), self.provenance, batch.span
        ids, logprobs = self._keep(answers_BC, np.arange(span.start, span.stop))
        whole = {_ANSWERS: answers_BC.cpu().numpy()} if provenance.signal == IMAGE_TAIL else {}
        scores = {} if provenance.candidates is None else {_SCORE: self._scores(answers_BC, span)}
        return {TEACHER_IDS: ids, TEACHER_LOGPROBS: logprobs, **whole, **scores}

    def _keep(self, answers_BC: torch.Tensor, flat_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the signal stores of answers to views, which are named by their places in the flat order (example, view)."""
        provenance = self.provenance
        if provenance.signal != SAMPLED:
            return top_k(answers_BC, provenance.top_k)
        views = (divmod(flat, provenance.num_candidates) for flat in flat_B.tolist())
        uniforms = np.array([sampling_uniform(provenance.seed, example, view) for example, view in views])
        return sample(answers_BC, provenance.top_k, uniforms)

    def _ask(self, views_BHWC: torch.Tensor) -> torch.Tensor:
        """The teacher's log-probabilities (B, C), on its device."""
        count, views_BCHW = len(views_BHWC), views_BHWC.permute(0, 3, 1, 2)
        if self.teacher.device.type == "cpu" and count < CPU_BATCH:
            views_BCHW = torch.cat([views_BCHW, views_BCHW.new_zeros(CPU_BATCH - count, *views_BCHW.shape[1:])])
        return self.teacher(views_BCHW)[:count]

    def _scores(self, answers_BC: torch.Tensor, span: Span) -> np.ndarray:
        """What the criterion says of each candidate, (B,); the lowest are kept."""
        assert self.provenance.candidates is not None
        order, _, criterion = self.provenance.candidates["keep"].partition("_")
        if criterion == "entropy":
            values_B = torch.special.entr(answers_BC.exp()).sum(-1)
        else:
            assert self._labels is not None
            labels_B = torch.from_numpy(
                self._labels[np.arange(span.start, span.stop) // self.provenance.num_candidates]
            )
            values_B = -answers_BC.gather(-1, labels_B.to(answers_BC.device)[:, None])[:, 0]
        return (values_B if order == "low" else -values_B).cpu().numpy()

    def estimate(self, num_batches: int = 4) -> Estimate:
        """Times a few batches and answers what the whole run would take; writes nothing."""
        warm_up_kernels()
        check_same_run(self.folder, self.provenance)
        spans, count = [], num_batches + 1
        for n in range(count):
            of_shard = self._spans([n * self.provenance.num_shards // count])
            spans.append(of_shard[n * len(of_shard) // count])
        threads = torch.get_num_threads()
        if self.teacher.device.type == "cpu":
            torch.set_num_threads(1)  # as the run's threads do
        began = time.perf_counter()
        made = [self._maker[span] for span in spans]
        augmenting = time.perf_counter() - began
        self._label(made[0])  # the first batch also pays for warming up
        began = time.perf_counter()
        timed = [self._label(batch) for batch in made[1:]]
        teaching = time.perf_counter() - began
        torch.set_num_threads(threads)
        num_views = len(self._images) * self.provenance.num_views
        return Estimate(
            num_views=num_views,
            num_made=len(self._images) * self._maker.num_views,
            num_asked=len(self._images) * (self._maker.num_views - self._maker.first_kept),
            num_shards=self.provenance.num_shards,
            seconds_augment=augmenting / sum(b.span.stop - b.span.start for b in made),
            seconds_teacher=teaching / max(1, sum(len(b.pixels) for b in made[1:])),
            bytes_reinforcement=num_views * self._bytes_per_view(timed),
            bytes_base=self._base_bytes(),
        )

    def _bytes_per_view(self, timed: list[dict[str, np.ndarray]]) -> float:
        """Compresses the timed views as a shard would be; few views compress worse than many, so this errs upwards."""
        columns = {k: np.concatenate([views[k] for views in timed]) for k in timed[0] if k in self._features}
        columns.pop(IMAGE_HASH)
        columns.pop(VIEWS_HASH)
        one_view = {name: datasets.List(self._features[name].feature, length=1) for name in columns}
        written = written_size({name: values[:, None] for name, values in columns.items()}, one_view)
        size = written / len(columns[TEACHER_IDS])
        if _ANSWERS not in timed[0]:
            return size
        count = min(len(batch[_ANSWERS]) for batch in timed)
        tails = ImageTails(count)  # as if each batch were a row
        for batch in timed:
            tails.add(batch[_ANSWERS][:count])
        rows = dict(zip((TAIL_IDS, TAIL_LOGPROBS), tails.take(len(timed)), strict=True))
        written = written_size(rows, {name: self._features[name] for name in rows})
        return size + written / (len(timed) * self.config.num_views)

    def _base_bytes(self) -> float:
        rows = sampled_rows(len(self._base))
        if not self._base.column_names:
            return 0.0
        sizes = [as_table(self._base, int(r), int(r) + 1).combine_chunks().get_total_buffer_size() for r in rows]
        return float(np.mean(sizes)) * len(self._base)


class _Pending:
    """Views in flat order that wait until the rows of a row group are complete."""

    def __init__(self, num_views: int) -> None:
        self._per_row = num_views
        self._columns: dict[str, list[np.ndarray]] = {}
        self.num_views = 0

    def append(self, views: dict[str, np.ndarray]) -> None:
        for name, values in views.items():
            self._columns.setdefault(name, []).append(values)
        self.num_views += len(views[TEACHER_IDS])

    def take(self, first: int, last: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Returns the columns and the validity of rows `first` to `last`, and keeps the views beyond them."""
        columns = self.pop(last - first)
        valid = columns.pop(_VALID)[:, 0]
        columns[SOURCE_INDEX] = np.arange(first, last, dtype=np.int64)
        columns[IMAGE_HASH] = columns[IMAGE_HASH][:, 0]
        return columns, valid

    def pop(self, rows: int) -> dict[str, np.ndarray]:
        """Returns the columns of so many rows, (rows, V) or (rows, V, n), and keeps the views beyond them."""
        count, columns = rows * self._per_row, {}
        for name, parts in self._columns.items():
            joined = np.concatenate(parts)
            columns[name] = joined[:count].reshape(rows, self._per_row, *joined.shape[1:])
            self._columns[name] = [joined[count:]]
        self.num_views -= count
        return columns


# ------------------------------------------------------------------------------------------------- a run's folder


# ------------------------------------------------------------------------------------------------------------- checks


def _check_selection(config: ReinforceConfig, augmentation: Augmentation, label_column: str | None) -> None:
    if augmentation.mixes:
        raise ConfigError(
            f"`num_candidates` must be left out with MixUp or CutMix, got {config.num_candidates}: views are mixed in pairs by "
            "their numbers, and both of a pair would have to keep the same ones. Leave it out, or those ops."
        )
    if label_column is None and str(config.keep).endswith("_cross_entropy"):
        raise ConfigError(
            f"`keep` must be low_entropy or high_entropy for a dataset without labels, got {config.keep}. Set one of these, or "
            "name a `label_column`."
        )


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that decide pixels and answers."""
    return {name: importlib.metadata.version(name) for name in _VERSIONED}


def _name_of(augmentation: Augmentation) -> str:
    size = augmentation.size
    return next((name for name in NAMED if size and augmentation == Augmentation.named(name, _square(size))), "default")


def _square(size: tuple[int, int]) -> int | tuple[int, int]:
    return size[0] if size[0] == size[1] else size

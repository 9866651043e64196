"""The main job: draw views, ask the teacher, write shards. Resumable, and the same bytes however it is run."""

from __future__ import annotations

import importlib.metadata
import itertools
import logging
import math
import re
import shutil
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from hf_dr.errors import ConfigError, DataError, FingerprintMismatchError, HfDrError
from hf_dr.processes import default_workers, process_state, quiet_worker, warm_up_kernels
from hf_dr.store.base_dataset import (
    as_table,
    check_dataset,
    check_labels,
    checked_origin,
    content_hash,
    sampled_rows,
    undecoded_images,
)
from hf_dr.store.card import write_card
from hf_dr.store.named_files import FILES_FROM_HELP, describe_named_files
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import (
    AUG_PREFIX,
    IMAGE_HASH,
    KEEP,
    MAX_SHARDS,
    PROVENANCE_FILE,
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
    ZSTD_LEVEL,
    ShardWriter,
    column_encoding,
    list_array,
    read_marker,
    remove_temporaries,
)
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.signals import IMAGE_TAIL, SAMPLED, SIGNALS, TOPK, ImageTails, sample, sampling_uniform
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


def _help(text: str, **more: Any) -> dict[str, Any]:
    return {"help": text, **more}


@dataclass
class ReinforceConfig:
    """What a run makes and where. See each field's help; the command line and YAML files have the same names.

    Raises:
        ConfigError: A value is impossible.
    """

    output_dir: str = field(metadata=_help('Folder of the "+" dataset. Running again resumes; other configs stay.'))
    config_name: str | None = field(
        default=None,
        metadata=_help("Name under which load_dataset finds it. Default: the augmentation's name, or default."),
    )
    num_views: int = field(default=8, metadata=_help("Views per example, V."))
    num_candidates: int | None = field(
        default=None,
        metadata=_help(
            "Draw so many views of each example, ask the teacher for all, and store the num_views of them that --keep names. "
            "Default: as many as are stored."
        ),
    )
    keep: str | None = field(
        default=None,
        metadata=_help(
            "Of more candidates than views, store those with the lowest or highest entropy of the teacher's answer, over all "
            "its classes, or cross-entropy of it to the label.",
            choices=list(KEEP),
        ),
    )
    top_k: int = field(default=10, metadata=_help("Classes kept of each answer, K; at most the teacher's."))
    signal: str = field(
        default=TOPK,
        metadata=_help(
            "What is stored of each answer: the `topk` classes; these and a tail for each image (`topk_image_tail`); or K "
            "classes `sampled` so that the answer is right on average.",
            choices=list(SIGNALS),
        ),
    )
    seed: int = field(default=0, metadata=_help("Seed of the augmentation parameters, mixing partners and samples."))
    overlay: bool = field(
        default=False, metadata=_help("Leave the images out, where a licence forbids copying them. Default: copy them.")
    )
    image_column: str | None = field(
        default=None, metadata=_help("Column of the images. Default: the only Image column.")
    )
    label_column: str | None = field(
        default=None,
        metadata=_help("Column of the labels, or `none`. Default: `label`, else the only ClassLabel column."),
    )
    max_examples: int | None = field(default=None, metadata=_help("Reinforce only the first so many examples."))
    on_bad_image: str = field(
        default="error",
        metadata=_help(
            "`error` stops at an undecodable image; `skip` leaves its row unreinforced.", choices=["error", "skip"]
        ),
    )
    mixing_scope: str = field(
        default="dataset",
        metadata=_help(
            "Where mixing partners come from: the whole `dataset`, or the same `shard` (needed for streaming).",
            choices=["dataset", "shard"],
        ),
    )
    files_from: list[str] = field(default_factory=list, metadata=_help(FILES_FROM_HELP))
    shard_size: int | None = field(
        default=None,
        metadata=_help("Examples per file: what a kill can lose. Default: 1024, or an eighth of a smaller dataset."),
    )
    batch_size: int = field(
        default=64,
        metadata=_help("Views per teacher batch on a GPU; a CPU always takes 16, so results never depend on it."),
    )
    num_workers: int | None = field(
        default=None,
        metadata=_help(
            "Per launched process: on a GPU, processes that decode and augment; on a CPU, threads that do that and run the "
            "teacher. Default: by the cores."
        ),
    )

    def __post_init__(self) -> None:
        for name, low in (("num_views", 1), ("top_k", 1), ("seed", 0), ("batch_size", 1)):
            _at_least(name, getattr(self, name), low)
        for name, low in (("max_examples", 1), ("shard_size", 1), ("num_workers", 0)):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), low)
        for name, known in (
            ("on_bad_image", ("error", "skip")),
            ("mixing_scope", ("dataset", "shard")),
            ("signal", SIGNALS),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(f"`{name}` must be {' or '.join(known)}, got {getattr(self, name)!r}.")
        if self.num_candidates is not None:
            _at_least("num_candidates", self.num_candidates, self.num_views)
        if self.keep not in (None, *KEEP):
            raise ConfigError(f"`keep` must be one of {', '.join(KEEP)}, got {self.keep!r}.")
        if self.keep is None and self.selects:
            raise ConfigError(
                f"`keep` must say which {self.num_views} of {self.num_candidates} candidates are stored, got none. Give one "
                f"of {', '.join(KEEP)}."
            )
        if self.keep is not None and self.num_candidates is None:
            raise ConfigError(f"`keep` must come with `num_candidates`, got {self.keep} without. Give both or neither.")
        if self.seed >= 1 << 63:
            raise ConfigError(f"`seed` must be below 2**63, got {self.seed}.")
        if self.config_name is not None and (not is_safe_name(self.config_name) or self.config_name == "data"):
            raise ConfigError(
                f"`config_name` must be a plain name (letters, digits, '_', '-', '.'; not 'data'), got {self.config_name!r}."
            )

    @property
    def selects(self) -> bool:
        """Whether the stored views are chosen among more candidates."""
        return self.num_candidates not in (None, self.num_views)


def _at_least(name: str, value: Any, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"`{name}` must be a whole number of at least {low}, got {value!r}. Raise `{name}`.")


@dataclass(frozen=True)
class Part:
    """Every `count`-th shard from `index` on: what one of several independent launches makes.

    Attributes:
        index: From 0.
        count: Of the parts.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """Reads `0/4`: the first of four.

        Raises:
            ConfigError: It is something else.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
        if match is None or int(match[1]) >= int(match[2]):
            raise ConfigError(f"`part` must be from 0/N to N-1/N for N parts, got {text!r}. The first of four is 0/4.")
        return cls(int(match[1]), int(match[2]))

    def of(self, shards: int) -> range:
        """Returns the numbers of its shards. They do not depend on which are there: no other part ever has them."""
        return range(self.index, shards, self.count)

    def lock(self, folder: Path) -> filelock.BaseFileLock:
        """Returns the lock that its run holds."""
        name = ".lock" if self.count == 1 else f".lock-{self.index}-of-{self.count}"
        return filelock.FileLock(folder / name, timeout=0)


WHOLE = Part()


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
    files = [str(job.folder / name) for name in job.provenance.shard_names]
    return datasets.load_dataset("parquet", data_files={job.provenance.split: files}, split=job.provenance.split)


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
        image_column, label_column = check_dataset(dataset, config)
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
            progress = _Progress(self, part, missing, mine, state)
            if state.is_main_process:
                self._log_plan(missing, state)
            self._make_shards(mine, progress)
            state.wait_for_everyone()
            if state.is_main_process:
                with _gate(self.folder):  # the last of several parts finds all shards
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

    def _complete(self, progress: _Progress) -> None:
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

    def _make_shards(self, shards: list[int], progress: _Progress) -> None:
        with progress, closing(self._answers(self._spans(shards))) as answers:
            stored = answers if self.provenance.candidates is None else self._best(answers)
            for index in shards:
                self._make_shard(index, stored, progress)

    def _make_shard(self, index: int, answers: Iterator[dict[str, np.ndarray]], progress: _Progress) -> None:
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
        written = _written_size({name: values[:, None] for name, values in columns.items()}, one_view)
        size = written / len(columns[TEACHER_IDS])
        if _ANSWERS not in timed[0]:
            return size
        count = min(len(batch[_ANSWERS]) for batch in timed)
        tails = ImageTails(count)  # as if each batch were a row
        for batch in timed:
            tails.add(batch[_ANSWERS][:count])
        rows = dict(zip((TAIL_IDS, TAIL_LOGPROBS), tails.take(len(timed)), strict=True))
        written = _written_size(rows, {name: self._features[name] for name in rows})
        return size + written / (len(timed) * self.config.num_views)

    def _base_bytes(self) -> float:
        rows = sampled_rows(len(self._base))
        if not self._base.column_names:
            return 0.0
        sizes = [as_table(self._base, int(r), int(r) + 1).combine_chunks().get_total_buffer_size() for r in rows]
        return float(np.mean(sizes)) * len(self._base)


@dataclass(frozen=True)
class Estimate:
    """What a run would take: `num_made` views, of which the teacher is asked for `num_asked` and `num_views` are stored.

    Seconds are per view, of one core for augmenting, of one core or GPU for the teacher.
    """

    num_views: int
    num_made: int
    num_asked: int
    num_shards: int
    seconds_augment: float
    seconds_teacher: float
    bytes_reinforcement: float
    bytes_base: float

    def report(self, num_processes: int, num_workers: int, device: torch.device) -> str:
        """Returns the estimate as a table for people; `num_processes` counts those of all parts."""
        teacher = self.num_asked * self.seconds_teacher / 3600
        augment = self.num_made * self.seconds_augment / 3600
        workers = max(1, num_workers)
        most = math.ceil(self.num_shards / num_processes)  # of one process; the others wait for it
        wall = (teacher + augment) / workers if device.type == "cpu" else max(teacher, augment / workers)
        wall *= most / self.num_shards
        among = "" if self.num_made == self.num_views else f", kept of {self.num_made:,}"
        rows = [
            ("views", f"{self.num_views:,}{among}"),
            ("asked of the teacher", f"{self.num_asked:,}"),
            ("shards", f"{self.num_shards:,}, at most {most:,} a process"),
            (
                "teacher",
                f"{1e3 * self.seconds_teacher:.2f} ms a view on one {'core' if device.type == 'cpu' else 'GPU'}",
            ),
            ("decoding and augmenting", f"{1e3 * self.seconds_augment:.2f} ms a view on one core"),
            (f"hours with {num_processes} process(es)", f"{wall:.2f}"),
            (f"{'GPU' if device.type != 'cpu' else 'device'}-hours", f"{wall * num_processes:.2f}"),
            ("core-hours of augmenting", f"{augment:.2f}"),
            ("bytes, reinforcement", format_bytes(self.bytes_reinforcement)),
            ("bytes, base columns", format_bytes(self.bytes_base)),
        ]
        return "\n".join(f"  {name:<28}{value}" for name, value in rows)


def _written_size(columns: dict[str, np.ndarray], features: dict[str, Any]) -> int:
    """Bytes of a file of these columns, compressed as in a shard."""
    sink, written = pa.BufferOutputStream(), datasets.Features(features)
    arrays = {
        name: list_array(values, np.ones(len(values), bool), written.arrow_schema.field(name).type)
        for name, values in columns.items()
    }
    pq.write_table(
        pa.table(arrays),
        sink,
        compression="zstd",
        compression_level=ZSTD_LEVEL,
        use_dictionary=False,
        column_encoding=column_encoding(written),
    )
    return sink.tell()


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


class _Progress:
    """Rank 0's progress bar over the views of all ranks, with throughput, time left, shards and bytes.

    Other ranks are followed by the shards that they finish, so the bar runs late by at most one shard each.
    """

    LOOK_EVERY = 5.0  # seconds between looks at the folder

    def __init__(self, job: Job, part: Part, missing: list[int], mine: list[int], state: PartialState) -> None:
        provenance = job.provenance
        self._folder = job.folder
        self._names = {i: provenance.shard_names[i] for i in set(missing) - set(mine)}
        views = {i: len(provenance.shard_range(i)) * provenance.num_views for i in part.of(provenance.num_shards)}
        self._views = {i: views[i] for i in missing}
        self._others_done = 0
        self._shards, self._bytes, self._made = 0, 0, 0
        self._looked = self._began = time.monotonic()
        self._bar = tqdm(
            total=sum(views.values()),
            initial=sum(views.values()) - sum(self._views.values()),
            unit="view",
            unit_scale=True,
            desc=f"reinforcing {provenance.config_name}",
            disable=not state.is_main_process or not missing,
        )

    def update(self, views: int) -> None:
        """Counts views that this rank has made."""
        self._made += views
        self._bar.update(views)
        if not self._bar.disable and self._names and time.monotonic() - self._looked > self.LOOK_EVERY:
            self._look()

    def wrote(self, file_bytes: int) -> None:
        """Counts a shard that this rank has finished."""
        self._shards += 1
        self._bytes += file_bytes
        self._show()

    def _look(self) -> None:
        for index, name in list(self._names.items()):
            if (self._folder / name).exists():
                del self._names[index]
                self._bar.update(self._views[index])
                self.wrote((self._folder / name).stat().st_size)
        self._looked = time.monotonic()

    def _show(self) -> None:
        self._bar.set_postfix_str(f"{self._shards} shards, {format_bytes(self._bytes)}")

    def summary(self) -> str:
        """Returns this rank's throughput, for the closing log line."""
        seconds = time.monotonic() - self._began
        return f" ({self._made / seconds:,.0f} views/s on rank 0)" if self._made else ""

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._names and not self._bar.disable:
            self._look()
        self._bar.close()


# ------------------------------------------------------------------------------------------------- a run's folder


def _gate(folder: Path) -> filelock.BaseFileLock:
    """Returns the lock under which runs of parts prepare and complete, one after the other."""
    return filelock.FileLock(folder / ".gate")


def _take(folder: Path, lock: filelock.BaseFileLock, part: Part) -> None:
    """Takes the lock of a part, unless its shards may be in the hands of a run of other parts.

    Raises:
        ConfigError: They may.
    """
    try:
        lock.acquire()
        mates = {Part(index, part.count).lock(folder).lock_file for index in range(part.count)}
        for path in folder.glob(".lock*"):
            if str(path) not in mates:
                with filelock.FileLock(path, timeout=0):
                    pass
    except filelock.Timeout as busy:
        lock.release()
        raise ConfigError(
            f"{folder} must not be in use, but another run is writing to it ({Path(busy.lock_file).name}). Wait for it, or "
            "choose another `output_dir` or `config_name`. Several runs at once are parts of one number: `part` 0/2 and 1/2."
        ) from None


def open_run(
    folder: Path, provenance: Provenance, lock: filelock.BaseFileLock, row_bytes: int, part: Part = WHOLE
) -> list[int]:
    """Opens the folder of a configuration, new or to be resumed, takes its lock, and returns the missing shards.

    Args:
        folder: Of the configuration; it gets the provenance.
        provenance: Of this run.
        lock: Of the folder, or of the part; the caller releases it, unless the run is refused.
        row_bytes: What a row needs on disk, at least.
        part: Which shards this run makes.

    Raises:
        ConfigError: The folder cannot be used, or the disk cannot hold the missing rows.
        FingerprintMismatchError: It was begun with another configuration.
    """
    with ExitStack() as refused, ExitStack() as held:
        refused.callback(lock.release)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(_gate(folder))
            _take(folder, lock, part)
        except OSError as error:
            raise ConfigError(
                f"`output_dir` must be a folder that can be written to, but {folder}: {error.strerror}. Choose another."
            ) from error
        check_same_run(folder, provenance)
        began = (folder / PROVENANCE_FILE).exists()
        strangers = sorted(p.name for p in folder.glob("*.parquet"))
        if strangers and not began:
            raise ConfigError(
                f"{folder} must be empty or hold a run with its {PROVENANCE_FILE}, found {strangers[0]} without. "
                "Choose another `output_dir`."
            )
        mine = part.of(provenance.num_shards)
        remove_temporaries(folder, ("",) if part == WHOLE else [provenance.shard_names[index] for index in mine])
        missing = [index for index in missing_shards(folder, provenance) if index in mine]
        needed, free = len(missing) * provenance.shard_size * row_bytes, shutil.disk_usage(folder).free
        if needed > free:
            raise ConfigError(
                f"`output_dir` needs at least {format_bytes(needed)}, found {format_bytes(free)} free. Free space or lower "
                "`num_views`."
            )
        if not began:
            provenance.write(folder)
        refused.pop_all()
        return missing


def check_same_run(folder: Path, provenance: Provenance) -> None:
    """Refuses a folder that another configuration began.

    Raises:
        FingerprintMismatchError: Names the fields that differ.
    """
    if not (folder / PROVENANCE_FILE).exists():
        return
    differences = Provenance.read(folder).differences(provenance)
    if differences:
        shown = "\n  ".join(differences[:20])
        raise FingerprintMismatchError(
            f"{folder} was begun with another configuration. To resume, these must be as they were:\n  {shown}\n"
            "Give the same settings and versions, or choose another `output_dir` or `config_name`."
        )


def missing_shards(folder: Path, provenance: Provenance) -> list[int]:
    """Returns the shards that are not there.

    Raises:
        FingerprintMismatchError: One that is there belongs to another run.
    """
    missing = []
    for index, name in enumerate(provenance.shard_names):
        path = folder / name
        if not path.exists():
            missing.append(index)
        elif read_marker(path).fingerprint != provenance.fingerprint:
            raise FingerprintMismatchError(
                f"{path} must carry this run's fingerprint, found another's. Delete it, and run the same command again."
            )
    return missing


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

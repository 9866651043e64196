"""The folder of a run: which shards are missing, who may write them, whose run it is, and how far it is."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import datasets
import filelock
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState

from hf_dr.errors import ConfigError, DataError, FingerprintMismatchError, FormatError
from hf_dr.files import file_lock, held, remove_temporaries, take, write_whole
from hf_dr.generation.labelling import ViewColumns
from hf_dr.processes import refuse_unguarded
from hf_dr.store.card import check_card, write_card
from hf_dr.store.named_files import holds_files
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import PROVENANCE_FILE, is_reserved
from hf_dr.store.shards import check_digests, read_marker, shard_features
from hf_dr.text import format_bytes, progress_bar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Every `count`-th shard from `index` on, which is 0 or more: what one of several independent launches makes."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """Reads `0/4`: the first of four."""
        match = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
        if match is None or int(match[1]) >= int(match[2]):
            raise ConfigError(f"`part` must be from 0/N to N-1/N for N parts, got {text!r}. The first of four is 0/4.")
        return cls(int(match[1]), int(match[2]))

    def of(self, shards: int) -> range:
        """Returns the numbers of its shards. They do not depend on which are there: no other part ever has them."""
        return range(self.index, shards, self.count)

    def lock(self, folder: Path, rank: int = 0) -> filelock.BaseFileLock:
        """Returns the lock that a rank of its run holds: each has one, for it may outlive rank 0."""
        name = ".lock" if self.count == 1 else f".lock-{self.index}-of-{self.count}"
        return file_lock(folder / (name + (f"{_RANK}{rank}" if rank else "")))


_RANK = "-rank-"
WHOLE = Part()


_PROCESSORS_FILE = ".processors"
# Of files that may lie where a "+" dataset is begun: licences, cards, logs, settings, scripts.
_NOTES = (
    "", ".cfg", ".csv", ".err", ".ini", ".ipynb", ".json", ".log", ".md", ".out", ".pid", ".py", ".rst", ".sbatch", ".sh",
    ".slurm", ".toml", ".txt", ".yaml", ".yml",
)  # fmt: skip


class RunFolder:
    """The folder of a configuration, new or begun, and the run that writes it."""

    def __init__(self, folder: Path, provenance: Provenance) -> None:
        self.folder = folder
        self.provenance = provenance
        self.shards = [folder / name for name in provenance.shard_names]

    def gate(self) -> AbstractContextManager[None]:
        """Holds the lock under which runs of parts begin and complete, one after the other."""
        return held(self.folder / ".gate", f"another run that begins or completes {self.folder}")

    def _take(self, lock: filelock.BaseFileLock, part: Part) -> None:
        """Takes the lock of a part; refuses if its shards may be in the hands of a run of other parts."""
        try:
            take(lock)
            # Parts of the same number never have the same shards; a lock of any other run must be free.
            mates = {Path(Part(index, part.count).lock(self.folder).lock_file).name for index in range(part.count)}
            mine = Path(lock.lock_file).name
            for path in self.folder.glob(".lock*"):
                owner, of_rank, _ = path.name.partition(_RANK)
                if owner not in mates or (owner == mine and of_rank):
                    other = file_lock(path)
                    take(other)
                    other.release()
        except filelock.Timeout as busy:
            refuse_unguarded()
            raise ConfigError(
                f"{self.folder} must not be in use, but another run is writing to it ({Path(busy.lock_file).name}). Wait for "
                "it, or choose another `output_dir` or `config_name`. Several runs at once are parts of one number: `part` 0/2 "
                "and 1/2."
            ) from None

    def open(self, base: datasets.Dataset, lock: filelock.BaseFileLock, part: Part = WHOLE) -> list[int]:
        """Opens the folder, new or to be resumed, takes its lock, and returns the missing shards of a part.

        Args:
            base: The base's columns that are stored.
            lock: The lock of the folder, or of the part; the caller releases it, also where the run is refused.
            part: Which shards this run makes.

        Raises:
            ConfigError: The folder cannot be used, or the disk cannot hold the missing rows.
            FingerprintMismatchError: It was begun with other settings, or with other columns of the base.
        """
        self.check()  # nothing is written among somebody's own files, no lock either
        mine = part.of(len(self.shards))
        with ExitStack() as gated:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                gated.enter_context(self.gate())
                self._take(lock, part)
            except OSError as error:
                raise ConfigError(
                    f"`output_dir` must be a folder that can be written to, but {self.folder}: {error.strerror}. Choose "
                    "another."
                ) from error
            self.check()  # another run may have begun it before the lock was taken
            if not (self.folder / PROVENANCE_FILE).exists():
                self._check_space(mine)
                self.provenance.write(self.folder)
        # Reading what is there takes long; the lock of the part guards its shards.
        self._check_same_base(base)
        remove_temporaries(self.folder, ("",) if part == WHOLE else [self.shards[index].name for index in mine])
        missing = self.missing(mine, read=True)
        self._check_space(missing)
        return missing

    def _check_space(self, shards: Iterable[int]) -> None:
        """Refuses shards that the disk cannot hold."""
        # A view takes at least two bytes for each kept class. Images come on top, so this is a lower bound.
        rows = sum(len(self.provenance.shard_range(shard)) for shard in shards)
        needed = rows * self.provenance.num_views * self.provenance.top_k * 2
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise ConfigError(
                f"`output_dir` needs at least {format_bytes(needed)}, found {format_bytes(free)} free. Free space or lower "
                "`num_views`."
            )

    def note_processor(self, processor: str) -> None:
        """Keeps which kinds of processor (`describe_processor`) have worked on a run, and says once that answers of another
        may differ a little."""
        path = self.folder / _PROCESSORS_FILE
        with self.gate():
            known = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            if processor in known:
                return
            write_whole(path, "\n".join([*known, processor]) + "\n")
        if known:
            logger.warning(
                "This run was begun on %s and goes on on %s: parameters and views are the same, but answers may differ in the "
                "last place of their float16 values, within the bounds of `hf-dr verify`.",
                " and ".join(known),
                processor,
            )

    def check(self) -> None:
        """Refuses a folder that another run began, or that would be begun among somebody's own files, and a dataset's folder
        whose card could not be written after the run."""
        folder, provenance = self.folder, self.provenance
        if "::" in str(folder):
            raise ConfigError(
                f"`output_dir` must be a path without `::`, which `datasets` reads as several addresses, got {folder}. Rename "
                "it."
            )
        check_card(folder.parent)
        if not (folder / PROVENANCE_FILE).exists():
            self._check_no_strangers()
            return
        begun = Provenance.read(folder)
        if begun.schema_version != provenance.schema_version:
            raise FingerprintMismatchError(
                f"{folder} was begun in format {begun.schema_version} and must be finished in it, but this hf_dr writes format "
                f"{provenance.schema_version}: the dataset would be a mixture. Finish it with the version that began it "
                f"({begun.created_with}), or choose another `output_dir` or `config_name`."
            )
        differences = begun.differences(provenance)
        if differences:
            shown = "\n  ".join(differences[:20])
            raise FingerprintMismatchError(
                f"{folder} was begun with other settings. To resume, these must be as they were:\n  {shown}\n"
                "Give the same settings, versions and images, or choose another `output_dir` or `config_name`."
            )

    def _check_no_strangers(self) -> None:
        """Refuses to begin a configuration in a folder, or in one that is no "+" dataset yet, which holds somebody's own files.

        Hidden files and empty folders are none, as a new repository of the Hub or a run that has just begun has them, nor are
        notes, logs and settings, nor shards of this very run, whose provenance was lost.
        """
        output = self.folder.parent
        ours = set(self.provenance.shard_names)
        places = [self.folder] if any(output.glob(f"*/{PROVENANCE_FILE}")) else [self.folder, output]
        found = [path for place in places for path in place.glob("[!.]*") if path != self.folder]
        strangers = sorted(
            path
            for path in found
            if (any(path.glob("[!.]*")) if path.is_dir() else path.suffix.lower() not in _NOTES)
            and not (path.name in ours and self._has_made(path))
        )
        if strangers:
            raise ConfigError(
                f'`output_dir` must be new, empty, or the folder of a "+" dataset, found {strangers[0].name} in '
                f"{strangers[0].parent}, where none was begun. Choose another `output_dir`; notes, logs and settings may be "
                "there."
            )

    def _has_made(self, path: Path) -> bool:
        """Whether a file is a finished shard of this run."""
        try:
            return read_marker(path).fingerprint == self.provenance.fingerprint
        except FormatError:
            return False

    def _check_same_base(self, base: datasets.Dataset) -> None:
        """Refuses finished shards with other columns than the base's, labels or others, which no hash of the provenance knows.

        Types count, because `datasets` opens no dataset whose shards differ in them. The contents of files are not compared:
        the images among them are known by their hash.
        """
        plain = [name for name in base.column_names if not holds_files(base.features[name])]
        values = base.select_columns(plain).with_format("arrow")
        types = shard_features(base.features.arrow_schema, "the dataset")  # as a shard would tell them
        for index, path in enumerate(self.shards):
            rows = self.provenance.shard_range(index)
            try:
                file = pq.ParquetFile(path)
                features = shard_features(file.schema_arrow, str(path))
                own = {column: feature for column, feature in features.items() if not is_reserved(column)}
                stored = file.read([column for column in plain if column in own])
            except (OSError, pa.ArrowException, FormatError):  # it is missing or damaged, and is made again
                continue
            if own.keys() != types.keys():
                found = f"it has {', '.join(sorted(own))} and the dataset {', '.join(sorted(types))}"
            elif retyped := [column for column in types if own[column] != types[column]]:
                there, here = own[retyped[0]], types[retyped[0]]
                found = f"its column `{retyped[0]}` is {there!s:.200} and the dataset's {here!s:.200}"
            else:
                here = values[rows.start : rows.stop] if plain else stored
                # As text, in which NaN equals NaN.
                differing = [each for each in plain if repr(stored[each].to_pylist()) != repr(here[each].to_pylist())]
                if not differing:
                    continue
                found = f"its column `{differing[0]}` differs in rows {rows.start} to {rows.stop - 1}"
            try:
                check_digests(path)
            except FormatError:  # it is not what was written, and is made again
                continue
            raise FingerprintMismatchError(
                f"{path} must have the columns of the dataset, but {found}. Give the dataset that the run was begun with, or "
                "choose another `output_dir`."
            )

    def missing(self, among: Iterable[int], *, read: bool = False) -> list[int]:
        """Returns the shards that are not there; with `read` also those that are damaged, which takes reading them all.

        One that belongs to another run is refused. `among` are those that are looked at.
        """
        missing = []
        for index in among:
            path = self.shards[index]
            if not path.exists():
                missing.append(index)
                continue
            try:
                if read_marker(path).fingerprint != self.provenance.fingerprint:
                    raise FingerprintMismatchError(
                        f"{path} must carry this run's fingerprint, found another's. Delete it, and run the same command again."
                    )
                if read:
                    check_digests(path)
            except FormatError as error:
                if not read:
                    raise
                logger.warning("%s It is made again.", error)
                missing.append(index)
        return missing

    def complete(self, speed: str = "") -> None:
        """Writes the final provenance, with the rows that were skipped, and the card: all shards are there.

        Raises:
            DataError: All rows were skipped.
        """
        provenance = self.provenance
        markers = [read_marker(path) for path in self.shards]
        skipped = [row for marker in markers for row in marker.skipped_rows]
        provenance.skipped_rows[:] = skipped
        provenance.write(self.folder)
        write_card(self.folder.parent)
        if len(skipped) == provenance.num_rows:
            raise DataError(
                f"at least one image must be readable, but all {provenance.num_rows} rows were skipped. Correct the images, or "
                "name another `image_column`."
            )
        logger.info(
            "%s: %d rows x %d views, %s in %d shards%s%s",
            self.folder,
            provenance.num_rows,
            provenance.num_views,
            format_bytes(sum(marker.file_bytes for marker in markers)),
            len(markers),
            speed,
            f"; {len(skipped)} rows without reinforcement" if skipped else "",
        )


class RunProgress:
    """Rank 0's progress bar over the views of all ranks, with throughput, time left, shards and bytes.

    Other ranks are followed by the shards that they finish, so the bar runs late by at most one shard each.
    """

    LOOK_EVERY = 5.0  # seconds between looks at the folder

    def __init__(self, run: RunFolder, part: Part, missing: list[int], mine: list[int], state: PartialState) -> None:
        self._run = run
        self._of_others = set(missing) - set(mine)  # until they are there
        self._shards = 0
        self._bytes = 0
        self._made = 0
        self._began = time.monotonic()
        self._looked = self._began
        total = self._views_of(part.of(len(run.shards)))
        self._bar = progress_bar(
            total=total,
            initial=total - self._views_of(missing),
            unit="view",
            desc=f"reinforcing {run.provenance.config_name}",
            show=state.is_main_process and bool(missing),
        )

    def counted(self, views: Iterator[ViewColumns]) -> Iterator[ViewColumns]:
        """Yields views that this rank has made, and counts them."""
        for part in views:
            self._made += len(part)
            self._bar.update(len(part))
            if not self._bar.disable and self._of_others and time.monotonic() - self._looked > self.LOOK_EVERY:
                self._look()
            yield part

    def wrote(self, file_bytes: int) -> None:
        """Counts a shard that this rank has finished."""
        self._shards += 1
        self._bytes += file_bytes
        self._bar.set_postfix_str(f"{self._shards} shards, {format_bytes(self._bytes)}", refresh=False)

    def _look(self) -> None:
        """Counts the shards that other ranks have finished since the last look."""
        for shard in sorted(self._of_others):
            path = self._run.shards[shard]
            if path.exists():
                self._of_others.remove(shard)
                self._bar.update(self._views_of([shard]))
                self.wrote(path.stat().st_size)
        self._looked = time.monotonic()

    def _views_of(self, shards: Iterable[int]) -> int:
        provenance = self._run.provenance
        return sum(len(provenance.shard_range(shard)) for shard in shards) * provenance.num_views

    def summary(self) -> str:
        """Returns this rank's throughput, for the closing log line."""
        seconds = time.monotonic() - self._began
        return f" ({self._made / seconds:,.0f} views/s on rank 0)" if self._made else ""

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._of_others and not self._bar.disable:
            self._look()
        self._bar.close()

"""Streaming a "+" dataset: shards are read one after the other, from a folder or the Hub, and leave no copy on the disk."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from datasets.utils.file_utils import xopen

from hf_dr.errors import ConfigError, DataError, FormatError, HfDrError
from hf_dr.hub.retry import with_retries
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.device import undone_items
from hf_dr.replay.join import JoinedBase
from hf_dr.replay.reinforced_data import ReinforcedData
from hf_dr.replay.sampling import ReinforcedSampler, check_order
from hf_dr.replay.shares import Progress, Shares
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import IMAGE_HASH, METADATA_KEY, SOURCE_INDEX, is_reserved
from hf_dr.store.shards import shard_features
from hf_dr.views.rng import DOMAIN_ORDER, keyed_rng

logger = logging.getLogger(__name__)

# Rows replayed at once: even, so that both of a pair are in it.
_CHUNK = 16
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class _Group:
    """Shards that are read and shuffled together, and which places in the order of their rows are wanted, int64, rising."""

    number: int
    shards: list[int]
    places: np.ndarray


class StreamedReinforcedDataset(ReinforcedData, torch.utils.data.IterableDataset):
    """The items of a `ReinforcedDataset`, shard by shard.

    One iteration is an epoch: every row once, with the view that `ReinforcedDataset` of the same seed shows in that epoch.
    The order of the shards and of the rows in them is keyed by the order's seed and the epoch. While one shard is replayed
    a thread reads the next, so a process holds about two of them. A mixing augmentation needs its partners in the shard.

    Rows are shared out over `split_by_node` and over the workers of a torch DataLoader in stretches of the epoch's order:
    nothing is lost, nothing is seen twice, whatever the numbers of shards, processes and workers. `set_epoch` reaches
    persistent workers.

    Args:
        files: Path or `hf://` address of every shard, in order.
        provenance: Its `reinforcement.json`.
        shuffled_shards: Shards that are read and shuffled together. More mix better and take as much more memory.
        num_views: See `load_reinforced`.
        seed: See `load_reinforced`.
        **settings: Further settings of `ReinforcedDataset`.

    Raises:
        ConfigError: A partner may be in another shard, or a setting is impossible.
        DataError: The base cannot be joined.
        FormatError: The first shard does not follow the format.
    """

    def __init__(
        self,
        files: Sequence[str],
        provenance: Provenance,
        *,
        shuffled_shards: int = 1,
        num_views: int | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        if shuffled_shards < 1:
            raise ConfigError(f"`shuffled_shards` must be at least 1, got {shuffled_shards}.")
        if settings.get("unreinforced"):
            raise ConfigError("`unreinforced` rows are of the base, not of a shard. Leave it out, or `streaming`.")
        self.provenance = provenance
        self.seed = seed
        self._files = list(files)
        self._shuffled_shards = shuffled_shards
        self._settings = {**settings, "num_views": num_views, "seed": seed}
        if settings.get("base") is not None:
            self._settings["base"] = _joined_once(settings["base"], provenance)
        schema = _with_shard(self._files[0], provenance, lambda parquet: parquet.schema_arrow)
        shard_features(schema, self._files[0])
        # A dataset without rows checks settings, base and columns, and knows labels and names.
        self._template = ReinforcedDataset(
            datasets.Dataset(schema.empty_table(), fingerprint="empty"), provenance, **self._settings
        )
        self.origin = self._template.origin
        self.augmentations = self._template.augmentations
        self.num_views = self._template.num_views
        if self.mixes and provenance.mixing_scope != "shard" and provenance.num_shards > 1:
            raise ConfigError(
                "a streamed view must find its partner in its own shard, but those of this dataset are anywhere in it. Load it "
                "without `streaming=True`, or reinforce with `--mixing_scope shard`."
            )
        # Only what items need is read from the files.
        wanted = {provenance.image_column, provenance.label_column, *(settings.get("columns") or ())}
        fields = [field for field in schema if is_reserved(field.name) or field.name in wanted]
        self._schema = pa.schema(fields, schema.metadata)
        self._sizes = _reinforced_rows(provenance)
        if provenance.skipped_rows:
            logger.warning("%d rows have no reinforcement and are left out.", len(provenance.skipped_rows))
        self._order: dict[str, Any] = {"seed": 0}
        self._rank = 0
        self._shares: Shares | None = None  # of a process, once the dataset is split
        self._progress: Progress | None = None  # that of an epoch that was begun before
        self._undone = False
        # In shared memory: copies of the dataset in persistent workers see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def has_labels(self) -> bool:
        """Whether items have `labels`."""
        return self._template.has_labels

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, where the base's labels have names."""
        return self._template.class_names

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration, in the workers of a DataLoader, too."""
        self._epoch.fill_(epoch)

    def ordered(self, *, seed: int = 0, **settings: Any) -> Self:
        """Returns this dataset in another order; see `ReinforcedSampler` for the settings.

        Raises:
            ConfigError: See `ReinforcedSampler`.
        """
        check_order(self, **settings)
        return self._copy(_order={"seed": seed, **settings})

    def split_by_node(self, rank: int, world_size: int, *, batch_size: int = 1, even: bool = False) -> Self:
        """Returns one process's share of each epoch; the counterpart of `datasets.distributed.split_dataset_by_node`.

        Args:
            rank: Number of the process, from 0.
            world_size: Number of processes.
            batch_size: That of the DataLoader: its workers are then given whole batches, so that only the last is short
                and the loader's length is exact.
            even: Give all processes equally many rows, as training in step needs. Where they do not go into
                `world_size`, some processes see one row that is another's, too.

        Raises:
            ConfigError: A number is impossible, or the dataset is a share already.
        """
        if self._shares is not None:
            raise ConfigError("a dataset must be split once, but this is one process's share. Split the whole one.")
        if not 0 <= rank < world_size:
            raise ConfigError(f"`rank` must be from 0 to {world_size - 1}, got {rank}.")
        if batch_size < 1:
            raise ConfigError(f"`batch_size` must be at least 1, got {batch_size}.")
        return self._copy(_rank=rank, _shares=Shares(world_size, 1, batch_size, even))

    def progress(self, batches: int, *, num_workers: int = 0) -> dict[str, Any]:
        """Returns, in JSON types, how far this epoch is when each process has seen so many batches since it began to iterate.

        Args:
            batches: Of the `batch_size` that `split_by_node` was given, from a DataLoader that keeps their order (`in_order`).
            num_workers: Of each process's DataLoader.
        """
        done = self._so_far() or Progress(self.epoch, self._order_of_rows(), [])
        return done.after(self._shares_of(num_workers), batches).to_dict()

    def resumed(self, progress: dict[str, Any]) -> Self:
        """Returns this dataset with one epoch that goes on where it was left: what was seen then is not seen again.

        Shards of which all rows were seen are not read again, and no image of a seen row is decoded. By as many processes and
        workers and the same `batch_size` the epoch goes on with the same batches in the same order; by others the rows that
        nobody has seen are shared out anew. All other epochs are whole.

        Args:
            progress: What `progress` returned, the same for all processes.

        Raises:
            ConfigError: It is that of another dataset or another order.
            FormatError: It is something else.
        """
        found = Progress.from_dict(progress)
        if self._shares is not None:
            raise ConfigError(
                "a whole stream must be asked to go on, but this is one process's share: its rows are known already. Call "
                "`resumed` before `split_by_node`."
            )
        expected = self._order_of_rows()
        if found.order != expected:
            differing = [name for name in expected if found.order.get(name) != expected[name]]
            raise ConfigError(
                "an epoch must go on in its own order, but the progress is one of another "
                f"{', '.join(differing) or 'kind'}: {found.order!s:.300}, here {expected!s:.300}. Restore it."
            )
        return self._copy(_progress=found)

    def undone(self) -> Self:
        """Returns this dataset with views that are still to be made on a device (`hf_dr.replay.device`)."""
        return self._copy(_undone=True)

    def _copy(self, **changes: Any) -> Self:
        new = copy.copy(self)
        new.__dict__.update(changes, _epoch=self._epoch.clone().share_memory_())
        return new

    def __len__(self) -> int:
        progress, rows = self._so_far(), int(self._sizes.sum())
        rows = rows if progress is None else len(progress.unseen(rows))
        return len(self._shares_of(0).of_process(rows, self._rank))

    def _shares_of(self, num_workers: int) -> Shares:
        return replace(self._shares or Shares(), num_workers=max(1, num_workers))

    def _so_far(self) -> Progress | None:
        """What was seen of this epoch before it went on; None where it was not begun."""
        return self._progress if self._progress is not None and self._progress.epoch == self.epoch else None

    def _order_of_rows(self) -> dict[str, Any]:
        """What the order of an epoch's rows follows from, in JSON types."""
        return {"fingerprint": self.fingerprint, "shuffled_shards": self._shuffled_shards, **self._order}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = self.epoch  # of this iteration, whatever is set meanwhile
        groups = self._groups(epoch, self._places())
        reader = ThreadPoolExecutor(1, thread_name_prefix="hf_dr_shards")
        try:
            pending = [reader.submit(self._read, group) for group in groups[:1]]
            for place, group in enumerate(groups):
                rows = pending.pop().result()
                # The next group is read while this one is replayed.
                pending += [reader.submit(self._read, later) for later in groups[place + 1 : place + 2]]
                yield from self._replay(rows, group, epoch)
        finally:
            reader.shutdown(wait=False, cancel_futures=True)

    def _places(self) -> np.ndarray:
        """The places in the epoch's order, int64, rising, of the rows that this worker is to give."""
        worker = torch.utils.data.get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        progress = self._so_far() or Progress(self.epoch, {}, [])
        return progress.left(int(self._sizes.sum()), self._rank, number, self._shares_of(count))

    def _groups(self, epoch: int, places: np.ndarray) -> list[_Group]:
        """The groups of shards that hold these places of the epoch's order, one after the other."""
        rng = keyed_rng(self._order["seed"], domain=DOMAIN_ORDER, major=epoch)
        order = rng.permutation(len(self._sizes))
        groups = []
        first = 0  # place in the epoch of the group's first row
        for number, at in enumerate(range(0, len(order), self._shuffled_shards)):
            shards = order[at : at + self._shuffled_shards]
            end = first + int(self._sizes[shards].sum())
            begun, ended = np.searchsorted(places, [first, end])
            if begun < ended:
                groups.append(_Group(number, shards.tolist(), places[begun:ended] - first))
            first = end
        return groups

    def _read(self, group: _Group) -> ReinforcedDataset:
        table = pa.concat_tables([self._read_shard(shard) for shard in group.shards])
        # Without a name, datasets would hash the table.
        name = f"{self.provenance.fingerprint[:32]}-{'-'.join(map(str, group.shards))}"
        return ReinforcedDataset(datasets.Dataset(table, fingerprint=name), self.provenance, **self._settings)

    def _read_shard(self, shard: int) -> pa.Table:
        file = self._files[shard]
        rows = self.provenance.shard_range(shard)
        table = _with_shard(file, self.provenance, lambda parquet: parquet.read(self._schema.names, use_threads=False))
        shard_features(table.schema, file)
        for field in self._schema:
            found = table.schema.field(field.name).type if field.name in table.column_names else "none"
            if found != field.type:
                raise FormatError(
                    f"column `{field.name}` of {file} must be {field.type}, as in the first shard, found {found}. Fetch or "
                    "make it again."
                )
        table = table.replace_schema_metadata(self._schema.metadata)
        # The length first: a provenance that lies may speak of more rows than fit in memory.
        if len(table) != len(rows) or not np.array_equal(table.column(SOURCE_INDEX).to_numpy(), rows):
            raise FormatError(f"{file} must hold rows {rows.start} to {rows.stop - 1}, found others. Fetch it again.")
        if table.column(IMAGE_HASH).null_count:
            table = table.filter(pc.is_valid(table.column(IMAGE_HASH)))
        if len(table) != self._sizes[shard]:
            raise FormatError(
                f"{file} must have {self._sizes[shard]} reinforced rows by its provenance, found {len(table)}. Fetch it again."
            )
        return table

    def _replay(self, rows: ReinforcedDataset, group: _Group, epoch: int) -> Iterator[dict[str, Any]]:
        # Part 0 of the epoch's order is that of the shards.
        order = ReinforcedSampler(rows, **self._order).epoch_indices(epoch, part=1 + group.number)
        indices = list(order)
        # Chunks begin at even places, as pairs do.
        ends = np.flatnonzero(np.diff(group.places // _CHUNK)) + 1
        for places in np.split(group.places, ends):
            chunk = [indices[place] for place in places.tolist()]
            yield from undone_items(rows, chunk) if self._undone else rows.__getitems__(chunk)


def _joined_once(base: Any, provenance: Provenance) -> Any:
    """Returns the base of an overlay so that its images are looked for once, not for every shard."""
    if not isinstance(base, datasets.Dataset):
        raise DataError(
            f"`base` must be a datasets.Dataset, whose rows can be found by number, got {type(base).__name__}. Load "
            "it without `streaming=True`."
        )
    return JoinedBase(base, provenance) if provenance.overlay else base


def _reinforced_rows(provenance: Provenance) -> np.ndarray:
    """Returns how many rows of each shard are reinforced, int64 (shards,)."""
    sizes = [len(provenance.shard_range(shard)) for shard in range(provenance.num_shards)]
    skipped = np.asarray(provenance.skipped_rows, np.int64) // provenance.shard_size
    return np.asarray(sizes) - np.bincount(skipped, minlength=provenance.num_shards)


def _with_shard(file: str, provenance: Provenance, read: Callable[[pq.ParquetFile], _Read]) -> _Read:
    """Opens a shard, checks that it is of this dataset, and returns what `read` takes from it."""

    def attempt() -> _Read:
        with xopen(file, "rb") as stream, pq.ParquetFile(stream, pre_buffer=True) as parquet:
            marker = json.loads((parquet.metadata.metadata or {}).get(METADATA_KEY, b"null"))
            if not isinstance(marker, dict) or marker.get("fingerprint") != provenance.fingerprint:
                raise FormatError(
                    f"{file} must carry the fingerprint of its reinforcement.json, found another. Fetch or make it again."
                )
            if parquet.metadata.num_rows > provenance.shard_size:
                raise FormatError(
                    f"{file} must have at most {provenance.shard_size} rows, found {parquet.metadata.num_rows}. Fetch it again."
                )
            return read(parquet)

    if "://" not in file and Path(file).exists() and not Path(file).is_file():  # a pipe would be waited for
        raise FormatError(f"{file} must be a file, found a folder or a device. Fetch or make it again.")
    try:
        return with_retries(attempt, f"read {file}")
    except HfDrError:
        raise
    except FileNotFoundError as error:
        raise FormatError(f"{file} must be there, but it is missing. Fetch or make it again.") from error
    except (OSError, ValueError, pa.ArrowException, RecursionError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system could not read it; Arrow's own have no number
        raise FormatError(
            f"{file} must be a readable shard, but: {type(error).__name__}: {error}. Fetch or make it again."
        ) from error

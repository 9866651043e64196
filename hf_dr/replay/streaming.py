"""Streaming a "+" dataset: shards are read one after the other, from a folder or the Hub, and leave no copy on the disk."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Self, Unpack

import datasets
import numpy as np
import torch

from hf_dr.errors import ConfigError
from hf_dr.replay.combined import check_alike, check_same_rows, cut_answers, place_in_parts
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.device import undone_items
from hf_dr.replay.epoch import SharedEpoch
from hf_dr.replay.reinforced_data import Origin, ReinforcedData
from hf_dr.replay.sampling import BY_DIFFICULTY, OrderSettings, ReinforcedSampler, check_order
from hf_dr.replay.shares import Progress, Shares
from hf_dr.replay.streamed_shards import StreamedShards
from hf_dr.settings import as_plain, check_count, unlike_names
from hf_dr.views.rng import DOMAIN_ORDER, DOMAIN_SCHEDULE, KeyedPermutation, keyed_rng

# Rows replayed at once: even, so that both of a pair are in it.
_CHUNK = 16


def _refuse_choice(what: str) -> NoReturn:
    raise ConfigError(
        f"a stream has no rows or columns to choose, got {what}. Iterate over it, or load the dataset without "
        "`streaming=True`."
    )


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

    Several "+" datasets (parts) of one base take turns: an epoch shows views of one part, and nothing is read of the others.
    Over as many epochs as they have views together each row shows each view of each part once.

    Args:
        parts: Opened with the same settings.
        shuffled_shards: Shards that are read and shuffled together. More mix better and take as much more memory.

    Raises:
        ConfigError: The parts do not fit each other, or a setting is impossible.
        DataError: The parts are not of one base.
    """

    def __init__(self, parts: Sequence[StreamedShards], *, shuffled_shards: int = 1) -> None:
        check_count("shuffled_shards", shuffled_shards)
        templates = [part.template for part in parts]
        check_alike(templates)
        check_same_rows([part.provenance for part in parts])
        self._parts = tuple(parts)
        self.shuffled_shards = int(shuffled_shards)
        self._template = templates[0]
        self.seed = self._template.seed
        self.origin = Origin.of([part.provenance for part in parts])
        self.augmentations = tuple(template.augmentation for template in templates)
        self._starts = np.cumsum([0, *(template.num_views for template in templates)])
        self.num_views = int(self._starts[-1])
        self.top_k = min(template.top_k for template in templates)
        self._rows = int(parts[0].sizes.sum())
        self._order: OrderSettings = {"seed": 0}
        self._rank = 0
        self._shares: Shares | None = None  # of a process, once the dataset is split
        self._progress: Progress | None = None  # that of an epoch that was begun before
        self._undone = False
        self._epoch = SharedEpoch()

    @property
    def has_labels(self) -> bool:
        return self._template.has_labels

    @property
    def class_names(self) -> list[str] | None:
        return self._template.class_names

    @property
    def own_features(self) -> datasets.Features:
        return self._template.own_features

    @property
    def epoch(self) -> int:
        """The epoch of the next iteration."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration, in the workers of a DataLoader, too."""
        self._epoch.set(epoch)

    def ordered(self, **settings: Unpack[OrderSettings]) -> Self:
        """Returns this dataset in another order; see `ReinforcedSampler` for the settings.

        Raises:
            ConfigError: See `ReinforcedSampler`; or an epoch of another order goes on (`resumed`).
        """
        order: OrderSettings = {"seed": 0, **settings}
        if self._progress is not None and order != self._order:
            raise ConfigError(
                f"`ordered` must come before `resumed`: an epoch goes on as it was begun, with {self._order}, got {order}. "
                "Call it first."
            )
        check_order(self, **order)
        if len(self._parts) > 1 and settings.get("view_order") in BY_DIFFICULTY:
            raise ConfigError(
                f"`view_order` must be all or random for several datasets that are streamed, got {settings['view_order']}: to "
                "know how difficult a view is, all would have to be read in each epoch. Set another, or load them without "
                "`streaming=True`."
            )
        return self._copy(_order=order)

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
        check_count("world_size", world_size)
        check_count("rank", rank, 0)
        if not rank < world_size:
            raise ConfigError(f"`rank` must be from 0 to {world_size - 1}, got {rank}.")
        check_count("batch_size", batch_size)
        # Those of NumPy would not be JSON's.
        return self._copy(_rank=int(rank), _shares=Shares(int(world_size), 1, int(batch_size), bool(even)))

    def progress(self, batches: int, *, num_workers: int = 0) -> dict[str, Any]:
        """Returns how far this epoch is when each process has seen `batches` batches since it began to iterate, in JSON types.

        Args:
            batches: Number of batches, of the `batch_size` given to `split_by_node`, from a DataLoader with `in_order`.
            num_workers: Number of workers of each process's DataLoader.

        Raises:
            ConfigError: A number is impossible, or this is not one process's share.
        """
        check_count("batches", batches, 0)
        check_count("num_workers", num_workers, 0)
        if self._shares is None:
            raise ConfigError(
                "one process's share must be asked for its progress, which knows how many rows a batch has, got the whole "
                "stream. Ask what `split_by_node` returned, with the `batch_size`, or the `ReinforcedLoader` of the stream."
            )
        done = self._so_far() or Progress(self.epoch, self._order_of_rows(), [])
        return done.after(self._shares_of(num_workers), int(batches)).to_dict()

    def resumed(self, progress: dict[str, Any]) -> Self:
        """Returns this dataset in the epoch that was left, which goes on there: what was seen then is not seen again.

        Shards whose rows were all seen are not read again, and no image of a seen row is decoded. With the same numbers of
        processes and workers and the same `batch_size` the epoch goes on with the same batches in the same order; with others
        the rows that nobody has seen are shared out again. All other epochs are whole.

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
        if differing := unlike_names(expected, found.order):
            raise ConfigError(
                "an epoch must go on in its own order, but the progress is one of another "
                f"{', '.join(differing)}: {found.order!s:.300}, here {expected!s:.300}. Restore it; "
                "what a `ReinforcedLoader` was given of the order, such as its `seed`, by `ordered`, before `resumed`."
            )
        rest = self._copy(_progress=found)
        rest.set_epoch(found.epoch)
        return rest

    def undone(self) -> Self:
        """Returns this dataset with views that are still to be made on a device (`hf_dr.replay.device`)."""
        return self._copy(_undone=True)

    def _copy(self, **changes: Any) -> Self:
        new = copy.copy(self)
        new.__dict__.update(changes, _epoch=copy.copy(self._epoch))
        return new

    def __len__(self) -> int:
        progress, rows = self._so_far(), self._rows
        rows = rows if progress is None else len(progress.unseen(rows))
        return len(self._shares_of(0).of_process(rows, self._rank))

    def _shares_of(self, num_workers: int) -> Shares:
        return replace(self._shares or Shares(), num_workers=max(1, int(num_workers)))

    def _so_far(self) -> Progress | None:
        """What was seen of this epoch before it went on; None where it was not begun."""
        return self._progress if self._progress is not None and self._progress.epoch == self.epoch else None

    def _order_of_rows(self) -> dict[str, Any]:
        """What the order of an epoch's rows follows from, in JSON types."""
        order = {name: as_plain(value) for name, value in self._order.items()}
        return {"fingerprint": self.fingerprint, "shuffled_shards": self.shuffled_shards, **order}

    def __getitem__(self, index: Any) -> NoReturn:
        """Refuses, with a ConfigError: rows come as they are read."""
        _refuse_choice(f"the index {index!r:.80}")

    def select(self, *_: Any, **__: Any) -> NoReturn:
        """Refuses: see `__getitem__`."""
        _refuse_choice("a call of `select`")

    def train_test_split(self, *_: Any, **__: Any) -> NoReturn:
        """Refuses: see `__getitem__`."""
        _refuse_choice("a call of `train_test_split`")

    def shuffle(self, *_: Any, **__: Any) -> NoReturn:
        """Refuses, with a ConfigError: each epoch has an order of its own."""
        raise ConfigError(
            "a stream is in another order in each epoch (by the `seed` of `ReinforcedTrainer`, `ReinforcedLoader` or "
            "`ordered`), got a call of `shuffle`. Leave it out; `shuffled_shards` mixes the rows of more files."
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = self.epoch  # of this iteration, whatever is set meanwhile
        part, turn = self._part_of(epoch)
        groups = self._groups(epoch, part.sizes, self._places())
        reader = ThreadPoolExecutor(1, thread_name_prefix="hf_dr_shards")
        try:
            pending = [reader.submit(part.read, group.shards) for group in groups[:1]]
            for place, group in enumerate(groups):
                rows = pending.pop().result()
                # The next group is read while this one is replayed.
                pending += [reader.submit(part.read, later.shards) for later in groups[place + 1 : place + 2]]
                yield from self._replay(rows, group, epoch, turn)
        finally:
            reader.shutdown(wait=False, cancel_futures=True)

    def _part_of(self, epoch: int) -> tuple[StreamedShards, int]:
        """The part whose views an epoch shows, and which of the part's own epochs it is."""
        if len(self._parts) == 1:
            return self._parts[0], epoch
        cycle, step = divmod(epoch, self.num_views)
        shown = int(KeyedPermutation(self.num_views, self.seed, domain=DOMAIN_SCHEDULE, minor=cycle)(np.asarray(step)))
        number, own = place_in_parts(self._starts, shown)
        return self._parts[number], cycle * self._parts[number].template.num_views + own

    def _places(self) -> np.ndarray:
        """The places in the epoch's order, int64, rising, of the rows that this worker is to give."""
        worker = torch.utils.data.get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        progress = self._so_far() or Progress(self.epoch, {}, [])
        return progress.left(self._rows, self._rank, number, self._shares_of(count))

    def _groups(self, epoch: int, sizes: np.ndarray, places: np.ndarray) -> list[_Group]:
        """The groups of shards that hold these places of the epoch's order, one after the other."""
        rng = keyed_rng(self._order["seed"], domain=DOMAIN_ORDER, major=epoch)
        order = rng.permutation(len(sizes))
        groups = []
        first = 0  # place in the epoch of the group's first row
        for number, at in enumerate(range(0, len(order), self.shuffled_shards)):
            shards = order[at : at + self.shuffled_shards]
            end = first + int(sizes[shards].sum())
            begun, ended = np.searchsorted(places, [first, end])
            if begun < ended:
                groups.append(_Group(number, shards.tolist(), places[begun:ended] - first))
            first = end
        return groups

    def _replay(self, rows: ReinforcedDataset, group: _Group, epoch: int, turn: int) -> Iterator[dict[str, Any]]:
        # Part 0 of the epoch's order is that of the shards.
        sampler = ReinforcedSampler(rows, **self._order)
        indices = list(sampler.epoch_indices(epoch, part=1 + group.number, turn=turn))
        # Chunks begin at even places, as pairs do.
        ends = np.flatnonzero(np.diff(group.places // _CHUNK)) + 1
        for places in np.split(group.places, ends):
            chunk = [indices[place] for place in places.tolist()]
            items = undone_items(rows, chunk) if self._undone else rows.__getitems__(chunk)
            yield from (cut_answers(item, self.top_k) for item in items)

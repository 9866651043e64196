"""Who reads which rows of a stream's epoch: processes, the workers of their loaders, and those who go on after a stop."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from hf_dr.store.json_files import as_object, validated

_Count = Annotated[int, Field(ge=1, le=1 << 20)]


@dataclass(frozen=True)
class Shares:
    """How rows are shared out: a stretch of them to each process, and to each of its loader's workers one of its batches.

    A loader takes the batches of its workers in turn, so the number of batches tells which rows a process has seen.

    Attributes:
        world_size: Processes.
        num_workers: Workers of each process's loader; 1 also stands for none.
        batch_size: Rows of a batch; only the last one of a process is shorter.
        even: Whether all processes have equally many rows. Where they do not go into `world_size`, some processes see one row
            that is another's, too.
        batches: How many of its batches each process has seen already.
    """

    world_size: _Count = 1
    num_workers: _Count = 1
    batch_size: _Count = 1
    even: bool = False
    batches: Annotated[int, Field(ge=0, le=1 << 40)] = 0

    def of_process(self, rows: int, rank: int) -> range:
        """Returns the share of a process in `rows` rows."""
        start = rank * rows // self.world_size
        if not self.even:
            return range(start, (rank + 1) * rows // self.world_size)
        # Rounded up. A share that would be one row shorter is never the last one: there is a row after it.
        return range(start, start + -(-rows // self.world_size))

    def of_worker(self, rows: int, rank: int, worker: int) -> range:
        """Returns what is left to a worker of a process's new loader.

        The workers of the new loader take the places of those of the old one so that the batches go on in the same order.
        """
        share = self.of_process(rows, rank)
        numbers, workers = (turns[self.batches :] for turns in self._in_turn(len(share)))
        next_ones = list(dict.fromkeys(workers.tolist()))
        if worker >= len(next_ones):
            return share[:0]
        own = numbers[workers == next_ones[worker]]
        return share[own[0] * self.batch_size : (own[-1] + 1) * self.batch_size]

    def unseen(self, rows: int) -> np.ndarray:
        """Returns which of `rows` rows no process has seen, int64."""
        seen = np.zeros(rows, bool)
        for rank in range(self.world_size):
            share = self.of_process(rows, rank)
            numbers, _ = self._in_turn(len(share))
            is_done = np.zeros(len(numbers), bool)
            is_done[numbers[: self.batches]] = True
            seen[share.start : share.stop] |= np.repeat(is_done, self.batch_size)[: len(share)]
        return np.flatnonzero(~seen)

    def _in_turn(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of a process's batches, int64, in the order in which its loader gives them, and their workers."""
        count = -(-rows // self.batch_size)
        firsts = count * np.arange(self.num_workers) // self.num_workers
        numbers = np.arange(count)
        workers = np.searchsorted(firsts, numbers, side="right") - 1
        order = np.lexsort((workers, numbers - firsts[workers]))
        return numbers[order], workers[order]


@dataclass(frozen=True)
class Progress:
    """How far an epoch of a stream has been seen; `to_dict` is JSON, and `from_dict` reads it.

    Attributes:
        order: What the order of the epoch's rows follows from.
        stretches: What was seen: batches of one division of the rows, then of another one of what was left, and so on.
    """

    epoch: Annotated[int, Field(ge=0)]
    order: dict[str, Any]
    stretches: list[Shares]

    def after(self, shares: Shares, batches: int) -> Progress:
        """Returns the progress after `batches` more batches of each process."""
        earlier, last = self._going_on(shares)
        return replace(self, stretches=[*earlier, replace(last, batches=last.batches + batches)])

    def unseen(self, rows: int) -> np.ndarray:
        """Returns the places in an epoch of `rows` rows that no process has seen, int64."""
        places = np.arange(rows)
        for stretch in self.stretches:
            places = places[stretch.unseen(len(places))]
        return places

    def left(self, rows: int, rank: int, worker: int, shares: Shares) -> np.ndarray:
        """Returns the places in an epoch of `rows` rows that are left to a worker of a process's new loader, int64.

        If the division is the last one again, they are what its processes had not seen yet, in the same batches; otherwise the
        unseen rows are shared out again.
        """
        earlier, last = self._going_on(shares)
        places = replace(self, stretches=earlier).unseen(rows)
        own = last.of_worker(len(places), rank, worker)
        return places[own.start : own.stop]

    def _going_on(self, shares: Shares) -> tuple[list[Shares], Shares]:
        """Returns the stretches before the one that goes on, and that one: the last, or a new one."""
        if self.stretches and replace(self.stretches[-1], batches=0) == shares:
            return self.stretches[:-1], self.stretches[-1]
        return self.stretches, shares

    def to_dict(self) -> dict[str, Any]:
        """Returns it in JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Any) -> Progress:
        """Reads what `to_dict` returned; a FormatError if it is something else."""
        where, advice = "the progress of a stream", "Give what its `progress` returned."
        content = as_object(content, where, advice)
        stretches = content.get("stretches")
        if isinstance(stretches, list):
            stretches = [validated(Shares, as_object(one, where, advice), where, advice) for one in stretches]
        return validated(cls, {**content, "stretches": stretches}, where, advice)

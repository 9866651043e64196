"""Which row and view comes when: a function of (seed, epoch) alone, made in the main process and sent with the index.

Nothing depends on workers, processes or restarts, and no `set_epoch` has to reach a dataset that was copied to a worker.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TypedDict

import numpy as np
import torch

from hf_dr.errors import ConfigError
from hf_dr.replay.epoch import checked_epoch
from hf_dr.replay.names import BY_DIFFICULTY, DIFFICULTIES, VIEW_ORDERS
from hf_dr.replay.reinforced_data import MappedReinforcedData, ReinforcedData, check_loaded
from hf_dr.replay.view_requests import View, fresh_view, ranked_view
from hf_dr.settings import Real, check_count
from hf_dr.teacher.signals import SAMPLED
from hf_dr.views.rng import DOMAIN_ORDER, check_seed, keyed_rng


class OrderSettings(TypedDict, total=False):
    """The settings of an order; see `ReinforcedSampler`."""

    seed: int
    view_order: str
    view_difficulty: str
    num_epochs: int | None
    reinforced_probability: float


def check_order(
    data: ReinforcedData,
    *,
    view_order: str = "all",
    view_difficulty: str = "entropy",
    num_epochs: int | None = None,
    reinforced_probability: float = 1.0,
    seed: int = 0,
) -> None:
    """Checks that the settings of an order are possible and fit the data; a ConfigError if not."""
    check_seed(seed)
    for name, value, known in (
        ("view_order", view_order, VIEW_ORDERS),
        ("view_difficulty", view_difficulty, DIFFICULTIES),
    ):
        if value not in known:
            raise ConfigError(f"`{name}` must be one of {', '.join(known)}, got {value!r}.")
    if num_epochs is not None:
        check_count("num_epochs", num_epochs)
    if view_order in BY_DIFFICULTY:
        if num_epochs is None:
            raise ConfigError(
                f"`num_epochs` must be the epochs of the whole training for `view_order` {view_order}, got None. Give it."
            )
        if data.paired:
            raise ConfigError(
                f"`view_order` must be all or random for a dataset that mixes, got {view_order}: two rows that are mixed show "
                "their views of one number together, and each would have its own order. Set another."
            )
        if data.signal == SAMPLED:
            raise ConfigError(
                f"`view_order` must be all or random for the signal `{SAMPLED}`, got {view_order}: drawn classes do not tell "
                "how difficult their view is. Set another."
            )
        if view_difficulty == "cross_entropy" and not data.has_labels:
            raise ConfigError(
                "`view_difficulty` must be entropy for a dataset without labels, got cross_entropy. Set it to entropy."
            )
    Real(0, 1).check("reinforced_probability", reinforced_probability)
    if reinforced_probability < 1 and not data.has_labels:
        raise ConfigError(
            f"`reinforced_probability` must be 1 for a dataset without labels, got {reinforced_probability}. Set it to 1, in "
            "`ReinforcedTrainingArguments` or for a sampler or loader; or reinforce with the `label_column` of the base."
        )


class ReinforcedSampler(torch.utils.data.Sampler[tuple[int, View]]):
    """Yields (row, view) for each row once in an epoch, in random order: the indices of what `load_reinforced` returns.

    With a mixing augmentation the two rows of a pair follow each other, from an even place on, so a batch of even size
    holds both and each image is decoded and augmented once.

    Where several processes train together, each has a sampler with its `rank`, and gets a part of the epoch: batches of even
    size hold together what one process would see. The first rows come again at the end where the parts would differ in length.

    Args:
        dataset: What is sampled.
        seed: Seed of the order.
        view_order: `all`: over V epochs each row shows each of its views once, in an order of its own; `random`: any view at
            any time; `easy_first`, `hard_first`: over the whole training the views of a row come by their difficulty, the
            easiest first or the hardest. The last two cannot mix.
        view_difficulty: What is difficult: `entropy` of the stored answer, or `cross_entropy` of it to the label.
        num_epochs: Epochs of the whole training; needed where views come by their difficulty.
        reinforced_probability: Share of samples that replay a stored view; the others are newly drawn and have a label
            only.
        num_replicas: The processes that train together, where nothing else shares out the batches. accelerate and
            `ReinforcedTrainer` do: leave it out there.
        rank: Number of this process, from 0 to `num_replicas` - 1.

    Raises:
        ConfigError: A setting is impossible, or does not fit the data.
    """

    def __init__(
        self,
        dataset: MappedReinforcedData,
        *,
        seed: int = 0,
        view_order: str = "all",
        view_difficulty: str = "entropy",
        num_epochs: int | None = None,
        reinforced_probability: float = 1.0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        check_loaded(dataset, MappedReinforcedData, " without `streaming=True`")
        check_count("num_replicas", num_replicas)
        check_count("rank", rank, 0)
        if not rank < num_replicas:
            raise ConfigError(
                f"`rank` must be from 0 to `num_replicas` - 1, got rank {rank} of {num_replicas}. Give those of the process "
                "group: `dist.get_world_size()` and `dist.get_rank()`."
            )
        check_order(
            dataset,
            view_order=view_order,
            view_difficulty=view_difficulty,
            num_epochs=num_epochs,
            reinforced_probability=reinforced_probability,
            seed=seed,
        )
        self._dataset = dataset
        self._seed = seed
        self._view_order = view_order
        self._view_difficulty = view_difficulty
        self._num_epochs = num_epochs
        self._reinforced_probability = reinforced_probability
        self._num_replicas = num_replicas
        self._rank = rank
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next `iter`, from 0 on."""
        self.epoch = checked_epoch(epoch)

    def __repr__(self) -> str:
        told = f"{len(self):,} rows, view_order={self._view_order!r}, seed={self._seed}, epoch {self.epoch}"
        part = f", part {self._rank} of {self._num_replicas}" if self._num_replicas > 1 else ""
        return f"{type(self).__name__}({told}{part})"

    def __len__(self) -> int:
        rows = len(self._dataset)
        return rows if self._num_replicas == 1 else 2 * math.ceil(rows / (2 * self._num_replicas))

    def __iter__(self) -> Iterator[tuple[int, View]]:
        # Rows go in twos, so that pairs stay together, and from the first one again until all parts are of one length.
        epoch = self.epoch
        again = itertools.chain.from_iterable(self.epoch_indices(epoch) for _ in itertools.count())
        order = itertools.islice(again, len(self) * self._num_replicas)
        return (index for place, index in enumerate(order) if place // 2 % self._num_replicas == self._rank)

    def epoch_indices(self, epoch: int, part: int = 0, turn: int | None = None) -> Iterator[tuple[int, View]]:
        """Returns an iterator over row and view of an epoch, in order.

        Args:
            epoch: Its number.
            part: Each part of a stream has its own order.
            turn: The epoch whose views are shown where several datasets take turns. Default: this one.

        Raises:
            ConfigError: The training should have been over, where views come by their difficulty.
        """
        rng = keyed_rng(self._seed, domain=DOMAIN_ORDER, major=epoch, minor=part)
        # The generator is drawn from in this order: views, new views, rows. Another would be another training.
        numbers = self._numbers(epoch if turn is None else turn, rng)
        is_new = (rng.random(len(self._dataset)) >= self._reinforced_probability) | (self._dataset.source_rows < 0)
        order = self._row_order(int(numbers[0]), rng)
        shown = numbers[order].tolist()
        views: list[View] = shown
        if self._view_order in BY_DIFFICULTY:
            # One request for each rank, which all its rows share: so they are quick to make and to send to the workers.
            by_rank = [ranked_view(rank, self._view_difficulty) for rank in range(self._dataset.num_views)]
            views = [by_rank[rank] for rank in shown]
        new = fresh_view(epoch)
        for place in np.flatnonzero(is_new[order]).tolist():
            views[place] = new
        return zip(order.tolist(), views, strict=True)

    def _numbers(self, epoch: int, rng: np.random.Generator) -> np.ndarray:
        """Returns the stored view of each row, int64 (rows,), or its rank where views come by their difficulty."""
        dataset = self._dataset
        rows = np.arange(len(dataset))
        if self._view_order == "all":
            return dataset.scheduled_views(rows, epoch)
        if self._view_order == "random":
            # One view for all rows where pairs are matched by view; else each row its own.
            drawn = rng.integers(dataset.num_views, size=1 if dataset.paired else len(dataset))
            return np.broadcast_to(drawn, len(dataset))
        assert self._num_epochs is not None
        if epoch >= self._num_epochs:
            raise ConfigError(
                f"`epoch` must be below `num_epochs`, {self._num_epochs}, over which views are spread, got {epoch}. Give "
                "those of the whole training."
            )
        ranks = dataset.scheduled_ranks(rows, epoch, self._num_epochs)
        return dataset.num_views - 1 - ranks if self._view_order == "hard_first" else ranks

    def _row_order(self, view: int, rng: np.random.Generator) -> np.ndarray:
        """Returns all rows in random order, int64 (rows,): those that `view` mixes with each other stay together."""
        couples, singles = self._dataset.pairs(view)
        singles = singles[rng.permutation(len(singles))]
        # Rows without a partner go in twos as well, so that each pair begins at an even place. An odd one comes last.
        even = len(singles) // 2 * 2
        couples = np.concatenate([couples, singles[:even].reshape(-1, 2)])
        return np.concatenate([couples[rng.permutation(len(couples))].ravel(), singles[even:]])

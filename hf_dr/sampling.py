"""Which row and view comes when: a function of (seed, epoch) alone, made in the main process and sent with the index.

Nothing depends on workers, processes or restarts, and no `set_epoch` has to reach a dataset that was copied to a worker.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from hf_dr.errors import ConfigError
from hf_dr.interface import MappedReinforcedData, ReinforcedData, fresh_view
from hf_dr.rng import DOMAIN_ORDER, keyed_rng

VIEW_ORDERS = ("cycle", "random")


def check_order(data: ReinforcedData, view_order: str, reinforced_probability: float) -> None:
    """Checks the settings of an order.

    Raises:
        ConfigError: A setting is impossible, or unreinforced samples are asked for and there are no labels.
    """
    if view_order not in VIEW_ORDERS:
        raise ConfigError(f"`view_order` must be one of {', '.join(VIEW_ORDERS)}, got {view_order!r}.")
    if not 0 <= reinforced_probability <= 1:
        raise ConfigError(f"`reinforced_probability` must be between 0 and 1, got {reinforced_probability}.")
    if reinforced_probability < 1 and not data.has_labels:
        raise ConfigError(
            f"`reinforced_probability` must be 1 for a dataset without labels, got {reinforced_probability}. Set it to 1."
        )


class ReinforcedSampler(torch.utils.data.Sampler[tuple[int, int]]):
    """Yields (row, view) for each row once in an epoch, in random order.

    With a mixing augmentation the two rows of a pair follow each other, from an even place on, so a batch of even size
    holds both and each image is decoded and augmented once.

    Args:
        dataset: What is sampled.
        seed: Of the order.
        view_order: `cycle`: over V epochs each row shows each of its views once; `random`: any view at any time.
        reinforced_probability: Share of samples that replay a stored view; the others are drawn anew and have a label
            only.

    Raises:
        ConfigError: A setting is impossible, or unreinforced samples are asked for and there are no labels.
    """

    def __init__(
        self,
        dataset: MappedReinforcedData,
        *,
        seed: int = 0,
        view_order: str = "cycle",
        reinforced_probability: float = 1.0,
    ) -> None:
        check_order(dataset, view_order, reinforced_probability)
        self._dataset = dataset
        self._seed = seed
        self._view_order = view_order
        self._reinforced_probability = reinforced_probability
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next `iter`."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rows, views = self.epoch_indices(self.epoch)
        return zip(rows.tolist(), views.tolist(), strict=True)

    def epoch_indices(self, epoch: int, part: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows and views of an epoch, both int64 (rows,), in order; each part of a stream has its own order."""
        rng = keyed_rng(self._seed, domain=DOMAIN_ORDER, major=epoch, minor=part)
        count = len(self._dataset)
        if self._view_order == "cycle":
            views = self._dataset.scheduled_views(np.arange(count), epoch)
        else:
            # One view for all rows where pairs are matched by view; else each row its own.
            drawn = rng.integers(self._dataset.num_views, size=1 if self._dataset.paired else count)
            views = np.broadcast_to(drawn, count).copy()
        fresh = (rng.random(count) >= self._reinforced_probability) | (self._dataset.source_rows < 0)
        # Pairs are shuffled, not rows; who has no partner goes in twos, too, so that each pair begins at an even place.
        couples, singles = self._dataset.pairs(int(views[0]))
        singles = singles[rng.permutation(len(singles))]
        even = len(singles) // 2 * 2
        couples = np.concatenate([couples, singles[:even].reshape(-1, 2)])
        order = np.concatenate([couples[rng.permutation(len(couples))].ravel(), singles[even:]])
        views[fresh] = fresh_view(epoch)
        return order, views[order]

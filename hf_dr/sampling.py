"""Which row and view comes when: a function of (seed, epoch) alone, made in the main process and sent with the index.

Nothing depends on workers, processes or restarts, and no `set_epoch` has to reach a dataset that was copied to a worker.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from hf_dr.errors import ConfigError
from hf_dr.replay import ReinforcedDataset, fresh_view
from hf_dr.rng import DOMAIN_ORDER, Matching, keyed_rng

VIEW_ORDERS = ("cycle", "random")


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
        dataset: ReinforcedDataset,
        *,
        seed: int = 0,
        view_order: str = "cycle",
        reinforced_probability: float = 1.0,
    ) -> None:
        if view_order not in VIEW_ORDERS:
            raise ConfigError(f"`view_order` must be one of {', '.join(VIEW_ORDERS)}, got {view_order!r}.")
        if not 0 <= reinforced_probability <= 1:
            raise ConfigError(f"`reinforced_probability` must be between 0 and 1, got {reinforced_probability}.")
        if reinforced_probability < 1 and not dataset.has_labels:
            raise ConfigError(
                f"`reinforced_probability` must be 1 for a dataset without labels, got {reinforced_probability}. Set it to 1."
            )
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

    def epoch_indices(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows and views of an epoch, both int64 (rows,), in order."""
        rng = keyed_rng(self._seed, domain=DOMAIN_ORDER, major=epoch)
        count = len(self._dataset)
        mixes = self._dataset.augmentation.mixes
        if self._view_order == "cycle":
            views = self._dataset.scheduled_views(np.arange(count), epoch)
        else:
            # One view for all rows where pairs are matched by view; else each row its own.
            drawn = rng.integers(self._dataset.num_views, size=1 if mixes else count)
            views = np.broadcast_to(drawn, count).copy()
        fresh = rng.random(count) >= self._reinforced_probability
        order = self._paired_order(rng, int(views[0])) if mixes else rng.permutation(count)
        views[fresh] = fresh_view(epoch)
        return order, views[order]

    def _paired_order(self, rng: np.random.Generator, view: int) -> np.ndarray:
        """Shuffles pairs, not rows; rows whose partner is not in the dataset come last."""
        dataset, provenance = self._dataset, self._dataset.provenance
        size = provenance.num_rows if provenance.mixing_scope == "dataset" else provenance.shard_size
        row_of = np.full(provenance.num_rows, -1)
        row_of[dataset.source_rows] = np.arange(len(dataset))
        pairs, odd = [], []
        for start in range(0, provenance.num_rows, size):
            stop = min(start + size, provenance.num_rows)
            matched = row_of[Matching(start, stop, provenance.seed, view).pairs()]
            even = len(matched) // 2 * 2
            couples = matched[:even].reshape(-1, 2)
            whole = (couples >= 0).all(axis=1)
            pairs.append(couples[whole])
            odd.append(np.concatenate([couples[~whole].ravel(), matched[even:]]))
        couples, singles = np.concatenate(pairs), np.concatenate(odd)
        couples = couples[rng.permutation(len(couples))]
        singles = singles[singles >= 0]
        return np.concatenate([couples.ravel(), singles[rng.permutation(len(singles))]])

"""A training on a stream that is resumed within an epoch: it seeks to the rows that were not seen, and reads no others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hf_dr.errors import ConfigError
from hf_dr.files import write_json
from hf_dr.replay.streaming import StreamedReinforcedDataset
from hf_dr.training.checkpoints import read_settings

PROGRESS_FILE = "stream_progress.json"
"""How far the epoch of a checkpoint is: what `StreamedReinforcedDataset.progress` returns."""


class StreamProgress:
    """How far a `ReinforcedTrainer` is in the epoch of a stream: kept with each checkpoint, for a resumed one."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._share: StreamedReinforcedDataset | None = None  # of this process, in the present epoch
        self._first_step = 0  # the step at which it began to iterate
        self._checkpoint: Path | None = None

    def resume_from(self, checkpoint: str | None) -> None:
        """Remembers the checkpoint that a training goes on from."""
        self._checkpoint = None if checkpoint is None else Path(checkpoint)

    def save(self, folder: Path) -> None:
        """Writes the progress next to the weights, while a stream is being trained on."""
        if self._share is None:
            return
        args = self._trainer.args
        batches = (self._trainer.state.global_step - self._first_step) * args.gradient_accumulation_steps
        progress = self._share.progress(batches, num_workers=args.dataloader_num_workers)
        write_json(folder / PROGRESS_FILE, progress)

    @contextmanager
    def in_epoch(self, epoch: int) -> Iterator[None]:
        """Follows an epoch, if it is one of a stream."""
        if not isinstance(self._trainer.train_dataset, StreamedReinforcedDataset):
            yield
            return
        self._first_step = self._trainer.state.global_step
        self._share, _ = self._trainer._in_order()
        self._share.set_epoch(epoch)
        try:
            yield
        finally:
            self._share = None

    def rest(self) -> torch.utils.data.DataLoader:
        """Returns a loader of the rows that were not seen, in place of one that skips batches."""
        assert self._share is not None
        args = self._trainer.args
        if not getattr(args, "dataloader_in_order", True) and args.dataloader_num_workers > 1:
            raise ConfigError(
                "a stream can go on within an epoch only if its batches come in their order, else nobody knows which rows were "
                "seen, got `dataloader_in_order` False. Resume from the end of an epoch, or start a new run with True."
            )
        assert self._checkpoint is not None
        epoch = self._share.epoch
        share, _ = self._trainer._in_order(read_settings(self._checkpoint / PROGRESS_FILE))
        share.set_epoch(epoch)
        self._share = share
        return self._trainer._loader_of(share, None)

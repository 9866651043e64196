"""Persistent workers of loaders end with the training."""

import multiprocessing
import time

from tests.training.helpers import Watched, pooled, settings_in


def test_workers_end_with_the_training(tmp_path, tiny_plus):
    before = set(multiprocessing.active_children())
    persistent = {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "num_train_epochs": 2}
    evaluated = {"eval_strategy": "epoch", "per_device_eval_batch_size": 4}
    args = settings_in(tmp_path, **persistent, **evaluated)
    trainer = Watched(pooled(), args, train_dataset=tiny_plus, eval_dataset=tiny_plus)
    trainer.train()
    deadline = time.monotonic() + 10
    while set(multiprocessing.active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not set(multiprocessing.active_children()) - before
    assert trainer.evaluate()["eval_loss"] > 0, "a loader that is used again has new workers"

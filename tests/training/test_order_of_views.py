"""Which views a student sees, and in which order."""

import copy

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard

from hf_dr.errors import ConfigError
from hf_dr.replay.loading import load_reinforced
from hf_dr.training.trainer import ReinforcedTrainer
from training.helpers import ROWS, STEPS, VIEWS, Watched, every_view, pooled, same, settings_in, shown, weights


@pytest.mark.parametrize("mixing", [False, True])
def test_in_as_many_epochs_as_views_each_view_is_shown_once(plain, tiny_plus, settings, mixing):
    dataset = tiny_plus if mixing else plain
    trainer = Watched(pooled(), settings(num_train_epochs=VIEWS, reinforced_probability=1.0), train_dataset=dataset)
    trainer.train()
    known = every_view(dataset)
    order = [known[pixels.numpy().tobytes()] for pixels in shown(trainer)]
    assert sorted(order) == sorted(known.values())
    for epoch in range(VIEWS):
        assert sorted(row for row, _ in order[epoch * ROWS : (epoch + 1) * ROWS]) == list(range(ROWS))


def test_random_views_repeat(plain, settings):
    args = settings(num_train_epochs=VIEWS, reinforced_probability=1.0, view_order="random")
    trainer = Watched(pooled(), args, train_dataset=plain)
    trainer.train()
    known = every_view(plain)
    order = [known[pixels.numpy().tobytes()] for pixels in shown(trainer)]
    assert len(set(order)) < len(order)
    assert sorted(row for row, _ in order) == sorted(list(range(ROWS)) * VIEWS)


@pytest.mark.parametrize("workers", [{}, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}], ids=str)
@pytest.mark.parametrize("order", ["easy_first", "hard_first"])
def test_views_come_by_their_difficulty_over_the_whole_training(plain, settings, order, workers):
    args = settings(num_train_epochs=VIEWS, reinforced_probability=1.0, view_order=order, **workers)
    trainer = Watched(pooled(), args, train_dataset=plain)
    trainer.train()
    known = every_view(plain)
    shown_by: dict[int, list[float]] = {row: [] for row in range(ROWS)}
    for row, view in (known[pixels.numpy().tobytes()] for pixels in shown(trainer)):
        shown_by[row].append(plain.difficulties(row, "entropy")[view])
    for row, values in shown_by.items():
        assert (values if order == "easy_first" else values[::-1]) == sorted(plain.difficulties(row, "entropy"))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_train_epochs": 3}, {"num_train_epochs": 1.5}, {"max_steps": 1}, {"max_steps": STEPS}, {"max_steps": 7},
        {"max_steps": 5, "gradient_accumulation_steps": 2},
        {"max_steps": 5, "per_device_train_batch_size": 5}, {"max_steps": 2, "gradient_accumulation_steps": 64},
        {"max_steps": 5, "per_device_train_batch_size": 5, "dataloader_drop_last": True},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("streaming", [False, True])
def test_the_epochs_of_the_training_are_known_before(in_shards, settings, changes, streaming):
    args = settings(view_order="easy_first", **changes)
    train = load_reinforced(in_shards["plain"], streaming=streaming)
    trainer = ReinforcedTrainer(pooled(), args, train_dataset=train)
    epochs = trainer._num_epochs
    trainer.train()
    assert epochs == trainer.state.num_train_epochs == -(-trainer.state.epoch // 1)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("processes", [2, 3, 5])
def test_several_processes_know_the_epochs_of_the_training(in_shards, settings, monkeypatch, processes, drop_last):
    """By the lengths of accelerate's batch sampler and of the shares of a stream."""
    for batch_size in (1, 2, 5):
        args = settings(
            view_order="easy_first", max_steps=7, per_device_train_batch_size=batch_size, dataloader_drop_last=drop_last
        )
        mapped, stream = (load_reinforced(in_shards["plain"], streaming=streaming) for streaming in (False, True))
        trainers = [ReinforcedTrainer(pooled(), args, train_dataset=train) for train in (mapped, stream)]
        batches = torch.utils.data.BatchSampler(range(ROWS), batch_size, drop_last)
        share = stream.split_by_node(0, processes, batch_size=batch_size, even=True)
        steps = (
            len(BatchSamplerShard(batches, processes)),
            len(torch.utils.data.DataLoader(share, batch_size, drop_last=drop_last)),
        )
        with monkeypatch.context() as patch:
            patch.setattr(type(args), "world_size", property(lambda _: processes))
            assert [trainer._num_epochs for trainer in trainers] == [-(-7 // max(1, n)) for n in steps]


def test_a_dataset_that_mixes_has_no_difficult_views(tiny_plus, settings):
    with pytest.raises(
        ConfigError, match="`view_order` must be all or random for a dataset that mixes, got hard_first"
    ):
        ReinforcedTrainer(pooled(), settings(view_order="hard_first"), train_dataset=tiny_plus)


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_the_share_of_replayed_views(plain, settings, probability):
    trainer = Watched(pooled(), settings(num_train_epochs=8, reinforced_probability=probability), train_dataset=plain)
    trainer.train()
    stored, reinforced = every_view(plain), torch.cat([batch["reinforced"] for batch in trainer.seen])
    assert [pixels.numpy().tobytes() in stored for pixels in shown(trainer)] == reinforced.tolist()
    # 96 draws: three standard errors are 0.15.
    assert reinforced.float().mean().item() == pytest.approx(probability, abs=0.15 if probability == 0.5 else 0)


def test_the_seed_of_the_data_decides_the_order(plain, settings):
    orders = []
    for seeds in ({"seed": 1}, {"seed": 2, "data_seed": 1}, {"seed": 2}):
        trainer = Watched(pooled(), settings(**seeds), train_dataset=plain)
        trainer.train()
        orders.append([pixels.numpy().tobytes() for pixels in shown(trainer)])
    assert orders[0] == orders[1] != orders[2]


def test_training_twice_starts_from_the_first_epoch(plain, settings):
    trainer = Watched(pooled(), settings(num_train_epochs=2), train_dataset=plain)
    trainer.train()
    first, trainer.seen = trainer.seen, []
    trainer.train()
    assert all(same(a, b) for a, b in zip(first, trainer.seen, strict=True))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "mixing"])
def without_workers(request, tmp_path_factory, _plain, _tiny_plus) -> tuple[Watched, dict[str, torch.Tensor]]:
    """A training in which the main process reads; its trainer and the weights that it ended with."""
    dataset = copy.copy(_tiny_plus if request.param else _plain)
    args = settings_in(tmp_path_factory.mktemp("alone"), num_train_epochs=2, reinforced_probability=0.5)
    trainer = Watched(pooled(dropout=0.5), args, train_dataset=dataset)
    trainer.train()
    return trainer, weights(trainer.model)


@pytest.mark.parametrize("workers", [{}, {"dataloader_persistent_workers": True}], ids=str)
def test_workers_change_neither_batches_nor_weights(without_workers, settings, workers):
    alone, learned = without_workers
    args = settings(num_train_epochs=2, reinforced_probability=0.5, dataloader_num_workers=1, **workers)
    trainer = Watched(pooled(dropout=0.5), args, train_dataset=copy.copy(alone.train_dataset))
    trainer.train()
    assert all(same(a, b) for a, b in zip(alone.seen, trainer.seen, strict=True))
    assert same(learned, weights(trainer.model))


@pytest.mark.parametrize("workers", [{}, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}], ids=str)
@pytest.mark.parametrize("kind", ["plain", "mixing"])
def test_a_stream_shows_what_the_map_style_dataset_does(in_shards, settings, kind, workers):
    args = settings(num_train_epochs=2, reinforced_probability=1.0, **workers)
    trainer = Watched(pooled(), args, train_dataset=load_reinforced(in_shards[kind], streaming=True))
    trainer.train()
    dataset = load_reinforced(in_shards[kind])
    known = every_view(dataset)
    assert (trainer.state.global_step, trainer.state.epoch) == (2 * STEPS, 2.0)
    assert trainer.num_examples(trainer.get_train_dataloader()) == ROWS
    for epoch in range(2):
        batches = trainer.seen[epoch * STEPS : (epoch + 1) * STEPS]
        indices = [known[pixels.numpy().tobytes()] for batch in batches for pixels in batch["pixel_values"]]
        assert sorted(indices) == list(enumerate(dataset.scheduled_views(np.arange(ROWS), epoch).tolist()))


def test_a_share_of_a_stream_is_refused(in_shards, unlabelled, settings):
    share = load_reinforced(in_shards["plain"], streaming=True).split_by_node(0, 2)
    with pytest.raises(ConfigError, match=r"must be split once, but this is one process's share"):
        ReinforcedTrainer(pooled(), settings(), train_dataset=share)


def test_several_datasets_at_once(in_shards, settings, tmp_path):
    """Their views add up; the card names both, and a checkpoint is of both."""
    both = load_reinforced([in_shards["plain"], in_shards["mixing"]])
    args = settings(num_train_epochs=2 * VIEWS, reinforced_probability=1.0, save_strategy="epoch")
    trainer = Watched(pooled(), args, train_dataset=both)
    trainer.train()
    known = every_view(both)
    seen = sorted(known[pixels.numpy().tobytes()] for pixels in shown(trainer))
    assert seen == [(row, view) for row in range(ROWS) for view in range(2 * VIEWS)]
    for batch in trainer.seen:
        assert len({known[pixels.numpy().tobytes()][1] for pixels in batch["pixel_values"]}) == 1

    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    for part in both.parts:
        assert part.provenance.fingerprint in card
    assert "plain + mixing" in card
    assert "12 examples, whose views, 4 + 4 of each, were labelled by colours." in card

    one = ReinforcedTrainer(pooled(), args, train_dataset=both.parts[0])
    with pytest.raises(ConfigError, match=r"differs in dataset_fingerprint .*: .*; num_views: 8 there, 4 here"):
        one.train(resume_from_checkpoint=True)

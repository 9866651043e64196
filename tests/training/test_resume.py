"""A training that is stopped and resumed is the same training."""

import copy
import re
from typing import Any

import numpy as np
import pytest
from transformers import TrainerCallback

from hf_dr.errors import ConfigError
from hf_dr.replay.augmented import AugmentedDataset
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.teacher.ensemble import Teacher
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.distillation import OnlineDistillationTrainer
from hf_dr.training.trainer import ReinforcedTrainer
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomResizedCrop
from training.helpers import (
    BATCH,
    ROWS,
    STEPS,
    KillAt,
    KilledError,
    Watched,
    every_view,
    pooled,
    same,
    settings_in,
    timm_student,
    weights,
)  # fmt: skip

PLAIN = Augmentation([RandomResizedCrop(24)])


@pytest.mark.parametrize(("killed_at", "workers"), [(2, 0), (3, 2), (4, 2)])
def test_a_stream_goes_on_where_it_was(in_shards, settings, tmp_path, killed_at, workers):
    def start(name: str, *callbacks: TrainerCallback) -> Watched:
        args = settings(
            output_dir=str(tmp_path / name), num_train_epochs=3, save_strategy="steps", save_steps=1,
            reinforced_probability=0.5, view_order="random", dataloader_num_workers=workers,
        )  # fmt: skip
        stream = load_reinforced(in_shards["mixing"], streaming=True)
        return Watched(pooled(dropout=0.5), args, train_dataset=stream, callbacks=list(callbacks))

    whole = start("whole")
    whole.train()
    if killed_at == 2:
        with pytest.raises(KilledError):
            start("killed", KillAt(killed_at)).train()
    resumed = start("killed")
    left_by = "killed" if killed_at == 2 else "whole"
    resumed.train(resume_from_checkpoint=str(tmp_path / left_by / f"checkpoint-{killed_at}"))
    assert len(resumed.seen) == 3 * STEPS - killed_at
    assert all(same(a, b) for a, b in zip(whole.seen[killed_at:], resumed.seen, strict=True))
    assert same(weights(resumed.model), weights(whole.model))


@pytest.mark.parametrize("streaming", [False, True])
def test_the_same_trainer_goes_on_after_it_was_stopped(in_shards, settings, tmp_path, streaming):
    """As in a notebook, whose cells share one trainer: stopped one step after a checkpoint."""

    def start(name: str) -> Watched:
        args = settings(output_dir=str(tmp_path / name), num_train_epochs=3, save_strategy="steps", save_steps=2)
        data = load_reinforced(in_shards["plain"], streaming=streaming)
        return Watched(pooled(dropout=0.5), args, train_dataset=data)

    whole = start("whole")
    found = whole.train()
    stopped, kill = start("stopped"), KillAt(5)
    stopped.add_callback(kill)
    with pytest.raises(KilledError):
        stopped.train()
    stopped.remove_callback(kill)
    assert stopped.train(resume_from_checkpoint=True).training_loss == pytest.approx(found.training_loss)
    assert all(same(a, b) for a, b in zip(whole.seen, [*stopped.seen[:4], *stopped.seen[5:]], strict=True))
    assert same(weights(stopped.model), weights(whole.model))


def streamed(in_shards, settings, kind: str = "plain", **changes: Any) -> Watched:
    stream = load_reinforced(in_shards[kind], streaming=True)
    args = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2, "reinforced_probability": 1.0, **changes}
    return Watched(pooled(), settings(**args), train_dataset=stream)


def test_other_workers_go_on_with_the_rows_that_were_not_seen(in_shards, settings, tmp_path, decoded):
    """Twice within an epoch, and then the next one."""
    dataset = load_reinforced(in_shards["plain"])
    known = every_view(dataset)
    first = streamed(in_shards, settings, per_device_train_batch_size=3)
    first.train()
    seen, checkpoint = first.seen[:1], tmp_path / "out" / "checkpoint-1"
    assert first.args.output_dir == str(tmp_path / "out")
    for step, workers in ((1, 2), (2, 1)):
        out = tmp_path / f"with_{workers}"
        trainer = streamed(
            in_shards, settings, per_device_train_batch_size=3, dataloader_num_workers=workers, output_dir=str(out)
        )
        trainer.train(resume_from_checkpoint=str(checkpoint))
        assert trainer.state.global_step == 2 * ROWS // 3
        seen += trainer.seen[:1]
        checkpoint = out / f"checkpoint-{step + 1}"
    seen += trainer.seen[1:]
    assert [len(batch["labels"]) for batch in seen] == [3] * (2 * ROWS // 3)
    for epoch in range(2):
        batches = seen[epoch * ROWS // 3 : (epoch + 1) * ROWS // 3]
        indices = [known[pixels.numpy().tobytes()] for batch in batches for pixels in batch["pixel_values"]]
        assert sorted(indices) == list(enumerate(dataset.scheduled_views(np.arange(ROWS), epoch).tolist()))


def test_nothing_that_was_seen_is_decoded_again(in_shards, settings, tmp_path, decoded, monkeypatch):
    monkeypatch.setattr("hf_dr.replay.streamed_shards.check_replay", lambda *_: None)  # it decodes some rows as a proof
    streamed(in_shards, settings).train()
    decoded.clear()
    trainer = streamed(in_shards, settings, output_dir=str(tmp_path / "again"))
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert len(decoded) == 2 * ROWS - 2 * BATCH


@pytest.mark.parametrize("step", [2, STEPS], ids=["within an epoch", "after one"])
def test_a_stream_and_a_loaded_dataset_do_not_go_on_from_each_other(in_shards, settings, tmp_path, step):
    def start(**opened: Any) -> Watched:
        args = settings(output_dir=str(tmp_path / "out"), num_train_epochs=2, save_strategy="steps", save_steps=1)
        return Watched(pooled(), args, train_dataset=load_reinforced(in_shards["plain"], **opened))

    ways: list[dict[str, Any]] = [{}, {"streaming": True}, {"streaming": True, "shuffled_shards": 2}]
    for left in ways:
        start(**left).train()
        checkpoint = tmp_path / "out" / f"checkpoint-{step}"
        for other in ways:
            if other != left:
                there, here = (way.get("shuffled_shards", 1 if way else None) for way in (left, other))
                said = re.escape(
                    f"shuffled_shards (of a stream; None where the dataset is loaded): {there} there, {here} here"
                )
                with pytest.raises(ConfigError, match=said):
                    start(**other).train(resume_from_checkpoint=str(checkpoint))


def test_other_labels_model_arguments_and_answers_are_another_run(tiny_dataset, tiny_teacher, settings, tmp_path):
    def start(labels: list[int], drop_rate: float = 0.0, temperature: float = 1.0) -> ReinforcedTrainer:
        base = tiny_dataset.remove_columns("label").add_column("label", labels)
        drawn = AugmentedDataset(base, PLAIN, image_column="image", label_column="label")
        args = settings(output_dir=str(tmp_path), num_train_epochs=1, save_strategy="epoch", reinforced_probability=0.0)
        teacher = Teacher(tiny_teacher.members, temperature=temperature)
        model = timm_student("test_resnet", drop_rate=drop_rate)
        return OnlineDistillationTrainer(model, args, train_dataset=drawn, teacher=teacher)

    labels = tiny_dataset["label"]
    start([*labels]).train()
    for changes, said in (
        (
            {"labels": [*labels[1:], labels[0]]},
            r"rows \(a hash of which rows of the base these are, and of their labels\): ",
        ),
        ({"drop_rate": 0.5}, r"model_args: \{'drop_rate': 0.0\} there, \{'drop_rate': 0.5\} here"),
        ({"temperature": 2.0}, r"teacher_answers \(a hash of what determines them\): "),
    ):
        with pytest.raises(ConfigError, match=f"differs in {said}"):
            start(**{"labels": [*labels], **changes}).train(resume_from_checkpoint=True)
    start([*labels]).train(resume_from_checkpoint=True)


@pytest.mark.skipif(
    not hasattr(ReinforcedTrainingArguments, "dataloader_in_order"), reason="an older transformers keeps the order"
)
def test_a_stream_whose_batches_came_in_any_order(in_shards, settings, tmp_path):
    changes = {"dataloader_in_order": False, "dataloader_num_workers": 2}
    streamed(in_shards, settings, **changes).train()
    with pytest.raises(
        ConfigError, match=r"only if its batches come in their order, .* got `dataloader_in_order` False"
    ):
        streamed(in_shards, settings, **changes).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    trainer = streamed(in_shards, settings, **changes)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{STEPS}"))
    assert trainer.state.global_step == 2 * STEPS, "at the end of an epoch all rows were seen"


@pytest.mark.parametrize(
    ("killed_at", "mixing", "changes"),
    [
        (2, False, {}),  # within an epoch
        (3, True, {}),  # at an epoch's end
        (5, True, {}),
        (8, False, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
        (4, False, {"dataloader_num_workers": 1}),
        (3, True, {"dataloader_num_workers": 1}),
        (5, True, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}),
        (3, False, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}),
        (5, False, {"view_order": "hard_first", "view_difficulty": "cross_entropy"}),
        (5, False, {"reinforced_probability": 0.0, "mixup_alpha": 0.2, "cutmix_alpha": 1.0}),
        (
            4,
            False,
            {
                "reinforced_probability": 0.0, "mixup_alpha": 0.8, "mixup_prob": 0.7,
                "gradient_accumulation_steps": 2, "per_device_train_batch_size": 3,
            },
        ),
    ],
)  # fmt: skip
def test_killed_and_resumed_equals_uninterrupted(
    plain, tiny_plus, pictures, settings, tmp_path, killed_at, mixing, changes
):
    def start(name: str, *callbacks: TrainerCallback) -> Watched:
        args = settings(
            output_dir=str(tmp_path / name), num_train_epochs=3, save_strategy="steps", save_steps=killed_at, ema_decay=0.7,
            optim="adamw_torch", learning_rate=0.01, lr_scheduler_type="cosine", eval_strategy="epoch",
            **{"reinforced_probability": 0.5, **changes},
        )  # fmt: skip
        dataset = copy.copy(tiny_plus if mixing else plain)
        student = pooled(dropout=0.5)
        return Watched(student, args, train_dataset=dataset, eval_dataset=pictures, callbacks=list(callbacks))

    whole = start("whole")
    whole.train()
    checkpoint = tmp_path / "whole" / f"checkpoint-{killed_at}"
    if not changes:  # a kill leaves what a run that goes on has saved by then
        with pytest.raises(KilledError):
            start("killed", KillAt(killed_at)).train()
        left = tmp_path / "killed" / checkpoint.name
        for file in ("model.safetensors", "ema.safetensors", "reinforced_training.json"):
            assert (left / file).read_bytes() == (checkpoint / file).read_bytes()
        checkpoint = left
    resumed = start("killed")
    resumed.train(resume_from_checkpoint=str(checkpoint))

    done = killed_at * resumed.args.gradient_accumulation_steps
    assert len(resumed.seen) == len(whole.seen) - done > 0
    assert all(same(a, b) for a, b in zip(whole.seen[done:], resumed.seen, strict=True))
    assert same(weights(resumed.model), weights(whole.model))
    assert same(weights(resumed.ema), weights(whole.ema))
    for trainer, name in ((whole, "whole"), (resumed, "killed")):
        trainer.save_model(str(tmp_path / name / "final"))
    for file in ("model.safetensors", "ema.safetensors"):
        one, other = (tmp_path / name / "final" / file for name in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes()


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory, _plain) -> str:
    """The checkpoint of a training of one epoch. Read only."""
    out = tmp_path_factory.mktemp("one_epoch")
    ReinforcedTrainer(pooled(), settings_in(out, save_strategy="epoch"), train_dataset=copy.copy(_plain)).train()
    return str(out / f"checkpoint-{STEPS}")


def test_resuming_from_another_average_or_none(plain, settings, one_epoch):
    later = ReinforcedTrainer(pooled(), settings(num_train_epochs=2, ema_decay=0.5), train_dataset=plain)
    with pytest.raises(
        ConfigError, match=r"averaged weights, but .*-3 has no ema\.safetensors\. Leave `ema_decay` out"
    ):
        later._average.resume_from(one_epoch)
    with pytest.raises(ConfigError, match=r"differs in ema_decay: None there, 0\.5 here"):
        later.train(resume_from_checkpoint=one_epoch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 2.0}, "temperature: 1.0 there, 2.0 here"),
        ({"reinforced_probability": 0.5}, "reinforced_probability: 0.99 there, 0.5 here"),
        ({"view_order": "random"}, "view_order: all there, random here"),
        ({"tail": "zero"}, "tail: uniform there, zero here"),
        ({"label_weight": 0.5}, "label_weight: 0.0 there, 0.5 here"),
        ({"unreinforced_label_smoothing": 0.1}, "unreinforced_label_smoothing: 0.0 there, 0.1 here"),
        ({"data_seed": 7}, "order_seed: 42 there, 7 here"),
        (
            {"dataset": "tiny_plus"},
            "dataset_fingerprint (of the images, their labels, their size and their augmentation): ",
        ),
        ({"num_views": 2}, "num_views: 4 there, 2 here"),
        ({"view_seed": 3}, "view_seed: 0 there, 3 here"),
        ({"rows": range(8)}, "num_rows: 12 there, 8 here"),
        (
            {"selected": [*range(1, ROWS), 0]},
            "rows (a hash of which rows of the base these are, and of their labels): ",
        ),
        ({"normalization": ([0.5] * 3, [0.5] * 3)}, "normalization: [[0.485, 0.456, 0.406], "),
        ({"student": "other"}, "model: Pooled of 392 parameters there, test_vit of "),
    ],
    ids=str,
)
def test_a_checkpoint_of_other_settings_is_refused(plain, tiny_plus, settings, one_epoch, changes, message):
    changes = dict(changes)
    dataset = tiny_plus if changes.pop("dataset", None) else plain
    rows = dataset.plus.select(changes.pop("rows", range(ROWS)))
    views = changes.pop("num_views", None)
    seed = changes.pop("view_seed", 0)
    dataset = ReinforcedDataset(rows, dataset.provenance, num_views=views, seed=seed)
    dataset = dataset.select(changes.pop("selected", range(len(rows))))
    seen = changes.pop("normalization", None)
    student = timm_student() if changes.pop("student", None) else pooled()
    before = weights(student)
    args = settings(num_train_epochs=2, **changes)
    later = ReinforcedTrainer(student, args, train_dataset=dataset, normalization=seen)
    with pytest.raises(ConfigError, match=r"must be resumed with its own settings, but .*-3 differs in ") as error:
        later.train(resume_from_checkpoint=one_epoch)
    assert message in str(error.value)
    assert "Restore them, or start a new run in another `output_dir`" in str(error.value)
    assert same(weights(student), before)


BY_DIFFICULTY = {"view_order": "easy_first", "num_train_epochs": 2}


@pytest.fixture(scope="module")
def easy_first(tmp_path_factory, _plain) -> str:
    """The checkpoint of a training whose views came by their difficulty. Read only."""
    out = tmp_path_factory.mktemp("easy_first")
    args = settings_in(out, save_strategy="epoch", **BY_DIFFICULTY)
    ReinforcedTrainer(pooled(), args, train_dataset=copy.copy(_plain)).train()
    return str(out / f"checkpoint-{2 * STEPS}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train_epochs": 3}, "num_epochs: 2 there, 3 here"),
        ({"max_steps": 2 * STEPS + 1}, "num_epochs: 2 there, 3 here"),
        ({"view_difficulty": "cross_entropy"}, "view_difficulty: entropy there, cross_entropy here"),
        ({"view_order": "hard_first"}, "view_order: easy_first there, hard_first here"),
        ({"view_order": "all"}, "num_epochs: 2 there, None here"),
    ],
    ids=str,
)
def test_the_difficulty_of_views_is_kept_and_so_are_the_epochs(plain, settings, easy_first, changes, message):
    other = ReinforcedTrainer(pooled(), settings(**{**BY_DIFFICULTY, **changes}), train_dataset=plain)
    with pytest.raises(ConfigError, match=r"must be resumed with its own settings, but .*-6 differs in ") as error:
        other.train(resume_from_checkpoint=easy_first)
    assert message in str(error.value)
    as_many_epochs = settings(**BY_DIFFICULTY, max_steps=2 * STEPS)
    ReinforcedTrainer(pooled(), as_many_epochs, train_dataset=plain).train(resume_from_checkpoint=easy_first)


def test_more_epochs_are_no_other_run(plain, settings, one_epoch):
    longer = Watched(pooled(), settings(num_train_epochs=2), train_dataset=plain)
    longer.train(resume_from_checkpoint=one_epoch)
    assert len(longer.seen) == STEPS


def test_another_online_teacher_is_another_run(plain, settings, make_teacher):
    args = settings(save_strategy="epoch", reinforced_probability=0.0)
    OnlineDistillationTrainer(pooled(), args, train_dataset=plain, teacher=make_teacher(8.0)).train()
    other = OnlineDistillationTrainer(pooled(), args, train_dataset=plain, teacher=make_teacher(2.0))
    labels = ReinforcedTrainer(pooled(), args, train_dataset=plain)
    for trainer in (other, labels):
        with pytest.raises(ConfigError, match=r"differs in online_teacher: "):
            trainer.train(resume_from_checkpoint=True)

"""What a run goes on from: its own settings, whole checkpoints, and a folder that nobody else writes to."""

import copy
import dataclasses
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from samples import MAY_CHANGE
from torch import nn
from transformers import AutoModelForImageClassification, BeitConfig, Dinov2Config, SwinConfig
from transformers.training_args import ParallelMode

from hf_dr.errors import ConfigError
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.checkpoints import (
    CHECKSUMS_FILE,
    NOT_COMPARED,
    OF_THE_BEST,
    SAID,
    SETTINGS_FILE,
    arguments_of_steps,
    check_saved_whole,
    compare_settings,
    differences,
    find_damage,
    keep_checkpoints,
    kept_settings,
    last_checkpoint,
    load_renamed,
    plain,
    read_settings,
    write_checksums,
)
from hf_dr.training.resumable import LOCK_FILE
from hf_dr.training.resumable_arguments import ResumableArguments
from hf_dr.training.trainer import ReinforcedTrainer
from hf_dr.transfer.trainer import TransferArguments
from training.helpers import MODELS, SIZE, STEPS, Pooled, pooled, same, settings_in, weights

FIELDS = [field.name for field in dataclasses.fields(ReinforcedTrainingArguments)]
OF_BOTH = [
    (kind, field.name)
    for kind in (ReinforcedTrainingArguments, TransferArguments)
    for field in dataclasses.fields(kind)
]


def another(value: Any) -> Any:
    """Returns another value than an argument has."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return "another"


def write_settings(folder: Path, args: ResumableArguments) -> None:
    (folder / SETTINGS_FILE).write_text(json.dumps(kept_settings(args)))


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize(("kind", "name"), OF_BOTH, ids=lambda each: each if isinstance(each, str) else each.__name__)
def test_every_setting_is_compared_unless_it_shapes_no_weights(tmp_path, caplog, kind, name, best):
    args = kind(str(tmp_path), report_to=[])
    args.load_best_model_at_end = best and name != "load_best_model_at_end"
    write_settings(tmp_path, args)
    compare_settings(tmp_path, {}, {}, args, loud=True)
    assert not caplog.text
    other = copy.copy(args)
    setattr(other, name, another(getattr(args, name)))
    free = name in NOT_COMPARED or name in SAID or (name in OF_THE_BEST and not best)
    if free:
        compare_settings(tmp_path, {}, {}, other, loud=True)
        assert ("Going on from" in caplog.text) == (name in SAID)
        assert (f"{name}: " in caplog.text) == (name in SAID)
    else:
        with pytest.raises(
            ConfigError, match=rf"must be resumed with its own settings, but .*\b{name}: .* there, .* here"
        ):
            compare_settings(tmp_path, {}, {}, other, loud=True)


@pytest.mark.skipif("dataloader_in_order" not in FIELDS, reason="an older transformers has fewer arguments")
def test_the_lists_name_arguments_that_exist():
    assert set(FIELDS) >= NOT_COMPARED | OF_THE_BEST | (set(SAID) - {"device"})
    assert not NOT_COMPARED & OF_THE_BEST


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory, _plain) -> Path:
    """A finished training of two epochs, with a checkpoint of each. Read only."""
    out = tmp_path_factory.mktemp("two_epochs")
    args = settings_in(out, save_strategy="epoch", num_train_epochs=2)
    ReinforcedTrainer(pooled(), args, train_dataset=copy.copy(_plain)).train()
    return out


@pytest.fixture
def resume(tmp_path, two_epochs, plain) -> Callable[..., Pooled]:
    """Goes on in a copy of the folder with other settings; returns the student."""

    def go_on(checkpoint: str | bool = f"checkpoint-{STEPS}", **changes: Any) -> Pooled:
        out = tmp_path / "out"
        if not out.exists():
            shutil.copytree(two_epochs, out)
        given = {"save_strategy": "epoch", "num_train_epochs": 2, **changes}
        trainer = ReinforcedTrainer(pooled(), settings_in(out, **given), train_dataset=plain)
        trainer.train(resume_from_checkpoint=checkpoint if checkpoint is True else str(out / checkpoint))
        return trainer.model

    return go_on


def test_weights_that_would_be_saved_in_parts_are_refused_before_the_training():
    def accelerator(**settings):
        return SimpleNamespace(state=SimpleNamespace(**settings))

    check_saved_whole(accelerator())
    check_saved_whole(accelerator(fsdp_plugin=None))
    for version in (1, 2):
        whole = FullyShardedDataParallelPlugin(fsdp_version=version, state_dict_type="FULL_STATE_DICT")
        check_saved_whole(accelerator(fsdp_plugin=whole))
        parts = FullyShardedDataParallelPlugin(fsdp_version=version, state_dict_type="SHARDED_STATE_DICT")
        with pytest.raises(
            ConfigError, match=r"whole weights, got the state_dict_type SHARDED_STATE_DICT, .* Set it to FULL"
        ):
            check_saved_whole(accelerator(fsdp_plugin=parts))


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 0.1}, {"weight_decay": 0.1}, {"per_device_train_batch_size": 2}, {"gradient_accumulation_steps": 2},
        {"lr_scheduler_type": "cosine"}, {"warmup_steps": 2}, {"bf16": True}, {"dataloader_drop_last": True},
        {"max_grad_norm": 2.0}, {"optim": "adamw_torch"}, {"seed": 7}, {"momentum": 0.5}, {"nesterov": False},
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_that_shapes_the_weights_is_refused(resume, changes):
    (name,) = changes
    with pytest.raises(ConfigError, match=rf"must be resumed with its own settings, but .*-3 differs in .*\b{name}: "):
        resume(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"dataloader_num_workers": 1}, {"logging_steps": 2}, {"save_total_limit": 1}, {"per_device_eval_batch_size": 1},
        {"save_strategy": "steps", "save_steps": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_that_does_not_may_change(resume, two_epochs, plain, changes, caplog):
    resumed = resume(**changes)
    assert "Going on from" not in caplog.text
    assert same(weights(resumed), load_file(two_epochs / f"checkpoint-{2 * STEPS}" / "model.safetensors"))


# What has no other value in `MAY_CHANGE` concerns other machines, the Hub, or no training.
ELSEWHERE = {
    "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "output_dir", "enable_jit_checkpoint", "push_to_hub",
    "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision", "use_cpu",
    "local_rank", "ddp_backend", "ddp_timeout", "dataloader_persistent_workers", "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context", "resume_from_checkpoint", "fp16_full_eval", "batch_eval_metrics", "batch_size",
}  # fmt: skip


def test_each_argument_that_may_change_is_tried():
    assert set(MAY_CHANGE) | ELSEWHERE == NOT_COMPARED | OF_THE_BEST
    assert not set(MAY_CHANGE) & ELSEWHERE


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory, _plain, pictures) -> Callable[..., Pooled]:
    """Trains two epochs with dropout, an average and evaluations, or goes on after the first; returns the student."""
    out = tmp_path_factory.mktemp("with_dropout")

    def train(folder: Path = out, **changes: Any) -> Pooled:
        given = {"save_strategy": "epoch", "eval_strategy": "epoch", "num_train_epochs": 2, "ema_decay": 0.7, **changes}
        args = settings_in(folder, optim="adamw_torch", reinforced_probability=0.5, **given)
        trainer = ReinforcedTrainer(pooled(dropout=0.5), args, train_dataset=copy.copy(_plain), eval_dataset=pictures)
        trainer.train(resume_from_checkpoint=str(out / f"checkpoint-{STEPS}") if changes else None)
        return trainer.model

    train()
    return train


@pytest.mark.parametrize("name", MAY_CHANGE)
def test_an_argument_that_may_change_shapes_no_weights(with_dropout, tmp_path, name):
    whole = load_file(with_dropout.__defaults__[0] / f"checkpoint-{2 * STEPS}" / "model.safetensors")
    assert same(weights(with_dropout(tmp_path, **{name: MAY_CHANGE[name]})), whole)


def test_more_epochs_are_said_once(resume, caplog):
    resume(f"checkpoint-{2 * STEPS}", num_train_epochs=3)
    assert caplog.text.count("Going on from") == 1
    assert "num_train_epochs: 2 there, 3 here. From there on the learning rate follows a new length" in caplog.text


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a bit": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "missing": Path.unlink,
}
FILES = (
    "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "reinforced_training.json",
    "training_settings.json", "checksums.json",
)  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_left_out(resume, tmp_path, two_epochs, caplog, file, kind):
    last = f"checkpoint-{2 * STEPS}"
    shutil.copytree(two_epochs, tmp_path / "out")
    damaged = tmp_path / "out" / last
    DAMAGE[kind](damaged / file)
    assert find_damage(damaged) is not None
    # A bit of the list itself makes another file one that is not as listed.
    name = file if file != "checksums.json" or kind != "a bit" else ""
    with pytest.raises(ConfigError, match=rf"must name a whole checkpoint, but .*-6 (was|is) .*{name}"):
        resume(last)
    assert last_checkpoint(str(tmp_path / "out")) == str(tmp_path / "out" / f"checkpoint-{STEPS}")
    assert f"Skipping {damaged}, which " in caplog.text
    resumed = resume(True)
    assert same(weights(resumed), load_file(two_epochs / last / "model.safetensors"))
    assert find_damage(damaged) is None, "it was made again"


@pytest.mark.parametrize(
    "name", ["checkpoint-best1", "checkpoint-best-9", "checkpoint-", "checkpoint-9.old", "checkpoint-²"]
)
def test_a_folder_that_is_no_checkpoint_is_passed_over(two_epochs, tmp_path, caplog, name):
    shutil.copytree(two_epochs / f"checkpoint-{STEPS}", tmp_path / f"checkpoint-{STEPS}")
    shutil.copytree(two_epochs / f"checkpoint-{2 * STEPS}", tmp_path / name)
    assert last_checkpoint(str(tmp_path)) == str(tmp_path / f"checkpoint-{STEPS}")
    assert "Skipping" not in caplog.text


def test_a_file_of_a_checkpoint_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "rng_state.pth").mkdir()
    (tmp_path / CHECKSUMS_FILE).write_text(json.dumps({"sha256": {"rng_state.pth": "0"}, "resumable": True}))
    assert find_damage(tmp_path) == "is damaged (rng_state.pth cannot be read: Is a directory)"
    (tmp_path / SETTINGS_FILE).write_text("{")
    with pytest.raises(
        ConfigError, match=f"{SETTINGS_FILE} must hold the settings of its checkpoint, but .* Resume from"
    ):
        read_settings(tmp_path / SETTINGS_FILE)


def test_rows_that_come_twice_are_told(tmp_path, caplog):
    args = ReinforcedTrainingArguments(str(tmp_path), report_to=[], ignore_data_skip=True)
    write_settings(tmp_path, args)
    compare_settings(tmp_path, {}, {}, args, loud=False)
    assert not caplog.text
    compare_settings(tmp_path, {}, {}, args, loud=True)
    assert f"With `ignore_data_skip` the epoch of {tmp_path} begins again: some of its rows come twice." in caplog.text


def test_damaged_best_weights_are_not_loaded(plain, pictures, settings):
    args = settings(eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, save_only_model=True)
    trainer = ReinforcedTrainer(pooled(), args, train_dataset=plain, eval_dataset=pictures)
    trainer.train()  # weights alone are enough
    DAMAGE["a bit"](Path(str(trainer.state.best_model_checkpoint), "model.safetensors"))
    before = weights(trainer.model)
    with pytest.raises(
        ConfigError, match=r"the best checkpoint must be whole .*model\.safetensors is not what was written"
    ):
        trainer._load_best_model()
    assert same(weights(trainer.model), before)


def test_weights_have_the_permissions_of_other_files_and_one_process_writes(plain, settings, tmp_path, monkeypatch):
    args = settings()
    trainer = ReinforcedTrainer(pooled(), args, train_dataset=plain)
    trainer.save_model(str(tmp_path / "saved"))
    modes = {(tmp_path / "saved" / name).stat().st_mode for name in ("model.safetensors", "training_args.bin")}
    assert len(modes) == 1
    # Trainer asks every process; this one sees what another has begun to write.
    monkeypatch.setattr(type(args), "should_save", False)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "model.safetensors").touch()
    trainer.save_model(str(tmp_path / "begun"))
    assert [path.name for path in (tmp_path / "begun").iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, {10, 20, 30, 40}),
        (9, None, {10, 20, 30, 40}),
        (3, None, {20, 30, 40}),
        (1, None, {40}),
        (2, 20, {20, 40}),
        (1, 20, {20, 40}),
        (1, 40, {40}),
    ],
)
def test_the_checkpoints_of_the_last_steps_are_kept_whatever_the_clock_says(tmp_path, limit, best, left):
    for step in (10, 20, 30, 40, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        os.utime(folder, (1e9 - step, 1e9 - step))  # the earlier, the later
    for name in ("checkpoint-best1", "checkpoint-", "other"):
        (tmp_path / name).mkdir()
    keep_checkpoints(tmp_path, limit, 40, None if best is None else str(tmp_path / f"checkpoint-{best}"))
    expected = {f"checkpoint-{step}" for step in {100, *left}} | {"checkpoint-best1", "checkpoint-", "other"}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_a_training_goes_on_where_the_clock_is_behind(resume, two_epochs, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(two_epochs, out)
    (out / "checkpoint-mine").mkdir()
    for folder in out.glob("checkpoint-*"):
        os.utime(folder, (4e9, 4e9))
    resume(True, num_train_epochs=4, save_total_limit=1)
    assert {path.name for path in out.glob("checkpoint-*")} == {f"checkpoint-{STEPS * 4}", "checkpoint-mine"}


def test_a_finished_training_of_which_the_best_is_kept_is_not_trained_again(plain, pictures, settings, tmp_path):
    """With one checkpoint to keep, the best, the last one stays as well, and tells that there is nothing left to do."""
    epochs = iter(range(100))

    def start() -> ReinforcedTrainer:
        args = settings(
            num_train_epochs=3, save_strategy="epoch", eval_strategy="epoch", save_total_limit=1,
            load_best_model_at_end=True, metric_for_best_model="worse", greater_is_better=False,
        )  # fmt: skip
        return Counted(pooled(), args, train_dataset=plain, eval_dataset=pictures, compute_metrics=measure)

    def measure(_: Any) -> dict[str, float]:
        return {"worse": float(next(epochs))}

    class Counted(ReinforcedTrainer):
        steps = 0

        def training_step(self, *args: Any, **more: Any) -> Any:
            self.steps += 1
            return super().training_step(*args, **more)

    first = start()
    first.train()
    kept = {path.name for path in (tmp_path / "out").glob("checkpoint-*")}
    assert kept == {f"checkpoint-{STEPS}", f"checkpoint-{3 * STEPS}"}
    again = start()
    again.train(resume_from_checkpoint=True)
    assert (first.steps, again.steps) == (3 * STEPS, 0)
    assert same(weights(again.model), weights(first.model)), "the best ones"
    assert again.args.save_total_limit == 1


def test_a_checkpoint_without_an_optimizer_is_left_out(plain, settings, tmp_path):
    args = settings(save_strategy="epoch", save_only_model=True)
    trainer = ReinforcedTrainer(pooled(), args, train_dataset=plain)
    trainer.train()
    assert last_checkpoint(str(tmp_path / "out")) is None
    with pytest.raises(ConfigError, match=r"must find a whole checkpoint in `output_dir`, but .* has none"):
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(
        ConfigError, match=r"holds the model only, without the state of its optimizer \(`save_only_model`\)"
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{STEPS}"))


def test_two_trainings_in_one_folder_are_refused(plain, settings, tmp_path, monkeypatch):
    holder = (
        "import filelock, sys\n"
        "with filelock.FileLock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", holder, str(tmp_path / "out" / LOCK_FILE)]
    student = pooled()
    trainer = ReinforcedTrainer(student, settings(), train_dataset=plain)
    before = weights(student)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            ConfigError, match=r"`output_dir` must not be in use, but another training is writing to .*out"
        ):
            trainer.train()
        monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
        with pytest.raises(ConfigError, match=r'must do its work below `if __name__ == "__main__":`, but a worker'):
            trainer.train()
        monkeypatch.undo()
        assert same(weights(student), before)
    with trainer.alone():
        trainer.train()
    assert not same(weights(student), before)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"processes": 2, "per_device_train_batch_size": 8},
            "per_device_train_batch_size: 4 there, 8 here; processes: 2 ",
        ),
        (
            {"processes": 3, "gradient_accumulation_steps": 3},
            "gradient_accumulation_steps: 1 there, 3 here; processes: 3 ",
        ),
        ({"devices": 2, "per_device_train_batch_size": 8}, "per_device_train_batch_size: 4 there, 8 here; devices: 2 "),
        ({"processes": 2}, None),
        ({"per_device_train_batch_size": 8}, None),
        ({"processes": 2, "per_device_train_batch_size": 8, "dataloader_drop_last": True}, None),
        ({"processes": 2, "per_device_train_batch_size": 8, "fsdp": True}, None),
        ({"processes": 2, "per_device_train_batch_size": 8, "split_batches": True}, None),
    ],
    ids=str,
)
def test_a_step_of_as_many_rows_may_be_shared_out_otherwise(settings, tmp_path, caplog, changes, said):
    """Said, for it rounds otherwise; refused where it has more rows, or where an epoch would have more steps."""
    changes = dict(changes)
    there = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    there |= {name: changes.pop(name) for name in ("processes", "devices") if name in changes}
    sharded = changes.pop("fsdp", False)
    if changes.pop("split_batches", False):
        changes["accelerator_config"] = {"split_batches": True}
    args = settings(**changes)
    args.fsdp = sharded  # Trainer's own arguments refuse it without an accelerator
    (tmp_path / SETTINGS_FILE).write_text(json.dumps({**kept_settings(args), **there}))
    if said is None:
        with pytest.raises(ConfigError, match=r"must be resumed with its own settings, but .* differs in .* there, "):
            compare_settings(tmp_path, {}, {}, args, loud=True)
        return
    compare_settings(tmp_path, {}, {}, args, loud=True)
    assert said in caplog.text
    assert "other processes share out a step's rows otherwise" in caplog.text


def test_another_number_of_processes_evaluates_but_does_not_train(two_epochs, tmp_path):
    for step, refused in ((STEPS, True), (2 * STEPS, False)):
        folder = shutil.copytree(two_epochs / f"checkpoint-{step}", tmp_path / str(step))
        kept = json.loads((folder / SETTINGS_FILE).read_text())
        (folder / SETTINGS_FILE).write_text(json.dumps({**kept, "processes": 2}))
        for epochs in (2, 3):
            args = settings_in(tmp_path, num_train_epochs=epochs)
            if refused or epochs == 3:
                with pytest.raises(ConfigError, match="differs in processes: 2 there, 1 here"):
                    compare_settings(folder, {}, {}, args, loud=False)
            else:
                took = compare_settings(folder, {}, {}, args, loud=False)
                told = arguments_of_steps(args, took)
                assert (told.world_size, told.parallel_mode, told.train_batch_size) == (2, ParallelMode.DISTRIBUTED, 4)
                assert (args.world_size, arguments_of_steps(args, {})) == (1, args)


def test_a_finished_training_is_told_as_it_was_trained_whoever_evaluates_it(two_epochs, tmp_path, caplog, plain):
    """By two processes of four rows, or of two rows: the first has taken the steps of eight rows."""
    last = f"checkpoint-{2 * STEPS}"
    for rows, processes in ((4, 2), (2, 2)):
        out = shutil.copytree(two_epochs, tmp_path / str(rows))
        kept = {"processes": processes, "per_device_train_batch_size": rows}
        edited = json.loads((out / last / SETTINGS_FILE).read_text()) | kept
        (out / last / SETTINGS_FILE).write_text(json.dumps(edited))
        write_checksums(out / last, resumable=True)
        args = settings_in(out, num_train_epochs=2, per_device_train_batch_size=4)
        trainer = ReinforcedTrainer(pooled(), args, train_dataset=plain)
        trainer.train(resume_from_checkpoint=True)
        trainer.create_model_card()
        settings = json.loads((out / "student.json").read_text())["settings"]
        assert (settings["processes"], settings["num_devices"]) == (2, "2")
        assert (settings["train_batch_size"], settings["total_train_batch_size"]) == (str(rows), str(2 * rows))
        assert "the weights are not those" not in caplog.text


def test_a_precision_that_accelerates_own_configuration_says_is_compared(two_epochs, tmp_path, monkeypatch):
    """`mixed_precision: bf16` there makes Trainer compute in bfloat16, though `bf16` is False."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    args = settings_in(tmp_path)
    with pytest.raises(ConfigError, match="differs in mixed_precision: no there, bf16 here"):
        compare_settings(two_epochs / f"checkpoint-{STEPS}", {}, {}, args, loud=False)


def test_a_function_is_kept_by_its_name():
    """Such as the `context_fn` of `gradient_checkpointing_kwargs`, which lies elsewhere in the memory of each process."""
    one, two = ({"context_fn": partial(test_a_function_is_kept_by_its_name, object())} for _ in range(2))
    assert str(one) != str(two)
    assert plain(one) == plain(two)


def test_what_a_later_version_tells_of_its_data_is_no_difference():
    there, here = {"dataset": {"id": "a"}}, {"dataset": {"id": "a", "digest": "x"}}
    assert differences(there, here) == {}
    assert differences(here, {"dataset": {"id": "a", "digest": "y"}}).keys() == {"dataset"}
    assert differences(there, {"dataset": {"id": "b", "digest": "x"}}).keys() == {"dataset"}
    shaping_nothing = {"id": "a", "digest": "x", "evaluated_on": {"id": "b"}, "license": "mit"}
    assert differences(here, {"dataset": shaping_nothing}) == {}
    found = differences({"dataset": {"id": "a" * 99, "split": "x"}}, {"dataset": {"id": "a" * 99, "split": "y"}})
    assert found == {"dataset": "{'split': 'x'} there, {'split': 'y'} here"}, "not cut before what differs"
    for before, now in (({"power": 1}, {"power": 1, "lr_end": 2}), ({}, {"power": 1}), ({"power": 1}, {})):
        assert differences({"kwargs": before}, {"kwargs": now}).keys() == {"kwargs"}, "no version did not tell these"


def of_transformers(config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return AutoModelForImageClassification.from_config(config)

    return build


_TINY = {"image_size": SIZE, "num_labels": 8}
_LAYERS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, **_TINY}
# transformers writes most of their weights by other names than they have in memory.
RENAMED = {
    "Swin": of_transformers(
        SwinConfig(patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=3, **_TINY)
    ),
    "DINOv2": of_transformers(Dinov2Config(patch_size=8, **_LAYERS)),
    "BEiT": of_transformers(BeitConfig(patch_size=8, **_LAYERS)),
}


@pytest.mark.parametrize("kind", [*MODELS, *RENAMED])
def test_any_student_goes_on_from_its_checkpoint_and_ends_with_the_best(trainer_of, settings, tmp_path, kind):
    """A student that is made again, with other fresh weights, gets all weights of the checkpoint."""

    class Kept(transformers.TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            saved.setdefault(state.global_step, weights(given["model"]))

    def start(seed: int, **changes: Any) -> ReinforcedTrainer:
        student = {**MODELS, **RENAMED}[kind]()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        args = settings(num_train_epochs=2, save_strategy="epoch", eval_strategy="epoch", **changes)
        return trainer_of(student, args, callbacks=[Kept()], compute_metrics=measure)

    saved: dict[int, dict[str, torch.Tensor]] = {}
    epochs = iter(range(100))
    measure = lambda _: {"worse": float(next(epochs))}  # noqa: E731
    whole = start(0)
    whole.train()
    resumed = start(1)
    assert not same(weights(resumed.model), saved[STEPS])
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{STEPS}"))
    assert same(weights(resumed.model), weights(whole.model))
    best = {"load_best_model_at_end": True, "metric_for_best_model": "worse", "greater_is_better": False}
    first = start(0, output_dir=str(tmp_path / "best"), **best)
    first.train()
    assert same(weights(first.model), saved[STEPS])
    assert not same(weights(first.model), weights(whole.model))


def test_weights_of_another_model_are_not_taken_for_the_renamed_ones(tmp_path):
    RENAMED["DINOv2"]().save_pretrained(tmp_path)
    other = RENAMED["BEiT"]()
    before = weights(other)
    with pytest.raises(
        ConfigError, match=r"must be those of the model that is trained, but .* is not\. Give the model of"
    ):
        load_renamed(SimpleNamespace(model=other, is_fsdp_enabled=False, is_deepspeed_enabled=False), tmp_path)
    assert same(weights(other), before)

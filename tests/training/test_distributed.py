"""Two processes train as one does."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import children
import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from samples import RESUMED_TOGETHER
from torch import nn
from torch.distributed.tensor import DTensor

from hf_dr.errors import ConfigError
from hf_dr.processes import process_state
from hf_dr.replay.loading import load_reinforced
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.checkpoints import check_processes_alike
from hf_dr.training.evaluated import share_buffers
from hf_dr.training.trainer import ReinforcedTrainer
from training.helpers import BATCH, ROWS, STEPS, Watched, every_view, pooled, same, timm_student

pytestmark = RESUMED_TOGETHER


def plain_arguments(out: str, **changes: Any) -> ReinforcedTrainingArguments:
    return ReinforcedTrainingArguments(
        out, num_train_epochs=2, optim="sgd", learning_rate=0.05, save_steps=1, disable_tqdm=True,
        reinforced_probability=0.5, ddp_find_unused_parameters=False, **{"ema_decay": 0.5, **changes},
    )  # fmt: skip


def train_and_save(plus: str, out: str, batch_size: str, **changes: Any) -> None:
    """Two epochs, and again from within the second; what was seen and learned, in one file for each process."""
    args = plain_arguments(out, per_device_train_batch_size=int(batch_size), **changes)
    if args.fsdp:  # Accelerate shards on accelerators alone, though torch does anywhere.
        args.distributed_state._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trainer, resumed = (Watched(pooled(), args, train_dataset=load_reinforced(plus)) for _ in range(2))
    trainer.train()
    resumed.train(resume_from_checkpoint=f"{out}/checkpoint-{STEPS + 1}")
    assert all(same(a, b) for a, b in zip(trainer.seen[STEPS + 1 :], resumed.seen, strict=True))

    def learned(trainer: Watched) -> dict[str, torch.Tensor]:
        state = trainer.model.state_dict()
        assert all(isinstance(value, DTensor) == bool(args.fsdp) for value in state.values())
        return {name: value.full_tensor() if args.fsdp else value for name, value in state.items()}

    kept = {"model": learned(trainer)}
    assert same(kept["model"], learned(resumed))
    kept["batches"] = {f"{n}/{name}": value for n, batch in enumerate(trainer.seen) for name, value in batch.items()}
    if trainer.ema is not None:
        kept["ema"] = trainer.ema.module.state_dict()
    trainer.save_model(f"{out}/final")
    for name, tensors in kept.items():
        save_file(tensors, Path(out) / f"{name}_{args.process_index}.safetensors")


def train_sharded(plus: str, out: str, batch_size: str) -> None:
    train_and_save(plus, out, batch_size, ema_decay=None, fsdp=True, fsdp_config={"auto_wrap_policy": "NO_WRAP"})


def stream_arguments(out: str, **changes: Any) -> ReinforcedTrainingArguments:
    return ReinforcedTrainingArguments(
        out, num_train_epochs=3, optim="sgd", learning_rate=0.05, save_steps=1, eval_strategy="epoch", disable_tqdm=True,
        reinforced_probability=1.0, dataloader_num_workers=1, ddp_find_unused_parameters=False, **changes,
    )  # fmt: skip


def stream_and_save(plus: str, out: str, batch_size: str) -> None:
    """Three epochs, and again from within the second; what was seen, in one file for each process."""
    args = stream_arguments(out, per_device_train_batch_size=int(batch_size))
    held_out = load_reinforced(plus)
    trainer, resumed = (
        Watched(pooled(), args, train_dataset=load_reinforced(plus, streaming=True), eval_dataset=held_out)
        for _ in range(2)
    )
    trainer.train()
    steps = trainer.state.global_step // 3
    resumed.train(resume_from_checkpoint=f"{out}/checkpoint-{steps + 1}")
    assert all(same(a, b) for a, b in zip(trainer.seen[steps + 1 :], resumed.seen, strict=True))
    seen = {f"{n // steps}/{n}": batch["pixel_values"] for n, batch in enumerate(trainer.seen)}
    save_file(seen, Path(out) / f"seen_{args.process_index}.safetensors")
    save_file(trainer.model.state_dict(), Path(out) / f"model_{args.process_index}.safetensors")


def train_all(plus: str, stream: str, out: str) -> None:
    """What two processes do together. The last one changes the kind of their group."""
    process_state()
    stream_and_save(stream, f"{out}/stream", str(BATCH))
    train_and_save(plus, f"{out}/plain", str(BATCH // 2))
    train_and_save(plus, f"{out}/device", str(BATCH // 2), augment_on="device", dataloader_num_workers=1)
    train_sharded(plus, f"{out}/sharded", str(BATCH // 2))


@pytest.fixture(scope="module")
def together(tmp_path_factory, tiny_folder, in_shards) -> Path:
    """What two processes saved: they are started once, which takes longer than what they do."""
    out = tmp_path_factory.mktemp("together")
    for name in ("stream", "plain", "device", "sharded"):
        (out / name).mkdir()
    given = map(str, (tiny_folder, in_shards["mixing"], out))
    # Torch shards on an accelerator where it sees one.
    children.run(train_all, *given, two=True, log=out / "log", CUDA_VISIBLE_DEVICES="")
    return out


def wait_for_who_hangs(folder: str) -> None:
    """The first of two processes waits for the second, which does not come, and says for how long it did."""
    args = ReinforcedTrainingArguments(folder, report_to=[], ddp_timeout=2)
    done = Path(folder, "waited")
    torch.distributed.barrier()
    began = time.monotonic()
    try:
        if args.process_index == 0:
            torch.distributed.barrier()
    except RuntimeError as error:
        done.write_text(f"{time.monotonic() - began} {error}")
    while not done.exists() and time.monotonic() - began < 60:
        time.sleep(0.1)


def test_a_process_that_hangs_is_waited_for_as_long_as_is_said(tmp_path):
    children.run(wait_for_who_hangs, str(tmp_path), two=True, log=tmp_path / "log")
    seconds, _, message = (tmp_path / "waited").read_text().partition(" ")
    assert 2 <= float(seconds) < 60, "on a CPU Trainer leaves it at half an hour"
    assert "imed out" in message


def refusal(trainer: ReinforcedTrainer, checkpoint: str | None) -> str | None:
    """Why the processes may not go on from a checkpoint."""
    try:
        check_processes_alike(trainer.args, checkpoint, trainer.run_settings())
    except ConfigError as error:
        return str(error)
    return None


def evaluate_together(plus: str, out: str) -> None:
    """Two processes with other running statistics each; what both have measured and kept."""
    data = load_reinforced(plus)
    args = plain_arguments(out, per_device_eval_batch_size=4)
    trainer = ReinforcedTrainer(timm_student("test_resnet"), args, train_dataset=data, eval_dataset=data)
    rank = args.process_index
    norm = next(module for module in trainer.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    average = next(module for module in trainer.ema.module.modules() if isinstance(module, torch.nn.BatchNorm2d))
    for module in (norm, average):
        module.running_mean.fill_(1.0 + 5 * rank)
    measured = trainer.evaluate()
    message = refusal(trainer, f"{out}/checkpoint-{1 + rank}")
    trainer.args.label_weight = 0.5 * rank
    unlike = refusal(trainer, None)
    trainer.args.label_weight = 0.0
    if rank == 0:
        trainer.model = None  # as transformers' search leaves it after each trial
    alike = refusal(trainer, None)
    kept = [*norm.running_mean.tolist(), *average.running_mean.tolist()]
    refusals = {"message": message, "unlike": unlike, "alike": alike}
    told = {"eval_loss": measured["eval_loss"], "kept": sorted(set(kept)), **refusals}
    Path(out, f"told_{rank}.json").write_text(json.dumps(told))


def test_what_is_measured_are_the_weights_that_are_saved(tmp_path, tiny_folder, monkeypatch):
    """Each process has running statistics of its own until the next step; and none goes on where another does not."""
    children.run(evaluate_together, str(tiny_folder), str(tmp_path), two=True, log=tmp_path / "log")
    told = [json.loads((tmp_path / f"told_{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    assert told[0]["kept"] == [1.0], "those of the first process"
    assert "all processes must go on at the same place, found checkpoint-1, checkpoint-2" in told[0]["message"]
    assert "process 1 (here) and process 0 (there) differ in label_weight: 0.0 there, 0.5 here." in told[0]["unlike"]
    assert told[0]["alike"] is None
    (tmp_path / "alone").mkdir()
    evaluate_together(str(tiny_folder), str(tmp_path / "alone"))
    alone = json.loads((tmp_path / "alone" / "told_0.json").read_text())
    assert told[0]["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-5)


def calibrate_together(plus: str, out: str) -> None:
    """A student and its average, calibrated by 7 of the images."""
    args = plain_arguments(out, per_device_eval_batch_size=2)
    train = load_reinforced(plus)
    trainer = ReinforcedTrainer(pooled(), args, train_dataset=train)
    with torch.no_grad():
        trainer.ema.module.linear.weight.mul_(3)
    rows = [{"pixel_values": train[row, 0]["pixel_values"], "labels": train["labels"][row]} for row in range(7)]
    found = trainer.calibrate(rows)
    told = [found.temperature, found.ema_temperature, found.folded, found.labels.tolist()]
    Path(out, f"told_{args.process_index}.json").write_text(json.dumps(told))
    for name, model in (("model", trainer.model), ("ema", trainer.ema.module)):
        save_file(model.state_dict(), Path(out) / f"{name}_{args.process_index}.safetensors")


def test_two_processes_calibrate_as_one_does(tmp_path, tiny_folder):
    children.run(calibrate_together, str(tiny_folder), str(tmp_path), two=True, log=tmp_path / "log")
    (tmp_path / "alone").mkdir()
    calibrate_together(str(tiny_folder), str(tmp_path / "alone"))
    places = (tmp_path / "alone", 0), (tmp_path, 0), (tmp_path, 1)
    alone, *two = (json.loads((folder / f"told_{rank}.json").read_text()) for folder, rank in places)
    assert two[0] == two[1]
    assert two[0] == [pytest.approx(alone[0]), pytest.approx(alone[1]), True, alone[3]]
    for name in ("model", "ema"):
        one, *others = (load_file(folder / f"{name}_{rank}.safetensors") for folder, rank in places)
        assert same(*others)
        for key, value in one.items():
            torch.testing.assert_close(others[0][key], value)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_folder) -> Path:
    """What one process saved."""
    out = tmp_path_factory.mktemp("alone")
    train_and_save(str(tiny_folder), str(out), str(BATCH))
    return out


@pytest.mark.parametrize(("kind", "files"), [("plain", ("model", "ema")), ("sharded", ("model",))])
def test_two_processes_see_together_what_one_does(alone, together, kind, files):
    def saved(folder: Path, name: str, rank: int) -> dict[str, torch.Tensor]:
        return load_file(folder / f"{name}_{rank}.safetensors")

    two = together / kind
    one = saved(alone, "batches", 0)
    parts = [saved(two, "batches", rank) for rank in (0, 1)]
    assert len({name.split("/")[0] for name in one}) == 2 * STEPS
    assert same(one, {name: torch.cat([part[name] for part in parts]) for name in one})
    for name in files:
        assert same(saved(two, name, 0), saved(two, name, 1))
        for key, value in saved(alone, name, 0).items():
            torch.testing.assert_close(saved(two, name, 0)[key], value, rtol=1e-4, atol=1e-6)
    assert same(load_file(two / "final" / "model.safetensors"), saved(two, "model", 0))


def test_two_processes_whose_views_the_device_makes_see_and_learn_the_same(together):
    for rank in (0, 1):
        for name in ("batches", "model", "ema"):
            found, expected = (
                load_file(together / kind / f"{name}_{rank}.safetensors") for kind in ("device", "plain")
            )
            assert same(found, expected), name


def test_two_processes_share_a_stream(together, in_shards):
    """12 rows in 3 shards: each process sees 6 of them, in batches of 4 and 2."""
    dataset = load_reinforced(in_shards["mixing"])
    known = every_view(dataset)
    shares = [load_file(together / "stream" / f"seen_{rank}.safetensors") for rank in (0, 1)]
    for epoch in range(3):
        batches = [b for share in shares for name, b in share.items() if name.startswith(f"{epoch}/")]
        assert sorted(map(len, batches)) == [2, 2, BATCH, BATCH]
        indices = [known[pixels.numpy().tobytes()] for batch in batches for pixels in batch]
        assert sorted(indices) == list(enumerate(dataset.scheduled_views(np.arange(ROWS), epoch).tolist()))
    assert same(*(load_file(together / "stream" / f"model_{rank}.safetensors") for rank in (0, 1)))


@pytest.mark.parametrize(("batch_size", "accumulated"), [(2 * BATCH, 1), (BATCH, 2)])
def test_one_process_goes_on_with_a_stream_of_two(together, in_shards, tmp_path, caplog, batch_size, accumulated):
    """After the first of two steps of the second epoch: with the rows that neither has seen, in as many steps."""
    dataset = load_reinforced(in_shards["mixing"])
    known = every_view(dataset)
    args = stream_arguments(
        str(tmp_path), per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulated
    )
    stream = load_reinforced(in_shards["mixing"], streaming=True)
    trainer = Watched(pooled(), args, train_dataset=stream, eval_dataset=dataset)
    checkpoint = together / "stream" / "checkpoint-3"
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert "processes: 2 there, 1 here" in caplog.text
    assert trainer.state.global_step == 6
    before = [load_file(together / "stream" / f"seen_{rank}.safetensors")["1/2"] for rank in (0, 1)]
    after = [batch["pixel_values"] for batch in trainer.seen]
    last = -(-ROWS // batch_size)  # batches of the last epoch, which is whole
    for epoch, batches in ((1, before + after[:-last]), (2, after[-last:])):
        indices = [known[pixels.numpy().tobytes()] for batch in batches for pixels in batch]
        assert sorted(indices) == list(enumerate(dataset.scheduled_views(np.arange(ROWS), epoch).tolist()))


def test_one_process_goes_on_as_it_would_have_after_two(alone, together, tiny_folder, tmp_path):
    """Of a dataset that is not streamed it sees the very rows of each step, and learns what it would have but for rounding."""
    folder = together / "plain" / f"checkpoint-{STEPS + 1}"
    args = plain_arguments(str(tmp_path), per_device_train_batch_size=BATCH)
    trainer = Watched(pooled(), args, train_dataset=load_reinforced(tiny_folder))
    trainer.train(resume_from_checkpoint=str(folder))
    whole = load_file(alone / "batches_0.safetensors")
    for number, batch in enumerate(trainer.seen, STEPS + 1):
        assert same(batch, {name: whole[f"{number}/{name}"] for name in batch})
    for key, value in load_file(alone / "model_0.safetensors").items():
        torch.testing.assert_close(trainer.model.state_dict()[key], value, rtol=1e-4, atol=1e-6)


def test_buffers_that_share_their_memory_are_no_statistics(monkeypatch):
    model = nn.Module()
    model.register_buffer("constant", torch.ones(1).expand(3))
    model.register_buffer("running", torch.ones(3))
    trainer = SimpleNamespace(
        args=SimpleNamespace(world_size=2, device="cpu"), is_fsdp_enabled=False, is_deepspeed_enabled=False, model=model,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
    )  # fmt: skip
    monkeypatch.setattr(torch.distributed, "broadcast", lambda buffer, rank: buffer.zero_())
    share_buffers(trainer)
    assert (model.constant.tolist(), model.running.tolist()) == ([1, 1, 1], [0, 0, 0])

"""A loop of one's own: its loader gives the trainer's batches, its loss is the trainer's, and the documented loop runs."""

import itertools
import json
import math
import re
from functools import partial
from pathlib import Path

import children
import numpy as np
import pytest
import timm
import torch
from torch import nn
from transformers import ViTImageProcessor

from hf_dr import ReinforcedLoader, ReinforcedLoss, ReinforcedSampler, build_student, load_reinforced, reinforced_loss
from hf_dr.errors import ConfigError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.teacher.signals import IMAGE_TAIL, SAMPLED, TOPK
from training.helpers import BATCH, MEAN, ROWS, STD, STEPS, VIEWS, Watched, every_view, normalized, pooled, same

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["plain", "mixing", "stream"])
def data(request, plain, in_shards):
    if request.param == "plain":
        return plain
    return load_reinforced(in_shards["mixing"], streaming=request.param == "stream")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_are_those_of_the_trainer(data, settings, workers):
    args = settings(num_train_epochs=2, reinforced_probability=0.5, seed=3)
    trainer = Watched(pooled(), args, train_dataset=data)
    trainer.train()
    loader = ReinforcedLoader(data, BATCH, seed=3, reinforced_probability=0.5, device="cpu", num_workers=workers)
    assert len(loader) == STEPS
    batches = [*loader, *loader]
    assert loader.epoch == 2
    assert len(trainer.seen) == 2 * STEPS
    for batch, seen in zip(batches, trainer.seen, strict=True):
        assert same(batch, seen)


def test_loader_and_sampler_tell_what_they_are(plain):
    loader = ReinforcedLoader(plain, BATCH, device="cpu")
    next(iter(loader))
    assert repr(loader) == f"ReinforcedLoader({STEPS} batches of {BATCH} on cpu, epoch 1)"
    sampler = ReinforcedSampler(plain, seed=2, num_replicas=2, rank=1)
    expected = f"ReinforcedSampler({ROWS // 2} rows, view_order='all', seed=2, epoch 0, part 1 of 2)"
    assert repr(sampler) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_the_device_makes_the_same_views(data, workers):
    given = {"device": "cpu", "reinforced_probability": 0.5, "num_workers": workers}
    by_pillow, on_device = (ReinforcedLoader(data, BATCH, augment_on=where, **given) for where in ("cpu", "device"))
    for expected, batch in zip(by_pillow, on_device, strict=True):
        assert batch["pixel_values"].dtype == torch.uint8
        assert same(batch, expected)


def test_views_advance_by_themselves_and_an_epoch_can_be_chosen(plain):
    known = every_view(plain)
    loader = ReinforcedLoader(plain, BATCH, device="cpu")
    epochs = [
        [known[pixels.numpy().tobytes()] for batch in loader for pixels in batch["pixel_values"]] for _ in range(VIEWS)
    ]
    assert sorted(index for epoch in epochs for index in epoch) == [
        (row, view) for row in range(ROWS) for view in range(VIEWS)
    ]
    loader.epoch = 1
    assert [known[pixels.numpy().tobytes()] for batch in loader for pixels in batch["pixel_values"]] == epochs[1]


def test_persistent_workers_of_any_loader_see_each_view_once(plain):
    known = every_view(plain)
    loader = torch.utils.data.DataLoader(plain, BATCH, num_workers=1, persistent_workers=True)
    found = []
    for epoch in range(VIEWS):
        plain.set_epoch(epoch)
        found += [known[pixels.numpy().tobytes()] for batch in loader for pixels in batch["pixel_values"]]
    assert sorted(found) == [(row, view) for row in range(ROWS) for view in range(VIEWS)]
    half = plain.select(range(2))
    half.set_epoch(1)
    assert plain.epoch == VIEWS - 1, "a copy has an epoch of its own"
    plain.set_epoch(0)


def test_a_stream_keeps_the_order_that_it_has(in_shards):
    stream = load_reinforced(in_shards["plain"], streaming=True)
    labels = [
        [batch["teacher_ids"] for batch in ReinforcedLoader(data, BATCH, device="cpu", **order)]
        for data, order in ((stream.ordered(seed=3), {}), (stream, {"seed": 3}), (stream, {}))
    ]
    assert all(map(torch.equal, labels[0], labels[1]))
    assert not all(map(torch.equal, labels[0], labels[2]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_within_an_epoch(in_shards, workers):
    """The stream itself knew neither the size of the batches nor the epoch, and took three batches for three rows."""
    stream = load_reinforced(in_shards["plain"], streaming=True)

    def pixels(loader):
        return [batch["pixel_values"] for batch in loader]

    whole = ReinforcedLoader(stream, BATCH, device="cpu", num_workers=workers)
    epochs = [pixels(whole) for _ in range(3)]
    assert whole.progress(0)["epoch"] == 2
    left = ReinforcedLoader(stream, BATCH, device="cpu", num_workers=workers)
    left.epoch = 1
    before = list(itertools.islice(left, 1))
    for batches in (1, len(left)):  # within the epoch, and at its end
        progress = json.loads(json.dumps(left.progress(batches)))
        loader = ReinforcedLoader(stream.resumed(progress), BATCH, device="cpu", num_workers=workers)
        assert loader.epoch == 1
        rest, following = pixels(loader), pixels(loader)
        for found, expected in ((rest, epochs[1][batches:]), (following, epochs[2])):
            assert len(found) == len(expected)
            assert all(map(torch.equal, found, expected))
    assert torch.equal(before[0]["pixel_values"], epochs[1][0])
    with pytest.raises(
        ConfigError, match=r"`progress` is that of a stream, got a loader of a loaded dataset\. Set `epoch`"
    ):
        ReinforcedLoader(load_reinforced(in_shards["plain"]), BATCH, device="cpu").progress(1)


def test_an_epoch_of_which_less_than_a_batch_is_left_goes_on(in_shards):
    stream = load_reinforced(in_shards["plain"], streaming=True)
    size = ROWS - 1
    left = ReinforcedLoader(stream, size, device="cpu", drop_last=True)
    assert len(list(left)) == 1
    loader = ReinforcedLoader(stream.resumed(left.progress(1)), size, device="cpu", drop_last=True)
    assert [len(list(loader)), len(list(loader)), loader.epoch] == [0, 1, 2]


def test_pixels_are_normalised_for_the_student(plain):
    (raw, *_), size = ReinforcedLoader(plain, BATCH, device="cpu"), plain.size[0]
    processor = ViTImageProcessor(size={"height": size, "width": size}, image_mean=[0.4] * 3, image_std=[0.3] * 3)
    vit = timm.create_model("test_vit", num_classes=plain.num_classes)
    wrapped = nn.DataParallel(build_student("timm:test_vit", plain.class_names, plain.num_classes))
    for given, (mean, std) in (
        ({"student": vit}, (vit.pretrained_cfg["mean"], vit.pretrained_cfg["std"])),
        ({"student": wrapped}, (MEAN, STD)),  # fresh weights are trained with ImageNet's
        ({"student": pooled(), "processor": processor}, ((0.4,) * 3, (0.3,) * 3)),
        ({"normalization": (MEAN, STD)}, (MEAN, STD)),
    ):
        (batch, *_) = ReinforcedLoader(plain, BATCH, device="cpu", **given)
        assert torch.equal(batch["pixel_values"], normalized(raw["pixel_values"], mean, std))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"processor": "google/vit"}, r"`processor` must be an image processor, got the name 'google/vit'\. Load it"),
        ({"normalization": ((0.5, 0.5, math.nan), (0.1,) * 3)}, r"must be mean and std, each three numbers, got .*nan"),
        ({"normalization": ((0.5,) * 3, ("a",) * 3)}, "must be mean and std, each three numbers, got"),
        ({"normalization": ((0.5,) * 3, (0.1,) * 2)}, "must be mean and std, each three numbers, got"),
        ({"normalization": "imagenet"}, "must be mean and std, each three numbers, got 'imagenet'"),
        ({"normalization": ((127.0,) * 3, (50.0,) * 3)}, "which are on that of 0 to 255"),
        ({"normalization": ((0.5,) * 3, (0.1, 0.1, -0.1))}, "`normalization` must have a std above 0, got"),
        ({"normalization": ((0.5,) * 3, (0.0,) * 3)}, "`normalization` must have a std above 0, got"),
        ({"student": pooled()}, r"`student` must be a model of timm, .*got Pooled. Give `processor`"),
        ({"augment_on": "gpu"}, "`augment_on` must be one of auto, cpu, device, got 'gpu'"),
        ({"reinforced_probability": 2}, "`reinforced_probability` must be between 0 and 1, got 2"),
        (
            {"batch_size": ROWS + 1, "drop_last": True},
            rf"the {ROWS} rows fill none of {ROWS + 1} in each of 1 processes\. Lower `batch_size`, or leave",
        ),
    ],
)
def test_settings_of_a_loader_that_are_refused(plain, settings, message):
    with pytest.raises(ConfigError, match=message):
        ReinforcedLoader(plain, **{"batch_size": BATCH, **settings})


def test_what_it_cannot_load_is_refused():
    for make, wrong in ((partial(ReinforcedLoader, batch_size=BATCH), [1, 2]), (ReinforcedLoss, "plus")):
        with pytest.raises(
            ConfigError,
            match=rf"`dataset` must be what `load_reinforced` returns, got {type(wrong).__name__}\. Open .*load_reinforced\(",
        ):
            make(wrong)


def test_the_loss_is_the_function(plain):
    loader = ReinforcedLoader(plain, ROWS, device="cpu", reinforced_probability=0.5)
    (batch,) = loader
    given = {"temperature": 2.0, "label_weight": 0.25, "label_smoothing": 0.1}
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(ROWS, plain.num_classes))).requires_grad_()
    loss = ReinforcedLoss(plain, **given)
    assert torch.equal(loss(logits, batch), reinforced_loss(logits, batch, tail="uniform", **given))
    assert repr(loss) == "ReinforcedLoss(tail='uniform', temperature=2.0, label_weight=0.25, label_smoothing=0.1)"


@pytest.mark.parametrize(("signal", "tail"), [(TOPK, "uniform"), (IMAGE_TAIL, "image"), (SAMPLED, "renormalize")])
def test_the_rule_of_the_tail_follows_the_signal(plain, monkeypatch, signal, tail):
    monkeypatch.setattr(type(plain), "signal", signal)
    assert ReinforcedLoss(plain).tail == tail
    with pytest.raises(ConfigError, match=f"`tail` must be one of .* for the signal `{signal}`"):
        ReinforcedLoss(plain, tail="image" if signal != IMAGE_TAIL else "other")


class Sent(torch.overrides.TorchFunctionMode):
    """Notes of each tensor that is sent to a device whether nothing waits for it."""

    def __init__(self):
        super().__init__()
        self.unawaited = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to and isinstance(args[1], torch.device):
            self.unawaited.append((kwargs or {}).get("non_blocking", False))
        return func(*args, **(kwargs or {}))


def test_what_is_sent_to_anything_but_a_gpu_of_cuda_is_waited_for(tmp_path, plain, tiny_dataset, tiny_teacher):
    """Apple's MPS would read the host's memory later, and the host what has not arrived."""
    for where in ("cpu", "device"):
        with Sent() as sent:
            batch = next(iter(ReinforcedLoader(plain, BATCH, device="cpu", augment_on=where)))
        assert sent.unawaited
        assert not any(sent.unawaited)
    config = ReinforceConfig(str(tmp_path / "plus"), num_views=1, top_k=3, num_workers=0, augment_on="device")
    with Sent() as sent:
        tiny_teacher(batch["pixel_values"])
        reinforce(tiny_dataset, tiny_teacher, plain.augmentation, config)
    assert len(sent.unawaited) > 1
    assert not any(sent.unawaited)


def test_the_documented_loop_runs_in_two_processes(tmp_path, tiny_folder):
    """Both have the same weights at the end, which are not those of the start."""
    page = (ROOT / "docs" / "loops.md").read_text(encoding="utf-8")
    (loop,) = re.findall(r"```python\n(# loop\.py.*?)```", page, re.DOTALL)
    loop = loop.replace('"cifar100-plus"', repr(str(tiny_folder))).replace("timm:resnet18", "timm:test_resnet")
    loop = loop.replace("batch_size=32", "batch_size=4")
    script = tmp_path / "loop.py"
    script.write_text(
        f"{loop}\ntorch.save(student.state_dict(), f'weights_{{distributed.get_rank()}}')\n", encoding="utf-8"
    )
    children.run(children.run_script, script, two=True, log=tmp_path / "log", cwd=tmp_path)
    first, second = (torch.load(tmp_path / f"weights_{rank}", weights_only=True) for rank in (0, 1))
    learned = [name for name in first if name.endswith(("weight", "bias"))]  # each process has statistics of its own
    assert same(*({name: weights[name] for name in learned} for weights in (first, second)))
    fresh = build_student("timm:test_resnet", None, load_reinforced(tiny_folder).num_classes)
    assert not any(
        torch.equal(first[f"module.{name}"], value) for name, value in fresh.named_parameters() if value.ndim > 1
    )

"""The loops of docs/loops.md and docs/train.md, and an op and a teacher of docs/make.md, on a small stand-in for the data."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import datasets
import numpy as np
import pytest
import timm
import torch
from conftest import CLASSES, as_cell, colour_image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.trainer_utils import HPSearchBackend, IntervalStrategy

from hf_dr import (
    ConfigError,
    ReinforceConfig,
    ReinforcedLoader,
    ReinforcedLoss,
    ReinforcedTask,
    ReinforcedTrainer,
    load_reinforced,
    ops,
    reinforce,
    reinforced_loss,
    verify,
)

ROOT = Path(__file__).parents[1]
PAGES = [(ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("loops.md", "train.md")]
BLOCKS = re.findall(r"```python\n(.*?)```", "\n".join(PAGES), re.DOTALL)
ROWS, SIDE = 100, 32


def block_with(words: str) -> str:
    (found,) = (block for block in BLOCKS if words in block)
    return found


@pytest.fixture(scope="module")
def base():
    """100 images of 8 colours."""
    rng = np.random.default_rng(0)
    rows = {"image": [as_cell(colour_image(rng, n % 8)) for n in range(ROWS)], "label": [n % 8 for n in range(ROWS)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    return datasets.Dataset.from_dict(rows, features=features, split="train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base, tiny_teacher):
    """A folder with `cifar100-plus`: 4 views of 32x32 of each image, which mix with each other."""
    root = tmp_path_factory.mktemp("loops")
    augmentation = [ops.RandomResizedCrop(SIDE), ops.RandomHorizontalFlip(), ops.MixUp(p=0.5)]
    reinforce(base, tiny_teacher, augmentation, ReinforceConfig(str(root / "cifar100-plus"), num_views=4, top_k=3))
    return root


@pytest.fixture(scope="module")
def unmixed_folder(tmp_path_factory, base, tiny_teacher):
    """The same without mixing, which `label_weight` needs."""
    root = tmp_path_factory.mktemp("unmixed")
    augmentation = [ops.RandomResizedCrop(SIDE), ops.RandomHorizontalFlip()]
    reinforce(base, tiny_teacher, augmentation, ReinforceConfig(str(root / "cifar100-plus"), num_views=4, top_k=3))
    return root


def test_the_stream(tmp_path, base, tiny_teacher, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reinforce(base, tiny_teacher, [ops.Resize((8, 8))], ReinforceConfig("cifar100-plus", num_views=1))
    names: dict = {}
    exec(block_with("streaming=True"), names)
    seen = 2 * 16 * names["seen"]  # by both processes
    assert len(list(names["rest"])) == len(names["rest"]) == ROWS - seen
    assert len(list(names["stream"])) == ROWS


def test_the_loop_of_timm(folder, monkeypatch):
    monkeypatch.chdir(folder)
    exec(block_with("create_optimizer_v2"), {})
    assert timm.create_model(f"local-dir:{folder / 'student'}", pretrained=True).num_classes == len(CLASSES)


def test_the_lines_for_the_script_of_timm(folder, monkeypatch):
    """With the names that it has there, and then what it does with a batch."""
    monkeypatch.chdir(folder)
    args = SimpleNamespace(seed=42, world_size=2, rank=1, batch_size=8, workers=0, pin_mem=False)
    model = timm.create_model("resnet10t", num_classes=8).to(torch.bfloat16)
    names = {"torch": torch, "args": args, "model": model, "device": torch.device("cpu"), "model_dtype": torch.bfloat16}
    exec(block_with("args.world_size"), names)
    loader, task = names["loader_train"], names["task"]
    (pixels, batch), *_ = loader
    pixels, batch = pixels.to(device=names["device"], dtype=torch.bfloat16), batch.to(device=names["device"])
    result = task(pixels, batch)
    result["loss"].backward()
    assert len(loader) == ROWS // 2 // 8
    assert result["output"].shape == (8, 8)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on this machine
def test_the_module_of_lightning(folder, monkeypatch, capfd):
    """Each epoch shows its own views, also the first one after a checkpoint."""
    lightning = pytest.importorskip("lightning", reason="a user's own dependency")
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(block_with("LightningModule"), names)
    train = names["student"].reinforced
    seen: list = []

    class Watched(names["Student"]):
        def training_step(self, batch, step):
            seen.append(batch["pixel_values"].clone())
            return super().training_step(batch, step)

    def expected(epoch):
        loader = ReinforcedLoader(train, ROWS, student=names["student"].model, device="cpu")
        loader.epoch = epoch
        return next(iter(loader))["pixel_values"]

    settings = {"enable_progress_bar": False, "logger": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=2, **settings)
    trainer.fit(Watched(train))
    trainer.save_checkpoint("last.ckpt")
    # Lightning saved its own when it still counted the epoch as unfinished.
    own = trainer.checkpoint_callback.best_model_path
    for checkpoint in (own, "last.ckpt"):
        again = lightning.Trainer(max_epochs=4, enable_checkpointing=False, **settings)
        again.fit(Watched(train), ckpt_path=checkpoint)
    epochs = torch.cat(seen).split(ROWS)
    shown = [0, 1, 2, 3, 2, 3]
    assert len(epochs) == len(shown)
    assert all(torch.equal(pixels, expected(epoch)) for pixels, epoch in zip(epochs, shown, strict=True))


def test_the_search_for_settings(unmixed_folder, base, monkeypatch):
    """With one trial that a stand-in of optuna suggests."""
    monkeypatch.chdir(unmixed_folder)
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)
    trial = SimpleNamespace(number=0, params={}, suggest_float=lambda name, low, high, log=False: high)

    def search(trainer, hp_space, compute_objective, direction, backend, n_trials):
        trainer.hp_search_backend, trainer.hp_space, trainer.hp_name = HPSearchBackend(backend), hp_space, None
        trainer.args.eval_strategy = IntervalStrategy.NO  # it would report to optuna
        trainer.train(trial=trial)
        assert (trainer.args.learning_rate, trainer.args.label_weight) == (1e-2, 0.5)
        return direction, compute_objective(trainer.evaluate())

    monkeypatch.setattr(ReinforcedTrainer, "hyperparameter_search", search)
    code = block_with("hyperparameter_search").replace(
        'datasets.load_dataset("uoft-cs/cifar100", split="test")', "base"
    )
    names: dict = {"base": base}
    exec(code, names)
    direction, objective = names["best"]
    assert direction == "maximize"
    assert 0 <= objective <= 1


def test_a_model_that_timm_does_not_know_is_refused(folder):
    with pytest.raises(ConfigError, match=r"must be a model of timm, .* got Linear. Give `timm.create_model"):
        ReinforcedTask(torch.nn.Linear(3, 8), ReinforcedLoss(load_reinforced(folder / "cifar100-plus")))


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "label_weight": 0.3, "tail": "bucket"}])
def test_the_task_of_timm_has_the_loss_of_the_library(unmixed_folder, settings):
    """On pixels that are normalised as the model says, whichever type timm has made them."""
    train = load_reinforced(unmixed_folder / "cifar100-plus")
    model = timm.create_model("resnet10t", num_classes=8, pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)}).eval()
    task = ReinforcedTask(model, ReinforcedLoss(train, **settings), verbose=False)
    pixels, batch = task.collate(train[0:6])
    assert pixels.dtype == torch.uint8
    mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    logits = model((pixels / 255 - mean) / std)
    for given in (pixels, pixels.to(torch.bfloat16)):
        result = task(given, batch)
        torch.testing.assert_close(result["output"], logits)
        torch.testing.assert_close(result["loss"], reinforced_loss(logits, batch, **settings))


def tiny_clip(folder):
    """Writes an untrained CLIP, with a tokenizer of letters and an image processor, and returns it."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    text = {**size, **ends, "vocab_size": len(words), "max_position_embeddings": 64}
    vision = {**size, "image_size": SIDE, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    square = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square)
    for part in (model, CLIPProcessor(processor, tokenizer)):
        part.save_pretrained(folder)
    return model, processor, tokenizer


def test_a_zero_shot_teacher(tmp_path, base):
    """As docs/make.md writes it: its answers are those of CLIP to the same prompts, and `verify` gets them again."""
    clip, processor, tokenizer = tiny_clip(tmp_path / "clip")
    text = (ROOT / "docs" / "make.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "ZeroShot" in block)
    names: dict = {"dataset": base}
    exec(code.replace("openai/clip-vit-base-patch32", str(tmp_path / "clip")), names)
    teacher = names["teacher"]
    assert [name for (name,) in teacher.labels] == list(CLASSES)

    views = torch.randint(256, (4, 3, SIDE, SIDE), dtype=torch.uint8)
    mean, std = (torch.tensor(given)[:, None, None] for given in (processor.image_mean, processor.image_std))
    texts = tokenizer([f"a photo of a {name}." for name in CLASSES], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = clip(**texts, pixel_values=(views / 255 - mean) / std).logits_per_image.log_softmax(-1)
    torch.testing.assert_close(teacher(views).cpu(), expected, rtol=1e-5, atol=1e-4)

    config = ReinforceConfig(str(tmp_path / "plus"), num_views=1, top_k=3, max_examples=8)
    plus = reinforce(base, teacher, [ops.RandomResizedCrop(SIDE)], config)
    assert verify(plus, teacher).ok


def test_an_op_of_ones_own(tmp_path, base, tiny_teacher, monkeypatch):
    """As docs/make.md writes it: it is stored, opened and replayed; without its class the error says what to do."""
    monkeypatch.setattr("hf_dr.views.ops.base.OPS", known := dict(ops.OPS))
    monkeypatch.setattr("hf_dr.views.augmentation.OPS", known)
    text = (ROOT / "docs" / "make.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "RandomVerticalFlip" in block)
    module = ModuleType("of_ones_own")
    monkeypatch.setitem(sys.modules, "of_ones_own", module)
    exec(code, vars(module))
    config = ReinforceConfig(str(tmp_path), num_views=6, top_k=3, max_examples=20)
    plus = reinforce(base, tiny_teacher, [ops.Resize((8, 8)), module.RandomVerticalFlip(p=0.4)], config)
    drawn = np.array([[plus.params(row, view)["vertical_flip"] for view in range(6)] for row in range(20)])
    assert 0.2 < drawn.mean() < 0.6
    assert verify(load_reinforced(tmp_path), tiny_teacher).ok
    del known["RandomVerticalFlip"]
    with pytest.raises(
        ConfigError, match=r"no op is called `RandomVerticalFlip`.* Import the module of one of your own"
    ):
        load_reinforced(tmp_path)

"""Trained students as files: what transformers, timm and this package read back from them."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    TimmWrapperConfig,
    ViTConfig,
    ViTImageProcessor,
)

from hf_dr.metrics import compute_metrics
from hf_dr.students import LabelledImages, build_student, evaluation_augmentation
from hf_dr.teacher import Teacher
from hf_dr.trainer import ReinforcedTrainer, ReinforcedTrainingArguments

SIZE = 24
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
ARCHITECTURES: dict[str, dict[str, Any] | None] = {
    "test_vit": {"img_size": SIZE, "patch_size": 8},
    "test_resnet": None,
    "resnet10t": {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1], "stem_width": 8, "drop_path_rate": 0.1},
}


def train(folder: Path, model: nn.Module, plus: Any, **settings: Any) -> ReinforcedTrainer:
    """Trains for one step, with averaged weights, and saves."""
    args = ReinforcedTrainingArguments(
        str(folder), max_steps=1, per_device_train_batch_size=4, ema_decay=0.5, optim="sgd", learning_rate=0.05,
        save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = ReinforcedTrainer(model, args, train_dataset=plus, **settings)
    trainer.train()
    trainer.save_model()
    return trainer


def timm_student(plus: Any, architecture: str) -> nn.Module:
    torch.manual_seed(0)
    names, model_args = plus.class_names, ARCHITECTURES[architecture]
    return build_student(f"timm:{architecture}", names, len(names), model_args=model_args, size=SIZE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, _tiny_plus) -> dict[str, Path]:
    """A trained student of each architecture. Read only."""
    root = tmp_path_factory.mktemp("students")
    for name in ARCHITECTURES:
        train(root / name, timm_student(_tiny_plus, name), _tiny_plus, normalization=(MEAN, STD))
    return {name: root / name for name in ARCHITECTURES}


def answer(model: Any) -> torch.Tensor:
    """The logits for fixed pixels. A kernel may round by where weights lie in memory: they are put where torch wants."""
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    pixels = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        out = model.eval()(pixels)
    return out if isinstance(out, torch.Tensor) else out.logits


def equal_logits(folder: Path) -> torch.Tensor:
    """What transformers and timm answer from one folder, which must be the same to the last bit."""
    model, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    logits = answer(model)
    assert torch.equal(answer(timm.create_model(f"local-dir:{folder}", pretrained=True)), logits)
    return logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_and_timm_read_the_same_model(folders, tiny_plus, architecture):
    folder = folders[architecture]
    logits = equal_logits(folder)
    assert logits.std() > 0
    names = timm.create_model(architecture, num_classes=8, **(ARCHITECTURES[architecture] or {})).state_dict().keys()
    for file in ("model.safetensors", "ema.safetensors"):
        assert load_file(folder / file).keys() == names
    config = AutoModelForImageClassification.from_pretrained(folder).config
    assert [config.id2label[c] for c in range(8)] == tiny_plus.class_names
    native = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert native.num_classes == 8
    assert native.pretrained_cfg["label_names"] == tiny_plus.class_names


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_preprocess_as_the_student_was_trained(folders, architecture):
    processor = AutoImageProcessor.from_pretrained(folders[architecture], backend="pil")
    native = resolve_model_data_config(timm.create_model(f"local-dir:{folders[architecture]}", pretrained=True))
    for config in (processor.data_config, native):
        assert tuple(config["input_size"]) == (3, SIZE, SIZE)
        assert (tuple(config["mean"]), tuple(config["std"])) == (MEAN, STD)
        assert (config["crop_pct"], config["crop_mode"], config["interpolation"]) == (1.0, "center", "bilinear")


def test_timm_puts_another_head_on_it(folders):
    model = timm.create_model(f"local-dir:{folders['test_vit']}", pretrained=True, num_classes=3)
    weights = load_file(folders["test_vit"] / "model.safetensors")
    assert torch.equal(model.state_dict()["cls_token"], weights["cls_token"])
    assert model.head.weight.shape[0] == 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_with_the_wrappers_names_is_still_read(folders, tmp_path, architecture):
    """As transformers itself writes it: the names prefixed, nothing that only timm needs."""
    model = AutoModelForImageClassification.from_pretrained(folders[architecture])
    config = json.loads((folders[architecture] / "config.json").read_text())
    config["pretrained_cfg"] = {key: config["pretrained_cfg"][key] for key in ("input_size", "mean", "std")}
    config["model_args"] = config["model_args"] or None
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    assert next(iter(load_file(tmp_path / "model.safetensors"))).startswith("timm_model.")
    old, new = (Teacher.from_pretrained(str(folder)) for folder in (tmp_path, folders[architecture]))
    assert old.members[0].weights_hash == new.members[0].weights_hash
    assert old.members[0].preprocessing.mean == new.members[0].preprocessing.mean == MEAN
    views = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(old(views), new(views))


def test_a_student_that_starts_from_another_has_its_own_classes(folders, tiny_plus, tmp_path):
    """transformers keeps the class names that it read, those of the former classes."""
    shutil.copytree(folders["test_resnet"], tmp_path / "start")
    config = json.loads((tmp_path / "start" / "config.json").read_text())
    config |= {"num_classes": 5, "label_names": list("abcde"), "label_descriptions": {"a": "the first"}}
    (tmp_path / "start" / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "start" / "model.safetensors")
    weights |= {"fc.weight": torch.zeros(5, weights["fc.weight"].shape[1]), "fc.bias": torch.zeros(5)}
    save_file(weights, tmp_path / "start" / "model.safetensors", {"format": "pt"})
    train(tmp_path / "out", build_student(str(tmp_path / "start"), tiny_plus.class_names, 8), tiny_plus)
    equal_logits(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (saved["num_classes"], saved["label_names"]) == (8, tiny_plus.class_names)
    assert not saved.get("label_descriptions")
    assert saved["pretrained_cfg"]["mean"] == list(MEAN), "it was trained with the mean that it had"


def test_a_config_without_pretrained_cfg_gets_the_architectures(tiny_plus, tmp_path):
    config = TimmWrapperConfig(architecture="test_resnet", num_labels=8)
    train(tmp_path, AutoModelForImageClassification.from_config(config), tiny_plus)
    equal_logits(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path, backend="pil").data_config["input_size"] == (3, 160, 160)


def test_other_classifiers_are_saved_as_transformers_does(tiny_plus, tmp_path):
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vit = ViTConfig(image_size=SIZE, patch_size=8, num_labels=8, **tiny)
    processor = ViTImageProcessor(size={"height": SIZE, "width": SIZE})
    trainer = train(tmp_path, AutoModelForImageClassification.from_config(vit), tiny_plus, processing_class=processor)
    model, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(answer(model), answer(trainer.model))
    assert AutoImageProcessor.from_pretrained(tmp_path, backend="pil").size["height"] == SIZE


def run_card(folder: Path, cwd: Path) -> list[str]:
    """Runs each piece of code in a student's card beside an `image.jpg`; returns what each prints."""
    Image.new("RGB", (40, 30), (200, 50, 50)).save(cwd / "image.jpg")
    printed = []
    for code in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL):
        out = io.StringIO()
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out):
            exec(compile(code, "card", "exec"), {})
        printed.append(out.getvalue().strip())
    return printed


def test_the_code_of_the_card_runs(folders, tiny_plus, tmp_path):
    shutil.copytree(folders["test_resnet"], tmp_path / "student")
    trainer = train(tmp_path / "student", timm_student(tiny_plus, "test_resnet"), tiny_plus)
    trainer.create_model_card()
    text = (tmp_path / "student" / "README.md").read_text(encoding="utf-8").replace("hf-hub:", "local-dir:")
    (tmp_path / "student" / "README.md").write_text(text, encoding="utf-8")
    by_transformers, by_timm = run_card(tmp_path / "student", tmp_path)
    assert by_transformers == by_timm
    assert by_timm in tiny_plus.class_names


def test_results_are_those_of_the_saved_weights(tiny_plus, tiny_dataset, tmp_path):
    """Neither those of an earlier step, nor of another set."""
    shown = LabelledImages(tiny_dataset, evaluation_augmentation(SIZE))
    model = timm_student(tiny_plus, "test_resnet")
    trainer = train(tmp_path, model, tiny_plus, eval_dataset=shown, compute_metrics=compute_metrics)

    def card() -> ModelCard:
        trainer.create_model_card(evaluated_on={"id": "me/colours", "split": "test"})
        return ModelCard.load(tmp_path / "README.md")

    assert "## Results" not in card().text
    trainer.evaluate(LabelledImages(tiny_dataset.select(range(4)), evaluation_augmentation(SIZE)))
    assert "## Results" not in card().text
    metrics = trainer.evaluate()
    values = {r.metric_name: r.metric_value for r in card().data.eval_results}
    assert values["Top-1 accuracy"] == metrics["eval_top1"]
    assert f"| ema_nll | {metrics['eval_ema_nll']:.4g} |" in card().text
    assert "runtime" not in card().text
    trainer.train()
    assert "## Results" not in card().text
    assert card().data.eval_results is None

"""The image classification script of transformers' guide becomes a reinforced one by the lines that the documentation shows."""

import re
from pathlib import Path

import datasets
import evaluate
import pytest
import torch
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.training.student_trainer import StudentTrainer
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomHorizontalFlip, RandomResizedCrop
from training.helpers import SIZE

PAGE = Path(__file__).parents[2] / "docs" / "train.md"
# As in https://huggingface.co/docs/transformers/tasks/image_classification, but offline and for two epochs.
SCRIPT = """
import evaluate
import numpy as np
from datasets import load_dataset
from torchvision.transforms import Compose, Normalize, RandomResizedCrop, ToTensor
from transformers import (
    AutoImageProcessor, AutoModelForImageClassification, DefaultDataCollator, Trainer, TrainingArguments
)

food = load_dataset("food", split="train").train_test_split(test_size=4, seed=0)
labels = food["train"].features["label"].names
label2id = {label: str(i) for i, label in enumerate(labels)}
id2label = {str(i): label for i, label in enumerate(labels)}
image_processor = AutoImageProcessor.from_pretrained("checkpoint")
normalize = Normalize(mean=image_processor.image_mean, std=image_processor.image_std)
size = (image_processor.size["height"], image_processor.size["width"])
_transforms = Compose([RandomResizedCrop(size), ToTensor(), normalize])


def transforms(examples):
    examples["pixel_values"] = [_transforms(img.convert("RGB")) for img in examples["image"]]
    del examples["image"]
    return examples


food = food.with_transform(transforms)
data_collator = DefaultDataCollator()
accuracy = evaluate.load("accuracy")


def compute_metrics(eval_pred):
    predictions, labels = eval_pred
    predictions = np.argmax(predictions, axis=1)
    return accuracy.compute(predictions=predictions, references=labels)


model = AutoModelForImageClassification.from_pretrained(
    "checkpoint", num_labels=len(labels), id2label=id2label, label2id=label2id
)
training_args = TrainingArguments(
    output_dir="my_awesome_food_model",
    remove_unused_columns=False,
    eval_strategy="epoch",
    save_strategy="epoch",
    learning_rate=5e-5,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    per_device_eval_batch_size=2,
    num_train_epochs=2,
    warmup_steps=0.1,
    logging_steps=10,
    load_best_model_at_end=True,
    metric_for_best_model="accuracy",
    report_to="none",
)

trainer = Trainer(
    model=model,
    args=training_args,
    data_collator=data_collator,
    train_dataset=food["train"],
    eval_dataset=food["test"],
    processing_class=image_processor,
    compute_metrics=compute_metrics,
)
trainer.train()
"""


class Accuracy:
    """What `evaluate.load("accuracy")` fetches."""

    def compute(self, predictions, references):
        return {"accuracy": float((predictions == references).mean())}


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_dataset, tiny_teacher):
    """A folder with the names that the script uses."""
    monkeypatch.chdir(tmp_path)
    # As on a machine without a GPU: of one process, Trainer sends the inputs where torch says, the model where accelerate says.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(evaluate, "load", lambda name: {"accuracy": Accuracy()}[name])
    Path("food").mkdir()
    tiny_dataset.to_parquet("food/train.parquet")
    augmentation = Augmentation([RandomResizedCrop(SIZE), RandomHorizontalFlip()])
    rows = datasets.load_dataset("food", split="train").train_test_split(test_size=4, seed=0)["train"]
    reinforce(rows, tiny_teacher, augmentation, ReinforceConfig("food-plus", num_views=2, top_k=3))
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=SIZE, patch_size=8
    )
    ViTModel(config).save_pretrained("checkpoint")  # without a classifier, as the guide's
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained("checkpoint")
    return tmp_path


def shown_change() -> list[tuple[str, str]]:
    """The lines of the documentation's diff: what is taken away, and what stands there instead."""
    (diff,) = re.findall(r"```diff\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    taken, put = ([line[1:] for line in diff.splitlines() if line.startswith(sign)] for sign in "-+")
    return list(zip(["", *taken], put, strict=True))  # the first is added: the import


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")  # what the guide's settings do on a CPU
def test_the_script_runs_as_it_is_and_with_the_two_lines_changed(place):
    plain: dict = {"__name__": "plain"}
    exec(SCRIPT, plain)
    assert not isinstance(plain["trainer"], StudentTrainer)

    changes = shown_change()
    assert len(changes) == 3
    assert changes[0][1].startswith("from hf_dr import")
    script = SCRIPT
    for old, new in changes:
        assert not old or script.count(f"{old}\n") == 1
        script = script.replace(f"{old}\n", f"{new}\n", 1)
    made: dict = {"__name__": "made"}
    exec(script, made)
    for names in (plain, made):
        history = [line for line in names["trainer"].state.log_history if "eval_accuracy" in line]
        assert [line["epoch"] for line in history] == [1, 2]
    trainer = made["trainer"]
    assert isinstance(trainer, StudentTrainer)
    assert trainer.state.max_steps == plain["trainer"].state.max_steps

"""What a student is shown in training and evaluation is what its saved image processor shows it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, MobileViTConfig

from hf_dr.errors import ConfigError, TeacherError
from hf_dr.teacher.preprocessing import evaluation_augmentation, read_image_processor
from hf_dr.training.student_inputs import load_processor, processor_of
from hf_dr.training.students import build_student
from hf_dr.training.trainer import ReinforcedTrainer
from training.helpers import SIZE, timm_student, transformers_student

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SQUARE = {"size": {"height": SIZE, "width": SIZE}}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViTImageProcessor", SQUARE),
    "ViT, another mean and std": (
        "ViTImageProcessor",
        {**SQUARE, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.3] * 3},
    ),
    "ViT, not normalised": ("ViTImageProcessor", {**SQUARE, "do_normalize": False}),
    "ViT, another rescale factor": ("ViTImageProcessor", {**SQUARE, "rescale_factor": 1 / 127.5}),
    "ViT, not rescaled": ("ViTImageProcessor", {**SQUARE, "do_rescale": False, "do_normalize": False}),
    "MobileViT": ("MobileViTImageProcessor", {"size": {"shortest_edge": SIZE}, "crop_size": SQUARE["size"]}),
    "CLIP": ("CLIPImageProcessor", {"size": {"shortest_edge": SIZE}, "crop_size": SQUARE["size"]}),
    "EfficientNet": ("EfficientNetImageProcessor", {**SQUARE, "rescale_offset": True, "rescale_factor": 1 / 127.5}),
}


def mobilevit() -> nn.Module:
    torch.manual_seed(0)
    config = MobileViTConfig(
        image_size=32, hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16], num_labels=8
    )
    return AutoModelForImageClassification.from_config(config)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_the_trainer_evaluates_as_the_saved_processor_shows_images(settings, tmp_path, plain, pictures, kind):
    name, given = PROCESSORS[kind]
    processor = getattr(transformers, name)(**given)
    student = mobilevit() if kind == "MobileViT" else transformers_student("vit")
    trainer = ReinforcedTrainer(
        student, settings(max_steps=1), train_dataset=plain, eval_dataset=pictures, processing_class=processor
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    measured = trainer.predict(pictures).predictions
    assert measured.std() > 0

    model = AutoModelForImageClassification.from_pretrained(tmp_path / "student").eval()
    saved = AutoImageProcessor.from_pretrained(tmp_path / "student")
    images = [np.array(pictures[row]["pixel_values"].permute(1, 2, 0)) for row in range(len(pictures))]
    with torch.inference_mode():
        shown = model(saved(images, return_tensors="pt")["pixel_values"]).logits
    np.testing.assert_allclose(measured, shown.numpy(), rtol=1e-4, atol=1e-5)


def test_training_shows_what_evaluation_shows(settings, plain):
    """By the definition: blue first, and pixels divided by 255 only."""
    processor = transformers.MobileViTImageProcessor(size={"shortest_edge": SIZE}, crop_size=SQUARE["size"])
    trainer = ReinforcedTrainer(mobilevit(), settings(), train_dataset=plain, processing_class=processor)
    pixels = plain[0]["pixel_values"][None]
    shown = trainer._student_inputs({"pixel_values": pixels})["pixel_values"]
    torch.testing.assert_close(shown, pixels[:, [2, 1, 0]] / 255)


def test_the_processor_of_timm_is_the_models_own(settings, plain, tmp_path: Path):
    student = timm_student()
    student.config.pretrained_cfg.update(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    student.save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    trainer = ReinforcedTrainer(student, settings(), train_dataset=plain, processing_class=processor)
    grey = torch.full((1, 3, 2, 2), 51, dtype=torch.uint8)
    shown = trainer._student_inputs({"pixel_values": grey})["pixel_values"]
    torch.testing.assert_close(shown[0, :, 0, 0], torch.tensor([0.25, 0.0, -1 / 6]))


def test_a_processor_for_another_size_is_saved_for_that_of_the_views(settings, plain, tmp_path, caplog):
    given = transformers.ViTImageProcessor()  # of 224 pixels
    with caplog.at_level("INFO", "hf_dr"):
        trainer = ReinforcedTrainer(
            transformers_student("resnet"), settings(), train_dataset=plain, processing_class=given
        )
    assert (
        f"The image processor is saved for images of {SIZE} pixels, the size of the views; it was for 224."
        in caplog.text
    )
    trainer.save_model(str(tmp_path / "saved"))
    saved = transformers.AutoImageProcessor.from_pretrained(tmp_path / "saved")
    assert dict(saved.size) == {"height": SIZE, "width": SIZE}
    assert dict(given.size) == {"height": 224, "width": 224}, "the given one is not changed"


COLOURS = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.mark.parametrize("normalization", [None, COLOURS], ids=["ImageNet's", "own"])
def test_a_model_without_a_processor_gets_one_that_shows_what_the_trainer_showed(
    settings, plain, pictures, tmp_path, normalization
):
    trainer = ReinforcedTrainer(
        transformers_student("vit"), settings(), normalization=normalization, train_dataset=plain, eval_dataset=pictures
    )
    trainer.save_model(str(tmp_path))
    measured = trainer.predict(pictures).predictions
    saved = AutoImageProcessor.from_pretrained(tmp_path)
    assert (tuple(saved.image_mean), tuple(saved.image_std)) == (normalization or IMAGENET)
    images = [np.array(pictures[row]["pixel_values"].permute(1, 2, 0)) for row in range(len(pictures))]
    model = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.inference_mode():  # the pictures have been resized and cropped already
        shown = model(saved(images, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]).logits
    np.testing.assert_allclose(measured, shown.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(28, 28), (75, 75), (300, 300), (96, 80)])
def test_the_view_of_the_new_processor_is_the_usual_one(size):
    processor = processor_of(transformers_student("vit"), size)
    read, crop = read_image_processor(processor, "new")
    ours, theirs = evaluation_augmentation(size), evaluation_augmentation(size, crop, read.interpolation)
    assert ours.ops[1] == theirs.ops[1]
    resized = [np.broadcast_to(ops[0].size, 2) for ops in (ours.ops, theirs.ops)]
    assert np.abs(resized[0] - resized[1]).max() <= (0 if size[0] == size[1] else 1)  # one share for both sides


def test_a_checkpoint_is_trained_with_its_own_processor(settings, plain, tmp_path, caplog):
    transformers_student("vit").save_pretrained(tmp_path)
    student = AutoModelForImageClassification.from_pretrained(tmp_path)
    trainer = ReinforcedTrainer(student, settings(), train_dataset=plain)
    assert "ViTForImageClassification comes without an image processor." in caplog.text
    assert tuple(trainer.processing_class.image_mean) == IMAGENET[0]

    caplog.clear()
    transformers.ViTImageProcessor(image_mean=list(COLOURS[0]), image_std=list(COLOURS[1])).save_pretrained(tmp_path)
    trainer = ReinforcedTrainer(student, settings(), train_dataset=plain)
    assert "without an image processor" not in caplog.text
    grey = torch.full((1, 3, 2, 2), 51, dtype=torch.uint8)
    shown = trainer._student_inputs({"pixel_values": grey})["pixel_values"]
    torch.testing.assert_close(shown[0, :, 0, 0], torch.tensor([0.25, 0.0, -1 / 6]))
    assert dict(trainer.processing_class.size) == {"height": SIZE, "width": SIZE}
    other = ReinforcedTrainer(student, settings(), normalization=IMAGENET, train_dataset=plain)
    assert tuple(other.processing_class.image_mean) == IMAGENET[0], "what is asked for counts"

    class Adapted(nn.Module):
        """As PEFT wraps a model."""

        def __init__(self) -> None:
            super().__init__()
            self.base = student

        def get_base_model(self) -> nn.Module:
            return self.base

        def forward(self, **inputs: Any) -> Any:
            return self.base(**inputs)

    trainer = ReinforcedTrainer(Adapted(), settings(), train_dataset=plain)
    assert tuple(trainer.processing_class.image_mean) == COLOURS[0]


def test_what_cannot_be_done_is_refused(settings, plain):
    given = {"train_dataset": plain, "processing_class": transformers.ViTImageProcessor(**SQUARE)}
    with pytest.raises(ConfigError, match=r"`normalization` must be that of `processing_class`.* got \(\(0\.1, "):
        ReinforcedTrainer(
            transformers_student("vit"), settings(), normalization=((0.1, 0.2, 0.3), (1.0, 1.0, 1.0)), **given
        )
    reversing = transformers.MobileViTImageProcessor(size={"shortest_edge": SIZE}, crop_size=SQUARE["size"])
    with pytest.raises(ConfigError, match="must leave the channels in the order RGB for a model of timm"):
        ReinforcedTrainer(timm_student(), settings(), **{**given, "processing_class": reversing})

    class Brighter(transformers.ViTImageProcessor):
        def preprocess(self, *arguments: Any, **settings: Any) -> Any:
            batch = super().preprocess(*arguments, **settings)
            batch["pixel_values"] = batch["pixel_values"] + 1
            return batch

    with pytest.raises(TeacherError, match=r"must rescale, normalise and order the channels as its configuration says"):
        ReinforcedTrainer(transformers_student("vit"), settings(), **{**given, "processing_class": Brighter(**SQUARE)})


def test_the_processor_of_a_saved_student_of_timm_loads_without_a_warning(tmp_path, caplog):
    build_student("timm:test_resnet", ["a", "b"], 2, size=SIZE).save_pretrained(tmp_path)
    transformers.logging.enable_propagation()  # to caplog
    try:
        processor = load_processor(str(tmp_path), 48)
    finally:
        transformers.logging.disable_propagation()
    assert isinstance(processor, transformers.TimmWrapperImageProcessor)
    assert not caplog.messages


def test_an_image_processor_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    assert load_processor(str(tmp_path), SIZE) is None
    for damaged in ("{", '{"image_processor_type": "Nothing"}'):
        (tmp_path / "preprocessor_config.json").write_text(damaged)
        with pytest.raises(
            ConfigError, match=r"image processor of .* must be one that transformers loads, but: .*remove"
        ):
            load_processor(str(tmp_path), SIZE)

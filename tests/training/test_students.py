"""Students by their names, and the images that they are evaluated on."""

import json
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers import (
    CLIPImageProcessor,
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTImageProcessor,
)

from hf_dr.errors import ConfigError, DataError
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.folds import CONFIG_KEY
from hf_dr.teacher.members import load_member
from hf_dr.teacher.preprocessing import Preprocessing, evaluation_augmentation
from hf_dr.training.student_inputs import LabelledImages, evaluation_of, load_processor
from hf_dr.training.students import build_student
from hf_dr.training.trainer import ReinforcedTrainer
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import CenterCrop, RandomHorizontalFlip
from training.helpers import MODELS, SIZE, STEPS, same, weights


def test_images_for_evaluation(tiny_dataset):
    with pytest.raises(DataError, match=r"must have the column `lable`\. Did you mean `label`\?"):
        LabelledImages(tiny_dataset, evaluation_augmentation((SIZE, SIZE)), label_column="lable")
    with pytest.raises(ConfigError, match="an evaluation must not be random, got the parameters flip"):
        LabelledImages(tiny_dataset, Augmentation([CenterCrop(SIZE), RandomHorizontalFlip()]))
    image = LabelledImages(tiny_dataset, evaluation_augmentation((SIZE, SIZE)))[5]
    assert image["pixel_values"].shape == (3, SIZE, SIZE)
    assert image["labels"] == tiny_dataset[5]["label"]
    for split, name in (("test", "row 0 of `test`"), (None, "row 0")):
        broken = datasets.Dataset.from_dict({"image": [{"bytes": b"no", "path": None}]}, split=split)
        broken = broken.cast_column("image", datasets.Image())
        with pytest.raises(DataError, match=f"the image of {name} must be readable"):
            LabelledImages(broken, evaluation_augmentation((SIZE, SIZE)), label_column=None)[0]


def test_students(tmp_path):
    with pytest.raises(ConfigError, match=r"timm has no architecture `test_vitt`\. Did you mean `test_vit"):
        build_student("timm:test_vitt", None, 8)
    with pytest.raises(ConfigError, match=r"timm cannot build test_resnet with {'depht': 3}.*Check `model_args`"):
        build_student("timm:test_resnet", None, 8, model_args={"depht": 3})
    with pytest.raises(
        ConfigError, match=r"`model_args` must come with `timm:ARCHITECTURE`, got 'org/net'. Leave it out"
    ):
        build_student("org/net", None, 8, model_args={"depth": 3})
    with pytest.raises(
        ConfigError, match=r"the student 'resnet18' is an architecture of timm\. Did you mean `timm:resnet18`"
    ):
        build_student("resnet18", None, 8)
    with pytest.raises(ConfigError, match=r"mean and std on the scale 0 to 1, got .*127\.5.* Divide them by 255"):
        build_student("timm:test_resnet", None, 8, normalization=((127.5,) * 3, (127.5,) * 3))
    with pytest.raises(
        ConfigError, match=r"the student '\./nowhere' must be a folder, but there is none\. Train it first"
    ):
        build_student("./nowhere", None, 8)
    (tmp_path / "student").mkdir()
    with pytest.raises(ConfigError, match=rf"there is none\. Did you mean `{tmp_path}/student`\? Train it first"):
        build_student(str(tmp_path / "studnt"), None, 8)
    with pytest.raises(
        ConfigError, match=r"could not load the model .*Name a Hub id, a folder, or `timm:ARCHITECTURE`"
    ):
        build_student(str(tmp_path), None, 8)
    build_student("timm:test_resnet", None, 2).save_pretrained(tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"could not load the model .*/cut' .*header too small"):
        build_student(str(tmp_path / "cut"), None, 2)
    student = build_student("timm:test_resnet", ["a", "b"], 2, size=SIZE)
    assert student.config.id2label == {0: "a", 1: "b"}
    assert json.loads(json.dumps(student.config.to_dict()))["pretrained_cfg"]["input_size"] == [3, SIZE, SIZE]


@pytest.mark.parametrize(
    ("architecture", "size", "model_args", "built"),
    [
        ("test_vit", 32, None, {"img_size": [32, 32]}),
        ("test_vit", (32, 64), {"depth": 1}, {"depth": 1, "img_size": [32, 64]}),
        ("test_vit", 32, {"img_size": 32, "patch_size": 8}, {"img_size": 32, "patch_size": 8}),
        ("test_vit", 160, None, {}),  # its own
        ("test_resnet", 32, None, {}),  # takes any
    ],
)
def test_an_architecture_of_one_size_is_built_for_that_of_the_images(architecture, size, model_args, built, caplog):
    student = build_student(f"timm:{architecture}", None, 8, model_args=model_args, size=size)
    assert student.config.model_args == built
    images = torch.zeros(1, 3, *np.broadcast_to(size, 2))
    assert student.eval()(pixel_values=images).logits.shape == (1, 8)
    assert caplog.text == ""


def test_an_architecture_that_leaves_out_an_edge_says_so(caplog):
    build_student("timm:test_vit", None, 8, size=(36, 32))
    assert "test_vit sees 32 x 32 pixels of images of 36 x 32, whole patches of 16 x 16. Give" in caplog.text


def test_a_saved_student_may_be_trained_further(tmp_path, plain, settings):
    saved = build_student("timm:test_resnet", ["a", "b"], 2)
    saved.config.update({"problem_type": "regression", CONFIG_KEY: {"fold": 0, "folds": 2}})  # of what it did before
    saved.save_pretrained(tmp_path / "saved")
    student = build_student(tmp_path / "saved", plain.class_names, 8)
    assert student.config.num_labels == 8
    assert student.config.problem_type is None
    assert CONFIG_KEY not in student.config.to_dict()
    body = load_file(tmp_path / "saved" / "model.safetensors")
    # Whether the names begin with `timm_model.` depends on the version of transformers.
    body = {name.removeprefix("timm_model."): value for name, value in body.items()}
    loaded = student.timm_model.state_dict()
    assert any(torch.equal(value, body[name]) for name, value in loaded.items() if "conv" in name)
    ReinforcedTrainer(student, settings(max_steps=1), train_dataset=plain).train()


def test_a_model_of_timm_is_saved_for_the_images_that_it_learned_from(plain, settings, tmp_path):
    fresh = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="test_resnet", num_labels=8))
    other = build_student("timm:test_resnet", None, 8, size=64, crop=0.9)
    for model, crop in ((fresh, 0.875), (other, 0.9)):
        trainer = ReinforcedTrainer(model, settings(max_steps=1), train_dataset=plain)
        trainer.train()
        trainer.save_model(str(tmp_path / "student"))
        cfg = json.loads((tmp_path / "student" / "config.json").read_text())["pretrained_cfg"]
        assert (cfg["input_size"], cfg["crop_pct"]) == ([3, SIZE, SIZE], crop)
        member = load_member(str(tmp_path / "student"), card=False)
        assert (member.preprocessing.size, member.crop) == ((SIZE, SIZE), crop)
    wide = build_student("timm:test_resnet", None, 8, size=(16, 32))
    assert wide.config.pretrained_cfg["input_size"] == [3, 16, 32]
    view = evaluation_of(wide, None, (16, 32)).apply(PIL.Image.new("RGB", (50, 60)), {})
    assert view.size == (32, 16)


@pytest.mark.parametrize("kind", ["timm test_resnet", "transformers ResNet"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_in_half_precision_is_fine_tuned_in_float32(plain, settings, tmp_path, kind, dtype):
    MODELS[kind]().to(dtype).save_pretrained(tmp_path / "half")
    trainer = ReinforcedTrainer(str(tmp_path / "half"), settings(max_steps=1), train_dataset=plain)
    trainer.train()
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}


def test_a_student_is_saved_with_the_size_that_it_was_fine_tuned_at(tmp_path):
    normalization = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    pretrained = build_student("timm:test_resnet", ["a", "b"], 2, size=64, normalization=normalization)
    pretrained.save_pretrained(tmp_path / "timm")
    build_student(str(tmp_path / "timm"), ["a", "b"], 2, size=SIZE, crop=0.9).save_pretrained(tmp_path / "tuned")
    for name, size, crop in (("timm", 64, 0.875), ("tuned", SIZE, 0.9)):
        cfg = json.loads((tmp_path / name / "config.json").read_text())["pretrained_cfg"]
        assert (cfg["input_size"], cfg["crop_pct"]) == ([3, size, size], crop)
        assert (tuple(cfg["mean"]), tuple(cfg["std"])) == normalization


@pytest.mark.parametrize(
    ("processor", "sizes"),
    [
        (ViTImageProcessor(), {"size": {"height": 56, "width": 56}}),
        (ConvNextImageProcessor(), {"size": {"shortest_edge": 56}, "crop_pct": 0.875}),
        (  # as of EfficientNet at the Hub: with a size of a crop that it does not make
            EfficientNetImageProcessor(size={"height": 224, "width": 224}, crop_size={"height": 289, "width": 289}),
            {"size": {"height": 56, "width": 56}, "do_center_crop": False},
        ),
        (
            CLIPImageProcessor(size={"shortest_edge": 256}),
            {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_processor_of_transformers_makes_images_of_the_size_that_was_fine_tuned_at(tmp_path, processor, sizes):
    for folder in (tmp_path, tmp_path / "tuned"):
        ViTConfig().save_pretrained(folder)  # of some model; none is built
    processor.save_pretrained(tmp_path)
    load_processor(str(tmp_path), 56).save_pretrained(tmp_path / "tuned")
    saved = json.loads((tmp_path / "tuned" / "preprocessor_config.json").read_text())
    assert sizes.items() <= saved.items()
    image = np.zeros((100, 80, 3), np.uint8)
    assert load_processor(str(tmp_path / "tuned"), 56)(image)["pixel_values"][0].shape == (3, 56, 56)


@pytest.mark.parametrize("given", [{}, {"size": SIZE}, {"normalization": ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))}], ids=str)
def test_a_student_that_ones_own_loop_has_saved_can_be_read(plain, settings, tmp_path, given):
    """It was saved by nobody who knows more than the student itself."""
    student = build_student("timm:test_resnet", plain.class_names, plain.num_classes, **given)
    student.save_pretrained(tmp_path)
    mean, std = given.get("normalization", (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    size = given.get("size", 160)
    member = load_member(str(tmp_path))
    assert member.preprocessing == Preprocessing((size, size), mean, std, "bilinear")
    assert member.crop == 0.875
    assert Teacher.from_model(student, "student").members[0].preprocessing == member.preprocessing
    trainer = ReinforcedTrainer(str(tmp_path), settings(), train_dataset=plain)
    assert trainer.model.config.pretrained_cfg["input_size"] == [3, SIZE, SIZE]
    assert (trainer._preprocessing.mean, trainer._preprocessing.std) == (mean, std)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet"])  # of which one has ImageNet's mean
def test_weights_of_a_file_are_shown_what_a_teacher_of_that_name_is_shown(plain, settings, tmp_path, architecture):
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model(architecture, num_classes=plain.num_classes).state_dict(), file)
    name = f"timm:{architecture}@{file}"
    student = build_student(name, plain.class_names, plain.num_classes)
    trainer = ReinforcedTrainer(student, settings(), train_dataset=plain)
    teacher = load_member(name).preprocessing
    assert (trainer._preprocessing.mean, trainer._preprocessing.std) == (teacher.mean, teacher.std)
    given = build_student(name, None, plain.num_classes, normalization=((0.1,) * 3, (0.2,) * 3))
    assert given.config.pretrained_cfg["mean"] == [0.1] * 3


@pytest.mark.filterwarnings("ignore:Mapping deprecated model name")
def test_an_older_name_of_timm_is_an_architecture(tmp_path):
    """Timm builds tv_resnet34, but lists its configuration as that of resnet34.tv_in1k."""
    file = tmp_path / "weights.safetensors"
    save_file(timm.create_model("resnet34", num_classes=5).state_dict(), file)
    old, new = (load_member(f"timm:{name}@{file}") for name in ("tv_resnet34", "resnet34.tv_in1k"))
    assert old.preprocessing == new.preprocessing
    assert old.crop == new.crop


def test_a_student_by_its_name_goes_on_when_it_is_made_again(plain, settings):
    start = lambda **changes: ReinforcedTrainer(  # noqa: E731
        "timm:test_resnet", settings(num_train_epochs=2, save_strategy="epoch", **changes), train_dataset=plain
    )
    whole = start()
    whole.train()
    resumed = start()
    resumed.train(resume_from_checkpoint=str(Path(str(whole.args.output_dir), f"checkpoint-{STEPS}")))
    assert same(weights(resumed.model), weights(whole.model))


def test_the_name_of_an_image_processor_is_none(plain, settings):
    with pytest.raises(ConfigError, match=r"must be an image processor, got the name 'google/vit'\. Load it"):
        ReinforcedTrainer("timm:test_resnet", settings(), train_dataset=plain, processing_class="google/vit")


def test_a_function_that_makes_a_student_returns_a_model(plain, settings):
    with pytest.raises(
        ConfigError, match=r"`model_init` must be a function that returns a model, got str\. Build it with"
    ):
        ReinforcedTrainer(args=settings(), train_dataset=plain, model_init=lambda: "timm:test_resnet")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "24"}, "`size` must be a whole number of at least 1, got '24'"),
        ({"size": 24.0}, "`size` must be a whole number of at least 1, got 24.0"),
        ({"size": 0}, "`size` must be a whole number of at least 1, got 0"),
        ({"size": True}, "`size` must be a whole number of at least 1, got True"),
        ({"size": (24, -1)}, "`size` must be a whole number of at least 1, got -1"),
        ({"size": (24,)}, r"`size` must be a side, or height and width, got \(24,\)\. Give one or the two"),
        ({"size": 24, "crop": "a"}, "`crop` must be above 0 and at most 1, got 'a'"),
        ({"size": 24, "crop": 2.0}, "`crop` must be above 0 and at most 1, got 2.0"),
        ({"size": 24, "crop": 0}, "`crop` must be above 0 and at most 1, got 0"),
    ],
)
def test_what_is_no_size_or_crop(settings, message):
    for name in ("timm:test_resnet", "somebody/model"):
        with pytest.raises(ConfigError, match=message):
            build_student(name, None, 8, **settings)


@pytest.mark.parametrize("size", [24, np.int64(24), (24, 24), [np.int32(24), 24]])
def test_a_size_may_be_a_number_of_numpys(size, tmp_path):
    student = build_student("timm:test_resnet", None, 8, size=size, crop=np.float32(0.5))
    student.save_pretrained(tmp_path)
    seen = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    assert (seen["input_size"], seen["crop_pct"]) == ([3, 24, 24], 0.5)

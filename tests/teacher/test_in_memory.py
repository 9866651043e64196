"""`Teacher.from_model`: a classifier in memory is a teacher; and what a teacher is shown must be bytes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import transformers
from conftest import CLASSES
from torch import nn
from torchvision.transforms.v2 import Compose

from hf_dr.errors import ConfigError, TeacherError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.generation.verify import verify
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.preprocessing import Preprocessing
from hf_dr.training.students import build_student
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomResizedCrop


class Head(nn.Module):
    """Answers with its logits alone, or as the first of two values."""

    def __init__(self, several: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 4 * 4, len(CLASSES))
        self.several = several

    def forward(self, pixels):
        logits = self.linear(pixels.flatten(1))
        return (logits, pixels) if self.several else logits


MEAN, STD = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)


@pytest.mark.parametrize("several", [False, True])
def test_a_model_in_memory_answers_as_it_does_by_itself(several):
    model = Head(several).train()
    teacher = Teacher.from_model(model, "mine", size=4, normalization=(list(MEAN), list(STD)), device="cpu")
    views = torch.randint(256, (5, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    logits = model((views / 255 - mean) / std)
    expected = (logits[0] if several else logits).log_softmax(-1)
    torch.testing.assert_close(teacher(views), expected.detach())
    assert repr(teacher) == "Teacher(mine: 8 classes, fp32 on cpu)"
    assert model.training, "the teacher has a copy"
    assert all(weight.requires_grad for weight in model.parameters())
    before = teacher(views)
    with torch.no_grad():
        model.linear.bias += 1 - 2 * torch.rand(8)
    assert torch.equal(before, teacher(views))
    (told,) = teacher.provenance()["members"]
    assert (told["id"], told["revision"], told["license"]) == ("mine", None, None)
    both = Teacher([*teacher.members, *Teacher.from_model(Head(), "other", size=4, normalization=(MEAN, STD)).members])
    assert both(views).exp().sum(-1) == pytest.approx(torch.ones(5))


def test_a_model_in_memory_reinforces_and_verifies(tmp_path, tiny_dataset):
    teacher = Teacher.from_model(
        Head(), "mine", size=4, normalization=(MEAN, STD), class_names=CLASSES, license="mit", device="cpu"
    )
    config = ReinforceConfig(str(tmp_path / "plus"), num_views=2, top_k=3, allow_disagreement=True)
    plus = reinforce(tiny_dataset, teacher, Augmentation([RandomResizedCrop(8)]), config)
    report = verify(plus, teacher)
    assert report.ok
    assert report.top1_agreement == 1
    with pytest.raises(TeacherError, match="must be named, unless it is a commit on the Hub, found 'mine' without a"):
        verify(plus)


def test_models_of_timm_and_transformers_say_how_they_take_images(tmp_path):
    net = timm.create_model("test_vit", num_classes=8)
    (member,) = Teacher.from_model(net, "net").members
    assert member.preprocessing.size == tuple(net.pretrained_cfg["input_size"][1:])
    assert member.labels is None
    assert member.crop == net.pretrained_cfg["crop_pct"]
    student = build_student("timm:test_resnet", CLASSES, 8, size=32, crop=0.9, normalization=(MEAN, STD))
    (member,) = Teacher.from_model(student, "student").members
    assert member.preprocessing == replace(member.preprocessing, size=(32, 32), mean=MEAN, std=STD)
    assert (member.crop, member.labels) == (0.9, tuple((name,) for name in CLASSES))
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16, patch_size=8,
        id2label=dict(enumerate(CLASSES)),
    )  # fmt: skip
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=MEAN, image_std=STD)
    vit = transformers.ViTForImageClassification(config)
    (member,) = Teacher.from_model(vit, "vit", processor=processor).members
    assert member.preprocessing == Preprocessing((16, 16), MEAN, STD, "bilinear")
    assert member.labels == tuple((name,) for name in CLASSES)
    both = SimpleNamespace(image_processor=processor, tokenizer=None)  # such as CLIP's
    (member,) = Teacher.from_model(vit, "vit", processor=both).members
    assert member.preprocessing == Preprocessing((16, 16), MEAN, STD, "bilinear")


@pytest.mark.parametrize("kind", [np.float32, torch.tensor, lambda pair: tuple(map(np.float32, pair))])
def test_a_normalization_may_be_of_arrays(kind):
    (member,) = Teacher.from_model(Head(), "mine", size=4, normalization=kind(((0.5,) * 3, (0.25,) * 3))).members
    assert repr(member.preprocessing) == repr(Preprocessing((4, 4), (0.5,) * 3, (0.25,) * 3, "bilinear"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"normalization": (MEAN, STD)},
            ConfigError,
            "`size` must be given for a Head, which does not say how it takes",
        ),
        (
            {"size": 4},
            ConfigError,
            r"`normalization` must be given for a Head, .* Give `size` and `normalization=\(mean",
        ),
        (
            {"size": 8, "normalization": (MEAN, STD)},
            TeacherError,
            "'mine' must take RGB images of 8x8 pixels, as its pre",
        ),
        (
            {"size": 4, "normalization": (MEAN, STD), "class_names": ["a", "b"]},
            TeacherError,
            "`class_names` must name the 8 classes of 'mine', got 2 names",
        ),
        (
            {"size": 4, "normalization": (MEAN, (0, 1, 1))},
            ConfigError,
            "`normalization` must have a std above 0",
        ),
        (
            {"size": 4, "normalization": ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4))},
            ConfigError,
            "`normalization` must be mean and std on the scale 0 to 1, got .* on that of 0 to 255. Divide them by 255",
        ),
        (
            {"size": 4, "normalization": Compose([nn.Identity()])},
            ConfigError,
            "`normalization` must be mean and std, each three numbers, got Compose",
        ),
        (
            {"processor": Compose([nn.Identity()])},
            TeacherError,
            "the image processor of 'mine' must be one of transformers, found Compose. Give such a one, or in its place the",
        ),
    ],
)
def test_a_model_in_memory_that_cannot_answer(arguments, error, message):
    with pytest.raises(error, match=message):
        Teacher.from_model(Head(), "mine", **arguments)


def test_a_model_that_keeps_what_it_has_computed_cannot_be_copied():
    model = Head()
    model.linear.register_forward_hook(lambda layer, given, answer: setattr(layer, "last", answer))
    teacher = Teacher.from_model(model, "mine", size=4, normalization=(MEAN, STD))  # before it is called
    model(torch.zeros(1, 3, 4, 4))
    message = "'mine' must be one that can be copied, because .*, but: RuntimeError: .* give it before it is called"
    with pytest.raises(TeacherError, match=message):
        Teacher.from_model(model, "mine", size=4, normalization=(MEAN, STD))
    assert teacher.num_classes == len(CLASSES)


@pytest.mark.filterwarnings("ignore:.torch.jit")  # they are deprecated, and people have them
@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, torch.zeros(2, 3, 4, 4))])
def test_a_module_of_torchscript_is_a_teacher(make):
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, len(CLASSES)))
    given = {"size": 4, "normalization": (MEAN, STD), "device": "cpu"}
    views = torch.randint(256, (5, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain, scripted = (Teacher.from_model(each, "mine", **given) for each in (model, make(model)))
    torch.testing.assert_close(scripted(views), plain(views))
    assert scripted.provenance() == plain.provenance()


class Stateful(Head):
    """Has something else than weights in its state."""

    def __init__(self, state):
        super().__init__()
        self.state = state

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def test_a_state_that_is_no_weight_counts_too():
    models = [Stateful({"a": 1, "b": [2]}), Stateful({"b": [2], "a": 1}), Stateful({"a": 2}), Head()]
    for model in models[1:]:
        model.linear.load_state_dict(models[0].linear.state_dict())
    hashes = [Teacher.from_model(m, "mine", size=4, normalization=(MEAN, STD)).members[0].weights_hash for m in models]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    message = r"a model must be tensors, or what JSON can hold, found object for '_extra_state'\. Change its `get_extra_state`"
    with pytest.raises(TeacherError, match=message):
        Teacher.from_model(Stateful(object()), "mine", size=4, normalization=(MEAN, STD))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_of_another_precision_are_named(dtype):
    model = Head().to(getattr(torch, dtype))
    message = (
        rf"weights of the model 'mine' must be float32, as the pixels are, found {dtype}\. Give `model\.float\(\)`"
    )
    with pytest.raises(TeacherError, match=message):
        Teacher.from_model(model, "mine", size=4, normalization=(MEAN, STD))


def test_probabilities_are_no_logits():
    given = {"size": 4, "normalization": (MEAN, STD)}
    with pytest.raises(
        TeacherError, match=r"'mine' must answer with logits, found .* probabilities\. Leave its softmax out"
    ):
        Teacher.from_model(torch.nn.Sequential(Head(), torch.nn.Softmax(dim=-1)), "mine", **given)
    logarithms = Teacher.from_model(torch.nn.Sequential(Head(), torch.nn.LogSoftmax(dim=-1)), "mine", **given)
    assert logarithms.num_classes == 8


class Mean(nn.Module):
    """Answers with one number for all images."""

    def forward(self, pixels):
        return pixels.mean()


def test_a_model_that_answers_with_one_number_is_no_classifier():
    with pytest.raises(
        TeacherError, match=r"shape \(1, classes\), but its answer to one image has the shape \(\)\. Name"
    ):
        Teacher.from_model(Mean(), "mine", size=4, normalization=(MEAN, STD))


def test_a_model_that_maps_pixels_to_pixels_is_no_classifier():
    with pytest.raises(
        TeacherError,
        match=r"must answer with one number for each of its classes, shape \(1, 4\), but its answer .* shape",
    ):
        Teacher.from_model(nn.Identity(), "mine", size=4, normalization=(MEAN, STD))


@pytest.mark.parametrize(
    ("views", "found"),
    [
        (torch.zeros(2, 3, 4, 4), r"float32 of shape \(2, 3, 4, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), r"uint8 of shape \(3, 4, 4\)"),
        (torch.zeros(2, 4, 4, 3, dtype=torch.uint8), r"uint8 of shape \(2, 4, 4, 3\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), "ndarray"),
    ],
)
def test_views_that_are_not_bytes_are_not_answered(tiny_teacher, views, found):
    with pytest.raises(
        ConfigError, match=f"views must be a uint8 tensor of shape .*, got {found}. Give the pixels as they"
    ):
        tiny_teacher(views)

"""The teacher: members named in every way, their own preprocessing, averaged probabilities, and clear refusals."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from hf_dr.errors import ConfigError, TeacherError
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.folds import Fold
from hf_dr.teacher.members import Member, check_member, load_member, weights_hash
from hf_dr.teacher.preprocessing import Preprocessing

VIEWS = torch.randint(0, 256, (5, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    """Logits of pooled pixels; remembers what it was shown."""

    def __init__(self, classes: int, seed: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, classes)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(classes, 3, generator=torch.Generator().manual_seed(seed)))
            self.linear.bias.zero_()
        self.seen: torch.Tensor | None = None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen = pixels
        return self.linear(pixels.mean((2, 3)))


def member(seed: int = 0, classes: int = 4, size: int = 24, labels: tuple[str, ...] | None = None, **changes) -> Member:
    model = Linear(classes, seed)
    names = None if labels is None else tuple((name,) for name in labels)
    preprocessing = Preprocessing((size, size), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear")
    built = Member(model, f"m{seed}", None, "mit", classes, names, preprocessing, weights_hash(model))
    return dataclasses.replace(built, **changes)


def test_probabilities_are_averaged():
    parts = [Teacher([member(seed)])(VIEWS).double().exp() for seed in (0, 1, 2)]
    together = Teacher([member(seed) for seed in (0, 1, 2)])(VIEWS)
    torch.testing.assert_close(together.double().exp(), sum(parts) / 3, rtol=1e-5, atol=1e-7)
    assert together.dtype == torch.float32


def test_every_member_resizes_and_normalises_for_itself():
    first, second = member(0, size=24), member(1, size=16)
    second = dataclasses.replace(second, preprocessing=dataclasses.replace(second.preprocessing, mean=(0.0, 0.0, 0.0)))
    Teacher([first, second])(VIEWS)
    torch.testing.assert_close(first.model.seen, (VIEWS / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-5)
    assert second.model.seen.shape == (5, 3, 16, 16)
    assert second.model.seen.min() >= 0


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")],
)
def test_running_out_of_memory_halves_the_batch(monkeypatch, caplog, error):
    teacher = Teacher([member()])
    expected, answer, sizes = teacher(VIEWS), Teacher._answer, []

    def small(self, views):
        sizes.append(len(views))
        if len(views) > 2:
            raise error
        return answer(self, views)

    monkeypatch.setattr(Teacher, "_answer", small)
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(teacher(VIEWS), expected)
    assert sizes == [5, 3, 2, 1, 2]
    assert "did not fit in memory; going on with 3" in caplog.text
    teacher(VIEWS)
    assert sizes[5:] == [2, 2, 1], "what was learnt is kept"


def test_what_was_learnt_of_memory_is_known_to_all_copies(monkeypatch):
    folds = [dataclasses.replace(member(seed), left_out=Fold(seed, 2, "0" * 64)) for seed in range(2)]
    teacher = Teacher(folds)
    hashes = np.arange(4, dtype=np.uint64)
    expected, answer, sizes = teacher.answer(VIEWS[:4], hashes), Teacher._answer, []

    def small(self, views):
        sizes.append(len(views))
        if len(views) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer(self, views)

    monkeypatch.setattr(Teacher, "_answer", small)
    torch.testing.assert_close(teacher.answer(VIEWS[:4], hashes), expected)
    assert sizes == [2, 1, 1, 1, 1], "the second fold knows what the first has learnt"
    sizes.clear()
    teacher.answer(VIEWS[:4], hashes)
    assert sizes == [1, 1, 1, 1], "and so does the next batch"


def test_one_view_that_does_not_fit_is_an_error(monkeypatch):
    def never(self, views):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Teacher, "_answer", never)
    with pytest.raises(torch.OutOfMemoryError):
        Teacher([member()])(VIEWS)


def test_another_error_is_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(self, views):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Teacher, "_answer", broken)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Teacher([member()])(VIEWS)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_close(precision):
    assert (Teacher([member()], precision=precision)(VIEWS) - Teacher([member()])(VIEWS)).abs().max() < 0.1


def test_members_that_do_not_belong_together():
    with pytest.raises(TeacherError, match="at least one member, got none"):
        Teacher([])
    with pytest.raises(TeacherError, match="must differ, but m0 and again have the same weights"):
        Teacher([member(0), member(0, id="again")])
    with pytest.raises(TeacherError, match="must have the same classes, got m0: 4, m1: 5"):
        Teacher([member(0), member(1, classes=5)])
    with pytest.raises(TeacherError, match="class 1 is 'dog' for m0 and 'cow' for m1"):
        Teacher([member(0, labels=("cat", "dog", "cow", "hen")), member(1, labels=("cat", "cow", "dog", "hen"))])
    with pytest.raises(TeacherError, match=r"`precision` must be one of fp32, bf16, fp16, got 'fp8'\. Choose"):
        Teacher([member()], precision="fp8")


def test_names_that_differ_in_writing_only_are_the_same_class():
    Teacher(
        [
            member(0, labels=("Great_White_Shark", "b", "c", "crab")),
            member(1, labels=("great white shark, x", "B", "c", "cra")),
        ]
    )


def test_a_subset_of_classes_by_index_and_by_name():
    labels = ("cat", "dog", "cow", "hen")
    whole = Teacher([member(0, labels=labels)])(VIEWS)
    for classes in ([3, 1], ["hen", "Dog"]):
        teacher = Teacher([member(0, labels=labels)], classes=classes)
        assert teacher.num_classes == 2
        torch.testing.assert_close(teacher(VIEWS), whole[:, [3, 1]].log_softmax(-1))
        teacher.check_classes(["hen", "dog"])
        assert teacher.provenance()["members"][0]["classes"] == [3, 1]


@pytest.mark.parametrize("classes", [[3, 1], ["hen", "dog"]])
def test_a_member_that_has_the_subset_already_is_left_as_it_is(classes):
    larger = member(0, labels=("cat", "dog", "cow", "hen"))
    assert Teacher([larger, member(1, classes=2)], classes=classes)._class_ids == [[3, 1], None]


def test_names_put_a_member_that_has_the_subset_in_their_order():
    larger = member(0, labels=("cat", "dog", "cow", "hen"))
    assert Teacher([larger, member(1, classes=2, labels=("dog", "hen"))], classes=["hen", "dog"])._class_ids == [
        [3, 1],
        [1, 0],
    ]


@pytest.mark.parametrize(
    "classes",
    [[0.9, 1.7], [1.0, 2.0], [False, True], [None, 1], np.array([0.0, 1.0]), np.array([False, True]), [[0], [1]]],
    ids=str,
)
def test_classes_that_are_neither_names_nor_whole_numbers(classes):
    with pytest.raises(
        ConfigError, match=r"`classes` must hold names or whole numbers, got .*\. Give each class its name"
    ):
        Teacher([member(0)], classes=classes)


@pytest.mark.parametrize(
    "classes",
    [{"cat", "dog"}, frozenset({0, 1}), {"cat": 0}, "cat", 3],
    ids=["set", "frozenset", "mapping", "text", "number"],
)
def test_classes_without_an_order_are_no_list(classes):
    with pytest.raises(ConfigError, match=r"`classes` must be a list of names or numbers, got .*\. Put it into a list"):
        Teacher([member(0, labels=("cat", "dog", "cow", "hen"))], classes=classes)


@pytest.mark.parametrize("classes", [(3, 1), np.array([3, 1], np.uint16), torch.tensor([3, 1]), [np.int64(3), 1]])
def test_whole_numbers_of_other_libraries_are_classes(classes):
    assert json.dumps(Teacher([member(0)], classes=classes)._class_ids) == "[[3, 1]]"


@pytest.mark.parametrize("temperature", [2, 1.5, np.float32(1.5), np.int64(2)])
def test_a_temperature_is_a_number_of_json(temperature):
    teacher = Teacher([member(0)], temperature=temperature)
    again = teacher.select([0], temperature=temperature)
    assert json.loads(json.dumps(teacher.provenance()))["temperature"] == temperature
    assert json.loads(json.dumps(again.provenance()))["temperature"] == temperature


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "at least one class, got an empty list. Leave it out for all classes"),
        ([4], "numbers from 0 to 3, the classes of m0, got 4. Correct it"),
        ([1, 1], "must not repeat a class, but class 1 of m0 stands there twice. Leave one out"),
        ([-1, 0, 1, 2], "numbers from 0 to 3, the classes of m0, got -1. Correct it"),
        ([0, 1, 2, 9], "numbers from 0 to 3, the classes of m0, got 9. Correct it"),
        ([0, 0, 1, 2], "must not repeat a class, but class 0 of m0"),
        (["horse"], "which has no 'horse'"),
    ],
)
def test_impossible_subsets(classes, message):
    with pytest.raises(TeacherError, match=message):
        Teacher([member(0, labels=("cat", "dog", "cow", "hen"))], classes=classes)


def test_names_of_which_the_teacher_knows_none_are_said(caplog):
    teacher = Teacher([member(0, labels=("cat", "dog", "cow", "hen"))])
    caplog.clear()
    teacher.check_classes(["cat", "hound", "cow", "hen"])
    assert not caplog.text
    teacher.check_classes(["Katze", "Hund", "Kuh", "Huhn"])
    assert "None of the dataset's class names is the teacher's" in caplog.text
    assert (
        "so 0 is 'Katze' here and 'cat' there. Where that is wrong, pass `classes` (--teacher_classes)." in caplog.text
    )


@pytest.mark.parametrize("revision", ["refs/pr/1", "feature/a/b"])
def test_a_revision_may_have_slashes(revision):
    with pytest.raises(TeacherError, match="could not load 'org/unheard-of' as an image classifier"):
        Teacher.from_pretrained(f"org/unheard-of@{revision}")
    with pytest.raises(TeacherError, match="is none of these"):
        Teacher.from_pretrained(f"a/b/c@{revision}")


def test_a_folder_has_no_revision(tmp_path):
    with pytest.raises(TeacherError, match=r"a revision must come with a Hub id, got '.*@v1', which is a folder"):
        Teacher.from_pretrained(f"{tmp_path}@v1")


def test_names_need_a_member_with_names():
    with pytest.raises(TeacherError, match="has names, but m0 knows none"):
        Teacher([member(0)], classes=["cat"])


def test_a_dataset_with_other_classes_is_refused():
    teacher = Teacher([member(0, labels=("cat", "dog", "cow", "hen"))])
    teacher.check_classes(["0", "1", "2", "3"])
    with pytest.raises(TeacherError, match="over the dataset's 3 classes, but it has 4"):
        teacher.check_classes(["a", "b", "c"])
    with pytest.raises(TeacherError, match="class 0 is 'dog' in the dataset and 'cat' for the teacher"):
        teacher.check_classes(["dog", "cat", "cow", "hen"])


@pytest.fixture(scope="module")
def timm_weights(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=7).eval()
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(model.state_dict(), path)
    return model, path


def test_a_timm_architecture_with_a_file(timm_weights):
    model, path = timm_weights
    teacher = Teacher.from_pretrained(f"timm:test_resnet@{path}")
    preprocessing = teacher.members[0].preprocessing
    assert preprocessing.size == (160, 160)
    with torch.no_grad():
        expected = model(preprocessing(VIEWS)).log_softmax(-1)
    torch.testing.assert_close(teacher(VIEWS), expected, rtol=1e-4, atol=1e-4)
    assert teacher.num_classes == 7
    assert str(path.parent) not in json.dumps(teacher.provenance()), "a path of this machine is nobody's business"


def test_a_transformers_folder_of_a_timm_model_is_the_same_teacher(timm_weights, tmp_path, caplog):
    model, path = timm_weights
    cfg = {"input_size": [3, 24, 24], "mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bicubic"}
    config = transformers.TimmWrapperConfig(architecture="test_resnet", num_labels=7, pretrained_cfg=cfg)
    wrapper = transformers.TimmWrapperForImageClassification(config)
    wrapper.timm_model.load_state_dict(model.state_dict())
    wrapper.save_pretrained(tmp_path / "student")
    with caplog.at_level(logging.WARNING):
        teacher = Teacher.from_pretrained(str(tmp_path / "student"))
    assert "licence of the teacher" in caplog.text
    assert teacher.members[0].preprocessing == Preprocessing((24, 24), (0.1,) * 3, (0.2,) * 3, "bicubic")
    assert teacher.members[0].id == "student"
    for given in (tmp_path / "student", [tmp_path / "student"]):
        assert Teacher.from_pretrained(given).members[0].weights_hash == teacher.members[0].weights_hash
    with pytest.raises(TeacherError, match="have the same weights"):
        Teacher.from_pretrained([f"timm:test_resnet@{path}", str(tmp_path / "student")])


def test_classes_of_imagenet_keep_their_own_names_next_to_those_of_imagenet(tmp_path):
    names = {c: f"own {c}" for c in range(1000)}
    cfg = {"input_size": [3, 24, 24], "mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bicubic"}
    config = transformers.TimmWrapperConfig(architecture="test_resnet", id2label=names, pretrained_cfg=cfg)
    transformers.TimmWrapperForImageClassification(config).save_pretrained(tmp_path)
    labels = load_member(str(tmp_path), card=False).labels
    assert [labels[c][0] for c in (0, 999)] == ["own 0", "own 999"]
    assert "n01440764" in labels[0]


def test_a_transformers_model_with_its_image_processor(tmp_path, monkeypatch):
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=16,
        patch_size=8,
        num_labels=3,
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match=r"must have a preprocessor_config\.json"):
        Teacher.from_pretrained(str(tmp_path))
    transformers.ViTImageProcessor(
        size={"height": 16, "width": 16}, image_mean=[0.3] * 3, image_std=[0.6] * 3
    ).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    teacher = Teacher.from_pretrained(str(tmp_path))
    assert teacher.members[0].preprocessing == Preprocessing((16, 16), (0.3,) * 3, (0.6,) * 3, "bilinear")
    assert teacher.members[0].license == "mit"
    (tmp_path / "README.md").write_text("---\nlicense: no\n---\n")  # which YAML reads as false
    monkeypatch.chdir(tmp_path)
    here = Teacher.from_pretrained(".").members[0]
    assert (here.id, here.license) == (tmp_path.name, None)
    assert teacher(VIEWS).shape == (5, 3)
    np.testing.assert_allclose(teacher(VIEWS).exp().sum(-1), 1, rtol=1e-5)


def test_names_that_lead_nowhere(tmp_path, timm_weights, monkeypatch):
    def refused(name, message):
        with pytest.raises(TeacherError, match=message):
            Teacher.from_pretrained(name)

    _, path = timm_weights
    refused("timm:resnet_five@x.safetensors", "timm has no architecture 'resnet_five'")
    refused("timm:resnet18", "needs an existing .safetensors file, got ''.*name the Hub id")
    refused(f"timm:resnet18@{tmp_path / 'no.safetensors'}", r"needs an existing .safetensors file")
    refused(f"timm:test_vit@{path}", "do not fit timm's test_vit")
    save_file({"head.weight": torch.tensor(1.0)}, tmp_path / "number.safetensors")
    refused(f"timm:test_vit@{tmp_path / 'number.safetensors'}", r"do not fit timm's test_vit: no classifier\. Check")
    (tmp_path / "broken.safetensors").write_bytes(b"not safetensors")
    refused(f"timm:test_vit@{tmp_path / 'broken.safetensors'}", "do not fit timm's test_vit")
    refused(str(tmp_path), "must hold a config.json, found none")
    refused("./nowhere", "is none of these")
    refused("org/unheard-of", "could not load 'org/unheard-of' as an image classifier")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    refused("runs/teachr", r"There is no folder `runs/teachr` here\. Did you mean `runs/teacher`\? Name a Hub id")
    refused(
        "./runs/teachr", r"is none of these\. There is no folder `\./runs/teachr` here\. Did you mean `runs/teacher`\?"
    )


def test_a_checkpoint_without_its_classifier_is_refused(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match=r"has no classifier\..*part of the model would be random"):
        Teacher.from_pretrained(str(tmp_path))


def test_weights_that_are_pickles_are_refused(tmp_path, timm_weights):
    model, _ = timm_weights
    transformers.TimmWrapperConfig(architecture="test_resnet", num_labels=7).save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(TeacherError, match="weights must be safetensors"):
        Teacher.from_pretrained(str(tmp_path))


def test_errors_are_value_errors():
    assert issubclass(TeacherError, ValueError)
    assert issubclass(ConfigError, ValueError)


# ------------------------------------------------------------------------------------------- classes that are not meant


@pytest.fixture
def member_of():
    """Builds a member whose classes have these names."""

    def make(labels):
        model = torch.nn.Linear(1, len(labels))
        pre = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, "bilinear")
        return Member(model, "named", None, "mit", len(labels), tuple(labels), pre, "hash")

    return make


def test_a_name_means_the_class_that_has_all_of_it(member_of):
    member = member_of([("Cardigan, Cardigan Welsh corgi", "n1"), ("koala",), ("cardigan", "n2")])
    assert Teacher([member], classes=["cardigan", "koala"])._class_ids == [[2, 1]]
    assert Teacher([member], classes=["n1", "koala"])._class_ids == [[0, 1]]


def test_a_name_of_several_classes_is_refused(member_of):
    member = member_of([("crane", "n02012849"), ("koala",), ("crane", "n03126707")])
    with pytest.raises(
        TeacherError, match=r"'crane' is several of named: 0 \(crane, n02012849\), 2 \(crane, n03126707\)\. Give"
    ):
        Teacher([member], classes=["crane"])
    assert Teacher([member], classes=["n03126707"])._class_ids == [[2]]


@pytest.mark.parametrize("names", [["airplane", "bird", "car", "cat"], ["plane", "bird", "car", "cat"]])
def test_a_known_name_at_another_place_is_refused(member_of, names):
    teacher = Teacher([member_of([("plane",), ("car",), ("bird",), ("cat",)])])
    with pytest.raises(TeacherError, match="class 1 is 'bird' in the dataset and 'car' for the teacher"):
        teacher.check_classes(names)
    teacher.check_classes(["airplane", "automobile", "bird", "cat"])  # other words for the same


def test_independent_classes_are_refused(tmp_path):
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8],
        depths=[1, 1],
        layer_type="basic",
        problem_type="multi_label_classification",
    )
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="must answer with one class for each image, but its config"):
        load_member(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"depths": [10**6, 1]},
            r"`depths` in the config.json of .* must have a size that can be built, found 1,000,000",
        ),
        ({"hidden_sizes": [8, 10**9]}, r"`hidden_sizes` in the config.json of .* found 1,000,000,000"),
        (
            {"attn_implementation": "org/kernel"},
            r"`attn_implementation` .* must be one of transformers' own, found 'org/kernel'",
        ),
        ({"id2label": {"0": "a", "5": "b"}}, r"must name all its 2 classes, found \['a', None\]. Fix its `id2label`"),
    ],
)
def test_a_configuration_of_somebody_else_cannot_ask_for_everything(tmp_path, changes, message):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(TeacherError, match=message):
        load_member(str(tmp_path))


@pytest.mark.parametrize(
    "file", ["pytorch_model-00001.bin", "../other.safetensors", "/etc/passwd", "a/b.safetensors", 7]
)
def test_weights_in_parts_are_safetensors_of_the_folder(tmp_path, file):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"classifier.1.weight": file}}))
    with pytest.raises(TeacherError, match=r"must all be safetensors files of its own, but its index names"):
        load_member(str(tmp_path))
    index.write_text("{}")
    with pytest.raises(
        TeacherError, match=r"index\.json of .* must tell the file of each weight, but: KeyError.* Save it"
    ):
        load_member(str(tmp_path))


def saved_vit(folder, *, side=24, **config):
    """A transformers folder of a tiny model, whose image processor makes 24x24 pixels."""
    names = {} if "num_labels" in config else {"id2label": dict(enumerate("abcd"))}
    tiny = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "patch_size": 8,
    }
    model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=side, **tiny, **names, **config))
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"problem_type": "regression"}, r"its answers are numbers, not classes \(problem_type regression\)"),
        ({"problem_type": "multi_label_classification"}, "its answers are independent of each other"),
        ({"num_labels": 1}, "must have at least 2 classes, found 1"),
        ({"num_channels": 1}, "must take RGB images of 24x24 pixels, as its preprocessing says, but: ValueError"),
        ({"side": 32}, r"must take RGB images of 24x24 pixels.* Input image size \(24\*24\)"),
    ],
    ids=str,
)
def test_what_does_not_answer_with_a_class_for_its_images_is_refused(config, message, tmp_path):
    with pytest.raises(TeacherError, match=message):
        load_member(saved_vit(tmp_path, **config), card=False)


def test_logits_are_found_in_what_a_model_returns(tmp_path):
    plain = Teacher.from_pretrained(saved_vit(tmp_path), device="cpu")
    expected = plain(VIEWS)
    model = plain.members[0].model
    pairs = nn.Module()
    pairs.forward = lambda pixels: (model(pixels).logits, "hidden")
    several = dataclasses.replace(plain.members[0], model=pairs)
    check_member(several)
    assert Teacher([several], device="cpu")(VIEWS).equal(expected)


def test_the_answer_of_a_model_has_its_classes():
    with pytest.raises(TeacherError, match=r"one number for each .*, shape \(1, 5\), but .* has the shape \(1, 4\)"):
        check_member(member(num_classes=5))


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="`device` must be one of this machine, got 'abacus'"):
        Teacher([member()], device="abacus")


def test_an_export_of_timm_is_a_teacher_of_unknown_licence(tmp_path):
    """Its `pretrained_cfg` names the licence of the checkpoint that it was fine-tuned from."""
    model = timm.create_model("test_resnet", num_classes=5)
    assert model.pretrained_cfg["license"] == "apache-2.0"
    timm.models.save_for_hf(model, tmp_path / "export", safe_serialization=True)
    (member,) = Teacher.from_pretrained(str(tmp_path / "export"), device="cpu").members
    assert member.num_classes == 5
    assert member.license is None
    (tmp_path / "export" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert Teacher.from_pretrained(str(tmp_path / "export"), device="cpu").members[0].license == "mit"


def test_classes_in_another_order_are_those_of_the_teacher(tmp_path):
    timm.models.save_for_hf(timm.create_model("test_resnet", num_classes=3), tmp_path, safe_serialization=True)
    views = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    plain, turned = (Teacher.from_pretrained(str(tmp_path), device="cpu", classes=c) for c in (None, [2, 0, 1]))
    torch.testing.assert_close(turned(views), plain(views)[:, [2, 0, 1]])

"""Evaluation: the numbers by hand, subsets of classes, presets on sets that mimic theirs, the table, and the command."""

import json
import re
from importlib.resources import files

import datasets
import numpy as np
import PIL.Image
import pytest
import timm
import torch
import transformers
from conftest import CLASSES, as_cell, colour_image
from safetensors.torch import save_file
from torch import nn

from hf_dr.cli.main import main
from hf_dr.errors import ConfigError, DataError, FormatError
from hf_dr.evaluation import images as evaluation_images
from hf_dr.evaluation import run as evaluation
from hf_dr.evaluation.config import EvaluateConfig, named_model
from hf_dr.evaluation.corruptions import CORRUPTIONS, corrupt, corruption_rng
from hf_dr.evaluation.images import open_set
from hf_dr.evaluation.run import ModelInput, _Pass, run_evaluation
from hf_dr.evaluation.sets import PRESETS, EvaluationSet, parse_set
from hf_dr.evaluation.unfinished import UNFINISHED_FILE, Unfinished
from hf_dr.teacher.calibration import MEASURED_TEMPERATURES, calibrated_ece, fit_temperature
from hf_dr.teacher.members import Member, load_member
from hf_dr.teacher.metrics import classification_metrics, reliability
from hf_dr.teacher.preprocessing import Preprocessing
from hf_dr.training.students import build_student
from hf_dr.views.images import decode_image

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
R_SYNSETS = (files("timm.data") / "_info" / "imagenet_r_synsets.txt").read_text().split()
A_SYNSETS = (files("timm.data") / "_info" / "imagenet_a_synsets.txt").read_text().split()
SYNSETS = (files("timm.data") / "_info" / "imagenet_synsets.txt").read_text().split()


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_dataset):
    """A folder with a student (transformers), a timm checkpoint, and the tiny dataset as Parquet."""
    folder = tmp_path_factory.mktemp("evaluation")
    torch.manual_seed(1)
    student = build_student("timm:test_resnet", CLASSES, 8, size=32, crop=1.0, normalization=(MEAN, STD))
    for weight in student.parameters():  # far from the fresh model's equal answers
        weight.data += 0.2 * torch.randn_like(weight)
    student.save_pretrained(folder / "student")
    save_file(timm.create_model("test_resnet", num_classes=8).state_dict(), folder / "t.safetensors")
    tiny_dataset.to_parquet(folder / "tiny.parquet")
    return folder


def student_logits(place, images):
    """What the student answers: shorter side to 32, centre, normalised; crop_pct is 1."""
    model = transformers.AutoModelForImageClassification.from_pretrained(place / "student").eval()
    views = []
    for image in images:
        scale = 32 / min(image.size)
        resized = image.resize([int(side * scale) for side in image.size], PIL.Image.Resampling.BILINEAR)
        left, top = (round((side - 32) / 2) for side in resized.size)
        views.append(np.asarray(resized.crop((left, top, left + 32, top + 32)), np.float32) / 255)
    pixels = (torch.tensor(np.stack(views)) - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.inference_mode():
        return model(pixels.permute(0, 3, 1, 2)).logits.numpy()


def test_the_numbers_by_hand(place, tiny_dataset):
    """Clean and corrupted, with any batch size."""
    images, labels = [decode_image(image) for image in tiny_dataset["image"]], np.array(tiny_dataset["label"])
    names, severities = ["gaussian_noise", "contrast"], [1, 5]
    settings = {"corrupt": ["test"], "corruptions": names, "severities": severities, "seed": 3, "output_dir": ""}
    config = EvaluateConfig(
        [str(place / "student")], [f"test={place / 'tiny.parquet'}:train"], batch_size=5, **settings
    )
    clean, corrupted = run_evaluation(config).results
    expected = student_logits(place, images)
    assert (clean.model, clean.set, clean.examples, clean.mce) == ("student", "test", 12, None)
    by_hand = classification_metrics(expected, labels) | {
        "calibrated_ece": calibrated_ece(expected, labels),
        "temperature": fit_temperature(expected, labels, MEASURED_TEMPERATURES),
        "ece_by_chance": reliability(expected, labels).ece_by_chance,
    }
    assert clean.metrics == pytest.approx(by_hand, rel=1e-4)
    np.testing.assert_array_equal(clean.diagram.counts, reliability(expected, labels).counts)

    errors, cells = {}, []
    for name in names:
        errors[name] = []
        for severity in severities:
            bad = [corrupt(x, name, severity, corruption_rng(3, n, name, severity)) for n, x in enumerate(images)]
            cells.append(classification_metrics(student_logits(place, bad), labels))
            errors[name].append(1 - cells[-1]["top1"])
            assert corrupted.by_corruption[name][severity] == pytest.approx(cells[-1], rel=1e-4)
    assert corrupted.mce == pytest.approx(np.mean([np.mean(e) for e in errors.values()]))
    assert corrupted.errors() == pytest.approx({name: np.mean(e) for name, e in errors.items()})
    assert corrupted.metrics["ece"] == pytest.approx(np.mean([c["ece"] for c in cells]), rel=1e-4)
    assert corrupted.metrics["nll"] == pytest.approx(np.mean([c["nll"] for c in cells]), rel=1e-4)


@pytest.mark.parametrize("stopped_at", [2, 3, 4])
def test_an_evaluation_that_was_stopped_goes_on(place, tmp_path, monkeypatch, stopped_at):
    """Pass 1 is of the clean images, the others are of a corruption each."""
    folder = tmp_path / "out"
    words = ["evaluate", str(place / "student"), "--sets", f"test={place / 'tiny.parquet'}:train", "--corrupt", "test",
             "--corruptions", "fog", "contrast", "--severities", "1", "5"]  # fmt: skip
    assert main([*words, "--output_dir", str(tmp_path / "whole")]) == 0
    passes = []
    logits = _Pass.logits

    def stop(self, classifiers):
        if len(passes) == stopped_at:
            raise KeyboardInterrupt
        passes.append(self._label)
        return logits(self, classifiers)

    monkeypatch.setattr(_Pass, "logits", stop)
    assert main([*words, "--output_dir", str(folder)]) == 130
    assert [path.name for path in folder.iterdir()] == [UNFINISHED_FILE]
    before, stopped_at = passes.copy(), -1
    passes.clear()
    assert main([*words, "--output_dir", str(folder)]) == 0
    everything = ["test", "test fog 1", "test fog 5", "test contrast 1", "test contrast 5"]
    assert [*before, *passes[1:]] == everything, "only the clean images are seen again"
    assert sorted(path.name for path in folder.iterdir()) == ["evaluation.json", "evaluation.md", "reliability.png"]
    one, two = (json.loads((out / "evaluation.json").read_text()) for out in (folder, tmp_path / "whole"))
    assert one["results"] == two["results"]


def test_what_was_measured_of_something_else_does_not_count(place, tmp_path):
    """Other images, another seed, another model: whatever decides the metrics."""
    corrupted = {"corrupt": ["test"], "corruptions": ["fog"], "severities": [1], "output_dir": ""}
    sets = [f"test={place / 'tiny.parquet'}:train"]
    student, other = str(place / "student"), f"timm:test_resnet@{place / 't.safetensors'}"
    for model, changes in ((student, {}), (student, {"seed": 1}), (student, {"max_examples": 5}), (other, {"size": 32}),
                           (student, {"crop": 0.5}), (student, {"batch_size": 3})):  # fmt: skip
        config = EvaluateConfig([model], sets, **corrupted | changes)
        run_evaluation(config, Unfinished(tmp_path))
        kept = json.loads((tmp_path / UNFINISHED_FILE).read_text())["metrics"]
        assert run_evaluation(config).results[1].by_corruption["fog"][1] == list(kept.values())[-1]
    assert len(kept) == 6
    (tmp_path / UNFINISHED_FILE).write_text('{"metrics": {"a": 1}}')
    with pytest.raises(FormatError, match=r"`metrics\.a` in .* Delete it: what it holds is measured again"):
        Unfinished(tmp_path)


def test_fewer_examples_are_spread_and_keep_their_corruption(place, tiny_dataset):
    settings = {"corrupt": ["test"], "corruptions": ["gaussian_noise"], "severities": [5], "output_dir": ""}
    sets = [f"test={place / 'tiny.parquet'}:train"]
    _, result = run_evaluation(EvaluateConfig([str(place / "student")], sets, max_examples=4, **settings)).results
    rows = [0, 3, 6, 9]
    bad = [
        corrupt(decode_image(tiny_dataset[n]["image"]), "gaussian_noise", 5, corruption_rng(0, n, "gaussian_noise", 5))
        for n in rows
    ]
    expected = classification_metrics(student_logits(place, bad), np.array(tiny_dataset["label"])[rows])
    assert result.examples == 4
    assert result.metrics == pytest.approx(expected, rel=1e-4)


def test_large_images_are_cropped_as_imagenet_c_was(place, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(evaluation, "corrupt", lambda image, *_: seen.append(image) or image)
    monkeypatch.setattr(
        evaluation.ModelInput, "__call__", lambda self, image, whole: torch.tensor([image.width, whole])
    )
    cells = [as_cell(colour_image(np.random.default_rng(0), 0, size)) for size in ((400, 300), (255, 400))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": cells, "label": [0, 1]}, features=features).to_parquet(tmp_path / "d.parquet")
    images = open_set(parse_set(f"d={tmp_path / 'd.parquet'}:train"), EvaluateConfig([], [], ""))
    model = evaluation._load_models(EvaluateConfig([str(place / "student")], ["imagenet"], ""), {})
    views = evaluation._Pass(images, model, EvaluateConfig(["m"], ["s"], ""), "d", corruption=("fog", 1))
    assert views[0][0].tolist() == [224, 1]
    assert views[1][0].tolist() == [255, 0]
    assert [image.size for image in seen] == [(224, 224), (255, 400)]


def test_model_inputs():
    image = PIL.Image.new("RGB", (60, 40))
    image.paste((255, 255, 255), (10, 0, 50, 40))  # the middle square is white
    assert ModelInput((20, 20), 1.0, "nearest")(image).min() == 255
    assert ModelInput((20, 20), None, "nearest")(image).min() == 0  # squashed: the whole image
    wide = PIL.Image.new("RGB", (40, 40))
    wide.paste((255, 255, 255), (5, 5, 35, 35))
    assert ModelInput((30, 30), 0.75, "nearest")(wide).min() == 255
    assert ModelInput((30, 30), 0.75, "nearest")(wide, whole=True).min() == 0
    assert ModelInput((20, 30), 1.0, "nearest")(image).shape == (3, 20, 30)


class Oracle(nn.Module):
    """Reads the class out of the colour: red + 256 green."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.num_classes = num_classes

    def forward(self, pixels):
        levels = (pixels[:, :, 4, 4] * 255).round().long()
        return self.scale * 20 * nn.functional.one_hot(levels[:, 0] + 256 * levels[:, 1], self.num_classes).float()


@pytest.fixture
def oracle(monkeypatch):
    """Makes the models named `oracle-C` known, with C classes."""

    def load(name, **_):
        classes = int(name.split("-")[1])
        preprocessing = Preprocessing((8, 8), (0.0,) * 3, (1.0,) * 3, "bilinear")
        return Member(Oracle(classes), name, None, None, classes, None, preprocessing, name, crop=1.0)

    monkeypatch.setattr(evaluation, "load_member", load)


def coloured(classes):
    """Plain images that tell their class."""
    return [as_cell(PIL.Image.new("RGB", (10, 9), (c % 256, c // 256, 0))) for c in classes]


def dataset_of(image, classes, label, labels, kind):
    features = datasets.Features({"id": datasets.Value("string"), image: datasets.Image(), label: kind})
    columns = {"id": [str(n) for n in range(len(labels))], image: coloured(classes), label: labels}
    return datasets.Dataset.from_dict(columns, features=features)


INT, STRING = datasets.Value("int64"), datasets.Value("string")
IN_A, IN_R = [SYNSETS.index(s) for s in A_SYNSETS], [SYNSETS.index(s) for s in R_SYNSETS]
# What each preset's set looks like: columns, the kind of label, and the classes of ImageNet that its labels mean.
MIMICS = {
    "imagenet": (
        "image",
        "label",
        datasets.ClassLabel(names=[f"name {c}" for c in range(1000)]),
        range(0, 1000, 97),
        None,
    ),
    "imagenet-v2": ("webp", "cls", INT, range(0, 1000, 97), None),
    "imagenet-sketch": ("jpg", "cls", INT, range(0, 1000, 97), None),
    "imagenet-r": ("image", "wnid", STRING, IN_R[::19], R_SYNSETS[::19]),
    "imagenet-a": ("image", "label", datasets.ClassLabel(names=A_SYNSETS), IN_A[::19], A_SYNSETS[::19]),
    "imagenet-a as numbers of the 200": ("image", "label", INT, IN_A[::-19], list(range(200))[::-19]),
    "imagenet-a as numbers of the 1000": ("image", "label", INT, IN_A[::-19], IN_A[::-19]),
    "imagenet-r in ImageNet's classes": ("image", "wnid", datasets.ClassLabel(names=SYNSETS), IN_R[::19], IN_R[::19]),
}


@pytest.mark.parametrize("mimic", MIMICS)
def test_presets(mimic, oracle, monkeypatch, caplog):
    """The preset's id, split and columns; and an oracle over ImageNet's classes is right on all of it."""
    image, label, kind, classes, labels = MIMICS[mimic]
    loaded = []

    def load_base(name, config, *, split, revision, files_from):
        loaded.append((name, config, split, revision))
        return dataset_of(image, classes, label, labels if labels is not None else list(classes), kind), {}

    monkeypatch.setattr(evaluation_images, "load_base", load_base)
    name = mimic.split(" ")[0]
    report = run_evaluation(EvaluateConfig(["oracle-1000"], [name], ""))
    assert [r.metrics["top1"] for r in report.results] == [1.0]
    assert loaded == [(PRESETS[name].dataset, PRESETS[name].config, PRESETS[name].split, None)]
    caveat = (
        "imagenet-v2 (clip-benchmark/wds_imagenetv2): its images were encoded again, as WebP; whether without a loss"
    )
    assert (caveat in caplog.text) == (name == "imagenet-v2")
    # The mass is shared by the set's classes only.
    others = 199 if "-r" in name or "-a" in name else 999
    assert report.results[0].metrics["nll"] == pytest.approx(np.log(1 + others * np.exp(-20)), rel=0.01)


def test_a_model_of_the_subset_itself(oracle, monkeypatch):
    dataset = dataset_of("image", range(0, 200, 19), "wnid", R_SYNSETS[::19], STRING)
    monkeypatch.setattr(evaluation_images, "load_base", lambda *_, **__: (dataset, {}))
    assert run_evaluation(EvaluateConfig(["oracle-200"], ["imagenet-r"], "")).results[0].metrics["top1"] == 1.0
    message = "`oracle-300` must have the 1000 classes of ImageNet or the 200 of imagenet-r for `imagenet-r`, found 300"
    with pytest.raises(ConfigError, match=message):
        run_evaluation(EvaluateConfig(["oracle-300"], ["imagenet-r"], ""))


def test_imagenet_c_reads_published_corruptions(oracle, monkeypatch, tmp_path):
    """A configuration for each corruption, a split for each severity; here every second image is damaged at severity 5."""
    loaded = []

    def load_base(name, config, *, split, revision, files_from):
        loaded.append((name, config, split))
        assert revision == "bb0fa9db6d8f94ef279a1f6bbb8024736d542fd7"
        right = list(range(0, 1000, 97))
        shown = [c + (n % 2 if split == "severity_5" else 0) for n, c in enumerate(right)]
        return dataset_of("image", shown, "label", right, INT), {}

    monkeypatch.setattr(evaluation_images, "load_base", load_base)
    config = EvaluateConfig(["oracle-1000"], ["imagenet-c"], "", corruptions=["fog", "snow"], severities=[1, 5])
    report = run_evaluation(config)
    (result,) = report.results
    assert set(loaded) == {("WNJXYK/TTA-ImageNet-C", c, f"severity_{s}") for c in ("fog", "snow") for s in (1, 5)}
    assert result.errors() == pytest.approx({"fog": 5 / 22, "snow": 5 / 22})
    assert result.mce == pytest.approx(5 / 22)
    report.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json", "evaluation.md"]


def test_the_published_folders_of_imagenet_c(oracle, tmp_path):
    """corruption/severity/wnid/*.JPEG, as the archives unpack."""
    for severity in (2, 3):
        for c in (5, 7):
            folder = tmp_path / "fog" / str(severity) / SYNSETS[c]
            folder.mkdir(parents=True)
            PIL.Image.new("RGB", (224, 224), (c, 0, 0)).save(folder / "x.png")
    spec = f"imagenet-c={tmp_path}/{{corruption}}/{{severity}}:train"
    config = EvaluateConfig(["oracle-1000"], [spec], "", corruptions=["fog"], severities=[2, 3])
    assert run_evaluation(config).results[0].mce == 0


def test_classes_in_another_order_go_by_name(place, tiny_dataset, tmp_path):
    """The same images under permuted class numbers give the same accuracy, of a subset too."""
    torch.manual_seed(5)
    order = np.random.default_rng(0).permutation(8)
    kind = datasets.ClassLabel(names=[CLASSES[c] for c in order])
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    undecoded = tiny_dataset.cast_column("image", datasets.Image(decode=False))
    labels = [int(np.argsort(order)[label]) for label in tiny_dataset["label"]]
    permuted = datasets.Dataset.from_dict({"image": undecoded["image"], "label": labels}, features=features)
    permuted.to_parquet(tmp_path / "p.parquet")
    sets = [f"tiny={place / 'tiny.parquet'}:train", f"permuted={tmp_path / 'p.parquet'}:train"]
    one, two = run_evaluation(EvaluateConfig([str(place / "student")], sets, "")).results
    assert one.metrics["nll"] == pytest.approx(two.metrics["nll"], rel=1e-5)


def test_classes_that_a_set_does_not_name_are_told(place, tiny_dataset, tmp_path, caplog):
    few = tiny_dataset.filter(lambda label: label < 5, input_columns="label")
    few = few.cast_column("label", datasets.ClassLabel(names=CLASSES[:5]))
    few.to_parquet(tmp_path / "few.parquet")
    sets = [f"tiny={place / 'tiny.parquet'}:train"]
    run_evaluation(EvaluateConfig([str(place / "student")], sets, ""))
    assert "left out of its answers" not in caplog.text
    run_evaluation(EvaluateConfig([str(place / "student")], [f"few={tmp_path / 'few.parquet'}:train"], ""))
    assert "`few` names 5 of the 8 classes of `student`: the others are left out of its answers" in caplog.text


def test_names_that_a_model_does_not_know_are_told(place, tiny_dataset, tmp_path, caplog):
    tiny_dataset.cast_column("label", datasets.ClassLabel(names=list("abcdefgh"))).to_parquet(
        tmp_path / "other.parquet"
    )
    run_evaluation(EvaluateConfig([str(place / "student")], [f"other={tmp_path / 'other.parquet'}:train"], ""))
    assert (
        f"so 0 is 'a' here and {CLASSES[0]!r} there. Where that is wrong, name the set's classes as the model"
        in caplog.text
    )


def test_classes_of_imagenet_in_words_must_stand_in_its_order():
    info = timm.data.ImageNetInfo()
    words = [str(info.label_name_to_description(synset)) for synset in R_SYNSETS]
    words[3] = words[4]  # a list of names may differ in some
    spec = PRESETS["imagenet-r"]
    assert evaluation_images._imagenet_numbers(np.arange(3), words, spec).tolist() == [0, 1, 2]
    with pytest.raises(
        DataError, match=r"must be in the order of imagenet-r, but class \d+ is '.*' there, and '.*' in image"
    ):
        evaluation_images._imagenet_numbers(np.arange(3), sorted(words), spec)


def test_several_parts_of_a_set():
    found = parse_set("t=a/b:train[:10%]+test")
    assert (found.dataset, found.split) == ("a/b", "train[:10%]+test")


def test_models_are_named_alike_everywhere(tmp_path, monkeypatch):
    (tmp_path / "lr=1").mkdir()
    monkeypatch.chdir(tmp_path / "lr=1")
    assert named_model("name=place=1") == ("name", "place=1")
    assert named_model(str(tmp_path / "lr=1")) == ("lr=1", str(tmp_path / "lr=1"))
    assert named_model(".") == ("lr=1", ".")
    (tmp_path / "link").symlink_to(tmp_path / "lr=1")
    assert named_model(str(tmp_path / "link"))[0] == "link"
    assert named_model("~nobody/x")[0] == "x"


def test_parse_set():
    assert parse_set("imagenet") == PRESETS["imagenet"]
    assert parse_set("imagenet-c=photos-{corruption}").revision is None, "the preset's is that of its own dataset"
    assert parse_set("test=a/b") == EvaluationSet("test", "a/b")
    assert parse_set("t=a/b:train[:10],label=fine,image=img,config=c") == EvaluationSet(
        "t", "a/b", "train[:10]", "c", "img", "fine"
    )
    assert parse_set("t=photos, 2024/x:test,label=l") == EvaluationSet("t", "photos, 2024/x", "test", label="l")
    assert parse_set("t=photos:test, label=l, image=i") == EvaluationSet("t", "photos", "test", label="l", image="i")
    assert parse_set("t=12:30 photos/x:test") == EvaluationSet("t", "12:30 photos/x", "test")
    assert parse_set("t=12:30 photos") == EvaluationSet("t", "12:30 photos")
    assert parse_set("imagenet,revision=abc").revision == "abc"
    assert parse_set("imagenet-v2").note
    assert parse_set("imagenet-v2=/data/v2").note is None, "another copy"
    moved = parse_set("imagenet-r=/data/r:train,label=cls")
    assert (moved.dataset, moved.split, moved.label, moved.classes) == ("/data/r", "train", "cls", "imagenet-r")
    assert parse_set("imagenet-c").part("fog", 3).split == "severity_3"
    assert parse_set("imagenet-c").part("fog", 3).config == "fog"


def test_overridden_and_missing_preprocessing(place, tmp_path):
    """Flags win over the model's own; a transformers model without an image processor needs --size."""
    config = EvaluateConfig(
        [str(place / "student")], ["imagenet"], "", size=48, crop=0.5, mean=[0.1] * 3, std=[0.9] * 3
    )
    (model,) = evaluation._load_models(config, {})
    assert model.input == ModelInput((48, 48), 0.5, "bilinear")
    assert model.member.preprocessing == Preprocessing((48, 48), (0.1,) * 3, (0.9,) * 3, "bilinear")
    vit = transformers.ViTConfig(
        image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.ViTForImageClassification(vit).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must have a preprocessor_config\.json"):
        evaluation._load_models(EvaluateConfig([str(tmp_path)], ["imagenet"], ""), {})
    (model,) = evaluation._load_models(EvaluateConfig([f"vit={tmp_path}"], ["imagenet"], "", size=16), {})
    assert (model.name, model.input) == ("vit", ModelInput((16, 16), 1.0, "bilinear"))
    processor = {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}, "resample": 3}
    transformers.CLIPImageProcessor(**processor).save_pretrained(tmp_path)
    (model,) = evaluation._load_models(EvaluateConfig([str(tmp_path)], ["imagenet"], ""), {})
    assert model.input == ModelInput((16, 16), 0.8, "bicubic")
    assert load_member(str(place / "student"), card=False).crop == 1.0


def test_the_command(place, tmp_path, capsys):
    models = [f"plus={place / 'student'}", f"timm:test_resnet@{place / 't.safetensors'}"]
    argv = [
        "--models",
        *models,
        "--sets",
        f"test={place / 'tiny.parquet'}:train",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    argv += ["--corrupt", "test", "--corruptions", "fog", "pixelate", "--severities", "1", "5", "--max_examples", "5"]
    assert main(["evaluate", *argv]) == 0
    text = (tmp_path / "out" / "evaluation.md").read_text()
    assert text in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [(r["model"], r["corrupted"]) for r in content["results"]] == [
        ("plus", False), ("t.safetensors", False), ("plus", True), ("t.safetensors", True),
    ]  # fmt: skip
    assert content["models"]["plus"]["evaluation"]["size"] == [32, 32]
    assert content["results"][2]["by_corruption"]["fog"]["5"].keys() == {"top1", "top5", "nll", "brier", "ece"}
    assert content["settings"]["severities"] == [1, 5]
    head, row = text.splitlines()[0], text.splitlines()[4]
    assert head == "| model | set | examples | top-1 % | top-5 % | NLL | Brier | ECE % | calibrated ECE % | mCE % |"
    found = content["results"][2]
    assert row == (
        f"| plus | test, corrupted | 5 | {100 * found['top1']:.2f} | {100 * found['top5']:.2f} | {found['nll']:.4f} "
        f"| {found['brier']:.4f} | {100 * found['ece']:.2f} |  | {100 * found['mce']:.2f} |"
    )
    clean = content["results"][0]
    assert f"| {100 * clean['ece']:.2f} | {100 * clean['calibrated_ece']:.2f} |  |" in text
    assert "Calibrated ECE is what is left" in text
    same = [row for row in content["results"] if row["set"] == clean["set"] and not row["corrupted"]]
    least, greatest = (100 * bound(row["ece_by_chance"] for row in same) for bound in (min, max))
    assert least < greatest
    assert f"would show an ECE of about {least:.1f} to {greatest:.1f} % on {clean['set']}, by chance." in text
    assert f"| pixelate | {100 * found['errors']['pixelate']:.2f} |" in text
    assert "not normalised" in text
    with PIL.Image.open(tmp_path / "out" / "reliability.png") as picture:
        assert picture.width > picture.height  # two models on one set lie side by side


def test_of_a_single_image_there_is_no_calibrated_error(place):
    report = run_evaluation(
        EvaluateConfig([str(place / "student")], [f"t={place / 'tiny.parquet'}:train"], "", max_examples=1)
    )
    assert "calibrated_ece" not in report.results[0].metrics
    assert "Calibrated ECE" not in report.to_markdown()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--sets", "imagenet-q"],
            "a set must be NAME=DATASET[:SPLIT][,OPTION=VALUE] or a preset, got 'imagenet-q'. Did you",
        ),
        (["--sets", "a b=x"], "must have a name of letters"),
        (["--sets", "x=d,label=y,label=z"], "set `x` must have the option `label` once, got 'x=d,label=y,label=z'"),
        (["--sets", "x=d,image="], "the option `image` of set `x` must have a value, got none. Write image=VALUE, or"),
        (["--sets", "x=d,lable=y"], "set `x` has the unknown option 'lable=y'. Did you mean `label`?"),
        (["--sets", "x=d,classes=imagenet-x"], "`classes` of set `x` must be one of"),
        (["--sets", "{tiny}", "{tiny}"], "each set must have its own name, but `tiny` stands there twice"),
        (["--models", "{student}", "{student}"], "each model must have its own name, but `student` stands"),
        (["--models", "./nothing"], "'./nothing' is none of these"),
        (["--corrupt", "tinny"], "`corrupt` must name sets with clean images, got `tinny`. Did you mean `tiny`?"),
        (["--corruptions", "fogg"], "no corruption is called `fogg`. Did you mean `fog`?"),
        (["--severities", "6"], "`severities` must be at most 5, got 6. Lower `severities`"),
        (["--severities", "3"], "need a set to corrupt, got none"),
        (["--batch_size", "0"], "`batch_size` must be a whole number of at least 1, got 0"),
        (["--crop", "1.5"], "`crop` must be above 0 and at most 1, got 1.5"),
        (["--mean", "0.5"], "`mean` must be three numbers, got 1. Give one for each channel"),
        (["--mean", "124", "116", "104"], "`mean` must be between 0 and 1, got 124.0"),  # as for pixels up to 255
        (["--std", "0.2", "0", "0.2"], "`std` must be above 0 and at most 1, got 0.0"),
        (["--sets", "{tiny},label=lable"], "set `tiny` must have the label column `lable`. Did you mean `label`?"),
        (["--sets", "{tiny},image=img"], "set `tiny` must have the image column `img`"),
        (["--sets", "{tiny},label=image"], "must hold class numbers, found object"),
        (["--sets", "{tiny}x"], "could not load split `trainx`"),
        (["--sets", "{tiny},classes=imagenet-a"], "must have the 200 classes of imagenet-a, found 8"),
        (["--sets", "{few}"], "`student` must answer over the classes of `few` (9 names), found 8 classes"),
        (["--sets", "{high}"], "`student` must answer over the classes of `high` (labels up to 8), found 8 classes"),
        (
            ["--sets", "{unlabelled}"],
            "must be from 0 upwards in every row, found -1, which is no label, in row 0 (1 such rows). Take a split",
        ),
        (["--sets", "{unlabelled},label=a"], "must have the label column `a`"),
        (
            ["--sets", "{strange}"],
            "labels of set `strange` must be the 200 classes of imagenet-r, by number or WordNet id",
        ),
        (["--sets", "{tiny},image=label"], "column `label` of set `tiny` must hold images, found ClassLabel("),
        (["--sets", "{nothing}"], "classes of imagenet-r, by number or WordNet id, found None. Check `label`"),
        (
            ["--sets", "{two}"],
            "set `two` must have one image column, found a, b among a, b, label. Name it: ,image=COLUMN",
        ),
        (
            ["--sets", "{alone}"],
            "set `alone` must have at least 2 classes, found only ['cat']: every answer would be right",
        ),
        (["--sets", "{broken}"], "the image of row 0 of `broken` must be readable"),
    ],
)
def test_wrong_calls_end_with_one_clear_line_and_status_2(place, tmp_path, capsys, arguments, message):
    def save(name, columns, **kinds):
        features = datasets.Features({**dict.fromkeys(columns, datasets.Image()), **kinds})
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / f"{name}.parquet")
        return f"{name}={tmp_path / f'{name}.parquet'}:train"

    (cell,) = coloured([0])
    nine = datasets.ClassLabel(names=[str(c) for c in range(9)])
    words = {
        "tiny": f"tiny={place / 'tiny.parquet'}:train",
        "student": str(place / "student"),
        "few": save("few", {"image": [cell], "label": [0]}, label=nine),
        "high": save("high", {"image": [cell], "label": [8]}, label=INT),
        "unlabelled": save("unlabelled", {"image": [cell], "label": [-1]}, label=INT),
        "strange": save("strange", {"image": [cell], "label": ["n00000000"]}, label=STRING) + ",classes=imagenet-r",
        "nothing": save("nothing", {"image": [cell], "label": [None]}, label=STRING) + ",classes=imagenet-r",
        "two": save("two", {"a": [cell], "b": [cell], "label": [0]}, label=INT),
        "alone": save("alone", {"image": [cell], "label": [0]}, label=datasets.ClassLabel(names=["cat"])),
        "broken": save("broken", {"image": [{"bytes": b"no image", "path": None}], "label": [0]}, label=INT),
    }
    given = {"--models": [str(place / "student")], "--sets": [words["tiny"]], "--output_dir": [str(tmp_path / "o")]}
    given[arguments[0]] = [re.sub(r"\{(\w+)\}", lambda m: words[m[1]], word) for word in arguments[1:]]
    assert main(["evaluate", *(word for flag, values in given.items() for word in (flag, *values))]) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert "Traceback" not in captured
    assert not (tmp_path / "o").exists()


def test_the_help_names_sets_and_corruptions(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name in (*PRESETS, *CORRUPTIONS):
        assert name in shown


def test_an_empty_set(monkeypatch):
    empty = dataset_of("image", [], "label", [], INT)
    monkeypatch.setattr(evaluation_images, "load_base", lambda *_, **__: (empty, {}))
    with pytest.raises(DataError, match=r"set `x` must have examples, found none\. Take another split"):
        run_evaluation(EvaluateConfig(["m"], ["x=y"], ""))


def test_answers_that_are_no_numbers_are_an_error(place, tmp_path, capsys):
    model = transformers.AutoModelForImageClassification.from_pretrained(place / "student")
    next(model.parameters()).data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "diverged")
    for file in (place / "student").glob("preprocessor_config.json"):
        (tmp_path / "diverged" / file.name).write_bytes(file.read_bytes())
    arguments = ["--models", str(tmp_path / "diverged"), "--sets", f"tiny={place / 'tiny.parquet'}:train"]
    assert main(["evaluate", *arguments, "--output_dir", str(tmp_path / "o")]) == 2
    assert "error: the answers of diverged to `tiny` must be finite, found NaN" in capsys.readouterr().err

"""`hf_dr.evaluate`: the numbers and files of the command, from Python."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from conftest import CLASSES
from transformers import AutoModelForImageClassification

import hf_dr
from hf_dr import ConfigError, DataError, Teacher, build_student
from hf_dr.cli.main import main
from hf_dr.evaluation.config import EvaluateConfig
from hf_dr.evaluation.evaluate import _sets
from hf_dr.evaluation.report import Report
from hf_dr.evaluation.sets import PRESETS
from hf_dr.evaluation.unfinished import UNFINISHED_FILE

SUITE = {"corruptions": ["contrast"], "severities": [2, 4], "max_examples": 6}


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "student"
    torch.manual_seed(1)
    model = build_student("timm:test_resnet", CLASSES, 8, size=32)
    for weight in model.parameters():  # far from the fresh model's equal answers
        weight.data += 0.2 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return folder


def test_a_loaded_dataset_gives_what_the_command_gives_of_its_file(student, tiny_dataset, tmp_path, capsys):
    tiny_dataset.to_parquet(tmp_path / "tiny.parquet")
    words = [
        "--sets",
        f"test={tmp_path / 'tiny.parquet'}:train",
        "--corrupt",
        "test",
        "--output_dir",
        str(tmp_path / "command"),
    ]
    words += ["--corruptions", "contrast", "--severities", "2", "4", "--max_examples", "6"]
    assert main(["evaluate", f"a={student}", f"b={student}", *words]) == 0
    shown = capsys.readouterr().out
    report = hf_dr.evaluate(
        {"a": student, "b": str(student)}, tiny_dataset, corrupt=["test"], output_dir=tmp_path / "python", **SUITE
    )
    assert f"{report}\n" == shown
    assert "mCE" not in hf_dr.evaluate(student, tiny_dataset, max_examples=6).to_markdown(), (
        "a column that is empty in all rows"
    )
    assert report._repr_markdown_() == str(report) == (tmp_path / "python" / "evaluation.md").read_text()
    command, python = (json.loads((tmp_path / by / "evaluation.json").read_text()) for by in ("command", "python"))
    assert command["results"] == python["results"]
    assert command["models"] == python["models"]
    assert python["sets"]["test"]["dataset"] == "a loaded dataset"
    assert sorted(path.name for path in (tmp_path / "python").iterdir()) == [
        "evaluation.json", "evaluation.md", "reliability.png",
    ]  # fmt: skip


def test_results_that_are_not_measured_again_are_not_lost(student, tiny_dataset, tmp_path):
    folder, other = tmp_path / "evaluation", tmp_path / "other" / "student"
    other.parent.mkdir()
    other.symlink_to(student)

    def evaluate(models, sets=tiny_dataset, **settings):
        hf_dr.evaluate(models, sets, output_dir=folder, **SUITE, **settings)

    labels = tiny_dataset["label"]
    relabelled = tiny_dataset.remove_columns("label").add_column(
        "label", labels[::-1], feature=tiny_dataset.features["label"]
    )
    evaluate(student, corrupt=["test"])
    evaluate({"student": student, "more": other}, {"test": tiny_dataset, "again": tiny_dataset}, corrupt=["test"])
    both = (folder / "evaluation.json").read_text()
    lost = "`output_dir` must not hold other results, which would be lost, but .*evaluation.json has those of "
    advice = "Choose another folder, or remove the file"
    for models, sets, settings, what in (
        ({"student": student}, {"test": tiny_dataset, "again": tiny_dataset}, {}, rf"`more` \({other}\) on `test`"),
        ({"student": student, "more": student}, {"test": tiny_dataset, "again": tiny_dataset}, {}, "`more` "),
        ({"student": student, "more": other}, tiny_dataset, {}, "`student` .* on `again`"),
        (
            {"student": student, "more": other},
            {"test": tiny_dataset, "again": tiny_dataset.select(range(8))},
            {},
            r"`student` .* on `again` \(a loaded dataset\)",
        ),
        (
            {"student": student, "more": other},
            {"test": tiny_dataset, "again": relabelled},
            {},
            r"`student` .* on `again` \(a loaded dataset\)",
        ),
        (
            {"student": student, "more": other},
            {"test": "x.parquet:train", "again": tiny_dataset},
            {},
            "`student` .* on `test`",
        ),
        (
            {"student": student, "more": other},
            {"test": tiny_dataset, "again": tiny_dataset},
            {"corrupt": ["again"]},
            r"`student` .* on `test` \(a loaded dataset\), corrupted",
        ),
    ):
        with pytest.raises(ConfigError, match=f"{lost}{what}.*{advice}"):
            evaluate(models, sets, **({"corrupt": ["test"]} | settings))
    assert (folder / "evaluation.json").read_text() == both
    (folder / "evaluation.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"must not hold a file of that name, but .*KeyError.*{advice}"):
        evaluate(student, corrupt=["test"])


@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        ({"max_examples": 5}, ", with max_examples 6"),
        ({"crop": 0.5}, ", with crop None"),
        ({"seed": 1}, ", with seed 0"),
        ({"corruptions": ["fog"]}, ", under contrast at severity 2"),
        ({"severities": [1, 2]}, ", under contrast at severity 4"),
        ({"max_examples": 7, "severities": [2, 3, 4]}, None),
        ({"max_examples": None, "corruptions": ["fog", "contrast"]}, None),
    ],
    ids=str,
)
def test_a_smaller_evaluation_does_not_replace_a_larger_one(student, tiny_dataset, tmp_path, changed, lost):
    settings = {"corrupt": ["test"], "output_dir": tmp_path / "evaluation", **SUITE}
    hf_dr.evaluate(student, tiny_dataset, **settings)
    before = (tmp_path / "evaluation" / "evaluation.json").read_text()
    if lost is None:
        hf_dr.evaluate(student, tiny_dataset, **{**settings, **changed})
        return
    with pytest.raises(ConfigError, match=f"has those of `student` .* on `test` .*{lost}. Choose another folder"):
        hf_dr.evaluate(student, tiny_dataset, **{**settings, **changed})
    assert (tmp_path / "evaluation" / "evaluation.json").read_text() == before


def test_what_another_evaluation_had_measured_when_it_was_stopped_is_kept(student, tiny_dataset, tmp_path, monkeypatch):
    settings = {"corrupt": ["test"], "output_dir": tmp_path, **SUITE}
    with monkeypatch.context() as patch:
        patch.setattr(Report, "save", lambda *args: stop())
        with pytest.raises(KeyboardInterrupt):
            hf_dr.evaluate(student, tiny_dataset, **settings)
    stopped = json.loads((tmp_path / UNFINISHED_FILE).read_text())
    assert len(stopped["metrics"]) == 2
    hf_dr.evaluate(student, tiny_dataset, output_dir=tmp_path, max_examples=6)
    assert json.loads((tmp_path / UNFINISHED_FILE).read_text()) == stopped
    hf_dr.evaluate(student, tiny_dataset, **settings)
    assert not (tmp_path / UNFINISHED_FILE).exists()


def stop() -> None:
    raise KeyboardInterrupt


def test_a_transform_would_not_be_applied(student, tiny_dataset):
    transformed = tiny_dataset.with_transform(lambda rows: {"image": [1]})
    with pytest.raises(DataError, match="the dataset must be without a transform, which would not be applied"):
        hf_dr.evaluate(student, transformed)


def test_a_preset_may_have_another_name():
    (spec,) = _sets({"renditions": "imagenet-r"}, EvaluateConfig([], [], ""), None, None)
    assert spec == replace(PRESETS["imagenet-r"], name="renditions")


def test_a_path_has_no_name_before_an_equals_sign(student, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lr=0.1").symlink_to(student)
    report = hf_dr.evaluate([Path("lr=0.1"), "short=lr=0.1"], tiny_dataset, max_examples=2)
    assert [result.model for result in report.results] == ["lr=0.1", "short"]


def test_a_model_in_memory_gives_what_its_folder_does(student, tiny_dataset, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(student).train()
    teacher = Teacher.from_model(model, "memory", channels_last=False)
    images = {"corrupt": ["test"], "output_dir": tmp_path, **SUITE}
    report = hf_dr.evaluate({"folder": student, "named": teacher}, tiny_dataset, **images)
    by_model = {(r.model, bool(r.by_corruption)): r.metrics for r in report.results}
    assert by_model["folder", False] == by_model["named", False]
    assert by_model["folder", True] == by_model["named", True]
    assert report.models["named"]["evaluation"] == report.models["folder"]["evaluation"], "the same resize and crop"
    assert report.models["named"]["weights_hash"] == report.models["folder"]["weights_hash"]
    assert model.training
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1)
    trained = {"folder": student, "named": Teacher.from_model(model, "memory")}
    again = hf_dr.evaluate(trained, tiny_dataset, **images)  # the same names: the table is written again
    assert again.results[1].metrics != report.results[1].metrics
    assert [r.model for r in hf_dr.evaluate([student, teacher], tiny_dataset, max_examples=2).results] == [
        "student",
        "memory",
    ]


def test_an_ensemble_is_no_single_model(student, tiny_dataset):
    one = Teacher.from_pretrained(str(student))
    other = copy.deepcopy(one.members[0].model)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    both = Teacher([*one.members, *Teacher.from_model(other, "other").members])
    for teacher in (both, Teacher(one.members, temperature=2.0), Teacher(one.members, classes=CLASSES[::-1])):
        with pytest.raises(ConfigError, match=r"`models` must be single classifiers as they are, got Teacher\(student"):
            hf_dr.evaluate(teacher, tiny_dataset)


def test_names_alone_write_nothing(student, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    renamed = tiny_dataset.rename_column("label", "kind")
    renamed.to_parquet("tiny.parquet")
    of_texts = hf_dr.evaluate(student, {"test": "tiny.parquet:train,label=kind"})
    assert (
        of_texts.results[0].metrics
        == hf_dr.evaluate([student], "test=tiny.parquet:train,label=kind").results[0].metrics
    )
    loaded = hf_dr.evaluate(
        student, {"test": renamed, "other": renamed}, label_column="kind"
    )  # the only ClassLabel, too
    assert [result.set for result in loaded.results] == ["test", "other"]
    assert {str(result.metrics) for result in loaded.results} == {str(of_texts.results[0].metrics)}
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.parquet"]


def test_labels_that_are_not_named_are_the_only_classes(student, tiny_dataset, tmp_path):
    """As for `reinforce` and `teach`: of a loaded dataset, and of one that is named; both tell the column."""
    tiny_dataset.rename_column("label", "kind").to_parquet(tmp_path / "tiny.parquet")
    text, named = f"test={tmp_path / 'tiny.parquet'}:train", f"test={tmp_path / 'tiny.parquet'}:train,label=kind"
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "tiny.parquet"))
    reports = [hf_dr.evaluate(student, given, output_dir=tmp_path / "out") for given in (text, named, text)]
    reports.append(hf_dr.evaluate(student, loaded))
    assert [report.sets["test"]["label"] for report in reports] == ["kind"] * 4
    assert len({str(report.results[0].metrics) for report in reports}) == 1


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (
            torch.nn.Identity(),
            "names of checkpoints, or Teachers, got Identity. `Teacher.from_model` makes a Teacher of a",
        ),
        ({"a": torch.nn.Identity()}, "`models` must be names of checkpoints, or Teachers, got Identity"),
        ({"a b": "student"}, "a name in the table must be of letters, digits, `.`, `_` or `-`, got 'a b'. Rename it."),
        (["student", "more/student"], "each model must have its own name, but `student` stands there twice"),
        ([], "`models` must be given, got none"),
    ],
)
def test_other_models_are_refused(tiny_dataset, models, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        hf_dr.evaluate(models, tiny_dataset)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (3, "`sets` must be texts, or a mapping from names to loaded datasets of one split, got int. Load it with"),
        ({"test": 3}, "`sets` must be datasets of one split, or texts, got int. Load it with"),
        (datasets.DatasetDict(), "a mapping from names to loaded datasets of one split, got DatasetDict"),
        ({"test": datasets.DatasetDict()}, "`sets` must be datasets of one split, or texts, got DatasetDict"),
        ({"x=y": "d"}, "a name in the table must be of letters"),
        ("imagenet-x", "a set must be NAME=DATASET[:SPLIT][,OPTION=VALUE] or a preset, got 'imagenet-x'"),
        ([], "`sets` must be given, got none"),
        ({}, "`sets` must be given, got none"),
    ],
)
def test_other_sets_are_refused(student, sets, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        hf_dr.evaluate(student, sets)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batchsize": 3}, "`evaluate` has no setting `batchsize`. Did you mean `batch_size`?"),
        ({"lable_column": "kind"}, "`evaluate` has no setting `lable_column`. Did you mean `label_column`?"),
        ({"corrupt": "test"}, "`corrupt` must be a list of names, got 'test'. Put it into a list."),
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"corrupt": ["tset"]}, "`corrupt` must name sets with clean images, got `tset`. Did you mean `test`?"),
        ({"label_column": "lable"}, "the label column `lable`. Did you mean `label`? Name it: `label_column`."),
        ({"image_column": "label"}, "must hold images, found ClassLabel"),
    ],
)
def test_other_settings_are_refused(student, tiny_dataset, settings, message):
    with pytest.raises((ConfigError, DataError), match=re.escape(message)):
        hf_dr.evaluate(student, tiny_dataset, **settings)


def test_a_dataset_without_labels_is_refused(student, tiny_dataset):
    with pytest.raises(DataError, match=r"set `test` must have the label column `label`.*Name it: `label_column`\."):
        hf_dr.evaluate(student, tiny_dataset.remove_columns("label"))


@pytest.mark.parametrize("column", ["image", "label"])
def test_columns_are_not_those_of_texts(student, column):
    with pytest.raises(ConfigError, match=f"`{column}_column` must be of a loaded dataset.* Write ,{column}=COLUMN"):
        hf_dr.evaluate(student, "test=tiny.parquet:train", **{f"{column}_column": "kind"})

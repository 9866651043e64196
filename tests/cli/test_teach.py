"""`hf-dr teach`, called as its users call it: from a folder of photos to a teacher that is named by its folder."""

import json
import shlex
import shutil

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchvision.transforms.functional import pil_to_tensor

import hf_dr
from hf_dr.cli.main import main
from hf_dr.errors import ConfigError
from hf_dr.replay.loading import load_reinforced
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.members import load_member

TINY = ["--model", "timm:test_resnet", "--size", "24", "--num_train_epochs", "2", "--disable_tqdm", "true"]


def teach(dataset, out, *more: str) -> int:
    return main(["teach", str(dataset), "--output_dir", str(out), *TINY, *more])


@pytest.fixture(scope="module")
def taught(tmp_path_factory, photos):
    out = tmp_path_factory.mktemp("taught") / "teacher"
    assert teach(photos, out, "--held_out", "0.25") == 0
    return out


def test_a_teacher_is_calibrated_on_images_that_it_did_not_learn(taught, photos):
    found = json.loads((taught / "teacher.json").read_text())
    assert found["num_held_out"] == 3
    assert found["folded"]
    assert found["dataset"] == str(taught / "photos")
    parts = datasets.load_dataset(str(taught / "photos"))
    assert {name: len(part) for name, part in parts.items()} == {"train": 9, "test": 3}

    # The last checkpoint has the weights before the temperature.
    (checkpoint,) = taught.glob("checkpoint-*")
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, taught))
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"fc.weight", "fc.bias"}
    assert torch.allclose(after["fc.weight"] * found["temperature"], before["fc.weight"])
    assert found["calibrated"]["nll"] <= found["trained"]["nll"]
    evaluated = json.loads((taught / "eval_results.json").read_text())
    assert evaluated["eval_nll"] == pytest.approx(found["calibrated"]["nll"], abs=1e-5)
    assert f"| nll | {evaluated['eval_nll']:.4g} |" in (taught / "README.md").read_text()


PYTHON = {"model": "timm:test_resnet", "size": 24, "num_train_epochs": 2, "disable_tqdm": True, "held_out": 0.25}


def test_from_python_it_is_the_same(taught, photos, tmp_path):
    found = hf_dr.teach(photos, tmp_path / "teacher", **PYTHON, augmentation=hf_dr.Augmentation.named("randaug", 24))
    assert (found.dataset, found.split, found.eval_split) == (str(tmp_path / "teacher" / "photos"), "train", "test")
    names = ("model.safetensors", "photos/train-00000-of-00001.parquet")
    for one, two in (((taught / name).read_bytes(), (tmp_path / "teacher" / name).read_bytes()) for name in names):
        assert one == two
    (member,) = found.teacher.members
    assert (found.teacher.temperature, member.weights_hash) == (1, load_member(str(taught)).weights_hash)

    images = datasets.load_dataset(found.dataset, split=found.split)
    apart = hf_dr.teach(taught / "photos", tmp_path / "apart", **PYTHON, calibrate=False, folds=None, seed=None)
    assert (apart.dataset, apart.split, apart.eval_split) == (str(taught / "photos"), "train", "test")
    told = json.loads((tmp_path / "apart" / "teacher.json").read_text())
    assert apart.teacher.temperature == told["temperature"] != 1
    pixels = torch.stack([pil_to_tensor(image) for image in images["image"]])
    assert torch.allclose(found.teacher(pixels), apart.teacher(pixels), atol=1e-5)


def test_from_python_with_wrong_settings(tmp_path, photos):
    with pytest.raises(ConfigError, match=r"unknown argument `--modle`. Did you mean `--model`"):
        hf_dr.teach(photos, tmp_path / "x", modle="timm:test_resnet")
    with pytest.raises(ConfigError, match=r"`held_out` must be .* below 1, got 2"):
        hf_dr.teach(photos, tmp_path / "x", held_out=2)
    with pytest.raises(ConfigError, match=r"`augmentation` must be an Augmentation, a name or a list of ops, got int"):
        hf_dr.teach(photos, tmp_path / "x", augmentation=3)
    with pytest.raises(ConfigError, match=r"views\.yaml"):
        hf_dr.teach(photos, tmp_path / "x", augmentation=tmp_path / "views.yaml")
    with pytest.raises(
        ConfigError, match=r"`print_config` is for the command line, got True. See `hf-dr teach --help`"
    ):
        hf_dr.teach(photos, tmp_path / "x", print_config=True)
    with pytest.raises(ConfigError, match=r"`dataset` must be a name or a path, got Dataset. Save a dataset in memory"):
        hf_dr.teach(datasets.Dataset.from_dict({"a": [1]}), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_its_folder_names_it(taught, photos, tmp_path, capsys):
    member = load_member(str(taught))
    assert member.labels == tuple((folder.name,) for folder in sorted(photos.iterdir()))
    flags = ["--size", "24", "--num_views", "2", "--top_k", "3", "--output_dir", str(tmp_path / "plus")]
    assert main(["reinforce", "--dataset", str(taught / "photos"), "--teacher", str(taught), *flags]) == 0
    assert main(["verify", str(tmp_path / "plus"), "--teacher", str(taught)]) == 0
    stored = load_reinforced(tmp_path / "plus")
    (named,) = stored.provenance.teacher["members"]
    assert (named["id"], named["weights_hash"]) == ("teacher", member.weights_hash)
    item = stored[0, 1]
    answer = Teacher([member])(item["pixel_values"][None])[0].numpy()
    assert np.allclose(np.sort(answer)[::-1], item["teacher_logprobs"].float().numpy(), atol=2e-3)


def test_the_same_command_again_changes_nothing_and_other_images_are_refused(taught, photos, tmp_path, capsys, caplog):
    out = tmp_path / "teacher"
    shutil.copytree(taught, out)
    (out / "teacher.json").unlink()  # as if stopped before the end
    assert teach(photos, out, "--held_out", "0.25") == 0
    assert "was calibrated" not in caplog.text
    assert (out / "model.safetensors").read_bytes() == (taught / "model.safetensors").read_bytes()
    printed = capsys.readouterr().out
    assert "of 3 images" in printed
    views = "--size 24 --output_dir PLUS"
    assert f"next: hf-dr reinforce {out / 'photos'} --split train --teacher {out} {views}" in printed
    assert teach(photos, out, "--held_out", "0.5") == 2
    assert (
        "must be made of the same images and labels in the same way, but it differs in share" in capsys.readouterr().err
    )


def test_a_dataset_with_a_test_split_is_not_copied(taught, tmp_path, capsys):
    images = taught / "photos"
    assert teach(images, tmp_path / "out", "--no_calibrate", "--max_steps", "1") == 0
    found = json.loads((tmp_path / "out" / "teacher.json").read_text())
    assert (found["dataset"], found["split"], found["eval_split"]) == (str(images), "train", "test")
    assert not found["folded"]
    assert f"--teacher_temperature {found['temperature']:.4g} --output_dir PLUS" in capsys.readouterr().out
    assert not (tmp_path / "out" / "photos").exists()
    assert teach(images, tmp_path / "other", "--eval_split", "tset", "--max_steps", "1") == 2


@pytest.mark.parametrize("splits", [["train", "test"], ["train"]], ids=["with a test split", "divided"])
def test_the_command_that_is_printed_runs(taught, tmp_path, capsys, splits):
    """Also where columns, configuration, or folders of files were named."""
    images = datasets.load_dataset(str(taught / "photos"))
    for split in splits:
        part = images[split].rename_column("label", "kind")
        part = part.add_column("colour", [0] * len(part), feature=datasets.ClassLabel(names=["a"]))
        part.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    columns = ["--label_column", "kind", "--image_column", "image", "--dataset_config", "default"]
    ops = tmp_path / "ops.yaml"
    ops.write_text("augmentation: [{RandomResizedCrop: {size: 24}}]")
    views = ["--augmentation", str(ops)]
    flags = [*columns, *views, "--files_from", str(taught), "--held_out", "0.34", "--max_steps", "1"]
    assert teach(tmp_path / "data", tmp_path / "out", *flags) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("next: hf-dr reinforce"))
    words = shlex.split(line.removeprefix("next: hf-dr").replace("PLUS", str(tmp_path / "plus")))
    assert ("--files_from" in words, "--dataset_config" in words) == (len(splits) == 2, len(splits) == 2)
    assert words[words.index("--augmentation") :][:2] == views
    assert main([*words, "--num_views", "1", "--allow_disagreement"]) == 0
    assert load_reinforced(tmp_path / "plus").provenance.label_column == "kind"


def test_held_out_images_that_are_learned_are_told(photos, tmp_path, caplog):
    for split in ("train", "test"):
        shutil.copytree(photos, tmp_path / "photos" / split)
    assert teach(tmp_path / "photos", tmp_path / "out", "--max_steps", "1") == 0
    count = sum(1 for file in (tmp_path / "photos" / "test").rglob("*.png"))
    assert (
        f"{count} of the {count} held-out images are learned as well: what is measured by them is too good"
        in caplog.text
    )
    caplog.clear()
    assert teach(photos, tmp_path / "own", "--held_out", "0.25", "--max_steps", "1") == 0
    assert "are learned as well" not in caplog.text


def test_classes_that_only_the_held_out_images_have_are_told(photos, tmp_path, caplog):
    for split in ("train", "test"):
        shutil.copytree(photos, tmp_path / "photos" / split)
    first, *_ = sorted(path.name for path in photos.iterdir())
    shutil.rmtree(tmp_path / "photos" / "train" / first)
    assert teach(tmp_path / "photos", tmp_path / "out", "--max_steps", "1") == 0
    assert f"1 classes have held-out images and none to learn from ({first}): all of these" in caplog.text
    caplog.clear()
    assert teach(photos, tmp_path / "own", "--held_out", "0.25", "--max_steps", "1") == 0
    assert "none to learn from" not in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected one dataset before the flags, got none. Name one."),
        (["a", "b"], "expected one dataset before the flags, got a b. Name one."),
        (["./nowhere"], "expected a folder, a file or a Hub id, found none at './nowhere'. Check the path."),
        (["PHOTOS", "--held_out", "1"], "`held_out` must be above 0 and below 1, got 1.0"),
        (["PHOTOS", "--output_dir", "PHOTOS"], "`output_dir` must not lie in a folder that is read, got"),
        (["PHOTOS", "--folds", "1"], "`folds` must be a whole number of at least 2, got 1. Raise `folds`."),
        (
            ["PHOTOS", "--folds", "2", "--resume_from_checkpoint", "x"],
            "`resume_from_checkpoint` must be left out with `folds`, got x: it would be the same for all teachers.",
        ),
        (["PHOTOS", "--label_column", "none"], "a teacher learns from labels, got `label_column` none. Name"),
        (
            ["PHOTOS", "--reinforced_probability", "0.5"],
            "`reinforced_probability` must be left out with `objective` erm, which",
        ),
        (
            ["PHOTOS", "--temperature", "2"],
            "which learns from the labels of newly drawn views alone, got 2.0: it would have no effect. Leave it out.",
        ),
    ],
)
def test_refusals(words, message, photos, tmp_path, capsys):
    words = [str(photos) if word == "PHOTOS" else word for word in words]
    words += [] if "--output_dir" in words else ["--output_dir", str(tmp_path / "out")]
    assert main(["teach", *words, *TINY]) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*")), "nothing is written"

"""`hf-dr teach --folds`, then `reinforce` and `verify` with its folder, and `calibrate`: as their users call them."""

import json
import re

import numpy as np
import pytest

from hf_dr.cli.main import main
from hf_dr.replay.loading import load_reinforced
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.folds import folds_of

TINY = ["--model", "timm:test_resnet", "--size", "24", "--max_steps", "1", "--disable_tqdm", "true"]
VIEWS = ["--size", "24", "--num_views", "2", "--top_k", "3"]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_dataset):
    """A folder of Parquet files with both splits, of two classes: eight would have all their images in one fold."""
    tiny_dataset = tiny_dataset.map(lambda row: {"label": row["label"] % 2}, features=tiny_dataset.features)
    folder = tmp_path_factory.mktemp("base") / "colours"
    folder.mkdir()
    tiny_dataset.to_parquet(folder / "train-00000-of-00001.parquet")
    tiny_dataset.select(range(6)).to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def folds(tmp_path_factory, base):
    out = tmp_path_factory.mktemp("folds") / "teacher"
    assert main(["teach", str(base), "--output_dir", str(out), "--folds", "2", *TINY]) == 0
    return out


def test_each_row_is_answered_by_the_teacher_that_has_not_seen_it(folds, base, tmp_path, capsys):
    flags = ["--dataset", str(base), *VIEWS, "--output_dir"]
    assert main(["reinforce", "--teacher", str(folds), *flags, str(tmp_path / "plus")]) == 0
    plus = load_reinforced(tmp_path / "plus")
    members = plus.provenance.teacher["members"]
    assert [(member["id"], member["left_out"]["number"], member["left_out"]["of"]) for member in members] == [
        ("fold-0", 0, 2),
        ("fold-1", 1, 2),
    ]
    assert set(folds_of(plus.image_hashes, 2)) == {0, 1}
    alone = [Teacher.from_pretrained(str(folds / f"fold-{n}")) for n in range(2)]
    differences = []  # of the stored answer to that of the teacher that has not seen the image, and to the other's
    for row, fold in enumerate(folds_of(plus.image_hashes, 2)):
        item = plus[row, 1]
        ids = item["teacher_ids"].numpy()
        stored = item["teacher_logprobs"].float().numpy()
        fresh = [teacher(item["pixel_values"][None])[0].numpy()[ids] for teacher in alone]
        differences.append([np.abs(answer - stored).max() for answer in (fresh[fold], fresh[1 - fold])])
    unseen, seen = np.max(differences, axis=0)
    assert unseen < 2**-10 + 1e-5 < seen  # half a unit of float16 near 2
    assert main(["verify", str(tmp_path / "plus"), "--teacher", str(folds)]) == 0
    card = (tmp_path / "plus" / "README.md").read_text()
    assert "The fold of an image is its `image_hash` modulo 2. Teachers without it answered for the image." in card
    assert "| fold-1, without fold 1 | unknown |" in card
    assert "Their probabilities are averaged." not in card
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "plus")]) == 0
    assert "fold-1, licence unknown, has not seen fold 1 of 2" in capsys.readouterr().out


def test_other_images_and_too_few_teachers_are_refused(folds, base, tmp_path, capsys):
    command = ["reinforce", *VIEWS, "--output_dir", str(tmp_path / "plus"), "--dataset"]
    assert main([*command, str(base), "--split", "test", "--teacher", str(folds)]) == 2
    assert "the folds of fold-0 must be those of the dataset, but other images were divided" in capsys.readouterr().err
    assert main([*command, str(base), "--teacher", str(folds / "fold-1")]) == 2
    assert "a member for each of its 2 folds, found none for [0]" in capsys.readouterr().err
    assert not (tmp_path / "plus").exists()
    # The first rows of the dataset that was divided.
    assert main([*command, str(base), "--teacher", str(folds), "--max_examples", "5"]) == 0


def test_the_same_command_again_changes_nothing_and_other_folds_are_refused(folds, base, capsys, caplog):
    caplog.set_level("INFO", "hf_dr")
    files = {path: path.read_bytes() for path in folds.rglob("model.safetensors")}
    assert main(["teach", str(base), "--output_dir", str(folds), "--folds", "2", *TINY]) == 0
    assert {path: path.read_bytes() for path in folds.rglob("model.safetensors")} == files
    assert f"Training the teacher without fold 1 of 2 folds, in {folds / 'fold-1'}." in caplog.messages
    assert f"--teacher {folds} --size 24 --output_dir PLUS" in capsys.readouterr().out
    assert main(["teach", str(base), "--output_dir", str(folds), "--folds", "3", *TINY]) == 2
    assert "must hold teachers of the same folds of the same images, but it differs in num_folds" in (
        capsys.readouterr().err
    )


def test_a_report_has_a_row_for_each_fold(folds, tmp_path, capsys):
    assert main(["report", str(folds), "--output_dir", str(tmp_path)]) == 0
    assert not re.search("left out", capsys.readouterr().err)
    page = (tmp_path / "results.md").read_text()
    for number in range(2):
        assert page.count(f"| colours, without fold {number} of 2 |") == 3  # tables
        card = (folds / f"fold-{number}" / "README.md").read_text()
        assert f"of the dataset `colours`, without fold {number} of 2. " in card


def test_a_damaged_file_of_folds_is_an_error(base, tmp_path, capsys):
    (tmp_path / "folds.json").write_text("{")
    assert main(["teach", str(base), "--output_dir", str(tmp_path), "--folds", "2", *TINY]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'folds.json'} must" in error
    assert "Choose another `output_dir`." in error


def test_a_temperature_is_found_stored_and_verified(folds, base, tmp_path, capsys):
    views = ["--dataset", str(base), "--size", "24", "--teacher", str(folds)]
    assert main(["calibrate", *views, "--split", "train"]) == 0
    printed = capsys.readouterr().out
    temperature = re.search(r"next: hf-dr reinforce, with .* and --teacher_temperature (\S+)", printed)[1]
    assert "of 12 images" in printed
    out = ["--num_views", "2", "--top_k", "3", "--output_dir"]
    plus = str(tmp_path / "plus")
    assert main(["reinforce", *views, *out, plus, "--teacher_temperature", temperature]) == 0
    stored = json.loads((tmp_path / "plus" / "randaug" / "reinforcement.json").read_text())
    assert stored["teacher"]["temperature"] == float(temperature)
    assert f"divided by the temperature {float(temperature):g}" in (tmp_path / "plus" / "README.md").read_text()
    assert main(["verify", plus, "--teacher", str(folds)]) == 0
    capsys.readouterr()
    assert main(["reinforce", *views, *out, plus]) == 2
    assert f"teacher.temperature: {float(temperature)} there, absent here" in capsys.readouterr().err


def test_a_class_that_is_in_one_fold_only_is_refused(tmp_path, tiny_dataset, capsys):
    tiny_dataset.select([0, 1, 2, 3, 8, 9, 10, 11]).to_parquet(tmp_path / "train.parquet")  # two of each class
    words = [str(tmp_path / "train.parquet"), "--eval_split", "train", "--output_dir", str(tmp_path / "out"), *TINY]
    assert main(["teach", *words, "--folds", "2"]) == 2
    message = (
        "green has all its images (2) in one: its teacher would not know them. Add images, or choose another number of"
    )
    assert f"each class must have images in at least 2 folds to learn from, but {message}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_labels_nothing_is_calibrated(folds, base, capsys):
    words = ["--dataset", str(base), "--size", "24", "--teacher", str(folds), "--label_column", "none"]
    assert main(["calibrate", *words]) == 2
    message = "a teacher is calibrated by labels, got `label_column` none. Name `label_column`."
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("divided", [False, True])
def test_a_class_of_a_single_image_is_refused_before_the_images_are_read(
    divided, tmp_path, tiny_dataset, capsys, monkeypatch
):
    """With a part held out, what is left to learn from counts."""
    labels = [0, 1, 0, 1, 0, 2, *[2] * divided, 0, 1, 0, 1]
    images = tiny_dataset.select(range(len(labels))).remove_columns("label").add_column("label", labels)
    images.cast_column("label", tiny_dataset.features["label"]).to_parquet(tmp_path / "train.parquet")
    for name in ("hf_dr.replay.join.pixels_digest", "hf_dr.training.teaching.file_hashes"):
        monkeypatch.setattr(name, lambda *_: pytest.fail("the images are read"))
    words = [str(tmp_path / "train.parquet"), "--output_dir", str(tmp_path / "out"), *TINY, "--folds", "2"]
    assert main(["teach", *words, *([] if divided else ["--eval_split", "train"])]) == 2
    message = (
        f"but {tiny_dataset.features['label'].names[2]} has all its images (1) in one: its teacher would not know them."
    )
    assert message in capsys.readouterr().err

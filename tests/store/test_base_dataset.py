"""Loading a base dataset by name: the split that is meant, paths as they are, and reasons that help."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import datasets
import pytest

from hf_dr.cli.main import main
from hf_dr.errors import ConfigError, DataError
from hf_dr.evaluation.config import EvaluateConfig
from hf_dr.evaluation.images import open_set
from hf_dr.evaluation.sets import parse_set
from hf_dr.generation.calibration import calibrate
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce, reinforce_job
from hf_dr.replay.augmented import AugmentedDataset
from hf_dr.store.base_dataset import (
    base_files,
    check_cache,
    content_hash,
    load_base,
    load_parquet,
    shared_files,
    split_names,
    undecoded_images,
    whole_hash,
)
from hf_dr.store.labels import check_dataset, label_advice
from hf_dr.training.checks import evaluation_images
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import CenterCrop


def numbers(*values: int, **names: list[int]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"number": list(values), **names})


@pytest.mark.parametrize(
    ("split", "expected"),
    [("train", [0, 1, 2, 3]), ("train[:3]", [0, 1, 2]), ("train[50%:]", [2, 3]), ("train[:1]+train[3:]", [0, 3])],
)
@pytest.mark.parametrize("saved_as", ["train", None])
def test_the_split_of_a_saved_dataset_is_looked_at(split, expected, saved_as, tmp_path):
    dataset = datasets.Dataset.from_dict({"number": list(range(4))}, split=saved_as)
    dataset.save_to_disk(tmp_path)
    assert load_base(str(tmp_path), split=split)[0]["number"][:] == expected


def test_another_split_than_was_saved_is_refused(tmp_path):
    datasets.Dataset.from_dict({"number": [1]}, split="validation").save_to_disk(tmp_path)
    assert len(load_base(str(tmp_path), split="validation")[0]) == 1
    with pytest.raises(DataError, match=r"could not load split `train` of .*validation"):
        load_base(str(tmp_path))


def test_a_folder_of_several_saved_splits(tmp_path):
    datasets.DatasetDict(train=numbers(*range(1, 9)), test=numbers(9, 10)).save_to_disk(tmp_path)
    for split, expected in (
        ("test", [9, 10]), ("train[:2]", [1, 2]), ("train[75%:]", [7, 8]), ("train[:1]+test[-1:]", [1, 10]),
    ):  # fmt: skip
        loaded, _ = load_base(str(tmp_path), split=split)
        assert (loaded["number"][:], str(loaded.split)) == (expected, split)
    assert split_names(str(tmp_path)) == ["train", "test"]
    with pytest.raises(DataError, match=r"could not load split `tset` of .*Unknown split .tset."):
        load_base(str(tmp_path), split="tset")
    with pytest.raises(ConfigError, match="the config of a dataset must be left out for what has none, got 'fine'"):
        load_base(str(tmp_path), "fine")


def test_splits_that_the_hub_does_not_tell_are_no_guess(monkeypatch):
    def unreachable(*_: object, **__: object) -> list[str]:
        raise ConnectionError("Couldn't reach 'me/photos' on the Hub (LocalEntryNotFoundError).")

    monkeypatch.setattr(datasets, "get_dataset_split_names", unreachable)
    with pytest.raises(
        DataError, match=r"the splits of me/photos must be known, but the Hub does not answer: Couldn't"
    ):
        split_names("me/photos")


def test_the_files_of_a_split(tmp_path, photos):
    numbers(1).to_parquet(tmp_path / "train.parquet")
    assert base_files(str(tmp_path), split="train") == [str(tmp_path / "train.parquet")]
    assert base_files(str(photos), split="train") == [], "images, each a file"
    with pytest.raises(DataError, match=r"must have the split `test`, found train\. Check name and `dataset_config`"):
        base_files(str(tmp_path), split="test")


def test_a_saved_dataset_without_rows_is_refused(tmp_path):
    datasets.Dataset.from_dict({"number": []}).save_to_disk(tmp_path)
    with pytest.raises(DataError, match=r"the base must have at least one row, got none\. Save it with its rows"):
        load_base(str(tmp_path))


@pytest.mark.parametrize("name", ["run[1].parquet", "run*.parquet", "run?.parquet", "run{1,2}.parquet"])
def test_a_files_name_is_no_pattern(name, tmp_path):
    numbers(1).to_parquet(tmp_path / "run1.parquet")
    numbers(2).to_parquet(tmp_path / name)
    assert load_base(str(tmp_path / name))[0]["number"][:] == [2]


@pytest.mark.parametrize("name", ["run[1]", "run*", "run?"])
def test_a_folders_name_that_would_be_a_pattern_is_refused(name, tmp_path):
    for folder in ("run1", name):
        (tmp_path / folder).mkdir()
        numbers(1).to_parquet(tmp_path / folder / "train.parquet")
    with pytest.raises(
        DataError, match=r"must be without \*, \? and \[, which `datasets` takes for patterns, got .* Rename it"
    ):
        load_base(str(tmp_path / name))


def test_files_that_were_written_again_are_read_again(tmp_path):
    path = tmp_path / "a.parquet"
    read = []
    for version, number in (("first", 1), ("second", 2)):
        numbers(number).to_parquet(path)
        os.utime(path, (1e9, 1e9))
        read.append(load_parquet([path], "train", version=version)["number"][:])
    assert read == [[1], [2]]


def test_the_reason_is_told(tmp_path):
    numbers(1).to_parquet(tmp_path / "train-0.parquet")
    numbers(1).rename_column("number", "nombre").to_parquet(tmp_path / "train-1.parquet")
    with pytest.raises(
        DataError, match=r"could not load split `train` of .* \(CastError: .*nombre.*\)\. Check the name"
    ):
        load_base(str(tmp_path))


def test_a_cache_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    numbers(1).to_parquet(tmp_path / "a.parquet")
    cache = tmp_path / "file" / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    with pytest.raises(
        DataError, match=rf"the cache of `datasets` must be .* but {cache}: Not a directory. Set HF_HOME"
    ):
        load_base(str(tmp_path / "a.parquet"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(tmp_path / "new" / "cache"))
    check_cache()


def test_a_file_of_another_format_is_told(tmp_path):
    (tmp_path / "photos.csv").write_text("image,label\n")
    with pytest.raises(
        DataError, match=r"in one file must be Parquet, but photos\.csv is not\. .*`save_to_disk` writes"
    ):
        load_base(str(tmp_path / "photos.csv"))


def test_classes_by_name_are_read_once_they_have_numbers(tmp_path, tiny_dataset):
    """The way that the message names."""
    names = tiny_dataset.features["label"].names
    texts = tiny_dataset.cast_column("label", datasets.Value("int64"))
    texts = texts.map(
        lambda row: {"label": names[row["label"]]},
        features=datasets.Features({**tiny_dataset.features, "label": datasets.Value("string")}),
    )
    with pytest.raises(
        DataError, match=r"`dataset\.class_encode_column\('label'\)`; a command reads what `save_to_disk`"
    ):
        check_dataset(texts)
    texts.class_encode_column("label").save_to_disk(tmp_path / "saved")
    saved, _ = load_base(str(tmp_path / "saved"))
    assert check_dataset(saved) == ("image", "label")
    assert [saved.features["label"].names[number] for number in saved["label"]] == list(texts["label"])


def test_labels_with_a_point_are_read_once_they_are_whole(tmp_path, tiny_dataset):
    """Numbers in a CSV in which some are left out; again the way that the message names."""
    there = [None, *range(1, len(tiny_dataset))]
    points = tiny_dataset.remove_columns("label").add_column("label", [None, *map(float, there[1:])])
    with pytest.raises(
        DataError, match=r"got Value\('float64'\)\. Make .* `dataset\.cast_column\('label', datasets\.Val"
    ):
        check_dataset(points)
    whole = points.cast_column("label", datasets.Value("int64"))
    assert check_dataset(whole) == ("image", "label")
    assert list(whole["label"]) == there


def test_what_a_local_dataset_does_not_have_is_refused(tmp_path):
    numbers(1).to_parquet(tmp_path / "train.parquet")
    numbers(1).save_to_disk(tmp_path / "saved")
    for name, config, revision, wrong in (
        ("train.parquet", None, "main", "revision"),
        ("train.parquet", "small", None, "config"),
        ("saved", "small", None, "config"),
        ("saved", None, "v1", "revision"),
        (".", None, "v1", "revision"),
    ):
        with pytest.raises(ConfigError, match=f"the {wrong} of a dataset must be left out for what has none, got '"):
            load_base(str(tmp_path / name), config, revision=revision)
    with pytest.raises(DataError, match="could not load split ``"):
        load_base(str(tmp_path / "train.parquet"), split="")


def test_a_dataset_that_was_reinforced_already_is_no_base(tiny_plus):
    for plus in (tiny_plus.plus, tiny_plus.plus.remove_columns("image")):
        with pytest.raises(
            DataError, match=r'not reinforced yet, but it has the column `teacher_logprobs` of a "\+".*`hf-dr extend`'
        ):
            check_dataset(plus)
    with pytest.raises(DataError, match=r"must not have a column `aug_flip`: .* Rename it"):
        check_dataset(numbers(1, aug_flip=[0]))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["cats/1.png", "dogs/1.png", "stray.png"], r"/stray\.png \(1 such images\) does not lie as deep as .*1\.png\. Move"),
        (["cats/1.png", "dogs/1.png", "dogs/pugs/1.png"], r"/dogs/pugs/1\.png \(1 such images\) does not lie as deep as"),
        (["cats/1.png", "cats/2.png"], r"all lie in one, cats\. Make a folder for each class"),
        (["1.png", "2.png"], r"all lie in one, photos\. Make a folder for each class"),
        (["train/cats/1.png", "train/dogs/1.png", "test/1.png"], r"an image of another split does not, or there is a metadata"),
    ],
)  # fmt: skip
def test_what_keeps_a_folder_of_images_from_having_labels_is_told(files, message, tmp_path, tiny_dataset):
    for name in files:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny_dataset[0]["image"].save(path)
    dataset, _ = load_base(str(tmp_path / "photos"))
    message = f"`datasets` takes folders for classes only if .* all images lie equally deep, but .*{message}"
    assert re.search(message, label_advice(dataset, "image"))
    with pytest.raises(DataError, match=rf"`label_column` must name a column, got 'label'\. {message}"):
        check_dataset(dataset, label_column="label")


def test_other_datasets_without_labels_get_other_advice(tmp_path, tiny_dataset, photos):
    for dataset in (tiny_dataset.remove_columns("label"), load_base(str(photos))[0]):
        assert label_advice(dataset, "image") == "Name `label_column`."


def test_images_of_a_folder_that_were_changed_or_described_get_other_advice_too(tmp_path, tiny_dataset):
    tiny_dataset[0]["image"].save(tmp_path / "1.png")
    dataset, _ = load_base(str(tmp_path))
    changed = dataset.map(lambda row: {"image": row["image"].rotate(90)}, features=dataset.features)
    assert label_advice(changed, "image") == "Name `label_column`."
    described = dataset.add_column("caption", ["as of a metadata file"])
    assert label_advice(described, "image", "Name it.") == (
        "Name it. `datasets` takes no folders for classes next to a metadata file: for these move the file away."
    )


def test_a_folder_that_is_not_there_is_said_to_be_so():
    with pytest.raises(
        DataError, match=r"could not load split `train` of 'fotos' .*\. There is no folder `fotos` here\. "
    ):
        load_base("fotos")


def test_a_folder_that_is_misspelled_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"There is no folder `fotos` here\. Did you mean `photos`\? Check the name"):
        load_base("fotos")


def test_of_several_columns_of_classes_one_must_be_named(tiny_dataset):
    fine = tiny_dataset.rename_column("label", "fine")
    both = fine.add_column("coarse", [0] * len(fine)).cast_column("coarse", datasets.ClassLabel(names=["all"]))
    assert check_dataset(both, label_column="fine") == ("image", "fine")
    with pytest.raises(
        DataError, match="`label_column` must name one of the columns of classes, fine, coarse, got None"
    ):
        check_dataset(both)


@pytest.mark.parametrize(("given", "found"), [("photos", "str"), ({"a": 1, "b": 2}, r"DatasetDict \(a, b\)")])
def test_what_is_no_loaded_split_is_refused(given, found, tiny_teacher, tmp_path):
    given = given if isinstance(given, str) else datasets.DatasetDict({name: numbers(n) for name, n in given.items()})
    message = (
        rf"datasets\.Dataset of one split, got {found}\. Load it with `datasets\.load_dataset\(NAME, split=SPLIT\)`"
    )
    with pytest.raises(DataError, match=message):
        reinforce(given, tiny_teacher, "rrc", ReinforceConfig(str(tmp_path)))


def test_small_datasets_are_held_in_memory_where_datasets_is_set_so(photos, monkeypatch):
    assert load_base(str(photos))[0].cache_files
    monkeypatch.setattr(datasets.config, "IN_MEMORY_MAX_SIZE", 1 << 30)
    assert not load_base(str(photos))[0].cache_files


def in_archive(dataset: datasets.Dataset, path: Path) -> datasets.Dataset:
    """The same images and labels, but each cell only names its image, inside a zip archive."""
    cells = undecoded_images(dataset, "image")["image"]
    with zipfile.ZipFile(path, "w") as archive:
        for number, cell in enumerate(cells):
            archive.writestr(f"{number}.png", cell["bytes"])
    named = [{"bytes": None, "path": f"zip://{number}.png::{path}"} for number in range(len(cells))]
    columns = {"image": named, "label": dataset["label"][:]}
    return datasets.Dataset.from_dict(columns, features=dataset.features)


def test_images_at_an_address_are_told_apart_by_their_files(tmp_path, tiny_dataset):
    """Else a run would go on with other images than it was begun with, if their labels are the same."""
    halves = [tiny_dataset.select(range(6)), tiny_dataset.select(range(6, 12))]
    named = [in_archive(half, tmp_path / f"{number}.zip") for number, half in enumerate(halves)]
    images = [undecoded_images(dataset, "image") for dataset in (*halves, *named)]
    assert list(map(content_hash, images[2:])) == list(map(content_hash, images[:2]))
    assert content_hash(images[2]) != content_hash(images[3])
    assert (shared_files(images[2], images[3]), shared_files(images[2], images[0])) == (0, 6)
    one, two, same = (whole_hash(dataset, "image", "label") for dataset in (*named, halves[0]))
    assert one == same != two


@pytest.mark.parametrize("path", ["absent.png", "zip://absent.png::absent.zip", "x" * 5000])
def test_an_image_that_is_not_there_is_one_without_bytes(path):
    features = datasets.Features({"image": datasets.Image(decode=False)})
    empty, absent = (
        datasets.Dataset.from_dict({"image": [cell]}, features=features)
        for cell in ({"bytes": b"", "path": None}, {"bytes": None, "path": path})
    )
    assert content_hash(empty) == content_hash(absent)


@pytest.fixture
def stray(tmp_path, tiny_dataset) -> datasets.Dataset:
    """A folder of images of two classes, and one image next to the classes' folders."""
    for name in ("cats/1.png", "dogs/1.png", "stray.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        tiny_dataset[0]["image"].save(tmp_path / "photos" / name)
    return load_base(str(tmp_path / "photos"))[0]


@pytest.mark.parametrize(
    "command", [["teach", "PHOTOS"], ["train", "--dataset", "PHOTOS", "--objective", "erm", "--augmentation", "rrc"]]
)
def test_commands_that_need_labels_name_a_stray_image(command, stray, tmp_path, capsys):
    words = [str(tmp_path / "photos") if word == "PHOTOS" else word for word in command]
    words += ["--size", "24", "--output_dir", str(tmp_path / "out")]
    assert main([*words, "--student" if command[0] == "train" else "--model", "timm:test_resnet"]) == 2
    assert re.search(r"found none in .*photos\. `datasets` takes .*stray\.png", capsys.readouterr().err)


def test_whoever_needs_labels_names_a_stray_image(stray, tiny_dataset, tiny_teacher, tmp_path, caplog):
    augmentation = Augmentation([CenterCrop(16)])
    message = r"`datasets` takes folders .*stray\.png"
    reinforce_job(stray, tiny_teacher, augmentation, ReinforceConfig(str(tmp_path / "plus"), num_views=1, top_k=2))
    assert re.search(f"among no others\\. {message}.* Or pass `label_column` none", caplog.text)
    with pytest.raises(ConfigError, match=f"calibrated by labels, found none in the dataset\\. {message}"):
        calibrate(stray, tiny_teacher, augmentation)
    with pytest.raises(DataError, match=f"set `photos` must have the label column `label`\\. {message}"):
        open_set(parse_set(f"photos={tmp_path / 'photos'}:train"), EvaluateConfig([], [], ""))
    train = AugmentedDataset(tiny_dataset, augmentation, image_column="image", label_column="label")
    with pytest.raises(DataError, match=f"must have a column of labels, found image\\. {message}"):
        evaluation_images(stray, train, augmentation)

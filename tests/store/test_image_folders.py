"""Images of a folder that are left out are told."""

import json
import logging
import os
import shutil
from pathlib import Path

import PIL.Image
import pytest

from hf_dr.errors import DataError
from hf_dr.store.base_dataset import load_base, split_names


def photos(folder, *files):
    for number, file in enumerate(files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / file, "JPEG")
    return str(folder)


@pytest.fixture
def warned(caplog):
    def warned(name, **settings):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            loaded, _ = load_base(name, **settings)
        return loaded, [record.getMessage() for record in caplog.records if record.name.startswith("hf_dr")]

    return warned


@pytest.mark.parametrize(
    "files",
    [
        ("a/1.jpg", "b/2.jpg"),
        ("train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg"),
        ("a/.hidden.jpg", "a/1.jpg", "b/2.jpg"),
    ],
)
def test_nothing_is_said_of_a_folder_that_is_read(tmp_path, warned, files):
    loaded, said = warned(photos(tmp_path, *files))
    assert (len(loaded), said) == (2, [])


def test_a_folder_is_called_as_it_was_named(tmp_path, monkeypatch):
    photos(tmp_path / "photos", "a/1.jpg", "b/2.jpg")
    (tmp_path / "linked").symlink_to("photos")
    monkeypatch.chdir(tmp_path / "photos")
    for name, known in ((".", "photos"), ("../linked", "linked"), (str(tmp_path / "photos"), "photos")):
        loaded, described = load_base(name)
        assert (len(loaded), described["id"]) == (2, known)


def test_the_splits_of_the_folder_one_stands_in_are_known(tmp_path, monkeypatch):
    place = photos(tmp_path / "photos", "train/a/1.jpg", "test/a/2.jpg")
    monkeypatch.chdir(place)
    assert split_names(".") == split_names(place) == ["train", "test"]


def test_texts_beside_the_images_are_not_read_in_their_place(tmp_path, warned):
    place = photos(tmp_path, "a/1.jpg", "b/2.jpg")
    for file in ("a/1.txt", "b/2.txt"):
        (tmp_path / file).write_text("a photo")
    message = (
        r"the images of .* must be read, but .* reads its 2 text files, such as .*1\.txt.* leaves out 2 images. Move"
    )
    with pytest.raises(DataError, match=message):
        load_base(place)
    (tmp_path / "a" / "1.txt").unlink()
    assert len(warned(place)[0]) == 2


def test_texts_alone_are_not_taken_for_images(tmp_path):
    (tmp_path / "1.txt").write_text("a photo")
    assert load_base(str(tmp_path))[0].column_names == ["text"]


def test_an_archive_of_images_without_classes_is_told(tmp_path, warned):
    place = photos(tmp_path / "photos", "a/1.jpg", "b/2.jpg")
    more = photos(tmp_path / "more", "3.jpg", "4.jpg", "__MACOSX/._3.jpg")  # as macOS packs them
    shutil.make_archive(str(tmp_path / "photos" / "old"), "zip", more)
    loaded, said = warned(place)
    assert len(loaded) == 4
    assert len(said) == 1
    assert (
        f"Images will also be read from 1 archive in {place}, such as {place}/old.zip. Move an archive away if"
        in said[0]
    )


@pytest.mark.parametrize("beside", [(), ("a/1.jpg", "b/2.jpg")])
def test_packed_folders_of_classes_are_refused(tmp_path, beside):
    place = photos(tmp_path / "photos", *beside)
    (tmp_path / "photos").mkdir(exist_ok=True)
    photos(tmp_path / "packed", "a/3.jpg", "b/4.jpg")
    shutil.make_archive(str(tmp_path / "photos" / "all"), "zip", tmp_path / "packed")
    with pytest.raises(
        DataError,
        match=r"folders of classes must not be packed, .* 1 archive in .*all\.zip\. Move an archive away .*unpack it",
    ):
        load_base(place)
    table = [{"file_name": name, "label": n} for n, name in enumerate(("a/3.jpg", "b/4.jpg"))]
    (tmp_path / "packed" / "metadata.jsonl").write_text("\n".join(map(json.dumps, table)))
    shutil.make_archive(str(tmp_path / "photos" / "all"), "zip", tmp_path / "packed")
    if not beside:
        assert load_base(place)[0]["label"][:] == [0, 1]
    (tmp_path / "photos" / "all.zip").write_bytes(b"PK\x03\x04, and then nothing")
    with pytest.raises(DataError, match=r"could not load split `train` of .* \(BadZipFile: File is not a zip file\)"):
        load_base(place)
    assert split_names(place) == []


@pytest.mark.parametrize("word", ["train_steam", "steam-train", "test drive", "validation_stamps"])
def test_a_class_whose_name_has_a_word_for_a_split_is_refused(tmp_path, word):
    place = photos(tmp_path, f"{word}/1.jpg", "bus/2.jpg", "car/3.jpg")
    message = (
        rf"2 images of .* are in no split and would be left out, such as .*2\.jpg: .* in the name of {word} for a split"
    )
    with pytest.raises(DataError, match=message):
        load_base(place)
    (tmp_path / word).rename(tmp_path / "other")
    assert len(load_base(place)[0]) == 3


def test_images_whose_names_have_a_word_for_a_split_are_refused_beside_others(tmp_path, warned):
    place = photos(tmp_path, "a/train_1.jpg", "a/2.jpg", "b/3.jpg")
    with pytest.raises(DataError, match=r"2 images of .* in the name of train_1\.jpg for a split\. Rename it"):
        load_base(place)
    for file in ("a/2.jpg", "b/3.jpg"):
        (tmp_path / file).rename(tmp_path / file.replace("/", "/train_"))
    loaded, said = warned(place)
    assert (len(loaded), said) == (3, [])


@pytest.mark.parametrize("place", ["photos", "./photos/", "photos/../photos", "linked"])
def test_another_way_to_the_folder_finds_the_same(place, tmp_path, monkeypatch, warned):
    photos(tmp_path / "photos", "steam/1.jpg", "bus/2.jpg")
    (tmp_path / "linked").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    loaded, said = warned(place)
    assert (len(loaded), said) == (2, [])
    (tmp_path / "photos" / "steam").rename(tmp_path / "photos" / "train_steam")
    with pytest.raises(DataError, match=r"1 images of .* in the name of train_steam for a split"):
        load_base(place)


def test_a_card_may_say_which_files_are_read(tmp_path, warned):
    place = photos(tmp_path, "train_photos/a/1.jpg", "train_photos/b/2.jpg", "pictures/logo.jpg")
    with pytest.raises(DataError, match="in the name of train_photos for a split"):
        load_base(place)
    files = "configs:\n- config_name: default\n  data_files:\n  - {split: train, path: 'train_photos/**'}\n"
    (tmp_path / "README.md").write_text(f"---\n{files}---\n")
    loaded, said = warned(place)
    assert (len(loaded), said) == (2, [])


def test_folders_beside_those_of_the_splits_are_told(tmp_path, warned):
    loaded, said = warned(photos(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "bus/3.jpg"))
    assert len(loaded) == 2
    assert len(said) == 1
    assert "1 images of" in said[0]
    assert "such as " + str(tmp_path / "bus" / "3.jpg") in said[0]
    assert warned(str(tmp_path))[1] == [], "once"
    (tmp_path / "train").rename(tmp_path / "test")
    with pytest.raises(DataError, match="could not load split `train`"):
        load_base(str(tmp_path))


def test_a_name_that_is_not_utf8_is_told(tmp_path):
    place = photos(tmp_path, "a/1.jpg", "b/2.jpg")
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "b" / "m") + b"\xfcller.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("the file system has names of UTF-8 alone")
    with pytest.raises(
        DataError, match=r"names of files and folders must be UTF-8, but .*b/m\\udcfcller\.jpg' is not \(1 such"
    ):
        load_base(place)


@pytest.mark.parametrize("name", ["b/3\n4.jpg", "c\nd/3.jpg"])
def test_a_name_of_two_lines_is_told(tmp_path, name):
    try:
        place = photos(tmp_path, "a/1.jpg", "b/2.jpg", name)
    except OSError:
        pytest.skip("the file system has no such names")
    with pytest.raises(DataError, match=r"must be without line breaks, .*\\n.*\(1 such images\)\. Rename them"):
        load_base(place)


def test_where_the_system_writes_names_otherwise_all_are_read(tmp_path, monkeypatch):
    place = photos(tmp_path, "a/ä.jpg", "b/2.jpg")
    monkeypatch.setattr(os, "fsencode", lambda name: os.fspath(name).encode("latin-1", "replace"))  # as in its locale
    assert len(load_base(place)[0]) == 2


def test_photos_of_phones_broken_links_and_linked_folders_are_told(tmp_path, warned):
    place = photos(tmp_path / "photos", "a/1.jpg", "b/2.jpg")
    (tmp_path / "photos" / "a" / "3.HEIC").write_bytes(b"x")
    (tmp_path / "photos" / "b" / "3.avif").write_bytes(b"x")
    (tmp_path / "photos" / "a" / "4.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "photos" / "notes.txt").write_text("x")
    loaded, said = warned(place)
    assert len(loaded) == 2
    assert len(said) == 1
    assert "3 files in" in said[0]
    assert "cannot be read as images and will be left out, such as " in said[0]
    photos(tmp_path / "elsewhere", "5.jpg")
    (tmp_path / "photos" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "a" / "round").symlink_to(tmp_path / "photos")
    _, said = warned(place)
    assert len(said) == 1
    assert "nor folders that are links" in said[0]


def test_a_table_beside_images_that_is_not_read_is_told_and_can_be_read(tmp_path, warned):
    place = photos(tmp_path, "files/1.jpg", "files/2.jpg", "files/3.jpg")
    table = tmp_path / "photos.jsonl"
    rows = [{"file_name": f"files/{n}.jpg", "label": int(n > 1)} for n in (1, 2, 3)]
    table.write_text("\n".join(map(json.dumps, rows)))
    loaded, said = warned(place)
    assert loaded.column_names == ["image"]
    assert len(said) == 1
    assert f"1 table in {place} next to the images will not be read, such as {table}. If it has the labels" in said[0]
    table.rename(tmp_path / "metadata.jsonl")  # as it says
    loaded, said = warned(place)
    assert (loaded["label"][:], said) == ([0, 1, 1], [])


def test_a_folder_of_photos_of_phones_alone_is_refused_by_their_kind(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.HEIC").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"the 1 images of .* are of other kinds, such as .*1\.HEIC\. Convert them to JPEG"
    ):
        load_base(str(tmp_path))
    (tmp_path / "a" / "1.HEIC").rename(tmp_path / "a" / "1.zzz")
    with pytest.raises(DataError, match="could not load split"):
        load_base(str(tmp_path))

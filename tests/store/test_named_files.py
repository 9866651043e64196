"""Files of this machine that somebody else's dataset names are neither read nor copied: each kind of column, each way in."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import CLASSES, as_cell, colour_image
from datasets.download.download_manager import DownloadManager
from huggingface_hub import HfApi
from samples import rewritten

import hf_dr.cli.main
from hf_dr.errors import ConfigError, DataError, FormatError
from hf_dr.evaluation.config import EvaluateConfig
from hf_dr.evaluation.run import run_evaluation
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.base_dataset import describe_base, load_base
from hf_dr.store.named_files import NamedFiles, _named, check_own_files, describe_named_files, named_files
from hf_dr.teacher.ensemble import Teacher
from hf_dr.views.augmentation import Augmentation

SECRET = b"hf_secretsecretsecret"
REFUSED = r"row 3 of column `{column}` names '{path}'.*pass its folder as `files_from`"
KINDS = {
    "image": datasets.Image(),
    "audio": datasets.Audio(),
    "video": datasets.Video(),
    "pdf": datasets.Pdf(),
    "nifti": datasets.Nifti(),
    "images": datasets.List(datasets.Image()),
    "sample": {"scan": datasets.Image(), "page": datasets.List(datasets.Pdf())},
}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "token"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


def rows_with(column: str, kind: Any, cells: list[Any]) -> datasets.Dataset:
    """Six labelled images, and a column of files beside them, as Arrow holds them: no library for sound is asked."""
    rng = np.random.default_rng(0)
    data = {
        "picture": [as_cell(colour_image(rng, label)) for label in range(6)],
        "label": list(range(6)),
        column: cells,
    }
    features = datasets.Features(
        {"picture": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES)), column: kind}
    )
    return datasets.Dataset(datasets.table.InMemoryTable(pa.table(data, schema=features.arrow_schema)))


def naming(column: str, path: str | os.PathLike[str]) -> datasets.Dataset:
    """A dataset whose row 3 names a file in a column of this kind."""
    held = {"bytes": b"held", "path": "held"}
    named = {"bytes": None, "path": os.fspath(path)}
    if column == "images":
        cells: list[Any] = [[held], [], None, [held, named], [], []]
    elif column == "sample":
        cells = [{"scan": held, "page": []}] * 3 + [{"scan": held, "page": [held, named]}] + [None] * 2
    else:
        cells = [held] * 3 + [named] + [None] * 2
    return rows_with(column, KINDS[column], cells)


def dotted(column: str) -> str:
    return "sample.page" if column == "sample" else column


def parquet_of(dataset: datasets.Dataset, path: Path) -> Path:
    """Writes what `Dataset.to_parquet` would, without reading the files: as somebody who wants to read yours does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = dataset.with_format("arrow")[:]
    pa.parquet.write_table(table.replace_schema_metadata(dataset.data.schema.metadata), path)
    return path


def command(*words: Any) -> int:
    return hf_dr.cli.main.main([str(word) for word in words])


# ------------------------------------------------------------------------------------------------- what is named where


@pytest.mark.parametrize("column", KINDS)
def test_named_files_are_found_in_every_kind_of_column(column: str) -> None:
    (found,) = named_files(naming(column, "/a/file"))
    assert (found.column, found.rows.tolist(), found.paths.to_pylist()) == (dotted(column), [3], ["/a/file"])


def test_rows_are_those_of_the_dataset_after_select_and_shuffle() -> None:
    dataset = naming("audio", "/a/file")
    assert [files.rows.tolist() for files in named_files(dataset.select([5, 3, 1, 3]))] == [[3]]
    assert named_files(dataset.select([5, 1])) == []
    shuffled = dataset.shuffle(seed=1)
    (found,) = named_files(shuffled)
    assert shuffled["label"][int(found.rows[0])] == 3


def test_several_chunks_count_their_rows_on() -> None:
    parts = [naming("audio", "/a/file"), naming("audio", "/b/file")]
    joined = datasets.concatenate_datasets(parts)
    assert [(files.rows.tolist(), files.paths.to_pylist()) for files in named_files(joined)] == [
        ([3], ["/a/file"]),
        ([9], ["/b/file"]),
    ]


def test_cells_that_hold_their_file_name_nothing(tiny_dataset: datasets.Dataset) -> None:
    assert named_files(tiny_dataset) == []
    assert describe_named_files(tiny_dataset) is None
    assert NamedFiles("audio", np.arange(2), pa.array(["a", "b"])).at(np.array([-1, 4])).rows.tolist() == [4]


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="datasets before 4.7 have no JSON columns")
@pytest.mark.parametrize("overlay", [False, True])
def test_json_is_no_file(overlay: bool, tmp_path: Path, tiny_teacher: Teacher) -> None:
    held = rows_with("audio", datasets.Audio(), [None] * 6).remove_columns("audio")
    meta = [{"at": n} for n in range(6)]
    base = held.add_column("meta", meta).cast_column("meta", datasets.Json())
    base.to_parquet(tmp_path / "base" / "train.parquet")
    base, _ = load_base(str(tmp_path / "base"), split="train")
    config = ReinforceConfig(str(tmp_path / "plus"), "c", num_views=1, top_k=1, image_column="picture", overlay=overlay)
    reinforce(base, tiny_teacher, Augmentation.named("rrc", 24), config)
    plus = load_reinforced(tmp_path / "plus", base=base if overlay else None, columns=["meta"])
    assert [plus[n]["meta"] for n in range(6)] == meta
    shard = next((tmp_path / "plus" / "c").glob("*.parquet"))
    assert "meta" in datasets.Dataset.from_parquet(str(shard)).column_names


# ------------------------------------------------------------------------------------------------------- every way in


@pytest.mark.parametrize("column", KINDS)
@pytest.mark.parametrize("way", ["file", "folder", "saved"])
def test_local_datasets_are_refused(column: str, way: str, secret: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    parquet_of(naming(column, secret), base / "train.parquet")
    if way == "saved":
        # `save_to_disk` copies named files in, so the hostile folder is written by hand.
        datasets.load_dataset("parquet", data_files=str(base / "train.parquet"), split="train").save_to_disk(
            tmp_path / "s"
        )
        (arrow,) = (tmp_path / "s").glob("*.arrow")
        table = naming(column, secret).data.table
        with pa.ipc.new_stream(str(arrow), table.schema) as writer:
            writer.write_table(table)
    name = {"file": base / "train.parquet", "folder": base, "saved": tmp_path / "s"}[way]
    with pytest.raises(DataError, match=REFUSED.format(column=dotted(column), path=secret)):
        load_base(str(name))
    assert len(load_base(str(name), files_from=[str(secret.parent)])[0]) == 6


def test_what_an_address_names_is_to_be_downloaded(tmp_path: Path) -> None:
    parquet_of(naming("image", "https://example.com/1.jpg"), tmp_path / "train.parquet")
    with pytest.raises(
        DataError, match=r"names 'https://example\.com/1\.jpg'\. Nothing is fetched from there: download"
    ):
        load_base(str(tmp_path))


@pytest.mark.parametrize("column", ["image", "audio", "sample"])
def test_datasets_of_the_hub_are_refused(
    column: str, secret: Path, tmp_path: Path, loopback_hub: Any, tiny_teacher: Teacher
) -> None:
    path = parquet_of(naming(column, secret), tmp_path / "base" / "train.parquet")
    hub = HfApi()
    hub.create_repo("org/base", repo_type="dataset")
    hub.upload_file(path_or_fileobj=str(path), path_in_repo="train.parquet", repo_id="org/base", repo_type="dataset")
    with pytest.raises(DataError, match=REFUSED.format(column=dotted(column), path=secret)):
        load_base("org/base")
    assert len(load_base("org/base", files_from=[str(secret.parent)])[0]) == 6
    by_branch = load_base("org/base", revision="main", files_from=[str(secret.parent)])[1]
    assert by_branch["revision"] == hub.dataset_info("org/base").sha, "a branch moves"
    # The same dataset, loaded by its user in Python.
    loaded = datasets.load_dataset("org/base", split="train")
    described = describe_base(loaded)
    assert described["id"] == "org/base"
    assert described["revision"] == hub.dataset_info("org/base").sha
    config = ReinforceConfig(str(tmp_path / "plus"), image_column="picture", num_views=1, top_k=1)
    with pytest.raises(DataError, match=REFUSED.format(column=dotted(column), path=secret)):
        reinforce(loaded, tiny_teacher, Augmentation.named("rrc", 24), config)


@pytest.mark.parametrize(
    "words",
    [
        ("reinforce", "--teacher", "timm:test_vit", "--image_column", "picture"),
        ("reinforce", "--teacher", "timm:test_vit", "--image_column", "picture", "--overlay"),
        (
            "train",
            "--student",
            "timm:test_vit",
            "--objective",
            "erm",
            "--augmentation",
            "rrc",
            "--image_column",
            "picture",
        ),
    ],
)
def test_commands_refuse(
    words: tuple[str, ...], secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = parquet_of(naming("audio", secret), tmp_path / "base" / "train.parquet")
    assert command(*words, "--dataset", base, "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert f"row 3 of column `audio` names '{secret}'" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_an_import_refuses(secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = parquet_of(naming("audio", secret), tmp_path / "base" / "train.parquet")
    (tmp_path / "archive").mkdir()
    assert command("import-ml-dr", tmp_path / "archive", "--base", base, "--output_dir", tmp_path / "out") == 2
    assert f"row 3 of column `audio` names '{secret}'" in capsys.readouterr().err


def test_an_evaluation_refuses(secret: Path, tmp_path: Path) -> None:
    base = parquet_of(naming("image", secret), tmp_path / "base" / "train.parquet")
    config = EvaluateConfig([f"timm:test_vit@{secret}"], [f"test={base}:train,image=picture"], str(tmp_path / "out"))
    with pytest.raises(DataError, match=REFUSED.format(column="image", path=secret)):
        run_evaluation(config)


def test_the_base_of_an_overlay_is_refused(
    secret: Path, tmp_path: Path, tiny_teacher: Teacher, tiny_dataset: Any
) -> None:
    config = ReinforceConfig(str(tmp_path / "plus"), num_views=1, top_k=1, overlay=True)
    reinforce(tiny_dataset, tiny_teacher, Augmentation.named("rrc", 24), config)
    cells = tiny_dataset.cast_column("image", datasets.Image(decode=False))["image"]
    cells = [{"bytes": None, "path": str(secret)} if row == 3 else cell for row, cell in enumerate(cells)]
    hostile = datasets.Dataset.from_dict(
        {"image": cells, "label": list(tiny_dataset["label"])}, features=tiny_dataset.features
    )
    base = parquet_of(hostile, tmp_path / "base" / "train.parquet")
    with pytest.raises(DataError, match=REFUSED.format(column="image", path=secret)):
        load_reinforced(tmp_path / "plus", base=str(base))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_reinforced_dataset_names_no_files(
    streaming: bool, secret: Path, tmp_path: Path, tiny_teacher: Teacher
) -> None:
    config = ReinforceConfig(str(tmp_path / "plus"), "c", num_views=1, top_k=1, image_column="picture")
    held = [{"bytes": b"held", "path": "held"}] * 6
    reinforce(rows_with("audio", datasets.Audio(), held), tiny_teacher, Augmentation.named("rrc", 24), config)

    def named(table: pa.Table) -> pa.Table:
        place = table.column_names.index("audio")
        cells = [{"bytes": None, "path": str(secret)}] * len(table)
        return table.set_column(place, table.schema.field(place), pa.array(cells, table.schema.field(place).type))

    for path in (tmp_path / "plus" / "c").glob("*.parquet"):
        rewritten(path, named)
    with pytest.raises(FormatError, match="column `audio` must hold the files themselves, found one in row 0"):
        list(load_reinforced(tmp_path / "plus", streaming=streaming, columns=["audio"]))


# ------------------------------------------------------------------------------------------------------ what is allowed


def image_folder(folder: Path) -> Path:
    for label in ("black", "blue"):
        (folder / label).mkdir(parents=True)
        PIL.Image.new("RGB", (32, 32)).save(folder / label / "1.png")
    return folder


def test_a_folder_of_images_is_its_own(tmp_path: Path) -> None:
    dataset, _ = load_base(str(image_folder(tmp_path / "photos")))
    assert describe_named_files(dataset) == f"2 files that `image` names in {tmp_path / 'photos'}"


def test_links_out_of_the_folder_are_followed_before_they_are_judged(tmp_path: Path, secret: Path) -> None:
    folder = image_folder(tmp_path / "photos")
    PIL.Image.new("RGB", (32, 32)).save(secret, "PNG")
    (folder / "blue" / "2.png").symlink_to(secret)
    leads = rf"row 2 of column `image` names '.*2.png', a link to '{re.escape(os.path.realpath(secret))}'\. Do not use"
    with pytest.raises(DataError, match=leads):
        load_base(str(folder))
    assert len(load_base(str(folder), files_from=[str(secret.parent)])[0]) == 3
    through = naming("audio", tmp_path / "linked" / "1.png")
    (tmp_path / "linked").symlink_to(folder / "blue")
    check_own_files(through, "photos", folder=folder)
    (tmp_path / "linked").unlink()
    (tmp_path / "linked").symlink_to(secret.parent)
    with pytest.raises(DataError, match=r"row 3 of column `audio` names '.*linked/1.png'"):
        check_own_files(through, "photos", folder=folder)


@pytest.mark.parametrize(
    "path",
    [
        "https://example.invalid/a.png",
        "hf://datasets/you/private/token",
        "file://{secret}",
        "zip://token::{secret}",
        "{base}/../home/token",
        "simplecache::file://{secret}",
        "file://{secret}::{base}/train.parquet",
        "zip://a::zip://b::{secret}",
        "../home/token",
        "",
    ],
)
def test_addresses_and_detours_are_refused(path: str, secret: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    written = path.format(secret=secret, base=base)
    parquet_of(naming("audio", written), base / "train.parquet")
    with pytest.raises(DataError, match="row 3 of column `audio` names"):
        load_base(str(base))


@pytest.mark.parametrize("path", ["@main/data/a..b.jpg", "/data/..a.jpg", "/a.../b", "@refs%2Fpr%2F1/a..b/c"])
def test_dots_in_the_name_of_a_file_at_the_hub_lead_nowhere(path: str) -> None:
    check_own_files(naming("audio", f"hf://datasets/org/photos{path}"), "org/photos", repo_id="org/photos")


@pytest.mark.parametrize("path", ["@main/../../x", "/../../you/private/token", "/a/..", "@../x"])
def test_an_address_that_leaves_the_repository_is_refused(path: str) -> None:
    with pytest.raises(DataError, match="row 3 of column `audio` names"):
        check_own_files(naming("audio", f"hf://datasets/org/photos{path}"), "org/photos", repo_id="org/photos")


def test_an_archive_of_the_folder_is_its_own(tmp_path: Path) -> None:
    base = tmp_path / "base"
    parquet_of(naming("audio", f"zip://a.wav::{base}/files.zip"), base / "train.parquet")
    with zipfile.ZipFile(base / "files.zip", "w") as archive:
        archive.writestr("a.wav", "sound")
    # Not by `load_base`: `datasets` would take the archive for data.
    check_own_files(naming("audio", f"zip://a.wav::{base}/files.zip"), "base", folder=base)


def test_what_datasets_unpacked_from_the_folder_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = image_folder(tmp_path / "photos")
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "train.zip", "w") as archive:
        for path in photos.rglob("*.png"):
            archive.write(path, path.relative_to(photos))
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", str(tmp_path / "extracted"))
    unpacked = DownloadManager(download_config=datasets.DownloadConfig(cache_dir=None)).extract(
        str(tmp_path / "zipped" / "train.zip")
    )
    inside = Path(unpacked) / "blue" / "1.png"
    assert inside.is_relative_to(tmp_path / "extracted"), inside
    check_own_files(naming("audio", inside), "zipped", folder=tmp_path / "zipped")
    with pytest.raises(DataError, match="row 3 of column `audio` names"):
        check_own_files(naming("audio", inside), "photos", folder=photos)


def test_a_dataset_that_was_built_in_python_may_name_files_and_it_is_said_once(
    tmp_path: Path, tiny_teacher: Teacher, caplog: pytest.LogCaptureFixture
) -> None:
    photos = image_folder(tmp_path / "photos")
    paths = sorted(map(str, photos.rglob("*.png")))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    dataset = datasets.Dataset.from_dict({"image": paths, "label": [0, 1]}, features=features)
    with caplog.at_level(logging.WARNING, "hf_dr"):
        reinforce(
            dataset, tiny_teacher, Augmentation.named("rrc", 24), ReinforceConfig(str(tmp_path / "plus"), "c", top_k=1)
        )
    said = [record.getMessage() for record in caplog.records if "Copying" in record.getMessage()]
    expected = (
        f"Copying 2 files that `image` names in {photos} into the dataset. Leave the column out if they are not to be "
    )
    assert said == [expected + "published."]


def test_images_that_are_stored_as_text_name_files_and_as_bytes_none() -> None:
    rows = np.arange(4, 7)
    (found,) = _named(pa.array(["a.png", None, "b.png"]), datasets.Image(), "image", rows)
    assert (found.rows.tolist(), found.paths.to_pylist()) == ([4, 6], ["a.png", "b.png"])
    assert not list(_named(pa.array([b"a", b"b", b"c"]), datasets.Image(), "image", rows))


def test_files_from_must_be_folders(tmp_path: Path, tiny_dataset: datasets.Dataset) -> None:
    tiny_dataset.to_parquet(tmp_path / "a.parquet")
    for name in ("nowhere", ""):
        with pytest.raises(ConfigError, match=rf"`files_from` must name folders, but {name!r} is none. Correct it"):
            load_base(str(tmp_path / "a.parquet"), files_from=[name])


# --------------------------------------------------------------------------------------------------------- skipped rows


@pytest.mark.parametrize("form", ["bytes", "path"])
def test_skipped_rows_hold_no_bytes(
    form: str, secret: Path, tmp_path: Path, tiny_teacher: Teacher, tiny_dataset: Any
) -> None:
    bad = {"bytes": SECRET, "path": None} if form == "bytes" else {"bytes": None, "path": str(secret)}
    cells = tiny_dataset.cast_column("image", datasets.Image(decode=False))["image"]
    cells = [bad if row == 3 else cell for row, cell in enumerate(cells)]
    dataset = datasets.Dataset.from_dict(
        {"image": cells, "label": tiny_dataset["label"]}, features=tiny_dataset.features
    )
    config = ReinforceConfig(str(tmp_path / "plus"), "c", num_views=1, top_k=1, on_bad_image="skip", shard_size=6)
    reinforce(dataset, tiny_teacher, Augmentation.named("rrc", 24), config)
    shards = sorted((tmp_path / "plus" / "c").glob("*.parquet"))
    assert all(SECRET not in shard.read_bytes() for shard in shards)
    column = pa.parquet.read_table(shards[0]).column("image")
    assert [cell.is_valid for cell in column] == [True, True, True, False, True, True]
    plus = load_reinforced(tmp_path / "plus")
    assert len(plus) == 11
    assert plus.provenance.skipped_rows == [3]

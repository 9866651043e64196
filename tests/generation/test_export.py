"""An export can be read by WebDataset, holds what is stored bit for bit, and is made once whatever stops it."""

from __future__ import annotations

import contextlib
import datetime
import gc
import hashlib
import io
import json
import logging
import math
import re
import shutil
import sys
import tarfile
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import filelock
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from conftest import CLASSES, as_cell, colour_image

from hf_dr.cli.main import main
from hf_dr.errors import ConfigError, FormatError
from hf_dr.generation.config import ExportConfig, ReinforceConfig
from hf_dr.generation.export import WebDatasetExport, export
from hf_dr.generation.inspection import inspect
from hf_dr.generation.job import reinforce
from hf_dr.hub.push import push_to_hub
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.features import combine_hashes
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.maker import hash_view

DOCS = Path(__file__).parents[2] / "docs"
ROWS, VIEWS, SHARD = 11, 3, 4
FORMATS = ("JPEG", "PNG", "WEBP")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    """Images of three formats, one that cannot be decoded, and columns that JSON can and cannot hold."""
    rng = np.random.default_rng(0)
    images = [as_cell(colour_image(rng, n % 8), FORMATS[n % 3]) for n in range(ROWS)]
    images[5] = {"bytes": b"no image", "path": None}
    second = colour_image(rng, 1)
    images[6] = as_cell(
        colour_image(rng, 6), "MPO", save_all=True, append_images=[second]
    )  # a phone's JPEG with two pictures
    rows = {
        "image": images,
        "label": [n % 8 for n in range(ROWS)],
        "note": [f"photo {n}, grün" for n in range(ROWS)],
        "objects": [{"bbox": [[0.0, 1.5, math.nan, n]], "kinds": ["cat"]} for n in range(ROWS)],
        "taken": [datetime.datetime(2026, 1, 1)] * ROWS,
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(CLASSES)),
            "note": datasets.Value("string"),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
                "kinds": datasets.LargeList(datasets.Value("string")),
            },
            "taken": datasets.Value("timestamp[s]"),
        }
    )
    return datasets.Dataset.from_dict(rows, features=features, split="train")


@pytest.fixture(scope="module")
def plus(tmp_path_factory: pytest.TempPathFactory, base: datasets.Dataset, tiny_teacher: Any) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "photos-plus"
    config = ReinforceConfig(
        str(folder), num_views=VIEWS, top_k=2, shard_size=SHARD, on_bad_image="skip", signal="topk_image_tail"
    )
    reinforce(base, tiny_teacher, Augmentation.named("randaug_mixing", 40), config)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@contextlib.contextmanager
def closing() -> Iterator[None]:
    """Closes the files that the library `webdataset` leaves open, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def read(folder: Path) -> list[dict[str, Any]]:
    """Returns all examples as WebDataset's users read them; images stay bytes."""
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    with closing():
        return list(webdataset.WebDataset(shards, shardshuffle=False).decode())


@pytest.fixture(scope="module")
def exported(plus: Path) -> Path:
    folder = plus.with_name("photos-wds")
    assert main(["export", str(plus), "--format", "webdataset", "--output_dir", str(folder)]) == 0
    return folder


def test_webdataset_reads_what_is_stored(exported: Path, plus: Path, base: datasets.Dataset) -> None:
    stored = [row for path in sorted(plus.rglob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    samples = read(exported)
    assert [sample["json"]["source_index"] for sample in samples] == [n for n in range(ROWS) if n != 5]
    for sample in samples:
        about = sample.pop("json")
        row = stored[about["source_index"]]
        extension = ("jpg", "png", "webp")[row["source_index"] % 3]
        assert sample[extension] == row["image"]["bytes"]
        assert sample["cls"] == row["label"]
        assert sample["txt"] == about["label_name"] == CLASSES[row["label"]]
        assert about["id"] == sample["__key__"] == f"{row['source_index']:09d}"
        boxes = [[0.0, 1.5, None, row["source_index"]]]  # JSON has no NaN
        assert about["base"] == {"note": row["note"], "objects": {"bbox": boxes, "kinds": ["cat"]}}
        for name, value in row.items():
            if name.startswith("aug_"):
                assert about[name] == value
            elif name.endswith("_hash"):
                assert int(about[name], 16) == value
            elif name.startswith(("teacher_", "tail_")):
                array = sample[f"{name}.npy"]
                assert array.dtype == (np.float16 if name.endswith("logprobs") else np.uint16)
                np.testing.assert_array_equal(array, value)


def test_every_view_is_replayed_from_what_was_exported(exported: Path) -> None:
    """By the lines of docs/format.md, with torchvision and Pillow alone: the hash over the views is the stored one."""
    names: dict[str, Any] = {}
    exec(_code("format.md"), names)
    rows = {}
    for sample in read(exported):
        (image,) = (sample[key] for key in ("jpg", "png", "webp") if key in sample)
        rows[sample["json"]["source_index"]] = {**sample["json"], "image": {"bytes": image}}
    mixed = 0
    for row in rows.values():
        views = [names["view"](row, v, rows.get, size=40) for v in range(VIEWS)]
        hashes = np.array([hash_view(np.asarray(view)) for view in views], np.uint64)
        assert f"{combine_hashes(hashes):016x}" == row["views_hash"], row["id"]
        mixed += max(row["aug_partner"]) >= 0
    assert mixed


def _code(page: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.S)
    return next(block for block in blocks if page == "format.md" or "webdataset" in block)


def test_the_lines_of_the_page_read_it(tmp_path: Path, tiny_teacher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = {"image": [as_cell(colour_image(rng, n), "JPEG") for n in range(6)], "label": list(range(6))}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    photos = datasets.Dataset.from_dict(rows, features=features, split="train")
    config = ReinforceConfig(str(tmp_path / "photos-plus"), num_views=1, top_k=2)
    plus = reinforce(photos, tiny_teacher, "randaug", config)
    monkeypatch.chdir(tmp_path)
    assert main(["export", "photos-plus", "--output_dir", "photos-wds", "--shard_size", "2"]) == 0
    names: dict[str, Any] = {}
    replay = types.ModuleType("replay")  # as which the page has saved the lines of the other one
    monkeypatch.setitem(sys.modules, "replay", replay)
    with closing():
        exec(_code("format.md"), vars(replay))
        exec(_code("publish.md"), names)
    np.testing.assert_array_equal(np.asarray(names["pixels"]), np.asarray(plus.image(5, 0)))
    np.testing.assert_array_equal(names["ids"], plus.teacher_answer(5, 0)[0])
    np.testing.assert_array_equal(names["logprobs"], plus.teacher_answer(5, 0)[1])
    read = datasets.load_dataset("webdataset", data_files=str(tmp_path / "photos-wds/*.tar"), split="train")
    assert len(read) == 6
    assert read[5]["txt"] == CLASSES[5]
    assert json.loads((tmp_path / "photos-wds/sizes.json").read_text()) == {f"train-0000{n}.tar": 2 for n in range(3)}


def test_the_folder_says_what_it_is(exported: Path, plus: Path) -> None:
    files = files_of(exported)
    assert files["reinforcement.json"] == (plus / "randaug_mixing/reinforcement.json").read_bytes()
    assert json.loads(files["sizes.json"]) == {"train-00000.tar": 4, "train-00001.tar": 4, "train-00002.tar": 2}
    written = json.loads(files["export.json"])
    assert written["shards"] == {n: hashlib.sha256(files[n]).hexdigest() for n in files if n.endswith(".tar")}
    assert (
        "10 examples of a local dataset in 3 tar files. Each has V = 3 augmented views" in files["README.md"].decode()
    )
    assert "colours (licence: cc0-1.0)" in files["README.md"].decode()


def test_the_same_dataset_gives_the_same_bytes(
    exported: Path, plus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(exported / "train-00000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}
    with caplog.at_level(logging.INFO, "hf_dr"):
        assert export(plus, tmp_path, shard_size=SHARD) == tmp_path
    assert files_of(tmp_path) == files_of(exported)
    assert f"{tmp_path}: 3 of 3 shards written." in caplog.messages


def test_what_is_finished_is_kept_and_checked(
    exported: Path, plus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = files_of(exported)
    folder = tmp_path / "again"
    shutil.copytree(exported, folder)
    (folder / "train-00000.tar").unlink()
    damaged = bytearray(expected["train-00001.tar"])
    damaged[700] ^= 1
    (folder / "train-00001.tar").write_bytes(damaged)
    (folder / ".train-00000.tar.host-1-aa.tmp").write_bytes(b"left by a killed run")
    kept = (folder / "train-00002.tar").stat().st_mtime_ns
    with caplog.at_level(logging.INFO, "hf_dr"):
        WebDatasetExport(load_reinforced(plus), ExportConfig(str(folder))).run()
    assert files_of(folder) == expected
    assert (folder / "train-00002.tar").stat().st_mtime_ns == kept
    assert "train-00001.tar is not what was written. It is made again." in caplog.text
    assert "2 of 3 shards written, the others were there." in caplog.text
    assert "Not exported, because JSON cannot hold them: the columns taken." in caplog.text


def test_an_export_that_was_stopped_goes_on(
    exported: Path, plus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "stopped"
    command = ["export", str(plus), "--output_dir", str(folder)]
    files = WebDatasetExport._files

    def stop_at(self: WebDatasetExport, slot: int, *rest: Any) -> dict[str, bytes]:
        if slot == 7 and list(self.folder.glob("train-*.tar")):
            raise KeyboardInterrupt
        return files(self, slot, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(WebDatasetExport, "_files", stop_at)
        assert main(command) == 130
    assert "Finished shards are kept; run the same command again to go on." in caplog.text
    assert [path.name for path in sorted(folder.glob("*.tar"))] == ["train-00000.tar"]
    assert not list(folder.glob(".*.tmp"))
    first = (folder / "train-00000.tar").stat().st_mtime_ns
    assert main(command) == 0
    assert files_of(folder) == files_of(exported)
    assert (folder / "train-00000.tar").stat().st_mtime_ns == first


def test_a_dry_run_writes_nothing(exported: Path, plus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "nothing"
    assert main(["export", str(plus), "--output_dir", str(folder), "--dry_run"]) == 0
    told = capsys.readouterr().out
    assert not folder.exists()
    assert "10, each with 3 views" in told
    assert "3 of 4 examples" in told
    (found,) = re.findall(r"bytes\s+([\d.]+) kB", told)
    written = sum(len(content) for name, content in files_of(exported).items() if name.endswith(".tar"))
    assert float(found) * 1000 == pytest.approx(written, abs=3 * 11_000)  # tar files end with up to 10 kB of nothing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--shard_size", "3"], "but its `shard_size` is 4, not 3. Choose another `output_dir`"),
        (["--shard_size", "0"], "`shard_size` must be a whole number of at least 1, got 0"),
        (["--format", "tfrecord"], "invalid choice: 'tfrecord'"),
        (["--base", "."], "`output_dir` must not lie in a folder that is read"),
    ],
)
def test_refused_settings(
    exported: Path,
    plus: Path,
    changes: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(exported.parent)
    try:
        status = main(["export", str(plus), "--output_dir", str(exported), *changes])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_refused_folders(exported: Path, plus: Path, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`output_dir` must not lie in a folder that is read"):
        export(plus, plus)
    opened: Any = load_reinforced(plus)
    with pytest.raises(
        ConfigError, match=r"must be the folder or Hub id of a \"\+\" dataset, got ReinforcedDataset\. Name"
    ):
        export(opened, tmp_path)
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").touch()
    with pytest.raises(
        ConfigError, match=r"must be new, empty, or hold an export with its export.json, found notes.txt"
    ):
        export(plus, full)
    with pytest.raises(ValueError, match="but its `fingerprint` is"):
        export(tiny_folder, exported)
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must have the field `fingerprint`, found none. Delete the folder"):
        export(plus, tmp_path)


def test_a_folder_in_use_is_refused(plus: Path, tmp_path: Path) -> None:
    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(ConfigError, match="another export is writing to it"):
        export(plus, tmp_path)


def test_a_configuration_that_is_named_by_its_folder_is_not_exported_into_its_dataset(
    plus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["export", str(plus / "randaug_mixing"), "--output_dir", str(plus / "webdataset")]) == 2
    assert "`output_dir` must not lie in a folder that is read" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="`output_dir` must not lie in a folder that is read"):
        export(plus / "randaug_mixing", plus / "webdataset")
    with pytest.raises(ConfigError, match="`output_dir` must not lie in a folder that is read"):
        export(plus, tmp_path / "base" / "tar", base=tmp_path)
    assert not (plus / "webdataset").exists()
    assert not (tmp_path / "base").exists()
    alone = tmp_path / "alone"
    shutil.copytree(plus / "randaug_mixing", alone / "randaug_mixing")
    assert main(["export", str(alone / "randaug_mixing"), "--output_dir", str(alone / "webdataset")]) == 0


def test_numbers_that_json_does_not_have_are_null(base: datasets.Dataset, tiny_teacher: Any, tmp_path: Path) -> None:
    rows = base.select([0, 1, 2]).add_column("score", [0.5, math.nan, math.inf])
    reinforce(rows, tiny_teacher, Augmentation.named("rrc", 8), ReinforceConfig(str(tmp_path / "plus"), top_k=2))
    export(tmp_path / "plus", tmp_path / "out")
    texts = []
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as tar:
            texts += [tar.extractfile(name).read().decode() for name in tar.getnames() if name.endswith(".json")]
    assert ["NaN" in text or "Infinity" in text for text in texts] == [False] * 3
    assert [json.loads(text)["base"]["score"] for text in texts] == [0.5, None, None]


def test_too_little_space_is_known_before(plus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing = WebDatasetExport(load_reinforced(plus), ExportConfig(str(tmp_path / "out")))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1000))
    for call in (writing.estimate, writing.run):
        with pytest.raises(ConfigError, match=r"`output_dir` needs about .* kB, found 1e\+03 B free|found 1 kB free"):
            call()
    assert not list((tmp_path / "out").glob("*.tar"))


def test_an_overlay_needs_its_base_and_the_images_that_were_reinforced(
    base: datasets.Dataset, tiny_teacher: Any, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    overlay = tmp_path / "overlay"
    config = ReinforceConfig(
        str(overlay),
        num_views=VIEWS,
        top_k=2,
        shard_size=SHARD,
        on_bad_image="skip",
        signal="topk_image_tail",
        overlay=True,
    )
    reinforce(base, tiny_teacher, Augmentation.named("randaug_mixing", 40), config)
    assert main(["export", str(overlay), "--output_dir", str(tmp_path / "out")]) == 2
    assert "`base`" in capsys.readouterr().err
    WebDatasetExport(load_reinforced(overlay, base=base), ExportConfig(str(tmp_path / "out"))).run()
    assert (tmp_path / "out/train-00002.tar").read_bytes() == (exported / "train-00002.tar").read_bytes()


def test_a_damaged_shard_is_not_exported(plus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(plus, copy)
    shard = copy / "randaug_mixing/train-00001-of-00003.parquet"
    table = pq.read_table(shard)
    metadata = pq.read_metadata(shard).metadata[b"hf_dr"]
    with pq.ParquetWriter(shard, table.schema) as writer:
        writer.write_table(table.take([1, 0, 2, 3]).set_column(0, table.schema.field("image"), table.column("image")))
        writer.add_key_value_metadata({"hf_dr": metadata})
    assert main(["export", str(copy), "--output_dir", str(tmp_path / "out")]) == 2
    assert "train-00001-of-00003.parquet" in capsys.readouterr().err


def test_from_the_hub(loopback_hub: Any, plus: Path, exported: Path, tmp_path: Path) -> None:
    push_to_hub(plus, "me/photos-plus")
    assert main(["export", "me/photos-plus", "--output_dir", str(tmp_path / "out")]) == 0
    assert files_of(tmp_path / "out") == files_of(exported)


def test_images_of_a_base_that_names_files(photos: Path, tiny_teacher: Any, tmp_path: Path) -> None:
    """Their bytes are those of the files."""
    base = datasets.load_dataset(str(photos), split="train").cast_column("label", datasets.Value("int64"))
    config = ReinforceConfig(str(tmp_path / "p"), num_views=1, top_k=2, overlay=True)
    reinforce(base, tiny_teacher, Augmentation.named("rrc", 24), config)
    WebDatasetExport(load_reinforced(tmp_path / "p", base=base), ExportConfig(str(tmp_path / "out"))).run()
    assert sorted(sample["png"] for sample in read(tmp_path / "out")) == sorted(
        path.read_bytes() for path in photos.rglob("*.png")
    )


def test_an_array_is_no_pickle(exported: Path) -> None:
    with tarfile.open(exported / "train-00000.tar") as tar:
        for member in tar:
            if member.name.endswith(".npy"):
                content = tar.extractfile(member)
                assert content is not None
                np.load(io.BytesIO(content.read()), allow_pickle=False)


def test_an_export_is_not_opened_as_a_reinforced_dataset(exported: Path, plus: Path, tmp_path: Path) -> None:
    said = (
        r"found the tar files of `hf-dr export` in .*wds\. Name the \"\+\" dataset of which .* `webdataset` reads them"
    )
    wds = tmp_path / "plus" / "wds"
    shutil.copytree(exported, wds)
    for refused in (
        lambda: load_reinforced(wds),
        lambda: load_reinforced(wds, "randaug_mixing"),
        lambda: load_reinforced(wds, streaming=True),
        lambda: inspect(wds),
        lambda: push_to_hub(wds, "me/plus", dry_run=True),
    ):
        with pytest.raises(FormatError, match=said):
            refused()
    with pytest.raises(FormatError, match=r"but no folder in it has a reinforcement\.json"):
        load_reinforced(wds.parent)
    shutil.copytree(plus / "randaug_mixing", wds.parent / "randaug_mixing")
    assert len(load_reinforced(wds.parent)) == ROWS - 1, "the folder of an export is none of its configurations"

"""The run: the same bytes however it is done, nothing lost when it is stopped, and clear refusals."""

import dataclasses
import hashlib
import importlib
import io
import json
import logging
import math
import multiprocessing
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import children
import datasets
import filelock
import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import timm
import torch
from conftest import as_cell
from safetensors.torch import save_file
from samples import shift_labels

from hf_dr.cli.main import main
from hf_dr.errors import ConfigError, DataError, FingerprintMismatchError, FormatError, HfDrError, TeacherError
from hf_dr.generation import folder as folder_of_runs
from hf_dr.generation.config import ExtendConfig, ReinforceConfig
from hf_dr.generation.extend import extend
from hf_dr.generation.folder import Part, RunFolder
from hf_dr.generation.job import Job, reinforce, reinforce_job
from hf_dr.generation.plan import plan_run
from hf_dr.generation.verify import verify
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.store import shards
from hf_dr.store.base_dataset import load_base
from hf_dr.store.features import combine_hashes
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import KEEP, PROVENANCE_FILE
from hf_dr.teacher.ensemble import Teacher
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.maker import hash_view
from hf_dr.views.ops.geometry import (
    CenterCrop,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
)
from hf_dr.views.ops.mixing import CutMix, MixUp

# `hf_dr.reinforce` is the function; this is the module behind it.
module = importlib.import_module("hf_dr.generation.job")
REPOSITORY = Path(__file__).parents[2]
MIXING = Augmentation([RandomResizedCrop(16), RandomHorizontalFlip(), MixUp(), CutMix()])


def files_of(folder: Path) -> dict[str, str]:
    """Hash of every shard below a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.parquet"))}


FASHION = REPOSITORY / "hf_dr" / "assets"
EMBEDDED = [str(FASHION / "teachers" / f"fashion_mnist_{member}") for member in "ab"]


def test_names_stand_for_teacher_and_augmentation(tmp_path, caplog):
    """Also the result is what a trainer takes."""
    images, _ = load_base(str(FASHION / "fashion_mnist"), split="train")
    images = images.select(range(6))
    ops = [RandomResizedCrop(28), RandomHorizontalFlip()]
    caplog.set_level(logging.INFO, "hf_dr")
    config = ReinforceConfig(str(tmp_path / "names"), "a", num_views=2, top_k=3, num_workers=0)
    named = reinforce(images, EMBEDDED[0], ops, config)
    assert "The teacher (fashion_mnist_a) computes on cpu." in [record.getMessage() for record in caplog.records]
    assert isinstance(named, ReinforcedDataset)
    assert named[0, 1]["pixel_values"].shape == (3, 28, 28)
    assert len(named) == len(named.plus) == 6
    written = [{"RandomResizedCrop": {"size": 28}}, "RandomHorizontalFlip"]
    for name, teacher, augmentation in [
        ("yaml", (EMBEDDED[0],), written),
        ("ops", Teacher.from_pretrained(EMBEDDED[0]), tuple(ops)),
    ]:
        again = reinforce(images, teacher, augmentation, dataclasses.replace(config, output_dir=str(tmp_path / name)))
        assert again.provenance.fingerprint == named.provenance.fingerprint
    both = reinforce(
        images, EMBEDDED, "rrc", dataclasses.replace(config, output_dir=str(tmp_path / "both"), config_name=None)
    )
    assert both.provenance.config_name == "rrc"
    assert both.size == (224, 224)
    assert [member["id"] for member in both.provenance.teacher["members"]] == ["fashion_mnist_a", "fashion_mnist_b"]


def test_what_is_no_name(tmp_path, tiny_dataset, tiny_teacher):
    config = ReinforceConfig(str(tmp_path))
    with pytest.raises(ConfigError, match=r"no augmentation is called `randaugment`\. Did you mean `randaug`\?"):
        reinforce(tiny_dataset, tiny_teacher, "randaugment", config)
    with pytest.raises(ConfigError, match=r"no op is called `Flip`\. "):
        reinforce(tiny_dataset, tiny_teacher, [RandomResizedCrop(16), "Flip"], config)
    # Before a teacher is loaded, which may take minutes, the dataset is looked at.
    with pytest.raises(DataError, match="image"):
        reinforce(tiny_dataset.remove_columns("image"), "org/nowhere", "rrc", config)


def test_an_overlay_is_returned_with_its_images(tmp_path, tiny_dataset, tiny_teacher, tiny_plus):
    config = ReinforceConfig(str(tmp_path), num_views=2, top_k=2, num_workers=0, overlay=True, max_examples=7)
    plus = reinforce(tiny_dataset, tiny_teacher, Augmentation([Resize((8, 8))]), config)
    assert "image" not in plus.plus.column_names
    assert [plus[row]["labels"] for row in range(len(plus))] == tiny_dataset["label"][:7]


def run(
    folder: Path, dataset: datasets.Dataset, teacher: Teacher, augmentation: Augmentation = MIXING, **settings
) -> dict[str, str]:
    settings = {"num_views": 3, "top_k": 2, "shard_size": 5, "num_workers": 0, **settings}
    reinforce(dataset, teacher, augmentation, ReinforceConfig(output_dir=str(folder), **settings))
    return files_of(folder)


@pytest.fixture
def job(tmp_path, tiny_dataset, tiny_teacher) -> Job:
    """A run of three shards that is still to begin, into the configuration `a` of the test's folder."""
    config = ReinforceConfig(str(tmp_path), "a", num_views=3, top_k=2, shard_size=5, num_workers=0)
    return reinforce_job(tiny_dataset, tiny_teacher, MIXING, config)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: datasets.Dataset) -> tuple[Path, Path]:
    """A teacher and a dataset as the command line names them."""
    folder = tmp_path_factory.mktemp("named")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=tiny_dataset.features["label"].num_classes)
    save_file(model.state_dict(), folder / "teacher.safetensors")
    tiny_dataset.to_parquet(folder / "base.parquet")
    return folder / "teacher.safetensors", folder / "base.parquet"


def words(checkpoint: tuple[Path, Path], output: Path, *more: str) -> list[str]:
    """A command of hf-dr."""
    weights, base = checkpoint
    return [
        *("reinforce", "--dataset", str(base), "--teacher", f"timm:test_resnet@{weights}", "--output_dir", str(output)),
        *("--augmentation", "randaug_mixing", "--size", "24", "--num_views", "4", "--top_k", "3", "--shard_size", "3"),
        *more,
    ]


@pytest.mark.parametrize("settings", [{"batch_size": 7}, {"num_workers": 2}, {"batch_size": 500, "num_workers": 1}])
def test_columns_do_not_depend_on_batches_or_workers(tmp_path, tiny_dataset, checkpoint, settings):
    teacher = Teacher.from_pretrained(f"timm:test_resnet@{checkpoint[0]}")
    assert run(tmp_path / "a", tiny_dataset, teacher) == run(tmp_path / "b", tiny_dataset, teacher, **settings)


class OnAnotherDevice:
    """A teacher that seems to live on an accelerator, so that worker processes make its batches."""

    def __init__(self, teacher: Teacher) -> None:
        self.device = SimpleNamespace(type="accelerator")
        self._teacher = teacher

    def __getattr__(self, name):
        return getattr(self._teacher, name)

    def __call__(self, views_BCHW):
        count = len(views_BCHW)  # a CPU's kernels want the same number always
        return self._teacher(torch.cat([views_BCHW, views_BCHW.new_zeros(16 - count, *views_BCHW.shape[1:])]))[:count]


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_make_the_batches_of_an_accelerator(tmp_path, tiny_dataset, checkpoint, workers):
    teacher = Teacher.from_pretrained(f"timm:test_resnet@{checkpoint[0]}")
    expected = run(tmp_path / "a", tiny_dataset, teacher)
    assert run(tmp_path / "b", tiny_dataset, OnAnotherDevice(teacher), batch_size=16, num_workers=workers) == expected


def test_seed_changes_the_columns(tmp_path, tiny_dataset, tiny_teacher):
    assert run(tmp_path / "a", tiny_dataset, tiny_teacher) != run(tmp_path / "b", tiny_dataset, tiny_teacher, seed=1)


def test_two_processes_write_what_one_does(tmp_path, checkpoint):
    assert main(words(checkpoint, tmp_path / "one")) == 0
    log = tmp_path / "log"
    assert "in 2 process(es)" in children.run(main, words(checkpoint, tmp_path / "two"), two=True, log=log)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    first, second = ((tmp_path / n / "randaug_mixing" / PROVENANCE_FILE).read_text() for n in ("one", "two"))
    assert first == second


def test_killed_and_restarted_equals_uninterrupted_and_repeats_no_shard(tmp_path, checkpoint):
    assert main(words(checkpoint, tmp_path / "whole")) == 0
    expected = files_of(tmp_path / "whole")
    folder = tmp_path / "killed"
    seen: dict[Path, float] = {}
    for kills in range(1, 4):
        child = children.start(main, words(checkpoint, folder, "--num_workers", "1"), log=tmp_path / "log")
        deadline = time.monotonic() + 60
        while len(list(folder.rglob("*.parquet"))) < kills and child.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        child.send(signal.SIGKILL)
        child.wait()
        for path, written in seen.items():
            assert path.stat().st_mtime_ns == written, "a finished shard was made again"
        seen = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert main(words(checkpoint, folder)) == 0
    assert files_of(folder) == expected
    assert all(path.stat().st_mtime_ns == written for path, written in seen.items())
    assert not list(folder.rglob("*.tmp"))


def test_parts_are_disjoint_and_together_all_whatever_is_there():
    for count in (1, 2, 3, 5):
        shards = [shard for index in range(count) for shard in Part(index, count).of(7)]
        assert sorted(shards) == list(range(7))


@pytest.mark.parametrize("text", ["2/2", "0/0", "-1/2", "1", "1/2/3", "a/b", ""])
def test_a_part_that_is_none(text):
    with pytest.raises(ConfigError, match=rf"`part` must be from 0/N to N-1/N for N parts, got {text!r}. The first of"):
        Part.parse(text)
    assert Part.parse("3/4") == Part(3, 4)


def test_independent_launches_share_a_folder_and_the_last_completes_it(tmp_path, tiny_dataset, tiny_teacher, caplog):
    expected = run(tmp_path / "whole", tiny_dataset, tiny_teacher)
    config = ReinforceConfig(str(tmp_path / "parts"), num_views=3, top_k=2, shard_size=5, num_workers=0)
    with caplog.at_level(logging.INFO, "hf_dr"):
        reinforce_job(tiny_dataset, tiny_teacher, MIXING, config).run(Part(1, 2))
    assert "This part is done" in caplog.text
    assert "Still to come: 2 of 3 shards, from part 0 of 2. If one of these was killed, run it again, or" in caplog.text
    assert not (tmp_path / "parts" / "README.md").exists()
    reinforce_job(tiny_dataset, tiny_teacher, MIXING, config).run(Part(0, 2))
    assert files_of(tmp_path / "parts") == expected
    first, second = (next((tmp_path / name).rglob(PROVENANCE_FILE)).read_text() for name in ("whole", "parts"))
    assert first == second
    assert (tmp_path / "parts" / "README.md").read_text().replace("parts", "whole") == (
        tmp_path / "whole" / "README.md"
    ).read_text()


def test_parts_of_one_number_run_at_once_and_no_others(job, monkeypatch):
    job.folder.mkdir()
    with Part(0, 2).lock(job.folder):
        (job.folder / f".{job.provenance.shard_names[0]}.host-1-a.tmp").touch()  # being written: it stays
        (job.folder / f".{job.provenance.shard_names[1]}.host-1-a.tmp").touch()
        job.run(Part(1, 2))
        assert [path.name[: -len(".host-1-a.tmp")] for path in job.folder.glob(".*.tmp")] == [
            f".{job.provenance.shard_names[0]}"
        ]
        for part in (Part(), Part(0, 2), Part(0, 3), Part(2, 3)):
            with pytest.raises(
                ConfigError, match=r"another run is writing to it \(\.lock-0-of-2\)\. .*parts of one number"
            ):
                job.run(part)
    job.run()
    assert not list(job.folder.glob(".*.tmp"))
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with (
        Part().lock(job.folder),
        pytest.raises(ConfigError, match=r'must do its work below `if __name__ == "__main__":`, but a worker'),
    ):
        job.run()
    monkeypatch.undo()
    with Part().lock(job.folder), pytest.raises(ConfigError, match=r"another run is writing to it \(\.lock\)"):
        job.run(Part(1, 2))


def test_a_part_looks_at_its_own_shards(job, tmp_path, tiny_dataset, tiny_teacher, caplog):
    """Those of other parts are neither read nor said to be made again, which their own parts do."""
    expected = run(tmp_path, tiny_dataset, tiny_teacher, config_name="a")
    damaged = job.folder / job.provenance.shard_names[0]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    job.run(Part(1, 2))
    assert "It is made again" not in caplog.text
    job.run(Part(0, 2))
    assert re.search(rf"{damaged} must .* It is made again", caplog.text)
    assert files_of(tmp_path) == expected


def test_the_last_part_completes_no_dataset_with_a_broken_shard(job, tmp_path):
    job.run(Part(0, 2))
    shard = job.folder / job.provenance.shard_names[0]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(FormatError, match=f"{shard} must be a shard"):
        job.run(Part(1, 2))
    assert not (tmp_path / "README.md").exists()


def test_a_rank_that_outlives_rank_0_keeps_the_folder(job):
    job.folder.mkdir()
    with (
        Part().lock(job.folder, rank=1),
        pytest.raises(ConfigError, match=r"another run is writing to it \(\.lock-rank-1\)"),
    ):
        job.run()
    with Part(0, 2).lock(job.folder, rank=1):
        job.run(Part(1, 2))
        with pytest.raises(ConfigError, match=r"another run is writing to it \(\.lock-0-of-2-rank-1\)"):
            job.run(Part(0, 2))
    job.run()


def test_the_bar_of_rank_0_follows_the_shards_of_others(tmp_path, tiny_folder, monkeypatch):
    bar = SimpleNamespace(disable=False, n=0, close=Mock(), set_postfix_str=Mock())
    bar.update = lambda views: setattr(bar, "n", bar.n + views)
    monkeypatch.setattr(folder_of_runs, "progress_bar", lambda **_: bar)
    monkeypatch.setattr(folder_of_runs.RunProgress, "LOOK_EVERY", -1.0)
    provenance, rank_0 = Provenance.read(tiny_folder / "all_ops"), SimpleNamespace(is_main_process=True)
    rows = [len(provenance.shard_range(shard)) for shard in range(3)]
    with folder_of_runs.RunProgress(RunFolder(tmp_path, provenance), Part(), [0, 1, 2], [0], rank_0) as progress:
        for made, name in ((3, provenance.shard_names[1]), (2, provenance.shard_names[2])):
            list(progress.counted([range(made * provenance.num_views)]))
            shutil.copy(tiny_folder / "all_ops" / name, tmp_path)
        assert bar.n == (5 + rows[1]) * provenance.num_views, "what is there since the last look is not counted yet"
    assert bar.n == sum(rows) * provenance.num_views


def test_another_kind_of_processor_is_said_once(job, monkeypatch, caplog):
    for number, (processor, said) in enumerate([("one", 0), ("one", 0), ("other", 1), ("other", 1), ("one", 1)]):
        monkeypatch.setattr(module, "describe_processor", lambda device, name=processor: name)
        job.run()
        message = (
            "This run was begun on one and goes on on other: parameters and views are the same, but answers may differ"
        )
        assert caplog.text.count(message) == said, number
        assert caplog.text.count("goes on on") == said
        (job.folder / job.provenance.shard_names[0]).unlink()


def test_a_node_that_is_killed_loses_its_own_shards_only(tmp_path, checkpoint):
    assert main(words(checkpoint, tmp_path / "whole")) == 0
    folder = tmp_path / "nodes"
    parts = [words(checkpoint, folder, "--num_workers", "0", "--part", f"{n}/2") for n in (0, 1)]
    nodes = [children.start(main, part, log=tmp_path / "log") for part in parts]
    deadline = time.monotonic() + 120
    while not list(folder.rglob(".*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.001)
    nodes[0].send(signal.SIGKILL)
    assert nodes[0].wait() == -signal.SIGKILL
    assert nodes[1].wait() == 0
    expected, left = files_of(tmp_path / "whole"), files_of(folder)
    assert {name for name in expected if int(name.split("-")[1]) % 2} <= left.keys() < expected.keys()
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert main(words(checkpoint, folder)) == 0
    assert files_of(folder) == expected
    assert all(path.stat().st_mtime_ns == at for path, at in written.items())
    assert not list(folder.rglob(".*.tmp"))


def test_ctrl_c_keeps_finished_shards_and_says_how_to_go_on(tmp_path, checkpoint):
    child = children.start(main, words(checkpoint, tmp_path / "plus", "--num_views", "512"), log=tmp_path / "log")
    while not list(tmp_path.rglob("*.parquet")) and child.process.is_alive():
        time.sleep(0.01)
    child.send(signal.SIGINT)
    assert child.wait(60) == 130
    assert "run the same command again" in child.text
    assert "Traceback" not in child.text
    assert list(tmp_path.rglob("*.parquet"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_run_that_is_stopped_as_it_begins_leaves_the_folder_free(job, monkeypatch):
    """Also while its traceback is kept, as by a notebook."""
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "note_processor", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt) as kept:
            job.run()
    job.run()
    assert kept.tb is not None


def test_nothing_is_done_twice(tmp_path, tiny_dataset, tiny_teacher, caplog):
    before = run(tmp_path, tiny_dataset, tiny_teacher)
    with caplog.at_level(logging.INFO, "hf_dr"):
        assert run(tmp_path, tiny_dataset, tiny_teacher) == before
    assert "nothing to do" in caplog.text


def test_load_dataset_opens_it_without_this_package(tmp_path, tiny_dataset, tiny_teacher):
    run(tmp_path / "plus", tiny_dataset, tiny_teacher, config_name="mixing")
    code = (
        "import sys; sys.modules['hf_dr'] = None\n"
        "import datasets, json\n"
        f"d = datasets.load_dataset({str(tmp_path / 'plus')!r}, 'mixing', split='train')\n"
        "row = d[0]\n"
        "print(json.dumps([d.num_rows, str(d.features['teacher_ids']), str(d.features['teacher_logprobs']),"
        " str(d.features['aug_crop_box']), str(d.features['image']), row['image'].mode, row['source_index']]))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert json.loads(out.splitlines()[-1]) == [
        len(tiny_dataset),
        "List(List(Value('uint16'), length=2), length=3)",
        "List(List(Value('float16'), length=2), length=3)",
        "List(List(Value('uint16'), length=4), length=3)",
        "Image(mode=None, decode=True)",
        "RGB",
        0,
    ]


def test_the_base_columns_come_along_unchanged(tmp_path, tiny_dataset, tiny_teacher):
    run(tmp_path / "plus", tiny_dataset, tiny_teacher, config_name="a")
    plus = datasets.load_dataset(str(tmp_path / "plus"), "a", split="train")
    for name in tiny_dataset.column_names:
        assert plus.features[name] == tiny_dataset.features[name]
    undecoded = datasets.Image(decode=False)
    assert [r["bytes"] for r in plus.cast_column("image", undecoded)["image"]] == [
        r["bytes"] for r in tiny_dataset.cast_column("image", undecoded)["image"]
    ]
    assert list(plus["label"]) == list(tiny_dataset["label"])


def test_large_images_are_divided_into_row_groups(tmp_path, tiny_dataset, tiny_teacher, monkeypatch):
    run(tmp_path, tiny_dataset, tiny_teacher, config_name="whole")
    monkeypatch.setattr(shards, "_ROWS_AT_ONCE", 2)
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 1)
    run(tmp_path, tiny_dataset, tiny_teacher, config_name="divided")
    whole, divided = (sorted((tmp_path / name).glob("*.parquet")) for name in ("whole", "divided"))
    for one, two in zip(whole, divided, strict=True):
        rows = pq.read_metadata(one).num_rows
        assert pq.read_metadata(two).num_row_groups == math.ceil(rows / 2)
        assert pq.read_table(two).equals(pq.read_table(one))
        shards.check_digests(two)


def test_an_overlay_has_no_other_files_either(tmp_path, tiny_dataset, tiny_teacher, caplog):
    undecoded = tiny_dataset.cast_column("image", datasets.Image(decode=False))
    pictures = undecoded["image"][:]
    base = tiny_dataset
    for name, cells, feature in (
        ("thumbnail", pictures, datasets.Image()),
        ("details", [[one] for one in pictures], datasets.List(datasets.Image())),
        (
            "more",
            [{"scan": one, "page": 3} for one in pictures],
            {"scan": datasets.Image(), "page": datasets.Value("int8")},
        ),
    ):
        base = base.add_column(name, cells, feature=feature)
    caplog.set_level("INFO", "hf_dr")
    run(tmp_path, base, tiny_teacher, overlay=True, config_name="overlay", image_column="image")
    assert "Left out of the overlay, because they hold files too: thumbnail, details, more." in caplog.text
    plus = datasets.load_dataset(str(tmp_path), "overlay", split="train")
    assert not {"image", "thumbnail", "details", "more"} & set(plus.column_names)
    assert "label" in plus.column_names


def test_two_configs_live_in_one_folder(tmp_path, tiny_dataset, tiny_teacher):
    run(tmp_path, tiny_dataset, tiny_teacher, config_name="a")
    (tmp_path / "README.md").write_text((tmp_path / "README.md").read_text() + "\nWritten by a person.\n")
    run(tmp_path, tiny_dataset, tiny_teacher, config_name="b", num_views=2)
    assert len(datasets.load_dataset(str(tmp_path), "a", split="train")[0]["teacher_ids"]) == 3
    assert len(datasets.load_dataset(str(tmp_path), "b", split="train")[0]["teacher_ids"]) == 2
    assert "Written by a person." in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("stranger", ["cat.jpg", "cats/1.jpg", "a/1.jpg", "a/train.parquet"])
def test_a_folder_of_other_files_is_refused_and_left_as_it_is(job, tmp_path, stranger):
    (tmp_path / stranger).parent.mkdir(exist_ok=True)
    (tmp_path / stranger).touch()
    before = sorted(tmp_path.rglob("*"))
    found = stranger.partition("/")[2] if stranger.startswith("a/") else stranger.partition("/")[0]
    for make in (job.run, job.estimate):
        with pytest.raises(
            ConfigError, match=rf'the folder of a "\+" dataset, found {found} in .*, where none was begun\. Choose'
        ):
            make()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_with_what_a_new_repository_has_or_notes_is_taken(tmp_path, tiny_dataset, tiny_teacher):
    for name in ("README.md", ".gitattributes", ".DS_Store", "LICENSE", "reinforce.log", "reinforce.yaml"):
        (tmp_path / name).touch()
    for name in (".git", "a", "of_another_run_that_just_began"):
        (tmp_path / name).mkdir()
    run(tmp_path, tiny_dataset, tiny_teacher, config_name="a")
    (tmp_path / "sheet.png").touch()  # what is put next to a "+" dataset later is its own
    run(tmp_path, tiny_dataset, tiny_teacher, config_name="b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "1.jpg").touch()
    with pytest.raises(ConfigError, match=r"found 1\.jpg in .*c, where none was begun"):
        run(tmp_path, tiny_dataset, tiny_teacher, config_name="c")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_views": 4}, "num_views: 3 there, 4 here"),
        ({"top_k": 1}, "top_k: 2 there, 1 here"),
        ({"seed": 9}, "seed: 0 there, 9 here"),
        ({"shard_size": 4}, "shard_size: 5 there, 4 here"),
        ({"overlay": True}, "overlay: False there, True here"),
        ({"max_examples": 6}, "num_rows: .* there, 6 here"),
        ({"mixing_scope": "shard"}, "mixing_scope: dataset there, shard here"),
    ],
)
def test_another_configuration_is_refused_by_name(tmp_path, tiny_dataset, tiny_teacher, change, expected):
    run(tmp_path, tiny_dataset, tiny_teacher, config_name="a")
    before = files_of(tmp_path)
    with pytest.raises(FingerprintMismatchError, match=f"begun with other settings[\\s\\S]*{expected}"):
        run(tmp_path, tiny_dataset, tiny_teacher, config_name="a", **change)
    assert files_of(tmp_path) == before


def test_a_refused_run_leaves_no_lock(tmp_path, tiny_dataset, tiny_teacher):
    run(tmp_path, tiny_dataset, tiny_teacher, config_name="a")
    config = ReinforceConfig(str(tmp_path), "a", num_views=5, top_k=2, shard_size=5, num_workers=0)
    job = reinforce_job(tiny_dataset, tiny_teacher, MIXING, config)
    for _ in range(2):  # not told that it is in use by the first
        with pytest.raises(FingerprintMismatchError, match="begun with other settings"):
            job.run()


def test_another_augmentation_is_refused_by_setting(tmp_path, tiny_dataset, tiny_teacher):
    run(tmp_path, tiny_dataset, tiny_teacher, config_name="a")
    other = Augmentation([RandomResizedCrop(16), RandomHorizontalFlip(p=0.25), MixUp(), CutMix()])
    with pytest.raises(
        FingerprintMismatchError, match=r"augmentation\.1\.RandomHorizontalFlip\.p: 0\.5 there, 0\.25 here"
    ):
        run(tmp_path, tiny_dataset, tiny_teacher, other, config_name="a")


def test_partners_of_the_shard_scope_stay_in_their_shard(tmp_path, tiny_dataset, tiny_teacher):
    run(tmp_path, tiny_dataset, tiny_teacher, config_name="a", mixing_scope="shard", num_views=8)
    plus = datasets.load_dataset(str(tmp_path), "a", split="train")
    pairs = [(row, p) for row in range(len(plus)) for p in plus[row]["aug_partner"] if p >= 0]
    assert pairs
    assert all(row // 5 == partner // 5 and row != partner for row, partner in pairs)


def with_bad_row(dataset: datasets.Dataset, row: int, data: bytes) -> datasets.Dataset:
    rows = dataset.cast_column("image", datasets.Image(decode=False)).to_list()
    rows[row]["image"] = {"bytes": data, "path": "broken.png"}
    return datasets.Dataset.from_list(rows, features=dataset.features)


def test_an_undecodable_image_stops_the_run_with_row_and_file(tmp_path, tiny_dataset, tiny_teacher):
    with pytest.raises(DataError, match=r"image of row 7 \(broken\.png\) must be readable, but: .*on_bad_image=skip"):
        run(tmp_path, with_bad_row(tiny_dataset, 7, b"no image"), tiny_teacher)


def test_an_image_with_a_longer_side_than_the_columns_hold_is_named(tmp_path, tiny_dataset, tiny_teacher):
    long = as_cell(PIL.Image.new("L", (1 << 16, 1)))["bytes"]
    with pytest.raises(
        DataError, match=r"row 7 \(broken\.png\) must have sides of at most 65535 pixels, got 1x65536\. Shr"
    ):
        run(tmp_path, with_bad_row(tiny_dataset, 7, long), tiny_teacher)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_skipped_image_leaves_a_row_without_views(tmp_path, tiny_dataset, tiny_teacher, workers):
    bad = with_bad_row(tiny_dataset, 7, b"no image")
    run(tmp_path, bad, tiny_teacher, config_name="a", on_bad_image="skip", num_workers=workers, num_views=6)
    plus = datasets.load_dataset(str(tmp_path), "a", split="train").remove_columns("image")
    assert [row for row in range(len(plus)) if plus[row]["image_hash"] is None] == [7]
    assert np.isnan(plus[7]["teacher_logprobs"]).all()
    assert not np.isnan(plus[6]["teacher_logprobs"]).any()
    assert plus[7]["source_index"] == 7
    assert Provenance.read(tmp_path / "a").skipped_rows == [7]
    assert not any(7 in plus[r]["aug_partner"] for r in range(len(plus))), "nothing is mixed with a missing image"


def jpeg(mode: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new(mode, (20, 30), 120 if mode == "L" else None).save(
        buffer, "PNG" if mode in ("RGBA", "P", "I;16") else "JPEG"
    )
    return buffer.getvalue()


def test_a_run_of_which_every_row_is_skipped_is_an_error(tmp_path, tiny_dataset, tiny_teacher):
    cells = [{"bytes": b"no image", "path": None}] * len(tiny_dataset)
    kept = tiny_dataset.remove_columns("image")
    bad = kept.add_column("image", cells, feature=datasets.Image())
    with pytest.raises(DataError, match=r"at least one image must be readable, but all \d+ rows were skipped"):
        run(tmp_path, bad, tiny_teacher, on_bad_image="skip")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_any_mode_of_image_is_reinforced(tmp_path, tiny_dataset, tiny_teacher, mode):
    run(tmp_path, with_bad_row(tiny_dataset, 2, jpeg(mode)), tiny_teacher, config_name="a")
    assert datasets.load_dataset(str(tmp_path), "a", split="train")[2]["teacher_ids"] is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_views": 0}, "`num_views` must be a whole number of at least 1, got 0"),
        ({"top_k": 0}, "`top_k` must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "`seed` must be a whole number of at least 0"),
        ({"num_views": "8"}, "`num_views` must be a whole number of at least 1, got '8'"),
        ({"shard_size": 0}, "`shard_size` must be"),
        ({"on_bad_image": "ignore"}, "`on_bad_image` must be error or skip, got 'ignore'"),
        ({"mixing_scope": "batch"}, "`mixing_scope` must be dataset or shard"),
        ({"config_name": "../up"}, "`config_name` must be a plain name"),
        ({"top_k": 128}, r"`top_k` must be between 1 and the teacher's \d+ classes, got 128. Lower `top_k`"),
    ],
)
def test_impossible_settings(tmp_path, tiny_dataset, tiny_teacher, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, tiny_dataset, tiny_teacher, **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("folder", "card", "split", "message"),
    [
        ("plus", "---\nconfigs: 3\n---\n", "train", "`configs` in the card's YAML must be a list of configurations"),
        ("a`b", None, "train", "a dataset's name must be printable"),
        ("a::b", None, "train", "`output_dir` must be a path without `::`"),
        (
            "plus",
            None,
            "_train",
            r"could not be read again: `split` in `reinforcement.json` must be a plain name.*Give another",
        ),
        ("plus", None, "t" * 120, "could not be read again: `split`"),
    ],
)
def test_what_would_end_a_run_is_found_before_it(tmp_path, tiny_dataset, tiny_teacher, folder, card, split, message):
    (tmp_path / folder).mkdir()
    if card is not None:
        (tmp_path / folder / "README.md").write_text(card)
    base = datasets.Dataset(tiny_dataset.data, info=tiny_dataset.info, split=datasets.NamedSplit(split))
    config = ReinforceConfig(str(tmp_path / folder), num_views=1)
    with pytest.raises(HfDrError, match=message):
        reinforce(base, tiny_teacher, Augmentation([CenterCrop(16)]), config)
    assert not list((tmp_path / folder).glob("*/*")), "nothing was begun"


def test_more_views_than_the_format_holds_are_refused(tmp_path, tiny_dataset, tiny_teacher):
    config = ReinforceConfig(str(tmp_path), num_views=(1 << 20) + 1)
    with pytest.raises(ConfigError, match=r"`num_views` in `reinforcement.json` must be .*1048576"):
        plan_run(tiny_dataset, tiny_teacher, Augmentation([RandomResizedCrop(16)]), config)


def test_all_classes_of_a_teacher_of_few_are_kept(tmp_path, tiny_dataset, tiny_teacher):
    config = ReinforceConfig(str(tmp_path / "plus"), num_views=1)
    reinforce(tiny_dataset, tiny_teacher, Augmentation([CenterCrop(16)]), config)
    assert tiny_teacher.num_classes == 8
    assert Provenance.read(tmp_path / "plus" / "default").top_k == 8


def test_too_many_files(tmp_path, tiny_dataset, tiny_teacher, monkeypatch):
    monkeypatch.setattr("hf_dr.generation.plan.MAX_SHARDS", 3)
    with pytest.raises(
        ConfigError, match=r"`shard_size` must be at least 4 for 12 rows in 3 files at most, got 3. Raise"
    ):
        run(tmp_path, tiny_dataset, tiny_teacher, shard_size=3)
    run(tmp_path, tiny_dataset, tiny_teacher, shard_size=4)


def test_bad_datasets(tmp_path, tiny_dataset, tiny_teacher):
    def refused(dataset, message, error=DataError, **settings):
        with pytest.raises(error, match=message):
            run(tmp_path, dataset, tiny_teacher, **settings)

    refused(tiny_dataset.select([]), "at least one row, got none")
    refused(
        tiny_dataset.remove_columns("image"), "`image_column` must name an Image column, got None; Image columns: none"
    )
    refused(tiny_dataset, "must name an Image column, got 'label'", image_column="label")
    refused(
        tiny_dataset, "`label_column` must name a column, got 'labels'. Did you mean `label`", label_column="labels"
    )
    refused(tiny_dataset.add_column("aug_x", [0] * len(tiny_dataset)), "must not have a column `aug_x`")
    out_of_range = tiny_dataset.remove_columns("label").add_column("label", [0] * (len(tiny_dataset) - 1) + [77])
    refused(out_of_range, rf"found 77 in row {len(tiny_dataset) - 1}")
    fewer = tiny_dataset.remove_columns("label").add_column("label", [0] * len(tiny_dataset))
    fewer = fewer.cast_column("label", datasets.ClassLabel(names=["only"]))
    refused(fewer, "must answer over the dataset's 1 classes", TeacherError)
    refused(tiny_dataset, "images of at least 99x99", DataError, augmentation=Augmentation([RandomCrop(99)]))
    refused(datasets.DatasetDict({"train": tiny_dataset}), "one split, got DatasetDict")


def test_labels_are_not_needed(tmp_path, tiny_dataset, tiny_teacher):
    run(tmp_path, tiny_dataset, tiny_teacher, label_column="none")
    run(tmp_path / "b", tiny_dataset.remove_columns("label"), tiny_teacher)


def test_a_folder_in_use_is_refused(tmp_path, tiny_dataset, tiny_teacher):
    (tmp_path / "a").mkdir()
    with filelock.FileLock(tmp_path / "a" / ".lock"), pytest.raises(ConfigError, match="another run is writing to it"):
        run(tmp_path, tiny_dataset, tiny_teacher, config_name="a")


def test_a_run_whose_provenance_was_lost_keeps_its_shards(tmp_path, tiny_dataset, tiny_teacher):
    expected = run(tmp_path, tiny_dataset, tiny_teacher, config_name="a")
    shard = next((tmp_path / "a").glob("*.parquet"))
    made = shard.stat().st_mtime_ns
    (tmp_path / "a" / PROVENANCE_FILE).unlink()
    with pytest.raises(ConfigError, match="must be new, empty, or the folder of"):
        run(tmp_path, tiny_dataset, tiny_teacher, config_name="a", seed=1)
    assert run(tmp_path, tiny_dataset, tiny_teacher, config_name="a") == expected
    assert shard.stat().st_mtime_ns == made


def test_runs_do_not_wait_while_one_reads_what_is_there(tmp_path, tiny_dataset, tiny_teacher, monkeypatch):
    run(tmp_path, tiny_dataset, tiny_teacher, config_name="a")
    check = RunFolder._check_same_base

    def read(self, base):
        with filelock.FileLock(self.folder / ".gate", timeout=0):
            check(self, base)

    monkeypatch.setattr(RunFolder, "_check_same_base", read)
    run(tmp_path, tiny_dataset, tiny_teacher, config_name="a")


def test_an_unwritable_folder_is_refused(tmp_path, tiny_dataset, tiny_teacher):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="`output_dir` must be a folder that can be written to"):
        run(tmp_path / "file", tiny_dataset, tiny_teacher)


def test_a_disk_without_room_is_refused_before_the_teacher_runs(tmp_path, tiny_dataset, tiny_teacher, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"`output_dir` needs at least .* found 10 B free"):
        run(tmp_path, tiny_dataset, tiny_teacher)
    assert not files_of(tmp_path)


@pytest.mark.parametrize("shard_size", [5, 10**10])
def test_a_disk_must_have_room_for_the_rows_that_there_are(
    tmp_path, tiny_dataset, tiny_teacher, monkeypatch, shard_size
):
    needed = 12 * 2 * 3 * 2  # rows, views, kept classes, bytes
    usage = type("Usage", (), {"free": needed - 1})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    settings = {"config_name": "a", "shard_size": shard_size, "num_views": 2, "top_k": 3}
    with pytest.raises(ConfigError, match=rf"`output_dir` needs at least {needed} B, found {needed - 1} B free"):
        run(tmp_path, tiny_dataset, tiny_teacher, PLAIN, **settings)
    usage.free = needed
    run(tmp_path, tiny_dataset, tiny_teacher, PLAIN, **settings)


def test_a_disk_that_fills_up_loses_no_finished_shard(tmp_path, tiny_dataset, tiny_teacher, monkeypatch):
    finish, done = module.ShardWriter.finish, []

    def full_at_the_second(self):
        if done:
            raise HfDrError("could not write: No space left on device")
        done.append(self.path)
        return finish(self)

    with monkeypatch.context() as patch:
        patch.setattr(module.ShardWriter, "finish", full_at_the_second)
        with pytest.raises(HfDrError, match="No space left"):
            run(tmp_path, tiny_dataset, tiny_teacher)
    assert list(tmp_path.rglob("*.parquet")) == done
    assert not list(tmp_path.rglob("*.tmp"))
    assert run(tmp_path, tiny_dataset, tiny_teacher) == run(tmp_path / "whole", tiny_dataset, tiny_teacher)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shard: shard.write_bytes(shard.read_bytes()[:100]), "must be a shard"),
        (shift_labels, "must hold what was written, but its columns label have other digests"),
    ],
)
def test_a_damaged_shard_is_made_again(tmp_path, tiny_dataset, tiny_teacher, caplog, damage, message):
    whole = run(tmp_path, tiny_dataset, tiny_teacher)
    shard = sorted(tmp_path.rglob("*.parquet"))[1]
    damage(shard)
    with caplog.at_level(logging.WARNING, "hf_dr"):
        assert run(tmp_path, tiny_dataset, tiny_teacher) == whole
    assert f"{shard.name} {message}" in caplog.text
    assert "It is made again." in caplog.text


def test_a_shard_of_another_run_is_refused(tmp_path, tiny_dataset, tiny_teacher):
    run(tmp_path / "other", tiny_dataset, tiny_teacher, config_name="a", seed=1)
    run(tmp_path / "own", tiny_dataset, tiny_teacher, config_name="a")
    shard = sorted((tmp_path / "own" / "a").glob("*.parquet"))[1]
    shutil.copy(tmp_path / "other" / "a" / shard.name, shard)
    with pytest.raises(FingerprintMismatchError, match=f"{shard} must carry this run's fingerprint, .* Delete it"):
        run(tmp_path / "own", tiny_dataset, tiny_teacher, config_name="a")


def test_a_run_that_stopped_at_a_bad_image_goes_on_when_told_to_skip(tmp_path, tiny_dataset, tiny_teacher):
    """What the message advises is what works: finished shards hold no bad image."""
    bad = with_bad_row(tiny_dataset, 11, b"no image")
    with pytest.raises(DataError, match=r"image of row 11 .*on_bad_image=skip"):
        run(tmp_path, bad, tiny_teacher, config_name="a")
    run(tmp_path, bad, tiny_teacher, config_name="a", on_bad_image="skip")
    assert Provenance.read(tmp_path / "a").skipped_rows == [11]


def test_a_run_that_stopped_at_a_bad_image_is_begun_again_with_the_corrected_one(tmp_path, tiny_dataset, tiny_teacher):
    """What the message advises is what is needed: the dataset is another one."""
    message = rf"Fix it\. A corrected image makes another dataset: delete {tmp_path / 'a'} first, or choose another"
    with pytest.raises(DataError, match=message):
        run(tmp_path, with_bad_row(tiny_dataset, 11, b"no image"), tiny_teacher, config_name="a")
    with pytest.raises(
        FingerprintMismatchError, match=r"base\.content_hash: [\s\S]*same settings, versions and images"
    ):
        run(tmp_path, tiny_dataset, tiny_teacher, config_name="a")
    shutil.rmtree(tmp_path / "a")
    run(tmp_path, tiny_dataset, tiny_teacher, config_name="a")


def test_a_skipped_image_is_told_of_without_advice_to_skip_it(tmp_path, tiny_dataset, tiny_teacher, caplog):
    run(tmp_path, with_bad_row(tiny_dataset, 7, b"no image"), tiny_teacher, on_bad_image="skip")
    assert "Skipped: the image of row 7 (broken.png) must be readable" in caplog.text
    assert "on_bad_image" not in caplog.text


def test_a_folder_of_an_earlier_format_is_not_finished_in_this_one(tmp_path, tiny_dataset, tiny_teacher):
    run(tmp_path, tiny_dataset, tiny_teacher, config_name="a")
    provenance = Provenance.read(tmp_path / "a")
    dataclasses.replace(provenance, schema_version=1).write(tmp_path / "a")
    with pytest.raises(
        FingerprintMismatchError, match=r"was begun in format 1 and must be finished in it, .* would be a mixture"
    ):
        run(tmp_path, tiny_dataset, tiny_teacher, config_name="a")


def test_an_answer_that_is_not_finite_stops_the_run(tmp_path, tiny_dataset, tiny_teacher, monkeypatch):
    monkeypatch.setattr(Teacher, "_answer", lambda self, views: torch.full((len(views), self.num_classes), torch.nan))
    with pytest.raises(TeacherError, match="log-probabilities must be finite"):
        run(tmp_path, tiny_dataset, tiny_teacher)


def test_the_estimate_writes_nothing_and_counts_right(tmp_path, tiny_dataset, tiny_teacher):
    config = ReinforceConfig(output_dir=str(tmp_path / "out"), num_views=50, top_k=2)
    estimate = reinforce_job(tiny_dataset, tiny_teacher, MIXING, config).estimate()
    assert estimate.num_views == 50 * len(tiny_dataset)
    assert estimate.seconds_teacher > 0
    assert estimate.seconds_augment > 0
    assert estimate.bytes_base > sum(
        len(r["bytes"]) for r in tiny_dataset.cast_column("image", datasets.Image(decode=False))["image"]
    )
    assert "hours" in estimate.report(1, 0, torch.device("cpu"))
    assert not (tmp_path / "out").exists()


def test_an_overlay_without_labels_has_no_bytes_of_its_base(tmp_path, tiny_dataset, tiny_teacher):
    config = ReinforceConfig(str(tmp_path), num_views=2, top_k=2, overlay=True)
    estimate = reinforce_job(tiny_dataset.remove_columns("label"), tiny_teacher, MIXING, config).estimate()
    assert (estimate.bytes_base, estimate.bytes_reinforcement > 0) == (0, True)


def test_views_larger_than_a_row_group_give_the_same_columns(tmp_path, tiny_dataset, tiny_teacher, monkeypatch):
    run(tmp_path / "a", tiny_dataset, tiny_teacher)
    monkeypatch.setattr(shards, "ROW_GROUP_VIEWS", 7)  # two rows a group, and a batch that spans groups
    run(tmp_path / "b", tiny_dataset, tiny_teacher)
    first, second = (
        datasets.load_dataset("parquet", data_files=sorted(map(str, (tmp_path / n).rglob("*.parquet"))), split="train")
        for n in "ab"
    )
    assert first.data.table.equals(second.data.table)


def test_size_must_be_fixed_by_an_op():
    with pytest.raises(ConfigError, match="no op of Resize fixes it"):
        Augmentation([Resize(20)])


# ------------------------------------------------------------------------------------------------------------- candidates

PLAIN = Augmentation([RandomResizedCrop(16), RandomHorizontalFlip()])
LABELS_OF_ROWS = list(range(8)) + list(range(4))  # of `tiny_dataset`


def columns_of(folder: Path) -> dict[str, np.ndarray]:
    """The reinforcement's columns, each (rows, ...)."""
    files = sorted(map(str, folder.rglob("*.parquet")))
    table = datasets.load_dataset("parquet", data_files=files, split="train").with_format("numpy")
    return {name: table[:][name] for name in table.column_names if name not in ("image", "label")}


def full_answers(folder: Path, teacher: Teacher) -> np.ndarray:
    """What the teacher answers to all stored views, over all classes: (rows, V, C)."""
    plus = load_reinforced(folder)
    views = np.stack(
        [[np.asarray(plus.image(row, view)) for view in range(plus.num_views)] for row in range(len(plus))]
    )
    flat = torch.from_numpy(views.reshape(-1, *views.shape[2:])).permute(0, 3, 1, 2)
    return teacher(flat).double().numpy().reshape(*views.shape[:2], -1)


@pytest.mark.parametrize("keep", KEEP)
def test_the_best_candidates_are_kept_bit_for_bit(tmp_path, tiny_dataset, tiny_teacher, keep):
    run(tmp_path / "all", tiny_dataset, tiny_teacher, PLAIN, num_views=7)
    settings = {"num_views": 3, "num_candidates": 7, "keep": keep}
    run(tmp_path / "some", tiny_dataset, tiny_teacher, PLAIN, **settings)
    answers = full_answers(tmp_path / "all", tiny_teacher)
    if keep.endswith("cross_entropy"):
        values = -answers[np.arange(12), :, LABELS_OF_ROWS]
    else:
        values = -(np.exp(answers) * answers).sum(axis=2)
    best = np.sort(np.argsort(-values if keep.startswith("high") else values, axis=1)[:, :3], axis=1)
    everything, kept = columns_of(tmp_path / "all"), columns_of(tmp_path / "some")
    assert everything.keys() == kept.keys()
    assert len({tuple(row) for row in best.tolist()}) > 3, "rows keep different ones"
    for name, values in kept.items():
        expected = everything[name]
        if expected.ndim > 1:
            expected = expected[np.arange(12)[:, None], best]
        assert name == "views_hash" or np.array_equal(values, expected), name
    plus = load_reinforced(tmp_path / "some")
    for row in range(12):
        hashes = [hash_view(np.asarray(plus.image(row, view))) for view in range(3)]
        assert combine_hashes(np.array(hashes, np.uint64)) == plus.views_hash(row)
    assert (plus.provenance.schema_version, plus.provenance.candidates) == (4, {"num": 7, "keep": keep})


def test_as_many_candidates_as_views_change_nothing(tmp_path, tiny_dataset, tiny_teacher):
    expected = run(tmp_path / "a", tiny_dataset, tiny_teacher, PLAIN)
    for name, more in (("b", {}), ("c", {"keep": "low_entropy"})):
        assert run(tmp_path / name, tiny_dataset, tiny_teacher, PLAIN, num_candidates=3, **more) == expected
    texts = {next((tmp_path / name).rglob(PROVENANCE_FILE)).read_text() for name in "abc"}
    assert len(texts) == 1
    assert json.loads(texts.pop())["candidates"] is None


def test_kept_candidates_do_not_depend_on_how_they_are_made(tmp_path, tiny_dataset, checkpoint, monkeypatch):
    teacher = Teacher.from_pretrained(f"timm:test_resnet@{checkpoint[0]}")
    settings = {"num_candidates": 7, "keep": "low_cross_entropy", "num_views": 3}
    expected = run(tmp_path / "a", tiny_dataset, teacher, PLAIN, **settings)
    assert run(tmp_path / "b", tiny_dataset, teacher, PLAIN, batch_size=5, num_workers=2, **settings) == expected
    other = OnAnotherDevice(teacher)
    assert run(tmp_path / "c", tiny_dataset, other, PLAIN, batch_size=16, num_workers=1, **settings) == expected
    config = ReinforceConfig(str(tmp_path / "d"), top_k=2, shard_size=5, num_workers=0, **settings)
    for part in (Part(1, 2), Part(0, 2)):
        reinforce_job(tiny_dataset, teacher, PLAIN, config).run(part)
    assert files_of(tmp_path / "d") == expected
    next((tmp_path / "d").rglob("*-00001-*.parquet")).unlink()
    assert run(tmp_path / "d", tiny_dataset, teacher, PLAIN, **settings) == expected


def test_equally_good_candidates_are_kept_by_their_number(tmp_path, tiny_dataset, tiny_teacher, monkeypatch):
    indifferent = torch.full((16, 8), -math.log(8))
    monkeypatch.setattr(Teacher, "__call__", lambda self, views: indifferent)
    run(tmp_path / "first", tiny_dataset, tiny_teacher, PLAIN)
    run(tmp_path / "kept", tiny_dataset, tiny_teacher, PLAIN, num_candidates=9, keep="high_entropy")
    first, kept = columns_of(tmp_path / "first"), columns_of(tmp_path / "kept")
    assert all(np.array_equal(first[name], kept[name]) for name in first)


def test_an_undecodable_image_has_no_candidates(tmp_path, tiny_dataset, tiny_teacher):
    bad = with_bad_row(tiny_dataset, 7, b"no image")
    settings = {"num_candidates": 5, "keep": "low_cross_entropy", "on_bad_image": "skip"}
    run(tmp_path / "bad", bad, tiny_teacher, PLAIN, **settings)
    run(tmp_path / "good", tiny_dataset, tiny_teacher, PLAIN, **settings)
    bad, good = (load_reinforced(tmp_path / name) for name in ("bad", "good"))
    assert bad.provenance.skipped_rows == [7]
    assert [bad.views_hash(row) for row in range(11)] == [good.views_hash(row) for row in range(12) if row != 7]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_candidates": 2, "keep": "low_entropy"}, "`num_candidates` must be a whole number of at least 3, got 2"),
        ({"num_candidates": 0}, "`num_candidates` must be a whole number of at least 3, got 0"),
        (
            {"num_candidates": 5},
            "`keep` must say which 3 of 5 candidates are stored, got none. Give one of low_entropy,",
        ),
        (
            {"keep": "low_entropy"},
            "`keep` must come with `num_candidates`, got low_entropy without. Give both or neither.",
        ),
        ({"num_candidates": 5, "keep": "best"}, "`keep` must be one of low_entropy, high_entropy, low_cross_entropy, "),
    ],
    ids=str,
)
def test_impossible_candidates(tmp_path, settings, message):
    with pytest.raises(ConfigError) as error:
        ReinforceConfig(str(tmp_path), num_views=3, **settings)
    assert message in str(error.value)


def test_candidates_that_do_not_fit_the_data(tmp_path, tiny_dataset, tiny_teacher):
    settings = {"num_candidates": 5, "keep": "high_cross_entropy"}
    with pytest.raises(
        ConfigError, match=r"`num_candidates` must be left out with MixUp or CutMix, got 5: views are mixed"
    ):
        run(tmp_path, tiny_dataset, tiny_teacher, **settings)
    with pytest.raises(
        ConfigError, match=r"`keep` must be low_entropy or high_entropy for a dataset without labels, got high_cross_e"
    ):
        run(tmp_path, tiny_dataset, tiny_teacher, PLAIN, label_column="none", **settings)
    run(tmp_path, tiny_dataset, tiny_teacher, PLAIN, label_column="none", **{**settings, "keep": "low_entropy"})


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        ({"num_candidates": 6, "keep": "low_entropy"}, "candidates.num: 5 there, 6 here"),
        ({"num_candidates": 5, "keep": "high_entropy"}, "candidates.keep: low_entropy there, high_entropy here"),
        ({}, "candidates.num: 5 there, absent here"),
    ],
)
def test_other_candidates_are_another_run(tmp_path, tiny_dataset, tiny_teacher, settings, difference):
    run(tmp_path, tiny_dataset, tiny_teacher, PLAIN, num_candidates=5, keep="low_entropy")
    with pytest.raises(FingerprintMismatchError, match=difference):
        run(tmp_path, tiny_dataset, tiny_teacher, PLAIN, **settings)


def test_the_estimate_tells_what_candidates_cost(tmp_path, tiny_dataset, tiny_teacher):
    config = ReinforceConfig(str(tmp_path), num_views=2, num_candidates=10, keep="low_entropy", top_k=2)
    estimate = reinforce_job(tiny_dataset, tiny_teacher, PLAIN, config).estimate()
    assert (estimate.num_views, estimate.num_made, estimate.num_asked) == (2 * 12, 10 * 12, 10 * 12)
    report = estimate.report(1, 0, torch.device("cpu"))
    assert "24, kept of 120\n" in report
    alone = dataclasses.replace(estimate, num_made=24, num_asked=24, seconds_teacher=5 * estimate.seconds_teacher)
    alone = dataclasses.replace(alone, seconds_augment=5 * estimate.seconds_augment)
    assert report.split("\n")[5:] == alone.report(1, 0, torch.device("cpu")).split("\n")[5:], "hours and bytes"


@pytest.mark.parametrize(
    ("size", "ops", "message"),
    [
        ((1, 40000), [Resize(256), CenterCrop(24)], "Resize must make images of at most"),
        ((9, 40), [RandomCrop(24)], "RandomCrop needs images of at least 24x24 pixels"),
        (
            (5000, 8),
            [Resize(224), RandomResizedCrop(24)],
            "RandomResizedCrop stores boxes of images with sides of at most",
        ),
        (
            (5000, 8),
            [Resize(224), RandomErasing(), CenterCrop(24)],
            "RandomErasing stores boxes of images with sides of",
        ),
    ],
)
def test_an_image_that_cannot_be_augmented_is_named_and_can_be_skipped(
    tmp_path, tiny_dataset, tiny_teacher, size, ops, message
):
    cells = tiny_dataset.cast_column("image", datasets.Image(decode=False)).to_list()
    cells[3]["image"] = as_cell(PIL.Image.new("RGB", size))
    odd = datasets.Dataset.from_list(cells, features=tiny_dataset.features, split="train")
    with pytest.raises(DataError, match=rf"the image of row 3 must be of a size that can be augmented, but: {message}"):
        run(tmp_path / "a", odd, tiny_teacher, Augmentation(ops), config_name="a")
    run(tmp_path / "b", odd, tiny_teacher, Augmentation(ops), config_name="a", on_bad_image="skip")
    assert Provenance.read(tmp_path / "b" / "a").skipped_rows == [3]


def test_columns_of_the_base_may_have_dots_in_their_names(tmp_path, tiny_dataset, tiny_teacher):
    """As the paths of Parquet's own columns have them."""
    names = ["image_hash.md5", "source_index.x", "teacher_ids.list.element", "image.width", "label.note"]
    dotted = tiny_dataset
    for name in names:
        dotted = dotted.add_column(name, [f"{name} {row}" for row in range(len(dotted))])
    expected = run(tmp_path / "plain", tiny_dataset, tiny_teacher, PLAIN, config_name="a")
    run(tmp_path / "dotted", dotted, tiny_teacher, PLAIN, config_name="a")
    run(tmp_path / "dotted", dotted, tiny_teacher, PLAIN, config_name="a")
    assert expected.keys() == files_of(tmp_path / "dotted").keys()
    plain = load_reinforced(tmp_path / "plain")
    for columns in ([], names):
        loaded = load_reinforced(tmp_path / "dotted", columns=columns)
        streamed = list(load_reinforced(tmp_path / "dotted", columns=columns, streaming=True))
        assert len(streamed) == len(loaded) == len(plain)
        for row in range(len(plain)):
            assert torch.equal(loaded[row, 0]["teacher_logprobs"], plain[row, 0]["teacher_logprobs"])
            assert [loaded[row, 0][name] for name in columns] == [f"{name} {row}" for name in columns]
        assert {item[name] for item in streamed for name in columns} == {f"{n} {r}" for n in columns for r in range(12)}
    assert verify(loaded, tiny_teacher).ok


def test_a_run_goes_on_with_its_own_labels_only(tmp_path, tiny_dataset, tiny_teacher):
    before = run(tmp_path, tiny_dataset, tiny_teacher, PLAIN, config_name="a")
    names = tiny_dataset.features["label"].names
    other = tiny_dataset.map(lambda row: {"label": (row["label"] + 1) % len(names)})
    with pytest.raises(
        FingerprintMismatchError, match=r"must have the columns of the dataset, but its column `label` differs"
    ):
        run(tmp_path, other, tiny_teacher, PLAIN, config_name="a")
    assert files_of(tmp_path) == before
    next((tmp_path / "a").glob("*.parquet")).write_bytes(b"damaged")
    assert run(tmp_path, tiny_dataset, tiny_teacher, PLAIN, config_name="a") == before


def test_a_run_goes_on_with_its_own_columns_only(tmp_path, tiny_dataset, tiny_teacher):
    numbers = [float("nan"), *map(float, range(1, len(tiny_dataset)))]
    base = tiny_dataset.add_column("number", numbers)
    before = run(tmp_path, base, tiny_teacher, PLAIN, config_name="a")
    min((tmp_path / "a").glob("*.parquet")).unlink()
    kept = files_of(tmp_path)
    for other, said in (
        (tiny_dataset.add_column("number", [*numbers[:-1], 99.0]), "its column `number` differs in rows 10 to 11"),
        (base.add_column("more", numbers), "it has image, label, number and the dataset image, label, more, number"),
        (tiny_dataset, "it has image, label, number and the dataset image, label"),
    ):
        with pytest.raises(FingerprintMismatchError, match=f"must have the columns of the dataset, but {said}. Give"):
            run(tmp_path, other, tiny_teacher, PLAIN, config_name="a")
        assert files_of(tmp_path) == kept
    assert run(tmp_path, base, tiny_teacher, PLAIN, config_name="a") == before


@pytest.mark.parametrize(
    ("name", "feature"),
    [
        ("label", datasets.Value("int64")),
        ("label", datasets.ClassLabel(names=[f"other {c}" for c in range(8)])),
        ("number", datasets.Value("int32")),
        ("word", datasets.Value("large_string")),
        ("image", datasets.Image(mode="RGB")),
        ("image", datasets.Image(decode=False)),
    ],
)
def test_a_run_goes_on_with_its_own_types_only(tmp_path, tiny_dataset, tiny_teacher, monkeypatch, name, feature):
    """All shards would be made, and the dataset could never be opened."""
    rows = len(tiny_dataset)
    base = tiny_dataset.add_column("number", list(range(rows))).add_column("word", ["a"] * rows)
    before = run(tmp_path, base, tiny_teacher, PLAIN, config_name="a")
    max((tmp_path / "a").glob("*.parquet")).unlink()
    kept = files_of(tmp_path)
    with monkeypatch.context() as unasked:
        unasked.setattr(module.Job, "_make_shards", lambda *_: pytest.fail("the teacher was asked"))
        with pytest.raises(
            FingerprintMismatchError,
            match=rf"must have the columns of the dataset, but its column `{name}` is \w+\(.*\) and the dataset's \w+\(",
        ):
            run(tmp_path, base.cast_column(name, feature), tiny_teacher, PLAIN, config_name="a")
    assert files_of(tmp_path) == kept
    in_other_order = base.select_columns(base.column_names[::-1])
    assert run(tmp_path, in_other_order, tiny_teacher, PLAIN, config_name="a").keys() == before.keys()


def test_a_run_that_another_overtakes_is_refused_under_the_lock(tmp_path, tiny_dataset, tiny_teacher, monkeypatch):
    other = run(tmp_path / "other", tiny_dataset, tiny_teacher, PLAIN, config_name="a", seed=1)

    def overtaken(self: RunFolder, *arguments: object) -> None:
        shutil.copytree(tmp_path / "other", self.folder.parent, dirs_exist_ok=True)
        take(self, *arguments)

    take = RunFolder._take
    monkeypatch.setattr(RunFolder, "_take", overtaken)
    with pytest.raises(FingerprintMismatchError, match="seed: 1 there, 0 here"):
        run(tmp_path / "mine", tiny_dataset, tiny_teacher, PLAIN, config_name="a")
    assert files_of(tmp_path / "mine") == other
    monkeypatch.undo()
    assert run(tmp_path / "mine", tiny_dataset, tiny_teacher, PLAIN, config_name="a", seed=1) == other, (
        "no lock is left"
    )


def in_files(dataset: datasets.Dataset, folder: Path) -> list[dict[str, str | None]]:
    """The images of a dataset as paths of files in a folder, which is made."""
    folder.mkdir()
    cells = dataset.cast_column("image", datasets.Image(decode=False))["image"]
    paths = [folder / f"{row}.png" for row in range(len(dataset))]
    for path, cell in zip(paths, cells, strict=True):
        path.write_bytes(cell["bytes"])
    return [{"bytes": None, "path": str(path)} for path in paths]


def test_the_estimate_leaves_out_an_image_that_the_run_skips(tmp_path, tiny_dataset, tiny_teacher):
    cells = in_files(tiny_dataset, tmp_path / "images")
    base = tiny_dataset.remove_columns("image").add_column("image", cells).cast_column("image", datasets.Image())

    def estimated(on_bad_image: str) -> float:
        config = ReinforceConfig(
            str(tmp_path / "plus"), num_views=2, top_k=2, on_bad_image=on_bad_image, files_from=[str(tmp_path)]
        )
        return reinforce_job(base, tiny_teacher, PLAIN, config).estimate().bytes_base

    whole = estimated("skip")
    assert estimated("error") == whole
    size = (tmp_path / "images" / "3.png").stat().st_size
    (tmp_path / "images" / "3.png").unlink()
    assert whole - 2 * size <= estimated("skip") <= whole - size
    with pytest.raises(DataError, match=r"image.* row 3"):
        estimated("error")


def test_a_file_of_another_column_that_is_missing_is_named(tmp_path, tiny_dataset, tiny_teacher):
    cells = in_files(tiny_dataset, tmp_path / "masks")
    base = tiny_dataset.add_column("mask", cells).cast_column("mask", datasets.Image())
    (tmp_path / "masks" / "7.png").unlink()
    for on_bad_image in ("error", "skip"):
        with pytest.raises(
            DataError,
            match=r"must be readable, to be copied, but that of `mask` in row 7: .*7\.png'\. Restore it, or leave",
        ):
            run(
                tmp_path / "plus", base, tiny_teacher, PLAIN,
                image_column="image", on_bad_image=on_bad_image, files_from=[str(tmp_path)],
            )  # fmt: skip


def test_a_text_in_a_paths_place_is_a_bad_image(tmp_path, tiny_dataset, tiny_teacher):
    cells = tiny_dataset.cast_column("image", datasets.Image(decode=False)).to_list()
    cells[2]["image"] = {"bytes": None, "path": "iVBORw0KGgoAAAANSUhEUg" * 100}
    odd = datasets.Dataset.from_list(cells, features=tiny_dataset.features, split="train")
    with pytest.raises(
        DataError, match=r"the image of row 2 \(iVBOR\w{95}\) must be readable, but: .* none at iVBOR\w{195}\."
    ):
        run(tmp_path, odd, tiny_teacher, PLAIN)


def test_a_single_op_is_no_augmentation(tiny_dataset, tiny_teacher, tmp_path):
    config = ReinforceConfig(str(tmp_path / "plus"), num_views=1, top_k=1)
    with pytest.raises(
        ConfigError, match=r"`augmentation` must be .*, got RandomResizedCrop. Put a single op of `hf_dr.ops` into"
    ):
        reinforce(tiny_dataset, tiny_teacher, RandomResizedCrop(8), config)


@pytest.mark.parametrize("wrong", [None, 3, torch.nn.Linear(3, 8), {"a": "b"}, ["timm/x", None]], ids=str)
def test_what_is_no_teacher(tiny_dataset, tiny_plus, tiny_teacher, tmp_path, wrong):
    found = f"a list with {type(wrong[-1]).__name__}" if isinstance(wrong, list) else type(wrong).__name__
    expected = pytest.raises(
        ConfigError, match=f"must be a Teacher, or one or several names, got {found}. Name a Hub id"
    )
    config = ReinforceConfig(str(tmp_path / "plus"), num_views=1, top_k=1)
    with expected:
        reinforce(tiny_dataset, wrong, PLAIN, config)
    with pytest.raises(ConfigError, match=r"got a list with Teacher\. .* `Teacher\(\[\*one.members, .* one of several"):
        reinforce(tiny_dataset, ["timm/x", tiny_teacher], PLAIN, config)
    if wrong is not None:  # that is the teacher of the provenance
        with expected:
            verify(tiny_plus, wrong)
        with expected:
            extend(tiny_plus, ExtendConfig(str(tmp_path / "more")), add_teacher=wrong)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_config(tiny_dataset, tiny_plus, tiny_teacher, tmp_path):
    with pytest.raises(ConfigError, match=r"`config` must be of the class ReinforceConfig, got str. Make one: `Reinf"):
        reinforce(tiny_dataset, tiny_teacher, PLAIN, str(tmp_path))
    with pytest.raises(ConfigError, match=r"`config` must be of the class ExtendConfig, got ReinforceConfig. Make one"):
        extend(tiny_plus, ReinforceConfig(str(tmp_path)))


def test_a_transform_of_the_base_is_refused_and_a_mode_is_told(tiny_dataset, tiny_teacher, tmp_path, caplog):
    turned = tiny_dataset.with_transform(lambda rows: {"image": [image.rotate(90) for image in rows["image"]]})
    with pytest.raises(
        DataError, match=r"must be without a transform, .* Apply it with `dataset\.map`, or leave it out"
    ):
        reinforce(turned, tiny_teacher, [RandomResizedCrop(8)], ReinforceConfig(str(tmp_path / "turned")))
    assert not (tmp_path / "turned").exists()
    config = ReinforceConfig(str(tmp_path / "grey"), num_views=1, top_k=1)
    grey = reinforce(
        tiny_dataset.cast_column("image", datasets.Image(mode="L")), tiny_teacher, [RandomResizedCrop(8)], config
    )
    assert (
        "The mode L of the column `image` is not applied: views are made of the images as they are stored"
        in caplog.text
    )
    assert grey.example_image(0).mode == "RGB"


def test_views_that_are_all_alike_are_told(tiny_dataset, tiny_teacher, tmp_path, caplog):
    for num_views in (1, 3):
        config = ReinforceConfig(str(tmp_path / str(num_views)), num_views=num_views, top_k=1)
        reinforce(tiny_dataset.select(range(2)), tiny_teacher, [Resize((8, 8))], config)
        told = "Nothing in the augmentation is random: the 3 views of an image are all alike. One view is enough."
        assert (told in caplog.text) == (num_views > 1)

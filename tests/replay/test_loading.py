"""A "+" dataset opens alike from a folder, from the Hub and from the Hub's cache, and only if it is whole."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import HfApi
from loopback_hub import Fault, LoopbackHub

import hf_dr.hub.retry
import hf_dr.replay.loading
from hf_dr.errors import ConfigError, DataError, FormatError, HubError, ReplayError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce, reinforce_job
from hf_dr.hub.fetch import fetch_config
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.base_dataset import load_base
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import PROVENANCE_FILE
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import Resize

REPO, NAME = "org/tiny-plus", "all_ops"
SHARDS = [f"{NAME}/train-0000{n}-of-00003.parquet" for n in range(3)]


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by their path in it, as a repository has them."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.*")) if p.name[0] != "."}


def same(plus: ReinforcedDataset, other: ReinforcedDataset) -> bool:
    return plus.provenance == other.provenance and plus.plus.data.table == other.plus.data.table


@pytest.fixture
def hub(loopback_hub: LoopbackHub, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """The Hub with `tiny_folder` in it; whoever waits between two attempts does not."""
    loopback_hub.put(REPO, content(tiny_folder))
    monkeypatch.setattr(hf_dr.hub.retry, "_sleep", lambda seconds: None)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return loopback_hub


@pytest.fixture
def offline(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Returns `offline()`: from then on no request is made."""

    def offline() -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    return offline


def small(tiny_dataset, tiny_teacher, folder: Path, name: str, **settings) -> Path:
    config = ReinforceConfig(str(folder), name, num_views=1, top_k=1, **settings)
    reinforce(tiny_dataset, tiny_teacher, Augmentation([Resize((8, 8))]), config)
    return folder


# --------------------------------------------------------------------------------------------------------- from the Hub


def test_the_hub_gives_what_the_folder_gives(hub, tiny_plus):
    plus = load_reinforced(REPO, NAME)
    assert same(plus, tiny_plus)
    np.testing.assert_array_equal(plus[3, 1]["pixel_values"], tiny_plus[3, 1]["pixel_values"])
    assert same(load_reinforced(REPO), tiny_plus), "the only configuration needs no name"


def test_only_the_named_files_of_one_commit_are_fetched(hub):
    hub.put(REPO, {f"{NAME}/statistics.json": b"{}", "other/reinforcement.json": b"{}", "other/x.parquet": b"x"})
    commit = hub.repo(REPO).refs["main"].sha
    load_reinforced(REPO, NAME)
    fetched = {request.path.split("?")[0] for request in hub.log if request.kind == "resolve"}
    assert fetched == {f"/datasets/{REPO}/resolve/{commit}/{NAME}/{PROVENANCE_FILE}"} | {
        f"/datasets/{REPO}/resolve/{commit}/{shard}" for shard in SHARDS
    }
    hub.log.clear()
    load_reinforced(REPO, NAME)
    assert dict(hub.counts) == {"repo_info": 1}, "what is there is not fetched again"
    hub.log.clear()
    load_reinforced(REPO, NAME, revision=commit)
    assert not hub.log


def test_the_provenance_alone(hub):
    folder, provenance = fetch_config(REPO, NAME, shards=False)
    assert [path.name for path in folder.iterdir()] == [PROVENANCE_FILE]
    assert provenance.config_name == NAME


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, tiny_plus, tmp_path, tiny_dataset, tiny_teacher):
    first = hub.repo(REPO).refs["main"].sha
    HfApi().create_tag(REPO, repo_type="dataset", tag="v1")
    HfApi().create_branch(REPO, repo_type="dataset", branch="old")
    hub.put(REPO, content(small(tiny_dataset, tiny_teacher, tmp_path, NAME)))
    assert load_reinforced(REPO).num_views == 1
    for revision in (first, "v1", "old"):
        assert same(load_reinforced(REPO, revision=revision), tiny_plus)
    with pytest.raises(HubError, match=r"404 Not Found.*Check `revision`"):
        load_reinforced(REPO, revision="v2")
    assert same(load_reinforced(f"{REPO}@{first}"), tiny_plus)
    HfApi().create_tag(REPO, repo_type="dataset", tag="new")
    streamed = load_reinforced(f"{REPO}@new", streaming=True)
    assert next(iter(streamed))["pixel_values"].shape == (3, 8, 8)
    message = rf"expected one revision, got 'v1' in '{REPO}@v1' and 'old'\. Leave one of them out"
    with pytest.raises(ConfigError, match=message):
        load_reinforced(f"{REPO}@v1", revision="old")


def test_a_folder_may_have_an_at_in_its_name(tiny_folder, tiny_plus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, tmp_path / "me" / "plus@v1")
    assert same(load_reinforced("me/plus@v1"), tiny_plus)


@pytest.mark.parametrize("given", ["rows", "opened", "dict", "number"])
def test_a_dataset_is_not_a_path(tiny_plus, given):
    rows = tiny_plus.plus
    objects = {"rows": rows, "opened": tiny_plus, "dict": datasets.DatasetDict({"train": rows}), "number": 5}
    kind = type(objects[given]).__name__
    message = rf"expected the folder of a .\+. dataset or its Hub id, got an object \({kind}\)\. `reinforce` makes"
    with pytest.raises(ConfigError, match=message):
        load_reinforced(objects[given])
    with pytest.raises(ConfigError, match=message):
        load_reinforced([objects[given]])


def test_of_several_configurations_one_must_be_named(hub, tmp_path, tiny_dataset, tiny_teacher):
    hub.put(REPO, content(small(tiny_dataset, tiny_teacher, tmp_path, "small")))
    assert load_reinforced(REPO, "small")[0]["pixel_values"].shape == (3, 8, 8)
    with pytest.raises(ConfigError, match=f"{REPO} has several configurations; name one of all_ops, small"):
        load_reinforced(REPO)
    with pytest.raises(
        FormatError, match=f"must hold smal/{PROVENANCE_FILE} at [0-9a-f]{{12}}, found none: no configuration"
    ):
        load_reinforced(REPO, "smal")


def test_settings_reach_a_dataset_of_the_hub(hub):
    with pytest.raises(ConfigError, match="the split `train` was reinforced, not `test`"):
        load_reinforced(REPO, split="test")
    assert hub.counts["resolve"] == 1, "it is refused before its shards are fetched"
    plus = load_reinforced(REPO, num_views=2, columns=["label"], split="train")
    assert (plus.num_views, plus[5]["label"]) == (2, 5)


def test_load_dataset_reads_it_without_this_package(hub, tiny_plus):
    plain = datasets.load_dataset(REPO, NAME, split="train")
    assert plain.features == tiny_plus.plus.features
    assert plain.with_format("arrow")[:] == tiny_plus.plus.with_format("arrow")[:]


def test_a_card_cannot_change_the_features(hub, tiny_plus):
    """`load_dataset` would cast the columns to what the card says."""
    card = hub.files(REPO)["README.md"].decode()
    assert "float16" in card
    hub.put(REPO, {"README.md": card.replace("float16", "float32").encode()})
    assert same(load_reinforced(REPO), tiny_plus)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("path", "revision", "message"),
    [
        ("org/tiny/plus", None, "expected the folder of a .* or a Hub id, found neither at 'org/tiny/plus'"),
        ("org/tiny plus", None, "found neither at 'org/tiny plus'"),
        ("../x", None, r"found neither at '\.\./x'"),
        ("tiny-plus", None, "found neither at 'tiny-plus'"),
    ],
)
def test_a_path_that_is_none(path, revision, message):
    with pytest.raises(ConfigError, match=message):
        load_reinforced(path, revision=revision)


def test_a_folder_that_is_misspelled_is_told(tmp_path):
    (tmp_path / "photos-plus").mkdir()
    expected = rf"found neither at '{tmp_path}/photo-plus'\. Did you mean `{tmp_path}/photos-plus`\? Check the path"
    with pytest.raises(ConfigError, match=expected):
        load_reinforced(tmp_path / "photo-plus")
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=rf"found neither at '{tmp_path}/gone'\. Check the path"):
        load_reinforced(tmp_path / "gone")


def test_a_folder_has_no_revision(tiny_folder):
    with pytest.raises(
        ConfigError, match=r"`revision` must come with a Hub id, got it with the folder .* Leave it out"
    ):
        load_reinforced(tiny_folder, revision="main")


def test_what_the_hub_refuses_says_what_to_do(hub, monkeypatch):
    with pytest.raises(
        HubError, match=r"fetch org/none, which is no folder here, from the Hub, but .* 404 .* `hf auth login`"
    ):
        load_reinforced("org/none")
    hub.repo(REPO).gated = True
    hub.repo(REPO).granted.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_loopback_stranger")
    with pytest.raises(HubError, match="Accept its terms on its page on the Hub") as gated:
        load_reinforced(REPO, NAME)
    hub.repo(REPO).private = True
    with pytest.raises(HubError, match="`hf auth login`") as private:
        load_reinforced(REPO, NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    with pytest.raises(HubError, match=r"401 Unauthorized.* `hf auth login`") as unknown:
        load_reinforced(REPO, NAME)
    for caught in (gated, private, unknown):
        assert "loopback" not in str(caught.value)
        assert "nobody" not in str(caught.value)


def test_a_repository_without_reinforcement(hub):
    hub.put("org/plain", {"data/train.parquet": b"x"})
    with pytest.raises(FormatError, match=f"org/plain must hold a .* no folder in it has a {PROVENANCE_FILE}"):
        load_reinforced("org/plain")


def test_half_a_dataset_is_refused(hub):
    del hub.repo(REPO).refs["main"].files[SHARDS[1]]
    with pytest.raises(FormatError, match=f"must hold {SHARDS[1]} at .* found none: .* half of one"):
        load_reinforced(REPO, NAME)


@pytest.mark.parametrize("key", ["split", "config_name"])
def test_a_hostile_provenance_names_no_file_elsewhere(hub, key):
    provenance = json.loads(hub.files(REPO)[f"{NAME}/{PROVENANCE_FILE}"])
    hostile = Provenance(**{k: v for k, v in {**provenance, key: "../../x"}.items() if k != "fingerprint"})
    written = json.dumps({**hostile.to_dict(), "fingerprint": hostile.fingerprint}).encode()
    hub.put(REPO, {f"{NAME}/{PROVENANCE_FILE}": written})
    hub.log.clear()
    with pytest.raises(FormatError, match=f"`{key}` in .* must be a plain name, found '../../x'"):
        load_reinforced(REPO)
    assert not any("x-00000" in request.path for request in hub.log)


@pytest.mark.parametrize("name", ["..", "a b", "-x", "."])
def test_names_of_configurations_are_plain(hub, name):
    hub.put("org/hostile", {f"{name}/{PROVENANCE_FILE}": b"{}"})
    with pytest.raises(FormatError, match="configurations of org/hostile must have plain names, found"):
        load_reinforced("org/hostile")
    with pytest.raises(ConfigError, match="`name` must be a configuration of org/hostile, got"):
        load_reinforced("org/hostile", name)


# -------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("kind", ["500", "503", "429", "cut", "reset"])
@pytest.mark.parametrize(
    ("at", "when"),
    [
        ("repo_info", 1),
        ("tree", 1),
        ("resolve_head", 1),
        ("resolve_head", 3),
        ("resolve", 1),
        ("resolve", 4),
        ("cdn", 2),
    ],
)
def test_a_fault_is_overcome(hub, tiny_folder, tiny_plus, kind, at, when):
    if at == "cdn":  # where large files are
        HfApi().create_repo("org/large", repo_type="dataset")
        HfApi().upload_folder(repo_id="org/large", repo_type="dataset", folder_path=tiny_folder)
        hub.cdn = True
    fault = Fault(kind, at=at, when=when, count=2)
    hub.faults.append(fault)
    assert same(load_reinforced("org/large" if at == "cdn" else REPO), tiny_plus)
    assert fault.reached.is_set()


def test_the_configurations_must_be_known_where_none_is_named(hub):
    hub.faults.append(Fault("500", at="tree|repo_info", when=2, count=10_000))
    with pytest.raises(HubError, match=r"fetch org/tiny-plus .*but 6 attempts failed"):
        load_reinforced(REPO)


def test_a_fault_that_stays_is_an_error_and_the_next_call_goes_on(hub, tiny_plus):
    hub.faults.append(Fault("reset", at="resolve", when=3, count=10_000))
    with pytest.raises(
        HubError, match="expected to fetch org/tiny-plus from the Hub, but 6 attempts failed, the last with"
    ):
        load_reinforced(REPO)
    hub.faults.clear()
    hub.log.clear()
    assert same(load_reinforced(REPO), tiny_plus)
    assert 0 < hub.counts["resolve"] < 4, "what has arrived is kept"


# ------------------------------------------------------------------------------------------------------------- offline


@pytest.mark.parametrize("name", [NAME, None])
def test_offline_the_cache_is_enough(hub, offline, tiny_plus, name):
    load_reinforced(REPO, NAME)
    offline()
    hub.log.clear()
    assert same(load_reinforced(REPO, name), tiny_plus)
    assert not hub.log


@pytest.mark.parametrize("name", [NAME, None])
@pytest.mark.parametrize("kind", ["reset", "503"])
def test_so_it_is_where_the_hub_is_down(hub, tiny_plus, name, kind, caplog):
    load_reinforced(REPO, NAME)
    hub.faults.append(Fault(kind, count=10_000))
    assert same(load_reinforced(REPO, name), tiny_plus)
    assert (f"of {REPO} only what is in the cache is seen" in caplog.text) == (name is None)


def test_offline_without_a_cache(hub, offline):
    offline()
    with pytest.raises(HubError, match=r"it is not in the cache and HF_HUB_OFFLINE is set. Unset it"):
        load_reinforced(REPO)


def test_offline_with_half_a_cache(hub, offline):
    fetch_config(REPO, NAME, shards=False)
    offline()
    with pytest.raises(HubError, match=r"it is not in the cache and HF_HUB_OFFLINE is set. Unset it"):
        load_reinforced(REPO)


# ---------------------------------------------------------------------------------------------------- base and columns


@pytest.fixture(scope="module")
def overlay(tmp_path_factory, tiny_dataset, tiny_teacher) -> Path:
    return small(tiny_dataset, tiny_teacher, tmp_path_factory.mktemp("overlay"), "overlay", overlay=True)


def test_a_base_may_be_a_name(overlay, tiny_dataset, tmp_path, tiny_plus):
    tiny_dataset.shuffle(seed=1).to_parquet(tmp_path / "base.parquet")
    plus = load_reinforced(overlay, base=tmp_path / "base.parquet")
    for row in range(12):
        np.testing.assert_array_equal(np.asarray(plus.example_image(row)), np.asarray(tiny_plus.example_image(row)))


def test_the_base_that_was_reinforced_is_loaded_as_it_was(overlay, monkeypatch, tiny_dataset):
    asked = []
    monkeypatch.setattr(hf_dr.replay.loading, "load_base", lambda *a, **k: asked.append((*a, k)) or (tiny_dataset, {}))
    provenance = Provenance.read(overlay / "overlay")
    provenance.base.update(id="org/base", config="plain", revision="c0ffee")
    monkeypatch.setattr(Provenance, "read", lambda config: provenance)
    load_reinforced(overlay, base="org/base")
    load_reinforced(overlay, base="org/base", base_config="other", base_revision="main")
    load_reinforced(overlay, base="me/copy")
    assert asked == [
        ("org/base", "plain", {"split": "train", "revision": "c0ffee", "files_from": ()}),
        ("org/base", "other", {"split": "train", "revision": "main", "files_from": ()}),
        ("me/copy", None, {"split": "train", "revision": None, "files_from": ()}),
    ]


def test_an_overlay_of_the_hub_over_a_base_of_the_hub(hub, overlay, tiny_dataset, tmp_path, tiny_plus):
    tiny_dataset.select([*range(6, 12), *range(6)]).to_parquet(tmp_path / "train.parquet")
    hub.put("org/base", {"data/train-00000-of-00001.parquet": (tmp_path / "train.parquet").read_bytes()})
    hub.put("org/over", content(overlay))
    plus = load_reinforced("org/over", base="org/base")
    np.testing.assert_array_equal(np.asarray(plus.example_image(3)), np.asarray(tiny_plus.example_image(3)))


def test_rows_of_several_splits_are_found_by_the_name_of_their_base(hub, tiny_dataset, tiny_teacher, tmp_path, caplog):
    """`datasets` takes parts and sums of splits; the first of them names the shards."""
    for split, rows in (("train", range(8)), ("test", range(8, 12))):
        tiny_dataset.select(rows).to_parquet(tmp_path / f"{split}.parquet")
    files = {
        f"data/{split}-00000-of-00001.parquet": (tmp_path / f"{split}.parquet").read_bytes()
        for split in ("train", "test")
    }
    hub.put("org/base", files)
    images = datasets.load_dataset("org/base", split="train[6:]+test")
    folder = small(images, tiny_teacher, tmp_path / "plus", "overlay", overlay=True)
    plus = load_reinforced(folder, base="org/base")
    assert (plus.provenance.split, plus.provenance.base_split, len(plus)) == ("train", "train[6:]+test", 6)
    for row in range(6):
        np.testing.assert_array_equal(np.asarray(plus.example_image(row)), np.asarray(tiny_dataset[6 + row]["image"]))
    with caplog.at_level("INFO"):
        stream = load_reinforced(folder, base="org/base", streaming=True)
    assert "The base is not one split; it is loaded before it is read" in caplog.text
    assert len(list(stream)) == 6
    with pytest.raises(DataError, match=r"Give split `train\[6:\]\+test` of org/base"):
        load_reinforced(folder, base=tiny_dataset.select(range(8)))
    assert "split `train[6:]+test`" in (folder / "README.md").read_text()
    part = datasets.load_dataset("org/base", split="train[6:]")
    with caplog.at_level("INFO"):
        folder = small(part, tiny_teacher, tmp_path / "part", "overlay", overlay=True)
    assert "`train[6:]` is stored as split `train`; its rows are counted from 0." in caplog.text
    plus = load_reinforced(folder, base="org/base")
    assert (plus.provenance.base_split, len(plus)) == ("train", 2)
    np.testing.assert_array_equal(np.asarray(plus.example_image(1)), np.asarray(tiny_dataset[7]["image"]))
    with pytest.raises(ReplayError, match="where a slice of it was reinforced, leave `streaming` out"):
        list(load_reinforced(folder, base="org/base", streaming=True))


def test_a_split_of_a_saved_dataset_is_found_by_its_name(tiny_dataset, tiny_teacher, tmp_path):
    """Both halves of `train_test_split` say that they are the split `train`, and those of `from_dict` say nothing."""
    halves = tiny_dataset.train_test_split(4, shuffle=False)
    halves.save_to_disk(tmp_path / "base")
    for split, rows in (("test", [8, 9, 10, 11]), ("train[6:]+test", range(6, 12))):
        images, described = load_base(str(tmp_path / "base"), split=split)
        config = ReinforceConfig(str(tmp_path / split), num_views=1, top_k=1, overlay=True)
        reinforce_job(images, tiny_teacher, Augmentation([Resize((8, 8))]), config, base=described).run()
        plus = load_reinforced(tmp_path / split, base=tmp_path / "base")
        assert (plus.provenance.split, plus.provenance.base_split) == (split.split("[")[0], split)
        for row, of_base in enumerate(rows):
            np.testing.assert_array_equal(plus.example_image(row), tiny_dataset[of_base]["image"])


def test_a_base_in_a_folder_is_known_by_the_folder_however_its_path_is_written(
    tiny_dataset, tiny_teacher, tmp_path, monkeypatch
):
    """What is known of it, its configuration and the sum of splits, holds for the same folder at any path."""
    for config, first in (("small", 9), ("large", 0)):
        for split, rows in (("train", range(first, 10)), ("test", range(10, 12))):
            place = tmp_path / "base" / config / f"{split}.parquet"
            place.parent.mkdir(parents=True, exist_ok=True)
            tiny_dataset.select(rows).to_parquet(place)
    configs = "".join(f"- config_name: {name}\n  data_dir: {name}\n" for name in ("small", "large"))
    (tmp_path / "base" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    images, described = load_base(str(tmp_path / "base"), "large", split="train[6:]+test")
    folder = tmp_path / "plus"
    config = ReinforceConfig(str(folder), num_views=1, top_k=1, overlay=True)
    reinforce_job(images, tiny_teacher, Augmentation([Resize((8, 8))]), config, base=described).run()
    monkeypatch.chdir(tmp_path)
    for base in ("base", "base/", tmp_path / "base", "../" + tmp_path.name + "/base"):
        for streaming in (False, True):
            assert len(list(load_reinforced(folder, base=base, streaming=streaming))) == 6


def test_settings_of_a_base_need_its_name(overlay, tiny_dataset):
    for settings in (
        {"base_config": "x"},
        {"base_config": ""},
        {"base_revision": "main", "base": tiny_dataset},
        {"files_from": ["."], "base": tiny_dataset},
    ):
        with pytest.raises(
            ConfigError, match=r"`(base_config|base_revision|files_from)` must come with the name of a base, got"
        ):
            load_reinforced(overlay, **settings)
    with pytest.raises(DataError, match=r"must be on the Hub and open to you|could not load"):
        load_reinforced(overlay, base="org/nowhere")


def test_columns_come_with_the_items(tiny_folder, tiny_dataset, tmp_path, tiny_teacher):
    more = tiny_dataset.add_column("caption", [f"image {row}" for row in range(12)])
    folder = small(more, tiny_teacher, tmp_path, "captions", overlay=True)
    plus = load_reinforced(folder, base=more, columns=["caption"])
    assert [plus[row]["caption"] for row in (0, 7)] == ["image 0", "image 7"]
    assert plus[0].keys() == load_reinforced(folder, base=more)[0].keys() | {"caption"}
    image = load_reinforced(tiny_folder, columns=["image", "label"])[3]["image"]
    np.testing.assert_array_equal(np.asarray(image), np.asarray(tiny_dataset[3]["image"]))
    base = tiny_dataset.select_columns(["image"])
    assert load_reinforced(folder, base=base, columns=("caption",))[1]["caption"] == "image 1"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["labl"], r"must name columns of the dataset, but it has no `labl`. Did you mean `label`\?"),
        (["teacher_ids"], "must be the base's own, but an item has its own `teacher_ids`. Leave it out"),
        (["aug_flip"], "its own `aug_flip`"),
        (["pixel_values"], "its own `pixel_values`"),
        (["labels"], "its own `labels`"),
    ],
)
def test_columns_must_be_the_bases_own(tiny_folder, columns, message):
    with pytest.raises(ConfigError, match=message):
        load_reinforced(tiny_folder, columns=columns)


def test_columns_of_rows_without_reinforcement(tmp_path, tiny_dataset, tiny_teacher):
    more = tiny_dataset.add_column("caption", [f"image {row}" for row in range(12)])
    folder = small(more, tiny_teacher, tmp_path, "captions", overlay=True, max_examples=5)
    order = [3, 9, 0, 1, 2, 11, 4]
    plus = load_reinforced(folder, base=more.select(order), columns=["caption"], unreinforced=True)
    assert [plus[n]["caption"] for n in range(7)] == [f"image {row}" for row in (0, 1, 2, 3, 4, 9, 11)]
    with pytest.raises(ConfigError, match=r"it has no `caption`. Known: image, label"):
        load_reinforced(folder, base=tiny_dataset, columns=["caption"], unreinforced=True)

"""Pushing: what stands at the Hub afterwards is what is on disk; nothing that others put there is lost."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import children
import datasets
import huggingface_hub
import pytest
from conftest import ALL_OPS
from huggingface_hub import CommitOperationDelete, HfApi
from loopback_hub import Fault, LoopbackHub

import hf_dr.hub.push
from hf_dr.cli.main import main
from hf_dr.errors import ConfigError, FormatError, HubError
from hf_dr.files import unreadable
from hf_dr.generation.config import ExportConfig, ReinforceConfig
from hf_dr.generation.export import WebDatasetExport
from hf_dr.generation.job import reinforce
from hf_dr.hub.push import push_to_hub
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.card import CARD_FILE
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import PROVENANCE_FILE
from hf_dr.teacher.ensemble import Teacher
from hf_dr.views.augmentation import Augmentation

REPO = "me/tiny-plus"


@pytest.fixture
def plus(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the "+" dataset that a test may change."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "tiny-plus"))


@pytest.fixture(scope="session")
def rrc_folder(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: datasets.Dataset, tiny_teacher: Teacher) -> Path:
    """Folder of a "+" dataset over the same base with the one config `rrc`."""
    folder = tmp_path_factory.mktemp("more") / "more-plus"
    reinforce(
        tiny_dataset, tiny_teacher, Augmentation.named("rrc", 24), ReinforceConfig(str(folder), num_views=2, top_k=3)
    )
    return folder


def of_config(folder: Path, name: str) -> dict[str, bytes]:
    """The files of a configuration that shall be at the Hub, by their path there."""
    return {
        f"{name}/{path.name}": path.read_bytes() for path in (folder / name).iterdir() if not path.name.startswith(".")
    }


def test_files_arrive_as_they_are_in_one_commit(loopback_hub: LoopbackHub, plus: Path) -> None:
    push = push_to_hub(plus, REPO)
    there = loopback_hub.files(REPO)
    assert {path: data for path, data in there.items() if path.startswith("all_ops/")} == of_config(plus, "all_ops")
    assert there[CARD_FILE].decode() == push.card
    assert set(there) - {".gitattributes", CARD_FILE} == set(push.files)
    assert loopback_hub.counts["commit"] == 1
    assert push.commit == HfApi().dataset_info(REPO).sha


def test_load_dataset_gives_what_is_on_disk(loopback_hub: LoopbackHub, plus: Path) -> None:
    push_to_hub(plus, REPO)
    local, there = (datasets.load_dataset(str(where), "all_ops", split="train") for where in (plus, REPO))
    assert local.features == there.features
    assert local.data.table.equals(there.data.table)


def test_a_second_push_of_the_same_sends_and_commits_nothing(
    loopback_hub: LoopbackHub, plus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "hf_dr")
    first = push_to_hub(plus, REPO)
    assert first.sent == len(first.files) + 1  # and the card
    assert f"Pushed {first.sent} changed files to {first.url} at {first.commit}." in caplog.text
    assert "is new and its card names no licence" in caplog.text
    caplog.clear()
    sent = loopback_hub.received("lfs_put")
    second = push_to_hub(plus, REPO)
    assert second.sent == 0
    assert caplog.messages == [f"Nothing has changed since {first.url} at {first.commit}."]
    assert first.url.startswith("http")
    assert (second.commit, loopback_hub.received("lfs_put"), loopback_hub.counts["commit"]) == (first.commit, sent, 1)


def test_configurations_and_text_of_others_stay(loopback_hub: LoopbackHub, plus: Path, rrc_folder: Path) -> None:
    push_to_hub(plus, REPO)
    files = loopback_hub.files(REPO)
    written = files[CARD_FILE].decode() + "\nWritten by a person.\n"
    loopback_hub.put(REPO, {**files, CARD_FILE: written.encode(), "notes.txt": b"mine", "all_ops/notes.txt": b"mine"})
    push = push_to_hub(rrc_folder, REPO)
    there = loopback_hub.files(REPO)
    for path, data in {**of_config(plus, "all_ops"), **of_config(rrc_folder, "rrc")}.items():
        assert there[path] == data
    assert there["notes.txt"] == there["all_ops/notes.txt"] == b"mine"
    assert "Written by a person." in push.card
    assert datasets.get_dataset_config_names(REPO) == ["all_ops", "rrc"]
    for name, rows in (("all_ops", 12), ("rrc", 12)):
        assert len(datasets.load_dataset(REPO, name, split="train")) == rows


def test_someone_elses_commit_in_between_is_merged_with(
    loopback_hub: LoopbackHub, plus: Path, rrc_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_to_hub(plus, REPO, configs=["all_ops"])
    commit, moved = HfApi.create_commit, []

    def overtaken(self: HfApi, **settings: object) -> object:
        if not moved:  # after the head was read, before the commit on top of it
            moved.append(True)
            loopback_hub.put(REPO, {**loopback_hub.files(REPO), "theirs.txt": b"theirs"})
        return commit(self, **settings)

    monkeypatch.setattr(HfApi, "create_commit", overtaken)
    push_to_hub(rrc_folder, REPO)
    there = loopback_hub.files(REPO)
    assert moved
    assert there["theirs.txt"] == b"theirs"
    assert {path for path in there if path.startswith("rrc/")} == set(of_config(rrc_folder, "rrc"))


def test_a_shard_that_somebody_deleted_meanwhile_comes_back(
    loopback_hub: LoopbackHub, plus: Path, rrc_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there when the push began, so it was not sent; the commit still has to bring it."""
    push_to_hub(plus, REPO)
    shutil.copytree(rrc_folder / "rrc", plus / "rrc")
    commit, moved = HfApi.create_commit, []

    def overtaken(self: HfApi, **settings: object) -> object:
        if not moved:
            moved.append(True)
            gone = [CommitOperationDelete(path) for path in loopback_hub.files(REPO) if "00001-of" in path]
            commit(self, repo_id=REPO, repo_type="dataset", operations=gone, commit_message="Clear out")
        return commit(self, **settings)

    monkeypatch.setattr(HfApi, "create_commit", overtaken)
    push_to_hub(plus, REPO)
    there = loopback_hub.files(REPO)
    for name in ("all_ops", "rrc"):
        assert {path: there[path] for path in there if path.startswith(f"{name}/")} == of_config(plus, name)


ELSEWHERE = "configs:\n- config_name: all_ops\n  data_files:\n  - {split: train, path: data/train-*}\n"
IN_FOLDER = "configs:\n- config_name: all_ops\n  data_files:\n  - {split: train, path: all_ops/train-*}\n"


@pytest.mark.parametrize(
    ("there", "card", "found"),
    [
        # As `Dataset.push_to_hub(repo, "all_ops")` makes it, and as `hf-dr export` does.
        (dict.fromkeys(["all_ops/train-0.parquet", "all_ops/test-0.parquet"], b"x"), IN_FOLDER, "all_ops/test"),
        (dict.fromkeys([f"all_ops/{name}" for name in ("export.json", "sizes.json", "reinforcement.json", "a.tar")], b"{}"),
         IN_FOLDER, "all_ops/a.tar"),
        ({"data/train-0.parquet": b"x"}, ELSEWHERE, "another in its card"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("overwrite", [False, True])
def test_the_name_of_a_configuration_with_other_data_is_refused(
    loopback_hub: LoopbackHub, plus: Path, there: dict[str, bytes], card: str, found: str, overwrite: bool
) -> None:
    loopback_hub.put(REPO, {"README.md": f"---\n{card}---\n# Theirs\n".encode(), **there})
    before = loopback_hub.files(REPO)
    expected = rf"`all_ops` of {REPO} must be one that was pushed by hf_dr, or none, found {found}"
    with pytest.raises(ConfigError, match=expected):
        push_to_hub(plus, REPO, overwrite=overwrite)
    assert loopback_hub.files(REPO) == before


def test_a_configuration_whose_folder_somebody_deleted_comes_back(loopback_hub: LoopbackHub, plus: Path) -> None:
    push_to_hub(plus, REPO)
    gone = [CommitOperationDelete(path) for path in loopback_hub.files(REPO) if path.startswith("all_ops/")]
    HfApi().create_commit(REPO, gone, commit_message="Clear out", repo_type="dataset")
    push_to_hub(plus, REPO)
    there = loopback_hub.files(REPO)
    assert {path: there[path] for path in there if path.startswith("all_ops/")} == of_config(plus, "all_ops")


def test_another_version_replaces_only_when_told_to(
    loopback_hub: LoopbackHub, plus: Path, tiny_dataset: datasets.Dataset, tiny_teacher: Teacher, tmp_path: Path
) -> None:
    push_to_hub(plus, REPO)
    other = tmp_path / "other"
    config = ReinforceConfig(str(other), "all_ops", num_views=4, top_k=3, shard_size=12, seed=1)
    reinforce(tiny_dataset, tiny_teacher, ALL_OPS, config)
    before = loopback_hub.files(REPO)
    with pytest.raises(
        ConfigError, match=r"must be the one that is pushed, found another \(seed: 0 there, 1 here.*`overwrite`"
    ):
        push_to_hub(other, REPO)
    assert loopback_hub.files(REPO) == before
    push = push_to_hub(other, REPO, overwrite=True)
    assert push.deleted == tuple(f"all_ops/train-0000{n}-of-00003.parquet" for n in range(3))
    there = loopback_hub.files(REPO)
    assert {path: there[path] for path in there if path.startswith("all_ops/")} == of_config(other, "all_ops")


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_shall_be_private_is_not_pushed_to_a_public_repository(
    loopback_hub: LoopbackHub, plus: Path, dry_run: bool
) -> None:
    loopback_hub.put(REPO, {"notes.txt": b"mine"})
    with pytest.raises(
        ConfigError, match=r"`private` must be left out for a repository that is public, and me/tiny-plus is"
    ):
        push_to_hub(plus, REPO, private=True, dry_run=dry_run)
    assert set(loopback_hub.files(REPO)) == {"notes.txt"}
    push_to_hub(plus, "me/another", private=True, dry_run=dry_run)
    if not dry_run:
        assert loopback_hub.repo("me/another").private
        push_to_hub(plus, "me/another", private=True)


@pytest.mark.parametrize("card", [None, b"# Photos\n", b"---\nlicense: mit\n---\n"])
def test_data_that_is_loaded_without_being_named_is_not_hidden(
    loopback_hub: LoopbackHub, plus: Path, card: bytes | None
) -> None:
    images = next((plus / "all_ops").glob("*.parquet")).read_bytes()
    there = {"data/test-00000-of-00001.parquet": images, "notes.txt": b"mine"}
    loopback_hub.put(REPO, there if card is None else {**there, CARD_FILE: card})
    with pytest.raises(
        ConfigError, match=r"found nothing of data/test-00000-of-00001.parquet: .* nobody could load that any more"
    ):
        push_to_hub(plus, REPO)
    named = b"---\nconfigs:\n- config_name: theirs\n  data_files: data/*.parquet\n---\n"
    loopback_hub.put(REPO, {**there, CARD_FILE: named})
    push_to_hub(plus, REPO)
    assert datasets.get_dataset_config_names(REPO) == ["all_ops", "theirs"]


def test_an_export_at_the_hub_is_no_configuration(loopback_hub: LoopbackHub, plus: Path, tmp_path: Path) -> None:
    WebDatasetExport(load_reinforced(plus), ExportConfig(str(tmp_path / "wds"))).run()
    push_to_hub(plus, REPO)
    exported = {path.name: path.read_bytes() for path in (tmp_path / "wds").iterdir() if path.is_file()}
    beside = {f"wds/{name}": data for name, data in exported.items()}
    loopback_hub.put(REPO, {**loopback_hub.files(REPO), **beside})
    assert len(load_reinforced(REPO)) == 12, "the only configuration needs no name"
    loopback_hub.put("me/wds", exported)
    with pytest.raises(
        FormatError, match=r"must be in Parquet files, found the tar files of `hf-dr export` in me/wds\."
    ):
        load_reinforced("me/wds")
    loopback_hub.put("me/tars", beside)
    with pytest.raises(
        ConfigError, match=r"found nothing of wds/.*: once it names what is pushed, nobody could load that"
    ):
        push_to_hub(plus, "me/tars")


def test_pictures_of_the_card_and_descriptions_are_no_data(loopback_hub: LoopbackHub, plus: Path) -> None:
    there = {"banner.png": b"", "croissant.json": b"{}", "a/dataset_infos.json": b"{}"}
    loopback_hub.put(REPO, {**there, CARD_FILE: b"# Photos\n"})
    with pytest.raises(ConfigError, match=r"found nothing of banner.png: once"):
        push_to_hub(plus, REPO)
    loopback_hub.put(REPO, {CARD_FILE: b"# Photos\n![our photos](banner.png)\n"})
    push_to_hub(plus, REPO)
    assert there.keys() < loopback_hub.files(REPO).keys()


def test_what_was_found_out_about_a_replaced_configuration_goes_with_it(
    loopback_hub: LoopbackHub, plus: Path, tiny_dataset: datasets.Dataset, tiny_teacher: Teacher, tmp_path: Path
) -> None:
    assert main(["inspect", str(plus), "--save"]) == 0
    push_to_hub(plus, REPO)
    assert {"all_ops/statistics.json", "all_ops/contact_sheet.png"} <= loopback_hub.files(REPO).keys()
    push_to_hub(plus, REPO, overwrite=True)  # the same: nothing is replaced
    assert "all_ops/statistics.json" in loopback_hub.files(REPO)
    other = tmp_path / "other" / "tiny-plus"
    config = ReinforceConfig(str(other), num_views=2, top_k=3, config_name="all_ops", overlay=True)
    reinforce(tiny_dataset, tiny_teacher, Augmentation.named("rrc", 24), config)
    push_to_hub(other, REPO, overwrite=True)
    there = {path for path in loopback_hub.files(REPO) if path.startswith("all_ops/")}
    assert there == set(of_config(other, "all_ops"))


def test_what_was_written_into_the_local_card_later_is_said_not_to_be_sent(
    loopback_hub: LoopbackHub, plus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    push_to_hub(plus, REPO)
    caplog.clear()
    push_to_hub(plus, REPO)
    assert "not sent" not in caplog.text
    card = plus / CARD_FILE
    card.write_text(card.read_text().replace("---\n", "---\nlicense: cc-by-4.0\n", 1))
    push_to_hub(plus, REPO)
    assert f"README.md of the folder has lines that the card of {REPO} has not. They are not sent" in caplog.text
    assert b"cc-by-4.0" not in loopback_hub.files(REPO)[CARD_FILE]


def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    loopback_hub: LoopbackHub, plus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(plus), REPO, "--dry_run"]) == 0
    out = capsys.readouterr().out
    for path, data in of_config(plus, "all_ops").items():
        assert f"{len(data):,}  {path}" in out
    assert "dataset-reinforcement" in out
    assert set(loopback_hub.counts) <= {"repo_info"}
    push_to_hub(plus, REPO)
    assert push_to_hub(plus, REPO, dry_run=True).commit is None
    assert loopback_hub.counts["commit"] == 1


def test_a_dry_run_without_the_hub_shows_a_push_to_a_new_repository(loopback_hub, plus, monkeypatch, caplog):
    asked = push_to_hub(plus, REPO, dry_run=True)
    loopback_hub.log.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert push_to_hub(plus, REPO, dry_run=True, private=True) == asked
    assert not loopback_hub.log
    assert "The Hub is not asked, because HF_HUB_OFFLINE is set: this is a push to a new repository." in caplog.text
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set\. Unset it"):
        push_to_hub(plus, REPO)


def test_the_command_pushes_and_prints_where(
    loopback_hub: LoopbackHub, plus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(plus), REPO, "--private", "--tags", "v1", "v2", "--commit_message", "First"]) == 0
    info = HfApi().dataset_info(REPO)
    assert capsys.readouterr().out.strip() == f"{loopback_hub.endpoint}/datasets/{REPO} at {info.sha}"
    assert info.private
    refs = HfApi().list_repo_refs(REPO, repo_type="dataset")
    assert {tag.name: tag.target_commit for tag in refs.tags} == {"v1": info.sha, "v2": info.sha}
    assert HfApi().list_repo_commits(REPO, repo_type="dataset")[0].title == "First"


def test_a_branch_is_made_and_main_left_alone(loopback_hub: LoopbackHub, plus: Path) -> None:
    push = push_to_hub(plus, REPO, revision="v2")
    assert push.revision == "v2"
    assert "all_ops/reinforcement.json" in loopback_hub.files(REPO, "v2")
    assert "all_ops/reinforcement.json" not in loopback_hub.files(REPO)
    card = loopback_hub.files(REPO, "v2")["README.md"].decode()
    assert f'plus = load_dataset("{REPO}", "all_ops", split="train", revision="v2")' in card
    assert f'train = load_reinforced("{REPO}", "all_ops", revision="v2")' in card
    assert card.count(" --name all_ops --revision v2 ") == 2
    assert len(datasets.load_dataset(REPO, "all_ops", split="train", revision="v2")) == 12


def test_a_pull_request_is_opened_once(loopback_hub: LoopbackHub, plus: Path) -> None:
    first, second = (push_to_hub(plus, REPO, create_pr=True) for _ in range(2))
    assert (first.revision, second.commit) == ("refs/pr/1", first.commit)
    assert first.url.endswith(f"{REPO}/discussions/1")
    assert "all_ops/reinforcement.json" in loopback_hub.files(REPO, "refs/pr/1")
    assert f'train = load_reinforced("{REPO}", "all_ops")' in first.card
    assert "all_ops/reinforcement.json" not in loopback_hub.files(REPO)


def test_one_tag_is_not_taken_for_a_tag_of_each_letter(loopback_hub: LoopbackHub, plus: Path) -> None:
    with pytest.raises(ConfigError, match=r"`tags` must be a list of names, got 'v1'\. Put it into a list"):
        push_to_hub(plus, REPO, tags="v1")
    assert not loopback_hub.repos


def test_tags_must_be_new_or_stand_there(loopback_hub: LoopbackHub, plus: Path, rrc_folder: Path) -> None:
    push_to_hub(plus, REPO, tags=["v1"])
    push_to_hub(plus, REPO, tags=["v1"])
    with pytest.raises(
        ConfigError, match=r"the tag `v1` must be new, but me/tiny-plus has it at [0-9a-f]{12}\. Choose another"
    ):
        push_to_hub(rrc_folder, REPO, tags=["v1"])
    assert "rrc/reinforcement.json" not in loopback_hub.files(REPO)


def test_a_tag_of_the_same_files_under_another_card_is_told(loopback_hub, plus: Path, monkeypatch) -> None:
    first = push_to_hub(plus, REPO, tags=["v1"])
    update = hf_dr.hub.push.update_card
    monkeypatch.setattr(hf_dr.hub.push, "update_card", lambda *given, **more: update(*given, **more) + "\nMore.\n")
    with pytest.raises(
        HubError, match=rf"the tag `v1` must stand at [0-9a-f]{{40}}, where .* at {first.commit}: the card"
    ):
        push_to_hub(plus, REPO, tags=["v1"])
    refs = HfApi().list_repo_refs(REPO, repo_type="dataset")
    assert {tag.target_commit for tag in refs.tags} == {first.commit}, "the tag stays where it was"


def test_an_unfinished_configuration_is_refused_before_anything_is_sent(
    loopback_hub: LoopbackHub, plus: Path, rrc_folder: Path
) -> None:
    shutil.copytree(rrc_folder / "rrc", plus / "rrc")
    (plus / "all_ops" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(FormatError, match=r"must have 3 shards, found 2 of them.*Run the same reinforce command again"):
        push_to_hub(plus, REPO)
    assert not loopback_hub.counts
    push_to_hub(plus, REPO, configs=["rrc"])
    assert not [path for path in loopback_hub.files(REPO) if path.startswith("all_ops/")]


def push_online(folder: str) -> int:
    """Pushes from a process that was forked from one without a Hub."""
    huggingface_hub.constants.HF_HUB_OFFLINE = False
    huggingface_hub.constants.HF_HUB_CACHE = os.environ["HF_HUB_CACHE"]
    return main(["push", folder, REPO])


def test_two_processes_send_their_shares_and_one_commits(loopback_hub: LoopbackHub, plus: Path, tmp_path: Path) -> None:
    environment = {"HF_TOKEN": loopback_hub.token, "HF_HUB_CACHE": str(tmp_path / "cache")}
    printed = children.run(push_online, str(plus), two=True, log=tmp_path / "log", **environment)
    assert {path: data for path, data in loopback_hub.files(REPO).items() if path.startswith("all_ops/")} == of_config(
        plus, "all_ops"
    )
    assert loopback_hub.counts["commit"] == 1
    assert loopback_hub.counts["lfs_batch"] == 2  # each process its own
    assert printed.count(f"\n{loopback_hub.endpoint}/datasets/{REPO} at ") == 1


def test_what_one_process_cannot_send_ends_both(loopback_hub: LoopbackHub, plus: Path, tmp_path: Path) -> None:
    """A refusal on one rank; without an answer to it the other would wait for a week."""
    loopback_hub.faults.append(Fault("403", at="lfs_batch"))
    environment = {"HF_TOKEN": loopback_hub.token, "HF_HUB_CACHE": str(tmp_path / "cache")}
    both = children.start_two(push_online, str(plus), log=tmp_path / "log", **environment)
    assert [child.wait() for child in both] == [2, 2]
    assert "error: expected to send all_ops/" in both[0].text
    assert not [path for path in loopback_hub.files(REPO) if path.startswith("all_ops/")]


def push_unreadable(folder: str) -> int:
    """Pushes a folder of which the disk of the second process does not give a shard."""
    check = hf_dr.hub.push.check_digests

    def read(path: Path) -> None:
        if os.environ["RANK"] == "1":
            raise unreadable(path, OSError(errno.EIO, os.strerror(errno.EIO)))
        check(path)

    hf_dr.hub.push.check_digests = read
    return push_online(folder)


def test_what_one_process_cannot_read_is_told_by_both(loopback_hub: LoopbackHub, plus: Path, tmp_path: Path) -> None:
    environment = {"HF_TOKEN": loopback_hub.token, "HF_HUB_CACHE": str(tmp_path / "cache")}
    both = children.start_two(push_unreadable, str(plus), log=tmp_path / "log", **environment)
    assert [child.wait() for child in both] == [2, 2]
    for rank in (0, 1):
        shard = plus / "all_ops" / "train-00001-of-00003.parquet"
        assert f"[rank {rank}] error: could not read {shard}: Input/output error. Fix the file" in both[0].text
    assert not loopback_hub.counts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"configs": ["al_ops"]}, "has no configuration `al_ops`. Did you mean `all_ops`?"),
        (
            {"repo_id": "no owner"},
            "`repo_id` must be `owner/name` of letters, digits, '_', '-' and '.', got 'no owner'",
        ),
        (
            {"repo_id": "tiny-plus"},
            "`repo_id` must be `owner/name` of letters, digits, '_', '-' and '.', got 'tiny-plus'. Correct it.",
        ),
        ({"create_pr": True, "revision": "v2"}, "`create_pr` must be left out with a `revision`, got 'v2'"),
    ],
)
def test_impossible_settings_are_refused(
    loopback_hub: LoopbackHub, plus: Path, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        push_to_hub(plus, **{"repo_id": REPO, **settings})
    assert message in str(error.value)
    assert not loopback_hub.counts


def test_a_folder_without_a_plus_dataset_is_refused(loopback_hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'must be the folder of a "\+" dataset, got list. Give the `output_dir`'):
        push_to_hub([tmp_path], REPO)
    with pytest.raises(FormatError, match=r'must hold a "\+" dataset, but no folder in it has a reinforcement.json'):
        push_to_hub(tmp_path, REPO)
    (tmp_path / "randaug").mkdir()
    (tmp_path / "randaug" / PROVENANCE_FILE).write_text("{}")
    with pytest.raises(ConfigError, match=r"found that of its configuration `randaug`\. Name the folder above it, "):
        push_to_hub(tmp_path / "randaug", REPO)
    with pytest.raises(FormatError, match=r'expected the folder of a "\+" dataset, found none at .*nowhere'):
        push_to_hub(tmp_path / "nowhere", REPO)


def test_without_a_token_it_says_how_to_log_in(
    loopback_hub: LoopbackHub, plus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"expected a token to push with, found none. Log in with `hf auth login`"):
        push_to_hub(plus, REPO)


@pytest.mark.parametrize("token", ["hf_wrongtokenwrongtoken"])
def test_a_token_is_never_told(
    loopback_hub: LoopbackHub, plus: Path, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(HubError, match=r"expected to log in to the Hub, but the Hub refused.*hf auth login") as error:
        push_to_hub(plus, REPO, token=token)
    assert token not in str(error.value) + caplog.text


def test_a_card_that_cannot_be_merged_is_found_before_anything_is_sent(loopback_hub: LoopbackHub, plus: Path) -> None:
    push_to_hub(plus, REPO, configs=["all_ops"])
    files = loopback_hub.files(REPO)
    loopback_hub.put(REPO, {CARD_FILE: files[CARD_FILE].replace(b"<!-- hf_dr: end -->", b"", 1)})
    sent = loopback_hub.received("lfs_put")
    with pytest.raises(FormatError, match="marker"):
        push_to_hub(plus, REPO)
    assert loopback_hub.received("lfs_put") == sent


def test_a_damaged_provenance_at_the_hub_is_told(loopback_hub: LoopbackHub, plus: Path) -> None:
    push_to_hub(plus, REPO)
    files = loopback_hub.files(REPO)
    path = f"all_ops/{PROVENANCE_FILE}"
    content = json.loads(files[path])
    loopback_hub.put(REPO, {**files, path: json.dumps({**content, "seed": 5}).encode()})
    with pytest.raises(FormatError, match="does not match its own fingerprint"):
        push_to_hub(plus, REPO)
    push_to_hub(plus, REPO, overwrite=True)
    assert loopback_hub.files(REPO)[path] == files[path]
    assert Provenance.read(plus / "all_ops").fingerprint == content["fingerprint"]

"""A push ends whole or can be run again, whatever happens to any of its requests; no reader ever sees half a dataset."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import re
import shutil
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub.file_download
import huggingface_hub.utils._http
import pytest
from loopback_hub import Commit, Fault, LoopbackHub

import hf_dr.hub.repository
from hf_dr.errors import HubError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.hub import retry
from hf_dr.hub.push import push_to_hub
from hf_dr.hub.repository import Push, Repository
from hf_dr.hub.retry import httpx
from hf_dr.teacher.ensemble import Teacher
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomResizedCrop

REPO = "org/tiny-plus"
FAULTS = ("500", "429", "cut", "reset", "lost")
ANSWERS = ("400", "404", "409", "412", "422", "html", "half", "echo400", "echo404", "echo422", "echo503")
CLEAR = re.compile(r"expected .*, but .*\. .*(Nothing|Either|All).*(published|visible)", re.DOTALL)
CARD = b"---\nlicense: mit\n---\n\nWritten by people.\n"

# Between them these make every kind of request that a push makes.
PUSHES = {"new": {"tags": ("v1",)}, "branch": {"revision": "draft"}, "pull request": {"create_pr": True}}
REQUESTS = {
    "new": (
        "whoami", "create_repo", "repo_info", "tree", "refs", "preupload", "lfs_batch", "lfs_put", "lfs_verify",
        "validate_yaml", "commit", "create_tag",
    ),
    "branch": ("create_branch", "resolve_head", "resolve"),  # and those above
    "pull request": ("discussions", "create_discussion", "discussion"),
}  # fmt: skip
KINDS = [(way, kind) for way, kinds in REQUESTS.items() for kind in kinds]
FORK = multiprocessing.get_context("fork")  # a process that need not import everything again before it is killed


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits before another attempt; what they would have waited is listed."""
    waited: list[float] = []
    monkeypatch.setattr(retry, "_sleep", waited.append)
    for module in (huggingface_hub.utils._http, huggingface_hub.file_download):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waited.append))
    return waited


def make(folder: Path, name: str, dataset: datasets.Dataset, teacher: Teacher, num_views: int) -> None:
    """Makes a configuration of few columns, which is soon pushed, in two shards."""
    config = ReinforceConfig(str(folder), name, num_views=num_views, top_k=3, shard_size=6)
    reinforce(dataset, teacher, Augmentation([RandomResizedCrop(24)]), config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: datasets.Dataset, tiny_teacher: Teacher) -> Path:
    """A folder with the one configuration `crops`. Read only."""
    folder = tmp_path_factory.mktemp("one") / "tiny-plus"
    make(folder, "crops", tiny_dataset, tiny_teacher, num_views=4)
    return folder


@pytest.fixture
def push(loopback_hub: LoopbackHub, folder: Path) -> Callable[[str], Push]:
    """Pushes `folder` in one of the ways of PUSHES."""
    return lambda way: push_to_hub(folder, REPO, **PUSHES[way])


def prepare(hub: LoopbackHub, way: str) -> None:
    """All ways but the first go to a repository with a card."""
    if way != "new":
        hub.put(REPO, {"README.md": CARD})


def when(request_kind: str) -> int:
    """Which request of a kind fails: of the uploads not the first, so that something is there already."""
    return 2 if request_kind in ("lfs_put", "lfs_verify") else 1


def local_files(folder: Path, root: Path | None = None) -> dict[str, bytes]:
    """What of a folder (all configurations, or one below `root`) belongs into the repository, but for the card."""
    files = [path for kind in ("*.parquet", "reinforcement.json") for path in folder.rglob(kind)]
    return {path.relative_to(root or folder).as_posix(): path.read_bytes() for path in files}


def seen(commit: Commit) -> dict[str, bytes]:
    """What a reader sees at a commit."""
    return {path: blob.read() for path, blob in commit.files.items() if path != ".gitattributes"}


def assert_whole(hub: LoopbackHub, pushed: Push, folder: Path, way: str) -> None:
    """The repository holds what the folder holds, the card says so, and no commit ever held less than all or nothing."""
    local = local_files(folder)
    files = hub.files(REPO, pushed.revision)
    text = files.pop("README.md").decode()
    assert files == local
    assert text == pushed.card
    assert ("Written by people." in text) == (way != "new")
    if way != "new":
        assert hub.files(REPO) == {"README.md": CARD}
    assert len(hub.repo(REPO).pulls) == (way == "pull request")
    before = {} if way == "new" else {"README.md": CARD}
    for commit in hub.repo(REPO).commits.values():
        assert seen(commit) in (before, {**local, "README.md": text.encode()})


def test_the_list_of_requests_is_complete(
    loopback_hub: LoopbackHub, push: Callable[[str], Push], folder: Path, waits: list[float]
) -> None:
    made = set()
    for way in PUSHES:
        loopback_hub.reset()
        prepare(loopback_hub, way)
        assert_whole(loopback_hub, push(way), folder, way)
        made |= set(loopback_hub.counts)
    assert made == set(itertools.chain(*REQUESTS.values()))
    assert not waits


def test_the_pushed_dataset_loads_equal(push: Callable[[str], Push], folder: Path) -> None:
    push("new")
    pushed = datasets.load_dataset(REPO, "crops", split="train")
    local = datasets.load_dataset(str(folder), "crops", split="train")
    assert pushed.features == local.features
    assert pushed.data.table.equals(local.data.table)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("way", "request_kind"), KINDS)
def test_one_fault_is_survived(
    loopback_hub: LoopbackHub, push: Callable[[str], Push], folder: Path, way: str, request_kind: str, fault: str
) -> None:
    prepare(loopback_hub, way)
    loopback_hub.faults.append(one := Fault(fault, at=request_kind, when=when(request_kind)))
    pushed = push(way)
    assert one.reached.is_set()
    assert_whole(loopback_hub, pushed, folder, way)


def assert_finishes(hub: LoopbackHub, push: Callable[[str], Push], folder: Path, way: str) -> None:
    """After what stopped a push is over, it ends whole when run again, and sends nothing twice."""
    hub.faults.clear()
    there = hub.stored()
    total = sum(path.stat().st_size for path in folder.glob("*/*.parquet"))
    hub.log.clear()
    assert_whole(hub, push(way), folder, way)
    assert hub.received("lfs_put") - (total - there) <= 0.02 * there


# One that repeats the token is the same answer with more in it.
@pytest.mark.parametrize("fault", [fault for fault in FAULTS + ANSWERS if f"echo{fault}" not in ANSWERS])
@pytest.mark.parametrize(("way", "request_kind"), KINDS)
def test_every_lasting_answer_ends_in_one_error_without_the_token(
    loopback_hub: LoopbackHub,
    push: Callable[[str], Push],
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    way: str,
    request_kind: str,
    fault: str,
) -> None:
    """Where a push does not need the answer it may end well; it never ends in the client's own error."""
    prepare(loopback_hub, way)
    loopback_hub.faults.append(one := Fault(fault, at=request_kind, when=when(request_kind), count=math.inf))
    error = None
    try:
        push(way)
    except HubError as found:
        error = found
    assert one.reached.wait(10)
    assert error is None or CLEAR.match(str(error))
    shown = "" if error is None else "".join(traceback.format_exception(error))
    assert "hf_loopback" not in shown + caplog.text
    assert "Bearer h" not in shown + caplog.text
    if fault in (*FAULTS, "half"):  # the other answers come without the work
        assert_finishes(loopback_hub, push, folder, way)


# A connection that one thread opens while another closes the client is left to the garbage collector, in the client's own code.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_storage_that_cannot_be_reached_for_a_while(
    loopback_hub: LoopbackHub, push: Callable[[str], Push], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client closes what all its threads share; those whose request is on its way find it closed."""
    send, left = httpx.Client.send, itertools.count(-20)

    def refused(self: httpx.Client, request: httpx.Request, **settings: object) -> httpx.Response:
        if request.method == "PUT" and (attempt := next(left)) < 0:
            if attempt % 3 == 2:
                raise RuntimeError("Cannot send a request, as the client has been closed.")
            raise httpx.ConnectError("refused", request=request)
        return send(self, request, **settings)

    monkeypatch.setattr(httpx.Client, "send", refused)
    assert_whole(loopback_hub, push("new"), folder, "new")
    assert next(left) > 0


def test_who_logs_in_within_the_endpoint_is_not_shown(
    loopback_hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = loopback_hub.endpoint.replace("://", "://me:password@")
    repository = Repository(REPO, "dataset", None, "hf_loopback_me")
    repository.api.endpoint = endpoint
    assert repository.url == f"{loopback_hub.endpoint}/datasets/{REPO}"


@pytest.mark.parametrize("moment", ["stall", "stall_after"])
@pytest.mark.parametrize(("way", "request_kind"), KINDS)
def test_a_killed_push_can_be_run_again(
    loopback_hub: LoopbackHub, push: Callable[[str], Push], folder: Path, way: str, request_kind: str, moment: str
) -> None:
    prepare(loopback_hub, way)
    loopback_hub.faults.append(stall := Fault(moment, at=request_kind, when=when(request_kind)))
    process = FORK.Process(target=push, args=(way,))
    process.start()
    assert stall.reached.wait(60)
    process.kill()
    process.join()
    assert_finishes(loopback_hub, push, folder, way)


def test_every_push_sends_only_what_is_missing(loopback_hub: LoopbackHub, push: Callable[[str], Push]) -> None:
    first = push("new")
    loopback_hub.log.clear()
    again = push("new")
    assert again == replace(first, sent=0)
    assert first.sent > 0
    assert loopback_hub.counts["commit"] == loopback_hub.received("lfs_put") == 0


@pytest.fixture(scope="module")
def other_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_dataset: datasets.Dataset, tiny_teacher: Teacher
) -> Path:
    """A folder with another configuration `rrc`, and another version of `crops`."""
    folder = tmp_path_factory.mktemp("other") / "tiny-plus"
    for name in ("rrc", "crops"):
        make(folder, name, tiny_dataset, tiny_teacher, num_views=2)
    return folder


def assert_both(hub: LoopbackHub, folder: Path, other_folder: Path) -> None:
    """`crops` of one folder and `rrc` of the other are there, each commit held both, one or none, and both load."""
    one, other = local_files(folder), local_files(other_folder / "rrc", other_folder)
    card = hub.files(REPO)["README.md"]
    for commit in hub.repo(REPO).commits.values():
        files = seen(commit)
        text = files.pop("README.md", b"").decode()
        listed = {name for name in ("crops", "rrc") if f"config_name: {name}\n" in text}
        assert (files, listed) in [
            ({}, set()),
            (one, {"crops"}),
            (other, {"rrc"}),
            ({**one, **other}, {"crops", "rrc"}),
        ]
    assert hub.files(REPO) == {**one, **other, "README.md": card}
    for name, rows in (("crops", 12), ("rrc", 12)):
        assert len(datasets.load_dataset(REPO, name, split="train")) == rows


def test_a_first_card_names_only_what_is_pushed(loopback_hub: LoopbackHub, other_folder: Path, tmp_path: Path) -> None:
    """Of a folder's card, people's text goes along, but no configuration that stays behind."""
    folder = shutil.copytree(other_folder, tmp_path / "tiny-plus")
    card = folder / "README.md"
    whole = card.read_text()
    card.write_text(whole + "\nWritten by people.\n")
    text = push_to_hub(folder, REPO, configs=["rrc"]).card
    assert "Written by people." in text
    assert "crops" in whole
    assert "crops" not in text
    push_to_hub(folder, REPO, configs=["crops"])
    shutil.rmtree(folder / "rrc")
    assert_both(loopback_hub, folder, other_folder)


@pytest.mark.parametrize("request_kind", ["create_repo", "preupload", "lfs_put", "validate_yaml", "commit"])
def test_somebody_else_pushes_meanwhile(
    loopback_hub: LoopbackHub, push: Callable[[str], Push], folder: Path, other_folder: Path, request_kind: str
) -> None:
    """Another configuration comes in between two requests of a push."""
    other = Fault(lambda: push_to_hub(other_folder, REPO, configs=["rrc"], token="hf_loopback_you"), at=request_kind)
    loopback_hub.faults.append(other)
    push("new")
    assert other.reached.is_set()
    assert_both(loopback_hub, folder, other_folder)


def test_two_processes_push_at_once(loopback_hub: LoopbackHub, folder: Path, other_folder: Path) -> None:
    pushes = [(folder, ["crops"]), (other_folder, ["rrc"])]
    processes = [FORK.Process(target=push_to_hub, args=(f, REPO), kwargs={"configs": names}) for f, names in pushes]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert_both(loopback_hub, folder, other_folder)


def test_somebody_else_commits_all_the_time(
    loopback_hub: LoopbackHub, push: Callable[[str], Push], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_dr.hub.repository, "MOVED_HEADS", 3)
    number = itertools.count()
    busy = Fault(lambda: loopback_hub.put(REPO, {"notes.txt": b"%d" % next(number)}), at="commit", count=math.inf)
    loopback_hub.faults.append(busy)
    with pytest.raises(
        HubError, match=f"commit to {REPO}, but others committed 3 times meanwhile. .* is kept"
    ) as found:
        push("new")
    assert CLEAR.match(str(found.value))
    assert next(number) == 3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_new_version_replaces_the_old_one_at_once(
    loopback_hub: LoopbackHub, push: Callable[[str], Push], folder: Path, other_folder: Path, fault: str
) -> None:
    push("new")
    loopback_hub.faults.append(Fault(fault, at="lfs_put|commit", when=2, count=2))
    push_to_hub(other_folder, REPO, configs=["crops"], overwrite=True)
    old, new = local_files(folder), local_files(other_folder / "crops", other_folder)
    heads = [seen(commit) for commit in loopback_hub.repo(REPO).at("main").history()]
    for files in heads:
        files.pop("README.md", None)
    assert heads == [new, old, {}]


def test_after_too_many_attempts_the_error_says_what_to_do(
    loopback_hub: LoopbackHub, push: Callable[[str], Push], waits: list[float]
) -> None:
    loopback_hub.faults.append(Fault("429", at="commit", count=math.inf, retry_after=7))
    with pytest.raises(
        HubError, match=r"expected to commit to org/tiny-plus, but 6 attempts failed, .* 429 .* run it again"
    ):
        push("new")
    assert waits == [7.0, 7.0, 7.0, 8.0, 16.0]

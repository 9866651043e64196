"""The loopback Hub answers the real clients as the real one would."""

from __future__ import annotations

import datasets
import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback_hub import Fault, LoopbackHub

pytestmark = pytest.mark.usefixtures("loopback_hub")
REPO = "org/data"


@pytest.fixture
def api(loopback_hub: LoopbackHub) -> HfApi:
    """A client, and the dataset repository `org/data`."""
    api = HfApi()
    api.create_repo(REPO, repo_type="dataset")
    loopback_hub.log.clear()
    return api


def add(**files: bytes) -> list[CommitOperationAdd]:
    """Operations that add `name__ext` as `name.ext`."""
    return [CommitOperationAdd(name.replace("__", "."), content) for name, content in files.items()]


def commit(api: HfApi, message: str = "More", **files: bytes) -> huggingface_hub.CommitInfo:
    return api.create_commit(REPO, add(**files), commit_message=message, repo_type="dataset")


def test_users_and_repositories(api: HfApi) -> None:
    assert api.whoami()["name"] == "me"
    assert api.create_repo(REPO, repo_type="dataset", exist_ok=True).repo_id == REPO
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO, repo_type="dataset")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("you/data", repo_type="dataset")
    assert not api.repo_exists(REPO), "a model of this name is another repository"
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(token="hf_wrong").dataset_info(REPO)
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("org/nothing")


def test_commits_keep_the_old_trees(api: HfApi, loopback_hub: LoopbackHub) -> None:
    first = commit(
        api, "First", README__md=b"---\nlicense: mit\ntags: [a, b]\n---\n# Card\n", a__parquet=b"one", b__txt=b"two"
    )
    second = api.create_commit(
        REPO,
        [*add(a__parquet=b"three"), CommitOperationDelete("b.txt"), CommitOperationAdd("deep/er/c.txt", b"four")],
        commit_message="Second",
        repo_type="dataset",
    )
    old = loopback_hub.files(REPO, first.oid)
    assert (set(old), old["a.parquet"], old["b.txt"]) == ({"README.md", "a.parquet", "b.txt"}, b"one", b"two")
    assert set(loopback_hub.files(REPO, second.oid)) == {"README.md", "a.parquet", "deep/er/c.txt"}
    assert [c.title for c in api.list_repo_commits(REPO, repo_type="dataset")][:2] == ["Second", "First"]

    info = api.dataset_info(REPO, revision=second.oid, files_metadata=True)
    assert (info.sha, info.card_data.license, info.tags) == (second.oid, "mit", ["a", "b"])
    assert {file.rfilename: file.lfs and file.lfs.sha256 for file in info.siblings}["a.parquet"] is not None
    assert api.dataset_info(REPO, expand=["sha"]).siblings is None
    with pytest.raises(ValueError, match="Invalid YAML"):
        commit(api, README__md=b"---\nlicense: [mit\n---\n")


def test_trees(api: HfApi) -> None:
    files = [CommitOperationAdd(path, path.encode()) for path in ("a.txt", "x/b.txt", "x/y/c.parquet")]
    first = api.create_commit(REPO, files, commit_message="Three", repo_type="dataset")
    commit(api, a__txt=b"changed")
    tree = {item.path: item for item in api.list_repo_tree(REPO, repo_type="dataset", recursive=True, expand=True)}
    assert set(tree) == {".gitattributes", "a.txt", "x", "x/b.txt", "x/y", "x/y/c.parquet"}
    assert tree["x/b.txt"].last_commit.oid == first.oid != tree["a.txt"].last_commit.oid
    assert [item.path for item in api.list_repo_tree(REPO, "x", repo_type="dataset")] == ["x/b.txt", "x/y"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "nowhere", repo_type="dataset"))
    found = api.get_paths_info(REPO, ["x/y/c.parquet", "x", "nowhere"], repo_type="dataset")
    assert [(item.path, getattr(item, "size", None)) for item in found] == [("x/y/c.parquet", 13), ("x", None)]


def test_a_commit_on_a_moved_branch_is_refused(api: HfApi, loopback_hub: LoopbackHub) -> None:
    head = api.dataset_info(REPO).sha
    commit(api, a__txt=b"mine")
    with pytest.raises(HfHubHTTPError, match="412") as refused:
        api.create_commit(REPO, add(b__txt=b"late"), commit_message="Late", repo_type="dataset", parent_commit=head)
    assert refused.value.response.status_code == 412
    assert list(loopback_hub.files(REPO)) == ["a.txt"]


def test_preuploaded_files_are_not_sent_again(api: HfApi, loopback_hub: LoopbackHub) -> None:
    operations = add(a__parquet=b"a" * 1000, b__parquet=b"b" * 1000)
    api.preupload_lfs_files(REPO, operations[:1], repo_type="dataset")
    assert loopback_hub.received("lfs_put") == 1000
    assert loopback_hub.files(REPO) == {}, "not before the commit"
    api.create_commit(REPO, operations, commit_message="Both", repo_type="dataset")
    assert loopback_hub.received("lfs_put") == 2000
    api.create_commit(REPO, add(c__parquet=b"a" * 1000), commit_message="A name", repo_type="dataset")
    assert loopback_hub.received("lfs_put") == 2000
    lost = add(d__parquet=b"d")
    lost[0]._upload_mode, lost[0]._is_uploaded = "lfs", True
    with pytest.raises(HfHubHTTPError, match="does not exist"):
        api.create_commit(REPO, lost, commit_message="Never uploaded", repo_type="dataset")


@pytest.mark.parametrize("cdn", [False, True])
def test_download_and_ranges(api: HfApi, loopback_hub: LoopbackHub, cdn: bool) -> None:
    content = bytes(range(256)) * 100
    commit(api, a__parquet=content, b__txt=content)
    loopback_hub.cdn = cdn
    for name in ("a.parquet", "b.txt"):
        with open(api.hf_hub_download(REPO, name, repo_type="dataset"), "rb") as file:  # noqa: PTH123
            assert file.read() == content
        with huggingface_hub.HfFileSystem().open(f"datasets/{REPO}/{name}", "rb", block_size=100) as file:
            file.seek(1000)
            assert file.read(10) == content[1000:1010]
    bucket = [request for request in loopback_hub.log if request.kind in ("cdn", "lfs_put")]
    assert {request.kind for request in bucket} == ({"cdn", "lfs_put"} if cdn else {"lfs_put"})
    assert not any(request.authorized for request in bucket)
    assert any(request.range for request in loopback_hub.log)
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(REPO, "nowhere.txt", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(REPO, "b.txt", repo_type="dataset", revision="nowhere")


def test_a_token_in_the_bucket_is_refused(api: HfApi, loopback_hub: LoopbackHub) -> None:
    commit(api, a__parquet=b"a")
    sha256 = loopback_hub.repo(REPO).at("main").files["a.parquet"].sha256
    url = f"{loopback_hub.bucket}/cdn/datasets/{REPO}/{sha256}"
    assert huggingface_hub.get_session().get(url).content == b"a"
    assert (
        huggingface_hub.get_session().get(url, headers={"Authorization": f"Bearer {loopback_hub.token}"}).status_code
        == 400
    )


def test_branches_tags_pull_requests(api: HfApi, loopback_hub: LoopbackHub) -> None:
    kind = {"repo_id": REPO, "repo_type": "dataset"}
    commit(api, a__txt=b"a")
    api.create_tag(**kind, tag="v1")
    api.create_branch(**kind, branch="draft/one")
    api.create_commit(operations=add(a__txt=b"draft"), commit_message="Draft", revision="draft/one", **kind)
    pull = HfApi(token="hf_loopback_you").create_commit(
        operations=add(b__txt=b"b"), commit_message="Please", create_pr=True, **kind
    )
    assert pull.pr_revision == "refs/pr/1"
    refs = api.list_repo_refs(**kind, include_pull_requests=True)
    assert [ref.name for ref in refs.branches] == ["main", "draft/one"]
    assert [ref.ref for ref in (*refs.tags, *refs.pull_requests)] == ["refs/tags/v1", "refs/pr/1"]
    assert set(loopback_hub.files(REPO, "refs/pr/1")) == {"a.txt", "b.txt"}
    assert loopback_hub.files(REPO, "draft/one") == {"a.txt": b"draft"}
    assert loopback_hub.files(REPO) == loopback_hub.files(REPO, "v1") == {"a.txt": b"a"}
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(**kind, tag="v1")
    opened = api.create_pull_request(**kind, title="Another")
    assert [(one.num, one.status) for one in api.get_repo_discussions(**kind)] == [(1, "open"), (2, "draft")]
    assert [one.num for one in api.get_repo_discussions(**kind, author="me")] == [2]
    api.upload_file(path_or_fileobj=b"c", path_in_repo="c.txt", revision=opened.git_reference, **kind)
    assert set(loopback_hub.files(REPO, "refs/pr/2")) == {"a.txt", "c.txt"}


def test_private_and_gated(api: HfApi, loopback_hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> None:
    def read(token: str | bool) -> None:
        cache = tmp_path_factory.mktemp("cache")  # what is cached needs no right
        huggingface_hub.hf_hub_download(REPO, "a.txt", repo_type="dataset", token=token, cache_dir=cache)

    commit(api, a__txt=b"a")
    repo = loopback_hub.repo(REPO)
    repo.private = True
    read(loopback_hub.token)
    for stranger in (False, "hf_loopback_stranger"):
        with pytest.raises(RepositoryNotFoundError):
            read(stranger)
    repo.private, repo.gated = False, True
    with pytest.raises(GatedRepoError):
        read("hf_loopback_stranger")
    repo.granted.add("stranger")
    read("hf_loopback_stranger")


def test_load_dataset(loopback_hub: LoopbackHub) -> None:
    data = datasets.Dataset.from_dict({"n": list(range(20))})
    data.push_to_hub("org/numbers", "half", split="train", num_shards=2)
    loaded = datasets.load_dataset("org/numbers", "half", split="train")
    assert loaded["n"] == data["n"]
    assert [row["n"] for row in datasets.load_dataset("org/numbers", "half", split="train", streaming=True)] == data[
        "n"
    ][:]
    assert loopback_hub.counts["unknown"] == 0


@pytest.mark.parametrize("kind", ["500", "503", "429", "cut", "reset", "lost"])
def test_faults(api: HfApi, loopback_hub: LoopbackHub, kind: str) -> None:
    """The second commit meets the fault; the others do not, and the connections stay usable."""
    loopback_hub.faults.append(Fault(kind, at="commit", when=2))
    commit(api, a__txt=b"a")
    with pytest.raises(Exception, match=r"500|503|429|disconnected|reset") as failed:
        commit(api, b__txt=b"b" * 1000)
    assert isinstance(failed.value, HfHubHTTPError) == kind.isdigit()
    assert set(loopback_hub.files(REPO)) == ({"a.txt", "b.txt"} if kind == "lost" else {"a.txt"})
    commit(api, c__txt=b"c")
    assert "c.txt" in loopback_hub.files(REPO)


def test_a_function_comes_first(api: HfApi, loopback_hub: LoopbackHub) -> None:
    loopback_hub.faults.append(Fault(lambda: commit(api, a__txt=b"first"), at="commit"))
    commit(api, b__txt=b"second")
    assert [c.files.keys() - {".gitattributes"} for c in loopback_hub.repo(REPO).at("main").history()] == [
        {"a.txt", "b.txt"},
        {"a.txt"},
        set(),
    ]


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_a_download_cut_in_the_middle(api: HfApi, loopback_hub: LoopbackHub, kind: str) -> None:
    commit(api, a__parquet=bytes(100_000))
    loopback_hub.faults.append(Fault(kind, at="resolve"))
    url = huggingface_hub.hf_hub_url(REPO, "a.parquet", repo_type="dataset")
    with huggingface_hub.get_session().stream("GET", url) as response:
        assert response.headers["Content-Length"] == "100000"
        with pytest.raises(Exception, match=r"complete message body|reset"):
            response.read()

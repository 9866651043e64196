"""A small Hub on 127.0.0.1: what huggingface_hub, datasets, transformers and timm ask of a real one, with faults to order.

Repositories hold commits, a commit holds a tree (path -> blob), so a reader at an old commit sees the old tree. Large files
go through plain LFS to another origin, `http://localhost`, as they go to a bucket on the real Hub; a
token that arrives there is refused. With `hub.cdn` they are also read from there. There is no Xet: set HF_HUB_DISABLE_XET.

    hub = LoopbackHub()
    hub.start()                                        # HF_ENDPOINT = hub.endpoint, HF_TOKEN = hub.token
    hub.faults.append(Fault("lost", at="commit"))      # the next commit happens, and its answer does not arrive
    hub.counts["commit"], hub.received("lfs_put")      # requests and bytes since the start or the last reset

Only the standard library, and PyYAML for the cards. As a process of its own: `python tests/loopback_hub.py [PORT]` prints
the endpoint and serves until it is terminated; `GET /_hub/counts`, `POST /_hub/faults` (a list of JSON objects) and `POST
/_hub/reset` take the place of the object.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import itertools
import json
import re
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_CHUNK = 1 << 20  # bytes read or written at a time
_ATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in ("*.parquet", "*.safetensors", "*.bin", "*.arrow", "*.tar", "*.png", "*.jpg")
)
_LARGE = 10_000_000  # bytes; what is larger goes to LFS, whatever its name


@dataclass
class Fault:
    """Makes some requests fail.

    Attributes:
        kind: What happens. `500`, `503`, `429` (any status): answered in place of the work. `cut`: the connection ends (FIN)
            after half of the request, or of the answer where the request has no body. `reset`: the same with RST. `lost`: the
            work is done, and the connection ends before the answer. `stall`: after half of the request nothing moves until
            the client is gone. `stall_after`: the same after the work. `html`: a page of a proxy with status 200. `half`: the
            work is done, and half of the answer is sent as if it were all. `echo400` (any status): a refusal whose message
            repeats the Authorization header. A function is called, and the request then served.
        at: A regular expression for the kinds of requests (`ROUTES`) that it falls on.
        when: The first matching request that fails, from 1.
        count: How many matching requests fail from there on.
        retry_after: Seconds, sent with a 429.
        reached: Set when a request has met this fault.
    """

    kind: str | Callable[[], object]
    at: str = ".*"
    when: int = 1
    count: float = 1
    retry_after: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    _seen: int = 0

    def falls_on(self, kind: str) -> bool:
        """Counts a request of this kind, and says whether it is to fail."""
        if not re.fullmatch(self.at, kind):
            return False
        self._seen += 1
        return self.when <= self._seen < self.when + self.count


@dataclass
class Request:
    """A line of the log; `received` are the bytes of its body that arrived, `status` is None where nothing was answered."""

    kind: str
    method: str
    path: str
    authorized: bool
    range: str | None = None
    received: int = 0
    status: int | None = None


@dataclass(frozen=True)
class Blob:
    """A file's content: in memory, or in a file where it is LFS's (`sha256` is set)."""

    content: bytes | Path
    size: int
    sha256: str | None = None

    @property
    def _git_content(self) -> bytes:
        if isinstance(self.content, bytes):
            return self.content
        return b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize %d\n" % (
            self.sha256.encode(),
            self.size,
        )

    @property
    def oid(self) -> str:
        """Git's: of the pointer, for an LFS file."""
        return hashlib.sha1(b"blob %d\0" % len(self._git_content) + self._git_content).hexdigest()

    def lfs(self, name: str) -> dict[str, Any]:
        """What the API says of an LFS file, nothing for others; the hash is called `oid` in trees, `sha256` in siblings."""
        if self.sha256 is None:
            return {}
        return {"lfs": {name: self.sha256, "size": self.size, "pointerSize": len(self._git_content)}}

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


@dataclass(frozen=True)
class Commit:
    """A tree and where it came from."""

    sha: str
    parent: Commit | None
    title: str
    message: str
    user: str
    date: str
    files: dict[str, Blob]

    def history(self) -> Iterator[Commit]:
        """Yields this commit and its ancestors, newest first."""
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent


@dataclass
class Repo:
    """A repository; `refs` holds branches by name and pull requests as `refs/pr/N`."""

    type: str
    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    pulls: dict[int, dict[str, Any]] = field(default_factory=dict)
    lfs: dict[str, Path] = field(default_factory=dict)
    gated: bool = False
    granted: set[str] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"/{self.id}" if self.type == "models" else f"/{self.type}/{self.id}"

    def at(self, revision: str) -> Commit:
        """Returns the commit of a branch, pull request, tag or (short) sha."""
        for names in (self.refs, self.tags):
            if revision in names:
                return names[revision]
        for sha, commit in self.commits.items():
            if len(revision) >= 7 and sha.startswith(revision):
                return commit
        raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class LoopbackHub:
    """The server and what it holds.

    Attributes:
        endpoint: What HF_ENDPOINT has to be; the port is taken at once, and answers from `start` on.
        token: The user `me`'s, who may write to `me/*` and `org/*`.
        tokens: All users' tokens; each may write to these namespaces, of which the first is the user's own name.
        faults: Rules, tried in order; the first that falls on a request decides.
        log: All requests since the last reset.
        errors: Tracebacks of the server itself. A test that leaves one fails.
        cdn: LFS files are read by a redirect to another origin.
    """

    def __init__(self, port: int = 0) -> None:
        self._server = _Server(("127.0.0.1", port), _Handler, bind_and_activate=False)
        self._server.server_bind()
        self._server.hub = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.bucket = f"http://localhost:{self._server.server_port}"
        self.token = "hf_loopback_me"
        self.tokens = {
            self.token: ("me", "org"),
            "hf_loopback_you": ("you", "org"),
            "hf_loopback_stranger": ("stranger",),
        }
        self.lock = threading.RLock()
        self._counter = itertools.count()  # shas never repeat, not even after a reset, so no client's cache can lie
        self._root = Path(tempfile.mkdtemp(prefix="loopback_hub_"))
        self._thread: threading.Thread | None = None
        self.reset()

    def start(self) -> None:
        """Serves from a thread; again is harmless."""
        if self._thread is None:
            self._server.server_activate()
            self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stops serving, gives the port back and deletes what was uploaded."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        shutil.rmtree(self._root, ignore_errors=True)

    def reset(self) -> None:
        """Forgets all repositories, faults and requests."""
        with self.lock:
            self.repos: dict[tuple[str, str], Repo] = {}
            self.faults: list[Fault] = []
            self.log: list[Request] = []
            self.errors: list[str] = []
            self.cdn = False
            shutil.rmtree(self._root, ignore_errors=True)
            self._root.mkdir()

    @property
    def counts(self) -> Counter[str]:
        """Requests by kind."""
        return Counter(request.kind for request in list(self.log))

    def received(self, kinds: str = ".*") -> int:
        """Returns the bytes of the bodies of requests whose kind matches a regular expression."""
        return sum(request.received for request in list(self.log) if re.fullmatch(kinds, request.kind))

    def stored(self) -> int:
        """Returns the bytes of all LFS files that are here, committed or not."""
        with self.lock:
            return sum(place.stat().st_size for repo in self.repos.values() for place in list(repo.lfs.values()))

    def repo(self, repo_id: str, repo_type: str = "datasets") -> Repo:
        return self.repos[repo_type, repo_id]

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "datasets") -> dict[str, bytes]:
        """Returns the tree at a revision, without .gitattributes, which each repository is born with."""
        tree = self.repo(repo_id, repo_type).at(revision).files
        return {path: blob.read() for path, blob in sorted(tree.items()) if path != ".gitattributes"}

    def put(self, repo_id: str, files: dict[str, bytes], repo_type: str = "datasets") -> Commit:
        """Commits files to main without a request, whatever they are called, making the repository where it is missing."""
        with self.lock:
            repo = self.repos.setdefault((repo_type, repo_id), Repo(repo_type, repo_id, private=False))
            tree = dict(repo.refs["main"].files) if "main" in repo.refs else {}
            blobs = {path: Blob(content, len(content)) for path, content in files.items()}
            return self._commit(repo, "main", {**tree, **blobs}, "me", "Put files")

    def _commit(self, repo: Repo, ref: str, files: dict[str, Blob], user: str, title: str, message: str = "") -> Commit:
        parent = repo.refs.get(ref)
        sha = hashlib.sha1(f"{repo.type}/{repo.id} {next(self._counter)} {title}".encode()).hexdigest()
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        commit = Commit(sha, parent, title, message, user, date, files)
        repo.refs[ref] = repo.commits[sha] = commit
        return commit


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    hub: LoopbackHub

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # clients may be killed
            self.hub.errors.append(traceback.format_exc())


class _Refusal(Exception):  # noqa: N818
    """An answer that is an error; `code` is what the clients tell errors apart by."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


@dataclass
class _Answer:
    body: bytes | Path = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    first: int = 0  # the part of the body that is sent
    size: int | None = None


_REPO = r"/api/(?P<type>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
_PAGES = r"(?:/(?P<type>datasets|spaces))?/(?P<id>[^/]+/[^/]+)"  # what is not below /api; no type means models
_STORE = r"(?P<type>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})"
_REV = r"(?P<rev>[^/]+)"
ROUTES = [
    (method, re.compile(pattern), kind)
    for method, pattern, kind in (
        ("GET", "/api/whoami-v2", "whoami"),
        ("POST", "/api/repos/create", "create_repo"),
        ("POST", "/api/validate-yaml", "validate_yaml"),
        ("GET", f"{_REPO}(?:/revision/{_REV})?", "repo_info"),
        ("GET", f"{_REPO}/tree/{_REV}(?:/(?P<path>.+))?", "tree"),
        ("POST", f"{_REPO}/paths-info/{_REV}", "paths_info"),
        ("GET", f"{_REPO}/refs", "refs"),
        ("GET", f"{_REPO}/commits/{_REV}", "commits"),
        ("POST", f"{_REPO}/branch/{_REV}", "create_branch"),
        ("POST", f"{_REPO}/tag/{_REV}", "create_tag"),
        ("POST", f"{_REPO}/preupload/{_REV}", "preupload"),
        ("POST", f"{_REPO}/commit/{_REV}", "commit"),
        ("GET", f"{_REPO}/discussions", "discussions"),
        ("POST", f"{_REPO}/discussions", "create_discussion"),
        ("GET", f"{_REPO}/discussions/(?P<num>\\d+)", "discussion"),
        ("POST", f"{_PAGES}\\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", f"/lfs/{_STORE}", "lfs_put"),
        ("POST", f"/lfs-verify/{_STORE}", "lfs_verify"),
        ("HEAD", f"{_PAGES}/resolve/{_REV}/(?P<path>.+)", "resolve_head"),
        ("GET", f"{_PAGES}/resolve/{_REV}/(?P<path>.+)", "resolve"),
        ("GET", f"/cdn/{_STORE}", "cdn"),
        ("GET", "/_hub/counts", "_counts"),
        ("POST", "/_hub/faults", "_faults"),
        ("POST", "/_hub/reset", "_reset"),
    )
]
_BUCKET = ("lfs_put", "cdn")  # signed addresses: a token has no business there


class _Handler(BaseHTTPRequestHandler):
    """One connection. Each kind of request has a method of its name, which returns JSON or an `_Answer`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    # --- the way of a request: route, fault, work, answer ---

    def _serve(self) -> None:
        self.hub = self.server.hub
        self.left = int(self.headers.get("Content-Length", 0))
        path, _, query = self.path.partition("?")
        self.query = {name: values[-1] for name, values in parse_qs(query).items()}
        kind, found = "unknown", {}
        for method, pattern, name in ROUTES:
            if method == self.command and (match := pattern.fullmatch(path)):
                kind = name
                found = {key: value and unquote(value) for key, value in match.groupdict().items()}
                break
        self.entry = Request(kind, self.command, self.path, "Authorization" in self.headers, self.headers.get("Range"))
        with self.hub.lock:
            if not kind.startswith("_"):
                self.hub.log.append(self.entry)
            fault = next((fault for fault in self.hub.faults if fault.falls_on(kind)), None)
        if fault is None:
            self._send(self._work(kind, found))
        else:
            self._fail(fault, kind, found)

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815 (http.server's names)

    def _fail(self, fault: Fault, kind: str, found: dict[str, Any]) -> None:
        if not isinstance(fault.kind, str):
            fault.kind()
            self._send(self._work(kind, found))
            fault.reached.set()
            return
        if fault.kind == "half":
            whole = self._work(kind, found)
            body = whole.body if isinstance(whole.body, bytes) else whole.body.read_bytes()
            self._send(_Answer(body[: len(body) // 2], whole.status, whole.headers))
            fault.reached.set()
            return
        if fault.kind == "html":
            self._discard(self.left)
            self._send(_Answer(b"<html>Please log in to the network.</html>", headers={"Content-Type": "text/html"}))
            fault.reached.set()
            return
        if (status := fault.kind.removeprefix("echo")).isdigit():
            self._discard(self.left)
            said = "A fault to order." if status == fault.kind else f"Who is {self.headers.get('Authorization')}?"
            refusal = _Refusal(int(status), said)
            if fault.kind == "429":
                refusal.headers["Retry-After"] = str(fault.retry_after)
            self._send(self._refused(refusal))
            fault.reached.set()
            return
        if fault.kind in ("lost", "stall_after"):
            self._work(kind, found)
        elif self.left:
            self._discard(self.left // 2)
        elif fault.kind in ("cut", "reset") and self.command != "HEAD":
            self._send(self._work(kind, found), share=0.5)
        fault.reached.set()
        self.close_connection = True
        if fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()  # http.server's own end would begin with a FIN
            return
        if not fault.kind.startswith("stall"):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(10)
        while self.rfile.read1(_CHUNK):  # what is unread when a socket closes makes a RST of the FIN
            pass

    def _work(self, kind: str, found: dict[str, Any]) -> _Answer:
        try:
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            self.spaces = self.hub.tokens.get(token, ())
            self.user = next(iter(self.spaces), None)
            if token and kind in _BUCKET:
                raise _Refusal(400, "Only one auth mechanism allowed.")
            if token and self.user is None:
                raise _Refusal(401, "Invalid credentials in Authorization header")
            if kind == "unknown":
                raise _Refusal(404, f"This Hub knows no {self.command} {self.path}")
            answer = getattr(self, kind)(**found)
        except _Refusal as refusal:
            answer = self._refused(refusal)
        self._discard(self.left)
        if isinstance(answer, _Answer):
            return answer
        return _Answer(json.dumps(answer).encode(), headers={"Content-Type": "application/json"})

    def _refused(self, refusal: _Refusal) -> _Answer:
        body = json.dumps({"error": refusal.message}).encode()
        return _Answer(body, refusal.status, {"Content-Type": "application/json", **refusal.headers})

    def _send(self, answer: _Answer, share: float = 1.0) -> None:
        size = answer.body.stat().st_size if isinstance(answer.body, Path) else len(answer.body)
        size = size - answer.first if answer.size is None else answer.size
        self.entry.status = answer.status if share == 1 else None
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(size), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        left = int(size * share)
        if isinstance(answer.body, bytes):
            self.wfile.write(answer.body[answer.first : answer.first + left])
            return
        with answer.body.open("rb") as file:
            file.seek(answer.first)
            while left and (data := file.read(min(left, _CHUNK))):
                self.wfile.write(data)
                left -= len(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: `hub.log` has it."""

    # --- the request's body and its rights ---

    def _chunks(self, size: int) -> Iterator[bytes]:
        while size > 0:
            data = self.rfile.read1(min(size, _CHUNK))
            if not data:
                raise ConnectionError("the client went away")
            size -= len(data)
            self.left -= len(data)
            self.entry.received += len(data)
            yield data

    def _discard(self, size: int) -> None:
        for _ in self._chunks(size):
            pass

    def _body(self) -> bytes:
        return b"".join(self._chunks(self.left))

    def _json(self) -> Any:
        return json.loads(self._body() or b"{}")

    def _may_write(self, repo_id: str) -> bool:
        return repo_id.partition("/")[0] in self.spaces

    def _repo(self, repo_type: str | None, repo_id: str, write: bool = False, files: bool = False) -> Repo:
        """Returns a repository that this user may read, or write, or read files of."""
        repo = self.hub.repos.get((repo_type or "models", repo_id))
        if repo is None or (repo.private and not self._may_write(repo_id)):
            raise _Refusal(401 if self.user is None else 404, "Repository not found", "RepoNotFound")
        if write and self.user is None:
            raise _Refusal(401, "Invalid username or password.")
        if write and not self._may_write(repo_id):
            raise _Refusal(403, "You have no write access to this repository")
        if files and repo.gated and self.user not in repo.granted and not self._may_write(repo_id):
            raise _Refusal(401 if self.user is None else 403, f"Access to {repo_id} is restricted.", "GatedRepo")
        return repo

    # --- users and repositories ---

    def whoami(self) -> Any:
        if self.user is None:
            raise _Refusal(401, "Invalid username or password.")
        user = {
            "type": "user",
            "name": self.user,
            "fullname": self.user,
            "orgs": [{"name": name} for name in self.spaces[1:]],
        }
        return {**user, "auth": {"accessToken": {"displayName": "loopback", "role": "write"}}}

    def create_repo(self) -> Any:
        asked = self._json()
        repo_id = f"{asked.get('organization') or self.user}/{asked['name']}"
        key = f"{asked.get('type') or 'model'}s", repo_id
        if not self._may_write(repo_id):
            raise _Refusal(401 if self.user is None else 403, f"You have no right to create {repo_id}")
        with self.hub.lock:
            exists = key in self.hub.repos
            if not exists:
                # Clients before 2.0 say it in a field of its own.
                private = asked.get("visibility") == "private" or bool(asked.get("private"))
                repo = self.hub.repos[key] = Repo(*key, private=private)
                attributes = Blob(_ATTRIBUTES.encode(), len(_ATTRIBUTES))
                self.hub._commit(repo, "main", {".gitattributes": attributes}, self.user, "initial commit")
        answer = {"url": self.hub.endpoint + self.hub.repos[key].url, "name": repo_id, "id": repo_id}
        if exists:
            answer["error"] = "You already created this repo"
        return _Answer(json.dumps(answer).encode(), 409 if exists else 200, {"Content-Type": "application/json"})

    def repo_info(self, type: str, id: str, rev: str | None) -> Any:
        repo = self._repo(type, id)
        commit = repo.at(rev or "main")
        card, blobs = _front_matter(commit.files.get("README.md")), "blobs" in self.query
        siblings = [
            {"rfilename": path, **({"size": blob.size, "blobId": blob.oid, **blob.lfs("sha256")} if blobs else {})}
            for path, blob in sorted(commit.files.items())
        ]
        info = {
            "id": id, "author": id.partition("/")[0], "sha": commit.sha, "private": repo.private, "disabled": False,
            "gated": "auto" if repo.gated else False, "downloads": 0, "likes": 0, "siblings": siblings,
            "createdAt": list(repo.refs["main"].history())[-1].date, "lastModified": commit.date,
            "cardData": card, "tags": card.get("tags", []),
            **{key: card[key] for key in ("library_name", "pipeline_tag") if key in card},
        }  # fmt: skip
        asked = parse_qs(urlsplit(self.path).query).get("expand")
        return info if asked is None else {key: value for key, value in info.items() if key == "id" or key in asked}

    # --- trees, revisions ---

    def _entry(self, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
        """Returns what the API says of a file, with the commit that last changed it if asked to."""
        blob = commit.files[path]
        entry = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid, **blob.lfs("oid")}
        if expand:
            *_, last = itertools.takewhile(lambda one: one.files.get(path) == blob, commit.history())
            entry["lastCommit"] = {"id": last.sha, "title": last.title, "date": last.date}
        return entry

    def tree(self, type: str, id: str, rev: str, path: str | None) -> Any:
        commit = self._repo(type, id).at(rev)
        folders = _folders(commit)
        if path is not None and path not in folders:
            raise _Refusal(404, f"{path} does not exist on {rev}", "EntryNotFound")
        expand, recursive = (self.query.get(name, "").lower() in ("true", "1") for name in ("expand", "recursive"))
        inside = f"{path}/" if path else ""
        names = [name for name in (*folders, *commit.files) if name.startswith(inside)]
        names = [name for name in names if recursive or "/" not in name.removeprefix(inside)]
        return [self._entry(commit, name, expand) if name in commit.files else _folder(name) for name in sorted(names)]

    def paths_info(self, type: str, id: str, rev: str) -> Any:
        commit, form = self._repo(type, id).at(rev), parse_qs(self._body().decode())
        folders, expand = _folders(commit), form.get("expand", [""])[0].lower() == "true"
        return [
            self._entry(commit, path, expand) if path in commit.files else _folder(path)
            for path in form.get("paths", [])
            if path in commit.files or path in folders
        ]

    def refs(self, type: str, id: str) -> Any:
        repo = self._repo(type, id)

        def listed(names: dict[str, Commit], prefix: str) -> list[dict[str, str]]:
            return [{"name": name, "ref": prefix + name, "targetCommit": commit.sha} for name, commit in names.items()]

        branches = {name: commit for name, commit in repo.refs.items() if not name.startswith("refs/pr/")}
        pulls = {name.removeprefix("refs/pr/"): commit for name, commit in repo.refs.items() if name not in branches}
        found = {"branches": listed(branches, "refs/heads/"), "tags": listed(repo.tags, "refs/tags/"), "converts": []}
        return {**found, "pullRequests": listed(pulls, "refs/pr/")} if "include_prs" in self.query else found

    def commits(self, type: str, id: str, rev: str) -> Any:
        return [
            {"id": c.sha, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.user}]}
            for c in self._repo(type, id).at(rev).history()
        ]

    def create_branch(self, type: str, id: str, rev: str) -> Any:
        repo, asked = self._repo(type, id, write=True), self._json()
        with self.hub.lock:
            if rev in repo.refs:
                raise _Refusal(409, f"Reference already exists: {rev}")
            repo.refs[rev] = repo.at(asked.get("startingPoint", "main"))
        return {}

    def create_tag(self, type: str, id: str, rev: str) -> Any:
        repo, tag = self._repo(type, id, write=True), self._json()["tag"]
        with self.hub.lock:
            if tag in repo.tags:
                raise _Refusal(409, f"Tag already exists: {tag}")
            repo.tags[tag] = repo.at(rev)
        return {}

    # --- writing: preupload, LFS, commit ---

    def validate_yaml(self) -> Any:
        content = self._json()["content"].encode()
        try:
            _front_matter(Blob(content, len(content)))
        except ValueError as error:
            body = {"errors": [{"message": str(error)}], "warnings": []}
            return _Answer(json.dumps(body).encode(), 400, {"Content-Type": "application/json"})
        return {"errors": [], "warnings": []}

    def preupload(self, type: str, id: str, rev: str) -> Any:
        repo = self._repo(type, id, write="create_pr" not in self.query)
        commit, answers = repo.at(rev), []
        lines = commit.files[".gitattributes"].read().decode().split("\n") if ".gitattributes" in commit.files else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        for file in self._json()["files"]:
            path = file["path"]
            large = file["size"] > _LARGE or any(fnmatch.fnmatch(Path(path).name, pattern) for pattern in patterns)
            answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if (blob := commit.files.get(path)) is not None:
                answer["oid"] = blob.sha256 or blob.oid
            answers.append(answer)
        return {"files": answers}

    def lfs_batch(self, type: str | None, id: str) -> Any:
        repo, answers = self._repo(type, id), []  # a reader may upload, for a pull request
        if self.user is None:
            raise _Refusal(401, "Invalid username or password.")
        for item in self._json()["objects"]:
            oid, size = item["oid"], item["size"]
            answer = {"oid": oid, "size": size}
            if oid not in repo.lfs:
                place = f"{repo.type}/{repo.id}/{oid}"
                verify = {"href": f"{self.hub.endpoint}/lfs-verify/{place}"}
                answer["actions"] = {"upload": {"href": f"{self.hub.bucket}/lfs/{place}"}, "verify": verify}
            answers.append(answer)
        return {"transfer": "basic", "objects": answers}

    def lfs_put(self, type: str, id: str, oid: str) -> Any:
        """Takes an object only if it is what it claims to be."""
        repo, folder = self.hub.repos[type, id], self.hub._root / type / id
        folder.mkdir(parents=True, exist_ok=True)
        digest, place = hashlib.sha256(), folder / f"{oid}.{threading.get_ident()}"
        with place.open("wb") as file:
            for data in self._chunks(self.left):
                digest.update(data)
                file.write(data)
        if digest.hexdigest() != oid:
            place.unlink()
            raise _Refusal(400, f"The content is not {oid}")
        repo.lfs[oid] = place.rename(folder / oid)
        return {}

    def lfs_verify(self, type: str, id: str, oid: str) -> Any:
        place, asked = self._repo(type, id).lfs.get(oid), self._json()
        if place is None or place.stat().st_size != asked["size"]:
            raise _Refusal(404, f"{oid} was not uploaded")
        return {}

    def commit(self, type: str, id: str, rev: str) -> Any:
        pull = "create_pr" in self.query
        repo = self._repo(type, id, write=not pull)
        lines = [json.loads(line) for line in self._body().splitlines()]
        header = lines[0]["value"]
        with self.hub.lock:
            head = repo.at(rev)
            parent = header.get("parentCommit")
            if not pull and (rev not in repo.refs or (parent and not head.sha.startswith(parent))):
                raise _Refusal(412, "A commit has happened since. Please refresh and try again.")
            base = repo.at(parent) if pull and parent else head
            files = dict(base.files)
            for line in lines[1:]:
                _apply(repo, files, line["key"], line["value"])
            ref = self._open_pull(repo, base, header["summary"]) if pull else rev
            title, message = header["summary"], header.get("description", "")
            commit = self.hub._commit(repo, ref, files, self.user or "", title, message)
        address = self.hub.endpoint + repo.url
        answer = {"success": True, "commitOid": commit.sha, "commitUrl": f"{address}/commit/{commit.sha}"}
        return {**answer, "pullRequestUrl": f"{address}/discussions/{ref.split('/')[-1]}"} if pull else answer

    # --- pull requests ---

    def _open_pull(self, repo: Repo, base: Commit, title: str) -> str:
        if self.user is None:
            raise _Refusal(401, "Invalid username or password.")
        number = len(repo.pulls) + 1
        repo.pulls[number] = {"title": title, "status": "open", "author": self.user, "date": base.date}
        repo.refs[f"refs/pr/{number}"] = base
        return f"refs/pr/{number}"

    def create_discussion(self, type: str, id: str) -> Any:
        repo, asked = self._repo(type, id), self._json()
        if not asked.get("pullRequest"):
            raise _Refusal(400, "This Hub has pull requests only, no discussions.")
        with self.hub.lock:
            number = int(self._open_pull(repo, repo.refs["main"], asked["title"]).split("/")[-1])
        repo.pulls[number]["status"] = "draft"
        return {"num": number}

    def _described(self, repo: Repo, number: int) -> dict[str, Any]:
        pull = repo.pulls[number]
        return {
            "num": number, "title": pull["title"], "status": pull["status"], "author": {"name": pull["author"]},
            "createdAt": pull["date"], "isPullRequest": True, "repo": {"name": repo.id, "type": repo.type.removesuffix("s")},
        }  # fmt: skip

    def discussions(self, type: str, id: str) -> Any:
        repo, author = self._repo(type, id), self.query.get("author")
        found = [
            self._described(repo, number) for number, pull in repo.pulls.items() if author in (None, pull["author"])
        ]
        return {"count": len(found), "start": 0, "discussions": found}

    def discussion(self, type: str, id: str, num: str) -> Any:
        repo = self._repo(type, id)
        if int(num) not in repo.pulls:
            raise _Refusal(404, f"There is no pull request {num}")
        changes = {"base": "refs/heads/main", "mergeCommitId": None}
        more = {"events": [], "diff": "", "filesWithConflicts": [], "changes": changes}
        return {**self._described(repo, int(num)), **more}

    # --- reading files ---

    def _ranged(self, blob: Blob, headers: dict[str, str]) -> _Answer:
        headers = {"Accept-Ranges": "bytes", "ETag": f'"{blob.sha256 or blob.oid}"', **headers}
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if match is None:
            return _Answer(blob.content, headers=headers)
        first, last = match.groups()
        start = int(first) if first else max(blob.size - int(last), 0)
        stop = min(int(last) + 1, blob.size) if first and last else blob.size
        if start >= stop:
            raise _Refusal(416, "Requested range not satisfiable", **{"Content-Range": f"bytes */{blob.size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
        return _Answer(blob.content, 206, headers, start, stop - start)

    def resolve(self, type: str | None, id: str, rev: str, path: str) -> Any:
        repo = self._repo(type, id, files=True)
        commit = repo.at(rev)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            raise _Refusal(404, "Entry not found", "EntryNotFound", **headers)
        blob = commit.files[path]
        if blob.sha256 is not None:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
            if self.hub.cdn:
                place = f"{self.hub.bucket}/cdn/{repo.type}/{repo.id}/{blob.sha256}"
                return _Answer(status=302, headers={**headers, "ETag": f'"{blob.oid}"', "Location": place})
        return self._ranged(blob, headers)

    resolve_head = resolve

    def cdn(self, type: str, id: str, oid: str) -> Any:
        place = self.hub.repos[type, id].lfs[oid]
        return self._ranged(Blob(place, place.stat().st_size, oid), {})

    # --- the Hub as a process of its own ---

    def _counts(self) -> Any:
        kinds = {kind: {"requests": n, "received": self.hub.received(kind)} for kind, n in self.hub.counts.items()}
        return {"kinds": kinds, "stored": self.hub.stored()}

    def _faults(self) -> Any:
        self.hub.faults[:] = [Fault(**fault) for fault in self._json()]
        return {}

    def _reset(self) -> Any:
        self.hub.reset()
        return {}


def _folders(commit: Commit) -> set[str]:
    return {str(parent) for path in commit.files for parent in Path(path).parents} - {"."}


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}


def _apply(repo: Repo, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
    """Performs one line of a commit on its tree."""
    path = value["path"]
    if key in ("file", "lfsFile") and (path.startswith("/") or ".." in path.split("/")):
        raise _Refusal(400, f"Invalid path: {path}")
    if key == "file":
        try:
            content = base64.b64decode(value["content"], validate=True)
        except binascii.Error as error:
            raise _Refusal(400, f"{path}: {error}") from None
        files[path] = Blob(content, len(content))
    elif key == "lfsFile":
        if value["oid"] not in repo.lfs:
            raise _Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")
        place = repo.lfs[value["oid"]]
        files[path] = Blob(place, place.stat().st_size, value["oid"])
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise _Refusal(404, f"{path} does not exist", "EntryNotFound")
    else:
        raise _Refusal(400, f"Unknown operation: {key}")


def _front_matter(readme: Blob | None) -> dict[str, Any]:
    """Returns the YAML at the head of a card; a ValueError says what is wrong with it."""
    import yaml

    parts = re.match(r"\s*---\r?\n(.*?)\r?\n---", readme.read().decode(), re.DOTALL) if readme else None
    if parts is None:
        return {}
    try:
        card = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise ValueError(f"Invalid YAML: {error}") from None
    if not isinstance(card, dict | None):
        raise ValueError("The metadata must be a mapping.")
    return card or {}


if __name__ == "__main__":
    hub = LoopbackHub(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        hub.start()
        print(hub.endpoint, flush=True)
        threading.Event().wait()
    finally:
        hub.stop()

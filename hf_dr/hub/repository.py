"""Pushing to the Hub: every file as it is, large ones sent first, then one commit that shows all of them at once.

A reader sees the repository as it was before that commit or as it is after it, never a card before its data or half a
dataset. What was sent stays at the Hub for some hours, so running a stopped push again sends only what is missing. A
commit names its parent: whoever else commits meanwhile is never overwritten, but read again and merged with.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors, get_token
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils.sha import git_hash

from hf_dr.errors import ConfigError, HfDrError, HubError
from hf_dr.hub.retry import ATTEMPTS, ask, describe, wait
from hf_dr.processes import Alone, on_main, process_state
from hf_dr.settings import check_names
from hf_dr.store.card import CARD_FILE, read_card
from hf_dr.store.readme import own_lines
from hf_dr.text import format_bytes, is_hub_id, keep_secret, without_secrets

logger = logging.getLogger(__name__)

FILES_AT_ONCE = 5  # uploads in parallel; the client's own default
# How often a commit is tried where each time somebody else's came first and had to be merged with.
MOVED_HEADS = 20
_PULL_REQUEST = "refs/pr/"
_MOVED = (409, 412)  # what the Hub answers then


@dataclass(frozen=True)
class Push:
    """What a push did, or with `dry_run` would do.

    Attributes:
        repo_id: The repository.
        revision: The branch, or the pull request's.
        files: Path in the repository -> bytes, of all files that the pushed part of it consists of.
        deleted: Paths that were there for an earlier version of the same configurations.
        card: The text of README.md.
        commit: The commit that has all of it; None for a dry run.
        url: The address at which people can look at it.
        sent: How many files changed with the commit, the card and deleted ones included; 0 where all was there already.
    """

    repo_id: str
    revision: str
    files: dict[str, int]
    deleted: tuple[str, ...]
    card: str
    commit: str | None
    url: str
    sent: int = 0

    def report(self) -> str:
        """Returns the files, their bytes and the card as text for people."""
        lines = [f"  {size:>16,}  {path}" for path, size in self.files.items()]
        lines += [f"  {'deleted':>16}  {path}" for path in self.deleted]
        size = format_bytes(sum(self.files.values()))
        total = f"{len(self.files)} files, {size}, to {self.repo_id} at {self.revision}"
        return "\n".join([total, *lines, "", f"{CARD_FILE}:", "", self.card])


# ------------------------------------------------------------------------------------------------------ the repository


@dataclass(frozen=True)
class Remote:
    """A repository as it is at one commit: every file, by its path."""

    commit: str
    files: dict[str, RepoFile]

    def has(self, operation: CommitOperationAdd) -> bool:
        """Whether a file stands there with exactly this content."""
        there = self.files.get(operation.path_in_repo)
        if there is None or there.size != operation.upload_info.size:
            return False
        if there.lfs is not None:
            return there.lfs.sha256 == operation.upload_info.sha256.hex()
        with operation.as_file() as file:
            return there.blob_id == git_hash(file.read())


class Repository:
    """One branch (default: `main`) of one repository on the Hub; every request is retried where that can help.

    Raises:
        ConfigError: `repo_id` is impossible.
    """

    def __init__(self, repo_id: str, repo_type: str, revision: str | None, token: str | None) -> None:
        if not is_hub_id(repo_id):
            raise ConfigError(
                f"`repo_id` must be `owner/name` of letters, digits, '_', '-' and '.', got {repo_id!r:.80}. Correct it."
            )
        self.id = repo_id
        self.type = repo_type
        self.revision = revision or "main"
        self.api = HfApi(token=token)
        if used := token or get_token():
            keep_secret(used)
        self._where: dict[str, Any] = {"repo_id": repo_id, "repo_type": repo_type}

    @property
    def url(self) -> str:
        """Its page, or the pull request's."""
        kind = "datasets/" if self.type == "dataset" else ""
        endpoint = self.api.endpoint if "://" in self.api.endpoint else f"https://{self.api.endpoint}"
        page = without_secrets(f"{endpoint}/{kind}{self.id}")
        if not self.revision.startswith(_PULL_REQUEST):
            return page
        return f"{page}/discussions/{self.revision.removeprefix(_PULL_REQUEST)}"

    @property
    def named_revision(self) -> str | None:
        """The branch that code must name to load what stands here; None for `main` and what is to become it."""
        return None if self.revision == "main" or self.revision.startswith(_PULL_REQUEST) else self.revision

    def open(self, private: bool | None, create_pr: str | None) -> None:
        """Creates the repository and the branch if they do not exist; `create_pr` is the title of a pull request."""
        try:
            user = ask(self.api.whoami, "log in to the Hub")["name"]
        except errors.LocalTokenNotFoundError as error:
            raise HubError("expected a token to push with, found none. Log in with `hf auth login`.") from error
        ask(lambda: self.api.create_repo(**self._where, private=private, exist_ok=True), f"create {self.id}")
        if private:
            self.check_private()
        if create_pr is not None:
            self.revision = ask(lambda: self._pull_request(create_pr, user), f"open a pull request at {self.id}")
        elif self.revision != "main" and not self.revision.startswith("refs/"):
            ask(
                lambda: self.api.create_branch(**self._where, branch=self.revision, exist_ok=True),
                f"create the branch {self.revision}",
            )

    def check_private(self) -> None:
        """Raises a ConfigError where the repository is public: the Hub does not make one private that is there already."""

        def is_public() -> bool:
            try:
                return self.api.repo_info(**self._where).private is False
            except errors.RepositoryNotFoundError:  # before a push that would create it
                return False

        if ask(is_public, f"read {self.id}"):
            raise ConfigError(
                f"`private` must be left out for a repository that is public, and {self.id} is: everybody could see what is "
                "pushed. Make it private in its settings first, or choose another."
            )

    def _pull_request(self, title: str, user: str) -> str:
        """Returns the branch of an open pull request of this title and user, so that no push opens two; else of a new one."""
        for request in self.api.get_repo_discussions(**self._where, author=user, discussion_type="pull_request"):
            if request.title == title and request.status in ("draft", "open"):
                return f"{_PULL_REQUEST}{request.num}"
        request = self.api.create_pull_request(**self._where, title=title, description="Pushed with hf_dr.")
        return f"{_PULL_REQUEST}{request.num}"

    def remote(self, *, missing_ok: bool = False) -> Remote:
        """Reads the branch's head; where there is none and that is `missing_ok`, the answer has no files."""

        def read() -> Remote:
            try:
                commit = self.api.repo_info(**self._where, revision=self.revision).sha
                assert commit is not None
                tree = self.api.list_repo_tree(**self._where, revision=commit, recursive=True)
                return Remote(commit, {item.path: item for item in tree if isinstance(item, RepoFile)})
            except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
                if missing_ok:
                    return Remote("", {})
                raise

        return ask(read, f"read {self.id}")

    def fetch(self, path: str, remote: Remote) -> Path | None:
        """Downloads one small file as it is at a commit, to the cache; None if it is not there."""
        if path not in remote.files:
            return None
        download = partial(self.api.hf_hub_download, **self._where, filename=path, revision=remote.commit)
        return Path(ask(download, f"fetch {path} of {self.id}"))

    def card(self, remote: Remote) -> str | None:
        """Returns the text of README.md as it is at a commit; None where there is none."""
        file = self.fetch(CARD_FILE, remote)
        return None if file is None else read_card(file)

    def send(self, operations: list[CommitOperationAdd]) -> None:
        """Sends large files; the Hub keeps them for the commit to come. What it has already is not sent again."""
        settings: dict[str, Any] = {**self._where, "revision": self.revision, "num_threads": FILES_AT_ONCE}
        ask(
            lambda: self.api.preupload_lfs_files(**settings, additions=operations, free_memory=False),
            f"send {operations[0].path_in_repo} and {len(operations) - 1} more",
        )

    def tags(self) -> dict[str, str]:
        """Returns the commit of each tag."""
        refs = ask(lambda: self.api.list_repo_refs(**self._where), f"read the tags of {self.id}")
        return {tag.name: tag.target_commit for tag in refs.tags}

    def tag(self, name: str, commit: str) -> None:
        """Tags a commit, if the tag is not there."""
        ask(lambda: self.api.create_tag(**self._where, tag=name, revision=commit, exist_ok=True), f"tag {self.id}")


# ------------------------------------------------------------------------------------------------------------ the push


@dataclass(frozen=True)
class _Content:
    """What a push brings into a repository; see `publish`."""

    repository: Repository
    operations: Mapping[str, CommitOperationAdd]
    card: Callable[[str | None], str]
    stale: Callable[[str], bool]
    check: Callable[[Remote], None]

    def read(self, *, missing_ok: bool = False) -> tuple[Remote, str]:
        """Returns what is there, checked, and the new text of README.md, merged with the present one."""
        remote = self.repository.remote(missing_ok=missing_ok)
        self.check(remote)
        return remote, self.card(self.repository.card(remote))

    def push(self, remote: Remote, card: str, commit: str | None) -> Push:
        """Returns what was pushed onto `remote`, or would be."""
        stale = sorted(path for path in remote.files if path not in self.operations and self.stale(path))
        return Push(
            repo_id=self.repository.id,
            revision=self.repository.revision,
            files={path: operation.upload_info.size for path, operation in self.operations.items()},
            deleted=tuple(stale),
            card=card,
            commit=commit,
            url=self.repository.url,
        )


def publish(
    repository: Repository,
    files: Mapping[str, Path],
    card: Callable[[str | None], str],
    *,
    private: bool | None,
    message: str,
    stale: Callable[[str], bool],
    check: Callable[[Remote], None] = lambda remote: None,
    create_pr: bool = False,
    tags: Sequence[str] = (),
    dry_run: bool = False,
    alone: bool = False,
) -> Push:
    """Brings files and a card into a repository with one commit; every process of a launch calls it.

    Args:
        repository: The repository to push to.
        files: Path in the repository -> local file.
        card: Makes the new text of the card from the present one, or from None.
        private, create_pr, tags, dry_run: See `push_to_hub`.
        message: The commit's, and the pull request's title.
        stale: Whether a path that stands there and is not in `files` is deleted.
        check: Raises an HfDrError where what stands there must not be touched.
        alone: One process of a launch calls it, and does all.

    Raises:
        HfDrError: See `push_to_hub`.
    """
    if create_pr and repository.revision != "main":
        raise ConfigError(
            f"`create_pr` must be left out with a `revision`, got {repository.revision!r}: a pull request has a branch of its "
            "own. Leave one of them out."
        )
    check_names("tags", tags)
    state = Alone() if alone else process_state()
    operations = {path: CommitOperationAdd(path, local) for path, local in files.items()}
    content = _Content(repository, operations, card, stale, check)
    if dry_run:
        if constants.is_offline_mode():
            logger.warning("The Hub is not asked, because HF_HUB_OFFLINE is set: this is a push to a new repository.")
            return content.push(Remote("", {}), card(None), None)
        if private:
            on_main(state, repository.check_private)
        return on_main(state, lambda: content.push(*content.read(missing_ok=True), None))

    def begin() -> tuple[str, Remote]:
        repository.open(private, message if create_pr else None)
        remote, text = content.read()  # a card that cannot be merged with is found before hours of sending
        is_complete = all(remote.has(operation) for operation in operations.values())
        _check_tags(repository, tags, remote if is_complete else None)
        if not private and CARD_FILE not in remote.files:
            _check_licence(repository, text)
        return repository.revision, remote

    with _standing("Nothing was published or replaced."):
        repository.revision, remote = on_main(state, begin)
    # Each rank sends its share. Rank 0 commits all, so it needs to know what became of the others' operations.
    mine = list(operations.values())[state.process_index :: state.num_processes]
    with _standing("Nothing of it is visible yet."):
        _send(repository, [operation for operation in mine if not remote.has(operation)], state)
    if state.num_processes > 1:
        sent = {operation.path_in_repo: operation for shares in gather_object([mine]) for operation in shares}
        content = replace(content, operations=sent)

    def finish() -> Push:
        with _standing("Either all of it is visible now or nothing; run again, it finds out."):
            push = _commit(content, message)
        _tag(repository, tags, push)
        if push.sent:
            logger.info("Pushed %d changed files to %s at %s.", push.sent, push.url, push.commit)
        else:
            logger.info("Nothing has changed since %s at %s.", push.url, push.commit)
        return push

    return on_main(state, finish)


@contextmanager
def _standing(what: str) -> Iterator[None]:
    """Adds to a refusal of the Hub what stands there now."""
    try:
        yield
    except HubError as error:
        raise HubError(f"{error} {what}") from error.__cause__


def _send(repository: Repository, operations: list[CommitOperationAdd], state: PartialState | Alone) -> None:
    """Sends this rank's files; an error on one rank becomes an error on all, so that none waits for ever."""
    error: HfDrError | None = None
    if operations:
        logger.info("Sending %d files.", len(operations))
        try:
            # All at once: between two calls the client would wait for the slowest file. It shows the progress itself.
            with nullcontext() if state.is_main_process else disable_progress_bars():
                repository.send(operations)
        except HfDrError as found:
            error = found
    of_ranks = gather_object([error]) if state.num_processes > 1 else [error]
    if first := next((found for found in of_ranks if found is not None), None):
        raise first


def _commit(content: _Content, message: str) -> Push:
    """Commits on top of whatever is there by then.

    Each attempt reads the head again. So a commit that happened though its answer was lost is found, and one that comes
    after somebody else's is made of both.
    """
    repository = content.repository
    bases: list[str] = []  # for each attempt the head on which it was based

    def attempt() -> Push | errors.HfHubHTTPError:
        remote, text = content.read()
        push = content.push(remote, text, remote.commit)
        wanted = {**content.operations, CARD_FILE: CommitOperationAdd(CARD_FILE, text.encode())}
        missing = [operation for operation in wanted.values() if not remote.has(operation)]
        if not missing and not push.deleted:
            return push
        bases.append(remote.commit)
        try:
            commit = repository.api.create_commit(
                repo_id=repository.id,
                repo_type=repository.type,
                operations=[*map(_fresh, missing), *map(CommitOperationDelete, push.deleted)],
                commit_message=message,
                revision=repository.revision,
                parent_commit=remote.commit,
            )
        except errors.HfHubHTTPError as error:
            if error.response.status_code in _MOVED and "/commit/" in error.response.request.url.path:
                return error
            raise
        return replace(push, commit=commit.oid, sent=len(missing) + len(push.deleted))

    for _ in range(MOVED_HEADS):
        found = ask(attempt, f"commit to {repository.id}")
        if isinstance(found, Push):
            return found
        alike = bases.count(bases[-1])
        if alike == ATTEMPTS:
            raise HubError(
                f"expected to commit to {repository.id}, but the Hub answered {describe(found)} {alike} times, as if somebody "
                "else had committed, which nobody has. Run it again later; what has arrived is kept."
            )
        logger.info("Somebody else committed to %s meanwhile; merging with that commit.", repository.id)
        if alike > 1:
            wait(alike)  # the other commit may be on its way
    raise HubError(
        f"expected to commit to {repository.id}, but others committed {MOVED_HEADS} times meanwhile. Run it again; what has "
        "arrived is kept."
    )


def _fresh(operation: CommitOperationAdd) -> CommitOperationAdd:
    """A copy that does not remember what stood at its path when it was sent: the client leaves out what did not change
    since then, but somebody else may have changed it meanwhile."""
    fresh = copy.copy(operation)
    fresh._remote_oid = None
    fresh._is_committed = False
    return fresh


def _check_licence(repository: Repository, card: str) -> None:
    """Warns where a new repository's card names no licence."""
    if re.search(r"(?m)^license:", card) is None:
        logger.warning(
            "%s is new and its card names no licence: unless its owner's settings make it private, everybody can see it, "
            "and nobody knows what is allowed. Add `license:` to the metadata of its card at the Hub.",
            repository.url,
        )


def _check_tags(repository: Repository, tags: Sequence[str], complete: Remote | None) -> None:
    """Refuses a tag that stands at another commit; `complete` is the head if it has all files already."""
    if not tags:
        return
    there = repository.tags()
    for tag in tags:
        if tag in there and (complete is None or there[tag] != complete.commit):
            raise ConfigError(
                f"the tag `{tag}` must be new, but {repository.id} has it at {there[tag][:12]}. Choose another, or delete it."
            )


def _tag(repository: Repository, tags: Sequence[str], push: Push) -> None:
    """Sets tags on the commit of a push; a HubError if one stands at another."""
    assert push.commit is not None
    for tag in tags:
        with _standing(f"All files are visible at {push.commit}, but the tag `{tag}` may be missing."):
            repository.tag(tag, push.commit)
    there = repository.tags() if push.sent and tags else {}
    for tag in tags:
        if there.get(tag, push.commit) != push.commit:  # the files were there before, under another card
            raise HubError(
                f"the tag `{tag}` must stand at {push.commit}, where all is visible now, but it was there, at {there[tag]}: "
                "the card has changed since. Choose another tag, or delete this one and push again."
            )


def warn_of_unsent(local: str, remote: str, generated: Collection[str], repo_id: str) -> None:
    """Warns where people wrote something into the local card that is not sent, because the one at the Hub is kept."""
    if own_lines(local, generated) - own_lines(remote, generated):
        logger.warning(
            "%s of the folder has lines that the card of %s has not. They are not sent: edit the card there.",
            CARD_FILE,
            repo_id,
        )

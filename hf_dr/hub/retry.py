"""Requests to the Hub, tried again while that can help: dropped connections, 408, 429 and 5xx."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx2
from huggingface_hub.errors import (
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers

from hf_dr.errors import HubError

logger = logging.getLogger(__name__)

ATTEMPTS = 6
BASE_DELAY = 1.0  # seconds before the second attempt; doubled before each further one
MAX_DELAY = 300.0  # seconds, also where the Hub asks for longer
# What a connection dies of. The client itself neither retries a download that is reset in the middle nor a commit.
_TRANSPORT = (
    httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError, httpx2.ProxyError, ConnectionError,
)  # fmt: skip
_TOKEN = re.compile(r"hf_[A-Za-z0-9]+")

_sleep = time.sleep
_Result = TypeVar("_Result")


def with_retries(call: Callable[[], _Result], what: str) -> _Result:
    """Returns `call()`, which is called again, after growing waits, where the Hub did not answer or could not.

    An answer may be lost after its work was done, so `call` must be one that can be repeated.

    Args:
        call: Talks to the Hub.
        what: What it does, for messages: "fetch org/plus", "commit to org/plus".

    Raises:
        HubError: It failed `ATTEMPTS` times, or may not be: no such repository or revision, no access, no connection.
        Exception: Every other answer of the Hub is the caller's to judge (404 of a file, 409, 412) and raised as it is.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except Exception as error:
            cause = _cause(error)
            refusal = _refusal(cause, what)
            if refusal is not None:
                raise refusal from error
            if not _is_passing(cause):
                raise
            if attempt == ATTEMPTS:
                raise HubError(
                    f"expected to {what}, but {ATTEMPTS} attempts failed, the last with {_describe(cause)}. Check the "
                    "connection and run it again; what has arrived is kept."
                ) from error
            delay = min(MAX_DELAY, max(_asked_delay(cause), BASE_DELAY * 2 ** (attempt - 1)))
            logger.warning("Could not %s: %s. Trying again in %.0f s.", what, _describe(cause), delay)
            _sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def is_unreachable(error: BaseException) -> bool:
    """Whether a request failed because the Hub could not be reached or could not answer, so that a cache may stand in."""
    cause = _cause(error)
    return isinstance(cause, OfflineModeIsEnabled) or _is_passing(cause)


def _cause(error: BaseException) -> BaseException:
    """Returns the first error in the chain that says something about the connection: the client wraps it in its own errors."""
    telling = (HfHubHTTPError, FileMetadataError, *_TRANSPORT)
    return next((e for e in _chain(error) if isinstance(e, telling)), error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    # What the client says of a download that came short.
    return isinstance(error, _TRANSPORT) or (isinstance(error, OSError) and "Consistency check failed" in str(error))


def _refusal(error: BaseException, what: str) -> HubError | None:
    """Returns the error, with what to do, for what no repetition can fix; None for all else."""
    if isinstance(error, OfflineModeIsEnabled):
        advice = "it is not in the cache and HF_HUB_OFFLINE is set. Unset it, or fetch it once with a connection"
        return HubError(f"expected to {what}, but {advice}.")
    if isinstance(error, FileMetadataError):
        return HubError(f"expected to {what}, but what answered is no Hub. Check HF_ENDPOINT and any proxy.")
    if isinstance(error, GatedRepoError):
        advice = "Accept its terms on its page on the Hub, and log in with `hf auth login`"
    elif isinstance(error, RevisionNotFoundError):
        advice = "Check `revision`: it must be a branch, a tag or a commit of the repository"
    elif isinstance(error, DisabledRepoError):
        advice = "Ask the owner of the repository"
    elif isinstance(error, RepositoryNotFoundError) or (
        isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403)
    ):
        advice = "Check the name; for a private repository log in with `hf auth login`, as one who may do this"
    else:
        return None
    return HubError(f"expected to {what}, but the Hub refused: {_describe(error)}. {advice}.")


def _describe(error: BaseException) -> str:
    """The error in one line: without addresses, which may hold a signature, and without anything that looks like a token."""
    if not isinstance(error, HfHubHTTPError):
        return type(error).__name__
    status = f"{error.response.status_code} {error.response.reason_phrase}"
    said = _TOKEN.sub("hf_***", error.server_message or "").strip()
    return f"{status} ({said[:200]})" if said else status


def _asked_delay(error: BaseException) -> float:
    """Seconds that the Hub asks to wait; 0 where it does not."""
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    headers = error.response.headers
    asked = headers.get("retry-after", "").strip()
    if asked.isdigit():
        return float(asked)
    limit = parse_ratelimit_headers(headers)
    return limit.reset_in_seconds + 1.0 if limit is not None and limit.remaining == 0 else 0.0

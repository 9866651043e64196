"""Requests to the Hub, tried again while that can help: dropped connections, 408, 429 and 5xx."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import close_session, errors
from huggingface_hub.utils import parse_ratelimit_headers

from hf_dr.errors import HfDrError, HubError
from hf_dr.text import without_secrets

logger = logging.getLogger(__name__)

ATTEMPTS = 6
BASE_DELAY = 1.0  # seconds before the second attempt; doubled before each further one
MAX_DELAY = 300.0  # seconds, also where the Hub asks for longer
# What the Hub's client sends requests with: httpx2, and httpx before huggingface_hub 2.0. Its errors have the same names.
httpx = sys.modules[errors.HTTPError.__module__]
# What a connection dies of. The client itself neither retries a download that is reset in the middle nor a commit.
_TRANSPORT = (
    httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError, ConnectionError,
)  # fmt: skip
# Another thread's connection failed, and the client that all share was closed for it.
_CLOSED = "client has been closed"
# What reading an answer raises that is not what the Hub's would be: a page of a proxy, half of a JSON.
_NONSENSE = (ValueError, LookupError, TypeError, AttributeError, AssertionError)

_sleep = time.sleep
_Result = TypeVar("_Result")


def with_retries(call: Callable[[], _Result], what: str) -> _Result:
    """Returns `call()`, which is called again, after growing waits, where the Hub did not answer or could not.

    An answer may be lost after its work was done, so `call` must be one that can be repeated.

    Args:
        call: Talks to the Hub.
        what: What it does, for messages: "fetch org/plus", "commit to org/plus".

    Raises:
        HubError: It failed `ATTEMPTS` times, or was refused: no such repository or revision, no access, no connection.
        RemoteEntryNotFoundError: There is no such file, which is the caller's to judge, as is what is no answer of the Hub.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except Exception as error:
            _mask(error)
            cause = _cause(error)
            refusal = _refusal(cause, what)
            if refusal is not None:
                raise refusal from error
            if not _is_passing(cause):
                raise
            if attempt == ATTEMPTS:
                raise HubError(
                    f"expected to {what}, but {ATTEMPTS} attempts failed, the last with {describe(cause)}. Check the "
                    "connection and run it again; what has arrived is kept."
                ) from error
            if _CLOSED in str(cause):
                close_session()  # the next request opens another
            delay = min(MAX_DELAY, max(_asked_delay(cause), BASE_DELAY * 2 ** (attempt - 1)))
            logger.warning("Could not %s: %s. Trying again in %.0f s.", what, describe(cause), delay)
            _sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def wait(attempt: int) -> None:
    """Waits as long as before attempt number `attempt`, from 2."""
    _sleep(min(MAX_DELAY, BASE_DELAY * 2 ** (attempt - 2)))


def ask(call: Callable[[], _Result], what: str) -> _Result:
    """Same as `with_retries`, for calls that only ask the Hub: an answer that makes no sense counts as none.

    Raises:
        HubError: See `with_retries`; or the file or folder that is asked for is not there.
    """

    def sensible() -> _Result:
        try:
            return call()
        except (HfDrError, errors.HfHubHTTPError, errors.HFValidationError):
            raise
        except (*_NONSENSE, RuntimeError) as error:
            if _cause(error) is not error:
                raise  # the client's own words for a connection that failed
            raise _SenselessAnswerError from error

    try:
        return with_retries(sensible, what)
    except errors.RemoteEntryNotFoundError as error:
        raise _answered(error, what) from error


class _SenselessAnswerError(ConnectionError):
    """Something answered, but not as a Hub does."""


def is_unreachable(error: BaseException) -> bool:
    """Whether a request failed because the Hub could not be reached or could not answer, so that a cache may stand in."""
    cause = _cause(error)
    return isinstance(cause, errors.OfflineModeIsEnabled) or _is_passing(cause)


def _cause(error: BaseException) -> BaseException:
    """Returns the first error in the chain that says something about the connection: the client wraps it in its own errors."""
    telling = (errors.HfHubHTTPError, errors.FileMetadataError, *_TRANSPORT)
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, telling) or _CLOSED in str(found):
            return found
        found = found.__cause__
    return error


def _mask(error: BaseException | None) -> None:
    """Hides tokens in an error and in what led to it: whoever prints its traceback prints them all."""
    while error is not None:
        error.args = tuple(without_secrets(arg) if isinstance(arg, str) else arg for arg in error.args)
        if isinstance(error, errors.HfHubHTTPError):
            error.server_message = without_secrets(error.server_message or "")
        error = error.__cause__ or error.__context__


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return True  # what the client says of a download that came short
    return isinstance(error, _TRANSPORT) or _CLOSED in str(error)


def _refusal(error: BaseException, what: str) -> HubError | None:
    """Returns the error, with what to do, for what no repetition can fix; None for all else."""
    if isinstance(error, errors.OfflineModeIsEnabled):
        advice = "it is not in the cache and HF_HUB_OFFLINE is set. Unset it, or fetch it once with a connection"
        return HubError(f"expected to {what}, but {advice}.")
    if isinstance(error, errors.HFValidationError):  # the client's own, which has asked nobody
        return HubError(f"expected to {what}, but the Hub has no such names ({str(error).rstrip('.')}). Give another.")
    if isinstance(error, errors.FileMetadataError):
        return HubError(f"expected to {what}, but what answered is no Hub. Check HF_ENDPOINT and any proxy.")
    is_missing_file = isinstance(error, errors.RemoteEntryNotFoundError)
    if not isinstance(error, errors.HfHubHTTPError) or is_missing_file or _is_passing(error):
        return None
    if isinstance(error, errors.GatedRepoError):
        advice = "Accept its terms on its page on the Hub, and log in with `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        advice = "Check `revision`: it must be a branch, a tag or a commit of the repository"
    elif isinstance(error, errors.DisabledRepoError):
        advice = "Ask the owner of the repository"
    elif isinstance(error, errors.RepositoryNotFoundError) or error.response.status_code in (401, 403):
        advice = "Check the name; for a private repository log in with `hf auth login`, as one who may do this"
    else:
        return _answered(error, what)
    return HubError(f"expected to {what}, but the Hub refused: {describe(error)}. {advice}.")


def _answered(error: errors.HfHubHTTPError, what: str) -> HubError:
    advice = "Check the names, HF_ENDPOINT and any proxy, and run it again"
    return HubError(f"expected to {what}, but the Hub answered {describe(error)}. {advice}.")


def describe(error: BaseException) -> str:
    """Returns an error in one line: without addresses, which may hold a signature, and without tokens."""
    if isinstance(error, _SenselessAnswerError):
        return f"an answer that is not a Hub's ({type(error.__cause__).__name__})"
    if not isinstance(error, errors.HfHubHTTPError):
        return type(error).__name__
    status = f"{error.response.status_code} {error.response.reason_phrase}"
    said = " ".join(without_secrets(error.server_message or "").split())
    return f"{status} ({said[:200]})" if said else status


def _asked_delay(error: BaseException) -> float:
    """Seconds that the Hub asks to wait; 0 where it does not."""
    if not isinstance(error, errors.HfHubHTTPError):
        return 0.0
    headers = error.response.headers
    asked = headers.get("retry-after", "").strip()
    if asked.isdigit():
        return float(asked)
    limit = parse_ratelimit_headers(headers)
    return limit.reset_in_seconds + 1.0 if limit is not None and limit.remaining == 0 else 0.0

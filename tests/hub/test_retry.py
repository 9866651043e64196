"""Requests are repeated while that can help, and refused in words where it cannot."""

import json
import traceback

import pytest
from huggingface_hub.errors import (
    FileMetadataError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import hf_raise_for_status

import hf_dr.hub.retry
from hf_dr.errors import HubError
from hf_dr.hub.retry import ATTEMPTS, ask, httpx, with_retries
from hf_dr.text import keep_secret

URL = "https://huggingface.co/api/datasets/org/plus"


def answered(status: int, **headers: str) -> Exception:
    """What the client raises for an answer of the Hub."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = httpx.Response(status, headers=named, request=httpx.Request("GET", URL))
    with pytest.raises(HfHubHTTPError) as caught:
        hf_raise_for_status(response)
    return caught.value


class Failing:
    """A call that raises these errors, one after the other, and then returns 'done'."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def wrapped(cause: Exception) -> Exception:
    error = LocalEntryNotFoundError("We cannot find the requested files in the local cache.")
    error.__cause__ = cause
    return error


@pytest.fixture(autouse=True)
def slept(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(hf_dr.hub.retry, "_sleep", slept.append)
    return slept


@pytest.mark.parametrize(
    "error",
    [
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("cut"),
        httpx.ConnectTimeout("slow"),
        ConnectionError("xet"),
        OSError("Consistency check failed: file should be of size 10 but has size 4"),
        wrapped(httpx.ConnectError("refused")),
        wrapped(answered(500)),
        *(answered(status) for status in (408, 429, 500, 502, 503, 504)),
    ],
    ids=repr,
)
def test_what_passes_is_tried_again(error, slept):
    call = Failing(error, error)
    assert with_retries(call, "fetch org/plus") == "done"
    assert (call.calls, slept) == (3, [1, 2])


def test_the_number_of_attempts_is_bounded(slept):
    call = Failing(*[httpx.ReadError("reset")] * (ATTEMPTS + 1))
    with pytest.raises(HubError, match=f"expected to fetch org/plus, but {ATTEMPTS} attempts failed, .* ReadError"):
        with_retries(call, "fetch org/plus")
    assert call.calls == ATTEMPTS
    assert slept == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7),
        ({"retry_after": "100000"}, 300),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 1),
        ({"ratelimit": '"api";r=0;t=20'}, 21),
        ({"ratelimit": '"api";r=3;t=20'}, 1),
    ],
)
def test_the_hub_says_how_long_to_wait(headers, seconds, slept):
    assert with_retries(Failing(answered(429, **headers)), "fetch org/plus") == "done"
    assert slept == [seconds]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (answered(404, x_error_code="RepoNotFound"), "refused: 404 Not Found. Check the name; .* `hf auth login`"),
        (answered(401), "401 Unauthorized. Check the name; .* `hf auth login`"),
        (answered(403), "403 Forbidden. Check the name"),
        (answered(403, x_error_code="GatedRepo"), "Accept its terms on its page"),
        (answered(404, x_error_code="RevisionNotFound"), "Check `revision`"),
        (answered(403, x_error_message="Access to this resource is disabled."), "Ask the owner"),
        *(
            (answered(status), rf"answered {status} [A-Z].*\. Check the names, HF_ENDPOINT")
            for status in (400, 404, 409, 412, 422)
        ),
        (HFValidationError("Cannot have -- or .. in repo_id: 'a--b'."), r"no such names .*'a--b'\). Give another"),
        (wrapped(OfflineModeIsEnabled("offline")), "HF_HUB_OFFLINE is set. Unset it"),
        (wrapped(FileMetadataError("no ETag")), "what answered is no Hub. Check HF_ENDPOINT"),
    ],
)
def test_what_no_repetition_mends_is_refused_at_once(error, advice, slept):
    for call in (with_retries, ask):
        with pytest.raises(HubError, match=f"expected to fetch org/plus, but .*{advice}") as caught:
            call(Failing(error), "fetch org/plus")
        assert not slept
        assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [answered(404, x_error_code="EntryNotFound"), ValueError("mine")], ids=repr)
def test_other_errors_are_the_callers(error, slept):
    with pytest.raises(type(error)) as caught:
        with_retries(Failing(error), "fetch org/plus")
    assert caught.value is error
    assert not slept


def test_messages_hold_no_token_and_no_address(caplog):
    error = answered(503, x_error_message="who is hf_abcDEF123?")
    assert "hf_abcDEF123" in str(error)
    with pytest.raises(HubError, match="503 Service Unavailable") as caught:
        with_retries(Failing(*[error] * ATTEMPTS), "fetch org/plus")
    assert "hf_***" in caplog.text
    for text in (str(caught.value), caplog.text):
        assert "abcDEF123" not in text
        assert "https://" not in text


def test_no_traceback_shows_a_token_that_a_server_repeats():
    """Neither of the Hub's form nor of another, once it was told."""
    token = "-".join(("another", "form", "of", "token"))  # a traceback shows lines of this file, too
    keep_secret(token)
    said = f"Bearer {token}, Basic d{'T'}pw, http://me:{'pass'}@proxy:8080/x?X-Amz-Signature={'abc'}1"
    with pytest.raises(HubError, match="answered 400 Bad Request") as caught:
        with_retries(Failing(answered(400, x_error_message=f"{said} {token}")), "fetch org/plus")
    shown = "".join(traceback.format_exception(caught.value))
    assert "Bearer ***, Basic ***, http://proxy:8080/x?X-Amz-Signature=*** ***" in shown
    for secret in (token, "dTpw", "pass@", "abc1"):
        assert secret not in shown


def test_a_client_that_was_closed_is_opened_again(monkeypatch):
    closed = []
    monkeypatch.setattr(hf_dr.hub.retry, "close_session", lambda: closed.append(True))
    cause = RuntimeError("Cannot send a request, as the client has been closed.")
    failed = RuntimeError("Error while uploading 'a.parquet' to the Hub.")
    failed.__cause__ = cause
    assert with_retries(Failing(cause, failed), "send a.parquet") == "done"
    assert closed == [True, True]


@pytest.mark.parametrize("error", [json.JSONDecodeError("no", "<html>", 0), KeyError("commitOid"), TypeError("null")])
def test_an_answer_that_makes_no_sense_is_asked_for_again(error, slept):
    assert ask(Failing(error), "read org/plus") == "done"
    with pytest.raises(HubError, match=f"last with an answer that is not a Hub's .{type(error).__name__}"):
        ask(Failing(*[error] * ATTEMPTS), "read org/plus")


def test_a_folder_that_is_not_there_is_no_traceback():
    with pytest.raises(HubError, match=r"expected to read org/plus, but the Hub answered 404 Not Found\. Check"):
        ask(Failing(answered(404, x_error_code="EntryNotFound")), "read org/plus")

"""The forms of errors: OpenAI's by default, and those of the systems that this replaces."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from openai_protocol.errors import (
    ApiError,
    BadGateway,
    ErrorCode,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from openai_proxy.config import ConfigError, load
from openai_proxy.dialects.base import PassedError
from openai_proxy.error_forms import DOCUMENTED, FORMS, form_of, old_code
from tests.proxy import harness
from tests.proxy.harness import (
    CHAT,
    DONE,
    StandIn,
    answered,
    answered_json,
    chunk,
    refused_port,
    streamed,
)

ERRORS_DOCUMENT = Path(__file__).parents[2] / "docs" / "errors.md"
NOT_ALLOWED = NotFound(
    "Model 'gpt-4' is not in the allowed list. Available models: a, b",
    param="model",
    code="model_not_allowed",
)
UNREACHABLE = BadGateway("no", code=ErrorCode.UPSTREAM_CONNECTION_FAILED)
EMPTY = InvalidRequest("none", param="messages", code=ErrorCode.EMPTY_MESSAGES)


def told(form: str, error: ApiError) -> tuple[int, Any]:
    """The status and the decoded body of an error in a form."""
    return FORMS[form].status(error), json.loads(FORMS[form].body(error))


@pytest.mark.parametrize(
    ("error", "status", "code", "text"),
    [
        (EMPTY, 400, "EMPTY_MESSAGES", "Messages array cannot be empty"),
        (NOT_ALLOWED, 400, "MODEL_NOT_ALLOWED", NOT_ALLOWED.message),
        (
            UNREACHABLE,
            502,
            "PROVIDER_CONNECTION_FAILED",
            "Connection failed: error sending request",
        ),
    ],
)
def test_documented_errors(error: ApiError, status: int, code: str, text: str) -> None:
    """The three errors of the Inference Service's document come as it shows them."""
    assert told("flat", error) == (status, {"error": text, "code": code})
    assert told("seed", error) == (
        status,
        {"error": {"message": text, "type": error.type, "param": error.param, "code": code}},
    )


@pytest.mark.parametrize("error", [EMPTY, NOT_ALLOWED, UNREACHABLE])
def test_the_default_form_names_the_old_code(error: ApiError) -> None:
    """OpenAI's envelope stays as it is, and has the old code beside the new one."""
    status, body = told("openai", error)
    assert status == error.status
    assert body["error"].pop("legacy_code") == DOCUMENTED[str(error.code)]
    assert body == error.envelope()


def test_no_old_code_where_there_was_none() -> None:
    """What the documents do not name is OpenAI's envelope, and no more."""
    error = Unavailable("later")
    assert told("openai", error) == (503, error.envelope())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("x", param="temperature", code="decimal_above_max_value"), "TEMPERATURE"),
        (InvalidRequest("x", param="max_tokens", code="integer_below_min_value"), "MAX_TOKENS"),
        (InvalidRequest("x", param="messages[0].role", code="invalid_value"), "MESSAGES"),
    ],
)
def test_a_wrong_field_is_named_by_the_code(error: ApiError, code: str) -> None:
    """Old codes say which field is wrong, not what is wrong with it."""
    assert old_code(error) == f"INVALID_{code}"


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_an_old_form(code: ErrorCode) -> None:
    """Old codes are upper case, and speak of providers, not of upstreams."""
    made = old_code(InvalidRequest("x", code=code))
    assert re.fullmatch(r"[A-Z][A-Z_]+", made)
    assert "UPSTREAM" not in made


@pytest.mark.parametrize("code", list(ErrorCode))
def test_the_document_has_the_codes(code: ErrorCode) -> None:
    """The table of old codes has each that is not simply ours in upper case."""
    document = ERRORS_DOCUMENT.read_text(encoding="utf-8")
    row = re.search(rf"^\| `{code}` \| `([A-Z_]+)`", document, re.MULTILINE)
    listed = row[1] if row is not None else code.upper()
    assert listed == old_code(InvalidRequest("x", code=code))


@pytest.mark.parametrize(
    ("raw", "text", "code"),
    [
        ({"error": {"message": "m", "type": "t", "code": 422}}, "m", "PROVIDER_REQUEST_FAILED"),
        ({"error": {"message": "m", "code": "queue_full"}}, "m", "QUEUE_FULL"),
        ({"error": {"message": None}}, "the upstream refused", "PROVIDER_REQUEST_FAILED"),
        (["no envelope"], "the upstream refused", "PROVIDER_REQUEST_FAILED"),
    ],
)
def test_upstreams_own_errors(raw: Any, text: str, code: str) -> None:
    """An upstream's envelope passes as it is by default; its text is told in the old forms."""
    found = raw["error"] if isinstance(raw, dict) else {}
    passed = PassedError(409, str(found.get("code") or "odd"), json.dumps(raw).encode())
    assert told("openai", passed) == (409, raw)
    status, body = told("flat", passed)
    assert (status, body["code"]) == (409, code)
    assert body["error"].startswith(text)


def test_a_scope_without_a_form_has_openais() -> None:
    """An application that is used without the middleware answers in OpenAI's form."""
    assert form_of({}) is FORMS["openai"]


async def test_flat_by_http(upstream: StandIn) -> None:
    """The documents' own requests get their answers, whoever refuses: table, FastAPI or route."""
    async with harness.proxy(upstream_url=upstream.url, errors="flat") as proxy:
        assert await proxy.chat(messages=[]) == (
            400,
            {"error": "Messages array cannot be empty", "code": "EMPTY_MESSAGES"},
        )
        assert await proxy.get("/nope") == (
            404,
            {
                "error": "Unknown request URL: GET /nope. Please check the URL for typos.",
                "code": "UNKNOWN_URL",
            },
        )
        status, body = await proxy.get("/v1/models/unknown")
        assert (status, body["code"]) == (404, "MODEL_NOT_AVAILABLE")
        upstream.respond = answered(500, "", "text/plain")
        assert (await proxy.chat())[1]["code"] == "PROVIDER_REQUEST_FAILED"


async def test_an_upstream_that_is_not_there() -> None:
    """A refused connection is 502 PROVIDER_CONNECTION_FAILED, also by default."""
    url = f"http://127.0.0.1:{refused_port()}"
    async with harness.proxy(upstream_url=url, errors="seed") as proxy:
        status, body = await proxy.chat()
        assert (status, body["error"]["code"]) == (502, "PROVIDER_CONNECTION_FAILED")
    async with harness.proxy(upstream_url=url) as proxy:
        status, body = await proxy.chat()
        assert (status, body["error"]["legacy_code"]) == (502, "PROVIDER_CONNECTION_FAILED")
        assert body["error"]["code"] == "upstream_connection_failed"


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (b"", "PROVIDER_STREAM_BROKEN"),
        (b'data: {"error": {"message":"m","code":"engine_failed"}}\n\n', "ENGINE_FAILED"),
    ],
)
async def test_errors_in_streams(upstream: StandIn, last: bytes, code: str) -> None:
    """A stream that breaks, or whose upstream says so, ends with an event of the chosen form."""
    upstream.respond = streamed(chunk("a"), last)
    async with harness.proxy(upstream_url=upstream.url, errors="flat") as proxy:
        events = (await proxy.stream()).strip().split("\n\n")
    assert len(events) == 2
    assert json.loads(events[-1].removeprefix("data: "))["code"] == code


@pytest.mark.parametrize(
    ("event", "status", "code"),
    [
        ({"message": "m", "type": "t", "code": "engine_failed"}, 502, "engine_failed"),
        ({"message": "m", "type": "BadRequestError", "code": 400}, 400, 400),
        ({"message": "m", "type": "rate_limit_error", "code": None}, 429, None),
    ],
)
async def test_an_error_instead_of_a_stream(
    upstream: StandIn, event: dict[str, Any], status: int, code: object
) -> None:
    """An error that comes instead of the first event is an answer with a status, no stream."""
    upstream.respond = streamed(b"data: " + json.dumps({"error": event}).encode() + b"\n\n", DONE)
    async with harness.proxy(upstream_url=upstream.url) as proxy:
        got, body = await proxy.chat(stream=True)
    assert (got, body["error"]["code"]) == (status, code)


async def test_retry_after_stays(upstream: StandIn) -> None:
    """Headers are the same in every form."""
    upstream.respond = answered_json({"error": "slow down"}, 429, **{"retry-after": "7"})
    body = {"messages": harness.MESSAGES}
    async with (
        harness.proxy(upstream_url=upstream.url, errors="flat") as proxy,
        proxy.http.post(proxy.url + CHAT, json=body) as got,
    ):
        assert got.headers["retry-after"] == "7"
        assert await got.json() == {"error": "slow down", "code": "RATE_LIMIT_EXCEEDED"}


def test_unknown_form() -> None:
    """A form that there is not stops the start, and the sentence names those that there are."""
    with pytest.raises(ConfigError, match=r"--errors: .*'openai', 'seed' or 'flat'"):
        load({"without_upstream": True, "errors": "odd"})

"""The `openai` dialect: bytes pass; only paths are mapped and errors given their form.

What servers of this dialect answer in case of an error, all of it translated:
    {"error": {"message", "type", "param", "code"}}           OpenAI, vLLM, our predictor
    {"object": "error", "message", "type", "param", "code"}   older vLLM, SGLang
    {"detail": "text" | [{"loc", "msg", "type"}]}             FastAPI
    {"error": "text"}                                         KServe, Ollama
    text, HTML, nothing                                       whatever stands in between
"""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic_core import from_json

from openai_protocol.errors import (
    ApiError,
    BadGateway,
    DeadlineExceeded,
    ErrorCode,
    InvalidRequest,
    RateLimited,
    Unavailable,
)
from openai_protocol.resume import HEADER
from openai_protocol.sse import (
    DONE,
    DONE_PAYLOAD,
    MEDIA_TYPE,
    EventSplitter,
    data_of,
    split_events,
)
from openai_proxy.dialects.base import (
    CHAT,
    COMPLETIONS,
    AnswerHead,
    Call,
    Headers,
    PassedError,
    UpstreamRequest,
)

MAX_ERROR_TEXT = 1000
GENERIC = "The upstream failed to process the request."
# What such servers have beside generation; those without /v1 stand at their root.
PASSED = ("/v1/embeddings", "/v1/rerank", "/rerank", "/tokenize", "/detokenize")
_OUR_CODES = frozenset(str(code) for code in ErrorCode)
_ERROR_EVENT = re.compile(rb'\s*\{\s*"error"\s*:')

# Never forwarded: what is between two neighbours only (RFC 9110, 7.6.1), what the client library
# writes itself, and the client's credentials: keys are this proxy's business. An upstream's own
# credentials belong to the upstream's configuration and are added where the request is sent.
DROPPED_HEADERS = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "proxy-authenticate", "proxy-authorization", "expect", "host"),
        *("content-length", "content-type", "accept", "accept-encoding", "content-encoding"),
        *("authorization", "x-api-key", "api-key", "cookie", "x-request-id"),
        *("traceparent", "tracestate"),  # added to each attempt, as they are or as its own trace's
        HEADER,  # only this proxy asks for streams that can be resumed
    }
)


class OpenAIDialect:
    """Passes requests, answers and streams through as they are."""

    base_path = "/v1"
    endpoints = frozenset({CHAT, COMPLETIONS, *PASSED})
    stream_types = frozenset({MEDIA_TYPE})
    models_path = "/models"

    def request(self, call: Call) -> UpstreamRequest:
        """Map the path below the upstream's base URL, drop what is not the upstream's business."""
        kept = [pair for pair in call.headers if pair[0] not in DROPPED_HEADERS]
        if kept:
            named = _named_by_connection(call.headers)
            kept = [pair for pair in kept if pair[0] not in named]
        kept.append(("content-type", "application/json"))
        path = call.path.removeprefix("/v1")
        return UpstreamRequest(path, kept, call.body, is_at_root=path == call.path)

    def answer(self, call: Call, head: AnswerHead, body: bytes) -> bytes:
        """Return the body as it is, but for the model's name; raises BadGateway for no answer."""
        value = _json(body)
        if isinstance(value, dict) and (call.asked is None or _has_choices(value)):
            if call.asked is None and "error" in value:
                raise BadGateway(GENERIC, code=ErrorCode.UPSTREAM_ERROR)
            return _renamed(call, value, body)
        if isinstance(value, dict) and value.get("error"):
            raise BadGateway(GENERIC, code=ErrorCode.UPSTREAM_ERROR)
        raise invalid_response()

    def error(self, head: AnswerHead, body: bytes) -> ApiError:
        """Pass an envelope of OpenAI's form, give others that form; 5xx texts are not passed."""
        error = _error(head, body)
        if head.retry_after is not None and error.retry_after_seconds is None:
            error.retry_after_seconds = _seconds(head.retry_after)
        return error

    def stream(self, call: Call) -> OpenAIStream:
        """Return a parser for one stream."""
        return OpenAIStream(_new_name(call))

    def models(self, body: bytes) -> tuple[str, ...] | None:
        """Return the names in OpenAI's list of models, or None where it is no such list."""
        value = _json(body)
        data = value.get("data") if isinstance(value, dict) else None
        if not isinstance(data, list):
            return None
        ids = (item.get("id") for item in data if isinstance(item, dict))
        return tuple(name for name in ids if isinstance(name, str))


class OpenAIStream:
    """Passes whole events on as they come, drops comments, knows a good end from a bad one.

    No JSON is parsed, except that of an error event, which ends the stream as other failures do.
    """

    def __init__(self, model: str | None = None) -> None:
        """`model` is what the events' model is to be called; None: as the upstream does."""
        self._field = None if model is None else b'"model":' + json.dumps(model).encode()
        self._splitter = EventSplitter()
        self._is_complete = False
        self._is_broken = False
        self._failure: ApiError | None = None

    @property
    def is_complete(self) -> bool:
        """Whether `[DONE]`, an error event or something that is no event has come."""
        return self._is_complete or self._is_broken

    def feed(self, chunk: bytes) -> bytes:
        """Return the whole events that this chunk completes."""
        try:
            block = self._splitter.feed(chunk)
        except ValueError:
            self._is_broken = True
            return b""
        if not block:
            return block
        is_done = block.endswith(DONE)
        if _is_plain(block, is_done=is_done):
            self._is_complete = is_done
            return self._named(block)
        passed = []
        for raw in split_events(block):
            passed.append(self._pass(raw))
            if self.is_complete:
                break
        return self._named(b"".join(passed))

    def _named(self, events: bytes) -> bytes:
        """Return events with the model's other name.

        Where the field is named inside a text, its quotes are escaped there.
        """
        if self._field is None:
            return events
        new_field = self._field
        return _MODEL_FIELD.sub(lambda _: new_field, events)

    def finish(self) -> bytes:
        """Raise unless the stream has ended well."""
        if self._failure is not None:
            raise self._failure
        if not self._is_complete:
            raise broken_stream()
        return b""

    def _pass(self, raw: bytes) -> bytes:
        lines = [line for line in raw.strip(b"\n").split(b"\n") if not line.startswith(b":")]
        if not lines:
            return b""
        data = data_of(b"\n".join(lines))
        if data is None:
            # An event without data is none (the standard's rule), but it must be an event.
            self._is_broken = not all(_FIELD.match(line) for line in lines)
            return b""
        if data.strip() == DONE_PAYLOAD:
            self._is_complete = True
            return DONE
        if _ERROR_EVENT.match(data):
            self._is_complete = True
            self._failure = _failure(data)
            return b""
        if not (data.lstrip().startswith(b"{") and data.rstrip().endswith(b"}")):
            self._is_broken = True
            return b""
        return b"\n".join(lines) + b"\n\n"


_MODEL_FIELD = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')
_FIELD = re.compile(rb"(data|event|id|retry)(:|$)")
_LAST_DONE = b"}\n\n" + DONE


def _is_plain(block: bytes, *, is_done: bool) -> bool:
    """Tell whether all events of a block are one line of JSON that is no error, as most are.

    `is_done`: after them comes `[DONE]`. Counts alone tell it, much faster than an expression.
    """
    num_events = block.count(b"}\n\ndata: {") + 1
    return (
        block.startswith(b"data: {")
        and block.endswith(_LAST_DONE if is_done else b"}\n\n")
        and block.count(b"\n") == 2 * (num_events + is_done)
        and b"\r" not in block
        and b'"error"' not in block  # within a text its quotes are escaped
    )


def invalid_response() -> BadGateway:
    """Return the error for an answer that cannot be understood."""
    return BadGateway(
        "The upstream's answer cannot be understood.", code=ErrorCode.UPSTREAM_INVALID_RESPONSE
    )


def broken_stream() -> BadGateway:
    """Return the error for a stream that ended, or went wrong, in the middle."""
    return BadGateway(
        "The upstream's stream broke before its end.", code=ErrorCode.UPSTREAM_STREAM_BROKEN
    )


def _named_by_connection(headers: Headers) -> frozenset[str]:
    """Return the names of the headers that are meant for the next neighbour only."""
    values = [value for name, value in headers if name == "connection"]
    return frozenset(token.strip().lower() for value in values for token in value.split(","))


def _has_choices(value: dict[str, Any]) -> bool:
    return isinstance(value.get("choices"), list)


def _new_name(call: Call) -> str | None:
    """Return the client's name for the model, where the upstream has another one."""
    return call.model if call.model != call.upstream_model else None


def _renamed(call: Call, value: dict[str, Any], body: bytes) -> bytes:
    name = _new_name(call)
    if name is None or "model" not in value:
        return body
    return json.dumps(value | {"model": name}, ensure_ascii=False).encode()


def _json(body: bytes) -> Any:
    try:
        return from_json(body)
    except ValueError:
        return None


def _error(head: AnswerHead, body: bytes) -> ApiError:
    value = _json(body)
    found = value.get("error") if isinstance(value, dict) else None
    is_envelope = isinstance(found, dict) and isinstance(found.get("message"), str)
    code = str(found.get("code") or "") if isinstance(found, dict) else ""
    if is_envelope and 400 <= head.status < 500:
        return PassedError(head.status, code or ErrorCode.UPSTREAM_ERROR, body)
    if is_envelope and head.status >= 500 and code in _OUR_CODES:
        return PassedError(head.status, code, body)  # a server of ours: its 5xx texts are clean
    if head.status < 400:
        return invalid_response()
    if head.status >= 500:
        return _server_error(head.status)
    text, param = _text_and_param(value)
    text = text or f"The upstream refused the request (HTTP {head.status})."
    if head.status == 429:
        return RateLimited(text[:MAX_ERROR_TEXT])
    return InvalidRequest(
        text[:MAX_ERROR_TEXT], param=param, status=head.status, code=ErrorCode.UPSTREAM_ERROR
    )


def _server_error(status: int) -> ApiError:
    if status == 503:
        return Unavailable("The upstream is not available.", code=ErrorCode.UPSTREAM_ERROR)
    if status == 504:
        return DeadlineExceeded("The upstream did not answer in time.")
    return BadGateway(GENERIC, code=ErrorCode.UPSTREAM_ERROR)


def _text_and_param(value: Any) -> tuple[str, str | None]:
    if not isinstance(value, dict):
        return "", None
    for name in ("error", "message", "detail"):
        text = value.get(name)
        if isinstance(text, str) and text:
            param = value.get("param")
            return text, param if isinstance(param, str) else None
    detail = value.get("detail")
    if isinstance(detail, list) and detail and isinstance(detail[0], dict):
        loc = detail[0].get("loc")
        parts = [str(part) for part in loc if part != "body"] if isinstance(loc, list) else []
        return str(detail[0].get("msg") or ""), ".".join(parts) or None
    return "", None


def _failure(data: bytes) -> ApiError:
    """Return the error that an error event tells of; others' texts are not passed."""
    value = _json(data)
    found = value.get("error") if isinstance(value, dict) else None
    code = str(found.get("code") or "") if isinstance(found, dict) else ""
    if isinstance(found, dict) and code in _OUR_CODES:
        return PassedError(_status(found), code, data.replace(b"\n", b" "))
    if isinstance(found, dict) and isinstance(found.get("message"), str):
        kind = str(found.get("type") or "")
        if "server" not in kind.lower() and "internal" not in kind.lower() and kind:
            raw = data.replace(b"\n", b" ")
            return PassedError(_status(found), ErrorCode.UPSTREAM_ERROR, raw)
    return BadGateway(GENERIC, code=ErrorCode.UPSTREAM_ERROR)


def _status(told: dict[str, Any]) -> int:
    """Return the status that an error event would have had as an answer: nothing says it."""
    code = told.get("code")
    if isinstance(code, int) and 400 <= code < 600:
        return code
    return {"invalid_request_error": 400, "rate_limit_error": 429}.get(str(told.get("type")), 502)


def _seconds(retry_after: str) -> float | None:
    return float(retry_after) if retry_after.isdigit() and len(retry_after) <= 6 else None

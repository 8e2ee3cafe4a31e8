"""What tests of translating dialects share: calls, streams in pieces, a proxy that speaks one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web
from hypothesis import strategies as st

from openai_protocol.errors import ApiError, InvalidRequest
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest, Message
from openai_proxy.dialects.base import (
    CHAT,
    COMPLETIONS,
    AnswerHead,
    Call,
    Dialect,
    StreamParser,
)
from openai_proxy.server import listen
from tests.proxy import harness
from tests.proxy.harness import MESSAGES, Proxy

OK = AnswerHead(200, "application/json")
USAGE = {"stream": True, "stream_options": {"include_usage": True}}
CUTS = st.lists(st.integers(0, 2000), max_size=12)


def chat(**fields: Any) -> Call:
    """A chat of a client."""
    asked = ChatCompletionRequest.model_validate({"messages": MESSAGES, **fields})
    return Call(
        CHAT, b"", asked, model="ours", upstream_model="theirs", answer_id="chatcmpl-1", created=7
    )


def text(**fields: Any) -> Call:
    """A text completion of a client."""
    asked = CompletionRequest.model_validate({"prompt": "Say hi", **fields})
    return Call(
        COMPLETIONS,
        b"",
        asked,
        model="ours",
        upstream_model="theirs",
        answer_id="cmpl-1",
        created=7,
    )


def render(messages: list[Message]) -> str:
    """A chat template that is easy to read."""
    return "".join(f"<{message.role}>{message.content}" for message in messages) + "<assistant>"


def sent(dialect: Dialect, call: Call) -> Any:
    """What a dialect sends for a call."""
    return json.loads(dialect.request(call).body)


def refusal(dialect: Dialect, call: Call) -> tuple[str | None, str]:
    """The field and the code with which a dialect refuses a call."""
    with pytest.raises(InvalidRequest) as caught:
        dialect.request(call)
    assert caught.value.status == 400
    return caught.value.param, str(caught.value.code)


def answered(dialect: Dialect, call: Call, value: Any) -> Any:
    """What a client gets for an upstream's whole answer."""
    return json.loads(dialect.answer(call, OK, json.dumps(value).encode()))


def failure(dialect: Dialect, call: Call, body: bytes) -> tuple[int, str, str]:
    """Status, code and text of the error that an answer under status 200 becomes."""
    with pytest.raises(ApiError) as caught:
        dialect.answer(call, OK, body)
    return caught.value.status, str(caught.value.code), caught.value.message


def pieces(whole: bytes, cuts: list[int]) -> list[bytes]:
    """Cut bytes as a network may."""
    ends = [0, *sorted(cut % (len(whole) + 1) for cut in cuts), len(whole)]
    return [whole[a:b] for a, b in pairwise(ends)]


def fed(parser: StreamParser, *chunks: bytes) -> tuple[list[Any], ApiError | None]:
    """The events that a client gets of a stream, decoded, and the error at its end."""
    passed = b""
    for chunk in chunks:
        if parser.is_complete:
            break
        passed += parser.feed(chunk)
    error = None
    try:
        passed += parser.finish()
    except ApiError as caught:
        error = caught
    return events_of(passed.decode()), error


def events_of(stream: str) -> list[Any]:
    """The decoded events of a stream."""
    assert stream == "" or stream.endswith("\n\n")
    found = [part.removeprefix("data: ") for part in stream.split("\n\n") if part]
    return [part if part == "[DONE]" else json.loads(part) for part in found]


def said(events: list[Any], index: int = 0) -> str:
    """The text of a choice, put together."""
    return "".join(
        choice["text"] if "text" in choice else choice["delta"].get("content") or ""
        for choice in choices(events, index)
    )


def ends(events: list[Any], index: int = 0) -> list[str]:
    """The finish reasons of a choice, in order."""
    found = [choice["finish_reason"] for choice in choices(events, index)]
    return [reason for reason in found if reason is not None]


def choices(events: list[Any], index: int = 0) -> list[Any]:
    """What the events say of one choice."""
    parts = [part for event in events if event != "[DONE]" for part in event.get("choices", [])]
    return [part for part in parts if part["index"] == index]


def usage(events: list[Any]) -> Any:
    """The usage that a stream tells, as prompt and completion tokens; None where it tells none."""
    for event in events:
        if event != "[DONE]" and event.get("usage"):
            return event["usage"]["prompt_tokens"], event["usage"]["completion_tokens"]
    return None


@asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    """Run a stand-in for a server; gives its URL."""
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    listener = listen("127.0.0.1", 0)
    await web.SockSite(runner, listener).start()
    host, port = listener.getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def proxied(
    monkeypatch: pytest.MonkeyPatch, dialect: Dialect, app: web.Application
) -> AsyncIterator[Proxy]:
    """Run a stand-in and a proxy in front of it that speaks its dialect."""
    monkeypatch.setattr("openai_proxy.assembly.make_dialect", lambda *_: dialect)
    async with served(app) as url, harness.proxy(upstream_url=url) as running:
        yield running

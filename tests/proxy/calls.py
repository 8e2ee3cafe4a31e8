"""Calls of models that take texts, and what their streams become."""

from __future__ import annotations

from typing import Any

from openai import APIError, AsyncStream
from openai.types import Completion

from openai_protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_proxy.dialects.base import CHAT, COMPLETIONS, Call, StreamParser
from tests.proxy.harness import MESSAGES
from tests.proxy.translating import events_of


def chat(**fields: Any) -> Call:
    """A chat; `headers` are the client's."""
    headers = fields.pop("headers", [])
    upstream_model = fields.pop("upstream_model", "small")
    asked = ChatCompletionRequest.model_validate({"messages": MESSAGES, **fields})
    return Call(CHAT, b"", asked, headers, "tiny", upstream_model, "chatcmpl-1", 7)


def text(**fields: Any) -> Call:
    """A text completion."""
    asked = CompletionRequest.model_validate({"prompt": "hi", **fields})
    return Call(COMPLETIONS, b"", asked, [], "tiny", "small", "cmpl-1", 7)


def fed(parser: StreamParser, *chunks: bytes) -> bytes:
    """What a parser makes of a stream, as an endpoint feeds it; raises as `finish` does."""
    passed = b""
    for chunk in chunks:
        if parser.is_complete:
            break
        passed += parser.feed(chunk)
    return passed + parser.finish()


def contents(data: bytes) -> str:
    """The text of a chat's stream."""
    chunks = [chunk for chunk in events_of(data.decode()) if chunk != "[DONE]" and chunk["choices"]]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def reason(data: bytes) -> str | None:
    """Why a stream's text ends."""
    chunks = [chunk for chunk in events_of(data.decode()) if chunk != "[DONE]" and chunk["choices"]]
    found: str | None = chunks[-1]["choices"][0]["finish_reason"]
    return found


async def until_error(stream: AsyncStream[Completion]) -> str:
    """The text that the official client gets before the error that must end its stream."""
    text = ""
    try:
        async for chunk in stream:
            text += chunk.choices[0].text
    except APIError:
        return text
    raise AssertionError("the stream has ended without an error")

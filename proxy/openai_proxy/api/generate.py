"""`/api/generate`, `/api/generate/stream` and `/api/chat`: completions in another form.

A whole answer is `{"text" | "message", "model", "tokens_generated", "finish_reason"}`. A stream has
nothing but text: an event for each piece, a `data:` line for each line of it; it ends with the
connection, or with an event of type `error`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field
from pydantic_core import from_json

from openai_protocol.request_limits import RequestLimits
from openai_protocol.requests import ChatCompletionRequest, GenerationRequest
from openai_proxy.api.translation import Json, Translated
from openai_proxy.dialects.base import CHAT, COMPLETIONS
from openai_proxy.dialects.openai import invalid_response
from openai_proxy.middleware import App

GENERATE = "/api/generate"
GENERATE_STREAM = "/api/generate/stream"
API_CHAT = "/api/chat"

# Where an upstream does not count its tokens: about what tokenizers make of English.
_BYTES_PER_TOKEN = 4
_LINE_END = re.compile(r"\r\n|\r|\n")


class GenerateRequest(GenerationRequest):
    """The body of `POST /api/generate` and `/api/generate/stream`."""

    prompt: str
    n: int | None = Field(None, ge=1, le=1)


class ChatRequest(ChatCompletionRequest):
    """The body of `POST /api/chat`."""

    n: int | None = Field(None, ge=1, le=1)


def endpoints(generating: Mapping[str, App], limits: RequestLimits) -> dict[str, App]:
    """Return the endpoints by their paths, over those that `generating` has under OpenAI's."""
    completions, chat = generating[COMPLETIONS], generating[CHAT]

    def generate(body: bytes) -> bytes:
        limits.parse(GenerateRequest, body)
        return body

    def generate_stream(body: bytes) -> bytes:
        return json.dumps(from_json(generate(body)) | {"stream": True}, ensure_ascii=False).encode()

    def converse(body: bytes) -> bytes:
        limits.parse(ChatRequest, body)
        return body

    return {
        GENERATE: Translated(completions, generate, text_answer, text_events),
        GENERATE_STREAM: Translated(completions, generate_stream, text_answer, text_events),
        API_CHAT: Translated(chat, converse, message_answer, text_events),
    }


def text_answer(completion: Json) -> bytes:
    """Return the answer to `/api/generate` for a completion; raises BadGateway."""
    choice = _choice(completion)
    text = _text(choice.get("text"))
    return _json({"text": text, **_ending(completion, choice, text)})


def message_answer(completion: Json) -> bytes:
    """Return the answer to `/api/chat` for a chat completion; raises BadGateway.

    What else a message has (`tool_calls`) goes along.
    """
    choice = _choice(completion)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise invalid_response()
    text = _text(message.get("content"))
    said = {name: value for name, value in message.items() if value is not None}
    told = {"role": "assistant", "content": text} | said
    return _json({"message": told, **_ending(completion, choice, text)})


def text_events(chunk: Json) -> bytes:
    """Return the event for a chunk's text; none where it has no text."""
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return b""
    delta = choices[0].get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choices[0].get("text")
    return text_event(text) if isinstance(text, str) and text else b""


def text_event(text: str) -> bytes:
    """Frame text as an event: its lines are joined again by whoever reads it."""
    lines = b"".join(b"data: " + line.encode() + b"\n" for line in _LINE_END.split(text))
    return lines + b"\n"


def _ending(completion: Json, choice: Json, text: str) -> Json:
    return {
        "model": completion.get("model") or "",
        "tokens_generated": num_tokens(completion, text),
        "finish_reason": finish_reason(choice),
    }


def num_tokens(completion: Json, text: str) -> int:
    """Return the tokens that an answer has: as the upstream counts them, else an estimate."""
    usage = completion.get("usage")
    counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if isinstance(counted, int) and counted > 0:
        return counted
    return -(-len(text.encode()) // _BYTES_PER_TOKEN)


def finish_reason(choice: Json) -> str:
    """Return why a choice ended: `eos` where the model did it itself, `stop` at a stop string.

    Only some upstreams tell the two apart, by vLLM's `stop_reason`; `eos` is said where not.
    """
    reason = choice.get("finish_reason")
    if reason == "stop":
        return "stop" if choice.get("stop_reason") is not None else "eos"
    return reason if isinstance(reason, str) else "eos"


def _choice(completion: Json) -> Json:
    choices = completion.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise invalid_response()
    choice: Json = choices[0]
    return choice


def _text(value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise invalid_response()
    return value or ""


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()

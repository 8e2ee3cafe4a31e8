"""Stands in for Ollama: NDJSON, streams unless told not to, tool calls whole, errors as text."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from tests.proxy.standin.sse import write_stream

WORDS = ("Hello", " there", "é")
MODEL = "llama3:latest"
FAILING = "failing:latest"  # a model that fails in mid-stream
BUSY = "busy:latest"
CALL = {"function": {"name": "weather", "arguments": {"city": "Ulm", "days": 2}}}
FIGURES = {"total_duration": 5, "prompt_eval_count": 11, "eval_count": 3, "eval_duration": 2}


class OllamaServer:
    """Speaks Ollama's wire format; owner: a test. `seen` are the requests."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application()
        app.router.add_post("/api/chat", self._answer)
        app.router.add_post("/api/generate", self._answer)
        app.router.add_get("/api/tags", self._tags)
        return app

    async def _tags(self, _: web.Request) -> web.Response:
        return web.json_response({"models": [{"name": MODEL, "model": MODEL, "size": 1}]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append((request.path, body))
        if body["model"] == BUSY:
            busy = "server busy, please try again.  maximum pending requests exceeded"
            return web.json_response({"error": busy}, status=503)
        if body["model"] not in (MODEL, FAILING):
            return web.json_response({"error": f"model '{body['model']}' not found"}, status=404)
        complaint = _complaint(body)
        if complaint:
            return web.json_response({"error": complaint}, status=400)
        is_chat = request.path == "/api/chat"
        lines = list(_lines(body, is_chat))
        if not body.get("stream", True):
            return web.json_response(_whole(lines, is_chat))
        if body["model"] == FAILING:
            lines[1:] = [{"error": "llama runner process has terminated: secret"}]
        parts = [json.dumps(line).encode() + b"\n" for line in lines]
        return await write_stream(request, parts, "application/x-ndjson")


def _complaint(body: Any) -> str:
    """What Go says of a body that it cannot read."""
    for message in body.get("messages", []):
        if not isinstance(message.get("content", ""), str):
            return "json: cannot unmarshal array into Go struct field .content of type string"
        for image in message.get("images", []):
            base64.b64decode(image, validate=True)
        for call in message.get("tool_calls", []):
            if not isinstance(call["function"]["arguments"], dict):
                return "json: cannot unmarshal string into Go struct field .arguments"
    unknown = set(body.get("options", {})) - {
        *("temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "num_predict", "stop"),
        *("presence_penalty", "frequency_penalty", "repeat_penalty", "num_ctx"),
    }
    return f"invalid option provided: {unknown}" if unknown else ""


def _lines(body: Any, is_chat: bool) -> Iterator[Any]:
    limit = body.get("options", {}).get("num_predict", len(WORDS))
    head = {"model": body["model"], "created_at": "2026-01-01T00:00:00Z"}
    if body.get("think"):
        yield head | {"message": {"role": "assistant", "content": "", "thinking": "Hm."}} | _MORE
    if body.get("tools"):
        message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
        yield head | {"message": message} | _MORE
    else:
        for word in WORDS[:limit]:
            yield head | _part(word, is_chat) | _logprobs(body, word) | _MORE
    reason = "length" if limit < len(WORDS) else "stop"
    yield head | _part("", is_chat) | {"done": True, "done_reason": reason} | FIGURES


_MORE = {"done": False}


def _logprobs(body: Any, word: str) -> Any:
    if not body.get("logprobs"):
        return {}
    told = {"token": word, "logprob": -0.5, "bytes": list(word.encode())}
    others = [{"token": f"#{n}", "logprob": -2.0} for n in range(body.get("top_logprobs", 0))]
    return {"logprobs": [told | ({"top_logprobs": others} if others else {})]}


def _part(text: str, is_chat: bool) -> Any:
    return {"message": {"role": "assistant", "content": text}} if is_chat else {"response": text}


def _whole(lines: list[Any], is_chat: bool) -> Any:
    whole = dict(lines[-1])
    if logprobs := [told for line in lines for told in line.get("logprobs", [])]:
        whole["logprobs"] = logprobs
    if not is_chat:
        return whole | {"response": "".join(line["response"] for line in lines)}
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for line in lines:
        message["content"] += line["message"]["content"]
        for name in ("thinking", "tool_calls"):
            if name in line["message"]:
                message[name] = line["message"][name]
    return whole | {"message": message}

"""Stands in for shimmy: streams unless told not to, counts nothing, is silent about errors."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from tests.proxy.standin.sse import write_stream

TOKENS = ("Hel", "lo", "\n\n", "  two spaces", "\n", "é", "")
TEXT = "".join(TOKENS)
MODEL = "phi3-lora"
FAILING = "failing"  # a model that fails in mid-stream
UNLOADABLE = "unloadable"


class ShimmyServer:
    """Speaks shimmy's wire format; owner: a test. `seen` are the requests."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/api/generate", self._generate)
        app.router.add_get("/v1/models", self._models)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        entry = {"id": MODEL, "object": "model", "created": 1, "owned_by": "shimmy"}
        return web.json_response({"object": "list", "data": [entry]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        if not _are_messages(body.get("messages")):
            return web.Response(status=422, text="Failed to deserialize: expected a string")
        if body["model"] not in (MODEL, FAILING, UNLOADABLE):
            message = f"Model '{body['model']}' not found. Available models: {[MODEL]}"
            error = {"message": message, "type": "invalid_request_error", "param": "model"}
            return web.json_response({"error": {**error, "code": "model_not_found"}}, status=404)
        if body["model"] == UNLOADABLE:
            return web.Response(status=502)
        if body.get("stream", True):
            return await write_stream(request, _chunks())
        message = {"role": "assistant", "content": TEXT}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 0, "completion_tokens": 7, "total_tokens": 7}
        return web.json_response(
            {"id": "chatcmpl-x", "object": "chat.completion", "created": 1, "model": MODEL}
            | {"choices": [choice], "usage": usage}
        )

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        if "messages" in body and not _are_messages(body["messages"]):
            return web.Response(status=422, text="Failed to deserialize: expected a string")
        if body["model"] not in (MODEL, FAILING):
            return web.Response(status=502 if body["model"] == UNLOADABLE else 404)
        if not body.get("stream", True):
            return web.json_response({"response": TEXT})
        tokens = TOKENS if body["model"] == MODEL else (*TOKENS[:2], "[ERROR] secret at 10.0.0.1")
        return await write_stream(request, map(raw_event, (*tokens, "[DONE]")))

    async def _read(self, request: web.Request) -> Any:
        body = await request.json()
        self.seen.append((request.path, body))
        return body


def raw_event(token: str) -> bytes:
    """One event of `/api/generate`, as axum writes text: a line of data for each of its lines."""
    return b"".join(b"data: " + line.encode() + b"\n" for line in token.split("\n")) + b"\n"


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item.get("role"), str) and isinstance(item.get("content"), str) for item in value
    )


def _chunks() -> list[bytes]:
    deltas: list[tuple[Any, Any]] = [({"content": None, "role": "assistant"}, None)]
    deltas += [({"content": token, "role": None}, None) for token in TOKENS]
    deltas += [({"content": None, "role": None}, "stop")]
    return [chunk(delta, reason) for delta, reason in deltas] + [b"data: [DONE]\n\n"]


def chunk(delta: Any, finish_reason: str | None = None) -> bytes:
    """One chunk of the OpenAI-like chat."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    head = {"id": "chatcmpl-x", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"

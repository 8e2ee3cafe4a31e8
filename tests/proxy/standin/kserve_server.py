"""Stands in for KServe's own server with a text model: V1 predict, V2 infer and, as the Open
Inference Protocol describes it, generate."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.proxy.harness import start_stream
from tests.proxy.standin.served import MODEL, Server, served, shout

DEFAULT_MAX_TOKENS = 20  # the protocol's; a token is a character here


@asynccontextmanager
async def kserve_server() -> AsyncIterator[Server]:
    """Run it, with one model."""
    server = Server()
    kserve = _KServe(server)
    routes = [
        web.get("/v1/models", kserve.models),
        web.get("/v1/models/{model}", kserve.ready),
        web.post("/v1/models/{model}:predict", kserve.predict),
        web.get("/v2/models", kserve.models),
        web.get("/v2/models/{model}/ready", kserve.ready),
        web.post("/v2/models/{model}/infer", kserve.infer),
        web.post("/v2/models/{model}/versions/{version}/infer", kserve.infer),
        web.post("/v2/models/{model}/generate", kserve.generate),
        web.post("/v2/models/{model}/generate_stream", kserve.generate_stream),
    ]
    async with served(server, routes) as running:
        yield running


class _KServe:
    def __init__(self, server: Server) -> None:
        self._server = server

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"models": [MODEL]})

    async def ready(self, request: web.Request) -> web.Response:
        model = request.match_info["model"]
        if model != MODEL:
            return _error(404, f"Model with name {model} does not exist.")
        if not self._server.is_ready:
            return _error(503, f"Model with name {model} is not ready.")
        return web.json_response({"name": model, "ready": True})

    async def predict(self, request: web.Request) -> web.StreamResponse:
        asked = await self._server.asked(request)
        if (refused := await self._refused(request)) is not None:
            return refused
        predictions = [_predicted(instance) for instance in asked["instances"]]
        return web.json_response({"predictions": predictions})

    async def infer(self, request: web.Request) -> web.StreamResponse:
        asked = await self._server.asked(request)
        if (refused := await self._refused(request)) is not None:
            return refused
        tensor = asked["inputs"][0]
        texts = [shout(text) for text in tensor["data"]]
        output = {"name": "output-0", "shape": tensor["shape"], "datatype": "BYTES"}
        answer = {"model_name": MODEL, "id": asked.get("id"), "outputs": [output]}
        if not asked.get("parameters", {}).get("binary_data_output"):
            output["data"] = texts
            return web.json_response(answer)
        binary = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)
        output["parameters"] = {"binary_data_size": len(binary)}
        header = json.dumps(answer).encode()
        return web.Response(
            body=header + binary,
            headers={
                "content-type": "application/octet-stream",
                "inference-header-content-length": str(len(header)),
            },
        )

    async def generate(self, request: web.Request) -> web.StreamResponse:
        asked = await self._server.asked(request)
        if (refused := await self._refused(request)) is not None:
            return refused
        text, reason = _generated(asked)
        details = {"finish_reason": reason, "logprobs": []}
        return web.json_response({"text_output": text, "model_name": MODEL, "details": details})

    async def generate_stream(self, request: web.Request) -> web.StreamResponse:
        asked = await self._server.asked(request)
        if (refused := await self._refused(request)) is not None:
            return refused
        text, reason = _generated(asked)
        response = await start_stream(request)
        for at, piece in enumerate(text):
            told = reason if at == len(text) - 1 else None
            event = {"text_output": piece, "model_name": MODEL, "details": {"finish_reason": told}}
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await asyncio.sleep(0)
        return response

    async def _refused(self, request: web.Request) -> web.StreamResponse | None:
        if self._server.respond is not None:
            try:
                return await self._server.respond(request)
            except (asyncio.CancelledError, ConnectionError):
                self._server.closed.set()
                raise
        model = request.match_info["model"]
        return _error(404, f"Model with name {model} does not exist.") if model != MODEL else None


def _predicted(instance: Any) -> Any:
    if isinstance(instance, str):
        return shout(instance)
    if "text" in instance:
        return {"generated_text": instance["text"] + shout(instance["text"])}
    prompt = instance["prompt"] if "prompt" in instance else instance["messages"][-1]["content"]
    return {
        "text": f"{shout(prompt)}{instance.get('seed', '')}",
        "finish_reason": "length",
        "usage": {"prompt_tokens": len(prompt), "completion_tokens": 2, "total_tokens": 0},
    }


def _generated(asked: Any) -> tuple[str, str]:
    parameters = asked["parameters"]
    text = shout(asked["text_input"])
    for stop in parameters.get("stop", []):
        if stop in text:
            return text[: text.index(stop) + len(stop)], "stop_sequence"
    limit = parameters.get("max_tokens", DEFAULT_MAX_TOKENS)
    return (text[:limit], "length") if len(text) > limit else (text, "eos_token")


def _error(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)

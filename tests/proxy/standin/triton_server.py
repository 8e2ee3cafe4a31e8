"""Stands in for Triton with its vLLM backend: the generate extension, its oddities included."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.proxy.standin.served import MODEL, Server, served, shout

EVENTS = {"content-type": "text/event-stream; charset=utf-8"}
ONE_ANSWER = (
    "generate expects model to produce exactly 1 response, use generate stream for model that "
    "generates various number of responses"
)


@asynccontextmanager
async def triton_server() -> AsyncIterator[Server]:
    """Run it, with one model."""
    server = Server()
    triton = _Triton(server)
    routes = [
        web.get("/v2/models/stats", triton.stats),
        web.get("/v2/models/{model}/ready", triton.ready),
    ]
    routes += [
        web.post(f"/v2/models/{{model}}{place}/{verb}", triton.generate)
        for place in ("", "/versions/{version}")
        for verb in ("generate", "generate_stream")
    ]
    async with served(server, routes) as running:
        yield running


class _Triton:
    def __init__(self, server: Server) -> None:
        self._server = server

    async def stats(self, _: web.Request) -> web.Response:
        stats = [{"name": MODEL, "version": version} for version in ("1", "2")]
        return web.json_response({"model_stats": stats if self._server.is_ready else []})

    async def ready(self, request: web.Request) -> web.Response:
        is_ready = self._server.is_ready and request.match_info["model"] == MODEL
        return web.Response(status=200 if is_ready else 400)  # without a body

    async def generate(self, request: web.Request) -> web.StreamResponse:
        asked = await self._server.asked(request)
        if self._server.respond is not None:
            try:
                return await self._server.respond(request)
            except (asyncio.CancelledError, ConnectionError):
                self._server.closed.set()
                raise
        model = request.match_info["model"]
        if model != MODEL:
            return _error(f"Request for unknown model: '{model}' is not found", status=404)
        tensors = asked["parameters"]
        for name, value in tensors.items():
            if not isinstance(value, str | bool | int | float):
                kinds = "It should be either 'int', 'bool', or 'string'."
                told = f"parameter '{name}' has invalid type. {kinds}"
                return _error(f"Converting keyword: 'parameters': {told}")
        answers = _answers(asked["text_input"], tensors)
        if not request.path.endswith("_stream"):
            return web.json_response(answers[0] if len(answers) == 1 else {"error": ONE_ANSWER})
        return await _stream(request, answers)


def _answers(prompt: str, tensors: dict[str, Any]) -> list[dict[str, Any]]:
    sampling = json.loads(tensors.get("sampling_parameters", "{}"))
    text = shout(prompt)
    limit = sampling.get("max_tokens", 16)  # vLLM's own default; a token is a character here
    reason = "stop" if len(text) <= limit else "length"
    text = text[:limit]
    pieces = list(text) if tensors.get("stream") else [text]
    if not tensors.get("stream") and not tensors.get("exclude_input_in_output"):
        pieces = [prompt + text]
    answers = []
    for at, piece in enumerate(pieces):
        answer: dict[str, Any] = {"model_name": MODEL, "model_version": "1", "text_output": piece}
        if tensors.get("return_finish_reason"):
            answer["finish_reason"] = reason if at == len(pieces) - 1 else "None"
        if tensors.get("return_num_input_tokens"):
            answer["num_input_tokens"] = len(prompt)
        if tensors.get("return_num_output_tokens"):
            answer["num_output_tokens"] = len(piece)
        if tensors.get("return_logprobs"):
            told = [_token(character, sampling["logprobs"]) for character in piece]
            if reason == "stop" and at == len(pieces) - 1:
                told.append(_token("</s>", sampling["logprobs"]))
            answer["logprobs"] = json.dumps(told)
        answers.append(answer)
    return answers


def _token(text: str, num_top: int) -> dict[str, Any]:
    """What vLLM tells of a token that was not among the likeliest: it comes first."""
    drawn = {"logprob": -0.5, "rank": num_top + 1, "decoded_token": text}
    others = [
        {"logprob": -float("inf"), "rank": n, "decoded_token": f"#{n}"}
        for n in range(1, num_top + 1)
    ]
    return {str(100 + n): one for n, one in enumerate([drawn, *others])}


async def _stream(request: web.Request, answers: list[dict[str, Any]]) -> web.StreamResponse:
    response = web.StreamResponse(headers=EVENTS)
    await response.prepare(request)
    for answer in answers:
        await response.write(b"data: " + json.dumps(answer).encode() + b"\n\n")
        await asyncio.sleep(0)
    return response


def _error(text: str, status: int = 400) -> web.Response:
    return web.json_response({"error": text}, status=status)

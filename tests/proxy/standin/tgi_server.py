"""Stands in for TGI: strict about parameters, tells a stream's errors under status 200."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from tests.proxy.standin.sse import write_stream

WORDS = ("Hello", " there", ",", " you", " END", " more")
MODEL = "bigscience/bloom"
OVERLOADED = "overloaded"  # in a prompt: what then happens
FAILING = "failing"
KEEP_ALIVE = b":\n\n"


class TgiServer:
    """Speaks TGI's wire format; owner: a test. `seen` are the requests."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application()
        app.router.add_post("/generate", self._generate)
        app.router.add_post("/generate_stream", self._generate_stream)
        app.router.add_get("/info", self._info)
        return app

    async def _info(self, _: web.Request) -> web.Response:
        return web.json_response({"model_id": MODEL, "max_stop_sequences": 4, "version": "3.0.0"})

    async def _generate(self, request: web.Request) -> web.Response:
        body = await self._read(request)
        status, error = _error(body)
        if status:
            return web.json_response(error, status=status)
        tokens, reason = _tokens(body["parameters"])
        details = {"finish_reason": reason, "generated_tokens": len(tokens), "seed": None}
        details |= {"prefill": [], "tokens": [token(text)["token"] for text in tokens]}
        if num_top := body["parameters"].get("top_n_tokens"):
            details["top_tokens"] = [top_tokens(text, num_top) for text in tokens]
        headers = {"x-prompt-tokens": "9", "x-generated-tokens": str(len(tokens))}
        text = "".join(tokens)
        return web.json_response({"generated_text": text, "details": details}, headers=headers)

    async def _generate_stream(self, request: web.Request) -> web.StreamResponse:
        body = await self._read(request)
        _, error = _error(body)
        if error is not None and FAILING not in body["inputs"]:
            return await write_stream(request, [event(error)])
        return await write_stream(request, _events(body))

    async def _read(self, request: web.Request) -> Any:
        body = await request.json()
        self.seen.append((request.path, body))
        return body


def _error(body: Any) -> tuple[int, Any]:
    """What TGI has against a request, and under which status."""
    parameters = body["parameters"]
    wrong = ""
    if parameters.get("temperature", 1) <= 0:
        wrong = "`temperature` must be strictly positive"
    if not 0 < parameters.get("top_p", 0.5) < 1:
        wrong = "`top_p` must be > 0.0 and < 1.0"
    if not 0 <= parameters.get("top_n_tokens", 0) <= 5:
        wrong = "`top_n_tokens` must be >= 0 and <= 5. Given: 6"
    if len(parameters.get("stop", [])) > 4:
        wrong = "`stop` supports up to 4 stop sequences. Given: 5"
    limit = parameters.get("max_new_tokens") or 0
    if limit > 2000:
        wrong = f"`inputs` tokens + `max_new_tokens` must be <= 2048. Given: 9 `inputs` and {limit}"
    if wrong:
        return 422, {"error": f"Input validation error: {wrong}", "error_type": "validation"}
    if OVERLOADED in body["inputs"]:
        return 429, {"error": "Model is overloaded", "error_type": "overloaded"}
    if FAILING in body["inputs"]:
        text = "Request failed during generation: secret at 10.0.0.1"
        return 424, {"error": text, "error_type": "generation"}
    return 0, None


def _tokens(parameters: Any) -> tuple[list[str], str]:
    """What is generated; a stop sequence stays in the text."""
    limit = parameters.get("max_new_tokens") or 100
    text = ""
    for n, word in enumerate(WORDS, 1):
        text += word
        if any(text.endswith(stop) for stop in parameters.get("stop", [])):
            return list(WORDS[:n]), "stop_sequence"
        if n == limit:
            return list(WORDS[:n]), "length"
    return list(WORDS), "eos_token"


def _events(body: Any) -> Iterator[bytes]:
    tokens, reason = _tokens(body["parameters"])
    yield KEEP_ALIVE
    if FAILING in body["inputs"]:
        yield event(token(tokens[0]))
        yield event(_error(body)[1])
        return
    if reason == "eos_token":
        tokens.append("</s>")
    num_top = body["parameters"].get("top_n_tokens", 0)
    for text in tokens[:-1]:
        yield event(token(text, num_top))
    details = {"finish_reason": reason, "generated_tokens": len(tokens), "input_length": 9}
    whole = "".join(tokens).removesuffix("</s>")
    yield event(token(tokens[-1], num_top) | {"generated_text": whole, "details": details})


def token(text: str, num_top: int = 0) -> Any:
    """One event's data in mid-stream."""
    made = {"id": 1, "text": text, "logprob": -0.5, "special": text == "</s>"}
    top = {"top_tokens": top_tokens(text, num_top)} if num_top else {}
    return {"index": 1, "token": made, "generated_text": None, "details": None, **top}


def top_tokens(text: str, num_top: int) -> Any:
    """The alternatives of a token: one more than was asked for, as two are equally likely."""
    others = [{"id": 2 + n, "text": f"#{n}", "logprob": -2.0} for n in range(num_top)]
    return [{"id": 1, "text": text, "logprob": -0.5}, *others]


def event(value: Any) -> bytes:
    """One event, as axum of TGI's time writes it: no space after the colon."""
    return b"data:" + json.dumps(value).encode() + b"\n\n"

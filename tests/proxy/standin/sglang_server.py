"""Stands in for SGLang: its streams say the whole text again and again, choices mixed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from tests.proxy.standin.sse import write_stream

# The text so far, token by token: one ends in half a character, one in half a stop string.
GROWING = ("Hello", "Hello \ufffd", "Hello é", "Hello é EN", "Hello é END", "Hello é END more")
TEXT = GROWING[-1]
TOKENS = ("Hello", " \ufffd", "\ufffd", " EN", "D", " more")  # decoded one by one
MODEL = "qwen"
TOO_LONG = "too long"  # in a prompt: what then happens
ABORTED = "aborted"
PARAMETERS = {
    *("max_new_tokens", "stop", "stop_token_ids", "temperature", "top_p", "top_k", "min_p"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "min_new_tokens", "n"),
    *("json_schema", "regex", "ebnf", "ignore_eos", "skip_special_tokens", "no_stop_trim"),
    *("logit_bias", "sampling_seed"),
}


class SglangServer:
    """Speaks SGLang's wire format; owner: a test. `seen` are the requests."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application()
        app.router.add_post("/generate", self._generate)
        app.router.add_get("/v1/models", self._models)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        entry = {"id": MODEL, "object": "model", "created": 1, "owned_by": "sglang", "root": MODEL}
        return web.json_response({"object": "list", "data": [entry]})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append((request.path, body))
        if set(body["sampling_params"]) - PARAMETERS:
            return web.Response(status=500, text="Internal Server Error")
        prompts = body.get("text", body.get("input_ids"))
        error = "The input (5000 tokens) is longer than the model's context length (4096 tokens)."
        if TOO_LONG in str(prompts):
            told = {"error": {"message": error}}
            if not body.get("stream"):
                return web.json_response(told, status=400)
            return await write_stream(request, [event(told), b"data: [DONE]\n\n"])
        is_list = isinstance(prompts, list) and not isinstance(prompts[0], int)
        num = (len(prompts) if is_list else 1) * body["sampling_params"].get("n", 1)
        is_aborted = ABORTED in str(prompts)
        if body.get("stream"):
            is_batch = is_list or num > 1
            parts = _events(body, num, is_batch, is_aborted)
            return await write_stream(request, parts)
        text, num_tokens, reason = final(body["sampling_params"])
        results = [_result(body, text, num_tokens, reason) for _ in range(num)]
        return web.json_response(results if is_list or num > 1 else results[0])


def final(sampling: Any) -> tuple[str, int, Any]:
    """The whole text, its tokens and why it ends; a stop string and what follows are cut off."""
    for stop in sampling.get("stop", []):
        for n, so_far in enumerate(GROWING, 1):
            if stop in so_far:
                return so_far[: so_far.index(stop)], n, {"type": "stop", "matched": stop}
    limit = sampling.get("max_new_tokens")
    if limit is not None and limit < len(GROWING):
        return GROWING[limit - 1], limit, {"type": "length", "length": limit}
    return TEXT, len(GROWING), {"type": "stop", "matched": 2}


def _events(body: Any, num: int, is_batch: bool, is_aborted: bool) -> Iterator[bytes]:
    text, num_tokens, reason = final(body["sampling_params"])
    made = [_result(body, so_far, n, None) for n, so_far in enumerate(GROWING[: num_tokens - 1], 1)]
    made.append(_result(body, text, num_tokens, reason))
    if is_aborted:
        failed = {"type": "abort", "message": "secret", "status_code": 500}
        made[1:] = [_result(body, "", 1, failed)]
    for result in made:
        for index in range(num):
            yield event(result | ({"index": index} if is_batch else {}))
    yield b"data: [DONE]\n\n"


def _result(body: Any, text: str, num_tokens: int, reason: Any) -> Any:
    meta = {"id": "x", "finish_reason": reason, "prompt_tokens": 4, "cached_tokens": 1}
    if body.get("return_logprob"):
        told = [[-0.5, n, word] for n, word in enumerate(TOKENS)]
        others = [[-2.0, 9, "#"]] * body["top_logprobs_num"]
        meta["output_token_logprobs"] = told[:num_tokens]
        meta["output_top_logprobs"] = [others or None] * num_tokens
    return {"text": text, "meta_info": meta | {"completion_tokens": num_tokens}}


def event(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"

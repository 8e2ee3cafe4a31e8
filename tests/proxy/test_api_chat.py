"""`/api/chat` and `/api/models`, as Semantic Explorer's LLM Inference API has them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openai_proxy.api.catalog import entry, name_of, size_of
from tests.proxy import harness
from tests.proxy.harness import (
    COMPLETION,
    DONE,
    Proxy,
    StandIn,
    answered,
    answered_json,
    chunk,
    refused_port,
    streamed,
    until,
)

MODEL = "mistralai/Mistral-7B-Instruct-v0.2"
# the document's own request
ASKED = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"},
    ],
    "temperature": 0.7,
    "max_tokens": 100,
}
CHAT = "/api/chat"


def answer(message: Any, **more: Any) -> dict[str, Any]:
    """A chat completion with this message."""
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 20, "completion_tokens": 8, "total_tokens": 28}
    return COMPLETION | {"model": MODEL, "choices": [choice], "usage": usage} | more


async def post(proxy: Proxy, body: Any, path: str = CHAT) -> tuple[int, Any]:
    """Post a body; returns status and decoded answer."""
    async with proxy.http.post(proxy.url + path, json=body) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("path", [CHAT, f"/v1{CHAT}"])
async def test_documented_answer(proxy: Proxy, upstream: StandIn, path: str) -> None:
    """The answer is the document's."""
    text = "The capital of France is Paris."
    message = {"role": "assistant", "content": text, "refusal": None}
    upstream.respond = answered_json(answer(message))
    assert await post(proxy, ASKED, path) == (
        200,
        {
            "message": {"role": "assistant", "content": text},
            "model": MODEL,
            "tokens_generated": 8,
            "finish_reason": "eos",
        },
    )
    assert upstream.requests[-1].path == "/v1/chat/completions"
    assert json.loads(upstream.bodies[-1]) == ASKED


async def test_tool_calls_go_along(proxy: Proxy, upstream: StandIn) -> None:
    """What a message has beside its text is not lost; no text is an empty one."""
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    upstream.respond = answered_json(
        answer({"role": "assistant", "content": None, "tool_calls": calls})
    )
    message = (await post(proxy, ASKED))[1]["message"]
    assert message == {"role": "assistant", "content": "", "tool_calls": calls}


async def test_stream(proxy: Proxy, upstream: StandIn) -> None:
    """With `stream` the text comes piece by piece, as /api/generate/stream gives it."""
    upstream.respond = streamed(chunk("The capital"), chunk(" of France"), DONE)
    async with proxy.http.post(proxy.url + CHAT, json=ASKED | {"stream": True}) as response:
        assert response.content_type == "text/event-stream"
        assert await response.read() == b"data: The capital\n\ndata:  of France\n\n"


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"messages": []}, "empty_messages", "messages"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        ({"temperature": 3}, "decimal_above_max_value", "temperature"),
        ({"n": 2}, "integer_above_max_value", "n"),
    ],
)
async def test_bad_requests_stop_here(
    proxy: Proxy, upstream: StandIn, change: dict[str, Any], code: str, param: str
) -> None:
    """A bad request is refused before any upstream is touched."""
    status, body = await post(proxy, ASKED | change)
    assert (status, body["error"]["code"], body["error"]["param"]) == (400, code, param)
    assert upstream.requests == []


@pytest.mark.parametrize("message", [None, "text", {"content": 1}])
async def test_answers_that_are_none(proxy: Proxy, upstream: StandIn, message: Any) -> None:
    """An answer without a message is 502."""
    upstream.respond = answered_json(answer(message))
    status, body = await post(proxy, ASKED)
    assert (status, body["error"]["code"]) == (502, "upstream_invalid_response")


async def test_get_is_not_allowed(proxy: Proxy) -> None:
    """Another method is 405."""
    assert (await proxy.get(CHAT))[0] == 405


@pytest.mark.parametrize("path", ["/api/models", "/v1/api/models"])
async def test_documented_models(proxy: Proxy, upstream: StandIn, path: str) -> None:
    """The catalogue has the document's fields for each model that is listed."""
    listed = [{"id": MODEL, "object": "model", "created": 1, "owned_by": "local"}]
    upstream.models = answered_json({"object": "list", "data": listed})
    assert await proxy.get(path) == (
        200,
        {
            "models": [
                {
                    "id": MODEL,
                    "name": "Mistral 7B Instruct v0.2",
                    "description": "Mistral 7B Instruct v0.2, served by local",
                    "size": "7B",
                    "capabilities": ["text-generation", "chat"],
                }
            ]
        },
    )


def test_what_an_upstream_tells_wins() -> None:
    """Name, description, size and capabilities are the upstream's, where it has them."""
    told = {
        "id": "a-7b",
        "name": "A",
        "description": "Mistral AI's 7 billion parameter instruction-tuned model",
        "size": "8B",
        "capabilities": ["embeddings"],
    }
    assert entry(told) == told


@pytest.mark.parametrize(
    ("model", "name", "size"),
    [
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "Mixtral 8x7B Instruct v0.1", "8x7B"),
        ("SmolLM2-135M-Instruct-Q8_0.gguf", "SmolLM2 135M Instruct Q8 0", "135M"),
        ("qwen2.5-0.5b", "qwen2.5 0.5b", "0.5B"),
        ("phi3-lora", "phi3 lora", "unknown"),
        ("gpt-oss-20b", "gpt oss 20b", "20B"),
        ("/", "/", "unknown"),
    ],
)
def test_names_and_sizes(model: str, name: str, size: str) -> None:
    """An id tells a name and, often, a size."""
    assert (name_of(model), size_of(model)) == (name, size)


@pytest.mark.parametrize(
    ("models", "status", "code"),
    [
        (answered(500, "secret", "text/plain"), 502, "upstream_error"),
        (answered(200, "[1]", "application/json"), 502, "upstream_invalid_response"),
    ],
)
async def test_no_models(
    proxy: Proxy, upstream: StandIn, models: harness.Respond, status: int, code: str
) -> None:
    """A list that cannot be had is the same error as at /v1/models."""
    upstream.models = models
    got, body = await proxy.get("/api/models")
    assert (got, body["error"]["code"]) == (status, code)


async def test_no_upstream() -> None:
    """Without its upstream the catalogue is 502, in the form that was chosen."""
    url = f"http://127.0.0.1:{refused_port()}"
    async with harness.proxy(upstream_url=url, errors="flat") as proxy:
        assert (await proxy.get("/api/models"))[1]["code"] == "PROVIDER_CONNECTION_FAILED"


async def test_metrics_have_the_path(proxy: Proxy) -> None:
    """The catalogue is counted under its own path."""
    await proxy.get("/v1/api/models")
    await until(lambda: len(proxy.lifecycle._running) == 0)
    async with proxy.http.get(f"{proxy.url}/metrics") as response:
        assert 'path="/v1/api/models",status="200"} 1.0' in await response.text()

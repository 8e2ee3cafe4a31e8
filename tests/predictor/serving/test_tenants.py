"""What one tenant's requests tell another about its own."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.predictor.serving.conftest import SHARED_PROMPT
from tests.processes import Predictor

pytestmark = pytest.mark.model

Answer = dict[str, Any]


def _text(digits: str, name: str) -> str:
    return f"The customer {name} pays with the card 4111 1111 1111 {digits}. Thank you. Now, what"


async def _chat(http: httpx2.AsyncClient, text: str, headers: dict[str, str], **more: Any) -> int:
    """Ask a chat; return how many of its tokens are said to have been cached."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1, **more}
    answer = await http.post("/v1/chat/completions", json=body, headers=headers)
    return _cached(answer.json())


async def _complete(
    http: httpx2.AsyncClient, text: str, headers: dict[str, str], **more: Any
) -> int:
    body = {"prompt": text, "max_tokens": 1, **more}
    answer = await http.post("/openai/v1/completions", json=body, headers=headers)
    return _cached(answer.json())


async def _stream(http: httpx2.AsyncClient, text: str, headers: dict[str, str], **more: Any) -> int:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    body = {"prompt": text, "max_tokens": 1, **options, **more}
    answer = await http.post("/v1/completions", json=body, headers=headers)
    events = [line.removeprefix("data: ") for line in answer.text.split("\n") if line]
    return _cached(json.loads(events[-2]))


async def _predict(
    http: httpx2.AsyncClient, text: str, headers: dict[str, str], **more: Any
) -> int:
    body = {"instances": [text], "parameters": {"max_tokens": 1, **more}}
    answer = await http.post("/v1/models/smollm2:predict", json=body, headers=headers)
    return _cached(answer.json()["predictions"][0])


def _cached(answer: Answer) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.mark.parametrize(
    ("ask", "header"),
    [
        (_chat, "x-tenant"),
        (_complete, "x-api-key"),
        (_stream, "authorization"),
        (_predict, "x-tenant"),
        (_predict, "authorization"),
    ],
)
async def test_nobody_finds_out_what_another_tenant_has_asked(
    http: httpx2.AsyncClient, ask: Any, header: str
) -> None:
    """A guess of another tenant's card number behind a known text counts no cached tokens.

    Right or wrong, whatever names the tenants, and whatever `user` a request has; the tenant
    itself finds its own prompt.
    """
    name = uuid4().hex
    asked = _text("1234", name)
    await ask(http, asked, {header: f"alice {name}"}, user="u")

    right = await ask(http, asked, {header: f"bob {name}"}, user="u")
    wrong = await ask(http, _text("9999", name), {header: f"carol {name}"}, user="u")
    own = await ask(http, asked, {header: f"alice {name}"}, user="another")

    assert (right, wrong) == (0, 0)
    assert own > 20


async def _hits(http: httpx2.AsyncClient) -> float:
    """Return how many tokens the prefix cache had, as the operator is told."""
    lines = (await http.get("/metrics")).text.splitlines()
    return sum(float(li.split()[-1]) for li in lines if li.startswith("vllm:prefix_cache_hits_t"))


@pytest.mark.parametrize("ask", [_chat, _complete])
async def test_a_prompt_that_the_operator_has_named_is_shared(
    predictor: Predictor, http: httpx2.AsyncClient, ask: Any
) -> None:
    """Tenants share a named prompt, and no more; a tenant is told of it once it has used it."""
    predictor.wait_for("prompts_shared")
    name = uuid4().hex
    secret = f" My name is {name}."

    def prompt(more: str) -> dict[str, Any]:
        if ask is _complete:
            return {"text": SHARED_PROMPT + more}
        messages = [
            {"role": "system", "content": SHARED_PROMPT},
            {"role": "user", "content": more},
        ]
        return {"text": "", "messages": messages}

    await ask(http, **prompt(secret), headers={"x-tenant": f"alice {name}"})
    before = await _hits(http)
    first = await ask(http, **prompt(secret), headers={"x-tenant": f"bob {name}"})
    found = await _hits(http) - before
    second = await ask(http, **prompt(" Hi!"), headers={"x-tenant": f"bob {name}"})

    assert first == 0
    assert 15 <= found <= 25  # the prompt, and what the template writes before it
    assert second >= found


async def test_a_user_is_no_tenant(http: httpx2.AsyncClient) -> None:
    """Requests without a tenant share their prefixes, whatever `user` they name."""
    name = uuid4().hex
    await _complete(http, _text("1234", name), {}, user="one")

    assert await _complete(http, _text("1234", name), {}, user="two") > 20

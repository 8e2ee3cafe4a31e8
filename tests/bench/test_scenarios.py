"""What is asked of a server, and when its tokens came: over a server that answers by a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.figures import Outcome
from bench.load import Client, Request, Sample
from bench.prompts import Prompts
from bench.runner import in_turn
from bench.scenarios import Scenario, gaps_since, scenarios
from bench.servers import Target
from bench.sizes import QUICK


class ScriptedServer:
    """Answers each request with as many events as tokens were asked for, and keeps the requests."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, object]] = []
        self.tenants: list[str | None] = []
        self.has_usage = True
        self.status_of: Callable[[int], int] = lambda number: 200

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.tenants.append(request.headers.get("X-Tenant"))
        status = self.status_of(len(self.bodies))
        if status != 200:
            return web.json_response({"error": {"code": "busy"}}, status=status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in self._events(body["max_tokens"]):
            await response.write(event)
            await asyncio.sleep(0.001)
        return response

    def _events(self, num_tokens: int) -> list[bytes]:
        deltas: list[dict[str, object]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": f'"content": "{at}" '} for at in range(num_tokens)]
        chunks = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
        chunks.append({"choices": [{"delta": {}, "finish_reason": "length"}]})
        if self.has_usage:
            details = {"cached_tokens": 7}
            usage = {"completion_tokens": num_tokens, "prompt_tokens": 10}
            chunks.append({"choices": [], "usage": {**usage, "prompt_tokens_details": details}})
        events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
        return [b": a comment\n\n", *events, b"data: [DONE]\n\n"]


@pytest.fixture
async def server() -> AsyncIterator[tuple[ScriptedServer, Target]]:
    script = ScriptedServer()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", script.answer)
    async with TestServer(app) as running:
        yield script, Target("scripted", str(running.make_url("/v1")))


@pytest.mark.parametrize("has_usage", [True, False])
async def test_an_answer_is_counted(server: tuple[ScriptedServer, Target], has_usage: bool) -> None:
    """Events with text are tokens, whatever the text is; usage counts where there is one."""
    script, target = server
    script.has_usage = has_usage
    async with Client(target) as client:
        sample = await client.ask(Request.of("Hello", 5))
    assert (sample.error, sample.num_tokens, len(sample.token_times)) == (None, 5, 5)
    assert sample.text == "".join(f'"content": "{at}" ' for at in range(5))
    assert sample.cached_tokens == (7 if has_usage else 0)
    assert sample.began < sample.token_times[0] < sample.token_times[-1]


async def test_a_refusal_is_an_error(server: tuple[ScriptedServer, Target]) -> None:
    """The status is told; the others go on."""
    script, target = server
    script.status_of = lambda number: 429 if number == 2 else 200
    async with Client(target) as client:
        samples = await client.ask_all([Request.of(str(at), 2) for at in range(4)], 2)
    assert sorted(str(sample.error) for sample in samples) == ["HTTP 429", "None", "None", "None"]


async def test_a_server_that_is_gone_is_an_error() -> None:
    """A run over several servers does not end with one of them."""
    async with Client(Target("gone", "http://127.0.0.1:9/v1")) as client:
        assert (await client.ask(Request.of("Hello", 5))).error == "ClientConnectorError"


@pytest.mark.parametrize("scenario", scenarios(QUICK), ids=lambda scenario: scenario.name)
async def test_no_scenario_asks_the_same_twice(
    server: tuple[ScriptedServer, Target], scenario: Scenario
) -> None:
    """Over all its cases and rounds the last message is always a new one, and nothing fails."""
    script, target = server
    outcomes = await run(scenario, target, rounds=2)
    assert [outcome.errors for outcome in outcomes] == [{}] * len(outcomes)
    assert all(outcome.figures for outcome in outcomes)
    last = [str(body["messages"][-1]["content"]) for body in script.bodies]  # type: ignore[index]  # JSON
    assert len(set(last)) == len(last)


async def test_a_shared_prefix_is_new_in_each_round(
    server: tuple[ScriptedServer, Target],
) -> None:
    """All clients of a round have it, and no other round."""
    script, target = server
    await run(named("shared-prefix"), target, rounds=3)
    prefixes = [body["messages"][0]["content"] for body in script.bodies]  # type: ignore[index]  # JSON
    assert len(prefixes) == 3 * QUICK.users
    assert len(set(prefixes)) == 3


async def test_a_chat_brings_its_answers_along(server: tuple[ScriptedServer, Target]) -> None:
    """Each turn begins with all that was said before."""
    script, target = server
    await run(named("chats"), target)
    histories = [body["messages"] for body in script.bodies]
    longest = max(histories, key=len)  # type: ignore[arg-type]  # JSON
    assert [message["role"] for message in longest] == [  # type: ignore[attr-defined]  # JSON
        *["user", "assistant"] * (QUICK.turns - 1),
        "user",
    ]
    assert longest[:1] in histories  # type: ignore[index]  # JSON
    assert '"content": "0"' in longest[1]["content"]  # type: ignore[index]  # JSON


async def test_tenants_are_told_apart(server: tuple[ScriptedServer, Target]) -> None:
    """B's requests are those that are measured; A's come beside them in the second case only."""
    script, target = server
    alone, beside = await run(named("tenants"), target)
    assert alone.num_requests == beside.num_requests == QUICK.lone_requests
    assert script.tenants.count("b") == 2 * QUICK.lone_requests
    assert set(script.tenants[: QUICK.lone_requests]) == {"b"}
    assert script.tenants.count("a") >= QUICK.crowd
    assert alone.figures["crowd_tokens_per_second"] == 0
    assert beside.figures["crowd_tokens_per_second"] > 0


def test_gaps_while_a_long_prompt_is_computed() -> None:
    """The gap in which it arrived counts whole, earlier ones not, and silence up to the end."""
    stream = Sample(token_times=[1.0, 5.0, 6.0, 9.0])
    assert gaps_since(stream, began=7.0, ended=13.0) == [3.0, 4.0]
    stream.num_tokens = 4  # the answer was complete
    assert gaps_since(stream, began=7.0, ended=13.0) == [3.0]


def test_servers_are_asked_in_turn() -> None:
    """None is always the first of a round."""
    assert [in_turn("abc", turn) for turn in range(4)] == [*map(list, ("abc", "bca", "cab", "abc"))]


async def run(scenario: Scenario, target: Target, rounds: int = 1) -> list[Outcome]:
    prompts = Prompts(1)
    async with Client(target) as client:
        return [
            await scenario.run(case, client, prompts)
            for _ in range(rounds)
            for case in scenario.cases
        ]


def named(name: str) -> Scenario:
    return next(scenario for scenario in scenarios(QUICK) if scenario.name == name)

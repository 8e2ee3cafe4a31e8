"""What passes through: requests, answers, streams, by the official client and by plain HTTP."""

from __future__ import annotations

import asyncio
import json
from uuid import UUID

import pytest
from aiohttp import web
from openai import APIError, AsyncOpenAI

from tests.proxy.harness import (
    CHAT,
    COMPLETION,
    DONE,
    MESSAGES,
    Proxy,
    StandIn,
    answered,
    chunk,
    start_stream,
    streamed,
    until,
)


@pytest.fixture
async def client(proxy: Proxy):
    async with AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


async def test_openai_chat(client: AsyncOpenAI) -> None:
    """The official client gets a whole answer."""
    answer = await client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert answer.choices[0].message.content == "Hello there"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5


async def test_openai_stream(client: AsyncOpenAI, upstream: StandIn) -> None:
    """The official client gets all chunks of a stream, in order."""
    upstream.respond = streamed(chunk("a"), chunk("b"), chunk("c"), DONE)
    stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    assert [event.choices[0].delta.content async for event in stream] == ["a", "b", "c"]


async def test_openai_completion(client: AsyncOpenAI, upstream: StandIn) -> None:
    """Text completions have a way of their own."""
    choice = {"index": 0, "text": "yes", "logprobs": None, "finish_reason": "stop"}
    body = {**COMPLETION, "object": "text_completion", "choices": [choice]}
    upstream.respond = answered(200, json.dumps(body), "application/json")
    answer = await client.completions.create(model="tiny", prompt="well?")
    assert answer.choices[0].text == "yes"
    assert upstream.requests[-1].path == "/v1/completions"


async def test_openai_models(client: AsyncOpenAI) -> None:
    """Models are listed and described in OpenAI's shape."""
    assert [model.id async for model in await client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).owned_by == "me"


async def test_openai_error_in_stream(client: AsyncOpenAI, upstream: StandIn) -> None:
    """The official client raises when a stream breaks, after what came before."""
    upstream.respond = streamed(chunk("a"))
    stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    first = await anext(stream)
    assert first.choices[0].delta.content == "a"
    with pytest.raises(APIError, match="broke before its end") as raised:
        await anext(stream)
    assert raised.value.code == "upstream_stream_broken"


async def test_bytes_pass(proxy: Proxy, upstream: StandIn) -> None:
    """Bodies pass byte for byte both ways, unknown fields and odd spacing included."""
    answer = b'{ "choices": [],  "x":1.0,"uni":"\xc3\xa4" }'
    upstream.respond = answered(200, answer, "application/json; charset=utf-8")
    body = b'{"messages" : [{"role":"user","content":"\xc3\xa4"}], "best_of_all": {"a": [1]}}'
    async with proxy.http.post(proxy.url + CHAT, data=body) as response:
        assert await response.read() == answer
    assert upstream.bodies == [body]


async def test_stream_is_unbuffered(proxy: Proxy, upstream: StandIn) -> None:
    """The first event reaches the client before the upstream sends the second."""
    seen = asyncio.Event()

    async def respond(request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        await response.write(chunk("first"))
        await asyncio.wait_for(seen.wait(), 5)
        await response.write(chunk("second") + DONE)
        return response

    upstream.respond = respond
    body = {"messages": MESSAGES, "stream": True}
    async with proxy.http.post(proxy.url + CHAT, json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert await response.content.readuntil(b"\n\n") == chunk("first")
        seen.set()
        assert await response.content.read() == chunk("second") + DONE


async def test_only_whole_events_pass(proxy: Proxy, upstream: StandIn) -> None:
    """Half an event waits for its other half; several at once pass at once."""
    event = chunk("split")
    upstream.respond = streamed(event[:9], event[9:-1], event[-1:] + chunk("b") + DONE)
    assert await proxy.stream() == (event + chunk("b") + DONE).decode()


async def test_comments_are_dropped(proxy: Proxy, upstream: StandIn) -> None:
    """Comments do not reach the client, alone or before an event's data."""
    upstream.respond = streamed(b": ping\n\n", b": tokens 1 2\n" + chunk("a"), b":\n\n" + DONE)
    assert await proxy.stream() == (chunk("a") + DONE).decode()


async def test_crlf_stream(proxy: Proxy, upstream: StandIn) -> None:
    """A stream with CRLF line ends passes, and its end is seen."""
    upstream.respond = streamed(*(part.replace(b"\n", b"\r\n") for part in (chunk("a"), DONE)))
    assert await proxy.stream() == (chunk("a") + DONE).decode()


async def test_nothing_after_done(proxy: Proxy, upstream: StandIn) -> None:
    """[DONE] ends the stream for the client though the upstream stays connected."""

    async def respond(request: web.Request) -> web.StreamResponse:
        response = await start_stream(request)
        await response.write(chunk("a") + DONE + chunk("never"))
        await asyncio.sleep(3600)
        return response

    upstream.respond = respond
    assert await asyncio.wait_for(proxy.stream(), 3) == (chunk("a") + DONE).decode()


async def test_headers_towards_upstream(proxy: Proxy, upstream: StandIn) -> None:
    """Credentials, cookies and hop-by-hop headers stay here; others and the request id go along."""
    headers = {
        "authorization": "Bearer secret",
        "x-api-key": "secret",
        "cookie": "a=b",
        "connection": "x-hop",
        "x-hop": "1",
        "x-tenant": "blue",
        "x-request-id": "my-id:1",
    }
    async with proxy.http.post(
        proxy.url + CHAT, json={"messages": MESSAGES}, headers=headers
    ) as response:
        assert response.headers["x-request-id"] == "my-id:1"
    sent = upstream.requests[-1].headers
    assert sent["x-tenant"] == "blue"
    assert sent["x-request-id"] == "my-id:1"
    assert sent["accept-encoding"] == "identity"
    assert not {"authorization", "x-api-key", "cookie", "x-hop"} & {name.lower() for name in sent}


async def test_clients_do_not_resume(proxy: Proxy, upstream: StandIn) -> None:
    """The header that asks for comments and the field that resumes a stream are the proxy's own."""
    upstream.respond = streamed(b': resume {"index":0,"tokens":[1]}\n' + chunk("a"), DONE)
    body = {"messages": MESSAGES, "stream": True, "resume": {"x": 1}, "metadata": {"resume": "é"}}
    async with proxy.http.post(
        proxy.url + CHAT, json=body, headers={"x-resumable": "1"}
    ) as response:
        assert await response.content.read() == chunk("a") + DONE

    del body["resume"]
    assert json.loads(upstream.bodies[-1]) == body
    assert "x-resumable" not in upstream.requests[-1].headers


async def test_bodies_without_the_field_pass_as_they_are(proxy: Proxy, upstream: StandIn) -> None:
    """Only what has the field is written anew."""
    body = b'{ "messages" : [{"role": "user", "content": "say \\"resume\\""}] }'
    await proxy.http.post(proxy.url + CHAT, data=body)

    assert upstream.bodies[-1] == body


@pytest.mark.parametrize("bad", ["", "a b", "x" * 129, "ä", "-leading"])
async def test_request_id_is_checked(proxy: Proxy, bad: str) -> None:
    """A request id that is too long or has odd characters is replaced by a UUID of ours."""
    headers = {"x-request-id": bad.encode().decode("latin-1")}
    async with proxy.http.get(f"{proxy.url}/health/live", headers=headers) as response:
        assert UUID(response.headers["x-request-id"]).version == 4


async def test_connections_are_reused(proxy: Proxy, upstream: StandIn) -> None:
    """One connection serves streams and whole answers one after the other."""
    for _ in range(3):
        await proxy.chat()
        upstream.respond = streamed(chunk("a"), DONE)
        await proxy.stream()
        await until(lambda: len(proxy.lifecycle._running) == 0)
        upstream.respond = answered(200, json.dumps(COMPLETION), "application/json")
    assert len(upstream.peers) == 1


async def test_a_stream_that_ended_well_is_no_disconnect(proxy: Proxy, upstream: StandIn) -> None:
    """The end of an answer, which servers report as a disconnect, is not taken for one."""
    upstream.respond = streamed(chunk("a"), DONE)
    await proxy.stream()
    await until(lambda: len(proxy.lifecycle._running) == 0)
    async with proxy.http.get(f"{proxy.url}/metrics") as response:
        assert "openai_proxy_client_disconnects_total 0.0" in await response.text()


async def test_many_at_once(proxy: Proxy, upstream: StandIn) -> None:
    """Fifty streams at once each get their own events."""

    async def respond(request: web.Request) -> web.StreamResponse:
        name = json.loads(upstream_body := await request.read())["user"]
        assert upstream_body
        response = await start_stream(request)
        for number in range(5):
            await response.write(chunk(f"{name}-{number}"))
            await asyncio.sleep(0.01)
        await response.write(DONE)
        return response

    upstream.respond = respond
    answers = await asyncio.gather(*(proxy.stream(user=f"u{n}") for n in range(50)))
    for number, answer in enumerate(answers):
        expected = b"".join(chunk(f"u{number}-{part}") for part in range(5)) + DONE
        assert answer == expected.decode()

"""From running generations to answers: whole, or as a stream that always frees what it holds."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Message

from kserve_llamacpp.api.answer import EventStream
from openai_protocol.errors import ApiError, Unavailable
from tests.predictor.exchange import Exchange
from tests.predictor.fake_process import ClientRun, settle


async def test_a_whole_chat_has_text_reason_and_usage() -> None:
    """Without a stream the answer is one object, and the log knows its tokens."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run)
    (generation,) = exchange.generations
    run.begin(generation)
    run.give(generation, "hello", "stop")
    await exchange.run()

    answer = json.loads(exchange.body())
    assert answer["choices"][0]["message"]["content"] == "hello"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert exchange.scope["access_log"] == {
        "model": "m",
        "stream": False,
        "prompt_tokens": 3,
        "completion_tokens": 5,
    }
    await run.client.stop()


async def test_a_chat_stream_opens_with_the_role_and_ends_with_done() -> None:
    """A stream is: the role, the text as it came, the reason, `[DONE]`; one id throughout."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, stream=True)
    (generation,) = exchange.generations
    run.begin(generation)
    running = asyncio.create_task(exchange.run())
    await settle()
    run.give(generation, "he")
    await settle()
    run.give(generation, "y", "length")
    await running

    *chunks, done = exchange.events()
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "he"},
        {"content": "y"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [
        None,
        None,
        None,
        "length",
    ]
    assert len({chunk["id"] for chunk in chunks}) == 1
    await run.client.stop()


async def test_text_is_sent_as_soon_as_it_comes() -> None:
    """Each step's text is a message of its own: nothing waits for the next."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, stream=True)
    (generation,) = exchange.generations
    run.begin(generation)
    running = asyncio.create_task(exchange.run())
    for text in "abc":
        before = len(exchange.sent)
        await settle()
        run.give(generation, text)
        await settle()
        assert f'"content":"{text}"'.encode() in exchange.sent[-1]["body"]
        assert len(exchange.sent) > before
    running.cancel()
    await settle()
    await run.client.stop()


@pytest.mark.parametrize("is_chat", [True, False])
async def test_usage_is_the_last_chunk_where_it_is_wanted(is_chat: bool) -> None:
    """With `include_usage` a chunk without choices comes before `[DONE]`."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, is_chat=is_chat, stream=True, stream_options={"include_usage": True})
    (generation,) = exchange.generations
    run.begin(generation)
    run.give(generation, "ab", "stop")
    await exchange.run()

    usage = exchange.events()[-2]
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 5)
    await run.client.stop()


async def test_several_prompts_stream_under_their_own_index() -> None:
    """The chunks of several prompts are told apart by index, and each has its end."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, "pq", is_chat=False, stream=True)
    first, second = exchange.generations
    run.begin(first, second)
    running = asyncio.create_task(exchange.run())
    await settle()
    for generation, text, end in (
        (second, "x", None),
        (first, "a", None),
        (second, "y", "stop"),
        (first, "b", "length"),
    ):
        run.give(generation, text, end)  # type: ignore[arg-type]  # literals
        await settle()
    await running

    *chunks, done = exchange.events()
    assert done == "[DONE]"
    choices = [chunk["choices"][0] for chunk in chunks]
    for index, text, reason in ((0, "ab", "length"), (1, "xy", "stop")):
        own = [choice for choice in choices if choice["index"] == index]
        assert "".join(choice["text"] for choice in own) == text
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == [reason]
    await run.client.stop()


async def test_several_prompts_are_answered_in_their_order() -> None:
    """Without a stream, choices stand in the order of the prompts; the usage is their sum."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, "pq", is_chat=False)
    first, second = exchange.generations
    run.begin(first, second)
    run.give(second, "xyz", "stop")
    run.give(first, "a", "length")
    await exchange.run()

    answer = json.loads(exchange.body())
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "a"), (1, "xyz")]
    assert answer["usage"]["total_tokens"] == 6 + 4
    await run.client.stop()


async def test_an_error_before_the_first_event_is_raised() -> None:
    """What fails before anything was sent becomes a plain error, streamed or not."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, stream=True)
    run.client.fail_all(Unavailable("going"))

    with pytest.raises(Unavailable):
        await exchange.run()

    assert exchange.sent == []
    await run.client.stop()


async def test_an_error_in_mid_stream_is_an_event() -> None:
    """What fails later ends the stream with OpenAI's error event, without `[DONE]`."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, stream=True)
    (generation,) = exchange.generations
    run.begin(generation)
    running = asyncio.create_task(exchange.run())
    await settle()
    run.give(generation, "a")
    await settle()
    run.client.fail_all(Unavailable("going", code="engine_failed"))
    await running

    last = exchange.events()[-1]
    assert last["error"]["code"] == "engine_failed"
    assert exchange.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    await run.client.stop()


async def test_one_failed_prompt_ends_the_others() -> None:
    """When one of several prompts fails, the others are cancelled: nobody reads them."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, "pq", is_chat=False)
    first, second = exchange.generations
    run.begin(first, second)
    running = asyncio.create_task(exchange.run())
    await settle()
    first.fail(Unavailable("going"))

    with pytest.raises(ApiError):
        await running

    assert second.id in run.cancelled()
    await settle()
    assert not [task for task in asyncio.all_tasks() if "collect" in str(task.get_coro())]
    await run.client.stop()


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("has_begun", [True, False])
async def test_a_cancelled_answer_frees_its_generations_at_once(
    is_stream: bool, has_begun: bool
) -> None:
    """Whenever an answer is cancelled, the engine is told before anything else happens."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, "pq", is_chat=False, stream=is_stream)
    first, second = exchange.generations
    if has_begun:
        run.begin(first, second)
        run.give(first, "a")
    running = asyncio.create_task(exchange.run())
    await settle()

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert run.cancelled() == [first.id, second.id]
    await run.client.stop()


async def test_the_stream_is_closed_before_its_last_message() -> None:
    """What a stream holds is freed when its client learns of the end, not some time later."""
    order: list[str] = []

    async def events() -> Any:
        yield b"data: 1\n\n"

    async def send(message: Message) -> None:
        order.append("last" if not message.get("more_body", True) else message["type"])

    stream = EventStream(events(), lambda: order.append("close"))
    await stream({"type": "http"}, pytest.fail, send)

    assert order == ["http.response.start", "http.response.body", "close", "last", "close"]
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.headers["x-accel-buffering"] == "no"
    assert "content-length" not in stream.headers

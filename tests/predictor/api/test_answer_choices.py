"""Several choices, logprobs and echo: how they are put together, whole and as a stream."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.predictor.exchange import Exchange
from tests.predictor.fake_process import ClientRun, settle


@pytest.mark.parametrize("is_chat", [True, False])
async def test_choices_are_answered_under_their_index(is_chat: bool) -> None:
    """Each choice has its text and its reason; the prompt is counted once, their tokens all."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, is_chat=is_chat, n=2)
    first, second = exchange.generations
    run.begin(first)
    run.begin(second, cached_tokens=2)
    run.give(second, "xyz", "length")
    run.give(first, "a", "stop")
    await exchange.run()

    answer = exchange.whole()
    texts = [c["message"]["content"] if is_chat else c["text"] for c in answer["choices"]]
    assert texts == ["a", "xyz"]
    assert [c["index"] for c in answer["choices"]] == [0, 1]
    assert [c["finish_reason"] for c in answer["choices"]] == ["stop", "length"]
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert exchange.scope["access_log"]["prompt_tokens"] == 3
    await run.client.stop()


async def test_cached_tokens_are_those_that_no_choice_computed() -> None:
    """What one choice computed and the others found is not cached; prompts are added up."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, "pq", is_chat=False, n=2)
    for generation, cached_tokens in zip(exchange.generations, (1, 3, 2, 2), strict=True):
        run.begin(generation, cached_tokens=cached_tokens)
        run.give(generation, "a", "stop")
    await exchange.run()

    usage = exchange.whole()["usage"]
    assert usage["prompt_tokens"] == 6
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}
    await run.client.stop()


async def test_choices_stream_under_their_index() -> None:
    """Each choice of a chat is opened by its role, and has its text and its end."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, n=2, stream=True, stream_options={"include_usage": True})
    first, second = exchange.generations
    run.begin(first, second)
    run.give(second, "x", "length")
    run.give(first, "a", "stop")
    await exchange.run()

    *chunks, usage, done = exchange.events()
    assert (done, usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == (
        "[DONE]",
        3,
        2,
    )
    for index, text, reason in ((0, "a", "stop"), (1, "x", "length")):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(choice["delta"].get("content", "") for choice in own) == text
        assert own[-1]["finish_reason"] == reason
    await run.client.stop()


async def test_a_stream_begins_before_its_last_choice_has() -> None:
    """Choices that still wait for a slot do not keep back those that have one."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, n=2, stream=True)
    first, second = exchange.generations
    run.begin(first)
    running = asyncio.create_task(exchange.run())
    await settle()
    run.give(first, "a", "stop")
    await settle()

    assert b'"content":"a"' in exchange.body()
    run.begin(second)
    run.give(second, "b", "stop")
    await running
    assert b'"content":"b"' in exchange.body()
    await run.client.stop()


async def test_the_best_choices_are_those_with_the_best_mean_logprob() -> None:
    """Of more choices than are wanted, the likeliest per token come first; all are counted."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, "pq", is_chat=False, n=2, best_of=3)
    run.begin(*exchange.generations)
    scores: tuple[list[float], ...] = ([-3.0], [-1.0, -1.0, -1.0], [-2.0], [-2.0], [-3.0], [-1.0])
    for generation, letter, logprobs in zip(exchange.generations, "abcdef", scores, strict=True):
        run.give(generation, letter, "stop", logprobs)
    await exchange.run()

    answer = exchange.whole()
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [
        (0, "b"),
        (1, "c"),
        (2, "f"),
        (3, "d"),
    ]
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 8
    await run.client.stop()


def _logprobs_of(choice: dict[str, Any]) -> list[float]:
    return [entry["logprob"] for entry in choice["logprobs"]["content"]]


@pytest.mark.parametrize("is_stream", [True, False])
async def test_logprobs_come_with_the_text_of_their_tokens(is_stream: bool) -> None:
    """Logprobs of what is held back come with its text; those of a stop string never do."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, stream=is_stream, logprobs=True)
    (generation,) = exchange.generations
    run.begin(generation)
    run.give(generation, "a", None, [-1.0, -2.0], num_shown=1)
    run.give(generation, "bc", None, [-3.0], num_shown=3)
    run.give(generation, "", "stop", [-4.0], num_shown=3)
    await exchange.run()

    if is_stream:
        choices = [chunk["choices"][0] for chunk in exchange.events()[:-1]]
        found = [score for c in choices if c["logprobs"] for score in _logprobs_of(c)]
    else:
        found = _logprobs_of(exchange.whole()["choices"][0])
    assert found == [-1.0, -2.0, -3.0]
    await run.client.stop()


async def test_logprobs_survive_the_engine() -> None:
    """Logprobs that were held back when an engine died come with the text that the next one has."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, logprobs=True)
    (generation,) = exchange.generations
    run.begin(generation)
    run.give(generation, "a", None, [-1.0, -2.0], num_shown=1)
    await run.die_and_come_back()
    run.begin(generation)
    run.give(generation, "bc", "length", [-3.0], num_shown=3)
    await exchange.run()

    assert _logprobs_of(exchange.whole()["choices"][0]) == [-1.0, -2.0, -3.0]
    await run.client.stop()


async def test_logprobs_of_a_text_say_where_each_token_begins() -> None:
    """Offsets count characters from the choice's beginning, over all chunks of its stream."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, "pq", is_chat=False, stream=True, logprobs=1)
    first, second = exchange.generations
    run.begin(first, second)
    for generation in (first, second):
        run.give(generation, "äb", None, [-1.0, -2.0], num_shown=2)
    running = asyncio.create_task(exchange.run())
    await settle()
    for generation in (first, second):
        run.give(generation, "c", "length", [-3.0], num_shown=3)
    await running

    offsets: dict[int, list[int]] = {0: [], 1: []}
    for chunk in exchange.events()[:-1]:
        choice = chunk["choices"][0]
        if choice["logprobs"] is not None:
            offsets[choice["index"]] += choice["logprobs"]["text_offset"]
    assert offsets == {0: [0, 1, 2], 1: [0, 1, 2]}
    await run.client.stop()


@pytest.mark.parametrize("is_stream", [True, False])
async def test_an_echo_comes_before_each_choice(is_stream: bool) -> None:
    """With `echo` each choice begins with its prompt."""
    run = ClientRun()
    await run.ready()
    echoes = ["p", "p", "q", "q"]
    exchange = Exchange(run, "pq", False, echoes, n=2, stream=is_stream)
    run.begin(*exchange.generations)
    for generation, text in zip(exchange.generations, "abcd", strict=True):
        run.give(generation, text, "stop")
    await exchange.run()

    texts = [""] * 4
    answers = exchange.events()[:-1] if is_stream else [exchange.whole()]
    for answer in answers:
        for choice in answer["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == ["pa", "pb", "qc", "qd"]
    await run.client.stop()

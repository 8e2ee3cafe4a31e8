"""OpenAI's API of the predictor: the official client, the real model, a real socket."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx2
import openai
import pytest

from tests.processes import Predictor

pytestmark = pytest.mark.model

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


async def test_chat_answers_with_usage(client: openai.AsyncOpenAI) -> None:
    """A chat completion has a text, a finish reason and token counts that add up."""
    answer = await client.chat.completions.create(
        model="smollm2", messages=QUESTION, max_tokens=8, temperature=0
    )
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.prompt_tokens == 37
    assert answer.usage.total_tokens == 45
    assert answer.model == "smollm2"


async def test_stream_is_the_same_text(client: openai.AsyncOpenAI) -> None:
    """A greedy stream, put together, is the greedy answer; the usage comes last when asked for."""
    whole = await client.chat.completions.create(
        model="smollm2", messages=QUESTION, max_tokens=12, temperature=0
    )
    stream = await client.chat.completions.create(
        model="smollm2",
        messages=QUESTION,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    usage = chunks[-1].usage
    assert usage is not None
    assert whole.usage is not None  # which may have less of its prompt from the cache
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert len({c.id for c in chunks}) == 1


async def test_a_seed_fixes_the_draws(client: openai.AsyncOpenAI) -> None:
    """The same seeds give the same tokens; other seeds other ones.

    First tokens, each computed without the others' prefix: later ones depend on where the cells of
    the cache are, and only deterministic mode promises more.
    """

    async def token(seed: int, salt: str) -> str:
        answer = await client.chat.completions.create(
            model="smollm2",
            messages=QUESTION,
            max_tokens=1,
            temperature=1.5,
            seed=seed,
            extra_body={"cache_salt": salt},
        )
        return answer.choices[0].message.content or ""

    tokens = [await token(seed, f"a{seed}") for seed in range(6)]
    assert tokens == [await token(seed, f"b{seed}") for seed in range(6)]
    assert len(set(tokens)) > 1


async def test_completions_take_text_tokens_and_lists(client: openai.AsyncOpenAI) -> None:
    """A prompt may be text, token ids, or a list of prompts that give one choice each."""
    text = await client.completions.create(
        model="smollm2", prompt="Once upon a time", max_tokens=4, temperature=0
    )
    assert text.choices[0].text
    tokens = await client.completions.create(
        model="smollm2",
        prompt=[6403, 1980, 253, 655],
        max_tokens=4,
        temperature=0,
        extra_body={"cache_salt": "tokens"},
    )
    assert tokens.choices[0].text == text.choices[0].text
    several = await client.completions.create(
        model="smollm2",
        prompt=["Once upon a time", "Two and two"],
        max_tokens=4,
        temperature=0,
        extra_body={"cache_salt": "several"},
    )
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].text == text.choices[0].text


async def test_streams_of_several_prompts(client: openai.AsyncOpenAI) -> None:
    """A stream of two prompts carries both, told apart by their index, each with its end."""
    stream = await client.completions.create(
        model="smollm2", prompt=["Once", "Two and"], max_tokens=5, temperature=0, stream=True
    )
    ends: dict[int, Any] = {}
    async for chunk in stream:
        ends[chunk.choices[0].index] = chunk.choices[0].finish_reason
    assert ends == {0: "length", 1: "length"}


async def test_stop_strings_end_the_text_before_them(client: openai.AsyncOpenAI) -> None:
    """A stop string ends the answer, and no part of it is shown."""
    plain = await client.completions.create(
        model="smollm2", prompt="1, 2, 3, 4,", max_tokens=12, temperature=0
    )
    stop = plain.choices[0].text[4:8]
    stopped = await client.completions.create(
        model="smollm2", prompt="1, 2, 3, 4,", max_tokens=12, temperature=0, stop=[stop]
    )
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].text == plain.choices[0].text[:4]


async def test_several_clients_decode_together(
    client: openai.AsyncOpenAI, http: httpx2.AsyncClient
) -> None:
    """Eight clients at once all get their answers, in fewer steps than one after another."""

    async def ask(number: int) -> Any:
        return await client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": f"Tell me about the number {number}."}],
            max_tokens=24,
            extra_body={"ignore_eos": True},
        )

    before = await metric(http, "kserve_llamacpp:engine_steps_total")
    answers = await asyncio.gather(*(ask(number) for number in range(8)))
    assert all(answer.usage.completion_tokens == 24 for answer in answers)
    steps = await metric(http, "kserve_llamacpp:engine_steps_total") - before
    assert steps < 8 * 24 / 2


async def test_a_stream_does_not_wait_for_a_long_prompt(client: openai.AsyncOpenAI) -> None:
    """While a long prompt is prefilled in chunks, a running stream goes on."""
    stream = await client.chat.completions.create(
        model="smollm2",
        messages=QUESTION,
        max_tokens=200,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    chunks = aiter(stream)
    for _ in range(3):
        await anext(chunks)
    long = asyncio.create_task(
        client.completions.create(model="smollm2", prompt="word " * 800, max_tokens=1)
    )
    between = 0
    while not long.done():
        await anext(chunks)
        between += 1
    assert between >= 5
    await stream.close()
    await long


async def test_little_behind_much_that_is_cached_is_soon_there(client: openai.AsyncOpenAI) -> None:
    """63 tokens behind 1,400 cached ones take about as long as 64.

    With flash attention on a CPU they took 3.5 times as long, and 5 seconds behind some thousand:
    so long waited who came back after leaving a long prompt.
    """
    text = [1000 + at for at in range(1450)]

    async def seconds(count: int) -> float:
        """Return the least time that so many tokens took behind the text."""
        times = []
        for attempt in range(3):
            prompt = text[:1400] + [2000 + 100 * attempt + count] * count
            began = time.monotonic()
            answer = await client.completions.create(model="smollm2", prompt=prompt, max_tokens=1)
            times.append(time.monotonic() - began)
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            assert answer.usage.prompt_tokens_details.cached_tokens == 1400
        return min(times)

    await client.completions.create(model="smollm2", prompt=text, max_tokens=1)
    assert await seconds(63) < 2 * await seconds(64)


async def test_a_hostile_prompt_stops_nobody(client: openai.AsyncOpenAI) -> None:
    """Masses of special tokens, or of anything, are refused soon; a stream goes on meanwhile."""
    stream = await client.chat.completions.create(
        model="smollm2",
        messages=QUESTION,
        max_tokens=4000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    chunks = aiter(stream)
    await anext(chunks)
    for text in ("<|im_end|>" * 40_000, "a" * 1_000_000, " \n" * 500_000, "<|im_end|> " * 700_000):
        refusal = asyncio.create_task(client.completions.create(model="smollm2", prompt=text))
        async with asyncio.timeout(20):
            while not refusal.done():
                async with asyncio.timeout(3):
                    await anext(chunks)
        with pytest.raises(openai.BadRequestError) as error:
            await refusal
        assert error.value.code == "context_length_exceeded"
    await stream.close()


async def test_a_client_that_leaves_frees_its_sequence(
    client: openai.AsyncOpenAI, http: httpx2.AsyncClient
) -> None:
    """After a client leaves in mid-stream, its sequence and cells are free within one step."""
    stream = await client.chat.completions.create(
        model="smollm2",
        messages=QUESTION,
        max_tokens=4000,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    chunks = aiter(stream)
    for _ in range(4):
        await anext(chunks)
    assert await metric(http, "vllm:num_requests_running") == 1
    assert 0 < await metric(http, "vllm:kv_cache_usage_perc") < 1
    await stream.close()
    async with asyncio.timeout(10):
        while await metric(http, "vllm:num_requests_running"):  # noqa: ASYNC110 - it is in another process
            await asyncio.sleep(0.01)
        steps = await metric(http, "kserve_llamacpp:engine_steps_total")
        while await metric(http, "vllm:kv_cache_usage_perc"):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    assert await metric(http, "kserve_llamacpp:engine_steps_total") - steps <= 1


async def test_a_client_that_leaves_a_plain_request_frees_it_too(
    predictor: Predictor, http: httpx2.AsyncClient
) -> None:
    """A client that hangs up while it waits for a whole answer stops the work, V1 predict too."""
    for path, body in (
        ("/v1/completions", {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True}),
        (
            "/v1/models/smollm2:predict",
            {"instances": [{"prompt": "Once", "max_tokens": 4000, "ignore_eos": True}]},
        ),
    ):
        with pytest.raises(httpx2.TimeoutException):
            await http.post(path, json=body, timeout=0.7)
        async with asyncio.timeout(10):
            while await metric(http, "vllm:num_requests_running"):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
    assert await metric(http, "kserve_llamacpp:engine_deaths_total") == 0


async def metric(http: httpx2.AsyncClient, name: str) -> float:
    """Return the value of a metric that has no other label than the model's name."""
    text = (await http.get("/metrics")).text
    lines = [
        line for line in text.splitlines() if line.startswith(f'{name}{{model_name="smollm2"}}')
    ]
    assert len(lines) == 1, name
    return float(lines[0].split()[-1])

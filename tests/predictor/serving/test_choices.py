"""Several choices, logprobs, ends and samplers: the official client, the real model."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.predictor.serving.test_openai_api import metric
from tests.processes import Predictor

pytestmark = pytest.mark.model

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
ASK: dict[str, Any] = {"model": "smollm2", "messages": QUESTION}
WRITE: dict[str, Any] = {"model": "smollm2", "prompt": "Once upon a time"}


async def test_choices_differ_under_one_seed(client: openai.AsyncOpenAI) -> None:
    """Choices draw for themselves; their prompt is counted once, their tokens all."""
    ask = {**ASK, "max_tokens": 12, "temperature": 1.5, "seed": 3}
    answer = await client.chat.completions.create(**ask, n=3, extra_body={"ignore_eos": True})

    assert len({choice.message.content for choice in answer.choices}) == 3
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (37, 36)


async def test_choices_are_streamed(client: openai.AsyncOpenAI) -> None:
    """A stream of several choices has a text, its tokens' bytes and an end for each."""
    stream = await client.chat.completions.create(
        **ASK, max_tokens=10, n=2, logprobs=True, temperature=1.5, stream=True
    )
    texts, tokens, ends = ["", ""], [b"", b""], ["", ""]
    async for chunk in stream:
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        if choice.logprobs is not None:
            for entry in choice.logprobs.content or []:
                tokens[choice.index] += bytes(entry.bytes or [])
        ends[choice.index] += choice.finish_reason or ""

    assert all(texts)
    assert texts == [data.decode(errors="replace") for data in tokens]
    assert set(ends) <= {"stop", "length"}


async def test_logprobs_of_a_chat(client: openai.AsyncOpenAI) -> None:
    """The tokens are the text; greedy draws are the likeliest; the alternatives are in order."""
    answer = await client.chat.completions.create(
        **ASK, max_tokens=12, temperature=0, logprobs=True, top_logprobs=20
    )
    choice = answer.choices[0]
    assert choice.logprobs is not None
    entries = choice.logprobs.content or []

    assert "".join(entry.token for entry in entries) == choice.message.content
    for entry in entries:
        assert bytes(entry.bytes or []) == entry.token.encode()
        top = [other.logprob for other in entry.top_logprobs]
        assert len(top) == 20
        assert top == sorted(top, reverse=True)
        assert (entry.token, entry.logprob) == (entry.top_logprobs[0].token, top[0])
        assert entry.logprob < 0


async def test_parts_of_characters_have_their_bytes(client: openai.AsyncOpenAI) -> None:
    """No part of a character is streamed; its tokens' bytes make it up, at one place."""
    ask: dict[str, Any] = {
        **WRITE,
        "prompt": "🎉" * 8,
        "max_tokens": 9,
        "temperature": 0,
        "logprobs": 1,
    }
    whole = await client.completions.create(**ask)
    chunks = [chunk async for chunk in await client.completions.create(**ask, stream=True)]
    scores = whole.choices[0].logprobs
    assert scores is not None
    assert scores.tokens is not None

    text = whole.choices[0].text
    assert "🎉" in text
    assert [c.choices[0].text for c in chunks if c.choices[0].text] == list(text)
    parts = [token.removeprefix("bytes:") for token in scores.tokens]
    data = "".join(parts).encode().decode("unicode_escape").encode("latin-1")
    assert data.decode() == text
    assert scores.text_offset == [at // 3 for at in range(9)]


async def test_the_best_of_several(client: openai.AsyncOpenAI) -> None:
    """Of `best_of` choices the likeliest per token are given, the best first; all are counted."""
    answer = await client.completions.create(
        **WRITE,
        n=2,
        best_of=5,
        max_tokens=8,
        temperature=1.5,
        logprobs=0,
        extra_body={"ignore_eos": True},
    )

    def mean(choice: Any) -> float:
        scores = choice.logprobs.token_logprobs
        return sum(scores) / len(scores)

    first, second = answer.choices
    assert mean(first) > mean(second)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 40)


async def test_echo(client: openai.AsyncOpenAI) -> None:
    """With `echo` a completion begins with its prompt."""
    echoed = await client.completions.create(**WRITE, max_tokens=5, temperature=0, echo=True)

    assert echoed.choices[0].text.startswith(WRITE["prompt"])
    assert len(echoed.choices[0].text) > len(WRITE["prompt"])
    assert echoed.usage is not None
    assert echoed.usage.completion_tokens == 5


async def test_a_prompt_is_computed_once_for_all_choices(
    client: openai.AsyncOpenAI, http: httpx2.AsyncClient
) -> None:
    """Of four choices of a long prompt, three find it in the cache."""

    async def computed() -> float:
        names = ("vllm:prompt_tokens_total", "vllm:prompt_tokens_cached_total")
        asked, cached = [await metric(http, name) for name in names]
        return asked - cached

    before = await computed()
    answer = await client.completions.create(
        model="smollm2", prompt="One more word. " * 100, n=4, max_tokens=2
    )

    assert answer.usage is not None
    length = answer.usage.prompt_tokens
    assert length > 300
    assert length <= await computed() - before <= length + 4 * 64


async def test_ends(client: openai.AsyncOpenAI) -> None:
    """Ends are held off by `min_tokens`, and shown where that is wanted."""

    async def ask(**extra: Any) -> Any:
        answer = await client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Say ok."}],
            max_tokens=60,
            temperature=0,
            extra_body=extra,
        )
        return answer.choices[0], answer.usage.completion_tokens if answer.usage else 0

    choice, count = await ask()
    assert choice.finish_reason == "stop"
    assert count < 40
    _, more = await ask(min_tokens=40)
    assert more >= 40
    shown, _ = await ask(skip_special_tokens=False, include_stop_str_in_output=True)
    assert shown.message.content.endswith("<|im_end|>")
    word, _ = await ask(stop=[" "], include_stop_str_in_output=True)
    assert word.message.content.count(" ") == 1
    assert word.message.content.endswith(" ")


async def test_a_stop_token_is_not_shown(client: openai.AsyncOpenAI) -> None:
    """A token of `stop_token_ids` ends the text before it; it is counted."""
    ask = {**WRITE, "temperature": 0, "max_tokens": 6}
    plain = await client.completions.create(**ask, logprobs=0)
    comma = 28
    stopped = await client.completions.create(**ask, extra_body={"stop_token_ids": [comma]})

    assert "," in plain.choices[0].text
    assert stopped.choices[0].text == plain.choices[0].text.partition(",")[0]
    assert stopped.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "extra",
    [
        {"dry_multiplier": 5.0, "dry_allowed_length": 1, "dry_sequence_breakers": []},
        {"repetition_penalty": 2.0},
        {"frequency_penalty": 2.0},
    ],
)
async def test_penalties_end_a_repetition(
    client: openai.AsyncOpenAI, extra: dict[str, Any]
) -> None:
    """What the model would repeat, it repeats less than half as often under each penalty."""

    async def count(**fields: Any) -> int:
        answer = await client.completions.create(
            model="smollm2",
            prompt="a b a b a b a b",
            max_tokens=16,
            temperature=0,
            extra_body=fields,
        )
        return answer.choices[0].text.count(" a b")

    plain = await count()
    assert plain >= 4
    assert await count(**extra) < plain / 2


async def test_xtc_leaves_the_best_out(client: openai.AsyncOpenAI) -> None:
    """Where XTC strikes, no token is the likeliest one, as long as another one is likely."""
    answer = await client.completions.create(
        **WRITE,
        max_tokens=20,
        logprobs=2,
        extra_body={"xtc_probability": 1.0, "xtc_threshold": 0.05},
    )
    scores = answer.choices[0].logprobs
    assert scores is not None
    assert scores.top_logprobs
    for token, top in zip(scores.tokens or [], scores.top_logprobs, strict=True):
        best, second = sorted(top, key=lambda name: -top[name])[:2]
        assert token != best or top[second] < math.log(0.06)


async def test_typical_p_is_the_expected_token(client: openai.AsyncOpenAI) -> None:
    """With a tiny `typical_p` one token is left, whatever the seed is."""

    async def first(seed: int, **fields: Any) -> str:
        answer = await client.completions.create(
            **WRITE, max_tokens=1, temperature=2, seed=seed, extra_body={"min_p": 0, **fields}
        )
        return answer.choices[0].text

    assert len({await first(seed, typical_p=0.0001) for seed in range(5)}) == 1
    assert len({await first(seed) for seed in range(5)}) > 1


async def test_choices_are_taken_together_or_not_at_all(model_path: Path) -> None:
    """More choices than fit are refused: for now with 429, or for good with 400; none is left."""
    with Predictor(model_path, "--max_waiting=2", "--max_sequences=1", "--n_ctx=2048") as server:
        server.ready()
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="unused", max_retries=0
        ) as client:
            with pytest.raises(openai.BadRequestError) as never:
                await client.chat.completions.create(**ASK, n=4)
            assert never.value.param == "n"
            stream = await client.completions.create(
                **WRITE, max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
            )
            await anext(aiter(stream))
            with pytest.raises(openai.RateLimitError) as full:
                await client.chat.completions.create(**ASK, n=3)
            assert full.value.code == "queue_full"
            async with httpx2.AsyncClient(base_url=server.url) as http:
                text = (await http.get("/metrics")).text
            assert 'vllm:num_requests_waiting{model_name="smollm2"} 0.0' in text
            two = asyncio.create_task(
                client.chat.completions.create(**ASK, n=2, max_tokens=4, temperature=0)
            )
            await asyncio.sleep(0.1)
            await stream.close()
            assert len((await two).choices) == 2

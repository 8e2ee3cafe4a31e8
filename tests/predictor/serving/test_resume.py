"""Streams that break and go on in another predictor: the real model, real sockets."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from openai_protocol.resume import ResumeReader
from openai_protocol.sse import data_of
from tests.processes import Predictor

pytestmark = pytest.mark.model

RESUMABLE = {"X-Resumable": "1"}
CHAT = "/v1/chat/completions"
WRITE = "/v1/completions"
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "stream": True,
    "stream_options": {"include_usage": True},
}
PARTY: dict[str, Any] = {"prompt": "🎉" * 8, "stream": True, "temperature": 0}


@pytest.fixture(scope="module")
def exact_pair(
    model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Predictor, Predictor]]:
    """Two predictors that serve the same bytes, one from a file of another name elsewhere."""
    file = tmp_path_factory.mktemp("replica") / "another-name.gguf"
    file.symlink_to(model_path)
    flags = ("--deterministic", "--n_ctx=4096")
    with Predictor(model_path, *flags) as one, Predictor(file, *flags) as two:
        for server in (one, two):  # two self-tests at a time take long on a busy machine
            server.wait_for("model_ready", seconds=100)
            server.wait_for("self_test_passed")
        yield one, two


@pytest.fixture
async def one(exact_pair: tuple[Predictor, Predictor]) -> AsyncIterator[httpx2.AsyncClient]:
    """Bare HTTP to the first of both."""
    async with httpx2.AsyncClient(base_url=exact_pair[0].url, timeout=60) as client:
        yield client


@pytest.fixture
async def two(exact_pair: tuple[Predictor, Predictor]) -> AsyncIterator[httpx2.AsyncClient]:
    """Bare HTTP to the second."""
    async with httpx2.AsyncClient(base_url=exact_pair[1].url, timeout=60) as client:
        yield client


async def _stream(http: httpx2.AsyncClient, path: str, body: dict[str, Any]) -> list[bytes]:
    """Return the events of a stream that can be resumed, each as it came."""
    answer = await http.post(path, json=body, headers=RESUMABLE)
    assert answer.status_code == 200, answer.text
    return answer.content.split(b"\n\n")[:-1]


async def _refusal(http: httpx2.AsyncClient, body: dict[str, Any], path: str = CHAT) -> Any:
    answer = await http.post(path, json=body, headers=RESUMABLE)
    return answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]


def _received(events: list[bytes]) -> dict[str, Any]:
    """Return the field that resumes a stream after these events."""
    reader = ResumeReader()
    for event in events:
        reader.read(event)
    resume = reader.resume()
    assert resume is not None
    return resume


class _Told:
    """What a client of a stream was told, in all."""

    def __init__(self, events: list[bytes], num_choices: int) -> None:
        self.heads = set()
        self.texts = [""] * num_choices
        self.roles = [0] * num_choices
        self.ends: list[list[str]] = [[] for _ in range(num_choices)]
        self.logprobs: list[list[Any]] = [[] for _ in range(num_choices)]
        self.usages = []
        self.num_done = 0
        for event in events:
            data = data_of(event)
            if data == b"[DONE]":
                self.num_done += 1
                continue
            chunk = json.loads(data or b"")
            self.heads.add((chunk["id"], chunk["created"]))
            if "usage" in chunk:
                self.usages.append(chunk["usage"])
            for choice in chunk["choices"]:
                self._take(choice)

    def _take(self, choice: dict[str, Any]) -> None:
        index = choice["index"]
        delta = choice.get("delta", choice)
        self.roles[index] += "role" in delta
        self.texts[index] += delta.get("content") or delta.get("text") or ""
        if choice["finish_reason"]:
            self.ends[index].append(choice["finish_reason"])
        scores = choice["logprobs"] or {}
        for entry in scores.get("content") or []:
            self.logprobs[index].append((entry["token"], entry["logprob"]))
        if "tokens" in scores:
            columns = (scores[name] for name in ("tokens", "token_logprobs", "text_offset"))
            self.logprobs[index] += zip(*columns, strict=True)


CASES = {
    "seeded": (CHAT, {**ASK, "seed": 7, "temperature": 1, "max_tokens": 8}),
    "no seed": (CHAT, {**ASK, "max_tokens": 8}),
    "choices": (CHAT, {**ASK, "n": 2, "seed": 3, "temperature": 1, "max_tokens": 6}),
    "emoji": (WRITE, {**PARTY, "max_tokens": 8}),
    "emoji and logprobs": (WRITE, {**PARTY, "max_tokens": 8, "logprobs": 1}),
    "echo": (WRITE, {**PARTY, "prompt": "ha ha ha", "max_tokens": 4, "echo": True}),
    "two prompts": (WRITE, {**PARTY, "prompt": ["ha ha ha", "one two"], "max_tokens": 4}),
}


@pytest.mark.parametrize("case", CASES)
async def test_cut_anywhere_a_stream_goes_on_elsewhere(
    one: httpx2.AsyncClient, two: httpx2.AsyncClient, case: str
) -> None:
    """After every event: both parts together tell what the whole stream told, each thing once."""
    path, body = CASES[case]
    await _check_every_cut(one, two, path, body, 2 if case in ("choices", "two prompts") else 1)


async def test_stop_strings_lie_across_the_cut(
    one: httpx2.AsyncClient, two: httpx2.AsyncClient
) -> None:
    """What is held back for a stop string is neither lost nor doubled, nor are its logprobs."""
    body = {**ASK, "temperature": 0, "max_tokens": 12, "logprobs": True}
    plain = _Told(await _stream(one, CHAT, body), 1).texts[0]
    almost = [plain[at : at + 6] + "\x00" for at in range(3, 11)]  # some begin inside a token
    stop = plain[14:20]

    whole = await _check_every_cut(one, two, CHAT, {**body, "stop": [*almost, stop]}, 1)

    assert whole.texts == [plain.partition(stop)[0]]
    assert whole.ends == [["stop"]]


async def _check_every_cut(
    one: httpx2.AsyncClient,
    two: httpx2.AsyncClient,
    path: str,
    body: dict[str, Any],
    num_choices: int,
) -> _Told:
    """Cut a stream of the first after every event; return what it told without a cut."""
    events = await _stream(one, path, body)
    whole = _Told(events, num_choices)
    assert all(whole.texts)

    for cut in range(1, len(events)):
        resume = _received(events[:cut])
        rest = await _stream(two, path, {**body, "resume": resume})
        told = _Told(events[:cut] + rest, num_choices)
        assert told.texts == whole.texts, cut
        assert (told.heads, told.roles, told.ends) == (whole.heads, whole.roles, whole.ends), cut
        assert told.logprobs == whole.logprobs, cut
        assert told.num_done == 1
        for key in ("prompt_tokens", "completion_tokens"):
            assert [u[key] for u in told.usages] == [u[key] for u in whole.usages], cut
        assert _by_index(events[:cut] + rest) == _by_index(events), cut
    return whole


def _by_index(events: list[bytes]) -> dict[int, Any]:
    return {choice["index"]: choice for choice in _received(events)["choices"]}


async def test_in_default_mode_the_text_is_what_the_tokens_say(
    http: httpx2.AsyncClient, two: httpx2.AsyncClient
) -> None:
    """What was begun with other settings goes on: no character is lost or doubled, in any place.

    The text after the cut may be another one than it would have been.
    """
    body = {**PARTY, "max_tokens": 12, "temperature": 1, "seed": 4, "logprobs": 0}
    events = await _stream(two, WRITE, body)
    for cut in range(1, len(events) - 2):
        rest = await _stream(http, WRITE, {**body, "resume": _received(events[:cut])})
        told = _Told(events[:cut] + rest, 1)
        tokens = "".join(token.removeprefix("bytes:") for token, *_ in told.logprobs[0])
        text = told.texts[0].replace("\N{REPLACEMENT CHARACTER}", "")  # a part, at the limit

        assert text == _from_parts(tokens), cut
        assert len(_received(events[:cut] + rest)["choices"][0]["tokens"]) == 12
        assert told.ends == [["length"]]


def _from_parts(tokens: str) -> str:
    """Return the text of tokens; those that are parts of characters are written as bytes."""
    parts = re.split(r"((?:\\x[0-9a-f]{2})+)", tokens)
    data = [
        bytes.fromhex(part.replace("\\x", "")) if at % 2 else part.encode()
        for at, part in enumerate(parts)
    ]
    return b"".join(data).decode(errors="ignore")


async def test_in_deterministic_mode_the_fingerprint_must_be_the_same(
    http: httpx2.AsyncClient, two: httpx2.AsyncClient
) -> None:
    """A predictor that promises the same bytes does not go on with others' streams."""
    body = {**ASK, "max_tokens": 4}
    resume = _received((await _stream(http, CHAT, body))[:2])

    error = await _refusal(two, {**body, "resume": resume})

    assert error == (409, "resume_mismatch", "resume.fingerprint")


async def test_a_resumed_stream_can_be_resumed(
    one: httpx2.AsyncClient, two: httpx2.AsyncClient
) -> None:
    """A stream that breaks after every third event comes through, on one replica and the other."""
    body = {**ASK, "temperature": 0, "max_tokens": 16}
    whole = _Told(await _stream(one, CHAT, body), 1)
    received: list[bytes] = (await _stream(one, CHAT, body))[:3]
    for attempt in range(20):
        server = (two, one)[attempt % 2]
        part = await _stream(server, CHAT, {**body, "resume": _received(received)})
        received += part[:3]
        if part[:3] == part:
            break

    told = _Told(received, 1)
    assert (told.texts, told.ends, told.heads) == (whole.texts, whole.ends, told.heads)
    assert len(told.heads) == 1


async def test_comments_come_by_the_header_alone(http: httpx2.AsyncClient) -> None:
    """Who does not ask for it gets no comments; who asks gets the same data."""
    body = {**ASK, "temperature": 0, "max_tokens": 4}
    plain = (await http.post(CHAT, json=body)).content
    asked = await _stream(http, CHAT, body)

    assert b"\n:" not in b"\n" + plain
    assert [_text(event) for event in plain.split(b"\n\n")[:-1]] == [_text(e) for e in asked]


def _text(event: bytes) -> Any:
    data = data_of(event) or b""
    return data if data == b"[DONE]" else json.loads(data)["choices"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model_hash": "0" * 64}, (409, "resume_mismatch", "resume.model_hash")),
        ({"prompt_hash": "0" * 64}, (409, "resume_mismatch", "resume.prompt_hash")),
        (
            {"model_hash": "0" * 64, "choices": [{"index": 0, "tokens": [2**30]}]},
            (409, "resume_mismatch", "resume.model_hash"),
        ),
        (
            {"choices": [{"index": 0, "tokens": [5, 2**30]}]},
            (400, "invalid_value", "resume.choices[0].tokens[1]"),
        ),
        (
            {"choices": [{"index": 0, "tokens": [5] * 13}]},
            (400, "invalid_value", "resume.choices[0].tokens"),
        ),
        ({"choices": [{"index": 0, "tokens": [2, 5]}]}, (400, "invalid_value", "resume")),
        ({"choices": [{"index": 1}]}, (400, "invalid_value", "resume.choices[0].index")),
        (
            {"choices": [{"index": 0}, {"index": 0}]},
            (400, "invalid_value", "resume.choices[1].index"),
        ),
        ({"seed": "x"}, (400, "invalid_type", "resume.seed")),
    ],
)
async def test_what_does_not_fit_is_refused(
    http: httpx2.AsyncClient, change: dict[str, Any], error: tuple[int, str, str]
) -> None:
    """Another model or prompt is a conflict, a malformed field a bad request; both are named."""
    body = {**ASK, "temperature": 0, "max_tokens": 12}
    resume = _received((await _stream(http, CHAT, {**body, "max_tokens": 2}))[:2])

    assert await _refusal(http, {**body, "resume": {**resume, **change}}) == error


async def test_another_prompt_is_a_conflict(http: httpx2.AsyncClient) -> None:
    """What was begun for one prompt does not go on behind another."""
    body = {**PARTY, "max_tokens": 4}
    resume = _received((await _stream(http, WRITE, body))[:2])

    error = await _refusal(http, {**body, "prompt": "other", "resume": resume}, WRITE)

    assert error == (409, "resume_mismatch", "resume.prompt_hash")


async def test_tokens_that_have_ended_are_not_continued(http: httpx2.AsyncClient) -> None:
    """Tokens with an end token last need no reason: nothing more than the end is sent."""
    body = {**ASK, "messages": [{"role": "user", "content": "Say ok."}], "temperature": 0}
    events = await _stream(http, CHAT, body)
    resume = _received(events)
    tokens = resume["choices"][0]["tokens"]
    assert resume["choices"][0]["finish_reason"] == "stop"

    resume |= {"choices": [{"index": 0, "tokens": tokens}], "usage": False}
    told = _Told(await _stream(http, CHAT, {**body, "resume": resume}), 1)

    assert (told.texts, told.ends, told.roles) == ([""], [["stop"]], [0])
    assert told.usages[0]["completion_tokens"] == len(tokens)


async def test_a_death_of_the_engine_right_after_a_resume(model_path: Path) -> None:
    """An engine that dies under a resumed stream is replaced, and the stream still goes on."""
    body = {**ASK, "temperature": 0, "max_tokens": 60, "ignore_eos": True, "logprobs": True}
    with Predictor(model_path, "--max_sequences=1") as server:
        server.ready()
        async with httpx2.AsyncClient(base_url=server.url, timeout=60) as http:
            events = await _stream(http, CHAT, body)
            resume = _received(events[:3])
            rest = b""
            async with http.stream(
                "POST", CHAT, json={**body, "resume": resume}, headers=RESUMABLE
            ) as answer:
                has_died = False
                async for part in answer.aiter_bytes():
                    rest += part
                    if not has_died:
                        server.find("kserve_llamacpp.engine.worker").kill()
                        has_died = True
            server.wait_for("engine_died")
            told = _Told(events[:3] + rest.split(b"\n\n")[:-1], 1)

    assert told.ends == [["length"]]
    assert "".join(token for token, _ in told.logprobs[0]) == told.texts[0]
    assert told.usages[0]["completion_tokens"] == 60

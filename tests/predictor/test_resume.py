"""Who asks for a stream that can be resumed, what is refused, and what the comments tell."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from typing import Any

import msgspec
import pytest

from kserve_llamacpp.engine_client.generation import Request
from kserve_llamacpp.resume import Resumable, resumable_of
from kserve_llamacpp.wire.frames import Logprobs, Output, Started, TokenLogprob
from openai_protocol.errors import Conflict, InvalidRequest
from openai_protocol.requests import ChatCompletionRequest
from openai_protocol.resume import ResumeReader, parse_resume
from openai_protocol.sse import split_events
from tests.predictor.exchange import Exchange
from tests.predictor.fake_process import FACTS, ClientRun, settle

HEADERS = {"x-resumable": "1"}
PROMPT_HASH = hashlib.sha256(b"hash").hexdigest()  # of a request with one prompt
FIELD: dict[str, Any] = {
    "id": "chatcmpl-1",
    "created": 5,
    "seed": 9,
    "fingerprint": "fp_other",
    "model_hash": "file",
    "prompt_hash": PROMPT_HASH,
    "choices": [{"index": 0, "tokens": [97]}],
}


def _body(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(messages=[{"role": "user", "content": "x"}], **fields)


def _resumable(**change: Any) -> Resumable:
    return resumable_of(HEADERS, _body(stream=True, resume={**FIELD, **change}))


def _requests(run: ClientRun, resumable: Resumable, **facts: Any) -> list[Request]:
    changed = msgspec.structs.replace(FACTS, **facts)
    return resumable.requests([run.request(max_tokens=3)], changed, is_deterministic=False)


def test_the_field_counts_beside_the_header_alone() -> None:
    """Without the header the field stays in the body, where it is unknown; with it, it leaves."""
    plain, asked = _body(stream=True, resume=FIELD), _body(stream=True, resume=FIELD)
    resumable_of({}, plain)
    resumable_of(HEADERS, asked)

    assert plain.model_extra == {"resume": FIELD}
    assert asked.model_extra == {}


@pytest.mark.parametrize(
    ("headers", "fields", "param"),
    [
        ({"x-resumable": "yes"}, {"stream": True}, "X-Resumable"),
        (HEADERS, {"resume": FIELD}, "resume"),
        (HEADERS, {"resume": FIELD, "stream": True, "seed": 8}, "resume.seed"),
        (HEADERS, {"resume": {}, "stream": True}, "resume.id"),
    ],
)
def test_what_contradicts_is_refused(
    headers: dict[str, str], fields: dict[str, Any], param: str
) -> None:
    """A header of another value, an answer that is no stream, another seed: 400, by name."""
    with pytest.raises(InvalidRequest) as caught:
        resumable_of(headers, _body(**fields))

    assert (caught.value.param, caught.value.status) == (param, 400)


def test_a_resumed_request_has_its_seed_and_its_tokens() -> None:
    """It draws on under the seed that the first server chose, behind the tokens that came."""
    (request,) = _requests(ClientRun(), _resumable())

    assert (request.resume, request.sampling.seed, request.ended) == ([97], 9, None)
    assert request.is_resumable


def test_who_does_not_ask_has_the_request_as_it_was() -> None:
    """Neither the prompt's hash nor anything else is asked of the engine for others."""
    request = ClientRun().request()

    assert Resumable().requests([request], FACTS, is_deterministic=True) == [request]


@pytest.mark.parametrize(
    ("change", "facts", "param", "status"),
    [
        ({}, {"file_hash": "other"}, "resume.model_hash", 409),
        ({"choices": [{"index": 0, "tokens": [258]}]}, {}, "resume.choices[0].tokens[0]", 400),
        ({"choices": [{"index": 0, "tokens": [1] * 4}]}, {}, "resume.choices[0].tokens", 400),
        ({"choices": [{"index": 1}]}, {}, "resume.choices[0].index", 400),
    ],
)
def test_what_cannot_go_on_here_is_refused(
    change: dict[str, Any], facts: dict[str, Any], param: str, status: int
) -> None:
    """Another model's stream, tokens that are none, too many, a choice that is not asked for."""
    with pytest.raises(InvalidRequest) as caught:
        _requests(ClientRun(), _resumable(**change), **facts)

    assert (caught.value.param, caught.value.status) == (param, status)


def test_the_fingerprint_counts_in_deterministic_mode_alone() -> None:
    """Where the same bytes are promised, nothing about the server may differ."""
    request = ClientRun().request()
    _resumable().requests([request], FACTS, is_deterministic=False)
    with pytest.raises(Conflict) as caught:
        _resumable().requests([request], FACTS, is_deterministic=True)

    assert caught.value.param == "resume.fingerprint"


async def _events(run: ClientRun, exchange: Exchange, *steps: Output) -> list[bytes]:
    """Return the events of an answer to which the engine gives these steps."""
    task = asyncio.create_task(exchange.run())
    run.begin(*exchange.generations)
    await settle()
    for step in steps:
        run.tell(step)
        await settle()
    await task
    return split_events(exchange.body())


def _tokens(events: list[bytes]) -> list[tuple[list[int], str | None, bool]]:
    """Return what each event's own comment tells of the only choice."""
    told = []
    for raw in events:
        if b'"index":0' in raw.partition(b"data:")[0]:
            reader = ResumeReader()
            reader.read(b': resume {"id":"a","created":1,"seed":1,"fingerprint":"f",' + _REST + raw)
            resume = reader.resume()
            assert resume is not None
            choice = parse_resume(resume).choices[0]
            told.append((choice.tokens, choice.finish_reason, choice.ended))
    return told


_REST = b'"model_hash":"m","prompt_hash":"p"}\n'


async def test_tokens_without_a_text_are_told_with_the_next_event() -> None:
    """Held-back tokens come with the event behind them; the last text tells why it is the last."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, resumable=Resumable(is_asked=True), stream=True)
    (one,) = exchange.generations
    steps = [
        Output(one.id, [1], "a"),
        Output(one.id, [2], ""),
        Output(one.id, [3], ""),
        Output(one.id, [4], "bcd"),
        Output(one.id, [5], "e", "stop"),
    ]

    assert _tokens(await _events(run, exchange, *steps)) == [
        ([], None, False),
        ([1], None, False),
        ([2, 3, 4], None, False),
        ([5], "stop", False),
        ([], "stop", True),
    ]


async def test_an_end_without_a_text_has_the_last_tokens() -> None:
    """Where the last token has no text, the end tells it."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, resumable=Resumable(is_asked=True), stream=True)
    (one,) = exchange.generations
    steps = [Output(one.id, [1], "a"), Output(one.id, [2], "", "stop")]

    events = await _events(run, exchange, *steps)

    assert _tokens(events)[2:] == [([2], "stop", True)]
    assert [raw.count(b"prompt_hash") for raw in events] == [1, 0, 0, 0]


async def test_a_resumed_answer_keeps_its_names_and_opens_no_choice_again() -> None:
    """Id and time are the first server's; the role was sent; usage counts all tokens."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(
        run, resumable=_resumable(), stream=True, stream_options={"include_usage": True}
    )
    (one,) = exchange.generations
    await _events(run, exchange, Output(one.id, [2], "b", "stop"))
    text, end, usage, done = exchange.events()

    assert (text["id"], text["created"]) == ("chatcmpl-1", 5)
    assert text["choices"][0]["delta"] == {"content": "b"}
    assert end["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == 2
    assert done == "[DONE]"


@pytest.mark.parametrize(
    ("choice", "usage", "num_events"),
    [
        ({"finish_reason": "stop"}, False, 3),
        ({"finish_reason": "stop", "ended": True}, False, 2),
        ({"finish_reason": "stop", "ended": True}, True, 1),
    ],
)
async def test_of_what_has_ended_the_rest_is_sent(
    choice: dict[str, Any], usage: bool, num_events: int
) -> None:
    """The end, the usage and `[DONE]`: each is sent unless it came before."""
    run = ClientRun()
    await run.ready()
    resumable = _resumable(choices=[{"index": 0, "tokens": [97], **choice}], usage=usage)
    options = {"include_usage": True}
    exchange = Exchange(run, resumable=resumable, stream=True, stream_options=options)
    (one,) = exchange.generations

    events = await _events(run, exchange, Output(one.id, [], "", "stop"))

    assert len(events) == num_events
    assert run.submitted()[one.id].ended == "stop"
    assert run.seen.first_tokens == []


async def test_another_prompt_is_a_conflict_and_is_dropped() -> None:
    """A stream does not go on behind another prompt; nothing keeps running for it."""
    run = ClientRun()
    await run.ready()
    exchange = Exchange(run, resumable=_resumable(prompt_hash="other"), stream=True)

    with pytest.raises(Conflict) as caught:
        await _events(run, exchange)

    assert caught.value.param == "resume.prompt_hash"
    assert run.cancelled() == [exchange.generations[0].id]


async def test_after_a_death_a_resumed_request_goes_on_from_all_its_tokens() -> None:
    """The next engine gets the other server's tokens and those since, and what has its logprobs."""
    run = ClientRun()
    await run.ready()
    resume = dataclasses.replace(run.request(), resume=[1, 2, 3], is_resumable=True)
    one = run.submit_one(resume)
    assert run.submitted()[one.id].resume == [1, 2, 3]
    assert run.submitted()[one.id].num_scored == 0
    run.tell(Started(one.id, 3, num_shown=1))
    token = TokenLogprob(2, -1.0, b"b")
    run.tell(Output(one.id, [], logprobs=[Logprobs(token, [])], num_shown=1))

    await run.die_and_come_back()

    again = run.submitted()[one.id]
    assert (again.resume, again.num_scored) == ([1, 2, 3], 2)

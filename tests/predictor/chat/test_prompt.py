"""From a checked request to what the engine is asked: nothing is dropped in silence."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from kserve_llamacpp.chat import prompt as chat_prompt
from kserve_llamacpp.chat.prompt import chat_requests, completion_requests
from kserve_llamacpp.engine_client.generation import Request
from kserve_llamacpp.wire.frames import ModelFacts, SamplingParams
from openai_protocol.chat_template import ChatTemplate
from openai_protocol.errors import InvalidRequest
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest, Message
from tests.predictor.fake_process import FACTS

_PLAIN = ChatTemplate("{{ messages[0].content }}", "<s>", "</s>")


def _chat(template: ChatTemplate = _PLAIN, facts: ModelFacts = FACTS, **fields: Any) -> Request:
    body = ChatCompletionRequest(messages=[{"role": "user", "content": "hi"}], **fields)

    async def render(messages: list[Message]) -> str:
        return template.render(messages)

    (request, *_) = asyncio.run(chat_requests(body, render, facts, "req-1"))
    return request


def _texts(prompt: Any, **fields: Any) -> list[Request]:
    return completion_requests(CompletionRequest(prompt=prompt, **fields), FACTS, "req-1")


def _refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        _chat(**fields)
    return caught.value


def test_a_chat_becomes_one_prompt() -> None:
    """A chat is rendered, keeps its request's id, and is blamed as `messages`."""
    request = _chat(max_completion_tokens=9, stop="x")

    assert (request.prompt, request.request_id, request.field) == ("hi", "req-1", "messages")
    assert (request.max_tokens, request.stops) == (9, ["x"])


def test_each_prompt_of_a_completion_is_a_request() -> None:
    """Several prompts are as many requests, texts and token ids alike, blamed as `prompt`."""
    assert [request.prompt for request in _texts(["a", "b"])] == ["a", "b"]
    (request,) = _texts([1, 2])
    assert (request.prompt, request.field, request.add_special) == ([1, 2], "prompt", True)


@pytest.mark.parametrize(
    ("source", "bos_token", "add_special"),
    [
        ("{{ bos_token }}x", "<s>", False),
        ("x", "<s>", True),
        ("x{{ bos_token }}", "<s>", True),
        ("x", "", True),
    ],
)
def test_the_first_token_is_never_doubled(source: str, bos_token: str, add_special: bool) -> None:
    """The tokenizer adds the first token only where the template has not written it."""
    facts = msgspec.structs.replace(FACTS, bos_token=bos_token)

    assert _chat(ChatTemplate(source, bos_token, "</s>"), facts).add_special is add_special


def test_what_is_refused_is_not_rendered() -> None:
    """The checks that cost nothing come before the template, which may cost much."""
    body = ChatCompletionRequest(messages=[{"role": "user", "content": "hi"}], min_tokens=9)
    body.max_tokens = 1

    async def render(_: list[Message]) -> str:
        raise AssertionError("it is rendered")

    with pytest.raises(InvalidRequest) as caught:
        asyncio.run(chat_requests(body, render, FACTS, "req-1"))
    assert caught.value.param == "min_tokens"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("modalities", ["text", "audio"]),
        ("response_format", {"type": "json_object"}),
        ("suffix", "end"),
        ("tool_choice", "required"),
        ("tools", [{"type": "function"}]),
    ],
)
def test_what_would_be_ignored_is_refused_by_name(name: str, value: Any) -> None:
    """A parameter that is not supported is refused, not ignored: the answer would be another."""
    error = _refusal(**{name: value})

    assert (error.status, error.code, error.param) == (400, "unsupported_parameter", name)
    assert f"'{name}'" in error.message


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"logprobs": False},
        {"tools": []},
        {"tool_choice": "none"},
        {"parallel_tool_calls": True},
        {"response_format": {"type": "text"}},
        {"top_logprobs": 0},
        {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "user": "me"},
        {"whatever": None},
    ],
)
def test_what_changes_nothing_is_taken(fields: dict[str, Any]) -> None:
    """Parameters at the values that they have anyway, and those of accounting, are accepted."""
    assert _chat(**fields).prompt == "hi"


def test_an_unknown_parameter_is_refused_by_name() -> None:
    """A misspelt parameter is told, with its name cut to a bounded length."""
    error = _refusal(temprature=1)
    long = _refusal(**{"x" * 1000: 1})

    assert (error.code, error.param) == ("unknown_parameter", "temprature")
    assert len(long.message) < 200


def _conflict(*args: Any, **fields: Any) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        _texts(*args, **fields)
    assert caught.value.status == 400
    return caught.value.code, caught.value.param


def test_each_choice_is_a_request_that_draws_for_itself() -> None:
    """The choices of a prompt share it and their seed; only their number differs."""
    requests = _texts(["a", "b"], n=3, seed=5)

    assert [request.prompt for request in requests] == ["a"] * 3 + ["b"] * 3
    assert [request.sampling.choice for request in requests] == [0, 1, 2, 0, 1, 2]
    assert {request.sampling.seed for request in requests} == {5}


def test_choices_without_a_seed_share_a_random_one() -> None:
    """One seed is made for the whole request."""
    assert len({request.sampling.seed for request in _texts("a", n=4)}) == 1


def test_best_of_generates_more_than_are_wanted() -> None:
    """`best_of` says how many choices are generated, with the logprobs that rank them."""
    requests = _texts("a", n=2, best_of=4)

    assert [request.sampling.logprobs for request in requests] == [0] * 4
    assert [request.sampling.logprobs for request in _texts("a", n=2, best_of=2)] == [None] * 2


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"n": 3, "best_of": 2}, "invalid_value", "best_of"),
        ({"best_of": 2, "stream": True}, "invalid_value", "best_of"),
        ({"echo": True, "logprobs": 0}, "unsupported_parameter", "echo"),
        ({"min_tokens": 5, "max_tokens": 4}, "invalid_value", "min_tokens"),
        ({"stop_token_ids": [3, 258]}, "invalid_value", "stop_token_ids[1]"),
    ],
)
def test_what_cannot_be_together_is_refused_by_name(
    fields: dict[str, Any], code: str, param: str
) -> None:
    """Parameters that contradict each other, or the model, name the one to change."""
    assert _conflict("a", **fields) == (code, param)


def test_an_echo_of_token_ids_is_refused() -> None:
    """A prompt of token ids cannot be repeated: the server has no vocabulary."""
    assert _conflict([1, 2], echo=True) == ("unsupported_parameter", "echo")
    assert len(_texts("a", echo=True)) == 1


def test_top_logprobs_need_logprobs() -> None:
    """Alternatives alone make no answer: OpenAI refuses them, too."""
    error = _refusal(top_logprobs=3)

    assert (error.code, error.param) == ("invalid_value", "top_logprobs")
    assert _chat(logprobs=True, top_logprobs=3).sampling.logprobs == 3
    assert _chat(logprobs=True).sampling.logprobs == 0
    assert _chat(logprobs=False, top_logprobs=0).sampling.logprobs is None


def test_sampling_parameters_arrive() -> None:
    """Every parameter of sampling reaches the engine with its value."""
    fields = {
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.25,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.75,
        "frequency_penalty": -0.5,
        "seed": 11,
        "ignore_eos": True,
        "min_tokens": 3,
        "stop_token_ids": [4, 5],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "typical_p": 0.5,
        "dry_multiplier": 0.5,
        "dry_base": 1.25,
        "dry_allowed_length": 4,
        "dry_penalty_last_n": -1,
        "xtc_probability": 0.5,
        "xtc_threshold": 0.25,
    }
    sampling = _chat(**fields).sampling

    assert {name: getattr(sampling, name) for name in fields} == fields


def test_sequence_breakers_arrive() -> None:
    """DRY's breakers are llama-server's unless they are given; none is a list, too."""
    assert _chat(dry_sequence_breakers=["a", "b"]).sampling.dry_sequence_breakers == ("a", "b")
    assert _chat(dry_sequence_breakers=[]).sampling.dry_sequence_breakers == ()
    assert _chat().sampling.dry_sequence_breakers == ("\n", ":", '"', "*")


def test_zero_is_a_value() -> None:
    """A parameter of 0 is not taken for one that was left out."""
    sampling = _chat(temperature=0, min_p=0, presence_penalty=0, seed=0).sampling

    assert (sampling.temperature, sampling.min_p, sampling.seed) == (0, 0, 0)


def test_what_is_left_out_has_the_documented_defaults() -> None:
    """Without parameters the engine samples at OpenAI's temperature, and cuts off the tail."""
    sampling = _chat(temperature=None).sampling

    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    assert sampling.min_p == chat_prompt.DEFAULT_MIN_P
    assert msgspec.structs.replace(sampling, seed=0, min_p=0.0) == SamplingParams()


def test_top_k_of_minus_one_is_no_limit() -> None:
    """-1 is vLLM's way to write what is 0 here."""
    assert _chat(top_k=-1).sampling.top_k == 0


def test_requests_without_a_seed_differ() -> None:
    """A request without a seed gets a random one of its own; all are in the engine's range."""
    seeds = [_chat().sampling.seed for _ in range(20)]

    assert len(set(seeds)) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_logit_bias_is_by_token_id() -> None:
    """Biases arrive under numbers, the largest token included."""
    biases = _chat(logit_bias={"0": -100, "257": 1.5}).sampling.logit_bias

    assert biases == {0: -100.0, 257: 1.5}


@pytest.mark.parametrize("key", ["258", "-1", "hello", "", "1.0", " 1", "9" * 5000])
def test_a_logit_bias_for_no_token_is_refused(key: str) -> None:
    """A key that is no token id of this model is the client's mistake, however long it is."""
    error = _refusal(logit_bias={key: 1})

    assert (error.status, error.code, error.param) == (400, "invalid_value", "logit_bias")
    assert "below 258" in error.message
    assert len(error.message) < 200


def test_choices_share_one_prompt() -> None:
    """128 choices of a prompt of eight megabytes hold it once."""
    requests = _texts("x" * (8 << 20), n=128)

    assert len(requests) == 128
    assert len({id(request.prompt) for request in requests}) == 1


def test_an_echo_is_bounded() -> None:
    """A prompt that an answer would repeat 128 times is refused where that is too much."""
    assert len(_texts("x" * (8 << 20), n=1, echo=True)) == 1
    with pytest.raises(InvalidRequest) as caught:
        _texts(["x" * (40 << 10)] * 2, n=128, echo=True)
    assert caught.value.param == "echo"

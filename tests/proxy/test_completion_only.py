"""What dialects of completion-only upstreams share: prompts, parameters, reasons, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_protocol.errors import ApiError, BadGateway, InvalidRequest
from openai_proxy.dialects.asked import posted
from openai_proxy.dialects.base import AnswerHead, PassedError
from openai_proxy.dialects.kserve_v1 import KServeV1Dialect
from openai_proxy.dialects.kserve_v2 import KServeV2Dialect
from openai_proxy.dialects.model_paths import model_segment
from openai_proxy.dialects.options import truth
from openai_proxy.dialects.outcomes import finish_reason
from openai_proxy.dialects.prompts import num_texts, prompt_of, texts_of
from openai_proxy.dialects.triton import TritonDialect
from openai_proxy.dialects.upstream_errors import protocol_error
from openai_proxy.dialects.vocabulary import Vocabulary, same, vocabulary
from openai_proxy.dialects.withheld import PromptEcho
from tests.proxy.calls import chat, text
from tests.proxy.translating import render

JSON = "application/json"


def test_a_chat_is_rendered() -> None:
    """A chat becomes the text that its template makes of it."""
    assert texts_of(chat(), render) == ["<user>hi<assistant>"]


def test_a_chat_without_a_template_is_refused() -> None:
    """Without a template a chat is refused, with a code and a way out."""
    with pytest.raises(InvalidRequest) as refused:
        texts_of(chat(), None)
    assert (refused.value.status, refused.value.code) == (400, "no_chat_template")
    assert "/v1/completions" in refused.value.message


def test_token_ids_are_refused() -> None:
    """An upstream that takes text gets no token ids."""
    with pytest.raises(InvalidRequest) as refused:
        texts_of(text(prompt=[1, 2]), None)
    assert (refused.value.param, refused.value.code) == ("prompt", "unsupported_value")


def test_several_prompts_are_refused_where_one_fits() -> None:
    """An upstream that takes one prompt is not sent the first of several."""
    assert prompt_of(text(prompt=["a"]), None) == "a"
    with pytest.raises(InvalidRequest) as refused:
        prompt_of(text(prompt=["a", "b"]), None)
    assert refused.value.param == "prompt"


def test_choices_multiply_up_to_a_limit() -> None:
    """Each prompt gets its choices; more texts than the limit are refused."""
    assert num_texts(text(prompt=["a", "b"], n=64)) == 128
    with pytest.raises(InvalidRequest) as refused:
        num_texts(text(prompt=["a", "b"], n=65))
    assert refused.value.param == "n"


@pytest.mark.parametrize(
    ("name", "segment"),
    [("llama3:8b", "llama3:8b"), ("org/m x", "org%2Fm%20x"), ("é?#", "%C3%A9%3F%23")],
)
def test_a_model_is_one_segment(name: str, segment: str) -> None:
    """Whatever a model is called, its name stays one segment of the path."""
    assert model_segment(chat(upstream_model=name), None) == segment


@pytest.mark.parametrize("name", [".", ".."])
def test_a_model_is_no_way_out(name: str) -> None:
    """A name that means another directory is no model."""
    with pytest.raises(InvalidRequest) as refused:
        model_segment(chat(upstream_model=name), None)
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")


def test_a_request_without_a_model() -> None:
    """The upstream's own model is meant where there is one; else the field is missing."""
    assert model_segment(chat(upstream_model=None), "usual") == "usual"
    with pytest.raises(InvalidRequest) as refused:
        model_segment(chat(upstream_model=None), None)
    assert (refused.value.param, refused.value.code) == ("model", "missing_required_parameter")


def test_headers_about_another_body_are_dropped() -> None:
    """What a client says of its body would make the upstream misread ours."""
    headers = [
        ("inference-header-content-length", "5"),
        ("ce-type", "x"),
        ("authorization", "Bearer k"),
        ("x-tenant", "blue"),
    ]
    assert posted(chat(headers=headers), "/infer", {}).headers == [
        ("x-tenant", "blue"),
        ("content-type", "application/json"),
    ]


def test_parameters_get_the_upstreams_names() -> None:
    """Parameters are renamed; defaults hold where a request says nothing else."""
    names = {**same("temperature"), "max_tokens": "max_new_tokens", "stop": "stop_words"}
    vocabulary = Vocabulary(names, {"max_new_tokens": 9, "top_k": 3})
    asked = chat(temperature=0.5, stop=["a", "b"]).asked
    assert asked is not None
    assert vocabulary.parameters(asked) == {
        "temperature": 0.5,
        "stop_words": ["a", "b"],
        "max_new_tokens": 9,
        "top_k": 3,
    }


def test_both_limits_are_one() -> None:
    """The newer name of the token limit wins, as it does at OpenAI."""
    asked = chat(max_tokens=5, max_completion_tokens=6).asked
    assert asked is not None
    assert Vocabulary(same("max_tokens")).parameters(asked) == {"max_tokens": 6}


@pytest.mark.parametrize("name", ["temperature", "max_completion_tokens", "n", "tools"])
def test_what_an_upstream_does_not_know_is_refused(name: str) -> None:
    """A parameter without a name at the upstream is refused by its own, or dropped."""
    value = {"tools": [{"type": "function"}], "temperature": 0.5}.get(name, 2)
    asked = chat(**{name: value}).asked
    assert asked is not None
    with pytest.raises(InvalidRequest) as refused:
        Vocabulary({}).parameters(asked)
    assert (refused.value.param, refused.value.code) == (name, "unsupported_parameter")
    assert Vocabulary({}, unsupported="drop").parameters(asked) == {}


def test_what_a_dialect_does_itself_is_not_sent() -> None:
    """A parameter that the dialect sees to is neither refused nor sent."""
    asked = chat(n=3).asked
    assert asked is not None
    assert Vocabulary({}).parameters(asked, done_here=("n",)) == {}


def test_a_list_where_only_scalars_fit() -> None:
    """A list of one is sent as that one; a longer one is refused, or dropped."""
    names = same("stop")
    one, two = chat(stop=["a"]).asked, chat(stop=["a", "b"]).asked
    assert one is not None
    assert two is not None
    assert Vocabulary(names, only_scalars=True).parameters(one) == {"stop": "a"}
    with pytest.raises(InvalidRequest) as refused:
        Vocabulary(names, only_scalars=True).parameters(two)
    assert (refused.value.param, refused.value.code) == ("stop", "unsupported_value")
    assert Vocabulary(names, unsupported="drop", only_scalars=True).parameters(two) == {}


@given(st.text(max_size=6), st.text(max_size=12), st.lists(st.integers(0, 20), max_size=5))
def test_an_echo_is_taken_off_in_any_pieces(prompt: str, rest: str, cuts: list[int]) -> None:
    """However a text is cut, a prompt at its start goes, and nothing else does."""
    for whole in (prompt + rest, rest):
        echo = PromptEcho(prompt)
        ends = [0, *sorted(min(place, len(whole)) for place in cuts), len(whole)]
        shown = "".join(echo.pass_on(whole[a:b]) for a, b in pairwise(ends))
        assert shown + echo.rest() == whole.removeprefix(prompt)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("length", "length"),
        ("max_tokens", "length"),
        ("eos_token", "stop"),
        ("stop_sequence", "stop"),
        ("stop", "stop"),
        (["length"], "length"),
        ("None", None),
        (None, None),
        ("", None),
    ],
)
def test_finish_reasons(told: object, expected: str | None) -> None:
    """Each name of a reason is OpenAI's, or none where the text goes on."""
    assert finish_reason(told) == expected


def test_an_aborted_text_has_failed() -> None:
    """A text that its server gave up is not passed off as a whole one."""
    with pytest.raises(BadGateway):
        finish_reason("abort")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b'{"error": "too hot"}', (400, "upstream_error", None)),
        (404, b'{"error": "Model with name m does not exist."}', (404, "model_not_found", "model")),
        (404, b'{"detail": "Not Found"}', (404, "model_not_found", "model")),
        (404, b"", (404, "model_not_found", "model")),
        (422, b'{"error": "Input validation error"}', (400, "upstream_error", None)),
        (
            422,
            b'{"detail": [{"loc": ["body", "inputs"], "msg": "bad", "type": "x"}]}',
            (400, "upstream_error", "inputs"),
        ),
        (424, b'{"error": "Request failed during generation"}', (502, "upstream_error", None)),
        (424, b"", (502, "upstream_error", None)),
        (429, b'{"error": "Model is overloaded"}', (429, "rate_limit_exceeded", None)),
        (429, b"", (429, "rate_limit_exceeded", None)),
        (500, b'{"error": "ValueError : /secret/path"}', (502, "upstream_error", None)),
        (503, b'{"error": "Model with name m is not ready."}', (503, "upstream_error", None)),
    ],
)
def test_refusals(status: int, body: bytes, expected: tuple[int, str, str | None]) -> None:
    """Each error has a status, a code and a field that OpenAI's clients understand."""
    error = protocol_error(AnswerHead(status, JSON), body)
    assert (error.status, str(error.code), error.param) == expected
    assert "secret" not in error.message


def test_an_error_in_an_event_is_one() -> None:
    """Triton frames an error as an event, under the error's own status."""
    error = protocol_error(AnswerHead(400, "text/event-stream"), b'data: {"error":"too hot"}\n\n')
    assert error.message == "too hot"


def test_our_own_envelope_passes() -> None:
    """An error that has OpenAI's form already passes with its code."""
    body = json.dumps({"error": {"message": "m", "type": "t", "code": "queue_full"}}).encode()
    error = protocol_error(AnswerHead(429, JSON, retry_after="3"), body)
    assert isinstance(error, PassedError)
    assert (error.body(), error.headers()) == (body, {"retry-after": "3"})


@given(
    st.integers(201, 599), st.sampled_from([JSON, "text/event-stream", ""]), st.binary(max_size=99)
)
def test_any_error_is_an_envelope(status: int, media_type: str, body: bytes) -> None:
    """Whatever is said under whatever status, an error with a code comes out."""
    error = protocol_error(AnswerHead(status, media_type), body)
    assert isinstance(error, ApiError)
    assert error.status >= 400
    assert error.code


def test_options_as_text() -> None:
    """Options come as text from flags and variables, and mean what mappings mean in a file."""
    asked = chat(temperature=0.5, max_tokens=4).asked
    assert asked is not None
    as_text = vocabulary("temperature, max_tokens = limit", '{"top_k": 3}', {}, "refuse")
    as_mappings = vocabulary(
        {"temperature": "temperature", "max_tokens": "limit"}, {"top_k": 3}, {}, "refuse"
    )
    expected = {"temperature": 0.5, "limit": 4, "top_k": 3}
    assert as_text.parameters(asked) == as_mappings.parameters(asked) == expected
    assert truth("x", "True") is truth("x", True) is True
    assert truth("x", " false ") is False


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: KServeV1Dialect(instance="other"), "instance"),
        (lambda: KServeV1Dialect(strip_prompt="perhaps"), "strip_prompt"),
        (lambda: KServeV2Dialect(api="other"), "api"),
        (lambda: KServeV2Dialect(is_batched=""), "is_batched"),
        (lambda: TritonDialect(backend="other"), "backend"),
        (lambda: TritonDialect(parameters="a b"), "parameters"),
        (lambda: TritonDialect(defaults="[1]"), "defaults"),
        (lambda: TritonDialect(defaults="nothing"), "defaults"),
    ],
)
def test_wrong_options(make: Callable[[], object], option: str) -> None:
    """An option that cannot be is refused by its name, with what it can be."""
    with pytest.raises(ValueError, match=rf"its option {option} must "):
        make()

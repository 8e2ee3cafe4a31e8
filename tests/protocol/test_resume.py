"""The comments of a stream that can be resumed, and the field that resumes it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_protocol.errors import InvalidRequest
from openai_protocol.resume import (
    ResumeReader,
    StreamHead,
    choice_comment,
    head_comment,
    parse_resume,
    usage_comment,
    without_resume,
)
from openai_protocol.sse import EventSplitter, event, split_events

HEAD = StreamHead(
    id="chatcmpl-1", created=5, seed=-3, fingerprint="fp_1", model_hash="m", prompt_hash="p"
)
FIELD: dict[str, Any] = {**HEAD.model_dump(), "choices": [{"index": 0, "tokens": [1, 2]}]}
ONE = choice_comment(0, [1]) + event(b"{}")


def _read(*events: bytes) -> ResumeReader:
    reader = ResumeReader()
    for raw in events:
        for one in split_events(raw):
            reader.read(one)
    return reader


def test_a_reader_has_all_tokens_of_each_choice() -> None:
    """Each comment has the tokens since the last one of its choice; a reader joins them."""
    reader = _read(
        head_comment(HEAD) + choice_comment(1, []) + event(b"{}"),
        choice_comment(1, [7, 8]) + event(b"{}"),
        choice_comment(0, [9]) + event(b"{}"),
        choice_comment(1, [3], "length") + event(b"{}"),
        choice_comment(1, [], "length", ended=True) + event(b"{}"),
    )

    assert reader.resume() == {
        **HEAD.model_dump(),
        "choices": [
            {"index": 1, "tokens": [7, 8, 3], "finish_reason": "length", "ended": True},
            {"index": 0, "tokens": [9]},
        ],
        "usage": False,
    }


def test_a_reader_goes_on_over_the_answer_that_resumes() -> None:
    """What a resumed stream tells is added; its head stands for the next resume."""
    other = HEAD.model_copy(update={"fingerprint": "fp_2"})
    reader = _read(head_comment(HEAD) + ONE, head_comment(other) + ONE, usage_comment())

    resume = reader.resume()

    assert resume is not None
    assert resume["fingerprint"] == "fp_2"
    assert resume["choices"] == [{"index": 0, "tokens": [1, 1]}]
    assert resume["usage"] is True


def test_other_comments_and_data_say_nothing() -> None:
    """Keep-alives and what stands in an answer's text are no comments of this kind."""
    reader = _read(b": ping\n\n", b": resumed\n\n", event(b'{"text":": resume {}"}'))

    assert reader.resume() is None


@pytest.mark.parametrize(
    "line",
    [
        b": resume ",
        b": resume {",
        b": resume []",
        b": resume " + b"[" * 100_000,
        b": resume \xff",
        b': resume {"id":"a"}',
        b': resume {"index":-1}',
        b': resume {"index":0,"tokens":["a"]}',
    ],
)
def test_a_comment_that_cannot_be_understood_is_an_error(line: bytes) -> None:
    """A reader never resumes from what it has not understood."""
    with pytest.raises(ValueError, match=r"."):
        ResumeReader().read(line)


@given(
    parts=st.lists(
        st.tuples(
            st.integers(0, 5),
            st.lists(st.integers(0, 2**31 - 1), max_size=4),
            st.sampled_from([(None, False), ("stop", False), ("length", True)]),
        ),
        max_size=8,
    )
)
def test_what_a_reader_has_can_be_sent(
    parts: list[tuple[int, list[int], tuple[str | None, bool]]],
) -> None:
    """The field made from any comments passes its own check, with nothing lost."""
    events = [choice_comment(index, tokens, *end) + event(b"{}") for index, tokens, end in parts]
    field = _read(head_comment(HEAD) + event(b"{}"), *events).resume()

    parsed = parse_resume(json.loads(json.dumps(field)))

    assert parsed.id == HEAD.id
    for choice in parsed.choices:
        told = [token for at, tokens, _ in parts for token in tokens if at == choice.index]
        assert choice.tokens == told


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"seed": None}, "resume.seed", "invalid_type"),
        ({"seed": 2**63}, "resume.seed", "integer_above_max_value"),
        ({"id": ""}, "resume.id", "invalid_value"),
        ({"id": 'x"\n'}, "resume.id", "invalid_value"),
        ({"created": -1}, "resume.created", "integer_below_min_value"),
        ({"more": 1}, "resume.more", "unknown_parameter"),
        ({"choices": 1}, "resume.choices", "invalid_type"),
        ({"choices": [{}]}, "resume.choices[0].index", "missing_required_parameter"),
        (
            {"choices": [{"index": 0, "tokens": [1, -1]}]},
            "resume.choices[0].tokens[1]",
            "integer_below_min_value",
        ),
        (
            {"choices": [{"index": 0, "tokens": [True]}]},
            "resume.choices[0].tokens[0]",
            "invalid_type",
        ),
        (
            {"choices": [{"index": 0, "finish_reason": "x"}]},
            "resume.choices[0].finish_reason",
            "invalid_value",
        ),
        ({"choices": [{"index": 0, "ended": True}]}, "resume.choices[0]", "invalid_value"),
    ],
)
def test_what_is_wrong_in_the_field_is_named(change: dict[str, Any], param: str, code: str) -> None:
    """A malformed field is a bad request that names the place, with a stable code."""
    with pytest.raises(InvalidRequest) as caught:
        parse_resume({**FIELD, **change})

    assert (caught.value.param, caught.value.code) == (param, code)


@pytest.mark.parametrize("value", [[], "x", 1, True])
def test_the_field_is_an_object(value: Any) -> None:
    """What is no object is refused by the field's name."""
    with pytest.raises(InvalidRequest) as caught:
        parse_resume(value)

    assert (caught.value.param, caught.value.status) == ("resume", 400)


def test_a_body_loses_the_field_alone() -> None:
    """However the name is written; what has it deeper inside, and all else, stays."""
    body = b'{"r\\u0065sume": {}, "a": [0.1, "\\u00e9", null], "metadata": {"resume": "x"}}'

    assert json.loads(without_resume(body)) == {
        "a": [0.1, "é", None],
        "metadata": {"resume": "x"},
    }


def test_comments_and_data_are_one_event() -> None:
    """A stream that is cut between a comment and its data has lost both, or neither."""
    raw = head_comment(HEAD) + choice_comment(0, [1]) + event(b'{"a":1}')

    for cut in range(1, len(raw)):
        splitter = EventSplitter()
        assert splitter.feed(raw[:cut]) == b""
        assert splitter.feed(raw[cut:]) == raw

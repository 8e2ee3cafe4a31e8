"""The `openai` dialect: pure functions on bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_protocol.errors import ApiError
from openai_proxy.dialects.base import AnswerHead, Call
from openai_proxy.dialects.openai import OpenAIDialect, OpenAIStream

EVENTS = [b'data: {"a":1}\n\n', b': note\ndata: {"b":2}\n\n', b": ping\n\n", b"data: [DONE]\n\n"]
PASSED = b'data: {"a":1}\n\ndata: {"b":2}\n\ndata: [DONE]\n\n'


def fed(*chunks: bytes) -> tuple[bytes, bool]:
    """What a stream passes on, and whether it ended well."""
    parser = OpenAIStream()
    passed = b""
    for chunk in chunks:
        if parser.is_complete:
            break
        passed += parser.feed(chunk)
    try:
        parser.finish()
    except ApiError as error:
        return passed, error.code != "upstream_stream_broken"
    return passed, True


@given(st.lists(st.integers(0, len(b"".join(EVENTS))), max_size=12))
def test_any_cut_passes_the_same(cuts: list[int]) -> None:
    """However the network cuts a stream, the same events pass, and its end is seen."""
    whole = b"".join(EVENTS)
    ends = [0, *sorted(cuts), len(whole)]
    chunks = [whole[a:b] for a, b in pairwise(ends)]
    assert fed(*chunks) == (PASSED, True)


@given(st.binary(max_size=200))
def test_garbage_never_passes_as_a_good_end(garbage: bytes) -> None:
    """Whatever bytes come, the parser neither fails nor takes them for a good end."""
    passed, is_good = fed(b'data: {"a":1}\n\n', garbage)
    assert passed.startswith(b'data: {"a":1}\n\n')
    if is_good:
        assert b"[DONE]" in garbage or b"error" in garbage


def test_events_before_a_broken_one_pass() -> None:
    """What came well before a stream breaks is passed on, also from the same chunk."""
    assert fed(b'data: {"a":1}\n\ndata: {"b":\n\ndata: {"c":1}\n\n') == (
        b'data: {"a":1}\n\n',
        False,
    )


@pytest.mark.parametrize("space", [b"", b" "])
def test_an_error_event_ends_the_stream(space: bytes) -> None:
    """An error event is an error at the end, alone in its chunk or not, however it is spaced."""
    error = b"data: {" + space + b'"error":{"message":"m","type":"t","code":"engine_failed"}}\n\n'
    good = b'data: {"a":1}\n\n'
    assert fed(good, error, good) == (good, True)
    assert fed(good + error + good) == (good, True)


def test_an_endless_event_is_broken() -> None:
    """An event that never ends is given up at the size limit."""
    assert fed(*([b"x" * 1024 * 1024] * 9)) == (b"", False)


def test_fields_beside_data_pass() -> None:
    """Event names and ids pass with their data; events without data do not."""
    event = b'event: delta\nid: 7\ndata: {"a":1}\n\n'
    assert fed(b"retry: 5\n\nevent: x\n\n" + event + b"data:[DONE]\n\n") == (
        event + b"data: [DONE]\n\n",
        True,
    )


def test_request() -> None:
    """The path is mapped, the body untouched, hop-by-hop and credential headers dropped."""
    headers = [
        ("Connection".lower(), "keep-alive, X-Hop"),
        ("x-hop", "1"),
        ("authorization", "Bearer k"),
        ("content-length", "2"),
        ("x-tenant", "blue"),
    ]
    request = OpenAIDialect().request(Call("/v1/chat/completions", b"{}", headers=headers))
    assert request.path == "/chat/completions"
    assert request.headers == [("x-tenant", "blue"), ("content-type", "application/json")]
    assert request.body == b"{}"


@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [("3", "3"), ("0", "1"), ("soon", None), ("9999999", None), (None, None)],
)
def test_retry_after(retry_after: str | None, expected: str | None) -> None:
    """Retry-After passes where it is a sensible number of seconds."""
    head = AnswerHead(503, "text/plain", retry_after=retry_after)
    error = OpenAIDialect().error(head, b"")
    assert error.status == 503
    assert error.headers().get("retry-after") == expected


@given(st.integers(201, 599), st.binary(max_size=100))
def test_any_error_is_an_envelope(status: int, body: bytes) -> None:
    """Whatever an upstream says under whatever status, an error with a code comes out."""
    error = OpenAIDialect().error(AnswerHead(status, ""), body)
    assert error.status >= 400
    assert error.code
    assert error.status == status or status < 400 or status >= 500


def test_model_ids_take_only_what_is_a_model() -> None:
    """Entries without a name are left out."""
    assert OpenAIDialect().models(b'{"data": [{"id": "a"}, {"id": 1}, 7, {"id": "b"}]}') == (
        "a",
        "b",
    )
    assert OpenAIDialect().models(b"[]") is None

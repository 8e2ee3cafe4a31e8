"""Server-sent events: cut into whole events, wherever the chunks end."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_protocol.sse import DONE, EventSplitter, comment, data_of, event, split_events

_line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
_lines = st.text(alphabet="ab{}:é ", min_size=1, max_size=6).map(
    lambda text: b"data:" + text.encode()
)
_events = st.lists(
    st.lists(_lines | st.just(b": comment"), min_size=1, max_size=3), min_size=1, max_size=5
)


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def _feed(chunks: list[bytes]) -> list[bytes]:
    splitter = EventSplitter()
    events = []
    for chunk in chunks:
        events += split_events(splitter.feed(chunk))
    assert splitter.pending.strip(b"\r\n") == b""
    return events


@given(
    events=_events,
    line_end=_line_ends,
    places=st.lists(st.integers(min_value=0, max_value=10_000), max_size=30),
)
def test_any_chunking_gives_the_same_events(
    events: list[list[bytes]], line_end: bytes, places: list[int]
) -> None:
    """Wherever a stream is cut, and however its lines end, the same events come out whole."""
    stream = b"".join(b"".join(line + line_end for line in lines) + line_end for lines in events)

    assert _feed(_cut(stream, places)) == [b"\n".join(lines) for lines in events]


@given(
    pieces=st.lists(st.tuples(_lines, _line_ends, _line_ends), min_size=1, max_size=6),
    places=st.lists(st.integers(min_value=0, max_value=10_000), max_size=30),
)
def test_line_ends_may_be_mixed(
    pieces: list[tuple[bytes, bytes, bytes]], places: list[int]
) -> None:
    """An event may end with one kind of line end and be followed by a blank line of another."""
    stream = b"".join(
        # CR and LF together are one line end
        line + end + (b"\r\n" if end == b"\r" and blank == b"\n" else blank)
        for line, end, blank in pieces
    )

    assert _feed(_cut(stream, places)) == [line for line, _, _ in pieces]


def test_an_event_is_passed_on_as_soon_as_it_is_whole() -> None:
    """Nothing waits for the next event: the blank line is enough, its bytes unchanged."""
    splitter = EventSplitter()

    assert splitter.feed(b"data: 1\n") == b""
    assert splitter.feed(b"\ndata: 2\r\n\r") == b"data: 1\n\ndata: 2\r\n\r"
    assert splitter.feed(b"\n" + DONE) == DONE


def test_what_is_held_back_is_bounded() -> None:
    """An event over the limit is an error, not memory; a whole one of the same size is none."""
    splitter = EventSplitter(max_event_bytes=100)
    whole = event(b"x" * 200)

    assert splitter.feed(whole) == whole
    splitter.feed(b"data: " + b"x" * 94)
    with pytest.raises(ValueError, match="longer than the limit"):
        splitter.feed(b"x")


@pytest.mark.parametrize(
    ("raw", "data"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\n\n", b"{}"),
        (b"data:  x\n\n", b" x"),
        (b"data: a\r\ndata: b\r\n\r\n", b"a\nb"),
        (b"id: 7\ndata: a\nevent: x\n\n", b"a"),
        (b": comment\n\n", None),
        (b"data:\n\n", b""),
        (b"database: x\n\n", None),
    ],
)
def test_an_events_data_is_its_data_lines(raw: bytes, data: bytes | None) -> None:
    """Data lines lose one space and are joined by newlines; without one there is no data."""
    assert data_of(raw) == data


def test_what_is_written_can_be_read() -> None:
    """An event that this module frames gives its data back, and a comment none."""
    stream = event(b'{"a":1}') + comment("alive") + DONE

    assert [data_of(raw) for raw in split_events(stream)] == [b'{"a":1}', None, b"[DONE]"]

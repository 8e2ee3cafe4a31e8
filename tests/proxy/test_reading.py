"""What translating dialects read streams with: pieces, and text that may not be shown yet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openai_protocol.errors import BadGateway
from openai_proxy.dialects.reading import Cutter, Events, Lines
from openai_proxy.dialects.withheld import GrowingText, StopText, without_stop
from tests.proxy.translating import CUTS, pieces

LINES = b'{"a":1}\n\n {"b":2}\r\n\n{"c":3}'
EVENTS = (
    b': note\n\ndata: {"a":1}\n\nevent: x\ndata:two\ndata: \r\ndata:  lines\r\n\r\nid: 7\n\ndata: c'
)


def cut(cutter: Cutter, *chunks: bytes) -> list[bytes]:
    """All pieces of a stream, the unfinished last one included."""
    found = [piece for chunk in chunks for piece in cutter.feed(chunk)]
    return found + cutter.rest()


@given(CUTS)
def test_any_cut_gives_the_same_lines(cuts: list[int]) -> None:
    """However the network cuts NDJSON, the same lines come out, blank ones left out."""
    assert cut(Lines(), *pieces(LINES, cuts)) == [b'{"a":1}', b' {"b":2}\r', b'{"c":3}']


@given(CUTS)
def test_any_cut_gives_the_same_events(cuts: list[int]) -> None:
    """However the network cuts events, the same data comes out, comments left out."""
    assert cut(Events(), *pieces(EVENTS, cuts)) == [b'{"a":1}', b"two\n\n lines", b"c"]


def test_an_endless_line_is_given_up() -> None:
    """A line past the limit is an error, also where it comes in small pieces."""
    lines = Lines(max_bytes=10)
    assert lines.feed(b"0123456789") == []
    with pytest.raises(ValueError, match="longer"):
        lines.feed(b"x")


def test_what_is_no_event_is_an_error() -> None:
    """A page of HTML is not an event without data."""
    with pytest.raises(ValueError, match="no event"):
        Events().feed(b"<html>\n\n")


STOPS = ("END", "ENDE", "\n\nUser:")


@given(st.lists(st.sampled_from(["E", "N", "D", "a", "\n", "User:", "END"]), max_size=8))
def test_stop_strings_never_show(parts: list[str]) -> None:
    """However a text comes, no more of it shows than would stay if a stop ended it now."""
    text, shown, whole = StopText(STOPS), "", ""
    for part in parts:
        whole += part
        shown += text.add(part)
        assert without_stop(whole, STOPS).startswith(shown)
    assert shown + text.end(is_stop=False) == whole
    assert shown + text.end(is_stop=True) == without_stop(whole, STOPS)


def test_a_growing_text_shows_what_is_new() -> None:
    """Of a text that is sent whole each time, only what is new shows, and whole characters."""
    text = GrowingText(())
    steps = ["Hi", "Hi \ufffd", "Hi é", "Hi é"]
    assert [text.advance(step, is_last=False) for step in steps] == ["Hi", " ", "é", ""]
    assert text.advance("Hi é\ufffd", is_last=True) == "\ufffd"


def test_what_a_growing_text_takes_back_never_showed() -> None:
    """The beginning of a stop string, which its end takes back, does not show before."""
    text = GrowingText(STOPS)
    assert [text.advance(step, is_last=False) for step in ("a E", "a EN")] == ["a ", ""]
    assert text.advance("a ", is_last=True) == ""


def test_a_text_that_shrinks_is_not_sent_again() -> None:
    """Where a text gets shorter, nothing is sent until it is longer than it was."""
    text = GrowingText(())
    steps = ["abc", "a", "ab", "abcd"]
    assert [text.advance(step, is_last=False) for step in steps] == ["abc", "", "", "d"]


def test_a_text_that_becomes_another_is_broken() -> None:
    """What contradicts the text that was sent is an error: nothing can be taken back."""
    text = GrowingText(())
    text.advance("abc", is_last=False)
    with pytest.raises(BadGateway) as caught:
        text.advance("abX", is_last=False)
    assert caught.value.code == "upstream_stream_broken"


def test_parts_of_a_text_add_up() -> None:
    """From a server that sends only what is new, all of it shows, stop strings apart."""
    text = GrowingText(STOPS, is_incremental=True)
    assert [text.advance(step, is_last=False) for step in ("a E", "x", " EN")] == ["a ", "Ex", " "]
    assert text.advance("", is_last=True) == "EN"

"""From token bytes to text: whole characters, nothing lost, nothing of a stop string."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kserve_llamacpp.engine.text.detokenizer import Detokenizer

# few letters, so that stop strings occur and overlap; one to four bytes each
_texts = st.text(alphabet="abé€😀", max_size=24)
_stops = st.lists(st.text(alphabet="abé€😀", min_size=1, max_size=4), max_size=4)
_places = st.lists(st.integers(min_value=0, max_value=1000), max_size=24)


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def _before_first_stop(text: str, stops: list[str]) -> str:
    """Say it plainly: read on character by character until a stop string is complete."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(len(stop) for stop in complete)]
    return text


def _feed(pieces: list[bytes], stops: list[str]) -> tuple[list[str], bool]:
    detokenizer = Detokenizer(stops)
    texts = []
    for piece in pieces:
        texts.append(detokenizer.feed(piece))
        if detokenizer.stopped:
            return texts, True
    texts.append(detokenizer.flush())
    return texts, detokenizer.stopped


@given(text=_texts, stops=_stops, places=_places)
@example(text="abcd", stops=["bcd", "c"], places=[])
@example(text="xabc", stops=["bc", "c"], places=[2])
@example(text="aab", stops=["ab"], places=[1, 2])
def test_any_split_gives_the_text_before_the_first_stop(
    text: str, stops: list[str], places: list[int]
) -> None:
    """However a text is cut into pieces, what comes out ends before the first complete stop."""
    texts, stopped = _feed(_cut(text.encode(), places), stops)

    expected = _before_first_stop(text, stops)
    assert "".join(texts) == expected
    assert stopped == (expected != text)


@given(text=_texts, stops=_stops, places=_places)
def test_what_was_shown_is_never_taken_back(text: str, stops: list[str], places: list[int]) -> None:
    """After every piece, what was shown is the start of the final text."""
    texts, _ = _feed(_cut(text.encode(), places), stops)

    final = _before_first_stop(text, stops)
    for shown in itertools.accumulate(texts):
        assert final.startswith(shown)


@given(text=_texts, places=_places)
def test_without_stops_only_a_broken_character_waits(text: str, places: list[int]) -> None:
    """Without stop strings every whole character is shown at once; none is shown in parts."""
    detokenizer = Detokenizer([])
    shown, fed = "", b""
    for piece in _cut(text.encode(), places):
        shown += detokenizer.feed(piece)
        fed += piece
        assert shown == fed.decode("utf-8", "ignore")


@given(text=_texts, stops=_stops, places=_places)
def test_no_more_is_held_back_than_may_become_a_stop(
    text: str, stops: list[str], places: list[int]
) -> None:
    """What is held back is an unfinished character and the longest start of a stop string."""
    detokenizer = Detokenizer(stops)
    shown, fed = "", b""
    for piece in _cut(text.encode(), places):
        shown += detokenizer.feed(piece)
        fed += piece
        if detokenizer.stopped:
            return
        whole = fed.decode("utf-8", "ignore")
        held = whole.removeprefix(shown)
        assert held == "" or any(stop.startswith(held) for stop in stops)


@given(data=st.binary(max_size=24), places=_places)
def test_bytes_that_are_no_text_become_replacement_characters(
    data: bytes, places: list[int]
) -> None:
    """Any bytes give the text that they give in one piece: a model may write broken UTF-8."""
    texts, _ = _feed(_cut(data, places), [])

    assert "".join(texts) == data.decode("utf-8", "replace")


@pytest.mark.parametrize("places", [[], [1], [1, 2, 3, 4]])
def test_a_stop_that_only_the_end_completes_is_found(places: list[int]) -> None:
    """A last broken character becomes a replacement character, which may complete a stop."""
    texts, stopped = _feed(_cut("ab€".encode()[:-1], places), ["b\ufffd"])

    assert ("".join(texts), stopped) == ("a", True)


def test_after_a_stop_nothing_is_left() -> None:
    """What follows a stop string in its own piece is dropped, also by the flush."""
    detokenizer = Detokenizer(["STOP"])

    assert detokenizer.feed(b"yes STOP no ST") == "yes "
    assert detokenizer.stopped
    assert detokenizer.flush() == ""


@given(text=_texts, stops=_stops, places=_places)
def test_the_stop_may_be_shown(text: str, stops: list[str], places: list[int]) -> None:
    """With `include_stop` the text ends behind the first complete stop string, however it came."""
    detokenizer = Detokenizer(stops, include_stop=True)
    shown = ""
    for piece in _cut(text.encode(), places):
        shown += detokenizer.feed(piece)
        if detokenizer.stopped:
            break
    shown += detokenizer.flush()

    before = _before_first_stop(text, stops)
    ends = [before + stop for stop in stops if text.startswith(before + stop)]
    assert shown == (text if before == text else min(ends, key=len))


@given(text=_texts, stops=_stops, places=_places, min_tokens=st.integers(0, 6))
def test_the_first_tokens_hold_no_stop(
    text: str, stops: list[str], places: list[int], min_tokens: int
) -> None:
    """In the first `min_tokens` pieces nothing is sought; what follows is read as a new text."""
    pieces = _cut(text.encode(), places)
    first = b"".join(pieces[:min_tokens]).decode("utf-8", "ignore")
    rest = text[len(first) :]
    detokenizer = Detokenizer(stops, min_tokens=min_tokens)
    shown = ""
    for piece in pieces:
        shown += detokenizer.feed(piece)
        if detokenizer.stopped:
            break
    shown += detokenizer.flush()

    assert shown == first + _before_first_stop(rest, stops)


@given(text=_texts, stops=_stops, places=_places)
def test_a_piece_counts_as_shown_when_all_its_text_is(
    text: str, stops: list[str], places: list[int]
) -> None:
    """`num_shown` never counts a piece of which something is held back, and leaves none out."""
    pieces = _cut(text.encode(), places)
    detokenizer = Detokenizer(stops)
    shown = ""
    for count, piece in enumerate(pieces, 1):
        shown += detokenizer.feed(piece)
        if detokenizer.stopped:
            break
        ends = [len(b"".join(pieces[:end])) for end in range(1, count + 1)]
        assert detokenizer.num_shown == sum(end <= len(shown.encode()) for end in ends)
    shown += detokenizer.flush()

    starts = [len(b"".join(pieces[:start])) for start in range(len(pieces))]
    assert detokenizer.num_shown == sum(start < len(shown.encode()) for start in starts)


def test_a_token_without_text_is_shown_with_what_came_before() -> None:
    """A control token has no text of its own: it waits only for what stands before it."""
    detokenizer = Detokenizer(["ab"])
    counts = []
    for piece in (b"", b"a", b"", b"c"):
        detokenizer.feed(piece)
        counts.append(detokenizer.num_shown)

    assert counts == [1, 1, 1, 4]

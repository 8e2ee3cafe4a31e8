"""What is known of a text before it is tokenized."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_llamacpp.engine.text.text_bounds import TextBounds, longest_tokens

TOKENS = [b"a", b"b", b"ab", b"abab", b"cc", "é".encode(), "\u0120a".encode()]


def bounds(short_bytes: int = 8, short_specials: int = 1) -> TextBounds:
    return TextBounds(short_bytes, short_specials, b"<[", longest_tokens(TOKENS, True))


@given(st.lists(st.sampled_from([b"a", b"b", b"ab", b"abab", b" a", b"cc"]), max_size=50))
def test_there_are_never_fewer_tokens_than_said(tokens: list[bytes]) -> None:
    """However a text is cut into tokens, it has at least so many as its bytes say."""
    assert bounds().least_tokens(b"".join(tokens)) <= len(tokens)


def test_a_run_is_known_to_be_long() -> None:
    """A byte counts by the longest token that has it, not by the longest of all."""
    assert bounds().least_tokens(b"ab" * 100) == 50
    assert bounds().least_tokens(b"a" * 100) == 25


def test_unknown_bytes_count_nothing() -> None:
    """A byte of no token, or with a name that is no token, may be left out of the tokens."""
    assert bounds().least_tokens(b"xxx\xff  ") == 0


def test_short_is_a_matter_of_bytes_and_special_tokens() -> None:
    """A text is short up to both bounds; what could begin a special token counts as one."""
    assert bounds().is_short(b"12345678")
    assert not bounds().is_short(b"123456789")
    assert bounds().is_short(b"<2345678")
    assert not bounds().is_short(b"<[345678")
    assert not bounds(short_bytes=0).is_short(b"1")

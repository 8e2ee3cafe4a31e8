"""Where a text may be cut before it is tokenized."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_llamacpp.engine.special_tokens import SpecialTokens

TEXTS = {b"<s>": False, b"</s>": True, b"<s>x": False}
PIECE = st.sampled_from([b"<s>", b"</s>", b"<s>x", b" ", b"\n\t", b"word", "ä€".encode(), b"<"])


@given(st.lists(PIECE, max_size=400))
def test_the_parts_are_the_text(pieces: list[bytes]) -> None:
    """Nothing is lost, doubled or moved, and each part but the last has as many special tokens."""
    data = b"".join(pieces)
    parts = list(SpecialTokens(TEXTS, 4).parts(data))
    assert b"".join(parts) == data
    for part in parts[:-1]:
        assert part.count(b"<s>") + part.count(b"</s>") == 64


def test_a_token_that_swallows_white_space_keeps_it() -> None:
    """The cut comes behind the white space that the token before it takes with it, if it does."""
    specials = SpecialTokens(TEXTS, 4)
    swallowed, left = b"</s> \n", b"<s> \n"
    assert list(specials.parts(swallowed * 65)) == [swallowed * 64, swallowed]
    assert list(specials.parts(left * 65)) == [left * 63 + b"<s>", b" \n" + left]


def test_some_texts_are_not_cut() -> None:
    """One part: few special tokens, none known, nothing to cut, or a tokenizer that adds an end."""
    many = b"<s>" * 100
    assert list(SpecialTokens(TEXTS, 4).parts(b"<s>" * 63)) == [b"<s>" * 63]
    assert list(SpecialTokens({}, 4).parts(many)) == [many]
    assert list(SpecialTokens(TEXTS, 4).parts(b"")) == [b""]
    assert list(SpecialTokens(TEXTS, 4, can_cut=False).parts(many)) == [many]

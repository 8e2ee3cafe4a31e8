"""Where a text may be cut before it is tokenized."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from kserve_llamacpp.engine.text.special_tokens import SpecialTokens

TEXTS = {b"<s>": False, b"</s>": True, b"<s>x": False}
PIECE = st.sampled_from([b"<s>", b"</s>", b"<s>x", b" ", b"\n\t", b"word", "ä€".encode(), b"<"])


@given(st.lists(PIECE, max_size=400))
def test_the_parts_are_the_text(pieces: list[bytes]) -> None:
    """Nothing is lost, doubled or moved, and each part but the last has as many special tokens."""
    data = b"".join(pieces)
    parts = list(SpecialTokens(TEXTS).parts(data))
    assert b"".join(parts) == data
    for part in parts[:-1]:
        assert part.count(b"<s>") + part.count(b"</s>") == 64


def test_a_token_that_swallows_white_space_keeps_it() -> None:
    """The cut comes behind the white space that the token before it takes with it, if it does."""
    specials = SpecialTokens(TEXTS)
    swallowed, left = b"</s> \n", b"<s> \n"
    assert list(specials.parts(swallowed * 65)) == [swallowed * 64, swallowed]
    assert list(specials.parts(left * 65)) == [left * 63 + b"<s>", b" \n" + left]


def test_some_texts_are_not_cut() -> None:
    """One part: few special tokens, none known, nothing to cut, or a tokenizer that adds an end."""
    many = b"<s>" * 100
    assert list(SpecialTokens(TEXTS).parts(b"<s>" * 63)) == [b"<s>" * 63]
    assert list(SpecialTokens({}).parts(many)) == [many]
    assert list(SpecialTokens(TEXTS).parts(b"")) == [b""]
    assert list(SpecialTokens(TEXTS, can_cut=False).parts(many)) == [many]


@given(
    st.sets(st.text(alphabet="ab<", min_size=1, max_size=4), min_size=1, max_size=6),
    st.text(alphabet="ab<", max_size=300),
)
def test_the_parts_have_the_same_special_tokens(specials: set[str], text: str) -> None:
    """Where special tokens overlap, a cut gives each part those that it has in the whole text."""
    texts = {special.encode(): False for special in specials}
    data = text.encode()
    apart = [piece for part in SpecialTokens(texts).parts(data) for piece in partition(texts, part)]
    whole = partition(texts, data)
    assert merged(apart, texts) == merged(whole, texts)


def partition(texts: dict[bytes, bool], data: bytes) -> list[tuple[bytes, bool]]:
    """Cut a text as llama.cpp does: the longest special token first, wherever it stands."""
    pieces = [(data, False)]
    for text in sorted(texts, key=lambda text: (-len(text), text)):
        cut: list[tuple[bytes, bool]] = []
        for piece, is_special in pieces:
            if is_special:
                cut.append((piece, True))
                continue
            for at, between in enumerate(piece.split(text)):
                cut += [(text, True)] if at else []
                cut += [(between, False)] if between else []
        pieces = cut
    return pieces


def merged(pieces: list[tuple[bytes, bool]], texts: dict[bytes, bool]) -> list[bytes]:
    """Return the special tokens, each as the number of bytes before it and itself."""
    at, found = 0, []
    for piece, is_special in pieces:
        if is_special:
            found.append(b"%d %s" % (at, piece))
        at += len(piece)
    return found


def test_a_thousand_special_tokens_are_sought_at_once() -> None:
    """What only begins like a thousand special tokens costs no more than one of them."""
    texts = {b"<|reserved_%d|>" % number: False for number in range(1000)}
    began = time.process_time()
    assert list(SpecialTokens(texts).parts(b"<|reserved_" * 20_000)) == [b"<|reserved_" * 20_000]
    assert time.process_time() - began < 1

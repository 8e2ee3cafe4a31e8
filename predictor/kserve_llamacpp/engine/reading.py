"""From a sequence's tokens to its text and its end: as they are drawn, and again after a resume."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Generator
from typing import Protocol

from kserve_llamacpp.engine.sequence import Sequence
from kserve_llamacpp.wire.frames import FinishReason, Started

PART_TOKENS = 8  # with many long stop strings each may take a millisecond
Ending = tuple[str, FinishReason | None]  # the rest of the text, and why it is the last


class EndedBefore(Exception):
    """Resumed tokens go on after what ends a sequence: they are no answer to this request."""


class Vocabulary(Protocol):
    """As much of a backend as is needed to read tokens."""

    def piece(self, token: int) -> bytes: ...
    def special_piece(self, token: int) -> bytes: ...
    def is_end(self, token: int) -> bool: ...


def read(
    vocabulary: Vocabulary, sequence: Sequence, token: int, count: int
) -> tuple[str, FinishReason | None]:
    """Return what becomes certain with a sequence's `count`-th token: text, and maybe the end."""
    text, is_end = _feed(vocabulary, sequence, token)
    rest, reason = _end(sequence, is_end, count)
    return text + rest, reason


def replay(vocabulary: Vocabulary, sequence: Sequence) -> Generator[None, None, Ending]:
    """Read the resumed tokens, whose text was sent before; return why they are the last, if so.

    What was held back then is held back again; where there is no room for another token, it is
    returned as the rest of the text. Comes back after each part. Raises EndedBefore.
    """
    rest = ""
    reason: FinishReason | None = None
    for count, token in enumerate(sequence.generated, start=1):
        if reason is not None:
            raise EndedBefore
        _, is_end = _feed(vocabulary, sequence, token)
        rest, reason = _end(sequence, is_end, count)
        if count % PART_TOKENS == 0:
            yield
    return rest if reason == "length" else "", reason


def show(vocabulary: Vocabulary, sequence: Sequence) -> Generator[None, None, None]:
    """Note the text of the resumed tokens that is out, where it is told; comes back in parts."""
    if sequence.sampling.logprobs is None or not sequence.num_replayed:
        return
    sequence.num_shown = sequence.text.num_shown
    replayed = [*sequence.generated, *sequence.known][: sequence.num_shown]
    pieces: list[bytes] = []
    for count, token in enumerate(replayed, start=1):
        pieces.append(vocabulary.special_piece(token))
        if count % PART_TOKENS == 0:
            yield
    sequence.shown_text = b"".join(pieces)


def _feed(vocabulary: Vocabulary, sequence: Sequence, token: int) -> tuple[str, bool]:
    params = sequence.sampling
    is_end = vocabulary.is_end(token) or token in params.stop_token_ids
    if is_end and not params.include_stop_str_in_output:
        return "", True
    piece = vocabulary.piece if params.skip_special_tokens else vocabulary.special_piece
    return sequence.text.feed(piece(token)), is_end


def _end(sequence: Sequence, is_end: bool, count: int) -> tuple[str, FinishReason | None]:
    """Return the rest of the text and the reason, where `count` tokens are all."""
    reason: FinishReason | None = None
    if is_end or sequence.text.stopped:
        reason = "stop"
    elif count >= sequence.max_tokens:
        reason = "length"
    if reason is None:
        return "", None
    rest = sequence.text.flush()
    return rest, "stop" if sequence.text.stopped else reason  # the rest may complete a stop string


def started(sequence: Sequence, is_resumable: bool) -> Started:
    """Return what is told of a sequence when it starts, before its first draw."""
    return Started(
        sequence.id,
        prompt_tokens=sequence.num_prompt,
        cached_tokens=min(sequence.num_cached or 0, sequence.num_prompt),
        own_cached_tokens=min(sequence.num_own_cached, sequence.num_prompt),
        prompt_hash=prompt_hash(sequence.tokens[: sequence.num_prompt]) if is_resumable else "",
        num_shown=sequence.num_shown,
        shown_text=sequence.shown_text,
    )


def prompt_hash(tokens: list[int]) -> str:
    """Return the SHA-256 of token ids, each as four bytes, little end first."""
    ids = array("I", tokens)
    assert ids.itemsize == 4
    return hashlib.sha256(ids.tobytes()).hexdigest()

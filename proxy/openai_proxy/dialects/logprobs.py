"""Tokens and their probabilities: what is asked of an upstream, and what it tells."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from openai_protocol.errors import InvalidRequest
from openai_protocol.requests import ChatCompletionRequest, GenerationRequest
from openai_proxy.dialects.base import Json
from openai_proxy.dialects.withheld import REPLACEMENT

PARAMETERS = frozenset({"logprobs", "top_logprobs"})
# How OpenAI writes that a token is hardly possible; upstreams write null, or infinity.
UNLIKELY = -9999.0
_MARK = REPLACEMENT.encode()


@dataclass(frozen=True, slots=True)
class Token:
    """A token with its probability's natural logarithm; its text is bytes where they are known."""

    text: bytes | str
    logprob: float


@dataclass(frozen=True, slots=True)
class Draw:
    """A token that was drawn, and the likeliest at its place, best first."""

    drawn: Token
    top: Sequence[Token] = ()


def num_top_logprobs(asked: GenerationRequest, values: Json) -> int | None:
    """Return how many alternatives each token is to have; None where no logprobs are wanted.

    `values` are the parameters that the upstream is to honour. Raises InvalidRequest.
    """
    is_chat = isinstance(asked, ChatCompletionRequest)
    if "top_logprobs" in values and not (is_chat and "logprobs" in values):
        raise InvalidRequest(
            "Invalid 'top_logprobs': it needs a chat with 'logprobs': true.", param="top_logprobs"
        )
    return asked.num_top_logprobs if "logprobs" in values else None


def token(text: Any, logprob: Any, raw: Any = None, token_id: Any = None) -> Token:
    """Return a token as an upstream tells it; `raw` are its bytes where that tells them.

    A part of a character may be told as a mark that stands for it: its bytes are not known then.
    """
    score = _score(logprob)
    if not isinstance(text, str):
        return Token(f"token_id:{token_id}", score)  # as vLLM names those without a text
    data = text.encode()
    if isinstance(raw, list) and all(type(one) is int and 0 <= one < 256 for one in raw):
        data = bytes(raw)
    return Token(text if _MARK in data else data, score)


def _score(logprob: Any) -> float:
    if type(logprob) not in (int, float):
        return UNLIKELY
    try:
        score = float(logprob)
    except OverflowError:  # a whole number of hundreds of digits
        return UNLIKELY
    return score if math.isfinite(score) else UNLIKELY


class HeldDraws:
    """Keeps tokens as long as their text is kept; owner: a choice's stream.

    A token is shown with the piece of text in which it begins. Parts of characters count for
    nothing: what they add up to is known by the upstream alone.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Draw]] = deque()
        self._length = 0
        self._shown = 0

    def add(self, draws: Iterable[Draw]) -> None:
        """Take the tokens of the next piece of text."""
        for draw in draws:
            self._waiting.append((self._length, draw))
            text = draw.drawn.text
            text = text.decode(errors="ignore") if isinstance(text, bytes) else text
            self._length += len(text.replace(REPLACEMENT, ""))

    def shown(self, text: str) -> list[Draw]:
        """Return the tokens that begin in this text, the next that is shown, or before it."""
        self._shown += len(text)
        draws = []
        while self._waiting and self._waiting[0][0] < self._shown:
            draws.append(self._waiting.popleft()[1])
        return draws

    def rest(self) -> list[Draw]:
        """Return the tokens that are left at the end of a text of which nothing was cut off."""
        draws = [draw for _, draw in self._waiting]
        self._waiting.clear()
        return draws


def draws_of(text: str, draws: Iterable[Draw], is_cut: bool) -> list[Draw]:
    """Return the tokens of a whole text; `is_cut`: those of its end were cut off with it."""
    held = HeldDraws()
    held.add(draws)
    shown = held.shown(text)
    return shown if is_cut else shown + held.rest()

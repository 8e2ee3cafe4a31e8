"""The tokens that SGLang tells of a choice, in its `meta_info`.

    output_token_logprobs   [[logprob, id, text], ..]            text: null without a tokenizer
    output_top_logprobs     [[[logprob, id, text], ..], ..]      null where there are none

A stream tells all tokens so far, again and again; newer servers that send new text alone tell the
new ones alone, too. The token that ends a text is among them, though its text is cut off.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from openai_proxy.dialects.asked import asked_of
from openai_proxy.dialects.base import Call, Json
from openai_proxy.dialects.fields import count_in, list_in, object_in
from openai_proxy.dialects.logprobs import Draw, HeldDraws, Token, token

_FIELDS = 3  # of a token: logprob, id, text


class ToldTokens:
    """Finds the tokens that are new, and belong to the text that is shown; owner: one choice."""

    def __init__(self, call: Call, is_incremental: bool = False) -> None:
        """`is_incremental`: the server sends new text alone, and maybe new tokens alone."""
        asked = asked_of(call)
        self._is_incremental = is_incremental
        self._num_top = asked.num_top_logprobs
        self._keeps_stop = bool(asked.include_stop_str_in_output)
        self._num_taken = 0
        self._held = HeldDraws()

    def advance(self, meta: Json, text: str) -> list[Draw]:
        """Take what is told with the next piece of text, return the tokens that begin in it."""
        if self._num_top is None:
            return []
        drawn, tops = list_in(meta, "output_token_logprobs"), list_in(meta, "output_top_logprobs")
        num_generated = count_in(meta, "completion_tokens") or 0
        is_new_alone = self._is_incremental and len(drawn) < num_generated
        start = 0 if is_new_alone else self._num_taken
        self._num_taken = max(self._num_taken, len(drawn))
        new = drawn[start:]
        matched = object_in(meta, "finish_reason").get("matched")
        if new and type(matched) is int and _token_id(new[-1]) == matched and not self._keeps_stop:
            new.pop()  # what ended the text: no part of it
        self._held.add(self._draw(one, top) for one, top in _pairs(new, tops[start:]))
        draws = self._held.shown(text)
        is_cut = isinstance(matched, str) and not self._keeps_stop
        if meta.get("finish_reason") is not None and not is_cut:
            draws += self._held.rest()
        return draws

    def _draw(self, one: Any, top: Any) -> Draw:
        found = top if isinstance(top, list) else []
        return Draw(_token(one), [_token(other) for other in found[: self._num_top]])


def _pairs(drawn: list[Any], tops: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip_longest(drawn, tops[: len(drawn)]))


def _token(told: Any) -> Token:
    is_whole = isinstance(told, list) and len(told) == _FIELDS
    logprob, token_id, text = told if is_whole else (None, None, None)
    return token(text, logprob, token_id=token_id)


def _token_id(told: Any) -> Any:
    return told[1] if isinstance(told, list) and len(told) == _FIELDS else None

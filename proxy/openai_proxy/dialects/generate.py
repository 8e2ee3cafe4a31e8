"""What the generate extension answers: pieces of a text, alone or one an event.

    {"text_output", "model_name", "details": {"finish_reason", ..}}     Open Inference Protocol
    {"text_output", .., "finish_reason", "num_input_tokens", ..}        Triton, where asked for
    {"text_output", .., "logprobs": "[..]"}                             vLLM there, where asked for
    {"text_output", "model_name", "done"}                               drafts of the protocol
    {"error": "text"}                                                   all of them, under 200

A stream ends with its connection: there is no `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from openai_protocol.sse import DONE_PAYLOAD
from openai_proxy.dialects.asked import asked_of
from openai_proxy.dialects.base import Call, Json
from openai_proxy.dialects.collected import Whole
from openai_proxy.dialects.fields import object_in
from openai_proxy.dialects.form import Choice, ChunkWriter, usage_of
from openai_proxy.dialects.logprobs import Draw, HeldDraws, draws_of
from openai_proxy.dialects.openai import broken_stream, invalid_response
from openai_proxy.dialects.outcomes import finish_reason, single
from openai_proxy.dialects.reading import Events, TranslatedStream, json_piece
from openai_proxy.dialects.upstream_errors import answered
from openai_proxy.dialects.vllm_tokens import draws_in
from openai_proxy.dialects.withheld import PromptEcho, StopText, without_stop


@dataclass(frozen=True, slots=True)
class Piece:
    """One answer, or one event of a stream; tokens are None where the upstream tells none.

    `tells_reason`: it says whether the text goes on, which not every upstream does.
    """

    text: str
    finish_reason: str | None = None
    tells_reason: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    logprobs: Any = None


def read_piece(value: Any, text_field: str) -> Piece:
    """Read an answer; raises BadGateway for an error, and for what cannot be understood."""
    answer = answered(value)
    text = single(answer.get(text_field))
    if not isinstance(text, str):
        raise invalid_response()
    told = {**answer, **object_in(answer, "details")}
    reason = finish_reason(told.get("finish_reason"))
    if reason is None and told.get("done") is True:
        reason = "stop"
    return Piece(
        text,
        reason,
        tells_reason="finish_reason" in told or "done" in told,
        prompt_tokens=count_of(told.get("num_input_tokens")),
        completion_tokens=count_of(told.get("num_output_tokens")),
        logprobs=single(told.get("logprobs")),
    )


def whole_answer(call: Call, piece: Piece, echo: str) -> Whole:
    """Return what a whole answer says, without the `echo` at its start and a stop at its end."""
    reason = piece.finish_reason or "stop"
    text = piece.text.removeprefix(echo)
    if reason == "stop":
        text = without_stop(text, _stops(call))
    draws = draws_of(text, _draws(call, piece), is_cut=reason == "stop")
    usage = known_usage(piece.prompt_tokens, piece.completion_tokens)
    return Whole([Choice(text, reason, draws=draws)], usage)


class GenerateStream(TranslatedStream):
    """Turns events with pieces of a text into chunks, without an `echo` and a stop string."""

    def __init__(self, call: Call, read: Callable[[Any], Piece], echo: str = "") -> None:
        super().__init__(Events())
        self._call = call
        self._read = read
        self._writer = ChunkWriter(call)
        self._echo = PromptEcho(echo)
        self._stop = StopText(_stops(call))
        self._draws = HeldDraws()
        self._last: Piece | None = None
        self._reason: str | None = None
        self._prompt_tokens: int | None = None
        self._completion_tokens: int | None = None

    def _take(self, piece: bytes) -> bytes:
        if piece.strip() == DONE_PAYLOAD:
            self._is_complete = True
            return self._cut_off()
        read = self._read(json_piece(piece))
        self._last = read
        self._reason = read.finish_reason or self._reason
        if read.prompt_tokens is not None:
            self._prompt_tokens = read.prompt_tokens
        if read.completion_tokens is not None:  # those of this piece
            self._completion_tokens = (self._completion_tokens or 0) + read.completion_tokens
        self._draws.add(_draws(self._call, read))
        shown = self._stop.add(self._echo.pass_on(read.text))
        return self._writer.text(shown, draws=self._draws.shown(shown))

    def _cut_off(self) -> bytes:
        """Return the end: the connection's is the text's, unless a reason was still to come."""
        if self._last is None:
            raise invalid_response()
        if self._last.tells_reason and self._reason is None:
            raise broken_stream()
        reason = self._reason or "stop"
        rest = self._stop.add(self._echo.rest()) + self._stop.end(reason == "stop")
        draws = self._draws.shown(rest)
        if reason != "stop":
            draws += self._draws.rest()
        usage = known_usage(self._prompt_tokens, self._completion_tokens)
        last = self._writer.text(rest, draws=draws)
        return last + self._writer.finish(reason) + self._writer.end(usage)


def count_of(value: Any) -> int | None:
    """Return a number of tokens, None where it is none; it may be a list of one."""
    value = single(value)
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_count else None


def known_usage(prompt_tokens: int | None, completion_tokens: int | None) -> Json | None:
    """Return the usage where all of it is known."""
    if prompt_tokens is None or completion_tokens is None:
        return None
    return usage_of(prompt_tokens, completion_tokens)


def _draws(call: Call, piece: Piece) -> list[Draw]:
    num_top = asked_of(call).num_top_logprobs
    return [] if num_top is None else draws_in(piece.logprobs, num_top)


def _stops(call: Call) -> list[str]:
    """Return the stop strings that are to be left out; some upstreams leave them in."""
    asked = asked_of(call)
    return [] if asked.include_stop_str_in_output else asked.stop_strings()

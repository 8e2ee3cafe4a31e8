"""The `tgi` dialect: Text Generation Inference's own `/generate` and `/generate_stream`.

A stream is server-sent events, one a token, without `[DONE]`: the last has `generated_text`.
Errors are `{"error", "error_type"}`; a stream has them as events, under status 200.
"""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import Any

from openai_protocol.errors import ApiError, ErrorCode, InvalidRequest
from openai_protocol.requests import ChatCompletionRequest, GenerationRequest
from openai_protocol.sse import MEDIA_TYPE
from openai_proxy.dialects.asked import asked_of, pattern_of, posted, schema_of
from openai_proxy.dialects.base import GENERATING, AnswerHead, Call, Json, Render, UpstreamRequest
from openai_proxy.dialects.fields import count_in, json_value, object_in, objects_in, text_in
from openai_proxy.dialects.form import Choice, ChunkWriter, completion, usage_of
from openai_proxy.dialects.logprobs import (
    PARAMETERS,
    Draw,
    HeldDraws,
    Token,
    draws_of,
    num_top_logprobs,
    token,
)
from openai_proxy.dialects.openai import broken_stream, invalid_response
from openai_proxy.dialects.options import whole_number
from openai_proxy.dialects.parameters import Unsupported, checked
from openai_proxy.dialects.prompts import prompt_of
from openai_proxy.dialects.reading import Events, TranslatedStream, json_piece
from openai_proxy.dialects.upstream_errors import told_error, upstream_error
from openai_proxy.dialects.withheld import StopText, without_stop

MAX_STOP_STRINGS = 4  # TGI's own default of --max-stop-sequences
MAX_TOP_LOGPROBS = 5  # and of --max-top-n-tokens
SUPPORTED = frozenset(
    {
        *("temperature", "top_p", "top_k", "typical_p", "seed", "stop", "max_tokens"),
        *("max_completion_tokens", "frequency_penalty", "repetition_penalty"),
        *("response_format", "regex"),
        *PARAMETERS,
    }
)
_FINISH_REASONS = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}
_STATUS_OF_TYPE = {"validation": 422, "overloaded": 429, "template_error": 422, "tool_error": 422}
# TGI's names in its texts, and OpenAI's
_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "typical_p": "typical_p",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
    "stop_sequences": "stop",
    "stop": "stop",
    "seed": "seed",
    "grammar": "response_format",
    "top_n_tokens": "top_logprobs",
}
_NAME = re.compile(r"`(\w+)`|\b(grammar) is not valid")
_TOO_LONG = re.compile(r"`inputs` (tokens|must have less than)")


class TgiDialect:
    """Speaks TGI's own API; `render` turns chats into prompts, since `/generate` takes text.

    `max_stop_strings` and `max_top_logprobs` are the server's own limits (`--max-stop-sequences`,
    `--max-top-n-tokens`).
    """

    base_path = ""
    endpoints = GENERATING
    stream_types = frozenset({MEDIA_TYPE})
    models_path = "/info"

    def __init__(
        self,
        render: Render | None = None,
        unsupported: Unsupported = "refuse",
        max_stop_strings: int | str = MAX_STOP_STRINGS,
        max_top_logprobs: int | str = MAX_TOP_LOGPROBS,
    ) -> None:
        """Raises ValueError for an option that is none."""
        self._render = render
        self._unsupported = unsupported
        self._max_stop_strings = whole_number("max_stop_strings", max_stop_strings)
        self._max_top_logprobs = whole_number("max_top_logprobs", max_top_logprobs, least=0)

    def request(self, call: Call) -> UpstreamRequest:
        """Translate a call; raises InvalidRequest."""
        body = {"inputs": prompt_of(call, self._render), "parameters": self._parameters(call)}
        path = "/generate_stream" if call.is_stream else "/generate"
        return posted(call, path, body)

    def answer(self, call: Call, head: AnswerHead, body: bytes) -> bytes:
        """Translate a whole answer; raises ApiError where it is none."""
        value = json_value(body)
        if not isinstance(value, dict):
            raise invalid_response()
        if "error" in value:
            raise _told(value)
        text = value.get("generated_text")
        if not isinstance(text, str):
            raise invalid_response()
        details = object_in(value, "details")
        is_stop = details.get("finish_reason") == "stop_sequence"
        if is_stop:
            text = without_stop(text, asked_of(call).stop_strings())
        draws = _draws(call, details.get("tokens"), details.get("top_tokens"))
        choice = Choice(text, _finish_reason(details), draws=draws_of(text, draws, is_stop))
        return completion(call, [choice], _usage(details, head))

    def error(self, head: AnswerHead, body: bytes) -> ApiError:
        """Translate an answer with an error status; 422, bad input, becomes 400."""
        return _as_bad_request(upstream_error(head, body))

    def stream(self, call: Call) -> TgiStream:
        """Return a parser for one stream."""
        return TgiStream(call)

    def models(self, body: bytes) -> tuple[str, ...] | None:
        """Return the one model that `/info` names."""
        value = json_value(body)
        model = text_in(value, "model_id") if isinstance(value, dict) else ""
        return (model,) if model else None

    def _parameters(self, call: Call) -> Json:
        asked = asked_of(call)
        values = checked(asked, SUPPORTED, self._unsupported)
        # null, not left out: where nothing is said, TGI ends after 100 tokens
        parameters: Json = {"max_new_tokens": asked.token_limit}
        parameters |= {"details": True, "return_full_text": False}
        parameters |= _drawing(values)
        for name in ("frequency_penalty", "repetition_penalty"):
            if name in values:
                parameters[name] = values[name]
        if "seed" in values:
            parameters["seed"] = values["seed"] % 2**64  # TGI's has no sign
        stops = self._stops(asked)
        if stops:
            parameters["stop"] = stops
        grammar = self._grammar(values)
        if grammar:
            parameters["grammar"] = grammar
        if num_top := self._num_top(asked, values):
            parameters["top_n_tokens"] = num_top
        return parameters

    def _num_top(self, asked: GenerationRequest, values: Json) -> int | None:
        num_top = num_top_logprobs(asked, values)
        if num_top is not None and num_top > self._max_top_logprobs:
            name = "top_logprobs" if isinstance(asked, ChatCompletionRequest) else "logprobs"
            raise InvalidRequest(
                f"Invalid '{name}': this model tells {self._max_top_logprobs} alternatives of a "
                f"token at most, but got {num_top}.",
                param=name,
                code=ErrorCode.INTEGER_ABOVE_MAX_VALUE,
            )
        return num_top

    def _stops(self, asked: GenerationRequest) -> list[str]:
        stops = asked.stop_strings()
        if len(stops) > self._max_stop_strings:
            raise InvalidRequest(
                f"Invalid 'stop': this model takes {self._max_stop_strings} stop strings at most, "
                f"but got {len(stops)}.",
                param="stop",
                code=ErrorCode.ARRAY_ABOVE_MAX_LENGTH,
            )
        return stops

    def _grammar(self, values: Json) -> Json | None:
        if "regex" in values:
            if "response_format" in values:
                raise InvalidRequest(
                    "Invalid 'regex': this model takes it or 'response_format', not both.",
                    param="regex",
                )
            return {"type": "regex", "value": pattern_of(values, "regex")}
        schema = schema_of(values["response_format"]) if "response_format" in values else None
        if schema:
            return {"type": "json", "value": schema}
        if schema is not None and self._unsupported == "refuse":
            raise InvalidRequest(
                "'response_format' of type 'json_object' is not supported with this model: "
                "send a 'json_schema' with properties.",
                param="response_format",
                code=ErrorCode.UNSUPPORTED_VALUE,
            )
        return None


class TgiStream(TranslatedStream):
    """Translates one stream; special tokens and the stop string at its end are left out."""

    def __init__(self, call: Call) -> None:
        super().__init__(Events())
        self._call = call
        self._writer = ChunkWriter(call)
        self._text = StopText(asked_of(call).stop_strings())
        self._draws = HeldDraws()

    def _take(self, piece: bytes) -> bytes:
        value = json_piece(piece)
        if "error" in value:
            raise _told(value)
        told = value.get("token")
        if not isinstance(told, dict):
            raise broken_stream()
        self._draws.add(_draws(self._call, [told], [value.get("top_tokens")]))
        shown = self._text.add("" if told.get("special") is True else text_in(told, "text"))
        events = self._writer.text(shown, draws=self._draws.shown(shown))
        if value.get("generated_text") is None:
            return events
        return events + self._end(object_in(value, "details"))

    def _end(self, details: Json) -> bytes:
        self._is_complete = True
        is_stop = details.get("finish_reason") == "stop_sequence"
        shown = self._text.end(is_stop)
        draws = self._draws.shown(shown)
        if not is_stop:
            draws += self._draws.rest()
        return (
            self._writer.text(shown, draws=draws)
            + self._writer.finish(_finish_reason(details))
            + self._writer.end(_usage(details))
        )


def _draws(call: Call, tokens: Any, tops: Any) -> list[Draw]:
    """Return the tokens that TGI tells, special ones left out; none where nobody asked for them.

    It tells more alternatives than were asked for where some are equally likely.
    """
    num_top = asked_of(call).num_top_logprobs
    if num_top is None or not isinstance(tokens, list):
        return []
    return [
        Draw(_token(told), [_token(one) for one in objects_in(top)[:num_top]])
        for told, top in zip_longest(tokens, tops if isinstance(tops, list) else [])
        if isinstance(told, dict) and told.get("special") is not True
    ]


def _token(told: Json) -> Token:
    return token(told.get("text"), told.get("logprob"), token_id=told.get("id"))


def _drawing(values: Json) -> Json:
    """Return how tokens are drawn; values that ask for nothing are errors to TGI: left out."""
    temperature = values.get("temperature")
    if temperature == 0:
        return {"do_sample": False}
    drawing: Json = {"do_sample": True}
    if temperature is not None:
        drawing["temperature"] = temperature
    for name in ("top_p", "typical_p"):
        if values.get(name, 1) < 1:
            drawing[name] = values[name]
    if values.get("top_k", 0) > 0:
        drawing["top_k"] = values["top_k"]
    return drawing


def _finish_reason(details: Json) -> str:
    return _FINISH_REASONS.get(text_in(details, "finish_reason"), "stop")


def _usage(details: Json, head: AnswerHead | None = None) -> Json | None:
    """Return the usage; a stream's details tell of the prompt, a whole answer's head does."""
    generated = count_in(details, "generated_tokens")
    prompt = count_in(details, "input_length")
    told = head.headers.get("x-prompt-tokens", "") if head is not None else ""
    if prompt is None and told.isdecimal() and len(told) <= 9:
        prompt = int(told)
    return None if prompt is None or generated is None else usage_of(prompt, generated)


def _told(value: Json) -> ApiError:
    """Return the error that a body or an event tells under status 200."""
    status = _STATUS_OF_TYPE.get(text_in(value, "error_type"), 424)
    return _as_bad_request(told_error(status, text_in(value, "error")))


def _as_bad_request(error: ApiError) -> ApiError:
    if error.status != 422:
        return error
    name = _NAME.search(error.message)
    if _TOO_LONG.search(error.message):
        return InvalidRequest(error.message, code=ErrorCode.CONTEXT_LENGTH_EXCEEDED)
    return InvalidRequest(
        error.message,
        param=_NAMES.get(name.group(1) or name.group(2)) if name else error.param,
        code=ErrorCode.UPSTREAM_ERROR,
    )

"""The `ollama` dialect: Ollama's own `/api/chat` and `/api/generate`.

A stream is NDJSON; the line with `done` ends it, and a line `{"error"}` under status 200 breaks it.
Tool calls come whole, their arguments as objects. Usage is left out where Ollama does not count:
older ones tell no prompt tokens for a prompt that was cached.
"""

from __future__ import annotations

import re
from typing import Any

from openai_protocol.errors import ApiError, ErrorCode, InvalidRequest, wrong_type
from openai_protocol.requests import ChatCompletionRequest, GenerationRequest
from openai_proxy.dialects.asked import asked_of, model_of, pattern_of, posted, schema_of
from openai_proxy.dialects.base import (
    CHAT,
    GENERATING,
    AnswerHead,
    Call,
    Json,
    Render,
    UpstreamRequest,
)
from openai_proxy.dialects.fields import count_in, json_value, names_in, objects_in, text_in
from openai_proxy.dialects.form import Choice, ChunkWriter, completion, usage_of
from openai_proxy.dialects.logprobs import PARAMETERS, Draw, Token, num_top_logprobs, token
from openai_proxy.dialects.ollama_messages import ollama_messages, ollama_tools, openai_calls
from openai_proxy.dialects.openai import broken_stream, invalid_response
from openai_proxy.dialects.options import truth, whole_number
from openai_proxy.dialects.parameters import Unsupported, checked
from openai_proxy.dialects.prompts import prompt_of
from openai_proxy.dialects.reading import Lines, TranslatedStream, json_piece
from openai_proxy.dialects.upstream_errors import answered, failed, unknown_model, upstream_error

NDJSON = "application/x-ndjson"
# OpenAI's and our names, and those of Ollama's options
_OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repeat_penalty",
}
SUPPORTED = frozenset(
    {
        *(*_OPTIONS, *PARAMETERS, "max_tokens", "max_completion_tokens", "stop"),
        *("response_format", "think", "reasoning_effort"),
    }
)
SUPPORTED_CHAT = SUPPORTED | {"tools"}
SUPPORTED_COMPLETIONS = SUPPORTED | {"suffix"}
_TOO_LONG = re.compile(r"exceeds (the|maximum) (available )?context (length|size)")
_EFFORTS: dict[str, str | bool] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "max",
}


class OllamaDialect:
    """Speaks Ollama's own API.

    `num_ctx`, a context's length in tokens, and `keep_alive`, for how long a model stays loaded
    (`5m`, or seconds), are sent with every request. Without the former, Ollama cuts prompts
    silently to a context that is short by default. With `truncate` false nothing is cut: a prompt
    that is too long is refused, and a text ends where the context does.
    """

    base_path = ""
    endpoints = GENERATING
    stream_types = frozenset({NDJSON, "application/json"})
    models_path = "/api/tags"

    def __init__(
        self,
        unsupported: Unsupported = "refuse",
        render: Render | None = None,
        num_ctx: int | str | None = None,
        keep_alive: str | None = None,
        truncate: bool | str = True,
    ) -> None:
        """Raises ValueError for a bad option, and for a template: Ollama renders chats itself."""
        if render is not None:
            raise ValueError("Ollama renders chats itself: leave the chat template out")
        self._unsupported = unsupported
        self._options: Json = {}
        if num_ctx is not None:
            self._options["num_ctx"] = whole_number("num_ctx", num_ctx)
        self._always: Json = {}
        if keep_alive is not None:
            self._always["keep_alive"] = _duration(keep_alive)
        if not truth("truncate", truncate):
            self._always |= {"truncate": False, "shift": False}

    def request(self, call: Call) -> UpstreamRequest:
        """Translate a call; raises InvalidRequest."""
        asked = asked_of(call)
        body: Json = {"model": model_of(call), "stream": call.is_stream, **self._always}
        if isinstance(asked, ChatCompletionRequest):
            values = checked(asked, SUPPORTED_CHAT, self._unsupported)
            body["messages"] = ollama_messages(asked.messages)
            body |= _tools(asked, values)
        else:
            values = checked(asked, SUPPORTED_COMPLETIONS, self._unsupported)
            body["prompt"] = prompt_of(call, None)
            # What a prompt is put into, a model's template says; only that knows of suffixes.
            if "suffix" in values:
                body["suffix"] = pattern_of(values, "suffix")
            else:
                body["raw"] = True
        body |= _form(values) | _logprobs(asked, values)
        options = self._options | _options(asked, values)
        if options:
            body["options"] = options
        path = "/api/chat" if call.path == CHAT else "/api/generate"
        return posted(call, path, body)

    def answer(self, call: Call, head: AnswerHead, body: bytes) -> bytes:
        """Translate a whole answer; raises BadGateway where it is none."""
        value = answered(json_value(body))
        said = _said(value, call)
        if said is None or value.get("done") is not True:
            raise invalid_response()
        calls = openai_calls(said.get("tool_calls"), 0, call.answer_id)
        more: Json = {}
        if text_in(said, "thinking"):
            more["reasoning_content"] = said["thinking"]
        if calls:
            for made in calls:
                del made["index"]
            more |= {"tool_calls": calls, "content": text_in(said, "content") or None}
        reason = _finish_reason(value, bool(calls))
        choice = Choice(text_in(said, "content"), reason, more, _draws(call, value))
        return completion(call, [choice], _usage(value))

    def error(self, head: AnswerHead, body: bytes) -> ApiError:
        """Translate an answer with an error status; 404 is an unknown model."""
        error = upstream_error(head, body)
        if error.status == 400 and _TOO_LONG.search(error.message):
            return InvalidRequest(error.message, code=ErrorCode.CONTEXT_LENGTH_EXCEEDED)
        return unknown_model(error.message) if error.status == 404 else error

    def stream(self, call: Call) -> OllamaStream:
        """Return a parser for one stream."""
        return OllamaStream(call)

    def models(self, body: bytes) -> tuple[str, ...] | None:
        """Return the models that `/api/tags` lists, with their tags."""
        return names_in(body, ("models", "name", "model"))


class OllamaStream(TranslatedStream):
    """Translates one stream, line by line."""

    def __init__(self, call: Call) -> None:
        super().__init__(Lines())
        self._call = call
        self._writer = ChunkWriter(call)
        self._num_calls = 0

    def _take(self, piece: bytes) -> bytes:
        value = json_piece(piece)
        if "error" in value:
            raise failed()
        said = _said(value, self._call)
        if said is None:
            raise broken_stream()
        events = b""
        if text_in(said, "thinking") and self._call.path == CHAT:
            events += self._writer.delta({"reasoning_content": said["thinking"]})
        events += self._writer.text(text_in(said, "content"), draws=_draws(self._call, value))
        calls = openai_calls(said.get("tool_calls"), self._num_calls, self._call.answer_id)
        if calls:
            self._num_calls += len(calls)
            events += self._writer.delta({"tool_calls": calls})
        if value.get("done") is not True:
            return events
        self._is_complete = True
        reason = _finish_reason(value, self._num_calls > 0)
        return events + self._writer.finish(reason) + self._writer.end(_usage(value))


def _tools(asked: ChatCompletionRequest, values: Json) -> Json:
    """Return the tools, unless the client wants none called."""
    choice = (asked.model_extra or {}).get("tool_choice")
    if "tools" not in values or choice == "none":
        return {}
    return {"tools": ollama_tools(values["tools"])}


def _form(values: Json) -> Json:
    """Return what form the answer has: JSON, with thoughts."""
    form: Json = {}
    schema = schema_of(values["response_format"]) if "response_format" in values else None
    if schema is not None:
        form["format"] = schema or "json"
    if "reasoning_effort" in values:
        form["think"] = _think(values["reasoning_effort"])
    if "think" in values:
        form["think"] = values["think"]
        if not isinstance(form["think"], bool | str):
            raise wrong_type("think", "true, false or an effort")
    return form


def _logprobs(asked: GenerationRequest, values: Json) -> Json:
    num_top = num_top_logprobs(asked, values)
    if num_top is None:
        return {}
    return {"logprobs": True, "top_logprobs": num_top} if num_top else {"logprobs": True}


def _draws(call: Call, value: Json) -> list[Draw]:
    """Return the tokens of a line or an answer; older releases tell none."""
    if asked_of(call).num_top_logprobs is None:
        return []
    return [
        Draw(_token(told), [_token(one) for one in objects_in(told.get("top_logprobs"))])
        for told in objects_in(value.get("logprobs"))
    ]


def _token(told: Json) -> Token:
    return token(told.get("token"), told.get("logprob"), told.get("bytes"))


def _think(effort: Any) -> str | bool:
    found = _EFFORTS.get(effort) if isinstance(effort, str) else None
    if found is None:
        raise InvalidRequest(
            f"Invalid 'reasoning_effort': it must be one of {', '.join(_EFFORTS)}.",
            param="reasoning_effort",
        )
    return found


def _options(asked: GenerationRequest, values: Json) -> Json:
    options = {_OPTIONS[name]: value for name, value in values.items() if name in _OPTIONS}
    if options.get("top_k", 1) < 1:
        options["top_k"] = 0  # its way to say: all
    if asked.token_limit is not None:
        options["num_predict"] = asked.token_limit
    if asked.stop_strings():
        options["stop"] = asked.stop_strings()
    return options


def _duration(keep_alive: str) -> str | int:
    """Return for how long a model is kept: Ollama takes seconds only as a number."""
    try:
        return int(keep_alive)
    except ValueError:
        return keep_alive


def _said(value: Json, call: Call) -> Json | None:
    """Return what a line or an answer says, as a chat's message; None where it says nothing."""
    if call.path != CHAT:
        text = value.get("response")
        return {"content": text} if isinstance(text, str) else None
    message = value.get("message")
    return message if isinstance(message, dict) else None


def _finish_reason(value: Json, has_calls: bool) -> str:
    if text_in(value, "done_reason") == "length":
        return "length"
    return "tool_calls" if has_calls else "stop"


def _usage(value: Json) -> Json | None:
    prompt, generated = count_in(value, "prompt_eval_count"), count_in(value, "eval_count")
    if prompt is None or generated is None:
        return None
    cached = count_in(value, "prompt_eval_cached_count") or 0  # not told by older releases
    return usage_of(prompt, generated, min(cached, prompt))

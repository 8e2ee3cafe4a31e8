"""The `sglang` dialect: SGLang's own `/generate`.

Each event of a stream has the whole text so far; `[DONE]` ends it. Several choices come mixed,
each event with its `index`. A request that fails in mid-stream says so in its finish reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai_protocol.errors import ApiError
from openai_protocol.requests import GenerationRequest
from openai_protocol.sse import DONE_PAYLOAD, MEDIA_TYPE
from openai_proxy.dialects.asked import asked_of, pattern_of, posted, schema_of
from openai_proxy.dialects.base import GENERATING, AnswerHead, Call, Json, Render, UpstreamRequest
from openai_proxy.dialects.fields import count_in, json_value, names_in, object_in, text_in, to_json
from openai_proxy.dialects.form import Choice, ChunkWriter, completion, usage_of
from openai_proxy.dialects.logprobs import PARAMETERS, num_top_logprobs
from openai_proxy.dialects.openai import broken_stream, invalid_response
from openai_proxy.dialects.options import truth
from openai_proxy.dialects.parameters import Unsupported, checked
from openai_proxy.dialects.prompts import num_texts, prompts_of
from openai_proxy.dialects.reading import Events, TranslatedStream, json_piece
from openai_proxy.dialects.sglang_tokens import ToldTokens
from openai_proxy.dialects.upstream_errors import failed, told_error, upstream_error
from openai_proxy.dialects.withheld import GrowingText

# OpenAI's and our names, and SGLang's
_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "n": "n",
    "seed": "sampling_seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "logit_bias": "logit_bias",
    "min_tokens": "min_new_tokens",
    "stop_token_ids": "stop_token_ids",
    "ignore_eos": "ignore_eos",
    "skip_special_tokens": "skip_special_tokens",
    "include_stop_str_in_output": "no_stop_trim",
}
_GRAMMARS = ("regex", "ebnf")
SUPPORTED = frozenset(
    {
        *(*_NAMES, *_GRAMMARS, *PARAMETERS),
        *("max_tokens", "max_completion_tokens", "stop", "response_format"),
    }
)
_ANY_OBJECT = {"type": "object"}


class SglangDialect:
    """Speaks SGLang's own API; `render` turns chats into prompts, since `/generate` takes text.

    `stream_output`: the server runs with this flag, so that events have new text alone.
    """

    base_path = ""
    endpoints = GENERATING
    stream_types = frozenset({MEDIA_TYPE})
    models_path = "/v1/models"

    def __init__(
        self,
        render: Render | None = None,
        unsupported: Unsupported = "refuse",
        stream_output: bool | str = False,
    ) -> None:
        self._render = render
        self._unsupported = unsupported
        self._is_incremental = truth("stream_output", stream_output)

    def request(self, call: Call) -> UpstreamRequest:
        """Translate a call; raises InvalidRequest."""
        prompts = prompts_of(call, self._render)
        name = "text" if isinstance(prompts[0], str) else "input_ids"
        body: Json = {name: prompts if len(prompts) > 1 else prompts[0]}
        num_texts(call)  # not more than may be asked for at once
        asked = asked_of(call)
        values = checked(asked, SUPPORTED, self._unsupported)
        body["sampling_params"] = _sampling(asked, values)
        body["stream"] = call.is_stream
        body |= _logprobs(asked, values)
        return posted(call, "/generate", body)

    def answer(self, call: Call, head: AnswerHead, body: bytes) -> bytes:
        """Translate a whole answer; raises ApiError where it is none."""
        value = json_value(body)
        if isinstance(value, dict) and "error" in value:
            raise _told(value)
        results = value if isinstance(value, list) else [value]
        if len(results) != num_texts(call):
            raise invalid_response()
        choices = [_choice(call, result) for result in results]
        metas = [object_in(result, "meta_info") for result in results]
        return completion(call, choices, _usage(metas, asked_of(call).num_choices))

    def error(self, head: AnswerHead, body: bytes) -> ApiError:
        """Translate an answer with an error status."""
        return upstream_error(head, body)

    def stream(self, call: Call) -> SglangStream:
        """Return a parser for one stream."""
        return SglangStream(call, num_texts(call), asked_of(call).num_choices, self._is_incremental)

    def models(self, body: bytes) -> tuple[str, ...] | None:
        """Return the models of OpenAI's list, or the one that `/get_model_info` tells."""
        value = json_value(body)
        path = text_in(value, "model_path") if isinstance(value, dict) else ""
        return (path,) if path else names_in(body, ("data", "id"))


class SglangStream(TranslatedStream):
    """Translates one stream: of each text only what is new, and nothing that is taken back."""

    def __init__(
        self, call: Call, num_choices: int, num_samples: int, is_incremental: bool
    ) -> None:
        super().__init__(Events())
        asked = asked_of(call)
        keeps_stop = bool(asked.include_stop_str_in_output)
        stops: Sequence[str] = () if keeps_stop else asked.stop_strings()
        self._writer = ChunkWriter(call)
        self._num_samples = num_samples
        self._texts = [GrowingText(stops, is_incremental) for _ in range(num_choices)]
        self._tokens = [ToldTokens(call, is_incremental) for _ in range(num_choices)]
        self._ended: dict[int, Json] = {}  # a choice's last meta_info

    def _take(self, piece: bytes) -> bytes:
        if piece.strip() == DONE_PAYLOAD:
            return self._cut_off()
        value = json_piece(piece)
        if "error" in value:
            raise _told(value)
        index = count_in(value, "index") or 0
        text = value.get("text")
        if index >= len(self._texts) or not isinstance(text, str):
            raise broken_stream()
        if index in self._ended:
            return b""
        meta = object_in(value, "meta_info")
        reason = _finish_reason(meta)
        shown = self._texts[index].advance(text, reason is not None)
        draws = self._tokens[index].advance(meta, shown)
        events = self._writer.text(shown, index, draws)
        if reason is not None:
            self._ended[index] = meta
            events += self._writer.finish(reason, index)
        return events

    def _cut_off(self) -> bytes:
        # Where every choice has its end, nothing is missing but perhaps the mark.
        if len(self._ended) < len(self._texts):
            raise broken_stream()
        self._is_complete = True
        metas = [self._ended[index] for index in sorted(self._ended)]
        return self._writer.end(_usage(metas, self._num_samples))


def _sampling(asked: GenerationRequest, values: Json) -> Json:
    # null, not left out: where nothing is said, SGLang ends after 128 tokens
    sampling: Json = {"max_new_tokens": asked.token_limit}
    sampling |= {_NAMES[name]: value for name, value in values.items() if name in _NAMES}
    if sampling.get("top_k") == 0:
        sampling["top_k"] = -1  # its way to say: all
    if asked.stop_strings():
        sampling["stop"] = asked.stop_strings()
    for name in _GRAMMARS:
        if name in values:
            sampling[name] = pattern_of(values, name)
    schema = schema_of(values["response_format"]) if "response_format" in values else None
    if schema is not None:
        sampling["json_schema"] = to_json(schema or _ANY_OBJECT).decode()
    return sampling


def _logprobs(asked: GenerationRequest, values: Json) -> Json:
    """Return the wish for tokens' probabilities, which SGLang takes beside the parameters."""
    num_top = num_top_logprobs(asked, values)
    if num_top is None:
        return {}
    return {"return_logprob": True, "top_logprobs_num": num_top, "return_text_in_logprobs": True}


def _choice(call: Call, result: Any) -> Choice:
    text = result.get("text") if isinstance(result, dict) else None
    if not isinstance(text, str):
        raise invalid_response()
    meta = object_in(result, "meta_info")
    reason = _finish_reason(meta) or "stop"
    return Choice(text, reason, draws=ToldTokens(call).advance(meta, text))


def _finish_reason(meta: Json) -> str | None:
    """Return why a choice has ended, None while it has not; raises ApiError where it failed."""
    found = meta.get("finish_reason")
    if found is None:
        return None
    kind = text_in(found, "type") if isinstance(found, dict) else str(found)
    if kind == "abort":
        status = count_in(found, "status_code") if isinstance(found, dict) else None
        raise told_error(status, text_in(found, "message")) if status else failed()
    return "length" if kind == "length" else "stop"


def _usage(metas: Sequence[Json], num_samples: int) -> Json | None:
    """Return the usage of all choices: those of one prompt share it."""
    generated = [count_in(meta, "completion_tokens") for meta in metas]
    prompts = [count_in(meta, "prompt_tokens") for meta in metas[::num_samples]]
    cached = [count_in(meta, "cached_tokens") or 0 for meta in metas[::num_samples]]
    if None in generated or None in prompts:
        return None
    num_prompt = sum(count for count in prompts if count is not None)
    num_generated = sum(count for count in generated if count is not None)
    return usage_of(num_prompt, num_generated, min(sum(cached), num_prompt))


def _told(value: Json) -> ApiError:
    """Return the error that a body or an event tells under status 200: bad input, mostly."""
    error = value["error"]
    text = text_in(error, "message") if isinstance(error, dict) else str(error)
    status = count_in(error, "code") if isinstance(error, dict) else None
    return told_error(status if status is not None and 400 <= status < 600 else 400, text)

"""The `triton` dialect: Triton's generate extension, `POST /v2/models/MODEL/generate[_stream]`.

What is neither `text_input` nor `parameters` is a tensor or a parameter of the model, whatever its
place; parameters are numbers, truth values and strings. What a model knows depends on its backend:
    generic        vLLM's names, as far as they are scalars
    vllm           everything in `sampling_parameters`, as JSON; tells reasons, usage, logprobs
    tensorrt-llm   tensors, with names of their own; `max_tokens` is required; tells tokens
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openai_protocol.errors import ApiError, InvalidRequest, missing_parameter
from openai_protocol.sse import MEDIA_TYPE
from openai_proxy.dialects.asked import asked_of, posted
from openai_proxy.dialects.base import (
    GENERATING,
    AnswerHead,
    Call,
    Json,
    PassedError,
    Render,
    UpstreamRequest,
)
from openai_proxy.dialects.fields import json_value, names_in
from openai_proxy.dialects.generate import GenerateStream, Piece, read_piece, whole_answer
from openai_proxy.dialects.kserve_v2 import ready_models
from openai_proxy.dialects.logprobs import PARAMETERS as LOGPROBS
from openai_proxy.dialects.logprobs import num_top_logprobs
from openai_proxy.dialects.model_paths import model_segment, quoted
from openai_proxy.dialects.options import one_of, truth
from openai_proxy.dialects.parameters import Unsupported, given
from openai_proxy.dialects.prompts import prompt_of
from openai_proxy.dialects.upstream_errors import failed, protocol_error, unknown_model
from openai_proxy.dialects.vocabulary import Defaults, Names, same, vocabulary

_SCALARS = same(
    *("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "min_tokens", "stop"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "ignore_eos"),
    *("skip_special_tokens", "include_stop_str_in_output"),
)
_TENSORRT_LLM = {
    **same("temperature", "top_p", "top_k", "seed", "max_tokens", "min_tokens"),
    **same("presence_penalty", "frequency_penalty", "repetition_penalty"),
    "stop": "stop_words",
}
_UINT64 = 2**64


@dataclass(frozen=True, slots=True)
class _Backend:
    """What is particular to a backend: its names, and what it is asked beside them."""

    names: Mapping[str, str]
    always: Mapping[str, Any]
    only_scalars: bool = False


# Without the first, vLLM's answers begin with the prompt.
_WITHOUT_ECHO = {"exclude_input_in_output": True}
_TOKENS = {"return_num_input_tokens": True, "return_num_output_tokens": True}
_BACKENDS: dict[str, _Backend] = {
    "generic": _Backend(_SCALARS, _WITHOUT_ECHO, only_scalars=True),
    "vllm": _Backend(
        {**_SCALARS, **same("stop_token_ids")},
        {**_WITHOUT_ECHO, **_TOKENS, "return_finish_reason": True},
    ),
    # older ones require both kinds of words, which may be empty
    "tensorrt-llm": _Backend(
        _TENSORRT_LLM, {**_WITHOUT_ECHO, **_TOKENS, "bad_words": "", "stop_words": ""}
    ),
}

# Most versions give every error the status 400, also one inside a model, with its traceback.
_INSIDE = re.compile(r"Traceback|Failed to process the request|Stub process|generate expects model")
_UNKNOWN_MODEL = re.compile(r"Request for unknown model", re.IGNORECASE)


class TritonDialect:
    """Asks for one text at a time.

    `render` makes a prompt of a chat. `backend` is what runs the model; `input_field` and
    `output_field` are the names of its texts. `strip_prompt`: it repeats the prompt all the same.
    `parameters` are those that it knows (OpenAI's name: the model's), `defaults` what each
    request has without being asked. `model` is the one whose readiness is looked at, and meant
    where a request names none.
    """

    base_path = "/v2"
    endpoints = GENERATING
    stream_types = frozenset({MEDIA_TYPE})

    def __init__(
        self,
        render: Render | None = None,
        *,
        backend: str = "generic",
        model: str | None = None,
        version: str | None = None,
        input_field: str = "text_input",
        output_field: str = "text_output",
        strip_prompt: bool | str = False,
        parameters: Names | None = None,
        defaults: Defaults | None = None,
        unsupported: Unsupported = "refuse",
    ) -> None:
        kind = _BACKENDS[one_of("backend", backend, *_BACKENDS)]
        self._version = "" if version is None else f"/versions/{quoted(version)}"
        self.models_path = (
            "/models/stats" if model is None else f"/models/{quoted(model)}{self._version}/ready"
        )
        self._render = render
        self._backend = backend
        self._always = kind.always
        self._model = model
        self._input_field = input_field
        self._output_field = output_field
        self._strip_prompt = truth("strip_prompt", strip_prompt)
        self._vocabulary = vocabulary(
            parameters, defaults, kind.names, unsupported, kind.only_scalars
        )

    def request(self, call: Call) -> UpstreamRequest:
        """Translate a call; raises InvalidRequest for what such a model cannot do."""
        body = {self._input_field: prompt_of(call, self._render), "parameters": self._asked(call)}
        verb = "generate_stream" if call.is_stream else "generate"
        path = f"/models/{model_segment(call, self._model)}{self._version}/{verb}"
        return posted(call, path, body)

    def answer(self, call: Call, head: AnswerHead, body: bytes) -> bytes:
        """Translate a whole answer; raises BadGateway where it is none."""
        return whole_answer(call, self._read(json_value(body)), self._echo(call)).body(call)

    def error(self, head: AnswerHead, body: bytes) -> ApiError:
        """Translate an answer with an error status; what failed inside a model stays inside."""
        error = protocol_error(head, body)
        if not isinstance(error, InvalidRequest) or isinstance(error, PassedError):
            return error
        if _INSIDE.search(error.message):
            return failed()
        if _UNKNOWN_MODEL.search(error.message):
            return unknown_model(error.message)
        return error

    def stream(self, call: Call) -> GenerateStream:
        """Return a parser for one stream."""
        return GenerateStream(call, self._read, self._echo(call))

    def models(self, body: bytes) -> tuple[str, ...] | None:
        """Return the models that have statistics, or the one that was asked for, if it is ready."""
        if self._model is not None:
            return ready_models(body, self._model)
        return names_in(body, ("model_stats", "name"))

    def _asked(self, call: Call) -> Json:
        asked = asked_of(call)
        always = {**self._always, "stream": call.is_stream}
        if self._backend == "vllm":
            parameters = self._vocabulary.parameters(asked, done_here=LOGPROBS)
            if (num_top := num_top_logprobs(asked, given(asked))) is not None:
                parameters["logprobs"] = num_top
                always["return_logprobs"] = True
            return {**always, "sampling_parameters": json.dumps(parameters)}
        parameters = self._vocabulary.parameters(asked)
        if self._backend == "tensorrt-llm":
            _require_limit(parameters)
            if isinstance(parameters.get("seed"), int):
                parameters["seed"] %= _UINT64  # it has no sign there
        return {**always, **parameters}

    def _echo(self, call: Call) -> str:
        return prompt_of(call, self._render) if self._strip_prompt else ""

    def _read(self, value: Any) -> Piece:
        return read_piece(value, self._output_field)


def _require_limit(parameters: Json) -> None:
    if "max_tokens" not in parameters:
        raise missing_parameter("max_tokens", "this model needs it")

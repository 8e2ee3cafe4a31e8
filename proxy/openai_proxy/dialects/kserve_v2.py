"""The `kserve-v2` dialect: the Open Inference Protocol, by tensors or by its generate extension.

    infer     POST /v2/models/MODEL/infer: texts in and out as tensors of type BYTES; no streams
    generate  POST /v2/models/MODEL/generate, and generate_stream, whose events are pieces of a text

KServe's own servers have infer alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openai_protocol.errors import ApiError
from openai_protocol.sse import MEDIA_TYPE
from openai_proxy.dialects.asked import asked_of, posted
from openai_proxy.dialects.base import (
    GENERATING,
    AnswerHead,
    Call,
    Json,
    Render,
    StreamParser,
    UpstreamRequest,
)
from openai_proxy.dialects.collected import CollectedStream, Whole
from openai_proxy.dialects.fields import json_value
from openai_proxy.dialects.form import Choice
from openai_proxy.dialects.generate import (
    GenerateStream,
    Piece,
    count_of,
    known_usage,
    read_piece,
    whole_answer,
)
from openai_proxy.dialects.model_paths import model_segment, quoted
from openai_proxy.dialects.openai import invalid_response
from openai_proxy.dialects.options import one_of, truth
from openai_proxy.dialects.outcomes import finish_reason, single
from openai_proxy.dialects.parameters import Unsupported
from openai_proxy.dialects.prompts import num_texts, prompt_of, refuse_many_copies, texts_of
from openai_proxy.dialects.tensors import read_answer, read_tensors
from openai_proxy.dialects.upstream_errors import protocol_error
from openai_proxy.dialects.vocabulary import Defaults, Names, same, vocabulary

# The generate extension defines these; of what `infer` knows the protocol says nothing.
_NAMES = same("temperature", "top_p", "max_tokens", "stop")
# KServe's own server says nothing of what a binary answer is.
_WHOLE = frozenset({"application/json", "application/octet-stream", ""})


class KServeV2Dialect:
    """Asks for texts by `infer`, or for one by `generate`.

    `render` makes a prompt of a chat. `input_tensor` takes the texts, in the shape [n], or [n, 1]
    where `is_batched`; `output_tensor` has them, by default the first of type BYTES. `text_field`
    is set where its elements are JSON objects with the text in that field (MLServer's are).
    `strip_prompt`: texts repeat the prompt. `parameters` are those that the model knows
    (OpenAI's name: the model's), `defaults` what each request has without being asked. `model` is
    the one whose readiness is looked at, and meant where a request names none.
    """

    base_path = "/v2"
    endpoints = GENERATING

    def __init__(
        self,
        render: Render | None = None,
        *,
        api: str = "infer",
        model: str | None = None,
        version: str | None = None,
        input_tensor: str = "input-0",
        output_tensor: str | None = None,
        is_batched: bool | str = False,
        text_field: str | None = None,
        strip_prompt: bool | str = False,
        parameters: Names | None = None,
        defaults: Defaults | None = None,
        unsupported: Unsupported = "refuse",
    ) -> None:
        is_infer = one_of("api", api, "infer", "generate") == "infer"
        self.stream_types = _WHOLE if is_infer else frozenset({MEDIA_TYPE})
        self._version = "" if version is None else f"/versions/{quoted(version)}"
        self.models_path = (
            "/models" if model is None else f"/models/{quoted(model)}{self._version}/ready"
        )
        self._is_infer = is_infer
        self._render = render
        self._model = model
        self._input_tensor = input_tensor
        self._output_tensor = output_tensor
        self._is_batched = truth("is_batched", is_batched)
        self._text_field = text_field
        self._strip_prompt = truth("strip_prompt", strip_prompt)
        self._vocabulary = vocabulary(
            parameters, defaults, {} if is_infer else _NAMES, unsupported, only_scalars=is_infer
        )

    def request(self, call: Call) -> UpstreamRequest:
        """Translate a call; raises InvalidRequest for what such a model cannot do."""
        if self._is_infer:
            verb, body = "infer", self._infer_body(call)
        else:
            verb = "generate_stream" if call.is_stream else "generate"
            body = self._generate_body(call)
        path = f"/models/{model_segment(call, self._model)}{self._version}/{verb}"
        return posted(call, path, body)

    def answer(self, call: Call, head: AnswerHead, body: bytes) -> bytes:
        """Translate a whole answer; raises BadGateway where it is none."""
        if self._is_infer:
            return self._read_tensors(call, body).body(call)
        return whole_answer(call, _read_piece(json_value(body)), self._echo(call)).body(call)

    def error(self, head: AnswerHead, body: bytes) -> ApiError:
        """Translate an answer with an error status."""
        return protocol_error(head, body)

    def stream(self, call: Call) -> StreamParser:
        """Return a parser for one stream, or for an answer that becomes one."""
        if self._is_infer:
            return CollectedStream(call, lambda body: self._read_tensors(call, body))
        return GenerateStream(call, _read_piece, self._echo(call))

    def models(self, body: bytes) -> tuple[str, ...] | None:
        """Return the models in KServe's list, or the one that was asked for, if it is ready."""
        return ready_models(body, self._model)

    def _infer_body(self, call: Call) -> Json:
        count = num_texts(call)
        refuse_many_copies(call)
        texts = texts_of(call, self._render)
        data = [text for text in texts for _ in range(asked_of(call).num_choices)]
        tensor = {
            "name": self._input_tensor,
            "shape": [count, 1] if self._is_batched else [count],
            "datatype": "BYTES",
            "data": data,
        }
        body: Json = {"id": call.answer_id, "inputs": [tensor]}
        if parameters := self._vocabulary.parameters(asked_of(call), done_here=("n",)):
            body["parameters"] = parameters
        if self._output_tensor is not None:
            body["outputs"] = [{"name": self._output_tensor}]
        return body

    def _generate_body(self, call: Call) -> Json:
        parameters = self._vocabulary.parameters(asked_of(call))
        if isinstance(stop := parameters.get("stop"), str):
            parameters["stop"] = [stop]
        # without the details nobody would know why a text ends
        return {
            "text_input": prompt_of(call, self._render),
            "parameters": {"details": True, **parameters},
        }

    def _echo(self, call: Call) -> str:
        return prompt_of(call, self._render) if self._strip_prompt else ""

    def _read_tensors(self, call: Call, body: bytes) -> Whole:
        answer, binary = read_answer(body)
        tensors = read_tensors(answer, binary)
        found = self._texts(answer, tensors)
        if len(found) != num_texts(call):
            raise invalid_response()
        per_prompt = asked_of(call).num_choices
        echoes = texts_of(call, self._render) if self._strip_prompt else []
        reasons = tensors.get("finish_reason", [])
        choices = []
        for at, text in enumerate(found):
            echo = echoes[at // per_prompt] if echoes else ""
            reason = finish_reason(reasons[at]) if len(reasons) == len(found) else None
            choices.append(Choice(text.removeprefix(echo), reason or "stop"))
        usage = None
        if len(found) == 1:
            usage = known_usage(
                count_of(tensors.get("num_input_tokens")),
                count_of(tensors.get("num_output_tokens")),
            )
        return Whole(choices, usage)

    def _texts(self, answer: Json, tensors: Mapping[str, list[Any]]) -> list[str]:
        name = self._output_tensor
        if name is None:
            of_bytes = [one for one in answer["outputs"] if one.get("datatype") == "BYTES"]
            name = str(of_bytes[0].get("name")) if of_bytes else ""
        elements = tensors.get(name)
        if elements is None:
            raise invalid_response()
        return [self._text(element) for element in elements]

    def _text(self, element: Any) -> str:
        if self._text_field is not None and isinstance(element, str):
            element = single(json_value(element.encode()))
            element = element.get(self._text_field) if isinstance(element, dict) else None
        if not isinstance(element, str):
            raise invalid_response()
        return element


def ready_models(body: bytes, model: str | None) -> tuple[str, ...] | None:
    """Return the models in a list, or the one that a 200 of its `ready` path was about.

    That answer's body is empty by the protocol; KServe's has a word in it.
    """
    value = json_value(body)
    if model is not None:
        is_ready = not isinstance(value, dict) or str(value.get("ready", True)).lower() == "true"
        return (model,) if is_ready else ()
    names = value.get("models") if isinstance(value, dict) else None
    if not isinstance(names, list):
        return None
    return tuple(name for name in names if isinstance(name, str))


def _read_piece(value: Any) -> Piece:
    return read_piece(value, "text_output")

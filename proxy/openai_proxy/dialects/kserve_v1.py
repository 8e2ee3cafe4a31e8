"""The `kserve-v1` dialect: `POST /v1/models/MODEL:predict`, instances in, predictions out.

KServe says nothing of what an instance is; three forms of it are known here:
    openai  {"prompt" | "messages", parameters}   our predictor; it tells reasons and usage
    object  {"prompt": text, parameters}          the field has any name
    text    text                                  parameters stand beside the instances

It has no streams: whoever wants one gets the whole answer as one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from openai_protocol.errors import ApiError
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest, GenerationRequest
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
from openai_proxy.dialects.collected import CollectedStream, Whole
from openai_proxy.dialects.fields import json_value, to_json
from openai_proxy.dialects.form import Choice, usage_of
from openai_proxy.dialects.model_paths import model_segment, quoted
from openai_proxy.dialects.openai import invalid_response
from openai_proxy.dialects.options import one_of, truth
from openai_proxy.dialects.outcomes import finish_reason, single
from openai_proxy.dialects.parameters import Unsupported
from openai_proxy.dialects.prompts import num_texts, refuse_many_copies, texts_of
from openai_proxy.dialects.upstream_errors import answered, protocol_error
from openai_proxy.dialects.vocabulary import Defaults, Names, same, vocabulary

# A prediction is one text: choices are instances of their own, and logprobs have no place.
_NOT_IN_AN_INSTANCE = frozenset({"model", "n", "stream", "stream_options", "user"})
_OPENAI = same(
    *(name for name in GenerationRequest.model_fields if name not in _NOT_IN_AN_INSTANCE)
)
_PLACE = re.compile(r"^(instances(\[\d+\])?|parameters)\.?")
_INT64 = 2**63


class KServeV1Dialect:
    """Sends a request as instances: one for each choice of each prompt.

    `render` makes a prompt of a chat, where instances have no messages. `instance` is their form;
    `prompt_field` and `text_field` say where an object holds the prompt, and a prediction that is
    one the text. `strip_prompt`: predictions repeat the prompt. `parameters` are those that the
    model knows (OpenAI's name: the model's), `defaults` what each request has without being asked.
    `model` is the one whose readiness is looked at, and meant where a request names none.
    """

    base_path = "/v1"
    endpoints = GENERATING
    stream_types = frozenset({"application/json"})

    def __init__(
        self,
        render: Render | None = None,
        *,
        model: str | None = None,
        instance: str = "openai",
        prompt_field: str = "prompt",
        text_field: str = "text",
        strip_prompt: bool | str = False,
        parameters: Names | None = None,
        defaults: Defaults | None = None,
        unsupported: Unsupported = "refuse",
    ) -> None:
        self.models_path = "/models" if model is None else f"/models/{quoted(model)}"
        self._render = render
        self._model = model
        self._instance = one_of("instance", instance, "openai", "object", "text")
        self._prompt_field = prompt_field
        self._text_field = text_field
        self._strip_prompt = truth("strip_prompt", strip_prompt)
        usual = _OPENAI if instance == "openai" else {}
        self._vocabulary = vocabulary(parameters, defaults, usual, unsupported)
        self._seed = self._vocabulary.names.get("seed", "seed")

    def request(self, call: Call) -> UpstreamRequest:
        """Translate a call; raises InvalidRequest for what such a model cannot do."""
        asked = asked_of(call)
        num_texts(call)  # not more than may be asked for at once
        refuse_many_copies(call)
        path = f"/models/{model_segment(call, self._model)}:predict"
        parameters = self._vocabulary.parameters(asked, done_here=("n",))
        instances = [
            self._as_instance(base, parameters, choice)
            for base in self._bases(call)
            for choice in range(asked.num_choices)
        ]
        body: Json = {"instances": instances}
        if self._instance == "text" and parameters:
            body["parameters"] = parameters
        return posted(call, path, body)

    def answer(self, call: Call, head: AnswerHead, body: bytes) -> bytes:
        """Translate a whole answer; raises BadGateway where it is none."""
        return self._read(call, body).body(call)

    def error(self, head: AnswerHead, body: bytes) -> ApiError:
        """Translate an answer with an error status; what is wrong is named as its client did."""
        error = protocol_error(head, body)
        return _named_as_asked(error) if isinstance(error, PassedError) else error

    def stream(self, call: Call) -> CollectedStream:
        """Return a parser for one answer, which becomes a stream."""
        return CollectedStream(call, lambda body: self._read(call, body))

    def models(self, body: bytes) -> tuple[str, ...] | None:
        """Return the models in KServe's list, or the one that was asked for, if it is ready."""
        value = json_value(body)
        if not isinstance(value, dict):
            return None
        if self._model is not None:
            return (self._model,) if str(value.get("ready", True)).lower() == "true" else ()
        names = value.get("models")
        if not isinstance(names, list):
            return None
        return tuple(name for name in names if isinstance(name, str))

    def _bases(self, call: Call) -> Sequence[Any]:
        """Return what the instances of each prompt have in common."""
        asked = asked_of(call)
        if self._instance != "openai":
            texts = texts_of(call, self._render)
            return texts if self._instance == "text" else [{self._prompt_field: t} for t in texts]
        user = {"user": asked.user} if asked.user else {}
        if isinstance(asked, ChatCompletionRequest):
            messages = [message.model_dump(exclude_unset=True) for message in asked.messages]
            return [{"messages": messages, **user}]
        assert isinstance(asked, CompletionRequest)
        return [{"prompt": prompt, **user} for prompt in asked.prompts()]

    def _as_instance(self, base: Any, parameters: Json, choice: int) -> Any:
        if self._instance == "text":
            return base
        instance = {**parameters, **base}
        seed = instance.get(self._seed)
        if choice and type(seed) is int:
            # each choice is a request of its own there: with one seed all would be the same
            instance[self._seed] = (seed + choice + _INT64) % (2 * _INT64) - _INT64
        return instance

    def _read(self, call: Call, body: bytes) -> Whole:
        predictions = answered(json_value(body)).get("predictions")
        if not isinstance(predictions, list) or len(predictions) != num_texts(call):
            raise invalid_response()
        per_prompt = asked_of(call).num_choices
        echoes = texts_of(call, self._render) if self._strip_prompt else []
        choices = []
        for at, prediction in enumerate(predictions):
            choice = self._choice(single(prediction))
            echo = echoes[at // per_prompt] if echoes else ""
            choices.append(Choice(choice.text.removeprefix(echo), choice.finish_reason))
        return Whole(choices, _usage(predictions, per_prompt))

    def _choice(self, prediction: Any) -> Choice:
        reason = None
        if isinstance(prediction, dict):
            reason = finish_reason(prediction.get("finish_reason"))
            prediction = prediction.get(self._text_field)
        if not isinstance(prediction, str):
            raise invalid_response()
        return Choice(prediction, reason or "stop")


def _usage(predictions: list[Any], per_prompt: int) -> Json | None:
    """Add up the predictions' usage, if all tell theirs; a prompt counts once for its choices."""
    used = [one.get("usage") if isinstance(one, dict) else None for one in map(single, predictions)]
    if not all(isinstance(usage, dict) and _tells_tokens(usage) for usage in used):
        return None
    usages: list[Json] = [usage for usage in used if usage is not None]
    of_prompts = usages[::per_prompt]
    return usage_of(
        sum(usage["prompt_tokens"] for usage in of_prompts),
        sum(usage["completion_tokens"] for usage in usages),
        sum(_cached_tokens(usage) for usage in of_prompts),
    )


def _tells_tokens(usage: Json) -> bool:
    return all(type(usage.get(name)) is int for name in ("prompt_tokens", "completion_tokens"))


def _cached_tokens(usage: Json) -> int:
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return cached if type(cached) is int else 0


def _named_as_asked(error: PassedError) -> ApiError:
    """Take the instance off the field that an error names: its client knows of no instances."""
    envelope = json_value(error.body())
    found = envelope["error"]
    param = found.get("param")
    if not isinstance(param, str) or not _PLACE.match(param):
        return error
    found["param"] = _PLACE.sub("", param) or None
    renamed = PassedError(error.status, error.code, to_json(envelope))
    renamed.retry_after_seconds = error.retry_after_seconds
    return renamed

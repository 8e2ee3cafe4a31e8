"""The model as KServe sees it: V1 `:predict` over the same engine as OpenAI's routes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from kserve import Model

from kserve_llamacpp.api.answer import collect
from kserve_llamacpp.engine.generation import Generation
from kserve_llamacpp.served_model import ServedModel
from kserve_llamacpp.tenant import Tenant, tenant_of
from openai_protocol import responses
from openai_protocol.errors import ErrorCode, InvalidRequest
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_protocol.responses import Json
from openai_protocol.validation import check_request

MAX_INSTANCES = 128


class LlamaCppModel(Model):  # type: ignore[misc]  # kserve has no types
    """KServe's handle of a served model; `ready` follows the engine's state."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served
        super().__init__(served.name)

    @property
    def ready(self) -> bool:
        """Whether a request would be answered now (KServe asks for this attribute)."""
        return self.served.is_ready

    @ready.setter
    def ready(self, _: bool) -> None:
        """Ignore what KServe sets: the engine knows better."""

    def load(self) -> bool:
        """Return the readiness: the server loads models itself, before KServe's first request."""
        return self.ready

    def stop(self) -> None:
        """Do nothing: the server stops the engine after the last request."""

    def validate(self, payload: Any) -> Any:
        """Return what came: `predict` checks it, and its errors name the field."""
        return payload

    async def predict(
        self, payload: Any, headers: dict[str, str] | None = None, response_headers: Any = None
    ) -> Json:
        """Answer `{"instances": [...]}` with one prediction each, computed together.

        An instance is a text, or an object with `prompt` or `messages` and parameters of its own;
        `parameters` beside `instances` hold for all. Raises ApiError that names the instance.
        """
        requests = [
            _request(instance, parameters, at)
            for at, (instance, parameters) in enumerate(_instances(payload))
        ]
        headers = {name.lower(): value for name, value in (headers or {}).items()}
        request_id = headers.get("x-request-id") or f"req-{uuid4().hex}"
        generations: list[Generation] = []
        try:
            for at, request in enumerate(requests):
                tenant = tenant_of(headers, request.user)
                generations += _submit(self.served, request, request_id, tenant, at)
            predictions = await asyncio.gather(
                *(_predict(generation, at) for at, generation in enumerate(generations))
            )
        finally:
            self.served.cancel(generations)
        return {"predictions": predictions}


def _instances(payload: Any) -> list[tuple[Any, Json]]:
    if not isinstance(payload, dict):
        raise InvalidRequest(
            'The body must be an object: {"instances": [...]}.', code=ErrorCode.INVALID_TYPE
        )
    instances = payload.get("instances")
    if instances is None:
        raise InvalidRequest(
            "Missing required parameter: 'instances'.",
            param="instances",
            code=ErrorCode.MISSING_REQUIRED_PARAMETER,
        )
    if not isinstance(instances, list):
        raise InvalidRequest(
            "Invalid 'instances': it must be a list.",
            param="instances",
            code=ErrorCode.INVALID_TYPE,
        )
    if not instances or len(instances) > MAX_INSTANCES:
        raise InvalidRequest(
            f"Invalid 'instances': it must have 1 to {MAX_INSTANCES} elements.", param="instances"
        )
    parameters = payload.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidRequest(
            "Invalid 'parameters': it must be an object.",
            param="parameters",
            code=ErrorCode.INVALID_TYPE,
        )
    return [(instance, parameters) for instance in instances]


def _request(instance: Any, parameters: Json, at: int) -> ChatCompletionRequest | CompletionRequest:
    if isinstance(instance, str):
        instance = {"prompt": instance}
    if not isinstance(instance, dict) or ("prompt" in instance) == ("messages" in instance):
        raise InvalidRequest(
            f"Invalid 'instances[{at}]': it must be a text, or an object with either 'prompt' "
            "or 'messages'.",
            param=f"instances[{at}]",
        )
    own = instance.get("parameters") or {}
    body = {**parameters, **(own if isinstance(own, dict) else {}), **instance}
    body.pop("parameters", None)
    if body.pop("stream", None):
        raise _unsupported("stream", "V1 predict answers in one piece")
    request: ChatCompletionRequest | CompletionRequest
    with _named(at):
        if "messages" in body:
            request = check_request(ChatCompletionRequest, body)
        else:
            request = check_request(CompletionRequest, body)
        _refuse_more_than_a_text(request)
    return request


def _refuse_more_than_a_text(request: ChatCompletionRequest | CompletionRequest) -> None:
    wants = {
        "n": request.num_choices > 1,
        "best_of": request.num_generated_choices > 1,
        "logprobs": request.num_top_logprobs is not None,
        "echo": isinstance(request, CompletionRequest) and bool(request.echo),
    }
    for name, is_wanted in wants.items():
        if is_wanted:
            raise _unsupported(name, "a prediction is one text")


def _unsupported(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"Unsupported parameter: '{name}': {why}.",
        param=name,
        code=ErrorCode.UNSUPPORTED_PARAMETER,
    )


def _submit(
    served: ServedModel,
    request: ChatCompletionRequest | CompletionRequest,
    request_id: str,
    tenant: Tenant,
    at: int,
) -> list[Generation]:
    with _named(at):
        if isinstance(request, ChatCompletionRequest):
            return served.chat(request, request_id, tenant)
        if len(request.prompts()) != 1:
            raise InvalidRequest("Invalid 'prompt': an instance has one prompt.", param="prompt")
        return served.complete(request, request_id, tenant)


async def _predict(generation: Generation, at: int) -> Json:
    with _named(at):
        prompt_tokens = await generation.started()
        result = await collect(generation)
    return {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "usage": responses.usage(prompt_tokens, len(generation.tokens), generation.cached_tokens),
    }


@contextmanager
def _named(at: int) -> Iterator[None]:
    """Put the instance's place before the name of the field that an error is about."""
    try:
        yield
    except InvalidRequest as error:
        place = f"instances[{at}]"
        error.param = f"{place}.{error.param}" if error.param else place
        raise

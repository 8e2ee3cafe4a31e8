"""OpenAI's routes: chat completions, completions and models, under `/v1` and `/openai/v1`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from kserve_llamacpp.api.answer import Answer
from kserve_llamacpp.api.models import Models
from kserve_llamacpp.api.path_names import NAME
from kserve_llamacpp.api.shapes import ChatShape, TextShape
from kserve_llamacpp.resume import resumable_of
from kserve_llamacpp.served_model import ServedModel
from kserve_llamacpp.tenant import tenant_of
from openai_protocol import responses
from openai_protocol.request_limits import RequestLimits
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_protocol.responses import Json

_OWNER = "kserve-llamacpp"
PREFIXES = ("/v1", "/openai/v1")
_CHAT = "/chat/completions"
_TEXT = "/completions"
# Their bodies are checked while they are parsed.
GENERATING = frozenset(prefix + path for prefix in PREFIXES for path in (_CHAT, _TEXT))


def add_openai_routes(app: FastAPI, models: Models, limits: RequestLimits) -> None:
    """Register OpenAI's routes under both prefixes."""
    routes = _Routes(models, limits)
    for prefix in PREFIXES:
        for method, path, endpoint in (
            ("GET", "/models", routes.list_models),
            ("GET", f"/models/{NAME}", routes.get_model),
        ):
            app.add_api_route(
                prefix + path, endpoint, methods=[method], response_model=None, tags=["OpenAI"]
            )
        for path, generate in ((_CHAT, routes.chat), (_TEXT, routes.complete)):
            app.router.add_api_route(
                prefix + path,
                generate,
                methods=["POST"],
                response_model=None,
                tags=["OpenAI"],
                route_class_override=_DirectRoute,
            )


class _DirectRoute(APIRoute):
    """A route whose endpoint takes the request and nothing else: nothing is solved for it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


class _Routes:
    """The endpoints; owner: the application."""

    def __init__(self, models: Models, limits: RequestLimits) -> None:
        self._models = models
        self._limits = limits

    async def list_models(self) -> Response:
        """Answer for OpenAI's clients (`data`: what is ready) and KServe's (`models`: all)."""
        names = self._models.names()
        known = [self._models.get(name) for name in names]
        body = responses.model_list([_model_object(model) for model in known if model.is_ready])
        return _json({**body, "models": names})

    async def get_model(self, model_name: str) -> Response:
        """Answer OpenAI's model object with KServe's `name` and `ready`; 503 while not ready."""
        model = self._models.ready(model_name)
        return _json({**_model_object(model), "name": model.name, "ready": True})

    async def chat(self, request: Request) -> Response:
        """Answer a chat completion, whole or as a stream."""
        body = self._limits.parse(ChatCompletionRequest, await request.body())
        model = self._models.get(body.model)
        tenant = tenant_of(request.headers, body.user)
        resumable = resumable_of(request.headers, body)
        shape = ChatShape(model.name, model.facts.fingerprint, body.num_top_logprobs)
        generations = await model.chat(body, request.headers["x-request-id"], tenant, resumable)
        return await Answer(request.scope, model, body, generations, shape, resumable).response()

    async def complete(self, request: Request) -> Response:
        """Answer a text completion, whole or as a stream."""
        body = self._limits.parse(CompletionRequest, await request.body())
        model = self._models.get(body.model)
        tenant = tenant_of(request.headers, body.user)
        resumable = resumable_of(request.headers, body)
        shape = TextShape(model.name, model.facts.fingerprint, body.num_top_logprobs, _echoes(body))
        generations = model.complete(body, request.headers["x-request-id"], tenant, resumable)
        return await Answer(request.scope, model, body, generations, shape, resumable).response()


def _echoes(body: CompletionRequest) -> list[str] | None:
    """Return the text that each choice begins with, where prompts are to be repeated."""
    if not body.echo:
        return None
    texts = [prompt for prompt in body.prompts() if isinstance(prompt, str)]
    return [text for text in texts for _ in range(body.num_choices)]


def _model_object(model: ServedModel) -> Json:
    return responses.model_object(model.name, model.created, _OWNER)


def _json(body: Json) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")

"""OpenAI's routes: chat completions, completions and models, under `/v1` and `/openai/v1`."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from fastapi import APIRouter, Request, Response

from kserve_llamacpp.api.answer import Answer
from kserve_llamacpp.api.shapes import ChatShape, TextShape
from kserve_llamacpp.resume import resumable_of
from kserve_llamacpp.served_model import ServedModel
from kserve_llamacpp.tenant import tenant_of
from openai_protocol import responses
from openai_protocol.errors import Unavailable, model_not_found
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_protocol.responses import Json
from openai_protocol.validation import parse_request

_OWNER = "kserve-llamacpp"
PREFIXES = ("/v1", "/openai/v1")


class Models:
    """Finds served models by name; `names` and `find` come from KServe's repository.

    `check_accepting` raises Unavailable while the server is about to end.
    """

    def __init__(
        self,
        names: Callable[[], list[str]],
        find: Callable[[str], ServedModel | None],
        check_accepting: Callable[[], None],
    ) -> None:
        self.names = names
        self.check_accepting = check_accepting
        self._find = find

    def get(self, name: str | None) -> ServedModel:
        """Return a model; without a name the only one there is. Raises NotFound."""
        names = self.names()
        if name is None and len(names) == 1:
            name = names[0]
        model = self._find(name) if name is not None else None
        if model is None:
            raise model_not_found(name or "")
        return model


def routers(models: Models) -> list[APIRouter]:
    """Return OpenAI's routes under both prefixes."""
    routes = _Routes(models)
    result = []
    for prefix in PREFIXES:
        router = APIRouter(prefix=prefix, tags=["OpenAI"])
        add = router.add_api_route
        add("/chat/completions", routes.chat, methods=["POST"], response_model=None)
        add("/completions", routes.complete, methods=["POST"], response_model=None)
        add("/models", routes.list_models, methods=["GET"], response_model=None)
        add("/models/{model_name}", routes.get_model, methods=["GET"], response_model=None)
        result.append(router)
    return result


class _Routes:
    """The endpoints; owner: the application."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def list_models(self) -> Response:
        """Answer for OpenAI's clients (`data`: what is ready) and KServe's (`models`: all)."""
        names = self._models.names()
        known = [self._models.get(name) for name in names]
        body = responses.model_list([_model_object(model) for model in known if model.is_ready])
        return _json({**body, "models": names})

    async def get_model(self, model_name: str) -> Response:
        """Answer OpenAI's model object with KServe's `name` and `ready`; 503 while not ready."""
        model = self._models.get(model_name)
        self._models.check_accepting()
        if not model.is_ready:
            raise Unavailable(f"The model `{model.name}` is not ready.", retry_after_seconds=1.0)
        return _json({**_model_object(model), "name": model.name, "ready": True})

    async def chat(self, request: Request) -> Response:
        """Answer a chat completion, whole or as a stream."""
        body = parse_request(ChatCompletionRequest, await request.body())
        model = self._models.get(body.model)
        tenant = tenant_of(request.headers, body.user)
        resumable = resumable_of(request.headers, body)
        shape = ChatShape(model.name, model.facts.fingerprint, body.num_top_logprobs)
        generations = model.chat(body, request.headers["x-request-id"], tenant, resumable)
        return await Answer(request.scope, model, body, generations, shape, resumable).response()

    async def complete(self, request: Request) -> Response:
        """Answer a text completion, whole or as a stream."""
        body = parse_request(CompletionRequest, await request.body())
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

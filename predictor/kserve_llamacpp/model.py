"""The model as KServe sees it: V1 `:predict` over the same engine as OpenAI's routes."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

from kserve import Model

from kserve_llamacpp.api.answer import collect
from kserve_llamacpp.chat.instances import Asked, instance_requests, place_named
from kserve_llamacpp.engine_client.generation import Generation
from kserve_llamacpp.served_model import ServedModel
from kserve_llamacpp.tenant import Tenant, tenant_of
from openai_protocol import responses
from openai_protocol.requests import ChatCompletionRequest
from openai_protocol.responses import Json


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
        requests = instance_requests(payload, self.served.limits)
        headers = {name.lower(): value for name, value in (headers or {}).items()}
        request_id = headers.get("x-request-id") or f"req-{uuid4().hex}"
        generations: list[Generation] = []
        try:
            for at, request in enumerate(requests):
                tenant = tenant_of(headers, request.user)
                with place_named(f"instances[{at}]"):
                    generations += await self._submit(request, request_id, tenant)
                await asyncio.sleep(0)  # others have their turn between two instances
            predictions = await asyncio.gather(
                *(_predict(generation, at) for at, generation in enumerate(generations))
            )
        finally:
            self.served.cancel(generations)
        return {"predictions": predictions}

    async def _submit(self, request: Asked, request_id: str, tenant: Tenant) -> list[Generation]:
        if isinstance(request, ChatCompletionRequest):
            return await self.served.chat(request, request_id, tenant)
        return self.served.complete(request, request_id, tenant)


async def _predict(generation: Generation, at: int) -> Json:
    with place_named(f"instances[{at}]"):
        prompt_tokens = await generation.started()
        result = await collect(generation)
    return {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "usage": responses.usage(prompt_tokens, len(generation.tokens), generation.cached_tokens),
    }

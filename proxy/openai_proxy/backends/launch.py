"""From the settings to a supervised backend, and how the proxy looks at it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import structlog

from openai_protocol.errors import ApiError
from openai_protocol.requests import CompletionRequest
from openai_proxy.backends.base import Backend, Checks, Supervisor, SupervisorOptions
from openai_proxy.backends.llamacpp import LlamaCpp
from openai_proxy.backends.output import Output
from openai_proxy.config import Settings
from openai_proxy.dialects.base import COMPLETIONS, Call
from openai_proxy.metrics import Metrics

if TYPE_CHECKING:
    from openai_proxy.assembly import Assembly

log = structlog.get_logger("openai_proxy.backend")

CHECK_TIMEOUT_SECONDS = 2.0


def supervisor(
    settings: Settings,
    assembly: Callable[[], Awaitable[Assembly]],
    on_ready: Callable[[str | None], None],
    metrics: Metrics,
) -> Supervisor:
    """Return the supervisor of the configured backend, not yet running."""
    backend = _backend(settings)
    options = SupervisorOptions(
        host=settings.backend_host,
        port=settings.backend_port,
        startup_timeout_seconds=settings.backend_startup_timeout,
        max_restarts=settings.backend_max_restarts,
        backoff_seconds=settings.backend_backoff_seconds,
        backoff_cap_seconds=settings.backend_backoff_cap_seconds,
    )
    return Supervisor(
        backend,
        options,
        checks(backend.model, settings.backend_startup_timeout, assembly),
        Output(_passer(backend.name)),
        on_ready,
        metrics.backend_started,
    )


def checks(
    model: str, warm_up_seconds: float, assembly: Callable[[], Awaitable[Assembly]]
) -> Checks:
    """Return how to see that a backend has loaded its model, and to have it answer once."""

    async def is_loaded(url: str) -> bool:
        upstream = (await assembly()).backend(url)
        path = f"/models/{quote(model, safe='')}"
        try:
            endpoint = await upstream.choose()
            async with upstream.get(endpoint, path, CHECK_TIMEOUT_SECONDS) as answer:
                return answer.head.status == 200
        except ApiError:
            return False

    async def warm_up(url: str) -> bool:
        upstream = (await assembly()).backend(url)
        body = json.dumps({"model": model, "prompt": "Hello", "max_tokens": 1}).encode()
        call = Call(COMPLETIONS, body, CompletionRequest.model_validate_json(body))
        request = upstream.dialect.request(call)
        try:
            async with (
                asyncio.timeout(warm_up_seconds),
                upstream.post(await upstream.choose(), request, "warm-up") as answer,
            ):
                text = await answer.body()
                if answer.head.status == 200:
                    upstream.dialect.answer(call, answer.head, text)
                    return True
                log.warning("warm_up_failed", status=answer.head.status)
        except (ApiError, TimeoutError):
            log.warning("warm_up_unanswered")
        return False

    return Checks(is_loaded, warm_up)


def _backend(settings: Settings) -> Backend:
    assert settings.model_path is not None
    assert settings.served_model is not None
    return LlamaCpp(
        python=settings.backend_python,
        model=settings.served_model,
        model_path=settings.model_path,
        grace_seconds=settings.grace_seconds,
        arguments=settings.backend_args,
        log_level=settings.log_level,
    )


def _passer(name: str) -> Callable[[str, str, dict[str, Any]], None]:
    def write(level: str, text: str, fields: dict[str, Any]) -> None:
        fields.pop("self", None)  # the one name that a logging method has for itself
        getattr(log, level)(text, **{**fields, "backend": name})

    return write

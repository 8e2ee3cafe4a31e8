"""From the settings to a supervised backend."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import structlog

from openai_proxy.backends.base import Supervisor, SupervisorOptions
from openai_proxy.backends.command import Command
from openai_proxy.backends.kind import Backend
from openai_proxy.backends.llama_server import LlamaServer
from openai_proxy.backends.llamacpp import LlamaCpp
from openai_proxy.backends.looks import checks
from openai_proxy.backends.output import Output
from openai_proxy.backends.sglang import SGLang
from openai_proxy.backends.shimmy import Shimmy
from openai_proxy.backends.vllm import VLLM
from openai_proxy.config import ENV_PREFIX, Settings
from openai_proxy.metrics import Metrics

if TYPE_CHECKING:
    from openai_proxy.assembly import Assembly

log = structlog.get_logger("openai_proxy.backend")

# Shorter texts are in many lines by chance.
MIN_SECRET_CHARS = 8
_SECRET_NAME = re.compile(r"(?i)(key|token|secret|password)$")


def supervisor(
    settings: Settings,
    assembly: Callable[[], Awaitable[Assembly]],
    on_ready: Callable[[str | None], None],
    metrics: Metrics,
) -> Supervisor:
    """Return the supervisor of the configured backend, not yet running."""
    backend = make(settings)
    health_path = settings.backend_health_path or backend.health_path
    name = backend.name
    return Supervisor(
        backend,
        options(settings),
        checks(backend, health_path, settings.backend_startup_timeout, assembly),
        Output(_passer(name), f"[{name}] ", secrets(settings)),
        on_ready,
        metrics.backend_started,
    )


def make(settings: Settings) -> Backend:
    """Return the configured kind of backend."""
    arguments = settings.backend_args
    if settings.backend == "command":
        is_told = any("{model_name}" in word for word in settings.backend_command)
        model = settings.served_model if is_told else None
        return Command(
            settings.backend_command,
            model,
            settings.model_path,
            arguments,
            wanted=settings.model_name,
        )
    path, model = settings.model_path, settings.served_model
    assert path is not None
    assert model is not None
    program = settings.backend_executable
    match settings.backend:
        case "sglang":
            return SGLang(settings.backend_python, model, path, arguments)
        case "vllm":
            return VLLM(program or "vllm", model, path, arguments)
        case "llama-server":
            return LlamaServer(program or "llama-server", model, path, arguments)
        case "shimmy":
            return Shimmy(program or "shimmy", path, arguments)
        case _:
            grace, level = settings.grace_seconds, settings.log_level
            return LlamaCpp(settings.backend_python, model, path, grace, arguments, level)


def options(settings: Settings) -> SupervisorOptions:
    """Return how to run the backend."""
    # The proxy's own settings, and secrets among them, are no business of the backend.
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)
    }
    cache = settings.model_cache_dir
    variables = {} if cache is None else {"HF_HOME": cache}
    variables |= {name: value.get_secret_value() for name, value in settings.backend_env.items()}
    return SupervisorOptions(
        host=settings.backend_host,
        port=settings.backend_port,
        startup_timeout_seconds=settings.backend_startup_timeout,
        max_restarts=settings.backend_max_restarts,
        backoff_seconds=settings.backend_backoff_seconds,
        backoff_cap_seconds=settings.backend_backoff_cap_seconds,
        liveness_timeout_seconds=settings.backend_liveness_timeout,
        stop_seconds=settings.backend_stop_seconds,
        environment=inherited,
        variables=variables,
    )


def secrets(settings: Settings) -> set[str]:
    """Return what is hidden in the backend's log: values of variables and flags named like a key.

    Some servers log all that they were started with.
    """
    named = [(name, value.get_secret_value()) for name, value in settings.backend_env.items()]
    named += _flags((*settings.backend_command, *settings.backend_args))
    return {
        value
        for name, value in named
        if _SECRET_NAME.search(name) and len(value) >= MIN_SECRET_CHARS
    }


def _flags(words: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield names and values of `--name value` and `--name=value`."""
    for word, following in pairwise((*words, "")):
        if word.startswith("-"):
            name, _, value = word.partition("=")
            yield name, value or following


def _passer(name: str) -> Callable[[str, str, dict[str, Any]], None]:
    def write(level: str, text: str, fields: dict[str, Any]) -> None:
        fields.pop("self", None)  # the one name that a logging method has for itself
        getattr(log, level)(text, **{**fields, "backend": name})

    return write

"""Builds what is slow to import, in a thread while the server already listens.

Everything imported here is imported nowhere else at the start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from yarl import URL

from openai_protocol.request_limits import RequestLimits
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_proxy.api import systems
from openai_proxy.api.openai import GenerationEndpoint, Serving
from openai_proxy.api.passing import PASSED, PassingEndpoint
from openai_proxy.app import Paths, Table
from openai_proxy.config import ConfigError, Settings
from openai_proxy.config.upstreams import DEFAULT_UPSTREAM, UpstreamSettings
from openai_proxy.dialects.base import CHAT, COMPLETIONS, Dialect
from openai_proxy.dialects.prompts import rendered_apart
from openai_proxy.dialects.registry import make_dialect
from openai_proxy.metrics import Metrics
from openai_proxy.routing.access import Access
from openai_proxy.routing.client_tls import ClientTLSContext
from openai_proxy.routing.connections import ClientOptions, Connections
from openai_proxy.routing.credentials import Credentials
from openai_proxy.routing.endpoints import Endpoints, is_address, look_up
from openai_proxy.routing.headers import HeaderRules, HeaderSettings
from openai_proxy.routing.models import Model, ModelTable
from openai_proxy.routing.restart_wait import OwnBackend, RestartWait
from openai_proxy.routing.retry import RetryPolicy
from openai_proxy.routing.router import Router
from openai_proxy.routing.token_client import form_poster
from openai_proxy.routing.upstream import Upstream
from openai_proxy.running import Running

if TYPE_CHECKING:
    from chat_rendering.renderer import Renderer

_NOWHERE = "http://127.0.0.1:1"  # of a backend that does not run yet


class Assembly:
    """The upstreams' clients and the endpoints that need them; close it at the end.

    Make it in the event loop; only importing this module may happen elsewhere.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connections: list[Connections] = []
        self._to_backend: Connections | None = None
        self._backend_dialect: Dialect | None = None
        self._backend_renderer: Renderer | None = None
        self._renderers: dict[str, Renderer] = {}  # by the names of their upstreams
        self._lookups: list[asyncio.Task[None]] = []
        self._accesses: list[Access] = []

    def router(self) -> Router:
        """Return the router over the configured upstreams, whose names are looked up from now on.

        Raises ConfigError for a dialect's options or templates that cannot be used.
        """
        settings = self._settings
        router = Router(model_table(settings), without_upstream=settings.without_upstream)
        for upstream in settings.all_upstreams:
            router.use(self._running_upstream(upstream), upstream.name, upstream.models)
        if settings.backend is not None:
            router.use(None)  # until it is ready
            self._backend_renderer = self._renderer(settings.backend_upstream(_NOWHERE))
        return router

    async def load_templates(self) -> None:
        """Compile the chat templates, apart; raises ConfigError for one that cannot be used."""
        await load(self._renderers)

    def upstreams(self, router: Router, is_restarting: Callable[[], bool]) -> RestartWait:
        """Return what sends requests to the upstreams, and has them wait for an own backend."""
        if self._settings.backend is None:
            return RestartWait(router)
        seconds = self._settings.backend_restart_wait_seconds
        return RestartWait(router, OwnBackend(seconds, is_restarting))

    def model_table(self, backend_model: str | None) -> ModelTable:
        """Return what is known of models once the backend's own name for its model is."""
        return model_table(self._settings, backend_model)

    def backend(self, base_url: str) -> Upstream:
        """Return an upstream with one endpoint: its host."""
        url = URL(base_url)
        assert url.host is not None
        assert url.port is not None
        settings = self._settings.backend_upstream(base_url)
        # Kept: it may come again, at another address.
        if self._to_backend is None:
            self._to_backend = self._connect()
        if self._backend_dialect is None:
            self._backend_dialect = dialect_of(settings)
        return Upstream(
            self._to_backend,
            base_url,
            self._backend_dialect,
            Endpoints(url.host, url.port, None),
            Access(HeaderRules(settings.headers or HeaderSettings())),
            dialect_name=settings.dialect,
            render=self._backend_renderer.render if self._backend_renderer is not None else None,
        )

    def _running_upstream(self, settings: UpstreamSettings) -> Upstream:
        """Return an upstream that others run."""
        url = URL(settings.url)
        assert url.host is not None
        assert url.port is not None
        dialect = dialect_of(settings)
        # For TLS, and for a proxy on the way, the HTTP client must know the name.
        is_fixed = url.scheme != "http" or self._settings.use_env_proxies or is_address(url.host)
        endpoints = Endpoints(url.host, url.port, None if is_fixed else look_up)
        if not is_fixed:
            self._lookups.append(asyncio.create_task(endpoints.run()))
        connections = self._connect()
        access = self._access(settings, connections)
        self._accesses.append(access)
        name = settings.name if self._settings.upstreams else None
        renderer = self._renderer(settings)
        return Upstream(
            connections,
            settings.url,
            dialect,
            endpoints,
            access,
            name,
            settings.dialect,
            renderer.render if renderer is not None else None,
        )

    def _renderer(self, settings: UpstreamSettings) -> Renderer | None:
        """Return what renders an upstream's chats, None where it has no template."""
        renderer = renderer_of(settings)
        if renderer is not None:
            self._renderers[settings.name] = renderer
        return renderer

    def _connect(self) -> Connections:
        settings = self._settings
        connections = Connections(
            ClientOptions(
                settings.connect_timeout_seconds,
                settings.read_timeout_seconds,
                settings.max_upstream_connections,
                settings.use_env_proxies,
            )
        )
        self._connections.append(connections)
        return connections

    def _access(self, settings: UpstreamSettings, connections: Connections) -> Access:
        try:
            rules = HeaderRules(settings.headers or HeaderSettings())
            tls = ClientTLSContext(settings.tls, settings.name) if settings.tls else None
            credentials = None
            if settings.credentials is not None:
                oauth2 = settings.credentials.oauth2
                post = form_poster(connections.side, oauth2.tls if oauth2 else None)
                credentials = Credentials(settings.credentials, post)
        except (ValueError, OSError) as error:
            raise ConfigError(f"upstream {settings.name}: {error}") from None
        return Access(rules, credentials, tls)

    def add_endpoints(
        self,
        paths: Paths,
        upstreams: RestartWait,
        running: Running,
        metrics: Metrics,
    ) -> None:
        """Add the generating and the passing endpoints."""
        settings = self._settings
        serving = Serving(
            timeout_seconds=settings.request_timeout_seconds,
            limits=RequestLimits(
                settings.max_json_depth, settings.max_messages, settings.max_json_values
            ),
            keepalive_seconds=settings.keepalive_seconds,
            retries=RetryPolicy(
                settings.max_retries,
                settings.retry_backoff_seconds,
                settings.retry_backoff_cap_seconds,
            ),
            on_upstream_error=metrics.upstream_failed,
            on_retry=metrics.upstream_retried,
        )
        kinds: dict[str, type[ChatCompletionRequest] | type[CompletionRequest]] = {
            CHAT: ChatCompletionRequest,
            COMPLETIONS: CompletionRequest,
        }
        table: Table = {}
        for path, kind in kinds.items():
            table[path] = {"POST": GenerationEndpoint(path, kind, upstreams, running, serving)}
        for path, passed in PASSED.items():
            table[path] = {"POST": PassingEndpoint(path, passed, upstreams, running, serving)}
        paths.add(table | systems.generating_table(table, serving.limits))

    def add_models(self, paths: Paths, router: Router, running: Running) -> None:
        """Add what FastAPI declares, the last of all: it takes as long to import as all else."""
        from openai_proxy.api import models

        settings = self._settings
        declared = models.build(
            router, running, settings.models_cache_seconds, settings.request_timeout_seconds
        )
        paths.complete(systems.listing_table(declared), declared)

    async def close(self) -> None:
        """Close all connections to upstreams."""
        for lookup in self._lookups:
            lookup.cancel()
        await asyncio.gather(*self._lookups, return_exceptions=True)
        for renderer in self._renderers.values():
            await renderer.close()
        for access in self._accesses:
            await access.close()
        for connections in self._connections:
            await connections.close()


def check(settings: Settings) -> None:
    """Raise ConfigError for what only shows when upstreams are built; not in an event loop."""
    upstreams = list(settings.all_upstreams)
    if settings.backend is not None:
        upstreams.append(settings.backend_upstream(_NOWHERE))
    for upstream in upstreams:
        dialect_of(upstream)
    asyncio.run(_check_templates(upstreams))


async def _check_templates(upstreams: list[UpstreamSettings]) -> None:
    made = {upstream.name: renderer_of(upstream) for upstream in upstreams}
    renderers = {name: renderer for name, renderer in made.items() if renderer is not None}
    try:
        await load(renderers)
    finally:
        for renderer in renderers.values():
            await renderer.close()


async def load(renderers: Mapping[str, Renderer]) -> None:
    """Compile the templates of upstreams, by their names; raises ConfigError."""
    for name, renderer in renderers.items():
        try:
            await renderer.load()
        except ValueError as error:
            raise ConfigError(f"upstream {name}: {error}") from None


def model_table(settings: Settings, backend_model: str | None = None) -> ModelTable:
    """Return what the settings say of models; `backend_model` is the backend's name for its own.

    Where that is not the name that it is served under, clients' requests for the latter are for it,
    and so are those for no model at all.
    """
    served = settings.served_model if settings.backend is not None else None
    defaults = {
        "temperature": settings.default_temperature,
        "max_tokens": settings.default_max_tokens,
    }
    is_renamed = served is not None and backend_model not in (None, served)
    models = []
    for name, model in settings.models.items():
        there = model.upstream_model
        if is_renamed and (there or name) == served:
            there = backend_model
        models.append(
            Model(name, model.upstream, there, model.aliases, model.defaults, model.max_tokens)
        )
    default = settings.default_model
    if served is not None and is_renamed:
        names = {name for model in models for name in (model.name, *model.aliases)}
        if served not in names:
            models.append(Model(served, DEFAULT_UPSTREAM, backend_model))
        if default is None and not settings.allowed_models:
            default = served
    return ModelTable(
        models,
        allowed=settings.allowed_models,
        default=default,
        defaults={name: value for name, value in defaults.items() if value is not None},
        max_tokens=settings.max_tokens_limit,
    )


def dialect_of(settings: UpstreamSettings) -> Dialect:
    """Return an upstream's dialect; raises ConfigError."""
    has_template = settings.chat_template is not None or settings.chat_template_file is not None
    render = rendered_apart if has_template else None
    try:
        return make_dialect(settings.dialect, settings.options, settings.unsupported, render)
    except (ValueError, OSError) as error:
        raise ConfigError(f"upstream {settings.name}: {error}") from None


def renderer_of(settings: UpstreamSettings) -> Renderer | None:
    """Return what renders an upstream's chats, None where it has no template.

    Raises ConfigError for a file that cannot be read.
    """
    source = settings.chat_template
    try:
        if settings.chat_template_file is not None:
            source = Path(settings.chat_template_file).read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        raise ConfigError(f"upstream {settings.name}: chat_template_file: {error}") from None
    if source is None:
        return None
    from chat_rendering.process import Template  # not imported unless it is used
    from chat_rendering.renderer import Renderer

    source = TEMPLATES.get(source, source)
    return Renderer(Template(source, settings.bos_token, settings.eos_token))


TEMPLATES = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    ),
}

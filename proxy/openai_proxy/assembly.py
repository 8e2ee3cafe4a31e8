"""Builds what is slow to import, in a thread while the server already listens.

Everything imported here is imported nowhere else at the start.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from yarl import URL

from openai_protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_proxy.api import models
from openai_proxy.api.openai import GenerationEndpoint
from openai_proxy.app import Paths, Table
from openai_proxy.config import Settings
from openai_proxy.dialects.base import CHAT, COMPLETIONS
from openai_proxy.dialects.openai import OpenAIDialect
from openai_proxy.metrics import Metrics
from openai_proxy.routing.endpoints import Endpoints, is_address, look_up
from openai_proxy.routing.router import Router
from openai_proxy.routing.upstream import ClientOptions, Upstream, open_session
from openai_proxy.running import Running

# For probes and lists of models, which must not wait behind requests
SIDE_CONNECTIONS = 16


class Assembly:
    """The upstream's client and the endpoints that need it; close it at the end.

    Make it in the event loop; only importing this module may happen elsewhere.
    """

    def __init__(self, settings: Settings) -> None:
        options = ClientOptions(
            settings.connect_timeout_seconds,
            settings.read_timeout_seconds,
            settings.max_upstream_connections,
            settings.use_env_proxies,
        )
        self._session = open_session(options)
        self._side_session = open_session(replace(options, max_connections=SIDE_CONNECTIONS))
        self._request_timeout_seconds = settings.request_timeout_seconds
        self._use_env_proxies = settings.use_env_proxies
        self._lookups: list[asyncio.Task[None]] = []

    def upstream(self, base_url: str) -> Upstream:
        """Return an upstream that others run, whose name is looked up for as long as this lives."""
        url = URL(base_url)
        assert url.host is not None
        assert url.port is not None
        # For TLS, and for a proxy on the way, the HTTP client must know the name.
        is_fixed = url.scheme != "http" or self._use_env_proxies or is_address(url.host)
        if is_fixed:
            return self.backend(base_url)
        endpoints = Endpoints(url.host, url.port, look_up)
        self._lookups.append(asyncio.create_task(endpoints.run()))
        return self._upstream(base_url, endpoints)

    def backend(self, base_url: str) -> Upstream:
        """Return an upstream with one endpoint: its host."""
        url = URL(base_url)
        assert url.host is not None
        assert url.port is not None
        return self._upstream(base_url, Endpoints(url.host, url.port, None))

    def _upstream(self, base_url: str, endpoints: Endpoints) -> Upstream:
        return Upstream(self._session, self._side_session, base_url, OpenAIDialect(), endpoints)

    def add_endpoints(
        self,
        paths: Paths,
        router: Router,
        running: Running,
        metrics: Metrics,
    ) -> None:
        """Add the generating endpoints and what FastAPI declares."""
        kinds: dict[str, type[ChatCompletionRequest] | type[CompletionRequest]] = {
            CHAT: ChatCompletionRequest,
            COMPLETIONS: CompletionRequest,
        }
        table: Table = {}
        for path, model in kinds.items():
            endpoint = GenerationEndpoint(
                path,
                model,
                router,
                running,
                self._request_timeout_seconds,
                metrics.upstream_failed,
                metrics.upstream_retried,
            )
            table[path] = {"POST": endpoint}
        paths.add(table, models.build(router))

    async def close(self) -> None:
        """Close all connections to upstreams."""
        for lookup in self._lookups:
            lookup.cancel()
        await asyncio.gather(*self._lookups, return_exceptions=True)
        await self._session.close()
        await self._side_session.close()

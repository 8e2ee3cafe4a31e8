"""Builds what is slow to import, in a thread while the server already listens.

Everything imported here is imported nowhere else at the start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from openai_protocol.requests import ChatCompletionRequest, CompletionRequest, GenerationRequest
from openai_proxy.api import models
from openai_proxy.api.openai import GenerationEndpoint
from openai_proxy.app import Paths, Table
from openai_proxy.config import Settings
from openai_proxy.dialects.openai import OpenAIDialect
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

    def upstream(self, base_url: str) -> Upstream:
        """Return an upstream that speaks OpenAI's dialect."""
        return Upstream(self._session, self._side_session, base_url, OpenAIDialect())

    def add_endpoints(
        self,
        paths: Paths,
        router: Router,
        running: Running,
        on_upstream_error: Callable[[str], None],
    ) -> None:
        """Add the generating endpoints and what FastAPI declares."""
        kinds: dict[str, type[GenerationRequest]] = {
            "/v1/chat/completions": ChatCompletionRequest,
            "/v1/completions": CompletionRequest,
        }
        table: Table = {}
        for path, model in kinds.items():
            endpoint = GenerationEndpoint(
                path,
                model,
                router,
                running,
                self._request_timeout_seconds,
                on_upstream_error,
            )
            table[path] = {"POST": endpoint}
        paths.add(table, models.build(router))

    async def close(self) -> None:
        """Close all connections to upstreams."""
        await self._session.close()
        await self._side_session.close()

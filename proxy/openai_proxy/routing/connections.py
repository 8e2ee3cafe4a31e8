"""The connections to one upstream: pools of its own, so that one that hangs starves no other.

Import it late: the HTTP client takes longer to import than all the rest of the proxy.
"""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp

# Below the 5 s after which uvicorn, like many, closes an idle connection: a request sent on a
# connection that is just being closed fails, and cannot always be repeated.
IDLE_CONNECTION_SECONDS = 4.0
# For what must not wait behind requests: probes, lists of models and tokens, one of each at a time.
SIDE_CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How to connect to an upstream; times in seconds."""

    connect_timeout_seconds: float
    read_timeout_seconds: float
    max_connections: int
    use_env_proxies: bool = False


class Connections:
    """Pools for one upstream's requests and for what is asked beside them; `close` it at the end.

    Make it in the event loop.
    """

    def __init__(self, options: ClientOptions) -> None:
        self.requests = _open_session(options, options.max_connections)
        self.side = _open_session(options, SIDE_CONNECTIONS)

    async def close(self) -> None:
        """Close all connections, those in use, too."""
        await self.requests.close()
        await self.side.close()


def _open_session(options: ClientOptions, max_connections: int) -> aiohttp.ClientSession:
    """Return a pool without cookies, which changes nothing of what it sends and gets."""
    connector = aiohttp.TCPConnector(
        limit=max_connections, keepalive_timeout=IDLE_CONNECTION_SECONDS
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=options.use_env_proxies,
        timeout=aiohttp.ClientTimeout(
            total=None,
            sock_connect=options.connect_timeout_seconds,
            sock_read=options.read_timeout_seconds,
        ),
    )

"""What the proxy shows an upstream of its clients and of itself: headers, credentials, TLS."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from openai_proxy.dialects.base import Headers
from openai_proxy.routing.client_tls import ClientTLSContext
from openai_proxy.routing.credentials import Credentials
from openai_proxy.routing.headers import HeaderRules, HeaderSettings


@dataclass(frozen=True, slots=True)
class Access:
    """How one upstream is spoken to; by default with listed headers alone, over plain TLS."""

    rules: HeaderRules = field(default_factory=lambda: HeaderRules(HeaderSettings()))
    credentials: Credentials | None = None
    tls: ClientTLSContext | None = None

    def passed(self, headers: Headers, from_client: Headers) -> Headers:
        """Return what is sent of a request's headers; `from_client` are all of the client's."""
        return self.rules.apply(headers, from_client)

    async def shown(self) -> Headers:
        """Return the proxy's own credentials; raises BadGateway where no token can be had."""
        return [] if self.credentials is None else await self.credentials.headers()

    @property
    def has_own_key(self) -> bool:
        """Whether the proxy shows a key of its own, by credentials or by a rule."""
        return self.credentials is not None or self.rules.sets_a_key

    def may_try_again(self, shown: Headers) -> bool:
        """Tell, after a 401, whether there may be better credentials than those that were shown."""
        return self.credentials is not None and self.credentials.invalidate(shown)

    @property
    def context(self) -> ssl.SSLContext | bool:
        """The context for the next connection; True: the system's authorities."""
        return True if self.tls is None else self.tls.current()

    @property
    def server_name(self) -> str | None:
        """The name that the upstream's certificate must have, where it is not the URL's."""
        return None if self.tls is None else self.tls.server_name

    async def close(self) -> None:
        """Fetch no more tokens."""
        if self.credentials is not None:
            await self.credentials.close()

"""TLS towards an upstream: whom to trust, which certificate to show, which name to expect."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, Field, model_validator

from openai_proxy.file_watch import Reloaded
from openai_proxy.tls import load_authorities, load_chain

log = structlog.get_logger("openai_proxy")


class ClientTLS(BaseModel):
    """Settings of TLS towards one upstream; without any, the system's authorities are trusted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ca_file: Path | None = Field(
        default=None, description="Authorities to trust instead of the system's, as PEM."
    )
    cert_file: Path | None = Field(
        default=None, description="Certificate chain to show to the upstream, as PEM."
    )
    key_file: Path | None = Field(default=None, description="Its private key, as PEM.")
    server_name: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="Name to ask for and to expect in the upstream's certificate, where it is not "
        "that of its URL.",
    )
    insecure_skip_verify: bool = Field(
        default=False,
        description="Trust whatever answers: anyone on the way can read and change all, keys "
        "included. For trials alone.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ClientTLS:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file belong together: give both or neither")
        if self.insecure_skip_verify and self.ca_file is not None:
            raise ValueError(
                "ca_file is of no use with insecure_skip_verify, which trusts anyone: keep ca_file"
            )
        if self.ca_file is not None or self.cert_file is not None:
            client_context(self)
        return self


def client_context(tls: ClientTLS) -> ssl.SSLContext:
    """Return a context as the files say now; raises ValueError that names the setting."""
    if tls.insecure_skip_verify:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif tls.ca_file is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        load_authorities(context, tls.ca_file, "ca_file")
    else:
        context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if tls.cert_file is not None:
        assert tls.key_file is not None
        load_chain(context, tls.cert_file, tls.key_file, "cert_file", "key_file")
    return context


class ClientTLSContext:
    """The context for connections to one upstream, made anew when its files change.

    A new context means new connections: the HTTP client keeps connections apart by it.
    """

    def __init__(
        self, tls: ClientTLS, upstream: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`upstream` is for the log alone. Raises ValueError that names the setting."""
        self.server_name = tls.server_name
        if tls.insecure_skip_verify:
            log.warning(
                "TLS IS NOT VERIFIED: anyone on the way to this upstream can read and change all",
                upstream=upstream,
                setting="insecure_skip_verify",
            )
        paths = [path for path in (tls.ca_file, tls.cert_file, tls.key_file) if path is not None]
        self._current = Reloaded(
            paths,
            lambda: client_context(tls),
            on_reload=lambda: log.info("upstream_tls_reloaded", upstream=upstream),
            on_failure=lambda error: log.error(
                "upstream_tls_not_reloaded", upstream=upstream, reason=str(error)
            ),
            clock=clock,
        )

    def current(self) -> ssl.SSLContext:
        """Return the context for the next request."""
        return self._current.value()

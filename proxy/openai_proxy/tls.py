"""TLS of the server itself: its certificate, read again when it changes, and its clients'.

What event loops get is one SSL context for good. It makes each connection with another, that of the
files as they are: so a new certificate holds from the next connection on, those that there are keep
theirs, and nothing of the old one stays behind (another kind of key, a removed authority, sessions
of its clients), as it would in a context that is only added to.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from openai_protocol.errors import ErrorCode, InvalidRequest
from openai_proxy.file_watch import Reloaded
from openai_proxy.middleware import App, Receive, Scope, Send

log = structlog.get_logger("openai_proxy")


@dataclass(frozen=True, slots=True)
class ServerTLS:
    """The files of a server's certificate chain and key, and of the authority of its clients'.

    With a `client_ca_file`, clients need a certificate of it (`RequireClientCertificate`).
    """

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    min_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2


class _Current(ssl.SSLContext):
    """Makes each connection with the context that the files give by then."""

    current: Reloaded[ssl.SSLContext]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Return a connection's TLS; event loops call it for each that they accept."""
        context = self.current.value()
        return context.wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def server_context(tls: ServerTLS, clock: Callable[[], float] = time.monotonic) -> ssl.SSLContext:
    """Return a context whose connections use what the files hold by then; raises ValueError."""
    paths = [path for path in (tls.cert_file, tls.key_file, tls.client_ca_file) if path is not None]
    context = _Current(ssl.PROTOCOL_TLS_SERVER)
    context.current = Reloaded(
        paths,
        lambda: _load(tls),
        on_reload=lambda: log.info("tls_certificate_reloaded", file=str(tls.cert_file)),
        on_failure=lambda error: log.error("tls_certificate_not_reloaded", reason=str(error)),
        clock=clock,
    )
    return context


def _load(tls: ServerTLS) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = tls.min_version
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    load_chain(context, tls.cert_file, tls.key_file, "tls_cert_file", "tls_key_file")
    if tls.client_ca_file is not None:
        load_authorities(context, tls.client_ca_file, "tls_client_ca_file")
        # Not required in the handshake: the kubelet's probes have no certificate to show.
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def load_chain(
    context: ssl.SSLContext, cert_file: Path, key_file: Path, cert_name: str, key_name: str
) -> None:
    """Load a certificate chain and its key; ValueError says which of the two settings is wrong."""
    for name, path in ((cert_name, cert_file), (key_name, key_file)):
        require_readable(name, path)

    def refuse_password() -> str:
        # Without this, OpenSSL would ask for it on the terminal, and wait.
        raise ValueError(
            f"{key_name}: the key in {key_file} is encrypted: give one without passphrase"
        )

    try:
        context.load_cert_chain(cert_file, key_file, password=refuse_password)
    except ssl.SSLError as error:
        if error.reason in _NO_PAIR:
            raise ValueError(
                f"{key_name}: the key in {key_file} is not that of the certificate in {cert_file} "
                f"({cert_name}): give the pair that belongs together"
            ) from None
        raise ValueError(
            f"{cert_name} and {key_name}: {cert_file} must hold a certificate chain and {key_file} "
            f"its private key, both as PEM ({_reason(error)})"
        ) from None


def load_authorities(context: ssl.SSLContext, ca_file: Path, name: str) -> None:
    """Load certificates of authorities; ValueError names the setting."""
    require_readable(name, ca_file)
    try:
        context.load_verify_locations(ca_file)
    except ssl.SSLError as error:
        raise ValueError(
            f"{name}: {ca_file} must hold certificates of authorities, as PEM ({_reason(error)})"
        ) from None


def require_readable(name: str, path: Path) -> None:
    """Raise ValueError, naming the setting, unless a file can be opened."""
    try:
        path.open("rb").close()
    except OSError as error:
        reason = (error.strerror or "unknown error").lower()
        raise ValueError(f"{name}: cannot read {path}: {reason}") from None


_NO_PAIR = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "unknown error").lower().replace("_", " ")


class RequireClientCertificate:
    """Refuses requests on connections without a client's certificate, but those of probes.

    A certificate that is shown has been verified in the handshake; the connection tells of it in
    the scope, as ASGI's extension for TLS has it.
    """

    def __init__(self, app: App, exempt: frozenset[str]) -> None:
        self._app = app
        self._exempt = exempt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        found = scope.get("extensions", {}).get("tls", {}).get("client_cert_name")
        if found is None and scope["path"] not in self._exempt:
            raise InvalidRequest(
                "This server takes requests only from clients that show a certificate.",
                status=401,
                code=ErrorCode.CLIENT_CERTIFICATE_REQUIRED,
            )
        await self._app(scope, receive, send)

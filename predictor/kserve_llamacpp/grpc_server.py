"""The gRPC server beside the HTTP server: same address, same certificate, bounded."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import grpc
import structlog

from kserve_llamacpp.certificate import CertificateFiles
from kserve_llamacpp.errors import ConfigurationError
from kserve_llamacpp.listener import bind

MAX_CALLS = 32  # a call is over in no time, but for a client that sends its message slowly
_MAX_CONNECTIONS = 256
_MAX_HEAD_BYTES = 16 << 10


@dataclass(frozen=True)
class GrpcSettings:
    """Where the server listens, and how large messages may be, in bytes."""

    host: str
    port: int
    max_send_bytes: int
    max_receive_bytes: int
    certificate: CertificateFiles | None = None


class GrpcServer:
    """Serves one handler's methods; owner: the process, made and used on its event loop."""

    def __init__(self, settings: GrpcSettings, handler: grpc.GenericRpcHandler) -> None:
        self._settings = settings
        self._server = grpc.aio.server(
            handlers=(handler,),
            maximum_concurrent_rpcs=MAX_CALLS,
            options=[
                ("grpc.so_reuseport", 0),  # or two servers would share a port, unnoticed
                ("grpc.max_send_message_length", settings.max_send_bytes),
                ("grpc.max_receive_message_length", settings.max_receive_bytes),
                ("grpc.max_concurrent_streams", MAX_CALLS),
                ("grpc.max_metadata_size", _MAX_HEAD_BYTES),
                ("grpc.absolute_max_metadata_size", _MAX_HEAD_BYTES),
                ("grpc.max_allowed_incoming_connections", _MAX_CONNECTIONS),
                ("grpc.server_handshake_timeout_ms", 10_000),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.max_connection_idle_ms", 300_000),
            ],
        )

    async def start(self) -> int:
        """Listen; return the port. Raises PortTakenError, ConfigurationError."""
        settings = self._settings
        bind(settings.host, settings.port, "--grpc_port").close()  # gRPC does not say what is wrong
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.port}"
        if settings.certificate is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, _credentials(settings.certificate))
        await self._server.start()
        is_encrypted = settings.certificate is not None
        structlog.get_logger("server").info(
            "grpc_listening", host=settings.host, port=port, is_encrypted=is_encrypted
        )
        return int(port)

    async def serve(self) -> None:
        """Return when the server has been stopped."""
        await self._server.wait_for_termination()

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new calls; end those that still run after the grace period."""
        await self._server.stop(grace_seconds)


def _credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    current = _CurrentCertificate(files)
    return grpc.dynamic_ssl_server_credentials(current.configuration(), current.changed)


class _CurrentCertificate:
    """Looks at the certificate's files with each new connection; used on gRPC's threads."""

    def __init__(self, files: CertificateFiles) -> None:
        self._files = files
        self._pair = self._seen = files.read()
        self._lock = threading.Lock()

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """Return the certificate that is in use."""
        return grpc.ssl_server_certificate_configuration([self._pair])

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what to use from now on; None for what is in use, or files that are no pair."""
        with self._lock:
            try:
                found = self._files.read()
                if found == self._seen:
                    return None
                self._seen = found  # what is wrong is told once
                self._files.check()
            except ConfigurationError as error:
                log = structlog.get_logger("server")
                log.warning("grpc_certificate_kept", error=str(error))
                return None
            self._pair = found
            return self.configuration()

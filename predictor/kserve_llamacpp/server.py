"""The server: KServe's `ModelServer` with our routes, our lifecycle and our error envelope.

Its ports open before the model is loaded; SIGTERM drains it; it ends with a status that tells why.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import warnings
from typing import Any

import structlog
import uvloop
from fastapi import FastAPI
from kserve import ModelServer, model_server
from kserve.protocol.rest.v1_endpoints import V1Endpoints

from http_edge.bytes_in_flight import ByteBudget
from http_edge.connection import protocol
from http_edge.connections import Connections
from http_edge.head_rules import HeadRules
from http_edge.hosts import HostRules, open_to_all
from kserve_llamacpp import __version__
from kserve_llamacpp.api.errors import add_error_handlers
from kserve_llamacpp.api.inference_service import InferenceService
from kserve_llamacpp.api.middleware import RequestGate
from kserve_llamacpp.api.models import Models
from kserve_llamacpp.api.routes import application
from kserve_llamacpp.certificate import certificate_files
from kserve_llamacpp.config import Config, add_flags, read_config
from kserve_llamacpp.errors import EngineLostError, StartupError
from kserve_llamacpp.grpc_server import GrpcServer, GrpcSettings
from kserve_llamacpp.listener import bind
from kserve_llamacpp.logging import close as close_logging
from kserve_llamacpp.logging import configure_logging
from kserve_llamacpp.model import LlamaCppModel
from kserve_llamacpp.served_model import ServedModel
from openai_protocol.errors import ErrorCode, Unavailable

_LAST_LINES_SECONDS = 0.5
_CLOSE_SECONDS = 5.0  # from the end of the grace period to the end of the last connection

_AGAINST_OTHERS = (
    "bind it to loopback (--http_host 127.0.0.1)",
    "see to it that a NetworkPolicy or a gateway keeps others away",
)


class LlamaCppServer(ModelServer):  # type: ignore[misc]  # kserve has no types
    """Serves one model; owner: the process, on its event loop.

    KServe builds the HTTP and gRPC servers; this class decides when they start and stop.
    """

    def __init__(self, config: Config, **kserve_settings: Any) -> None:
        self._certificate = certificate_files(config.ssl_certfile, config.ssl_keyfile)
        super().__init__(
            http_port=config.http_port, grace_period=int(config.grace_seconds), **kserve_settings
        )
        self._config = config
        self._log = structlog.get_logger("server")
        self._served = ServedModel(config)
        self._sock = bind(
            config.http_host, config.http_port, write_seconds=config.write_timeout_seconds
        )
        names = self.registered_models.get_models
        self._models = Models(lambda: list(names()), self._find, self._check)
        self._grpc: GrpcServer | None = None
        self._budget = ByteBudget(config.max_bytes_in_flight)
        self._connections = Connections(config.bounds, self._budget)
        self._is_draining = False
        self._stopping: asyncio.Task[None] | None = None
        self._exit_status = 0

    def run(self) -> int:
        """Serve until a signal ends it; return the exit status."""
        self.start([])
        return self._exit_status

    def register_signal_handler(self) -> None:
        """Do nothing: KServe would close the listeners at once; `_serve` handles signals."""

    def setup_event_loop(self) -> None:
        """Do nothing: KServe would set up a loop that `asyncio.run` then does not use."""

    async def _serve(self) -> None:
        """Run what `start` has prepared (KServe calls this on the event loop)."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        (rest,) = self.servers
        rest.close()  # KServe's own start, for which ours stands in
        serving = asyncio.create_task(self._serve_http())
        self.register_model(LlamaCppModel(self._served))
        ending = asyncio.create_task(self._end_when_lost())
        try:
            if self._config.enable_grpc:
                await self._start_grpc()
            await self._served.load()
        except StartupError as error:
            self._exit_status = report(error)
            self._stop_http()
        await serving
        await self._stop_grpc()
        await self._served.stop()
        ending.cancel()

    async def _end_when_lost(self) -> None:
        """End the process where only a new one can help, so that its supervisor starts one."""
        error = await self._served.lost()
        self._exit_status = report(error)
        seconds = self._config.grace_seconds + 2 * _CLOSE_SECONDS
        asyncio.get_running_loop().call_later(seconds, os._exit, self._exit_status)
        self._stop_http()
        await self._stop_grpc()

    async def _serve_http(self) -> None:
        rest = self._rest_server
        rest.config.app = self._application()
        rest.config.http = protocol(self._connections)
        rest.config.ws = "none"
        rest._server.capture_signals = contextlib.nullcontext  # we own the signals
        host, port = self._sock.getsockname()[:2]
        self._log.info("http_listening", host=host, port=port)
        if (reason := open_to_all(self._config.http_host, _AGAINST_OTHERS)) is not None:
            self._log.warning("open_to_all", reason=reason)
        await rest._server.serve(sockets=[self._sock])

    async def _start_grpc(self) -> None:
        """Listen for gRPC beside HTTP. Raises StartupError."""
        config = self._config
        settings = GrpcSettings(
            self._sock.getsockname()[0],
            config.grpc_port,
            config.grpc_max_send_message_length,
            config.grpc_max_receive_message_length,
            self._certificate,
        )
        server = GrpcServer(settings, InferenceService(self._models).handler())
        await server.start()
        self._grpc = server

    def _on_signal(self, number: int) -> None:
        if self._stopping is not None:
            if number != signal.SIGINT:
                return  # who ends a process group often says so twice; only a person insists
            self._log.warning("second_signal", signal=signal.Signals(number).name)
            if (pid := self._served.engine.pid) is not None:
                os.kill(pid, signal.SIGKILL)
            close_logging(_LAST_LINES_SECONDS)
            os._exit(128 + number)
        self._log.info("draining", signal=signal.Signals(number).name)
        self._is_draining = True
        self._stopping = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        """Not ready, still accepting; then finish what runs; then end it with an error."""
        await asyncio.sleep(self._config.drain_delay_seconds)
        self._log.info("closing", running=self._served.engine.num_running)
        self._stop_http()
        stopping_grpc = asyncio.create_task(self._stop_grpc())
        engine = self._served.engine
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._served.idle(), self._config.grace_seconds)
        engine.fail_all(
            Unavailable("The server is shutting down.", code=ErrorCode.SERVER_SHUTTING_DOWN)
        )
        await stopping_grpc
        await self._served.stop()  # also one that still loads: `_serve` waits for it

    async def _stop_grpc(self) -> None:
        if self._grpc is not None:
            await self._grpc.stop(_CLOSE_SECONDS)

    def _stop_http(self) -> None:
        server = self._rest_server._server
        server.config.timeout_graceful_shutdown = self._config.grace_seconds + _CLOSE_SECONDS
        server.should_exit = True

    def _application(self) -> FastAPI:
        predict = V1Endpoints(self.dataplane).predict
        app = application(self._models, predict, self._config.request_limits, self.enable_docs_url)
        add_error_handlers(app)
        app.add_middleware(
            RequestGate,
            max_body_bytes=self._config.max_body_bytes,
            budget=self._budget,
            head_rules=HeadRules(
                HostRules(self._config.http_host, self._config.allowed_hosts), "--allowed_hosts"
            ),
            is_draining=lambda: self._is_draining,
        )
        return app

    def _find(self, name: str) -> ServedModel | None:
        model = self.registered_models.get_model(name)
        return model.served if isinstance(model, LlamaCppModel) else None

    def _check(self) -> None:
        """Raise Unavailable while draining: probes must see it, requests are still taken."""
        if self._is_draining:
            raise Unavailable("The server is shutting down.", code=ErrorCode.SERVER_SHUTTING_DOWN)


def report(error: StartupError) -> int:
    """Log why the predictor cannot start, or go on; return its exit status."""
    event = "server_lost" if isinstance(error, EngineLostError) else "startup_failed"
    structlog.get_logger("server").critical(event, error=str(error))
    return error.exit_status


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Read KServe's flags and ours; argparse ends the process with status 2 on unknown ones."""
    parser = argparse.ArgumentParser(
        prog="python -m kserve_llamacpp",
        description="Serve a GGUF model through llama.cpp: OpenAI's API and KServe's.",
        parents=[model_server.parser],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    add_flags(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the predictor; return the exit status (see `errors` for those of a failed start)."""
    args = parse_flags(sys.argv[1:] if argv is None else argv)
    configure_logging(args.log_level, args.log_format)
    # KServe answers with this class; the warning is for KServe's authors
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")
    try:
        config = read_config(args)
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        server = LlamaCppServer(
            config,
            workers=args.workers,
            max_threads=args.max_threads,
            enable_grpc=False,  # KServe's listens on all addresses, in clear text
            enable_docs_url=args.enable_docs_url,
            enable_latency_logging=False,
            timeout_keep_alive=args.timeout_keep_alive,
            ssl_certfile=args.ssl_certfile,
            ssl_keyfile=args.ssl_keyfile,
        )
        return server.run()
    except StartupError as error:
        return report(error)

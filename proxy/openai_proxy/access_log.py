"""One log line for each request: never its prompt, its answer, its keys or an error's text."""

from __future__ import annotations

import structlog

from openai_proxy.exchange import Exchange, loggable

log = structlog.get_logger("openai_proxy.access")


class AccessLog:
    """Writes the line when a request is over; those of probes and scrapers only at debug level."""

    def __init__(self, quiet_routes: frozenset[str]) -> None:
        self._quiet_routes = quiet_routes

    def request_started(self, exchange: Exchange) -> None:
        """Say nothing yet."""

    def request_finished(self, exchange: Exchange) -> None:
        """Write the line."""
        is_quiet = exchange.route in self._quiet_routes
        write = log.debug if is_quiet else log.info
        fields: dict[str, object] = {
            "method": exchange.method,
            "path": loggable(exchange.path, 256),
            "status": exchange.status,
            "duration_seconds": round(exchange.duration_seconds, 6),
        }
        if exchange.model is not None:
            fields["model"] = loggable(exchange.model)
        if exchange.ttft_seconds is not None:
            fields["ttft_seconds"] = round(exchange.ttft_seconds, 6)
        if exchange.error_code is not None:
            fields["error_code"] = loggable(exchange.error_code, 64)
        if exchange.is_client_gone:
            fields["client_gone"] = True
        write("request", **fields)

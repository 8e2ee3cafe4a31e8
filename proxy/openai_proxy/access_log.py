"""One log line for each request: never its prompt, its answer, its keys or an error's text."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Literal

from openai_proxy.exchange import Exchange, loggable, loggable_code
from openai_proxy.logging import write_line

NAME = "openai_proxy.access"
# Takes level, logger, event and fields
WriteLine = Callable[[str, str, str, Mapping[str, object]], None]
_HASHES = 2**32


class AccessLog:
    """Writes the line when a request is over; those of probes and scrapers only at debug level.

    `which` requests get one, and of the good ones a `sample`: chosen by the request's id, so that
    all proxies on its way choose the same.
    """

    def __init__(
        self,
        quiet_routes: frozenset[str],
        which: Literal["all", "errors", "off"] = "all",
        sample: float = 1.0,
        write: WriteLine = write_line,
    ) -> None:
        self._quiet_routes = quiet_routes
        self._which = which
        self._sample = sample
        self._takes_all = which == "all" and sample >= 1
        self._write = write

    def request_started(self, exchange: Exchange) -> None:
        """Say nothing yet."""

    def request_finished(self, exchange: Exchange) -> None:
        """Write the line."""
        if not self._takes_all and not self._is_wanted(exchange):
            return
        if exchange.route in self._quiet_routes:
            level = "debug"
        else:
            level = "warning" if exchange.status is not None and exchange.status >= 500 else "info"
        self._write(level, NAME, "request", fields_of(exchange))

    def _is_wanted(self, exchange: Exchange) -> bool:
        if self._which == "off":
            return False
        if not exchange.is_good:
            return True
        is_in_sample = zlib.crc32(exchange.request_id.encode()) < self._sample * _HASHES
        return self._which == "all" and is_in_sample


def fields_of(exchange: Exchange) -> dict[str, object]:
    """Return what is told of a request; times in seconds, what is not known is left out."""
    fields: dict[str, object] = {"method": exchange.method, "path": loggable(exchange.path, 256)}
    if exchange.route is not None:
        fields["route"] = exchange.route
    fields["status"] = exchange.status
    fields["duration_seconds"] = round(exchange.duration_seconds, 6)
    if exchange.model is not None:
        fields["model"] = loggable(exchange.model)
    if exchange.upstream is not None:
        fields["upstream"] = exchange.upstream
    if exchange.num_attempts > 1:
        fields["attempts"] = exchange.num_attempts
    if exchange.is_stream:
        fields["stream"] = True
    if exchange.ttft_seconds is not None:
        fields["ttft_seconds"] = round(exchange.ttft_seconds, 6)
    if exchange.prompt_tokens is not None:
        fields["prompt_tokens"] = exchange.prompt_tokens
    if exchange.completion_tokens is not None:
        fields["completion_tokens"] = exchange.completion_tokens
    if exchange.error_code is not None:
        fields["error_code"] = loggable_code(exchange.error_code)
    if exchange.is_client_gone:
        fields["client_gone"] = True
    fields.update(exchange.log_fields)
    return fields

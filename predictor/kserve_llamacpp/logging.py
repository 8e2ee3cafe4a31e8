"""Structured logs on stderr: pretty on a terminal, one JSON object a line otherwise.

Prompts, answers and keys are never logged, nor the texts of exceptions, which may quote them.
What a request's code logs carries its `request_id`.
"""

from __future__ import annotations

import atexit
import json
import logging
import sys
from collections.abc import Callable, MutableMapping
from typing import Any

import msgspec
import structlog

from http_edge.log_errors import first_line, where_only
from http_edge.log_sink import Console, Sink

CLOSE_SECONDS = 2.0
LOG_FORMATS = ("auto", "pretty", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")
_URGENT_SECONDS = 0.2
_FAILED = {"level": "error", "event": "log_line_failed"}


def resolve_format(log_format: str) -> str:
    """Return `pretty` or `json`; `auto` depends on whether stderr is a terminal."""
    if log_format != "auto":
        return log_format
    return "pretty" if sys.stderr.isatty() else "json"


def configure_logging(log_level: str, log_format: str, urgent: int = logging.CRITICAL) -> None:
    """Send structlog's and the standard library's records to stderr in one form.

    `urgent`: from which of stdlib's levels on a line is written before anything else happens.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        where_only,
    ]
    renderer: Any
    if resolve_format(log_format) == "json":
        renderer = structlog.processors.JSONRenderer(_json)
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    sink = Sink(Console(sys.stderr), _lost_line)
    level = logging.getLevelNamesMapping()[log_level.upper()]
    structlog.configure(
        processors=[*shared, _guarded(renderer)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *names: _Logger(sink, urgent, *names),
        cache_logger_on_first_use=True,
    )
    handler = SinkHandler(sink, urgent)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[first_line, *shared, structlog.stdlib.ExtraAdder()],
            processors=[
                _drop_color_message,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    atexit.register(close)
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "kserve", "kserve.trace"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    # our own access log says more than uvicorn's, our own events more than KServe's
    logging.getLogger("uvicorn.access").setLevel(logging.CRITICAL)
    if log_level == "info":
        for name in ("uvicorn.error", "kserve"):
            logging.getLogger(name).setLevel(logging.WARNING)


class _Logger:
    """Hands structlog's lines to a thread that writes them; stdlib's way takes twice as long.

    A reader of stderr that sleeps stops nobody. Lines from level `urgent` on are waited for, for a
    moment: the process may be about to end.
    """

    def __init__(self, sink: Sink, urgent: int, name: str = "") -> None:
        self.name = name
        self._sink = sink
        self.debug = self.info = self.warning = self.error = self.critical = self._put
        if urgent <= logging.CRITICAL:
            self.critical = self._put_and_wait
        if urgent <= logging.ERROR:
            self.error = self._put_and_wait

    def _put(self, line: str) -> None:
        self._sink.put(line + "\n")

    def _put_and_wait(self, line: str) -> None:
        self._put(line)
        self._sink.flush(_URGENT_SECONDS)


class SinkHandler(logging.Handler):
    """Hands libraries' lines to the same thread, in the same way."""

    def __init__(self, sink: Sink, urgent: int) -> None:
        super().__init__()
        self.sink = sink
        self._urgent = urgent

    def emit(self, record: logging.LogRecord) -> None:
        """Render a record; what fails there is told as a line without its arguments."""
        try:
            line = self.format(record)
        except Exception:  # stdlib's own answer would print the record with its arguments
            line = json.dumps(_FAILED | {"logger": record.name})
        self.sink.put(line + "\n")
        if record.levelno >= self._urgent:
            self.sink.flush(_URGENT_SECONDS)


def close(seconds: float = CLOSE_SECONDS) -> None:
    """Write what is still to be written, at most about so long: the process ends."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, SinkHandler):
            handler.sink.close(seconds)


def _lost_line(count: int) -> str:
    return json.dumps({"level": "warning", "event": "log_lines_lost", "lines": count}) + "\n"


def _json(event: Any, default: Callable[[Any], Any]) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=default).decode()
    except (TypeError, ValueError):  # half a surrogate pair, keys that are no texts
        return json.dumps(event, default=default)


def _guarded(renderer: Callable[..., Any]) -> Callable[..., str]:
    """Return a renderer that fails nobody: what it cannot render is told as a line without it."""

    def rendered(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        try:
            return str(renderer(logger, method, event))
        except Exception:
            return json.dumps(_FAILED | {"logger": logger.name})

    return rendered


def _drop_color_message(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    event.pop("color_message", None)  # uvicorn's copy of the message with escape codes
    return event

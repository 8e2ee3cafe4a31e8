"""Structured logs on stderr: pretty on a terminal, JSON otherwise; stdlib logging goes along.

Prompts, answers, keys and the texts of unexpected errors are never logged: of an exception only
its type and where it happened.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Callable, MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import Processor

EventDict = MutableMapping[str, Any]


def use_json(log_format: str, stream: TextIO) -> bool:
    """Tell whether lines are JSON: as the setting says, or by what the stream is."""
    return log_format == "json" or (log_format == "auto" and not stream.isatty())


def configure(level: str, as_json: bool, stream: TextIO | None = None) -> None:
    """Set up structlog and stdlib logging for the whole process; `stream` is stderr by default."""
    out = stream if stream is not None else sys.stderr
    threshold = getattr(logging, level.upper())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        where_only,
        in_order,
    ]
    renderer = _renderer(as_json, out)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.INFO))
    # uvicorn tells at INFO that it starts and stops, which the lifecycle says better
    logging.getLogger("uvicorn").setLevel(max(threshold, logging.WARNING))


def where_only(_: Any, __: str, event: EventDict) -> EventDict:
    """Replace an exception by its type and its stack, without its text: that may quote a prompt."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        event["error_type"] = type(error).__qualname__
        event["stack"] = "".join(traceback.format_tb(error.__traceback__)[-20:])
    return event


def in_order(_: Any, __: str, event: EventDict) -> EventDict:
    """Put first what every line has."""
    first = {name: event.pop(name) for name in ("timestamp", "level", "event") if name in event}
    return {**first, **event}


def _renderer(as_json: bool, stream: TextIO) -> Processor:
    if as_json:
        return structlog.processors.JSONRenderer(serializer=_dumps)
    console = structlog.dev.ConsoleRenderer(colors=stream.isatty(), sort_keys=False)

    def pretty(logger: Any, name: str, event: EventDict) -> str:
        stack = event.pop("stack", "")
        line = console(logger, name, event)
        return f"{line}\n{stack}".rstrip("\n") if stack else str(line)

    return pretty


def _dumps(value: Any, default: Callable[[Any], Any] | None = None, **_: Any) -> str:
    return json.dumps(value, default=default, ensure_ascii=False)

"""Structured logs on stderr: pretty on a terminal, one JSON object a line otherwise.

Prompts, answers and keys are never logged. What a request's code logs carries its `request_id`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

LOG_FORMATS = ("auto", "pretty", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


def resolve_format(log_format: str) -> str:
    """Return `pretty` or `json`; `auto` depends on whether stderr is a terminal."""
    if log_format != "auto":
        return log_format
    return "pretty" if sys.stderr.isatty() else "json"


def configure_logging(log_level: str, log_format: str) -> None:
    """Send structlog's and the standard library's records to stderr in one form."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Any
    if resolve_format(log_format) == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                _drop_color_message,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(log_level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "kserve", "kserve.trace"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    # our own access log says more than uvicorn's, our own events more than KServe's
    logging.getLogger("uvicorn.access").setLevel(logging.CRITICAL)
    if log_level == "info":
        for name in ("uvicorn.error", "kserve"):
            logging.getLogger(name).setLevel(logging.WARNING)


def _drop_color_message(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    event.pop("color_message", None)  # uvicorn's copy of the message with escape codes
    return event

"""What is logged while a block runs."""

from __future__ import annotations

import io
import json
import logging as stdlib_logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from openai_proxy import logging
from openai_proxy.config.logging import LoggingSettings
from openai_proxy.exchange import LOG_FIELDS


class Lines(io.StringIO):
    """A stream for log lines that reads them back."""

    logs: logging.Logs

    def text(self) -> str:
        """All that was logged until now."""
        assert self.logs.flush(5)
        return self.getvalue()

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """The JSON lines, or those with this event."""
        lines = [json.loads(line) for line in self.text().splitlines()]
        return [line for line in lines if event in (None, line["event"])]


@contextmanager
def logged(**settings: Any) -> Iterator[Lines]:
    """Log with these settings, in JSON unless they say otherwise, until the block ends."""
    lines = Lines()
    root = stdlib_logging.getLogger()
    before = root.handlers[:], root.level, logging._Current.logs
    logging._Current.logs = None
    lines.logs = logging.configure(LoggingSettings(**settings), lines)
    try:
        yield lines
    finally:
        structlog.reset_defaults()
        LOG_FIELDS.set({})
        root.handlers[:], level, logging._Current.logs = before
        root.setLevel(level)
        lines.logs.close(5)

"""Exceptions in log lines: where they were raised, and never what they say. Pure."""

from __future__ import annotations

import sys
import traceback
from typing import Any

from structlog.typing import EventDict

_MAX_FRAMES = 20


def where_only(_: Any, __: str, event: EventDict) -> EventDict:
    """Replace an exception by its type and its stack, without its text: that may quote a prompt."""
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()
    if isinstance(error, tuple):
        error = error[1]
    if isinstance(error, BaseException):
        event["error_type"] = type(error).__qualname__
        event["stack"] = "".join(traceback.format_tb(error.__traceback__)[-_MAX_FRAMES:])
    return event


def first_line(_: Any, __: str, event: EventDict) -> EventDict:
    """Keep the first line of a library's message: asyncio puts values into those below."""
    event["event"] = str(event["event"]).partition("\n")[0]
    return event

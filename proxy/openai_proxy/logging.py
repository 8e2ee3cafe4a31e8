"""Structured logs on stderr and in a file; stdlib logging goes along.

Prompts, answers, keys and the texts of unexpected errors are never logged: of an exception only
its type and where it happened. Lines are rendered where they are logged, and written by threads
(`log_sink`): nobody waits for a disk.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TextIO

import structlog
from structlog.typing import Processor

from http_edge.log_errors import where_only
from http_edge.log_sink import Console, Sink
from openai_proxy.config import ConfigError
from openai_proxy.config.logging import LoggingSettings
from openai_proxy.exchange import LOG_FIELDS
from openai_proxy.log_file import RotatingFile
from openai_proxy.log_form import Form, form_of

EventDict = MutableMapping[str, Any]
NAME = "openai_proxy"
CLOSE_SECONDS = 2.0
MAX_FOREIGN_TEXT = 1000


class LogFileError(ConfigError):
    """The log file cannot be used; the text is one line that names the setting."""


class Logs:
    """All places that lines go to, each in its form; owner of their sinks.

    Lines below `threshold`, one of stdlib's levels, are not for them.
    """

    def __init__(self, settings: LoggingSettings, stream: TextIO) -> None:
        """Open the places; raises LogFileError."""
        self.threshold: int = getattr(logging, settings.log_level.upper())
        form = form_of(console_form(settings.log_format, stream), colors=stream.isatty())
        file = None if settings.log_file is None else self._open(settings.log_file, settings)
        self._console = Sink(Console(stream), _lost_line(form), self._on_console_failure)
        self._places: list[tuple[Form, Sink]] = [(form, self._console)]
        if file is not None:
            form = form_of(settings.log_file_format)
            self._places.append((form, Sink(file, _lost_line(form), self._on_file_failure)))

    @property
    def num_lost(self) -> int:
        """How many lines were lost, over all places."""
        return sum(sink.num_lost for _, sink in self._places)

    def put(self, event: EventDict) -> None:
        """Hand an event to all places; never blocks."""
        for form, sink in self._places:
            sink.put(form(event))

    def flush(self, seconds: float) -> bool:
        """Wait until all is written, at most about so long; tells whether it is."""
        written = [sink.flush(seconds) for _, sink in self._places]
        return all(written)

    def close(self, seconds: float) -> bool:
        """Write what is there and end; tells whether that was possible in about this time."""
        ended = [sink.close(seconds) for _, sink in self._places]
        return all(ended)

    def _open(self, path: Path, settings: LoggingSettings) -> RotatingFile:
        can_rotate = settings.log_file_max_bytes or settings.log_file_rotate_seconds
        if can_rotate and path.is_file() and not os.access(path.parent, os.W_OK):
            raise LogFileError(
                f"cannot rotate the log file {path}: its directory is not writable; choose another "
                "with --log-file, or leave that to others: --log-file-max-bytes 0"
            )
        try:
            return RotatingFile(
                path,
                settings.log_file_max_bytes,
                settings.log_file_backups,
                settings.log_file_rotate_seconds,
                self._on_file_failure,
            )
        except OSError as error:
            reason = (error.strerror or type(error).__name__).lower()
            raise LogFileError(
                f"cannot write to the log file {path}: {reason}; choose another with --log-file "
                "(OPENAI_PROXY_LOG_FILE)"
            ) from None

    def _on_file_failure(self, error: Exception) -> None:
        self._tell(self._places[0], "log_file_failed", error)

    def _on_console_failure(self, error: Exception) -> None:
        if len(self._places) > 1:
            self._tell(self._places[1], "log_console_failed", error)

    def _tell(self, place: tuple[Form, Sink], event: str, error: Exception) -> None:
        form, sink = place
        reason = getattr(error, "strerror", None) or type(error).__name__
        sink.put(form(_own_line("error", event, NAME, {"reason": reason})))


class _Current:
    """The logs of this process: what structlog and stdlib logging, which are global, write to."""

    logs: Logs | None = None


def configure(settings: LoggingSettings, stream: TextIO | None = None) -> Logs:
    """Set up structlog and stdlib logging for the whole process; `stream` is stderr by default.

    Again with other settings: all or nothing; what is not yet written is written. Raises
    LogFileError.
    """
    logs = Logs(settings, stream if stream is not None else sys.stderr)
    before, _Current.logs = _Current.logs, logs
    threshold = logs.threshold
    processors: list[Processor] = [
        _with_context,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _named,
        where_only,
        in_order,
    ]

    def hand_over(_: Any, __: str, event: EventDict) -> NoReturn:
        logs.put(event)
        raise structlog.DropEvent  # nothing is left to do

    structlog.configure(
        processors=[*processors, hand_over],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_Name,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Foreign(logs, processors)]
    root.setLevel(max(threshold, logging.INFO))
    # uvicorn tells at INFO that it starts and stops, which the lifecycle says better
    logging.getLogger("uvicorn").setLevel(max(threshold, logging.WARNING))
    if before is None:
        atexit.register(close)
    else:
        before.close(CLOSE_SECONDS)
    return logs


def close(seconds: float = CLOSE_SECONDS) -> None:
    """Write what is still to be written, at most about so long: the process ends."""
    if _Current.logs is not None:
        _Current.logs.close(seconds)


def write_line(level: str, logger: str, event: str, fields: Mapping[str, Any]) -> None:
    """Log a line past structlog's processors: for what is logged with every request."""
    logs = _Current.logs
    if logs is not None and _LEVELS[level] >= logs.threshold:
        logs.put(_own_line(level, event, logger, fields))


_LEVELS = {name.lower(): number for name, number in logging.getLevelNamesMapping().items()}


def console_form(log_format: str, stream: TextIO) -> str:
    """Return the form of the lines on a stream: as the setting says, or by what the stream is."""
    if log_format != "auto":
        return log_format
    return "pretty" if stream.isatty() else "json"


class _Name:
    """structlog's underlying logger: a name; the last processor has written the line already."""

    def __init__(self, name: str = NAME) -> None:
        self.name = name

    def msg(self, *_: Any, **__: Any) -> None:
        """Say nothing."""

    debug = info = warning = error = critical = exception = msg


class _Foreign(logging.Handler):
    """Takes the lines of libraries through the same processors."""

    def __init__(self, logs: Logs, processors: Sequence[Processor]) -> None:
        super().__init__()
        self._logs = logs
        self._processors = processors

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a line over: its first line only, for asyncio puts values into those below."""
        try:
            text = record.getMessage().partition("\n")[0][:MAX_FOREIGN_TEXT]
            event: Any = {"event": text, "exc_info": record.exc_info}
            for processor in self._processors:
                event = processor(record, record.levelname.lower(), event)
            self._logs.put(event)
        except Exception:  # stdlib's own handler would print the record with its arguments
            self._logs.put(_own_line("error", "log_line_failed", record.name, {}))


def _with_context(_: Any, __: str, event: EventDict) -> EventDict:
    """Add what the context has, which the event's own fields win over."""
    for name, value in LOG_FIELDS.get(_NOTHING).items():
        event.setdefault(name, value)
    return event


def _named(logger: Any, _: str, event: EventDict) -> EventDict:
    """Name the logger, unless the event is a backend's, which has named its own."""
    event.setdefault("logger", logger.name)
    return event


def in_order(_: Any, __: str, event: EventDict) -> EventDict:
    """Put first what every line has."""
    first = {name: event.pop(name) for name in _FIRST if name in event}
    return {**first, **event}


_NOTHING: Mapping[str, str] = MappingProxyType({})
_FIRST = ("timestamp", "level", "event", "logger")


def _lost_line(form: Form) -> Callable[[int], str]:
    return lambda count: form(_own_line("warning", "log_lines_lost", NAME, {"lines": count}))


def _own_line(level: str, event: str, logger: str, fields: Mapping[str, Any]) -> EventDict:
    """Return a line that structlog's processors did not make."""
    seconds, micros = divmod(time.time_ns() // 1000, 1_000_000)
    timestamp = f"{_to_seconds(seconds)}.{micros:06d}Z"
    return {"timestamp": timestamp, "level": level, "event": event, "logger": logger, **fields}


@functools.lru_cache(1)
def _to_seconds(seconds: int) -> str:
    """Return a time of day in UTC; there are many lines a second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))

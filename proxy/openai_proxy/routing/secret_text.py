"""A secret of one line: given as it is, or in a file that is read again when it changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import structlog
from pydantic import SecretStr

from openai_proxy.file_watch import Reloaded, read_secret

log = structlog.get_logger("openai_proxy")


class SecretText:
    """One secret; neither `repr` nor any error shows it."""

    def __init__(
        self,
        what: str,
        literal: SecretStr | None,
        path: Path | None,
        check: Callable[[str], str] = lambda text: text,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`what` is for messages. Raises ValueError for a file that cannot be used."""
        assert (literal is None) != (path is None)

        def load() -> str:
            if path is None:
                assert literal is not None
                return check(literal.get_secret_value())
            try:
                return check(read_secret(path, what))
            except ValueError as error:
                text = str(error)
                raise ValueError(text if str(path) in text else f"{what}: {path}: {text}") from None

        self._current = Reloaded(
            [] if path is None else [path],
            load,
            on_reload=lambda: log.info("secret_reloaded", secret=what),
            on_failure=lambda error: log.error("secret_not_reloaded", reason=str(error)),
            clock=clock,
        )

    def value(self, *, now: bool = False) -> str:
        """Return the secret; `now`: look at the file, however short ago the last look was."""
        return self._current.value(now=now)

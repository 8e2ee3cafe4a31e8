"""Reads the configuration again while the proxy runs: on SIGHUP, or when a file has changed.

All or nothing: new settings are built and checked, then handed to one callback. What is wrong is
logged, and the old settings stay. Settings in NEEDS_RESTART keep their old values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from openai_proxy.config.errors import ConfigError
from openai_proxy.config.files import stamp
from openai_proxy.config.layers import Layer
from openai_proxy.config.loading import Loaded, checked
from openai_proxy.config.settings import Settings

log = structlog.get_logger("openai_proxy.config")

# What is decided once, when the process starts: the listening socket, the child process, traces.
# A name that ends with _ stands for all that begin so.
NEEDS_RESTART = (
    "backend",
    "backend_",
    "exit_on_stdin_close",
    "host",
    "metrics_namespace",
    "model_cache_dir",
    "model_name",
    "model_path",
    "otlp_",
    "port",
    "quiet",
    "tls_",
    "trace_",
    "without_upstream",
)
Apply = Callable[[Settings, frozenset[str]], Awaitable[None]]


def needs_restart(name: str) -> bool:
    """Tell whether a change of a setting waits for the next start."""
    return any(
        name.startswith(known) if known.endswith("_") else name == known for known in NEEDS_RESTART
    )


class Reloader:
    """Owner of the current configuration; `run` it as a task of the event loop.

    `read` reads all layers anew, in a thread. `apply` gets new settings and the names of those that
    have changed: it swaps all or raises ConfigError; it is never called twice at a time.
    """

    def __init__(self, loaded: Loaded, read: Callable[[], Loaded], apply: Apply) -> None:
        self.settings = loaded.settings
        self._watched = loaded.files.watched
        self._read = read
        self._apply = apply
        self._asked = asyncio.Event()
        self._seen = loaded.files.stamp
        self._before = self._seen

    def request(self) -> None:
        """Read again soon, whether or not a file has changed: for SIGHUP."""
        self._asked.set()

    async def run(self) -> None:
        """Look at the files every `config_poll_seconds`, and read them when asked, for ever."""
        while True:
            if await self._pause(self.settings.config_poll_seconds):
                await self.reload(is_asked=True)
            else:
                await self.look()

    async def look(self) -> None:
        """Read again if a file has changed since it was read, and not since the last look.

        The second condition is for files that are written in parts.
        """
        now = await asyncio.to_thread(stamp, self._watched)
        is_settled = now == self._before
        self._before = now
        if is_settled and now != self._seen:
            await self.reload()

    async def reload(self, *, is_asked: bool = False) -> None:
        """Read all layers, and hand on what has changed; never raises for what they hold.

        When asked, they are handed on in any case: files that settings name may have changed.
        """
        self._seen = self._before = await asyncio.to_thread(stamp, self._watched)
        try:
            loaded = await asyncio.to_thread(self._read)
            settings, changed, waiting = _with_old(self.settings, loaded)
            if changed or is_asked:
                await self._apply(settings, changed)
        except ConfigError as error:
            log.error("configuration_not_reloaded", problems=list(error.problems))
            return
        except Exception as error:
            # Whatever it is, it must not end a proxy that works.
            log.error("configuration_not_reloaded", exc_info=error)
            return
        self.settings = settings
        if waiting:
            log.warning("configuration_needs_restart", settings=sorted(waiting))
        log.info("configuration_reloaded", changed=sorted(changed))

    async def _pause(self, seconds: float) -> bool:
        """Wait for so long, or until asked; tells whether it was asked."""
        try:
            async with asyncio.timeout(seconds or None):
                await self._asked.wait()
        except TimeoutError:
            return False
        self._asked.clear()
        return True


def _with_old(current: Settings, loaded: Loaded) -> tuple[Settings, frozenset[str], frozenset[str]]:
    """Return the settings to take, the names that have changed, and those that need a restart.

    Raises ConfigError where the new ones do not go with those that stay as they are.
    """
    different = frozenset(
        name
        for name in Settings.model_fields
        if getattr(current, name) != getattr(loaded.settings, name)
    )
    waiting = frozenset(filter(needs_restart, different))
    if not waiting:
        return loaded.settings, different, waiting
    values = {
        name: getattr(current if name in waiting else loaded.settings, name)
        for name in Settings.model_fields
    }
    try:
        settings = checked(Layer(values))
    except ConfigError as error:
        names = ", ".join(sorted(waiting))
        raise ConfigError(f"needs a restart, for {names} changed: {error}") from None
    return settings, different - waiting, waiting

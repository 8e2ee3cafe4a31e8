"""The command: `python -m openai_proxy`.

Exit codes: 0 stopped as asked, 1 a part failed, 2 bad configuration, 3 the port is taken; with a
backend also 4 no such model file and 5 not enough memory, as the backend says.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Sequence

import structlog
import uvloop

from openai_proxy import logging
from openai_proxy.config import ConfigError, Flags, Loaded, load_all
from openai_proxy.config.reload import Apply, Reloader
from openai_proxy.console import say
from openai_proxy.flags import Action, read
from openai_proxy.lifecycle import Lifecycle
from openai_proxy.server import EXIT_PORT_TAKEN, ListenError, listen

EXIT_BAD_CONFIGURATION = 2

# New objects between two looks for cycles among them; Python's own is 700.
COLLECT_AFTER = 10_000


def main(arguments: Sequence[str]) -> int:
    """Run the proxy, or do what else is asked; returns its exit code."""
    try:
        command = read(arguments)
        if command.action is Action.PRINT_SCHEMA:
            from openai_proxy.config import schema  # no server needs it

            say(schema.text(), sys.stdout)
            return 0
        loaded = load_all(command.flags)
        if command.action is Action.CHECK_CONFIG:
            from openai_proxy import assembly  # takes long to import

            assembly.check(loaded.settings)
        if command.action is Action.RUN:
            logging.configure(loaded.settings)
    except ConfigError as error:
        for problem in error.problems:
            say(f"openai_proxy: {problem}\n", sys.stderr)
        return EXIT_BAD_CONFIGURATION
    if command.action is not Action.RUN:
        _tell(loaded, command.action)
        return 0
    return _serve(loaded, command.flags)


def _tell(loaded: Loaded, action: Action) -> None:
    for warning in loaded.warnings:
        say(f"openai_proxy: {warning}\n", sys.stderr)
    if action is Action.PRINT_CONFIG:
        from openai_proxy.config import show  # no server needs it

        say(show.text(loaded), sys.stdout)
    else:
        files = ", ".join(map(str, loaded.files.read)) or "no file"
        say(f"The configuration is good: {files}, environment and flags.\n", sys.stdout)


def _serve(loaded: Loaded, flags: Flags) -> int:
    settings = loaded.settings
    log = structlog.get_logger("openai_proxy")
    for warning in loaded.warnings:
        log.warning("unknown_variable", reason=warning)
    try:
        listener = listen(settings.host, settings.port, settings.write_timeout_seconds)
    except ListenError as error:
        log.error(str(error))
        return EXIT_PORT_TAKEN

    def reloader(apply: Apply) -> Reloader:
        return Reloader(loaded, lambda: load_all(flags), apply)

    async def run() -> int:
        return await Lifecycle(settings, listener, reloader, _collect_seldom).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def _collect_seldom() -> None:
    """Spare the garbage collector what is here for good, and most of its looks at what is new.

    Requests leave few cycles behind; to look for them took a tenth of their time.
    """
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The command: `python -m openai_proxy`.

Exit codes: 0 stopped as asked, 1 a part failed, 2 bad configuration, 3 the port is taken; with a
backend also 4 no such model file and 5 not enough memory, as the backend says.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import structlog
import uvloop

from openai_proxy import logging
from openai_proxy.config import ConfigError, load
from openai_proxy.flags import parse
from openai_proxy.lifecycle import Lifecycle
from openai_proxy.server import EXIT_PORT_TAKEN, ListenError, listen

EXIT_BAD_CONFIGURATION = 2


def main(arguments: Sequence[str]) -> int:
    """Run the proxy; returns its exit code."""
    try:
        settings = load(parse(arguments))
    except ConfigError as error:
        print(f"openai_proxy: {error}", file=sys.stderr)
        return EXIT_BAD_CONFIGURATION
    logging.configure(settings.log_level, logging.use_json(settings.log_format, sys.stderr))
    try:
        listener = listen(settings.host, settings.port)
    except ListenError as error:
        structlog.get_logger("openai_proxy").error(str(error))
        return EXIT_PORT_TAKEN

    async def run() -> int:
        return await Lifecycle(settings, listener).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m bootstrap`: what the Makefile calls; results on stdout, progress on stderr."""

import argparse
import os
import signal
import sys
from types import FrameType

from bootstrap import environment, model, wheel
from bootstrap.cache import open_cache
from bootstrap.environment import Environment
from bootstrap.errors import BootstrapError
from bootstrap.serve import Request, serve

_FAILED = 1
_SIGNALLED = 128


def main() -> int:
    """Run one command and return the exit status."""
    options = _parser().parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        _do(options)
    except BootstrapError as error:
        print(f"\n{error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return _SIGNALLED + signal.SIGINT
    return 0


def _do(options: argparse.Namespace) -> None:
    cache = open_cache(os.environ)
    place = Environment(environment.ROOT / ".venv", cache, os.environ)
    match options.command:
        case "env":
            place.ensure(options.profile)
        case "wheel":
            print(wheel.ensure(cache, os.environ))
        case "model":
            print(model.ensure(cache, os.environ))
        case "serve":
            request = Request(options.model, options.host, options.port, tuple(options.arguments))
            serve(request, place, cache, os.environ)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bootstrap", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    env = commands.add_parser("env", help="make or bring up to date the environment in .venv")
    env.add_argument("--profile", choices=tuple(environment.PROFILES), default="runtime")
    commands.add_parser("wheel", help="build or find the llama-cpp-python wheel; print its path")
    commands.add_parser("model", help="fetch or find the default model; print its path")
    server = commands.add_parser("serve", help="make what is missing, then start the proxy")
    server.add_argument("--model", default="", help="a GGUF file instead of the default model")
    server.add_argument("--host", default="127.0.0.1")
    server.add_argument("--port", default="8000")
    server.add_argument("arguments", nargs="*", help="after --: passed on to the proxy")
    return parser


def _leave(number: int, frame: FrameType | None) -> None:
    # An exception, so that what runs now ends its children and its scratch files on the way out.
    raise SystemExit(_SIGNALLED + number)


if __name__ == "__main__":
    sys.exit(main())

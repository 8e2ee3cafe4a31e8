"""From nothing to a running server: the environment, a model, then the proxy itself."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from bootstrap import model, process
from bootstrap.cache import Cache
from bootstrap.environment import Environment
from bootstrap.errors import BootstrapError

_GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class Request:
    """What is to be served, and where; an empty model means the default one."""

    model: str
    host: str
    port: str
    arguments: tuple[str, ...]


def serve(
    request: Request, environment: Environment, cache: Cache, environ: Mapping[str, str]
) -> NoReturn:
    """Make what is missing, then become the proxy; a wrong model is refused before the rest."""
    chosen = given_model(request.model) if request.model else None
    environment.ensure("runtime")
    path = chosen or model.ensure(cache, environ)
    arguments = command(environment.python, path, request)
    # Replacing this process leaves nobody between make and the proxy who would have to hand on
    # signals and the exit status.
    os.execve(arguments[0], arguments, process.without_make(environ))


def given_model(value: str) -> Path:
    """The user's own model file; refused when it is missing or no GGUF file."""
    path = Path(value).expanduser().absolute()
    if path.is_dir():
        return path
    try:
        with path.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except OSError as error:
        raise BootstrapError(
            f"MODEL={value} cannot be read ({error.strerror or error}): "
            "give the path of a GGUF file, or leave MODEL out to serve the default model"
        ) from error
    if magic != _GGUF_MAGIC:
        raise BootstrapError(f"MODEL={value} is not a GGUF file: convert it, or give another one")
    return path


def command(python: Path, model_path: Path, request: Request) -> list[str]:
    """The proxy's command line; the user's own arguments come last, so that they win."""
    return [
        os.fspath(python),
        *("-m", "openai_proxy", "--backend", "llamacpp", "--model-path", os.fspath(model_path)),
        *("--host", request.host, "--port", request.port, "--drain-delay-seconds", "0"),
        *request.arguments,
    ]

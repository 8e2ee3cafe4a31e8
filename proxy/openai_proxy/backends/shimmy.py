"""The `shimmy` backend; it gets its model by a variable, and names it itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from openai_proxy.backends.kind import (
    EXIT_BAD_CONFIGURATION,
    EXIT_NO_MODEL,
    ModelServer,
    Sign,
    address,
    gguf_file,
)
from openai_proxy.dialects.base import CHAT

# What it calls the model of SHIMMY_BASE_GGUF, whatever that is: since 2.0, and before.
DEFAULT_NAMES = ("tinyllama-1.1b", "phi3-lora")


@dataclass(frozen=True, slots=True)
class Shimmy(ModelServer):
    """Its command line, its variable, and its name for the model.

    It lists every model that it finds beside this one and in its usual folders, too.
    """

    program: str
    model_path: str
    arguments: tuple[str, ...] = ()

    name: ClassVar[str] = "shimmy"
    install: ClassVar[str] = "install it with `cargo install shimmy`, or name its file"
    dialect: ClassVar[str] = "shimmy"
    warm_up_path: ClassVar[str] = CHAT  # it loads the model with the first request
    health_path: ClassVar[str] = "/health"
    signs: ClassVar[tuple[Sign, ...]] = (
        Sign(r"model file not found|no models available", EXIT_NO_MODEL, "see --model-path"),
        Sign(
            r"failed to resolve bind address|non-loopback binds require",
            EXIT_BAD_CONFIGURATION,
            "see --backend-host",
        ),
    )

    @property
    def model(self) -> None:  # type: ignore[override]  # a field of the other kinds
        """None: it has names of its own."""

    def check(self, path: str | None) -> None:
        """Raise BackendError without the program or the model's file."""
        ModelServer.check(self, path)
        gguf_file(self.model_path)

    def command(self, host: str, port: int) -> list[str]:
        """Return its command line; `arguments` come last."""
        return [self.program, "serve", "--bind", address(host, port), *self.arguments]

    def environment(self, host: str, port: int) -> dict[str, str]:
        """Return the variable that names the model's file."""
        return {"SHIMMY_BASE_GGUF": str(Path(gguf_file(self.model_path)).absolute())}

    def choose_model(self, listed: Sequence[str]) -> str | None:
        """Return the name that it made of the file's, else its fixed one, else what there is."""
        file = Path(gguf_file(self.model_path)).name
        stem = file.rpartition(".")[0] or file
        own = stem.replace("_", "-").replace(" ", "-").lower()
        for wanted in (own, stem, *DEFAULT_NAMES):
            if wanted in listed:
                return wanted
        return listed[0] if listed else own

"""The `llama-server` backend: llama.cpp's own server, by its OpenAI API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from openai_proxy.backends.kind import (
    EXIT_BAD_CONFIGURATION,
    EXIT_NO_MODEL,
    EXIT_PORT_TAKEN,
    ModelServer,
    Sign,
    gguf_file,
)


@dataclass(frozen=True, slots=True)
class LlamaServer(ModelServer):
    """Its command line and readiness; it ends with 1 whatever the reason, and says which."""

    program: str
    model: str
    model_path: str
    arguments: tuple[str, ...] = ()

    name: ClassVar[str] = "llama-server"
    install: ClassVar[str] = "take it from llama.cpp's releases, or build it, and name its file"
    health_path: ClassVar[str] = "/health"  # 503 while it loads
    hopeless_codes: ClassVar[frozenset[int]] = frozenset()
    signs: ClassVar[tuple[Sign, ...]] = (
        Sign(r"couldn't bind (HTTP )?server socket", EXIT_PORT_TAKEN),
        Sign(
            r"error: invalid argument|error while handling argument|error while handling environ|"
            r"error parsing arguments",
            EXIT_BAD_CONFIGURATION,
            "see --backend-arg",
        ),
        Sign(r"failed to load model|error loading model", EXIT_NO_MODEL, "see --model-path"),
    )

    def check(self, path: str | None) -> None:
        """Raise BackendError without the program or the model's file."""
        ModelServer.check(self, path)
        gguf_file(self.model_path)

    def command(self, host: str, port: int) -> list[str]:
        """Return its command line; `arguments` come last, so that they win."""
        return [
            *(self.program, "-m", gguf_file(self.model_path), "-a", self.model),
            *("--host", host, "--port", str(port)),
            *self.arguments,
        ]

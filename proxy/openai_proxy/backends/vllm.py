"""The `vllm` backend: vLLM's server, by its OpenAI API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from openai_proxy.backends.kind import NO_SUCH_MODEL, ModelServer, Sign, check_local_or_hub


@dataclass(frozen=True, slots=True)
class VLLM(ModelServer):
    """Its command line and readiness."""

    program: str
    model: str
    model_path: str
    arguments: tuple[str, ...] = ()

    name: ClassVar[str] = "vllm"
    install: ClassVar[str] = "install it with `pip install vllm`, or name its file"
    health_path: ClassVar[str] = "/health"
    signs: ClassVar[tuple[Sign, ...]] = (NO_SUCH_MODEL,)

    def check(self, path: str | None) -> None:
        """Raise BackendError without the program, or without a model that is named by its path."""
        ModelServer.check(self, path)
        check_local_or_hub(self.model_path)

    def command(self, host: str, port: int) -> list[str]:
        """Return its command line; `arguments` come last, so that they win."""
        return [
            *(self.program, "serve", self.model_path, "--host", host, "--port", str(port)),
            *("--served-model-name", self.model),
            *self.arguments,
        ]

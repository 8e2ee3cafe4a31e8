"""The `sglang` backend: SGLang's server, by its OpenAI API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from openai_proxy.backends.kind import (
    EXIT_BAD_CONFIGURATION,
    NO_SUCH_MODEL,
    ModelServer,
    Sign,
    check_local_or_hub,
)


@dataclass(frozen=True, slots=True)
class SGLang(ModelServer):
    """Its command line and readiness; `program` is the Python that has it."""

    program: str
    model: str
    model_path: str
    arguments: tuple[str, ...] = ()

    name: ClassVar[str] = "sglang"
    program_setting: ClassVar[str] = "--backend-python"
    # Not /health_generate: our own warm-up generates a token, once.
    health_path: ClassVar[str] = "/health"
    signs: ClassVar[tuple[Sign, ...]] = (
        Sign(
            r"no module named '?sglang",
            EXIT_BAD_CONFIGURATION,
            "install it with `pip install sglang`, or name the Python that has it with "
            "--backend-python",
        ),
        NO_SUCH_MODEL,
    )

    def check(self, path: str | None) -> None:
        """Raise BackendError without the Python, or without a model that is named by its path."""
        ModelServer.check(self, path)
        check_local_or_hub(self.model_path)

    def command(self, host: str, port: int) -> list[str]:
        """Return its command line; `arguments` come last, so that they win."""
        return [
            *(self.program, "-m", "sglang.launch_server"),
            *("--model-path", self.model_path, "--served-model-name", self.model),
            *("--host", host, "--port", str(port)),
            *self.arguments,
        ]

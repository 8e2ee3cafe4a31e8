"""The `llamacpp` backend: this project's own predictor, as a child process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import quote

from openai_proxy.backends.kind import EXIT_BAD_CONFIGURATION, ModelServer, Sign, check_reference


@dataclass(frozen=True, slots=True)
class LlamaCpp(ModelServer):
    """Its command line and exit codes; `grace_seconds` is its own time to finish on SIGTERM."""

    program: str
    model: str
    model_path: str
    grace_seconds: float
    arguments: tuple[str, ...] = ()
    log_level: str = "info"

    name: ClassVar[str] = "llamacpp"
    program_setting: ClassVar[str] = "--backend-python"
    liveness_path: ClassVar[str | None] = "/v2/health/live"  # 200 also while it loads or restarts
    # Bad configuration, a taken port, no such model file or not a GGUF, not enough memory.
    hopeless_codes: ClassVar[frozenset[int]] = frozenset({2, 3, 4, 5})
    signs: ClassVar[tuple[Sign, ...]] = (
        Sign(
            r"no module named '?kserve_llamacpp",
            EXIT_BAD_CONFIGURATION,
            "--backend-python must name the Python that has the predictor",
        ),
    )

    @property
    def health_path(self) -> str:
        """KServe's own: 200 once the model is loaded, 503 before."""
        return f"/v1/models/{quote(self.model, safe='')}"

    def check(self, path: str | None) -> None:
        """Raise BackendError without the Python, or with a model that is not here at all."""
        ModelServer.check(self, path)
        check_reference(self.model_path)

    def command(self, host: str, port: int) -> list[str]:
        """Return the predictor's command line; `arguments` come last, so that they win."""
        return [
            *(self.program, "-m", "kserve_llamacpp"),
            *("--model_name", self.model, "--model_dir", self.model_path),
            *("--http_host", host, "--http_port", str(port), "--enable_grpc", "false"),
            *("--drain_delay_seconds", "0", "--grace_seconds", f"{self.grace_seconds:g}"),
            *("--log_format", "json", "--log_level", self.log_level),
            *self.arguments,
        ]

"""The `llamacpp` backend: this project's own predictor, as a child process."""

from __future__ import annotations

from dataclasses import dataclass

# The predictor's exit codes after which another try would end the same way: bad configuration,
# no such model file or not a GGUF, not enough memory.
_HOPELESS = frozenset({2, 4, 5})


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """Its command line and exit codes; `grace_seconds` is its own time to finish on SIGTERM."""

    python: str
    model: str
    model_path: str
    grace_seconds: float
    arguments: tuple[str, ...] = ()
    log_level: str = "info"
    name: str = "llamacpp"

    def command(self, host: str, port: int) -> list[str]:
        """Return the predictor's command line; `arguments` come last, so that they win."""
        return [
            *(self.python, "-m", "kserve_llamacpp"),
            *("--model_name", self.model, "--model_dir", self.model_path),
            *("--http_host", host, "--http_port", str(port), "--enable_grpc", "false"),
            *("--drain_delay_seconds", "0", "--grace_seconds", f"{self.grace_seconds:g}"),
            *("--log_format", "json", "--log_level", self.log_level),
            *self.arguments,
        ]

    def hopeless(self, exit_code: int) -> bool:
        """Tell whether a process that ended so would end so again."""
        return exit_code in _HOPELESS

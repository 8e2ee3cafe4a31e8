"""Settings of the model server that the proxy starts and supervises."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from openai_proxy.config.types import Delay, NoDecode, Port, Seconds

PLACEHOLDERS = ("host", "port", "model_path", "model_name")
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_HEALTH_PATH = re.compile(r"/[!-~]*")


class BackendSettings(BaseModel):
    """Which program to run, with which model, and how patient to be with it."""

    backend: Literal["llamacpp", "sglang", "vllm", "llama-server", "shimmy", "command"] | None = (
        Field(
            None,
            description="Model server that the proxy starts and supervises itself: llamacpp is "
            "this project's predictor, command any program.",
        )
    )
    model_path: str | None = Field(
        None,
        description="Model that the backend serves: a GGUF file or a folder with one, for SGLang "
        "and vLLM a folder or a name on the hub.",
    )
    model_name: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="Name under which it is served; by default the file's, without .gguf, or the "
        "whole name on the hub.",
    )
    model_cache_dir: str | None = Field(
        None, description="Folder where the backend keeps models of the hub: its HF_HOME."
    )
    backend_host: str = Field("127.0.0.1", description="Address that the backend listens on.")
    backend_port: Port = Field(
        0, description="Port that it listens on; 0 takes a free one, a taken one is refused."
    )
    backend_python: str = Field(
        sys.executable, description="Python executable that runs the backend: llamacpp or sglang."
    )
    backend_executable: str | None = Field(
        None,
        min_length=1,
        description="Program of the backend, a file or a name on the PATH; by default vllm, "
        "llama-server or shimmy.",
    )
    backend_command: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        repr=False,
        description="Command line of the backend `command`, split as a shell would, run without "
        "one; {host}, {port}, {model_path} and {model_name} are filled in.",
    )
    backend_args: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        repr=False,
        description="Arguments passed on to the backend: in the variable as a shell would split "
        "them, as a flag also all that follows --.",
    )
    backend_env: Annotated[dict[str, SecretStr], NoDecode] = Field(
        {},
        repr=False,
        description="Variables added to the backend's environment, a JSON object; {host} and "
        "{port} are filled in.",
    )
    backend_health_path: str | None = Field(
        None,
        description="Path that answers 200 once the backend has loaded its model; by default that "
        "of its kind, for a command the open port is enough.",
    )
    backend_startup_timeout: Seconds = Field(
        600, description="Seconds until the backend must answer."
    )
    backend_liveness_timeout: Delay = Field(
        600,
        description="Seconds without a sign of life of a backend that was ready, neither an answer "
        "below 500 at its health path nor bytes of any other, until it is killed and started "
        "again; 0: never. The predictor is asked at its liveness path, and is started again at "
        "once when it says that it cannot go on. Below --request-timeout-seconds, one that answers "
        "nothing while it computes may be taken for dead.",
    )
    backend_restart_wait_seconds: Delay = Field(
        30,
        description="Longest wait of a request, which has sent its client nothing, for a backend "
        "that was ready and is started again; 0: it gets an error at once.",
    )
    backend_max_restarts: int = Field(
        5,
        ge=0,
        description="Restarts in a row, without a minute of service in between, until the proxy "
        "gives up.",
    )
    backend_backoff_seconds: Seconds = Field(
        1, description="Wait before the first restart; doubles with each that fails."
    )
    backend_backoff_cap_seconds: Seconds = Field(30, description="Longest wait before a restart.")
    backend_stop_seconds: Delay = Field(
        5, description="Time that the backend has to end by itself before it is killed."
    )
    exit_on_stdin_close: bool = Field(
        False,
        description="End, as on SIGTERM, when stdin is closed: for a proxy that another program "
        "started and holds a pipe to.",
    )

    @field_validator("backend_args", "backend_command", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(shlex.split(value)) if isinstance(value, str) else value

    @field_validator("backend_env", mode="before")
    @classmethod
    def _decode(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise ValueError(_NO_OBJECT) from error
        if not isinstance(value, dict):
            raise ValueError(_NO_OBJECT)
        # As a person writes them: CUDA_VISIBLE_DEVICES: 0
        is_number = {name: type(item) in (int, float) for name, item in value.items()}
        return {name: str(item) if is_number[name] else item for name, item in value.items()}

    @field_validator("backend_env")
    @classmethod
    def _is_environment(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, text in value.items():
            if not name or "=" in name or "\0" in name + text.get_secret_value():
                raise ValueError("a variable needs a name without =, and none may have a NUL")
        return value

    @field_validator("backend_health_path")
    @classmethod
    def _is_path(cls, value: str | None) -> str | None:
        if value is not None and not _HEALTH_PATH.fullmatch(value):
            raise ValueError("must be a path like /health")
        return value

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.backend == "command":
            self._check_command()
        elif self.backend is not None and self.model_path is None:
            raise ValueError(f"--backend {self.backend} needs --model-path")
        return self

    def _check_command(self) -> None:
        if not self.backend_command:
            raise ValueError(
                "--backend command needs --backend-command, such as 'my-server --port {port}'"
            )
        used = set(_PLACEHOLDER.findall(" ".join(self.backend_command)))
        if unknown := sorted(used.difference(PLACEHOLDERS)):
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise ValueError(f"--backend-command knows {known}, not {{{unknown[0]}}}")
        if "model_path" in used and self.model_path is None:
            raise ValueError("--backend-command has {model_path} in it: give --model-path")
        if "model_name" in used and self.served_model is None:
            raise ValueError("--backend-command has {model_name} in it: give --model-name")
        by_variable = any("{port}" in text.get_secret_value() for text in self.backend_env.values())
        if not ("port" in used or by_variable or self.backend_port):
            raise ValueError(
                "--backend-command has no {port} in it: give --backend-port, where it listens"
            )

    @property
    def served_model(self) -> str | None:
        """The name of the backend's model: as given, else the file's; None without one."""
        if self.model_name is not None or self.model_path is None:
            return self.model_name
        if self.backend in ("sglang", "vllm") and _HUB_NAME.fullmatch(self.model_path):
            return self.model_path[:256]
        # Not `stem`: a directory's name may have a dot (qwen2.5). Not `resolve`: a link's own name
        # tells more than that of the blob it leads to.
        return Path(self.model_path).absolute().name.removesuffix(".gguf")[:256] or "model"


_NO_OBJECT = 'must be a JSON object of texts, such as {"NAME": "value"}'

"""Settings of the model server that the proxy starts and supervises."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator

from openai_proxy.config.types import NoDecode, Port, Seconds


class BackendSettings(BaseModel):
    """Which program to run, with which model, and how patient to be with it."""

    backend: Literal["llamacpp"] | None = Field(
        None, description="Model server that the proxy starts and supervises itself."
    )
    model_path: str | None = Field(None, description="Model file that the backend serves.")
    model_name: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="Name under which the backend serves it; by default the file's, without .gguf.",
    )
    backend_host: str = Field("127.0.0.1", description="Address that the backend listens on.")
    backend_port: Port = Field(0, description="Port that it listens on; 0 takes a free one.")
    backend_python: str = Field(
        sys.executable, description="Python executable that runs the backend."
    )
    backend_args: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        repr=False,
        description="Arguments passed on to the backend: in the variable as a shell would split "
        "them, as a flag also all that follows --.",
    )
    backend_startup_timeout: Seconds = Field(
        600, description="Seconds until the backend must answer."
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

    @field_validator("backend_args", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(shlex.split(value)) if isinstance(value, str) else value

    @property
    def served_model(self) -> str | None:
        """The name of the backend's model: as given, else the file's; None without one."""
        if self.model_name is not None or self.model_path is None:
            return self.model_name
        # Not `stem`: a directory's name may have a dot (qwen2.5). Not `resolve`: a link's own name
        # tells more than that of the blob it leads to.
        return Path(self.model_path).absolute().name.removesuffix(".gguf")[:256] or "model"

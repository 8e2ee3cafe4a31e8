"""The proxy's settings: flags, then the environment, then defaults; one frozen object.

    settings = load({"port": "9000", "upstream_url": "http://127.0.0.1:8080"})

Every setting is a flag (`--max-body-bytes`) and a variable (`OPENAI_PROXY_MAX_BODY_BYTES`).
`ConfigError` names the setting and how to mend it.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

ENV_PREFIX = "OPENAI_PROXY_"

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]
Delay = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]
LogLevel = Literal["debug", "info", "warning", "error"]


class ConfigError(Exception):
    """A setting is wrong; the text is one line that names it and says how to mend it."""


class Settings(BaseSettings):
    """All settings of the proxy; frozen. Build it with `load`.

    No setting holds a secret: `upstream_url` refuses credentials, `backend_args` are not shown.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid"
    )

    # A container is reached from outside only so; `make serve` and tests give a narrower one.
    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104
    port: Port = Field(8000, description="Port to listen on; 0 takes a free one.")

    upstream_url: str | None = Field(
        None,
        description="OpenAI server to send requests to, for a proxy without a backend of its own; "
        "without a path, /v1 is meant. Over http, all addresses of its name are used, and looked "
        "up every second.",
    )
    backend: Literal["llamacpp"] | None = Field(
        None, description="Model server that the proxy starts and supervises itself."
    )
    without_upstream: bool = Field(
        False,
        description="Run without either: healthy, with an empty list of models, and 503 for what "
        "needs one.",
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

    request_timeout_seconds: Seconds = Field(
        600, description="Deadline of a request, from its first byte to the answer's last."
    )
    connect_timeout_seconds: Seconds = Field(
        5, description="Longest wait for a connection to the upstream."
    )
    read_timeout_seconds: Seconds = Field(
        600, description="Longest silence of the upstream while it answers."
    )
    probe_interval_seconds: Delay = Field(
        2,
        description="Time between two looks at the upstream's readiness; 0 takes an --upstream-url "
        "as ready and never looks, so that it may scale to zero.",
    )
    max_upstream_connections: int = Field(
        1000, ge=1, description="Connections to the upstream at most; more requests wait."
    )
    use_env_proxies: bool = Field(
        False, description="Reach the upstream through HTTP_PROXY, HTTPS_PROXY, NO_PROXY."
    )
    max_body_bytes: int = Field(8 * 1024 * 1024, ge=1, description="Largest request body.")

    drain_delay_seconds: Delay = Field(
        5, description="On SIGTERM: time of being not ready while still accepting."
    )
    grace_seconds: Delay = Field(
        30, description="On SIGTERM, after the drain delay: time for running requests to finish."
    )

    log_level: LogLevel = Field("info", description="Least severe level that is logged.")
    log_format: Literal["auto", "pretty", "json"] = Field(
        "auto", description="Form of the log lines on stderr; auto: pretty on a terminal."
    )
    quiet: bool = Field(False, description="Do not print the banner when the server is ready.")

    @field_validator("backend_args", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(shlex.split(value)) if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("upstream_url")
    @classmethod
    def _is_http_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.username or parts.password:
            raise ValueError("must not contain a user or password")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must look like http://HOST:PORT")
        try:
            parts.hostname.encode("idna")
            _ = parts.port
        except ValueError as error:
            raise ValueError(f"must look like http://HOST:PORT ({error})") from error
        if parts.query or parts.fragment:
            raise ValueError("must have neither a query nor a fragment")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _has_one_upstream(self) -> Settings:
        given = (self.upstream_url is not None, self.backend is not None, self.without_upstream)
        if sum(given) != 1:
            raise ValueError(
                "give one of --upstream-url (a server that runs already), --backend (one that "
                "the proxy starts) and --without-upstream (neither, for now)"
            )
        if self.backend is not None and self.model_path is None:
            raise ValueError(f"--backend {self.backend} needs --model-path")
        if self.upstream_url is None and not self.probe_interval_seconds:
            raise ValueError(
                "--probe-interval-seconds 0 is for an --upstream-url: give more without one"
            )
        return self

    @property
    def served_model(self) -> str | None:
        """The name of the backend's model: as given, else the file's; None without one."""
        if self.model_name is not None or self.model_path is None:
            return self.model_name
        # Not `stem`: a directory's name may have a dot (qwen2.5). Not `resolve`: a link's own name
        # tells more than that of the blob it leads to.
        return Path(self.model_path).absolute().name.removesuffix(".gguf")[:256] or "model"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment; no dotenv file, no directory of secrets."""
        return (init_settings, _Environment(settings_cls))


class _Environment(EnvSettingsSource):
    """The environment, less what Kubernetes puts into it for a Service named openai-proxy."""

    def __call__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in super().__call__().items()
            if not (isinstance(value, str) and _SERVICE_LINK.match(value))
        }


_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")


def load(flags: Mapping[str, Any]) -> Settings:
    """Build the settings from flags (see `flags.parse`), the environment and the defaults.

    Raises ConfigError.
    """
    try:
        return Settings(**flags)
    except ValidationError as error:
        raise ConfigError(_explain(error, flags)) from None


def flag_of(name: str) -> str:
    """Return a setting's flag: `--max-body-bytes`."""
    return "--" + ("backend-arg" if name == "backend_args" else name.replace("_", "-"))


def variable_of(name: str) -> str:
    """Return a setting's environment variable: `OPENAI_PROXY_MAX_BODY_BYTES`."""
    return ENV_PREFIX + name.upper()


def _explain(error: ValidationError, flags: Mapping[str, Any]) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    reason = first["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    if not first["loc"]:
        return reason
    name = str(first["loc"][0])
    given = flags.get(name, os.environ.get(variable_of(name), ""))
    shown = "" if name in _MAY_HOLD_SECRETS else f" (it is {str(given)[:80]!r})"
    where = flag_of(name) if name in flags else variable_of(name)
    also = variable_of(name) if name in flags else flag_of(name)
    return f"{where}: {reason}{shown}; the same setting is {also}, see --help"


_MAY_HOLD_SECRETS = frozenset({"upstream_url", "backend_args"})

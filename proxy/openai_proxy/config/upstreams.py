"""Settings of what requests are sent to."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import BaseModel, Field, field_validator

from openai_proxy.config.types import Delay, Seconds


class UpstreamsSettings(BaseModel):
    """Which upstreams there are, and how to reach them."""

    upstream_url: str | None = Field(
        None,
        description="OpenAI server to send requests to, for a proxy without a backend of its own; "
        "without a path, /v1 is meant. Over http, all addresses of its name are used, and looked "
        "up every second.",
    )
    without_upstream: bool = Field(
        False,
        description="Run without either: healthy, with an empty list of models, and 503 for what "
        "needs one.",
    )

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

    @field_validator("upstream_url")
    @classmethod
    def _is_http_url(cls, value: str | None) -> str | None:
        return None if value is None else http_url(value)


def http_url(value: str) -> str:
    """Return an http or https URL without a slash at its end; raises ValueError."""
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

"""Settings of what requests are sent to."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from openai_proxy.config.types import Delay, Seconds
from openai_proxy.routing.client_tls import ClientTLS
from openai_proxy.routing.credentials import CredentialSettings
from openai_proxy.routing.headers import HeaderSettings

DialectName = Literal[
    "openai", "kserve-v1", "kserve-v2", "triton", "shimmy", "ollama", "tgi", "sglang"
]
Unsupported = Literal["refuse", "drop"]
DEFAULT_UPSTREAM = "default"  # the one that flags describe, or the backend
Name = Annotated[str, Field(min_length=1, max_length=256)]


class UpstreamSettings(BaseModel):
    """One upstream: where it is, how it speaks, what it cannot do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="Name by which models name it; it stands in logs and traces.")
    url: str = Field(
        description="Where it is. Without a path, its dialect's usual one is meant (/v1 for "
        "openai). Over http, all addresses of its name are used, and looked up every second."
    )
    dialect: DialectName = Field(default="openai", description="How it speaks.")
    models: tuple[Name, ...] = Field(
        default=(), description="The models that it serves; by default those that it lists."
    )
    unsupported: Unsupported = Field(
        default="refuse",
        description="Parameters that it lacks: refuse the request (400), or drop them.",
    )
    chat_template: str | None = Field(
        default=None,
        max_length=65536,
        description="Jinja template that renders chats where it takes prompts only, or `chatml`.",
    )
    chat_template_file: str | None = Field(default=None, description="File with such a template.")
    bos_token: str = Field(default="", description="What the template's bos_token stands for.")
    eos_token: str = Field(default="", description="What the template's eos_token stands for.")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="The dialect's own: see docs/dialects.md (shimmy: path, ...).",
    )
    headers: HeaderSettings | None = Field(
        default=None, description="Headers to pass, drop and set: docs/security.md."
    )
    credentials: CredentialSettings | None = Field(
        default=None, description="The key or token that it wants to see: docs/security.md."
    )
    tls: ClientTLS | None = Field(
        default=None, description="Its authorities, and our certificate: docs/security.md."
    )

    @field_validator("url")
    @classmethod
    def _is_http_url(cls, value: str) -> str:
        return http_url(value)

    @model_validator(mode="after")
    def _has_one_template(self) -> UpstreamSettings:
        if self.chat_template is not None and self.chat_template_file is not None:
            raise ValueError("give one of chat_template and chat_template_file")
        return self


class UpstreamsSettings(BaseModel):
    """Which upstreams there are, and how to reach them."""

    upstream_url: str | None = Field(
        None,
        description="Server to send requests to, for a proxy without a backend of its own; "
        "without a path, /v1 is meant. Over http, all addresses of its name are used, and looked "
        "up every second.",
    )
    upstream_dialect: DialectName = Field(
        "openai", description="How the --upstream-url speaks: docs/dialects.md."
    )
    upstream_unsupported: Unsupported = Field(
        "refuse",
        description="Parameters that it lacks: refuse the request (400), or drop them.",
    )
    upstream_chat_template: str | None = Field(
        None,
        max_length=65536,
        description="Jinja template that renders chats where it takes prompts only, or chatml.",
    )
    upstream_chat_template_file: str | None = Field(None, description="File with such a template.")
    upstream_options: dict[str, Any] = Field(
        default_factory=dict, description="The dialect's own options: docs/dialects.md."
    )
    upstream_headers: HeaderSettings | None = Field(
        None, description="Headers to pass, drop and set: docs/security.md."
    )
    upstream_credentials: CredentialSettings | None = Field(
        None, description="The key or token that it wants to see: docs/security.md."
    )
    upstream_tls: ClientTLS | None = Field(
        None, description="Its authorities, and our certificate: docs/security.md."
    )
    upstreams: tuple[UpstreamSettings, ...] = Field(
        (), description="Several upstreams, instead of --upstream-url; the first is the default."
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
    keepalive_seconds: Delay = Field(
        15,
        description="A stream whose upstream is silent for so long gets a comment, which keeps "
        "connections open; 0 sends none.",
    )
    max_retries: int = Field(
        2,
        ge=0,
        le=20,
        description="Further attempts for a request whose client has got nothing yet: when a "
        "connection fails, or the upstream says 502 or 503, or 429 with Retry-After.",
    )
    retry_backoff_seconds: Seconds = Field(
        0.2,
        description="Longest wait before the first retry; doubled with each, by chance less.",
    )
    retry_backoff_cap_seconds: Seconds = Field(
        5,
        description="Longest wait before a retry; an upstream that asks for more with Retry-After "
        "is not asked again.",
    )
    probe_interval_seconds: Delay = Field(
        2,
        description="Time between two looks at the upstream's readiness; 0 takes an --upstream-url "
        "as ready and never looks, so that it may scale to zero.",
    )
    max_upstream_connections: int = Field(
        1000, ge=1, description="Connections to each upstream at most; more requests wait."
    )
    use_env_proxies: bool = Field(
        False, description="Reach the upstream through HTTP_PROXY, HTTPS_PROXY, NO_PROXY."
    )

    @field_validator("upstream_url")
    @classmethod
    def _is_http_url(cls, value: str | None) -> str | None:
        return None if value is None else http_url(value)

    @field_validator("upstreams")
    @classmethod
    def _have_names_of_their_own(
        cls, value: tuple[UpstreamSettings, ...]
    ) -> tuple[UpstreamSettings, ...]:
        names = [upstream.name for upstream in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two upstreams are called {name!r}: give them different names")
        return value

    @property
    def first_upstream_url(self) -> str | None:
        """Where the default upstream is, if others run it."""
        return next((upstream.url for upstream in self.all_upstreams), None)

    @property
    def all_upstreams(self) -> tuple[UpstreamSettings, ...]:
        """The upstreams that others run: those listed, or the one that flags describe."""
        if self.upstream_url is None:
            return self.upstreams
        return (
            UpstreamSettings(
                name=DEFAULT_UPSTREAM,
                url=self.upstream_url,
                dialect=self.upstream_dialect,
                unsupported=self.upstream_unsupported,
                chat_template=self.upstream_chat_template,
                chat_template_file=self.upstream_chat_template_file,
                options=self.upstream_options,
                headers=self.upstream_headers,
                credentials=self.upstream_credentials,
                tls=self.upstream_tls,
            ),
        )


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

"""All settings of the proxy: one frozen object, made of groups.

Every setting is a key of the configuration file (`max_body_bytes`) and a variable
(`OPENAI_PROXY_MAX_BODY_BYTES`), and a flag (`--max-body-bytes`) unless it is a structure. `loading`
makes the object from all of these. Each group of settings has a module of its own.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, model_validator

from http_edge.bounds import Bounds, max_connections
from http_edge.bytes_in_flight import default_capacity, least_capacity
from openai_proxy.config.api import ApiSettings
from openai_proxy.config.backend import BackendSettings
from openai_proxy.config.edge import EdgeSettings
from openai_proxy.config.files import FilesSettings
from openai_proxy.config.limits import LimitsSettings
from openai_proxy.config.logging import LoggingSettings
from openai_proxy.config.models import ModelsSettings
from openai_proxy.config.server import ServerSettings
from openai_proxy.config.tracing import TracingSettings
from openai_proxy.config.upstreams import DEFAULT_UPSTREAM, UpstreamSettings, UpstreamsSettings
from openai_proxy.routing.headers import HeaderSettings

_BYTES_SHARE = 0.5


class Settings(
    # the last comes first in --help and in the documentation
    FilesSettings,
    TracingSettings,
    LoggingSettings,
    ApiSettings,
    BackendSettings,
    ModelsSettings,
    UpstreamsSettings,
    EdgeSettings,
    LimitsSettings,
    ServerSettings,
    BaseModel,
):
    """All settings of the proxy; frozen. Build it with `load`.

    Secrets are of type SecretStr, or stand in files that settings name; what is not shown either
    has `repr=False`. `upstream_url` refuses credentials.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="after")
    def _has_one_upstream(self) -> Settings:
        given = (
            self.upstream_url is not None,
            bool(self.upstreams),
            self.backend is not None,
            self.without_upstream,
        )
        if sum(given) != 1:
            raise ValueError(
                "give one of --upstream-url (a server that runs already; `upstreams` in the file "
                "for several), --backend (one that the proxy starts) and --without-upstream "
                "(neither, for now)"
            )
        if not self.all_upstreams and not self.probe_interval_seconds:
            raise ValueError(
                "--probe-interval-seconds 0 is for an --upstream-url: give more without one"
            )
        if len(self.upstreams) > 1 and not self.probe_interval_seconds:
            silent = [upstream.name for upstream in self.upstreams if not upstream.models]
            if silent:
                raise ValueError(
                    "--probe-interval-seconds 0 asks no upstream what it has: give each its "
                    f"`models`, which {silent[0]!r} lacks"
                )
        names = {upstream.name for upstream in self.all_upstreams} or {DEFAULT_UPSTREAM}
        for name, model in self.models.items():
            if model.upstream is not None and model.upstream not in names:
                raise ValueError(
                    f"models.{name}.upstream is {model.upstream!r}, but there is none of that "
                    f"name: take one of {', '.join(sorted(names))}"
                )
        return self

    @model_validator(mode="after")
    def _has_room_for_a_body(self) -> Settings:
        least = least_capacity(self.max_body_bytes)
        if 0 < self.max_bytes_in_flight < least:
            raise ValueError(
                f"--max-bytes-in-flight is {self.max_bytes_in_flight}, but the largest body "
                f"(--max-body-bytes {self.max_body_bytes}) needs {least}: raise the one, lower the "
                "other, or leave it out"
            )
        return self

    def bounds(self, available: int | None) -> Bounds:
        """Return what connections may take, where so many bytes were available at the start."""
        return Bounds(
            head_seconds=self.head_timeout_seconds,
            body_seconds=self.body_timeout_seconds,
            write_seconds=self.write_timeout_seconds,
            idle_seconds=self.idle_timeout_seconds,
            min_bytes_per_second=self.min_bytes_per_second,
            max_connections=self.max_connections
            or max_connections(available, is_secure=self.tls is not None),
        )

    def byte_capacity(self, available: int | None) -> int:
        """Return how many bytes may be in flight, where so many were available at the start."""
        return self.max_bytes_in_flight or default_capacity(
            self.max_body_bytes, _BYTES_SHARE, available
        )

    def backend_upstream(self, url: str) -> UpstreamSettings:
        """Return the backend as an upstream: a command speaks as its settings say."""
        if self.backend == "llamacpp":
            headers = HeaderSettings(tenant_from_key=True)
            return UpstreamSettings(name=DEFAULT_UPSTREAM, url=url, headers=headers)
        if self.backend not in ("command", "shimmy"):
            return UpstreamSettings(name=DEFAULT_UPSTREAM, url=url)
        return UpstreamSettings(
            name=DEFAULT_UPSTREAM,
            url=url,
            dialect="shimmy" if self.backend == "shimmy" else self.upstream_dialect,
            unsupported=self.upstream_unsupported,
            chat_template=self.upstream_chat_template,
            chat_template_file=self.upstream_chat_template_file,
            options=self.upstream_options,
        )

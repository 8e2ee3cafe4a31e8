"""Settings of OpenTelemetry traces."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from pydantic import BaseModel, Field, field_validator, model_validator

from openai_proxy.config.logging import Share
from openai_proxy.config.upstreams import http_url

# OpenTelemetry's own variables; those of headers, timeouts, certificates, the service's name and
# the sampler are read by its packages themselves.
_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
_DISABLED = "OTEL_SDK_DISABLED"
_PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


class TracingSettings(BaseModel):
    """Where traces are sent, and how many; nothing of it is imported without an endpoint."""

    otlp_endpoint: str | None = Field(
        None,
        description="Collector that gets traces, by OTLP over HTTP: http://HOST:4318. Also taken "
        f"from {_ENDPOINT}.",
    )
    trace_sample: Share = Field(
        1, description="Share of the requests that are traced, where their caller has not decided."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_the_standard_variable(cls, values: Any) -> Any:
        given = os.environ.get(_ENDPOINT)
        if not isinstance(values, dict) or not given or values.get("otlp_endpoint"):
            return values
        if os.environ.get(_DISABLED, "").strip().lower() == "true":
            return values
        if os.environ.get(_PROTOCOL) not in {None, "", "http/protobuf"}:
            raise ValueError(
                f"traces are sent by http/protobuf only: set {_PROTOCOL} so, and {_ENDPOINT} to "
                f"the collector's HTTP port, or set {_DISABLED}=true"
            )
        try:
            return {**values, "otlp_endpoint": _usable(given)}
        except ValueError as error:
            raise ValueError(f"the variable {_ENDPOINT}: {error}") from None

    @field_validator("otlp_endpoint")
    @classmethod
    def _can_be_used(cls, value: str | None) -> str | None:
        return None if value is None else _usable(value)


def _usable(endpoint: str) -> str:
    """Return the URL without a slash at its end; raises ValueError where traces cannot be sent."""
    url = http_url(endpoint)
    if not all(_is_there(name) for name in _PACKAGES):
        raise ValueError(
            "traces need packages that are not installed: "
            "pip install 'kserve-llamacpp-proxy[tracing]'"
        )
    return url


def _is_there(module: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False

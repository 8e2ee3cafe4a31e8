"""Settings of the server itself: where it listens, how large a request may be, how it ends."""

from __future__ import annotations

from pydantic import BaseModel, Field

from openai_proxy.config.types import Delay, Port


class ServerSettings(BaseModel):
    """Where the proxy listens, what it accepts, how it ends."""

    # A container is reached from outside only so; `make serve` and tests give a narrower one.
    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104
    port: Port = Field(8000, description="Port to listen on; 0 takes a free one.")

    max_body_bytes: int = Field(8 * 1024 * 1024, ge=1, description="Largest request body.")

    drain_delay_seconds: Delay = Field(
        5, description="On SIGTERM: time of being not ready while still accepting."
    )
    grace_seconds: Delay = Field(
        30, description="On SIGTERM, after the drain delay: time for running requests to finish."
    )
    quiet: bool = Field(False, description="Do not print the banner when the server is ready.")

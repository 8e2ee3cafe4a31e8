"""Settings of what is logged, and how."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

from openai_proxy.config.types import LogLevel


class LoggingSettings(BaseModel):
    """What is logged, where, and in which form."""

    log_level: LogLevel = Field("info", description="Least severe level that is logged.")
    log_format: Literal["auto", "pretty", "json"] = Field(
        "auto", description="Form of the log lines on stderr; auto: pretty on a terminal."
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

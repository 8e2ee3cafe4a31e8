"""Settings of what is logged, where, and in which form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator

from openai_proxy.config.types import Delay, LogLevel

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# What other programs call their levels; ours has four of them
_LEVELS = {"trace": "debug", "warn": "warning", "critical": "error", "fatal": "error"}


class LoggingSettings(BaseModel):
    """What is logged, where, and in which form."""

    log_level: LogLevel = Field("info", description="Least severe level that is logged.")
    log_format: Literal["auto", "pretty", "json", "columns"] = Field(
        "auto", description="Form of the log lines on stderr; auto: pretty on a terminal."
    )
    log_file: Path | None = Field(
        None, description="File that gets the log lines, too; opened anew when it was moved away."
    )
    log_file_format: Literal["pretty", "json", "columns"] = Field(
        "json", description="Form of the log lines in the file."
    )
    log_file_max_bytes: int = Field(
        100 * 1024 * 1024,
        ge=0,
        description="Size at which the file becomes FILE.1, and a new one is begun; 0: never.",
    )
    log_file_rotate_seconds: Delay = Field(
        0,
        description="The same by time: 86400 begins a new file each day at midnight UTC; 0: never.",
    )
    log_file_backups: int = Field(
        5, ge=0, le=1000, description="Files FILE.1, FILE.2, ... that are kept; 0: none."
    )
    access_log: Literal["all", "errors", "off"] = Field(
        "all", description="Requests that get a log line."
    )
    access_log_sample: Share = Field(
        1, description="Share of the good requests that get one; all others always do."
    )

    def logs_as(self, other: LoggingSettings) -> bool:
        """Tell whether lines go to the same places, in the same form, from the same level on."""
        names = [name for name in LoggingSettings.model_fields if name.startswith("log_")]
        return all(getattr(self, name) == getattr(other, name) for name in names)

    @field_validator("log_level", "log_format", "log_file_format", "access_log", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _known_level(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return _LEVELS.get(value.lower(), value.lower())

"""Kinds of values that settings have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]
Delay = Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)]
LogLevel = Literal["debug", "info", "warning", "error"]


class NoDecode:
    """Marks a list whose group of settings takes it apart itself, where it is given as text."""

"""Settings of models: which are served, under which names, with which parameters."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from openai_proxy.config.types import Delay
from openai_proxy.config.upstreams import Name

_INT32 = 2**31


class ModelSettings(BaseModel):
    """One model: who serves it, its other names, its parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upstream: Name | None = Field(
        None, description="Name of the upstream that serves it; by default the one that lists it."
    )
    upstream_model: Name | None = Field(
        None, description="What the upstream calls it; by default the same."
    )
    aliases: tuple[Name, ...] = Field((), description="Other names that clients may use.")
    defaults: dict[str, Any] = Field(
        default_factory=dict, description="Parameters for requests that do not give them."
    )
    max_tokens: int | None = Field(
        None,
        ge=1,
        lt=_INT32,
        description="Most tokens that a request may ask for; more is refused, and what asks for "
        "no number gets this one.",
    )

    @field_validator("defaults")
    @classmethod
    def _are_parameters(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in _NO_DEFAULTS:
                raise ValueError(f"{name} cannot have a default: it is each request's own")
        for name in ("max_tokens", "max_completion_tokens"):
            number = value.get(name)
            if name in value and (type(number) is not int or not 1 <= number < _INT32):
                raise ValueError(f"{name} must be a whole number, at least 1")
        return value


_NO_DEFAULTS = frozenset({"model", "messages", "prompt", "stream", "resume"})


class ModelsSettings(BaseModel):
    """Which models clients may use, by which names, with which parameters."""

    models: dict[Name, ModelSettings] = Field(
        default_factory=dict,
        description="Models by the names that clients use: upstream, upstream_model, aliases, "
        "defaults, max_tokens.",
    )
    default_model: Name | None = Field(
        None, description="Model of requests that name none; by default the upstream decides."
    )
    allowed_models: tuple[Name, ...] = Field(
        (), description="The only models that clients may use, separated by commas."
    )
    default_temperature: float | None = Field(
        None, ge=0, le=2, description="Temperature of requests that give none."
    )
    default_max_tokens: int | None = Field(
        None, ge=1, lt=_INT32, description="Tokens for requests that ask for no number of them."
    )
    max_tokens_limit: int | None = Field(
        None,
        ge=1,
        lt=_INT32,
        description="Most tokens that a request may ask for, with any model; more is refused.",
    )
    models_cache_seconds: Delay = Field(
        2, description="For how long the upstreams' lists of models are kept."
    )

    @model_validator(mode="after")
    def _names_are_clear(self) -> ModelsSettings:
        seen: dict[str, str] = dict.fromkeys(self.models, "a model")
        for name, model in self.models.items():
            for alias in model.aliases:
                if alias in seen:
                    raise ValueError(
                        f"models.{name}.aliases: {alias!r} is the name of {seen[alias]}, too: "
                        "leave it out in one place"
                    )
                seen[alias] = f"models.{name}"
        return self

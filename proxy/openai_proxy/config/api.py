"""Settings of the forms in which clients are answered: errors, health, names of metrics."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class ApiSettings(BaseModel):
    """Which form errors, health and metrics have."""

    errors: Literal["openai", "seed", "flat"] = Field(
        "openai",
        description="Form of errors: OpenAI's envelope, that with the Inference Service's codes "
        'and statuses (seed), or its {"error": text, "code": CODE} (flat).',
    )
    health: Literal[
        "plain",
        "superset",
        "seminstruct",
        "inference-service",
        "shimmy",
        "deterministic",
        "semantic-explorer",
    ] = Field(
        "plain",
        description="Form of GET /health: plain has the fields of all forms, but no address of an "
        "upstream; superset has that, too; the others are those of the replaced systems. A name "
        "that a setting has in one of these systems brings its form by default.",
    )
    provider: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="What GET /health calls the upstream; by default the dialect that it speaks.",
    )
    metrics_namespace: str = Field(
        "openai_proxy",
        pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$",
        max_length=64,
        description="What the names of the metrics begin with; with seminstruct there is also "
        "seminstruct_shimmy_errors_total.",
    )

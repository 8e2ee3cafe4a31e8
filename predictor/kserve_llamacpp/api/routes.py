"""The application's own routes: OpenAI's, and readiness."""

from __future__ import annotations

from fastapi import FastAPI

from kserve_llamacpp.api.openai import Models, routers
from kserve_llamacpp.served_model import ServedModel
from openai_protocol.errors import Unavailable


def add_routes(app: FastAPI, models: Models, served: ServedModel) -> None:
    """Register our routes before KServe's, so that ours win where both have a path."""
    for router in routers(models):
        app.include_router(router)

    @app.get("/v2/health/ready")
    async def ready() -> dict[str, bool]:
        models.check_accepting()
        if not served.is_ready:
            raise Unavailable("The model is not ready.", retry_after_seconds=1.0)
        return {"ready": True}

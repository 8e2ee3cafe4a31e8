"""V2's routes that tell of the server and its models; none of them changes anything.

V2's infer, versions and repository are not served.
Source: https://github.com/kserve/open-inference-protocol
"""

from __future__ import annotations

from typing import Any

from kserve_llamacpp import __version__
from kserve_llamacpp.api.models import Models

SERVER_NAME = "kserve-llamacpp"


class V2Routes:
    """The endpoints; owner: the application."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def metadata(self) -> dict[str, Any]:
        """Answer the server's name, version and extensions: it has none."""
        return {"name": SERVER_NAME, "version": __version__, "extensions": []}

    async def live(self) -> dict[str, bool]:
        """Answer that the server runs; 503 where only a new process can help."""
        self._models.check_alive()
        return {"live": True}

    async def alive(self) -> dict[str, str]:
        """Answer as `live`, in V1's form."""
        self._models.check_alive()
        return {"status": "alive"}

    async def ready(self) -> dict[str, bool]:
        """Answer that every model can answer; 503 otherwise, and while the server drains."""
        self._models.check_ready()
        return {"ready": True}

    async def list_models(self) -> dict[str, list[str]]:
        """Answer the names of all models, ready or not."""
        return {"models": self._models.names()}

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """Answer a model's metadata: it has no tensors, for it is not asked through V2."""
        self._models.get(model_name)
        return {"name": model_name, "platform": "", "inputs": [], "outputs": []}

    async def model_ready(self, model_name: str) -> dict[str, Any]:
        """Answer that a model can answer; 503 otherwise, and while the server drains."""
        self._models.ready(model_name)
        return {"name": model_name, "ready": True}

"""What one configuration makes, and what a reload makes of it anew."""

from __future__ import annotations

from typing import Any

import pytest

from openai_proxy import app
from openai_proxy.assembly import Assembly
from openai_proxy.config import load
from openai_proxy.lifecycle import Lifecycle
from openai_proxy.metrics import Metrics
from openai_proxy.running import Running
from openai_proxy.server import listen
from openai_proxy.service import Service
from openai_proxy.state import ServerState


async def test_a_backend_becomes_an_upstream_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a backend is ready already, it is built once, however often its address is told."""
    made: list[str] = []
    build: Any = Assembly.backend

    def counted(self: Assembly, base_url: str) -> Any:
        made.append(base_url)
        return build(self, base_url)

    monkeypatch.setattr(Assembly, "backend", counted)
    metrics = Metrics(lambda _: False)
    service = Service(
        load({"backend": "llamacpp", "model_path": "m.gguf"}),
        app.build_paths(ServerState(), metrics),
        Running(),
        metrics,
        lambda *_: None,
    )
    await service.build("http://127.0.0.1:1")
    service.use_backend("http://127.0.0.1:1")
    assert made == ["http://127.0.0.1:1"]
    service.use_backend(None)
    service.use_backend("http://127.0.0.1:1")  # it was started again
    service.use_backend("http://127.0.0.1:2")
    assert made == ["http://127.0.0.1:1", "http://127.0.0.1:1", "http://127.0.0.1:2"]
    await service.close()


async def test_requests_of_a_retired_configuration_hear_of_the_backend() -> None:
    """What began before a reload may wait for the backend's restart: its routes are told, too."""
    with listen("127.0.0.1", 0) as listener:
        lifecycle = Lifecycle(load({"backend": "llamacpp", "model_path": "m.gguf"}), listener)
        metrics = Metrics(lambda _: False)
        retired = Service(
            lifecycle._settings,
            app.build_paths(ServerState(), metrics),
            Running(),
            metrics,
            lambda *_: None,
        )
        await retired.build("http://127.0.0.1:1")
        lifecycle._retiring.add(retired)
        assert retired._router is not None
        before = retired._router.upstreams["default"]

        lifecycle._on_backend(None)
        assert retired._router.upstreams["default"] is None
        lifecycle._on_backend("http://127.0.0.1:2")

        assert retired._router.upstreams["default"] not in (None, before)
        await retired.close()

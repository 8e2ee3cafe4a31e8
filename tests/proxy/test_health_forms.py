"""`/health` and `/` as the systems had them that this replaces, and their metrics' names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from openai_proxy.config import ConfigError, load
from openai_proxy.health_forms import FORMS, Report
from tests.proxy import harness
from tests.proxy.harness import StandIn, answered, refused_port, until

BACKEND = {"status": "ready", "healthy": True, "url": "http://127.0.0.1:30000", "models": ["a"]}
HTTP = {"timeout_secs": 30, "connect_timeout_secs": 30, "max_retries": 3}
READY = Report(True, False, BACKEND, "lmstudio", HTTP)
DOWN = Report(False, False, BACKEND | {"status": "not_ready", "healthy": False}, "x", HTTP)
DRAINING = Report(False, True, BACKEND, "x", HTTP)

# As the documents have them, word by word.
DOCUMENTED: dict[str, dict[str, Any]] = {
    "inference-service": {
        "status": "healthy",
        "provider": "lmstudio",
        "http_config": {"timeout_secs": 30, "connect_timeout_secs": 30, "max_retries": 3},
    },
    "seminstruct": {
        "status": "healthy",
        "shimmy_url": "http://127.0.0.1:30000",
        "shimmy_healthy": True,
    },
    "shimmy": {"status": "healthy", "shimmy_status": "healthy"},
    "deterministic": {
        "status": "healthy",
        "backend": {"status": "ready", "healthy": True, "url": "http://127.0.0.1:30000"},
    },
    "semantic-explorer": {"status": "ok", "llm_models_loaded": True},
}


@pytest.mark.parametrize(("form", "body"), DOCUMENTED.items())
def test_documented_form(form: str, body: dict[str, Any]) -> None:
    """Each system's form is the one in its document."""
    assert FORMS[form](READY) == body


def test_plain() -> None:
    """The default is the superset without the addresses of the upstream."""
    whole = FORMS["superset"](READY)
    plain = FORMS["plain"](READY)
    assert "127.0.0.1" not in json.dumps(plain)
    assert whole.keys() - plain.keys() == {"shimmy_url"}
    assert whole["backend"].keys() - plain["backend"].keys() == {"url"}
    assert plain["backend"]["models"] == ["a"]
    assert plain["shimmy_healthy"] is True


async def test_the_default_names_no_address(upstream: StandIn) -> None:
    """Nobody learns from /health where the upstream is, well or not; by name it is told."""
    for url in (upstream.url, f"http://127.0.0.1:{refused_port()}"):
        async with harness.proxy(upstream_url=url) as proxy:
            _, body = await proxy.get("/health")
        assert url.rpartition(":")[2] not in json.dumps(body)
        assert body["backend"]["status"] in ("ready", "not_ready")
    async with harness.proxy(upstream_url=url, health="superset") as proxy:
        _, body = await proxy.get("/health")
    assert body["backend"]["url"] == body["shimmy_url"] == url


def test_superset() -> None:
    """The superset has all fields of all forms; of the status only, one form has another word."""
    body = FORMS["superset"](READY)
    for form, documented in DOCUMENTED.items():
        for name, value in documented.items():
            if name == "backend":
                assert value.items() <= body["backend"].items()
            elif (form, name) != ("semantic-explorer", "status"):
                assert body[name] == value
    assert body["backend"]["models"] == ["a"]


@pytest.mark.parametrize("form", FORMS)
def test_not_well(form: str) -> None:
    """No form says that all is well when it is not, nor when the server is about to end."""
    good = FORMS[form](READY)
    assert FORMS[form](DOWN)["status"] != good["status"]
    assert FORMS[form](DRAINING)["status"] == "draining"


def test_words_for_not_well() -> None:
    """The systems' own words are kept: SemInstruct without its upstream is degraded."""
    assert FORMS["seminstruct"](DOWN)["status"] == "degraded"
    assert FORMS["seminstruct"](DOWN)["shimmy_healthy"] is False
    assert FORMS["shimmy"](DOWN) == {"status": "unhealthy", "shimmy_status": "unhealthy"}
    assert FORMS["semantic-explorer"](DOWN) == {"status": "not_ready", "llm_models_loaded": False}


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_the_form_is_a_setting(upstream: StandIn, prefix: str) -> None:
    """`health`, `provider` and the times are shown as they are set."""
    settings: dict[str, Any] = {
        "health": "inference-service",
        "provider": "lmstudio",
        "request_timeout_seconds": 30,
        "connect_timeout_seconds": 2.5,
    }
    async with harness.proxy(upstream_url=upstream.url, **settings) as proxy:
        status, body = await proxy.get(f"{prefix}/health")
    assert (status, set(body)) == (200, {"status", "provider", "http_config"})
    assert body["provider"] == "lmstudio"
    assert body["http_config"]["timeout_secs"] == 30
    assert body["http_config"]["connect_timeout_secs"] == 2.5


@pytest.mark.parametrize("form", FORMS)
async def test_without_its_upstream(form: str) -> None:
    """In every form an upstream that is not there makes it 503."""
    url = f"http://127.0.0.1:{refused_port()}"
    async with harness.proxy(upstream_url=url, health=form) as proxy:
        assert (await proxy.get("/health"))[0] == 503
        assert await proxy.get("/health/ready") == (
            503,
            {"status": "not_ready", "llm_models_loaded": False},
        )
        assert await proxy.get("/health/live") == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/", "/v1/"])
async def test_root(path: str) -> None:
    """The root says Ok, whatever the upstream does."""
    url = f"http://127.0.0.1:{refused_port()}"
    async with harness.proxy(upstream_url=url) as proxy:
        assert await proxy.get(path) == (200, {"message": "Ok"})


async def test_seminstructs_metrics(upstream: StandIn) -> None:
    """With its namespace, SemInstruct's four metrics have their names, and count."""
    async with harness.proxy(upstream_url=upstream.url, metrics_namespace="seminstruct") as proxy:
        await proxy.chat()
        await proxy.chat(messages=[])
        upstream.respond = answered(500, "", "text/plain")
        await proxy.chat()
        await until(lambda: len(proxy.lifecycle._running) == 0)
        async with proxy.http.get(f"{proxy.url}/metrics") as response:
            lines = (await response.text()).splitlines()
    path = 'path="/v1/chat/completions"'
    assert f'seminstruct_requests_total{{model="tiny",{path},status="200"}} 1.0' in lines
    assert f"seminstruct_request_duration_seconds_count{{{path}}} 3.0" in lines
    assert 'seminstruct_errors_total{code="empty_messages"} 1.0' in lines
    assert 'seminstruct_errors_total{code="upstream_error"} 1.0' in lines
    assert 'seminstruct_shimmy_errors_total{code="upstream_error"} 1.0' in lines
    assert not [line for line in lines if "openai_proxy" in line]


async def test_codes_of_upstreams_are_no_labels(upstream: StandIn) -> None:
    """An upstream's own codes, of which there may be any number, are counted as others."""
    body = '{"error": {"message": "m", "type": "t", "code": "anything"}}'
    upstream.respond = answered(418, body, "application/json")
    async with harness.proxy(upstream_url=upstream.url) as proxy:
        await proxy.chat()
        async with proxy.http.get(f"{proxy.url}/metrics") as response:
            text = await response.text()
    assert 'openai_proxy_errors_total{code="other"} 1.0' in text
    assert "shimmy" not in text


@pytest.mark.parametrize("namespace", ["9x", "a-b", "a b", ""])
def test_bad_namespace(namespace: str) -> None:
    """A namespace that Prometheus would not take stops the start."""
    with pytest.raises(ConfigError, match="--metrics-namespace"):
        load({"without_upstream": True, "metrics_namespace": namespace})

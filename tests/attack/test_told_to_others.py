"""What one client says or asks is not told to another, and a head has one meaning."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attack import servers, texts
from tests.attack.canary import normal
from tests.attack.servers import Target
from tests.attack.standin import StandIn, standin
from tests.attack.wire import Answer, Connection

pytestmark = pytest.mark.model


def _body(prompt: str = "One", **more: Any) -> dict[str, Any]:
    return {"model": "smollm2", "prompt": prompt, "max_tokens": 1, **more}


# -- the cache ------------------------------------------------------------------------------------


def _cached(target: Target, prompt: str, *headers: tuple[str, str], **more: Any) -> int:
    answer = target.post("/v1/completions", _body(prompt, **more), headers=headers)
    assert answer.status == 200, answer.body
    return int(answer.json["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_cached_tokens_tell_nothing_of_another_tenant(target: Target) -> None:
    """A prompt that another tenant has sent is no hit, and costs as much as any other."""
    prompt = f"{target.name}: {texts.words(250, seed=4)}"
    one, other = ("X-Tenant", "one"), ("X-Tenant", "other")
    assert _cached(target, prompt, one) == 0
    assert _cached(target, prompt, one) > 0
    assert _cached(target, prompt, other) == 0
    assert _cached(target, prompt) == 0


def test_keys_are_tenants_too(target: Target) -> None:
    """Requests with different keys share no prefixes; another `user` alone is no other tenant."""
    prompt = f"{target.name} keys: {texts.words(250, seed=5)}"
    one, other = ("Authorization", "Bearer one"), ("Authorization", "Bearer other")
    assert _cached(target, prompt, one) == 0
    assert _cached(target, prompt, other) == 0
    assert _cached(target, prompt, one, user="somebody") > 0


@pytest.mark.attack
def test_guesses_behind_a_known_prefix_find_nothing(shared_predictor: Target) -> None:
    """A guess at what another has sent behind a known prefix has the same count, right or wrong."""
    known = f"card: {texts.words(250, seed=6)} my card number is "
    _cached(shared_predictor, known + "4929 1187", ("X-Tenant", "victim"))
    counts = {
        _cached(shared_predictor, known + guess, ("X-Tenant", f"thief-{at}"))
        for at, guess in enumerate(("4929 1187", "1111 2222"))
    }
    assert counts == {0}


# -- heads ----------------------------------------------------------------------------------------


def _raw(target: Target, data: str) -> Answer:
    with Connection(target.url, 20) as connection:
        connection.send(data.replace("HOST", connection.host).encode())
        return connection.read()


TWICE = ("X-Tenant", "Authorization", "X-Request-Id", "Content-Type", "X-Api-Key")


@pytest.mark.parametrize("name", TWICE)
def test_header_that_is_acted_on_comes_once(target: Target, name: str) -> None:
    """A header that decides something and comes twice, with two values, is refused."""
    values = {"Content-Type": ("application/json", "text/plain")}.get(name, ("one", "two"))
    headers = [(name, value) for value in values]
    asks = [("/v1/completions", _body())]
    if target.name == "predictor":
        asks.append(
            ("/v1/models/smollm2:predict", {"instances": ["a"], "parameters": {"max_tokens": 1}})
        )
    for path, body in asks:
        answer = target.post(path, body, headers=headers)
        assert answer.status == 400, (path, answer.status, answer.body[:200])


@pytest.mark.parametrize("hosts", ["", "Host: HOST\r\nHost: HOST\r\n", "Host: HOST\r\nHost: a\r\n"])
def test_host_comes_once(target: Target, hosts: str) -> None:
    """A request without Host, or with two, gets 400."""
    answer = _raw(target, f"GET /v1/models HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n")
    assert answer.status == 400


@pytest.mark.parametrize("host", ["rebound.example", "rebound.example:8000", "169.254.169.254"])
def test_foreign_host_is_refused_on_loopback(target: Target, host: str) -> None:
    """Bound to loopback, a server answers no page that reached it by another name."""
    for path in ("/v1/models", "/metrics"):
        data = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        answer = _raw(target, data)
        assert 400 <= answer.status < 500, (path, answer.status)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
def test_loopback_has_its_own_names(target: Target, name: str) -> None:
    """The names of loopback are taken, whatever their port."""
    data = f"GET /v1/models HTTP/1.1\r\nHost: {name}:1\r\nConnection: close\r\n\r\n"
    assert _raw(target, data).status == 200


@pytest.mark.parametrize("coding", ["gzip, chunked", "gzip", "identity, chunked", "chunked, gzip"])
def test_transfer_codings_but_chunked_are_refused(target: Target, coding: str) -> None:
    """A body in another transfer coding than chunked is refused: 501, or 400 with an odd order."""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: {coding}\r\n"
    answer = _raw(target, f"{head}Connection: close\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n")
    assert answer.status in ({501} if coding == "gzip, chunked" else {501, 400})


@pytest.mark.parametrize("value", ["abc", "-1", "1e3", "99999999999999999999", ""])
def test_length_of_an_inference_header_is_a_number(target: Target, value: str) -> None:
    """`inference-header-content-length` that is no number is the client's error."""
    headers = [("Inference-Header-Content-Length", value)]
    asks = [("/v1/completions", _body())]
    if target.name == "predictor":
        asks = [
            ("/v2/models/smollm2/infer", {"inputs": []}),
            ("/v1/models/smollm2:predict", {"instances": ["a"], "parameters": {"max_tokens": 1}}),
        ]
    for path, body in asks:
        answer = target.post(path, body, headers=headers)
        assert answer.status < 500, (path, answer.status, answer.body[:200])
        if path.endswith("infer"):
            assert answer.status in {400, 404}


# -- paths ----------------------------------------------------------------------------------------

ENCODED = ("/v1%2Fmodels", "/v1/chat%2fcompletions", "/v2%2Fhealth%2Fready", "/health%2Flive")


@pytest.mark.parametrize("path", ENCODED)
def test_encoded_slash_separates_nothing(target: Target, path: str) -> None:
    """An encoded slash is no slash: what is no path stays none."""
    method = "POST" if "chat" in path else "GET"
    answer = target.ask(method, path, {} if method == "POST" else None)
    assert answer.status in {400, 404}


def test_encoded_slash_in_a_name_is_data(target: Target) -> None:
    """A model's name may have an encoded slash; the answer speaks of that model."""
    answer = target.ask("GET", "/v1/models/org%2Fmodel")
    assert (answer.status, answer.code) == (404, "model_not_found")
    assert b"org/model" in answer.body


# -- what an upstream sees, and who asks -----------------------------------------------------------


@pytest.fixture
def upstream() -> Iterator[StandIn]:
    with standin() as server:
        yield server


SECRETS = (
    *("authorization", "x-api-key", "api-key", "cookie", "x-goog-api-key", "x-auth-token"),
    *("ocp-apim-subscription-key", "proxy-authorization", "x-amz-security-token", "x-csrf-token"),
    *("x-forwarded-access-token", "x-anything-else"),
)
PASSED = ("traceparent", "x-tenant", "user-agent", "openai-organization", "x-stainless-lang")
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_upstream_sees_only_listed_headers(upstream: StandIn) -> None:
    """No credential of a client reaches an upstream, under whatever name it comes."""
    headers = [(name, "secret") for name in SECRETS]
    headers += [(name, TRACE if name == "traceparent" else "told") for name in PASSED]
    with servers.proxy(f"--upstream-url={upstream.url}", max_bytes=None) as target:
        assert target.post("/v1/completions", _body(), headers=headers).status == 200
    (head,) = upstream.heads
    names = {name.lower() for name, _ in head}
    assert not names & set(SECRETS)
    assert set(PASSED) <= names
    assert "secret" not in {value for _, value in head}


@pytest.mark.attack
def test_health_tells_no_url(upstream: StandIn) -> None:
    """GET /health tells anyone how the server is, not where its upstream is."""
    port = upstream.url.rsplit(":", 1)[1].encode()
    with servers.proxy(f"--upstream-url={upstream.url}", max_bytes=None) as target:
        for path in ("/health", "/v1/health", "/health/ready", "/v1/models", "/metrics"):
            answer = target.ask("GET", path)
            assert answer.status == 200
            assert port not in answer.body, (path, answer.body[:400])
    with servers.proxy(
        f"--upstream-url={upstream.url}", "--health=seminstruct", max_bytes=None
    ) as target:
        assert port in target.ask("GET", "/health").body


@pytest.mark.attack
def test_predictor_outside_of_loopback_warns(tiny_model: Path) -> None:
    """A predictor that anybody may reach says so at its start, in one line; on loopback none."""
    for host, is_warned in (("0.0.0.0", True), ("127.0.0.1", False)):  # noqa: S104
        flags = (f"--http_host={host}", "--n_threads=1")
        with servers.predictor(tiny_model, *flags, max_bytes=None) as target:
            warnings = [line for line in target.server.events if line.get("level") == "warning"]
            assert len(warnings) == is_warned, warnings


@pytest.mark.attack
def test_proxy_outside_of_loopback_warns(upstream: StandIn) -> None:
    """A proxy that anybody may reach says so at its start, in one line; on loopback none."""
    for host, is_warned in (("0.0.0.0", True), ("127.0.0.1", False)):  # noqa: S104
        flags = (f"--upstream-url={upstream.url}", f"--host={host}")
        with servers.proxy(*flags, max_bytes=None) as target:
            warnings = [line for line in target.server.events if line.get("level") == "warning"]
            assert len(warnings) == is_warned, warnings


@pytest.mark.attack
@pytest.mark.parametrize("kind", ["/dev/full", "a reader that left"])
def test_lost_output_ends_no_proxy(upstream: StandIn, kind: str) -> None:
    """A proxy whose stdout and stderr are full, or read by nobody any more, serves on."""
    port = servers.free_port()
    command = [
        *(sys.executable, "-m", "openai_proxy", "--host=127.0.0.1", f"--port={port}"),
        f"--upstream-url={upstream.url}",
    ]
    if kind == "/dev/full":
        out = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, out = os.pipe()
        os.close(reading)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    os.close(out)
    try:
        url = f"http://127.0.0.1:{port}"
        servers.wait_until(lambda: normal(url).status == 200, 20)
        time.sleep(1)
        assert [normal(url).status for _ in range(50)] == [200] * 50
        assert process.poll() is None
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()

"""Tokens by OAuth2 client credentials: fetched once, renewed, refused, from a real server."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from structlog.testing import capture_logs

from openai_protocol.errors import BadGateway
from openai_proxy.routing.client_tls import ClientTLS
from openai_proxy.routing.credentials import Credentials, CredentialSettings
from openai_proxy.routing.oauth2 import OAuth2Settings, client_of
from openai_proxy.routing.token_client import form_poster
from openai_proxy.server import listen
from openai_proxy.tls import ServerTLS
from tests.proxy.certificates import Authority
from tests.proxy.harness import refused_port, until
from tests.proxy.token_server import (
    CLIENT_ID,
    SECRET,
    Clock,
    TokenServer,
    service_key,
    token_server,
)


@pytest.fixture
async def server() -> AsyncIterator[TokenServer]:
    async with token_server() as standin:
        yield standin


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as opened:
        yield opened


def credentials(
    session: ClientSession, clock: Callable[[], float] | None = None, **oauth2: Any
) -> Credentials:
    settings = CredentialSettings.model_validate({"oauth2": oauth2, "resource_group": "default"})
    assert settings.oauth2 is not None
    poster = form_poster(session, settings.oauth2.tls)
    return Credentials(settings, poster, clock or Clock())


def token_of(headers: list[tuple[str, str]]) -> str:
    return dict(headers)["authorization"].removeprefix("Bearer ")


def unused(url: str, form: dict[str, str], headers: dict[str, str]) -> Any:
    raise AssertionError("nothing is fetched")


async def test_a_token(server: TokenServer, session: ClientSession) -> None:
    """A token is fetched with id and secret as they are, sent with the resource group, and kept."""
    made = credentials(session, service_key=service_key(server.url))
    expected = [("authorization", "Bearer token-1"), ("ai-resource-group", "default")]
    assert await made.headers() == expected
    assert await made.headers() == expected
    assert server.asked == [
        {"grant_type": "client_credentials", "client_id": CLIENT_ID, "client_secret": SECRET}
    ]
    await made.close()


async def test_one_fetch_for_all(server: TokenServer, session: ClientSession) -> None:
    """Requests that come together wait for one token; one that leaves does not end it."""
    server.delay = asyncio.Event()
    made = credentials(session, service_key=service_key(server.url))
    waiting = [asyncio.create_task(made.headers()) for _ in range(50)]
    await until_asked(server, 1)
    waiting[0].cancel()
    await asyncio.sleep(0)
    server.delay.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert {token_of(one) for one in found[1:] if not isinstance(one, BaseException)} == {"token-1"}
    assert len(server.asked) == 1
    await made.close()


async def until_asked(server: TokenServer, times: int) -> None:
    await until(lambda: len(server.asked) >= times)


async def test_renewed_before_its_end(server: TokenServer, session: ClientSession) -> None:
    """Near its end a token is renewed beside the requests, which go on with the old one."""
    clock = Clock()
    server.life = 3600
    made = credentials(session, clock, service_key=service_key(server.url))
    await made.headers()
    clock.now += 3500
    await made.headers()
    assert len(server.asked) == 1
    clock.now += 50
    server.delay = asyncio.Event()
    assert [token_of(await made.headers()) for _ in range(5)] == ["token-1"] * 5
    await until_asked(server, 2)
    server.delay.set()

    async def is_new() -> bool:
        return token_of(await made.headers()) == "token-2"

    await until(is_new)
    assert len(server.asked) == 2
    await made.close()


async def test_past_its_end(server: TokenServer, session: ClientSession) -> None:
    """A token whose end has come is not sent: requests wait for the next."""
    clock = Clock()
    server.life = "100"
    made = credentials(session, clock, service_key=service_key(server.url))
    await made.headers()
    clock.now += 99
    assert token_of(await made.headers()) == "token-2"
    await made.close()


@pytest.mark.parametrize("life", [None, 0, -1, "soon", True, 1e30])
async def test_strange_lives(server: TokenServer, session: ClientSession, life: Any) -> None:
    """Where the server does not say how long a token lives, it is kept for a while."""
    clock = Clock()
    server.life = life
    made = credentials(session, clock, service_key=service_key(server.url))
    await made.headers()
    clock.now += 200
    assert token_of(await made.headers()) == "token-1"
    clock.now += 8 * 86400
    assert token_of(await made.headers()) == "token-2"
    await made.close()


async def test_a_refused_token(server: TokenServer, session: ClientSession) -> None:
    """After a 401 a token is fetched anew, once for all who had the old one."""
    made = credentials(session, service_key=service_key(server.url))
    old = await made.headers()
    assert made.invalidate(old)
    assert made.invalidate(old)
    new, other = await asyncio.gather(made.headers(), made.headers())
    assert token_of(new) == token_of(other) == "token-2"
    assert made.invalidate(old)
    assert token_of(await made.headers()) == "token-2"
    await made.close()


async def test_an_upstream_that_refuses_every_token(
    server: TokenServer, session: ClientSession
) -> None:
    """Where new tokens are refused as well, they are not fetched again and again."""
    clock = Clock()
    made = credentials(session, clock, service_key=service_key(server.url))
    tried = 0
    for _ in range(20):
        tried += made.invalidate(await made.headers())
    assert (tried, len(server.asked)) == (1, 2)
    clock.now += 11
    assert made.invalidate(await made.headers())
    await made.close()


async def test_a_new_secret(server: TokenServer, session: ClientSession, tmp_path: Path) -> None:
    """A changed service key is used for a new token at once."""
    clock = Clock()
    path = tmp_path / "key.json"
    path.write_text(service_key(server.url))
    made = credentials(session, clock, service_key_file=path)
    await made.headers()
    path.write_text(service_key(server.url, clientsecret="another one"))
    clock.now += 1
    assert token_of(await made.headers()) == "token-2"
    assert server.asked[1]["client_secret"] == "another one"  # noqa: S105
    await made.close()


async def test_client_in_fields(
    server: TokenServer, session: ClientSession, tmp_path: Path
) -> None:
    """Id and secret may be in files of their own, with scopes, and named by HTTP Basic."""
    for name, text in (("id", CLIENT_ID), ("secret", SECRET)):
        (tmp_path / name).write_text(text + "\n")
    made = credentials(
        session,
        token_url=f"{server.url}/oauth/token",
        client_id_file=tmp_path / "id",
        client_secret_file=tmp_path / "secret",
        scope="a b",
        client_auth="basic",
    )
    await made.headers()
    assert server.asked == [{"grant_type": "client_credentials", "scope": "a b"}]
    kind, _, pair = server.requests[0].headers["authorization"].partition(" ")
    assert kind == "Basic"
    # each urlencoded before they are joined, as the standard wants it
    assert base64.b64decode(pair) == b"sb-1234%21b5678%7Caicore%21b540:hunter2%24%2B%2F%3D%25"
    await made.close()


# Failures


async def fails(made: Credentials) -> BadGateway:
    with pytest.raises(BadGateway) as raised:
        await made.headers()
    return raised.value


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, None),
        (500, b"<html>"),
        (302, b""),
        (200, b""),
        (200, b"[]"),
        (200, b'{"access_token": 1}'),
        (200, b'{"access_token": "a\\r\\nb"}'),
        (200, b'{"access_token": "a", "token_type": "mac"}'),
        (200, b'{"access_token": "%s"}' % (b"a" * 300_000)),
    ],
)
async def test_a_server_that_gives_no_token(
    server: TokenServer, session: ClientSession, status: int, body: bytes | None
) -> None:
    """Whatever the server answers instead is a 502 that says nothing of it; the log, too."""
    server.status, server.body = status, body
    made = credentials(session, service_key=service_key(server.url))
    with capture_logs() as lines:
        error = await fails(made)
    assert (error.status, error.code) == (502, "upstream_error")
    (line,) = [line for line in lines if line["event"] == "token_not_fetched"]
    assert line["log_level"] == "warning"
    for text in (error.message, str(lines)):
        assert SECRET not in text
        assert CLIENT_ID not in text
    await made.close()


async def test_no_server(session: ClientSession) -> None:
    """A server that is not there is a 502 as well, and is left alone for a second."""
    clock = Clock()
    key = service_key(f"http://127.0.0.1:{refused_port()}")
    made = credentials(session, clock, service_key=key)
    with capture_logs() as lines:
        for _ in range(5):
            assert (await fails(made)).status == 502
        clock.now += 1
        await fails(made)
    assert sum(line["event"] == "token_not_fetched" for line in lines) == 2
    await made.close()


async def test_recovery(server: TokenServer, session: ClientSession) -> None:
    """After a failure the next second's request gets a token."""
    clock = Clock()
    server.status = 503
    made = credentials(session, clock, service_key=service_key(server.url))
    await fails(made)
    server.status = 200
    await fails(made)
    clock.now += 1
    assert token_of(await made.headers()) == "token-2"
    await made.close()


async def test_a_failed_renewal_hurts_nobody(server: TokenServer, session: ClientSession) -> None:
    """While a token is good, a server that fails is not noticed; it is asked again each second."""
    clock = Clock()
    server.life = 1000
    made = credentials(session, clock, service_key=service_key(server.url))
    await made.headers()
    server.status = 500
    clock.now += 950
    assert token_of(await made.headers()) == "token-1"
    await until_asked(server, 2)
    await asyncio.sleep(0.05)
    assert token_of(await made.headers()) == "token-1"
    server.status = 200
    clock.now += 1
    assert token_of(await made.headers()) == "token-1"
    await until_asked(server, 3)
    clock.now += 100
    assert token_of(await made.headers()) == "token-3"
    await made.close()


async def test_a_redirect_gets_no_secret(server: TokenServer, session: ClientSession) -> None:
    """A token server's redirect is not followed: the secret goes where the settings say alone."""

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect(f"{server.url}/oauth/token")

    app = web.Application()
    app.router.add_post("/oauth/token", elsewhere)
    runner = web.AppRunner(app)
    await runner.setup()
    listener = listen("127.0.0.1", 0)
    await web.SockSite(runner, listener).start()
    port = listener.getsockname()[1]
    made = credentials(session, service_key=service_key(f"http://127.0.0.1:{port}"))
    assert (await fails(made)).status == 502
    assert not server.asked
    await made.close()
    await runner.cleanup()


async def test_close_ends_a_fetch(server: TokenServer, session: ClientSession) -> None:
    """Closing does not wait for a token server that hangs."""
    server.delay = asyncio.Event()
    made = credentials(session, service_key=service_key(server.url))
    waiting = asyncio.create_task(made.headers())
    await until_asked(server, 1)
    await asyncio.wait_for(made.close(), 1)
    await asyncio.gather(waiting, return_exceptions=True)
    server.delay.set()


# On the way


async def test_http_proxies(server: TokenServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that honours HTTP_PROXY fetches its tokens through it, by the server's name."""
    # The stand-in is the HTTP proxy here: a name that nobody can resolve gets to it.
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("http_proxy", server.url)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with ClientSession(trust_env=True) as session:
        made = credentials(session, service_key=service_key("http://tokens.invalid"))
        assert token_of(await made.headers()) == "token-1"
        await made.close()
    assert server.requests[0].host == "tokens.invalid"
    async with ClientSession(trust_env=False) as session:
        direct = credentials(session, service_key=service_key("http://tokens.invalid"))
        await fails(direct)
        await direct.close()


async def test_tls(session: ClientSession, tmp_path: Path) -> None:
    """A token server of a private authority is trusted where that is given, and only there."""
    authority = Authority()
    tls = ServerTLS(*authority.issue().write(tmp_path))
    async with token_server(tls) as server:
        key = service_key(server.url)
        ca = {"ca_file": authority.write(tmp_path)}
        made = credentials(session, service_key=key, tls=ca)
        assert token_of(await made.headers()) == "token-1"
        await made.close()
        strict = credentials(session, service_key=key)
        await fails(strict)
        await strict.close()


async def test_secrets_are_not_shown(server: TokenServer, session: ClientSession) -> None:
    """Neither settings nor what is made of them show secret or token."""
    settings = OAuth2Settings.model_validate({"service_key": service_key(server.url)})
    whole = CredentialSettings(oauth2=settings)
    made = Credentials(whole, form_poster(session, ClientTLS()))
    await made.headers()
    source = made._source
    texts = f"{settings!r} {whole!r} {whole.model_dump_json()} {client_of(settings)!r} {made!r}"
    assert SECRET not in f"{texts} {source!r} {vars(source)!r}"
    assert "token-1" not in f"{texts} {source!r} {vars(source)!r}"
    await made.close()


async def test_a_token_url_without_tls(session: ClientSession) -> None:
    """A secret that would travel in the clear is warned of; to this machine it does not travel."""
    for url, warns in (("http://tokens.example", True), ("http://127.0.0.1:1", False)):
        with capture_logs() as lines:
            credentials(session, service_key=service_key(url))
        assert ("token_url_without_tls" in [line["event"] for line in lines]) is warns

"""TLS: of the server, with certificates that change and clients that show theirs."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession

from openai_proxy.config import ConfigError, load
from openai_proxy.tls import ServerTLS, server_context
from tests.proxy import harness
from tests.proxy.certificates import Authority, Pair
from tests.proxy.harness import CHAT, DONE, MESSAGES, Proxy, StandIn, chunk, streamed
from tests.proxy.processes import process

URL = {"upstream_url": "http://127.0.0.1:8080"}
# How a client sees that a handshake, or what follows it, was refused
REFUSED = (ssl.SSLError, ConnectionError, ClientError)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def trusting(authority: Authority, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """A client that trusts an authority, and shows a certificate if it has one."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    if client is not None:
        context.load_cert_chain(*client)
    return context


async def handshake(
    port: int, context: ssl.SSLContext
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost"
    )


async def serial_of(port: int, context: ssl.SSLContext) -> int:
    """The serial number of the certificate that a new connection is shown."""
    _, writer = await handshake(port, context)
    shown = writer.get_extra_info("peercert")
    writer.transport.abort()
    return int(shown["serialNumber"], 16)


@asynccontextmanager
async def tls_proxy(
    upstream: StandIn, folder: Path, pair: Pair, **settings: Any
) -> AsyncIterator[Proxy]:
    """A proxy that speaks HTTPS with this pair, written to a folder."""
    cert, key = pair.write(folder)
    async with harness.proxy(
        upstream_url=upstream.url, tls_cert_file=cert, tls_key_file=key, **settings
    ) as proxy:
        proxy.url = proxy.url.replace("http://127.0.0.1", "https://localhost")
        yield proxy


async def test_https(upstream: StandIn, authority: Authority, tmp_path: Path) -> None:
    """Requests and streams work over TLS; HTTP on that port does not."""
    context = trusting(authority)
    async with tls_proxy(upstream, tmp_path, authority.issue()) as proxy:
        body = {"model": "tiny", "messages": MESSAGES}
        async with proxy.http.post(proxy.url + CHAT, json=body, ssl=context) as response:
            assert response.status == 200
        upstream.respond = streamed(chunk("a"), DONE)
        async with proxy.http.post(
            proxy.url + CHAT, json={**body, "stream": True}, ssl=context
        ) as response:
            assert await response.read() == chunk("a") + DONE
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200" not in await asyncio.wait_for(reader.read(), 5)
        writer.close()


async def test_a_client_that_leaves_is_noticed(
    upstream: StandIn, authority: Authority, tmp_path: Path
) -> None:
    """Over TLS, too, the upstream's request ends when the client closes its connection."""

    async def never(request: Any) -> Any:
        await asyncio.Event().wait()

    upstream.respond = never
    async with tls_proxy(upstream, tmp_path, authority.issue()) as proxy:
        _, writer = await handshake(proxy.port, trusting(authority))
        body = json.dumps({"messages": MESSAGES}).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s"
            % (len(body), body)
        )
        await asyncio.wait_for(upstream.began.wait(), 5)
        writer.close()
        await asyncio.wait_for(upstream.closed.wait(), 5)


@pytest.mark.parametrize(
    ("oldest", "newest_of_client", "is_served"),
    [
        ("1.2", ssl.TLSVersion.TLSv1_2, True),
        ("1.3", ssl.TLSVersion.TLSv1_2, False),
        ("1.3", ssl.TLSVersion.TLSv1_3, True),
    ],
)
async def test_versions(
    upstream: StandIn,
    authority: Authority,
    tmp_path: Path,
    oldest: str,
    newest_of_client: ssl.TLSVersion,
    is_served: bool,
) -> None:
    """TLS 1.2 is the oldest that is spoken; the setting makes it 1.3."""
    context = trusting(authority)
    context.maximum_version = newest_of_client
    async with tls_proxy(upstream, tmp_path, authority.issue(), tls_min_version=oldest) as proxy:
        if is_served:
            await serial_of(proxy.port, context)
        else:
            with pytest.raises(REFUSED):
                await serial_of(proxy.port, context)


def test_nothing_older_than_tls_1_2(authority: Authority, tmp_path: Path) -> None:
    """Connections refuse TLS 1.1."""
    context = server_context(ServerTLS(*authority.issue().write(tmp_path)))
    connection = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    assert connection.context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("kinds", [("ec", "ec"), ("rsa", "ec"), ("ec", "rsa")])
async def test_a_new_certificate_is_used(
    upstream: StandIn,
    authority: Authority,
    tmp_path: Path,
    kinds: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """New connections get a replaced certificate, of whatever key; those that there are go on."""
    monkeypatch.setattr("openai_proxy.file_watch.CHECK_SECONDS", 0)
    old, new = (authority.issue(kind=kind) for kind in kinds)
    context = trusting(authority)
    async with tls_proxy(upstream, tmp_path, old) as proxy:
        assert await serial_of(proxy.port, context) == old.serial
        reader, writer = await handshake(proxy.port, context)
        new.write(tmp_path)
        assert await serial_of(proxy.port, context) == new.serial
        # without a server's name in the handshake
        nameless = trusting(authority)
        nameless.check_hostname = False
        _, other = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=nameless)
        assert int(other.get_extra_info("peercert")["serialNumber"], 16) == new.serial
        other.transport.abort()
        writer.write(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_as_kubernetes_replaces_it(
    upstream: StandIn, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mounted Secret changes by a link to another folder, at the same paths."""
    monkeypatch.setattr("openai_proxy.file_watch.CHECK_SECONDS", 0)
    old, new = authority.issue(), authority.issue()
    for name, pair in (("..old", old), ("..new", new)):
        (tmp_path / name).mkdir()
        pair.write(tmp_path / name)
    (tmp_path / "..data").symlink_to("..old")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    async with harness.proxy(
        upstream_url=upstream.url,
        tls_cert_file=tmp_path / "tls.crt",
        tls_key_file=tmp_path / "tls.key",
    ) as proxy:
        assert await serial_of(proxy.port, trusting(authority)) == old.serial
        (tmp_path / "..tmp").symlink_to("..new")
        os.rename(tmp_path / "..tmp", tmp_path / "..data")  # noqa: PTH104  # as the kubelet does
        assert await serial_of(proxy.port, trusting(authority)) == new.serial


async def test_a_bad_new_certificate_is_not_used(
    upstream: StandIn, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While only half of a pair is written the old one stays; with the other half it is used."""
    monkeypatch.setattr("openai_proxy.file_watch.CHECK_SECONDS", 0)
    old, new = authority.issue(), authority.issue()
    context = trusting(authority)
    async with tls_proxy(upstream, tmp_path, old) as proxy:
        (tmp_path / "tls.crt").write_bytes(new.cert)
        assert await serial_of(proxy.port, context) == old.serial
        (tmp_path / "tls.crt").unlink()
        assert await serial_of(proxy.port, context) == old.serial
        new.write(tmp_path)
        assert await serial_of(proxy.port, context) == new.serial


async def status_with(
    proxy: Proxy, path: str, context: ssl.SSLContext, method: str = "GET"
) -> tuple[int, bytes]:
    async with proxy.http.request(method, proxy.url + path, ssl=context) as response:
        return response.status, await response.read()


async def test_clients_need_a_certificate(
    upstream: StandIn, authority: Authority, tmp_path: Path
) -> None:
    """With an authority for clients, only who shows a certificate of it is served; probes are."""
    clients = Authority("clients")
    client = clients.issue("client").write(tmp_path, "client")
    async with tls_proxy(
        upstream, tmp_path, authority.issue(), tls_client_ca_file=clients.write(tmp_path)
    ) as proxy:
        with_one, without = trusting(authority, client), trusting(authority)
        assert (await status_with(proxy, "/v1/models", with_one))[0] == 200
        status, body = await status_with(proxy, "/v1/models", without)
        assert status == 401
        assert json.loads(body)["error"]["code"] == "client_certificate_required"
        assert (await status_with(proxy, CHAT, without, "POST"))[0] == 401
        assert (await status_with(proxy, "/metrics", without))[0] == 401
        for probe in ("/health/live", "/health/ready", "/v1/health/live"):
            assert (await status_with(proxy, probe, without))[0] == 200
    assert not upstream.requests


async def test_a_strangers_certificate_is_refused(
    upstream: StandIn, authority: Authority, tmp_path: Path
) -> None:
    """A certificate of another authority ends the handshake, also for probes."""
    stranger = Authority("stranger").issue("client").write(tmp_path, "stranger")
    ca = Authority("clients").write(tmp_path)
    async with tls_proxy(upstream, tmp_path, authority.issue(), tls_client_ca_file=ca) as proxy:
        with pytest.raises(REFUSED):
            await status_with(proxy, "/health/live", trusting(authority, stranger))


def get_models(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[bytes, ssl.SSLSession | None]:
    """Ask for the models as a client that takes up its old session; return answer and session."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
        context.wrap_socket(
            raw, server_hostname="localhost", session=session, suppress_ragged_eofs=False
        ) as connection,
    ):
        connection.sendall(
            b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        )
        answer = b""
        while part := connection.recv(65536):
            answer += part
        assert not connection.session_reused
        return answer, connection.session


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_removed_authority_is_trusted_no_more(
    upstream: StandIn,
    authority: Authority,
    tmp_path: Path,
    newest: ssl.TLSVersion,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Clients of an authority that was replaced are refused, also with a session from before."""
    monkeypatch.setattr("openai_proxy.file_watch.CHECK_SECONDS", 0)
    clients, others = Authority("clients"), Authority("others")
    path = clients.write(tmp_path)
    context = trusting(authority, clients.issue("client").write(tmp_path, "client"))
    context.maximum_version = newest
    async with tls_proxy(upstream, tmp_path, authority.issue(), tls_client_ca_file=path) as proxy:
        answer, session = await asyncio.to_thread(get_models, proxy.port, context)
        assert answer.startswith(b"HTTP/1.1 200")
        path.write_bytes(others.pem)
        with pytest.raises(REFUSED):
            await asyncio.to_thread(get_models, proxy.port, context, session)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"tls_cert_file": "tls.crt"}, "--tls-cert-file needs --tls-key-file"),
        ({"tls_key_file": "tls.key"}, "--tls-key-file needs --tls-cert-file"),
        ({"tls_client_ca_file": "tls.crt"}, "--tls-client-ca-file needs --tls-cert-file"),
        ({"tls_cert_file": "none", "tls_key_file": "tls.key"}, "--tls-cert-file: cannot read"),
        ({"tls_cert_file": "tls.crt", "tls_key_file": "none"}, "--tls-key-file: cannot read"),
        ({"tls_cert_file": ".", "tls_key_file": "tls.key"}, "--tls-cert-file: cannot read"),
        ({"tls_cert_file": "text", "tls_key_file": "tls.key"}, "--tls-cert-file"),
        ({"tls_cert_file": "tls.crt", "tls_key_file": "text"}, "--tls-key-file"),
        ({"tls_cert_file": "tls.crt", "tls_key_file": "other.key"}, "--tls-key-file: the key in"),
        ({"tls_cert_file": "tls.crt", "tls_key_file": "rsa.key"}, "--tls-key-file: the key in"),
        ({"tls_cert_file": "tls.crt", "tls_key_file": "locked.key"}, "is encrypted"),
        (
            {"tls_cert_file": "tls.crt", "tls_key_file": "tls.key", "tls_client_ca_file": "text"},
            "--tls-client-ca-file",
        ),
    ],
)
def test_bad_files(names: dict[str, str], says: str, authority: Authority, tmp_path: Path) -> None:
    """Files that cannot be used stop the start, with a line that names the setting."""
    authority.issue().write(tmp_path)
    authority.issue().write(tmp_path, "other")
    authority.issue(kind="rsa").write(tmp_path, "rsa")
    authority.issue(passphrase=b"secret").write(tmp_path, "locked")
    (tmp_path / "text").write_text("hello")
    files = {name: tmp_path / file for name, file in names.items()}
    with pytest.raises(ConfigError) as raised:
        load({**URL, **files})
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


async def test_bad_files_stop_the_process(authority: Authority, tmp_path: Path) -> None:
    """The process ends with status 2 and one line."""
    cert, _ = authority.issue().write(tmp_path)
    flags = ["--without-upstream", "--tls-cert-file", str(cert), "--tls-key-file", str(cert)]
    async with process(tmp_path, *flags, wait_for="") as running:
        assert await asyncio.wait_for(running.process.wait(), 20) == 2
        lines = running.log.read_text().splitlines()
    assert len(lines) == 1
    assert "--tls-key-file" in lines[0]


async def test_as_it_runs(upstream: StandIn, authority: Authority, tmp_path: Path) -> None:
    """The process, with its own event loop, replaces its certificate and knows its clients."""
    old, new = authority.issue(), authority.issue(kind="rsa")
    cert, key = old.write(tmp_path)
    client = authority.issue("client").write(tmp_path, "client")
    files = {"cert": cert, "key": key, "client-ca": authority.write(tmp_path)}
    flags = [text for name, path in files.items() for text in (f"--tls-{name}-file", str(path))]
    flags += ["--upstream-url", upstream.url]
    context = trusting(authority, client)
    async with process(tmp_path, *flags, wait_for="") as running:

        async def is_there() -> bool:
            try:
                return await serial_of(running.port, context) == old.serial
            except OSError:
                return False

        await harness.until(is_there, 20)
        async with ClientSession() as http:
            url = f"https://localhost:{running.port}/v1/models"
            async with http.get(url, ssl=context) as response:
                assert response.status == 200
            async with http.get(url, ssl=trusting(authority)) as response:
                assert response.status == 401
        new.write(tmp_path)

        async def is_replaced() -> bool:
            return await serial_of(running.port, context) == new.serial

        await harness.until(is_replaced, 5)
        assert await running.end() == 0
        assert "https://" in running.log.read_text()


async def test_idle_clients_do_not_hold_up_the_end(
    upstream: StandIn, authority: Authority, tmp_path: Path
) -> None:
    """A client that keeps its connection, and says nothing more over TLS, is not waited for."""
    cert, key = authority.issue().write(tmp_path)
    flags = ["--upstream-url", upstream.url, "--grace-seconds", "20"]
    flags += ["--tls-cert-file", str(cert), "--tls-key-file", str(key)]
    context = trusting(authority)
    async with process(tmp_path, *flags, wait_for="") as running:

        def ask(close: bool) -> ssl.SSLSocket:
            raw = socket.create_connection(("127.0.0.1", running.port), timeout=5)
            idle = context.wrap_socket(raw, server_hostname="localhost")
            connection = b"close" if close else b"keep-alive"
            idle.sendall(
                b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nconnection: %s\r\n\r\n"
                % connection
            )
            assert b"200" in idle.recv(100)
            return idle

        async def is_there() -> bool:
            try:
                await serial_of(running.port, context)
            except OSError:
                return False
            return True

        await harness.until(is_there, 20)
        idle = [await asyncio.to_thread(ask, close) for close in (False, True)]
        asked_at = time.monotonic()
        assert await running.end(seconds=30) == 0
        assert time.monotonic() - asked_at < 5
        for connection in idle:
            connection.close()

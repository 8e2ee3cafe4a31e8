"""TLS towards upstreams: whom to trust, which certificate to show, which name to expect."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from openai_proxy.routing.client_tls import ClientTLS, ClientTLSContext
from openai_proxy.tls import ServerTLS, server_context
from tests.proxy.certificates import Authority


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@asynccontextmanager
async def tls_server(context: ssl.SSLContext) -> AsyncIterator[int]:
    """A server that says hello over TLS; yields its port."""

    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(hello, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def hears(port: int, tls: ClientTLSContext, name: str = "localhost") -> bytes:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=tls.current(), server_hostname=tls.server_name or name
    )
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


async def test_an_upstreams_authority(authority: Authority, tmp_path: Path) -> None:
    """With a ca_file, its certificates are trusted, and no others; without, the system's."""
    ca = authority.write(tmp_path)
    tls = ServerTLS(*authority.issue().write(tmp_path))
    async with tls_server(server_context(tls)) as port:
        assert await hears(port, ClientTLSContext(ClientTLS(ca_file=ca), "u")) == b"hello"
        stranger = Authority("stranger").write(tmp_path, "stranger.crt")
        for wrong in (ClientTLS(), ClientTLS(ca_file=stranger)):
            with pytest.raises(ssl.SSLCertVerificationError):
                await hears(port, ClientTLSContext(wrong, "u"))


async def test_an_upstreams_name(authority: Authority, tmp_path: Path) -> None:
    """A server_name is expected instead of the name in the URL."""
    ca = authority.write(tmp_path)
    pair = authority.issue(hosts=("inner.example",))
    async with tls_server(server_context(ServerTLS(*pair.write(tmp_path)))) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await hears(port, ClientTLSContext(ClientTLS(ca_file=ca), "u"))
        named = ClientTLS(ca_file=ca, server_name="inner.example")
        assert await hears(port, ClientTLSContext(named, "u")) == b"hello"


async def test_a_certificate_for_an_upstream(authority: Authority, tmp_path: Path) -> None:
    """An upstream that wants a certificate gets it, and a new one once the files have changed."""
    seen: list[int] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue().write(tmp_path))
    context.load_verify_locations(authority.write(tmp_path))
    context.verify_mode = ssl.CERT_REQUIRED

    async def look(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(int(writer.get_extra_info("peercert")["serialNumber"], 16))
        writer.write(b"hello")
        writer.close()

    now = 0.0
    first, second = authority.issue("one"), authority.issue("two")
    cert, key = first.write(tmp_path, "client")
    settings = ClientTLS(ca_file=tmp_path / "ca.crt", cert_file=cert, key_file=key)
    tls = ClientTLSContext(settings, "u", clock=lambda: now)
    server = await asyncio.start_server(look, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    assert await hears(port, tls) == b"hello"
    before = tls.current()
    second.write(tmp_path, "client")
    assert tls.current() is before
    now += 2
    assert await hears(port, tls) == b"hello"
    server.close()
    assert seen == [first.serial, second.serial]


async def test_without_verification(tmp_path: Path) -> None:
    """insecure_skip_verify trusts anyone, and says so in the log."""
    with capture_logs() as lines:
        tls = ClientTLSContext(ClientTLS(insecure_skip_verify=True), "my-upstream")
    assert [(line["log_level"], line["upstream"]) for line in lines] == [("warning", "my-upstream")]
    stranger = Authority("stranger").issue(hosts=("other.example",))
    async with tls_server(server_context(ServerTLS(*stranger.write(tmp_path)))) as port:
        assert await hears(port, tls) == b"hello"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ({"cert_file": "tls.crt"}, "cert_file and key_file"),
        ({"ca_file": "none"}, "ca_file: cannot read"),
        ({"ca_file": "text"}, "ca_file"),
        ({"cert_file": "tls.crt", "key_file": "other.key"}, "key_file: the key in"),
        ({"ca_file": "tls.crt", "insecure_skip_verify": True}, "insecure_skip_verify"),
    ],
)
def test_bad_upstream_files(
    names: dict[str, Any], says: str, authority: Authority, tmp_path: Path
) -> None:
    """Files for an upstream that cannot be used are refused, naming the setting."""
    authority.issue().write(tmp_path)
    authority.issue().write(tmp_path, "other")
    (tmp_path / "text").write_text("hello")
    given = {
        name: tmp_path / file if isinstance(file, str) else file for name, file in names.items()
    }
    with pytest.raises(ValueError, match=says):
        ClientTLS(**given)

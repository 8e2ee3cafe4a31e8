"""Requests to the byte: what a client of our own making sends, and what comes back."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Headers = Iterable[tuple[str, str]]
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Answer:
    """What came back; the status is 0 where the connection ended without an answer."""

    status: int
    head: bytes
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error in OpenAI's envelope; empty where there is none."""
        try:
            error = self.json["error"]
            return str(error["code"])
        except (ValueError, KeyError, TypeError):
            return ""


class Connection:
    """One connection to a server; owner: one thread."""

    def __init__(self, url: str, seconds: float = 60.0) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.host = parts.netloc
        self.seconds = seconds
        self.sock = socket.create_connection((parts.hostname, parts.port or 80), seconds)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> bool:
        """Send all; return whether the server took it."""
        self.sock.settimeout(self.seconds)
        try:
            self.sock.sendall(data)
        except OSError:
            return False
        return True

    def read(self) -> Answer:
        """Read one answer, to the end of its body."""
        began = time.monotonic()
        self.sock.settimeout(self.seconds)
        head, body = self._head()
        status = int(head[9:12]) if head[:7] == b"HTTP/1." and head[9:12].isdigit() else 0
        if status == 100:
            head, body = self._head(body)
            status = int(head[9:12])
        return Answer(status, head, self._body(head, body), time.monotonic() - began)

    def is_closed(self, seconds: float) -> bool:
        """Wait until the server closes; return whether it did. What it says before is dropped."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.sock.settimeout(left)
            try:
                if not self.sock.recv(_CHUNK):
                    return True
            except TimeoutError:
                return False
            except OSError:
                return True
        return False

    def close(self) -> None:
        """Close it, whatever is unread."""
        self.sock.close()

    def _head(self, data: bytes = b"") -> tuple[bytes, bytes]:
        while b"\r\n\r\n" not in data:
            piece = self._receive()
            if not piece:
                return data, b""
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        return head, body

    def _body(self, head: bytes, body: bytes) -> bytes:
        fields = head.lower().split(b"\r\n")
        lengths = [int(f.split(b":")[1]) for f in fields if f.startswith(b"content-length:")]
        is_chunked = any(f.startswith(b"transfer-encoding:") for f in fields)
        pieces = [body]
        size = len(body)
        while (
            head and (not lengths or size < lengths[0]) and not (is_chunked and _is_whole(pieces))
        ):
            piece = self._receive()
            if not piece:
                break
            pieces.append(piece)
            size += len(piece)
        whole = b"".join(pieces)
        return _unchunked(whole) if is_chunked else whole

    def _receive(self) -> bytes:
        try:
            return self.sock.recv(_CHUNK)
        except OSError:
            return b""


def ask(
    url: str,
    method: str,
    path: str,
    body: bytes | Mapping[str, Any] | None = None,
    headers: Headers = (),
    seconds: float = 60.0,
) -> Answer:
    """Send a whole request on a connection of its own, and return the answer."""
    began = time.monotonic()
    try:
        with Connection(url, seconds) as connection:
            connection.send(request(connection.host, method, path, body, headers))
            answer = connection.read()
    except OSError:
        return Answer(0, b"", b"", time.monotonic() - began)
    return Answer(answer.status, answer.head, answer.body, time.monotonic() - began)


def request(
    host: str,
    method: str,
    path: str,
    body: bytes | Mapping[str, Any] | None = None,
    headers: Headers = (),
) -> bytes:
    """Return the bytes of a request; headers given as `host` and so on stand beside ours."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    data = b""
    if body is not None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines.append(f"Content-Length: {len(data)}")
        if not any(name.lower() == "content-type" for name, _ in headers):
            lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


def _is_whole(pieces: list[bytes]) -> bool:
    end = b"".join(pieces[-2:]) if len(pieces) > 1 else pieces[0]
    return end.endswith(b"0\r\n\r\n")


def _unchunked(data: bytes) -> bytes:
    found = []
    with suppress(ValueError):
        while data:
            size, _, data = data.partition(b"\r\n")
            length = int(size, 16)
            found.append(data[:length])
            data = data[length + 2 :]
    return b"".join(found)

"""What a request's head may say: one host, one of each header that is acted on, known framing.

Pure. Where a head can be read in two ways, two servers on its way may read it differently: such a
request is refused, with an error that names the header.

Sources: RFC 9110 (5.3: which headers may be repeated, 7.2: Host), RFC 9112 (3.2: request target,
6: transfer codings).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from http_edge.hosts import HostRules, host_name, is_same
from http_edge.paths import normalized
from openai_protocol.errors import ErrorCode, InvalidRequest, http_error

Pairs = Sequence[tuple[bytes, bytes]]
Scope = MutableMapping[str, Any]
# Among ASGI's extensions: the authority of a request target in absolute form, with its scheme.
TARGET = "http_edge.target"

# Acted on by one of the servers, and of one value: who is asking, how the body is read, for whom.
SINGLE = frozenset(
    {
        *(b"authorization", b"x-api-key", b"api-key", b"x-tenant"),
        *(b"content-type", b"content-length"),
        *(b"inference-header-content-length", b"expect"),
        *(b"x-request-id", b"x-resumable", b"traceparent"),
        *(b"origin", b"access-control-request-method"),
    }
)
# Of one value, too: a CloudEvent's attributes, which KServe's V1 takes from the head.
_SINGLE_BEGINNINGS = (b"ce-",)
# Acted on as well, but lists by their definition: lines of one name are joined.
LISTS = frozenset(
    {b"accept", b"access-control-request-headers", b"connection", b"tracestate", b"baggage"}
)
VERSIONS = frozenset({"1.0", "1.1"})


class FramingError(InvalidRequest):
    """Where the request ends cannot be told for sure: its connection is closed after the answer."""

    def headers(self) -> dict[str, str]:
        """Return the headers that go with the error."""
        return {**super().headers(), "connection": "close"}


class HeadRules:
    """Checks the heads of one server's requests; `hosts` says for whom it may be asked.

    `setting` is what the operator knows them by.
    """

    def __init__(self, hosts: HostRules, setting: str) -> None:
        self._hosts = hosts
        self._setting = setting
        self._served: set[tuple[bytes, str | None]] = (
            set()
        )  # hosts that passed, and where they came

    def check(self, scope: Scope) -> None:
        """Refuse a request whose head is not clear; put its headers and path into one form.

        `scope` is ASGI's. Afterwards no header that is acted on stands there twice, and `path` is
        as `paths.normalized` has it. Raises InvalidRequest that names the header, NotFound for a
        path that is none.
        """
        headers: Pairs = scope["headers"]
        version = scope.get("http_version", "1.1")
        if version not in VERSIONS:
            raise FramingError(
                "This server speaks HTTP/1.1 and HTTP/1.0.", status=505, code=_REFUSED
            )
        found = dict(headers)
        if len(found) != len(headers):
            scope["headers"] = headers = joined(headers)
        if b"transfer-encoding" in found:
            check_framing(headers, version)
        host, server = found.get(b"host"), scope.get("server")
        target = (scope.get("extensions") or _NOTHING).get(TARGET)
        asked = (host, server[0] if server else None)
        if target is not None or asked not in self._served:
            self._check_host(host, asked[1], version, target)
            if target is None and host is not None and len(self._served) < _KEPT_HOSTS:
                self._served.add((host, asked[1]))
        path = normalized(scope.get("raw_path") or scope["path"].encode("ascii", "replace"))
        if path is None:
            raise http_error(404, scope["method"], scope["path"][:256])
        scope["path"] = path

    def _check_host(
        self,
        sent: bytes | None,
        local_address: str | None,
        version: str,
        target: tuple[str, str] | None,
    ) -> None:
        host = None if sent is None else sent.decode("latin-1")
        if host is None and version == "1.1":
            raise InvalidRequest(
                "Missing header 'Host': HTTP/1.1 needs it.",
                param="Host",
                code=ErrorCode.MISSING_REQUIRED_PARAMETER,
            )
        if host is not None and host_name(host) is None:
            raise _invalid("Host", "it must be a host's name or address, and maybe a port.")
        if target is not None:
            scheme, authority = target
            if host_name(authority) is None or not is_same(host or authority, authority, scheme):
                raise _invalid("Host", "the request's target names another host.")
            host = authority
        # Every browser sends a host; what sends none cannot be one, nor a page in it.
        if host is not None and not self._hosts.allows(host, local_address):
            raise InvalidRequest(
                f"This server does not serve the host {host[:_MAX_SHOWN]!r}; whoever runs it can "
                f"allow it with {self._setting}.",
                param="Host",
                status=403,
                code=ErrorCode.HOST_NOT_ALLOWED,
            )


def joined(headers: Pairs) -> list[tuple[bytes, bytes]]:
    """Return headers with the lines of each list joined into one; raises InvalidRequest.

    What no server of ours acts on stays as often as it came.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in found:
            found[name] = value
        elif name in LISTS:
            found[name] += b", " + value
        elif name == b"host" or name in SINGLE or name.startswith(_SINGLE_BEGINNINGS):
            raise _invalid(_shown(name), "it is given more than once.")
    done: set[bytes] = set()
    result = []
    for name, value in headers:
        if name not in LISTS:
            result.append((name, value))
        elif name not in done:
            done.add(name)
            result.append((name, found[name]))
    return result


def check_framing(headers: Pairs, version: str = "1.1") -> None:
    """Refuse a body whose end is told in another way than by a length or by plain chunks.

    Raises FramingError: 501 for a transfer coding that is not known, 400 for a coding beside a
    length, or in HTTP/1.0, which has none.
    """
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    if not codings:
        return
    if [coding.strip().lower() for coding in codings] != [b"chunked"]:
        raise FramingError(
            "Unsupported header 'Transfer-Encoding': only 'chunked' is known.",
            param="Transfer-Encoding",
            status=501,
            code=ErrorCode.UNSUPPORTED_VALUE,
        )
    if version == "1.0":
        raise _framing("HTTP/1.0 has no transfer codings.")
    if any(name == b"content-length" for name, _ in headers):
        raise _framing("a request has it or Content-Length, not both.")


def check_inference_length(headers: Iterable[tuple[bytes, bytes]], num_bytes: int) -> None:
    """Refuse an `Inference-Header-Content-Length` that is no part of a body of `num_bytes`.

    KServe's V2 puts binary tensors behind so many bytes of JSON. Raises InvalidRequest.
    """
    for name, value in headers:
        if name != b"inference-header-content-length":
            continue
        text = value.strip()
        if not text.isdigit() or len(text) > _MAX_DIGITS or int(text) > num_bytes:
            raise _invalid(
                "Inference-Header-Content-Length",
                f"it must be a number of bytes, at most the body's {num_bytes}.",
            )


def target_of(url: bytes) -> tuple[str, str] | None:
    """Return scheme and authority of a request target in absolute form, None for another form."""
    scheme, separator, rest = url.partition(b"://")
    if not separator or not scheme.isalpha():
        return None
    authority = rest.partition(b"/")[0].partition(b"?")[0]
    return scheme.decode("ascii").lower(), authority.decode("latin-1")


_REFUSED = ErrorCode.INVALID_VALUE
_NOTHING: Mapping[str, Any] = {}
_KEPT_HOSTS = 256
_MAX_DIGITS = 18
_MAX_SHOWN = 100


def _shown(name: bytes) -> str:
    return "-".join(word.capitalize() for word in name.decode("latin-1")[:80].split("-"))


def _invalid(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid header '{name}': {why}", param=name)


def _framing(why: str) -> FramingError:
    name = "Transfer-Encoding"
    return FramingError(f"Invalid header '{name}': {why}", param=name)

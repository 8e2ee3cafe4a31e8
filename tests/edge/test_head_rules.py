"""What a request's head may say, whichever server it comes to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from http_edge.head_rules import (
    LISTS,
    SINGLE,
    TARGET,
    FramingError,
    HeadRules,
    check_inference_length,
    joined,
    target_of,
)
from http_edge.hosts import HostRules
from openai_protocol import resume
from openai_protocol.errors import ApiError, InvalidRequest

HOST = (b"host", b"localhost")


def checked(
    *headers: tuple[bytes, bytes], bound: str = "127.0.0.1", **scope: Any
) -> dict[str, Any]:
    """What becomes of a request's scope."""
    asked: dict[str, Any] = {"method": "GET", "path": "/", "headers": list(headers), **scope}
    HeadRules(HostRules(bound), "--allowed-hosts").check(asked)
    return asked


def refused(*headers: tuple[bytes, bytes], **scope: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        checked(*headers, **scope)
    return raised.value


@pytest.mark.parametrize("name", sorted({*SINGLE, b"host", b"ce-id", b"ce-type"}))
def test_given_twice(name: bytes) -> None:
    """A header of one value that is given twice is refused by its name, also where both agree."""
    for values in ((b"localhost", b"localhost"), (b"localhost", b"other")):
        error = refused(*((name, value) for value in values), *([HOST] if name != b"host" else []))
        assert (error.status, error.code) == (400, "invalid_value")
        assert error.param is not None
        assert error.param.lower() == name.decode()
        assert error.param in error.message


def test_lists_are_joined() -> None:
    """The lines of a list are one, in the place of the first; what nobody acts on stays."""
    given = [(b"accept", b"a"), (b"x-other", b"1"), (b"accept", b"b"), (b"x-other", b"2")]
    assert joined(given) == [(b"accept", b"a, b"), (b"x-other", b"1"), (b"x-other", b"2")]
    assert checked(HOST, *given)["headers"] == [HOST, *joined(given)]
    assert not LISTS & SINGLE


@pytest.mark.parametrize("hosts", [(), (b"localhost", b"localhost")])
def test_one_host(hosts: tuple[bytes, ...]) -> None:
    """HTTP/1.1 names its host once; HTTP/1.0 may leave it out, but names it no more than once."""
    headers = [(b"host", host) for host in hosts]
    assert refused(*headers).param == "Host"
    if hosts:
        assert refused(*headers, http_version="1.0").status == 400
    else:
        checked(http_version="1.0")


@pytest.mark.parametrize("host", [b"a b", b"a/b", b"user@localhost", b"[::1", b"localhost:x"])
def test_a_host_that_is_none(host: bytes) -> None:
    """What is no host and port is refused, wherever the server is bound."""
    error = refused((b"host", host), bound="0.0.0.0")  # noqa: S104
    assert (error.status, error.param) == (400, "Host")


def test_a_foreign_host() -> None:
    """On loopback a page with a name of its own is refused, its request is not served."""
    error = refused((b"host", b"rebound.example"))
    assert (error.status, error.code, error.param) == (403, "host_not_allowed", "Host")
    assert "'rebound.example'" in error.message
    assert "--allowed-hosts" in error.message
    checked((b"host", b"rebound.example"), bound="0.0.0.0")  # noqa: S104


@pytest.mark.parametrize("version", ["0.9", "2.0", "1.2"])
def test_other_versions(version: str) -> None:
    """A version whose rules are others is refused, so that no rule is passed by."""
    assert refused(HOST, http_version=version).status == 505


@pytest.mark.parametrize(
    ("codings", "status"),
    [
        ([b"gzip, chunked"], 501),
        ([b"gzip"], 501),
        ([b"identity"], 501),
        ([b",chunked"], 501),
        ([b"chunked, chunked"], 501),
        ([b"gzip", b"chunked"], 501),
        ([b"chunked"], None),
        ([b" Chunked "], None),
    ],
)
def test_transfer_codings(codings: list[bytes], status: int | None) -> None:
    """Only plain chunks are known; the connection ends with what else is refused."""
    headers = [HOST, *((b"transfer-encoding", coding) for coding in codings)]
    if status is None:
        checked(*headers)
        return
    error = refused(*headers)
    assert isinstance(error, FramingError)
    assert (error.status, error.param) == (status, "Transfer-Encoding")
    assert error.headers()["connection"] == "close"


def test_two_ways_to_end() -> None:
    """A coding beside a length, or in HTTP/1.0, ends the connection with 400."""
    coding = (b"transfer-encoding", b"chunked")
    for error in (refused(HOST, coding, (b"content-length", b"3")), refused(coding, **OLD)):
        assert (error.status, error.headers()["connection"]) == (400, "close")


OLD = {"http_version": "1.0"}


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        (b"http://localhost/x", b"localhost", None),
        (b"HTTP://LOCALHOST:80/x", b"localhost", None),
        (b"http://localhost:8000", b"localhost:8000", None),
        (b"http://localhost/x", b"127.0.0.1", 400),
        (b"http://rebound.example/x", b"localhost", 400),
        (b"http://u@localhost/x", b"localhost", 400),
        (b"http://rebound.example/x", b"rebound.example", 403),
        (b"/x?y=http://rebound.example", b"localhost", None),
    ],
)
def test_absolute_targets(target: bytes, host: bytes, status: int | None) -> None:
    """A target that names a host names the same one as the header, and one that is allowed."""
    scope = {"extensions": {TARGET: target_of(target)}}
    if status is None:
        checked((b"host", host), **scope)
    else:
        assert refused((b"host", host), **scope).status == status


def test_an_absolute_target_without_host() -> None:
    """In HTTP/1.0 the target's host counts where there is no header."""
    scope = {"http_version": "1.0", "extensions": {TARGET: ("http", "rebound.example")}}
    assert refused(**scope).status == 403


def test_the_path() -> None:
    """Routes see the path in its one form; what is none is 404."""
    scope = checked(HOST, path="/v1/models/a/b", raw_path=b"/v1/models/a%2Fb")
    assert scope["path"] == "/v1/models/a%2Fb"
    error = refused(HOST, path="/v1/../metrics", raw_path=b"/v1/%2e%2e/metrics")
    assert (error.status, error.code) == (404, "unknown_url")


@pytest.mark.parametrize("value", [b"abc", b"-1", b"+1", b"1_0", b"", b"11", b"1" * 5000, b"1.0"])
def test_no_length_of_a_part(value: bytes) -> None:
    """The length of a body's JSON part is a number, and no more than the body has."""
    with pytest.raises(InvalidRequest) as raised:
        check_inference_length([(b"inference-header-content-length", value)], 10)
    assert raised.value.param == "Inference-Header-Content-Length"


def test_a_length_of_a_part() -> None:
    """A length within the body is taken, also all of it or none; without one nothing is asked."""
    for value in (b"0", b"7", b"10"):
        check_inference_length([(b"inference-header-content-length", value)], 10)
    check_inference_length([(b"content-length", b"abc")], 10)


# Where requests' heads are read; dialects and routing read those of upstreams' answers.
SOURCES = ("predictor/kserve_llamacpp", "proxy/openai_proxy", "edge/http_edge")
OF_ANSWERS = ("dialects", "routing", "backends", "translation.py")
LOOKED_UP = re.compile(
    r"headers\.get\(\s*b?\"([a-z-]+)\"|headers\[b?\"([a-z-]+)\"\]|header\(\w+, b\"([a-z-]+)\"\)"
    r"|name == b\"([a-z-]+)\"|^HEADER = \"([a-z-]+)\"",
    re.MULTILINE,
)
# Headers that hold a key are looked up one after another.
KEYS = re.compile(r"^_KEYS\w* = \(([^)]*)\)", re.MULTILINE)


def test_every_header_is_decided() -> None:
    """Each header that one of the servers looks up is of one value, or a list, by these rules."""
    root = Path(__file__).parents[2]
    files = [file for source in SOURCES for file in (root / source).rglob("*.py")]
    found = {resume.HEADER} | {
        name
        for file in files
        if not set(OF_ANSWERS) & set(file.parts)
        for groups in LOOKED_UP.findall(file.read_text(encoding="utf-8"))
        for name in groups
        if name
    }
    for file in files:
        for names in KEYS.findall(file.read_text(encoding="utf-8")):
            found |= set(re.findall(r"\"([a-z-]+)\"", names))
    assert {"x-tenant", "authorization", "x-request-id", "origin", "expect"} <= found
    decided = {name.decode() for name in SINGLE | LISTS} | {"host", "transfer-encoding"}
    assert found - decided == set()

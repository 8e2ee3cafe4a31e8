"""Which hosts a server may be asked for."""

from __future__ import annotations

import pytest

from http_edge.hosts import HostRules, checked_host, host_name, is_loopback, is_same, open_to_all


@pytest.mark.parametrize("bound", ["127.0.0.1", "localhost", "::1", "127.0.0.53"])
@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("localhost", True),
        ("LocalHost:8000", True),
        ("localhost.:8000", True),
        ("127.0.0.1:1", True),
        ("127.9.8.7", True),
        ("[::1]:8000", True),
        ("[0:0:0:0:0:0:0:1]", True),
        ("", False),
        ("rebound.example", False),
        ("localhost.rebound.example", False),
        ("127.0.0.1.rebound.example", False),
        ("127.0.0.1:80@rebound.example", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),  # noqa: S104
        ("[::2]", False),
    ],
)
def test_on_loopback(bound: str, host: str, is_allowed: bool) -> None:
    """Bound to loopback, a server is asked for by this machine's own names alone, on any port."""
    assert HostRules(bound).allows(host, "127.0.0.1") is is_allowed


@pytest.mark.parametrize("bound", ["0.0.0.0", "::", "10.0.0.1", "proxy.example", ""])  # noqa: S104
def test_bound_elsewhere(bound: str) -> None:
    """Bound elsewhere, a server has names that it does not know: any host will do."""
    assert HostRules(bound).allows("any.example")


def test_named_hosts() -> None:
    """Named hosts are allowed, and what leads nowhere else: this machine, the connection's end."""
    rules = HostRules("0.0.0.0", ["app.example", "*.inner.example"])  # noqa: S104
    allowed = ("app.example:443", "a.b.inner.example", "localhost", "10.1.2.3:8080")
    assert [host for host in allowed if not rules.allows(host, "10.1.2.3")] == []
    refused = ("other.example", "inner.example", "xinner.example", "10.1.2.4")
    assert [host for host in refused if rules.allows(host, "10.1.2.3")] == []


def test_any_host() -> None:
    """`*` allows all, also on loopback."""
    assert HostRules("127.0.0.1", ["*"]).allows("rebound.example")


@pytest.mark.parametrize("text", ["http://a.example", "a.example:80", "a b", "*a.example", ""])
def test_no_hosts(text: str) -> None:
    """What is no host is refused, with the way to write one."""
    with pytest.raises(ValueError, match=r"write app\.example\.com"):
        checked_host(text)


def test_hosts_in_one_form() -> None:
    """A host that may be allowed has one form."""
    written = (" App.Example ", "*.Inner.example", "[::1]", "10.0.0.1", "*")
    assert [checked_host(text) for text in written] == [
        *("app.example", "*.inner.example", "::1", "10.0.0.1", "*")
    ]


@pytest.mark.parametrize("value", ["a b", "a/b", "u@h", "[::1", "[g]", "h:x", "h:1:2", "\u00e4"])
def test_no_names(value: str) -> None:
    """A Host that is no name and port has no name."""
    assert host_name(value) is None


def test_open_to_others() -> None:
    """A server that others reach, and that asks them for nothing, says so and what can be done."""
    assert open_to_all("127.0.0.1", ["a", "b"]) is None
    assert open_to_all("localhost", ["a"]) is None
    told = open_to_all("0.0.0.0", ["bind it to 127.0.0.1", "ask for keys"])  # noqa: S104
    assert told is not None
    assert told.endswith("bind it to 127.0.0.1, or ask for keys")
    assert "\n" not in told


def test_the_same_host() -> None:
    """Two hosts are the same in other letters and with the scheme's own port."""
    assert is_same("A.example", "a.example:80", "http")
    assert not is_same("a.example", "a.example:80", "https")
    assert not is_same("a.example", "b.example", "http")


def test_mapped_loopback() -> None:
    """An IPv4 address in IPv6's form is the same address."""
    assert is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("::ffff:10.0.0.1")

"""Which hosts a server may be asked for, against DNS rebinding; pure.

A page of `http://rebound.example` can have its own name point at 127.0.0.1, and then reads from a
server there as from its own: no CORS rule stops it. Its requests carry its own name as `Host`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

ANY = "*"
# RFC 9110, 7.2, and RFC 3986, 3.2.2: a name or an address, and maybe a port. It may be empty.
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(?::(?P<port>\d*))?")
_PATTERN = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_KEPT_ANSWERS = 256


class HostRules:
    """Tells whether a host may be asked for; made once, asked for each request.

    Always allowed are `localhost`, the loopback addresses, the address that the server is bound to
    and that on which a request's connection has come: no name that others control leads there.
    """

    def __init__(self, bound: str, allowed: Iterable[str] = ()) -> None:
        """`bound`: the host as configured; `allowed` are checked, see `checked_host`."""
        names = frozenset(allowed)
        self.is_checked = ANY not in names and (bool(names) or is_loopback(bound))
        self._names = frozenset({"localhost", _plain(bound)} | names)
        self._endings = tuple(name[1:] for name in names if name.startswith("*."))
        self._is_known = lru_cache(_KEPT_ANSWERS)(self._find)

    def allows(self, host: str, local_address: str | None = None) -> bool:
        """Tell whether a request for `host`, as its head has it, is to be served.

        `local_address` is that of the connection, on this machine.
        """
        return not self.is_checked or self._is_known(host, local_address)

    def _find(self, host: str, local_address: str | None) -> bool:
        name = host_name(host)
        if name is None:
            return False
        if name in self._names or name.endswith(self._endings) or is_loopback(name):
            return True
        return local_address is not None and name == _plain(local_address)


def checked_host(text: str) -> str:
    """Return a host that may be allowed, in lower case; raises ValueError."""
    host = text.strip().lower()
    if host == ANY or _PATTERN.fullmatch(host) or _address(host) is not None:
        return _plain(host)
    raise ValueError(
        f"{text.strip()[:100]!r} is no host: write app.example.com or *.example.com, without "
        "scheme and port, an address, or * for any"
    )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches a host: `localhost`, 127.0.0.0/8, ::1."""
    if host.lower() == "localhost":
        return True
    address = _address(host)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address is not None and address.is_loopback


def open_to_all(bound: str, remedies: Sequence[str]) -> str | None:
    """Return what the log says of a server that asks nobody for a key or a certificate.

    None where only this machine reaches it. `remedies` are what the operator can do.
    """
    if is_loopback(bound):
        return None
    return (
        f"whoever reaches {bound} can use this server, which asks for no key and no certificate: "
        f"{', '.join(remedies[:-1])}, or {remedies[-1]}"
    )


@lru_cache(_KEPT_ANSWERS)
def host_name(value: str) -> str | None:
    """Return the name in a `Host` header's value, without its port; None where it is no host."""
    found = _HOST.fullmatch(value)
    if found is None:
        return None
    name = found["name"]
    if name.startswith("[") and _address(name) is None:
        return None
    return _plain(name)


def is_same(one: str, other: str, scheme: str) -> bool:
    """Tell whether two values of `Host` mean the same; `scheme` says which port is not written."""
    usual = "443" if scheme == "https" else "80"
    first, second = (_HOST.fullmatch(value) for value in (one, other))
    if first is None or second is None:
        return False
    has_one_port = (first["port"] or usual) == (second["port"] or usual)
    return has_one_port and _plain(first["name"]) == _plain(second["name"])


def _plain(host: str) -> str:
    """Return a host in one form: lower case, no brackets, no dot at the end."""
    address = _address(host)
    if address is not None:
        return str(address)
    return host.lower().removesuffix(".")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None

"""Which of a client's headers an upstream gets, and what it gets besides; pure but for files.

Only listed ones pass: a list of those that do not would never be complete.

headers:
  pass: [x-tenant, x-trace-*]
  drop: [x-internal-*]
  set:
    host: smollm2.models.example.com
    api-key: {value_file: /secrets/api-key}
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from openai_proxy.dialects.base import Headers
from openai_proxy.dialects.openai import DROPPED_HEADERS
from openai_proxy.routing.secret_text import SecretText

_NAME = re.compile(r"[!#$%&'+.^_`|~0-9a-z-]+")
# What says how a message is sent, not what it says: the proxy writes it itself.
_FRAMING = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"),
        *("upgrade", "expect", "content-length", "content-encoding", "accept-encoding"),
    }
)
# What passes unless a rule says otherwise: none of them lets a client in anywhere.
DEFAULT_PASSED = (
    *("traceparent", "tracestate", "baggage", "x-request-id", "x-tenant"),
    *("user-agent", "accept-language", "openai-*", "x-stainless-*"),
)
# A client's own keys, by any of their names. They pass only where a rule names them in full: a
# pattern may not mean it.
_CREDENTIAL = re.compile(
    r"authorization|cookie|passw|secret|credential|bearer|jwt|assertion|^dpop$"
    r"|api[-_]?key|(^|[-_])tokens?$"
    r"|(subscription|access|auth|functions|account|private|shared|session)[-_]?key"
)
# Those of them that dialects withhold by themselves.
_WITHHELD = frozenset({"authorization", "x-api-key", "api-key", "cookie"})
# Where a client's key stands, the most telling first, as the predictor looks for it.
_KEYS_OF_TENANTS = ("x-api-key", "api-key", "authorization")
_TENANT = "x-tenant"
_KEPT_ANSWERS = 1024


def header_name(name: str) -> str:
    """Return a header's name in lower case; raises ValueError."""
    name = name.strip().lower()
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:80]!r} is no name of a header")
    if name in _FRAMING:
        raise ValueError(f"{name!r} says how a message is sent: the proxy writes it itself")
    return name


def _pattern(name: str) -> str:
    stem = name.strip().removesuffix("*")
    if not stem and name.strip() == "*":
        return "*"
    return header_name(stem) + ("*" if name.strip().endswith("*") else "")


def header_value(text: str) -> str:
    """Return a header's value; raises ValueError, which does not show it."""
    if not text.isascii() or not text.isprintable():
        raise ValueError("a header's value is one line of printable ASCII")
    return text


HeaderName = Annotated[str, AfterValidator(header_name)]
HeaderPattern = Annotated[str, AfterValidator(_pattern)]


class HeaderValue(BaseModel):
    """A header's value: as it is, or in a file that is read again when it changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    value: SecretStr | None = None
    value_file: Path | None = None

    @field_validator("value")
    @classmethod
    def _is_a_line(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            header_value(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _is_one(self) -> HeaderValue:
        if (self.value is None) == (self.value_file is None):
            raise ValueError("give one of value and value_file")
        return self


def _in_short(value: Any) -> Any:
    return {"value": value} if isinstance(value, str) else value


class HeaderSettings(BaseModel):
    """Settings of one upstream's headers; names in any case, `*` at the end stands for any rest."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, populate_by_name=True
    )

    pass_: tuple[HeaderPattern, ...] = Field(
        default=DEFAULT_PASSED,
        alias="pass",
        description="Headers of clients that are passed on, and no others; in place of the usual "
        "ones. A client's key passes only where it is named here in full, such as authorization.",
    )
    drop: tuple[HeaderPattern, ...] = Field(
        default=(), description="Headers that are not sent; this wins over `pass`."
    )
    set: dict[HeaderName, Annotated[HeaderValue, BeforeValidator(_in_short)]] = Field(
        default_factory=dict,
        description="Headers that are sent, instead of others of that name: a value, or "
        "`{value_file: PATH}`.",
    )
    tenant_from_key: bool = Field(
        default=False,
        description="Send `X-Tenant` with a hash of the client's key, where it has one and no "
        "`X-Tenant` passes: our predictor keeps the cached prefixes of tenants apart. The proxy's "
        "own predictor gets it in any case; others could tell clients apart by it.",
    )


class HeaderRules:
    """Applies one upstream's rules; made once, asked for each request."""

    def __init__(self, settings: HeaderSettings, clock: Callable[[], float] = monotonic) -> None:
        """Raises ValueError for a file of `set` that cannot be read."""
        self._passed = _Names(settings.pass_)
        self._dropped = _Names(settings.drop)
        self._keys = _WITHHELD.intersection(settings.pass_)
        self._names_tenants = settings.tenant_from_key and (
            _TENANT not in self._dropped and _TENANT not in settings.set
        )
        self._is_kept = lru_cache(_KEPT_ANSWERS)(self._decide)
        self._set = {
            name: SecretText(f"header {name}", value.value, value.value_file, header_value, clock)
            for name, value in settings.set.items()
        }

    @property
    def sets_a_key(self) -> bool:
        """Whether the proxy's own key is among what is set."""
        return any(_CREDENTIAL.search(name) for name in self._set)

    def apply(self, headers: Headers, from_client: Headers | None = None) -> Headers:
        """Return the headers to send, of those that a dialect gives.

        `from_client`: the client's own, all of them; its keys are taken from there where `pass`
        names them. Names are in lower case.
        """
        kept = [pair for pair in headers if self._is_kept(pair[0])]
        if self._keys and from_client is not None:
            kept += [
                pair for pair in from_client if pair[0] in self._keys and self._is_kept(pair[0])
            ]
        kept += [(name, secret.value()) for name, secret in self._set.items()]
        if self._names_tenants and from_client and all(name != _TENANT for name, _ in kept):
            kept += _tenant_of(dict(from_client))
        return kept

    def _decide(self, name: str) -> bool:
        if name in self._set or name in self._dropped.names:
            return False
        if name in DROPPED_HEADERS and name not in self._keys:
            return True  # no header of a client: those of these names never get here
        is_key = _CREDENTIAL.search(name) is not None
        is_passed = name in (self._passed.names if is_key else self._passed)
        return is_passed and name not in self._dropped


def _tenant_of(client: dict[str, str]) -> Headers:
    """Return the header that tells clients apart by their keys, and is of no use as a key."""
    key = next((client[name] for name in _KEYS_OF_TENANTS if client.get(name)), None)
    if key is None:
        return []
    digest = hashlib.sha256(b"x-tenant:" + key.encode("utf-8", "surrogateescape")).hexdigest()
    return [(_TENANT, f"key-{digest[:32]}")]


class _Names:
    """A set of names, some of them by their beginning alone."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.names = frozenset(name for name in patterns if not name.endswith("*"))
        self._beginnings = tuple(name[:-1] for name in patterns if name.endswith("*"))

    def __contains__(self, name: str) -> bool:
        return name in self.names or name.startswith(self._beginnings)

"""A token by OAuth2 client credentials: fetched once for all who wait, renewed before its end.

Source: RFC 6749, 4.4 and 2.3.1; SAP AI Core's service key for what is in `service_key`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote_plus, urlsplit

import structlog
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_core import from_json

from openai_protocol.errors import BadGateway, ErrorCode
from openai_proxy.file_watch import Reloaded, read_secret
from openai_proxy.routing.client_tls import ClientTLS

log = structlog.get_logger("openai_proxy")

# A token is renewed so long before its end, beside the requests; of a short life, a fifth.
RENEW_SECONDS = 60.0
# It may be on its way for so long; of a short life, a tenth.
TRAVEL_SECONDS = 5.0
DEFAULT_LIFE_SECONDS = 300.0  # where the server does not say
_MAX_LIFE_SECONDS = 7 * 86400.0
# So long after a failure the server is left alone, and after a token that was refused.
AFTER_FAILURE_SECONDS = 1.0
AFTER_REFUSAL_SECONDS = 10.0
_ERROR = re.compile(r"[a-z_]{1,64}")  # the standard's codes: they say nothing of the client
_TOKEN = re.compile(r"[!-~]{1,32768}")

# Posts a form to a URL with further headers; returns status and body. OSError: no answer.
PostForm = Callable[[str, dict[str, str], dict[str, str]], Awaitable[tuple[int, bytes]]]


class OAuth2Settings(BaseModel):
    """Where a token is fetched, and as whom: a service key, or all in fields of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    service_key: SecretStr | None = Field(
        default=None, description="Service key as SAP AI Core gives it, a JSON object."
    )
    service_key_file: Path | None = Field(
        default=None, description="File with such a key, read again when it changes."
    )
    token_url: str | None = Field(default=None, description="Where tokens are fetched.")
    client_id: str | None = Field(default=None, min_length=1, description="Name of the client.")
    client_id_file: Path | None = Field(
        default=None, description="File with the name of the client."
    )
    client_secret: SecretStr | None = Field(default=None, description="Its secret.")
    client_secret_file: Path | None = Field(
        default=None, description="File with its secret, read again when it changes."
    )
    scope: str | None = Field(default=None, min_length=1, description="Scopes to ask for.")
    client_auth: Literal["body", "basic"] = Field(
        default="body", description="How the client names itself: in the form, or by HTTP Basic."
    )
    tls: ClientTLS = Field(default_factory=ClientTLS, description="TLS towards the token's server.")

    @field_validator("token_url")
    @classmethod
    def _is_http_url(cls, value: str | None) -> str | None:
        return value if value is None else _token_url(value)

    @model_validator(mode="after")
    def _names_a_client(self) -> OAuth2Settings:
        keys = (self.service_key, self.service_key_file)
        fields = {
            "token_url": (self.token_url,),
            "client_id": (self.client_id, self.client_id_file),
            "client_secret": (self.client_secret, self.client_secret_file),
        }
        if sum(key is not None for key in keys) == 1:
            for name, given in fields.items():
                if any(one is not None for one in given):
                    raise ValueError(f"{name} is in the service key: leave it out")
        else:
            if all(keys):
                raise ValueError("give one of service_key and service_key_file")
            for name, given in fields.items():
                if sum(one is not None for one in given) != 1:
                    also = "" if len(given) == 1 else f" (or {name}_file, not both)"
                    raise ValueError(f"give {name}{also}, or a service_key_file instead of all")
        client_of(self)
        return self


@dataclass(frozen=True, slots=True)
class Client:
    """Who fetches a token, and where."""

    token_url: str
    client_id: str
    client_secret: str = field(repr=False)


def client_of(settings: OAuth2Settings) -> Client:
    """Read what the settings name; raises ValueError, which shows no secret."""
    if settings.service_key is not None:
        return _from_service_key(settings.service_key.get_secret_value(), "service_key")
    if settings.service_key_file is not None:
        text = read_secret(settings.service_key_file, "service_key_file")
        return _from_service_key(text, f"service_key_file: {settings.service_key_file}")
    assert settings.token_url is not None
    client_id = settings.client_id
    if settings.client_id_file is not None:
        client_id = read_secret(settings.client_id_file, "client_id_file")
    if settings.client_secret_file is not None:
        secret = read_secret(settings.client_secret_file, "client_secret_file")
    else:
        assert settings.client_secret is not None
        secret = settings.client_secret.get_secret_value()
    assert client_id is not None
    return Client(settings.token_url, client_id, secret)


def _from_service_key(text: str, what: str) -> Client:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict) and isinstance(value.get("credentials"), dict):
        value = value["credentials"]  # as `cf service-key` prints it
    if not isinstance(value, dict):
        raise ValueError(f"{what}: a service key is a JSON object")
    if "certificate" in value and "clientsecret" not in value:
        raise ValueError(
            f"{what}: this service key has a certificate, no secret: make one with a secret"
        )
    found = {}
    for name in ("clientid", "clientsecret", "url"):
        entry = value.get(name)
        if not isinstance(entry, str) or not entry:
            raise ValueError(f"{what}: the service key has no {name!r}")
        found[name] = entry
    url = found["url"].rstrip("/").removesuffix("/oauth/token")
    return Client(_token_url(f"{url}/oauth/token"), found["clientid"], found["clientsecret"])


def _token_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        is_good = False
    if not is_good or parts.username or parts.password or parts.fragment:
        raise ValueError("the token's URL must look like https://HOST/oauth/token, without a user")
    return text


@dataclass(frozen=True, slots=True)
class _Token:
    authorization: str = field(repr=False)
    renew_at: float
    expires_at: float


class TokenSource:
    """One client's token; owner of the task that fetches it.

    Invariant: at most one fetch runs. While a token is good nobody waits: it is renewed beside.
    """

    def __init__(
        self,
        settings: OAuth2Settings,
        post_form: PostForm,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ValueError for a file that cannot be used."""
        self._settings = settings
        self._post_form = post_form
        self._clock = clock
        files = (settings.service_key_file, settings.client_id_file, settings.client_secret_file)
        self._client = Reloaded(
            [path for path in files if path is not None],
            lambda: client_of(settings),
            on_reload=self._forget,
            on_failure=lambda error: log.error("secret_not_reloaded", reason=str(error)),
            clock=clock,
        )
        self._token: _Token | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._failed_at: float | None = None
        self._refused_at: float | None = None
        url = urlsplit(self._client.value().token_url)
        if url.scheme == "http" and url.hostname not in _HERE:
            log.warning("token_url_without_tls", host=url.hostname)

    async def authorization(self) -> str:
        """Return the header's value; raises BadGateway where no token can be had."""
        self._client.value()  # a changed secret forgets the token
        token = self._token
        if token is not None and self._clock() < token.expires_at:
            if self._clock() >= token.renew_at:
                self._fetch()
            return token.authorization
        fetching = self._fetch()
        if fetching is not None:
            await asyncio.shield(fetching)  # who leaves does not take it from the others
        if self._token is None or self._clock() >= self._token.expires_at:
            raise BadGateway(
                "The proxy could not authenticate itself to the upstream.",
                code=ErrorCode.UPSTREAM_ERROR,
            )
        return self._token.authorization

    def invalidate(self, refused: str | None) -> bool:
        """Forget a token that was refused; returns whether to try with another one."""
        if self._token is None or refused not in (None, self._token.authorization):
            return True  # others had it renewed meanwhile, or are just having it renewed
        now = self._clock()
        if self._refused_at is not None and now - self._refused_at < AFTER_REFUSAL_SECONDS:
            return False  # a new one is refused as well: it is not the token
        self._refused_at = now
        self._token = None
        return True

    async def close(self) -> None:
        """Fetch no more."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    def _forget(self) -> None:
        log.info("secret_reloaded", secret="oauth2")  # noqa: S106  # its name
        self._token = None
        self._failed_at = None

    def _fetch(self) -> asyncio.Task[None] | None:
        """Return the running fetch, or a new one; None so soon after a failure."""
        if self._fetching is not None and not self._fetching.done():
            return self._fetching
        failed_at = self._failed_at
        if failed_at is not None and self._clock() - failed_at < AFTER_FAILURE_SECONDS:
            return None
        self._fetching = asyncio.create_task(self._fetch_token(self._client.value()))
        return self._fetching

    async def _fetch_token(self, client: Client) -> None:
        began_at = self._clock()
        form, headers = _token_request(client, self._settings)
        reason, status = "no answer", None
        try:
            status, body = await self._post_form(client.token_url, form, headers)
            if status == 200:
                self._token = _token(body, began_at)
                self._failed_at = None
                return
            reason = _error_code(body)
        except OSError:
            pass
        except ValueError as error:
            reason = str(error)
        self._failed_at = self._clock()
        host = urlsplit(client.token_url).hostname
        log.warning("token_not_fetched", host=host, status=status, reason=reason)


_HERE = frozenset({"localhost", "127.0.0.1", "::1"})


def _token_request(
    client: Client, settings: OAuth2Settings
) -> tuple[dict[str, str], dict[str, str]]:
    form = {"grant_type": "client_credentials"}
    headers = {"accept": "application/json"}
    if settings.scope is not None:
        form["scope"] = settings.scope
    if settings.client_auth == "basic":
        pair = f"{quote_plus(client.client_id)}:{quote_plus(client.client_secret)}"
        headers["authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    else:
        form["client_id"] = client.client_id
        form["client_secret"] = client.client_secret
    return form, headers


def _token(body: bytes, began_at: float) -> _Token:
    """Read a token's answer; raises ValueError, which shows nothing of it."""
    value = _json_object(body)
    token, kind = value.get("access_token"), value.get("token_type", "bearer")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise ValueError("the answer has no access_token")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise ValueError("the token is not of type bearer")
    life = _life_seconds(value.get("expires_in"))
    return _Token(
        f"Bearer {token}",
        renew_at=began_at + life - min(RENEW_SECONDS, life / 5),
        expires_at=began_at + life - min(TRAVEL_SECONDS, life / 10),
    )


def _life_seconds(value: Any) -> float:
    """Return how long a token lives; some servers write the number as text."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 16:
        value = int(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not value > 0:
        return DEFAULT_LIFE_SECONDS
    return min(float(value), _MAX_LIFE_SECONDS)


def _error_code(body: bytes) -> str:
    try:
        code = _json_object(body).get("error")
    except ValueError:
        code = None
    return code if isinstance(code, str) and _ERROR.fullmatch(code) else "refused"


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = from_json(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError("the answer is no JSON object")
    return value

"""What an upstream wants to see of the proxy: a key, or a token that is fetched and renewed.

    credentials: {authorization_file: /secrets/key}

    credentials:
      oauth2: {service_key_file: /secrets/ai-core.json}
      resource_group: default

Source: RFC 6749, 4.4 (client credentials); the service key is as SAP AI Core gives it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from openai_proxy.dialects.base import Headers
from openai_proxy.routing.headers import header_value
from openai_proxy.routing.oauth2 import OAuth2Settings, PostForm, TokenSource
from openai_proxy.routing.secret_text import SecretText


class CredentialSettings(BaseModel):
    """Settings of one upstream's credentials: a key or OAuth2, not both."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    authorization: SecretStr | None = Field(
        default=None,
        description="Value of the Authorization header; a single word is a token, and gets Bearer "
        "in front.",
    )
    authorization_file: Path | None = Field(
        default=None, description="File that holds it, read again when it changes."
    )
    oauth2: OAuth2Settings | None = Field(
        default=None, description="Where a token for it is fetched, by client credentials."
    )
    resource_group: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Value of the header AI-Resource-Group, which SAP AI Core wants.",
    )

    @field_validator("authorization")
    @classmethod
    def _is_a_line(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _authorization(value.get_secret_value())
        return value

    @field_validator("resource_group")
    @classmethod
    def _is_a_value(cls, value: str | None) -> str | None:
        return value if value is None else header_value(value)

    @model_validator(mode="after")
    def _is_one(self) -> CredentialSettings:
        given = (self.authorization, self.authorization_file, self.oauth2)
        if sum(one is not None for one in given) > 1:
            raise ValueError("give one of authorization, authorization_file and oauth2")
        return self


class _Source(Protocol):
    async def authorization(self) -> str: ...

    def invalidate(self, refused: str | None) -> bool: ...

    async def close(self) -> None: ...


class Credentials:
    """One upstream's credentials; made once, in the event loop; `close` it at the end."""

    def __init__(
        self,
        settings: CredentialSettings,
        post_form: PostForm,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ValueError for a file that cannot be used."""
        self._source: _Source | None = None
        if settings.oauth2 is not None:
            self._source = TokenSource(settings.oauth2, post_form, clock)
        elif settings.authorization is not None or settings.authorization_file is not None:
            self._source = _Fixed(settings, clock)
        group = settings.resource_group
        self._others = [] if group is None else [("ai-resource-group", group)]

    async def headers(self) -> Headers:
        """Return the headers for a request; raises BadGateway where no token can be had."""
        if self._source is None:
            return list(self._others)
        return [("authorization", await self._source.authorization()), *self._others]

    def invalidate(self, refused: Headers | None = None) -> bool:
        """Tell that the upstream answered 401 to these headers; returns whether to try once more.

        It does not make sense where they are as fixed as a key, or were fetched just now.
        """
        if self._source is None:
            return False
        sent = dict(refused or ()).get("authorization")
        return self._source.invalidate(sent)

    async def close(self) -> None:
        """Fetch no more."""
        if self._source is not None:
            await self._source.close()


class _Fixed:
    """A key from the configuration or a file."""

    def __init__(self, settings: CredentialSettings, clock: Callable[[], float]) -> None:
        self._secret = SecretText(
            "authorization",
            settings.authorization,
            settings.authorization_file,
            _authorization,
            clock,
        )

    async def authorization(self) -> str:
        return self._secret.value()

    def invalidate(self, refused: str | None) -> bool:
        """Look whether the file has another key by now."""
        before = self._secret.value()
        return self._secret.value(now=True) != (refused or before)

    async def close(self) -> None:
        """There is nothing to close."""


def _authorization(text: str) -> str:
    """Return a header's value: with a scheme as it is, a token alone as Bearer."""
    value = header_value(text.strip())
    if not value:
        raise ValueError("authorization is empty")
    return value if " " in value else f"Bearer {value}"

"""Settings of the proxy's edge towards clients: hosts, CORS and TLS."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from http_edge.hosts import checked_host
from openai_proxy.config.types import NoDecode
from openai_proxy.cors import EXPOSED_HEADERS, Cors, checked_origin
from openai_proxy.routing.headers import header_name
from openai_proxy.tls import ServerTLS, server_context

_ANY_HOST = ("null", "*")


class EdgeSettings(BaseModel):
    """Which pages may use the proxy from a browser, and how connections to it are protected."""

    cors_allow_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins whose pages may use the proxy from a browser, with commas between: "
        "`https://app.example.com`, `https://*.example.com`, `http://localhost:*`, or `*` for any. "
        "By default none, and nothing is said of CORS.",
    )
    cors_allow_credentials: bool = Field(
        False, description="Let these pages send cookies and certificates of their visitors along."
    )
    cors_expose_headers: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Headers of answers that pages may read besides "
        f"{', '.join(EXPOSED_HEADERS)}, with commas between.",
    )
    cors_max_age_seconds: int = Field(
        600, ge=0, le=86400, description="How long browsers remember what a page may do."
    )

    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Hosts that the proxy may be asked for, with commas between: "
        "`app.example.com`, `*.example.com`, or `*` for any; besides these, localhost and the "
        "address that a request has come to. By default no others on loopback, and any elsewhere.",
    )

    tls_cert_file: Path | None = Field(
        None,
        description="Certificate chain of the proxy, as PEM: with it, HTTPS is spoken and HTTP no "
        "more. Read again when it changes.",
    )
    tls_key_file: Path | None = Field(None, description="Its private key, as PEM.")
    tls_client_ca_file: Path | None = Field(
        None,
        description="Authorities of clients, as PEM: with it, every request but those for "
        "/health/live and /health/ready needs a certificate of theirs.",
    )
    tls_min_version: Literal["1.2", "1.3"] = Field(
        "1.2", description="Oldest version of TLS that is spoken."
    )

    @field_validator("cors_allow_origins", "cors_expose_headers", "allowed_hosts", mode="before")
    @classmethod
    def _split_lists(cls, value: Any) -> Any:
        """Take a list as text: with commas, or, as the chart writes it, as JSON."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            try:
                return tuple(json.loads(value))
            except ValueError:
                raise ValueError("must be a list with commas between, or one in JSON") from None
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("cors_allow_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(checked_origin(origin) for origin in value)

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(checked_host(host) for host in value)

    @field_validator("cors_expose_headers")
    @classmethod
    def _are_header_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(header_name(name) for name in value)

    @model_validator(mode="after")
    def _names_who_has_credentials(self) -> EdgeSettings:
        if not self.cors_allow_credentials:
            return self
        if not self.cors_allow_origins:
            raise ValueError("--cors-allow-credentials needs --cors-allow-origins")
        for origin in self.cors_allow_origins:
            if origin.rpartition("//")[2].partition(":")[0] in _ANY_HOST:
                raise ValueError(
                    "--cors-allow-credentials would let any page act as its visitor with "
                    f"--cors-allow-origins {origin}: name the origins"
                )
        return self

    @model_validator(mode="after")
    def _has_usable_certificates(self) -> EdgeSettings:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            given, missing = "--tls-cert-file", "--tls-key-file"
            if self.tls_cert_file is None:
                given, missing = missing, given
            raise ValueError(f"{given} needs {missing}: a certificate is of use with its key alone")
        if self.tls is None:
            if self.tls_client_ca_file is not None:
                raise ValueError("--tls-client-ca-file needs --tls-cert-file and --tls-key-file")
            return self
        try:
            server_context(self.tls)
        except ValueError as error:
            raise ValueError(_as_flags(str(error))) from None
        return self

    @property
    def cors(self) -> Cors | None:
        """Who may use the proxy from a browser; None where nothing is said of that."""
        if not self.cors_allow_origins:
            return None
        exposed = dict.fromkeys((*EXPOSED_HEADERS, *self.cors_expose_headers))
        return Cors(
            self.cors_allow_origins,
            self.cors_allow_credentials,
            tuple(exposed),
            self.cors_max_age_seconds,
        )

    @property
    def tls(self) -> ServerTLS | None:
        """The files for TLS; None where HTTP is spoken."""
        if self.tls_cert_file is None or self.tls_key_file is None:
            return None
        return ServerTLS(
            self.tls_cert_file,
            self.tls_key_file,
            self.tls_client_ca_file,
            _VERSIONS[self.tls_min_version],
        )


_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def _as_flags(text: str) -> str:
    for name in ("tls_cert_file", "tls_key_file", "tls_client_ca_file"):
        text = text.replace(name, "--" + name.replace("_", "-"))
    return text

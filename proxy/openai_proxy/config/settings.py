"""All settings of the proxy: flags, then the environment, then defaults; one frozen object.

    settings = load({"port": "9000", "upstream_url": "http://127.0.0.1:8080"})

Every setting is a flag (`--max-body-bytes`) and a variable (`OPENAI_PROXY_MAX_BODY_BYTES`).
`ConfigError` names the setting and how to mend it. Each group of settings has a module of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from openai_proxy.config.backend import BackendSettings
from openai_proxy.config.logging import LoggingSettings
from openai_proxy.config.models import ModelsSettings
from openai_proxy.config.server import ServerSettings
from openai_proxy.config.upstreams import DEFAULT_UPSTREAM, UpstreamsSettings

ENV_PREFIX = "OPENAI_PROXY_"


class ConfigError(Exception):
    """A setting is wrong; the text is one line that names it and says how to mend it."""


class Settings(
    # the last comes first in --help and in the documentation
    LoggingSettings,
    BackendSettings,
    ModelsSettings,
    UpstreamsSettings,
    ServerSettings,
    BaseSettings,
):
    """All settings of the proxy; frozen. Build it with `load`.

    No setting holds a secret: `upstream_url` refuses credentials, `backend_args` are not shown.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid"
    )

    @model_validator(mode="after")
    def _has_one_upstream(self) -> Settings:
        given = (
            self.upstream_url is not None,
            bool(self.upstreams),
            self.backend is not None,
            self.without_upstream,
        )
        if sum(given) != 1:
            raise ValueError(
                "give one of --upstream-url (a server that runs already; `upstreams` in the file "
                "for several), --backend (one that the proxy starts) and --without-upstream "
                "(neither, for now)"
            )
        if self.backend is not None and self.model_path is None:
            raise ValueError(f"--backend {self.backend} needs --model-path")
        if not self.all_upstreams and not self.probe_interval_seconds:
            raise ValueError(
                "--probe-interval-seconds 0 is for an --upstream-url: give more without one"
            )
        names = {upstream.name for upstream in self.all_upstreams} or {DEFAULT_UPSTREAM}
        for name, model in self.models.items():
            if model.upstream is not None and model.upstream not in names:
                raise ValueError(
                    f"models.{name}.upstream is {model.upstream!r}, but there is none of that "
                    f"name: take one of {', '.join(sorted(names))}"
                )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment; no dotenv file, no directory of secrets."""
        return (init_settings, _Environment(settings_cls))


class _Environment(EnvSettingsSource):
    """The environment, less what Kubernetes puts into it for a Service named openai-proxy."""

    def __call__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in super().__call__().items()
            if not (isinstance(value, str) and _SERVICE_LINK.match(value))
        }


_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")


def load(flags: Mapping[str, Any]) -> Settings:
    """Build the settings from flags (see `flags.parse`), the environment and the defaults.

    Raises ConfigError.
    """
    try:
        return Settings(**flags)
    except ValidationError as error:
        raise ConfigError(_explain(error, flags)) from None


def flag_of(name: str) -> str:
    """Return a setting's flag: `--max-body-bytes`."""
    return "--" + ("backend-arg" if name == "backend_args" else name.replace("_", "-"))


def variable_of(name: str) -> str:
    """Return a setting's environment variable: `OPENAI_PROXY_MAX_BODY_BYTES`."""
    return ENV_PREFIX + name.upper()


def _explain(error: ValidationError, flags: Mapping[str, Any]) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    reason = first["msg"].removeprefix("Value error, ")
    reason = reason[:1].lower() + reason[1:]
    if not first["loc"]:
        return reason
    name = str(first["loc"][0])
    given = flags.get(name, os.environ.get(variable_of(name), ""))
    shown = "" if name in _MAY_HOLD_SECRETS else f" (it is {str(given)[:80]!r})"
    where = flag_of(name) if name in flags else variable_of(name)
    also = variable_of(name) if name in flags else flag_of(name)
    return f"{where}: {reason}{shown}; the same setting is {also}, see --help"


_MAY_HOLD_SECRETS = frozenset({"upstream_url", "backend_args"})

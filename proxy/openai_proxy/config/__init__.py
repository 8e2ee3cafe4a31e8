"""The proxy's settings: one frozen object, made of groups; see `settings`."""

from openai_proxy.config.settings import (
    ENV_PREFIX,
    ConfigError,
    Settings,
    flag_of,
    load,
    variable_of,
)

__all__ = ["ENV_PREFIX", "ConfigError", "Settings", "flag_of", "load", "variable_of"]

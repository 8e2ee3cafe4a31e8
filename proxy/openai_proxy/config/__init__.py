"""The proxy's settings: one frozen object, made of groups (`settings`) from layers (`loading`)."""

from openai_proxy.config.errors import ConfigError
from openai_proxy.config.loading import Flags, Loaded, load, load_all
from openai_proxy.config.names import ENV_PREFIX, Kind, flag_of, kind_of, variable_of
from openai_proxy.config.settings import Settings

__all__ = [
    "ENV_PREFIX",
    "ConfigError",
    "Flags",
    "Kind",
    "Loaded",
    "Settings",
    "flag_of",
    "kind_of",
    "load",
    "load_all",
    "variable_of",
]

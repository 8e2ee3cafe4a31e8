"""Names that settings have in the systems that this proxy replaces: data, for code, docs and tests.

A setting's own name wins over an alias of the same layer; two aliases that disagree are an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from openai_proxy.config import readings
from openai_proxy.config.readings import as_it_is

INFERENCE_SERVICE = "Inference Service"
DETERMINISTIC = "Deterministic Inference Server"
SEMINSTRUCT = "SemInstruct"
SEMANTIC_EXPLORER = "LLM Inference API"
SHIMMY_PROXY = "Shimmy OpenAI Proxy"
# The form of GET /health that each has, for those who ask for it there
HEALTH_FORMS = {
    INFERENCE_SERVICE: "inference-service",
    DETERMINISTIC: "deterministic",
    SEMINSTRUCT: "seminstruct",
    SEMANTIC_EXPLORER: "semantic-explorer",
    SHIMMY_PROXY: "shimmy",
}
Reading = Callable[[Any], Any]
_ANY = "0.0.0.0"  # noqa: S104  # an example, not listened on


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name of a setting; `example`, as its document has it, means `meaning` to us."""

    name: str
    setting: str
    system: str
    example: str
    meaning: Any
    read: Reading = as_it_is
    # Other settings that it gives, too, each with what its value means there
    also: Mapping[str, Reading] = field(default_factory=dict)
    # Settings that follow from this one where nobody gives them
    implies: Mapping[str, Any] = field(default_factory=dict)
    # Whether others use it, too: then it does not tell which system is replaced
    is_general: bool = False
    # What it means instead where the proxy runs a backend; the value is then taken as it is
    with_backend: str | None = None

    @property
    def is_flag(self) -> bool:
        """Whether it is a flag: `--proxy-port`."""
        return self.name.startswith("--")

    @property
    def is_key(self) -> bool:
        """Whether it is a key of the configuration file: `server.port`."""
        return "." in self.name

    @property
    def is_variable(self) -> bool:
        """Whether it is an environment variable: `SEMINSTRUCT_PORT`."""
        return not self.is_flag and not self.is_key

    @property
    def readings(self) -> Mapping[str, Reading]:
        """What its value means, for each setting that it gives."""
        return {self.setting: self.read, **self.also}


# Keys of the file, each with its variable INFERENCE_<SECTION>_<KEY>. The last two of `inference`
# are told by that system's /health.
_FILE_KEYS: tuple[tuple[str, str, str, Any, Reading], ...] = (
    ("server.host", "host", _ANY, _ANY, as_it_is),
    ("server.port", "port", "3000", 3000, as_it_is),
    ("inference.provider", "upstream_dialect", "lmstudio", "openai", readings.dialect),
    (
        "inference.base_url",
        "upstream_url",
        "http://127.0.0.1:1234/v1",
        "http://127.0.0.1:1234/v1",
        as_it_is,
    ),
    ("inference.default_model", "default_model", "gpt-oss-20b", "gpt-oss-20b", as_it_is),
    (
        "inference.allowed_models",
        "allowed_models",
        "gpt-oss-20b,llama-2-7b,mistral-7b",
        ("gpt-oss-20b", "llama-2-7b", "mistral-7b"),
        readings.names,
    ),
    ("inference.timeout_secs", "request_timeout_seconds", "30", 30, as_it_is),
    ("inference.connect_timeout_secs", "connect_timeout_seconds", "30", 30, as_it_is),
    ("inference.max_retries", "max_retries", "3", 3, as_it_is),
    ("logging.level", "log_level", "info", "info", readings.level),
    ("logging.format", "log_format", "pretty", "pretty", readings.log_form),
    ("logging.output", "log_file", "stdout", None, readings.log_output),
)

# Each is a flag, --model-path, and a variable, INFERENCE_MODEL_PATH.
_FLAGS: tuple[tuple[str, str, str, Any, Reading], ...] = (
    ("model-path", "model_path", "/path/to/model", "/path/to/model", as_it_is),
    ("backend", "backend", "sglang", "sglang", as_it_is),
    ("backend-host", "backend_host", "127.0.0.1", "127.0.0.1", as_it_is),
    ("backend-port", "backend_port", "30000", 30000, as_it_is),
    ("backend-startup-timeout", "backend_startup_timeout", "600", 600, as_it_is),
    ("proxy-host", "host", _ANY, _ANY, as_it_is),
    ("proxy-port", "port", "8080", 8080, as_it_is),
    ("log-level", "log_level", "INFO", "info", readings.level),
    (
        "log-file",
        "log_file",
        "/var/log/inference.log",
        "/var/log/inference.log",
        as_it_is,
    ),
)

_VARIABLES = (
    Alias(
        "SEMINSTRUCT_SHIMMY_URL",
        "upstream_url",
        SEMINSTRUCT,
        "http://localhost:8080",
        "http://localhost:8080",
        implies={"upstream_dialect": "shimmy"},
    ),
    Alias("SEMINSTRUCT_PORT", "port", SEMINSTRUCT, "8083", 8083),
    Alias("SEMINSTRUCT_TIMEOUT_SECONDS", "request_timeout_seconds", SEMINSTRUCT, "120", 120),
    Alias("SEMINSTRUCT_MAX_RETRIES", "max_retries", SEMINSTRUCT, "3", 3),
    Alias(
        "RUST_LOG",
        "log_level",
        SEMINSTRUCT,
        "info,hyper=warn",
        "info",
        readings.rust_log,
        is_general=True,
    ),
    Alias("LLM_INFERENCE_PORT", "port", SEMANTIC_EXPLORER, "8091", 8091),
    Alias(
        "LLM_DEFAULT_MODEL",
        "default_model",
        SEMANTIC_EXPLORER,
        "mistralai/Mistral-7B-Instruct-v0.2",
        "mistralai/Mistral-7B-Instruct-v0.2",
    ),
    Alias(
        "LLM_ALLOWED_MODELS",
        "allowed_models",
        SEMANTIC_EXPLORER,
        "mistral-7b, zephyr-7b",
        ("mistral-7b", "zephyr-7b"),
        readings.names,
    ),
    Alias("LLM_DEFAULT_TEMPERATURE", "default_temperature", SEMANTIC_EXPLORER, "0.7", 0.7),
    Alias("LLM_DEFAULT_MAX_TOKENS", "default_max_tokens", SEMANTIC_EXPLORER, "512", 512),
    Alias("LLM_MAX_TOKENS_LIMIT", "max_tokens_limit", SEMANTIC_EXPLORER, "4096", 4096),
    Alias("LLM_MAX_CONCURRENT_REQUESTS", "max_concurrent_requests", SEMANTIC_EXPLORER, "16", 16),
    Alias("HF_HOME", "model_cache_dir", SEMANTIC_EXPLORER, "/models", "/models", is_general=True),
    Alias(
        "SHIMMY_PORT",
        "upstream_url",
        SHIMMY_PROXY,
        "8080",
        "http://127.0.0.1:8080",
        readings.local_url,
        implies={"upstream_dialect": "shimmy"},
        with_backend="backend_port",
    ),
    Alias(
        "LOG_LEVEL", "log_level", SHIMMY_PROXY, "debug", "debug", readings.level, is_general=True
    ),
)


def _of_the_file() -> tuple[Alias, ...]:
    found = []
    for key, setting, example, meaning, read in _FILE_KEYS:
        variable = "INFERENCE_" + key.replace(".", "_").upper()
        # a provider's name is also what /health calls it
        also = {"provider": readings.provider} if key == "inference.provider" else {}
        found += [
            Alias(name, setting, INFERENCE_SERVICE, example, meaning, read, also)
            for name in (key, variable)
        ]
    return tuple(found)


def _of_flags() -> tuple[Alias, ...]:
    found = []
    for flag, setting, example, meaning, read in _FLAGS:
        variable = "INFERENCE_" + flag.replace("-", "_").upper()
        found += [
            Alias(name, setting, DETERMINISTIC, example, meaning, read, is_general=is_ours)
            for name, is_ours in (
                (f"--{flag}", flag == setting.replace("_", "-")),
                (variable, False),
            )
        ]
    return tuple(found)


ALIASES = (*_of_the_file(), *_of_flags(), *_VARIABLES)
BY_NAME = {alias.name: alias for alias in ALIASES}
# The file's mappings that hold such keys: server, inference, logging
SECTIONS = frozenset(alias.name.split(".")[0] for alias in ALIASES if alias.is_key)
# Variables of those documents that a backend reads itself: it gets the proxy's environment.
PASSED_ON = ("CUDA_VISIBLE_DEVICES", "HF_ENDPOINT")


def health_form(names: Iterable[str]) -> str | None:
    """Return the form of GET /health that goes with names of settings in use, None for any.

    With names of several systems it is that which has the fields of all.
    """
    used = (BY_NAME[name] for name in names if name in BY_NAME)
    systems = {alias.system for alias in used if not alias.is_general}
    if len(systems) > 1:
        return "superset"
    return next((HEALTH_FORMS[system] for system in systems), None)


def agree(one: Any, other: Any) -> bool:
    """Tell whether two values are the same setting: 30 and "30.0", a URL with and without slash."""
    return bool(_plain(one) == _plain(other))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    text = str(value).strip().rstrip("/")
    try:
        return float(text)
    except ValueError:
        return text.lower() if isinstance(value, bool) else text

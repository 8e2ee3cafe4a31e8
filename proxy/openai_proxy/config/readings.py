"""What the values of other programs' settings mean as settings of ours.

Each function takes a value as it was given, text or what a YAML file holds, and returns ours; None
where it says nothing. What it does not know it returns as it is, for the setting's own check.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_LEVELS = {
    "trace": "debug",
    "debug": "debug",
    "info": "info",
    "warn": "warning",
    "warning": "warning",
    "error": "error",
    "critical": "error",
    "fatal": "error",
    "off": "error",
}
# Rust's loggers take numbers, too
_RUST_LEVELS = _LEVELS | {
    "0": "error",
    "1": "error",
    "2": "warning",
    "3": "info",
    "4": "debug",
    "5": "debug",
}
# The programs whose own lines a directive of RUST_LOG may be about
_RUST_PROGRAMS = frozenset(
    {"seminstruct", "inference_server", "inference_service", "llm_inference_api"}
)
# Servers with an API of OpenAI's form, which is what that system's base_url is about, by their
# names without dashes; those that also have one of their own are meant with OpenAI's.
_OPENAI_PROVIDERS = frozenset(
    {
        *("openai", "lmstudio", "ollama", "vllm", "sglang", "tgi", "llamacpp", "llamaserver"),
        *("llamafile", "localai", "jan", "mistralrs"),
    }
)
_CONSOLE = frozenset({"stdout", "stderr", "console"})


def as_it_is(value: Any) -> Any:
    """Return the value."""
    return value


def level(value: Any) -> Any:
    """Return a log level, whatever its case: `WARN` is warning, `trace` debug."""
    return _LEVELS.get(str(value).strip().lower(), value)


def rust_log(value: Any) -> Any:
    """Return the level that RUST_LOG gives to everything, else to a program that we replace.

    `info,hyper=warn` is info. Other programs' levels are left out, and so is what is no directive,
    as Rust's loggers do it.
    """
    general = own = None
    for directive in str(value).partition("/")[0].split(","):
        target, _, text = directive.strip().rpartition("=")
        found = _RUST_LEVELS.get(text.strip().lower())
        if not target and found is not None:
            general = found
        elif not target and _is_ours(text):
            own = "debug"  # a name without a level asks for everything
        elif found is not None and _is_ours(target):
            own = found
    return general or own


def _is_ours(target: str) -> bool:
    return re.split(r"\[|::", target, maxsplit=1)[0].strip().replace("-", "_") in _RUST_PROGRAMS


def names(value: Any) -> Any:
    """Return names that are separated by commas, or in a list."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return tuple(value) if isinstance(value, Sequence) else value


def provider(value: Any) -> Any:
    """Return a provider's name, in lower case."""
    return str(value).strip().lower()


def dialect(value: Any) -> Any:
    """Return the dialect of a provider: LM Studio speaks OpenAI's, shimmy its own."""
    text = provider(value)
    return "openai" if re.sub(r"[-_. ]", "", text) in _OPENAI_PROVIDERS else text


def local_url(value: Any) -> Any:
    """Return the URL of a port on this machine."""
    return f"http://127.0.0.1:{value}"


def log_form(value: Any) -> Any:
    """Return a form of log lines in lower case."""
    return str(value).strip().lower()


def log_output(value: Any) -> Any:
    """Return the file that logs go to; None for the console, where they go anyway.

    Raises ValueError.
    """
    text = str(value).strip()
    if text.lower() == "file":
        raise ValueError("must be stdout, or the path of a file")
    return None if text.lower() in _CONSOLE else text

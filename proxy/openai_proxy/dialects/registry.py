"""From a dialect's name and options to the dialect; each is imported only where it is used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from openai_proxy.dialects.base import Dialect, Render
from openai_proxy.dialects.parameters import Unsupported

# Of each dialect its class, and the options that its constructor takes.
_DIALECTS: dict[str, tuple[str, str, frozenset[str]]] = {
    "openai": ("openai_proxy.dialects.openai", "OpenAIDialect", frozenset()),
    "shimmy": ("openai_proxy.dialects.shimmy", "ShimmyDialect", frozenset({"path"})),
    "ollama": (
        "openai_proxy.dialects.ollama",
        "OllamaDialect",
        frozenset({"num_ctx", "keep_alive"}),
    ),
    "tgi": ("openai_proxy.dialects.tgi", "TgiDialect", frozenset({"max_stop_strings"})),
    "sglang": ("openai_proxy.dialects.sglang", "SglangDialect", frozenset({"stream_output"})),
}


def make_dialect(
    name: str,
    options: Mapping[str, Any],
    unsupported: Unsupported = "refuse",
    render: Render | None = None,
) -> Dialect:
    """Return a dialect; raises ValueError, in words for whoever wrote the options."""
    module, kind, known = _DIALECTS[name]
    for option in options:
        if option not in known:
            those = ", ".join(sorted(known)) or "none"
            raise ValueError(f"the {name} dialect has no option {option!r}: it has {those}")
    make = getattr(importlib.import_module(module), kind)
    if name == "openai":
        return make()  # type: ignore[no-any-return]  # looked up by its name
    return make(unsupported=unsupported, render=render, **options)  # type: ignore[no-any-return]

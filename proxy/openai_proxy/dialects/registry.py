"""From a dialect's name and options to the dialect; each is imported only where it is used."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from openai_proxy.dialects.base import Dialect, Render
from openai_proxy.dialects.parameters import Unsupported

_DIALECTS = {
    "openai": ("openai_proxy.dialects.openai", "OpenAIDialect"),
    "kserve-v1": ("openai_proxy.dialects.kserve_v1", "KServeV1Dialect"),
    "kserve-v2": ("openai_proxy.dialects.kserve_v2", "KServeV2Dialect"),
    "triton": ("openai_proxy.dialects.triton", "TritonDialect"),
    "shimmy": ("openai_proxy.dialects.shimmy", "ShimmyDialect"),
    "ollama": ("openai_proxy.dialects.ollama", "OllamaDialect"),
    "tgi": ("openai_proxy.dialects.tgi", "TgiDialect"),
    "sglang": ("openai_proxy.dialects.sglang", "SglangDialect"),
}


def make_dialect(
    name: str,
    options: Mapping[str, Any],
    unsupported: Unsupported = "refuse",
    render: Render | None = None,
) -> Dialect:
    """Return a dialect; raises ValueError, in words for whoever wrote the options.

    A dialect's options are what its constructor takes. One that passes bytes needs neither a
    template nor a rule for what its upstream lacks.
    """
    module, kind = _DIALECTS[name]
    make = getattr(importlib.import_module(module), kind)
    takes = set(inspect.signature(make).parameters)
    given: dict[str, Any] = {"unsupported": unsupported, "render": render}
    known = takes - given.keys()
    for option in options:
        if option not in known:
            those = ", ".join(sorted(known)) or "none"
            raise ValueError(f"the {name} dialect has no option {option!r}: it has {those}")
    given = {name: value for name, value in given.items() if name in takes}
    return make(**given, **options)  # type: ignore[no-any-return]  # looked up by its name

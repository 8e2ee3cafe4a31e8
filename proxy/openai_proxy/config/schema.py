"""The JSON schema of the configuration file, for editors."""

from __future__ import annotations

import json
from typing import Any

from openai_proxy.config.aliases import ALIASES
from openai_proxy.config.settings import Settings

# A default that differs from machine to machine
_LOCAL_DEFAULTS = ("backend_python",)


def build() -> dict[str, Any]:
    """Return the schema: every setting, and the keys of other systems' files that work as well."""
    schema = Settings.model_json_schema()
    properties = schema.pop("properties")
    for name in _LOCAL_DEFAULTS:
        properties[name].pop("default", None)
    schema.pop("description", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Configuration of the OpenAI proxy",
        "properties": properties | _sections(properties),
    }


def text() -> str:
    """Return the schema as it is published."""
    return json.dumps(build(), indent=2, ensure_ascii=False) + "\n"


def _sections(properties: dict[str, Any]) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    for alias in ALIASES:
        if not alias.is_key:
            continue
        section, key = alias.name.split(".")
        held = sections.setdefault(
            section,
            {
                "type": "object",
                "description": f"As the {alias.system} has it.",
                "deprecated": True,
                "additionalProperties": False,
                "properties": {},
            },
        )
        # Their values are not always ours: `logging.level: WARN`, `inference.provider: lmstudio`.
        held["properties"][key] = {"description": f"{alias.setting}, as it is called here."}
    return sections

"""What is written of the proxy's settings elsewhere: a table, and the chart's schema of them.

    python -m tests.docs.proxy_settings

writes both anew: the table of docs/proxy-settings.md, and `proxy.config` in the chart's schema.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from openai_proxy.config import Settings, flag_of, variable_of

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "proxy-settings.md"
SCHEMA = ROOT / "charts" / "kserve-llamacpp" / "values.schema.json"
_BEGIN, _END = "<!-- settings -->\n", "<!-- end of settings -->\n"
# The chart gives these itself: the upstream, the port of Service and probes, no backend in the pod.
NOT_IN_THE_CHART = {
    "host",
    "port",
    "upstream_url",
    "without_upstream",
    "model_path",
    "model_name",
}
_SAID_ELSEWHERE = ("title", "description", "default", "writeOnly", "format")
_DEFAULTS = {"backend_python": "its own"}


def table() -> str:
    """Return the document's table."""
    rows = ["| flag | variable | default | what |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        text = (field.description or "").replace("|", "\\|")
        rows.append(
            f"| `{flag_of(name)}` | `{variable_of(name)}` | {_default(name, field)} | {text} |"
        )
    return "\n".join(rows) + "\n"


def with_table(document: str) -> str:
    """Return the document with the table in its place."""
    before, rest = document.split(_BEGIN)
    return f"{before}{_BEGIN}\n{table()}\n{_END}{rest.split(_END)[1]}"


def with_settings(schema: str) -> str:
    """Return the chart's schema with all settings that its users may give."""
    value = json.loads(schema)
    settings = Settings.model_json_schema()
    definitions = settings.get("$defs", {})
    value["properties"]["proxy"]["properties"]["config"]["properties"] = {
        name: _plain(settings["properties"][name], definitions)
        for name in Settings.model_fields
        if name not in NOT_IN_THE_CHART and not name.startswith("backend")
    }
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _default(name: str, field: FieldInfo) -> str:
    if name in _DEFAULTS:
        return _DEFAULTS[name]
    value = field.get_default(call_default_factory=True)
    if value is None or value is False or value in ((), [], {}):
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _plain(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return a schema without references, and without what the documentation says."""
    if isinstance(schema, list):
        return [_plain(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _plain(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    plain = {}
    for key, value in schema.items():
        if key == "properties":
            plain[key] = {name: _plain(item, definitions) for name, item in value.items()}
        elif key not in _SAID_ELSEWHERE:
            plain[key] = _plain(value, definitions)
    return plain


def write() -> None:
    """Write both anew."""
    for path, made in ((DOCUMENT, with_table), (SCHEMA, with_settings)):
        path.write_text(made(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()

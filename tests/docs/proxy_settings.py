"""What is written of the proxy's settings elsewhere: tables, and schemas of their file.

    python -m tests.docs.proxy_settings

writes them anew: the table of docs/proxy-settings.md, the aliases in docs/configuration.md,
docs/config.schema.json, and `proxy.config` in the chart's schema.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from openai_proxy.config import Settings, flag_of, schema, variable_of
from openai_proxy.config.aliases import ALIASES, Alias

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "proxy-settings.md"
CONFIGURATION = ROOT / "docs" / "configuration.md"
FILE_SCHEMA = ROOT / "docs" / "config.schema.json"
SCHEMA = ROOT / "charts" / "kserve-llamacpp" / "values.schema.json"
_BEGIN, _END = "<!-- settings -->\n", "<!-- end of settings -->\n"
_BEGIN_ALIASES, _END_ALIASES = "<!-- aliases -->\n", "<!-- end of aliases -->\n"
# The chart gives these itself: the upstream, the port of Service and probes, the paths of Secrets,
# no backend in the pod.
NOT_IN_THE_CHART = {
    "host",
    "port",
    "upstream_url",
    "without_upstream",
    "model_path",
    "model_name",
    "tls_cert_file",
    "tls_key_file",
    "tls_client_ca_file",
    "model_cache_dir",
    "exit_on_stdin_close",
}
_SAID_ELSEWHERE = ("title", "description", "default", "writeOnly", "format")
_DEFAULTS = {"backend_python": "its own"}


def table() -> str:
    """Return the document's table."""
    rows = ["| flag | variable | default | what |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        text = (field.description or "").replace("|", "\\|")
        flag = f"`{flag_of(name)}`"
        rows.append(f"| {flag} | `{variable_of(name)}` | {_default(name, field)} | {text} |")
    return "\n".join(rows) + "\n"


def with_table(document: str) -> str:
    """Return the document with the table in its place."""
    before, rest = document.split(_BEGIN)
    return f"{before}{_BEGIN}\n{table()}\n{_END}{rest.split(_END)[1]}"


def alias_table() -> str:
    """Return the table of other systems' names."""
    rows = ["| name | of | setting | example | means |", "| --- | --- | --- | --- | --- |"]
    rows += [
        f"| `{alias.name}` | {alias.system} | `{alias.setting}` | `{alias.example}` | "
        f"{_meaning(alias)} |"
        for alias in ALIASES
    ]
    return "\n".join(rows) + "\n"


def with_aliases(document: str) -> str:
    """Return the document with the aliases' table in its place."""
    before, rest = document.split(_BEGIN_ALIASES)
    end = rest.split(_END_ALIASES)[1]
    return f"{before}{_BEGIN_ALIASES}\n{alias_table()}\n{_END_ALIASES}{end}"


def file_schema(_: str = "") -> str:
    """Return the schema of the configuration file."""
    return schema.text()


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


def _meaning(alias: Alias) -> str:
    if alias.meaning is None:
        return "the default"
    meanings: tuple[Any, ...] = (
        alias.meaning if isinstance(alias.meaning, tuple) else (alias.meaning,)
    )
    text = ", ".join(f"`{meaning}`" for meaning in meanings)
    also = {name: read(alias.example) for name, read in alias.also.items()}
    for name, value in (also | dict(alias.implies)).items():
        text += f", and `{name}: {value}`"
    if alias.with_backend is not None:
        text += f"; `{alias.with_backend}` where there is a `backend`"
    return text


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


MADE = (
    (DOCUMENT, with_table),
    (CONFIGURATION, with_aliases),
    (FILE_SCHEMA, file_schema),
    (SCHEMA, with_settings),
)


def write() -> None:
    """Write all of them anew."""
    for path, made in MADE:
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        path.write_text(made(before), encoding="utf-8")


if __name__ == "__main__":
    write()

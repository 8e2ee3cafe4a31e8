"""`GET /api/models`: the models in words, made of what `GET /v1/models` lists."""

from __future__ import annotations

import json
import re
from typing import Any

from openai_proxy.api.translation import Json, Translated
from openai_proxy.exchange import exchange_of
from openai_proxy.middleware import App, Receive, Scope, Send

CATALOG = "/api/models"
_LISTED = "/v1/models"
_CAPABILITIES = ["text-generation", "chat"]
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:x\d+)?(?:\.\d+)?)\s?([BMbm])(?![A-Za-z0-9])")
_FORMATS = (".gguf", ".bin", ".safetensors")


class Catalog:
    """Serves the catalogue by the endpoint that lists models."""

    def __init__(self, list_models: App) -> None:
        self._translated = Translated(list_models, _unchanged, catalog, _no_events)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        exchange = exchange_of(scope)
        route = exchange.route
        asked = {**scope, "path": _LISTED, "raw_path": _LISTED.encode(), "method": "GET"}
        try:
            await self._translated(asked, receive, send)
        finally:
            exchange.route = route  # not that of the list


def catalog(listed: Json) -> bytes:
    """Return the catalogue for OpenAI's list of models; what is no list (an error) as it is."""
    data = listed.get("data")
    if not isinstance(data, list):
        return _json(listed)
    return _json({"models": [entry(model) for model in data if isinstance(model, dict)]})


def entry(model: Json) -> Json:
    """Return a model's entry; what its upstream tells of it wins over what its id suggests."""
    model_id = str(model.get("id") or "")
    name = _told(model, "name") or name_of(model_id)
    owner = _told(model, "owned_by")
    return {
        "id": model_id,
        "name": name,
        "description": _told(model, "description") or _description(name, owner),
        "size": _told(model, "size") or size_of(model_id),
        "capabilities": _capabilities(model),
    }


def name_of(model_id: str) -> str:
    """Return a name to read: `mistralai/Mistral-7B-Instruct-v0.2` is Mistral 7B Instruct v0.2."""
    name = model_id.rstrip("/").rpartition("/")[2]
    for ending in _FORMATS:
        name = name.removesuffix(ending)
    return re.sub(r"[-_]+", " ", name).strip() or model_id


def size_of(model_id: str) -> str:
    """Return the number of parameters that an id names (`7B`, `8x7B`), else `unknown`."""
    found = _SIZE.search(model_id.replace("-", " ").replace("_", " "))
    return f"{found[1]}{found[2].upper()}" if found else "unknown"


def _description(name: str, owner: str | None) -> str:
    return f"{name}, served by {owner}" if owner else name


def _capabilities(model: Json) -> list[str]:
    told = model.get("capabilities")
    if isinstance(told, list) and told and all(isinstance(item, str) for item in told):
        return told
    return list(_CAPABILITIES)


def _told(model: Json, field: str) -> str | None:
    value = model.get(field)
    return value if isinstance(value, str) and value else None


def _unchanged(body: bytes) -> bytes:
    return body


def _no_events(_: Json) -> bytes:
    return b""


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()

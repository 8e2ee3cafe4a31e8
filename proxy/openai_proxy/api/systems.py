"""The endpoints that other systems had beside OpenAI's: all of them translations of these."""

from __future__ import annotations

from openai_protocol.request_limits import RequestLimits
from openai_proxy.api import generate
from openai_proxy.api.catalog import CATALOG, Catalog
from openai_proxy.app import Table, under_v1
from openai_proxy.middleware import App


def generating_table(generating: Table, limits: RequestLimits) -> Table:
    """Return the endpoints that generate, each also under /v1; `generating` has OpenAI's own."""
    posts = {path: methods["POST"] for path, methods in generating.items()}
    made = generate.endpoints(posts, limits)
    return under_v1({path: {"POST": endpoint} for path, endpoint in made.items()})


def listing_table(list_models: App) -> Table:
    """Return the endpoints that list models; `list_models` serves `GET /v1/models`."""
    return under_v1({CATALOG: {"GET": Catalog(list_models)}})

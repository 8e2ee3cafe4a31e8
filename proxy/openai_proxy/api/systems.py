"""The endpoints that other systems had beside OpenAI's: all of them translations of these."""

from __future__ import annotations

from openai_proxy.api import generate
from openai_proxy.api.catalog import CATALOG, Catalog
from openai_proxy.app import Table, under_v1
from openai_proxy.limits import RequestLimits
from openai_proxy.middleware import App


def table(generating: Table, list_models: App, limits: RequestLimits) -> Table:
    """Return the endpoints, each also under /v1.

    `generating` has OpenAI's own, `list_models` serves `GET /v1/models`.
    """
    posts = {path: methods["POST"] for path, methods in generating.items()}
    made: Table = {path: {"POST": made} for path, made in generate.endpoints(posts, limits).items()}
    return under_v1(made | {CATALOG: {"GET": Catalog(list_models)}})

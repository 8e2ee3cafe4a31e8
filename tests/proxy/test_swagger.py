"""The API's description, and Swagger UI without a request to any other server."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import pytest

from openai_proxy.api.generate import ChatRequest, GenerateRequest
from openai_proxy.api.openapi import DECLARED, OPERATIONS, document
from openai_proxy.api.swagger import ASSETS, DIRECTORY
from openai_proxy.error_forms import FORMS
from tests.proxy import harness
from tests.proxy.harness import Proxy, StandIn

PAGES = ["/swagger-ui/", "/docs", "/v1/swagger-ui/", "/v1/docs"]
# Pages and files are for browsers; the description is of the API.
NOT_DESCRIBED = re.compile(r"(/v1)?/(docs|openapi\.json|swagger-ui.*)")


class Links(HTMLParser):
    """The links of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts: list[str] = []
        self._is_script = False
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._is_script = tag == "script"
        named = dict(attributes)
        found = [named.get(name) for name in ("src", "href", "action", "data-document")]
        self.found += [link for link in found if link is not None]

    def handle_data(self, data: str) -> None:
        if self._is_script and data.strip():
            self.scripts.append(data)


async def served(proxy: Proxy) -> frozenset[str]:
    """The paths that the proxy serves by its table."""
    return await proxy.lifecycle._service.paths.known()


@pytest.mark.parametrize("path", PAGES)
async def test_page(proxy: Proxy, path: str) -> None:
    """A page's links lead to files and a document that this server has."""
    async with proxy.http.get(proxy.url + path) as response:
        assert response.status == 200
        assert response.content_type == "text/html"
        links = Links(await response.text())
    assert len(links.found) == 5
    for link in links.found:
        if link != "data:,":
            async with proxy.http.get(urljoin(proxy.url + path, link)) as response:
                assert response.status == 200, link


@pytest.mark.parametrize("path", PAGES)
async def test_page_asks_nobody_else(proxy: Proxy, path: str) -> None:
    """No link leaves the server, no script is in the page, and the policy forbids both."""
    async with proxy.http.get(proxy.url + path) as response:
        policy = response.headers["content-security-policy"]
        links = Links(await response.text())
    assert not [link for link in links.found if "//" in link or link.startswith("/")]
    assert links.scripts == []
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == directives["connect-src"] == "'self'"
    assert "http" not in policy
    assert "*" not in policy


def test_nothing_is_fetched_by_the_files() -> None:
    """The style sheet imports nothing, and the validator of another server is switched off."""
    style = (DIRECTORY / "swagger-ui.css").read_text(encoding="utf-8")
    assert "@import" not in style
    assert not re.search(r"url\(\s*[\"']?(https?:)?//", style)
    initializer = (DIRECTORY / "swagger-initializer.js").read_text(encoding="utf-8")
    assert "validatorUrl: null" in initializer
    assert "http" not in initializer


def test_files_are_the_published_ones() -> None:
    """Swagger UI's files are those whose hashes and licence stand beside them."""
    note = (DIRECTORY / "README.md").read_text(encoding="utf-8")
    assert "Apache License" in (DIRECTORY / "LICENSE").read_text(encoding="utf-8")
    for name in ASSETS:
        if name != "swagger-initializer.js":
            digest = hashlib.sha256((DIRECTORY / name).read_bytes()).hexdigest()
            assert f"{digest}  {name}" in note


async def test_redirect(proxy: Proxy) -> None:
    """Without its slash the page sends the browser to where its files are, behind any prefix."""
    for path in ("/swagger-ui", "/v1/swagger-ui"):
        async with proxy.http.get(proxy.url + path, allow_redirects=False) as response:
            assert (response.status, response.headers["location"]) == (307, "swagger-ui/")
        async with proxy.http.get(proxy.url + path) as response:
            assert response.url.path == f"{path}/"
            assert response.status == 200


@pytest.mark.parametrize("path", ["/openapi.json", "/v1/openapi.json"])
async def test_document_is_valid(proxy: Proxy, path: str) -> None:
    """The document is OpenAPI, by its official schema, and its server is this one."""
    validator = pytest.importorskip("openapi_spec_validator")
    status, described = await proxy.get(path)
    assert status == 200
    validator.validate(described)
    server = urljoin(proxy.url + path, described["servers"][0]["url"])
    assert server == proxy.url + "/"


async def test_every_endpoint_is_described(proxy: Proxy) -> None:
    """What is served stands in the document, and nothing else does."""
    _, described = await proxy.get("/openapi.json")
    expected = {path for path in await served(proxy) if not NOT_DESCRIBED.fullmatch(path)}
    assert set(described["paths"]) == expected | set(DECLARED)


async def test_methods_are_right(proxy: Proxy) -> None:
    """Each endpoint takes the method that the document gives it."""
    _, described = await proxy.get("/openapi.json")
    for path, operations in described["paths"].items():
        for method in operations:
            url = proxy.url + path.replace("{model}", "tiny")
            async with proxy.http.request(method, url) as response:
                assert response.status not in (404, 405), path


@pytest.mark.parametrize("form", FORMS)
async def test_errors_are_as_described(upstream: StandIn, form: str) -> None:
    """An error has the form that the document gives it, whichever is chosen."""
    jsonschema = pytest.importorskip("jsonschema")
    async with harness.proxy(upstream_url=upstream.url, errors=form) as proxy:
        _, described = await proxy.get("/openapi.json")
        _, refusal = await proxy.chat(messages=[])
    jsonschema.validate(refusal, described["components"]["schemas"]["Error"])


def resolved(described: dict[str, Any], path: str, status: str) -> dict[str, Any]:
    """The schema of a JSON answer, with the document's own schemas beside it."""
    operation = next(iter(described["paths"][path].values()))
    schema = operation["responses"][status]["content"]["application/json"]["schema"]
    return {**schema, "components": described["components"]}


@pytest.mark.parametrize(
    "path", ["/", "/health", "/health/live", "/health/ready", "/v1/models", "/api/models"]
)
async def test_answers_are_as_described(proxy: Proxy, path: str) -> None:
    """What is answered fits the schema that the document gives."""
    jsonschema = pytest.importorskip("jsonschema")
    _, described = await proxy.get("/openapi.json")
    status, body = await proxy.get(path)
    jsonschema.validate(body, resolved(described, path, str(status)))


async def test_chat_is_as_described(proxy: Proxy) -> None:
    """A chat's answer fits its schema, and so does its translation."""
    jsonschema = pytest.importorskip("jsonschema")
    _, described = await proxy.get("/openapi.json")
    for path in ("/v1/chat/completions", "/api/chat"):
        async with proxy.http.post(proxy.url + path, json={"messages": harness.MESSAGES}) as got:
            jsonschema.validate(await got.json(), resolved(described, path, "200"))


def test_requests_are_the_models() -> None:
    """Fields and limits of requests are those that requests are checked with."""
    described = document(["/api/generate", "/api/chat"], FORMS["openai"], ".")
    schemas = described["components"]["schemas"]
    for model in (GenerateRequest, ChatRequest):
        assert set(schemas[model.__name__]["properties"]) == set(model.model_fields)


def test_operations_have_names_of_their_own() -> None:
    """No two operations share an id."""
    paths = [path for one in OPERATIONS for path in (one.path, f"/v1{one.path}")]
    described = document(paths, FORMS["openai"], ".")
    methods = described["paths"].values()
    ids = [one["operationId"] for operations in methods for one in operations.values()]
    assert len(ids) == len(set(ids)) > len(OPERATIONS)

"""The commands of docs/sap-ai-core.md, run as written against a stand-in for SAP AI Core's API."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.manifests import sap_ai_core

REQUESTS = sap_ai_core.ROOT / "requests"
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "sap-ai-core.md"
# What an operator posts, in which order, and the file that is the body
POSTS = {
    "/v2/admin/dockerRegistrySecrets": "docker-registry-secret",
    "/v2/admin/objectStoreSecrets": "object-store-secret",
    "/v2/admin/secrets": "generic-secret",
    "/v2/lm/artifacts": "artifact",
    "/v2/admin/repositories": "repository",
    "/v2/admin/applications": "application",
    "/v2/lm/configurations": "configuration",
    "/v2/lm/deployments": "deployment",
}
HEADERS = {
    "authorization": "Bearer T",
    "ai-resource-group": "default",
    "content-type": "application/json",
}

needs_curl = pytest.mark.skipif(
    not (shutil.which("bash") and shutil.which("curl")), reason="needs bash and curl"
)


@dataclass
class Api:
    """The stand-in: gives a token, and remembers what it was asked."""

    url: str = ""
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def api() -> Iterator[Api]:
    """A stand-in on a port of the loopback."""
    found = Api()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            found.asked.append((self.command, self.path, headers, body))
            answer = json.dumps({"access_token": "T", "id": "1"}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = answer  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def commands() -> str:
    """Return the code of the page from the token on, less what needs the reader's own values."""
    text = re.sub(r"(?s)```.*?```", "", DOCUMENTATION.read_text(encoding="utf-8"))
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    first = next(index for index, line in enumerate(lines) if line.startswith("TOKEN="))
    others = ("cp ", "cd ", "export ")
    return "\n".join(line for line in lines[first:] if not line.startswith(others))


def run(api: Api) -> None:
    given = {
        "PATH": os.environ["PATH"],
        "AI_API_URL": api.url,
        "AUTH_URL": api.url,
        "CLIENT_ID": "me",
        "CLIENT_SECRET": "secret",
        "RESOURCE_GROUP": "default",
        "DEPLOYMENT_URL": f"{api.url}/v2/inference/deployments/1",
    }
    script = f"set -euo pipefail\n{commands()}"
    subprocess.run(["bash", "-c", script], env=given, cwd=REQUESTS, check=True, timeout=60)


@needs_curl
def test_token(api: Api) -> None:
    """The token is asked for with the service key's client credentials."""
    run(api)
    method, path, headers, body = api.asked[0]

    assert (method, path) == ("POST", "/oauth/token")
    assert headers["authorization"].startswith("Basic ")
    assert body == b"grant_type=client_credentials"


@needs_curl
def test_posts(api: Api) -> None:
    """Every body is posted to its documented path, with token, resource group and type."""
    run(api)
    posted = [entry for entry in api.asked if entry[0] == "POST" and entry[1] in POSTS]

    assert [path for _, path, _, _ in posted] == list(POSTS)
    for _, path, headers, body in posted:
        assert HEADERS.items() <= headers.items()
        assert body == (REQUESTS / f"{POSTS[path]}.json").read_bytes()


def test_every_body_is_posted() -> None:
    """No body lies there unused."""
    assert {path.stem for path in REQUESTS.iterdir()} == set(POSTS.values())


@needs_curl
def test_chat(api: Api) -> None:
    """The model is asked under the deployment's URL and /v1, with SAP's token."""
    run(api)
    method, path, headers, body = api.asked[-1]

    assert (method, path) == ("POST", "/v2/inference/deployments/1/v1/chat/completions")
    assert HEADERS.items() <= headers.items()
    assert json.loads(body)["messages"]

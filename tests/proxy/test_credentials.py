"""Credentials towards upstreams: keys, files, and which settings are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openai_proxy.routing.credentials import Credentials, CredentialSettings
from openai_proxy.routing.oauth2 import OAuth2Settings, client_of
from tests.proxy.token_server import CLIENT_ID, SECRET, Clock, service_key


def token_of(headers: list[tuple[str, str]]) -> str:
    return dict(headers)["authorization"].removeprefix("Bearer ")


def unused(url: str, form: dict[str, str], headers: dict[str, str]) -> Any:
    raise AssertionError("nothing is fetched")


# Keys


async def test_none() -> None:
    """Without settings there are no headers, and nothing to try again."""
    made = Credentials(CredentialSettings(), unused)
    assert await made.headers() == []
    assert not made.invalidate()


@pytest.mark.parametrize(
    ("given", "sent"),
    [("abc", "Bearer abc"), ("Bearer abc", "Bearer abc"), ("Basic YTpi", "Basic YTpi")],
)
async def test_a_key(given: str, sent: str) -> None:
    """A key alone is sent as Bearer, a whole value as it is; it is no use to try it twice."""
    settings = CredentialSettings.model_validate({"authorization": given, "resource_group": "g"})
    made = Credentials(settings, unused)
    assert await made.headers() == [("authorization", sent), ("ai-resource-group", "g")]
    assert not made.invalidate(await made.headers())


async def test_a_key_from_a_file(tmp_path: Path) -> None:
    """A key's file is read again when it changes; after a 401 at once."""
    clock = Clock()
    path = tmp_path / "key"
    path.write_text("one\n")
    made = Credentials(CredentialSettings(authorization_file=path), unused, clock)
    first = await made.headers()
    assert token_of(first) == "one"
    assert not made.invalidate(first)
    path.write_text("second\n")
    assert token_of(await made.headers()) == "one"
    assert made.invalidate(first)
    assert token_of(await made.headers()) == "second"
    path.write_text("the third\n")
    clock.now += 1
    assert (await made.headers())[0][1] == "the third"


# Settings


def test_service_key() -> None:
    """A service key gives token URL and client; also as `cf service-key` wraps it."""
    key = service_key("https://t.example.com/")
    wrapped = json.dumps({"credentials": json.loads(key)})
    for text in (key, wrapped):
        client = client_of(OAuth2Settings.model_validate({"service_key": text}))
        assert client.token_url == "https://t.example.com/oauth/token"  # noqa: S105
        assert (client.client_id, client.client_secret) == (CLIENT_ID, SECRET)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"service_key": "no json hunter2"}, "service_key: a service key is a JSON object"),
        ({"service_key": '{"clientid": "hunter2"}'}, "has no 'clientsecret'"),
        ({"service_key": service_key("hunter2")}, "the token's URL"),
        (
            {"service_key": service_key("https://u:hunter2@h")},
            "the token's URL",
        ),
        (
            {"service_key": json.dumps({"clientid": "a", "certificate": "hunter2"})},
            "has a certificate, no secret",
        ),
        ({"service_key": service_key("https://h"), "client_id": "a"}, "client_id is in"),
        ({"token_url": "https://h/t", "client_id": "a"}, "give client_secret"),
        ({"client_id": "a", "client_secret": "hunter2"}, "give token_url"),
        (
            {
                "token_url": "https://h/t",
                "client_id": "a",
                "client_secret": "hunter2",
                "client_secret_file": "/f",
            },
            "give client_secret",
        ),
        ({"service_key_file": "/nowhere"}, "service_key_file: cannot read /nowhere"),
        ({"token_url": "ftp://hunter2"}, "the token's URL"),
        ({"service_key": "{}", "service_key_file": "/f"}, "one of service_key and"),
    ],
)
def test_bad_settings(settings: dict[str, Any], says: str) -> None:
    """What cannot be used is refused at the start, by name, and without any secret."""
    with pytest.raises(ValueError, match=says) as raised:
        OAuth2Settings.model_validate(settings)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"authorization": "hunter2\r\nx: y"}, "one line"),
        ({"authorization": " "}, "empty"),
        ({"authorization": "hunter2", "authorization_file": "/f"}, "one of authorization"),
        ({"resource_group": "a\nb"}, "one line"),
    ],
)
def test_bad_credentials(settings: dict[str, Any], says: str) -> None:
    """A key that is no header, and two of a kind, are refused without showing them."""
    with pytest.raises(ValueError, match=says) as raised:
        CredentialSettings.model_validate(settings)
    assert "hunter2" not in str(raised.value)

"""Header rules: what passes, what is dropped, what is set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from openai_proxy.dialects.base import CHAT, Call, Headers
from openai_proxy.dialects.openai import OpenAIDialect
from openai_proxy.routing.headers import HeaderRules, HeaderSettings

FROM_CLIENT: Headers = [
    ("host", "proxy.example"),
    ("authorization", "Bearer of-the-client"),
    ("cookie", "session=1"),
    ("content-type", "application/json"),
    ("connection", "keep-alive, x-hop"),
    ("x-hop", "1"),
    ("x-tenant", "blue"),
    ("x-trace-id", "7"),
    ("user-agent", "test"),
    ("openai-beta", "a"),
    ("x-stainless-lang", "python"),
    ("baggage", "k=v"),
    ("accept-language", "de"),
    ("x-goog-api-key", "of-the-client"),
    ("ocp-apim-subscription-key", "of-the-client"),
    ("x-auth-token", "of-the-client"),
    ("x-unheard-of", "of-the-client"),
]
# What passes of these unless a rule says otherwise.
LISTED = {
    "x-tenant": "blue",
    "user-agent": "test",
    "openai-beta": "a",
    "x-stainless-lang": "python",
    "baggage": "k=v",
    "accept-language": "de",
}


def rules(**settings: Any) -> HeaderRules:
    return HeaderRules(HeaderSettings.model_validate(settings))


def sent(**settings: Any) -> dict[str, str]:
    """What an upstream gets of `FROM_CLIENT` with these rules, by way of the dialect."""
    request = OpenAIDialect().request(Call(path=CHAT, body=b"{}", headers=FROM_CLIENT))
    own = [("accept-encoding", "identity"), ("host", "upstream.example"), ("x-request-id", "r1")]
    headers = rules(**settings).apply([*request.headers, *own], FROM_CLIENT)
    assert len(headers) == len(dict(headers))
    return dict(headers)


OWN = {
    "content-type": "application/json",
    "accept-encoding": "identity",
    "host": "upstream.example",
    "x-request-id": "r1",
}


def test_by_default() -> None:
    """Without rules only listed headers of a client are sent: none of them is a key."""
    assert sent() == {**OWN, **LISTED}
    assert "baggage" not in sent(drop=["baggage"])


def test_pass() -> None:
    """With a list of those that pass, others do not; the proxy's own always do."""
    assert sent(**{"pass": ["X-Tenant"]}) == {**OWN, "x-tenant": "blue"}
    assert sent(**{"pass": ["x-trace-*"]}) == {**OWN, "x-trace-id": "7"}
    assert sent(**{"pass": []}) == OWN


def test_tenant_from_key() -> None:
    """A client's key gives it a name of its own, which is no key, unless a tenant is named."""
    keys = [("authorization", "Bearer of-a"), ("x-api-key", "of-a"), ("api-key", "of-a")]
    named = rules(tenant_from_key=True)
    found = {dict(named.apply([], [key]))["x-tenant"] for key in keys}
    other = dict(named.apply([], [("x-api-key", "of-b")]))["x-tenant"]

    assert re.fullmatch("key-[0-9a-f]{32}", other)
    assert "of-b" not in other
    assert other not in found
    assert named.apply([], keys) == named.apply([], [keys[1]])
    assert sent(tenant_from_key=True) == {**OWN, **LISTED}
    assert named.apply([], []) == named.apply([], [("x-api-key", "")]) == named.apply([]) == []


@pytest.mark.parametrize("rule", [{"drop": ["x-tenant"]}, {"drop": ["x-*"]}, {}])
def test_no_tenant_from_key(rule: dict[str, Any]) -> None:
    """A key gives no tenant unless that is asked for, and not where the header is dropped."""
    asked = {"tenant_from_key": True} if rule else {}
    assert rules(**rule, **asked).apply([], [("x-api-key", "of-a")]) == []


def test_tenants_that_clients_may_not_choose() -> None:
    """Where no `X-Tenant` of a client passes its key names it, and what is set stands alone."""
    passed = sent(**{"pass": [], "tenant_from_key": True})
    assert passed["x-tenant"].startswith("key-")
    assert sent(set={"x-tenant": "red"}, tenant_from_key=True)["x-tenant"] == "red"


def test_keys_of_clients() -> None:
    """A client's key passes only where it is named in full."""
    assert "authorization" not in sent(**{"pass": ["*"]})
    assert "authorization" not in sent(**{"pass": ["auth*"]})
    passed = sent(**{"pass": ["authorization", "x-tenant"]})
    assert passed["authorization"] == "Bearer of-the-client"
    assert "cookie" not in passed


KEYS = (
    *("x-goog-api-key", "ocp-apim-subscription-key", "x-auth-token", "cookie2", "x-functions-key"),
    *("cf-access-jwt-assertion", "x-bearer", "dpop"),
    *("x-apikey", "private-token", "x-amz-security-token", "x-client-secret", "x-password"),
)


@pytest.mark.parametrize("name", KEYS)
def test_keys_of_other_names(name: str) -> None:
    """A key by another name passes no pattern either, only its own name."""
    key = [(name, "of-the-client")]
    for pattern in ("*", "x-*", name[:4] + "*"):
        assert rules(**{"pass": [pattern]}).apply(key, key) == []
    assert rules(**{"pass": [name]}).apply(key, key) == key
    assert rules(**{"pass": [name], "drop": ["*"]}).apply(key, key) == []
    assert rules(set={name: "ours"}).sets_a_key


def test_no_keys() -> None:
    """A name that only resembles that of a key passes a pattern."""
    names = ("x-trace-id", "idempotency-key", "x-tenant", "x-stainless-retry-count", "monkey")
    headers = [(name, "1") for name in names]
    assert rules(**{"pass": ["*"]}).apply(headers) == headers


def test_set_wins_over_a_clients_key() -> None:
    """What is set is sent once, whatever the client sent."""
    settings = {"pass": ["authorization"], "set": {"Authorization": "Bearer ours"}}
    assert sent(**settings)["authorization"] == "Bearer ours"


def test_drop() -> None:
    """What is dropped is not sent, also if it passes; a pattern does not mean the proxy's own."""
    assert "x-tenant" not in sent(drop=["x-tenant"])
    assert sent(**{"pass": ["x-tenant"], "drop": ["x-*"]}) == OWN
    assert sent(drop=["*"]) == OWN
    assert "x-request-id" not in sent(drop=["x-request-id"])


def test_set() -> None:
    """What is set replaces others of that name, such as the host that Knative routes by."""
    headers = sent(set={"Host": "model.ns.example", "x-tenant": "red", "x-new": "1"})
    assert headers["host"] == "model.ns.example"
    assert (headers["x-tenant"], headers["x-new"]) == ("red", "1")


def test_a_file(tmp_path: Path) -> None:
    """A value from a file is read without its newline, and again when it changes."""
    now = 0.0
    path = tmp_path / "key"
    path.write_text("one\n")
    settings = HeaderSettings.model_validate({"set": {"api-key": {"value_file": path}}})
    made = HeaderRules(settings, clock=lambda: now)
    assert made.apply([]) == [("api-key", "one")]
    path.write_text("second\n")
    now = 1.5
    assert made.apply([]) == [("api-key", "second")]


def test_a_file_that_becomes_unusable(tmp_path: Path) -> None:
    """The last good value stays while the file is gone, or holds what is no header."""
    now = 0.0
    path = tmp_path / "key"
    path.write_text("one")
    settings = HeaderSettings.model_validate({"set": {"api-key": {"value_file": path}}})
    made = HeaderRules(settings, clock=lambda: now)
    path.write_text("two\r\nx-evil: 1")
    now += 2
    assert made.apply([]) == [("api-key", "one")]
    path.unlink()
    now += 2
    assert made.apply([]) == [("api-key", "one")]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"set": {"content-length": "1"}}, "content-length"),
        ({"set": {"Transfer-Encoding": "chunked"}}, "transfer-encoding"),
        ({"set": {"a b": "1"}}, "no name of a header"),
        ({"set": {"": "1"}}, "no name of a header"),
        ({"set": {"x-a": "1\r\nx-b: 2"}}, "one line"),
        ({"set": {"x-a": "\u00e4"}}, "one line"),
        ({"set": {"x-a": {"value": "1", "value_file": "f"}}}, "one of value and value_file"),
        ({"set": {"x-a": {}}}, "one of value and value_file"),
        ({"drop": ["connection"]}, "connection"),
        ({"drop": ["x*y"]}, "no name of a header"),
        ({"pass": ["x-a: b"]}, "no name of a header"),
        ({"passes": []}, "passes"),
    ],
)
def test_bad_rules(settings: dict[str, Any], says: str) -> None:
    """Rules that cannot be meant are refused, naming what is wrong."""
    with pytest.raises(ValueError, match=says):
        HeaderSettings.model_validate(settings)


def test_a_missing_file(tmp_path: Path) -> None:
    """A file that is not there is refused at the start, naming header and file."""
    settings = HeaderSettings.model_validate({"set": {"api-key": {"value_file": tmp_path / "no"}}})
    with pytest.raises(ValueError, match=r"header api-key: cannot read .*no"):
        HeaderRules(settings)


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    """No value shows in what is printed of the settings, nor in an error about it."""
    settings = HeaderSettings.model_validate({"set": {"api-key": "hunter2"}})
    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    path = tmp_path / "key"
    path.write_text("hunter2\nhunter2")
    unusable = HeaderSettings.model_validate({"set": {"api-key": {"value_file": path}}})
    with pytest.raises(ValueError, match="one line") as raised:
        HeaderRules(unusable)
    assert "hunter2" not in str(raised.value)

"""Settings: flags, then the environment, then defaults; errors name the setting.

Files, aliases, reloading and what is printed have modules of their own: test_config_*.py.
"""

from __future__ import annotations

import ipaddress
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, Field, SecretStr
from pydantic.fields import FieldInfo

from openai_proxy.config import (
    ConfigError,
    Flags,
    Kind,
    Settings,
    flag_of,
    kind_of,
    load,
    load_all,
    variable_of,
)
from openai_proxy.config.names import choices_of, from_text
from openai_proxy.flags import parse

URL = {"upstream_url": "http://127.0.0.1:8080"}


def test_defaults() -> None:
    """Without any setting but the upstream, the documented defaults hold."""
    settings = load(URL)
    assert ipaddress.ip_address(settings.host).is_unspecified
    assert settings.port == 8000
    assert settings.request_timeout_seconds == 600
    assert (settings.drain_delay_seconds, settings.grace_seconds) == (5, 30)
    assert settings.max_body_bytes == 8 * 1024 * 1024


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag wins over its variable, the variable over the default."""
    monkeypatch.setenv("OPENAI_PROXY_PORT", "9001")
    monkeypatch.setenv("OPENAI_PROXY_GRACE_SECONDS", "7.5")
    settings = load(parse(["--port", "9002", "--upstream-url", "http://h"]))
    assert (settings.port, settings.grace_seconds) == (9002, 7.5)


def test_every_setting_is_a_flag_and_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting can be given both ways, with the same result."""
    values = {
        "backend": "llamacpp",
        "backend_args": "--n_ctx 512",
        "backend_health_path": "/7",
        "metrics_namespace": "mine",
        "max_bytes_in_flight": "67108864",  # the largest body must fit
        "access_log_sample": "0.5",
        "default_temperature": "1",
        "trace_sample": "0.5",
        "otlp_endpoint": None,  # needs packages
        "upstream_url": None,
        "cors_allow_origins": "https://a.example,https://b.example",
        "cors_expose_headers": "x-a, x-b",
        "tls_cert_file": None,  # with its key alone, and with a file that is there
        "tls_key_file": None,
        "tls_client_ca_file": None,
        "tls_min_version": "1.3",
    }
    for name, field in Settings.model_fields.items():
        is_choice = get_origin(field.annotation) is Literal
        text = values.get(name, get_args(field.annotation)[-1] if is_choice else "7")
        if text is None or kind_of(field) in (Kind.SWITCH, Kind.STRUCTURE):
            continue
        base = {"backend": "llamacpp", "model_path": "m.gguf"}
        flag = [f"{flag_of(name)}=--n_ctx", f"{flag_of(name)}=512"]
        if name != "backend_args":
            flag = [flag_of(name), text]
        by_flag = load({**base, **parse(flag)})
        with monkeypatch.context() as patch:
            patch.setenv(variable_of(name), text)
            base.pop(name, None)
            by_variable = load(base)
        assert getattr(by_flag, name) == getattr(by_variable, name), name


def test_backend_arguments() -> None:
    """Backend arguments come from --backend-arg and from what follows --, in this order."""
    flags = parse(["--backend-arg=--a", "--backend-arg", "1", "--", "--b", "2", "--port"])
    assert flags["backend_args"] == ("--a", "1", "--b", "2", "--port")


def test_backend_arguments_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is split as a shell does it."""
    monkeypatch.setenv("OPENAI_PROXY_BACKEND_ARGS", "--a 'b c' --d")
    assert load(URL).backend_args == ("--a", "b c", "--d")


@pytest.mark.parametrize("value", ["tcp://10.0.0.1:80", "udp://10.0.0.1:53", ""])
def test_service_links_are_ignored(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """What Kubernetes injects for a Service of our name, and empty variables, set nothing."""
    monkeypatch.setenv("OPENAI_PROXY_PORT", value)
    assert load(URL).port == 8000


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({}, "--upstream-url"),
        ({**URL, "backend": "llamacpp", "model_path": "m"}, "--backend"),
        ({**URL, "without_upstream": True}, "--without-upstream"),
        ({"backend": "llamacpp"}, "--model-path"),
        ({"backend": "tgi", "model_path": "m"}, "--backend"),
        (
            {"backend": "llamacpp", "model_path": "m", "probe_interval_seconds": 0},
            "--probe-interval-seconds",
        ),
        ({**URL, "port": "-1"}, "--port"),
        ({**URL, "request_timeout_seconds": "0"}, "--request-timeout-seconds"),
        ({**URL, "request_timeout_seconds": "inf"}, "--request-timeout-seconds"),
        ({**URL, "grace_seconds": "nan"}, "--grace-seconds"),
        ({**URL, "log_level": "loud"}, "--log-level"),
        ({"upstream_url": "localhost:8080"}, "--upstream-url"),
        ({"upstream_url": "http://h/v1?key=1"}, "--upstream-url"),
        ({"upstream_url": "http://a..b"}, "--upstream-url"),
        ({"upstream_url": "http://h:99999"}, "--upstream-url"),
        ({**URL, "max_body_bytes": "8MiB"}, "--max-body-bytes"),
    ],
)
def test_bad_values(flags: dict[str, Any], says: str) -> None:
    """A bad value is refused by one line that names the setting."""
    with pytest.raises(ConfigError) as raised:
        load(flags)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bad_values_of_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error names the variable where the value came from it, and shows the value."""
    monkeypatch.setenv("OPENAI_PROXY_PORT", "80a")
    with pytest.raises(ConfigError, match=r"^OPENAI_PROXY_PORT: .*'80a'.*--port"):
        load(URL)


def test_secrets_are_not_shown() -> None:
    """Neither an error nor repr shows what may hold a secret."""
    with pytest.raises(ConfigError) as raised:
        load({"upstream_url": "http://me:hunter2@h", "log_level": "http://me:hunter2@h"})
    assert len(raised.value.problems) == 2
    assert "hunter2" not in "".join(raised.value.problems)
    settings = load(
        {"backend": "llamacpp", "model_path": "m", "backend_args": ("--key", "hunter2")}
    )
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)


@pytest.mark.parametrize(
    ("path", "name", "model"),
    [
        ("/models/tiny.gguf", None, "tiny"),
        ("/models/qwen2.5", None, "qwen2.5"),
        ("/models/tiny/", None, "tiny"),
        ("/models/tiny.gguf", "mine", "mine"),
        ("/", None, "model"),
    ],
)
def test_model_name(path: str, name: str | None, model: str) -> None:
    """A model is called as given, else like its file or directory."""
    flags = {"backend": "llamacpp", "model_path": path, "model_name": name}
    assert load(flags).served_model == model


def test_frozen() -> None:
    """Settings cannot be changed."""
    with pytest.raises(ValueError, match="frozen"):
        load(URL).port = 1


def test_all_that_is_wrong() -> None:
    """An error has a line for each problem."""
    with pytest.raises(ConfigError) as raised:
        load({**URL, "port": "80a", "log_level": "loud"})
    first, second = raised.value.problems
    assert first.startswith("--port: ")
    assert second.startswith("--log-level: ")


def test_switches_go_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag turns off what a variable turns on."""
    monkeypatch.setenv("OPENAI_PROXY_QUIET", "true")
    assert load(URL).quiet
    assert not load({**URL, **parse(["--no-quiet"])}).quiet


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prot", "9000"], "--prot; did you mean --port?"),
        (["--port"], "--port"),
        (["serve"], "serve"),
        (["--check-config", "--print-config"], "--print-config"),
    ],
)
def test_bad_command_lines(arguments: list[str], says: str) -> None:
    """What is no flag is told with the one that is like it."""
    with pytest.raises(ConfigError) as raised:
        parse(arguments)
    assert says in str(raised.value)


class Structure(BaseModel):
    """A structure, as settings may have them."""

    url: str


class Example(BaseModel):
    """One setting of each kind."""

    text: str | None = None
    number: int = 0
    switch: bool | None = None
    words: tuple[str, ...] = ()
    mapping: dict[str, int] = Field(default_factory=dict)
    structures: tuple[Structure, ...] | None = None
    secret: SecretStr | None = None


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("text", "[a]", "[a]"),
        ("number", "7", "7"),
        ("switch", "true", "true"),
        ("words", "a, b,", ("a", "b")),
        ("words", '["a, b"]', ["a, b"]),
        ("mapping", '{"a": 1}', {"a": 1}),
        ("structures", '[{"url": "u"}]', [{"url": "u"}]),
        ("secret", "{s", "{s"),
    ],
)
def test_text_of_variables(name: str, text: str, value: Any) -> None:
    """Lists of words are separated by commas, structures are JSON, all else is as it is."""
    assert from_text(Example.model_fields[name], text) == value


@pytest.mark.parametrize("name", ["mapping", "structures"])
def test_structures_must_be_json(name: str) -> None:
    """What is not JSON is refused with its place, and without quoting it."""
    with pytest.raises(ValueError, match="must be JSON, and is not at line 1 column 2") as raised:
        from_text(Example.model_fields[name], "{hunter2")
    assert "hunter2" not in str(raised.value)


def test_unknown_variables_are_told() -> None:
    """A variable of ours that is no setting is a warning; links to Services are none."""
    environ = {
        "OPENAI_PROXY_UPSTREAM_URL": "http://h",
        "OPENAI_PROXY_GRACE_SECOND": "3",
        "OPENAI_PROXY_CONFIG": "tcp://10.0.0.1:80",
        "OPENAI_PROXY_SERVICE_HOST": "10.0.0.1",
        "OPENAI_PROXY_SERVICE_PORT_HTTP": "80",
        "OPENAI_PROXY_PORT": "tcp://10.0.0.1:80",
        "OPENAI_PROXY_PORT_80_TCP": "tcp://10.0.0.1:80",
        "OPENAI_PROXY_PORT_80_TCP_PROTO": "tcp",
    }
    (warning,) = load_all(Flags(), environ).warnings
    assert warning == (
        "OPENAI_PROXY_GRACE_SECOND is no setting; did you mean OPENAI_PROXY_GRACE_SECONDS?"
    )


def structures(fields: dict[str, FieldInfo]) -> list[type[BaseModel]]:
    """All models that settings are made of."""
    found: list[type[BaseModel]] = []
    for field in fields.values():
        pending = list(choices_of(field.annotation))
        while pending:
            held = pending.pop()
            pending += [one for argument in get_args(held) for one in choices_of(argument)]
            if isinstance(held, type) and issubclass(held, BaseModel):
                found += [held, *structures(held.model_fields)]
    return found


def test_structures_are_strict() -> None:
    """What settings are made of is frozen as well, and refuses unknown keys."""
    assert structures(Example.model_fields) == [Structure]
    for structure in {Settings, *structures(Settings.model_fields)}:
        assert structure.model_config.get("frozen"), structure
        assert structure.model_config.get("extra") == "forbid", structure

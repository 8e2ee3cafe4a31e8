"""--check-config, --print-config, --print-schema, and that none of them shows a secret."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field, SecretStr

from openai_proxy.__main__ import main
from openai_proxy.config import Flags, load_all, schema
from openai_proxy.config.aliases import ALIASES
from openai_proxy.config.layers import Layer, Origin
from openai_proxy.config.show import MASK, _held, masked, text

CONFIG = """
upstream_url: http://127.0.0.1:8080
server:
  port: 9000
log_level: debug
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


def test_check(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A good configuration is told with its files, and ends with 0."""
    assert main(["--config", str(config), "--check-config"]) == 0
    assert str(config) in capsys.readouterr().out


def test_check_tells_what_is_wrong(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad one ends with 2, each problem on a line of its own."""
    config.write_text("port: 80a\nlog_levle: info\n", encoding="utf-8")

    assert main(["--config", str(config), "--check-config", "--without-upstream"]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith(f"openai_proxy: {config}:1: port: ")
    assert second == f"openai_proxy: {config}:2: log_levle is no setting; did you mean log_level?"


def test_check_tells_of_variables(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that is no setting is told, and does not make it bad."""
    monkeypatch.setenv("OPENAI_PROXY_PROT", "1")
    assert main(["--config", str(config), "--check-config"]) == 0
    assert "did you mean OPENAI_PROXY_PORT?" in capsys.readouterr().err


def test_print(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each setting is printed with where it comes from."""
    monkeypatch.setenv("OPENAI_PROXY_GRACE_SECONDS", "7")
    monkeypatch.setenv("LOG_LEVEL", "ERROR")

    assert main(["--config", str(config), "--print-config", "--max-body-bytes", "5"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"# files: {config}"
    assert f"upstream_url: http://127.0.0.1:8080  # {config}:2" in lines
    assert f"port: 9000  # {config}:4" in lines
    assert "grace_seconds: 7  # OPENAI_PROXY_GRACE_SECONDS" in lines
    assert "log_level: error  # LOG_LEVEL" in lines
    assert "max_body_bytes: 5  # --max-body-bytes" in lines
    assert "drain_delay_seconds: 5  # default" in lines
    assert "without_upstream: false  # default" in lines


def test_print_is_a_configuration(config: Path, tmp_path: Path) -> None:
    """What is printed is a file that gives the same settings."""
    loaded = load_all(Flags({"quiet": True}, config=str(config)), {})
    again = tmp_path / "again.yaml"
    again.write_text(text(loaded), encoding="utf-8")

    assert load_all(Flags(config=str(again)), {}).settings == loaded.settings


class Upstream(BaseModel):
    """A structure among settings."""

    url: str
    key: SecretStr | None = None
    key_file: str | None = None
    stop_token: str = "end"  # noqa: S105  # the field's name is the point
    arguments: tuple[str, ...] = Field((), repr=False)
    headers: dict[str, str | int | None] = Field(default_factory=dict)


SECRETIVE = Upstream(
    url="http://me:hunter2@h/path",
    key=SecretStr("hunter2"),
    key_file="/run/secrets/key",
    arguments=("--key", "hunter2"),
    headers={"Authorization": "Bearer hunter2", "X-Api-Key": "hunter2", "max_tokens": 7, "x": "y"},
)


def test_secrets_are_masked() -> None:
    """Secrets, what has no repr, entries named like secrets and passwords in URLs are masked."""
    assert masked(SECRETIVE) == {
        "url": f"http://{MASK}@h/path",
        "key": MASK,
        "key_file": "/run/secrets/key",
        "stop_token": "end",
        "arguments": MASK,
        "headers": {"Authorization": MASK, "X-Api-Key": MASK, "max_tokens": 7, "x": "y"},
    }


SECRETS = st.text(st.characters(categories=("L", "N"), max_codepoint=127), min_size=8)


@given(SECRETS)
def test_no_secret_is_printed(secret: str) -> None:
    """Whatever a backend's argument is, it is not printed."""
    secret = f"hunter{secret}"
    flags = {"backend": "llamacpp", "model_path": "m", "backend_args": ("--key", secret)}
    loaded = load_all(Flags(flags), {})
    assert loaded.settings.backend_args == ("--key", secret)
    assert secret not in text(loaded)


VALUES = st.recursive(
    st.one_of(
        st.text(),
        st.integers(),
        st.booleans(),
        st.none(),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    lambda held: st.one_of(st.lists(held), st.dictionaries(st.text(), held)),
    max_leaves=8,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text(), VALUES, min_size=1))
def test_any_value_is_printed_as_yaml(value: dict[str, object]) -> None:
    """What is printed of a value is YAML of the same value."""
    assert yaml.safe_load("\n".join(_held(value, (), "", Layer()))) == value


def test_origins_in_structures() -> None:
    """In a structure each value has its own origin; what nobody gave is a default."""
    value = {"upstreams": [{"url": "a", "dialect": "openai"}], "models": {"phi": {"weight": 1}}}
    given_layer = Layer(
        {"upstreams": [{"url": "a"}], "models": {"phi": {"weight": 1}}},
        {
            ("upstreams",): Origin("config.yaml", 1),
            ("upstreams", 0): Origin("config.yaml", 2),
            ("models",): Origin("config.yaml", 5),
            ("models", "phi", "weight"): Origin("config.test.yaml", 2),
        },
    )
    assert list(_held(value, (), "", given_layer)) == [
        "upstreams:",
        "  - url: a  # config.yaml:2",
        "    dialect: openai  # default",
        "models:",
        "  phi:",
        "    weight: 1  # config.test.yaml:2",
    ]


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """The schema is one, takes what the proxy takes, and refuses unknown keys and wrong types."""
    assert main(["--print-schema"]) == 0
    printed = json.loads(capsys.readouterr().out)

    Draft202012Validator.check_schema(printed)
    validator = Draft202012Validator(printed)
    assert validator.is_valid(yaml.safe_load(CONFIG))
    assert not validator.is_valid({"prot": 1})
    assert not validator.is_valid({"port": "high"})
    assert not validator.is_valid({"server": {"prot": 1}})


def test_schema_has_the_keys_of_others() -> None:
    """Keys of other systems' files are in the schema, so that an editor takes them."""
    properties = schema.build()["properties"]
    for alias in ALIASES:
        if alias.is_key:
            section, key = alias.name.split(".")
            assert key in properties[section]["properties"]


def test_schema_is_the_same_everywhere() -> None:
    """The schema holds no path of the machine that makes it."""
    assert "default" not in schema.build()["properties"]["backend_python"]
    assert sys.executable not in schema.text()

"""Each name that a setting has in the systems that are replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from openai_proxy.config import ConfigError, Flags, Loaded, Settings, load_all
from openai_proxy.config.aliases import ALIASES, BY_NAME, HEALTH_FORMS, Alias, agree
from openai_proxy.config.layers import Layer, Origin
from openai_proxy.config.readings import rust_log
from openai_proxy.config.sources import with_implied
from openai_proxy.flags import read

URL = "OPENAI_PROXY_UPSTREAM_URL"
UPSTREAM = {URL: "http://h"}
# What a setting needs beside it
BESIDE = {
    "upstream_url": {},
    "backend": {"OPENAI_PROXY_MODEL_PATH": "m.gguf"},
}


def by_name(alias: Alias, value: str, tmp_path: Path) -> Loaded:
    """Load settings, one of which is given by an alias as its system has it."""
    environ = BESIDE.get(alias.setting, UPSTREAM)
    if alias.is_flag:
        return load_all(read([alias.name, value]).flags, environ)
    if alias.is_variable:
        return load_all(Flags(), {**environ, alias.name: value})
    section, key = alias.name.split(".")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({section: {key: value}}), encoding="utf-8")
    return load_all(Flags(config=str(file)), environ)


@pytest.mark.parametrize("alias", ALIASES, ids=lambda alias: alias.name)
def test_alias(alias: Alias, tmp_path: Path) -> None:
    """The value that its system's document shows means what the table says."""
    found = by_name(alias, alias.example, tmp_path)
    default = Settings.model_fields[alias.setting].get_default(call_default_factory=True)
    meaning = default if alias.meaning is None else alias.meaning
    assert agree(getattr(found.settings, alias.setting), meaning)
    for name, value in alias.implies.items():
        assert getattr(found.settings, name) == value
    for name, read_too in alias.also.items():
        assert getattr(found.settings, name) == read_too(alias.example)


@pytest.mark.parametrize("alias", ALIASES, ids=lambda alias: alias.name)
def test_reading(alias: Alias) -> None:
    """The example is read as what the table says, whether or not the setting is there."""
    assert agree(alias.read(alias.example), alias.meaning)


# Names that others use, too: they tell nothing of who asks for /health.
GENERAL = {
    *("RUST_LOG", "LOG_LEVEL", "HF_HOME", "--model-path", "--backend", "--backend-host"),
    *("--backend-port", "--backend-startup-timeout", "--log-level", "--log-file"),
}


@pytest.mark.parametrize("alias", ALIASES, ids=lambda alias: alias.name)
def test_health_of_its_system(alias: Alias, tmp_path: Path) -> None:
    """A system's own name in use brings its form of /health back; a general name does not."""
    found = by_name(alias, alias.example, tmp_path).settings.health
    sets_nothing = alias.name in GENERAL or alias.meaning is None
    assert found == ("plain" if sets_nothing else HEALTH_FORMS[alias.system])


def test_health_of_several_systems() -> None:
    """With names of several systems in use, /health has the fields of all, addresses too."""
    environ = UPSTREAM | {"SEMINSTRUCT_PORT": "1", "LLM_DEFAULT_MODEL": "m"}
    assert load_all(Flags(), environ).settings.health == "superset"


def test_health_as_it_is_asked_for() -> None:
    """A form that is given wins over that of a system's name, and a name not in use brings none."""
    environ = UPSTREAM | {"SEMINSTRUCT_PORT": "1"}
    asked = environ | {"OPENAI_PROXY_HEALTH": "plain"}
    assert load_all(Flags(), asked).settings.health == "plain"
    assert load_all(Flags({"port": 2}), environ).settings.health == "plain"


def test_names_are_given_once() -> None:
    """No name stands for two settings."""
    assert len(BY_NAME) == len(ALIASES)


NUMBERS = [alias for alias in ALIASES if alias.setting == "port" and alias.is_variable]


@pytest.mark.parametrize("alias", NUMBERS, ids=lambda alias: alias.name)
@pytest.mark.parametrize("value", ["", "tcp://10.0.0.1:80", "udp://10.0.0.1:53"])
def test_links_to_services_are_ignored(alias: Alias, value: str) -> None:
    """What Kubernetes injects for Services, and empty variables, set nothing by an alias either."""
    assert load_all(Flags(), {**UPSTREAM, alias.name: value}).settings.port == 8000


def test_a_link_to_shimmys_service_is_no_upstream() -> None:
    """A Service named shimmy does not make a port out of its address."""
    with pytest.raises(ConfigError, match="--upstream-url"):
        load_all(Flags(), {"SHIMMY_PORT": "tcp://10.0.0.1:8080"})


@pytest.mark.parametrize("alias", NUMBERS, ids=lambda alias: alias.name)
def test_own_name_wins(alias: Alias) -> None:
    """A setting's own variable wins over its aliases."""
    environ = {**UPSTREAM, "OPENAI_PROXY_PORT": "9", alias.name: "10"}
    assert load_all(Flags(), environ).settings.port == 9


def test_own_flag_wins() -> None:
    """So does its own flag, wherever it stands."""
    for arguments in (["--port", "9", "--proxy-port", "10"], ["--proxy-port", "10", "--port", "9"]):
        assert load_all(read(arguments).flags, UPSTREAM).settings.port == 9


def test_own_key_wins(tmp_path: Path) -> None:
    """So does its own key in a file."""
    file = tmp_path / "config.yaml"
    file.write_text("server: {port: 10}\nport: 9\n", encoding="utf-8")
    assert load_all(Flags(config=str(file)), UPSTREAM).settings.port == 9


def test_layers_win_over_names(tmp_path: Path) -> None:
    """An alias in an upper layer wins over the setting's own name in a lower one."""
    file = tmp_path / "config.yaml"
    file.write_text("port: 9\n", encoding="utf-8")
    environ = {**UPSTREAM, "SEMINSTRUCT_PORT": "10"}
    flags = read(["--config", str(file)]).flags
    assert load_all(flags, environ).settings.port == 10
    flags = read(["--config", str(file), "--proxy-port", "11"]).flags
    assert load_all(flags, environ).settings.port == 11


def test_aliases_that_disagree() -> None:
    """Two aliases that disagree stop the start; both are named, and what they mean."""
    environ = {**UPSTREAM, "INFERENCE_SERVER_PORT": "1", "SEMINSTRUCT_PORT": "2"}
    with pytest.raises(ConfigError) as raised:
        load_all(Flags(), environ)
    for name in ("INFERENCE_SERVER_PORT", "SEMINSTRUCT_PORT", "OPENAI_PROXY_PORT"):
        assert name in str(raised.value)
    assert load_all(Flags(), {**environ, "OPENAI_PROXY_PORT": "3"}).settings.port == 3


def test_secrets_of_aliases_are_not_told() -> None:
    """Aliases that disagree are named without their values."""
    environ = {
        "SEMINSTRUCT_SHIMMY_URL": "http://me:hunter2@h",
        "INFERENCE_INFERENCE_BASE_URL": "http://h",
    }
    with pytest.raises(ConfigError) as raised:
        load_all(Flags(), environ)
    assert "hunter2" not in str(raised.value)


def test_aliases_that_agree() -> None:
    """Two aliases may say the same."""
    names = ("SEMINSTRUCT_TIMEOUT_SECONDS", "INFERENCE_INFERENCE_TIMEOUT_SECS")
    environ = {**UPSTREAM, **dict(zip(names, ("30", "30.0"), strict=True))}
    assert load_all(Flags(), environ).settings.request_timeout_seconds == 30


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("a", "b"), ["a", "b"], True),
        (("a", "b"), ["b", "a"], False),
        ("http://h:1/", "http://h:1", True),
        ("A", "a", False),
        (True, "true", True),
        ("3", 3, True),
    ],
)
def test_agreement(one: Any, other: Any, same: bool) -> None:
    """Values agree as settings, not as text."""
    assert agree(one, other) is same


@pytest.mark.parametrize(
    ("value", "level"),
    [
        ("debug", "debug"),
        ("WARN", "warning"),
        ("trace", "debug"),
        ("off", "error"),
        ("4", "debug"),
        ("hyper=warn,info", "info"),
        ("info,hyper=warn,seminstruct=debug", "info"),
        ("info,debug", "debug"),
        ("hyper=warn", None),
        ("seminstruct=debug,hyper=warn", "debug"),
        ("inference_server::providers[span{field=1}]=info", "info"),
        ("llm-inference-api", "debug"),
        ("info/regex", "info"),
        ("nonsense", None),
        ("a=b=c,,=", None),
    ],
)
def test_rust_log(value: str, level: str | None) -> None:
    """The level for everything counts, else that of a program that is replaced."""
    assert rust_log(value) == level


@pytest.mark.parametrize("name", ["LOG_LEVEL", "INFERENCE_LOG_LEVEL", "INFERENCE_LOGGING_LEVEL"])
@pytest.mark.parametrize(
    ("value", "level"),
    [("DEBUG", "debug"), ("Warn", "warning"), ("WARNING", "warning"), ("CRITICAL", "error")],
)
def test_log_levels(name: str, value: str, level: str) -> None:
    """Log levels may be in upper case, and such as we have not."""
    assert load_all(Flags(), {**UPSTREAM, name: value}).settings.log_level == level


def test_log_level_as_a_flag() -> None:
    """--log-level takes the levels of the system that has the same flag."""
    assert load_all(read(["--log-level", "CRITICAL"]).flags, UPSTREAM).settings.log_level == "error"


def test_wrong_values_name_the_alias() -> None:
    """An error names the alias that was used, and the setting's own names."""
    with pytest.raises(ConfigError) as raised:
        load_all(Flags(), {**UPSTREAM, "LLM_INFERENCE_PORT": "80a"})
    assert str(raised.value).startswith("LLM_INFERENCE_PORT: ")
    assert "the same setting is OPENAI_PROXY_PORT and --port" in str(raised.value)
    with pytest.raises(ConfigError, match=r"^--proxy-port: .*'80a'"):
        load_all(read(["--proxy-port", "80a"]).flags, UPSTREAM)


@pytest.mark.parametrize("name", ["INFERENCE_LOGGING_OUTPUT", "logging.output"])
def test_log_output_must_say_where(name: str, tmp_path: Path) -> None:
    """A log to a file needs the file's path."""
    with pytest.raises(ConfigError, match="must be stdout, or the path of a file"):
        by_name(BY_NAME[name], "file", tmp_path)


def test_shimmy_port_of_a_backend() -> None:
    """Where the proxy runs a backend, SHIMMY_PORT is that one's port."""
    environ = {"SHIMMY_PORT": "8080", "INFERENCE_MODEL_PATH": "m.gguf"}
    settings = load_all(Flags({"backend": "llamacpp"}), environ).settings
    assert (settings.backend_port, settings.upstream_url) == (8080, None)
    environ["INFERENCE_BACKEND"] = "llamacpp"
    assert load_all(Flags(), environ).settings.backend_port == 8080


@pytest.mark.parametrize(
    ("provider", "dialect"),
    [
        ("LM Studio", "openai"),
        ("llama.cpp", "openai"),
        ("OpenAI", "openai"),
        ("ollama", "openai"),
        ("vllm", "openai"),
        ("sglang", "openai"),
        ("triton", "triton"),
        ("shimmy", "shimmy"),
    ],
)
def test_providers(provider: str, dialect: str) -> None:
    """A provider is asked in OpenAI's form where it has that, and /health calls it by its name."""
    settings = load_all(Flags(), {**UPSTREAM, "INFERENCE_INFERENCE_PROVIDER": provider}).settings
    assert (settings.provider, settings.upstream_dialect) == (provider.lower(), dialect)


def test_a_provider_whose_dialect_is_given() -> None:
    """A provider that nobody knows is just a name, once its dialect is said; else it is refused."""
    environ = {**UPSTREAM, "INFERENCE_INFERENCE_PROVIDER": "ours"}
    with pytest.raises(ConfigError, match=r"INFERENCE_INFERENCE_PROVIDER.*openai.*'triton'"):
        load_all(Flags(), environ)
    environ["OPENAI_PROXY_UPSTREAM_DIALECT"] = "tgi"
    settings = load_all(Flags(), environ).settings
    assert (settings.provider, settings.upstream_dialect) == ("ours", "tgi")


def test_a_provider_that_has_another_name() -> None:
    """What /health calls a provider may be set: that leaves its dialect as it is."""
    environ = {**UPSTREAM, "INFERENCE_INFERENCE_PROVIDER": "triton"}
    environ["OPENAI_PROXY_PROVIDER"] = "ours"
    settings = load_all(Flags(), environ).settings
    assert (settings.provider, settings.upstream_dialect) == ("ours", "triton")


def test_nothing_is_implied_by_what_lost() -> None:
    """An alias that another value has replaced implies nothing."""
    environ = {"SEMINSTRUCT_SHIMMY_URL": "http://shimmy:8080", URL: "http://vllm:8000"}
    loaded = load_all(Flags(), environ)
    assert loaded.settings.upstream_url == "http://vllm:8000"
    assert "upstream_dialect" not in loaded.given.values


def test_what_is_given_is_not_implied() -> None:
    """What an alias implies is the weakest of all: any layer that gives it wins."""
    origins = {("upstream_url",): Origin("SEMINSTRUCT_SHIMMY_URL")}
    alone = with_implied(Layer({"upstream_url": "http://h"}, origins))
    assert alone.values["upstream_dialect"] == "shimmy"
    given = Layer({"upstream_url": "http://h", "upstream_dialect": "openai"}, origins)
    assert with_implied(given).values["upstream_dialect"] == "openai"


DEFAULT = """
# config/default.yaml
server:
  host: "127.0.0.1"
  port: 3000

inference:
  base_url: "http://127.0.0.1:1234/v1"
  timeout_secs: 30

logging:
  level: info
  format: pretty
  output: stdout
"""


def test_files_of_the_inference_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config/default.yaml and config/<environment>.yaml are read where they are."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "default.yaml").write_text(DEFAULT, encoding="utf-8")
    production = "server: {port: 8080}\nlogging: {format: json}\n"
    (tmp_path / "config" / "production.yaml").write_text(production, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    settings = load_all(Flags(), {"RUN_ENV": "production"}).settings

    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert settings.upstream_url == "http://127.0.0.1:1234/v1"
    assert settings.request_timeout_seconds == 30
    assert (settings.log_level, settings.log_format) == ("info", "json")


def test_unknown_keys_of_a_section(tmp_path: Path) -> None:
    """A key that a section does not have is told with its line and the one that is like it."""
    file = tmp_path / "config.yaml"
    file.write_text("upstream_url: http://h\nserver:\n  prot: 3000\n", encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_all(Flags(config=str(file)), {})
    assert str(raised.value) == f"{file}:3: server.prot is no setting; did you mean port?"

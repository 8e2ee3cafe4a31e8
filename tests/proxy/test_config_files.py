"""The configuration's files: which are read, what they may hold, how errors name the place."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import ClientSession
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from openai_proxy.config import ConfigError, Flags, load_all
from openai_proxy.config.explain import problems_of
from openai_proxy.config.sources import of_file
from openai_proxy.config.yaml_file import read
from tests.proxy.harness import CHAT, StandIn
from tests.proxy.processes import process

UPSTREAM = {"OPENAI_PROXY_UPSTREAM_URL": "http://h"}


def port(config: str | None = None, **environ: str) -> int:
    return load_all(Flags(config=config), {**UPSTREAM, **environ}).settings.port


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_file(folder: Path) -> None:
    """Without a file there are defaults and the environment."""
    assert port() == 8000
    assert port(RUN_ENV="production") == 8000


def test_usual_files(folder: Path) -> None:
    """config.yaml in the working directory is read, else config/default.yaml."""
    written(folder / "config" / "default.yaml", "port: 1")
    assert port() == 1
    written(folder / "config.yaml", "port: 2")
    assert port() == 2


def test_named_files(folder: Path) -> None:
    """A file that is named is read instead; the flag wins over the variable."""
    written(folder / "config.yaml", "port: 1")
    other = written(folder / "other.yaml", "port: 2")
    third = written(folder / "third.yaml", "port: 3")
    assert port(OPENAI_PROXY_CONFIG=str(other)) == 2
    assert port(str(third), OPENAI_PROXY_CONFIG=str(other)) == 3


def test_files_of_environments(folder: Path) -> None:
    """RUN_ENV's file lies over the one that it is beside; it may be missing, or be the only one."""
    written(folder / "config.production.yaml", "port: 2")
    assert port(RUN_ENV="production") == 2
    written(folder / "config.yaml", "port: 1")
    assert port(RUN_ENV="production") == 2
    assert port(RUN_ENV="staging") == 1
    assert port() == 1
    other = written(folder / "other" / "proxy.yml", "port: 3")
    written(folder / "other" / "proxy.staging.yml", "port: 4")
    assert port(str(other), RUN_ENV="staging") == 4


def test_watched_files(folder: Path) -> None:
    """Files that are not there yet are watched as well."""
    written(folder / "config" / "default.yaml", "port: 1")
    files = load_all(Flags(), {**UPSTREAM, "RUN_ENV": "test"}).files
    assert [str(path) for path in files.read] == ["config/default.yaml"]
    assert {str(path) for path in files.watched} == {
        "config.yaml",
        "config.test.yaml",
        "config/default.yaml",
        "config/test.yaml",
    }


@pytest.mark.parametrize(
    ("config", "environ", "says"),
    [
        ("missing.yaml", {}, "--config: there is no file missing.yaml"),
        (None, {"OPENAI_PROXY_CONFIG": "missing.yaml"}, "OPENAI_PROXY_CONFIG: there is no file"),
        (".", {}, ".: cannot be read: is a directory"),
        (None, {"RUN_ENV": "../../etc/passwd"}, "RUN_ENV: must be a name"),
    ],
)
def test_missing_files(
    folder: Path, config: str | None, environ: dict[str, str], says: str
) -> None:
    """A file that is named must be there."""
    with pytest.raises(ConfigError) as raised:
        port(config, **environ)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("port: 80a", ":1: port: input should be a valid integer"),
        ("\nquiet: false\nprot: 80", ":3: prot is no setting; did you mean port?"),
        ("sever: {port: 80}", ":1: sever is no setting; did you mean server?"),
        ("server: 80", ":1: server: must be a mapping"),
        ("port: 80\nport: 81", ":2: port is given twice"),
        ("port: [80", ":1: is not YAML"),
        ("port: 80\n  quiet: true", ":2: is not YAML"),
        ("a: !secret hunter2", ":1: is not YAML: could not determine a constructor"),
        ("port: !!int high", ":1: is not what its tag says"),
        ("quiet: !!bool 7", ":1: is not what its tag says"),
        ("- port: 80", ":1: must hold a mapping"),
        ("port", ":1: must hold a mapping"),
        ("? [a]\n: 1", ":1: has a key that is no text"),
        ("port: 80\n---\nport: 81", "is not YAML"),
        ("a: \x00", "characters that YAML forbids"),
        ("a: &a [*a]", "is nested more than 32 deep"),
        ("a: " + "[" * 40 + "]" * 40, ":1: is nested more than 32 deep"),
        ("a: " + "[" * 2000, "is nested more than 32 deep"),
        ("model_path: 7", ":1: model_path: must be text: put it in quotes"),
        ("log_level: [info]", ":1: log_level: input should be"),
        ("upstream_url: http://me:hunter2@h", ":1: upstream_url: must not contain a user"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, says: str) -> None:
    """What is wrong in a file is told with file and line, and quotes no secret."""
    file = written(tmp_path / "config.yaml", text)
    with pytest.raises(ConfigError) as raised:
        load_all(Flags(config=str(file)), {} if "upstream_url" in text else UPSTREAM)
    assert str(raised.value).startswith(str(file))
    assert says in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_many_values_by_anchors(tmp_path: Path) -> None:
    """A small file that stands for a billion values is refused, and at once."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    file = written(tmp_path / "config.yaml", "\n".join(lines))
    with pytest.raises(ConfigError, match="holds more than 100000 values"):
        load_all(Flags(config=str(file)), UPSTREAM)


YAML_LIKE = st.text("ab:- []{}&*<>?!|'\"#\n\t,0.~%@\\", max_size=40)


def problems_of_file(file: Path) -> tuple[str, ...]:
    try:
        load_all(Flags(config=str(file)), UPSTREAM)
    except ConfigError as error:
        return error.problems
    return ()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=40), YAML_LIKE.map(str.encode)))
def test_any_file(tmp_path: Path, content: bytes) -> None:
    """Whatever a file holds, it is read or refused with its name."""
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    assert all(problem.startswith(str(file)) for problem in problems_of_file(file))


def test_not_utf_8(tmp_path: Path) -> None:
    """A file in another encoding is told; a byte order mark does no harm."""
    file = tmp_path / "config.yaml"
    file.write_bytes(b"port: 1 # \xff")
    with pytest.raises(ConfigError, match="is not UTF-8 at byte 10"):
        port(str(file))
    file.write_bytes(b"\xef\xbb\xbfport: 1")
    assert port(str(file)) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("no", "no"),
        ("12:30", "12:30"),
        ("0123", "0123"),
        ("2026-11-22", "2026-11-22"),
        ("1_000", "1_000"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("7", 7),
        ("-7", -7),
        ("0.5", 0.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("'7'", "7"),
    ],
)
def test_scalars(tmp_path: Path, text: str, value: object) -> None:
    """Scalars are those of YAML 1.2."""
    values, _ = read(written(tmp_path / "f.yaml", f"a: {text}"), "f.yaml")
    assert values == {"a": value}
    assert type(values["a"]) is type(value)


def test_keys_are_text(tmp_path: Path) -> None:
    """Keys are taken as they are written: they may be names of models."""
    values, _ = read(written(tmp_path / "f.yaml", "a: {7: x, 1.50: y, true: z}"), "f.yaml")
    assert values == {"a": {"7": "x", "1.50": "y", "true": "z"}}


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    """Anchors may be used again, also in merge keys, whose values give way."""
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: *b\nd: [*b, *b]\n"
    values, lines = read(written(tmp_path / "f.yaml", text), "f.yaml")
    b = {"x": 1, "y": 3}
    assert values == {"a": {"x": 1, "y": 2}, "b": b, "c": b, "d": [b, b]}
    assert lines["b", "y"] == 2
    assert lines["d", 1, "x"] == 1


def test_null_takes_back(folder: Path) -> None:
    """`null` in an upper file gives the default again."""
    written(folder / "config.yaml", "port: 1\nserver: {host: h}")
    written(folder / "config.test.yaml", "port: null")
    loaded = load_all(Flags(), {**UPSTREAM, "RUN_ENV": "test"})
    assert (loaded.settings.port, loaded.settings.host) == (8000, "h")


class Upstream(BaseModel):
    """A structure among settings."""

    model_config = ConfigDict(extra="forbid")

    url: str
    weights: dict[str, int] = Field(default_factory=dict)
    key: SecretStr | None = None


class Example(BaseModel):
    """Settings with structures."""

    model_config = ConfigDict(extra="forbid")

    upstreams: tuple[Upstream, ...] = ()
    models: dict[str, Upstream] | None = None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("upstreams:\n- ulr: x", [":2: upstreams[0].url is missing", ":2: upstreams[0].ulr is no"]),
        (
            "upstreams:\n- url: x\n  ulr: x",
            [":3: upstreams[0].ulr is no setting; did you mean url"],
        ),
        ("models:\n  phi:\n    url: [x]", [":3: models.phi.url: input should be a valid string"]),
        ("models:\n  phi:\n    urls: x\n    url: 7", [":4: models.phi.url: must be text"]),
        ("upstreams: {url: x}", [":1: upstreams: must be a list"]),
        ("models: [x]", [":1: models: must be a mapping"]),
        ("upstreams:\n- x", [":2: upstreams[0]: must be a mapping"]),
        (
            "upstreams:\n- url: x\n  weights: {a: 1,\n    b: hunter2}",
            [":4: upstreams[0].weights.b: input should be a valid integer"],
        ),
        ("upstreams:\n- url: x\n  key: [hunter2]", [":3: upstreams[0].key: "]),
    ],
)
def test_places_in_structures(tmp_path: Path, text: str, says: list[str]) -> None:
    """In a structure, too, an error has its line and its path, and quotes no value."""
    file = written(tmp_path / "config.yaml", text)
    layer = of_file(file)
    with pytest.raises(ValidationError) as raised:
        Example.model_validate(layer.values)
    problems = problems_of(raised.value, layer, Example)
    for sentence in says:
        assert any(problem.startswith(f"{file}{sentence}") for problem in problems), problems
    assert "hunter2" not in "".join(problems)


async def test_a_process_with_files(tmp_path: Path, upstream: StandIn) -> None:
    """The proxy starts with what its files say, the environment's over the other."""
    file = written(tmp_path / "proxy.yaml", f"upstream_url: {upstream.url}\nmax_body_bytes: 9\n")
    written(tmp_path / "proxy.test.yaml", "max_body_bytes: 10\n")
    flags = ("--config", str(file))
    async with (
        process(tmp_path, *flags, wait_for="/health/ready", RUN_ENV="test") as proxy,
        ClientSession() as http,
    ):
        statuses = []
        for size in (10, 11):
            async with http.post(proxy.url + CHAT, data=b" " * size) as response:
                statuses.append(response.status)
    assert statuses == [400, 413]

"""Every setting, metric and error code stands in the documentation."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from prometheus_client import CollectorRegistry

from kserve_llamacpp.config import add_flags
from kserve_llamacpp.metrics import EngineMetrics
from openai_protocol.errors import ErrorCode
from openai_proxy.config import schema
from openai_proxy.config.aliases import PASSED_ON
from openai_proxy.config.reload import NEEDS_RESTART
from openai_proxy.metrics import Metrics
from tests.docs import proxy_settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ERRORS = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")


def predictor_flags() -> list[str]:
    parser = argparse.ArgumentParser(add_help=False)
    add_flags(parser)
    return [action.option_strings[0] for action in parser._actions]


def metric_names() -> list[str]:
    registry = CollectorRegistry()
    EngineMetrics("m", lambda: 0, lambda: 0, registry)
    families = [*registry.collect(), *Metrics(lambda _: False).registry.collect()]
    names = [f"{f.name}_total" if f.type == "counter" else f.name for f in families]
    return [name for name in names if not name.startswith(("python_", "process_"))]


@pytest.mark.parametrize("flag", predictor_flags())
def test_predictor_flag(flag: str) -> None:
    """README has each flag of the predictor."""
    assert f"| `{flag}` |" in README


@pytest.mark.parametrize(
    ("path", "made"), proxy_settings.MADE, ids=lambda held: getattr(held, "name", "")
)
def test_proxy_settings(path: Path, made: Callable[[str], str]) -> None:
    """What is made of the proxy's settings is what `python -m tests.docs.proxy_settings` writes."""
    document = path.read_text(encoding="utf-8")
    assert made(document) == document


@pytest.mark.parametrize("name", PASSED_ON)
def test_variables_of_backends(name: str) -> None:
    """The document says which variables of other systems only a backend reads."""
    assert f"`{name}`" in proxy_settings.CONFIGURATION.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", metric_names())
def test_metric(name: str) -> None:
    """README has each metric."""
    assert f"| `{name}` |" in README


@pytest.mark.parametrize("code", list(ErrorCode))
def test_error_code(code: ErrorCode) -> None:
    """The list of errors has each code."""
    assert f"`{code}`" in ERRORS


@pytest.mark.parametrize("name", NEEDS_RESTART)
def test_what_needs_a_restart(name: str) -> None:
    """What cannot change while the proxy runs is listed."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert f"`{name}*`" in text if name.endswith("_") else f"`{name}`" in text


def test_examples_of_configuration() -> None:
    """The configuration files that the document shows have the schema."""
    document = proxy_settings.CONFIGURATION.read_text(encoding="utf-8")
    examples = re.findall(r"```yaml\n(.*?)```", document, re.DOTALL)
    validator = Draft202012Validator(schema.build())
    assert examples
    for example in examples:
        assert list(validator.iter_errors(yaml.safe_load(example))) == []

"""Every setting, metric and error code stands in the documentation."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from kserve_llamacpp.config import add_flags
from kserve_llamacpp.metrics import EngineMetrics
from openai_protocol.errors import ErrorCode
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
    families = [*registry.collect(), *Metrics(lambda: ()).registry.collect()]
    names = [f"{f.name}_total" if f.type == "counter" else f.name for f in families]
    return [name for name in names if not name.startswith(("python_", "process_"))]


@pytest.mark.parametrize("flag", predictor_flags())
def test_predictor_flag(flag: str) -> None:
    """README has each flag of the predictor."""
    assert f"| `{flag}` |" in README


def test_proxy_settings() -> None:
    """The table of the proxy's settings is what `python -m tests.docs.proxy_settings` writes."""
    document = proxy_settings.DOCUMENT.read_text(encoding="utf-8")
    assert proxy_settings.with_table(document) == document


@pytest.mark.parametrize("name", metric_names())
def test_metric(name: str) -> None:
    """README has each metric."""
    assert f"| `{name}` |" in README


@pytest.mark.parametrize("code", list(ErrorCode))
def test_error_code(code: ErrorCode) -> None:
    """The list of errors has each code."""
    assert f"`{code}`" in ERRORS

"""docs/replaces.md: nothing of the five systems is forgotten, and what it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from openai_proxy.config import Settings

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "replaces.md").read_text(encoding="utf-8")
SYSTEMS = [
    "Inference Service",
    "Semantic Explorer's LLM Inference API",
    "SemInstruct",
    "Deterministic Inference Server",
    "Shimmy OpenAI Proxy on SAP AI Core",
]
TO_COME = "to come"
_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
# What the five documents have: endpoints, variables, flags, codes, metrics, and the roadmap.
EVERYTHING = [
    *("GET /", "GET /health", "GET /health/live", "GET /health/ready", "GET /metrics"),
    *("GET /v1/models", "GET /api/models", "POST /v1/completions", "POST /v1/chat/completions"),
    *("POST /api/generate", "POST /api/generate/stream", "POST /api/chat", "/swagger-ui/"),
    *("EMPTY_MESSAGES", "MODEL_NOT_ALLOWED", "PROVIDER_CONNECTION_FAILED"),
    *("INFERENCE_SERVER_PORT", "INFERENCE_INFERENCE_BASE_URL", "INFERENCE_LOGGING_LEVEL"),
    *("INFERENCE_INFERENCE_DEFAULT_MODEL", "INFERENCE_MODEL_PATH", "INFERENCE_BACKEND"),
    *("INFERENCE_BACKEND_HOST", "INFERENCE_BACKEND_PORT", "INFERENCE_PROXY_HOST"),
    *("INFERENCE_PROXY_PORT", "INFERENCE_LOG_LEVEL", "INFERENCE_LOG_FILE", "RUST_LOG"),
    *("--model-path", "--backend", "--backend-host", "--backend-port", "--proxy-host"),
    *("--proxy-port", "--log-level", "--log-file", "--backend-startup-timeout"),
    *("LLM_INFERENCE_PORT", "LLM_DEFAULT_MODEL", "LLM_ALLOWED_MODELS", "LLM_MAX_TOKENS_LIMIT"),
    *("LLM_DEFAULT_TEMPERATURE", "LLM_DEFAULT_MAX_TOKENS", "LLM_MAX_CONCURRENT_REQUESTS"),
    *("HF_HOME", "CUDA_VISIBLE_DEVICES", "HF_ENDPOINT", "SHIMMY_PORT", "LOG_LEVEL"),
    *("SEMINSTRUCT_SHIMMY_URL", "SEMINSTRUCT_PORT", "SEMINSTRUCT_TIMEOUT_SECONDS"),
    *("SEMINSTRUCT_MAX_RETRIES", "seminstruct_requests_total", "seminstruct_errors_total"),
    *("seminstruct_request_duration_seconds", "seminstruct_shimmy_errors_total"),
    *("metrics", "tracing", "streaming", "Triton", "OpenAI API", "caching", "rate limiting"),
    *("circuit breaker", "WebSocket", "multi-model routing", "A/B testing"),
]


def rows() -> list[list[str]]:
    """The tables' rows, without their heads."""
    found = []
    for line in DOCUMENT.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        is_head = cells == ["there", "here", "shown by"] or not set("".join(cells)) - set("- ")
        if line.startswith("| ") and not is_head:
            found.append(cells)
    return found


def named_tests() -> list[tuple[str, str]]:
    """Each test that the document names: its file, and its function or nothing."""
    return sorted(set(_TEST.findall(DOCUMENT)))


@pytest.mark.parametrize(("file", "function"), named_tests())
def test_named_test_exists(file: str, function: str) -> None:
    """A test that is named shows what it is said to show at least by being there."""
    path = ROOT / file
    if function:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        assert function in functions
    else:
        assert path.exists()


# Written at the same time as this; remove it when they are there.
def test_every_row_is_shown() -> None:
    """Each row names a test, or says that it is to come."""
    assert len(rows()) > 90
    for row in rows():
        assert len(row) == 3, row
        assert _TEST.search(row[2]) or row[2] == TO_COME, row
        assert bool(row[1]) == (row[2] != TO_COME), row


@pytest.mark.parametrize("item", EVERYTHING)
def test_nothing_is_forgotten(item: str) -> None:
    """What the documents have stands in a row of its own, or with others of its kind."""
    word = re.compile(rf"(?<![\w/-]){re.escape(item)}(?![\w/-])")
    assert [row for row in rows() if word.search(row[0])]


def test_systems() -> None:
    """There is a section for each system, in the order of the examples' table."""
    assert re.findall(r"^## (.*)", DOCUMENT, re.MULTILINE) == SYSTEMS


def test_what_is_to_come_is_not_there_yet() -> None:
    """Nothing is said to be missing that is there: the settings know nothing of it."""
    missing = " ".join(row[0] for row in rows() if row[2] == TO_COME)
    for word, fields in {
        "rate limiting": "rate_limit",
        "circuit breaker": "breaker",
        "caching": "response_cache",
        "WebSocket": "websocket",
    }.items():
        assert word in missing
        assert not [name for name in Settings.model_fields if fields in name], word


def test_settings_are_ours() -> None:
    """A setting in the middle column is one that there is."""
    known = set(Settings.model_fields) | {
        *("upstreams", "models"),
    }
    for row in rows():
        for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", row[1]):
            assert name in known, row

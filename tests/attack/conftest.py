"""The servers that most attacks share: a predictor, and a proxy in front of it.

An attack that ends one of them fails, and the next attack finds new ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attack import servers
from tests.attack.canary import normal
from tests.attack.servers import Target
from tests.predictor.tiny_models import write_tiny_model


class Shared:
    """A server for many tests; started when it is asked for, and anew when it is not well."""

    def __init__(self, start: Callable[[contextlib.ExitStack], Target]) -> None:
        self._start = start
        self._stack = contextlib.ExitStack()
        self._target: Target | None = None

    def running(self) -> Target:
        """Return it, well."""
        if self._target is None or normal(self._target.url, seconds=5).status != 200:
            self.close()
            self._target = self._start(self._stack)
        return self._target

    def close(self) -> None:
        """End it."""
        self._stack.close()


@pytest.fixture(scope="session")
def _pair(model_path: Path) -> Iterator[Shared]:
    def start(stack: contextlib.ExitStack) -> Target:
        behind = stack.enter_context(servers.predictor(model_path, has_grpc=True))
        # keys are told apart as in manifests/kserve/proxy
        flags = (f"--upstream-url={behind.url}", '--upstream-headers={"tenant_from_key": true}')
        return stack.enter_context(servers.proxy(*flags, behind=behind))

    shared = Shared(start)
    yield shared
    shared.close()


@pytest.fixture(scope="session")
def _tekken(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    path = servers.tekken_model(model_path, tmp_path_factory.mktemp("tekken"))

    def start(stack: contextlib.ExitStack) -> Target:
        return stack.enter_context(servers.predictor(path, "--n_ctx=2048", "--max_sequences=4"))

    shared = Shared(start)
    yield shared
    shared.close()
    path.unlink()


@pytest.fixture
def tekken(_tekken: Shared) -> Target:
    """A predictor with a small context whose model has Tekken's pre-tokenizer."""
    return _tekken.running()


@pytest.fixture
def proxy(_pair: Shared) -> Iterator[Target]:
    """The shared proxy. After the attack it must be as it was, and so must the predictor."""
    running = _pair.running()
    behind = running.predictor
    assert behind is not None
    both = (running, behind)
    before = [(target.pids, len(target.tracebacks())) for target in both]
    deaths = behind.num_deaths
    yield running
    assert [(target.pids, len(target.tracebacks())) for target in both] == before
    assert behind.num_deaths == deaths
    assert [target.group.num_kills for target in both if target.group] in ([], [0, 0])


@pytest.fixture(params=["predictor", "proxy"])
def target(proxy: Target, request: pytest.FixtureRequest) -> Target:
    """Each of the shared servers in turn."""
    if request.param == "proxy":
        return proxy
    assert proxy.predictor is not None
    return proxy.predictor


@pytest.fixture
def shared_predictor(proxy: Target) -> Target:
    """The shared predictor alone."""
    assert proxy.predictor is not None
    return proxy.predictor


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is loaded in no time, for what no model matters to."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), "llama")

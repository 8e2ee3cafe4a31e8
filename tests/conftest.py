"""What the tests of all rooms share: the real model, and how workers divide them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bootstrap import model
from bootstrap.cache import open_cache
from http_edge.cgroup import num_cpus

# More would only be in the way of those that look at the clock.
MOST_WORKERS = 4


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many workers for `-n auto` as there are CPUs that the container may use."""
    return min(num_cpus(), MOST_WORKERS)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests with the real model together by module: they share servers.

    Groups are started first, the small tests fill what is left of the time.
    """
    for item in items:
        if item.get_closest_marker("model") and "memories" not in item.path.parts:
            # those of tests/attack share servers over all their modules
            group = "attack" if "attack" in item.path.parts else item.path.stem
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The default model's file; fetched unless it is in the cache."""
    return model.ensure(open_cache(os.environ), os.environ)

"""What the tests of all rooms share: the real model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bootstrap import model
from bootstrap.cache import open_cache


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The default model's file; fetched unless it is in the cache."""
    return model.ensure(open_cache(os.environ), os.environ)

"""Hypothesis without a deadline: the machines that run these tests are shared and slow.

And models of each kind of memory, a hundred kilobytes each.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests.predictor.tiny_models import ARCHITECTURES, write_tiny_model

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The file of a tiny model with random weights, by architecture."""
    directory = tmp_path_factory.mktemp("models")
    return {name: write_tiny_model(directory, name) for name in ARCHITECTURES}

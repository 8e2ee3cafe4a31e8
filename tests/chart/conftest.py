"""The chart's tests need helm: without it they say so once, and fail."""

from __future__ import annotations

import pytest

from tests.chart import helm


def pytest_sessionstart(session: pytest.Session) -> None:
    """Look for helm before anything else."""
    try:
        helm.program()
    except helm.HelmFailed as error:
        pytest.exit(str(error), returncode=1)

"""The images: what they add to their base, who they run as, what they say of themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.cluster import Cluster

_MEGABYTE = 1_000_000
_LARGEST_PROXY = 90 * _MEGABYTE
_TARGETS = ("proxy", "predictor", "all-in-one")

pytestmark = pytest.mark.short


@pytest.fixture(scope="module")
def base_size(cluster: Cluster) -> int:
    """The size of the base, unpacked, in bytes."""
    image = cluster.base_image
    return int(cluster.inspect(image)["Size"])


@pytest.mark.parametrize("target", _TARGETS)
def test_size(
    cluster: Cluster, base_size: int, target: str, record_property: Callable[[str, object], None]
) -> None:
    """What an image adds to its base, unpacked, is told; the proxy's part is bounded."""
    added = int(cluster.inspect(cluster.image(target))["Size"]) - base_size

    record_property("MB unpacked over the base", round(added / _MEGABYTE))
    assert added > 0
    if target == "proxy":
        assert added <= _LARGEST_PROXY


@pytest.mark.parametrize("target", _TARGETS)
def test_configuration(cluster: Cluster, target: str) -> None:
    """Images run as nobody, start their server without a shell, and have labels and a check."""
    config = cluster.inspect(cluster.image(target))["Config"]

    assert config["User"] == "65534:65534"
    assert config["Entrypoint"][:2] == ["python", "-m"]
    assert config["Healthcheck"]["Test"][0] == "CMD"
    for label in ("title", "description", "licenses", "version", "revision"):
        assert config["Labels"][f"org.opencontainers.image.{label}"]

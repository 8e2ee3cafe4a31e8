"""A request's path in the one form that routes and access rules see."""

from __future__ import annotations

import pytest

from http_edge.paths import normalized, part


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/", "/"),
        (b"/v1/models", "/v1/models"),
        (b"/v1/models/", "/v1/models/"),
        (b"/v1/models/a%2Fb", "/v1/models/a%2Fb"),
        (b"/v1/models/a%2fb", "/v1/models/a%2Fb"),
        (b"/v1%2Fmodels", "/v1%2Fmodels"),
        (b"/v1/models/a%252Fb", "/v1/models/a%252Fb"),
        (b"/v1/models/50%25", "/v1/models/50%25"),
        (b"/v1/m%6Fdels/%C3%A4", "/v1/models/\u00e4"),
        (b"/v1/models/.hidden", "/v1/models/.hidden"),
        (b"/v1/models/a%2F..", "/v1/models/a%2F.."),
        (b"*", "*"),
        (b"//", None),
        (b"//v1/models", None),
        (b"/v1//models", None),
        (b"/v1/../metrics", None),
        (b"/v1/%2e%2E/metrics", None),
        (b"/v1/.%2e", None),
        (b"/./metrics", None),
        (b"/v1/%2e/metrics", None),
        (b"/health/live/..", None),
    ],
)
def test_paths(raw: bytes, path: str | None) -> None:
    """Parts are decoded where they stand; what would be another path when resolved is none."""
    assert normalized(raw) == path


@pytest.mark.parametrize("name", ["a/b", "a%2Fb", "50%", "%25", "\u00e4", "a+b"])
def test_a_name_comes_back(name: str) -> None:
    """A name that was encoded once is the same after the path was put into its form."""
    from urllib.parse import quote

    path = normalized(b"/v1/models/" + quote(name, safe="").encode())
    assert path is not None
    assert path.count("/") == 3
    assert part(path.rpartition("/")[2]) == name

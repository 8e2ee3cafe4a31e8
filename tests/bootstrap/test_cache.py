"""Where the cache is, and that an unusable place is refused."""

from pathlib import Path

import pytest

from bootstrap.cache import locate, open_cache
from bootstrap.errors import BootstrapError


def test_variable_wins() -> None:
    """KSERVE_LLAMACPP_CACHE decides over XDG_CACHE_HOME and HOME."""
    environ = {"KSERVE_LLAMACPP_CACHE": "/a/b", "XDG_CACHE_HOME": "/x", "HOME": "/h"}
    assert locate(environ) == Path("/a/b")


def test_relative_variable_is_made_absolute() -> None:
    """A relative directory means one below where make was started, also for later children."""
    assert locate({"KSERVE_LLAMACPP_CACHE": "kept"}) == Path.cwd() / "kept"


@pytest.mark.parametrize("shared", ["", "relative/path"])
def test_home_when_xdg_is_unusable(shared: str) -> None:
    """An empty or relative XDG_CACHE_HOME counts as none."""
    environ = {"KSERVE_LLAMACPP_CACHE": "", "XDG_CACHE_HOME": shared, "HOME": "/h"}
    assert locate(environ) == Path("/h/.cache/kserve-llamacpp")


def test_xdg_before_home() -> None:
    """XDG_CACHE_HOME decides over HOME."""
    assert locate({"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/kserve-llamacpp")


def test_no_home_asks_the_user_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without HOME the home directory of the user's account is taken."""
    monkeypatch.setattr(Path, "home", lambda: Path("/from/database"))
    assert locate({}) == Path("/from/database/.cache/kserve-llamacpp")


def test_no_home_at_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id without an account gets a message that names the variable."""

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(BootstrapError, match="KSERVE_LLAMACPP_CACHE"):
        locate({})


def test_missing_directory_is_made(tmp_path: Path) -> None:
    """The cache directory is made with its parents."""
    cache = open_cache({"KSERVE_LLAMACPP_CACHE": str(tmp_path / "a" / "b")})
    assert cache.root.is_dir()


def test_unusable_directory_is_refused(tmp_path: Path) -> None:
    """A place that nothing can be written to is refused with the variable's name."""
    (tmp_path / "file").touch()
    with pytest.raises(BootstrapError, match=r"cannot be written to .* set KSERVE_LLAMACPP_CACHE"):
        open_cache({"KSERVE_LLAMACPP_CACHE": str(tmp_path / "file" / "below")})

"""The pip that is kept beside this file, run by any interpreter with the user's settings."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from bootstrap import process
from bootstrap.errors import BootstrapError, CommandFailed

WHEEL = Path(__file__).resolve().parent / "vendor" / "pip-26.3-py3-none-any.whl"

# Only what says where packages come from, and how to get there, is the user's business here;
# anything else (PIP_USER, PIP_TARGET, PIP_NO_BINARY, PIP_CONSTRAINT, ...) would change what is
# installed, or where to.
_KEPT_SETTINGS = frozenset(
    {
        "PIP_CACHE_DIR",
        "PIP_CERT",
        "PIP_CLIENT_CERT",
        "PIP_CONFIG_FILE",
        "PIP_DEFAULT_TIMEOUT",
        "PIP_EXTRA_INDEX_URL",
        "PIP_FIND_LINKS",
        "PIP_INDEX_URL",
        "PIP_KEYRING_PROVIDER",
        "PIP_NO_CACHE_DIR",
        "PIP_NO_INDEX",
        "PIP_NO_PROXY_ENV",
        "PIP_PROXY",
        "PIP_RESUME_RETRIES",
        "PIP_RETRIES",
        "PIP_TIMEOUT",
        "PIP_TRUSTED_HOST",
    }
)
# Set, not only dropped: a variable wins over the same setting in a pip.conf.
_OWN_SETTINGS = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    "PIP_REQUIRE_VIRTUALENV": "0",
    "PIP_ROOT_USER_ACTION": "ignore",
    "PIP_USER": "0",
}
_SHOWN_LINES = 40

Advice = tuple[tuple[str, str], ...]
"""Patterns looked for in the end of a log, each with what to mend; the first found counts."""

_INDEX_ADVICE = (
    "pip cannot reach its package index: check the network, and the settings that pip itself reads "
    "(pip.conf, PIP_INDEX_URL, PIP_CERT, HTTPS_PROXY)"
)
ADVICE: Advice = (
    (
        r"DO NOT MATCH THE HASHES",
        "a download differs from what requirements/ pins: the index serves another file",
    ),
    (
        r"No space left on device",
        "the disk is full: free some, or set KSERVE_LLAMACPP_CACHE to a place on another",
    ),
    (r"CERTIFICATE_VERIFY_FAILED|SSLError|ConnectionError|Connection refused", _INDEX_ADVICE),
    (r"Temporary failure in name resolution|NewConnectionError|ProxyError", _INDEX_ADVICE),
    (
        r"No matching distribution found",
        (
            "the package index has no file that fits this Python and this machine, or pip cannot "
            "reach it: check PIP_INDEX_URL, PIP_NO_INDEX and pip.conf"
        ),
    ),
)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for pip: its ways to the index kept, whatever else would steer it gone."""
    kept = {
        name: value
        for name, value in process.clean(environ).items()
        if not name.startswith("PIP_") or name in _KEPT_SETTINGS
    }
    return kept | _OWN_SETTINGS


def command(python: Path, *arguments: str | Path) -> list[str]:
    """The command line that runs this pip with an interpreter."""
    return [os.fspath(part) for part in (python, f"{WHEEL}/pip", *arguments)]


def run(
    task: str,
    arguments: list[str | Path],
    *,
    python: Path,
    environ: Mapping[str, str],
    log: Path,
    modules: Path | None = None,
    on_line: Callable[[str], None] = lambda line: None,
    advice: Advice = ADVICE,
) -> None:
    """Run pip, with a directory of modules in its sight; a failure says what to mend."""
    settings = environment(environ)
    if modules is not None:
        settings["PYTHONPATH"] = os.fspath(modules)
    try:
        process.run(task, command(python, *arguments), settings, log, on_line)
    except CommandFailed as failure:
        raise explain(failure, advice) from failure


def explain(failure: CommandFailed, advice: Advice) -> BootstrapError:
    """The failure as a message: the end of the log, where the rest is, and what to mend."""
    text = "\n".join(failure.tail)
    hints = [hint for pattern, hint in advice if re.search(pattern, text)]
    closing = hints[0] if hints else "the log says what went wrong"
    shown = "\n".join(failure.tail[-_SHOWN_LINES:])
    return BootstrapError(f"{shown}\n\n{failure}\nlog: {failure.log}\n{closing}")

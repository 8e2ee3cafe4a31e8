"""The others: somebody who asks for a short answer again and again while a server is attacked."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from tests.attack.wire import Answer, ask

NORMAL = {"model": "smollm2", "prompt": "One", "max_tokens": 1}
TENANT = ("X-Tenant", "canary")
# How long the others may wait while a server is attacked. ATTACK_SECONDS gives a busy machine more;
# beside other workers' tests everybody waits for a core now and then.
_IS_ALONE = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) == 1
MOST_SECONDS = float(os.environ.get("ATTACK_SECONDS", "2" if _IS_ALONE else "6"))
_EVERY_SECONDS = 0.15
_PATIENCE_SECONDS = 90.0


class Canary:
    """Asks while its block runs; at the end every answer must have come, and in time."""

    def __init__(
        self, url: str, most_seconds: float = MOST_SECONDS, model: str = "smollm2"
    ) -> None:
        self._url = url
        self._most_seconds = most_seconds
        self._body = {**NORMAL, "model": model}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.longest = self.longest_at = 0.0
        self._began = time.monotonic()
        self.statuses: dict[int, int] = {}

    def __enter__(self) -> Canary:
        self._ask()  # the first one finds a server at rest
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join(2 * _PATIENCE_SECONDS)
        if error is None:
            self._ask()  # the last one finds it alive
            self.check()

    def check(self) -> None:
        """Fail unless all was answered, with 200 and in time."""
        said = (
            f"longest {self.longest:.2f} s of {self._most_seconds:g}, asked after "
            f"{self.longest_at:.1f} s; statuses {self.statuses}; load {os.getloadavg()[0]:.1f}"
        )
        print(f"canary: {said}")
        assert set(self.statuses) == {200}, said
        assert self.longest <= self._most_seconds, said

    def _run(self) -> None:
        while not self._is_over.wait(_EVERY_SECONDS):
            self._ask()

    def _ask(self) -> None:
        began = time.monotonic()
        answer = normal(self._url, self._body)
        seconds = time.monotonic() - began
        self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
        if seconds > self.longest:
            self.longest, self.longest_at = seconds, began - self._began


def normal(
    url: str, body: Mapping[str, Any] = NORMAL, seconds: float = _PATIENCE_SECONDS
) -> Answer:
    """Ask for a short answer, as anybody does."""
    return ask(url, "POST", "/v1/completions", body, headers=[TENANT], seconds=seconds)

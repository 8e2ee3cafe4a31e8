"""Real servers as child processes: started on free ports, watched through their logs, ended."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from http_edge.cgroup import num_cpus

START_SECONDS = 90.0
# An engine whose threads wait for a core holds up its own: it gets this worker's share of them.
NUM_THREADS = max(1, num_cpus() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
_C = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class Server:
    """A server in a process of its own; its JSON log lines are kept as events."""

    def __init__(
        self, command: list[str], env: dict[str, str] | None = None, new_session: bool = False
    ) -> None:
        self.events: list[dict[str, Any]] = []
        self.text: list[str] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            command,
            start_new_session=new_session,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            preexec_fn=_end_with_parent,  # noqa: PLW1509  # a call of the kernel, no lock is taken
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            print("".join(self.text[-60:]))
        self.kill()

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_for(
        self,
        event: str,
        nth: int = 1,
        seconds: float = START_SECONDS,
        without: str = "",
        **fields: Any,
    ) -> dict[str, Any]:
        """Return the nth log line with this event and these fields; fails when it does not come.

        `without` names a field that the line must not have.
        """

        def found() -> dict[str, Any] | None:
            lines = [
                line
                for line in self.events
                if line.get("event") == event
                and fields.items() <= line.items()
                and without not in line
            ]
            return lines[nth - 1] if len(lines) >= nth else None

        deadline = time.monotonic() + seconds
        with self._news:
            while (line := found()) is None:
                left = deadline - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and not self._reader.is_alive()):
                    raise AssertionError(f"no {event!r} {fields}:\n" + "".join(self.text[-40:]))
                self._news.wait(min(left, 0.5))
        return line

    def wait_for_text(self, words: str, seconds: float = START_SECONDS) -> None:
        """Wait until a line with these words was printed; fails when none comes."""
        with self._news:
            if not self._news.wait_for(lambda: any(words in t for t in self.text), seconds):
                raise AssertionError(f"no {words!r}:\n" + "".join(self.text[-40:]))

    def find(self, module: str) -> psutil.Process:
        """Return the process below this one that runs a module."""
        found = []
        for child in descendants(self.pid):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended just now
                if child.cmdline()[1:3] == ["-m", module]:
                    found.append(child)
        assert len(found) == 1, found
        return found[0]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_status(self, seconds: float = 60.0) -> int:
        """Wait for the end; return the exit status."""
        status = self.process.wait(seconds)
        self._reader.join(5)
        return status

    def kill(self) -> None:
        """End it and everything that it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            line = raw.decode("utf-8", "replace")
            with self._news:
                self.text.append(line)
                if line.startswith("{"):
                    with contextlib.suppress(json.JSONDecodeError):
                        self.events.append(json.loads(line))
                self._news.notify_all()


class Predictor(Server):
    """A predictor with the real model, on a free port; `first` is Python that runs before it."""

    def __init__(
        self,
        model_path: Path,
        *flags: str,
        env: dict[str, str] | None = None,
        first: str | None = None,
    ) -> None:
        run = ("-m", "kserve_llamacpp")
        if first is not None:
            run = (
                "-c",
                f"{first}; from kserve_llamacpp.server import main; raise SystemExit(main())",
            )
        super().__init__(
            [
                *(sys.executable, *run, "--model_name=smollm2"),
                *(f"--model_dir={model_path}", "--http_host=127.0.0.1", "--http_port=0"),
                *("--log_format=json", "--drain_delay_seconds=0"),
                *(f"--n_threads={NUM_THREADS}", *flags),
            ],
            env=env,
        )

    @property
    def url(self) -> str:
        """The base URL, as soon as the port is open."""
        return f"http://127.0.0.1:{self.wait_for('http_listening')['port']}"

    def ready(self) -> Predictor:
        """Wait until the model is loaded."""
        self.wait_for("model_ready")
        return self

    def engine(self) -> psutil.Process:
        """Return the engine's process."""
        return self.find("kserve_llamacpp.engine.worker")


class Proxy(Server):
    """A proxy that runs a predictor with the real model, on a free port."""

    def __init__(self, model_path: Path, *flags: str, env: dict[str, str] | None = None) -> None:
        super().__init__(
            [
                *(sys.executable, "-m", "openai_proxy", "--backend=llamacpp"),
                *(f"--model-path={model_path}", "--model-name=smollm2"),
                *("--host=127.0.0.1", "--port=0", "--log-format=json"),
                *("--drain-delay-seconds=0", f"--backend-arg=--n_threads={NUM_THREADS}", *flags),
            ],
            env=env,
        )

    @property
    def url(self) -> str:
        """The base URL, as soon as the port is open."""
        return f"http://127.0.0.1:{self.wait_for('listening')['port']}"

    def ready(self) -> Proxy:
        """Wait until the model has answered."""
        self.wait_for_text("Ready: ")
        return self


def _end_with_parent() -> None:
    """Have this process killed when the one that started it dies, as a worker of xdist may."""
    if sys.platform == "linux":
        _C.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def descendants(pid: int) -> list[psutil.Process]:
    """Return all that a process has started."""
    return psutil.Process(pid).children(recursive=True)

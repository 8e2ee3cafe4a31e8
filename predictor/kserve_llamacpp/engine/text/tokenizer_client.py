"""The engine's side of the tokenizer's process: starts it, gives it texts, gets their tokens."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from array import array
from collections.abc import Mapping

import msgspec

from kserve_llamacpp.engine.text.text_bounds import TextBounds
from kserve_llamacpp.engine.text.text_queue import Failure
from kserve_llamacpp.engine.text.tokenizer_process import ANSWER, ARRAY_TYPE, REQUEST, TAKEN

_READ_BYTES = 1 << 16


class Job:
    """A text that is being tokenized; owner: the tokenizer. Closed, nobody tokenizes it further."""

    def __init__(
        self, control: socket.socket, data: bytes, add_special: bool, longest: int, is_long: bool
    ) -> None:
        """Hand a text over; raises OSError."""
        self._memory = os.memfd_create("text", os.MFD_CLOEXEC)
        self._answers, theirs = socket.socketpair()
        try:
            with theirs:
                _write(self._memory, data)
                request = REQUEST.pack(add_special, is_long, longest, len(data))
                fds = [self._memory, theirs.fileno()]
                socket.send_fds(control, [request], fds, socket.MSG_DONTWAIT)
        except BaseException:
            self.close()
            raise
        self._answers.setblocking(False)
        self._told = b""

    def fileno(self) -> int:
        """Return a descriptor that can be read when there is news."""
        return self._answers.fileno()

    def result(self) -> list[int] | Failure | None:
        """Return the text's tokens, or why there are none; None: it is still being tokenized."""
        is_over = False
        with contextlib.suppress(BlockingIOError):
            try:
                while data := self._answers.recv(_READ_BYTES):
                    self._told += data
                is_over = True
            except ConnectionError:
                is_over = True
        answer = self._told[len(TAKEN) :]
        if len(answer) == ANSWER.size:
            fits, count = ANSWER.unpack(answer)
            return self._tokens(count) if fits else Failure.TOO_LONG
        if not is_over:
            return None
        return Failure.UNREADABLE if self._told else Failure.LOST

    def close(self) -> None:
        """End what still works on the text."""
        self._answers.close()
        os.close(self._memory)

    def _tokens(self, count: int) -> list[int]:
        tokens = array(ARRAY_TYPE)
        tokens.frombytes(os.pread(self._memory, count * tokens.itemsize, 0))
        return tokens.tolist()


def _write(fd: int, data: bytes) -> None:
    """Write all of a text; raises OSError."""
    written = 0
    with memoryview(data) as rest:
        while written < len(data):
            written += os.write(fd, rest[written:])


class TokenizerProcess:
    """A tokenizer's process; owner: the tokenizer. It ends when this end of its socket closes."""

    def __init__(self, command: list[str]) -> None:
        """Start it; `{fd}` in the command stands for its socket. Raises OSError."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fd = str(theirs.fileno())
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [part.replace("{fd}", fd) for part in command],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=tokenizer_environment(os.environ),
                )
        except BaseException:
            self._control.close()
            raise
        self._control.setblocking(False)
        self.bounds: TextBounds | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def fileno(self) -> int:
        """Return a descriptor that can be read when there is news."""
        return self._control.fileno()

    def is_alive(self) -> bool:
        """Whether it can be given texts; takes note of the bounds that it tells."""
        try:
            told = self._control.recv(_READ_BYTES)
        except BlockingIOError:
            return True
        except ConnectionError:
            return False
        if told:
            self.bounds = msgspec.msgpack.decode(told, type=TextBounds)
        return bool(told)

    def start(self, data: bytes, add_special: bool, longest: int, is_long: bool) -> Job:
        """Let a text be tokenized; raises OSError."""
        return Job(self._control, data, add_special, longest, is_long)

    def close(self) -> None:
        """Let it end, and take note of its end once it has."""
        self._control.close()
        self._process.kill()
        self._process.wait()


class TokenizerStarter:
    """Starts a tokenizer's processes, the first one now: it loads while the model is loaded."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._first: TokenizerProcess | None = None
        with contextlib.suppress(OSError):  # tried again later
            self._first = TokenizerProcess(command)

    def __call__(self) -> TokenizerProcess:
        """Return a process; raises OSError."""
        first, self._first = self._first, None
        return first if first is not None else TokenizerProcess(self._command)


def tokenizer_command(model_path: str) -> list[str]:
    """Return the command that starts a tokenizer's process for a model."""
    return [
        sys.executable,
        "-m",
        "kserve_llamacpp.engine.text.tokenizer_process",
        "{fd}",
        model_path,
    ]


def tokenizer_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the process's environment: it forks, so that it may have no threads and no device."""
    return {
        **environment,
        "OPENBLAS_NUM_THREADS": "1",
        "GGML_NO_BACKTRACE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HIP_VISIBLE_DEVICES": "",
    }

"""What a kind of model server is: its command line, its readiness, and what its end means."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from openai_proxy.dialects.base import COMPLETIONS

# The proxy's own exit codes; those of its predictor are the same.
EXIT_GAVE_UP = 1
EXIT_BAD_CONFIGURATION = 2
EXIT_PORT_TAKEN = 3
EXIT_NO_MODEL = 4


class BackendError(Exception):
    """The backend cannot run; the proxy ends with this exit code and text."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why another try would end as this one; with EXIT_PORT_TAKEN another port may help."""

    exit_code: int
    message: str


@dataclass(frozen=True, slots=True)
class Sign:
    """A line by which a program tells why it ends; `exit_code` is the proxy's for it."""

    pattern: str
    exit_code: int
    hint: str = ""


class Backend(Protocol):
    """One kind of model server; pure but for `check`."""

    @property
    def name(self) -> str:
        """The kind's name, as in `--backend`."""

    @property
    def model(self) -> str | None:
        """The name that it is told to serve its model under; None where it has its own."""

    @property
    def health_path(self) -> str | None:
        """Answers 200 once the model is loaded; None: an open port is all that can be seen."""

    @property
    def liveness_path(self) -> str | None:
        """Answers with 5xx once only a new process can help; None: any answer is a sign of life."""

    @property
    def dialect(self) -> str | None:
        """The dialect that it speaks; None: the one that is configured."""

    @property
    def warm_up_path(self) -> str:
        """What it is asked for first, where its dialect has that."""

    @property
    def listens_itself(self) -> bool:
        """Whether it is one of its own processes that listens on its port."""

    def check(self, path: str | None) -> None:
        """Raise BackendError for what keeps it from starting at all; `path` as in PATH."""

    def command(self, host: str, port: int) -> list[str]:
        """Return the command that serves the model on this address."""

    def environment(self, host: str, port: int) -> dict[str, str]:
        """Return the variables that it is configured by."""

    def choose_model(self, listed: Sequence[str]) -> str | None:
        """Return its own name for the model, of those that it lists (maybe none).

        It is asked only where it is told no name.
        """

    def judge(self, exit_code: int, said: Sequence[str]) -> Verdict | None:
        """Say why a process that was never ready would end so again; None: it is worth a try.

        `said` are its last lines.
        """


class ModelServer:
    """What kinds have in common; a kind is a frozen dataclass with a program and a command line."""

    __slots__ = ()

    name: ClassVar[str]
    program_setting: ClassVar[str] = "--backend-executable"
    install: ClassVar[str] = ""
    liveness_path: ClassVar[str | None] = None
    dialect: ClassVar[str | None] = "openai"
    warm_up_path: ClassVar[str] = COMPLETIONS
    listens_itself: ClassVar[bool] = True
    hopeless_codes: ClassVar[frozenset[int]] = frozenset({EXIT_BAD_CONFIGURATION})
    signs: ClassVar[tuple[Sign, ...]] = ()
    program: str
    model: str | None

    def check(self, path: str | None) -> None:
        """Raise BackendError where there is no such program."""
        if shutil.which(self.program, path=path) is None:
            how = f"; {self.install}" if self.install else ""
            where = "" if "/" in self.program else " on the PATH"
            raise BackendError(
                f"{self.program_setting}: there is no program {self.program!r}{where}{how}",
                EXIT_BAD_CONFIGURATION,
            )

    def environment(self, host: str, port: int) -> dict[str, str]:
        """Return no variables."""
        return {}

    def choose_model(self, listed: Sequence[str]) -> str | None:
        """Return the name that it was told to use."""
        return self.model

    def judge(self, exit_code: int, said: Sequence[str]) -> Verdict | None:
        """Judge by the exit code, then by what it said."""
        if exit_code in self.hopeless_codes:
            return Verdict(exit_code, _complaint(said) or f"it ended with {exit_code}")
        if exit_code == 0:
            return None
        for sign in (*self.signs, *SIGNS):
            pattern = re.compile(sign.pattern, re.IGNORECASE)
            for line in reversed(said):
                if pattern.search(line):
                    hint = f"; {sign.hint}" if sign.hint else ""
                    return Verdict(sign.exit_code, f"{line}{hint}")
        return None


def _complaint(said: Sequence[str]) -> str:
    """Return the last line that calls itself an error, else the last one."""
    complaints = [line for line in said if "error:" in line.lower()]
    return (complaints or [*said] or [""])[-1]


SIGNS = (
    Sign(r"address already in use|\bEADDRINUSE\b|\[errno 98\]", EXIT_PORT_TAKEN),
    Sign(r"^cannot run ", EXIT_BAD_CONFIGURATION),  # the guard's own words
)

# What vLLM and SGLang say of a model that is neither a folder nor on the hub.
NO_SUCH_MODEL = Sign(
    r"not a valid model identifier|repository not found|invalid repository id|"
    r"does not appear to have a file named",
    EXIT_NO_MODEL,
    "see --model-path",
)


_REFERENCE = re.compile(r"([a-z][a-z0-9+.-]*)://")
_LATER_PART = re.compile(r"-(?!00001-)\d{5}-of-\d{5}\.gguf$")


def check_reference(model_path: str, instead: str = "its file, or a folder that holds it") -> None:
    """Raise BackendError for a model that is somewhere else, such as hf://org/name."""
    if _REFERENCE.match(model_path):
        raise BackendError(
            f"--model-path: {model_path!r} is a reference, and the backend fetches none: "
            f"give {instead}",
            EXIT_NO_MODEL,
        )


def check_local_or_hub(model_path: str) -> None:
    """Raise BackendError where a file or folder does not exist; hubs' names are not looked up."""
    check_reference(model_path, "a folder, or the name on the hub alone (org/name)")
    if model_path.startswith(("/", "./", "../")) and not Path(model_path).exists():
        raise _no_model(model_path)


def gguf_file(model_path: str) -> str:
    """Return a model's file: the path itself, or the only GGUF file in that folder.

    Of a model in parts it is the first one, as the predictor takes it. Raises BackendError.
    """
    check_reference(model_path)
    place = Path(model_path)
    if not place.exists():
        raise _no_model(model_path)
    if not place.is_dir():
        return model_path
    files = sorted(file for file in place.rglob("*.gguf") if not _LATER_PART.search(file.name))
    if len(files) != 1:
        names = ", ".join(str(file.relative_to(place)) for file in files[:5])
        found = f"several GGUF files ({names}): name the one to serve" if files else "no GGUF file"
        raise BackendError(f"--model-path: the folder {model_path!r} has {found}", EXIT_NO_MODEL)
    return str(files[0])


def _no_model(model_path: str) -> BackendError:
    return BackendError(f"--model-path: there is no file or folder {model_path!r}", EXIT_NO_MODEL)


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return the text with `{name}` replaced for each name that there is a value for."""
    return re.sub(r"\{([a-z_]+)\}", lambda found: values.get(found[1], found[0]), text)


def address(host: str, port: int) -> str:
    """Return host and port as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

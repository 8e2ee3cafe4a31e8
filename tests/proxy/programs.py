"""Proxies with a backend of each kind; the programs are stand-ins, found by their names."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

from tests.proxy.processes import PYTHONPATH, STANDIN

PROGRAMS = STANDIN / "programs"
NAMES = ("vllm", "llama-server", "shimmy", "plain")
KINDS = ("sglang", "vllm", "llama-server", "shimmy", "command")


class Programs:
    """A folder with the programs and a model's file; `path` is the PATH that has them."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in NAMES:
            words = (sys.executable, str(PROGRAMS / "program.py"), name)
            self.bin.joinpath(name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
            self.bin.joinpath(name).chmod(0o755)
        self.model = folder / "Tiny_Model.gguf"
        self.model.touch()
        self.pids = folder / "pids"

    def flags(self, kind: str, *behaviour: str, **settings: str) -> list[str]:
        """The flags of a proxy with this kind of backend, that misbehaves so."""
        values = {
            "backend": kind,
            "model-path": str(self.model),
            "health": "superset",  # tells where the backend listens
            "backend-env": json.dumps({"STANDIN": ";".join(behaviour)}),
            **({"backend-command": "plain --port {port}"} if kind == "command" else {}),
            **{name.replace("_", "-"): value for name, value in settings.items()},
        }
        return [part for name, value in values.items() for part in (f"--{name}", value)]

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which the programs are found."""
        return {
            "PATH": os.pathsep.join((str(self.bin), os.environ["PATH"])),
            "PYTHONPATH": os.pathsep.join((str(PROGRAMS), PYTHONPATH)),
        }

"""What ends the predictor: each with its exit status and what to mend.

    StartupError            1
    ├── ConfigurationError  2   a setting is wrong
    ├── PortTakenError      3   another process listens there
    ├── ModelFileError      4   no model file, or not one that llama.cpp can load
    ├── MemoryExceededError 5   the model does not fit
    └── EngineLostError     6   nobody looks after the engine any more, at any time: a new
                                process is needed

Errors of requests are `openai_protocol.errors`.
"""

from __future__ import annotations


class StartupError(Exception):
    """The predictor cannot start; the text names the setting and says how to mend it."""

    exit_status = 1


class ConfigurationError(StartupError):
    """A setting has a value that it cannot have."""

    exit_status = 2


class PortTakenError(StartupError):
    """A port is not free."""

    exit_status = 3


class ModelFileError(StartupError):
    """The model file is missing, is not a GGUF, or cannot be loaded."""

    exit_status = 4


class MemoryExceededError(StartupError):
    """The model and its KV cache do not fit into the memory there is."""

    exit_status = 5


class EngineLostError(StartupError):
    """No engine can be started from this process any more; its supervisor must start another."""

    exit_status = 6

"""What can stop the set-up.

BootstrapError          a message that tells what to mend; exit status 1
└── CommandFailed       a child process failed; carries its exit status and the end of its log
"""

from pathlib import Path


class BootstrapError(Exception):
    """Something that the user can mend, told in the message."""


class CommandFailed(BootstrapError):
    """A child process ended with a status other than zero."""

    def __init__(self, task: str, status: int, tail: list[str], log: Path) -> None:
        super().__init__(f"{task} failed with exit status {status}")
        self.task = task
        self.status = status
        self.tail = tail
        self.log = log

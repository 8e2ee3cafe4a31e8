"""What is wrong with a configuration.

Exception
└── ConfigError: one sentence for each problem; names the setting and where it was given
"""

from __future__ import annotations


class ConfigError(Exception):
    """Settings are wrong; each problem is one line that names a setting and says how to mend it."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__(problems[0])
        self.problems = problems

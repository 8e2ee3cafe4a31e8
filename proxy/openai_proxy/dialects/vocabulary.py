"""OpenAI's parameters under an upstream's own names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from openai_protocol.errors import ErrorCode, InvalidRequest
from openai_protocol.requests import GenerationRequest
from openai_proxy.dialects.options import parameter_names, parameter_values
from openai_proxy.dialects.parameters import Unsupported, checked

Names = str | Mapping[str, str]
Defaults = str | Mapping[str, Any]
# Both mean the same limit.
_LIMITS = ("max_tokens", "max_completion_tokens")


def same(*names: str) -> dict[str, str]:
    """Return names for parameters that an upstream calls as OpenAI, or vLLM, does."""
    return {name: name for name in names}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which parameters an upstream knows, and what it is told where a request says nothing.

    `names`: from OpenAI's names to the upstream's. `defaults`: values by the upstream's names.
    `only_scalars`: it takes numbers, truth values and strings; a list of one is sent as that one.
    """

    names: Mapping[str, str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    unsupported: Unsupported = "refuse"
    only_scalars: bool = False

    def parameters(self, asked: GenerationRequest, done_here: Iterable[str] = ()) -> dict[str, Any]:
        """Return what a request asks for, by the upstream's names, over the defaults.

        `done_here` names what the dialect itself does. Raises InvalidRequest for what neither can.
        """
        supported = {*self.names, *done_here}
        if _LIMITS[0] in self.names:
            supported.update(_LIMITS)
        values = checked(asked, frozenset(supported), self.unsupported)
        for name in (*_LIMITS, *done_here):
            values.pop(name, None)
        if _LIMITS[0] in self.names and asked.token_limit is not None:
            values[_LIMITS[0]] = asked.token_limit
        if self.only_scalars:
            values = self._scalars(values)
        return {**self.defaults, **{self.names[name]: value for name, value in values.items()}}

    def _scalars(self, values: dict[str, Any]) -> dict[str, Any]:
        scalars = {}
        for name, value in values.items():
            one = value[0] if isinstance(value, list) and len(value) == 1 else value
            if isinstance(one, str | bool | int | float):
                scalars[name] = one
            elif self.unsupported == "refuse":
                raise InvalidRequest(
                    f"Invalid '{name}': this model takes a single value there.",
                    param=name,
                    code=ErrorCode.UNSUPPORTED_VALUE,
                )
        return scalars


def vocabulary(
    names: Names | None,
    defaults: Defaults | None,
    usual: Mapping[str, str],
    unsupported: Unsupported,
    only_scalars: bool = False,
) -> Vocabulary:
    """Return a vocabulary as configured; `usual` are the names where none are.

    Raises ValueError for options that cannot be read.
    """
    return Vocabulary(
        usual if names is None else parameter_names("parameters", names),
        {} if defaults is None else parameter_values("defaults", defaults),
        unsupported,
        only_scalars,
    )

"""From the name that a client gives to a model, its upstream's name for it, and its parameters.

Pure: what upstreams list is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai_protocol.errors import ErrorCode, InvalidRequest, NotFound, model_not_found
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest

_MAX_LISTED = 20
_MAX_TOKENS_NAMES = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class Model:
    """A model as configured; `upstream` None: whoever lists it."""

    name: str
    upstream: str | None = None
    upstream_model: str | None = None
    aliases: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a request's model means; `name` is None where the upstream decides."""

    name: str | None
    upstream: str
    upstream_model: str | None
    defaults: Mapping[str, Any]
    max_tokens: int | None


class ModelTable:
    """Knows names, aliases and parameters; frozen: a reload makes another one.

    `defaults` and `max_tokens` hold for every model, beneath its own.
    """

    def __init__(
        self,
        models: Iterable[Model] = (),
        allowed: Sequence[str] = (),
        default: str | None = None,
        defaults: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self._models = {model.name: model for model in models}
        self._names = {name: name for name in self._models}
        for model in self._models.values():
            self._names |= dict.fromkeys(model.aliases, model.name)
        self._allowed = frozenset(allowed)
        self._allowed_listed = tuple(allowed)
        self._default = default
        self._defaults = dict(defaults or {})
        self._max_tokens = max_tokens

    def resolve(self, asked: str | None, listed: Mapping[str, Sequence[str]]) -> Resolved:
        """Return what a name means; `listed` are the upstreams' models, the default one first.

        Raises NotFound for a name that is not allowed, or that nobody serves where that is known.
        """
        given = asked if asked is not None else self._default
        if given is None and len(self._allowed) == 1:
            given = self._allowed_listed[0]
        if given is None and self._allowed:
            raise _no_model()
        if given is None:
            return Resolved(None, next(iter(listed)), None, self._defaults, self._max_tokens)
        name = self._names.get(given, given)
        if self._allowed and not self._allowed & {given, name}:
            raise self._not_allowed(given)
        model = self._models.get(name, Model(name))
        upstream_model = model.upstream_model or name
        upstream = model.upstream or _lister(upstream_model, listed)
        if upstream is None:
            raise model_not_found(given)
        return Resolved(
            given,
            upstream,
            upstream_model,
            self._defaults | dict(model.defaults),
            _least(self._max_tokens, model.max_tokens),
        )

    def listed(self, found: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Return the model objects that clients see, from those that the upstreams list.

        A configured model has the object of its upstream's, under its own name; aliases follow it.
        What has no configuration comes as it is; the first upstream that lists a name counts.
        """
        objects: dict[str, dict[str, Any]] = {}
        configured = {
            (upstream, model.upstream_model or model.name)
            for model in self._models.values()
            for upstream in ([model.upstream] if model.upstream else found)
        }
        for upstream, items in found.items():
            for item in items:
                name = item.get("id")
                if isinstance(name, str) and (upstream, name) not in configured:
                    objects.setdefault(name, item)
        for model in self._models.values():
            made = self._object(model, found)
            if made is not None:
                for name in (model.name, *model.aliases):
                    objects[name] = made | {"id": name}
        return [made for name, made in objects.items() if self._is_allowed(name)]

    def _object(
        self, model: Model, found: Mapping[str, Sequence[dict[str, Any]]]
    ) -> dict[str, Any] | None:
        """Return a configured model's object; None while its upstream does not list it."""
        wanted = model.upstream_model or model.name
        for upstream, items in found.items():
            if model.upstream in (None, upstream):
                for item in items:
                    if item.get("id") == wanted:
                        return item
        return None

    def _is_allowed(self, name: str) -> bool:
        return not self._allowed or bool(self._allowed & {name, self._names.get(name, name)})

    def _not_allowed(self, given: str) -> NotFound:
        names = ", ".join(self._allowed_listed[:_MAX_LISTED])
        return NotFound(
            f"Model '{given[:256]}' is not in the allowed list. Available models: {names}",
            param="model",
            code=ErrorCode.MODEL_NOT_ALLOWED,
        )


def changes(asked: ChatCompletionRequest | CompletionRequest, resolved: Resolved) -> dict[str, Any]:
    """Return the fields of a request that differ from what its client sent: defaults and limits.

    Raises InvalidRequest where it asks for more tokens than it may.
    """
    extra = asked.model_extra or {}
    given = {name for name in asked.model_fields_set if getattr(asked, name) is not None}
    given |= {name for name, value in extra.items() if value is not None}
    made = {name: value for name, value in resolved.defaults.items() if name not in given}
    if asked.token_limit is not None:
        for name in _MAX_TOKENS_NAMES:
            made.pop(name, None)
    limit = resolved.max_tokens
    if limit is not None:
        _check_limit(asked, limit)
        by_default = next((made[name] for name in _MAX_TOKENS_NAMES if name in made), None)
        if asked.token_limit is None:
            for name in _MAX_TOKENS_NAMES:
                made.pop(name, None)
            made["max_tokens"] = limit if by_default is None else min(limit, by_default)
    if resolved.upstream_model != asked.model:
        made["model"] = resolved.upstream_model
    return made


def _check_limit(asked: ChatCompletionRequest | CompletionRequest, limit: int) -> None:
    for param in _MAX_TOKENS_NAMES:  # either: an upstream may know only one of them
        given = getattr(asked, param, None)
        if given is not None and given > limit:
            raise InvalidRequest(
                f"Invalid '{param}': input should be less than or equal to {limit}, "
                f"but got {given}.",
                param=param,
                code=ErrorCode.INTEGER_ABOVE_MAX_VALUE,
            )


def _no_model() -> InvalidRequest:
    return InvalidRequest(
        "Missing required parameter: 'model'.",
        param="model",
        code=ErrorCode.MISSING_REQUIRED_PARAMETER,
    )


def _lister(model: str, listed: Mapping[str, Sequence[str]]) -> str | None:
    """Return the first upstream that lists a model.

    The only one, and one that lists nothing (it may not be able to), can answer for itself.
    """
    if len(listed) == 1:
        return next(iter(listed))
    for name, models in listed.items():
        if model in models:
            return name
    return next((name for name, models in listed.items() if not models), None)


def _least(left: int | None, right: int | None) -> int | None:
    both = [limit for limit in (left, right) if limit is not None]
    return min(both, default=None)

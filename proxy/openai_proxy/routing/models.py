"""From the name that a client gives to a model, its upstream's name for it, and its parameters.

Pure: what upstreams list is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai_protocol.errors import ErrorCode, InvalidRequest, NotFound, model_not_found
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest

Asked = ChatCompletionRequest | CompletionRequest
_MAX_LISTED = 20
_MAX_TOKENS_NAMES = ("max_completion_tokens", "max_tokens")
# What servers call the same, and the objects in which some have it: all of it passes to upstreams
# that speak OpenAI's protocol, and llama-server, for one, reads its own name first.
_ALL_NAMES = (
    *_MAX_TOKENS_NAMES,
    *("n_predict", "num_predict", "max_new_tokens", "max_output_tokens", "max_length"),
)
_INNER = ("options", "parameters", "sampling_params")


@dataclass(frozen=True, slots=True)
class Model:
    """A model as configured; `upstream` None: whoever lists it."""

    name: str
    upstream: str | None = None
    upstream_model: str | None = None
    aliases: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None

    @property
    def name_there(self) -> str:
        """What its upstream calls it."""
        return self.upstream_model or self.name


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
        given = self._given(asked)
        if given is None:
            upstream = next(iter(listed))
            return self._resolved(None, upstream, None, self._meant(None, upstream, listed))
        name = self._names.get(given, given)
        if self._allowed and not self._allowed & {given, name}:
            raise self._not_allowed(given)
        model = self._models.get(name)
        wanted = name if model is None else model.name_there
        found = self._upstream_of(model, listed) if model else _lister(wanted, listed)
        if found is None:
            raise model_not_found(given)
        entries = self._meant(wanted, found, listed) if model is None else [model]
        return self._resolved(given, found, wanted, entries)

    def _given(self, asked: str | None) -> str | None:
        """Return the name that counts; None where the upstream decides."""
        given = asked if asked is not None else self._default
        if given is None and self._allowed:
            if len(self._allowed) > 1:
                raise _no_model()
            return self._allowed_listed[0]
        return given

    def _meant(
        self, wanted: str | None, upstream: str, listed: Mapping[str, Sequence[str]]
    ) -> list[Model]:
        """Return the entries for what a request may mean that names none of them.

        So nobody escapes an entry's limit by its upstream's own name for the model, by any name
        where the upstream has only one, or by none.
        """
        there = listed[upstream]
        names = there if wanted is None or len(there) == 1 else (wanted,)
        return [
            model
            for model in self._models.values()
            if (not names or model.name_there in names)
            and self._upstream_of(model, listed) == upstream
        ]

    @staticmethod
    def _upstream_of(model: Model, listed: Mapping[str, Sequence[str]]) -> str | None:
        return model.upstream or _lister(model.name_there, listed)

    def _resolved(
        self, name: str | None, upstream: str, upstream_model: str | None, entries: list[Model]
    ) -> Resolved:
        """Return what a name means, with the strictest limit of its entries.

        Defaults are those of the one entry: of several it is not known which is meant.
        """
        limits = [self._max_tokens, *(entry.max_tokens for entry in entries)]
        defaults = self._defaults
        if len(entries) == 1:
            defaults = defaults | dict(entries[0].defaults)
        return Resolved(
            name,
            upstream,
            upstream_model,
            defaults,
            min((limit for limit in limits if limit is not None), default=None),
        )

    def listed(self, found: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
        """Return the model objects that clients see, from those that the upstreams list.

        A configured model has the object of its upstream's, under its own name; aliases follow it.
        What has no configuration comes as it is; the first upstream that lists a name counts.
        """
        objects: dict[str, dict[str, Any]] = {}
        configured = {
            (upstream, model.name_there)
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
        wanted = model.name_there
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


def changes(asked: Asked, resolved: Resolved) -> dict[str, Any]:
    """Return the fields of a request that differ from what its client sent: defaults and limits.

    Raises InvalidRequest where it asks for more tokens than it may.
    """
    made = _defaults(asked, resolved.defaults) if resolved.defaults else {}
    limit = resolved.max_tokens
    if limit is not None:
        _check_limit(asked, limit)
        if asked.token_limit is None:
            by_default = [made.pop(name) for name in _MAX_TOKENS_NAMES if name in made]
            made["max_tokens"] = min([limit, *by_default[:1]])
    if resolved.upstream_model != asked.model:
        made["model"] = resolved.upstream_model
    return made


def _defaults(asked: Asked, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults for what a request does not give."""
    given = {name for name in asked.model_fields_set if getattr(asked, name) is not None}
    if asked.token_limit is not None:
        given.update(_MAX_TOKENS_NAMES)
    return {name: value for name, value in defaults.items() if name not in given}


def _check_limit(asked: Asked, limit: int) -> None:
    """Refuse more tokens than the limit by any name: an upstream may know only one of them."""
    _check_numbers(vars(asked), "", limit)
    extra = asked.model_extra
    if extra:
        _check_numbers(extra, "", limit)
        for outer in _INNER:
            if isinstance(inner := extra.get(outer), dict):
                _check_numbers(inner, f"{outer}.", limit)


def _check_numbers(values: Mapping[str, Any], where: str, limit: int) -> None:
    for name in _ALL_NAMES:
        given = values.get(name)
        if given is None:
            continue
        param = where + name
        if isinstance(given, bool) or not isinstance(given, int):
            raise InvalidRequest(
                f"Invalid '{param}': input should be a whole number.",
                param=param,
                code=ErrorCode.INVALID_TYPE,
            )
        if given < 1:  # which means that there is to be no limit
            raise InvalidRequest(
                f"Invalid '{param}': input should be greater than or equal to 1.",
                param=param,
                code=ErrorCode.INTEGER_BELOW_MIN_VALUE,
            )
        if given > limit:
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

"""From the body of V1 `:predict` to a checked request for each of its instances. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kserve_llamacpp.chat.prompt import refuse_unsupported, unsupported
from openai_protocol.errors import ErrorCode, InvalidRequest, missing_parameter, wrong_type
from openai_protocol.request_limits import RequestLimits
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_protocol.responses import Json
from openai_protocol.validation import check_request

MAX_INSTANCES = 128

Asked = ChatCompletionRequest | CompletionRequest
_PROMPTS: dict[str, Any] = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}
_KINDS: dict[str, type[ChatCompletionRequest] | type[CompletionRequest]] = {
    "prompt": CompletionRequest,
    "messages": ChatCompletionRequest,
}


def instance_requests(payload: Any, limits: RequestLimits) -> list[Asked]:
    """Return the request of each instance; the first error ends it.

    An instance is a text, or an object with `prompt` or `messages` and parameters of its own;
    `parameters` beside `instances` hold for all, and are checked once. Raises InvalidRequest that
    names the instance, or the parameter.
    """
    if isinstance(payload, bytes):  # as KServe leaves a body of another type
        raise InvalidRequest(
            "Invalid header 'Content-Type': the body must be sent as 'application/json'.",
            param="Content-Type",
        )
    if not isinstance(payload, dict):
        raise InvalidRequest(
            'The body must be an object: {"instances": [...]}.', code=ErrorCode.INVALID_TYPE
        )
    instances = payload.get("instances")
    if instances is None:
        raise missing_parameter("instances")
    if not isinstance(instances, list):
        raise wrong_type("instances", "a list")
    if not instances or len(instances) > MAX_INSTANCES:
        raise InvalidRequest(
            f"Invalid 'instances': it must have 1 to {MAX_INSTANCES} elements.", param="instances"
        )
    shared = _Shared(payload.get("parameters") or {})
    requests = []
    for at, instance in enumerate(instances):
        with place_named(f"instances[{at}]"):
            requests.append(_request(instance, shared, limits, at))
    return requests


class _Shared:
    """The parameters that hold for all instances; each kind of request checks them once."""

    def __init__(self, parameters: Any) -> None:
        if not isinstance(parameters, dict):
            raise wrong_type("parameters", "an object")
        self._parameters = parameters
        self._checked: dict[str, Asked] = {}
        for name in _PROMPTS:
            if name in parameters:
                raise _misplaced(f"parameters.{name}", "an instance has its own")

    def below(self, own: Asked, field: str) -> Asked:
        """Return a request with these parameters, where it has not its own."""
        if not self._parameters:
            return own
        if field not in self._checked:
            with place_named("parameters"):
                body = {**self._parameters, field: _PROMPTS[field]}
                self._checked[field] = _checked(field, body)
        shared = self._checked[field]
        names = shared.model_fields_set - own.model_fields_set
        return own.model_copy(update={name: getattr(shared, name) for name in names})


def _request(instance: Any, shared: _Shared, limits: RequestLimits, at: int) -> Asked:
    if isinstance(instance, str):
        instance = {"prompt": instance}
    if not isinstance(instance, dict) or ("prompt" in instance) == ("messages" in instance):
        raise InvalidRequest(
            f"Invalid 'instances[{at}]': it must be a text, or an object with either 'prompt' or "
            "'messages'."
        )
    own = instance.get("parameters") or {}
    if not isinstance(own, dict):
        raise wrong_type("parameters", "an object")
    field = "messages" if "messages" in instance else "prompt"
    body = {**own, **instance}
    body.pop("parameters", None)
    request = shared.below(_checked(field, body), field)
    if isinstance(request, ChatCompletionRequest):
        limits.check_messages(len(request.messages))
    elif len(request.prompts()) != 1:
        raise InvalidRequest("Invalid 'prompt': an instance has one prompt.", param="prompt")
    return request


def _checked(field: str, body: Json) -> Asked:
    """Return a request of which nothing is unknown, and that asks for one text."""
    if body.pop("stream", None):
        raise unsupported("stream", "V1 predict answers in one piece")
    request: Asked = check_request(_KINDS[field], body)
    refuse_unsupported(request)
    wants = {
        "n": request.num_choices > 1,
        "best_of": request.num_generated_choices > 1,
        "logprobs": request.num_top_logprobs is not None,
        "echo": isinstance(request, CompletionRequest) and bool(request.echo),
    }
    for name, is_wanted in wants.items():
        if is_wanted:
            raise unsupported(name, "a prediction is one text")
    return request


@contextmanager
def place_named(place: str) -> Iterator[None]:
    """Put a place before the name of the field that an error is about."""
    try:
        yield
    except InvalidRequest as error:
        if error.param is None:
            error.param = place
        elif not error.param.startswith("parameters."):  # those of all instances
            error.param = f"{place}.{error.param}"
        raise


def _misplaced(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{name}': {why}.", param=name)

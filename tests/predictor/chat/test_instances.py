"""From V1's body to a request for each instance: checked once, and no further than to an error."""

from __future__ import annotations

from typing import Any

import pytest

from kserve_llamacpp.chat import instances
from kserve_llamacpp.chat.instances import Asked, instance_requests
from openai_protocol.errors import InvalidRequest
from openai_protocol.request_limits import RequestLimits
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest

HI = [{"role": "user", "content": "hi"}]


def asked(*given: Any, limits: RequestLimits | None = None, **parameters: Any) -> list[Asked]:
    body = {"instances": list(given), "parameters": parameters}
    return instance_requests(body, limits or RequestLimits())


def refusal(*given: Any, **parameters: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        asked(*given, **parameters)
    return caught.value


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every body that is checked from now on."""
    seen: list[Any] = []
    check = instances.check_request

    def spy(kind: Any, body: Any) -> Any:
        seen.append(body)
        return check(kind, body)

    monkeypatch.setattr(instances, "check_request", spy)
    return seen


def test_parameters_hold_for_all_instances() -> None:
    """What stands beside the instances holds for each, unless it says otherwise itself."""
    own = {"prompt": "b", "temperature": 0.5, "parameters": {"top_p": 0.3}}

    a, b, chat = asked("a", own, {"messages": HI}, temperature=1.5, top_p=0.9, seed=7)

    assert isinstance(a, CompletionRequest)
    assert isinstance(chat, ChatCompletionRequest)
    assert [(r.temperature, r.top_p, r.seed) for r in (a, b, chat)] == [
        (1.5, 0.9, 7),
        (0.5, 0.3, 7),
        (1.5, 0.9, 7),
    ]
    assert (a.prompts(), b.prompts(), chat.messages[0].content) == (["a"], ["b"], "hi")


def test_an_instance_says_null_for_the_default() -> None:
    """A null of an instance wins over the parameters of all."""
    (request,) = asked({"prompt": "a", "seed": None}, seed=7)

    assert request.seed is None


def test_large_parameters_are_checked_once_for_each_kind(checks: list[Any]) -> None:
    """128 instances of two kinds check their own few fields, and the shared ones twice in all."""
    bias = {str(n): 1.0 for n in range(1024)}

    requests = asked(*["a", {"messages": HI}] * 64, logit_bias=bias)

    assert len(requests) == 128
    assert sum("logit_bias" in body for body in checks) == 2
    assert requests[0].logit_bias is requests[2].logit_bias


def test_the_first_error_ends_it(checks: list[Any]) -> None:
    """After a wrong instance no other one is looked at."""
    assert refusal({"prompt": 1}, *["a"] * 127).param == "instances[0].prompt"
    assert len(checks) == 1


def test_what_holds_for_all_has_no_prompt(checks: list[Any]) -> None:
    """A conversation beside the instances is refused before it is read, 4,096 messages or one."""
    error = refusal(*["a"] * 128, messages=HI * 4096)

    assert error.param == "parameters.messages"
    assert checks == []


@pytest.mark.parametrize(
    ("given", "parameters", "param"),
    [
        ("a", {"n": 2}, "parameters.n"),
        ("a", {"stream": True}, "parameters.stream"),
        ("a", {"foo": 1}, "parameters.foo"),
        ({"prompt": "a", "foo": 1}, {}, "instances[0].foo"),
        ({"prompt": "a", "parameters": 3}, {}, "instances[0].parameters"),
        ({"prompt": ["a", "b"]}, {}, "instances[0].prompt"),
        ({"messages": HI, "prompt": "a"}, {}, "instances[0]"),
        ({"messages": HI, "parameters": {"temperature": 9}}, {}, "instances[0].temperature"),
    ],
)
def test_an_error_names_its_place(given: Any, parameters: dict[str, Any], param: str) -> None:
    """What is wrong is named where it stands: in an instance, or in the parameters of all."""
    assert refusal(given, **parameters).param == param


def test_a_body_of_another_type_says_which_header_is_wrong() -> None:
    """KServe gives a body as bytes when its type is not JSON's: as curl sends it, for example."""
    with pytest.raises(InvalidRequest, match="must be sent as 'application/json'") as caught:
        instance_requests(b'{"instances": ["a"]}', RequestLimits())

    assert caught.value.param == "Content-Type"


def test_messages_are_bounded() -> None:
    """A conversation of an instance is as long as one of a chat may be."""
    with pytest.raises(InvalidRequest) as caught:
        asked({"messages": HI * 3}, limits=RequestLimits(max_messages=2))

    assert caught.value.param == "instances[0].messages"

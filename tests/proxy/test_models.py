"""Names of models: allowed, by default, aliased, rewritten; their parameters and limits."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from openai_protocol.errors import InvalidRequest, NotFound
from openai_protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_proxy.config import ConfigError, load
from openai_proxy.routing.models import Model, ModelTable, Resolved, changes
from openai_proxy.routing.router import Router
from tests.proxy import harness
from tests.proxy.harness import (
    COMPLETION,
    DONE,
    StandIn,
    answered,
    answered_json,
    chunk,
    streamed,
    until,
)

LISTED = {"gpu": ("big",), "cpu": ("small",)}


def resolved(table: ModelTable, name: str | None) -> tuple[str | None, str, str | None]:
    found = table.resolve(name, LISTED)
    return found.name, found.upstream, found.upstream_model


def test_who_lists_a_model_serves_it() -> None:
    """Without any configuration a model goes to the upstream that lists it."""
    table = ModelTable()
    assert resolved(table, "small") == ("small", "cpu", "small")
    assert resolved(table, None) == (None, "gpu", None)
    with pytest.raises(NotFound):
        table.resolve("other", LISTED)


def test_one_upstream_answers_for_itself() -> None:
    """A name that the only upstream does not list is its to refuse; so is one's without a list."""
    assert ModelTable().resolve("other", {"one": ("a",)}).upstream == "one"
    assert ModelTable().resolve("other", {"one": ("a",), "mute": ()}).upstream == "mute"


def test_aliases_and_other_names() -> None:
    """An alias stands for a model, and that for what its upstream calls it."""
    table = ModelTable([Model("chat", upstream_model="small", aliases=("gpt-4o",))], default="chat")
    assert resolved(table, "gpt-4o") == ("gpt-4o", "cpu", "small")
    assert resolved(table, None) == ("chat", "cpu", "small")


def test_only_what_is_allowed() -> None:
    """A name outside the list is refused, with the list; an alias of an allowed one is not."""
    table = ModelTable([Model("small", aliases=("gpt",))], allowed=["small"])
    assert resolved(table, "gpt")[2] == "small"
    with pytest.raises(NotFound) as caught:
        table.resolve("big", LISTED)
    assert (caught.value.param, caught.value.code) == ("model", "model_not_allowed")
    assert caught.value.message == (
        "Model 'big' is not in the allowed list. Available models: small"
    )


def test_a_route_is_found_anew_when_lists_change() -> None:
    """A model that another upstream lists now, or whose upstream has changed, goes there."""
    first, second, third = object(), object(), object()
    router = Router()
    for name, upstream in (("a", first), ("b", second)):
        router.use(upstream, name)  # type: ignore[arg-type]  # which is never asked
    router.note_models(("small",), "a")
    router.note_models(("big",), "b")
    assert router.route("small").upstream is first
    router.note_models(("big",), "a")
    router.note_models(("small",), "b")
    assert router.route("small").upstream is second
    router.use(third, "b")  # type: ignore[arg-type]
    assert router.route("small").upstream is third


def limits(table: ModelTable, name: str | None, *there: str) -> tuple[int | None, Any]:
    """The limit and the default temperature of a request to the one upstream."""
    found = table.resolve(name, {"one": there})
    return found.max_tokens, found.defaults.get("temperature")


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("small", ("small", "big")),  # by its upstream's name
        ("small", ()),
        ("whatever", ("small",)),  # many servers take any name for the only one they have
        (None, ("small",)),
    ],
)
def test_no_name_escapes_a_limit(asked: str | None, there: tuple[str, ...]) -> None:
    """A model's limit and defaults hold also for who does not name it by our name."""
    entry = Model("chat", upstream_model="small", defaults={"temperature": 0.5}, max_tokens=9)
    table = ModelTable([entry], max_tokens=50)
    assert limits(table, asked, *there) == (9, 0.5)
    assert limits(table, "big", "small", "big") == (50, None)


def test_of_several_limits_the_strictest_holds() -> None:
    """Where it is not known which entry is meant, the least limit holds, and no default of one."""
    table = ModelTable(
        [
            Model("long", upstream_model="small", defaults={"temperature": 1}, max_tokens=99),
            Model("short", upstream_model="small", defaults={"temperature": 0}, max_tokens=9),
            Model("other", upstream_model="big", max_tokens=3),
            Model("elsewhere", upstream="two", upstream_model="small", max_tokens=1),
        ],
    )
    listed = {"one": ("small", "big"), "two": ("small",)}
    found = table.resolve("small", listed)
    assert (found.upstream, found.max_tokens, found.defaults) == ("one", 9, {})
    assert table.resolve("long", listed).max_tokens == 99
    assert table.resolve(None, listed).max_tokens == 3
    assert table.resolve(None, {"one": ()}).max_tokens == 3


def test_lists_are_merged() -> None:
    """Clients see configured models by their own names and aliases, others as they are listed."""
    table = ModelTable(
        [Model("chat", upstream="cpu", upstream_model="small", aliases=("gpt",)), Model("gone")],
        allowed=["chat", "big"],
    )
    found = {"gpu": [{"id": "big", "x": 1}], "cpu": [{"id": "small"}, {"id": "big", "x": 2}]}
    assert table.listed(found) == [{"id": "big", "x": 1}, {"id": "chat"}, {"id": "gpt"}]


def _changes(fields: dict[str, Any], **known: Any) -> dict[str, Any]:
    asked = ChatCompletionRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    )
    found = {"defaults": {}, "max_tokens": None, "upstream_model": "m", **known}
    return changes(asked, Resolved(name="m", upstream="u", **found))


@pytest.mark.parametrize(
    ("fields", "known", "changed"),
    [
        ({}, {}, {}),
        ({}, {"upstream_model": "n"}, {"model": "n"}),
        ({}, {"defaults": {"temperature": 0.7}}, {"temperature": 0.7}),
        ({"temperature": 0}, {"defaults": {"temperature": 0.7}}, {}),
        ({}, {"max_tokens": 9}, {"max_tokens": 9}),
        ({}, {"max_tokens": 9, "defaults": {"max_tokens": 5}}, {"max_tokens": 5}),
        ({}, {"max_tokens": 9, "defaults": {"max_tokens": 50}}, {"max_tokens": 9}),
        ({"max_tokens": 9}, {"max_tokens": 9, "defaults": {"max_tokens": 5}}, {}),
        ({"max_completion_tokens": 3}, {"defaults": {"max_tokens": 5}}, {}),
        ({"temperature": None}, {"defaults": {"temperature": 0.7}}, {"temperature": 0.7}),
        ({"max_tokens": None}, {"max_tokens": 9, "defaults": {"max_tokens": 5}}, {"max_tokens": 5}),
    ],
)
def test_defaults_and_limits(
    fields: dict[str, Any], known: dict[str, Any], changed: dict[str, Any]
) -> None:
    """Defaults fill in what is not given, and a limit what has no number of tokens."""
    assert _changes(fields, **known) == changed


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("max_tokens", {}),
        ("max_completion_tokens", {}),
        ("max_tokens", {"max_completion_tokens": 1}),
    ],
)
def test_more_than_the_limit_is_refused(name: str, other: dict[str, int]) -> None:
    """A request for more tokens than allowed names its field, whichever the upstream will read."""
    with pytest.raises(InvalidRequest) as caught:
        _changes({name: 10, **other}, max_tokens=9)
    assert (caught.value.param, caught.value.code) == (name, "integer_above_max_value")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n_predict": 10}, "n_predict"),
        ({"n_predict": -1}, "n_predict"),  # llama-server: without end
        ({"n_predict": 10, "max_tokens": 1}, "n_predict"),
        ({"num_predict": 10}, "num_predict"),
        ({"max_new_tokens": 10}, "max_new_tokens"),
        ({"max_new_tokens": "10"}, "max_new_tokens"),
        ({"options": {"num_predict": 10}}, "options.num_predict"),
        ({"parameters": {"max_new_tokens": 10}}, "parameters.max_new_tokens"),
        ({"sampling_params": {"max_tokens": 10}}, "sampling_params.max_tokens"),
    ],
)
def test_no_other_name_escapes_the_limit(fields: dict[str, Any], param: str) -> None:
    """Servers' own names for the number of tokens pass, and are held to the limit as well."""
    with pytest.raises(InvalidRequest) as caught:
        _changes(fields, max_tokens=9)
    assert caught.value.param == param
    assert _changes(fields) == {}


@pytest.mark.parametrize("number", ["10", 10, -1, True, 2.5, [10]])
def test_a_field_of_chats_in_a_text_completion(number: object) -> None:
    """A text completion has no such field, but its upstream may: it is held to the limit, too."""
    fields = {"model": "m", "prompt": "hi", "max_completion_tokens": number}
    asked = CompletionRequest.model_validate(fields)
    with pytest.raises(InvalidRequest) as caught:
        changes(asked, Resolved("m", "u", "m", {}, 9))
    assert caught.value.param == "max_completion_tokens"


def test_other_names_within_the_limit() -> None:
    """What asks for no more than it may passes."""
    fields = {"n_predict": 9, "options": {"num_predict": None, "num_ctx": 4096}, "parameters": 1}
    assert _changes(fields, max_tokens=9) == {"max_tokens": 9}


def test_a_default_for_a_servers_own_parameter() -> None:
    """Defaults fill in parameters beyond OpenAI's, too, and never replace what is given."""
    known = {"defaults": {"think": True}}
    assert _changes({}, **known) == {"think": True}
    assert _changes({"think": None}, **known) == {"think": True}
    assert _changes({"think": False}, **known) == {}


@pytest.fixture
async def other() -> Any:
    async with harness.upstream() as standin:
        standin.models = answered_json({"object": "list", "data": [{"id": "other"}]})
        standin.respond = answered_json({**COMPLETION, "model": "other"})
        yield standin


async def test_two_upstreams(upstream: StandIn, other: StandIn) -> None:
    """Each request goes to the upstream of its model, and the answer has the client's name."""
    upstreams = [{"name": "a", "url": upstream.url}, {"name": "b", "url": other.url}]
    models = {"gpt-4o": {"upstream": "b", "upstream_model": "other", "max_tokens": 7}}
    async with harness.proxy(upstreams=upstreams, models=models) as proxy:
        await until(lambda: _is_listed(proxy, {"tiny", "gpt-4o"}))
        status, body = await proxy.chat(model="gpt-4o")
        assert (status, body["model"]) == (200, "gpt-4o")
        asked = json.loads(other.bodies[-1])
        assert (asked["model"], asked["max_tokens"]) == ("other", 7)
        assert (await proxy.chat(model="tiny"))[0] == 200
        assert len(upstream.bodies) == 1
        assert (await proxy.chat(model="absent"))[0] == 404
        status, report = await proxy.get("/health")
        assert (status, report["upstreams"]["b"]["models"]) == (200, ["other"])
        assert (await proxy.get("/v1/models/gpt-4o"))[1]["id"] == "gpt-4o"


async def test_a_stream_has_the_clients_name(other: StandIn) -> None:
    """Each event of a stream has the name that the client gave; texts that look alike stay."""
    text = chunk('\\"model\\": \\"tiny\\"')
    other.respond = streamed(text, text + DONE)
    models = {"gpt": {"upstream_model": "other"}}
    async with harness.proxy(upstream_url=other.url, models=models) as proxy:
        stream = await proxy.stream(model="gpt")
    events = [json.loads(part[6:]) for part in stream.split("\n\n") if part.startswith("data: {")]
    assert [event["model"] for event in events] == ["gpt", "gpt"]
    assert events[0]["choices"][0]["delta"]["content"] == '\\"model\\": \\"tiny\\"'


async def _is_listed(proxy: harness.Proxy, names: set[str]) -> bool:
    status, body = await proxy.get("/v1/models")
    return status == 200 and {item["id"] for item in body["data"]} == names


async def test_one_dead_upstream_hides_no_other(upstream: StandIn, other: StandIn) -> None:
    """The list has what can be had, and the proxy is ready as long as one upstream is."""
    other.models = answered(500, "", "text/plain")
    upstreams = [{"name": "b", "url": other.url}, {"name": "a", "url": upstream.url}]
    async with harness.proxy(upstreams=upstreams) as proxy:
        await until(lambda: _is_listed(proxy, {"tiny"}))
        assert (await proxy.get("/health/ready"))[0] == 200


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/rerank", "/tokenize"])
async def test_endpoints_that_pass(upstream: StandIn, path: str) -> None:
    """Other endpoints pass to an upstream that has them, bodies as they are."""
    bodies = {
        "/v1/embeddings": {"input": "hi"},
        "/v1/rerank": {"query": "q", "documents": ["a", {"text": "b"}]},
        "/rerank": {"query": "q", "documents": ["a"]},
        "/tokenize": {"prompt": "hi"},
    }
    body = {"model": "tiny", **bodies[path], "extra": 1}
    upstream.respond = answered_json({"object": "x", "data": [1]})
    async with (
        harness.proxy(upstream_url=upstream.url) as proxy,
        proxy.http.post(proxy.url + path, json=body) as response,
    ):
        assert (response.status, await response.json()) == (200, {"object": "x", "data": [1]})
    assert upstream.requests[-1].path == path
    assert json.loads(upstream.bodies[-1]) == body


async def test_embeddings_need_their_input(upstream: StandIn) -> None:
    """What is wrong with such a request is told before the upstream is asked."""
    async with (
        harness.proxy(upstream_url=upstream.url) as proxy,
        proxy.http.post(proxy.url + "/v1/embeddings", json={"model": "tiny"}) as response,
    ):
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "input"
    assert upstream.bodies == []


async def test_a_reload_leaves_what_runs(upstream: StandIn, other: StandIn) -> None:
    """After a reload new requests go elsewhere; a stream that runs goes on where it began."""
    go_on = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = await harness.start_stream(request)
        await response.write(chunk("a"))
        await go_on.wait()
        await response.write(chunk("b") + DONE)
        return response

    upstream.respond = slow
    async with harness.proxy(upstream_url=upstream.url) as proxy:
        stream = asyncio.create_task(proxy.stream())
        await until(lambda: bool(upstream.bodies))
        settings = load({**harness.DEFAULTS, "upstream_url": other.url, "max_tokens_limit": 5})
        await proxy.lifecycle.reload(settings)
        status, body = await proxy.chat(model="other")
        assert (status, body["model"]) == (200, "other")
        assert json.loads(other.bodies[-1])["max_tokens"] == 5
        go_on.set()
        assert (await stream).endswith("data: [DONE]\n\n")
        await until(lambda: _is_listed(proxy, {"other"}))


async def test_a_reload_that_fails_changes_nothing(upstream: StandIn) -> None:
    """Settings that cannot be built are refused, and the old ones hold."""
    async with harness.proxy(upstream_url=upstream.url) as proxy:
        bad = load({"upstream_url": upstream.url, "upstream_options": {"frobs": "1"}})
        with pytest.raises(ConfigError, match="has no option 'frobs'"):
            await proxy.lifecycle.reload(bad)
        assert (await proxy.chat())[0] == 200


def test_an_allow_list_holds_for_who_names_no_model() -> None:
    """Without a name the only allowed model is meant; of several, one must be named."""
    assert resolved(ModelTable(allowed=["small"]), None) == ("small", "cpu", "small")
    with pytest.raises(InvalidRequest) as caught:
        ModelTable(allowed=["small", "big"]).resolve(None, LISTED)
    assert caught.value.param == "model"


def test_what_is_no_name_is_not_listed() -> None:
    """An upstream's object without a name of its own hides no other."""
    found = {"gpu": [{"id": ["big"]}, {"id": {}}, {}, {"id": "big"}]}
    assert ModelTable().listed(found) == [{"id": "big"}]


async def test_after_a_reload_each_model_is_where_it_was(upstream: StandIn, other: StandIn) -> None:
    """New settings hold when it is known what their upstreams have: nothing goes astray."""
    upstreams = [{"name": "a", "url": upstream.url}, {"name": "b", "url": other.url}]
    async with harness.proxy(upstreams=upstreams) as proxy:
        await until(lambda: _is_listed(proxy, {"tiny", "other"}))
        settings = load({**harness.DEFAULTS, "upstreams": upstreams, "max_retries": 1})
        await proxy.lifecycle.reload(settings)
        assert (await proxy.get("/health/ready"))[0] == 200
        assert (await proxy.chat(model="other"))[1]["model"] == "other"
        assert (upstream.bodies, len(other.bodies)) == ([], 1)


async def test_who_is_away_keeps_its_models(upstream: StandIn, other: StandIn) -> None:
    """While an upstream does not answer, its models' requests go to no other."""
    upstream.models = answered(404, "", "text/plain")  # one without a list could have any
    upstreams = [{"name": "a", "url": upstream.url}, {"name": "b", "url": other.url}]
    async with harness.proxy(upstreams=upstreams, max_retries=0) as proxy:
        await until(lambda: _has(proxy, "b", ["other"]))
        other.models = other.respond = answered(503, "", "text/plain")
        await until(lambda: _has(proxy, "b", []))
        assert (await proxy.chat(model="other"))[0] == 503
        assert upstream.bodies == []


async def _has(proxy: harness.Proxy, name: str, models: list[str]) -> bool:
    _, report = await proxy.get("/health")
    return bool(report["upstreams"][name]["models"] == models)


def test_a_default_that_is_no_number_is_refused() -> None:
    """What would fail each request stops the start."""
    models = {"m": {"defaults": {"max_tokens": "many"}}}
    with pytest.raises(ConfigError, match="must be a whole number"):
        load({"upstream_url": "http://h", "models": models})
